"""The recordings of a run: listed, set aside for evaluation, labelled, and dealt into batches."""

from __future__ import annotations

import functools
import json
import math
import pathlib
from collections.abc import Generator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from w2v_jax import methods
from w2v_jax.core.cli import UserError
from w2v_jax.core.config import AUGMENTATION, Config, setting
from w2v_jax.core.display import short_repr
from w2v_jax.core.distributed import gather_from_all
from w2v_jax.core.units import SAMPLE_RATE
from w2v_jax.data import open_source, source_module
from w2v_jax.data.batch_plan import EvalPlan, Groups, TrainPlan, eval_plan, train_plan
from w2v_jax.data.corpora import Group, Mixture, join_sources, mix_of, open_group, read_corpora
from w2v_jax.data.curriculum import Curriculum, curriculum
from w2v_jax.data.draws import Augmentation, Noise
from w2v_jax.data.index import WAVE, Form, Source, TooFew, check_speakers, some_hours, split_heldout, subset
from w2v_jax.data.pipeline import Info, batches
from w2v_jax.data.targets import Targets, open_targets, with_targets
from w2v_jax.data.transcripts import (
    ALPHABET_FILE,
    Alphabet,
    Labels,
    alphabet_summary,
    build_alphabet,
    reuse_alphabet,
    unlearnable,
    with_labels,
)
from w2v_jax.training.workdir import has_checkpoint


class Data(NamedTuple):
    """Sources and plans of training and evaluation.

    labels, targets, noise, rooms and mixture where the config's data section asks for them.
    """

    train: Source
    train_plan: TrainPlan | Curriculum
    eval: Source
    eval_plan: EvalPlan
    train_labels: Labels | None = None
    eval_labels: Labels | None = None
    train_targets: Targets | None = None
    eval_targets: Targets | None = None
    noise: Source | None = None
    rooms: Source | None = None
    mixture: Mixture | None = None

    __repr__ = short_repr


def open_data(config: Config, units: int, shards: int, *, path: pathlib.Path) -> Data:
    """Lists the sources, sets rows aside for evaluation, finds their labels or targets and makes the plans.

    Raises TooFew where the recordings that are left do not suffice, and UserError.
    """
    data = config.data
    groups = tuple(read_corpora(data.corpora, data.to_dict())) if data.corpora else ()
    train, held_out = open_sources(config, groups)
    if data.train_hours > 0:
        train = subset(train, some_hours(train.index, data.train_hours))
    if held_out.form != train.form:
        raise UserError(
            f"data.eval_root and data.root were not made alike ({held_out.form}, {train.form}); code both with the "
            "same model and vocabulary"
        )
    method = methods.load(config)
    if method.encoder.reads != train.form.name:
        raise UserError(
            f"method={config.method} reads {method.encoder.reads}, and data.name={data.name} gives {train.form.name}: "
            "choose another --config or another data.name"
        )
    hop = method.encoder.geometry[1]
    if train.form != WAVE and hop != train.form.hop:
        raise UserError(
            f"encoder.hop={hop}, and the {train.form.name} of data.root are {train.form.hop} samples apart: "
            f"--config.encoder.hop={train.form.hop}"
        )
    buckets = [int(seconds * SAMPLE_RATE + 0.5) for seconds in data.bucket_seconds]
    labels: tuple[Labels | None, Labels | None] = None, None
    targets: tuple[Targets | None, Targets | None] = None, None
    key = "data.eval_root" if data.eval_root else f"data.eval_share={data.eval_share:g}"
    if setting(config, "data.labels"):
        alphabet = open_alphabet(data, train, path)
        read = functools.partial(
            with_labels,
            alphabet=alphabet,
            bucket_samples=buckets,
            per_second=data.tokens_per_second,
            frames=method.output_frames,
        )
        train, train_labels = read(train, where="data.root")
        held_out, eval_labels = read(held_out, where=key)
        labels = train_labels, eval_labels
    noise = open_beside(config, "data.noise_root", "data.noise_name", used=["data.mix_prob", "data.noise_prob"])
    rooms = open_beside(config, "data.rooms_root", "data.rooms_name", used=["data.rooms_prob"])
    augment = augmentation(config, train.form, noise=noise, rooms=rooms)
    if setting(config, "data.targets") is not None:
        if augment.speeds != (1, 1):
            raise UserError("data.speeds would part the recordings from their data.targets: --config.data.speeds=1,1")
        folders = {group.label: open_targets(group.section, config.loss.classes) for group in groups}
        folders = folders or open_targets(data, config.loss.classes)
        train, train_targets = with_targets(train, folders, where="data.root")
        if groups and data.eval_root:
            folders = open_targets(data, config.loss.classes)
        held_out, eval_targets = with_targets(held_out, folders, where=key)
        targets = train_targets, eval_targets
    mixture = None
    if groups:
        longest = max(data.bucket_seconds)
        mixture = mix_of(train.index, groups, exponents=data.corpora_exponents, longest=longest)
    plan = open_plan(config, train, units, lengths=buckets, augment=augment, mixture=mixture)
    scored = eval_plan(
        held_out.index.num_samples,
        bucket_samples=buckets,
        unit_seconds=data.unit_seconds,
        units=shards,
        max_hours=data.eval_hours,
    )
    return Data(
        train,
        plan,
        held_out,
        eval_plan=scored,
        train_labels=labels[0],
        eval_labels=labels[1],
        train_targets=targets[0],
        eval_targets=targets[1],
        noise=noise,
        rooms=rooms,
        mixture=mixture,
    )


def open_sources(config: Config, groups: Sequence[Group]) -> tuple[Source, Source]:
    """The recordings to train on and those to score, of one corpus or of all groups. Raises UserError."""
    data, speakers = config.data, config.data.eval_speakers
    module = source_module(data.name)
    whole = [open_group(group, data.corpora) for group in groups] or [module.make(data, data.root)]
    together = lambda sources: join_sources(sources, groups) if groups else sources[0]
    if not data.eval_root:
        parts = [split_heldout(source.index, data.eval_share, speakers=speakers) for source in whole]
        if speakers and groups:
            parts = _apart(whole, parts, groups)
        sides = [[subset(source, rows[side]) for source, rows in zip(whole, parts, strict=True)] for side in (0, 1)]
        return together(sides[0]), together(sides[1])
    try:
        held_out = module.make(data, data.eval_root)
    except UserError as error:  # sources call their place data.root
        error.args = (str(error).replace("data.root", "data.eval_root"),)
        raise
    train = together(whole)
    if speakers:
        check_speakers(train.index, "data.root")
        check_speakers(held_out.index, "data.eval_root")
        if common := sorted({*train.index.speakers.tolist()} & {*held_out.index.speakers.tolist()}):
            raise UserError(
                f"data.eval_speakers: {len(common):,} speakers, e.g. {common[0]!r}, are in data.root and in "
                "data.eval_root: take them out of one, or set data.eval_speakers=false"
            )
    return train, held_out


def _apart(
    whole: Sequence[Source], parts: Sequence[tuple[np.ndarray, np.ndarray]], groups: Sequence[Group]
) -> list[tuple[np.ndarray, np.ndarray]]:
    """(train rows, held-out rows) of each group: a speaker who is held out in one of `parts` is so in all groups.

    Raises UserError where no speaker of a group is left to train on.
    """
    heldout = np.concatenate([source.index.speakers[rows] for source, (_, rows) in zip(whole, parts, strict=True)])
    apart = []
    for source, group in zip(whole, groups, strict=True):
        scored = np.isin(source.index.speakers, heldout)
        if scored.all():
            raise UserError(
                f"data.eval_speakers: each speaker of {group.label} is held out there or in another corpus, so that "
                "none is left to train on: lower data.eval_share, leave it out, or set data.eval_speakers=false"
            )
        apart.append((np.flatnonzero(~scored), np.flatnonzero(scored)))
    return apart


def open_plan(
    config: Config,
    train: Source,
    units: int,
    *,
    lengths: Sequence[int],
    augment: Augmentation,
    mixture: Mixture | None,
) -> TrainPlan | Curriculum:
    """The plan of the training rows. lengths: data.bucket_seconds in samples. Raises TooFew and UserError."""
    data = config.data

    def make(bucket_samples: Sequence[int]) -> TrainPlan:
        return train_plan(
            train.index.num_samples,
            bucket_samples=bucket_samples,
            unit_seconds=data.unit_seconds,
            units=units,
            seed=config.seed,
            crop=not setting(config, "data.labels"),
            augment=augment,
            groups=None if mixture is None else Groups(train.index.groups, mixture.shares),
        )

    try:
        return curriculum(make, lengths, data.curriculum)
    except TooFew as error:  # perhaps for want of what was skipped
        raise TooFew(str(error), train.index.skipped) from None


def training_batches(
    config: Config,
    data: Data,
    *,
    start: int = 0,
    stop: int | None = None,
    units: Sequence[int] | None = None,
    loader: str = "",
) -> Generator[tuple[dict[str, np.ndarray], Info], None, None]:
    """What a training reads at the steps from `start` up to `stop` (`pipeline.batches`). loader: "" is the config's."""
    return batches(
        data.train,
        data.train_plan,
        start=start,
        stop=stop,
        units=units,
        normalize=config.data.normalize,
        labels=data.train_labels,
        targets=data.train_targets,
        noise=data.noise,
        rooms=data.rooms,
        loader=loader or config.data.loader,
        workers=config.data.workers,
    )


def heard(data: Data, step: int, *, languages: bool = False) -> dict[str, dict[str, float]]:
    """{corpus: its rows, share of the audio, hours and epochs before `step`}; empty without data.corpora.

    The share is the one that its plan gives in the long run (`TrainPlan.shares`). languages: those of each language
    apart, as CORPUS/LANGUAGE.
    """
    if data.mixture is None:
        return {}
    plan = data.train_plan
    return data.mixture.heard(*plan.heard(step), shares=plan.shares, languages=languages)


def augmentation(config: Config, form: Form, *, noise: Source | None, rooms: Source | None) -> Augmentation:
    """What the config does to training rows. Raises UserError for limits that cannot be, and for rows without audio."""
    of = functools.partial(setting, config)
    if of("data.rooms_prob") and rooms is None:
        raise UserError("data.rooms_prob is above 0 without a data.rooms_root: name folders of impulse responses there")
    speeds = limits(config, "data.speeds", lowest=0.5, highest=2.0)
    augment = Augmentation(
        speeds=speeds,
        mix_prob=of("data.mix_prob"),
        mix_decibels=limits(config, "data.mix_decibels"),
        mix_part=limits(config, "data.mix_part", lowest=0.0, highest=1.0),
        mix_voices=limits(config, "data.mix_voices", lowest=1),
        noise=None
        if noise is None
        else Noise(noise.index.num_samples, of("data.noise_prob"), decibels=limits(config, "data.noise_decibels")),
        rooms=0 if rooms is None else len(rooms.index),
        rooms_prob=of("data.rooms_prob"),
        telephone_prob=of("data.telephone_prob"),
        gain_decibels=limits(config, "data.gain_decibels"),
    )
    for key, off in AUGMENTATION.items() if form != WAVE else ():
        if key in ("data.speeds", "data.mix_prob", "data.rooms_prob", "data.telephone_prob", "data.gain_decibels"):
            if (value := of(key)) != off:
                shown = ",".join(f"{number:g}" for number in off) if isinstance(off, tuple) else f"{off:g}"
                raise UserError(f"{key}={value} is for audio; the data are {form.name}: --config.{key}={shown}")
    return augment


def limits(config: Config, key: str, *, lowest: float = -math.inf, highest: float = math.inf) -> tuple[Any, Any]:
    """The two numbers of a key, the lower one first. Raises UserError where they are not, or out of bounds."""
    low, high = setting(config, key)
    if not lowest <= low <= high <= highest:
        bounds = "" if math.isinf(lowest) else f", from {lowest:g}"
        bounds += "" if math.isinf(highest) else f" to {highest:g}"
        raise UserError(f"{key}=({low:g}, {high:g}): needs the lowest and the highest{bounds}")
    return low, high


def open_beside(config: Config, root: str, name: str, *, used: Sequence[str]) -> Source | None:
    """The recordings of the config key `root`, read as the key `name` says; None without any. Raises UserError.

    used: the keys that must be above 0 for them to be of use.
    """
    if not (places := setting(config, root)):
        return None
    for key in used:
        if not setting(config, key):
            raise UserError(f"{root} is given, but {key}=0 leaves it unused: raise it, or leave the folder out")
    try:
        source = open_source(setting(config, name), places, workers=config.data.workers)
    except UserError as error:  # sources call their place data.root
        error.args = (str(error).replace("data.root", root).replace("data.name", name),)
        raise
    if source.form != WAVE:
        raise UserError(f"{root} needs audio, and {name}={setting(config, name)} gives {source.form.name}")
    return source


def open_alphabet(data: Any, train: Source, path: pathlib.Path) -> Alphabet:
    """The alphabet of the run: that of its checkpoints, else data.alphabet, else made from the training transcripts.

    A run without a checkpoint makes the alphabet again. Raises UserError when data.alphabet contradicts the config, and
    TooFew where no transcript has a token to make one of.
    """
    file = path / ALPHABET_FILE
    if file.exists() and has_checkpoint(path):
        return Alphabet.load(file)
    texts, kind, casing, remove = train.index.transcripts.tolist(), data.labels, data.casing, data.remove
    if data.alphabet:
        alphabet, counts, dropped = reuse_alphabet(data.alphabet, texts, kind, casing=casing, remove=remove)
    else:
        try:
            made = build_alphabet(texts, kind, casing=casing, remove=remove, min_count=data.min_count)
        except TooFew as error:
            raise TooFew(str(error), [*train.index.skipped, *unlearnable(train.index)]) from None
        alphabet, counts, dropped = made
    if jax.process_index() == 0:
        alphabet.save(file, counts, dropped)
        print(alphabet_summary(alphabet, counts, dropped), flush=True)
    return alphabet


def micro_batch(data: Data, rows: int, length: int, *, parts: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of one of the `parts` micro-batches of a step of `rows` rows of `length` samples."""
    count, form, labels = rows // parts, data.train.form, data.train_labels
    per_row = dict(num_samples=jnp.int32, weight=jnp.float32, row=jnp.int32)
    shapes = {name: jax.ShapeDtypeStruct((count,), kind) for name, kind in per_row.items()}
    if labels is not None:
        shapes["tokens"] = jax.ShapeDtypeStruct((count, labels.width(length)), jnp.int32)
        shapes["num_tokens"] = jax.ShapeDtypeStruct((count,), jnp.int32)
    if data.train_targets is not None:
        shapes["targets"] = jax.ShapeDtypeStruct((count, *data.train_targets.shape(length)), jnp.int32)
    return {form.name: jax.ShapeDtypeStruct((count, *form.shape(length)), form.dtype), **shapes}


def check_agreement(prints: Mapping[str, Any]) -> None:
    """Raises UserError, in all processes, where one of them has found other data than the first (`fingerprints`)."""
    first, *others = gather_from_all(prints)
    for number, own in enumerate(others, start=1):
        if differing := [name for name in first if own.get(name) != first[name]]:
            raise UserError(
                f"process {number} has found other data than process 0 ({', '.join(differing)}: "
                f"{own.get(differing[0])} and {first[differing[0]]}): the machines see other files, or one has kept an "
                "older listing. Show all of them the same files, and remove the listings that are kept (docs/data.md)"
            )


def fingerprints(data: Data) -> dict[str, Any]:
    """What `workdir.check_data` compares: hashes of ids and lengths, and counts that a person recognises."""
    form, labels = data.train.form, data.train_labels
    about = {} if form == WAVE else {"form": form._asdict()}
    about |= {} if labels is None else {"labels": labels.digest(), "tokens": len(labels.alphabet)}
    about |= {} if data.train_targets is None else {"targets": data.train_targets.digest()}
    beside = {"noise": data.noise, "rooms": data.rooms}
    about |= {name: source.index.fingerprint() for name, source in beside.items() if source is not None}
    if data.mixture is not None:
        about |= {"shares": data.mixture.by_label()}
    for part, index in (("train", data.train.index), ("eval", data.eval.index)):
        about |= {f"{part}_rows": len(index), f"{part}_hours": round(index.hours, 4)}
        about |= {f"{part}_fingerprint": index.fingerprint()}
    return about


def form_of(path: pathlib.Path) -> Form:
    """The form of the data that a run was trained on, from its data.json; waves where that says nothing."""
    try:
        return Form(**json.loads((path / "data.json").read_text(encoding="utf-8"))["form"])
    except (OSError, KeyError):
        return WAVE
    except (ValueError, TypeError):
        raise UserError(f"{path / 'data.json'} is not readable; put it right, or train again") from None
