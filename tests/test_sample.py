"""What a user of the sample corpus relies on: same bytes, true events, honest captions, a split that tests seeing."""

import itertools
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

from vcutils.config import UserError
from vcutils.corpora import sample
from vcutils.scores.naming import naming

CLIPS = 9


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sample.build(tmp_path_factory.mktemp("sample") / "corpus", clips=CLIPS, seed=3, progress=False)


def read_json(corpus: Path, name: str) -> dict:
    return json.loads((corpus / name).read_text(encoding="utf-8"))


def read_captions(corpus: Path) -> dict[str, list[str]]:
    captions: dict[str, list[str]] = {}
    for line in (corpus / "captions.txt").read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            clip, caption = line.split(" ", 1)
            captions.setdefault(clip, []).append(caption)
    return captions


def decode(corpus: Path, clip: str) -> tuple[float, list[np.ndarray]]:
    (path,) = (corpus / "videos").glob(f"{clip}.*")
    video = cv2.VideoCapture(str(path))
    assert video.isOpened(), path
    frames = []
    while (read := video.read())[0]:
        frames.append(read[1])
    return video.get(cv2.CAP_PROP_FPS), frames


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def scenes(events: dict, kind: str = "thing") -> list[dict]:
    return [event for event in events["events"] if event["kind"] == kind]


def combinations(clips: dict[str, dict], ids: list[str]) -> Iterator[tuple]:
    """All that a split may not share: unordered pairs of things of a clip, and thing with change of a scene."""
    for clip in ids:
        things = [tuple(scene["words"]) for scene in scenes(clips[clip])]
        changes = [tuple(change["words"]) for change in scenes(clips[clip], "change")]
        yield from (("pair", *sorted(pair)) for pair in itertools.combinations(things, 2))
        yield from (("changing", *both) for both in zip(things, changes, strict=True))


def test_same_seed_gives_the_same_bytes_and_another_seed_does_not(corpus: Path, tmp_path: Path) -> None:
    again = snapshot(sample.build(tmp_path / "again", clips=CLIPS, seed=3, progress=False))
    assert again == snapshot(corpus)
    one, other = sample.plan(CLIPS, 3), sample.plan(CLIPS, 4)
    assert not {str(clip.scenes) for clip in one} & {str(clip.scenes) for clip in other}
    assert not {clip.seed for clip in one} & {clip.seed for clip in other}


def test_no_temporary_files_are_left(corpus: Path) -> None:
    assert not [name for name in snapshot(corpus) if ".tmp" in name]
    assert len(list((corpus / "videos").iterdir())) == CLIPS


def test_every_clip_decodes_with_the_duration_of_its_events(corpus: Path) -> None:
    suffixes = set()
    for clip, events in read_json(corpus, "events.json").items():
        fps, frames = decode(corpus, clip)
        assert {frame.shape for frame in frames} == {(240, 320, 3)}
        assert len(frames) / fps == pytest.approx(events["duration"], abs=1e-4)
        assert 1 <= events["duration"] <= 4
        assert 4 <= fps <= 25
        suffixes.update(path.suffix for path in (corpus / "videos").glob(f"{clip}.*"))
    assert suffixes == {".mp4", ".avi"}


def test_events_tile_the_clip(corpus: Path) -> None:
    for events in read_json(corpus, "events.json").values():
        for kind in ("thing", "change"):
            found = scenes(events, kind)
            assert [e["start"] for e in found] == [0, *(e["end"] for e in found[:-1])]
            assert found[-1]["end"] == events["duration"]
        assert len({tuple(scene["words"]) for scene in scenes(events)}) == len(scenes(events))  # never twice


def test_a_border_is_where_the_photograph_changes() -> None:
    """A cut one frame off its event would turn attention's ground truth into noise."""
    for clip in sample.plan(40, 0)[:6]:
        rng = np.random.default_rng(clip.seed)
        frames = [f for s in clip.scenes for f in sample._frames(s, sample._read_photo(s.photo.file), rng)]
        borders = [round(e["start"] * clip.fps) for e in scenes(sample.events(clip))[1:]]
        assert borders == np.cumsum([scene.frames for scene in clip.scenes])[:-1].tolist()
        assert len(frames) == round(sample.events(clip)["duration"] * clip.fps)


def test_scene_intervals_show_the_photograph_they_name(corpus: Path) -> None:
    """The frame in the middle of an interval looks more like the named photograph than like the clip's others."""
    clips = {clip.id: clip for clip in sample.plan(CLIPS, 3)}
    for name, events in read_json(corpus, "events.json").items():
        fps, frames = decode(corpus, name)
        rng = np.random.default_rng(clips[name].seed)
        rendered = [sample._frames(s, sample._read_photo(s.photo.file), rng) for s in clips[name].scenes]
        for index, (event, scene) in enumerate(zip(scenes(events), clips[name].scenes, strict=True)):
            assert event["words"] == list(scene.photo.words)
            middle = frames[round((event["start"] + event["end"]) / 2 * fps)]
            errors = [min(cv2.absdiff(middle, frame).mean() for frame in of_scene) for of_scene in rendered]
            assert int(np.argmin(errors)) == index and errors[index] < 12, (name, event, errors)


def test_changes_are_visible() -> None:
    """Going dark ends dark, squares have few edges, curtains leave the middle free, and so on."""
    photo = next(photo for photo in sample.PHOTOS if "a cat" in photo.names)

    def ends(name: str) -> tuple[np.ndarray, np.ndarray]:
        (change,) = [change for change in sample.CHANGES if change.name == name]
        scene = sample.Scene(photo, change, 9)
        frames = sample._frames(scene, sample._read_photo(photo.file), np.random.default_rng(0))
        return frames[0].astype(int), frames[-1].astype(int)

    start, end = ends("dark")
    assert end.mean() < 5 < 40 < start.mean()
    start, end = ends("snow")
    assert (start.min(axis=-1) > 240).mean() < 0.02 and (end.min(axis=-1) > 240).mean() > 0.7
    start, end = ends("squares")
    assert (np.diff(end, axis=1) != 0).mean() < 0.1 < (np.diff(start, axis=1) != 0).mean()
    start, end = ends("stripes")
    assert 0.6 < (end != start).any(axis=-1).mean() < 0.95
    start, end = ends("flood")
    assert (end[60:] == end[-1, 0]).all() and (end[:20] == start[:20]).all()
    start, end = ends("curtains")
    assert (end[:, [0, -1]] == end[0, 0]).all() and (end[:, 155:165] == start[:, 155:165]).all()


def test_five_captions_in_different_forms_name_every_thing_and_most_changes(corpus: Path) -> None:
    events = read_json(corpus, "events.json")
    captions = read_captions(corpus)
    assert captions.keys() == events.keys()
    named = []
    for clip, said in captions.items():
        assert len({sample.form_of(caption) for caption in said}) == len(said) == 5
        for caption in said:
            words = caption.split()
            assert caption == caption.lower() and len(words) <= 24
            for scene in scenes(events[clip]):
                assert set(scene["words"]) & set(words), (caption, scene)
            named += [bool(set(change["words"]) & set(words)) for change in scenes(events[clip], "change")]
    assert np.mean(named) >= 0.8


def test_words_of_changes_and_things_mean_one_thing_each() -> None:
    words = [word for table in (sample.PHOTOS, sample.CHANGES) for row in table for word in row.words]
    assert len(words) == len(set(words))
    assert not set(words) & {word for rows in sample.ORDER_WORDS.values() for row in rows for word in row}
    for change in sample.CHANGES:
        assert all(set(phrase.split()) & set(change.words) for phrase in (*change.does, *change.doing))


def test_every_form_is_known_by_its_sentence_and_no_other_is() -> None:
    assert len(sample.FORMS) >= 10
    known = {sample.form_of(caption) for clip in sample.plan(120, 0) for caption in sample.captions(clip)}
    assert known == set(range(len(sample.FORMS)))
    assert sample.form_of("a cat") is None and sample.form_of("") is None


def test_naming_counts_what_a_caption_says() -> None:
    scenes = [("cat", "snow"), ("cup", "dark"), ("rocket", "up")]
    rows = [(kind, words[n], at) for at, words in enumerate(scenes) for n, kind in enumerate(("thing", "change"))]
    clip = {"events": [{"kind": kind, "words": [word], "start": at} for kind, word, at in rows]}
    all_right = naming({"1": "a cat in snow then a cup goes dark and finally a rocket lights up"}, {"1": clip})
    assert all_right == {"things": 1, "changes": 1, "complete": 1, "scenes": 3, "triples": 1}
    exchanged = naming({"1": "a cat goes dark then a cup in snow"}, {"1": clip})
    assert (exchanged["things"], exchanged["changes"], exchanged["complete"]) == (2 / 3, 0, 0)
    assert naming({"2": "a cat"}, {"1": clip})["scenes"] == 0


def test_articles_agree() -> None:
    for clip in sample.plan(120, 0):
        for word, following in itertools.pairwise(" ".join(sample.captions(clip)).split()):
            if word in ("a", "an"):
                assert (word == "an") == (following[0] in "aeiou"), (word, following)


@pytest.mark.parametrize("clips", [8, 9, 12, 24, 60, 120, 300])
def test_splits_share_words_but_no_combination(clips: int) -> None:
    for seed in range(3):
        planned = sample.plan(clips, seed)
        events = {clip.id: sample.events(clip) for clip in planned}
        captions = {clip.id: " ".join(sample.captions(clip)).split() for clip in planned}
        splits = {s: [clip.id for clip in planned if clip.split == s] for s in ("train", "val", "test")}
        assert sum(map(len, splits.values())) == clips == len(events)
        assert len(splits["train"]) >= clips / 2 and len(splits["val"]) >= 2 and len(splits["test"]) >= 2
        found = {split: set(combinations(events, ids)) for split, ids in splits.items()}
        for one, other in itertools.combinations(found.values(), 2):
            assert not one & other
        vocabulary = {s: {word for i in ids for word in captions[i]} for s, ids in splits.items()}
        if clips >= 120:  # fewer do not show every synonym in every split
            assert vocabulary["test"] | vocabulary["val"] <= vocabulary["train"]


def test_vocabulary_is_small_and_often_seen() -> None:
    words = [
        word
        for clip in sample.plan(120, 0)
        if clip.split == "train"
        for caption in sample.captions(clip)
        for word in caption.split()
    ]
    counts = np.unique(words, return_counts=True)[1]
    assert len(counts) < 90 and counts.min() >= 3


def test_files_agree(corpus: Path) -> None:
    splits = read_json(corpus, "splits.json")
    assert list(splits) == ["train", "val", "test"]
    assert sorted(itertools.chain(*splits.values())) == sorted(read_json(corpus, "events.json"))


def test_second_build_touches_nothing(corpus: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in corpus.rglob("*")}
    assert sample.build(corpus, clips=CLIPS, seed=3, progress=False) == corpus
    assert before == {path: path.stat().st_mtime_ns for path in corpus.rglob("*")}


def test_unfinished_or_other_sample_is_replaced_and_strangers_stay(corpus: Path, tmp_path: Path) -> None:
    out = shutil.copytree(corpus, tmp_path / "out")
    (out / "notes.txt").write_text("mine")
    lost = next((out / "videos").iterdir())
    lost.unlink()  # an unfinished build
    (out / "videos" / "sample_0099.mp4").touch()  # of a larger corpus
    (out / "captions.txt").write_text(sample.HEADER + "\n")
    sample.build(out, clips=CLIPS, seed=3, progress=False)
    assert (out / "notes.txt").read_text() == "mine"
    assert {k: v for k, v in snapshot(out).items() if k != "notes.txt"} == snapshot(corpus)


@pytest.mark.parametrize("name", ["captions.txt", "videos/clip.mp4"])
def test_foreign_folder_is_refused_and_unchanged(tmp_path: Path, name: str) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("clip1 a man plays the flute\n")
    with pytest.raises(ValueError, match="something other than a sample corpus"):
        sample.build(tmp_path, clips=8, progress=False)
    assert list(snapshot(tmp_path)) == [name]


def test_too_few_clips_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least 8 clips"):
        sample.build(tmp_path / "few", clips=7)


def test_missing_codec_is_an_error_not_an_empty_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sample.cv2.VideoWriter, "isOpened", lambda self: False, raising=False)
    with pytest.raises(UserError, match="OpenCV cannot write"):
        sample.build(tmp_path / "out", clips=8, progress=False)
    assert not (tmp_path / "out" / "sample.json").exists()
