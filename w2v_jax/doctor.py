"""`python -m w2v_jax.doctor`: shows what this machine has, trains for some seconds, and says what to mend.

    python -m w2v_jax.doctor
    python -m w2v_jax.doctor --folder=/data/runs       # the disk that runs and corpora will use

Each line begins with `ok`, with `note` where something is missing that only some need, or with `fail` where training
would not work. The training is that of `w2v2_base.py:tiny`, in a process and a folder of its own.
"""

from __future__ import annotations

import importlib.util
import os
import pathlib
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax

from w2v_jax import __version__
from w2v_jax.core import environment
from w2v_jax.core.cli import command_parser, path_argument, run_command
from w2v_jax.training.throughput import dtype_advice, page_advice

EXTRAS = {
    "beam": (("apache_beam",), "shards by Dataflow, Flink or Spark"),
    "convert": (("safetensors",), "checkpoints of transformers and fairseq"),
    "decode": (("flashlight.lib.text",), "beam search with a lexicon"),
    "demo": (("espeakng_loader",), "corpora spoken by eSpeak NG"),
    "features": (("pyarrow", "h5py"), "recordings in Parquet; features in Parquet and HDF5"),
    "gcs": (("gcsfs",), "runs and recordings in gs://"),
    "hub": (("huggingface_hub",), "models to the Hub of Hugging Face"),
    "s3": (("s3fs",), "runs and recordings in s3://"),
    "wandb": (("wandb",), "metrics to Weights & Biases"),
    "parity": (("torch", "transformers"), "comparisons with PyTorch"),
}
"""The optional parts of the package: the modules that each needs, and what it is for."""
LEAST_DISK, LEAST_MEMORY = 10e9, 4e9
MEMINFO = pathlib.Path("/proc/meminfo")
NVIDIA_DRIVER = pathlib.Path("/proc/driver/nvidia/version")
CUDA_13 = 580
"""The oldest NVIDIA driver that runs CUDA 13, with which the extra `gpu` comes; `gpu12` has CUDA 12."""
STEPS = 10


class Check(NamedTuple):
    """One line of the report. advice: what to do; "" where nothing is wrong. fails: training would not work."""

    name: str
    value: str
    advice: str = ""
    fails: bool = False


def main(argv: Sequence[str]) -> int:
    parser = command_parser("doctor", __doc__)
    folder = "where runs will lie (default: this folder)"
    parser.add_argument("--folder", type=path_argument, default=".", metavar="DIR", help=folder)
    parser.add_argument("--no-training", action="store_true", help="leave out the training")
    args = parser.parse_args(argv)
    found = []
    for check in checks(str(args.folder)):
        found.append(check)
        print(line(check), flush=True)
    if not args.no_training:
        print("...   training    ten seconds or so where nothing else computes", flush=True)
        found.append(trained())
        print(line(found[-1]), flush=True)
    failed, noted = sum(check.fails for check in found), sum(bool(check.advice) for check in found)
    print(f"{failed} of {len(found)} checks failed" if failed else f"ready to train; {noted} notes")
    return 1 if failed else 0


def line(check: Check) -> str:
    word = "fail" if check.fails else "note" if check.advice else "ok"
    return f"{word:4}  {check.name:10}  {check.value}" + (f"\n{'':18}{check.advice}" if check.advice else "")


def checks(folder: str) -> Iterator[Check]:
    """The checks that take no time, each as soon as it is made."""
    yield versions()
    yield tensorflow()
    yield devices()
    yield cores()
    yield memory()
    yield disk(folder)
    for extra, (modules, purpose) in EXTRAS.items():
        yield optional(extra, modules, purpose)


def versions() -> Check:
    known = ", ".join(f"{name} {version}" for name, version in environment.installed_versions().items())
    return Check("versions", f"w2v_jax {__version__}, {known}")


def tensorflow() -> Check:
    """TensorFlow reads and decodes; it never computes."""
    if installed("tensorflow"):
        found = environment.installed_versions(environment.TENSORFLOW)
        versions = {name: found[name] for name in environment.TENSORFLOW if name in found}
        mixed = " and ".join(f"{name} {version}" for name, version in versions.items()) + " lie in the same folder: "
        mixed += f"pip uninstall --yes {' '.join(versions)}, then pip install tensorflow-cpu"
        return Check("data", "tf.data", mixed if len(set(versions.values())) > 1 else "")
    return Check("data", "threads", "TensorFlow is not installed: give --config.data.loader=threads to every training")


def devices() -> Check:
    try:
        found = jax.devices()
    except RuntimeError as error:
        return Check("devices", "none", f"JAX finds no device: {str(error).splitlines()[0]}", fails=True)
    kinds = {device.device_kind for device in found}
    value = f"{len(found)} x {', '.join(sorted(kinds))} ({jax.default_backend()})"
    return Check("devices", value, unused_accelerator() if jax.default_backend() == "cpu" else "")


def unused_accelerator() -> str:
    """What to install where the machine has an accelerator that JAX does not see; "" elsewhere."""
    if NVIDIA_DRIVER.exists() or shutil.which("nvidia-smi"):
        extra = "gpu12" if 0 < driver_version() < CUDA_13 else "gpu"
        return f"there is an NVIDIA driver, and JAX does not use it: pip install -U 'w2v-jax[{extra}]'"
    if any(pathlib.Path("/dev").glob("accel[0-9]*")):
        return "this seems to be a TPU host, and JAX does not use it: pip install -U 'w2v-jax[tpu]'"
    return ""


def driver_version() -> int:
    """The first number of the version of the NVIDIA driver; 0 where it is not told."""
    try:
        found = re.search(r"Module.*? (\d+)\.\d", NVIDIA_DRIVER.read_text())
    except OSError:
        return 0
    return int(found[1]) if found else 0


def cores() -> Check:
    pages = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 0
    value = f"{os.cpu_count()} cores, {platform.machine()}" + (f", pages of {pages} bytes" if pages else "")
    advice = [dtype_advice("bfloat16"), f"pages of memory are {page_advice()}" if page_advice() else ""]
    return Check("processor", value, f"\n{'':18}".join(filter(None, advice)))


def memory() -> Check:
    try:
        kilobytes = dict(line.split()[:2] for line in MEMINFO.read_text().splitlines())
        total, free = (int(kilobytes[name]) * 1024 for name in ("MemTotal:", "MemAvailable:"))
    except (OSError, KeyError, ValueError):
        return Check("memory", "not known on this system")
    advice = f"below {LEAST_MEMORY / 1e9:g} GB, the smallest real configs do not fit" if total < LEAST_MEMORY else ""
    return Check("memory", f"{total / 1e9:.0f} GB, {free / 1e9:.0f} GB of it free", advice)


def disk(folder: str) -> Check:
    path = pathlib.Path(folder)
    there = next(parent for parent in (path.absolute(), *path.absolute().parents) if parent.exists())
    if not os.access(there, os.W_OK):
        return Check("disk", folder, f"{there} cannot be written to: give the runs another folder", fails=True)
    free = shutil.disk_usage(there).free
    advice = f"checkpoints of Base take 1.1 GB each, and {free / 1e9:.1f} GB are free" if free < LEAST_DISK else ""
    return Check("disk", f"{free / 1e9:.0f} GB free in {folder}", advice)


def optional(extra: str, modules: Sequence[str], purpose: str) -> Check:
    lacking = [name for name in modules if not installed(name)]
    advice = f"without {', '.join(lacking)}: pip install 'w2v-jax[{extra}]'" if lacking else ""
    return Check(extra, purpose, advice)


def installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # of the package that holds it
        return False


def trained() -> Check:
    """A few updates with the command that users give: data, compilation, updates, evaluation, checkpoint."""
    start = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="w2v-jax-doctor-") as scratch:
        changes = {"data.root": f"{scratch}/corpus", "train.steps": STEPS, "train.checkpoint_every": STEPS}
        changes |= {} if installed("tensorflow") else {"data.loader": "threads"}
        flags = [f"--config.{key}={value}" for key, value in changes.items()]
        command = [sys.executable, "-m", "w2v_jax.train", "--config=w2v2_base.py:tiny", f"--workdir={scratch}/run"]
        done = subprocess.run([*command, *flags], capture_output=True, text=True)
    seconds = time.perf_counter() - start
    if done.returncode == 0:
        return Check("training", f"{STEPS} updates, an evaluation and a checkpoint in {seconds:.0f} s with start-up")
    last = "\n".join((done.stderr.strip() or done.stdout.strip()).splitlines()[-5:]).replace("\n", f"\n{'':18}")
    return Check("training", f"exit code {done.returncode} after {seconds:.0f} s", last, fails=True)


if __name__ == "__main__":
    run_command(main)
