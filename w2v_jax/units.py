"""`python -m w2v_jax.units fit | label | measure`: makes speech units by k-means, for HuBERT and for language models.

`fit` clusters MFCC or a layer of a run, `label` writes the unit of every frame, and `measure` says what the units tell
about phones or letters in time. `discrete/` holds what they do. They train no network.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import pathlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from w2v_jax.core.cli import (
    STEP,
    STEP_HELP,
    UserError,
    cannot_write,
    command_parser,
    count_argument,
    duration,
    expand_home,
    positive,
    run_command,
    some_of,
    step_argument,
    table,
)
from w2v_jax.core.distributed import (
    add_distributed_argument,
    broadcast_from_first,
    cannot_go_on,
    is_first,
    joined_processes,
    wait_for_all,
)
from w2v_jax.core.files import file_digest, whole_file, write_whole
from w2v_jax.core.progress import LOG_SECONDS, ProgressBar
from w2v_jax.core.storage import fetched_path, output_file, output_folder
from w2v_jax.core.stores import is_remote, place_argument
from w2v_jax.data import open_source, source_names
from w2v_jax.data.index import SKIPPED, Skip, Source, write_skipped
from w2v_jax.data.io import feature_tables
from w2v_jax.data.io.feature_files import SENT_LAST, write_metadata
from w2v_jax.data.io.part_jobs import changed_settings
from w2v_jax.data.io.unit_files import UNIT_FORMATS, read_units, units_size
from w2v_jax.discrete import fit as fits
from w2v_jax.discrete.abx import abx_of_units
from w2v_jax.discrete.clustering import Clusters
from w2v_jax.discrete.frame_features import CUTS, FrameFeatures, layer_features, mfcc_features
from w2v_jax.discrete.labelling import Labelling, make_labelling
from w2v_jax.discrete.quality import Quality, qualities
from w2v_jax.discrete.time_labels import corpus_letters, read_time_labels
from w2v_jax.discrete.unit_model import ABOUT, UnitModel, read_about, usage
from w2v_jax.inference.encode import BATCH_SECONDS
from w2v_jax.inference.run import open_run
from w2v_jax.interop.centers_file import read_centers
from w2v_jax.training import workdir
from w2v_jax.training.sharding import row_mesh

EXAMPLES = """examples:
  HuBERT's first units: 100 clusters of MFCC, fitted to a tenth of the recordings:
    python -m w2v_jax.units fit --features mfcc --root /data/train --clusters 100 --share 0.1 --out units/mfcc100
    python -m w2v_jax.units label --model units/mfcc100 --root /data/train --out units/train
  Its second: 500 clusters of layer 6 of the first HuBERT:
    python -m w2v_jax.units fit --run runs/hubert1 --layer 6 --root /data/train --clusters 500 --out units/l6
    python -m w2v_jax.units label --model units/l6 --run runs/hubert1 --root /data/train --out units/train6
  Units for a language model, without repeats:
    python -m w2v_jax.units label --model units/mfcc100 --root /data/dev --out units/lm --format jsonl --collapse
  What they tell about the letters of a self-made corpus, or about phones in a file:
    python -m w2v_jax.units measure --units units/dev --alignment letters --source synthetic --root data/synthetic/dev
    python -m w2v_jax.units measure --units units/dev --alignment phones.tsv

fit and label use all devices of the machine. On several machines give the same command on each with --distributed, and
folders that all of them see.
Give the same command again to go on after a stop. exit codes: 0 done, 1 a mistake, 2 wrong usage."""
LAYER_HELP = (
    "the hidden state to cluster. Of a Transformer 0 is its input and N the output of layer N as papers count them, "
    'from 1: HuBERT\'s "layer 6" is --layer 6'
)
STATE = "fit.npz"
"""The file of an unfinished model from which a fit goes on."""
SAVE_SECONDS = 30.0


def main(argv: Sequence[str]) -> int:
    args = _arguments(argv)
    try:
        with joined_processes(args.distributed):
            if args.command == "measure":
                return measure(args)
            if is_remote(args.out) and jax.process_count() > 1:
                needed = "several processes need a folder that all of them see: mount the bucket"
                raise UserError(f"--out {args.out}: {needed}")
            with output_folder(args.out, last=[ABOUT] if args.command == "fit" else SENT_LAST) as args.out:
                return {"fit": fit, "label": label}[args.command](args)
    except jax.errors.JaxRuntimeError as error:
        if jax.process_count() > 1:
            remedy = "The same command, in all processes, goes on from what is finished"
            print(cannot_go_on(error, remedy), file=sys.stderr, flush=True)
        raise
    except OSError as error:
        what = cannot_write(error.filename or args.out, error)
        raise UserError(f"{what}; what is finished stays, and the same command goes on from there") from None


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    description = "Speech units: fits k-means to frames of speech, labels recordings with it, measures the units."
    parser = command_parser("units", description, EXAMPLES)
    commands = parser.add_subparsers(dest="command", required=True, metavar="fit|label|measure")
    _add_fit(commands.add_parser("fit", help="fit k-means to MFCC or to a layer of a run"))
    _add_label(commands.add_parser("label", help="write the unit of every frame"))
    _add_measure(commands.add_parser("measure", help="purity and mutual information of units and phones or letters"))
    args = parser.parse_args(argv)
    if args.command == "fit":
        given = args.features or ("mfcc" if args.run is None else "hidden")
        if (given == "mfcc") != (args.run is None):
            parser.error("give either --features mfcc or --run RUN")
        if (given == "hidden") != (args.layer is not None):
            parser.error("--run RUN needs --layer N, and only the hidden states of a run have layers")
        if (args.clusters is None) == (args.centers is None):
            parser.error("give either --clusters K or --centers FILE")
        args.features = given
    return args


def _add_fit(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    what = "mfcc, or what of --run (default: mfcc without --run, else hidden)"
    add("--features", choices=("mfcc", "hidden", "context", "local"), help=what)
    _add_run(parser, "whose features are clustered")
    add("--layer", type=count_argument, metavar="N", help=LAYER_HELP)
    _add_source(parser)
    add("--clusters", type=_at_least_one, metavar="K", help="clusters of each codebook")
    codebooks = "cut the features into G equal groups with a codebook each; 3 of MFCC are static, delta, delta-delta"
    centers = "take the centres of a k-means of scikit-learn (joblib), of faiss, or in .npy, and fit nothing"
    add("--centers", type=expand_home, metavar="FILE", help=centers)
    add("--codebooks", type=_at_least_one, default=1, metavar="G", help=codebooks)
    add("--share", type=_share, default=1.0, metavar="S", help="a random share of the recordings (default: 1.0)")
    add("--seed", type=count_argument, default=0, metavar="N", help="of the share, the starts and the batches")
    add("--out", required=True, type=place_argument, metavar="DIR", help="folder for the model; made if missing")
    d = fits.Settings(1)
    add("--starts", type=_at_least_one, default=d.starts, metavar="N", help="k-means++ starts (default: %(default)s)")
    add("--batch", type=_at_least_one, default=d.batch, metavar="N", help="frames of a batch (default: %(default)s)")
    add("--passes", type=_at_least_one, default=d.passes, metavar="N", help="at most (default: %(default)s)")
    patience = "end after N batches without a better inertia (default: %(default)s)"
    add("--patience", type=_at_least_one, default=d.patience, metavar="N", help=patience)
    memory = "of frames at once, in GB (default: 2); more are computed anew in each pass"
    add("--memory", type=positive, default=2.0, metavar="GB", help=memory)
    add("--min-seconds", type=float, default=0.0, metavar="S", help="leave shorter recordings out")
    _add_reading(parser)


def _add_label(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--model", required=True, type=place_argument, metavar="DIR", help="the folder that fit has written")
    _add_run(parser, "that the model was fitted to; MFCC need none")
    _add_source(parser)
    add("--out", required=True, type=place_argument, metavar="DIR", help="folder to write; made if missing")
    forms = "numpy, which training reads (default), or for other programs text, jsonl or parquet"
    add("--format", choices=tuple(UNIT_FORMATS), default="numpy", help=forms)
    add("--collapse", action="store_true", help="leave repeats out and write durations, in frames")
    add("--part-hours", type=positive, default=0.5, metavar="H", help="audio per part (default: 0.5)")
    add("--min-seconds", type=float, default=0.0, metavar="S", help="skip shorter recordings")
    _add_reading(parser)


def _add_measure(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--units", required=True, type=place_argument, metavar="DIR", help="the folder that label has written")
    alignment = "letters: those of a self-made corpus; or a file with id, start, end (seconds), label between tabs"
    add("--alignment", required=True, type=expand_home, metavar="letters|FILE", help=alignment)
    _add_source(parser, required=False)
    add("--abx", action="store_true", help="also the ABX error within and across speakers, on a random part")
    add("--out", type=place_argument, metavar="FILE", help="also write the figures there, as JSON")
    add("--workers", type=count_argument, default=0, metavar="N", help="threads that read (default: one per core)")
    parser.set_defaults(distributed=None)


def _add_run(parser: argparse.ArgumentParser, which: str) -> None:
    parser.add_argument("--run", type=expand_home, metavar="RUN", help=f"the --workdir of a training {which}")
    parser.add_argument("--step", type=step_argument, metavar=STEP, help=STEP_HELP)


def _add_source(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    add = parser.add_argument
    add("--source", default="folder", metavar="NAME", help=f"one of {', '.join(source_names())} (default: folder)")
    add("--root", nargs="+", type=expand_home, required=required, metavar="PATH", help="where the recordings are")
    add("--split", default="", help="split of a TensorFlow dataset, e.g. train[:10%%]")


def _add_reading(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add_distributed_argument(parser)
    cut = "of recordings above 100 s, for a run: as HuBERT's recipe (default), or even, which loses no frame"
    add("--cut", choices=CUTS, default="recipe", help=cut)
    at_once = "audio at once, which the devices of the machine share (default: 160)"
    add("--batch-seconds", type=positive, default=BATCH_SECONDS, metavar="S", help=at_once)
    add("--workers", type=count_argument, default=0, metavar="N", help="threads that read (default: one per core)")


def _share(text: str) -> float:
    value = positive(text)
    if value > 1:
        raise argparse.ArgumentTypeError(f"{text}: a share is at most 1")
    return value


def _at_least_one(text: str) -> int:
    value = count_argument(text)
    if not value:
        raise argparse.ArgumentTypeError(f"{text}: must be at least 1")
    return value


def _open_source(args: argparse.Namespace) -> Source:
    min_seconds = getattr(args, "min_seconds", 0.0)
    return open_source(args.source, tuple(args.root), min_seconds=min_seconds, workers=args.workers, split=args.split)


# Fit


def fit(args: argparse.Namespace) -> int:
    """Fits a k-means model, or goes on with it. Raises UserError."""
    args.centers = args.centers and fetched_path(args.centers)
    if args.run is None:
        features = mfcc_features()
    else:
        features = layer_features(open_run(args.run, step=args.step), args.layer, key=args.features, cut=args.cut)
    features = features.over(row_mesh(jax.local_devices()))
    source = _open_source(args)
    features.check_source(source)
    given = _given_centers(args, features)
    clusters, passes = (args.clusters, args.passes) if given is None else (given.shape[1], 0)
    pool = max(int(args.memory * 1e9 / (4 * features.width)), 3 * max(args.batch, clusters))
    settings = fits.Settings(
        clusters,
        codebooks=args.codebooks,
        seed=args.seed,
        batch=args.batch,
        starts=args.starts,
        passes=passes,
        patience=args.patience,
        pool=pool,
    )
    if features.width % settings.codebooks:
        raise UserError(f"--codebooks {settings.codebooks} does not divide the {features.width} numbers of a frame")
    field, hop = features.geometry
    about = dict(**features.identity, **features.cutting, hop=hop, field=field, width=features.width)
    about |= dict(settings=settings._asdict(), share=args.share, source=args.source, split=args.split)
    about |= dict(min_seconds=args.min_seconds, fingerprint=source.index.fingerprint())
    about |= dict(centers=None if given is None else file_digest(args.centers))
    with _locked(args.out, "fit"):
        if broadcast_from_first(lambda: _is_done(args.out, about)):
            _say(f"{args.out} is finished already: {_in_brief(UnitModel.load(args.out))}")
            return 0
        model, skipped = _fitted(args, features, source, settings=settings, given=given, about=about)
        if is_first():
            write_skipped(args.out / SKIPPED, [*source.index.skipped, *skipped])
            model.save(args.out)
            (args.out / STATE).unlink(missing_ok=True)
    left_out = f"; {len(skipped):,} recordings were skipped, see {args.out / SKIPPED}" if skipped else ""
    _say(f"done: {_in_brief(model)}; in {args.out}{left_out}")
    return 0


def _say(text: str) -> None:
    """Prints a line, once for all processes."""
    if is_first():
        print(text, flush=True)


@contextlib.contextmanager
def _locked(out: pathlib.Path, what: str) -> Iterator[None]:
    """Makes the folder --out and locks it; of several processes the first one does. Raises UserError in all."""
    with contextlib.ExitStack() as stack:
        broadcast_from_first(lambda: stack.enter_context(workdir.locked(out, what, "--out")))
        yield


def _given_centers(args: argparse.Namespace, features: FrameFeatures) -> np.ndarray | None:
    """The centres [1 K D] of --centers, if it is given. Raises UserError where they are not of such frames."""
    if args.centers is None:
        return None
    centers = read_centers(args.centers)
    if centers.shape[1] != features.width or args.codebooks != 1:
        raise UserError(
            f"{args.centers} has {len(centers):,} centres of {centers.shape[1]} numbers in one codebook; a frame of "
            f"{features.name} has {features.width}, and --codebooks is {args.codebooks}"
        )
    return centers[None]


def _is_done(folder: pathlib.Path, about: dict[str, Any]) -> bool:
    """Whether the folder holds this model. Begins a new one. Raises UserError where it holds anything else."""
    old, new = read_about(folder), json.loads(json.dumps(about))
    if old is None and any(path.name != ".lock" for path in folder.iterdir()):
        raise UserError(f"{folder} is not empty and holds no k-means model; choose another --out")
    if old is None or not (old.get("complete") or (folder / STATE).exists()):  # there is nothing to go on from
        write_whole(folder / ABOUT, json.dumps(new | {"complete": False}, indent=2) + "\n")
        return False
    if changes := changed_settings(old, new):
        raise UserError(
            f"{folder} holds a model with other settings:{changes}\nChoose another --out, use the same settings, or "
            "delete the folder"
        )
    return bool(old.get("complete"))


def _fitted(
    args: argparse.Namespace,
    features: FrameFeatures,
    source: Source,
    *,
    settings: fits.Settings,
    given: np.ndarray | None,
    about: dict[str, Any],
) -> tuple[UnitModel, list[Skip]]:
    """The model, and the recordings that were left out. Goes on where an earlier command was stopped."""
    rows = fits.some_share(source.index, args.share, args.seed)
    skips: dict[int, Skip] = {}
    reading = dict(batch_seconds=args.batch_seconds, workers=args.workers)
    on_skip = lambda row, reason: skips.setdefault(row, Skip(str(source.index.paths[row]), reason)) and None
    pools = fits.Pools(features, source, rows, size=settings.pool, on_skip=on_skip, **reading)
    hours = float(source.index.durations[rows].sum()) / 3600
    what = f"{'fitting' if given is None else 'measuring'} {_clusters(settings.clusters, settings.codebooks)}"
    _say(
        f"{what} on {features.name}: {len(rows):,} of {len(source.index):,} recordings, {hours:,.2f} h, "
        f"{pools.total:,} frames in {len(pools)} pool(s)"
    )
    if given is None and pools.total < settings.clusters:
        raise UserError(fits.too_few(settings.clusters, pools.total))
    state = args.out / STATE
    if given is not None:
        progress = fits.Progress(Clusters(jnp.asarray(given), jnp.zeros(given.shape[:2])))
    elif broadcast_from_first(state.exists):
        progress = fits.Progress.of(np.load(state))
        wait_for_all()  # before the first process writes another
        _say(f"  going on in pass {progress.pass_number + 1}, after {progress.batches:,} batches")
    else:
        with ProgressBar(f"{args.out}: frames", hours / len(pools) / jax.process_count(), is_shown=is_first()) as bar:
            pools.on_row = bar.add
            pools.load(0)
        pools.on_row = lambda seconds: None
        clock = _Clock(f"{args.out}: start")
        progress = fits.begin(pools, settings, report=lambda n: clock.show(n, settings.starts, ""))
    saved = time.monotonic()
    show = _pass_reporter(f"{args.out}: pass", settings=settings, pools=len(pools), first=progress.batches)
    for _ in fits.passes(pools, settings, progress):
        show(progress)
        if is_first() and time.monotonic() - saved > SAVE_SECONDS:
            _save_state(state, progress)
            saved = time.monotonic()
    centers = np.asarray(progress.clusters.centers)
    inertia, counts = fits.measured(pools, settings, centers)
    about = about | dict(
        recordings=len(rows) - len(skips), skipped=len(skips), hours=hours, frames=int(counts[0].sum())
    )
    about |= dict(passes=progress.pass_number, batches=progress.batches, inertia=inertia.tolist())
    about |= dict(**usage(counts), counts=counts.tolist(), complete=True)
    return UnitModel(centers, about), [skips[row] for row in sorted(skips)]


def _save_state(path: pathlib.Path, progress: fits.Progress) -> None:
    with whole_file(path) as partial, open(partial, "wb") as file:
        np.savez(file, allow_pickle=False, **progress.arrays())


def _pass_reporter(name: str, *, settings: fits.Settings, pools: int, first: int) -> Callable[[fits.Progress], None]:
    """A function that shows the progress of passes now and then; `first` batches were done before."""
    clock = _Clock(name)

    def show(progress: fits.Progress) -> None:
        inertia = float(np.sum(progress.smoothed)) if progress.smoothed is not None else float("nan")
        rate = (progress.batches - first) * settings.batch / max(clock.seconds, 1e-9)
        text = f", inertia {inertia:.4g} per frame, {rate:,.0f} frames/s"
        clock.show(progress.pass_number + progress.place / pools, settings.passes, text)

    return show


class _Clock:
    """A line on stderr now and then: how much is done, and how long the rest takes at most."""

    def __init__(self, name: str):
        self.name, self.begin, self.shown, self.first = name, time.monotonic(), time.monotonic(), -1.0

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.begin

    def show(self, done: float, total: int, text: str) -> None:
        self.first = done if self.first < 0 else self.first
        now = time.monotonic()
        if is_first() and now - self.shown > LOG_SECONDS and done > self.first:
            left = duration(self.seconds * (total - done) / (done - self.first))
            print(f"{self.name} {done:.4g} of at most {total}{text} (at most {left} left)", file=sys.stderr, flush=True)
            self.shown = now


def _clusters(clusters: int, codebooks: int) -> str:
    return f"{clusters:,} clusters" if codebooks == 1 else f"{codebooks} codebooks of {clusters:,} clusters"


def _in_brief(model: UnitModel) -> str:
    """Inertia and use of the clusters, in words."""
    about = model.about
    inertia, use = f"inertia {model.inertia_per_frame:.6g} per frame", _use(about, model.codes)
    return f"{inertia}, {use}, after {about['batches']:,} batches"


def _use(about: dict[str, Any], codes: int) -> str:
    in_use = " + ".join(f"{n:,}" for n in about["in_use"])
    return f"{in_use} of {codes:,} clusters in use, perplexity {' + '.join(f'{p:.1f}' for p in about['perplexity'])}"


# Label


def label(args: argparse.Namespace) -> int:
    """Writes the units of all recordings. Raises UserError."""
    model = UnitModel.load(workdir.run_folder(args.model))
    feature_tables.check_installed(args.format)
    run = open_run(args.run, step=args.step) if args.run else None
    features = model.features(run, cut=args.cut).over(row_mesh(jax.local_devices()))
    about_source = dict(source=args.source, split=args.split, min_seconds=args.min_seconds)
    work = make_labelling(
        model,
        features,
        _open_source(args),
        out=args.out,
        form=args.format,
        collapse=args.collapse,
        part_hours=args.part_hours,
        about_source=about_source,
        batch_seconds=args.batch_seconds,
        workers=args.workers,
    )
    with _locked(args.out, "labelling"):
        write_labels(work, features)
    return 0


def write_labels(labelling: Labelling, features: FrameFeatures) -> None:
    """Writes the missing parts, then extract.json. Raises UserError."""
    work, model = labelling.work, labelling.model
    summary = broadcast_from_first(work.begin)
    done, index = work.finished(), work.source.index
    finished = f", {len(done)} of them finished already" if done else ""
    _say(
        f"labelling with {_clusters(model.codes, model.groups)} of {features.name}: {len(index):,} recordings, "
        f"{index.hours:,.2f} h, {len(work.parts)} part(s){finished}"
    )
    work.write_missing(labelling.write, done)
    wait_for_all()
    if not is_first():
        return
    summary |= work.totals(units_size)
    counts = labelling.summary()
    write_metadata(work.folder, summary | counts | {"complete": True})
    print(
        f"done: {summary['utterances']:,} recordings, {summary['frames']:,} "
        f"{'units without repeats' if summary['collapse'] else 'frames'} in {work.folder}"
        f"{work.skipped_hint(summary['skipped'])}\ninertia {sum(counts['inertia']):.6g} per frame (of the fit: "
        f"{model.inertia_per_frame:.6g}), {_use(counts, model.codes)}; {counts['unsure']:,} frames have two "
        "centres about equally near",
        flush=True,
    )


# Measure


def measure(args: argparse.Namespace) -> int:
    """Prints how well the units of a folder go with labels in time. Raises UserError."""
    metadata, rows = read_units(workdir.run_folder(args.units))
    utterances, units = map(list, zip(*rows))
    if args.alignment == "letters":
        if not args.root:
            raise UserError("--alignment letters needs --root, the folder of the self-made corpus")
        labels, where = corpus_letters(_open_source(args).index), f"--root {' '.join(args.root)}"
    else:
        labels, where = read_time_labels(pathlib.Path(args.alignment)), args.alignment
    without = labels.check({u.id: u.seconds for u in utterances}, where)
    if without:
        print(f"  skipped {len(without):,} recordings without labels in time ({some_of(without)})", flush=True)
    results = qualities(metadata, {u.id: x for u, x in zip(utterances, units)}, labels)
    print(_report(results, metadata, len(utterances) - len(without)), flush=True)
    abx = abx_of_units(metadata, utterances=utterances, units=units, labels=labels) if args.abx else None
    if abx:
        within, across = ("none" if error is None else f"{error:.4f}" for error in abx)
        print(f"  ABX error       within speakers {within}, across {across} (by chance 0.5)", flush=True)
    if args.out:
        figures = dict(units=str(args.units), model=metadata["model"], alignment=args.alignment)
        figures |= dict(recordings=len(utterances) - len(without), codebooks=[result._asdict() for result in results])
        figures |= dict(zip(("abx_within", "abx_across"), abx)) if abx else {}
        with output_file(args.out) as file:
            write_whole(file, json.dumps(figures, indent=2) + "\n")
    return 0


def _report(results: Sequence[Quality], metadata: dict[str, Any], recordings: int) -> str:
    seconds = metadata["hop"] / 16_000
    show = lambda form, *names: " + ".join(form.format(*(getattr(r, name) for name in names)) for r in results)
    rows = {
        "PNMI": f"{show('{:.4f}', 'pnmi')} (units in random order: {show('{:.4f}', 'pnmi_by_chance')})",
        "phone purity": show("{:.4f}", "phone_purity"),
        "cluster purity": show("{:.4f}", "cluster_purity"),
        "labels, units": show("{}, {}", "labels", "units"),
        "mean length": f"labels {1000 * seconds * results[0].label_length:.0f} ms, units "
        + " + ".join(f"{1000 * seconds * r.unit_length:.0f} ms" for r in results),
    }
    return table(rows, f"{recordings:,} recordings")


if __name__ == "__main__":
    run_command(main)
