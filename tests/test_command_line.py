"""The program `w2v-jax`: which commands it lists, and that it hands on to them."""

from __future__ import annotations

import pytest

import w2v_jax
from w2v_jax.__main__ import commands, main
from w2v_jax.core.cli import UserError


def test_every_command_is_listed_with_what_it_does(capsys):
    assert main(["--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("usage: w2v-jax")
    assert {"train", "extract", "prepare", "plan"} <= commands().keys()
    for name, text in commands().items():
        assert len(text) > 20, f"the docstring of {name}.py does not say what it does"
        assert any(line.split()[:1] == [name] and line.endswith(text) for line in lines)


def test_without_a_command_the_list_is_a_usage_error(capsys):
    assert main([]) == 2
    assert "train" in capsys.readouterr().out


def test_a_mistyped_command_gets_the_nearest_one():
    with pytest.raises(UserError, match="no command 'trian'. Did you mean 'train'"):
        main(["trian"])


def test_what_follows_a_command_is_the_commands(capsys):
    with pytest.raises(SystemExit) as left:
        main(["plan", "--help"])
    assert left.value.code == 0
    assert "python -m w2v_jax.plan" in capsys.readouterr().out


def test_the_version_is_that_of_the_package(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == w2v_jax.__version__
