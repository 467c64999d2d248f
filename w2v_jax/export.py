"""`python -m w2v_jax.export`: a trained model as a StableHLO program that runs without this package.

The program takes any number of recordings of any length: 16 kHz samples and how many of them are real. Normalising is
inside, so that only mixing and resampling are left to the caller. Its weights lie beside it (`weights.npz`, read with
NumPy alone): the program stays some hundred kB, is compiled fast, and the weights are on the device once.

    DIR/model.stablehlo   what jax.export.deserialize reads
    DIR/weights.npz       its first argument: {name: array}
    DIR/metadata.json     inputs, outputs, rate, frames, alphabet, where it comes from, how it was compared

docs/deploy.md shows how to use it.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import pathlib
import shutil
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np

from w2v_jax import __version__, acoustic, runs
from w2v_jax.config import FIRST_CODE, SAMPLE_RATE, UserError, portable, run_command
from w2v_jax.data.arrays import Arrays
from w2v_jax.data.index import WAVE
from w2v_jax.data.labels import FILE, Alphabet
from w2v_jax.data.pipeline import EPSILON, normalized
from w2v_jax.foreign import by_path, nest
from w2v_jax.frontend import valid_frames
from w2v_jax.runs import LOGITS, Layer, Run

EXAMPLES = """examples:
  python -m w2v_jax.export --run runs/base --what context --out model
  python -m w2v_jax.export --run runs/10h --what logits --out recogniser --platforms cpu,cuda
  python -m w2v_jax.export --run runs/vq --what codes --out coder

exit codes: 0 done, 1 a mistake, or outputs that are not those of the run, 2 wrong usage."""

PROGRAM, WEIGHTS, ABOUT = "model.stablehlo", "weights.npz", "metadata.json"
PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
TOLERANCE = {"float32": 1e-4, "bfloat16": 5e-2, "float16": 5e-3}
"""The largest difference to the run's own outputs, relative to their largest value, by the type computed with."""
CODES_TOLERANCE = 1e-3
"""The share of frames whose codes may differ: where two codes are equally near, rounding decides."""
COMPARED = ((1, 1.0), (3, 2.7))
"""(recordings, seconds of the longest) of the batches that are compared."""

Program = Callable[..., dict[str, jax.Array]]


def main(argv: Sequence[str]) -> int:
    args = _arguments(argv)
    run = exportable(runs.open_run(args.run, step=args.step), args.platforms)
    layer = runs.layer_of(run, args)
    runs.check_keys(run, (args.what,), layer)
    here = jax.export.default_export_platform()
    if here not in args.platforms:
        raise UserError(f"the program could not be compared with the run on this machine: add {here} to --platforms")
    if args.out.exists() and any(args.out.iterdir()):
        raise UserError(f"{args.out} is not empty; choose another --out")
    print(f"exporting {args.what} of {run.path} ({run.config.method}, step {run.step}) for {', '.join(args.platforms)}")
    exported, weights = export(run, args.what, layer, args.platforms)
    compared = compare(run, exported, weights, args.what, layer)
    about = describe(run, args.what, layer, exported) | {"compared": compared}
    write(args.out, exported, weights, about)
    size = sum(x.nbytes for x in weights.values()) / 2**20
    program = (args.out / PROGRAM).stat().st_size / 2**10
    print(
        f"done: {args.out}/{PROGRAM} ({program:,.0f} KiB), {WEIGHTS} ({size:,.1f} MiB), {ABOUT}; largest difference to "
        f"the run {compared['difference']:.2g} (allowed {compared['allowed']:.2g})",
        flush=True,
    )
    return 0


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m w2v_jax.export",
        description="Writes a trained model as a StableHLO program with its weights, and compares it with the run.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--run", required=True, metavar="RUN", help="the --workdir of a training")
    add("--step", type=runs.step_argument, metavar="N|best", help="which checkpoint (default: the newest)")
    add("--what", required=True, choices=runs.FEATURES + LOGITS, help="the output; hidden: all layers, or one --layer")
    runs.add_layer_arguments(parser)
    add("--platforms", type=_platforms, default=("cpu",), metavar="P,P,...", help=f"of {', '.join(PLATFORMS)} (cpu)")
    add("--out", required=True, type=pathlib.Path, metavar="DIR", help="folder to write; made if missing")
    args = parser.parse_args(argv)
    if args.what != "hidden" and (args.layer is not None or args.layers):
        parser.error("--layer and --layers belong to --what hidden")
    return args


def _platforms(text: str) -> tuple[str, ...]:
    found = tuple(text.split(","))
    if unknown := sorted(set(found) - set(PLATFORMS)):
        raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: platforms are {', '.join(PLATFORMS)}")
    return found


def exportable(run: Run, platforms: tuple[str, ...]) -> Run:
    """The run with those formulations that every one of the platforms can compute, whatever machine exports."""
    config = portable(run.config, "split" if platforms == ("cpu",) else "grouped")
    return dataclasses.replace(run, config=config, method=runs.method_module(config.method).make(config), jitted={})


def export(run: Run, what: str, layer: Layer, platforms: tuple[str, ...]) -> tuple[Any, dict[str, np.ndarray]]:
    """(the exported program, its weights by name): program(weights, elements [B T ...], num_samples [B]) -> outputs.

    Outputs are {what: array [B F D], or [B L F D] of all layers, "num_frames": [B]}. Weights that the output does not
    need are left out.
    """
    named = by_path({"params": run.params, "extra": run.extra})

    def lower(weights: dict[str, Any], *inputs: Any) -> Any:
        def whole(given: dict[str, Any]) -> Any:
            found = {k: given[k] if k in given else jnp.zeros(x.shape, x.dtype) for k, x in named.items()}
            return {"extra": {}} | nest(found)

        structs = {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in weights.items()}
        return jax.export.export(jax.jit(program(run, what, layer, whole)), platforms=platforms)(structs, *inputs)

    # symbolic shapes leave unused arguments in the program, so a static one tells which there are
    kept = set(lower(named, *structs_of(run, 1, run.geometry[0] if run.form == WAVE else 1)).module_kept_var_idx)
    needed = {name: x for i, (name, x) in enumerate(sorted(named.items())) if i in kept}
    rows, length = jax.export.symbolic_shape("B, T", constraints=constraints(run))
    return lower(needed, *structs_of(run, rows, length)), {name: np.asarray(x) for name, x in needed.items()}


def structs_of(run: Run, rows: Any, length: Any) -> tuple[jax.ShapeDtypeStruct, jax.ShapeDtypeStruct]:
    """Shapes and types of a batch of `rows` rows of `length` elements, and of the number of the real ones."""
    shape = (rows, length, run.form.width) if run.form.width else (rows, length)
    return jax.ShapeDtypeStruct(shape, run.form.dtype), jax.ShapeDtypeStruct((rows,), "int32")


def constraints(run: Run) -> list[str]:
    """What the program asks of B and T, elements of the rows: at least a frame, at most what the model can take."""
    most = [f"T <= {run.most_frames}"] if run.most_frames else []
    shortest = run.geometry[0] if run.form == WAVE else 1
    return ["B >= 1", f"T >= {shortest}", *most]


def program(run: Run, what: str, layer: Layer, rebuild: Callable[[dict[str, Any]], Any]) -> Program:
    """The function to export: normalises if the run does, computes, and says how many frames are real."""
    compute, hop = run.computation((what,), layer), run.form.hop

    def model(weights: dict[str, Any], elements: jax.Array, num_samples: jax.Array) -> dict[str, jax.Array]:
        tree = rebuild(weights)
        if run.form == WAVE:
            elements = clean(elements, num_samples, run.config.data.normalize)
        rows = jnp.arange(elements.shape[0], dtype=jnp.int32)
        batch = {run.form.name: elements, "num_samples": num_samples * hop, "row": rows}
        batch["weight"] = jnp.ones(elements.shape[0], jnp.float32)
        found = compute(tree["params"], tree["extra"], batch)
        return {name: x.swapaxes(0, 1) if x.ndim == 4 else x for name, x in found.items()}  # rows first: [B L F D]

    return model


def clean(wave: jax.Array, num_samples: jax.Array, normalize: bool) -> jax.Array:
    """wave [B T] with 0 beyond the num_samples [B]; before that with zero mean and unit variance, as in training."""
    valid, count = valid_frames(num_samples, wave.shape[1]), jnp.maximum(num_samples, 1).astype(jnp.float32)[:, None]
    wave = jnp.where(valid, wave, 0.0)
    if not normalize:
        return wave
    wave = jnp.where(valid, wave - wave.sum(axis=1, keepdims=True) / count, 0.0)
    return wave * jax.lax.rsqrt(jnp.square(wave).sum(axis=1, keepdims=True) / count + EPSILON)


def compare(run: Run, exported: Any, weights: dict[str, np.ndarray], what: str, layer: Layer) -> dict[str, Any]:
    """What the program gives for noise of several lengths, in batches, beside `predict` on each recording alone.

    Raises UserError when they differ: the program must not be used then.
    """
    worst, largest, rng, call = 0.0, 1.0, np.random.default_rng(0), jax.jit(exported.call)
    for rows, seconds in COMPARED:
        elements, counts = draw(run, rng, rows, seconds)
        found = jax.device_get(call(weights, elements, counts))
        for row, alone in enumerate(predicted(run, elements, counts, what, layer)):
            frames = alone.shape[-2]
            if found["num_frames"][row] != frames:
                raise UserError(f"the exported program gives {found['num_frames'][row]} frames, the run {frames}")
            worst = max(worst, difference(what, found[what][row][..., :frames, :], alone))
            largest = max(largest, float(np.abs(alone).max(initial=0.0)))
    allowed = CODES_TOLERANCE if what == "codes" else TOLERANCE[run.config.train.dtype] * largest
    if not worst <= allowed:
        raise UserError(
            f"the exported program differs from the run by {worst:.3g}, more than {allowed:.3g}; nothing was written. "
            "Please report this with the config of the run"
        )
    return {"difference": worst, "allowed": allowed, "platform": jax.export.default_export_platform()}


def difference(what: str, one: np.ndarray, other: np.ndarray) -> float:
    """The largest absolute difference, of codes the share of the frames that have others."""
    if what == "codes":
        return float(np.any(one != other, axis=-1).mean())
    return float(np.abs(one.astype(np.float64) - other).max(initial=0.0))


def draw(run: Run, rng: np.random.Generator, rows: int, seconds: float) -> tuple[np.ndarray, np.ndarray]:
    """(a batch of noise, how many elements of each row are real): the first row is the longest."""
    field, hop, most = run.geometry[0], run.form.hop, run.most_frames
    longest = int(seconds * SAMPLE_RATE) // hop if run.form != WAVE else max(int(seconds * SAMPLE_RATE), field)
    longest = min(longest, most) if most else longest
    counts = rng.integers(field if run.form == WAVE else 1, longest, rows, endpoint=True).astype(np.int32)
    counts[0] = longest
    shape = (rows, longest, run.form.width) if run.form.width else (rows, longest)
    if run.form.dtype == "float32":
        return (0.1 * rng.normal(size=shape) + 0.02).astype(np.float32), counts
    return rng.integers(FIRST_CODE, run.config.data.vocab_size, shape).astype(run.form.dtype), counts


def predicted(run: Run, elements: np.ndarray, counts: np.ndarray, what: str, layer: Layer) -> Iterator[np.ndarray]:
    """What the run's own `predict` gives for each row without its padding: [F D], or [L F D] of all layers."""
    predict = run.predictor((what,), layer)
    rows: Any = [row[:count] for row, count in zip(elements, counts)]
    if run.form == WAVE and run.config.data.normalize:
        source = normalized(Arrays(rows, SAMPLE_RATE))
        rows = [source.read(i, 0, len(row)) for i, row in enumerate(rows)]
    for row in rows:
        batch = {run.form.name: row[None], "num_samples": np.array([len(row) * run.form.hop], np.int32)}
        found = predict(batch | {"weight": np.ones(1, np.float32), "row": np.zeros(1, np.int32)})
        frames, output = int(found["num_frames"][0]), np.asarray(found[what])
        yield (output[:, 0] if output.ndim == 4 else output[0])[..., :frames, :]


def describe(run: Run, what: str, layer: Layer, exported: Any) -> dict[str, Any]:
    """metadata.json: all that someone without the run has to know."""
    field, hop = run.geometry
    hop *= acoustic.stride(run.config.acoustic) if what == "logits" else 1
    outputs = {}
    for name, aval in zip(sorted((what, "num_frames")), exported.out_avals):
        outputs[name] = {"shape": [str(n) for n in aval.shape], "dtype": str(aval.dtype)}
    wave, alphabet = run.form == WAVE, run.path / FILE
    about: dict[str, Any] = {
        "what": what,
        "layer": layer,
        "inputs": [
            {"name": run.form.name, "shape": ["B", "T"], "dtype": run.form.dtype, "made_by": run.form.made_by},
            {"name": "num_samples" if wave else f"num_{run.form.name}", "shape": ["B"], "dtype": "int32"},
        ],
        "outputs": outputs,
        "constraints": constraints(run),
        "sample_rate": SAMPLE_RATE,
        "normalize": "inside the program" if wave and run.config.data.normalize else "not at all",
        "frame": {"samples": field, "hop": hop, "rate": SAMPLE_RATE / hop},
        "alphabet": dataclasses.asdict(Alphabet.load(alphabet)) if what == "logits" else None,
        "platforms": list(exported.platforms),
        "run": {"method": run.config.method, "step": run.step, "digest": run.digest, "dtype": run.config.train.dtype},
        "versions": {"w2v_jax": __version__, "jax": jax.__version__},
    }
    return about


def write(folder: pathlib.Path, exported: Any, weights: dict[str, np.ndarray], about: dict[str, Any]) -> None:
    """Writes the three files; the folder appears whole or not at all. Raises UserError."""
    partial = folder.with_name(f"{folder.name}.partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        (partial / PROGRAM).write_bytes(exported.serialize())
        np.savez(partial / WEIGHTS, **weights)  # pyright: ignore[reportArgumentType]
        (partial / ABOUT).write_text(json.dumps(about, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        os.replace(partial, folder)
    except OSError as error:
        raise UserError(f"{error.filename or folder}: cannot be written ({error.strerror or error})") from None


if __name__ == "__main__":
    run_command(main)
