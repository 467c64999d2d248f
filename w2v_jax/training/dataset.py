"""The recordings of a run: listed, set aside for evaluation, labelled, and dealt into batches."""

from __future__ import annotations

import functools
import json
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from w2v_jax import methods
from w2v_jax.core.cli import UserError
from w2v_jax.core.config import Config, setting
from w2v_jax.core.display import short_repr
from w2v_jax.core.units import SAMPLE_RATE
from w2v_jax.data import open_source, source_module
from w2v_jax.data.batch_plan import EvalPlan, Groups, Noise, TrainPlan, eval_plan, train_plan
from w2v_jax.data.corpora import Group, Mixture, joined, mix_of, open_group, read_corpora
from w2v_jax.data.curriculum import Curriculum, curriculum
from w2v_jax.data.index import WAVE, Form, Source, TooFew, check_speakers, some_hours, split_heldout, subset
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

    labels, targets, noise and mixture where the config's data section asks for them.
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
    noise = open_noise(config)
    if setting(config, "data.targets") is not None:
        if setting(config, "data.speeds") != (1, 1):
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
    plan = open_plan(config, train, units, lengths=buckets, noise=noise, mixture=mixture)
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
        mixture=mixture,
    )


def open_sources(config: Config, groups: Sequence[Group]) -> tuple[Source, Source]:
    """The recordings to train on and those to score, of one corpus or of all groups. Raises UserError."""
    data, speakers = config.data, config.data.eval_speakers
    module = source_module(data.name)
    whole = [open_group(group, data.corpora) for group in groups] or [module.make(data, data.root)]
    together = lambda sources: joined(sources, groups) if groups else sources[0]
    if not data.eval_root:
        parts = [split_heldout(source.index, data.eval_share, speakers=speakers) for source in whole]
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


def open_plan(
    config: Config,
    train: Source,
    units: int,
    *,
    lengths: Sequence[int],
    noise: Source | None,
    mixture: Mixture | None,
) -> TrainPlan | Curriculum:
    """The plan of the training rows. lengths: data.bucket_seconds in samples. Raises TooFew and UserError."""
    data = config.data
    speeds, mix_prob = playing_speeds(config, train.form), setting(config, "data.mix_prob")
    if mix_prob and train.form != WAVE:
        raise UserError(f"data.mix_prob is for audio; the data are {train.form.name}: --config.data.mix_prob=0")
    noises = None
    if noise is not None:
        noises = Noise(noise.index.num_samples, prob=data.noise_prob, decibels=louder(config, "data.noise_decibels"))

    def make(bucket_samples: Sequence[int]) -> TrainPlan:
        return train_plan(
            train.index.num_samples,
            bucket_samples=bucket_samples,
            unit_seconds=data.unit_seconds,
            units=units,
            seed=config.seed,
            crop=not setting(config, "data.labels"),
            speeds=speeds,
            mix_prob=mix_prob,
            mix_decibels=louder(config, "data.mix_decibels"),
            noise=noises,
            groups=None if mixture is None else Groups(train.index.groups, mixture.shares),
        )

    try:
        return curriculum(make, lengths, data.curriculum)
    except UserError as error:  # perhaps for want of what was skipped
        raise TooFew(str(error), train.index.skipped) from None


def heard(data: Data, step: int, *, languages: bool = False) -> dict[str, dict[str, float]]:
    """{corpus: its rows, the share of audio asked for, hours and epochs before `step`}; empty without data.corpora.

    languages: those of each language apart, as CORPUS/LANGUAGE.
    """
    if data.mixture is None:
        return {}
    return data.mixture.heard(*data.train_plan.heard(step), languages=languages)


def open_noise(config: Config) -> Source | None:
    """The recordings of data.noise_root that are mixed into rows; None without any. Raises UserError."""
    data, root = config.data, setting(config, "data.noise_root")
    if not root:
        return None
    for key, value in (("data.mix_prob", setting(config, "data.mix_prob")), ("data.noise_prob", data.noise_prob)):
        if not value:
            raise UserError(f"data.noise_root is given, but {key}=0 mixes nothing: raise it, or leave the noise out")
    try:
        source = open_source(data.noise_name, root, workers=data.workers)
    except UserError as error:  # sources call their place data.root
        error.args = (str(error).replace("data.root", "data.noise_root").replace("data.name", "data.noise_name"),)
        raise
    if source.form != WAVE:
        raise UserError(f"data.noise_root needs audio, and data.noise_name={data.noise_name} gives {source.form.name}")
    return source


def louder(config: Config, key: str) -> tuple[float, float]:
    """The decibels of a key: by how much a row is louder than what is mixed in. Raises UserError."""
    quietest, loudest = setting(config, key)
    if quietest > loudest:
        raise UserError(f"{key}=({quietest:g}, {loudest:g}): needs the lowest and the highest")
    return quietest, loudest


def playing_speeds(config: Config, form: Form) -> tuple[float, float]:
    """data.speeds. Raises UserError where they are none, or the data are not audio."""
    lowest, highest = setting(config, "data.speeds")
    if not 0.5 <= lowest <= highest <= 2:
        raise UserError(f"data.speeds=({lowest:g}, {highest:g}): needs the lowest and the highest, from 0.5 to 2")
    if form != WAVE and (lowest, highest) != (1, 1):
        raise UserError(f"data.speeds is for audio; the data are {form.name}: --config.data.speeds=1,1")
    return lowest, highest


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


def fingerprints(data: Data) -> dict[str, Any]:
    """What `workdir.check_data` compares: hashes of ids and lengths, and counts that a person recognises."""
    form, labels = data.train.form, data.train_labels
    about = {} if form == WAVE else {"form": form._asdict()}
    about |= {} if labels is None else {"labels": labels.digest(), "tokens": len(labels.alphabet)}
    about |= {} if data.train_targets is None else {"targets": data.train_targets.digest()}
    about |= {} if data.noise is None else {"noise": data.noise.index.fingerprint()}
    if data.mixture is not None:
        about |= {"shares": data.mixture.by_label()}
    return about | {
        f"{part}_{name}": value
        for part, index in (("train", data.train.index), ("eval", data.eval.index))
        for name, value in (
            ("rows", len(index)),
            ("hours", round(index.hours, 4)),
            ("fingerprint", index.fingerprint()),
        )
    }


def form_of(path: pathlib.Path) -> Form:
    """The form of the data that a run was trained on, from its data.json; waves where that says nothing."""
    try:
        return Form(**json.loads((path / "data.json").read_text(encoding="utf-8"))["form"])
    except (OSError, KeyError):
        return WAVE
    except (ValueError, TypeError):
        raise UserError(f"{path / 'data.json'} is not readable; put it right, or train again") from None
