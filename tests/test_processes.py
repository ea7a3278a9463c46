"""Two processes on the CPU train as one does: the same losses, the same clips, nothing lost when one is killed.

All variants share one launch, since it takes longer than they do. Run as a script this file is what is launched.
"""

import dataclasses
import json
import os
import pickle
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
import traceback
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

ROOT = Path(__file__).parent.parent
NOUNS, VERBS = ("cat", "dog", "man", "woman"), ("sits", "runs", "sings", "cooks")
SMALL = ["--embed-dim=8", "--encoder-dim=6", "--decoder-dim=12", "--attention-dim=6", "--val-beam-size=1"]
KILLED = [*SMALL, "--epochs=7", "--batch-size=2", "--checkpoint-every=1", "--dropout=0.2"]
# Settings of a run with one process, and what two have in their place for an equal batch in all.
VARIANTS = {
    "plain": {},
    "scheduled sampling": {"scheduled_sampling": 0.9, "epochs": 3},
    "self-critical": {"epochs": 1, "scst_epochs": 2, "scst_lr": 1e-2},
    "accumulation": {"batch_size": 2, "accumulation": 2},
    "caption weights": {"caption_weights": True, "label_smoothing": 0.1, "epochs": 1},
    "uniform": {"attention": "uniform"},
}


class Cut(Exception):
    pass


def trainer(job, name, processes=1, resume=False, attention="additive", dropout=0.0, **training):
    from vcutils.config import Config, ModelConfig, TrainConfig
    from vcutils.scores.coco import References
    from vcutils.train import Trainer

    settings = {"epochs": 2, "batch_size": 4, "captions_per_clip": 2, "lr": 1e-2, "warmup_epochs": 1.0}
    settings |= {"label_smoothing": 0.0, "frame_dropout": 0.0, "val_beam_size": 1, "scst_epochs": 0, **training}
    settings["batch_size"] //= processes
    model = ModelConfig(12, 8, 16, 8, dropout=dropout, attention=attention)
    config = Config(model=model, train=TrainConfig(**settings))
    return Trainer(Path(job["runs"]) / name, config, job["data"], References, resume, progress=False)


def two_processes(path, *command):
    """What each of the two does, a command line first; it leaves a JSON file."""
    from accelerate import Accelerator

    from vcutils import train
    from vcutils.cli import main
    from vcutils.runtime import objective, processes, record
    from vcutils.runtime.accelerator import largest_batch

    path = Path(path)
    job = pickle.loads(path.read_bytes())
    seen = {"histories": {}, "shown": [], "predicted": [], "words": []}

    # Nothing else has said yet that there are two.
    Accelerator.end_training = lambda self: None  # there is more to do
    assert main(command) == 0
    rank, _ = processes.place()
    seen["backend"] = torch.distributed.get_backend()

    call, predict, end_epoch = objective.Objective.__call__, train.predict, record.Progress.end_epoch

    def shown(self, network, batch, epoch, rewarded, places):
        seen["shown"].append([epoch, list(places), batch.ids[: len(places)]])
        return call(self, network, batch, epoch, rewarded, places)

    def predicted(model, vocabulary, store, ids, *others):
        seen["predicted"].append(ids)
        return predict(model, vocabulary, store, ids, *others)

    def ended(self, seconds):
        seen["words"].append(self.words)
        return end_epoch(self, seconds)

    objective.Objective.__call__, train.predict, record.Progress.end_epoch = shown, predicted, ended

    for name, changes in VARIANTS.items():
        seen["histories"][name] = trainer(job, f"{name}-2", 2, **changes).fit()
        if name == "plain":
            plain = {key: list(seen[key]) for key in ("shown", "predicted", "words")}

    def too_large(size):
        if size > (11, 7)[rank]:
            raise torch.OutOfMemoryError("CUDA out of memory")

    seen["fits"] = largest_batch(too_large, 16)

    # Cut behind the third step, and taken up again.
    drop = {"dropout": 0.3, "epochs": 2, "checkpoint_every": 1}
    seen["whole"] = trainer(job, "whole", 2, **drop).fit()
    seen["seed"] = torch.initial_seed()
    save = record.Record.save_last

    def cut(self, *parts):
        save(self, *parts)
        if self.progress.step == 4:
            raise Cut

    record.Record.save_last = cut
    try:
        trainer(job, "cut", 2, **drop).fit()
    except Cut:
        record.Record.save_last = save
    seen["resumed"] = trainer(job, "cut", 2, resume=True, **drop).fit()

    # Two processes, then one (another program's), then two.
    seen["shown"].clear()
    trainer(job, "legs", 1, batch_size=1, max_minutes=1e-9).fit()
    path.with_name(f"leg1-{rank}").touch()
    while not path.with_name("leg2").exists():
        time.sleep(0.05)
    trainer(job, "legs", 1, True, batch_size=1).fit()
    seen |= {"legs": seen["shown"], **plain}
    path.with_name(f"seen-{rank}.json").write_text(json.dumps(seen))


def environment():
    mine = {k: v for k, v in os.environ.items() if not k.startswith(("VCUTILS_", "ACCELERATE_", "PET_"))}
    mine |= dict(re.findall(r"^export (\w+)=(\S+)$", (ROOT / "docs" / "cluster.md").read_text("utf-8"), re.M))
    mine |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1", "CUDA_VISIBLE_DEVICES": ""}
    return mine


def documented(launcher):
    """The launch line of docs/cluster.md that begins so, for two processes."""
    text = (ROOT / "docs" / "cluster.md").read_text("utf-8").replace("\\\n", " ")
    (line,) = (line for line in text.splitlines() if line.strip().startswith(launcher))
    return shlex.split(re.sub(r"(--nproc-per-node|--num_processes) \d+", r"\1 2", line))


def launched(line, corpus, name, options):
    """Start a documented line with a corpus and a run of one's own; without a GPU."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    module = {"torchrun": "torch.distributed.run", "accelerate": "accelerate.commands.launch"}[line[0]]
    rest = line[2:] if line[0] == "accelerate" else line[1:]
    replaced = {"CORPUS": str(corpus), "NAME": name, "HOST:29400": f"localhost:{port}"}
    rest = [replaced.get(word, word).replace("last_call_timeout=10", "last_call_timeout=1") for word in rest]
    if line[0] == "accelerate":
        rest[0:0] = ["--main_process_port", str(port)]
    command = [sys.executable, "-m", module, *rest, *options]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    return subprocess.Popen(command, env=environment(), text=True, start_new_session=True, **pipes)


def finished(process, seconds=400):
    try:
        text, _ = process.communicate(timeout=seconds)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 0, text[-4000:]
    return text


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """A corpus that brings features: nine clips to train on, so that of batches of four the last one has a clip."""
    root = tmp_path_factory.mktemp("two") / "mine"
    (root / "features" / "hand").mkdir(parents=True)
    rng, lines, ids = np.random.default_rng(0), [], [f"c{n:02d}" for n in range(16)]
    for n, i in enumerate(ids):
        features = rng.normal(0, 0.3, (3 + n % 4, 8)).astype(np.float16)
        features[:, n % 4] += 2
        np.save(root / "features" / "hand" / f"{i}.npy", features)
        noun, verb = NOUNS[n % 4], VERBS[n % 4]
        lines += [f"{i} a {noun} {verb}", f"{i} the {noun} is there and {verb}", f"{i} a {noun} {verb} now"]
    (root / "captions.txt").write_text("\n".join(lines) + "\n")
    (root / "splits.json").write_text(json.dumps({"train": ids[:9], "val": ids[9:12], "test": ids[12:]}))
    return root


@pytest.fixture(scope="module")
def job(corpus):
    """What both sides train on."""
    from vcutils.cli import _make_vocab
    from vcutils.config import Config
    from vcutils.corpora import load_corpus
    from vcutils.dataset import load_data

    config = dataclasses.replace(Config(), corpus=corpus, data=corpus.parent / "data")
    opened = load_corpus(config)
    _make_vocab(opened, config)
    data = load_data(opened, config.artifacts, config.extract)
    return {"data": data, "runs": str(config.artifacts / "runs")}


@pytest.fixture(scope="module")
def pair(job, corpus):
    """What each process saw; the histories of one process; the clips that its leg showed; what was printed."""
    home = corpus.parent
    (home / "job").write_bytes(pickle.dumps(job))
    line = documented("accelerate launch")  # with this file in place of the package
    line[line.index("-m") : line.index("vcutils") + 1] = [__file__, str(home / "job")]
    process = launched(line, corpus, "undisturbed", ["--data", str(home / "data"), *KILLED])
    alone = {name: trainer(job, f"{name}-1", **changes).fit() for name, changes in VARIANTS.items()}
    while process.poll() is None and not all((home / f"leg1-{rank}").exists() for rank in (0, 1)):
        time.sleep(0.05)
    leg = []
    if process.poll() is None:
        one = trainer(job, "legs", resume=True, batch_size=1, max_minutes=1e-9)
        call = one.objective.__call__

        class Shown:
            begin_epoch = one.objective.begin_epoch

            def __call__(self, network, batch, epoch, rewarded, places):
                leg.append([epoch, list(places), batch.ids])
                return call(network, batch, epoch, rewarded, places)

        one.objective = Shown()
        one.fit()
    (home / "leg2").touch()
    text = finished(process)
    seen = [json.loads((home / f"seen-{rank}.json").read_text()) for rank in (0, 1)]
    return seen, alone, leg, text


@pytest.mark.parametrize("name", VARIANTS)
def test_losses_are_those_of_one_process(pair, name):
    (first, second), alone, *_ = pair
    rows = first["histories"][name]
    assert rows == second["histories"][name], "every process knows the same log"
    assert len(rows) == len(alone[name])
    for two, one in zip(rows, alone[name], strict=True):
        for key in ("train_loss", "val_loss"):
            assert two[key] == pytest.approx(one[key], abs=1e-5), key
        assert two["val_CIDEr"] == pytest.approx(one["val_CIDEr"], abs=1e-6) and two["lr"] == one["lr"]


def words_of(data, ids, captions=2):
    return sum(len(c.split()) + 1 for i in ids for c in data.captions[i]) * captions / 3


def test_each_process_has_its_share_and_the_log_counts_all(pair, job):
    (first, second), *_ = pair
    ids = sorted(job["data"].splits["train"])
    for epoch in (0, 1):
        shares = [[i for e, _, clips in seen["shown"] if e == epoch for i in clips] for seen in (first, second)]
        assert sorted([*shares[0], *shares[1]]) == ids and min(map(len, shares)) == 4
    assert first["words"] == second["words"] and first["words"][0] > 0.7 * words_of(job["data"], ids)
    for one, other in zip(first["predicted"], second["predicted"], strict=True):
        assert not set(one) & set(other) and sorted(one + other) == sorted(job["data"].splits["val"])
        assert abs(len(one) - len(other)) <= 1, "one waits for the other's longer share"


def test_processes_talk_on_the_cpu_and_agree_on_a_batch_size(pair):
    (first, second), *_ = pair
    assert first["backend"] == second["backend"] == "gloo"
    assert first["fits"] == second["fits"] <= 7


def test_two_that_were_cut_go_on_as_if_never_cut(pair, job):
    from safetensors.torch import load_file

    first, second = pair[0]
    times = ("seconds", "words_per_second")
    whole, resumed = ([{k: v for k, v in r.items() if k not in times} for r in first[n]] for n in ("whole", "resumed"))
    assert whole == resumed and len(whole) == 2
    tensors, again = (load_file(Path(job["runs"]) / n / "last" / "model.safetensors") for n in ("whole", "cut"))
    assert tensors.keys() == again.keys() and all(torch.equal(tensors[n], again[n]) for n in tensors)
    assert "resume.rng.cpu.1" in tensors and first["seed"] != second["seed"], "both drop the same out"


def test_two_processes_then_one_then_two_show_every_clip_once_in_the_seeds_order(pair, job):
    (first, second), _, leg, _ = pair
    ids = job["data"].splits["train"]
    for epoch in (0, 1):
        shown = [(p, i) for e, places, clips in first["legs"] + leg + second["legs"] if e == epoch
                 for p, i in zip(places, clips, strict=True)]  # fmt: skip
        order = np.random.default_rng((0, epoch)).permutation(len(ids))
        assert sorted(shown) == [(place, ids[n]) for place, n in enumerate(order)]
    assert leg == [[0, [2], [leg[0][2][0]]]], "one step of one clip, behind the two that were shown"


def log_of(run):
    rows = [line.split(",") for line in (run / "log.csv").read_text().splitlines()]
    return [row[:6] for row in rows]


def children(pid):
    """{rank: process id} of what a launcher started."""
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if int(path.joinpath("stat").read_text().rpartition(")")[2].split()[1]) == pid:
                text = path.joinpath("environ").read_bytes().decode()
                found |= {int(value): int(path.name) for value in re.findall(r"\0RANK=(\d+)", "\0" + text)}
        except OSError:
            continue
    return found


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds the processes in /proc")
def test_run_survives_a_process_that_is_killed(pair, corpus):
    """And ends as the run that nothing disturbed, which the pair has trained."""
    data = corpus.parent / "data"
    run = data / "mine" / "runs" / "killed"
    line = documented("torchrun --nnodes 1:8")
    process = launched(line, corpus, "killed", ["--data", str(data), *KILLED])
    late, workers = time.monotonic() + 400, {}
    while process.poll() is None and not (run / "log.csv").exists() and time.monotonic() < late:
        workers = workers if 1 in workers else children(process.pid)
        time.sleep(0.005 if workers else 0.5)
    os.kill(workers[1], signal.SIGKILL)
    text = finished(process)
    assert len(log_of(run)) == 8 and log_of(run) == log_of(run.with_name("undisturbed"))
    told = (data / "mine" / "log.txt").read_text()
    starts = re.findall(r"train killed: 7 epochs, from epoch (\d+), step (\d+)", told)
    assert len(starts) == 2 and starts[0] == ("0", "0") and int(starts[1][1]) > 0, text[-2000:]


def test_documented_lines_of_torchrun_leave_the_runs_name_to_the_package():
    """It takes what could be the beginning of one of its own options, such as --run."""
    from torch.distributed.run import get_args_parser

    for begin, last in (("torchrun --standalone", []), ("torchrun --nnodes 1:8", ["--resume"])):
        given = get_args_parser().parse_args(documented(begin)[1:])
        assert (given.module, given.training_script) == (True, "vcutils")
        assert given.training_script_args == ["train", "CORPUS", "--name", "NAME", *last]
    behind = get_args_parser().parse_args(["-m", "--", "vcutils", "train", "CORPUS", "--run", "NAME"])
    assert behind.training_script_args == ["train", "CORPUS", "--run", "NAME"]


def test_one_of_two_tells(pair):
    report = re.findall(r"^epochs +(\d+)$", pair[3], re.M)
    assert report == ["7"]


def test_accelerates_line_that_would_start_one_process_in_silence_is_refused(monkeypatch):
    from vcutils.config import UserError
    from vcutils.runtime.processes import LAUNCHERS, join

    for name in LAUNCHERS:
        monkeypatch.delenv(name, raising=False)
    for name, value in {"ACCELERATE_USE_CPU": "True", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}.items():
        monkeypatch.setenv(name, value)  # what `accelerate launch --cpu --num_processes 2` sets
    with pytest.raises(UserError, match="--multi_gpu in place of --cpu"):
        join()


@pytest.mark.parametrize("processes", [1, 2, 3, 4])
@pytest.mark.parametrize("done", [0, 3, 9])
def test_shares_of_a_batch_are_the_batch(processes, done):
    from vcutils.runtime.sampler import ClipOrder

    class Clips(list):
        seed, epoch = 5, 2

    clips, shown = Clips(range(10)), {}
    for rank in range(processes):
        order = ClipOrder(clips, 2, (rank, processes))
        order.done = done
        firsts = range(done, 10, order.size)
        for first, batch in zip(firsts, order, strict=True):
            assert len(batch) == max(1, len(order.share(first)))
            shown |= dict(zip(order.share(first), batch, strict=False))
    permutation = np.random.default_rng((5, 2)).permutation(10).tolist()
    assert shown == dict(list(enumerate(permutation))[done:])


WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal")


class Waits(TorchDispatchMode):
    """What of a step would make the CPU wait for a GPU: numbers that are read, sizes that depend on numbers."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function._schema.name.removeprefix("aten::")
        masks = [i for i in (args[1] if name.startswith("index") and isinstance(args[1], (list, tuple)) else []) or []]
        if name in WAITS or any(i is not None and i.dtype == torch.bool for i in masks):
            where = [frame.filename for frame in traceback.extract_stack()]
            if not any(path.endswith("modules/rnn.py") for path in where):  # reads batch sizes, always on the CPU
                self.found.append(name)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"attention": "uniform"},
        {"attention": "matched"},
        {"scheduled_sampling": 1.0},
        {"caption_weights": True},
        {"accumulation": 2},
    ],
    ids=str,
)
def test_no_step_waits_for_a_gpu(toy_data, tmp_path, monkeypatch, changes):
    """Seen on the CPU, where nothing waits: no operation of a step needs a number of the one before."""
    one = trainer({"data": toy_data, "runs": tmp_path}, "run", **changes)
    batch, read = next(iter(one.loader)), []
    waits = Waits()

    def steps():
        one.objective.begin_epoch(one.network, one.dataset, False)
        for _ in range(2):
            loss, words = one.objective(one.network, batch, 1, False, range(4))
            one.accelerator.backward(loss)
            one.record.add(loss, words)
            one.accelerator.clip_grad_norm_(one.network.parameters(), 1.0)
            one.optimizer.step()
            one.optimizer.zero_grad()
            one.record.end_step(*one.parts)

    steps()  # optimizers prepare themselves at their first step
    if "caption_weights" not in changes:  # which looks captions up where they still are on the CPU
        calls = {name: getattr(torch.Tensor, name) for name in ("tolist", "item", "cpu", "__bool__", "__float__")}
        for name in calls:
            monkeypatch.setattr(torch.Tensor, name, lambda self, name=name: read.append(name) or calls[name](self))
    with waits:
        steps()
    monkeypatch.undo()
    assert not waits.found and not read


if __name__ == "__main__":
    two_processes(*sys.argv[1:])
