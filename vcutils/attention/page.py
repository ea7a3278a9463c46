"""One self-contained HTML page of clips with their captions.

The page needs no network, no kernel and no other file. Captions, ids and file names reach it only as JSON, and its
script shows them only as text; its Content-Security-Policy allows that one script, data: pictures and, with the model,
a worker of the script's own making.
"""

import base64
import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from vcutils.attention.embed import caption_content, clip_content, feature_content, model_content, rounded
from vcutils.attention.views import View, corpus_clip, file_clip, table_rows, with_captions, with_ciders, with_needs
from vcutils.config import DecodeConfig, UserError
from vcutils.runtime.files import sweep, write_text
from vcutils.scores.runs import Run


def page_for(
    run: Run,
    clips: Sequence[str | Path | View],
    out: Path | str,
    decode: DecodeConfig,
    beside: Run | None = None,
    model: bool = True,
) -> list[str]:
    """Write one page of clips: ids of the run's corpus, which go first, paths of any video files, or opened ones.

    `beside` is another run, whose captions of the same clips stand beside those of the first. With `model` the page
    carries the captioners of all runs: what it shows is then what the weights say once rounded to float16.
    Returns a line for every clip that had to be left out. Raises UserError, and writes nothing, when that is all.
    """
    views: list[View] = []
    problems = []
    runs = [run] if beside is None else [run, beside]
    if model:
        runs = [replace(each, model=rounded(each.model)) for each in runs]
    for clip in clips:
        try:
            opened = replace(clip, beams=()) if isinstance(clip, View) else _open(run, str(clip))
            if model:
                opened = replace(opened, features=opened.features.half().float())
            views += [with_needs(r, with_captions(r, opened, decode, opened.hidden, opened.start)) for r in runs]
        except UserError as error:
            problems.append(str(error))
    if not views:
        raise UserError("\n".join(["no page written: none of the clips can be shown", *problems]))
    if beside:
        views = [replace(v, title=f"{v.title} · {runs[n % 2].folder.name}") for n, v in enumerate(views)]
    models = [model_content(each.model, each.vocabulary, decode) for each in runs] if model else []
    save_page(out, with_ciders(run, views), models)
    return problems


def _open(run: Run, clip: str) -> View:
    if clip in run.data.store.ids:
        return corpus_clip(run, clip)
    if not os.path.exists(clip):
        raise UserError(f"{clip}: neither a clip of {run.data.root.name} nor a file")
    return file_clip(run, Path(clip))


def save_page(path: Path | str, views: Sequence[View], models: Sequence[dict[str, Any]] = ()) -> Path:
    """Write `page_html` to a file, whole or not at all. Raises its ValueError."""
    page = page_html(views, models)
    sweep(Path(path).parent, f".lock-.tmp-*{Path(path).suffix}")
    write_text(Path(path), page)
    return Path(path)


def page_html(views: Sequence[View], models: Sequence[dict[str, Any]] = ()) -> str:
    """One HTML page that shows the views, with a chooser when there are several.

    With `models` (what captioner.js reads), of which the views are in turn, and views that have `features`, the page
    captions them again by itself: other frames hidden, other words, another beam size. Raises ValueError when there is
    no view, or when the parts of one do not fit together.
    """
    if not views:
        raise ValueError("a page needs at least one clip to show")
    page, data = source("page.html"), []
    for tag, part in (("style", source("view.css")), ("script", script(*["captioner.js"] * bool(models)))):
        page = page.replace(f"/* THE {tag.upper()} */", part)  # its policy names both by their hashes
        inside = page.rpartition(f"</{tag}>")[0].rpartition(f"<{tag}")[2].partition(">")[2]
        digest = base64.b64encode(hashlib.sha256(inside.encode("utf-8")).digest()).decode("ascii")
        page = page.replace(f"HASH-OF-{tag.upper()}", digest)
    for view in views:
        features = {"features": feature_content(view.features)} if models else {}
        content = clip_content(view, len(views)) | caption_content(view) | {"needs": view.needs}
        data.append(_embed(content | features))
    data.insert(0, _embed(table_rows(views)))
    if models:
        page = page.replace("base-uri", "worker-src blob:; base-uri", 1)
        data += [_embed(model, ' class="model"') for model in models]
    return page.replace("<!-- DATA -->", "\n".join(data))


def script(*more: str) -> str:
    """The front end as one ES module: view.js, pages.js, and other files of this folder before them."""
    return "\n".join(map(source, [*more, "view.js", "pages.js"]))


def source(name: str) -> str:
    """The text of a file of this folder."""
    return Path(__file__).with_name(name).read_text("utf-8")


def _embed(value: Any, attribute: str = "") -> str:
    """A script element of JSON: plain ASCII, and nothing in it can end the element."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    text = text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")
    return f'<script type="application/json"{attribute}>{text}</script>'
