"""Checkpoints of Hugging Face's transformers: wav2vec 2.0, HuBERT and data2vec-audio of every size, in and out.

Read without torch and without transformers: config.json, weights (safetensors or PyTorch's files, whole or sharded),
preprocessor_config.json, vocab.json. `read` gives what `foreign.write_run` makes a run of; `tensors_of` and
`their_tokenizer` are the way back. `huggingface_config.py` knows the settings.
"""

from __future__ import annotations

import json
import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from w2v_jax import unpickle
from w2v_jax.api import PyTree
from w2v_jax.config import SAMPLE_RATE, UserError
from w2v_jax.data.labels import BLANK, BOUNDARY, Alphabet
from w2v_jax.data.labels import FILE as ALPHABET
from w2v_jax.foreign import Imported, Place, give_out, parameter_shapes, take_over
from w2v_jax.huggingface_config import DATA2VEC, DEFAULTS, HEADS, check_settings, is_stack, our_config

HEAD_TENSORS = {"pretraining": "quantizer.", "ctc": "lm_head."}
"""What the tensors of a head begin with, by which it is known."""
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
OLD_WEIGHT_NORM = {"weight_g": "parametrizations.weight.original0", "weight_v": "parametrizations.weight.original1"}

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


def places(config: Any, prefix: str, head: str) -> list[Place]:
    """Where each parameter of the config's model stands; prefix is that of their encoder, head one of HEADS."""
    e, found = config.encoder, [Place("encoder/mask_vector", f"{prefix}masked_spec_embed")]

    def dense(ours: str, theirs: str, layer: int | None = None) -> None:
        found.append(Place(f"{ours}/kernel", f"{theirs}.weight", "transposed", layer))
        found.append(Place(f"{ours}/bias", f"{theirs}.bias", "same", layer))

    def norm(ours: str, theirs: str, layer: int | None = None) -> None:
        found.append(Place(f"{ours}/scale", f"{theirs}.weight", "same", layer))
        found.append(Place(f"{ours}/bias", f"{theirs}.bias", "same", layer))

    for i in range(len(e.conv_layers)):
        ours, theirs = f"encoder/frontend/conv{i}", f"{prefix}feature_extractor.conv_layers.{i}"
        found.append(Place(f"{ours}/kernel", f"{theirs}.conv.weight", "transposed"))
        if e.conv_bias:
            found.append(Place(f"{ours}/bias", f"{theirs}.conv.bias"))
        if e.conv_norm == "layer" or i == 0:
            norm(f"{ours}/norm", f"{theirs}.layer_norm")
    norm("encoder/local_norm", f"{prefix}feature_projection.layer_norm")
    dense("encoder/projection", f"{prefix}feature_projection.projection")
    ours, theirs = "encoder/transformer/positional", f"{prefix}encoder.pos_conv_embed"
    if is_stack(config):
        for i in range(e.pos_layers):
            found.append(Place(f"{ours}/kernel{i}", f"{theirs}.layers.{i}.conv.weight", "transposed"))
            found.append(Place(f"{ours}/bias{i}", f"{theirs}.layers.{i}.conv.bias"))
    else:
        found.append(Place(f"{ours}/scale", f"{theirs}.conv.{OLD_WEIGHT_NORM['weight_g']}", "per tap"))
        found.append(Place(f"{ours}/direction", f"{theirs}.conv.{OLD_WEIGHT_NORM['weight_v']}", "transposed"))
        found.append(Place(f"{ours}/bias", f"{theirs}.conv.bias"))
    norm("encoder/transformer/norm", f"{prefix}encoder.layer_norm")
    for layer in range(e.layers):
        for name, here in LAYER.items():
            kind = norm if here.endswith("norm") else dense
            kind(f"encoder/transformer/layers/{here}", f"{prefix}encoder.layers.{layer}.{name}", layer)
    if head == "pretraining":
        found.append(Place("quantizer/codebook", "quantizer.codevectors", "codebook"))
        dense("quantizer/weight_proj", "quantizer.weight_proj")
        dense("target_proj", "project_q")
        dense("context_proj", "project_hid")
    elif head == "ctc":
        dense("head", "lm_head")
    return found


# In


def read(path: pathlib.Path, *, encoder_only: bool = False) -> Imported:
    """The checkpoint in a folder that `save_pretrained` wrote (or a file of weights in it). Raises UserError.

    encoder_only: without the heads, of whatever kind they are.
    """
    folder = path if path.is_dir() else path.parent
    told = _json(folder / "config.json")
    theirs = DEFAULTS | (DATA2VEC if told.get("model_type") == "data2vec-audio" else {}) | told
    check_settings(theirs, folder)
    tensors, notes = read_tensors(path)
    bare, prefix = "encoder.layer_norm.weight" in tensors, f"{theirs['model_type'].replace('-', '_')}."
    if encoder_only and not bare:
        left = sorted(name for name in tensors if not name.startswith(prefix))
        tensors = {name: x for name, x in tensors.items() if name.startswith(prefix)}
        notes += [f"left out, as no part of the encoder: {', '.join(left)}"] if left else []
    head = next((h for h, stem in HEAD_TENSORS.items() if any(n.startswith(stem) for n in tensors)), "encoder")
    prefix = "" if bare and head == "encoder" else prefix
    _check_architecture(theirs, tensors.keys(), prefix, folder)
    if not encoder_only:
        _check_head(theirs, head, folder)
    alphabet = read_alphabet(folder, theirs) if head == "ctc" else None
    config = our_config(theirs, head, _normalize(folder, notes), 0 if alphabet is None else len(alphabet))
    embed = f"{prefix}masked_spec_embed"
    if embed not in tensors and head != "pretraining":  # wav2vec2-base-960h lacks it, for one
        tensors[embed] = np.zeros(theirs["hidden_size"], np.float32)
        notes.append(f"{embed} is not in the file: zeros stand for it, which are only seen where a training masks")
    params, table = take_over(tensors, places(config, prefix, head), parameter_shapes(config), str(path))
    if alphabet is not None:
        params["head"] = _blank_first(params["head"], theirs["pad_token_id"])
    return Imported(config, params, alphabet, notes, table)


def read_tensors(path: pathlib.Path) -> tuple[dict[str, np.ndarray], list[str]]:
    """({name: array}, notes) of a file of weights, or of the one in a folder; old names of weight norm made new."""
    file = path
    if path.is_dir():
        present = [path / name for name in WEIGHTS if (path / name).exists()]
        if not present:
            raise UserError(f"{path} has none of {', '.join(WEIGHTS)}")
        file = present[0]
    parts = [file]
    if file.name.endswith(".index.json"):
        shards = _json(file).get("weight_map")
        if not isinstance(shards, dict) or not all(isinstance(name, str) for name in shards.values()):
            raise UserError(f"{file}: weight_map must name the file of each tensor")
        parts = [file.parent / name for name in sorted(set(shards.values()))]
        if absent := [part.name for part in parts if not part.exists()]:
            raise UserError(f"{file} names files that are not there: {', '.join(absent)}")
    tensors: dict[str, np.ndarray] = {}
    for part in parts:
        for name, array in _tensors_of(part):
            *stem, leaf = name.rsplit(".", 1)
            name = ".".join([*stem, OLD_WEIGHT_NORM.get(leaf, leaf)])
            if name in tensors:
                raise UserError(f"{part}: the tensor {name} is there twice")
            tensors[name] = array
    if not tensors:
        raise UserError(f"{file} holds no tensors")
    if whole := sorted(name for name, x in tensors.items() if x.dtype.kind in "iub"):
        raise UserError(f"{file}: {whole[0]} holds integers; quantised weights cannot be read, take the model in float")
    narrow = sorted({str(x.dtype) for x in tensors.values()} - {"float32"})
    return tensors, [f"tensors of {', '.join(narrow)} were made float32"] if narrow else []


def _tensors_of(file: pathlib.Path) -> Iterator[tuple[str, np.ndarray]]:
    if file.suffix != ".safetensors":
        found = unpickle.load(file)
        if not isinstance(found, dict) or not all(isinstance(x, np.ndarray) for x in found.values()):
            raise UserError(f"{file} holds more than tensors by name; it is not the weights of a model")
        yield from found.items()
        return
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError:
        raise UserError("safetensors is not installed: pip install 'w2v-jax[convert]'") from None
    try:
        with safe_open(file, "np") as opened:
            for name in opened.keys():
                yield name, opened.get_tensor(name)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{file} is damaged or no safetensors file ({error}); copy or download it again") from None


def read_alphabet(folder: pathlib.Path, theirs: Mapping[str, Any]) -> Alphabet:
    """The tokens of vocab.json with the blank, their padding token, first."""
    tokenizer = _json(folder / "tokenizer_config.json") if (folder / "tokenizer_config.json").exists() else {}
    numbers = _json(folder / "vocab.json")
    if (folder / "added_tokens.json").exists():
        numbers |= _json(folder / "added_tokens.json")
    size, blank = theirs.get("vocab_size") or len(numbers), theirs["pad_token_id"]
    tokens = {i: token for token, i in numbers.items() if isinstance(i, int) and i < size}
    if sorted(tokens) != list(range(size)) or blank not in tokens:
        raise UserError(
            f"{folder / 'vocab.json'}: must give each id from 0 to {size - 1} one token; the blank is {blank}"
        )
    delimiter = tokenizer.get("word_delimiter_token", BOUNDARY)
    special = [tokenizer.get(f"{name}_token") for name in ("pad", "unk", "bos", "eos")]
    special = {s.get("content") if isinstance(s, dict) else s for s in special} | {"<s>", "</s>", "<unk>", "<pad>"}
    letters = [BOUNDARY if tokens[i] == delimiter else tokens[i] for i in range(size) if i != blank]
    if twice := sorted({token for token in letters if letters.count(token) > 1}):
        raise UserError(f"{folder / 'vocab.json'}: several ids would be {', '.join(map(repr, twice))}")
    found = alphabet_of((BLANK, *letters), special)
    if not (folder / ALPHABET).exists():
        return found
    ours = Alphabet.load(folder / ALPHABET)  # `convert` wrote it: it also knows how texts were cleaned
    if ours.tokens != found.tokens:
        raise UserError(f"{folder / ALPHABET} has other tokens than vocab.json; remove one of them")
    return ours


def alphabet_of(tokens: tuple[str, ...], special: set[Any]) -> Alphabet:
    """The alphabet of tokens, the blank first; whether they are letters, and of which case, is seen from them."""
    said = [token for token in tokens[1:] if token not in special]
    kind = "letters" if all(len(token) == 1 for token in said) else "symbols"
    text, casing = "".join(said), "keep"
    if kind == "letters" and text.lower() != text.upper():
        casing = {text.lower(): "lower", text.upper(): "upper"}.get(text, "keep")
    return Alphabet(tokens, kind, casing)


def _blank_first(head: dict[str, np.ndarray], blank: int) -> dict[str, np.ndarray]:
    order = [blank, *(i for i in range(len(head["bias"])) if i != blank)]
    return {"kernel": np.ascontiguousarray(head["kernel"][:, order]), "bias": head["bias"][order]}


def _check_head(theirs: Mapping[str, Any], head: str, folder: pathlib.Path) -> None:
    """The head that config.json names must be in the file."""
    for name in theirs.get("architectures") or ():
        for other, stem in HEAD_TENSORS.items():
            if str(name).endswith(HEADS[other]) and head != other:
                raise UserError(
                    f"{folder / 'config.json'}: the architecture is {name}, and no tensor is named {stem}...; "
                    "--encoder-only reads the encoder alone"
                )


def _check_architecture(theirs: Mapping[str, Any], names: Any, prefix: str, folder: pathlib.Path) -> None:
    """What the names of the tensors say must be what config.json says."""
    stem = f"{prefix}feature_extractor.conv_layers"
    layers = {int(m[1]) for name in names if (m := re.match(rf"{re.escape(prefix)}encoder\.layers\.(\d+)\.", name))}
    seen = {
        "feat_extract_norm": "layer" if f"{stem}.1.layer_norm.weight" in names else "group",
        "conv_bias": f"{stem}.0.conv.bias" in names,
        "num_hidden_layers": len(layers),
    }
    if not layers:
        raise UserError(
            f"{folder}: no tensor is named {prefix}encoder.layers...; the weights are of another architecture"
        )
    for key, value in seen.items():
        if theirs[key] != value:
            raise UserError(f"{folder / 'config.json'}: {key} is {theirs[key]!r}, but the tensors say {value!r}")


def _normalize(folder: pathlib.Path, notes: list[str]) -> bool:
    """Whether audio is normalised, by what the extractor or (since transformers 5) the processor was saved with."""
    for name, section in (("preprocessor_config.json", None), ("processor_config.json", "feature_extractor")):
        if not (folder / name).exists():
            continue
        found = _json(folder / name)
        found = found if section is None else found.get(section)
        if not isinstance(found, dict):
            continue
        if (rate := found.get("sampling_rate", SAMPLE_RATE)) != SAMPLE_RATE:
            raise UserError(f"{folder / name}: the model hears {rate} Hz; {SAMPLE_RATE} Hz can be read")
        if not isinstance(normalize := found.get("do_normalize", True), bool):
            raise UserError(f"{folder / name}: do_normalize is {normalize!r}; it must be true or false")
        return normalize
    notes.append("nothing says whether audio is normalised: it is, per utterance, which is the default of transformers")
    return True


def _json(file: pathlib.Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{file} cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise UserError(f"{file} is not readable as JSON ({error})") from None
    if not isinstance(found, dict):
        raise UserError(f"{file} must hold a JSON object")
    return found


# Out


def tensors_of(config: Any, params: PyTree, head: str) -> dict[str, np.ndarray]:
    """Their tensors of a run's parameters for one of HEADS. Raises UserError for what they cannot have."""
    if head == "encoder":
        params = {"encoder": params["encoder"]}
    family = "data2vec_audio." if is_stack(config) else "wav2vec2."
    return give_out(params, places(config, "" if head == "encoder" else family, head))


def their_tokenizer(alphabet: Alphabet) -> dict[str, dict[str, Any]]:
    """{file: content} of a Wav2Vec2CTCTokenizer that gives our ids, the blank as its padding."""
    tokens = ["<pad>", *alphabet.tokens[1:]]
    unknown = "<unk>" if "<unk>" in tokens else "<pad>"
    settings = dict(
        tokenizer_class="Wav2Vec2CTCTokenizer",
        bos_token=None,
        eos_token=None,
        pad_token="<pad>",
        unk_token=unknown,
        word_delimiter_token=BOUNDARY,
        replace_word_delimiter_char=" ",
        do_lower_case=False,
    )
    return {
        "vocab.json": {token: i for i, token in enumerate(tokens)},
        "tokenizer_config.json": settings,
        "special_tokens_map.json": {"pad_token": "<pad>", "unk_token": unknown},
    }
