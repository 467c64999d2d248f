"""What the site shows of the package itself: every key of the configs, the help of every command, the contents.

`conf.py` puts these texts into the pages when it builds them. Nothing here needs Sphinx, so that the tests read it too.
"""

import collections
import contextlib
import importlib
import io
import os
import pathlib
import re
import sys
import tomllib

from w2v_jax import __main__ as package
from w2v_jax.core import config as configs

HERE = pathlib.Path(__file__).parent
CONFIGS = sorted(HERE.parent.glob("configs/*.py"))

CONTENTS = {
    "Begin": ["README", "docs/afternoon", "docs/how/choose"],
    "Do": [
        "docs/data",
        "docs/mixing",
        "docs/training",
        "docs/report",
        "docs/tracking",
        "docs/features",
        "docs/units",
        "docs/probes",
        "docs/recognition",
        "docs/ten_minutes",
        "docs/convert",
        "docs/deploy",
    ],
    "How to": [
        "docs/how/resume",
        "docs/how/many_hosts",
        "docs/how/continue",
        "docs/how/long_recordings",
        "docs/how/collapse",
        "docs/how/speech_lm",
        "docs/object_stores",
        "launch/README",
    ],
    "Methods": ["docs/methods/README"]
    + [f"docs/methods/{name}" for name in ("cpc", "wav2vec", "vq_wav2vec", "bert_codes")]
    + [f"docs/methods/{name}" for name in ("wav2vec2", "hubert", "wavlm", "ctc")],
    "Look up": ["docs/keys", "docs/commands", "docs/api", "docs/results", "docs/performance"],
    "The project": ["CONTRIBUTING", "CHANGELOG", "SECURITY"],
}
"""The pages of the site by part. The build fails where one is missing here."""

CODE = re.compile(r"^`(?P<path>w2v_jax/[\w/]+\.py):(?P<name>[\w.]+)`$", re.M)
"""A line that names code and stands alone: the site shows the code there."""


# Keys


def about_keys() -> dict[str, tuple[str, str, str]]:
    """{key: (meaning, unit, range)} as keys.toml has them."""
    parts = tomllib.loads((HERE / "keys.toml").read_text(encoding="utf-8"))
    entries = {f"{part}.{key}".removeprefix("top."): text for part, keys in parts.items() for key, text in keys.items()}
    about = {key: tuple(field.strip() for field in text.split("|")) for key, text in entries.items()}
    for key, fields in about.items():
        assert len(fields) == 3, f"keys.toml: {key} needs a meaning, a unit and a range, between |"
    return about  # pyright: ignore[reportReturnType]


def comments() -> dict[str, dict[str, str]]:
    """{key: {config: the comment that stands beside it}}."""
    found = collections.defaultdict(dict)
    for file in CONFIGS:
        section = ""
        for line in file.read_text(encoding="utf-8").partition("config.lock()")[0].splitlines():
            if match := re.match(r"    config\.(\w+) = dict\($", line):
                section = match[1]
            elif match := re.match(r"        (\w+)=.*,\s+# (.*)", line):
                found[f"{section}.{match[1]}"][file.stem] = match[2]
    return found


def values() -> dict[str, dict[str, object]]:
    """{key: {config: its value}} of the configs as they are, which is as the papers have them."""
    found = collections.defaultdict(dict)
    for file in CONFIGS:
        for key, value in configs.flatten(configs.load(str(file))).items():
            found[key][file.stem] = value
    return dict(found)


def range_of(key: str, value: object) -> str:
    """The range that `core/config.py` checks, or that of the value's type; "" where there is neither."""
    if key in configs.POSITIVE:
        return "above 0"
    if key in configs.NOT_NEGATIVE:
        return "at least 0"
    if key in configs.KEYS_OF_SHARES:
        return "0 to 1"
    if key.endswith(("dropout", "_drop", "optim.average")):
        return "at least 0, below 1"
    if key in configs.KEYS_OF_LAYERS:
        return "whole numbers above 0"
    if isinstance(value, bool):
        return "true, false"
    if key in configs.PATHS:
        return "a path that exists, or empty" if isinstance(value, str) else "any number of them"
    return ""


def key_rows() -> dict[str, tuple[str, str, str, dict[str, list[str]]]]:
    """{key: (meaning, unit, range, {a value as text: the configs that have it})} of every key, part by part.

    Configs are followed by their comment beside the key, in brackets, where configs have different ones.
    """
    known, beside = values(), comments()
    rows = {}
    for key, (meaning, unit, limits) in about_keys().items():
        notes = beside.get(key, {})
        usual = (collections.Counter(notes.values()).most_common(1) or [("", 0)])[0][0]
        told = {"", usual} if "#" in meaning or len(set(notes.values())) == 1 < len(notes) else {""}
        grouped = collections.defaultdict(lambda: collections.defaultdict(list))
        for config, value in known[key].items():
            note = notes.get(config, "")
            grouped[shown(value)]["" if note in told else f" ({note})"].append(config)
        by_value = {
            value: [", ".join(names) + note for note, names in by_note.items()] for value, by_note in grouped.items()
        }
        limits = limits or range_of(key, next(iter(known[key].values())))
        rows[key] = meaning.replace("#", usual), unit, limits, by_value
    return rows


def shown(value: object) -> str:
    """A value as one writes it behind --config.KEY=, at most 60 letters long."""
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    text = {"True": "true", "False": "false", "": "(empty)", "()": "(none)"}.get(text, text)
    return text if len(text) <= 60 else f"{text[:56]} ..."


def keys() -> str:
    """Every key as an entry of a list, under the heading of its part."""
    lines, part = [], None
    for key, (meaning, unit, limits, by_value) in key_rows().items():
        section = key.rpartition(".")[0]
        if section != part:
            part = section
            lines += ["", f"## {section or 'method and seed'}", ""]
        lines += [f"`{key}`{{#key-{key.replace('.', '-')}}}", f": {meaning[:1].upper()}{meaning[1:]}."]
        facts = [f"Unit: {unit}." if unit else "", f"Range: {limits}." if limits else ""]
        if len(by_value) == 1:
            ((value, names),) = by_value.items()
            count = names[0].count(",") + 1
            is_listed = len(names) > 1 or count <= 3 or "(" in names[0]
            where = "; ".join(names) if is_listed else "all configs" if count == len(CONFIGS) else f"{count} configs"
            facts.append(f"Value: `{value}` in {where}.")
            lines += [f"  {' '.join(filter(None, facts))}", ""]
            continue
        lines += [f"  {' '.join(filter(None, facts))} Values:", ""]
        ordered = sorted(by_value.items(), key=lambda item: -len(",".join(item[1])))
        lines += [f"  - `{value}`: {'; '.join(names)}" for value, names in ordered] + [""]
    return "\n".join(lines)


# Commands


def commands() -> str:
    """The help of every command, and of the parts of `units`."""
    lines = []
    for name, summary in package.commands().items():
        lines += [f"## {name}", "", f"{summary[:1].upper()}{summary[1:]}.", ""]
        for arguments in {"units": [[], ["fit"], ["label"], ["measure"]]}.get(name, [[]]):
            lines += ["```text", help_of(name, arguments), "```", ""]
    return "\n".join(lines)


def help_of(name: str, arguments: list[str]) -> str:
    """What `python -m w2v_jax.NAME ARGUMENTS --help` prints, in lines of 88 letters."""
    printed, width = io.StringIO(), os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = "88"
    try:
        with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
            importlib.import_module(f"w2v_jax.{name}").main([*arguments, "--help"])
    finally:
        os.environ.pop("COLUMNS") if width is None else os.environ.update(COLUMNS=width)
    return printed.getvalue().rstrip()


# From Python

API = {
    "A model": ("function w2v_jax.load", "class w2v_jax.inference.model.Model", "class w2v_jax.inference.model.Record"),
    "Recordings": ("function w2v_jax.data.open_source",),
    "A mistake": ("exception w2v_jax.core.cli.UserError",),
    "A method of your own": tuple(
        f"class w2v_jax.core.types.{name}" for name in ("Method", "Batch", "Encoded", "Mean")
    ),
}
"""What people use, by task: the kind of each object, as autodoc calls it, and its full name."""


def api() -> str:
    """The docstrings, by Sphinx's autodoc."""
    lines = []
    for task, objects in API.items():
        lines += [f"## {task}", "", "```{eval-rst}"]
        for kind, name in map(str.split, objects):
            members = ["   :members:", "   :special-members: __call__"] if name.endswith(("Model", "Method")) else []
            lines += [f".. auto{kind}:: {name}", *members, ""]
        lines += ["```", ""]
    return "\n".join(lines)


MADE = {"keys": keys, "commands": commands, "api": api}
"""What a page asks for by `<!-- made: NAME -->`."""

if __name__ == "__main__":
    print(MADE[sys.argv[1]]())
