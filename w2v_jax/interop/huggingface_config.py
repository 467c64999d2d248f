"""The settings of a model: config.json of transformers to a config of this package, and back.

There are two architectures, as in the papers: group norm in the first convolution with post-norm blocks, or layer norm
with pre-norm blocks (`do_stable_layer_norm`). Convolutions may have biases. XLS-R is wav2vec 2.0 in other sizes.
data2vec-audio has layer norm, post-norm blocks, and a stack of convolutions for the positions. WavLM has a gated bias
of the distance in attention.
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping
from typing import Any

from w2v_jax import methods
from w2v_jax.core.cli import UserError
from w2v_jax.core.config import Config, as_config
from w2v_jax.core.text import read_text, wrong_content
from w2v_jax.core.units import SAMPLE_RATE
from w2v_jax.nn.encoders import Wav2Vec2Encoder

HEADS = {"pretraining": "ForPreTraining", "encoder": "Model", "ctc": "ForCTC"}
"""Our word for a head -> the end of the name of their class."""
DEFAULTS: dict[str, Any] = dict(hidden_size=768, num_hidden_layers=12, num_attention_heads=12, intermediate_size=3072)
DEFAULTS |= dict(conv_dim=[512] * 7, conv_kernel=[10, 3, 3, 3, 3, 2, 2], conv_stride=[5, 2, 2, 2, 2, 2, 2])
DEFAULTS |= dict(conv_bias=False, feat_extract_norm="group", do_stable_layer_norm=False)
DEFAULTS |= dict(num_conv_pos_embeddings=128, num_conv_pos_embedding_groups=16)
DEFAULTS |= dict(num_codevector_groups=2, num_codevectors_per_group=320, codevector_dim=256, proj_codevector_dim=256)
DEFAULTS |= dict(num_negatives=100, contrastive_logits_temperature=0.1, diversity_loss_weight=0.1)
DEFAULTS |= dict(mask_time_prob=0.05, mask_time_length=10, mask_time_min_masks=2)
DEFAULTS |= dict(mask_feature_prob=0.0, mask_feature_length=10, pad_token_id=0)
"""The defaults of Wav2Vec2Config: the values of keys that a config.json lacks."""
DATA2VEC: dict[str, Any] = dict(feat_extract_norm="layer", num_conv_pos_embeddings=5, conv_pos_kernel_size=19)
"""The defaults of Data2VecAudioConfig that differ. Its num_conv_pos_embeddings is a number of convolutions."""
WAVLM: dict[str, Any] = dict(num_buckets=320, max_bucket_distance=800)
"""The defaults that WavLMConfig has in addition: the buckets of its bias, and the distance of the last one."""
FAMILIES = ("wav2vec2", "hubert", "data2vec-audio", "wavlm")
SUPPORTED: dict[str, Any] = dict(hidden_act="gelu", feat_extract_activation="gelu", layer_norm_eps=1e-5)
SUPPORTED |= dict(add_adapter=False, adapter_attn_dim=None, feat_proj_layer_norm=True, conv_pos_batch_norm=False)
"""The settings for which only one value is supported."""
REFUSED = {
    "wav2vec2-conformer": "its blocks are Conformers",
    "wav2vec2-bert": "its blocks are Conformers over log-mel features",
    "unispeech-sat": "its heads are different",
}
ENCODER = dict(hidden_size="width", num_hidden_layers="layers", num_attention_heads="heads", intermediate_size="mlp")
ENCODER |= dict(feat_extract_norm="conv_norm", conv_bias="conv_bias", do_stable_layer_norm="pre_norm")
ENCODER |= dict(num_conv_pos_embedding_groups="pos_groups")
QUANTIZER = dict(num_codevector_groups="groups", num_codevectors_per_group="codes", codevector_dim="dim")
LOSS = dict(proj_codevector_dim="proj", num_negatives="negatives", contrastive_logits_temperature="temperature")
LOSS |= dict(diversity_loss_weight="diversity_weight")
MASKING = dict(mask_time_prob="prob", mask_time_length="length", mask_time_min_masks="min_spans")
CTC_MASKING = dict(mask_time_prob="time_prob", mask_time_length="time_length", mask_time_min_masks="time_spans")
CTC_MASKING |= dict(mask_feature_prob="channel_prob", mask_feature_length="channel_length")
"""Their setting -> our key, by section of the config; masking differs between pretraining and CTC."""


def is_stack(config: Config) -> bool:
    """Whether the positions come from a stack of convolutions, as in data2vec."""
    return config.encoder.pos_layers > 1


def is_relative(config: Config) -> bool:
    """Whether attention has a gated bias of the distance, as in WavLM."""
    return config.encoder.relative_buckets > 0


def family_of(config: Config) -> str:
    """The `model_type` in transformers of a run's encoder."""
    if is_stack(config):
        return "data2vec-audio"
    return "wavlm" if is_relative(config) else "hubert" if config.method == "hubert" else "wav2vec2"


def their_class(config: Config, head: str) -> str:
    """The name of the class in transformers for a run with one of HEADS."""
    names = {"data2vec-audio": "Data2VecAudio", "wavlm": "WavLM", "hubert": "Hubert", "wav2vec2": "Wav2Vec2"}
    return names[family_of(config)] + HEADS[head]


# From transformers


def read_json(file: pathlib.Path) -> dict[str, Any]:
    """The JSON object in a file of UTF-8, with or without a byte order mark. Raises UserError."""
    try:
        content = json.loads(read_text(file))
    except ValueError as error:
        raise wrong_content(file, f"is not valid JSON ({error})") from None
    if not isinstance(content, dict):
        raise UserError(f"{file} must contain a JSON object")
    return content


def check_settings(settings: Mapping[str, Any], folder: pathlib.Path) -> None:
    """Raises UserError for the config.json of a folder whose model is not supported."""
    file, family = folder / "config.json", settings.get("model_type", "")
    if family in REFUSED:
        raise UserError(f"{folder}: models of type {family} are not supported: {REFUSED[family]}")
    if family not in FAMILIES:
        raise UserError(f"{file}: model_type is {family!r}; supported are {', '.join(FAMILIES)}")
    check_supported(settings, SUPPORTED, source=f"{file}: ")
    check_ranges(settings, str(file))
    if family == "data2vec-audio" and settings["num_conv_pos_embeddings"] < 2:
        raise UserError(f"{file}: num_conv_pos_embeddings must be at least 2 in data2vec-audio")
    if settings["feat_extract_norm"] not in ("group", "layer"):
        raise UserError(f"{file}: feat_extract_norm is {settings['feat_extract_norm']!r}; it must be group or layer")


def check_supported(settings: Mapping[str, Any], supported: Mapping[str, Any], *, source: str = "") -> None:
    """Raises UserError, which starts with `source`, for a setting whose value is not the supported one."""
    for key, value in supported.items():
        if settings.get(key, value) != value:
            raise UserError(f"{source}{key}={settings[key]!r} is not supported; only {value!r} is")


def check_ranges(settings: Mapping[str, Any], source: str) -> None:
    """Raises UserError, which starts with `source`, for a setting of the wrong type, out of range, or inconsistent."""
    optional = ("conv_pos_kernel_size", "vocab_size", "pad_token_id", *WAVLM)  # not all models need them
    for key, default in (DEFAULTS | {"conv_pos_kernel_size": 19, "vocab_size": 32} | WAVLM).items():
        if key in optional and settings.get(key) is None:
            continue
        value, least = settings[key], 0 if key in ("pad_token_id", "mask_time_min_masks") else 1
        is_count = lambda x, least=least: type(x) is int and x >= least
        valid, expected = {
            bool: (isinstance(value, bool), "true or false"),
            int: (is_count(value), f"a whole number of at least {least}"),
            float: (type(value) in (int, float) and value >= 0, "a number of at least 0"),
            str: (isinstance(value, str), "a word"),
            list: (isinstance(value, (list, tuple)) and value and all(map(is_count, value)), "a list of whole numbers"),
        }[type(default)]
        if not valid:
            raise UserError(f"{source}: {key} is {value!r}; it must be {expected}")
    lengths = {key: len(settings[key]) for key in ("conv_dim", "conv_kernel", "conv_stride")}
    if len(set(lengths.values())) > 1:
        counts = ", ".join(f"{key} has {n}" for key, n in lengths.items())
        raise UserError(f"{source}: these lists must have the same number of values: {counts}")
    for key in ("num_attention_heads", "num_conv_pos_embedding_groups"):
        if settings["hidden_size"] % settings[key]:
            raise UserError(f"{source}: {key}={settings[key]} does not divide hidden_size={settings['hidden_size']}")


def our_config(settings: Mapping[str, Any], head: str, *, normalize: bool, outputs: int) -> Config:
    """The sections of the config that the method of the head reads.

    normalize: whether audio is normalised per utterance. outputs: of a recogniser, the size of its alphabet.
    """
    layers = zip(settings["conv_dim"], settings["conv_kernel"], settings["conv_stride"], strict=True)
    encoder: dict[str, Any] = dict(
        conv_layers=tuple(tuple(int(x) for x in layer) for layer in layers),
        conv_grad_scale=1.0,
        padding_aware=True,
        pos_kernel=settings.get("conv_pos_kernel_size", settings["num_conv_pos_embeddings"]),
        pos_layers=settings["num_conv_pos_embeddings"] if "conv_pos_kernel_size" in settings else 1,
    )
    encoder |= dict(dropout=0.0, attention_dropout=0.0, mlp_dropout=0.0, input_dropout=0.0, layer_drop=0.0)
    encoder |= dict(relative_buckets=settings.get("num_buckets", 0))
    encoder |= dict(relative_distance=settings.get("max_bucket_distance", 0))
    encoder |= dict(attention="auto", positional="auto", stack="auto", convolution="auto")
    encoder |= dict(remat_frontend="none", remat_layers="none")
    encoder |= {ours: settings[theirs] for theirs, ours in ENCODER.items()}
    data = dict(unit_seconds=1.0, bucket_seconds=(1.0,), normalize=normalize, vocab_size=0)
    config: dict[str, Any] = dict(method="ctc" if head == "ctc" else "wav2vec2", seed=1, data=data, encoder=encoder)
    config["train"] = dict(dtype="float32")
    if head == "ctc":
        encoder |= dict(kind="wav2vec2", frozen=False, frozen_steps=0)
        config["acoustic"] = dict(kind="linear", input="context", standardise=False, head_dropout=0.0, outputs=outputs)
        config["acoustic"] |= dict(members=1, consistency=0.0)
        config["masking"] = {ours: settings[theirs] for theirs, ours in CTC_MASKING.items()}
    elif head == "encoder" and settings["model_type"] in ("hubert", "wavlm"):
        return unit_encoder(encoder, length=settings["mask_time_length"], normalize=normalize)
    else:
        config["quantizer"] = {ours: settings[theirs] for theirs, ours in QUANTIZER.items()}
        config["quantizer"] |= dict(temperature=(2.0, 0.5, 0.999995), input_dropout=0.0)
        if head == "encoder":
            config["quantizer"]["groups"] = 0
        config["masking"] = dict(prob=0.65, length=settings["mask_time_length"], min_spans=2)
        config["loss"] = {ours: settings[theirs] for theirs, ours in LOSS.items()}
        config["loss"] |= dict(cross_negatives=0, codebook_negatives=0, penalty_weight=0.0)
    return as_config(config)


def unit_encoder(encoder: Mapping[str, Any], *, length: int, normalize: bool) -> Config:
    """The config of HuBERT or WavLM without the heads of its training, for the section `encoder`.

    Released models of WavLM lack these heads, and transformers has no place for them.
    """
    data = dict(unit_seconds=1.0, bucket_seconds=(1.0,), normalize=normalize)
    method = "wavlm" if encoder["relative_buckets"] else "hubert"
    config = dict(method=method, seed=1, encoder=dict(encoder), train=dict(dtype="float32"))
    config["data"] = data | dict(targets=(), targets_model="", targets_hop=320)
    config["masking"] = dict(prob=0.8, length=length, min_spans=2)
    config["loss"] = dict(proj=256, classes=(), extra_classes=4, untied=True, temperature=0.1)
    config["loss"] |= dict(masked_weight=1.0, unmasked_weight=0.0, penalty_weight=10.0)
    return as_config(config)


# To transformers


def check_export(config: Config, head: str) -> None:
    """Raises UserError, with the reason, for a run that no model of transformers can represent."""
    e = config.encoder
    exported = ("wav2vec2", "wavlm", "hubert", "ctc")
    if config.method not in exported or not isinstance(methods.load(config).encoder, Wav2Vec2Encoder):
        raise UserError(
            f"transformers has no model for method {config.method!r}; only wav2vec 2.0, WavLM, CTC on them, and HuBERT "
            "can be exported"
        )
    if is_relative(config) and (is_stack(config) or head == "pretraining"):
        raise UserError(
            "encoder.relative_buckets above 0 is WavLM in transformers. That has one positional convolution and no "
            "heads for pretraining. --encoder-only exports an encoder of that kind"
        )
    if is_stack(config) and (e.conv_norm != "layer" or e.pre_norm or head == "pretraining"):
        raise UserError(
            "encoder.pos_layers above 1 is data2vec-audio in transformers. That has layer norm in the convolutions, "
            "post-norm blocks and no heads for pretraining. --encoder-only exports an encoder of that kind"
        )
    if config.method == "ctc" and head != "encoder":
        a = config.acoustic
        required = {"kind": "linear", "input": "context", "standardise": False}
        if different := {key: a[key] for key, value in required.items() if a[key] != value}:
            raise UserError(
                "Wav2Vec2ForCTC has one linear layer on the output of the last layer; the acoustic section of this run "
                f"has {different}. --encoder-only exports its encoder"
            )


def transformers_config(config: Config, head: str) -> dict[str, Any]:
    """config.json of the model."""
    e, m = config.encoder, config.masking
    channels, kernels, strides = zip(*e.conv_layers, strict=True)
    settings: dict[str, Any] = dict(
        architectures=[their_class(config, head)],
        model_type=family_of(config),
        dtype="float32",
        hidden_act="gelu",
        layer_norm_eps=1e-5,
        feat_extract_activation="gelu",
        conv_dim=channels,
        conv_kernel=kernels,
        conv_stride=strides,
        num_conv_pos_embeddings=e.pos_kernel,
        num_feat_extract_layers=len(channels),
        hidden_dropout=e.dropout,
        activation_dropout=e.mlp_dropout,
        attention_dropout=e.attention_dropout,
        feat_proj_dropout=e.input_dropout,
        layerdrop=e.layer_drop,
    )
    settings |= {theirs: e[ours] for theirs, ours in ENCODER.items()}
    if is_stack(config):
        del settings["feat_extract_norm"], settings["do_stable_layer_norm"]
        settings |= dict(num_conv_pos_embeddings=e.pos_layers, conv_pos_kernel_size=e.pos_kernel)
    if is_relative(config):
        settings |= dict(num_buckets=e.relative_buckets, max_bucket_distance=e.relative_distance)
    masking = CTC_MASKING if "time_prob" in m else MASKING
    settings |= {theirs: m[ours] for theirs, ours in masking.items()}
    if not settings["mask_time_prob"] and not settings.get("mask_feature_prob", 0.0):
        settings["mask_time_prob"] = 1e-9  # without masks the model would lack the learned mask vector
    if head == "pretraining":
        settings |= {theirs: config.quantizer[ours] for theirs, ours in QUANTIZER.items()}
        settings |= {theirs: config.loss[ours] for theirs, ours in LOSS.items()}
        settings |= dict(feat_quantizer_dropout=config.quantizer.input_dropout)
    if head == "ctc":
        settings |= dict(vocab_size=config.acoustic.outputs, pad_token_id=0, bos_token_id=None, eos_token_id=None)
        settings |= dict(ctc_loss_reduction="sum", ctc_zero_infinity=True, final_dropout=config.acoustic.head_dropout)
    return settings


def their_preprocessor(config: Config) -> dict[str, Any]:
    """preprocessor_config.json. A model with group norm was trained without attention masks and takes none."""
    return dict(
        feature_extractor_type="Wav2Vec2FeatureExtractor",
        feature_size=1,
        sampling_rate=SAMPLE_RATE,
        padding_side="right",
        padding_value=0.0,
        do_normalize=bool(config.data.normalize),
        return_attention_mask=config.encoder.conv_norm == "layer",
    )
