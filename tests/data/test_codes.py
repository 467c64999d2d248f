"""Laws of the code source: rows are the ids of the written codes, and folders that do not fit are refused."""

import json
import os
import shutil
import types

import numpy as np
import pytest

from w2v_jax.config import CODE_UNKNOWN, UserError
from w2v_jax.data import codes, open_source, synthetic
from w2v_jax.data.extracted import Utterance, part_path, read_about, read_parts, tf_layout, write_about, write_part
from w2v_jax.data.index import Form, ReadError
from w2v_jax.data.pipeline import batches
from w2v_jax.data.plan import train_plan
from w2v_jax.data.vocabulary import Counter, Vocabulary

HOP = 320


def write_codes(folder, lengths=((40, 75), (120, 33, 64)), *, model="abc", unseen=(), seed=0, **changes):
    """A folder of codes [.. 2] of 20, one tuple of utterance lengths per part; pairs `unseen` join no vocabulary."""
    rng, counter, number = np.random.default_rng(seed), Counter(2, 20), 0
    folder.mkdir(parents=True)
    written = []
    for part, frames in enumerate(lengths):
        found = []
        for n in frames:
            pairs = rng.integers(0, 4, (n, 2))
            counter.add(pairs)
            if unseen:
                pairs[n // 2] = unseen
            written.append(pairs)
            found.append((pairs, Utterance(f"u{number}", 0, 0, n * HOP / 16000, "s", f"text {number}")))
            number += 1
        write_part(part_path(folder, part), found, width=2, dtype="<u2")
    counter.vocabulary(model).save(folder / "vocabulary.json")
    about = dict(what="codes", model=model, hop=HOP, groups=2, codes=20, parts=len(lengths), complete=True)
    write_about(folder, about | changes)
    return written


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


def test_tensorflow_reads_a_part_as_it_is(folder):
    tf = pytest.importorskip("tensorflow")
    written = write_codes(folder)
    for part, codes_of_part in zip(read_parts(folder, read_about(folder)), (written[:2], written[2:]), strict=True):
        row_bytes, header_bytes = tf_layout(part)
        rows = tf.data.FixedLengthRecordDataset(str(part.path), row_bytes, header_bytes)
        read = np.stack([tf.io.decode_raw(row, tf.uint16).numpy() for row in rows])
        np.testing.assert_array_equal(read, np.concatenate(codes_of_part))
        np.testing.assert_array_equal(read, np.load(part.path))


def cut(path, count=10):
    os.truncate(path, path.stat().st_size - count)


def edit(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


DAMAGES = {
    "a truncated array": (lambda d: cut(d / "part-00001.npy"), r"part-00001\.npy is truncated"),
    "a truncated header": (lambda d: os.truncate(d / "part-00000.npy", 20), r"part-00000\.npy is truncated"),
    "an empty array": (lambda d: os.truncate(d / "part-00000.npy", 0), r"part-00000\.npy holds 0 frames"),
    "a lost array": (lambda d: (d / "part-00001.npy").unlink(), r"part-00001\.npy is missing"),
    "lost lines": (lambda d: (d / "part-00001.jsonl").unlink(), r"part-00001\.jsonl is not readable"),
    "truncated lines": (lambda d: cut(d / "part-00001.jsonl", 40), r"part-00001\.jsonl is not readable"),
    "a line too few": (
        lambda d: (d / "part-00001.jsonl").write_text((d / "part-00001.jsonl").read_text().split("\n", 1)[1]),
        "holds 217 frames, its .jsonl 97",
    ),
    "another model's vocabulary": (lambda d: edit(d / "vocabulary.json", model="xyz"), "belongs to the model xyz"),
    "a lost vocabulary": (lambda d: (d / "vocabulary.json").unlink(), r"vocabulary\.json is missing"),
    "features": (lambda d: edit(d / "extract.json", what="hidden"), r"holds features \(hidden\)"),
    "an unfinished extraction": (lambda d: edit(d / "extract.json", complete=False), "is not finished"),
    "no extraction": (lambda d: (d / "extract.json").unlink(), r"extract\.json is missing"),
    "unreadable settings": (lambda d: (d / "extract.json").write_text("{"), "not readable"),
    "another number of codes": (lambda d: edit(d / "extract.json", codes=7), "other groups or codes"),
    "floats": (
        lambda d: np.save(d / "part-00000.npy", np.zeros((115, 2), np.float32)),
        "float32 .* not codes of 2 groups",
    ),
}


@pytest.mark.parametrize(("damage", "message"), DAMAGES.values(), ids=DAMAGES.keys())
def test_damaged_or_foreign_folders_are_clear_errors(folder, damage, message):
    write_codes(folder)
    damage(folder)
    with pytest.raises(UserError, match=message):
        open_source("codes", folder)


def test_a_file_that_is_cut_after_the_start_fails_only_its_rows(folder):
    write_codes(folder)
    source = open_source("codes", folder)
    cut(folder / "part-00001.npy", 100)
    assert len(source.read(2, 0, 10**9)) == 120
    with pytest.raises(ReadError, match="truncated: 39 of 64 frames"):
        source.read(4, 0, 10**9)
    (folder / "part-00001.npy").unlink()
    with pytest.raises(ReadError, match="unreadable file"):
        source.read(2, 0, HOP)


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
    text, ends = synthetic.letters(1, 0)
    assert (text, ends.tolist()) == (synthetic.utterance(1, 0)[1], synthetic.utterance(1, 0)[2].tolist())
