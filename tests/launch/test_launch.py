"""`launch/*.sh` and `launch/sky.yaml` with stand-ins of gcloud, kubectl, SLURM and python that note their calls."""

from __future__ import annotations

import json
import os
import pathlib
import pty
import shlex
import shutil
import signal
import subprocess
import sys
import time

import pytest
import yaml

ROOT = pathlib.Path(__file__).parents[2]
LAUNCH = ROOT / "launch"
SCRIPTS = ("tpu.sh", "gke.sh", "slurm.sh", "local.sh")
NASTY = ["--config.data.root=a b/'c'", 'say "$HOME" `id` $(id) \\ & ; | *', "", "two\nlines\tand\ttabs", "~/ü"]

STAND_IN = """#!{python} -SE
import json, os, pathlib, signal, sys, time
tool, argv, folder = os.path.basename(sys.argv[0]), sys.argv[1:], pathlib.Path({folder!r})
calls = [json.loads(line) for line in open(folder / "calls")] if (folder / "calls").exists() else []
call = dict(tool=tool, argv=argv)
call |= dict(cuda=os.environ.get("CUDA_VISIBLE_DEVICES"), jax=os.environ.get("JAX_LOCAL_DEVICE_IDS"))
call |= dict(pid=os.getpid(), stdin="" if tool != "kubectl" else sys.stdin.read() if "apply" in argv else "")
with open(folder / "calls", "a") as file:
    file.write(json.dumps(call) + "\\n")
line = " ".join([tool, *argv])
for part, answers in json.load(open(folder / "answers.json")):
    if part in line:
        earlier = sum(part in " ".join([c["tool"], *c["argv"]]) for c in calls)
        code, text = answers[min(earlier, len(answers) - 1)]
        break
else:
    code, text = 0, ""
if text == "wait":
    signal.signal(signal.SIGTERM, lambda *_: ((folder / "signals").open("a").write("TERM\\n"), sys.exit(code)))
    (folder / f"ready-{{os.getpid()}}").touch()
    time.sleep(60)
if text == "deaf":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    (folder / f"ready-{{os.getpid()}}").touch()
    time.sleep(60)
print(text, file=sys.stderr if code else sys.stdout)
sys.exit(code)
"""


class Desk:
    """A folder with stand-ins first in PATH; `answers` are (part of the call, [(exit code, text), ...])."""

    def __init__(self, folder: pathlib.Path):
        self.folder, self.bin = folder, folder / "bin"
        self.bin.mkdir()
        self.answer()

    def tools(self, *names: str) -> Desk:
        for name in names:
            file = self.bin / name
            file.write_text(STAND_IN.format(python=sys.executable, folder=str(self.folder)))
            file.chmod(0o755)
        return self

    def answer(self, *answers: tuple[str, list[tuple[int, str]]]) -> None:
        (self.folder / "answers.json").write_text(json.dumps(answers))
        (self.folder / "calls").unlink(missing_ok=True)

    def env(self, **more: str) -> dict[str, str]:
        keep = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "CUDA", "JAX"))}
        return keep | {"PATH": f"{self.bin}:{os.environ['PATH']}", "HOME": str(self.folder)} | more

    def run(self, *command: str, **more: str) -> subprocess.CompletedProcess:
        words = [str(LAUNCH / command[0]), *command[1:]]
        options = dict(cwd=self.folder, env=self.env(**more), capture_output=True, text=True, timeout=60)
        return subprocess.run(words, stdin=subprocess.DEVNULL, **options)

    def calls(self, tool: str = "") -> list[list[str]]:
        return [[c["tool"], *c["argv"]] for c in self.full_calls() if tool in ("", c["tool"])]

    def full_calls(self) -> list[dict]:
        file = self.folder / "calls"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    def wait_for(self, pattern: str, count: int) -> None:
        for _ in range(300):
            if len(list(self.folder.glob(pattern))) >= count:
                return
            time.sleep(0.05)
        raise AssertionError(f"no {count} x {pattern} within 15 s")


@pytest.fixture
def desk(tmp_path):
    return Desk(tmp_path).tools("gcloud", "kubectl", "squeue", "sbatch", "python")


@pytest.fixture
def fast(desk):
    """The same, and no waiting between looks at the cloud."""
    (desk.bin / "sleep").write_text("#!/bin/sh\n")
    (desk.bin / "sleep").chmod(0o755)
    return desk


TRAINING = ("--", "--config=configs/w2v2_base.py")
TPU = ("--zone", "z-1", "--accelerator", "v5litepod-16", "--bucket", "gs://speech")
TPU_TRAIN = ("tpu.sh", "train", "base", *TPU, *TRAINING, "--workdir=bucket/runs/base")
GPUS = ("--image", "some/image:1", "--accelerator", "nvidia-l4", "--per-node", "8", "--nodes", "2", "--volume", "disk")
SLICE = ("--image", "i", "--accelerator", "tpu-v6e-slice", "--per-node", "4", "--topology", "4x8", "--volume", "disk")
GKE_TRAIN = ("gke.sh", "train", "base", *GPUS, *TRAINING, "--workdir=/data/runs/base")
SLURM_TRAIN = ("slurm.sh", "base", "--gpus-per-node=8", "--nodes=2", *TRAINING, "--workdir=runs/base")
LOCAL = ("local.sh", "--gpus=2", "--port=4000", *TRAINING, "--workdir=runs/base")
ALL = (TPU_TRAIN, GKE_TRAIN, SLURM_TRAIN, LOCAL)
COSTLY = (TPU_TRAIN, GKE_TRAIN, SLURM_TRAIN)


def named(command: tuple[str, ...]) -> str:
    return command[0]


def with_options(command: tuple[str, ...], *options: str) -> tuple[str, ...]:
    """Options go before the --."""
    place = command.index("--")
    return *command[:place], *options, *command[place:]


def without_option(command: tuple[str, ...], name: str) -> tuple[str, ...]:
    place = command.index(name)
    return *command[:place], *command[place + 2 :]


# What holds for all scripts


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_shows_usage_and_an_example(desk, script):
    shown = desk.run(script, "--help")
    assert shown.returncode == 0 and not shown.stderr
    assert shown.stdout.startswith(f"usage: launch/{script}") and "Example: launch/" in shown.stdout
    assert not desk.calls()


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_scripts_pass_shellcheck():
    found = subprocess.run(
        ["shellcheck", *map(str, sorted(LAUNCH.glob("*.sh")))], cwd=ROOT, capture_output=True, text=True
    )
    assert found.returncode == 0, found.stdout


@pytest.mark.parametrize("command", ALL, ids=named)
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: with_options(c, "--no-such-option"), "there is no option --no-such-option"),
        (lambda c: with_options(c, "one", "two"), "stands before --"),
        (lambda c: c[: c.index("--")], "--config and --workdir"),
        (lambda c: (*c, "--distributed"), "leave out --distributed"),
    ],
)
def test_wrong_usage_is_exit_code_2_and_calls_nothing(desk, command, change, words):
    result = desk.run(*change(command), "--yes")
    assert result.returncode == 2 and not desk.calls()
    assert words in result.stderr and f"launch/{command[0]} --help" in result.stderr


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (("tpu.sh",), "say what to do"),
        (("gke.sh", "dance", "base"), "'dance' is none of"),
        (("gke.sh", "train"), "a name is needed"),
        (("tpu.sh", "train", "Base_1", *TPU), "not possible"),
        (without_option(TPU_TRAIN, "--zone"), "--zone is needed"),
        (without_option(TPU_TRAIN, "--accelerator"), "--accelerator is needed"),
        (without_option(TPU_TRAIN, "--bucket"), "--bucket is needed"),
        ((*TPU_TRAIN[:-1], "--workdir=runs/base"), "begins with bucket/"),
        (without_option(GKE_TRAIN, "--image"), "--image is needed"),
        (without_option(GKE_TRAIN, "--volume"), "--volume is needed"),
        ((*GKE_TRAIN[:-1], "--workdir=runs/base"), "outlive a pod"),
        (with_options(GKE_TRAIN, "--topology=4x4"), "it belongs to TPUs"),
        (("gke.sh", "train", "base", *SLICE, "--nodes=2", *TRAINING, "--workdir=/data/x"), "leave out --nodes"),
        (("gke.sh", "train", "base", *SLICE, "--topology=4", *TRAINING, "--workdir=/data/x"), "looks like 4x4"),
        (("gke.sh", "train", "base", *SLICE, "--per-node=5", *TRAINING, "--workdir=/data/x"), "does not divide"),
        (with_options(SLURM_TRAIN, "--nodes=two"), "it is a number"),
        (with_options(SLURM_TRAIN, "--nodes=0"), "at least 1"),
        (with_options(LOCAL, "--gpus="), "needs a value"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_missing_or_impossible_is_named(desk, command, words):
    result = desk.run(*command)
    assert result.returncode == 2 and words in result.stderr and not desk.calls(), result.stderr


@pytest.mark.parametrize("command", COSTLY, ids=named)
def test_nothing_starts_without_a_yes(desk, command):
    result = desk.run(*command)
    assert result.returncode == 2 and "add --yes" in result.stderr and not desk.calls()


@pytest.mark.parametrize(("answer", "code"), [("n", 1), ("", 1), ("y", 0)])
def test_at_a_terminal_a_person_is_asked(desk, answer, code):
    desk.answer(("sbatch", [(0, "17")]))
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [str(LAUNCH / SLURM_TRAIN[0]), *SLURM_TRAIN[1:]],
        stdin=theirs,
        stderr=subprocess.PIPE,
        env=desk.env(),
        cwd=desk.folder,
        text=True,
    )
    os.write(ours, f"{answer}\n".encode())
    _, errors = process.communicate(timeout=30)
    os.close(ours), os.close(theirs)
    assert process.returncode == code, errors
    assert bool(desk.calls("sbatch")) == (code == 0)
    assert "Go on? [y/N]" in errors


@pytest.mark.parametrize("command", ALL, ids=named)
def test_dry_run_prints_the_commands_of_the_real_run_and_calls_nothing(fast, command):
    command = (*command, *NASTY)
    printed = fast.run(*with_options(command, "--dry-run"))
    assert printed.returncode == 0 and not fast.calls(), printed.stderr
    fast.answer(*UNDISTURBED, ("sbatch", [(0, "17")]))
    real = fast.run(*with_options(command, "--yes"))
    assert real.returncode == 0, real.stderr
    expected = [shlex.split(line) if "$'" not in line else by_bash(line) for line in printed.stdout.splitlines()]
    if command[0] == "local.sh":
        expected = sorted(words[2:] for words in expected)  # without env and its variable; they start side by side
        assert sorted(fast.calls()) == expected
    else:
        assert fast.calls() == expected


def by_bash(line: str) -> list[str]:
    """The words of a line as bash reads them."""
    out = subprocess.run(["bash", "-c", f"printf '%s\\0' {line}"], capture_output=True, text=True, check=True).stdout
    return out.split("\0")[:-1]


@pytest.mark.parametrize(
    ("command", "tool"), [(TPU_TRAIN, "gcloud"), (GKE_TRAIN, "kubectl"), (SLURM_TRAIN, "sbatch"), (LOCAL, "python")]
)
def test_a_missing_tool_is_named_with_what_to_do(tmp_path, command, tool):
    desk = Desk(tmp_path)
    for name in ("bash", "basename", "dirname", "seq", "env"):
        (desk.bin / name).symlink_to(shutil.which(name) or "")
    result = desk.run(*command if tool == "python" else with_options(command, "--yes"), PATH=str(desk.bin))
    assert result.returncode == 1 and f"{tool} is not installed. " in result.stderr, result.stderr


# Cloud TPU


def tpu(kind: str, action: str, *words: str) -> list[str]:
    return ["gcloud", "compute", "tpus", kind, action, *words]


STATE, NODE, OVER = "queued-resources describe", "tpu-vm describe", "launch/tpu_worker.sh state"
ABSENT, ACTIVE, READY = (1, "ERROR: NOT_FOUND: no such resource"), (0, "ACTIVE"), (0, "READY")
UNDISTURBED = (
    (STATE, [ABSENT, ACTIVE]),
    (NODE, [READY]),
    (OVER, [(0, "never started"), (0, "ended 0")]),
)
DESCRIBE = tpu("queued-resources", "describe", "base", "--zone=z-1", "--format=value(state.state)")
CREATE = tpu("queued-resources", "create", "base", "--zone=z-1", "--node-id=base", "--accelerator-type=v5litepod-16")
CREATE += ["--runtime-version=v2-alpha-tpuv5-lite"]
DELETE = tpu("queued-resources", "delete", "base", "--zone=z-1", "--force", "--quiet")


def over_ssh(worker: str, command: str) -> list[str]:
    return tpu("tpu-vm", "ssh", "base", "--zone=z-1", f"--worker={worker}", f"--command={command}")


START = over_ssh(
    "all", "bash w2v/code/launch/tpu_worker.sh start --config=configs/w2v2_base.py --workdir=bucket/runs/base"
)


def test_tpu_is_asked_for_set_up_trained_on_and_deleted(fast):
    fast.answer(*UNDISTURBED)
    result = fast.run(*with_options(TPU_TRAIN, "--yes", "--spot", "--project", "p"))
    assert result.returncode == 0, result.stderr
    file = "w2v/code/launch/tpu_worker.sh"
    state = over_ssh("0", f"if [ -e {file} ]; then bash {file} state; else echo never started; fi")
    parts = ("w2v_jax", "configs", "launch", "requirements", "setup.py", "pyproject.toml", "README.md")
    assert all((ROOT / part).exists() for part in parts)
    plain = [[word for word in call if word != "--project=p"] for call in fast.calls()]
    assert plain == [
        DESCRIBE,
        [*CREATE, "--spot"],
        DESCRIBE,
        tpu("tpu-vm", "describe", "base", "--zone=z-1", "--format=value(state)"),
        state,
        over_ssh("all", "mkdir -p w2v/code"),
        tpu("tpu-vm", "scp", "--recurse", *(str(ROOT / part) for part in parts), "base:w2v/code/")
        + ["--zone=z-1", "--worker=all"],
        over_ssh("all", f"bash {file} prepare speech ''"),
        START,
        over_ssh("0", f"bash {file} follow"),
        state,
        DELETE,
    ]
    assert all("--project=p" in call for call in fast.calls())
    lines = [line for line in result.stderr.splitlines() if not line.startswith("+")]
    assert lines[0].endswith("the TPU base is ABSENT") and lines[-1].endswith("deleting the TPU base")


def count(desk: Desk, call: list[str]) -> int:
    return desk.calls().count(call)


def test_a_tpu_whose_workdir_is_a_url_mounts_nothing(fast):
    fast.answer(*UNDISTURBED)
    url = "--workdir=gs://speech/runs/base"
    assert fast.run(*with_options((*without_option(TPU_TRAIN, "--bucket")[:-1], url), "--yes")).returncode == 0
    assert over_ssh("all", "bash w2v/code/launch/tpu_worker.sh prepare '' ''") in fast.calls()


@pytest.mark.parametrize("taken", [[(0, "SUSPENDED")], [(0, "SUSPENDING"), (0, "SUSPENDED")], [ACTIVE]], ids=str)
def test_after_a_preemption_the_tpu_is_created_again_and_the_same_training_goes_on(fast, taken):
    node = [READY, (0, "PREEMPTED"), READY] if taken == [ACTIVE] else [READY]
    lost = (255, "ssh: no route to host")
    fast.answer(
        (STATE, [ABSENT, ACTIVE, *taken, ABSENT, ACTIVE]),
        (NODE, node),
        (OVER, [(0, "never started"), lost, (0, "never started"), (0, "ended 0")]),
    )
    result = fast.run(*with_options(TPU_TRAIN, "--yes", "--spot"))
    assert result.returncode == 0, result.stderr
    assert count(fast, [*CREATE, "--spot"]) == 2 and count(fast, START) == 2 and count(fast, DELETE) == 2
    calls = fast.calls()
    assert calls.index(DELETE) < len(calls) - 1 - calls[::-1].index([*CREATE, "--spot"])


def test_a_training_that_runs_already_is_only_watched(fast):
    fast.answer((STATE, [ACTIVE]), (NODE, [READY]), (OVER, [(0, "running"), (0, "running"), (0, "ended 0")]))
    result = fast.run(*with_options(TPU_TRAIN, "--yes", "--keep"))
    assert result.returncode == 0, result.stderr
    assert not [call for call in fast.calls() if "create" in call or "scp" in call or "delete" in call]
    assert "costs money until: launch/tpu.sh delete base --zone=z-1" in result.stderr


@pytest.mark.parametrize(
    ("said", "starts", "code", "deleted"),
    [
        (["ended 143", "never started", "ended 0"], 2, 0, 1),
        (["ended 134", "ended 134", "ended 0"], 2, 0, 1),
        (["ended 1"] * 9, 4, 1, 1),
        (["ended 2"], 1, 1, 1),
        (["ended 3"], 1, 1, 1),
        (["ended stopped"], 1, 0, 0),
    ],
    ids=str,
)
def test_what_follows_the_end_of_a_training(fast, said, starts, code, deleted):
    answers = [(0, "never started"), *((0, text) for text in said)]
    fast.answer((STATE, [ABSENT, ACTIVE]), (NODE, [READY]), (OVER, answers))
    result = fast.run(*with_options(TPU_TRAIN, "--yes"))
    assert (result.returncode, count(fast, START), count(fast, DELETE)) == (code, starts, deleted), result.stderr
    assert count(fast, over_ssh("all", "bash w2v/code/launch/tpu_worker.sh end")) == starts - 1
    if code:
        assert over_ssh("all", "bash w2v/code/launch/tpu_worker.sh log 40") in fast.calls()


def test_a_tpu_that_somebody_deleted_is_not_asked_for_again(fast):
    fast.answer((STATE, [ACTIVE, ABSENT]), (NODE, [READY]), (OVER, [(0, "running"), (255, "no route")]))
    result = fast.run(*with_options(TPU_TRAIN, "--yes"))
    assert result.returncode == 1 and "deleted by somebody else" in result.stderr and count(fast, CREATE) == 0


@pytest.mark.parametrize(
    ("states", "words"),
    [
        ([(1, "ERROR: you are not logged in")], "is not known"),
        ([ABSENT, (0, "FAILED")], "the request failed"),
    ],
)
def test_a_request_that_cannot_work_ends_with_the_reason(fast, states, words):
    fast.answer((STATE, states))
    result = fast.run(*with_options(TPU_TRAIN, "--yes"))
    assert result.returncode == 1 and words in result.stderr and count(fast, START) == 0


def test_a_refused_creation_ends_with_the_reason(fast):
    fast.answer((STATE, [ABSENT]), ("create", [(1, "ERROR: quota exceeded")]))
    result = fast.run(*with_options(TPU_TRAIN, "--yes"))
    assert result.returncode == 1 and "quota exceeded" in result.stderr and "could not be asked for" in result.stderr


def test_a_tpu_that_cannot_be_reached_is_not_kept_for_ever(fast):
    fast.answer((STATE, [ACTIVE]), (NODE, [READY]), (OVER, [(255, "no route")]))
    result = fast.run(*with_options(TPU_TRAIN, "--yes"))
    assert result.returncode == 1 and "not been reached" in result.stderr and count(fast, DELETE) == 1


@pytest.mark.parametrize(("states", "expected"), [([ABSENT], 0), ([ACTIVE], 1), ([(0, "SUSPENDED")], 1)])
def test_deleting_saves_first_and_what_is_gone_is_no_error(fast, states, expected):
    fast.answer((STATE, states))
    result = fast.run("tpu.sh", "delete", "base", "--zone=z-1")
    assert result.returncode == 0 and count(fast, DELETE) == expected, result.stderr
    stop = over_ssh("all", "bash w2v/code/launch/tpu_worker.sh stop")
    assert count(fast, stop) == (states == [ACTIVE])


def test_deletion_that_fails_because_it_is_gone_is_no_error(fast):
    fast.answer(("delete", [(1, "NOT_FOUND")]), (STATE, [ACTIVE, ABSENT]))
    assert fast.run("tpu.sh", "delete", "base", "--zone=z-1").returncode == 0
    fast.answer(("delete", [(1, "PERMISSION_DENIED")]), (STATE, [ACTIVE]))
    result = fast.run("tpu.sh", "delete", "base", "--zone=z-1")
    assert result.returncode == 1 and "may cost money" in result.stderr


def test_status_and_logs_of_a_tpu(desk):
    assert desk.run("tpu.sh", "logs", "base", "--zone=z-1").returncode == 0
    assert desk.run("tpu.sh", "status", "base", "--zone=z-1").returncode == 0
    worker = "bash w2v/code/launch/tpu_worker.sh"
    assert desk.calls() == [
        over_ssh("all", f"{worker} log 1000"),
        tpu("queued-resources", "describe", "base", "--zone=z-1"),
        over_ssh("all", f"{worker} state"),
    ]


class Worker:
    """The home of a worker of a TPU, with tpu_worker.sh and a stand-in of python in its environment."""

    def __init__(self, desk: Desk):
        self.desk, self.code = desk, desk.folder / "w2v" / "code"
        (self.code / "launch").mkdir(parents=True)
        shutil.copy(LAUNCH / "tpu_worker.sh", self.code / "launch")
        (desk.folder / "w2v" / "venv" / "bin").mkdir(parents=True)
        (desk.folder / "w2v" / "venv" / "bin" / "python").symlink_to(desk.bin / "python")

    def __call__(self, *words: str) -> str:
        command = f"bash w2v/code/launch/tpu_worker.sh {shlex.join(words)}"
        result = subprocess.run(
            ["bash", "-c", command],
            cwd=self.desk.folder,
            env=self.desk.env(),
            capture_output=True,
            text=True,
            timeout=30,
        )
        assert result.returncode == 0, result.stderr
        return result.stdout.strip()


@pytest.fixture
def worker(desk):
    if shutil.which("flock") is None or shutil.which("setsid") is None:
        pytest.skip("flock and setsid are not installed")
    return Worker(desk)


def test_worker_starts_once_and_stops_with_a_checkpoint(worker):
    assert worker("state") == "never started"
    worker.desk.answer(("w2v_jax.train", [(143, "wait")]))
    assert worker("start", *NASTY) == "training started"
    worker.desk.wait_for("ready-*", 1)
    assert worker("state") == "running"
    assert worker("start", *NASTY) == "training runs already"
    assert worker.desk.calls("python") == [["python", "-m", "w2v_jax.train", *NASTY, "--distributed"]]
    assert worker("stop") == "training does not run"
    assert worker("state") == "ended stopped"
    assert (worker.desk.folder / "signals").read_text() == "TERM\n"
    assert worker("stop") == "training does not run"
    assert "ended with exit code 143" in worker("log", "20")


def test_worker_ends_what_waits_for_a_worker_that_died(worker):
    worker.desk.answer(("w2v_jax.train", [(0, "deaf")]))
    worker("start")
    worker.desk.wait_for("ready-*", 1)
    worker("end", "1")
    for _ in range(100):
        if worker("state") != "running":
            break
    assert worker("state") == "ended 137"
    worker("end", "1")


@pytest.mark.parametrize("code", [0, 3])
def test_worker_remembers_the_exit_code(worker, code):
    worker.desk.answer(("w2v_jax.train", [(code, "what it printed")]))
    worker("start", "--config=x")
    shown = worker("follow")
    assert "what it printed" in shown
    for _ in range(100):
        if worker("state") != "running":
            break
    assert worker("state") == f"ended {code}"
    (worker.desk.folder / "w2v" / "exit").unlink()
    assert worker("state") == "ended without a word"


def test_arguments_reach_the_training_on_the_worker_unchanged(fast):
    fast.answer(*UNDISTURBED)
    assert fast.run(*with_options(TPU_TRAIN, "--yes"), *NASTY).returncode == 0
    start = next(call[-1] for call in fast.calls() if "tpu_worker.sh start" in call[-1])
    worker = Worker(fast)
    (worker.code / "launch" / "tpu_worker.sh").write_text('printf "%s\\0" "$@" >"$HOME/received"\n')
    subprocess.run(["bash", "-c", start.removeprefix("--command=")], cwd=fast.folder, env=fast.env(), check=True)
    received = (fast.folder / "received").read_text().split("\0")[:-1]
    assert received == ["start", "--config=configs/w2v2_base.py", "--workdir=bucket/runs/base", *NASTY]


# Kubernetes


def manifest(desk: Desk, *words: str) -> dict:
    shown = desk.run("gke.sh", "manifest", "base", *words)
    assert shown.returncode == 0 and not desk.calls(), shown.stderr
    return yaml.safe_load(shown.stdout)


def pod_of(found: dict) -> dict:
    return found["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]


def kubernetes_reads(text: str) -> str:
    """$(NAME) is left as it stands for variables that are not known; $$ is $."""
    return text.replace("$$", "$")


def test_gpu_manifest_tells_each_pod_who_it_is(desk):
    found = manifest(desk, *GPUS, "--spot", *TRAINING, "--workdir=/data/runs/base", *NASTY)
    assert (found["apiVersion"], found["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    assert found["metadata"] == {"name": "base"}
    job = found["spec"]["replicatedJobs"][0]
    assert (job["name"], job["replicas"]) == ("train", 1)
    spec = job["template"]["spec"]
    assert (spec["parallelism"], spec["completions"], spec["completionMode"], spec["backoffLimit"]) == (
        2,
        2,
        "Indexed",
        0,
    )
    pod = pod_of(found)
    assert pod["restartPolicy"] == "Never"
    assert pod["nodeSelector"] == {"cloud.google.com/gke-accelerator": "nvidia-l4", "cloud.google.com/gke-spot": "true"}
    (container,) = pod["containers"]
    assert container["command"] == ["python", "-m", "w2v_jax.train"]
    *training, distributed = container["args"]
    assert [kubernetes_reads(word) for word in training] == [
        "--config=configs/w2v2_base.py",
        "--workdir=/data/runs/base",
        *NASTY,
    ]
    assert distributed == "--distributed=base-train-0-0.base:8476,2,$(JOB_COMPLETION_INDEX)"
    assert container["resources"]["limits"] == {"nvidia.com/gpu": 8}
    assert pod["volumes"][0] == {"name": "data", "persistentVolumeClaim": {"claimName": "disk"}}
    assert container["volumeMounts"][0] == {"name": "data", "mountPath": "/data"}


def test_tpu_manifest_has_one_pod_per_host_of_the_slice(desk):
    found = manifest(desk, *SLICE, *TRAINING, "--workdir=/data/runs/base")
    assert found["metadata"]["annotations"] == {
        "alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"
    }
    assert found["spec"]["replicatedJobs"][0]["template"]["spec"]["completions"] == 8
    pod = pod_of(found)
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v6e-slice",
        "cloud.google.com/gke-tpu-topology": "4x8",
    }
    assert pod["containers"][0]["args"][-1] == "--distributed"
    assert pod["containers"][0]["resources"]["limits"] == {"google.com/tpu": 4}


def test_crashes_restart_the_pods_and_a_dead_run_does_not(desk):
    found = manifest(desk, *GPUS, "--restarts=7", *TRAINING, "--workdir=/data/runs/base")
    assert found["spec"]["failurePolicy"] == {
        "maxRestarts": 7,
        "rules": [{"action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}],
    }
    (rule,) = found["spec"]["replicatedJobs"][0]["template"]["spec"]["podFailurePolicy"]["rules"]
    assert rule["action"] == "FailJob"
    assert rule["onExitCodes"] == {"containerName": "train", "operator": "In", "values": [2, 3]}


@pytest.mark.parametrize(
    ("state", "replaced"), [("", 0), ("StartupPolicyCompleted", 0), ("Failed", 1), ("Completed", 1)]
)
def test_a_jobset_is_applied_and_one_that_has_ended_is_replaced(desk, state, replaced):
    desk.answer(("get jobset", [(0, state)]))
    result = desk.run(*with_options(GKE_TRAIN, "--yes", "--namespace=speech"))
    assert result.returncode == 0, result.stderr
    get, *rest = desk.calls()
    assert get == [
        "kubectl",
        "--namespace=speech",
        "get",
        "jobset",
        "base",
        "--ignore-not-found",
        '--output=jsonpath={.status.conditions[?(@.status=="True")].type}',
    ]
    delete = ["kubectl", "--namespace=speech", "delete", "jobset", "base", "--ignore-not-found"]
    assert rest == [delete] * replaced + [["kubectl", "--namespace=speech", "apply", "--filename=-"]]
    shown = desk.run("gke.sh", "manifest", *GKE_TRAIN[2:]).stdout
    assert desk.full_calls()[-1]["stdin"] == shown


def test_failures_of_kubectl_say_what_to_do(desk):
    desk.answer(("get jobset", [(1, "no resource type jobset")]))
    result = desk.run(*with_options(GKE_TRAIN, "--yes"))
    assert result.returncode == 1 and "JobSet controller" in result.stderr
    desk.answer(("apply", [(1, "field is immutable")]))
    result = desk.run(*with_options(GKE_TRAIN, "--yes"))
    assert result.returncode == 1 and "launch/gke.sh delete base" in result.stderr


def test_status_logs_and_delete_of_a_jobset(desk):
    for action in ("status", "logs", "delete"):
        assert desk.run("gke.sh", action, "base").returncode == 0
    pods = "--selector=jobset.sigs.k8s.io/jobset-name=base"
    assert desk.calls() == [
        ["kubectl", "get", "jobset", "base", "--ignore-not-found"],
        ["kubectl", "get", "pods", pods, "--output=wide"],
        ["kubectl", "logs", f"{pods},batch.kubernetes.io/job-completion-index=0", "--tail=-1", "--follow"],
        ["kubectl", "delete", "jobset", "base", "--ignore-not-found"],
    ]


# SLURM


@pytest.mark.parametrize(("option", "tasks", "each"), [((), 1, "node"), (("--per-gpu",), 8, "gpu")])
def test_slurm_job_is_submitted_with_a_signal_before_its_end(desk, option, tasks, each):
    desk.answer(("sbatch", [(0, "17;cluster")]))
    more = ("--time=24:00:00", "--partition", "gpus", "--margin=600", "--cpus-per-task=12")
    result = desk.run(*with_options(SLURM_TRAIN, "--yes", *option, *more), *NASTY)
    assert result.returncode == 0 and "submitted job 17;" in result.stderr, result.stderr
    assert desk.calls() == [
        ["squeue", "--me", "--name=base", "--noheader", "--format=%i"],
        ["sbatch", "--parsable", "--job-name=base", "--nodes=2", f"--ntasks-per-node={tasks}", "--gpus-per-node=8"]
        + ["--cpus-per-task=12", "--signal=TERM@600", "--requeue", "--open-mode=append", "--output=base-%j.log"]
        + ["--time=24:00:00", "--partition=gpus", str(LAUNCH / "slurm_job.sh"), each, "8"]
        + ["--config=configs/w2v2_base.py", "--workdir=runs/base", *NASTY],
    ]


def test_a_job_that_is_queued_is_not_submitted_twice(desk):
    desk.answer(("squeue", [(0, "17")]))
    result = desk.run(*with_options(SLURM_TRAIN, "--yes"))
    assert result.returncode == 0 and "already, as 17" in result.stderr and not desk.calls("sbatch")


@pytest.mark.parametrize(("each", "devices"), [("node", "0,1,2,3"), ("gpu", None)])
def test_slurm_job_gives_the_processes_their_gpus(desk, each, devices):
    desk.tools("srun")
    result = desk.run("slurm_job.sh", each, "4", *NASTY, SLURM_JOB_ID="17", JAX_LOCAL_DEVICE_IDS="9")
    assert result.returncode == 0, result.stderr
    (call,) = desk.full_calls()
    assert call["argv"] == [
        "--gpu-bind=none",
        "--kill-on-bad-exit=0",
        "--wait=300",
        "python",
        "-m",
        "w2v_jax.train",
    ] + [
        *NASTY,
        "--distributed",
    ]
    assert call["jax"] == devices


@pytest.mark.parametrize(
    ("code", "state", "requeued"),
    [(143, "RUNNING", True), (143, "COMPLETING", False), (3, "RUNNING", False), (0, "RUNNING", False)],
)
def test_slurm_job_is_queued_again_when_it_has_saved(desk, code, state, requeued):
    desk.tools("srun", "scontrol").answer(("srun", [(code, "")]), ("squeue", [(0, state)]))
    result = desk.run("slurm_job.sh", "node", "1", "--config=x", SLURM_JOB_ID="17")
    assert result.returncode == code
    assert desk.calls("scontrol") == [["scontrol", "requeue", "17"]] * requeued


def test_slurm_job_outlives_the_signal_so_that_the_processes_can_save(desk):
    desk.tools("srun", "scontrol").answer(("srun", [(143, "wait")]), ("squeue", [(0, "RUNNING")]))
    process = subprocess.Popen(
        ["bash", str(LAUNCH / "slurm_job.sh"), "node", "1"], env=desk.env(SLURM_JOB_ID="17"), cwd=desk.folder
    )
    desk.wait_for("ready-*", 1)
    process.send_signal(signal.SIGTERM)
    time.sleep(0.3)
    assert process.poll() is None
    os.kill(desk.full_calls()[0]["pid"], signal.SIGTERM)
    assert process.wait(30) == 143 and desk.calls("scontrol")


# One machine


AS_IN_A_TERMINAL = """import os, signal, sys
signal.signal(signal.SIGINT, signal.SIG_DFL)
os.execv(sys.argv[1], sys.argv[1:])"""
"""A shell that runs in the background ignores Ctrl-C, and so does all that it starts; no shell can trap it then."""


def start_local(desk: Desk, *options: str, **more: str) -> subprocess.Popen:
    words = [sys.executable, "-c", AS_IN_A_TERMINAL, str(LAUNCH / "local.sh"), *options, *TRAINING]
    words += ["--workdir=runs/base", *NASTY]
    return subprocess.Popen(words, env=desk.env(**more), cwd=desk.folder, stderr=subprocess.PIPE, text=True)


def ended(process: subprocess.Popen) -> tuple[int, str]:
    _, errors = process.communicate(timeout=30)
    return process.returncode, errors


@pytest.mark.parametrize("code", [0, 1, 3])
def test_one_process_for_all_gpus_and_its_exit_code(desk, code):
    desk.answer(("python", [(code, "")]))
    found, errors = ended(start_local(desk, CUDA_VISIBLE_DEVICES="4,5"))
    assert found == code and "starting 1 process(es)" in errors.splitlines()[0]
    (call,) = desk.full_calls()
    assert call["cuda"] == "4,5"
    assert call["argv"] == ["-m", "w2v_jax.train", "--config=configs/w2v2_base.py", "--workdir=runs/base", *NASTY]


@pytest.mark.parametrize(("visible", "gpus"), [({}, "01"), ({"CUDA_VISIBLE_DEVICES": "4,6,7"}, "46")])
def test_one_process_per_gpu(desk, visible, gpus):
    found, errors = ended(start_local(desk, "--gpus=2", "--port=4000", **visible))
    assert found == 0 and errors.splitlines()[-1] == "launch/local.sh: done"
    calls = sorted(desk.full_calls(), key=lambda call: call["cuda"])
    assert [call["cuda"] for call in calls] == list(gpus)
    assert [call["argv"][-1] for call in calls] == [f"--distributed=localhost:4000,2,{n}" for n in range(2)]
    assert all(call["argv"][2:-1] == ["--config=configs/w2v2_base.py", "--workdir=runs/base", *NASTY] for call in calls)


def test_more_processes_than_visible_gpus_are_refused(desk):
    result = desk.run(*LOCAL, CUDA_VISIBLE_DEVICES="4")
    assert result.returncode == 2 and "names fewer" in result.stderr and not desk.calls()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("options", [(), ("--gpus=3",)])
def test_a_signal_reaches_every_process_once_and_all_can_save(desk, options, number):
    count = 3 if options else 1
    desk.answer(("python", [(143, "wait")]))
    process = start_local(desk, *options)
    desk.wait_for("ready-*", count)
    process.send_signal(number)
    found, errors = ended(process)
    assert found == 143 and "the same command goes on" in errors.splitlines()[-1]
    assert (desk.folder / "signals").read_text() == "TERM\n" * count


def test_when_one_dies_the_others_are_ended_and_its_exit_code_is_passed_on(desk):
    desk.answer(("4000,3,1", [(7, "")]), ("python", [(143, "wait")]))
    found, errors = ended(start_local(desk, "--gpus=3", "--port=4000"))
    assert found == 7 and "ended with exit code 7: ending the others" in errors
    gone(desk)


def test_a_process_that_does_not_end_is_killed(desk):
    desk.answer(("4000,2,1", [(7, "")]), ("python", [(0, "deaf")]))
    found, errors = ended(start_local(desk, "--gpus=2", "--port=4000", "--grace=1"))
    assert found == 7 and "killing them" in errors
    gone(desk)


def gone(desk: Desk) -> None:
    for call in desk.full_calls():
        with pytest.raises(ProcessLookupError):
            os.kill(call["pid"], 0)


# SkyPilot


def test_sky_template_starts_the_same_training_on_every_node(desk):
    task = yaml.safe_load((LAUNCH / "sky.yaml").read_text())
    assert task["resources"]["use_spot"] and task["resources"]["job_recovery"]["recover_on_exit_codes"] == [143]
    (mount,) = task["file_mounts"]
    (desk.folder / ".venv" / "bin").mkdir(parents=True)
    (desk.folder / ".venv" / "bin" / "activate").write_text("")
    nodes = {"SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2", "SKYPILOT_NUM_NODES": "2", "SKYPILOT_NODE_RANK": "1"}
    subprocess.run(["bash", "-c", task["run"]], env=desk.env(**nodes), cwd=desk.folder, check=True)
    subprocess.run(["bash", "-n", "-c", task["setup"]], check=True)
    ((*_, config, workdir, root, distributed),) = desk.calls()
    assert (ROOT / config.removeprefix("--config=")).exists()
    assert workdir.startswith(f"--workdir={mount}/") and root.startswith(f"--config.data.root={mount}/")
    assert distributed == "--distributed=10.0.0.1:8476,2,1"
