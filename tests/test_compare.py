"""Several runs side by side: paired intervals, a verdict, and what models say together."""

import dataclasses
import json

import numpy as np
import pytest
import torch

from vcutils.attention.checks import teacher_forced
from vcutils.config import DecodeConfig, UserError
from vcutils.decode import Hypothesis, generate, predict
from vcutils.scores.compare import AGREED, TOGETHER, Ensemble, agreed, compare, comparison_table, difference, together
from vcutils.scores.runs import Run
from vcutils.vocab import END, SPECIALS, Vocabulary

BEAM = DecodeConfig(beam_size=2, max_length=6)


@pytest.fixture
def make_run(toy_data, small_model, tmp_path):
    """Function: a run on `toy_data` whose model was never trained."""

    def make(name, seed=0, vocabulary=toy_data.vocabulary, **switches):
        model = small_model(seed, 3.0, feature_dim=8, vocab_size=len(vocabulary), **switches)
        config = {"features": str(toy_data.store.folder), "train": {"seed": seed}}
        return Run(tmp_path / "data" / "runs" / name, config, model, vocabulary, toy_data, {})

    return make


def test_a_sure_gain_is_called_better_and_a_doubtful_one_is_not():
    better = difference(np.array([0.1, 0.2, 0.3, 0.2]), "new", "old")
    assert better["CIDEr"] == pytest.approx(0.2) and 0.1 <= better["interval"][0] < 0.2 < better["interval"][1] <= 0.3
    assert better["verdict"] == "new is better than old"
    assert difference(np.array([-0.1, -0.2, -0.3]), "new", "old")["verdict"] == "new is worse than old"
    doubtful = difference(np.array([1.0, -0.9, 0.8, -0.8]), "new", "old")
    assert doubtful["interval"][0] < 0 < doubtful["interval"][1] and "cannot be told apart" in doubtful["verdict"]


def test_interval_is_that_of_the_mean_over_clips():
    gains = np.random.default_rng(1).normal(0.3, 1.0, 400)
    low, high = difference(gains, "new", "old")["interval"]
    assert high - low == pytest.approx(2 * 1.96 * gains.std() / 20, rel=0.1)


def test_run_compared_with_its_twin_gains_nothing_and_together_they_say_the_same(make_run):
    one, twin = make_run("one"), make_run("twin")
    result = compare([one, twin], "test", BEAM)
    assert list(result["scores"]) == ["one", "twin", TOGETHER, AGREED]
    assert list(result["differences"]) == ["twin", TOGETHER, AGREED]
    for row in [result["differences"][name] for name in ("twin", TOGETHER)]:
        assert row["CIDEr"] == 0 and row["interval"] == [0, 0] and "cannot be told apart" in row["verdict"]
    assert result["scores"]["one"] == result["scores"][TOGETHER] and result["ensemble"] is None
    assert result["protocol"]["beam"] == 2 and "constant caption" in result["baselines"]
    written = one.folder.parent.parent / "comparison_test.json"
    assert json.loads(written.read_text()) == json.loads(json.dumps(result))
    assert result["seeds"]["mean"] == result["scores"]["one"] and result["seeds"]["sd"]["CIDEr"] == 0
    table = comparison_table(result)
    assert (
        table.count("cannot be told apart") >= 2
        and "mean of the runs" in table
        and "one reference against the others" in table
    )


def test_gain_is_the_difference_of_the_scores(make_run):
    runs = [make_run("one", 1), make_run("other", 2)]
    result = compare(runs, "test", BEAM)
    ciders = [result["scores"][run.folder.name]["CIDEr"] for run in runs]
    assert ciders[0] != ciders[1], "else this test tests nothing"
    assert result["differences"]["other"]["CIDEr"] == pytest.approx(ciders[1] - ciders[0])


def test_together_a_words_probability_is_the_mean_of_theirs(make_run, random_clips):
    models = [make_run("a", 1).model, make_run("b", 2, decoder_dim=12, attention_dim=5).model]
    features, mask = random_clips([4, 2], feature_dim=8)
    inputs = torch.tensor([[[1, 5, 6]], [[1, 4, 7]]])
    with torch.no_grad():
        (logits, weights), *parts = (m(features, mask, inputs) for m in (Ensemble(models), *models))
    mean = torch.stack([part[0].softmax(-1) for part in parts]).mean(0)
    torch.testing.assert_close(logits.softmax(-1), mean)
    torch.testing.assert_close(weights, torch.stack([part[1] for part in parts]).mean(0))


def test_together_beams_carry_the_probabilities_they_have(make_run, random_clips):
    """Clips leave the search one after the other, and each model must keep its own."""
    ensemble = together([make_run("a", 1), make_run("b", 2), make_run("c", 3)])
    for model in ensemble.model.models:
        torch.nn.init.constant_(model.decoder.output.bias[END : END + 1], 2.0)
    features, mask = random_clips([5, 3, 1, 4, 2, 6], feature_dim=8)
    found = generate(ensemble.model, ensemble.vocabulary, features, mask, DecodeConfig(3, max_length=6))
    assert len({len(clip[0].words) for clip in found}) > 1, "else no clip leaves before another"
    for row, count, clip in zip(features, mask.sum(1).tolist(), found, strict=True):
        for h in clip:
            frames = row[:count].numpy()
            (log_probs,), (rows,) = teacher_forced(ensemble.model, ensemble.vocabulary, [frames], h.words)
            np.testing.assert_allclose(log_probs, h.word_log_probs, atol=1e-4)
            np.testing.assert_allclose(rows, h.attention, atol=1e-5)


def test_most_agreed_is_the_caption_that_is_most_like_the_others():
    """By CIDEr, in which words of every clip weigh nothing."""

    def beams(*captions):
        best, *others = (Hypothesis(c.split(), -1.0, -1.0, np.zeros(1), np.zeros((1, 1)), None) for c in captions)
        best.others = others
        return best

    first = {"a": beams("a plane", "a man sings a song"), "b": beams("a dog runs fast", "a dog runs")}
    second = {"a": beams("a man sings", "a man sings a song"), "b": beams("the end", "a dog runs")}
    assert agreed([first, second]) == {"a": "a man sings a song", "b": "a dog runs"}


def test_runs_that_cannot_speak_together_are_compared_all_the_same(make_run, toy_data):
    words = toy_data.vocabulary.words[4:-1]
    fewer = Vocabulary((*SPECIALS, *words), (0,) * 4 + (1,) * len(words))
    result = compare([make_run("one"), make_run("other", 1, fewer)], "val", BEAM)
    assert list(result["scores"]) == ["one", "other", AGREED] and "the same vocabulary" in result["ensemble"]
    assert "the same vocabulary" in comparison_table(result)
    with pytest.raises(UserError, match="the same frames"):
        together([make_run("one"), make_run("few", max_frames=2)])


def test_runs_of_other_clips_and_one_run_twice_are_refused(make_run, toy_data):
    one, other = make_run("one"), make_run("other")
    with pytest.raises(UserError, match="name each run once"):
        compare([one, one], "test", BEAM)
    splits = toy_data.splits | {"test": toy_data.splits["test"][1:]}
    moved = dataclasses.replace(other, data=dataclasses.replace(toy_data, splits=splits))
    with pytest.raises(UserError, match="not of the same test clips"):
        compare([one, moved], "test", BEAM)


def test_the_rest_of_the_beam_comes_with_the_chosen_caption(make_run):
    run = make_run("one")
    ids = run.data.splits["test"]
    for h in predict(run.model, run.vocabulary, run.data.store, ids, DecodeConfig(3, max_length=6)).values():
        assert 1 <= len(h.others) <= 2 and all(not other.others for other in h.others)
