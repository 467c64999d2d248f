"""Laws of TSV manifests: every line is a row or is named with a reason; errors name file and line."""

import json

import pytest

from w2v_jax.core.cli import UserError
from w2v_jax.data import open_source
from w2v_jax.data.sources import jsonl, tsv


def write_tsv(path, root, lines):
    path.write_text("\n".join([str(root), *lines, ""]), "utf-8")
    return path


def test_tsv_lists_files_with_the_lengths_of_their_headers(corpus, section):
    lines = ["x/one.wav\t16000", "two.flac\t31000", "gone.wav\t16000"]
    index = tsv.make(section(), write_tsv(corpus / "train.tsv", corpus / "audio", lines)).index
    assert index.ids.tolist() == ["x/one", "two"]
    assert index.num_samples.tolist() == [16000, 32000]
    differs = "a manifest's length differs from that of the file, which is used"
    assert index.notes == [f"1 x {differs}; first: {corpus / 'audio' / 'two.flac'}"]
    assert [(s.path, s.reason) for s in index.skipped] == [(str(corpus / "audio" / "gone.wav"), "file does not exist")]


def test_tsv_reads_transcripts_beside_it(corpus, section):
    manifest = write_tsv(corpus / "train.tsv", corpus / "audio", ["x/one.wav\t16000", "two.flac\t32000"])
    (corpus / "train.ltr").write_text("G O | O N |\nY E S |\n")
    assert tsv.make(section(), manifest).index.transcripts.tolist() == ["GO ON", "YES"]
    (corpus / "train.wrd").write_text("go on\nyes\n")
    assert tsv.make(section(), manifest).index.transcripts.tolist() == ["go on", "yes"]


SPELT, PHONEMES, BARS = "H E L L O | W O R L D |", "hh ah l ow", "HH AH L OW | W ER L D"


@pytest.mark.parametrize(
    ("labels", "files", "text"),
    [
        # data.labels decides, and no ending
        *((labels, {ending: SPELT}, "HELLO WORLD") for labels in ("letters", "") for ending in ("ltr", "wrd", "phn")),
        *(("symbols", {ending: SPELT}, SPELT) for ending in ("ltr", "wrd", "phn")),
        *((labels, {e: PHONEMES}, PHONEMES) for labels in ("letters", "symbols", "") for e in ("ltr", "wrd", "phn")),
        *((labels, {"wrd": "A B A"}, "A B A") for labels in ("letters", "symbols", "")),
        *((labels, {"wrd": "a | pipe"}, "a | pipe") for labels in ("letters", "symbols", "")),
        ("letters", {"ltr": "H E L L O"}, "HELLO"),
        ("symbols", {"ltr": "H E L L O"}, "H E L L O"),
        ("", {"ltr": "H E L L O"}, "H E L L O"),  # without a boundary nothing says that they are letters
        ("letters", {"ltr": "ch a t | e\u0301 |"}, "chat e\u0301"),
        ("symbols", {"ltr": BARS}, BARS),
        ("", {"ltr": BARS}, BARS),
        # two files
        ("letters", {"wrd": "HELLO WORLD", "ltr": SPELT}, "HELLO WORLD"),
        ("letters", {"wrd": "hello", "ltr": PHONEMES}, "hello"),
        ("", {"wrd": "hello", "ltr": PHONEMES}, "hello"),
        ("symbols", {"wrd": "hello", "ltr": PHONEMES}, PHONEMES),
        ("symbols", {"wrd": "HELLO WORLD", "ltr": SPELT}, "HELLO WORLD"),
        ("symbols", {"wrd": "HELLO WORLD", "ltr": SPELT, "phn": PHONEMES}, PHONEMES),
        ("letters", {"wrd": "HELLO WORLD", "phn": PHONEMES}, "HELLO WORLD"),
    ],
)
def test_data_labels_say_how_transcripts_are_read(corpus, section, labels, files, text):
    manifest = write_tsv(corpus / "train.tsv", corpus / "audio", ["x/one.wav\t16000", "two.flac\t32000"])
    for ending, line in files.items():
        (corpus / f"train.{ending}").write_text(f"{line}\n{line}\n", encoding="utf-8")
    index = tsv.make(section(labels=labels) if labels else section(), manifest).index
    assert index.transcripts.tolist() == [text, text]
    assert any("joined to words" in note for note in index.notes) == (not labels and [SPELT] == list(files.values()))
    assert any("the transcripts are those of" in note for note in index.notes) == (len(files) > 1)


def test_a_choice_among_transcripts_is_told(corpus, section):
    manifest = write_tsv(corpus / "train.tsv", corpus / "audio", ["x/one.wav\t16000"])
    (corpus / "train.ltr").write_text(f"{SPELT}\n")
    note = f"{corpus / 'train.ltr'}: its letters are joined to words; data.labels=symbols keeps them apart"
    assert tsv.make(section(), manifest).index.notes == [note]
    (corpus / "train.wrd").write_text("hello world\n")
    note = f"the transcripts are those of {corpus / 'train.wrd'}, not of train.ltr"
    assert tsv.make(section(), manifest).index.notes == [note]
    assert open_source("tsv", manifest, labels="symbols").index.notes == [note]


def test_lines_of_transcripts_end_at_newlines_only(corpus, section):
    """Those of the files beside a manifest, and of the manifest itself."""
    text = "HELLO\u2028THE\x85RE\x0cAGAIN"
    manifest = write_tsv(corpus / "train.tsv", corpus / "audio", ["x/one.wav\t16000", "two.flac\t32000"])
    (corpus / "train.wrd").write_text(f"\ufeff{text}\r\nWORLD\r\n", encoding="utf-8")
    assert tsv.make(section(), manifest).index.transcripts.tolist() == [text, "WORLD"]
    entry = json.dumps({"audio_filepath": "audio/two.flac", "text": text}, ensure_ascii=False)
    (corpus / "train.jsonl").write_text(f"\ufeff{entry}\r\n\r\n", encoding="utf-8")
    assert jsonl.make(section(), corpus / "train.jsonl").index.transcripts.tolist() == [text]


@pytest.mark.parametrize(
    ("words", "message"), [("one\n", r"tsv:3: the transcripts .* end"), ("a\nb\nc\n", "more lines")]
)
def test_tsv_with_another_number_of_transcripts_is_an_error(corpus, section, words, message):
    manifest = write_tsv(corpus / "train.tsv", corpus / "audio", ["x/one.wav\t16000", "two.flac\t32000"])
    (corpus / "train.wrd").write_text(words)
    with pytest.raises(UserError, match=message):
        tsv.make(section(), manifest)


@pytest.mark.parametrize("line", ["x/one.wav", "x/one.wav 16000", "x/one.wav\tmany", "x/one.wav\t-1", "\t16000"])
def test_tsv_errors_name_file_and_line(corpus, section, line):
    manifest = write_tsv(corpus / "train.tsv", corpus / "audio", ["two.flac\t32000", line])
    with pytest.raises(UserError, match=r"train\.tsv:3: needs 'path TAB number of samples'"):
        tsv.make(section(), manifest)


def test_tsv_root_line_must_be_a_directory(corpus, section):
    for first in (corpus / "nowhere", "x/one.wav\t16000"):
        with pytest.raises(UserError, match=r"train\.tsv:1: the first line must be the audio's directory"):
            tsv.make(section(), write_tsv(corpus / "train.tsv", first, ["x/one.wav\t16000"]))
    assert len(tsv.make(section(), write_tsv(corpus / "train.tsv", "audio", ["x/one.wav\t16000"])).index) == 1


@pytest.mark.parametrize("source", [tsv, jsonl])
def test_manifests_must_be_existing_text_files(corpus, section, source):
    extension = f".{source.__name__.split('.')[-1]}"
    with pytest.raises(UserError, match="does not exist"):
        source.make(section(), corpus / f"gone{extension}")
    (corpus / f"train{extension}").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=f"is a directory.*did you mean train{extension} in it"):
        source.make(section(), corpus)
    with pytest.raises(UserError, match=f"train{extension}:1: is UTF-16; save it as UTF-8"):
        source.make(section(), corpus / f"train{extension}")


def test_tsv_without_rows_is_an_error(corpus, section):
    (corpus / "empty.tsv").write_text("")
    with pytest.raises(UserError, match=r"empty\.tsv: empty"):
        tsv.make(section(), corpus / "empty.tsv")
    with pytest.raises(UserError, match="no readable audio"):
        tsv.make(section(), write_tsv(corpus / "root.tsv", corpus / "audio", []))
