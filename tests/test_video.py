"""Clips become evenly spread RGB frames with true times, whatever the header claims."""

import cv2
import numpy as np
import pytest

from vcutils.runtime.capture import VideoError
from vcutils.runtime.decoding import frames_at, unreadable_clips
from vcutils.video import frame_indices, sample_frames


def decode_all(path):
    """Every frame, RGB, the naive way."""
    capture, frames = cv2.VideoCapture(str(path)), []
    while (read := capture.read())[0]:
        frames.append(cv2.cvtColor(read[1], cv2.COLOR_BGR2RGB))
    return frames


@pytest.mark.parametrize(("total", "count"), [(100, 7), (41, 40), (79, 40), (300, 40), (40, 40), (1000, 16), (5, 1)])
def test_indices_lie_in_the_middle_of_equal_parts(total, count):
    indices = frame_indices(total, count)
    assert len(indices) == count
    for i, index in enumerate(indices):
        assert i * total / count <= index + 0.5 <= (i + 1) * total / count + 0.5
    assert all(0 <= i < total for i in indices) and len(set(indices)) == count and indices == sorted(indices)


def test_indices_cover_the_end_of_a_clip_too():
    # range(0, 79, 79 // 40)[:40] of the original notebook would stop at frame 39.
    assert frame_indices(79, 40)[-1] >= 77


@pytest.mark.parametrize("total", [0, 1, 3, 8])
def test_short_clip_gives_every_frame_once(total):
    assert frame_indices(total, 8) == list(range(total))


@pytest.mark.parametrize("suffix", [".avi", ".mp4"])
def test_sampled_frames_are_the_ones_they_claim_to_be(tmp_path, numbered_video, read_number, suffix):
    frames = sample_frames(numbered_video(tmp_path / f"clip{suffix}", 50), 8)
    assert frames.decoded == 50
    assert frames.indices == frame_indices(50, 8)
    assert [read_number(f) for f in frames.images] == frames.indices


@pytest.mark.parametrize("suffix", [".avi", ".mp4"])
def test_frames_equal_those_of_a_full_sequential_decode(tiny_corpus, suffix):
    path = next(p for p in tiny_corpus.clips.values() if p.suffix == suffix)
    everything, frames = decode_all(path), sample_frames(path, 9)
    assert frames.decoded == len(everything)
    for index, image in zip(frames.indices, frames.images, strict=True):
        assert np.array_equal(image, everything[index])


def test_short_clip_is_not_padded(tmp_path, numbered_video, read_number):
    frames = sample_frames(numbered_video(tmp_path / "short.avi", 5), 40)
    assert [read_number(f) for f in frames.images] == [0, 1, 2, 3, 4]
    assert len(frames.timestamps) == len(frames.indices) == 5


def test_frames_are_rgb(tmp_path, write_video):
    red = np.zeros((48, 64, 3), np.uint8)
    red[:, :, 2] = 230  # OpenCV writes BGR
    frames = sample_frames(write_video(tmp_path / "red.avi", [red] * 4), 2)
    channels = frames.images[0].mean(axis=(0, 1))
    assert channels[0] > 180 and channels[1] < 60 and channels[2] < 60
    assert frames.images[0].dtype == np.uint8 and frames.images[0].shape == (48, 64, 3)


@pytest.mark.parametrize(("suffix", "fps"), [(".avi", 10), (".mp4", 10), (".mp4", 25), (".avi", 12)])
def test_timestamps_are_the_frames_times(tmp_path, numbered_video, suffix, fps):
    frames = sample_frames(numbered_video(tmp_path / f"clip{suffix}", 48, fps), 6)
    assert frames.fps == pytest.approx(fps, rel=1e-3)
    assert frames.timestamps == pytest.approx([i / fps for i in frames.indices], abs=2e-3)
    assert frames.duration == pytest.approx(48 / fps, rel=1e-3)


def test_header_that_lies_gives_frames_spread_over_what_decodes(tmp_path, numbered_video, read_number):
    path = numbered_video(tmp_path / "cut.avi", 60)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 2 // 3])
    claimed = cv2.VideoCapture(str(path)).get(cv2.CAP_PROP_FRAME_COUNT)
    frames = sample_frames(path, 6)
    assert 10 < frames.decoded < claimed  # else this test tests nothing
    assert frames.indices == frame_indices(frames.decoded, 6)
    assert [read_number(f) for f in frames.images] == frames.indices


def test_each_is_applied_to_every_frame(tmp_path, numbered_video):
    path = numbered_video(tmp_path / "clip.avi", 20)
    plain, reduced = sample_frames(path, 5), sample_frames(path, 5, each=lambda f: float(f.mean()))
    assert reduced.images == [float(f.mean()) for f in plain.images]
    assert reduced.indices == plain.indices


def broken(tmp_path, kind, numbered_video):
    path = tmp_path / f"{kind}.mp4"
    if kind == "empty":
        path.write_bytes(b"")
    elif kind == "text":
        path.write_text("this is no video\n" * 100)
    elif kind == "cut":
        content = numbered_video(path, 40).read_bytes()
        path.write_bytes(content[: len(content) // 3])
    elif kind == "folder":
        path.mkdir()
    return path


@pytest.mark.parametrize("kind", ["missing", "empty", "text", "cut", "folder"])
def test_broken_clip_is_named(tmp_path, numbered_video, kind):
    path = broken(tmp_path, kind, numbered_video)
    with pytest.raises(VideoError, match=f"{kind}.mp4"):
        sample_frames(path, 4)
    assert set(unreadable_clips({"x": path})) == {"x"}


def test_readable_clips_are_not_called_unreadable(tmp_path, numbered_video):
    path = numbered_video(tmp_path / "cut.avi", 60)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 2 // 3])
    assert unreadable_clips({"x": path, "y": numbered_video(tmp_path / "one.avi", 1)}) == {}


def test_frames_at_gives_the_noted_frames_scaled(tmp_path, numbered_video, read_number):
    path = numbered_video(tmp_path / "clip.avi", 30)
    full = len(sample_frames(path, 1).images[0])
    assert [read_number(f) for f in frames_at(path, [2, 17, 29], full)] == [2, 17, 29]
    assert [f.shape for f in frames_at(path, [2, 17], 48)] == [(48, 64, 3)] * 2


def test_real_msvd_clips_decode(msvd_mini):
    clips = sorted((msvd_mini / "videos").iterdir())
    assert len(clips) == 18
    assert unreadable_clips({p.stem: p for p in clips}) == {}
    for path in sorted(clips, key=lambda p: p.stat().st_size)[:6]:
        frames = sample_frames(path, 8, each=lambda f: f.shape)
        assert len(frames.images) == 8 and frames.indices == frame_indices(frames.decoded, 8)
        assert frames.timestamps == pytest.approx([i / frames.fps for i in frames.indices], abs=1.5 / frames.fps)
        first, last = map(int, path.stem.rsplit("_", 2)[1:])  # MSVD names its clips by their seconds
        assert frames.duration == pytest.approx(last - first, abs=1.5)


def test_real_vtt_clips_decode(vtt_mini):
    clips = sorted((vtt_mini / "videos").iterdir())
    chosen = [next(p for p in clips if p.suffix == s) for s in (".mp4", ".avi")] + clips[100:500:100]
    for path in chosen:
        frames = sample_frames(path, 6)
        everything = decode_all(path)
        assert frames.decoded == len(everything)
        assert all(np.array_equal(f, everything[i]) for f, i in zip(frames.images, frames.indices, strict=True))
