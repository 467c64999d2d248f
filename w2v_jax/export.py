"""`python -m w2v_jax.export`: writes a trained model as a StableHLO program that runs without this package.

The program takes any number of recordings of any length: 16 kHz samples and the number of real ones in each row. It
normalises them, so the caller only mixes and resamples. Its weights are in a separate file (`weights.npz`, which NumPy
alone can read). Therefore the program has a few hundred kB, compiles fast, and the weights are on the device only once.

    DIR/model.stablehlo   the program, for jax.export.deserialize
    DIR/weights.npz       its first argument: {name: array}
    DIR/metadata.json     inputs, outputs, rate, frames, alphabet, the run it comes from, how it was compared

docs/deploy.md shows how to use them.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
from jax.export import Exported

from w2v_jax import __version__, methods
from w2v_jax.core.cli import STEP, STEP_HELP, UserError, command_parser, expand_home, run_command, step_argument
from w2v_jax.core.config import portable
from w2v_jax.core.files import whole_folder
from w2v_jax.core.storage import output_folder
from w2v_jax.core.stores import place_argument
from w2v_jax.core.tree import by_path, nest
from w2v_jax.core.units import FIRST_CODE, SAMPLE_RATE, whole_batch
from w2v_jax.data.index import WAVE
from w2v_jax.data.io.arrays import Arrays
from w2v_jax.data.pipeline import EPSILON, normalized
from w2v_jax.data.transcripts import ALPHABET_FILE, Alphabet
from w2v_jax.inference.encode import check_keys
from w2v_jax.inference.run import FEATURES, LOGITS, Layer, Run, add_layer_arguments, computation, layer_of, open_run
from w2v_jax.nn import acoustic_model
from w2v_jax.ops.frames import valid_frames

EXAMPLES = """examples:
  python -m w2v_jax.export --run runs/base --what context --out model
  python -m w2v_jax.export --run runs/10h --what logits --out recogniser --platforms cpu,cuda
  python -m w2v_jax.export --run runs/vq --what codes --out coder

exit codes: 0 success, 1 a mistake or outputs that differ from the run, 2 wrong usage."""

PROGRAM, WEIGHTS, METADATA = "model.stablehlo", "weights.npz", "metadata.json"
PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
TOLERANCE = {"float32": 1e-4, "bfloat16": 5e-2, "float16": 5e-3}
"""The largest allowed difference from the run's outputs, relative to their largest value, by type of computation."""
CODES_TOLERANCE = 1e-3
"""The share of frames whose codes may differ: rounding decides between two codes that are equally near."""
COMPARED = ((1, 1.0), (3, 2.7))
"""(recordings, seconds of the longest) of each batch on which the program is compared with the run."""

ProgramFunction = Callable[..., dict[str, jax.Array]]
ExportedWeights = dict[str, np.ndarray]


def main(argv: Sequence[str]) -> int:
    args = _arguments(argv)
    with output_folder(args.out, last=[METADATA]) as args.out:
        return write_export(args)


def write_export(args: argparse.Namespace) -> int:
    """Writes the program and its weights into a new folder args.out. Raises UserError."""
    run = exportable(open_run(args.run, step=args.step), args.platforms)
    layer = layer_of(run, args)
    check_keys(run, (args.what,), layer)
    platform = jax.export.default_export_platform()
    if platform not in args.platforms:
        raise UserError(f"this machine could not compare the program with the run: add {platform} to --platforms")
    if args.out.exists() and any(args.out.iterdir()):
        raise UserError(f"{args.out} is not empty; choose another --out")
    print(f"exporting {args.what} of {run.path} ({run.config.method}, {run.at_step()}) for {', '.join(args.platforms)}")
    exported, weights = export(run, args.what, layer, platforms=args.platforms)
    compared = check_program(run, exported, weights, what=args.what, layer=layer)
    metadata = metadata_of(run, exported, what=args.what, layer=layer) | {"compared": compared}
    write_program(args.out, exported, weights, metadata=metadata)
    program_size = (args.out / PROGRAM).stat().st_size / 2**10
    weights_size = sum(x.nbytes for x in weights.values()) / 2**20
    files = f"{PROGRAM} ({program_size:,.0f} KiB), {WEIGHTS} ({weights_size:,.1f} MiB), {METADATA}"
    difference = f"{compared['difference']:.2g} (allowed: {compared['allowed']:.2g})"
    print(f"done: {args.out}/{files}; largest difference from the run: {difference}", flush=True)
    return 0


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    description = "Writes a trained model as a StableHLO program and its weights, and compares it with the run."
    parser = command_parser("export", description, EXAMPLES)
    add = parser.add_argument
    add("--run", required=True, type=expand_home, metavar="RUN", help="the --workdir of a training")
    add("--step", type=step_argument, metavar=STEP, help=STEP_HELP)
    what = "the output; hidden: all layers, or those of --layer and --layers"
    add("--what", required=True, choices=FEATURES + LOGITS, help=what)
    add_layer_arguments(parser)
    platforms = f"platforms, of {', '.join(PLATFORMS)} (default: cpu)"
    add("--platforms", type=_platforms, default=("cpu",), metavar="P,P,...", help=platforms)
    add("--out", required=True, type=place_argument, metavar="DIR", help="the folder to write; made if missing")
    args = parser.parse_args(argv)
    if args.what != "hidden" and (args.layer is not None or args.layers):
        parser.error("--layer and --layers belong to --what hidden")
    return args


def _platforms(text: str) -> tuple[str, ...]:
    platforms = tuple(text.split(","))
    if unknown := sorted(set(platforms) - set(PLATFORMS)):
        raise argparse.ArgumentTypeError(f"unknown platforms {', '.join(unknown)}; there are {', '.join(PLATFORMS)}")
    return platforms


def exportable(run: Run, platforms: tuple[str, ...]) -> Run:
    """The run with formulations that all of the platforms can compute. The machine that exports has no influence."""
    config = portable(run.config, "split" if platforms == ("cpu",) else "grouped")
    return dataclasses.replace(run, config=config, method=methods.load(config))


def export(run: Run, what: str, layer: Layer, *, platforms: tuple[str, ...]) -> tuple[Exported, ExportedWeights]:
    """(the exported program, its weights by name): program(weights, elements [B T ...], num_samples [B]) -> outputs.

    Outputs are {what: array [B F D], or [B L F D] of all layers, "num_frames": [B]}. Weights that the output does not
    need are left out.
    """
    named = by_path({"params": run.params, "extra": run.extra})
    model = jax.jit(program(run, what, layer))

    def lower(weights: dict[str, Any], rows: Any, length: Any) -> Exported:
        weight_structs = {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in weights.items()}
        elements = jax.ShapeDtypeStruct(batch_shape(run, rows, length), run.form.dtype)
        num_samples = jax.ShapeDtypeStruct((rows,), "int32")
        return jax.export.export(model, platforms=platforms)(weight_structs, elements, num_samples)

    # with symbolic shapes, unused arguments stay in the program; a program of static shapes shows which ones are used
    used = set(lower(named, 1, shortest_row(run)).module_kept_var_idx)
    needed = {name: x for i, (name, x) in enumerate(sorted(named.items())) if i in used}
    symbols = jax.export.symbolic_shape("B, T", constraints=constraints(run))
    return lower(needed, *symbols), {name: np.asarray(x) for name, x in needed.items()}


def batch_shape(run: Run, rows: Any, length: Any) -> tuple[Any, ...]:
    """The shape of a batch of `rows` rows of `length` elements."""
    return (rows, length, run.form.width) if run.form.width else (rows, length)


def shortest_row(run: Run) -> int:
    """The elements of a row of one frame."""
    return run.geometry[0] if run.form == WAVE else 1


def constraints(run: Run) -> list[str]:
    """The limits on B, and on T in elements: at least one frame, and at most the longest row of the model."""
    longest = [f"T <= {run.most_frames}"] if run.most_frames else []
    return ["B >= 1", f"T >= {shortest_row(run)}", *longest]


def program(run: Run, what: str, layer: Layer) -> ProgramFunction:
    """The function to export: normalises if the run does, computes the output, and counts the real frames.

    Zeros replace weights that it is not given.
    """
    compute, hop = computation(run.method.predict, (what,), layer), run.form.hop
    shapes = by_path({"params": run.params, "extra": run.extra})

    def model(weights: dict[str, Any], elements: jax.Array, num_samples: jax.Array) -> dict[str, jax.Array]:
        zeros = {name: jnp.zeros(x.shape, x.dtype) for name, x in shapes.items() if name not in weights}
        tree = {"extra": {}} | nest(zeros | weights)
        if run.form == WAVE:
            elements = clean(elements, num_samples, run.config.data.normalize)
        rows = jnp.arange(elements.shape[0], dtype=jnp.int32)
        batch = {run.form.name: elements, "num_samples": num_samples * hop, "row": rows}
        batch["weight"] = jnp.ones(elements.shape[0], jnp.float32)
        outputs = compute(tree["params"], tree["extra"], batch)
        return {name: x.swapaxes(0, 1) if x.ndim == 4 else x for name, x in outputs.items()}  # rows first: [B L F D]

    return model


def clean(wave: jax.Array, num_samples: jax.Array, normalize: bool) -> jax.Array:
    """wave [B T] with zeros after the num_samples [B] real ones, which are normalised as in training if `normalize`."""
    valid, count = valid_frames(num_samples, wave.shape[1]), jnp.maximum(num_samples, 1).astype(jnp.float32)[:, None]
    wave = jnp.where(valid, wave, 0.0)
    if not normalize:
        return wave
    wave = jnp.where(valid, wave - wave.sum(axis=1, keepdims=True) / count, 0.0)
    return wave * jax.lax.rsqrt(jnp.square(wave).sum(axis=1, keepdims=True) / count + EPSILON)


def check_program(run: Run, exported: Exported, weights: ExportedWeights, *, what: str, layer: Layer) -> dict[str, Any]:
    """Compares the program, on batches of noise of several lengths, with `predict` on each recording alone.

    Returns the largest difference, the allowed one and the platform. Raises UserError when the program differs.
    """
    worst, largest, rng, call = 0.0, 1.0, np.random.default_rng(0), jax.jit(exported.call)
    for rows, seconds in COMPARED:
        elements, counts = draw_inputs(run, rng, rows, seconds=seconds)
        outputs = jax.device_get(call(weights, elements, counts))
        for row, expected in enumerate(predicted(run, elements, counts, what=what, layer=layer)):
            frames, num_frames = expected.shape[-2], outputs["num_frames"][row]
            if num_frames != frames:
                raise UserError(f"the exported program gives {num_frames} frames, but the run gives {frames}")
            worst = max(worst, largest_difference(what, outputs[what][row][..., :frames, :], expected))
            largest = max(largest, float(np.abs(expected).max(initial=0.0)))
    allowed = CODES_TOLERANCE if what == "codes" else TOLERANCE[run.config.train.dtype] * largest
    if not worst <= allowed:
        raise UserError(
            f"the exported program differs from the run by {worst:.3g}, more than {allowed:.3g}; nothing was written. "
            "Please report this with the config of the run"
        )
    return {"difference": worst, "allowed": allowed, "platform": jax.export.default_export_platform()}


def largest_difference(what: str, output: np.ndarray, expected: np.ndarray) -> float:
    """The largest absolute difference; for codes the share of frames that differ."""
    if what == "codes":
        return float(np.any(output != expected, axis=-1).mean())
    return float(np.abs(output.astype(np.float64) - expected).max(initial=0.0))


def draw_inputs(run: Run, rng: np.random.Generator, rows: int, *, seconds: float) -> tuple[np.ndarray, np.ndarray]:
    """(a batch of noise, the number of real elements in each row). The first row is the longest."""
    longest = max(int(seconds * SAMPLE_RATE) // run.form.hop, shortest_row(run))
    longest = min(longest, run.most_frames or longest)
    counts = rng.integers(shortest_row(run), longest, rows, endpoint=True).astype(np.int32)
    counts[0] = longest
    shape = batch_shape(run, rows, longest)
    if run.form.dtype == "float32":
        return (0.1 * rng.normal(size=shape) + 0.02).astype(np.float32), counts
    return rng.integers(FIRST_CODE, run.config.data.vocab_size, shape).astype(run.form.dtype), counts


def predicted(run: Run, elements: np.ndarray, counts: np.ndarray, *, what: str, layer: Layer) -> Iterator[np.ndarray]:
    """The output of the run's own `predict` for each row without its padding: [F D], or [L F D] of all layers."""
    predict = run.predictor((what,), layer)
    rows: Any = [row[:count] for row, count in zip(elements, counts)]
    if run.form == WAVE and run.config.data.normalize:
        source = normalized(Arrays(rows, SAMPLE_RATE))
        rows = [source.read(i, 0, len(row)) for i, row in enumerate(rows)]
    for row in rows:
        outputs = predict(whole_batch(run.form.name, row[None], np.array([len(row) * run.form.hop])))
        frames, output = int(outputs["num_frames"][0]), np.asarray(outputs[what])
        yield (output[:, 0] if output.ndim == 4 else output[0])[..., :frames, :]


def metadata_of(run: Run, exported: Exported, *, what: str, layer: Layer) -> dict[str, Any]:
    """The content of metadata.json: everything that users without the run need to know."""
    frame_samples, hop = run.geometry
    hop *= acoustic_model.stride(run.config.acoustic) if what == "logits" else 1
    outputs = {}
    for name, aval in zip(sorted((what, "num_frames")), exported.out_avals):
        outputs[name] = {"shape": [str(n) for n in aval.shape], "dtype": str(aval.dtype)}
    wave, alphabet = run.form == WAVE, run.path / ALPHABET_FILE
    return {
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
        "frame": {"samples": frame_samples, "hop": hop, "rate": SAMPLE_RATE / hop},
        "alphabet": dataclasses.asdict(Alphabet.load(alphabet)) if what == "logits" else None,
        "platforms": list(exported.platforms),
        "run": {"method": run.config.method, "step": run.step, "digest": run.digest, "dtype": run.config.train.dtype},
        "versions": {"w2v_jax": __version__, "jax": jax.__version__},
    }


def write_program(
    folder: pathlib.Path, exported: Exported, weights: ExportedWeights, *, metadata: dict[str, Any]
) -> None:
    """Writes the three files. The folder appears only when it is complete. Raises UserError."""
    with whole_folder(folder, "--out") as partial:
        (partial / PROGRAM).write_bytes(exported.serialize())
        np.savez(partial / WEIGHTS, **weights)  # pyright: ignore[reportArgumentType]
        (partial / METADATA).write_text(json.dumps(metadata, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    run_command(main)
