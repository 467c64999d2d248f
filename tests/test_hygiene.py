"""The rules of the house that can be checked: layers, lazy imports, configs, commands, no traces of a machine."""

import ast
import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest
from commands import ROOT, environment

from w2v_jax import config
from w2v_jax.config import UserError

PACKAGE = ROOT / "w2v_jax"

CORE = {"api", "config"}  # L0
MATHS = {
    "frontend",
    "context",
    "recurrent",
    "attention",
    "transformer",
    "encoders",
    "quantizers",
    "logmel",
    "prediction",
    "acoustic",
    "products",
    "masking",
    "losses",
    "noise",
}  # L1
MACHINERY = {
    "step",
    "optim",
    "sharding",
    "checkpoint",
    "curves",
    "report",
    "watchdog",
    "meter",
    "flops",
    "trace",
    "workdir",
    "runlog",
}  # L3
LIBRARY = {
    "runs",
    "lm",
    "decode",
    "flashlight_decoder",
    "metrics",
    "recognition",
    "align",
    "linear",
    "probing",
    "rival",
    "reference",
    "foreign",
    "huggingface",
    "huggingface_config",
    "fairseq",
    "warmstart",
    "unpickle",
    "inference",
    "batches",
}  # what commands share
HEAVY = ("tensorflow", "tensorflow_datasets", "librosa", "soundfile", "soxr", "ml_collections", "torch", "transformers")
HEAVY += ("safetensors", "matplotlib", "tensorboardX", "espeakng_loader", "jiwer", "flashlight")
HEAVY += ("pyarrow", "h5py")
# what a layer may import from outside the standard library, anywhere in its files
MAY_IMPORT = {
    "maths": {"jax", "flax", "optax", "numpy"},
    "methods": {"jax", "flax", "numpy"},
    "data": {"numpy", "tensorflow", "tensorflow_datasets", "soundfile", "soxr", "librosa", "espeakng_loader", "etils"}
    | {"pyarrow", "h5py"},
}


def modules() -> list[pathlib.Path]:
    return sorted(PACKAGE.rglob("*.py"))


def test_no_two_test_files_share_a_name():
    """pytest imports them by their bare names: of two, it finds one, and only when both are in one process."""
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert sorted(names) == sorted(set(names))


def dotted(path: pathlib.Path) -> str:
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    return name.removesuffix(".__init__")


def is_command(path: pathlib.Path) -> bool:
    """A command ends with `run_command(main)`; config.py only defines it."""
    return path.stem != "config" and "run_command(" in path.read_text()


def layer(path: pathlib.Path) -> str:
    if path.parent.name in ("methods", "data"):
        return path.parent.name
    for name, members in (("core", CORE), ("maths", MATHS), ("machinery", MACHINERY), ("library", LIBRARY)):
        if path.stem in members:
            return name
    return "command" if is_command(path) else "package" if path.stem == "__init__" else "unknown"


def imports(tree: ast.AST, package: str, *, top_only: bool = False) -> set[str]:
    """Dotted names of everything a file imports; `top_only` leaves out what stands inside functions."""
    found, waiting = set(), [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            up = package.split(".")[: -node.level + 1 or None] if node.level else []
            base = ".".join([*up, *([node.module] if node.module else [])])
            found |= {f"{base}.{alias.name}" for alias in node.names}
        if not (top_only and isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))):
            waiting += ast.iter_child_nodes(node)
    return found


def imports_of(path: pathlib.Path, *, top_only: bool = False) -> set[str]:
    package = dotted(path) if path.stem == "__init__" else dotted(path).rpartition(".")[0]
    return imports(ast.parse(path.read_text()), package, top_only=top_only)


def inner(names: set[str]) -> set[tuple[str, ...]]:
    """The parts below w2v_jax of each import from the package: ("api", "State"), ("data", "plan", "Plan"), ..."""
    return {tuple(name.split(".")[1:]) for name in names if name.startswith("w2v_jax.")}


def outer(names: set[str]) -> set[str]:
    """Third-party packages among the imports."""
    tops = {name.split(".")[0] for name in names}
    return tops - set(sys.stdlib_module_names) - {"w2v_jax", "__future__"}


# Layers


def test_every_file_of_the_package_has_a_layer_and_a_docstring():
    for path in modules():
        assert layer(path) != "unknown", f"{path.name}: name its layer in tests/test_hygiene.py (MATHS, ...)"
        assert ast.get_docstring(ast.parse(path.read_text())), f"{path} has no docstring"


@pytest.mark.parametrize("path", modules(), ids=dotted)
def test_imports_go_down_the_layers_only(path):
    where, names = layer(path), imports_of(path)
    firsts = {parts[0] for parts in inner(names) if parts[0] != "__version__"}
    allowed = {
        "core": CORE,
        "maths": CORE | MATHS,
        "methods": CORE | MATHS,
        "data": {"config", "data"},
        "machinery": CORE | MATHS | MACHINERY,
        "library": CORE | MATHS | MACHINERY | LIBRARY | {"methods", "data"},
    }.get(where)
    if allowed is not None:
        assert firsts <= allowed, f"{path.name} ({where}) imports {sorted(firsts - allowed)}"
    if where in MAY_IMPORT:
        assert outer(names) <= MAY_IMPORT[where], f"{path.name} ({where}) imports {outer(names) - MAY_IMPORT[where]}"


def test_the_rules_on_imports_see_every_form_of_import():
    text = "import jax.numpy as jnp\nfrom . import plan\nfrom ..config import UserError\n"
    text += "def f():\n    from w2v_jax.data import x"
    assert imports(ast.parse(text), "w2v_jax.data") == {
        "jax.numpy",
        "w2v_jax.data.plan",
        "w2v_jax.config.UserError",
        "w2v_jax.data.x",
    }
    assert "w2v_jax.data.x" not in imports(ast.parse(text), "w2v_jax.data", top_only=True)


@pytest.mark.parametrize("path", [p for p in modules() if layer(p) not in ("data", "command")], ids=dotted)
def test_heavy_packages_are_imported_inside_functions(path):
    assert not outer(imports_of(path, top_only=True)) & set(HEAVY)


def run_python(script: str, *arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", script, *arguments]
    return subprocess.run(
        command, cwd=ROOT, env=environment(JAX_PLATFORMS=""), capture_output=True, text=True, timeout=200
    )


def test_core_methods_and_machinery_import_where_only_the_jax_stack_is_installed():
    names = [
        dotted(p) for p in modules() if layer(p) in ("package", "core", "maths", "methods", "machinery", "library")
    ]
    script = "import sys, importlib\nfor name in sys.argv[1].split(): sys.modules[name] = None\n"
    script += "for name in sys.argv[2].split(): importlib.import_module(name)"
    result = run_python(script, " ".join(HEAVY), " ".join(names))
    assert result.returncode == 0, result.stderr


def test_no_import_initialises_a_device():
    script = "import sys, importlib\nfrom jax._src import xla_bridge\nfor name in sys.argv[1].split():\n"
    script += "    importlib.import_module(name)\n    assert not xla_bridge.backends_are_initialized(), name"
    result = run_python(script, " ".join(dotted(p) for p in modules()))
    assert result.returncode == 0, result.stderr


# What is tracked


def tracked() -> list[pathlib.Path]:
    """The files of the repository; outside a checkout, everything but hidden and built files."""
    if (ROOT / ".git").exists():
        out = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
        return [ROOT / name for name in out.split("\0") if name and (ROOT / name).is_file()]
    found = [p for p in ROOT.rglob("*") if p.is_file()]
    return [p for p in found if not any(part.startswith((".", "__pycache__")) for part in p.relative_to(ROOT).parts)]


FOLDERS = "|".join(("home", "root", "opt", "Users", ROOT.parts[1]))
MACHINE = re.compile(rf"(?:^|[^A-Za-z0-9_.])/(?:{FOLDERS})/[A-Za-z.]")
REGISTRY = re.compile(r"(?:index-url|find-links)[ =]+\S*[/:]|//[^/\s]+:[^/@\s]+@")


def test_no_tracked_file_names_a_machine_or_a_registry():
    for path in tracked():
        if path == pathlib.Path(__file__) or path.suffix in (".npz", ".png", ".flac", ".wav"):
            continue
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1):
            for pattern in (MACHINE, REGISTRY):
                assert not pattern.search(line), f"{path.relative_to(ROOT)}:{number}: {line.strip()[:160]}"


def test_the_patterns_find_what_they_look_for():
    for start, folder in (("see ", "home"), ('"', "root"), ("(", "opt"), ("path=", ROOT.parts[1])):
        assert MACHINE.search(f"{start}/{folder}/x"), folder
    for text in ("pip install --index-url https://x.y/simple", "extra-index-url = file:///a", "https://user:pw@host/x"):
        assert REGISTRY.search(text), text
    for text in (
        "runs/home/x",
        "w2v_jax/work/y",
        "a home/ b",
        "--no-emit-index-url \\",
        "https://arxiv.org/abs/2006.11477",
    ):
        assert not MACHINE.search(text) and not REGISTRY.search(text), text


def shell_scripts() -> list[pathlib.Path]:
    def is_shell(path: pathlib.Path) -> bool:
        with open(path, "rb") as file:
            return path.suffix == ".sh" or re.match(rb"#!.*\b(ba)?sh\b", file.readline()) is not None

    return [path for path in tracked() if is_shell(path)]


def test_shell_scripts_are_sound():
    scripts = [str(path) for path in shell_scripts()]
    assert str(ROOT / ".ci" / "run") in scripts
    for script in scripts:
        subprocess.run(["bash", "-n", script], check=True)
        assert os.access(script, os.X_OK), f"{script} is not executable"
    if shutil.which("shellcheck"):
        found = subprocess.run(["shellcheck", *scripts], capture_output=True, text=True)
        assert found.returncode == 0, found.stdout


# Configs


def config_files() -> list[pathlib.Path]:
    return sorted((ROOT / "configs").glob("*.py"))


KEYS = {"method", "seed", "data.name", "data.root", "sharding.data", "sharding.fsdp", "sharding.tensor"}
KEYS |= {"sharding.slices"}
KEYS |= {f"train.{name}" for name in ("steps", "log_every", "eval_every", "checkpoint_every", "log_rows", "watchdog")}


@pytest.mark.parametrize("variant", ["", "demo", "tiny"])
@pytest.mark.parametrize("path", config_files(), ids=lambda path: path.stem)
def test_every_config_resolves_to_plain_values(path, variant):
    found = config.load(f"{path}:{variant}" if variant else str(path))
    flat = config.flatten(found)
    assert flat.keys() >= KEYS, KEYS - flat.keys()
    assert (PACKAGE / "methods" / f"{found.method}.py").is_file()
    assert (PACKAGE / "data" / f"{found.data.name}.py").is_file()
    for key, value in flat.items():
        assert isinstance(value, (int, float, str, bool, tuple)), f"{key}={value!r}"
    assert config.flatten(config.from_json(config.to_json(found))) == flat


@pytest.mark.parametrize("path", config_files(), ids=lambda path: path.stem)
def test_every_config_says_where_it_comes_from_and_how_to_run_it(path):
    docstring = ast.get_docstring(ast.parse(path.read_text())) or ""
    assert f"--config=configs/{path.name}" in docstring, "the docstring names the exact command"
    assert len(docstring.split("\n")) >= 4, "paper, command, hardware and hours, expected metric"
    with pytest.raises(UserError, match="variant"):
        config.load(f"{path}:no-such-variant")


@pytest.mark.parametrize("path", config_files(), ids=lambda path: path.stem)
def test_no_config_imports_another(path):
    assert outer(imports_of(path)) <= {"ml_collections"}


# Commands


COMMANDS = [path.stem for path in modules() if is_command(path)]


def run_command(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=200)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself(name):
    shown = run_command(f"w2v_jax.{name}", "--help")
    assert shown.returncode == 0, shown.stderr
    assert "usage:" in shown.stdout and "Traceback" not in shown.stderr
    words = re.sub(r"\s+", " ", shown.stdout)
    assert f"w2v_jax.{name}" in words, "the help names the command as one types it"


@pytest.mark.parametrize("name", COMMANDS)
def test_a_wrong_option_is_a_usage_error(name):
    result = run_command(f"w2v_jax.{name}", "--no-such-option")
    assert result.returncode == 2, result.stderr
    assert "Traceback" not in result.stderr
