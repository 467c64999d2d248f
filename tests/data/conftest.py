"""Small audio files that the data tests make for themselves, and the data section that sources are given."""

import types

import numpy as np
import pytest


def make_wave(seconds, rate=16000, channels=1, seed=0):
    """float32 [samples channels] (or [samples]): smoothed noise, so that lossy codecs keep it recognisable."""
    noise = np.random.default_rng(seed).standard_normal((int(seconds * rate) + 8, channels))
    smooth = sum(noise[i : len(noise) - 8 + i] for i in range(8)) * 0.05
    return smooth[:, 0].astype(np.float32) if channels == 1 else smooth.astype(np.float32)


def write_audio(path, seconds=1.0, rate=16000, channels=1, seed=0, wave=None, **kind):
    """Writes a file and returns the wave; block by block, because libsndfile's Vorbis writer needs it."""
    import soundfile

    wave = make_wave(seconds, rate, channels, seed) if wave is None else wave
    path.parent.mkdir(parents=True, exist_ok=True)
    channels = 1 if wave.ndim == 1 else wave.shape[1]
    with soundfile.SoundFile(path, "w", rate, channels, **kind) as file:
        for start in range(0, len(wave), 4096):
            file.write(wave[start : start + 4096])
    return wave


@pytest.fixture
def audio():
    return write_audio


@pytest.fixture
def section():
    """The data section of a config, as sources see it."""

    def make(**changes):
        return types.SimpleNamespace(**{"min_seconds": 0.1, "workers": 2, **changes})

    return make


@pytest.fixture(scope="session")
def home(tmp_path_factory):
    """The folder of a self-made corpus of 0.01 h, which no test changes."""
    from w2v_jax.data.sources import synthetic

    return synthetic.write_corpus(tmp_path_factory.mktemp("synthetic") / "corpus", 0.01, progress=False)
