r"""Words as the COCO caption evaluation counts them: Penn Treebank tokens, lower-cased, without punctuation.

The COCO toolkit (Chen et al. 2015, section 3.2) runs the Stanford PTBTokenizer 3.4.1, a Java program, and then drops a
list of punctuation marks. A word more or less moves every score, so this module gives the same words in Python. It
was written from the Treebank's conventions and from what the Java tool answers to some hundred thousand probes, and
is compared with it in tests/test_metrics.py.

How it works: at each place every rule of the table below is tried, the rule that reaches furthest wins, the earlier
one of equals. What a rule matches behind its group 1 is context: it counts for the length and is read again.
"""

import re
import unicodedata
from collections.abc import Callable, Sequence
from itertools import zip_longest

# What the COCO toolkit drops after tokenization. The tool lower-cases its own bracket names, so of "(" and "[" nothing
# is dropped: they stay as the words -lrb-, -lsb-, ... in everybody's published scores.
_PUNCTUATION = frozenset("'' ' `` ` . ? ! , : - -- ... ;".split())

_SYMBOLS = re.compile(
    "[¡¥-©¬®-´¶-¹¿×÷·։\u2016\u2017\u201a\u201e-\u2023\u2030-\u2038\u203b\u203e-\u2042\u2070-\u208e₤\u2100-\u214f⅕-⅞"
    "\u2190-\u2bff\u3001\u3002\u3012\u30fb\uff01-\uff0f\uff1a-\uff20\uff3b-\uff40\uff5b-\uff65]"
)


class _Shadow(dict[int, str]):
    r"""Maps every character to a stand-in of its class, so that the rules need to know some twenty characters only.

    É upper-case letter · é other letter · \u0301 accent · ٠ digit · § symbol · \0 nothing (dropped, but parts words).
    """

    def __missing__(self, code: int) -> str:
        self[code] = self._class(chr(code))
        return self[code]

    @staticmethod
    def _class(char: str) -> str:
        category = unicodedata.category(char)
        for same, chars in (
            ("’", "’\x92"),
            ("‘", "‘\x91‛"),
            ("–", "–—―\x96\x97"),
            ("“", "\x93\x94"),
            ("‐", "‐‑"),
        ):
            if char in chars:
                return same
        if char in "\t\n" or category == "Zs":
            return " "
        if char.isascii():
            return char if char.isprintable() else "\0"
        if ord(char) > 0xFFFF:  # the tool reads emoji and other late characters as nothing
            return "\0"
        if char in "¼½¾⅓⅔¢£¤€₠\x80⁄«»“”‹›…\x85":
            return char
        if category in ("Lu", "Lt", "Ll", "Lo", "Lm"):
            return "É" if category in ("Lu", "Lt") else "é"
        if category == "Nd":  # codespell:ignore nd
            return "٠"
        if category in ("Mn", "Mc", "Sk") and 0x2C2 <= ord(char) < (0x386 if category == "Sk" else 0xF00):
            return "\u0301"
        return "§" if _SYMBOLS.match(char) else "\0"


_SHADOW = _Shadow()


def _words(words: str) -> str:
    return "(?i:" + "|".join(words.split()) + ")"


def _cased(words: str, *cases: Callable[[str], str]) -> str:
    return "(?:" + "|".join(case(word) for case in cases for word in words.split()) + ")"


# Abbreviations that keep their period. Found by asking the tool about 710,000 words, each in three cases and contexts.
_ABBREVIATIONS = _words(
    "adj adm adv alex assoc asst attys? ave brig capt cf cie cmdr col comdr cpl dept det drs? elec ens ft gen govs? "
    "hon insp invt jos lieut lt maj messrs mlle mme mr mrs ms msgr mt natl pfc ph "
    "pres profs? pvt reps? rev sens? sfc sgt spc st ste supt treas vs wm"  # codespell:ignore pres
)
_AT_SENTENCE_END = _words(  # those that often end a sentence
    "ala? apr ariz assn aug bancorp bhd bldg blvd bros calif cos? colo conn corp ct dak dec esq est etc ext feb fla "
    "fri ga inc ind intl jan jr jul jun kans? ky ltd mar md mich minn mo mon mont neb nev nov oct okla penn plc rd "
    "rt sept? seq sq sr sys tel tenn thu thurs tues? univ va vt wed wisc? wyo ed\\.d ph\\.d"
)
_STATES = _cased(
    "ark az del ill la mass miss ore pa tex wash",  # codespell:ignore ore
    str.capitalize,
    str.upper,
)
_COMPANIES = _cased("ppte ppty ptes? ptys?", str, str.capitalize)
_OTHERS = _cased("mfg mtg", str, str.capitalize)
_BEFORE_NUMBER = _words("art ca figs? nos? op pp prop")
_SENTENCE_STARTS = "|".join(  # "plan b. The" ends a sentence, "j. k. rowling" does not
    word[0] + (f"(?i:{word[1:]})" if word[1:] else "")
    for word in (
        "A About According Additionally After An As At But Earlier He Her Here However If In It Last Many More Mr\\. "
        "Ms\\. Now Once One Other Our She Since So Some Such That The Their Then There These They This We What When "
        "While Yet You"
    ).split()
)

_ELISIONS = "cap'n|ev'ry|nat'l|nor'easter|s'mores"

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
_SPELLED = {
    **{"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"},
    **{"¢": "cents", "£": "#", "¤": "$", "€": "$", "₠": "$", "\x80": "$", "…": "...", "\x85": "..."},
    **{"¼": "1/4", "½": "1/2", "¾": "3/4", "⅓": "1/3", "⅔": "2/3"},
    **dict.fromkeys("’\x92›", "'"),
    **dict.fromkeys("‘\x91‛‹", "`"),
    **dict.fromkeys("“«\x93", "``"),
    **dict.fromkeys('"”»\x94', "''"),
    **dict.fromkeys("–—―\x96\x97", "--"),
}
_ENTITIES = {"amp": "&", "lt": "<", "gt": ">", "quot": "''", "nbsp": "''", "mdash": "--", "ndash": "--"}


def _as_is(token: str) -> str:
    return re.sub("[ \t\xa0]", "\xa0", token).lower()


def _spelled(token: str) -> str:
    return "".join(_SPELLED.get(char, char) for char in token).lower()


def _brackets(token: str) -> str:
    return _as_is(token.replace("(", "-lrb-").replace(")", "-rrb-"))


def _entity(token: str) -> str:
    return _ENTITIES.get(token[1:-1].lower(), token.lower())


def _ampersands(token: str) -> str:
    return token.lower().replace("&amp;", "&")


def _dropped(token: str) -> str:
    return ""


_TABLE: tuple[tuple[str, Callable[[str], str]], ...] = (
    # can|not, gon|na, 't|is: the first half; the second is read as the next word
    ("((?i:can(?=not)|gon(?=na)|got(?=ta)|lem(?=me)|gim(?=me)|wan(?=na)))(?i:not|na|ta|me)", _as_is),
    ("('[tT])(?i:is|was)", _as_is),
    # markup
    (f"({_TAG})", _as_is),
    ("(&(?i:amp|lt|gt|quot|nbsp|[mn]dash);|&#[0-9]+;)", _entity),
    # words, alone and before 's, 'll, n't, ...; those; other words that begin with an apostrophe
    (f"({_DOTTED})", _as_is),
    (f"({_DOTTED}){_AUXILIARY}", _as_is),
    (f"([A-Za-z]*[A-MO-Za-mo-z])[nN]{_ANY_APOS}[tT]", _as_is),
    (f"([nN]{_ANY_APOS}[tT])", _spelled),
    (f"({_AUXILIARY})[^A-Za-z]", _spelled),
    (f"({_APOS}[nN]{_APOS}?|{_APOS}(?i:em|till?|cause)|[lLdDjJ]{_APOS})", _as_is),
    (f"((?i:ol|somethin|dunkin){_APOS})", _as_is),  # codespell:ignore somethin
    ("(')[A-Za-z][^ \n]", _dropped),  # an opening quote: 'dad' is no contraction
    (f"({_AUXILIARY})", _spelled),
    # numbers, dates, fractions
    (f"([-+]?[{_DIGIT}]*(?:[.:,][{_DIGIT}]+)+|[-+]?[{_DIGIT}]+)", _as_is),
    ("([0-9]{1,2}[-/][0-9]{1,2}[-/][0-9]{2,4})", _as_is),
    (r"((?:[0-9]{1,4}[- ])?[0-9]{1,4}\\?[/⁄][0-9]{1,4})", _as_is),
    # words with hyphens and slashes
    (f"({_COMPOUND})", _as_is),
    (rf"({_SLASH_PART}(?:\\?/{_SLASH_PART}){{1,2}})", _as_is),
    # addresses
    (f"((?i:https?)://[^{_NOT_URL}]+[^{_NOT_URL}.!?,-])", _as_is),
    (rf"(www\.(?:[^{_NOT_URL}.`!?,]+\.)+[A-Za-z]{{2,4}}{_PATH})", _as_is),
    (rf"(www\.(?:[^{_NOT_URL}.`!?,/]+\.)+[A-Za-z]{{2,4}}{_PATH})", _as_is),
    (rf"((?:[^{_NOT_URL}.`'!?,-_$]+\.)+(?:com|net|org|edu){_PATH})", _as_is),
    (rf"((?:<|&lt;)?[A-Za-z0-9][^{_NOT_URL}]*@(?:[^{_NOT_URL}.]+\.)*[^{_NOT_URL}.]+>?)", _as_is),
    (f"(@[A-Za-z_][A-Za-z0-9_]*|#[{_LETTER}]+)", _as_is),
    # initials and abbreviations
    (r"([A-Za-z](?:\.[A-Za-z])*\.)", _as_is),
    (rf"([A-Za-z])\.[ \n]+(?:{_SENTENCE_STARTS}|{_TAG})[ \n]", _as_is),
    (rf"((?:{_ABBREVIATIONS}|{_OTHERS})\.)", _as_is),
    (rf"((?:{_AT_SENTENCE_END}|{_STATES}|{_COMPANIES})\.)(?s:..)?", _as_is),
    (rf"({_BEFORE_NUMBER}\.)[ \n]?[0-9]", _as_is),
    (rf"([{_LETTER}{_DIGIT}]+(?:\.[{_LETTER}{_DIGIT}]+)*\.(?i:{_FILE}))[ \n.?!,]", _as_is),
    (f"({_HYPHENATED})", _as_is),
    *((rf"({word}\.)[,:;]", _as_is) for word in (_DOTTED, _COMPOUND, _HYPHENATED)),
    # words with an apostrophe inside or around
    (f"([yY]{_APOS})[A-Za-z]", _as_is),
    (f"({_APOS}[2-9]0[sS])", _as_is),
    (f"({_APOS}[0-9][0-9])(?=[ \n])", _as_is),
    (f"([A-HJ-XZn]{_ANY_APOS}[{_LETTER}]{{2,}})", _as_is),
    (f"([{_LETTER}]+[aeiouyAEIOUY]{_ANY_APOS}[aeiouA-Z][{_LETTER}]*)", _as_is),
    (f"((?i:li'l|c{_APOS}(?:est|mon)|ma{_APOS}am|n?e{_APOS}er|o'o|{_ELISIONS}))", _as_is),
    # letters with marks
    ("((?i:cont'd\\.|(?:anti|pro)-))", _as_is),
    (r"([A-Z]+\$)", _as_is),
    ("([A-Z]+(?:(?:[+&]|&amp;)[A-Z]+)+)", _ampersands),
    (r"([CcFf]#|[Cc]\+\+)", _as_is),
    (f"({_TELEPHONE})", _brackets),
    # smileys, and what stays of punctuation; a single other character is the default of `ptb_words`
    (r"([<>]?[:;=][-o*']?[()DPdpO\\{@|\[\]])(?![A-Za-z0-9])", _brackets),
    (r"(\([-^x=~<>'][_.]?[-^x=~<>']\)|[-^x=~<>']_[-^x=~<>'])", _brackets),
    (r"(\.{3,5}|\.(?: \.){2,4}|-{1,4})", _dropped),
    (r"(-{5,}|[?!]+|\\\*|\*+|_+|#+|@+|<<|>>|'')", _as_is),
    ("([`‘’“”«»‹›]{1,2})", _spelled),
)
_RULES = tuple((re.compile(pattern), render) for pattern, render in _TABLE)

# The common case, taken first for speed: a word, or a mark, that nothing around it can change.
_PLAIN = re.compile("([A-Za-z]+)(?=[,;:?!]?[ \n])|[,;:?!]?[ \n]|\\.[ \n](?!\\.)")
_CONTRACTED = frozenset({"cannot", "gonna", "gotta", "lemme", "gimme", "wanna"})


def ptb_words(caption: str, following: str = "") -> list[str]:
    """The words of a caption as the COCO protocol counts them.

    The toolkit gives the Java tool one file with a caption a line, and in two cases the tool looks over the line's
    end: "plan b." before a line that begins with "A", and "no." before one that begins with a digit. To count as it
    counts, `following` takes the next caption.
    """
    caption = caption.replace("&apos;", "'").replace("\xad", "")  # a soft hyphen is not part of a word
    text = f"{caption} {following[:24]}".translate(_SHADOW)
    place, end = 0, len(caption)
    text = f"{text[:end]}\n{text[end + 1 :]}"  # the only line break is the caption's end
    words: list[str] = []
    while place < end:
        plain = _PLAIN.match(text, place)
        if plain and (plain[1] or "").lower() not in _CONTRACTED:
            place = plain.end()
            words.append((plain[1] or "").lower())
            continue
        render: Callable[[str], str] = _spelled if text[place] not in "\0‐" else _dropped
        reach, stop = 0, place + 1
        for rule, its_render in _RULES:
            found = rule.match(text, place)
            if found and found.end() > reach:
                reach, stop, render = found.end(), found.end(1), its_render
        words.append(render(caption[place:stop]))
        place = stop
    return [word for word in words if word and word not in _PUNCTUATION]


def ptb_words_of_all(captions: Sequence[str]) -> list[list[str]]:
    """The words of captions that the toolkit would put into one file, in this order."""
    return [ptb_words(a, b) for a, b in zip_longest(captions, captions[1:], fillvalue="")]
