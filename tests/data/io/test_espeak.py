"""Laws of the text-to-speech engine: a language has all its accents, every voice speaks, and mistakes are named."""

import pytest

from w2v_jax.core.cli import UserError
from w2v_jax.data.io import espeak
from w2v_jax.data.sources import speak

pytest.importorskip("espeakng_loader", reason='text-to-speech was NOT tested: pip install "w2v_jax[demo]"')


@pytest.mark.parametrize(
    ("language", "paths"),
    [
        ("en", {"gmw/en", "gmw/en-US", "gmw/en-GB-scotland"}),
        ("en-us", {"gmw/en-US"}),
        ("zh", {"sit/cmn"}),
        ("no", {"gmq/nb"}),
        ("cmn-latn-pinyin", {"sit/cmn-Latn-pinyin"}),
    ],
)
def test_a_language_is_spoken_in_all_its_accents_and_no_other_script(language, paths):
    accents = espeak.engine().accents_of(language)
    assert paths <= set(accents) and "gmw/en-Shaw" not in accents
    assert len(accents) == len(paths) or language in ("en", "en-us")


def test_every_language_and_voice_speaks():
    engine = espeak.engine()
    for path in (accent.path for accent in engine.accents):
        assert engine.library.espeak_SetVoiceByName(f"{path}+m1".encode()) == 0, path
    for variant in engine.variants:
        assert len(speak.speak("one", espeak.Voice(f"gmw/en+{variant}", 150, 50, 50))) > 1600, variant
    assert len(engine.accents) > 100 and len(engine.variants) > 50


def test_missing_wheel_names_the_extra(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "espeakng_loader", None)
    with pytest.raises(UserError, match=r"w2v_jax\[demo\]"):
        espeak.Engine()
