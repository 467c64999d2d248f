"""Parameters and settings of Hugging Face's Wav2Vec2ForPreTraining, by way of the reference's names (tests only)."""

from __future__ import annotations

import re
from typing import Any

import ml_collections
import numpy as np
from fairseq_names import our_config, our_params

REFERENCE = (
    (r"wav2vec2\.masked_spec_embed", "mask_emb"),
    (r"wav2vec2\.feature_extractor\.conv_layers\.(\d+)\.conv\.", r"feature_extractor.conv_layers.\1.0."),
    (r"wav2vec2\.feature_extractor\.conv_layers\.(\d+)\.layer_norm\.", r"feature_extractor.conv_layers.\1.2."),
    (r"wav2vec2\.feature_projection\.layer_norm\.", "layer_norm."),
    (r"wav2vec2\.feature_projection\.projection\.", "post_extract_proj."),
    (r"wav2vec2\.encoder\.pos_conv_embed\.conv\.parametrizations\.weight\.original0", "encoder.pos_conv.0.weight_g"),
    (r"wav2vec2\.encoder\.pos_conv_embed\.conv\.parametrizations\.weight\.original1", "encoder.pos_conv.0.weight_v"),
    (r"wav2vec2\.encoder\.pos_conv_embed\.conv\.", "encoder.pos_conv.0."),
    (r"wav2vec2\.encoder\.layers\.(\d+)\.attention\.", r"encoder.layers.\1.self_attn."),
    (r"wav2vec2\.encoder\.layers\.(\d+)\.layer_norm\.", r"encoder.layers.\1.self_attn_layer_norm."),
    (r"wav2vec2\.encoder\.layers\.(\d+)\.feed_forward\.intermediate_dense\.", r"encoder.layers.\1.fc1."),
    (r"wav2vec2\.encoder\.layers\.(\d+)\.feed_forward\.output_dense\.", r"encoder.layers.\1.fc2."),
    (r"wav2vec2\.encoder\.layers\.(\d+)\.final_layer_norm\.", r"encoder.layers.\1.final_layer_norm."),
    (r"wav2vec2\.encoder\.layer_norm\.", "encoder.layer_norm."),
    (r"quantizer\.codevectors", "quantizer.vars"),
    (r"(quantizer\.weight_proj|project_q)\.", r"\1."),
    (r"project_hid\.", "final_proj."),
)


def reference_name(name: str) -> str:
    """The reference's name of a Hugging Face parameter."""
    for pattern, replacement in REFERENCE:
        found, count = re.subn(f"^{pattern}", replacement, name)
        if count:
            return found
    raise KeyError(name)


def params_from_huggingface(arrays: dict[str, np.ndarray], groups: int) -> dict:
    """Nested params of this package; every array must have a place."""
    return our_params({reference_name(name): array for name, array in arrays.items()}, groups)


def config_from_huggingface(theirs: Any, *, rows: int, samples: int, temperature: float) -> ml_collections.ConfigDict:
    """Our config for a Wav2Vec2Config, for one unit of `rows` rows; it has no feature penalty and no masked norm."""
    layers = zip(theirs.conv_dim, theirs.conv_kernel, theirs.conv_stride, strict=True)
    reference = dict(
        extractor_mode="layer_norm" if theirs.feat_extract_norm == "layer" else "default",
        conv_feature_layers="+".join(f"[({c}, {k}, {s})]" for c, k, s in layers),
        conv_bias=theirs.conv_bias,
        feature_grad_mult=1.0,
        encoder_embed_dim=theirs.hidden_size,
        encoder_layers=theirs.num_hidden_layers,
        encoder_attention_heads=theirs.num_attention_heads,
        encoder_ffn_embed_dim=theirs.intermediate_size,
        layer_norm_first=theirs.do_stable_layer_norm,
        conv_pos=theirs.num_conv_pos_embeddings,
        conv_pos_groups=theirs.num_conv_pos_embedding_groups,
        latent_groups=theirs.num_codevector_groups,
        latent_vars=theirs.num_codevectors_per_group,
        latent_dim=theirs.codevector_dim,
        final_dim=theirs.proj_codevector_dim,
        latent_temp=(temperature, temperature, 1.0),
        mask_prob=0.65,
        mask_length=10,
        num_negatives=theirs.num_negatives,
        logit_temp=theirs.contrastive_logits_temperature,
        loss_weights=(theirs.diversity_loss_weight, 0.0),
    )
    return our_config(reference, rows=rows, samples=samples)
