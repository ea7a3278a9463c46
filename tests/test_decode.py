"""Captions out of the model: greedy and beam search against searches written by hand."""

import itertools

import numpy as np
import pytest
import torch

from vcutils.config import DecodeConfig
from vcutils.dataset import Batch, pad_frames
from vcutils.decode import beam_search, captions_of, generate, greedy_search, predict
from vcutils.model import caption_loss
from vcutils.vocab import END, PAD, SPECIALS, START, UNK, Vocabulary


@torch.no_grad()
def greedy(model, vocabulary, features, max_length):
    """One clip, one word at a time: words, log-probability, attention rows (<end>'s included), ended."""
    memory = model.encode(features[None], torch.ones(1, len(features), dtype=torch.bool))
    state, word, words, total, rows = model.decoder.start(memory, 1), START, [], 0.0, []
    while len(words) < max_length:
        state, logits, weights = model.decoder.step(torch.tensor([[word]]), state, memory)
        scores = logits[0, 0].log_softmax(-1)
        allowed = scores.clone()
        allowed[[PAD, START, UNK] + ([END] if not words else [])] = -torch.inf
        word = int(allowed.argmax())
        total += float(scores[word])
        rows.append(weights[0, 0].numpy())
        if word == END:
            return words, total, np.stack(rows), True
        words.append(vocabulary.words[word])
    return words, total, np.stack(rows), False


@torch.no_grad()
def log_prob_of(model, vocabulary, features, hypothesis):
    """Log-probabilities and attention of a hypothesis by teacher forcing it through model.forward."""
    ids = [START, *(vocabulary.index[w] for w in hypothesis.words)]
    targets = ids[1:] + ([END] if hypothesis.end_attention is not None else [])
    inputs = torch.tensor(ids[: len(targets)])[None, None]
    logits, weights = model(features[None], torch.ones(1, len(features), dtype=torch.bool), inputs)
    return logits[0, 0].log_softmax(-1)[range(len(targets)), targets].numpy(), weights[0, 0].numpy()


@pytest.fixture
def clips(random_clips):
    return random_clips([7, 1, 4, 6, 2, 5])


@pytest.fixture
def decided(small_model):
    """Function: a model with opinions, whose wish to end is `end`."""

    def build(end=0.0, **kwargs):
        model = small_model(**{"sharpness": 4.0, **kwargs})
        with torch.no_grad():
            model.decoder.output.bias[END] += end
        return model

    return build


def lengths(mask):
    return mask.sum(1).tolist()


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("end", [-1.0, 1.0])
def test_beam_of_one_is_greedy_search(decided, vocabulary, clips, seed, end):
    model, (features, mask) = decided(end, seed=seed), clips
    found = generate(model, vocabulary, features, mask, DecodeConfig(beam_size=1, max_length=8))
    assert len(found) == 6
    for row, count, hypotheses in zip(features, lengths(mask), found, strict=True):
        words, total, attention, ended = greedy(model, vocabulary, row[:count], 8)
        (hypothesis,) = hypotheses
        assert hypothesis.words == words and hypothesis.caption == " ".join(words)
        assert hypothesis.log_prob == pytest.approx(total, abs=1e-4)
        assert np.allclose(hypothesis.attention, attention[: len(words)], atol=1e-5)
        assert (hypothesis.end_attention is not None) == ended
        if ended:
            assert np.allclose(hypothesis.end_attention, attention[-1], atol=1e-5)


def test_the_models_of_these_tests_end_sometimes_and_sometimes_not(decided, vocabulary, clips):
    ended = [
        h[0].end_attention is not None
        for seed, end in itertools.product(range(4), (-1.0, 1.0))
        for h in generate(decided(end, seed=seed), vocabulary, *clips, DecodeConfig(max_length=8))
    ]
    assert 4 < sum(ended) < len(ended) - 4


@pytest.mark.parametrize("attention", ["additive", "matched"])
@pytest.mark.parametrize("beam_size", [1, 3, 5])
def test_batch_equals_one_by_one(decided, vocabulary, clips, beam_size, attention):
    model, (features, mask) = decided(0.5, seed=2, attention=attention), clips
    config = DecodeConfig(beam_size=beam_size, max_length=7)
    together = generate(model, vocabulary, features, mask, config)
    for row, count, hypotheses in zip(features, lengths(mask), together, strict=True):
        (alone,) = generate(model, vocabulary, row[None, :count], torch.ones(1, count, dtype=torch.bool), config)
        assert [h.words for h in hypotheses] == [h.words for h in alone]
        for one, other in zip(hypotheses, alone, strict=True):
            assert one.log_prob == pytest.approx(other.log_prob, abs=1e-4)
            assert np.allclose(one.attention, other.attention, atol=1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_every_beam_carries_its_own_words_probabilities_and_attention(decided, vocabulary, clips, seed):
    """Beams change places at every step; state, words, scores and attention must move together."""
    model, (features, mask) = decided(0.5, seed=seed), clips
    found = generate(model, vocabulary, features, mask, DecodeConfig(beam_size=5, max_length=7))
    for row, count, hypotheses in zip(features, lengths(mask), found, strict=True):
        assert len({tuple(h.words) for h in hypotheses}) == len(hypotheses) == 5, "the same caption twice"
        for hypothesis in hypotheses:
            log_probs, weights = log_prob_of(model, vocabulary, row[:count], hypothesis)
            size = len(hypothesis.words)
            assert hypothesis.log_prob == pytest.approx(log_probs.sum(), abs=1e-4)
            assert np.allclose(hypothesis.word_log_probs, log_probs[:size], atol=1e-4)
            assert np.allclose(hypothesis.attention, weights[:size], atol=1e-5)
            if hypothesis.end_attention is not None:
                assert np.allclose(hypothesis.end_attention, weights[size], atol=1e-5)


def test_one_attention_row_per_word_over_real_frames_and_the_end_apart(decided, vocabulary, clips):
    features, mask = clips
    found = generate(decided(3.0), vocabulary, features, mask, DecodeConfig(beam_size=3, max_length=6))
    for count, hypotheses in zip(lengths(mask), found, strict=True):
        for h in hypotheses:
            assert h.attention.shape == (len(h.words), count) and len(h.word_log_probs) == len(h.words)
            assert np.allclose(h.attention.sum(1), 1, atol=1e-5)
            assert h.end_attention is None or h.end_attention.shape == (count,)
    assert any(h.end_attention is not None for hypotheses in found for h in hypotheses)


@pytest.mark.parametrize("penalty", [0.0, 1.0])
@pytest.mark.parametrize("seed", range(3))
def test_beam_as_wide_as_everything_finds_what_exhaustive_search_finds(small_model, random_clips, seed, penalty):
    vocabulary = Vocabulary((*SPECIALS, "x", "y", "z"), (0, 0, 0, 0, 3, 2, 1))
    model = small_model(seed=seed, sharpness=3.0, vocab_size=7)
    features, mask = random_clips([4, 3])
    found = generate(model, vocabulary, features, mask, DecodeConfig(64, max_length=3, length_penalty=penalty))
    for row, count, hypotheses in zip(features, lengths(mask), found, strict=True):
        everything = {}
        for size in (1, 2, 3):
            for ids in itertools.product((4, 5, 6), repeat=size):
                targets = [*ids, END] if size < 3 else list(ids)  # three words reach max_length
                inputs = torch.tensor([START, *targets[:-1]])[None, None]
                with torch.no_grad():
                    logits, _ = model(row[None, :count], torch.ones(1, count, dtype=torch.bool), inputs)
                total = float(logits[0, 0].log_softmax(-1)[range(len(targets)), targets].sum())
                words = tuple(vocabulary.words[i] for i in ids)
                everything[words] = (size < 3, total / len(targets) ** penalty, total)
        assert {tuple(h.words) for h in hypotheses} == set(everything) and len(hypotheses) == 39
        for h in hypotheses:
            ended, score, total = everything[tuple(h.words)]
            assert (h.end_attention is not None) == ended
            assert h.score == pytest.approx(score, abs=1e-4) and h.log_prob == pytest.approx(total, abs=1e-4)
        best = max(everything.items(), key=lambda item: item[1][:2])
        assert tuple(hypotheses[0].words) == best[0]


def test_hypotheses_are_ranked_ended_first_then_by_score(decided, vocabulary, clips):
    for hypotheses in generate(decided(0.5), vocabulary, *clips, DecodeConfig(beam_size=5, max_length=4)):
        keys = [(h.end_attention is not None, h.score) for h in hypotheses]
        assert keys == sorted(keys, reverse=True)
        assert all(
            h.score == pytest.approx(h.log_prob / (len(h.words) + e))
            for h, (e, _) in zip(hypotheses, keys, strict=True)
        )


def test_wide_beam_finds_what_greedy_misses(decided, vocabulary, clips):
    """Not true of every clip (a beam may prune), but a search that never gains is no search."""
    features, mask = clips
    gains = []
    for seed in range(12):
        model = decided(1.0, seed=seed, sharpness=3.0)
        one, five = (
            generate(model, vocabulary, features, mask, DecodeConfig(k, max_length=6, length_penalty=0)) for k in (1, 8)
        )
        pairs = [(a[0], b[0]) for a, b in zip(one, five, strict=True)]
        gains += [
            b.log_prob - a.log_prob for a, b in pairs if a.end_attention is not None and b.end_attention is not None
        ]
    assert np.mean(gains) > 0.01 and np.median(gains) >= -1e-5


def test_length_penalty_prefers_longer_captions(decided, vocabulary, clips):
    model = decided(1.0, sharpness=2.0)
    short, long = (
        np.mean([len(h[0].words) for h in generate(model, vocabulary, *clips, DecodeConfig(5, 10, length_penalty=p))])
        for p in (0.0, 2.0)
    )
    assert short < long


@pytest.mark.parametrize("beam_size", [1, 4, 30])
def test_caption_that_never_ends_is_cut_and_given(decided, vocabulary, clips, beam_size):
    for hypotheses in generate(decided(-1e4), vocabulary, *clips, DecodeConfig(beam_size, max_length=5)):
        assert 1 <= len(hypotheses) <= beam_size
        assert all(len(h.words) == 5 and h.end_attention is None and np.isfinite(h.log_prob) for h in hypotheses)


@pytest.mark.parametrize("beam_size", [1, 4, 30])
def test_caption_that_ends_at_once_has_one_word(decided, vocabulary, clips, beam_size):
    for hypotheses in generate(decided(1e3), vocabulary, *clips, DecodeConfig(beam_size, max_length=5)):
        assert len(hypotheses[0].words) == 1 and hypotheses[0].end_attention is not None


@pytest.mark.parametrize("beam_size", [1, 4])
def test_special_words_are_never_said(decided, vocabulary, clips, beam_size):
    model = decided()
    with torch.no_grad():
        model.decoder.output.bias[[PAD, START, UNK]] += 100
    for hypotheses in generate(model, vocabulary, *clips, DecodeConfig(beam_size, max_length=5)):
        assert hypotheses and not {w for h in hypotheses for w in h.words} & set(SPECIALS)


@pytest.mark.parametrize("max_length", [1, 2])
def test_max_length_is_kept(decided, vocabulary, clips, max_length):
    for beam_size in (1, 3):
        for hypotheses in generate(decided(-1), vocabulary, *clips, DecodeConfig(beam_size, max_length)):
            assert hypotheses and all(1 <= len(h.words) <= max_length for h in hypotheses)


def repeats(words, size):
    grams = [tuple(words[i : i + size]) for i in range(len(words) - size + 1)]
    return len(grams) != len(set(grams))


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("beam_size", [1, 4])
def test_blocked_ngrams_are_not_repeated(decided, vocabulary, clips, beam_size, size):
    model = decided(-1e4, seed=1)  # nothing ends, so that every caption rambles
    plain = generate(model, vocabulary, *clips, DecodeConfig(beam_size, max_length=8))
    assert any(repeats(h[0].words, size) for h in plain), "else this test tests nothing"
    blocked = generate(model, vocabulary, *clips, DecodeConfig(beam_size, max_length=8, no_repeat_ngram=size))
    assert all(hypotheses for hypotheses in blocked)
    assert not any(repeats(h.words, size) for hypotheses in blocked for h in hypotheses)


def test_blocking_forbids_repeats_only(decided, vocabulary, clips):
    """Captions that repeat nothing must come out of greedy search as before (a beam may take a blocked one's place)."""
    model = decided(3.0)
    plain = generate(model, vocabulary, *clips, DecodeConfig(beam_size=1, max_length=6))
    blocked = generate(model, vocabulary, *clips, DecodeConfig(beam_size=1, max_length=6, no_repeat_ngram=2))
    same = [(p[0].words, b[0].words) for p, b in zip(plain, blocked, strict=True) if not repeats(p[0].words, 2)]
    assert same and all(p == b for p, b in same)


def test_running_out_of_words_ends_the_caption(decided, vocabulary, clips):
    """Eight words that may be said once each: after them only <end> is left."""
    for hypotheses in generate(decided(-5), vocabulary, *clips, DecodeConfig(3, max_length=20, no_repeat_ngram=1)):
        assert hypotheses and all(len(h.words) <= 8 and h.end_attention is not None for h in hypotheses)


def test_model_keeps_its_mode_and_dropout_is_off(decided, vocabulary, clips):
    model = decided(dropout=0.5).train()
    one, other = (generate(model, vocabulary, *clips, DecodeConfig(max_length=6)) for _ in range(2))
    assert model.training
    assert [h[0].log_prob for h in one] == [h[0].log_prob for h in other]


def test_predict_gives_every_clip_its_best_hypothesis(decided, vocabulary, monkeypatch):
    monkeypatch.setattr("vcutils.decode.CLIPS_AT_ONCE", 2)
    clips = {i: torch.randn(n, 5, generator=torch.Generator().manual_seed(n)).numpy() for n, i in enumerate("abc", 2)}
    model, config = decided(), DecodeConfig(max_length=5)
    hypotheses = predict(model, vocabulary, clips, ["c", "a", "b"], config)
    assert list(hypotheses) == ["c", "a", "b"]
    for i, features in clips.items():
        ((best, *_),) = generate(model, vocabulary, *pad_frames([features]), config)
        assert hypotheses[i].words == best.words and np.allclose(hypotheses[i].attention, best.attention, atol=1e-5)
    assert captions_of(hypotheses) == {i: " ".join(h.words) for i, h in hypotheses.items()}
    swapped = predict(model, vocabulary, clips, ["a", "b"], config, sources=["b", "a"])
    assert swapped["a"].words == hypotheses["b"].words and swapped["b"].words == hypotheses["a"].words


def test_a_good_long_caption_is_not_cut_off_by_poor_short_ones(decided, vocabulary, random_clips):
    """A sure model's beam fills with endings that are all worse than the caption still being written."""
    features, mask = random_clips([6])
    model = decided(sharpness=1.0)
    said = [vocabulary.index[w] for w in ("a", "dog", "runs", "and", "sits")]
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-2)
    batch = Batch(["long"], features, mask, torch.tensor([[[START, *said, END]]]))
    for _ in range(60):
        optimizer.zero_grad()
        caption_loss(model(features, mask, batch.inputs)[0], batch.targets).backward()
        optimizer.step()
    for beam_size in (1, 3, 8):
        assert (
            generate(model, vocabulary, features, mask, DecodeConfig(beam_size))[0][0].caption == "a dog runs and sits"
        )


@pytest.mark.parametrize("end", [-1.0, 0.5, 2.0])
@pytest.mark.parametrize("beam_size", [1, 2, 5])
def test_lessons_searches_and_the_batched_one_say_the_same(decided, vocabulary, clips, end, beam_size):
    model, (features, mask) = decided(end, seed=3), clips
    config = DecodeConfig(beam_size, max_length=7)
    for row, count, hypotheses in zip(
        features, lengths(mask), generate(model, vocabulary, *clips, config), strict=True
    ):
        words = [vocabulary.index[word] for word in hypotheses[0].words]
        assert beam_search(model, row[:count], beam_size, 7) == words
        if beam_size == 1:
            assert greedy_search(model, row[:count], 7) == words
