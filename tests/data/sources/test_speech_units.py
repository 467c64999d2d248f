"""Laws of the source of speech units: rows are what was written, and folders that do not fit are refused."""

import json

import numpy as np
import pytest
from code_folders import HOP, cut, edit, write_codes, write_units

from w2v_jax.core.cli import UserError
from w2v_jax.data import open_source
from w2v_jax.data.index import Form, ReadError
from w2v_jax.data.io import corpus
from w2v_jax.data.sources import speech_units, synthetic

LENGTHS = (1.0, 2.5, 0.4, 1.7)


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "units"


def test_rows_are_the_written_units(folder):
    written = write_units(folder, LENGTHS, groups=2, layer=6)
    source = open_source("speech_units", folder)
    assert source.form == Form("units", "int32", HOP, "abc 6", 2)
    assert source.index.ids.tolist() == ["u0", "u1", "u2", "u3"]
    for row, found in enumerate(written):
        assert source.read(row, 0, 10**9).dtype == np.int32
        np.testing.assert_array_equal(source.read(row, 0, 10**9), found)
        np.testing.assert_array_equal(source.read(row, 5 * HOP + 7, 5 * HOP + 300), found[5:10])


def test_several_folders_of_one_model_are_one_source_and_short_recordings_are_skipped(tmp_path):
    write_units(tmp_path / "a", LENGTHS)
    write_units(tmp_path / "b", (0.3,), ids=["other"])
    source = open_source("speech_units", (tmp_path / "a", tmp_path / "b"), min_seconds=0.35)
    assert source.index.ids.tolist() == ["u0", "u1", "u2", "u3"]
    assert len(source.index.skipped) == 1
    write_units(tmp_path / "c", LENGTHS, model="xyz")
    with pytest.raises(UserError, match="different models or layers"):
        open_source("speech_units", (tmp_path / "a", tmp_path / "c"))


DAMAGES = {
    "a lost part": (lambda d: (d / "part-00001.npy").unlink(), r"part-00001\.npy is missing"),
    "a part cut short": (lambda d: cut(d / "part-00000.npy"), r"part-00000\.npy is truncated"),
    "an unfinished folder": (lambda d: edit(d / "extract.json", complete=False), "not finished"),
    "no metadata": (lambda d: (d / "extract.json").unlink(), r"extract\.json is missing"),
    "metadata without numbers": (
        lambda d: edit(d / "extract.json", codes="many"),
        "needs model, hop, groups and codes",
    ),
    "another number of sets": (lambda d: edit(d / "extract.json", groups=3), "not units of 3 label sets"),
    "fewer clusters": (lambda d: edit(d / "extract.json", codes=7), "has unit .* there are 7 clusters"),
    "floats": (lambda d: np.save(d / "part-00001.npy", np.zeros((85, 1), np.float32)), "float32 .* not units"),
    "units without repeats": (lambda d: edit(d / "extract.json", collapse=True), "without their repeats"),
    "cuts without a length": (lambda d: edit(d / "extract.json", cut="recipe"), "needs model, hop, groups"),
    "features": (lambda d: edit(d / "extract.json", what="hidden"), r"holds features \(hidden\).*w2v_jax.units label"),
}


@pytest.mark.parametrize(("damage", "message"), DAMAGES.values(), ids=DAMAGES.keys())
def test_folders_that_do_not_hold_units_are_clear_errors(folder, damage, message):
    write_units(folder, LENGTHS)
    damage(folder)
    with pytest.raises(UserError, match=message):
        open_source("speech_units", folder)


def test_units_are_no_codes_and_no_features_and_codes_are_no_units(tmp_path):
    write_units(tmp_path / "units", LENGTHS)
    write_codes(tmp_path / "codes")
    for name in ("codes", "features"):
        with pytest.raises(UserError, match=rf"holds units, and data.name={name} needs {name}: extract them"):
            open_source(name, tmp_path / "units")
    with pytest.raises(UserError, match="holds codes, and data.name=speech_units needs units: label the recordings"):
        open_source("speech_units", tmp_path / "codes")


def test_folders_without_recordings_and_missing_folders_are_clear_errors(folder, tmp_path):
    write_units(folder, ())
    with pytest.raises(UserError, match="holds no recording"):
        open_source("speech_units", folder)
    with pytest.raises(UserError, match="does not exist"):
        open_source("speech_units", tmp_path / "nowhere")


def test_unit_that_is_no_cluster_is_found_when_it_is_read_at_the_latest(folder, monkeypatch):
    written = write_units(folder, LENGTHS)
    monkeypatch.setattr(speech_units, "CHECKED", 0)
    edit(folder / "extract.json", codes=int(written[0].max()))
    source = open_source("speech_units", folder)
    with pytest.raises(ReadError, match=rf"unit \d+ of {written[0].max()} clusters"):
        source.read(0, 0, 10**9)


def test_self_made_units_are_the_letters_of_the_corpus(home, tmp_path):
    speech_units.write_letters(tmp_path / "letters", [home])
    before = (tmp_path / "letters" / "extract.json").stat().st_mtime_ns
    speech_units.write_letters(tmp_path / "letters", [home])
    assert (tmp_path / "letters" / "extract.json").stat().st_mtime_ns == before, "it is made once"
    source = open_source("speech_units", tmp_path / "letters")
    records = corpus.read_manifest(home)
    assert source.index.ids.tolist() == [record["id"] for record in records]
    assert json.loads((tmp_path / "letters" / "extract.json").read_text())["method"] == "letters"
    assert source.clusters == 21 and source.form.hop == 320
    alphabet = f" {synthetic.ALPHABET}"
    for row, record in enumerate(records):
        found = source.read(row, 0, 10**9)[:, 0]
        assert abs(len(found) * 320 - record["frames"]) <= 320
        assert found[0] == found[-1] == 0, "a recording begins and ends with a pause"
        changes = np.flatnonzero(np.diff(found)) + 1
        spoken = "".join(alphabet[unit] for unit in found[np.concatenate([[0], changes])])
        assert spoken.strip().replace(" ", "") == record["text"].replace(" ", ""), "no letter is shorter than a frame"
