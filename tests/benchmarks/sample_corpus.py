"""What the sample corpus is worth: can the default features tell its changes apart, and can a sentence win by itself?

python tests/benchmarks/sample_corpus.py                    the corpus alone, about a minute
python tests/benchmarks/sample_corpus.py RUN [RUN …]        and what trained runs name on its test split
"""

import sys
from collections import Counter
from pathlib import Path

import numpy as np
import torch

from vcutils.attention.measures import ground, grounding_table, read_events
from vcutils.corpora import open_run, sample
from vcutils.decode import captions_of
from vcutils.runtime.backbones import load_backbone
from vcutils.scores.baselines import constant_caption, human_line, training_captions
from vcutils.scores.coco import References
from vcutils.scores.naming import naming
from vcutils.scores.runs import Run

SCENES = 3  # of every thing under every change
FOLDS = 7


def scene_features() -> tuple[torch.Tensor, list[tuple[int, int]]]:
    """Features (N, 3, D) of a scene's first, middle and last frame, and the (thing, change) of each scene."""
    backbone = load_backbone("efficientnet_lite0")
    frames, shown = [], []
    for thing, photo in enumerate(sample.PHOTOS):
        for change, _ in enumerate(sample.CHANGES):
            for number in range(SCENES):
                rng = np.random.default_rng((thing, change, number))
                scene = sample.Scene(photo, sample.CHANGES[change], int(rng.integers(4, 9)))
                rendered = sample._frames(scene, sample._read_photo(photo.file), rng)
                frames += [backbone.resize(rendered[i][..., ::-1]) for i in (0, len(rendered) // 2, -1)]
                shown.append((thing, change))
    features = torch.cat([backbone(np.stack(frames[i : i + 32])) for i in range(0, len(frames), 32)])
    return features.float().unflatten(0, (-1, 3)), shown


def probe(features: torch.Tensor, shown: list[tuple[int, int]], changes: list[int]) -> dict[str, float]:
    """Share of scenes whose change a linear probe names, by change; it never saw the scene's thing under its change.

    Logistic regression on the differences of the features at a scene's start, middle and end.
    """
    rows = [i for i, (_, change) in enumerate(shown) if change in changes]
    inputs = torch.cat([features[rows, 1] - features[rows, 0], features[rows, 2] - features[rows, 1]], dim=1)
    inputs = (inputs - inputs.mean(0)) / (inputs.std(0) + 1e-3) / inputs.shape[1] ** 0.5
    things = torch.tensor([shown[i][0] for i in rows])
    labels = torch.tensor([changes.index(shown[i][1]) for i in rows])
    right = torch.zeros(len(rows))
    for fold in range(FOLDS):
        unseen = (things + labels) % FOLDS == fold
        layer = torch.nn.Linear(inputs.shape[1], len(changes))
        optimizer = torch.optim.LBFGS(layer.parameters(), max_iter=100, line_search_fn="strong_wolfe")

        def loss(layer: torch.nn.Linear = layer, seen: torch.Tensor = ~unseen) -> torch.Tensor:
            error = torch.nn.functional.cross_entropy(layer(inputs[seen]), labels[seen])
            return error + 1e-3 * layer.weight.square().sum()

        def closure(optimizer: torch.optim.Optimizer = optimizer) -> torch.Tensor:
            optimizer.zero_grad()
            value = loss()
            value.backward()
            return value

        optimizer.step(closure)
        right[unseen] = (layer(inputs[unseen]).argmax(1) == labels[unseen]).float()
    return {sample.CHANGES[c].name: float(right[labels == k].mean()) for k, c in enumerate(changes)}


def floor_and_human(run: Run) -> None:
    """Print the best constant caption's scores beside one reference against the others, test split."""
    references = {i: list(run.data.captions[i]) for i in run.data.splits["test"]}
    constant = constant_caption(training_captions(run.data))
    floor = References(references).score(dict.fromkeys(references, constant))
    captions, others = human_line(references)
    human = others.score(captions)
    for name, scores in (("one reference against the others", human), (f"constant: {constant}", floor)):
        shown = ", ".join(f"{key} {100 * value:.1f}" for key, value in scores.items() if value is not None)
        print(f"  {name}: {shown}")


def named_by(run: Run) -> str:
    """What a run's captions of the test split name, their commonest sentence form, and where their words look."""
    ids, known = run.data.splits["test"], read_events(run.data.root / "events.json")
    hypotheses = run.predict(ids, run.decode)
    captions = captions_of(hypotheses)
    shares = naming(captions, known)
    form, count = Counter(sample.form_of(caption) for caption in captions.values()).most_common(1)[0]
    pointing = grounding_table(ground(hypotheses, {i: run.timestamps(i) for i in ids}, known))
    return ", ".join(
        [f"{key} {shares[key]:.1%}" for key in ("things", "changes", "complete")]
        + [f"form {form} in {count / len(captions):.0%}"]
        + [f"pointing of {row['kind']}s {row['pointing']:.1%} (chance {row['chance']:.0%})" for row in pointing]
    )


if __name__ == "__main__":
    torch.manual_seed(0)
    named = probe(*scene_features(), list(range(len(sample.CHANGES))))
    print(f"a linear probe names the change of {np.mean(list(named.values())):.1%} of the scenes:", end=" ")
    print(", ".join(f"{name} {share:.0%}" for name, share in named.items()))
    for number, folder in enumerate(sys.argv[1:]):
        run = open_run(Path(folder))
        if number == 0:
            lengths = np.array([len(run.data.store[i]) for i in sorted(run.data.store.ids)])
            print(
                f"{len(lengths)} clips of {lengths.min()} to {lengths.max()} frames, {np.unique(lengths).size} lengths"
            )
            floor_and_human(run)
        print(f"{run.folder.name}, test split, beam {run.decode.beam_size}: {named_by(run)}")
