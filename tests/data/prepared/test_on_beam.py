"""Laws of Beam: two workers write the shards that one process writes. Apache Beam has an environment of its own."""

import sys

import numpy as np
import pytest

from w2v_jax.core.cli import UserError
from w2v_jax.data import open_source
from w2v_jax.data.prepared.on_beam import on_beam
from w2v_jax.data.prepared.records import Options
from w2v_jax.data.prepared.shard_files import write_shard
from w2v_jax.data.prepared.shard_jobs import ShardJob, make_shards

soundfile = pytest.importorskip("soundfile")
pytest.importorskip("array_record")


def test_without_beam_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    with pytest.raises(UserError, match=r"w2v-jax\[beam\]"):
        on_beam([])


@pytest.fixture
def recordings(tmp_path):
    """Twelve recordings and a broken one."""
    folder = tmp_path / "recordings"
    folder.mkdir()
    for number in range(12):
        wave = 0.1 * np.random.default_rng(number).standard_normal(8000 + number)
        soundfile.write(folder / f"{number:02d}.wav", wave, 16000)
    (folder / "broken.wav").write_bytes(b"RIFF")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["in_memory", "multi_processing"])
def test_two_workers_of_beam_write_what_one_process_writes(recordings, tmp_path, mode):
    pytest.importorskip(
        "apache_beam", reason="Apache Beam was NOT tested: pip install apache-beam, apart (docs/prepare.md)"
    )

    def in_turn(folder, numbers):
        return ((number, write_shard(folder, number)) for number in numbers)

    def make(name, run):
        job = ShardJob(tmp_path / name, Options(), 40_000, language="", about={})
        make_shards(job, lambda kept: open_source("folder", recordings, kept=kept), run)
        return {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()}

    arguments = ["--runner=DirectRunner", "--direct_num_workers=2", f"--direct_running_mode={mode}"]
    by_beam, by_one = make("beam", on_beam(arguments)), make("one", in_turn)
    assert by_beam == by_one and len([name for name in by_one if "array_record" in name]) > 3
