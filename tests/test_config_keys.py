"""Every key of a config is read by what it belongs to: the method, the optimizer, the loop. Others only mislead."""

from __future__ import annotations

import re

import jax
import numpy as np
import pytest
from commands import ROOT, varied
from ml_collections import ConfigDict

from w2v_jax import methods
from w2v_jax.core import config as configs
from w2v_jax.core.units import unit_rows
from w2v_jax.profiling.random_batch import random_batch, with_alphabet
from w2v_jax.training import optimizer
from w2v_jax.training.sharding import bare

CONFIGS = sorted(path.stem for path in (ROOT / "configs").glob("*.py"))
VARIANTS = {
    "w2v2_base": dict(loss__cross_negatives=2, loss__codebook_negatives=2),
    "vq_wav2vec:kmeans_tiny": dict(quantizer__restart=0.1),
    "acoustic_logmel": dict(acoustic__kind="transformer"),
    "acoustic_frozen": dict(acoustic__kind="transformer", encoder__frozen=False, encoder__frozen_steps=2),
    "cpc": dict(encoder__context="conv", encoder__context_kernels=(2,)),
    "wav2vec_small": dict(encoder__context="gru"),
    "wav2vec_large": dict(encoder__context="gru"),
    "vq_wav2vec": dict(encoder__context="gru"),
    "bert_codes_small": dict(encoder__positions="conv"),
}
"""Other choices of a config than its own, whose keys are read too."""
OF_METHOD = ("encoder", "quantizer", "masking", "loss", "acoustic")
BY_INFERENCE = {"encoder": {"padding_aware"}}
"""Every run is opened with it switched on (inference/run.py), whether its encoder asks for it or not."""
ELSEWHERE = {  # section: what reads it, each as SECTION.KEY
    "init": ("training/warm_start.py", "train.py"),
    "data": ("training/dataset.py", "data/sources/*.py", "core/units.py", "train.py", "data/t*.py"),
    "probe": ("probing/live.py", "train.py"),
    "sharding": ("training/sharding.py", "train.py"),
    "train": ("train.py", "training/*.py"),
}


class Section(ConfigDict):
    """A section of a config that notes which of its keys are read."""

    def __getitem__(self, key):
        if (read := self.__dict__.get("_read")) is not None:
            read.add(key)
        return super().__getitem__(key)


def watched(config, names) -> tuple[ConfigDict, dict[str, set[str]]]:
    """The config with sections that note what is read of them, and those notes."""
    copy, notes = ConfigDict(config.to_dict()), {}
    for name in names:
        if name in copy:
            section, notes[name] = Section(config[name].to_dict()), set()
            object.__setattr__(section, "_read", notes[name])
            copy._fields[name] = section
    return copy, notes


def read_by_the_method(config) -> dict[str, set[str]]:
    """The keys of its sections that a method and the optimizer read, traced and not computed."""
    copy, notes = watched(with_alphabet(config), (*OF_METHOD, "optim"))
    samples = round(max(config.data.bucket_seconds) * 16_000)
    batch = random_batch(with_alphabet(config), two_units(config, samples), samples)
    method, key = methods.load(copy), jax.random.key(0)

    def everything(batch, step):
        params, extra = bare(method.init(key, batch))
        for train in (True, False):
            method.loss(params, extra, batch, key, step, train=train)
        return method.predict(params, extra, batch)

    step = jax.ShapeDtypeStruct((), np.int32)
    jax.eval_shape(everything, batch, step)
    method.levels()
    params = bare(jax.eval_shape(lambda: method.init(key, batch))[0])
    for schedule in ("polynomial", "tri_stage"):
        copy.optim.update(schedule=schedule, end=1e-6, warmup=1)
        rate = optimizer.schedule(copy.optim, 100_000)
        jax.eval_shape(rate, step)
    copy.optim.rules = ()
    tx = optimizer.optimizer(copy.optim, rate, params)
    update = lambda params, step: tx.update(params, tx.init(params), params, count=step, norm=1.0, finite=True)
    jax.eval_shape(update, params, step)
    return notes


def two_units(config, samples: int) -> int:
    """Rows of the smallest batch that cross-utterance distractors can be drawn in."""
    return 2 * unit_rows(config.data.unit_seconds, samples)


@pytest.mark.parametrize("name", varied(CONFIGS, "w2v2_base", "acoustic_frozen", "cpc"))
def test_every_key_of_a_method_is_read_by_it(name):
    notes: dict[str, set[str]] = {}
    variants = [(name, {}), *((spec, changes) for spec, changes in VARIANTS.items() if spec.partition(":")[0] == name)]
    for spec, changes in variants:
        file, _, variant = spec.partition(":")
        overrides = [(key.replace("__", "."), str(value)) for key, value in changes.items()]
        config = configs.load(f"{ROOT / 'configs' / file}.py:{variant or 'tiny'}", overrides)
        for section, keys in read_by_the_method(config).items():
            notes.setdefault(section, set()).update(keys)
    config = configs.load(f"{ROOT / 'configs' / name}.py:tiny")
    for section, keys in notes.items():
        unread = set(config[section].keys()) - keys - BY_INFERENCE.get(section, set())
        assert not unread, f"{section}: nothing reads {sorted(unread)}"


@pytest.mark.parametrize("name", CONFIGS)
def test_every_other_key_is_read_where_it_belongs(name):
    config = configs.load(f"{ROOT / 'configs' / name}.py")
    for section, patterns in ELSEWHERE.items():
        if section not in config:
            continue
        texts = "\n".join(p.read_text() for pattern in patterns for p in (ROOT / "w2v_jax").glob(pattern))
        for key in config[section]:
            found = re.search(rf'\b(?:{section}|d|settings|config)\.{key}\b|"{section}\.{key}"', texts)
            assert found, f"{section}.{key}: none of {patterns} reads it"
    assert set(config) - set(ELSEWHERE) - set(OF_METHOD) == {"method", "seed", "optim"}


def test_a_key_that_nothing_reads_is_found():
    config = configs.load(f"{ROOT / 'configs' / 'cpc.py'}:tiny")
    with config.unlocked():
        config.loss.temperature = 0.1
    assert "temperature" not in read_by_the_method(config)["loss"]
