"""Panels: the values that were logged, in the colour of their run, with the levels of the method."""

import re

import numpy as np
import pytest
from written_runs import curve, write_run

from w2v_jax.reporting import panels
from w2v_jax.reporting.markup import document
from w2v_jax.reporting.panels import Panel, figures, with_numbers
from w2v_jax.reporting.run_folder import open_run_folders


def runs_of(tmp_path, *rows, **options):
    return with_numbers(
        open_run_folders([write_run(tmp_path / f"run{i}", r, **options) for i, r in enumerate(rows, 1)])
    )


def points(root, gid):
    """[N 2] the corners of a line, in the units of the drawing."""
    group = next(node for node in root.iter() if node.get("id") == gid)
    path = next(node.get("d") for node in group.iter() if node.tag == "path" and node.get("d").startswith("M"))
    return np.array([[float(x) for x in pair] for pair in re.findall(r"[ML] ([-\d.]+) ([-\d.]+)", path)])


def test_a_line_has_the_shape_of_what_was_logged(tmp_path):
    """Values are read off the drawing: equal steps are equally far apart, and so are equal differences of the loss."""
    rows = [{"step": s, "split": "train", "loss": loss} for s, loss in ((1, 3.0), (2, 1.0), (4, 2.0))]
    (figure,) = figures([Panel("loss", "Loss")], runs_of(tmp_path, rows), "learn")
    x, y = points(figure, "line-learn-loss-train-1").T
    assert (x[2] - x[0]) / (x[1] - x[0]) == pytest.approx(3.0, abs=0.02)
    assert (y[2] - y[0]) / (y[1] - y[0]) == pytest.approx(0.5, abs=0.02) and y[1] > y[0], "SVG counts downwards"
    assert "2 training" in document(figure), "the newest value"


def test_each_run_and_split_has_a_line_with_its_name_colour_and_last_value(tmp_path):
    runs = runs_of(tmp_path, curve(20), curve(20, end=1.8))
    (loss,) = figures(panels.LEARNING[:1], runs, "learn")
    text = document(loss)
    for number, last in ((1, "1.2"), (2, "1.8")):
        assert f'id="line-learn-loss-train-{number}"' in text and f'id="line-learn-loss-eval-{number}"' in text
        assert f"run{number}: Loss, nats, training, {last} at update 20" in text and f"var(--run-{number})" in text
    assert "chance 2.398" in text
    assert len(points(loss, "line-learn-loss-eval-1")) == 4


def test_runs_with_other_levels_each_get_theirs(tmp_path):
    one = write_run(tmp_path / "one", curve(5))
    other = write_run(tmp_path / "other", curve(5), config="hubert_base.py:tiny")
    (loss,) = figures(panels.LEARNING[:1], with_numbers(open_run_folders([one, other])), "learn")
    assert "chance 2.398" in document(loss) and "chance 3.045" in document(loss)


def test_a_panel_that_nobody_logged_is_not_there(tmp_path):
    assert figures([Panel("token_error", "Errors")], runs_of(tmp_path, curve(5)), "learn") == []


def test_a_long_line_is_thinned_and_keeps_its_end(tmp_path):
    rows = [{"step": s, "split": "train", "loss": 5.0 - s / 1000} for s in range(1, 3001)]
    (figure,) = figures([Panel("loss", "Loss")], runs_of(tmp_path, rows), "learn")
    assert len(points(figure, "line-learn-loss-train-1")) <= panels.POINTS + 1
    assert len(document(figure)) < 40_000
    assert panels.thinned(list(range(1000)))[-1] == 999


def test_what_was_not_finite_leaves_a_gap_and_a_curve(tmp_path):
    rows = curve(6, grad_norm=0.0)
    rows[1] |= {"loss": None}
    found = figures((*panels.LEARNING[:1], *panels.UPDATES), runs_of(tmp_path, rows), "x")
    assert len(found) == 3, "a gradient of zero has no logarithm and is drawn all the same"


def test_every_metric_is_shown_once(tmp_path):
    rows = curve(3, purity=0.5, accuracy_step_01=0.4, **{"hours/de": 1.0, "epochs/de": 0.5})
    rows.append({"step": 3, "split": "probe", "probe_context": 0.7})
    runs = [run for _, run in runs_of(tmp_path, rows)]
    assert [panel.metric for panel in panels.other_metrics(runs)] == ["purity", "skipped_updates"]
    assert panels.family(runs, "hours/", "hours") == [Panel("hours/de", "de, hours")]
    assert [panel.metric for panel in panels.family(runs, panels.PROBED, "score")] == ["probe_context"]


def test_different_names_have_different_words():
    names = ["a/b", "a-b", "a b", "a_b", "ab"]
    assert len({panels.slug(name) for name in names}) == len(names)
    assert panels.slug("grad_norm") == "grad_norm"


def test_codes_are_maps_over_time_for_each_group(tmp_path):
    usage = [{"step": s, "code_usage": [[0.5, 0.5, 0.0], [0.0, 0.0, 1.0]]} for s in (5, 10)]
    ((number, run),) = runs_of(tmp_path, curve(10), usage=usage)
    maps = panels.usage_maps(run, number)
    texts = [document(figure) for figure in maps]
    assert len(maps) == 2 and all("data:image/png" in text for text in texts)
    assert "2 of 3 codes occurred at the last evaluation; the most frequent one had 50.0% of the frames" in texts[0]
    assert "1 of 3 codes" in texts[1] and "group 2" in texts[1]
    assert panels.ahead_maps(run, number) == []


def test_the_accuracy_by_steps_ahead_is_a_map(tmp_path):
    rows = curve(5, accuracy_step_01=0.4, accuracy_step_02=0.2)
    ((number, run),) = runs_of(tmp_path, rows, config="cpc.py:tiny")
    (figure,) = panels.ahead_maps(run, number)
    assert "One step ahead 40.0%, 2 steps ahead 20.0%" in document(figure)
    assert panels.usage_maps(run, number) == []
