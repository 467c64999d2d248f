"""`python -m w2v_jax.train --config=FILE[:variant] --workdir=DIR`: the loop of every method.

Builds method, data and state, restores the newest checkpoint of the workdir, and then: read, step, log, evaluate,
save. It knows neither the method nor the data source; both are named in the config. Step n's batch and randomness
are functions of (index, seed, n), so that a killed run goes on exactly where it was.
"""

from __future__ import annotations

import argparse
import functools
import json
import pathlib
import sys
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from w2v_jax import checkpoint, plan, report, sharding, step, workdir
from w2v_jax import config as configs
from w2v_jax.config import SAMPLE_RATE, UserError
from w2v_jax.data import source_module
from w2v_jax.data.index import WAVE, Form, Source, some_hours, split_heldout, subset
from w2v_jax.data.labels import FILE as ALPHABET
from w2v_jax.data.labels import Alphabet, Labels, labelled
from w2v_jax.data.labels import build as build_alphabet
from w2v_jax.data.labels import reuse as reuse_alphabet
from w2v_jax.data.labels import table as alphabet_table
from w2v_jax.data.pipeline import Info, batches
from w2v_jax.data.plan import EvalPlan, TrainPlan, eval_plan, train_plan
from w2v_jax.foreign import by_path, nest
from w2v_jax.meter import page_advice
from w2v_jax.probing import LiveProbe
from w2v_jax.runlog import RunLog
from w2v_jax.runs import method_module
from w2v_jax.warmstart import warm_params

EVAL_KEY = 2**31 - 1  # folded into the seed for the draws of evaluation, which are the same every time
PREEMPTED, DEAD = 143, 3  # exit codes
LOST = 30  # seconds without a sign of life after which a process of a run is lost, and ends the others


class Data(NamedTuple):
    """Sources and plans of training and evaluation; labels where the config's data section asks for them."""

    train: Source
    train_plan: TrainPlan
    eval: Source
    eval_plan: EvalPlan
    train_labels: Labels | None = None
    eval_labels: Labels | None = None


class Job(NamedTuple):
    """What a run is made of: `make` gives the first state, `shapes` describes it, `parts` micro-batches an update."""

    config: Any
    path: pathlib.Path
    mesh: Any
    data: Data
    parts: int
    levels: dict[str, float]
    make: Any
    shapes: Any
    probe: LiveProbe | None


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m w2v_jax.train",
        description="Pretrains a speech encoder. Run the same command again to go on after a stop.",
        epilog="Example: python -m w2v_jax.train --config=configs/w2v2_base.py:demo --workdir=runs/demo.",
    )
    configs.add_config_argument(parser)
    parser.add_argument("--workdir", help="folder for checkpoints, metrics and plots; made if missing")
    parser.add_argument("--print-config", action="store_true", help="print the config as it would be used, and end")
    parser.add_argument(
        "--distributed",
        nargs="?",
        const="auto",
        metavar="HOST:PORT,COUNT,NUMBER",
        help="join the other processes of the run: alone on a TPU pod, SLURM or MPI, which say who they are; "
        "elsewhere the address of process 0, how many there are, and which one this is",
    )
    rest, overrides = configs.split_overrides(argv)
    args = parser.parse_args(rest)
    config = configs.load(args.config, overrides)
    if args.print_config:
        print(configs.to_json(config))
        return 0
    if not args.workdir:
        parser.error("--workdir is needed: the folder for checkpoints, metrics and plots")
    if "://" in args.workdir:
        raise UserError(
            f"--workdir={args.workdir} is not a folder: mount the bucket and name the folder (launch/README.md)"
        )
    if args.distributed:
        join(args.distributed)
    try:
        return run(config, pathlib.Path(args.workdir).absolute())
    except jax.errors.JaxRuntimeError as error:
        if jax.process_count() > 1:
            reason = str(error).partition("\n")[0]
            print(
                f"process {jax.process_index()} of {jax.process_count()} cannot go on: {reason}. Where another process "
                f"was lost, its number (task) is named within {LOST} s; the leader is process 0. The same command, in "
                "all processes, goes on from the newest checkpoint",
                file=sys.stderr,
                flush=True,
            )
        raise


def run(config: Any, path: pathlib.Path) -> int:
    """Trains to config.train.steps; returns the exit code."""
    if config.train.dtype not in ("float32", "bfloat16"):
        raise UserError(f"train.dtype={config.train.dtype!r}: it is 'float32' or 'bfloat16'")
    configs.check_values(config)
    module, (mesh, memory) = method_module(config.method), choose_mesh(config)
    active = jax.process_index() == 0
    with jax.set_mesh(mesh), nn.logical_axis_rules(sharding.RULES), workdir.open_workdir(path, config, active=active):
        jax.config.update("jax_compilation_cache_dir", config.train.compile_cache or str(path / "compile_cache"))
        units = configs.batch_units(config.data)
        shards = sharding.batch_shards(mesh)
        parts = sharding.accumulation(units, config.data.unit_seconds, config.data.device_seconds, shards)
        data = open_data(config, units, shards, path)
        if data.train_labels is not None:
            config = configs.with_outputs(config, len(data.train_labels.alphabet))
        if active:
            workdir.check_data(path, config, fingerprints(data))
            lines = [
                json.dumps(skip._asdict()) + "\n"
                for skip in dict.fromkeys(data.train.index.skipped + data.eval.index.skipped)
            ]
            report.write_whole(path / "skipped.jsonl", "".join(lines))
        method, key = module.make(config), jax.random.key(config.seed)
        micro = micro_batch(data, *data.train_plan.shapes[0], parts)
        tx, rate = make_optimizer(config, data.train.form, method, key, micro)
        make, shapes = step.create_state(method, tx, key, micro, mesh)
        if active:
            table = start_up(config, path, mesh, data, shapes.params, parts) | memory
            print(report.table(table, f"w2v_jax: {config.method}"), flush=True)
        update = step.jitted(method, tx, rate, shapes)
        probe = LiveProbe(config, data.train.form) if configs.flatten(config).get("probe.every", 0) else None
        job = Job(config, path, mesh, data, parts, module.levels(config), make, shapes, probe)
        return loop(job, update, jax.jit(functools.partial(step.eval_step, method)))


def choose_mesh(config: Any) -> tuple[Any, dict[str, str]]:
    """(the mesh, what to say about its memory): with sharding.fsdp=0 the smallest fsdp whose estimate fits."""
    if config.sharding.fsdp:
        return sharding.make_mesh(config.sharding), {}
    target = plan.here()
    if target is None:
        config, said = config.copy_and_resolve_references(), "unknown: sharding.fsdp=0 is taken for 1"
        with config.unlocked():
            config.sharding.fsdp = 1
    else:
        config, estimate = plan.with_fsdp(config, target)
        fits = "the smallest that fits" if plan.fits(estimate, target) else "the largest, and may not fit"
        said = f"{estimate.memory / 1e9:,.2f} of {target.memory / 1e9:,.2f} GB on each device by estimate (state "
        said += f"{estimate.state / 1e9:,.2f}, gradients {estimate.gradients / 1e9:,.2f}, activations "
        said += f"{estimate.activations / 1e9:,.2f}); fsdp {config.sharding.fsdp} is {fits}"
    return sharding.make_mesh(config.sharding), {"memory": said}


def loop(job: Job, update: Any, score: Any) -> int:
    """Restore, then steps: while the device works on step n, the host reads n + 1 and reports n - 1."""
    config, train = job.config, job.config.train
    key = jax.random.key(config.seed)
    manager = checkpoint.open_checkpoints(
        job.path / "checkpoints", keep_latest=train.keep_latest, keep_best=train.keep_best
    )
    restored = checkpoint.restore_latest(manager, job.shapes)
    state, first = (restored.state, restored.step) if restored else (first_state(job), 0)
    if first >= train.steps:
        return complete(job, first)
    log = RunLog(config, job.path, job.levels, first, first / job.data.train_plan.steps_per_epoch)
    stream = training_batches(job, first)
    scores, stopped = {}, ""
    with checkpoint.Preemption() as preemption:
        for n in range(first + 1, train.steps + 1):
            with log.meter.waiting():
                batch, info = next(stream)
            new_shape = log.meter.is_new_shape(batch, info)
            state, metrics = update(state, sharding.put_batch(batch, job.mesh, job.parts), key)
            log.finish_pending()
            log.pending = (n, batch, info, metrics)
            due_eval = n % train.eval_every == 0 or n == train.steps
            due_save = n % train.checkpoint_every == 0 or n == train.steps
            due_probe = job.probe is not None and (n % config.probe.every == 0 or n == train.steps)
            if preemption.reached(n) and n < train.steps:
                stopped = "SIGTERM"
            if due_eval or due_save or due_probe or stopped or new_shape:
                log.finish_pending()
            stopped = stopped or log.dead
            with log.meter.apart():
                if job.probe is not None and due_probe:
                    log.probed(n, job.probe.measure(state.params, state.extra, n))
                if due_eval:
                    scores = log.evaluation(n, evaluation(job, score, state))
                if due_save or stopped:
                    log.save(manager, n, state, scores if due_eval else {})
            if stopped:
                break
    log.close(manager, int(state.step), stopped)
    return {"": 0, "SIGTERM": PREEMPTED}.get(stopped, DEAD)


def complete(job: Job, step: int) -> int:
    """Nothing is left to do but, after a run that ended between its last checkpoint and its summary, the summary."""
    summary, active = job.path / "done.json", jax.process_index() == 0
    if active and not summary.exists():
        last = report.Report(job.path, step, start_step=step, levels=job.levels, tensorboard=False)
        last.finish(step=step)
    if active:
        print(f"this run is complete: step {step} of {job.config.train.steps}; its results are in {summary}")
    return 0


def first_state(job: Job) -> Any:
    """The state before the first update; with parameters of another run where the config names one."""
    state = job.make()
    if not configs.flatten(job.config).get("init.run"):
        return state
    found = by_path(warm_params(job.config, state.params, job.data.train.form))
    place = lambda old, new: old if new is None else jax.device_put(np.asarray(new, old.dtype), old.sharding)
    merged = {name: place(old, found.get(name)) for name, old in by_path(state.params).items()}
    if jax.process_index() == 0:
        print(
            f"init: {len(found)} of {len(merged)} arrays of parameters are those of {job.config.init.run}", flush=True
        )
    return state.replace(params=nest(merged))


def join(others: str) -> None:
    """Joins the processes of a run; `others` is "auto" or HOST:PORT,COUNT,NUMBER."""
    if others == "auto":
        jax.distributed.initialize(heartbeat_timeout_seconds=LOST)
        return
    address, *numbers = others.split(",")
    if len(numbers) != 2 or not all(number.isdigit() for number in numbers):
        raise UserError(f"--distributed={others}: needs HOST:PORT,COUNT,NUMBER, e.g. 10.0.0.1:1234,2,0")
    jax.distributed.initialize(
        address,
        num_processes=int(numbers[0]),
        process_id=int(numbers[1]),
        heartbeat_timeout_seconds=LOST,
    )


def open_data(config: Any, units: int, shards: int, path: pathlib.Path) -> Data:
    """Lists the sources, sets rows aside for evaluation, reads their labels and makes the plans."""
    data = config.data
    module = source_module(data.name)
    train = module.make(data, data.root)
    if data.eval_root:
        held_out = module.make(data, data.eval_root)
    else:
        kept, set_aside = split_heldout(train.index, data.eval_share)
        train, held_out = subset(train, kept), subset(train, set_aside)
    if data.train_hours > 0:
        train = subset(train, some_hours(train.index, data.train_hours))
    if held_out.form != train.form:
        raise UserError(
            f"data.eval_root and data.root were not made alike ({held_out.form}, {train.form}); code both with the "
            "same model and vocabulary"
        )
    hop = configs.flatten(config).get("encoder.hop", train.form.hop)
    if hop != train.form.hop:
        raise UserError(
            f"encoder.hop={hop}, and the {train.form.name} of data.root are {train.form.hop} samples apart: "
            f"--config.encoder.hop={train.form.hop}"
        )
    buckets = [int(seconds * SAMPLE_RATE + 0.5) for seconds in data.bucket_seconds]
    law: dict[str, Any] = dict(bucket_samples=buckets, unit_seconds=data.unit_seconds)
    labels: tuple[Labels, Labels] | tuple[()] = ()
    if "labels" in data:
        alphabet = open_alphabet(data, train, path)
        read = functools.partial(
            labelled,
            alphabet=alphabet,
            bucket_samples=buckets,
            per_second=data.tokens_per_second,
            frames=functools.partial(method_module(config.method).output_frames, config),
        )
        key = "data.eval_root" if data.eval_root else f"data.eval_share={data.eval_share:g}"
        train, train_labels = read(train, where="data.root")
        held_out, eval_labels = read(held_out, where=key)
        labels = train_labels, eval_labels
    plan = train_plan(train.index.num_samples, seed=config.seed, units=units, **law)
    scored = eval_plan(held_out.index.num_samples, units=shards, max_hours=data.eval_hours, **law)
    return Data(train, plan, held_out, scored, *labels)


def open_alphabet(data: Any, train: Source, path: pathlib.Path) -> Alphabet:
    """The alphabet of the run: kept in the workdir, else data.alphabet, else made from the training transcripts.

    Raises UserError when data.alphabet contradicts the config.
    """
    file = path / ALPHABET
    if file.exists():
        return Alphabet.load(file)
    texts, law = train.index.transcripts.tolist(), (data.labels, data.casing, data.remove)
    if data.alphabet:
        alphabet, counts, dropped = reuse_alphabet(data.alphabet, texts, *law)
    else:
        alphabet, counts, dropped = build_alphabet(texts, *law, data.min_count)
    if jax.process_index() == 0:
        alphabet.save(file, counts, dropped)
        print(alphabet_table(alphabet, counts, dropped), flush=True)
    return alphabet


def micro_batch(data: Data, rows: int, length: int, parts: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of one of the `parts` micro-batches of a step of `rows` rows of `length` samples."""
    count, form, labels = rows // parts, data.train.form, data.train_labels
    per_row = dict(num_samples=jnp.int32, weight=jnp.float32, row=jnp.int32)
    shapes = {name: jax.ShapeDtypeStruct((count,), kind) for name, kind in per_row.items()}
    if labels is not None:
        shapes["tokens"] = jax.ShapeDtypeStruct((count, labels.width(length)), jnp.int32)
        shapes["num_tokens"] = jax.ShapeDtypeStruct((count,), jnp.int32)
    return {form.name: jax.ShapeDtypeStruct((count, *form.shape(length)), form.dtype), **shapes}


def make_optimizer(config: Any, form: Form, method: Any, key: jax.Array, micro: Any) -> tuple[Any, Any]:
    """`step.make_optimizer`. Raises UserError when the method reads something else than the data are made of."""
    try:
        return step.make_optimizer(config, method, key, micro)
    except KeyError as error:
        if error.args[0] not in ("wave", "codes", "features"):
            raise
        raise UserError(
            f"method={config.method} reads {error.args[0]}, and data.name={config.data.name} gives {form.name}: choose "
            "another --config or another data.name"
        ) from None


def training_batches(job: Job, first: int) -> Iterator[tuple[dict[str, np.ndarray], Info]]:
    """This process' rows of the steps after `first`."""
    data = job.config.data
    units = sharding.local_units(job.mesh, job.data.train_plan.units, job.parts)
    return batches(
        job.data.train,
        job.data.train_plan,
        start=first,
        stop=job.config.train.steps,
        units=units,
        normalize=data.normalize,
        labels=job.data.train_labels,
        loader=data.loader,
        workers=data.workers,
    )


def evaluation(job: Job, score: Any, state: Any) -> dict[str, float]:
    """Metrics of the held-out rows. Draws depend on each row's number in the source, not on its batch."""
    data, plan = job.config.data, job.data.eval_plan
    key = jax.random.fold_in(jax.random.key(job.config.seed), EVAL_KEY)
    units = sharding.local_units(job.mesh, plan.units, 1)
    totals: Any = None
    for batch, info in batches(
        job.data.eval,
        plan,
        units=units,
        normalize=data.normalize,
        labels=job.data.eval_labels,
        loader=data.loader,
        workers=data.workers,
    ):
        batch["row"] = np.maximum(plan.step(info.step).rows[batch["row"]], 0).astype(np.int32)
        means = score(state, sharding.put_batch(batch, job.mesh, 1), key)
        totals = means if totals is None else jax.tree.map(jnp.add, totals, means)
    return {} if totals is None else {name: float(mean.value()) for name, mean in totals.items()}


def fingerprints(data: Data) -> dict[str, Any]:
    """What `workdir.check_data` compares: a hash of ids and lengths, and what a person recognises."""
    form, labels = data.train.form, data.train_labels
    about = {} if form == WAVE else {"form": form._asdict()}
    about |= {} if labels is None else {"labels": labels.digest(), "tokens": len(labels.alphabet)}
    return about | {
        f"{part}_{name}": value
        for part, index in (("train", data.train.index), ("eval", data.eval.index))
        for name, value in (
            ("rows", len(index)),
            ("hours", round(index.hours, 4)),
            ("fingerprint", index.fingerprint()),
        )
    }


def start_up(config: Any, path: pathlib.Path, mesh: Any, data: Data, params: Any, parts: int) -> dict[str, str]:
    """What a person wants to see before a long run, row by row."""
    d, plan, index = config.data, data.train_plan, data.train.index
    devices = jax.devices()
    rows = ", ".join(f"{n} x {length / SAMPLE_RATE:g} s" for n, length in plan.shapes)
    per_device = plan.units * d.unit_seconds / sharding.batch_shards(mesh) / parts
    count = sum(int(np.prod(x.shape)) for x in jax.tree.leaves(params))
    epochs, hours = config.train.steps / plan.steps_per_epoch, plan.units * d.unit_seconds / 3600
    longest = max(length for _, length in plan.shapes)
    cropped = int((plan.num_samples > longest).sum())
    crops = f"{cropped:,} recordings longer than {longest / SAMPLE_RATE:g} s, at a random place each epoch"
    skipped = f", {len(index.skipped):,} left out (see skipped.jsonl)" if index.skipped else ""
    table = {
        "method": f"{config.method}, {count:,} parameters, {config.train.dtype}",
        "devices": f"{len(devices)} x {devices[0].device_kind}, {jax.process_count()} process(es)",
        "memory pages": page_advice(),
        "mesh": ", ".join(f"{axis} {size}" for axis, size in mesh.shape.items()),
        "data": f"{d.name}: {len(index):,} recordings, {index.hours:,.2f} h{skipped}",
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
    return {name: text for name, text in table.items() if text}


if __name__ == "__main__":
    configs.run_command(main)
