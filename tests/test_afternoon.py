"""Law of docs/afternoon.md: its commands, one after the other at their smallest size, make a recogniser."""

import importlib
import json
import re
import shlex

import pytest
from commands import ROOT

SMALL = {":demo": ":tiny", "--hours 0.5": "--hours 0.02", "--tune 16": "--tune 2"}


@pytest.mark.slow
@pytest.mark.timeout(900)  # nine commands, a minute of two free cores
def test_the_tutorial_runs_from_its_first_line_to_its_last(tmp_path, monkeypatch):
    page = (ROOT / "docs/afternoon.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^<!-- run by tests/test_afternoon\.py -->\n```bash\n(.*?)^```$", page, re.M | re.S)
    assert len(blocks) == page.count("```bash") >= 5
    text = re.sub(r"\\\n\s*", "", "".join(blocks))
    for usual, small in SMALL.items():
        assert usual in text
        text = text.replace(usual, small)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    for line in text.splitlines():
        python, option, module, *words = shlex.split(line)
        assert (python, option) == ("python", "-m")
        assert not importlib.import_module(module).main(words), line
    assert json.loads((tmp_path / "eval/dev-lm/scores.json").read_text())["recordings"] > 0
    assert (tmp_path / "report.html").is_file() and (tmp_path / "look.png").is_file()
