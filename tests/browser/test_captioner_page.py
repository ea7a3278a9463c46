"""The captioner in the browser, held equal to PyTorch: captioner.js reads what embed.py writes."""

import dataclasses
import json

import numpy as np
import pytest
import torch

from vcutils.attention.embed import feature_content, model_content, rounded
from vcutils.attention.page import page_for
from vcutils.attention.views import corpus_clip, with_captions
from vcutils.config import DecodeConfig
from vcutils.decode import NEVER, generate
from vcutils.runtime.checkpoints import run_config
from vcutils.scores.runs import load_model, load_run
from vcutils.vocab import END, PAD, START, UNK

pytest.importorskip("playwright.sync_api", reason="no Playwright: pip install playwright")
POLICY = "default-src 'none'; script-src 'unsafe-inline'; worker-src blob:"
CLOSE = 1e-3  # what attention, probabilities and nats may differ by
TIE = 1e-4  # scores that are nearer to each other than this may change places

ASK = """async ([content, features, calls]) => {
  const captioner = await openCaptioner(content);
  const answers = [];
  for (const [name, clip, ...values] of calls) {
    const begin = performance.now();
    try { answers.push([await captioner[name](features[clip], ...values), performance.now() - begin]); }
    catch (error) { answers.push([{ error: error.message }, 0]); }
  }
  captioner.close();
  return { answers, inWorker: captioner.inWorker };
}"""


@pytest.fixture
def captioner(tab, tmp_path, repo):
    """Function: the answers of captioner.js to calls [name, clip, …], in a page that may do no more than it needs."""

    def opened(policy):
        script = (repo / "vcutils" / "attention" / "captioner.js").read_text("utf-8")
        script = f"<script type='module'>{script}\nwindow.openCaptioner = openCaptioner;</script>"
        (tmp_path / "page.html").write_text(
            f"<meta charset='utf-8'><meta http-equiv='Content-Security-Policy' content=\"{policy}\">{script}", "utf-8"
        )
        page = tab(offline=True)
        page.goto((tmp_path / "page.html").as_uri())
        return page

    def ask(model, vocabulary, decode, clips, calls, policy=POLICY):
        page = ask.page = ask.page or opened(policy)
        content = json.dumps(model_content(model, vocabulary, decode))
        done = page.evaluate(ASK, [content, [feature_content(clip) for clip in clips], calls])
        assert all(url.startswith(("file:", "blob:")) for url in page.asked)
        ask.times = [time for _, time in done["answers"]]
        ask.in_worker = done["inWorker"]
        return [answer for answer, _ in done["answers"]]

    ask.page = None
    yield ask
    assert not tab.errors


class Begun:
    """A model whose captions begin with given words, each with the probability that the model gives it."""

    def __init__(self, model, given):
        self.model, self.decoder, self.start, self.given = model, self, model.decoder.start, iter(given)

    def __getattr__(self, name):
        return getattr(self.model, name)

    def step(self, *inputs):
        state, logits, weights = self.model.decoder.step(*inputs)
        if (word := next(self.given, None)) is not None:
            log_probs = logits.log_softmax(dim=-1)[..., word]
            logits = torch.full_like(logits, -torch.inf)
            logits[..., word], logits[..., PAD] = log_probs, torch.log1p(-log_probs.exp())
        return state, logits, weights


def seen(features, hidden):
    return [i for i in range(len(features)) if i not in hidden]


def expected(model, vocabulary, features, decode, hidden=(), given=()):
    """What PyTorch says: (words, score, probabilities, rows over all frames) of every beam."""
    visible, beams = seen(features, hidden), []
    frames, mask = features[visible][None], torch.ones(1, len(visible), dtype=torch.bool)
    for beam in generate(Begun(model, given) if given else model, vocabulary, frames, mask, decode)[0]:
        rows, log_probs = beam.attention, beam.word_log_probs
        if beam.end_attention is not None:
            rows = np.vstack([rows, beam.end_attention])
            log_probs = np.append(log_probs, beam.log_prob - log_probs.sum())
        spread = np.zeros((len(rows), len(features)))
        spread[:, visible] = rows
        beams.append((beam.words, beam.score, np.exp(log_probs), spread))
    return beams


@torch.inference_mode()
def forced(model, features, visible, ids):
    """Log-probabilities (L + 1, V) at every place of a caption and behind it."""
    inputs = torch.tensor([[[START, *ids]]])
    logits, _ = model(features[visible][None], torch.ones(1, len(visible), dtype=torch.bool), inputs)
    return logits[0, 0].log_softmax(dim=-1)


def differences(answer, beams):
    """Where a caption of the page's is not PyTorch's; ties are told apart by `TIE`."""
    found = [(b["words"], b["score"], b["probabilities"], b["weights"]) for b in answer["beams"]]
    scores = [score for _, score, _, _ in beams]
    assert [score for _, score, _, _ in found] == pytest.approx(scores, abs=CLOSE)

    def tied(i):
        return any(abs(scores[i] - score) < TIE for n, score in enumerate(scores) if n != i)

    different = [i for i, (mine, theirs) in enumerate(zip(found, beams, strict=True)) if mine[0] != theirs[0]]
    for i, (mine, theirs) in enumerate(zip(found, beams, strict=True)):
        if i not in different:
            np.testing.assert_allclose(mine[2], theirs[2], atol=CLOSE)
            np.testing.assert_allclose(mine[3], theirs[3], atol=CLOSE)
    assert all(tied(i) for i in different), (found, beams)
    return different


SWITCHES = (
    {},
    {"attention": "uniform"},
    {"attention": "matched"},
    {"encoder": "none"},
    {"frame_order": "shuffled"},
    {"max_frames": 3},
    {"attention": "matched", "frame_order": "shuffled", "max_frames": 4},
)
DECODES = (
    DecodeConfig(),
    DecodeConfig(beam_size=1),
    DecodeConfig(beam_size=3, max_length=4, length_penalty=0.5),
    DecodeConfig(beam_size=4, max_length=9, no_repeat_ngram=2),
    DecodeConfig(beam_size=2, max_length=9, no_repeat_ngram=1, length_penalty=0.0),
)


def test_every_kind_of_model_and_search_says_the_same(captioner, small_model, vocabulary, random_clips):
    clips = [clip.half().float() for clip in (random_clips([7])[0][0], random_clips([1], seed=1)[0][0])]
    asked = ((0, []), (0, [0, 4]), (0, [1, 2, 3, 5, 6]), (1, []))
    calls = [("caption", n, {"hidden": hidden}) for n, hidden in asked] + [("caption", 0, {"beam": 1, "hidden": [6]})]
    asked = (["dog"], ["a", "cat", "sits"], ["man", "<end>"])
    calls += [("continueFrom", 0, given, {"hidden": [2]}) for given in asked]
    for switches, decode in [*((each, DECODES[0]) for each in SWITCHES), *(({}, each) for each in DECODES[1:])]:
        model = rounded(small_model(seed=3, sharpness=2.5, **switches))
        answers = captioner(model, vocabulary, decode, clips, calls)
        for (name, n, *values), answer in zip(calls, answers, strict=True):
            hidden, size = values[-1].get("hidden", []), values[-1].get("beam", decode.beam_size)
            given = values[0] if name == "continueFrom" else []
            ids = [END if word == "<end>" else vocabulary.index[word] for word in given]
            settings = dataclasses.replace(decode, beam_size=size)
            beams = expected(model, vocabulary, clips[n], settings, hidden, ids)
            assert not differences(answer, beams), (switches, decode)
            assert (answer["hidden"], answer["start"]) == (hidden, given)
            best = expected(model, vocabulary, clips[n], settings)[0]
            before = {"words": best[0], "score": pytest.approx(best[1], abs=CLOSE)}
            assert answer["before"] == (before if hidden or given else None)


def test_need_and_alternatives_are_those_of_teacher_forcing(captioner, small_model, vocabulary, random_clips):
    clips = [clip.half().float() for clip in random_clips([7, 7])[0]]
    model, words, hidden = rounded(small_model(seed=3, sharpness=2.5)), ["a", "dog", "zebra"], [1]
    ids = [vocabulary.index.get(word, UNK) for word in words]
    targets = torch.tensor([*ids, END])
    calls = [("need", 0, words, {"hidden": hidden, "window": window}) for window in (1, 2, 3)]
    calls += [("alternatives", 0, words, {"hidden": hidden}), ("caption", 0, {"hidden": hidden})]
    *needs, alternatives, caption = captioner(model, vocabulary, DecodeConfig(), clips, calls)
    visible = seen(clips[0], hidden)
    whole = forced(model, clips[0], visible, ids)
    for window, need in zip((1, 2, 3), needs, strict=True):
        wanted = np.zeros((len(words) + 1, 7))
        for t, frame in enumerate(visible):
            first = max(0, t - (window - 1) // 2)
            part = forced(model, clips[0], visible[:first] + visible[t - (window - 1) // 2 + window :], ids)
            wanted[:, frame] = (whole - part).gather(1, targets[:, None])[:, 0]
        assert np.abs(wanted).max() > 0.1
        np.testing.assert_allclose(need, wanted, atol=CLOSE)
    for t, place in enumerate(alternatives):
        row = whole[t].clone()
        row[[*NEVER, END] if t == 0 else NEVER] = -torch.inf
        best = row.topk(5)
        assert [each["word"] for each in place] == [vocabulary.words[i] for i in best.indices]
        assert [each["probability"] for each in place] == pytest.approx(best.values.exp().tolist(), abs=CLOSE)

    calls = [("needs", 0, caption, {"hidden": hidden})]
    table, *rest = captioner(model, vocabulary, DecodeConfig(), clips, calls)[0]
    best = caption["beams"][0]
    calls = [(name, 0, best["words"], {"hidden": hidden}) for name in ("need", "alternatives")]
    need, alternatives = captioner(model, vocabulary, DecodeConfig(), clips, calls)
    count = len(best["weights"])  # <end> has a row where it was reached
    assert table["needs"]["1"] == need[:count]
    assert table["others"]["words"] == [[each["word"] for each in place] for place in alternatives[:count]]
    assert np.shape(table["others"]["needs"]["3"]) == (count, 5, 7)
    assert len(rest) == len(caption["beams"]) - 1 and "needs" not in rest[0]["others"]


OVERTAKE = """async ([content, clip, other]) => {
  const captioner = await openCaptioner(content);
  const captions = await captioner.caption(clip);
  const order = [];
  const asked = { needs: captioner.needs(clip, captions), other: captioner.caption(other) };
  for (const [name, promise] of Object.entries(asked)) promise.then(() => order.push(name));
  const whole = (await asked.needs).length;
  const needs = captioner.needs(clip, captions);
  await captioner.caption(clip, { hidden: [0] });
  return [order, whole, captions.beams.length, (await needs).length];
}"""


def test_a_caption_does_not_wait_for_needs(captioner, small_model, vocabulary, random_clips):
    """They take longer, and belong to what was shown before: those of another clip go on, those of the same end."""
    clips, model = random_clips([7, 6])[0], small_model(seed=3, sharpness=2.5)
    captioner(model, vocabulary, DecodeConfig(), clips, [])
    content = model_content(model, vocabulary, DecodeConfig())
    order, whole, beams, stopped = captioner.page.evaluate(OVERTAKE, [content, *map(feature_content, clips)])
    assert order == ["other", "needs"]
    assert (whole, stopped) == (beams, 0)


def test_what_cannot_be_asked_is_refused_in_words(captioner, small_model, vocabulary, random_clips):
    clip = random_clips([3])[0][0]
    calls = [("caption", 0, {"hidden": [0, 1, 2]}), ("need", 0, ["a"], {"window": 3}), ("continueFrom", 0, ["zebra"])]
    calls += [("continueFrom", 0, ["<end>"]), ("caption", 0)]
    *errors, works = captioner(small_model(), vocabulary, DecodeConfig(), [clip], calls)
    words = ("frame must stay", "cannot do without 3", "can begin with “zebra”", "can begin with “<end>”")
    assert all(part in answer["error"] for part, answer in zip(words, errors, strict=True))
    assert works["beams"]


def test_it_works_where_no_worker_is_allowed(captioner, tab, small_model, vocabulary, random_clips):
    clip, policy = random_clips([4])[0][0].half().float(), POLICY.replace("blob:", "'none'")
    model = rounded(small_model(seed=3, sharpness=2.5))
    (answer,) = captioner(model, vocabulary, DecodeConfig(), [clip], [("caption", 0)], policy)
    assert not captioner.in_worker
    assert not differences(answer, expected(model, vocabulary, clip, DecodeConfig()))
    assert all("Content Security Policy" in error for error in tab.errors)
    tab.errors.clear()


def test_trained_model_says_the_same_in_two_hundred_hidings(captioner, tiny_run, tiny_data, record_property):
    model, vocabulary, _ = load_model(tiny_run / "best")
    model, decode, rng = rounded(model), DecodeConfig(), np.random.default_rng(0)
    clips = [torch.from_numpy(np.asarray(tiny_data.store[i], np.float32)).half().float() for i in tiny_data.store.ids]
    calls = []
    for n in range(200):
        clip = n % len(clips)
        count = rng.integers(0, len(clips[clip]))
        hidden = rng.choice(len(clips[clip]), count, replace=False).tolist()
        calls.append(("caption", clip, {"hidden": sorted(hidden)}))
    answers = captioner(model, vocabulary, decode, clips, calls)
    assert captioner.in_worker
    tied = []
    for (_, clip, asked), answer in zip(calls, answers, strict=True):
        beams = expected(model, vocabulary, clips[clip], decode, asked["hidden"])
        if 0 in differences(answer, beams):
            tied.append((clip, asked["hidden"]))
    record_property("ties", tied)
    print(f"a caption: {np.median(captioner.times):.0f} ms; ties among the best captions: {tied or 'none'}")
    assert len(tied) <= 2, "near-equal scores are rare"


@pytest.fixture
def page_with_model(tiny_run, tiny_corpus, tab, tmp_path):
    """Function: two clips of the tiny run as a page, opened from disk; the run as it is in there."""
    run = load_run(tiny_run, run_config(tiny_run), tiny_corpus)

    def opened(**options):
        path = tmp_path / f"page {len(options)}.html"
        assert page_for(run, run.data.splits["train"][:2], path, DecodeConfig(), **options) == []
        page = tab(offline=True)
        page.goto(path.as_uri())
        page.wait_for_selector(".vc-words button")
        return page, path.read_text("utf-8")

    yield opened, dataclasses.replace(run, model=rounded(run.model))
    assert not tab.errors


def test_saved_page_captions_by_itself(page_with_model, screenshots):
    """The same numbers as Python's on the rounded weights: from one file, with nothing asked of anyone."""
    opened, run = page_with_model
    page, text = opened()
    policy = text.partition('Content-Security-Policy" content="')[2].partition('"')[0]
    assert "worker-src blob:" in policy and policy.count("blob:") == 1 and "unsafe" not in policy
    view = corpus_clip(run, run.data.splits["train"][0])
    said = [with_captions(run, view, DecodeConfig(), hidden) for hidden in ((), (1,), (1, 4))]
    words = page.locator(".vc-words button > span:first-child")
    for hide, wanted in zip((None, 1, 4), said, strict=True):
        if hide is not None:
            page.locator(".vc-eye").nth(hide).click()
            page.wait_for_selector(".vcx:not(.vc-busy)")
        best = wanted.beams[0]
        assert words.all_inner_texts() == [*best.words, *["<end>"] * (best.end_attention is not None)]
        scores = [float(each.replace("−", "-")) for each in page.locator(".vc-beams .vc-score").all_inner_texts()]
        assert scores == pytest.approx([beam.score for beam in wanted.beams], abs=0.006)
    page.locator(".vc-likely[aria-pressed=false]").first.wait_for(state="attached")
    likely = page.locator(".vc-likely[aria-pressed=false]").first
    word = likely.locator("bdi").inner_text()
    likely.click()
    page.wait_for_selector(".vcx:not(.vc-busy)")
    assert words.first.inner_text() == word, "the caption goes on from the chosen word"
    page.screenshot(path=screenshots / "page-model.png", full_page=True)
    assert all(url.startswith(("file:", "data:", "blob:")) for url in page.asked)


def test_page_without_the_model_is_small_and_may_start_no_worker(page_with_model):
    opened, _ = page_with_model
    page, text = opened(model=False)
    assert "blob:" not in text.partition("</head>")[0] and "async function openCaptioner" not in text
    assert len(text) < 1_000_000 and 'class="model"' not in text
    assert page.locator(".vc-eye").count() == 0
