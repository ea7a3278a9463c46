"""A widget that also carries a page: alive in a notebook, and readable where no kernel runs."""

from html import escape
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
    page = escape(html, quote=False).replace("'", "&#39;")  # in single quotes: JSON is full of double ones
    style = f"width:100%;height:{height}px;border:1px solid rgba(128,128,128,.4);border-radius:8px"
    opening = f"<iframe sandbox='allow-scripts' title='interactive page' style='{style}' srcdoc='{page}'>"
    return f"<p style='font-size:85%;opacity:.75'>{NOTE}</p>{opening}</iframe>"
