"""Does a training step cost what its arithmetic says? Times it at several lengths of audio and widths of the model.

    python launch/studies/scaling.py --config=configs/w2v2_base.py --out runs/scaling

Two constants are fitted to the lengths by least squares: seconds per FLOP (forward and backward pass) and seconds per
parameter (the update). With them the counts of `bench` predict the widths; all points are printed beside the line and
plotted. Every point is a process of `python -m w2v_jax.bench`, printed as it runs, and
points in OUT/scaling.json are not measured again. Measure on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[2]
HEAD = 64  # channels of an attention head
COUNTED = "loss and gradient"  # what the FLOP of a point are those of; earlier points had three times the loss


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--config", default=str(ROOT / "configs" / "w2v2_base.py"), help="default: w2v2_base.py")
    add("--out", required=True, type=pathlib.Path, metavar="DIR", help="results and plot")
    add("--batch", type=int, default=1, help="rows of a step (default 1)")
    add("--seconds", type=float, nargs="+", default=[2, 4, 8, 12, 16], help="lengths of audio (default 2 4 8 12 16)")
    add("--widths", type=int, nargs="*", default=[], help=f"widths of a Transformer, multiples of {HEAD}, at 8 s")
    add("--runs", type=int, default=5, help="timed steps per point; the median counts (default 5)")
    args, flags = parser.parse_known_args(argv)
    if len(set(args.seconds)) < 2:
        sys.exit("error: --seconds: two different lengths are the least that a line can be fitted to")
    if wrong := [width for width in args.widths if width < HEAD or width % HEAD]:
        sys.exit(f"error: --widths: {wrong[0]} is not a multiple of {HEAD}")
    if wrong := [flag for flag in flags if not flag.startswith("--config.")]:
        sys.exit(f"error: unknown argument {wrong[0]}; see --help")
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / "scaling.json"
    points = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    asked = [{"axis": axis, "x": x, "words": words + flags, "counted": COUNTED} for axis, x, words in wanted(args)]
    for point in asked:
        if not any(point.items() <= known.items() for known in points):
            points.append(point | measured(point["words"]))
            path.write_text(json.dumps(points, indent=1) + "\n", encoding="utf-8")
    points = predicted([known for point in asked for known in points if point.items() <= known.items()])
    print(table(points))
    draw(points, args.out / "scaling.png")
    print(f"done: {path} and .png")
    return 0


def wanted(args: argparse.Namespace) -> list[tuple[str, float, list[str]]]:
    """(axis, its value, words of the bench command) of each point."""
    shared = [f"--config={args.config}", f"--batch={args.batch}", f"--runs={args.runs}"]
    lengths = [("seconds", float(x), [*shared, f"--seconds={x:g}"]) for x in sorted(set(args.seconds))]
    sizes = lambda width: [
        f"--config.encoder.{key}={value}"
        for key, value in (("width", width), ("mlp", 4 * width), ("heads", width // HEAD))
    ]
    return lengths + [("width", float(w), [*shared, "--seconds=8", *sizes(w)]) for w in sorted(set(args.widths))]


def measured(words: list[str]) -> dict[str, float]:
    """What a bench command found: seconds, FLOP, parameters, bytes of the program."""
    command = [sys.executable, "-m", "w2v_jax.bench", "--json", *words]
    print(" ".join(["python", *command[1:]]), flush=True)
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"error: this command failed with exit code {done.returncode}:\n{done.stderr[-2000:]}")
    found = json.loads(done.stdout)
    names = ("ours_seconds", "flops", "ours_parameters", "ours_program_bytes", "dtype", "device", "cores")
    print(f"  {found['ours_seconds']:.4g} s, {found['flops'] / 1e9:.4g} GFLOP", flush=True)
    return {name: found[name] for name in names}


def predicted(points: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The points with "predicted" seconds: so many per FLOP and per parameter, fitted to the lengths."""
    sizes = np.array([(point["flops"], point["ours_parameters"]) for point in points], float)
    unit = sizes.max(axis=0)
    fitted = np.array([point["axis"] == "seconds" for point in points])
    seconds = np.array([point["ours_seconds"] for point in points])
    costs = np.linalg.lstsq(sizes[fitted] / unit, seconds[fitted], rcond=None)[0]
    found = (sizes / unit) @ costs
    return [
        point | {"predicted": float(x), "fitted": bool(f)} for point, x, f in zip(points, found, fitted, strict=True)
    ]


def table(points: Sequence[dict[str, Any]]) -> str:
    lines = [f"{'axis':<8} {'':>6} {'GFLOP':>8} {'parameters':>11} {'program':>9} {'measured':>10} {'predicted':>10}"]
    for p in points:
        size, held = f"{p['ours_parameters'] / 1e6:.1f} M", f"{(p['ours_program_bytes'] or 0) / 1e9:.2f} GB"
        ratio = f"{p['ours_seconds'] / p['predicted']:.2f} of it" + (", fitted" if p["fitted"] else "")
        lines.append(
            f"{p['axis']:<8} {p['x']:>6g} {p['flops'] / 1e9:>8.1f} {size:>11} {held:>9} {p['ours_seconds']:>8.3f} s "
            f"{p['predicted']:>8.3f} s  {ratio}"
        )
    return "\n".join(lines)


def draw(points: Sequence[dict[str, Any]], path: pathlib.Path) -> None:
    """Measured points on the predicted line, a panel per axis."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    axes = list(dict.fromkeys(point["axis"] for point in points))
    figure = Figure(figsize=(5 * len(axes), 4), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    words = {"seconds": "seconds of audio per row", "width": "width of the Transformer, rows of 8 s"}
    for ax, axis in zip(figure.subplots(1, len(axes), squeeze=False)[0], axes, strict=True):
        found = sorted((p for p in points if p["axis"] == axis), key=lambda point: point["x"])
        x = [point["x"] for point in found]
        ax.plot(x, [point["predicted"] for point in found], color="#a0aec0", label="from the FLOP count")
        ax.plot(x, [point["ours_seconds"] for point in found], "o", color="#2b6cb0", label="measured")
        ax.set_xlabel(words[axis])
        ax.set_ylabel("seconds per training step")
        ax.set_xlim(left=0)
        ax.set_ylim(bottom=0)
        ax.legend(frameon=False)
        ax.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
