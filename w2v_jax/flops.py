"""How many floating-point operations a wav2vec 2.0 step takes, by formula, and what accelerators can do at best.

A multiply-add counts as two. Only matrix products and convolutions are counted, no norms or activations, and no
recomputation (remat): this is the work of the model, not of the program.
"""

from __future__ import annotations

from typing import Any

from w2v_jax.config import unit_rows
from w2v_jax.frontend import num_frames
from w2v_jax.masking import num_slots

STEP_FACTOR = 3
"""A training step is about three forward passes: the backward pass forms a gradient for both factors of a product."""

PEAKS = (  # (in the device's name, dense bfloat16 FLOP/s of the whole device); the first match counts
    ("H100", 989e12),
    ("H200", 989e12),
    ("A100", 312e12),
    ("TPU v4", 275e12),
    ("TPU v5 lite", 197e12),
    ("TPU v5e", 197e12),
    ("TPU v5", 459e12),
    ("TPU v6 lite", 918e12),
    ("TPU v6e", 918e12),
)


def forward_flops(config: Any, rows: int, samples: int) -> dict[str, float]:
    """FLOP of one forward pass over `rows` rows of `samples` samples, by part of the model.

    The masked-frame part works on all M static slots of each row.
    """
    e, q, contrast = config.encoder, config.quantizer, config.loss
    conv, length, channels = 0, samples, 1
    for width, kernel, stride in e.conv_layers:
        length = num_frames(length, ((width, kernel, stride),))
        conv += length * channels * kernel * width
        channels = width
    frames, width = length, e.width
    m = config.masking
    slots = num_slots(frames, m.prob, m.length, m.min_spans)
    pool = slots * (unit_rows(config.data.unit_seconds, samples) if contrast.cross_negatives else 1)
    entries = q.groups * q.codes
    per_slot = channels * entries + entries * (q.dim // q.groups) + (q.dim + width + pool) * contrast.proj
    per_slot += contrast.codebook_negatives * (q.dim + 1) * contrast.proj
    products = {
        "feature encoder": conv,
        "projection and positional convolution": frames * width * (channels + width // e.pos_groups * e.pos_kernel),
        "Transformer linear": frames * e.layers * (4 * width * width + 2 * width * e.mlp),
        "attention": frames * frames * e.layers * 2 * width,
        "masked frames": slots * per_slot,
    }
    return {name: 2.0 * rows * count for name, count in products.items()}


def peak_flops(device_kind: str, dtype: str) -> float | None:
    """Dense FLOP/s that the device's maker states for bfloat16 products; None for other types and unknown devices."""
    if dtype != "bfloat16":
        return None
    return next((peak for name, peak in PEAKS if name in device_kind), None)
