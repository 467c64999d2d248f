"""Laws of random batches: they are what a method reads, and FLOP on them are those of the published sizes."""

from __future__ import annotations

import pathlib

import numpy as np
import pytest

from w2v_jax.core.config import load, with_outputs
from w2v_jax.core.units import FIRST_CODE
from w2v_jax.profiling import random_batch

CONFIGS = sorted(
    f"configs/{path.name}:tiny" for path in (pathlib.Path(__file__).parents[2] / "configs").glob("*.py")
) + ["configs/vq_wav2vec.py:kmeans_tiny", "configs/acoustic_frozen.py:features_demo"]


def counted(name, rows, seconds):
    config = random_batch.with_alphabet(load(name, [("data.unit_seconds", str(rows * seconds))]))
    return random_batch.forward_flops(config, random_batch.random_batch(config, rows, round(seconds * 16_000)))


GFLOP_PER_SECOND = {  # forward, per second of audio; attention at crops of 15.6 s (Base) and 20 s (Large)
    "configs/w2v2_base.py": (15.6, (4.9, 0.5, 1.4, 8.5), 15.3),
    "configs/w2v2_large.py": (20.0, (4.9, 0.9, 4.9, 30.2), 41.0),
}


@pytest.mark.parametrize("config", GFLOP_PER_SECOND)
def test_flops_by_part_are_those_of_the_published_sizes(config):
    seconds, parts, total = GFLOP_PER_SECOND[config]
    found = {name: x / seconds / 1e9 for name, x in counted(config, 1, seconds).items()}
    names = ("feature encoder", "projection and positional convolution", "attention", "Transformer layers")
    assert [found.pop(name) for name in names] == pytest.approx(parts, abs=0.06)
    assert sum(found.values()) < 0.2
    assert sum(parts) + sum(found.values()) == pytest.approx(total, rel=0.02)


def test_flops_grow_with_rows_and_attention_with_the_square_of_the_length():
    one, two = (counted("configs/w2v2_base.py:demo", rows, 3.0) for rows in (1, 2))
    assert two == {name: 2 * count for name, count in one.items()}
    longer = counted("configs/w2v2_base.py:demo", 1, 6.0)
    assert longer["attention"] / one["attention"] == pytest.approx(4, rel=0.03)
    assert longer["Transformer layers"] / one["Transformer layers"] == pytest.approx(2, rel=0.03)


def test_flops_of_matrix_products_are_counted_one_by_one():
    rows, frames, slots = 2, 99, 70  # 7 spans of 10 frames at most
    parts = counted("configs/w2v2_base.py:tiny", rows, 2.0)
    width, mlp, layers = 32, 64, 2
    dense = [(width, width)] * 4 + [(width, mlp), (mlp, width)]
    assert parts["Transformer layers"] == 2 * rows * frames * layers * sum(a * b for a, b in dense)
    assert parts["attention"] == 2 * rows * layers * 2 * frames * frames * width
    assert parts["quantizer"] == 2 * rows * slots * (width * 32 + 2 * 16 * 8)
    assert parts["predictions and loss"] == 2 * rows * slots * (16 * 16 + width * 16 + slots * 16)


TRAINED = {  # FLOP of a step over those of its forward pass; what reads the waveform forms no gradient for it
    "configs/w2v2_base.py": {"feature encoder": (2.9, 3), "Transformer layers": (3, 3), "attention": (3, 3)},
    "configs/finetune.py": {"feature encoder": (1, 1), "Transformer layers": (3, 3), "acoustic model and head": (3, 3)},
    "configs/acoustic_frozen.py": {"feature encoder": (1, 1), "Transformer layers": (1, 1)},
    "configs/wav2vec_large.py": {"feature encoder": (2.9, 3), "context network": (3, 3.1)},
}


@pytest.mark.parametrize("config", TRAINED)
def test_a_step_is_three_forward_passes_of_what_is_trained(config):
    """Less, in the mean, what LayerDrop drops."""
    loaded = random_batch.unfrozen(random_batch.with_alphabet(load(config, [("data.unit_seconds", "4.0")])))
    batch = random_batch.random_batch(loaded, 2, 32_000)
    forward, step_ = random_batch.forward_flops(loaded, batch), random_batch.step_flops(loaded, batch)
    assert forward.keys() == step_.keys()
    for part, (least, most) in TRAINED[config].items():
        drop = loaded.encoder.get("layer_drop", 0.0) if part in ("Transformer layers", "attention") else 0.0
        assert least - 1e-9 <= step_[part] / forward[part] / (1 - drop) <= most + 1e-9, part


def test_the_first_updates_of_a_fine_tuning_are_forward_passes_and_the_gradient_of_the_head():
    loaded = random_batch.with_alphabet(load("configs/finetune.py", [("data.unit_seconds", "4.0")]))
    batch = random_batch.random_batch(loaded, 2, 32_000)
    assert loaded.encoder.frozen_steps > 0
    forward, first = random_batch.forward_flops(loaded, batch), random_batch.step_flops(loaded, batch)
    kept = 1 - loaded.encoder.layer_drop
    assert first["feature encoder"] == forward["feature encoder"]
    assert all(first[part] == kept * forward[part] for part in ("attention", "Transformer layers"))
    assert first["acoustic model and head"] == 2 * forward["acoustic model and head"]


@pytest.mark.parametrize("config", CONFIGS)
def test_every_method_can_be_counted_and_none_of_its_products_is_free(config):
    seconds = 2.0
    parts = counted(config, 2, seconds)
    assert all(count > 0 for count in parts.values()) and len(parts) >= 2


def test_a_batch_holds_the_elements_and_transcripts_that_the_config_reads():
    for name, key, shape in (
        ("w2v2_base.py:tiny", "wave", (3, 32_000)),
        ("bert_codes_small.py:tiny", "codes", None),
        ("acoustic_frozen.py:features_demo", "features", None),
    ):
        config = random_batch.with_alphabet(load(f"configs/{name}"))
        batch = random_batch.random_batch(config, 3, 32_000)
        shape = shape or (3, 32_000 // config.encoder.hop)
        assert batch[key].shape[:2] == shape and batch["num_samples"].tolist() == [32_000] * 3
        assert ("tokens" in batch) == name.startswith("acoustic")
        again = random_batch.random_batch(config, 3, 32_000)
        assert all(np.array_equal(batch[each], again[each]) for each in batch), "the seed decides"


def test_random_units_are_clusters_of_each_label_set_at_their_rate():
    config = load("configs/hubert_base.py:tiny", [("loss.classes", "7,30"), ("data.targets_hop", "160")])
    units = random_batch.random_batch(config, 8, 32_000)["targets"]
    assert units.shape == (8, 2, 200) and units.dtype == np.int32 and units.min() == 0
    assert units.max(axis=(0, 2)).tolist() == [6, 29]


def test_random_codes_and_letters_are_none_of_the_special_ones():
    config = load("configs/bert_codes_small.py:tiny")
    codes = random_batch.random_batch(config, 4, 64_000)["codes"]
    assert codes.min() == FIRST_CODE and codes.max() == config.data.vocab_size - 1
    config = random_batch.with_alphabet(load("configs/finetune.py:tiny"))
    batch = random_batch.random_batch(config, 64, 160_000)
    assert config.acoustic.outputs == random_batch.TOKENS
    assert batch["tokens"].min() == 1 and batch["tokens"].max() == random_batch.TOKENS - 1
    assert (batch["num_tokens"] == batch["tokens"].shape[1]).all()


def test_an_alphabet_and_trained_updates_are_given_only_to_what_lacks_them():
    plain = load("configs/w2v2_base.py:tiny")
    assert random_batch.with_alphabet(plain) == plain == random_batch.unfrozen(plain)
    config = load("configs/finetune.py:tiny", [("encoder.frozen_steps", "7")])
    assert random_batch.unfrozen(config).encoder.frozen_steps == 0 and config.encoder.frozen_steps == 7
    own = with_outputs(config, 5)
    assert random_batch.with_alphabet(own).acoustic.outputs == 5
