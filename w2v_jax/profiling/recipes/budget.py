"""Facts and choices become steps: the commands of a plan, their updates, and the minutes that each will take."""

from __future__ import annotations

import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from w2v_jax.core.cli import UserError, duration
from w2v_jax.profiling.recipes import rules
from w2v_jax.profiling.recipes.rules import Facts, Rule

EVALUATIONS = 20
"""Of a training: that many checkpoints to choose from."""
SCORED = 180.0
"""Seconds of held-out speech in each evaluation of a recogniser on a processor; all of it on accelerators."""
STARTS = {"train": 2.5, "evaluate": 2.5, "report": 3.0, "convert": 2.0, "units": 2.0}
"""How long a command takes to begin and end, in times of what a process takes to start JAX."""
EACH_EVALUATION = 1.5
"""Seconds for curves and checkpoint of an evaluation, beside its forward passes."""
FORWARD = 0.4
"""The share of an update that its forward pass takes."""
MFCC_SECONDS, LAYER_SECONDS = 36.0, 5.0
"""Guesses of how long k-means takes for an hour of audio, by MFCC and by a layer of HuBERT on an accelerator."""
KEPT = 4
"""Checkpoints that a run may hold for a moment, each with three numbers of four bytes for a parameter."""


class PlannedCommand(NamedTuple):
    """A command of the package, the name of the step, the seconds that it should take, and the run it makes, if any."""

    name: str
    command: tuple[str, ...]
    seconds: float


class Recipe(NamedTuple):
    """What was chosen, the steps, and the bytes that they leave on the disk at the most."""

    choices: list[Rule]
    steps: list[PlannedCommand]
    recogniser: str
    disk: float

    @property
    def seconds(self) -> float:
        return sum(step.seconds for step in self.steps)


class TrainingCost(NamedTuple):
    """What the time of a training depends on. shapes: static lengths; programs: compiled for each of them."""

    candidate: str
    shapes: int
    programs: int
    scored: float
    batch: float


def make_plan(facts: Facts, out: str, test: str = "") -> Recipe:
    """The plan for the facts; all that it makes lies in the folder `out`. Raises UserError for too small a budget."""
    method, held = rules.choose(facts, "method"), rules.choose(facts, "held out")
    choices = [held, method, rules.choose(facts, "arithmetic")]
    build = {
        "the given model": _given,
        "the given model, pretrained further": _pretrained_further,
        "wav2vec 2.0 Base": _wav2vec2,
        "HuBERT Base": _hubert,
        "CPC": _cpc,
        "log-mel": _logmel,
    }[method.value]
    recogniser = f"{out}/recogniser"
    last = _last_steps(facts, out, test)
    left = rules.SAFE * facts.budget - sum(step.seconds for step in last)
    trainings, chosen, names = build(facts, out, left)
    parameters = sum(facts.timings[name].parameters for name in names)
    return Recipe([*choices, *chosen], [*trainings, *last], recogniser, disk=2e8 + KEPT * 12 * parameters)


def least_minutes(facts: Facts, test: str = "") -> float:
    """Below so many minutes nothing can be planned."""
    last = sum(step.seconds for step in _last_steps(facts, "out", test))
    name = "given" if facts.init else "logmel"
    fewest = rules.FINETUNE_FEWEST if facts.init else rules.LOGMEL_FEWEST
    training = _recogniser_training(facts, name)
    return (last + _fixed(facts, training) + fewest * _update(facts, training)) / rules.SAFE / 60


def _too_small(facts: Facts) -> UserError:
    return UserError(
        f"--budget: {duration(facts.budget)} are too few here: the least with which a recogniser learns to write is "
        f"{math.ceil(least_minutes(facts))} min, of which a part goes into starting and compiling"
    )


# Time


def _fixed(facts: Facts, training: TrainingCost) -> float:
    """Seconds of a training apart from its updates."""
    timing = facts.timings[training.candidate]
    compiled = timing.compile * training.shapes * training.programs
    forward = FORWARD * timing.update * training.scored / training.batch
    return STARTS["train"] * facts.start + compiled + EVALUATIONS * (EACH_EVALUATION + forward)


def _update(facts: Facts, training: TrainingCost) -> float:
    return rules.READING * facts.timings[training.candidate].update


def _fitting(facts: Facts, training: TrainingCost, left: float, *, passes: int = 1) -> int:
    """How many updates of `passes` passes fit into so many seconds."""
    return int((left - _fixed(facts, training)) / (_update(facts, training) * passes))


def _recogniser_training(facts: Facts, candidate: str) -> TrainingCost:
    scored = 60 * facts.data.dev_minutes
    scored = scored if facts.accelerated else min(SCORED, scored)
    shapes = len(rules.buckets_of(facts.data))
    return TrainingCost(
        candidate, shapes, 3, scored=scored, batch=rules.recogniser_batch(facts.data)["data.device_seconds"]
    )


def _last_steps(facts: Facts, out: str, test: str) -> list[PlannedCommand]:
    """Scores and report."""
    name = next(n for n in ("given", "cpc_ctc", "logmel") if n in facts.timings)
    timing, batch = facts.timings[name], rules.recogniser_batch(facts.data)["data.device_seconds"]
    shapes = len(rules.buckets_of(facts.data))

    def evaluate(part: str, source: Sequence[str], minutes: float) -> PlannedCommand:
        seconds = STARTS["evaluate"] * facts.start + FORWARD * (
            timing.compile * shapes + timing.update * 60 * minutes / batch
        )
        command = ("w2v_jax.evaluate", "--run", f"{out}/recogniser", *source, "--out", f"{out}/scores/{part}")
        return PlannedCommand(f"score {part}", command, seconds)

    steps = [evaluate("dev", ("--source", "jsonl", "--root", f"{out}/lists/dev.jsonl"), facts.data.dev_minutes)]
    if test:
        steps.append(evaluate("test", ("--root", test), facts.data.test_minutes))
    report = ("w2v_jax.report", f"{out}/recogniser", "--out", f"{out}/report.html")
    return [*steps, PlannedCommand("report", report, STARTS["report"] * facts.start + 2 * timing.compile)]


# Commands


def _flags(changes: Mapping[str, Any]) -> list[str]:
    """`--config.key=value` of each key, as short as the config reads it."""
    return [f"--config.{key}={_text(value)}" for key, value in changes.items()]


def _text(value: Any) -> str:
    if isinstance(value, tuple) and len(value) == 1 and not isinstance(value[0], tuple):
        value = value[0]
    return f"{value:.6g}" if isinstance(value, float) else str(value).replace(" ", "")


def _train(config: str, workdir: str, changes: Mapping[str, Any]) -> tuple[str, ...]:
    return ("w2v_jax.train", f"--config=configs/{config}", f"--workdir={workdir}", *_flags(changes))


def _common(facts: Facts, updates: int, *, evaluations: int = EVALUATIONS) -> dict[str, Any]:
    """Keys of every training: its updates, and when to look and save."""
    every = max(1, updates // evaluations)
    changes: dict[str, Any] = {"train.steps": updates, "train.log_every": max(1, min(100, every // 5))}
    changes |= {"train.eval_every": every, "train.checkpoint_every": every}
    changes |= {"data.loader": "threads"} if facts.machine.loader == "threads" else {}
    return changes


def _labelled(facts: Facts, out: str) -> dict[str, Any]:
    """The keys of labelled recordings, parted by the recipe."""
    scored = 60 * facts.data.dev_minutes
    scored = scored if facts.accelerated else min(SCORED, scored)
    changes: dict[str, Any] = {"data.name": "jsonl", "data.root": f"{out}/lists/train.jsonl"}
    changes |= {"data.eval_root": f"{out}/lists/dev.jsonl", "data.eval_hours": scored / 3600 + 0.001}
    return changes


def _unlabelled(out: str) -> dict[str, Any]:
    return {
        "data.name": "jsonl",
        "data.root": f"{out}/lists/audio.jsonl",
        "data.eval_share": 0.05,
        "data.eval_hours": 0.03,
    }


Built = tuple[list[PlannedCommand], list[Rule], list[str]]


def _logmel(facts: Facts, out: str, left: float) -> Built:
    training, models = _recogniser_training(facts, "logmel"), rules.choose(facts, "recogniser")
    passes = 2 if "two" in models.value else 1
    fits = _fitting(facts, training, left, passes=passes)
    if fits < rules.LOGMEL_FEWEST:
        raise _too_small(facts)
    updates = min(fits, rules.logmel_updates(facts.data.train_minutes))
    changes = _labelled(facts, out) | {"data.train_hours": 0.0} | rules.recogniser_batch(facts.data)
    changes |= rules.ONE_MODEL if passes == 1 else {}
    changes |= _recogniser_schedule(facts, updates)
    seconds = _fixed(facts, training) + passes * updates * _update(facts, training)
    command = _train("acoustic_logmel.py:ten_minutes", f"{out}/recogniser", changes)
    return [PlannedCommand("recogniser", command, seconds)], [models], ["logmel"]


def _recogniser_schedule(facts: Facts, updates: int) -> dict[str, Any]:
    """The keys of a small recogniser that follow its updates: as `:ten_minutes` has them for 4,500."""
    changes = _common(facts, updates) | {"acoustic.clean_steps": min(300, updates // 5)}
    changes |= {"optim.stages": (0.03, 0.47, 0.5), "train.patience": max(500, updates * 5 // 9)}
    return changes


def _cpc(facts: Facts, out: str, left: float) -> Built:
    training = _recogniser_training(facts, "cpc_ctc")
    pretraining = TrainingCost("cpc", 1, 2, scored=108.0, batch=15.36)
    fixed = _fixed(facts, training) + _fixed(facts, pretraining)
    cost = rules.CPC_UPDATES * _update(facts, pretraining) + rules.CPC_RECOGNISER * _update(facts, training)
    rounds = min((left - fixed) / cost, rules.CPC_MOST / rules.CPC_UPDATES)
    first, second = int(rounds * rules.CPC_UPDATES), int(rounds * rules.CPC_RECOGNISER)
    if second < rules.LOGMEL_FEWEST:
        raise _too_small(facts)
    crops = _unlabelled(out) | {"data.bucket_seconds": (rules.crop_of(facts.data),), "data.min_seconds": 0.5}
    crops |= _common(facts, first) | {"optim.warmup": first // 10}
    labelled = {"init.run": f"{out}/pretraining"} | _labelled(facts, out) | rules.recogniser_batch(facts.data)
    labelled |= rules.REGULARISED | rules.FINE_TUNED | {"encoder.frozen_steps": second // 3}
    labelled |= _recogniser_schedule(facts, second) | {"data.hours": 0.0}
    steps = [
        PlannedCommand(
            "pretraining",
            _train("cpc.py:demo", f"{out}/pretraining", crops | {"data.hours": 0.0}),
            _fixed(facts, pretraining) + first * _update(facts, pretraining),
        ),
        PlannedCommand(
            "recogniser",
            _train("acoustic_frozen.py:cpc_demo", f"{out}/recogniser", labelled),
            _fixed(facts, training) + second * _update(facts, training),
        ),
    ]
    return steps, [], ["cpc", "cpc_ctc"]


def _finetuned(
    facts: Facts, out: str, left: float, *, candidate: str, config: str, run: str, changes: Mapping[str, Any]
) -> PlannedCommand:
    """The published recipe for so many labels, with a smaller batch where few of its updates would fit."""
    amount = rules.amount_of(facts.labelled_hours)
    training = _recogniser_training(facts, candidate)._replace(batch=rules.UPDATE_SECONDS)
    published = {"10m": (600, 13_000), "1h": (1600, 13_000), "10h": (1600, 20_000), "100h": (1600, 80_000)}
    seconds, most = published.get(amount, (1600, 320_000))
    second = _update(facts, training) / rules.UPDATE_SECONDS
    room = left - _fixed(facts, training)
    unit = max(rules.UPDATE_SECONDS, rules.buckets_of(facts.data)[-1])
    units = max(1, int(min(seconds, room / (second * 2000)) // unit))
    updates = min(most, int(room / (second * units * unit)))
    if updates < rules.FINETUNE_FEWEST:
        raise _too_small(facts)
    frozen = 0 if facts.labelled_hours >= 40 else updates // 3
    given = {"init.run": run} | dict(changes) | _labelled(facts, out)
    given |= {"data.bucket_seconds": rules.buckets_of(facts.data), "data.batch_hours": units * unit / 3600}
    given |= {
        "data.unit_seconds": unit,
        "data.device_seconds": max(unit, 160 // unit * unit if facts.accelerated else unit),
    }
    given |= {"encoder.frozen_steps": frozen, "train.patience": max(500, updates // 2)} | _common(facts, updates)
    if facts.init is not None and facts.init.small:
        given |= _recogniser_schedule(facts, updates)
    given |= {"train.dtype": "float32"} if facts.machine.slow_bfloat16 else {}
    took = _fixed(facts, training) + updates * units * unit * second
    return PlannedCommand("recogniser", _train(config, f"{out}/recogniser", given), took)


def _given(facts: Facts, out: str, left: float) -> Built:
    init = facts.init
    assert init is not None
    steps, run = _imported(init, facts, out)
    left -= sum(step.seconds for step in steps)
    steps.append(_finetuned(facts, out, left, candidate="given", config=init.config, run=run, changes=init.changes))
    return steps, [], ["given"]


def _imported(init: rules.Init, facts: Facts, out: str) -> tuple[list[PlannedCommand], str]:
    """The conversion of the given model where it needs one, and the run to start from."""
    if init.is_run:
        return [], init.path
    run = f"{out}/imported"
    convert = ("w2v_jax.convert", "--from", init.path, "--to", run)
    return [PlannedCommand("convert", convert, STARTS["convert"] * facts.start + 10)], run


def _pretrained_further(facts: Facts, out: str, left: float) -> Built:
    init = facts.init
    assert init is not None and init.pretraining is not None
    steps, run = _imported(init, facts, out)
    left -= sum(step.seconds for step in steps)
    config, changes = init.pretraining
    share = rules.CONTINUED_SHARE * left
    first = _pretraining(
        facts,
        out,
        share,
        candidate="continued",
        config=config,
        changes={"init.run": run} | changes,
        most=rules.CONTINUED_MOST,
    )
    run = f"{out}/pretraining"
    last = _finetuned(
        facts, out, left - first.seconds, candidate="given", config=init.config, run=run, changes=init.changes
    )
    return [*steps, first, last], [], ["given", "continued"]


def _pretraining(
    facts: Facts, out: str, share: float, *, candidate: str, config: str, changes: Mapping[str, Any], most: int
) -> PlannedCommand:
    """A pretraining of a size of the papers on all audio, of as many updates as fit into `share` seconds."""
    second = rules.READING * facts.timings[candidate].update
    updates = min(most, int(share / second))
    given = dict(changes) | {"data.name": "jsonl", "data.root": f"{out}/lists/audio.jsonl"}
    given |= {"optim.warmup": updates * 8 // 100, "train.steps": updates}
    given |= {"data.loader": "threads"} if facts.machine.loader == "threads" else {}
    return PlannedCommand("pretraining", _train(config, f"{out}/pretraining", given), updates * second)


def _wav2vec2(facts: Facts, out: str, left: float) -> Built:
    first = _pretraining(
        facts, out, 0.75 * left, candidate="base", config="w2v2_base.py", changes={}, most=rules.BASE_MOST
    )
    amount = rules.amount_of(facts.labelled_hours)
    second = _finetuned(
        facts,
        out,
        left - first.seconds,
        candidate="finetune",
        config=f"finetune.py:{amount}",
        run=f"{out}/pretraining",
        changes={},
    )
    return [first, second], [], ["base", "finetune"]


def _hubert(facts: Facts, out: str, left: float) -> Built:
    """Two iterations: units of MFCC for two fifths of the updates, then of layer 6 of the first model."""
    cost = rules.READING * facts.timings["hubert"].update
    updates = min(rules.BASE_MOST + 250_000, int(0.75 * left / cost))
    first = _iteration(facts, out, 1, updates=int(0.4 * updates))
    second = _iteration(facts, out, 2, updates=int(0.6 * updates))
    left -= sum(step.seconds for step in (*first, *second))
    config = f"finetune.py:{rules.amount_of(facts.labelled_hours)}"
    last = _finetuned(facts, out, left, candidate="finetune", config=config, run=f"{out}/hubert2", changes={})
    return [*first, *second, last], [], ["hubert", "finetune"]


def _iteration(facts: Facts, out: str, number: int, *, updates: int) -> list[PlannedCommand]:
    """The commands of an iteration of HuBERT: k-means on at most 100 h of audio, units of all of it, training."""
    audio, model, units, run = (
        f"{out}/lists/audio.jsonl",
        f"{out}/units{number}",
        f"{out}/targets{number}",
        f"{out}/hubert{number}",
    )
    features, layer, hop, clusters, per_hour = ("--features", "mfcc"), (), 160, 100, MFCC_SECONDS
    given: tuple[str, ...] = ()
    if number > 1:
        given, layer = ("--run", f"{out}/hubert{number - 1}"), ("--layer", "6")
        features, hop, clusters, per_hour = given, 320, 500, LAYER_SECONDS
    listed, some = ("--source", "jsonl", "--root", audio), f"{min(1.0, 100 / facts.data.hours):.3g}"
    fit = (
        "w2v_jax.units",
        "fit",
        *features,
        *layer,
        *listed,
        "--clusters",
        str(clusters),
        "--share",
        some,
        "--out",
        model,
    )
    label = ("w2v_jax.units", "label", "--model", model, *given, *listed, "--out", units)
    changes: dict[str, Any] = {"data.name": "jsonl", "data.root": audio, "data.targets": units, "data.targets_hop": hop}
    changes |= {"loss.classes": clusters, "train.steps": updates, "optim.warmup": updates * 8 // 100}
    changes |= {"data.loader": "threads"} if facts.machine.loader == "threads" else {}
    begin = STARTS["units"] * facts.start
    return [
        PlannedCommand(f"units {number}", fit, begin + per_hour * min(100.0, facts.data.hours)),
        PlannedCommand(f"label {number}", label, begin + per_hour * facts.data.hours),
        PlannedCommand(
            f"hubert {number}",
            _train("hubert_base.py", run, changes),
            updates * rules.READING * facts.timings["hubert"].update,
        ),
    ]


def check_disk(plan: Recipe, free: float, out: pathlib.Path) -> None:
    """Raises UserError where the disk has no room for the plan."""
    if plan.disk > free:
        raise UserError(
            f"--out {out}: the runs of this plan take up to {plan.disk / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free "
            "there: make room, or name another --out"
        )
