"""An example as a picture: its waveform, its log-mel spectrum with the hidden spans, and its codes, units and words."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np

from w2v_jax.core.units import NO_TARGET, SAMPLE_RATE
from w2v_jax.ops.logmel import FIELD, HOP, log_mel
from w2v_jax.reporting.examples import Example
from w2v_jax.reporting.markup import INK, RUNS, Element, new_figure, svg

COLUMNS = 800
"""Of the waveform: each shows the lowest and the highest of its samples."""


def draw_example(example: Example, name: str) -> Element:
    """The picture of an example as an <svg>. name: one word, unlike those of other figures of the page."""
    strips = [("codes", example.codes.T, example.hop)] if example.codes is not None else []
    if example.units is not None:
        strips.append(("units", example.units, example.unit_hop))
    heights = [0.7, 1.5, *(max(0.18 * len(rows), 0.3) for _, rows, _ in strips), *([0.4] if example.words else [])]
    with new_figure(7.6, 0.7 + sum(heights)) as figure:
        axes = figure.subplots(len(heights), 1, sharex=True, height_ratios=heights, squeeze=False)[:, 0]
        _draw_wave(axes[0], example)
        _draw_spectrum(axes[1], example)
        for ax, (word, rows, hop) in zip(axes[2:], strips):
            _draw_strip(ax, word, rows, hop=hop)
        if example.words:
            _draw_words(axes[-1], example)
        axes[-1].set_xlim(0, len(example.wave) / SAMPLE_RATE)
        axes[-1].set_xlabel("seconds")
        return svg(figure, name, f"waveform and log-mel spectrum of {example.id}")


def _draw_wave(ax: Any, example: Example) -> None:
    pieces = np.array_split(example.wave, min(COLUMNS, len(example.wave)))
    times = np.linspace(0, len(example.wave) / SAMPLE_RATE, len(pieces))
    ax.fill_between(times, [p.min() for p in pieces], [p.max() for p in pieces], color=RUNS[0], linewidth=0.4)
    ax.set_yticks([])
    ax.set_ylabel("wave")
    ax.grid(False)


def _draw_spectrum(ax: Any, example: Example) -> None:
    import matplotlib

    wave = np.pad(example.wave, (0, max(0, FIELD - len(example.wave))))
    mel = np.asarray(log_mel(jnp.asarray(wave)[None]))[0].T
    low, high = np.quantile(mel, (0.05, 0.999))
    colours = matplotlib.colormaps["magma"].resampled(24)  # few, which PNG packs well
    first = (FIELD - HOP) / 2 / SAMPLE_RATE
    extent = (first, first + mel.shape[1] * HOP / SAMPLE_RATE, 0, len(mel))
    ax.imshow(
        mel, aspect="auto", origin="lower", extent=extent, interpolation="none", cmap=colours, vmin=low, vmax=high
    )
    if example.masked is not None:
        for start, stop in stretches(example.masked):
            left, right = start * example.hop / SAMPLE_RATE, stop * example.hop / SAMPLE_RATE
            ax.axvspan(left, right, color="#a0aec0", alpha=0.6, linewidth=0)
    ax.set_yticks([])
    ax.set_ylabel("log-mel")
    ax.grid(False)


def stretches(flags: np.ndarray) -> list[tuple[int, int]]:
    """[start, stop) of each stretch of flags [F] that are set."""
    edges = np.flatnonzero(np.diff(np.pad(flags.astype(np.int8), 1)))
    return [(int(start), int(stop)) for start, stop in zip(edges[::2], edges[1::2])]


def _draw_strip(ax: Any, word: str, rows: np.ndarray, *, hop: int) -> None:
    """Codes [G F] as colours, a row for each group. Equal codes of a group have equal colours; none is white."""
    import matplotlib

    image = matplotlib.colormaps["tab20"]((rows * 7) % 20)
    image[rows == NO_TARGET, 3] = 0.0
    ax.imshow(image, aspect="auto", interpolation="none", extent=(0, rows.shape[1] * hop / SAMPLE_RATE, len(rows), 0))
    ax.set_yticks([])
    ax.set_ylabel(word, rotation=0, ha="right", va="center")
    ax.grid(False)


def _draw_words(ax: Any, example: Example) -> None:
    for number, word in enumerate(example.words):
        left, right = word.start, max(word.end, word.start + 0.02)
        ax.axvspan(left, right, color=RUNS[2], alpha=0.15 + 0.45 * word.confidence, linewidth=0)
        height = 0.75 if number % 2 else 0.3  # neighbours at two heights do not touch
        ax.text((left + right) / 2, height, word.text, ha="center", va="center", color=INK, fontsize=8, clip_on=True)
    ax.set_ylim(0, 1)
    ax.set_yticks([])
    ax.set_ylabel("words", rotation=0, ha="right", va="center")
    ax.grid(False)
