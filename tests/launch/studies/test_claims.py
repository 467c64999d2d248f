"""`launch/studies/claims.py`: what it makes of results; and, slowly, a whole claim that goes on after a stop."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from commands import ROOT, environment, script

from w2v_jax.data.sources import synthetic


@pytest.fixture(scope="module")
def claims():
    return script("claims")


ROWS = [
    {
        "row": row,
        "x": x,
        "seed": seed,
        "cer": x / 100 + seed / 50,
        "wer": 0.5,
        "pretrain_minutes": 2,
        "train_minutes": 1,
    }
    for row in ("pretrained", "from scratch")
    for x in (10.0, 1.0)
    for seed in (1, 2)
]


def test_rates_are_means_with_half_the_spread_over_the_seeds(claims):
    mean, spread, count = claims.summary(ROWS, "cer")["pretrained", 10.0]
    assert (mean, spread, count) == (pytest.approx(0.13), pytest.approx(0.01), 2)
    lines = claims.table(ROWS).splitlines()
    assert len(lines) == 5 and "13.0% ± 1.0%" in lines[1] and lines[1].split()[0] == "pretrained"


def test_rows_that_are_no_results_are_marked(claims):
    rows = [row | {"on_plateau": row["x"] == 1.0 and row["seed"] == 2, "same_speakers": True} for row in ROWS]
    lines = claims.table(rows).splitlines()[1:]
    assert ["no result: 1 of 2 ended on the plateau" in line for line in lines] == [False, True, False, True]
    assert all(line.endswith("same speakers") for line in lines)


def test_recognisers_that_ended_on_the_plateau_are_in_no_mean_and_no_plot(claims, tmp_path):
    stuck = [row | {"on_plateau": True} if row["seed"] == 2 else row for row in ROWS]
    assert claims.summary(stuck, "cer")["pretrained", 10.0][2] == 1
    rows = [row | {"on_plateau": row["row"] == "pretrained"} for row in ROWS]
    assert {name for name, _ in claims.summary(rows, "cer")} == {row["row"] for row in ROWS} - {"pretrained"}
    pretrained = [line for line in claims.table(rows).splitlines() if line.startswith("pretrained")]
    assert pretrained and not any("%" in line for line in pretrained)
    claims.draw(rows, "labels", tmp_path / "plot.png")
    claims.draw([row | {"on_plateau": True} for row in ROWS], "labels", tmp_path / "empty.png")


def test_speakers_of_the_test_in_training_are_refused_unless_allowed(claims, tmp_path, capsys):
    corpus = synthetic.write_corpus(tmp_path / "corpus", 0.02)
    words = ["inputs", "--train", str(corpus), "--test", str(corpus), "--out", str(tmp_path / "out")]
    with pytest.raises(SystemExit):
        claims.main(words)
    assert "--test and --train share" in capsys.readouterr().err and not (tmp_path / "out").exists()


@pytest.mark.parametrize("claim", ["inputs", "unlabelled", "labels"])
def test_every_claim_has_a_plot(claims, claim, tmp_path):
    rows = [row | {"x": row["row"]} for row in ROWS] if claim == "inputs" else ROWS
    claims.draw(rows, claim, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 5000


def test_results_of_earlier_calls_stay_and_those_made_again_are_replaced(claims):
    again = [ROWS[0] | {"cer": 0.9}, ROWS[0] | {"row": "another"}]
    rows = claims.merged(ROWS, again)
    assert len(rows) == len(ROWS) + 1 and rows[0] == again[0] and rows[1:-1] == ROWS[1:] and rows[-1] == again[1]


def test_a_run_made_with_other_flags_is_not_taken_for_its_own(claims, monkeypatch, tmp_path):
    ran = []
    monkeypatch.setattr(claims, "command", lambda *words: ran.append(words) or (tmp_path / "cpc-1/done.json").touch())
    for _ in range(2):
        claims.train("cpc.py:demo", tmp_path / "cpc-1", ["--config.seed=1", "--config.train.steps=10"])
    assert len(ran) == 1
    with pytest.raises(SystemExit, match=r"cpc-1 was made with other flags \(.*steps=10 .*steps=20\)"):
        claims.train("cpc.py:demo", tmp_path / "cpc-1", ["--config.seed=1", "--config.train.steps=20"])
    assert len(ran) == 1


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_claim_is_reproduced_and_goes_on_where_it_was(tmp_path):
    corpus, out = synthetic.write_corpus(tmp_path / "corpus", 0.2), tmp_path / "out"
    words = [
        sys.executable,
        str(ROOT / "launch" / "studies" / "claims.py"),
        "unlabelled",
        "--inputs",
        "cpc",
        "--seeds",
        "1",
    ]
    words += [
        "--train",
        str(corpus / "train"),
        "--test",
        str(corpus / "dev"),
        "--out",
        str(out),
        "--seconds",
        "6.0",
        "16.0",
        "--steps",
        "3",
    ]
    words += ["--minutes", "1", "--hours", "0.1", "--pretrain-steps", "2"]
    first = subprocess.run(words, capture_output=True, text=True, env=environment(), timeout=900)
    assert first.returncode == 0, first.stderr + first.stdout
    assert first.stdout.count("w2v_jax.train") == 2
    rows = json.loads((out / "unlabelled.json").read_text(encoding="utf-8"))
    assert [row["x"] for row in rows] == [0.1] and all(row["recordings"] for row in rows)
    again = subprocess.run(words, capture_output=True, text=True, env=environment(), timeout=300)
    assert again.returncode == 0 and "w2v_jax." not in again.stdout
