"""What is each part worth? The same training with one part taken away, over several seeds."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from vcutils.config import Config
from vcutils.dataset import CaptionData
from vcutils.decode import captions_of, predict
from vcutils.runtime.files import write_text
from vcutils.scores.coco import References, Scores
from vcutils.scores.report import min_mean_max, over_seeds
from vcutils.scores.runs import load_model
from vcutils.train import Trainer

VARIANTS: dict[str, dict[str, Any]] = {
    "full model": {},
    "uniform attention": {"attention": "uniform"},
    "mean pool (uniform attention, no BiLSTM)": {"attention": "uniform", "encoder": "none"},
    "no BiLSTM": {"encoder": "none"},
    "frames shuffled": {"frame_order": "shuffled"},
    "4 frames": {"max_frames": 4},
    "1 frame": {"max_frames": 1},
}


def ablate(
    config: Config,
    data: CaptionData,
    runs: Path,
    seeds: Sequence[int] = (0,),
    split: str = "val",
    progress: bool = True,
) -> dict[str, Any]:
    """Train every variant with every seed and score it on `split`; writes ablations.json beside `runs`.

    Returns {"protocol", "rows"}; a row has the variant's name and, per score, mean and sd over the seeds (sd is None
    for one seed). Runs that are finished with the same settings are not trained again.
    """
    config, ids = data.suited(config), list(data.splits[split])
    scorer = References({i: list(data.captions[i]) for i in ids})
    scores: dict[str, list[Scores]] = {}  # of each row, one entry per seed
    for name, changes in VARIANTS.items():
        searches = {name: config.decode.beam_size}
        if not changes and config.decode.beam_size > 1:
            searches["greedy search instead of beam"] = 1
        for seed in seeds:
            folder = runs / f"ablation-{name.split(' (')[0].replace(' ', '-')}-{seed}"
            settings = replace(config, model=replace(config.model, **changes), train=replace(config.train, seed=seed))
            trainer = Trainer(folder, settings, data, References, resume="auto", progress=progress)
            if not trainer.record.finished:
                trainer.fit()
            model, vocabulary, _ = load_model(folder / "best")
            for row, beam in searches.items():
                decode = replace(config.decode, beam_size=beam)
                captions = captions_of(predict(model, vocabulary, data.store, ids, decode))
                scores.setdefault(row, []).append(scorer.score(captions, ("Bleu", "CIDEr")))
    rows = []
    for row, by_seed in scores.items():
        both = over_seeds(by_seed)
        rows.append({"variant": row} | {n: {k: both[k][n] for k in ("mean", "sd")} for n in ("Bleu_4", "CIDEr")})
    result = {
        "protocol": {
            "corpus": data.root.name, "split": split, "clips": len(ids), "seeds": list(seeds),
            "beam": config.decode.beam_size, "frames per clip": min_mean_max([len(data.store[i]) for i in ids]),
        },
        "rows": rows,
    }  # fmt: skip
    write_text(runs.parent / "ablations.json", json.dumps(result, indent=1))
    return result


def ablation_table(result: dict[str, Any]) -> str:
    """The rows as a Markdown table, × 100, with what each variant loses against the first row."""
    full = result["rows"][0]["CIDEr"]["mean"]
    lines = ["| × 100 | BLEU-4 | CIDEr | CIDEr against the full model |", "|---|---|---|---|"]
    for row in result["rows"]:
        scores = [row["Bleu_4"], row["CIDEr"]]
        cells = [f"{100 * s['mean']:.1f}" + ("" if s["sd"] is None else f" ± {100 * s['sd']:.1f}") for s in scores]
        cells += [f"{100 * (row['CIDEr']['mean'] - full):+.1f}"]
        lines.append(f"| {' | '.join([row['variant'], *cells])} |")
    return "\n".join(lines)
