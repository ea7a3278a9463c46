"""Captions become numbers: what the model may say, and what it must not have seen."""

import json

import pytest

from vcutils.config import UserError
from vcutils.vocab import END, PAD, SPECIALS, START, UNK, Vocabulary, build_vocabulary, oov_rate, tokenize

CAPTIONS = {
    "a": ["A cat sits.", "the cat sits on the mat"],
    "b": ["a dog runs", "The dog, it runs!"],
    "test": ["a zebra zebra zebra", "a cat"],
}


@pytest.fixture
def words():
    return build_vocabulary(CAPTIONS, ["a", "b"], min_count=1)


def test_special_words_come_first():
    assert SPECIALS == ("<pad>", "<start>", "<end>", "<unk>")
    assert (PAD, START, END, UNK) == (0, 1, 2, 3)


def test_order_is_by_frequency_then_alphabet_and_counts_are_kept(words):
    assert words.words[:4] == SPECIALS and words.counts[:4] == (0, 0, 0, 0)
    assert words.words[4:6] == ("the", "a"), "three times, then twice and first in the alphabet"
    assert words.counts[4] == 3
    pairs = list(zip(words.counts[4:], words.words[4:], strict=True))
    assert pairs == sorted(pairs, key=lambda p: (-p[0], p[1]))


def test_only_the_training_split_is_counted(words):
    assert "zebra" not in words.words and "zebra" not in words.index


def test_min_count_drops_rarer_words():
    kept = build_vocabulary(CAPTIONS, ["a", "b"], min_count=2)
    assert set(kept.words[4:]) == {"the", "a", "cat", "sits", "dog", "runs"}
    with pytest.raises(UserError, match="lower min_count"):
        build_vocabulary(CAPTIONS, ["a", "b"], min_count=99)


def test_oov_rate_is_the_share_of_unknown_words(words):
    assert oov_rate(words, CAPTIONS, ["a", "b"]) == 0
    assert oov_rate(words, CAPTIONS, ["test"]) == pytest.approx(3 / 6)
    assert oov_rate(words, CAPTIONS, []) == 0


def test_tokens_are_lower_case_without_punctuation():
    assert tokenize('A man, "Bob", runs!') == ["a", "man", "bob", "runs"]
    assert tokenize("don't") == ["do", "n't"]
    assert tokenize("a 3-year-old's toy") == ["a", "3-year-old", "'s", "toy"]
    assert tokenize("  ...  ") == []


def test_tokenizer_needs_no_downloaded_data(monkeypatch):
    import nltk

    def refuse(*args, **kwargs):
        raise LookupError("no data on this machine")

    monkeypatch.setattr(nltk.data, "find", refuse)
    monkeypatch.setattr(nltk, "download", refuse)
    assert tokenize("a cat sits. a dog runs.") == ["a", "cat", "sits", "a", "dog", "runs"]


@pytest.mark.parametrize("caption", ["Кошка спит на ковре", "eine Straßenkatze fährt", "猫 が 寝る", "une élève naïve"])
def test_captions_of_other_languages_survive(caption, tmp_path):
    words = build_vocabulary({"a": [caption]}, ["a"], 1)
    assert len(words) == 4 + len(caption.split())
    words.save(tmp_path / "vocab.json")
    again = Vocabulary.load(tmp_path / "vocab.json")
    assert again.decode(again.encode(caption)) == caption.lower().split()


def test_encode_and_decode(words):
    ids = words.encode("A cat runs")
    assert ids[0] == START and ids[-1] == END and len(ids) == 5
    assert words.decode(ids) == ["a", "cat", "runs"]
    assert words.decode([*ids, 4, 5, PAD]) == ["a", "cat", "runs"], "nothing after <end>"


def test_unknown_words_become_unk(words):
    assert words.encode("a zebra") == [START, words.index["a"], UNK, END]
    assert words.decode(words.encode("a zebra")) == ["a", "<unk>"]


def test_special_words_cannot_be_typed(words):
    """A caption that contains '<end>' must not end the sentence for the model."""
    assert words.encode("a <end> cat <pad>")[1:-1].count(END) == 0
    assert PAD not in words.encode("<pad> cat")


def test_cut_caption_keeps_its_end(words):
    ids = words.encode("the cat sits on the mat", max_length=3)
    assert words.decode(ids) == ["the", "cat", "sits"]
    assert ids[-1] == END and len(ids) == 5


def test_round_trip(words, tmp_path):
    words.save(tmp_path / "vocab.json")
    again = Vocabulary.load(tmp_path / "vocab.json")
    assert again == words and again.index == words.index and len(again) == len(words)
    data = json.loads((tmp_path / "vocab.json").read_text(encoding="utf-8"))
    assert data["words"][:4] == list(SPECIALS) and len(data["words"]) == len(data["counts"])


def test_missing_vocabulary_says_how_to_make_it(tmp_path):
    with pytest.raises(UserError, match=r"vocab\.json.*run notebook 02"):
        Vocabulary.load(tmp_path / "vocab.json")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "{}",
        '{"words": ["a"], "counts": [1]}',
        '{"words": 3, "counts": 1}',
        '{"words": ["<pad>", "<start>", "<end>", "<unk>", "a"], "counts": [0]}',
    ],
)
def test_corrupt_vocabulary_is_named(tmp_path, text):
    path = tmp_path / "vocab.json"
    path.write_text(text)
    with pytest.raises(UserError, match=r"vocab\.json: not a vocabulary"):
        Vocabulary.load(path)
