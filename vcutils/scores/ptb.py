r"""Words as the COCO caption evaluation counts them: Penn Treebank tokens, lower-cased, without punctuation.

The COCO toolkit (Chen et al. 2015, section 3.2) runs the Stanford PTBTokenizer 3.4.1, a Java program, and then drops a
list of punctuation marks. A word more or less moves every score, so this module gives the same words in Python. It
was written from the Treebank's conventions and from what the Java tool answers to some hundred thousand probes, and
is compared with it in tests/test_metrics.py.

How it works: at each position every rule of the table below is tried. The rule with the longest match wins; of equals,
the earlier one. Group 1 of the match becomes a word. What follows group 1 is context: it counts for the length of the
match, and is read again as the start of the next word.
"""

import re
import unicodedata
from collections.abc import Mapping, Sequence
from itertools import zip_longest

# What the COCO toolkit drops after tokenization. The tool lower-cases its own bracket names, so of "(" and "[" nothing
# is dropped: they stay as the words -lrb-, -lsb-, ... in everybody's published scores.
_PUNCTUATION = frozenset("'' ' `` ` . ? ! , : - -- ... ;".split())

_SYMBOLS = re.compile(
    "[¡¥-©¬®-´¶-¹¿×÷·։\u2016\u2017\u201a\u201e-\u2023\u2030-\u2038\u203b\u203e-\u2042\u2070-\u208e₤\u2100-\u214f⅕-⅞"
    "\u2190-\u2bff\u3001\u3002\u3012\u30fb\uff01-\uff0f\uff1a-\uff20\uff3b-\uff40\uff5b-\uff65]"
)


class _StandIns(dict[int, str]):
    r"""Maps every character to a stand-in of its class, so that the rules need to know some twenty characters only.

    É upper-case letter · é other letter · \u0301 accent · ٠ digit · § symbol · \0 nothing (dropped, but parts words).
    """

    def __missing__(self, code: int) -> str:
        self[code] = _stand_in(chr(code))
        return self[code]


def _stand_in(char: str) -> str:
    category = unicodedata.category(char)
    if category == "Zs":
        return " "
    if char.isascii():
        return char if char.isprintable() else "\0"
    if ord(char) > 0xFFFF:  # the tool reads emoji and other late characters as nothing
        return "\0"
    if char in "’‘–‐¼½¾⅓⅔¢£¤€₠\x80⁄«»“”‹›…\x85":
        return char
    if category in ("Lu", "Lt", "Ll", "Lo", "Lm"):
        return "É" if category in ("Lu", "Lt") else "é"
    if category == "Nd":  # codespell:ignore nd
        return "٠"
    if category in ("Mn", "Mc", "Sk") and 0x2C2 <= ord(char) < (0x386 if category == "Sk" else 0xF00):
        return "\u0301"
    return "§" if _SYMBOLS.match(char) else "\0"


_STAND_INS = _StandIns(zip(map(ord, "\t\n\x92\x91‛—―\x96\x97\x93\x94‑"), "  ’‘‘––––““‐", strict=True))


def _any_case(words: str) -> str:
    return "(?i:" + "|".join(words.split()) + ")"


# Abbreviations that keep their period. Found by asking the tool about 710,000 words, each in three cases and contexts.
_ABBREVIATIONS = _any_case(
    "adj adm adv alex assoc asst attys? ave brig capt cf cie cmdr col comdr cpl dept det drs? elec ens ft gen govs? "
    "hon insp invt jos lieut lt maj messrs mlle mme mr mrs ms msgr mt natl pfc ph "
    "pres profs? pvt reps? rev sens? sfc sgt spc st ste supt treas vs wm"  # codespell:ignore pres
)
_AT_SENTENCE_END = _any_case(  # those that often end a sentence
    "ala? apr ariz assn aug bancorp bhd bldg blvd bros calif cos? colo conn corp ct dak dec esq est etc ext feb fla "
    "fri ga inc ind intl jan jr jul jun kans? ky ltd mar md mich minn mo mon mont neb nev nov oct okla penn plc rd "
    "rt sept? seq sq sr sys tel tenn thu thurs tues? univ va vt wed wisc? wyo ed\\.d ph\\.d"
)
_STATES = "Ark|Az|Del|Ill|La|Mass|Miss|Ore|Pa|Tex|Wash|ARK|AZ|DEL|ILL|LA|MASS|MISS|ORE|PA|TEX|WASH"
_COMPANIES = "[pP](?:pte|pty|tes?|tys?)"
_BEFORE_NUMBER = _any_case("art ca figs? nos? op pp prop")
_SENTENCE_STARTS = "|".join(  # "plan b. The" ends a sentence, "j. k. rowling" does not
    f"{word[0]}(?i:{word[1:]})"
    for word in (
        "A About According Additionally After An As At But Earlier He Her Here However If In It Last Many More Mr\\. "
        "Ms\\. Now Once One Other Our She Since So Some Such That The Their Then There These They This We What When "
        "While Yet You"
    ).split()
)

_LETTER = "A-Za-zÉé"
_DIGIT = "0-9٠"
_APOS = "['’]"
_ANY_APOS = "['’`‘]"
_WORD = f"[{_LETTER}\u0301][{_LETTER}\u0301{_DIGIT}]*"
_DOTTED = f"{_WORD}(?:[.!?]{_WORD})*"  # a missing space after a period joins two words: "running.the"
_AUXILIARY = f"{_APOS}(?i:[smd]|re|ve|ll)"
_PART = f"(?:[dDoOlL]{_ANY_APOS}[{_LETTER}{_DIGIT}])?[{_LETTER}{_DIGIT}]+"
_COMPOUND = f"{_PART}(?:[-_‐]{_PART})*"
_HYPHENATED = r"[A-Za-z0-9][A-Za-z0-9.,]*(?:-(?:[A-Za-z](?:\.[A-Za-z])+\.|[A-Za-z0-9]+))+"
_SLASH_PART = "[A-Za-z0-9]+(?:-[A-Za-z]+){0,2}"
_NAME = "[A-Za-z][A-Za-z0-9_:.-]*"
_ATTRIBUTE = f" +{_NAME}(?: *= *(?:'[^'\n]*'|\"[^\"\n]*\"|{_NAME}))?"
_TAG = f"<{_NAME}(?:{_ATTRIBUTE})* */? *>|</{_NAME} *>|<[!?][A-Za-z-][^>\n]*>"
_NOT_URL = ' \n"<>|(){}'
_PATH = f"(?:/[^{_NOT_URL}]+[^{_NOT_URL}.!?,-])?"
_FILE = (
    "bat|bmp|c|cgi|class|cpp|dll|docx?|exe|gif|gz|h|html?|jar|java|jpe?g|mov|mp3|pdf|php|pl|png|ppt|ps|py|sql|tar|txt|"
    "wav|x|xml|zip"
)
_TELEPHONE = (
    r"(?:\([0-9]{2,3}\) ?|(?:\+\+?)?(?:[0-9]{2,4}[- ])?[0-9]{2,4}[- ])[0-9]{3,4}[- ]?[0-9]{3,5}"
    r"|(?:\+\+?)?(?:[0-9]{2,4}\.)?[0-9]{2,4}\.[0-9]{3,4}\.[0-9]{3,5}"
)

# What the tool writes in place of some characters; all others stay as they are, in lower case.
_AS_IS: Mapping[str, str] = {}
_ROUND_BRACKETS = {"(": "-lrb-", ")": "-rrb-"}
_SPELLED = {
    **_ROUND_BRACKETS,
    **{"[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"},
    **{"¢": "cents", "£": "#", "¤": "$", "€": "$", "₠": "$", "\x80": "$", "…": "...", "\x85": "..."},
    **{"¼": "1/4", "½": "1/2", "¾": "3/4", "⅓": "1/3", "⅔": "2/3"},
    **dict.fromkeys("’\x92›", "'"),
    **dict.fromkeys("‘\x91‛‹", "`"),
    **dict.fromkeys("“«\x93", "``"),
    **dict.fromkeys('"”»\x94', "''"),
    **dict.fromkeys("–—―\x96\x97", "--"),
}
_ENTITIES = {"&amp;": "&", "&lt;": "<", "&gt;": ">", "&quot;": "''", "&nbsp;": "''", "&mdash;": "--", "&ndash;": "--"}
_DROPPED = None  # no word at all

# (pattern with its word in group 1, what is written in place of some of the word's characters)
_TABLE: tuple[tuple[str, Mapping[str, str] | None], ...] = (
    # can|not, gon|na, 't|is: the first half; the second is read as the next word
    ("((?i:can(?=not)|gon(?=na)|got(?=ta)|lem(?=me)|gim(?=me)|wan(?=na)))(?i:not|na|ta|me)", _AS_IS),
    ("('[tT])(?i:is|was)", _AS_IS),
    # markup
    (f"({_TAG})", _AS_IS),
    ("(&(?i:amp|lt|gt|quot|nbsp|[mn]dash);|&#[0-9]+;)", _ENTITIES),
    # words, alone and before 's, 'll, n't, ...; those; other words that begin with an apostrophe
    (f"({_DOTTED})", _AS_IS),
    (f"({_DOTTED}){_AUXILIARY}", _AS_IS),
    (f"([A-Za-z]*[A-MO-Za-mo-z])[nN]{_ANY_APOS}[tT]", _AS_IS),
    (f"([nN]{_ANY_APOS}[tT])", _SPELLED),
    (f"({_AUXILIARY})[^A-Za-z]", _SPELLED),
    (f"({_APOS}[nN]{_APOS}?|{_APOS}(?i:em|till?|cause)|[lLdDjJ]{_APOS})", _AS_IS),
    (f"((?i:ol|somethin|dunkin){_APOS})", _AS_IS),  # codespell:ignore somethin
    ("(')[A-Za-z][^ \n]", _AS_IS),  # an opening quote: 'dad' is no contraction
    (f"({_AUXILIARY})", _SPELLED),
    # numbers, dates, fractions
    (f"([-+]?[{_DIGIT}]*(?:[.:,][{_DIGIT}]+)+|[-+]?[{_DIGIT}]+)", _AS_IS),
    ("([0-9]{1,2}[-/][0-9]{1,2}[-/][0-9]{2,4})", _AS_IS),
    (r"((?:[0-9]{1,4}[- ])?[0-9]{1,4}\\?[/⁄][0-9]{1,4})", _AS_IS),
    # words with hyphens and slashes
    (f"({_COMPOUND})", _AS_IS),
    (rf"({_SLASH_PART}(?:\\?/{_SLASH_PART}){{1,2}})", _AS_IS),
    # addresses
    (f"((?i:https?)://[^{_NOT_URL}]+[^{_NOT_URL}.!?,-])", _AS_IS),
    (rf"(www\.(?:[^{_NOT_URL}.`!?,]+\.)+[A-Za-z]{{2,4}}{_PATH})", _AS_IS),
    (rf"(www\.(?:[^{_NOT_URL}.`!?,/]+\.)+[A-Za-z]{{2,4}}{_PATH})", _AS_IS),
    (rf"((?:[^{_NOT_URL}.`'!?,-_$]+\.)+(?:com|net|org|edu){_PATH})", _AS_IS),
    (rf"((?:<|&lt;)?[A-Za-z0-9][^{_NOT_URL}]*@(?:[^{_NOT_URL}.]+\.)*[^{_NOT_URL}.]+>?)", _AS_IS),
    (f"(@[A-Za-z_][A-Za-z0-9_]*|#[{_LETTER}]+)", _AS_IS),
    # initials and abbreviations
    (r"([A-Za-z](?:\.[A-Za-z])*\.)", _AS_IS),
    (rf"([A-Za-z])\.[ \n]+(?:{_SENTENCE_STARTS}|{_TAG})[ \n]", _AS_IS),
    (rf"((?:{_ABBREVIATIONS}|[mM][ft]g)\.)", _AS_IS),
    (rf"((?:{_AT_SENTENCE_END}|{_STATES}|{_COMPANIES})\.)(?s:..)?", _AS_IS),
    (rf"({_BEFORE_NUMBER}\.)[ \n]?[0-9]", _AS_IS),
    (rf"([{_LETTER}{_DIGIT}]+(?:\.[{_LETTER}{_DIGIT}]+)*\.(?i:{_FILE}))[ \n.?!,]", _AS_IS),
    (f"({_HYPHENATED})", _AS_IS),
    *((rf"({word}\.)[,:;]", _AS_IS) for word in (_DOTTED, _COMPOUND, _HYPHENATED)),
    # words with an apostrophe inside or around
    (f"([yY]{_APOS})[A-Za-z]", _AS_IS),
    (f"({_APOS}[2-9]0[sS])", _AS_IS),
    (f"({_APOS}[0-9][0-9])(?=[ \n])", _AS_IS),
    (f"([A-HJ-XZn]{_ANY_APOS}[{_LETTER}]{{2,}})", _AS_IS),
    (f"([{_LETTER}]+[aeiouyAEIOUY]{_ANY_APOS}[aeiouA-Z][{_LETTER}]*)", _AS_IS),
    (f"((?i:li'l|c{_APOS}(?:est|mon)|ma{_APOS}am|n?e{_APOS}er|o'o|cap'n|ev'ry|nat'l|nor'easter|s'mores))", _AS_IS),
    # letters with marks
    ("((?i:cont'd\\.|(?:anti|pro)-))", _AS_IS),
    (r"([A-Z]+\$)", _AS_IS),
    ("([A-Z]+(?:(?:[+&]|&amp;)[A-Z]+)+)", _ENTITIES),
    (r"([CcFf]#|[Cc]\+\+)", _AS_IS),
    (f"({_TELEPHONE})", _ROUND_BRACKETS),
    # smileys, and what stays of punctuation
    (r"([<>]?[:;=][-o*']?[()DPdpO\\{@|\[\]])(?![A-Za-z0-9])", _ROUND_BRACKETS),
    (r"(\([-^x=~<>'][_.]?[-^x=~<>']\)|[-^x=~<>']_[-^x=~<>'])", _ROUND_BRACKETS),
    (r"(\.{3,5}|\.(?: \.){2,4}|-{1,4})", _DROPPED),
    (r"(-{5,}|[?!]+|\\\*|\*+|_+|#+|@+|<<|>>|'')", _AS_IS),
    ("([`‘’“”«»‹›]{1,2})", _SPELLED),
    # any other character
    ("([\0‐])", _DROPPED),
    ("(.)", _SPELLED),
)
_RULES = tuple((re.compile(pattern), replacements) for pattern, replacements in _TABLE)

# The common case, taken first for speed: a word, or a mark, that nothing around it can change.
_PLAIN = re.compile(
    "(?!(?i:cannot|gonna|gotta|lemme|gimme|wanna)[^A-Za-z])([A-Za-z]+)(?=[,;:?!]?[ \n])|[,;:?!]?[ \n]|\\.[ \n](?!\\.)"
)


def ptb_words(caption: str, following: str = "") -> list[str]:
    """The words of a caption as the COCO protocol counts them.

    The toolkit gives the Java tool one file with a caption a line, and in two cases the tool looks over the line's
    end: "plan b." before a line that begins with "A", and "no." before one that begins with a digit. To count as it
    counts, `following` takes the next caption.
    """
    caption = caption.replace("&apos;", "'").replace("\xad", "")  # a soft hyphen is not part of a word
    text = f"{caption.translate(_STAND_INS)}\n{following[:24].translate(_STAND_INS)}"  # \n at the caption's end alone
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
        if replacements is not None:
            word = re.sub("[ \t\xa0]", "\xa0", caption[position:word_end].lower())
            for character, written in replacements.items():
                word = word.replace(character, written)
            words.append(word)
        position = word_end
    return [word for word in words if word and word not in _PUNCTUATION]


def ptb_words_of_all(captions: Sequence[str]) -> list[list[str]]:
    """The words of captions that the toolkit would put into one file, in this order."""
    return [ptb_words(a, b) for a, b in zip_longest(captions, captions[1:], fillvalue="")]
