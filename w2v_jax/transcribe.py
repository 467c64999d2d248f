"""`python -m w2v_jax.transcribe --run RUN FILE ...`: transcribes recordings.

Recordings may have any length, rate and channel count. Long ones are cut into overlapping pieces, so that memory stays
bounded and no word is cut.
"""

from __future__ import annotations

import argparse
import itertools
import json
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from w2v_jax.core.cli import UserError, command_parser, one_line, run_command, writing
from w2v_jax.core.files import write_whole
from w2v_jax.core.progress import ProgressBar
from w2v_jax.core.storage import output_file
from w2v_jax.core.stores import place_argument
from w2v_jax.data.index import Skip, Source
from w2v_jax.data.io.listing import Candidate, list_files
from w2v_jax.data.sources import folder
from w2v_jax.decoding import confidence
from w2v_jax.inference.recognizer import Recognizer, add_arguments, log_probs, open_with_decoder, reading_of

EXAMPLES = """examples:
  python -m w2v_jax.transcribe --run runs/10h talk.mp3 interviews/
  python -m w2v_jax.transcribe --run runs/10h --lm 4-gram.arpa --confidence --out talk.jsonl talk.mp3

Prints one line per recording, FILE<tab>TEXT, on standard output, and everything else on standard error. A tab or line
break in the name of a file becomes \\t or \\n there; --out keeps names as they are.
exit codes: 0 done, 1 a mistake or an unreadable file, 2 wrong usage."""


def main(argv: Sequence[str]) -> int:
    args = _arguments(argv)
    recognizer, search, decoder = open_with_decoder(args)
    source, failed = open_files(args.files, args.workers)
    index, lines = source.index, {}
    progress = ProgressBar("transcribing", index.hours)
    on_skip = lambda row, reason: failed.append(Skip(str(index.paths[row]), reason))
    for row, frames in log_probs(recognizer, source, **reading_of(args), on_skip=on_skip):
        hypotheses = decoder(frames)
        texts = [recognizer.alphabet.decode(hypothesis.ids) for hypothesis in hypotheses]
        words = words_of(recognizer, frames, hypotheses[0].ids) if args.confidence else []
        sure = "\t" + " ".join(f"{word['confidence']:.2f}" for word in words) if args.confidence else ""
        progress.print(f"{one_line(index.paths[row])}\t{texts[0]}{sure}")
        line = {"path": str(index.paths[row]), "seconds": round(float(index.durations[row]), 3), "text": texts[0]}
        if search and search.n_best > 1:
            line["n_best"] = [{"text": t, "score": round(h.score, 4)} for t, h in zip(texts, hypotheses, strict=True)]
        if args.confidence:
            line["words"] = words
        lines[row] = json.dumps(line, ensure_ascii=False)
        progress.add(float(index.durations[row]))
    progress.close()
    if args.out:
        with writing(f"--out {args.out}"), output_file(args.out) as file:
            write_whole(file, (lines[row] for row in sorted(lines)))
    for path, reason in failed:
        print(f"error: {one_line(path)}: {reason}", file=sys.stderr)
    where = f" in {args.out}" if args.out else ""
    read = f"{len(lines):,} recordings{where}, {len(failed):,} not readable"
    print(f"done: {read}; by {recognizer.run.path}, {recognizer.run.at_step()}", file=sys.stderr)
    return 1 if failed else 0


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    description = "Transcribes recordings with a CTC run."
    parser = command_parser("transcribe", description, EXAMPLES)
    add_arguments(parser)
    parser.add_argument("files", nargs="+", type=place_argument, metavar="FILE", help="recordings, or folders of them")
    out = "also write path, seconds, text and n best as JSONL"
    sure = "how sure the model is of each word, from 0 to 1: a third column, and with its times in --out"
    parser.add_argument("--confidence", action="store_true", help=sure)
    parser.add_argument("--out", type=place_argument, metavar="FILE.jsonl", help=out)
    return parser.parse_args(argv)


def words_of(recognizer: Recognizer, log_probs: np.ndarray, ids: Sequence[int]) -> list[dict[str, Any]]:
    """The words of a hypothesis, with confidence and times in seconds."""
    alphabet, times = recognizer.alphabet, recognizer.times(len(log_probs))
    return [
        {
            "word": word.text,
            "confidence": round(word.confidence, 3),
            "start": round(float(times[word.first]), 2),
            "end": round(float(times[word.last]), 2),
        }
        for word in confidence.words(log_probs, ids, alphabet.tokens, boundary=alphabet.boundary)
        if word.text != alphabet.delimiter
    ]


def open_files(paths: Sequence[pathlib.Path], workers: int = 0) -> tuple[Source, list[Skip]]:
    """A source of the files and of all audio in the folders, and the unreadable files. Raises UserError.

    What is wrong with transcripts beside the audio is left out: nobody needs them here.
    """
    for path in paths:
        if not path.exists():
            raise UserError(f"{path} does not exist")
    skipped: list[Skip] = []
    listed = (
        folder.walk([path], skipped, {}) if path.is_dir() else [Candidate(str(path), str(path))] for path in paths
    )
    candidates, where = itertools.chain.from_iterable(listed), ", ".join(map(str, paths))
    source = list_files(candidates, where=where, min_seconds=0.0, workers=workers, skipped=skipped)
    return source, [skip for skip in source.index.lost if "transcript" not in skip.kind]


if __name__ == "__main__":
    run_command(main)
