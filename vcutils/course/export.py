"""Executed notebooks as HTML that needs no network and no kernel: `python -m vcutils.course.export FOLDER`.

nbconvert's own pages fetch MathJax and more from other hosts. Here formulas are MathML, which browsers draw themselves;
an output that is a widget is shown by its HTML form; and the page follows the reader's light or dark setting.
"""

import re
import sys
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import nbformat
from jinja2 import DictLoader, pass_context
from latex2mathml.converter import convert
from nbconvert import HTMLExporter
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath

from vcutils.course.pages import with_model
from vcutils.runtime.files import write_text

WIDGET = "application/vnd.jupyter.widget-view+json"
PAGE = """
{%- extends 'lab/index.html.j2' -%}
{%- block html_head_js -%}{%- endblock -%}
{%- block html_head_js_mathjax -%}{%- endblock -%}
{%- block html_head_js_mermaidjs -%}{%- endblock -%}
{%- block jupyter_widgets -%}{%- endblock -%}
{%- block html_head_css -%}
<style media="(prefers-color-scheme: dark)">{{ dark_theme() }}</style>
<style>
:root { color-scheme: light dark; }
math { font-family: "Latin Modern Math", "STIX Two Math", "Cambria Math", "DejaVu Math TeX Gyre", math; }
mtd[columnalign="right"] { text-align: right; text-align: -webkit-right; padding-right: 0; }
mtd[columnalign="left"] { text-align: left; padding-left: 0; }
math[display="block"] { margin: 1em 0; font-size: 1.15em; overflow-x: auto; overflow-y: hidden; }
.jp-RenderedSVG img, .jp-RenderedImage img { border-radius: 8px; }
.jp-RenderedSVG img { max-width: 100%; height: auto; }
</style>
{%- endblock -%}
"""


def export_html(paths: Sequence[Path], out: Path) -> list[Path]:
    """Write each notebook as one self-contained HTML file into the folder `out`, whole or not at all.

    The explorer carries the model where notebook 05 has saved it so: runs/default beside `out`.
    Returns the files. Raises UserError when one cannot be written.
    """
    pages, exporter, saved = [], OfflineExporter(), out.parent / "runs/default/attention/explorer.html"
    for path in paths:
        resources = {"metadata": {"name": path.stem, "path": str(path.parent)}}
        notebook = without_widgets(nbformat.read(path, as_version=4), saved)
        html, _ = exporter.from_notebook_node(notebook, resources)
        pages.append(out / f"{path.stem}.html")
        write_text(pages[-1], html)
    return pages


def without_widgets(notebook: Any, saved: Path | None = None) -> Any:
    """The notebook with every widget replaced by the other forms that its output carries: HTML, picture or text.

    An explorer's HTML is the `saved` page, where there is one.
    """
    notebook.metadata.pop("widgets", None)
    for cell in notebook.cells:
        for output in cell.get("outputs", ()):
            forms = output.get("data", {})
            forms.pop(WIDGET, None)
            if saved and "text/html" in forms:
                forms["text/html"] = with_model(forms["text/html"], saved)
    return notebook


class MathRenderer(IPythonRenderer):
    """Markdown with its formulas as MathML. Code is not looked at, so a `$` there stays one."""

    def inline_math(self, body: str) -> str:
        """A formula within a line."""
        return mathml(body, "inline")

    def block_math(self, body: str) -> str:
        """A formula on a line of its own."""
        return mathml(body, "block")

    def latex_environment(self, name: str, body: str) -> str:
        """A formula written as an environment."""
        return mathml(f"\\begin{{{name}}}{body}\\end{{{name}}}", "block")


def mathml(formula: str, display: str) -> str:
    """A LaTeX formula as MathML; one that latex2mathml cannot read stays visible as code, and is named on stderr."""
    latex = formula.strip().replace("{aligned}", "{split}")  # the same environment; it knows the second name only
    try:
        result, problem = _thin_spaces(convert(latex, display=display)), ""
    except Exception as error:  # its parser raises many kinds, some of them Python's own
        result, problem = "", type(error).__name__
    if unknown := re.search(r"<mi>(\\\w+|&)</mi>", result):
        problem = f"unknown: {unknown[1]}"
    if problem:
        print(f"not drawn as a formula: {formula.strip()!r} ({problem})", file=sys.stderr)
        return f"<code>{escape(formula)}</code>"
    return result


def _thin_spaces(formula: str) -> str:
    """MathML with a thin space on both sides of log, tanh and the like, as LaTeX sets them."""
    space, name = '<mspace width="0.17em"/>', r"<mi>[a-z]{2,}</mi>"
    formula = re.sub(rf"(</(?:mi|mn|msub|msup)>)(?={name})", rf"\1{space}", formula)
    return re.sub(rf"({name})(?=<(?:mi|mn|msub|msup)>)", rf"\1{space}", formula)


class OfflineExporter(HTMLExporter):
    """nbconvert's page without a script, with MathML and with both themes."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(extra_loaders=[DictLoader({"offline.html.j2": PAGE})], **settings)
        self.template_file, self.embed_images = "offline.html.j2", True
        dark = "lab/static/theme-dark.css"
        self.environment.globals["dark_theme"] = lambda: self.environment.loader.get_source(self.environment, dark)[0]

    @pass_context
    def markdown2html(self, context: Any, source: str) -> str:
        """As in nbconvert, with MathML in place of LaTeX."""
        renderer = MathRenderer(
            escape=False,
            attachments=context.get("cell", {}).get("attachments", {}),
            embed_images=True,
            path=context.get("resources", {}).get("metadata", {}).get("path", ""),
            anchor_link_text=self.anchor_link_text,
        )
        return MarkdownWithMath(renderer=renderer).render(source)


def main(arguments: Sequence[str]) -> int:
    """Export every notebook of a folder beside itself; 2 when there is none."""
    folder = Path(*arguments[:1])
    paths = sorted(folder.glob("*.ipynb"))
    if len(arguments) != 1 or not paths:
        print("use: python -m vcutils.course.export FOLDER, a folder with executed notebooks", file=sys.stderr)
        return 2
    export_html(paths, folder)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
