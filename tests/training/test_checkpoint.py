"""Checkpoints: whole or absent, the newest never lost, restorable anywhere, every failure injected once."""

import json
import logging
import os
import pathlib
import shutil
import subprocess
import sys
import textwrap
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from commands import ROOT, environment, free_port
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from w2v_jax.core.cli import UserError
from w2v_jax.core.types import State
from w2v_jax.training import checkpoint
from w2v_jax.training.checkpoint import SaveError
from w2v_jax.training.optimizer import AverageState

# A restore that fails leaves a future behind that Orbax never looks at.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


def make_state(value: float = 0.0, size: int = 64) -> State:
    weights = np.random.default_rng(int(value)).normal(size=(size, size)).astype(np.float32)
    params = {"encoder": {"kernel": jnp.asarray(weights + value), "bias": jnp.full(3, value)}}
    return State(
        step=jnp.int32(value), params=params, extra={"codes": jnp.int32([1, 2])}, opt=optax.adamw(1e-3).init(params)
    )


def abstract(state):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)


def manager_at(path, keep_latest=2, keep_best=0):
    return checkpoint.open_checkpoints(path, keep_latest=keep_latest, keep_best=keep_best)


def save_all(path, steps, **keep):
    manager = manager_at(path, **keep)
    for step in steps:
        assert checkpoint.save(manager, step, make_state(step), meta={"epoch": step / 10})
    checkpoint.close(manager)


def assert_equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def largest_file(step_dir: pathlib.Path) -> pathlib.Path:
    return max((p for p in step_dir.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


# What a save and a restore give


def test_fresh_directory_restores_nothing(tmp_path):
    assert checkpoint.restore_latest(manager_at(tmp_path / "new"), abstract(make_state())) is None


def test_restore_gives_back_every_leaf_the_step_and_the_meta(tmp_path):
    save_all(tmp_path, [10, 20])
    restored = checkpoint.restore_latest(manager_at(tmp_path), abstract(make_state()))
    assert restored.step == 20 and restored.meta == {"epoch": 2.0}
    assert isinstance(restored.state, State)
    assert_equal(restored.state, make_state(20))


def test_state_of_an_optimizer_that_clips_first_is_restored(tmp_path):
    """Clipping has an empty state, which comes before that of Adam."""
    state = make_state(3)
    state = state.replace(opt=(optax.EmptyState(), *state.opt))
    manager = manager_at(tmp_path)
    assert checkpoint.save(manager, 3, state)
    checkpoint.close(manager)
    assert_equal(checkpoint.restore_latest(manager_at(tmp_path), abstract(state)).state, state)


def test_state_may_be_donated_right_after_save(tmp_path):
    manager = manager_at(tmp_path)
    state = make_state(1, size=512)
    expected = jax.tree.map(np.array, state)
    checkpoint.save(manager, 1, state)
    jax.jit(lambda s: jax.tree.map(lambda x: x + 1, s), donate_argnums=0)(state)
    assert_equal(checkpoint.restore_latest(manager, abstract(make_state(size=512))).state, expected)


def test_saving_a_step_twice_keeps_the_first(tmp_path):
    manager = manager_at(tmp_path)
    assert checkpoint.save(manager, 5, make_state(5))
    assert not checkpoint.save(manager, 5, make_state(6), force=True)
    assert_equal(checkpoint.restore_latest(manager, abstract(make_state())).state, make_state(5))


@pytest.mark.parametrize("shape", [(1, 1), (2, 2), (1, 8)])
def test_checkpoint_of_eight_devices_restores_on_another_mesh(tmp_path, shape):
    def on_mesh(state, data, fsdp):
        devices = jax.devices()[: data * fsdp]
        mesh = jax.make_mesh((data, fsdp), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2, devices=devices)
        spec = lambda x: NamedSharding(mesh, P("fsdp") if x.ndim == 2 else P())
        return jax.tree.map(lambda x: jax.device_put(x, spec(x)), state)

    manager = manager_at(tmp_path)
    checkpoint.save(manager, 7, on_mesh(make_state(7), 4, 2))
    target = abstract(on_mesh(make_state(0), *shape))
    state = checkpoint.restore_latest(manager, target).state
    assert_equal(state, make_state(7))
    jax.tree.map(lambda x, t: pytest.fail(f"{x.sharding}") if x.sharding != t.sharding else None, state, target)


# Which checkpoints stay


def steps_kept(path, losses, **keep):
    manager = manager_at(path, **keep)
    for step, loss in losses.items():
        checkpoint.save(manager, step, make_state(step), metrics=None if loss is None else {"loss": loss})
    checkpoint.close(manager)
    return sorted(int(p.name) for p in pathlib.Path(path).iterdir() if p.name.isdigit())


def test_newest_stays_however_bad_its_loss(tmp_path):
    assert steps_kept(tmp_path, {10: 1.0, 20: 2.0, 30: 3.0, 40: 9.0}, keep_latest=1, keep_best=2) == [10, 20, 40]


def test_best_and_latest_are_counted_apart(tmp_path):
    assert steps_kept(tmp_path, {1: 5.0, 2: 1.0, 3: 4.0, 4: 3.0, 5: 6.0}, keep_latest=2, keep_best=1) == [2, 4, 5]


def test_steps_without_evaluation_never_count_as_best(tmp_path):
    assert steps_kept(tmp_path, {1: None, 2: 4.0, 3: None, 4: None, 5: None}, keep_latest=1, keep_best=2) == [2, 5]


def test_a_loss_that_is_not_a_number_never_counts_as_best(tmp_path):
    losses = {1: float("nan"), 2: 4.0, 3: float("-inf"), 4: float("nan"), 5: 5.0}
    assert steps_kept(tmp_path, losses, keep_latest=1, keep_best=1) == [2, 5]


def test_best_is_remembered_by_the_next_process(tmp_path):
    steps_kept(tmp_path, {1: 1.0, 2: 2.0}, keep_latest=1, keep_best=1)
    assert steps_kept(tmp_path, {3: 3.0, 4: 4.0}, keep_latest=1, keep_best=1) == [1, 4]
    assert checkpoint.best_step(manager_at(tmp_path, keep_best=1)) == 1


def test_no_best_step_without_evaluation(tmp_path):
    save_all(tmp_path, [1, 2])
    assert checkpoint.best_step(manager_at(tmp_path)) is None


@pytest.mark.parametrize(("latest", "best"), [(0, 1), (1, -1)])
def test_keeping_nothing_to_resume_from_is_refused(tmp_path, latest, best):
    with pytest.raises(UserError, match="at least 1 newest"):
        manager_at(tmp_path, keep_latest=latest, keep_best=best)


# Corruption


def truncate(path):
    file = largest_file(path)
    os.truncate(file, file.stat().st_size // 2)


def flip_one_byte(path):
    file = largest_file(path)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 0xFF
    file.write_bytes(content)


def empty_every_file(path):
    for file in path.rglob("*"):
        if file.is_file():
            file.write_bytes(b"")


def remove_content(path):
    shutil.rmtree(path)
    path.mkdir()


DAMAGES = {
    "a file truncated": truncate,
    "one byte changed": flip_one_byte,
    "every file empty": empty_every_file,
    "an empty directory": remove_content,
    "state missing": lambda path: shutil.rmtree(path / "state"),
    "meta missing": lambda path: shutil.rmtree(path / "meta"),
    "checksums missing and a file truncated": lambda path: ((path / "crc32.json").unlink(), truncate(path)),
    "checksums are not JSON": lambda path: (path / "crc32.json").write_text("{"),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_corrupt_newest_falls_back_to_the_previous_and_can_be_saved_again(tmp_path, capsys, damage):
    directory = tmp_path / "checkpoints"
    save_all(directory, [10, 20], keep_best=1)
    damage(directory / "20")
    manager = manager_at(directory, keep_best=1)
    restored = checkpoint.restore_latest(manager, abstract(make_state()))
    assert restored.step == 10
    assert_equal(restored.state, make_state(10))
    assert "checkpoint of step 20" in capsys.readouterr().err
    assert (tmp_path / "checkpoints-corrupt" / "20").is_dir(), "evidence is moved, not deleted"
    assert checkpoint.save(manager, 20, make_state(21))
    checkpoint.close(manager)
    assert_equal(checkpoint.restore_latest(manager_at(directory), abstract(make_state())).state, make_state(21))


def test_all_corrupt_is_an_error_that_changes_nothing(tmp_path):
    directory = tmp_path / "checkpoints"
    save_all(directory, [10, 20])
    for step in ("10", "20"):
        truncate(directory / step)
    with pytest.raises(UserError, match=r"(?s)no checkpoint.*step 20: .*step 10: .*another --workdir"):
        checkpoint.restore_latest(manager_at(directory), abstract(make_state()))
    assert sorted(p.name for p in directory.iterdir()) == ["10", "20"]


def test_half_written_directory_is_ignored_and_removed(tmp_path):
    save_all(tmp_path, [10])
    shutil.copytree(tmp_path / "10", tmp_path / "20.orbax-checkpoint-tmp")
    manager = manager_at(tmp_path)
    assert checkpoint.restore_latest(manager, abstract(make_state())).step == 10
    checkpoint.save(manager, 20, make_state(20))
    checkpoint.close(manager)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["10", "20"]


def test_checkpoint_of_another_model_is_refused_and_kept(tmp_path):
    save_all(tmp_path, [10, 20])
    with pytest.raises(UserError, match=r"(?s)belongs to another model.*kernel.*\(64, 64\).*\(32, 32\)"):
        checkpoint.restore_latest(manager_at(tmp_path), abstract(make_state(size=32)))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["10", "20"]


# A disk that fails


def test_no_room_is_told_before_anything_is_written(tmp_path, monkeypatch):
    manager = manager_at(tmp_path)
    checkpoint.save(manager, 1, make_state(1))
    checkpoint.wait(manager)
    monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(100, 90, 10))
    with pytest.raises(SaveError, match="step 2 could not be written.*No space left.*step 1 is whole.*Free some space"):
        checkpoint.save(manager, 2, make_state(2))
    assert [p.name for p in tmp_path.iterdir()] == ["1"]
    monkeypatch.undo()
    assert checkpoint.save(manager, 2, make_state(2)), "the run can go on once there is room"
    checkpoint.close(manager)


@pytest.mark.timeout(120)
def test_disk_that_refuses_the_bytes_fails_loudly_and_keeps_the_previous(tmp_path):
    """A limit on the size of files stands for a disk that fills up while Orbax writes (in a process of its own)."""
    script = textwrap.dedent("""
        import resource, sys, threading
        sys.path[:0] = ["tests", "tests/training"]
        from test_checkpoint import *
        manager = manager_at(sys.argv[1], keep_latest=1)
        checkpoint.save(manager, 1, make_state(1, 256))
        checkpoint.wait(manager)
        unlimited = resource.RLIM_INFINITY
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, unlimited))
        checkpoint.save(manager, 2, make_state(2, 256))
        try:
            checkpoint.wait(manager)
        except SaveError as error:
            print("told:", error)
        print("left:", sorted(p.name for p in pathlib.Path(sys.argv[1]).iterdir()))
        print("restored:", checkpoint.restore_latest(manager, abstract(make_state(size=256))).step)
        checkpoint.save(manager, 3, make_state(3, 256))
        while any(thread.name == "save_finalize" for thread in threading.enumerate()):
            time.sleep(0.05)
        resource.setrlimit(resource.RLIMIT_FSIZE, (unlimited, unlimited))
        try:
            checkpoint.save(manager, 4, make_state(4, 256))
        except SaveError as error:
            print("told later:", str(error)[:24])
        checkpoint.close(manager)
        print("finally:", sorted(p.name for p in pathlib.Path(sys.argv[1]).iterdir()))
    """)
    process = started(script, tmp_path / "run")
    output, errors = process.communicate(timeout=100)
    assert process.returncode == 0, errors
    assert "Traceback" not in errors, "of threads that report to an event loop which is closed"
    told = output.split("left:")[0]
    assert "checkpoint of step 2 could not be written" in told and "File too large" in told
    assert "the checkpoint of step 1 is whole" in told and "Free some space" in told
    rest = output.split("left:")[1].split("\n")
    assert rest == [" ['1']", "restored: 1", "told later: the checkpoint of step 3", "finally: ['4']", ""]


def test_other_arrays_of_a_failed_save_leave_no_trace_and_other_faults_do(tmp_path, caplog):
    manager_at(tmp_path).close()
    log = logging.getLogger("asyncio").error
    log("_GatheringFuture exception was never retrieved\nfuture: ValueError('Error writing in OCDBT database')")
    log("Task exception was never retrieved\nfuture: ValueError('of the caller')")
    assert ["of the caller" in record.getMessage() for record in caplog.records] == [True]


@pytest.mark.parametrize("tail", ["", " [os_error_code='27']"], ids=["last", "then the code"])
def test_the_disks_reason_is_told_whatever_tensorstore_appends(tmp_path, monkeypatch, tail):
    path = tmp_path / "2.orbax-checkpoint-tmp/state/ocdbt.process_0/d/" / ("0" * 32)
    spec = r"{\"context\":{},\"driver\":\"zarr\"," + r"\"path\":\"opt.0.nu/\"," * 40 + r"\"shape\":[3]}"
    text = f"Error writing opt.0.nu: Failed writing: {path}: File too large [tensorstore_spec='{spec}']{tail}"
    manager = manager_at(tmp_path)

    def failing():
        raise ValueError(text)

    monkeypatch.setattr(manager, "wait_until_finished", failing)
    with pytest.raises(SaveError, match="Error writing opt.0.nu: .*: File too large"):
        checkpoint.wait(manager)


def test_a_failed_save_is_cleaned_up_while_other_threads_still_write(tmp_path, monkeypatch):
    manager, left = manager_at(tmp_path), tmp_path / "5.orbax-checkpoint-tmp"
    left.mkdir()
    refusals = iter([OSError(39, "Directory not empty")] * 3)
    rmtree = shutil.rmtree

    def busy(path, *args, **kwargs):
        for error in refusals:
            raise error
        rmtree(path, *args, **kwargs)

    monkeypatch.setattr(shutil, "rmtree", busy)
    error = checkpoint._save_error(manager, OSError(28, "No space left on device"))
    assert "checkpoint of step 5 could not be written" in str(error)
    assert not left.exists() and next(refusals, None) is None


def test_directory_that_cannot_be_made_is_a_clear_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be kept in .*file.*another --workdir"):
        manager_at(tmp_path / "file" / "checkpoints")


SAVES_UNTIL_KILLED = """
import itertools, sys
sys.path[:0] = ["tests", "tests/training"]
from test_checkpoint import *
manager = manager_at(sys.argv[1], keep_best=1)
restored = checkpoint.restore_latest(manager, abstract(make_state(size=300)))
for step in itertools.count(restored.step + 1 if restored else 1):
    checkpoint.save(manager, step, make_state(step, 300), metrics={"loss": step % 7})
    print(step, flush=True)
"""


def started(script: str, *arguments: object, devices: int = 1) -> subprocess.Popen:
    command = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.Popen(
        command, cwd=ROOT, env=environment(devices), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.mark.timeout(180)
def test_killed_at_any_moment_leaves_a_whole_checkpoint(tmp_path):
    delays = np.random.default_rng(0).uniform(0.0, 0.2, 3)
    for delay in delays:
        process = started(SAVES_UNTIL_KILLED, tmp_path)
        assert process.stdout is not None
        seen = [int(process.stdout.readline()) for _ in range(3)]
        time.sleep(delay)
        process.kill()
        out, err = process.communicate()
        assert "Traceback" not in err
        seen += [int(line) for line in out.split()]
        restored = checkpoint.restore_latest(manager_at(tmp_path, keep_best=1), abstract(make_state(size=300)))
        assert seen[-1] - 1 <= restored.step <= seen[-1] + 1, "at most the save under way is lost"
        assert_equal(restored.state, make_state(restored.step, 300))


# Parameters alone


def test_params_and_extra_come_as_numpy_from_a_workdir_a_directory_or_a_step(tmp_path):
    steps_kept(tmp_path / "checkpoints", {1: 1.0, 2: 2.0}, keep_latest=2, keep_best=0)
    for path, step in [(tmp_path, 2), (tmp_path / "checkpoints", 2), (tmp_path / "checkpoints" / "1", 1)]:
        restored = checkpoint.restore_params(path)
        assert restored.step == step
        assert all(type(leaf) is np.ndarray for leaf in jax.tree.leaves((restored.params, restored.extra)))
        assert_equal(restored.params, make_state(step).params)
        assert_equal(restored.extra, make_state(step).extra)
    assert checkpoint.restore_params(tmp_path, step="best").step == 1
    assert checkpoint.restore_params(tmp_path, step=1).step == 1


def test_params_of_an_optimizer_that_keeps_their_mean_are_the_mean(tmp_path):
    """The mean is the last state of a chain, after some that are empty."""
    state, mean = make_state(3), make_state(4).params
    state = state.replace(opt=(optax.EmptyState(), *state.opt, AverageState(jnp.int32(1), mean)))
    manager = manager_at(tmp_path)
    checkpoint.save(manager, 3, state)
    checkpoint.close(manager)
    found = checkpoint.restore_params(tmp_path)
    assert_equal(found.params, mean)
    assert_equal(found.extra, state.extra)
    assert_equal(checkpoint.restore_latest(manager_at(tmp_path), abstract(state)).state, state)


def test_params_of_a_method_without_extra_come_with_an_empty_one(tmp_path):
    manager = manager_at(tmp_path)
    checkpoint.save(manager, 3, make_state(3).replace(extra={}))
    checkpoint.close(manager)
    assert checkpoint.restore_params(tmp_path).extra == {}


def test_params_of_a_corrupt_newest_come_from_the_previous(tmp_path, capsys):
    save_all(tmp_path, [1, 2])
    truncate(tmp_path / "2")
    assert checkpoint.restore_params(tmp_path).step == 1
    assert "step 2" in capsys.readouterr().err
    with pytest.raises(UserError, match="can be read"):
        checkpoint.restore_params(tmp_path, step=2)


def test_params_that_are_not_there_are_a_clear_error(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        checkpoint.restore_params(tmp_path / "nowhere")
    save_all(tmp_path, [1, 2])
    with pytest.raises(UserError, match=r"no checkpoint of step 9; there are: \[1, 2\]"):
        checkpoint.restore_params(tmp_path, step=9)


# Being told to stop


TWO_PROCESSES = """
import json, os, signal, sys, time
import jax, numpy as np
port, index, path, report = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
jax.distributed.initialize(f"127.0.0.1:{port}", 2, index, initialization_timeout=60)
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from w2v_jax.training import checkpoint
from w2v_jax.training.preemption import Preemption
from w2v_jax.core.types import State
mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))
rows = NamedSharding(mesh, P("data"))
make = jax.jit(lambda k: jax.numpy.arange(64.0) * k, out_shardings=rows)
manager = checkpoint.open_checkpoints(path, keep_latest=2, keep_best=0)
for step in (1, 2):
    checkpoint.save(manager, step, State(step=np.int32(step), params={"w": make(step)}, extra={}, opt=()))
checkpoint.wait(manager)
if index == 0:
    file = max((os.path.join(d, f) for d, _, fs in os.walk(f"{path}/2") for f in fs), key=os.path.getsize)
    os.truncate(file, 5)
weights = jax.ShapeDtypeStruct((64,), np.float32, sharding=rows)
target = State(step=jax.ShapeDtypeStruct((), np.int32), params={"w": weights}, extra={}, opt=())
restored = checkpoint.restore_latest(manager, target)
mine = [float(s.data[1]) for s in restored.state.params["w"].addressable_shards]
found = {"restored": restored.step, "kept": sorted(os.listdir(path)), "mine": mine}
with Preemption() as preemption:
    for step in range(3, 400):
        if index == 1 and step == 10:
            os.kill(os.getpid(), signal.SIGTERM)
        if preemption.reached(step):
            break
        time.sleep(0.02)
checkpoint.save(manager, step, restored.state, force=True)
checkpoint.close(manager)
with open(report, "w") as file:
    json.dump(found | {"preempted": step}, file)
"""
"""What a process finds goes into a file of its own: Gloo's threads write over one another on standard output."""


@pytest.mark.timeout(180)
def test_two_processes_agree_on_the_step_to_restore_and_to_stop_at(tmp_path):
    port, reports = free_port(), [tmp_path / f"found{number}.json" for number in range(2)]
    processes = [
        started(TWO_PROCESSES, port, number, tmp_path / "run", reports[number], devices=2) for number in range(2)
    ]
    try:
        outputs = [process.communicate(timeout=150) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], outputs
    found = [json.loads(report.read_text()) for report in reports]
    # Row 1 of `arange(64) * 1` on each of the four devices, two per process.
    assert [one.pop("mine") for one in found] == [[1.0, 17.0], [33.0, 49.0]]
    assert found[0] == found[1] and found[0]["restored"] == 1 and found[0]["kept"] == ["1"], found
    assert 10 <= found[0]["preempted"] < 399, found
    kept = json.loads((tmp_path / "run" / str(found[0]["preempted"]) / "crc32.json").read_text())
    assert any("ocdbt.process_1" in name for name in kept)
