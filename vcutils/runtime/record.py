"""Where a training run stands, and what it leaves on disk: settings, log, checkpoints; how it is resumed and ended."""

import csv
import dataclasses
import io
import json
import math
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any

from safetensors.torch import load_file
from torch import nn

from vcutils.config import Config
from vcutils.runtime.accelerator import late_for_all
from vcutils.runtime.checkpoints import (
    ANEW,
    STATE,
    check_resumable,
    load_state,
    load_weights,
    run_config,
    save_model,
    save_state,
)
from vcutils.runtime.files import duration, holding, note, write_text, writing
from vcutils.runtime.settings import UserError, to_json
from vcutils.runtime.store import backbone_of

LOG_FIELDS = ("epoch", "lr", "train_loss", "val_loss", "val_Bleu_4", "val_CIDEr", "seconds", "words_per_second")


@dataclass
class Progress:
    """Where a run stands; written with every checkpoint."""

    epoch: int = 0  # epochs that are complete
    step: int = 0  # optimizer steps taken
    batch: int = 0  # batches of the next epoch that are done, with the sum of their losses, words and seconds
    loss: float = 0.0
    words: int = 0
    seconds: float = 0.0
    order: str = ""  # fingerprint of clips, batch size, processes and seed; if it changed, restart the epoch
    first_phase: int = 0  # epochs before the self-critical phase; fewer than asked for when patience ran out
    best: float = -1.0
    best_epoch: int = 0
    improved: int = 0  # the last epoch that was strictly better: what patience counts from
    rows: list[dict] = dataclasses.field(default_factory=list)

    def add(self, loss: float, words: int) -> None:
        """Count a batch's loss per word. Raises UserError for one that is not finite: no weights would be any good."""
        if not math.isfinite(loss):
            raise UserError(f"the loss of step {self.step + 1} is {loss}: train again with a lower learning rate (lr)")
        self.loss += loss * words
        self.words += words

    def end_epoch(self, seconds: float) -> dict[str, Any]:
        """The log's row of the epoch that has just ended, without its scores."""
        self.epoch += 1
        row = {"epoch": self.epoch, "train_loss": self.loss / self.words, "seconds": round(seconds, 2)}
        row["words_per_second"] = round(self.words / seconds)
        self.begin_epoch()
        return row

    def begin_epoch(self) -> None:
        """Forget the part of an epoch."""
        self.batch, self.loss, self.words, self.seconds = 0, 0.0, 0, 0.0


class Record:
    """The folder of one run. Only the main process of several writes."""

    def __init__(self, run: Path, config: Config, data: Any, order: str, is_main: bool) -> None:
        self.run, self.config, self.data, self.is_main = Path(run), config, data, is_main
        self.progress = Progress(order=order, first_phase=config.train.epochs or 0)
        self.started = monotonic()

    @property
    def epochs(self) -> int:
        """Epochs of both phases."""
        return self.progress.first_phase + self.config.train.scst_epochs

    @property
    def finished(self) -> bool:
        """Whether every epoch is done, or patience has run out in the last phase."""
        return self.progress.epoch >= self.epochs or (self.is_last_phase and self.out_of_patience)

    @property
    def is_last_phase(self) -> bool:
        """Whether no other phase follows."""
        return not self.config.train.scst_epochs or self.progress.epoch >= self.progress.first_phase

    @property
    def out_of_patience(self) -> bool:
        """Whether the last `patience` epochs were no better than those before."""
        patience = self.config.train.patience
        return patience is not None and patience <= self.progress.epoch - self.progress.improved

    def end_step(self, *parts: Any) -> bool:
        """Count an optimizer step, save `parts` (see save_last) when that is due; whether max_minutes have run out."""
        settings = self.config.train
        self.progress.step += 1
        late = settings.max_minutes is not None and late_for_all(monotonic() - self.started > 60 * settings.max_minutes)
        if late or self.progress.step % settings.checkpoint_every == 0:
            self.save_last(*parts)
        return late

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Hold the run's folder. A run that goes on from no checkpoint replaces an earlier one of its name."""
        self.started = monotonic()
        if not self.is_main:
            yield
            return
        with holding(self.run, "train"):
            if not self.progress.step:
                _start_anew(self.run)
            where = {"corpus_dir": str(self.data.root), "features": str(self.data.store.folder)}
            write_text(self.run / "config.json", json.dumps(where | json.loads(to_json(self.config)), indent=2))
            self.note(f"{self.epochs} epochs, from epoch {self.progress.epoch}, step {self.progress.step}")
            yield
            if not self.finished:
                self.note(f"out of time after epoch {self.progress.epoch}, step {self.progress.step}")

    def end_epoch(self, row: dict[str, Any], model: nn.Module) -> None:
        """Log an epoch; its model becomes best/ when its captions are."""
        progress = self.progress
        progress.rows.append(row)
        if row["val_CIDEr"] >= progress.best:  # of equals the later, which has learned longer
            if row["val_CIDEr"] > progress.best:
                progress.improved = progress.epoch
            progress.best, progress.best_epoch = row["val_CIDEr"], progress.epoch
            self.save_model("best", model)
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, LOG_FIELDS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(progress.rows)
        write_text(self.run / "log.csv", text.getvalue())  # after best/: a row says that its epoch is safe
        left = (monotonic() - self.started) / len(progress.rows) * max(0, self.epochs - progress.epoch)
        scores = f"loss {row['train_loss']:.3f}, validation CIDEr {row['val_CIDEr']:.3f}"
        speed = f"{row['words_per_second']} words/s"
        self.note(f"epoch {progress.epoch} of {self.epochs}: {scores}, {speed}, {duration(left)} left at most")

    def end_phase(self, model: nn.Module) -> bool:
        """Whether the first phase has just ended; the second, where there is one, goes on from best/."""
        progress = self.progress
        if not self.is_last_phase and self.out_of_patience:
            progress.first_phase = progress.epoch
        ended = progress.epoch == progress.first_phase
        if ended and self.config.train.scst_epochs:
            progress.improved = progress.epoch
            best = self.run / "best" / "model.safetensors"
            load_weights(model, load_file(best), best)
        return ended

    @property
    def best_row(self) -> dict | None:
        """The log's row of the epoch that best/ holds; None before the first."""
        return next((row for row in self.progress.rows if row["epoch"] == self.progress.best_epoch), None)

    def save_model(self, name: str, model: nn.Module) -> None:
        """best/ or last/, with everything that captions need."""
        if not self.is_main:
            return
        about = {
            "model": dataclasses.asdict(self.config.model),
            "vocab_size": len(self.data.vocabulary),
            "feature_dim": self.data.store.dim,
            "corpus": self.data.root.name,
            "features": backbone_of(self.data.store.folder),
            "extracted": self.data.store.extracted,
        }
        save_model(self.run / name, model, about, self.data.vocabulary)

    def save_last(self, model: nn.Module, optimizer: Any, scaler: Any) -> None:
        """last/: the model for use, and one file with everything that a resumed run needs."""
        self.save_model("last", model)
        if self.is_main:
            save_state(self.run / "last", model, optimizer, scaler, vars(self.progress), to_json(self.config))

    def load_last(self, model: nn.Module, optimizer: Any, scaler: Any) -> None:
        """Go on from last/, where there is one. Raises UserError for one that is broken or of another kind."""
        folder, data, settings = self.run / "last", self.data, dataclasses.asdict(self.config.model)
        saved = load_state(folder, model, optimizer, scaler, data.store, data.vocabulary.words, settings)
        fresh = self.progress
        for name, value in saved.items():
            if type(value) is not type(getattr(fresh, name, None)):
                raise UserError(f"{folder}: not a checkpoint ({name}); {ANEW}")
        self.progress = dataclasses.replace(fresh, **saved)
        if not self.config.train.scst_epochs or self.progress.epoch < self.progress.first_phase:
            self.progress.first_phase = fresh.first_phase
        if self.progress.order != fresh.order:
            self.progress.order = fresh.order
            self.progress.begin_epoch()

    def is_resumable(self) -> bool:
        """Whether the folder holds a run of these settings, features and words, to go on with or done."""
        if not (self.run / "last" / STATE).is_file():
            return False
        try:
            known, wanted = run_config(self.run), json.loads(to_json(self.config))
            check_resumable(self.run / "last", self.data.store, self.data.vocabulary.words)
        except UserError:
            return False
        for settings in (known, wanted):
            settings["train"].pop("max_minutes", None)  # how long one may go on changes nothing
        return all(known[part] == wanted[part] for part in ("train", "model"))

    def note(self, text: str) -> None:
        """A line of log.txt."""
        if self.is_main:
            note(self.run.parent.parent, f"train {self.run.name}: {text}")


def _start_anew(run: Path) -> None:
    """Remove what an earlier run of this name left, so that nothing of it stands beside the new run's settings."""
    with writing(run):
        (run / "last" / STATE).unlink(missing_ok=True)  # first: when this is cut, nothing goes on from the old run
        for pattern in ("best", "last", "attention", "log.csv", "config.json", "predictions_*.json", "metrics_*.json"):
            for path in run.glob(pattern):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
