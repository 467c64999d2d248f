"""`python -m w2v_jax.prepare`: lists and checks audio, writes a manifest, makes the self-made corpora.

The manifest is what `data.name=jsonl` reads without opening a file. Nothing is converted or copied: a run resamples
and cuts while it reads.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import sys
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from w2v_jax.config import SAMPLE_RATE, UserError, run_command
from w2v_jax.data import open_source, source_names
from w2v_jax.data.index import ReadError, Skip, Source, subset

MADE = ("synthetic", "speak")
NO_RECORDING = ("extension ", "Mac resource file", "directory listed already")
"""How the reasons begin of skipped things that were not meant to be recordings: they do not count as a loss."""

DECODED_AT_ONCE = 60 * SAMPLE_RATE

DESCRIPTION = """\
Lists every recording of a source, reports hours, lengths and what was left out and why, and writes a manifest.
For synthetic and speak it makes the corpus first, or finds it made; a stopped making goes on where it was.
"""
EXAMPLES = """\
examples:
  python -m w2v_jax.prepare --root /data/a /data/b --out manifest.jsonl --skipped skipped.jsonl
  python -m w2v_jax.prepare --source tsv --root train.tsv --decode --out manifest.jsonl
  python -m w2v_jax.prepare --source tfds --root librispeech/lazy_decode --split train_clean100
  python -m w2v_jax.prepare --source synthetic --root data/synthetic --hours 1
  python -m w2v_jax.prepare --source speak --root data/german --hours 2 --language de
then:
  python -m w2v_jax.train --config=configs/w2v2_base.py --workdir=runs/mine \\
      --config.data.name=jsonl --config.data.root=manifest.jsonl
exit codes: 0 all is well; 1 nothing usable, or too much left out (--max-skipped-share); 2 wrong usage
"""


def main(argv: Sequence[str]) -> int:
    args = parser().parse_args(argv)
    if not 0 <= args.max_skipped_share <= 1:
        raise UserError(f"--max-skipped-share={args.max_skipped_share:g} is not between 0 and 1")
    for name in ("out", "skipped"):
        check_folder(getattr(args, name), f"--{name}")
    if args.source in MADE:
        make_corpora(args)
    source = open_source(
        args.source,
        tuple(args.root),
        min_seconds=args.min_seconds,
        workers=args.workers,
        split=args.split,
        hours=args.hours,
        language=args.language,
    )
    if args.decode:
        source = decoded(source, args.workers or os.cpu_count() or 1)
    index = source.index
    print(index.report())
    if args.skipped:
        write_lines(args.skipped, (skip._asdict() for skip in index.skipped))
        print(f"wrote {args.skipped}: {len(index.skipped):,} lines")
    if args.out:
        write_manifest(source, args.out)
        print(
            f"wrote {args.out}: {len(index):,} lines; train with --config.data.name=jsonl --config.data.root={args.out}"
        )
    return judge(len(index), index.skipped, args.max_skipped_share)


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m w2v_jax.prepare",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("--source", default="folder", help=f"{', '.join(source_names())} (default: folder)")
    p.add_argument(
        "--root", nargs="+", required=True, help="folders, manifests or dataset names; where to make a corpus"
    )
    p.add_argument(
        "--out", metavar="FILE", help="write a JSONL manifest; paths below its folder are kept relative to it"
    )
    p.add_argument("--skipped", metavar="FILE", help="write everything that was left out: JSONL of path and reason")
    p.add_argument("--min-seconds", type=float, default=0.0, help="leave out shorter recordings (default: 0, keep all)")
    p.add_argument(
        "--max-skipped-share",
        type=float,
        default=0.1,
        metavar="SHARE",
        help="exit with 1 when more than this share of the recordings was left out (default: 0.1)",
    )
    p.add_argument("--decode", action="store_true", help="read every recording to its end, not only headers and ends")
    p.add_argument("--workers", type=int, default=0, help="threads (default: one per core)")
    p.add_argument("--split", default="", help="tfds: the split, e.g. train or train_clean100")
    made = p.add_argument_group("synthetic and speak")
    made.add_argument("--hours", type=float, default=0.0, help="how much to make (default: 0.5)")
    made.add_argument("--seed", type=int, default=0, help="another seed, other speakers and sentences")
    made.add_argument("--speakers", type=int, default=0, help="voices of the training part (default: by the hours)")
    made.add_argument("--language", default="en", help="speak: an espeak language, e.g. en, en-us, de, ar, cmn")
    made.add_argument("--text", default="", metavar="FILE", help="speak: sentences to say, one a line, UTF-8")
    return p


def make_corpora(args: argparse.Namespace) -> None:
    """Makes the corpus of each root that has none yet."""
    from w2v_jax.data import corpus, speak, synthetic

    for root in map(pathlib.Path, args.root):
        made = corpus.read_settings(root) or {}
        hours = args.hours or made.get("hours") or 0.5
        common = {"seed": args.seed, "speakers": args.speakers or made.get("speakers", 0)}
        if args.source == "synthetic":
            synthetic.write_corpus(root, hours, **common)
        else:
            speak.write_corpus(root, hours, language=args.language, text=args.text, **common)
        if args.decode and (wrong := corpus.verify(root)):
            path, reason = wrong[0]
            raise UserError(
                f"{len(wrong):,} files of {root} are not as they were made, the first {path}: {reason}; delete them and start again"
            )


def decoded(source: Source, workers: int) -> Source:
    """The source without the recordings that cannot be read to their end, which join the skipped ones."""
    index = source.index

    def fault(row: int) -> str:
        try:
            for start in range(0, int(index.num_samples[row]), DECODED_AT_ONCE):
                source.read(row, start, DECODED_AT_ONCE)
        except ReadError as error:
            return str(error)
        return ""

    good = np.ones(len(index), bool)
    with ThreadPoolExecutor(workers) as pool:
        for row, reason in enumerate(pool.map(fault, range(len(index)))):
            if reason:
                good[row] = False
                index.skipped.append(Skip(str(index.paths[row]), reason))
    if not good.any():
        raise UserError(
            f"none of the {len(index):,} recordings can be read; the first: {index.skipped[-1].path}: {index.skipped[-1].reason}"
        )
    return source if good.all() else subset(source, np.flatnonzero(good))


def write_manifest(source: Source, out: str) -> None:
    """JSONL as `data/jsonl.py` reads it, with `frames` and `rate` so that no file is opened for listing."""
    index, folder = source.index, os.path.dirname(os.path.abspath(out))
    if len(index) and not os.path.exists(index.paths[0]):
        raise UserError(
            "--out: the recordings of this source are no files of their own; train with its data.name instead"
        )

    def entries() -> Iterator[dict]:
        columns = (index.ids, index.paths, index.offsets, index.frames, index.rates, index.speakers, index.transcripts)
        for name, path, offset, frames, rate, speaker, text in zip(*columns, strict=True):
            entry = {"id": str(name), "audio_filepath": relative(str(path), folder)}
            entry |= {"offset": int(offset) / int(rate)} if offset else {}
            entry |= {"duration": int(frames) / int(rate), "frames": int(frames), "rate": int(rate)}
            entry |= {"speaker": str(speaker)} if speaker else {}
            yield entry | ({"text": str(text)} if text else {})

    write_lines(out, entries())


def relative(path: str, folder: str) -> str:
    """Below the manifest's folder the path from there, so that both can move together; elsewhere the whole path."""
    path = os.path.abspath(path)
    return os.path.relpath(path, folder) if path.startswith(os.path.join(folder, "")) else path


def write_lines(out: str, entries: Iterable[dict]) -> None:
    """One JSON object per line; the file appears whole or not at all."""
    partial = pathlib.Path(f"{out}.partial")
    try:
        with partial.open("w", encoding="utf-8") as file:
            for entry in entries:
                file.write(json.dumps(entry, ensure_ascii=False) + "\n")
        os.replace(partial, out)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise UserError(f"{out} cannot be written: {error.strerror or error}") from None


def check_folder(out: str | None, option: str) -> None:
    """Raises UserError before the listing, which can take hours, when its result could not be written."""
    if not out:
        return
    folder = os.path.dirname(os.path.abspath(out))
    if os.path.isdir(out) or not os.path.isdir(folder):
        raise UserError(
            f"{option}={out}: "
            + ("is a folder, a file is needed" if os.path.isdir(out) else f"there is no folder {folder}")
        )
    if not os.access(folder, os.W_OK):
        raise UserError(f"{option}={out}: the folder {folder} cannot be written to")


def judge(rows: int, skipped: Sequence[Skip], limit: float) -> int:
    """The exit code: 1 when a larger share of recordings than `limit` was left out."""
    lost = sum(not skip.reason.startswith(NO_RECORDING) or "wrong extension" in skip.reason for skip in skipped)
    share = lost / max(1, rows + lost)
    if share <= limit:
        return 0
    print(
        f"error: {lost:,} of {rows + lost:,} recordings were left out ({share:.1%}), more than "
        f"--max-skipped-share={limit:g}; the reasons are above, all of them with --skipped FILE",
        file=sys.stderr,
    )
    return 1


if __name__ == "__main__":
    run_command(main)
