"""Configs: overrides from the command line, mistakes and their suggestions, and that every key is read."""

from __future__ import annotations

import errno
import json
import pathlib
import re

import pytest

from w2v_jax import config as configs
from w2v_jax.config import UserError

REPOSITORY = pathlib.Path(__file__).parent.parent
BASE = str(REPOSITORY / "configs" / "w2v2_base.py")


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("train.steps", "7", 7),
        ("train.steps", "1e3", 1000),
        ("optim.peak", "1", 1.0),
        ("data.normalize", "true", True),
        ("data.name", "jsonl", "jsonl"),
        ("data.root", "/a", ("/a",)),
        ("data.root", "/a,/b", ("/a", "/b")),
        ("data.root", "('/a', '/b')", ("/a", "/b")),
        ("data.bucket_seconds", "(2.0, 4.0)", (2.0, 4.0)),
        ("data.bucket_seconds", "3.0", (3.0,)),
        ("encoder.conv_layers", "((8, 10, 5),)", ((8, 10, 5),)),
    ],
)
def test_override_reads_the_text_as_the_type_that_is_there(key, text, value):
    config = configs.load(BASE, [(key, text)])
    section, name = key.split(".")
    assert config[section][name] == value and type(config[section][name]) is type(value)


@pytest.mark.parametrize(
    ("key", "text", "message"),
    [
        ("train.step", "7", "Did you mean 'train.steps'"),
        ("steps", "7", "Did you mean 'train.steps'"),
        ("optim.batch_hours", "7", "Did you mean 'data.batch_hours'"),
        ("train", "7", "is a section"),
        ("train.steps.more", "7", "is a value, not a section"),
        ("train.steps", "7.5", "needs int"),
        ("train.steps", "true", "needs int"),
        ("optim.peak", "high", "needs float"),
        ("data.normalize", "maybe", "needs true or false"),
    ],
)
def test_wrong_overrides_are_answered_with_the_right_key(key, text, message):
    with pytest.raises(UserError, match=message):
        configs.load(BASE, [(key, text)])


@pytest.mark.parametrize(
    ("spec", "message"),
    [(BASE + ":huge", "are demo and tiny"), (BASE.replace("base", "bse"), "w2v2_base.py"), ("", "does not exist")],
)
def test_wrong_files_and_variants_are_named(spec, message):
    with pytest.raises(UserError, match=message):
        configs.load(spec)


def test_config_is_locked():
    with pytest.raises((AttributeError, KeyError)):
        configs.load(BASE).data.rooot = "x"


def test_json_round_trip_is_equal():
    config = configs.load(BASE)
    assert configs.difference(config, configs.from_json(configs.to_json(config))) == []
    assert json.loads(configs.to_json(config))["train"]["steps"] == 400_000


def test_config_of_an_older_version_means_what_it_meant():
    for name in ("w2v2_base.py", "finetune.py", "bert_codes_base.py"):
        config = configs.load(f"configs/{name}:tiny", [])
        older = json.loads(configs.to_json(config))
        older["encoder"].pop("pos_layers", None)
        assert configs.difference(config, configs.from_json(json.dumps(older))) == []


@pytest.mark.parametrize(("flag", "stack", "policy"), [(True, "scan", "full"), (False, "unroll", "none")])
def test_flags_of_an_older_version_become_the_words_that_mean_them(flag, stack, policy):
    older = configs.load(BASE).to_dict()
    for key in ("stack", "convolution", "remat_frontend", "remat_layers"):
        del older["encoder"][key]
    older["encoder"] |= dict(scan_layers=flag, remat_frontend=flag, remat_layers=flag)
    flags = [("encoder.stack", stack), ("encoder.remat_frontend", policy), ("encoder.remat_layers", policy)]
    wanted = configs.load(BASE, flags)
    assert configs.difference(wanted, configs.from_json(json.dumps(older))) == []


def test_portable_programs_depend_on_no_platform():
    """Nothing is "auto", and no key is new but in the section that has these formulations without keys."""
    for name in ("w2v2_base", "finetune", "cpc", "wav2vec_small", "bert_codes_base", "acoustic_logmel"):
        config = configs.load(f"configs/{name}.py")
        found = configs.portable(config)
        assert found.encoder.keys() == config.encoder.keys()
        assert "auto" not in configs.flatten(found).values()
    found = configs.portable(configs.load(BASE)).encoder
    assert (found.stack, found.convolution, found.remat_frontend, found.remat_layers) == ("scan", "xla", "full", "none")
    assert configs.portable(configs.load("configs/finetune.py")).acoustic.stack == "scan"


def test_difference_names_each_changed_key():
    assert configs.difference(configs.load(BASE), configs.load(BASE, [("seed", "2")])) == ["seed: 1 -> 2"]


def test_overrides_are_taken_out_of_the_arguments():
    rest, overrides = configs.split_overrides(["--workdir=w", "--config.a.b=1", "--config.c", "x=y", "--config=f"])
    assert rest == ["--workdir=w", "--config=f"] and overrides == [("a.b", "1"), ("c", "x=y")]


def test_unit_rows_round_to_whole_rows():
    assert configs.unit_rows(87.5, 250_000) == 5
    assert configs.unit_rows(87.5, 32_000) == 43
    assert configs.unit_rows(1.0, 32_000) == 1


@pytest.mark.parametrize("path", sorted((REPOSITORY / "configs").glob("*.py")), ids=lambda p: p.stem)
def test_every_key_of_a_config_is_read_somewhere(path):
    source = "\n".join(p.read_text() for p in (REPOSITORY / "w2v_jax").rglob("*.py"))
    unread = [
        key
        for key in configs.flatten(configs.load(str(path)))
        if not re.search(rf"""(\.|["']){key.split(".")[-1]}\b""", source)
    ]
    assert not unread, f"no code reads {unread}: such keys only mislead"


def test_a_full_disk_is_named_and_other_faults_stay_faults(capsys):
    def fails(number):
        def main(argv):
            raise OSError(number, "as the system says it", "runs/x/rows.jsonl")

        return main

    with pytest.raises(SystemExit) as ended:
        configs.run_command(fails(errno.ENOSPC))
    told = capsys.readouterr().err
    assert ended.value.code == 1 and "runs/x/rows.jsonl" in told and "Free some space" in told
    with pytest.raises(OSError, match="as the system says it"):
        configs.run_command(fails(errno.EIO))
