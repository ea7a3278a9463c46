"""What a person should know before hours are spent: what a corpus holds, what will fail, how long, what is missing."""

import shutil
from contextlib import closing, suppress
from dataclasses import replace
from itertools import chain, islice, repeat
from pathlib import Path
from time import monotonic
from typing import Any
from urllib.request import Request, urlopen

import numpy as np
import torch

from vcutils.config import Config, UserError
from vcutils.corpora.readers import EXCLUDE, exclude, msvd_split_of
from vcutils.corpus import SPLITS, Corpus, Splits, make_splits
from vcutils.dataset import CaptionData
from vcutils.decode import captions_of, predict
from vcutils.features import feature_folder
from vcutils.runtime.backbones import PACKAGED, load_backbone, no_weights, timm_model, torchvision_weights
from vcutils.runtime.capture import VideoError
from vcutils.runtime.decoding import Worker, unreadable_clips
from vcutils.runtime.files import duration
from vcutils.runtime.machine import cpu_count, describe
from vcutils.runtime.store import FeatureStore
from vcutils.scores.coco import References, why_no_meteor
from vcutils.scores.report import min_mean_max
from vcutils.train import Trainer
from vcutils.video import frame_indices
from vcutils.vocab import build_vocabulary

GUESS = "it may be wrong by half"
SAMPLE = 6  # clips that extraction is measured on
SAMPLE_FRAMES = 8  # of a clip that a processor's network is measured on
TRIAL_STEPS = 4  # of training
TRIAL_CLIPS = 32  # that are captioned and scored
TRIAL_WORDS = 12  # a trained model ends its captions; the trial's goes on until it is cut
METEOR_RATE = 600  # references per second, all five scorings of `evaluate`: rough, since it is not run here


def examine(corpus: Corpus, config: Config, fix: bool = False) -> dict[str, Any]:
    """Counts, split, unreadable clips, estimates of time, disk and memory, and what this machine has.

    Returns a JSON-ready dict; `problems` lists everything that will be passed over, a line each, and what is missing.
    `fix` adds the clips that can be neither decoded nor read as features to data/<corpus>/exclude.txt, which all
    later stages respect; nothing else is written, and nothing is downloaded.
    """
    unreadable = unreadable_clips(corpus.clips, config.extract.workers, config.extract.patience)
    problems = [f"{i}: {reason}" for i, reason in sorted(unreadable.items())] + corpus.problems
    splits: Splits = {}
    origin = "none"
    try:
        splits, origin = make_splits(corpus)
    except UserError as error:
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
        "captions per clip": min_mean_max(counts),
        "split": {"origin": origin, **{name: len(ids) for name, ids in splits.items()}},
        "unreadable clips": sorted(unreadable),
        f"left out by {EXCLUDE}": corpus.excluded,
        **check_msvd(corpus, problems),
        "estimate": None,
    }
    folder, store = feature_folder(corpus, config.artifacts, config.extract), None
    try:
        if folder in corpus.features.values():
            report["weights"] = f"not needed: the corpus brings its own features, {folder.name}"
            store = FeatureStore(folder)
        else:
            state, report["weights"] = find_weights(config.extract.backbone)
            if state == "missing":
                problems.append(report["weights"])
            readable = [path for i, path in corpus.clips.items() if i not in unreadable]
            report["estimate"] = guess = estimate(config, readable, pretrained=state == "here")
            if guess:
                store = _MadeFeatures(usable, guess["frames per clip"], guess["numbers per frame"])
        if splits and store:
            report |= rehearse(corpus, config, splits, store)
    except UserError as error:  # an unknown backbone, captions without words, a batch that does not fit
        problems.append(str(error))
    disk = next(folder for folder in (config.artifacts, *config.artifacts.parents) if folder.exists())
    free = shutil.disk_usage(disk).free
    report["free disk, MB"] = round(free / 1e6)
    if report["estimate"] and report["estimate"]["disk for features, MB"] * 1e6 > free:
        problems.append(f"{config.artifacts}: the disk has no room for the features; make some, or move it with --data")
    report["machine"] = describe()
    report["METEOR"] = why_no_meteor() or "available"
    if fix:
        ready = {path.stem for folder in corpus.features.values() for path in folder.glob("*.npy")}
        report["written"] = exclude(config.artifacts / EXCLUDE, {i: unreadable[i] for i in {*unreadable} - ready})
    return report | {"problems": problems}


def check_msvd(corpus: Corpus, problems: list[str]) -> dict[str, Any]:
    """How much of MSVD this is, and which clips are missing; {} for another corpus. A small part is no problem."""
    usable = corpus.usable
    split_of = msvd_split_of([*usable, *corpus.captions, *corpus.clips, *corpus.excluded])
    present, others = [i for i in usable if split_of[i]], [i for i in usable if not split_of[i]]
    if len(present) <= len(others):
        return {}
    if others and corpus.own_splits is None:
        problems.append(f"MSVD: {len(others)} clip(s) are not its own, such as {others[0]}: no official split")
    counts = " / ".join(f"{sum(split_of[i] == split for i in present):,}" for split in SPLITS)
    report: dict[str, Any] = {"MSVD": f"{len(present):,} of 1,970 clips, {counts} of 1,200 / 100 / 670"}
    if lost := 1970 - len(present):
        report["MSVD, missing"] = sorted({i for i, split in split_of.items() if split} - {*present})
        if lost < len(present):
            problems.append(f"MSVD: {lost} of 1,970 clips are missing: do not compare scores with published ones")
    return report


def find_weights(backbone: str) -> tuple[str, str]:
    """Where pretrained weights are: "here", "on the network" or "missing", and a sentence. Downloads nothing.

    Raises UserError for an unknown backbone.
    """
    if backbone == PACKAGED:
        return "here", f"{backbone}: come inside a package, nothing to download"
    if backbone.startswith("timm/"):
        import huggingface_hub
        import timm

        about: Any = timm.get_pretrained_cfg(timm_model(backbone))
        file = about.hf_hub_id, about.hf_hub_filename or "model.safetensors"
        url, cached = huggingface_hub.hf_hub_url(*file), huggingface_hub.try_to_load_from_cache(*file)
        cache = huggingface_hub.constants.HF_HUB_CACHE
    else:
        url, cache = torchvision_weights(backbone).url, f"{torch.hub.get_dir()}/checkpoints"
        cached = f"{cache}/{Path(url).name}"
    if isinstance(cached, str) and Path(cached).is_file():
        return "here", f"{backbone}: in the cache, {cached} ({Path(cached).stat().st_size / 1e6:,.0f} MB)"
    try:
        with urlopen(Request(url, method="HEAD"), timeout=3.0) as reply:
            megabytes = int(reply.headers["Content-Length"] or 0) / 1e6
        return "on the network", f"{backbone}: to be downloaded, {megabytes:,.0f} MB from {url}"
    except (OSError, ValueError) as error:
        return "missing", no_weights(backbone, error, url, cache)


def estimate(config: Config, clips: list[Path], pretrained: bool = True) -> dict[str, Any] | None:
    """Time and disk of a corpus' extraction, from a few readable clips of every size; None for no clips.

    `pretrained=False` measures the same network without its weights. Raises UserError for one that cannot be had.
    """
    by_size = sorted(clips, key=lambda path: path.stat().st_size)
    chosen = [by_size[i] for i in frame_indices(len(by_size), SAMPLE)]
    backbone = load_backbone(config.extract.backbone, pretrained=pretrained)
    cores = config.extract.workers or cpu_count()
    seconds, counts, dim = [], [], 0
    with closing(Worker(config.extract.num_frames, backbone.resize, config.extract.patience)) as worker:
        for path in (*chosen[:1], *chosen):  # the first one twice: what is only slow at first does not count
            with suppress(VideoError):  # beyond its first frame, extraction will tell
                started = monotonic()
                images = worker(path).images
                decoded = monotonic()
                few = images if backbone.device.type == "cuda" else images[:SAMPLE_FRAMES]  # a GPU wants full batches
                dim = backbone(np.stack(few)).shape[1]
                counts.append(len(images))
                seconds.append((decoded - started) / cores + (monotonic() - decoded) * len(images) / len(few))
    if not seconds:
        return None
    seconds, counts = seconds[1:] or seconds, counts[1:] or counts
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
        self._cache = dict.fromkeys(ids, np.random.default_rng(0).random((frames, dim), dtype=np.float32))


def rehearse(corpus: Corpus, config: Config, splits: Splits, store: FeatureStore) -> dict[str, str]:
    """Memory and time of training and evaluation, from a few steps with the settings' own sizes on this machine.

    Raises UserError for captions without words, missing features, and a batch that does not fit.
    """
    splits = {name: [i for i in ids if i in store.ids] for name, ids in splits.items()}
    if not all(splits.values()):
        raise UserError(f"{store.folder}: a split has no clip with features; extract them")
    captions, train, test = corpus.captions, splits["train"], splits["test"]
    vocabulary = build_vocabulary(captions, train, config.vocab.min_count)
    few = {"train": train, "val": splits["val"][:TRIAL_CLIPS], "test": test[:TRIAL_CLIPS]}
    data = CaptionData(corpus.root, store, captions, few, vocabulary)
    decode = replace(config.decode, max_length=min(TRIAL_WORDS, config.decode.max_length))
    config = replace(config, decode=decode, train=replace(config.train, scst_epochs=0))
    trainer = Trainer(config.artifacts / "runs" / "trial", config, data, References, progress=False)
    memory = f"a batch of {min(trainer.batch_size, len(train))} clips"
    try:
        step = _step_seconds(trainer)
    except RuntimeError as error:  # torch's, of a GPU's memory and of a processor's
        raise UserError(f"training: {memory} does not fit into memory; lower batch_size") from error
    started = monotonic()
    trainer.validate()
    validated = monotonic()
    hypotheses = predict(trainer.model, vocabulary, store, few["test"], decode)
    predicted = monotonic()
    References({i: captions[i] for i in few["test"]}).score(captions_of(hypotheses), ("Bleu", "ROUGE_L", "CIDEr"))
    # Clips are captioned twice, with their own features and with others'; the baselines are scored too.
    evaluation = 2 * (predicted - validated) + 4 * (monotonic() - predicted)
    evaluation *= len(test) / len(few["test"])
    if why_no_meteor() is None:
        evaluation += 10 + sum(len(captions[i]) for i in test) / METEOR_RATE
    epoch = step * len(trainer.loader) + (validated - started) * len(splits["val"]) / len(few["val"])
    epochs, minutes = trainer.settings.epochs, trainer.settings.max_minutes or float("inf")
    in_all = duration(min(60 * minutes, epochs * epoch))
    if torch.cuda.is_available():
        memory += f", {torch.cuda.max_memory_reserved() / 1e9:.1f} GB of the GPU's"
    return {
        "memory": f"{memory}: fits, tried out",
        "training": f"{epochs} epochs of {duration(epoch)}, at most {in_all} in all, from a few steps ({GUESS})",
        "evaluation": f"{duration(evaluation)} for {len(test)} test clips, from {len(few['test'])} of them ({GUESS})",
    }


def _step_seconds(trainer: Trainer) -> float:
    """Seconds of a training step: the median of a few, since the first one is slow."""
    seconds: list[float] = []
    trainer.network.train()
    for batch in islice(chain.from_iterable(repeat(trainer.loader)), TRIAL_STEPS):
        started = monotonic()
        loss, _ = trainer.objective(trainer.network, batch)
        trainer.accelerator.backward(loss)
        trainer.optimizer.step()
        trainer.optimizer.zero_grad()
        float(loss.detach())  # waits for a GPU
        seconds.append(monotonic() - started)
    return float(np.median(seconds))
