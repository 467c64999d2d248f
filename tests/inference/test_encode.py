"""Laws of encoding: what a run gives for a recording depends on that recording and on nothing beside it."""

import dataclasses
import json
import shutil
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from w2v_jax.core.cli import UserError
from w2v_jax.data.index import WAVE, Form, ReadError, Row, make_index, subset
from w2v_jax.inference.encode import SHORTEST_SECONDS, Pieces, _bucket_lengths, encode
from w2v_jax.inference.run import open_run
from w2v_jax.ops.frames import num_frames
from w2v_jax.training.sharding import row_mesh

TOLERANCE: dict[str, Any] = dict(rtol=0, atol=2e-5)


class Waves:
    """A source of given waves; those in `bad` cannot be read."""

    form = WAVE

    def __init__(self, lengths, bad=()):
        rng = np.random.default_rng(0)
        self.waves = [rng.normal(size=n).astype(np.float32) for n in lengths]
        self.bad = bad
        self.index = make_index(Row(f"id-{i}", f"path-{i}", 0, n, 16000) for i, n in enumerate(lengths))

    def read(self, row, start, length):
        if row in self.bad:
            raise ReadError("bad file")
        return self.waves[row][start : start + length]


def assert_same(one, other):
    assert one.keys() == other.keys()
    for key in one:
        assert one[key].dtype == other[key].dtype
        if key == "codes":
            np.testing.assert_array_equal(one[key], other[key])
        else:
            np.testing.assert_allclose(one[key], other[key], **TOLERANCE)


def test_features_are_those_of_predict_on_the_recording_alone(run, source):
    found = dict(encode(run, source, range(4)))
    assert sorted(found) == [0, 1, 2, 3]
    for row in (0, 1):
        wave = source.read(row, 0, 10**9)[None]
        batch = dict(wave=wave, num_samples=np.array([wave.shape[1]], np.int32))
        batch |= dict(weight=np.ones(1, np.float32), row=np.zeros(1, np.int32))
        alone = jax.jit(run.method.predict)(run.params, run.extra, batch)
        frames = num_frames(wave.shape[1], run.config.encoder.conv_layers)
        assert {key: x.shape for key, x in found[row].items()} == {
            "local": (frames, 32),
            "context": (frames, 32),
            "hidden": (3, frames, 32),
            "codes": (frames, 2),
        }
        single = {key: np.asarray(alone[key]) for key in found[row]}
        assert_same(found[row], {key: x[:, 0] if key == "hidden" else x[0] for key, x in single.items()})


def test_batches_and_padding_change_nothing(run, source):
    together = dict(encode(run, source, range(6)))
    for row in (2, 0):
        ((number, alone),) = encode(run, source, [row], batch_seconds=1.0, max_seconds=40.0)
        assert number == row
        assert_same(alone, together[row])


@pytest.mark.skipif(jax.device_count() != 8, reason="needs the eight CPU devices of conftest.py")
def test_devices_share_a_batch_and_change_nothing(run, source):
    one = dict(encode(run, source, range(6)))
    several = run.over(row_mesh(jax.local_devices()))
    assert several.devices == 8 and run.devices == 1
    assert all(x.is_fully_replicated and len(x.devices()) == 8 for x in jax.tree.leaves(several.params))
    shared = dict(encode(several, source, range(6)))
    assert sorted(shared) == sorted(one)
    for row in one:
        assert_same(shared[row], one[row])
    wave = np.zeros((8, 2_000), np.float32)
    ones = dict(
        num_samples=np.full(8, 2_000, np.int32), weight=np.ones(8, np.float32), row=np.arange(8, dtype=np.int32)
    )
    found = several.predictor(("context",), None)({"wave": wave, **ones})["context"]
    assert {shard.data.shape[0] for shard in found.addressable_shards} == {1}, "a row on each"


def test_one_layer_and_only_what_is_asked_for(run, source):
    (_, whole), *_ = encode(run, source, [0])
    (_, one), *_ = encode(run, source, [0], keys=("hidden",), layer=1)
    assert_same(one, {"hidden": whole["hidden"][1]})
    assert set(next(encode(run, source, [0], keys=["codes"]))[1]) == {"codes"}


def test_long_recordings_are_cut_into_equal_pieces_without_losing_a_frame(run):
    source = Waves([16000 * 7 + 123, 5000, 16000 * 3 + 80, 16000 * 4 + 79])
    cut, whole = dict(encode(run, source, max_seconds=2.0)), dict(encode(run, source))
    for row in range(4):
        assert {k: x.shape for k, x in cut[row].items()} == {k: x.shape for k, x in whole[row].items()}
    assert_same(cut[1], whole[1])
    pieces = Pieces(source, np.arange(4), field=400, hop=320, max_samples=32000)
    assert pieces.counts == {0: 4, 1: 1, 2: 2, 3: 3}
    for row, number in pieces.counts.items():
        own = pieces.rows == row
        frames = [num_frames(int(n), run.config.encoder.conv_layers) for n in pieces.index.num_samples[own]]
        assert sum(frames) == len(whole[row]["local"])
        assert len(set(frames[:-1])) <= 1
        assert max(pieces.index.num_samples[own]) <= 32000 + 320
        joined = np.full(int(source.index.num_samples[row]), np.nan, np.float32)
        for piece in np.flatnonzero(own):
            start = pieces.starts[piece]
            wave = pieces.read(int(piece), 0, 10**9)
            joined[start : start + len(wave)] = wave
        assert number == own.sum()
        np.testing.assert_array_equal(joined, source.waves[row])


def test_unreadable_and_too_short_recordings_are_named_once_and_end_nothing(run, capsys):
    source, skipped = Waves([16000 * 5, 399, 16000, 400, 8000], bad={0, 4}), []
    found = dict(encode(run, source, max_seconds=2.0, on_skip=lambda row, why: skipped.append((row, why))))
    assert sorted(found) == [2, 3]
    assert len(found[3]["codes"]) == 1
    assert sorted(skipped) == [(0, "bad file"), (1, "too short for one frame: 399 samples of 400"), (4, "bad file")]
    assert list(encode(run, source, [1])) == []
    assert "skipped path-1: too short" in capsys.readouterr().err


def test_silence_and_one_frame_give_finite_features(run):
    source = Waves([16000, 400])
    source.waves = [0 * wave for wave in source.waves]
    for row, found in encode(run, source):
        assert all(np.isfinite(x).all() for x in found.values())
        assert len(found["local"]) == (49, 1)[row]


def test_a_run_that_normalizes_is_given_normalized_recordings(run, tiny_run, tmp_path):
    shutil.copytree(run.path, tmp_path / "run")
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    config["data"]["normalize"] = True
    (tmp_path / "run" / "config.json").write_text(json.dumps(config))
    quiet, loud = Waves([20000, 70000]), Waves([20000, 70000])
    loud.waves = [5 * wave + 1 for wave in loud.waves]
    normalizing = open_run(tmp_path / "run")
    for found, same in zip(encode(normalizing, quiet), encode(normalizing, loud), strict=True):
        assert found[0] == same[0]
        np.testing.assert_allclose(found[1]["local"], same[1]["local"], rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"keys": ["code"]}, "has no code; it gives local, context, hidden, codes"),
        ({"layer": 3}, "layer 3: .* has 3 hidden states, 0 to 2"),
        ({"layer": -1}, "layer -1"),
    ],
)
def test_what_a_method_does_not_give_is_refused(run, source, arguments, message):
    with pytest.raises(UserError, match=message):
        encode(run, source, **arguments)


def test_a_run_over_audio_refuses_codes(run, source):
    codes = dataclasses.replace(subset(source, np.arange(2)), form=Form("codes", "int32", 320, "abc"))  # type: ignore
    with pytest.raises(UserError, match="reads audio, but the source holds codes"):
        encode(run, codes)


@pytest.mark.parametrize("margin", [0, 1, 1600, 10**9])
def test_pieces_with_a_margin_give_every_frame_once_and_in_order(margin):
    field, hop, longest = 400, 320, 16000
    source = Waves([100_003, 16000, 40_000, 400])
    pieces = Pieces(source, np.arange(4), field=field, hop=hop, max_samples=longest, margin=margin)
    assert (pieces.index.num_samples <= longest + hop).all()
    for row, total in enumerate((source.index.num_samples - field) // hop + 1):
        own = pieces.rows == row
        first = pieces.starts[own] // hop + pieces.leads[own]
        given = [n for start, size in zip(first, pieces.sizes[own], strict=True) for n in range(start, start + size)]
        assert given == list(range(total))
    beside = pieces.leads[(pieces.rows == 0) & (pieces.starts > 0)]
    assert (beside == min(-(-margin // hop), ((longest - field) // hop) // 2)).all()


def test_batches_have_a_few_lengths_down_to_about_a_second():
    for longest in (16000 * 80, 16000 * 3, 400):
        lengths = _bucket_lengths(longest)
        assert lengths[0] == longest and lengths == sorted(set(lengths), reverse=True)
        assert all(short > 0.65 * long for long, short in zip(lengths, lengths[1:]))
        assert lengths[-1] < 2 * SHORTEST_SECONDS * 16000 and len(lengths) < 15


@pytest.mark.parametrize(
    ("lengths", "advice"),
    [
        ({}, "160 s.*EXHAUSTED.* --batch-seconds=80$"),
        ({"batch_seconds": 1.0}, "80 s.*EXHAUSTED.* --max-seconds=40$"),
        ({"batch_seconds": 1.0, "flags": ("--batch-seconds",)}, "80 s.*EXHAUSTED.* with JAX_PLATFORMS=cpu$"),
        ({"devices": 2, "batch_seconds": 400.0}, "200 s.*EXHAUSTED.* --batch-seconds=200$"),
        ({"devices": 2}, "80 s.*EXHAUSTED.* --max-seconds=40$"),
    ],
)
def test_a_device_without_memory_names_the_setting_to_lower_and_the_value(run, source, monkeypatch, lengths, advice):
    without_memory = lambda batch: jnp.zeros((1 << 46,)).block_until_ready()
    monkeypatch.setattr(type(run), "predictor", lambda self, keys, layer: without_memory)
    monkeypatch.setattr(type(run), "devices", lengths.pop("devices", 1))
    with pytest.raises(UserError, match=advice):
        dict(encode(run, source, range(2), **({"batch_seconds": 160.0} | lengths)))


def test_pieces_without_overlap_are_as_recordings_of_their_own(run):
    source = Waves([16000 * 5 + 300, 16000, 16000 * 2 + 399])
    pieces = Pieces(source, np.arange(3), field=400, hop=320, max_samples=32000, overlap=False)
    assert pieces.counts == {0: 3, 1: 1, 2: 1}
    assert pieces.index.num_samples.tolist() == [32000, 32000, 16300, 16000, 32000]
    assert pieces.starts.tolist() == [0, 32000, 64000, 0, 0]
    found = dict(encode(run, source, keys=("local",), max_seconds=2.0, overlap=False))
    for row in range(3):
        own = np.flatnonzero(pieces.rows == row)
        frames = [num_frames(int(pieces.index.num_samples[i]), run.config.encoder.conv_layers) for i in own]
        assert pieces.sizes[own].tolist() == frames and len(found[row]["local"]) == sum(frames)


def test_a_function_may_follow_the_model_on_the_device(run, source):
    plain = dict(encode(run, source, range(3), keys=("context",)))
    then = lambda arrays: {"sum": arrays["context"].sum(axis=-1, keepdims=True)}
    for row, arrays in encode(run, source, range(3), keys=("context",), then=then):
        assert arrays.keys() == {"sum"}
        np.testing.assert_allclose(arrays["sum"][:, 0], plain[row]["context"].sum(axis=1), rtol=0, atol=2e-4)
