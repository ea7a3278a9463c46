"""The lessons' pictures and their exported HTML in Chromium; a cell that carries a widget and a page in JupyterLab."""

import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import numpy as np
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from vcutils.course.pictures import attention_picture, beam_tree, model_picture, split_picture

expect = pytest.importorskip("playwright.sync_api", reason="no Playwright: pip install playwright").expect
LONG = "Donaudampfschifffahrtsgesellschaft"
STEPS = [
    [(0, "a", -0.41, True, False), (0, "the", -1.3, True, False), (0, "an", -2.94, False, False)],
    [(0, LONG, -1.02, True, False), (0, "cat", -1.4, True, False), (1, "astronaut", -2.7, False, False)],
    [(0, "<end>", -1.9, True, True), (1, "<end>", -2.1, True, True), (1, "quietly", -12.25, False, False)],
]
THINGS, CHANGES = ("cat", "moon", LONG, "brick wall"), ("fades in", "turns upside down", "becomes coarse pixels")
PAIRS = {
    "train": [(thing, change) for thing in THINGS for change in CHANGES if (thing, change) != ("cat", "fades in")],
    "val": [("cat", "fades in")],
    "test": [("moon", "fades in")],
}
PICTURES = {
    "model": lambda: model_picture(B=32, K=5, T=16, L=18, D=1280, E=128, H=256, A=128, C=256, V=60),
    "model-large": lambda: model_picture(B=64, K=20, T=40, L=30, D=2048, E=512, H=1024, A=512, C=1024, V=12594),
    "attention": lambda: attention_picture(
        ["0.25 s", LONG, *["2.25 s"] * 6], [2.5, 1.25, *[-10.0] * 6], [0.75, 0.25, *[0.0] * 6],
        [np.full((90, 160, 3), 128, np.uint8)] * 8, query=f"after “a {LONG} and a {LONG}”",
    ),
    "attention-one": lambda: attention_picture(["x"], [0.0], [1.0]),
    "beam": lambda: beam_tree(STEPS),
    "beam-empty": lambda: beam_tree([]),
    "split": lambda: split_picture(PAIRS, THINGS, CHANGES),
    "split-one": lambda: split_picture({"train": [("x", "y")]}, ["x"], ["y"]),
}  # fmt: skip
OVERLAPS = """() => { const card = document.querySelector("svg").getBoundingClientRect(), found = [];
  const texts = [...document.querySelectorAll("svg text")];
  const boxes = texts.map(text => text.getBoundingClientRect());
  boxes.forEach((a, i) => {
    const name = texts[i].textContent;
    if (a.left < card.left + 4 || a.right > card.right - 4 || a.top < card.top || a.bottom > card.bottom)
      found.push(name + " leaves the card");
    if (texts[i].hasAttribute("transform")) return;
    boxes.slice(0, i).forEach((b, j) => {
      if (!texts[j].hasAttribute("transform") && a.left < b.right - 1 && b.left < a.right - 1
          && a.top < b.bottom - 4 && b.top < a.bottom - 4) found.push(name + " lies on " + texts[j].textContent);
    });
  });
  return found; }"""


@pytest.mark.parametrize("name", PICTURES)
def test_no_text_of_a_picture_lies_on_another(name, tab, screenshots):
    page = tab(offline=True)
    page.set_content(f'<body style="margin:12px;background:#111">{PICTURES[name]().svg}')
    page.screenshot(path=screenshots / f"picture-{name}.png", full_page=True)
    assert page.evaluate(OVERLAPS) == [] and not tab.errors


@pytest.fixture(scope="module")
def unread(tmp_path_factory):
    """A notebook with a formula, a picture and a slider that carries a page, not executed."""
    html = "<!doctype html><p>it's</p><script>document.querySelector('p').append(' & alive')</script>"
    cells = [
        new_markdown_cell("$$\\text{score}(h, m_t) = v^\\top \\tanh(W_h\\, h + W_m\\, m_t)$$"),
        new_code_cell("from vcutils.course.pictures import beam_tree\nbeam_tree([[(0, 'a', -1.0, True, False)]])"),
        new_code_cell(f"import ipywidgets\nfrom vcutils.course.pages import with_page\n\n"
                      f"with_page(ipywidgets.IntSlider(description='alive?'), {html!r}, height=200)"),
    ]  # fmt: skip
    notebook = new_notebook(cells=cells)
    notebook.metadata.kernelspec = {"name": "python3", "display_name": "Python 3", "language": "python"}
    path = tmp_path_factory.mktemp("unread") / "lesson.ipynb"
    nbformat.write(notebook, path)
    return path


@pytest.fixture(scope="module")
def exported(unread, repo, tmp_path_factory):
    """The notebook executed and exported as HTML, once for both schemes of colours."""
    lesson = Path(shutil.copy(unread, tmp_path_factory.mktemp("exported")))
    execute = ["jupyter", "nbconvert", "--execute", "--to", "notebook", "--inplace", str(lesson)]
    for command in (execute, ["vcutils.course.export", str(lesson.parent)]):
        subprocess.run([sys.executable, "-m", *command], cwd=repo, check=True, capture_output=True)
    return lesson.with_suffix(".html")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_exported_lesson_shows_everything_offline(exported, tab, screenshots, scheme):
    page = tab(offline=True, color_scheme=scheme)
    page.goto(exported.as_uri())
    formula = page.locator("math[display=block]").bounding_box()
    assert formula["height"] > 15 and "$$" not in page.inner_text("body")
    assert page.locator(".jp-RenderedSVG img").evaluate("image => image.naturalWidth") > 200
    expect(page.frame_locator("iframe").locator("p")).to_have_text("it's & alive")
    assert page.locator("script").count() == 0
    page.screenshot(path=screenshots / f"lesson-{scheme}.png", full_page=True)
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)")
    assert (np.mean(paper[:3]) > 128) == (scheme == "light")
    assert all(address.startswith(("file:", "data:", "about:")) for address in page.asked) and not tab.errors


def test_running_lesson_shows_the_widget_and_not_the_page(unread, jupyter, tab):
    page = tab()
    page.goto(jupyter(unread.parent)(unread.name))
    expect(page.locator("#jp-bottom-panel")).to_contain_text("| Idle", timeout=120_000)
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
    expect(page.locator(".widget-label", has_text="alive?")).to_be_visible(timeout=120_000)
    assert page.locator("iframe[srcdoc]").count() == 0
    assert page.locator(".jp-RenderedSVG").count() == 1
