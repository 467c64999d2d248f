"""WavLM's encoder against the arrays of unilm (tests/golden, or the folder in W2V_JAX_GOLDEN).

Each file holds parameters, waveforms, and what came out: buckets, biases, gates, outputs, gradients of a given loss.
If one of these tests fails, the maths has changed: the message says which array first differs. The numbers are the
reference's, so they are never to be regenerated from this package.
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
from w2v_jax.nn.encoders import wav2vec2_encoder
from w2v_jax.nn.layers import LayerNorm
from w2v_jax.nn.transformer import RelativeGate
from w2v_jax.ops.frames import receptive_field
from w2v_jax.ops.relative_bias import add_gated, bucket_of, by_distance, by_position

GOLDEN = pathlib.Path(os.environ.get("W2V_JAX_GOLDEN") or pathlib.Path(__file__).parent / "golden")
FILES = sorted(GOLDEN.glob("wavlm_*.npz"))
CASES = [(path, "auto") for path in FILES] + [(path, "xla") for path in FILES[-1:]]
"""(file, encoder.attention)"""


def test_golden_files_are_there():
    assert FILES, f"no wavlm_*.npz in {GOLDEN}"


class Case:
    """One golden file: our config and params, and one forward and backward pass."""

    def __init__(self, path: pathlib.Path, attention: str):
        self.arrays = dict(np.load(path))
        self.config = fairseq.wavlm_config(json.loads(str(self.arrays["config"])))
        with self.config.unlocked():  # norms see padding
            self.config.encoder.update(padding_aware=False, attention=attention)
        rows, frames, _ = self.arrays["out/encoder"].shape
        padding = self.arrays.get("out/padding_mask", np.zeros((rows, frames), bool))
        counts = (~padding).sum(axis=1)  # the reference's, by another rule than that of convolutions
        self.valid = np.arange(frames) < counts[:, None]
        np.testing.assert_array_equal(self.valid, ~padding)
        field, hop = receptive_field(self.config.encoder.conv_layers)
        self.num_samples = jnp.asarray((counts - 1) * hop + field, jnp.int32)
        self.params = self.mapped(self.part("param/"))
        self.transformer = self.params["encoder"]["transformer"]
        self.encoder = wav2vec2_encoder(self.config, jnp.float32)
        (self.loss, self.encoded), self.grads = jax.jit(jax.value_and_grad(self.pass_of, has_aux=True))(self.params)

    def part(self, prefix: str) -> dict[str, np.ndarray]:
        return {k.removeprefix(prefix): v for k, v in self.arrays.items() if k.startswith(prefix)}

    def mapped(self, arrays: dict[str, np.ndarray]) -> dict:
        pairs = fairseq.wav2vec2_pairs(self.config, "", "encoder")
        return import_tensors(arrays, pairs, self.config, source="the golden file")[0]

    def pass_of(self, params):
        given, masked = {"params": params["encoder"]}, self.arrays.get("in/mask_indices")
        encoded = self.encoder.apply(given, self.arrays["in/source"], self.num_samples, masked=masked, collect=True)
        square = jnp.square(encoded.context - self.arrays["in/loss_target"])
        return jnp.where(self.valid[..., None], square, 0.0).sum(), encoded

    def gates(self, layer: int) -> jax.Array:
        """The gates [B F H] of a layer, from its input."""
        of_layer = jax.tree.map(lambda x: x[layer], self.transformer["layers"])
        x = self.encoded.hidden[layer]
        if self.config.encoder.pre_norm:
            x = LayerNorm().apply({"params": of_layer["attention_norm"]}, x)
        return RelativeGate(self.config.encoder.heads).apply({"params": of_layer["gate"]}, x)


@pytest.fixture(scope="module", params=CASES, ids=lambda case: f"{case[0].stem}-{case[1]}")
def case(request) -> Case:
    return Case(*request.param)


def relative_error(ours, theirs) -> float:
    return float(np.max(np.abs(np.asarray(ours) - theirs)) / max(np.max(np.abs(theirs)), 1e-12))


def test_golden_buckets(case):
    e, frames = case.config.encoder, case.valid.shape[1]
    places = np.arange(frames)
    found = bucket_of(places[None] - places[:, None], e.relative_buckets, e.relative_distance)
    np.testing.assert_array_equal(found, case.arrays["out/position_bucket"])
    for name, sizes in (("", (e.relative_buckets, e.relative_distance)), ("_320_800", (320, 800))):
        distances, theirs = case.arrays[f"out/bucket_of_distance{name}"]
        np.testing.assert_array_equal(bucket_of(distances, *sizes), theirs)


def test_golden_bias_and_gates(case):
    e, valid = case.config.encoder, case.valid
    bias = by_distance(case.transformer["relative_bias"], valid.shape[1], e.relative_distance)
    np.testing.assert_array_equal(by_position(bias), case.arrays["out/position_bias"])
    for layer in range(e.layers):
        theirs = case.arrays[f"out/gate_{layer}"].transpose(0, 2, 1)
        assert relative_error(case.gates(layer)[valid], theirs[valid]) < 1e-4, f"gates of layer {layer} differ"
    gated = add_gated(jnp.zeros((e.heads,) + 2 * valid.shape[1:]), case.gates(0)[0].T, bias)
    theirs = case.arrays["out/gated_bias_0_utt0"]
    assert relative_error(gated[:, valid[0]], theirs[:, valid[0]]) < 1e-4


def test_golden_forward(case):
    encoded, valid = case.encoded, case.valid
    ours = {"layer_norm": encoded.local, "encoder": encoded.context}
    ours |= {f"layer_{i}": encoded.hidden[i + 1] for i in range(case.config.encoder.layers)}
    assert relative_error(encoded.features.transpose(0, 2, 1), case.arrays["out/feature_extractor"]) < 1e-4
    for name, array in ours.items():  # the reference leaves arbitrary values on padded frames
        assert relative_error(np.asarray(array)[valid], case.arrays[f"out/{name}"][valid]) < 1e-4, f"{name} differs"
    assert relative_error(case.loss, case.arrays["out/loss_sum"]) < 1e-4


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
            assert not np.any(ours[name]), f"{name} has a gradient here and none in the reference"
        else:
            assert relative_error(ours[name], gradient) < 1e-3, f"the gradient of {name} differs"
