"""Several corpora in one run, each of its own kind and place: a TOML file says which, and how much of each is heard.

    [librispeech]
    name = "folder"
    root = "LibriSpeech/train"

    [mls]
    name = "jsonl"
    languages = { de = "mls/de.jsonl", pl = ["mls/pl-1.jsonl", "mls/pl-2.jsonl"] }

`name` and `root` mean what data.name and data.root do. A corpus has one root, or one for each language; a folder in
place of the table has one folder for each, called LANGUAGE or language=LANGUAGE. A corpus may have its own `split`,
`hours`, `min_seconds`, `language` and `targets`, which stand for those of the config; a `weight`, which all corpora
then need; and `language_weights`. A file rather than keys: the values of a config are numbers and texts, one
`--config.data.corpora=FILE` chooses it, and several configs may share it.

Each corpus and language is a group. Its rows are called GROUP/ID, e.g. "mls/de/2422_0001". `mixture.py` and
`batch_plan.py` know the shares, turns and epochs of groups.
"""

from __future__ import annotations

import math
import os
import re
import tomllib
import types
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from w2v_jax.core.cli import UserError, did_you_mean, expand_home, os_error_text
from w2v_jax.core.display import short_repr
from w2v_jax.core.files import open_binary
from w2v_jax.core.stores import path_of
from w2v_jax.data import source_module
from w2v_jax.data.index import Index, Source, TooFew, join_indexes, root_entries
from w2v_jax.data.mixture import temperature_shares

_OPTIONS = {"split": "a text", "language": "a text", "hours": "a number", "min_seconds": "a number"}
_KEYS = {
    **{"name": "a text", "root": "a path or a list of them", "targets": "a path or a list of them"},
    **{"languages": "a table of roots by language, or a folder of one for each"},
    **{"language_weights": "a table of numbers by language"},
    **{"weight": "a number", **_OPTIONS},
}
"""What the value of each key of a corpus is."""
_NAMED = 3


class Group(NamedTuple):
    """A corpus, or a language of one. `section` is the data section of a config with the corpus's own values in it."""

    corpus: str
    language: str
    section: types.SimpleNamespace
    weight: float | None
    language_weight: float | None

    __repr__ = short_repr

    @property
    def label(self) -> str:
        return f"{self.corpus}/{self.language}" if self.language else self.corpus


class Mixture(NamedTuple):
    """The groups that a run hears: rows [G] of each, and its share [G] of the audio."""

    groups: tuple[Group, ...]
    rows: np.ndarray
    shares: np.ndarray

    __repr__ = short_repr

    def by_label(self) -> dict[str, float]:
        """{label of a group: its share}."""
        return {group.label: round(float(share), 6) for group, share in zip(self.groups, self.shares, strict=True)}

    def heard(
        self, seconds: np.ndarray, epochs: np.ndarray, *, shares: np.ndarray, languages: bool
    ) -> dict[str, dict[str, float]]:
        """{corpus: its rows, share, hours and epochs} of seconds and epochs [G] of each group (`TrainPlan.heard`).

        shares [G]: those that the plan gives (`TrainPlan.shares`), near those of this mixture.
        languages: those of each language apart, as CORPUS/LANGUAGE.
        """
        names = np.array([group.label if languages else group.corpus for group in self.groups])
        found = {}
        for name in dict.fromkeys(names.tolist()):
            members = names == name
            rows, share, hours = (x[members].sum() for x in (self.rows, shares, seconds / 3600))
            passed = (epochs * self.rows)[members].sum() / rows
            found[name] = dict(rows=int(rows), share=float(share), hours=float(hours), epochs=float(passed))
        return found

    def missed(self, shares: np.ndarray) -> str:
        """Names the groups whose share [G] of the audio is off by a twentieth of what was asked for; empty for none."""
        wrong = np.flatnonzero(np.abs(shares / self.shares - 1) >= 0.05)
        named = [
            f"{self.groups[number].label} {100 * shares[number]:.3g} %, not {100 * self.shares[number]:.3g} %"
            for number in wrong[:_NAMED]
        ]
        return ", ".join([*named, *([f"and {len(wrong) - _NAMED:,} more"] if len(wrong) > _NAMED else [])])


def read_corpora(path: str | os.PathLike, data: Mapping[str, Any]) -> list[Group]:
    """The groups of a TOML file of corpora; `data` is the data section of a config.

    Raises UserError that names the file and the corpus.
    """
    where = f"data.corpora: {os.fspath(path)}"
    try:
        with open_binary(path) as file:
            tables = tomllib.load(file)
    except OSError as error:
        raise UserError(f"{where} cannot be read: {os_error_text(error)}") from None
    except ValueError as error:
        raise UserError(f"{where} is no TOML: {error}") from None
    for name, table in tables.items():
        if not isinstance(table, dict):
            raise UserError(f"{where}: {name!r} stands outside of a table; put it below the [NAME] of its corpus")
        if isinstance(folder := table.get("languages"), str):
            table["languages"] = _languages(folder, f"{where}: [{name}]")
        _check_table(table, f"{where}: [{name}]")
        if not name or "/" in name or any(sign.isspace() for sign in name):
            raise UserError(f"{where}: [{name}]: the name of a corpus is not empty and has no '/' and no space")
    if not tables:
        raise UserError(f"{where} names no corpus: it needs a table with name and root for each, such as [librispeech]")
    unweighted = [name for name, table in tables.items() if "weight" not in table]
    if 0 < len(unweighted) < len(tables):
        raise UserError(f"{where}: [{unweighted[0]}] has no weight, and others have: give one to all corpora, or none")
    return [group for name, table in tables.items() for group in _groups(name, table, data)]


def _check_table(table: Mapping[str, Any], where: str) -> None:
    """Raises UserError for keys and values that a corpus cannot have."""
    for key, value in table.items():
        if key not in _KEYS:
            raise UserError(f"{where}: {key!r} is not a key. There are: {', '.join(_KEYS)}.{did_you_mean(key, _KEYS)}")
        if not _fits(value, _KEYS[key]):
            raise UserError(f"{where}: {key}={value!r} must be {_KEYS[key]}")
    if "name" not in table or ("root" in table) == ("languages" in table):
        raise UserError(f"{where}: needs a name, and either root or languages")
    languages, weights = table.get("languages", {}), table.get("language_weights", {})
    if weights and weights.keys() != languages.keys():
        raise UserError(f"{where}: language_weights has {', '.join(weights)}, and languages has {', '.join(languages)}")
    if wrong := [language for language in languages if not language or "/" in language]:
        raise UserError(f"{where}: the name of a language is not empty and has no '/': {wrong[0]!r}")
    for weight in [*weights.values(), table.get("weight", 1)]:
        if not 0 < weight < math.inf:
            raise UserError(f"{where}: a weight is a number above 0, and not {weight!r}")


def _languages(folder: str, where: str) -> dict[str, str]:
    """{language: folder} of the folders in a folder. Raises UserError where there is none, or two are of one
    language."""
    place = path_of(expand_home(folder))
    found = sorted(path for path in place.glob("*") if path.is_dir() and not path.name.startswith("."))
    if not found:
        raise UserError(f"{where}: languages={folder!r} is no folder with one folder for each language")
    languages: dict[str, str] = {}
    for path in found:
        language = path.name.removeprefix("language=")
        if language in languages:
            other = os.path.basename(languages[language])
            raise UserError(
                f"{where}: languages={folder!r}: {other!r} and {path.name!r} are both {language!r}; keep one of them, "
                "or list both as the roots of one language"
            )
        languages[language] = str(path)
    return languages


def _fits(value: Any, kind: str) -> bool:
    if kind == "a text":
        return isinstance(value, str)
    if kind == "a number":
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if kind == "a path or a list of them":
        return all(isinstance(path, str) for path in (value if isinstance(value, list) else [value]))
    element = "a number" if kind == "a table of numbers by language" else "a path or a list of them"
    return isinstance(value, dict) and bool(value) and all(_fits(each, element) for each in value.values())


def _groups(name: str, table: Mapping[str, Any], data: Mapping[str, Any]) -> list[Group]:
    own = {key: table[key] for key in ("name", *_OPTIONS) if key in table}
    if "targets" in table:
        own["targets"] = tuple(root_entries(table["targets"]))
    groups = []
    for language, root in table.get("languages", {table.get("language", ""): table.get("root")}).items():
        values = {**data, **own, "root": tuple(root_entries(root)), "eval_root": ()}
        values |= {"language": language} if language else {}
        groups.append(
            Group(
                name,
                language,
                section=types.SimpleNamespace(**values),
                weight=table.get("weight"),
                language_weight=table.get("language_weights", {}).get(language),
            )
        )
    return groups


def open_group(group: Group, path: str | os.PathLike) -> Source:
    """Lists the recordings of a group of the file `path`. Raises UserError that names the file and the corpus."""
    try:
        return source_module(group.section.name).make(group.section, group.section.root)
    except UserError as error:  # sources name the keys of a config, in place of which a corpus has its own
        text = re.sub(rf"(--config\.)?data\.({'|'.join(_KEYS)})\b", r"\2", str(error))
        error.args = (f"data.corpora: {os.fspath(path)}: [{group.corpus}] {text}",)
        raise


def join_sources(sources: Sequence[Source], groups: Sequence[Group]) -> Source:
    """One source of the rows of all groups, group after group; `index.groups` has the number of each row's.

    Raises UserError where the sources have different forms.
    """
    for source, group in zip(sources, groups, strict=True):
        if source.form != sources[0].form:
            raise UserError(
                f"data.corpora: [{group.corpus}] and [{groups[0].corpus}] were not made alike ({source.form}, "
                f"{sources[0].form}): mix audio with audio, or codes of one model and vocabulary"
            )
    index = join_indexes([source.index for source in sources], [group.label for group in groups])
    return _Joined(sources, index)


class _Joined:
    __repr__ = short_repr

    def __init__(self, sources: Sequence[Source], index: Index):
        self.sources, self.index, self.form = tuple(sources), index, sources[0].form
        self._first_rows = np.cumsum([0, *(len(source.index) for source in sources)])

    def read(self, row: int, start: int, length: int) -> np.ndarray:
        group = int(self.index.groups[row])
        return self.sources[group].read(row - int(self._first_rows[group]), start, length)


def mix_of(index: Index, groups: Sequence[Group], *, exponents: tuple[float, float], longest: float) -> Mixture:
    """The groups of an index that `join_sources` made, perhaps of fewer rows since, with their shares.

    The hours of a group are those that an epoch of it hears: no more than `longest` seconds of a recording. exponents:
    of corpora and languages (`temperature_shares`). Raises TooFew where a group has no recording.
    """
    rows = np.bincount(index.groups, minlength=len(groups))
    if not rows.all():
        label = groups[int(np.argmin(rows))].label
        raise TooFew(f"data.corpora: no recording of {label} is left to train on; leave it out", index.skipped)
    weights = [group.weight for group in groups]
    shares = temperature_shares(
        np.bincount(index.groups, np.minimum(index.durations, longest), minlength=len(groups)),
        [group.corpus for group in groups],
        exponents=exponents,
        corpus_weights=[weight for weight in weights if weight is not None] or None,
        language_weights=[group.language_weight for group in groups],
    )
    return Mixture(tuple(groups), rows, shares)
