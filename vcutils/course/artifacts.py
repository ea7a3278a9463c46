"""What the exercise notebooks stand on: features, split, vocabulary and a trained run, built when missing."""

from typing import NamedTuple

from vcutils.config import Config
from vcutils.corpora import load_corpus, open_run
from vcutils.corpus import Corpus, make_splits, save_splits
from vcutils.dataset import CaptionData, load_data
from vcutils.features import extract_corpus, feature_folder
from vcutils.scores.coco import References
from vcutils.scores.runs import Run
from vcutils.train import Trainer
from vcutils.vocab import build_vocabulary


class Course(NamedTuple):
    """The corpus of the settings, and what notebooks 1 and 2 make of it."""

    config: Config  # with None filled in for the corpus' size
    corpus: Corpus
    data: CaptionData


def course_data() -> Course:
    """Settings, corpus, features, split and vocabulary; what is missing in data/ is made, with progress bars."""
    config = Config.from_env()
    corpus = load_corpus(config)
    if feature_folder(corpus, config.artifacts, config.extract) not in corpus.features.values():
        extract_corpus(corpus, config.artifacts, config.extract)  # clips that are done are skipped
    if not all((config.artifacts / name).is_file() for name in ("splits.json", "vocab.json")):
        splits, _ = make_splits(corpus)
        save_splits(splits, config.artifacts / "splits.json")
        build_vocabulary(corpus.captions, splits["train"], config.vocab.min_count).save(config.artifacts / "vocab.json")
    data = load_data(corpus, config.artifacts, config.extract)
    return Course(data.suited(config), corpus, data)


def course_run() -> Run:
    """The run `default` on the CPU: the one that notebook 3 trained, or trained now (under a minute on the sample)."""
    config, _, data = course_data()
    folder = config.artifacts / "runs" / "default"
    log = folder / "log.csv"
    epochs = len(log.read_text("utf-8").splitlines()) - 1 if log.is_file() else 0
    if not (folder / "best").is_dir() or epochs < (config.train.epochs or 0):
        Trainer(folder, config, data, References, resume="auto").fit()
    run = open_run(folder)
    run.model.cpu()
    return run
