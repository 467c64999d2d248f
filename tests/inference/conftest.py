"""A run and recordings that tests of inference share. What changes a run copies its folder."""

import pytest

from w2v_jax.data import open_source
from w2v_jax.inference.run import open_run


@pytest.fixture(scope="session")
def run(tiny_run):
    return open_run(tiny_run())


@pytest.fixture(scope="session")
def source(tiny_corpus):
    return open_source("folder", tiny_corpus / "train", min_seconds=1.0)
