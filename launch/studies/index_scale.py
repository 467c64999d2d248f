"""What an index of ten million recordings costs: time and memory to open it, and the time to plan any step.

    python launch/studies/index_scale.py --out runs/index

Makes an index of synthetic rows beside a manifest, as `prepare --out` keeps it (once; a few minutes), opens it in a new
process as a training does, sets rows aside for evaluation, and plans steps near and far. `--listed` is how many rows of
a manifest are read as text for comparison. Measure on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import resource
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parents[2]
LENGTHS = (4, 6, 8, 10, 12, 15)
STEPS = (0, 1, 1_000, 1_000_000, 1_000_001, 123_456_789)
RATE = 16_000


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--out", required=True, type=pathlib.Path, metavar="DIR", help="where the index is made")
    add("--rows", type=int, default=10_000_000, help="rows of the index (default 10,000,000)")
    add("--listed", type=int, default=200_000, help="rows of a manifest that is read as text (default 200,000)")
    add("--stage", choices=("open",), help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    manifest = args.out / f"{args.rows}.jsonl"
    if args.stage:
        print(json.dumps(opened(manifest)))
        return 0
    if not manifest.exists():
        args.out.mkdir(parents=True, exist_ok=True)
        made = in_process(lambda: make(manifest, args.rows))
        print(f"made the index of {args.rows:,} rows: {made['memory']:.2f} GB of memory")
    command = [sys.executable, __file__, "--out", str(args.out), "--rows", str(args.rows), "--stage", "open"]
    found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    listed = listed_seconds(args.out / "listed.jsonl", args.listed) / args.listed * args.rows
    print("\n".join(table(found, listed)))
    return 0


def rows(count: int, folder: pathlib.Path) -> Iterator[Any]:
    """Synthetic rows of 2 to 15 seconds, a thousand of each speaker."""
    from w2v_jax.data.index import Row

    for i in range(count):
        name = f"{i // 1000:05d}/{i // 1000:05d}-{i:08d}"
        frames = 2 * RATE + i * 7919 % (13 * RATE)
        yield Row(name, f"{folder}/{name}.flac", 0, frames, RATE, f"{i // 1000}", size=frames, modified=10**18)


def make(manifest: pathlib.Path, count: int) -> None:
    """Keeps the index of a manifest that is empty: nobody reads it while the index holds."""
    from w2v_jax.core.files import state_of
    from w2v_jax.data.index import make_index
    from w2v_jax.data.kept.listings import KeptListing

    manifest.touch()
    kept = KeptListing("jsonl", [manifest])
    kept.write(make_index(rows(count, manifest.parent / "audio")), {str(manifest): state_of(manifest)})
    kept.close()


def opened(manifest: pathlib.Path) -> dict[str, float]:
    """Seconds of each part of opening an index and planning steps, and GB of memory after each."""
    from w2v_jax.data import open_source
    from w2v_jax.data.batch_plan import train_plan
    from w2v_jax.data.index import split_heldout, subset
    from w2v_jax.data.kept import listings

    listings.SAMPLED = 0  # the files are not there
    found, last = {"memory of Python and NumPy": memory()}, time.perf_counter()

    def lap(name: str) -> None:
        nonlocal last
        found[name], last = time.perf_counter() - last, time.perf_counter()

    source = open_source("jsonl", manifest)
    lap("index")
    train, held_out = split_heldout(source.index, 0.01)
    train, held_out = subset(source, train), subset(source, held_out)
    lap("held-out rows")
    for part in (train, held_out):
        part.index.fingerprint()
    lap("fingerprints")
    plan = train_plan(
        train.index.num_samples, seed=0, bucket_samples=[RATE * n for n in LENGTHS], units=64, unit_seconds=87.5
    )
    lap("plan")
    found["memory opened"] = memory()
    for step in STEPS:
        plan.step(step)
        lap(f"step {step:,}")
    for step in range(2_000_000, 2_000_600):
        plan.step(step)
        lap(f"again {step}")
    again = sorted(seconds for name, seconds in found.items() if name.startswith("again"))
    found = {name: value for name, value in found.items() if not name.startswith("again")}
    return found | {"median": again[len(again) // 2], "slowest": again[-1], "memory planned": memory()}


def memory() -> float:
    """The most memory that this process has had, in GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e9 if sys.platform == "darwin" else 1e6)


def in_process(work: Any) -> dict[str, float]:
    """The memory of a piece of work, in a process of its own."""
    child = os.fork()
    if not child:
        work()
        os._exit(0)
    _, status, usage = os.wait4(child, 0)
    if status:
        sys.exit(f"error: the index could not be made (status {status})")
    return {"memory": usage.ru_maxrss / 1e6}


def listed_seconds(manifest: pathlib.Path, count: int) -> float:
    """Seconds to read a manifest of `prepare` of so many rows as text."""
    from w2v_jax.data import open_source

    with open(manifest, "w") as file:
        for row in rows(count, manifest.parent / "audio"):
            line = {"id": row.id, "audio_filepath": row.path, "duration": row.frames / RATE, "frames": row.frames}
            file.write(json.dumps(line | {"rate": RATE, "speaker": row.speaker}) + "\n")
    start = time.perf_counter()
    open_source("jsonl", manifest, kept=False)
    return time.perf_counter() - start


def table(found: dict[str, float], listed: float) -> list[str]:
    """The lines of the report; `listed`: seconds to read all rows as text."""
    parts = ("index", "held-out rows", "fingerprints", "plan")
    total = sum(found[name] for name in parts)
    lines = [f"| {name} | {found[name]:.2f} s |" for name in parts]
    lines += [f"| opened in all | {total:.2f} s, {found['memory opened']:.2f} GB |"]
    lines += [f"| the manifest as text, by {listed / total:.0f} times slower | {listed:.0f} s |"]
    lines += [f"| step {step:,} | {1000 * found[f'step {step:,}']:.1f} ms |" for step in STEPS]
    lines += [f"| 600 more: median, slowest | {1000 * found['median']:.2f}, {1000 * found['slowest']:.1f} ms |"]
    return [*lines, f"| memory at the end | {found['memory planned']:.2f} GB |"]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
