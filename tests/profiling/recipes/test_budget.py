"""Plans: they keep to the budget, their commands are ones that the package accepts, and too little time is told."""

import pathlib
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from recipe_facts import ACCELERATOR, PROCESSOR, facts
from test_docs import accept

from w2v_jax.core.cli import UserError
from w2v_jax.core.config import load
from w2v_jax.profiling.recipes.budget import check_disk, least_minutes, make_plan
from w2v_jax.profiling.recipes.rules import FINE_TUNED, Init
from w2v_jax.profiling.recipes.speed import Timing
from w2v_jax.profiling.recipes.start_model import continued

WAV2VEC2 = Init("runs/base", True, "wav2vec2", config="finetune.py:10m", changes={"data.normalize": True})
DOWNLOADED = WAV2VEC2._replace(path="DOWNLOADED", is_run=False)
OWN_CPC = Init("runs/cpc", True, "cpc", config="acoustic_frozen.py:cpc_demo", changes=FINE_TUNED)
FURTHER = {"given": Timing(0.05, 60.0, 3 * 10**8), "continued": Timing(2.5, 60.0, 3 * 10**8)}
PLANS = {
    "log-mel": facts(train_minutes=60.0),
    "two models": facts(train_minutes=60.0, budget=86_400.0),
    "CPC": facts(),
    "threads": facts(machine=PROCESSOR._replace(loader="threads", slow_bfloat16=True)),
    "one length": facts(lengths=(1.0, 1.0, 1.0), crop=1.0, tokens_per_second=31.0),
    "given": facts(init=WAV2VEC2, budget=86_400.0, machine=PROCESSOR._replace(slow_bfloat16=True)),
    "downloaded": facts(init=DOWNLOADED, budget=86_400.0),
    "own": facts(init=OWN_CPC, budget=7200.0, timings={"given": Timing(0.3, 8.0, 1_200_000)}),
    "pretrained further": facts(
        init=DOWNLOADED._replace(pretraining=continued(load("w2v2_large.py"))),
        budget=172_800.0,
        machine=ACCELERATOR,
        hours=100.0,
        timings=FURTHER,
    ),
    "wav2vec 2.0": facts(budget=259_200.0, machine=ACCELERATOR, hours=960.0),
    "HuBERT": facts(budget=259_200.0, machine=ACCELERATOR, hours=50.0),
}


@pytest.mark.parametrize("name", PLANS)
def test_commands_are_accepted_and_lead_to_scores_and_a_report(name):
    plan = make_plan(PLANS[name], "runs/x", "unheard")
    for step in plan.steps:
        accept(f"-m {step.command[0]}", step.command[1:])
        assert step.seconds > 0
    names = [step.name for step in plan.steps]
    assert names[-4:] == ["recogniser", "score dev", "score test", "report"] and len(set(names)) == len(names)
    made = [word.removeprefix("--workdir=") for step in plan.steps for word in step.command if "--workdir" in word]
    assert plan.recogniser == made[-1]
    started = [word.partition("init.run=")[2] for step in plan.steps for word in step.command if "init.run=" in word]
    assert all(run in made or run in ("runs/base", "runs/cpc", "runs/x/imported") for run in started)


seconds = st.floats(1e-3, 60.0)


@given(
    budget=st.floats(60.0, 1e6),
    timings=st.fixed_dictionaries(
        {
            name: st.builds(Timing, seconds, seconds, st.integers(1, 10**9))
            for name in ("logmel", "cpc", "cpc_ctc", "base", "hubert", "finetune", "given", "continued")
        }
    ),
    data=st.fixed_dictionaries(
        {"hours": st.floats(0.02, 1e4), "train_minutes": st.floats(0.5, 1e4), "dev_minutes": st.floats(0.5, 20.0)}
    ),
    machine=st.sampled_from([PROCESSOR, ACCELERATOR]),
    init=st.sampled_from([None, WAV2VEC2, DOWNLOADED._replace(pretraining=("w2v2_base.py", {}))]),
)
def test_a_plan_keeps_to_its_budget_or_is_refused(budget, timings, data, machine, init):
    names = {"given"} if init else timings.keys() - {"given", "continued"}
    names |= {"continued"} if init and init.pretraining else set()
    names -= {"base", "hubert", "finetune", "continued"} if machine is PROCESSOR else set()
    timings = {name: timings[name] for name in names}
    known = facts(budget=budget, timings=timings, machine=machine, init=init, **data)
    try:
        plan = make_plan(known, "out")
    except UserError as error:
        assert "--budget" in str(error) and (init is None or least_minutes(known) * 60 > budget)
        return
    assert 0 < plan.seconds <= budget
    updates = [int(n) for step in plan.steps for n in re.findall(r"train.steps=(\d+)", " ".join(step.command))]
    assert updates and min(updates) >= 300


def test_a_given_model_is_pretrained_on_all_audio_before_it_learns_letters():
    steps = make_plan(PLANS["pretrained further"], "out").steps
    assert [step.name for step in steps] == ["convert", "pretraining", "recogniser", "score dev", "report"]
    first, second = (" ".join(step.command) for step in steps[1:3])
    for word in ("init.run=out/imported", "data.root=out/lists/audio.jsonl", "optim.peak=3e-05", "=(0.5,0.1,0.999995)"):
        assert word in first
    assert "init.run=out/pretraining" in second and "data.root=out/lists/train.jsonl" in second
    assert steps[1].seconds == pytest.approx(0.45 * 172_800, rel=0.02)


def test_more_time_never_gives_fewer_updates():
    updates = []
    for budget in (900, 1800, 3600, 7200):
        (step,) = (
            s for s in make_plan(facts(budget=budget, train_minutes=60.0), "out").steps if s.name == "recogniser"
        )
        flags = dict(word.split("=", 1) for word in step.command if "=" in word)
        updates.append(int(flags["--config.train.steps"]))
    assert updates == sorted(updates) and updates[0] < updates[-1]


def test_too_small_a_budget_is_told_with_the_least_that_would_do():
    known = facts(budget=60.0)
    with pytest.raises(UserError, match=r"--budget: 1 min 00 s are too few here: the least .* is (\d+) min"):
        make_plan(known, "out")
    make_plan(known._replace(budget=60 * least_minutes(known) + 60), "out")


def test_a_disk_without_room_is_told_with_what_is_needed():
    plan = make_plan(PLANS["wav2vec 2.0"], "out")
    check_disk(plan, 1e12, pathlib.Path("out"))
    with pytest.raises(UserError, match=r"take up to 9\.\d GB, and 1\.0 GB are free"):
        check_disk(plan, 1e9, pathlib.Path("out"))
