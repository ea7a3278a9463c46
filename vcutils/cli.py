"""The command line: `python -m vcutils <verb>`, thin over the functions that the notebooks call.

Exit codes: 0 done, 1 problems were found, 2 wrong use or bad input. Heavy imports wait until a verb needs them.
"""

import dataclasses
import functools
import json
import math
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TextIO

import tyro

from vcutils.config import Config, ModelConfig, TrainConfig, UserError

CorpusArg = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="CORPUS", help="corpus folder")]
RunArg = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN", help="data/<corpus>/runs/<name>")]
DataArg = Annotated[
    Path | None,
    tyro.conf.arg(name="data", metavar="DIR", help="where artifacts go instead of data/"),
]
JsonArg = Annotated[bool, tyro.conf.arg(name="json", help="report as JSON")]


def sample(out: Path | None = None, clips: int | None = None, seed: int = 0) -> int:
    """Render the embedded sample corpus (default: data/corpora/sample).

    Args:
        out: folder to write, new or an earlier sample.
        clips: number of clips (default: the profile's).
        seed: one seed gives bit-identical files.

    """
    from vcutils.corpora import sample as sample_module

    config = dataclasses.replace(Config.from_env(), corpus=None)
    count = config.clips if clips is None else clips
    print(sample_module.build(out or config.corpus_dir, clips=count, seed=_at_least(0, seed, "--seed")))
    return 0


def doctor(corpus: CorpusArg, fix: bool = False, data: DataArg = None, as_json: JsonArg = False) -> int:
    """Counts, split, unreadable clips, time and disk, what this machine has: what to know before hours are spent.

    Args:
        fix: list the unreadable clips in data/<corpus>/exclude.txt, so that every later stage leaves them out.

    """
    from vcutils.corpora import load_corpus
    from vcutils.corpora.doctor import examine

    config = _config(corpus, data)
    report = examine(load_corpus(config), config, fix)
    _report(report, as_json)
    return 1 if report["problems"] else 0


def extract(
    corpus: CorpusArg,
    backbone: str | None = None,
    num_frames: int | None = None,
    shard: str = "1/1",
    engine: Literal["local", "ray"] = "local",
    data: DataArg = None,
    as_json: JsonArg = False,
) -> int:
    """Features of every clip; what is done is skipped, what fails is listed (exit code 1) and passed over.

    Args:
        backbone: efficientnet_lite0, a torchvision classification model, or timm/<name>.
        num_frames: frames per clip.
        shard: I/N takes every N-th clip, for N processes or machines side by side.
        engine: ray spreads N shards over a Ray cluster (pip install ray).

    """
    from vcutils.corpora import load_corpus
    from vcutils.features import extract_corpus, feature_folder
    from vcutils.runtime.cluster import extract_with_ray

    config = _config(corpus, data, backbone)
    settings = config.extract if num_frames is None else dataclasses.replace(config.extract, num_frames=num_frames)
    opened = load_corpus(config)
    if (ready := feature_folder(opened, config.artifacts, settings)) in opened.features.values():
        others = "" if not opened.clips else "; name another --backbone to extract others from its clips"
        raise UserError(f"{opened.root}: nothing to extract, it brings features, which are used: {ready.name}{others}")
    if not opened.clips:
        raise UserError(f"{opened.root}: no clips to extract from; it brings features: {', '.join(opened.features)}")
    index, count = _shard(shard)
    if engine == "ray":
        task = functools.partial(extract_corpus, opened, config.artifacts, settings, progress=False)
        report = extract_with_ray(task, count)
    else:
        report = extract_corpus(opened, config.artifacts, settings, (index, count))
    summary = {
        "features": str(report.folder),
        "written": len(report.written),
        "skipped, done before": len(report.skipped),
        "failed": report.failed,
        "frames per second": round(report.frames / report.seconds, 1) if report.frames else None,
    }
    _report(summary, as_json)
    return 1 if report.failed else 0


def pack(
    features: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FEATURES", help="a folder of <id>.npy")],
    as_json: JsonArg = False,
) -> int:
    """Write a folder's features into one file, which is read in their place: for tens of thousands of clips."""
    from vcutils.runtime.store import FeatureStore
    from vcutils.runtime.store import pack as write_pack

    path = write_pack(features)
    _report(
        {"pack": str(path), "clips": len(FeatureStore(features).ids), "bytes": path.stat().st_size},
        as_json,
    )
    return 0


def vocab(corpus: CorpusArg, min_count: int | None = None, data: DataArg = None, as_json: JsonArg = False) -> int:
    """Fix the split and count the vocabulary on its training part.

    Args:
        min_count: words that occur less often become <unk>.

    """
    config = _config(corpus, data)
    if min_count is not None:
        config = dataclasses.replace(config, vocab=dataclasses.replace(config.vocab, min_count=min_count))
    report = _make_vocab(config)
    _report(report, as_json)
    return 1 if report["problems"] else 0


def train(
    corpus: CorpusArg,
    train: tyro.conf.OmitArgPrefixes[TrainConfig],
    model: tyro.conf.OmitArgPrefixes[ModelConfig],
    run: str = "default",
    seeds: int = 1,
    resume: bool = False,
    backbone: str | None = None,
    data: DataArg = None,
    as_json: JsonArg = False,
) -> int:
    """Train a run, also under `accelerate launch`; builds split and vocabulary first where they are missing.

    Args:
        run: name of the run, data/<corpus>/runs/<name>.
        seeds: how many runs, with seeds S, S+1, …; `evaluate` then reports mean and standard deviation.
        resume: go on from the run's last checkpoint.
        backbone: which features (default: those that the corpus brings, else the profile's).

    """
    from vcutils.scores.coco import References
    from vcutils.train import Trainer

    config = dataclasses.replace(_config(corpus, data, backbone), train=train, model=model)
    name, reports = _name(run), []
    loaded = _training_data(config)
    for seed in range(train.seed, train.seed + _at_least(1, seeds, "--seeds")):
        folder = config.artifacts / "runs" / (name if seed == train.seed else f"{name}-seed{seed}")
        settings = dataclasses.replace(config, train=dataclasses.replace(train, seed=seed))
        trainer = Trainer(folder, settings, loaded, References, resume=resume)
        trainer.fit()
        reports.append({"run": str(folder), "epochs": trainer.progress.epoch, "best": trainer.record.best_row})
    if trainer.accelerator.is_main_process:
        _report(reports[0] if len(reports) == 1 else {"runs": reports}, as_json)
    return 0


def ablate(
    corpus: CorpusArg,
    seeds: int = 1,
    split: str = "val",
    data: DataArg = None,
    as_json: JsonArg = False,
) -> int:
    """What each part of the model is worth: trains it without that part, and writes ablations.json.

    Args:
        seeds: runs per variant.
        split: the split to score on; val, since choices must not be made on test.

    """
    from vcutils.scores.ablations import ablate as run_ablations
    from vcutils.scores.ablations import ablation_table

    config = _config(corpus, data)
    first = config.train.seed
    loaded = _training_data(config)
    if split not in loaded.splits:
        raise UserError(f"unknown split {split!r}: take one of {', '.join(loaded.splits)}")
    several = range(first, first + _at_least(1, seeds, "--seeds"))
    result = run_ablations(config, loaded, config.artifacts / "runs", several, split)
    if as_json:
        _report(result, as_json=True)
    else:
        _report(result["protocol"], as_json=False)
        print(ablation_table(result))
    return 0


def evaluate(run: RunArg, split: str = "test", beam: int | None = None, as_json: JsonArg = False) -> int:
    """Caption a split and score it, beside a floor and a human line.

    Args:
        split: train, val or test.
        beam: beam size; 1 is greedy search (default: the run's own, 5 unless it was trained with another).

    """
    from vcutils.corpora import open_run
    from vcutils.scores.report import evaluate as evaluate_run
    from vcutils.scores.report import score_table

    opened = open_run(run)
    result = evaluate_run(opened, split, _decode(opened, beam))
    if as_json:
        _report(result, as_json=True)
    else:
        _report({k: v for k, v in result["protocol"].items() if k != "versions"}, as_json=False)
        print(score_table(result, run.resolve().name))
    return 0


def score(
    predictions: Annotated[Path, tyro.conf.Positional],
    references: Annotated[Path, tyro.conf.Positional],
    as_json: JsonArg = False,
) -> int:
    """Score captions by the COCO caption protocol.

    Args:
        predictions: JSON file, {id: caption}.
        references: JSON file, {id: [captions]}.

    """
    from vcutils.scores import coco

    predicted, known = coco.read_predictions(predictions), coco.read_references(references)
    scores = coco.score(predicted, known)
    protocol = {
        "clips": len(predicted),
        "references": sum(map(len, known.values())),
        "tokenizer": "PTB",
    }
    notes = coco.notes(scores, len(predicted))
    if as_json:
        _report({"scores": scores, "protocol": protocol, "notes": notes}, as_json=True)
    else:
        _report(
            {k: v if v is None else round(v, 4) for k, v in scores.items()} | protocol,
            as_json=False,
        )
        print(*notes, sep="\n")
    return 0


def caption(
    run: RunArg,
    clips: Annotated[list[Path], tyro.conf.Positional, tyro.conf.arg(metavar="CLIP")],
    beam: int | None = None,
    as_json: JsonArg = False,
) -> int:
    """Caption any clip: words, their probabilities and the time each was read from; exit code 1 when a clip fails.

    Args:
        beam: beam size; 1 is greedy search (default: the run's own, 5 unless it was trained with another).

    """
    from vcutils.attention.measures import attention_dict, word_views
    from vcutils.corpora import open_run
    from vcutils.scores.runs import caption_files

    if not clips:
        raise UserError("caption: name at least one clip")
    report: dict[str, Any] = {}
    failed = 0
    opened = open_run(run)
    for clip, result in caption_files(opened, clips, _decode(opened, beam)):
        if isinstance(result, UserError):
            failed += 1
            report[str(clip)] = {"error": str(result)}
            if not as_json:
                print(result, file=sys.stderr)
            continue
        hypothesis, timestamps = result
        report[str(clip)] = attention_dict(hypothesis, timestamps)
        if not as_json:
            print(f"{clip.name}: {hypothesis.caption}   (log-probability {hypothesis.log_prob:.2f})")
            for view, log_prob in zip(word_views(hypothesis, timestamps), hypothesis.word_log_probs, strict=True):
                line = f"  {view.word:<14} p={math.exp(log_prob):4.2f}   strongest frame at {view.seconds:6.2f} s"
                print(f"{line} ({view.weight:.0%} of the attention)")
    if as_json:
        _report(report, as_json=True)
    return 1 if failed else 0


def explore(
    run: RunArg,
    clips: Annotated[list[Path], tyro.conf.Positional, tyro.conf.arg(metavar="CLIP")],
    out: Path = Path("explorer.html"),
    check: bool = False,
    split: str = "test",
    beam: int | None = None,
    as_json: JsonArg = False,
) -> int:
    """Write one self-contained page that shows what the model looked at; CLIP is a clip's id or any video file.

    Args:
        out: the page to write.
        check: instead of a page, measure on a split how far the attention can be trusted.
        split: the split that --check measures.
        beam: beam size; 1 is greedy search (default: the run's own, 5 unless it was trained with another).
    """
    from vcutils.corpora import open_run

    if not clips and not check:
        raise UserError("explore: name at least one clip, or --check")
    opened = open_run(run)
    decode = _decode(opened, beam)
    if check:
        from vcutils.attention.checks import check as run_checks

        rows = run_checks(opened, split, decode)
        if as_json:
            _report({"split": split, "checks": rows}, as_json=True)
        else:
            _report(
                {r["check"]: f"{r['result']:<28} ({r['chance'] or '–'})  {r['reads']}" for r in rows},
                as_json=False,
            )
        return 0
    from vcutils.attention.page import page_for

    problems = page_for(opened, [str(c) for c in clips], out, decode)
    _report({"page": str(out), "problems": problems}, as_json)
    return 1 if problems else 0


VERBS = (sample, doctor, extract, pack, vocab, train, ablate, evaluate, score, caption, explore)


def main(args: list[str] | None = None) -> int:
    """Run one verb and return the exit code."""
    try:
        defaults = Config.from_env()
        verbs: dict[str, Callable] = {verb.__name__: verb for verb in VERBS}
        verbs["train"] = functools.partial(train, train=defaults.train, model=defaults.model)
        return tyro.extras.subcommand_cli_from_dict(
            verbs,
            prog="python -m vcutils",
            description="Video captioning with attention, from raw clips to an attention explorer.",
            args=args,
            config=(tyro.conf.FlagCreatePairsOff,),
        )
    except (UserError, OSError) as error:  # an OSError names its file
        print(f"vcutils: {error}", file=sys.stderr)
        return 2
    except SystemExit as stop:
        given = sys.argv[1:] if args is None else args
        if stop.code and any(re.match("-[^-]", arg) and arg != "-h" for arg in given):
            print(
                'vcutils: ids and files that begin with "-" go last, behind "--": … RUN -- -id',
                file=sys.stderr,
            )
        raise
    except KeyboardInterrupt:
        print("vcutils: stopped; finished work is kept", file=sys.stderr)
        return 130


def _config(corpus: Path, data: Path | None, backbone: str | None = None) -> Config:
    """The profile's settings on a corpus that the user names, with a backbone of the user's choice."""
    config = dataclasses.replace(Config.from_env(), corpus=Path(corpus).expanduser().resolve())
    if backbone:
        extract = dataclasses.replace(config.extract, backbone=backbone, own_features=False)
        config = dataclasses.replace(config, extract=extract)
    return dataclasses.replace(config, data=data.expanduser().resolve()) if data else config


def _at_least(low: int, value: int, name: str) -> int:
    if value < low:
        raise UserError(f"{name} {value}: must be {low} or more")
    return value


def _decode(run: Any, beam: int | None) -> Any:
    """The run's own decoding settings, with a beam size of the user's choice."""
    return run.decode if beam is None else dataclasses.replace(run.decode, beam_size=beam)


def _training_data(config: Config) -> Any:
    """A corpus' CaptionData; split and vocabulary are built first where they are missing."""
    from accelerate import PartialState

    from vcutils.corpora import load_corpus
    from vcutils.dataset import load_data

    opened = load_corpus(config)
    with PartialState().main_process_first():  # the others find what it made
        if not all((config.artifacts / name).is_file() for name in ("splits.json", "vocab.json")):
            _report(_make_vocab(config), as_json=False, file=sys.stderr)
    return load_data(opened, config.artifacts, config.extract)


def _make_vocab(config: Config) -> dict[str, Any]:
    """Write splits.json and vocab.json of a corpus; what was done as a report."""
    from vcutils.corpora import load_corpus
    from vcutils.corpus import make_splits, save_splits
    from vcutils.runtime.files import holding
    from vcutils.vocab import build_vocabulary, oov_rate

    corpus = load_corpus(config)
    splits, origin = make_splits(corpus)
    vocabulary = build_vocabulary(corpus.captions, splits["train"], config.vocab.min_count)
    with holding(config.artifacts, "vocab"):
        (config.artifacts / "vocab.json").unlink(missing_ok=True)  # beside a new split it would be of another one
        save_splits(splits, config.artifacts / "splits.json")
        vocabulary.save(config.artifacts / "vocab.json")
    return {
        "artifacts": str(config.artifacts),
        "split": {"origin": origin, **{name: len(ids) for name, ids in splits.items()}},
        "words": len(vocabulary),
        "out of vocabulary": {s: round(oov_rate(vocabulary, corpus.captions, ids), 4) for s, ids in splits.items()},
        "problems": corpus.problems,
    }


def _shard(text: str) -> tuple[int, int]:
    index, _, count = text.partition("/")
    if not (index.isdigit() and count.isdigit() and 1 <= int(index) <= int(count)):
        raise UserError(f"--shard {text!r}: write I/N with 1 <= I <= N, such as 2/8")
    return int(index), int(count)


def _name(run: str) -> str:
    if not run or run != Path(run).name or run.startswith("."):
        raise UserError(f"--run {run!r}: a run's name is one plain folder name")
    return run


def _report(report: Mapping[str, Any], as_json: bool, file: TextIO | None = None) -> None:
    """Print a report, as JSON or as aligned lines; long lists are shortened for people, never in JSON."""
    if as_json:
        print(json.dumps(report, ensure_ascii=False, indent=2), file=file)
        return
    width = max(map(len, report))
    for key, value in report.items():
        shown = _text(value)
        if isinstance(value, Mapping) and len(shown) > 100:
            value = [f"{k}: {_text(v)}" for k, v in value.items()]
        if isinstance(value, list):
            lines = [_text(v) for v in value[:10]] + ([f"… and {len(value) - 10} more"] if len(value) > 10 else [])
            shown = ("\n" + " " * (width + 2)).join(lines) or "none"
        print(f"{key:<{width}}  {shown}", file=file)


def _text(value: Any) -> str:
    """A value of a report on one line."""
    if isinstance(value, Mapping):
        return ", ".join(f"{k}: {_text(v)}" for k, v in value.items()) or "none"
    return "–" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
