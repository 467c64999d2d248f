"""`python -m w2v_jax.extract`: writes features or codes of recordings, frame by frame, for other programs.

It takes any run and any source. `data/io/feature_files.py` and `data/io/feature_tables.py` describe the files. The
codes of a vq-wav2vec, with its vocabulary, are the data of data.name=codes. It trains nothing, and the only file that
it adds to a run is the vocabulary.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from w2v_jax.core.cli import (
    STEP,
    STEP_HELP,
    UserError,
    cannot_write,
    command_parser,
    count_argument,
    expand_home,
    positive,
    run_command,
    step_argument,
)
from w2v_jax.core.display import short_repr
from w2v_jax.core.storage import output_folder
from w2v_jax.core.stores import place_argument
from w2v_jax.core.units import CODE_UNKNOWN
from w2v_jax.data import open_source, source_names
from w2v_jax.data.code_vocabulary import VOCABULARY_FILE, CodeCounter, Vocabulary
from w2v_jax.data.index import Source
from w2v_jax.data.io import feature_tables
from w2v_jax.data.io.feature_files import FORMATS, SENT_LAST, part_size, read_parts, write_metadata, write_part
from w2v_jax.data.io.part_jobs import PartJob, cut_into_parts
from w2v_jax.inference.encode import BATCH_SECONDS, MAX_SECONDS, check_keys, encode, vocabulary_of
from w2v_jax.inference.run import FEATURES, Run, add_layer_arguments, layer_of, open_run
from w2v_jax.training import workdir

EXAMPLES = """examples:
  Code the training data of a vq-wav2vec, build its vocabulary, and train BERT on the codes:
    python -m w2v_jax.extract --run runs/vq --what codes --root /data/train --out codes/train --build-vocabulary
    python -m w2v_jax.train --config=configs/bert_codes_base.py --workdir=runs/bert --config.data.root=codes/train
  Code other data with the same vocabulary, and also write the tokens as text:
    python -m w2v_jax.extract --run runs/vq --what codes --root /data/dev --out codes/dev --text
  Features: the context of a wav2vec, layer 6 of a wav2vec 2.0, and the context of BERT from audio in one pass:
    python -m w2v_jax.extract --run runs/wav2vec --what context --root /data/dev --out features/dev
    python -m w2v_jax.extract --run runs/base --what hidden --layer 6 --root /data/dev --out features/dev6
    python -m w2v_jax.extract --run runs/bert --quantizer runs/vq --what context --root /data/dev --out features/bert
  Parquet or HDF5 for other tools; the sum of the layers with the weights that an acoustic model has learnt:
    python -m w2v_jax.extract --run runs/base --what hidden --layer 6 --root /data/dev --out features/p --format parquet
    python -m w2v_jax.extract --run runs/frozen --what hidden --layers learnt --root /data/dev --out features/weighted

Give the same command again to go on after a stop. exit codes: 0 done, 1 a mistake, 2 wrong usage."""


class Extraction(NamedTuple):
    """What to extract, and the parts that it goes to."""

    args: argparse.Namespace
    run: Run
    quantizer: Run | None
    work: PartJob

    __repr__ = short_repr

    def encode(self, rows: np.ndarray, on_skip: Callable[[int, str], None]) -> Iterator[tuple[int, np.ndarray]]:
        """(row, features or codes [F D]) of these rows of the source."""
        encoded = encode(
            self.run,
            self.work.source,
            rows,
            keys=(self.args.what,),
            layer=self.args.layer,
            quantizer=self.quantizer,
            max_seconds=self.args.max_seconds,
            batch_seconds=self.args.batch_seconds,
            workers=self.args.workers,
            on_skip=on_skip,
        )
        return ((row, arrays[self.args.what].astype(self.work.settings["dtype"])) for row, arrays in encoded)


def main(argv: Sequence[str]) -> int:
    args = _arguments(argv)
    run = open_run(args.run, step=args.step, random=args.untrained)
    quantizer = open_run(args.quantizer, step=args.quantizer_step) if args.quantizer else None
    args.layer = layer_of(run, args)
    check_keys(run, (args.what,), args.layer)
    feature_tables.check_installed(args.format)
    if args.what == "codes" and not args.build_vocabulary:
        vocabulary_of(run)
    root = tuple(args.root)
    source = open_source(args.source, root, min_seconds=args.min_seconds, workers=args.workers, split=args.split)
    with output_folder(args.out, last=SENT_LAST) as args.out:
        job = make_job(args, run, quantizer, source=source)
        try:
            with workdir.locked(args.out, "extraction", "--out"):
                extract(job, build_vocabulary=args.build_vocabulary)
        except OSError as error:
            raise UserError(
                f"{cannot_write(error.filename or args.out, error)}; finished parts stay, and the same command goes "
                "on from there"
            ) from None
    return 0


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    description = "Writes features or codes of recordings, aligned to frames, with ids and durations, in .npy parts."
    parser = command_parser("extract", description, EXAMPLES)
    add = parser.add_argument
    add("--run", required=True, type=expand_home, metavar="RUN", help="the --workdir of a training")
    add("--step", type=step_argument, metavar=STEP, help=STEP_HELP)
    add("--untrained", action="store_true", help="use the parameters before training, for comparison")
    codes = "the vq-wav2vec that makes the codes which RUN reads, from audio"
    add("--quantizer", type=expand_home, metavar="RUN", help=codes)
    add("--quantizer-step", type=step_argument, metavar=STEP, help="its checkpoint (default: the newest)")
    what = "local: z, before the context; context: c; hidden: states of the layers, see --layer"
    add("--what", required=True, choices=FEATURES, help=what)
    add_layer_arguments(parser)
    add("--source", default="folder", metavar="NAME", help=f"one of {', '.join(source_names())} (default: folder)")
    add("--root", nargs="+", type=expand_home, required=True, metavar="PATH", help="where the recordings are")
    add("--split", default="", help="split of a TensorFlow dataset, e.g. train[:10%%]")
    add("--out", required=True, type=place_argument, metavar="DIR", help="folder to write; made if missing")
    add("--format", choices=FORMATS, default="numpy", help="of features: .npy with .jsonl (default), Parquet or HDF5")
    add("--dtype", choices=("float16", "float32"), help="of features (default: float32)")
    add("--text", action="store_true", help="of codes: also write the tokens as text, one line per recording")
    add("--build-vocabulary", action="store_true", help="of codes: count them and write the vocabulary to the run")
    add("--min-seconds", type=float, default=0.0, metavar="S", help="skip shorter recordings")
    add("--max-seconds", type=positive, default=MAX_SECONDS, metavar="S", help="cut longer ones (default: 80)")
    add("--part-hours", type=positive, default=0.5, metavar="H", help="audio per part (default: 0.5)")
    add("--batch-seconds", type=positive, default=BATCH_SECONDS, metavar="S", help="audio at once (default: 160)")
    add("--workers", type=count_argument, default=0, metavar="N", help="threads that read (default: one per core)")
    args = parser.parse_args(argv)
    if (args.layer is not None) + (args.layers is not None) != (args.what == "hidden"):
        parser.error("--what hidden, and only that, needs --layer N (a hidden state, from 0) or --layers W,W,...")
    if args.what == "codes" and args.format != "numpy":
        parser.error("--what codes needs --format numpy, which training reads")
    if args.what == "codes" and (args.dtype or args.quantizer):
        parser.error("--what codes takes the run that makes the codes as --run, without --dtype and --quantizer")
    if args.what != "codes" and (args.text or args.build_vocabulary):
        parser.error("--text and --build-vocabulary need --what codes")
    return args


def make_job(args: argparse.Namespace, run: Run, quantizer: Run | None, *, source: Source) -> Extraction:
    """The extraction. Raises UserError, before anything is written, if run, quantizer and source do not fit."""
    dtype, groups, codes = args.dtype or "float32", 0, 0
    if args.what == "codes":
        groups, codes = run.outputs["codes"][-1], int(run.config.quantizer.codes)
        dtype = "uint16" if codes <= 1 << 16 else "int32"
    settings = dict(what=args.what, layer=args.layer, method=run.config.method, model=run.digest, step=run.step)
    settings |= dict(quantizer=quantizer.digest if quantizer else None, source=args.source, split=args.split)
    settings |= dict(fingerprint=source.index.fingerprint(), dtype=dtype, text=args.text, format=args.format)
    settings |= dict(part_hours=args.part_hours, min_seconds=args.min_seconds, max_seconds=args.max_seconds)
    settings |= dict(hop=(quantizer or run).geometry[1], groups=groups, codes=codes)
    parts = cut_into_parts(source.index.num_samples, args.part_hours)
    work = PartJob(args.out, source, parts=parts, settings=settings, noun="extraction", suffix=FORMATS[args.format])
    job = Extraction(args, run, quantizer=quantizer, work=work)
    job.encode(np.zeros(0, np.int64), lambda row, reason: None)  # checks that they fit
    return job


def extract(job: Extraction, *, build_vocabulary: bool) -> None:
    """Writes the missing parts, then the vocabulary and extract.json. Raises UserError."""
    summary = job.work.begin((lambda: _check_buildable(job)) if build_vocabulary else lambda: None)
    done = job.work.finished()
    _print_start(job, len(done))
    job.work.write_missing(lambda number, rows: _write_part(job, number, rows), done)
    _finish(job, summary, build_vocabulary)


def _check_buildable(job: Extraction) -> None:
    """Raises UserError if the run has a vocabulary that this extraction has not built.

    A vocabulary is never replaced, because codes written with it would change their meaning.
    """
    file, copy = job.run.path / VOCABULARY_FILE, job.work.folder / VOCABULARY_FILE
    if file.exists():
        digest = vocabulary_of(job.run).digest
        if not copy.exists() or Vocabulary.load(copy).digest != digest:
            raise UserError(
                f"{file} exists already; leave --build-vocabulary out to code with it, or move it away to build another"
            )


def _write_part(job: Extraction, number: int, rows: np.ndarray) -> None:
    """Encodes one part. skipped.jsonl names the recordings that cannot be encoded before the part appears."""
    settings = job.work.settings
    utterances = job.work.encoded(number, rows, job.encode)
    path, width, dtype = job.work.path(number), job.run.outputs[settings["what"]][-1], settings["dtype"]
    if settings["format"] == "parquet":
        feature_tables.write_parquet(path, utterances, dtype=dtype)
    elif settings["format"] == "hdf5":
        feature_tables.write_hdf5(path, utterances, width=width, dtype=dtype)
    else:
        write_part(path, utterances, width=width, dtype=dtype, text=settings["text"])


def _finish(job: Extraction, summary: dict[str, Any], build_vocabulary: bool) -> None:
    summary |= job.work.totals(part_size)
    report = ""
    if job.work.settings["what"] == "codes":
        vocabulary, counts = _vocabulary(job, summary, build_vocabulary)
        summary |= counts
        report = _vocabulary_report(job, vocabulary, summary)
    write_metadata(job.work.folder, summary | {"complete": True})
    counts = f"{summary['utterances']:,} recordings, {summary['frames']:,} frames"
    print(f"done: {counts} in {job.work.folder}{job.work.skipped_hint(summary['skipped'])}{report}", flush=True)


def _vocabulary(job: Extraction, summary: dict[str, Any], build: bool) -> tuple[Vocabulary, dict[str, int]]:
    """Builds the vocabulary, or takes the run's own, and copies it into the folder. Counts the unknown codes."""
    if build:
        counter = CodeCounter(job.work.settings["groups"], job.work.settings["codes"])
        for part in read_parts(job.work.folder, summary):
            counter.add(np.asarray(part.array))
        vocabulary = counter.vocabulary(job.run.digest, job.run.step)
    else:
        vocabulary = vocabulary_of(job.run)
    vocabulary.save(job.work.folder / VOCABULARY_FILE)
    if build:
        vocabulary.save(job.run.path / VOCABULARY_FILE)
    unknown_frames, unknown_types = 0, set()
    for part in read_parts(job.work.folder, summary):
        codes = np.asarray(part.array)
        unknown = codes[vocabulary.encode(codes) == CODE_UNKNOWN]
        unknown_frames += len(unknown)
        unknown_types.update(map(tuple, np.unique(unknown, axis=0).tolist()))
    counts = dict(unknown_frames=unknown_frames, unknown_types=len(unknown_types), vocab_size=vocabulary.size)
    return vocabulary, counts


def _print_start(job: Extraction, done: int) -> None:
    settings, index = job.work.settings, job.work.source.index
    what = f"layer {settings['layer']}" if settings["what"] == "hidden" else settings["what"]
    if isinstance(settings["layer"], tuple):
        what = f"all layers, weighted {' '.join(f'{w:.3g}' for w in settings['layer'])},"
    via = f", codes by {job.quantizer.path} (step {job.quantizer.step})" if job.quantizer else ""
    finished = f", {done} of them finished already" if done else ""
    print(
        f"extracting {what} of {job.run.path} ({settings['method']}, step {settings['step']}{via}): {len(index):,} "
        f"recordings, {index.hours:,.2f} h, {len(job.work.parts)} part(s){finished}",
        flush=True,
    )


def _vocabulary_report(job: Extraction, vocabulary: Vocabulary, summary: dict[str, Any]) -> str:
    frames, types = summary["unknown_frames"], summary["unknown_types"]
    return (
        f"\nvocabulary: {len(vocabulary.types):,} types, entropy {vocabulary.entropy:.3f} nats, in "
        f"{job.run.path / VOCABULARY_FILE}\nnot in the vocabulary: {frames / max(summary['frames'], 1):.2%} of the "
        f"frames ({frames:,} frames, {types:,} types)\ntrain on them by --config.data.name=codes "
        f"--config.data.root={job.work.folder} --config.data.vocab_size={vocabulary.size}"
    )


if __name__ == "__main__":
    run_command(main)
