"""Every setting of the project in one place: frozen dataclasses, one line of reason per field, and the profiles.

`Config.from_env()` reads four environment variables: VCUTILS_PROFILE (tiny, sample or msvd), VCUTILS_CORPUS (a corpus
folder that replaces the profile's own), VCUTILS_DATA (where artifacts go instead of data/) and VCUTILS_SET, which
changes single settings: `VCUTILS_SET="train.epochs=10 train.max_minutes=60"`.
"""

import dataclasses
import json
import os
import platform
import sys
import tempfile
import typing
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

_PACKAGE_PARENT = Path(__file__).resolve().parent.parent
# A checkout keeps data/ beside the package; an installed wheel keeps it where the user works.
PROJECT_ROOT = _PACKAGE_PARENT if (_PACKAGE_PARENT / "pyproject.toml").exists() else Path.cwd()

_UMASK = os.umask(0)  # can be read only by setting it
os.umask(_UMASK)


class UserError(ValueError):
    """Bad input or settings: one message for the user that names the file or id and says what to do."""


@dataclass(frozen=True)
class ExtractConfig:
    """How clips become features (notebook 01)."""

    backbone: str = "efficientnet_lite0"  # the only one whose ImageNet weights come inside a package: no download
    own_features: bool = True  # use the features that a corpus brings; False = those of `backbone`
    num_frames: int = 16  # frames per clip, spread evenly; 16 keep the sample's extraction under a minute on 2 cores
    batch_size: int = 32  # frames per forward pass; filled across clips, larger gains nothing on a CPU
    workers: int = 0  # processes that decode ahead of the network; 0 = one per core
    patience: float = 120.0  # seconds that a clip may take, and as much again per 25 MB: streams can stall


@dataclass(frozen=True)
class VocabConfig:
    """Which words the model may say (notebook 02)."""

    min_count: int = 0  # rarer words become <unk>; 0 = by the corpus' size, one per power of ten of training captions


@dataclass(frozen=True)
class ModelConfig:
    """Sizes and switches of the captioning model (notebook 03)."""

    embed_dim: int = 128  # E, word embedding
    encoder_dim: int = 128  # H of the encoder, per direction: one frame becomes 2·encoder_dim numbers
    decoder_dim: int = 256  # H of the decoder
    attention_dim: int = 128  # A, the space in which words' queries and frames' keys are compared
    dropout: float | None = None  # on frame projections, embeddings, before the word logits; None = see `suited`
    attention: Literal["additive", "uniform"] = "additive"  # uniform = every frame weighs the same: the ablation
    encoder: Literal["bilstm", "none"] = "bilstm"  # none = frames are projected one by one, without time
    frame_order: Literal["kept", "shuffled"] = "kept"  # shuffled = does the order of frames matter?
    max_frames: int = 0  # use only so many of a clip's frames, spread evenly; 0 = all


@dataclass(frozen=True)
class TrainConfig:
    """The training loop (notebook 03)."""

    epochs: int = 0  # an epoch shows every clip once, with captions_per_clip of its captions; 0 = see `suited`
    batch_size: int = 0  # clips per step, an upper bound with find_batch_size; 0 = see `suited`
    find_batch_size: bool = False  # on CUDA: search the largest batch that fits, up to batch_size
    captions_per_clip: int = 5  # K; a clip is encoded once for all of them
    lr: float = 0.0  # peak learning rate of Adam; 0 = see `suited`
    weight_decay: float = 1e-5  # L2, small: dropout does most of the work
    warmup_epochs: float = 2.0  # linear rise of the learning rate, then cosine to zero
    accumulation: int = 1  # batches per optimizer step
    clip_norm: float = 1.0  # gradients of an LSTM can explode
    label_smoothing: float = 0.1  # probability mass spread over all words: less sure, better beams
    frame_dropout: float = 0.25  # share of a clip's frames left out at random, anew each epoch: steadier attention
    scheduled_sampling: float = 0.0  # final share of input words that are the model's own (Bengio et al. 2015)
    precision: Literal["auto", "no", "bf16", "fp16"] = "auto"  # auto: bf16 or fp16 on CUDA, fp32 on CPU
    checkpoint_every: int = 200  # steps between writes of last/: what a killed run repeats at most
    patience: int = 0  # epochs without a better validation CIDEr before training stops; 0 = never
    val_beam_size: int = 0  # beam of the validation captions; 0 = see `suited`
    max_minutes: float = 0.0  # end cleanly in time, best checkpoint kept; 0 = no limit
    max_length: int = 24  # words per caption in training; longer ones are cut
    scst_epochs: int = 0  # further epochs that reward the model's own captions with their CIDEr (Rennie et al. 2017)
    scst_lr: float = 5e-5  # their learning rate; small, since rewards are noisy
    shuffle_features: bool = False  # control: each clip gets another clip's features; what is left is language alone
    num_workers: int = 0  # loader processes; features are small, so workers pay only on CUDA machines
    seed: int = 0  # every random choice goes through it


@dataclass(frozen=True)
class DecodeConfig:
    """How captions are generated (notebook 04)."""

    beam_size: int = 5  # hypotheses kept per clip; 1 = greedy search
    max_length: int = 24  # words before a caption is cut
    length_penalty: float = 1.0  # beams are ranked by log-probability / length ** this; 0 prefers short captions
    no_repeat_ngram: int = 0  # forbid repeating an n-gram of this size within a caption; 0 = allowed


@dataclass(frozen=True)
class Config:
    """All settings of a run; `Config.from_env()` gives the profile's."""

    profile: str = "sample"  # which preset the values below came from
    corpus: Path | None = None  # a corpus folder; None = the embedded one
    data: Path = PROJECT_ROOT / "data"  # artifacts go to data/<corpus name>/
    clips: int = 120  # size of the embedded corpus
    extract: ExtractConfig = field(default_factory=ExtractConfig)
    vocab: VocabConfig = field(default_factory=VocabConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    decode: DecodeConfig = field(default_factory=DecodeConfig)

    @property
    def corpus_dir(self) -> Path:
        """The corpus folder: the user's own, or the place of the embedded one."""
        return self.corpus or self.data / "corpora" / ("tiny" if self.profile == "tiny" else "sample")

    @property
    def artifacts(self) -> Path:
        """data/<corpus name>/, where everything that is computed from the corpus goes."""
        return artifacts_dir(self.corpus_dir, self.data)

    @classmethod
    def from_env(cls) -> "Config":
        """Settings of the profile that VCUTILS_PROFILE names (default sample), on the corpus of VCUTILS_CORPUS.

        Raises UserError for an unknown profile or a corpus folder that does not exist.
        """
        config = cls.from_profile(os.environ.get("VCUTILS_PROFILE") or "sample")
        if data := os.environ.get("VCUTILS_DATA"):
            config = dataclasses.replace(config, data=(PROJECT_ROOT / data).resolve())
        if corpus := os.environ.get("VCUTILS_CORPUS"):
            path = (PROJECT_ROOT / Path(corpus).expanduser()).resolve()
            if not path.is_dir():
                raise UserError(f"VCUTILS_CORPUS: no folder {path}; relative paths count from {PROJECT_ROOT}")
            config = dataclasses.replace(config, corpus=path)
        return config.changed(os.environ.get("VCUTILS_SET") or "")

    def changed(self, changes: str) -> "Config":
        """The settings with `changes` such as "train.epochs=10 decode.beam_size=1"; "train=original" takes a preset.

        Raises UserError for a field that does not exist or a value of another type.
        """
        config = self
        for change in changes.replace(",", " ").split():
            name, _, text = change.partition("=")
            section, _, key = name.partition(".")
            part = getattr(config, section, None)
            if not key and section == "train" and text in TRAIN_PRESETS:
                config = dataclasses.replace(config, train=TRAIN_PRESETS[text])
                continue
            types = typing.get_type_hints(type(part)) if dataclasses.is_dataclass(part) else {}
            if key not in types:
                raise UserError(f"VCUTILS_SET: no setting {name!r}; write section.field=value, such as train.epochs=10")
            value = _parsed(text, types[key], f"VCUTILS_SET: {change}")
            config = dataclasses.replace(config, **{section: dataclasses.replace(part, **{key: value})})
        return config

    @classmethod
    def from_profile(cls, name: str) -> "Config":
        """Settings of one profile. Raises UserError for an unknown name."""
        if name not in PROFILES:
            raise UserError(f"unknown profile {name!r}: VCUTILS_PROFILE is one of {', '.join(PROFILES)}")
        return PROFILES[name]


def _parsed(text: str, kind: Any, where: str) -> Any:
    """The value of a setting of type `kind` from text."""
    choices = typing.get_args(kind)
    if text.lower() == "none" and type(None) in choices:
        return None
    if typing.get_origin(kind) is Literal:
        if text in choices:
            return text
        raise UserError(f"{where}: takes one of {', '.join(choices)}")
    kind = choices[0] if choices else kind
    try:
        return {"true": True, "false": False}[text.lower()] if kind is bool else kind(text)
    except (ValueError, KeyError) as error:
        raise UserError(f"{where}: takes {kind.__name__}, not {text!r}") from error


# The hyper-parameters of the notebook that this course grew out of, kept to compare with.
ORIGINAL_TRAINING = TrainConfig(
    epochs=20,
    batch_size=16,
    find_batch_size=True,
    captions_per_clip=1,
    lr=1e-4,
    weight_decay=1e-5,
    warmup_epochs=5.0,
    accumulation=4,
    clip_norm=1.0,
    label_smoothing=0.0,
    frame_dropout=0.0,
    val_beam_size=1,
    max_length=20,
    seed=42,
)

TRAIN_PRESETS = {"original": ORIGINAL_TRAINING}

PROFILES: dict[str, Config] = {
    "tiny": Config(
        profile="tiny",
        clips=12,
        extract=ExtractConfig(num_frames=6),
        vocab=VocabConfig(min_count=1),
        model=ModelConfig(embed_dim=48, encoder_dim=32, decoder_dim=64, attention_dim=48, dropout=0.1),
        train=TrainConfig(
            epochs=24, batch_size=2, lr=4e-3, warmup_epochs=1.0, label_smoothing=0.0, frame_dropout=0.0, val_beam_size=1
        ),
    ),
    "sample": Config(profile="sample"),
    # The recipe that proved best on the validation splits of small corpora, at the size that a GPU allows.
    "msvd": Config(
        profile="msvd",
        extract=ExtractConfig(backbone="resnet152", num_frames=40, batch_size=64),
        vocab=VocabConfig(min_count=4),
        model=ModelConfig(embed_dim=512, encoder_dim=512, decoder_dim=512, attention_dim=512, dropout=0.4),
        train=TrainConfig(epochs=30, batch_size=32, lr=1e-3, find_batch_size=True, captions_per_clip=10),
    ),
}


def suited(config: Config, clips: int, captions: int) -> Config:
    """The settings with what was left open (0, None) filled in for a training split of so many clips and captions.

    Chosen on the validation splits of the sample (84 clips, 420 captions) and of 420 MSR-VTT clips (8,400 captions):
    a small corpus is soon learned by heart, so it gets much dropout and many small steps, and its few validation clips
    rank epochs steadily only by the captions of beam search. A larger one is the reverse, and greedy captions, in a
    third of the time, rank its epochs as well. A large one needs fewer epochs, since each has more steps.
    """
    small, large = captions < 2000, captions > 30_000
    train: dict[str, Any] = {"epochs": 20 if small or large else 30, "batch_size": min(32, max(4, clips // 50))}
    train |= {"lr": 7e-4, "val_beam_size": 5} if small else {"lr": 2e-3, "val_beam_size": 1}
    train = {name: value for name, value in train.items() if not getattr(config.train, name)}
    model: dict[str, Any] = {"dropout": 0.5 if small else 0.3} if config.model.dropout is None else {}
    return dataclasses.replace(
        config,
        train=dataclasses.replace(config.train, **train),
        model=dataclasses.replace(config.model, **model),
    )


def artifacts_dir(corpus_dir: Path, data: Path) -> Path:
    """data/<corpus name>/ of a corpus folder."""
    return data / corpus_dir.resolve().name


def to_json(config: Any) -> str:
    """A (nested) config dataclass as JSON text, paths as strings."""
    return json.dumps(dataclasses.asdict(config), indent=2, default=str)


def from_dict(cls: type, values: dict[str, Any]) -> Any:
    """Rebuild a flat config dataclass; unknown keys raise UserError, so that a newer file is not half understood."""
    known = {f.name for f in dataclasses.fields(cls)}
    if unknown := sorted(set(values) - known):
        raise UserError(f"{cls.__name__}: unknown field(s) {', '.join(unknown)}; was it written by a newer version?")
    return cls(**values)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Raise UserError, with the path and what is needed, when the body cannot write: full, read-only, no permission."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{path}: cannot be written ({error.strerror or error}); it needs room on its disk and the right to write "
            "there: make room or name another place, then start again; finished work is kept"
        ) from error


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Write a file whole or not at all: yields a temporary path beside `path`, which takes its place on success.

    Raises UserError when it cannot be written.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        while True:
            handle, name = tempfile.mkstemp(dir=path.parent, prefix=".tmp-", suffix=path.suffix)
            # Locked while in use, which tells it from those of killed processes; else such a sweep has just taken it.
            if _lock(handle) is not False and os.fstat(handle).st_nlink:
                break
            os.close(handle)
        temporary = Path(name)
        try:
            os.chmod(temporary, 0o666 & ~_UMASK)
            yield temporary
            if sys.platform == "win32":  # where an open file can be neither moved nor removed
                os.close(handle)
                handle = -1
            os.replace(temporary, path)
        finally:
            with suppress(OSError):
                os.close(handle)
            temporary.unlink(missing_ok=True)


@contextmanager
def holding(folder: Path, what: str) -> Iterator[None]:
    """Keep other processes from doing `what` (a plain file name) in `folder` meanwhile; sweep up what killed ones left.

    The operating system ends the hold with the process, however that dies; a second hold in the same process is
    refused too. Raises UserError that says who holds it, or that the folder cannot be written.
    """
    path = folder / f".{what}.lock"
    with writing(path):
        folder.mkdir(parents=True, exist_ok=True)
        handle = _hold(path, what)
    try:
        for parent, _, names in os.walk(folder):
            for name in names:
                if name.startswith(".tmp-"):
                    _sweep(Path(parent, name))
        yield
    finally:
        if handle in _held:  # not so in a forked child
            _held.remove(handle)
            _remove_locked(path, handle)


_held: set[int] = set()  # handles of this process' locks


def _hold(path: Path, what: str) -> int:
    """The handle of a lock file that is locked and says by whom."""
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        locked = _lock(handle)
        if locked is False:
            holder = os.read(handle, 1000).decode(errors="replace") or "another process"
            os.close(handle)
            raise UserError(f"{path.parent}: {what} goes on there already, by {holder}; wait for it, or stop it first")
        if locked is None:
            warnings.warn(f"{path}: this file system knows no locks; start no second {what} there", stacklevel=4)
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(handle), os.stat(path)):
                break
        os.close(handle)  # its holder has just removed it
    _held.add(handle)
    since = datetime.now().astimezone().isoformat(" ", "seconds")
    with suppress(OSError):  # a full disk: the files themselves will tell
        os.ftruncate(handle, 0)  # a dead process' name
        os.write(handle, f"process {os.getpid()} on {platform.node()} since {since}".encode())
    return handle


def _lock(handle: int) -> bool | None:
    """Lock an open file until it is closed or the process is gone; False: somebody has, None: there are no locks."""
    try:
        if sys.platform == "win32":
            import msvcrt

            os.lseek(handle, 1 << 30, os.SEEK_SET)  # behind the content, which others may read
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError:
        return None
    finally:
        os.lseek(handle, 0, os.SEEK_SET)
    return True


def _sweep(temporary: Path) -> None:
    """Remove a temporary file whose process is gone."""
    with suppress(OSError):  # gone meanwhile, or another user's
        handle = os.open(temporary, os.O_RDWR)
        if _lock(handle):
            _remove_locked(temporary, handle)
        else:
            os.close(handle)


def _remove_locked(path: Path, handle: int) -> None:
    """Remove an open file before its lock ends; Windows removes none that anyone has open, so there it ends first."""
    if sys.platform == "win32":
        os.close(handle)
    with suppress(OSError):
        path.unlink()
    if sys.platform != "win32":
        os.close(handle)


def _let_go() -> None:
    """A forked child shares its parent's locks, and would keep them when the parent is killed."""
    while _held:
        os.close(_held.pop())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text whole or not at all, with the same line ends on every system."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def note(folder: Path, text: str) -> None:
    """Add a line with the time to log.txt of data/<corpus>/, which tells what every stage did."""
    with writing(folder / "log.txt"):
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / "log.txt", "a", encoding="utf-8", newline="\n") as file:
            file.write(f"{datetime.now().astimezone().isoformat(' ', 'seconds')}  {text}\n")


def duration(seconds: float) -> str:
    """Seconds as a person says them: 40 s, 12 min, 2.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
