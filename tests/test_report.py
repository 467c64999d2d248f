"""The command `report`: what it writes and says, and its exit codes."""

import pytest
from written_runs import curve, write_run

from w2v_jax import report
from w2v_jax.core.cli import UserError
from w2v_jax.reporting import reference


def run(capsys, *arguments):
    """(exit code, lines on standard output)."""
    code = report.main([str(argument) for argument in arguments])
    return code, capsys.readouterr().out.splitlines()


def test_a_trained_run_becomes_a_page_with_examples(tiny_run, tmp_path, capsys):
    trained, out = tiny_run(), tmp_path / "page.html"
    capsys.readouterr()  # of a training
    code, lines = run(capsys, trained, "--out", out, "--examples", "1")
    text = out.read_text()
    assert code == 0 and lines[0].startswith("reading ") and lines[-1].startswith(f"done: {out} (")
    assert text.count("data:audio/flac") == 1 and "codes</text>" in text
    assert len(text) < 1_500_000
    code, lines = run(capsys, trained, "--out", out, "--examples", "1", "--no-audio")
    assert "data:audio" not in out.read_text() and code == 0


def test_runs_side_by_side_without_metrics_or_complete(tmp_path, capsys):
    folders = [
        write_run(tmp_path / "a", curve(10), done=False, tail="{"),
        write_run(tmp_path / "b", config="cpc.py:tiny"),
    ]
    code, lines = run(capsys, *folders, "--out", tmp_path / "page.html")
    assert code == 0 and f"{folders[0]}: too early to say" in lines and f"{folders[1]}: nothing logged" in lines
    assert f"note: examples of {folders[1]}: there is no checkpoint yet" in lines
    assert sorted(path.name for path in folders[0].iterdir()) == ["config.json", "metrics.jsonl"]


def test_the_page_is_report_html_here_without_examples_if_asked(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, lines = run(capsys, write_run(tmp_path / "a", curve(10)), "--examples", "0")
    assert code == 0 and not any("note:" in line for line in lines)
    assert 'id="examples"' not in (tmp_path / "report.html").read_text()


def test_a_dead_run_and_one_that_is_not_normal_have_a_code_of_their_own(tmp_path, capsys, monkeypatch):
    dead = write_run(tmp_path / "dead", curve(40, grad_norm=0.0))
    code, lines = run(capsys, dead, "--examples", "0", "--out", tmp_path / "page.html")
    assert code == report.DEAD_OR_ODD == 3 and f"{dead}: dead; no gradient" in lines
    known = reference.Reference(
        "tiny", report.open_run_folders([dead])[0].config, data={}, made_with="", runs={1: curve(40)}
    )
    monkeypatch.setattr(reference, "load_references", lambda: [known])
    for end, expected in ((1.2, 0), (2.4, 3)):
        folder = write_run(tmp_path / str(end), curve(40, end=end))
        code, lines = run(capsys, folder, "--against", "reference", "--examples", "0", "--out", tmp_path / "page.html")
        assert code == expected and f"{folder}: {'normal' if end < 2 else 'not normal'} beside the reference" in lines
        assert 'id="reference"' in (tmp_path / "page.html").read_text()


def test_what_cannot_be_done_is_refused_before_anything_is_written(tmp_path):
    folder = write_run(tmp_path / "a", curve(10), config="bert_codes_base.py:tiny")
    with pytest.raises(UserError, match="is no run of bert_codes_small.py:demo, and a reference says nothing"):
        report.main([str(folder), "--against", "reference", "--out", str(tmp_path / "page.html")])
    with pytest.raises(UserError, match="does not exist"):
        report.main([str(tmp_path / "none")])
    with pytest.raises(UserError, match="9 runs are too many"):
        report.main([str(folder)] * 9)
    with pytest.raises(UserError, match="--out .* cannot be written"):
        report.main([str(folder), "--examples", "0", "--out", str(folder / "config.json" / "page.html")])
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
