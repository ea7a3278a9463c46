"""Ablations: one part taken away per row, several seeds, nothing trained twice."""

import json

import pytest

from vcutils.runtime.checkpoints import run_config
from vcutils.scores.ablations import VARIANTS, ablate, ablation_table
from vcutils.train import Trainer


@pytest.fixture
def trained(monkeypatch):
    """Names of the runs that were trained."""
    names, fit = [], Trainer.fit

    def count(trainer):
        names.append(trainer.record.run.name)
        return fit(trainer)

    monkeypatch.setattr(Trainer, "fit", count)
    return names


def test_every_variant_is_trained_with_every_seed_and_never_again(toy_data, toy_config, tmp_path, trained):
    config, runs = toy_config(epochs=2), tmp_path / "data" / "runs"
    result = ablate(config, toy_data, runs, seeds=(3, 4), progress=False)
    assert len(trained) == len(set(trained)) == 2 * len(VARIANTS)
    assert [row["variant"] for row in result["rows"]] == [
        "full model",
        "greedy search instead of beam",
        *list(VARIANTS)[1:],
    ]
    assert all(row["CIDEr"]["sd"] is not None for row in result["rows"])
    assert result["protocol"]["seeds"] == [3, 4] and result["protocol"]["split"] == "val"
    assert json.loads((tmp_path / "data" / "ablations.json").read_text()) == result
    settings = run_config(runs / "ablation-mean-pool-4")
    assert (settings["model"]["attention"], settings["model"]["encoder"], settings["train"]["seed"]) == (
        "uniform", "none", 4,
    )  # fmt: skip
    assert ablate(config, toy_data, runs, seeds=(3, 4), progress=False) == result
    assert len(trained) == 2 * len(VARIANTS), "finished runs must not be trained again"
    ablate(toy_config(epochs=3), toy_data, runs, seeds=(3,), progress=False)
    assert len(trained) == 3 * len(VARIANTS), "runs with other settings must be"


def test_table_shows_what_a_row_loses():
    def row(name, bleu, cider, sd=None):
        return {"variant": name, "Bleu_4": {"mean": bleu, "sd": sd}, "CIDEr": {"mean": cider, "sd": sd}}

    table = ablation_table({"rows": [row("full", 0.5, 1.0, 0.02), row("less", 0.4, 0.75)]})
    assert table.splitlines()[2:] == [
        "| full | 50.0 ± 2.0 | 100.0 ± 2.0 | +0.0 |",
        "| less | 40.0 | 75.0 | -25.0 |",
    ]
