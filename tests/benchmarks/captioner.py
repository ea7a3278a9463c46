"""Make the captioner that ships with vcutils (vcutils/captioner/) of a run that was trained and evaluated on features.

make captioner RUN=data/vtt-features/runs/default CLIPS=/path/to/vtt-mini

CLIPS is a corpus with video files of some of the run's validation clips: on them the number of frames is chosen, and
the features are compared with those that the run was trained on. Nothing is chosen on test clips.
"""

import sys
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from vcutils.config import ExtractConfig, UserError
from vcutils.corpora import open_corpus, open_run
from vcutils.dataset import pad_frames
from vcutils.decode import captions_of, generate
from vcutils.runtime.checkpoints import load_weights, save_model
from vcutils.runtime.extraction import features_of_clips
from vcutils.runtime.files import read_json, write_text
from vcutils.scores.coco import References, score_per_clip
from vcutils.scores.report import score_table
from vcutils.scores.runs import CAPTIONER, Run, load_model
from vcutils.video import frame_indices

COUNTS = (
    2,
    4,
    6,
    8,
    12,
    16,
)  # frames per clip to choose from; the clips of vtt-mini have no more than 16 different ones
BAD = 0.6  # captions are called unsure where their mean CIDEr is this share of the CIDEr of all


def read_clips(run: Run, root: Path) -> dict[str, np.ndarray]:
    """Features (T, D) of video files of validation clips, T the most of `COUNTS`; `vtt5` of vtt-mini is `video5`."""
    clips = {i.replace("vtt", "video"): path for i, path in open_corpus(root).clips.items()}
    if not (known := {i: path for i, path in clips.items() if i in run.data.splits["val"]}):
        raise UserError(f"{root}: no video file of a validation clip of {run.folder}")
    made = features_of_clips(run.backbone, known.items(), ExtractConfig(num_frames=max(COUNTS)))
    return {i: features.numpy() for i, _, features in made}


def score_by_frames(run: Run, clips: dict[str, np.ndarray]) -> dict[int, float]:
    """CIDEr × 100 of the captions of clips, by how many frames of each the model is shown."""
    scorer, scores = References({i: run.data.captions[i] for i in clips}), {}
    for count in COUNTS:
        shown = [features[frame_indices(len(features), count)] for features in clips.values()]
        beams = generate(run.model, run.vocabulary, *pad_frames(shown), run.decode)
        captions = {i: hypotheses[0].caption for i, hypotheses in zip(clips, beams, strict=True)}
        scores[count] = 100 * (scorer.score(captions, ("CIDEr",))["CIDEr"] or 0.0)
    return scores


def likeness(run: Run, clips: dict[str, np.ndarray]) -> float:
    """Mean cosine of the features that the run was trained on with those of the most similar frame read here."""
    cosines: list[float] = []
    for i, features in clips.items():
        pair = (run.data.store[i].astype(np.float32), features)
        trained, ours = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in pair)
        cosines += (trained @ ours.T).max(axis=1).tolist()
    return float(np.mean(cosines))


def unsure_below(run: Run) -> tuple[float, dict[str, Any]]:
    """The mean word probability below which captions of the validation split are bad, and what was measured there.

    The highest threshold under which their mean CIDEr is `BAD` times that of all.
    """
    ids = list(run.data.splits["val"])
    references, hypotheses = {i: run.data.captions[i] for i in ids}, run.predict(ids)
    scores = score_per_clip(captions_of(hypotheses), references, ("CIDEr",))
    cider = 100 * np.array([scores[i]["CIDEr"] for i in ids], float)
    sureness = np.array([run.sureness(hypotheses[i])["mean_word_prob"] for i in ids])
    order = np.argsort(sureness)
    means = np.cumsum(cider[order]) / np.arange(1, len(ids) + 1)
    last = int(np.flatnonzero(means <= BAD * cider.mean())[-1])
    threshold = round(float(sureness[order[last : last + 2]].mean()), 4)
    low = sureness < threshold
    about: dict[str, Any] = {"share": low.mean(), "low": cider[low].mean(), "rest": cider[~low].mean()}
    about["correlation"] = np.corrcoef(sureness, cider)[0, 1]
    commonest, count = Counter(captions_of(hypotheses).values()).most_common(1)[0]
    return threshold, about | {"commonest": commonest, "often": count / len(ids)}


def build(run: Run, num_frames: int, threshold: float) -> int:
    """Write config, vocabulary and float16 weights; how many validation captions they change."""
    weights, vocabulary, about = load_model(run.folder / "best")
    backbone, extract = run.backbone, replace(run.extract, num_frames=num_frames)
    about["extracted"] = {"backbone": backbone.name, "weights": backbone.weights, "num_frames": num_frames}
    about |= {"extract": asdict(extract), "decode": asdict(run.decode), "unsure_below": threshold}
    save_model(CAPTIONER, weights.half(), about, vocabulary)
    before = captions_of(run.predict(run.data.splits["val"]))
    load_weights(run.model, weights.state_dict(), CAPTIONER)
    after = captions_of(run.predict(run.data.splits["val"]))
    return sum(before[i] != after[i] for i in before)


CARD = """# Model card: the captioner that ships with vcutils

It captions real clips of everyday things: `python -m vcutils caption clip.mp4`. It is the course's own model, an LSTM
with attention over frames, {parameters:.1f} million weights, {megabytes:.1f} MB in float16; it computes in float32.

## What it was trained on

- MSR-VTT: {train:,} clips with {captions:,} captions to learn from, {val} to choose by, {test} to test. None of them is
  part of this package.
- `{features}` features, ImageNet weights `{weights}`, each frame squeezed whole to 224 × 224;
  {frames} real frames a clip. Features made anew from video files of {clips} of the
  clips are the same but for the files' compression: mean cosine {cosine:.3f}.
- Recipe: vcutils' default, seed {seed}, {epochs} epochs and {rewarded} self-critical ones, which reward the model's own
  captions with their CIDEr; the weights are those of epoch {best}, the best by validation CIDEr.

## How good it is

Test split, {test} clips, {references:g} references each, PTB tokenizer, beam {beam}, one seed. COCO caption protocol,
× 100. The test split was looked at once for this captioner, and once for the one before it.

```
{table}
```

The four lines below it are a floor (the best constant caption), the caption of the nearest training clip, the model on
other clips' features, and one person's caption against the others'. {nearest}

## How a clip is read

{num_frames} frames, spread evenly over the clip, through the same network and the same resizing as in training. The
number was chosen on video files of {clips} validation clips, which have 6 to 16 different frames. CIDEr × 100 there,
beam {beam}: {by_frames}.

## When it is unsure

A caption is called **unsure** where the mean probability of its words (their geometric mean) is below {threshold}.
The limit is the highest below which validation captions reach {bad:.0%} of the CIDEr of all: {low:.1f} below it,
which are {share:.0%} of the {val} clips, {rest:.1f} above. This is a weak sign (correlation with CIDEr
{correlation:.2f}): many captions that are not called unsure are wrong.

## Limits

- It knows {words:,} English words, and the world of MSR-VTT: people who talk, cook, sing, play; sports, cars, cartoons,
  games. What it has not seen there it calls by the nearest thing it knows.
- It says one sentence about the whole clip. It reads no text, hears nothing, and knows no names.
- It says few different words ({vocabulary} in its {test} test captions, where people say {people} in as many), and
  {copied:.0%} of those captions stand in the training split word for word.
- It falls back on common sentences: "{commonest}" for {often:.0%} of the validation clips.
- Its attention is close to uniform on such clips: do not take it as an explanation (docs/results.md).
- Captions repeat what people wrote, with their biases, such as who is called a man or a woman.
- Float16 changed {changed} of the {val} validation captions.

## Licence

The code is MIT. The data is for research only: MSR-VTT's captions and clips, whose rights stay with their makers. Use
these weights for research and teaching.

Made by `make captioner`: tests/benchmarks/captioner.py says how.
"""


def card(run: Run, clips: dict[str, np.ndarray], scores: dict[int, float], about: dict[str, Any]) -> str:
    """MODEL_CARD.md of what was measured."""
    metrics, config = read_json(run.folder / "metrics_test.json"), read_json(CAPTIONER / "config.json")
    log = (run.folder / "log.csv").read_text("utf-8").splitlines()
    rows = [dict(zip(log[0].split(","), line.split(","), strict=True)) for line in log[1:]]
    lead = metrics["scores"]["CIDEr"] - metrics["baselines"]["nearest training clip"]["CIDEr"]
    splits, frames = run.data.splits, [len(run.data.store[i]) for i in run.data.splits["train"]]
    return CARD.format(
        **about,
        **config["extracted"],
        **{name: len(ids) for name, ids in splits.items()},
        parameters=sum(p.numel() for p in run.model.parameters()) / 1e6,
        megabytes=(CAPTIONER / "model.safetensors").stat().st_size / 1e6,
        captions=sum(len(run.data.captions[i]) for i in splits["train"]),
        features=config["features"],
        frames=f"{min(frames)} to {max(frames)} ({np.mean(frames):.1f} on average)",
        clips=len(clips),
        cosine=likeness(run, clips),
        seed=run.config["train"]["seed"],
        epochs=run.config["train"]["epochs"],
        rewarded=run.config["train"]["scst_epochs"],
        best=max(rows, key=lambda row: float(row["val_CIDEr"]))["epoch"],
        references=metrics["protocol"]["references per clip"]["mean"],
        beam=metrics["protocol"]["beam"],
        table=score_table(metrics, "this captioner"),
        nearest=f"In CIDEr the nearest clip is {'ahead' if lead < 0 else 'behind'}.",
        bad=BAD,
        by_frames=", ".join(f"{score:.1f} with {count}" for count, score in scores.items()),
        threshold=config["unsure_below"],
        words=len(run.vocabulary),
        vocabulary=metrics["diagnostics"]["this model"]["vocabulary"],
        people=metrics["diagnostics"]["one reference"]["vocabulary"],
        copied=metrics["diagnostics"]["this model"]["copied"],
    )


def main(folder: Path, root: Path) -> None:
    """Choose the frames and the limit on validation clips, write the captioner and its card."""
    run = open_run(folder)
    clips = read_clips(run, root)
    scores = score_by_frames(run, clips)
    threshold, about = unsure_below(run)
    num_frames = max(scores, key=scores.__getitem__)
    about["changed"] = build(run, num_frames, threshold)
    write_text(CAPTIONER / "MODEL_CARD.md", card(run, clips, scores, about))
    print(f"{CAPTIONER}: {num_frames} frames, unsure below {threshold}; {about}")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
