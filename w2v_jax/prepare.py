"""`python -m w2v_jax.prepare`: lists and checks recordings, writes a manifest or shards, makes a corpus, plots.

It lists every source that training reads. data.name=jsonl reads the manifest without opening the files; to check those
files again, list their folder. The command moves, changes and deletes none of the recordings.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import json
import os
import pathlib
import shlex
import sys
import tempfile
from collections.abc import Sequence
from typing import Any

from w2v_jax.core.cli import (
    UserError,
    command_parser,
    count_argument,
    expand_home,
    positive,
    run_command,
    writing,
)
from w2v_jax.core.config import load, split_overrides
from w2v_jax.core.files import absolute, state_of, write_whole
from w2v_jax.core.storage import MARK, output_file, output_folder
from w2v_jax.core.stores import is_remote, joined_path, place_argument
from w2v_jax.core.units import SAMPLE_RATE
from w2v_jax.data import open_source, source_names
from w2v_jax.data.index import Skip, Source, TooFew, skipped_by_kind, write_skipped
from w2v_jax.data.kept.columns import Column
from w2v_jax.data.kept.listings import KeptListing
from w2v_jax.data.prepared.cuts import PLACES, Cut
from w2v_jax.data.prepared.on_beam import on_beam
from w2v_jax.data.prepared.read_through import Notes, read_through
from w2v_jax.data.prepared.records import Options
from w2v_jax.data.prepared.shard_files import CONTENTS, damaged_shards
from w2v_jax.data.prepared.shard_jobs import ShardJob, in_processes, make_shards
from w2v_jax.data.prepared.summaries import index_report, report_text
from w2v_jax.data.prepared.tfds_metadata import SHARD_NAME
from w2v_jax.data.sources.jsonl import manifest_lines, path_from
from w2v_jax.reporting.sheets import draw_lengths, draw_sheet, pick_rows

WITHOUT_FILES = ("tfds", "codes", "features", "speech_units")
"""Sources whose rows are not files, so that a manifest cannot refer to them."""

SELF_MADE = ("synthetic", "speak")
MAX_BAD_IN_SHARDS = 0.01

EXAMPLES = """examples:
  Check two folders and write the manifest that training reads without opening the files again:
    python -m w2v_jax.prepare --source folder --root /data/a /data/b --out train.jsonl --skipped skipped.jsonl
    python -m w2v_jax.train --config=configs/w2v2_base.py --workdir=runs/mine \\
        --config.data.name=jsonl --config.data.root=train.jsonl
  Write shards: FLAC at 16 kHz in pieces of at most 30 s that end in pauses, by all cores; the same command goes on
  where it was stopped:
    python -m w2v_jax.prepare --root /data/a --shards corpora/a --rate 16000 --cut-seconds 30
    python -m w2v_jax.train --config=configs/w2v2_base.py --workdir=runs/mine \\
        --config.data.name=arrayrecord --config.data.root=corpora/a
    python -m w2v_jax.prepare --verify --root corpora/a
  Fail in a script when more than one recording in a hundred cannot be used:
    python -m w2v_jax.prepare --root /data/a --min-seconds 2 --max-bad 0.01
  Check tar shards; the manifest leads into them, and training opens none of them to list it:
    python -m w2v_jax.prepare --source webdataset --root /data/shards --out train.jsonl --max-bad 0.01
  Look at eight recordings, from the shortest to the longest, or at what a model is given at a step:
    python -m w2v_jax.prepare --root /data/a --plot sheet.png --rows 8
    python -m w2v_jax.prepare --step 1000 --plot step.png --config configs/w2v2_base.py --config.data.root=/data/a
  Make an hour of speech without a download, in a formant language or by text-to-speech:
    python -m w2v_jax.prepare --source synthetic --root corpora/formants --hours 1
    python -m w2v_jax.prepare --source speak --root corpora/english --hours 1 --language en
    python -m w2v_jax.prepare --source speak --root corpora/german --hours 1 --language de --text lines.txt

exit codes: 0 done, 1 a mistake or too much is bad, 2 wrong usage."""


def main(argv: Sequence[str]) -> int:
    args, overrides = _arguments(argv)
    if args.verify:
        return check_shards(args.root, _workers(args))
    if args.config or args.run:
        show_step(args, overrides)
        return 0
    if args.source in SELF_MADE:
        make_corpora(args)
    try:
        report = write_shards(args) if args.shards else write_index(args)
    except TooFew as error:
        write_reasons(args.skipped, error.skipped)
        raise
    _check_bad_share(report, args.max_bad if args.max_bad is not None else MAX_BAD_IN_SHARDS if args.shards else 1.0)
    return 0


def write_index(args: argparse.Namespace) -> dict[str, Any]:
    """Lists the recordings; writes the manifest, the report and the plot that are asked for. Returns the report."""
    options = json.dumps([args.split, args.cut_seconds, args.cut_at, args.decode])
    with contextlib.closing(Notes(args.source, args.root, options)) as notes:
        if notes.is_begun:
            print("going on where an earlier start was stopped", file=sys.stderr, flush=True)
        source = _listed(args, kept=notes.is_begun)
        cut, workers = _cut(args), _workers(args)
        source, recordings = read_through(source, cut=cut, decode=args.decode, workers=workers, notes=notes)
    index = source.index
    print(index.report())
    write_reasons(args.skipped, index.skipped)
    report = index_report(index, args.language or "", recordings=recordings)
    with writing("output", named=True):
        if args.out:
            with output_file(args.out) as file:
                write_whole(file, manifest_lines(source, args.out))
            keep_index(source, args.out)
            print(f"manifest: {args.out}; train on it with --config.data.name=jsonl --config.data.root={args.out}")
        if args.report:
            write_report(args.report, report)
        if args.plot:
            with output_file(args.plot) as file:
                draw_sheet(source, pick_rows(index.durations, args.rows), file)
            print(f"plot: {args.plot}")
    return report


def write_shards(args: argparse.Namespace) -> dict[str, Any]:
    """Makes the corpus of --shards, or goes on with it. Returns its report, which it also writes and prints.

    For a store each shard is made on this machine and sent when it is finished. Raises UserError.
    """
    if is_remote(args.shards) and (args.shards / CONTENTS).is_file() and not (args.shards / MARK).is_file():
        raise UserError(f"--shards {args.shards}: a finished corpus is there already; choose another folder")
    with output_folder(args.shards, last=[CONTENTS], apart=SHARD_NAME.replace("{:05d}", "*")) as folder:
        return _write_shards(args, folder)


def _write_shards(args: argparse.Namespace, folder: pathlib.Path) -> dict[str, Any]:
    about = {"source": args.source, "root": [absolute(root) for root in args.root], "split": args.split}
    job = ShardJob(
        folder,
        Options(args.rate, _cut(args), decode=args.decode),
        shard_bytes=round(args.shard_mb * 1e6),
        language=args.language or "",
        about={**about, "min_seconds": args.min_seconds},
        store=str(args.shards) if is_remote(args.shards) else "",
    )
    run = on_beam(shlex.split(args.beam)) if args.beam is not None else in_processes(_workers(args))
    report = make_shards(job, functools.partial(_listed, args), run)
    print(report_text(report))
    write_reasons(args.skipped, [Skip(**skip) for skip in report["skipped"]])
    with writing("output", named=True):
        draw_lengths(report["lengths"], folder / "report.png")
        if args.report:
            write_report(args.report, report)
    where = f"--config.data.name=arrayrecord --config.data.root={args.shards}"
    print(f"report: {args.shards / 'report.json'}, report.png\nshards: {args.shards}; train on them with {where}")
    return report


def write_report(path: pathlib.Path, report: dict[str, Any]) -> None:
    """Writes the report as JSON, and a histogram beside it. Raises OSError."""
    text = json.dumps(report, ensure_ascii=False, indent=1)
    with output_file(path) as file, output_file(path.with_suffix(".png")) as plot:
        write_whole(file, text.encode("utf-8", "backslashreplace").decode())
        draw_lengths(report["lengths"], plot)
    print(f"report: {path}, {path.with_suffix('.png').name}")


def check_shards(roots: Sequence[str], workers: int) -> int:
    """Compares the shards of corpora with the sums of their bytes: 0 where all are as they were written, else 1."""
    damaged = [skip for root in roots for skip in damaged_shards(place_argument(root), workers)]
    print("\n".join(skipped_by_kind(damaged)) or f"every shard of {', '.join(roots)} is as it was written")
    return 1 if damaged else 0


def show_step(args: argparse.Namespace, overrides: list[tuple[str, str]]) -> None:
    """Prints, and draws, what the model is given at a step of a run, or of a training with a config."""
    from w2v_jax.reporting.step_page import draw_step, planned_step, step_text
    from w2v_jax.training.workdir import read_config, run_folder

    with tempfile.TemporaryDirectory() as scratch:
        path = run_folder(args.run) if args.run else pathlib.Path(scratch)
        config = read_config(path) if args.run else load(args.config, overrides)
        planned = planned_step(config, args.step, path=path)
    print(step_text(planned, config))
    if args.plot:
        with writing(args.plot, named=True), output_file(args.plot) as file:
            draw_step(planned, config, file, rows=args.rows)
        print(f"plot: {args.plot}")


def _arguments(argv: Sequence[str]) -> tuple[argparse.Namespace, list[tuple[str, str]]]:
    argv, overrides = split_overrides(argv)
    description = (
        "Lists and checks recordings as training would: hours, durations, and what is skipped and why. "
        "Can also write a manifest or shards, make a corpus, and plot recordings."
    )
    parser = command_parser("prepare", description, EXAMPLES)
    add = parser.add_argument
    add("--source", default="folder", metavar="NAME", help=f"one of {', '.join(source_names())} (default: folder)")
    root = "where the recordings are or will be made"
    add("--root", nargs="+", type=expand_home, default=[], metavar="PATH", help=root)
    add("--out", type=place_argument, metavar="FILE.jsonl", help="write a manifest of the usable recordings")
    shards = "store what is usable as FLAC in ArrayRecord files"
    add("--shards", type=place_argument, metavar="FOLDER", help=shards)
    shard_mb = "the most that a shard holds, unless a single recording is larger (default: 256)"
    add("--shard-mb", type=positive, default=256.0, metavar="MB", help=shard_mb)
    rate = f"with --shards: resample to {SAMPLE_RATE} Hz, mono (default: as they are)"
    add("--rate", type=int, default=0, choices=[SAMPLE_RATE], metavar=str(SAMPLE_RATE), help=rate)
    cut = "cut longer recordings into pieces of at most so many seconds"
    add("--cut-seconds", type=positive, default=0.0, metavar="S", help=cut)
    cut_at = "end pieces at the quietest moments (default), or make them equally long"
    add("--cut-at", choices=PLACES, default=PLACES[0], help=cut_at)
    beam = "with --shards: make them on Apache Beam, whose pipeline gets these arguments: '--runner=FlinkRunner'"
    add("--beam", metavar="ARGS", help=beam)
    add("--verify", action="store_true", help="compare the shards in --root with the SHA-256 sums of their writing")
    add("--report", type=place_argument, metavar="FILE.json", help="write the report as JSON, a histogram beside it")
    add("--skipped", type=place_argument, metavar="FILE", help="write path and reason of everything skipped, as JSONL")
    max_bad = f"exit with 1 if more are bad (default: {MAX_BAD_IN_SHARDS:g} with --shards, otherwise 1)"
    add("--max-bad", "--max-skipped-share", type=_share, metavar="0..1", help=max_bad)
    add("--min-seconds", type=float, default=0.0, metavar="S", help="skip shorter recordings (training skips them too)")
    add("--plot", type=place_argument, metavar="FILE.png", help="plot waveform and log-mel spectrum of a few of them")
    add("--rows", type=int, default=6, metavar="N", help="how many recordings to plot (default: 6)")
    add("--step", type=int, metavar="K", help="show the batch of step K of a --config or --run instead, from 0")
    config = "with --step: the config of the training; --config.KEY=VALUE sets a key"
    add("--config", metavar="FILE[:variant]", help=config)
    add("--run", type=expand_home, metavar="RUN", help="with --step: the folder of a run")
    decode = "read every recording to its end (default), which finds damage in the middle, silence, wrong scales"
    add("--decode", action=argparse.BooleanOptionalAction, default=True, help=decode)
    add("--split", default="", help="split of tfds (e.g. train[:10%%]), parquet and common_voice")
    add("--hours", type=float, default=0.0, metavar="H", help="hours of a self-made corpus")
    add("--seed", type=int, default=0, help="seed of a self-made corpus; it changes speakers and sentences")
    add("--speakers", type=int, default=0, metavar="N", help="training speakers of a self-made corpus (0: by hours)")
    language = "language of all recordings, for shards and reports; of a speak corpus espeak's code (default there: en)"
    add("--language", metavar="CODE", help=language)
    add("--voices", nargs="+", default=[], metavar="V", help="speak corpus: espeak's voice variants, e.g. f1 m3 klatt")
    add("--text", type=expand_home, default="", metavar="FILE", help="speak corpus: UTF-8 file of lines to speak")
    add("--workers", type=count_argument, default=0, metavar="N", help="threads or processes (default: all cores)")
    args = parser.parse_args(argv)
    _check_step(parser, args, overrides)
    if not args.root and args.step is None:
        parser.error("--root is needed: where the recordings are")
    if args.out and args.shards:
        parser.error("--out lists the recordings where they are, and --shards stores them anew: give one of the two")
    if args.shards and is_remote(args.shards) and args.beam is not None:
        parser.error(f"--shards {args.shards}: Beam's workers need a folder that all of them see: mount the bucket")
    if args.rate and not args.shards:
        parser.error("--rate needs --shards: training resamples what it reads anyway")
    if args.beam is not None and not args.shards:
        parser.error("--beam needs --shards")
    if args.plot and args.shards:
        parser.error("--plot: plot the shards when they are there, with --source arrayrecord --root FOLDER")
    if args.shards and args.source in WITHOUT_FILES:
        parser.error(f"--shards: {args.source} gives no files of recordings; name those that it was made of")
    for flag, what, suffix in (("report", "report", ".json"), ("out", "manifest", ".jsonl"), ("plot", "plot", ".png")):
        if (file := getattr(args, flag)) and file.suffix != suffix:
            parser.error(f"--{flag} {file}: the name of a {what} must end in {suffix}")
    if args.out and args.source in WITHOUT_FILES:
        parser.error(f"--out: rows of {args.source} are not files; train on them with --config.data.name={args.source}")
    if args.plot and args.source == "codes":
        parser.error("--plot: codes have no waveform; leave --plot out")
    if args.rows < 1:
        parser.error("--rows must be at least 1")
    return args, overrides


def _check_step(
    parser: argparse.ArgumentParser, args: argparse.Namespace, overrides: Sequence[tuple[str, str]]
) -> None:
    """Exits with 2 where --step, --config and --run do not fit each other."""
    if (args.step is None) != (not (args.config or args.run)):
        parser.error("--step K and --config FILE (or --run RUN) belong together")
    if args.config and args.run:
        parser.error("--run has a config of its own: leave --config out")
    if overrides and not args.config:
        parser.error(f"--config.{overrides[0][0]} needs --config FILE")


def _cut(args: argparse.Namespace) -> Cut | None:
    return Cut(args.cut_seconds, args.cut_at) if args.cut_seconds else None


def _workers(args: argparse.Namespace) -> int:
    return args.workers or os.cpu_count() or 1


def _listed(args: argparse.Namespace, kept: bool = False) -> Source:
    """The recordings that are listed. kept: what an earlier start has listed is not looked at again."""
    return open_source(
        args.source,
        tuple(args.root),
        min_seconds=args.min_seconds,
        workers=args.workers,
        split=args.split,
        hours=args.hours,
        language=args.language or "en",
        kept=kept,
    )


def write_reasons(path: pathlib.Path | None, skipped: Sequence[Skip]) -> None:
    """Writes what is skipped to the file that --skipped names, if it names one. Raises UserError."""
    if path is None:
        return
    with writing(f"--skipped {path}"), output_file(path) as file:
        write_skipped(file, skipped)
    print(f"skipped files and reasons: {path}")


def make_corpora(args: argparse.Namespace) -> None:
    """Makes the corpus of each root unless it exists. With --decode, compares its files with their SHA-256."""
    from w2v_jax.data.io import corpus
    from w2v_jax.data.sources import speak, synthetic

    is_specified, write = bool(args.seed or args.speakers), synthetic.write_corpus
    if args.source == "speak":
        is_specified = bool(is_specified or args.voices or args.text)
        language = args.language or "en"
        write = functools.partial(speak.write_corpus, language=language, voices=args.voices, text=args.text)
    for root in args.root:
        existing = corpus.read_settings(root)
        if is_specified or not existing:  # otherwise an existing corpus is used as it is
            hours = args.hours or (existing or {}).get("hours") or corpus.DEFAULT_HOURS
            write(root, hours, seed=args.seed, speakers=args.speakers)
        if args.decode and (damaged := corpus.verify(root)):
            path, reason = damaged[0]
            raise UserError(f"{len(damaged):,} files of {root} were damaged or lost; delete them. {path}: {reason}")


def _share(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text}: a share must lie between 0 and 1")
    return value


def _check_bad_share(report: dict[str, Any], max_bad: float) -> None:
    """Raises UserError where more than this share of all recordings is lost."""
    lost, usable = report["lost"], report["recordings"]
    share = lost / max(1, usable + lost)
    if share > max_bad:
        raise UserError(
            f"{lost:,} of {usable + lost:,} recordings ({share:.1%}) cannot be used, more than --max-bad={max_bad:g} "
            "allows; see the reasons above, or all paths with --skipped FILE"
        )


# The manifest


def keep_index(source: Source, out: pathlib.Path) -> None:
    """Keeps the index of a manifest that has just been written, as data.name=jsonl would after reading it."""
    folder = absolute(out.parent)
    paths = (joined_path(out.parent, path_from(absolute(path), folder)) for path in source.index.paths)
    index = dataclasses.replace(source.index, paths=Column.of(paths), skipped=[], notes=[])
    with contextlib.closing(KeptListing("jsonl", [out])) as kept:
        kept.write(index, {str(out): state_of(out)})


if __name__ == "__main__":
    run_command(main)
