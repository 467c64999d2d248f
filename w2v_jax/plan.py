"""Does a config fit a machine that you do not have, and how long would training take? Nothing is trained.

    python -m w2v_jax.plan --config=configs/w2v2_base.py --target=h200-8
    python -m w2v_jax.plan --config=configs/w2v2_large.py --target=v5e-64 --price=1.2
    python -m w2v_jax.plan --config=configs/w2v2_base.py --target=v5e-16 --compile      # pip install 'w2v-jax[tpu]'
    python -m w2v_jax.plan --config=configs/w2v2_base.py --target=v5e-16 --compile --explain

The bytes of parameters, optimizer and gradients are exact, by the pieces into which the mesh cuts them. Activations are
the arrays that JAX keeps for the backward pass, before XLA fuses or frees any, and without what is held while a layer
is computed: XLA's programs for TPUs took 1.06 to 1.4 times the sum. With `--compile`, XLA's TPU compiler compiles the
program that training would run on the target, in minutes, and reports its memory. The words "auto" of the config then
mean what is best there. `--explain` reads that program: what its operations move and compute, beside what an update has
to move, and the time that follows. The shortest time follows from published figures of the chip. The expected time
assumes a share of the peak, `--share`, which must also cover the communication between devices. `bench` measures
instead.
"""

from __future__ import annotations

import collections
import json
from collections.abc import Sequence
from typing import Any

from w2v_jax.core.cli import UserError, command_parser, duration, run_command, table
from w2v_jax.core.config import Config, add_config_argument, load, split_overrides
from w2v_jax.core.units import SAMPLE_RATE
from w2v_jax.profiling import estimate as estimates
from w2v_jax.profiling import roofline
from w2v_jax.profiling.chips import CHIPS
from w2v_jax.profiling.estimate import Estimate, Target

SHARE = 0.35


def main(argv: Sequence[str]) -> int:
    argv, overrides = split_overrides(argv)
    parser = command_parser("plan", __doc__)
    add_config_argument(parser)
    add = parser.add_argument
    add("--target", required=True, metavar="KIND-N", help=f"e.g. h200-8; kinds: {', '.join(CHIPS)}")
    add("--price", type=float, default=0.0, help="price of one device for an hour, to report the cost")
    add("--share", type=float, default=SHARE, help=f"expected share of the peak FLOP/s (default {SHARE})")
    add("--compile", action="store_true", help="for TPUs: compile the update by XLA (minutes; needs no TPU)")
    add("--explain", action="store_true", help="with --compile: show what the operations of the program do")
    add("--json", action="store_true", help="print one JSON object")
    args = parser.parse_args(argv)
    if not 0 < args.share <= 1:
        raise UserError(f"--share={args.share:g}: must be above 0 and at most 1")
    if args.explain and not args.compile:
        raise UserError("--explain reads a compiled program: give --compile as well")
    target, config = estimates.parse_target(args.target), load(args.config, overrides)
    devices = estimates.topology(target) if args.compile else []
    if config.sharding.fsdp == 0:
        config, estimate = estimates.with_fsdp(config, target)
    else:
        estimate = estimates.estimated(config, target)
    result = plan_summary(config, target, estimate, share=args.share, price=args.price)
    if devices:
        program, result["compiled"] = estimates.compiled_program(config, devices, estimate)
        if args.explain:
            result["explained"] = roofline.explained(program, config, target, estimate=estimate)
        result["fits"] = result["compiled"]["memory"] <= target.memory
    if result["fits"]:
        result["suggestion"] = estimates.speed_flags(config, target, estimate)
    else:
        result["suggestion"] = estimates.memory_flags(config, target)
    print(json.dumps(result) if args.json else plan_text(config, target, estimate, result=result))
    if args.explain and not args.json:
        print(f"\n{explained_text(result['explained'])}")
    return 0 if result["fits"] else 1


def plan_summary(config: Config, target: Target, estimate: Estimate, *, share: float, price: float) -> dict[str, Any]:
    """What `--json` prints: bytes per device, seconds of an update, hours of the run, cost."""
    peak, traffic_seconds = estimates.peak_flops(config, target), estimate.traffic / target.bandwidth
    expected = max(estimate.flops / (share * peak), traffic_seconds)
    frozen = estimates.frozen_updates(config)
    hours = expected * (config.train.steps - frozen * (1 - estimate.first_share)) / 3600
    result = {"target": target.name, "devices": target.devices, "fits": estimates.fits(estimate, target)}
    result |= estimate._asdict() | {"memory": estimate.memory, "device_memory": target.memory}
    result |= {"floor_seconds": max(estimate.flops / peak, traffic_seconds), "expected_seconds": expected}
    result |= {"hours": hours, "device_hours": hours * target.devices}
    result |= {"audio_hours_per_hour": config.data.batch_hours * 3600 / expected}
    return result | ({"cost": result["device_hours"] * price} if price else {})


def plan_text(config: Config, target: Target, estimate: Estimate, *, result: dict[str, Any]) -> str:
    """The summary as text for people."""
    data, fsdp, tensor = estimate.mesh
    arithmetic_seconds = estimate.flops / estimates.peak_flops(config, target)
    bound = "arithmetic" if arithmetic_seconds > estimate.traffic / target.bandwidth else "memory traffic"
    rows = {
        "method": f"{config.method}, {estimate.parameters:,} parameters, {config.train.dtype}",
        "devices": f"{target.devices} x {target.name.split('-')[0]}, mesh: data {data}, fsdp {fsdp}, tensor {tensor}",
        "update": f"{config.data.batch_hours:.4g} h of audio; {estimate.parts} micro-batch(es) of {estimate.rows} x "
        f"{estimate.samples / SAMPLE_RATE:g} s on each device",
        "memory": f"{gigabytes(estimate.memory)} of {gigabytes(target.memory)} on each device\n"
        f"state {gigabytes(estimate.state)}, gradients {gigabytes(estimate.gradients)}, activations "
        f"{gigabytes(estimate.activations)} (before XLA fuses)",
        "work": f"{estimate.flops / 1e12:,.2f} TFLOP and {gigabytes(estimate.traffic)} of memory traffic per update",
        "time": f"at least {result['floor_seconds']:.3g} s per update (limited by {bound}), "
        f"{result['expected_seconds']:.3g} s expected",
        "run": f"{config.train.steps:,} updates in about {duration(result['hours'] * 3600)} "
        f"({result['device_hours']:,.0f} device-hours), {result['audio_hours_per_hour']:,.0f} hours of audio per hour",
    }
    if estimates.moves_few_rows(config, target, estimate):
        rows["update"] += f"\nfewer than {estimates.FEW_ROWS} rows at once make convolutions slow on TPUs"
    if frozen := estimates.frozen_updates(config):
        share = f"{estimate.first_share:.0%} of the work"
        rows["run"] += f"\nthe first {frozen:,} do not train the encoder and take {share}"
    if "compiled" in result:
        c = result["compiled"]
        rows["compiled"] = (
            f"at most {gigabytes(c['memory'])} on each device: arguments {gigabytes(c['arguments'])}, temporaries "
            f"{gigabytes(c['temporaries'])}, program {gigabytes(c['code'])}; compiled in {duration(c['seconds'])}"
        )
    if "cost" in result:
        rows["cost"] = f"{result['cost']:,.0f} at this price"
    flags = " ".join(result["suggestion"])
    if result["fits"]:
        rows["verdict"] = f"fits; it needs fewer micro-batches with {flags}" if flags else "fits"
    else:
        advice = f"try {flags}" if flags else "take more or larger devices"
        advice += "; this leaves longer recordings out" if "bucket_seconds" in flags else ""
        limit = "the memory" if "compiled" in result else f"{estimates.ROOM:.0%} of the memory"
        rows["verdict"] = f"does not fit {limit}: {advice}"
    return table(rows, f"{config.method} on {target.name}")


def explained_text(found: dict[str, Any]) -> str:
    """What `roofline.explained` found, as text for people."""
    rows = {
        "memory traffic": f"{gigabytes(found['bytes'])} per update, {found['bytes'] / found['floor_bytes']:.3g} times "
        f"the floor of {gigabytes(found['floor_bytes'])} (state, inputs, and the inputs of layers once each way)",
        "products": f"{teraflop(found['flops'])}, {teraflop(found['float32'])} of them of float32 arrays; counted "
        f"before XLA, without a second computation: {teraflop(found['counted_flops'])}",
        "time": f"at least {found['seconds']:.3g} s per update, {found['share']:.1%} of the peak (without the network "
        "and elementwise arithmetic)",
        "parts": "\n".join(f"{work_text(part)}  {name}" for name, part in found["parts"].items()),
        "largest": operations_text(found["largest"]),
        "copies": f"{work_text(found['moves'])}  in all\n{operations_text(found['moves']['largest'])}",
        "float32": operations_text(found["largest_float32"]),
        "kept": kept_text(found["kept"]),
        "network": collectives_text(found["collectives"]),
        "loops": "\n".join(f"counted once, as data decides: {scope(path)}" for path in found["unknown_loops"]),
    }
    return table({name: text for name, text in rows.items() if text}, "the program of one device")


def operations_text(found: list[dict[str, Any]]) -> str:
    """A line for each operation: all of its runs, kind and result, and where it comes from."""
    whole = ({key: x["times"] * x[key] for key in ("bytes", "flops")} | {"seconds": x["seconds"]} for x in found)
    lines = (f"{x['times']} x {x['kind']} {x['result'][:60]}  {scope(x['path'])}" for x in found)
    return "\n".join(f"{work_text(work)}  {line}" for work, line in zip(whole, lines))


def kept_text(found: list[dict[str, Any]]) -> str:
    """What is kept for the gradient, by type and the largest arrays."""
    types = collections.Counter[str]()
    for each in found:
        types[each["array"].partition("[")[0]] += each["bytes"]
    lines = [", ".join(f"{dtype} {gigabytes(size)}" for dtype, size in types.most_common())]
    lines += [f"{gigabytes(x['bytes']):>11}  {x['array']}  {scope(x['path'])}" for x in found[: roofline.LARGEST]]
    return "\n".join(lines)


def collectives_text(found: list[dict[str, Any]]) -> str:
    """The collectives that give a device most, all of their runs."""
    largest = sorted(found, key=lambda x: -x["times"] * x["bytes"])[: roofline.LARGEST]
    whole = (f"{gigabytes(x['times'] * x['bytes']):>11}  {x['times']} x {x['kind']}" for x in largest)
    return "\n".join(f"{line} {x['result'][:60]}  {scope(x['path'])}" for line, x in zip(whole, largest))


def work_text(work: dict[str, float]) -> str:
    return f"{work['seconds'] * 1e3:8.2f} ms {gigabytes(work['bytes']):>11} {teraflop(work['flops']):>12}"


def scope(path: str) -> str:
    """The end of a path of modules."""
    return "/".join(path.split("/")[-4:])


def gigabytes(count: float) -> str:
    return f"{count / 1e9:,.2f} GB"


def teraflop(count: float) -> str:
    return f"{count / 1e12:,.2f} TFLOP"


if __name__ == "__main__":
    run_command(main)
