"""Pictures of examples: every part that there is, and not much larger than what it shows."""

import numpy as np
import pytest

from w2v_jax.core.units import NO_TARGET
from w2v_jax.reporting.examples import Example, Spoken
from w2v_jax.reporting.markup import document
from w2v_jax.reporting.pictures import draw_example, stretches

WAVE = (0.1 * np.sin(np.arange(48_000) / 30)).astype(np.float32)
MASKED = (np.arange(150) // 20) % 2 == 1


def example(**fields):
    return Example("a <b>", 3.0, WAVE, **({"hop": 320, "masked": MASKED} | fields))


def texts(root):
    return {node.text for node in root.iter() if node.tag == "text"}


def test_a_picture_has_the_parts_that_the_example_has():
    codes = np.arange(300).reshape(150, 2)
    assert {"wave", "log-mel", "seconds"} <= texts(draw_example(example(), "a"))
    assert not {"codes", "units", "words"} & texts(draw_example(example(), "a"))
    assert "codes" in texts(draw_example(example(codes=codes), "a"))
    assert "units" in texts(draw_example(example(units=np.full((1, 150), NO_TARGET), unit_hop=320), "a"))
    words = (Spoken("hello", 0.1, 0.5, 0.9), Spoken("there", 0.6, 0.6, 0.1))
    assert {"words", "hello", "there"} <= texts(draw_example(example(words=words), "a"))


def test_the_label_names_the_recording_and_the_size_is_bounded():
    text = document(draw_example(example(codes=np.arange(300).reshape(150, 2)), "a"))
    assert "log-mel spectrum of a <b&gt;" in text and len(text) < 150_000


@pytest.mark.parametrize("samples", [1, 400, 700])
def test_very_short_and_silent_recordings_have_a_picture(samples):
    picture = draw_example(example(masked=None)._replace(wave=np.zeros(samples, np.float32)), "a")
    assert {"wave", "log-mel", "seconds"} <= texts(picture)
    assert "nan" not in document(picture)
    images = [node.get("href", "")[:14] for node in picture.iter() if node.tag == "image"]
    assert images == ["data:image/png"] * (samples > 1)  # the first frame lies beyond a single sample


def test_stretches_are_those_of_the_flags():
    assert stretches(MASKED)[:2] == [(20, 40), (60, 80)] and stretches(np.zeros(3, bool)) == []
    assert stretches(np.ones(3, bool)) == [(0, 3)]
