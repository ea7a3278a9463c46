"""Corpora: the rendered sample, readers of MSVD, MSR-VTT and COCO files, the doctor.

`load_corpus(config)` opens the corpus of the settings, `open_run(folder)` a trained run with its corpus.
"""

from pathlib import Path
from typing import Any

from vcutils.config import Config
from vcutils.corpora.readers import EXCLUDE, leave_out, open_corpus
from vcutils.corpus import Corpus


def load_corpus(config: Config, progress: bool = True) -> Corpus:
    """The corpus of the settings, without the clips in its exclude.txt; renders the sample first if needed."""
    if config.corpus is None:
        from vcutils.corpora import sample

        sample.build(config.corpus_dir, clips=config.clips, progress=progress)
    return leave_out(open_corpus(config.corpus_dir), config.artifacts / EXCLUDE)


def open_run(folder: Path | None = None) -> Any:
    """Open data/<corpus>/runs/<name> with the corpus that it was trained on; without a folder, the shipped captioner.

    Raises UserError that names what is missing.
    """
    from vcutils.runtime.checkpoints import run_config
    from vcutils.scores.runs import load_captioner, load_run

    if folder is None:
        return load_captioner()
    folder = Path(folder).resolve()
    config = run_config(folder)
    corpus = leave_out(open_corpus(Path(config["corpus_dir"])), folder.parent.parent / EXCLUDE)
    return load_run(folder, config, corpus)
