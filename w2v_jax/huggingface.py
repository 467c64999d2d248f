"""Checkpoints of Hugging Face's transformers: wav2vec 2.0, HuBERT and data2vec-audio of every size, in and out.

Read without torch and without transformers: config.json, weights (safetensors or PyTorch's files, whole or sharded),
preprocessor_config.json, vocab.json. `read` gives what `foreign.write_run` makes a run of; the functions from
`tensors_of` on are the way back. The two architectures are those of their papers: group norm in the first convolution
and post-norm blocks, or layer norm and pre-norm blocks (`do_stable_layer_norm`), convolutions with or without bias.
XLS-R is wav2vec 2.0 in other sizes; data2vec-audio has layer norm, post-norm blocks and a stack of convolutions for
the positions.
"""

from __future__ import annotations

import json
import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from w2v_jax import config as configs
from w2v_jax import unpickle
from w2v_jax.api import PyTree
from w2v_jax.config import UserError
from w2v_jax.data.labels import BLANK, BOUNDARY, Alphabet
from w2v_jax.data.labels import FILE as ALPHABET
from w2v_jax.foreign import Imported, Place, give_out, parameter_shapes, take_over

HEADS = {"pretraining": "ForPreTraining", "encoder": "Model", "ctc": "ForCTC"}
HEAD_TENSORS = {"pretraining": "quantizer.", "ctc": "lm_head."}
"""What the tensors of a head begin with, by which it is known."""
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
OLD_WEIGHT_NORM = {"weight_g": "parametrizations.weight.original0", "weight_v": "parametrizations.weight.original1"}

DEFAULTS: dict[str, Any] = dict(
    hidden_size=768,
    num_hidden_layers=12,
    num_attention_heads=12,
    intermediate_size=3072,
    conv_dim=[512] * 7,
    conv_kernel=[10, 3, 3, 3, 3, 2, 2],
    conv_stride=[5, 2, 2, 2, 2, 2, 2],
    conv_bias=False,
    feat_extract_norm="group",
    do_stable_layer_norm=False,
    num_conv_pos_embeddings=128,
    num_conv_pos_embedding_groups=16,
    num_codevector_groups=2,
    num_codevectors_per_group=320,
    codevector_dim=256,
    proj_codevector_dim=256,
    num_negatives=100,
    contrastive_logits_temperature=0.1,
    diversity_loss_weight=0.1,
    mask_time_prob=0.05,
    mask_time_length=10,
    mask_time_min_masks=2,
    mask_feature_prob=0.0,
    mask_feature_length=10,
    pad_token_id=0,
)
"""Of Wav2Vec2Config: what a config.json without a key means."""
DATA2VEC: dict[str, Any] = dict(feat_extract_norm="layer", num_conv_pos_embeddings=5, conv_pos_kernel_size=19)
"""Of Data2VecAudioConfig, where it differs: its positions are those of so many convolutions."""
FAMILIES = ("wav2vec2", "hubert", "data2vec-audio")
ONLY: dict[str, tuple[Any, str]] = dict(
    hidden_act=("gelu", "an activation"),
    feat_extract_activation=("gelu", "an activation of the convolutions"),
    layer_norm_eps=(1e-5, "a constant of the norms"),
    add_adapter=(False, "adapter layers"),
    adapter_attn_dim=(None, "adapters in the attention layers"),
    feat_proj_layer_norm=(True, "a projection without norm"),
    conv_pos_batch_norm=(False, "a batch norm before the positional convolution"),
)
"""Settings that this package has one value of: its value, and what another one would mean."""
REFUSED = {
    "wavlm": "its attention has a gated relative position bias",
    "wav2vec2-conformer": "its blocks are Conformers",
    "wav2vec2-bert": "its blocks are Conformers over log-mel features",
    "unispeech-sat": "its heads are others",
}
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


def is_stack(config: Any) -> bool:
    """Whether the positions are data2vec's."""
    return config.encoder.pos_layers > 1


def their_class(config: Any, head: str) -> str:
    """The name of the class in transformers of a run for one of HEADS."""
    return ("Data2VecAudio" if is_stack(config) else "Wav2Vec2") + HEADS[head]


# In


def read(path: pathlib.Path, *, encoder_only: bool = False) -> Imported:
    """The checkpoint in a folder that `save_pretrained` wrote (or a file of weights in it). Raises UserError.

    encoder_only: without the heads, of whatever kind they are.
    """
    folder = path if path.is_dir() else path.parent
    told = _json(folder / "config.json")
    theirs = DEFAULTS | (DATA2VEC if told.get("model_type") == "data2vec-audio" else {}) | told
    _check_settings(theirs, folder)
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


def our_config(theirs: Mapping[str, Any], head: str, normalize: bool, outputs: int) -> Any:
    """The sections of the config that the method of the head reads."""
    import ml_collections

    layers = tuple(zip(theirs["conv_dim"], theirs["conv_kernel"], theirs["conv_stride"], strict=True))
    encoder = dict(
        conv_layers=tuple(tuple(int(x) for x in layer) for layer in layers),
        conv_norm=theirs["feat_extract_norm"],
        conv_bias=theirs["conv_bias"],
        conv_grad_scale=1.0,
        padding_aware=True,
        width=theirs["hidden_size"],
        layers=theirs["num_hidden_layers"],
        heads=theirs["num_attention_heads"],
        mlp=theirs["intermediate_size"],
        pre_norm=theirs["do_stable_layer_norm"],
        pos_kernel=theirs.get("conv_pos_kernel_size", theirs["num_conv_pos_embeddings"]),
        pos_layers=theirs["num_conv_pos_embeddings"] if "conv_pos_kernel_size" in theirs else 1,
        pos_groups=theirs["num_conv_pos_embedding_groups"],
        dropout=0.0,
        attention_dropout=0.0,
        mlp_dropout=0.0,
        input_dropout=0.0,
        layer_drop=0.0,
        attention="auto",
        positional="auto",
        scan_layers=True,
        remat_frontend=False,
        remat_layers=False,
    )
    data = dict(unit_seconds=1.0, bucket_seconds=(1.0,), normalize=normalize, vocab_size=0)
    config: dict[str, Any] = dict(method="ctc" if head == "ctc" else "wav2vec2", seed=1, data=data, encoder=encoder)
    config["train"] = dict(dtype="float32")
    if head == "ctc":
        encoder |= dict(kind="wav2vec2", frozen=False, frozen_steps=0)
        acoustic = dict(kind="linear", input="context", standardise=False, head_dropout=0.0, outputs=outputs)
        time = dict(time_prob=theirs["mask_time_prob"], time_length=theirs["mask_time_length"])
        time |= dict(time_spans=theirs["mask_time_min_masks"])
        channel = dict(channel_prob=theirs["mask_feature_prob"], channel_length=theirs["mask_feature_length"])
        config |= dict(acoustic=acoustic, masking=time | channel)
    else:
        has = head == "pretraining"
        config["quantizer"] = dict(
            groups=theirs["num_codevector_groups"] if has else 0,
            codes=theirs["num_codevectors_per_group"],
            dim=theirs["codevector_dim"],
            temperature=(2.0, 0.5, 0.999995),
            input_dropout=0.0,
        )
        config["masking"] = dict(prob=0.65, length=theirs["mask_time_length"], min_spans=2)
        config["loss"] = dict(
            proj=theirs["proj_codevector_dim"],
            negatives=theirs["num_negatives"],
            cross_negatives=0,
            codebook_negatives=0,
            temperature=theirs["contrastive_logits_temperature"],
            diversity_weight=theirs["diversity_loss_weight"],
            penalty_weight=0.0,
        )
    return ml_collections.ConfigDict(config).lock()


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


def _check_settings(theirs: Mapping[str, Any], folder: pathlib.Path) -> None:
    kind = theirs.get("model_type", "")
    if kind in REFUSED:
        raise UserError(f"{folder}: a model of type {kind} cannot be read: {REFUSED[kind]}")
    if kind not in FAMILIES:
        raise UserError(f"{folder / 'config.json'}: model_type is {kind!r}; {', '.join(FAMILIES)} can be read")
    for key, (value, meaning) in ONLY.items():
        if theirs.get(key, value) != value:
            raise UserError(f"{folder / 'config.json'}: {key}={theirs[key]!r} ({meaning}) is not in this package")
    check_values(theirs, str(folder / "config.json"))
    if kind == "data2vec-audio" and theirs["num_conv_pos_embeddings"] < 2:
        raise UserError(f"{folder / 'config.json'}: num_conv_pos_embeddings is below 2, where data2vec has a stack")
    if theirs["feat_extract_norm"] not in ("group", "layer"):
        raise UserError(f"{folder / 'config.json'}: feat_extract_norm is {theirs['feat_extract_norm']!r}")


def check_values(theirs: Mapping[str, Any], where: str) -> None:
    """Raises UserError for a setting of another type than its default, out of range, or that another one rules out."""
    absent = ("conv_pos_kernel_size", "vocab_size", "pad_token_id")  # in models that need none of them
    for key, default in (DEFAULTS | {"conv_pos_kernel_size": 19, "vocab_size": 32}).items():
        if key in absent and theirs.get(key) is None:
            continue
        value, least = theirs[key], 0 if key in ("pad_token_id", "mask_time_min_masks") else 1
        whole = lambda x, least=least: isinstance(x, int) and not isinstance(x, bool) and x >= least
        fits, wanted = {
            bool: (isinstance(value, bool), "true or false"),
            int: (whole(value), f"a whole number of at least {least}"),
            float: (
                isinstance(value, (int, float)) and not isinstance(value, bool) and value >= 0,
                "a number from 0 on",
            ),
            str: (isinstance(value, str), "a word"),
            list: (isinstance(value, (list, tuple)) and len(value) > 0 and all(map(whole, value)), "whole numbers"),
        }[type(default)]
        if not fits:
            raise UserError(f"{where}: {key} is {value!r}; it must be {wanted}")
    sizes = {key: len(theirs[key]) for key in ("conv_dim", "conv_kernel", "conv_stride")}
    if len(set(sizes.values())) > 1:
        raise UserError(f"{where}: not as many values each: {', '.join(f'{k} has {n}' for k, n in sizes.items())}")
    for key in ("num_attention_heads", "num_conv_pos_embedding_groups"):
        if theirs["hidden_size"] % theirs[key]:
            raise UserError(f"{where}: {key}={theirs[key]} does not divide hidden_size={theirs['hidden_size']}")


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
        if (rate := found.get("sampling_rate", configs.SAMPLE_RATE)) != configs.SAMPLE_RATE:
            raise UserError(f"{folder / name}: the model hears {rate} Hz; {configs.SAMPLE_RATE} Hz can be read")
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


def check_export(config: Any, head: str) -> None:
    """Raises UserError, with the reason, for a run that transformers has no model for."""
    e = config.encoder
    if config.method not in ("wav2vec2", "ctc") or (config.method == "ctc" and e.kind != "wav2vec2"):
        raise UserError(f"transformers has no model for method {config.method!r}; wav2vec 2.0 and CTC on it can go out")
    if is_stack(config) and (e.conv_norm != "layer" or e.pre_norm or head == "pretraining"):
        raise UserError(
            "encoder.pos_layers above 1 is data2vec-audio in transformers, which has layer norm in the convolutions, "
            "post-norm blocks and no heads for pretraining; --encoder-only takes an encoder of that kind out"
        )
    if config.method == "ctc" and head != "encoder":
        a = config.acoustic
        wanted = {"kind": "linear", "input": "context", "standardise": False}
        if wrong := {key: a[key] for key, value in wanted.items() if a[key] != value}:
            raise UserError(
                f"Wav2Vec2ForCTC is one linear layer on the last layer's output; this run has {wrong} in its acoustic "
                "section. --encoder-only takes its encoder out"
            )


def their_config(config: Any, head: str) -> dict[str, Any]:
    """config.json of the model."""
    e = config.encoder
    channels, kernels, strides = zip(*e.conv_layers, strict=True)
    found: dict[str, Any] = dict(
        architectures=[their_class(config, head)],
        model_type="wav2vec2",
        dtype="float32",
        hidden_size=e.width,
        num_hidden_layers=e.layers,
        num_attention_heads=e.heads,
        intermediate_size=e.mlp,
        hidden_act="gelu",
        layer_norm_eps=1e-5,
        feat_extract_activation="gelu",
        feat_extract_norm=e.conv_norm,
        do_stable_layer_norm=e.pre_norm,
        conv_dim=channels,
        conv_kernel=kernels,
        conv_stride=strides,
        conv_bias=e.conv_bias,
        num_conv_pos_embeddings=e.pos_kernel,
        num_conv_pos_embedding_groups=e.pos_groups,
        num_feat_extract_layers=len(channels),
        hidden_dropout=e.dropout,
        activation_dropout=e.mlp_dropout,
        attention_dropout=e.attention_dropout,
        feat_proj_dropout=e.input_dropout,
        layerdrop=e.layer_drop,
    )
    if is_stack(config):
        del found["feat_extract_norm"], found["do_stable_layer_norm"]
        found |= dict(model_type="data2vec-audio", num_conv_pos_embeddings=e.pos_layers)
        found |= dict(conv_pos_kernel_size=e.pos_kernel)
    m = config.masking
    if "time_prob" in m:
        found |= dict(mask_time_prob=m.time_prob, mask_time_length=m.time_length)
        found |= dict(mask_time_min_masks=m.time_spans)
        found |= dict(mask_feature_prob=m.channel_prob, mask_feature_length=m.channel_length)
    else:
        found |= dict(mask_time_prob=m.prob, mask_time_length=m.length, mask_time_min_masks=m.min_spans)
    if not found["mask_time_prob"] and not found.get("mask_feature_prob", 0.0):
        found["mask_time_prob"] = 1e-9  # without a mask the model would not have the learned vector
    if head == "pretraining":
        q, contrast = config.quantizer, config.loss
        found |= dict(num_codevector_groups=q.groups, num_codevectors_per_group=q.codes, codevector_dim=q.dim)
        found |= dict(proj_codevector_dim=contrast.proj, num_negatives=contrast.negatives)
        found |= dict(contrastive_logits_temperature=contrast.temperature, feat_quantizer_dropout=q.input_dropout)
        found |= dict(diversity_loss_weight=contrast.diversity_weight)
    if head == "ctc":
        found |= dict(vocab_size=config.acoustic.outputs, pad_token_id=0, bos_token_id=None, eos_token_id=None)
        found |= dict(ctc_loss_reduction="sum", ctc_zero_infinity=True, final_dropout=config.acoustic.head_dropout)
    return found


def their_preprocessor(config: Any) -> dict[str, Any]:
    """preprocessor_config.json: a model with group norm was trained without attention masks and takes none."""
    return dict(
        feature_extractor_type="Wav2Vec2FeatureExtractor",
        feature_size=1,
        sampling_rate=configs.SAMPLE_RATE,
        padding_side="right",
        padding_value=0.0,
        do_normalize=bool(config.data.normalize),
        return_attention_mask=config.encoder.conv_norm == "layer",
    )


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
