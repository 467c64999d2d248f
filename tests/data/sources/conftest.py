"""What the tests of several sources share."""

import pytest


@pytest.fixture
def corpus(tmp_path, audio):
    """A folder of two recordings below "audio"."""
    audio(tmp_path / "audio" / "x" / "one.wav", 1.0)
    audio(tmp_path / "audio" / "two.flac", 2.0)
    return tmp_path
