"""The live explorer in JupyterLab, Notebook 7 and marimo, in Chromium."""

import dataclasses
import itertools
import json
import re
import shutil
import sys
from pathlib import Path

import nbformat
import numpy as np
import pytest

from vcutils.cli import main
from vcutils.config import Config
from vcutils.corpora import load_corpus, open_corpus
from vcutils.corpus import make_splits, save_splits
from vcutils.dataset import load_data
from vcutils.features import extract_corpus
from vcutils.scores.coco import References
from vcutils.train import Trainer
from vcutils.vocab import build_vocabulary

expect = pytest.importorskip("playwright.sync_api", reason="no Playwright: pip install playwright").expect
SLOW = 120_000  # ms until a notebook has run
expect.set_options(timeout=30_000)  # a busy machine is slow, not wrong


COLOURS = {"red": (40, 40, 220), "green": (40, 190, 40), "blue": (220, 60, 30), "white": (235, 235, 235)}  # BGR


@pytest.fixture(scope="session")
def colour_run(tmp_path_factory, tiny_config, write_video):
    """A run that has learned to name the two colours of a clip, so that hiding one of them must change what it says."""
    root = tmp_path_factory.mktemp("colours") / "colours"
    lines = []
    pairs = list(itertools.permutations(COLOURS, 2))
    for first, second in pairs:
        frames = [np.full((96, 128, 3), COLOURS[name], np.uint8) for name in (first, second) for _ in range(10)]
        write_video(root / "videos" / f"{first}-{second}.avi", frames)
        lines += [f"{first}-{second} a {first} wall and a {second} wall", f"{first}-{second} {first} and then {second}"]
    (root / "captions.txt").write_text("\n".join(lines), encoding="utf-8")
    ids = [f"{first}-{second}" for first, second in pairs]
    (root / "splits.json").write_text(json.dumps({"train": ids[:8], "val": ids[8:10], "test": ids[10:]}))
    training = dataclasses.replace(tiny_config.train, epochs=30)
    config = dataclasses.replace(tiny_config, data=root.parent / "data", corpus=root, train=training)
    corpus = open_corpus(root)
    extract_corpus(corpus, config.artifacts, config.extract, progress=False)
    splits, _ = make_splits(corpus)
    save_splits(splits, config.artifacts / "splits.json")
    build_vocabulary(corpus.captions, splits["train"], 1).save(config.artifacts / "vocab.json")
    folder = config.artifacts / "runs" / "colours"
    data = load_data(corpus, config.artifacts, config.extract)
    Trainer(folder, config, data, References, progress=False).fit()
    return folder


@pytest.fixture
def explorer_notebook(tmp_path, colour_run):
    """A notebook that opens the explorer, alone in its folder."""
    folder = tmp_path / "notebooks"
    folder.mkdir()
    cells = [
        "from vcutils.corpora import open_run\nfrom vcutils.attention.explorer import explore",
        f"explorer = explore(open_run({str(colour_run)!r}))\nexplorer",
        "print(f'{len(explorer.shown.timestamps)} frames')",
        # A kernel that cannot answer until the test says so.
        "import time\nfrom pathlib import Path\n\nwhile not Path('awake').exists():\n    time.sleep(0.1)",
    ]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in cells])
    notebook.metadata.kernelspec = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(notebook, folder / "explorer.ipynb")
    return folder / "explorer.ipynb"


@pytest.fixture(scope="session")
def tiny_course(tmp_path_factory):
    """What notebooks 01 to 03 leave behind on the tiny profile: the data folder that notebook 05 reads."""
    data = tmp_path_factory.mktemp("course")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VCUTILS_PROFILE", "tiny")
        patch.setenv("VCUTILS_DATA", str(data))
        corpus = str(load_corpus(Config.from_env(), progress=False).root)
        assert main(["extract", corpus]) == main(["vocab", corpus]) == main(["train", corpus]) == 0
    return data


def test_notebook_05_in_jupyterlab(tiny_course, jupyter, tab, repo, tmp_path, screenshots):
    shutil.copy(repo / "notebooks" / "05_attention.ipynb", tmp_path / "05_attention.ipynb")
    page = tab(height=1800)
    address = jupyter(tmp_path, VCUTILS_PROFILE="tiny", VCUTILS_CORPUS="", VCUTILS_DATA=str(tiny_course))
    run_all(page, address("05_attention.ipynb"))
    saved = page.locator(".jp-OutputArea-output", has_text=str(Path("default") / "attention:"))
    expect(saved.first).to_be_visible(timeout=SLOW)
    expect(status_bar(page)).to_contain_text("| Idle", timeout=SLOW)
    assert page.locator("[data-mime-type='application/vnd.jupyter.stderr']", has_text="Error").count() == 0

    stage, words = page.locator(".vc-stage"), page.locator(".vc-words button")
    stage.scroll_into_view_if_needed()
    first, dark = stage.inner_text(), lights(page)
    page.locator(".widget-hslider .noUi-handle").first.press("ArrowRight")
    expect(words.nth(1)).to_have_attribute("aria-current", "true")
    assert stage.inner_text() != first and lights(page) != dark
    page.screenshot(path=screenshots / "lab-notebook-05.png")

    frames = page.locator(".vc-tile")
    before, after = hide_until_the_caption_changes(page, range(frames.count()))
    assert before != after, "no frame changes what the model says"
    page.screenshot(path=screenshots / "lab-notebook-05-hidden.png")

    exported = tab()
    exported.goto(next(tiny_course.glob("*/runs/default/attention/explorer.html")).as_uri())
    assert exported.locator(".vc-tile").count() == frames.count()
    assert all(address.startswith(("file:", "data:")) for address in exported.asked)


def status_bar(page):
    return page.locator("#jp-bottom-panel")


def run_all(page, address):
    """Open a notebook in JupyterLab or Notebook 7 and run all its cells."""
    with page.expect_websocket(lambda socket: "/channels" in socket.url, timeout=SLOW):
        page.goto(address)
    expect(page.locator(".jp-Notebook-ExecutionIndicator[data-status=idle]")).to_be_visible(timeout=SLOW)
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()


def hide_until_the_caption_changes(page, frames):
    """Captions with and without the hidden frames; few models move for every frame, so one after the other goes."""
    hidden, captions = page.locator(".vc-strip .vc-off"), page.locator(".vc-effect td[dir=auto]")
    for index in list(frames)[:-1]:
        count = hidden.count()
        page.locator(".vc-eye").nth(index).click()
        expect(hidden).to_have_count(count + 1)
        expect(page.locator(".vcx")).not_to_have_class(re.compile("vc-busy"))
        expect(captions).to_have_count(2)
        before, after = captions.all_inner_texts()
        if before != after:
            break
    return before, after


def lights(page):
    """How bright each frame of the strip is, 0 to 1."""
    return page.eval_on_selector_all(
        ".vc-tile", "all => all.map(tile => Number(tile.style.getPropertyValue('--vc-light')))"
    )


def test_explorer_in_jupyterlab(explorer_notebook, jupyter, tab, screenshots):
    page = tab(height=1900)
    run_all(page, jupyter(explorer_notebook.parent)(explorer_notebook.name))
    stage, words = page.locator(".vc-stage"), page.locator(".vc-words button")

    def word(index):
        return words.nth(index).locator("span").first.inner_text()

    expect(stage).to_be_visible(timeout=SLOW)
    expect(page.locator(".jp-OutputArea-output", has_text="6 frames")).to_be_visible(timeout=SLOW)
    page.wait_for_timeout(500)
    page.screenshot(path=screenshots / "lab-light.png")

    # A step: the slider moves, the picture and the lights change, while the kernel sleeps. And the other way round.
    before, first, handle = lights(page), stage.inner_text(), page.locator(".widget-hslider .noUi-handle")
    assert len(before) == 6 and max(before) > min(before)
    words.nth(2).click()
    expect(stage).to_contain_text(f"“{word(2)}”")
    expect(handle).to_have_attribute("aria-valuenow", "2.0")
    assert stage.inner_text() != first and lights(page) != before
    handle.press("ArrowRight")
    expect(words.nth(3)).to_have_attribute("aria-current", "true")
    expect(stage).to_contain_text(f"“{word(3)}”")
    words.nth(3).press("ArrowLeft")
    expect(handle).to_have_attribute("aria-valuenow", "2.0")
    words.nth(2).press("End")
    last = words.count() - 1
    expect(handle).to_have_attribute("aria-valuenow", f"{last}.0")
    expect(handle).to_have_attribute("aria-valuemax", f"{last}.0")
    expect(words.nth(last)).to_be_focused()

    expect(status_bar(page)).to_contain_text("| Busy")
    (explorer_notebook.parent / "awake").touch()

    # Hiding: the strongest frame goes, and the model looks elsewhere.
    words.first.click()
    expect(status_bar(page)).to_contain_text("| Idle", timeout=SLOW)
    strongest = max(range(6), key=lights(page).__getitem__)
    page.locator(".vc-eye").nth(strongest).click()
    expect(page.locator(".vc-effect")).to_contain_text("without the hidden")
    expect(page.locator(".vc-strip .vc-off")).to_have_count(1)
    label = page.locator(".vc-tile").nth(strongest).locator(".vc-label span").first.inner_text()
    expect(stage).not_to_contain_text(f"the frame at {label}")
    page.screenshot(path=screenshots / "lab-hidden.png")
    before, after = hide_until_the_caption_changes(page, [i for i in range(6) if i != strongest])
    assert before != after, "a model that names two colours must say something else without one of them"
    assert page.locator(".vc-effect :is(mark, del)").count() > 0
    page.get_by_role("button", name="Show all").click()
    expect(page.locator(".vc-strip .vc-off")).to_have_count(0)
    expect(page.locator(".vc-effect")).to_be_hidden()

    # A span of time, but never all of it.
    page.get_by_label("to", exact=True).select_option(index=2)
    page.get_by_role("button", name="Hide", exact=True).click()
    expect(page.locator(".vc-effect")).to_contain_text("without the hidden")
    expect(page.locator(".vc-strip .vc-off")).to_have_count(3)
    page.get_by_label("to", exact=True).select_option(index=5)
    page.get_by_role("button", name="Hide", exact=True).click()
    expect(page.locator(".vc-message")).to_have_text("At least one frame must stay visible.")
    expect(page.locator(".vc-strip .vc-off")).to_have_count(3)

    # Another caption, another clip.
    page.locator(".vc-beams button").nth(1).click()
    expect(page.locator(".vc-beams button").nth(1)).to_have_attribute("aria-current", "true")
    title = page.locator(".vc-title").inner_text()
    page.locator(".vc-chooser select").first.select_option(index=1)
    expect(page.locator(".vc-title")).not_to_have_text(title)
    expect(page.locator(".vc-strip .vc-off")).to_have_count(0)
    expect(page.locator(".vc-tile")).to_have_count(6)
    outside = [
        url for url in page.asked if not url.startswith(("http://127.0.0.1", "ws://127.0.0.1", "data:", "blob:"))
    ]
    assert not outside

    page.get_by_role("menuitem", name="Settings", exact=True).click()
    page.locator(".lm-Menu-item", has_text="Theme").first.hover()
    page.locator(".lm-Menu-item", has_text="JupyterLab Dark").first.click()
    expect(page.locator(".vcx.vc-dark")).to_be_visible()
    page.wait_for_timeout(500)
    page.screenshot(path=screenshots / "lab-dark.png")


def test_own_clip_in_jupyterlab(explorer_notebook, jupyter, tab, tmp_path, numbered_video, screenshots):
    (explorer_notebook.parent / "awake").touch()
    page = tab(height=1500)
    run_all(page, jupyter(explorer_notebook.parent)(explorer_notebook.name))
    stage, status = page.locator(".vc-stage"), page.locator(".vc-message")
    expect(stage).to_be_visible(timeout=SLOW)
    expect(status_bar(page)).to_contain_text("| Idle", timeout=SLOW)
    broken = tmp_path / "<b>broken<b>.mp4"
    broken.write_bytes(b"not a video" * 100)

    def upload(path):
        with page.expect_file_chooser() as chooser:
            page.locator(".vc-upload").click()
        chooser.value.set_files(path)

    upload(broken)
    expect(status).to_contain_text("<b>broken<b>.mp4: not a video that can be decoded")
    good = numbered_video(tmp_path / "mine.mp4", 3)
    upload(good)
    expect(page.locator(".vc-tile")).to_have_count(3)
    expect(page.locator(".vc-title")).to_have_text("mine.mp4")
    expect(status).to_be_hidden()
    page.screenshot(path=screenshots / "lab-own-clip.png")


def steps_and_hides(page, slider):
    """What every host must do: a step moves the slider (`slider` expects it there), the kernel captions and opens."""
    words = page.locator(".vc-words button")
    expect(words.first).to_be_visible(timeout=SLOW)
    words.nth(2).click()
    expect(words.nth(2)).to_have_attribute("aria-current", "true")
    slider("2")
    expect(page.locator(".vc-modes button").nth(2)).to_be_enabled(timeout=SLOW)
    page.locator(".vc-eye").first.click()
    expect(page.locator(".vc-effect")).to_contain_text("without the hidden", timeout=SLOW)
    title = page.locator(".vc-title").inner_text()
    page.locator(".vc-chooser select").first.select_option(index=1)
    expect(page.locator(".vc-title")).not_to_have_text(title, timeout=SLOW)
    expect(page.locator(".vc-strip .vc-off")).to_have_count(0)
    own = ("http://127.0.0.1", "ws://127.0.0.1", "data:", "blob:")
    assert all(url.startswith(own) for url in page.asked), "nothing is asked of anyone else"


def test_explorer_in_notebook_7(explorer_notebook, jupyter, tab, screenshots):
    pytest.importorskip("notebook", reason="no Notebook 7: pip install 'notebook>=7'")
    (explorer_notebook.parent / "awake").touch()
    page = tab(height=1700)
    run_all(page, jupyter(explorer_notebook.parent, "notebook")(explorer_notebook.name))
    handle = page.locator(".widget-hslider .noUi-handle")
    steps_and_hides(page, lambda word: expect(handle).to_have_attribute("aria-valuenow", f"{word}.0"))
    page.screenshot(path=screenshots / "notebook-7.png")


MARIMO = """import marimo

app = marimo.App()


@app.cell
def _():
    from vcutils.attention.explorer import explore
    from vcutils.corpora import open_run

    explore(open_run({run!r}))
    return
"""


def test_explorer_in_marimo(colour_run, served, tab, tmp_path, screenshots):
    pytest.importorskip("marimo", reason="no marimo: pip install marimo")
    (tmp_path / "notebook.py").write_text(MARIMO.format(run=str(colour_run)))
    command = [sys.executable, "-m", "marimo", "-q", "run", str(tmp_path / "notebook.py"), "--headless", "--no-token"]
    base = served(lambda port: [*command, "--host=127.0.0.1", f"--port={port}"], "/health", {"HOME": str(tmp_path)})
    page = tab(height=1700)
    page.goto(base)
    steps_and_hides(page, lambda word: expect(page.locator(".vc-slider")).to_have_value(word))
    page.screenshot(path=screenshots / "marimo.png")
