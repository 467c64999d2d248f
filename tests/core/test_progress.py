"""The progress of a command, on a terminal and in a log."""

from __future__ import annotations

import io
import sys

from w2v_jax.core import progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_short_work_shows_no_line_but_the_last(capsys):
    with progress.ProgressBar("quick", 1.0) as bar:
        bar.add(1800)
    assert capsys.readouterr().err == ""
    bar = progress.ProgressBar("quick", 1.0)
    bar.add(1800)
    bar.end(1)
    assert capsys.readouterr().err == "quick: 1 recordings, 0.50 h, made in 0 s\n"


def test_a_log_gets_plain_lines_with_rate_and_time_left(monkeypatch, capsys):
    monkeypatch.setattr(progress, "LOG_SECONDS", 0.0)
    bar = progress.ProgressBar("work", 2.0)
    bar.add(1800, is_new=False)
    bar.add(3600)
    bar.close()
    lines = capsys.readouterr().err.split("\n")
    assert lines.pop() == "" and not any("\r" in line or "\x1b" in line for line in lines)
    assert "work: 0.50 of 2.00 h" in lines, "what was there before has no rate"
    assert lines[-1].startswith("work: 1.50 of 2.00 h (") and lines[-1].endswith("x real time, 0 s left)")


def test_what_was_there_before_does_not_enter_the_rate():
    text = progress._text(3, 0, n=3.0, total=4.0, elapsed=60.0, initial=2.0)
    assert text == "3.00 of 4.00 h (60x real time, 1 min 00 s left)"


def test_short_audio_is_counted_in_seconds_and_more_than_was_known_is_no_warning(monkeypatch):
    assert progress._text(1, 0, n=0.001, total=0.002, elapsed=1.0, initial=0.001) == "4 of 7 s"
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(progress, "TERMINAL_SECONDS", 0.0)
    with progress.ProgressBar("work", 1.0) as bar:
        bar.add(5400)
    assert "1.50 of 1.50 h" in stream.getvalue()


def test_files_are_counted_where_the_amount_is_unknown():
    text = progress._text(1200, 3, n=1.25, total=None, elapsed=10.0, initial=0.0)
    assert text == "1,200 files, 1.2 h, 3 skipped (120 files/s)"


def test_a_terminal_gets_one_line_that_output_does_not_tear(monkeypatch, capsys):
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(progress, "TERMINAL_SECONDS", 0.0)
    with progress.ProgressBar("work", 1.0) as bar:
        bar.add(360)
        bar.print("FILE\ttext")
        bar.add(3240)
    shown = stream.getvalue()
    assert shown.count("\n") == 1 and shown.endswith("\n") and "work: |" in shown and "1.00 of 1.00 h" in shown
    assert capsys.readouterr().out == "FILE\ttext\n"


def test_nothing_is_shown_where_it_is_not_wanted(monkeypatch, capsys):
    monkeypatch.setattr(progress, "LOG_SECONDS", 0.0)
    bar = progress.ProgressBar("work", 1.0, is_shown=False)
    bar.add(10)
    bar.end(1)
    assert capsys.readouterr().err == ""
