"""What is each trick of the training recipe worth on real captions? A row per trick, mean ± sd over seeds.

    python tests/benchmarks/tricks.py CORPUS [--seeds 3] [--epochs 8] [--rows "plain" "weights averaged" …]

CORPUS brings its features; every row is the default training of its size, cut to EPOCHS and without the self-critical
phase, with one thing changed. Scored on the validation split, greedy, at the best epoch. Rows that are switches of
TrainConfig set them; the others are written here, because none earned a place in the package.
"""

import argparse
import json
import statistics
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from vcutils.config import Config
from vcutils.corpora import load_corpus
from vcutils.dataset import load_data
from vcutils.runtime import fast, objective
from vcutils.scores.coco import References
from vcutils.train import Trainer

SWITCHES: dict[str, dict[str, Any]] = {
    "plain": {},
    "captions weighted by agreement": {"caption_weights": True},
    "captions weighted, weights averaged": {"caption_weights": True},
}


class NormedLinear(nn.Linear):
    """A linear layer with layer norm behind it (Ba et al. 2016: each part of an LSTM's gates is normed alone)."""

    def forward(self, x: Tensor) -> Tensor:
        """(…, outputs), normed with the bias of the linear layer behind it."""
        x = nn.functional.linear(x, self.weight)
        x = nn.functional.layer_norm(x, x.shape[-1:])
        return x if self.bias is None else x + self.bias


class Locked(nn.Module):
    """Dropout that leaves out the same units at every word of a caption (Gal & Ghahramani 2016).

    `rows` are, for the calls to come, the captions that the rows of the input belong to.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p
        self.rows: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        """x (n, …) with units left out, scaled."""
        if not self.training:
            return x
        rows = self.rows.pop(0)
        kept = torch.rand(int(rows.max()) + 1, x.shape[-1], device=x.device) >= self.p
        return x * kept[rows] / (1 - self.p)


def layer_norm(trainer: Trainer) -> None:
    """Norm both parts of the decoder's gates."""
    for name in ("word_gates", "state_gates"):
        layer = getattr(trainer.model.decoder, name)
        layer.__class__ = NormedLinear


def locked_dropout(trainer: Trainer) -> None:
    """The decoder's dropout, of words and before the logits, is the same at all words of a caption."""
    decoder: Any = trainer.model.decoder
    decoder.dropout = Locked(decoder.dropout.p)

    def note_rows(_: nn.Module, arguments: tuple) -> None:
        inputs = arguments[2].flatten(0, 1)
        real = inputs != decoder.embed.padding_idx
        order = real.sum(dim=1).sort(descending=True, stable=True).indices
        by_step = real[order].T.nonzero()[:, 1]  # words step after step, as the embedding's dropout sees them
        decoder.dropout.rows = [order[by_step], real.nonzero()[:, 0]]  # and then row after row, before the logits

    trainer.network.register_forward_pre_hook(note_rows)


def decoupled_decay(trainer: Trainer) -> None:
    """AdamW with a decay of 0.05 in place of Adam with a small L2 penalty."""
    trainer.optimizer.optimizer = torch.optim.AdamW(trainer.model.parameters(), weight_decay=0.05, fused=True)


def averaged(trainer: Trainer) -> None:
    """Validate (and so choose) with an exponential average of the weights over the steps of about an epoch (EMA)."""
    decay = 1 - 1 / len(trainer.loader)
    average = AveragedModel(trainer.model, multi_avg_fn=get_ema_multi_avg_fn(decay))
    trainer.optimizer.optimizer.register_step_post_hook(lambda *_: average.update_parameters(trainer.model))
    validate = trainer.validate

    def with_average() -> dict[str, float]:
        own = {name: value.clone() for name, value in trainer.model.state_dict().items()}
        trainer.model.load_state_dict(average.module.state_dict())
        scores = validate()
        trainer.model.load_state_dict(own)
        return scores

    trainer.validate = with_average  # type: ignore[method-assign]


def mixup(trainer: Trainer) -> Any:
    """Frames of two clips mixed by λ ~ Beta(0.3, 0.3), and so the losses of their captions (Zhang et al. 2018)."""
    rng = np.random.default_rng(trainer.settings.seed)

    def loss(network: nn.Module, batch: Any, pad: int, smoothing: float, *rest: Any, **named: Any) -> Tensor:
        order = torch.from_numpy(rng.permutation(len(batch.features)))
        share = float(rng.beta(0.3, 0.3))
        share = max(share, 1 - share)
        both = (batch.frame_mask & batch.frame_mask[order])[:, :, None]  # a frame without a partner stays as it is
        mixed = torch.where(both, share * batch.features + (1 - share) * batch.features[order], batch.features)
        own = batch._replace(features=mixed)
        others = own._replace(captions=batch.captions[order])
        first = fast.fast_loss(network, own, pad, smoothing, *rest, **named)
        return share * first + (1 - share) * fast.fast_loss(network, others, pad, smoothing, *rest, **named)

    return mock.patch.object(objective, "fast_loss", loss)


CHANGES: dict[str, Callable[[Trainer], Any]] = {
    "weights averaged over an epoch (EMA)": averaged,
    "captions weighted, weights averaged": averaged,
    "decoupled weight decay, 0.05 (AdamW)": decoupled_decay,
    "variational dropout": locked_dropout,
    "layer norm in the decoder": layer_norm,
    "mixup of features": mixup,
}


def main() -> None:
    """Train what has no result yet in data/<corpus>/tricks.json, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--data", type=Path, default=Config().data)
    parser.add_argument("--rows", nargs="*", default=[*dict.fromkeys([*SWITCHES, *CHANGES])])
    options = parser.parse_args()
    config = replace(Config(), corpus=options.corpus, data=options.data)
    data = load_data(load_corpus(config), config.artifacts, config.extract)
    path = config.artifacts / "tricks.json"
    results: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    plain = fast.SharedLinear
    shared = mock.patch.object(fast, "SharedLinear", lambda x: x if isinstance(x, NormedLinear) else plain(x))
    for seed in range(options.seeds):
        for row in options.rows:
            if (key := f"{row}, {options.epochs} epochs, seed {seed}") in results:
                continue
            changes = {"epochs": options.epochs, "scst_epochs": 0, "seed": seed, **SWITCHES.get(row, {})}
            with ExitStack() as undo:
                undo.enter_context(shared)
                run = config.artifacts / "runs" / "tricks" / key.replace(", ", "-").replace(" ", "-")
                settings = replace(config, train=replace(config.train, **changes))
                trainer = Trainer(run, settings, data, References, progress=False)
                if row in CHANGES and (patch := CHANGES[row](trainer)):
                    undo.enter_context(patch)
                history = trainer.fit()
            results[key] = max(history, key=lambda epoch: epoch["val_CIDEr"])
            path.write_text(json.dumps(results, indent=1))
            print(
                key,
                f"{100 * results[key]['val_CIDEr']:.1f}",
                [round(100 * e["val_CIDEr"], 1) for e in history],
                flush=True,
            )
    print(f"| {options.epochs} epochs, {options.seeds} seeds, greedy | BLEU-4 | CIDEr | loss |\n|---|---|---|---|")
    for row in options.rows:
        best = [results[f"{row}, {options.epochs} epochs, seed {seed}"] for seed in range(options.seeds)]
        cells = []
        for name, factor in (("val_Bleu_4", 100), ("val_CIDEr", 100), ("val_loss", 1)):
            values = [factor * epoch[name] for epoch in best]
            digits = 1 if factor == 100 else 2
            sd = statistics.stdev(values) if len(values) > 1 else 0.0
            cells.append(f"{statistics.mean(values):.{digits}f} ± {sd:.{digits}f}")
        print(f"| {row} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
