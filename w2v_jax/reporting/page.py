"""One HTML file of what runs left behind. It needs no network, and holds figures, recordings and style itself."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from w2v_jax.core.config import differing_values, flatten
from w2v_jax.core.environment import VERSION
from w2v_jax.reporting import panels
from w2v_jax.reporting.examples import LONGEST, Example, flac
from w2v_jax.reporting.markup import Element, data_uri, document, tag, text_table
from w2v_jax.reporting.panels import swatch, with_numbers
from w2v_jax.reporting.pictures import draw_example
from w2v_jax.reporting.reference import Comparison
from w2v_jax.reporting.run_folder import RunFolder
from w2v_jax.reporting.verdict import DEAD, EARLY, HEALTHY, HURT, NOTHING, Verdict

FOLDER = pathlib.Path(__file__).parent
LOOKS = {HEALTHY: "good", HURT: "warn", DEAD: "bad", EARLY: "plain", NOTHING: "plain"}
KEY_NUMBERS = ("loss", "accuracy", "token_error", "code_perplexity", "prediction_perplexity")
LINES = (
    "Lines are training, dots on dashes held-out recordings. Dashed across: what a model reaches that learnt nothing."
)
HEAT = "The stronger the colour, the larger the share (by its square root), beside the largest of the map."
MANY = 40
"""So many keys that differ are folded away: they are of different methods."""


class Section(NamedTuple):
    """A part of the page with its place in the list of contents."""

    id: str
    title: str
    content: list[Element]


class Contents(NamedTuple):
    """All that a page is made of: for each run its verdict, its examples with a note, and perhaps a comparison."""

    runs: Sequence[RunFolder]
    verdicts: Sequence[Verdict]
    examples: Sequence[tuple[list[Example], str]]
    comparisons: Sequence[Comparison]
    audio: bool


def page_text(content: Contents) -> str:
    """The text of the HTML file."""
    sections = [
        Section("verdict", "Verdict", _verdicts(content)),
        Section("reference", "Against the reference", _comparisons(content)),
        *_learning(content.runs),
        Section("codes", "Codes and units in use", _codes(content.runs)),
        Section("updates", "Updates", _shared(panels.UPDATES, content.runs, "updates")),
        Section("speed", "Speed and waiting", _shared(panels.SPEED, content.runs, "speed")),
        Section("heard", "Hours heard", _heard(content.runs)),
        Section("probes", "Linear probes", _probes(content.runs)),
        Section("examples", "Examples", _examples(content)),
        Section("config", "Configs", _configs(content.runs)),
        Section("environment", "Environment", [_environment(content.runs)]),
        Section("other", "Other metrics", _others(content.runs)),
    ]
    sections = [section for section in sections if section.content]
    title = ", ".join(run.name for run in content.runs)
    page = tag(
        "html",
        tag(
            "head",
            tag("meta", charset="utf-8"),
            tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
            tag("title", f"{title}: report"),
            tag("style", (FOLDER / "page.css").read_text(encoding="utf-8")),
        ),
        tag(
            "body",
            tag(
                "header",
                tag("h1", title),
                tag("button", "colours: system", id="scheme", type="button", hidden="hidden"),
                tag("p", _summary(content), class_="note"),
            ),
            tag("nav", *(tag("a", section.title, href=f"#{section.id}") for section in sections)),
            tag("main", *(tag("section", tag("h2", s.title), *s.content, id=s.id) for s in sections)),
            tag("footer", f"Made by python -m w2v_jax.report of w2v_jax {VERSION}."),
            tag("script", (FOLDER / "page.js").read_text(encoding="utf-8")),
        ),
        lang="en",
    )
    return document(page)


def _summary(content: Contents) -> str:
    methods = sorted({run.config.method for run in content.runs})
    count = len(content.runs)
    return f"{count} {'run' if count == 1 else 'runs'} of {', '.join(methods)}"


def _verdicts(content: Contents) -> list[Element]:
    cards = [_card(n, run, v) for (n, run), v in zip(with_numbers(content.runs), content.verdicts, strict=True)]
    rows = []
    for name in KEY_NUMBERS:
        for split, words in (("train", "training"), ("eval", "held out")):
            last = [next((r for r in reversed(run.of_split(split)) if name in r), None) for run in content.runs]
            if any(last):
                cells = ["" if row is None else panels.number_text(row[name]) for row in last]
                rows.append([f"{name}, {words}", *cells])
    table = text_table(["newest value", *(run.name for run in content.runs)], rows) if rows else None
    return [tag("div", *cards, class_="cards"), *([tag("div", table, class_="card")] if table is not None else [])]


def _card(number: int, run: RunFolder, verdict: Verdict) -> Element:
    findings = [
        tag("p", tag("b", finding.name, class_=LOOKS[DEAD if finding.dead else HURT]), ": ", finding.message)
        for finding in verdict.now
    ]
    past = [tag("li", f"update {step:,}: {finding.name}. {finding.message}") for step, finding in verdict.past]
    damage = [
        tag("p", f"{count} damaged {'line' if count == 1 else 'lines'} of {file} left out.", class_="note")
        for file, count in run.damaged.items()
    ]
    earlier = tag("details", tag("summary", f"found on the way and gone again: {len(past)}"), tag("ul", *past))
    return tag(
        "div",
        tag("h3", swatch(number), run.name, ": ", tag("span", verdict.word, class_=f"word {LOOKS[verdict.word]}")),
        *(tag("p", sentence) for sentence in verdict.sentences),
        *findings,
        earlier if past else None,
        *damage,
        class_="card",
        id=f"verdict-{number}",
    )


def _comparisons(content: Contents) -> list[Element]:
    cards = []
    for (number, run), comparison in zip(with_numbers(content.runs), content.comparisons):
        rows = [
            [
                f"{row.metric} at update {row.step:,}",
                tag("span", row.word, class_=LOOKS[HEALTHY] if row.normal else LOOKS[HURT]),
                panels.number_text(row.value),
                f"{panels.number_text(row.low)} to {panels.number_text(row.high)}",
            ]
            for row in comparison.rows
        ]
        look = LOOKS[HEALTHY if comparison.normal else HURT]
        cards.append(
            tag(
                "div",
                tag("h3", swatch(number), run.name, ": ", tag("span", comparison.word, class_=f"word {look}")),
                tag("p", comparison.sentence),
                text_table(["held-out metric", "", "this run", "reference"], rows),
                class_="card",
            )
        )
    return cards


def _learning(runs: Sequence[RunFolder]) -> list[Section]:
    """One section a method: losses of different methods are not to be compared."""
    found = []
    for method in dict.fromkeys(run.config.method for run in runs):
        of_method = [(number, run) for number, run in with_numbers(runs) if run.config.method == method]
        word = panels.slug(method)
        figures = panels.figures(panels.LEARNING, of_method, f"learn-{word}")
        maps = [figure for number, run in of_method for figure in panels.ahead_maps(run, number)]
        if figures:
            content = [tag("p", LINES, class_="note"), tag("div", *figures, *maps, class_="panels")]
            found.append(Section(f"learning-{word}", f"Learning of {method}", content))
    return found


def _codes(runs: Sequence[RunFolder]) -> list[Element]:
    """Perplexities, and heat maps where the run kept how often each code was used."""
    figures = panels.figures(panels.CODES, with_numbers(runs), "codes")
    maps = [figure for number, run in with_numbers(runs) for figure in panels.usage_maps(run, number)]
    if not figures:
        return []
    lacking = [
        run.name for run in runs if not run.usage and any(p.metric in row for row in run.rows for p in panels.CODES)
    ]
    notes = [HEAT] if maps else []
    notes += [f"No usage.jsonl, and so no map: {', '.join(lacking)}."] if lacking else []
    return [*(tag("p", note, class_="note") for note in notes), tag("div", *figures, *maps, class_="panels")]


def _shared(chosen: Sequence[panels.Panel], runs: Sequence[RunFolder], place: str) -> list[Element]:
    figures = panels.figures(chosen, with_numbers(runs), place)
    return [tag("div", *figures, class_="panels")] if figures else []


def _heard(runs: Sequence[RunFolder]) -> list[Element]:
    corpora = [p for prefix in panels.HEARD for p in panels.family(runs, prefix, prefix.strip("/"))]
    return _shared(corpora, runs, "heard") or [tag("p", _hours_heard(run), class_="note") for run in runs]


def _hours_heard(run: RunFolder) -> str:
    """How much a run has heard of its one corpus, by its updates and its batch."""
    hours = run.config.data.batch_hours
    heard = run.step * hours
    text = f"{run.name}: {run.step:,} updates of up to {60 * hours:.3g} minutes of audio are up to {heard:,.3g} hours"
    if not (there := run.data.get("train_hours")):
        return f"{text}."
    return f"{text}, {heard / there:,.3g} times the {there:,.3g} hours of its recordings."


def _probes(runs: Sequence[RunFolder]) -> list[Element]:
    return _shared(panels.family(runs, panels.PROBED, "score"), runs, "probe")


def _others(runs: Sequence[RunFolder]) -> list[Element]:
    content = _shared(panels.other_metrics(runs), runs, "other")
    return [tag("details", tag("summary", "show them"), *content)] if content else []


def _examples(content: Contents) -> list[Element]:
    found = []
    for (number, run), (examples, note) in zip(with_numbers(content.runs), content.examples):
        found += [_example(number, place, e, audio=content.audio) for place, e in enumerate(examples, 1)]
        if note:
            found.append(tag("p", swatch(number), f"{run.name}: {note}.", class_="note"))
    explained = (
        f"Held-out recordings, at most their first {LONGEST:g} s, as loud as they may be. Grey: spans as the settings "
        "of masking hide them, drawn for this page. Equal codes of a group have equal colours, of which there are "
        "twenty."
    )
    return [tag("p", explained, class_="note"), *found] if found else []


def _example(number: int, place: int, example: Example, *, audio: bool) -> Element:
    cut = f", the first {LONGEST:g} s" if example.seconds > LONGEST else ""
    sound = data_uri("audio/flac", flac(example.wave)) if audio else ""
    words = [
        tag("p", tag("b", f"{name}: "), text)
        for name, text in (("reference", example.reference), ("hypothesis", example.hypothesis))
        if text is not None
    ]
    aligned = tag("details", tag("summary", "word by word"), tag("pre", example.alignment))
    return tag(
        "div",
        tag("h3", swatch(number), f"{example.id}, {example.seconds:.1f} s{cut}"),
        tag("p", f"model: {example.checkpoint}", class_="note"),
        tag("audio", controls="controls", preload="none", src=sound) if audio else None,
        tag("div", draw_example(example, f"example-{number}-{place}"), class_="scroll"),
        *words,
        aligned if example.alignment else None,
        class_="card example",
    )


def _configs(runs: Sequence[RunFolder]) -> list[Element]:
    flat = [flatten(run.config) for run in runs]
    content: list[Element] = []
    if len(runs) > 1:
        keys = sorted({key for other in flat[1:] for key, _, _ in differing_values(flat[0], other, absent="")})
        rows = [[key, *(_value(values, key) for values in flat)] for key in keys]
        names = [run.name for run in runs]
        differing = text_table(["key", *names], rows)
        if not rows:
            content.append(tag("p", "The configs are the same.", class_="note"))
        elif len(rows) > MANY:
            content.append(tag("details", tag("summary", f"the {len(rows)} keys that differ"), differing))
        else:
            content.append(tag("div", differing, class_="card"))
    for (number, run), values in zip(with_numbers(runs), flat):
        table = text_table(["key", "value"], [[key, _value(values, key)] for key in values])
        content.append(tag("details", tag("summary", swatch(number), f"config of {run.name}"), table))
    return content


def _value(values: Mapping[str, object], key: str) -> str:
    return repr(values[key]) if key in values else "(absent)"


def _environment(runs: Sequence[RunFolder]) -> Element:
    """The last start of each run, and its data. Runs of older versions kept no environment.jsonl."""
    names = sorted({name for run in runs for start in run.starts for name in start.get("versions", {})})
    about = {
        "started": lambda run, start: f"{start.get('time', '')}, start {len(run.starts)} of this folder",
        "command": lambda run, start: start.get("command", ""),
        "devices": lambda run, start: f"{start.get('devices', '')}, {start.get('processes', 1)} process(es)",
        **{name: lambda run, start, name=name: start.get("versions", {}).get(name, "") for name in names},
    }
    rows = [["folder", *(str(run.path) for run in runs)]]
    for name, text in about.items():
        rows.append([name, *(text(run, run.starts[-1]) if run.starts else "not recorded" for run in runs)])
    for part, words in (("train", "training data"), ("eval", "held-out data")):
        rows.append([words, *(_amount(run.data, part) for run in runs)])
    return tag("div", text_table(["", *(run.name for run in runs)], rows), class_="card")


def _amount(data: Mapping[str, object], part: str) -> str:
    rows, hours = data.get(f"{part}_rows"), data.get(f"{part}_hours")
    return "not recorded" if rows is None else f"{rows:,} recordings, {hours} h"
