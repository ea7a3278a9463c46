"""Where a training run stands, and what it leaves on disk: settings, log, checkpoints; how it is resumed and ended.

best/ and last/ hold a model each (`runtime.checkpoints`); that of last/ also what a resumed run needs.
"""

import json
import math
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from operator import itemgetter
from pathlib import Path
from time import monotonic
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from vcutils.config import Config
from vcutils.runtime.checkpoints import STATE, check_features, digests, load_tensors, load_weights, save_model
from vcutils.runtime.files import duration, holding, note, reading, write_text, writing
from vcutils.runtime.processes import by_main, is_alone, of_all, over_all, place
from vcutils.runtime.settings import Amount, Checked, UserError, Whole
from vcutils.runtime.store import backbone_of

BROKEN = ("not a checkpoint", "delete it to train from the start")
CIDER = itemgetter("val_CIDEr")
REWARDED = 3.0  # a self-critical epoch takes about so many others' time
READ_EVERY = 100  # batches: for their losses the CPU waits until a GPU has them
LOG_FIELDS = ("epoch", "lr", "train_loss", "val_loss", "val_Bleu_4", "val_CIDEr", "seconds", "words_per_second")


@dataclass
class Progress(Checked):
    """Where a run stands; written with every checkpoint."""

    epoch: Whole = 0  # epochs that are complete
    step: Whole = 0  # optimizer steps taken
    clips: Whole = 0  # of the next epoch that are done, in all processes, with the sum of their losses, words, seconds
    loss: Annotated[float, (-math.inf, math.inf)] = 0.0
    words: Whole = 0
    seconds: Amount = 0.0
    order: str = ""  # fingerprint of clips and seed; if it changed, restart the epoch
    first_phase: Whole = 0  # epochs before the self-critical phase; fewer than asked for when patience ran out
    rows: list[dict] = field(default_factory=list)  # of the log

    def add(self, loss: float, words: int, step: int) -> None:
        """Count a batch's summed loss. Raises UserError for one that is not finite: no weights would be any good."""
        if not math.isfinite(loss):
            raise UserError(f"the loss of step {step} is {loss}: train again with a lower learning rate (lr)")
        self.loss += loss
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
        self.clips, self.loss, self.words, self.seconds = 0, 0.0, 0, 0.0


class Record:
    """The folder of one run. Only the main process of several writes; all of them call the same methods."""

    def __init__(self, run: Path, config: Config, data: Any, order: str) -> None:
        self.run, self.config, self.data, self.is_main = Path(run), config, data, place()[0] == 0
        self.unread: list[tuple[Tensor, int, int]] = []  # losses per word, words, steps of the latest batches
        self.last = self.run / "last" / "model.safetensors"
        self.progress = Progress(order=order, first_phase=config.train.epochs or 0)
        self.started = monotonic()

    @property
    def about(self) -> dict[str, Any]:
        """config.json of best/ and last/: model settings, sizes, features."""
        return {
            "model": asdict(self.config.model),
            "vocab_size": len(self.data.vocabulary),
            "feature_dim": self.data.store.dim,
            "corpus": self.data.root.name,
            "features": backbone_of(self.data.store.folder),
            "extracted": self.data.store.extracted,
        }

    @property
    def epochs(self) -> int:
        """Epochs of both phases."""
        return self.progress.first_phase + (self.config.train.scst_epochs or 0)

    @property
    def out_of_patience(self) -> bool:
        """Whether the last `patience` epochs were no better than those before; the second phase counts anew."""
        progress, patience = self.progress, self.config.train.patience
        improved = max(progress.rows, key=CIDER, default={"epoch": 0})["epoch"]
        if progress.epoch >= progress.first_phase:
            improved = max(improved, progress.first_phase)
        return patience is not None and patience <= progress.epoch - improved

    @property
    def finished(self) -> bool:
        """Whether every epoch is done, or patience has run out in the last phase."""
        is_last_phase = not self.config.train.scst_epochs or self.progress.epoch >= self.progress.first_phase
        return self.progress.epoch >= self.epochs or (is_last_phase and self.out_of_patience)

    @property
    def best_row(self) -> dict | None:
        """The log's row of the epoch that best/ holds: of equals the later, which has learned longer."""
        return max(reversed(self.progress.rows), key=CIDER, default=None)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Hold the run's folder. A run that goes on from no checkpoint replaces an earlier one of its name."""
        self.started = monotonic()
        if not self.is_main:
            yield
            return
        with holding(self.run, "train"):
            if not self.progress.step:
                self._start_anew()
            where = {"corpus_dir": str(self.data.root), "features": str(self.data.store.folder)}
            write_text(self.run / "config.json", json.dumps(where | asdict(self.config), indent=2, default=str))
            self._note(f"{self.epochs} epochs, from epoch {self.progress.epoch}, step {self.progress.step}")
            yield
            if not self.finished:
                self._note(f"out of time after epoch {self.progress.epoch}, step {self.progress.step}")

    def add(self, loss: Tensor, words: int) -> None:
        """Count a batch's loss per word, without waiting for it; all are read together, now and then."""
        self.unread.append((loss.detach(), words, self.progress.step + 1))
        if len(self.unread) == READ_EVERY:
            self.read_losses()

    def read_losses(self) -> None:
        """Bring the progress up to date with all processes' losses. Raises UserError for one that is not finite."""
        if self.unread:
            losses, words, steps = zip(*self.unread, strict=True)
            sums = [loss * count for loss, count in zip(torch.stack(losses).tolist(), words, strict=True)]
            self.unread.clear()
            for loss, count, step in zip(over_all(sums), over_all(words), steps, strict=True):
                self.progress.add(loss, int(count), step)

    def end_step(self, *parts: Any) -> bool:
        """Count an optimizer step, save `parts` (see save_last) when that is due; whether max_minutes have run out."""
        settings, step = self.config.train, self.progress.step + 1
        self.progress.step, late = step, False
        # By the main process' clock: all must stop at the same step. Asking it takes a wait.
        if settings.max_minutes is not None and (is_alone() or step % 10 == 1):
            late = by_main(monotonic() - self.started > 60 * settings.max_minutes)
        if late or self.progress.step % settings.checkpoint_every == 0:
            self.save_last(*parts)
        return late

    def end_epoch(self, row: dict[str, Any], model: nn.Module) -> None:
        """Log an epoch, as the main process sees it; its model becomes best/ when its captions are."""
        progress = self.progress
        progress.rows.append(row := by_main(row))
        if not self.is_main:
            return
        if self.best_row is row:
            self.save_model("best", model)
        lines = [LOG_FIELDS, *([str(row.get(name, "")) for name in LOG_FIELDS] for row in progress.rows)]
        # After best/: a row says that its epoch is safe.
        write_text(self.run / "log.csv", "".join(",".join(line) + "\n" for line in lines))
        left = (monotonic() - self.started) / len(progress.rows) * max(0, self.epochs - progress.epoch)
        scores = f"loss {row['train_loss']:.3f}, validation CIDEr {row['val_CIDEr']:.3f}"
        speed = f"{row['words_per_second']} words/s"
        self._note(f"epoch {progress.epoch} of {self.epochs}: {scores}, {speed}, {duration(left)} left at most")

    def end_phase(self, model: nn.Module, optimizer: Any) -> bool:
        """Whether the first phase has just ended; the second, where there is one, goes on from best/."""
        progress = self.progress
        if progress.epoch == 1:
            self._fit_minutes()
        if self.out_of_patience and progress.epoch < progress.first_phase:
            progress.first_phase = progress.epoch
        ended = progress.epoch == progress.first_phase
        if ended and self.config.train.scst_epochs:
            by_main(None)  # it has written best/
            best = self.run / "best" / "model.safetensors"
            load_weights(model, load_tensors(best)[0], best)
            optimizer.state.clear()  # moments of another loss
        return ended

    def _fit_minutes(self) -> None:
        """Plan fewer epochs where max_minutes are too few for all: the learning rate must have fallen by then."""
        train: Any = self.config.train
        progress, epoch = self.progress, monotonic() - self.started
        if train.max_minutes is not None:
            fitting = 60 * train.max_minutes / epoch
            first = max(fitting / 2, fitting - REWARDED * train.scst_epochs)
            progress.first_phase = by_main(min(progress.first_phase, max(1, int(first))))

    def save_model(self, name: str, model: nn.Module, *state: Any) -> None:
        """best/ or last/, with everything that captions need."""
        if self.is_main:
            save_model(self.run / name, model, self.about, self.data.vocabulary, *state)

    def save_last(self, model: nn.Module, optimizer: Any, scaler: Any) -> None:
        """last/: the model, and everything that a resumed run needs; no scaler is None."""
        self.read_losses()
        random = {"rng.cpu": torch.get_rng_state()}
        if torch.cuda.is_available():
            random["rng.cuda"] = torch.cuda.get_rng_state()
        state = {f"{STATE}{_of(name, n)}": random[name] for n, random in enumerate(of_all(random)) for name in random}
        if not self.is_main:
            return
        for number, slots in optimizer.state_dict()["state"].items():
            state |= {f"{STATE}optimizer.{number}.{slot}": value for slot, value in slots.items()}
        notes = {"progress": vars(self.progress), "train": asdict(self.config.train), "about": self.about}
        notes["scaler"] = scaler and scaler.state_dict()
        self.save_model("last", model, state, notes)

    def load_last(self, model: nn.Module, optimizer: Any, scaler: Any) -> None:
        """Go on from last/, where there is one. Raises UserError for one that is broken or of another kind."""
        path, fresh = self.last, self.progress
        if not path.is_file():
            return
        tensors, saved = self._read_last()
        load_weights(model, tensors, path)
        with reading(path, *BROKEN):
            state: dict[int, dict[str, Tensor]] = {}
            for name, tensor in tensors.items():
                if name.startswith(f"{STATE}optimizer."):
                    number, slot = name.split(".")[2:]
                    state.setdefault(int(number), {})[slot] = tensor
            optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
            if (own := _of(f"{STATE}rng.cpu", place()[0])) in tensors:  # else it was cut with fewer processes
                torch.set_rng_state(tensors[own])
            if torch.cuda.is_available() and (own := _of(f"{STATE}rng.cuda", place()[0])) in tensors:
                torch.cuda.set_rng_state(tensors[own])
            if scaler and saved["scaler"]:
                scaler.load_state_dict(saved["scaler"])
        self.progress = progress = saved["progress"]
        if not self.config.train.scst_epochs or progress.epoch < progress.first_phase:
            progress.first_phase = fresh.first_phase
        if progress.order != fresh.order:
            progress.order = fresh.order
            progress.begin_epoch()

    def _read_last(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and notes of last/'s model. Raises UserError for one that is broken or of another kind."""
        path = self.last
        with reading(path, *BROKEN):
            tensors, saved = load_tensors(path)
            saved["progress"].pop("batch", None)  # in place of clips until version 1
            saved["progress"] = progress = Progress(**saved["progress"])
            progress.rows = [dict(row) for row in progress.rows if math.isfinite(row["epoch"] + row["val_CIDEr"])]
            saved["train"], about, vocabulary = dict(saved["train"]), dict(saved["about"]), saved["vocab.json"]
        check_features(about, self.data.store, path)
        if vocabulary != digests(about, self.data.vocabulary)["vocab.json"]:
            raise UserError(f"{path}: was trained with another vocabulary than the one at hand; use another --run")
        if about.get("model") != self.about["model"]:
            raise UserError(f"{path}: was trained with other model settings ({about.get('model')}); use another --run")
        return tensors, saved

    def is_resumable(self) -> bool:
        """Whether last/ is of these settings, features and words, whatever the minutes that a run may take."""
        try:
            train = self._read_last()[1]["train"]
        except UserError:
            return False
        return train | {"max_minutes": None} == asdict(replace(self.config.train, max_minutes=None))

    def _start_anew(self) -> None:
        """Remove what an earlier run of this name left, so that nothing of it stands beside the new run's settings."""
        with writing(self.run):
            self.last.unlink(missing_ok=True)  # first: when this is cut, nothing goes on from the old
            names = ("best", "last", "attention", "log.csv", "config.json", "predictions_*.json", "metrics_*.json")
            for pattern in names:
                for path in self.run.glob(pattern):
                    shutil.rmtree(path) if path.is_dir() else path.unlink()

    def _note(self, text: str) -> None:
        note(self.run.parent.parent, f"train {self.run.name}: {text}")


def _of(name: str, process: int) -> str:
    """The name of a process' random state in last/; the main one's is plain."""
    return f"{name}.{process}" if process else name
