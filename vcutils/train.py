"""The training loop, its schedule, and validation with generated captions.

The same function serves one CPU, one GPU, many GPUs and many machines (docs/cluster.md).

Every epoch ends with captions generated for the validation clips (free running, as at test time).
Their CIDEr picks `best/`; the teacher-forced loss never does, and nothing of the test split is
read. An optional second phase rewards the model's own captions (`runtime.rewards`).
"""

import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Any, Literal

import torch
from torch.utils.data import DataLoader, Subset
from tqdm.auto import tqdm

from vcutils.config import Config
from vcutils.dataset import CaptionData, CaptionDataset, collate, make_loader
from vcutils.decode import captions_of, predict
from vcutils.model import CaptionModel
from vcutils.runtime.accelerator import fitting_batch, make_accelerator, remaining
from vcutils.runtime.fast import TrainingModel, mean_loss
from vcutils.runtime.machine import is_quiet
from vcutils.runtime.objective import Objective
from vcutils.runtime.processes import joined, own, part_ways, weighed
from vcutils.runtime.record import Record


def lr_factor(epoch: float, warmup_epochs: float, epochs: int) -> float:
    """Share of the peak rate at a (fractional) epoch: linear warm-up, then cosine to zero."""
    if epoch < warmup_epochs:
        return epoch / warmup_epochs
    progress = (epoch - warmup_epochs) / max(1e-9, epochs - warmup_epochs)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


class Trainer:
    """One run: `fit()` trains it; `history` is its log, one dict per epoch.

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
        self.data, self.has_bar = data, progress
        self.config = config = data.suited(config)  # fills in what the corpus' size decides
        settings: Any = config.train
        self.settings = settings
        self.accelerator = make_accelerator(settings.precision)
        new_model = partial(CaptionModel, config.model, len(data.vocabulary), data.store.dim)
        # Before seeding, since the search for a batch that fits draws random numbers.
        self.batch_size = fitting_batch(self.accelerator, new_model, data, settings)
        torch.manual_seed(settings.seed)
        self.model = new_model()
        names = ("max_length", "seed", "frame_dropout", "shuffle_features")
        shown = {name: getattr(settings, name) for name in names}
        self.dataset = CaptionDataset(data, "train", settings.captions_per_clip, **shown)
        self.validation = CaptionDataset(data, "val", None, **shown)
        self.references = references({i: data.captions[i] for i in self.validation.ids})
        self.objective = Objective(config, data, references, self.accelerator)
        parameters = self.model.parameters()
        adam = torch.optim.Adam(parameters, weight_decay=settings.weight_decay, fused=True)
        self.network, self.optimizer = self.accelerator.prepare(TrainingModel(self.model), adam)
        self.loader = make_loader(self.dataset, self.batch_size, settings.num_workers)
        part_ways(settings.seed)
        # What decides in which order clips come; a resumed run with another starts its epoch over.
        self.record = Record(run, config, data, f"{len(self.dataset)} clips, seed {settings.seed}")
        self.parts = (self.model, self.optimizer, self.accelerator.scaler)  # of a checkpoint
        if self.record.is_resumable() if resume == "auto" else resume:
            self.record.load_last(*self.parts)
        self.progress, self.history = self.record.progress, self.record.progress.rows

    def fit(self) -> list[dict]:
        """Train to the end (or to max_minutes, or until patience runs out) and return the history.

        Raises UserError when another process trains this run.
        """
        record, batches = self.record, len(self.loader)
        done = batches * (self.progress.epoch + self.progress.clips / len(self.dataset))
        bar = tqdm(
            desc=f"train {record.run.name}", total=record.epochs * batches, initial=math.ceil(done),
            unit="batch", leave=False, disable=is_quiet(self.has_bar and record.is_main),
        )  # fmt: skip
        with record.writing(), bar:
            while not record.finished and self._epoch(bar):
                row = self.history[-1]
                bar.set_postfix(loss=f"{row['train_loss']:.2f}", CIDEr=f"{row['val_CIDEr']:.2f}")
            if not self.history:  # time ran out before the first epoch was over
                record.save_model("best", self.model)
            self.accelerator.wait_for_everyone()
        return self.history

    def _epoch(self, bar: tqdm) -> bool:
        """What is left of one pass over the training clips; False when max_minutes ran out."""
        settings, progress, batches = self.settings, self.progress, len(self.loader)
        begun = monotonic() - progress.seconds
        self.dataset.epoch = progress.epoch
        rewarded = progress.epoch >= progress.first_phase  # the second phase
        self.objective.begin_epoch(self.network, self.dataset, rewarded)
        for done, clips, places, batch in remaining(self.loader, progress.clips):
            is_step = done % settings.accumulation == 0 or done == batches
            # Several processes exchange their gradients only where a step follows.
            with nullcontext() if is_step else self.accelerator.no_sync(self.network):
                loss, words = self.objective(self.network, batch, progress.epoch, rewarded, places)
                self.accelerator.backward(weighed(loss, words) / settings.accumulation)
            self.record.add(loss, words)
            bar.update()
            if not is_step:
                continue
            for group in self.optimizer.param_groups:
                group["lr"] = self._lr(progress.epoch + done / batches)
            self.accelerator.clip_grad_norm_(self.network.parameters(), settings.clip_norm)
            self.optimizer.step()
            self.optimizer.zero_grad()
            progress.clips, progress.seconds = clips, monotonic() - begun
            if self.record.end_step(*self.parts):
                return False
        self.record.read_losses()  # so that nothing is under way when the clock is read
        self._end_epoch(monotonic() - begun)
        return True

    def _lr(self, epoch: float) -> float:
        """Learning rate at a (fractional) epoch."""
        settings = self.settings
        if (rewarded := epoch - self.progress.first_phase) > 0:
            return settings.scst_lr * (1 - rewarded / settings.scst_epochs)
        return settings.lr * lr_factor(epoch, settings.warmup_epochs, self.progress.first_phase)

    def _end_epoch(self, seconds: float) -> None:
        """Validate, log, save; the second phase goes on from the best epoch of the first."""
        record, progress = self.record, self.progress
        row = progress.end_epoch(seconds) | {"lr": self._lr(progress.epoch)}
        record.end_epoch(row | self.validate(), self.model)
        if record.end_phase(self.model, self.optimizer) or record.finished:
            record.save_last(*self.parts)

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Teacher-forced loss and the scores of free-running captions on the validation clips."""
        clips, data, settings = self.validation, self.data, self.settings
        # All captions of a clip are shown, but no more at once than in a training batch.
        most = max(len(data.captions[i]) for i in clips.ids)
        size = max(1, self.batch_size * settings.captions_per_clip // most)
        loader = DataLoader(Subset(clips, own(range(len(clips)))), size, collate_fn=collate)
        loss = mean_loss(TrainingModel(self.model).eval(), loader, self.accelerator.device)
        decode = replace(self.config.decode, beam_size=settings.val_beam_size)
        ids, sources = own(clips.ids), own(clips.sources)
        beams = predict(self.model, data.vocabulary, data.store, ids, decode, sources)
        scores = self.references.score(joined(captions_of(beams), clips.ids), ("Bleu", "CIDEr"))
        val_scores = {f"val_{name}": scores[name] or 0.0 for name in ("Bleu_4", "CIDEr")}
        return {"val_loss": loss, **val_scores}
