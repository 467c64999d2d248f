"""CTC: the loss against all alignments, the error count against the textbook table, what is trained when."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from commands import varied

from w2v_jax.core import config as configs
from w2v_jax.core.cli import UserError
from w2v_jax.methods import ctc
from w2v_jax.ops import losses
from w2v_jax.training import sharding

B, F, U, A = 6, 6, 3, 4


def ctc_loss(logits, frames, tokens, count):
    return losses.ctc(logits, num_frames=frames, tokens=tokens, num_tokens=count)


def collapse(path):
    """What an alignment says: without repeats, then without blanks."""
    kept = [token for i, token in enumerate(path) if i == 0 or token != path[i - 1]]
    return tuple(token for token in kept if token)


def loss_by_enumeration(logits, frames: int, tokens) -> float:
    """The negative log of the summed probability of every alignment, one by one."""
    log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    total = 0.0
    for path in itertools.product(range(A), repeat=frames):
        if collapse(path) == tuple(tokens):
            total += np.exp(sum(log_probs[t, token] for t, token in enumerate(path)))
    return -np.log(total) if total else np.inf


def edit_distance(a, b) -> int:
    table = np.zeros((len(a) + 1, len(b) + 1), int)
    table[:, 0], table[0] = np.arange(len(a) + 1), np.arange(len(b) + 1)
    for i, j in itertools.product(range(1, len(a) + 1), range(1, len(b) + 1)):
        steps = (table[i - 1, j] + 1, table[i, j - 1] + 1, table[i - 1, j - 1] + (a[i - 1] != b[j - 1]))
        table[i, j] = min(steps)
    return table[-1, -1]


@pytest.fixture(scope="module")
def case():
    """Random logits; rows with fewer frames, no token, equal neighbours, and two without any alignment."""
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(B, F, A)).astype(np.float32) * 2
    tokens = np.array([[1, 2, 3], [1, 1, 2], [3, 0, 0], [0, 0, 0], [2, 2, 2], [1, 2, 3]], np.int32)
    return logits, np.array([6, 5, 3, 4, 4, 2], np.int32), tokens, np.array([3, 3, 1, 0, 3, 3], np.int32)


def test_ctc_sums_the_probability_of_every_alignment(case):
    logits, frames, tokens, count = case
    found, possible = jax.jit(ctc_loss)(*case)
    assert possible.tolist() == [True, True, True, True, False, False]
    for row in range(4):
        expected = loss_by_enumeration(logits[row], frames[row], tokens[row, : count[row]])
        np.testing.assert_allclose(found[row], expected, rtol=1e-5)


def test_transcripts_without_an_alignment_have_no_loss_and_no_gradient(case):
    logits, *rest = map(jnp.asarray, case)
    logits = logits.at[4, 0, 0].set(jnp.inf)  # whatever the model says there
    total = lambda x: ctc_loss(x, *rest)[0].sum()
    gradient = jax.jit(jax.grad(total))(logits)
    assert np.isfinite(gradient).all()
    assert not np.any(gradient[4:])
    assert np.any(gradient[:4], axis=(1, 2)).all()
    np.testing.assert_array_equal(jax.jit(ctc_loss)(logits, *rest)[0][4:], 0)


def test_frames_and_tokens_of_padding_change_neither_loss_nor_gradient(case):
    logits, frames, tokens, count = case
    wide = np.pad(logits, ((0, 0), (0, 3), (0, 0)), constant_values=7.0)
    long = np.pad(tokens, ((0, 0), (0, 2)), constant_values=3)
    total = lambda x, t: ctc_loss(x, *map(jnp.asarray, (frames, t, count)))[0].sum()
    a, ga = jax.jit(jax.value_and_grad(total))(logits, tokens)
    b, gb = jax.jit(jax.value_and_grad(total))(wide, long)
    np.testing.assert_allclose(a, b, rtol=1e-6)
    np.testing.assert_allclose(ga, gb[:, :F], atol=1e-6)
    assert not np.any(gb[:, F:])


def test_token_errors_are_the_edit_distance_of_the_best_path():
    rng = np.random.default_rng(1)
    logits = rng.normal(size=(40, 12, A)).astype(np.float32) * 3
    frames, count = rng.integers(0, 13, 40), rng.integers(0, 8, 40)
    tokens = rng.integers(1, A, (40, 7))
    found = jax.jit(losses.token_errors)(logits, num_frames=frames, tokens=tokens, num_tokens=count)
    for row in range(40):
        said = collapse(logits[row, : frames[row]].argmax(-1).tolist())
        assert found[row] == edit_distance(said, tokens[row, : count[row]].tolist())


def test_disagreement_is_the_divergence_of_each_pass_from_the_others_over_valid_frames():
    rng = np.random.default_rng(2)
    logits, frames = rng.normal(size=(3, 3, F, A)).astype(np.float32), np.array([F, 2, 0])
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    valid = np.arange(F) < frames[:, None]
    pairs = list(itertools.permutations(range(3), 2))
    expected = sum((p[q] * np.log(p[q] / p[i])).sum(-1) * valid for i, q in pairs).sum(-1) / 2
    found, pullback = jax.vjp(lambda x: losses.disagreement(x, jnp.asarray(frames)), jnp.asarray(logits))
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    gradient = (p - (p.sum(0) - p) / 2) * valid[..., None]  # of cross-entropies alone: the others are held fixed
    np.testing.assert_allclose(pullback(jnp.ones(3))[0], gradient, atol=1e-6)


@pytest.mark.parity
def test_ctc_equals_pytorch(case):
    torch = pytest.importorskip("torch", reason="torch is not installed (extra `parity`)")
    logits, frames, tokens, count = case
    x = torch.tensor(logits, requires_grad=True)
    log_probs = x.log_softmax(-1).transpose(0, 1)
    theirs = torch.nn.functional.ctc_loss(
        log_probs, torch.tensor(tokens), torch.tensor(frames), torch.tensor(count), reduction="none", zero_infinity=True
    )
    theirs[:4].sum().backward()
    total = lambda x: ctc_loss(x, *map(jnp.asarray, (frames, tokens, count)))[0]
    np.testing.assert_allclose(total(jnp.asarray(logits)), theirs.detach(), rtol=1e-5, atol=1e-5)
    gradient = jax.grad(lambda x: total(x)[:4].sum())(jnp.asarray(logits))
    np.testing.assert_allclose(gradient, x.grad, atol=3e-5)


# The method


def config_of(name: str, **changes):
    config = configs.with_outputs(configs.load(f"configs/{name}.py:tiny"), 8)
    with config.unlocked():
        for key, value in changes.items():
            configs.override(config, key.replace("__", "."), str(value))
    return config


def batch_of(samples: int = 16_000, rows: int = 4, hop: int = 320, width: int = 24):
    rng = np.random.default_rng(0)
    lengths = np.array([samples, samples - 3000, samples, samples - 6000][:rows], np.int32)
    wave = rng.normal(size=(rows, samples)).astype(np.float32) * (np.arange(samples) < lengths[:, None])
    return {
        "wave": wave,
        "features": rng.normal(size=(rows, samples // hop, width)).astype(np.float32),
        "num_samples": lengths,
        "weight": np.ones(rows, np.float32),
        "row": np.arange(rows, dtype=np.int32),
        "tokens": rng.integers(1, 8, (rows, 6)).astype(np.int32),
        "num_tokens": np.array([6, 4, 5, 6][:rows], np.int32),
    }


def start(config):
    method = ctc.make(config)
    params, extra = jax.jit(lambda: sharding.bare(method.init(jax.random.key(0), batch_of())))()
    return method, params, extra


def gradients_of(config, *steps: int):
    """Of the loss in these steps, by one program."""
    method, params, extra = start(config)
    total = lambda p, step: method.loss(p, extra, batch_of(), jax.random.key(1), step, train=True)[0].total
    gradient = jax.jit(jax.grad(total))
    return [gradient(params, jnp.int32(step)) for step in steps]


def moves(tree) -> bool:
    return any(np.any(leaf) for leaf in jax.tree.leaves(tree))


def test_first_updates_leave_the_encoder_as_it_is():
    config = config_of("finetune", encoder__frozen_steps=3)
    before, after = gradients_of(config, 2, 3)
    assert not moves(before["encoder"]) and moves(before["head"])
    assert moves(after["encoder"]["transformer"]) and moves(after["head"])
    assert not moves(after["encoder"]["frontend"])


@pytest.mark.slow
def test_the_gradient_is_that_of_a_training_without_first_updates_and_the_heads_is_so_from_the_start():
    law = dict(encoder__frozen_steps=3)
    before, after = gradients_of(config_of("finetune", **law), 2, 3)
    first, whole = gradients_of(config_of("finetune"), 2, 3)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-5), after, whole)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-5), before["head"], first["head"])


def test_first_updates_have_no_backward_pass_of_the_encoder():
    config = config_of("finetune", encoder__frozen_steps=3)
    method, params, extra = start(config)
    total = lambda p, n: method.loss(p, extra, batch_of(), jax.random.key(1), n, train=True)[0].total
    program = jax.make_jaxpr(jax.grad(total))(params, jnp.int32(0))
    (choice,) = (
        e for e in program.eqns if e.primitive.name == "cond" and "dot_general" in str(e.params["branches"][0])
    )
    head, whole = (str(branch).count("dot_general") for branch in choice.params["branches"])
    assert head < 0.5 * whole


def test_an_encoder_without_parameters_has_no_first_updates_of_its_own():
    first, later = gradients_of(config_of("acoustic_logmel", encoder__frozen_steps=3), 0, 3)
    jax.tree.map(np.testing.assert_array_equal, first, later)
    assert moves(first["acoustic"]) and moves(first["head"])


def test_frozen_encoder_gets_no_gradient_and_the_rest_does():
    (gradient,) = gradients_of(config_of("acoustic_frozen"), 0)
    assert not moves(gradient["encoder"])
    assert moves(gradient["acoustic"]) and moves(gradient["head"]) and np.all(gradient["layer_weights"])


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("acoustic_logmel", dict(acoustic__kind="conv")),
        ("acoustic_logmel", dict(acoustic__kind="transformer")),
        ("acoustic_frozen", dict(acoustic__kind="conv")),
        ("acoustic_frozen", dict(acoustic__kind="transformer")),
        ("finetune", {}),
    ],
)
def test_longer_padding_leaves_the_logits_unchanged(name, changes):
    config = config_of(name, **changes)
    method, params, extra = start(config)
    short, long = batch_of(), batch_of()
    long["wave"] = np.pad(long["wave"], ((0, 0), (0, 3333)))
    a, b = (jax.jit(method.predict)(params, extra, batch) for batch in (short, long))
    frames = a["logits_valid"].sum(axis=1)
    np.testing.assert_array_equal(frames, b["logits_valid"].sum(axis=1))
    np.testing.assert_array_equal(frames, ctc.make(config).output_frames(short["num_samples"]))
    for row, count in enumerate(frames):
        np.testing.assert_allclose(a["logits"][row, :count], b["logits"][row, :count], atol=2e-5)


@pytest.mark.parametrize("name", varied(["cpc", "wav2vec_small"], "cpc"))
def test_encoders_of_cpc_and_wav2vec_can_be_read(name):
    config, encoder = config_of("acoustic_logmel"), configs.load(f"configs/{name}.py:tiny").encoder.to_dict()
    with config.unlocked():
        config.encoder = encoder | dict(kind="causal", frozen=False, frozen_steps=0, padding_aware=True)
    (gradient,) = gradients_of(config, 0)
    assert moves(gradient["encoder"]["frontend"]) and moves(gradient["encoder"]["aggregator"])
    with config.unlocked():
        config.acoustic.input = "weighted"
    assert np.any(gradients_of(config, 0)[0]["layer_weights"]) == (ctc.make(config).encoder.hidden_states > 1)


def test_features_are_read_as_an_encoder_would_give_them():
    config = config_of("acoustic_logmel")
    with config.unlocked():
        config.encoder = dict(kind="features", hop=320, padding_aware=True, frozen=True, frozen_steps=0)
    method, params, extra = start(config)
    found = jax.jit(method.predict)(params, extra, batch_of())
    assert found["logits"].shape == (4, 25, 8)
    np.testing.assert_array_equal(
        found["logits_valid"].sum(axis=1), ctc.make(config).output_frames(batch_of()["num_samples"])
    )


def test_masks_are_drawn_in_training_only():
    config = config_of("acoustic_logmel", masking__time_prob=0.5, masking__channel_prob=0.5)
    method, params, extra = start(config)
    total = jax.jit(
        lambda key, train: method.loss(params, extra, batch_of(), key, 0, train=train)[0].total, static_argnums=1
    )
    loss = lambda key, train: float(total(jax.random.key(key), train))
    assert loss(1, True) != loss(2, True)
    assert loss(1, False) == loss(2, False)


def test_first_updates_are_without_dropout_and_masks():
    config = config_of("acoustic_logmel", masking__time_prob=0.5, acoustic__dropout=0.5, acoustic__clean_steps=3)
    method, params, extra = start(config)
    ((last, clean),) = method.early
    total = lambda loss, key, train: loss(params, extra, batch_of(), key, 0, train=train)[0].total
    total = jax.jit(total, static_argnums=(0, 2))
    at = lambda loss, key, train=True: float(total(loss, jax.random.key(key), train))
    assert last == 3 and at(clean, 1) == at(clean, 2) == pytest.approx(at(method.loss, 1, train=False), rel=1e-6)
    assert at(method.loss, 1) != at(method.loss, 2)
    assert ctc.make(configs.changed(config, {"acoustic.clean_steps": 0})).early == ()


def losses_of(config):
    """(loss, metrics) of training, and the metrics of an evaluation, with a last layer that says something."""
    method, params, extra = start(config)
    stir = lambda path, leaf: leaf + ("head" in str(path)) * jax.random.normal(jax.random.key(2), leaf.shape)
    params = jax.tree_util.tree_map_with_path(stir, params)
    loss = jax.jit(
        lambda train: method.loss(params, {}, batch_of(), jax.random.key(1), 0, train=train), static_argnums=0
    )
    (mean, (_, metrics)), (_, (_, scored)) = loss(True), loss(False)
    return float(mean.value()), metrics, scored


def test_two_passes_of_one_model_agree_without_noise_and_their_disagreement_is_in_the_loss():
    law = dict(acoustic__consistency=0.5, masking__channel_prob=0.0)
    noisy, metrics, scored = losses_of(config_of("acoustic_logmel", masking__time_prob=0.5, **law))
    assert float(metrics["disagreement"].value()) > 0.01 and "disagreement" not in scored
    total = metrics["loss"].total + 0.5 * metrics["disagreement"].total
    assert noisy == pytest.approx(float(total) / 8, rel=1e-5)  # two passes over 4 rows
    quiet, metrics, _ = losses_of(still := config_of("acoustic_logmel", masking__time_prob=0.0, **law))
    single, alone, _ = losses_of(configs.changed(still, {"acoustic.consistency": 0.0}))
    assert float(metrics["disagreement"].value()) == pytest.approx(0.0, abs=1e-5)
    assert quiet == pytest.approx(single, rel=1e-5) and "disagreement" not in alone


def test_members_learn_apart_and_speak_with_their_mean_probability():
    config = config_of("acoustic_logmel", acoustic__members=3, masking__channel_prob=0.0, masking__time_prob=0.0)
    method, params, extra = start(config)
    assert sorted(params) == ["acoustic", "head", "others_0", "others_1"]
    params["others_1"]["head"]["bias"] += jnp.arange(8.0)
    members = [params | {"acoustic": p["acoustic"], "head": p["head"]} for p in (params, params["others_0"])]
    members += [params | {"acoustic": params["others_1"]["acoustic"], "head": params["others_1"]["head"]}]
    one = ctc.make(configs.changed(config, {"acoustic.members": 1}))
    alone = [{k: p[k] for k in ("acoustic", "head")} for p in members]
    logits = jax.jit(lambda p: one.predict(p, extra, batch_of())["logits"])
    single = [logits(p) for p in alone]
    found = jax.jit(method.predict)(params, extra, batch_of())["logits"]
    expected = np.mean([jax.nn.softmax(x) for x in single], axis=0)
    np.testing.assert_allclose(jax.nn.softmax(found), expected, atol=1e-5)
    total = lambda m: jax.jit(lambda p: m.loss(p, {}, batch_of(), jax.random.key(1), 0, train=True)[0].value())
    apart = list(map(total(one), alone))
    assert float(total(method)(params)) == pytest.approx(np.mean(apart), rel=1e-5)


def test_recogniser_standardises_by_the_frames_that_are_not_masked(monkeypatch):
    config = config_of("finetune", acoustic__standardise=True, masking__time_prob=0.5, masking__channel_prob=0.0)
    method, params, extra = start(config)
    seen = []
    monkeypatch.setattr(ctc, "standardise", lambda x, frames, masked: seen.append(masked) or x)

    def masks(params):
        method.loss(params, extra, batch_of(), jax.random.key(1), jnp.int32(0), train=True)
        method.predict(params, extra, batch_of())
        return seen

    drawn, nothing = jax.jit(masks)(params)
    assert nothing is None and drawn.any() and not drawn.all() and drawn.dtype == bool


def test_settings_that_cannot_be_are_named():
    for name, changes, word in (
        ("finetune", dict(acoustic__input="middle"), "acoustic.input"),
        ("finetune", dict(acoustic__kind="lstm"), "acoustic.kind"),
        ("finetune", dict(encoder__kind="mfcc"), "encoder.kind"),
        ("acoustic_logmel", dict(acoustic__input="weighted"), "layers"),
        ("acoustic_logmel", dict(encoder__conv_layers=((40, 512, 160),)), "conv_layers"),
        ("acoustic_logmel", dict(acoustic__conv_layers=((31, 5, 1),)), "even"),
        ("acoustic_logmel", dict(acoustic__outputs=1), "outputs"),
    ):
        with pytest.raises(UserError, match=word):
            start(config_of(name, **changes))
    with pytest.raises(UserError, match="acoustic.outputs=9"):
        configs.with_outputs(config_of("finetune"), 9)
