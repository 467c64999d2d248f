"""The stages of reading: the same crops in every loop, whose costs are told apart. No test depends on the time."""

from __future__ import annotations

import numpy as np
import pytest
import soundfile
from waves import Waves, coloured

from w2v_jax.core.config import load
from w2v_jax.data import open_source
from w2v_jax.data.batch_plan import FILLER, train_plan
from w2v_jax.data.draws import OFF
from w2v_jax.profiling import input_stages
from w2v_jax.profiling.input_stages import Cost, Crop, input_rates, input_text, limit_of, stages_of, work_of

LAW = {
    "bucket_seconds": "(1.0,)",
    "unit_seconds": 2.0,
    "batch_hours": 4.0 / 3600,
    "min_seconds": 0.5,
    "eval_share": 0.2,
}


@pytest.fixture
def config(tmp_path, monkeypatch):
    """A training on nine recordings at 16 kHz and three at 8, whose loops are short."""
    monkeypatch.setattr(input_stages, "WARM_UP_SECONDS", 4.0)
    monkeypatch.setattr(input_stages, "LOOP_SECONDS", 0.0)
    rng = np.random.default_rng(0)
    for i in range(12):
        rate = 8000 if i % 4 == 3 else 16_000
        (tmp_path / f"speaker-{i}").mkdir()
        soundfile.write(tmp_path / f"speaker-{i}" / f"{i}.flac", coloured(rng, rate + 100 * i), rate)
    data = [("data.name", "folder"), ("data.root", str(tmp_path)), ("data.loader", "threads")]
    return load("configs/cpc.py:tiny", data + [(f"data.{key}", str(value)) for key, value in LAW.items()])


def test_every_loop_reads_what_the_steps_read(config, monkeypatch):
    read = {name: set() for name in ("decoded", "bare", "bytes")}
    for function, name in (("_decoded", "decoded"), ("_by_soundfile", "bare"), ("_read_bytes", "bytes")):
        plain = getattr(input_stages, function)
        monkeypatch.setattr(
            input_stages,
            function,
            lambda index, crop, plain=plain, name=name: (read[name].add(crop), plain(index, crop))[1],
        )
    result = input_rates(config, 1)
    assert len(read["decoded"]) > 3 and read["decoded"] == read["bare"] >= read["bytes"]
    assert set(result["loops"]) == {"batches", "crops", "at_16_khz", "decoded", "bare"}
    assert set(result["stages"]) == set(input_stages.STAGES) and result["unreadable"] == 0
    assert result["rates_hz"] == [8000, 16_000] and result["bytes"]["bytes_per_second"] > 0
    assert result["audio_hours"] == pytest.approx(result["rows"] / 3600, rel=0.1), "rows of a second"
    text = input_text(result)
    assert "of the rate of soundfile alone" in text and "resample" in text and "cores for 12,000 hours" in text


def test_crops_of_files_are_those_of_the_source(config):
    source = open_source("folder", tuple(config.data.root))
    for row in range(len(source.index)):
        crop = Crop(row, 1600, 8000)
        own = input_stages._resampled(source.index, crop)
        theirs = source.read(*crop)
        assert own.shape == theirs.shape
        if source.index.rates[row] == 16_000:
            assert np.array_equal(own, theirs) and np.array_equal(input_stages._by_soundfile(source.index, crop), own)
        else:  # the source reads a margin, so that the ends are those of the whole
            assert np.corrcoef(own[200:-200], theirs[200:-200])[0, 1] > 0.99


def test_rows_that_cannot_be_read_are_counted(config, monkeypatch):
    def torn(index, crop):
        raise OSError("torn")

    monkeypatch.setattr(input_stages, "_by_soundfile", torn)
    assert "share_of_bare" not in input_rates(config, 1), "a rate without all rows is no rate"
    monkeypatch.setattr(input_stages, "_read_bytes", torn)
    result = input_rates(config, 1)
    assert result["bytes"] is None and set(result["stages"]) == {"crop", "batch"}
    assert "read" not in input_text(result).split()


def test_codes_have_no_loops_of_files(tmp_path, monkeypatch):
    monkeypatch.setattr(input_stages, "LOOP_SECONDS", 0.0)
    codes = [("data.root", str(tmp_path / "codes")), ("data.loader", "threads")]
    result = input_rates(load("configs/bert_codes_base.py:tiny", codes), 1)
    assert set(result["loops"]) == {"batches", "crops"} and set(result["stages"]) == {"crop", "batch"}
    assert result["bytes"] is None and "share_of_bare" not in result and result["rows"] > 3
    assert "from codes" in input_text(result)


def test_work_is_the_first_steps():
    index = Waves([16_000, 20_000, 40_000, 9_000, 16_000]).index
    plan = train_plan(
        index.num_samples,
        bucket_samples=[16_000],
        unit_seconds=2.0,
        units=2,
        seed=0,
        crop=True,
        augment=OFF,
        groups=None,
    )
    work = work_of(plan, index, 7.0)
    steps = [plan.step(number) for number in range(work.stop)]
    rows = [row for step in steps for row in step.rows if row != FILLER]
    assert [crop.row for crop in work.crops] == rows and work.stop == 2
    assert all(crop.start + crop.length <= index.num_samples[crop.row] for crop in work.crops)
    assert work.seconds == sum(min(1.0, index.num_samples[row] / 16_000) for row in rows)


def test_a_stage_costs_what_its_loop_takes_longer():
    costs = {"decoded": Cost(1, 2.0), "at_16_khz": Cost(3, 5.0), "crops": Cost(3, 4.9), "batches": Cost(4, 6.0)}
    stages = stages_of(costs, hours=1.0)
    assert stages["decode"] == {"hours_per_hour_and_core": 1800.0, "share": pytest.approx(1 / 3)}
    assert stages["resample"]["share"] == 0.5 and stages["crop"]["share"] == 0, "noise makes no negative cost"
    assert stages["batch"]["hours_per_hour_and_core"] == pytest.approx(3600 / 1.1)


@pytest.mark.parametrize(
    ("changed", "limit"),
    [
        ({}, "arithmetic: 70% of it is decode: FLAC"),
        ({"stages": {"resample": {"share": 0.6}, "decode": {"share": 0.4}}}, "60% of it is resample: store"),
        ({"busy_cores": 1.5}, "waiting: 1.5 of 4 cores are busy"),
        ({"bytes": {"bytes_per_second": 2e7, "hours_per_hour": 500.0}}, "20 MB per second are 500 hours"),
        ({"bytes": None, "threads": 2, "busy_cores": 1.9}, "arithmetic"),
    ],
)
def test_the_limit_is_named(changed, limit):
    result = {"bytes": {"bytes_per_second": 2e9, "hours_per_hour": 50_000.0}, "hours_per_hour": 4000.0, "threads": 8}
    result |= {"cores": 4, "busy_cores": 3.9, "stages": {"decode": {"share": 0.7}, "batch": {"share": 0.3}}}
    assert limit in limit_of(result | changed)
