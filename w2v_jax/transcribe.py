"""`python -m w2v_jax.transcribe --run RUN FILE ...`: writes down what is said in recordings.

Recordings of any length, rate and channel count; long ones are cut into pieces that overlap, so that the model's
memory stays bounded and no word is cut.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import sys
from collections.abc import Sequence

from w2v_jax import recognition
from w2v_jax.config import UserError, run_command
from w2v_jax.data.folder import EXTENSIONS
from w2v_jax.data.index import Skip, Source
from w2v_jax.data.listing import Candidate, list_files
from w2v_jax.data.progress import Progress
from w2v_jax.report import write_whole

EXAMPLES = """examples:
  python -m w2v_jax.transcribe --run runs/10h talk.mp3 interviews/
  python -m w2v_jax.transcribe --run runs/10h --lm 4-gram.arpa --out talk.jsonl talk.mp3

Prints one line per recording, FILE<tab>TEXT, on standard output, and everything else on standard error.
exit codes: 0 done, 1 a mistake or a file that could not be read, 2 wrong usage."""


def main(argv: Sequence[str]) -> int:
    args = _arguments(argv)
    recognizer = recognition.open_recognizer(args.run, args.step, args.quantizer)
    search = recognition.search_of(args, recognizer.alphabet)
    decoder = recognition.decoder_of(search, recognizer.alphabet.tokens, args.decoder)
    source, failed = open_files(args.files, args.workers)
    index, lines = source.index, {}

    def skip(row: int, reason: str) -> None:
        failed.append(Skip(str(index.paths[row]), reason))

    progress = Progress("transcribing", index.hours)
    for row, frames in recognition.log_probs(recognizer, source, **recognition.reading_of(args), on_skip=skip):
        found = decoder(frames)
        texts = [recognizer.alphabet.decode(hypothesis.ids) for hypothesis in found]
        print(f"{index.paths[row]}\t{texts[0]}", flush=True)
        about = {"path": str(index.paths[row]), "seconds": round(float(index.durations[row]), 3), "text": texts[0]}
        if search and search.n_best > 1:
            about["n_best"] = [{"text": t, "score": round(h.score, 4)} for t, h in zip(texts, found, strict=True)]
        lines[row] = json.dumps(about, ensure_ascii=False)
        progress.add(float(index.durations[row]))
    if args.out:
        try:
            write_whole(args.out, "".join(f"{lines[row]}\n" for row in sorted(lines)))
        except OSError as error:
            raise UserError(f"--out {args.out}: cannot be written ({error.strerror or error})") from None
    for path, reason in failed:
        print(f"error: {path}: {reason}", file=sys.stderr)
    written = f" in {args.out}" if args.out else ""
    print(f"done: {len(lines):,} recordings{written}, {len(failed):,} not readable", file=sys.stderr)
    return 1 if failed else 0


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m w2v_jax.transcribe",
        description="Writes down what is said in recordings, with a run of CTC.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    recognition.add_arguments(parser)
    add = parser.add_argument
    add("files", nargs="+", type=pathlib.Path, metavar="FILE", help="recordings, or folders of them")
    add("--out", type=pathlib.Path, metavar="FILE.jsonl", help="write path, seconds, text and n best as JSONL, too")
    return parser.parse_args(argv)


def open_files(paths: Sequence[pathlib.Path], workers: int = 0) -> tuple[Source, list[Skip]]:
    """A source of the files, and of all audio in the folders; and what is no readable audio. Raises UserError."""
    found: list[pathlib.Path] = []
    for path in paths:
        if not path.exists():
            raise UserError(f"{path} does not exist")
        found += sorted(p for p in path.rglob("*") if p.suffix.lower() in EXTENSIONS) if path.is_dir() else [path]
    where = ", ".join(map(str, paths))
    candidates = (Candidate(str(file), str(file)) for file in found)
    source = list_files(candidates, where=where, min_seconds=0.0, workers=workers, skipped=[])
    return source, list(source.index.skipped)


if __name__ == "__main__":
    run_command(main)
