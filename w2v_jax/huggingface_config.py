"""The settings of a model in transformers, from config.json to this package's config and back.

The two architectures are those of their papers: group norm in the first convolution and post-norm blocks, or layer
norm and pre-norm blocks (`do_stable_layer_norm`), convolutions with or without bias. XLS-R is wav2vec 2.0 in other
sizes; data2vec-audio has layer norm, post-norm blocks and a stack of convolutions for the positions.
"""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any

from w2v_jax.config import SAMPLE_RATE, UserError

HEADS = {"pretraining": "ForPreTraining", "encoder": "Model", "ctc": "ForCTC"}
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


def is_stack(config: Any) -> bool:
    """Whether the positions are data2vec's."""
    return config.encoder.pos_layers > 1


def their_class(config: Any, head: str) -> str:
    """The name of the class in transformers of a run for one of HEADS."""
    return ("Data2VecAudio" if is_stack(config) else "Wav2Vec2") + HEADS[head]


# In


def check_settings(theirs: Mapping[str, Any], folder: pathlib.Path) -> None:
    """Raises UserError for a config.json, of that folder, of a model that this package does not have."""
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
        stack="auto",
        convolution="auto",
        remat_frontend="none",
        remat_layers="none",
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


# Out


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
        sampling_rate=SAMPLE_RATE,
        padding_side="right",
        padding_value=0.0,
        do_normalize=bool(config.data.normalize),
        return_attention_mask=config.encoder.conv_norm == "layer",
    )
