"""What is measured on a card. Every function runs on a processor too, with the small sizes, so that none of it rots."""

import gc
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from types import SimpleNamespace
from typing import Any
from unittest import mock

import decoding
import numpy as np
import torch
from extraction import FRAMES, decoded
from full_size import make_features
from torch import Tensor, nn

from vcutils.config import Config, DecodeConfig, ExtractConfig, ModelConfig, TrainConfig
from vcutils.corpus import Corpus
from vcutils.dataset import Batch, CaptionData, CaptionDataset, collate
from vcutils.decode import captions_of, generate, predict
from vcutils.features import extract_corpus
from vcutils.model import CaptionModel, Memory, caption_loss
from vcutils.runtime.accelerator import fitting_batch, make_accelerator
from vcutils.runtime.backbones import PACKAGED, Backbone, load_backbone
from vcutils.runtime.fast import TrainingModel, fast_loss
from vcutils.runtime.store import FeatureStore
from vcutils.scores.coco import References
from vcutils.train import Trainer
from vcutils.video import sample_frames
from vcutils.vocab import PAD, SPECIALS, Vocabulary, build_vocabulary

Row = dict[str, Any]


@dataclass(frozen=True)
class Size:
    """How much is measured."""

    clips: int  # of the training split
    held_out: int
    frames: int
    dim: int
    captions: int  # per clip
    words: int  # V is about this
    width: int  # E, H, A of the model, and of each direction of its encoder
    batches: tuple[int, ...]  # clips per step
    K: int  # captions per clip and step
    epochs: int
    seconds: float  # of each rate
    backbones: tuple[str, ...]
    pixels: int  # frames per pass of a backbone
    decoded: tuple[int, ...]  # clips whose captions are searched at once

    @property
    def model(self) -> ModelConfig:
        """Settings of the captioning model."""
        return ModelConfig(self.width, self.width, self.width, self.width, dropout=0.4)

    def config(self, **training: Any) -> Config:
        """Settings of a run, those of the msvd profile at full size."""
        given = {"epochs": self.epochs, "batch_size": self.batches[0], "captions_per_clip": self.K, "lr": 1e-3}
        given |= {"warmup_epochs": 0.5, "scst_epochs": 0, "val_beam_size": 1, **training}
        return Config(model=self.model, train=TrainConfig(**given))


NETWORKS = (PACKAGED, "resnet50", "resnet152", "timm/vit_base_patch16_224")
MSVD = Size(1200, 100, 40, 2048, 40, 9500, 512, (32, 128, 512, 2048), 10, 2, 3.0, NETWORKS, 256, (64, 512))
TINY = Size(6, 2, 4, 16, 3, 60, 16, (2, 4), 2, 1, 0.01, (PACKAGED,), 4, (3,))


def wait(device: torch.device) -> None:
    """Until the card is idle."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@contextmanager
def peak(device: torch.device) -> Iterator[Row]:
    """{"peak GiB": memory that tensors took at most}, filled in at the end; None on a processor."""
    about: Row = {"peak GiB": None}
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    try:
        yield about
    finally:
        if device.type == "cuda":
            about["peak GiB"] = round(torch.cuda.max_memory_allocated(device) / 2**30, 2)


def calls_per_second(work: Callable[[], Any], device: torch.device, seconds: float) -> float:
    """How often `work` runs in a second, after two calls that warm up."""
    for _ in range(2):
        work()
    wait(device)
    begun, count = perf_counter(), 0
    while not count or perf_counter() - begun < seconds:
        work()
        wait(device)
        count += 1
    return count / (perf_counter() - begun)


def made_captions(clips: int, each: int, words: int) -> dict[str, list[str]]:
    """Captions of 2 to 18 words: half of them a clip's own, the others as frequent as words are (Zipf)."""
    random = np.random.default_rng(0)
    share = 1 / np.arange(1, words + 1)
    common = iter(random.choice(words, clips * each * 18, p=share / share.sum()).tolist())
    captions = {}
    for clip in range(clips):
        own = random.integers(0, words, 12)
        texts = []
        for length in random.normal(7, 3, each).clip(2, 18).astype(int):
            picks = own[random.integers(0, len(own), length)]
            texts.append(" ".join(f"w{next(common) if random.random() < 0.5 else own_word}" for own_word in picks))
        captions[f"c{clip:04}"] = texts
    return captions


def made_data(folder: Path, size: Size) -> CaptionData:
    """A corpus of this size, whose features carry what its captions say (tests/benchmarks/full_size.py)."""
    captions = made_captions(size.clips + 2 * size.held_out, size.captions, size.words)
    features = folder / "corpus" / "features" / "made"
    make_features(captions, features, size.frames, size.dim)
    ids, bounds = sorted(captions), (size.clips, size.clips + size.held_out)
    splits = {"train": ids[: bounds[0]], "val": ids[bounds[0] : bounds[1]], "test": ids[bounds[1] :]}
    store, vocabulary = FeatureStore(features), build_vocabulary(captions, splits["train"], 1)
    return CaptionData(folder / "corpus", store, captions, splits, vocabulary)


def train(folder: Path, data: CaptionData, config: Config, device: torch.device, resume: bool = False) -> Row:
    """The log's last row of a run, its trainer, and its peak memory."""
    with peak(device) as memory:
        trainer = Trainer(folder, config, data, References, resume, progress=False)
        assert trainer.accelerator.device.type == device.type, "training went to another device"
        begun = perf_counter()
        history = trainer.fit()
    return {**history[-1], "fit": perf_counter() - begun, "trainer": trainer, "history": history, **memory}


# Extraction


def network(name: str, device: torch.device) -> Backbone:
    """A backbone; the packaged one has its weights, the others random ones, which cost the same."""
    return load_backbone(name, device, pretrained=name == PACKAGED)


def extraction_rates(device: torch.device, size: Size, corpora: dict[str, Corpus]) -> list[Row]:
    """Frames/s of each network, and how many cores must decode so that it never waits."""
    rows = []
    for name in size.backbones:
        backbone = network(name, device)
        pixels = np.random.default_rng(0).integers(0, 255, (size.pixels, *backbone.resize.crop, 3), np.uint8)
        with peak(device) as memory:
            rate = size.pixels * calls_per_second(lambda b=backbone, p=pixels: b(p), device, size.seconds)  # type: ignore
        rows.append({"what": f"network {name}", "value": rate, "unit": "frames/s", **memory})
        for kind, corpus in corpora.items():
            core = decoded(corpus, backbone, 1, FRAMES)
            note = f"one core decodes {core:,.0f} frames/s"
            what = f"cores for {name}, {FRAMES} frames of {kind}"
            rows.append({"what": what, "value": rate / core, "unit": "cores", "note": note})
    return rows


def whole_extraction(device: torch.device, corpus: Corpus) -> Row:
    """Frames/s of an extraction with its decoding, files and manifest."""
    backbone = network(PACKAGED, device)
    with tempfile.TemporaryDirectory() as out, mock.patch("vcutils.features.load_backbone", lambda _: backbone):
        report = extract_corpus(corpus, Path(out), ExtractConfig(PACKAGED, num_frames=FRAMES), progress=False)
    assert not report.failed
    what = f"whole extraction, {PACKAGED}"
    return {"what": what, "value": report.frames / report.seconds, "unit": "frames/s", "frames": report.frames}


def feature_likeness(device: torch.device, corpus: Corpus) -> Row:
    """Features of a corpus' frames against those of the processor: the least cosine, the mean relative difference."""
    processor, other = network(PACKAGED, torch.device("cpu")), network(PACKAGED, device)
    paths = list(corpus.clips.values())[:6]
    pixels = np.stack([image for path in paths for image in sample_frames(path, 4, processor.resize).images])
    ours, theirs = other(pixels), processor(pixels)
    cosine = nn.functional.cosine_similarity(ours, theirs, dim=1).min()
    return {"cosine": float(cosine), "difference": float((ours - theirs).abs().mean() / theirs.abs().mean())}


# Training


class Unrolled(nn.Module):
    """The decoder over all words of a batch as one module with tensors in and out: what a CUDA graph can hold."""

    def __init__(self, decoder: Any) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, values: Tensor, keys: Tensor, mask: Tensor, inputs: Tensor) -> Tensor:
        """Logits (B, K, L, V)."""
        memory = Memory(values, keys, mask)
        state, steps = self.decoder.start(memory, inputs.shape[1]), []
        for t in range(inputs.shape[2]):
            state, logits, _ = self.decoder.step(inputs[:, :, t], state, memory)
            steps.append(logits)
        return torch.stack(steps, dim=2)


def way_of_training(name: str, model: CaptionModel, batch: Batch) -> Callable[[], Tensor]:
    """A function that gives the loss of a batch: what training does, the plain form, and what else torch offers."""
    device = batch.features.device
    if name == "training":
        network = TrainingModel(model)
        return lambda: fast_loss(network, batch, PAD)
    unrolled: Any = Unrolled(model.decoder)
    if name == "torch.compile":
        on_cpu = device.type == "cpu"  # where compiling would take a minute
        model.decoder.step = torch.compile(model.decoder.step, dynamic=True, disable=on_cpu)  # type: ignore
    elif name == "CUDA graph" and device.type == "cuda":
        memory = [part.detach().requires_grad_() for part in model.encode(batch.features, batch.frame_mask)[:2]]
        examples = (*memory, batch.frame_mask, batch.inputs)
        unrolled = torch.cuda.make_graphed_callables(unrolled, examples, allow_unused_input=True)

    def loss() -> Tensor:
        memory = model.encode(batch.features, batch.frame_mask)
        return caption_loss(unrolled(*memory, batch.inputs), batch.targets)

    return loss


WAYS = ("training", "plain", "torch.compile", "CUDA graph")


def training_steps(device: torch.device, size: Size, data: CaptionData, way: str) -> list[Row]:
    """Words/s of whole steps (loss, gradients, Adam) in bf16 by clips per step; a row says where memory ran out."""
    dataset, rows = CaptionDataset(data, "train", size.K, 24), []
    for clips in size.batches:
        batch = collate([dataset[i % len(dataset)] for i in range(clips)])
        words = int((batch.targets != PAD).sum())
        row: Row = {"what": f"{way}, {clips:,} clips × {size.K} captions", "value": None, "unit": "words/s"}
        with peak(device) as memory:
            try:
                batch = batch._replace(
                    **{
                        n: x.to(device)
                        for n, x in batch._asdict().items()
                        if n in ("features", "frame_mask", "captions")
                    }
                )
                model = CaptionModel(size.model, len(data.vocabulary), size.dim).to(device).train()
                optimizer = torch.optim.Adam(model.parameters(), fused=True)
                # The cache of cast weights would be a stranger to a CUDA graph.
                cast = torch.autocast(device.type, torch.bfloat16, cache_enabled=way != "CUDA graph")
                with cast:
                    loss = way_of_training(way, model, batch)

                def step(cast: Any = cast, loss: Any = loss, optimizer: Any = optimizer) -> None:
                    with cast:
                        value = loss()
                    value.backward()
                    optimizer.step()
                    optimizer.zero_grad()

                row["value"] = words * calls_per_second(step, device, size.seconds)
            except torch.OutOfMemoryError:
                row["note"] = "out of memory"
            finally:
                batch = model = optimizer = loss = step = None  # type: ignore[assignment]
        rows.append(row | memory)
        if row.get("note"):
            break
    return rows


def fitted(device: torch.device, size: Size, data: CaptionData, limit: float) -> tuple[int, int]:
    """Clips per step that find_batch_size asked for and found, on a card with `limit` GiB, or a processor that says so.

    A processor never runs out: there, more than `limit` clips raise what a full card raises.
    """
    asked = 4 * size.batches[-1]
    settings = size.config(batch_size=asked, find_batch_size=True).train
    if device.type == "cuda":
        torch.cuda.empty_cache()
        share = limit * 2**30 / torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, share), device)
        accelerator: Any = make_accelerator("auto")
    else:
        full = type("Device", (str,), {"type": "cuda"})("cpu")  # says cuda, and computes
        accelerator = SimpleNamespace(device=full, autocast=nullcontext)

    def new_model() -> CaptionModel:
        return CaptionModel(size.model, len(data.vocabulary), size.dim)

    forward = TrainingModel.forward

    def limited(self: Any, features: Tensor, *rest: Tensor) -> Any:
        if device.type != "cuda" and len(features) > limit:
            raise torch.OutOfMemoryError("no memory")
        return forward(self, features, *rest)

    try:
        with mock.patch.object(TrainingModel, "forward", limited):
            return asked, fitting_batch(accelerator, new_model, data, settings)
    finally:
        if device.type == "cuda":
            torch.cuda.set_per_process_memory_fraction(1.0, device)


# Captions


def caption_rates(device: torch.device, size: Size) -> list[Row]:
    """Captions/s by beam and clips at once, of an untrained model (tests/benchmarks/decoding.py)."""
    rows, words = [], (*SPECIALS, *(f"w{i}" for i in range(size.words)))
    vocabulary = Vocabulary(words, (0,) * len(words))
    for count in size.decoded:
        model, features, mask = decoding.clips(size.model, len(words), size.frames, size.dim, count)
        model.to(device)
        for beam in (1, 5):
            config = DecodeConfig(beam_size=beam, max_length=decoding.LENGTH)
            with peak(device) as memory:
                rate = count * calls_per_second(
                    lambda m=model, f=features, k=mask, c=config: generate(m, vocabulary, f, k, c),  # type: ignore
                    device,
                    size.seconds,
                )
            what = f"beam {beam}, {count} clips at once"
            rows.append({"what": what, "value": rate, "unit": "captions/s", **memory})
    return rows


def equal_captions(device: torch.device, trainer: Trainer) -> float:
    """Share of validation clips whose caption is the same on the processor, beam 5."""
    data, ids = trainer.data, list(trainer.data.splits["val"])
    config, said = DecodeConfig(), []
    for where in (device, torch.device("cpu")):
        hypotheses = predict(trainer.model.to(where), data.vocabulary, data.store, ids, config)
        said.append(captions_of(hypotheses))
    return sum(said[0][i] == said[1][i] for i in ids) / len(ids)
