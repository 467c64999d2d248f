"""Laws of the pipeline: both loaders give the same bits, hosts share a batch exactly, a bad file never ends a run."""

import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from w2v_jax.core.cli import UserError
from w2v_jax.data import open_source, pipeline
from w2v_jax.data.batch_plan import eval_plan, train_plan
from w2v_jax.data.index import WAVE, Form, ReadError, Row, make_index
from w2v_jax.data.pipeline import batches
from w2v_jax.data.transcripts import Alphabet, Labels

RATE = 16000
ARGUMENTS = {"bucket_samples": [RATE, 2 * RATE], "units": 4, "unit_seconds": 2.0}
LOADERS = ["threads", "tfdata"]


class Ramps:
    """A source without files: sample k of row i is i + k / 2^20. Rows in `bad` cannot be read."""

    form = WAVE

    def __init__(self, lengths, bad=()):
        self.bad = bad
        self.index = make_index(Row(f"id-{i}", f"path-{i}", 0, int(n), RATE) for i, n in enumerate(lengths))

    def read(self, row, start, length):
        if row in self.bad:
            raise ReadError(f"no row {row}")
        stop = min(start + length, int(self.index.num_samples[row]))
        return (row + np.arange(start, stop) / 2**20).astype(np.float32)


class Codes(Ramps):
    """A source of codes, one per 320 samples: code k of row i is 1000 i + k + 1."""

    form = Form("codes", "int32", 320)

    def __init__(self, frames):
        super().__init__([320 * n for n in frames])

    def read(self, row, start, length):
        first, stop = start // 320, min((start // 320) + length // 320, int(self.index.num_samples[row]) // 320)
        return (1000 * row + np.arange(first, stop) + 1).astype(np.int32)


def ramps(bad=()):
    return Ramps([RATE // 2] * 8 + [RATE + 5] * 10 + [3 * RATE] * 6, bad)


def plan_of(source):
    return train_plan(source.index.num_samples, seed=0, **ARGUMENTS)


def assert_same(one, other):
    for (batch, info), (batch2, info2) in zip(one, other, strict=True):
        assert info == info2
        assert batch.keys() == batch2.keys()
        for name in batch:
            assert batch[name].dtype == batch2[name].dtype
            np.testing.assert_array_equal(batch[name], batch2[name])


@pytest.mark.parametrize("normalize", [False, True])
def test_tfdata_equals_threads_bit_for_bit_on_files(tmp_path, audio, normalize):
    kinds = [("wav", {}), ("flac", {}), ("ogg", {"format": "OGG", "subtype": "VORBIS"}), ("mp3", {"format": "MP3"})]
    for i, rate in enumerate((16000, 8000, 44100)):
        for name, kind in kinds:
            audio(tmp_path / f"{i}.{name}", 0.7 + i, rate, channels=1 + i % 2, seed=i, **kind)
    path = tmp_path / "bad.flac"
    audio(path, 2.0)
    content = bytearray(path.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 2000] = bytes(2000)
    path.write_bytes(content)
    source = open_source("folder", tmp_path)
    plan = plan_of(source)
    read = [list(batches(source, plan, start=1, stop=13, units=(3, 0), normalize=normalize, loader=x)) for x in LOADERS]
    assert_same(*read)
    failed = [f for _, info in read[0] for f in info.failed]
    assert failed
    assert {(f.id, f.path) for f in failed} == {("bad", str(path))}


@pytest.mark.parametrize("loader", LOADERS)
def test_batch_holds_what_the_plan_says(loader):
    source = ramps()
    plan = plan_of(source)
    for step, (batch, info) in enumerate(batches(source, plan, stop=12, loader=loader)):
        planned = plan.step(step)
        assert (info.step, info.epoch, info.length) == (step, planned.epoch, planned.length)
        assert info.ids == [f"id-{row}" for row in planned.rows]
        assert info.starts == planned.starts.tolist()
        assert {k: v.dtype.name for k, v in batch.items()} == {
            "wave": "float32",
            "num_samples": "int32",
            "weight": "float32",
            "row": "int32",
        }
        assert batch["wave"].shape == (len(planned.rows), planned.length)
        np.testing.assert_array_equal(batch["row"], np.arange(len(planned.rows)))
        np.testing.assert_array_equal(batch["weight"], 1)
        for i, (row, start) in enumerate(zip(planned.rows, planned.starts, strict=True)):
            wave = source.read(row, start, planned.length)
            assert batch["num_samples"][i] == len(wave)
            np.testing.assert_array_equal(batch["wave"][i, : len(wave)], wave)
            assert not batch["wave"][i, len(wave) :].any()


@pytest.mark.parametrize("loader", LOADERS)
def test_batch_of_codes_has_their_form_and_counts_16_khz_samples(loader):
    source = Codes([20] * 8 + [49] * 10 + [333] * 6)
    plan = plan_of(source)
    cropped = False
    for step, (batch, info) in enumerate(batches(source, plan, stop=12, loader=loader)):
        planned = plan.step(step)
        assert list(batch) == ["codes", "num_samples", "weight", "row"]
        assert (info.length, info.starts) == (planned.length, planned.starts.tolist())
        assert batch["codes"].dtype == np.int32
        assert batch["codes"].shape == (len(planned.rows), planned.length // 320)
        for i, (row, start) in enumerate(zip(planned.rows, planned.starts, strict=True)):
            codes = source.read(row, start, planned.length)
            assert batch["num_samples"][i] == 320 * len(codes)
            np.testing.assert_array_equal(batch["codes"][i, : len(codes)], codes)
            assert not batch["codes"][i, len(codes) :].any()
            cropped |= start > 0
    assert cropped


def test_codes_cannot_be_normalized():
    source = Codes([50] * 8)
    with pytest.raises(UserError, match="data.normalize is for audio; the data are codes"):
        batches(source, plan_of(source), normalize=True, loader="threads")


@pytest.mark.parametrize("loader", LOADERS)
@settings(max_examples=15, deadline=None)
@given(hosts_of_units=st.lists(st.integers(0, 3), min_size=4, max_size=4), start=st.integers(0, 40))
@example(hosts_of_units=[0, 1, 0, 2], start=3)
def test_hosts_together_read_what_one_host_would(loader, hosts_of_units, start):
    """Any number of hosts with any units each, in any order, from any step on."""
    source = ramps()
    plan, stop = plan_of(source), start + 4
    alone = list(batches(source, plan, start=start, stop=stop, loader=loader))
    shares = [tuple(np.flatnonzero(np.equal(hosts_of_units, host))[::-1].tolist()) for host in range(4)]
    hosts = [
        list(batches(source, plan, start=start, stop=stop, units=units, loader=loader))
        for units in filter(None, shares)
    ]
    for step, (batch, info) in enumerate(alone):
        for name in batch:
            parts = np.concatenate([host[step][0][name] for host in hosts])
            rows = np.concatenate([host[step][0]["row"] for host in hosts])
            np.testing.assert_array_equal(parts[np.argsort(rows)], batch[name])
        assert sorted(id for host in hosts for id in host[step][1].ids) == sorted(info.ids)


@pytest.mark.parametrize("loader", LOADERS)
def test_reading_from_a_later_step_gives_the_same_batches(loader):
    source = ramps()
    walked = list(batches(source, plan_of(source), stop=10, loader=loader))
    assert_same(walked[7:], list(batches(source, plan_of(source), start=7, stop=10, loader=loader)))


@pytest.mark.parametrize("loader", LOADERS)
def test_unreadable_rows_are_zeros_without_weight_and_are_named(loader):
    source = ramps(bad={2, 9})
    plan = plan_of(source)
    named = set()
    for batch, info in batches(source, plan, stop=12, loader=loader):
        bad = np.isin(plan.step(info.step).rows, list(source.bad))
        np.testing.assert_array_equal(batch["weight"], ~bad)
        assert (batch["num_samples"][bad] == 0).all()
        assert not batch["wave"][bad].any()
        assert (batch["num_samples"][~bad] > 0).all()
        assert len(info.failed) == bad.sum()
        named.update(info.failed)
    assert named == {(f"id-{i}", f"path-{i}", f"no row {i}") for i in source.bad}


@pytest.mark.parametrize("loader", LOADERS)
def test_faults_of_any_kind_and_nan_from_a_source_fail_only_their_row(loader):
    class Odd(Ramps):
        def read(self, row, start, length):
            if row == 0:
                raise ZeroDivisionError("codec")
            wave = super().read(row, start, length)
            return {1: wave * np.nan, 2: wave[:0]}.get(row, wave)

    source = Odd([RATE // 2] * 8)
    (batch, info), *_ = batches(source, plan_of(source), stop=1, loader=loader)
    assert sorted(f.reason for f in info.failed) == [
        "NaN or infinite samples",
        "ZeroDivisionError: codec",
        "no samples",
    ]
    assert np.isfinite(batch["wave"]).all()


@pytest.mark.parametrize("normalize", [False, True])
def test_rows_in_which_nothing_can_be_heard_are_named_and_used(normalize):
    class Quiet(Ramps):
        def read(self, row, start, length):
            wave = super().read(row, start, length)
            noise = np.random.default_rng(row).standard_normal(len(wave)).astype(np.float32)
            return {0: 0 * wave, 1: 0 * wave + 0.3, 2: 1e-5 * noise, 3: 3e-3 * noise}.get(row, wave)

    source = Quiet([RATE // 2] * 8)
    (batch, info), *_ = batches(source, plan_of(source), stop=1, normalize=normalize)
    assert sorted(info.silent) == ["path-0", "path-1", "path-2"]
    assert batch["weight"].all() and info.failed == []


def test_a_disk_that_went_away_stops_the_run_with_a_message():
    source = Ramps([RATE] * 8, bad=range(8))
    with pytest.raises(UserError, match=r"recordings could not be read.*path-\d \(no row \d\)"):
        for _ in batches(source, plan_of(source), loader="threads"):
            pass


@pytest.mark.parametrize("loader", LOADERS)
def test_evaluation_ends_and_its_filler_rows_have_no_weight(loader):
    source = ramps()
    plan = eval_plan(source.index.num_samples, max_hours=0, **ARGUMENTS)
    read = list(batches(source, plan, loader=loader))
    assert len(read) == plan.steps
    ids = [id for _, info in read for id in info.ids if id]
    assert sorted(ids) == sorted(source.index.ids)
    assert sum(batch["weight"].sum() for batch, _ in read) == len(source.index)
    assert not any(info.failed for _, info in read)


def test_normalization_uses_the_whole_recording_before_the_crop(monkeypatch):
    monkeypatch.setattr(pipeline, "STATISTICS_CHUNK", 7000)  # several chunks per recording
    source = ramps()
    plan = plan_of(source)
    cropped = False
    for batch, info in batches(source, plan, stop=12, normalize=True, loader="threads"):
        planned = plan.step(info.step)
        for i, (row, start) in enumerate(zip(planned.rows, planned.starts, strict=True)):
            whole = source.read(row, 0, 10**9).astype(np.float64)
            wanted = (whole - whole.mean()) / np.sqrt(whole.var() + 1e-5)
            wanted = wanted[start : start + planned.length]
            cropped |= len(whole) > planned.length
            np.testing.assert_allclose(batch["wave"][i, : len(wanted)], wanted, rtol=0, atol=1e-5)
            assert not batch["wave"][i, len(wanted) :].any()
    assert cropped


def test_reading_ahead_is_bounded_and_stops_with_the_iterator():
    class Counted(Ramps):
        reads = 0

        def read(self, row, start, length):
            self.reads += 1
            return super().read(row, start, length)

    source = Counted([RATE] * 8)
    running = batches(source, plan_of(source), loader="threads", workers=2)
    next(running)
    running.close()
    assert source.reads <= 8 * (pipeline.PREFETCH_STEPS + 1)
    after = source.reads
    assert list(running) == []
    assert source.reads == after


def test_unknown_loader_and_missing_tensorflow_are_clear_errors(monkeypatch):
    source = ramps()
    with pytest.raises(UserError, match="tfdata and threads"):
        batches(source, plan_of(source), loader="torch")
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    with pytest.raises(UserError, match=r"pip install tensorflow-cpu.*--config\.data\.loader=threads"):
        batches(source, plan_of(source), loader="tfdata")


@pytest.mark.parametrize("loader", LOADERS)
def test_a_program_that_leaves_in_the_middle_exits_at_once(loader):
    code = f"""
        import numpy as np, sys
        sys.path.insert(0, {os.path.dirname(__file__)!r})
        from test_pipeline import plan_of, ramps
        from w2v_jax.data.pipeline import batches
        source = ramps()
        running = batches(source, plan_of(source), loader={loader!r})
        print(next(running)[1].step)
    """
    result = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=120)
    assert (result.returncode, result.stdout.split()) == (0, ["0"]), result.stderr


@pytest.mark.parametrize("loader", pipeline.LOADERS)
def test_labels_stand_beside_their_rows(loader):
    """Also in the rows that fill up the last batch, which have none."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(3000, 16_000, 11)
    index = make_index(Row(f"r{i}", f"r{i}", 0, int(n), 16_000, "", "") for i, n in enumerate(lengths))

    class Waves:
        form = WAVE

        def __init__(self):
            self.index = index

        def read(self, row, start, length):
            return np.full(min(length, int(lengths[row])), row, np.float32)

    ids = [np.arange(1, 2 + row % 4, dtype=np.int32) for row in range(11)]
    alphabet = Alphabet(("<blank>", "|", "a", "b", "c"), "letters")
    plan = eval_plan(index.num_samples, bucket_samples=[8000, 16_000], units=2, unit_seconds=2.0, max_hours=0)
    seen = []
    for batch, info in batches(Waves(), plan, labels=Labels(ids, 9.0, alphabet), loader=loader):
        assert batch["tokens"].shape == (len(info.ids), -(-info.length * 9 // 16_000))
        for i, id in enumerate(info.ids):
            if id:
                row = int(id[1:])
                seen.append(row)
                assert batch["wave"][i, 0] == row and batch["num_tokens"][i] == len(ids[row])
                np.testing.assert_array_equal(batch["tokens"][i, : len(ids[row])], ids[row])
            else:
                assert batch["num_tokens"][i] == 0 and not batch["tokens"][i].any()
    assert sorted(seen) == list(range(11))
