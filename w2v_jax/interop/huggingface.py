"""Checkpoints of Hugging Face's transformers: wav2vec 2.0, HuBERT, WavLM and data2vec-audio, in and out.

Reading needs neither torch nor transformers. The files are config.json, preprocessor_config.json, vocab.json, and the
weights: safetensors or PyTorch's files, in one file or in shards. `read_huggingface` returns what
`tensor_mapping.write_run` writes as a run. `tensors_of` converts the parameters of a run to transformers.
`huggingface_config.py` converts the settings, `huggingface_tokenizer.py` the vocabulary.
"""

from __future__ import annotations

import pathlib
import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import numpy as np

from w2v_jax.core.cli import UserError, cannot_read, needing
from w2v_jax.core.config import Config
from w2v_jax.core.text import wrong_content
from w2v_jax.core.types import PyTree
from w2v_jax.core.units import SAMPLE_RATE
from w2v_jax.interop import huggingface_tokenizer, torch_file
from w2v_jax.interop.huggingface_config import (
    DATA2VEC,
    DEFAULTS,
    HEADS,
    WAVLM,
    check_settings,
    family_of,
    is_relative,
    is_stack,
    our_config,
    read_json,
)
from w2v_jax.interop.tensor_mapping import Imported, TensorPair, dense_pairs, export_tensors, import_tensors, norm_pairs

HEAD_TENSORS = {"ctc": "lm_head.", "pretraining": "quantizer."}
"""The first words of the names of a head's tensors, by which the head is recognised."""
OTHER_HEADS = {"ctc": ("quantizer.", "project_q.", "project_hid."), "pretraining": ("lm_head.",)}
"""Head -> the first words of the names of tensors that another head left in the file."""
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
WEIGHT_NORM = {"weight_g": "parametrizations.weight.original0", "weight_v": "parametrizations.weight.original1"}
"""Old name -> present name of the two tensors of a weight-normalised convolution."""

LAYER = {
    "attention.q_proj": "query",
    "attention.k_proj": "key",
    "attention.v_proj": "value",
    "attention.out_proj": "out",
    "layer_norm": "attention_norm",
    "feed_forward.intermediate_dense": "mlp_in",
    "feed_forward.output_dense": "mlp_out",
    "final_layer_norm": "mlp_norm",
}
"""Their name -> our name of the modules of a Transformer layer."""


def tensor_pairs(config: Config, prefix: str, head: str) -> list[TensorPair]:
    """The tensor of each parameter of the config's model. prefix: of their encoder's names; head: one of HEADS."""
    e = config.encoder
    pairs = [TensorPair("encoder/mask_vector", f"{prefix}masked_spec_embed")]
    for i in range(len(e.conv_layers)):
        ours, theirs = f"encoder/frontend/conv{i}", f"{prefix}feature_extractor.conv_layers.{i}"
        pairs += dense_pairs(ours, f"{theirs}.conv", bias=e.conv_bias)
        if e.conv_norm == "layer" or i == 0:
            pairs += norm_pairs(f"{ours}/norm", f"{theirs}.layer_norm")
    pairs += norm_pairs("encoder/local_norm", f"{prefix}feature_projection.layer_norm")
    pairs += dense_pairs("encoder/projection", f"{prefix}feature_projection.projection")
    ours, theirs = "encoder/transformer/positional", f"{prefix}encoder.pos_conv_embed"
    if is_stack(config):
        for i in range(e.pos_layers):
            pairs.append(TensorPair(f"{ours}/kernel{i}", f"{theirs}.layers.{i}.conv.weight", "transposed"))
            pairs.append(TensorPair(f"{ours}/bias{i}", f"{theirs}.layers.{i}.conv.bias"))
    else:
        pairs.append(TensorPair(f"{ours}/scale", f"{theirs}.conv.{WEIGHT_NORM['weight_g']}", "per tap"))
        pairs.append(TensorPair(f"{ours}/direction", f"{theirs}.conv.{WEIGHT_NORM['weight_v']}", "transposed"))
        pairs.append(TensorPair(f"{ours}/bias", f"{theirs}.conv.bias"))
    pairs += norm_pairs("encoder/transformer/norm", f"{prefix}encoder.layer_norm")
    for layer in range(e.layers):
        for theirs, ours in LAYER.items():
            module_pairs = norm_pairs if ours.endswith("norm") else dense_pairs
            pairs += module_pairs(
                f"encoder/transformer/layers/{ours}", f"{prefix}encoder.layers.{layer}.{theirs}", layer
            )
        if is_relative(config):
            ours, theirs = "encoder/transformer/layers/gate", f"{prefix}encoder.layers.{layer}.attention.gru_rel_pos"
            pairs += dense_pairs(ours, f"{theirs}_linear", layer)
            pairs.append(TensorPair(f"{ours}/scale", f"{theirs}_const", layout="per head", layer=layer))
    if is_relative(config):
        table = f"{prefix}encoder.layers.0.attention.rel_attn_embed.weight"
        pairs.append(TensorPair("encoder/transformer/relative_bias", table))
    if head == "pretraining":
        pairs.append(TensorPair("quantizer/codebook", "quantizer.codevectors", "codebook"))
        pairs += dense_pairs("quantizer/weight_proj", "quantizer.weight_proj")
        pairs += dense_pairs("target_proj", "project_q") + dense_pairs("context_proj", "project_hid")
    elif head == "ctc":
        pairs += dense_pairs("head", "lm_head")
    return pairs


# From transformers


def read_huggingface(path: pathlib.Path, *, encoder_only: bool = False) -> Imported:
    """The checkpoint in a folder that `save_pretrained` wrote, or in a file of weights in such a folder.

    encoder_only leaves out the heads, whatever they are. Raises UserError.
    """
    folder = path if path.is_dir() else path.parent
    saved = read_json(folder / "config.json")
    settings = DEFAULTS | {"data2vec-audio": DATA2VEC, "wavlm": WAVLM}.get(str(saved.get("model_type")), {}) | saved
    check_settings(settings, folder)
    tensors, notes = read_tensors(path)
    without_prefix = "encoder.layer_norm.weight" in tensors
    prefix = f"{settings['model_type'].replace('-', '_')}."
    if encoder_only and not without_prefix:
        if left_out := sorted(name for name in tensors if not name.startswith(prefix)):
            notes.append(f"left out because they are not part of the encoder: {', '.join(left_out)}")
        tensors = {name: x for name, x in tensors.items() if name.startswith(prefix)}
    head = _head(settings, tensors)
    prefix = "" if without_prefix and head == "encoder" else prefix
    _check_architecture(settings, tensors.keys(), prefix, folder=folder)
    if not encoder_only:
        _check_head(settings, head, folder)
    if others := sorted(name for name in tensors if name.startswith(OTHER_HEADS.get(head, ()))):
        notes.append(f"left out because they belong to another head: {', '.join(others)}")
        tensors = {name: x for name, x in tensors.items() if name not in others}
    alphabet, blank, outputs = None, 0, 0
    if head == "ctc":
        outputs = _outputs(folder, saved, tensors)
        alphabet, blank = huggingface_tokenizer.read_alphabet(folder, saved, outputs=outputs, notes=notes)
    config = our_config(settings, head, normalize=_normalize(folder, notes), outputs=outputs)
    mask_vector = f"{prefix}masked_spec_embed"
    if mask_vector not in tensors and head != "pretraining":  # wav2vec2-base-960h lacks it
        tensors[mask_vector] = np.zeros(settings["hidden_size"], np.float32)
        notes.append(f"{mask_vector} is not in the file; it is set to zeros, which only training with masks reads")
    params, table = import_tensors(tensors, tensor_pairs(config, prefix, head), config, source=str(path))
    if alphabet is not None:
        params["head"] = _blank_first(params["head"], blank)
    return Imported(config, params, alphabet=alphabet, notes=notes, table=table)


def read_tensors(path: pathlib.Path) -> tuple[dict[str, np.ndarray], list[str]]:
    """({name: array}, notes) of a file of weights, or of the file of weights in a folder.

    Old names of weight normalisation become the present ones. Raises UserError.
    """
    file = path
    if path.is_dir():
        file = next((path / name for name in WEIGHTS if (path / name).exists()), None)
        if broken := [path / name for name in WEIGHTS if file is None and (path / name).is_symlink()]:
            raise UserError(f"{broken[0]} is a link to a file that is not there; download it again")
        if file is None:
            present = ", ".join(sorted(p.name for p in path.iterdir() if p.exists()))
            raise UserError(f"{path} contains none of {', '.join(WEIGHTS)}; it has {present}")
    shards = [file]
    if file.name.endswith(".index.json"):
        weight_map = read_json(file).get("weight_map")
        if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
            raise UserError(f"{file}: weight_map must name the file of each tensor")
        shards = [file.parent / name for name in sorted(set(weight_map.values()))]
        if missing := [shard.name for shard in shards if not shard.exists()]:
            raise UserError(f"{file} lists files that do not exist: {', '.join(missing)}")
    tensors: dict[str, np.ndarray] = {}
    for shard in shards:
        for name, array in _read_shard(shard):
            *stem, leaf = name.rsplit(".", 1)
            name = ".".join([*stem, WEIGHT_NORM.get(leaf, leaf)])
            if name in tensors:
                raise UserError(f"{shard}: the tensor {name} occurs twice")
            tensors[name] = array
    if not tensors:
        raise UserError(f"{file} contains no tensors")
    if integers := sorted(name for name, x in tensors.items() if x.dtype.kind in "iub"):
        raise UserError(f"{file}: {integers[0]} holds integers; quantised weights are not supported, use float weights")
    return tensors, float32_notes(tensors)


def float32_notes(tensors: Mapping[str, np.ndarray]) -> list[str]:
    """A note that names the other types of number, where there are any; `import_tensors` converts them to float32."""
    others = sorted({str(x.dtype) for x in tensors.values()} - {"float32"})
    return [f"converted tensors of {', '.join(others)} to float32"] if others else []


def _read_shard(file: pathlib.Path) -> Iterator[tuple[str, np.ndarray]]:
    if file.suffix != ".safetensors":
        tensors = torch_file.read_torch(file)
        if not isinstance(tensors, dict) or not all(isinstance(x, np.ndarray) for x in tensors.values()):
            raise UserError(f"{file} holds more than named tensors, so it is not a file of weights")
        yield from tensors.items()
        return
    safetensors = import_safetensors()
    try:
        with safetensors.safe_open(file, "np") as opened:
            for name in opened.keys():
                yield name, opened.get_tensor(name)
    except OSError as error:
        raise cannot_read(file, error) from None
    except safetensors.SafetensorError as error:
        reason = f"is damaged, or is not a safetensors file ({error}); download it again"
        raise wrong_content(file, reason) from None


def import_safetensors() -> Any:
    """The package safetensors with its submodule numpy. Raises UserError where it is not installed."""
    with needing("safetensors is not installed: pip install 'w2v-jax[convert]'"):
        import safetensors.numpy
    return safetensors


def _blank_first(head: dict[str, np.ndarray], blank: int) -> dict[str, np.ndarray]:
    """The output layer with the output of the blank moved to the front."""
    order = [blank, *(i for i in range(len(head["bias"])) if i != blank)]
    return {"kernel": np.ascontiguousarray(head["kernel"][:, order]), "bias": head["bias"][order]}


def _head(settings: Mapping[str, Any], names: Collection[str]) -> str:
    """The head that the file has. Of two, the one that config.json names, as in transformers, or that of CTC."""
    heads = [head for head, stem in HEAD_TENSORS.items() if any(name.startswith(stem) for name in names)]
    classes = tuple(str(name) for name in settings.get("architectures") or ())
    named = [head for head in heads if any(name.endswith(HEADS[head]) for name in classes)]
    return (named + heads + ["encoder"])[0]


def _outputs(folder: pathlib.Path, saved: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> int:
    """The number of outputs of a recogniser. Raises UserError where config.json has another."""
    sizes = {name: len(tensors[name]) for name in ("lm_head.weight", "lm_head.bias") if name in tensors}
    name, size = next(iter(sizes.items()), ("", 0))
    if saved.get("vocab_size") not in (None, size):
        raise UserError(f"{folder / 'config.json'}: vocab_size is {saved['vocab_size']}, but {name} has {size} outputs")
    return size


def _check_head(settings: Mapping[str, Any], head: str, folder: pathlib.Path) -> None:
    """Raises UserError where the file lacks the head that config.json names."""
    for name in settings.get("architectures") or ():
        for named_head, stem in HEAD_TENSORS.items():
            if str(name).endswith(HEADS[named_head]) and head != named_head:
                raise UserError(
                    f"{folder / 'config.json'}: the architecture is {name}, but no tensor name starts with {stem}; "
                    "--encoder-only reads the encoder alone"
                )


def _check_architecture(
    settings: Mapping[str, Any], names: Collection[str], prefix: str, *, folder: pathlib.Path
) -> None:
    """Raises UserError where the names of the tensors contradict config.json."""
    convolutions, layer = f"{prefix}feature_extractor.conv_layers", rf"{re.escape(prefix)}encoder\.layers\.(\d+)\."
    actual = {
        "feat_extract_norm": "layer" if f"{convolutions}.1.layer_norm.weight" in names else "group",
        "conv_bias": f"{convolutions}.0.conv.bias" in names,
        "num_hidden_layers": len({int(match[1]) for name in names if (match := re.match(layer, name))}),
    }
    if not actual["num_hidden_layers"]:
        raise UserError(
            f"{folder}: no tensor name starts with {prefix}encoder.layers; the weights are of another architecture"
        )
    for key, value in actual.items():
        if settings[key] != value:
            raise UserError(f"{folder / 'config.json'}: {key} is {settings[key]!r}, but the tensors have {value!r}")


def _normalize(folder: pathlib.Path, notes: list[str]) -> bool:
    """Whether audio is normalised, as the extractor or (since transformers 5) the processor was saved.

    Where no file says so, adds a note and returns the default of transformers.
    """
    for name, section in (("preprocessor_config.json", None), ("processor_config.json", "feature_extractor")):
        file = folder / name
        extractor = read_json(file) if file.exists() else None
        if extractor is not None and section is not None:
            extractor = extractor.get(section)
        if not isinstance(extractor, dict):
            continue
        if (rate := extractor.get("sampling_rate", SAMPLE_RATE)) != SAMPLE_RATE:
            raise UserError(f"{file}: the model expects audio at {rate} Hz; only {SAMPLE_RATE} Hz is supported")
        if not isinstance(normalize := extractor.get("do_normalize", True), bool):
            raise UserError(f"{file}: do_normalize is {normalize!r}; it must be true or false")
        return normalize
    notes.append("no file says whether audio is normalised; it is, per utterance, as is the default of transformers")
    return True


# To transformers


def tensors_of(config: Config, params: PyTree, head: str) -> dict[str, np.ndarray]:
    """Their tensors of a run's parameters for one of HEADS. Raises UserError for what they cannot represent."""
    if head == "encoder":
        params = {"encoder": params["encoder"]}
    prefix = "" if head == "encoder" else f"{family_of(config).replace('-', '_')}."
    return export_tensors(params, tensor_pairs(config, prefix, head))
