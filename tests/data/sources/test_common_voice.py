"""Laws of Common Voice: a line of a list is a row with its sentence, or is named."""

import pytest
from formats import content

from w2v_jax.core.cli import UserError
from w2v_jax.data import open_source

HEADER = "client_id\tpath\tsentence_id\tsentence\tsentence_domain\tup_votes\tdown_votes\tlocale\tsegment"


@pytest.fixture
def corpus(tmp_path):
    folder = tmp_path / "cv-corpus-20" / "de"
    (folder / "clips").mkdir(parents=True)
    for i in range(3):
        (folder / "clips" / f"common_voice_de_{i}.mp3").write_bytes(content(0.5, seed=i, rate=32000, kind="MP3"))
    rows = [
        'aa\tcommon_voice_de_0.mp3\ts0\tÄpfel sind "süß".\t\t2\t0\tde\t',
        "bb\tcommon_voice_de_1.mp3\ts1\tJa.\t\t2\t0\tde\t",
        "bb\tgone.mp3\ts2\tNein.\t\t2\t0\tde\t",
    ]
    (folder / "train.tsv").write_text("\n".join([HEADER, *rows]) + "\n", "utf-8")
    (folder / "dev.tsv").write_text(f"{HEADER}\ncc\tcommon_voice_de_2.mp3\ts\tDrei\t\t2\t0\tde\t\n")
    return folder


def test_the_lists_of_a_language_are_splits(corpus):
    for root, split in ((corpus, ""), (corpus, "train"), (f"{corpus}@train", "dev"), (corpus / "train.tsv", "dev")):
        index = open_source("common_voice", root, split=split).index
        assert index.ids.tolist() == ["common_voice_de_0", "common_voice_de_1"]
        assert index.transcripts.tolist() == ['Äpfel sind "süß".', "Ja."] and index.speakers.tolist() == ["aa", "bb"]
        assert [(skip.path, skip.reason) for skip in index.skipped] == [
            (str(corpus / "clips" / "gone.mp3"), "file does not exist")
        ]
    source = open_source("common_voice", corpus, split="dev")
    assert source.index.transcripts.tolist() == ["Drei"] and len(source.read(0, 1000, 2000)) == 2000
    with pytest.raises(
        UserError, match=r"has no test\.tsv; choose with --config.data.split from its lists: dev, train"
    ):
        open_source("common_voice", corpus, split="test")


def test_lines_of_other_columns_are_named_and_other_lists_are_errors(corpus):
    with open(corpus / "train.tsv", "a") as file:
        file.write("dd\tcommon_voice_de_2.mp3\n\n")
    index = open_source("common_voice", corpus).index
    assert len(index) == 2
    assert index.skipped[0].path == f"{corpus / 'train.tsv'}:5"
    assert index.skipped[0].reason == "line of other columns: it has 2, and the list has 9"
    (corpus / "train.tsv").write_text("a\tb\n")
    with pytest.raises(UserError, match=r"train\.tsv:1: needs the columns of Common Voice; 'path' is missing"):
        open_source("common_voice", corpus)
