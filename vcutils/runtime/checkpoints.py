"""Trained models without pickle: model.safetensors, config.json, vocab.json, tied to each other; a run's settings."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from vcutils.runtime.files import read_json, replacing, write_text
from vcutils.runtime.settings import UserError
from vcutils.runtime.store import FeatureStore, in_words

STATE = "resume."  # begins the names of tensors that are a run's state, not its model


def save_model(
    folder: Path,
    model: nn.Module,
    about: Mapping[str, Any],
    vocabulary: Any,
    state: Mapping[str, Tensor] | None = None,
    notes: Mapping[str, Any] | None = None,
) -> None:
    """model.safetensors, config.json (`about`: model settings, sizes, features), vocab.json: all that captions need.

    What resumes a run is in the one file with the weights: tensors `state`, named `STATE…`, and `notes`. Raises
    UserError when they cannot be written.
    """
    vocabulary.save(folder / "vocab.json")
    write_text(folder / "config.json", json.dumps(about, indent=2))
    tensors = {name: tensor.contiguous().cpu() for name, tensor in {**model.state_dict(), **(state or {})}.items()}
    # One entry, since safetensors writes several in any order.
    beside = json.dumps({**digests(about, vocabulary), **(notes or {})}, default=str)
    with replacing(folder / "model.safetensors") as temporary:
        try:
            save_file(tensors, temporary, metadata={"beside": beside})
        except SafetensorError as error:  # its way to say that the disk is full
            raise OSError(str(error)) from error


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors, and what is noted beside them; copies: a process dies of a mapped file that is cut meanwhile."""
    with safe_open(path, framework="pt") as file:
        beside = json.loads((file.metadata() or {}).get("beside", "{}"))
        return {name: file.get_tensor(name).clone() for name in file.keys()}, beside


def digests(about: Mapping[str, Any], vocabulary: Any) -> dict[str, str]:
    """What ties weights to config.json and vocab.json: with others of equal sizes the model would say nonsense."""
    parts = {"config.json": about, "vocab.json": vocabulary.words}
    return {n: hashlib.sha256(json.dumps(part, sort_keys=True).encode()).hexdigest() for n, part in parts.items()}


def load_weights(model: nn.Module, weights: dict[str, Tensor], path: Path) -> None:
    """Put weights, without a run's state, into a model. Raises UserError with a tensor that does not fit."""
    weights = {name: tensor for name, tensor in weights.items() if not name.startswith(STATE)}
    for name, tensor in weights.items():
        if tensor.dtype not in (torch.float32, torch.float16) or not tensor.isfinite().all():
            raise UserError(f"{path}: {name} must be finite float32 numbers; train again with a lower learning rate")
        weights[name] = tensor.float()  # float16 is for the disk alone
    try:
        model.load_state_dict(weights, assign=next(model.parameters()).is_meta)
    except RuntimeError as error:  # a line per tensor
        raise UserError(f"{path}: {str(error).splitlines()[-1].strip()}; is it of another run?") from error


def check_features(about: Mapping[str, Any], store: FeatureStore, checkpoint: Path) -> None:
    """Raise UserError when features are not what a checkpoint was trained on, as far as its config.json says."""
    size, trained = about.get("feature_dim"), about.get("extracted")
    if store.dim != size or (trained is not None and trained != store.extracted):
        raise UserError(
            f"{store.folder}: {in_words(store.extracted)}, {store.dim} numbers per frame, but {checkpoint} was trained "
            f"on {in_words(trained)}, {size} numbers; extract those again, or train on these"
        )


def run_config(run: Path) -> dict[str, Any]:
    """config.json of a run. Raises UserError when the folder is not a run."""
    path = Path(run) / "config.json"
    if not path.is_file():
        raise UserError(f"{run}: not a run (no config.json); a run is data/<corpus>/runs/<name>")
    config = read_json(path)
    match config:
        case {
            "corpus_dir": str(),
            "features": str(),
            "model": dict(),
            "extract": {"num_frames": int()},
            "train": {"seed": int()},
            "decode": dict(),
        }:
            return config
    raise UserError(f"{path}: not the settings of a run; train the run again")
