"""`python -m w2v_jax.extract`: features or codes of recordings, written frame by frame for other programs.

Any run, any source. What the folder holds is described in `data/extracted.py` and `data/tables.py`; the codes of a
vq-wav2vec with its vocabulary are what data.name=codes trains on. It does not train, and it never changes a run but for
the vocabulary.
"""

from __future__ import annotations

import argparse
import json
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from w2v_jax import runs, workdir
from w2v_jax.config import CODE_UNKNOWN, SAMPLE_RATE, UserError, run_command
from w2v_jax.data import open_source, source_names, tables
from w2v_jax.data.extracted import (
    FORMATS,
    SKIPPED,
    Utterance,
    count,
    part_path,
    read_about,
    read_parts,
    write_about,
    write_lines,
    write_part,
)
from w2v_jax.data.index import Source
from w2v_jax.data.progress import Progress
from w2v_jax.data.vocabulary import FILE, Counter, Vocabulary
from w2v_jax.runs import Run

EXAMPLES = """examples:
  Code the data that a vq-wav2vec was trained on, build its vocabulary, and train BERT on the codes:
    python -m w2v_jax.extract --run runs/vq --what codes --root /data/train --out codes/train --build-vocabulary
    python -m w2v_jax.train --config=configs/bert_codes_base.py --workdir=runs/bert --config.data.root=codes/train
  Code other data with the same vocabulary, and write the tokens as text, too:
    python -m w2v_jax.extract --run runs/vq --what codes --root /data/dev --out codes/dev --text
  Features: the context of a wav2vec, layer 6 of a wav2vec 2.0, and of BERT from audio in one pass:
    python -m w2v_jax.extract --run runs/wav2vec --what context --root /data/dev --out features/dev
    python -m w2v_jax.extract --run runs/base --what hidden --layer 6 --root /data/dev --out features/dev6
    python -m w2v_jax.extract --run runs/bert --quantizer runs/vq --what context --root /data/dev --out features/bert
  For other tools: as Parquet or HDF5; and the layers weighted as the acoustic model of a run has learnt to weight them:
    python -m w2v_jax.extract --run runs/base --what hidden --layer 6 --root /data/dev --out features/p --format parquet
    python -m w2v_jax.extract --run runs/frozen --what hidden --layers learnt --root /data/dev --out features/weighted

The same command goes on after a stop. exit codes: 0 done, 1 a mistake, 2 wrong usage."""


class Job(NamedTuple):
    """What is written where: `settings` are those that another run into the same folder must share."""

    folder: pathlib.Path
    run: Run
    quantizer: Run | None
    source: Source
    parts: list[np.ndarray]
    settings: dict[str, Any]
    width: int
    dtype: str
    text: bool
    encode: Callable[..., Any]


def main(argv: Sequence[str]) -> int:
    args = _arguments(argv)
    run = runs.open_run(args.run, step=args.step, random=args.untrained)
    quantizer = runs.open_run(args.quantizer, step=args.quantizer_step) if args.quantizer else None
    args.layer = runs.layer_of(run, args)
    runs.check_keys(run, (args.what,), args.layer)
    tables.check_installed(args.format)
    if args.what == "codes" and not args.build_vocabulary:
        runs.vocabulary_of(run)
    options = {"min_seconds": args.min_seconds, "workers": args.workers, "split": args.split}
    source = open_source(args.source, tuple(args.root), **options)
    job = make_job(args, run, quantizer, source)
    try:
        with workdir.locked(job.folder, "extraction", "--out"):
            extract(job, build_vocabulary=args.build_vocabulary)
    except OSError as error:
        where = error.filename or job.folder
        raise UserError(
            f"{where}: cannot be written ({error.strerror or error}); parts that are finished stay, and the same "
            "command goes on from there"
        ) from None
    return 0


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m w2v_jax.extract",
        description="Writes features or codes of recordings, aligned to frames, with ids and durations, in .npy parts.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--run", required=True, metavar="RUN", help="the --workdir of a training")
    add("--step", type=runs.step_argument, metavar="N|best", help="which checkpoint (default: the newest)")
    add("--untrained", action="store_true", help="the parameters as they were before training, to compare with")
    add("--quantizer", metavar="RUN", help="the vq-wav2vec that makes the codes which RUN reads, from audio")
    add(
        "--quantizer-step",
        type=runs.step_argument,
        metavar="N|best",
        help="which of its checkpoints (default: the newest)",
    )
    add(
        "--what",
        required=True,
        choices=runs.FEATURES,
        help="local: z, before the context; context: c; hidden: one --layer",
    )
    runs.add_layer_arguments(parser)
    add("--source", default="folder", metavar="NAME", help=f"one of {', '.join(source_names())} (default: folder)")
    add("--root", nargs="+", required=True, metavar="PATH", help="where the recordings are")
    add("--split", default="", help="of a TensorFlow dataset, e.g. train[:10%%]")
    add("--out", required=True, type=pathlib.Path, metavar="DIR", help="folder to write; made if missing")
    add("--format", choices=FORMATS, default="numpy", help="of features: .npy with .jsonl (default), Parquet or HDF5")
    add("--dtype", choices=("float16", "float32"), help="of features (default: float32)")
    add("--text", action="store_true", help="of codes: write the tokens as text, too, one line per recording")
    add("--build-vocabulary", action="store_true", help="of codes: count them and keep the vocabulary with the run")
    add("--min-seconds", type=float, default=0.0, metavar="S", help="skip shorter recordings")
    add("--max-seconds", type=_positive, default=runs.MAX_SECONDS, metavar="S", help="cut longer ones (default: 80)")
    add("--part-hours", type=_positive, default=0.5, metavar="H", help="audio per part (default: 0.5)")
    add("--batch-seconds", type=_positive, default=runs.BATCH_SECONDS, metavar="S", help="audio at once (default: 160)")
    add("--workers", type=int, default=0, metavar="N", help="threads that read (default: one per core)")
    args = parser.parse_args(argv)
    chosen = (args.layer is not None) + (args.layers is not None)
    if chosen != (args.what == "hidden"):
        parser.error(
            "--layer N, which of the hidden states is wanted, from 0, or --layers W,W,... belongs to --what hidden"
        )
    if args.what == "codes" and args.format != "numpy":
        parser.error("--what codes: --format numpy, which training reads")
    if args.what == "codes" and (args.dtype or args.quantizer):
        parser.error("--what codes: name the run that makes the codes as --run, without --dtype and --quantizer")
    if args.what != "codes" and (args.text or args.build_vocabulary):
        parser.error("--text and --build-vocabulary belong to --what codes")
    return args


def _positive(text: str) -> float:
    value = float(text)
    if not value > 0:
        raise argparse.ArgumentTypeError(f"{text}: must be above 0")
    return value


def make_job(args: argparse.Namespace, run: Run, quantizer: Run | None, source: Source) -> Job:
    """Checks that run, quantizer and source belong together before anything is written. Raises UserError."""

    def encode(rows: np.ndarray, on_skip: Callable[[int, str], None]) -> Any:
        law: dict[str, Any] = dict(max_seconds=args.max_seconds, batch_seconds=args.batch_seconds)
        law |= dict(keys=(args.what,), layer=args.layer, quantizer=quantizer, workers=args.workers)
        return runs.encode(run, source, rows, on_skip=on_skip, **law)

    encode(np.zeros(0, np.int64), lambda row, reason: None)
    width, dtype = run.outputs[args.what][-1], args.dtype or "float32"
    groups = codes = 0
    if args.what == "codes":
        groups, codes = width, int(run.config.quantizer.codes)
        dtype = "uint16" if codes <= 1 << 16 else "int32"
    settings = dict(what=args.what, layer=args.layer, method=run.config.method, model=run.digest, step=run.step)
    settings |= dict(quantizer=quantizer.digest if quantizer else None, source=args.source, split=args.split)
    settings |= dict(fingerprint=source.index.fingerprint(), dtype=dtype, text=args.text, format=args.format)
    settings |= dict(part_hours=args.part_hours, min_seconds=args.min_seconds, max_seconds=args.max_seconds)
    settings |= dict(hop=(quantizer or run).geometry[1], groups=groups, codes=codes)
    parts = cut_into_parts(source.index.num_samples, args.part_hours)
    return Job(args.out, run, quantizer, source, parts, settings, width, dtype, args.text, encode)


def cut_into_parts(num_samples: np.ndarray, hours: float) -> list[np.ndarray]:
    """The rows of each part, in their order: a part begins where another `hours` of audio have gone by."""
    before = np.concatenate([[0], np.cumsum(num_samples)[:-1]])
    number = before // max(1, round(hours * 3600 * SAMPLE_RATE))
    return np.split(np.arange(len(num_samples)), np.flatnonzero(np.diff(number)) + 1)


def extract(job: Job, *, build_vocabulary: bool) -> None:
    """Writes the parts that are not there yet, then vocabulary and extract.json. Raises UserError."""
    about = _begin(job, build_vocabulary)
    done = [n for n in range(len(job.parts)) if _path(job, n).exists()]
    kept = _kept_skips(job, done)
    write_lines(job.folder / SKIPPED, kept)
    _say_first(job, len(done))
    index = job.source.index
    progress = Progress(job.folder, index.hours)
    for number, rows in enumerate(job.parts):
        if number not in done:
            _write(job, number, rows)
        for row in rows:
            progress.add(float(index.durations[row]), is_new=number not in done)
    progress.end(len(index))
    _finish(job, about, build_vocabulary)


def _begin(job: Job, build_vocabulary: bool) -> dict[str, Any]:
    """extract.json as it stands before the end. Raises UserError when the folder holds something else."""
    settings = json.loads(json.dumps(job.settings))
    if (job.folder / "extract.json").exists():
        before = read_about(job.folder, complete=False)
        changed = [f"{k}: {before.get(k)!r} -> {settings[k]!r}" for k in settings if before.get(k) != settings[k]]
        if changed:
            lines = "\n  ".join(changed)
            raise UserError(
                f"{job.folder} holds an extraction with other settings:\n  {lines}\nChoose another --out, ask for the "
                "same, or delete the folder"
            )
    elif any(path.name != ".lock" for path in job.folder.iterdir()):
        raise UserError(f"{job.folder} is not empty and holds no extraction; choose another --out")
    if build_vocabulary:
        _check_buildable(job)
    about = settings | dict(parts=len(job.parts), complete=False)
    if not (job.folder / "extract.json").exists():
        write_about(job.folder, about)
    return about


def _check_buildable(job: Job) -> None:
    """A vocabulary that the run has already is never replaced: codes written with it would mean something else."""
    kept, copy = job.run.path / FILE, job.folder / FILE
    if not kept.exists():
        return
    present = runs.vocabulary_of(job.run)
    if not copy.exists() or Vocabulary.load(copy).digest != present.digest:
        raise UserError(
            f"{kept} exists already; leave --build-vocabulary out to code with it, or move it away to build another one"
        )


def _kept_skips(job: Job, done: Sequence[int]) -> list[str]:
    """What listing left out, and what the finished parts did, as the lines of skipped.jsonl."""
    lines = [json.dumps(skip._asdict(), ensure_ascii=False) for skip in job.source.index.skipped]
    if (job.folder / SKIPPED).exists():
        for line in (job.folder / SKIPPED).read_text(encoding="utf-8").splitlines():
            try:
                part = json.loads(line).get("part")
            except ValueError:  # cut by a kill: its part is not finished
                continue
            if part in done:
                lines.append(line)
    return lines


def _write(job: Job, number: int, rows: np.ndarray) -> None:
    """Encodes one part. What cannot be encoded is in skipped.jsonl before the part appears."""
    index, skipped, found = job.source.index, [], {}

    def on_skip(row: int, reason: str) -> None:
        skipped.append({"path": str(index.paths[row]), "reason": reason, "part": number, "id": str(index.ids[row])})

    for row, arrays in job.encode(rows, on_skip):
        (frames,) = arrays.values()
        seconds = round(float(index.durations[row]), 6)
        names = str(index.ids[row]), str(index.speakers[row]), str(index.transcripts[row])
        found[row] = frames.astype(job.dtype), Utterance(names[0], 0, len(frames), seconds, names[1], names[2])
    with (job.folder / SKIPPED).open("a", encoding="utf-8") as file:
        for skip in sorted(skipped, key=lambda skip: (skip["id"], skip["reason"])):
            file.write(json.dumps(skip, ensure_ascii=False) + "\n")
    ordered = [found[row] for row in rows.tolist() if row in found]
    law: dict[str, Any] = dict(width=job.width, dtype=job.dtype)
    if job.settings["format"] == "parquet":
        tables.write_parquet(_path(job, number), ordered, dtype=job.dtype)
    elif job.settings["format"] == "hdf5":
        tables.write_hdf5(_path(job, number), ordered, **law)
    else:
        write_part(_path(job, number), ordered, **law, text=job.text)


def _path(job: Job, number: int) -> pathlib.Path:
    return part_path(job.folder, number, job.settings["format"])


def _finish(job: Job, about: dict[str, Any], build_vocabulary: bool) -> None:
    skipped = (job.folder / SKIPPED).read_text(encoding="utf-8").count("\n")
    utterances = frames = 0
    for number in range(len(job.parts)):
        found = count(_path(job, number))
        utterances, frames = utterances + found[0], frames + found[1]
    if not utterances:
        raise UserError(f"nothing could be extracted; the reasons are in {job.folder / SKIPPED}")
    about |= dict(utterances=utterances, frames=frames, skipped=skipped)
    said = ""
    if job.settings["what"] == "codes":
        vocabulary, counts = _vocabulary(job, about, build_vocabulary)
        about |= counts
        said = _say_codes(job, vocabulary, about)
    write_about(job.folder, about | {"complete": True})
    seen = f"; {skipped:,} were skipped, see {job.folder / SKIPPED}" if skipped else ""
    print(f"done: {utterances:,} recordings, {frames:,} frames in {job.folder}{seen}{said}", flush=True)


def _vocabulary(job: Job, about: dict[str, Any], build: bool) -> tuple[Vocabulary, dict[str, int]]:
    """The vocabulary, built or the run's own, copied into the folder; and how much of the codes it does not know."""
    if build:
        counter = Counter(job.settings["groups"], job.settings["codes"])
        for part in read_parts(job.folder, about):
            counter.add(np.asarray(part.array))
        vocabulary = counter.vocabulary(job.run.digest, job.run.step)
        vocabulary.save(job.folder / FILE)
        vocabulary.save(job.run.path / FILE)
    else:
        vocabulary = runs.vocabulary_of(job.run)
        vocabulary.save(job.folder / FILE)
    unknown, kinds = 0, set()
    for part in read_parts(job.folder, about):
        codes = np.asarray(part.array)
        lost = codes[vocabulary.encode(codes) == CODE_UNKNOWN]
        unknown += len(lost)
        kinds.update(map(tuple, np.unique(lost, axis=0).tolist()))
    return vocabulary, {"unknown_frames": unknown, "unknown_types": len(kinds), "vocab_size": vocabulary.size}


def _say_first(job: Job, done: int) -> None:
    s, index = job.settings, job.source.index
    what = f"layer {s['layer']}" if s["what"] == "hidden" else s["what"]
    if isinstance(s["layer"], tuple):
        what = f"all layers, weighted {' '.join(f'{w:.3g}' for w in s['layer'])},"
    via = f", codes by {job.quantizer.path} (step {job.quantizer.step})" if job.quantizer else ""
    there = f", {done} of them there already" if done else ""
    print(
        f"extracting {what} of {job.run.path} ({s['method']}, step {s['step']}{via}): {len(index):,} recordings, "
        f"{index.hours:,.2f} h, {len(job.parts)} part(s){there}",
        flush=True,
    )


def _say_codes(job: Job, vocabulary: Vocabulary, about: dict[str, Any]) -> str:
    share = about["unknown_frames"] / max(about["frames"], 1)
    return (
        f"\nvocabulary: {len(vocabulary.types):,} types, entropy {vocabulary.entropy:.3f} nats, kept in "
        f"{job.run.path / FILE}\nunknown to it: {share:.2%} of the frames ({about['unknown_frames']:,} frames, "
        f"{about['unknown_types']:,} types)\ntrain on them by --config.data.name=codes "
        f"--config.data.root={job.folder} --config.data.vocab_size={vocabulary.size}"
    )


if __name__ == "__main__":
    run_command(main)
