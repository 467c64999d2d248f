"""Speech to text with a run of CTC: what the commands `evaluate` and `transcribe` share.

recognizer = open_recognizer("runs/10h")
for row, frames in log_probs(recognizer, open_source("folder", "/data/dev")):
    text = recognizer.alphabet.decode(greedy(frames))
"""

from __future__ import annotations

import argparse
import pathlib
import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from w2v_jax import decode, runs
from w2v_jax.config import UserError
from w2v_jax.data.index import Source
from w2v_jax.data.labels import FILE, Alphabet
from w2v_jax.decode import Hypothesis, Search
from w2v_jax.lm import read_arpa
from w2v_jax.runs import Run

MAX_SECONDS, MARGIN_SECONDS = 40.0, 2.0
"""Longer recordings are cut into pieces that see so much audio more on either side, and give no frame there."""

Decoder = Callable[[np.ndarray], list[Hypothesis]]


class Recognizer(NamedTuple):
    """A run, its alphabet, and the vq-wav2vec that makes its codes from audio, if it reads codes."""

    run: Run
    alphabet: Alphabet
    quantizer: Run | None


def open_recognizer(path: Any, step: int | str | None = None, quantizer: Any = None) -> Recognizer:
    """The recogniser in the folder of a training. Raises UserError when the run has no alphabet."""
    folder = pathlib.Path(path).expanduser()
    if (folder / "config.json").exists() and not (folder / FILE).exists():
        raise UserError(f"{folder} writes no text: it has no {FILE}; give the --workdir of a CTC training")
    run = runs.open_run(folder, step=step)
    return Recognizer(run, Alphabet.load(folder / FILE), runs.open_run(quantizer) if quantizer else None)


def log_probs(
    recognizer: Recognizer,
    source: Source,
    *,
    max_seconds: float = MAX_SECONDS,
    margin_seconds: float = MARGIN_SECONDS,
    batch_seconds: float = runs.BATCH_SECONDS,
    workers: int = 0,
    on_skip: Callable[[int, str], None] | None = None,
) -> Iterator[tuple[int, np.ndarray]]:
    """(row, log-probabilities [F A] in nats, float32) of every row of the source, in no particular order."""
    law: dict[str, Any] = dict(max_seconds=max_seconds, margin_seconds=margin_seconds, batch_seconds=batch_seconds)
    law |= dict(quantizer=recognizer.quantizer, workers=workers, on_skip=on_skip)
    size = len(recognizer.alphabet)
    for row, found in runs.encode(recognizer.run, source, keys=runs.LOGITS, **law):
        logits = found["logits"][:, :size].astype(np.float64)
        yield row, (logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)).astype(np.float32)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the run and of the decoder."""
    group = parser.add_argument_group("model")
    add = group.add_argument
    add("--run", required=True, metavar="RUN", help="the --workdir of a CTC training")
    add("--step", type=runs.step_argument, metavar="N|best", help="which checkpoint (default: the newest)")
    add("--quantizer", metavar="RUN", help="the vq-wav2vec that makes the codes which RUN reads, from audio")
    add("--max-seconds", type=float, default=MAX_SECONDS, metavar="S", help="cut longer recordings (default: 40)")
    add("--margin-seconds", type=float, default=MARGIN_SECONDS, metavar="S", help="that pieces overlap (default: 2)")
    add("--batch-seconds", type=float, default=runs.BATCH_SECONDS, metavar="S", help="audio at once (default: 160)")
    add("--workers", type=int, default=0, metavar="N", help="threads that read (default: one per core)")
    group = parser.add_argument_group("decoder (without any of these: the best path)")
    add = group.add_argument
    add("--beam", type=int, default=0, metavar="N", help="hypotheses kept (default: 50 with --lm or --lexicon)")
    add("--lm", metavar="FILE", help="an n-gram language model, .arpa or .arpa.gz (python -m w2v_jax.ngram makes one)")
    add("--lm-unit", choices=decode.UNITS, default="word", help="what the words of --lm are (default: word)")
    add("--lm-weight", type=float, default=Search.lm_weight, metavar="X", help="of log10 scores (default: 2)")
    add("--word-score", type=float, default=Search.word_score, metavar="X", help="added per word (default: -1)")
    add("--lexicon", metavar="FILE", help="the only words that may be written: the first of each line")
    add("--threshold", type=float, default=Search.threshold, metavar="X", help="nats below the best (default: 50)")
    add("--decoder", choices=("own", "flashlight"), default="own", help="flashlight-text needs w2v-jax[decode]")
    add("--n-best", type=int, default=1, metavar="N", help="hypotheses written per recording")


def reading_of(args: argparse.Namespace) -> dict[str, Any]:
    """What the arguments say of how `log_probs` reads."""
    return {key: getattr(args, key) for key in ("max_seconds", "margin_seconds", "batch_seconds", "workers")}


def search_of(args: argparse.Namespace, alphabet: Alphabet) -> Search | None:
    """What the arguments ask for; None: the best path. Warns of words that cannot be written. Raises UserError."""
    if not (args.beam or args.lm or args.lexicon or args.n_best > 1):
        return None
    lm = read_arpa(args.lm) if args.lm else None
    lexicon = read_lexicon(args.lexicon, alphabet) if args.lexicon else None
    if lm is not None and (missing := decode.mismatch(lm, alphabet.tokens, args.lm_unit)):
        shown = " ".join(missing[:20])
        print(f"warning: {args.lm} has {len(missing)} signs that the run cannot write: {shown}", file=sys.stderr)
    word_score = args.word_score if lm or lexicon else 0.0
    return Search(
        beam=args.beam or Search.beam,
        lm=lm,
        lm_unit=args.lm_unit,
        lm_weight=args.lm_weight,
        word_score=word_score,
        lexicon=lexicon,
        threshold=args.threshold,
        n_best=args.n_best,
    )


def read_lexicon(path: str, alphabet: Alphabet) -> frozenset[str]:
    """The first word of each line, cleaned as the run's transcripts; those that it cannot write are left out."""
    try:
        lines = pathlib.Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--lexicon {path} cannot be read as UTF-8 text ({error})") from None
    words = {alphabet.clean(line.split()[0]) for line in lines if line.split()}
    known = set(alphabet.tokens)
    units = (lambda word: word) if alphabet.kind == "letters" else (lambda word: [word])
    usable = {word for word in words if word and all(c in known for c in units(word))}
    if not usable:
        raise UserError(f"--lexicon {path}: none of its {len(words)} words can be written with the run's alphabet")
    if len(usable) < len(words):
        print(f"warning: {len(words) - len(usable)} of {len(words)} words of {path} cannot be written", file=sys.stderr)
    return frozenset(usable)


def decoder_of(search: Search | None, tokens: tuple[str, ...], kind: str = "own") -> Decoder:
    """A function from log-probabilities [F A] to hypotheses, best first; never an empty list."""
    if search is None:
        return lambda frames: [_best_path(frames)]
    nothing = Hypothesis((), 0.0, 0.0, 0.0, 0)
    if kind == "flashlight":
        built = decode.Flashlight(tokens, search)
        return lambda frames: built.search(frames) or [nothing]
    return lambda frames: decode.beam_search(frames, tokens, search) or [nothing]


def _best_path(frames: np.ndarray) -> Hypothesis:
    score = float(frames.max(axis=1).sum()) if len(frames) else 0.0
    return Hypothesis(decode.greedy(frames), score, score, 0.0, 0)
