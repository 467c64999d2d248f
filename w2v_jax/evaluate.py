"""`python -m w2v_jax.evaluate --run RUN --root DIR --out DIR`: word and character error rates of a recogniser.

Transcripts are compared as the run learnt them: Unicode NFC, the casing and removed characters of its alphabet, single
spaces. Recordings without a transcript are left out of the rates and named. A transcript of removed characters only is
an empty reference, which adds its insertions to the errors and nothing to the words.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import pathlib
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from w2v_jax import recognition
from w2v_jax.config import UserError, run_command
from w2v_jax.data import open_source, source_names
from w2v_jax.data.index import Source, subset
from w2v_jax.data.labels import Alphabet
from w2v_jax.data.progress import Progress
from w2v_jax.decode import Hypothesis, Search
from w2v_jax.metrics import Counts, alignment, character_errors, interval, total, word_errors
from w2v_jax.report import table, write_whole

EXAMPLES = """examples:
  The best path, then a beam search with a language model of words:
    python -m w2v_jax.evaluate --run runs/10h --root /data/dev --out eval/dev
    python -m w2v_jax.ngram --root /data/train --run runs/10h --order 4 --out 4-gram.arpa
    python -m w2v_jax.evaluate --run runs/10h --root /data/dev --out eval/dev --lm 4-gram.arpa --tune 32
    python -m w2v_jax.evaluate --run runs/10h --root /data/test --out eval/test --lm 4-gram.arpa --lm-weight 2.1 \\
      --word-score -0.5

Writes to --out: hypotheses.jsonl (id, reference, hypothesis, errors, n best; what was left out, with the reason),
alignments.txt (worst first), scores.json; with --tune tuning.json. exit codes: 0 done, 1 a mistake, 2 wrong usage."""
LM_WEIGHTS, WORD_SCORES = (0.0, 5.0), (-5.0, 5.0)
"""What --tune draws from (wav2vec 2.0, section 4.4)."""
NAMED = 5
"""Recordings without a transcript whose ids the report shows; hypotheses.jsonl and scores.json have all."""


class Scored(NamedTuple):
    """One recording: what was said and written, and the errors."""

    row: int
    reference: str
    hypothesis: str
    words: Counts
    characters: Counts
    n_best: list[dict[str, Any]]


def main(argv: Sequence[str]) -> int:
    args = _arguments(argv)
    recognizer = recognition.open_recognizer(args.run, args.step, args.quantizer)
    alphabet = recognizer.alphabet
    search = recognition.search_of(args, alphabet)
    if args.tune < 0:
        raise UserError(f"--tune={args.tune}: it is a number of pairs to try, or 0")
    if args.tune and (search is None or search.lm is None):
        raise UserError("--tune looks for --lm-weight and --word-score: it needs a language model (--lm FILE)")
    if args.tune and args.decoder == "flashlight" and not args.lexicon:
        raise UserError("--tune looks for --word-score, which flashlight has with --lexicon only; --decoder own has it")
    decoder = recognition.decoder_of(search, alphabet.tokens, args.decoder)  # before the long work: it may refuse
    source = open_source(args.source, tuple(args.root), workers=args.workers, split=args.split)
    texts = source.index.transcripts.tolist()
    if not any(map(alphabet.clean, texts)):
        raise UserError(
            f"{' '.join(args.root)}: no recording has a transcript to compare with; python -m w2v_jax.transcribe "
            "writes text without any"
        )
    silent = [_left_out(source, row, "no transcript") for row, text in enumerate(texts) if not text.strip()]
    source = subset(source, np.array([row for row, text in enumerate(texts) if text.strip()]))
    unread: list[dict[str, str]] = []
    frames = _frames(recognizer, source, args, unread)
    try:
        args.out.mkdir(parents=True, exist_ok=True)
        if args.tune and search is not None:
            search, scored = tune(frames, source, alphabet, search, args)
        else:
            scored = _score(frames, source, alphabet, decoder)
        result = summary(scored, source, alphabet)
        result |= {"run": str(recognizer.run.path), "step": recognizer.run.step, "unread": len(unread)}
        result |= {"without_transcript": [entry["id"] for entry in silent], "decoder": _about(search, args)}
        write(args.out, scored, source, result, unread + silent)
    except OSError as error:
        raise UserError(f"{error.filename or args.out}: cannot be written ({error.strerror or error})") from None
    print(_said(result, args.out))
    return 0


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m w2v_jax.evaluate",
        description="Scores a recogniser on transcribed recordings: word and character error rates, with alignments.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    recognition.add_arguments(parser)
    group = parser.add_argument_group("recordings")
    add = group.add_argument
    add("--source", default="folder", metavar="NAME", help=f"one of {', '.join(source_names())} (default: folder)")
    add("--root", nargs="+", required=True, metavar="PATH", help="where the recordings with their transcripts are")
    add("--split", default="", help="of a TensorFlow dataset, e.g. test")
    add("--out", required=True, type=pathlib.Path, metavar="DIR", help="folder for what is written; made if missing")
    add("--tune", type=int, default=0, metavar="N", help="try N pairs of --lm-weight and --word-score, take the best")
    return parser.parse_args(argv)


def _left_out(source: Source, row: int, reason: str) -> dict[str, str]:
    return {"id": str(source.index.ids[row]), "path": str(source.index.paths[row]), "reason": reason}


def _frames(
    recognizer: recognition.Recognizer, source: Source, args: argparse.Namespace, unread: list[dict[str, str]]
) -> dict[int, np.ndarray]:
    """Log-probabilities of every row, with progress; what cannot be read joins `unread`."""
    index, found = source.index, {}

    def skip(row: int, reason: str) -> None:
        unread.append(_left_out(source, row, reason))

    progress = Progress("recognising", index.hours)
    for row, frames in recognition.log_probs(recognizer, source, **recognition.reading_of(args), on_skip=skip):
        found[row] = frames
        progress.add(float(index.durations[row]))
    if not found:
        raise UserError(f"no recording could be read: {unread[0]['path']}: {unread[0]['reason']}")
    return dict(sorted(found.items()))


def _score(
    frames: dict[int, np.ndarray], source: Source, alphabet: Alphabet, decoder: recognition.Decoder
) -> list[Scored]:
    scored = []
    for row, each in frames.items():
        reference = alphabet.clean(str(source.index.transcripts[row]))
        found = decoder(each)
        n_best = [_as_dict(hypothesis, alphabet) for hypothesis in found]
        text = n_best[0]["text"]
        errors = word_errors(reference, text), character_errors(reference, text)
        scored.append(Scored(row, reference, text, *errors, n_best))
    return scored


def _as_dict(hypothesis: Hypothesis, alphabet: Alphabet) -> dict[str, Any]:
    parts = {key: round(getattr(hypothesis, key), 4) for key in ("score", "acoustic", "lm")}
    return {"text": alphabet.decode(hypothesis.ids)} | parts


def tune(
    frames: dict[int, np.ndarray], source: Source, alphabet: Alphabet, search: Search, args: argparse.Namespace
) -> tuple[Search, list[Scored]]:
    """The search whose language model's weight and word score make the fewest word errors here, and what it wrote.

    Random pairs from LM_WEIGHTS x WORD_SCORES after the one that is given; every try is in tuning.json.
    """
    rng = np.random.default_rng(0)
    tries: list[dict[str, float]] = []
    best: tuple[float, Search, list[Scored]] | None = None
    for number in range(args.tune):
        if number:
            weight, score = (round(float(rng.uniform(*limits)), 2) for limits in (LM_WEIGHTS, WORD_SCORES))
            tried = dataclasses.replace(search, lm_weight=weight, word_score=score)
        else:
            tried = search
        decoder = recognition.decoder_of(tried, alphabet.tokens, args.decoder)
        scored = _score(frames, source, alphabet, decoder)
        rate = total([each.words for each in scored]).rate
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


def summary(scored: Sequence[Scored], source: Source, alphabet: Alphabet) -> dict[str, Any]:
    """Error rates over all recordings, the interval over speakers, and what stands out."""
    words, characters = total([s.words for s in scored]), total([s.characters for s in scored])
    speakers = source.index.speakers[np.array([s.row for s in scored])]
    errors, units = (np.array([getattr(s.words, key) for s in scored], float) for key in ("errors", "units"))
    foreign = Counter(token for s in scored for token in set(alphabet.encode(s.reference)[1]))
    return {
        "recordings": len(scored),
        "hours": round(sum(float(source.index.durations[s.row]) for s in scored) / 3600, 4),
        "wer": words.rate,
        "wer_interval": interval(errors, units, speakers),
        "cer": characters.rate,
        "words": words._asdict(),
        "characters": characters._asdict(),
        "right": sum(s.words.errors == 0 for s in scored),
        "empty_references": sum(not s.reference for s in scored),
        "empty_hypotheses": sum(not s.hypothesis for s in scored),
        "foreign_tokens": dict(foreign.most_common()),
    }


def _about(search: Search | None, args: argparse.Namespace) -> dict[str, Any]:
    if search is None:
        return {"kind": "best path"}
    about = {key: getattr(search, key) for key in recognition.FIELDS if search.lm or key not in recognition.OF_MODEL}
    return {"kind": args.decoder, "lm": args.lm or "", "lexicon": args.lexicon or ""} | about


def write(
    out: pathlib.Path, scored: Sequence[Scored], source: Source, result: dict[str, Any], left_out: list[dict[str, str]]
) -> None:
    """hypotheses.jsonl in the order of the index, then what was left out; alignments.txt, worst first; scores.json."""
    ids = source.index.ids
    lines = [
        json.dumps(
            {
                "id": str(ids[s.row]),
                "reference": s.reference,
                "hypothesis": s.hypothesis,
                "word_errors": s.words.errors,
                "words": s.words.units,
                "character_errors": s.characters.errors,
                "characters": s.characters.units,
                "n_best": s.n_best,
            },
            ensure_ascii=False,
        )
        for s in scored
    ]
    lines += [json.dumps(entry | {"skipped": True}, ensure_ascii=False) for entry in left_out]
    write_whole(out / "hypotheses.jsonl", "\n".join(lines) + "\n")
    worst = sorted(scored, key=lambda s: (-s.words.errors, str(ids[s.row])))
    texts = [
        f"{ids[s.row]}: {s.words.errors} of {s.words.units}\n{alignment(s.reference, s.hypothesis)}" for s in worst
    ]
    write_whole(out / "alignments.txt", "\n".join(texts) + "\n")
    write_whole(out / "scores.json", json.dumps(result, indent=2, ensure_ascii=False) + "\n")


def _said(result: dict[str, Any], out: pathlib.Path) -> str:
    words, (low, high) = result["words"], result["wer_interval"]
    edits = ", ".join(f"{words[key]:,} {key}" for key in ("substitutions", "deletions", "insertions"))
    decoder = result["decoder"]
    rows = {
        "recordings": f"{result['recordings']:,}, {result['hours']:g} h; {result['right']:,} without any error",
        "decoder": ", ".join(f"{key} {value}" for key, value in decoder.items() if value not in ("", "kind")),
        "WER": f"{result['wer']:.2%} ({low:.2%} to {high:.2%} over speakers): {edits} in {words['units']:,} words",
        "CER": f"{result['cer']:.2%} of {result['characters']['units']:,} characters",
    }
    if result["empty_references"] or result["empty_hypotheses"]:
        rows["empty"] = f"{result['empty_references']:,} references, {result['empty_hypotheses']:,} hypotheses"
    if result["foreign_tokens"]:
        some = ", ".join(f"{token!r} in {count}" for token, count in list(result["foreign_tokens"].items())[:8])
        rows["not in the alphabet"] = f"{some}: they always count as errors"
    if result["unread"]:
        rows["left out"] = f"{result['unread']:,} recordings that could not be read or are too short"
    if ids := result["without_transcript"]:
        some = ", ".join(ids[:NAMED]) + (", ..." if len(ids) > NAMED else "")
        rows["no transcript"] = f"{len(ids):,} recordings, left out: {some}"
    rows["written"] = f"{out / 'hypotheses.jsonl'}, alignments.txt, scores.json"
    return table(rows, "done")


if __name__ == "__main__":
    run_command(main)
