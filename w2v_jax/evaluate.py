"""`python -m w2v_jax.evaluate --run RUN --root DIR --out DIR`: measures word and character error rates of a recogniser.

Transcripts are compared in the form that the run learnt: Unicode NFC, the casing and removed characters of its
alphabet, single spaces. Recordings without a transcript do not enter the rates; the report names them. A transcript of
removed characters only is an empty reference. It adds its insertions to the errors and nothing to the words.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import pathlib
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import IO, Any, NamedTuple

import numpy as np

from w2v_jax.core.cli import UserError, command_parser, expand_home, run_command, some_of, table, writing
from w2v_jax.core.files import write_whole
from w2v_jax.core.progress import ProgressBar
from w2v_jax.core.storage import output_folder
from w2v_jax.core.stores import place_argument
from w2v_jax.data import open_source, source_names
from w2v_jax.data.index import Source, TooFew, skipped_by_kind, subset
from w2v_jax.data.transcripts import NO_TRANSCRIPT, Alphabet, is_missing
from w2v_jax.decoding.beam_search import Hypothesis, Search
from w2v_jax.decoding.error_rates import Counts, alignment, character_errors, interval, total, word_errors
from w2v_jax.inference import recognizer as recognizers
from w2v_jax.inference.recognizer import log_probs

EXAMPLES = """examples:
  The best path, then a beam search with a language model of words:
    python -m w2v_jax.evaluate --run runs/10h --root /data/dev --out eval/dev
    python -m w2v_jax.ngram --root /data/train --run runs/10h --order 4 --out 4-gram.arpa
    python -m w2v_jax.evaluate --run runs/10h --root /data/dev --out eval/dev --lm 4-gram.arpa --tune 32
    python -m w2v_jax.evaluate --run runs/10h --root /data/test --out eval/test --lm 4-gram.arpa --lm-weight 2.1 \\
      --word-score -0.5

Writes to --out: hypotheses.jsonl (id, reference, hypothesis, errors, n best; skipped recordings with the reason),
alignments.txt (worst first), scores.json; with --tune tuning.json. exit codes: 0 done, 1 a mistake, 2 wrong usage."""
LM_WEIGHTS, WORD_SCORES = (0.0, 5.0), (-5.0, 5.0)
"""The ranges that --tune draws from (wav2vec 2.0, section 4.4)."""


class Scored(NamedTuple):
    """The transcript and the hypothesis of one recording, and the errors."""

    row: int
    reference: str
    hypothesis: str
    words: Counts
    characters: Counts
    n_best: list[dict[str, Any]]


def main(argv: Sequence[str]) -> int:
    args = _arguments(argv)
    with output_folder(args.out, last=["scores.json"]) as args.out:
        return evaluate(args)


def evaluate(args: argparse.Namespace) -> int:
    """Transcribes and scores the recordings, and writes the results to the folder args.out. Raises UserError."""
    recognizer, search, decoder = recognizers.open_with_decoder(args)
    alphabet = recognizer.alphabet
    if args.tune < 0:
        raise UserError(f"--tune={args.tune} must be the number of pairs to try, or 0")
    if args.tune and (search is None or search.lm is None):
        raise UserError("--tune searches for --lm-weight and --word-score: it needs a language model (--lm FILE)")
    if args.tune and args.decoder == "flashlight" and not args.lexicon:
        raise UserError("--tune needs --word-score, which flashlight has with --lexicon only; use --decoder own")
    roots, labels = tuple(args.root), alphabet.kind
    source = open_source(args.source, roots, workers=args.workers, split=args.split, labels=labels)
    texts = source.index.transcripts.tolist()
    if not any(map(alphabet.clean, texts)):
        raise TooFew(
            f"{' '.join(args.root)}: no recording has a transcript to compare with. To transcribe recordings, use "
            "python -m w2v_jax.transcribe",
            source.index.lost,
        )
    lost = source.index.lost
    untranscribed = [_skipped(source, row, NO_TRANSCRIPT) for row, text in enumerate(texts) if is_missing(text)]
    source = subset(source, np.array([row for row, text in enumerate(texts) if not is_missing(text)]))
    unread: list[dict[str, str]] = []
    frames = _frames(recognizer, source, args=args, unread=unread)
    with writing(args.out, named=True):
        args.out.mkdir(parents=True, exist_ok=True)
        if args.tune and search is not None:
            with tempfile.TemporaryFile(dir=args.out) as file:
                search, scored = tune(Spool(file, frames), source, alphabet, search=search, args=args)
        else:
            scored = _score(frames, source, alphabet=alphabet, decoder=decoder)
        result = score_summary(scored, source, alphabet)
        result |= {"run": str(recognizer.run.path), "step": recognizer.run.step, "unread": len(unread)}
        result |= {"without_transcript": [entry["id"] for entry in untranscribed], "not_listed": len(lost)}
        result |= {"decoder": recognizers.search_summary(args, search)}
        skipped = unread + untranscribed + [{"id": "", **skip._asdict()} for skip in lost]
        write_scores(args.out, scored, source, result=result, skipped=skipped)
    print("\n".join([_report(result, args.out, recognizer.run.in_brief()), *skipped_by_kind(lost)]))
    return 0


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    description = "Scores a recogniser on transcribed recordings: word and character error rates, with alignments."
    parser = command_parser("evaluate", description, EXAMPLES)
    recognizers.add_arguments(parser)
    add = parser.add_argument_group("recordings").add_argument
    add("--source", default="folder", metavar="NAME", help=f"one of {', '.join(source_names())} (default: folder)")
    add("--root", nargs="+", type=expand_home, required=True, metavar="PATH", help="recordings with their transcripts")
    add("--split", default="", help="split of a TensorFlow dataset, e.g. test")
    add("--out", required=True, type=place_argument, metavar="DIR", help="folder for the results; made if missing")
    add("--tune", type=int, default=0, metavar="N", help="try N pairs of --lm-weight and --word-score, use the best")
    return parser.parse_args(argv)


def _skipped(source: Source, row: int, reason: str) -> dict[str, str]:
    return {"id": str(source.index.ids[row]), "path": str(source.index.paths[row]), "reason": reason}


class Spool:
    """(row, log-probabilities [F A]) of many recordings in a file, from which they can be read again and again.

    An hour of audio with an alphabet of 32 takes 23 MB.
    """

    def __init__(self, file: IO[bytes], frames: Iterable[tuple[int, np.ndarray]]):
        self.file, self.rows = file, []
        for row, frame_log_probs in frames:
            self.rows.append(row)
            np.save(file, frame_log_probs)

    def __iter__(self) -> Iterator[tuple[int, np.ndarray]]:
        self.file.seek(0)
        for row in self.rows:
            yield row, np.load(self.file)


def _frames(
    recognizer: recognizers.Recognizer, source: Source, *, args: argparse.Namespace, unread: list[dict[str, str]]
) -> Iterator[tuple[int, np.ndarray]]:
    """(row, log-probabilities) of each recording, with progress. Adds the recordings that cannot be read to `unread`.

    Raises UserError at the end if no recording could be read.
    """
    index, count = source.index, 0
    progress = ProgressBar("recognising", index.hours)
    on_skip = lambda row, reason: unread.append(_skipped(source, row, reason))
    for row, frames in log_probs(recognizer, source, **recognizers.reading_of(args), on_skip=on_skip):
        count += 1
        progress.add(float(index.durations[row]))
        yield row, frames
    if not count:
        raise UserError(f"no recording could be read: {unread[0]['path']}: {unread[0]['reason']}")


def _score(
    frames: Iterable[tuple[int, np.ndarray]], source: Source, *, alphabet: Alphabet, decoder: recognizers.TextDecoder
) -> list[Scored]:
    """Decodes and scores each recording. The result is in the order of the source."""
    scored = []
    for row, frame_log_probs in frames:
        reference = alphabet.clean(str(source.index.transcripts[row]))
        n_best = [_as_dict(hypothesis, alphabet) for hypothesis in decoder(frame_log_probs)]
        text = alphabet.clean(n_best[0]["text"])
        words, characters = word_errors(reference, text), character_errors(reference, text)
        scored.append(Scored(row, reference, text, words=words, characters=characters, n_best=n_best))
    return sorted(scored, key=lambda s: s.row)


def _as_dict(hypothesis: Hypothesis, alphabet: Alphabet) -> dict[str, Any]:
    scores = {key: round(getattr(hypothesis, key), 4) for key in ("score", "acoustic", "lm")}
    return {"text": alphabet.decode(hypothesis.ids)} | scores


def tune(
    frames: Iterable[tuple[int, np.ndarray]],
    source: Source,
    alphabet: Alphabet,
    *,
    search: Search,
    args: argparse.Namespace,
) -> tuple[Search, list[Scored]]:
    """The search with the fewest word errors on these recordings, and its scores.

    Tries the given weight of the language model and word score, then random pairs from LM_WEIGHTS x WORD_SCORES.
    Writes every try to tuning.json.
    """
    rng = np.random.default_rng(0)
    tries: list[dict[str, float]] = []
    best: tuple[float, Search, list[Scored]] | None = None
    for number in range(args.tune):
        tried = search
        if number:
            weight, score = (round(float(rng.uniform(*limits)), 2) for limits in (LM_WEIGHTS, WORD_SCORES))
            tried = dataclasses.replace(search, lm_weight=weight, word_score=score)
        decoder = recognizers.decoder_of(tried, alphabet, args.decoder)
        scored = _score(frames, source, alphabet=alphabet, decoder=decoder)
        rate = total([s.words for s in scored]).rate
        tries.append({"lm_weight": tried.lm_weight, "word_score": tried.word_score, "wer": rate})
        if best is None or rate < best[0]:
            best = rate, tried, scored
        print(
            f"{number + 1:>4}/{args.tune}  --lm-weight {tried.lm_weight:<5g} --word-score {tried.word_score:<6g} "
            f"WER {rate:.2%}{'  best so far' if best[1] is tried else ''}",
            flush=True,
        )
    write_whole(args.out / "tuning.json", json.dumps(tries, indent=1) + "\n")
    assert best is not None
    return best[1:]


def score_summary(scored: Sequence[Scored], source: Source, alphabet: Alphabet) -> dict[str, Any]:
    """Error rates over all recordings, their interval over speakers, and counts of what is unusual."""
    words, characters = total([s.words for s in scored]), total([s.characters for s in scored])
    speakers = np.asarray(source.index.speakers)[np.array([s.row for s in scored])]
    errors, units = (np.array([getattr(s.words, key) for s in scored], float) for key in ("errors", "units"))
    unknown = Counter(token for s in scored for token in set(alphabet.encode(s.reference)[1]))
    hours = round(sum(float(source.index.durations[s.row]) for s in scored) / 3600, 4)
    rates = {"wer": words.rate, "wer_interval": interval(errors, units, speakers), "cer": characters.rate}
    counts: dict[str, Any] = {"words": words._asdict(), "characters": characters._asdict()}
    counts["right"] = sum(s.words.errors == 0 for s in scored)
    counts["empty_references"] = sum(not s.reference for s in scored)
    counts["empty_hypotheses"] = sum(not s.hypothesis for s in scored)
    counts["foreign_tokens"] = dict(unknown.most_common())
    return {"recordings": len(scored), "hours": hours} | rates | counts


def write_scores(
    out: pathlib.Path,
    scored: Sequence[Scored],
    source: Source,
    *,
    result: dict[str, Any],
    skipped: list[dict[str, str]],
) -> None:
    """Writes hypotheses.jsonl (ordered as the index, then `skipped`), alignments.txt (worst first) and scores.json."""
    ids = source.index.ids
    lines: list[dict[str, Any]] = []
    for s in scored:
        lines.append({"id": str(ids[s.row]), "reference": s.reference, "hypothesis": s.hypothesis})
        lines[-1] |= {"word_errors": s.words.errors, "words": s.words.units}
        lines[-1] |= {"character_errors": s.characters.errors, "characters": s.characters.units, "n_best": s.n_best}
    lines += [entry | {"skipped": True} for entry in skipped]
    write_whole(out / "hypotheses.jsonl", (json.dumps(line, ensure_ascii=False) for line in lines))
    worst_first = sorted(scored, key=lambda s: (-s.words.errors, str(ids[s.row])))
    alignments = (
        f"{ids[s.row]}: {s.words.errors} of {s.words.units}\n{alignment(s.reference, s.hypothesis)}"
        for s in worst_first
    )
    write_whole(out / "alignments.txt", alignments)
    write_whole(out / "scores.json", json.dumps(result, indent=2, ensure_ascii=False) + "\n")


def _report(result: dict[str, Any], out: pathlib.Path, model: str) -> str:
    words, (low, high) = result["words"], result["wer_interval"]
    edits = ", ".join(f"{words[key]:,} {key}" for key in ("substitutions", "deletions", "insertions"))
    rows = {
        "model": model,
        "recordings": f"{result['recordings']:,}, {result['hours']:g} h; {result['right']:,} without any error",
        "decoder": ", ".join(f"{key} {value}" for key, value in result["decoder"].items() if value not in ("", "kind")),
        "WER": f"{result['wer']:.2%} ({low:.2%} to {high:.2%} over speakers): {edits} in {words['units']:,} words",
        "CER": f"{result['cer']:.2%} of {result['characters']['units']:,} characters",
    }
    if result["empty_references"] or result["empty_hypotheses"]:
        rows["empty"] = f"{result['empty_references']:,} references, {result['empty_hypotheses']:,} hypotheses"
    if result["foreign_tokens"]:
        tokens = ", ".join(f"{token!r} in {count}" for token, count in list(result["foreign_tokens"].items())[:8])
        rows["not in the alphabet"] = f"{tokens}: they always count as errors"
    if result["unread"]:
        rows["skipped"] = f"{result['unread']:,} recordings that could not be read or are too short"
    if ids := result["without_transcript"]:
        rows["no transcript"] = f"skipped {len(ids):,} recordings: {some_of(ids)}"
    rows["written"] = f"{out / 'hypotheses.jsonl'}, alignments.txt, scores.json"
    return table(rows, "done")


if __name__ == "__main__":
    run_command(main)
