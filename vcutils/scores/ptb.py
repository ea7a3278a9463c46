r"""Words as the COCO caption evaluation counts them: Penn Treebank tokens, lower-cased, without punctuation.

The COCO toolkit (Chen et al. 2015, section 3.2) runs the Stanford PTBTokenizer 3.4.1, a Java program, and then drops a
list of punctuation marks. A word more or less moves every score, so this module gives the same words in Python, found
by some hundred thousand probes of the Java tool and compared with it in tests/test_coco.py.

How it works: at each position every rule of ptb.lex is tried. The rule with the longest match wins; of equals,
the earlier one. Group 1 of the match becomes a word. What follows group 1 is context: it counts for the length of the
match, and is read again as the start of the next word.
"""

import re
import unicodedata
from collections import defaultdict
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from itertools import zip_longest

# What the COCO toolkit drops after tokenization. The tool lower-cases its own bracket names, so of "(" and "[" nothing
# is dropped: they stay as the words -lrb-, -lsb-, ... in everybody's published scores.
_PUNCTUATION = frozenset("'' ' `` ` . ? ! , : - -- ... ;".split())

_SYMBOLS = re.compile(
    "[¡¥-©¬®-´¶-¹¿×÷·։\u2016\u2017\u201a\u201e-\u2023\u2030-\u2038\u203b\u203e-\u2042\u2070-\u208e₤\u2100-\u214f⅕-⅞"
    "\u2190-\u2bff\u3001\u3002\u3012\u30fb\uff01-\uff0f\uff1a-\uff20\uff3b-\uff40\uff5b-\uff65]"
)
_ALIKE = dict(zip("\t\n\x92\x91‛—―\x96\x97\x93\x94‑", "  ’‘‘––––““‐", strict=True))


@cache
def _stand_in(char: str) -> str:
    r"""A character that stands for all of its class, so that the rules need to know some twenty characters only.

    É upper-case letter · é other letter · \u0301 accent · ٠ digit · § symbol · \0 nothing (dropped, but parts words).
    """
    category = unicodedata.category(char)
    if char in _ALIKE:
        return _ALIKE[char]
    if category == "Zs":
        return " "
    if char.isascii():
        return char if char.isprintable() else "\0"
    if ord(char) > 0xFFFF:  # the tool reads emoji and other late characters as nothing
        return "\0"
    if char in "’‘–‐¼½¾⅓⅔¢£¤€₠\x80⁄«»“”‹›…\x85":
        return char
    if category.startswith("L"):
        return "É" if category in ("Lu", "Lt") else "é"
    if category == "Nd":  # codespell:ignore nd
        return "٠"
    if category in ("Mn", "Mc", "Sk") and 0x2C2 <= ord(char) < (0x386 if category == "Sk" else 0xF00):
        return "\u0301"
    return "§" if _SYMBOLS.match(char) else "\0"


def _read_rules() -> list[tuple[re.Pattern[str], list[tuple[str, str]]]]:
    """The rules of ptb.lex in their order: (pattern, what is written in place of what)."""
    text = files("vcutils.scores").joinpath("ptb.lex").read_text(encoding="utf-8")
    parts: dict[str, str] = {}
    written: dict[str, list[tuple[str, str]]] = defaultdict(list)
    rules = []
    for line in re.sub(r"^(#.*)?\n|\n +", "", text, flags=re.MULTILINE).strip().split("\n"):
        name, pattern = line.split(maxsplit=1)
        pattern = re.sub("{([A-Z_]+)}", lambda part: parts[part[1]], pattern)
        if name.isupper():
            parts[name] = pattern
        elif name == ">":
            kind, pattern, *texts = pattern.split()
            written[kind].append((pattern, "".join(texts)))
        else:
            rules.append((re.compile(pattern), written[name]))
    return rules


_RULES = _read_rules()

# The common case, taken first for speed: a word, or a mark, that nothing around it can change.
_PLAIN = re.compile(
    "(?!(?i:cannot|gonna|gotta|lemme|gimme|wanna)[^A-Za-z])([A-Za-z]+)(?=[,;:?!]?[ \n])|[,;:?!]?[ \n]|\\.[ \n](?!\\.)"
)


def ptb_words(caption: str, following: str = "") -> list[str]:
    """The words of a caption as the COCO protocol counts them.

    The Java tool reads a file with a caption a line, and in two cases looks at the line that follows, here `following`:
    at "plan b." before a line that begins with "A", and at "no." before one that begins with a digit.
    """
    caption = caption.replace("&apos;", "'").replace("\xad", "")  # a soft hyphen is not part of a word
    text = "\n".join("".join(map(_stand_in, part)) for part in (caption, following[:24]))  # no other \n is in it
    words: list[str] = []
    position = 0
    while position < len(caption):
        if plain := _PLAIN.match(text, position):
            words.append((plain[1] or "").lower())
            position = plain.end()
            continue
        longest = 0
        for rule, rule_replacements in _RULES:
            match = rule.match(text, position)
            if match and match.end() > longest:
                longest, word_end, replacements = match.end(), match.end(1), rule_replacements
        word = re.sub("[ \t\xa0]", "\xa0", caption[position:word_end].lower())
        for pattern, written in replacements:
            word = re.sub(pattern, written, word)
        words.append(word)
        position = word_end
    return [word for word in words if word and word not in _PUNCTUATION]


def ptb_words_of_all(captions: Sequence[str]) -> list[list[str]]:
    """The words of captions that the toolkit would put into one file, in this order."""
    return [ptb_words(a, b) for a, b in zip_longest(captions, captions[1:], fillvalue="")]
