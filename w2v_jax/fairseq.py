"""Checkpoints of fairseq: wav2vec, vq-wav2vec, and wav2vec 2.0 pretrained or fine-tuned by CTC, from `.pt` files.

Read without fairseq and without running anything in the file (`unpickle.py`). The settings stand in the checkpoint, as
`args` (old) or `cfg` (new); the letters of a fine-tuned model do not, they come from its dictionary (dict.ltr.txt).
Optimizer, schedule and data are not read: a run that goes on from here starts its own.
"""

from __future__ import annotations

import ast
import functools
import pathlib
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from w2v_jax import huggingface, huggingface_config, unpickle
from w2v_jax.config import UserError
from w2v_jax.data.labels import BLANK, Alphabet
from w2v_jax.foreign import Imported, Place, parameter_shapes, take_over

SPECIAL = ("<pad>", "</s>", "<unk>")
"""What stands between the blank (their <s>) and the symbols of a dictionary."""
WAV2VEC_ONLY = dict(
    aggregator="cnn",
    residual_scale=0.5,
    skip_connections_feat=False,
    no_conv_bias=False,
    non_affine_group_norm=False,
    project_features="none",
    sample_distance=None,
)
"""Settings of wav2vec that this package has one value of."""
WAV2VEC2_ONLY = dict(activation_fn="gelu", layer_type="transformer", pos_conv_depth=1, quantize_input=False)
"""The same of wav2vec 2.0; and of its pretraining:"""
PRETRAINING_ONLY = dict(
    quantize_targets=True,
    same_quantizer=False,
    target_glu=False,
    quantizer_depth=1,
    negatives_from_everywhere=False,
)
IGNORED = {r"(^|\.)_ema$": "a teacher's copy", r"(^|\.)num_updates$": "a counter", r"\.version$": "a version number"}

WAV2VEC2_NAMES = (
    (r"masked_spec_embed", "mask_emb"),
    (r"feature_extractor\.conv_layers\.(\d+)\.conv\.", r"feature_extractor.conv_layers.\1.0."),
    (r"feature_projection\.layer_norm\.", "layer_norm."),
    (r"feature_projection\.projection\.", "post_extract_proj."),
    (r"encoder\.pos_conv_embed\.conv\.parametrizations\.weight\.original0", "encoder.pos_conv.0.weight_g"),
    (r"encoder\.pos_conv_embed\.conv\.parametrizations\.weight\.original1", "encoder.pos_conv.0.weight_v"),
    (r"encoder\.pos_conv_embed\.conv\.", "encoder.pos_conv.0."),
    (r"encoder\.layers\.(\d+)\.attention\.", r"encoder.layers.\1.self_attn."),
    (r"encoder\.layers\.(\d+)\.layer_norm\.", r"encoder.layers.\1.self_attn_layer_norm."),
    (r"encoder\.layers\.(\d+)\.feed_forward\.intermediate_dense\.", r"encoder.layers.\1.fc1."),
    (r"encoder\.layers\.(\d+)\.feed_forward\.output_dense\.", r"encoder.layers.\1.fc2."),
    (r"quantizer\.codevectors", "quantizer.vars"),
    (r"project_hid\.", "final_proj."),
    (r"lm_head\.", "w2v_encoder.proj."),
)
"""transformers' name -> the reference's; names that are not here are the same."""


def read(path: pathlib.Path, dictionary: pathlib.Path | None = None) -> Imported:
    """The checkpoint in a `.pt` file; dictionary: of a fine-tuned model, its dict.*.txt. Raises UserError."""
    found = unpickle.load(path)
    if not isinstance(found, dict) or not isinstance(found.get("model"), dict):
        raise UserError(f"{path} has no 'model': it is not a checkpoint of fairseq")
    tensors = dict(found["model"])
    if odd := [str(name) for name, x in tensors.items() if not isinstance(x, np.ndarray)]:
        raise UserError(f"{path}: in its model {', '.join(odd[:3])} is no tensor; nothing was written")
    settings = settings_of(found, path)
    notes = []
    for pattern, reason in IGNORED.items():
        for name in [name for name in tensors if re.search(pattern, name)]:
            del tensors[name]
            notes.append(f"{name} was left out: {reason}")
    if narrow := sorted({str(x.dtype) for x in tensors.values()} - {"float32"}):
        notes.append(f"tensors of {', '.join(narrow)} were made float32")
    alphabet = None
    if any(name.startswith("w2v_encoder.") for name in tensors):
        if dictionary is None:
            raise UserError(f"{path} is fine-tuned, and its letters are not in it: --dictionary dict.ltr.txt")
        alphabet = read_dictionary(dictionary)
        config = _from_settings(wav2vec2_config, path, settings, len(alphabet))
        places = wav2vec2_places(config, "w2v_encoder.w2v_model.", "ctc")
    elif "post_extract_proj.weight" in tensors or any(name.startswith("encoder.layers.") for name in tensors):
        config = _from_settings(wav2vec2_config, path, settings)
        places = wav2vec2_places(config, "", "pretraining")
    elif any(name.startswith("feature_aggregator.") for name in tensors):
        config = _from_settings(wav2vec_config, path, settings)
        places = wav2vec_places(config)
    else:
        raise UserError(f"{path}: neither wav2vec, vq-wav2vec nor wav2vec 2.0; it has {', '.join(sorted(tensors)[:3])}")
    params, table = take_over(tensors, places, parameter_shapes(config), str(path))
    return Imported(config, params, alphabet, notes, table)


def _from_settings(make: Callable[..., Any], path: pathlib.Path, *given: Any) -> Any:
    """The config; settings of another type than they should be are a UserError with the file."""
    try:
        return make(*given)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except (TypeError, ValueError, SyntaxError, AttributeError) as error:
        raise UserError(f"{path}: its settings cannot be used ({error})") from None


def settings_of(found: Mapping[str, Any], path: pathlib.Path) -> dict[str, Any]:
    """The flat settings of the model and of its task, of a fine-tuned model those of the pretraining inside it."""
    if found.get("cfg") is not None:
        cfg = unpickle.plain(found["cfg"])
    elif found.get("args") is not None:
        cfg = {"model": unpickle.plain(found["args"])}
    else:
        raise UserError(f"{path} has neither 'cfg' nor 'args': its settings are not known")
    model, task, criterion = (cfg.get(key) or {} for key in ("model", "task", "criterion"))
    inner = model.get("w2v_args")
    if isinstance(inner, dict):
        deep = inner.get("model", inner)
        task = (inner.get("task") or {}) | task
        model = deep | {k: v for k, v in model.items() if k not in deep and k != "w2v_args"}
    weights = {"loss_weights": criterion["loss_weights"]} if criterion.get("loss_weights") else {}
    flat: dict[str, Any] = weights | dict(model)
    given = [section["normalize"] for section in (task, model) if isinstance(section.get("normalize"), bool)]
    return flat | {"normalize": bool(given and given[0])}  # elsewhere "${task.normalize}" may stand


def conv_layers(text: Any) -> tuple[tuple[int, int, int], ...]:
    """The tuples of "[(32,10,5)]+[(32,3,2)]*4+..." without evaluating it as code. Raises UserError."""
    layers: list[Any] = []
    try:
        for listed, times in re.findall(r"(\[[^\]]*\])(?:\s*\*\s*(\d+))?", str(text)):
            layers += [tuple(int(x) for x in layer) for layer in ast.literal_eval(listed) * int(times or 1)]
    except (ValueError, SyntaxError, TypeError):
        layers = []
    if not layers or any(len(layer) != 3 for layer in layers):
        raise UserError(f"the convolutions {text!r} cannot be read; expected e.g. [(512, 10, 5)] + [(512, 3, 2)] * 4")
    return tuple(layers)


def read_dictionary(path: pathlib.Path) -> Alphabet:
    """The alphabet of a dict.*.txt, a symbol and a count in every line; the blank is their <s>."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--dictionary {path} cannot be read ({error})") from None
    symbols = [line.rsplit(" ", 1)[0] for line in lines if line.strip()]
    if not symbols or any(not re.fullmatch(r".+ \d+", line) for line in lines if line.strip()):
        raise UserError(f"--dictionary {path}: every line must be a symbol, a space and a number")
    return huggingface.alphabet_of((BLANK, *SPECIAL, *symbols), {*SPECIAL})


# wav2vec 2.0


def wav2vec2_places(config: Any, prefix: str, head: str) -> list[Place]:
    """Where each parameter stands; prefix is that of the encoder."""
    places = []
    for place in huggingface.places(config, "", head):
        name = place.theirs
        for pattern, replacement in WAV2VEC2_NAMES:
            name, count = re.subn(f"^{pattern}", replacement, name)
            if count:
                break
        norm = "2.1" if config.encoder.conv_norm == "layer" else "2"
        name = re.sub(r"^(feature_extractor\.conv_layers\.\d+)\.layer_norm\.", rf"\1.{norm}.", name)
        places.append(place._replace(theirs=name if name.startswith("w2v_encoder.") else f"{prefix}{name}"))
    return places


def wav2vec2_config(settings: Mapping[str, Any], outputs: int = 0) -> Any:
    """The sections of the config that the method reads; with outputs that of a recogniser."""
    one = functools.partial(_setting, settings)
    _check_only(settings, WAV2VEC2_ONLY if outputs else WAV2VEC2_ONLY | PRETRAINING_ONLY)
    layers = conv_layers(one("conv_feature_layers", "[(512, 10, 5)] + [(512, 3, 2)] * 4 + [(512,2,2)] + [(512,2,2)]"))
    final = one("final_dim", 0) or one("encoder_embed_dim", 768)
    theirs: dict[str, Any] = huggingface_config.DEFAULTS | dict(
        conv_dim=[c for c, _, _ in layers],
        conv_kernel=[k for _, k, _ in layers],
        conv_stride=[s for _, _, s in layers],
        feat_extract_norm="layer" if one("extractor_mode", "default") == "layer_norm" else "group",
        conv_bias=bool(one("conv_bias", False)),
        hidden_size=one("encoder_embed_dim", 768),
        num_hidden_layers=one("encoder_layers", 12),
        num_attention_heads=one("encoder_attention_heads", 12),
        intermediate_size=one("encoder_ffn_embed_dim", 3072),
        do_stable_layer_norm=bool(one("layer_norm_first", False)),
        num_conv_pos_embeddings=one("conv_pos", 128),
        num_conv_pos_embedding_groups=one("conv_pos_groups", 16),
        num_codevector_groups=one("latent_groups", 2),
        num_codevectors_per_group=one("latent_vars", 320),
        codevector_dim=one("latent_dim", 0) or final,
        proj_codevector_dim=final,
        num_negatives=one("num_negatives", 100),
        contrastive_logits_temperature=one("logit_temp", 0.1),
        mask_time_prob=one("mask_prob", 0.65),
        mask_time_length=one("mask_length", 10),
        mask_feature_prob=one("mask_channel_prob", 0.0),
        mask_feature_length=one("mask_channel_length", 64),
    )
    huggingface_config.check_values(theirs, "the settings of the checkpoint, by the names of transformers")
    config = huggingface_config.our_config(
        theirs, "ctc" if outputs else "pretraining", bool(settings["normalize"]), outputs
    )
    if not outputs:
        with config.unlocked():
            config.quantizer.temperature = _numbers(one("latent_temp", (2.0, 0.5, 0.999995)))
            config.quantizer.input_dropout = float(one("dropout_features", 0.0))
            config.encoder.conv_grad_scale = float(one("feature_grad_mult", 1.0))
            config.masking.prob = float(theirs["mask_time_prob"])
            config.loss.cross_negatives = int(one("cross_sample_negatives", 0))
            config.loss.codebook_negatives = int(one("codebook_negatives", 0))
            weights = _numbers(one("loss_weights", (0.1, 10.0)))
            config.loss.diversity_weight, config.loss.penalty_weight = weights
    return config


# wav2vec and vq-wav2vec


def wav2vec_places(config: Any) -> list[Place]:
    """Where each parameter of wav2vec or vq-wav2vec stands."""
    e, found = config.encoder, []

    def layer(ours: str, theirs: str, bias: bool, conv: int, norm: int) -> None:
        found.append(Place(f"{ours}/kernel", f"{theirs}.{conv}.weight", "transposed"))
        if bias:
            found.append(Place(f"{ours}/bias", f"{theirs}.{conv}.bias"))
        found.append(Place(f"{ours}/norm/scale", f"{theirs}.{norm}.weight"))
        found.append(Place(f"{ours}/norm/bias", f"{theirs}.{norm}.bias"))

    for i in range(len(e.conv_layers)):
        layer(f"encoder/frontend/conv{i}", f"feature_extractor.conv_layers.{i}", False, 0, 2)
    for i in range(len(e.context_kernels)):
        layer(f"encoder/aggregator/conv{i}", f"feature_aggregator.conv_layers.{i}", True, 1, 3)
    steps = "wav2vec_predictions.project_to_steps"
    found += [Place("predictor/kernel", f"{steps}.weight", "steps"), Place("predictor/bias", f"{steps}.bias")]
    if config.method == "wav2vec":
        return found
    part = "vector_quantizer"
    if config.quantizer.kind == "kmeans":
        found += [Place("quantizer/codebook", f"{part}.embedding", "entries")]
        found += [Place("quantizer/projection", f"{part}.projection.0.weight", "grouped")]
        found += [Place("quantizer/norm/scale", f"{part}.projection.1.weight")]
        return [*found, Place("quantizer/norm/bias", f"{part}.projection.1.bias")]
    found.append(Place("quantizer/codebook", f"{part}.vars", "codebook"))
    dense = {"weight_proj": f"{part}.weight_proj"}
    if config.quantizer.depth == 2:
        dense = {"hidden": f"{part}.weight_proj.0.0", "weight_proj": f"{part}.weight_proj.1"}
    for ours, theirs in dense.items():
        found.append(Place(f"quantizer/{ours}/kernel", f"{theirs}.weight", "transposed"))
        found.append(Place(f"quantizer/{ours}/bias", f"{theirs}.bias"))
    return found


def wav2vec_config(settings: Mapping[str, Any]) -> Any:
    """The sections of the config that the method reads. Raises UserError for what this package does not have."""
    import ml_collections

    one = functools.partial(_setting, settings)
    kind = one("vq_type", "none")
    _check_only(settings, WAV2VEC_ONLY)
    layers = conv_layers(one("conv_feature_layers", ""))
    channels, groups, codes = layers[-1][0], int(one("vq_groups", 2)), int(one("vq_vars", 320))
    weights = one("loss_weights", None) or [0.0]
    offset = str(one("offset", "auto"))
    if offset == "0":
        raise UserError("offset=0 (the first step predicts the present frame) is not in this package")
    encoder = dict(
        conv_layers=layers,
        conv_norm="utterance",
        conv_bias=False,
        activation=str(one("activation", "relu")),
        log_compression=bool(one("log_compression", False)),
        padding_aware=True,
        context="conv",
        context_kernels=tuple(k for _, k, _ in conv_layers(one("conv_aggregator_layers", ""))),
        context_skip=bool(one("skip_connections_agg", False)),
        context_zero_pad=bool(one("agg_zero_pad", False)),
        width=channels,
        layers=1,
        convolution="auto",
        remat_frontend="none",
    )
    loss = dict(
        kind="infonce" if one("infonce", False) else "bce",
        balanced=bool(one("balanced_classes", False)),
        steps=int(one("prediction_steps", 12)),
        offset=0 if offset == "auto" else int(offset),
        negatives=int(one("num_negatives", 10)),
        cross_negatives=int(one("cross_sample_negatives", 0)),
    )
    data = dict(unit_seconds=1.0, bucket_seconds=(1.0,), normalize=bool(settings["normalize"]))
    config: dict[str, Any] = dict(method="wav2vec", seed=1, data=data, encoder=encoder, loss=loss)
    config["train"] = dict(dtype="float32")
    if kind != "none":
        config |= dict(method="vq_wav2vec")
        config["quantizer"] = dict(
            kind=str(kind),
            groups=groups,
            codes=codes,
            shared=bool(one("combine_groups", False)),
            depth=int(one("vq_depth", 1)),
            temperature=_numbers(one("vq_temp", (2.0, 0.5, 0.999995))),
            restart=0.0,
            init_iterations=0,
        )
        loss |= dict(diversity_weight=float(weights[0]) * groups * codes if kind == "gumbel" else 0.0)
        loss |= dict(commitment_weight=float(weights[0]), commitment_gamma=float(one("vq_gamma", 0.25)))
    return ml_collections.ConfigDict(config).lock()


def _check_only(settings: Mapping[str, Any], only: Mapping[str, Any]) -> None:
    for key, value in only.items():
        if (found := _setting(settings, key, value)) != value:
            raise UserError(f"{key}={found!r} cannot be read; only {value!r} is known here")


def _setting(settings: Mapping[str, Any], key: str, default: Any) -> Any:
    """The setting, or the default where it is absent or None."""
    found = settings.get(key)
    return default if found is None else found


def _numbers(found: Any) -> tuple[float, ...]:
    return tuple(float(x) for x in (ast.literal_eval(found) if isinstance(found, str) else found))
