"""The curves of several runs, one metric a panel: each run has its colour, and the levels of its method are dashed.

Runs of one method share the panels of what they learn. All runs share those of gradients, schedules and speed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from w2v_jax.reporting.markup import RUNS, Element, new_figure, svg, tag
from w2v_jax.reporting.run_folder import RunFolder
from w2v_jax.training.curves import draw_level, series, smooth

POINTS = 300
"""At most so many points of a line, which is smoothed before."""
SMOOTH_FROM = 120
"""A line of as many points is faint, with its running mean over it."""


class Panel(NamedTuple):
    """A metric and how it is shown. levels: (a name of `Levels`, its text). beside: metrics that are dotted.

    factor: what values are multiplied with.
    """

    metric: str
    title: str
    levels: tuple[tuple[str, str], ...] = ()
    beside: tuple[tuple[str, str], ...] = ()
    log: bool = False
    factor: float = 1.0


PERPLEXITY = (("perplexity_floor", "collapse {:g}"), ("perplexity_max", "maximum {:g}"))
LEARNING = (
    Panel(
        "loss",
        "Loss, nats",
        (("loss_chance", "chance {:.3f}"),),
        beside=(("unigram_loss", "counting alone"), ("label_entropy", "entropy of the labels")),
    ),
    Panel("accuracy", "Accuracy of the predictions", (("accuracy_chance", "chance {:.3g}"),)),
    Panel("token_error", "Token error rate of the best path", (("error_silent", "saying nothing"),)),
    Panel("loss_gap", "Held-out loss less training loss"),
    Panel("blank_share", "Share of frames that are blank"),
    Panel("unmasked_accuracy", "Accuracy at frames that are not hidden"),
)
CODES = (
    Panel("code_perplexity", "Codes in use (perplexity)", PERPLEXITY, log=True),
    Panel("prob_perplexity", "Perplexity of the mean probabilities", PERPLEXITY, log=True),
    Panel("prediction_perplexity", "Units predicted (perplexity)", log=True),
)
UPDATES = (
    Panel("grad_norm", "Gradient norm", log=True),
    Panel("learning_rate", "Learning rate"),
    Panel("temperature", "Temperature of the quantizer"),
)
SPEED = (
    Panel("audio_hours_per_hour", "Hours of audio per hour"),
    Panel("step_seconds", "Seconds per update"),
    Panel("data_wait_share", "Waiting for data, % of the time", factor=100.0),
    Panel("padding_share", "Padding, % of the batch", factor=100.0),
)
COUNTERS = ("step", "split", "epoch")
HEARD = ("hours/", "epochs/")
"""What metrics of each corpus begin with."""
PROBED = "probe_"
AHEAD = re.compile(r"accuracy_step_(\d+)")


def slug(text: str) -> str:
    """A word that an id may hold, another one for each text."""
    return re.sub(r"[^A-Za-z0-9_]", lambda match: f"-{ord(match[0]):x}-", text)


def with_numbers(runs: Sequence[RunFolder]) -> list[tuple[int, RunFolder]]:
    """The runs with their numbers on the page, from 1."""
    return list(enumerate(runs, 1))


def other_metrics(runs: Iterable[RunFolder]) -> list[Panel]:
    """A panel for each metric that no other place of the page shows."""
    known = {panel.metric for panel in (*LEARNING, *CODES, *UPDATES, *SPEED)}
    known |= {name for panel in LEARNING for name, _ in panel.beside}
    names = {name for run in runs for row in run.rows for name, value in row.items() if isinstance(value, int | float)}
    left = [n for n in names - known - set(COUNTERS) if not AHEAD.fullmatch(n) and not n.startswith((*HEARD, PROBED))]
    return [Panel(name, name) for name in sorted(left)]


def family(runs: Iterable[RunFolder], prefix: str, words: str) -> list[Panel]:
    """A panel for each metric whose name begins with the prefix, titled by the rest of the name and the words."""
    names = {name for run in runs for row in run.rows for name in row if name.startswith(prefix)}
    return [Panel(name, f"{name.removeprefix(prefix)}, {words}") for name in sorted(names)]


def figures(panels: Iterable[Panel], runs: Sequence[tuple[int, RunFolder]], place: str) -> list[Element]:
    """A <figure> for each panel that any of the (numbered) runs logged. place: a word unlike those of other calls."""
    drawn = (_figure(panel, runs, place) for panel in panels)
    return [figure for figure in drawn if figure is not None]


def _figure(panel: Panel, runs: Sequence[tuple[int, RunFolder]], place: str) -> Element | None:
    with new_figure(4.6, 2.5) as figure:
        titles, captions = _draw(panel, runs, place, ax=figure.add_subplot())
        if not captions:
            return None
        drawing = svg(figure, f"{place}-{slug(panel.metric)}", f"{panel.title} over the updates", titles=titles)
    return tag("figure", tag("h4", panel.title), drawing, tag("figcaption", *captions))


def _draw(
    panel: Panel, runs: Sequence[tuple[int, RunFolder]], place: str, *, ax: Any
) -> tuple[dict[str, str], list[Element]]:
    """Draws the runs; (what each line is, for `svg`; the last values of each run)."""
    from matplotlib.ticker import LogLocator

    titles, captions = {}, []
    for number, run in runs:
        last = []
        for split, word in (("train", "training"), ("eval", "held out"), ("probe", "probe")):
            steps, values = series(run.rows, panel.metric, split)
            if not steps:
                continue
            values = [value * panel.factor for value in values]
            gid = f"line-{place}-{slug(panel.metric)}-{split}-{number}"
            _draw_line(ax, steps, values, split=split, color=RUNS[number - 1], gid=gid)
            titles[gid] = f"{run.name}: {panel.title}, {word}, {number_text(values[-1])} at update {steps[-1]:,}"
            last.append(f"{number_text(values[-1])} {word}")
        for metric, text in panel.beside:
            steps, values = series(run.rows, metric, "train")
            if steps:
                gid = f"line-{place}-{slug(metric)}-train-{number}"
                _draw_line(ax, steps, smooth(values), split="beside", color=RUNS[number - 1], gid=gid)
                titles[gid] = f"{run.name}: {text}, {number_text(values[-1])} at update {steps[-1]:,}"
                last.append(f"{text} (dotted) {number_text(values[-1])}")
        if last:
            captions.append(tag("span", swatch(number), ", ".join(last)))
    if panel.log and any(min(line.get_ydata(), default=0) > 0 for line in ax.lines):
        ax.set_yscale("log")
        lowest, highest = ax.get_ylim()
        ax.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        ax.yaxis.set_minor_formatter(lambda value, _: f"{value:g}" if highest < 30 * lowest else "")
        ax.yaxis.set_minor_locator(LogLocator(subs=(2, 5)))
    for name, text in panel.levels:
        for value in sorted({run.levels[name] for _, run in runs if name in run.levels}):
            draw_level(ax, value, text)
    ax.set_xlabel("update")
    return titles, captions


def _draw_line(ax, steps: list[int], values: list[float], *, split: str, color: str, gid: str) -> None:
    """Training is a line, held-out values are dots on a dashed line, probes dots on a dotted one."""
    if split == "train" and len(steps) >= SMOOTH_FROM:
        every = -(-len(steps) // POINTS)
        ax.plot(steps[::every], values[::every], color=color, alpha=0.25, linewidth=0.8)
        values = smooth(values)
    steps, values = thinned(steps), thinned(values)
    looks = {
        "train": {"linewidth": 1.6, "marker": "o" if len(steps) < 3 else "", "markersize": 3},
        "eval": {"linewidth": 1.1, "linestyle": "--", "marker": "o", "markersize": 3},
        "probe": {"linewidth": 1.1, "linestyle": ":", "marker": "s", "markersize": 3},
        "beside": {"linewidth": 1.1, "linestyle": ":"},
    }
    ax.plot(steps, values, color=color, gid=gid, **looks[split])


def thinned(values: list) -> list:
    """At most about POINTS of them, the last one always among them."""
    every = max(1, -(-len(values) // POINTS))
    return values[::-every][::-1]


def swatch(number: int) -> Element:
    """The coloured mark of a run, with its number."""
    return tag("b", str(number), class_=f"run run-{number}")


def number_text(value: float | None) -> str:
    """Four digits of a number."""
    return "not finite" if value is None else f"{value:.4g}"


def usage_maps(run: RunFolder, number: int) -> list[Element]:
    """How often each code or unit was used at each evaluation, one map for each group or label set."""
    found = []
    for name, words in (("code_usage", "code"), ("prediction_usage", "unit")):
        rows = [row for row in run.usage if name in row]
        groups = len(rows[-1][name]) if rows else 0
        for group in range(groups):
            columns = [row[name][group] for row in rows]
            order = sorted(range(len(columns[-1])), key=lambda code: -sum(column[code] for column in columns))
            cells = [[column[code] for column in columns] for code in order]
            used = sum(share > 0 for share in columns[-1])
            which = f", {'group' if words == 'code' else 'label set'} {group + 1}" if groups > 1 else ""
            caption = (
                f"{used} of {len(order)} {words}s occurred at the last evaluation; the most frequent one had "
                f"{max(columns[-1]):.1%} of the frames. A row is a {words}, the most used ones on top."
            )
            label = f"share of each {words} at each evaluation"
            found.append(
                _heat_map(
                    f"{words.capitalize()}s over time{which}",
                    cells,
                    [row["step"] for row in rows],
                    name=f"usage-{number}-{slug(name)}-{group}",
                    number=number,
                    caption=caption,
                    label=label,
                    ylabel=f"{words}s",
                )
            )
    return found


def ahead_maps(run: RunFolder, number: int) -> list[Element]:
    """The accuracy by how many steps ahead a frame lies, for methods that predict coming frames; else nothing."""
    names = sorted({name for row in run.of_split("train") for name in row if AHEAD.fullmatch(name)})
    rows = thinned([row for row in run.of_split("train") if all(row.get(name) is not None for name in names)])
    if not names or not rows:
        return []
    caption = (
        f"One step ahead {rows[-1][names[0]]:.1%}, {int(names[-1][-2:])} steps ahead {rows[-1][names[-1]]:.1%} at the "
        "last row. A row is a number of steps ahead, one on top."
    )
    return [
        _heat_map(
            "Accuracy by steps ahead",
            [[row[name] for row in rows] for name in names],
            [row["step"] for row in rows],
            name=f"ahead-{number}",
            number=number,
            caption=caption,
            label="accuracy by how many steps ahead, over the updates",
            ylabel="steps ahead",
        )
    ]


def _heat_map(
    title: str,
    cells: list[list[float]],
    steps: list[int],
    *,
    name: str,
    number: int,
    caption: str,
    label: str,
    ylabel: str,
) -> Element:
    """Cells [rows, steps]; the stronger the colour of the run, the larger the value beside the largest one."""
    import numpy as np
    from matplotlib.colors import to_rgb
    from matplotlib.ticker import MaxNLocator

    values = np.asarray(cells, np.float32)
    shade = np.sqrt(values / max(float(values.max()), 1e-9))  # so that rare codes are seen beside frequent ones
    image = np.empty((*values.shape, 4), np.float32)
    image[..., :3], image[..., 3] = to_rgb(RUNS[number - 1]), shade
    with new_figure(4.6, 2.5) as figure:
        ax = figure.add_subplot()
        ax.imshow(image, aspect="auto", interpolation="none", extent=(0, len(steps), len(cells), 0))
        ticks = sorted({0, len(steps) // 2, len(steps) - 1})
        ax.yaxis.set_major_locator(MaxNLocator(4, integer=True))
        ax.set_xticks([tick + 0.5 for tick in ticks], [f"{steps[tick]:,}" for tick in ticks])
        ax.set_xlabel("update")
        ax.set_ylabel(ylabel)
        ax.grid(False)
        drawing = svg(figure, name, label)
    return tag("figure", tag("h4", swatch(number), title), drawing, tag("figcaption", tag("span", caption)))
