"""The live explorer in JupyterLab, in Chromium."""

import dataclasses
import itertools
import json
import re
import shutil
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


def test_notebook_05_in_jupyterlab(tiny_course, lab, tab, repo, tmp_path, screenshots):
    shutil.copy(repo / "notebooks" / "05_attention.ipynb", tmp_path / "05_attention.ipynb")
    page = tab(height=1800)
    address = lab(tmp_path, VCUTILS_PROFILE="tiny", VCUTILS_CORPUS="", VCUTILS_DATA=str(tiny_course))
    run_all(page, address("05_attention.ipynb"))
    saved = page.locator(".jp-OutputArea-output", has_text=str(Path("default") / "attention:"))
    expect(saved.first).to_be_visible(timeout=SLOW)
    expect(status_bar(page)).to_contain_text("| Idle", timeout=SLOW)
    assert page.locator("[data-mime-type='application/vnd.jupyter.stderr']", has_text="Error").count() == 0

    stage, words = page.locator(".vc-stage"), page.locator(".vc-words button")
    stage.scroll_into_view_if_needed()
    first, dark = stage.inner_text(), lights(page)
    page.locator(".widget-hslider .noUi-handle").first.press("ArrowRight")
    expect(words.nth(1)).to_have_class(re.compile("mod-active"))
    page.wait_for_timeout(400)  # the lights fade
    assert stage.inner_text() != first and lights(page) != dark
    page.screenshot(path=screenshots / "lab-notebook-05.png")

    frames = page.locator(".vc-strip .vc-frame")
    before, after = hide_until_the_caption_changes(page, range(frames.count()))
    assert before != after, "no frame changes what the model says"
    page.screenshot(path=screenshots / "lab-notebook-05-hidden.png")

    exported = tab()
    exported.goto(next(tiny_course.glob("*/runs/default/attention/explorer.html")).as_uri())
    assert exported.locator("#strip li").count() == frames.count()
    assert all(address.startswith(("file:", "data:")) for address in exported.asked)


def status_bar(page):
    return page.locator("#jp-bottom-panel")


def run_all(page, address):
    """Open a notebook in JupyterLab and run all its cells."""
    page.goto(address)
    expect(status_bar(page)).to_contain_text("| Idle", timeout=SLOW)
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()


def hide_until_the_caption_changes(page, frames):
    """Captions with and without the hidden frames; few models move for every frame, so one after the other goes."""
    hidden, captions = page.locator(".vc-strip .mod-active"), page.locator(".vc-effect td[dir=auto]")
    for index in list(frames)[:-1]:
        count = hidden.count()
        page.locator(".vc-strip .vc-frame").nth(index).click()
        expect(hidden).to_have_count(count + 1)
        expect(status_bar(page)).to_contain_text("| Idle")
        expect(captions).to_have_count(2)
        before, after = captions.all_inner_texts()
        if before != after:
            break
    return before, after


def lights(page):
    """How much each frame of the strip is darkened, 0 to 0.75."""
    shadows = page.eval_on_selector_all(
        ".vc-strip .vc-frame", "all => all.map(frame => getComputedStyle(frame).boxShadow)"
    )
    return [float(re.search(r"rgba\(0, 0, 0, ([\d.]+)\)|rgb\(0, 0, 0\)|none|$", shadow)[1] or 1) for shadow in shadows]


def test_explorer_in_jupyterlab(explorer_notebook, lab, tab, screenshots):
    page = tab(height=1500)
    run_all(page, lab(explorer_notebook.parent)(explorer_notebook.name))
    stage, words = page.locator(".vc-stage"), page.locator(".vc-words button")

    def word(index):
        return words.nth(index).inner_text().strip("\u200b")

    expect(stage).to_be_visible(timeout=SLOW)
    expect(page.locator(".jp-OutputArea-output", has_text="6 frames")).to_be_visible(timeout=SLOW)
    page.wait_for_timeout(500)
    page.screenshot(path=screenshots / "lab-light.png")

    # A step: the slider moves, the picture and the lights change, while the kernel sleeps.
    before, first = lights(page), stage.inner_text()
    assert len(before) == 6 and min(before) == 0
    words.nth(2).click()
    expect(stage).to_contain_text(f"“{word(2)}”")
    assert stage.inner_text() != first
    page.wait_for_timeout(400)  # the lights fade
    assert lights(page) != before
    page.locator(".widget-hslider .noUi-handle").first.press("ArrowRight")
    expect(words.nth(3)).to_have_class(re.compile("mod-active"))
    expect(stage).to_contain_text(f"“{word(3)}”")

    expect(status_bar(page)).to_contain_text("| Busy")
    (explorer_notebook.parent / "awake").touch()

    # Hiding: the strongest frame goes, and the model looks elsewhere.
    expect(status_bar(page)).to_contain_text("| Idle", timeout=SLOW)
    strongest = min(range(6), key=lights(page).__getitem__)
    page.locator(".vc-strip .vc-frame").nth(strongest).click()
    expect(page.locator(".vc-effect")).to_contain_text("without the hidden")
    expect(page.locator(".vc-strip .mod-active")).to_have_count(1)
    hidden_label = page.locator(".vc-strip .vc-frame").nth(strongest).inner_text()
    expect(stage).not_to_contain_text(f"the frame at {hidden_label}")
    page.screenshot(path=screenshots / "lab-hidden.png")
    before, after = hide_until_the_caption_changes(page, [i for i in range(6) if i != strongest])
    assert before != after, "a model that names two colours must say something else without one of them"
    assert page.locator(".vc-effect mark").count() > 0
    page.get_by_role("button", name="show all").click()
    expect(page.locator(".vc-strip .mod-active")).to_have_count(0)
    expect(page.locator(".vc-effect")).to_have_count(0)

    # Another caption, another clip.
    page.locator(".widget-radio input").nth(1).click()
    expect(page.locator(".widget-radio input").nth(1)).to_be_checked()
    clip = page.locator(".widget-dropdown select").first
    clip.select_option(index=1)
    expect(page.locator(".vc-strip .vc-frame")).to_have_count(6)
    expect(stage).to_be_visible()
    outside = [
        url for url in page.asked if not url.startswith(("http://127.0.0.1", "ws://127.0.0.1", "data:", "blob:"))
    ]
    assert not outside


def test_own_clip_in_jupyterlab(explorer_notebook, lab, tab, tmp_path, numbered_video, screenshots):
    (explorer_notebook.parent / "awake").touch()
    page = tab(height=1500)
    run_all(page, lab(explorer_notebook.parent)(explorer_notebook.name))
    stage, status = page.locator(".vc-stage"), page.locator(".vcx [role=status]")
    expect(stage).to_be_visible(timeout=SLOW)
    expect(status_bar(page)).to_contain_text("| Idle", timeout=SLOW)
    broken = tmp_path / "<b>broken<b>.mp4"
    broken.write_bytes(b"not a video" * 100)

    def upload(path):
        with page.expect_file_chooser() as chooser:
            page.locator(".widget-upload").click()
        chooser.value.set_files(path)

    upload(broken)
    expect(status).to_contain_text("<b>broken<b>.mp4: not a video that can be decoded")
    good = numbered_video(tmp_path / "mine.mp4", 3)
    upload(good)
    expect(page.locator(".vc-strip .vc-frame")).to_have_count(3)
    expect(status).to_have_text("mine.mp4")
    page.screenshot(path=screenshots / "lab-own-clip.png")
