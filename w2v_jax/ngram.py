"""`python -m w2v_jax.ngram --root DIR --out FILE.arpa`: a language model of transcripts, or of text."""

from __future__ import annotations

import argparse
import pathlib
from collections.abc import Iterator, Sequence

from w2v_jax.config import UserError, run_command
from w2v_jax.data import open_source, source_names
from w2v_jax.data.labels import CASINGS, FILE, Alphabet, clean
from w2v_jax.lm import build, write_arpa
from w2v_jax.report import table

EXAMPLES = """examples:
  Words of the training transcripts, written as the run learnt them:
    python -m w2v_jax.ngram --root /data/train --run runs/10h --order 4 --out 4-gram.arpa
  Letters, and a text with one sentence per line:
    python -m w2v_jax.ngram --text books.txt --run runs/10h --unit token --order 6 --out letters.arpa.gz

Interpolated modified Kneser-Ney without pruning, in memory: for transcripts and some millions of words. Larger models
are made by KenLM's lmplz, and read all the same. exit codes: 0 done, 1 a mistake, 2 wrong usage."""


def main(argv: Sequence[str]) -> int:
    args = _arguments(argv)
    if not args.root and not args.text:
        raise UserError("nothing to learn from: --root with transcribed recordings, or --text with sentences")
    alphabet = Alphabet.load(pathlib.Path(args.run) / FILE) if args.run else None
    if args.unit == "token" and alphabet is None:
        raise UserError("--unit token needs the alphabet of a run: --run RUN")
    sentences = []
    for text in _texts(args):
        if alphabet is None:
            sentences.append(clean(text, args.casing).split())
        else:
            sentences.append(alphabet.split(text) if args.unit == "token" else alphabet.clean(text).split())
    lm = build(sentences, args.order)
    try:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        write_arpa(args.out, lm)
    except OSError as error:
        raise UserError(f"--out {args.out}: cannot be written ({error.strerror or error})") from None
    words = sum(map(len, sentences))
    counts = ", ".join(f"{sum(len(g) == n for g in lm.grams):,} {n}-grams" for n in range(1, lm.order + 1))
    perplexity = 10 ** (-sum(map(lm.sentence, sentences)) / (words + len(sentences)))
    rows = {
        "learnt from": f"{len(sentences):,} sentences, {words:,} {args.unit}s, {len(lm.words):,} different ones",
        "model": counts,
        "perplexity": f"{perplexity:.1f} on what it was made from",
        "written": args.out,
    }
    print(table(rows, "done"))
    return 0


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m w2v_jax.ngram",
        description="Makes an n-gram language model (ARPA) from transcripts or text, for evaluate and transcribe.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--source", default="folder", metavar="NAME", help=f"one of {', '.join(source_names())} (default: folder)")
    add("--root", nargs="+", default=[], metavar="PATH", help="where transcribed recordings are")
    add("--split", default="", help="of a TensorFlow dataset, e.g. train")
    add("--text", nargs="+", default=[], metavar="FILE", help="UTF-8 text, one sentence per line")
    add("--run", metavar="RUN", help="clean the text as this CTC training did its transcripts")
    add("--casing", choices=CASINGS, default="keep", help="without --run (default: keep)")
    add("--unit", choices=("word", "token"), default="word", help="token: of the alphabet of --run (default: word)")
    add("--order", type=int, default=3, metavar="N", help="words of history and one more (default: 3)")
    add("--out", required=True, type=pathlib.Path, metavar="FILE.arpa", help="or .arpa.gz")
    return parser.parse_args(argv)


def _texts(args: argparse.Namespace) -> Iterator[str]:
    if args.root:
        yield from open_source(args.source, tuple(args.root), split=args.split).index.transcripts.tolist()
    for path in args.text:
        try:
            yield from pathlib.Path(path).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"--text {path} cannot be read as UTF-8 text ({error})") from None


if __name__ == "__main__":
    run_command(main)
