"""What a run leaves on disk: checkpoints without pickle, settings, the log.

config.json and log.csv hold everything needed to repeat the run and a row per epoch; best/ and last/ hold
model.safetensors, config.json and vocab.json each; last/resume.safetensors what a resumed run needs besides.
"""

import csv
import dataclasses
import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from vcutils.config import Config, ModelConfig, UserError, from_dict, replacing, to_json, write_text, writing
from vcutils.corpus import read_json
from vcutils.dataset import CaptionData
from vcutils.model import CaptionModel
from vcutils.store import FeatureStore, backbone_of, said
from vcutils.vocab import Vocabulary

STATE = "resume.safetensors"


def start_anew(run: Path) -> None:
    """Remove what an earlier run of this name left, so that nothing of it stands beside the new run's settings."""
    with writing(run):
        (run / "last" / STATE).unlink(missing_ok=True)  # first: when this is cut, nothing goes on from the old run
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
        "features": backbone_of(data.store.folder),
        "extracted": data.store.extracted,
    }
    write_text(folder / "config.json", json.dumps(about, indent=2))
    # One entry, since safetensors writes several in any order.
    _save(folder / "model.safetensors", model.state_dict(), {"beside": json.dumps(_digests(about, data.vocabulary))})


def _save(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    with replacing(path) as temporary:
        try:
            save_file({n: t.contiguous().cpu() for n, t in tensors.items()}, temporary, metadata=metadata)
        except SafetensorError as error:  # its way to say that the disk is full
            raise OSError(str(error)) from error


def save_state(
    folder: Path, model: CaptionModel, optimizer: Any, scaler: Any, progress: dict[str, Any], config: Config
) -> None:
    """resume.safetensors of last/: weights, optimizer, scaler (None without one), random states, and `progress`."""
    tensors = {f"model.{n}": t for n, t in model.state_dict().items()}
    for n, slots in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{n}.{slot}": value for slot, value in slots.items()}
    tensors["rng.cpu"] = torch.get_rng_state()
    if torch.cuda.is_available():
        tensors["rng.cuda"] = torch.cuda.get_rng_state()
    metadata = {"progress": json.dumps(progress), "config": to_json(config)}
    if scaler is not None:
        metadata["scaler"] = json.dumps(scaler.state_dict())
    _save(folder / STATE, tensors, metadata)


def load_state(
    folder: Path, model: CaptionModel, optimizer: Any, scaler: Any, data: CaptionData, config: ModelConfig
) -> dict[str, Any]:
    """Put what save_state wrote back, random states included, and return its `progress`; {} where nothing was saved.

    Raises UserError for a broken file, or one of other model settings, features or words.
    """
    path = folder / STATE
    if not path.is_file():
        return {}
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
        tensors = load_file(path)
        saved = json.loads(metadata["config"])["model"]
        if saved != dataclasses.asdict(config):
            raise UserError(f"{path}: was trained with other model settings ({saved}); use another --run")
        check_resumable(folder, data)
        load_weights(model, {n.removeprefix("model."): t for n, t in tensors.items() if n.startswith("model.")}, path)
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
        return dict(json.loads(metadata["progress"]))
    except UserError:
        raise
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise UserError(f"{path}: not a checkpoint ({error}); delete it to train from the start") from error


def _digests(about: Mapping[str, Any], vocabulary: Vocabulary) -> dict[str, str]:
    """What ties model.safetensors to the two files beside it: with others of equal sizes it would say nonsense."""
    parts = {"config.json": about, "vocab.json": vocabulary.words}
    return {n: hashlib.sha256(json.dumps(part, sort_keys=True).encode()).hexdigest() for n, part in parts.items()}


def load_model(folder: Path, device: torch.device | str = "cpu") -> tuple[CaptionModel, Vocabulary, dict]:
    """(model, vocabulary, config.json as a dict) of a best/ or last/ folder.

    Raises UserError that names what is missing or does not fit.
    """
    path = folder / "config.json"
    try:
        about = read_json(path)
        with torch.device("meta"):  # takes no memory before the sizes have proved to be those of the weights
            model = CaptionModel(from_dict(ModelConfig, about["model"]), about["vocab_size"], about["feature_dim"])
        path = folder / "model.safetensors"
        with safe_open(path, framework="pt") as file:
            weights = {name: file.get_tensor(name) for name in file.keys()}
            beside = json.loads((file.metadata() or {}).get("beside", "{}"))
    except FileNotFoundError as error:
        raise UserError(f"{folder}: no {path.name}; run notebook 03 or `python -m vcutils train CORPUS`") from error
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise UserError(f"{path}: not of a trained model ({error}); train again") from error
    vocabulary = Vocabulary.load(folder / "vocab.json")
    if len(vocabulary) != model.vocab_size:
        raise UserError(f"{folder}: vocab.json has {len(vocabulary)} words, the model {model.vocab_size}")
    load_weights(model, weights, path)
    for name, digest in _digests(about, vocabulary).items():
        if beside.get(name, digest) != digest:
            raise UserError(
                f"{folder / name}: not the one that model.safetensors was saved with; is it of another run?"
            )
    return model.to(device).eval(), vocabulary, about


def load_weights(model: CaptionModel, weights: dict[str, Tensor], path: Path) -> None:
    """Put weights into a model. Raises UserError with the first tensor that does not fit."""

    def kind(tensor: Tensor) -> str:
        return f"{tensor.dtype} {tuple(tensor.shape)}"

    for name, tensor in model.state_dict().items():
        found = kind(weights[name]) if name in weights else "missing"
        if found != kind(tensor):
            raise UserError(f"{path}: {name} must be {kind(tensor)}, is {found}; is it of another run?")
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
            f"{store.folder}: {said(store.extracted)}, but {checkpoint} was trained on {said(trained)}; extract those "
            "again, or train on these"
        )


def check_resumable(checkpoint: Path, data: CaptionData) -> None:
    """Raise UserError when a checkpoint is broken, or was trained on other features or words than those at hand."""
    _, vocabulary, about = load_model(checkpoint)
    check_features(about, data.store, checkpoint)
    if vocabulary.words != data.vocabulary.words:
        raise UserError(f"{checkpoint / 'vocab.json'}: not the vocabulary of {data.root.name} now; use another --run")


def resumable(run: Path, config: Config, data: CaptionData) -> bool:
    """Whether the run `run` was begun with these settings, features and words, so that it can go on, or is done."""
    run = Path(run)
    if not (run / "last" / STATE).is_file():
        return False
    wanted = json.loads(to_json(data.suited(config)))
    try:
        known = run_config(run)
        check_resumable(run / "last", data)
    except UserError:
        return False
    for settings in (known, wanted):
        settings["train"].pop("max_minutes", None)  # how long one may go on changes nothing
    return all(known[part] == wanted[part] for part in ("train", "model"))


def read_log(run: Path) -> list[dict[str, float]]:
    """log.csv as a list of dicts of numbers. Raises UserError when it is missing or broken."""
    path = Path(run) / "log.csv"
    try:
        with open(path, newline="", encoding="utf-8") as file:
            return [{k: float(v) for k, v in row.items()} for row in csv.DictReader(file)]
    except (OSError, ValueError, TypeError, csv.Error) as error:
        raise UserError(f"{path}: not the log of a run ({error}); train it again") from error


def run_config(run: Path) -> dict[str, Any]:
    """config.json of a run. Raises UserError when the folder is not a run."""
    path = Path(run) / "config.json"
    try:
        config = read_json(path)
    except FileNotFoundError as error:
        raise UserError(f"{run}: not a run (no config.json); a run is data/<corpus>/runs/<name>") from error
    match config:
        case {
            "corpus_dir": str(),
            "features": str(),
            "model": dict(),
            "extract": {"num_frames": int()},
            "decode": dict(),
            "train": {"seed": int()},
        }:
            return config
    raise UserError(f"{path}: not the settings of a run; train the run again")
