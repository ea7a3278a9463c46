"""What only a card can show. `make gpu` runs it there; everywhere else each test runs small, on the processor."""

import dataclasses
import json

import on_gpu
import pytest
import report
from full_size import SHARED

from vcutils.corpora import open_corpus
from vcutils.runtime.record import Record

COSINE, DIFFERENCE = 0.999, 0.02  # of a frame's features in half precision and the processor's
LOSS, CIDER = 0.03, 0.1  # how far validation loss (relative) and CIDEr may be from float32's


def test_extraction(device, size, rendered, note):
    corpora = {"rendered clips": rendered}
    if device.type == "cuda":
        folder = SHARED / "msvd-mini"
        corpora |= {"MSVD clips": open_corpus(folder)} if folder.is_dir() else {}
    rows = on_gpu.extraction_rates(device, size, corpora)
    rows.append(on_gpu.whole_extraction(device, rendered))
    note(rows)
    assert all(row["value"] > 0 for row in rows) and len(rows) == len(size.backbones) * (1 + len(corpora)) + 1


def test_features_are_those_of_the_processor(device, rendered, note):
    likeness = on_gpu.feature_likeness(device, rendered)
    text = f"least cosine {likeness['cosine']:.5f}, at least {COSINE} asked; relative, at most {DIFFERENCE} asked"
    what = "features against the processor's, mean difference"
    note([{"what": what, "value": 100 * likeness["difference"], "unit": "%", "note": text}])
    assert likeness["cosine"] >= COSINE and likeness["difference"] <= DIFFERENCE


def test_half_precision_learns_as_float32_does(device, size, made, tmp_path, note):
    """fp16 exists on a card alone; a processor shows bf16."""
    kinds = ("no", "bf16", "fp16") if device.type == "cuda" else ("no", "bf16")
    rows = {}
    for precision in kinds:
        rows[precision] = row = on_gpu.train(tmp_path / precision, made, size.config(precision=precision), device)
        what = f"training in {'fp32' if precision == 'no' else precision}, {size.epochs} epochs"
        text = f"validation loss {row['val_loss']:.4f}, CIDEr {row['val_CIDEr']:.4f}"
        speed = {"value": row["words_per_second"], "unit": "words/s", "peak GiB": row["peak GiB"]}
        note([{"what": what, **speed, "note": text}])
    for precision in kinds[1:]:
        assert rows[precision]["val_loss"] == pytest.approx(rows["no"]["val_loss"], rel=LOSS)
        assert rows[precision]["val_CIDEr"] == pytest.approx(rows["no"]["val_CIDEr"], abs=CIDER)


@pytest.mark.parametrize("way", on_gpu.WAYS)
def test_training_steps(device, size, made, way, note):
    rows = on_gpu.training_steps(device, size, made, way)
    note(rows)
    assert rows[0]["value"], "not even the smallest batch fits"


def test_batch_size_is_found_after_a_real_lack_of_memory(device, size, made, tmp_path, note, monkeypatch):
    limit = 6.0 if device.type == "cuda" else 3
    if device.type != "cuda":
        monkeypatch.setattr("gc.collect", lambda: 0)  # a fifth of a second for each size that is tried
    asked, found = on_gpu.fitted(device, size, made, limit)
    what = f"find_batch_size with {limit:g} GiB"
    note([{"what": what, "value": found, "unit": "clips", "note": f"asked for {asked:,}, {size.K} captions a clip"}])
    assert 1 <= found < asked
    if device.type != "cuda":
        assert found == limit
    row = on_gpu.train(tmp_path / "run", made, size.config(epochs=1, batch_size=found), device)
    assert device.type != "cuda" or row["peak GiB"] < limit, "the batch that was found does not train"


def test_every_switch_trains(device, toy_data, toy_config, tmp_path):
    """In the device's own precision, with what draws on random numbers there, and the self-critical phase."""
    switches = ({}, {"attention": "matched"}, {"attention": "uniform"}, {"encoder": "none"}, {"max_frames": 3})
    switches = (*switches, {"frame_order": "shuffled"}) if device.type == "cuda" else switches[:2]
    for number, changed in enumerate(switches):
        config = toy_config(epochs=2, scheduled_sampling=1.0, caption_weights=True, scst_epochs=1, frame_dropout=0.2)
        config = dataclasses.replace(config, model=dataclasses.replace(config.model, **changed))
        row = on_gpu.train(tmp_path / str(number), toy_data, config, device)
        assert row["epoch"] == 3 and row["val_loss"] < 3.5, changed


def test_full_size_run_and_its_captions(device, size, made, tmp_path, note):
    row = on_gpu.train(tmp_path / "run", made, size.config(), device)
    words = len(made.vocabulary)
    what = f"{size.clips:,} clips × {size.frames} × {size.dim:,}, {size.captions} captions, V = {words:,}: an epoch"
    text = f"{row['words_per_second']:,} words/s without validation; the processor's {size.held_out} captions: "
    share = on_gpu.equal_captions(device, row["trainer"])
    note([{"what": what, "value": row["fit"] / size.epochs, "unit": "s", "peak GiB": row["peak GiB"],
           "note": f"{text}{share:.0%} equal"}])  # fmt: skip
    assert share >= 0.95


def test_captions_per_second(device, size, note):
    rows = on_gpu.caption_rates(device, size)
    note(rows)
    assert len(rows) == 2 * len(size.decoded) and all(row["value"] > 0 for row in rows)


def test_a_run_that_was_cut_goes_on_alike(device, toy_data, toy_config, tmp_path, monkeypatch):
    """The card's random numbers, for dropout, are part of a checkpoint."""
    config = toy_config(checkpoint_every=3, frame_dropout=0.2)
    whole = on_gpu.train(tmp_path / "whole", toy_data, config, device)
    end_step, steps = Record.end_step, []

    def cut(self, *parts):
        late = end_step(self, *parts)
        steps.append(late)
        if len(steps) == 5:
            raise KeyboardInterrupt
        return late

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Record, "end_step", cut)
        on_gpu.train(tmp_path / "cut", toy_data, config, device)
    resumed = on_gpu.train(tmp_path / "cut", toy_data, config, device, resume=True)
    names = ("train_loss", "val_loss")
    for one, other in zip(whole["history"], resumed["history"], strict=True):
        assert [one[n] for n in names] == pytest.approx([other[n] for n in names], rel=1e-3)


def test_the_page_shows_what_was_measured(repo):
    known = json.loads(report.RESULTS.read_text("utf-8")) if report.RESULTS.exists() else None
    assert f"{report.BEGIN}\n\n{report.table(known)}\n\n{report.END}" in (repo / "docs/performance.md").read_text(
        "utf-8"
    )


def test_a_measured_card_is_published(tmp_path):
    page, results = tmp_path / "page.md", tmp_path / "results.json"
    page.write_text(f"before\n{report.BEGIN}\n\nold\n\n{report.END}\nafter\n", encoding="utf-8")
    rows = [{"what": "steps", "value": 12345.6, "unit": "words/s", "peak GiB": 1.5}]
    rows.append({"what": "too large", "value": None, "unit": "words/s", "peak GiB": 80.0, "note": "out of memory"})
    report.publish(rows, page, results)
    text = page.read_text("utf-8")
    assert "| steps | 12,346 words/s | 1.5 |  |\n| too large | – | 80.0 | out of memory |" in text
    assert text.startswith("before\n") and text.endswith("after\n") and "old" not in text
    assert json.loads(results.read_text("utf-8"))["rows"] == rows
