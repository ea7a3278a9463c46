"""Words and frames: what is read off the attention weights, and how it is shown."""

import json

import numpy as np
import pytest

from vcutils.attention.figures import plot_filmstrip, plot_heatmap, plot_importance, save_figure
from vcutils.attention.measures import (
    attention_dict,
    check_alignment,
    entropy,
    ground,
    grounding_table,
    read_events,
    word_views,
)
from vcutils.decode import Hypothesis

TIMES = [0.5, 1.5, 2.5, 3.5]
WEIGHTS = np.array([[0.1, 0.7, 0.1, 0.1], [0.25, 0.25, 0.25, 0.25], [0.0, 0.0, 0.0, 1.0]], np.float32)


@pytest.fixture
def hypothesis():
    return Hypothesis(["a", "cat", "runs"], -3.5, -0.9, np.array([-1.0, -2.0, -0.3]), WEIGHTS, WEIGHTS[0])


def test_strongest_frame_and_its_time(hypothesis):
    views = word_views(hypothesis, TIMES)
    assert [v.word for v in views] == ["a", "cat", "runs"]
    assert (views[0].frame, views[0].seconds, views[0].weight) == (1, 1.5, pytest.approx(0.7))
    assert (views[2].frame, views[2].seconds, views[2].weight) == (3, 3.5, 1.0)


def test_entropy_lies_between_one_frame_and_all_alike(hypothesis):
    views = word_views(hypothesis, TIMES)
    assert views[1].entropy == pytest.approx(1) and views[2].entropy == pytest.approx(0)
    assert 0 < views[0].entropy < 1
    assert entropy(np.array([0.5, 0.5, 0, 0])) == pytest.approx(0.5)
    assert entropy(np.ones((2, 1))).tolist() == [0, 0]
    rows = np.random.default_rng(0).dirichlet(np.ones(9), 50)
    assert ((entropy(rows) >= 0) & (entropy(rows) <= 1)).all()


@pytest.mark.parametrize(
    ("words", "weights", "times"),
    [
        (["a", "cat"], WEIGHTS, TIMES),  # the original notebook's lists were one longer than the words
        (["a", "cat", "runs"], WEIGHTS, TIMES[:3]),
        (["a", "cat", "runs"], WEIGHTS.T, TIMES),
        (["a", "cat", "runs"], WEIGHTS * 2, TIMES),
    ],
)
def test_what_does_not_fit_together_is_refused(words, weights, times):
    with pytest.raises(ValueError, match="attention"):
        check_alignment(words, weights, times)
    with pytest.raises(ValueError, match="attention"):
        plot_heatmap(words, weights, times)
    with pytest.raises(ValueError, match="attention"):
        word_views(Hypothesis(words, 0, 0, np.zeros(len(words)), weights, None), times)


def test_attention_dict_is_json_and_keeps_the_end_apart(hypothesis):
    data = json.loads(json.dumps(attention_dict(hypothesis, TIMES)))
    assert np.array_equal(np.array(data["weights"], np.float32), WEIGHTS) and data["timestamps"] == TIMES
    assert len(data["words"]) == len(data["weights"]) == len(data["word_log_probs"]) == 3
    assert np.allclose(data["end_weights"], WEIGHTS[0])
    assert attention_dict(Hypothesis(["a"], 0, 0, np.zeros(1), WEIGHTS[:1], None), TIMES)["end_weights"] is None


EVENTS = {
    "clip": {
        "duration": 4.0,
        "events": [
            {"kind": "thing", "words": ["cat"], "start": 0.0, "end": 2.0},
            {"kind": "thing", "words": ["dog"], "start": 2.0, "end": 4.0},
            {"kind": "change", "words": ["runs"], "start": 1.0, "end": 2.0},
            {"kind": "order", "words": ["runs"], "start": 3.0, "end": 3.2},
        ],
    },
    "single": {
        "duration": 4.0,
        "events": [
            {"kind": "thing", "words": ["cat"], "start": 0.0, "end": 4.0},
            {"kind": "thing", "words": ["kitten"], "start": 0.0, "end": 4.0},  # another word for the same scene
            {"kind": "order", "words": ["first"], "start": 0.0, "end": 2.0},
        ],
    },
}


def caption(*words_and_rows):
    words, rows = zip(*words_and_rows, strict=True)
    return Hypothesis(list(words), -1.0, -1.0, np.zeros(len(words)), np.array(rows), None)


def test_pointing_game_by_hand():
    hypotheses = {
        "clip": caption(
            ("a", [1, 0, 0, 0]),  # no event knows it
            ("cat", [0.1, 0.4, 0.3, 0.2]),  # true in 0 to 2 s: frames 0 and 1
            ("dog", [0.6, 0.0, 0.3, 0.1]),  # true in 2 to 4 s: frames 2 and 3, but frame 0 is the strongest
        )
    }
    cat, dog = ground(hypotheses, {"clip": TIMES}, EVENTS)
    assert (cat.word, cat.kind, cat.hit, cat.video_id) == ("cat", "thing", True, "clip")
    assert cat.mass == pytest.approx(0.5) and cat.chance == 0.5
    assert (dog.word, dog.hit, dog.chance) == ("dog", False, 0.5) and dog.mass == pytest.approx(0.4)


def test_interval_ends_belong_to_what_follows():
    """A frame at 2.0 s shows the second scene: intervals are [start, end)."""
    cat, dog = ground({"clip": caption(("cat", [0, 1]), ("dog", [0, 1]))}, {"clip": [0.0, 2.0]}, EVENTS)
    assert (cat.hit, dog.hit) == (False, True)


def test_word_with_two_intervals_may_be_read_from_either():
    (runs,) = ground({"clip": caption(("runs", [0.0, 0.6, 0.1, 0.3]))}, {"clip": TIMES}, EVENTS)
    assert runs.hit and runs.chance == 0.25 and runs.mass == pytest.approx(0.6)
    (runs,) = ground({"clip": caption(("runs", [0.0, 0.2, 0.1, 0.7]))}, {"clip": [0.5, 1.5, 2.5, 3.1]}, EVENTS)
    assert runs.hit and runs.chance == 0.5 and runs.mass == pytest.approx(0.9)


def test_clips_of_one_scene_are_left_out():
    assert ground({"single": caption(("cat", [1, 0, 0, 0]), ("first", [1, 0, 0, 0]))}, {"single": TIMES}, EVENTS) == []


def test_grounding_table_means_per_kind():
    hypotheses = {"clip": caption(("cat", [0.1, 0.4, 0.3, 0.2]), ("dog", [0.6, 0.0, 0.3, 0.1]), ("runs", [0, 1, 0, 0]))}
    rows = {row["kind"]: row for row in grounding_table(ground(hypotheses, {"clip": TIMES}, EVENTS))}
    assert rows["thing"]["words"] == 2 and rows["thing"]["pointing"] == 0.5
    assert rows["thing"]["mass"] == pytest.approx(0.45) and rows["thing"]["chance"] == 0.5
    assert sum(row["words"] for row in rows.values()) == 3


def test_events_of_the_embedded_corpus_ground_a_perfect_attention(tiny_corpus):
    """Attention on the true frames alone must score 1: the events' times are those of the frames."""
    events = read_events(tiny_corpus.root / "events.json")
    assert sorted(events) == sorted(tiny_corpus.clips)
    video_id = next(i for i, e in events.items() if sum(x["kind"] == "thing" for x in e["events"]) >= 2)
    scenes = [e for e in events[video_id]["events"] if e["kind"] == "thing"]
    times = np.linspace(0, events[video_id]["duration"], 30, endpoint=False)
    rows = [((times >= e["start"]) & (times < e["end"])).astype(float) for e in scenes]
    hypothesis = caption(*((e["words"][0], row / row.sum()) for e, row in zip(scenes, rows, strict=True)))
    groundings = ground({video_id: hypothesis}, {video_id: times}, events)
    assert len(groundings) == len(scenes) and all(g.hit and g.mass == pytest.approx(1) for g in groundings)


@pytest.fixture
def pictures():
    return [np.full((30, 40, 3), 60 * i, np.uint8) for i in range(4)]


@pytest.mark.parametrize("suffix", ["png", "svg", "pdf"])
@pytest.mark.parametrize("with_pictures", [True, False])
def test_figures_are_saved_in_every_format(tmp_path, hypothesis, pictures, suffix, with_pictures):
    heatmap = plot_heatmap(hypothesis.words, WEIGHTS, TIMES, pictures if with_pictures else None, "a $clip_1$")
    strip = plot_filmstrip("cat", WEIGHTS[0], TIMES, pictures)
    begin = {"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}[suffix]
    for name, figure in (("heatmap", heatmap), ("strip", strip)):
        path = tmp_path / f"{name}.{suffix}"
        figure.savefig(path, dpi=40)
        assert path.read_bytes().startswith(begin) and path.stat().st_size > 1000


def test_heatmap_names_words_and_times(hypothesis):
    axes = plot_heatmap(hypothesis.words, WEIGHTS, TIMES).axes[0]
    assert [t.get_text() for t in axes.get_yticklabels()] == ["a", "cat", "runs"]
    assert [t.get_text() for t in axes.get_xticklabels()] == ["0.5", "1.5", "2.5", "3.5"]
    assert np.array_equal(axes.images[0].get_array(), WEIGHTS)
    axes = plot_heatmap(hypothesis.words, WEIGHTS, [0.0, 1 / 12, 2 / 12, 3 / 12]).axes[0]
    assert [t.get_text() for t in axes.get_xticklabels()] == ["0", "0.08", "0.17", "0.25"], "no two frames look alike"


def test_filmstrip_frames_the_strongest_and_dims_the_others(pictures):
    bright = [np.full((30, 40, 3), 200, np.uint8)] * 4
    axes = plot_filmstrip("cat", WEIGHTS[0], TIMES, bright).axes
    assert [bool(a.patches) for a in axes[:4]] == [False, True, False, False]
    shown = [float(np.asarray(a.images[0].get_array()).mean()) for a in axes[:4]]
    assert shown[1] == 200 and all(s < 100 for s in (shown[0], shown[2], shown[3]))


def test_filmstrip_wraps_many_frames():
    row = np.full(19, 1 / 19)
    figure = plot_filmstrip("cat", row, list(range(19)), [np.zeros((9, 12, 3), np.uint8)] * 19)
    assert sum(bool(a.images) for a in figure.axes) == 19


@pytest.mark.parametrize("count", [1, 4])
def test_importance_is_drawn_as_it_is(count):
    weights = WEIGHTS[:, :count] / WEIGHTS[:, :count].sum(axis=1, keepdims=True).clip(1e-9)
    weights[2] = np.eye(count)[-1]
    pictures = [np.zeros((9, 12, 3), np.uint8)] * count
    axes = plot_importance(weights, TIMES[:count], pictures, top=2).axes[0]
    assert [b.get_height() for b in axes.patches[:count]] == pytest.approx(weights.mean(axis=0).tolist())
    assert len(axes.patches) == count + min(2, count) and len(axes.artists) == min(2, count)


def test_importance_colours_the_frames_with_the_largest_mean_attention():
    axes = plot_importance(WEIGHTS, TIMES, top=3).axes[0]
    everything, strongest = axes.patches[:4], axes.patches[4:]
    assert [b.get_height() for b in everything] == pytest.approx([0.35 / 3, 0.95 / 3, 0.35 / 3, 1.35 / 3])
    assert [b.get_x() + b.get_width() / 2 for b in strongest] == pytest.approx([0.5, 1.5, 3.5])
    assert not axes.artists


def test_figures_are_saved_for_slides_and_print_and_are_the_same_again(tmp_path):
    def save():
        figure = plot_heatmap(["a", "cat", "$_runs"], WEIGHTS, TIMES, title="clip.mp4 <b>")
        return save_figure(figure, tmp_path / "new" / "clip.v2")

    paths = save()
    assert [p.name for p in paths] == ["clip.v2.png", "clip.v2.svg", "clip.v2.pdf"]
    starts = [p.read_bytes()[:5] for p in paths]
    assert starts == [b"\x89PNG\r", b"<?xml", b"%PDF-"]
    assert ">cat</text>" in paths[1].read_text(encoding="utf-8"), "words stay words"
    first = [p.read_bytes() for p in paths]
    assert [p.read_bytes() for p in save()] == first
    assert len(list((tmp_path / "new").iterdir())) == 3
