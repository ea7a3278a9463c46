"""Sphinx' settings for the site. `make_site.py` beside this file lays out the pages and calls Sphinx."""

import re
import sys
from pathlib import Path

from docutils import nodes
from sphinx.application import Sphinx

sys.path.insert(0, str(Path(__file__).parents[2]))

from vcutils import __version__
from vcutils.course.export import WIDGET, mathml

project, html_title, release = "vcutils", "Video captioning with attention", __version__
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.viewcode"]
root_doc, default_role = "README", "code"  # docstrings put code between single backticks
html_theme, html_copy_source, html_show_sphinx, html_show_copyright = "furo", False, False, False
html_static_path, html_css_files = [str(Path(__file__).parent / "static")], ["site.css"]
html_math_renderer = "mathml"
autodoc_member_order, autodoc_preserve_defaults = "bysource", True
python_maximum_signature_line_length = 100
highlight_language = "text"  # a block is not Python unless it says so; cells do
nb_execution_mode = "off"  # the committed outputs are shown
nb_ipywidgets_js: dict[str, dict[str, str]] = {}  # they come from other hosts
nb_mime_priority_overrides = [("html", WIDGET, None)]  # a widget is shown by its HTML form
nb_render_markdown_format = "myst"  # plain CommonMark has no tables
nb_merge_streams = True
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3


def inline_math(writer: object, node: nodes.math) -> None:
    """A formula within a line, as MathML."""
    writer.body.append(mathml(node.astext(), "inline"))
    raise nodes.SkipNode


def block_math(writer: object, node: nodes.math_block) -> None:
    """A formula on a line of its own, as MathML."""
    writer.body.append(f'<div class="math">{mathml(node.astext(), "block")}</div>')
    raise nodes.SkipNode


def as_plain_text(app: Sphinx, what: str, name: str, target: object, options: object, lines: list[str]) -> None:
    """Docstrings are plain text with code between backticks; indented lines are tables and diagrams, as they stand."""
    sign = re.compile(r"(``.*?``|`[^`]*`|^ {4}[^\n]*$)|([*|_\\])", re.M | re.S)
    lines[:] = sign.sub(lambda found: found[1] or "\\" + found[2], "\n".join(lines)).split("\n")
    for n in range(len(lines) - 1, 1, -1):
        if lines[n].startswith("    ") and not lines[n - 1].strip() and not lines[n - 2].startswith("    "):
            lines[n:n] = ["::", ""]


def without_field_numbers(_: Sphinx, what: str, name: str, target: object, skip: bool, options: object) -> bool | None:
    """A named tuple's fields stand in its signature; that one of them is number 0 tells nothing."""
    return True if (getattr(target, "__doc__", None) or "").startswith("Alias for field number") else None


def setup(app: Sphinx) -> None:
    """Formulas without a script: browsers draw MathML themselves."""
    app.add_html_math_renderer("mathml", (inline_math, None), (block_math, None))
    app.connect("autodoc-process-docstring", as_plain_text)
    app.connect("autodoc-skip-member", without_field_numbers)
