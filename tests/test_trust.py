"""Checks of attention: each must pass on a model that deserves it, and fail on one that does not."""

import dataclasses
import json

import numpy as np
import pytest
import torch

from vcutils.attention import checks as trust
from vcutils.attention.measures import need
from vcutils.config import UserError
from vcutils.decode import Hypothesis
from vcutils.runtime.checkpoints import run_config
from vcutils.scores.coco import References
from vcutils.scores.runs import Run, load_model
from vcutils.train import Trainer
from vcutils.vocab import build_vocabulary, tokenize


@pytest.fixture
def toy_run(toy_data, toy_config, tmp_path):
    """Function: a trained run on `toy_data`, by seed and model switches."""

    def make(name="a", seed=0, epochs=12, matching=0.0, **model):
        config = toy_config(epochs=epochs, seed=seed, matching=matching)
        config = dataclasses.replace(config, model=dataclasses.replace(config.model, **model))
        folder = tmp_path / "toy" / "runs" / name
        Trainer(folder, config, toy_data, References, progress=False).fit()
        trained, vocabulary, _ = load_model(folder / "best")
        return Run(folder, run_config(folder), trained, vocabulary, toy_data, {})

    return make


@pytest.fixture
def captions(toy_data):
    """Function: what a run says of the toy test clips."""
    return lambda run: run.predict(toy_data.splits["test"])


def test_said_again_a_caption_has_the_attention_and_probability_it_was_found_with(toy_run, captions):
    run = toy_run()
    for video_id, hypothesis in captions(run).items():
        features = run.data.store[video_id]
        log_probs, rows = trust.teacher_forced(run.model, run.vocabulary, [features, features[:2]], hypothesis.words)
        np.testing.assert_allclose(log_probs[0], hypothesis.word_log_probs, atol=1e-4)
        np.testing.assert_allclose(rows[0], hypothesis.attention, atol=1e-5)
        assert rows[1].shape == (len(hypothesis.words), 2)


def test_unknown_words_can_be_read_aloud(toy_run):
    run = toy_run()
    features = run.data.store[run.data.splits["test"][0]]
    log_probs, rows = trust.teacher_forced(run.model, run.vocabulary, [features], ["a", "zyzzyva"])
    assert log_probs.shape == (1, 2) and np.isfinite(log_probs).all()
    assert rows[0].shape == (2, len(features))


class Reader(torch.nn.Module):
    """Says the word of one frame for sure when it sees that frame, and looks wherever it is told to."""

    def __init__(self, key, looks_at):
        super().__init__()
        self.key, self.looks_at = key, looks_at
        self.anchor = torch.nn.Parameter(torch.zeros(1))

    def forward(self, features, mask, inputs):
        clips, length = features.shape[0], inputs.shape[2]
        sees = ((features[:, :, 0] == self.key) & mask).any(dim=1)
        logits = torch.where(sees, 5.0, 0.0)[:, None, None, None] * torch.ones(clips, 1, length, 12)
        logits = logits * (torch.arange(12) == 4)
        return logits, torch.full((clips, 1, length, features.shape[1]), 1 / features.shape[1])


def reader_run(key, toy_data, vocabulary):
    return Run(toy_data.root, {}, Reader(key, None), vocabulary, toy_data, {})


@pytest.mark.parametrize("looks_at_key, sign", [(True, 1), (False, -1)])
def test_deletion_tells_attention_that_matters_from_attention_that_does_not(toy_data, vocabulary, looks_at_key, sign):
    video_id, frames = "c03", 6
    features = np.arange(frames * 8, dtype=np.float32).reshape(frames, 8)
    toy_data = dataclasses.replace(toy_data, store={video_id: features})
    attention = np.full((1, frames), 0.1, np.float32)
    attention[0, 2 if looks_at_key else 4] = 0.5
    attention[0, 4 if looks_at_key else 2] = 0.0
    hypothesis = Hypothesis([vocabulary.words[4]], -1.0, -1.0, np.array([-1.0]), attention, None)
    (drop,) = trust.deletion(
        reader_run(features[2, 0], toy_data, vocabulary), {video_id: hypothesis}, share=1 / 6, draws=60
    )
    assert np.sign(drop.attended - drop.random) == sign or (not looks_at_key and drop.attended == 0)
    assert (drop.attended > 1) == looks_at_key and (drop.least > 1) == (not looks_at_key)
    assert 0 < drop.random < max(drop.attended, drop.least), "chance hits the frame that matters now and then"


def test_need_is_what_a_pass_without_the_frame_loses(toy_run, captions):
    run = toy_run()
    video_id, hypothesis = next((i, h) for i, h in captions(run).items() if len(run.data.store[i]) > 3)
    features, words = run.data.store[video_id], [*hypothesis.words, "<end>"]
    for window, gap in ((1, [2]), (2, [2, 3]), (3, [1, 2, 3])):
        (result, short) = need(run.model, run.vocabulary, features, [words, words[:1]], window)
        versions = [features, np.delete(features, gap, axis=0)]
        log_probs, _ = trust.teacher_forced(run.model, run.vocabulary, versions, words)
        np.testing.assert_allclose(result.need[:, 2], log_probs[0] - log_probs[1], atol=1e-4)
        np.testing.assert_allclose(short.need, result.need[:1], atol=1e-4)
        for row, others, probabilities, needs in zip(words, *result[1:], strict=True):
            assert list(probabilities) == sorted(probabilities, reverse=True) and len(set(others)) == 5
            if row in others:
                at = others.index(row)
                np.testing.assert_allclose(needs[at], result.need[words.index(row)], atol=1e-4)
        assert "<end>" not in result.others[0], "no caption is empty"
    with pytest.raises(ValueError, match="cannot do without"):
        need(run.model, run.vocabulary, features[:3], [words], 3)


@pytest.mark.parametrize("looks_at, sign", [(2, 1), (4, -1)])
def test_table_tells_attention_that_is_needed_from_attention_that_is_not(toy_data, vocabulary, looks_at, sign):
    features = np.arange(48, dtype=np.float32).reshape(6, 8)
    run = reader_run(features[2, 0], dataclasses.replace(toy_data, store={"c03": features}), vocabulary)
    attention = np.linspace(0.3, 0.1, 6)[None].astype(np.float32)
    attention[0, looks_at], attention[0, 6 - looks_at] = 0.6, 0.0
    hypothesis = Hypothesis([vocabulary.words[4]], -1.0, -1.0, np.array([-1.0]), attention, None)
    ((_, correlation, largest),) = trust.looked_and_needed(run, {"c03": hypothesis})
    assert np.sign(correlation) == sign and largest > 1
    assert trust._looked_and_needed(run, {"c03": hypothesis})[1].startswith("+-"[sign < 0])
    flat = dataclasses.replace(hypothesis, attention=np.full((1, 6), 1 / 6, np.float32))
    assert trust._looked_and_needed(run, {"c03": flat})[1] == "–"


def test_deletion_hides_a_share_and_never_everything(toy_run, captions, monkeypatch):
    run, lengths = toy_run(), []
    inner = trust.teacher_forced

    def count(model, vocabulary, features, words):
        lengths.append([len(f) for f in features])
        return inner(model, vocabulary, features, words)

    monkeypatch.setattr(trust, "teacher_forced", count)
    drops = trust.deletion(run, captions(run), share=0.9, draws=2)
    words = [len(h.words) for h in captions(run).values()]
    assert len(drops) == sum(words) and len(lengths) == len(words)
    assert [rest for _, *rest in lengths] == [[1] * 4 * count for count in words]
    trust.deletion(run, captions(run), share=0.01, draws=2)
    again = zip(lengths[len(words) :], words, strict=True)
    assert all(rest == [full - 1] * 4 * count for (full, *rest), count in again)


def test_interval_holds_the_mean_and_is_wider_when_words_of_a_clip_agree():
    rng = np.random.default_rng(0)
    clips = np.repeat([f"c{n}" for n in range(20)], 10)
    alone = rng.normal(1, 1, 200)
    together = np.repeat(rng.normal(1, 1, 20), 10)
    mean, low, high = trust.mean_with_interval(alone, clips)
    assert low < mean < high and mean == pytest.approx(alone.mean())
    assert high - low == pytest.approx(2 * 1.96 / np.sqrt(200), rel=0.35)
    mean, low, high = trust.mean_with_interval(together, clips)
    assert high - low == pytest.approx(2 * 1.96 / np.sqrt(20), rel=0.35)
    assert trust.mean_with_interval([2.0], ["one"]) == (2.0, 2.0, 2.0)


def test_seed_agreement_is_one_with_oneself_and_less_with_another(toy_run, captions):
    run, other = toy_run("a"), toy_run("b", seed=5)
    hypotheses = captions(run)
    clips, same = zip(*trust.agreement(run, run, hypotheses), strict=True)
    assert set(clips) <= set(hypotheses) and np.allclose(same, 1, atol=1e-4)
    values = [value for _, value in trust.agreement(run, other, hypotheses)]
    assert len(values) == len(same) and -1 <= min(values) and np.mean(values) < 0.999


def test_table_names_every_check_and_what_is_missing(toy_run, tmp_path):
    run = toy_run("lonely")
    rows = {row["check"]: row for row in trust.check(run)}
    assert list(rows) == [
        "sums", "pointing", "splices, all words", "splices, content words",
        "deletion against random", "deletion against least attended", "looked at and needed",
        "uniform attention", "frames shuffled", "seed agreement", "entropy",
    ]  # fmt: skip
    assert rows["pointing"]["result"] == rows["seed agreement"]["result"] == "–"
    assert "events.json" in rows["pointing"]["reads"] and "--seeds 2" in rows["seed agreement"]["reads"]
    assert rows["splices, content words"]["result"] == "–", "each word stands in a quarter of these training clips"
    assert 0 <= float(rows["entropy"]["result"]) <= 1
    assert rows["uniform attention"]["chance"] == rows["frames shuffled"]["chance"]
    assert trust.check(run) == list(rows.values()), "one seed, one table"


def test_two_seeds_that_look_at_all_frames_alike_have_no_agreement_to_measure(toy_run):
    run = toy_run("uniform-0", attention="uniform")
    toy_run("uniform-1", seed=1, attention="uniform")
    row = next(row for row in trust.check(run) if row["check"] == "seed agreement")
    assert row["result"] == "–" and "uniform-1" in row["reads"] and "weigh all frames alike" in row["reads"]


def test_pointing_measures_words_of_people_where_the_model_says_none(toy_run, toy_data, monkeypatch):
    run = toy_run("pointing")

    def blind(run, ids, decode):
        rows = {i: np.full((2, len(toy_data.store[i])), 1 / len(toy_data.store[i]), np.float32) for i in ids}
        return {i: Hypothesis(["a", "cat"], -1.0, -1.0, np.full(2, -0.5), row, None) for i, row in rows.items()}

    monkeypatch.setattr(Run, "predict", blind)
    times = {i: {"timestamps": [float(t) for t in range(len(toy_data.store[i]))]} for i in toy_data.captions}
    monkeypatch.setattr(Run, "manifest", times)
    intervals = [("thing", ["cat"], 0.0, 2.0), ("thing", ["there"], 2.0, 9.0), ("change", ["now"], 2.0, 9.0)]
    known = [{"kind": k, "words": words, "start": start, "end": end} for k, words, start, end in intervals]
    events = {i: {"duration": 9.0, "events": known} for i in toy_data.captions}
    (toy_data.root / "events.json").write_text(json.dumps(events))
    rows = {row["check"]: row for row in trust.check(run) if row["check"].startswith("pointing")}
    assert list(rows) == ["pointing, thing words", "pointing, change words"]
    assert "(4 words)" in rows["pointing, thing words"]["reads"], "one in each of the four clips"
    assert "(4 words of human captions" in rows["pointing, change words"]["reads"]
    mass, chance = rows["pointing, thing words"]["result"].split("mass ")[1], rows["pointing, thing words"]["chance"]
    assert float(mass) == pytest.approx(float(chance), abs=0.011), "blind attention is at chance"
    monkeypatch.setattr(Run, "manifest", {})
    row = next(row for row in trust.check(run) if row["check"] == "pointing")
    assert row["result"] == "–" and "no times of its frames" in row["reads"], "frame numbers are no seconds"


class Matcher(torch.nn.Module):
    """Looks at the frames whose first number is the largest word id of the caption, or at all frames alike."""

    def __init__(self, uniform):
        super().__init__()
        self.uniform, self.anchor = uniform, torch.nn.Parameter(torch.zeros(1))

    def forward(self, features, mask, inputs):
        right = mask[:, None] & (self.uniform | (features[:, None, :, 0] == inputs.max(dim=2).values[:, :, None]))
        weights = right / right.sum(dim=2, keepdim=True).clamp(min=1)  # (S, K, T)
        return None, weights[:, :, None].expand(-1, -1, inputs.shape[2], -1)


@pytest.fixture
def matcher_run(toy_data):
    """Function: a run on nine clips of one to nine frames; of each caption the last word names its clip alone."""
    ids = [f"c{n}" for n in range(9)]
    captions = {i: [f"a man is w{i}", f"there is a man who is w{i}"] for i in ids}
    vocabulary = build_vocabulary(captions, ids, 1)
    store = {i: np.full((n + 1, 8), vocabulary.index[f"w{i}"], np.float32) for n, i in enumerate(ids)}
    splits = {"train": ids, "val": ids, "test": ids[:1]}
    data = dataclasses.replace(toy_data, store=store, captions=captions, splits=splits, vocabulary=vocabulary)
    return lambda uniform: Run(data.root, {"decode": {}}, Matcher(uniform), vocabulary, data, {})


def test_splices_are_read_from_the_own_clip_by_a_model_that_looks_there(matcher_run):
    groundings = trust.spliced(matcher_run(False), "val")
    assert len({g.video_id for g in groundings}) == 9 and len(groundings) > 600 * 4
    assert all(g.hit and g.mass == pytest.approx(1) and 0 < g.chance < 1 for g in groundings)
    assert {g.word for g in groundings if g.kind == "content"} == {f"wc{n}" for n in range(9)}, "idf ln 9 = 2.2"
    (_, all_words, chance, _), (_, content, _, reads) = trust._splices(matcher_run(False), "val")
    assert all_words == content == "100.0% [100%, 100%], mass 1.00 [1.00, 1.00]" and 0.3 < float(chance) < 0.5
    assert f"({sum(g.kind == 'content' for g in groundings)} words)" in reads


def test_uniform_attention_reads_splices_at_chance(matcher_run):
    groundings = trust.spliced(matcher_run(True), "val")
    assert all(g.mass == pytest.approx(g.chance, abs=1e-6) for g in groundings)
    assert np.mean([g.hit for g in groundings]) == pytest.approx(np.mean([g.chance for g in groundings]), abs=0.06)
    again = trust.spliced(matcher_run(True), "val")
    assert again == groundings, "one seed, one table"
    assert trust.spliced(matcher_run(True), "val", seed=1) != groundings


def test_a_clip_alone_cannot_be_joined(matcher_run):
    run = matcher_run(True)
    data = dataclasses.replace(run.data, splits={**run.data.splits, "val": (run.data.splits["val"] * 8)[:65]})
    left_over = trust.spliced(dataclasses.replace(run, data=data), "val", captions=65)
    assert left_over and all(g.chance < 1 for g in left_over), "the 65th has a batch of its own"
    assert trust.spliced(matcher_run(True), "test") == []
    assert [row[1] for row in trust._splices(matcher_run(True), "test")] == ["–", "–"]


def test_a_splices_words_have_the_attention_of_the_joined_features(toy_run):
    """The batched form against one caption at a time, on both orders of two clips."""
    run = toy_run("splices")
    first, second = run.data.splits["test"][:2]
    pair = dataclasses.replace(run.data, splits={**run.data.splits, "test": [first, second]})
    groundings = trust.spliced(dataclasses.replace(run, data=pair), "test", captions=40)
    features, expected = run.data.store, {}
    for own, other in ((first, second), (second, first)):
        for caption in run.data.captions[own]:
            words, count = tokenize(caption), len(features[own])
            both = [np.concatenate([features[i] for i in order]) for order in ((own, other), (other, own))]
            _, (before, behind) = trust.teacher_forced(run.model, run.vocabulary, both, words)
            masses = zip(before[:, :count].sum(axis=1), behind[:, -count:].sum(axis=1), strict=True)
            for word, either in zip(words, masses, strict=True):
                expected.setdefault((own, word if word in run.vocabulary.index else "<unk>"), []).extend(either)
    assert {(g.video_id, g.word) for g in groundings} <= set(expected) and len(groundings) > 100
    for g in groundings:
        assert np.abs(np.array(expected[g.video_id, g.word]) - g.mass).min() < 1e-4
        assert g.chance == pytest.approx(len(features[g.video_id]) / sum(len(features[i]) for i in (first, second)))


def test_matching_makes_the_attention_of_a_toy_find_its_clip(toy_run):
    taught = toy_run("taught", attention="matched", epochs=60, matching=1.0)
    plain = toy_run("plain", attention="matched", epochs=60)
    after_noun = ("there", "and", "now")  # the query of these words has read what the clip shows
    masses = [
        np.mean([g.mass for g in trust.spliced(run, "train", captions=100) if g.word in after_noun])
        for run in (plain, taught)
    ]
    assert masses[1] > masses[0] + 0.15, masses
    assert trust.check(taught), "every check runs with every attention"


def test_weights_that_do_not_sum_to_one_are_refused(toy_run, monkeypatch):
    run, predict = toy_run("sums"), Run.predict

    def doubled(*args):
        return {i: dataclasses.replace(h, attention=2 * h.attention) for i, h in predict(*args).items()}

    monkeypatch.setattr(Run, "predict", doubled)
    with pytest.raises(UserError, match="do not sum to 1"):
        trust.check(run)
