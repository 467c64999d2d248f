"""Laws of the code source: rows are the ids of the written codes, and folders that do not fit are refused."""

import shutil
import types

import numpy as np
import pytest
from code_folders import HOP, edit, write_codes

from w2v_jax.core.cli import UserError
from w2v_jax.core.units import CODE_UNKNOWN
from w2v_jax.data import open_source
from w2v_jax.data.batch_plan import train_plan
from w2v_jax.data.code_vocabulary import Vocabulary
from w2v_jax.data.index import Form
from w2v_jax.data.pipeline import batches
from w2v_jax.data.sources import codes, synthetic


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "codes"


def section(**changes):
    return types.SimpleNamespace(**{"min_seconds": 0.0, "hours": 0.0, "vocab_size": 0, **changes})


def test_rows_are_the_ids_of_the_written_codes(folder):
    written = write_codes(folder)
    source = open_source("codes", folder)
    vocabulary = Vocabulary.load(folder / "vocabulary.json")
    assert source.form == Form("codes", "int32", HOP, vocabulary.digest)
    assert source.index.ids.tolist() == [f"u{i}" for i in range(5)]
    assert source.index.transcripts.tolist() == [f"text {i}" for i in range(5)]
    assert source.index.num_samples.tolist() == [n * HOP for n in (40, 75, 120, 33, 64)]
    for row, pairs in enumerate(written):
        ids = source.read(row, 0, 10**9)
        assert ids.dtype == np.int32
        np.testing.assert_array_equal(ids, vocabulary.encode(pairs))
        np.testing.assert_array_equal(source.read(row, 10 * HOP + 7, 5 * HOP + 300), vocabulary.encode(pairs[10:15]))
        assert len(source.read(row, 30 * HOP, 50 * HOP)) == min(len(pairs) - 30, 50)


def test_pairs_that_the_vocabulary_lacks_are_unknown(folder):
    write_codes(folder, unseen=(19, 0))
    source = open_source("codes", folder)
    for row in range(5):
        ids = source.read(row, 0, 10**9)
        assert (np.flatnonzero(ids == CODE_UNKNOWN) == [len(ids) // 2]).all()


def test_several_folders_of_one_vocabulary_are_one_source(tmp_path):
    write_codes(tmp_path / "a")
    write_codes(tmp_path / "b", ((50,),), seed=1)
    shutil.copy(tmp_path / "a" / "vocabulary.json", tmp_path / "b")
    both = open_source("codes", (tmp_path / "a", tmp_path / "b"))
    assert len(both.index) == 6
    assert len(both.read(5, 0, 10**9)) == 50
    assert both.index.ids[5] == "u0#2"


@pytest.mark.parametrize("loader", ["threads", "tfdata"])
def test_training_plan_runs_over_codes_with_both_loaders(folder, loader):
    written = write_codes(folder)
    source = open_source("codes", folder)
    vocabulary = Vocabulary.load(folder / "vocabulary.json")
    plan = train_plan(source.index.num_samples, seed=0, bucket_samples=[50 * HOP, 100 * HOP], units=1, unit_seconds=2.0)
    cropped = False
    for batch, info in batches(source, plan, stop=8, loader=loader):
        planned = plan.step(info.step)
        assert batch["codes"].shape == (len(planned.rows), planned.length // HOP)
        for i, (row, start) in enumerate(zip(planned.rows, planned.starts, strict=True)):
            ids = vocabulary.encode(written[row][start // HOP :][: planned.length // HOP])
            cropped |= start > 0
            assert batch["num_samples"][i] == len(ids) * HOP
            np.testing.assert_array_equal(batch["codes"][i, : len(ids)], ids)
            assert not batch["codes"][i, len(ids) :].any()
    assert cropped


DAMAGES = {
    "another model's vocabulary": (lambda d: edit(d / "vocabulary.json", model="xyz"), "belongs to the model xyz"),
    "a lost vocabulary": (lambda d: (d / "vocabulary.json").unlink(), r"vocabulary\.json is missing"),
    "another number of codes": (lambda d: edit(d / "extract.json", codes=7), "other groups or codes"),
    "floats": (
        lambda d: np.save(d / "part-00000.npy", np.zeros((115, 2), np.float32)),
        "float32 .* not codes of 2 groups",
    ),
}


@pytest.mark.parametrize(("damage", "message"), DAMAGES.values(), ids=DAMAGES.keys())
def test_folders_that_do_not_hold_the_codes_of_a_vocabulary_are_clear_errors(folder, damage, message):
    write_codes(folder)
    damage(folder)
    with pytest.raises(UserError, match=message):
        open_source("codes", folder)


def test_the_size_of_the_embedding_must_hold_the_vocabulary(folder):
    write_codes(folder)
    size = Vocabulary.load(folder / "vocabulary.json").size
    for enough in (0, size, size + 100):
        assert len(codes.make(section(vocab_size=enough), folder).index) == 5
    with pytest.raises(UserError, match=rf"has {size} ids: --config\.data\.vocab_size={size}"):
        codes.make(section(vocab_size=size - 1), (str(folder),))


def test_folders_of_different_vocabularies_do_not_mix(tmp_path):
    write_codes(tmp_path / "a")
    write_codes(tmp_path / "b", seed=5)
    with pytest.raises(UserError, match="different models or vocabularies"):
        open_source("codes", (tmp_path / "a", tmp_path / "b"))


def test_folders_without_utterances_and_missing_folders_are_clear_errors(folder, tmp_path):
    write_codes(folder, ((),))
    with pytest.raises(UserError, match="holds no utterance"):
        open_source("codes", folder)
    with pytest.raises(UserError, match="does not exist"):
        open_source("codes", tmp_path / "nowhere")
    with pytest.raises(UserError, match="is a file"):
        open_source("codes", folder / "extract.json")


def test_short_utterances_are_skipped_and_named(folder):
    write_codes(folder)
    source = open_source("codes", folder, min_seconds=1.0)
    assert source.index.ids.tolist() == ["u1", "u2", "u4"]
    assert len(source.index.skipped) == 2


def test_self_made_codes_are_made_once_and_are_the_same_everywhere(tmp_path):
    one, two = (codes.make(section(hours=0.01, vocab_size=256), tmp_path / name) for name in "ab")
    assert one.index.fingerprint() == two.index.fingerprint()
    assert 0.01 <= one.index.hours < 0.02
    assert one.vocabulary.size <= 256
    before = (tmp_path / "a" / "part-00000.npy").stat().st_mtime_ns
    assert codes.make(section(hours=0.5), tmp_path / "a").index.hours == one.index.hours
    assert (tmp_path / "a" / "part-00000.npy").stat().st_mtime_ns == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]
    with pytest.raises(UserError, match="does not exist"):
        codes.make(section(), tmp_path / "c")


def test_self_made_codes_say_letter_and_place_in_the_letter(tmp_path):
    source = codes.make(section(hours=0.01), tmp_path / "letters")
    written = np.load(tmp_path / "letters" / "part-00000.npy")
    alphabet = " " + synthetic.ALPHABET
    first = written[: int(source.index.num_samples[0]) // 160]
    changes = np.flatnonzero(np.diff(first[:, 0]) != 0)
    spoken = "".join(alphabet[c] for c in first[np.concatenate([[0], changes + 1]), 0])
    assert spoken == source.index.transcripts[0]
    for letter in np.split(first[:, 1].astype(int), changes + 1):
        assert (np.diff(letter) >= 0).all()
        assert letter.max() <= 3
    text, ends = synthetic.letter_times(1, 0)
    assert (text, ends.tolist()) == (synthetic.utterance(1, 0)[1], synthetic.utterance(1, 0)[2].tolist())
