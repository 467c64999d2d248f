"""Laws of the join of recordings and their speech units: what belongs together, and what is left out and why."""

import dataclasses
import types

import numpy as np
import pytest
from code_folders import write_units

from w2v_jax.core.cli import UserError
from w2v_jax.core.units import NO_TARGET
from w2v_jax.data import open_source, targets
from w2v_jax.data.batch_plan import eval_plan, train_plan
from w2v_jax.data.index import WAVE, ReadError, Row, TooFew, make_index, subset
from w2v_jax.data.kept.columns import Column
from w2v_jax.data.pipeline import batches

RATE = 16_000
LENGTHS = (1.0, 2.5, 0.8, 1.7, 3.0, 1.2)


class Ramps:
    """A source without files: sample k of row i is (k + 1) / 2^20, so that a crop says where it begins."""

    form = WAVE

    def __init__(self, seconds, ids=None):
        ids = [f"u{i}" for i in range(len(seconds))] if ids is None else ids
        self.index = make_index(
            Row(id, f"{id}.wav", 0, int(s * RATE), RATE) for id, s in zip(ids, seconds, strict=True)
        )

    def read(self, row, start, length):
        stop = min(start + length, int(self.index.num_samples[row]))
        return ((np.arange(start, stop) + 1) / 2**20).astype(np.float32)


def section(folder, **changes):
    settings = dict(targets=(str(folder),), targets_model="", targets_hop=320, hours=0.0, name="folder", root=())
    return types.SimpleNamespace(**{**settings, "eval_root": (), **changes})


def numbered(folder, hop, seconds=LENGTHS, **changes):
    """A folder whose units count up from the number of their recording, so that a unit says where it stands."""
    written = write_units(folder, seconds, hop=hop, clusters=2000, **changes)
    for part in sorted(folder.glob("part-*.npy")):
        array, first = np.load(part), 0
        for row in range(3 * int(part.stem[-5:]), min(3 * int(part.stem[-5:]) + 3, len(seconds))):
            count = len(written[row])
            array[first : first + count] = (100 * row + np.arange(count))[:, None]
            first += count
        np.save(part, array)
    return targets.open_targets(section(folder, targets_hop=hop), (2000,) * changes.get("groups", 1))


def test_each_corpus_has_units_of_its_own_by_the_ids_without_its_label(tmp_path):
    """Two corpora with the same ids, the first of them without the units of one recording."""
    folders = [numbered(tmp_path / name, 320, seconds) for name, seconds in (("a", LENGTHS[:5]), ("b", LENGTHS))]
    source = Ramps(2 * LENGTHS, [f"{label}/u{i}" for label in ("a", "b/de") for i in range(6)])
    source.index.groups[6:] = 1
    joined, found = targets.with_targets(source, {"a": folders[0], "b/de": folders[1]}, where="data.root")
    expected = [*(f"a/u{i}" for i in range(5)), *(f"b/de/u{i}" for i in range(6))]
    assert joined.index.ids.tolist() == expected and found.groups.tolist() == [0] * 5 + [1] * 6
    (skip,) = joined.index.skipped
    assert "a/u5" in skip.path and skip.reason == targets.NO_UNITS
    for row, id in enumerate(expected):
        assert found.read(row, 0, 6_400)[0, 0] == 100 * int(id[-1])
    assert len(found.digest()) == 2


def test_corpora_with_label_sets_in_different_numbers_of_folders_are_named(tmp_path):
    two = numbered(tmp_path / "a", 320) + numbered(tmp_path / "b", 320)
    one = numbered(tmp_path / "c", 320, groups=2)
    source = Ramps(2 * LENGTHS, [f"{label}/u{i}" for label in ("read", "many/de") for i in range(6)])
    source.index.groups[6:] = 1
    for folders in ({"read": two, "many/de": one}, {"read": one, "many/de": two}):
        counts = ", ".join(f"{label} {len(of_group)}" for label, of_group in folders.items())
        with pytest.raises(UserError, match=rf"data.corpora: targets .* different numbers of folders \({counts}\)"):
            targets.with_targets(source, folders, where="data.root")


@pytest.mark.parametrize("hop", [320, 160])
def test_units_of_a_crop_are_those_of_its_audio(tmp_path, hop):
    """Both loaders; rows in another order than the units; crops anywhere; rows that end early."""
    folders, order = numbered(tmp_path / "units", hop), [4, 1, 0, 2, 5, 3]
    source, found = targets.with_targets(subset(Ramps(LENGTHS), np.array(order)), folders, where="data.root")
    lengths = source.index.num_samples
    plan = train_plan(lengths, seed=0, bucket_samples=[RATE, 2 * RATE], units=1, unit_seconds=4.0)
    both = [list(batches(source, plan, stop=6, targets=found, loader=name)) for name in ("threads", "tfdata")]
    cropped = 0
    for (batch, info), (batch2, _) in zip(*both, strict=True):
        planned = plan.step(info.step)
        np.testing.assert_array_equal(batch["targets"], batch2["targets"])
        assert batch["targets"].shape == (len(planned.rows), 1, planned.length // hop)
        assert batch["targets"].dtype == np.int32
        for wave, labels, row in zip(batch["wave"], batch["targets"][:, 0], planned.rows, strict=True):
            start = round(float(wave[0]) * 2**20) - 1
            cropped += start > 0
            first = (start + hop // 2) // hop
            total = int(LENGTHS[order[row]] * RATE) // hop
            count = min(len(labels), total - first)
            np.testing.assert_array_equal(labels[:count], 100 * order[row] + first + np.arange(count))
            assert (labels[count:] == NO_TARGET).all()
    assert cropped


def test_units_of_recordings_that_were_cut_stay_in_time(tmp_path):
    """Pieces of a second have 49 frames, as in HuBERT's recipe: the fiftieth is lost, and the next piece is in time."""
    cut = dict(cut="recipe", max_samples=RATE, field=400)
    frames = 49 + 49 + 24
    write_units(tmp_path / "units", (frames * 0.02,), clusters=2000, **cut)
    np.save(tmp_path / "units" / "part-00000.npy", np.arange(frames, dtype=np.uint16)[:, None])
    (folder,) = targets.open_targets(section(tmp_path / "units"), (2000,))
    source, found = targets.with_targets(Ramps((2.5,)), (folder,), where="data.root")
    assert len(source.index) == 1, "2.44 s of units were made of 2.5 s of audio"
    np.testing.assert_array_equal(found.read(0, RATE, 3200)[0], 49 + np.arange(10))
    np.testing.assert_array_equal(found.read(0, RATE - 960, 1920)[0], [47, 48, 48, 49, 50, 51])
    np.testing.assert_array_equal(found.read(0, 2 * RATE + 7000, 1920)[0], [120, 121, *[NO_TARGET] * 4])
    np.testing.assert_array_equal(found.read(0, 5 * RATE, 640)[0], [NO_TARGET] * 2)


def test_fillers_and_rows_that_cannot_be_read_have_no_units(tmp_path):
    folders = numbered(tmp_path / "units", 320)
    source, found = targets.with_targets(Ramps(LENGTHS), folders, where="data.root")
    plan = eval_plan(source.index.num_samples, bucket_samples=[3 * RATE], units=8, unit_seconds=3.0, max_hours=0)
    paths = folders[0].index.paths.tolist()
    folders[0].index = dataclasses.replace(folders[0].index, paths=Column.of([*paths[:5], "nowhere", *paths[6:]]))
    folders[0].layouts["nowhere"] = (128, "<u2")
    ((batch, info),) = batches(source, plan, targets=found, loader="threads")
    assert [failed.id for failed in info.failed] == ["u5"] and "unreadable file" in info.failed[0].reason
    assert batch["weight"].tolist() == [1] * 5 + [0] * 3
    assert (batch["targets"][5:] == NO_TARGET).all() and not batch["wave"][5:].any()
    assert (batch["targets"][:5, 0, 0] == 100 * np.arange(5)).all()


def test_sets_of_several_folders_stand_one_after_the_other(tmp_path):
    first = numbered(tmp_path / "a", 320, groups=2)
    write_units(tmp_path / "b", LENGTHS[::-1], ids=[f"u{i}" for i in range(6)][::-1], clusters=7, seed=5)
    both = (str(tmp_path / "a"), str(tmp_path / "b"))
    folders = targets.open_targets(section("", targets=both), (2000, 2000, 7))
    source, found = targets.with_targets(Ramps(LENGTHS), folders, where="data.root")
    labels = found.read(4, 3200, 16_000)
    assert labels.shape == found.shape(16_000) == (3, 50)
    np.testing.assert_array_equal(labels[:2], np.stack([400 + 10 + np.arange(50)] * 2))
    units = open_source("speech_units", tmp_path / "b")
    np.testing.assert_array_equal(labels[2], units.read(units.index.ids.tolist().index("u4"), 3200, 16_000)[:, 0])
    assert len(found.digest()) == 2 and len(first) == 1
    with pytest.raises(UserError, match=r"label sets of \(2000, 2000, 7\) clusters: --config.loss.classes=2000,2000,7"):
        targets.open_targets(section("", targets=both), (2000,))


def test_recordings_without_units_of_their_length_are_left_out_and_named(tmp_path):
    folders = numbered(tmp_path / "units", 320)
    longer = [*LENGTHS[:2], LENGTHS[2] + 0.09, LENGTHS[3] + 0.2, LENGTHS[4] - 0.3, 2.0]
    ids = ["u0", "u1", "u2", "u3", "u4", "unknown"]
    source, found = targets.with_targets(Ramps(longer, ids), folders, where="data.root")
    assert source.index.ids.tolist() == ["u0", "u1", "u2"]
    assert [skip.reason for skip in source.index.skipped] == [
        "speech units of another length: 1.90 s of audio, 1.70 s of units",
        "speech units of another length: 2.70 s of audio, 3.00 s of units",
        "no speech units",
    ]
    assert found.read(2, 0, 320)[0, 0] == 200
    with pytest.raises(TooFew, match=r"data.root: none of the 6 recordings .*called 'x0', the first one there 'u0'"):
        targets.with_targets(Ramps(LENGTHS, [f"x{i}" for i in range(6)]), folders, where="data.root")


def test_no_recordings_to_score_are_no_mistake(tmp_path):
    source, found = targets.with_targets(Ramps(()), numbered(tmp_path / "units", 320), where="data.eval_share=0")
    assert len(source.index) == 0 and found.rows.shape == (0, 1)


def test_units_of_other_clusters_rate_or_model_than_the_config_names_are_refused(tmp_path):
    write_units(tmp_path / "units", LENGTHS, clusters=50)
    open_ = lambda classes=(50,), **changes: targets.open_targets(section(tmp_path / "units", **changes), classes)
    assert open_(targets_model="abc")[0].clusters == 50
    with pytest.raises(UserError, match=r"loss.classes=\(500,\), and .*units has label sets of \(50,\) clusters"):
        open_((500,))
    with pytest.raises(UserError, match=r"data.targets_hop=160, and the units of .* are 320 samples apart"):
        open_(targets_hop=160)
    with pytest.raises(UserError, match=r"made by the model abc, and data.targets_model=xyz"):
        open_(targets_model="xyz")
    with pytest.raises(UserError, match=r"data.targets is empty.*w2v_jax.units label"):
        open_(targets=())
    with pytest.raises(UserError, match=r"data.targets: .*'nowhere' does not exist"):
        open_(targets=("nowhere",))


def test_a_self_made_corpus_has_its_letters_for_units(home, tmp_path):
    roots = dict(root=(str(home / "train"),), eval_root=(str(home / "dev"),))
    for named in ((), (str(tmp_path / "named"),)):
        data = section("", targets=named, hours=0.01, name="synthetic", **roots)
        folders = targets.open_targets(data, (21,))
        assert (tmp_path / "named" if named else home.with_name("corpus-letters")).is_dir()
        for part in ("train", "dev"):
            audio = open_source("folder", home / part)
            source, found = targets.with_targets(audio, folders, where="data.root")
            assert len(source.index) == len(audio.index) and not source.index.skipped
            labels = found.read(0, 0, int(source.index.num_samples[0]))[0]
            assert (labels >= 0).all() and labels.max() < 21


def test_reading_a_unit_that_is_no_cluster_fails_the_row(tmp_path, monkeypatch):
    monkeypatch.setattr("w2v_jax.data.sources.speech_units.CHECKED", 0)
    write_units(tmp_path / "units", LENGTHS, clusters=50)
    (folder,) = targets.open_targets(section(tmp_path / "units"), (50,))
    folder.clusters = 3
    _, found = targets.with_targets(Ramps(LENGTHS), (folder,), where="data.root")
    with pytest.raises(ReadError, match="of 3 clusters"):
        found.read(0, 0, 16_000)
