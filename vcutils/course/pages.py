"""A widget that also carries a page: alive in a notebook, and readable where no kernel runs."""

import re
from html import escape
from pathlib import Path
from typing import Any

from IPython.display import display

NOTE = "This page needs no kernel. Where none is to be seen, run the notebook or open its exported HTML."


def with_page(widget: Any, html: str, height: int = 720) -> None:
    """Display a widget where a kernel runs, and in its place the page `html` wherever the notebook is only read.

    One output holds both forms: a live notebook takes the widget, exported HTML takes the page. The page is a whole
    HTML document without other files, `height` pixels high; its scripts run in a sandbox, apart from the notebook.
    """
    bundle = widget._repr_mimebundle_()  # anywidget adds metadata, ipywidgets does not
    data, metadata = bundle if isinstance(bundle, tuple) else (bundle, {})
    display({**data, "text/html": frame(html, height)}, metadata=metadata, raw=True)


def frame(html: str, height: int) -> str:
    """A page inside a page: an iframe that holds the whole document `html` and has no rights beyond its own scripts."""
    page = _quoted(html)
    style = f"width:100%;height:{height}px;border:1px solid rgba(128,128,128,.4);border-radius:8px"
    opening = f"<iframe sandbox='allow-scripts' title='interactive page' style='{style}' srcdoc='{page}'>"
    return f"<p style='font-size:85%;opacity:.75'>{NOTE}</p>{opening}</iframe>"


def with_model(html: str, saved: Path) -> str:
    """An exported notebook in whose explorer frames can be hidden: the page that `save` wrote stands in its place.

    The notebook itself carries a page without the model, to stay small. Unchanged where nothing was saved.
    """
    if not saved.is_file():
        return html
    page = _quoted(saved.read_text("utf-8"))
    return re.sub("(?<= srcdoc=')[^']*&lt;title&gt;Attention explorer&lt;[^']*", lambda _: page, html)


def _quoted(page: str) -> str:
    return escape(page, quote=False).replace("'", "&#39;")  # in single quotes: JSON is full of double ones
