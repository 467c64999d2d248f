"""Laws of reports: hours add up over shards, and a folder above a recording says its language."""

from w2v_jax.data.index import Row, Skip, make_index
from w2v_jax.data.prepared.summaries import index_report, language_of, merged, report_text


def test_a_folder_says_the_language_unless_the_command_does():
    assert language_of("/data/language=deu_Latn/a/b.flac", "") == "deu_Latn"
    assert language_of("c/language=deu_Latn/a.tar#1+2:b.flac", "en") == "en"
    assert language_of("/data/language=x", "") == language_of("/data/b.flac", "") == ""


def test_summaries_add_up():
    one = {"records": 2, "rates": {"8000": 1.5}, "silent": ["a"], "sha256": "f"}
    assert merged([one, {"records": 1, "rates": {"8000": 1.0, "16000": 2.0}, "silent": [], "sha256": "e"}]) == {
        "records": 3,
        "rates": {"8000": 2.5, "16000": 2.0},
        "silent": ["a"],
    }


def test_the_report_of_an_index_has_hours_of_each_and_every_skip():
    rows = [Row("a", "language=de/a", 0, 16000 * 3600, 16000, "ann"), Row("b", "b", 0, 8000 * 1800, 8000)]
    report = index_report(make_index(rows, [Skip("c", "empty file")]), "", recordings=2)
    assert report["hours"] == 1.5 and report["lost"] == 1
    assert report["hours_of"] == {
        "rates": {"16000": 1.0, "8000": 0.5},
        "languages": {"de": 1.0, "": 0.5},
        "speakers": {"ann": 1.0, "": 0.5},
    }
    assert report["skipped"] == [{"path": "c", "reason": "empty file"}]
    assert report["lengths"] == {"1800.0": 1, "3600.0": 1}
    said = report_text(report)
    assert "2, 1.50 h" in said and "1, some unknown" in said and "1 x empty file" in said
