"""Settings: profiles, environment variables, files that appear whole or not at all."""

import dataclasses
import json

import pytest

from vcutils import config
from vcutils.config import (
    Config,
    ModelConfig,
    TrainConfig,
    UserError,
    from_dict,
    replacing,
    to_json,
    write_text,
)


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


def test_original_profile_holds_the_users_hyperparameters():
    settings = Config.from_profile("original")
    train, model = settings.train, settings.model
    assert (train.lr, train.weight_decay, train.epochs, train.warmup_epochs) == (1e-4, 1e-5, 20, 5)
    assert (train.accumulation, train.clip_norm, train.checkpoint_every) == (4, 1.0, 5)
    assert (train.batch_size, train.find_batch_size, train.captions_per_clip, train.seed) == (16, True, 1, 42)
    assert settings.vocab.min_count == 4
    assert (settings.extract.backbone, settings.extract.num_frames) == ("resnet152", 40)
    assert {model.embed_dim, model.encoder_dim, model.decoder_dim, model.attention_dim} == {512}
    assert model.dropout == 0.5
    assert (model.attention, model.encoder, model.frame_order) == ("additive", "bilstm", "kept")
    assert (train.label_smoothing, train.scheduled_sampling, train.frame_dropout, train.scst_epochs) == (0, 0, 0, 0)
    assert not train.shuffle_features


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
    settings = Config.from_profile("msvd")
    data = json.loads(to_json(settings))
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


def test_settings_left_open_follow_the_corpus_size_and_given_ones_stay():
    sizes = {"sample": (84, 420), "medium": (420, 8400), "large": (3151, 63020)}
    found = {}
    for name, size in sizes.items():
        settings = config.suited(Config(), *size)
        found[name] = (settings.train.epochs, settings.train.batch_size, settings.train.lr, settings.model.dropout)
    assert found == {"sample": (30, 8, 1e-3, 0.5), "medium": (30, 8, 2e-3, 0.3), "large": (20, 32, 2e-3, 0.3)}
    original = Config.from_profile("original")
    assert config.suited(original, 84, 420) == original
