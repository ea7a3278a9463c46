"""BLEU-1…4, METEOR, ROUGE-L and CIDEr of captions, by the protocol of the COCO caption evaluation.

The protocol (Chen et al. 2015, "Microsoft COCO Captions") is more than the formulas: captions are cut into Penn
Treebank words, lower-cased, without punctuation (`scores.ptb`); every reference of a clip counts; and the scorers are
those of the COCO toolkit, here from the package pycocoevalcap. Numbers are fractions, as the toolkit returns them.

    Bleu_1 … Bleu_4   n-grams of the caption found in some reference, over the whole corpus, with a penalty for
                      captions shorter than the closest reference (Papineni et al. 2002)
    METEOR            words aligned by form, stem, synonym and paraphrase, recall before precision, with a penalty for
                      broken order (Banerjee & Lavie 2005; version 1.5: Denkowski & Lavie 2014); a Java program
    ROUGE_L           longest common subsequence, recall before precision (Lin 2004)
    CIDEr             n-grams weighted by how rare they are among the clips, averaged over the references, times 10, so
                      it may exceed 1 (Vedantam et al. 2015; the toolkit's variant is the paper's CIDEr-D)

SPICE, the toolkit's sixth metric, is left out: it downloads Stanford's parser models for a Java program that needs
minutes and old Java versions, so nobody could repeat its numbers offline.
"""

import atexit
import os
import shutil
import subprocess
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from pycocoevalcap.bleu.bleu_scorer import BleuScorer, cook_refs, cook_test
from pycocoevalcap.cider.cider_scorer import CiderScorer, precook
from pycocoevalcap.meteor.meteor import Meteor
from pycocoevalcap.rouge.rouge import Rouge  # codespell:ignore rouge

from vcutils.config import UserError
from vcutils.runtime.checks import MAX_CAPTION
from vcutils.runtime.files import read_json
from vcutils.scores.ptb import ptb_words_of_all

METRICS = {
    "Bleu": ("Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4"),
    "METEOR": ("METEOR",),
    "ROUGE_L": ("ROUGE_L",),
    "CIDEr": ("CIDEr",),
}

END = "<end>"  # no PTB word is spelled so
_Scores = dict[str, float | None]


def score(
    predictions: Mapping[str, str],
    references: Mapping[str, Sequence[str]],
    metrics: Sequence[str] | None = None,
) -> _Scores:
    """Scores of one caption per clip under the COCO toolkit's names, in its order.

    `metrics` leaves some out, by the names in METRICS: ("Bleu", "CIDEr") needs no Java. METEOR is None where there is
    no Java (`notes` says why). An empty caption earns nothing. Raises UserError when the ids of predictions and
    references differ.
    """
    return References(references).score(predictions, metrics)


def score_per_clip(
    predictions: Mapping[str, str],
    references: Mapping[str, Sequence[str]],
    metrics: Sequence[str] | None = None,
) -> dict[str, _Scores]:
    """The same scores clip by clip, {id: {name: value}}; their mean is the corpus' score but for BLEU and METEOR."""
    return References(references).score_per_clip(predictions, metrics)


class References:
    """References that are scored against more than once: words, n-grams and document frequencies are counted once.

    Raises UserError for a clip without references.
    """

    def __init__(self, references: Mapping[str, Sequence[str]]) -> None:
        if not references:
            raise UserError("no references: scores need at least one clip with captions")
        for video_id, captions in references.items():
            if isinstance(captions, str) or not captions:
                raise UserError(f"{video_id}: needs a list with at least one reference caption")
        self.ids = tuple(references)
        words = iter(ptb_words_of_all([caption for captions in references.values() for caption in captions]))
        self._texts = {i: [" ".join(next(words)) for _ in captions] for i, captions in references.items()}

    def score(self, predictions: Mapping[str, str], metrics: Sequence[str] | None = None) -> _Scores:
        """Scores of one caption for each of these clips; see `score`."""
        return {name: corpus for name, (corpus, _) in self._score(predictions, metrics).items()}

    def score_per_clip(
        self, predictions: Mapping[str, str], metrics: Sequence[str] | None = None
    ) -> dict[str, _Scores]:
        """Scores clip by clip; see `score_per_clip`."""
        found = self._score(predictions, metrics)
        return {i: {name: clips[n] for name, (_, clips) in found.items()} for n, i in enumerate(self.ids)}

    def cider(self, captions: Sequence[tuple[str, str]], ended: Sequence[bool]) -> list[float]:
        """CIDEr of any number of (id, caption) pairs, with all these references as the corpus, the end as a word.

        The reward of self-critical training (Rennie et al. 2017): a clip may come several times or not at all, and a
        caption that did not end lacks the references' last word. About 4 ms a caption at 40 references. Raises
        UserError for an unknown id.
        """
        if unknown := [i for i, _ in captions if i not in self._texts]:
            raise UserError(f"no references for {_some(unknown)}")
        words = ptb_words_of_all([caption for _, caption in captions])
        texts = [" ".join([*w, END] if end else w) for w, end in zip(words, ended, strict=True)]
        return self._with_ends._cider([i for i, _ in captions], texts)

    @cached_property
    def _with_ends(self) -> "References":
        """The same references with their end as a word."""
        other = References.__new__(References)
        other.ids = self.ids
        other._texts = {i: [f"{text} {END}" for text in texts] for i, texts in self._texts.items()}
        return other

    def _cider(self, ids: Sequence[str], texts: Sequence[str]) -> list[float]:
        values: list[float] = []
        for start in range(0, len(ids), len(self.ids)):
            part = slice(start, start + len(self.ids))
            clips = [self._ngrams[i] for i in ids[part]]
            scorer = CiderScorer(n=4, sigma=6.0)
            scorer.document_frequency = self._document_frequency
            scorer.ctest = [precook(text, 4) for text in texts[part]]
            # The scorer takes the number of clips from the length of this list, and reads as many as there are tests.
            scorer.crefs = clips + [[]] * (len(self.ids) - len(clips))
            values += map(float, scorer.compute_cider())
        return values

    @cached_property
    def _ngrams(self) -> dict[str, list[Mapping[tuple[str, ...], int]]]:
        return {i: [precook(text, 4) for text in texts] for i, texts in self._texts.items()}

    @cached_property
    def _document_frequency(self) -> Counter[tuple[str, ...]]:
        # A Counter, since the scorer asks for unknown n-grams and a defaultdict would keep every one of them.
        return Counter(ngram for clip in self._ngrams.values() for ngram in set().union(*clip))

    @cached_property
    def _bleu(self) -> list[Any]:
        return [cook_refs(texts) for texts in self._texts.values()]

    def _score(
        self, predictions: Mapping[str, str], metrics: Sequence[str] | None
    ) -> dict[str, tuple[float | None, Sequence[float | None]]]:
        """{name: (score of the corpus, scores of the clips)}."""
        chosen = _chosen(metrics)
        if unknown := [i for i in predictions if i not in self._texts]:
            raise UserError(f"predictions for {_some(unknown)} without references: add those or leave the clips out")
        if missing := [i for i in self.ids if i not in predictions]:
            raise UserError(
                f"no prediction for {_some(missing)} of the {len(self.ids)} clips with references: caption them too, "
                "or score against the references of the captioned clips alone"
            )
        words = ptb_words_of_all([predictions[i] for i in self.ids])
        texts = {i: [" ".join(w)] for i, w in zip(self.ids, words, strict=True)}
        found: dict[str, tuple[float | None, Sequence[float | None]]] = {}
        for metric in chosen:
            if metric == "Bleu":
                scorer = BleuScorer(n=4)
                scorer.crefs = self._bleu
                scorer.ctest = [cook_test(texts[i][0], r) for i, r in zip(self.ids, self._bleu, strict=True)]
                found |= zip(METRICS["Bleu"], zip(*scorer.compute_score("closest"), strict=True), strict=True)
            elif metric == "METEOR":
                found["METEOR"] = _meteor_scores(self._texts, texts)
            elif metric == "ROUGE_L":
                mean, clips = Rouge().compute_score(self._texts, texts)  # codespell:ignore rouge
                found["ROUGE_L"] = float(mean), clips.tolist()
            else:
                values = self._cider(self.ids, [texts[i][0] for i in self.ids])
                found["CIDEr"] = sum(values) / len(values), values
        return found


def _chosen(metrics: Sequence[str] | None) -> list[str]:
    """The metrics asked for, in the toolkit's order."""
    wanted = METRICS if metrics is None else [metrics] if isinstance(metrics, str) else metrics
    if unknown := [m for m in wanted if m not in METRICS]:
        raise UserError(f"unknown metric {_some(unknown)}: take some of {', '.join(METRICS)}")
    return [m for m in METRICS if m in wanted]


def _some(ids: Sequence[str]) -> str:
    """A few ids and how many there are."""
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
    if (java := _java()) is None:
        return "METEOR: not available without Java; install one (apt install default-jre, conda install openjdk)"
    if not _runs(java):
        return f"METEOR: not available, since `{java} -version` fails; install a Java that runs, or set JAVA_HOME"
    return None


def _java() -> str | None:
    home = os.environ.get("JAVA_HOME")
    return (shutil.which("java", path=str(Path(home, "bin"))) if home else None) or shutil.which("java")


@cache
def _runs(java: str) -> bool:
    # macOS has a /usr/bin/java that only says where to get one
    try:
        return subprocess.run([java, "-version"], capture_output=True, check=False).returncode == 0
    except OSError:
        return False


@cache
def _meteor(java: str) -> Meteor:
    """METEOR's Java program. It reads 60 MB of paraphrases for ten seconds, so one serves until Python ends."""
    kept = {name: os.environ.get(name) for name in ("PATH", "JAVA_TOOL_OPTIONS")}
    os.environ["PATH"] = os.pathsep.join([str(Path(java).parent), kept["PATH"] or ""])
    os.environ["JAVA_TOOL_OPTIONS"] = f"{kept['JAVA_TOOL_OPTIONS'] or ''} -Dfile.encoding=UTF-8"  # else the locale's
    try:
        meteor = Meteor()
    finally:
        for name, value in kept.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
    atexit.register(meteor.meteor_p.kill)
    return meteor


def _meteor_scores(
    references: Mapping[str, Sequence[str]], hypotheses: Mapping[str, Sequence[str]]
) -> tuple[float | None, Sequence[float | None]]:
    if why_no_meteor() is not None:
        return None, [None] * len(references)
    meteor = _meteor(str(_java()))
    try:
        corpus, clips = meteor.compute_score(references, hypotheses)
    except (OSError, ValueError):  # the program ended; `notes` says so
        if meteor.lock.locked():
            meteor.lock.release()
        _meteor.cache_clear()
        return None, [None] * len(references)
    return corpus, clips


def read_predictions(path: Path | str) -> dict[str, str]:
    """Captions by id from JSON: {id: caption}, or {id: {"caption": …}} as notebook 04 writes.

    Raises UserError for anything else, naming the file and the id, and for an empty caption.
    """
    predictions = {}
    for video_id, value in _read_object(path, "{id: caption}").items():
        caption = value.get("caption") if isinstance(value, dict) else value
        if not isinstance(caption, str):
            raise UserError(f'{path}: {video_id}: needs a caption (text, or an object with "caption")')
        if not caption.strip():
            raise UserError(f"{path}: {video_id}: the caption is empty; write one, or leave the clip out everywhere")
        _check_text(caption, path, video_id)
        predictions[video_id] = caption
    return predictions


def read_references(path: Path | str) -> dict[str, list[str]]:
    """Reference captions by id from JSON, {id: [captions]}.

    Raises UserError for anything else, naming the file and the id, and for empty captions or lists.
    """
    references = {}
    for video_id, captions in _read_object(path, "{id: [captions]}").items():
        if not isinstance(captions, list) or not captions:
            raise UserError(f"{path}: {video_id}: needs a list with at least one caption")
        if any(not isinstance(caption, str) or not caption.strip() for caption in captions):
            raise UserError(f"{path}: {video_id}: every reference must be a text that is not empty")
        for caption in captions:
            _check_text(caption, path, video_id)
        references[video_id] = captions
    return references


def _check_text(caption: str, path: Path | str, video_id: str) -> None:
    if len(caption) > MAX_CAPTION:
        raise UserError(f"{path}: {video_id}: {len(caption):,} characters; a caption has at most {MAX_CAPTION:,}")
    try:
        caption.encode()
    except UnicodeEncodeError as error:  # METEOR's program could not be told
        raise UserError(f"{path}: {video_id}: {caption[error.start]!a} is half a character; mend it") from error


def _read_object(path: Path | str, shape: str) -> dict[str, Any]:
    """The JSON object of a file; a key that comes twice is an error, since JSON readers drop one of the two."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if repeated := [key for key, count in Counter(key for key, _ in pairs).items() if count > 1]:
            raise UserError(f"{path}: {_some(repeated)} comes more than once; keep one entry per id")
        return dict(pairs)

    try:
        data = read_json(Path(path), object_pairs_hook=unique)
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file; it must be JSON, {shape}") from error
    if not isinstance(data, dict):
        raise UserError(f"{path}: holds {type(data).__name__}, not an object; write {shape}")
    if not data:
        raise UserError(f"{path}: holds no captions; write {shape}")
    return data
