"""The training loop, its schedule, and validation with generated captions.

The same function serves one CPU, one GPU, many GPUs and many machines:

    python -m vcutils train data/corpora/sample                             one process
    accelerate launch --num_processes 4 -m vcutils train CORPUS             four GPUs

Every epoch ends with captions generated for the validation clips (free running, as at test time).
Their CIDEr picks `best/`; the teacher-forced loss never does, and nothing of the test split is
read. An optional second phase goes on from `best/` and rewards the model's own captions with their
CIDEr (`runtime.self_critical`).
"""

import dataclasses
import math
from collections.abc import Callable
from contextlib import nullcontext
from functools import cached_property
from pathlib import Path
from time import monotonic
from typing import Any, Literal

import torch
from accelerate.utils import broadcast_object_list, send_to_device
from safetensors.torch import load_file
from torch import Tensor
from tqdm.auto import tqdm

from vcutils.config import Config, UserError
from vcutils.dataset import Batch, CaptionData, CaptionDataset, collate, make_loader
from vcutils.decode import captions_of, predict
from vcutils.model import CaptionModel
from vcutils.runtime.accelerator import largest_batch, make_accelerator, remaining_batches
from vcutils.runtime.checkpoints import load_weights
from vcutils.runtime.fast import TrainingModel, fast_loss, sampled_inputs
from vcutils.runtime.record import Progress, Record
from vcutils.runtime.self_critical import sampled_batch
from vcutils.vocab import END, PAD, START, UNK


def lr_factor(epoch: float, warmup_epochs: float, epochs: int) -> float:
    """Share of the peak rate at a (fractional) epoch: linear warm-up, then cosine to zero."""
    if epoch < warmup_epochs:
        return epoch / warmup_epochs
    progress = (epoch - warmup_epochs) / max(1e-9, epochs - warmup_epochs)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


class Trainer:
    """One run: `fit()` trains it, `history` is its log.

    `references` makes of {id: captions} an object that scores captions against them, such as
    `vcutils.scores.coco.References`. `resume` goes on from the run's last checkpoint; "auto" does
    so where that is of the same settings, and else starts anew.
    """

    def __init__(
        self,
        run: Path,
        config: Config,
        data: CaptionData,
        references: Callable,
        resume: bool | Literal["auto"] = False,
        progress: bool = True,
    ) -> None:
        self.data, self.references, self.show = data, references, progress
        self.config = data.suited(config)
        self.settings: Any = self.config.train  # nothing is left open in it
        settings = self.settings
        if settings.scst_epochs and settings.captions_per_clip < 2:
            raise UserError(
                "scst_epochs: needs captions_per_clip of 2 or more, each other's baseline"
            )
        self.accelerator = make_accelerator(settings.precision)
        self.batch_size = settings.batch_size
        if settings.find_batch_size and self.accelerator.device.type == "cuda":
            self.batch_size = largest_batch(self._try_batch, settings.batch_size)
        torch.manual_seed(settings.seed)  # after the search, which draws random numbers
        self.model = self._new_model()
        self.dataset = self._dataset("train", settings.captions_per_clip)
        loader = make_loader(self.dataset, self.batch_size, settings.num_workers)
        optimizer = torch.optim.Adam(
            self.model.parameters(), settings.lr, weight_decay=settings.weight_decay, fused=True
        )
        self.network, self.optimizer, self.loader = self.accelerator.prepare(
            TrainingModel(self.model), optimizer, loader
        )
        processes = self.accelerator.num_processes
        order = f"{len(self.dataset)} clips by {self.batch_size} x {processes}"
        main = self.accelerator.is_main_process
        self.record = Record(run, self.config, data, f"{order}, seed {settings.seed}", main)
        if self.record.is_resumable() if resume == "auto" else resume:
            self.record.load_last(self.model, self.optimizer, self.accelerator.scaler)

    def _new_model(self) -> CaptionModel:
        return CaptionModel(self.config.model, len(self.data.vocabulary), self.data.store.dim)

    def _dataset(self, split: str, captions_per_clip: int | None) -> CaptionDataset:
        settings = self.settings
        return CaptionDataset(
            self.data, split, captions_per_clip, settings.max_length, settings.seed,
            settings.frame_dropout, settings.shuffle_features,
        )  # fmt: skip

    def _try_batch(self, size: int) -> None:
        """Forward and backward of the most expensive batch of `size` clips."""
        ids, store = self.data.splits["train"][:256], self.data.store
        longest = max((store[i] for i in ids), key=len)
        words = [START, *[UNK] * self.settings.max_length, END]
        item = ("longest", longest, [words] * self.settings.captions_per_clip)
        device = self.accelerator.device
        network = TrainingModel(self._new_model()).to(device)
        with self.accelerator.autocast():
            loss = fast_loss(network, send_to_device(collate([item] * size), device), PAD)
        loss.backward()

    @property
    def progress(self) -> Progress:
        """Where the run stands."""
        return self.record.progress

    @property
    def history(self) -> list[dict]:
        """One dict per epoch, as in log.csv."""
        return self.progress.rows

    def best_row(self) -> dict | None:
        """The history's row of the epoch that best/ holds; None before the first."""
        best = self.progress.best_epoch
        return next((row for row in self.history if row["epoch"] == best), None)

    def fit(self) -> list[dict]:
        """Train to the end (or to max_minutes, or until patience runs out) and return the history.

        Raises UserError when another process trains this run.
        """
        with self.record.writing(), tqdm(
            total=self.record.epochs * len(self.loader),
            initial=self.progress.epoch * len(self.loader) + self.progress.batch,
            desc=f"train {self.record.run.name}", unit="batch", leave=False,
            disable=not (self.show and self.accelerator.is_main_process),
        ) as bar:  # fmt: skip
            while not self.record.finished and self._epoch(bar):
                row = self.history[-1] if self.history else {}
                bar.set_postfix({name: f"{row[name]:.2f}" for name in ("train_loss", "val_CIDEr")})
            if self.accelerator.is_main_process and not self.progress.best_epoch:
                self.record.save_model("best", self.model)
            self.accelerator.wait_for_everyone()
        return self.history

    def _epoch(self, bar: tqdm) -> bool:
        """What is left of one pass over the training clips; False when max_minutes ran out."""
        settings, progress, batches = self.settings, self.progress, len(self.loader)
        begun, epoch = monotonic() - progress.seconds, progress.epoch
        self.dataset.epoch = epoch
        self.network.train()
        for number, batch in remaining_batches(self.loader, progress.batch):
            lr = self._lr(epoch + (number + 1) / batches)
            for group in self.optimizer.param_groups:
                group["lr"] = lr
            stepping = (number + 1) % settings.accumulation == 0 or number + 1 == batches
            with nullcontext() if stepping else self.accelerator.no_sync(self.network):
                batch, loss = self._loss(batch)
                self.accelerator.backward(loss / settings.accumulation)
            count = int((batch.targets != PAD).sum())
            progress.loss += float(loss.detach()) * count
            progress.words += count
            bar.update()
            if not stepping:
                continue
            self.accelerator.clip_grad_norm_(self.network.parameters(), settings.clip_norm)
            self.optimizer.step()
            self.optimizer.zero_grad()
            progress.step += 1
            progress.batch, progress.seconds = number + 1, monotonic() - begun
            late = self._is_late()
            if late or progress.step % settings.checkpoint_every == 0:
                self._save_last()
            if late:
                return False
        seconds = monotonic() - begun
        row = {"epoch": epoch + 1, "lr": self._lr(epoch + 1), "seconds": round(seconds, 2)}
        row |= {"train_loss": progress.loss / progress.words}
        self._end_epoch(row | {"words_per_second": round(progress.words / seconds)})
        return True

    def _loss(self, batch: Batch) -> tuple[Batch, Tensor]:
        """The batch that is learned from, and its loss: teacher forcing, or rewarded samples."""
        settings, epoch, inputs = self.settings, self.progress.epoch, None
        if epoch >= self.progress.first_phase:
            limit = settings.max_length
            batch = sampled_batch(self.model, batch, self.data.vocabulary, self.rewards, limit)
        elif share := settings.scheduled_sampling * epoch / max(1, settings.epochs - 1):
            with (
                self.accelerator.autocast()
            ):  # its own, as its cache holds weights without gradient
                inputs = sampled_inputs(self.network, batch, PAD, START, share)
        with self.accelerator.autocast():
            return batch, fast_loss(self.network, batch, PAD, settings.label_smoothing, inputs)

    def _lr(self, epoch: float) -> float:
        """Learning rate at a (fractional) epoch."""
        settings = self.settings
        if epoch > self.progress.first_phase:
            return settings.scst_lr
        return settings.lr * lr_factor(epoch, settings.warmup_epochs, settings.epochs)

    def _is_late(self) -> bool:
        """Whether time is up, by the main process' clock: all must stop at the same step."""
        limited = self.settings.max_minutes is not None
        return limited and bool(broadcast_object_list([self.record.is_late])[0])

    def _end_epoch(self, row: dict) -> None:
        """Validate, log, save; begin the second phase when the first is over."""
        record, progress = self.record, self.progress
        progress.epoch += 1
        progress.begin_epoch()
        if self.accelerator.is_main_process:
            record.end_epoch(row | self.validate(), self.model)
        progress.rows, progress.improved = broadcast_object_list([progress.rows, progress.improved])
        if not record.is_last_phase and record.out_of_patience:
            progress.first_phase = progress.epoch
        if self.settings.scst_epochs and progress.epoch == progress.first_phase:
            progress.improved = progress.epoch
            self.accelerator.wait_for_everyone()
            best = record.run / "best" / "model.safetensors"
            load_weights(self.model, load_file(best), best)
        if progress.epoch == progress.first_phase or record.finished:
            self._save_last()

    def _save_last(self) -> None:
        self.record.save_last(self.model, self.optimizer, self.accelerator.scaler)

    @cached_property
    def rewards(self) -> Any:
        """Scores of captions against the training captions, for the second phase."""
        return self.references({i: self.data.captions[i] for i in self.dataset.ids})

    @cached_property
    def _validation(self) -> tuple[CaptionDataset, Any]:
        dataset = self._dataset("val", None)
        return dataset, self.references({i: self.data.captions[i] for i in dataset.ids})

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Teacher-forced loss and the scores of free-running captions on the validation clips."""
        (dataset, references), data = self._validation, self.data
        network, total, words = TrainingModel(self.model).eval(), 0.0, 0
        most = max(len(data.captions[i]) for i in dataset.ids)
        size = max(1, self.batch_size * self.settings.captions_per_clip // most)  # as in training
        for start in range(0, len(dataset), size):
            items = [dataset[i] for i in range(start, min(start + size, len(dataset)))]
            batch = send_to_device(collate(items), self.accelerator.device)
            count = int((batch.targets != PAD).sum())
            total, words = total + float(fast_loss(network, batch, PAD)) * count, words + count
        beam = self.settings.val_beam_size
        decode = dataclasses.replace(self.config.decode, beam_size=beam)
        hypotheses = predict(
            self.model, data.vocabulary, data.store, dataset.ids, decode, dataset.sources
        )
        scores = references.score(captions_of(hypotheses), ("Bleu", "CIDEr"))
        losses = {"val_loss": total / words}
        return losses | {f"val_{name}": scores[name] or 0.0 for name in ("Bleu_4", "CIDEr")}


def train(
    run: Path, config: Config, data: CaptionData, references: Callable, **options: Any
) -> list[dict]:
    """Train a run into the folder `run` and return its history, one dict per epoch (see log.csv)."""
    return Trainer(run, config, data, references, **options).fit()
