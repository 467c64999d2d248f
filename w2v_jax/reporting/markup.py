"""HTML as a tree of elements, so that every text is escaped, and figures of matplotlib as a part of it.

A figure is inline SVG. Its colours become the variables of page.css, so that it follows the colour scheme, and its
texts stay texts. Nothing in it refers to another place.
"""

from __future__ import annotations

import contextlib
import io
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import quote

Element = ET.Element
Child = Element | str

RUNS = ("#2b6cb0", "#c05621", "#2f855a", "#805ad5", "#b7791f", "#c53030", "#0987a0", "#b83280")
"""A colour for each run of a page."""
INK, MUTED, LINE = "#1a202c", "#718096", "#e2e8f0"
VARIABLES = {colour: f"var(--run-{number})" for number, colour in enumerate(RUNS, 1)}
VARIABLES |= {INK: "var(--ink)", MUTED: "var(--muted)", LINE: "var(--line)"}
"""What page.css calls each colour. Light and dark have values of their own there."""
STYLE: dict[Any, Any] = {
    "text.color": INK,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": MUTED,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "grid.color": LINE,
    "grid.linewidth": 0.8,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.formatter.useoffset": False,
    "font.size": 9,
    "svg.fonttype": "none",
}
"""Settings of matplotlib for the figures of a page."""


def tag(name: str, /, *children: Child | None, **attributes: Any) -> Element:
    """<name attributes>children</name>. In the names of attributes `_` stands for `-`, and `class_` for `class`."""
    element = ET.Element(name, {key.rstrip("_").replace("_", "-"): str(value) for key, value in attributes.items()})
    for child in children:
        if isinstance(child, str):
            _append_text(element, child)
        elif child is not None:
            element.append(child)
    return element


def _append_text(element: Element, text: str) -> None:
    if len(element):
        element[-1].tail = (element[-1].tail or "") + text
    else:
        element.text = (element.text or "") + text


def text_table(head: list[str], rows: Sequence[Sequence[Child]], **attributes: Any) -> Element:
    """A table that scrolls sideways where the page is narrow. The first cell of each row is its header."""
    top = tag("thead", tag("tr", *(tag("th", cell, scope="col") for cell in head))) if head else None
    body = (tag("tr", tag("th", row[0], scope="row"), *(tag("td", cell) for cell in row[1:])) for row in rows)
    return tag("div", tag("table", top, tag("tbody", *body), **attributes), class_="scroll")


def document(root: Element) -> str:
    """The text of an HTML file."""
    return "<!DOCTYPE html>\n" + ET.tostring(root, encoding="unicode", method="html") + "\n"


@contextlib.contextmanager
def new_figure(width: float, height: float) -> Iterator[Any]:
    """An empty figure of so many inches in the style of the page. `svg` makes it an element, within the block."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        yield Figure(figsize=(width, height), dpi=100, layout="constrained")


def svg(figure: Any, name: str, label: str, *, titles: Mapping[str, str] | None = None) -> Element:
    """A figure as an <svg>. name: one word, unlike those of the other figures of the page. label: what it shows.

    titles: {gid of a part: what the browser shows where a mouse rests on it}. Only such parts keep their ids.
    """
    import matplotlib

    buffer, titles = io.BytesIO(), titles or {}
    with matplotlib.rc_context({"svg.hashsalt": name}):
        figure.get_layout_engine().execute(figure)  # once more while saving: the first round may change the ticks
        figure.savefig(buffer, format="svg", transparent=True)
    reference = r'(?:href="#|url\(#)'
    text = re.sub(reference, rf"\g<0>{name}-", buffer.getvalue().decode())
    root, used = ET.fromstring(text), set(re.findall(rf'{reference}{name}-([^)"]*)', text))
    for node in root.iter():
        node.tag, node.tail = node.tag.rpartition("}")[2], None
        node.text = (node.text or "").strip() or None
        node.attrib = {key.rpartition("}")[2]: _themed(key, value) for key, value in node.attrib.items()}
    for parent in list(root.iter()):
        for child in parent.findall("metadata") + parent.findall("style"):  # a style would be that of the whole page
            parent.remove(child)
    for node in root.iter():
        id = node.attrib.pop("id", "")
        if id in titles:
            node.insert(0, tag("title", titles[id]))
            node.set("id", id)
        elif id in used:
            node.set("id", f"{name}-{id}")
    for key in ("width", "height", "version"):
        root.attrib.pop(key, None)
    root.attrib |= {"role": "img", "aria-label": label}
    return root


def _themed(key: str, value: str) -> str:
    """An attribute with our variables in place of colours, without the names of fonts, and with short numbers."""
    if key.endswith("href"):
        return value
    value = re.sub(r"#[0-9a-f]{6}\b", lambda match: VARIABLES.get(match[0], match[0]), value)
    value = re.sub(r"\d+\.\d{3,}", lambda match: f"{float(match[0]):.2f}", value)
    return re.sub(r"font-family: [^;]*", "font-family: inherit", value)


def data_uri(kind: str, content: bytes) -> str:
    """A file as an address of its own, e.g. kind "audio/flac"."""
    import base64

    return f"data:{quote(kind)};base64,{base64.b64encode(content).decode()}"
