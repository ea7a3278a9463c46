"""A trained run, opened with everything needed to use it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from vcutils.config import DecodeConfig, ExtractConfig, ModelConfig, UserError
from vcutils.corpus import Corpus
from vcutils.dataset import CaptionData, load_data
from vcutils.decode import Hypothesis, generate, predict
from vcutils.features import clip_features
from vcutils.model import CaptionModel
from vcutils.runtime import checkpoints
from vcutils.runtime.backbones import Backbone, load_backbone
from vcutils.runtime.decoding import frames_at
from vcutils.runtime.files import read_json, reading
from vcutils.runtime.machine import pick_device
from vcutils.runtime.settings import from_dict
from vcutils.runtime.store import backbone_of, in_words
from vcutils.vocab import Vocabulary

CAPTIONER = Path(__file__).resolve().parents[1] / "captioner"  # made by `make captioner`


@dataclass(frozen=True)
class Run:
    """A trained run with everything needed to use it."""

    folder: Path
    config: dict[str, Any]  # config.json
    model: CaptionModel
    vocabulary: Vocabulary
    data: CaptionData
    clips: Mapping[str, Path]  # the corpus' video files by id

    @property
    def manifest(self) -> Mapping[str, dict[str, Any]]:
        """Rows of the feature store's manifest by id; empty for features that the corpus brought."""
        return self.data.store.manifest

    @property
    def extract(self) -> ExtractConfig:
        """How the features were made: by their manifest, else by the run's settings."""
        settings = from_dict(ExtractConfig, self.config["extract"])
        frames = (self.data.store.extracted or {}).get("num_frames", settings.num_frames)
        return replace(settings, backbone=backbone_of(self.data.store.folder), num_frames=frames)

    @property
    def decode(self) -> DecodeConfig:
        """How this run generates captions unless told otherwise."""
        return from_dict(DecodeConfig, self.config["decode"])

    @cached_property
    def backbone(self) -> Backbone:
        """The backbone that the features came from. Raises UserError when it cannot be had with the same weights."""
        backbone = load_backbone(self.extract.backbone, next(self.model.parameters()).device)
        trained = self.data.store.extracted
        loaded = {"backbone": backbone.name, "weights": backbone.weights, "num_frames": self.extract.num_frames}
        if trained and trained != loaded:
            raise UserError(
                f"{self.folder}: trained on {in_words(trained)}, at hand is {in_words(loaded)}; extract and train again"
            )
        return backbone

    def predict(
        self, ids: Sequence[str], decode: DecodeConfig | None = None, sources: Sequence[str] | None = None
    ) -> dict[str, Hypothesis]:
        """The best hypothesis per clip; see `decode.predict`."""
        return predict(self.model, self.vocabulary, self.data.store, ids, decode or self.decode, sources)

    def caption(self, clip: Path, decode: DecodeConfig | None = None) -> tuple[Hypothesis, list[float]]:
        """The best hypothesis for any video file, and its frames' times (s). Raises VideoError for a bad file."""
        features, frames = clip_features(self.backbone, clip, self.extract)
        mask = torch.ones(1, len(features), dtype=torch.bool)
        beams = generate(self.model, self.vocabulary, features[None], mask, decode or self.decode)
        return beams[0][0], frames.timestamps

    def sureness(self, hypothesis: Hypothesis) -> dict[str, Any]:
        """The geometric mean of the words' probabilities; whether it is low, None where no limit was chosen."""
        mean, threshold = float(np.exp(hypothesis.word_log_probs.mean())), self.config.get("unsure_below")
        return {"mean_word_prob": mean, "unsure": None if threshold is None else mean < threshold}

    def timestamps(self, video_id: str) -> list[float]:
        """Seconds of each sampled frame (T,); frame numbers where the corpus brought features without times."""
        timestamps = self.manifest.get(video_id, {}).get("timestamps")
        return timestamps or [float(frame) for frame in range(len(self.data.store[video_id]))]

    def thumbnails(self, video_id: str, height: int = 90) -> list[np.ndarray] | None:
        """The sampled frames of a clip, RGB and scaled to `height` pixels; None when only features are at hand."""
        row, clip = self.manifest.get(video_id, {}), self.clips.get(video_id)
        if clip is None or "indices" not in row:
            return None
        return frames_at(clip, row["indices"], height)


def load_model(folder: Path, device: torch.device | str = "cpu") -> tuple[CaptionModel, Vocabulary, dict[str, Any]]:
    """(model, vocabulary, config.json as a dict) of a best/ or last/ folder.

    Raises UserError that names what is missing or does not fit.
    """
    path, complaint = folder / "model.safetensors", ("not of a trained model", "train again")
    for name in ("config.json", path.name, "vocab.json"):
        if not (folder / name).is_file():
            raise UserError(f"{folder}: no {name}; run notebook 03 or `python -m vcutils train CORPUS`")
    about = read_json(folder / "config.json")
    with reading(folder / "config.json", *complaint), torch.device("meta"):
        # Without memory: its sizes have yet to prove to be those of the weights.
        model = CaptionModel(from_dict(ModelConfig, about["model"]), about["vocab_size"], about["feature_dim"])
    with reading(path, *complaint):
        weights, saved_with = checkpoints.load_tensors(path)
        saved_with = dict(saved_with)
    vocabulary = Vocabulary.load(folder / "vocab.json")
    if len(vocabulary) != about["vocab_size"]:
        raise UserError(f"{folder}: vocab.json has {len(vocabulary)} words, the model {about['vocab_size']}")
    checkpoints.load_weights(model, weights, path)
    for name, digest in checkpoints.digests(about, vocabulary).items():
        if saved_with.get(name, digest) != digest:
            raise UserError(f"{folder / name}: not the one that {path.name} was saved with; is it of another run?")
    return model.eval().to(device), vocabulary, about


def load_run(folder: Path, config: dict[str, Any], corpus: Corpus) -> Run:
    """Open data/<corpus>/runs/<name> with its config.json and its corpus. Raises UserError with what is missing."""
    model, vocabulary, about = load_model(folder / "best", pick_device())
    features = ExtractConfig(backbone=backbone_of(config["features"]), own_features=False)
    data = load_data(corpus, folder.parent.parent, features)
    checkpoints.check_features(about, data.store, folder / "best")
    return Run(folder, config, model, vocabulary, data, corpus.clips)


def load_captioner() -> Run:
    """The captioner that ships with vcutils: a run without a corpus, for video files. Raises UserError without it."""
    if not (CAPTIONER / "config.json").is_file():
        raise UserError(f"{CAPTIONER}: no captioner; install vcutils again, or name a run of yours with --run RUN")
    model, vocabulary, about = load_model(CAPTIONER, pick_device())
    folder, extracted = CAPTIONER / "features" / about["features"], about["extracted"]
    store: Any = SimpleNamespace(folder=folder, extracted=extracted, ids=(), manifest={})
    data = CaptionData(CAPTIONER, store, {}, {"test": ()}, vocabulary)
    return Run(CAPTIONER, about, model, vocabulary, data, {})


def sister_runs(run: Run) -> list[Run]:
    """Finished runs beside this one with the same settings but for the seed, by seed: see `train --seeds`."""

    def settings(config: dict[str, Any]) -> tuple:
        return {**config["train"], "seed": None, "max_minutes": None}, config["model"], config["features"]

    sisters = {run.config["train"]["seed"]: run}
    for path in sorted(run.folder.parent.glob("*/config.json")):
        config = checkpoints.run_config(path.parent)
        seed = config["train"]["seed"]
        if seed not in sisters and (path.parent / "best").is_dir() and settings(config) == settings(run.config):
            model, vocabulary, about = load_model(path.parent / "best", next(run.model.parameters()).device)
            extracted = run.data.store.extracted
            if about.get("extracted", extracted) == extracted:  # else the features were extracted anew since then
                sisters[seed] = Run(path.parent, config, model, vocabulary, run.data, run.clips)
    return [sisters[seed] for seed in sorted(sisters) if sisters[seed] is not run]
