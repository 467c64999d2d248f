"""`python -m w2v_jax.ngram --root DIR --out FILE.arpa`: builds a language model from transcripts or text."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence

from w2v_jax.core.cli import UserError, command_parser, expand_home, run_command, some_of, table, writing
from w2v_jax.core.storage import output_file
from w2v_jax.core.stores import place_argument
from w2v_jax.core.text import numbered_lines
from w2v_jax.data import open_source, source_names
from w2v_jax.data.index import Skip, TooFew, skipped_by_kind
from w2v_jax.data.transcripts import ALPHABET_FILE, CASINGS, Alphabet, clean_text
from w2v_jax.decoding.ngram_lm import build_ngram, write_arpa
from w2v_jax.training.workdir import run_folder

EXAMPLES = """examples:
  Words of the training transcripts, in the form that the run learnt:
    python -m w2v_jax.ngram --root /data/train --run runs/10h --order 4 --out 4-gram.arpa
  Letters, and a text with one sentence per line:
    python -m w2v_jax.ngram --text books.txt --run runs/10h --unit token --order 6 --out letters.arpa.gz

Recordings without a transcript and blank lines are left out, counted and named.
Uses interpolated modified Kneser-Ney without pruning, in memory, which suits transcripts and some millions of words.
Build larger models with KenLM's lmplz; the other commands read those, too.
exit codes: 0 done, 1 a mistake, 2 wrong usage."""


def main(argv: Sequence[str]) -> int:
    args = _arguments(argv)
    if not args.root and not args.text:
        raise UserError("there is nothing to learn from: give transcribed recordings (--root) or sentences (--text)")
    alphabet = Alphabet.load(run_folder(args.run) / ALPHABET_FILE) if args.run else None
    if args.unit == "token" and alphabet is None:
        raise UserError("--unit token needs the alphabet of a run; give --run RUN")
    if alphabet is None:
        split = lambda text: clean_text(text, args.casing).split()
    else:
        split = alphabet.split if args.unit == "token" else lambda text: alphabet.clean(text).split()
    lost: list[Skip] = []
    texts = _texts(args, alphabet.kind if alphabet else "", lost)
    split_texts = [(name, split(text)) for name, text in texts]
    sentences = [words for _, words in split_texts if words]
    empty = [name for name, words in split_texts if not words]
    if not sentences:
        raise TooFew(
            f"there is no {args.unit} to build a language model from: all transcripts and lines are empty",
            [*lost, *(Skip(name, f"no {args.unit}s") for name in empty)],
        )
    lm = build_ngram(sentences, args.order)
    with writing(f"--out {args.out}"), output_file(args.out) as file:
        write_arpa(file, lm)
    words = sum(map(len, sentences))
    perplexity = 10 ** (-sum(map(lm.sentence, sentences)) / (words + len(sentences)))
    rows = {"trained on": f"{len(sentences):,} sentences, {words:,} {args.unit}s, {len(lm.words):,} different ones"}
    if empty:
        rows["left out"] = f"{len(empty):,} of {len(split_texts):,}, which have no {args.unit}s: {some_of(empty)}"
    rows["model"] = ", ".join(f"{sum(len(g) == n for g in lm.grams):,} {n}-grams" for n in range(1, lm.order + 1))
    rows |= {"perplexity": f"{perplexity:.1f} on its training text", "written": str(args.out)}
    print("\n".join([table(rows, "done"), *skipped_by_kind(lost)]))
    return 0


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    description = "Builds an n-gram language model (ARPA) from transcripts or text, for evaluate and transcribe."
    parser = command_parser("ngram", description, EXAMPLES)
    add = parser.add_argument
    add("--source", default="folder", metavar="NAME", help=f"one of {', '.join(source_names())} (default: folder)")
    add("--root", nargs="+", type=expand_home, default=[], metavar="PATH", help="transcribed recordings")
    add("--split", default="", help="split of a TensorFlow dataset, e.g. train")
    add("--text", nargs="+", type=expand_home, default=[], metavar="FILE", help="UTF-8 text, one sentence per line")
    add("--run", type=expand_home, metavar="RUN", help="clean the text as this CTC run cleaned its transcripts")
    add("--casing", choices=CASINGS, default="keep", help="casing without --run (default: keep)")
    add("--unit", choices=("word", "token"), default="word", help="token: of --run's alphabet (default: word)")
    add("--order", type=int, default=3, metavar="N", help="length of the longest n-grams (default: 3)")
    add("--out", required=True, type=place_argument, metavar="FILE.arpa", help="or .arpa.gz")
    return parser.parse_args(argv)


def _texts(args: argparse.Namespace, labels: str, lost: list[Skip]) -> Iterator[tuple[str, str]]:
    """(id, transcript) of each recording, then (FILE:NUMBER, line) of each line of text.

    What the source has left out joins `lost`.
    """
    if args.root:
        index = open_source(args.source, tuple(args.root), split=args.split, labels=labels).index
        lost.extend(index.lost)
        yield from zip(index.ids.tolist(), index.transcripts.tolist(), strict=True)
    for path in args.text:
        yield from ((f"{path}:{number}", line) for number, line in numbered_lines(path, f"--text {path}"))


if __name__ == "__main__":
    run_command(main)
