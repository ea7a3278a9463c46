"""What the notebooks need around them: pictures drawn by code, pages in cells, HTML that works offline."""

import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import ipywidgets
import nbformat
import numpy as np
import pytest
from IPython.core.formatters import DisplayFormatter
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from vcutils.course.export import export_html, main, mathml
from vcutils.course.pages import frame, with_model, with_page
from vcutils.course.pictures import attention_picture, beam_tree, model_picture, split_picture

NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))
NASTY = "<&\">'"
SIZES = dict(B=32, K=5, T=16, L=18, D=1280, E=128, H=256, A=96, C=512, V=60)
STEPS = [
    [(0, "a", -0.4, True, False), (0, "the", -1.3, True, False), (0, "an", -2.9, False, False)],
    [(0, "cat", -1.0, True, False), (1, NASTY, -1.5, True, False), (1, "dog", -4.0, False, False)],
    [(0, "<end>", -3.0, True, True), (1, "<end>", -2.1, True, True), (1, "sits", -5.0, False, False)],
]
PAIRS = {"train": [("cat", "fades"), ("moon", "fades")], "test": [("cat", "zooms"), ("moon", "fades")]}


def drawn(picture):
    """The root element of a picture and its texts."""
    root = ElementTree.fromstring(picture.svg)
    return root, [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]


def test_model_picture_names_every_shape_with_its_numbers():
    _, texts = drawn(model_picture(**SIZES))
    for letters in ("BTD", "BTC", "BTA", "BK", "BKE", "BKH", "BKC", "BKV", "BKLV", "BKLT"):
        assert " × ".join(letters) in texts
        assert "×".join(f"{SIZES[letter]:,}" for letter in letters) in texts
    assert "= 1,280 feature size" in texts


def test_attention_picture_shows_scores_weights_and_their_sum():
    image = np.full((30, 40, 3), 200, np.uint8)
    picture = attention_picture([NASTY, "b", "c"], [1.0, -0.5, -math.inf], [0.8, 0.2, 0.0], [image] * 3, query=NASTY)
    root, texts = drawn(picture)
    assert texts.count(NASTY) == 2 and {"1.00", "−0.50", "−∞", "0.80", "0.20", "0.00", "padding"} <= set(texts)
    assert "context = 0.80 m₁ + 0.20 m₂ + 0.00 m₃" in texts
    images = list(root.iter("{http://www.w3.org/2000/svg}image"))
    assert len(images) == 3 and images[0].get("href").startswith("data:image/jpeg;base64,")
    with pytest.raises(ValueError, match="3 labels"):
        attention_picture(["a", "b", "c"], [1.0, 2.0], [0.5, 0.5])


def test_beam_tree_finds_the_path_that_ranks_first():
    picture = beam_tree(STEPS)
    _, texts = drawn(picture)
    assert picture.alt == f"A beam search of 3 steps; its best path: the {NASTY} <end>."
    assert f"best: total / words = {-2.1 / 3:.2f}".replace("-", "−") in texts
    assert {"<start>", "word 3", "−2.10", NASTY, "kept", "ended", "pruned"} <= set(texts)
    assert "best path: a cat <end>." in beam_tree([*STEPS[:2], [(0, "<end>", -2.0, True, True), *STEPS[2][1:]]]).alt


def test_beam_tree_without_an_end_takes_the_likeliest_and_length_can_count_less():
    assert beam_tree(STEPS[:2]).alt.endswith("its best path: a cat.")
    short, long = (0, "<end>", -1.2, True, True), (0, "on", -1.3, True, False)
    steps = [[(0, "go", -1.0, True, False)], [short, long], [(0, "<end>", -1.5, True, True)]]
    assert beam_tree(steps).alt.endswith("go on <end>."), "-1.5 / 3 words ranks before -1.2 / 2"
    assert beam_tree(steps, length_penalty=0.0).alt.endswith("go <end>.")
    with pytest.raises(ValueError, match=r"step 2, 'x': parent 1 of 1 beams"):
        beam_tree([[(0, "a", -1.0, True, False), (0, "b", -2.0, True, True)], [(1, "x", -3.0, True, False)]])


def test_split_picture_shows_who_alone_has_a_pair():
    picture = split_picture(PAIRS, ["cat", "moon"], ["fades", "zooms"])
    _, texts = drawn(picture)
    assert picture.alt == "Pairs that only one split shows: 1 in train, 1 in test."
    assert {"1 pair only in train", "1 pair only in test", "1 in several splits", "1 in none"} <= set(texts)
    with pytest.raises(ValueError, match=r"'dog'.*no row"):
        split_picture({"train": [("dog", "fades")]}, ["cat"], ["fades"])


def test_picture_is_shown_by_a_cell_and_saved_whole(tmp_path):
    picture = split_picture(PAIRS, ["cat", "moon"], ["fades", "zooms"])
    data, metadata = DisplayFormatter().format(picture)
    assert data["image/svg+xml"] == picture.svg
    assert metadata["image/svg+xml"]["alt"] == picture.alt
    assert picture.save(tmp_path / "new" / "split.svg").read_text("utf-8") == picture.svg
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["split.svg"]
    assert " id=" not in picture.svg, "two pictures in one page must not share names"


class _Attributes(HTMLParser):
    """Every start tag of a page with its attributes."""

    def __init__(self, html):
        super().__init__()
        self.tags = []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))


def assert_offline(html):
    """Nothing is loaded from anywhere, and no script runs in the page itself."""
    for tag, attributes in _Attributes(html).tags:
        assert tag not in ("script", "link", "object", "embed", "base"), tag
        for name in ("src", "srcset", "poster", "background"):
            assert attributes.get(name, "data:").startswith("data:"), (tag, attributes[name][:80])
    styles = "".join(re.findall(r"<style.*?</style>", html, re.S))
    assert not re.search(r"@import|url\(\s*['\"]?(?!data:|#|['\"])", styles)


FORMULAS = {
    r"\tanh(W_h\, h)": "tanh",
    r"v^\top": "⊤",
    r"\text{score}": "<mtext>score</mtext>",
    r"\frac{a}{b}": "<mfrac>",
    r"\sum_{t=1}^{T} \alpha_t": "<munderover>",
    r"\begin{aligned} a &= b \\ c &= d \end{aligned}": "<mtable",
    r"\operatorname{softmax}": "softmax",
    r"n \log p": 'space width="0.17em"/><mi>log</mi><mspace width="0.17em"/><mi>p',
}


@pytest.mark.parametrize("formula", FORMULAS)
def test_formulas_become_mathml(formula, capsys):
    drawn = mathml(formula, "block").replace("&#x022A4;", "⊤")
    assert drawn.startswith("<math ") and 'display="block"' in drawn and FORMULAS[formula] in drawn
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("formula", [r"\frac{", r"\nosuchthing x", r"a & b <i>"])
def test_what_is_no_formula_stays_visible_and_is_named(formula, capsys):
    shown = mathml(formula, "inline")
    assert shown.startswith("<code>") and "<i>" not in shown
    assert repr(formula) in capsys.readouterr().err


def test_exported_html_has_formulas_pages_and_nothing_from_elsewhere(tmp_path, capsys):
    page = f"<!doctype html><p id='it'>{NASTY} &lt;</p><script>1 < 2 && 3 > 2</script>"
    view = "application/vnd.jupyter.widget-view+json"
    outputs = [
        new_output("display_data", {view: {"model_id": "x"}, "text/html": frame(page, 400), "text/plain": "Explorer"}),
        new_output("display_data", {view: {"model_id": "y"}, "text/plain": "IntSlider(value=0)"}),
        new_output("display_data", {"text/markdown": r"| $\alpha$ |" + "\n|---|\n| 1 |"}),
    ]
    prose = "Inline $x^2$ and\n\n$$\\frac{a}{b}$$\n\n`$HOME and $PATH`, \\$5\n\n```\n$$code$$\n```"
    notebook = new_notebook(cells=[new_markdown_cell(prose), new_code_cell("cost = '$x$'", outputs=outputs)])
    notebook.metadata["widgets"] = {"application/vnd.jupyter.widget-state+json": {"state": {"x": {}, "y": {}}}}
    nbformat.write(notebook, tmp_path / "one.ipynb")
    assert main([str(tmp_path)]) == 0
    html = (tmp_path / "one.html").read_text("utf-8")
    assert_offline(html)
    assert html.count("<math") == 3 and "$$code$$" in html and "$HOME and $PATH" in html
    frames = [attributes for tag, attributes in _Attributes(html).tags if tag == "iframe"]
    assert [f["srcdoc"] for f in frames] == [page], "the page arrives as it was, quotes and signs too"
    assert frames[0]["sandbox"] == "allow-scripts"
    assert "IntSlider(value=0)" in html and "widget-view" not in html
    assert "prefers-color-scheme: dark" in html
    assert main([]) == main([str(tmp_path / "none")]) == 2
    assert "use: python -m vcutils.course.export FOLDER" in capsys.readouterr().err


def test_the_explorer_of_an_exported_notebook_carries_the_model_where_it_was_saved_so(tmp_path):
    small, other = frame("<title>Attention explorer</title> it's \\1", 300), frame("<title>a canvas</title>", 300)
    assert with_model(small + other, tmp_path / "explorer.html") == small + other
    (tmp_path / "explorer.html").write_text(page := "<title>Attention explorer</title> it's \\1 with the model")
    assert with_model(small + other, tmp_path / "explorer.html") == frame(page, 300) + other
    cells = [new_code_cell("1", outputs=[new_output("display_data", {"text/html": small})])]
    out = tmp_path / "data" / "notebooks"
    saved = tmp_path / "data" / "runs" / "default" / "attention" / "explorer.html"
    for path in (out, saved.parent):
        path.mkdir(parents=True)
    saved.write_text(page)
    nbformat.write(new_notebook(cells=cells), out / "05.ipynb")
    assert main([str(out)]) == 0 and "with the model" in (out / "05.html").read_text("utf-8")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_course_works_without_a_network(path, tmp_path, capsys):
    (page,) = export_html([path], tmp_path)
    assert_offline(page.read_text("utf-8"))
    assert capsys.readouterr().err == "", "a formula that browsers are not given as MathML"
    cells = json.loads(path.read_text("utf-8"))["cells"]
    markdown = "".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    assert page.read_text("utf-8").count('display="block"') >= markdown.count("$$") // 2


class _AnyWidget:
    """Answers as anywidget does: data, and metadata that hosted notebooks need."""

    def _repr_mimebundle_(self, **_):
        return {"text/plain": "A", "application/vnd.jupyter.widget-view+json": {"model_id": "m"}}, {"a": {"b": 1}}


@pytest.mark.parametrize("widget", [ipywidgets.IntSlider(), _AnyWidget()], ids=["ipywidgets", "anywidget"])
def test_cell_carries_the_widget_and_its_page_in_one_output(widget, monkeypatch):
    shown = []
    monkeypatch.setattr("vcutils.course.pages.display", lambda data, **rest: shown.append((data, rest)))
    with_page(widget, f"<p>{NASTY}</p>", height=300)
    ((data, rest),) = shown
    assert set(data) == {"text/plain", "text/html", "application/vnd.jupyter.widget-view+json"}
    assert "height:300px" in data["text/html"]
    assert rest == {"raw": True, "metadata": {"a": {"b": 1}} if isinstance(widget, _AnyWidget) else {}}
    assert dict(_Attributes(data["text/html"]).tags)["iframe"]["srcdoc"] == f"<p>{NASTY}</p>"
