"""Captions become words, and words become numbers.

The vocabulary is counted on the training split alone: a word that only test captions use is unknown
to the model, and pretending otherwise would be looking at the answers.
"""

import json
import operator
import re
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache
from itertools import takewhile
from pathlib import Path

from vcutils.config import UserError
from vcutils.runtime.files import read_json, reading, write_text

SPECIALS = ("<pad>", "<start>", "<end>", "<unk>")
PAD, START, END, UNK = range(4)


@cache
def _tokenizer():
    """What nltk's word_tokenize uses inside; unlike that function, it needs no downloaded data."""
    from nltk.tokenize import NLTKWordTokenizer

    return NLTKWordTokenizer()


def tokenize(caption: str) -> list[str]:
    """Lower-cased words of a caption in any language: contractions split, punctuation dropped.

    `A man's dog doesn't stop.` -> `a man 's dog does n't stop`, by the Treebank rules.
    """
    # Treebank rules part a full stop from its word only at the very end of a text.
    sentences = re.split(r"(?<=[^\W\d_]{2}[.!?])\s+", caption.lower())
    words = (word for sentence in sentences for word in _tokenizer().tokenize(sentence))
    # One copy of each word in memory, however many captions hold it.
    return [sys.intern(word) for word in words if any(c.isalnum() for c in word)]


_cached_tokenize = lru_cache(100_000)(tokenize)  # training reads every caption many times


@dataclass(frozen=True)
class Vocabulary:
    """Words in index order; `<pad>` is 0, then `<start>`, `<end>`, `<unk>`."""

    words: tuple[str, ...]
    counts: tuple[int, ...]  # occurrences in the training split; 0 for the four special words

    def __post_init__(self) -> None:
        is_whole = len(self.index) == len(self.words) == len(self.counts)
        if self.words[:4] != SPECIALS or not is_whole:
            start = " ".join(SPECIALS)
            raise UserError(f"must be {start}, then other words once each, with a count per word")

    def __len__(self) -> int:
        return len(self.words)

    @cached_property
    def index(self) -> dict[str, int]:
        """Word -> number."""
        return {word: i for i, word in enumerate(self.words)}

    def encode(self, caption: str, max_length: int | None = None) -> list[int]:
        """`<start>` words `<end>` as indices; unknown words become `<unk>`, long ones are cut."""
        words = _cached_tokenize(caption)[:max_length]
        return [START, *(self.index.get(word, UNK) for word in words), END]

    def decode(self, ids: Iterable[int]) -> list[str]:
        """Words of indices up to `<end>`, without the other special words but `<unk>`."""
        words = takewhile(lambda i: i != END, ids)
        return [self.words[i] for i in words if i not in (PAD, START)]

    def save(self, path: Path) -> None:
        """Write as JSON: words in index order with their counts."""
        content = {"words": self.words, "counts": self.counts}
        write_text(path, json.dumps(content, ensure_ascii=False, indent=0))

    @classmethod
    def load(cls, path: Path) -> "Vocabulary":
        """Read what save wrote. Raises UserError for anything else."""
        if not path.is_file():
            hint = "run notebook 02 or `python -m vcutils vocab CORPUS`"
            raise UserError(f"{path}: no vocabulary; {hint}")
        with reading(path, "not a vocabulary", "build it again"):
            data = read_json(path)
            "".join(data["words"]).encode()  # nothing but text, and text that can be written
            return cls(tuple(data["words"]), tuple(map(operator.index, data["counts"])))


def build_vocabulary(
    captions: Mapping[str, Sequence[str]], train_ids: Iterable[str], min_count: int | None = None
) -> Vocabulary:
    """Words of the training clips that occur at least `min_count` times, most frequent first.

    None means once per power of ten of captions: twice in 420, four times in 48,774. Raises
    UserError when no word is that frequent.
    """
    texts = [caption for i in train_ids for caption in captions[i]]
    if min_count is None:
        min_count = max(1, len(str(len(texts))) - 1)
    counter = Counter(word for caption in texts for word in tokenize(caption))
    frequent = [(word, count) for word, count in counter.items() if count >= min_count]
    frequent.sort(key=lambda item: (-item[1], item[0]))  # of equals the first in the alphabet
    if not frequent:
        reason = f"none of their {len(counter)} words occurs {min_count} times"
        raise UserError(f"training captions: {reason}; lower min_count, or mend the captions")
    words, counts = zip(*frequent, strict=True)
    return Vocabulary((*SPECIALS, *words), (0, 0, 0, 0, *counts))


def oov_rate(
    vocabulary: Vocabulary, captions: Mapping[str, Sequence[str]], ids: Iterable[str]
) -> float:
    """Share of the words of these clips' captions that the vocabulary does not know."""
    words = [word for i in ids for caption in captions[i] for word in tokenize(caption)]
    return sum(word not in vocabulary.index for word in words) / max(1, len(words))
