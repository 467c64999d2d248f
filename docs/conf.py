"""Settings of Sphinx, which makes the documentation: `sphinx-build -W -c docs . site`.

The pages are plain Markdown that GitHub shows as well. What only the site has is put in when a page is read: the
contents, the code that a page names, and the reference pages, which `reference.py` makes of docstrings and configs.
"""

import pathlib
import re
import sys

import latex2mathml.converter
from docutils import nodes
from sphinx.util import logging

HERE = pathlib.Path(__file__).parent
ROOT = HERE.parent
sys.path[:0] = [str(ROOT), str(HERE)]

import reference  # noqa: E402  # beside this file

project, author, copyright = "w2v_jax", "the w2v_jax contributors", "the w2v_jax contributors, Apache-2.0"
extensions = ["myst_parser", "sphinx.ext.autodoc"]
root_doc = "docs/README"
include_patterns = ["*.md", "docs/**.md", "launch/README.md"]
exclude_patterns = [f.name for f in ROOT.iterdir() if f.is_dir() and f.name not in ("docs", "launch")]
myst_enable_extensions = ["attrs_inline", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
default_role = "code"  # docstrings are plain text with names in single backticks
autodoc_member_order = "bysource"
smartquotes = False
html_theme = "furo"
html_use_index = False
html_title = "w2v_jax"
html_static_path = ["style"]
html_css_files = ["pages.css"]
html_copy_source = False
html_show_sphinx = False
html_additional_pages = {"index": "first.html"}
templates_path = ["style"]
html_math_renderer = "mathml"


def add_contents(app, name, source):
    """Appends the contents to the first page, for the list at the side."""
    if name == root_doc:
        for caption, pages in reference.CONTENTS.items():
            source[0] += f"\n:::{{toctree}}\n:hidden:\n:caption: {caption}\n\n" + "\n".join(f"/{p}" for p in pages)
            source[0] += "\n:::\n"


def add_reference(app, name, source):
    """Replaces `<!-- made: NAME -->` by what `reference.py` makes."""
    source[0] = re.sub(r"<!-- made: (\w+) -->", lambda match: reference.MADE[match[1]](), source[0])


def add_code(app, name, source):
    """Shows the code that a line of its own names."""

    def shown(match):
        path, what = match["path"], match["name"]
        options = f":pyobject: {what}\n:lineno-match:\n:language: python\n:caption: '`{path}: {what}`'"
        return f":::{{literalinclude}} /{path}\n{options}\n:::"

    source[0] = reference.CODE.sub(shown, source[0])


def as_written(app, what, name, subject, options, lines):
    """Docstrings are plain text: stars are stars, and lists of indented lines stay as they are written."""
    if any(line.startswith("    ") for line in lines) and not any(line.startswith(">>>") for line in lines):
        lines[:] = [lines[0], "", "::", "", *(f"   {line}" for line in lines[2:])]
    else:
        lines[:] = [line if line.startswith(">>>") else line.replace("*", r"\*") for line in lines]


def show_math(self, node):
    """MathML, which browsers show without a script."""
    is_block = isinstance(node, nodes.math_block)
    formula = latex2mathml.converter.convert(node.astext(), display="block" if is_block else "inline")
    if "\\" in formula or "&amp;" in formula:
        logging.getLogger(__name__).warning("the converter does not know all of %s", node.astext(), location=node)
    self.body.append(f'<div class="formula">{formula}</div>' if is_block else formula)
    raise nodes.SkipNode


def setup(app):
    for change in (add_contents, add_reference, add_code):
        app.connect("source-read", change)
    app.connect("autodoc-process-docstring", as_written)
    app.add_html_math_renderer("mathml", (show_math, None), (show_math, None))
