"""The rules of the house that can be checked: rooms, lazy imports, configs, commands, no traces of a machine."""

import ast
import graphlib
import importlib
import importlib.metadata
import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest
from commands import ROOT, environment

from w2v_jax.core import config
from w2v_jax.core.cli import UserError

PACKAGE = ROOT / "w2v_jax"

BENEATH: dict[str, set[str]] = {"core": set()}
"""What each room may import, as CONTRIBUTING.md draws it; a room may always import itself."""
BENEATH["ops"] = {"core"}
BENEATH["nn"] = BENEATH["ops"] | {"ops"}
BENEATH["methods"] = BENEATH["nn"] | {"nn"}
BENEATH["data"] = BENEATH["decoding"] = {"core"}
BENEATH["training"] = BENEATH["methods"] | {"methods", "data"}
BENEATH["inference"] = BENEATH["training"] | {"training", "decoding"}
for _room in ("interop", "probing", "discrete", "reporting"):
    BENEATH[_room] = BENEATH["inference"] | {"inference"}
BENEATH["profiling"] = BENEATH["interop"] | {"interop"}  # PyTorch's side of a comparison is built from their config
BENEATH["command"] = {*BENEATH["profiling"], "profiling", "probing", "discrete", "reporting"}
DATA_IN_TRAINING = {"dataset", "warm_start"}
"""The files of `training/` that know the data; the others are told what they need of them."""
JAX_FREE = ("data", "decoding")
HEAVY = ("tensorflow", "tensorflow_datasets", "librosa", "soundfile", "soxr", "ml_collections", "torch", "transformers")
HEAVY += ("safetensors", "matplotlib", "tensorboardX", "espeakng_loader", "jiwer", "flashlight")
HEAVY += ("pyarrow", "h5py", "sklearn", "av", "array_record", "apache_beam", "wandb", "huggingface_hub")
# what a layer may import from outside the standard library, anywhere in its files
MAY_IMPORT = {
    "ops": {"flax", "jax", "numpy", "optax"},
    "nn": {"jax", "flax", "numpy"},
    "methods": {"jax", "flax", "numpy"},
    "data": {"numpy", "tensorflow", "tensorflow_datasets", "soundfile", "soxr", "librosa", "espeakng_loader", "etils"}
    | {"pyarrow", "h5py", "google_crc32c", "av", "array_record", "scipy", "apache_beam"},
}


def modules() -> list[pathlib.Path]:
    return sorted(PACKAGE.rglob("*.py"))


def test_no_two_test_files_share_a_name():
    """pytest imports them by their bare names: of two, it finds one, and only when both are in one process."""
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert sorted(names) == sorted(set(names))


def test_every_module_of_a_room_has_a_test_file_of_its_own():
    """tests/ROOM/test_x.py for ROOM/x.py."""
    lacking = []
    for path in modules():
        place = path.relative_to(PACKAGE)
        if len(place.parts) > 1 and path.stem != "__init__":
            if not (ROOT / "tests" / place.parent / f"test_{path.stem}.py").is_file():
                lacking.append(place.with_suffix("").as_posix())
    assert not lacking, f"without a test file: {lacking}"


def dotted(path: pathlib.Path) -> str:
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    return name.removesuffix(".__init__")


def room(path: pathlib.Path) -> str:
    """The folder of a file, "command" for what lies beside the rooms, "package" for the package's own face."""
    parts = path.relative_to(PACKAGE).parts
    return parts[0] if len(parts) > 1 else "package" if path.stem in ("__init__", "__main__") else "command"


def imports(tree: ast.AST, package: str, *, top_only: bool = False) -> set[str]:
    """Dotted names of everything a file imports; `top_only` leaves out functions and what only type checkers read."""
    found, waiting = set(), [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            up = package.split(".")[: -node.level + 1 or None] if node.level else []
            base = ".".join([*up, *([node.module] if node.module else [])])
            found |= {f"{base}.{alias.name}" for alias in node.names}
        later = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        later |= isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        if not (top_only and later):
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


# Rooms


def test_every_room_has_a_rule_and_every_file_a_docstring():
    for path in modules():
        assert room(path) in BENEATH or room(path) == "package", f"{path}: name what its room may import"
        assert ast.get_docstring(ast.parse(path.read_text())), f"{path} has no docstring"


def test_no_module_is_imported_by_what_it_imports():
    """Imports within functions count as well."""
    known = {dotted(path) for path in modules()}

    def module(parts: tuple[str, ...]) -> str:
        names = [".".join(("w2v_jax", *parts[:n])) for n in range(len(parts), -1, -1)]
        return next(name for name in names if name in known)

    graph = {dotted(path): {module(parts) for parts in inner(imports_of(path))} - {dotted(path)} for path in modules()}
    assert set(graphlib.TopologicalSorter(graph).static_order()) == known


def test_every_package_that_is_imported_is_declared():
    text = (ROOT / "setup.py").read_text()
    declared = {
        name.lower().replace("_", "-") for name in re.findall(r'"([A-Za-z][\w.-]*)(?:\[\w+\])?(?:[<>=]|")', text)
    }
    installed = importlib.metadata.packages_distributions()
    for path in modules():
        for package in outer(imports_of(path)):
            names = {name.lower().replace("_", "-") for name in installed.get(package, [package])}
            assert names & declared, f"{dotted(path)} imports {package}, which setup.py does not name"


@pytest.mark.parametrize("path", [p for p in modules() if room(p) != "package"], ids=dotted)
def test_imports_go_down_the_rooms_only(path):
    where, names = room(path), imports_of(path)
    firsts = {parts[0] for parts in inner(names) if (where, parts[0]) != ("command", "__version__")}
    assert firsts <= BENEATH[where] | ({where} - {"command"}), f"{dotted(path)} imports {firsts - BENEATH[where]}"
    if where in MAY_IMPORT:
        assert outer(names) <= MAY_IMPORT[where], f"{dotted(path)} imports {outer(names) - MAY_IMPORT[where]}"
    if where in JAX_FREE:
        assert not outer(names) & {"jax", "flax"}, f"{dotted(path)} imports jax"
    if where == "training" and path.stem not in DATA_IN_TRAINING:
        assert "data" not in firsts, f"{dotted(path)} knows the data"


def test_a_command_does_nothing_when_it_is_imported_and_is_run_by_its_name():
    for path in modules():
        if room(path) == "command":
            assert path.read_text().rstrip().endswith("run_command(main)"), f"{path.name} is no command"


def test_no_method_imports_another():
    for path in (PACKAGE / "methods").glob("*.py"):
        assert not {parts for parts in inner(imports_of(path)) if parts[0] == "methods"}, path.name


def test_a_folder_holds_at_most_thirteen_names():
    """Commands, of which there may be fifteen, and rooms are counted apart; methods and sources grow as they must."""
    for folder in [PACKAGE, *(p for p in PACKAGE.rglob("*") if p.is_dir() and p.name != "__pycache__")]:
        if folder in (PACKAGE / "methods", PACKAGE / "data" / "sources"):
            continue
        files = [p.stem for p in folder.glob("*.py") if not p.stem.startswith("__")]
        rooms = [p.name for p in folder.iterdir() if p.is_dir() and p.name != "__pycache__"]
        most = 15 if folder == PACKAGE else 13
        assert len(files) <= most and len(rooms) <= 13, f"{folder}: {sorted(files)} {sorted(rooms)}"


def test_the_rules_on_imports_see_every_form_of_import():
    text = "import jax.numpy as jnp\nfrom . import index\nfrom ..core.cli import UserError\n"
    text += "def f():\n    from w2v_jax.data import x"
    assert imports(ast.parse(text), "w2v_jax.data") == {
        "jax.numpy",
        "w2v_jax.data.index",
        "w2v_jax.core.cli.UserError",
        "w2v_jax.data.x",
    }
    assert "w2v_jax.data.x" not in imports(ast.parse(text), "w2v_jax.data", top_only=True)


@pytest.mark.parametrize("path", [p for p in modules() if room(p) not in ("data", "command")], ids=dotted)
def test_heavy_packages_are_imported_inside_functions(path):
    assert not outer(imports_of(path, top_only=True)) & set(HEAVY)


def run_python(script: str, *arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", script, *arguments]
    return subprocess.run(
        command, cwd=ROOT, env=environment(JAX_PLATFORMS=""), capture_output=True, text=True, timeout=200
    )


def test_rooms_but_data_import_where_only_the_jax_stack_is_installed():
    names = [dotted(p) for p in modules() if room(p) not in ("data", "command")]
    script = "import sys, importlib\nfor name in sys.argv[1].split(): sys.modules[name] = None\n"
    script += "for name in sys.argv[2].split(): importlib.import_module(name)"
    result = run_python(script, " ".join(HEAVY), " ".join(names))
    assert result.returncode == 0, result.stderr


def test_no_import_initialises_a_device():
    script = "import sys, importlib\nfrom jax._src import xla_bridge\nfor name in sys.argv[1].split():\n"
    script += "    importlib.import_module(name)\n    assert not xla_bridge.backends_are_initialized(), name"
    result = run_python(script, " ".join(dotted(p) for p in modules()))
    assert result.returncode == 0, result.stderr


# Signatures


MOST_BY_POSITION = 3
BY_POSITION = {
    "loss": "`Method` in core/types.py says its arguments",
    "Block.__call__": "flax.linen.scan hands a layer its arguments by position",
    "_Tensor.__init__": "pickle calls it",
}
"""Functions whose caller is not ours to change. What has a gradient of its own (custom_vjp) is found without a name."""


def functions(node: ast.AST, inside: str = "") -> list[tuple[str, ast.FunctionDef]]:
    """All functions beneath a node; the name of a method begins with its class."""
    found = []
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef):
            found += [(inside + child.name, child), *functions(child)]
        else:
            found += functions(child, f"{child.name}." if isinstance(child, ast.ClassDef) else inside)
    return found


def with_own_gradient(tree: ast.AST) -> set[str]:
    """The functions that JAX calls by position: those with custom_vjp, and what is given to `defvjp`."""
    decorated = {name for name, f in functions(tree) if "custom_vjp" in "".join(map(ast.unparse, f.decorator_list))}
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    given = [call.args for call in calls if isinstance(call.func, ast.Attribute) and call.func.attr == "defvjp"]
    return decorated | {ast.unparse(argument) for arguments in given for argument in arguments}


def too_many_by_position(text: str, classes: set[str]) -> list[str]:
    """What takes, or gives one of our classes, more arguments by position than three; self and cls do not count."""
    tree = ast.parse(text)
    exempt, found = with_own_gradient(tree) | set(BY_POSITION), []
    for name, function in functions(tree):
        names = [a.arg for a in (*function.args.posonlyargs, *function.args.args)]
        if name not in exempt and len(names) - (names[:1] in (["self"], ["cls"])) > MOST_BY_POSITION:
            found.append(f"line {function.lineno}: def {name}")
    for call in ast.walk(tree):
        if isinstance(call, ast.Call) and len(call.args) > MOST_BY_POSITION:
            if ast.unparse(call.func).rpartition(".")[2] in classes:
                found.append(f"line {call.lineno}: {ast.unparse(call.func)}(...)")
    return found


def test_nothing_takes_more_than_three_arguments_by_position():
    """Nor is a class of ours, a Linen module above all, made with more."""
    texts = {path: path.read_text() for path in modules()}
    classes = {c.name for text in texts.values() for c in ast.walk(ast.parse(text)) if isinstance(c, ast.ClassDef)}
    found = {dotted(path): too_many_by_position(text, classes) for path, text in texts.items()}
    assert not {name: lines for name, lines in found.items() if lines}
    text = "class C:\n    def m(self, a, b, c): ...\n    def n(self, a, b, c, d): ...\nC(1, 2, 3)\nx.C(1, 2, 3, 4)\n"
    assert too_many_by_position(text, {"C"}) == ["line 3: def C.n", "line 5: x.C(...)"]


ROLES = {"main", "make", "load", "draw", "Draws", "Prediction", "objective", "levels", "write_corpus", "write_letters"}
ROLES |= {"fit", "measure"}
"""Names that stand in several modules because they mean the same in each, as `make` does in each method and source."""


def test_no_public_name_means_two_things():
    """Of functions and classes; whoever takes a name of another module for the same role adds it to `ROLES`."""
    where: dict[str, set[str]] = {}
    for path in modules():
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
                where.setdefault(node.name, set()).add(dotted(path))
    shared = {name: places for name, places in where.items() if len(places) > 1}
    assert shared.keys() == ROLES, {name: places for name, places in shared.items() if name not in ROLES}


def test_no_variable_has_the_name_of_a_module_that_its_file_imports():
    """Whoever reads `step.updates` must find the module behind it. A function may bind a module itself (torch)."""
    for path in modules():
        tree = ast.parse(path.read_text())
        top = {node for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))}
        names = {a.asname or a.name for node in top for a in node.names if is_module(node, a.name)}
        bound = {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)}
        bound |= {n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
        assert not names & bound, f"{dotted(path)}: {names & bound}"


def is_module(node: ast.Import | ast.ImportFrom, name: str) -> bool:
    """Whether an import statement binds a module: `import` does, `from` where a file or folder of ours has the name."""
    if isinstance(node, ast.Import) or not (node.module or "").startswith("w2v_jax"):
        return isinstance(node, ast.Import)
    place = ROOT.joinpath(*str(node.module).split("."), name)
    return place.is_dir() or place.with_suffix(".py").is_file()


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
    assert (PACKAGE / "data" / "sources" / f"{found.data.name}.py").is_file()
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


COMMANDS = [path.stem for path in modules() if room(path) == "command"]


def run_command(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=200)


def test_a_tilde_is_the_home_folder_in_every_option_that_is_a_path():
    """Read off the metavar: whoever adds an option for a path names it so, with the type that expands `~`."""
    options = set()
    for path in modules():
        for call in ast.walk(ast.parse(path.read_text())):
            if not isinstance(call, ast.Call):
                continue
            words = {k.arg: ast.unparse(k.value) for k in call.keywords}
            if re.match("'(FILE|DIR|PATH|FOLDER|RUN)", words.get("metavar", "")) and "variant" not in words["metavar"]:
                name = ast.literal_eval(call.args[0])
                options.add(name)
                assert words.get("type") in ("expand_home", "path_argument"), f"{path.name}: {name}"
    assert options >= {"--run", "--root", "--out", "--workdir", "--from", "--lm", "--text", "files"}


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself(name):
    shown = run_command(f"w2v_jax.{name}", "--help")
    assert shown.returncode == 0, shown.stderr
    assert "usage:" in shown.stdout and "Traceback" not in shown.stderr
    words = re.sub(r"\s+", " ", shown.stdout)
    assert f"w2v_jax.{name}" in words, "the help names the command as one types it"


@pytest.mark.parametrize("name", COMMANDS)
def test_a_wrong_option_is_a_usage_error(name, capsys):
    with pytest.raises(SystemExit) as left:
        importlib.import_module(f"w2v_jax.{name}").main(["--no-such-option"])
    assert left.value.code == 2
    assert "usage:" in capsys.readouterr().err
