"""Parameters and settings of the reference's wav2vec 2.0 checkpoints, brought into this package's form (tests only)."""

from __future__ import annotations

import ast
import re

import ml_collections
import numpy as np

SINGLE = {
    "mask_emb": "encoder/mask_vector",
    "layer_norm": "encoder/local_norm",
    "post_extract_proj": "encoder/projection",
    "encoder.layer_norm": "encoder/transformer/norm",
    "encoder.pos_conv.0.weight_g": "encoder/transformer/positional/scale",
    "encoder.pos_conv.0.weight_v": "encoder/transformer/positional/direction",
    "encoder.pos_conv.0.bias": "encoder/transformer/positional/bias",
    "quantizer.vars": "quantizer/codebook",
    "quantizer.weight_proj": "quantizer/weight_proj",
    "project_q": "target_proj",
    "final_proj": "context_proj",
}
LAYER = {
    "self_attn.q_proj": "query",
    "self_attn.k_proj": "key",
    "self_attn.v_proj": "value",
    "self_attn.out_proj": "out",
    "self_attn_layer_norm": "attention_norm",
    "fc1": "mlp_in",
    "fc2": "mlp_out",
    "final_layer_norm": "mlp_norm",
}


def our_name(name: str) -> tuple[str, int | None]:
    """(path in params, Transformer layer or None) of a reference parameter name."""
    if match := re.fullmatch(r"encoder\.layers\.(\d+)\.(.+)\.(weight|bias)", name):
        return f"encoder/transformer/layers/{LAYER[match[2]]}/{match[3]}", int(match[1])
    if match := re.fullmatch(r"feature_extractor\.conv_layers\.(\d+)\.(0|2|2\.1)\.(weight|bias)", name):
        norm = "" if match[2] == "0" else "norm/"
        return f"encoder/frontend/conv{match[1]}/{norm}{match[3]}", None
    if name in SINGLE:
        return SINGLE[name], None
    stem, _, leaf = name.rpartition(".")
    return f"{SINGLE[stem]}/{leaf}", None


def our_array(path: str, array: np.ndarray, groups: int) -> tuple[str, np.ndarray]:
    """The leaf's name and layout here: linear and conv weights transposed, norms' weight -> scale."""
    if path == "quantizer/codebook":
        return path, array.reshape(groups, -1, array.shape[-1])
    if path.endswith("positional/scale"):
        return path, array.reshape(-1)
    if path.endswith("positional/direction"):
        return path, array.transpose(2, 1, 0)
    if path.endswith("/weight"):
        stem = path.removesuffix("/weight")
        return (f"{stem}/scale", array) if array.ndim == 1 else (f"{stem}/kernel", array.transpose())
    return path, array


def our_params(arrays: dict[str, np.ndarray], groups: int) -> dict:
    """Nested params of this package from reference arrays by name; Transformer layers are stacked."""
    flat: dict[str, np.ndarray] = {}
    layers: dict[str, dict[int, np.ndarray]] = {}
    for name, array in arrays.items():
        path, layer = our_name(name)
        path, array = our_array(path, array, groups)
        if layer is None:
            flat[path] = array
        else:
            layers.setdefault(path, {})[layer] = array
    flat |= {path: np.stack([by[i] for i in sorted(by)]) for path, by in layers.items()}
    return nest(flat)


def nest(flat: dict[str, np.ndarray]) -> dict:
    """{"a": {"b": x}} of {"a/b": x}."""
    nested: dict = {}
    for path, array in flat.items():
        *parents, leaf = path.split("/")
        node = nested
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = array
    return nested


def our_config(reference: dict, *, rows: int, samples: int) -> ml_collections.ConfigDict:
    """The config sections that `methods.wav2vec2` reads, for a golden file's settings and one unit of `rows` rows."""
    weights = reference["loss_weights"]
    return ml_collections.ConfigDict(
        dict(
            data=dict(unit_seconds=rows * samples / 16_000),
            train=dict(dtype="float32"),
            encoder=dict(
                conv_layers=conv_layers(reference["conv_feature_layers"]),
                conv_norm="layer" if reference["extractor_mode"] == "layer_norm" else "group",
                conv_bias=reference["conv_bias"],
                conv_grad_scale=reference["feature_grad_mult"],
                padding_aware=False,
                width=reference["encoder_embed_dim"],
                layers=reference["encoder_layers"],
                heads=reference["encoder_attention_heads"],
                mlp=reference["encoder_ffn_embed_dim"],
                pre_norm=reference["layer_norm_first"],
                pos_kernel=reference["conv_pos"],
                pos_groups=reference["conv_pos_groups"],
                dropout=0.0,
                attention_dropout=0.0,
                mlp_dropout=0.0,
                input_dropout=0.0,
                layer_drop=0.0,
                attention="xla",
                positional="auto",
                scan_layers=True,
                remat_frontend=False,
                remat_layers=False,
            ),
            quantizer=dict(
                groups=reference["latent_groups"],
                codes=reference["latent_vars"],
                dim=reference["latent_dim"] or reference["final_dim"],
                temperature=tuple(reference["latent_temp"]),
                input_dropout=0.0,
            ),
            masking=dict(prob=reference["mask_prob"], length=reference["mask_length"], min_spans=2),
            loss=dict(
                proj=reference["final_dim"],
                negatives=reference["num_negatives"],
                cross_negatives=reference.get("cross_sample_negatives", 0),
                codebook_negatives=reference.get("codebook_negatives", 0),
                temperature=reference["logit_temp"],
                diversity_weight=weights[0],
                penalty_weight=weights[1],
            ),
        )
    )


def conv_layers(text: str) -> tuple[tuple[int, int, int], ...]:
    """The tuples of "[(32,10,5)]+[(32,3,2)]*4+..." without evaluating it as code."""
    layers: list[tuple[int, int, int]] = []
    for listed, times in re.findall(r"(\[[^\]]*\])(?:\s*\*\s*(\d+))?", text):
        layers += ast.literal_eval(listed) * int(times or 1)
    return tuple(layers)
