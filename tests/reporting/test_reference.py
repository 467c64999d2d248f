"""References: real runs of the demos, against which a normal run is normal and another one is not."""

import json
import math

import pytest
from commands import ROOT
from written_runs import curve, write_run

from w2v_jax.core import config as configs
from w2v_jax.core.cli import UserError
from w2v_jax.reporting import reference
from w2v_jax.reporting.reference import compare, load_references, reference_for, write_reference
from w2v_jax.reporting.run_folder import open_folder

KNOWN = load_references()
EACH = [pytest.param(r, id=r.name) for r in KNOWN]


def made(tmp_path, *runs, data=None):
    """The reference that is made of the rows of runs with seeds 1, 2, ..."""
    folders = []
    for seed, rows in enumerate(runs, 1):
        folder = write_run(tmp_path / f"seed{seed}", rows, seed=seed)
        start = {"versions": {"Python": "3", "jax": "0", "flax": "1"}, "devices": "1 x cpu"}
        (folder / "environment.jsonl").write_text(json.dumps(start) + "\n")
        (folder / "data.json").write_text(json.dumps(data or {"train_fingerprint": "a", "eval_fingerprint": "b"}))
        folders.append(open_folder(folder, folder.name))
    write_reference("tiny", folders, tmp_path)
    return reference._read(tmp_path / "tiny.json"), folders


def test_a_run_like_the_reference_is_normal_whatever_its_seed(tmp_path):
    known, _ = made(tmp_path, curve(20), curve(20, end=1.3))
    run = open_folder(write_run(tmp_path / "run", curve(20, end=1.25), seed=7, data__root="/elsewhere"), "run")
    assert reference_for(run, [known]) is known
    result = compare(run, known)
    assert result.normal and result.word == "normal" and {row.word for row in result.rows} == {"normal"}
    assert "seeds 1, 2" in result.sentence and "Python 3, jax 0, flax 1 on 1 x cpu" in result.sentence
    newest = next(row for row in result.rows if row.metric == "loss")
    assert newest.step == 20 and newest.value == pytest.approx(1.35) and newest.low < 1.3 < 1.4 < newest.high


@pytest.mark.parametrize(
    ("change", "metric", "word"),
    [(dict(end=2.3), "loss", "worse"), (dict(end=0.2), "loss", "better"), ({}, "code_perplexity", "worse")],
)
def test_a_run_that_is_worse_is_not_normal_and_one_that_is_better_is(tmp_path, change, metric, word):
    known, _ = made(tmp_path, curve(20), curve(20))
    rows = curve(20, **change)
    if metric == "code_perplexity":
        rows = [row | {"code_perplexity": 2.0} for row in rows]
    result = compare(open_folder(write_run(tmp_path / "run", rows), "run"), known)
    newest = next(row for row in result.rows if row.metric == metric)
    assert newest.word == word and result.normal == (word == "better")


def test_where_the_reference_has_no_evaluation_near_nothing_is_called_normal(tmp_path):
    known, _ = made(tmp_path, curve(20))
    first = next(row for row in curve(20) if row["split"] == "eval")
    early = first | {"step": first["step"] // 2}
    result = compare(open_folder(write_run(tmp_path / "run", [early]), "run"), known)
    assert (result.word, result.rows) == ("nothing to compare", []) and "no evaluation near update" in result.sentence
    result = compare(open_folder(write_run(tmp_path / "dead", [early | {"loss": None}]), "dead"), known)
    assert (result.word, result.normal) == ("not normal", False)


def test_a_loss_that_is_not_finite_is_not_normal(tmp_path):
    known, _ = made(tmp_path, curve(20))
    rows = curve(20)
    rows[-1] |= {"loss": None}
    result = compare(open_folder(write_run(tmp_path / "run", rows), "run"), known)
    assert not result.normal and math.isnan(result.rows[0].value) and result.rows[0].word == "not finite"


def test_a_run_in_progress_is_compared_as_far_as_it_is(tmp_path):
    known, _ = made(tmp_path, curve(20))
    rows = curve(20)[:12]
    result = compare(open_folder(write_run(tmp_path / "run", rows, done=False), "run"), known)
    assert result.normal and {row.step for row in result.rows} == {5, 10}
    nothing = compare(open_folder(write_run(tmp_path / "none", rows[:2], done=False), "none"), known)
    assert nothing.word == "nothing to compare" and nothing.rows == []


def test_other_methods_configs_and_data_are_refused(tmp_path):
    known, _ = made(tmp_path, curve(20))
    other = open_folder(write_run(tmp_path / "cpc", curve(5), config="cpc.py:tiny"), "cpc")
    with pytest.raises(UserError, match="there is no reference of cpc .*; there are tiny"):
        reference_for(other, [known])
    changed = open_folder(write_run(tmp_path / "rate", curve(5), optim__peak=0.5), "rate")
    with pytest.raises(UserError, match=r"is no run of tiny.* 1 keys differ \(optim.peak: 0.001 -> 0.5\)"):
        reference_for(changed, [known])
    folder = write_run(tmp_path / "data", curve(5))
    (folder / "data.json").write_text(json.dumps({"train_fingerprint": "other", "eval_fingerprint": "b"}))
    with pytest.raises(UserError, match="other recordings"):
        reference_for(open_folder(folder, "data"), [known])


def test_a_reference_is_made_of_whole_runs_of_one_config(tmp_path):
    _, (first,) = made(tmp_path, curve(20))
    half = open_folder(write_run(tmp_path / "half", curve(10), done=False, seed=2), "half")
    with pytest.raises(UserError, match="not complete"):
        write_reference("x", [first, half], tmp_path)
    other = open_folder(write_run(tmp_path / "other", curve(20), seed=2, optim__peak=0.5), "other")
    with pytest.raises(UserError, match="differ: optim.peak"):
        write_reference("x", [first, other], tmp_path)
    with pytest.raises(UserError, match="a seed of its own"):
        write_reference("x", [first, first], tmp_path)
    bare = open_folder(write_run(tmp_path / "bare", curve(20)), "bare")
    with pytest.raises(UserError, match=r"environment\.jsonl"):
        write_reference("x", [bare], tmp_path)
    assert not (tmp_path / "x.json").exists()


def test_there_is_a_reference_of_every_method():
    methods = {file.stem for file in (ROOT / "w2v_jax" / "methods").glob("[!_]*.py")}
    assert {known.config.method for known in KNOWN} == methods
    for known in KNOWN:
        assert all(rows[-1]["step"] for rows in known.runs.values())


@pytest.mark.parametrize("known", EACH)
def test_a_committed_reference_is_of_the_demo_as_it_is_now(known):
    """Where the demo's config changes, its reference is to be made anew (docs/report.md)."""
    assert reference.differing_keys(configs.load(str(ROOT / "configs" / known.name)), known.config) == []


@pytest.mark.parametrize("known", EACH)
def test_each_seed_of_a_reference_is_normal_beside_the_others(tmp_path, known):
    """One that stays where it began is not. One that needs twice as many updates is worse on the way.

    The only seed of a reference is compared with itself.
    """
    for seed, rows in known.runs.items():
        others = known._replace(runs={s: r for s, r in known.runs.items() if s != seed} or known.runs)
        rows = [row | {"split": "eval"} for row in rows]
        run = open_folder(write_run(tmp_path / str(seed), rows, config=known.name), "run")
        assert compare(run, others).normal, compare(run, others)
        stuck = [rows[0] | {"step": row["step"]} for row in rows]
        run = open_folder(write_run(tmp_path / f"stuck{seed}", stuck, config=known.name), "run")
        assert not compare(run, others).normal
        late = [rows[i // 2] | {"step": row["step"]} for i, row in enumerate(rows)]
        run = open_folder(write_run(tmp_path / f"late{seed}", late, config=known.name), "run")
        assert any(row.word == "worse" for row in compare(run, others).rows)
