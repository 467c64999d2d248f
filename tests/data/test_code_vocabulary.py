"""Laws of the vocabulary: ids by falling count, everything else unknown, and files that are what they say."""

import json

import numpy as np
import pytest

from w2v_jax.core.cli import UserError
from w2v_jax.core.units import CODE_UNKNOWN, FIRST_CODE
from w2v_jax.data.code_vocabulary import CodeCounter, Vocabulary, code_text, entropy_of


def vocabulary_of(*codes, size=10, groups=2):
    counter = CodeCounter(groups, size)
    for part in codes:
        counter.add(np.array(part))
    return counter.vocabulary("model", 7)


FRAMES = [[3, 9], [0, 1], [3, 9], [1, 0], [3, 9], [1, 0], [0, 2]]


def test_types_stand_by_falling_count_and_ties_by_code():
    vocabulary = vocabulary_of(FRAMES[:3], FRAMES[3:])
    assert vocabulary.types.tolist() == [[3, 9], [1, 0], [0, 1], [0, 2]]
    assert vocabulary.counts.tolist() == [3, 2, 1, 1]
    assert (vocabulary.size, vocabulary.groups, vocabulary.codes) == (7, 2, 10)
    assert (vocabulary.model, vocabulary.step) == ("model", 7)


def test_codes_become_ids_and_unseen_pairs_unknown():
    vocabulary = vocabulary_of(FRAMES)
    codes = np.array([[0, 2], [3, 9], [9, 3], [1, 0], [0, 0], [0, 19], [4, -1]])
    ids = vocabulary.encode(codes)
    first, unknown = FIRST_CODE, CODE_UNKNOWN
    assert ids.dtype == np.int32
    assert ids.tolist() == [first + 3, first, unknown, first + 1, unknown, unknown, unknown]
    np.testing.assert_array_equal(vocabulary.encode(codes.reshape(1, 7, 2).astype(np.uint16)[:, :4]), ids[None, :4])
    assert vocabulary.encode(np.zeros((0, 2), np.uint16)).shape == (0,)
    assert vocabulary_of().encode(codes).tolist() == [unknown] * 7


def test_every_type_is_found_again():
    codes = np.random.default_rng(0).integers(0, 320, (5000, 2))
    vocabulary = vocabulary_of(codes, size=320)
    ids = vocabulary.encode(codes)
    np.testing.assert_array_equal(vocabulary.types[ids - FIRST_CODE], codes)
    np.testing.assert_array_equal(np.bincount(ids - FIRST_CODE), vocabulary.counts)


def test_entropy_is_that_of_the_counts():
    assert vocabulary_of([[0, 0]] * 4 + [[1, 1]] * 4).entropy == pytest.approx(np.log(2))
    assert vocabulary_of([[5, 5]] * 9).entropy == 0
    p = np.array([3, 2, 1, 1]) / 7
    assert vocabulary_of(FRAMES).entropy == pytest.approx(-(p * np.log(p)).sum())


def test_vocabulary_survives_saving(tmp_path):
    vocabulary = vocabulary_of(FRAMES)
    vocabulary.save(tmp_path / "vocabulary.json")
    loaded = Vocabulary.load(tmp_path / "vocabulary.json")
    for name in ("types", "counts"):
        np.testing.assert_array_equal(getattr(loaded, name), getattr(vocabulary, name))
    assert (loaded.digest, loaded.model, loaded.codes, loaded.step) == (vocabulary.digest, "model", 10, 7)
    assert [path.name for path in tmp_path.iterdir()] == ["vocabulary.json"]


def test_digest_names_the_model_and_the_order_of_the_types():
    digests = [vocabulary_of(FRAMES).digest, vocabulary_of(FRAMES, [[0, 2]]).digest, vocabulary_of(FRAMES[:-1]).digest]
    assert len(set(digests)) == 3
    assert vocabulary_of(FRAMES[::-1]).digest == digests[0]


def test_files_that_are_no_vocabulary_are_clear_errors(tmp_path):
    path = tmp_path / "vocabulary.json"
    with pytest.raises(UserError, match="cannot be read"):
        Vocabulary.load(path)
    vocabulary_of(FRAMES).save(path)
    about = json.loads(path.read_text())
    for wrong in ("", "[]", path.read_text()[:-30], json.dumps({**about, "types": [[1, 2, 3]]})):
        path.write_text(wrong)
        with pytest.raises(UserError, match=r"vocabulary\.json: not a vocabulary"):
            Vocabulary.load(path)
    path.write_text(json.dumps({**about, "types": about["types"][:-1]}))
    with pytest.raises(UserError, match="cut short or edited"):
        Vocabulary.load(path)
    path.write_text(json.dumps({**about, "vocabulary": 9}))
    with pytest.raises(UserError, match="format 9"):
        Vocabulary.load(path)


def test_more_combinations_than_can_be_numbered_are_refused():
    with pytest.raises(UserError, match="more combinations"):
        CodeCounter(8, 320)


def test_tokens_are_written_as_in_the_reference():
    assert code_text(np.array([[3, 9], [0, 319]], np.uint16)) == "3-9 0-319"
    assert code_text(np.array([[7]])) == "7"
    assert code_text(np.zeros((0, 2), int)) == ""


def test_entropy_is_that_of_the_shares_along_an_axis_or_of_all():
    share = np.array([[0.25, 0.25, 0.25, 0.25], [0.0, 0.5, 0.5, 0.0], [1.0, 0.0, 0.0, 0.0]])
    np.testing.assert_allclose(entropy_of(share, axis=1), np.log([4, 2, 1]), atol=1e-12)
    assert entropy_of(share / 3) == pytest.approx(np.log(3) + np.log([4, 2, 1]).mean())
