"""What a run leaves on disk: checkpoints without pickle, settings, the log.

config.json and log.csv hold everything needed to repeat the run and a row per epoch; best/ and last/ hold
model.safetensors, config.json and vocab.json each; last/resume.safetensors what a resumed run needs besides.
"""

import csv
import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from vcutils.config import ModelConfig, UserError, from_dict, replacing, write_text
from vcutils.dataset import CaptionData
from vcutils.model import CaptionModel
from vcutils.vocab import Vocabulary


def start_anew(run: Path) -> None:
    """Remove what an earlier run of this name left, so that nothing of it stands beside the new run's settings."""
    for pattern in ("best", "last", "attention", "log.csv", "config.json", "predictions_*.json", "metrics_*.json"):
        for path in run.glob(pattern):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def save_model(folder: Path, model: CaptionModel, config: ModelConfig, data: CaptionData) -> None:
    """model.safetensors, config.json and vocab.json: all that captions need, no pickle."""
    data.vocabulary.save(folder / "vocab.json")
    about = {
        "model": dataclasses.asdict(config),
        "vocab_size": model.vocab_size,
        "feature_dim": model.feature_dim,
        "corpus": data.root.name,
        "features": data.store.folder.name,
    }
    write_text(folder / "config.json", json.dumps(about, indent=2))
    with replacing(folder / "model.safetensors") as temporary:
        save_file({n: t.contiguous().cpu() for n, t in model.state_dict().items()}, temporary)


def load_model(folder: Path, device: torch.device | str = "cpu") -> tuple[CaptionModel, Vocabulary, dict]:
    """(model, vocabulary, config.json as a dict) of a best/ or last/ folder.

    Raises UserError that names what is missing or does not fit.
    """
    try:
        about = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        weights = load_file(folder / "model.safetensors")
        model = CaptionModel(from_dict(ModelConfig, about["model"]), about["vocab_size"], about["feature_dim"])
    except FileNotFoundError as error:
        raise UserError(f"{folder}: no trained model; run notebook 03 or `python -m vcutils train CORPUS`") from error
    except (ValueError, KeyError, TypeError, SafetensorError) as error:
        raise UserError(f"{folder}: not a trained model ({error}); train again") from error
    vocabulary = Vocabulary.load(folder / "vocab.json")
    if len(vocabulary) != model.vocab_size:
        raise UserError(f"{folder}: vocab.json has {len(vocabulary)} words, the model {model.vocab_size}")
    load_weights(model, weights, folder / "model.safetensors")
    return model.to(device).eval(), vocabulary, about


def load_weights(model: CaptionModel, weights: dict[str, Tensor], path: Path) -> None:
    """Put weights into a model. Raises UserError with the first tensor that does not fit."""
    for name, tensor in model.state_dict().items():
        if name not in weights or weights[name].shape != tensor.shape:
            found = tuple(weights[name].shape) if name in weights else "missing"
            raise UserError(f"{path}: {name} must be {tuple(tensor.shape)}, is {found}; is it of another run?")
    if surplus := sorted(set(weights) - set(model.state_dict())):
        raise UserError(f"{path}: {surplus[0]} has no place in this model; is it of another run?")
    model.load_state_dict(weights)


def read_log(run: Path) -> list[dict[str, float]]:
    """log.csv as a list of dicts of numbers."""
    with open(Path(run) / "log.csv", newline="", encoding="utf-8") as file:
        return [{k: float(v) for k, v in row.items()} for row in csv.DictReader(file)]


def run_config(run: Path) -> dict[str, Any]:
    """config.json of a run. Raises UserError when the folder is not a run."""
    path = Path(run) / "config.json"
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{run}: not a run (no config.json); a run is data/<corpus>/runs/<name>") from error
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error}); train the run again") from error
