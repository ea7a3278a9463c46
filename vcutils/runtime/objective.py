"""What a training step minimises: the loss of a batch's captions, weighted, or of the model's own, rewarded."""

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor, nn

from vcutils.config import Config
from vcutils.runtime.fast import fast_loss, moved, sampled_inputs
from vcutils.runtime.frames import sent
from vcutils.runtime.rewards import TEMPERATURE, CaptionWeights, sampled_batch, without_chance
from vcutils.runtime.sampler import chances
from vcutils.runtime.settings import UserError


class Objective:
    """The loss of each batch by a run's settings.

    `references` makes of training captions an object that scores captions against them, where one is needed;
    `accelerator` has the device, and makes blocks of half precision, or of none. Raises UserError for a
    self-critical phase in which a clip's samples have no other to be compared with.
    """

    def __init__(self, config: Config, data: Any, references: Callable, accelerator: Any) -> None:
        settings: Any = config.train
        self.settings, self.vocabulary = settings, data.vocabulary
        self.autocast, self.device = accelerator.autocast, accelerator.device
        self.pad, self.start = (data.vocabulary.index[name] for name in ("<pad>", "<start>"))
        if settings.scst_epochs and settings.captions_per_clip < 2:
            raise UserError("scst_epochs: needs captions_per_clip of 2 or more, which are each other's baseline")
        self.matching = settings.matching if config.model.attention == "matched" else 0.0
        if settings.scst_epochs or settings.caption_weights:  # they alone need all captions in memory
            captions = {i: data.captions[i] for i in data.splits["train"]}
            self.references = references(captions)
        if settings.caption_weights:
            encode = partial(data.vocabulary.encode, max_length=settings.max_length)
            self.weights = CaptionWeights(self.references, captions, encode)

    def begin_epoch(self, network: nn.Module, dataset: Any, rewarded: bool) -> None:
        """Rewards are for what the model says of whole clips: without dropout, and with all frames."""
        network.train()
        if rewarded:
            without_chance(network)
            dataset.frame_dropout = 0.0

    def __call__(
        self, network: nn.Module, batch: Any, epoch: int = 0, rewarded: bool = False, places: range = range(1)
    ) -> tuple[Tensor, int]:
        """The loss per word of a batch on the CPU, and its words: of its own captions, or of rewarded samples instead.

        `network` as in `fast_loss`; `places` are the clips' in the epoch, and without any no word counts. But for
        samples, whose rewards the CPU finds, it waits for no GPU.
        """
        settings = self.settings

        def chance(longest: int) -> Tensor:
            shape = (*batch.captions.shape[:2], longest)
            return sent(chances(settings.seed, epoch, places.start, shape), self.device)

        weights, inputs = self.weights(batch, self.pad) if settings.caption_weights and not rewarded else None, None
        batch, weights = moved((batch, weights), self.device)
        if rewarded:
            model = getattr(network, "module", network).model
            drawn = (settings.max_length, chance(settings.max_length + 1))
            batch, advantages = sampled_batch(model, batch, self.vocabulary, self.references, *drawn)
            with self.autocast():
                loss = fast_loss(network, batch, self.pad, weights=advantages, temperature=TEMPERATURE)
        else:
            if guessed := settings.scheduled_sampling * epoch / max(1, settings.epochs - 1):
                with self.autocast():  # a block of its own: it keeps copies of weights without gradients
                    guesses = (guessed, chance(settings.max_length + 1))
                    inputs = sampled_inputs(network, batch, self.pad, self.start, *guesses)
            with self.autocast():
                smoothing = settings.label_smoothing
                loss = fast_loss(network, batch, self.pad, smoothing, inputs, weights, matching=self.matching)
        return loss, int(batch.lengths.words.sum()) if places else 0
