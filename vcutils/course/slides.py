"""Slides for the six sessions, from notebooks with their outputs: `python -m vcutils.course.slides NOTEBOOKS OUT`.

A deck is one HTML file that needs no network. A heading begins a slide with its lists, formulas and tables;
**Predict** has one to itself; an output is shown with the sentence that reads it; code is shown where a cell has no
output. The other paragraphs are speaker's notes (key N). Arrows, space and a swipe turn pages; printing gives a page
per slide.
"""

import re
import sys
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

import nbformat
from nbconvert.filters.markdown_mistune import MarkdownWithMath
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer

from vcutils.course.export import MathRenderer, without_widgets
from vcutils.runtime.files import write_text
from vcutils.runtime.settings import UserError


class Session(NamedTuple):
    """A session of 90 minutes: its number and title, its notebook, and the headings where its part begins and ends."""

    number: int
    title: str
    notebook: str
    begin: str = ""
    end: str = "Exercises"


MIDDLE = "Teacher forcing, and the loss before training"  # notebook 3 is two sessions
SESSIONS = (
    Session(1, "Features", "01_extract"),
    Session(2, "Data, splits and masks", "02_vocab"),
    Session(3, "Attention and the decoder", "03_train", end=MIDDLE),
    Session(4, "Training and controls", "03_train", begin=MIDDLE),
    Session(5, "Decoding and scores", "04_evaluate"),
    Session(6, "Can attention be believed?", "05_attention"),
)
LINES = 24  # of text or code on a slide
PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{title}</title><style>
:root {{ color-scheme: light dark;
  --paper: #fdfcfa; --ink: #1d1c1a; --soft: #66625b; --line: #d8d2c6; --mark: #a65400; }}
@media (prefers-color-scheme: dark) {{
  :root {{ --paper: #16171a; --ink: #eceae5; --soft: #a5a29b; --line: #3b3d42; --mark: #ffb454; }} {dark}
}}
@media (prefers-color-scheme: light) {{ {light} }}
html {{ scroll-snap-type: y mandatory; background: var(--paper); color: var(--ink);
  font: clamp(15px, 1.9vw, 27px)/1.45 system-ui, "DejaVu Sans", sans-serif; }}
body {{ margin: 0; }}
section {{ box-sizing: border-box; height: 100vh; height: 100dvh; padding: 4vh 6vw 7vh; overflow: auto;
  scroll-snap-align: start; display: flex; flex-direction: column; justify-content: safe center; position: relative; }}
section > * {{ flex-shrink: 0; max-width: 100%; }}
h1 {{ font-size: 2.2em; margin: 0 0 .3em; }} h2 {{ font-size: 1.35em; margin: 0 0 .6em; }}
.small {{ font-size: .8em; color: var(--soft); font-weight: 600; margin-bottom: .8em; }}
.predict {{ font-size: 1.35em; border-left: .25em solid var(--mark); padding-left: 1em; }}
.page {{ position: absolute; right: 2vw; bottom: 2vh; color: var(--soft); font-size: .6em; }}
.notes {{ display: none; color: var(--soft); font-size: .7em; border-top: 1px solid var(--line); margin-top: 1em; }}
body.speaker .notes {{ display: block; }}
pre {{ font: 1em/1.45 "DejaVu Sans Mono", monospace; overflow-x: auto; margin: .4em 0; }}
code {{ font-size: .88em; }} pre code {{ font-size: 1em; }}
img {{ max-width: 100%; max-height: 58vh; object-fit: contain; align-self: center; border-radius: 8px;
  background: #fff; }}
svg {{ max-height: 60vh; align-self: center; }}
iframe {{ width: 100%; height: 72vh !important; border: 0; }}
table {{ border-collapse: collapse; font-size: .68em; display: block; overflow-x: auto; }}
td, th {{ padding: .25em .7em; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }}
math {{ font-family: "Latin Modern Math", "STIX Two Math", "Cambria Math", "DejaVu Math TeX Gyre", math; }}
math[display="block"] {{ margin: .6em 0; overflow-x: auto; }} li {{ margin: .35em 0; }} a {{ color: var(--mark); }}
.anchor-link {{ display: none; }}
@media print {{ section {{ break-after: page; }} @page {{ size: 297mm 167mm; margin: 0; }} }}
</style><body>{slides}<script>
const slides = [...document.querySelectorAll("section")];
const shrink = (box, most, least, tooLarge) => {{
  for (let size = most; box.style.fontSize = size + "%", tooLarge() && size > least; size -= 5);
}};
const fit = () => slides.forEach(slide => {{
  slide.querySelectorAll("pre").forEach(pre => {{
    pre.style.whiteSpace = "";
    shrink(pre, 90, 60, () => pre.scrollWidth > pre.clientWidth);
    if (pre.scrollWidth > pre.clientWidth) pre.style.whiteSpace = "pre-wrap";
  }});
  shrink(slide, 100, 45, () => slide.scrollHeight > slide.clientHeight + 2);
}});
const turn = step => {{
  const at = slides.findIndex(slide => slide.getBoundingClientRect().bottom > innerHeight / 2);
  slides[Math.min(Math.max(at + step, 0), slides.length - 1)].scrollIntoView();
}};
addEventListener("keydown", event => {{
  const step = {{ArrowRight: 1, ArrowDown: 1, PageDown: 1, " ": 1, ArrowLeft: -1, ArrowUp: -1, PageUp: -1}}[event.key];
  if (step) {{ event.preventDefault(); turn(step); }}
  if (event.key === "n") {{ document.body.classList.toggle("speaker"); fit(); }}
}});
addEventListener("resize", fit); addEventListener("load", fit);
</script>"""


def write_slides(notebooks: Path, out: Path) -> list[Path]:
    """Write a deck for each session and `index.html` into the folder `out`.

    Returns the files. Raises UserError where a notebook is missing or lacks a session's heading.
    """
    files, entries = [], []
    for session in SESSIONS:
        path = notebooks / f"{session.notebook}.ipynb"
        if not path.is_file():
            raise UserError(f"no notebook {path}: name the folder with the five notebooks")
        cells = without_widgets(nbformat.read(path, as_version=4)).cells
        name = f"Session {session.number} · {session.title}"
        slides = [f"<h1>{name}</h1><p>from notebook {session.notebook}</p>", *_slides(_part(cells, session, path))]
        files.append(out / f"session{session.number}.html")
        write_text(files[-1], _page(name, slides))
        entries.append(f'<li><a href="{files[-1].name}">{name}</a> ({len(slides)} slides)</li>')
    keys = "<p>Arrows or space turn pages, N shows the speaker's notes, the browser's printing makes a PDF.</p>"
    write_text(out / "index.html", _page("Slides", [f"<h1>Slides</h1><ol>{''.join(entries)}</ol>{keys}"]))
    return [*files, out / "index.html"]


def _page(title: str, slides: Sequence[str]) -> str:
    numbered = (f'<section>{slide}<div class="page">{n}</div></section>' for n, slide in enumerate(slides, 1))
    light, dark = (HtmlFormatter(style=name).get_style_defs(".highlight") for name in ("friendly", "github-dark"))
    light, dark = (re.sub(r"background(-color)?:[^;}]*;?", "", css) for css in (light, dark))
    return PAGE.format(title=escape(title), light=light, dark=dark, slides="\n".join(numbered))


def _part(cells: Sequence[Any], session: Session, path: Path) -> Iterator[Any]:
    """A session's cells as blocks of Markdown (str) and code cells, without the notebook's opening cell."""
    inside, missing = not session.begin, {session.begin, session.end} - {""}
    for cell in cells[2:]:  # title and set-up
        if cell.cell_type == "code" and inside:
            yield cell
        for block in _blocks(cell.source) if cell.cell_type == "markdown" else ():
            if heading := re.match(r"#+ (.*)", block):
                inside = heading[1] != session.end and (inside or heading[1] == session.begin)
                missing.discard(heading[1])
            if inside:
                yield block
    if missing:
        raise UserError(f"{path} has no heading {' and no '.join(map(repr, sorted(missing)))}, which a session needs")


def _blocks(markdown: str) -> list[str]:
    """Paragraphs, lists, formulas and tables; a fence of code is one block."""
    fenced = re.split(r"^(```.*?^```)$", markdown, flags=re.M | re.S)
    return [b for n, text in enumerate(fenced) for b in ([text] if n % 2 else re.split(r"\n\s*\n", text.strip())) if b]


def _slides(blocks: Iterator[Any]) -> Iterator[str]:
    """The slides' HTML. A block is a paragraph until its first sign says what else it is."""
    heading, body, notes, output, read = "", "", "", False, False  # an output stands with the sentence that reads it

    def slide() -> str:
        aside = f'<div class="notes">{notes}</div>' if notes else ""
        return f"{heading}{body}{aside}"

    for block in blocks:
        code = not isinstance(block, str)
        title, predict = (None, False) if code else (re.match(r"#+ (.*)", block), block.startswith("**Predict**"))
        listed = not code and bool(re.match(r"[-|$]|\d\. ", block))
        if body and (code or title or predict or (listed and output)):
            yield slide()
            body, notes, output, heading = "", "", False, heading.replace("<h2>", '<h2 class="small">')
        if code:
            *before, body = _cell(block)
            yield from (heading + part for part in before)
            output, read = bool(block.outputs), False
        elif title:
            heading, notes = f"<h2>{_html(title[1], inline=True)}</h2>", ""
        elif predict:
            body = f'<div class="predict">{_html(block)}</div>'
        elif listed or (output and not read):
            body, read = body + _html(block), output
        else:
            notes += _html(block)
    if body:
        yield slide()


def _html(markdown: str, inline: bool = False) -> str:
    html = MarkdownWithMath(renderer=MathRenderer(escape=False)).render(markdown)
    return re.sub(r"</?p>", "", html).strip() if inline else html


def _cell(cell: Any) -> list[str]:
    """A cell's outputs, one picture a slide; its code where it has none."""
    if not cell.outputs:
        return [highlight(_short(cell.source), PythonLexer(), HtmlFormatter())]
    parts, pictured = [""], False
    for output in cell.outputs:
        shown, picture = _output(output)
        if picture and pictured:
            parts.append("")
        parts[-1] += shown
        pictured |= picture
    return parts


def _output(output: Any) -> tuple[str, bool]:
    """An output's HTML, and whether it is a picture or a page that needs a slide of its own."""
    data = output.get("data", {})
    if "text/html" in data:
        return data["text/html"], True
    if "image/svg+xml" in data:
        return re.sub(r"^.*?(?=<svg)", "", data["image/svg+xml"], flags=re.S), True
    if "image/png" in data:
        return f'<img alt="" src="data:image/png;base64,{data["image/png"].strip()}">', True
    if "text/markdown" in data:
        return _html(data["text/markdown"]), False
    text = output.get("text", data.get("text/plain", "")).strip("\n")
    return f"<pre>{escape(_short(text))}</pre>" if text else "", False


def _short(text: str) -> str:
    """At most so many lines as a slide holds."""
    lines = text.strip("\n").splitlines()
    return "\n".join(lines[:LINES] + ["…"] * (len(lines) > LINES))


def main(arguments: Sequence[str]) -> int:
    """Write the decks; 2 on wrong use."""
    if len(arguments) != 2:
        print("use: python -m vcutils.course.slides NOTEBOOKS OUT, two folders", file=sys.stderr)
        return 2
    try:
        print(write_slides(Path(arguments[0]), Path(arguments[1]))[-1])
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
