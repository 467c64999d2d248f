"""Laws of listing: candidates become rows in their order, whoever opens them, or are skipped with a reason."""

import sys

import pytest
from recordings import encoded, tone

from w2v_jax.core import progress
from w2v_jax.core.cli import UserError
from w2v_jax.data.io import listing
from w2v_jax.data.io.containers import JOINED, NO_END
from w2v_jax.data.io.listing import Candidate, beside, list_files
from w2v_jax.data.sources import folder


def test_listing_is_the_same_with_any_number_of_workers(tmp_path, audio, section, monkeypatch):
    monkeypatch.setattr(listing, "CANDIDATES_AT_ONCE", 4)
    for i in range(11):
        audio(tmp_path / str(i % 3) / f"{i}.wav", 0.2 + i / 20)
    (tmp_path / "1" / "x.wav").write_text("text")
    one, many = (folder.make(section(workers=n), tmp_path).index for n in (1, 5))
    assert len(one) == 11
    assert one.fingerprint() == many.fingerprint()
    assert one.skipped == many.skipped


@pytest.mark.parametrize("package", ["soundfile", "soxr"])
def test_missing_audio_packages_are_a_clear_error(tmp_path, audio, section, monkeypatch, package):
    audio(tmp_path / "a.wav")
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match="pip install soundfile soxr"):
        folder.make(section(), tmp_path)


def test_long_listings_show_progress_on_stderr(tmp_path, audio, section, monkeypatch, capsys):
    for i in range(3):
        audio(tmp_path / f"{i}.wav")
    folder.make(section(), tmp_path)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(progress, "LOG_SECONDS", 0.0)
    folder.make(section(), tmp_path)
    assert "listing audio: 3 files, 0.0 h, 0 skipped" in capsys.readouterr().err


def test_segments_outside_their_file_are_cut_or_named(tmp_path, audio):
    audio(tmp_path / "a.wav", 2.0)
    path = str(tmp_path / "a.wav")
    candidates = [
        Candidate("a", path, 1.0, 5.0),
        Candidate("b", path, 2.0),
        Candidate("c", path, 0.0, 0.0),
        Candidate("d", path, 0.0, 2.05),
    ]
    index = list_files(candidates, where=path, min_seconds=0.1, workers=2, skipped=[]).index
    assert index.durations.tolist() == [1.0, 2.0]
    assert index.notes == [
        f"1 x a manifest's segment reached past the end of its file and was cut there; first: {path}"
    ]
    assert [s.reason.split(": ")[0] for s in index.skipped] == ["segment outside its file", "segment without length"]


def test_what_was_done_about_odd_files_is_counted(tmp_path):
    flac, ogg = encoded(tone(1), "flac"), encoded(tone(1), "ogg")
    for name in ("a", "b"):
        (tmp_path / f"{name}.flac").write_bytes(flac + flac)
    (tmp_path / "c.ogg").write_bytes(ogg[: ogg.rindex(b"OggS")])
    (tmp_path / "d.flac").write_bytes(flac)
    candidates = [Candidate(path.stem, str(path)) for path in sorted(tmp_path.iterdir())]
    index = list_files(candidates, where="here", min_seconds=0.0, workers=2, skipped=[]).index
    assert index.notes == [f"2 x {JOINED}; first: {tmp_path / 'a.flac'}", f"1 x {NO_END}; first: {tmp_path / 'c.ogg'}"]
    assert index.durations[[0, 1, 3]].tolist() == [2.0, 2.0, 1.0]


def test_paths_of_a_list_lie_beside_it_or_else_in_the_present_directory(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    (tmp_path / "here" / "b").touch()
    assert beside(tmp_path, "a") == str(tmp_path / "a"), "where neither exists, beside the list"
    assert beside(tmp_path, "b") == "b"
    (tmp_path / "b").touch()
    assert beside(tmp_path, "b") == str(tmp_path / "b") and beside(tmp_path, "/x/y") == "/x/y"
