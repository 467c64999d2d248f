"""wav2vec 2.0 against fairseq's own arrays (tests/golden, or the folder in W2V_JAX_GOLDEN).

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
import numpy as np
import pytest

from w2v_jax.core.config import flatten
from w2v_jax.interop import fairseq
from w2v_jax.interop.tensor_mapping import import_tensors
from w2v_jax.methods import wav2vec2
from w2v_jax.nn.quantizers import temperature
from w2v_jax.ops.frames import num_frames

GOLDEN = pathlib.Path(os.environ.get("W2V_JAX_GOLDEN") or pathlib.Path(__file__).parent / "golden")
FILES = sorted(GOLDEN.glob("wav2vec2_*.npz"))
CASES = [(path, "auto") for path in FILES] + list(zip(FILES[-3:], ("xla", "products", "patches"), strict=True))
"""(file, encoder.convolution)"""


def test_golden_files_are_there():
    assert FILES, f"no wav2vec2_*.npz in {GOLDEN}"


def our_config(reference: dict, samples: int, convolution: str):
    """The config as `convert` makes it, for one unit of so many samples, without noise; norms see padding."""
    config = fairseq.wav2vec2_config({"normalize": False} | reference)
    with config.unlocked():
        config.data.unit_seconds = samples / 16_000
        config.encoder.update(padding_aware=False, convolution=convolution)
        config.quantizer.input_dropout = 0.0
        config.loss.codebook_negatives = 0
    return config


class Case:
    """One golden file: our config, params and batch, fairseq's draws, and one forward and backward pass."""

    def __init__(self, path: pathlib.Path, convolution: str):
        self.arrays = dict(np.load(path))
        reference = json.loads(str(self.arrays["config"]))
        wave = self.arrays["in/source"]
        self.config = our_config(reference, wave.size, convolution)
        self.groups = reference["latent_groups"]
        padding = self.arrays.get("in/padding_mask", np.zeros(wave.shape, bool))
        rows = len(wave)
        self.batch = dict(
            wave=jnp.asarray(wave),
            num_samples=jnp.asarray((~padding).sum(axis=1), jnp.int32),
            weight=jnp.ones(rows),
            row=jnp.arange(rows),
        )
        self.params = self.mapped(self.part("param/"))
        self.tau = temperature(jnp.asarray(reference["updates"]), reference["latent_temp"])
        self.draws = self.reference_draws(reference)
        self.model = wav2vec2.Wav2Vec2(self.config)
        both = jax.jit(jax.value_and_grad(self.loss, has_aux=True))
        (_, (self.total, self.metrics, self.prediction)), self.grads = both(self.params)

    def part(self, prefix: str) -> dict[str, np.ndarray]:
        return {k.removeprefix(prefix): v for k, v in self.arrays.items() if k.startswith(prefix)}

    def mapped(self, arrays: dict[str, np.ndarray]) -> dict:
        pairs = fairseq.wav2vec2_pairs(self.config, "", "pretraining")
        return import_tensors(arrays, pairs, self.config, source="the golden file")[0]

    def reference_draws(self, reference: dict) -> wav2vec2.Draws:
        masked = self.arrays["in/mask_indices"]
        rows, count = len(masked), int(masked[0].sum())
        slots = np.stack([np.flatnonzero(m) for m in masked]).astype(np.int32)
        gumbel = None
        if "in/gumbel_noise" in self.arrays:
            gumbel = jnp.asarray(self.arrays["in/gumbel_noise"].reshape(rows, count, self.groups, -1))
        draw = self.arrays["in/randint_0"].reshape(rows, count, reference["num_negatives"])
        distractors = draw + (draw >= np.arange(count)[None, :, None])
        codebook = None
        if "in/randint_1" in self.arrays:
            entry, codes = self.arrays["in/randint_1"], reference["latent_vars"]
            digits = [entry // codes ** (self.groups - 1 - g) % codes for g in range(self.groups)]
            codebook = np.stack(digits, axis=-1).reshape(-1, rows, count, self.groups).transpose(1, 2, 0, 3)
            self.config.loss.codebook_negatives = codebook.shape[2]
        used = jnp.ones(slots.shape, bool)
        return wav2vec2.Draws(jnp.asarray(masked), jnp.asarray(slots), used, gumbel, jnp.asarray(distractors), codebook)

    def loss(self, params):
        prediction = self.model.apply({"params": params}, self.batch, self.draws, self.tau)
        total, metrics = wav2vec2.objective(self.config, self.batch, draws=self.draws, prediction=prediction)
        return total.total, (total, metrics, prediction)


@pytest.fixture(scope="module", params=CASES, ids=lambda case: f"{case[0].stem}-{case[1]}")
def case(request) -> Case:
    return Case(*request.param)


def relative_error(ours, theirs) -> float:
    return float(np.max(np.abs(np.asarray(ours) - theirs)) / max(np.max(np.abs(theirs)), 1e-12))


def test_golden_forward(case):
    ours = {
        "feature_extractor": case.prediction.encoded.features.transpose(0, 2, 1),
        "encoder": case.prediction.encoded.context,
        "quantizer": case.prediction.quantized.vectors,
        "project_q": case.prediction.targets,
        "final_proj": case.prediction.context,
    }
    valid = np.arange(ours["encoder"].shape[1]) < np.asarray(case.prediction.encoded.num_frames)[:, None]
    for name, array in ours.items():
        theirs = case.arrays[f"out/{name}"]
        if name == "encoder":  # fairseq leaves arbitrary values on padded frames
            array, theirs = np.asarray(array)[valid], theirs[valid]
        assert relative_error(array, theirs) < 1e-4, f"{name} differs"


def test_golden_loss_terms(case):
    weights = case.config.loss
    size = float(case.total.weight)
    assert size == case.arrays["out/sample_size"]
    ours = {
        "out/loss_sum": case.total.total,
        "log/loss_0": case.metrics["loss"].total,
        "log/loss_1": weights.diversity_weight * case.metrics["diversity"].total,
        "log/loss_2": weights.penalty_weight * case.metrics["penalty"].total,
        "log/code_perplexity": case.metrics["code_perplexity"].value(),
        "log/prob_perplexity": case.metrics["prob_perplexity"].value(),
        "log/temp": case.tau,
        "log/count": case.metrics["accuracy"].weight,
        "log/correct": case.metrics["accuracy"].total,
    }
    for name, value in ours.items():
        assert relative_error(value, case.arrays[name]) < 1e-4, f"{name}: {value} is not {case.arrays[name]}"


def test_golden_gradient_of_every_parameter(case):
    given = case.part("grad/")
    none = {name: np.zeros_like(array) for name, array in case.part("param/").items() if name not in given}
    theirs, ours = flatten(case.mapped(given | none)), flatten(case.grads)
    assert theirs.keys() == ours.keys()
    largest = max(float(np.abs(gradient).max()) for gradient in theirs.values())
    for name, gradient in theirs.items():
        if name.endswith("key.bias"):  # 0 in exact arithmetic: softmax does not see a shift of all keys
            assert np.abs(ours[name]).max() < 1e-6 * largest, f"the gradient of {name} is not 0"
        elif not np.any(gradient):
            assert not np.any(ours[name]), f"{name} has a gradient here and none in fairseq"
        else:
            assert relative_error(ours[name], gradient) < 1e-3, f"the gradient of {name} differs"


def test_golden_frames_are_counted_as_here(case):
    frames = num_frames(case.batch["wave"].shape[1], case.config.encoder.conv_layers)
    assert case.arrays["in/mask_indices"].shape[1] == frames
