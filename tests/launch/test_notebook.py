"""The notebook runs from top to bottom, as a person would run it on a CPU, and hears a person in Colab."""

from __future__ import annotations

import base64
import io
import json
import pathlib
import re
import subprocess
import sys
import types

import av
import numpy as np
import pytest
from commands import ROOT, environment

from w2v_jax.data.io.audio import probe

NOTEBOOK = ROOT / "launch" / "colab.ipynb"

RUNNER = """
import subprocess, sys, types


def shell(command):
    subprocess.run(command.replace("python ", f"{sys.executable} ", 1), shell=True, check=True)


shown = []
display = types.SimpleNamespace(
    HTML=lambda text: ("page", text),
    Audio=lambda sound: ("sound", sound),
    Image=lambda path: ("picture", open(path, "rb").read(8)),
    display=shown.append,
)
sys.modules["IPython"], sys.modules["IPython.display"] = types.ModuleType("IPython"), display
"""

ENDING = r"""
assert [kind for kind, _ in shown] == ["picture", "picture", "sound", "sound", "page"]
assert shown[0][1] == shown[1][1] == b"\x89PNG\r\n\x1a\n"
assert shown[2][1] == shown[3][1] == heard["audio_filepath"]
frame = shown[4][1]
assert html.unescape(frame.split('"')[1]) == open("report.html", encoding="utf-8").read()
"""


def cells() -> list[str]:
    found = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in found if cell["cell_type"] == "code"]


def plain(cell: str) -> str:
    """A cell without IPython: "!command {variable}" is a call with a formatted string."""
    cell = re.sub(r"\\\n *", "", cell)
    return re.sub(r"^(\s*)!(.*)$", lambda line: f"{line[1]}shell(f{line[2]!r})", cell, flags=re.MULTILINE)


@pytest.mark.slow
@pytest.mark.timeout(900)  # nine commands, a minute or two of two free cores
def test_the_notebook_runs_from_top_to_bottom(tmp_path):
    script = tmp_path / "notebook.py"
    script.write_text(RUNNER + "\n\n".join(map(plain, cells())) + ENDING)
    env = environment(W2V_VARIANT="tiny", JAX_PLATFORMS="cpu")
    result = subprocess.run(
        [sys.executable, str(script)], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=890
    )
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    assert "training on: cpu" in result.stdout and "skipped: choose a GPU" in result.stdout
    assert re.search(r"s, features \([0-9]+, 32\)$", result.stdout, flags=re.MULTILINE)
    assert re.search(r"^corpus/dev/.*\.flac\t", result.stdout, flags=re.MULTILINE), "the transcription"


def recorded() -> bytes:
    """Half a second as a browser's MediaRecorder writes it: Opus in WebM, whose header has no length."""
    memory = io.BytesIO()
    with av.open(memory, "w", format="webm", container_options={"live": "1"}) as file:
        stream = file.add_stream("libopus", rate=48_000, layout="mono")
        wave = (3000 * np.random.default_rng(0).standard_normal((1, 24_000))).astype(np.int16)
        frame = av.AudioFrame.from_ndarray(wave, layout="mono")
        frame.sample_rate = 48_000
        file.mux([*stream.encode(frame), *stream.encode(None)])
    return memory.getvalue()


@pytest.mark.parametrize("answer", ["speaks", "refuses", "uploads", "uploads nothing"])
def test_in_colab_a_person_is_heard(answer, tmp_path, monkeypatch):
    spoken = recorded() if answer == "speaks" else b""
    output = types.SimpleNamespace(eval_js=lambda script: base64.b64encode(spoken).decode())
    files = types.SimpleNamespace(upload=lambda: {"mine.mp3": b""} if answer == "uploads" else {})
    display = types.SimpleNamespace(Audio=lambda sound: sound, display=lambda shown: None)
    monkeypatch.setitem(sys.modules, "google.colab", types.SimpleNamespace(files=files, output=output))
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    monkeypatch.chdir(tmp_path)
    commands: list[str] = []
    known = {"sys": sys, "heard": {"audio_filepath": "dev.flac"}, "shell": commands.append, **vars(display)}
    cell = next(cell for cell in cells() if "RECORD" in cell)
    if "upload" in answer:
        cell = cell.replace('VOICE = "microphone"', 'VOICE = "upload"')
    exec(plain(cell), known)
    name = {"speaks": "voice.webm", "uploads": "mine.mp3"}.get(answer, "dev.flac")
    assert [command.split()[-1] for command in commands] == [f'"{name}"']
    assert pathlib.Path("voice.webm").exists() == bool(spoken)
    if spoken:
        header = probe("voice.webm")
        assert header.rate == 48_000 and abs(header.frames - 24_000) < 1000


def test_the_notebook_keeps_no_output():
    found = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    assert found["nbformat"] == 4
    for cell in found["cells"]:
        assert not cell.get("outputs") and cell.get("execution_count") is None


def test_without_the_package_the_notebook_asks_for_the_repository(tmp_path):
    script = tmp_path / "notebook.py"
    script.write_text("import importlib.util\nimportlib.util.find_spec = lambda name: None\n" + plain(cells()[0]))
    result = subprocess.run([sys.executable, str(script)], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert result.returncode == 1 and "Set REPOSITORY" in result.stderr


@pytest.mark.parametrize(("plugin", "extra"), [("jax_cuda13_plugin", "[gpu]"), ("", "[gpu12]"), (None, "")])
def test_the_notebook_installs_the_cuda_of_the_jax_that_is_there(plugin, extra, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name if name == plugin else None)
    monkeypatch.setattr("os.path.exists", lambda path: path == "/dev/nvidia0" and plugin is not None)
    monkeypatch.delenv("TPU_ACCELERATOR_TYPE", raising=False)
    monkeypatch.setitem(sys.modules, "google.colab", None)
    commands: list[str] = []
    cell = plain(cells()[0]).replace('REPOSITORY = ""', f'REPOSITORY = "{tmp_path}"')
    exec(cell, {"shell": commands.append})
    assert commands[0].startswith("pip uninstall") and commands[-1].endswith(f'"{tmp_path}{extra}"')
    assert not extra or f'"{extra[1:-1]}": ["jax[cuda' in (ROOT / "setup.py").read_text(encoding="utf-8")
