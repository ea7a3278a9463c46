"""The site and the slides: complete, without a broken link, without a network, alive, readable on a phone."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

from vcutils.course.slides import SESSIONS, write_slides
from vcutils.runtime.settings import UserError

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "docs" / "site"))
from make_site import broken_links  # noqa: E402

PHONE = {"width": 390, "height": 800}


@pytest.fixture(scope="session")
def site(tmp_path_factory):
    """The whole site, built as `make site` builds it."""
    if importlib.util.find_spec("myst_nb") is None:
        pytest.skip("the site's tools are not installed: `make site` installs them")
    out = tmp_path_factory.mktemp("site") / "site"
    done = subprocess.run([sys.executable, ROOT / "docs/site/make_site.py", out], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return out


@pytest.fixture(scope="session")
def decks(tmp_path_factory):
    out = tmp_path_factory.mktemp("slides")
    write_slides(ROOT / "notebooks", out)
    return out


def test_site_has_every_page_and_drawn_formulas(site):
    pages = [*ROOT.glob("docs/*.md"), *ROOT.glob("notebooks/*.ipynb"), ROOT / "README.md", ROOT / "data/README.md"]
    for page in pages:
        assert (site / page.relative_to(ROOT).with_suffix(".html")).is_file(), f"{page} is not on the site"
    lesson = (site / "notebooks/03_train.html").read_text("utf-8")
    assert lesson.count('display="block"') >= 5 and "$$" not in lesson
    assert 'id="vcutils.model.Decoder.step"' in (site / "api/lesson.html").read_text("utf-8")
    exercises = {path.stem: path.read_text("utf-8") for path in site.glob("notebooks/exercises/*.html")}
    assert exercises.keys() == {path.stem for path in ROOT.glob("notebooks/exercises/*.py")}
    assert not any("BEGIN SOLUTION" in text or "BEGIN HIDDEN" in text for text in exercises.values())
    assert not (site / "_modules/vcutils/course/mistakes.html").exists()
    assert (site / "index.html").is_file() and (site / "slides" / "session6.html").is_file()


def test_broken_links_are_found(tmp_path):
    (tmp_path / "a.html").write_text('<p id="here"></p><a href="b.html#there">right</a><a href="#here">right</a>')
    (tmp_path / "b.html").write_text('<p id="there"></p><a href="https://example.org">not checked</a>')
    assert broken_links(tmp_path) == []
    (tmp_path / "a.html").write_text('<a href="gone.html"></a><a href="b.html#gone"></a>')
    (tmp_path / "b.html").write_text('<script src="https://example.org/x.js"></script><img src="gone.png">')
    problems = broken_links(tmp_path)
    assert len(problems) == 4 and all("gone" in problem or "another host" in problem for problem in problems)


@pytest.mark.parametrize(
    "page", ["README", "notebooks/03_train", "notebooks/04_evaluate", "docs/results", "api/lesson"]
)
def test_site_is_readable_on_a_phone(site, tab, page):
    shown = tab(**PHONE, offline=True, color_scheme="dark")
    shown.goto((site / f"{page}.html").as_uri())
    assert shown.evaluate("document.documentElement.scrollWidth <= innerWidth"), "the page scrolls sideways"
    assert shown.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g)[0] < 60"), "not dark"
    assert all(address.startswith(("file:", "data:", "about:")) for address in shown.asked) and not tab.errors


def test_explorer_is_alive_on_the_site(site, tab, screenshots):
    page = tab(offline=True)
    page.goto((site / "notebooks/05_attention.html").as_uri())
    explorer = page.frame_locator("iframe").first
    explorer.locator(".vc-words button").nth(3).click()
    assert explorer.locator(".vc-words [aria-current] > span").first.inner_text() == "in"
    page.screenshot(path=screenshots / "site-explorer.png")
    assert not tab.errors


@pytest.mark.parametrize("session", [session.number for session in SESSIONS])
def test_slides_fit_the_screen_and_turn(decks, tab, session):
    page = tab(width=1280, height=720, offline=True)
    page.goto((decks / f"session{session}.html").as_uri())
    assert page.locator("section").count() >= 12
    too_long = "[...document.querySelectorAll('section')].filter(s => s.scrollHeight > s.clientHeight + 12).length"
    assert page.evaluate(too_long) == 0, "a slide is longer than the screen"
    page.keyboard.press("ArrowRight")
    page.wait_for_function("Math.abs(scrollY - innerHeight) < 2")
    assert not tab.errors and page.locator(".predict").count() >= 1


def test_each_part_of_the_notebooks_is_in_one_session(decks):
    """Every heading of the five notebooks is on a slide, and in one deck only, but for those of exercises."""
    said = [(decks / f"session{session.number}.html").read_text("utf-8") for session in SESSIONS]
    text = "".join(path.read_text("utf-8") for path in sorted((ROOT / "notebooks").glob("*.py")))
    for heading in re.findall(r"^# ##+ (.*)$", text, re.M):
        decks_with = sum(f">{heading.replace(chr(39), '&#39;')}</h2>" in deck.replace("'", "&#39;") for deck in said)
        assert decks_with == {"Exercises": 0, "Recap": 5}.get(heading, 1), heading


def test_slides_name_a_heading_that_is_gone(tmp_path):
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        text = path.read_text("utf-8").replace("## Teacher forcing, and the loss", "## The loss")
        (tmp_path / path.name).write_text(text, "utf-8")
    with pytest.raises(UserError, match=r"03_train.*Teacher forcing"):
        write_slides(tmp_path, tmp_path / "out")
