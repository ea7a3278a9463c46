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


def scenes(events: dict, kind: str = "scene") -> list[dict]:
    return [event for event in events["events"] if event["kind"] == kind]


def combinations(clips: dict[str, dict], ids: list[str]) -> Iterator[tuple]:
    """All that a split may not share: unordered noun pairs of a clip, and noun with motion of a scene."""
    for clip in ids:
        nouns = [tuple(scene["words"]) for scene in scenes(clips[clip])]
        motions = [tuple(motion["words"]) for motion in scenes(clips[clip], "motion")]
        yield from (("pair", *sorted(pair)) for pair in itertools.combinations(nouns, 2))
        yield from (("moving", *both) for both in zip(nouns, motions, strict=True))


def test_same_seed_gives_the_same_bytes_and_another_seed_does_not(corpus: Path, tmp_path: Path) -> None:
    again = snapshot(sample.build(tmp_path / "again", clips=CLIPS, seed=3, progress=False))
    assert again == snapshot(corpus)
    one, other = sample.plan(CLIPS, 3), sample.plan(CLIPS, 4)
    assert not {clip.scenes for clip in one} & {clip.scenes for clip in other}
    assert not {clip.seed for clip in one} & {clip.seed for clip in other}


def test_no_temporary_files_are_left(corpus: Path) -> None:
    assert not [name for name in snapshot(corpus) if ".tmp" in name]
    assert len(list((corpus / "videos").iterdir())) == CLIPS


def test_every_clip_decodes_with_the_duration_of_its_events(corpus: Path) -> None:
    suffixes = set()
    for clip, events in read_json(corpus, "events.json").items():
        fps, frames = decode(corpus, clip)
        assert {frame.shape for frame in frames} == {(240, 320, 3)}
        assert len(frames) / fps == pytest.approx(events["duration"], abs=1e-6)
        assert 4 <= events["duration"] <= 8
        assert 12 <= fps <= 25
        suffixes.update(path.suffix for path in (corpus / "videos").glob(f"{clip}.*"))
    assert suffixes == {".mp4", ".avi"}


def test_events_tile_the_clip(corpus: Path) -> None:
    for events in read_json(corpus, "events.json").values():
        for kind in ("scene", "motion"):
            found = scenes(events, kind)
            assert [e["start"] for e in found] == [0, *(e["end"] for e in found[:-1])]
            assert found[-1]["end"] == events["duration"]
        assert len({tuple(scene["words"]) for scene in scenes(events)}) == len(scenes(events))  # never twice


def test_pictures_change_sharply_at_the_borders_and_nowhere_else() -> None:
    """A cut one frame off its event would turn attention's ground truth into noise."""
    for clip in sample.plan(40, 0)[:6]:
        rng = np.random.default_rng(clip.seed)
        frames = [f for s in clip.scenes for f in sample._frames(s, sample._read_photo(s.photo.file), rng)]
        jumps = np.array([cv2.absdiff(a, b).mean() for a, b in itertools.pairwise(frames)])
        borders = [round(e["start"] * clip.fps) - 1 for e in scenes(sample.events(clip))[1:]]
        inside = np.delete(jumps, borders)
        hard = [i for i in borders if frames[i].mean() + frames[i + 1].mean() > 20]  # not from black to black
        assert all(jumps[i] > np.median(inside) for i in hard), (clip.id, jumps[borders])
        assert all(jumps[i] > jumps[i - 1] and jumps[i] > jumps[i + 1] for i in hard), (clip.id, jumps[borders])


def test_scene_intervals_show_the_photograph_they_name(corpus: Path) -> None:
    """The frame in the middle of an interval looks more like the named photograph than like the clip's others."""
    clips = {clip.id: clip for clip in sample.plan(CLIPS, 3)}
    for name, events in read_json(corpus, "events.json").items():
        fps, frames = decode(corpus, name)
        rng = np.random.default_rng(clips[name].seed)
        rendered = [list(sample._frames(s, sample._read_photo(s.photo.file), rng)) for s in clips[name].scenes]
        rendered = [frames_of[len(frames_of) // 2 - 2 : len(frames_of) // 2 + 3] for frames_of in rendered]
        for index, (event, scene) in enumerate(zip(scenes(events), clips[name].scenes, strict=True)):
            assert event["words"] == [w for w in scene.photo.words if w in event["words"]]
            middle = frames[round((event["start"] + event["end"]) / 2 * fps)]
            errors = [min(cv2.absdiff(middle, frame).mean() for frame in frames_of) for frames_of in rendered]
            assert int(np.argmin(errors)) == index and errors[index] < 12, (name, event, errors)


def test_motions_are_visible() -> None:
    """Zooming in ends nearer than it began, fading in ends brighter, and so on: what the captions claim."""
    # Red, so that its share of a frame is its size.
    photo = next(photo for photo in sample.PHOTOS if photo.phrase == "a retina")
    ends = {}
    for motion in sample.MOTIONS:
        frames = list(
            sample._frames(sample.Scene(photo, motion, 9), sample._read_photo(photo.file), np.random.default_rng(0))
        )
        share = [float((f[..., 2].astype(int) - f[..., 1] > 40).mean()) for f in frames]
        ends[motion.name] = share, [float(f.mean()) for f in frames]
    share, light = ends["zoom in"]
    assert share[0] < 0.3 and share[-1] > 0.7, (share[0], share[-1])
    share, light = ends["zoom out"]
    assert share[-1] < 0.3 and share[0] > 0.7, (share[0], share[-1])
    share, light = ends["fade in"]
    assert light[0] < 5 < 40 < light[-1]
    share, light = ends["fade out"]
    assert light[-1] < 5 < 40 < light[0]
    share, light = ends["pan"]
    assert share[0] < 0.4 > share[-1] and share[4] > 0.6
    share, light = ends["rotate"]
    assert max(share) - min(share) < 0.1


def test_five_different_captions_name_every_scene(corpus: Path) -> None:
    events = read_json(corpus, "events.json")
    captions = read_captions(corpus)
    assert captions.keys() == events.keys()
    for clip, said in captions.items():
        assert len(set(said)) == len(said) == 5
        for caption in said:
            words = caption.split()
            assert caption == caption.lower() and len(words) <= 20
            for scene in scenes(events[clip]):
                assert set(scene["words"]) & set(words), (caption, scene)
        together = set(" ".join(said).split())
        assert all(set(event["words"]) <= together for event in events[clip]["events"])


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
    assert len(counts) < 90 and counts.min() >= 5


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
