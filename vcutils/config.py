"""Every setting in one place: frozen dataclasses with a reason on each line, and the profiles.

A field that is None is chosen by the corpus' size (`suited`). `Config.from_env()` reads:

    VCUTILS_PROFILE   tiny, sample or msvd
    VCUTILS_CORPUS    a corpus folder, in place of the embedded one
    VCUTILS_DATA      where artifacts go, in place of data/
    VCUTILS_SET       single settings: "train.epochs=10 decode.beam_size=1", "train=original"
"""

import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from vcutils.runtime import settings
from vcutils.runtime.settings import Amount, Beam, Checked, Count, Share, Size, UserError, Whole

# A checkout keeps data/ beside the package; an installed wheel keeps it where the user works.
CHECKOUT = Path(__file__).resolve().parent.parent
PROJECT_ROOT = CHECKOUT if (CHECKOUT / "pyproject.toml").exists() else Path.cwd()


@dataclass(frozen=True)
class ExtractConfig(Checked):
    """How clips become features (notebook 01)."""

    backbone: str = "efficientnet_lite0"  # its ImageNet weights come inside a package: no download
    own_features: bool = True  # use the features that a corpus brings; False = those of `backbone`
    num_frames: Count = 16  # frames per clip, spread evenly over its length
    batch_size: Count = 32  # frames per forward pass of the network; filled across clips
    workers: Count | None = None  # processes that decode ahead of the network; None = one per core
    patience: Amount = 120.0  # seconds that a clip may take, and as much again per 25 MB


@dataclass(frozen=True)
class VocabConfig(Checked):
    """Which words the model may say (notebook 02)."""

    min_count: Count | None = None  # rarer words become <unk>


@dataclass(frozen=True)
class ModelConfig(Checked):
    """Sizes and switches of the captioning model (notebook 03)."""

    embed_dim: Size = 128  # E, word embedding
    encoder_dim: Size = 128  # of the LSTM, per direction: a frame becomes C = 2 · encoder_dim
    decoder_dim: Size = 256  # H of the decoder
    attention_dim: Size = 128  # A, where the decoder's query and the frames' keys are compared
    dropout: Share | None = None  # on frame projections, embeddings, and before the word logits
    attention: Literal["additive", "matched", "uniform"] = "additive"  # uniform = all alike
    encoder: Literal["bilstm", "none"] = "bilstm"  # none = frames are projected one by one
    frame_order: Literal["kept", "shuffled"] = "kept"  # shuffled = does the order of frames matter?
    max_frames: Count | None = None  # use so many of a clip's frames, spread evenly; None = all


@dataclass(frozen=True)
class TrainConfig(Checked):
    """The training loop (notebook 03)."""

    epochs: Whole | None = None  # an epoch shows each clip once, with captions_per_clip captions
    batch_size: Count | None = None  # clips per step; an upper bound with find_batch_size
    find_batch_size: bool = False  # on CUDA: lower batch_size until a batch fits into memory
    captions_per_clip: Count = 5  # K; a clip is encoded once for all of them
    lr: Amount | None = None  # peak learning rate of Adam
    weight_decay: Amount = 1e-5  # L2, small: dropout does most of the work
    warmup_epochs: Amount = 2.0  # linear rise of the learning rate, then cosine to zero
    accumulation: Count = 1  # batches per optimizer step
    clip_norm: Amount = 1.0  # gradients of an LSTM can explode
    label_smoothing: Share = 0.1  # probability mass spread over all words
    frame_dropout: Share | None = None  # share of a clip's frames left out, anew each epoch
    scheduled_sampling: Share = 0.0  # final share of inputs that the model said itself
    caption_weights: bool = False  # captions count as they agree with their clip's others
    matching: Amount = 0.5  # weight of the loss that teaches "matched" attention its words' frames
    precision: Literal["auto", "no", "bf16", "fp16"] = "auto"  # auto: half precision on CUDA only
    checkpoint_every: Count = 200  # steps between writes of last/: what a killed run repeats
    patience: Count | None = None  # stop after so many epochs without a better validation CIDEr
    val_beam_size: Beam | None = None  # beam of the validation captions
    max_minutes: Amount | None = None  # end cleanly in time, with the best checkpoint kept
    max_length: Count = 24  # words per caption in training; longer ones are cut
    scst_epochs: Whole | None = None  # further epochs, rewarded with CIDEr; none if you set epochs
    scst_lr: Amount = 5e-5  # their learning rate at the start; it falls to zero
    shuffle_features: bool = False  # control: each clip gets another clip's features
    num_workers: Whole = 0  # processes that load batches; features are small, so 0 does
    seed: Whole = 0  # every random choice goes through it


@dataclass(frozen=True)
class DecodeConfig(Checked):
    """How captions are generated (notebook 04)."""

    beam_size: Beam = 5  # hypotheses kept per clip; 1 = greedy search
    max_length: Count = 24  # words before a caption is cut
    length_penalty: Amount | None = None  # beams are ranked by log-probability / length ** this
    no_repeat_ngram: Count | None = None  # forbid repeating an n-gram of this size in a caption


@dataclass(frozen=True)
class Config(Checked):
    """All settings of a run; `Config.from_env()` gives the profile's."""

    profile: str = "sample"  # which preset the values below came from
    corpus: Path | None = None  # a corpus folder; None = the embedded one
    data: Path = PROJECT_ROOT / "data"  # artifacts go to data/<corpus name>/
    clips: Count = 240  # size of the embedded corpus
    extract: ExtractConfig = ExtractConfig()
    vocab: VocabConfig = VocabConfig()
    model: ModelConfig = ModelConfig()
    train: TrainConfig = TrainConfig()
    decode: DecodeConfig = DecodeConfig()

    @property
    def corpus_dir(self) -> Path:
        """The corpus folder: the user's own, or the place of the embedded one."""
        name = "tiny" if self.profile == "tiny" else "sample"
        return self.corpus or self.data / "corpora" / name

    @property
    def artifacts(self) -> Path:
        """data/<corpus name>/, where everything that is computed from the corpus goes."""
        return self.data / self.corpus_dir.resolve().name

    @staticmethod
    def from_env() -> "Config":
        """Settings as the environment variables say. Raises UserError for what they do not know."""
        name = os.environ.get("VCUTILS_PROFILE") or "sample"
        if name not in PROFILES:
            known = ", ".join(PROFILES)
            raise UserError(f"unknown profile {name!r}: VCUTILS_PROFILE is one of {known}")
        paths: dict[str, Any] = settings.paths_from_env(("data", "corpus"), PROJECT_ROOT)
        config = dataclasses.replace(PROFILES[name], **paths)
        return settings.changed(config, os.environ.get("VCUTILS_SET") or "", PRESETS)


# The training values of the notebook that this course grew out of, kept to compare with.
ORIGINAL_TRAINING = TrainConfig(
    epochs=20, batch_size=16, find_batch_size=True, captions_per_clip=1, lr=1e-4,
    weight_decay=1e-5, warmup_epochs=5.0, accumulation=4, clip_norm=1.0, label_smoothing=0.0,
    frame_dropout=0.0, caption_weights=False, val_beam_size=1, max_length=20, scst_epochs=0,
    seed=42,
)  # fmt: skip
PRESETS = {"train": {"original": ORIGINAL_TRAINING}}

PROFILES = {
    "tiny": Config(  # for tests: each notebook in under half a minute
        profile="tiny", clips=12, extract=ExtractConfig(num_frames=6), vocab=VocabConfig(1),
        model=ModelConfig(48, 32, 64, 48, dropout=0.1),
        train=TrainConfig(
            epochs=24, batch_size=2, lr=4e-3, warmup_epochs=1.0, label_smoothing=0.0,
            frame_dropout=0.0, val_beam_size=1,
        ),
    ),
    "sample": Config(),  # two CPU cores, no network
    "msvd": Config(  # a GPU, one download of ResNet-152's weights
        profile="msvd", extract=ExtractConfig("resnet152", num_frames=40, batch_size=64),
        vocab=VocabConfig(min_count=4), model=ModelConfig(512, 512, 512, 512, dropout=0.4),
        train=TrainConfig(30, batch_size=32, lr=1e-3, find_batch_size=True, captions_per_clip=10,
                          scst_epochs=4),
    ),
}  # fmt: skip


def suited(config: Config, clips: int, captions: int) -> Config:
    """The settings with None filled in for a training split of so many clips and captions.

    Chosen on validation splits: the sample's (880 captions), 420 MSR-VTT clips' (8,400), 2,851's.
    A small corpus is soon learned by heart: much dropout, small steps. It needs all its frames.
    """
    small, large = captions < 2000, captions > 30_000
    rewarded = large and config.train.epochs is None and config.train.captions_per_clip > 1
    train = settings.filled(
        config.train,
        epochs=18 if small else 20 if large else 30,
        batch_size=min(32, max(4, clips // (22 if small else 50))),
        lr=1.4e-3 if small else 2e-3,
        frame_dropout=0.0 if small else 0.25,
        val_beam_size=5 if small else 1,
        scst_epochs=4 if rewarded else 0,
    )
    model = settings.filled(config.model, dropout=0.5 if small else 0.3)
    decode = settings.filled(config.decode, length_penalty=0.5 if large else 1.0)
    return dataclasses.replace(config, train=train, model=model, decode=decode)
