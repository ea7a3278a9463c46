"""Bad, odd and hostile clips: each costs one row with its reason, opens no other file, and never stalls the rest.

Clips go through the real child process. MP4 files are made odd by hand, since OpenCV writes only plain ones.
"""

import json
import math
import os
import random
import struct
import threading
import wave
from collections import Counter
from http.server import BaseHTTPRequestHandler, HTTPServer
from time import monotonic

import cv2
import numpy as np
import pytest

from vcutils.config import ExtractConfig
from vcutils.corpora import open_corpus
from vcutils.features import extract_corpus
from vcutils.runtime.capture import VideoError
from vcutils.runtime.decoding import Resize, Worker, decode_clips, frames_at, unreadable_clips
from vcutils.runtime.store import read_manifest
from vcutils.video import frame_indices, sample_frames

STTS = ("moov", "trak", "mdia", "minf", "stbl", "stts")  # frames and their durations


@pytest.fixture(scope="module")
def worker():
    """A child process that is fast to give up."""
    child = Worker(6, Resize((48, 64), (48, 64)), patience=20)
    yield child
    child.close()


@pytest.fixture(scope="module")
def grey(tmp_path_factory, write_video):
    """Function: the bytes of a clip of one even grey."""
    folder = tmp_path_factory.mktemp("grey")

    def make(value, suffix=".mp4", count=6):
        frames = [np.full((48, 64, 3), value, np.uint8)] * count
        return write_video(folder / f"{value}-{count}{suffix}", frames).read_bytes()

    return make


def write(path, codec, frames, *params):
    """A clip by any of OpenCV's codecs."""
    height, width = frames[0].shape[:2]
    settings = [value for pair in params for value in pair]
    writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, cv2.VideoWriter_fourcc(*codec), 10, (width, height), settings)
    assert writer.isOpened()
    for frame in frames:
        writer.write(frame)
    writer.release()
    return path


def box(content, names, start=0, end=None):
    """(start, size) of an MP4 box by its path."""
    end = end or len(content)
    while start < end:
        size, name = struct.unpack(">I4s", content[start : start + 8])
        if name.decode("latin-1") == names[0]:
            return (start, size) if len(names) == 1 else box(content, names[1:], start + 8, start + size)
        start += size
    raise KeyError(names)


def with_box(content, names, new):
    """An MP4 (its tables behind its frames, as OpenCV writes them) with another content in one box."""
    start, size = box(content, names)
    changed = bytearray(content[: start + 8] + new + content[start + size :])
    for depth in range(1, len(names) + 1):
        where, before = box(content, names[:depth])
        changed[where : where + 4] = struct.pack(">I", before + len(new) + 8 - size)
    return bytes(changed)


# What may not be followed


NAMES = [
    "with space.mp4",
    "q'uo\"tes.mp4",
    "кот🐈.mp4",
    "-i.mp4",
    "%d.mp4",
    "img_%03d.mp4",
    "http:x.mp4",
    "concat:other.mp4|other.mp4",
    "file:other.mp4",
    "cache:other.mp4",
    "async:other.mp4",
    "subfile,,start,0,end,0,,:other.mp4",
    "pipe:0.mp4",
    "~.mp4",
    "a\\b*?.mp4",
    "line\nend.mp4",
]


@pytest.mark.skipif(os.name == "nt", reason="Windows allows no such names")
@pytest.mark.parametrize("name", NAMES)
def test_name_opens_its_own_file_and_nothing_else(tmp_path, grey, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other.mp4").write_bytes(grey(200, count=9))
    for n in range(1, 4):
        (tmp_path / f"img_{n:03d}.mp4").write_bytes(grey(200, count=9))
        (tmp_path / f"{n}.mp4").write_bytes(grey(200, count=9))
    (tmp_path / name).write_bytes(grey(60))
    for path in (type(tmp_path)(name), tmp_path / name):
        frames = sample_frames(path, 4)
        assert frames.decoded == 6 and abs(frames.images[0].mean() - 60) < 5


@pytest.mark.skipif(os.name == "nt", reason="Windows allows no such names")
def test_name_that_is_not_utf8_is_told_and_kills_nobody(tmp_path, grey, worker):
    path = tmp_path / "bad\udcff.mp4"
    path.write_bytes(grey(60))
    for look in (worker, lambda p: frames_at(p, [0], 48)):
        with pytest.raises(VideoError, match="rename it"):
            look(path)


class Visited(BaseHTTPRequestHandler):
    """Notes who came."""

    paths: list = []  # noqa: RUF012

    def do_GET(self):
        self.paths.append(self.path)
        self.send_error(404)

    def log_message(self, *args):
        pass


def test_playlists_and_stream_descriptions_under_a_clips_name_are_not_followed(tmp_path, grey, worker):
    server = HTTPServer(("127.0.0.1", 0), Visited)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    away = f"http://127.0.0.1:{server.server_port}"
    for name in ("other.mp4", "other.ts"):
        (tmp_path / name).write_bytes(grey(200))
    hls = "#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:1,\n{}\n#EXT-X-ENDLIST\n"
    dash = (
        '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static"'
        ' mediaPresentationDuration="PT1S">'
        '<Period><AdaptationSet mimeType="video/mp4"><Representation id="1" bandwidth="1"><BaseURL>{}</BaseURL>'
        "</Representation></AdaptationSet></Period></MPD>"
    )
    hostile = {
        "hls": hls.format("other.mp4"),
        "hls-file": hls.format(f"file://{tmp_path}/other.ts"),
        "hls-away": hls.format(f"{away}/a.ts"),
        "concat": "ffconcat version 1.0\nfile other.mp4\n",
        "concat-away": f"ffconcat version 1.0\nfile {away}/a.mp4\n",
        "sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 45678 RTP/AVP 96\n"
        "a=rtpmap:96 H264/90000\n",
        "dash": dash.format("other.mp4"),
        "dash-away": dash.format(f"{away}/a.mp4"),
    }
    for name, text in hostile.items():
        (tmp_path / f"{name}.mp4").write_text(text)
        begun = monotonic()
        with pytest.raises(VideoError, match=f"{name}.mp4: not a video"):
            worker(tmp_path / f"{name}.mp4")
        assert monotonic() - begun < 10
    server.shutdown()
    assert Visited.paths == []


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes and links")
@pytest.mark.parametrize("kind", ["pipe", "device", "loop", "dangling", "folder"])
def test_what_is_no_plain_file_is_told_at_once(tmp_path, worker, kind):
    path = tmp_path / f"{kind}.mp4"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to({"device": "/dev/zero", "loop": path, "dangling": tmp_path / "gone"}[kind])
    with pytest.raises(VideoError, match=rf"{kind}\.mp4: not a plain file, or a broken link"):
        worker(path)
    with pytest.raises(VideoError, match=r"gone\.mp4: no such file$"):
        worker(tmp_path / "gone.mp4")


# What is odd but good


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_clip_that_is_rotated_by_its_metadata_is_seen_upright(tmp_path, write_video, worker, degrees):
    frame = np.zeros((48, 64, 3), np.uint8)
    frame[:24, :32] = 255  # the corner at the top left
    content = bytearray(write_video(tmp_path / "plain.mp4", [frame] * 3).read_bytes())
    matrix = box(content, ("moov", "trak", "tkhd"))[0] + 48
    cosine, sine = {90: (0, 1), 180: (-1, 0), 270: (0, -1)}[degrees]
    turned = struct.pack(">9i", *(v << 16 for v in (cosine, sine, 0, -sine, cosine, 0, 0, 0)), 1 << 30)
    content[matrix : matrix + 36] = turned
    (tmp_path / "turned.mp4").write_bytes(content)
    (image, *_) = sample_frames(tmp_path / "turned.mp4", 2).images
    expected = np.rot90(frame, -degrees // 90)
    assert image.shape == expected.shape
    assert np.abs(image.astype(int) - expected).mean() < 12


def test_frames_of_a_variable_rate_have_the_containers_times(tmp_path, numbered_video, read_number):
    content = numbered_video(tmp_path / "steady.mp4", 6).read_bytes()  # 10240 ticks a second, 1024 each
    content = with_box(content, STTS, struct.pack(">8I", 0, 3, 3, 1024, 1, 10240, 2, 2048))
    edit = bytearray(content)
    start, _ = box(edit, ("moov", "trak", "edts", "elst"))
    edit[start + 16 : start + 20] = struct.pack(">I", 1_700)  # milliseconds that are played
    (tmp_path / "variable.mp4").write_bytes(edit)
    frames = sample_frames(tmp_path / "variable.mp4", 6)
    assert [read_number(f) for f in frames.images] == [0, 1, 2, 3, 4, 5]
    assert frames.timestamps == pytest.approx([0, 0.1, 0.2, 0.3, 1.3, 1.5], abs=2e-3)


@pytest.mark.parametrize("claimed", [0, 2, 13, 10_000, 2**31 - 1, 2**32 - 1])
@pytest.mark.parametrize("suffix", [".avi", ".mp4"])
def test_header_that_lies_about_the_frame_count(tmp_path, numbered_video, read_number, suffix, claimed):
    path = numbered_video(tmp_path / f"lies{suffix}", 12)
    content = bytearray(path.read_bytes())
    if suffix == ".avi":
        for name, offset in ((b"avih", 24), (b"strh", 40)):
            where = content.index(name) + offset
            content[where : where + 4] = struct.pack("<I", claimed)
    else:
        content = with_box(bytes(content), STTS, struct.pack(">4I", 0, 1, claimed, 1024))
    path.write_bytes(content)
    frames = sample_frames(path, 5)
    assert frames.decoded == 12 and frames.indices == frame_indices(12, 5)
    assert [read_number(f) for f in frames.images] == frames.indices
    assert frames.timestamps == sorted(frames.timestamps)


@pytest.mark.parametrize("suffix", [".avi", ".mp4"])
def test_clip_of_one_frame(tmp_path, numbered_video, worker, suffix):
    frames = worker(numbered_video(tmp_path / f"one{suffix}", 1))
    assert (frames.decoded, frames.indices, frames.timestamps) == (1, [0], [0.0])


def test_pixels_of_every_depth_become_eight_bit_rgb(tmp_path, worker):
    colour = np.full((48, 64, 3), (10, 100, 200), np.uint8)
    alpha = np.dstack([colour, np.full((48, 64), 30, np.uint8)])
    no_colour = (cv2.VIDEOWRITER_PROP_IS_COLOR, 0)
    depth = (cv2.VIDEOWRITER_PROP_DEPTH, cv2.CV_16U)
    clips = {
        "grey": (write(tmp_path / "grey.mkv", "FFV1", [alpha[:, :, 1]] * 3, no_colour), (100, 100, 100)),
        "deep": (
            write(tmp_path / "deep.mkv", "FFV1", [np.full((48, 64), 40_000, np.uint16)] * 3, no_colour, depth),
            (156, 156, 156),
        ),
    }
    if hasattr(cv2, "VIDEOWRITER_PROP_ENABLE_ALPHA"):
        path = write(tmp_path / "alpha.avi", "FFV1", [alpha] * 3, (cv2.VIDEOWRITER_PROP_ENABLE_ALPHA, 1))
        clips["alpha"] = (path, (200, 100, 10))
    for path, expected in clips.values():
        (image, *_) = worker(path).images
        assert image.shape == (48, 64, 3) and image.dtype == np.uint8
        assert image.reshape(-1, 3).mean(axis=0) == pytest.approx(expected, abs=2)


@pytest.mark.parametrize("interpolation", ["area", "bilinear"])
@pytest.mark.parametrize("size", [(1, 1), (2, 2), (1, 700), (700, 1), (4320, 7680)])
def test_frames_of_any_size_become_the_networks_picture(size, interpolation):
    frame = np.full((*size, 3), 90, np.uint8)
    for scaled in (16, (16, 16)):
        picture = Resize(scaled, (16, 16), interpolation)(frame)
        assert picture.shape == (16, 16, 3) and (picture == 90).all()


def test_8k_clip_decodes_in_bounded_memory(tmp_path, worker):
    path = write(tmp_path / "8k.avi", "MJPG", [np.full((4320, 7680, 3), 90, np.uint8)] * 2)
    assert worker(path).images[0].shape == (48, 64, 3)
    status = f"/proc/{worker._child.pid}/status"
    if os.path.exists(status):
        with open(status) as file:
            peak = next(int(line.split()[1]) for line in file if line.startswith("VmHWM"))
        assert peak < 1.5e6, "kB"


# What is broken


def bad_files(folder, grey):
    """Files that hold no picture, by name."""
    mp4, avi = grey(60), grey(60, ".avi")
    handler = box(mp4, ("moov", "trak", "mdia", "hdlr"))[0] + 16
    files = {
        "empty.mp4": b"",
        "text.mp4": b"this is no video\n" * 1000,
        "zeros.mp4": bytes(100_000),
        "noise.mp4": random.Random(0).randbytes(100_000),
        "picture.mp4": cv2.imencode(".png", np.zeros((20, 20, 3), np.uint8))[1].tobytes(),
        "cut.mp4": mp4[: len(mp4) // 2],
        "cut.avi": avi[:3000],
        "cut.mkv": grey(60, ".mkv")[:300],
        "sound.mp4": mp4[:handler] + b"soun" + mp4[handler + 4 :],
    }
    for name, content in files.items():
        (folder / name).write_bytes(content)
    with wave.open(str(folder / "wave.mp4"), "wb") as file:
        file.setparams((1, 2, 8000, 0, "NONE", ""))
        file.writeframes(bytes(16_000))
    return [*files, "wave.mp4"]


def test_every_bad_file_is_refused_with_its_name(tmp_path, grey, worker):
    for name in bad_files(tmp_path, grey):
        with pytest.raises(VideoError, match=name):
            worker(tmp_path / name)
    assert worker._child.poll() is None, "none of them may crash the decoder"


@pytest.mark.skipif(os.name == "nt", reason="makes a link")
def test_bad_clips_are_rows_with_reasons_and_tried_again_only_when_changed(make_corpus, grey, fake_backbone, tmp_path):
    root = make_corpus(ids=("good",))
    for name in bad_files(tmp_path, grey):
        (root / "videos" / f"{name.replace('.', '-')}.mp4").write_bytes((tmp_path / name).read_bytes())
    (root / "videos" / "gone.mp4").symlink_to(tmp_path / "nowhere")
    corpus, config = open_corpus(root), ExtractConfig("colours", num_frames=3)
    bad = set(corpus.clips) - {"good"}
    assert set(unreadable_clips(corpus.clips)) == bad and len(bad) == 11
    report = extract_corpus(corpus, tmp_path / "data", config, progress=False)
    rows = read_manifest(report.folder)
    assert report.written == ["good"] and set(report.failed) == bad
    assert {i for i, row in rows.items() if f"{i}.mp4: " in row.get("error", "")} == bad
    again = extract_corpus(corpus, tmp_path / "data", config, progress=False)
    assert again.failed == report.failed and len(fake_backbone) == 1, "nothing is tried again"
    (root / "videos" / "text-mp4.mp4").write_bytes(grey(60))
    mended = extract_corpus(corpus, tmp_path / "data", config, progress=False)
    assert mended.written == ["text-mp4"] and set(mended.failed) == bad - {"text-mp4"}


@pytest.fixture
def bewitched(tmp_path, monkeypatch):
    """Worker processes whose decoder crashes on, stalls at or runs out of memory for clips of such names."""
    (tmp_path / "spell").mkdir()
    (tmp_path / "spell" / "sitecustomize.py").write_text(
        "import os, sys, time\n"
        "if '-c' in sys.orig_argv:\n"
        "    import vcutils.runtime.decoding as workers\n"
        "    plain = workers.sample_frames\n"
        "    def sample_frames(path, *args):\n"
        "        if 'crash' in path.name: os.abort()\n"
        "        if 'stall' in path.name: time.sleep(600)\n"
        "        if 'large' in path.name: bytearray(8 << 30)\n"
        "        return plain(path, *args)\n"
        "    workers.sample_frames = sample_frames\n"
    )
    monkeypatch.syspath_prepend(tmp_path / "spell")


@pytest.mark.skipif(os.name == "nt", reason="limits and signals are other ones")
def test_crash_stall_and_want_of_memory_cost_one_clip_each(bewitched, tmp_path, numbered_video):
    names = ["a", "crash", "b", "stall", "c", "large", "d"]
    clips = {n: numbered_video(tmp_path / f"{n}.avi", 5 + k) for k, n in enumerate(names)}
    begun = monotonic()
    found = dict(decode_clips(clips.items(), 3, Resize(16, (16, 16)), workers=1, patience=5))
    assert monotonic() - begun < 40 and list(found) == names
    assert {n: f.decoded for n, f in found.items() if n in "abcd"} == {"a": 5, "b": 7, "c": 9, "d": 11}
    reasons = {"crash": "the decoder crashed on it", "stall": "not decoded within 5 s", "large": "no memory"}
    for name, reason in reasons.items():
        assert f"{name}.avi: " in str(found[name]) and reason in str(found[name])


CODECS = [
    ("mp4v", ".mp4"),
    ("MJPG", ".avi"),
    ("HFYU", ".avi"),
    ("XVID", ".avi"),
    ("FFV1", ".mkv"),
    ("VP80", ".webm"),
    ("mpg2", ".mpg"),
]


def mutate(content, rng):
    """A clip with damage, mostly in its header, where most of the meaning is."""
    damaged = bytearray(content)
    for _ in range(rng.choice((1, 3, 10, 40))):
        where = rng.randrange(min(len(damaged), 1000) if rng.random() < 0.5 else len(damaged))
        kind = rng.choice(("flip", "byte", "cut", "lose", "repeat", "huge"))
        if kind == "flip":
            damaged[where] ^= 1 << rng.randrange(8)
        elif kind == "byte":
            damaged[where] = rng.choice((0, 1, 127, 128, 255))
        elif kind == "cut" and rng.random() < 0.2:
            del damaged[max(10, where) :]
        elif kind == "lose":
            del damaged[max(10, where) : max(10, where) + rng.randrange(16)]
        elif kind == "repeat":
            damaged[where:where] = damaged[where : where + rng.randrange(64)]
        elif kind == "huge":
            damaged[where : where + 4] = rng.choice((b"\xff" * 4, b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f"))
    return bytes(damaged)


def test_damaged_clips_end_in_frames_or_a_reason(tmp_path, worker, grey):
    rng = random.Random(0)
    rainbow = [np.random.default_rng(n).integers(0, 255, (48, 64, 3), np.uint8) for n in range(6)]
    seeds = [write(tmp_path / f"{codec}{suffix}", codec, rainbow) for codec, suffix in CODECS]
    seeds = [(path.suffix, path.read_bytes()) for path in seeds]
    ends = Counter()
    for n in range(600):
        suffix, content = rng.choice(seeds)
        path = tmp_path / f"{n}{suffix}"
        path.write_bytes(mutate(content, rng))
        begun = monotonic()
        try:
            frames = worker(path)
        except VideoError as error:
            assert str(path) in str(error)
            ends["crash" if "crashed" in str(error) else "reason"] += 1
        else:
            ends["frames"] += 1
            assert 0 < len(frames.images) <= 6 and len(frames.indices) == len(frames.timestamps) == len(frames.images)
            assert frames.timestamps == sorted(frames.timestamps) and all(map(math.isfinite, frames.timestamps))
            assert 0 < frames.fps < 1e5 and all(f.shape == (48, 64, 3) for f in frames.images)
            json.dumps([frames.timestamps, frames.duration], allow_nan=False)
        assert monotonic() - begun < 10
        path.unlink()
    assert ends["frames"] > 100 and ends["reason"] > 100 and ends["crash"] < 10, ends
