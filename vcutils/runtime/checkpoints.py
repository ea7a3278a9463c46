"""Checkpoints without pickle: best/ and last/ hold model.safetensors, config.json and vocab.json, tied to each other.

last/resume.safetensors holds what a resumed run needs besides: optimizer, random states, progress.
"""

import csv
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from vcutils.runtime.files import read_json, reading, replacing, write_text
from vcutils.runtime.settings import UserError
from vcutils.runtime.store import FeatureStore, in_words

STATE = "resume.safetensors"
TRAIN = "run notebook 03 or `python -m vcutils train CORPUS`"
ANEW = "delete it to train from the start"


def save_model(folder: Path, model: nn.Module, about: Mapping[str, Any], vocabulary: Any) -> None:
    """model.safetensors, config.json (`about`: model settings, sizes, features), vocab.json: all that captions need."""
    vocabulary.save(folder / "vocab.json")
    write_text(folder / "config.json", json.dumps(about, indent=2))
    # One entry, since safetensors writes several in any order.
    _save(folder / "model.safetensors", model.state_dict(), {"beside": json.dumps(_digests(about, vocabulary))})


def _save(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    with replacing(path) as temporary:
        try:
            save_file({n: t.contiguous().cpu() for n, t in tensors.items()}, temporary, metadata=metadata)
        except SafetensorError as error:  # its way to say that the disk is full
            raise OSError(str(error)) from error


def _digests(about: Mapping[str, Any], vocabulary: Any) -> dict[str, str]:
    """What ties model.safetensors to the two files beside it: with others of equal sizes it would say nonsense."""
    parts = {"config.json": about, "vocab.json": vocabulary.words}
    return {n: hashlib.sha256(json.dumps(part, sort_keys=True).encode()).hexdigest() for n, part in parts.items()}


def load_model(
    folder: Path, build: Callable[[Mapping[str, Any]], nn.Module], load_vocabulary: Callable[[Path], Any]
) -> tuple[Any, Any, dict[str, Any]]:
    """(model on the CPU, vocabulary, config.json as a dict) of a best/ or last/ folder.

    `build` makes the model from config.json. Raises UserError that names what is missing or does not fit.
    """
    _check_files(folder, ("config.json", "model.safetensors", "vocab.json"), TRAIN)
    about = read_json(folder / "config.json")
    with reading(folder / "config.json", "not of a trained model", "train again"), torch.device("meta"):
        model: Any = build(about)  # without memory: its sizes have yet to prove to be those of the weights
    path = folder / "model.safetensors"
    with reading(path, "not of a trained model", "train again"):
        weights, metadata = _load(path)
        digests = json.loads(metadata.get("beside", "{}"))
    vocabulary = load_vocabulary(folder / "vocab.json")
    if len(vocabulary) != about["vocab_size"]:
        raise UserError(f"{folder}: vocab.json has {len(vocabulary)} words, the model {about['vocab_size']}")
    load_weights(model, weights, path)
    for name, digest in _digests(about, vocabulary).items():
        if digests.get(name, digest) != digest:
            raise UserError(
                f"{folder / name}: not the one that model.safetensors was saved with; is it of another run?"
            )
    return model.eval(), vocabulary, about


def _check_files(folder: Path, names: Iterable[str], advice: str) -> None:
    for name in names:
        if not (folder / name).is_file():
            raise UserError(f"{folder}: no {name}; {advice}")


def _load(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file."""
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}


def load_weights(model: nn.Module, weights: dict[str, Tensor], path: Path) -> None:
    """Put weights into a model. Raises UserError with the first tensor that does not fit."""

    def kind(tensor: Tensor) -> str:
        return f"{tensor.dtype} {tuple(tensor.shape)}"

    for name, tensor in model.state_dict().items():
        given = kind(weights[name]) if name in weights else "missing"
        if given != kind(tensor):
            raise UserError(f"{path}: {name} must be {kind(tensor)}, is {given}; is it of another run?")
        if not weights[name].isfinite().all():
            raise UserError(f"{path}: {name} holds NaN or infinite values; train again with a lower learning rate")
    if surplus := sorted(set(weights) - set(model.state_dict())):
        raise UserError(f"{path}: {surplus[0]} has no place in this model; is it of another run?")
    if next(model.parameters()).is_meta:
        model.to_empty(device="cpu")
    model.load_state_dict(weights)


def check_features(about: Mapping[str, Any], store: FeatureStore, checkpoint: Path) -> None:
    """Raise UserError, with both sides named, when features are not of the kind that a checkpoint was trained on.

    `about` is the checkpoint's config.json; one that does not say more than the size D is held to that alone.
    """
    if store.dim != about["feature_dim"]:
        raise UserError(
            f"{store.folder}: {store.dim} numbers per frame, {checkpoint} wants {about['feature_dim']} "
            f"(trained on {about.get('features')}); extract those again"
        )
    trained = about.get("extracted")
    if trained is not None and trained != store.extracted:
        raise UserError(
            f"{store.folder}: {in_words(store.extracted)}, but {checkpoint} was trained on {in_words(trained)}; "
            "extract those again, or train on these"
        )


def save_state(
    folder: Path, model: nn.Module, optimizer: Any, scaler: Any, progress: dict[str, Any], settings: str
) -> None:
    """resume.safetensors of last/: weights, optimizer, scaler (None without one), random states, and `progress`."""
    tensors = {f"model.{n}": t for n, t in model.state_dict().items()}
    for n, slots in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{n}.{slot}": value for slot, value in slots.items()}
    tensors["rng.cpu"] = torch.get_rng_state()
    if torch.cuda.is_available():
        tensors["rng.cuda"] = torch.cuda.get_rng_state()
    metadata = {"progress": json.dumps(progress), "config": settings}
    if scaler is not None:
        metadata["scaler"] = json.dumps(scaler.state_dict())
    _save(folder / STATE, tensors, metadata)


def load_state(
    folder: Path, model: nn.Module, optimizer: Any, scaler: Any, store: FeatureStore, words: tuple, settings: dict
) -> dict[str, Any]:
    """Put what save_state wrote back, random states included, and return its `progress`; {} where nothing was saved.

    Raises UserError for a broken file, or one of other model settings (`settings`), features or words.
    """
    path = folder / STATE
    if not path.is_file():
        return {}
    check_resumable(folder, store, words)
    with reading(path, "not a checkpoint", ANEW):
        tensors, metadata = _load(path)
        saved = json.loads(metadata["config"])["model"]
        progress = dict(json.loads(metadata["progress"]))
    if saved != settings:
        raise UserError(f"{path}: was trained with other model settings ({saved}); use another --run")
    load_weights(model, {n.removeprefix("model."): t for n, t in tensors.items() if n.startswith("model.")}, path)
    with reading(path, "not a checkpoint", ANEW):
        state: dict[int, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            if name.startswith("optimizer."):
                _, number, slot = name.split(".")
                state.setdefault(int(number), {})[slot] = tensor
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
        torch.set_rng_state(tensors["rng.cpu"])
        if torch.cuda.is_available() and "rng.cuda" in tensors:
            torch.cuda.set_rng_state(tensors["rng.cuda"])
        if scaler is not None and "scaler" in metadata:
            scaler.load_state_dict(json.loads(metadata["scaler"]))
    return progress


def check_resumable(checkpoint: Path, store: FeatureStore, words: tuple[str, ...]) -> None:
    """Raise UserError when a checkpoint is broken, or was trained on other features or words than those at hand."""
    names = ("config.json", "vocab.json")
    _check_files(checkpoint, names, ANEW)
    about, vocabulary = (read_json(checkpoint / name) for name in names)
    if not isinstance(about, dict) or "feature_dim" not in about or not isinstance(vocabulary, dict):
        raise UserError(f"{checkpoint}: not a checkpoint; {ANEW}")
    check_features(about, store, checkpoint)
    if vocabulary.get("words") != list(words):
        raise UserError(f"{checkpoint / 'vocab.json'}: not the vocabulary at hand; use another --run")


def read_log(run: Path) -> list[dict[str, float]]:
    """log.csv as a list of dicts of numbers. Raises UserError when it is missing or broken."""
    path = Path(run) / "log.csv"
    with reading(path, "not the log of a run", "train it again"), open(path, newline="", encoding="utf-8") as file:
        return [{k: float(v) for k, v in row.items()} for row in csv.DictReader(file)]


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
