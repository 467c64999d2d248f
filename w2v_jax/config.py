"""Configs, errors for people, and the numbers that every layer shares. Imports neither jax nor TensorFlow.

A config is a Python file with `get_config(arg)` that returns an `ml_collections.ConfigDict`: data, no code.
`load` reads it, applies `--config.section.key=value` overrides with type checks, and locks it.
"""

from __future__ import annotations

import argparse
import ast
import difflib
import errno
import importlib.util
import json
import os
import pathlib
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

SAMPLE_RATE = 16_000
"""Every wave inside the package has this rate, in Hz."""

CODE_PAD, CODE_MASK, CODE_UNKNOWN, FIRST_CODE = 0, 1, 2, 3
"""Ids of a vocabulary of codes: no frame, a hidden frame, a type that the vocabulary lacks, and the first real type."""


REMAT = ("none", "products", "full")
"""Policies of rematerialisation (`frontend.rematerialised`), from most memory to least."""


class UserError(Exception):
    """A mistake of the person at the keyboard: shown as one message without a stack trace, exit code 1."""


def unit_rows(unit_seconds: float, num_samples: int) -> int:
    """Rows of `num_samples` samples in one unit, the smallest piece of a batch.

    The rows of a unit share their statistics (code perplexity, cross-utterance negatives), as the batch of
    one GPU does in the papers. Devices and micro-batches hold whole units, so that neither their number nor
    gradient accumulation changes the loss. At least one row.
    """
    return max(1, int(unit_seconds * SAMPLE_RATE + 0.5) // num_samples)


def batch_units(data: Any) -> int:
    """Units in the batch of one update, by the config's section `data`."""
    return round(data.batch_hours * 3600 / data.unit_seconds)


def num_units(unit_seconds: float, rows: int, num_samples: int) -> int:
    """Units in a batch of `rows` rows of `num_samples` samples. Raises ValueError when a unit would be cut."""
    per_unit = unit_rows(unit_seconds, num_samples)
    if rows % per_unit:
        raise ValueError(f"a batch of {rows} rows cannot be cut into units of {per_unit} (data.unit_seconds)")
    return rows // per_unit


def load(spec: str, overrides: Sequence[tuple[str, str]] = ()):
    """The locked config of `FILE[:variant]` with `(dotted key, text)` overrides applied.

    Raises UserError when the file, the variant or a key does not exist, or a value has the wrong type.
    """
    path, _, variant = spec.partition(":")
    file = pathlib.Path(path)
    if not file.is_file():
        near = sorted(str(p) for p in file.parent.glob("*.py")) if file.parent.is_dir() else []
        raise UserError(f"config file {path!r} does not exist{_suggest(path, near)}")
    found = importlib.util.spec_from_file_location(f"w2v_jax_config_{file.stem}", file)
    assert found is not None and found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    if not hasattr(module, "get_config"):
        raise UserError(f"config file {path!r} has no get_config(variant)")
    try:
        config = module.get_config(variant)
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None
    for key, text in overrides:
        override(config, key, text)
    return config.lock()


def override(config, key: str, text: str) -> None:
    """Sets `config.section.key` from its text; the type of the present value decides how the text is read."""
    *sections, name = key.split(".")
    node: Any = config
    parent: Any = config
    trail = ""
    for part in [*sections, name]:
        if not isinstance(node, Mapping) and not hasattr(node, "keys"):
            raise UserError(f"--config.{key}: {trail!r} is a value, not a section")
        if part not in node:
            raise UserError(f"--config.{key}: {part!r} is not a key here{_suggest(key, flatten(config))}")
        trail = f"{trail}.{part}".lstrip(".")
        parent, node = node, node[part]
    if hasattr(node, "keys"):
        raise UserError(f"--config.{key} is a section; set one of its keys: {', '.join(sorted(node.keys()))}")
    parent[name] = _read_value(key, text, node)


def _read_value(key: str, text: str, present: Any) -> Any:
    kind = type(present)
    if kind is str:
        return text
    if kind is bool:
        if text.lower() in ("true", "1", "yes"):
            return True
        if text.lower() in ("false", "0", "no"):
            return False
        raise UserError(f"--config.{key}={text}: needs true or false")
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        value = tuple(text.split(",")) if kind is tuple else text
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if kind is int and isinstance(value, float) and value.is_integer():
        value = int(value)
    if kind is tuple and not isinstance(value, tuple):
        value = tuple(value) if isinstance(value, list) else (value,)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise UserError(f"--config.{key}={text}: needs {kind.__name__}, as in the present value {present!r}")
    return value


POSITIVE = (
    "data.batch_hours",
    "data.unit_seconds",
    "data.device_seconds",
    "encoder.layers",
    "encoder.heads",
    "encoder.width",
    "quantizer.groups",
    "quantizer.codes",
    "quantizer.dim",
    "masking.length",
    "loss.proj",
    "loss.negatives",
    "loss.temperature",
    "optim.peak",
    "sharding.tensor",
    "train.steps",
    "train.log_every",
    "train.eval_every",
    "train.checkpoint_every",
)
SHARES = ("data.eval_share", "masking.prob")
"""Keys that must be above 0, and keys from 0 to 1. Whatever ends in dropout or _drop must be below 1."""


def check_values(config: Any) -> None:
    """Raises UserError for numbers that no run can have; keys that a method does not have are left out."""
    flat = flatten(config)
    for key in POSITIVE:
        if key in flat and not flat[key] > 0:
            raise UserError(f"{key}={flat[key]!r}: must be above 0")
    for key, value in flat.items():
        if key in SHARES and not 0 <= value <= 1:
            raise UserError(f"{key}={value!r}: must be between 0 and 1")
        if key.endswith(("dropout", "_drop")) and not 0 <= value < 1:
            raise UserError(f"{key}={value!r}: must be at least 0 and below 1")
    if flat["data.batch_hours"] * 3600 < 0.5 * flat["data.unit_seconds"]:
        raise UserError("data.batch_hours is less than half of data.unit_seconds: a batch holds at least one unit")
    for key in ("sharding.data", "sharding.fsdp", "sharding.slices"):
        if flat[key] < 0:
            raise UserError(f"{key}={flat[key]!r}: must be at least 0")
    if flat.get("encoder.heads", 0) % flat["sharding.tensor"]:
        tensor, heads = flat["sharding.tensor"], flat["encoder.heads"]
        raise UserError(f"sharding.tensor={tensor} does not divide encoder.heads={heads}")
    if len(flat.get("quantizer.temperature", (0, 0, 0))) != 3:
        raise UserError("quantizer.temperature needs three numbers: (start, end, decay per update)")


def portable(config: Any, positional: str = "grouped") -> Any:
    """The config with those formulations that the programs of every platform can have, whatever machine makes them."""
    config = config.copy_and_resolve_references()
    with config.unlocked():
        plain = dict(attention="xla", positional=positional, stack="scan")
        own = plain | dict(convolution="xla")
        if config.encoder.get("remat_frontend") == "auto":
            own["remat_frontend"] = "full"
        config.encoder.update({key: value for key, value in own.items() if key in config.encoder})
        if "acoustic" in config:
            config.acoustic.update(plain)
    return config


def with_outputs(config: Any, tokens: int) -> Any:
    """The config of a model over an alphabet of so many `tokens`: acoustic.outputs, where it is 0.

    Raises UserError when a larger number of outputs is needed than the config names.
    """
    if 0 < config.acoustic.outputs < tokens:
        raise UserError(
            f"acoustic.outputs={config.acoustic.outputs} is too small for an alphabet of {tokens} tokens with the "
            f"blank: --config.acoustic.outputs={tokens}, or 0 for as many as there are"
        )
    if config.acoustic.outputs:
        return config
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.acoustic.outputs = tokens
    return config


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """{"data.root": ..., ...} of a nested config or dict."""
    flat = {}
    for key in config:
        value = config[key]
        if hasattr(value, "keys"):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def to_json(config: Any) -> str:
    """The config as JSON text: what `config.json` in a workdir holds."""
    return json.dumps(config.to_dict(), indent=2, sort_keys=False)


def from_json(text: str):
    """The locked config of `to_json`'s text; lists become tuples again.

    Keys that it lacks because an older version wrote it have the values that it meant.
    """
    import ml_collections

    def tuples(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: tuples(v) for k, v in value.items()}
        return tuple(tuples(v) for v in value) if isinstance(value, list) else value

    found = tuples(json.loads(text))
    encoder = found.get("encoder", {})
    if "conv_layers" in encoder and "pos_kernel" in encoder:
        encoder.setdefault("pos_layers", 1)
    if "conv_norm" in encoder:
        encoder.setdefault("convolution", "auto")
    if "scan_layers" in encoder:
        encoder["stack"] = "scan" if encoder.pop("scan_layers") else "unroll"
    for key in ("remat_frontend", "remat_layers"):
        if isinstance(encoder.get(key), bool):
            encoder[key] = "full" if encoder[key] else "none"
    return ml_collections.ConfigDict(found).lock()


def difference(old: Any, new: Any) -> list[str]:
    """One line per key whose value differs: "optim.peak: 0.0005 -> 0.001"."""
    before, after = flatten(old), flatten(new)
    lines = []
    for key in sorted(before.keys() | after.keys()):
        a, b = before.get(key, "(absent)"), after.get(key, "(absent)")
        if a != b:
            lines.append(f"{key}: {a!r} -> {b!r}")
    return lines


def _suggest(wrong: str, known: Sequence[str] | Mapping[str, Any]) -> str:
    near = difflib.get_close_matches(wrong, list(known), n=1, cutoff=0.5)
    if not near:  # a right name in the wrong section
        near = [k for k in known if k.split(".")[-1] == wrong.split(".")[-1]][:1]
    return f". Did you mean {near[0]!r}?" if near else ""


def split_overrides(argv: Sequence[str]) -> tuple[list[str], list[tuple[str, str]]]:
    """Takes `--config.a.b=v` and `--config.a.b v` out of the arguments: (the rest, [(key, text), ...])."""
    rest, overrides, waiting = [], [], iter(argv)
    for arg in waiting:
        if not arg.startswith("--config."):
            rest.append(arg)
            continue
        key, equals, text = arg.removeprefix("--config.").partition("=")
        overrides.append((key, text if equals else next(waiting, "")))
    return rest, overrides


def add_config_argument(parser: argparse.ArgumentParser) -> None:
    """The `--config` argument that the commands share, with its help text."""
    parser.add_argument(
        "--config", required=True, metavar="FILE[:variant]", help="a file of configs/, e.g. configs/w2v2_base.py:demo"
    )
    parser.epilog = (parser.epilog or "") + " Any key of the config is set by --config.section.key=value."


def run_command(main: Callable[[Sequence[str]], int | None]) -> None:
    """Runs a command's `main(argv)` and exits.

    0 success, 1 a person's mistake or a full disk, 2 usage, 130 Ctrl-C, 141 nobody reads the output, others faults.
    """
    try:
        code = main(sys.argv[1:])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("stopped by Ctrl-C", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # whoever read the output has gone, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        print(f"error: the disk takes no more: {error}. Free some space, then give the same command", file=sys.stderr)
        sys.exit(1)
    sys.exit(code or 0)
