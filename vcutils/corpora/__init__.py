"""Corpora: the rendered sample, readers of MSVD, MSR-VTT and COCO files, the doctor.

`load_corpus(config)` opens the corpus of the settings, `open_run(folder)` a trained run with its corpus.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

from vcutils.config import Config, ExtractConfig
from vcutils.corpora.readers import EXCLUDE, leave_out, open_corpus
from vcutils.corpus import Corpus


def load_corpus(config: Config, progress: bool = True) -> Corpus:
    """The corpus of the settings, without the clips in its exclude.txt; renders the sample first if needed."""
    if config.corpus is None:
        from vcutils.corpora import sample

        sample.build(config.corpus_dir, clips=config.clips, progress=progress)
    return leave_out(open_corpus(config.corpus_dir), config.artifacts / EXCLUDE)


def indexed_corpus(root: Path, artifacts: Path, extract: ExtractConfig) -> Corpus | None:
    """The corpus from the index beside its features, read clip by clip; None where it has none, or of another state.

    For training and evaluation: its clips are those with features and captions.
    """
    from vcutils.features import feature_folder  # slow to import
    from vcutils.runtime.arrow import INDEX, Parts, corpus_state

    folders = {path.name: path for path in sorted((root / "features").glob("*")) if path.is_dir()}
    corpus = Corpus(root, {}, {}, features=folders, split_origin="the index of its features")
    folder = feature_folder(corpus, artifacts, extract)
    if not (folder / INDEX).is_file():
        return None
    parts: Any = Parts(folder)
    if parts.about["corpus"] != corpus_state(root, artifacts):
        return None
    clips: Any = parts.each(lambda video_id: root / parts.row(video_id)["source"])
    return replace(corpus, clips=clips, captions=parts.captions, own_splits=parts.splits, indexed=parts.splits)


def open_run(folder: Path | None = None) -> Any:
    """Open data/<corpus>/runs/<name> with the corpus that it was trained on; without a folder, the shipped captioner.

    Raises UserError that names what is missing.
    """
    from vcutils.runtime.checkpoints import run_config
    from vcutils.runtime.store import backbone_of
    from vcutils.scores.runs import load_captioner, load_run

    if folder is None:
        return load_captioner()
    folder = Path(folder).resolve()
    config = run_config(folder)
    root, artifacts = Path(config["corpus_dir"]), folder.parent.parent
    corpus = indexed_corpus(root, artifacts, ExtractConfig(backbone_of(config["features"]), own_features=False))
    corpus = corpus or leave_out(open_corpus(root), artifacts / EXCLUDE)
    return load_run(folder, config, corpus)
