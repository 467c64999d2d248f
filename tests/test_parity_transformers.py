"""wav2vec 2.0 against Hugging Face's Wav2Vec2ForPreTraining, live, with random weights and the same draws.

Needs the extra `parity` (CPU torch, transformers). Without it the tests are skipped, and the end of the report says so.
"""

from __future__ import annotations

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from w2v_jax import convert
from w2v_jax.core.config import flatten
from w2v_jax.data.index import WAVE
from w2v_jax.interop import huggingface, huggingface_config
from w2v_jax.interop.tensor_mapping import import_tensors
from w2v_jax.methods import wav2vec2
from w2v_jax.ops import masking
from w2v_jax.ops.frames import num_frames
from w2v_jax.training.warm_start import warm_params

pytestmark = pytest.mark.parity
MISSING = "live parity with PyTorch did NOT run: torch or transformers is not installed (extra `parity`)"
TEMPERATURE = 1.3

OFF = dict(hidden_dropout=0.0, attention_dropout=0.0, activation_dropout=0.0, layerdrop=0.0)
OFF |= dict(feat_proj_dropout=0.0, feat_quantizer_dropout=0.0)
SMALL = dict(conv_dim=(24,) * 7, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=48)
SMALL |= dict(num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=4, num_codevectors_per_group=12)
SMALL |= dict(codevector_dim=16, proj_codevector_dim=20, num_negatives=15)
BASE = dict(feat_extract_norm="group", do_stable_layer_norm=False, conv_bias=False)
LARGE = dict(feat_extract_norm="layer", do_stable_layer_norm=True, conv_bias=True)
FULL_WIDTH = dict(num_hidden_layers=2)  # all the rest is Base's by default
CASES = {
    "base": (SMALL | BASE, (16_000, 16_000)),
    "base_padded": (SMALL | BASE, (16_000, 11_000, 13_333)),
    "large": (SMALL | LARGE, (16_000, 16_000)),
    "large_padded": (SMALL | LARGE, (16_000, 11_000, 13_333)),
    "base_full_width": (FULL_WIDTH | BASE, (16_000, 12_000)),
}


def our_config(theirs, samples: int):
    """Our config of theirs as `convert` makes it, for one unit of so many samples; theirs has no masked norm."""
    fields = theirs.to_dict() | {"model_type": "wav2vec2"}
    config = huggingface_config.our_config(fields, "pretraining", normalize=False, outputs=0)
    with config.unlocked():
        config.data.unit_seconds = samples / 16_000
        config.encoder.padding_aware = False
        config.quantizer.temperature = (TEMPERATURE, TEMPERATURE, 1.0)
    return config


class Case:
    """One forward and backward pass of both, with the same weights, masks, negatives and Gumbel noise."""

    def __init__(self, fields: dict, lengths: tuple[int, ...]):
        import transformers

        rows, samples = len(lengths), max(lengths)
        self.theirs_config = transformers.Wav2Vec2Config(**(fields | OFF), attn_implementation="eager")
        self.groups = self.theirs_config.num_codevector_groups
        self.config = our_config(self.theirs_config, rows * samples)
        rng = np.random.default_rng(0)
        lengths = np.asarray(lengths)
        self.wave = (rng.normal(size=(rows, samples)) * (np.arange(samples) < lengths[:, None])).astype(np.float32)
        self.lengths, layers = lengths, self.config.encoder.conv_layers
        frames, total = num_frames(lengths, layers), num_frames(samples, layers)
        law = dict(prob=0.65, length=10, min_spans=2)
        self.valid = np.arange(total) < frames[:, None]
        self.masked = masking.span_mask_oracle(rng, frames, total, **law)
        self.slots, self.used = (np.asarray(x) for x in masking.masked_slots(jnp.asarray(self.masked), total - 1))
        counts = self.masked.sum(axis=1)[:, None, None]
        drawn = rng.integers(0, counts - 1, (rows, total - 1, self.theirs_config.num_negatives))
        self.distractors = drawn + (drawn >= np.arange(total - 1)[None, :, None])
        self.gumbel = rng.gumbel(size=(rows, total, self.groups, self.theirs_config.num_codevectors_per_group))
        self.gumbel = self.gumbel.astype(np.float32)
        self.run_theirs(rng)
        self.run_ours()

    def run_theirs(self, rng):
        import torch
        import transformers

        torch.manual_seed(0)
        model = transformers.Wav2Vec2ForPreTraining(self.theirs_config).train()
        with torch.no_grad():  # no parameter at a neutral value
            for parameter in model.parameters():
                parameter.add_(0.05 * torch.from_numpy(rng.normal(size=tuple(parameter.shape)).astype(np.float32)))
        model.quantizer.temperature = TEMPERATURE
        noise = torch.from_numpy(self.gumbel.reshape(-1, self.gumbel.shape[-1]))

        def gumbel_softmax(logits, tau, hard):
            assert hard
            soft = torch.softmax((logits + noise) / tau, dim=-1)
            one_hot = torch.zeros_like(soft).scatter_(-1, soft.argmax(-1, keepdim=True), 1.0)
            return one_hot - soft.detach() + soft

        rows, total = self.masked.shape
        negatives = np.zeros((rows, total, self.distractors.shape[-1]), np.int64)
        for row in range(rows):
            count = int(self.used[row].sum())
            negatives[row, self.slots[row, :count]] = self.slots[row][self.distractors[row, :count]] + row * total
        attention = None
        if not self.valid.all():
            attention = torch.from_numpy((np.arange(self.wave.shape[1]) < self.lengths[:, None]).astype(np.int64))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch.nn.functional, "gumbel_softmax", gumbel_softmax)
            self.theirs = model(
                torch.from_numpy(self.wave),
                attention_mask=attention,
                mask_time_indices=torch.from_numpy(self.masked),
                sampled_negative_indices=torch.from_numpy(negatives),
                output_hidden_states=True,
            )
        self.theirs.loss.backward()
        numpy = lambda x: x.detach().numpy()
        named = dict(model.named_parameters())
        pairs = huggingface.tensor_pairs(self.config, "wav2vec2.", "pretraining")
        self.tensors = {n: numpy(p) for n, p in named.items()}
        self.params, _ = import_tensors(self.tensors, pairs, self.config, source="parameters")
        self.theirs_gradient, _ = import_tensors(
            {n: numpy(p.grad) for n, p in named.items()}, pairs, self.config, source="gradients"
        )
        self.theirs_hidden = [numpy(h) for h in self.theirs.hidden_states]

    def run_ours(self):
        rows = len(self.wave)
        batch = dict(wave=self.wave, num_samples=self.lengths, weight=np.ones(rows, np.float32), row=np.arange(rows))
        gumbel = np.take_along_axis(self.gumbel, self.slots[:, :, None, None], axis=1)
        draws = wav2vec2.Draws(self.masked, self.slots, self.used, gumbel, self.distractors, None)
        draws = jax.tree.map(jnp.asarray, draws)
        model = wav2vec2.Wav2Vec2(self.config)

        def loss(params):
            prediction = model.apply({"params": params}, batch, draws, jnp.float32(TEMPERATURE))
            total, metrics = wav2vec2.objective(self.config, batch, draws=draws, prediction=prediction)
            return total.total, (metrics, prediction)

        def hidden(params):
            encode = lambda m: m.encoder(batch["wave"], batch["num_samples"], masked=draws.masked, collect=True)
            return model.apply({"params": params}, method=encode)

        both = jax.jit(jax.value_and_grad(loss, has_aux=True))
        (self.total, (self.metrics, self.prediction)), self.gradient = both(self.params)
        self.loss = lambda params: both(params)[0][0]
        self.encoded = jax.jit(hidden)(self.params)


@functools.cache
def case_of(name: str) -> Case:
    return Case(*CASES[name])


@pytest.fixture(params=CASES)
def case(request) -> Case:
    try:
        import torch  # noqa: F401
        import transformers  # noqa: F401
    except ImportError:
        pytest.skip(MISSING)
    return case_of(request.param)


def relative_error(ours, theirs) -> float:
    return float(np.max(np.abs(np.asarray(ours) - theirs)) / np.max(np.abs(theirs)))


def test_parity_of_all_hidden_states(case):
    ours = np.asarray(case.encoded.hidden)
    assert len(ours) == len(case.theirs_hidden) == case.config.encoder.layers + 1
    for layer, (a, b) in enumerate(zip(ours, case.theirs_hidden, strict=True)):
        assert relative_error(a[case.valid], b[case.valid]) < 1e-4, f"hidden state {layer}"


def test_parity_of_projections(case):
    for name, ours, theirs in (
        ("project_hid", case.prediction.context, case.theirs.projected_states),
        ("project_q", case.prediction.targets, case.theirs.projected_quantized_states),
    ):
        theirs = np.take_along_axis(theirs.detach().numpy(), case.slots[..., None], axis=1)
        assert relative_error(np.asarray(ours)[case.used], theirs[case.used]) < 1e-4, name


def test_parity_of_the_loss_and_its_terms(case):
    assert case.metrics["loss"].weight == case.masked.sum()
    assert relative_error(case.total, case.theirs.loss.item()) < 1e-4
    assert relative_error(case.metrics["loss"].total, case.theirs.contrastive_loss.item()) < 1e-4
    assert relative_error(case.metrics["diversity"].total, case.theirs.diversity_loss.item()) < 1e-4
    assert relative_error(case.metrics["prob_perplexity"].value(), case.theirs.codevector_perplexity.item()) < 1e-4
    assert len({tuple(c) for c in np.asarray(case.prediction.quantized.chosen)[case.used]}) > 5, "the codes are dead"


def test_parity_of_every_gradient(case):
    ours, theirs = flatten(case.gradient), flatten(case.theirs_gradient)
    assert ours.keys() == theirs.keys()
    largest = max(float(np.abs(g).max()) for g in theirs.values())
    for name, gradient in theirs.items():
        if name.endswith("key.bias"):  # 0 in exact arithmetic: softmax does not see a shift of all keys
            assert np.abs(ours[name]).max() < 1e-5 * largest, name
        else:
            assert relative_error(ours[name], gradient) < 1e-3, name


def test_parity_holds_for_a_pretraining_that_goes_on_from_the_converted_model(case, tmp_path):
    """A folder as transformers writes it -> convert -> init.run: the very parameters of the loss that is compared."""
    from safetensors.numpy import save_file

    (tmp_path / "hf").mkdir()
    save_file(
        {name: np.ascontiguousarray(x) for name, x in case.tensors.items()}, tmp_path / "hf" / "model.safetensors"
    )
    told = case.theirs_config.to_dict() | {"architectures": ["Wav2Vec2ForPreTraining"]}
    (tmp_path / "hf" / "config.json").write_text(json.dumps(told))
    (tmp_path / "hf" / "preprocessor_config.json").write_text(json.dumps({"do_normalize": False}))
    assert convert.main(["--from", str(tmp_path / "hf"), "--to", str(tmp_path / "run")]) == 0
    config = case.config.copy_and_resolve_references()
    with config.unlocked():
        config.init = dict(run=str(tmp_path / "run"), step="", fresh=())
    begun = warm_params(config, case.params, WAVE)
    jax.tree.map(np.testing.assert_array_equal, begun, case.params)
    assert relative_error(case.loss(begun), case.theirs.loss.item()) < 1e-4
