"""Trained models without pickle: model.safetensors, config.json, vocab.json, tied to each other; a run's settings."""

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from vcutils.runtime.files import read_json, reading, replacing, write_text
from vcutils.runtime.settings import UserError
from vcutils.runtime.store import FeatureStore, in_words


def save_model(folder: Path, model: nn.Module, about: Mapping[str, Any], vocabulary: Any) -> None:
    """model.safetensors, config.json (`about`: model settings, sizes, features), vocab.json: all that captions need."""
    vocabulary.save(folder / "vocab.json")
    write_text(folder / "config.json", json.dumps(about, indent=2))
    # One entry, since safetensors writes several in any order.
    save_tensors(folder / "model.safetensors", model.state_dict(), {"beside": json.dumps(digests(about, vocabulary))})


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    """Write a safetensors file whole or not at all. Raises UserError when it cannot be written."""
    with replacing(path) as temporary:
        try:
            save_file({n: t.contiguous().cpu() for n, t in tensors.items()}, temporary, metadata=metadata)
        except SafetensorError as error:  # its way to say that the disk is full
            raise OSError(str(error)) from error


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file; copies: a process dies of a mapped file that is cut meanwhile."""
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name).clone() for name in file.keys()}, file.metadata() or {}


def digests(about: Mapping[str, Any], vocabulary: Any) -> dict[str, str]:
    """What ties weights to config.json and vocab.json: with others of equal sizes the model would say nonsense."""
    parts = {"config.json": about, "vocab.json": vocabulary.words}
    return {n: hashlib.sha256(json.dumps(part, sort_keys=True).encode()).hexdigest() for n, part in parts.items()}


def load_model(
    folder: Path, build: Callable[[Mapping[str, Any]], nn.Module], load_vocabulary: Callable[[Path], Any]
) -> tuple[Any, Any, dict[str, Any]]:
    """(model on the CPU, vocabulary, config.json as a dict) of a best/ or last/ folder.

    `build` makes the model from config.json. Raises UserError that names what is missing or does not fit.
    """
    path = folder / "model.safetensors"
    for name in ("config.json", path.name, "vocab.json"):
        if not (folder / name).is_file():
            raise UserError(f"{folder}: no {name}; run notebook 03 or `python -m vcutils train CORPUS`")
    about = read_json(folder / "config.json")
    with reading(folder / "config.json", "not of a trained model", "train again"), torch.device("meta"):
        model: Any = build(about)  # without memory: its sizes have yet to prove to be those of the weights
    with reading(path, "not of a trained model", "train again"):
        weights, metadata = load_tensors(path)
        saved_with = json.loads(metadata.get("beside", "{}"))
    vocabulary = load_vocabulary(folder / "vocab.json")
    if len(vocabulary) != about["vocab_size"]:
        raise UserError(f"{folder}: vocab.json has {len(vocabulary)} words, the model {about['vocab_size']}")
    load_weights(model, weights, path)
    for name, digest in digests(about, vocabulary).items():
        if saved_with.get(name, digest) != digest:
            raise UserError(f"{folder / name}: not the one that {path.name} was saved with; is it of another run?")
    return model.eval(), vocabulary, about


def load_weights(model: nn.Module, weights: dict[str, Tensor], path: Path) -> None:
    """Put weights into a model. Raises UserError with a tensor that does not fit."""
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
