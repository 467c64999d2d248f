"""Checkpoints through Orbax: asynchronous, whole or absent, restorable on any mesh.

A checkpoint is a directory `<directory>/<step>/` with the items `state` (an `types.State`) and `meta` (JSON: what
the loop wants to remember, and the metrics if the step was evaluated), and `crc32.json`, the checksums of their
files. It does not decide when to save (the loop does) and holds no position in the data (the step gives it).

    manager = open_checkpoints(directory, keep_latest=2, keep_best=1)
    restored = restore_latest(manager, abstract_state)     # None on a fresh directory
    save(manager, step, state, metrics={"loss": 3.2})      # returns while the files are being written
    close(manager)                                         # waits; raises UserError if the last save failed

Every function here is called by all processes of a run, in the same order. Where all of them see the directory, each
writes its part of the arrays. Where each has a directory of its own, process 0 saves alone, and the arrays come to it
one by one. Each process then restores from its own copy of what process 0 has saved.
"""

from __future__ import annotations

import json
import logging
import math
import pathlib
import re
import shutil
import sys
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint import checkpoint_managers

from w2v_jax.core.cli import UserError
from w2v_jax.core.display import short_repr
from w2v_jax.core.distributed import broadcast_from_first, gather_from_all, is_first, wait_for_all
from w2v_jax.core.stores import is_remote
from w2v_jax.core.tree import differences
from w2v_jax.core.types import PyTree
from w2v_jax.training.sharding import to_first_host

SEAL = "crc32.json"
UNFINISHED = "*.orbax-checkpoint-tmp*"


class SaveError(UserError):
    """A checkpoint could not be written. Earlier checkpoints are whole, and the manager can be used again."""


class Restored(NamedTuple):
    """What `restore_latest` gives back."""

    state: PyTree
    step: int
    meta: dict[str, Any]

    __repr__ = short_repr


class Weights(NamedTuple):
    """What `restore_params` gives back: the parts of a state that a method needs to `predict`.

    params: their running mean where the run keeps one (optim.average).
    chosen: "best held-out METRIC" where this was looked for, else "".
    """

    params: PyTree
    extra: PyTree
    step: int
    meta: dict[str, Any]
    chosen: str

    __repr__ = short_repr


class Manager(ocp.CheckpointManager):
    """Orbax's manager. is_shared: all processes see its directory; otherwise each has one of its own."""

    is_shared = True


class KeepBest:
    """Preserves the `count` checkpoints with the lowest finite `metric`; those without the metric do not compete.

    The metrics are read from the checkpoints themselves. One that is still being written has none yet, and needs
    none: it is the newest.
    """

    def __init__(self, directory: epath.Path, metric: str, count: int):
        self.directory, self.metric, self.count = directory, metric, count

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> Sequence[bool]:
        steps = [info.step for info in checkpoints]
        best = _ranked(self.directory, steps, self.metric)[: self.count]
        return [step in best for step in steps]


def open_checkpoints(
    directory, *, keep_latest: int, keep_best: int, best_metric: str = "loss", is_shared: bool = True
) -> Manager:
    """The manager of a directory (local or gs://), made if missing; half-written saves are removed.

    is_shared: that of `Manager`; always true of one process. Kept are the newest `keep_latest` (at least 1) and,
    besides, the `keep_best` with the lowest `best_metric`. Two separate policies: a poor metric can never delete the
    newest checkpoint, which a run resumes from.
    """
    if keep_latest < 1 or keep_best < 0:
        raise UserError(
            f"train.keep_latest={keep_latest} and train.keep_best={keep_best}: "
            "at least 1 newest checkpoint is kept (a run resumes from it) and 0 or more best ones"
        )
    path = _absolute(directory)
    is_shared = is_shared or jax.process_count() == 1
    processes = ocp.options.MultiprocessingOptions()
    if not is_shared:
        own = jax.process_index()
        processes = ocp.options.MultiprocessingOptions(own, {own}, barrier_sync_key_prefix=f"process{own}")
    policies = [checkpoint_managers.LatestN(keep_latest), KeepBest(path, best_metric, keep_best)]
    options = ocp.CheckpointManagerOptions(
        preservation_policy=checkpoint_managers.AnyPreservationPolicy(policies),
        cleanup_tmp_directories=True,
        create=False,
        multiprocessing_options=processes,
        async_options=ocp.AsyncOptions(post_finalization_callback=lambda: _seal(path)),
    )
    _quieten_orbax()
    try:
        path.mkdir(parents=True, exist_ok=True)
        manager = Manager(path, options=options, item_handlers=_handlers(processes))
    except OSError as error:
        raise UserError(f"checkpoints cannot be kept in {path}: {error}. Choose another --workdir") from None
    manager.is_shared = is_shared
    return manager


def save(
    manager,
    step: int,
    state: PyTree,
    *,
    metrics: Mapping[str, Any] | None = None,
    meta: Mapping[str, Any] | None = None,
    force: bool = False,
) -> bool:
    """Starts to write the checkpoint of `step` and returns once `state` may be donated; False if it exists already.

    `metrics` are the evaluation's, given only at steps that were evaluated. `force` also writes a step that is
    older than the newest one. Waits for the previous save first. Raises SaveError when this one does not fit on the
    disk, and when the previous one failed: this one has then been started all the same. Where process 0 saves alone,
    it alone raises.
    """
    if not manager.is_shared:
        state = to_first_host(state)
        if not is_first():
            return True
    earlier = _failure(manager)
    if step in manager.all_steps():
        return False
    _check_space(manager, step, state)
    scores = {name: float(value) for name, value in (metrics or {}).items()}
    args = ocp.args.Composite(
        state=ocp.args.StandardSave(state),  # pyright: ignore[reportCallIssue]
        meta=ocp.args.JsonSave({"meta": dict(meta or {}), "metrics": scores}),  # pyright: ignore[reportCallIssue]
    )
    try:
        saved = manager.save(step, args=args, force=force)
    except Exception as error:
        raise _save_error(manager, error, step) from None
    if earlier is not None:
        raise earlier
    return saved


def wait(manager) -> None:
    """Returns when no save is under way. Raises SaveError if the last one failed, once."""
    failure = _failure(manager)
    if failure is not None:
        raise failure


def close(manager) -> int | None:
    """Finishes the save under way and frees the manager. Returns the newest step. Raises UserError if a save failed."""

    def finish() -> int | None:
        wait(manager)
        return manager.latest_step()

    try:
        return finish() if manager.is_shared else broadcast_from_first(finish)
    finally:
        manager.close()


def best_step(manager, metric: str = "loss") -> int | None:
    """The step with the lowest metric among those kept; None when none of them was evaluated."""
    return next(iter(_ranked(manager.directory, manager.all_steps(), metric)), None)


def restore_latest(manager, abstract_state: PyTree) -> Restored | None:
    """The newest checkpoint that can be read, laid out as `abstract_state` says; None where there is none.

    abstract_state: a pytree of `jax.ShapeDtypeStruct` whose shardings belong to the current mesh, which may
    differ from the one that saved. A corrupt checkpoint is named in a warning and, once an older one has been
    restored, moved to `<directory>-corrupt`, so that the run can save that step again.

    Raises UserError when every checkpoint is corrupt (a run never starts over silently) and when the newest
    belongs to a different model.
    """
    corrupt: dict[int, str] = {}
    for step in broadcast_from_first(lambda: sorted(manager.all_steps(), reverse=True)):
        reason = _damage(manager, step)
        if not reason:
            _check_fits(manager, step, abstract_state)
            restored, reason = _try_restore(manager, step, abstract_state)
            if restored is not None:
                _set_aside(manager, corrupt)
                return restored
        corrupt[step] = reason
        _warn(f"warning: checkpoint of step {step} in {manager.directory} is corrupt, trying the one before: {reason}")
    if not corrupt:
        return None
    reasons = "".join(f"\n  step {step}: {reason}" for step, reason in corrupt.items())
    raise UserError(
        f"no checkpoint in {manager.directory} can be read:{reasons}\nNothing was changed. Put a copy back, "
        "or start over from step 0 with another --workdir (or after moving this directory away)"
    )


def restore_params(
    path, *, step: int | str | None = None, best_metric: str = "loss", prefer_best: bool = False
) -> Weights:
    """Parameters and `extra` as NumPy arrays in nested dicts, without the optimizer and the devices that saved them.

    path: a workdir, its `checkpoints` directory, or the directory of one step. step: a number, "best" (the lowest
    `best_metric` in an evaluation), "newest", or None for the newest; with `prefer_best`, None is the best where there
    is one. Of those that cannot be read the next newest is taken, unless `step` names one. Raises UserError when there
    is none.
    """
    directory = _absolute(path)
    if (directory / "checkpoints").exists():
        directory = directory / "checkpoints"
    if (directory / "state").exists() and directory.name.isdigit():
        directory, step = directory.parent, int(directory.name)
    if not directory.exists():
        raise UserError(f"{directory} does not exist: give a workdir, its checkpoints directory or one step of it")
    _quieten_orbax()
    handlers = {**_handlers(), "state": ocp.PyTreeCheckpointHandler()}
    options = ocp.CheckpointManagerOptions(read_only=True)
    with ocp.CheckpointManager(directory, options=options, item_handlers=handlers) as manager:
        steps = sorted(manager.all_steps(), reverse=True)
        best = best_step(manager, best_metric)
        wanted = best if step == "best" else step
        candidates = steps if step in (None, "newest") else [s for s in steps if s == wanted]
        if step is None and prefer_best and best is not None:
            candidates = [best, *(s for s in steps if s != best)]
        if not candidates:
            raise UserError(
                f"{directory} has no checkpoint of step {step or 'any'}; there are: {sorted(steps) or 'none'}"
            )
        reasons = {}
        for candidate in candidates:
            reasons[candidate] = _damage(manager, candidate)
            if not reasons[candidate]:
                try:
                    is_best = candidate == best and (prefer_best or step == "best")
                    return _read_params(manager, candidate, f"best held-out {best_metric}" if is_best else "")
                except Exception as error:
                    reasons[candidate] = _one_line(error)
            _warn(f"warning: checkpoint of step {candidate} in {directory} is corrupt: {reasons[candidate]}")
    raise UserError(f"no checkpoint in {directory} can be read: {reasons}")


def _handlers(processes: ocp.options.MultiprocessingOptions | None = None) -> dict[str, Any]:
    processes = processes or ocp.options.MultiprocessingOptions()
    return {
        "state": ocp.StandardCheckpointHandler(multiprocessing_options=processes),
        "meta": ocp.JsonCheckpointHandler(multiprocessing_options=processes),
    }


def _ranked(directory: epath.Path, steps: Sequence[int], metric: str) -> list[int]:
    """The steps that have a finite value of the metric, lowest first; an older one wins a tie."""
    values = {}
    for step in steps:
        try:
            value = json.loads((directory / str(step) / "meta" / "metadata").read_text())["metrics"][metric]
        except (OSError, ValueError, KeyError, TypeError):
            continue  # not evaluated, still being written, or corrupt: restoring will say which
        if math.isfinite(value):
            values[step] = value
    return sorted(values, key=lambda step: (values[step], step))


def _absolute(path) -> epath.Path:
    return epath.Path(path) if is_remote(str(path)) else epath.Path(path).expanduser().resolve()


def _warn(text: str) -> None:
    if jax.process_index() == 0:
        print(text, file=sys.stderr, flush=True)


def _one_line(error: BaseException) -> str:
    """The error's text with its middle left out: what failed stands at the start, why (the disk's word) at the end.

    TensorStore appends the whole specification of the array, some 1,000 characters, to some of its errors: that goes.
    """
    text = " ".join(f"{type(error).__name__}: {error}".split())
    text = re.sub(r" \[tensorstore_spec='.*?'\](?= \[|$)", "", text)
    return text if len(text) <= 320 else f"{text[:160]} ... {text[-160:]}"


# Saving


def _check_space(manager, step: int, state: PyTree) -> None:
    """Raises SaveError on every process before anything is written if the local disk has no room for the state."""
    needed = sum(leaf.nbytes for leaf in jax.tree.leaves(state) if hasattr(leaf, "nbytes"))
    space = lambda: math.inf if is_remote(str(manager.directory)) else shutil.disk_usage(manager.directory).free
    if manager.is_shared:
        free = broadcast_from_first(space)
    else:  # process 0 alone writes
        free = space() if is_first() else math.inf
    if free < needed:
        detail = f"No space left: it takes {needed / 1e6:,.1f} MB and {free / 1e6:,.1f} MB are free"
        raise SaveError(_save_message(manager, step, detail))


def _failure(manager) -> Exception | None:
    """Waits for the save under way; why it failed, if it did."""
    try:
        manager.wait_until_finished()
    except Exception as error:
        return _save_error(manager, error)
    return None


def _save_error(manager, error: Exception, step: int | None = None) -> Exception:
    """Removes what the failed save left behind and says what happened and what to do; a fault of the code stays."""
    if jax.process_index() == 0:
        for unfinished in manager.directory.glob(UNFINISHED):
            step = int(unfinished.name.split(".")[0]) if unfinished.name.split(".")[0].isdigit() else step
            _remove(unfinished)
    manager.reload()
    if isinstance(error, (TypeError, AttributeError, AssertionError, NotImplementedError)):
        return error
    return SaveError(_save_message(manager, step, _one_line(error)))


def _remove(unfinished: epath.Path) -> None:
    """Removes a half-written checkpoint, into which other threads may write for a moment after the failure."""
    for _ in range(20):
        try:
            return unfinished.rmtree(missing_ok=True)
        except OSError:
            time.sleep(0.1)
    # what is left now goes when the directory is next opened


def _save_message(manager, step: int | None, detail: str) -> str:
    newest = manager.latest_step()
    left = "there is no earlier checkpoint" if newest is None else f"the checkpoint of step {newest} is whole"
    of_step = "the last checkpoint" if step is None else f"the checkpoint of step {step}"
    return (
        f"{of_step} could not be written to {manager.directory}: {detail}. Half-written files were removed; {left}. "
        "Free some space or make the directory writable (or lower train.keep_latest and train.keep_best). "
        "The next save tries again; a run that ends before that is resumed from there by the same command"
    )


def _seal(directory: epath.Path) -> None:
    """Adds the checksums to a checkpoint that is written but not yet committed (renamed), so it never lacks them."""
    if is_remote(str(directory)) or jax.process_index() != 0:
        return  # object stores keep checksums of their own
    for path in directory.glob(UNFINISHED):
        (path / SEAL).write_text(json.dumps(_checksums(pathlib.Path(path))))


def _checksums(path: pathlib.Path) -> dict[str, int]:
    """{relative file name: crc32} of the items of a checkpoint; Orbax's own marks beside them are left out."""
    sums = {}
    for name in sorted(path.glob("*/**/*")):
        if name.is_file():
            value = 0
            with name.open("rb") as file:
                while block := file.read(1 << 22):
                    value = zlib.crc32(block, value)
            sums[name.relative_to(path).as_posix()] = value
    return sums


def _quieten_orbax() -> None:
    """Keeps Orbax's own log of a failure (a stack trace) off the console: the same failure is raised here."""
    logger = logging.getLogger("absl")
    if not any(getattr(f, "__name__", "") == "_not_from_orbax" for f in logger.filters):
        logger.addFilter(_not_from_orbax)
        logging.getLogger("asyncio").addFilter(_not_of_a_failed_save)
    if not hasattr(sys.unraisablehook, "former"):
        sys.unraisablehook = _without_late_callbacks(sys.unraisablehook)


def _without_late_callbacks(former: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """The hook that prints what nobody can catch, but not what TensorStore's threads meet after a save that failed.

    They tell the event loop of each array that ends, and Orbax has closed the loop at the first that failed: a stack
    trace for each.
    """

    def hook(unraisable: Any) -> None:
        if not (unraisable.exc_type is RuntimeError and str(unraisable.exc_value) == "Event loop is closed"):
            former(unraisable)

    hook.former = former  # pyright: ignore[reportFunctionMemberAccess]
    return hook


def _not_from_orbax(record: logging.LogRecord) -> bool:
    return "orbax" not in record.pathname or record.levelno >= logging.CRITICAL


def _not_of_a_failed_save(record: logging.LogRecord) -> bool:
    """False for what the event loop says, at last, of the other arrays of a save whose first failure was raised."""
    text = record.getMessage()
    return not ("exception was never retrieved" in text and "OCDBT" in text)


# Restoring


def _damage(manager, step: int) -> str:
    """Why the files of a checkpoint cannot be trusted, on every process; empty if they can (or have no seal).

    Raises UserError where another process has a copy of its own that is not as whole as that of process 0.
    """
    path = manager.directory / str(step)
    reason = _broken_seal(path) if is_first() or not manager.is_shared else ""
    if not is_first() and not manager.is_shared and not path.exists():
        reason = "it is missing"
    (first, _), *others = gather_from_all([reason, str(path)])
    for number, (own, where) in enumerate(others, start=1):
        if own and not first:
            raise UserError(
                f"process {number}: its copy of the checkpoint of step {step}, {where}, is damaged ({own}): remove it "
                "there, and give the same command again"
            )
    return first


def _broken_seal(path: epath.Path) -> str:
    try:
        if not (path / SEAL).exists():
            return ""
        sealed, present = json.loads((path / SEAL).read_text()), _checksums(pathlib.Path(path))
    except (OSError, ValueError) as error:
        return _one_line(error)
    wrong = sorted(name for name, value in sealed.items() if present.get(name) != value)
    return f"{len(wrong)} of {len(sealed)} files are missing or changed, the first is {wrong[0]}" if wrong else ""


def _try_restore(manager, step: int, abstract_state: PyTree) -> tuple[Restored | None, str]:
    """(the checkpoint, "") or (None, why not); every process takes the same way."""
    restored, reason = None, ""
    args = ocp.args.Composite(
        state=ocp.args.StandardRestore(abstract_state),  # pyright: ignore[reportCallIssue]
        meta=ocp.args.JsonRestore(),
    )
    try:
        items = manager.restore(step, args=args)
        restored = Restored(items["state"], step, items["meta"]["meta"])
    except Exception as error:
        if "RESOURCE_EXHAUSTED" in str(error) or isinstance(error, (MemoryError, PermissionError)):
            raise  # the machine's fault, not the checkpoint's
        reason = _one_line(error)
    if not all(gather_from_all(restored is not None)):
        return None, reason or "another process could not read it"
    return restored, reason


def _check_fits(manager, step: int, abstract_state: PyTree) -> None:
    """Raises UserError when the checkpoint's arrays are not those of the state; silent if it cannot tell."""
    try:
        saved = _shapes(manager.item_metadata(step)["state"].tree)
    except Exception:
        return  # unreadable: the restore that follows gives the reason
    wanted = _shapes(ocp.tree.serialize_tree(abstract_state, keep_empty_nodes=True))  # clipping has an empty state
    if lines := differences(saved, wanted, "{name}: checkpoint {first}, config {second}"):
        raise UserError(
            f"the checkpoint of step {step} in {manager.directory} belongs to another model or optimizer:{lines}\n"
            "Use the config that made it, or another --workdir"
        )


def _shapes(tree: PyTree) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): tuple(leaf.shape) for path, leaf in leaves if hasattr(leaf, "shape")}


def _set_aside(manager, corrupt: Mapping[int, str]) -> None:
    """Moves corrupt checkpoints out of the way of the run's next saves; nothing is deleted."""
    if not corrupt:
        return
    aside = manager.directory.parent / f"{manager.directory.name}-corrupt"
    if jax.process_index() == 0:
        aside.mkdir(parents=True, exist_ok=True)
        for step in corrupt:
            copies = sum(1 for p in aside.iterdir() if p.name.split(".")[0] == str(step))
            (manager.directory / str(step)).rename(aside / (f"{step}.{copies}" if copies else str(step)))
    wait_for_all()  # until process 0 has moved them
    manager.reload()
    _warn(f"warning: moved the corrupt checkpoints of steps {sorted(corrupt)} to {aside}")


def _read_params(manager, step: int, chosen: str) -> Weights:
    tree = manager.item_metadata(step)["state"].tree
    wanted = {name: tree[name] for name in ("params", "extra") if tree.get(name)}  # an empty extra is not stored
    *others, last = tree.get("opt") or [None]
    mean = (last or {}).get("mean")  # of `optimizer.average`
    if mean:
        del wanted["params"]
        wanted["opt"] = [*(None for _ in others), {"mean": mean}]
    restore_args = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), wanted)
    state = ocp.args.PyTreeRestore(item=wanted, restore_args=restore_args, partial_restore=True)  # pyright: ignore[reportCallIssue]
    items = manager.restore(step, args=ocp.args.Composite(state=state, meta=ocp.args.JsonRestore()))
    params = items["state"]["opt"][-1]["mean"] if mean else items["state"]["params"]
    return Weights(params, items["state"].get("extra", {}), step=step, meta=items["meta"]["meta"], chosen=chosen)
