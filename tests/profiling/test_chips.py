"""The makers' figures, by what JAX calls a device."""

from __future__ import annotations

from w2v_jax.profiling.chips import stated_flops


def test_peak_is_known_for_named_accelerators_in_bfloat16_only():
    assert stated_flops("NVIDIA H100 80GB HBM3", "bfloat16") == 989e12
    assert stated_flops("TPU v5 lite", "bfloat16") == 197e12
    assert stated_flops("TPU v5", "bfloat16") == stated_flops("TPU v5p", "bfloat16") == 459e12
    assert stated_flops("NVIDIA H100 80GB HBM3", "float32") is None
    assert stated_flops("cpu", "bfloat16") is None
