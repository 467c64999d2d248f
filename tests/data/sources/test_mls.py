"""Laws of Multilingual LibriSpeech: a line of transcripts.txt is a row, or is named."""

import pytest
from formats import content

from w2v_jax.core.cli import UserError
from w2v_jax.data import open_source


@pytest.mark.parametrize(("extension", "kind"), [("flac", "FLAC"), ("opus", "OGG")])
def test_transcripts_are_rows_with_their_speakers_in_order(tmp_path, extension, kind):
    folder = tmp_path / "mls_german" / "train"
    ids = ["10148_10119_000001", "10148_10119_000000", "7_2_000000"]
    for i, id in enumerate(ids):
        speaker, book, _ = id.split("_")
        place = folder / "audio" / speaker / book
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{id}.{extension}").write_bytes(content(0.5, seed=i, kind=kind))
    lines = [f"{id}\ttext ä {i}" for i, id in enumerate(ids)]
    (folder / "transcripts.txt").write_text("\n".join([*lines, "7_2_000001\tgone", "no id", ""]), "utf-8")
    (folder / "segments.txt").write_text("10148_10119_000001\thttp://x/y.mp3\t0\t1\n")
    index = open_source("mls", folder).index
    assert index.ids.tolist() == ids and index.speakers.tolist() == ["10148", "10148", "7"]
    assert index.transcripts.tolist() == ["text ä 0", "text ä 1", "text ä 2"]
    assert [(skip.path, skip.kind) for skip in index.skipped] == [
        (f"{folder / 'transcripts.txt'}:5", "line without an id"),
        (f"{folder}/audio/7/2/7_2_000001.{extension}", "file does not exist"),
    ]
    assert len(open_source("folder", folder).index) == 3, "without transcripts, the folder is enough"


def test_the_folder_above_the_parts_is_refused_with_their_names(tmp_path):
    for part in ("train", "dev"):
        (tmp_path / part).mkdir()
        (tmp_path / part / "transcripts.txt").write_text("")
    with pytest.raises(UserError, match=r"has no transcripts\.txt as in MLS; name one of its parts: dev, train"):
        open_source("mls", tmp_path)
