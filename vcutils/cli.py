"""The command line: `python -m vcutils <verb>`, thin over the functions that the notebooks call.

Exit codes: 0 done, 1 problems were found, 2 wrong use or bad input. Heavy imports wait until a verb needs them.
"""

import functools
import json
import math
import re
import sys
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from tyro.conf import Positional, arg

from vcutils.config import Config, DecodeConfig, ModelConfig, TrainConfig, UserError

CorpusArg = Annotated[Path, Positional, arg(metavar="CORPUS", help="corpus folder")]
FeaturesArg = Annotated[Path, Positional, arg(metavar="FEATURES", help="a folder of <id>.npy")]
RunArgs = Annotated[list[Path], Positional, arg(metavar="RUN", help="data/<corpus>/runs/<name>, one or several")]
RunOption = Annotated[Path | None, arg(metavar="RUN", help="data/<corpus>/runs/<name>, else the shipped captioner")]
ClipArgs = Annotated[list[Path], Positional, arg(metavar="CLIP", help="video files; a run may stand before them")]
SplitArg = Annotated[Literal["train", "val", "test"], arg(help="the split to measure on")]
SeedsArg = Annotated[int, arg(help="how many runs, with seeds S, S+1, …")]
BeamArg = Annotated[int | None, arg(help="beam size; 1 is greedy search (default: the run's own)")]
BackboneArg = Annotated[str | None, arg(help="efficientnet_lite0, a torchvision classification model, or timm/<name>")]
DataArg = Annotated[Path | None, arg(name="data", metavar="DIR", help="where artifacts go instead of data/")]
JsonArg = Annotated[bool, arg(name="json", help="report as JSON")]


def sample(
    out: Annotated[Path | None, arg(help="folder to write, new or an earlier sample")] = None,
    clips: Annotated[int | None, arg(help="number of clips (default: the profile's)")] = None,
    seed: Annotated[int, arg(help="one seed gives bit-identical files")] = 0,
) -> int:
    """Render the embedded sample corpus (default: data/corpora/sample)."""
    from vcutils.corpora.sample import build

    config = replace(Config.from_env(), corpus=None)
    count = config.clips if clips is None else clips
    print(build(out or config.corpus_dir, clips=count, seed=_at_least(0, seed, "--seed")))
    return 0


def doctor(
    corpus: CorpusArg,
    fix: Annotated[bool, arg(help="list unreadable clips in exclude.txt, so that every stage leaves them out")] = False,
    data: DataArg = None,
    as_json: JsonArg = False,
) -> int:
    """Counts, split, unreadable clips, time and disk, what this machine has: what to know before hours are spent."""
    from vcutils.corpora.doctor import examine

    report = examine(*_open(corpus, data), fix)
    return _print(report, as_json, failed=report["problems"])


def extract(
    corpus: Annotated[
        str, Positional, arg(metavar="CORPUS", help="corpus folder; for a cluster also s3://… and others")
    ],
    backbone: BackboneArg = None,
    num_frames: Annotated[int | None, arg(help="frames per clip")] = None,
    shard: Annotated[str, arg(help="I/N takes every N-th clip, for N processes or machines side by side")] = "1/1",
    engine: Annotated[Literal["local", "ray"], arg(help="ray spreads the clips over a Ray cluster")] = "local",
    data: Annotated[
        str | None, arg(metavar="DIR", help="where artifacts go instead of data/; a URI like CORPUS")
    ] = None,
    as_json: JsonArg = False,
) -> int:
    """Features of every clip; what is done is skipped, what fails is listed (exit code 1) and passed over."""
    index, _, count = shard.partition("/")
    if not (index.isdigit() and count.isdigit() and 1 <= int(index) <= int(count)):
        raise UserError(f"--shard {shard!r}: write I/N with 1 <= I <= N, such as 2/8")
    if engine == "ray":
        if count != "1":
            raise UserError("--shard: is for processes that know nothing of each other; --engine ray spreads all clips")
        folder, report = _extract_on_cluster(corpus, backbone, num_frames, data)
    else:
        from vcutils.features import extract_corpus, feature_folder

        opened, config = _open(Path(corpus), Path(data) if data else None, backbone, extract={"num_frames": num_frames})
        own = opened.features
        if feature_folder(opened, config.artifacts, config.extract) in own.values() or not opened.clips:
            others = "; name another --backbone to extract others from its clips" if opened.clips else ""
            raise UserError(f"{opened.root}: nothing to extract, it brings features: {', '.join(own)}{others}")
        report = extract_corpus(opened, config.artifacts, config.extract, (int(index), int(count)))
        folder = str(report.folder)
    summary = {
        "features": folder,
        "written": len(report.written),
        "skipped, done before": len(report.skipped),
        "failed": report.failed,
        "frames per second": round(report.frames / report.seconds, 1) if report.frames else None,
    }
    return _print(summary, as_json, failed=report.failed)


def pack(
    features: FeaturesArg,
    corpus: Annotated[Path | None, arg(help="its captions and split go along, so that training holds them not")] = None,
    data: DataArg = None,
    as_json: JsonArg = False,
) -> int:
    """Write a folder's features into Arrow files, read in their place: for tens of thousands of clips and more."""
    from vcutils.corpus import read_splits
    from vcutils.runtime import arrow

    known = None
    if corpus:
        opened, config = _open(corpus, data)
        if not (path := config.artifacts / "splits.json").is_file():
            raise UserError(f"{path}: no split yet; run `python -m vcutils vocab {corpus}`")
        known = opened.captions, read_splits(path), arrow.corpus_state(opened.root, config.artifacts)
    parts = arrow.pack(features, corpus=known)
    size = sum(path.stat().st_size for path in parts.iterdir())
    return _print({"parts": str(parts), "clips": len(arrow.Parts(features).ids), "bytes": size}, as_json)


def vocab(
    corpus: CorpusArg,
    min_count: Annotated[int | None, arg(help="words that occur less often become <unk>")] = None,
    data: DataArg = None,
    as_json: JsonArg = False,
) -> int:
    """Fix the split and count the vocabulary on its training part."""
    opened, config = _open(corpus, data, vocab={"min_count": min_count})
    return _print(_make_vocab(opened, config), as_json, failed=opened.problems)


def train(
    corpus: CorpusArg,
    train: tyro.conf.OmitArgPrefixes[TrainConfig],
    model: tyro.conf.OmitArgPrefixes[ModelConfig],
    run: Annotated[
        str,
        arg(aliases=("--name",), help="name of the run, data/<corpus>/runs/<name>; torchrun keeps --run for itself"),
    ] = "default",
    seeds: SeedsArg = 1,
    resume: Annotated[bool, arg(help="go on from the run's last checkpoint")] = False,
    backbone: BackboneArg = None,
    data: DataArg = None,
    as_json: JsonArg = False,
) -> int:
    """Train a run, also under torchrun and `accelerate launch`; builds split and vocabulary where they are missing.

    With several seeds, `evaluate` reports mean and standard deviation.
    """
    from vcutils.scores.coco import References
    from vcutils.train import Trainer

    opened, config = _open(corpus, data, backbone, indexed=True)
    config = replace(config, train=train, model=model)
    if not run or run != Path(run).name or run.startswith("."):
        raise UserError(f"--run {run!r}: a run's name is one plain folder name")
    loaded = _training_data(opened, config)
    reports: list[dict[str, Any]] = []
    for seed in range(train.seed, train.seed + _at_least(1, seeds, "--seeds")):
        folder = config.artifacts / "runs" / (run if seed == train.seed else f"{run}-seed{seed}")
        trainer = Trainer(folder, replace(config, train=replace(train, seed=seed)), loaded, References, resume)
        if trainer.accelerator.is_main_process and not reports:
            for part in ("train", "model"):
                print(f"{part}: {_text(vars(getattr(trainer.config, part)))}", file=sys.stderr)
        trainer.fit()
        reports.append({"run": str(folder), "epochs": trainer.progress.epoch, "best": trainer.record.best_row})
    if trainer.accelerator.is_main_process:
        _print(reports[0] if len(reports) == 1 else {"runs": reports}, as_json)
    trainer.accelerator.end_training()
    return 0


def ablate(
    corpus: CorpusArg, seeds: SeedsArg = 1, split: SplitArg = "val", data: DataArg = None, as_json: JsonArg = False
) -> int:
    """What each part of the model is worth: trains it without that part, and writes ablations.json.

    Choices are made on val, never on test.
    """
    from vcutils.runtime.processes import place
    from vcutils.scores import ablations

    opened, config = _open(corpus, data)
    numbers = range(config.train.seed, config.train.seed + _at_least(1, seeds, "--seeds"))
    result = ablations.ablate(config, _training_data(opened, config), config.artifacts / "runs", numbers, split)
    if place()[0]:  # the main process tells
        return 0
    return _print(result, as_json, short=result["protocol"], table=ablations.ablation_table(result))


def evaluate(runs: RunArgs, split: SplitArg = "test", beam: BeamArg = None, as_json: JsonArg = False) -> int:
    """Caption a split and score it, beside a floor and a human line.

    Several runs: one table, the differences in CIDEr with their intervals, and what the runs say together.
    """
    from vcutils.scores import compare, diagnostics, report

    if not runs:
        raise UserError("evaluate: name at least one run")
    opened, decode = _run(runs[0], beam)
    if len(runs) > 1:
        result = compare.compare([opened, *(_run(run, None)[0] for run in runs[1:])], split, decode)
        table = compare.comparison_table(result)
    else:
        result = report.evaluate(opened, split, decode)
        tables = report.score_table(result, opened.folder.name), diagnostics.diagnostics_table(result["diagnostics"])
        table = "\n\n".join(tables)
    short = {name: value for name, value in result["protocol"].items() if name != "versions"}
    return _print(result, as_json, short=short, table=table)


def score(
    predictions: Annotated[Path, Positional, arg(help="JSON file, {id: caption}")],
    references: Annotated[Path, Positional, arg(help="JSON file, {id: [captions]}")],
    as_json: JsonArg = False,
) -> int:
    """Score captions by the COCO caption protocol."""
    from vcutils.scores import coco

    captions, known = coco.read_predictions(predictions), coco.read_references(references)
    scores = coco.References(known).score(captions)
    protocol = {"clips": len(captions), "references": sum(map(len, known.values())), "tokenizer": "PTB"}
    notes = coco.notes(scores, len(captions))
    report = {"scores": scores, "protocol": protocol, "notes": notes}
    return _print(report, as_json, short=scores | protocol, table="\n".join(notes))


def caption(clips: ClipArgs, run: RunOption = None, beam: BeamArg = None, as_json: JsonArg = False) -> int:
    """Caption any clip: words, their probabilities and the time each was read from; exit code 1 when a clip fails."""
    from vcutils.attention.measures import attention_dict, word_views
    from vcutils.runtime.capture import VideoError

    run, clips = _run_before_clips(run, clips)
    if not clips:
        raise UserError("caption: name at least one clip")
    opened, decode = _run(run, beam)
    report: dict[str, Any] = {}
    for clip in clips:
        try:
            hypothesis, timestamps = opened.caption(clip, decode)
        except VideoError as error:
            report[str(clip)] = {"error": str(error)}
            print(error, file=sys.stderr)
            continue
        sureness = opened.sureness(hypothesis)
        report[str(clip)] = attention_dict(hypothesis, timestamps) | sureness
        if not as_json:
            note = f"{'unsure: ' * bool(sureness['unsure'])}mean word probability {sureness['mean_word_prob']:.2f}"
            print(f"{clip.name}: {hypothesis.caption}   ({note}, log-probability {hypothesis.log_prob:.2f})")
            for view, log_prob in zip(word_views(hypothesis, timestamps), hypothesis.word_log_probs, strict=True):
                line = f"  {view.word:<14} p={math.exp(log_prob):4.2f}   strongest frame at {view.seconds:6.2f} s"
                print(f"{line} ({view.weight:.0%} of the attention)")
    return _print(report, as_json, short={}, failed=any("error" in row for row in report.values()))


def explore(
    clips: ClipArgs,
    run: RunOption = None,
    out: Annotated[Path, arg(help="the page to write")] = Path("explorer.html"),
    check: Annotated[bool, arg(help="instead of a page, measure how far the attention can be trusted")] = False,
    split: SplitArg = "test",
    beside: Annotated[Path | None, arg(metavar="RUN", help="a second run, to be shown beside the first")] = None,
    model: Annotated[bool, arg(help="the page carries the model, to hide frames in it")] = True,
    beam: BeamArg = None,
    as_json: JsonArg = False,
) -> int:
    """Write one self-contained page that shows what the model looked at; CLIP is any video file, or an id of RUN's.

    Without a CLIP the page holds all of the split.
    """
    run, clips = _run_before_clips(run, clips)
    if not (run if check else clips or (run and run.is_dir())):
        raise UserError("explore: name at least one clip, a run for all of its split, or a run with --check")
    opened, decode = _run(run, beam)
    if check:
        from vcutils.attention import checks

        rows = checks.check(opened, split, decode)
        short = {row["check"]: f"{row['result']:<28} ({row['chance'] or '–'})  {row['reads']}" for row in rows}
        return _print({"split": split, "checks": rows}, as_json, short=short)
    from vcutils.attention.page import page_for

    chosen = [str(clip) for clip in clips] or opened.data.splits[split]
    problems = page_for(opened, chosen, out, decode, _run(beside, beam)[0] if beside else None, model)
    return _print({"page": str(out), "problems": problems}, as_json, failed=problems)


def course(
    what: Annotated[Literal["student", "solutions", "grade"], Positional, arg(help="without answers; executed; marks")],
    submissions: Annotated[Path | None, Positional, arg(metavar="SUBMISSIONS", help="a folder per student")] = None,
    out: Annotated[Path | None, arg(help="a folder for student and solutions, marks.csv for grade")] = None,
    as_json: JsonArg = False,
) -> int:
    """The exercises for students (no answers), for lecturers (executed solutions), and their marking."""
    from vcutils.course import editions, grading

    if what == "grade":
        if submissions is None:
            raise UserError("course grade: name the folder with the submissions")
        return _print(grading.grade(submissions, out or Path("marks.csv")), as_json)
    write = editions.student_edition if what == "student" else editions.solutions
    return _print({"written": [str(path) for path in write(out or Path(what))]}, as_json)


ABOUT = "Video captioning with attention, from raw clips to an attention explorer."
VERBS = (sample, doctor, extract, pack, vocab, train, ablate, evaluate, score, caption, explore, course)


def main(args: list[str] | None = None) -> int:
    """Run one verb and return the exit code."""
    try:
        defaults = Config.from_env()
        verbs: dict[str, Callable] = {verb.__name__: verb for verb in VERBS}
        verbs["train"] = functools.partial(train, train=defaults.train, model=defaults.model)
        return tyro.extras.subcommand_cli_from_dict(
            verbs, prog="python -m vcutils", description=ABOUT, args=args, config=(tyro.conf.FlagCreatePairsOff,)
        )
    except (UserError, OSError) as error:  # an OSError names its file
        print(f"vcutils: {error}", file=sys.stderr)
        return 2
    except SystemExit as stop:
        given = sys.argv[1:] if args is None else args
        if stop.code and any(re.match("-[^-]", word) and word != "-h" for word in given):
            print('vcutils: ids and files that begin with "-" go last, behind "--": … RUN -- -id', file=sys.stderr)
        raise
    except KeyboardInterrupt:
        print("vcutils: stopped; finished work is kept", file=sys.stderr)
        return 130


def _open(
    corpus: Path, data: Path | None, backbone: str | None = None, indexed: bool = False, **changes: dict[str, Any]
) -> tuple[Any, Config]:
    """A corpus that the user names, and the profile's settings with changes {section: {field: value}}; None is none.

    `indexed` takes what `pack --corpus` wrote of it, where that is still true.
    """
    from vcutils.corpora import indexed_corpus, load_corpus

    config = replace(Config.from_env(), corpus=corpus.expanduser().resolve())
    if data:
        config = replace(config, data=data.expanduser().resolve())
    if backbone:
        changes["extract"] = changes.get("extract", {}) | {"backbone": backbone, "own_features": False}
    for section, values in changes.items():
        given = {name: value for name, value in values.items() if value is not None}
        config = replace(config, **{section: replace(getattr(config, section), **given)})
    known = indexed_corpus(config.corpus_dir, config.artifacts, config.extract) if indexed else None
    return known or load_corpus(config), config


def _extract_on_cluster(corpus: str, backbone: str | None, num_frames: int | None, data: str | None) -> tuple[str, Any]:
    """Where the features lie, and the report."""
    from vcutils.corpora.readers import EXCLUDE, excluded_ids
    from vcutils.corpus import VIDEO_DIRS, VIDEO_SUFFIXES
    from vcutils.runtime import cluster
    from vcutils.runtime.machine import is_quiet

    config = Config.from_env()
    given: dict[str, Any] = {"backbone": backbone, "num_frames": num_frames}
    settings = replace(config.extract, **{name: value for name, value in given.items() if value is not None})
    places = (corpus, data or str(config.data))
    corpus, data = (p.rstrip("/") if "://" in p else str(Path(p).expanduser().resolve()) for p in places)
    problems: list[str] = []
    artifacts = f"{data}/{corpus.rpartition('/')[2]}"
    left_out = set(excluded_ids(cluster.text_of(f"{artifacts}/{EXCLUDE}")))
    clips = cluster.listed(corpus, VIDEO_DIRS, VIDEO_SUFFIXES, problems, left_out)
    for problem in problems:
        print(problem, file=sys.stderr)
    folder = f"{artifacts}/features/{settings.backbone}"
    with redirect_stdout(sys.stderr):  # what Ray tells of lost nodes is no part of a report
        return folder, cluster.extract(corpus, clips, folder, settings, progress=not is_quiet(True))


def _at_least(low: int, value: int, name: str) -> int:
    if value < low:
        raise UserError(f"{name} {value}: must be {low} or more")
    return value


def _run_before_clips(run: Path | None, clips: list[Path]) -> tuple[Path | None, list[Path]]:
    """(run, clips) of `CLIP… [--run RUN]`, or of `RUN CLIP…`: its first word is no file, nor named like a video."""
    from vcutils.corpus import VIDEO_SUFFIXES

    is_run = not run and clips and not clips[0].is_file() and clips[0].suffix.lower() not in VIDEO_SUFFIXES
    return (clips[0], clips[1:]) if is_run else (run, clips)


def _run(folder: Path | None, beam: int | None) -> tuple[Any, DecodeConfig]:
    """A trained run (None: the shipped one), and its own decoding settings with a beam size of the user's choice."""
    from vcutils.corpora import open_run

    opened = open_run(folder)
    return opened, opened.decode if beam is None else replace(opened.decode, beam_size=beam)


def _training_data(opened: Any, config: Config) -> Any:
    """A corpus' CaptionData; split and vocabulary are built first where they are missing."""
    from vcutils.dataset import load_data
    from vcutils.runtime.processes import join

    with join().main_process_first(), redirect_stdout(sys.stderr):  # the others find what it made
        if not all((config.artifacts / name).is_file() for name in ("splits.json", "vocab.json")):
            _print(_make_vocab(opened, config), as_json=False)
    return load_data(opened, config.artifacts, config.extract)


def _make_vocab(opened: Any, config: Config) -> dict[str, Any]:
    """Write splits.json and vocab.json of an open corpus; what was done as a report."""
    from vcutils.corpus import make_splits, save_splits
    from vcutils.runtime.files import holding, note
    from vcutils.vocab import build_vocabulary, oov_rate

    splits, origin = make_splits(opened)
    vocabulary = build_vocabulary(opened.captions, splits["train"], config.vocab.min_count)
    with holding(config.artifacts, "vocab"):
        (config.artifacts / "vocab.json").unlink(missing_ok=True)  # beside a new split it would be of another one
        save_splits(splits, config.artifacts / "splits.json")
        vocabulary.save(config.artifacts / "vocab.json")
        note(config.artifacts, f"vocab: {len(vocabulary)} words, split by {origin}")
    return {
        "artifacts": str(config.artifacts),
        "split": {"origin": origin, **{name: len(ids) for name, ids in splits.items()}},
        "words": len(vocabulary),
        "out of vocabulary": {s: round(oov_rate(vocabulary, opened.captions, ids), 4) for s, ids in splits.items()},
        "problems": opened.problems,
    }


def _print(report: dict, as_json: bool, short: dict | None = None, table: str = "", failed: Any = False) -> int:
    """Print a report, whole as JSON, or for people `short` (or all) as aligned lines and a table; the exit code.

    Long lists are shortened for people, never in JSON.
    """
    lines = report if short is None else short
    width = max(map(len, lines), default=0)
    if as_json:
        lines, table = {}, json.dumps(report, ensure_ascii=False, indent=2)
    for key, value in lines.items():
        if isinstance(value, Mapping) and len(_text(value)) > 100:
            value = [f"{name}: {_text(v)}" for name, v in value.items()]
        if isinstance(value, list):
            items = [_text(v) for v in value[:10]] + [f"… and {len(value) - 10} more"] * (len(value) > 10)
            value = ("\n" + " " * (width + 2)).join(items) or "none"
        print(f"{key:<{width}}  {_text(value)}")
    if table:
        print(table)
    return int(bool(failed))


def _text(value: Any) -> str:
    """A value of a report on one line."""
    if isinstance(value, Mapping):
        return ", ".join(f"{k}: {_text(v)}" for k, v in value.items()) or "none"
    return "–" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
