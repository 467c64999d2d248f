"""wav2vec and vq-wav2vec against fairseq's own arrays (tests/golden, or W2V_JAX_GOLDEN).

Each file holds parameters, inputs, every random draw, and what came out: outputs, loss terms, gradients.
If one of these tests fails, the maths has changed: the message says which array first differs. The numbers are
fairseq's, so they are never to be regenerated from this package.
"""

from __future__ import annotations

import json
import os
import pathlib

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from w2v_jax.core.config import flatten
from w2v_jax.interop import fairseq
from w2v_jax.interop.tensor_mapping import import_tensors
from w2v_jax.methods import vq_wav2vec
from w2v_jax.nn import future_prediction
from w2v_jax.nn.future_prediction import FutureModel
from w2v_jax.nn.quantizers import temperature

GOLDEN = pathlib.Path(os.environ.get("W2V_JAX_GOLDEN") or pathlib.Path(__file__).parent / "golden")
FILES = sorted([*GOLDEN.glob("wav2vec_*.npz"), *GOLDEN.glob("vq_wav2vec_*.npz")])
CASES = [(path, "auto") for path in FILES] + list(zip(FILES[-3:], ("xla", "products", "patches"), strict=True))
"""(file, encoder.convolution)"""


def test_golden_files_are_there():
    assert len(FILES) == 6, f"wav2vec_*.npz and vq_wav2vec_*.npz in {GOLDEN}"


def our_config(reference: dict, rows: int, samples: int, convolution: str) -> ml_collections.ConfigDict:
    """The config as `convert` makes it, for one unit of rows; fairseq's norms see padding."""
    config = fairseq.wav2vec_config({"normalize": False, "vq_temp": (2.0, 0.5, 0.99)} | reference)
    with config.unlocked():
        config.data.unit_seconds = rows * samples / 16_000
        config.encoder.update(padding_aware=False, convolution=convolution)
        if "quantizer" not in config:
            config.quantizer = dict(groups=1, temperature=(2.0, 0.5, 0.99))
    return config


class Case:
    """One golden file: our config, params and batch, fairseq's draws, and one forward and backward pass."""

    def __init__(self, path: pathlib.Path, convolution: str):
        self.arrays = dict(np.load(path))
        self.reference = json.loads(str(self.arrays["config"]))
        wave = self.arrays["in/source"]
        rows = len(wave)
        self.config = our_config(self.reference, rows, wave.shape[1], convolution)
        self.batch = dict(
            wave=jnp.asarray(wave),
            num_samples=jnp.full(rows, wave.shape[1], jnp.int32),
            weight=jnp.ones(rows),
            row=jnp.arange(rows),
        )
        self.frames = self.arrays["out/feature_extractor"].shape[2]
        self.quantizes = path.stem.startswith("vq_")
        self.distractors = self.reference_distractors(rows)
        self.tau = temperature(jnp.asarray(self.reference["updates"]), self.config.quantizer.temperature)
        both = jax.jit(jax.value_and_grad(self.loss, has_aux=True))
        (_, (self.total, self.metrics, self.outputs)), self.grads = both(self.params("param/"))

    def params(self, prefix: str) -> dict:
        found = {k.removeprefix(prefix): v for k, v in self.arrays.items() if k.startswith(prefix)}
        return import_tensors(found, fairseq.wav2vec_pairs(self.config), self.config, source=prefix)[0]

    def reference_distractors(self, rows: int) -> np.ndarray:
        """fairseq skips the positive frame by frame, then reads the draws back negative by negative."""

        def read(name: str, count: int) -> np.ndarray:
            draw = self.arrays[name]
            skipped = draw + (draw >= np.arange(draw.shape[1]) // count)
            return skipped.reshape(rows, count, self.frames).transpose(0, 2, 1)

        index = read("in/randint_1", self.config.loss.negatives)
        if not self.config.loss.cross_negatives:
            return index
        cross = read("in/randint_2", self.config.loss.cross_negatives)
        index = index + np.arange(rows)[:, None, None] * self.frames
        return np.concatenate([index, cross], axis=-1).reshape(1, rows * self.frames, -1)

    def loss(self, params):
        if not self.quantizes:
            encoded, predictions = FutureModel(self.config).apply({"params": params}, self.batch)
            total, metrics = future_prediction.objective(
                self.config, self.batch, targets=encoded.local, predictions=predictions, distractors=self.distractors
            )
            outputs = {"feature_extractor": encoded.local, "feature_aggregator": encoded.context}
            return total.total, (total, metrics, outputs)
        gumbel = self.arrays.get("in/gumbel_noise")
        if gumbel is not None:
            gumbel = gumbel.reshape(len(self.batch["wave"]), self.frames, self.config.quantizer.groups, -1)
        model = vq_wav2vec.VQWav2Vec(self.config)
        encoded, quantized, predictions = model.apply({"params": params}, self.batch, tau=self.tau, gumbel=gumbel)
        total, metrics = vq_wav2vec.objective(
            self.config, self.batch, quantized=quantized, predictions=predictions, distractors=self.distractors
        )
        outputs = {
            "feature_extractor": encoded.local,
            "vector_quantizer": quantized.vectors,
            "feature_aggregator": encoded.context,
        }
        return total.total, (total, metrics, outputs)


@pytest.fixture(scope="module", params=CASES, ids=lambda case: f"{case[0].stem}-{case[1]}")
def case(request) -> Case:
    return Case(*request.param)


def relative_error(ours, theirs) -> float:
    return float(np.max(np.abs(np.asarray(ours) - theirs)) / max(np.max(np.abs(theirs)), 1e-12))


def test_golden_forward(case):
    for name, ours in case.outputs.items():
        assert relative_error(ours.transpose(0, 2, 1), case.arrays[f"out/{name}"]) < 1e-4, f"{name} differs"


def test_golden_loss_terms(case):
    assert float(case.total.weight) == case.arrays["out/sample_size"]
    weights = case.config.loss
    ours = {"out/loss_sum": case.total.total}
    if case.quantizes:
        extra = ("diversity", weights.diversity_weight), ("commitment", weights.commitment_weight)
        term = next(weight * case.metrics[name].total for name, weight in extra if name in case.metrics)
        ours |= {"log/loss_0": case.metrics["loss"].total, "log/loss_1": term}
        ours["log/code_perplexity"] = case.metrics["code_perplexity"].value()
    if "prob_perplexity" in case.metrics:
        ours |= {"log/prob_perplexity": case.metrics["prob_perplexity"].value(), "log/temp": case.tau}
    if case.config.loss.kind == "infonce":
        ours |= {"log/count": case.metrics["accuracy"].weight, "log/correct": case.metrics["accuracy"].total}
    for name, value in ours.items():
        assert relative_error(value, case.arrays[name]) < 1e-4, f"{name}: {value} is not {case.arrays[name]}"


def test_golden_gradient_of_every_parameter(case):
    theirs, ours = flatten(case.params("grad/")), flatten(case.grads)
    assert theirs.keys() == ours.keys()
    for name, gradient in theirs.items():
        assert relative_error(ours[name], gradient) < 1e-3, f"the gradient of {name} differs"
