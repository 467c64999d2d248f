"""A method of one's own, outside the package: pretrained, extracted and fine-tuned without an edit anywhere."""

from __future__ import annotations

import json
import textwrap

import numpy as np
import pytest
from commands import ROOT

from w2v_jax import extract, methods, train
from w2v_jax.core import config as configs
from w2v_jax.core.cli import UserError
from w2v_jax.training import checkpoint

METHOD = '''
"""Predicts the mean square of hidden frames from those around them."""
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from w2v_jax.core.types import Encoded, Mean, Method
from w2v_jax.nn.layers import linear, partitioned
from w2v_jax.ops import random as noises
from w2v_jax.ops.frames import num_frames, receptive_field, valid_frames

LAYERS = ((16, 400, 320),)


class Pooling(nn.Module):
    """Mean squares of 20 ms, and a smooth context of them."""

    width: int
    kind: ClassVar[str] = "my_lab.my_method"
    reads: ClassVar[str] = "wave"
    hides_masked: ClassVar[bool] = True
    hidden_states: ClassVar[int] = 1
    max_frames: ClassVar[None] = None
    geometry: ClassVar[tuple[int, int]] = receptive_field(LAYERS)

    @nn.nowrap
    def frames(self, num_samples):
        return num_frames(num_samples, LAYERS)

    @nn.compact
    def __call__(self, wave, num_samples, *, masked=None, channels=None, noise=None, layer_key=None, collect=False):
        total = self.frames(wave.shape[1])
        places = jnp.arange(total)[:, None] * 320 + jnp.arange(400)
        energy = jnp.log(jnp.square(wave[:, places]).mean(axis=-1, keepdims=True) + 1e-6)
        local = linear(self.width, 1, ("conv", "embed"), dtype=jnp.float32, name="projection")(energy)
        x = local if masked is None else jnp.where(masked[..., None], 0.0, local)
        kernel = self.param("kernel", partitioned(nn.initializers.normal(0.3), (None, "embed")), (3, self.width))
        padded = jnp.pad(x, ((0, 0), (1, 1), (0, 0)))
        context = jnp.tanh(sum(padded[:, i : i + total] * kernel[i] for i in range(3)))
        return Encoded(
            energy, local=local, context=context, hidden=context[None], num_frames=self.frames(num_samples)
        )


class Model(nn.Module):
    config: Any

    def setup(self):
        self.encoder = make_encoder(self.config, jnp.float32)
        self.head = linear(1, self.config.encoder.width, ("embed", None), dtype=jnp.float32)

    def __call__(self, batch, masked=None):
        encoded = self.encoder(batch["wave"], batch["num_samples"], masked=masked)
        return encoded, self.head(encoded.context)


def make_encoder(config, dtype):
    return Pooling(config.encoder.width)


def make(config):
    model, encoder = Model(config), make_encoder(config, jnp.float32)

    def init(key, batch):
        return model.init(key, batch)["params"], {}

    def loss(params, extra, batch, key, step, *, train):
        total = encoder.frames(batch["wave"].shape[1])
        draws = noises.uniform(noises.fold(noises.row_noise(key, batch["row"]), 1), total)
        masked = (draws < config.masking.share) & valid_frames(encoder.frames(batch["num_samples"]), total)
        encoded, guess = model.apply({"params": params}, batch, masked)
        used = (masked & (batch["weight"] > 0)[:, None]).astype(jnp.float32)
        mean = Mean((jnp.square(guess - encoded.features)[..., 0] * used).sum(), used.sum())
        return mean, (extra, {"loss": mean})

    def predict(params, extra, batch):
        return model.apply({"params": params}, batch)[0].record()

    return Method(init, loss, predict, levels=lambda: {}, output_frames=encoder.frames, encoder=encoder)
'''

CONFIG = '''
"""A config of one's own."""


def get_config(variant=""):
    import importlib.util

    name = {"": "w2v2_base", "ctc": "finetune"}[variant]
    spec = importlib.util.spec_from_file_location("there", f"{CONFIGS}/{name}.py")
    there = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(there)
    config = there.get_config("tiny").unlock()
    if variant == "ctc":
        config.encoder = dict(kind="my_lab.my_method", width=16, frozen=False, frozen_steps=2)
        config.optim.rules = ()
        return config
    config.method = "my_lab.my_method"
    config.encoder = dict(width=16)
    config.masking = dict(share=0.3)
    config.optim.warmup = 1
    for section in ("quantizer", "loss"):
        del config[section]
    return config
'''


@pytest.fixture
def lab(tmp_path, monkeypatch):
    """A folder with the package my_lab and the file my_config.py; it can be imported from."""
    (tmp_path / "my_lab").mkdir()
    (tmp_path / "my_lab" / "my_method.py").write_text(textwrap.dedent(METHOD))
    config = f'CONFIGS = "{ROOT / "configs"}"\n' + CONFIG
    (tmp_path / "my_config.py").write_text(config)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def test_a_method_of_ones_own_is_pretrained_extracted_and_fine_tuned(lab, tiny_corpus):
    def load(variant, **changes):
        overrides = {"data.root": tiny_corpus, "data.loader": "threads", "train.steps": 4, "train.checkpoint_every": 4}
        overrides |= {key.replace("__", "."): value for key, value in changes.items()}
        return configs.load(f"{lab / 'my_config.py'}{variant}", [(k, str(v)) for k, v in overrides.items()])

    assert train.run(load(""), lab / "pretrained") == 0
    rows = [json.loads(line) for line in (lab / "pretrained" / "metrics.jsonl").read_text().splitlines()]
    assert all(np.isfinite(row["loss"]) for row in rows)
    arguments = ["--run", lab / "pretrained", "--what", "context", "--root", tiny_corpus / "dev", "--out", lab / "out"]
    assert extract.main([str(argument) for argument in arguments]) == 0
    assert np.load(lab / "out" / "part-00000.npy").shape[1] == 16
    tuned = load(":ctc", init__run=lab / "pretrained", train__steps=3)
    assert train.run(tuned, lab / "tuned") == 0
    before, after = (checkpoint.restore_params(lab / name, step=None).params for name in ("pretrained", "tuned"))
    assert before["encoder"].keys() == after["encoder"].keys() == {"projection", "kernel"}
    assert not np.array_equal(before["encoder"]["kernel"], after["encoder"]["kernel"]), "from update 2 it is trained"


def test_a_module_that_is_not_there_or_is_no_method_is_named(lab):
    config = configs.load(f"{lab / 'my_config.py'}")
    (lab / "my_lab" / "empty.py").write_text("")
    for name, words in (("my_lab.nothing", "no such module"), ("my_lab.empty", "has no make")):
        with config.unlocked():
            config.method = name
        with pytest.raises(UserError, match=f"config.method='{name}'.*{words}"):
            methods.load(config)
