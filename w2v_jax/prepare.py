"""`python -m w2v_jax.prepare`: lists and checks recordings, writes a manifest, makes a corpus, plots recordings.

It lists every source that training reads. data.name=jsonl reads the manifest without opening the files; to check those
files again, list their folder. The command converts, moves and deletes nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import json
import os
import pathlib
import textwrap
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from w2v_jax.core.cli import UserError, cannot_write, count_argument, expand_home, run_command, some_of
from w2v_jax.core.files import absolute, state_of, whole_file, write_whole
from w2v_jax.core.progress import ProgressBar
from w2v_jax.core.storage import output_file
from w2v_jax.core.stores import joined, place_argument
from w2v_jax.core.units import SAMPLE_RATE
from w2v_jax.data import open_source, source_names
from w2v_jax.data.index import WAVE, ReadError, Skip, Source, TooFew, subset, write_skipped
from w2v_jax.data.io.audio import is_silent
from w2v_jax.data.kept.columns import Column
from w2v_jax.data.kept.listings import KeptListing

WITHOUT_FILES = ("tfds", "codes")
"""Sources whose rows are not files, so that a manifest cannot refer to them."""

SELF_MADE = ("synthetic", "speak")
DECODED_AT_ONCE = 60 * SAMPLE_RATE

EXAMPLES = """examples:
  Check two folders and write the manifest that training reads without opening the files again:
    python -m w2v_jax.prepare --source folder --root /data/a /data/b --out train.jsonl --skipped skipped.jsonl
    python -m w2v_jax.train --config=configs/w2v2_base.py --workdir=runs/mine \\
        --config.data.name=jsonl --config.data.root=train.jsonl
  Fail in a script when more than one recording in a hundred cannot be used:
    python -m w2v_jax.prepare --root /data/a --min-seconds 2 --max-skipped-share 0.01
  Check tar shards; the manifest leads into them, and training opens none of them to list it:
    python -m w2v_jax.prepare --source webdataset --root /data/shards --out train.jsonl --max-skipped-share 0.01
  Look at eight recordings, from the shortest to the longest:
    python -m w2v_jax.prepare --root /data/a --plot sheet.png --rows 8
  Make an hour of speech without a download, in a formant language or by text-to-speech:
    python -m w2v_jax.prepare --source synthetic --root corpora/formants --hours 1
    python -m w2v_jax.prepare --source speak --root corpora/english --hours 1 --language en
    python -m w2v_jax.prepare --source speak --root corpora/german --hours 1 --language de --text lines.txt

exit codes: 0 done, 1 a mistake or too much skipped, 2 wrong usage."""

FLOOR_DB, CEILING_DB = -70, 10  # colour range of the mel panels; fixed, so that a silent recording looks silent
SHEET_SECONDS = 30
FULL_SCALE = 0.999
SILENT_DB = -50
SILENT_NAMED = 10  # of the recordings that are silent throughout
INK, BLUE, RED, GREY = "#222222", "#3b6ea5", "#c0392b", "#777777"


def main(argv: Sequence[str]) -> int:
    args = _arguments(argv)
    if args.source in SELF_MADE:
        make_corpora(args)
    try:
        source = checked_source(args)
    except TooFew as error:
        write_reasons(args.skipped, error.skipped)
        raise
    index = source.index
    print(index.report())
    write_reasons(args.skipped, index.skipped)
    try:
        if args.out:
            with output_file(args.out) as file:
                write_whole(file, manifest_lines(source, args.out))
            keep_index(source, args.out)
            print(f"manifest: {args.out}; train on it with --config.data.name=jsonl --config.data.root={args.out}")
        if args.plot:
            with output_file(args.plot) as file:
                draw_sheet(source, pick_rows(index.durations, args.rows), file)
            print(f"plot: {args.plot}")
    except OSError as error:
        raise cannot_write(error.filename or "output", error) from None
    _check_skipped_share(len(index), index.skipped, args.max_skipped_share)
    return 0


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m w2v_jax.prepare",
        description="Lists and checks recordings as training would: hours, durations, and what is skipped and why. "
        "Can also write a manifest, make a corpus, and plot a few recordings.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--source", default="folder", metavar="NAME", help=f"one of {', '.join(source_names())} (default: folder)")
    add(
        "--root",
        nargs="+",
        type=expand_home,
        required=True,
        metavar="PATH",
        help="where the recordings are or will be made",
    )
    add("--out", type=place_argument, metavar="FILE.jsonl", help="write a manifest of the usable recordings")
    add("--skipped", type=place_argument, metavar="FILE", help="write path and reason of everything skipped, as JSONL")
    add("--max-skipped-share", type=_share, default=1.0, metavar="0..1", help="exit with 1 if more are unusable")
    add("--min-seconds", type=float, default=0.0, metavar="S", help="skip shorter recordings (training skips them too)")
    add(
        "--plot", type=place_argument, metavar="FILE.png", help="plot waveform and log-mel spectrum of a few recordings"
    )
    add("--rows", type=int, default=6, metavar="N", help="how many recordings to plot (default: 6)")
    decode = "read every recording to its end (default), which finds damage in the middle, silence, wrong scales"
    add("--decode", action=argparse.BooleanOptionalAction, default=True, help=decode)
    add("--split", default="", help="split of tfds (e.g. train[:10%%]), parquet and common_voice")
    add("--hours", type=float, default=0.0, metavar="H", help="hours of a self-made corpus")
    add("--seed", type=int, default=0, help="seed of a self-made corpus; it changes speakers and sentences")
    add("--speakers", type=int, default=0, metavar="N", help="training speakers of a self-made corpus (0: by hours)")
    add("--language", default="en", help="speak corpus: espeak's language code, e.g. en-us (default: en)")
    add("--voices", nargs="+", default=[], metavar="V", help="speak corpus: espeak's voice variants, e.g. f1 m3 klatt")
    add("--text", type=expand_home, default="", metavar="FILE", help="speak corpus: UTF-8 file of lines to speak")
    add("--workers", type=count_argument, default=0, metavar="N", help="threads that open files (default: all cores)")
    args = parser.parse_args(argv)
    if args.out and args.out.suffix != ".jsonl":
        parser.error(f"--out {args.out}: the name of a manifest must end in .jsonl")
    if args.plot and args.plot.suffix != ".png":
        parser.error(f"--plot {args.plot}: the name of a plot must end in .png")
    if args.out and args.source in WITHOUT_FILES:
        parser.error(f"--out: rows of {args.source} are not files; train on them with --config.data.name={args.source}")
    if args.plot and args.source == "codes":
        parser.error("--plot: codes have no waveform; leave --plot out")
    if args.rows < 1:
        parser.error("--rows must be at least 1")
    return args


def checked_source(args: argparse.Namespace) -> Source:
    """The recordings that can be used. Raises TooFew where there are none, and UserError."""
    source = open_source(
        args.source,
        tuple(args.root),
        min_seconds=args.min_seconds,
        workers=args.workers,
        split=args.split,
        hours=args.hours,
        language=args.language,
        kept=False,
    )
    return decodable(source, args.workers or os.cpu_count() or 1) if args.decode else source


def write_reasons(path: pathlib.Path | None, skipped: Sequence[Skip]) -> None:
    """Writes what is skipped to the file that --skipped names, if it names one. Raises UserError."""
    if path is None:
        return
    try:
        with output_file(path) as file:
            write_skipped(file, skipped)
    except OSError as error:
        raise cannot_write(f"--skipped {path}", error) from None
    print(f"skipped files and reasons: {path}")


def make_corpora(args: argparse.Namespace) -> None:
    """Makes the corpus of each root unless it exists. With --decode, compares its files with their SHA-256."""
    from w2v_jax.data.io import corpus
    from w2v_jax.data.sources import speak, synthetic

    is_specified, write = bool(args.seed or args.speakers), synthetic.write_corpus
    if args.source == "speak":
        is_specified = bool(is_specified or args.voices or args.text)
        write = functools.partial(speak.write_corpus, language=args.language, voices=args.voices, text=args.text)
    for root in args.root:
        existing = corpus.read_settings(root)
        if is_specified or not existing:  # otherwise an existing corpus is used as it is
            hours = args.hours or (existing or {}).get("hours") or corpus.DEFAULT_HOURS
            write(root, hours, seed=args.seed, speakers=args.speakers)
        if args.decode and (damaged := corpus.verify(root)):
            path, reason = damaged[0]
            raise UserError(f"{len(damaged):,} files of {root} were damaged or lost; delete them. {path}: {reason}")


def decodable(source: Source, workers: int) -> Source:
    """Reads all recordings to their ends: the source of those that can be read. Silent ones are named in its notes.

    The others join the skips. Raises TooFew where none can be read.
    """
    index = source.index
    with ThreadPoolExecutor(workers) as pool, ProgressBar("reading audio", index.hours) as progress:
        contents = []
        for row, content in enumerate(pool.map(functools.partial(_content, source), range(len(index)))):
            progress.add(float(index.durations[row]), is_skipped=bool(content.error))
            contents.append(content)
    index.skipped.extend(Skip(str(index.paths[row]), c.error) for row, c in enumerate(contents) if c.error)
    silent = [str(index.paths[row]) for row, content in enumerate(contents) if content.is_silent]
    if silent:
        names = some_of(silent, SILENT_NAMED)
        index.notes.append(f"{len(silent):,} x silent throughout, and used all the same: {names}")
    if all(content.error for content in contents):
        raise TooFew(
            f"none of the {len(index):,} recordings can be decoded: repair or replace the files that are skipped, or "
            "choose other data",
            index.skipped,
        )
    return subset(source, np.flatnonzero([not content.error for content in contents]))


class Content(NamedTuple):
    """What reading a recording to its end has shown: why it cannot be read, or whether it is silent throughout."""

    error: str = ""
    is_silent: bool = False


def _content(source: Source, row: int) -> Content:
    low, high = np.inf, -np.inf
    try:
        for start in range(0, int(source.index.num_samples[row]), DECODED_AT_ONCE):
            wave = source.read(row, start, DECODED_AT_ONCE)
            low, high = min(low, wave.min(initial=np.inf)), max(high, wave.max(initial=-np.inf))
    except ReadError as error:
        return Content(str(error))
    return Content(is_silent=source.form == WAVE and is_silent(low, high))


def _share(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text}: a share must lie between 0 and 1")
    return value


def _check_skipped_share(usable: int, skipped: Sequence[Skip], max_share: float) -> None:
    """Raises UserError where more than `max_share` of all recordings are lost."""
    lost = sum(skip.is_recording for skip in skipped)
    share = lost / max(1, usable + lost)
    if share > max_share:
        raise UserError(
            f"{lost:,} of {usable + lost:,} recordings ({share:.1%}) cannot be used, more than "
            f"--max-skipped-share={max_share:g} allows; see the reasons above, or all paths with --skipped FILE"
        )


# The manifest


def manifest_lines(source: Source, out: pathlib.Path) -> Iterator[str]:
    """JSON objects from which data.name=jsonl makes the same index. Paths below the manifest's folder are relative."""
    index, folder = source.index, absolute(out.parent)
    for row in range(len(index)):
        path = _path_from(absolute(index.paths[row]), folder)
        rate, frames, offset = int(index.rates[row]), int(index.frames[row]), int(index.offsets[row])
        entry = {"id": index.ids[row], "audio_filepath": path}
        entry |= {"duration": frames / rate, "frames": frames, "rate": rate}
        optional = {"offset": offset / rate, "text": index.transcripts[row], "speaker": index.speakers[row]}
        entry |= {key: value for key, value in optional.items() if value}
        yield json.dumps(entry, ensure_ascii=False)


def keep_index(source: Source, out: pathlib.Path) -> None:
    """Keeps the index of a manifest that has just been written, as data.name=jsonl would after reading it."""
    folder = absolute(out.parent)
    paths = (joined(out.parent, _path_from(absolute(path), folder)) for path in source.index.paths)
    index = dataclasses.replace(source.index, paths=Column.of(paths), skipped=[], notes=[])
    with contextlib.closing(KeptListing("jsonl", [out])) as kept:
        kept.write(index, {str(out): state_of(out)})


def _path_from(path: str, folder: str) -> str:
    below = path.removeprefix(os.path.join(folder, ""))
    return f"./{below}" if below.startswith("~") else below


# The plot


def pick_rows(durations: np.ndarray, count: int) -> np.ndarray:
    """Up to `count` rows, spread evenly from the shortest recording to the longest."""
    order = np.argsort(durations, kind="stable")
    return order[np.unique(np.linspace(0, len(order) - 1, min(count, len(order))).round().astype(int))]


def draw_sheet(source: Source, rows: Sequence[int] | np.ndarray, path: pathlib.Path) -> None:
    """Writes a PNG with one line per row: waveform and 80-bin log-mel spectrum, id, duration, rate, level, transcript.

    It shows at most the first 30 s of a recording. Clipping, silence and offsets are marked in red.
    """
    try:
        import librosa  # noqa: F401
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UserError(f"--plot needs librosa and matplotlib ({error}): pip install librosa matplotlib") from None
    figure = Figure(figsize=(13, 0.5 + 2.3 * len(rows)), dpi=100, facecolor="white")

    top, bottom = 0.25 / figure.get_figheight(), 0.45 / figure.get_figheight()
    height = (1 - top - bottom) / len(rows)
    image = None
    for number, row in enumerate(rows):
        base = 1 - top - (number + 1) * height
        wave_axes = figure.add_axes((0.045, base + 0.12 * height, 0.40, 0.56 * height))
        mel_axes = figure.add_axes((0.50, base + 0.12 * height, 0.445, 0.56 * height))
        image = _draw_row(source, int(row), wave_axes=wave_axes, mel_axes=mel_axes) or image
        if number == len(rows) - 1:
            wave_axes.set_xlabel("seconds", fontsize=8, color=GREY)
            mel_axes.set_xlabel("seconds", fontsize=8, color=GREY)
    if image is not None:
        bar = figure.add_axes((0.955, 1 - top - 0.88 * height, 0.007, 0.56 * height))
        figure.colorbar(image, cax=bar)
        _plain(bar)
        bar.set_title("dB", fontsize=7, color=GREY)
    path.parent.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph|Matplotlib currently", UserWarning)  # the font lacks a script
        with whole_file(path) as partial:
            figure.savefig(partial, format="png")


def _draw_row(source: Source, row: int, *, wave_axes: Any, mel_axes: Any) -> Any:
    """Plots one recording. Returns the image of its spectrum; None where the recording cannot be read."""
    from matplotlib.patches import Rectangle

    index = source.index
    seconds, rate = float(index.durations[row]), int(index.rates[row])
    shown_seconds = min(seconds, SHEET_SECONDS)
    facts = [f"{seconds:.2f} s", f"{rate / 1000:g} kHz"]
    if index.speakers[row]:
        facts.append(f"speaker {index.speakers[row]}")
    try:
        wave = source.read(row, 0, SHEET_SECONDS * SAMPLE_RATE)
        problems = _draw_wave(wave_axes, wave, shown_seconds)
        image = _draw_mel(mel_axes, wave, seconds=shown_seconds, rate=rate)
        facts.append(f"peak {_decibels(np.abs(wave).max())} dB, RMS {_decibels(np.sqrt(np.mean(wave**2)))} dB")
    except ReadError as error:
        problems, image = [f"cannot be read: {error}"], None
        for axes in (wave_axes, mel_axes):
            axes.set_axis_off()
    if shown_seconds < seconds:
        facts.append(f"first {shown_seconds:g} s")
    text = index.transcripts[row]
    _title(wave_axes, 0, index.ids[row], weight="bold", color=INK, width=52)
    _title(wave_axes, 1, text or "(no transcript)", color=INK if text else GREY, width=110 if problems else 165)
    _title(mel_axes, 0, "  ·  ".join(facts), color=GREY, width=100)
    if problems:
        mel_axes.text(1, 1.09, "   ".join(problems), transform=mel_axes.transAxes, ha="right", fontsize=9, color=RED)
        transform = wave_axes.transAxes
        wave_axes.add_patch(Rectangle((0, 0), 1, 1, transform=transform, fill=False, ec=RED, lw=1.5, clip_on=False))
    return image


def _draw_wave(axes: Any, wave: np.ndarray, seconds: float) -> list[str]:
    """Plots the envelope of a wave. Returns what is wrong with its level, as text."""
    step = max(1, len(wave) // 1500)
    blocks = np.pad(wave, (0, -len(wave) % step), mode="edge").reshape(-1, step)
    times = np.arange(len(blocks)) * step / SAMPLE_RATE
    axes.fill_between(times, blocks.min(axis=1), blocks.max(axis=1), color=BLUE, linewidth=0.4)
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
    axes.axhline(0, color=GREY, linewidth=0.4)
    _plain(axes)
    return problems


def _draw_mel(axes: Any, wave: np.ndarray, *, seconds: float, rate: int) -> Any:
    """Plots 80 mel bins in dB. A dashed line marks half the file's own rate where that is below 8 kHz."""
    import librosa

    mel = mel_decibels(wave)
    extent = (0, seconds, 0, len(mel))
    image = axes.imshow(mel, "magma", origin="lower", aspect="auto", interpolation="nearest", extent=extent)
    image.set_clim(FLOOR_DB, CEILING_DB)
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


if __name__ == "__main__":
    run_command(main)
