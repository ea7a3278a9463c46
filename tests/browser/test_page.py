"""The exported page in Chromium, from disk, without a network."""

import dataclasses

import numpy as np
import pytest

from vcutils.attention.page import page_html, save_page

expect = pytest.importorskip("playwright.sync_api", reason="no Playwright: pip install playwright").expect
NASTY = '<script>alert("caption")</script>'
EVIL_TITLE = "<!--<script></script ><img src=x onerror=alert(1)> \"quoted\" & 'so on' \u2028 🐈"


@pytest.fixture
def show(tab, tmp_path):
    """Function: save views as a page, open it from disk, and return its tab."""

    def open_page(*views, **settings):
        path = save_page(tmp_path / "page with #? blanks.html", views)
        page = tab(offline=True, **settings)
        page.goto(path.as_uri())
        page.wait_for_selector(".vc-words button")
        return page

    yield open_page
    assert not tab.errors


def shown_frame(page):
    return int(page.get_attribute(".vc-big", "data-frame"))


def current_word(page):
    return page.inner_text(".vc-words [aria-current] > span")


def test_first_view_comes_at_once_and_nothing_is_asked_of_any_network(show, make_view, record_property):
    frames = 40
    page = show(make_view(frames=frames, size=(270, 360)))
    observe = "new PerformanceObserver(list => done(list.getEntries().at(-1).startTime))"
    paint = page.evaluate(f"new Promise(done => {observe}.observe({{ type: 'paint', buffered: true }}))")
    record_property("first view, ms", round(paint))
    print(f"first view of {frames} frames: {paint:.0f} ms")
    assert paint < 5000
    assert page.locator(".vc-strip li").count() == frames
    assert all(url.startswith(("file:", "data:")) for url in page.asked)


def test_every_word_is_reached_by_tab_and_by_arrow_keys(show, make_view):
    view = make_view()
    words = view.beams[0].words
    peaks = view.beams[0].attention.argmax(axis=1).tolist()
    page = show(view)
    seen = [(current_word(page), shown_frame(page))]
    for _ in words[1:]:
        page.keyboard.press("ArrowRight")
        seen.append((current_word(page), shown_frame(page)))
    assert seen == list(zip(words, peaks, strict=True))
    page.keyboard.press("ArrowLeft")
    assert current_word(page) == words[-2]

    page.locator(".vc-words button").first.focus()
    for word in words[1:]:
        page.keyboard.press("Tab")
        page.keyboard.press("Enter")
        assert current_word(page) == word
        assert page.evaluate("document.activeElement.matches('.vc-words [aria-current]')")
    page.keyboard.press("Home")
    assert current_word(page) == words[0]
    page.keyboard.press("End")
    assert current_word(page) == words[-1]


def test_up_and_down_choose_another_caption(show, make_view):
    page = show(make_view(captions=("a cat sits", "a dog runs away", "birds")))
    page.locator(".vc-words button").nth(2).click()
    page.keyboard.press("ArrowDown")
    assert page.locator(".vc-words button > span:first-child").all_inner_texts() == ["a", "dog", "runs", "away"]
    assert current_word(page) == "runs"
    page.keyboard.press("ArrowDown")
    assert current_word(page) == "birds", "a shorter caption must not leave the word out of range"
    page.keyboard.press("ArrowUp")
    page.keyboard.press("ArrowUp")
    assert page.inner_text(".vc-beams [aria-current] bdi") == "a cat sits"
    page.locator(".vc-beams button").nth(1).click()
    assert page.locator(".vc-words button > span:first-child").nth(1).inner_text() == "dog"


def test_pointing_works_everywhere(show, make_view):
    view = make_view()
    peaks = view.beams[0].attention.argmax(axis=1).tolist()
    page = show(view)
    page.locator(".vc-words button").nth(3).click()
    assert shown_frame(page) == peaks[3]
    page.locator(".vc-tile").nth(7).click()
    assert shown_frame(page) == 7
    assert "of its attention" in page.inner_text(".vc-answer")
    page.locator(".vc-heat tbody tr").nth(2).locator("td").nth(5).click()
    assert (page.inner_text(".vc-position"), shown_frame(page)) == ("word 3 of 7", 5)
    assert page.locator(".vc-heat tr[aria-current]").count() == 1
    page.locator(".vc-slider").fill("6")
    assert shown_frame(page) == peaks[6]
    page.locator(".vc-next").click()
    assert current_word(page) == view.beams[0].words[6], "nothing comes after the last word"


def test_strip_is_lit_by_weight_and_says_so(show, make_view):
    page = show(make_view(), reduced_motion="reduce")
    lights = page.eval_on_selector_all(".vc-strip img", "all => all.map(image => Number(getComputedStyle(image).opacity))")
    assert lights[0] == 1 and max(lights[1:]) < 0.3
    assert page.locator(".vc-strip .vc-strongest").count() == 1
    assert "the frame at 0.2 s, 94 %" in page.locator(".vc-tile").first.get_attribute("aria-label")
    assert page.get_attribute(".vc-answer", "role") == "status"
    assert "“a” looks most at the frame at 0.2 s" in page.inner_text(".vc-answer")
    assert page.locator("img:not([alt])").count() == 0


def test_space_plays_through_the_words_and_stops_at_the_end(show, make_view):
    page = show(make_view(captions=("a cat",)))
    page.keyboard.press("Space")
    assert page.inner_text(".vc-play") == "Pause"
    expect(page.locator(".vc-words [aria-current] > span:first-child")).to_have_text("cat")
    expect(page.locator(".vc-play")).to_have_text("Play")
    page.locator(".vc-play").click()
    assert current_word(page) == "a", "playing starts again from the first word"
    page.keyboard.press("Space")
    assert page.inner_text(".vc-play") == "Play"


def test_captions_and_names_are_shown_as_text_and_run_nothing(show, make_view):
    nasty = [NASTY, '"><svg/onload=alert(2)>', "{{data}}", "it's", "&lt;b&gt;", "</script>"]
    view = make_view(captions=(" ".join(nasty), NASTY), title=EVIL_TITLE, references=(NASTY,), note=NASTY)
    page = show(view, dataclasses.replace(view, title=NASTY))
    assert page.locator(".vc-words button > span:first-child").all_inner_texts() == " ".join(nasty).split()
    assert "".join(page.inner_text(".vc-title").split()) == "".join(EVIL_TITLE.split())
    assert page.inner_text(".vc-note") == NASTY
    assert page.inner_text(".vc-references li") == NASTY
    assert page.locator(".vc-chooser option").nth(1).inner_text() == NASTY
    assert page.locator("svg, body img[src='x'], main script").count() == 0
    page.keyboard.press("ArrowRight")
    page.wait_for_timeout(300)  # time for a script that should not be there


def test_right_to_left_words_and_emoji(show, make_view, screenshots):
    page = show(make_view(captions=("قطة تجلس هنا 🐈",), title="مقطع 🐈"))
    page.screenshot(path=screenshots / "page-rtl.png", full_page=True)
    left = [box["x"] for box in (button.bounding_box() for button in page.locator(".vc-words button").all())]
    assert left == sorted(left, reverse=True), "the first word stands on the right"
    page.keyboard.press("ArrowLeft")
    assert current_word(page) == "تجلس", "the left arrow goes to the word on the left"


def test_chooser_shows_several_clips(show, make_view, screenshots):
    views = [
        make_view(title="wide"),
        make_view(("one", "two words"), frames=1, title="one frame, one word"),
        make_view(frames=40, size=(160, 90), title="tall, long"),
        dataclasses.replace(make_view(title="no pictures"), images=None, timed=False),
        make_view(title="hidden", hidden=frozenset([2])),
    ]
    page = show(*views)
    for index, view in enumerate(views):
        page.select_option(".vc-chooser select", index=index)
        assert page.inner_text(".vc-title") == view.title
        assert page.locator(".vc-strip li").count() == len(view.timestamps)
        assert page.locator(".vc-words button").count() == len(view.beams[0].words)
        assert page.evaluate("document.querySelector('.vc-big img').decode().then(() => true)")
        page.screenshot(path=screenshots / f"page-clip-{index}.png", full_page=True)
    assert page.locator(".vc-strip .vc-off").count() == 1
    assert "hidden" in page.locator(".vc-strip .vc-off").inner_text()


@pytest.mark.parametrize("frames, size", [(8, (60, 80)), (40, (160, 90)), (1, (45, 160))])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_phone_width_fits_and_colours_follow_the_scheme(show, make_view, screenshots, frames, size, scheme):
    long = "Donaudampfschifffahrtselektrizitätenhauptbetriebswerkbauunterbeamtengesellschaft"
    view = make_view((f"a cat near the {long} sits", "a"), frames, size, title=f"{long}{long}.mp4")
    page = show(view, view, width=360, height=740, color_scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)")
    assert (np.mean(paper) > 128) == (scheme == "light")
    page.screenshot(path=screenshots / f"page-phone-{scheme}-{frames}.png", full_page=True)


def test_step_takes_less_script_time_than_a_screen_refresh(show, make_view, record_property):
    page = show(make_view((" ".join(f"word{i}" for i in range(20)),), frames=40, size=(270, 360)))
    measure = """() => { const times = [];
      for (let i = 0; i < 19; i++) { const start = performance.now();
        document.body.dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowRight", bubbles: true }));
        times.push(performance.now() - start); }
      return times.sort((a, b) => a - b)[9]; }"""
    median = page.evaluate(measure)
    record_property("step, ms of script", round(median, 2))
    print(f"a step among 20 words x 40 frames: {median:.2f} ms of script")
    assert median < 16


def test_page_stays_under_its_size_however_rough_the_pictures(tmp_path, make_view):
    rng = np.random.default_rng(0)
    view = make_view((" ".join(["word"] * 20),) * 5, frames=40, size=(270, 480))
    noise = [rng.integers(0, 256, (270, 480, 3), dtype=np.uint8) for _ in range(40)]
    page = save_page(tmp_path / "noise.html", [dataclasses.replace(view, images=noise)])
    assert page.stat().st_size < 1_500_000


def test_page_is_written_whole_or_not_at_all(tmp_path, make_view):
    path = tmp_path / "page.html"
    path.write_text("before")
    broken = dataclasses.replace(make_view(), timestamps=[0.0])
    with pytest.raises(ValueError, match="8 pictures do not fit 1 frames"):
        save_page(path, [make_view(), broken])
    with pytest.raises(ValueError, match="at least one clip"):
        save_page(path, [])
    assert [p.name for p in tmp_path.iterdir()] == ["page.html"]
    assert path.read_text() == "before"


def test_page_names_no_address_outside_itself(tmp_path, make_view):
    text = save_page(tmp_path / "page.html", [make_view()]).read_text(encoding="utf-8")
    assert "http:" not in text and "https:" not in text and "//cdn" not in text
    assert "default-src 'none'" in text and "unsafe-inline" not in text
