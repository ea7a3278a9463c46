"""What a person should know before hours are spent: what a corpus holds, what will fail, how long, what is missing."""

import http.client
import platform
import shutil
from contextlib import closing
from dataclasses import replace
from itertools import chain, islice, repeat
from pathlib import Path
from time import monotonic
from typing import Any
from urllib.parse import urlparse
from urllib.request import Request, urlopen

import cv2
import numpy as np
import psutil
import torch
from accelerate.utils import send_to_device
from torch import Tensor

from vcutils.config import Config, UserError
from vcutils.corpora.readers import EXCLUDE, msvd_split_of, read_excluded
from vcutils.corpus import SPLITS, Corpus, Splits, make_splits
from vcutils.dataset import Batch, CaptionData, collate
from vcutils.decode import captions_of, predict
from vcutils.features import feature_folder
from vcutils.runtime.backbones import PACKAGED, load_backbone, timm_model, torchvision_weights
from vcutils.runtime.capture import VideoError
from vcutils.runtime.decoding import Worker, unreadable_clips
from vcutils.runtime.fast import fast_loss
from vcutils.runtime.files import duration, write_text
from vcutils.runtime.machine import cpu_count, pick_device
from vcutils.runtime.store import FeatureStore
from vcutils.scores.coco import References, why_no_meteor
from vcutils.train import Trainer
from vcutils.video import frame_indices
from vcutils.vocab import PAD, build_vocabulary

SAMPLE = 6  # clips that extraction is measured on
SAMPLE_SECONDS = 10.0  # after which no further one is begun
SAMPLE_FRAMES = 8  # of a clip that a processor's network is measured on
TRIAL_STEPS, TRIAL_SECONDS = 5, 8.0  # of training; no further step is begun after so many seconds
TRIAL_CLIPS = 32  # that are captioned and scored
TRIAL_CAPTIONS = 50_000  # at most, that the trial's vocabulary is counted on
TRIAL_WORDS = 12  # a trained model ends its captions, the trial's goes on until it is cut
METEOR_SECONDS, METEOR_RATE = 10.0, 3000  # its start, references per second: rough, since it is not run here
MSVD = {"train": 1200, "val": 100, "test": 670}
GUESS = "it may be wrong by half"


def examine(corpus: Corpus, config: Config, fix: bool = False) -> dict[str, Any]:
    """Counts, split, unreadable clips, a measured estimate of time and disk, and what this machine has.

    Returns a JSON-ready dict; `problems` lists everything that will be passed over, a line each, and what is missing.
    `fix` adds the clips that can be neither decoded nor read as features to data/<corpus>/exclude.txt, which all
    later stages respect; nothing else is written, and nothing is downloaded.
    """
    unreadable = unreadable_clips(corpus.clips, config.extract.workers, config.extract.patience)
    problems = [f"{i}: {reason}" for i, reason in sorted(unreadable.items())] + corpus.problems
    splits: Splits | None = None
    try:
        splits, origin = make_splits(corpus)
        split: dict[str, Any] = {"origin": origin, **{name: len(ids) for name, ids in splits.items()}}
    except UserError as error:
        split = {"origin": "none"}
        problems.append(str(error))
    usable = corpus.usable
    counts = [len(corpus.captions[i]) for i in usable]
    report: dict[str, Any] = {
        "corpus": str(corpus.root),
        "clips": len(corpus.clips),
        "own features": sorted(corpus.features),
        "clips with captions": len(usable),
        "clips without captions": len(set(corpus.clips) - set(corpus.captions)),
        "captions without clips": len(set(corpus.captions) - set(usable)),
        "captions": sum(counts),
        "captions per clip": {
            "min": min(counts),
            "mean": round(sum(counts) / len(counts), 1),
            "max": max(counts),
        },
        "split": split,
        "unreadable clips": sorted(unreadable),
        f"left out by {EXCLUDE}": corpus.excluded,
    }
    report |= check_msvd(corpus, problems)
    report["estimate"] = None
    folder, store = feature_folder(corpus, config.artifacts, config.extract), None
    try:
        if folder in corpus.features.values():
            report["weights"] = f"not needed: the corpus brings its own features, features/{folder.name}"
            store = FeatureStore(folder)
        else:
            state, report["weights"] = find_weights(config.extract.backbone)
            if state == "missing":
                problems.append(report["weights"])
            readable = [path for i, path in corpus.clips.items() if i not in unreadable]
            report["estimate"] = guess = estimate(corpus, config, readable, pretrained=state == "here")
            if guess:
                store = _MadeFeatures(corpus.usable, guess["frames per clip"], guess["numbers per frame"])
        if splits and store:
            report |= rehearse(corpus, config, splits, store)
    except (
        UserError
    ) as error:  # an unknown backbone, broken features, captions without words, a batch that is too large
        problems.append(str(error))
    free = _free(config.artifacts)
    report["free disk, MB"] = round(free / 1e6)
    if report["estimate"] and report["estimate"]["disk for features, MB"] * 1e6 > free:
        problems.append(f"{config.artifacts}: the disk has no room for the features; make some, or move it with --data")
    report["machine"] = _machine()
    report["METEOR"] = why_no_meteor() or "available"
    if fix:
        report["written"] = _exclude(corpus, unreadable, config.artifacts / EXCLUDE)
    return report | {"problems": problems}


def check_msvd(corpus: Corpus, problems: list[str]) -> dict[str, Any]:
    """Whether this is all of MSVD, and which clips are missing or of another origin; {} for any other corpus.

    A small part of MSVD, taken on purpose, is no problem.
    """
    usable = corpus.usable
    split_of = msvd_split_of([*usable, *corpus.clips, *corpus.captions, *corpus.excluded])
    present, total = [i for i in usable if split_of[i]], sum(MSVD.values())
    if 2 * len(present) <= len(usable):
        return {}
    report: dict[str, Any] = {}
    if others := [i for i in usable if not split_of[i]]:
        report["MSVD, clips of another origin"] = others
        if corpus.own_splits is None:
            problems.append(f"MSVD: {len(others)} clip(s) are not its own, such as {others[0]}: no official split")
    if len(present) == total:
        return {"MSVD": "complete, 1,970 clips, 1,200 / 100 / 670"} | report
    counts = " / ".join(f"{sum(split_of[i] == split for i in present):,}" for split in SPLITS)
    missing = sorted(i for i, split in split_of.items() if split and i not in set(present))
    if unnamed := total - len(present) - len(missing):
        missing.append(f"{unnamed} whose ids are nowhere in this corpus")
    if 2 * len(present) > total:
        lost = f"{total - len(present)} of {total:,} clips are missing"
        problems.append(f"MSVD: {lost}: scores cannot be compared with published ones")
    text = f"{len(present):,} of {total:,} clips, {counts} of 1,200 / 100 / 670"
    return {"MSVD": text, "MSVD, missing": missing} | report


def find_weights(backbone: str) -> tuple[str, str]:
    """Where pretrained weights are: "here", "on the network" or "missing", and a sentence. Downloads nothing.

    Raises BackboneError for an unknown backbone.
    """
    if backbone == PACKAGED:
        return "here", f"{backbone}: come inside a package, nothing to download"
    if backbone.startswith("timm/"):
        import huggingface_hub
        import timm

        about: Any = timm.get_pretrained_cfg(timm_model(backbone))
        name, repository = about.hf_hub_filename or "model.safetensors", about.hf_hub_id
        url = huggingface_hub.hf_hub_url(repository, name)
        cache, cached = "the cache of Hugging Face", huggingface_hub.try_to_load_from_cache(repository, name)
    else:
        url = torchvision_weights(backbone).url
        cache = f"{torch.hub.get_dir()}/checkpoints"
        cached = f"{cache}/{Path(urlparse(url).path).name}"
    if isinstance(cached, str) and Path(cached).is_file():
        return "here", f"{backbone}: in the cache, {cached} ({Path(cached).stat().st_size / 1e6:,.0f} MB)"
    if size := _size(url):
        return "on the network", f"{backbone}: to be downloaded, {size / 1e6:,.0f} MB from {urlparse(url).netloc}"
    return "missing", (
        f"{backbone}: its pretrained weights are not on this machine, and {urlparse(url).netloc} does not give them; "
        f"connect it to the network once, copy {url} into {cache}, or take {PACKAGED}, which needs no download"
    )


def _size(url: str) -> int | None:
    """Bytes of a file on the network; None where it cannot be had."""
    try:
        with urlopen(Request(url, method="HEAD"), timeout=3.0) as reply:
            return int(reply.headers.get("Content-Length") or 0)
    except (OSError, ValueError, http.client.HTTPException):
        return None


def estimate(corpus: Corpus, config: Config, clips: list[Path], pretrained: bool = True) -> dict[str, Any] | None:
    """Time and disk that the extraction of a corpus will take, from a few of its readable clips of every size.

    `pretrained=False` measures the same network without its weights. None when there is nothing to extract. Raises
    UserError when the backbone cannot be had.
    """
    if not clips:
        return None
    by_size = sorted(clips, key=lambda path: path.stat().st_size)
    chosen = [by_size[i] for i in frame_indices(len(by_size), SAMPLE)]
    backbone = load_backbone(config.extract.backbone, pretrained=pretrained)
    worker = Worker(config.extract.num_frames, backbone.resize, config.extract.patience)
    cores = config.extract.workers or cpu_count()
    begun, seconds, counts, dim = monotonic(), [], [], 0
    with closing(worker):
        for path in (chosen[0], *chosen):  # the first one twice: what is only slow at first does not count
            started = monotonic()
            try:
                images = worker(path).images
            except VideoError:  # beyond its first frame, extraction will tell
                continue
            decoded = monotonic()
            few = images if backbone.device.type == "cuda" else images[:SAMPLE_FRAMES]  # a GPU wants full batches
            dim = backbone(np.stack(few)).shape[1]
            counts.append(len(images))
            seconds.append((decoded - started) / cores + (monotonic() - decoded) * len(images) / len(few))
            if monotonic() - begun > SAMPLE_SECONDS:
                break
    if len(seconds) > 1:
        del seconds[0], counts[0]
    if not seconds:
        return None
    return {
        "measured on": f"{len(seconds)} of {len(clips)} clips ({GUESS})",
        "backbone": backbone.name,
        "frames per clip": config.extract.num_frames,
        "numbers per frame": dim,
        "minutes of extraction": round(float(np.mean(seconds)) * len(clips) / 60, 1),
        "disk for features, MB": round(2 * dim * float(np.mean(counts)) * len(clips) / 1e6, 1),
    }


class _MadeFeatures(FeatureStore):
    """Stands in for features that are not extracted yet: the same random (T, D) for every clip."""

    def __init__(self, ids: list[str], frames: int, dim: int) -> None:
        self.ids, self.dim, self.folder = set(ids), dim, Path("made features")
        self.features = np.random.default_rng(0).random((frames, dim), dtype=np.float32)

    def __getitem__(self, video_id: str) -> np.ndarray:
        return self.features


def rehearse(corpus: Corpus, config: Config, splits: Splits, store: FeatureStore) -> dict[str, Any]:
    """Memory and time of training and evaluation, from a few steps with the settings' own sizes on this machine.

    Raises UserError for captions without words, missing features, and a batch that does not fit.
    """
    splits = {name: [i for i in ids if i in store.ids] for name, ids in splits.items()}
    if empty := [name for name, ids in splits.items() if not ids]:
        raise UserError(f"{store.folder}: no features for any {empty[0]} clip")
    captions, train = corpus.captions, splits["train"]
    enough = 1 + TRIAL_CAPTIONS * len(train) // sum(len(captions[i]) for i in train)
    vocabulary = build_vocabulary(captions, train[:enough], config.vocab.min_count)
    few = {name: splits[name][:TRIAL_CLIPS] for name in ("val", "test")}
    data = CaptionData(corpus.root, store, captions, {"train": train, **few}, vocabulary)
    decode = replace(config.decode, max_length=min(TRIAL_WORDS, config.decode.max_length))
    config = replace(config, decode=decode, train=replace(config.train, scst_epochs=0))
    trainer = Trainer(config.artifacts / "runs" / "trial", config, data, References, progress=False)
    memory = _memory(trainer)
    try:
        step = _step_seconds(trainer)
    except torch.OutOfMemoryError as error:
        raise UserError(f"training: a batch does not fit into memory; {memory}; lower batch_size") from error
    started = monotonic()
    trainer.validate()
    validation = (monotonic() - started) * len(splits["val"]) / len(few["val"])
    settings, started = trainer.settings, monotonic()
    for _ in range(2):  # with their own features, and with other clips'
        said = captions_of(predict(trainer.model, vocabulary, store, few["test"], decode))
    references = References({i: captions[i] for i in few["test"]})
    for _ in range(4):  # the model and the baselines
        references.score(said, ("Bleu", "ROUGE_L", "CIDEr"))
    test = (monotonic() - started) * len(splits["test"]) / len(few["test"])
    if why_no_meteor() is None:
        test += METEOR_SECONDS + 5 * sum(len(captions[i]) for i in splits["test"]) / METEOR_RATE
    epoch = step * len(trainer.loader) + validation
    limit = 60 * settings.max_minutes if settings.max_minutes else float("inf")
    return {
        "memory": memory,
        "training": {
            "epochs": settings.epochs,
            "time per epoch": duration(epoch),
            "time in all, at most": duration(min(limit, settings.epochs * epoch)),
            "measured on": f"a few batches of {trainer.batch_size} clips ({GUESS})",
        },
        "evaluation": {
            "test clips": len(splits["test"]),
            "time": duration(test),
            "measured on": f"{len(few['test'])} clips, beam {decode.beam_size} ({GUESS})",
        },
    }


def _loss(trainer: Trainer, batch: Batch) -> Tensor:
    with trainer.accelerator.autocast():
        return fast_loss(trainer.network, batch, PAD, trainer.settings.label_smoothing)


def _memory(trainer: Trainer) -> str:
    """What training needs of the memory there is. Raises UserError when a batch does not fit."""
    device, dataset = trainer.accelerator.device, trainer.dataset
    size = min(trainer.batch_size, len(dataset))
    few = min(4, size)
    kept: dict[int, int] = {}  # what the forward pass keeps for the backward pass: bytes by address

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    batch = send_to_device(collate([dataset[position] for position in range(few)]), device)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = _loss(trainer, batch)  # held until the addresses are counted
    weights = {parameter.untyped_storage().data_ptr(): parameter.nbytes for parameter in trainer.model.parameters()}
    # The program, with the features it keeps on a processor; weights, gradients and Adam's two means; the backward pass
    # needs as much again as was kept for it.
    needed = 0.6e9 if device.type == "cuda" else 1.7e9
    needed += 4 * sum(weights.values()) + 2 * sum(b for a, b in kept.items() if a not in weights) * size / few
    del loss
    has = _memory_bytes(device)
    text = f"a batch of {size} clips needs about {needed / 1e9:.1f} of {has / 1e9:.1f} GB"
    if needed > 0.95 * has:
        raise UserError(f"training: a batch does not fit into memory; {text}; lower batch_size or captions_per_clip")
    return f"{text}, computed from {few} clips"


def _memory_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return int(psutil.virtual_memory().total)


def _step_seconds(trainer: Trainer) -> float:
    """Seconds of a training step, the median of a few."""
    trainer.network.train()
    seconds: list[float] = []
    started = monotonic()
    for batch in islice(chain.from_iterable(repeat(trainer.loader)), TRIAL_STEPS):
        loss = _loss(trainer, batch)
        trainer.accelerator.backward(loss)
        trainer.optimizer.step()
        trainer.optimizer.zero_grad()
        float(loss.detach())  # waits for a GPU
        seconds.append(monotonic() - started)
        if sum(seconds) > TRIAL_SECONDS:
            break
        started = monotonic()
    return float(np.median(seconds))


def _free(folder: Path) -> int:
    """Bytes that are free where a folder is, or will be."""
    return shutil.disk_usage(next(parent for parent in (folder, *folder.parents) if parent.exists())).free


def _machine() -> dict[str, str]:
    device = pick_device()
    gpu = device.type
    if gpu == "cuda":
        about = torch.cuda.get_device_properties(device)
        gpu = f"{about.name}, {about.total_memory / 1e9:.0f} GB"
    return {
        "GPU": "none" if gpu == "cpu" else gpu,
        "cores": str(cpu_count()),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "opencv": cv2.__version__,
    }


def _exclude(corpus: Corpus, unreadable: dict[str, str], path: Path) -> str:
    """Add the unreadable clips that bring no features to the list; what stands in it already is kept."""
    known = read_excluded(path)
    ready = {p.stem for folder in corpus.features.values() for p in folder.glob("*.npy")}
    new = {i: " ".join(reason.split()) for i, reason in sorted(unreadable.items()) if i not in ready}
    if not new:
        return f"nothing, no clip needs to be left out beyond the {len(known)} of {path}"
    before = path.read_text(encoding="utf-8-sig").rstrip("\n") + "\n" if known else ""
    write_text(path, before + "".join(f"# {reason}\n{i}\n" for i, reason in new.items()))
    return f"{path}: {len(new)} clip(s) more to leave out; delete a line to take its clip in again"
