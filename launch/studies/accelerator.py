"""Measures what `docs/performance.md` asks of an accelerator: every row is a process with a time limit of its own.

    launch/studies/accelerator.sh --out runs/accelerator --minutes 8

Rows run in order of value on the first device that JAX finds: Base and Large beside transformers in one process, a
training with its share of waiting, the tests against reference outputs, the other methods, and choices of attention,
memory and layers. OUT/accelerator.json and OUT/accelerator.md are written anew after each row, so that nothing is lost
when time runs out. A row that fails is told with its last words, and the next one runs. Exit code 1 if one failed.

Needs jax for the device, flax, optax, orbax-checkpoint and the wheels of accelerator.sh; TensorFlow is not needed. Rows
beside torch run alone where torch or transformers is missing or has no such device.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import pathlib
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

ROOT = pathlib.Path(__file__).resolve().parents[2]
LEAST = 25.0
"""Seconds: a row is not started with less time left."""
TAIL = 400
"""Characters of its last words that are kept of a row that failed."""
NO_DROPOUT = "--config.encoder.attention_dropout=0.0"
NO_GRAPHS = "--xla_gpu_enable_command_buffer="
"""XLA's flag without CUDA graphs, inside which a trace does not tell one operation from another."""
GOLDEN = ("test_golden_wav2vec2", "test_golden_wav2vec", "ops/test_attention")
STEADY = 3
"""Records of a training that are left out, while programs are compiled and the data begins to flow."""

Found = dict[str, Any]


class Row(NamedTuple):
    """One measurement. words: of the command after `python -m`. read: (stdout, folder of the row) -> what was found.

    limit: seconds. ends_by_limit: the command would run on; it is asked to stop at its limit. env: more variables.
    """

    name: str
    words: tuple[str, ...]
    read: Callable[[str, pathlib.Path], Found]
    limit: float = 90.0
    ends_by_limit: bool = False
    env: tuple[tuple[str, str], ...] = ()


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--out", required=True, type=pathlib.Path, metavar="DIR", help="results: accelerator.json and accelerator.md")
    add("--minutes", type=float, default=8.0, help="no row runs longer than until then (default 8)")
    add("--only", default="", metavar="REGEX", help="only the rows whose name matches as a whole")
    add("--dry", action="store_true", help="tiny models and one timed step: whether it would run; no figure counts")
    add("--list", action="store_true", help="print the commands and stop")
    args = parser.parse_args(argv)
    rows = [row for row in all_rows(dry=args.dry) if re.fullmatch(args.only or ".*", row.name)]
    if args.list:
        print("\n".join(f"{row.name:<16} python -m {' '.join(row.words)}" for row in rows))
        return 0
    if not rows:
        sys.exit(f"error: --only={args.only}: no row has such a name; see --list")
    args.out.mkdir(parents=True, exist_ok=True)
    return measure_all(rows, args.out, end=time.monotonic() + 60 * args.minutes, dry=args.dry)


def measure_all(rows: Sequence[Row], out: pathlib.Path, *, end: float, dry: bool) -> int:
    """Runs the rows until `end`. Returns the exit code."""
    with tempfile.TemporaryDirectory(prefix="accelerator-") as scratch:
        env = environment(pathlib.Path(scratch))
        result: Found = {"dry": dry, "date": time.strftime("%Y-%m-%d"), **machine(env), "rows": []}
        # without it, tests/conftest.py takes the CPU
        env["JAX_PLATFORMS"] = "cuda,cpu" if result["platform"] == "gpu" else result["platform"]
        if not result["torch"]:
            print("no torch with transformers for this device: rows run alone", flush=True)
        plans = start_plans(rows, env)
        for number, row in enumerate(rows):
            if not result["torch"]:
                row = row._replace(words=tuple(w for w in row.words if w != "--against=torch"))
            if end - time.monotonic() < LEAST:
                result["not_started"] = [row.name for row in rows[number:]]
                break
            folder = pathlib.Path(scratch) / row.name
            folder.mkdir()
            result["rows"].append(measured(row, folder, env, limit=min(row.limit, end - time.monotonic())))
            print(row_line(result["rows"][-1]), flush=True)
            write(result, out)
        for found in result["rows"]:
            if found["name"] in plans:
                found["plan_bytes"] = planned_bytes(plans.pop(found["name"]), max(5.0, end - time.monotonic()))
        write(result, out)
        for process in plans.values():
            process.kill()
    print(f"\n{markdown(result)}\ndone: {out / 'accelerator.md'} and .json")
    return 1 if any(found["status"] != "ok" for found in result["rows"]) else 0


def environment(scratch: pathlib.Path) -> dict[str, str]:
    """This process' environment, with one folder of compiled programs for all rows and no memory taken ahead."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    programs = os.environ.get("JAX_COMPILATION_CACHE_DIR", str(scratch / "programs"))
    fixed = {"PYTHONPATH": path, "JAX_COMPILATION_CACHE_DIR": programs, "MPLBACKEND": "Agg"}
    return os.environ | fixed | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", "TF_CPP_MIN_LOG_LEVEL": "3"}


def machine(env: dict[str, str]) -> Found:
    """The device, the cores, the versions, and whether torch and transformers can stand beside it."""
    code = "import jax, json; d = jax.devices()[0]; print(json.dumps([d.platform, d.device_kind, jax.__version__]))"
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"error: JAX finds no device:\n{done.stderr[-TAIL:]}")
    platform, kind, version = json.loads(done.stdout.splitlines()[-1])
    code = "import torch, transformers; print(torch.__version__, torch.cuda.is_available())"
    torch = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True).stdout.split()
    usable = bool(torch) and (platform != "gpu" or torch[1] == "True")
    found = {"platform": platform, "device": kind, "jax": version, "cores": os.cpu_count()}
    return found | {"python": sys.version.split()[0], "torch": torch[0] if usable else None}


# The rows


def all_rows(*, dry: bool) -> list[Row]:
    """All rows, the most valuable first. dry: at tiny sizes."""

    def bench(name: str, config: str, *words: str, rows: int = 16, seconds: float = 15.6, limit: float = 90.0) -> Row:
        shape = ("--batch=2", "--seconds=2", "--runs=1") if dry else (f"--batch={rows}", f"--seconds={seconds}")
        timing = () if dry else ("--runs=15", "--warmup=3", "--dtype=bfloat16")
        path = f"--config={ROOT / 'configs' / config}{':tiny' * dry}"
        return Row(name, ("w2v_jax.bench", "--json", path, *shape, *timing, *words), read_bench, limit)

    torch, base, large = "--against=torch", "w2v2_base.py", "w2v2_large.py"
    encoder = "--config.encoder."
    return [
        bench("base", base, torch, NO_DROPOUT, limit=180),  # the first to compile tries out kernels for a minute
        bench("base-parts", base, "--stages", NO_DROPOUT)._replace(env=(("XLA_FLAGS", NO_GRAPHS),) * (not dry)),
        bench("base-published", base),
        bench("large", large, torch, NO_DROPOUT, limit=180),
        training_row(dry=dry),
        tests_row("golden", *(f"tests/{name}.py" for name in GOLDEN), dry=dry),
        bench("base-dropout-xla", base, f"{encoder}attention=xla"),
        bench("finetune", "finetune.py", torch, NO_DROPOUT),
        bench("cpc", "cpc.py", torch, rows=64, seconds=1.28),
        bench("wav2vec", "wav2vec_large.py", torch, seconds=9.4),
        bench("vq_wav2vec", "vq_wav2vec.py", torch, seconds=9.4),
        bench("bert_codes", "bert_codes_base.py", torch),
        bench("logmel", "acoustic_logmel.py"),
        bench("base-64-rows", base, NO_DROPOUT, rows=64),
        bench("base-unrolled", base, NO_DROPOUT, f"{encoder}stack=unroll"),
        bench("base-kept", base, NO_DROPOUT, f"{encoder}remat_frontend=none"),
        bench("base-all-layers", base, NO_DROPOUT, f"{encoder}layer_drop=0.0"),
        bench("base-xla", base, NO_DROPOUT, f"{encoder}attention=xla"),
        bench("base-products", base, NO_DROPOUT, f"{encoder}convolution=products"),
        bench("base-patches", base, NO_DROPOUT, f"{encoder}convolution=patches"),
        bench("base-grouped", base, NO_DROPOUT, f"{encoder}positional=grouped"),
        bench("base-split", base, NO_DROPOUT, f"{encoder}positional=split"),
        bench("base-remat", base, NO_DROPOUT, f"{encoder}remat_layers=full"),
        tests_row("parity", "tests/test_parity_transformers.py", "-m", "parity", dry=dry),
    ]


def training_row(*, dry: bool) -> Row:
    """A training of Base on half an hour of self-made FLAC files in memory, read by threads, stopped after 100 s."""
    memory = pathlib.Path("/dev/shm")
    corpus = (memory if memory.is_dir() else pathlib.Path(tempfile.gettempdir())) / f"w2v_jax-speech-{os.getuid()}"
    data = {"name": "synthetic", "root": corpus, "hours": 0.02 if dry else 0.5, "loader": "threads"}
    data |= {"bucket_seconds": "(4.0,)" if dry else "(8.0,)", "eval_share": 0.1, "eval_hours": 0.01}
    if not dry:
        data |= {"batch_hours": 256 / 3600, "unit_seconds": 64.0, "device_seconds": 256.0}
    never = 1_000_000
    train = {"steps": 8 if dry else never, "log_every": 1 if dry else 20}
    train |= {"eval_every": never, "checkpoint_every": never}
    flags = [f"--config.data.{key}={value}" for key, value in data.items()]
    flags += [f"--config.train.{key}={value}" for key, value in train.items()]
    config = f"--config={ROOT / 'configs' / 'w2v2_base.py'}{':tiny' * dry}"
    return Row("train", ("w2v_jax.train", config, "--workdir=run", *flags), read_training, 100.0, ends_by_limit=True)


def tests_row(name: str, *words: str, dry: bool) -> Row:
    """Tests on the device, in full float32."""
    found = tuple(str(ROOT / word) if word.startswith("tests/") else word for word in words)
    some = ("-k", "eval or projections") if dry else ()
    options = ("-q", "-n", "4", "-p", "no:cacheprovider", "-p", "no:benchmark", f"--rootdir={ROOT}")
    precise = (("JAX_DEFAULT_MATMUL_PRECISION", "highest"),)
    return Row(name, ("pytest", *options, *found, *some), read_tests, 120.0, env=precise)


def read_bench(stdout: str, folder: pathlib.Path) -> Found:
    return json.loads(stdout)


def read_tests(stdout: str, folder: pathlib.Path) -> Found:
    return {"tests": re.findall(r"^=* ?(\d+ passed.*?)=*$", stdout, re.MULTILINE)[-1].strip()}


def read_training(stdout: str, folder: pathlib.Path) -> Found:
    """Medians of the records after the first ones."""
    lines = (folder / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    records = [record for record in map(json.loads, lines) if record["split"] == "train"]
    steady = records[STEADY:] or records[-1:]
    names = ("step_seconds", "audio_hours_per_hour", "data_wait_share", "padding_share")
    found = {name: statistics.median(record[name] for record in steady) for name in names}
    return {"updates": records[-1]["step"], "loss": records[-1]["loss"]} | found


# Running them


def measured(row: Row, folder: pathlib.Path, env: dict[str, str], *, limit: float) -> Found:
    """What a row found, or why it found nothing. Its processes end with it."""
    start = time.monotonic()
    with open(folder / "stdout", "w+") as stdout, open(folder / "stderr", "w+") as stderr:
        command = [sys.executable, "-m", *row.words]
        given = env | dict(row.env)
        process = subprocess.Popen(command, cwd=folder, env=given, stdout=stdout, stderr=stderr, start_new_session=True)
        try:
            in_time = ended(process, limit)
        finally:
            end_group(process)
        for file in (stdout, stderr):
            file.seek(0)
        words, errors = stdout.read(), stderr.read()
    shown = " ".join(row.words).replace(f"{ROOT}/", "")
    found: Found = {"name": row.name, "command": f"python -m {shown}", "seconds": time.monotonic() - start}
    last_words = (words.strip() if row.read is read_tests else errors.strip() or words.strip())[-TAIL:]
    if process.returncode and in_time:
        return found | {"status": "failed", "error": last_words}
    try:
        return found | {"status": "ok"} | row.read(words, folder)
    except (OSError, ValueError, KeyError, IndexError) as error:
        if in_time or row.ends_by_limit:
            return found | {"status": "failed", "error": f"{error!r}; {last_words}"}
        return found | {"status": "out of time", "error": f"stopped after {limit:.0f} s; {last_words}"}


def ended(process: subprocess.Popen, seconds: float) -> bool:
    """Whether the process ends within so many seconds."""
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        return False
    return True


def end_group(process: subprocess.Popen) -> None:
    """Asks the process and its children to stop, and kills what is left of them after ten seconds at most."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    ended(process, 10.0)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def start_plans(rows: Sequence[Row], env: dict[str, str]) -> dict[str, subprocess.Popen]:
    """For some rows of bench, the process of `plan` for the same batch. It uses the CPU alone."""
    started = {}
    for row in rows:
        if row.name in ("base", "base-published", "large"):
            shape = dict(re.findall(r"--(batch|seconds)=(\S+)", " ".join(row.words)))
            seconds = float(shape["batch"]) * float(shape["seconds"])
            data: Found = {"unit_seconds": seconds, "device_seconds": seconds, "batch_hours": seconds / 3600}
            data["bucket_seconds"] = f"({shape['seconds']},)"
            words = [word for word in row.words if word.startswith("--config")]
            words += [f"--config.data.{key}={value}" for key, value in data.items()]
            command = [sys.executable, "-m", "w2v_jax.plan", "--json", "--target=h200-1", *words]
            quiet = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
            started[row.name] = subprocess.Popen(command, env=env | {"JAX_PLATFORMS": "cpu"}, **quiet)
    return started


def planned_bytes(process: subprocess.Popen, seconds: float) -> float | None:
    """The memory that a process of `plan` estimates, or None where it does not end within so many seconds."""
    try:
        return json.loads(process.communicate(timeout=seconds)[0])["memory"]
    except (subprocess.TimeoutExpired, ValueError, KeyError):
        process.kill()
        return None


# What is printed


def write(result: Found, out: pathlib.Path) -> None:
    (out / "accelerator.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    (out / "accelerator.md").write_text(markdown(result), encoding="utf-8")


def row_line(found: Found) -> str:
    """A line for the console."""
    details = found.get("error") or found.get("tests")
    if "ours_seconds" in found:
        details = f"{1e3 * found['ours_seconds']:.1f} ms per step, {found['audio_hours_per_hour']:,.0f} hours per hour"
        details += f", {found['ratio']:.2f} times as fast as torch" if "ratio" in found else ""
    elif "step_seconds" in found:
        details = f"{1e3 * found['step_seconds']:.1f} ms per step, waits {found['data_wait_share']:.1%} of the time"
    return f"{found['name']:<20} {found['status']:<12} {found['seconds']:5.0f} s  {details}"


def markdown(result: Found) -> str:
    """The page: what it was measured on, a table of steps, the parts of a step, the rest and what failed."""
    torch = f", torch {result['torch']}" if result["torch"] else ""
    lines = [
        f"{'DRY RUN, no figure counts. ' * result['dry']}{result['device']}, {result['cores']} cores, "
        f"{result['date']}; Python {result['python']}, jax {result['jax']}{torch}.",
        "",
        "| row | batch | ms per step | audio-hours per hour | of a large product | of the peak | torch / ours | "
        "device memory, plan's, GB | compilation, s |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    ok = [found for found in result["rows"] if found["status"] == "ok"]
    steps = [found for found in ok if "ours_seconds" in found]
    for f in steps:
        seconds = f["shapes"]["samples"] / 16_000
        memory = [f.get("device_peak_memory_bytes") or f.get("ours_program_bytes"), f.get("plan_bytes")]
        sizes = ", ".join(f"{size / 1e9:.1f}" for size in memory if size)
        peak = f"{f['peak_share']:.0%}" if "peak_share" in f else ""
        ratio = f"{f['ratio']:.2f}" if "ratio" in f else ""
        lines.append(
            f"| {f['name']} | {f['shapes']['batch']} x {seconds:g} s | {1e3 * f['ours_seconds']:.1f} | "
            f"{f['audio_hours_per_hour']:,.0f} | {f['product_share']:.0%} | {peak} | {ratio} | {sizes} | "
            f"{f['compile_seconds']:.0f} |"
        )
    for f in steps:
        if f["stages"]:
            lines += ["", f"Parts of a step of {f['name']}:", "", "| part | forward, ms | backward, ms | TFLOP/s |"]
            lines += ["| --- | --- | --- | --- |", *part_lines(f)]
        elif f["trace_error"]:
            lines += ["", f"{f['name']}: {f['trace_error']}"]
    lines.append("")
    for f in ok:
        if "tests" in f:
            lines.append(f"- {f['name']} on the device: {f['tests']}")
        elif "step_seconds" in f:
            lines.append(
                f"- {f['name']}: {f['updates']:,} updates of {1e3 * f['step_seconds']:.1f} ms, "
                f"{f['audio_hours_per_hour']:,.0f} hours of audio per hour, waited for data "
                f"{f['data_wait_share']:.1%} of the time"
            )
    lines += [f"- {f['name']}: {f['status']}: `{f['error']!r}`" for f in result["rows"] if f["status"] != "ok"]
    if names := result.get("not_started"):
        lines.append(f"- no time was left for {', '.join(names)}")
    return "\n".join(lines) + "\n"


def part_lines(found: Found) -> list[str]:
    lines = []
    for part, ways in found["stages"].items():
        flop, seconds = found["part_flops"].get(part, 0.0), sum(ways.values())
        rate = f"{flop / seconds / 1e12:.0f}" if flop and seconds else ""
        lines.append(f"| {part} | {1e3 * ways['forward']:.2f} | {1e3 * ways['backward']:.2f} | {rate} |")
    return lines


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
