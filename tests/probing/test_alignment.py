"""Labels of frames: the best path against all paths, the flat start against the truth."""

from __future__ import annotations

import itertools

import jax
import numpy as np
import pytest

from w2v_jax.probing import alignment


def brute_force(scores, states):
    """The best of all paths that stay, go on, or leave out a silence."""
    best, found = -np.inf, None
    for path in itertools.product(range(len(states)), repeat=len(scores)):
        starts = path[0] == 0 or (path[0] == 1 and states[0] == 0)
        ends = path[-1] == len(states) - 1 or (path[-1] == len(states) - 2 and states[-1] == 0)
        steps = zip(path, path[1:])
        if not (starts and ends and all(b - a in (0, 1) or (b - a == 2 and states[a + 1] == 0) for a, b in steps)):
            continue
        value = sum(scores[t, states[s]] for t, s in enumerate(path))
        if value > best:
            best, found = value, [states[s] for s in path]
    return found


@pytest.mark.parametrize("seed", range(5))
def test_best_paths_equal_an_exhaustive_search(seed):
    rng = np.random.default_rng(seed)
    states = [np.array([0, 1, 0]), np.array([0, 2, 2, 0, 1, 0]), np.array([0, 1, 3, 0])]
    scores = [rng.normal(size=(frames, 4)).astype(np.float32) for frames in (1, 6, 5)]
    for path, x, row in zip(alignment.best_paths(scores, states), scores, states, strict=True):
        assert path.tolist() == brute_force(x, row)


def test_discriminants_are_log_likelihoods_of_gaussians_with_one_covariance():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 5000)
    mixing, means = np.eye(4) + 0.3 * rng.normal(size=(4, 4)), 3 * rng.normal(size=(3, 4))
    x = (means[labels] + rng.normal(size=(5000, 4)) @ mixing).astype(np.float32)
    weights, bias = alignment.discriminants([x[:2000], x[2000:]], [labels[:2000], labels[2000:]], 3)
    found = x @ weights + bias
    precision = np.linalg.inv(mixing.T @ mixing)
    exact = np.stack([-0.5 * np.einsum("nd,de,ne->n", x - m, precision, x - m) for m in means], axis=1)
    agree = (found.argmax(axis=1) == exact.argmax(axis=1)).mean()
    assert agree > 0.98
    np.testing.assert_allclose(found[:9] - found[:9, :1], exact[:9] - exact[:9, :1], rtol=0.1, atol=1.0)


def test_discriminants_equal_those_of_scikit_learn():
    """Up to the factor by which its shrinkage makes a covariance smaller, and its priors, which are none of ours."""
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    rng = np.random.default_rng(0)
    labels, x = rng.integers(0, 3, 500), rng.normal(size=(500, 4)) @ rng.normal(size=(4, 4))
    x += labels[:, None]
    lda = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=0.01 / 1.01).fit(x, labels)
    weights, bias = alignment.discriminants([x[:100], x[100:]], [labels[:100], labels[100:]], 3)
    np.testing.assert_allclose(1.01 * weights, lda.coef_.T, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(1.01 * bias, lda.intercept_ - np.log(lda.priors_), rtol=1e-4, atol=1e-5)


def test_a_flat_start_finds_the_letters_of_the_self_made_language():
    """Against the synthesiser's own times, of speakers with different rates."""
    from w2v_jax.data.sources import synthetic
    from w2v_jax.ops import logmel

    waves, tokens, letters = [], [], []
    for number in range(32):
        rng = np.random.default_rng(number)
        voice = synthetic.make_speaker(1 + number % 4, seed=0)
        text = " ".join(rng.choice(synthetic.lexicon()[0][:30], size=6))
        wave, ends = synthetic.render(text, voice, rng)
        tokens.append(np.array([0 if c == " " else 1 + synthetic.ALPHABET.index(c) for c in text]))
        waves.append(wave / 32768.0)
        centres = np.arange((len(wave) - logmel.FIELD) // logmel.HOP + 1) * logmel.HOP + logmel.FIELD // 2
        letters.append(np.append(tokens[-1], 0)[np.searchsorted(ends, centres)])
    together = np.stack([np.pad(wave, (0, max(map(len, waves)) - len(wave))) for wave in waves])
    batch = np.asarray(jax.jit(logmel.log_mel)(together))
    features = [alignment.alignment_features(x[: len(row)]) for x, row in zip(batch, letters, strict=True)]
    found, truth = np.concatenate(alignment.align(features, tokens)), np.concatenate(letters)
    known = truth > 0
    flat = np.concatenate(alignment.align(features, tokens, rounds=0))
    assert (flat[known] == truth[known]).mean() < 0.5
    assert (found[known] == truth[known]).mean() > 0.8


def test_recordings_that_cannot_be_aligned_are_silence():
    rng = np.random.default_rng(0)
    features = [rng.normal(size=(n, 4)).astype(np.float32) for n in (3, 9, 5)]
    found = alignment.align(features, [np.arange(1, 8), np.array([1, 0, 2]), np.zeros(0, int)])
    assert [len(x) for x in found] == [3, 9, 5]
    assert not found[0].any() and not found[2].any() and [x for x in dict.fromkeys(found[1].tolist()) if x] == [1, 2]
