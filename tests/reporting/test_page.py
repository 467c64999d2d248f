"""The page: whole, valid and by itself, for any runs, in both colour schemes."""

import html.parser
import json
import re
import shutil
import subprocess

import numpy as np
import pytest
from written_runs import curve, write_run

from w2v_jax.reporting import markup, page
from w2v_jax.reporting.examples import Example
from w2v_jax.reporting.page import Contents, page_text
from w2v_jax.reporting.reference import Compared, Comparison
from w2v_jax.reporting.run_folder import open_run_folders
from w2v_jax.reporting.verdict import judge

VOID = {"meta", "link", "br", "img", "input", "hr"}
EXAMPLE = Example(
    "one", 1.0, np.zeros(16_000, np.float32), hop=320, masked=None, reference="a b", hypothesis="<a>", alignment="REF:"
)


class Reader(html.parser.HTMLParser):
    """Ids, what is referred to, texts by tag; fails where tags are not closed in order."""

    def __init__(self, text):
        super().__init__()
        self.ids, self.references, self.texts, self.open = [], [], {}, []
        self.feed(text)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.ids += [values["id"]] if "id" in values else []
        self.references += [values[key] for key in ("href", "src", "xlink:href") if key in values]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open:
            self.texts.setdefault(self.open[-1], []).append(data)


def contents(*folders, examples=(), comparisons=(), audio=True):
    runs = open_run_folders(folders)
    found = examples or [([], "")] * len(runs)
    return Contents(runs, [judge(run) for run in runs], found, comparisons=comparisons, audio=audio)


def check(text):
    """What holds for every page; its Reader."""
    found = Reader(text)
    assert len(found.ids) == len(set(found.ids)), "ids are unique"
    places = [reference[1:] for reference in found.references if reference.startswith("#")]
    places += re.findall(r"url\(#([^)]+)\)", text)
    assert set(places) <= set(found.ids), set(places) - set(found.ids)
    assert all(reference.startswith(("#", "data:")) for reference in found.references), "nothing from elsewhere"
    assert not re.search(r"https?://|@import|url\((?!#)", text)
    return found


def test_runs_of_different_methods_stand_side_by_side(tmp_path):
    folders = [
        write_run(tmp_path / "w2v2", curve(20), usage=[{"step": 5, "code_usage": [[0.5, 0.5]]}]),
        write_run(tmp_path / "cpc", curve(10, accuracy_step_01=0.3), config="cpc.py:tiny"),
        write_run(tmp_path / "ctc", config="acoustic_logmel.py:tiny"),
    ]
    text = page_text(contents(*folders))
    found = check(text)
    assert {"verdict", "learning-wav2vec2", "learning-cpc", "codes", "updates", "speed", "config"} <= set(found.ids)
    assert "line-learn-wav2vec2-loss-train-1" in found.ids and "line-learn-cpc-loss-train-2" in found.ids
    assert {"line-updates-grad_norm-train-1", "line-updates-grad_norm-train-2"} <= set(found.ids)
    assert "learning-ctc" not in found.ids, "it has logged nothing"
    assert "No metrics yet" in text and "&lt;" not in "".join(found.texts["h1"])
    assert len(text) < 700_000


def test_the_newest_values_and_what_differs_are_tables(tmp_path):
    folders = [write_run(tmp_path / "a", curve(20)), write_run(tmp_path / "b", curve(20, end=1.5), optim__peak=0.5)]
    (folders[1] / "environment.jsonl").write_text(
        json.dumps({"time": "now", "command": "python -m w2v_jax.train <x>", "versions": {"jax": "0.0.1"}}) + "\n"
    )
    found = check(page_text(contents(*folders)))
    cells = found.texts["td"]
    assert {"1.2", "1.5", "0.001", "0.5", "0.0.1", "python -m w2v_jax.train <x>", "not recorded"} <= set(cells)
    assert "optim.peak" in found.texts["th"]
    same = [write_run(tmp_path / "c", curve(5)), write_run(tmp_path / "d", curve(5))]
    assert "The configs are the same." in page_text(contents(*same))


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("chromium"), reason="links are followed in Chromium")
def test_links_work_within_another_page(tmp_path):
    """As notebooks show it: an iframe with srcdoc has the address of the page around it."""
    follows = """<script>
        document.querySelector('a[href="#environment"]').click(); parent.postMessage(scrollY > 100, "*");
    </script></body>"""
    inner = html.escape(page_text(contents(write_run(tmp_path / "a", curve(200)))).replace("</body>", follows))
    outer = """<p>no answer</p><script>
        addEventListener("message", (event) => { document.querySelector("p").textContent = `moved: ${event.data}`; });
    </script>"""
    (tmp_path / "outer.html").write_text(f'{outer}<iframe srcdoc="{inner}" height="300"></iframe>', encoding="utf-8")
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=5000", "--dump-dom"]
    command = ["chromium", *options, f"--user-data-dir={tmp_path}", str(tmp_path / "outer.html")]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=120).stdout
    assert "<p>moved: true</p>" in shown


def test_one_run_alone_has_no_differences(tmp_path):
    text = page_text(contents(write_run(tmp_path / "a", curve(5))))
    check(text)
    assert "The configs are the same." not in text and "1 run of wav2vec2" in text


def test_without_metrics_of_corpora_the_hours_are_those_of_the_batches(tmp_path):
    folder = write_run(tmp_path / "a", curve(20), data__batch_hours=0.25)
    assert "a: 20 updates of up to 15 minutes of audio are up to 5 hours." in page_text(contents(folder))
    (folder / "data.json").write_text(json.dumps({"train_hours": 2.5}))
    assert "are up to 5 hours, 2 times the 2.5 hours of its recordings." in page_text(contents(folder))


def test_names_and_findings_are_escaped(tmp_path):
    folder = write_run(tmp_path / "<script>alert(1)<", curve(20, grad_norm=0.0))
    text = page_text(contents(folder))
    check(text)
    assert text.count("<script>") == 1 and "&lt;script&gt;alert(1)&lt;" in text and "no gradient" in text


def test_examples_can_be_heard_or_left_out(tmp_path):
    folder = write_run(tmp_path / "a", curve(5))
    heard = page_text(contents(folder, examples=[([EXAMPLE], "why not more")]))
    found = check(heard)
    assert sum(reference.startswith("data:audio/flac;base64,") for reference in found.references) == 1
    assert "why not more" in heard and "&lt;a&gt;" in heard and "REF:" in heard
    silent = page_text(contents(folder, examples=[([EXAMPLE], "")], audio=False))
    check(silent)
    assert "<audio" not in silent and len(silent) < len(heard) + 1


def test_a_comparison_is_a_table(tmp_path):
    row = Compared("loss", 5, 1.25, low=1.0, high=1.2, word="worse", normal=False)
    comparison = Comparison("not normal", "Why.", normal=False, rows=[row])
    text = page_text(contents(write_run(tmp_path / "a", curve(5)), comparisons=[comparison]))
    found = check(text)
    assert "reference" in found.ids and {"1.25", "1 to 1.2"} <= set(found.texts["td"]) and "not normal" in text


def test_damage_is_told(tmp_path):
    text = page_text(contents(write_run(tmp_path / "a", curve(5), tail="{")))
    assert "1 damaged line of metrics.jsonl left out." in text


def test_every_colour_has_a_value_for_light_and_one_for_dark():
    """No figure and no rule has a colour of its own but the picture of a spectrum."""
    style = (page.FOLDER / "page.css").read_text()
    values = dict(re.findall(r"(--[\w-]+): (light-dark\(#[0-9a-f]{6}, #[0-9a-f]{6}\));", style))
    used = set(re.findall(r"var\((--[\w-]+)\)", style)) | {v[4:-1] for v in markup.VARIABLES.values()}
    assert used == values.keys()
    rules = style.partition("}")[2]
    assert not re.search(r"#[0-9a-f]{3,6}\b", rules), "colours stand at the top"


def test_every_pair_of_colours_can_be_read():
    """Contrast of texts with their ground, in both schemes, at least 4.5 to 1 (WCAG AA)."""
    style = (page.FOLDER / "page.css").read_text()
    values = {name: (a, b) for name, a, b in re.findall(r"--([\w-]+): light-dark\((#\w+), (#\w+)\)", style)}
    for scheme in (0, 1):
        for text in ("ink", "muted", "link", "good", "warn", "bad"):
            for ground in ("page", "card"):
                assert contrast(values[text][scheme], values[ground][scheme]) >= 4.5, (text, ground, scheme)
        for number in range(1, len(markup.RUNS) + 1):  # the number of a run on its colour
            assert contrast(values[f"run-{number}"][scheme], values["card"][scheme]) >= 4.5, (number, scheme)


def contrast(one, other):
    def luminance(colour):
        parts = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
        return np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4) @ [0.2126, 0.7152, 0.0722]

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)
