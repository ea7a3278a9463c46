"""The site in one folder of HTML that needs no network: `make site`, or `python docs/site/make_site.py [OUT]`.

Pages keep their places in the repository, so that a link that works there works here. Sphinx fails on a link that leads
nowhere; afterwards every address in the HTML is checked again, with its anchor. Addresses of other hosts are not: that
would need a network.
"""

import re
import shutil
import subprocess
import sys
import tempfile
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from vcutils.config import Config  # noqa: E402
from vcutils.course.editions import student_edition  # noqa: E402
from vcutils.course.pages import with_model  # noqa: E402
from vcutils.course.slides import SESSIONS, write_slides  # noqa: E402

DOCS = ("lecturers", "running", "datasets", "settings", "results", "performance", "reliability")  # then what is new
LESSON = ("config", "corpus", "video", "features", "vocab", "dataset", "model", "decode", "train")
ANSWERS = ("expect_", "mistakes")  # modules of vcutils.course that students need not find
LINK = re.compile(r"(?<!!)\[([^\]]+)\]\((?!\w+:)([^)#\s]+)(#[^)\s]*)?\)")
LOADS = {("script", "src"), ("img", "src"), ("iframe", "src"), ("link", "href"), ("source", "src"), ("video", "src")}


def stage(folder: Path) -> None:
    """Copy the pages into `folder`, write the others, and give the home page its table of contents."""
    notebooks, docs = (
        sorted(ROOT.glob("notebooks/*.ipynb")),
        {path.stem: path for path in sorted(ROOT.glob("docs/*.md"))},
    )
    guide = [docs.pop(name) for name in DOCS if name in docs] + [*docs.values()]
    guide += [ROOT / "data/README.md", ROOT / "vcutils/captioner/MODEL_CARD.md"]
    for path in (ROOT / "README.md", *notebooks, *guide, *ROOT.glob("docs/*.png")):
        copy(path, folder)
    for path in folder.rglob("*.md"):
        path.write_text(LINK.sub(lambda link, page=path: kept(link, page, folder), path.read_text("utf-8")), "utf-8")
    contents = {"Notebooks": notebooks, "Exercises": exercises(folder), "Guide": guide}
    contents |= {"For teaching": [slides(folder)], "API reference": api(folder)}
    with (folder / "README.md").open("a", encoding="utf-8") as readme:
        for caption, pages in contents.items():
            names = [page.relative_to(ROOT if page.is_relative_to(ROOT) else folder).as_posix() for page in pages]
            readme.write("\n".join(["", "```{toctree}", ":hidden:", f":caption: {caption}", "", *names, "```", ""]))


def exercises(folder: Path) -> list[Path]:
    """Write the exercises as students get them, without answers; nothing where the project has none."""
    if not (ROOT / "notebooks/exercises").is_dir():
        return []
    return student_edition(folder / "notebooks/exercises")


def slides(folder: Path) -> Path:
    """Write the page that leads to the decks."""
    links = [f'- <a href="slides/session{s.number}.html">Session {s.number} · {s.title}</a>' for s in SESSIONS]
    (folder / "slides.md").write_text("\n".join(["# Slides", "", *links]), "utf-8")
    return folder / "slides.md"


def copy(path: Path, folder: Path) -> None:
    """Copy a file of the repository to its place below `folder`."""
    place = folder / path.relative_to(ROOT)
    place.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy2(path, place)


def kept(link: re.Match[str], page: Path, folder: Path) -> str:
    """A link as it is, with the file that it leads to; the bare text of one to a folder, which no page shows."""
    target = (ROOT / page.relative_to(folder)).parent.joinpath(link[2]).resolve()
    if target.is_dir():
        return link[1]
    if target.is_file() and target.is_relative_to(ROOT) and target.suffix not in (".md", ".ipynb"):
        copy(target, folder)
    return link[0]


def api(folder: Path) -> list[Path]:
    """Write a page for the lesson and one for each folder of the package; returns their places."""
    parts = {"lesson": ["vcutils." + name for name in LESSON]}
    for package in sorted(ROOT.glob("vcutils/*/__init__.py")):
        name, stems = package.parent.name, (path.stem for path in package.parent.glob("*.py"))
        shown = [stem for stem in stems if not stem.startswith(ANSWERS)]
        parts[name] = sorted(f"vcutils.{name}.{stem}".removesuffix(".__init__") for stem in shown)
    (folder / "api").mkdir()
    for name, modules in parts.items():
        text = [title := "The lesson" if name == "lesson" else f"vcutils.{name}", "=" * len(title), ""]
        for module in modules:
            if module != title:
                text += [module, "-" * len(module), ""]
            text += [f".. automodule:: {module}", "   :members:", ""]
        (folder / "api" / f"{name}.rst").write_text("\n".join(text), "utf-8")
    return [folder / "api" / f"{name}.rst" for name in parts]


class Page(HTMLParser):
    """The addresses that a page names or loads, and the anchors that it offers."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: set[str] = set()
        self.loads: set[str] = set()
        self.anchors: set[str] = set()
        self.feed(path.read_text("utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note what one tag names."""
        for key, value in attrs:
            if key in ("id", "name") and value:
                self.anchors.add(value)
            if (tag, key) in LOADS and value:
                self.loads.add(value)
            elif key == "href" and value:
                self.links.add(value)


def broken_links(site: Path) -> list[str]:
    """What is wrong with the addresses in a folder of HTML: no such file, no such anchor, loaded from another host."""
    pages = {path: Page(path) for path in sorted(site.rglob("*.html"))}
    problems = []
    for path, page in pages.items():
        name = path.relative_to(site).as_posix()
        for address in sorted(page.links | page.loads):
            parts = urlsplit(address)
            if parts.scheme or parts.netloc:
                if address in page.loads and parts.scheme != "data":
                    problems.append(f"{name} loads {address} from another host")
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if not target.is_file():
                problems.append(f"{name} links to {address}: no such file")
            elif parts.fragment and target in pages and unquote(parts.fragment) not in pages[target].anchors:
                problems.append(f"{name} links to {address}: no such anchor")
    return problems


def main(out: Path) -> int:
    """Build the site into `out`, anew; 1 when Sphinx warns or a link is broken."""
    shutil.rmtree(out, ignore_errors=True)
    with tempfile.TemporaryDirectory() as scratch:
        stage(pages := Path(scratch, "pages"))
        command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-c", str(Path(__file__).parent)]
        status = subprocess.run([*command, "-d", f"{scratch}/doctrees", str(pages), str(out)]).returncode
    if status:
        return status
    (out / "index.html").write_text('<meta http-equiv="refresh" content="0; url=README.html">', "utf-8")
    lesson = out / "notebooks/05_attention.html"  # its explorer carries the model where `make notebooks` has made one
    saved = Config.from_env().artifacts / "runs/default/attention/explorer.html"
    lesson.write_text(with_model(lesson.read_text("utf-8"), saved), "utf-8")
    write_slides(ROOT / "notebooks", out / "slides")
    problems = broken_links(out.resolve())
    print(*problems, f"the site: {out / 'index.html'}", sep="\n")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "data/site")))
