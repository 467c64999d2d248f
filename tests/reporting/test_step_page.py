"""Laws of the page of a step: it is the batch that training reads, with its ids, crops and changes."""

import numpy as np
import pytest

from w2v_jax.core.cli import UserError
from w2v_jax.core.config import load
from w2v_jax.core.units import batch_units
from w2v_jax.data.pipeline import batches
from w2v_jax.reporting.step_page import draw_step, planned_step, step_text
from w2v_jax.training.dataset import open_data


@pytest.fixture(scope="module")
def noisy(tiny_corpus):
    values = {"name": "folder", "root": tiny_corpus / "train", "gain_decibels": "-6,6", "mix_prob": "1"}
    return load("configs/w2v2_base.py:tiny", [(f"data.{key}", str(value)) for key, value in values.items()])


def test_the_batch_is_the_one_of_training(noisy, tmp_path):
    planned = planned_step(noisy, 3, path=tmp_path)
    data = open_data(noisy, batch_units(noisy.data), 1, path=tmp_path)
    ours = batches(data.train, data.train_plan, stop=4, normalize=noisy.data.normalize, loader="threads")
    *_, (batch, info) = ours
    assert planned.info.ids == info.ids and planned.info.starts == info.starts
    np.testing.assert_array_equal(planned.batch["wave"], batch["wave"])


def test_rows_and_their_changes_are_told_and_drawn(noisy, tmp_path):
    image = pytest.importorskip("matplotlib.image")
    pytest.importorskip("librosa")
    planned = planned_step(noisy, 2, path=tmp_path)
    said = step_text(planned, noisy)
    assert all(id in said for id in planned.info.ids) and "gain " in said and "voices " in said and "buckets" in said
    draw_step(planned, noisy, tmp_path / "step.png", rows=2)
    assert image.imread(tmp_path / "step.png").shape[:2] == (545, 1300)


def test_steps_are_counted_from_0(noisy, tmp_path):
    with pytest.raises(UserError, match="--step -1"):
        planned_step(noisy, -1, path=tmp_path)
