"""curves.png: what a run logged, drawn for people, with the levels of chance and collapse. Imports no jax."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from w2v_jax.core.files import whole_file
from w2v_jax.core.types import Levels, MetricsRow
from w2v_jax.training.watchdog import best_evaluation

PROBE = "probe_"
TRAIN, EVAL, SECOND, LEVEL = "#2b6cb0", "#c05621", "#2f855a", "#718096"
MAX_POINTS = 2000


def draw_curves(rows: Sequence[MetricsRow], path, levels: Levels | None = None) -> None:
    """Draws the curves of a run: loss, accuracy, perplexities, gradient norm, schedules and speed, with `levels`."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    levels = levels or {}
    figure = Figure(figsize=(12, 11), dpi=110)
    FigureCanvasAgg(figure)
    # Fixed places: a layout solver would draw everything three times.
    place = dict(left=0.07, right=0.93, top=0.965, bottom=0.05, hspace=0.34, wspace=0.3)
    axes = figure.subplots(3, 2, gridspec_kw=place)
    _draw_loss(axes[0, 0], rows, levels)
    _draw_accuracy(axes[0, 1], rows, levels)
    _panel_of_method(rows)(axes[1, 0], rows, levels)
    _draw_gradient(axes[1, 1], rows)
    _draw_schedules(axes[2, 0], rows)
    _draw_speed(axes[2, 1], rows)
    for ax in axes.flat:
        ax.set_xlabel("step", color="#4a5568")
        ax.grid(color="#e2e8f0", linewidth=0.8)
        ax.set_axisbelow(True)
        ax.spines[["top", "right"]].set_visible(False)
        if not ax.lines and not ax.collections:
            ax.text(0.5, 0.5, "nothing logged yet", transform=ax.transAxes, ha="center", color=LEVEL)
        elif ax.get_legend_handles_labels()[0]:
            ax.legend(frameon=False, fontsize=9, loc="best")
    with whole_file(path) as partial:
        figure.savefig(partial, format="png")


def _panel_of_method(rows: Sequence[MetricsRow]) -> Callable[[Any, Sequence[MetricsRow], Levels], None]:
    """The panel for what only some methods log: perplexities, else the steps ahead, else shares of frames."""
    names = {name for row in rows for name in row}
    if "prediction_perplexity" in names:
        return _draw_units
    if "code_perplexity" in names or not names & {"accuracy_step_01", "masked_share", "blank_share"}:
        return _draw_perplexity
    return _draw_steps if "accuracy_step_01" in names else _draw_shares


def series(rows: Sequence[MetricsRow], name: str, split: str) -> tuple[list[int], list[float]]:
    """(steps, values) of a metric in the rows of a split, at most MAX_POINTS of them."""
    points = [(r["step"], r[name]) for r in rows if r.get("split") == split and r.get(name) is not None]
    points = points[:: len(points) // MAX_POINTS + 1]
    return [step for step, _ in points], [float(value) for _, value in points]


def smooth(values: Sequence[float]) -> list[float]:
    """A centred running mean over about a thirtieth of the points."""
    half = len(values) // 60
    return [math.fsum(v := values[max(0, i - half) : i + half + 1]) / len(v) for i in range(len(values))]


def _plot(ax, rows: Sequence[MetricsRow], name: str, *, label: str = "", color: str = TRAIN) -> None:
    """The training series, faint with its running mean where it is long, and the evaluations as dots."""
    steps, values = series(rows, name, "train")
    if len(steps) >= 120:
        ax.plot(steps, values, color=color, alpha=0.25, linewidth=0.8)
        ax.plot(steps, smooth(values), color=color, linewidth=1.8, label=f"{label} train".strip())
    elif steps:
        marker = "o" if len(steps) < 3 else ""
        ax.plot(steps, values, color=color, linewidth=1.6, marker=marker, markersize=3, label=f"{label} train".strip())
    steps, values = series(rows, name, "eval")
    if steps:
        color = EVAL if color == TRAIN else color
        style = {"linestyle": "--", "linewidth": 1.2, "marker": "o", "markersize": 3.5}
        ax.plot(steps, values, color=color, label=f"{label} eval".strip(), **style)


def draw_level(ax, value: float | None, text: str) -> None:
    """A dashed line across the panel, with its name and `value` above it: text "chance {:.3f}"."""
    if value is not None:
        ax.axhline(value, color=LEVEL, linestyle=(0, (4, 3)), linewidth=1.2)
        place = {"textcoords": "offset points", "xytext": (-3, 3), "xycoords": ("axes fraction", "data")}
        ax.annotate(text.format(value), (1.0, value), ha="right", va="bottom", fontsize=9, color=LEVEL, **place)


def _draw_loss(ax, rows: Sequence[MetricsRow], levels: Levels) -> None:
    ax.set_title(f"Loss, nats per {'token' if 'error_silent' in levels else 'prediction'}", loc="left")
    _plot(ax, rows, "loss")
    _plot(ax, rows, "loss_gap", label="held-out less training,", color=LEVEL)
    _plot(ax, rows, "unigram_loss", label="unigram", color=SECOND)
    _plot(ax, rows, "unmasked_loss", label="unmasked", color=SECOND)
    _plot(ax, rows, "label_entropy", label="entropy of the labels,", color=LEVEL)
    draw_level(ax, levels.get("loss_chance"), "chance {:.3f}")


def _draw_accuracy(ax, rows: Sequence[MetricsRow], levels: Levels) -> None:
    if "error_silent" in levels:
        return _draw_error(ax, rows, levels)
    ax.set_title("Accuracy of the predictions", loc="left")
    _plot(ax, rows, "accuracy")
    _plot(ax, rows, "unmasked_accuracy", label="unmasked", color=SECOND)
    for name in _names(rows, PROBE):
        style = {"color": LEVEL, "linestyle": ":"} if name == "probe_log-mel" else {"color": SECOND, "marker": "o"}
        ax.plot(*series(rows, name, "probe"), label=f"probe: {name[len(PROBE) :]}", markersize=3.5, **style)
    ax.set_ylim(-0.02, 1.02)
    draw_level(ax, levels.get("accuracy_chance"), "chance {:.3g}")


def _draw_error(ax, rows: Sequence[MetricsRow], levels: Levels) -> None:
    ax.set_title("Token error rate of the best path", loc="left")
    _plot(ax, rows, "token_error")
    if best := best_evaluation(rows, "token_error"):
        label = f"best {best.value:.3f} at step {best.step:,}"
        ax.plot([best.step], [best.value], color=SECOND, marker="*", markersize=11, linestyle="", label=label)
    ax.set_ylim(0, max(1.1, ax.get_ylim()[1]))
    draw_level(ax, levels["error_silent"], "saying nothing")


def _draw_perplexity(ax, rows: Sequence[MetricsRow], levels: Levels) -> None:
    ax.set_title("Codebook perplexity", loc="left")
    _plot(ax, rows, "prob_perplexity", label="prob")
    _plot(ax, rows, "code_perplexity", label="code", color=SECOND)
    ax.set_yscale("log")
    ax.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    draw_level(ax, levels.get("perplexity_floor"), "collapse {:g}")
    draw_level(ax, levels.get("perplexity_max"), "maximum {:g}")


def _draw_units(ax, rows: Sequence[MetricsRow], levels: Levels) -> None:
    ax.set_title("Units in use (perplexity)", loc="left")
    labels = [
        dict(row) | {"labels": math.exp(row["label_entropy"])} for row in rows if row.get("label_entropy") is not None
    ]
    _plot(ax, rows, "prediction_perplexity", label="predicted")
    _plot(ax, labels, "labels", label="labels", color=SECOND)
    ax.set_yscale("log")
    ax.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    draw_level(ax, 1.0, "one unit everywhere")


def _names(rows: Sequence[MetricsRow], prefix: str) -> list[str]:
    """The metrics of the rows whose names begin with the prefix."""
    return sorted({name for row in rows for name in row if name.startswith(prefix)})


def _draw_steps(ax, rows: Sequence[MetricsRow], levels: Levels) -> None:
    ax.set_title("Accuracy by how many steps ahead", loc="left")
    names = _names(rows, "accuracy_step_")
    for name in names[:: max(1, len(names) // 4)]:
        steps, values = series(rows, name, "train")
        label = name.removeprefix("accuracy_step_").lstrip("0")
        ax.plot(steps, smooth(values), linewidth=1.6, label=label, alpha=1 - 0.7 * names.index(name) / len(names))
    ax.set_ylim(-0.02, 1.02)
    draw_level(ax, levels.get("accuracy_chance"), "chance {:.3g}")


def _draw_shares(ax, rows: Sequence[MetricsRow], levels: Levels) -> None:
    ax.set_title("Share of frames", loc="left")
    _plot(ax, rows, "masked_share", label="masked")
    _plot(ax, rows, "unknown_share", label="unknown", color=SECOND)
    _plot(ax, rows, "blank_share", label="blank")
    ax.set_ylim(-0.02, 1.02)


def _draw_gradient(ax, rows: Sequence[MetricsRow]) -> None:
    ax.set_title("Gradient norm", loc="left")
    _plot(ax, rows, "grad_norm")
    if any(value > 0 for value in series(rows, "grad_norm", "train")[1]):
        ax.set_yscale("log", subs=(2, 5))
        for formatted in (ax.yaxis.set_major_formatter, ax.yaxis.set_minor_formatter):
            formatted(lambda value, _: f"{value:g}")
    skipped = series(rows, "skipped_updates", "train")[1]
    if skipped and skipped[-1]:
        ax.text(0.02, 0.04, f"{skipped[-1]:.0f} updates skipped", transform=ax.transAxes, color=EVAL, fontsize=9)


def _draw_schedules(ax, rows: Sequence[MetricsRow]) -> None:
    ax.set_title("Learning rate and temperature", loc="left")
    _draw_two(ax, rows, left=("learning_rate", "learning rate"), right=("temperature", "temperature"))
    ax.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3))


def _draw_speed(ax, rows: Sequence[MetricsRow]) -> None:
    ax.set_title("Speed and time waiting for data", loc="left")
    right = _draw_two(
        ax,
        rows,
        left=("audio_hours_per_hour", "hours of audio per hour"),
        right=("data_wait_share", "% waiting"),
        factor=100,
    )
    ax.set_ylim(bottom=0)
    if right is not None:
        right.set_ylim(0, 100)


def _draw_two(ax, rows: Sequence[MetricsRow], *, left: tuple[str, str], right: tuple[str, str], factor: float = 1):
    """Two series of different units: the left axis in the training colour, the right one, if logged, in another.

    factor: what the values of the right one are multiplied with.
    """
    ax.plot(*series(rows, left[0], "train"), color=TRAIN, linewidth=1.6)
    ax.set_ylabel(left[1], color=TRAIN)
    steps, values = series(rows, right[0], "train")
    if not steps:
        return None
    twin = ax.twinx()
    twin.plot(steps, [factor * value for value in values], color=SECOND, linewidth=1.6)
    twin.set_ylabel(right[1], color=SECOND)
    twin.spines[["top"]].set_visible(False)
    return twin
