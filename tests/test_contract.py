"""What every method keeps to, for each file of `methods/` with the `:tiny` variant of a config that names it.

A new method is tested here without a line of its own, as long as a config uses it and `make_batch` knows its inputs.
"""

from __future__ import annotations

import functools
import pathlib
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from collectives import collectives
from jax.sharding import AxisType

import w2v_jax.methods
from w2v_jax import methods
from w2v_jax.core import config as configs
from w2v_jax.core.types import Mean
from w2v_jax.core.units import FIRST_CODE, NO_TARGET
from w2v_jax.training import optimizer, sharding, step

METHODS = sorted(f.stem for f in pathlib.Path(w2v_jax.methods.__file__).parent.glob("*.py") if f.stem != "__init__")
CONFIGS = sorted((pathlib.Path(__file__).parents[1] / "configs").glob("*.py"))
VARIANTS = ["vq_wav2vec:kmeans_tiny", "finetune:tiny"]
"""Variants with other maths than the tiny one of their method, as FILE:variant."""
RELATED = ["bert_codes", "hubert", "wavlm", "vq_wav2vec", "wav2vec"]
"""Methods made of the modules of others: wav2vec2's and cpc's. Goldens test their maths; their contract is slow."""
OVERFIT = {"bert_codes": 0.5, "cpc": 0.65, "ctc": 0.3, "vq_wav2vec": 0.6, "wav2vec": 0.65, "wav2vec2": 0.9}
OVERFIT |= {"vq_wav2vec:kmeans_tiny": 0.8, "finetune:tiny": 0.3, "hubert": 0.6, "wavlm": 0.6}
"""The share of its first loss that 60 (or UPDATES) updates on one batch must reach, a tenth above what they once did.

A new method that is not named here must reach 0.9.
"""

UPDATES = {"ctc": 100}
"""Instead of 60: the last layer of CTC begins near zero, so that its loss falls late, and then quickly."""

MESH = 2, 2, 2
"""(data, fsdp, tensor) that every method is tested on; `test_meshes.py` has the others."""

ROWS, SAMPLES, LONGER = 8, 12_800, 14_080
INPUTS = ("wave", "codes", "tokens", "targets")
"""What methods read of a batch, each one of them or more."""
HOP, TYPES, TOKENS, LABEL_HOP = 160, 12, 7, 320
"""Samples that a code spans, how many types of codes and labels occur, the size of the alphabet, samples of a label."""
LENGTHS = np.asarray([12_800, 9_000, 12_800, 12_800, 11_111, 12_800, 8_000, 12_800], np.int32)

eight = pytest.mark.skipif(jax.device_count() != 8, reason="needs the eight CPU devices of conftest.py")


def config_of(name: str, rows_per_unit: int = 2, overrides=()):
    """The config of a method[:variant], tiny without one, with units of some rows of SAMPLES (or LONGER) samples."""
    method, _, variant = name.partition(":")
    fits = lambda file: file.stem == method if variant else configs.load(f"{file}:tiny").method == method
    file = next(filter(fits, CONFIGS), None)
    assert file is not None, f"no file of configs/ has method={method!r}"
    config = configs.load(f"{file}:{variant or 'tiny'}", overrides)
    if "acoustic" in config:
        config = configs.with_outputs(config, TOKENS)
    with config.unlocked():
        config.data.unit_seconds = rows_per_unit * LONGER / 16_000
        config.train.steps = 1000
        config.optim.eps = 1e-5  # the usual ones make of rounding in tiny gradients as large an update as of others
    return config


def make_batch(samples: int = SAMPLES, seed: int = 0) -> dict[str, np.ndarray]:
    """Smooth noise in ROWS rows, some padded with zeros up to `samples`; codes and labels of a few frames; tokens."""
    rng = np.random.default_rng(seed)
    wave = rng.normal(size=(ROWS, SAMPLES))
    wave = (wave + np.roll(wave, 1, axis=1) + np.roll(wave, 2, axis=1)) * (np.arange(SAMPLES) < LENGTHS[:, None]) * 0.2
    wave = np.pad(wave, ((0, 0), (0, samples - SAMPLES))).astype(np.float32)
    codes = FIRST_CODE + rng.integers(TYPES, size=(ROWS, SAMPLES // HOP // 4)).repeat(4, axis=1)
    codes = codes * (np.arange(SAMPLES // HOP) < LENGTHS[:, None] // HOP)
    codes = np.pad(codes, ((0, 0), (0, samples // HOP - SAMPLES // HOP))).astype(np.int32)
    num_tokens = rng.integers(1, 7, ROWS).astype(np.int32)
    tokens = rng.integers(1, TOKENS, (ROWS, 6)) * (np.arange(6) < num_tokens[:, None])
    labels = dict(tokens=tokens.astype(np.int32), num_tokens=num_tokens)
    targets = rng.integers(TYPES, size=(ROWS, 1, SAMPLES // LABEL_HOP // 4)).repeat(4, axis=2)
    more = samples // LABEL_HOP - targets.shape[2]
    labels["targets"] = np.pad(targets, ((0, 0), (0, 0), (0, more)), constant_values=NO_TARGET).astype(np.int32)
    per_row = dict(num_samples=LENGTHS, weight=np.ones(ROWS, np.float32), row=np.arange(ROWS, dtype=np.int32))
    return dict(wave=wave, codes=codes) | labels | per_row


def cut(batch, parts: int):
    """[ROWS ...] -> [A B ...]"""
    return jax.tree.map(lambda x: x.reshape(parts, -1, *x.shape[1:]), batch)


class Job:
    """A method of a tiny config, its parameters, and its jitted gradients."""

    def __init__(self, name: str, overrides=()):
        self.name = name
        self.config, self.single = (config_of(name, rows, overrides) for rows in (2, 1))
        self.method, self.single_method = (methods.load(c) for c in (self.config, self.single))
        self.key = jax.random.key(5)
        self.tx, self.rate = step.make_optimizer(self.config, self.method, self.key, batch=make_batch())
        init = lambda: sharding.bare(step.init_state(self.method, self.tx, self.key, batch=make_batch()))
        self.state = jax.jit(init)()
        gradients = lambda batches: step.accumulated_gradients(self.method, self.state, batches, key=self.key)
        self.gradients = jax.jit(gradients)
        self.whole = self.gradients(cut(make_batch(), 1))

    def loss(self, batch, method=None, **fields):
        """(objective, metrics) of a forward pass in training."""
        state, method = self.state, method or self.method
        total, (_, metrics) = method.loss(state.params, state.extra, batch, self.key, state.step, train=True)
        return total, metrics

    @functools.cached_property
    def runs(self) -> dict:
        """Three updates on one device and on a mesh of eight, with units of one row: {name: Run}."""
        meshes = {"one": (1, 1, 1)} | ({"eight": MESH} if jax.device_count() == 8 else {})
        return {name: Run(self, mesh_of(*shape)) for name, shape in meshes.items()}


def mesh_of(data: int, fsdp: int, tensor: int):
    sizes, kinds = (data, fsdp, tensor), (AxisType.Auto,) * 3
    return jax.make_mesh(sizes, sharding.MESH_AXES, axis_types=kinds, devices=jax.devices()[: data * fsdp * tensor])


class Run:
    """Three updates on different batches on a mesh, as the training command does them; `compiled` is the program."""

    def __init__(self, job: Job, mesh):
        self.job, self.mesh, self.metrics = job, mesh, []
        update = functools.partial(step.train_step, method=job.single_method, tx=job.tx, rate=job.rate)
        with jax.set_mesh(mesh), nn.logical_axis_rules(sharding.RULES):
            _, shapes = step.create_state(job.single_method, job.tx, job.key, batch=make_batch(), mesh=mesh)
            places = jax.tree.map(lambda shape: shape.sharding, shapes)
            self.state = self.start = jax.device_put(jax.tree.map(np.asarray, job.state), places)
            jitted = jax.jit(update, out_shardings=(places, None))
            self.compiled = jitted.lower(self.start, sharding.put_batch(make_batch(), mesh, 1), job.key).compile()
            for n in range(3):
                self.state, metrics = self(self.state, make_batch(seed=n))
                self.metrics.append({name: float(value) for name, value in metrics.items()})

    def __call__(self, state, batch):
        with jax.set_mesh(self.mesh), nn.logical_axis_rules(sharding.RULES):
            return self.compiled(state, sharding.put_batch(batch, self.mesh, 1), self.job.key)


def contracts() -> list:
    """METHODS and VARIANTS as parameters of tests."""
    later = [*RELATED, *VARIANTS]
    quick = [name for name in METHODS if name not in later]
    return [*quick, *(pytest.param(name, marks=pytest.mark.slow) for name in later)]


@pytest.fixture(scope="module", params=contracts())
def job(request) -> Job:
    return Job(request.param)


def frozen(config, name: str) -> bool:
    """Whether the first rule that matches a parameter's path gives it no learning rate."""
    return next((scale == 0.0 for pattern, scale, _ in config.optim.rules if re.search(pattern, name)), False)


def assert_means_close(ours, theirs):
    """Every metric has the same value, and the objective the same total and weight."""
    assert ours.keys() == theirs.keys()
    for name in ours:
        np.testing.assert_allclose(ours[name].value(), theirs[name].value(), rtol=1e-5, atol=1e-6, err_msg=name)
    np.testing.assert_allclose(ours["objective"].total, theirs["objective"].total, rtol=1e-5)
    assert ours["objective"].weight == theirs["objective"].weight


def assert_gradients_close(ours, theirs, tolerance: float = 1e-5):
    largest = max(float(np.abs(g).max()) for g in jax.tree.leaves(theirs))
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=tolerance * largest, err_msg=optimizer.path_name(path))


def assert_state_is_cut(run: Run):
    """Each device holds 1 / fsdp of parameters and moments, but for what is too small to cut."""
    first, fsdp = run.mesh.devices.flat[0], run.mesh.shape["fsdp"]
    for tree in (run.state.params, run.state.opt):
        leaves = [leaf for leaf in jax.tree.leaves(tree) if leaf.ndim]
        held = sum(shard.data.nbytes for x in leaves for shard in x.addressable_shards if shard.device == first)
        whole = [x for x in leaves if np.prod(x.sharding.shard_shape(x.shape)) * fsdp > x.size]
        small = sum(x.nbytes for x in whole)
        assert small <= 0.02 * sum(x.nbytes for x in leaves), "too much is kept whole on all devices"
        assert held <= (sum(x.nbytes for x in leaves) - small) / fsdp + small


def assert_meant(run: Run):
    """The collectives of an update, read from the compiled program.

    fsdp gathers parameters, at most twice, and nothing else; data and fsdp add up gradients once (or first over fsdp,
    then the pieces over data), and numbers; tensor
    adds up activations in the Transformer (the outputs of attention and feed-forward network and the gradients of the
    inputs of their four products) and compares the best codes of each device. Nothing is permuted, nothing goes from
    all to all, and no batch is gathered. What a mesh needs is there as well: every cut parameter is gathered, every
    gradient added up, so that a reader of the text that sees nothing would not pass.
    """
    shape = dict(run.mesh.shape)
    params = sum(x.nbytes for x in jax.tree.leaves(run.state.params))
    pieces = {dims(piece) for x in jax.tree.leaves(run.state.params) for piece in pieces_of(x)}
    sums, gathered, tensor = 0, 0, 0
    for found in collectives(run.compiled.as_text(), shape):
        said = f"{found.kind} of {found.arrays} over {sorted(found.axes)} in {found.source}"
        assert found.kind in ("all-reduce", "reduce-scatter", "all-gather"), said
        if found.kind == "all-gather" and found.axes == {"fsdp"}:
            assert all(dims(array) in pieces for _, array in found.arrays), f"not a parameter: {said}"
            gathered += found.bytes
        elif found.kind == "all-gather":
            assert found.axes == {"tensor"} and found.bytes <= ROWS * LONGER // HOP * 4 * shape["tensor"], said
        elif "tensor" in found.axes:
            tensor += found.bytes
        else:
            sums += found.bytes
    numbers = 4096 + 0.02 * params
    tied = run.state.params["encoder"].get("embedding")  # used twice: the parts of its gradient come one by one
    numbers += 0 if tied is None else tied.nbytes
    needed = 0.9 * trained_bytes(run) / shape["tensor"]
    assert needed <= gathered <= 2 * params + numbers if shape["fsdp"] > 1 else not gathered
    once = params * (1 + 1 / shape["fsdp"] if min(shape["data"], shape["fsdp"]) > 1 else 1)
    assert sums <= once + numbers, "more is added up than the gradients"
    if sharding.batch_shards(run.mesh) > 1:  # at the least pieces of gradients, each already cut over fsdp
        assert sums >= needed / shape["fsdp"], "gradients are not added up"
    if "transformer" not in run.state.params["encoder"]:
        assert not tensor
        return
    found = jax.eval_shape(lambda: run.job.method.predict(run.state.params, run.state.extra, make_batch()))
    activation = found["context"].size * 4 // sharding.batch_shards(run.mesh)
    most = (6 * run.job.config.encoder.layers + 3) * activation
    assert activation <= tensor <= most if shape["tensor"] > 1 else not tensor


def trained_bytes(run: Run) -> int:
    """Bytes of the parameters that are trained."""
    leaves = jax.tree_util.tree_leaves_with_path(run.state.params)
    return sum(x.nbytes for path, x in leaves if not frozen(run.job.config, optimizer.path_name(path)))


def dims(shape) -> tuple[int, ...]:
    """A shape without its order and its ones."""
    return tuple(sorted(size for size in shape if size > 1))


def pieces_of(x) -> list[tuple[int, ...]]:
    """The shapes in which a parameter can be gathered: cut along tensor or not, one layer of a stack or all."""
    names = [() if axis is None else (axis,) if isinstance(axis, str) else axis for axis in x.sharding.spec]
    names += [()] * (x.ndim - len(names))
    cut = tuple(n // (x.sharding.mesh.shape["tensor"] if "tensor" in axes else 1) for n, axes in zip(x.shape, names))
    return [shape for each in (x.shape, cut) for shape in (each, each[1:])]


def test_metrics_of_updates_are_numbers_and_arrays_of_evaluations_are_usages(job):
    assert all(mean.value().ndim == 0 for mean in job.whole[2].values())
    score = functools.partial(step.eval_step, method=job.method)
    evaluated = jax.eval_shape(score, job.state, cut(make_batch(), 1), job.key)
    shapes = {name: jax.eval_shape(Mean.value, mean).shape for name, mean in evaluated.items()}
    assert all(len(shape) == (2 if name.endswith("_usage") else 0) for name, shape in shapes.items()), shapes


def test_init_works_under_shape_evaluation_with_known_axes(job):
    params, extra = jax.eval_shape(lambda: job.method.init(job.key, make_batch()))
    leaves = jax.tree.leaves(params, is_leaf=lambda x: isinstance(x, nn.LogicallyPartitioned))
    assert all(isinstance(leaf, nn.LogicallyPartitioned) for leaf in leaves), "a parameter without axis names"
    assert all(len(leaf.names) == leaf.value.ndim for leaf in leaves)
    assert "encoder" in params, "reusable weights live under params['encoder']"


def test_predict_gives_what_every_method_gives(job):
    found = jax.eval_shape(lambda: job.method.predict(job.state.params, job.state.extra, make_batch()))
    assert {"local", "context", "hidden", "valid"} <= found.keys()
    rows, frames, width = found["context"].shape
    assert rows == ROWS and found["valid"].shape == (rows, frames) and found["local"].shape[:2] == (rows, frames)
    assert found["hidden"].shape[1:] == (rows, frames, width)


def test_loss_and_gradients_are_finite_and_reach_every_parameter(job):
    gradient, _, metrics = job.whole
    assert metrics["objective"].weight > 0
    for name, mean in metrics.items():
        assert np.isfinite(mean.total) and np.isfinite(mean.weight), name
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
        name = optimizer.path_name(path)
        assert np.isfinite(leaf).all(), name
        assert np.any(leaf) or frozen(job.config, name), f"{name} gets no gradient and no optim.rules freezes it"


def test_one_batch_equals_its_micro_batches(job):
    gradient, _, metrics = job.gradients(cut(make_batch(), 4))
    assert_gradients_close(gradient, job.whole[0])
    assert_means_close(metrics, job.whole[2])


def test_rows_of_weight_0_change_nothing(job):
    """Neither what stands in them nor that they are there: a batch is the sum of its units."""
    parts = [np.repeat([0, 0, 0, 1], 2), np.repeat([1, 1, 1, 0], 2)]
    alone, rest = (job.gradients(cut(make_batch() | dict(weight=w.astype(np.float32)), 1))[2] for w in parts)
    assert_means_close({name: alone[name] + rest[name] for name in rest}, job.whole[2])
    for rows in (2, 1):  # a unit that only fills up, and a row of a unit
        batch, noise = make_batch(), make_batch(seed=9)
        batch["weight"] = (np.arange(ROWS) < ROWS - rows).astype(np.float32)
        real = batch["weight"] > 0
        over = lambda x, real=real: real.reshape(-1, *[1] * (x.ndim - 1))
        empty = {name: np.where(over(batch[name]), batch[name], 0) for name in INPUTS}
        empty["num_samples"] = np.where(real, LENGTHS, 0).astype(np.int32)
        noisy = {name: np.where(over(batch[name]), batch[name], noise[name]) for name in INPUTS}
        a, b = (job.gradients(cut(batch | fill, 1)) for fill in (empty, noisy))
        assert_means_close(a[2], b[2])
        assert_gradients_close(a[0], b[0])


def test_batch_without_any_real_row_is_finite(job):
    batch = jax.tree.map(np.zeros_like, make_batch()) | dict(row=np.arange(ROWS, dtype=np.int32))
    gradient, _, metrics = job.gradients(cut(batch, 1))
    assert metrics["objective"].weight == 0 and metrics["objective"].total == 0
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((gradient, metrics)))


def test_short_silent_and_uniform_rows_are_finite(job):
    """No frame, one frame, fewer than any horizon, silence, codes that are all alike."""
    batch = make_batch() | dict(num_samples=np.asarray([0, 100, 400, 465, 700, 1000, SAMPLES, SAMPLES], np.int32))
    real = np.arange(SAMPLES) < batch["num_samples"][:, None]
    batch["wave"] *= real & (np.arange(ROWS) != 6)[:, None]
    batch["codes"] = np.where(real[:, ::HOP], FIRST_CODE, 0).astype(np.int32)
    gradient, _, metrics = job.gradients(cut(batch, 1))
    assert metrics["objective"].weight > 0
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((gradient, metrics)))


def test_longer_padding_leaves_the_loss_unchanged(job):
    total, metrics = jax.jit(job.loss)(make_batch(LONGER))
    assert_means_close({"objective": total} | metrics, job.whole[2])


def test_batch_is_the_sum_of_its_single_utterances(job):
    """With units of one row: every row alone, in a batch of one."""
    alone = jax.jit(functools.partial(job.loss, method=job.single_method))
    rows = [jax.tree.map(lambda x: x[n : n + 1], make_batch()) for n in range(ROWS)]  # noqa: B023
    key, job.key = job.key, jax.random.fold_in(job.key, 0)  # as in the first step of a run
    try:
        total = functools.reduce(lambda a, b: a + b, [alone(row)[0] for row in rows])
    finally:
        job.key = key
    np.testing.assert_allclose(total.value(), job.runs["one"].metrics[0]["objective"], rtol=1e-5)


def test_loss_in_bfloat16_is_near_that_in_float32(job):
    half = config_of(job.name)
    with half.unlocked():
        half.train.dtype = "bfloat16"
    method = methods.load(half)
    total, _ = jax.jit(functools.partial(job.loss, method=method))(make_batch())
    assert total.total.dtype == jnp.float32
    np.testing.assert_allclose(total.value(), job.whole[2]["objective"].value(), rtol=0.03)


def assert_agree(one: Run, other: Run):
    """Metrics of each update and the parameters after them."""
    shape = dict(other.mesh.shape)
    for n, (a, b) in enumerate(zip(one.metrics, other.metrics, strict=True)):
        for metric in a:
            np.testing.assert_allclose(b[metric], a[metric], rtol=1e-5, atol=1e-6, err_msg=f"{shape} {n} {metric}")
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(one.state.params), jax.tree.leaves(other.state.params), strict=True
    ):
        np.testing.assert_allclose(b, a, rtol=1e-5, atol=1e-5, err_msg=f"{shape} {optimizer.path_name(path)}")


@eight
def test_eight_devices_give_what_one_gives(job):
    assert_agree(job.runs["one"], job.runs["eight"])


@eight
@pytest.mark.slow
def test_first_updates_that_leave_the_encoder_as_it_is_are_the_same_on_a_mesh_and_cut():
    """Two of three updates. The branches of a program are both in its text: what they say to each other is not read."""
    job = Job("finetune:tiny", [("encoder.frozen_steps", "2")])
    assert_agree(job.runs["one"], job.runs["eight"])
    for run in job.runs.values():
        assert_state_is_cut(run)
    for n in (1, 2):
        state = job.state.replace(step=jnp.int32(n))
        gradients = jax.jit(lambda x, state=state: step.accumulated_gradients(job.method, state, x, key=job.key))
        whole, parts = (gradients(cut(make_batch(), pieces)) for pieces in (1, 4))
        assert_gradients_close(parts[0], whole[0])
        assert any(np.any(x) for x in jax.tree.leaves(whole[0]["encoder"])) == (n == 2)


@eight
def test_state_is_cut_by_fsdp_and_tensor(job):
    for run in job.runs.values():
        assert_state_is_cut(run)


@eight
def test_devices_say_to_each_other_what_was_meant_and_no_more(job):
    for run in job.runs.values():
        assert_meant(run)


def test_a_compiled_step_takes_the_state_it_returns_and_other_lengths_weights_and_rows(job):
    """A program that is compiled ahead of time refuses what would be traced anew."""
    batch = make_batch(seed=4) | dict(num_samples=LENGTHS[::-1].copy(), row=np.arange(8, 8 + ROWS, dtype=np.int32))
    batch["weight"] = (np.arange(ROWS) != 2).astype(np.float32)
    for name, run in job.runs.items():
        state, metrics = run(run.state, batch)
        assert state.step == run.state.step + 1 and metrics["skipped"] == 0, name


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_batch_that_is_not_finite_is_skipped_and_counted(job, value):
    run = job.runs["one"]
    assert all(metrics["skipped"] == 0 for metrics in run.metrics)
    bad = make_batch()
    bad["wave"][3, 1000] = value
    bad["codes"][3, 6] = {np.nan: -1, np.inf: 2**30}[value]  # not the id of any code: the same fault in integers
    state, metrics = run(run.state, bad)
    assert metrics["skipped"] == 1
    assert state.step == run.state.step + 1
    for name in ("params", "extra", "opt"):
        jax.tree.map(np.testing.assert_array_equal, getattr(state, name), getattr(run.state, name))
    _, metrics = run(state, make_batch())
    assert metrics["skipped"] == 0


def test_loss_falls_on_one_batch(job):
    run, losses = job.runs["one"], []
    state = run.start
    for _ in range(UPDATES.get(job.name, 60)):
        state, metrics = run(state, make_batch())
        losses.append(float(metrics["loss"]))
    assert np.mean(losses[-5:]) < OVERFIT.get(job.name, 0.9) * np.mean(losses[:2]), losses
