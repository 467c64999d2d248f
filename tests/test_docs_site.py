"""Laws of what the documentation's site adds to the pages: the table of keys, the code they show, the contents."""

from __future__ import annotations

import ast
import importlib.util
import pathlib
import re

import pytest
from commands import ROOT

DOCS = ROOT / "docs"


def load_reference():
    spec = importlib.util.spec_from_file_location("reference_of_docs", DOCS / "reference.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


reference = load_reference()


# Keys


def test_every_key_of_every_config_is_explained_and_no_other():
    explained, known = reference.about_keys().keys(), reference.values().keys()
    assert not known - explained, f"docs/keys.toml lacks {sorted(known - explained)}"
    assert not explained - known, f"no config has {sorted(explained - known)}, which docs/keys.toml explains"


def test_every_key_has_a_meaning_a_range_and_each_number_a_unit():
    known = reference.values()
    for key, (meaning, unit, limits, by_value) in reference.key_rows().items():
        value = next(iter(known[key].values()))
        assert meaning and "#" not in meaning and limits, f"docs/keys.toml: {key} lacks its meaning or range"
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        assert unit or not is_number, f"docs/keys.toml: {key} is a number without a unit"
        text = " ".join(part for parts in by_value.values() for part in parts)
        assert all(re.search(rf"\b{config}\b", text) for config in known[key]), key


def test_the_values_shown_are_those_of_the_configs():
    shown = reference.key_rows()["data.batch_hours"][3]
    assert shown["1.556"] == ["w2v2_base (audio per update: 64 GPUs x 1.4 M samples)"]
    assert "`masking.prob`" in reference.keys() and "  - `0.65`: w2v2_base, w2v2_large, xlsr" in reference.keys()


# Code that pages show


def names_of(path: pathlib.Path) -> set[str]:
    """Functions and classes of a file, those of classes as CLASS.NAME."""
    names = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.add(node.name)
        if isinstance(node, ast.ClassDef):
            names |= {f"{node.name}.{inner.name}" for inner in node.body if isinstance(inner, ast.FunctionDef)}
    return names


def missing(text: str) -> list[str]:
    """The lines that name code which is not there."""
    named = [(match["path"], match["name"], match[0]) for match in reference.CODE.finditer(text)]
    return [line for path, name, line in named if not (ROOT / path).is_file() or name not in names_of(ROOT / path)]


@pytest.mark.parametrize("page", sorted(DOCS.glob("methods/*.md")), ids=lambda page: page.name)
def test_the_code_that_a_page_shows_is_there(page):
    text = page.read_text(encoding="utf-8")
    assert not missing(text), f"{page.name} shows code that is gone: {missing(text)}"
    if page.name != "README.md":
        assert "$$" in text and len(reference.CODE.findall(text)) >= 2, f"{page.name}: equations, and their code"


def test_code_that_is_gone_is_found():
    gone = "`w2v_jax/ops/losses.py:no_such_loss`\n\n`w2v_jax/ops/no_such_file.py:ctc`\n\n`w2v_jax/ops/losses.py:ctc`\n"
    assert len(missing(gone)) == 2


def test_every_method_has_a_page():
    pages = {page.stem for page in DOCS.glob("methods/*.md")} - {"README"}
    assert pages == {file.stem for file in (ROOT / "w2v_jax/methods").glob("*.py")} - {"__init__"}


# Contents, commands, what is not on the page


def test_the_contents_name_each_page_once():
    named = [page for pages in reference.CONTENTS.values() for page in pages]
    assert sorted(named) == sorted(set(named))
    pages = [*DOCS.rglob("*.md"), *ROOT.glob("*.md"), ROOT / "launch/README.md"]
    first = "docs/README"
    assert set(named) == {str(page.relative_to(ROOT).with_suffix("")) for page in pages} - {first}


def test_the_help_of_each_command_is_shown():
    text = reference.commands()
    for name in reference.package.commands():
        assert f"usage: python -m w2v_jax.{name}" in text, name
    assert "usage: python -m w2v_jax.units measure" in text


def test_the_site_asks_no_other_host():
    """Styles, scripts and fonts come with the site."""
    sources = [*DOCS.glob("style/*"), DOCS / "conf.py"]
    for file in sources:
        assert not re.search(r"https?://", file.read_text(encoding="utf-8")), file
