"""HTML and SVG: texts are escaped, ids are unique, colours follow the scheme, nothing refers to another place."""

import re

import pytest

from w2v_jax.reporting import markup
from w2v_jax.reporting.markup import document, new_figure, svg, tag, text_table


def test_texts_are_escaped_and_attributes_are_those_of_html():
    text = document(tag("p", "a < b & ", tag("b", "<i>"), " c", class_="x", aria_label='"', for_="y"))
    assert text == ('<!DOCTYPE html>\n<p class="x" aria-label="&quot;" for="y">a &lt; b &amp; <b>&lt;i&gt;</b> c</p>\n')
    assert document(tag("script", "a < b && c")).endswith("<script>a < b && c</script>\n")
    table = document(text_table(["x", "y"], [["a", tag("b", "1")]]))
    assert '<th scope="row">a</th><td><b>1</b></td>' in table


def drawing(name, **titles):
    with new_figure(3, 2) as figure:
        ax = figure.add_subplot()
        ax.plot([0, 1], [2, 3], color=markup.RUNS[1], gid="line-x")
        ax.fill_between([0, 1], [0, 1], color=markup.RUNS[0])
        ax.imshow([[0.0, 1.0]], extent=(0, 1, 2, 3))
        ax.set_title("a title")
        return svg(figure, name, "what it shows", titles=titles)


def test_colours_are_variables_and_fonts_those_of_the_page():
    text = document(drawing("one"))
    assert "var(--run-2)" in text and "var(--muted)" in text and "var(--ink)" in text
    known = set(markup.VARIABLES)
    assert not known & set(re.findall(r"#[0-9a-f]{6}", text)) and "DejaVu" not in text and "#000000" not in text
    assert "a title</text>" in text, "texts stay texts"
    assert "<style" not in text and "metadata" not in text


def test_two_figures_share_no_id_and_refer_to_their_own():
    one, other = drawing("one", **{"line-x": "a line"}), drawing("two")
    ids = [[node.get("id") for node in root.iter() if node.get("id")] for root in (one, other)]
    assert not set(ids[0]) & set(ids[1]) and len(set(ids[0])) == len(ids[0])
    for root, found in zip((one, other), ids):
        text = document(root)
        referred = re.findall(r'(?:url\(|href=")#([^)"]+)', text)
        assert referred and set(referred) <= set(found)
        assert not re.search(r'(?:href|src)="(?!#|data:)', text) and "http" not in text
    line = next(node for node in one.iter() if node.get("id") == "line-x")
    assert line[0].tag == "title" and line[0].text == "a line"
    assert "line-x" not in ids[1], "only parts with a title keep their name"


def test_a_figure_scales_and_says_what_it_shows():
    root = drawing("one")
    assert root.get("viewBox") == "0 0 216 144" and root.get("width") is None
    assert (root.get("role"), root.get("aria-label")) == ("img", "what it shows")


@pytest.mark.parametrize("content", [b"", b"abc"])
def test_a_file_becomes_an_address(content):
    import base64

    kind, _, rest = markup.data_uri("audio/flac", content).partition(";base64,")
    assert kind == "data:audio/flac" and base64.b64decode(rest) == content
