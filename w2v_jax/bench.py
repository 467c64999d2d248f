"""Times full training steps (forward, backward, update) on random audio, alone or against another framework.

    python -m w2v_jax.bench --config=configs/w2v2_base.py --batch=2 --seconds=10 --against=transformers

Both sides run in turn in one process (A B A B ...), so that a busy machine slows both; the figure to trust is the
ratio of medians, theirs / ours. Reads no data: loading and decoding are not part of the time. One device.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib
import importlib.metadata
import json
import os
import platform
import resource
import statistics
import sys
import textwrap
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from w2v_jax.config import SAMPLE_RATE, UserError, add_config_argument, load, run_command, split_overrides

OURS = (
    "wave -> loss in one jitted program with donated state; masks, distractors and dropout are drawn inside; "
    "quantizer, projections and loss on masked frames only; feature penalty; AdamW"
)
THEIRS = (
    "transformers Wav2Vec2ForPreTraining in training mode with the same sizes, dropouts and LayerDrop; masks "
    "and negative indices are drawn outside the timed part; quantizer, projections and loss on all frames (its own "
    "way); no feature penalty; torch.optim.AdamW(fused=True)"
)


class Side(NamedTuple):
    """One contender. run() does one whole step, waits for it and returns the loss in nats per masked frame."""

    words: str  # what it does
    first_seconds: float  # compilation and first step
    run: Callable[[], float]
    program_bytes: int | None


def main(argv: Sequence[str]) -> int:
    """The command: exit code 0, or UserError."""
    argv, overrides = split_overrides(argv)
    args = _parser().parse_args(argv)
    if args.runs < 1 or args.warmup < 0 or args.batch < 1:
        raise UserError("--runs and --batch must be at least 1, --warmup at least 0")
    with contextlib.redirect_stdout(sys.stderr) if args.json else contextlib.nullcontext():
        config, samples = _config(args, overrides)
        result = measure(config, samples, args)
    print(json.dumps(result) if args.json else describe(result))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m w2v_jax.bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_config_argument(parser)
    parser.add_argument("--batch", type=int, default=2, help="rows of the batch, which is one unit (default 2)")
    parser.add_argument("--seconds", type=float, default=10.0, help="seconds of audio in each row (default 10)")
    parser.add_argument("--against", choices=["transformers"], help="also time this, in turn (extra: parity)")
    parser.add_argument(
        "--dtype",
        choices=["float32", "bfloat16"],
        help="of the computation; default: the config's train.dtype, but float32 with --against on CPU",
    )
    parser.add_argument("--runs", type=int, default=5, help="timed steps of each side (default 5)")
    parser.add_argument("--warmup", type=int, default=1, help="steps after the first that are not timed (default 1)")
    parser.add_argument("--torch-compile", action="store_true", help="let torch.compile the other side (minutes)")
    parser.add_argument("--json", action="store_true", help="print one JSON object on stdout, all else on stderr")
    return parser


def _config(args: argparse.Namespace, overrides: list[tuple[str, str]]) -> tuple[Any, int]:
    """The config with one unit as the batch, and the samples of a row."""
    import jax

    from w2v_jax.frontend import num_frames

    samples = round(args.seconds * SAMPLE_RATE)
    dtype = args.dtype
    if dtype is None and args.against and jax.default_backend() == "cpu":
        dtype = "float32"
    overrides = [*overrides, ("data.unit_seconds", repr(args.batch * samples / SAMPLE_RATE))]
    config = load(args.config, overrides + ([("train.dtype", dtype)] if dtype else []))
    if config.method != "wav2vec2":
        raise UserError(f"bench knows the parts of 'wav2vec2' only; the config's method is {config.method!r}")
    frames = num_frames(samples, config.encoder.conv_layers)
    if frames <= config.masking.length + 1:
        raise UserError(f"--seconds={args.seconds:g} makes {frames} frames; spans of {config.masking.length} need more")
    return config, samples


def measure(config: Any, samples: int, args: argparse.Namespace) -> dict[str, Any]:
    """Builds both sides, times them in turn, and returns what `--json` prints."""
    import jax

    rng = np.random.default_rng(config.seed)
    wave = rng.standard_normal((args.batch, samples), dtype=np.float32)
    ours = our_side(config, wave)
    own_peak = _peak_memory()
    sides = {"ours": ours}
    if args.against:
        sides["theirs"] = their_side(config, wave, args.torch_compile)
    for side in sides.values():
        for _ in range(args.warmup):
            side.run()
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    losses: dict[str, float] = {}
    for _ in range(args.runs):
        for name, side in sides.items():
            start = time.perf_counter()
            losses[name] = side.run()
            seconds[name].append(time.perf_counter() - start)
    device = jax.devices()[0]
    medians = {name: statistics.median(runs) for name, runs in seconds.items()}
    result = {f"{name}_seconds": value for name, value in medians.items()}
    if args.against:
        result["ratio"] = medians["theirs"] / medians["ours"]
    result |= {f"{name}_runs": runs for name, runs in seconds.items()}
    result |= {f"{name}_loss": value for name, value in losses.items()}
    result |= {
        **{f"{name}_does": side.words for name, side in sides.items()},
        "compile_seconds": ours.first_seconds,
        "theirs_compile_seconds": sides["theirs"].first_seconds if args.against else None,
        "shapes": _shapes(config, args.batch, samples),
        "dtype": config.train.dtype,
        "device": f"{device.platform}: {device.device_kind}",
        "cores": os.cpu_count(),
        "versions": _versions(["jax", "jaxlib", "flax", *(["torch", "transformers"] if args.against else [])]),
        "peak_memory_bytes": _peak_memory(),
        "ours_peak_memory_bytes": own_peak,
        "ours_program_bytes": ours.program_bytes,
        "device_peak_memory_bytes": (device.memory_stats() or {}).get("peak_bytes_in_use"),
        "audio_hours_per_hour": args.batch * samples / SAMPLE_RATE / medians["ours"],
    }
    return result | _flops(config, args.batch, samples, medians["ours"], device.device_kind)


def _shapes(config: Any, rows: int, samples: int) -> dict[str, int]:
    from w2v_jax.frontend import num_frames

    frames = num_frames(samples, config.encoder.conv_layers)
    return {"batch": rows, "samples": samples, "frames": frames, "negatives": config.loss.negatives}


def _flops(config: Any, rows: int, samples: int, seconds: float, device_kind: str) -> dict[str, Any]:
    from w2v_jax import flops

    forward = flops.forward_flops(config, rows, samples)
    step = flops.STEP_FACTOR * sum(forward.values())
    peak = flops.peak_flops(device_kind, config.train.dtype)
    result = {"flops": step, "forward_flops": forward, "flops_per_second": step / seconds}
    return result | ({"peak_share": step / seconds / peak} if peak else {})


def _versions(packages: Sequence[str]) -> dict[str, str]:
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in packages}


def _peak_memory() -> int:
    """Bytes of main memory that this process held at most."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def our_side(config: Any, wave: np.ndarray) -> Side:
    """The update of `step.train_step` on wave [B T], on the first device."""
    import flax.linen as nn
    import jax
    from jax.sharding import AxisType

    from w2v_jax import optim, sharding, step

    method = importlib.import_module(f"w2v_jax.methods.{config.method}").make(config)
    rows, samples = wave.shape
    batch = dict(wave=wave, num_samples=np.full(rows, samples, np.int32))
    batch |= dict(weight=np.ones(rows, np.float32), row=np.arange(rows, dtype=np.int32))
    micro = {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in batch.items()}
    key = jax.random.key(config.seed)
    mesh = jax.make_mesh((1, 1, 1), sharding.MESH_AXES, axis_types=(AxisType.Auto,) * 3, devices=jax.devices()[:1])
    with jax.set_mesh(mesh), nn.logical_axis_rules(sharding.RULES):
        params, _ = jax.eval_shape(lambda: method.init(key, step.zeros_like(micro)))
        rate = optim.schedule(config.optim, config.train.steps)
        tx = optim.optimizer(config.optim, rate, sharding.bare(params))
        make, shapes = step.create_state(method, tx, key, micro, mesh)
        state, placed = make(), sharding.put_batch(batch, mesh, 1)
        update = functools.partial(step.train_step, method, tx, rate)
        places = jax.tree.map(lambda x: x.sharding, shapes)
        start = time.perf_counter()
        program = jax.jit(update, donate_argnums=0, out_shardings=(places, None)).lower(state, placed, key).compile()

    def run() -> float:
        nonlocal state
        state, metrics = jax.block_until_ready(program(state, placed, key))
        return float(metrics["loss"])

    run()
    first = time.perf_counter() - start
    memory = program.memory_analysis()
    held = memory and memory.temp_size_in_bytes + memory.argument_size_in_bytes + memory.output_size_in_bytes
    return Side(OURS, first, run, held - memory.alias_size_in_bytes if memory else None)


def their_side(config: Any, wave: np.ndarray, compiled: bool) -> Side:
    """Hugging Face's model and torch's AdamW on wave [B T]: the GPU where JAX has one, else all CPU cores."""
    torch, transformers = _import_torch()
    import jax

    device = "cuda" if jax.default_backend() == "gpu" else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("JAX has a GPU and torch has none: install a CUDA build of torch, or set JAX_PLATFORMS=cpu")
    torch.set_num_threads(os.cpu_count() or 1)
    torch.manual_seed(config.seed)
    model = transformers.Wav2Vec2ForPreTraining(their_config(config)).to(device).train()
    model.set_gumbel_temperature(config.quantizer.temperature[0])
    o = config.optim
    adam = dict(lr=o.peak / max(o.warmup, 1), betas=tuple(o.betas), eps=o.eps, weight_decay=o.weight_decay)
    optimizer = torch.optim.AdamW(model.parameters(), **adam, fused=True)
    forward = torch.compile(model) if compiled else model
    audio = torch.from_numpy(wave).to(device)
    half = torch.autocast(device, torch.bfloat16, enabled=config.train.dtype == "bfloat16")
    draws = _their_draws(config, wave, torch, device)

    def run() -> float:
        masked, negatives, count = next(draws)
        optimizer.zero_grad(set_to_none=True)
        with half:
            out = forward(audio, mask_time_indices=masked, sampled_negative_indices=negatives)
        (out.loss / count).backward()
        optimizer.step()
        return out.contrastive_loss.item() / count

    start = time.perf_counter()
    run()
    words = THEIRS + ("; torch.compile" if compiled else "; eager")
    return Side(words, time.perf_counter() - start, run, None)


def _import_torch() -> tuple[Any, Any]:
    try:
        import torch
        import transformers
    except ImportError as error:
        raise UserError(f"--against=transformers needs {error.name}: pip install -e '.[parity]'") from None
    return torch, transformers


def their_config(config: Any) -> Any:
    """transformers.Wav2Vec2Config of the same model, dropouts and loss. UserError where it has no such choice."""
    from transformers import Wav2Vec2Config

    e, q, contrast = config.encoder, config.quantizer, config.loss
    if contrast.cross_negatives or contrast.codebook_negatives:
        raise UserError("transformers has neither loss.cross_negatives nor loss.codebook_negatives: set both to 0")
    channels, kernels, strides = zip(*e.conv_layers, strict=True)
    return Wav2Vec2Config(
        hidden_size=e.width,
        num_hidden_layers=e.layers,
        num_attention_heads=e.heads,
        intermediate_size=e.mlp,
        hidden_dropout=e.dropout,
        activation_dropout=e.mlp_dropout,
        attention_dropout=e.attention_dropout,
        feat_proj_dropout=e.input_dropout,
        feat_quantizer_dropout=q.input_dropout,
        layerdrop=e.layer_drop,
        feat_extract_norm=e.conv_norm,
        do_stable_layer_norm=e.pre_norm,
        conv_dim=channels,
        conv_kernel=kernels,
        conv_stride=strides,
        conv_bias=e.conv_bias,
        num_conv_pos_embeddings=e.pos_kernel,
        num_conv_pos_embedding_groups=e.pos_groups,
        num_codevector_groups=q.groups,
        num_codevectors_per_group=q.codes,
        codevector_dim=q.dim,
        proj_codevector_dim=contrast.proj,
        num_negatives=contrast.negatives,
        contrastive_logits_temperature=contrast.temperature,
        diversity_loss_weight=contrast.diversity_weight,
    )


def _their_draws(config: Any, wave: np.ndarray, torch: Any, device: str):
    """Masks and negative indices for ever: a few drawn beforehand, so that drawing is not part of the time."""
    from transformers.models.wav2vec2.modeling_wav2vec2 import _sample_negative_indices

    from w2v_jax.frontend import num_frames
    from w2v_jax.masking import span_mask_oracle

    frames = num_frames(wave.shape[1], config.encoder.conv_layers)
    rng, m = np.random.default_rng(config.seed), config.masking
    np.random.seed(config.seed)  # noqa: NPY002  _sample_negative_indices draws from this generator
    drawn = []
    for _ in range(4):
        lengths = np.full(len(wave), frames)
        masked = span_mask_oracle(rng, lengths, frames, prob=m.prob, length=m.length, min_spans=m.min_spans)
        negatives = _sample_negative_indices(masked.shape, config.loss.negatives, masked)
        drawn.append((torch.from_numpy(masked).to(device), torch.from_numpy(negatives).to(device), int(masked.sum())))
    while True:
        yield from drawn


def describe(result: dict[str, Any]) -> str:
    """The result as text for people."""
    shapes, compared = result["shapes"], "ratio" in result
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    lines = [
        f"device       {result['device']}, {result['cores']} cores",
        f"batch        {shapes['batch']} x {shapes['samples']} samples, {shapes['frames']} frames, {result['dtype']}",
        f"versions     {versions}",
    ]
    for side in ("ours", "theirs") if compared else ("ours",):
        runs = " ".join(f"{s:.3f}" for s in result[f"{side}_runs"])
        seconds, loss = result[f"{side}_seconds"], result[f"{side}_loss"]
        lines.append(f"{side:<12} {seconds:.4g} s per step (median of {runs}), loss {loss:.3f}")
        lines += textwrap.wrap(result[f"{side}_does"], 110, initial_indent=" " * 13, subsequent_indent=" " * 13)
    if compared:
        lines.append(f"ratio        {result['ratio']:.3f} (theirs / ours; above 1 ours is faster)")
    other = f"; theirs {result['theirs_compile_seconds']:.1f} s" if compared else ""
    lines += [
        f"first call   {result['compile_seconds']:.1f} s, compilation included{other}",
        f"throughput   {result['audio_hours_per_hour']:.4g} audio-hours per hour",
        f"peak memory  {_memory_words(result)}",
        f"work         {result['flops'] / 1e9:.4g} GFLOP per step, {result['flops_per_second'] / 1e9:.4g} GFLOP/s",
        *(f"             {flop / 1e9:9.3f} forward, {part}" for part, flop in result["forward_flops"].items()),
    ]
    if "peak_share" in result:
        lines.append(f"             {100 * result['peak_share']:.1f} % of the device's peak")
    return "\n".join(lines)


def _memory_words(result: dict[str, Any]) -> str:
    names = {"process": "peak_memory_bytes", "before the other side came": "ours_peak_memory_bytes"}
    names |= {"our program": "ours_program_bytes", "device": "device_peak_memory_bytes"}
    return ", ".join(
        f"{words} {result[name] / 1e9:.2f} GB" for words, name in names.items() if result[name] is not None
    )


if __name__ == "__main__":
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # torch shares the device
    run_command(main)
