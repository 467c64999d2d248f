"""Files and folders that appear whole or not at all, and locks."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time

import pytest
from commands import environment

from w2v_jax.core.cli import UserError
from w2v_jax.core.files import is_same_state, locked_file, state_of, whole_file, whole_folder, write_whole


def test_a_file_that_fails_leaves_the_old_one_and_nothing_beside_it(tmp_path):
    write_whole(tmp_path / "a", "old")
    with pytest.raises(KeyboardInterrupt), whole_file(tmp_path / "a") as partial:
        partial.write_text("half")
        raise KeyboardInterrupt
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("a", "old")]


def test_texts_are_written_as_they_are_and_lines_with_their_ends(tmp_path):
    write_whole(tmp_path / "text", "no end")
    write_whole(tmp_path / "lines", iter(["ä", "b"]))
    assert (tmp_path / "text").read_bytes() == b"no end" and (tmp_path / "lines").read_bytes() == "ä\nb\n".encode()


def test_a_folder_appears_at_the_end_and_never_over_another(tmp_path):
    with whole_folder(tmp_path / "new") as partial:
        (partial / "x").write_text("x")
        assert not (tmp_path / "new").exists()
    assert (tmp_path / "new" / "x").read_text() == "x"
    with (
        pytest.raises(UserError, match="exists already; choose another --out"),
        whole_folder(tmp_path / "new", "--out"),
    ):
        pytest.fail("entered")
    with pytest.raises(ZeroDivisionError), whole_folder(tmp_path / "other"):
        raise ZeroDivisionError
    for error in (OSError(errno.ENOSPC, "full"), OSError(errno.EIO, "worn out", str(tmp_path / "other.partial" / "x"))):
        with pytest.raises(UserError, match=r"--to .*other.*(full|worn out)"), whole_folder(tmp_path / "other"):
            raise error
    with pytest.raises(FileNotFoundError, match="elsewhere"), whole_folder(tmp_path / "other"):
        open(tmp_path / "elsewhere")
    assert [path.name for path in tmp_path.iterdir()] == ["new"]


def test_a_lock_is_held_by_one_process_and_ends_with_it(tmp_path):
    script = "import sys, time; from w2v_jax.core.files import locked_file\n"
    script += "with locked_file(sys.argv[1], None): print('held', flush=True); time.sleep(100)"
    command = [sys.executable, "-c", script, str(tmp_path / "lock")]
    holder = subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"

        def refuse():
            raise UserError("taken")

        with pytest.raises(UserError, match="taken"), locked_file(tmp_path / "lock", refuse):
            pytest.fail("entered")
        with locked_file(tmp_path / "lock", holder.kill):  # waits, and goes on once the holder is dead
            assert holder.wait(10) < 0
    finally:
        holder.kill()
        holder.wait()
        holder.stdout.close()


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_needs_none(tmp_path, monkeypatch, number):
    def without(file, operation):
        raise OSError(number, "no locks")

    monkeypatch.setattr("fcntl.flock", without)
    with locked_file(tmp_path / "lock", lambda: pytest.fail("taken")):
        pass
    assert not list(tmp_path.glob("*.*")), "no mark that a killed process would leave"


def test_a_folder_is_the_same_until_names_in_it_change_whatever_its_time_is_set_to(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        os.utime(tmp_path / name, (9, 9))
    before = state_of(tmp_path / "one")
    assert is_same_state(before, state_of(tmp_path / "one")) and is_same_state(before, state_of(tmp_path / "two"))
    time.sleep(0.02)  # the system's clock of files has ticked
    (tmp_path / "one" / "file").touch()
    assert not is_same_state(before, state_of(tmp_path / "one"))
    os.utime(tmp_path / "one", (9, 9))
    assert not is_same_state(before, state_of(tmp_path / "one"))
    assert is_same_state(None, state_of(tmp_path / "none")) and not is_same_state(before, None)
