"""Commands and the person at the keyboard: exit codes, errors, suggestions, durations and tables."""

from __future__ import annotations

import argparse
import errno
import pathlib
import re
import sys

import jax
import jax.numpy as jnp
import pytest

from w2v_jax.core import config as configs
from w2v_jax.core.cli import (
    UserError,
    cannot_write,
    count_argument,
    did_you_mean,
    duration,
    expand_home,
    imported,
    one_line,
    out_of_memory,
    path_argument,
    positive,
    run_command,
    some_of,
    step_argument,
    table,
)

BASE = str(pathlib.Path(__file__).parents[2] / "configs" / "w2v2_base.py")


def outcome(main, capsys) -> tuple[int, str]:
    """(the exit code of a command, what it has written to stderr)"""
    with pytest.raises(SystemExit) as end:
        run_command(main)
    return end.value.code, capsys.readouterr().err


@pytest.mark.parametrize(("returned", "code"), [(None, 0), (0, 0), (3, 3), (143, 143)])
def test_the_exit_code_is_what_the_command_returns(returned, code, capsys):
    assert outcome(lambda argv: returned, capsys) == (code, "")


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [(UserError("no such file"), 1, "error: no such file\n"), (KeyboardInterrupt(), 130, "stopped by Ctrl-C\n")],
)
def test_a_mistake_and_a_stop_by_hand_are_one_line_each_with_a_code_of_its_own(error, code, said, capsys):
    def main(argv):
        raise error

    assert outcome(main, capsys) == (code, said)


def test_an_output_that_nobody_reads_ends_the_command_without_a_word(tmp_path, monkeypatch, capsys):
    def main(argv):
        raise BrokenPipeError

    with open(tmp_path / "output", "w") as output:
        monkeypatch.setattr(sys, "stdout", output)
        assert outcome(main, capsys) == (141, "")
        output.write("what Python flushes at its end")
    assert (tmp_path / "output").read_text() == ""


def test_a_reader_who_has_gone_is_no_file_that_cannot_be_written():
    with pytest.raises(BrokenPipeError):
        cannot_write("--out", BrokenPipeError(errno.EPIPE, "Broken pipe"))
    assert "--out: cannot be written (No space" in str(cannot_write("--out", OSError(errno.ENOSPC, "No space left")))


def test_a_full_disk_is_named_and_other_faults_stay_faults(capsys):
    def fails(number):
        def main(argv):
            raise OSError(number, "as the system says it", "runs/x/rows.jsonl")

        return main

    with pytest.raises(SystemExit) as ended:
        run_command(fails(errno.ENOSPC))
    told = capsys.readouterr().err
    assert ended.value.code == 1 and "runs/x/rows.jsonl" in told and "Free some space" in told
    with pytest.raises(OSError, match="as the system says it"):
        run_command(fails(errno.EIO))


def test_a_key_that_only_the_method_reads_is_named_with_its_reader(capsys):
    def main(argv):
        return configs.load(BASE).encoder.layerz

    with pytest.raises(SystemExit) as ended:
        run_command(main)
    said = capsys.readouterr().err
    assert ended.value.code == 1 and "'layerz'" in said and f"{__file__}:" in said and "mean 'layers'" in said
    with pytest.raises(SystemExit):
        run_command(lambda argv: configs.changed(configs.load(BASE), {"encoder.layerz": 1}))
    assert "lacks the key 'layerz'" in capsys.readouterr().err
    with pytest.raises(AttributeError):
        run_command(lambda argv: "text".layerz)


def test_a_name_that_is_near_is_proposed_and_one_that_is_far_is_not():
    assert did_you_mean("fodler", ["folder", "jsonl"]) == " Did you mean 'folder'?"
    assert did_you_mean("tfds", ["folder", "jsonl"]) == did_you_mean("folder", []) == ""


def test_a_module_that_lacks_one_of_its_own_imports_is_not_called_missing(tmp_path, monkeypatch):
    (tmp_path / "half_made.py").write_text("import nothing_of_that_name")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="nothing_of_that_name"):
        imported("half_made", "config.method", "make")


def test_only_the_error_of_a_device_without_memory_is_called_so():
    with pytest.raises(jax.errors.JaxRuntimeError) as raised:
        jnp.zeros((1 << 46,)).block_until_ready()
    assert out_of_memory(raised.value).startswith("RESOURCE_EXHAUSTED: Out of memory allocating")
    assert not out_of_memory(jax.errors.JaxRuntimeError("INTERNAL: RET_CHECK"))
    assert not out_of_memory(MemoryError())


def test_a_count_is_a_whole_number_and_never_negative():
    assert count_argument("0") == 0
    for text in ("-1", "1.5", "many", ""):
        with pytest.raises(argparse.ArgumentTypeError, match="whole number of at least 0"):
            count_argument(text)


def test_a_length_in_seconds_is_above_0():
    assert positive("0.5") == 0.5
    for text in ("0", "-1", "nan"):
        with pytest.raises(argparse.ArgumentTypeError, match="must be above 0"):
            positive(text)


def test_a_step_is_a_number_or_the_best_or_the_newest():
    assert [step_argument(text) for text in ("120", "best", "newest")] == [120, "best", "newest"]
    with pytest.raises(ValueError, match="latest"):
        step_argument("latest")


def test_a_tilde_is_the_home_folder_and_nothing_else_changes(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert expand_home("~") == str(tmp_path) and expand_home("~/a,b/~") == f"{tmp_path}/a,b/~"
    assert path_argument("~/a") == path_argument(pathlib.Path("~/a")) == tmp_path / "a"
    for same in ("", "a", "a/~", "./~", "/a/~/b", "gs://bucket/~", "librispeech@test", "a~"):
        assert expand_home(same) == same


def test_a_home_folder_of_nobody_is_no_folder_of_that_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for text in ("~no-such-user/runs/x", "~no-such-user", "~$talk.wav"):
        with pytest.raises(UserError, match=re.escape(f"{text}: there is no user")):
            expand_home(text)
    (tmp_path / "~$talk.wav").touch()  # what a pattern of the shell gives
    assert expand_home("~$talk.wav") == "~$talk.wav"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59, "59 s"), (61, "1 min 01 s"), (3 * 3600 + 120, "3 h 02 min"), (2e5, "2 d 7 h")],
)
def test_durations_are_for_people(seconds, text):
    assert duration(seconds) == text


def test_the_first_of_many_names_are_shown():
    assert some_of([]) == "" and some_of(["a", "b"], 2) == "a, b" and some_of(list("abcdef")) == "a, b, c, d, e, ..."


def test_a_line_stays_one_line_whatever_a_name_holds():
    text = one_line("a\tb\nc\rd\u2028e\x85f\udcff g\u00a0\u200c\u00e4\\.wav")
    assert text == "a\\tb\\nc\\rd\\u2028e\\x85f\\udcff g\u00a0\u200c\u00e4\\.wav"
    assert text.splitlines() == [text] and "\t" not in text and text.encode()


def test_table_aligns_its_second_column():
    text = table({"batch": "1.56 h\n64 units", "effective batch": 3}, title="Run")
    assert text.split("\n") == ["Run", "---", f"  {'batch':<15}  1.56 h", " " * 19 + "64 units", "  effective batch  3"]
