"""What a run leaves for people: console lines, metrics.jsonl, TensorBoard, curves.png and done.json.

A row of metrics is a flat dict with `step`, `split` ("train", "eval" or "probe") and numbers; nothing here knows a
method. `levels` are the numbers that tell a healthy run from a dead one, each optional: loss_chance (ln(K + 1)),
accuracy_chance, perplexity_floor (all frames on one code per group), perplexity_max; and a row's `unigram_loss` is
what a model of a code stream reaches that only counts. Imports no jax: the loop says which process is `active`
(process 0), and the reports of the others do nothing.
"""

from __future__ import annotations

import collections
import contextlib
import json
import math
import os
import pathlib
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]
Levels = Mapping[str, float]

SHARES = (("data_wait_share", "wait"), ("padding_share", "pad"))
PROBE = "probe_"
PERPLEXITY_LEVELS = (("perplexity_floor", "collapse"), ("perplexity_max", "maximum"))


class Report:
    """The outputs of one run in its workdir; call `log` with each row, then `finish` (or `close`) once."""

    def __init__(
        self,
        workdir,
        total_steps: int,
        *,
        start_step: int = 0,
        levels: Levels | None = None,
        active: bool = True,
        tensorboard: bool = True,
    ):
        """start_step: the step the run resumes from; rows of later steps, which it will repeat, are dropped."""
        self.workdir, self.total_steps, self.levels, self.active = (
            pathlib.Path(workdir),
            total_steps,
            levels or {},
            active,
        )
        self._seconds: collections.deque[float] = collections.deque(maxlen=20)
        self._legend_shown = False
        self._unwritten: list[str] = []
        self._board = None
        if active:
            self.workdir.mkdir(parents=True, exist_ok=True)
            trim_steps(self.workdir / "metrics.jsonl", start_step)
            (self.workdir / "done.json").unlink(missing_ok=True)
            self._board = _open_tensorboard(self.workdir / "tensorboard", start_step) if tensorboard else None

    def log(self, row: Row) -> None:
        """Writes one row everywhere. A disk that refuses is told once per try; the row is kept and written later."""
        if not self.active:
            return
        row = {name: _plain(value) for name, value in row.items()}
        self._unwritten.append(json.dumps(row))
        self._write()
        for name, value in row.items():
            if self._board is not None and name != "step" and isinstance(value, (int, float)):
                self._board.add_scalar(f"{name}/{row['split']}", value, row["step"])
        if row["split"] == "train":
            if not self._legend_shown:
                self.say(legend(self.levels))
                self._legend_shown = True
            if row.get("step_seconds"):
                self._seconds.append(row["step_seconds"])
        self.say(progress_line(row, self.total_steps, self._rate()))

    def say(self, text: str) -> None:
        """A line for the person at the console."""
        if self.active:
            print(text, flush=True)

    def draw(self) -> None:
        """Draws curves.png anew from metrics.jsonl."""
        if self.active:
            draw_curves(read_metrics(self.workdir / "metrics.jsonl"), self.workdir / "curves.png", self.levels)

    def finish(self, **fields: Any) -> None:
        """Draws the curves and writes done.json: the last row of each split under `metrics`, and the given fields."""
        if self.active:
            last = {row["split"]: row for row in read_metrics(self.workdir / "metrics.jsonl")}
            step = max((row["step"] for row in last.values()), default=0)
            done = {"step": step, "metrics": last} | {name: _plain(value) for name, value in fields.items()}
            self.draw()
            write_whole(self.workdir / "done.json", json.dumps(done, indent=2) + "\n")
        self.close()

    def close(self) -> None:
        """Flushes and closes what is open; a second call does nothing."""
        if self._board is not None:
            self._board.close()
            self._board = None

    def _rate(self) -> float | None:
        """Steps per second over the last rows; compilation, evaluation and saving do not count."""
        return len(self._seconds) / sum(self._seconds) if self._seconds else None

    def _write(self) -> None:
        try:
            append_lines(self.workdir / "metrics.jsonl", self._unwritten)
            self._unwritten.clear()
        except OSError as error:
            rows = len(self._unwritten)
            print(
                f"warning: metrics.jsonl cannot be written ({error}); {rows} rows are kept for the next try",
                file=sys.stderr,
                flush=True,
            )


# metrics.jsonl


def read_metrics(path) -> list[dict[str, Any]]:
    """The rows of a metrics.jsonl; a line that a kill left half-written is left out. Empty if there is no file."""
    if not pathlib.Path(path).exists():
        return []
    with open(path, "rb") as file:
        return [row for row in map(_parse, file) if row is not None]


def trim_steps(path, step: int) -> int:
    """Drops the lines after `step` of a JSONL file (a run resumed there writes them again); how many there were.

    For metrics.jsonl and every other file whose lines have a `step`. Half-written lines go too.
    """
    path = pathlib.Path(path)
    if not path.exists():
        return 0
    dropped = 0
    partial = path.with_name(path.name + ".partial")
    with open(path, "rb") as old, open(partial, "wb") as new:
        for line in old:
            row = _parse(line)
            if row is not None and row["step"] <= step:
                new.write(line.rstrip(b"\n") + b"\n")
            else:
                dropped += 1
    os.replace(partial, path)
    return dropped


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) and isinstance(row.get("step"), int) else None


def append_lines(path, lines: Sequence[str]) -> None:
    """Appends whole lines or, when the disk refuses, nothing: then raises OSError."""
    with open(path, "ab", buffering=0) as file:
        size = file.tell()
        try:
            content = "".join(line + "\n" for line in lines).encode()
            if file.write(content) != len(content):
                raise OSError("No space left on device")
        except OSError:
            with contextlib.suppress(OSError):
                file.truncate(size)
            raise


def write_whole(path: pathlib.Path, text: str) -> None:
    """Writes a file that is never seen half-written."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


def _plain(value: Any) -> Any:
    """A value as JSON has it: numbers of NumPy and jax become Python's; what is not finite becomes null."""
    if isinstance(value, Mapping):
        return {name: _plain(v) for name, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, pathlib.PurePath):
        return str(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _open_tensorboard(directory: pathlib.Path, start_step: int):
    try:
        from tensorboardX import SummaryWriter
    except ImportError:
        print("note: no TensorBoard files (pip install tensorboardX); metrics.jsonl and curves.png hold the same")
        return None
    # what an earlier attempt wrote after the step it is resumed from is hidden by TensorBoard
    return SummaryWriter(logdir=str(directory), purge_step=start_step + 1 if start_step else None)


# The console


def legend(levels: Levels) -> str:
    """What the columns of `progress_line` mean, with the levels to compare them with."""
    parts = ["loss in nats" + (f" (chance {levels['loss_chance']:.3f})" if "loss_chance" in levels else "")]
    if "error_silent" in levels:
        parts.append(f"err: token error rate (saying nothing {levels['error_silent']:.3f}); blank: share of frames")
    else:
        parts.append("acc" + (f" (chance {levels['accuracy_chance']:.3f})" if "accuracy_chance" in levels else ""))
    known = [f"{word} {levels[key]:g}" for key, word in PERPLEXITY_LEVELS if key in levels]
    if known:
        parts.append(f"ppl: perplexity of codes/probabilities ({', '.join(known)})")
    return "; ".join([*parts, "h/h: hours of audio per hour", "wait: for data", "pad: padding"])


def progress_line(row: Row, total_steps: int, steps_per_second: float | None = None) -> str:
    """One line per logged row, its columns under those of the line before; what was not measured is left out."""
    parts = [f"{row['split']:<5} {row['step']:>{len(str(total_steps))}}/{total_steps}"]
    parts.append(f"{row['step'] / max(total_steps, 1):>6.1%}")
    if "loss" in row:
        parts.append(f"loss {_number(row['loss'], '.3f'):>6}")
    if "unigram_loss" in row:
        parts.append(f"unigram {_number(row['unigram_loss'], '.3f'):>6}")
    if "blank_share" in row:
        parts.append(f"blank {_number(row['blank_share'], '.2f'):>4}")
    if "token_error" in row:
        parts.append(f"err {_number(row['token_error'], '.3f'):>5}")
    if "accuracy" in row:
        parts.append(f"acc {_number(row['accuracy'], '.3f'):>5}")
    if "code_perplexity" in row:
        prob = f"/{_number(row['prob_perplexity'], '.1f'):<5}" if "prob_perplexity" in row else ""
        parts.append(f"ppl {_number(row['code_perplexity'], '.1f'):>5}{prob}")
    parts += [f"{name[len(PROBE) :]} {_number(row[name], '.3f'):>5}" for name in row if name.startswith(PROBE)]
    if row["split"] == "train":
        parts += _speed(row, total_steps, steps_per_second)
    return "  ".join(parts).rstrip()


def _speed(row: Row, total_steps: int, steps_per_second: float | None) -> list[str]:
    parts = []
    if steps_per_second:
        digits = 2 if steps_per_second < 10 else 1 if steps_per_second < 100 else 0
        parts.append(f"{steps_per_second:>5.{digits}f} steps/s")
    if row.get("audio_hours_per_hour") is not None:
        parts.append(f"{row['audio_hours_per_hour']:>5.0f} h/h")
    parts += [f"{label} {row[name]:>3.0%}" for name, label in SHARES if row.get(name) is not None]
    if row.get("skipped_updates"):
        parts.append(f"{row['skipped_updates']:.0f} updates skipped")
    if steps_per_second and row["step"] < total_steps:
        parts.append(f"left {duration((total_steps - row['step']) / steps_per_second)}")
    return parts


def _number(value: Any, form: str) -> str:
    return "nan" if value is None or value != value else format(value, form)


def duration(seconds: float) -> str:
    """Seconds for people, in two units: 45 s, 3 min 20 s, 5 h 02 min, 12 d 4 h."""
    seconds = max(0, round(seconds))
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60:02d} s"
    if seconds < 86400:
        return f"{seconds // 3600} h {seconds % 3600 // 60:02d} min"
    return f"{seconds // 86400} d {seconds % 86400 // 3600} h"


def table(rows: Mapping[str, Any] | Iterable[tuple[str, Any]], title: str = "") -> str:
    """Two aligned columns; a value of several lines keeps its column."""
    pairs = [(str(k), str(v)) for k, v in (rows.items() if isinstance(rows, Mapping) else rows)]
    width = max((len(name) for name, _ in pairs), default=0)
    lines = [title, "-" * len(title)] if title else []
    for name, value in pairs:
        first, *others = value.split("\n")
        lines.append(f"  {name:<{width}}  {first}".rstrip())
        lines += [f"  {'':<{width}}  {other}" for other in others]
    return "\n".join(lines)


# curves.png

TRAIN, EVAL, SECOND, LEVEL = "#2b6cb0", "#c05621", "#2f855a", "#718096"
MAX_POINTS = 2000


def draw_curves(rows: Sequence[Row], path, levels: Levels | None = None, title: str = "") -> None:
    """Draws the curves of a run: loss, accuracy, perplexities, gradient norm, schedules and speed, with `levels`."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    levels = levels or {}
    figure = Figure(figsize=(12, 11), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(3, 2)
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
    if title:
        figure.suptitle(title, fontsize=13)
    partial = pathlib.Path(path).with_name(pathlib.Path(path).name + ".partial")
    figure.savefig(partial, format="png")
    os.replace(partial, path)


def _panel_of_method(rows: Sequence[Row]) -> Callable[[Any, Sequence[Row], Levels], None]:
    """The panel for what only some methods log: perplexities, else the steps ahead, else shares of frames."""
    names = {name for row in rows for name in row}
    if "code_perplexity" in names or not names & {"accuracy_step_01", "masked_share", "blank_share"}:
        return _draw_perplexity
    return _draw_steps if "accuracy_step_01" in names else _draw_shares


def _series(rows: Sequence[Row], name: str, split: str) -> tuple[list[int], list[float]]:
    points = [(r["step"], r[name]) for r in rows if r.get("split") == split and r.get(name) is not None]
    points = points[:: len(points) // MAX_POINTS + 1]
    return [step for step, _ in points], [float(value) for _, value in points]


def _smooth(values: Sequence[float]) -> list[float]:
    """A centred running mean over about a thirtieth of the points."""
    half = len(values) // 60
    return [math.fsum(v := values[max(0, i - half) : i + half + 1]) / len(v) for i in range(len(values))]


def _plot(ax, rows: Sequence[Row], name: str, label: str = "", color: str = TRAIN) -> None:
    """The training series, faint with its running mean where it is long, and the evaluations as dots."""
    steps, values = _series(rows, name, "train")
    if len(steps) >= 120:
        ax.plot(steps, values, color=color, alpha=0.25, linewidth=0.8)
        ax.plot(steps, _smooth(values), color=color, linewidth=1.8, label=f"{label} train".strip())
    elif steps:
        marker = "o" if len(steps) < 3 else ""
        ax.plot(steps, values, color=color, linewidth=1.6, marker=marker, markersize=3, label=f"{label} train".strip())
    steps, values = _series(rows, name, "eval")
    if steps:
        color = EVAL if color == TRAIN else color
        style = {"linestyle": "--", "linewidth": 1.2, "marker": "o", "markersize": 3.5}
        ax.plot(steps, values, color=color, label=f"{label} eval".strip(), **style)


def _level(ax, value: float | None, text: str) -> None:
    """A dashed line across the panel with its name above it."""
    if value is not None:
        ax.axhline(value, color=LEVEL, linestyle=(0, (4, 3)), linewidth=1.2)
        place = {"textcoords": "offset points", "xytext": (-3, 3), "xycoords": ("axes fraction", "data")}
        ax.annotate(text, (1.0, value), ha="right", va="bottom", fontsize=9, color=LEVEL, **place)


def _draw_loss(ax, rows: Sequence[Row], levels: Levels) -> None:
    ax.set_title(f"Loss, nats per {'token' if 'error_silent' in levels else 'prediction'}", loc="left")
    _plot(ax, rows, "loss")
    _plot(ax, rows, "unigram_loss", "unigram", SECOND)
    chance = levels.get("loss_chance")
    _level(ax, chance, f"chance {chance:.3f}" if chance is not None else "")


def _draw_accuracy(ax, rows: Sequence[Row], levels: Levels) -> None:
    if "error_silent" in levels:
        return _draw_error(ax, rows, levels)
    ax.set_title("Accuracy of the predictions", loc="left")
    _plot(ax, rows, "accuracy")
    for name in sorted({name for row in rows for name in row if name.startswith(PROBE)}):
        style = {"color": LEVEL, "linestyle": ":"} if name == "probe_log-mel" else {"color": SECOND, "marker": "o"}
        ax.plot(*_series(rows, name, "probe"), label=f"probe: {name[len(PROBE) :]}", markersize=3.5, **style)
    ax.set_ylim(-0.02, 1.02)
    chance = levels.get("accuracy_chance")
    _level(ax, chance, f"chance {chance:.3g}" if chance is not None else "")


def _draw_error(ax, rows: Sequence[Row], levels: Levels) -> None:
    ax.set_title("Token error rate of the best path", loc="left")
    _plot(ax, rows, "token_error")
    ax.set_ylim(0, max(1.1, ax.get_ylim()[1]))
    _level(ax, levels["error_silent"], "saying nothing")


def _draw_perplexity(ax, rows: Sequence[Row], levels: Levels) -> None:
    ax.set_title("Codebook perplexity", loc="left")
    _plot(ax, rows, "prob_perplexity", "prob")
    _plot(ax, rows, "code_perplexity", "code", SECOND)
    ax.set_yscale("log")
    ax.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    floor, most = levels.get("perplexity_floor"), levels.get("perplexity_max")
    _level(ax, floor, f"collapse {floor:g}" if floor is not None else "")
    _level(ax, most, f"maximum {most:g}" if most is not None else "")


def _steps_ahead(rows: Sequence[Row]) -> list[str]:
    """The metrics "accuracy_step_01", ... of methods that predict several frames ahead."""
    return sorted({name for row in rows for name in row if name.startswith("accuracy_step_")})


def _draw_steps(ax, rows: Sequence[Row], levels: Levels) -> None:
    ax.set_title("Accuracy by how many steps ahead", loc="left")
    names = _steps_ahead(rows)
    for name in names[:: max(1, len(names) // 4)]:
        steps, values = _series(rows, name, "train")
        label = name.removeprefix("accuracy_step_").lstrip("0")
        ax.plot(steps, _smooth(values), linewidth=1.6, label=label, alpha=1 - 0.7 * names.index(name) / len(names))
    ax.set_ylim(-0.02, 1.02)
    chance = levels.get("accuracy_chance")
    _level(ax, chance, f"chance {chance:.3g}" if chance is not None else "")


def _draw_shares(ax, rows: Sequence[Row], levels: Levels) -> None:
    ax.set_title("Share of frames", loc="left")
    _plot(ax, rows, "masked_share", "masked")
    _plot(ax, rows, "unknown_share", "unknown", SECOND)
    _plot(ax, rows, "blank_share", "blank")
    ax.set_ylim(-0.02, 1.02)


def _draw_gradient(ax, rows: Sequence[Row]) -> None:
    ax.set_title("Gradient norm", loc="left")
    _plot(ax, rows, "grad_norm")
    if any(value > 0 for value in _series(rows, "grad_norm", "train")[1]):
        ax.set_yscale("log", subs=(2, 5))
        for formatted in (ax.yaxis.set_major_formatter, ax.yaxis.set_minor_formatter):
            formatted(lambda value, _: f"{value:g}")
    skipped = _series(rows, "skipped_updates", "train")[1]
    if skipped and skipped[-1]:
        ax.text(0.02, 0.04, f"{skipped[-1]:.0f} updates skipped", transform=ax.transAxes, color=EVAL, fontsize=9)


def _draw_schedules(ax, rows: Sequence[Row]) -> None:
    ax.set_title("Learning rate and temperature", loc="left")
    _draw_two(ax, rows, ("learning_rate", "learning rate"), ("temperature", "temperature"))
    ax.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3))


def _draw_speed(ax, rows: Sequence[Row]) -> None:
    ax.set_title("Speed and time waiting for data", loc="left")
    waiting = [
        dict(row, waiting=100 * row["data_wait_share"]) for row in rows if row.get("data_wait_share") is not None
    ]
    right = _draw_two(ax, rows, ("audio_hours_per_hour", "hours of audio per hour"), ("waiting", "% waiting"), waiting)
    ax.set_ylim(bottom=0)
    if right is not None:
        right.set_ylim(0, 100)


def _draw_two(ax, rows: Sequence[Row], left: tuple[str, str], right: tuple[str, str], right_rows: Sequence[Row] = ()):
    """Two series of different units: the left axis in the training colour, the right one, if logged, in another."""
    ax.plot(*_series(rows, left[0], "train"), color=TRAIN, linewidth=1.6)
    ax.set_ylabel(left[1], color=TRAIN)
    steps, values = _series(right_rows or rows, right[0], "train")
    if not steps:
        return None
    twin = ax.twinx()
    twin.plot(steps, values, color=SECOND, linewidth=1.6)
    twin.set_ylabel(right[1], color=SECOND)
    twin.spines[["top"]].set_visible(False)
    return twin
