"""The published figures of chips: memory, arithmetic and bandwidth of those that we plan for or measure on."""

from __future__ import annotations

from typing import NamedTuple


class Chip(NamedTuple):
    """Bytes of memory, dense bfloat16 FLOP/s, bytes/s of memory bandwidth, parts of JAX's names for it, and cores.

    `cores`: how many cores a cloud counts per chip in the name of a slice (v4-8 has four chips).
    """

    memory: float
    flops: float
    bandwidth: float
    names: tuple[str, ...]
    cores: int = 1


CHIPS = {
    "a100": Chip(80e9, 312e12, 2.04e12, names=("A100",)),
    "h100": Chip(80e9, 989e12, 3.35e12, names=("H100",)),
    "h200": Chip(141e9, 989e12, 4.8e12, names=("H200",)),
    "v4": Chip(32 * 2**30, 275e12, 1.2e12, names=("TPU v4",), cores=2),
    "v5e": Chip(16 * 2**30, 197e12, 0.82e12, names=("TPU v5 lite", "TPU v5e")),
    # after v5e, whose name starts in the same way
    "v5p": Chip(95 * 2**30, 459e12, 2.77e12, names=("TPU v5",), cores=2),
    "v6e": Chip(32 * 2**30, 918e12, 1.64e12, names=("TPU v6 lite", "TPU v6e")),
}


def stated_flops(device_kind: str, dtype: str) -> float | None:
    """The published dense FLOP/s of a device for bfloat16 products; None for other types and unknown devices."""
    if dtype != "bfloat16":
        return None
    return next((chip.flops for chip in CHIPS.values() if any(name in device_kind for name in chip.names)), None)
