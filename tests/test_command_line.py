"""The program `w2v-jax`: which commands it lists, and that it hands on to them."""

from __future__ import annotations

import argparse
import importlib

import pytest

import w2v_jax
from w2v_jax.__main__ import commands, main
from w2v_jax.core.cli import UserError, expand_home, path_argument
from w2v_jax.core.stores import place_argument


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


ON_THIS_MACHINE = {("bench", "--profile"), ("doctor", "--folder"), ("recipe", "--out")}
"""Flags with a path that cannot be a URL; docs/object_stores.md names them."""
PLACES = ("DIR", "FOLDER", "FILE", "PATH", "RUN")


def flags(monkeypatch):
    """(command, flag, its action) of all commands and of what follows them."""
    parsers = []
    with monkeypatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_args", lambda parser, *_: parsers.append(parser) or 1 / 0)
        for name in commands():
            with pytest.raises(ZeroDivisionError):
                importlib.import_module(f"w2v_jax.{name}").main([])
    for name, parser in zip(commands(), parsers, strict=True):
        below = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
        for each in (parser, *(sub for action in below for sub in action.choices.values())):
            yield from ((name, (action.option_strings or [action.dest])[-1], action) for action in each._actions)


def test_each_flag_with_a_path_takes_urls_or_refuses_them(monkeypatch):
    """A path that is made a `pathlib.Path` would be another one: gs:/lab/run. --config has a reader of its own."""
    found = {"urls": set(), "no urls": set()}
    for command, flag, action in flags(monkeypatch):
        is_path = str(action.metavar).partition(".")[0].rpartition("|")[-1] in PLACES
        if is_path and not str(action.metavar).startswith("FILE["):
            assert action.type in (expand_home, place_argument, path_argument), f"{command} {flag}"
            found["no urls" if action.type is path_argument else "urls"].add((command, flag))
    assert found["no urls"] == ON_THIS_MACHINE and len(found["urls"]) > 40
    for name, *more in (("bench",), ("train", "--workdir=a")):
        with pytest.raises(UserError, match="gs://lab/my.py:tiny: a path on this machine is needed here, not a URL"):
            importlib.import_module(f"w2v_jax.{name}").main(["--config=gs://lab/my.py:tiny", *more])
