"""Times full training steps (forward, backward, update) of a config on random data, alone or beside PyTorch.

    python -m w2v_jax.bench --config=configs/cpc.py --batch=8 --seconds=1.28 --stages
    python -m w2v_jax.bench --config=configs/w2v2_base.py --batch=2 --seconds=10 --against=torch
    python -m w2v_jax.bench --config=configs/w2v2_base.py --config.data.root=/data/a --input-only

Both sides run in turn in one process, so that a busy machine slows both. Trust the ratio of medians, theirs / ours. A
turn begins with steps that are not timed: in training, a step finds memory and caches as another step left them.
Loading and decoding are not timed, and the rows are full: --data reports the padding that the config's buckets would
have on its data. For fine-tuning, updates that train the whole model are timed.
--input-only times what the others leave out, on the config's data: reading, decoding, resampling, crops and batches.
--config.encoder.frozen_steps=100000 times the first updates instead, which leave the encoder as it is. One device.
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
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from w2v_jax import methods
from w2v_jax.core.cli import UserError, command_parser, path_argument, run_command
from w2v_jax.core.config import Config, add_config_argument, load, setting, split_overrides
from w2v_jax.core.units import SAMPLE_RATE, batch_units
from w2v_jax.profiling.chips import stated_flops
from w2v_jax.profiling.flops import product_flops
from w2v_jax.profiling.input_stages import input_rates, input_text
from w2v_jax.profiling.one_device import ready_update
from w2v_jax.profiling.random_batch import random_batch, step_flops, unfrozen, with_alphabet
from w2v_jax.profiling.torch_baseline import DESCRIPTIONS, Side, torch_side
from w2v_jax.profiling.trace import seconds_by_part
from w2v_jax.training.dataset import open_data
from w2v_jax.training.throughput import dtype_advice, page_advice

OURS = (
    "batch -> loss, gradient and update in one jitted program with donated state; masks, distractors and dropout are "
    "drawn inside; layers that LayerDrop drops are not computed"
)
TRACED = 3


def main(argv: Sequence[str]) -> int:
    """The command: exit code 0, or UserError."""
    args, overrides = parse(argv)
    with contextlib.redirect_stdout(sys.stderr) if args.json else contextlib.nullcontext():
        if args.input_only:
            result, text = input_rates(load(args.config, overrides), args.runs), input_text
        else:
            config, samples = timed_config(args, overrides)
            padding = _padding(args.config, overrides) if args.data else None
            result, text = timed_comparison(config, samples, args) | {"padding_share": padding}, comparison_text
    print(json.dumps(result) if args.json else text(result))
    return 0


def parse(argv: Sequence[str]) -> tuple[argparse.Namespace, list[tuple[str, str]]]:
    """(the flags, the overrides of the config). Raises UserError for numbers that are too small."""
    parser = command_parser("bench", __doc__)
    add_config_argument(parser)
    add = parser.add_argument
    add("--batch", type=int, default=2, help="rows of the batch, which is one unit (default 2)")
    add("--seconds", type=float, default=10.0, help="seconds of audio in each row (default 10)")
    add("--against", choices=["torch"], help="also time PyTorch, in turn (extra: parity)")
    dtype = "type of the computation (default: train.dtype, but float32 for --against on a CPU)"
    add("--dtype", choices=["float32", "bfloat16"], help=dtype)
    add("--runs", type=int, default=5, help="timed steps of each side (default 5)")
    add("--warmup", type=int, default=1, help="untimed steps at the start of a turn (default 1)")
    add("--stages", action="store_true", help=f"also time the parts of a step, by a trace of {TRACED} steps")
    add("--data", action="store_true", help="also report the padding of the config's data (lists its recordings)")
    input_only = "time the reading of the config's data instead, stage by stage, without a model"
    add("--input-only", action="store_true", help=input_only)
    profile = f"keep a trace of {TRACED} steps for TensorBoard or Perfetto"
    add("--profile", type=path_argument, metavar="DIR", help=profile)
    add("--torch-compile", action="store_true", help="compile the PyTorch side by torch.compile (minutes)")
    add("--json", action="store_true", help="print one JSON object on stdout, and all else on stderr")
    argv, overrides = split_overrides(argv)
    args = parser.parse_args(argv)
    if args.runs < 1 or args.warmup < 0 or args.batch < 1:
        raise UserError("--runs and --batch must be at least 1, and --warmup at least 0")
    if args.input_only and (args.against or args.stages or args.data or args.profile or args.torch_compile):
        raise UserError("--input-only runs no model: leave out --against, --stages, --data, --profile, --torch-compile")
    return args, overrides


def timed_config(args: argparse.Namespace, overrides: list[tuple[str, str]]) -> tuple[Config, int]:
    """(the config of the updates that are timed, whose batch is one unit; the samples of a row). Raises UserError."""
    samples, dtype = round(args.seconds * SAMPLE_RATE), args.dtype
    if dtype is None and args.against and jax.default_backend() == "cpu" and "train.dtype" not in dict(overrides):
        dtype = "float32"
    overrides = [*overrides, ("data.unit_seconds", repr(args.batch * samples / SAMPLE_RATE))]
    config = load(args.config, overrides + ([("train.dtype", dtype)] if dtype else []))
    if args.against and config.method not in DESCRIPTIONS:
        supported = ", ".join(DESCRIPTIONS)
        raise UserError(f"--against=torch supports the methods {supported}; the config's method is {config.method!r}")
    config = with_alphabet(config)
    if "encoder.frozen_steps" not in dict(overrides):
        config = unfrozen(config)
    if config.data.name not in ("codes", "features"):
        frames = methods.load(config).output_frames(samples)
        if frames <= setting(config, "masking.length") + 1:
            raise UserError(f"--seconds={args.seconds:g} makes {frames} frames, too few for the config's masks")
    return config, samples


def _padding(path: str, overrides: list[tuple[str, str]]) -> float:
    """The share of an epoch's samples that is padding, with the config's buckets on its data."""
    config = load(path, overrides)
    with tempfile.TemporaryDirectory() as scratch:
        data = open_data(config, batch_units(config.data), 1, path=pathlib.Path(scratch))
    return data.train_plan.padding_share


def timed_comparison(config: Config, samples: int, args: argparse.Namespace) -> dict[str, Any]:
    """Builds both sides, times them in turn, and returns what `--json` prints."""
    batch = random_batch(config, args.batch, samples)
    ours = our_side(config, batch)
    sides, ours_peak = {"ours": ours}, _peak_memory()
    if args.against:
        sides["theirs"] = torch_side(config, batch, compiled=args.torch_compile)
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    losses: dict[str, float] = {}
    for turn in range(args.runs):
        for name, side in sides.items():
            for _ in range(args.warmup if turn == 0 or args.against else 0):
                side.run()
            start = time.perf_counter()
            losses[name] = side.run()
            seconds[name].append(time.perf_counter() - start)
    stages, trace_error = _traced(ours, args.profile) if args.stages or args.profile else ({}, None)
    device = jax.devices()[0]
    medians = {name: statistics.median(runs) for name, runs in seconds.items()}
    result = {"ratio": medians["theirs"] / medians["ours"]} if args.against else {}
    for name, side in sides.items():
        result |= {f"{name}_seconds": medians[name], f"{name}_runs": seconds[name], f"{name}_loss": losses[name]}
        result |= {f"{name}_parameters": side.parameters, f"{name}_does": side.description}
        result |= {f"{name}_first_seconds": side.first_seconds}
    packages = ["jax", "jaxlib", "flax", *(["torch", "transformers"] if args.against else [])]
    versions = {name: importlib.metadata.version(name) for name in packages}
    result |= {
        "stages": stages,
        "trace_error": trace_error,
        "compile_seconds": ours.compile_seconds,
        "shapes": {"batch": args.batch, "samples": samples},
        "dtype": config.train.dtype,
        "device": f"{device.platform}: {device.device_kind}",
        "cores": os.cpu_count(),
        "page_advice": page_advice(),
        "dtype_advice": dtype_advice(config.train.dtype),
        "versions": {"python": platform.python_version()} | versions,
        "peak_memory_bytes": _peak_memory(),
        "ours_peak_memory_bytes": ours_peak,
        "ours_program_bytes": ours.program_bytes,
        "device_peak_memory_bytes": (device.memory_stats() or {}).get("peak_bytes_in_use"),
        "audio_hours_per_hour": args.batch * samples / SAMPLE_RATE / medians["ours"],
    }
    return result | _flops(config, batch, medians["ours"], device_kind=device.device_kind)


def _traced(side: Side, folder: pathlib.Path | None) -> tuple[dict[str, dict[str, float]], str | None]:
    """(seconds of a step on the device by part of the model, forward and backward; why there are none, or None).

    `folder` keeps the trace. A profiler that fails does not lose what was measured before.
    """
    with tempfile.TemporaryDirectory() as scratch:
        trace_folder = pathlib.Path(folder or scratch)
        try:
            with jax.profiler.trace(str(trace_folder)):
                for _ in range(TRACED):
                    side.run()
            parts = seconds_by_part(trace_folder, side.text())
        except (OSError, RuntimeError, ValueError) as error:
            return {}, f"the profiler failed: {error}"
    if not parts:
        return {}, "the trace has no operations of the program; view it in TensorBoard or Perfetto (--profile)"
    return {part: {way: s / TRACED for way, s in ways.items()} for part, ways in parts.items()}, None


def _flops(config: Config, batch: dict[str, np.ndarray], seconds: float, *, device_kind: str) -> dict[str, Any]:
    """FLOP of a step that took `seconds`, and the FLOP/s reached, beside a large product and the published peak."""
    part_flops = step_flops(config, batch)
    total, product = sum(part_flops.values()), product_flops(config.train.dtype)
    reached, peak = total / seconds, stated_flops(device_kind, config.train.dtype)
    result = {"flops": total, "part_flops": part_flops, "flops_per_second": reached}
    result |= {"product_flops_per_second": product, "product_share": reached / product}
    return result | ({"peak_share": reached / peak} if peak else {})


def _peak_memory() -> int:
    """The most main memory that this process has used so far, in bytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def our_side(config: Config, batch: dict[str, np.ndarray]) -> Side:
    """The update of `step.train_step` on a batch, on the first device."""
    ready, start = ready_update(config, batch), time.perf_counter()
    ready.run()
    first_seconds = ready.compile_seconds + time.perf_counter() - start
    m = ready.program.memory_analysis()
    used = m and m.temp_size_in_bytes + m.argument_size_in_bytes + m.output_size_in_bytes - m.alias_size_in_bytes
    return Side(
        OURS,
        first_seconds,
        ready.run,
        parameters=ready.parameters,
        compile_seconds=ready.compile_seconds,
        program_bytes=used,
        text=lambda: ready.program.as_text() or "",
    )


def comparison_text(result: dict[str, Any]) -> str:
    """The result as text for people."""
    shapes, compared = result["shapes"], "ratio" in result
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    lines = [
        f"device       {result['device']}, {result['cores']} cores",
        *([f"pages        {result['page_advice']}"] if result["page_advice"] else []),
        *([f"arithmetic   {result['dtype_advice']}"] if result["dtype_advice"] else []),
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
    first_seconds = f"; theirs {result['theirs_first_seconds']:.1f} s" if compared else ""
    parameters = f"; theirs {result['theirs_parameters'] / 1e6:.2f} M" if compared else ""
    first_call = f"{result['ours_first_seconds']:.1f} s, including {result['compile_seconds']:.1f} s of compilation"
    lines += [
        f"first call   {first_call}{first_seconds}",
        f"parameters   {result['ours_parameters'] / 1e6:.2f} M{parameters}",
        f"throughput   {result['audio_hours_per_hour']:.4g} audio-hours per hour",
        f"peak memory  {_memory_text(result)}",
        f"padding      {_padding_text(result['padding_share'])}",
        f"work         {result['flops'] / 1e9:.4g} GFLOP per step, {result['flops_per_second'] / 1e9:.4g} GFLOP/s",
        *_part_lines(result["part_flops"], result["stages"]),
    ]
    if result["trace_error"]:
        lines.append(f"trace        {result['trace_error']}")
    product = f"{result['product_flops_per_second'] / 1e9:.4g} GFLOP/s of a large product, measured now"
    lines.append(f"             {result['product_share']:.1%} of the {product}")
    if "peak_share" in result:
        lines.append(f"             {result['peak_share']:.1%} of the published peak of the device")
    return "\n".join(lines)


def _part_lines(flops: dict[str, float], stages: dict[str, dict[str, float]]) -> list[str]:
    """A line for each part of the model: its work and, if it was traced, its time."""
    if not stages:
        return [f"             {flop / 1e9:9.3f} GFLOP  {part}" for part, flop in flops.items()]
    total = sum(sum(ways.values()) for ways in stages.values())
    lines = ["             seconds        forward  backward     GFLOP   GFLOP/s   (time on the device, by a trace)"]
    for part in dict.fromkeys([*stages, *flops]):
        ways, flop = stages.get(part, {"forward": 0.0, "backward": 0.0}), flops.get(part, 0.0)
        seconds = sum(ways.values())
        work = f"{flop / 1e9:9.2f} {flop / seconds / 1e9:9.4g}" if flop and seconds else " " * 19
        times = f"{seconds:7.4f} {seconds / total:>4.0%}  {ways['forward']:9.4f} {ways['backward']:9.4f}"
        lines.append(f"             {times} {work}   {part}")
    return lines


def _padding_text(share: float | None) -> str:
    if share is None:
        return "none, the rows are full; --data reports the padding of the config's data"
    return f"{share:.1%} of the samples of an epoch, with the config's buckets on its data; none in the timed rows"


def _memory_text(result: dict[str, Any]) -> str:
    names = {"process": "peak_memory_bytes", "process before the other side": "ours_peak_memory_bytes"}
    names |= {"our program": "ours_program_bytes", "device": "device_peak_memory_bytes"}
    known = {label: result[name] for label, name in names.items() if result[name] is not None}
    return ", ".join(f"{label} {size / 1e9:.2f} GB" for label, size in known.items())


if __name__ == "__main__":
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # torch shares the device
    run_command(main)
