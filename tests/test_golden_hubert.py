"""HuBERT against fairseq's own arrays (tests/golden, or the folder in W2V_JAX_GOLDEN).

Each file holds parameters, waveforms, labels, the masked frames, and what came out: outputs, loss terms, gradients.
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
from w2v_jax.nn import unit_prediction
from w2v_jax.ops.frames import receptive_field

GOLDEN = pathlib.Path(os.environ.get("W2V_JAX_GOLDEN") or pathlib.Path(__file__).parent / "golden")
FILES = sorted(path for path in GOLDEN.glob("hubert_*.npz") if "mfcc" not in path.stem)
EXTRA = fairseq.SPECIAL_CLASSES


def test_golden_files_are_there():
    assert FILES, f"no hubert_*.npz in {GOLDEN}"


class Case:
    """One golden file: our config, params and batch, fairseq's masked frames, and one forward and backward pass."""

    def __init__(self, path: pathlib.Path):
        self.arrays = dict(np.load(path))
        wave = self.arrays["in/source"]
        self.config = fairseq.hubert_config({"normalize": False} | json.loads(str(self.arrays["config"])))
        with self.config.unlocked():  # the batch is one unit; norms and penalty see padding
            self.config.data.unit_seconds = wave.size / 16_000
            self.config.encoder.padding_aware = False
        self.sets = len(self.config.loss.classes)
        field, hop = receptive_field(self.config.encoder.conv_layers)
        frames, rows = (~self.arrays["out/padding_mask"]).sum(axis=1), len(wave)  # fairseq's, cut where labels end
        self.batch = dict(
            wave=jnp.asarray(wave),
            num_samples=jnp.asarray((frames - 1) * hop + field, jnp.int32),
            weight=jnp.ones(rows),
            row=jnp.arange(rows),
            targets=jnp.asarray(np.stack([self.arrays[f"in/target_{i}"] for i in range(self.sets)], axis=1) - EXTRA),
        )
        self.kept = self.arrays["in/mask_indices"].shape[1]
        uncut = self.arrays["out/feature_extractor"].shape[2]
        self.valid = np.arange(self.kept) < frames[:, None]
        self.masked = np.pad(self.arrays["in/mask_indices"], ((0, 0), (0, uncut - self.kept)))
        self.params = self.mapped(self.part("param/"))
        self.model = unit_prediction.UnitPredictor(self.config)
        both = jax.jit(jax.value_and_grad(self.loss, has_aux=True))  # files of one config have one program
        found, self.grads = both(self.params, self.batch, jnp.asarray(self.masked))
        _, (self.total, self.metrics, self.prediction) = found

    def part(self, prefix: str) -> dict[str, np.ndarray]:
        return {k.removeprefix(prefix): v for k, v in self.arrays.items() if k.startswith(prefix)}

    def mapped(self, arrays: dict[str, np.ndarray]) -> dict:
        return import_tensors(arrays, fairseq.hubert_pairs(self.config), self.config, source="the golden file")[0]

    def loss(self, params, batch, masked):
        prediction = self.model.apply({"params": params}, batch, masked, collect=True)
        total, metrics = unit_prediction.objective(self.config, batch, masked=masked, prediction=prediction)
        return total.total, (total, metrics, prediction)

    def log(self, name: str) -> float:
        """The sum over the label sets of a logged number."""
        return sum(float(self.arrays[f"log/{name}_{i}"]) for i in range(self.sets))


@pytest.fixture(scope="module", params=FILES, ids=lambda path: path.stem)
def case(request) -> Case:
    return Case(request.param)


def relative_error(ours, theirs) -> float:
    return float(np.max(np.abs(np.asarray(ours) - theirs)) / max(np.max(np.abs(theirs)), 1e-12))


def test_golden_forward(case):
    encoded, kept, valid = case.prediction.encoded, case.kept, case.valid
    ours = {"layer_norm": encoded.local, "encoder": encoded.context}
    ours |= {f"layer_{i}": encoded.hidden[i + 1] for i in range(case.config.encoder.layers)}
    assert relative_error(encoded.features.transpose(0, 2, 1), case.arrays["out/feature_extractor"]) < 1e-4
    for name, array in ours.items():  # fairseq leaves arbitrary values on padded frames
        theirs = case.arrays[f"out/{name}"][valid]
        assert relative_error(np.asarray(array)[:, :kept][valid], theirs) < 1e-4, f"{name} differs"


def test_golden_projections_and_logits(case):
    vectors, logits = (np.asarray(x)[:, : case.kept] for x in (case.prediction.vectors, case.prediction.logits))
    masked = case.masked[:, : case.kept]
    for name, letter, rows in (("masked", "m", masked), ("unmasked", "u", ~masked)):
        rows = rows & case.valid
        assert relative_error(vectors[rows], case.arrays[f"out/final_proj_{name}"]) < 1e-4, f"{name} frames differ"
        for i, clusters in enumerate(case.config.loss.classes):
            right = case.arrays[f"out/target_{i}"][rows]
            found, theirs = logits[rows][:, i], case.arrays[f"out/logit_{letter}_{i}"]  # theirs: right one, all classes
            assert np.isneginf(found[:, clusters + EXTRA :]).all()
            assert relative_error(found[np.arange(len(right)), right], theirs[:, 0]) < 1e-4
            there = np.isfinite(theirs[:, 1:])  # where the right one stands a second time, fairseq has no logit
            assert relative_error(found[:, : clusters + EXTRA][there], theirs[:, 1:][there]) < 1e-4


def test_golden_labels_of_frames(case):
    ratio = unit_prediction.labels_per_frame(case.config)
    ours = np.asarray(unit_prediction.frame_labels(case.batch["targets"], case.masked.shape[1], ratio))
    for i in range(case.sets):
        np.testing.assert_array_equal(ours[:, : case.kept, i] + EXTRA, case.arrays[f"out/target_{i}"])


def test_golden_loss_terms(case):
    metrics, weight = case.metrics, case.config.loss.penalty_weight
    size = case.arrays["out/sample_size"]
    assert float(case.total.weight) == size
    ours = {
        "out/loss_sum": (case.total.total, case.arrays["out/loss_sum"]),
        "out/features_pen": (metrics["penalty"].value(), case.arrays["out/features_pen"]),
        "log/loss_features_pen": (weight * metrics["penalty"].total, case.arrays["log/loss_features_pen"]),
    }
    for letter, prefix in (("m", ""), ("u", "unmasked_")):
        ours[f"log/loss_{letter}"] = metrics[f"{prefix}loss"].total, case.log(f"loss_{letter}")
        ours[f"log/correct_{letter}"] = metrics[f"{prefix}accuracy"].total, case.log(f"correct_{letter}")
        ours[f"log/count_{letter}"] = metrics[f"{prefix}accuracy"].weight, case.log(f"count_{letter}")
    for name, (value, theirs) in ours.items():
        assert relative_error(value, theirs) < 1e-4, f"{name}: {value} is not {theirs}"


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
