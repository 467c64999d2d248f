"""Kills a tiny training again and again, and checks that nothing was lost: a test of this machine and its disk.

    python launch/studies/soak.py --kills 200 --out runs/soak

A training is run once to its end, untouched. Then the same training is run in rounds, in which every life is ended by
SIGTERM, SIGKILL or a full disk (a limit on the size of files) at a random moment of its start, its restoring, its
updates or its saving, and started again until the round is complete. After each life the newest whole checkpoint has
to be the one that the next life goes on from; after each round the state, every row of metrics and every recording
read have to be those of the untouched training, bit for bit. Prints a table of what was ended when; exit code 1 and
the folder of the evidence where something was lost. Give --out on the disk that a long run will use.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import random
import resource
import select
import shutil
import signal
import sys
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("MPLBACKEND", "Agg")

from w2v_jax import train  # noqa: E402
from w2v_jax.core import config as configs  # noqa: E402
from w2v_jax.core.cli import UserError, run_command  # noqa: E402
from w2v_jax.training import checkpoint  # noqa: E402
from w2v_jax.training.run_log import RunLog  # noqa: E402

PHASES = ("start", "restore", "update", "save")
KINDS = ("SIGTERM", "SIGKILL", "disk full")
CLOCK = ("step_seconds", "data_wait_share", "audio_hours_per_hour", "padding_share")
FILE_LIMIT = 32_000
"""Bytes that a file may have on the full disk: less than a checkpoint's, more than the logs'."""
PATIENCE = 600
"""Seconds without any sign of life after which a run hangs."""


class Fault(NamedTuple):
    """What ends a life: `kind`, at the `nth` beginning of `phase` (1, 2, ...) and `delay` seconds after it."""

    kind: str
    phase: str
    nth: int
    delay: float


class Life(NamedTuple):
    """How a life went: exit code (negative: the signal), the phase in which it was ended, the step it began from."""

    code: int
    phase: str
    restored: int


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python launch/studies/soak.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=pathlib.Path, required=True, help="folder for the trainings; made if missing")
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0, help="of the moments; another one ends lives at others")
    parser.add_argument("--config", default=str(ROOT / "configs" / "cpc.py:tiny"), metavar="FILE[:variant]")
    parser.add_argument("--steps", type=int, default=40, help="updates of a round (default 40)")
    parser.add_argument("--again", action="store_true", help="use the untouched training that --out holds already")
    args = parser.parse_args(argv)
    if args.kills < 1 or args.steps < 4:
        raise UserError("--kills is at least 1 and --steps at least 4")
    out = args.out.absolute()
    if out.exists() and any(out.iterdir()) and not args.again:
        raise UserError(f"--out={out} is not empty: choose another folder, or --again to use its untouched training")
    out.mkdir(parents=True, exist_ok=True)
    config, whole = tiny(args.config, out, args.steps), out / "whole"
    if not (whole / "done.json").exists() and live(config, whole, None).code != 0:
        raise UserError(f"the untouched training failed: see {whole}.log")
    return soak(config, out, args.kills, rng=random.Random(args.seed))


def tiny(spec: str, out: pathlib.Path, steps: int) -> Any:
    """The config of the trainings: few updates, a checkpoint every second one, data and programs shared."""
    shared = {
        "data.root": str(out / "corpus"),
        "data.loader": "threads",
        "train.steps": str(steps),
        "train.eval_every": str(max(4, steps // 4)),
        "train.checkpoint_every": "2",
        "train.log_rows": "true",
        "train.compile_cache": str(out / "programs"),
    }
    return configs.load(spec, list(shared.items()))


def soak(config: Any, out: pathlib.Path, kills: int, *, rng: random.Random) -> int:
    """Rounds until there were so many kills; the exit code."""
    ended: Counter[tuple[str, str]] = Counter()
    rounds, began = 0, time.time()
    while ended.total() < kills:
        rounds += 1
        path = out / f"round{rounds}"
        shutil.rmtree(path, ignore_errors=True)
        lost = one_round(config, path, kills, ended=ended, rng=rng) or compared(path, out / "whole")
        minutes = (time.time() - began) / 60
        print(
            f"round {rounds}: {ended.total()} of {kills} lives ended, {minutes:.1f} min; {lost or 'all equal'}",
            flush=True,
        )
        if lost:
            print(table(ended), f"\nLOST: {lost}. The evidence is in {path} and {path}.log", sep="\n")
            return 1
        shutil.rmtree(path)
        pathlib.Path(f"{path}.log").unlink()
    print(table(ended))
    print(f"{ended.total()} lives ended in {rounds} round(s): final states, metrics and rows equal, no checkpoint lost")
    return 0


def one_round(config: Any, path: pathlib.Path, kills: int, *, ended: Counter, rng: random.Random) -> str:
    """Lives until the training is complete; what was lost, or nothing."""
    newest = 0
    for _ in range(50 * config.train.steps):
        fault = draw(rng) if ended.total() < kills else None
        life = live(config, path, fault)
        if life.restored not in (newest, -1):
            return f"the newest checkpoint was of step {newest}, and the run went on from step {life.restored}"
        if (path / "checkpoints-corrupt").exists():
            return "a checkpoint was corrupt"
        if newest > (newest := newest_step(path)):
            return f"the newest checkpoint is of step {newest}, and there had been a newer one"
        if life.code == 0:
            return "" if (path / "done.json").exists() else "the run ended without done.json"
        expected = {"SIGTERM": (-signal.SIGTERM, train.PREEMPTED), "SIGKILL": (-signal.SIGKILL,)}
        if fault is None or life.code not in expected.get(fault.kind, (-signal.SIGKILL, 1)):
            return f"exit code {life.code} after {fault}"
        ended[fault.kind, life.phase] += 1
    return f"the run made no progress beyond step {newest}"


def draw(rng: random.Random) -> Fault:
    """A random fault. A full disk begins with a save and ends with SIGKILL, up to some updates later."""
    kind = rng.choice(("SIGTERM", "SIGKILL", "SIGKILL", "disk full"))
    phase = "save" if kind == "disk full" else rng.choice(("start", "restore", "update", "save", "save", "save"))
    delay = 4.0 if kind == "disk full" else {"start": 3.0, "restore": 0.3, "update": 0.05, "save": 0.12}[phase]
    return Fault(kind, phase, 1 if phase in ("start", "restore") else rng.randint(1, 6), rng.uniform(0.0, delay))


def live(config: Any, path: pathlib.Path, fault: Fault | None) -> Life:
    """One life of the training in a process of its own, which the fault ends; what it says goes to PATH.log."""
    (reading, writing), (saying, said) = os.pipe(), os.pipe()
    left = set(unfinished(path))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of fork and threads: JAX has not been started in this process
        child = os.fork()
    if not child:
        os.dup2(said, 1), os.dup2(said, 2)  # through the parent: a log must not be what does not fit on the full disk
        train_and_exit(config, path, fault, announce=lambda phase: os.write(writing, f"{phase}\n".encode()))
    os.close(writing), os.close(said)
    try:
        with open(f"{path}.log", "ab", buffering=0) as log:
            log.write(f"--- {fault}\n".encode())
            phase, restored = watched(child, reading, saying, log=log, fault=fault)
    except BaseException:
        os.kill(child, signal.SIGKILL)
        raise
    finally:
        os.close(reading), os.close(saying)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return Life(code, "save" if set(unfinished(path)) - left else phase, restored)


def unfinished(path: pathlib.Path) -> list[pathlib.Path]:
    """Checkpoints that were being written when a life ended."""
    return list((path / "checkpoints").glob(checkpoint.UNFINISHED))


def train_and_exit(config: Any, path: pathlib.Path, fault: Fault | None, *, announce: Callable[[str], Any]) -> None:
    """In the new process: the training, with its phases announced and a disk that fills up where the fault says so."""
    code = 70
    try:
        announce_phases(announce, fault.nth if fault and fault.kind == "disk full" else 0)
        code = train.run(config, path)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        code = 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(code)


def announce_phases(announce: Callable[[str], Any], full_at: int) -> None:
    """Puts announcements around what the loop does; from save number `full_at` on (0: never) files cannot grow."""
    restore, save, finish = checkpoint.restore_latest, checkpoint.save, RunLog.finish_pending
    saves = 0

    def restoring(manager: Any, abstract_state: Any) -> Any:
        announce("restore")
        restored = restore(manager, abstract_state)
        announce(f"restored {restored.step if restored else 0}")
        return restored

    def saving(*args: Any, **kwargs: Any) -> Any:
        nonlocal saves
        saves += 1
        if saves == full_at:
            resource.setrlimit(resource.RLIMIT_FSIZE, (FILE_LIMIT, resource.RLIM_INFINITY))
        announce("save")
        return save(*args, **kwargs)

    def updated(log: RunLog) -> None:
        finish(log)
        announce("update")

    checkpoint.restore_latest, checkpoint.save = restoring, saving
    setattr(RunLog, "finish_pending", updated)  # noqa: B010 - a type checker knows that a method is replaced


def watched(child: int, reading: int, saying: int, *, log: Any, fault: Fault | None) -> tuple[str, int]:
    """Follows a life by its announcements and ends it where the fault says so: (its last phase, the step restored)."""
    phase, restored, counts = "start", -1, Counter({"start": 1})
    due = time.time() + fault.delay if fault and fault.phase == "start" else None
    while True:
        wait = PATIENCE if due is None else max(0.0, due - time.time())
        ready, _, _ = select.select([reading, saying], [], [], wait)
        if not ready and due is None:
            raise UserError(f"the training hangs in phase {phase!r} (process {child}); see {log.name}")
        if due is not None and time.time() >= due:
            os.kill(child, signal.SIGTERM if fault and fault.kind == "SIGTERM" else signal.SIGKILL)
            due = None
        if saying in ready:
            log.write(os.read(saying, 1 << 16))
        if reading not in ready:
            continue
        said = os.read(reading, 1 << 16).decode()
        if not said:
            return phase, restored
        for line in said.splitlines():
            phase, _, number = line.partition(" ")
            if number:
                phase, restored = "update", int(number)
            counts[phase] += 1
            if fault and phase == fault.phase and counts[phase] == fault.nth:
                due = time.time() + fault.delay


def newest_step(path: pathlib.Path) -> int:
    """The newest whole checkpoint; 0 where there is none."""
    return max((int(p.name) for p in (path / "checkpoints").glob("*") if p.name.isdigit()), default=0)


def compared(path: pathlib.Path, whole: pathlib.Path) -> str:
    """What differs between two complete trainings, or nothing; in a process of its own, which may start JAX."""
    read = lambda line: {k: v for k, v in json.loads(line).items() if k not in CLOCK}
    for name in ("metrics.jsonl", "rows.jsonl"):
        ours, theirs = ([read(line) for line in (p / name).read_text().splitlines()] for p in (path, whole))
        if ours != theirs:
            first = next((b for a, b in zip(ours, theirs) if a != b), {"step": "the end"})["step"]
            return f"{name} differs from step {first} on"
    child = os.fork()
    if not child:
        code = 70
        try:
            code = int(leaves(path) != leaves(whole))
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return {0: "", 1: "the final state differs"}.get(code, "the final state cannot be read")


def leaves(path: pathlib.Path) -> dict[str, tuple[Any, bytes]]:
    """{name: (shape, bytes)} of the whole state of a run's newest checkpoint, optimizer included."""
    import jax
    import orbax.checkpoint as ocp

    step = path / "checkpoints" / str(newest_step(path)) / "state"
    with ocp.PyTreeCheckpointer() as reader, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the arrays are put where they were saved is what is wanted
        tree = reader.restore(step)
    found = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(name): (leaf.shape, bytes(leaf)) for name, leaf in found}


def table(ended: Counter[tuple[str, str]]) -> str:
    """How many lives were ended by what in which phase."""
    lines = [f"{'ended by':<12}" + "".join(f"{phase:>10}" for phase in PHASES) + f"{'in all':>10}"]
    for kind in KINDS:
        counts = [ended[kind, phase] for phase in PHASES]
        lines.append(f"{kind:<12}" + "".join(f"{count:>10}" for count in (*counts, sum(counts))))
    return "\n".join(lines)


if __name__ == "__main__":
    run_command(main)
