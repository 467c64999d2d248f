"""Pages of recordings as PNG: waveforms and log-mel spectra, and how long the recordings of a corpus are."""

from __future__ import annotations

import pathlib
import textwrap
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from w2v_jax.core.cli import needing
from w2v_jax.core.display import short_repr
from w2v_jax.core.files import whole_file
from w2v_jax.core.units import SAMPLE_RATE
from w2v_jax.data.index import ReadError, Source

FLOOR_DB, CEILING_DB = -70, 10  # colour range of the mel panels; fixed, so that a silent recording looks silent
SHEET_SECONDS = 30
FULL_SCALE = 0.999
SILENT_DB = -50
BARS = 40
INK, BLUE, RED, GREY = "#222222", "#3b6ea5", "#c0392b", "#777777"


def pick_rows(durations: np.ndarray, count: int) -> np.ndarray:
    """Up to `count` rows, spread evenly from the shortest recording to the longest."""
    order = np.argsort(durations, kind="stable")
    return order[np.unique(np.linspace(0, len(order) - 1, min(count, len(order))).round().astype(int))]


class SheetLine(NamedTuple):
    """A line of a page: a recording of `seconds` at 16 kHz, or why there is none, and what is said of it.

    rate: that of its file. is_bounded: whether samples beyond full scale, silence and an offset are faults. They are
    none of a recording that was normalised, or made louder in training.
    """

    id: str
    text: str
    facts: list[str]
    wave: np.ndarray | None
    seconds: float
    rate: int = SAMPLE_RATE
    error: str = ""
    is_bounded: bool = True

    __repr__ = short_repr


def draw_sheet(source: Source, rows: Sequence[int] | np.ndarray, path: pathlib.Path) -> None:
    """Writes a PNG with one line per row: waveform and 80-bin log-mel spectrum, id, duration, rate, level, transcript.

    It shows at most the first 30 s of a recording. Clipping, silence and offsets are marked in red.
    """
    draw_page((_panel(source, int(row)) for row in rows), path, lines=len(rows))


def _panel(source: Source, row: int) -> SheetLine:
    index = source.index
    seconds, rate = float(index.durations[row]), int(index.rates[row])
    shown = min(seconds, SHEET_SECONDS)
    facts = [f"{seconds:.2f} s", f"{rate / 1000:g} kHz"]
    if index.speakers[row]:
        facts.append(f"speaker {index.speakers[row]}")
    if shown < seconds:
        facts.append(f"first {shown:g} s")
    about = (str(index.ids[row]), str(index.transcripts[row]) or "(no transcript)", facts)
    try:
        return SheetLine(*about, wave=source.read(row, 0, SHEET_SECONDS * SAMPLE_RATE), seconds=shown, rate=rate)
    except ReadError as error:
        return SheetLine(*about, wave=None, seconds=shown, rate=rate, error=f"cannot be read: {error}")


def draw_page(panels: Iterable[SheetLine], path: pathlib.Path, *, lines: int, heading: str = "") -> None:
    """Writes a PNG of so many panels, one in each line, below a heading. Raises UserError and OSError."""
    with needing("--plot needs librosa and matplotlib ({error}): pip install librosa matplotlib"):
        import librosa  # noqa: F401
        from matplotlib.figure import Figure
    above = 0.35 if heading else 0.0
    figure = Figure(figsize=(13, 0.5 + above + 2.3 * lines), dpi=100, facecolor="white")
    top, bottom = (0.25 + above) / figure.get_figheight(), 0.45 / figure.get_figheight()
    height = (1 - top - bottom) / lines
    if heading:
        figure.text(0.045, 1 - 0.2 / figure.get_figheight(), heading, fontsize=11, color=INK, va="top")
    image = None
    for number, panel in enumerate(panels):
        base = 1 - top - (number + 1) * height
        wave_axes = figure.add_axes((0.045, base + 0.12 * height, 0.40, 0.56 * height))
        mel_axes = figure.add_axes((0.50, base + 0.12 * height, 0.445, 0.56 * height))
        image = _draw_panel(panel, wave_axes=wave_axes, mel_axes=mel_axes) or image
        if number == lines - 1:
            wave_axes.set_xlabel("seconds", fontsize=8, color=GREY)
            mel_axes.set_xlabel("seconds", fontsize=8, color=GREY)
    if image is not None:
        bar = figure.add_axes((0.955, 1 - top - 0.88 * height, 0.007, 0.56 * height))
        figure.colorbar(image, cax=bar)
        _plain(bar)
        bar.set_title("dB", fontsize=7, color=GREY)
    save_png(figure, path)


def save_png(figure: Any, path: pathlib.Path) -> None:
    """Writes a figure of matplotlib's to a file that appears whole. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph|Matplotlib currently", UserWarning)  # the font lacks a script
        with whole_file(path) as partial:
            figure.savefig(partial, format="png")


def draw_lengths(lengths: Mapping[str, int], path: pathlib.Path) -> None:
    """Writes a histogram of how long recordings are as PNG. lengths: how many there are of so many seconds.

    The seconds are on a logarithmic scale, and the bars show hours of audio.
    """
    with needing("a histogram needs matplotlib ({error}): pip install matplotlib"):
        from matplotlib.figure import Figure
    seconds = np.array([max(float(key), 0.05) for key in lengths])
    counts = np.array(list(lengths.values()))
    edges = np.geomspace(0.9 * seconds.min(), 1.1 * seconds.max(), BARS + 1)
    figure = Figure(figsize=(8, 3.6), dpi=100, facecolor="white", layout="constrained")
    axes = figure.subplots(1, 2)
    for ax, weights, name in zip(axes, (counts, counts * seconds / 3600), ("recordings", "hours"), strict=True):
        ax.hist(seconds, edges, weights=weights, color=BLUE)
        ax.set_xscale("log")
        ax.set_xlabel("seconds of a recording", fontsize=8, color=GREY)
        ax.set_title(name, fontsize=9, color=INK, loc="left")
        ax.xaxis.set_major_formatter("{x:g}")
        _plain(ax)
    save_png(figure, path)


def _draw_panel(panel: SheetLine, *, wave_axes: Any, mel_axes: Any) -> Any:
    """Plots one recording. Returns the image of its spectrum; None where there is none."""
    from matplotlib.patches import Rectangle

    facts, wave = list(panel.facts), panel.wave
    if wave is not None and len(wave):
        problems = _draw_wave(wave_axes, wave, panel.seconds, is_bounded=panel.is_bounded)
        image = _draw_mel(mel_axes, wave, seconds=panel.seconds, rate=panel.rate)
        facts.append(f"peak {_decibels(np.abs(wave).max())} dB, RMS {_decibels(np.sqrt(np.mean(wave**2)))} dB")
    else:
        problems, image = [panel.error or "nothing in it"], None
        for axes in (wave_axes, mel_axes):
            axes.set_axis_off()
    is_text = panel.text != "(no transcript)"
    _title(wave_axes, 0, panel.id, weight="bold", color=INK, width=52)
    _title(wave_axes, 1, panel.text, color=INK if is_text else GREY, width=110 if problems else 165)
    _title(mel_axes, 0, "  ·  ".join(facts), color=GREY, width=100)
    if problems:
        mel_axes.text(1, 1.09, "   ".join(problems), transform=mel_axes.transAxes, ha="right", fontsize=9, color=RED)
        transform = wave_axes.transAxes
        wave_axes.add_patch(Rectangle((0, 0), 1, 1, transform=transform, fill=False, ec=RED, lw=1.5, clip_on=False))
    return image


def _draw_wave(axes: Any, wave: np.ndarray, seconds: float, *, is_bounded: bool = True) -> list[str]:
    """Plots the envelope of a wave. Returns what is wrong with its level, as text; nothing of an unbounded one."""
    step = max(1, len(wave) // 1500)
    blocks = np.pad(wave, (0, -len(wave) % step), mode="edge").reshape(-1, step)
    times = np.arange(len(blocks)) * step / SAMPLE_RATE
    axes.fill_between(times, blocks.min(axis=1), blocks.max(axis=1), color=BLUE, linewidth=0.4)
    axes.axhline(0, color=GREY, linewidth=0.4)
    _plain(axes)
    if not is_bounded:
        peak = max(1.0, float(np.abs(wave).max()))
        axes.set(xlim=(0, seconds), ylim=(-peak, peak))
        return []
    clipped = np.abs(wave) >= FULL_SCALE
    problems = []
    if clipped.sum() > 2:
        problems.append(f"{clipped.sum():,} samples at full scale: clipped?")
        is_clipped = np.abs(blocks).max(axis=1) >= FULL_SCALE
        axes.plot(times[is_clipped], np.ones(is_clipped.sum()), "|", color=RED, markersize=5, clip_on=False)
    if _decibels(np.abs(wave).max()) < SILENT_DB:
        problems.append("silent")
    if abs(wave.mean()) > 0.02:
        problems.append(f"offset {wave.mean():+.2f}")
    axes.set(xlim=(0, seconds), ylim=(-1, 1), yticks=(-1, 0, 1))
    return problems


def _draw_mel(axes: Any, wave: np.ndarray, *, seconds: float, rate: int) -> Any:
    """Plots 80 mel bins in dB. A dashed line marks half the file's own rate where that is below 8 kHz."""
    import librosa

    mel = mel_decibels(wave)
    extent = (0, len(wave) / SAMPLE_RATE, 0, len(mel))
    image = axes.imshow(mel, "magma", origin="lower", aspect="auto", interpolation="nearest", extent=extent)
    image.set_clim(FLOOR_DB, CEILING_DB)
    axes.set_xlim(0, seconds)
    centres = librosa.mel_frequencies(len(mel) + 2, fmin=0, fmax=SAMPLE_RATE / 2)[1:-1]
    height = lambda hertz: np.interp(hertz, centres, np.arange(len(mel)) + 0.5)
    axes.set_yticks(height([500, 1000, 2000, 4000, 7500]), ["0.5", "1", "2", "4", "7.5 kHz"])
    if rate < SAMPLE_RATE:
        axes.axhline(height(rate / 2), color="white", linewidth=0.8, linestyle="--")
    _plain(axes)
    return image


def mel_decibels(wave: np.ndarray) -> np.ndarray:
    """Log-mel spectrum in dB [80 frames] of a wave [T] at 16 kHz, from windows of 25 ms every 10 ms."""
    import librosa

    power = librosa.feature.melspectrogram(
        y=wave, sr=SAMPLE_RATE, n_fft=512, win_length=400, hop_length=160, n_mels=80, pad_mode="constant"
    )
    return librosa.power_to_db(power, ref=1.0, amin=1e-10, top_db=None)


def _title(axes: Any, line: int, text: str, *, width: int, **style: Any) -> None:
    """Writes a line of text above the axes, shortened to `width` characters."""
    shortened = textwrap.shorten(text, width, placeholder=" …") if " " in text else text[:width]
    height = (1.27, 1.09)[line]
    axes.text(0, height, shortened, transform=axes.transAxes, fontsize=9, parse_math=False, **style)


def _plain(axes: Any) -> None:
    for side in axes.spines.values():
        side.set_visible(False)
    axes.tick_params(labelsize=7, colors=GREY, length=2)


def _decibels(amplitude: float) -> int:
    return round(20 * np.log10(max(float(amplitude), 1e-6)))
