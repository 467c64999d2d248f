"""Curves: drawn from any rows, with the panels and levels that the method logs."""

import math

import pytest
from test_console import LEVELS, row

from w2v_jax.training import console, curves


@pytest.mark.parametrize("count", [0, 1, 2, 500])
def test_curves_are_drawn_for_any_number_of_rows(tmp_path, count):
    rows = [row(s, data_wait_share=0.1, audio_hours_per_hour=5.0, skipped_updates=1) for s in range(1, count + 1)]
    rows += [row(count, "eval"), row(count, loss=None)]
    curves.draw_curves(rows, tmp_path / "curves.png", LEVELS)
    assert [p.name for p in tmp_path.iterdir()] == ["curves.png"]


def test_curves_show_the_levels_and_both_splits(tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    figures = []
    monkeypatch.setattr(Figure, "savefig", lambda self, path, **_: (figures.append(self), open(path, "w").close()))
    curves.draw_curves([row(1), row(2), row(2, "eval")], tmp_path / "curves.png", LEVELS)
    texts = {text.get_text() for ax in figures[0].axes for text in ax.texts}
    assert {"chance 4.615", "chance 0.0099", "collapse 2", "maximum 640"} <= texts
    titles = [ax.get_title(loc="left") for ax in figures[0].axes]
    assert [title for title in titles if title] == [
        "Loss, nats per prediction",
        "Accuracy of the predictions",
        "Codebook perplexity",
        "Gradient norm",
        "Learning rate and temperature",
        "Speed and time waiting for data",
    ]
    assert [text.get_text() for text in figures[0].axes[0].get_legend().get_texts()] == ["train", "eval"]


def test_panels_are_those_of_what_was_logged(tmp_path, monkeypatch):
    """A model over codes has no perplexity; its loss stands beside that of counting."""
    from matplotlib.figure import Figure

    figures = []
    monkeypatch.setattr(Figure, "savefig", lambda self, path, **_: (figures.append(self), open(path, "w").close()))
    rows = [
        dict(step=s, split="train", loss=4.0, unigram_loss=5.0, masked_share=0.4, unknown_share=0.0) for s in (1, 2)
    ]
    curves.draw_curves(rows, tmp_path / "curves.png", {"loss_chance": 6.0, "accuracy_chance": 0.1})
    titles = [ax.get_title(loc="left") for ax in figures[0].axes]
    assert "Share of frames" in titles and "Codebook perplexity" not in titles
    assert [text.get_text() for text in figures[0].axes[0].get_legend().get_texts()] == ["train", "unigram train"]
    assert "unigram  5.000" in console.progress_line(rows[0], 2)
    rows = [{"step": 1, "split": "train", "accuracy_step_01": 0.5}]
    curves.draw_curves(rows, tmp_path / "curves.png")
    assert "Accuracy by how many steps ahead" in [ax.get_title(loc="left") for ax in figures[1].axes]
    rows = [dict(step=1, split="eval", loss=2.0, blank_share=0.9, token_error=0.4)]
    curves.draw_curves(rows, tmp_path / "curves.png", {"error_silent": 1.0})
    titles = [ax.get_title(loc="left") for ax in figures[2].axes]
    assert {"Loss, nats per token", "Token error rate of the best path", "Share of frames"} <= set(titles)
    assert figures[2].axes[1].get_ylim()[1] > 1.0, "the level of saying nothing is in the panel"
    assert "blank 0.90  err 0.400" in console.progress_line(rows[0], 2)
    assert "saying nothing 1.000" in console.legend({"error_silent": 1.0})


def test_units_are_drawn_beside_their_labels(tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    figures = []
    monkeypatch.setattr(Figure, "savefig", lambda self, path, **_: (figures.append(self), open(path, "w").close()))
    both = dict(accuracy=0.3, unmasked_accuracy=0.5, loss=2.0, unmasked_loss=1.5)
    rows = [both | dict(step=s, split="train", label_entropy=math.log(8), prediction_perplexity=4.0) for s in (1, 2)]
    curves.draw_curves([*rows, dict(step=2, split="train", label_entropy=None)], tmp_path / "curves.png")
    loss, accuracy, units = figures[0].axes[:3]
    shown = lambda ax: [text.get_text() for text in ax.get_legend().get_texts()]
    assert shown(loss) == ["train", "unmasked train", "entropy of the labels, train"]
    assert shown(accuracy) == ["train", "unmasked train"] and shown(units) == ["predicted train", "labels train"]
    assert units.get_title(loc="left") == "Units in use (perplexity)"
    assert [line.get_ydata()[0] for line in units.lines] == pytest.approx([4.0, 8.0, 1.0])
    assert "entropy  2.079" in console.progress_line(rows[0], 2)
