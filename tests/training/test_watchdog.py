"""The watchdog: every way to die is named once with a way out, and a healthy run never alarms."""

import math

import numpy as np
import pytest

from w2v_jax.core.config import as_config
from w2v_jax.training.watchdog import (
    Best,
    Watchdog,
    WatchdogSettings,
    best_evaluation,
    check,
    ended_early,
    on_plateau,
    outcome,
    settings_for,
)

LEVELS = {"loss_chance": math.log(101), "accuracy_chance": 1 / 101, "perplexity_floor": 2.0, "perplexity_max": 640.0}
SETTINGS = WatchdogSettings(patience=10, grace_steps=1000, late_steps=4000, batch_hours=0.05, peak=5e-4)
CHANCE = LEVELS["loss_chance"]


def healthy(steps=400, every=100, seed=0):
    """A run as published ones look: near chance at first, perplexity dips to about 30 and then grows."""
    rng = np.random.default_rng(seed)
    for i in range(1, steps + 1):
        step, t = i * every, i / steps
        drop = max(0.0, 1 - math.exp(-(step - 1500) / 8000)) if step > 1500 else 0.0
        yield {
            "step": step,
            "split": "train",
            "loss": CHANCE + 0.2 * math.exp(-step / 500) - 2.2 * drop + rng.normal(0, 0.03),
            "accuracy": max(1e-3, 0.0099 + 0.5 * drop + rng.normal(0, 0.003)),
            "code_perplexity": 30 + 20 * math.exp(-step / 300) + 200 * t + rng.normal(0, 2),
            "prob_perplexity": 30 + 100 * math.exp(-step / 300) + 300 * t + rng.normal(0, 2),
            "grad_norm": math.exp(rng.normal(0, 0.4)),
            "skipped_updates": 0.0,
        }


def names(rows, levels=LEVELS, settings=SETTINGS):
    dog = Watchdog(levels, settings)
    return [finding.name for row in rows for finding in dog.see(row)]


def dying(start, **values):
    """A healthy run that from row `start` on shows these values (numbers, or functions of the row's index)."""
    rows = []
    for i, row in enumerate(healthy(120)):
        if i >= start:
            row |= {name: value(i) if callable(value) else value for name, value in values.items()}
        rows.append(row)
    return rows


@pytest.mark.parametrize("seed", range(5))
def test_a_healthy_run_never_alarms(seed):
    assert names(healthy(seed=seed)) == []


def test_a_healthy_demo_never_alarms():
    """A short run logged every 10 steps: at chance for the first 150 steps, then it learns."""
    settings = WatchdogSettings(grace_steps=100)
    rows = [row | {"step": 10 * (i + 1)} for i, row in enumerate(healthy(80))]
    assert names(rows, settings=settings) == []


DEATHS = {
    "collapsed to a constant": {"loss": CHANCE, "accuracy": lambda i: float(i % 2)},
    "codebook collapsed": {
        "code_perplexity": 2.0,
        "prob_perplexity": 2.01,
        "loss": 0.001,
        "accuracy": 1.0,
        "grad_norm": 1e-19,
    },
    "accuracy stuck": {"accuracy": lambda i: float(i % 3 == 0)},
    "no gradient": {"grad_norm": 1e-19},
    "loss at chance": {"loss": lambda i: CHANCE + 0.02 * math.sin(i)},
    "not finite": {"loss": lambda i: None if i == 60 else 3.0},
}


@pytest.mark.parametrize("name", DEATHS)
def test_each_death_is_named_once(name):
    assert names(dying(40, **DEATHS[name])) == [name]


@pytest.mark.parametrize("name", [name for name in DEATHS if name not in ("not finite", "loss at chance")])
def test_a_collapse_is_named_within_twelve_logged_steps(name):
    assert names(dying(40, **DEATHS[name])[:52]) == [name]


@pytest.mark.parametrize("name", DEATHS)
def test_every_message_says_the_cause_and_the_next_thing_to_try(name):
    dog = Watchdog(LEVELS, SETTINGS)
    (finding,) = [finding for row in dying(40, **DEATHS[name]) for finding in dog.see(row)]
    assert "Likely cause" in finding.message and "Next: " in finding.message
    assert "optim.peak=0.0005" in finding.message and "0.05 h of audio per update" in finding.message
    assert finding.dead == (name != "not finite")


def test_a_constant_loss_is_named_even_before_the_grace_ends():
    assert names(dying(0, loss=CHANCE)[:10]) == ["collapsed to a constant"]


def test_loss_near_chance_is_normal_until_the_grace_ends():
    rows = dying(0, loss=lambda i: CHANCE + 0.01 * (-1) ** i)
    assert names(rows[:29]) == []
    assert names(rows[:30]) == ["loss at chance"]


def test_all_wrong_in_a_small_batch_is_normal_early_only():
    rows = dying(0, accuracy=0.0)
    assert names(rows[:10]) == []
    assert names(rows) == ["accuracy stuck"]


def test_an_early_dip_of_perplexity_is_normal_but_staying_there_is_not():
    dip = {"prob_perplexity": 15.0, "code_perplexity": 12.0}
    assert names(dying(0, **dip)[:50]) == []
    dog = Watchdog(LEVELS, SETTINGS)
    (finding,) = [finding for row in dying(0, **dip) for finding in dog.see(row)]
    assert finding.name == "few codes in use" and not finding.dead


def test_a_finding_is_told_again_only_after_it_cleared():
    norm = lambda i: 0.0 if 40 <= i < 55 or 56 <= i < 70 or i >= 105 else 1.0
    assert names(dying(0, grad_norm=norm)) == ["no gradient", "no gradient"]


def test_skipped_updates_are_told_once_and_never_ending_ones_are_death():
    assert names(dying(40, skipped_updates=3.0)) == ["not finite"]
    assert names(dying(40, skipped_updates=lambda i: float(i - 38))) == ["not finite", "not finite, again and again"]
    assert names(dying(40, grad_norm=math.inf)) == ["not finite", "not finite, again and again"]


def test_a_resumed_run_does_not_repeat_old_skips_or_old_findings():
    rows = dying(40, skipped_updates=3.0, **DEATHS["no gradient"])
    resumed = Watchdog(LEVELS, SETTINGS, history=rows[:80])
    assert [finding for row in rows[80:] for finding in resumed.see(row)] == []
    fresh = Watchdog(LEVELS, SETTINGS)
    assert fresh.see(dict(rows[80], grad_norm=1.0)) == [], "the counter did not rise since"


def test_evaluations_do_not_count():
    rows = [dict(row, split="eval", loss=CHANCE, grad_norm=None) for row in healthy(50)]
    assert names(rows) == [] and check(rows, LEVELS, SETTINGS) == []


def test_without_levels_and_metrics_nothing_is_claimed():
    assert check([], LEVELS, SETTINGS) == []
    assert names([{"step": s} for s in range(1, 50)]) == []
    assert names(dying(40, loss=CHANCE, code_perplexity=2.0), levels={}) == []


@pytest.mark.parametrize(
    ("warmup", "steps", "grace", "late"),
    [
        (32_000, 400_000, 3000, 12_000),
        (5, 20, 100, 100),
        (500, 600, 500, 500),
        (5, 1500, 500, 1050),
        (5, 1000, 333, 700),
    ],
)
def test_grace_is_the_warm_up_or_a_third_of_the_run_and_late_comes_before_its_end(warmup, steps, grace, late):
    sections = {"optim": {"warmup": warmup, "peak": 1e-3}, "data": {"batch_hours": 1.5}, "train": {"steps": steps}}
    assert settings_for(as_config(sections)) == (10, grace, late, 1.5, 1e-3, 0)
    found = settings_for(as_config(sections | {"acoustic": {"clean_steps": 7}}))
    assert found.clean_steps == 7


def over_codes(gain, steps=120, every=100):
    """A run over codes whose loss ends `gain` nats below that of a model that counts."""
    for i in range(1, steps + 1):
        unigram = 6.0 + 3.0 * math.exp(-i / 5)
        yield {"step": i * every, "split": "train", "loss": unigram - gain * min(1, i / 60), "unigram_loss": unigram}


def test_a_model_over_codes_that_only_counts_is_named_and_one_that_learns_is_not():
    levels = {"loss_chance": math.log(13_500), "accuracy_chance": 1 / 13_500}
    found = check(list(over_codes(0.05)), levels, SETTINGS)
    assert [(finding.name, finding.dead) for finding in found] == [("no better than counting", False)]
    assert "unigram entropy of the codes (6.0" in found[0].message
    assert check(list(over_codes(1.0)), levels, SETTINGS) == []
    assert names(over_codes(0.05, steps=40), levels) == [], "early on it is normal"


def test_a_recogniser_that_stays_silent_is_named_and_one_that_begins_to_speak_is_not():
    silent = [{"step": i * 100, "split": "train", "loss": 2.9, "blank_share": 1.0} for i in range(1, 121)]
    found = check(silent, {"error_silent": 1.0}, SETTINGS)
    assert [(finding.name, finding.dead) for finding in found] == [("on the plateau of CTC", False)]
    speaking = [row | {"blank_share": 0.95} for row in silent[-3:]]
    assert check([*silent, *speaking], {"error_silent": 1.0}, SETTINGS) == []
    assert check(silent[:29], {"error_silent": 1.0}, SETTINGS) == [], "early on it is normal"


def evaluations(*losses, errors=None, every=500):
    errors = errors or [0.6] * len(losses)
    return [
        {"step": every * (i + 1), "split": "eval", "loss": loss, "token_error": error, "loss_gap": loss - 0.5}
        for i, (loss, error) in enumerate(zip(losses, errors, strict=True))
    ]


def test_the_plateau_is_named_at_an_evaluation_after_the_grace_and_again_after_it_was_left():
    levels, settings = {"error_silent": 1.0}, WatchdogSettings(grace_steps=300)
    rows = evaluations(*[3.0] * 4, errors=[1.0, 0.99, 0.7, 1.0], every=200)
    found = check(rows[:2], levels, settings)
    assert [(f.name, f.dead) for f in found] == [("on the plateau of CTC", False)]
    assert "token error 0.990 after 400 updates" in found[0].message
    assert "dropout and masks from the first update on (acoustic.clean_steps=0)" in found[0].message
    cleaner = check(rows[:2], levels, settings._replace(clean_steps=100))
    assert "optim.peak" in cleaner[0].message and "clean_steps" not in cleaner[0].message
    assert check(rows[:1], levels, settings) == [] and check(rows[:3], levels, settings) == []
    assert names(rows, levels, settings) == ["on the plateau of CTC"], "once, however it comes and goes for a while"


def test_overfitting_is_named_with_its_update_and_the_best_checkpoint():
    rows = evaluations(3.0, 2.0, 2.3, 2.5, 2.8, errors=[0.9, 0.6, 0.55, 0.56, 0.57])
    found = check(rows, {"error_silent": 1.0}, SETTINGS)
    assert [(f.name, f.dead) for f in found] == [("overfits", False)]
    assert "since update 1,000: the held-out loss was 2.00 there and is 2.80 now, 2.30 above" in found[0].message
    assert "0.550, of step 1,500" in found[0].message
    assert check(rows[:4], {"error_silent": 1.0}, SETTINGS) == [], "two evaluations are not enough"
    level = evaluations(3.0, 2.0, 2.1, 2.1, 2.1)
    assert check(level, {"error_silent": 1.0}, SETTINGS) == [], "a level loss is no fault"
    pretraining = [{k: v for k, v in row.items() if k != "token_error"} for row in rows]
    assert check(pretraining, LEVELS, SETTINGS) == []


OF_CTC = {"error_silent": 1.0}


def stopping(patience=300, steps=2000, best="token_error"):
    return as_config({"train": {"best": best, "patience": patience, "steps": steps}})


def errors_of(*errors, every=100, **more):
    made = [{"step": every * (i + 1), "split": "eval", "token_error": e, **more} for i, e in enumerate(errors)]
    return [{"step": every // 2, "split": "train", "token_error": 0.0}, *made]


def test_the_best_evaluation_is_the_oldest_of_the_lowest_finite_ones():
    assert best_evaluation(errors_of(0.8, 0.5, None, float("nan"), 0.5), "token_error") == Best(200, "token_error", 0.5)
    assert best_evaluation(errors_of(0.8), "loss") is None and best_evaluation([], "loss") is None


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
    reason = ended_early(errors_of(*errors), stopping(patience), OF_CTC)
    assert bool(reason) == ends
    if ends:
        assert f"{min(errors):.3f} of step" in reason and f"{patience} updates" in reason


def test_the_last_step_is_no_early_end():
    assert not ended_early(errors_of(0.5, 0.6, 0.6, 0.6, 0.6), stopping(steps=500), OF_CTC)


def test_pretraining_can_stop_early_by_its_loss():
    history = [{"step": 100 * i, "split": "eval", "loss": 3.0 + i} for i in range(1, 6)]
    assert "loss below 4.000 of step 100" in ended_early(history, stopping(best="loss"), {})


def test_only_a_recogniser_is_on_the_plateau():
    assert on_plateau({"token_error": 0.96}, OF_CTC) and not on_plateau({"token_error": 0.9}, OF_CTC)
    assert not on_plateau({"loss": 3.0}, OF_CTC) and not on_plateau({"token_error": 1.0}, {})
    assert not on_plateau({"token_error": None}, OF_CTC)


def test_the_outcome_says_how_a_run_ended():
    assert outcome(errors_of(0.8, 0.5, 0.6, 0.6, 0.7), stopping(), OF_CTC, corpora={}) == {
        "best": {"step": 200, "metric": "token_error", "value": 0.5},
        "ended_early": "no held-out token_error below 0.500 of step 200 for 300 updates",
        "on_plateau": False,
    }
    assert outcome(errors_of(0.8, 1.0), stopping(), OF_CTC, corpora={})["on_plateau"]
    nothing = {"best": None, "ended_early": "", "on_plateau": False}
    assert outcome([], stopping(), OF_CTC, corpora={}) == nothing
    assert outcome([], stopping(), OF_CTC, corpora={"a": {"hours": 1.0}}) == nothing | {
        "corpora": {"a": {"hours": 1.0}}
    }


def predicting(gain, every=10, **values):
    """A run of HuBERT: at the entropy of the labels for a while, with one unit everywhere, then below by the gain."""
    for i in range(1, 200):
        learnt = gain * min(max(i - 20, 0), 60) / 60
        row = {"step": i * every, "split": "train", "loss": 2.7 - learnt, "label_entropy": 2.6, "accuracy": 0.2}
        yield row | {"prediction_perplexity": 1.0 if learnt < 0.2 else 5.0} | values


UNITS = {"loss_chance": math.log(21), "accuracy_chance": 1 / 21}


def test_a_model_that_learns_its_labels_never_alarms():
    """Nor does the plateau on which it begins."""
    settings = SETTINGS._replace(grace_steps=300, late_steps=1200)
    assert names(predicting(1.5), UNITS, settings) == []


def test_one_unit_predicted_everywhere_is_named_and_is_death_when_it_lasts():
    settings = SETTINGS._replace(grace_steps=300, late_steps=1200)
    dog = Watchdog(UNITS, settings)
    found = [(row["step"], finding) for row in predicting(0.0) for finding in dog.see(row)]
    step, finding = found[0]
    assert finding.name == "one unit everywhere" and 300 < step < 600 and not finding.dead
    assert "2.60 nats" in finding.message and "Likely cause" in finding.message and "Next: " in finding.message
    late = check(list(predicting(0.0)), UNITS, settings)
    assert [(finding.name, finding.dead) for finding in late] == [("one unit everywhere", True)]
    assert names(predicting(0.0, label_entropy=0.0, loss=0.1), UNITS, settings) == ["labels are not learnt"]


def test_labels_that_are_noise_are_named():
    """Many units are predicted, and the loss is that of a model that knows how frequent each is."""
    settings = SETTINGS._replace(grace_steps=300, late_steps=1200)
    dog = Watchdog(UNITS, settings)
    rows = predicting(0.0, prediction_perplexity=9.0)
    (found,) = [(row["step"], finding) for row in rows for finding in dog.see(row)]
    assert found[0] > 1200 and found[1].name == "labels are not learnt" and not found[1].dead
    assert "entropy of the labels (2.600)" in found[1].message and "data.targets" in found[1].message
