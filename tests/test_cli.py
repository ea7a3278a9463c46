"""The command line: every verb as a server's script would call it."""

import dataclasses
import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest

from vcutils.cli import main
from vcutils.config import ModelConfig, TrainConfig

VERBS = (
    "sample",
    "doctor",
    "extract",
    "vocab",
    "train",
    "evaluate",
    "score",
    "caption",
    "explore",
    "course",
)  # DESIGN's


@pytest.fixture
def ready_corpus(tmp_path):
    """Six clips with two captions each, as features alone."""
    root = tmp_path / "ready"
    (root / "features" / "c3d").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i in "abcdef":
        np.save(root / "features" / "c3d" / f"{i}.npy", rng.normal(size=(4, 9)).astype(np.float32))
    (root / "captions.txt").write_text("".join(f"{i} a cat sits\n{i} the cat runs\n" for i in "abcdef"))
    return root


@pytest.fixture
def call(capfd, monkeypatch):
    """Function: run the command line with the tiny profile; (exit code, stdout, stderr)."""
    monkeypatch.setenv("VCUTILS_PROFILE", "tiny")

    def run(*args):
        capfd.readouterr()
        try:
            code = main([str(a) for a in args])
        except SystemExit as error:
            code = error.code
        return (code or 0, *capfd.readouterr())

    return run


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help(call, verb):
    code, out, _ = call(verb, "--help")
    assert code == 0 and verb in out


@pytest.mark.parametrize(
    "args", [[], ["nonsense"], ["extract"], ["train", "x", "--epochs", "many"], ["doctor", "x", "--odd"]]
)
def test_wrong_use_is_2(call, args):
    assert call(*args)[0] == 2


def test_ids_with_a_leading_dash_go_behind_two(call, tmp_path):
    code, _, err = call("explore", tmp_path, "-wsuPCjDBc_5_15")
    assert code == 2 and 'behind "--"' in err
    code, _, err = call("explore", tmp_path, "--", "-wsuPCjDBc_5_15")
    assert code == 2 and "not a run" in err


@pytest.mark.parametrize("verb", ["doctor", "extract", "vocab", "train"])
def test_bad_corpus_is_2_with_one_line(call, verb, tmp_path):
    code, out, err = call(verb, tmp_path / "nowhere")
    assert code == 2 and out == ""
    assert err.count("\n") == 1 and "nowhere" in err and "Traceback" not in err


@pytest.mark.parametrize("verb", ["evaluate", "caption"])
def test_bad_run_is_2(call, verb, tmp_path):
    code, _, err = call(verb, tmp_path, *(["clip.mp4"] if verb == "caption" else []))
    assert code == 2 and "not a run" in err


def test_unknown_profile_is_2(call, monkeypatch, make_corpus):
    monkeypatch.setenv("VCUTILS_PROFILE", "nope")
    code, _, err = call("doctor", make_corpus())
    assert code == 2 and "nope" in err


def test_doctor_is_0_on_a_good_corpus_and_1_on_problems(call, make_corpus):
    root = make_corpus()
    code, out, _ = call("doctor", root, "--json")
    assert code == 0 and json.loads(out)["problems"] == []
    (root / "videos" / "b.avi").write_text("no video")
    code, out, _ = call("doctor", root, "--json")
    assert code == 1 and json.loads(out)["unreadable clips"] == ["b"]
    code, out, _ = call("doctor", root)
    assert code == 1 and "b.avi" in out


@pytest.mark.parametrize("shard", ["3/2", "0/2", "1", "a/b", "-1/2", "1/0"])
def test_impossible_shard_is_explained(call, make_corpus, shard, tmp_path):
    code, _, err = call("extract", make_corpus(), f"--shard={shard}", "--data", tmp_path / "data")
    assert code == 2 and "I/N" in err and shard in err


def test_extract_is_1_when_a_clip_failed_and_0_when_all_is_done(call, make_corpus, fake_backbone, tmp_path):
    root = make_corpus()
    args = (
        "extract",
        root,
        "--backbone",
        "colours",
        "--num-frames",
        "3",
        "--data",
        tmp_path / "data",
        "--json",
    )
    code, out, _ = call(*args)
    assert code == 0 and json.loads(out)["written"] == 3
    (root / "videos" / "b.avi").write_text("no video")
    code, out, _ = call(*args)
    report = json.loads(out)
    assert code == 1 and list(report["failed"]) == ["b"] and report["skipped, done before"] == 2
    assert np.load(tmp_path / "data" / "mine" / "features" / "colours" / "a.npy").shape == (3, 12)


def test_shards_by_command_line_share_the_work(call, make_corpus, fake_backbone, tmp_path):
    root = make_corpus()
    done = []
    for shard in ("1/2", "2/2"):
        code, out, _ = call("extract", root, "--backbone", "x", "--shard", shard, "--data", tmp_path / "data", "--json")
        done.append(json.loads(out)["written"])
        assert code == 0
    assert done == [2, 1]


def test_run_name_must_be_plain(call, make_corpus, tmp_path):
    code, _, err = call("train", make_corpus(), "--run", "../other", "--data", tmp_path)
    assert code == 2 and "../other" in err


def test_sample_never_writes_into_a_folder_of_somebody_else(call, tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    code, _, err = call("sample", "--out", tmp_path, "--clips", "8")
    assert code == 2 and str(tmp_path) in err and [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_caption_without_a_clip_is_wrong_use(call, tiny_run):
    assert call("caption", tiny_run)[0] == 2


def test_score_prints_the_contracts_json(call, tmp_path):
    (tmp_path / "p.json").write_text(json.dumps({"a": "a cat sits on a mat", "b": "a dog runs in the park"}))
    (tmp_path / "r.json").write_text(json.dumps({"a": ["a cat sits on a mat", "a cat"], "b": ["the man sings a song"]}))
    code, out, _ = call("score", tmp_path / "p.json", tmp_path / "r.json", "--json")
    report = json.loads(out)
    assert code == 0 and {"Bleu_1", "Bleu_4", "METEOR", "ROUGE_L", "CIDEr"} <= set(report["scores"])
    assert 0 < report["scores"]["Bleu_4"] < 1 and report["protocol"]["clips"] == 2
    assert call("score", tmp_path / "p.json", tmp_path / "missing.json")[0] == 2
    assert call("score", tmp_path / "p.json", tmp_path / "r.json")[0] == 0


def test_whole_way_from_clips_to_captions(call, tiny_corpus, snapshot, tmp_path):
    """extract → vocab → train → evaluate → caption, and nothing is written into the corpus."""
    root, data, before = tiny_corpus.root, tmp_path / "data", snapshot(tiny_corpus.root)
    artifacts = data / root.name

    code, out, _ = call("extract", root, "--data", data, "--json")
    assert code == 0 and json.loads(out)["written"] == 12
    assert len(list((artifacts / "features" / "efficientnet_lite0").glob("*.npy"))) == 12
    code, out, _ = call("extract", root, "--data", data, "--json")
    assert code == 0 and json.loads(out)["skipped, done before"] == 12

    code, out, _ = call("vocab", root, "--data", data, "--json")
    assert code == 0 and json.loads(out)["words"] > 20
    assert (artifacts / "splits.json").is_file() and (artifacts / "vocab.json").is_file()

    train = ("train", root, "--data", data, "--run", "first", "--json")
    code, out, _ = call(*train, "--epochs", "1", "--lr", "0.005", "--decoder-dim", "40")
    report = json.loads(out)
    run = artifacts / "runs" / "first"
    assert code == 0 and report["epochs"] == 1 and report["best"]["epoch"] == 1
    written = json.loads((run / "config.json").read_text())
    assert written["train"]["lr"] == 0.005 and written["model"]["decoder_dim"] == 40
    code, out, _ = call(*train, "--epochs", "2", "--resume", "--decoder-dim", "40")
    assert code == 0 and json.loads(out)["epochs"] == 2

    code, out, _ = call("evaluate", run, "--beam", "2", "--json")
    result = json.loads(out)
    assert code == 0 and set(result) == {"scores", "protocol", "baselines", "diagnostics", "seeds"}
    assert result["protocol"]["beam"] == 2
    assert result == json.loads((run / "metrics_test.json").read_text(encoding="utf-8"))
    code, out, _ = call("evaluate", run, "--split", "val")
    assert code == 0 and "Bleu_4" in out and "constant caption" in out and "median_rank" in out
    assert call("evaluate", run, "--split", "nope")[0] == 2

    clip, broken = next(iter(tiny_corpus.clips.values())), tmp_path / "broken.mp4"
    broken.write_text("no video")
    code, out, _ = call("caption", run, clip, "--json")
    (row,) = json.loads(out).values()
    assert code == 0 and row["caption"] and np.allclose(np.sum(row["weights"], axis=1), 1, atol=1e-3)
    assert len(row["weights"]) == len(row["words"]) and len(row["timestamps"]) == len(row["weights"][0]) == 6
    code, out, err = call("caption", run, broken, clip)
    assert code == 1 and "broken.mp4" in err and row["caption"] in out and "strongest frame" in out

    assert snapshot(root) == before


def test_train_makes_split_and_vocabulary_where_they_are_missing(call, make_corpus, fake_backbone, tmp_path):
    root = make_corpus(ids=tuple("abcdef"))
    data = ("--data", tmp_path / "data")
    assert call("extract", root, "--num-frames", "3", *data)[0] == 0
    code, out, err = call("train", root, "--epochs", "1", *data, "--json")
    assert code == 0 and json.loads(out)["epochs"] == 1
    assert "split" in err and (tmp_path / "data" / "mine" / "vocab.json").is_file()


def test_vocab_is_1_when_it_lists_captions_without_clips_and_0_when_there_is_nothing_to_list(
    call, make_corpus, tmp_path
):
    root, data = make_corpus(ids=tuple("abcdef")), ("--data", tmp_path / "data")
    assert call("vocab", root, *data)[0] == 0
    with open(root / "captions.txt", "a") as file:
        file.write("ghost a dog runs\n")
    code, out, _ = call("vocab", root, *data, "--json")
    assert code == 1 and json.loads(out)["problems"] == ["ghost: captions but no clip"]
    assert (tmp_path / "data" / "mine" / "vocab.json").is_file(), "what can be done is done"


@pytest.mark.skipif(not hasattr(os, "killpg"), reason="kills a process")
def test_page_of_a_killed_explore_is_swept_by_the_next(call, tiny_run, tiny_corpus, tmp_path, repo):
    """What another program left beside it stays."""
    script = (
        "import os, sys; from pathlib import Path; from vcutils.runtime.files import replacing\n"
        "with replacing(Path(sys.argv[1])) as temporary:\n"
        "    temporary.write_text('half'); os.kill(os.getpid(), 9)"
    )
    page = tmp_path / "page.html"
    (tmp_path / ".tmp-of-an-editor").write_text("years of work")
    subprocess.run([sys.executable, "-c", script, str(page)], cwd=repo, check=False)
    assert len(list(tmp_path.glob(".tmp-*.html"))) == 1, "else this test tests nothing"
    assert call("explore", tiny_run, next(iter(tiny_corpus.clips)), "--out", page)[0] == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == [".tmp-of-an-editor", "page.html"]


def test_explore_without_a_clip_shows_all_of_a_split(call, tiny_run, tmp_path):
    page = tmp_path / "page.html"
    assert call("explore", tiny_run, "--split", "val", "--out", page)[0] == 0
    rows = json.loads(re.search('<script type="application/json">(.*)</script>', page.read_text("utf-8"))[1])
    clips = json.loads((tiny_run.parents[1] / "splits.json").read_text("utf-8"))["val"]
    assert [row["title"] for row in rows] == clips
    assert all(row["cider"] >= 0 and 0 <= row["spread"] <= 1 and row["caption"] for row in rows)


def test_train_before_extract_says_what_to_run(call, make_corpus, tmp_path):
    code, _, err = call("train", make_corpus(ids=tuple("abcdef")), "--epochs", "1", "--data", tmp_path / "data")
    assert code == 2 and "extract" in err


def test_corpus_that_brings_features_trains_on_them(call, ready_corpus, tmp_path):
    code, out, _ = call("train", ready_corpus, "--epochs", "1", "--seeds", "2", "--data", tmp_path / "data", "--json")
    run = tmp_path / "data" / "ready" / "runs" / "default"
    assert [row["run"].replace("\\", "/").rsplit("/", 1)[1] for row in json.loads(out)["runs"]] == [
        "default",
        "default-seed1",
    ]
    assert code == 0 and json.loads((run / "config.json").read_text())["features"].endswith("c3d")
    code, out, _ = call("evaluate", run, "--beam", "1", "--json")
    assert code == 0 and json.loads(out)["protocol"]["seeds"] == [0, 1]
    code, out, _ = call("evaluate", run, f"{run}-seed1", "--beam", "2", "--json")
    assert code == 0 and list(json.loads(out)["scores"]) == [
        "default",
        "default-seed1",
        "all together",
        "most agreed",
    ]
    code, out, _ = call("evaluate", run, f"{run}-seed1", "--split", "val")
    assert code == 0 and "default-seed1" in out and "Intervals" in out
    assert call("evaluate", run, run)[0] == call("evaluate")[0] == 2
    code, _, err = call("extract", ready_corpus, "--data", tmp_path / "data")
    assert code == 2 and "nothing to extract" in err
    code, _, err = call("caption", run, tmp_path / "any.mp4")
    assert code == 2 and "c3d" in err, "no backbone of that name can be loaded for a new clip"


def test_help_does_not_wait_for_torch(repo):
    script = (
        "import sys, runpy; sys.argv = ['vcutils', '--help']\n"
        "try: runpy.run_module('vcutils', run_name='__main__')\n"
        "except SystemExit as e: code = e.code\n"
        "print('CODE', code or 0, 'HEAVY', sorted({'torch', 'cv2', 'matplotlib', 'timm'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=repo, capture_output=True, text=True, timeout=120)
    assert "CODE 0 HEAVY []" in done.stdout, done.stdout[-500:] + done.stderr[-2000:]
    assert all(verb in done.stdout for verb in VERBS)


def test_exit_code_reaches_the_shell(repo, tmp_path):
    command = [sys.executable, "-m", "vcutils", "doctor", str(tmp_path / "nowhere")]
    done = subprocess.run(command, cwd=repo, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and "no such folder" in done.stderr and "Traceback" not in done.stderr


BAD_NUMBERS = ("-1", "nan", "x", "")


@pytest.mark.parametrize("kind", [TrainConfig, ModelConfig], ids=lambda kind: kind.__name__)
def test_no_value_of_a_training_option_ends_in_a_traceback(call, make_corpus, tmp_path, kind):
    root = make_corpus()
    for field in dataclasses.fields(kind):
        flag = f"--{field.name.replace('_', '-')}"
        for value in (*BAD_NUMBERS, "0", "1000000000000"):
            code, _, err = call("train", root, f"{flag}={value}", "--data", tmp_path / "data")
            assert code == 2 and "Traceback" not in err, (flag, value)


def test_no_huge_value_of_a_training_option_ends_in_a_traceback(call, ready_corpus, tmp_path):
    """With features at hand, so that a model is really built and trained for a step."""
    ended = {}
    for kind, size in ((TrainConfig, "1e12"), (ModelConfig, "1000000000000")):
        for field in dataclasses.fields(kind):
            small = ("epochs", "scst_epochs", "captions_per_clip", "num_workers", "max_minutes")
            if field.name in small or ("float" not in str(field.type) and kind is TrainConfig):
                continue
            flags = ("--epochs=2", "--max-minutes=0.02", f"--{field.name.replace('_', '-')}={size}")
            try:
                code, _, err = call("train", ready_corpus, "--data", tmp_path / "data", *flags)
                assert code in (0, 2) and "Traceback" not in err
            except Exception as error:
                ended[field.name] = error
    assert not ended


@pytest.mark.parametrize(
    ("verb", "flags"),
    [
        ("sample", ["--clips", "--seed"]),
        ("extract", ["--num-frames", "--shard", "--engine", "--backbone"]),
        ("vocab", ["--min-count"]),
        ("train", ["--seeds", "--run", "--backbone"]),
        ("ablate", ["--seeds", "--split"]),
    ],
)
def test_no_value_of_a_corpus_verbs_options_ends_in_a_traceback(call, make_corpus, tmp_path, verb, flags):
    first = [] if verb == "sample" else [make_corpus(), "--data", tmp_path / "data"]
    for flag in flags:
        for value in (*BAD_NUMBERS, "0"):
            if (flag, value) in (("--seed", "0"), ("--backbone", "")):
                continue  # nothing is wrong with these
            code, _, err = call(verb, *first, f"{flag}={value}")
            assert code == 2 and "Traceback" not in err, (flag, value)


@pytest.mark.parametrize("verb", ["evaluate", "caption", "explore"])
def test_no_value_of_a_runs_verbs_options_ends_in_a_traceback(call, tiny_run, tiny_corpus, tmp_path, verb):
    clip = [] if verb == "evaluate" else [next(iter(tiny_corpus.clips.values()))]
    out = ["--out", tmp_path / "page.html"] if verb == "explore" else []
    for value in (*BAD_NUMBERS, "0", "1000000000000"):
        code, _, err = call(verb, tiny_run, *clip, *out, f"--beam={value}")
        assert code == 2 and "Traceback" not in err, value
    for split in ("", "tests") if verb != "caption" else ():
        check = ["--check"] if verb == "explore" else []
        code, _, err = call(verb, tiny_run, *check, f"--split={split}")
        assert code == 2 and "Traceback" not in err, split
