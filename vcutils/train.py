"""The training loop, its schedule and its checkpoints, through Hugging Face accelerate.

The same function serves one CPU, one GPU, many GPUs and many machines:

    python -m vcutils train data/corpora/sample                                     one process
    accelerate launch --num_processes 4 -m vcutils train CORPUS --run big           four GPUs
    accelerate launch --num_machines 2 --machine_rank 0 --main_process_ip HOST … -m vcutils train CORPUS

Every epoch ends with captions generated for the validation clips (free running, as at test time). Their CIDEr picks
`best/`; the teacher-forced loss never does, and nothing of the test split is read. An optional second phase goes on
from `best/` and rewards the model's own captions with their CIDEr (`reinforce`).
"""

import contextlib
import csv
import dataclasses
import gc
import io
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from time import monotonic
from typing import Any, Literal

import torch
from accelerate import Accelerator, PartialState, skip_first_batches
from accelerate.state import AcceleratorState
from accelerate.utils import broadcast_object_list
from safetensors.torch import load_file
from torch import Tensor
from tqdm.auto import tqdm

from vcutils import metrics
from vcutils.checkpoint import load_state, load_weights, resumable, save_model, save_state, start_anew
from vcutils.config import Config, UserError, duration, holding, note, to_json, write_text
from vcutils.dataset import Batch, CaptionData, CaptionDataset, clip_batches, collate, make_loader
from vcutils.decode import caption_clips
from vcutils.model import CaptionModel, caption_loss
from vcutils.reinforce import sampled_batch
from vcutils.vocab import PAD, START

VALIDATION_METRICS = ("Bleu", "CIDEr")
LOG_FIELDS = ("epoch", "lr", "train_loss", "val_loss", "val_Bleu_4", "val_CIDEr", "seconds", "words_per_second")


def lr_factor(epoch: float, warmup_epochs: float, epochs: int) -> float:
    """Share of the peak learning rate at a (fractional) epoch: linear warm-up, then cosine to zero."""
    if epoch < warmup_epochs:
        return epoch / warmup_epochs
    progress = (epoch - warmup_epochs) / max(1e-9, epochs - warmup_epochs)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def find_batch_size(try_batch: Callable[[int], Any], upper: int) -> int:
    """The largest batch size up to `upper` for which `try_batch(size)` does not run out of GPU memory.

    Doubles until it fails, then halves the gap. Raises UserError when not even one clip fits.
    """

    def fits(size: int) -> bool:
        try:
            try_batch(size)
            return True
        except torch.OutOfMemoryError:
            return False
        finally:
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()

    good, size, bad = 0, 1, upper + 1
    while size < bad:
        if fits(size):
            good, size = size, min(2 * size, upper) if size < upper else bad
        else:
            bad = size
    while bad - good > 1:
        middle = (good + bad) // 2
        good, bad = (middle, bad) if fits(middle) else (good, middle)
    if good == 0:
        raise UserError("not even one clip fits into the GPU's memory: lower captions_per_clip or the model's sizes")
    return good


def precision_for(setting: str, device: torch.device) -> str:
    """Accelerate's mixed_precision value: `auto` is bf16 (or fp16 on older GPUs) on CUDA and fp32 elsewhere."""
    if setting != "auto":
        return setting
    if device.type != "cuda":
        return "no"
    return "bf16" if torch.cuda.is_bf16_supported() else "fp16"


def sampled_inputs(model: torch.nn.Module, batch: Batch, share: float) -> Tensor:
    """Input words (B, K, L) of which `share` are the model's own guesses (scheduled sampling).

    Bengio et al. 2015, in the two-pass form of Mihaylova & Martins 2019: guesses come from one teacher-forced pass.
    """
    real = batch.targets != PAD
    with torch.no_grad():
        logits, _ = model(batch.features, batch.frame_mask, batch.inputs.masked_fill(~real, PAD))
        logits[:, [PAD, START]] = float("-inf")  # no one reads them back
    guesses = torch.zeros_like(batch.targets)
    guesses[real] = logits.argmax(dim=-1)
    inputs = batch.inputs.clone()
    own = torch.rand((*inputs.shape[:2], inputs.shape[2] - 1), device=inputs.device) < share
    inputs[:, :, 1:] = torch.where(own & real[:, :, 1:], guesses[:, :, :-1], inputs[:, :, 1:])
    return inputs


@dataclass
class _Progress:
    """Where a run stands; written with every checkpoint."""

    epoch: int = 0  # epochs that are complete
    step: int = 0  # optimizer steps taken
    batch: int = 0  # batches of the next epoch that are done, with the sum of their losses, words and seconds
    loss: float = 0.0
    words: int = 0
    seconds: float = 0.0
    order: str = ""  # what decides on the batches; an epoch that was cut starts over with other ones
    best: float = -1.0
    best_epoch: int = 0
    improved: int = 0  # the last epoch that was strictly better: what patience counts from
    rows: list[dict] = dataclasses.field(default_factory=list)

    def begin_epoch(self) -> None:
        self.batch, self.loss, self.words, self.seconds = 0, 0.0, 0, 0.0


class Trainer:
    """One run: `fit()` trains it, `history` is its log.

    `resume` goes on from the run's last checkpoint; "auto" does so where one of the same settings is, and else starts
    anew.
    """

    def __init__(
        self,
        run: Path,
        config: Config,
        data: CaptionData,
        resume: bool | Literal["auto"] = False,
        progress: bool = True,
    ) -> None:
        self.run, self.data, self.show = Path(run), data, progress
        self.config = config = data.suited(config)
        settings = config.train
        torch.manual_seed(settings.seed)
        precision = precision_for(settings.precision, PartialState().device)
        if AcceleratorState._shared_state.get("_mixed_precision", precision) != precision:
            AcceleratorState._reset_state()  # an earlier run of this process used another precision
        self.accelerator = Accelerator(
            mixed_precision=precision,
            gradient_accumulation_steps=settings.accumulation,
        )
        self.model = CaptionModel(config.model, len(data.vocabulary), data.store.dim)
        batch_size = settings.batch_size
        if settings.find_batch_size and self.accelerator.device.type == "cuda":
            batch_size = find_batch_size(self._try_batch, batch_size)
            self.model = CaptionModel(config.model, len(data.vocabulary), data.store.dim)
        self.dataset = self._dataset("train", settings.captions_per_clip)
        loader = make_loader(self.dataset, batch_size, shuffle=True, num_workers=settings.num_workers)
        optimizer = torch.optim.Adam(
            self.model.parameters(), lr=settings.lr, weight_decay=settings.weight_decay, fused=True
        )
        self.wrapped, self.optimizer, self.loader = self.accelerator.prepare(self.model, optimizer, loader)
        self.validation = self._dataset("val", None)
        self.references = metrics.References({i: data.captions[i] for i in self.validation.ids})
        order = f"{len(self.dataset)} clips by {batch_size} x {self.accelerator.num_processes}, seed {settings.seed}"
        self.progress = _Progress(order=order)
        if resumable(self.run, config, data) if resume == "auto" else resume:
            self._load_last()

    def _dataset(self, split: str, captions_per_clip: int | None) -> CaptionDataset:
        settings, data = self.config.train, self.data
        return CaptionDataset(
            data.store,
            data.captions,
            data.splits[split],
            data.vocabulary,
            captions_per_clip,
            settings.max_length,
            settings.seed,
            settings.shuffle_features,
            settings.frame_dropout,
        )

    def _try_batch(self, size: int) -> None:
        """Forward and backward of the most expensive batch of `size` clips."""
        settings, store = self.config.train, self.data.store
        model = CaptionModel(self.config.model, len(self.data.vocabulary), store.dim).to(self.accelerator.device)
        longest = max((store[i] for i in self.data.splits["train"][:256]), key=len)
        words = [[1] + [4] * settings.max_length + [2]] * settings.captions_per_clip
        batch = collate([("longest", longest, words)] * size).to(self.accelerator.device)
        with self.accelerator.autocast():
            loss = caption_loss(model, batch)
        loss.backward()

    @cached_property
    def rewards(self) -> metrics.References:
        """The training captions as references of the self-critical phase."""
        return metrics.References({i: self.data.captions[i] for i in self.dataset.ids})

    @property
    def epochs(self) -> int:
        """Epochs of both phases."""
        return self.config.train.epochs + self.config.train.scst_epochs

    @property
    def history(self) -> list[dict]:
        """One dict per epoch, as in log.csv."""
        return self.progress.rows

    def best_row(self) -> dict | None:
        """The history's row of the epoch that best/ holds; None before the first."""
        return next((row for row in self.history if row["epoch"] == self.progress.best_epoch), None)

    @property
    def finished(self) -> bool:
        """Whether every epoch is done, or patience has run out."""
        progress, patience = self.progress, self.config.train.patience
        return progress.epoch >= self.epochs or 0 < patience <= progress.epoch - progress.improved

    def fit(self) -> list[dict]:
        """Train to the end (or to max_minutes, or until patience runs out) and return the history.

        A run that goes on from no checkpoint replaces an earlier one of its name. Raises UserError when another
        process trains this run.
        """
        main = self.accelerator.is_main_process
        with holding(self.run, "train") if main else contextlib.nullcontext():
            if main and not self.progress.step:
                start_anew(self.run)
            self._fit()
            self.accelerator.wait_for_everyone()
        return self.history

    def _fit(self) -> None:
        started, progress = monotonic(), self.progress
        first = progress.epoch
        if self.accelerator.is_main_process:
            where = {"corpus_dir": str(self.data.root), "features": str(self.data.store.folder)}
            write_text(self.run / "config.json", json.dumps(where | json.loads(to_json(self.config)), indent=2))
            self._note(
                f"from epoch {progress.epoch}, step {progress.step}; {len(self.dataset)} clips, {self.epochs} epochs"
            )
        with tqdm(
            total=self.epochs * len(self.loader),
            initial=progress.epoch * len(self.loader) + progress.batch,
            desc=f"train {self.run.name}",
            unit="batch",
            disable=not (self.show and self.accelerator.is_main_process),
            leave=False,
        ) as bar:
            while not self.finished:
                row = self._epoch(bar, started)
                if row is None:  # out of time within an epoch
                    self._note(f"out of time within epoch {progress.epoch + 1}, step {progress.step}")
                    break
                self._end_epoch(row)
                spent = (monotonic() - started) / (progress.epoch - first)
                scores = f"loss {row['train_loss']:.3f}, validation CIDEr {row['val_CIDEr']:.3f}"
                self._note(
                    f"epoch {progress.epoch} of {self.epochs}: {scores}, {row['words_per_second']} words/s, "
                    f"{duration(spent * (self.epochs - progress.epoch))} left at most"
                )
                bar.set_postfix(loss=f"{row['train_loss']:.2f}", CIDEr=f"{row['val_CIDEr']:.2f}")
        if self.accelerator.is_main_process and not (self.run / "best" / "model.safetensors").exists():
            self._save_model("best")

    def _note(self, text: str) -> None:
        if self.accelerator.is_main_process:
            note(self.run.parent.parent, f"train {self.run.name}: {text}")

    def _epoch(self, bar: tqdm, started: float) -> dict | None:
        """What is left of one pass over the training clips; None when max_minutes ran out on the way."""
        settings, progress = self.config.train, self.progress
        epoch, begun = progress.epoch, monotonic() - progress.seconds
        self.dataset.epoch = epoch
        critical = epoch >= settings.epochs
        share = 0.0 if critical else settings.scheduled_sampling * epoch / max(1, settings.epochs - 1)
        self.wrapped.train()
        for number, batch in self._batches():
            with self.accelerator.accumulate(self.wrapped):
                lr = self._lr(epoch + (number + 1) / len(self.loader))
                for group in self.optimizer.param_groups:
                    group["lr"] = lr
                if critical:
                    batch = sampled_batch(self.model, batch, self.data.vocabulary, self.rewards, settings.max_length)
                with self.accelerator.autocast():
                    inputs = sampled_inputs(self.wrapped, batch, share) if share else None
                    loss = caption_loss(self.wrapped, batch, settings.label_smoothing, inputs)
                self.accelerator.backward(loss)
                if self.accelerator.sync_gradients:
                    self.accelerator.clip_grad_norm_(self.wrapped.parameters(), settings.clip_norm)
                    progress.step += 1
                self.optimizer.step()
                self.optimizer.zero_grad(set_to_none=True)
            count = int((batch.targets != PAD).sum())
            progress.loss += float(loss.detach()) * count
            progress.words += count
            bar.update()
            if not self.accelerator.sync_gradients:
                continue  # gradients wait for their step
            progress.batch, progress.seconds = number + 1, monotonic() - begun
            late = self._late(started)
            if late or progress.step % settings.checkpoint_every == 0:
                self._save_last()
            if late:
                return None
        seconds = monotonic() - begun
        return {
            "epoch": epoch + 1,
            "lr": self._lr(epoch + 1),
            "train_loss": progress.loss / progress.words,
            "seconds": round(seconds, 2),
            "words_per_second": round(progress.words / seconds),
        }

    def _late(self, started: float) -> bool:
        """Whether max_minutes have run out, by the main process' clock: all must stop at the same step."""
        minutes = self.config.train.max_minutes
        return bool(minutes) and bool(broadcast_object_list([monotonic() - started > 60 * minutes])[0])

    def _batches(self) -> Iterator[tuple[int, Batch]]:
        """The epoch's batches that are not done yet, with their numbers."""
        done = self.progress.batch
        if done >= len(self.loader):  # old versions of accelerate would give one empty batch
            return
        batches = enumerate(skip_first_batches(self.loader, done) if done else self.loader, done)
        if done:  # a loader draws a random number when it starts, which the run that was cut had drawn before
            state = torch.get_rng_state()
            first = list(islice(batches, 1))
            torch.set_rng_state(state)
            yield from first
        yield from batches

    def _lr(self, epoch: float) -> float:
        """Learning rate at a (fractional) epoch."""
        settings = self.config.train
        if epoch > settings.epochs:
            return settings.scst_lr
        return settings.lr * lr_factor(epoch, settings.warmup_epochs, settings.epochs)

    def _end_epoch(self, row: dict) -> None:
        """Validate, log, save."""
        settings, progress = self.config.train, self.progress
        progress.epoch += 1
        progress.begin_epoch()
        if self.accelerator.is_main_process:
            row |= self.validate()
            progress.rows.append(row)
            if row["val_CIDEr"] >= progress.best:  # of equals the later, which has learned longer
                if row["val_CIDEr"] > progress.best:
                    progress.improved = progress.epoch
                progress.best, progress.best_epoch = row["val_CIDEr"], progress.epoch
                self._save_model("best")
            self._write_log()  # after best/: a row says that its epoch is safe
        if progress.epoch == settings.epochs and settings.scst_epochs:  # the second phase goes on from the best
            self.accelerator.wait_for_everyone()
            load_weights(self.model, load_file(self.run / "best" / "model.safetensors"), self.run / "best")
        if progress.epoch == settings.epochs or self.finished:
            self._save_last()
        shared = broadcast_object_list([row, progress.improved])
        row.update(shared[0])
        progress.improved = shared[1]

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Teacher-forced loss and the scores of free-running captions on the validation clips."""
        model, settings = self.model, self.config.train
        model.eval()
        total, words = 0.0, 0
        for batch in make_loader(self.validation, settings.batch_size):
            batch = batch.to(self.accelerator.device)
            count = int((batch.targets != PAD).sum())
            total, words = total + float(caption_loss(model, batch)) * count, words + count
        captions = self.captions(self.validation)
        scores = self.references.score(captions, VALIDATION_METRICS)
        return {"val_loss": total / words, "val_Bleu_4": scores["Bleu_4"] or 0.0, "val_CIDEr": scores["CIDEr"] or 0.0}

    def captions(self, dataset: CaptionDataset) -> dict[str, str]:
        """Free-running captions of a dataset's clips, from the features that it gives them."""
        sources = [dataset.source[i] for i in dataset.ids]
        batches = clip_batches(self.data.store, sources, 64)
        decode = dataclasses.replace(self.config.decode, beam_size=self.config.train.val_beam_size)
        found = caption_clips(self.model, self.data.vocabulary, batches, decode)
        return {i: hypotheses[0].caption for i, (_, hypotheses) in zip(dataset.ids, found, strict=True)}

    def _write_log(self) -> None:
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, LOG_FIELDS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.progress.rows)
        write_text(self.run / "log.csv", text.getvalue())

    def _save_model(self, name: str) -> None:
        save_model(self.run / name, self.model, self.config.model, self.data)

    def _save_last(self) -> None:
        """last/: the model for use, and one file with everything that a resumed run needs."""
        if self.accelerator.is_main_process:
            self._save_model("last")
            state = (self.model, self.optimizer, self.accelerator.scaler, vars(self.progress))
            save_state(self.run / "last", *state, self.config)

    def _load_last(self) -> None:
        parts = (self.model, self.optimizer, self.accelerator.scaler, self.data, self.config.model)
        saved, order = load_state(self.run / "last", *parts), self.progress.order
        known = {n: type(v) for n, v in vars(self.progress).items()}
        if odd := [n for n, v in saved.items() if known.get(n) is not type(v)]:
            raise UserError(f"{self.run / 'last'}: not a checkpoint ({odd[0]}); delete it to train from the start")
        self.progress = _Progress(**{"order": order, **saved})
        if self.progress.order != order:
            self.progress.order = order
            self.progress.begin_epoch()


def train(run: Path, config: Config, data: CaptionData, resume: bool = False, progress: bool = True) -> list[dict]:
    """Train a run into the folder `run` and return its history, one dict per epoch (see log.csv)."""
    return Trainer(run, config, data, resume, progress).fit()
