"""The explorer's kernel side: what it says of odd clips, and what it leaves behind."""

import dataclasses
import json
import shutil
import tempfile
from datetime import datetime, timezone
from html.parser import HTMLParser
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from ipywidgets.widgets.widget import _instances

from vcutils.attention.explorer import Explorer, Player, live_html
from vcutils.attention.page import corpus_clip, page_for, with_captions
from vcutils.config import DecodeConfig, ModelConfig, UserError
from vcutils.corpora import open_corpus
from vcutils.corpus import save_splits
from vcutils.dataset import load_data
from vcutils.features import extract_corpus
from vcutils.model import CaptionModel
from vcutils.runtime.settings import to_json
from vcutils.runtime.store import FeatureStore
from vcutils.scores.runs import Run
from vcutils.vocab import build_vocabulary

IDS = ("one", "tall", "wide", "wide2", "wide3", "wide4")


@pytest.fixture
def run(tmp_path, tiny_config, write_video, fake_backbone):
    """An untrained model on odd clips: one frame, vertical, ordinary."""
    root = tmp_path / "odd"
    rng = np.random.default_rng(0)
    for i in IDS:
        size, count = ((160, 90), 12) if i == "tall" else ((60, 80), 1 if i == "one" else 12)
        frames = [cv2.resize(rng.integers(0, 256, (6, 8, 3), np.uint8), size[::-1]) for _ in range(count)]
        write_video(root / "videos" / f"{i}.avi", frames)
    (root / "captions.txt").write_text("".join(f"{i} a cat runs\n{i} <b>dog</b> سار 🐈 sits\n" for i in IDS), "utf-8")
    config = dataclasses.replace(tiny_config, data=tmp_path / "data", corpus=root)
    corpus = open_corpus(root)
    extract_corpus(corpus, config.artifacts, config.extract, progress=False)
    save_splits({"train": ["wide"], "val": ["wide2"], "test": list(IDS[:2])}, config.artifacts / "splits.json")
    vocabulary = build_vocabulary(corpus.captions, IDS, 1)
    vocabulary.save(config.artifacts / "vocab.json")
    torch.manual_seed(0)
    model = CaptionModel(ModelConfig(dropout=0.0), len(vocabulary), 12).eval()
    settings = json.loads(to_json(config)) | {"features": config.extract.backbone}
    data = load_data(corpus, config.artifacts, config.extract)
    return Run(config.artifacts / "runs" / "odd", settings, model, vocabulary, data, corpus.clips)


class Text(HTMLParser):
    """What a browser would show of a widget's HTML, and its elements."""

    def __init__(self, value):
        super().__init__()
        self.text, self.tags = "", []
        self.feed(value)

    def handle_data(self, data):
        self.text += data

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)


def test_clips_of_every_shape_open(run):
    explorer = Explorer(run, decode=DecodeConfig(beam_size=3, max_length=6))
    for i, frames in (("one", 1), ("tall", 6), ("wide", 6)):
        explorer.show_clip(i)
        assert explorer.message.value == ""
        assert len(explorer.frames.children) == frames
        assert explorer.shown.title == i
        player = explorer.player.children[0]
        assert player.slider.max == player.play.max == len(player.stack.children) - 1
        for hypothesis in explorer.shown.beams:
            assert hypothesis.attention.shape == (len(hypothesis.words), frames)
            np.testing.assert_allclose(hypothesis.attention.sum(axis=1), 1, atol=1e-5)
        assert len(explorer.beams.options) == len(explorer.shown.beams)


def test_hidden_frames_never_reach_the_model(run):
    view, features = corpus_clip(run, "wide")
    decode = DecodeConfig(beam_size=2, max_length=6)
    seen = with_captions(run, view, features, decode, {1, 4})
    assert seen.hidden == {1, 4}
    for hypothesis in seen.beams:
        assert (hypothesis.attention[:, [1, 4]] == 0).all()
        np.testing.assert_allclose(hypothesis.attention.sum(axis=1), 1, atol=1e-5)
    poisoned = features.clone()
    poisoned[[1, 4]] = 1e6
    again = with_captions(run, view, poisoned, decode, {1, 4})
    assert [h.score for h in again.beams] == [h.score for h in seen.beams]


def test_hide_show_and_the_last_frame(run):
    explorer = Explorer(run, "wide", DecodeConfig(beam_size=2, max_length=6))
    before = explorer.shown.beams[0].score
    explorer.frames.children[2].value = True  # a click on the frame
    assert explorer.hidden == explorer.shown.hidden == {2}
    assert "without the hidden" in explorer.effect.value
    explorer.span.index = (4, 5)
    explorer.hide.click()
    assert explorer.shown.hidden == {2, 4, 5}
    explorer.hide_frames(range(6))
    assert "At least one frame must stay visible" in explorer.message.value
    assert explorer.shown.hidden == {2, 4, 5}
    explorer.show_all.click()
    assert (explorer.shown.hidden, explorer.effect.value, explorer.message.value) == (frozenset(), "", "")
    assert explorer.shown.beams[0].score == before


def test_recaptioning_leaves_no_widgets_behind(run):
    explorer = Explorer(run, "wide", DecodeConfig(beam_size=2, max_length=6))
    explorer.hide_frames({1})
    explorer.hide_frames(())
    count = len(_instances)
    words = len(explorer.shown.beams[0].words)
    for _ in range(3):
        explorer.hide_frames({1})
        explorer.hide_frames(())
    assert len(explorer.shown.beams[0].words) == words
    assert len(_instances) <= count


def test_words_and_names_are_escaped(run, make_view):
    nasty = "<img/src=x/onerror=alert(1)>"
    view = make_view((f'{nasty} "q" سار 🐈',), title=nasty)
    looks = Player(view, view.beams[0], "scope").stack.children
    pages = [Text(html) for html in (live_html("heatmap", view, view.beams[0]), *(look.value for look in looks))]
    assert all("img" not in page.tags for page in pages)
    assert nasty in pages[0].text and nasty in pages[1].text  # heatmap, first word
    explorer = Explorer(run, "wide")
    explorer.show_file(Path("<b>no such</b>.mp4"))
    assert "b" not in Text(explorer.message.value).tags
    message = Text(explorer.message.value).text
    assert "<b>no such</b>.mp4: no such file" in message and "Still shown: wide" in message


def test_words_that_come_twice_have_buttons_of_their_own(make_view):
    view = make_view(("a cat and a cat and a dog",))
    buttons = Player(view, view.beams[0], "scope").words
    assert len(set(buttons.options)) == len(buttons.options) == 8  # ipywidgets would light the last of equal labels
    assert [label.strip("\u200b") for label in buttons.options] == view.beams[0].words


def test_own_clip_is_checked_and_leaves_nothing(run, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    corpus = sorted(p.name for p in run.data.root.rglob("*"))
    explorer = Explorer(run, "wide", DecodeConfig(max_length=6))

    def upload(name, content):
        file = {"name": name, "type": "video/mp4", "size": len(content), "content": memoryview(content)}
        explorer.upload.value = (file | {"last_modified": datetime.now(timezone.utc)},)
        return Text(explorer.message.value).text

    clip = (run.data.root / "videos" / "tall.avi").read_bytes()
    assert upload("../../evil.avi", clip) == "../../evil.avi"
    assert explorer.shown.title == "../../evil.avi"
    assert explorer.clip.value is None
    assert "not a video file" in upload("notes.txt", b"text")
    assert "the limit is 10" in upload("big.mp4", bytes(10_000_001))
    assert "not a video that can be decoded" in upload("broken.mp4", b"broken" * 99)
    assert explorer.shown.title == "../../evil.avi", "a bad clip leaves the last good one in view"
    assert not list((tmp_path / "tmp").iterdir())
    assert sorted(p.name for p in run.data.root.rglob("*")) == corpus
    explorer.clip.value = "one"
    assert explorer.shown.title == "one"


def test_lost_or_changed_clips_are_shown_as_numbers(run, write_video):
    videos = run.data.root / "videos"
    (videos / "wide.avi").write_bytes(b"cut")
    write_video(videos / "wide2.avi", [np.zeros((60, 80, 3), np.uint8)] * 2)
    (videos / "wide3.avi").unlink()
    explorer = Explorer(run, "wide", DecodeConfig(max_length=6))
    assert "No pictures" in explorer.message.value and "wide.avi" in explorer.message.value
    for video_id, reason in (("wide2", "not the one"), ("wide3", "no such file"), ("wide4", "only the features")):
        explorer.run = dataclasses.replace(run, clips={i: clip for i, clip in run.clips.items() if i != "wide4"})
        explorer.show_clip(video_id)
        assert reason in explorer.message.value
        assert len(explorer.frames.children) == 6


def test_features_without_times_are_counted(run):
    for manifest in run.data.store.folder.glob("manifest*"):
        manifest.unlink()
    store = FeatureStore(run.data.store.folder)
    view, _ = corpus_clip(dataclasses.replace(run, data=dataclasses.replace(run.data, store=store)), "wide")
    assert view.labels == [f"frame {n}" for n in range(1, 7)]
    assert [p.shape for p in view.pictures] == [(120, 160, 3)] * 6


def test_save_shows_the_clip_with_and_without_its_frames(run, tmp_path):
    explorer = Explorer(run, "wide", DecodeConfig(beam_size=2, max_length=6))
    explorer.hide_frames({0, 1})
    path = explorer.save(tmp_path / "out" / "page.html", ["wide", "tall"])
    text = path.read_text(encoding="utf-8")
    assert '["wide","wide (2 frames hidden)","tall"]' in text


def test_page_for_ids_and_files_with_problems_listed(run, tmp_path):
    shutil.copy(run.data.root / "videos" / "tall.avi", tmp_path / "own.avi")
    (tmp_path / "broken.mp4").write_bytes(b"broken")
    clips = ["wide", tmp_path / "own.avi", tmp_path / "broken.mp4", "nowhere"]
    out = tmp_path / "page.html"
    problems = page_for(run, clips, out, DecodeConfig(max_length=6))
    assert "broken.mp4: not a video" in problems[0]
    assert problems[1:] == ["nowhere: neither a clip of odd nor a file"]
    assert '["wide","own.avi"]' in out.read_text(encoding="utf-8")
    with pytest.raises(UserError, match="no page written"):
        page_for(run, ["nowhere"], tmp_path / "none.html", DecodeConfig(max_length=6))
    assert not (tmp_path / "none.html").exists()
