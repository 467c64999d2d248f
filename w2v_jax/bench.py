"""Times full training steps (forward, backward, update) of any config on random data, alone or against another side.

    python -m w2v_jax.bench --config=configs/cpc.py --batch=8 --seconds=1.28 --stages
    python -m w2v_jax.bench --config=configs/w2v2_base.py --batch=2 --seconds=10 --against=torch

Both sides run in turn in one process, so that a busy machine slows both; the figure to trust is the ratio of medians,
theirs / ours. A turn begins with steps that are not timed: in training a step follows its own kind, and finds memory
and caches as that left them. Loading and decoding are not part of the time, and the rows are full: --data tells what
padding the config's buckets would leave on its data. Of a fine-tuning the updates that train the whole model are timed;
--config.encoder.frozen_steps=100000 times the first ones, which leave the encoder as it is. One device.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import json
import os
import pathlib
import platform
import resource
import statistics
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from w2v_jax.batches import random_batch, step_flops, thawed, with_alphabet
from w2v_jax.config import (
    SAMPLE_RATE,
    UserError,
    add_config_argument,
    batch_units,
    load,
    run_command,
    split_overrides,
)
from w2v_jax.rival import THEIRS, Side, their_side

OURS = (
    "batch -> loss, gradient and update in one jitted program with donated state; masks, distractors and dropout are "
    "drawn inside; layers that LayerDrop drops are not computed"
)
TRACED = 3


def main(argv: Sequence[str]) -> int:
    """The command: exit code 0, or UserError."""
    argv, overrides = split_overrides(argv)
    args = _parser().parse_args(argv)
    if args.runs < 1 or args.warmup < 0 or args.batch < 1:
        raise UserError("--runs and --batch must be at least 1, --warmup at least 0")
    with contextlib.redirect_stdout(sys.stderr) if args.json else contextlib.nullcontext():
        config, samples = _config(args, overrides)
        padding = _padding(args.config, overrides) if args.data else None
        result = measure(config, samples, args) | {"padding_share": padding}
    print(json.dumps(result) if args.json else describe(result))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m w2v_jax.bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_config_argument(parser)
    parser.add_argument("--batch", type=int, default=2, help="rows of the batch, which is one unit (default 2)")
    parser.add_argument("--seconds", type=float, default=10.0, help="seconds of audio in each row (default 10)")
    parser.add_argument("--against", choices=["torch"], help="also time torch, in turn (extra: parity)")
    parser.add_argument(
        "--dtype",
        choices=["float32", "bfloat16"],
        help="of the computation; default: train.dtype as given or, with --against on CPU, float32",
    )
    parser.add_argument("--runs", type=int, default=5, help="timed steps of each side (default 5)")
    parser.add_argument("--warmup", type=int, default=1, help="untimed steps that begin a turn (default 1)")
    parser.add_argument(
        "--stages", action="store_true", help=f"also time the parts of a step, from a trace of {TRACED} steps"
    )
    parser.add_argument("--data", action="store_true", help="also tell the padding of the config's data (lists them)")
    parser.add_argument("--profile", metavar="DIR", help=f"keep a trace of {TRACED} steps for TensorBoard or Perfetto")
    parser.add_argument("--torch-compile", action="store_true", help="let torch.compile the other side (minutes)")
    parser.add_argument("--json", action="store_true", help="print one JSON object on stdout, all else on stderr")
    return parser


def _config(args: argparse.Namespace, overrides: list[tuple[str, str]]) -> tuple[Any, int]:
    """The config with one unit as the batch, and the samples of a row."""
    import jax

    from w2v_jax.frontend import num_frames

    samples = round(args.seconds * SAMPLE_RATE)
    dtype = args.dtype
    if dtype is None and args.against and jax.default_backend() == "cpu" and "train.dtype" not in dict(overrides):
        dtype = "float32"
    overrides = [*overrides, ("data.unit_seconds", repr(args.batch * samples / SAMPLE_RATE))]
    config = load(args.config, overrides + ([("train.dtype", dtype)] if dtype else []))
    if args.against and config.method not in THEIRS:
        raise UserError(f"--against=torch knows {', '.join(THEIRS)}; the config's method is {config.method!r}")
    config = with_alphabet(config)
    if "encoder.frozen_steps" not in dict(overrides):
        config = thawed(config)
    if config.data.name not in ("codes", "features"):
        law = config.masking if "masking" in config else None
        frames = num_frames(samples, config.encoder.conv_layers) if "conv_layers" in config.encoder else samples // 160
        if frames <= (law.length + 1 if law is not None and "length" in law else 1):
            raise UserError(f"--seconds={args.seconds:g} makes {frames} frames; the config's masks need more")
    return config, samples


def _padding(path: str, overrides: list[tuple[str, str]]) -> float:
    """The share of an epoch's samples that is padding, with the config's buckets on its data."""
    from w2v_jax.train import open_data

    config = load(path, overrides)
    with tempfile.TemporaryDirectory() as scratch:
        data = open_data(config, batch_units(config.data), 1, pathlib.Path(scratch))
    return data.train_plan.padding_share


def measure(config: Any, samples: int, args: argparse.Namespace) -> dict[str, Any]:
    """Builds both sides, times them in turn, and returns what `--json` prints."""
    import jax

    from w2v_jax.meter import page_advice

    batch = random_batch(config, args.batch, samples)
    ours = our_side(config, batch)
    own_peak = _peak_memory()
    sides = {"ours": ours}
    if args.against:
        sides["theirs"] = their_side(config, batch, args.torch_compile)
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    losses: dict[str, float] = {}
    for turn in range(args.runs):
        for name, side in sides.items():
            for _ in range(args.warmup if turn == 0 or args.against else 0):
                side.run()
            losses[name] = _timed(side.run, seconds[name])
    stages, failure = _traced(ours, args.profile) if args.stages or args.profile else ({}, None)
    device = jax.devices()[0]
    medians = {name: statistics.median(runs) for name, runs in seconds.items()}
    result = {f"{name}_seconds": value for name, value in medians.items()}
    if args.against:
        result["ratio"] = medians["theirs"] / medians["ours"]
    result |= {f"{name}_runs": runs for name, runs in seconds.items()}
    result |= {f"{name}_loss": value for name, value in losses.items()}
    result |= {
        **{f"{name}_parameters": side.parameters for name, side in sides.items()},
        **{f"{name}_does": side.words for name, side in sides.items()},
        "stages": stages,
        "trace_error": failure,
        **{f"{name}_first_seconds": side.first_seconds for name, side in sides.items()},
        "compile_seconds": ours.compile_seconds,
        "shapes": {"batch": args.batch, "samples": samples},
        "dtype": config.train.dtype,
        "device": f"{device.platform}: {device.device_kind}",
        "cores": os.cpu_count(),
        "page_advice": page_advice(),
        "versions": _versions(["jax", "jaxlib", "flax", *(["torch", "transformers"] if args.against else [])]),
        "peak_memory_bytes": _peak_memory(),
        "ours_peak_memory_bytes": own_peak,
        "ours_program_bytes": ours.program_bytes,
        "device_peak_memory_bytes": (device.memory_stats() or {}).get("peak_bytes_in_use"),
        "audio_hours_per_hour": args.batch * samples / SAMPLE_RATE / medians["ours"],
    }
    return result | _flops(config, batch, medians["ours"], device.device_kind)


def _timed(run: Callable[[], Any], seconds: list[float]) -> Any:
    start = time.perf_counter()
    found = run()
    seconds.append(time.perf_counter() - start)
    return found


def _traced(side: Side, folder: str | None) -> tuple[dict[str, dict[str, float]], str | None]:
    """(device seconds of a step by part of the model, forward and backward; why there are none or None).

    The trace is kept in `folder`. A profiler that fails does not lose what was measured before.
    """
    import jax

    from w2v_jax.trace import seconds_by_part

    with tempfile.TemporaryDirectory() as scratch:
        place = pathlib.Path(folder or scratch)
        try:
            with jax.profiler.trace(str(place)):
                for _ in range(TRACED):
                    side.run()
            found = seconds_by_part(place, side.text())
        except (OSError, RuntimeError, ValueError) as error:
            return {}, f"the profiler failed: {error}"
    if not found:
        return {}, "the trace names no operations of the program; TensorBoard or Perfetto shows what it has (--profile)"
    return {part: {way: s / TRACED for way, s in both.items()} for part, both in found.items()}, None


def _flops(config: Any, batch: dict[str, np.ndarray], seconds: float, device_kind: str) -> dict[str, Any]:
    from w2v_jax import flops

    parts = step_flops(config, batch)
    step = sum(parts.values())
    peak = flops.peak_flops(device_kind, config.train.dtype)
    reached, product = step / seconds, flops.product_flops(config.train.dtype)
    result = {"flops": step, "part_flops": parts, "flops_per_second": reached}
    result |= {"product_flops_per_second": product, "product_share": reached / product}
    return result | ({"peak_share": reached / peak} if peak else {})


def _versions(packages: Sequence[str]) -> dict[str, str]:
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in packages}


def _peak_memory() -> int:
    """Bytes of main memory that this process held at most."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def our_side(config: Any, batch: dict[str, np.ndarray]) -> Side:
    """The update of `step.train_step` on a batch, on the first device."""
    import flax.linen as nn
    import jax
    from jax.sharding import AxisType

    from w2v_jax import sharding, step
    from w2v_jax.runs import method_module

    method = method_module(config.method).make(config)
    micro = {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in batch.items()}
    key = jax.random.key(config.seed)
    mesh = jax.make_mesh((1, 1, 1), sharding.MESH_AXES, axis_types=(AxisType.Auto,) * 3, devices=jax.devices()[:1])
    with jax.set_mesh(mesh), nn.logical_axis_rules(sharding.RULES):
        tx, rate = step.make_optimizer(config, method, key, micro)
        make, shapes = step.create_state(method, tx, key, micro, mesh)
        state, placed = make(), sharding.put_batch(batch, mesh, 1)
        start = time.perf_counter()
        program = step.jitted(method, tx, rate, shapes).lower(state, placed, key).compile()
        compiled = time.perf_counter() - start

    def run() -> float:
        nonlocal state
        state, metrics = jax.block_until_ready(program(state, placed, key))
        return float(metrics["loss"])

    start = time.perf_counter()
    run()
    first = compiled + time.perf_counter() - start
    memory = program.memory_analysis()
    held = memory and memory.temp_size_in_bytes + memory.argument_size_in_bytes + memory.output_size_in_bytes
    parameters = sum(x.size for x in jax.tree.leaves(shapes.params))
    held = held - memory.alias_size_in_bytes if memory else None
    text = lambda: program.as_text() or ""
    return Side(OURS, first, run, parameters, compiled, held, text)


def describe(result: dict[str, Any]) -> str:
    """The result as text for people."""
    shapes, compared = result["shapes"], "ratio" in result
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    lines = [
        f"device       {result['device']}, {result['cores']} cores",
        *([f"pages        {result['page_advice']}"] if result["page_advice"] else []),
        f"batch        {shapes['batch']} x {shapes['samples']} samples, {result['dtype']}",
        f"versions     {versions}",
    ]
    for side in ("ours", "theirs") if compared else ("ours",):
        runs = " ".join(f"{s:.3f}" for s in result[f"{side}_runs"])
        seconds, loss = result[f"{side}_seconds"], result[f"{side}_loss"]
        lines.append(f"{side:<12} {seconds:.4g} s per step (median of {runs}), loss {loss:.3f}")
        lines += textwrap.wrap(result[f"{side}_does"], 110, initial_indent=" " * 13, subsequent_indent=" " * 13)
    if compared:
        lines.append(f"ratio        {result['ratio']:.3f} (theirs / ours; above 1 ours is faster)")
    first = f"{result['ours_first_seconds']:.1f} s, of it {result['compile_seconds']:.1f} s compilation"
    other = f"; theirs {result['theirs_first_seconds']:.1f} s" if compared else ""
    size = f"; theirs {result['theirs_parameters'] / 1e6:.2f} M" if compared else ""
    lines += [
        f"first call   {first}{other}",
        f"parameters   {result['ours_parameters'] / 1e6:.2f} M{size}",
        f"throughput   {result['audio_hours_per_hour']:.4g} audio-hours per hour",
        f"peak memory  {_memory_words(result)}",
        f"padding      {_padding_words(result['padding_share'])}",
        f"work         {result['flops'] / 1e9:.4g} GFLOP per step, {result['flops_per_second'] / 1e9:.4g} GFLOP/s",
        *_part_lines(result["part_flops"], result["stages"]),
    ]
    if result["trace_error"]:
        lines.append(f"trace        {result['trace_error']}")
    product = f"a large product, measured now ({result['product_flops_per_second'] / 1e9:.4g} GFLOP/s)"
    lines.append(f"             {result['product_share']:.1%} of {product}")
    if "peak_share" in result:
        lines.append(f"             {result['peak_share']:.1%} of the peak that the device's maker states")
    return "\n".join(lines)


def _part_lines(flops: dict[str, float], stages: dict[str, dict[str, float]]) -> list[str]:
    """A line for each part of the model: its work and, where it was traced, its time."""
    if not stages:
        return [f"             {flop / 1e9:9.3f} GFLOP  {part}" for part, flop in flops.items()]
    whole = sum(sum(both.values()) for both in stages.values())
    lines = ["             seconds        forward  backward     GFLOP   GFLOP/s   (time on the device, by a trace)"]
    for part in dict.fromkeys([*stages, *flops]):
        both, flop = stages.get(part, {"forward": 0.0, "backward": 0.0}), flops.get(part, 0.0)
        seconds = sum(both.values())
        work = f"{flop / 1e9:9.2f} {flop / seconds / 1e9:9.4g}" if flop and seconds else " " * 19
        ways = f"{both['forward']:9.4f} {both['backward']:9.4f}"
        lines.append(f"             {seconds:7.4f} {seconds / whole:>4.0%}  {ways} {work}   {part}")
    return lines


def _padding_words(share: float | None) -> str:
    if share is None:
        return "none, the rows are full; --data tells that of the config's data"
    return f"{share:.1%} of the samples of an epoch, with the config's buckets on its data; none in the timed rows"


def _memory_words(result: dict[str, Any]) -> str:
    names = {"process": "peak_memory_bytes", "before the other side came": "ours_peak_memory_bytes"}
    names |= {"our program": "ours_program_bytes", "device": "device_peak_memory_bytes"}
    return ", ".join(
        f"{words} {result[name] / 1e9:.2f} GB" for words, name in names.items() if result[name] is not None
    )


if __name__ == "__main__":
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # torch shares the device
    run_command(main)
