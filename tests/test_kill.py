"""Nothing lost: every stage is killed, and finds its disk full, at any moment, and ends as if nothing had happened.

VCUTILS_KILLS=30 python -m pytest tests/test_kill.py -s        30 kills per stage, with a line each on how they went

Run as a script this file is the launcher: torch is imported once, and each attempt is a fork that runs one verb of the
command line. An audit hook sees every file that the verb opens for writing, renames or removes, and kills the process
there, or lets the call fail; other kills come at a random time.
"""

import contextlib
import csv
import errno
import gc
import io
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load

KILLS = int(os.environ.get("VCUTILS_KILLS", 3))
WRITES = ("open", "os.rename", "os.remove", "os.mkdir")
EVERY = 3  # steps between checkpoints
IDS = [f"clip{n:02d}" for n in range(12)]
STAGES = ("extract", "vocab", "train", "evaluate")

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and SIGKILL")


def launcher():
    """Answer requests on standard input, {"commands", "home", "data", "after", "point", "error"}, with exit codes."""
    import torch
    from torch import nn

    from vcutils import features
    from vcutils.cli import main
    from vcutils.runtime import backbones
    from vcutils.runtime.decoding import Resize
    from vcutils.scores import runs
    from vcutils.vocab import tokenize

    def colours(name, device=None):
        model = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten())
        size = (16, 16)
        resize, cpu = Resize(size, size), torch.device("cpu")
        return backbones.Backbone(name, "none", model, resize, (0.0,) * 3, (255.0,) * 3, cpu)

    features.load_backbone = runs.load_backbone = colours
    tokenize("a cat")  # imports its rules
    for verb in STAGES:  # its first use prepares its options
        with contextlib.redirect_stderr(io.StringIO()):
            main([verb, "nowhere"])
    gc.freeze()
    print("ready", flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        points, late = Path(request["home"], "points"), time.monotonic() + 10
        children = [os.fork() or attempt(request, args) for args in request["commands"]]
        while not points.stat().st_size and time.monotonic() < late:
            time.sleep(0.001)
        begun = time.monotonic()  # it has begun to write
        if request["after"] is not None:
            time.sleep(request["after"])
            os.kill(children[0], signal.SIGKILL)
        codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        print(json.dumps({"codes": codes, "seconds": time.monotonic() - begun}), flush=True)


def attempt(request, args):
    """One verb in this process, which it ends."""
    home, seen, code = Path(request["home"]), 0, 99
    try:
        for number, name in enumerate(("in", "out", "err")):
            os.dup2(os.open(home / name, os.O_RDWR | os.O_CREAT | (os.O_TRUNC if number else 0)), number)
        points = os.open(home / "points", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        steps = os.open(home / "steps", os.O_WRONLY | os.O_CREAT | os.O_APPEND)

        def hook(event, args):
            nonlocal seen
            if event not in WRITES or not str(args[0]).startswith(request["data"]):
                return
            if event == "open" and not args[2] & (os.O_WRONLY | os.O_RDWR):
                return
            seen += 1
            os.write(points, b".")
            if request["error"] and seen >= request["point"]:
                raise OSError(request["error"], os.strerror(request["error"]), str(args[0]))
            if not request["error"] and seen == request["point"]:
                os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(hook)
        import torch

        from vcutils.cli import main
        from vcutils.runtime import objective

        loss = objective.fast_loss

        def counted(*args, **kwargs):
            if torch.is_grad_enabled():
                os.write(steps, b".")
            return loss(*args, **kwargs)

        objective.fast_loss = counted
        code = main(args)
        sys.stdout.flush()
    except SystemExit as error:
        code = error.code
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code or 0)


class Project:
    """A corpus of real clips and its data folder, with what each stage leaves there when nothing disturbs it."""

    def __init__(self, home, corpus, process):
        self.home, self.corpus, self.process, self.data = home, corpus, process, home / "data"
        self.run = self.data / "mine" / "runs" / "default"
        data = ("--data", str(self.data))
        small = [f"--{size}-dim=8" for size in ("embed", "encoder", "decoder", "attention")]
        self.commands = {
            "extract": ["extract", str(corpus), "--backbone=colours", "--num-frames=3", *data],
            "vocab": ["vocab", str(corpus), "--min-count=1", *data],
            "train": ["train", str(corpus), "--backbone=colours", "--resume", "--epochs=3", "--scst-epochs=1",
                      "--batch-size=1", f"--checkpoint-every={EVERY}", "--dropout=0.2", "--scheduled-sampling=0.5",
                      "--frame-dropout=0.2", *small, *data],
            "evaluate": ["evaluate", str(self.run), "--beam=2"],
        }  # fmt: skip
        self.before, self.after, self.seconds, self.points = {}, {}, {}, {}
        for stage in STAGES:
            self.before[stage] = self.files()
            assert self(stage) == 0, self.said()
            self.after[stage], self.seconds[stage] = self.files(), self.took
            self.points[stage] = self.count("points")
            if stage == "train":
                self.steps = self.count("steps")

    def __call__(self, *stages, after=None, point=0, error=0):
        """Exit code of the stage, -9 when it was killed; a list for stages that run side by side."""
        for name in ("points", "in"):
            (self.home / name).write_text("")
        commands = [self.commands[stage] if isinstance(stage, str) else stage for stage in stages]
        request = {"home": str(self.home), "data": str(self.data), "after": after, "point": point, "error": error}
        self.process.stdin.write(json.dumps(request | {"commands": commands}) + "\n")
        self.process.stdin.flush()
        answer = json.loads(self.process.stdout.readline())
        self.took = answer["seconds"]
        return answer["codes"] if len(stages) > 1 else answer["codes"][0]

    def said(self):
        return (self.home / "err").read_text()

    def count(self, name):
        return (self.home / name).stat().st_size

    def files(self):
        return {p.relative_to(self.data).as_posix(): p.read_bytes() for p in self.data.rglob("*") if p.is_file()}

    def restore(self, files):
        for path in self.data.iterdir() if self.data.exists() else ():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        for name, content in files.items():
            (self.data / name).parent.mkdir(parents=True, exist_ok=True)
            (self.data / name).write_bytes(content)
        (self.home / "steps").write_text("")

    def check_whole(self, stage):
        """What stands under its final name after a kill is whole, and nothing that an earlier stage made is gone."""
        found, expected = self.files(), self.after[stage]
        assert set(self.before[stage]) - {"mine/runs/default/log.csv"} <= set(found)
        for name, content in found.items():
            if Path(name).name.startswith((".tmp-", ".lock-.tmp-")) or name.endswith(".lock"):
                continue
            assert name in expected, f"{name} is nothing that {stage} makes"
            if name.endswith(".safetensors"):
                assert load(content)
            elif name.endswith(".jsonl"):
                assert set(content.splitlines()) <= set(expected[name].splitlines())
            elif name.endswith("log.csv"):
                rows = timeless(name, content)
                assert rows == timeless(name, expected[name])[: len(rows)]
            elif name.endswith("log.txt"):
                assert all(
                    re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\S*  \w", line) for line in content.decode().splitlines()
                )
            else:
                assert content == expected[name], name

    def lost(self, stage):
        """Files that are missing, other than those of the undisturbed run, or left over."""
        found, expected = self.files(), self.after[stage]
        return [
            name
            for name in sorted({*found, *expected})
            if timeless(name, found.get(name)) != timeless(name, expected.get(name))
        ]


def timeless(name, content):
    """A file's content without the seconds that a run took; the log tells all that happened, and when."""
    if name.endswith("log.txt"):
        return content is not None
    if content is not None and name.endswith("log.csv"):
        return [row[:-2] for row in csv.reader(io.StringIO(content.decode()))]
    if content is not None and name.endswith("last/model.safetensors"):
        head = int.from_bytes(content[:8], "little")
        beside = json.loads(json.loads(content[8 : 8 + head])["__metadata__"]["beside"])
        progress = beside["progress"]
        for row in (progress, *progress["rows"]):
            row.update(seconds=0, words_per_second=0)
        tensors = {n: (t.dtype, t.shape, t.numpy().tobytes()) for n, t in load(content).items()}
        return tensors, progress, beside["train"]
    return content


@pytest.fixture(scope="module")
def project(tmp_path_factory, numbered_video, repo):
    home = tmp_path_factory.mktemp("kill")
    for n, i in enumerate(IDS):
        numbered_video(home / "mine" / "videos" / f"{i}.avi", 6 + n)
    topics = ("cat sits", "dog runs", "man sings", "woman cooks")
    lines = [f"{i} {article} {topics[n % 4]}\n" for n, i in enumerate(IDS) for article in ("a", "the", "one")]
    (home / "mine" / "captions.txt").write_text("".join(lines))
    environment = {"PATH": "", "VCUTILS_PROFILE": "tiny", "OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"}  # and no Java
    process = subprocess.Popen(
        [sys.executable, __file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=repo,
        env=environment | {"PYTHONPATH": str(repo), "HOME": str(home)},
        text=True,
    )
    assert process.stdout.readline() == "ready\n"
    yield Project(home, home / "mine", process)
    process.kill()
    process.wait()


@pytest.mark.parametrize("stage", STAGES)
def test_killed_stage_ends_as_if_never_killed(project, stage):
    chance, kills, runs, chain = random.Random(stage), 0, 0, 0

    def finish():
        nonlocal runs, chain
        runs += 1
        assert project.lost(stage) == []
        if stage == "train":  # each kill costs the steps since the last checkpoint at most
            assert project.count("steps") <= project.steps + chain * EVERY
        project.restore(project.before[stage])
        chain = 0

    project.restore(project.before[stage])
    while kills < KILLS:
        if kills % 2:
            code = project(stage, after=chance.uniform(0, 0.9 * project.seconds[stage]))
        else:
            code = project(stage, point=chance.randint(1, project.points[stage]))
        if code == -signal.SIGKILL:
            kills, chain = kills + 1, chain + 1
            project.check_whole(stage)
        else:
            assert code == 0, project.said()
            finish()
    assert project(stage) == 0, project.said()
    finish()
    print(f"\n{stage}: {kills} kills tried, {kills} survived, {runs} finished runs compared, 0 artifacts lost")


@pytest.mark.parametrize("stage", STAGES)
def test_stage_that_cannot_write_says_so_keeps_what_is_done_and_goes_on(project, stage):
    chance = random.Random(stage)
    project.restore(project.before[stage])
    for place in range(KILLS):
        number = (errno.ENOSPC, errno.EROFS, errno.EACCES)[place % 3]
        point = chance.randint(1, project.points[stage]) if place else 1
        code = project(stage, point=point, error=number)
        if code == 0:  # less was left to do than that, if not the removal of its lock
            assert all(name.endswith(".lock") for name in project.lost(stage))
            project.restore(project.before[stage])
            continue
        check_message(project, code, number)
        project.check_whole(stage)
    assert project(stage) == 0, project.said()
    assert project.lost(stage) == []


def check_message(project, code, number):
    said = project.said()
    assert code == 2 and said.splitlines()[-1].startswith("vcutils: ") and "Traceback" not in said, said
    assert str(project.data) in said and os.strerror(number) in said


@pytest.mark.parametrize(
    ("verb", "number"), [("ablate", errno.ENOSPC), ("explore", errno.EROFS), ("sample", errno.EACCES)]
)
def test_other_verbs_that_cannot_write_say_so(project, verb, number):
    arguments = {
        "ablate": [str(project.corpus), "--data", str(project.data)],
        "explore": [str(project.run), IDS[0], "--out", str(project.data / "page.html")],
        "sample": ["--clips", "8", "--out", str(project.data / "sample")],
    }
    project.restore(project.after["evaluate"])
    if verb == "ablate":  # which takes the profile's features
        features = project.data / "mine" / "features"
        shutil.copytree(features / "colours", features / "efficientnet_lite0")
    check_message(project, project([verb, *arguments[verb]], point=1, error=number), number)


def test_full_disk(project):
    """A real one of four megabytes, where this user may mount it."""
    if os.geteuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", project.data]).returncode:
        pytest.skip("mounting a small disk is not allowed here")
    try:
        for stage in STAGES:
            project.restore(project.before[stage])
            ballast = project.data / "ballast"
            for left in (0, 4, 40) if KILLS > 9 else (4,):  # kilobytes
                ballast.write_bytes(bytes(shutil.disk_usage(project.data).free - 1024 * left))
                code = project(stage)
                if code:
                    check_message(project, code, errno.ENOSPC)
                ballast.unlink()
                project.check_whole(stage)
            assert project(stage) == 0, project.said()
            assert project.lost(stage) == []
    finally:
        subprocess.run(["umount", project.data], check=True)


@pytest.mark.parametrize(
    ("stage", "folder", "what"),
    [
        ("extract", "features/colours", "extraction"),
        ("vocab", "", "vocab"),
        ("train", "runs/default", "train"),
        ("evaluate", "runs/default", "evaluate-test"),
    ],
)
def test_second_process_on_the_same_output_says_who_holds_it(project, stage, folder, what):
    from vcutils.runtime.files import holding

    project.restore(project.before[stage])
    before = project.files()
    with holding(project.data / "mine" / folder, what):
        assert project(stage) == 2
    *settings, message = project.said().splitlines()
    assert f"process {os.getpid()} on" in message and message.startswith("vcutils: ")
    assert [line.partition(":")[0] for line in settings] == (["train", "model"] if stage == "train" else [])
    assert project.files() == before


def test_shards_side_by_side_leave_what_one_process_leaves(project):
    project.restore(project.before["extract"])
    shards = [[*project.commands["extract"], f"--shard={n}/3"] for n in (1, 2, 3)]
    assert project(*shards) == [0, 0, 0], project.said()
    assert project.lost("extract") == []
    assert np.load(project.data / "mine" / "features" / "colours" / f"{IDS[0]}.npy").shape == (3, 12)


if __name__ == "__main__":
    launcher()
