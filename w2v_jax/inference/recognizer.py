"""Speech to text with a CTC run: the code that the commands `evaluate` and `transcribe` share.

recognizer = open_recognizer("runs/10h")
for row, frames in log_probs(recognizer, open_source("folder", "/data/dev")):
    text = recognizer.alphabet.decode(greedy(frames))
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypedDict, Unpack

import numpy as np

from w2v_jax.core.cli import STEP, UserError, count_argument, expand_home, step_argument, warn
from w2v_jax.core.display import short_repr
from w2v_jax.core.text import numbered_lines
from w2v_jax.data.index import Source
from w2v_jax.data.transcripts import ALPHABET_FILE, Alphabet
from w2v_jax.decoding import beam_search, flashlight
from w2v_jax.decoding.beam_search import Hypothesis, Search
from w2v_jax.decoding.ngram_lm import read_arpa
from w2v_jax.inference.encode import BATCH_SECONDS, encode
from w2v_jax.inference.run import LOGITS, Run, open_run
from w2v_jax.nn.acoustic_model import frame_middles
from w2v_jax.training.workdir import run_folder

MAX_SECONDS, MARGIN_SECONDS = 40.0, 2.0
"""Longer recordings are cut into pieces, which read a margin of audio on either side and drop its frames."""

DECODERS = ("own", "flashlight")
LM_FIELDS = ("lm_unit", "lm_weight", "unknown_score")
FIELDS = ("beam", "word_score", "threshold", "tokens", "merge", "n_best", *LM_FIELDS)
"""The fields of `Search` that are arguments, and those of them that need a language model."""

TextDecoder = Callable[[np.ndarray], list[Hypothesis]]


class Recognizer(NamedTuple):
    """A run, its alphabet, and the vq-wav2vec that makes its codes from audio if it reads codes."""

    run: Run
    alphabet: Alphabet
    quantizer: Run | None

    __repr__ = short_repr

    def times(self, frames: int) -> np.ndarray:
        """[F'] the middles of so many frames of log-probabilities, in seconds."""
        return (self.quantizer or self.run).times(frame_middles(self.run.config.acoustic, np.arange(frames)))


def open_recognizer(path: Any, step: int | str | None = None, quantizer: Any = None) -> Recognizer:
    """The recogniser in the folder of a training. Raises UserError if the run has no alphabet."""
    folder = run_folder(path)
    if (folder / "config.json").exists() and not (folder / ALPHABET_FILE).exists():
        raise UserError(f"{folder} writes no text: it has no {ALPHABET_FILE}; give the --workdir of a CTC training")
    run = open_run(folder, step=step)
    return Recognizer(run, Alphabet.load(folder / ALPHABET_FILE), open_run(quantizer) if quantizer else None)


class Reading(TypedDict, total=False):
    """Options of `encode`: how recordings are cut and read."""

    max_seconds: float
    margin_seconds: float
    batch_seconds: float
    workers: int
    flags: Sequence[str]


def log_probs(
    recognizer: Recognizer,
    source: Source,
    *,
    on_skip: Callable[[int, str], None] | None = None,
    **reading: Unpack[Reading],
) -> Iterator[tuple[int, np.ndarray]]:
    """(row, log-probabilities [F A] in nats, float32) of every row of the source, in no particular order."""
    reading = {"max_seconds": MAX_SECONDS, "margin_seconds": MARGIN_SECONDS, **reading}
    run, quantizer = recognizer.run, recognizer.quantizer
    for row, arrays in encode(run, source, keys=LOGITS, quantizer=quantizer, on_skip=on_skip, **reading):
        logits = arrays["logits"][:, : len(recognizer.alphabet)].astype(np.float64)
        yield row, (logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)).astype(np.float32)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the model and of the decoder."""
    add = parser.add_argument_group("model").add_argument
    add("--run", required=True, type=expand_home, metavar="RUN", help="the --workdir of a CTC training")
    add("--step", type=step_argument, metavar=STEP, help="which checkpoint (default: the best by held-out error)")
    codes = "the vq-wav2vec that makes the codes which RUN reads, from audio"
    add("--quantizer", type=expand_home, metavar="RUN", help=codes)
    add("--max-seconds", type=float, default=MAX_SECONDS, metavar="S", help="cut longer recordings (default: 40)")
    beside = "audio read beside a piece (default: 2)"
    add("--margin-seconds", type=float, default=MARGIN_SECONDS, metavar="S", help=beside)
    add("--batch-seconds", type=float, default=BATCH_SECONDS, metavar="S", help="audio at once (default: 160)")
    add("--workers", type=count_argument, default=0, metavar="N", help="threads that read (default: one per core)")
    add = parser.add_argument_group("decoder (without any of these: the best path)").add_argument
    add("--beam", type=int, metavar="N", help="hypotheses in the beam (default: 50)")
    lm = "an n-gram language model, .arpa or .arpa.gz (python -m w2v_jax.ngram makes one)"
    add("--lm", type=expand_home, metavar="FILE", help=lm)
    add("--lm-unit", choices=beam_search.UNITS, help="what the words of --lm are (default: word)")
    add("--lm-weight", type=float, metavar="X", help="weight of its log10 scores (default: 2)")
    add("--word-score", type=float, metavar="X", help="added per word (default: -1 with --lm or --lexicon, else 0)")
    add("--lexicon", type=expand_home, metavar="FILE", help="the only words to write: the first word of each line")
    add("--unknown-score", type=float, metavar="X", help="log10 score of words that --lm lacks (default: -10)")
    add("--threshold", type=float, metavar="X", help="drop what is X nats below the best of a frame (default: 50)")
    add("--tokens", type=int, metavar="N", help="try at most N tokens per frame (default: 40)")
    add("--merge", choices=beam_search.MERGES, help="alignments of a text: their sum (default) or max, the best")
    add("--n-best", type=int, metavar="N", help="hypotheses written per recording (default: 1)")
    add("--decoder", choices=DECODERS, default="own", help="flashlight-text needs w2v-jax[decode] (default: own)")


def reading_of(args: argparse.Namespace) -> Reading:
    """The options of `log_probs` in the arguments."""
    lengths = Reading(max_seconds=args.max_seconds, margin_seconds=args.margin_seconds)
    return {**lengths, "batch_seconds": args.batch_seconds, "workers": args.workers}


def open_with_decoder(args: argparse.Namespace) -> tuple[Recognizer, Search | None, TextDecoder]:
    """The recogniser, the search (None: the best path) and the decoder of the arguments. Raises UserError."""
    recognizer = open_recognizer(args.run, args.step, args.quantizer)
    search = search_of(args, recognizer.alphabet)
    return recognizer, search, decoder_of(search, recognizer.alphabet, args.decoder)


def search_of(args: argparse.Namespace, alphabet: Alphabet) -> Search | None:
    """The search that the arguments describe; None for the best path. Raises UserError.

    Checks numbers before it reads a language model, which may be large. Warns of words that the run cannot write.
    """
    options: dict[str, Any] = {key: value for key in FIELDS if (value := getattr(args, key)) is not None}
    if not (options or args.lm or args.lexicon):
        if args.decoder != "own":
            raise UserError(
                f"--decoder {args.decoder} needs something to search: --beam N, --lm FILE or --lexicon FILE. Without "
                "any of these, use --decoder own, which takes the best path"
            )
        return None
    if not args.lm and (unused := [key for key in LM_FIELDS if key in options]):
        raise UserError(f"--{unused[0].replace('_', '-')} needs a language model: add --lm FILE, or leave it out")
    if not (args.lm or args.lexicon):
        options = {"word_score": 0.0} | options
    search = Search(**options, boundary=alphabet.boundary)
    lm = read_arpa(args.lm) if args.lm else None
    lexicon = read_lexicon(args.lexicon, alphabet) if args.lexicon else None
    missing = beam_search.mismatch(lm, alphabet.tokens, search.lm_unit, boundary=search.boundary) if lm else []
    if missing:
        shown = " ".join(missing[:20])
        warn(f"{args.lm} has {len(missing)} symbols that the run cannot write: {shown}")
    return dataclasses.replace(search, lm=lm, lexicon=lexicon)


def search_summary(args: argparse.Namespace, search: Search | None) -> dict[str, Any]:
    """The settings of the decoder, for reports."""
    if search is None:
        return {"kind": "best path"}
    fields = {key: getattr(search, key) for key in FIELDS if search.lm or key not in LM_FIELDS}
    return {"kind": args.decoder, "lm": args.lm or "", "lexicon": args.lexicon or ""} | fields


def read_lexicon(path: str, alphabet: Alphabet) -> frozenset[str]:
    """The first word of each line, cleaned like the run's transcripts, without the words that the run cannot write."""
    lines = (line for _, line in numbered_lines(path, f"--lexicon {path}"))
    words = {alphabet.clean(line.split()[0]) for line in lines if line.split()}
    writable = frozenset(word for word in words if word and not alphabet.encode(word)[1])
    if not writable:
        raise UserError(f"--lexicon {path}: none of its {len(words)} words can be written with the run's alphabet")
    if len(writable) < len(words):
        unwritable = len(words) - len(writable)
        warn(f"{unwritable} of {len(words)} words of {path} cannot be written")
    return writable


def decoder_of(search: Search | None, alphabet: Alphabet, kind: str = "own") -> TextDecoder:
    """A function from log-probabilities [F A] to hypotheses, best first, of which there is always one.

    Raises UserError at once for what the decoder cannot do. Make the decoder before encoding anything.
    """
    if search is None:
        return lambda frames: [_best_path(frames)]
    empty = Hypothesis((), score=0.0, acoustic=0.0, lm=0.0, words=0)
    if kind == "flashlight":
        decoder = flashlight.Flashlight(alphabet.tokens, search, spell=alphabet.split)
        return lambda frames: decoder.search(frames) or [empty]
    return lambda frames: beam_search.beam_search(frames, alphabet.tokens, search) or [empty]


def _best_path(frames: np.ndarray) -> Hypothesis:
    score = float(frames.max(axis=1).sum()) if len(frames) else 0.0
    return Hypothesis(beam_search.greedy(frames), score=score, acoustic=score, lm=0.0, words=0)
