"""Scores equal the COCO toolkit's, words equal its Java tokenizer's, and bad input ends in one clear message."""

import json
import math
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge  # codespell:ignore rouge
from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

from vcutils.scores import coco as metrics
from vcutils.scores.ptb import ptb_words

SHARED = Path(os.environ.get("VCUTILS_SHARED") or Path(__file__).parents[2] / "shared")
GOLD = sorted((SHARED / "gold").glob("*.json"))
NAMES = ["Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4", "METEOR", "ROUGE_L", "CIDEr"]
NO_JAVA = ("Bleu", "ROUGE_L", "CIDEr")
needs_java = pytest.mark.skipif(metrics.why_no_meteor() is not None, reason=str(metrics.why_no_meteor()))

# What the Java tool answers, its punctuation list removed: caption, words joined by a space.
PTB = [
    ("A Man is running.", "a man is running"),
    ("He's sitting.The dog,barks", "he 's sitting.the dog barks"),
    ("wait...what?! No!!", "wait what ?! no !!"),
    ("a man.. is running .", "a man is running"),
    ("he said \"hello\" to 'them'", "he said hello to them"),
    ("“smart” ‘quotes’ and don’t", "smart quotes and do n't"),
    ("can't won't shan't ain't I'm we've they'll she'd", "ca n't wo n't sha n't ai n't i 'm we 've they 'll she 'd"),
    ("cannot gonna gotta gimme lemme wanna", "can not gon na got ta gim me lem me wan na"),
    ("'tis 'twas 'em 'til 'cause", "'t is 't was 'em 'til 'cause"),
    ("the dogs' bowl, James's cat, its' it's", "the dogs bowl james 's cat its it 's"),
    ("y'all ma'am d'oh o'clock O'Brien", "y' all ma'am d'oh o'clock o'brien"),
    ("rock'n'roll rock 'n' roll ol' somethin'", "rock 'n' roll rock 'n' roll ol' somethin'"),
    ("the '90s, the 1990's, '50 and 80s", "the '90s the 1990 's '50 and 80s"),
    ("s'mores li'l cap'n c'mon", "s'mores li'l cap'n c'mon"),
    ("'dad' isn't 'dancing'", "dad is n't dancing"),
    ("U.S. U.S.A. u.s. e.g. i.e. a.k.a.", "u.s. u.s.a. u.s. e.g. i.e. a.k.a."),
    ("5 p.m. 10:30 a.m. 10:30am 5pm", "5 p.m. 10:30 a.m. 10:30 am 5pm"),
    ("Mr. Bean, mrs. doe, Dr. Who, St. Louis, jr.", "mr. bean mrs. doe dr. who st. louis jr."),
    ("etc. vs. inc. ltd. approx. min. sec. no.", "etc. vs. inc. ltd. approx min sec no"),
    ("no. 5, fig. 2, art. 3", "no. 5 fig. 2 art. 3"),
    ("Ill. Mass. Wash. ill. mass. wash.", "ill. mass. wash. ill mass wash"),
    ("Ph.D. Ed.D. M.D.", "ph.d. ed.d. m.d."),
    ("he says no.", "he says no"),
    ("J. K. Rowling; plan b. The end", "j. k. rowling plan b the end"),
    ("Jan. Feb. Sat. Sun. May.", "jan. feb. sat sun may"),
    ("x-ray t-shirt mother-in-law -ing pre- pro-", "x-ray t-shirt mother-in-law ing pre pro-"),
    ("U.S.-led man.-woman a,b-c 3.5-inch", "u.s.-led man.-woman a,b-c 3.5-inch"),
    ("a - b -- c --- d ----- e", "a b c d ----- e"),
    ("a–b a — b", "a b a b"),
    ("and/or 24/7 he/she a/b/c/d w/o /", "and/or 24/7 he/she a/b/c / d w/o /"),
    ("1,000 3.5 .5 -5 +5 1.000,00 5.", "1,000 3.5 .5 -5 +5 1.000,00 5"),
    ("1/2 1 1/2 11/2 ½ 10/12/2010 2010-01-02", "1/2 1\xa01/2 11/2 1/2 10/12/2010 2010-01-02"),
    ("1st 2nd 90th 3-D 3d 4x4 mp3 h2o", "1st 2nd 90th 3-d 3d 4x4 mp3 h2o"),
    ("$5 $1,000.50 US$5 C$ £5 €5 5¢ ¥5", "$ 5 $ 1,000.50 us$ 5 c$ # 5 $ 5 5 cents ¥ 5"),
    ("50% #1 #fun @home @5 100°", "50 % # 1 #fun @home @ 5 100 °"),
    ("555-1234 (555) 555-1234 +1-555-555-1234", "555-1234 -lrb-555-rrb-\xa0555-1234 +1 -555 -555 -1234"),
    ("a@b.com http://a.b/c?d=e www.a.com youtube.com/watch", "a@b.com http://a.b/c?d=e www.a.com youtube.com/watch"),
    ("photo1.jpg video.mp4 a_b.txt", "photo1.jpg video.mp4 a_b txt"),
    ("AT&T R&B r&b a&b a & b &amp; M&M's", "at&t r&b r & b a & b a & b & m&m 's"),
    ("C++ c# F# A+ A+B", "c++ c# f# a + a+b"),
    ("(a) [b] {c} man(s)", "-lrb- a -rrb- -lsb- b -rsb- -lcb- c -rcb- man -lrb- s -rrb-"),
    ("<unk> <b>bold</b> <3 < 3 > 2 <br/> <a b>", "<unk> <b> bold </b> < 3 < 3 > 2 <br/> <a\xa0b>"),
    (":) :-( ;) :D =) :P 8) ^_^ >:(", ":-rrb- :--lrb- ;-rrb- :d =-rrb- :p 8 -rrb- ^_^ >:-lrb-"),
    ("* ** ~ ^ _ __ | \\ = + @ # ##", "* ** ~ ^ _ __ | \\ = + @ # ##"),
    ("a*b a=b a+b a~b a|b a\\b a_b a__b", "a * b a = b a + b a ~ b a | b a \\ b a_b a __ b"),
    ("hello,world;foo:bar a!b a?b", "hello world foo bar a!b a?b"),
    ("it&apos;s &quot;a&quot; it&#39;s", "it 's a it &#39; s"),
    ("café naïve Ünder Straße Ελλάδα", "café naïve ünder straße ελλάδα"),
    ("中文 字幕。 русский язык हिन्दी", "中文 字幕 。 русский язык हिन्दी"),
    ("a😀b ♥ ★ © ™ •", "a b ♥ ★ © ™ •"),
    ("… a…b . . . .. ....", "a b"),
    ("`a' ``a'' \"a\"", "a a a"),
    ("man`s don`t it´s", "man s do n`t it ´ s"),
    ("!!! ??? ?! ! ?", "!!! ??? ?!"),
    ("tab\there  two\xa0spaces\u3000wide", "tab here two spaces wide"),
    ("zero\u200bwidth \ufeffbom\ufeff", "zero width bom"),
    ("bell\x07 \x00 nul", "bell nul"),
    ("   ", ""),
    (".", ""),
    ("'", ""),
    ('"', ""),
    ("co\xadop", "coop"),
    ("newline\nhere", "newline here"),
    ("", ""),
]

REFERENCES = {
    "a": ["a man is playing a guitar", "someone plays the guitar", "a man plays music"],
    "b": ["a cat sits on a mat", "the cat is sitting"],
    "c": ["two dogs run in a park", "dogs are running outside on the grass"],
}
PREDICTIONS = {"a": "a man is playing a guitar", "b": "a cat is on a mat", "c": "a dog runs"}


def score(predictions, references, names=metrics.METRICS):
    return metrics.References(references).score(predictions, names)


@pytest.fixture(params=GOLD or [None], ids=lambda p: p.stem if p else "none")
def gold(request):
    if request.param is None:
        pytest.skip(f"no gold files in {SHARED / 'gold'}; set VCUTILS_SHARED")
    return json.loads(request.param.read_text(encoding="utf-8"))


def noisy_captions(count: int) -> list[str]:
    """Captions as people type them: words, names and numbers run together with marks of all kinds."""
    pieces = [
        p for caption, _ in PTB for p in caption.replace("\n", " ").split() if "\xad" not in p and "&apos" not in p
    ]
    marks = [
        " ",
        " ",
        " ",
        ". ",
        ".",
        ", ",
        ",",
        "!",
        "? ",
        "...",
        "'",
        '"',
        "-",
        " - ",
        "/",
        "(",
        ")",
        ":",
        ";",
        "’s ",
    ]
    pick = random.Random(0)
    return ["".join(pick.choice(pieces) + pick.choice(marks) for _ in range(pick.randint(1, 6))) for _ in range(count)]


def java_words(captions: list[str]) -> list[str]:
    # A neutral line behind each caption: the tool looks over the line's end in a few cases.
    lines = [line for caption in captions for line in (caption, "a")]
    return PTBTokenizer().tokenize({"x": [{"caption": line} for line in lines]})["x"][::2]


@pytest.mark.parametrize(("caption", "words"), PTB)
def test_ptb_words_are_the_protocols(caption, words):
    assert " ".join(ptb_words(caption)) == words


@needs_java
def test_ptb_words_equal_the_java_tools():
    captions = [caption for caption, _ in PTB] + noisy_captions(5000)
    differ = [
        (caption, expected, found)
        for caption, expected in zip(captions, java_words(captions), strict=True)
        if (found := " ".join(ptb_words(caption))) != expected
    ]
    assert differ == []


def test_ptb_words_equal_gold_examples(gold):
    for caption, words in gold.get("ptb_examples", {}).values():
        assert " ".join(ptb_words(caption)) == words


def test_following_caption_decides_as_in_the_java_tool():
    assert ptb_words("plan b.") == ["plan", "b."]
    assert ptb_words("plan b.", "A man runs") == ["plan", "b"]


def test_scores_equal_gold_to_four_decimals(gold):
    scores = score(gold["predictions"], gold["references"], NO_JAVA)
    assert list(scores) == [name for name in NAMES if name != "METEOR"]
    assert {name: round(value, 4) for name, value in scores.items()} == {
        name: round(gold["scores"][name], 4) for name in scores
    }


@needs_java
def test_meteor_equals_gold_to_four_decimals(gold):
    scores = score(gold["predictions"], gold["references"], ("METEOR",))
    assert round(scores["METEOR"], 4) == round(gold["scores"]["METEOR"], 4)


def test_scores_equal_the_toolkits_own_classes():
    texts = {i: [" ".join(ptb_words(c)) for c in captions] for i, captions in REFERENCES.items()}
    hypotheses = {i: [" ".join(ptb_words(c))] for i, c in PREDICTIONS.items()}
    per_clip = metrics.score_per_clip(PREDICTIONS, REFERENCES, NO_JAVA)
    scores = score(PREDICTIONS, REFERENCES, NO_JAVA)

    bleu, bleu_clips = Bleu(4).compute_score(texts, hypotheses, verbose=0)
    assert [scores[f"Bleu_{n}"] for n in (1, 2, 3, 4)] == bleu
    assert [per_clip[i]["Bleu_2"] for i in REFERENCES] == bleu_clips[1]
    for name, scorer in (("ROUGE_L", Rouge()), ("CIDEr", Cider())):  # codespell:ignore rouge
        corpus, clips = scorer.compute_score(texts, hypotheses)
        assert scores[name] == pytest.approx(corpus, abs=1e-12)
        assert [per_clip[i][name] for i in REFERENCES] == pytest.approx(clips.tolist(), abs=1e-12)


def test_bleu_of_cases_counted_by_hand():
    # 3 of 4 words and 1 of 3 pairs are in the reference, no penalty since both have four words
    scores = score({"x": "a b c d"}, {"x": ["a b d e"]}, ("Bleu",))
    assert scores["Bleu_1"] == pytest.approx(3 / 4, abs=1e-6)
    assert scores["Bleu_2"] == pytest.approx(math.sqrt(3 / 4 * 1 / 3), abs=1e-6)
    # two words against three: the brevity penalty
    scores = score({"x": "a b"}, {"x": ["a b c"]}, ("Bleu",))
    assert scores["Bleu_1"] == pytest.approx(math.exp(1 - 3 / 2), abs=1e-6)
    # a three-word caption has no 4-gram; the toolkit's guard against 0/0 leaves (1e-15 / 1e-9) ** (1/4)
    scores = score({"x": "a dog runs"}, {"x": ["a dog runs"]}, ("Bleu",))
    assert scores["Bleu_3"] == pytest.approx(1, abs=1e-6) and scores["Bleu_4"] == pytest.approx(0.0316, abs=1e-4)


def test_all_metrics_in_the_toolkits_order_and_nothing_on_stdout(capfd):
    assert list(score(PREDICTIONS, REFERENCES, ("CIDEr", "Bleu"))) == [*NAMES[:4], "CIDEr"]
    assert list(score(PREDICTIONS, REFERENCES)) == NAMES
    assert capfd.readouterr().out == ""


def test_punctuation_and_case_change_nothing():
    shouted = {i: f'"{c.upper()}" !' for i, c in PREDICTIONS.items()}
    assert score(shouted, REFERENCES, NO_JAVA) == score(PREDICTIONS, REFERENCES, NO_JAVA)


@pytest.mark.parametrize("empty", ["", "   ", "...", "\u200b"])
def test_empty_hypothesis_earns_nothing(empty):
    assert metrics.score_per_clip(PREDICTIONS | {"b": empty}, REFERENCES)["b"] == {
        name: None if name == "METEOR" and metrics.why_no_meteor() else 0.0 for name in NAMES
    }
    silent = score(dict.fromkeys(REFERENCES, empty), REFERENCES, NO_JAVA)
    assert set(silent.values()) == {0.0}


def test_references_reused_equal_one_shot():
    references = metrics.References(REFERENCES)
    others = {"a": "music", "b": "the cat is sitting", "c": "dogs run in the grass"}
    for predictions in (others, PREDICTIONS, others):
        assert references.score(predictions, NO_JAVA) == score(predictions, REFERENCES, NO_JAVA)


def test_cider_reward_is_the_toolkits_with_the_end_as_a_word():
    references = metrics.References(REFERENCES)
    end = " " + metrics.END
    texts = {i: [" ".join(ptb_words(c)) + end for c in captions] for i, captions in REFERENCES.items()}

    def toolkit(captions, mark):
        words = {i: [" ".join(ptb_words(captions[i])) + mark] for i in REFERENCES}
        return Cider().compute_score(texts, words)[1].tolist()

    pairs = list(PREDICTIONS.items())
    assert references.cider(pairs, [True] * 3) == pytest.approx(toolkit(PREDICTIONS, end), abs=1e-12)
    assert references.cider(pairs, [False] * 3) == pytest.approx(toolkit(PREDICTIONS, ""), abs=1e-12)


def test_cider_reward_keeps_the_corpus_document_frequencies():
    references = metrics.References(REFERENCES)
    before = references.score(PREDICTIONS, ("CIDEr",))
    one = dict(zip("abc", references.cider(list(PREDICTIONS.items()), [True] * 3), strict=True))
    samples = [("b", PREDICTIONS["b"]), ("b", "nonsense"), *PREDICTIONS.items(), ("a", PREDICTIONS["a"])]
    rewards = references.cider(samples, [True, False, True, True, True, True])
    assert rewards == [one["b"], 0.0, one["a"], one["b"], one["c"], one["a"]]
    assert references.cider([], []) == []
    assert references.score(PREDICTIONS, ("CIDEr",)) == before, "the scores know no <end>"


def test_caption_that_breaks_off_earns_less_than_one_that_ends():
    references = metrics.References(REFERENCES)
    whole, cut, broken = references.cider(
        [("b", "the cat is sitting"), ("b", "the cat is sitting"), ("b", "the cat is")], [True, False, False]
    )
    assert whole > cut > broken


def test_without_java_meteor_is_none_with_one_line(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("JAVA_HOME", raising=False)
    scores = score(PREDICTIONS, REFERENCES)
    assert list(scores) == NAMES and scores["METEOR"] is None and scores["CIDEr"] > 0
    assert metrics.score_per_clip(PREDICTIONS, REFERENCES)["a"]["METEOR"] is None
    (line,) = metrics.notes(scores, len(PREDICTIONS))
    assert "METEOR" in line and "Java" in line and "install" in line and "\n" not in line


@pytest.mark.skipif(sys.platform == "win32", reason="makes a shell script")
@pytest.mark.parametrize("script", ["#!/bin/sh\nexit 1\n", "#!/no/such/shell\n"])
def test_a_java_that_does_not_run_counts_as_none(monkeypatch, tmp_path, script):
    fake = tmp_path / "java"
    fake.write_text(script)
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("JAVA_HOME", raising=False)
    assert "one that runs" in metrics.why_no_meteor()
    assert score(PREDICTIONS, REFERENCES, ("METEOR",)) == {"METEOR": None}


@needs_java
def test_java_is_found_by_java_home_alone(monkeypatch, tmp_path):
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "java").symlink_to(shutil.which("java"))
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", "")
    assert metrics.why_no_meteor() is None


@needs_java
def test_meteor_that_ends_is_none_and_starts_again(monkeypatch):
    stopped = subprocess.Popen(["java", "-version"], stdin=-1, stdout=-1, stderr=-1)
    stopped.wait()
    meteor = metrics._Meteor(metrics._java())
    with monkeypatch.context() as patch:
        patch.setattr(meteor, "meteor_p", stopped)
        scores = score(PREDICTIONS, REFERENCES, ("METEOR",))
    assert scores == {"METEOR": None}
    assert "2 GB" in metrics.notes(scores, len(PREDICTIONS))[0]
    assert metrics._Meteor.cache_info().currsize == 0
    meteor.meteor_p.kill()


def test_notes_explain_zeros():
    scores = score({"x": "a dog"}, {"x": ["a dog runs in the park"]}, ("Bleu", "CIDEr"))
    assert scores["CIDEr"] == 0.0
    cider, bleu = metrics.notes(scores, clips=1)
    assert "CIDEr of one clip" in cider and "Bleu_4" in bleu
    unmatched = score({"x": "a dog runs in"}, {"x": ["a dog runs out"]}, ("Bleu",))
    assert "Bleu_4" in metrics.notes(unmatched, clips=2)[0]
    assert metrics.notes(score(PREDICTIONS, REFERENCES, NO_JAVA), 3) == []


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_reads_plain_and_rich_predictions(tmp_path):
    text = '{"a": "un café", "b": {"caption": "a cat", "words": ["a", "cat"], "log_prob": -1.5}}'
    assert metrics.read_predictions(write(tmp_path / "p.json", text)) == {"a": "un café", "b": "a cat"}
    assert metrics.read_references(write(tmp_path / "r.json", '{"a": ["x", "y"]}')) == {"a": ["x", "y"]}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "not JSON"),
        ('["a"]', "must be an object that holds captions"),
        ("{}", "must be an object that holds captions"),
        ('{"v1": "a", "v2": "b", "v1": "c"}', "v1 comes more than once"),
        ('{"v1": 5}', "v1: a caption must be a text"),
        ('{"v1": ["a"]}', "v1: a caption must be a text"),
        ('{"v1": {"words": ["a"]}}', "v1: a caption must be a text"),
        ('{"v1": "half \\ud83d"}', "v1: a caption must be a text"),
        ('{"v1": " "}', "v1: a caption must be a text of 1 to 10,000"),
    ],
)
def test_bad_predictions_name_file_and_id(tmp_path, text, says):
    with pytest.raises(ValueError, match=says) as error:
        metrics.read_predictions(write(tmp_path / "p.json", text))
    assert str(tmp_path / "p.json") in str(error.value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("nothing", "not JSON"),
        ("5", "must be an object that holds captions"),
        ('{"v1": ["a"], "v1": ["b"]}', "v1 comes more than once"),
        ('{"v1": "a"}', "v1: needs a list"),
        ('{"v1": []}', "v1: needs a list"),
        ('{"v1": ["a", 5]}', "v1: a caption must be a text"),
        ('{"v1": ["a", ""]}', "v1: a caption must be a text of 1 to 10,000"),
    ],
)
def test_bad_references_name_file_and_id(tmp_path, text, says):
    with pytest.raises(ValueError, match=says) as error:
        metrics.read_references(write(tmp_path / "r.json", text))
    assert str(tmp_path / "r.json") in str(error.value)


def test_unreadable_files(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"missing\.json"):
        metrics.read_predictions(tmp_path / "missing.json")
    with pytest.raises(ValueError, match="cannot be read"):
        metrics.read_references(tmp_path)
    (tmp_path / "p.json").write_bytes(b'{"a": "\xff"}')
    with pytest.raises(ValueError, match="not JSON"):
        metrics.read_predictions(tmp_path / "p.json")


def test_ids_must_agree():
    with pytest.raises(ValueError, match=r"predictions for x, y without references"):
        score(PREDICTIONS | {"x": "a", "y": "b"}, REFERENCES)
    with pytest.raises(ValueError, match=r"no prediction for b, c of the 3 clips"):
        score({"a": "a man"}, REFERENCES)
    many = {f"v{n}": ["a"] for n in range(9)}
    with pytest.raises(ValueError, match=r"v0, v1, v2, … \(9\) of the 9 clips"):
        score({}, many)
    with pytest.raises(ValueError, match="a: needs a list"):
        metrics.References({"a": "a man"})
    with pytest.raises(ValueError, match="unknown metric SPICE"):
        score(PREDICTIONS, REFERENCES, ("SPICE",))
