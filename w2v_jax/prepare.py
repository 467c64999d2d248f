"""`python -m w2v_jax.prepare`: lists and checks recordings, writes a manifest, makes a corpus, shows a few rows.

Every source that training reads can be listed here. The manifest is one that data.name=jsonl reads without opening
the files; to check those files again, list their folder. Nothing is converted, moved or deleted.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import textwrap
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from w2v_jax.config import SAMPLE_RATE, UserError, run_command
from w2v_jax.data import open_source, source_names
from w2v_jax.data.index import ReadError, Skip, Source, subset

WITHOUT_FILES = ("tfds", "codes")
"""Sources whose rows are not files, so that no manifest can point at them."""

SELF_MADE = ("synthetic", "speak")
DECODED_AT_ONCE = 60 * SAMPLE_RATE

EXAMPLES = """examples:
  Check two folders and write the manifest that training reads without opening the files again:
    python -m w2v_jax.prepare --source folder --root /data/a /data/b --out train.jsonl --skipped skipped.jsonl
    python -m w2v_jax.train --config=configs/w2v2_base.py --workdir=runs/mine \\
        --config.data.name=jsonl --config.data.root=train.jsonl
  Fail in a script when more than one recording in a hundred cannot be used:
    python -m w2v_jax.prepare --root /data/a --min-seconds 2 --max-skipped-share 0.01
  Look at eight recordings, from the shortest to the longest:
    python -m w2v_jax.prepare --root /data/a --plot sheet.png --rows 8
  Make an hour of speech without a download, in a formant language or by text-to-speech:
    python -m w2v_jax.prepare --source synthetic --root corpora/formants --hours 1
    python -m w2v_jax.prepare --source speak --root corpora/english --hours 1 --language en
    python -m w2v_jax.prepare --source speak --root corpora/german --hours 1 --language de --text lines.txt

exit codes: 0 done, 1 a mistake or too much skipped, 2 wrong usage."""

FLOOR_DB, CEILING_DB = -70, 10  # of the mel panels; fixed, so that a silent recording looks silent
SHEET_SECONDS = 30
FULL_SCALE = 0.999
SILENT_DB = -50
INK, BLUE, RED, GREY = "#222222", "#3b6ea5", "#c0392b", "#777777"


def main(argv: Sequence[str]) -> int:
    args = _arguments(argv)
    options = {"min_seconds": args.min_seconds, "workers": args.workers, "split": args.split}
    if args.source in SELF_MADE:
        make_corpora(args)
    source = open_source(args.source, tuple(args.root), **options, hours=args.hours, language=args.language)
    if args.decode:
        source = decodable(source, args.workers or os.cpu_count() or 1)
    index = source.index
    print(index.report())
    try:
        if args.out:
            write_whole(args.out, manifest_lines(source, args.out))
            print(f"manifest: {args.out}; train on it by --config.data.name=jsonl --config.data.root={args.out}")
        if args.skipped:
            write_whole(args.skipped, (json.dumps(skip._asdict(), ensure_ascii=False) for skip in index.skipped))
            print(f"skipped files with their reasons: {args.skipped}")
        if args.plot:
            draw_sheet(source, pick_rows(index.durations, args.rows), args.plot)
            print(f"sheet of recordings: {args.plot}")
    except OSError as error:
        raise UserError(f"{error.filename or 'output'}: cannot be written ({error.strerror or error})") from None
    return _verdict(len(index), index.skipped, args.max_skipped_share)


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m w2v_jax.prepare",
        description="Lists and checks recordings as training would: hours, durations, and what is skipped and why. "
        "Writes a manifest, makes a corpus, draws a sheet of a few recordings.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--source", default="folder", metavar="NAME", help=f"one of {', '.join(source_names())} (default: folder)")
    add("--root", nargs="+", required=True, metavar="PATH", help="where the recordings are, or are to be made")
    add("--out", type=pathlib.Path, metavar="FILE.jsonl", help="write a manifest of the usable recordings")
    add("--skipped", type=pathlib.Path, metavar="FILE", help="write path and reason of everything skipped, as JSONL")
    add("--max-skipped-share", type=_share, default=1.0, metavar="0..1", help="exit with 1 if more cannot be used")
    add("--min-seconds", type=float, default=0.0, metavar="S", help="skip shorter recordings (training skips them too)")
    add("--plot", type=pathlib.Path, metavar="FILE.png", help="draw waveform and log-mel spectrum of a few recordings")
    add("--rows", type=int, default=6, metavar="N", help="how many recordings to draw (default: 6)")
    add("--decode", action="store_true", help="read every recording to its end, which finds damage in the middle")
    add("--split", default="", help="of a TensorFlow dataset, e.g. train[:10%%]")
    add("--hours", type=float, default=0.0, metavar="H", help="how much a self-made corpus is to hold")
    add("--seed", type=int, default=0, help="of a self-made corpus: another one, other speakers and sentences")
    add(
        "--speakers",
        type=int,
        default=0,
        metavar="N",
        help="of a self-made corpus, to train on (default: by its hours)",
    )
    add("--language", default="en", help="of the speak corpus: a language code of espeak, e.g. en-us (default: en)")
    add("--voices", nargs="+", default=[], metavar="V", help="of the speak corpus: espeak's variants, e.g. f1 m3 klatt")
    add("--text", default="", metavar="FILE", help="of the speak corpus: lines to be spoken, in UTF-8")
    add("--workers", type=int, default=0, metavar="N", help="threads that open files (default: one per core)")
    args = parser.parse_args(argv)
    if args.out and args.out.suffix != ".jsonl":
        parser.error(f"--out {args.out}: the name of a manifest ends in .jsonl")
    if args.plot and args.plot.suffix != ".png":
        parser.error(f"--plot {args.plot}: the name of a sheet ends in .png")
    if args.out and args.source in WITHOUT_FILES:
        parser.error(f"--out: rows of {args.source} are not files; train on them by --config.data.name={args.source}")
    if args.plot and args.source == "codes":
        parser.error("--plot: codes have no waveform; --source codes only counts them")
    if args.rows < 1:
        parser.error("--rows needs at least 1")
    return args


def make_corpora(args: argparse.Namespace) -> None:
    """Makes the corpus of each root, unless it is there; with --decode checks its files by their SHA-256."""
    from w2v_jax.data import corpus, speak, synthetic

    asked = {"seed": args.seed, "speakers": args.speakers}
    if args.source == "speak":
        asked |= {"voices": args.voices, "text": args.text}
    asked = {key: value for key, value in asked.items() if value}
    for root in args.root:
        made = corpus.read_settings(root)
        if asked or not made:  # what is there and not asked about is taken as it is
            hours = args.hours or (made or {}).get("hours") or synthetic.DEFAULT_HOURS
            if args.source == "synthetic":
                synthetic.write_corpus(root, hours, **asked)
            else:
                speak.write_corpus(root, hours, language=args.language, **asked)
        if args.decode and (wrong := corpus.verify(root)):
            path, reason = wrong[0]
            raise UserError(f"{len(wrong):,} files of {root} are not as they were made; delete them. {path}: {reason}")


def decodable(source: Source, workers: int) -> Source:
    """The source without the recordings that cannot be read to their end, which join the skipped ones."""
    index = source.index

    def fault(row: int) -> str:
        try:
            for start in range(0, int(index.num_samples[row]), DECODED_AT_ONCE):
                source.read(row, start, DECODED_AT_ONCE)
        except ReadError as error:
            return str(error)
        return ""

    with ThreadPoolExecutor(workers) as pool:
        faults = list(pool.map(fault, range(len(index))))
    index.skipped.extend(Skip(str(index.paths[row]), reason) for row, reason in enumerate(faults) if reason)
    if all(faults):
        raise UserError(
            f"none of the {len(index):,} recordings can be decoded; the first: {index.skipped[-len(faults)]}"
        )
    return subset(source, np.flatnonzero([not reason for reason in faults]))


def _share(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text}: a share lies between 0 and 1")
    return value


def _verdict(count: int, skipped: Sequence[Skip], limit: float) -> int:
    lost = sum(is_lost_recording(skip) for skip in skipped)
    share = lost / max(1, count + lost)
    if share <= limit:
        return 0
    raise UserError(
        f"{lost:,} of {count + lost:,} recordings ({share:.1%}) cannot be used, more than "
        f"--max-skipped-share={limit:g} allows; the reasons stand above, all paths with --skipped FILE"
    )


def is_lost_recording(skip: Skip) -> bool:
    """False for what was never a recording: files with other extensions, folders and transcripts listed twice."""
    other_file = "is not one of audio" in skip.reason and "wrong extension" not in skip.reason
    again = skip.reason.startswith("repeated transcript")
    return not other_file and not again and skip.reason not in ("directory listed already", "Mac resource file")


# The manifest


def manifest_lines(source: Source, out: pathlib.Path) -> Iterator[str]:
    """JSON objects that data.name=jsonl turns into the same index; paths below the manifest's folder are relative."""
    index, folder = source.index, os.path.abspath(out.parent)
    for row in range(len(index)):
        rate = int(index.rates[row])
        entry: dict[str, Any] = {
            "id": index.ids[row],
            "audio_filepath": _path_from(os.path.abspath(index.paths[row]), folder),
            "duration": int(index.frames[row]) / rate,
            "frames": int(index.frames[row]),
            "rate": rate,
        }
        if index.offsets[row]:
            entry["offset"] = int(index.offsets[row]) / rate
        for key, text in (("text", index.transcripts[row]), ("speaker", index.speakers[row])):
            if text:
                entry[key] = text
        yield json.dumps(entry, ensure_ascii=False)


def _path_from(path: str, folder: str) -> str:
    below = path.removeprefix(os.path.join(folder, ""))
    return f"./{below}" if below.startswith("~") else below


def write_whole(path: pathlib.Path, lines: Iterator[str]) -> None:
    """Writes lines to a file that appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    with partial.open("w", encoding="utf-8") as file:
        file.writelines(f"{line}\n" for line in lines)
    os.replace(partial, path)


# The sheet


def pick_rows(durations: np.ndarray, count: int) -> np.ndarray:
    """Up to `count` rows, evenly spread from the shortest recording to the longest."""
    order = np.argsort(durations, kind="stable")
    return order[np.unique(np.linspace(0, len(order) - 1, min(count, len(order))).round().astype(int))]


def draw_sheet(source: Source, rows: Sequence[int] | np.ndarray, path: pathlib.Path) -> None:
    """A PNG with one line per row: waveform and 80-bin log-mel spectrum, id, duration, rate, level, transcript.

    Of long recordings the first 30 s are drawn. Levels above full scale and near silence are marked in red.
    """
    try:
        import librosa  # noqa: F401
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UserError(f"--plot needs librosa and matplotlib ({error}): pip install librosa matplotlib") from None
    figure = Figure(figsize=(13, 0.5 + 2.3 * len(rows)), dpi=100, facecolor="white")
    FigureCanvasAgg(figure)
    top, bottom = 0.25 / figure.get_figheight(), 0.45 / figure.get_figheight()
    height = (1 - top - bottom) / len(rows)
    image = None
    for number, row in enumerate(rows):
        base = 1 - top - (number + 1) * height
        wave_axes = figure.add_axes((0.045, base + 0.12 * height, 0.40, 0.56 * height))
        mel_axes = figure.add_axes((0.50, base + 0.12 * height, 0.445, 0.56 * height))
        image = _draw_row(source, int(row), wave_axes, mel_axes) or image
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
        warnings.filterwarnings("ignore", "Glyph|Matplotlib currently", UserWarning)  # a script the font lacks
        figure.savefig(path)


def _draw_row(source: Source, row: int, wave_axes: Any, mel_axes: Any) -> Any:
    """Draws one recording; returns the image of its spectrum, None if it cannot be read."""
    index = source.index
    seconds, rate = float(index.durations[row]), int(index.rates[row])
    shown = min(seconds, SHEET_SECONDS)
    facts = [f"{seconds:.2f} s", f"{rate / 1000:g} kHz"]
    if index.speakers[row]:
        facts.append(f"speaker {index.speakers[row]}")
    try:
        wave = source.read(row, 0, SHEET_SECONDS * SAMPLE_RATE)
        faults = _draw_wave(wave_axes, wave, shown)
        image = _draw_mel(mel_axes, wave, shown, rate)
        facts.append(f"peak {_decibels(np.abs(wave).max())} dB, RMS {_decibels(np.sqrt(np.mean(wave**2)))} dB")
    except ReadError as error:
        faults, image = [f"cannot be read: {error}"], None
        for axes in (wave_axes, mel_axes):
            axes.set_axis_off()
    if shown < seconds:
        facts.append(f"the first {shown:g} s are shown")
    text = index.transcripts[row]
    _title(wave_axes, 0, index.ids[row], weight="bold", color=INK, width=52)
    _title(wave_axes, 1, text or "(no transcript)", color=INK if text else GREY, width=110 if faults else 165)
    _title(mel_axes, 0, "  ·  ".join(facts), color=GREY, width=100)
    if faults:
        mel_axes.text(1, 1.09, "   ".join(faults), transform=mel_axes.transAxes, ha="right", fontsize=9, color=RED)
        wave_axes.add_patch(_frame(wave_axes))
    return image


def _draw_wave(axes: Any, wave: np.ndarray, seconds: float) -> list[str]:
    """The envelope of a wave within full scale; returns what is wrong with its level, in words."""
    step = max(1, len(wave) // 1500)
    blocks = np.pad(wave, (0, -len(wave) % step), mode="edge").reshape(-1, step)
    times = np.arange(len(blocks)) * step / SAMPLE_RATE
    axes.fill_between(times, blocks.min(axis=1), blocks.max(axis=1), color=BLUE, linewidth=0.4)
    clipped = np.abs(wave) >= FULL_SCALE
    faults = []
    if clipped.sum() > 2:
        faults.append(f"{clipped.sum():,} samples at full scale: clipped?")
        hit = np.abs(blocks).max(axis=1) >= FULL_SCALE
        axes.plot(times[hit], np.ones(hit.sum()), "|", color=RED, markersize=5, clip_on=False)
    if _decibels(np.abs(wave).max()) < SILENT_DB:
        faults.append("silent")
    if abs(wave.mean()) > 0.02:
        faults.append(f"offset {wave.mean():+.2f}")
    axes.set(xlim=(0, seconds), ylim=(-1, 1), yticks=(-1, 0, 1))
    axes.axhline(0, color=GREY, linewidth=0.4)
    _plain(axes)
    return faults


def _draw_mel(axes: Any, wave: np.ndarray, seconds: float, rate: int) -> Any:
    """80 mel bins from windows of 25 ms every 10 ms, in dB; a dashed line where the file's own rate ends."""
    import librosa

    mel = log_mel(wave)
    image = axes.imshow(
        mel,
        origin="lower",
        aspect="auto",
        cmap="magma",
        vmin=FLOOR_DB,
        vmax=CEILING_DB,
        extent=(0, seconds, 0, len(mel)),
        interpolation="nearest",
    )
    edges = librosa.mel_frequencies(len(mel) + 2, fmin=0, fmax=SAMPLE_RATE / 2)
    ticks = np.array([500, 1000, 2000, 4000, 7500])
    axes.set_yticks(np.interp(ticks, edges[1:-1], np.arange(len(mel)) + 0.5), ["0.5", "1", "2", "4", "7.5 kHz"])
    if rate < SAMPLE_RATE:
        limit = np.interp(rate / 2, edges[1:-1], np.arange(len(mel)) + 0.5)
        axes.axhline(limit, color="white", linewidth=0.8, linestyle="--")
    _plain(axes)
    return image


def log_mel(wave: np.ndarray) -> np.ndarray:
    """Log-mel spectrum in dB [80 frames] of a wave [T] at 16 kHz."""
    import librosa

    power = librosa.feature.melspectrogram(
        y=wave, sr=SAMPLE_RATE, n_fft=512, win_length=400, hop_length=160, n_mels=80, pad_mode="constant"
    )
    return librosa.power_to_db(power, ref=1.0, amin=1e-10, top_db=None)


def _title(axes: Any, line: int, text: str, *, width: int, **style: Any) -> None:
    shown = textwrap.shorten(text, width, placeholder=" …") if " " in text else text[:width]
    height = (1.27, 1.09)[line]
    axes.text(0, height, shown, transform=axes.transAxes, fontsize=9, parse_math=False, **style)


def _frame(axes: Any) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle((0, 0), 1, 1, transform=axes.transAxes, fill=False, edgecolor=RED, linewidth=1.5, clip_on=False)


def _plain(axes: Any) -> None:
    for side in axes.spines.values():
        side.set_visible(False)
    axes.tick_params(labelsize=7, colors=GREY, length=2)


def _decibels(amplitude: float) -> int:
    return round(20 * np.log10(max(float(amplitude), 1e-6)))


if __name__ == "__main__":
    run_command(main)
