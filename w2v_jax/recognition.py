"""Speech to text with a run of CTC: what the commands `evaluate` and `transcribe` share.

recognizer = open_recognizer("runs/10h")
for row, frames in log_probs(recognizer, open_source("folder", "/data/dev")):
    text = recognizer.alphabet.decode(greedy(frames))
"""

from __future__ import annotations

import argparse
import dataclasses
import pathlib
import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from w2v_jax import decode, flashlight_decoder, runs
from w2v_jax.config import UserError
from w2v_jax.data.index import Source
from w2v_jax.data.labels import FILE, Alphabet
from w2v_jax.decode import Hypothesis, Search
from w2v_jax.lm import read_arpa
from w2v_jax.runs import Run

MAX_SECONDS, MARGIN_SECONDS = 40.0, 2.0
"""Longer recordings are cut into pieces that see so much audio more on either side, and give no frame there."""

DECODERS = ("own", "flashlight")
OF_MODEL = ("lm_unit", "lm_weight", "unknown_score")
FIELDS = ("beam", "word_score", "threshold", "tokens", "merge", "n_best", *OF_MODEL)
"""What the arguments may say of `Search`, and which of it says nothing without a language model."""

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
    add("--beam", type=int, metavar="N", help="hypotheses kept (default: 50)")
    add("--lm", metavar="FILE", help="an n-gram language model, .arpa or .arpa.gz (python -m w2v_jax.ngram makes one)")
    add("--lm-unit", choices=decode.UNITS, help="what the words of --lm are (default: word)")
    add("--lm-weight", type=float, metavar="X", help="of log10 scores (default: 2)")
    add("--word-score", type=float, metavar="X", help="added per word (default: -1 with --lm or --lexicon, else 0)")
    add("--lexicon", metavar="FILE", help="the only words that may be written: the first of each line")
    add("--unknown-score", type=float, metavar="X", help="log10, of words that --lm lacks (default: -10)")
    add("--threshold", type=float, metavar="X", help="nats below the best of a frame (default: 50)")
    add("--tokens", type=int, metavar="N", help="tokens tried per frame at most (default: 40)")
    add("--merge", choices=decode.MERGES, help="alignments of a text: their sum (default), or the best, max")
    add("--n-best", type=int, metavar="N", help="hypotheses written per recording (default: 1)")
    add("--decoder", choices=DECODERS, default="own", help="flashlight-text needs w2v-jax[decode] (default: own)")


def reading_of(args: argparse.Namespace) -> dict[str, Any]:
    """What the arguments say of how `log_probs` reads."""
    return {key: getattr(args, key) for key in ("max_seconds", "margin_seconds", "batch_seconds", "workers")}


def search_of(args: argparse.Namespace, alphabet: Alphabet) -> Search | None:
    """What the arguments ask for; None: the best path. Warns of words that cannot be written. Raises UserError.

    Numbers are checked before a language model, which may be large, is read.
    """
    given: dict[str, Any] = {key: value for key in FIELDS if (value := getattr(args, key)) is not None}
    if not (given or args.lm or args.lexicon):
        if args.decoder != "own":
            raise UserError(
                f"--decoder {args.decoder} needs something to search: --beam N, --lm FILE or --lexicon FILE. Without "
                "any of these the best path is taken, which --decoder own does"
            )
        return None
    if not args.lm and (idle := [key for key in OF_MODEL if key in given]):
        raise UserError(f"--{idle[0].replace('_', '-')} is of a language model: give one (--lm FILE), or leave it out")
    if not (args.lm or args.lexicon):
        given = {"word_score": 0.0} | given
    search = Search(**given)
    lm = read_arpa(args.lm) if args.lm else None
    lexicon = read_lexicon(args.lexicon, alphabet) if args.lexicon else None
    if lm is not None and (missing := decode.mismatch(lm, alphabet.tokens, search.lm_unit)):
        shown = " ".join(missing[:20])
        print(f"warning: {args.lm} has {len(missing)} signs that the run cannot write: {shown}", file=sys.stderr)
    return dataclasses.replace(search, lm=lm, lexicon=lexicon)


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
    """A function from log-probabilities [F A] to hypotheses, best first; never an empty list.

    Raises UserError at once for what the decoder cannot do, so build it before anything is encoded.
    """
    if search is None:
        return lambda frames: [_best_path(frames)]
    nothing = Hypothesis((), 0.0, 0.0, 0.0, 0)
    if kind == "flashlight":
        built = flashlight_decoder.Flashlight(tokens, search)
        return lambda frames: built.search(frames) or [nothing]
    return lambda frames: decode.beam_search(frames, tokens, search) or [nothing]


def _best_path(frames: np.ndarray) -> Hypothesis:
    score = float(frames.max(axis=1).sum()) if len(frames) else 0.0
    return Hypothesis(decode.greedy(frames), score, score, 0.0, 0)
