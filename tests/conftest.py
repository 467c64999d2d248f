"""Settings that must stand before jax is imported: eight CPU devices, no accelerator, quick compilation, one cache."""

import atexit
import gc
import hashlib
import os
import pathlib
import shutil
import tempfile

import filelock
import hypothesis
import pytest
from commands import HASTE

flags = os.environ.get("XLA_FLAGS", "")
for flag in ("--xla_force_host_platform_device_count=8", *(() if "optimization_level" in flags else HASTE)):
    if flag.partition("=")[0] not in flags:
        flags = f"{flags} {flag}".strip()
os.environ["XLA_FLAGS"] = flags
os.environ.setdefault("JAX_PLATFORMS", "cpu")  # JAX_PLATFORMS=cuda pytest runs the same tests on a GPU
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # each worker has one core: waiting threads of NumPy would spin
os.environ.setdefault("JAX_TRACEBACK_IN_LOCATIONS_LIMIT", "0")  # in each operation, to be read in dumps and profiles

if "JAX_COMPILATION_CACHE_DIR" not in os.environ:  # one for all workers and the commands that they start
    PROGRAMS = tempfile.mkdtemp(prefix="programs-")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = PROGRAMS
    atexit.register(shutil.rmtree, PROGRAMS, ignore_errors=True)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")
os.environ.setdefault("JAX_COMPILATION_CACHE_MAX_SIZE", str(8 << 30))  # any limit makes JAX lock what it writes

hypothesis.settings.register_profile("untimed", deadline=None)  # other workers take the time as well
hypothesis.settings.load_profile("untimed")
gc.set_threshold(50_000, 10, 10)  # tracing makes many objects, few of them garbage: a tenth of the time


MANY_PROGRAMS = 800
"""So many are forgotten at the end of a file."""
LONGEST = "contract extract export finetune ctc estimate probe scaling train bench meshes".split()


def pytest_collection_modifyitems(items):
    """The files that take longest come first: no worker is left alone with one of them at the end."""
    place = {f"test_{name}.py": i for i, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.name, len(LONGEST)))


@pytest.hookimpl(optionalhook=True)  # without xdist as well
def pytest_xdist_make_scheduler(config, log):
    """Slow tests are few and long: where whole files are dealt, one worker waits for the other at the end."""
    if config.option.markexpr == "slow":
        from xdist.scheduler import WorkStealingScheduling

        return WorkStealingScheduling(config, log)


def pytest_terminal_summary(terminalreporter):
    """Says in plain sight that a green run without PyTorch, faiss or fastabx has not compared anything with it."""
    skipped = [str(report.longrepr) for report in terminalreporter.stats.get("skipped", [])]
    lacking = {
        "PyTorch": "pip install -e '.[parity]'",
        "faiss": "pip install faiss-cpu",
        "fastabx": "pip install fastabx (Python 3.12 or newer)",
        "object stores": "pip install -e '.[stores]'",
        "Apache Beam": "an environment of its own (docs/prepare.md)",
        "XLA's TPU compiler": "pip install libtpu",
    }
    words = {"PyTorch": ("torch", "transformers"), "faiss": ("with faiss",), "fastabx": ("with fastabx",)}
    words["object stores"] = ("moto", "gcp_storage_emulator", "s3fs", "gcsfs")
    words["Apache Beam"], words["XLA's TPU compiler"] = ("Apache Beam",), ("TPU compiler",)
    absent = [name for name in lacking if any(word in reason for reason in skipped for word in words[name])]
    if absent:
        terminalreporter.section("PARITY TESTS SKIPPED", sep="!", yellow=True, bold=True)
    for name in absent:
        terminalreporter.line(f"Nothing was compared with {name}. To compare: {lacking[name]}")


@pytest.fixture(scope="session", autouse=True)
def small_batches():
    """Encoding pads a few short recordings to whole batches: of 16 s here, where users have 160 s."""
    from w2v_jax import extract, units
    from w2v_jax.inference import encode, recognizer

    with pytest.MonkeyPatch.context() as patch:
        for module in (encode, extract, recognizer, units):
            patch.setattr(module, "BATCH_SECONDS", 16.0)
        patch.setitem(encode.encode.__kwdefaults__, "batch_seconds", 16.0)
        yield


@pytest.fixture(scope="session")
def programs():
    """An entry for each program that was compiled or loaded and is kept."""
    import jax

    kept = []
    note = lambda event, *_, **__: kept.append(event) if event.endswith("/backend_compile_duration") else None
    jax.monitoring.register_event_duration_secs_listener(note)
    return kept


@pytest.fixture(scope="module", autouse=True)
def few_programs(programs):
    """Lets go of programs after a file where there are many: each takes a megabyte, however small it is."""
    yield
    if len(programs) > MANY_PROGRAMS:
        import jax

        jax.clear_caches()
        programs.clear()


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory):
    """A function: the folder of this name, made by `fill(folder)` for the first worker that asks, for all of them."""
    base = tmp_path_factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base

    def make(name, fill):
        folder = base / name
        with filelock.FileLock(f"{folder}.lock"):
            if not (done := base / f"{name}.done").exists():
                shutil.rmtree(folder, ignore_errors=True)  # of a fill that failed
                fill(folder)
                done.touch()
        return folder

    return make


@pytest.fixture(scope="session")
def tiny_corpus(shared_folder):
    """The folder of a self-made corpus of 0.02 h: recordings of 2 to 15 s in train and dev."""
    from w2v_jax.data.sources import synthetic

    return shared_folder("corpus", lambda folder: synthetic.write_corpus(folder / "synthetic", 0.02)) / "synthetic"


@pytest.fixture(scope="session")
def tiny_run(shared_folder, tiny_corpus):
    """A function: the workdir of a run of two steps of a config, e.g. tiny_run("w2v2_base.py:tiny", seed=2).

    On one device: a program for eight takes twice as long to compile.
    """
    import jax

    from w2v_jax import train
    from w2v_jax.core import config as configs
    from w2v_jax.training.sharding import row_mesh

    def make(name="w2v2_base.py:tiny", **changes):
        usual = dict(data__root=tiny_corpus, data__loader="threads", train__steps=2, optim__warmup=1)
        changes = usual | dict(train__checkpoint_every=1) | changes
        overrides = [(key.replace("__", "."), str(value)) for key, value in sorted(changes.items())]
        file = pathlib.Path(__file__).parents[1] / "configs" / name

        def fill(folder):
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(train, "choose_mesh", lambda _: (row_mesh(jax.devices()[:1]), {}))
                assert train.run(configs.load(str(file), overrides), folder / "run") == 0

        key = hashlib.sha256(repr((name, overrides)).encode()).hexdigest()[:12]
        return shared_folder(f"run-{file.stem}-{key}", fill) / "run"

    return make


@pytest.fixture(scope="session")
def ctc_run(tiny_run):
    """The workdir of a tiny recogniser."""
    return tiny_run("acoustic_logmel.py:tiny")


@pytest.fixture(scope="session")
def heard(tiny_corpus):
    """The folder of the recordings that it was trained on."""
    return tiny_corpus / "train"


@pytest.fixture(scope="session")
def arpa(shared_folder, ctc_run, heard):
    """The file of a language model of the words of their transcripts."""
    from w2v_jax import ngram

    def fill(folder):
        flags = ["--root", str(heard), "--run", str(ctc_run), "--out", str(folder / "lm.arpa.gz")]
        assert ngram.main(flags) == 0

    return shared_folder("arpa", fill) / "lm.arpa.gz"


@pytest.fixture(scope="session")
def random_run(tmp_path_factory):
    """A function: the folder of a run of a config that never trained, with random parameters. In no time."""
    import jax
    import numpy as np

    from w2v_jax.core import config as configs
    from w2v_jax.core.tree import nest
    from w2v_jax.data.transcripts import Alphabet
    from w2v_jax.interop import tensor_mapping

    made = {}

    def draw(name, shape, rng):
        noise = rng.normal(size=shape).astype(np.float32)
        fan_in = max(1, int(np.prod(shape[:-1])))
        return 1 + 0.1 * noise if name.endswith("scale") else noise / np.sqrt(fan_in)

    def make(name="w2v2_base.py:tiny", **changes):
        key = (name, *sorted((k, str(v)) for k, v in changes.items()))
        if key in made:
            return made[key]
        overrides = [(k.replace("__", "."), str(v)) for k, v in changes.items()]
        config = configs.load(str(pathlib.Path(__file__).parents[1] / "configs" / name), overrides)
        alphabet = None
        if config.method == "ctc":
            alphabet = Alphabet(("<blank>", "|", *"abcdefgh"), "letters")
            config = configs.with_outputs(config, len(alphabet))
        rng = np.random.default_rng(0)
        found = {path: draw(path, shape, rng) for path, shape in tensor_mapping.parameter_shapes(config).items()}
        folder = tmp_path_factory.mktemp("random") / "run"
        params = jax.tree.map(jax.numpy.asarray, nest(found))
        tensor_mapping.write_run(folder, tensor_mapping.Imported(config, params, alphabet, [], []), {})
        made[key] = folder
        return folder

    return make
