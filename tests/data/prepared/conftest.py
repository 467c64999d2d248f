"""A recording with pauses, for the tests of what cuts recordings."""

import numpy as np
import pytest

from w2v_jax.data import open_source


@pytest.fixture(scope="session")
def talk(tmp_path_factory):
    """Ten seconds at 22.05 kHz, loud but for 0.4 s around second 2.5, 4.2 and 7.1; and a second of noise."""
    soundfile = pytest.importorskip("soundfile")
    folder = tmp_path_factory.mktemp("talk")
    seconds = np.arange(220500) / 22050
    wave = 0.3 * np.sin(2000 * seconds)
    for pause in (2.5, 4.2, 7.1):
        wave[np.abs(seconds - pause) < 0.2] *= 1e-3
    soundfile.write(folder / "talk.flac", wave, 22050)
    soundfile.write(folder / "word.flac", wave[:22050], 22050)
    (folder / "a.trans.txt").write_text("talk A B C\nword D\n")
    return open_source("folder", folder)
