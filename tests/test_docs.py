"""Laws of README.md and docs/: every block runs or says why not, every command would be accepted, every link leads."""

from __future__ import annotations

import argparse
import ast
import contextlib
import importlib
import json
import os
import pathlib
import re
import runpy
import shlex
import shutil
import sys
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import pytest
import soundfile
from commands import ROOT, script, varied

from w2v_jax.core import config as configs
from w2v_jax.data import transcripts

PAGES = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
    ROOT / "launch/README.md",
    ROOT / "CONTRIBUTING.md",
]
FENCE = re.compile(r"(?:^<!-- (?P<marker>[^\n]*) -->\n)?^```(?P<language>\w*)\n(?P<text>.*?)^```$", re.M | re.S)
READERS = {"test-command": ".ci/run", "demo-command": ".ci/run"}
"""Markers of their own, and the file that runs the block after them."""
COMMAND = re.compile(r"python (?P<file>-m w2v_jax\.\w+|launch/[\w/]+\.py)(?P<arguments>[^|;&`\n]*)")
STANDS_FOR = {
    r"configs/(CONFIG|NAME|\$config\.py)": "configs/w2v2_base.py",
    r"--config=\.\.\.": "--config=configs/w2v2_base.py",
    "--batch=B": "--batch=2",
    "--seconds=S": "--seconds=5",
    r"\[(.*)\]": r"\1",
    r" \.\.\.$": "",
    r"\$MADE": "--train a --test b --seconds 3 6 12 --pretrain-seconds 3 --minutes 2 --seeds 1",
}
"""What is written for a person to fill in, and something that it may be."""


class Block(NamedTuple):
    page: pathlib.Path
    line: int
    marker: str
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks() -> list[Block]:
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for match in FENCE.finditer(text):
            line = text.count("\n", 0, match.start("language")) + 1
            found.append(Block(page, line, match["marker"] or "", match["language"], match["text"]))
    return found


BLOCKS = blocks()
RUN = [block for block in BLOCKS if block.marker == "run"]


def test_every_block_is_run_or_says_why_not():
    assert len(RUN) >= 5 and {"python", "bash"} == {block.language for block in BLOCKS}
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        assert text.count("```") == 2 * sum(block.page == page for block in BLOCKS), f"{page}: a fence is not closed"
        assert not re.search(r"\n\n    (python|pip) ", text), f"{page}: a block without a fence"
    for block in BLOCKS:
        reader = READERS.get(block.marker) or block.marker.removeprefix("run by ")
        if block.marker == "run" or re.fullmatch("not run: .+", block.marker):
            continue
        assert (ROOT / reader).is_file(), f"{block}: no marker says whether this is run, or why not: {block.marker!r}"
        text = (ROOT / reader).read_text(encoding="utf-8")
        known = block.marker if block.marker in READERS else block.page.name
        assert known in text, f"{block}: {reader} does not run it"


def test_the_readme_is_short_and_has_the_blocks_that_ci_runs():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").split()) <= 900
    markers = [block.marker for block in BLOCKS if block.page == ROOT / "README.md"]
    assert [marker for marker in markers if marker in READERS] == ["demo-command", "test-command"]


def test_python_blocks_are_python():
    for block in BLOCKS:
        if block.language == "python":
            ast.parse(block.text, filename=str(block))


# Every command of every page is one that the package accepts


class Accepted(BaseException):
    """Raised in place of what a command would do with its arguments."""


@contextlib.contextmanager
def only_parsing() -> Iterator[None]:
    """Commands parse their arguments, refuse what they do not know, and do nothing else."""
    real_all, real_known = argparse.ArgumentParser.parse_args, argparse.ArgumentParser.parse_known_args

    def parse(real: Any) -> Any:
        def parse_and_leave(self: argparse.ArgumentParser, *arguments: Any) -> None:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(argparse.ArgumentParser, "parse_args", real_all)
                patch.setattr(argparse.ArgumentParser, "parse_known_args", real_known)
                real(self, *arguments)
            raise Accepted

        return parse_and_leave

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_args", parse(real_all))
        patch.setattr(argparse.ArgumentParser, "parse_known_args", parse(real_known))
        yield


def accept(file: str, arguments: Sequence[str]) -> None:
    """Raises where the command (`-m w2v_jax.NAME`, or a script of launch/studies/) would refuse options or config."""
    if file.startswith("-m "):
        module = importlib.import_module(file.removeprefix("-m "))
    else:
        module = script(pathlib.Path(file).stem)
    if not arguments:  # named in a sentence
        return
    with only_parsing(), pytest.raises(Accepted):
        module.main(list(arguments))
    rest, overrides = configs.split_overrides(arguments)
    named = [argument.removeprefix("--config=") for argument in rest if argument.startswith("--config=")]
    for spec in named or (["configs/w2v2_base.py"] if overrides else []):
        configs.load(str(ROOT / spec), overrides)


def written(text: str) -> list[tuple[str, str]]:
    """(command, its arguments) for each command in a text, with something for what a person fills in."""
    found = []
    for match in COMMAND.finditer(re.sub(r"\\\n\s*", "", text)):
        arguments = match["arguments"].strip()
        for pattern, meant in STANDS_FOR.items():
            arguments = re.sub(pattern, meant, arguments)
        found.append((match["file"], arguments))
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_command_is_accepted(page):
    for file, arguments in written(page.read_text(encoding="utf-8")):
        try:
            accept(file, shlex.split(arguments, comments=True))
        except (SystemExit, Exception) as error:
            raise AssertionError(f"{page.name}: python {file} {arguments}: {error!r}") from error


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_key_that_a_sentence_names_is_in_a_config(page):
    known = {key for path in (ROOT / "configs").glob("*.py") for key in configs.flatten(configs.load(str(path)))}
    known |= {key.rpartition(".")[0] for key in known}
    sections = "|".join(sorted({key.partition(".")[0] for key in known if "." in key}))
    text = page.read_text(encoding="utf-8")
    named = re.findall(r"--config\.([a-z_.0-9]+)", text) + re.findall(rf"`((?:{sections})\.[a-z_.0-9]+)[=`]", text)
    named += re.findall(r"`config\.(?!json)([a-z_.0-9]+)[=`]", text)
    missing = {key for key in named if not key.endswith((".py", ".md", ".json", ".log"))} - known
    assert not missing, f"{page.name} names {missing}"


def test_what_follows_the_two_dashes_of_a_launcher_is_accepted_by_training():
    found = re.findall(r"^launch/\w+\.sh .* -- (.*)$", (ROOT / "launch/README.md").read_text(), flags=re.M)
    assert len(found) == 4
    for arguments in found:
        accept("-m w2v_jax.train", shlex.split(arguments))


def test_a_command_that_has_rotted_is_found():
    for rotten in (
        "python -m w2v_jax.no_such_command --run x",
        "python -m w2v_jax.extract --run x --what context --root y --out z --no-such-option",
        "python -m w2v_jax.extract --run x --what everything --root y --out z",
        "python -m w2v_jax.train --config=configs/no_such_config.py --workdir=x",
        "python -m w2v_jax.train --config=configs/w2v2_base.py:no-such-variant --workdir=x",
        "python -m w2v_jax.train --config=configs/w2v2_base.py --workdir=x --config.optim.no_such_key=1",
        "python launch/studies/soak.py --no-such-option",
    ):
        ((file, arguments),) = written(rotten)
        with pytest.raises((SystemExit, Exception)):
            accept(file, shlex.split(arguments))


# Links and paths


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_and_paths_lead_to_files(page):
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    for link in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text):
        if "://" not in link:
            assert (page.parent / link).exists(), f"{page.name} links to {link}"
    tops = [path.name for path in [*ROOT.iterdir(), *(ROOT / "w2v_jax").iterdir()] if path.is_dir()]
    for path in re.findall(rf"`((?:{'|'.join(map(re.escape, tops))})/[a-z0-9_./]*)(?::\w+)?`", text):
        assert any((base / path).exists() for base in (ROOT, ROOT / "w2v_jax")), f"{page.name} names {path}"


def test_the_index_names_every_page():
    """docs/README.md, and for the pages of the methods the one in their folder."""
    first, methods = (ROOT / "docs" / folder / "README.md" for folder in ("", "methods"))
    for page in set(PAGES) - {ROOT / "README.md", first}:
        index = methods if page.parent == methods.parent and page != methods else first
        link = f"({os.path.relpath(page, index.parent)})"
        assert link in index.read_text(encoding="utf-8"), f"{index} lacks {link}"


# Blocks that are run


@pytest.fixture(scope="module")
def place(tmp_path_factory, tiny_corpus, random_run):
    """A folder that has what the blocks name: recordings, transcripts, and runs of random parameters."""
    folder = tmp_path_factory.mktemp("place")
    (folder / "runs").mkdir()
    (folder / "runs" / "demo").symlink_to(random_run())
    recogniser = shutil.copytree(random_run("finetune.py:tiny"), folder / "runs" / "10h")
    alphabet = json.loads((recogniser / transcripts.ALPHABET_FILE).read_text())
    alphabet["tokens"] = [*alphabet["tokens"][:2], *"AEIOULNR"]  # of the corpus, and as many as the run has
    (recogniser / transcripts.ALPHABET_FILE).write_text(json.dumps(alphabet))
    for name in ("recordings", "LABELLED"):
        (folder / name).symlink_to(tiny_corpus / "train")
    (folder / "DEV").symlink_to(tiny_corpus / "dev")
    for name in ("configs", "docs"):
        (folder / name).symlink_to(ROOT / name)
    (folder / "interviews").mkdir()
    for name in ("talk.wav", "interviews/one.wav"):
        soundfile.write(folder / name, tone(), 16000)
    return folder


def tone() -> np.ndarray:
    return 0.3 * np.sin(np.arange(16000) / 10)


@pytest.mark.parametrize("block", varied(RUN, *(block for block in RUN if block.page.name == "README.md")), ids=str)
def test_the_block_runs(block, place, monkeypatch):
    monkeypatch.chdir(place)
    if block.language == "python":
        exec(compile(block.text, str(block), "exec"), {"wave": tone(), "rate": 16000})
        return
    for line in re.sub(r"\\\n\s*", "", block.text).splitlines():
        python, *words = shlex.split(line, comments=True)
        assert python == "python", line
        if words[0] == "-m":
            assert not importlib.import_module(words[1]).main(words[2:]), line
        else:
            monkeypatch.setattr(sys, "argv", words)
            runpy.run_path(words[0], run_name="__main__")
