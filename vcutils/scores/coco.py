"""BLEU-1…4, METEOR, ROUGE-L and CIDEr of captions, by the protocol of the COCO caption evaluation.

The protocol (Chen et al. 2015, "Microsoft COCO Captions") is more than the formulas: captions are cut into Penn
Treebank words, lower-cased, without punctuation (`scores.ptb`); every reference of a clip counts; and the scorers are
those of the COCO toolkit, here from the package pycocoevalcap; CIDEr alone is computed here, to the same numbers, since
the toolkit weighs all references again for every caption. Numbers are fractions, as the toolkit returns them.

    Bleu_1 … Bleu_4   n-grams found in some reference, over the whole corpus; brevity costs (Papineni et al. 2002)
    METEOR            words aligned by form, stem, synonym, paraphrase (Denkowski & Lavie 2014); a Java program
    ROUGE_L           longest common subsequence, recall before precision (Lin 2004)
    CIDEr             n-grams weighted by how rare they are among the clips, mean over the references, times 10, so it
                      may exceed 1 (Vedantam et al. 2015; the toolkit's variant is the paper's CIDEr-D)

SPICE is left out: it downloads a parser for a Java program that needs old versions, so nobody could repeat it offline.
"""

import atexit
import inspect
import math
import os
import re
import shutil
import subprocess
import threading
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from pycocoevalcap.bleu.bleu_scorer import BleuScorer, cook_refs, cook_test
from pycocoevalcap.cider.cider_scorer import precook
from pycocoevalcap.meteor.meteor import METEOR_JAR, Meteor
from pycocoevalcap.rouge.rouge import Rouge  # codespell:ignore rouge

from vcutils.config import UserError
from vcutils.runtime.checks import MAX_CAPTION
from vcutils.runtime.files import read_json
from vcutils.scores.ptb import ptb_words_of_all

METRICS = ("Bleu", "METEOR", "ROUGE_L", "CIDEr")
END = "<end>"  # no PTB word is spelled so
_SURROGATE = re.compile("[\ud800-\udfff]")
Scores = dict[str, float | None]


class References:
    """References to score against more than once, {id: captions}. Raises UserError for a clip without captions."""

    def __init__(self, references: Mapping[str, Sequence[str]]) -> None:
        for video_id, captions in references.items():
            if isinstance(captions, str) or not captions:
                raise UserError(f"{video_id}: needs a list with at least one reference caption")
        words = iter(ptb_words_of_all([caption for captions in references.values() for caption in captions]))
        self.texts = {i: [" ".join(next(words)) for _ in captions] for i, captions in references.items()}

    def score(self, predictions: Mapping[str, str], metrics: Sequence[str] = METRICS) -> Scores:
        """Scores of one caption for each of these clips, under the COCO toolkit's names and in its order.

        `metrics` leaves some out, by the names in METRICS: ("Bleu", "CIDEr") needs no Java. METEOR is None where there
        is no Java (`notes` says why). An empty caption earns nothing. Raises UserError when the ids of predictions and
        references differ.
        """
        return {name: corpus for name, (corpus, _) in self.score_both(predictions, metrics).items()}

    def cider(self, captions: Sequence[tuple[str, str]], ended: Sequence[bool] | None = None) -> list[float]:
        """CIDEr of (id, caption) pairs, with all these references as the corpus; a clip may come often or never.

        With `ended` the end is a word, and a caption that did not end lacks the references' last one: the reward of
        self-critical training (Rennie et al. 2017).
        """
        ids, words = [i for i, _ in captions], ptb_words_of_all([caption for _, caption in captions])
        if ended is None:
            return self._cider(ids, map(" ".join, words))
        texts = [" ".join([*w, END] if end else w) for w, end in zip(words, ended, strict=True)]
        return self._cider_with_ends(ids, texts)

    @cached_property
    def _cider(self) -> "_Cider":
        return _Cider(self.texts)

    @cached_property
    def _cider_with_ends(self) -> "_Cider":
        return _Cider({i: [f"{text} {END}" for text in texts] for i, texts in self.texts.items()})

    @cached_property
    def _bleu(self) -> list[Any]:
        return [cook_refs(texts) for texts in self.texts.values()]

    def score_both(
        self, predictions: Mapping[str, str], metrics: Sequence[str]
    ) -> dict[str, tuple[float | None, Sequence[float | None]]]:
        """{name: (score of the corpus, scores of the clips in the references' order)}; see `score`."""
        if unknown := [m for m in metrics if m not in METRICS]:
            raise UserError(f"unknown metric {_some(unknown)}: take some of {', '.join(METRICS)}")
        if unknown := [i for i in predictions if i not in self.texts]:
            raise UserError(f"predictions for {_some(unknown)} without references: add those or leave the clips out")
        if missing := [i for i in self.texts if i not in predictions]:
            raise UserError(
                f"no prediction for {_some(missing)} of the {len(self.texts)} clips with references: caption them "
                "too, or score against the references of the captioned clips alone"
            )
        texts = [" ".join(words) for words in ptb_words_of_all([predictions[i] for i in self.texts])]
        hypotheses = {i: [text] for i, text in zip(self.texts, texts, strict=True)}
        scores: dict[str, tuple[float | None, Sequence[float | None]]] = {}
        if "Bleu" in metrics:
            scorer = BleuScorer(n=4)
            scorer.crefs = self._bleu
            scorer.ctest = [cook_test(text, refs) for text, refs in zip(texts, self._bleu, strict=True)]
            for n, of_both in enumerate(zip(*scorer.compute_score("closest"), strict=True), start=1):
                scores[f"Bleu_{n}"] = of_both
        if "METEOR" in metrics:
            scores["METEOR"] = None, [None] * len(texts)
            if java := _java():
                try:
                    scores["METEOR"] = _Meteor(java).compute_score(self.texts, hypotheses)
                except (OSError, ValueError):  # the program ended; `notes` says so
                    _Meteor.cache_clear()
        if "ROUGE_L" in metrics:
            mean, clips = Rouge().compute_score(self.texts, hypotheses)  # codespell:ignore rouge
            scores["ROUGE_L"] = float(mean), clips.tolist()
        if "CIDEr" in metrics:
            values = self._cider(list(self.texts), texts)
            scores["CIDEr"] = sum(values) / len(values), values
        return scores


class _Cider:
    """CIDEr against fixed references, whose n-grams are weighed once: the toolkit does so again for every caption."""

    def __init__(self, references: Mapping[str, Sequence[str]]) -> None:
        ngrams = {i: [precook(text, 4) for text in texts] for i, texts in references.items()}
        clips = Counter(ngram for clip in ngrams.values() for ngram in set().union(*clip))
        self.rarest = math.log(len(ngrams))  # weight of an n-gram that one clip has, or none
        self.idf = {ngram: self.rarest - math.log(count) for ngram, count in clips.items()}
        self.references = {i: [self._weigh(counts) for counts in clip] for i, clip in ngrams.items()}

    def _weigh(self, counts: Mapping[tuple, int]) -> tuple[dict[tuple, float], dict[tuple, float], int]:
        """TF-IDF of a caption's n-grams; the same as a vector of length 1 for each n; the caption's bigrams."""
        weights = {g: count * idf for g, count in counts.items() if (idf := self.idf.get(g, self.rarest))}
        norms = [math.hypot(*(weight for g, weight in weights.items() if len(g) == n)) for n in (1, 2, 3, 4)]
        units = {g: weight / norms[len(g) - 1] for g, weight in weights.items()}
        return weights, units, sum(count for g, count in counts.items() if len(g) == 2)

    def __call__(self, ids: Iterable[str], texts: Iterable[str]) -> list[float]:
        """CIDEr of each text against the references of its clip."""
        values = []
        for i, text in zip(ids, texts, strict=True):
            (weights, units, length), total = self._weigh(precook(text, 4)), 0.0
            for theirs, their_units, their_length in self.references[i]:
                shared = [g for g in weights if g in theirs]  # in an order that is the same in every process
                cosines = sum(min(1.0, theirs[g] / weights[g]) * units[g] * their_units[g] for g in shared)
                total += cosines / 4 * math.exp(-((length - their_length) ** 2) / (2 * 6.0**2))
            values.append(10 * total / len(self.references[i]))
        return values


def score_per_clip(
    predictions: Mapping[str, str], references: Mapping[str, Sequence[str]], metrics: Sequence[str] = METRICS
) -> dict[str, Scores]:
    """The scores of `References.score` clip by clip, {id: {name: value}}.

    For ROUGE-L and CIDEr, their mean is the score of the corpus; for BLEU and METEOR it is not.
    """
    scores = References(references).score_both(predictions, metrics)
    return {i: {name: clips[n] for name, (_, clips) in scores.items()} for n, i in enumerate(references)}


def _some(ids: Sequence[str]) -> str:
    """The first ids, and how many there are in all."""
    return ", ".join(ids[:3]) + (f", … ({len(ids)})" if len(ids) > 3 else "")


def notes(scores: Mapping[str, float | None], clips: int) -> list[str]:
    """What a reader of these scores must be told: a missing METEOR, zeros that say nothing about the captions."""
    lines = []
    if "METEOR" in scores and scores["METEOR"] is None:
        lines.append(why_no_meteor() or "METEOR: not available, its Java program ended; it needs 2 GB of memory")
    if "CIDEr" in scores and clips == 1:
        lines.append("CIDEr of one clip is 0 by definition: no n-gram is rarer than another in a corpus of one")
    # The toolkit puts a tiny number in place of 0; this quotient is the 4-grams' precision (times the penalty).
    if (scores.get("Bleu_4") or 0.0) ** 4 <= 1.1e-6 * (scores.get("Bleu_3") or 0.0) ** 3 and "Bleu_4" in scores:
        lines.append("Bleu_4 means 0: no four words in a row are in a reference (a three-word caption has no 4-gram)")
    return lines


def why_no_meteor() -> str | None:
    """One line on why METEOR cannot run here and how to change it; None when it can."""
    why = "METEOR: needs Java: apt install default-jre or conda install openjdk, or set JAVA_HOME to one that runs"
    return None if _java() else why


def _java() -> str | None:
    """Path of the Java that JAVA_HOME names, else of that on the PATH; None when it does not run."""
    home = os.environ.get("JAVA_HOME")
    java = (shutil.which("java", path=str(Path(home, "bin"))) if home else None) or shutil.which("java")
    return java if java and _runs(java) else None


@cache
def _runs(java: str) -> bool:
    with suppress(OSError):  # macOS has a /usr/bin/java that only says where to get one
        return subprocess.run([java, "-version"], capture_output=True, check=False).returncode == 0
    return False


@cache
class _Meteor(Meteor):
    """METEOR's Java program. It reads 60 MB of paraphrases for ten seconds, so one serves until Python ends."""

    def __init__(self, java: str) -> None:
        # As its parent does, but with this Java, and with an encoding that does not depend on the locale.
        command = [java, "-Dfile.encoding=UTF-8", "-Xmx2G", "-jar", METEOR_JAR, *"- - -stdio -l en -norm".split()]
        pipe, folder = subprocess.PIPE, Path(inspect.getfile(Meteor)).parent
        self.meteor_p = subprocess.Popen(command, cwd=folder, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL)
        self.lock = threading.RLock()  # its parent's end takes it again after a call that failed
        atexit.register(self.meteor_p.kill)


def start_meteor() -> None:
    """Start METEOR's program now, where there is Java, so that it is ready when a score is asked for."""
    if java := _java():
        _Meteor(java)


def read_predictions(path: Path | str) -> dict[str, str]:
    """Captions by id from JSON: {id: caption}, or {id: {"caption": …}} as notebook 04 writes; see `read_references`."""
    rows = _read_object(path, "{id: caption}")
    captions = {i: [row.get("caption") if isinstance(row, dict) else row] for i, row in rows.items()}
    return {i: caption for i, (caption,) in _checked(captions, path).items()}


def read_references(path: Path | str) -> dict[str, list[str]]:
    """Reference captions by id from JSON, {id: [captions]}.

    Raises UserError for anything else, naming the file and the id; FileNotFoundError where there is no file.
    """
    return _checked(_read_object(path, "{id: [captions]}"), path)


def _checked(captions: dict[str, Any], path: Path | str) -> dict[str, list[str]]:
    """The captions themselves. Raises UserError for what is no caption, or could not be sent to METEOR's program."""
    for video_id, texts in captions.items():
        if not isinstance(texts, list) or not texts:
            raise UserError(f"{path}: {video_id}: needs a list with at least one caption")
        for text in texts:
            if not isinstance(text, str) or not text.strip() or len(text) > MAX_CAPTION or _SURROGATE.search(text):
                reason = f"a caption must be a text of 1 to {MAX_CAPTION:,} characters, with no surrogate in it"
                raise UserError(f"{path}: {video_id}: {reason}; mend it, or leave the clip out")
    return captions


def _read_object(path: Path | str, shape: str) -> dict[str, Any]:
    """The JSON object of a file; a key that comes twice is an error, since JSON readers drop one of the two."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if repeated := [key for key, count in Counter(key for key, _ in pairs).items() if count > 1]:
            raise UserError(f"{path}: {_some(repeated)} comes more than once; keep one entry per id")
        return dict(pairs)

    data = read_json(Path(path), object_pairs_hook=unique)
    if not isinstance(data, dict) or not data:
        raise UserError(f"{path}: must be an object that holds captions; write {shape}")
    return data
