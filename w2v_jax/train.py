"""`python -m w2v_jax.train --config=FILE[:variant] --workdir=DIR`: trains a model of any method.

Builds method, data and state, restores the newest checkpoint of the workdir, and then: read, step, log, evaluate,
save. It knows neither the method nor the data source; both are named in the config. Step n's batch and randomness
are functions of (index, seed, n), so that a killed run goes on exactly where it was.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import os
import pathlib
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from w2v_jax import methods
from w2v_jax.core import config as configs
from w2v_jax.core.cli import UserError, expand_home, out_of_memory, run_command, table
from w2v_jax.core.config import Config
from w2v_jax.core.display import short_repr
from w2v_jax.core.distributed import add_distributed_argument, cannot_go_on, joined_processes
from w2v_jax.core.stores import is_remote
from w2v_jax.core.types import Mean, Method, PyTree, State
from w2v_jax.core.units import SAMPLE_RATE, batch_units
from w2v_jax.data.index import SKIPPED, TooFew, write_skipped
from w2v_jax.data.pipeline import Info, batches
from w2v_jax.ops.random import Stream
from w2v_jax.probing.live import LiveProbe
from w2v_jax.profiling import estimate as estimates
from w2v_jax.training import checkpoint, console, optimizer, sharding, step, trackers, workdir
from w2v_jax.training.dataset import (
    Data,
    check_agreement,
    fingerprints,
    heard,
    micro_batch,
    open_data,
    training_batches,
)
from w2v_jax.training.preemption import Preemption
from w2v_jax.training.run_log import RunLog, rows_before
from w2v_jax.training.throughput import Meter, dtype_advice, page_advice
from w2v_jax.training.warm_start import first_state
from w2v_jax.training.watchdog import ended_early, outcome

PREEMPTED, DEAD = 143, 3  # exit codes
LocalBatch = tuple[dict[str, np.ndarray], Info]


class Training(NamedTuple):
    """What a run is made of. An update goes through its batch in `parts` micro-batches."""

    config: Config
    path: pathlib.Path
    mesh: Any
    data: Data
    parts: int
    method: Method
    make_state: Callable[[], State]
    shapes: PyTree  # of the state
    updates: Callable[[int], Callable[..., tuple[State, dict[str, Any]]]]
    score: Callable[..., dict[str, Mean]]
    probe: LiveProbe | None

    __repr__ = short_repr


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m w2v_jax.train",
        description="Pretrains a speech encoder. Run the same command again to go on after a stop.",
        epilog="Example: python -m w2v_jax.train --config=configs/w2v2_base.py:demo --workdir=runs/demo.",
    )
    configs.add_config_argument(parser)
    folder = "folder, or gs:// or s3:// URL, of the run; made if missing"
    parser.add_argument("--workdir", type=expand_home, metavar="DIR", help=folder)
    parser.add_argument("--print-config", action="store_true", help="print the config as it would be used, and end")
    track = "send the metrics to Weights & Biases as well (pip install 'w2v-jax[wandb]'; docs/tracking.md)"
    parser.add_argument("--track", choices=trackers.NAMES, default="", help=track)
    add_distributed_argument(parser)
    rest, overrides = configs.split_overrides(argv)
    args = parser.parse_args(rest)
    config = configs.load(args.config, overrides)
    if args.print_config:
        print(configs.to_json(config))
        return 0
    if not args.workdir:
        parser.error("--workdir is needed: the folder for checkpoints, metrics and plots")
    trackers.check_tracker(args.track)
    try:
        with joined_processes(args.distributed), workdir.local_workdir(args.workdir) as path:
            return run(config, path, track=args.track, is_shared=not is_remote(args.workdir))
    except jax.errors.JaxRuntimeError as error:
        if reason := out_of_memory(error):
            raise UserError(estimates.exhausted(config, reason)) from None
        if jax.process_count() > 1:
            remedy = "The same command, in all processes, goes on from the newest checkpoint"
            print(cannot_go_on(error, remedy), file=sys.stderr, flush=True)
        raise


def run(config: Config, path: pathlib.Path, *, track: str = "", is_shared: bool = True) -> int:
    """Trains to config.train.steps; returns the exit code. track: a tracker that gets the metrics, too.

    is_shared: all processes see the folder `path`; otherwise each has one of its own, and that of process 0 counts.

    While the device works on step n, the host reads the batch of step n + 1 and reports step n - 1.
    """
    with set_up(config, path) as training:
        config, train = training.config, training.config.train
        manager = checkpoint.open_checkpoints(
            path / "checkpoints",
            keep_latest=train.keep_latest,
            keep_best=train.keep_best,
            best_metric=train.best,
            is_shared=is_shared,
        )
        restored = checkpoint.restore_latest(manager, training.shapes)
        first = restored.step if restored else 0
        rows = rows_before(path, first)
        if first >= train.steps or ended_early(rows, config, training.method.levels()):
            return complete(training, first)
        state = restored.state if restored else first_state(config, training.make_state, training.data.train.form)
        meter = Meter(jax.process_count(), programs_end=[last for last, _ in training.method.early])
        key, stopped = jax.random.key(config.seed), ""
        log = RunLog(
            config,
            path,
            meter,
            levels=training.method.levels(),
            rows=rows,
            first=first,
            epoch=training.data.train_plan.epoch(first),
            heard=functools.partial(heard, training.data),
            track=track,
        )
        stream = local_batches(training, held_out=False, first=first)
        with Preemption() as preemption:
            for n, (batch, info) in enumerate(meter.waiting_for(stream), first + 1):
                is_new_shape = meter.is_new_shape(batch, info)
                placed = sharding.put_batch(batch, training.mesh, training.parts)
                state, metrics = training.updates(n)(state, placed, key)
                log.started(n, batch, info=info, metrics=metrics)
                due = due_after(n, config)
                if preemption.reached(n) and n < train.steps:
                    stopped = "SIGTERM"
                if due or stopped or is_new_shape:
                    log.finish_pending()
                stopped = stopped or log.dead
                with meter.apart():
                    pause(training, log, manager, state=state, n=n, due=due | ({"save"} if stopped else set()))
                if stopped or log.ended:
                    break
        log.close(manager, int(state.step), stopped)
        return {"": 0, "SIGTERM": PREEMPTED}.get(stopped, DEAD)


@contextlib.contextmanager
def set_up(config: Config, path: pathlib.Path) -> Iterator[Training]:
    """Config, data, method, state and their compiled update, with the mesh set and the workdir locked."""
    if config.train.dtype not in ("float32", "bfloat16"):
        raise UserError(f"train.dtype={config.train.dtype!r}: it is 'float32' or 'bfloat16'")
    configs.check_config(config)
    mesh, memory = choose_mesh(config)
    active = jax.process_index() == 0
    with jax.set_mesh(mesh), nn.logical_axis_rules(sharding.RULES), workdir.open_workdir(path, config, active=active):
        cache = config.train.compile_cache or os.environ.get("JAX_COMPILATION_CACHE_DIR") or str(path / "compile_cache")
        jax.config.update("jax_compilation_cache_dir", cache)
        units, shards = batch_units(config.data), sharding.batch_shards(mesh)
        parts = sharding.accumulation(units, config.data.unit_seconds, config.data.device_seconds, shards=shards)
        try:
            data = open_data(config, units, shards, path=path)
        except TooFew as error:
            if active:
                write_skipped(path / SKIPPED, error.skipped)
            where = f"\nall of it is in {path / SKIPPED}" if error.skipped else ""
            raise UserError(f"{error}{where}") from None
        if data.train_labels is not None:
            config = configs.with_outputs(config, len(data.train_labels.alphabet))
        prints = fingerprints(data)
        check_agreement(prints)
        if active:
            workdir.check_data(path, config, prints)
            workdir.record_start(path)
            sources = [source for source in (data.train, data.eval, data.noise, data.rooms) if source is not None]
            write_skipped(path / SKIPPED, [skip for source in sources for skip in source.index.skipped])
        method, key = methods.load(config), jax.random.key(config.seed)
        micro = micro_batch(data, *data.train_plan.shapes[0], parts=parts)
        tx, rate = step.make_optimizer(config, method, key, batch=micro)
        make_state, shapes = step.create_state(method, tx, key, batch=micro, mesh=mesh)
        if active:
            rows = start_up(config, path, mesh, data=data, params=shapes.params, parts=parts) | memory
            print(table(rows, f"w2v_jax: {config.method}"), flush=True)
        updates = step.updates(method, tx, rate, state=shapes)
        scored = functools.partial(step.eval_step, method=method)
        score = jax.jit(scored, out_shardings=sharding.whole_everywhere(mesh))
        probe = LiveProbe(config, data.train.form) if configs.setting(config, "probe.every") else None
        yield Training(
            config,
            path,
            mesh=mesh,
            data=data,
            parts=parts,
            method=method,
            make_state=make_state,
            shapes=shapes,
            updates=updates,
            score=score,
            probe=probe,
        )


def choose_mesh(config: Config) -> tuple[Any, dict[str, str]]:
    """(the mesh, a row about its memory for the start-up table). sharding.fsdp=0: the smallest fsdp that fits."""
    if config.sharding.fsdp:
        return sharding.make_mesh(config.sharding), {}
    target = estimates.here()
    if target is None:
        config = configs.changed(config, {"sharding.fsdp": 1})
        memory = "unknown: sharding.fsdp=0 is taken for 1"
    else:
        config, estimate = estimates.with_fsdp(config, target)
        fits = "the smallest that fits" if estimates.fits(estimate, target) else "the largest, and may not fit"
        memory = f"{estimate.memory / 1e9:,.2f} of {target.memory / 1e9:,.2f} GB on each device by estimate (state "
        memory += f"{estimate.state / 1e9:,.2f}, gradients {estimate.gradients / 1e9:,.2f}, activations "
        memory += f"{estimate.activations / 1e9:,.2f}); fsdp {config.sharding.fsdp} is {fits}"
    return sharding.make_mesh(config.sharding), {"memory": memory}


def due_after(n: int, config: Config) -> set[str]:
    """What follows step n: "eval", "save" and "probe". All three follow the last step, if they are wanted at all."""
    every = {"eval": config.train.eval_every, "save": config.train.checkpoint_every}
    every["probe"] = configs.setting(config, "probe.every")
    return {name for name, steps in every.items() if steps and (n % steps == 0 or n == config.train.steps)}


def pause(training: Training, log: RunLog, manager: Any, *, state: State, n: int, due: set[str]) -> None:
    """Probes, evaluates and saves after step n, as far as each is due. A run that ends here is saved."""
    if training.probe is not None and "probe" in due:
        log.probed(n, training.probe.measure(optimizer.weights(state), state.extra, n))
    scores = log.evaluation(n, evaluation(training, state)) if "eval" in due else {}
    if "save" in due or log.ended:
        log.save(manager, n, state, metrics=scores)


def complete(training: Training, last: int) -> int:
    """Nothing is left to do but, after a run that ended between its last checkpoint and its summary, the summary."""
    summary, active = training.path / "done.json", jax.process_index() == 0
    if active and not summary.exists():
        levels = training.method.levels()
        report = console.Report(training.path, last, start_step=last, levels=levels, tensorboard=False)
        rows = console.read_metrics(training.path / "metrics.jsonl")
        corpora = heard(training.data, last, languages=True)
        report.finish(step=last, **outcome(rows, training.config, levels, corpora=corpora))
    if active:
        reason = json.loads(summary.read_text(encoding="utf-8")).get("ended_early") or ""
        reached = f"step {last} of {training.config.train.steps}" + (f" (ended early: {reason})" if reason else "")
        print(f"this run is complete: {reached}; its results are in {summary}")
    return 0


def local_batches(training: Training, *, held_out: bool, first: int = 0) -> Iterator[LocalBatch]:
    """This process's rows of all held-out batches, or of the training batches of the steps after `first`."""
    config, data = training.config, training.data
    plan = data.eval_plan if held_out else data.train_plan
    units = sharding.local_units(training.mesh, plan.units, 1 if held_out else training.parts)
    if not held_out:
        return training_batches(config, data, start=first, stop=config.train.steps, units=units)
    return batches(
        data.eval,
        plan,
        units=units,
        normalize=config.data.normalize,
        labels=data.eval_labels,
        targets=data.eval_targets,
        loader=config.data.loader,
        workers=config.data.workers,
    )


def evaluation(training: Training, state: State) -> dict[str, np.ndarray]:
    """Metrics of the held-out rows, numbers and arrays.

    Random draws depend on each row's number in the source, not on its batch.
    """
    plan, totals = training.data.eval_plan, None
    key = jax.random.fold_in(jax.random.key(training.config.seed), Stream.EVALUATION.number)
    for batch, info in local_batches(training, held_out=True):
        batch["row"] = np.maximum(plan.step(info.step).rows[batch["row"]], 0).astype(np.int32)
        means = training.score(state, sharding.put_batch(batch, training.mesh, 1), key)
        totals = means if totals is None else jax.tree.map(jnp.add, totals, means)
    return {} if totals is None else {name: np.asarray(mean.value()) for name, mean in totals.items()}


def start_up(config: Config, path: pathlib.Path, mesh: Any, *, data: Data, params: Any, parts: int) -> dict[str, str]:
    """What a person wants to see before a long run, row by row."""
    d, plan, index = config.data, data.train_plan, data.train.index
    devices = jax.devices()
    rows = ", ".join(f"{n} x {length / SAMPLE_RATE:g} s" for n, length in plan.shapes)
    per_device = plan.units * d.unit_seconds / sharding.batch_shards(mesh) / parts
    count = sum(int(np.prod(x.shape)) for x in jax.tree.leaves(params))
    epochs, hours = plan.epoch(config.train.steps), plan.units * d.unit_seconds / 3600
    longest = max(length for _, length in plan.shapes)
    cropped = int((plan.num_samples > longest).sum())
    crops = f"{cropped:,} recordings longer than {longest / SAMPLE_RATE:g} s, at a random place each epoch"
    place = d.name if data.mixture is None else d.corpora
    skipped = f", {len(index.skipped):,} left out (see {SKIPPED})" if index.skipped else ""
    shown = {
        "method": f"{config.method}, {count:,} parameters, {config.train.dtype}",
        "devices": f"{len(devices)} x {devices[0].device_kind}, {jax.process_count()} process(es)",
        "memory pages": page_advice(),
        "arithmetic": dtype_advice(config.train.dtype),
        "mesh": ", ".join(f"{axis} {size}" for axis, size in mesh.shape.items()),
        "data": f"{place}: {len(index):,} recordings, {index.hours:,.2f} h{skipped}",
        "corpora": "\n".join(
            f"{name}: {about['rows']:,} recordings, {100 * about['share']:.4g} % of the audio, "
            f"{about['epochs']:,.3g} epochs"
            for name, about in heard(data, config.train.steps).items()
        ),
        "rare corpora": "" if data.mixture is None else data.mixture.missed(plan.shares),
        "noise": "" if data.noise is None else f"{len(data.noise.index):,} recordings, {data.noise.index.hours:,.2f} h",
        "rooms": "" if data.rooms is None else f"{len(data.rooms.index):,} impulse responses",
        "held out": f"{len(data.eval.index):,} recordings, {data.eval.index.hours:,.2f} h",
        "notes": "\n".join(dict.fromkeys(index.notes + data.eval.index.notes)),
        "batch per update": f"{hours:.4g} h of audio, {plan.units} units of {d.unit_seconds:g} s",
        "rows per update": f"{rows} (padding {plan.padding_share:.1%})",
        "cropped": crops if cropped else "",
        "per device": f"{per_device:g} s of audio at once x {parts} micro-batch(es) per update",
        "updates": f"{config.train.steps:,}, {epochs:,.3g} epochs of the data",
        "learning rate": f"{config.optim.peak:g} at its peak, {config.optim.schedule}; it belongs to this batch",
        "workdir": str(path),
    }
    return {name: text for name, text in shown.items() if text}


if __name__ == "__main__":
    run_command(main)
