"""Which evaluation is the best, and when a run ends because no later one is better."""

import pytest

from w2v_jax.core.config import as_config
from w2v_jax.training.early_stopping import Best, best_evaluation, ended_early, on_plateau, outcome

LEVELS = {"error_silent": 1.0}


def config(patience=300, steps=2000, best="token_error"):
    return as_config({"train": {"best": best, "patience": patience, "steps": steps}})


def rows(*errors, every=100, **more):
    made = [{"step": every * (i + 1), "split": "eval", "token_error": e, **more} for i, e in enumerate(errors)]
    return [{"step": every // 2, "split": "train", "token_error": 0.0}, *made]


def test_the_best_evaluation_is_the_oldest_of_the_lowest_finite_ones():
    assert best_evaluation(rows(0.8, 0.5, None, float("nan"), 0.5), "token_error") == Best(200, "token_error", 0.5)
    assert best_evaluation(rows(0.8), "loss") is None and best_evaluation([], "loss") is None


@pytest.mark.parametrize(
    ("errors", "patience", "ends"),
    [
        ((0.8, 0.5, 0.6, 0.6), 300, False),
        ((0.8, 0.5, 0.6, 0.6, 0.7), 300, True),
        ((0.8, 0.5, 0.6, 0.6, 0.5), 300, True),  # as good is no better
        ((0.8, 0.5, 0.6, 0.6, 0.4), 300, False),
        ((0.8, 0.5, 0.6, 0.6, 0.7), 0, False),
        ((0.8, 1.0, 1.0, 1.0, 1.0, 1.0), 300, False),  # on the plateau nothing is known yet
        ((0.8, 1.0, 1.0, 1.0, 1.0, 0.9), 300, True),
        ((), 300, False),
    ],
)
def test_a_run_ends_when_no_evaluation_was_better_for_its_patience(errors, patience, ends):
    reason = ended_early(rows(*errors), config(patience), LEVELS)
    assert bool(reason) == ends
    if ends:
        assert f"{min(errors):.3f} of step" in reason and f"{patience} updates" in reason


def test_the_last_step_is_no_early_end():
    assert not ended_early(rows(0.5, 0.6, 0.6, 0.6, 0.6), config(steps=500), LEVELS)


def test_pretraining_can_stop_early_by_its_loss():
    history = [{"step": 100 * i, "split": "eval", "loss": 3.0 + i} for i in range(1, 6)]
    assert "loss below 4.000 of step 100" in ended_early(history, config(best="loss"), {})


def test_only_a_recogniser_is_on_the_plateau():
    assert on_plateau({"token_error": 0.96}, LEVELS) and not on_plateau({"token_error": 0.9}, LEVELS)
    assert not on_plateau({"loss": 3.0}, LEVELS) and not on_plateau({"token_error": 1.0}, {})
    assert not on_plateau({"token_error": None}, LEVELS)


def test_the_outcome_says_how_a_run_ended():
    assert outcome(rows(0.8, 0.5, 0.6, 0.6, 0.7), config(), LEVELS) == {
        "best": {"step": 200, "metric": "token_error", "value": 0.5},
        "ended_early": "no held-out token_error below 0.500 of step 200 for 300 updates",
        "on_plateau": False,
    }
    assert outcome(rows(0.8, 1.0), config(), LEVELS)["on_plateau"]
    assert outcome([], config(), LEVELS) == {"best": None, "ended_early": "", "on_plateau": False}
