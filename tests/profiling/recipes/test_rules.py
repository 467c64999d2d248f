"""The table of choices: each follows from the facts, each row can be reached, and the docs say the same."""

import re

import pytest
from commands import ROOT
from hypothesis import given
from hypothesis import strategies as st
from recipe_facts import ACCELERATOR, DATA, LARGE, PROCESSOR, SMALL, facts

from w2v_jax.core.config import load
from w2v_jax.profiling.recipes import rules
from w2v_jax.profiling.recipes.rules import RULES, Init, amount_of, buckets_of, candidates, choose, recogniser_batch
from w2v_jax.profiling.recipes.speed import Timing

GIVEN = Init("runs/base", True, "wav2vec2", config="finetune.py:10m", changes={})
DAYS = 86_400.0
PRETRAINED = GIVEN._replace(pretraining=("w2v2_large.py", {"encoder.width": 512}))
CONTINUED = {"given": Timing(0.05, 60.0, 95_000_000), "continued": Timing(2.5, 60.0, 95_000_000)}


def continuing(**known):
    """Facts of a model whose pretraining can go on, with 100 h of audio for two days."""
    usual = {"hours": 100.0, "machine": ACCELERATOR, "timings": CONTINUED, "budget": 2 * DAYS, "init": PRETRAINED}
    return facts(**(usual | known))


@pytest.mark.parametrize(
    ("known", "method"),
    [
        (facts(), "CPC"),
        (facts(budget=400), "log-mel"),  # 2,000 updates of CPC do not fit
        (facts(hours=0.2), "log-mel"),
        (facts(train_minutes=50.0, hours=0.9), "log-mel"),  # all audio has labels
        (facts(train_minutes=60.0), "log-mel"),
        (facts(init=GIVEN), "the given model"),
        (continuing(), "the given model, pretrained further"),
        (continuing(budget=5 * 3600), "the given model"),  # 5,000 updates do not fit into half of it
        (continuing(hours=9.0), "the given model"),
        (continuing(train_minutes=601.0), "the given model"),  # a tenth of the audio has labels
        (continuing(init=GIVEN, timings={"given": CONTINUED["given"]}), "the given model"),
        (facts(budget=3 * DAYS, machine=ACCELERATOR, hours=960.0), "wav2vec 2.0 Base"),
        (facts(budget=3 * DAYS, machine=ACCELERATOR, hours=50.0), "HuBERT Base"),
        (facts(budget=3 * DAYS, machine=PROCESSOR, hours=960.0), "CPC"),
        (facts(budget=3600, machine=ACCELERATOR, hours=960.0), "CPC"),
        (facts(budget=3600, machine=ACCELERATOR, hours=960.0, train_minutes=600.0), "log-mel"),
    ],
)
def test_the_method_follows_from_data_machine_and_time(known, method):
    assert choose(known, "method").value == method


def test_two_models_are_trained_where_both_get_all_their_updates():
    assert choose(facts(budget=1800), "recogniser").value == "log-mel, one model"
    assert choose(facts(budget=7200), "recogniser").value == "log-mel, two models that must agree"


def test_every_choice_ends_with_a_rule_that_always_holds():
    for about in {rule.about for rule in RULES}:
        assert [rule for rule in RULES if rule.about == about][-1].when is rules.always, about


def test_the_page_has_a_row_for_each_rule_and_its_measurement():
    page = (ROOT / "docs" / "recipe.md").read_text(encoding="utf-8")
    rows = [re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", line) for line in page.splitlines() if line.startswith("| ")]
    for rule in RULES:
        source = rule.rests_on.split(",")[0].split(";")[0]
        assert any(rule.about in row and rule.value in row and source in row for row in rows), rule


def test_the_measurement_of_each_rule_stands_in_the_docs():
    for rule in RULES:
        for part in rule.rests_on.split(";"):
            page, _, section = part.strip().partition(", ")
            if page.endswith(".md"):
                text = (ROOT / "docs" / page).read_text(encoding="utf-8")
                assert not section or section.partition(" at this size")[0] in text, rule.rests_on


@given(st.tuples(*[st.floats(0.3, 36.0)] * 3))
def test_buckets_rise_and_hold_the_longest(lengths):
    lengths = tuple(sorted(lengths))
    buckets = buckets_of(DATA._replace(lengths=lengths))
    assert list(buckets) == sorted(set(buckets)) and buckets[-1] >= lengths[-1] and len(buckets) <= 3
    batch = recogniser_batch(DATA._replace(lengths=lengths))
    assert batch["data.unit_seconds"] >= buckets[-1]
    units = batch["data.batch_hours"] * 3600 / batch["data.unit_seconds"]
    assert units == pytest.approx(round(units)) and batch["data.device_seconds"] >= batch["data.unit_seconds"]


def test_each_labelled_amount_has_a_published_recipe():
    assert [amount_of(hours) for hours in (0.1, 1, 10, 100, 1000)] == ["10m", "1h", "10h", "100h", "960h"]
    for name in rules.AMOUNTS:
        load(f"finetune.py:{name}")


def test_what_is_timed_has_configs_that_load():
    for data in (DATA, DATA._replace(train_minutes=100.0), DATA._replace(lengths=(20.0, 30.0, 36.0))):
        timed = candidates(data, None)
        assert {"logmel", *LARGE} <= timed.keys() <= {*SMALL, *LARGE}
        for candidate in timed.values():
            load(candidate.config, [(key, str(value)) for key, value in candidate.changes.items()])
    assert "cpc" not in candidates(DATA._replace(train_minutes=100.0), None)
    assert candidates(DATA, GIVEN).keys() == candidates(DATA, PRETRAINED).keys() == {"given"}
    much = DATA._replace(hours=100.0)
    assert candidates(much, GIVEN).keys() == {"given"}
    assert candidates(much, PRETRAINED)["continued"].parts == pytest.approx(128 * 75 / (5 * 15.625))
