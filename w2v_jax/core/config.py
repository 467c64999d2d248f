"""Configs: read from Python files, changed by flags, checked, locked. Imports neither jax nor TensorFlow.

A config is a Python file with `get_config(arg)` that returns an `ml_collections.ConfigDict`: data, no code.
`load` reads it, applies `--config.section.key=value` overrides with type checks, and locks it.
"""

from __future__ import annotations

import argparse
import ast
import importlib.util
import json
import math
import os
import pathlib
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from w2v_jax.core.cli import UserError, did_you_mean, expand_home, path_argument

if TYPE_CHECKING:
    import ml_collections

    class Config(ml_collections.ConfigDict):
        """A config, or a section of one. The type of a key's value is not known before the config is read."""

        def __getattr__(self, attribute: str) -> Any: ...

        def __getitem__(self, key: str) -> Any: ...

        def lock(self) -> Config: ...

        def copy_and_resolve_references(self) -> Config: ...

else:
    Config = Any


def load(spec: str, overrides: Sequence[tuple[str, str]] = ()) -> Config:
    """The locked config of `FILE[:variant]` with `(dotted key, text)` overrides applied.

    A file of the project's own is found by its name from any folder: `w2v2_base.py` or `configs/w2v2_base.py`. Raises
    UserError when the file, the variant or a key does not exist, a value has the wrong type, or a file of the user's
    lacks a key or has one that nothing reads.
    """
    path, _, variant = os.fspath(path_argument(spec)).partition(":")
    file = _file(path)
    config = _read(path, file, variant)
    flat = flatten(config)
    if lacking := sorted(COMMON - flat.keys()):
        hint = _nearest_key(lacking[0], flat)
        raise UserError(f"{path} lacks config.{lacking[0]}, which every run needs.{hint}")
    if file.resolve().parent != PUBLISHED.resolve():
        _compare_with_published(path, flat)
    for key, text in overrides:
        override(config, key, text)
    _expand_paths(config, expand_home)
    return config.lock()


def _read(path: str, file: pathlib.Path, variant: str) -> Config:
    """What `get_config(variant)` of a file, which the user calls `path`, returns."""
    module_spec = importlib.util.spec_from_file_location(f"w2v_jax_config_{file.stem}", file)
    assert module_spec is not None and module_spec.loader is not None
    module = importlib.util.module_from_spec(module_spec)
    module_spec.loader.exec_module(module)
    if not hasattr(module, "get_config"):
        raise UserError(f"config file {path!r} has no get_config(variant)")
    try:
        return module.get_config(variant)
    except (ValueError, KeyError) as error:  # no such variant; a variant that sets a key which the file does not have
        raise UserError(f"{path}: {error.args[0]}") from None


def _compare_with_published(path: str, flat: Mapping[str, Any]) -> None:
    """Raises UserError for a key that no published config has, and for one that all those of this method have.

    A key of a section that methods fill as they need, and of a section of one's own, passes unless it looks mistyped.
    What an encoder needs is known where the method has one kind of it.
    """
    published = [flatten(_read(file.name, file, "")) for file in sorted(PUBLISHED.glob("*.py"))]
    known = {key for each in published for key in each}
    for key in sorted(flat.keys() - known):
        section = key.partition(".")[0]
        absent = [name for name in sorted(known - flat.keys()) if name.partition(".")[0] == section]
        hint = did_you_mean(key, absent, cutoff=0.85)
        if hint or section in CLOSED:
            raise UserError(f"{path}: nothing reads config.{key}.{hint}")
    alike = [set(each) for each in published if each["method"] == flat["method"]]
    needed = set.intersection(*alike) - OPTIONAL.keys() if alike else set()
    needed = {key for key in needed if "encoder.kind" not in flat or not key.startswith("encoder.")}
    if lacking := sorted(needed - flat.keys()):
        raise UserError(
            f"{path} lacks config.{lacking[0]}, which {flat['method']} needs.{_nearest_key(lacking[0], flat)}"
        )


PACKAGE = pathlib.Path(__file__).parents[1]
PUBLISHED = next((f for f in (PACKAGE / "configs", PACKAGE.parent / "configs") if f.is_dir()), PACKAGE / "configs")
"""The folder of the project's own configs: in the package where it was installed, beside it in a clone."""


def _file(path: str) -> pathlib.Path:
    """The config file `path`, else the project's own one where `path` is NAME.py or configs/NAME.py."""
    file = pathlib.Path(path)
    if file.is_file():
        return file
    own = file.parent in (pathlib.Path(), pathlib.Path("configs"))
    if own and (PUBLISHED / file.name).is_file():
        return PUBLISHED / file.name
    near = {str(p) for p in file.parent.glob("*.py")}
    near |= {str(file.parent / p.name) for p in PUBLISHED.glob("*.py") if own}
    raise UserError(f"config file {path!r} does not exist.{did_you_mean(path, sorted(near), cutoff=0.5)}")


def keys_of(**sections: str) -> frozenset[str]:
    """{"data.root", ...} of data="root ...", which has all keys of a section in one string."""
    return frozenset(f"{section}.{key}" for section, keys in sections.items() for key in keys.split())


COMMON = {"method", "seed"} | keys_of(
    init="run step",
    data="name root corpora corpora_exponents normalize min_seconds hours train_hours loader workers eval_root "
    "eval_share eval_speakers eval_hours batch_hours unit_seconds device_seconds bucket_seconds curriculum",
    optim="peak schedule warmup start end power stages betas eps weight_decay clip_norm average rules",
    sharding="data fsdp tensor slices",
    train="steps dtype log_every log_rows eval_every watchdog compile_cache checkpoint_every keep_latest "
    "keep_best best patience on_config_change",
)
"""The keys that training and its data need, whatever the method."""
CLOSED = ("init", "data", "optim", "sharding", "train", "probe")
"""The sections whose keys do not depend on the method."""

AUGMENTATION: dict[str, Any] = {
    "data.gain_decibels": (0.0, 0.0),
    "data.mix_decibels": (-5.0, 5.0),
    "data.mix_part": (0.0, 0.5),
    "data.mix_prob": 0.0,
    "data.mix_voices": (1, 1),
    "data.noise_decibels": (-5.0, 20.0),
    "data.noise_name": "folder",
    "data.noise_prob": 0.0,
    "data.noise_root": (),
    "data.rooms_name": "folder",
    "data.rooms_prob": 0.0,
    "data.rooms_root": (),
    "data.speeds": (1.0, 1.0),
    "data.telephone_prob": 0.0,
}
"""The keys of what is done to recordings of training, and the values with which nothing is."""

OPTIONAL: dict[str, Any] = {
    **AUGMENTATION,
    "acoustic.clean_steps": 0,
    "data.labels": "",
    "data.targets": None,  # learns no units that were made before
    "encoder.context_kernels": (),
    "encoder.conv_grad_scale": 1.0,
    "encoder.conv_layers": (),
    "encoder.frozen": False,
    "encoder.frozen_steps": 0,
    "encoder.heads": 0,
    "encoder.layer_drop": 0.0,
    "encoder.layers": 0,
    "encoder.remat_frontend": "none",
    "encoder.remat_layers": "none",
    "encoder.width": 0,
    "init.fresh": None,  # starts from an encoder alone
    "masking.length": 0,
    "probe.every": 0,
    "quantizer.temperature": (0.0, 0.0, 0.0),
    "train.best": "loss",  # a converted model was not trained here
}
"""Keys that the configs of some methods lack, and what such a method does."""


PATHS = keys_of(
    init="run",
    data="root eval_root corpora alphabet targets noise_root rooms_root",
    probe="root test_root",
    train="compile_cache",
)
"""Keys whose values are paths, one or a tuple of them: `~` at the start of each is the home folder."""

ELEMENTS = {
    "data.root": "",
    "data.eval_root": "",
    "data.noise_root": "",
    "data.rooms_root": "",
    "data.curriculum": 0,
    "data.targets": "",
    "encoder.context_kernels": 0,
    "init.fresh": "",
    "optim.rules": ("", 0.0, 0.0),
    "probe.root": "",
    "probe.test_root": "",
}
"""What an element of a tuple is like, for the keys whose tuple may be empty."""

LENGTHS = {
    "data.corpora_exponents": 2,
    "data.gain_decibels": 2,
    "data.mix_decibels": 2,
    "data.mix_part": 2,
    "data.mix_voices": 2,
    "data.noise_decibels": 2,
    "data.speeds": 2,
    "optim.betas": 2,
    "optim.stages": 3,
    "quantizer.temperature": 3,
}
"""How many numbers a tuple has, for the keys whose numbers have a meaning each."""


def setting(config: Config, key: str) -> Any:
    """The value of `section.key`, one of OPTIONAL."""
    section, _, name = key.partition(".")
    return config[section][name] if section in config and name in config[section] else OPTIONAL[key]


def _expand_paths(config: Config | dict[str, Any], expand: Callable[[str], str]) -> None:
    """Applies `expand` to the paths in an unlocked config or nested dict. Raises UserError for one that is no text."""
    for key in sorted(PATHS & flatten(config).keys()):
        section, _, name = key.partition(".")
        value = config[section][name]
        paths = [value] if isinstance(value, str) else value
        if not isinstance(paths, (tuple, list)) or not all(isinstance(path, str) for path in paths):
            raise UserError(f"{key}={value!r}: must be text, or a tuple of texts")
        config[section][name] = expand(value) if isinstance(value, str) else type(value)(map(expand, paths))


def as_config(values: Mapping[str, Any]) -> Config:
    """The locked config of nested dicts."""
    import ml_collections

    return cast(Config, ml_collections.ConfigDict(values).lock())


def changed(config: Config, values: Mapping[str, Any], *, skip_missing: bool = False) -> Config:
    """A locked copy of the config with other values of some keys: {"section.key": value}.

    Raises KeyError for a key that the config lacks, or leaves it out with `skip_missing`.
    """
    config = config.copy_and_resolve_references()
    known = flatten(config)
    config.update_from_flattened_dict({k: v for k, v in values.items() if k in known or not skip_missing})
    return config.lock()


def override(config: Config, key: str, text: str) -> None:
    """Sets `config.section.key` from its text; the type of the present value decides how the text is read."""
    *sections, name = key.split(".")
    node: Any = config
    parent: Any = config
    trail = ""
    for part in [*sections, name]:
        if not isinstance(node, Mapping) and not hasattr(node, "keys"):
            raise UserError(f"--config.{key}: {trail!r} is a value, not a section")
        if part not in node:
            raise UserError(f"--config.{key}: {part!r} is not a key here.{_nearest_key(key, flatten(config))}")
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
    example = present or (ELEMENTS[key],) if kind is tuple and key in ELEMENTS else present
    if kind is tuple and example and isinstance(example[0], str):
        return _read_texts(key, text)
    value = _literal(text)
    if kind is tuple and not isinstance(value, (tuple, list)):
        value = (value,)
    length = LENGTHS.get(key)
    try:
        if length and len(value) != length:
            raise ValueError
        return _like(value, example)
    except (ValueError, OverflowError):
        shown = f"as in the present value {present!r}" if present == example else f"such as {example!r}"
        form = kind.__name__ + (f" of {length} numbers" if length else "")
        raise UserError(f"--config.{key}={text}: needs {form}, {shown}") from None


def _literal(text: str) -> Any:
    """The value of a Python literal; the text itself where it is none."""
    with warnings.catch_warnings(action="ignore"):  # of backslashes that are no escapes
        try:
            return ast.literal_eval(text)
        except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
            return text


def _like(value: Any, example: Any, *, inside: bool = False) -> Any:
    """`value` with the types of `example`. Elements are like the first one of the example, or each like its own.

    Raises ValueError where it has another form, and for numbers that are not finite. A tuple `inside` another has the
    length of its example. A number inside a tuple of whole numbers need not be one.
    """
    if isinstance(example, tuple):
        if not isinstance(value, (tuple, list)) or (inside and len(value) != len(example)):
            raise ValueError
        if not example:
            return tuple(value)
        is_mixed = len({"number" if _is_number(e) else type(e) for e in example}) > 1
        examples = example if is_mixed else [example[0]] * len(value)
        return tuple(_like(v, e, inside=True) for v, e in zip(value, examples, strict=True))
    if not _is_number(example):
        if type(value) is not type(example):
            raise ValueError
        return value
    if not _is_number(value) or not math.isfinite(value):
        raise ValueError
    if isinstance(example, float):
        return float(value)
    if not (inside or float(value).is_integer()):
        raise ValueError
    return int(value) if float(value).is_integer() else value


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _read_texts(key: str, text: str) -> tuple[str, ...]:
    """Texts between commas, or as Python writes them: 'a' or ('a', 'b'). A path that exists is one, commas or not."""
    in_brackets = "," in text and text[0] in "([" and text[-1] in ")]"
    listed = text[1:-1].split(",") if in_brackets else text.split(",")
    parts = tuple(part.strip(" '\"") if in_brackets else part.strip() for part in listed if part.strip())
    how_to_quote = f'for several, give --config.{key}="{parts!r}"; for one, --config.{key}="{(text,)!r}"'
    exists = lambda path: key in PATHS and os.path.exists(os.path.expanduser(path))
    if exists(text):
        if len(parts) > 1 and all(map(exists, parts)):
            raise UserError(f"--config.{key}={text}: exists, and so does each path between the commas; {how_to_quote}")
        return (text,)
    value = _literal(text)
    texts = [value] if isinstance(value, str) and value != text else value
    if isinstance(texts, (tuple, list)) and all(isinstance(each, str) for each in texts):
        return tuple(texts)
    if in_brackets:
        raise UserError(f"--config.{key}={text}: texts in brackets need quotes; {how_to_quote}")
    return parts if "," in text or not parts else (text,)


POSITIVE = keys_of(
    data="batch_hours unit_seconds device_seconds targets_hop",
    encoder="layers heads width mlp pos_kernel pos_groups pos_layers",
    acoustic="layers heads width mlp pos_kernel pos_groups members",
    quantizer="groups codes dim",
    masking="length",
    loss="proj negatives steps temperature",
    optim="peak",
    sharding="tensor",
    train="steps log_every eval_every checkpoint_every",
)
NOT_NEGATIVE = keys_of(
    acoustic="clean_steps consistency",
    data="workers",
    encoder="relative_buckets relative_distance",
    loss="offset extra_classes masked_weight unmasked_weight",
    sharding="data fsdp slices",
    train="patience",
)
KEYS_OF_SHARES = ("data.eval_share", "data.mix_prob", "data.noise_prob", "data.rooms_prob", "data.telephone_prob")
KEYS_OF_SHARES += ("masking.prob",)
"""Keys that must be above 0, at least 0, and from 0 to 1. `optim.average` and all dropouts must be below 1."""
KEYS_OF_WHOLE_NUMBERS = ("data.curriculum", "data.mix_voices")
KEYS_OF_LAYERS = ("encoder.conv_layers", "encoder.context_kernels", "acoustic.conv_layers")
"""Keys whose tuples hold whole numbers above 0."""


def check_config(config: Config) -> None:
    """Raises UserError for numbers that no run can have. Keys that the config lacks are not checked."""
    flat = flatten(config)
    for key in sorted(POSITIVE):
        if key in flat and not flat[key] > 0:
            raise UserError(f"{key}={flat[key]!r}: must be above 0")
    for key, value in flat.items():
        if key in KEYS_OF_SHARES and not 0 <= value <= 1:
            raise UserError(f"{key}={value!r}: must be between 0 and 1")
        if key.endswith(("dropout", "_drop", "optim.average")) and not 0 <= value < 1:
            raise UserError(f"{key}={value!r}: must be at least 0 and below 1")
    if flat["data.batch_hours"] * 3600 < 0.5 * flat["data.unit_seconds"]:
        raise UserError("data.batch_hours is less than half of data.unit_seconds: a batch holds at least one unit")
    for key in sorted(NOT_NEGATIVE & flat.keys()):
        if flat[key] < 0:
            raise UserError(f"{key}={flat[key]!r}: must be at least 0")
    parts = {"encoder.heads": setting(config, "encoder.heads"), "sharding.tensor": flat["sharding.tensor"]}
    check_divides(parts, "encoder.heads", ["sharding.tensor"])
    for key in KEYS_OF_LAYERS:
        layers = flat.get(key, ())
        numbers = [number for layer in layers for number in (layer if isinstance(layer, tuple) else (layer,))]
        if any(number < 1 or number != int(number) for number in numbers):
            raise UserError(f"{key}={layers!r}: needs whole numbers above 0")
        if key in flat and not layers and (key not in ELEMENTS or flat["encoder.context"] == "conv"):
            raise UserError(f"{key}=(): needs at least one layer")
    for key in KEYS_OF_WHOLE_NUMBERS:
        if not all(isinstance(number, int) for number in flat.get(key, ())):
            raise UserError(f"{key}={flat[key]!r}: needs whole numbers")
    if not all(0 <= exponent <= 1 for exponent in flat.get("data.corpora_exponents", ())):
        raise UserError(
            f"data.corpora_exponents={flat['data.corpora_exponents']!r}: must be between 0 and 1. 1 hears corpora and "
            "languages as they are, 0 all alike; for other shares, give each a weight in the file of data.corpora"
        )
    for key, length in LENGTHS.items():
        if key in flat and len(flat[key]) != length:
            raise UserError(f"{key}={flat[key]!r}: needs {length} numbers")


def check_divides(values: Mapping[str, Any] | Config, total: str, keys: Iterable[str], *, where: str = "") -> None:
    """Raises UserError where the value of one of the keys does not divide that of `total`. where: the keys' section."""
    for key in keys:
        if values[total] % values[key]:
            raise UserError(f"{where}{key}={values[key]} does not divide {where}{total}={values[total]}")


def portable(config: Config, positional: str = "grouped") -> Config:
    """A copy of the config with formulations that compile for every platform, on any machine."""
    layers = dict(attention="xla", positional=positional, stack="scan")
    values = {f"{section}.{key}": value for section in ("encoder", "acoustic") for key, value in layers.items()}
    values["encoder.convolution"] = "xla"
    if setting(config, "encoder.remat_frontend") == "auto":
        values["encoder.remat_frontend"] = "full"
    return changed(config, values, skip_missing=True)


def with_outputs(config: Config, tokens: int) -> Config:
    """A copy of the config whose acoustic.outputs is `tokens`, the size of the alphabet, where it was 0.

    Raises UserError when the config names fewer outputs than the alphabet has tokens.
    """
    if 0 < config.acoustic.outputs < tokens:
        raise UserError(
            f"acoustic.outputs={config.acoustic.outputs} is too small for an alphabet of {tokens} tokens with the "
            f"blank: --config.acoustic.outputs={tokens}, or 0 for as many as there are"
        )
    return config if config.acoustic.outputs else changed(config, {"acoustic.outputs": tokens})


def flatten(config: Mapping[str, Any] | Config, prefix: str = "") -> dict[str, Any]:
    """{"data.root": ..., ...} of a nested config or dict."""
    flat = {}
    for key in config:
        value = config[key]
        if hasattr(value, "keys"):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


CONFIG_VERSION = 8
"""Of `config.json`: raised when a key is added, with a line in ADDED."""
ADDED = (
    (2, "init.run", "", "seed"),
    (2, "init.step", "", "seed"),
    (2, "init.fresh", (), "probe.every"),
    (2, "encoder.pos_layers", 1, "encoder.conv_grad_scale"),
    (2, "encoder.convolution", "auto", "encoder.conv_norm"),
    (2, "acoustic.attention", "auto", "acoustic.pos_kernel"),
    (2, "acoustic.positional", "auto", "acoustic.pos_kernel"),
    (2, "acoustic.stack", "auto", "acoustic.pos_kernel"),
    (3, "train.best", "loss", "train.keep_best"),
    (3, "train.patience", 0, "train.keep_best"),
    (3, "data.speeds", (1.0, 1.0), "data.tokens_per_second"),
    (3, "acoustic.clean_steps", 0, "acoustic.head_dropout"),
    (4, "acoustic.residual", False, "acoustic.conv_layers"),
    (5, "data.targets_model", "", "data.targets"),
    (6, "encoder.relative_buckets", 0, "encoder.conv_grad_scale"),
    (6, "encoder.relative_distance", 0, "encoder.conv_grad_scale"),
    (7, "optim.average", 0.0, "optim.clip_norm"),
    (7, "acoustic.members", 1, "acoustic.head_dropout"),
    (7, "acoustic.consistency", 0.0, "acoustic.head_dropout"),
    (7, "data.noise_root", (), "data.mix_prob"),
    (7, "data.noise_name", "folder", "data.mix_prob"),
    (7, "data.noise_prob", 0.0, "data.mix_prob"),
    (7, "data.noise_decibels", (-5.0, 20.0), "data.mix_prob"),
    (8, "data.corpora", "", "data.eval_share"),
    (8, "data.corpora_exponents", (1.0, 1.0), "data.eval_share"),
    (8, "data.curriculum", (), "data.eval_share"),
    (8, "data.eval_speakers", False, "data.eval_share"),
    *((8, key, value, "encoder.conv_layers") for key, value in AUGMENTATION.items() if key != "data.speeds"),
    (8, "data.speeds", (1.0, 1.0), "quantizer.groups"),
    (8, "data.speeds", (1.0, 1.0), "loss.steps"),
)
"""(version that added a key, the key, what runs without it meant, a key of the configs that have it)."""


def to_json(config: Config) -> str:
    """The config as JSON text."""
    return json.dumps(config.to_dict(), indent=2, sort_keys=False)


def run_json(config: Config) -> str:
    """What `config.json` of a run holds: the version of its keys and the config, one line per key."""
    return json.dumps({"version": CONFIG_VERSION} | config.to_dict(), indent=2, sort_keys=False) + "\n"


def from_json(text: str) -> Config:
    """The locked config of `to_json`'s text; lists become tuples again.

    A key that an older version did not write has the value of ADDED. Raises UserError for a text of a newer version.
    """

    def tuples(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: tuples(v) for k, v in value.items()}
        return tuple(tuples(v) for v in value) if isinstance(value, list) else value

    config = tuples(json.loads(text))
    if (version := config.pop("version", 1)) > CONFIG_VERSION:
        raise UserError(
            f"the config is of version {version}, and this package knows up to {CONFIG_VERSION}: update w2v_jax"
        )
    known = flatten(config)
    for _, key, value, beside in ADDED:
        section, _, name = key.partition(".")
        if beside in known:
            config.setdefault(section, {}).setdefault(name, value)
    encoder = config.get("encoder", {})
    if "scan_layers" in encoder:
        encoder["stack"] = "scan" if encoder.pop("scan_layers") else "unroll"
    for key in ("remat_frontend", "remat_layers"):
        if isinstance(encoder.get(key), bool):
            encoder[key] = "full" if encoder[key] else "none"
    _expand_paths(config, os.path.expanduser)
    return as_config(config)


def changed_keys(old: Mapping[str, Any] | Config, new: Mapping[str, Any] | Config) -> list[str]:
    """One line per key whose value differs: "optim.peak: 0.0005 -> 0.001"."""
    differing = differing_values(flatten(old), flatten(new), absent="(absent)")
    return [f"{key}: {before!r} -> {after!r}" for key, before, after in differing]


def differing_values(first: Mapping[str, Any], second: Mapping[str, Any], *, absent: str) -> list[tuple[str, Any, Any]]:
    """(name, its first value, its second) of each name whose values differ; `absent` where it is missing."""
    values = [
        (name, first.get(name, absent), second.get(name, absent)) for name in sorted(first.keys() | second.keys())
    ]
    return [each for each in values if each[1] != each[2]]


def _nearest_key(wrong: str, known: Mapping[str, Any]) -> str:
    """A hint to append to an error: a key that is spelt alike, or has this name in another section; or ""."""
    same_name = [key for key in known if key.split(".")[-1] == wrong.split(".")[-1]][:1]
    return did_you_mean(wrong, known, cutoff=0.5) or "".join(f" Did you mean {key!r}?" for key in same_name)


def split_overrides(argv: Sequence[str]) -> tuple[list[str], list[tuple[str, str]]]:
    """Takes `--config.a.b=v` and `--config.a.b v` out of the arguments: (the rest, [(key, text), ...]).

    Raises UserError for a key without a value.
    """
    rest, overrides, waiting = [], [], iter(argv)
    for arg in waiting:
        if not arg.startswith("--config."):
            rest.append(arg)
            continue
        key, equals, text = arg.removeprefix("--config.").partition("=")
        if not equals and (text := next(waiting, "--")).startswith("--"):
            raise UserError(f"{arg} needs a value: {arg}=VALUE")
        overrides.append((key, text))
    return rest, overrides


def add_config_argument(parser: argparse.ArgumentParser) -> None:
    """The `--config` argument that the commands share, with its help text."""
    files = "a file of configs/, e.g. configs/w2v2_base.py:demo"
    parser.add_argument("--config", required=True, metavar="FILE[:variant]", help=files)
    parser.epilog = f"{parser.epilog or ''} Any key of the config is set by --config.section.key=value.".strip()
