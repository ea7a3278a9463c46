"""A canvas for pictures made by code: boxes, lines, texts and images on a white card, as SVG."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from html import escape
from pathlib import Path
from unicodedata import east_asian_width

import numpy as np
from matplotlib import get_data_path
from PIL import ImageFont

from vcutils.attention.embed import jpeg_uri
from vcutils.runtime.files import write_text

INK, QUIET, LINE, CARD = "#1d1c1a", "#66625b", "#cfc9bd", "#ffffff"
BLUE, AMBER, GREEN, GREY = (
    ("#e3eefb", "#2f6fb0"),
    ("#fdf0d5", "#b86200"),
    ("#e2f2e7", "#2e7d4f"),
    ("#f4f2ee", "#8f897e"),
)
RED, VIOLET = ("#fbe3e0", "#b3382c"), ("#efe6f7", "#7a4fa3")
GLOW = "#f6b73c"
SANS, MONO = "Arial, Helvetica, 'DejaVu Sans', sans-serif", "Menlo, Consolas, 'DejaVu Sans Mono', monospace"

Point = tuple[float, float]
Colours = tuple[str, str]  # fill and edge


@dataclass(frozen=True)
class Picture:
    """A picture as SVG; as the last line of a notebook cell it shows itself."""

    svg: str
    alt: str  # what it shows, for readers who cannot see it

    def _repr_svg_(self) -> tuple[str, dict[str, str]]:
        return self.svg, {"alt": self.alt}

    def save(self, path: Path | str) -> Path:
        """Write the SVG file, whole or not at all. Raises UserError when it cannot be written."""
        write_text(Path(path), self.svg)
        return Path(path)


@cache
def _font(bold: bool) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(Path(get_data_path(), "fonts", "ttf", f"DejaVuSans{'-Bold' * bold}.ttf"), 100)


def width_of(text: str, size: float, bold: bool = False) -> float:
    """Pixels that a text may need: measured in a font that is wider than those that browsers take."""
    wide = sum(east_asian_width(letter) in "WF" for letter in text)
    return (_font(bold).getlength(text) / 100 + 0.4 * wide) * size


class Canvas:
    """Collects the parts of one picture; all lengths are pixels, a text's y is its middle."""

    def __init__(self) -> None:
        self.parts: list[str] = []

    def text(
        self, x: float, y: float, content: str, size: float = 14, anchor: str = "middle", colour: str = INK,
        bold: bool = False, mono: bool = False, turn: float = 0,
    ) -> None:  # fmt: skip
        """A line of text; `anchor` says which part of it stands at x: start, middle or end."""
        look = f'font-family="{MONO if mono else SANS}" font-size="{size:g}" fill="{colour}" text-anchor="{anchor}"'
        look += ' font-weight="600"' if bold else ""
        look += f' transform="rotate({turn:g} {x:.1f} {y:.1f})"' if turn else ""
        self.parts.append(f'<text x="{x:.1f}" y="{y + 0.35 * size:.1f}" {look}>{escape(content)}</text>')

    def box(
        self, x: float, y: float, width: float, height: float, colours: Colours, radius: float = 7, weight: float = 1.4
    ) -> None:
        """A box with round corners."""
        place = f'x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" rx="{radius:g}"'
        self.parts.append(f'<rect {place} fill="{colours[0]}" stroke="{colours[1]}" stroke-width="{weight:g}"/>')

    def node(self, x: float, y: float, width: float, height: float, colours: Colours, name: str, note: str) -> None:
        """A box with a name and a note under it."""
        self.box(x, y, width, height, colours)
        self.text(x + width / 2, y + height / 2 - 9, name, 15, bold=True)
        self.text(x + width / 2, y + height / 2 + 11, note, 12, colour=QUIET)

    def panel(self, x: float, y: float, width: float, height: float, name: str, note: str) -> None:
        """A tinted ground for several parts."""
        self.box(x, y, width, height, ("#faf9f6", "#ebe7df"), radius=12, weight=1)
        self.text(x + 16, y + 20, name, 14, "start", bold=True)
        self.text(x + 24 + width_of(name, 14, bold=True), y + 20, note, 13, "start", QUIET)

    def circle(self, x: float, y: float, radius: float, colours: Colours) -> None:
        """A circle around x, y."""
        place = f'cx="{x:.1f}" cy="{y:.1f}" r="{radius:g}"'
        self.parts.append(f'<circle {place} fill="{colours[0]}" stroke="{colours[1]}" stroke-width="1.4"/>')

    def line(
        self, points: Sequence[Point], colour: str = QUIET, weight: float = 1.5, dash: bool = False, arrow: bool = True
    ) -> None:
        """A line through points; an arrow's head is drawn out, so that no picture needs names for its parts."""
        (x0, y0), (x1, y1) = points[-2:]
        length = math.hypot(x1 - x0, y1 - y0) or 1.0
        dx, dy = (x1 - x0) / length, (y1 - y0) / length
        if arrow:
            head = [
                (x1, y1),
                (x1 - 9 * dx - 4.5 * dy, y1 - 9 * dy + 4.5 * dx),
                (x1 - 9 * dx + 4.5 * dy, y1 - 9 * dy - 4.5 * dx),
            ]
            corners = " ".join(f"{x:.1f},{y:.1f}" for x, y in head)
            self.parts.append(f'<polygon points="{corners}" fill="{colour}"/>')
            points = [*points[:-1], (x1 - 7 * dx, y1 - 7 * dy)]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        look = f'fill="none" stroke="{colour}" stroke-width="{weight:g}" stroke-linejoin="round"'
        look += ' stroke-dasharray="6 4"' if dash else ""
        self.parts.append(f'<polyline points="{path}" {look}/>')

    def curve(
        self, start: Point, end: Point, colour: str, weight: float, dash: bool = False, level: bool = False
    ) -> None:
        """A soft line from start to end that leaves and arrives downwards, or, when `level`, sideways."""
        (x0, y0), (x1, y1) = start, end
        half = ((x0 + x1) / 2, y0, (x0 + x1) / 2, y1) if level else (x0, (y0 + y1) / 2, x1, (y0 + y1) / 2)
        path = "M{:.1f},{:.1f} C{:.1f},{:.1f} {:.1f},{:.1f} {:.1f},{:.1f}".format(x0, y0, *half, x1, y1)
        dashes = ' stroke-dasharray="5 4"' if dash else ""
        self.parts.append(f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="{weight:.1f}"{dashes}/>')

    def image(self, x: float, y: float, width: float, height: float, pixels: np.ndarray) -> None:
        """An RGB picture as large as fits into the place, in its middle."""
        place = f'x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}"'
        self.parts.append(f'<image {place} href="{jpeg_uri(pixels, side=240, quality=85)}"/>')

    def picture(self, width: float, height: float, alt: str) -> Picture:
        """All parts on a white card with round corners."""
        head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}"'
        head += f' viewBox="0 0 {width:.0f} {height:.0f}" role="img" style="max-width:100%;height:auto">'
        size = f'width="{width - 1:.0f}" height="{height - 1:.0f}"'
        card = f'<rect x="0.5" y="0.5" {size} rx="14" fill="{CARD}" stroke="{LINE}"/>'
        return Picture("\n".join([head, f"<title>{escape(alt)}</title>", card, *self.parts, "</svg>"]), alt)
