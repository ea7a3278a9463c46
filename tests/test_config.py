"""Settings: profiles, environment variables, files that appear whole or not at all, folders that one process holds."""

import dataclasses
import errno
import json
import os
import subprocess
import sys
import time

import pytest

from vcutils import config
from vcutils.config import ORIGINAL_TRAINING, Config, DecodeConfig, ExtractConfig, ModelConfig, TrainConfig, UserError
from vcutils.runtime.files import holding, replacing, write_text
from vcutils.runtime.settings import from_dict


def test_default_profile_is_sample_and_needs_no_download():
    settings = Config.from_env()
    assert settings.profile == "sample"
    assert settings.extract.backbone == "efficientnet_lite0"
    assert settings.corpus is None and settings.corpus_dir == settings.data / "corpora" / "sample"


def test_profile_comes_from_the_environment(monkeypatch):
    monkeypatch.setenv("VCUTILS_PROFILE", "tiny")
    settings = Config.from_env()
    assert (settings.profile, settings.clips) == ("tiny", 12)
    assert settings.corpus_dir.name == "tiny"


def test_empty_profile_variable_means_the_default(monkeypatch):
    monkeypatch.setenv("VCUTILS_PROFILE", "")
    assert Config.from_env().profile == "sample"


def test_unknown_profile_lists_the_known_ones(monkeypatch):
    monkeypatch.setenv("VCUTILS_PROFILE", "mvsd")
    with pytest.raises(UserError, match=r"'mvsd'.*tiny, sample, msvd"):
        Config.from_env()


def test_original_preset_holds_the_users_hyperparameters():
    train = ORIGINAL_TRAINING
    assert (train.lr, train.weight_decay, train.epochs, train.warmup_epochs) == (1e-4, 1e-5, 20, 5)
    assert (train.accumulation, train.clip_norm) == (4, 1.0)
    assert (train.batch_size, train.find_batch_size, train.captions_per_clip, train.seed) == (16, True, 1, 42)
    assert (train.label_smoothing, train.scheduled_sampling, train.frame_dropout, train.scst_epochs) == (0, 0, 0, 0)
    assert not train.shuffle_features


def test_there_are_three_profiles():
    assert list(config.PROFILES) == ["tiny", "sample", "msvd"]
    msvd = config.PROFILES["msvd"]
    assert (msvd.extract.backbone, msvd.extract.num_frames, msvd.vocab.min_count) == ("resnet152", 40, 4)


def test_no_field_is_filled_in_where_a_number_is_given():
    """`lr=0.0` became 7e-4 and `captions_per_clip=0` meant all."""
    given = Config(train=TrainConfig(epochs=0, lr=0.0), model=ModelConfig(dropout=0.0))
    settings = config.suited(given, 84, 420)
    assert (settings.train.epochs, settings.train.lr, settings.model.dropout) == (0, 0.0, 0.0)
    filled = config.suited(Config(), 84, 420)
    open_fields = [f.name for f in dataclasses.fields(TrainConfig) if getattr(filled.train, f.name) is None]
    assert open_fields == ["patience", "max_minutes"], "None there means none"


BAD_SETTINGS = [
    (TrainConfig, "epochs", -1),
    (TrainConfig, "batch_size", 0),
    (TrainConfig, "captions_per_clip", 0),
    (TrainConfig, "captions_per_clip", None),
    (TrainConfig, "lr", -1e-3),
    (TrainConfig, "lr", float("nan")),
    (TrainConfig, "lr", float("inf")),
    (TrainConfig, "warmup_epochs", -1.0),
    (TrainConfig, "accumulation", 0),
    (TrainConfig, "accumulation", True),
    (TrainConfig, "label_smoothing", 1.5),
    (TrainConfig, "frame_dropout", -0.1),
    (TrainConfig, "scheduled_sampling", 2.0),
    (TrainConfig, "matching", -1.0),
    (TrainConfig, "precision", "fp8"),
    (TrainConfig, "checkpoint_every", 0),
    (TrainConfig, "patience", 0),
    (TrainConfig, "val_beam_size", 0),
    (TrainConfig, "max_length", 0),
    (TrainConfig, "scst_epochs", -1),
    (TrainConfig, "num_workers", -1),
    (TrainConfig, "seed", -1),
    (TrainConfig, "shuffle_features", 1),
    (ModelConfig, "embed_dim", 0),
    (ModelConfig, "dropout", 2.0),
    (ModelConfig, "attention", "sharp"),
    (ModelConfig, "max_frames", 0),
    (DecodeConfig, "beam_size", 0),
    (DecodeConfig, "beam_size", 10**6),
    (DecodeConfig, "max_length", 0),
    (DecodeConfig, "length_penalty", -1.0),
    (DecodeConfig, "no_repeat_ngram", 0),
    (ExtractConfig, "num_frames", 0),
    (ExtractConfig, "num_frames", "16"),
    (ExtractConfig, "workers", 0),
    (ExtractConfig, "patience", -1.0),
    (config.VocabConfig, "min_count", 0),
]


@pytest.mark.parametrize(("kind", "name", "value"), BAD_SETTINGS, ids=lambda v: getattr(v, "__name__", str(v)))
def test_every_field_is_checked_when_settings_are_made(kind, name, value):
    with pytest.raises(UserError, match=f"^{name}=.*must be"):
        kind(**{name: value})
    with pytest.raises(UserError, match=name):
        dataclasses.replace(kind(), **{name: value})
    with pytest.raises(UserError, match=name):
        from_dict(kind, {name: value})


def test_corpus_variable_counts_from_the_project_root_wherever_the_notebook_runs(monkeypatch, tmp_path):
    (tmp_path / "corpora" / "mine").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    monkeypatch.setattr(config, "PROJECT_ROOT", tmp_path)
    monkeypatch.setenv("VCUTILS_CORPUS", "corpora/mine")
    settings = Config.from_env()
    assert settings.corpus_dir == (tmp_path / "corpora" / "mine").resolve()
    assert settings.artifacts == settings.data / "mine"


def test_absolute_corpus_variable_with_any_profile(monkeypatch, tmp_path):
    monkeypatch.setenv("VCUTILS_PROFILE", "msvd")
    monkeypatch.setenv("VCUTILS_CORPUS", str(tmp_path))
    assert Config.from_env().corpus_dir == tmp_path.resolve()


def test_missing_corpus_folder_is_named_with_where_paths_count_from(monkeypatch, tmp_path):
    monkeypatch.setattr(config, "PROJECT_ROOT", tmp_path)
    monkeypatch.setenv("VCUTILS_CORPUS", "nowhere")
    with pytest.raises(UserError, match="nowhere") as caught:
        Config.from_env()
    assert str(tmp_path / "nowhere") in str(caught.value) and "relative paths count from" in str(caught.value)


def test_data_variable_moves_the_artifacts(monkeypatch, tmp_path):
    monkeypatch.setenv("VCUTILS_DATA", str(tmp_path))
    assert Config.from_env().artifacts == tmp_path.resolve() / "sample"


def test_checkout_is_the_project_root(repo):
    assert config.PROJECT_ROOT == repo


def test_every_field_has_its_reason_on_its_line(repo):
    """DESIGN: one line of reason per field."""
    lines = (repo / "vcutils" / "config.py").read_text(encoding="utf-8").splitlines()
    for cls in (config.ExtractConfig, config.VocabConfig, ModelConfig, TrainConfig, config.DecodeConfig):
        for field in dataclasses.fields(cls):
            assert any(line.strip().startswith(f"{field.name}:") and "  # " in line for line in lines), field.name


def test_settings_round_trip_as_json():
    settings = config.PROFILES["msvd"]
    data = json.loads(json.dumps(dataclasses.asdict(settings), default=str))
    assert from_dict(TrainConfig, data["train"]) == settings.train
    assert from_dict(ModelConfig, data["model"]) == settings.model


def test_unknown_field_is_refused_by_name():
    with pytest.raises(UserError, match=r"ModelConfig.*heads"):
        from_dict(ModelConfig, {"heads": 8})


def test_replacing_puts_the_file_in_place(tmp_path):
    target = tmp_path / "deep" / "file.json"
    write_text(target, "é\n")
    write_text(target, "new\n")
    assert target.read_bytes() == b"new\n"
    assert [p.name for p in target.parent.iterdir()] == ["file.json"]


def test_replacing_leaves_nothing_behind_when_the_body_raises(tmp_path):
    target = tmp_path / "file.bin"
    with pytest.raises(RuntimeError), replacing(target) as temporary:
        temporary.write_bytes(b"half")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_replacing_keeps_the_old_file_when_the_body_raises(tmp_path):
    target = tmp_path / "file.bin"
    target.write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt), replacing(target) as temporary:
        temporary.write_bytes(b"half")
        raise KeyboardInterrupt
    assert target.read_bytes() == b"old" and list(tmp_path.iterdir()) == [target]


def test_half_written_file_is_never_seen_under_its_name(tmp_path):
    target = tmp_path / "file.bin"
    with replacing(target) as temporary:
        temporary.write_bytes(b"half")
        assert not target.exists() and temporary.parent == target.parent
    assert target.read_bytes() == b"half"


def test_written_files_are_readable_by_the_group_as_the_umask_says(tmp_path):
    plain = tmp_path / "plain"
    plain.write_text("x")
    write_text(tmp_path / "ours", "x")
    assert (tmp_path / "ours").stat().st_mode == plain.stat().st_mode


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EDQUOT, errno.EIO])
@pytest.mark.parametrize("call", ["mkdir", "open", "write", "replace"])
def test_file_that_cannot_be_written_is_named_and_the_old_one_kept(tmp_path, monkeypatch, call, number):
    target = tmp_path / "deep" / "file.txt"
    if call != "mkdir":
        write_text(target, "old")

    def fail(*args, **kwargs):
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patched, pytest.raises(UserError) as caught:
        patched.setattr(*{
            "mkdir": ("pathlib.Path.mkdir", fail),
            "open": ("filelock.FileLock.acquire", fail),
            "write": ("pathlib.Path.write_text", fail),
            "replace": ("os.replace", fail),
        }[call])  # fmt: skip
        write_text(target, "new")
    assert str(target) in str(caught.value) and os.strerror(number) in str(caught.value)
    assert "make room" in str(caught.value)
    assert [p.read_text() for p in tmp_path.rglob("*") if p.is_file()] == ([] if call == "mkdir" else ["old"])


@pytest.fixture
def hold_elsewhere(repo):
    """Function: start a process that holds a folder, with a forked child, and is writing a file there."""
    script = (
        "import os, sys, time; from pathlib import Path; from vcutils.runtime.files import holding, replacing\n"
        "folder = Path(sys.argv[1])\n"
        "with holding(folder, 'train'), replacing(folder / 'best' / 'file') as temporary:\n"
        "    temporary.write_bytes(b'half')\n"
        "    if hasattr(os, 'fork') and not os.fork(): time.sleep(20); os._exit(0)\n"
        "    print('ready', flush=True); time.sleep(20)"
    )
    started = []

    def start(folder):
        command = [sys.executable, "-c", script, str(folder)]
        started.append(subprocess.Popen(command, cwd=repo, stdout=subprocess.PIPE, start_new_session=True))
        assert started[-1].stdout.readline().strip() == b"ready"
        return started[-1]

    yield start
    for process in started:
        os.killpg(process.pid, 9) if hasattr(os, "killpg") else process.kill()
        process.wait()


def test_held_folder_is_refused_with_who_holds_it_and_taken_over_from_a_killed_process(tmp_path, hold_elsewhere):
    other = hold_elsewhere(tmp_path)
    year = time.strftime("%Y-")
    with pytest.raises(UserError, match=rf"train.*process {other.pid} on .* since {year}"), holding(tmp_path, "train"):
        pass
    with holding(tmp_path, "evaluate-test"):  # something else may be done there
        assert len(list(tmp_path.rglob(".tmp-*"))) == 1, "a live process' temporary file stays"
    other.kill()  # its child lives on
    other.wait()
    with holding(tmp_path, "train"):
        assert f"process {os.getpid()} " in (tmp_path / ".train.lock").read_text()
    with holding(tmp_path, "evaluate-test"):
        pass
    assert [p.name for p in tmp_path.iterdir()] == ["best"]


def test_killed_process_leaves_nothing_behind_after_the_next_run(tmp_path):
    (tmp_path / "last").mkdir()
    for name in (".tmp-abc", ".lock-.tmp-abc", "last/.tmp-def.safetensors", "last/.lock-.tmp-def.safetensors"):
        (tmp_path / name).write_bytes(b"half")
    with replacing(tmp_path / "last" / "mine") as temporary:
        temporary.write_bytes(b"half")
        with holding(tmp_path, "train"):
            assert temporary.exists() and len(list(tmp_path.rglob(".tmp-*"))) == 1
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["last", "mine"]


def test_hold_in_the_same_process_is_refused_and_ends_with_its_body(tmp_path):
    with pytest.raises(RuntimeError), holding(tmp_path, "train"):
        with pytest.raises(UserError, match=f"process {os.getpid()} "), holding(tmp_path, "train"):
            pass
        raise RuntimeError
    with holding(tmp_path, "train"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_folder_that_cannot_be_held_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file.*cannot be written"), holding(tmp_path / "file", "train"):
        pass


def test_settings_left_open_follow_the_corpus_size_and_given_ones_stay():
    sizes = {"sample": (176, 880), "medium": (420, 8400), "large": (3151, 63020)}
    chosen = {}
    for name, size in sizes.items():
        settings = config.suited(Config(), *size)
        train = settings.train
        chosen[name] = (train.epochs, train.batch_size, train.lr, train.frame_dropout, train.val_beam_size)
        chosen[name] += (settings.model.dropout, settings.model.attention, train.scst_epochs)
        chosen[name] += (settings.decode.length_penalty, train.caption_weights)
    assert chosen == {
        "sample": (18, 8, 1.4e-3, 0.0, 5, 0.5, "additive", 0, 1.0, False),
        "medium": (30, 8, 2e-3, 0.25, 1, 0.3, "additive", 0, 1.0, False),
        "large": (20, 32, 2e-3, 0.25, 1, 0.3, "additive", 4, 0.5, False),
    }
    single = config.suited(Config(train=TrainConfig(captions_per_clip=1)), *sizes["large"])
    assert single.train.scst_epochs == 0, "a clip's only sample has no other to be compared with"
    asked = config.suited(Config(train=TrainConfig(epochs=7)), *sizes["large"])
    assert (asked.train.epochs, asked.train.scst_epochs) == (7, 0), "who asks for 7 epochs gets 7"
    both = config.suited(Config(train=TrainConfig(epochs=7, scst_epochs=2)), *sizes["large"])
    assert (both.train.epochs, both.train.scst_epochs) == (7, 2)
    assert config.suited(config.suited(Config(), *sizes["large"]), *sizes["large"]).train.scst_epochs == 4
    train, model = (
        dataclasses.replace(ORIGINAL_TRAINING, epochs=0, lr=0.0),
        ModelConfig(dropout=0.0, attention="uniform"),
    )
    given = Config(model=model, train=train, decode=DecodeConfig(length_penalty=0.0))
    assert config.suited(given, 84, 420) == given, "a real 0 is a 0"


def test_single_settings_change_by_one_variable(monkeypatch):
    monkeypatch.setenv(
        "VCUTILS_SET", "train.epochs=3, model.dropout=none decode.beam_size=2 extract.own_features=False"
    )
    settings = Config.from_env()
    assert (settings.train.epochs, settings.model.dropout, settings.decode.beam_size) == (3, None, 2)
    assert settings.extract.own_features is False


def test_original_notebooks_training_is_a_preset(monkeypatch):
    monkeypatch.setenv("VCUTILS_PROFILE", "msvd")
    monkeypatch.setenv("VCUTILS_SET", "train=original")
    assert Config.from_env().train == ORIGINAL_TRAINING
    monkeypatch.setenv("VCUTILS_SET", "train=original train.epochs=3")
    assert Config.from_env().train == dataclasses.replace(ORIGINAL_TRAINING, epochs=3)


@pytest.mark.parametrize(
    "change",
    ["epochs=3", "train.epoch=3", "train.epochs=many", "model.attention=sharp", "train.resume=1", "train=best"],
)
def test_settings_that_do_not_exist_are_refused_by_name(monkeypatch, change):
    monkeypatch.setenv("VCUTILS_SET", change)
    with pytest.raises(UserError, match=f"VCUTILS_SET.*{change.split('=')[0]}"):
        Config.from_env()
