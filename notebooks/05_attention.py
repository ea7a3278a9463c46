# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 5 · What did the model look at?
#
# **Goal** See, word by word, which frames got the attention, and measure what this picture shows and what it does not.
#
# | reads | writes | CPU, sample corpus | GPU, full MSVD |
# |---|---|---|---|
# | `runs/default/best/`, the clips, `events.json` | `runs/default/attention/` | under a minute | a few minutes (not measured) |
#
# **You will**
# - step through a caption, see the attention of each word, and hide frames to see what the model says without them;
# - compute by hand one row of attention, the cost of hiding a word's frames, and whether a word points at the right
#   frames;
# - put the attention to tests that it could fail.
#
# Shape letters: L words of a caption · T frames of a clip · D feature size · C size of an encoded frame · H size of the
# decoder's state · A size of the attention's hidden layer.

# %%
# %matplotlib inline
import json
import math
from collections import Counter, defaultdict

import matplotlib.pyplot as plt
import numpy as np
import torch
from IPython.display import Markdown, display

from vcutils.attention import checks, figures, measures
from vcutils.attention.explorer import explore
from vcutils.attention.page import page_html
from vcutils.config import Config
from vcutils.corpora import open_run
from vcutils.course.pages import with_page
from vcutils.dataset import CaptionDataset, make_loader, pad_frames
from vcutils.decode import generate
from vcutils.runtime.files import write_text
from vcutils.runtime.splices import splice
from vcutils.scores.naming import naming
from vcutils.vocab import PAD, START, tokenize

config = Config.from_env()
run = open_run(config.artifacts / "runs" / "default")
test = run.data.splits["test"]
predictions = run.predict(test, config.decode)  # a caption for every test clip, with its attention
out = run.folder / "attention"
print(f"{len(test)} test clips, captions by beam search with beam {config.decode.beam_size}")

# %% [markdown]
# ## Choose a clip without flattering the model
#
# - For every word that it says, the model computes one *row* of weights: one weight per frame, all weights of a row sum
#   to 1 (notebook 3). The frame with the largest weight is the word's *strongest frame*.
# - A picture of the best clip would promise too much. So we rank the test clips by one number, how much of the
#   attention moves to other frames from one word to the next, and take the clip in the middle: the median.


# %%
def movement(attention: np.ndarray) -> float:
    """Mean share of the attention that moves to other frames between two words, for rows (L, T)."""
    if len(attention) < 2:
        return 0.0
    return float(np.abs(np.diff(attention, axis=0)).sum(axis=1).mean() / 2)


moved = {i: movement(predictions[i].attention) for i in test}
ranked = sorted(test, key=lambda i: moved[i])
video_id = ranked[len(ranked) // 2]
for rank in sorted({0, len(ranked) // 2, len(ranked) - 1}):
    mark = "<- this one" if ranked[rank] == video_id else ""
    print(f"rank {rank + 1:>3} of {len(ranked)}: {ranked[rank]}, {moved[ranked[rank]]:.0%} moves {mark}")

# %%
hypothesis, times = predictions[video_id], run.timestamps(video_id)
timed = "timestamps" in run.manifest.get(video_id, {})  # False where a corpus brings features without times
pictures = run.thumbnails(video_id) or [figures.number_tile(i + 1) for i in range(len(times))]
L, T = hypothesis.attention.shape
print("model:", hypothesis.caption)
for caption in run.data.captions[video_id][:5]:
    print("human:", caption)
print(f"weights (L, T) = ({L}, {T}), sums of the rows:", hypothesis.attention.sum(axis=1).round(3))

# %% [markdown]
# ## Step through the caption
#
# **Predict** Read the model's caption. Which of its words will share a strongest frame, and where does the strongest
# frame change? Write it down before you click.
#
# - **Look**: click a word, press play or drag the slider. The brighter a frame, the larger its attention weight for
#   this word. Click its picture to enlarge it.
# - **Needed**: switch from "looked at" to "both". Beside the attention it shows how much less likely a word becomes
#   without each frame. A word marked ∅ needs no single frame.
# - **Test**: hide frames by the button on each, or hide a span of them. The model describes the clip again without
#   them. Or choose another of the likeliest words: the caption goes on from it.
# - **Choose**: another clip, another caption that the beam search found, or a clip of your own. This model knows its own
#   corpus only. For real clips, open the captioner that comes with `vcutils`, `explore(open_run())` in a new cell, and
#   upload yours there. `explorer.list_clips("test")` puts a table of all test clips above the picture, to sort and search.
#
# Looking works everywhere. Hiding frames and other words need the model: a running notebook, or the page that is saved below.

# %%
explorer = explore(run, video_id)
with_page(explorer, page_html([explorer.original]), height=900)

# %% [markdown]
# Here is the same on paper for one word. We count for each word of the caption in how many training clips people use it.
# The word of the fewest clips tells most about a clip: it is the *most telling* word below.

# %%
clips = Counter(w for i in run.data.splits["train"] for w in set(tokenize(" ".join(run.data.captions[i]))))
position = min(range(L), key=lambda t: clips[hypothesis.words[t]])  # in the caption
word, row = hypothesis.words[position], hypothesis.attention[position]  # row: (T,)
print(f"{word!r}: in the captions of {clips[word]} of {len(run.data.splits['train'])} training clips")
figures.plot_filmstrip(word, row, times, pictures, timed=timed)

# %% [markdown]
# Take the most telling word. We hide frames until the model no longer says it: once those with the largest weights for
# this word first, once those with the smallest first.

# %%
orders = {"largest weight first": np.argsort(-row), "smallest weight first": np.argsort(row)}
for order, frames in orders.items():
    hidden = 0
    while hidden < T - 1 and word in explorer.shown.beams[0].words:
        hidden += 1
        explorer.hide_frames(frames[:hidden])
    gone = word not in explorer.shown.beams[0].words
    print(f"{order}: {word!r} is {'gone' if gone else 'still there'} with {hidden} of {T} frames hidden")
    print("   ", explorer.shown.beams[0].caption)
    explorer.hide_frames(())

# %% [markdown]
# If the word goes sooner when its largest weights go first, these frames matter more for it than the others. One word
# of one clip proves nothing; further down the same is measured on the whole test split.
#
# ## A row of weights by hand
#
# - The decoder has a state $h$ of H numbers. Before the first word it is made from the mean of the encoded frames.
# - Attention gives each encoded frame $m_t$ a score, and softmax makes weights of the scores (notebook 3):
#
# $$\text{score}_t = v^\top \tanh(W_h\, h + W_m\, m_t + b) \qquad \text{weight}_t = \frac{\exp(\text{score}_t)}{\sum_s \exp(\text{score}_s)}$$
#
# For the first word of our clip:

# %%
features, frame_mask = pad_frames([run.data.store[video_id]])  # (1, T, D) and (1, T)
decoder, scorer = run.model.decoder, run.model.decoder.attention
W_m, b, W_h, v = scorer.keys.weight, scorer.keys.bias, scorer.query.weight, scorer.score.weight[0]
with torch.no_grad():
    m = run.model.encode(features, frame_mask).values[0]  # (T, C)
    h = torch.tanh(decoder.init_h(m.mean(dim=0)))  # (H,)
    score = torch.tanh(m @ W_m.T + b + W_h @ h) @ v  # (T, C) -> (T, A) -> (T,)
    by_hand = (score.exp() / score.exp().sum()).numpy()
print("by hand:", by_hand.round(3))
print("vcutils:", hypothesis.attention[0].round(3))
print(f"{hypothesis.words[0]!r}: largest weight {by_hand.max():.1%}, an even share is {1 / T:.1%}")
if run.model.config.attention == "additive" and run.model.config.max_frames is None:
    assert np.allclose(by_hand, hypothesis.attention[0], atol=1e-5)
else:
    print("This run weighs all frames alike or reads fewer of them, so its weights differ.")

# %% [markdown]
# Where the two rows agree, the pictures show the weights that the model computed with, not a reconstruction.
#
# ## All words at once
#
# - Each line is a word, each column a frame, and brightness is the weight.
# - The circles mark the largest weight of each word. Compare them with your first prediction.

# %%
heatmap = figures.plot_heatmap(
    hypothesis.words, hypothesis.attention, times, pictures, title=hypothesis.caption, timed=timed
)
heatmap

# %% [markdown]
# How spread out is a row?
#
# - Its *entropy* is −Σ weight · ln(weight). With the natural logarithm ln, the unit is called the *nat*.
# - It is 0 when one frame has all the weight, and ln T, its maximum, when all T frames weigh the same.
# - *Spread* is the entropy divided by ln T. It lies between 0 and 1, so clips of different length can be compared.

# %%
entropy = sum(-weight * math.log(weight) for weight in row.tolist() if weight > 0)
spread = entropy / math.log(max(2, T))  # a clip of one frame has spread 0
print(f"{word!r}: entropy {entropy:.2f} nats, maximum ln {T} = {math.log(T):.2f} nats, spread {spread:.2f}")
assert np.isclose(spread, measures.entropy(row), atol=1e-5)

table = ["| word | strongest frame | at | weight | spread |", "|---|---|---|---|---|"]
for view in measures.word_views(hypothesis, times):
    at = f"{view.seconds:.2f} s" if timed else "–"
    table.append(f"| {view.word} | {view.frame + 1} of {T} | {at} | {view.weight:.0%} | {view.entropy:.2f} |")
display(Markdown("\n".join(table)))

# %% [markdown]
# ## Do function words need to look?
#
# - *a*, *and*, *the* name nothing that can be seen. One might expect that their rows are the most spread.
#
# **Predict** Which words of the test captions have the largest spread, and which the smallest? Where do *a* and *an*
# stand?

# %%
spreads = defaultdict(list)
for i in test:
    for said, value in zip(predictions[i].words, measures.entropy(predictions[i].attention), strict=True):
        spreads[said].append(float(value))
least = min(3, max(map(len, spreads.values())))
by_spread = sorted((w for w in spreads if len(spreads[w]) >= least), key=lambda w: -np.mean(spreads[w]))
function_words = [w for w in ("a", "an", "and", "the") if w in by_spread]
shown = dict.fromkeys(by_spread[:4] + by_spread[-4:] + function_words)
for said in sorted(shown, key=by_spread.index):
    rank, values = by_spread.index(said) + 1, spreads[said]
    print(f"rank {rank:>3} of {len(by_spread)}: {said:<14} {np.mean(values):.2f} ({len(values)} times)")

# %% [markdown]
# The ranks answer the prediction. A small spread does not prove that a word used its frames, and a large one does not
# prove that it did not.
#
# The articles are worth a closer look. English says *an* before a vowel sound and *a* otherwise: the article depends on the
# word after it, mostly its noun, which has not been said yet. Does the model look at the noun's frames already? We correlate
# the noun's row with the rows of the other words of its caption: 1 means the same frames, 0 unrelated, below 0 other frames.

# %%
around = ("a", "an", "the word before a/an", "the word after the noun", "all other words")
correlations = {name: [] for name in around}
for i in test:
    words, attention = predictions[i].words, predictions[i].attention
    if attention.shape[1] < 3 or attention.std(axis=1).min() < 1e-6:
        continue  # no correlation without contrast
    correlation = np.corrcoef(attention)  # (L, L), of each row with each other row
    for t in [t for t in range(len(words) - 1) if words[t] in ("a", "an")]:  # the noun is word t + 1
        for s in [s for s in range(len(words)) if s != t + 1]:
            name = {t: words[t], t - 1: around[2], t + 2: around[3]}.get(s, around[4])
            correlations[name].append(correlation[t + 1, s])
print("the noun's row and the row of ...")
for name, values in correlations.items():
    print(f"{name:>26}: {np.mean(values):+.2f} ({len(values)} pairs)" if values else f"{name:>26}: no pair")

# %% [markdown]
# On the sample the article's row is like the noun's; the rows of the words around them are not. So the model begins to look
# at the noun's frames when it says the article, one word early. (The last column says how many pairs each mean is of.)
#
# Does the model know which article it needs? If it knew nothing of the next word, it could give *an* no more than
# the share that *an* has among the articles in training.

# %%
count = dict(zip(run.vocabulary.words, run.vocabulary.counts, strict=True))
for said in ("a", "an"):
    pairs = [pair for h in predictions.values() for pair in zip(h.words, h.word_log_probs, strict=True)]
    log_probs = [log_prob for w, log_prob in pairs if w == said]  # ln of the article's probability
    share = count.get(said, 0) / max(1, count.get("a", 0) + count.get("an", 0))
    mean = f"{np.exp(log_probs).mean():.0%}" if log_probs else "–"
    print(f"{said!r} is said {len(log_probs)} times, probability {mean} (its share in training: {share:.0%})")

# %% [markdown]
# If *an* gets far more than its share, the model knows something of the next word before it says it, from these frames or
# from its state. So a function word can depend on what is to be seen: the form of the article follows the next word.
#
# ## Does the word need its frames?
#
# - Attention says where information *could* be read. *Deletion* asks whether it was needed: take frames away and see
#   how much less probable the word becomes.
# - The words must stay the same, or there is nothing to compare. So the decoder reads the words of the caption,
#   whatever it would say itself: *teacher forcing*, as in training. We note the probability that it gives to each of
#   them.
# - We count in nats again: a *log-probability* is the ln of a probability. A word that loses x nats has its probability
#   multiplied by exp(−x).
# - Hidden frames are taken out before the encoder. Otherwise the BiLSTM would carry a part of them to their neighbours.


# %%
@torch.no_grad()
def word_log_probs(words: list[str], features: np.ndarray) -> np.ndarray:
    """ln of each word's probability (L,), given the words before it and features (T, D)."""
    memory = run.model.encode(*pad_frames([features]))
    state, previous, log_probs = decoder.start(memory, 1), START, []
    for target in (run.vocabulary.index[word] for word in words):
        state, logits, _ = decoder.step(torch.tensor([[previous]]), state, memory)
        log_probs.append(logits[0, 0].log_softmax(dim=-1)[target].item())
        previous = target  # the given word is read next
    return np.array(log_probs)


features = run.data.store[video_id]  # (T, D)
full = word_log_probs(hypothesis.words, features)
assert np.allclose(full, hypothesis.word_log_probs, atol=1e-3)
print(", ".join(f"{said} {value:.2f}" for said, value in zip(hypothesis.words, full, strict=True)))

# %% [markdown]
# Now hide the quarter of the frames that has the largest weights for the most telling word, then as many frames at
# random. (We draw five times for every word, as `checks.deletion` does, so that both can be compared. A draw may hit
# strong frames too.)
#
# **Predict** By which factor does the word's probability change without its strongest quarter? And without random
# frames?

# %%
if T > 1:
    n = max(1, round(0.25 * T))
    strongest = np.argsort(-row, kind="stable")[:n]
    generator = np.random.default_rng(0)
    draws = [[generator.choice(T, n, replace=False) for _ in range(5)] for _ in hypothesis.words][position]

    def cost(frames: np.ndarray) -> float:
        """Nats that the word loses when these frames are hidden."""
        without = word_log_probs(hypothesis.words, np.delete(features, frames, axis=0))
        return float(full[position] - without[position])

    attended, random = cost(strongest), float(np.mean([cost(frames) for frames in draws]))
    print(f"{n} of {T} frames hidden, cost for the word {word!r}:")
    for name, nats in (("its strongest", attended), ("random ones, mean", random)):
        print(f"hide {name:<20} {nats:+.3f} nats, probability x {math.exp(-nats):.2f}")
    drop = checks.deletion(run, {video_id: hypothesis})[position]
    assert np.allclose([attended, random], [drop.attended, drop.random], atol=1e-3)
else:
    print("A clip of one frame: nothing can be hidden.")

# %% [markdown]
# A cost below 0 means that the word became *more* probable. Only the difference between the two lines speaks for the
# attention: a word can lose its strongest frames at no cost when the frames beside them show the same thing. One word
# of one clip decides nothing. The table further down has the mean over all words of the test split.
#
# ## Does the caption rest on the brightest frames?
#
# - Average the rows over all words of the caption: which frames got most of the attention?

# %%
figures.plot_importance(hypothesis.attention, times, pictures, timed=timed)

# %% [markdown]
# It is tempting to read this as "the caption rests on these frames". That can be tested: hide the fewest frames that
# carry half of the mean attention, and compare with as many random frames.
#
# **Predict** Half of the attention is gone. In how many of the test clips does the caption change?


# %%
def half(attention: np.ndarray) -> np.ndarray:
    """The fewest frames that carry half of the mean attention of rows (L, T); never all frames."""
    mean = attention.mean(axis=0)  # (T,)
    order = np.argsort(-mean, kind="stable")
    return order[: min(np.searchsorted(mean[order].cumsum(), 0.5) + 1, len(order) - 1)]


generator, costs, unchanged, words_kept, shares = np.random.default_rng(0), [], [], [], []
for i in [i for i in test if len(run.data.store[i]) > 1][:100]:
    features, caption, hide = run.data.store[i], predictions[i], half(predictions[i].attention)
    hidden = [hide] + [generator.choice(len(features), len(hide), replace=False) for _ in range(5)]
    versions = [features] + [np.delete(features, frames, axis=0) for frames in hidden]
    log_probs, _ = checks.teacher_forced(run.model, run.vocabulary, versions, caption.words)  # (7, L)
    written = generate(run.model, run.vocabulary, *pad_frames(versions[1:]), config.decode)
    costs.append(log_probs[0].sum() - log_probs[1:].sum(axis=1))  # (6,) nats of the whole caption
    unchanged.append([beams[0].words == caption.words for beams in written])
    words_kept.append([np.isin(caption.words, beams[0].words).mean() for beams in written])
    shares.append(len(hide) / len(features))

# %%
if costs:
    lost, same, kept = np.array(costs), np.array(unchanged), np.array(words_kept)  # (clips, 6) each
    print(f"{len(lost)} clips; half of the attention lies on {np.mean(shares):.0%} of the frames")
    for name, part in (("these frames", slice(0, 1)), ("as many random ones", slice(1, 6))):
        nats, equal, words = lost[:, part].mean(), same[:, part].mean(), kept[:, part].mean()
        print(f"hide {name:<20} cost {nats:.2f} nats, same caption in {equal:.0%} of clips, {words:.0%} of words kept")
    gaps = lost[:, 0] - lost[:, 1:].mean(axis=1)  # (clips,)
    gap, low, high = checks.mean_with_interval(gaps.tolist(), [str(n) for n in range(len(gaps))])
    print(f"difference {gap:+.2f} nats, 95 % interval [{low:+.2f}, {high:+.2f}]")
else:
    print("Every test clip has one frame: nothing can be hidden.")

# %% [markdown]
# - Nats: if these frames cost more than random ones, they matter more than others. The interval says how sure that is:
#   it is the range of the mean when the clips are drawn again and again. It should lie above 0.
# - Captions: where a caption stays the same, it did not *rest* on these frames, however bright they are. Frames
#   resemble their neighbours, and what is left can be enough. Where as many captions change with random frames, it
#   matters how many frames are hidden, not which.
#
# On the sample these frames cost more than random ones. But most captions also change without as many random frames: a
# caption needs more frames than the bright ones. So the bars show where the model read most, not all that it needed.
#
# ## Looked at, and needed
#
# - A weight says where the model looked. What did the word *need*? Take one frame away and see how much less likely the
#   word becomes. We do so for every frame: T + 1 teacher-forced passes in one batch.
# - The *need* of a word for a frame is the difference of the log-probabilities, with all frames and without this one, in
#   nats. At `log(2)` the word is half as likely without the frame. Negative: it is more likely without it.
#
# **Predict** Is the frame that a word looks at most also the one that it needs most?

# %%
if T > 1:
    clip = run.data.store[video_id]  # (T, D)
    versions = [clip] + [np.delete(clip, t, axis=0) for t in range(T)]
    log_probs, _ = checks.teacher_forced(run.model, run.vocabulary, versions, hypothesis.words)  # (T + 1, L)
    needed = (log_probs[0] - log_probs[1:]).T  # (L, T) nats
    (of_caption,) = measures.need(run.model, run.vocabulary, clip, [hypothesis.words])
    assert np.allclose(needed, of_caption.need, atol=1e-3)
    for said, weights, nats in zip(hypothesis.words, hypothesis.attention, needed, strict=True):
        most = f"needs frame {nats.argmax() + 1:>2} most ({nats.max():+.2f} nats)"
        print(f"{said:<14} looks most at frame {weights.argmax() + 1:>2}, {most}")

# %% [markdown]
# Many words need no single frame: without any one of them they stay as likely. That has three reasons, and need alone
# cannot tell them apart. The neighbours show the same. The word follows from the words before it. Or the model says it
# out of habit, and no frame supports it.
#
# ## Does the word point at the right frames?
#
# - Some corpora know when each thing is to be seen: `events.json` holds words with their interval [start, end) in
#   seconds.
# - *Pointing* (Zhang et al. 2018, here in time): does the strongest frame of a word lie inside the word's interval?
# - *Chance* is the share of the clip's frames inside: what attention that looks anywhere would hit. *Mass* is the share
#   of the word's attention inside.
# - Clips with one scene do not count: there every frame is right.

# %%
path = run.data.root / "events.json"
events = measures.read_events(path) if path.is_file() and run.manifest else {}


def pointing(i: str) -> list:
    """What `measures.ground` finds for the model's caption of one clip."""
    return measures.ground({i: predictions[i]}, {i: run.timestamps(i)}, events)


pointed = next((i for i in (video_id, *test) if pointing(i)), None)
if pointed is None:
    print("Not available: no events.json, no times of the frames, or no word with a known time.")
else:
    by_hand, seconds = [], np.array(run.timestamps(pointed))
    for said, weights in zip(predictions[pointed].words, predictions[pointed].attention, strict=True):
        true = [event for event in events[pointed]["events"] if said in event["words"]]
        inside = np.any([(e["start"] <= seconds) & (seconds < e["end"]) for e in true], axis=0)  # (T,)
        if true and not inside.all():
            strongest = weights.argmax()
            mass, chance = float(weights[inside].sum()), float(inside.mean())
            by_hand.append((said, bool(inside[strongest]), mass, chance))
            where = "inside" if inside[strongest] else "outside"
            print(f"{said:<14} at {seconds[strongest]:.2f} s: {where}; mass {mass:.2f}, chance {chance:.2f}")
    assert by_hand == [(g.word, g.hit, g.mass, g.chance) for g in pointing(pointed)]

# %% [markdown]
# The same as a picture: the blue bars are the true intervals, the dots the frames with their weights, the ring the
# strongest frame.

# %%
if pointed is not None:
    figure, axes = plt.subplots(figsize=(9, 0.45 * len(by_hand) + 1.2), layout="constrained")
    timed_words = {said for said, *_ in by_hand}
    rows = [t for t, said in enumerate(predictions[pointed].words) if said in timed_words]
    for y, t in enumerate(rows):
        weights, said = predictions[pointed].attention[t], predictions[pointed].words[t]
        true = [e for e in events[pointed]["events"] if said in e["words"]]
        bars = [(e["start"], e["end"] - e["start"]) for e in true]
        axes.broken_barh(bars, (y - 0.4, 0.8), color="lightblue")
        axes.scatter(seconds, [y] * len(seconds), s=300 * weights, color="tab:blue")
        axes.plot(seconds[weights.argmax()], y, "o", mfc="none", mec="tab:orange", ms=14, mew=2)
    axes.set_yticks(range(len(rows)), [predictions[pointed].words[t] for t in rows])
    axes.set(xlabel="time (s)", title=f"{pointed}: attention and the intervals in which the words are true")
    axes.invert_yaxis()
    plt.show()

# %% [markdown]
# Pointing shows whether the attention is where a person would look. It does not show that the word needed these frames:
# that is what deletion asks. And a miss by one frame need not be a mistake: the encoder mixes neighbouring frames.
#
# ## Can it be believed?
#
# A bright picture proves little: Jain & Wallace (2019) built models whose attention could be changed without changing
# what they said. Wiegreffe & Pinter (2019) answered that attention is then something to test, not something to throw
# away. So here are checks on the whole test split that our attention could fail. Beside deletion and pointing they are:
#
# - **uniform attention** and **frames shuffled**: the same trained weights, but all frames weigh the same, or come in
#   another order. What do the captions lose? The score is CIDEr, from notebook 4: how much of the wording of the
#   references a caption has, where rare words count more.
# - **splices**: two clips joined end to end. Each one's caption, teacher forced, should be read from its own half. This
#   needs no `events.json`.
# - **looked at and needed**: the rank correlation between a word's attention and its need over the frames.
# - **seed agreement**: the correlation between the rows of two trainings with different random starts, for the same
#   words.
#
# **Predict** Which costs more CIDEr here, uniform attention or shuffled frames?

# %%
table = ["| check | result | chance or reference | how to read it |", "|---|---|---|---|"]
for check in checks.check(run, "test", config.decode):
    table.append(f"| {check['check']} | {check['result']} | {check['chance'] or '–'} | {check['reads']} |")
display(Markdown("\n".join(table)))

# %% [markdown]
# On the sample both changes take more than half of the CIDEr, uniform attention the larger part. A pointing row *below* chance
# is a finding, too: the model says order words such as *then* while it still looks at the scene before.
#
# One row may surprise: *splices*. Where pointing is near 100 % and splices are near chance, what does the model go by? We ask
# separately for captions of the clip that comes first in a splice, and of a clip that comes later.
#
# **Predict** If attention matched words with pictures, would it matter where in the splice the clip lies?

# %%
inside = {"first": [], "later": []}
with torch.no_grad():
    for batch in make_loader(CaptionDataset(run.data, "test", 1, config.train.max_length), 64):
        joined, clips, own = splice(batch, PAD)  # own (S, K, T): the frames of the clip that a caption is of
        _, weights = run.model(joined.features, joined.frame_mask, joined.inputs)  # (S, K, L, T)
        mass = (weights * own[:, :, None]).sum(dim=-1)  # (S, K, L)
        for s, k in (clips >= 0).nonzero().tolist():
            place = "first" if own[s, k, 0] else "later"
            inside[place].append(mass[s, k][joined.targets[s, k] != PAD].mean().item())
for place, masses in inside.items():
    if masses:
        print(f"{len(masses)} captions of the clip that comes {place}: {np.mean(masses):.2f} of their attention inside it")

# %% [markdown]
# If the first number is far above the second, attention follows the *order* of the scenes: the first words of a caption are
# read from the first frames, whatever they show. That is so on the sample. Its captions tell the scenes in order, so the
# model needs no more than their place; it looks at the right frames, but not because of what is in them. Pointing alone
# could not have shown that.
#
# Can attention be made to match words with pictures? `attention="matched"` weighs a frame by how well it goes with the
# words said so far, and training tells it so: among the clips of a batch, the words must find their own. On real clips
# it finds the right part of most splices, while additive attention stays at chance; yet its captions are worse
# (docs/results.md). On the sample it cannot work: before the first word nothing was said, so it
# does not know where to begin, and nothing tells it to go on to the next scene.
#
# Pointing counts only words that are true of the clip. A model that names little rightly could still point well. So
# read its rows together with the share of scenes whose thing, or whose change, the captions name rightly:

# %%
known = {i: events[i] for i in test if i in events}
if {"thing", "change"} <= {event["kind"] for clip in known.values() for event in clip["events"]}:
    named = naming({i: predictions[i].caption for i in known}, known)
    for kind in ("things", "changes"):
        print(f"{kind} named rightly: {named[kind]:.0%} of {named['scenes']} scenes")
else:
    print("Not available: no events.json that knows things and changes.")

# %% [markdown]
# What each check can show, and what it cannot:
#
# - **Sums**: every row sums to 1 over the frames that exist. Without it, no weight is a share of anything.
# - **Pointing** shows that the attention is where a person would look. It does not show that the model needed it.
# - **Deletion** is the check of *cause*: positive means that a word's strongest frames matter more to it than others.
#   (Brackets: 95 % interval, whole clips resampled.) Its limit: frames resemble their neighbours, so what is hidden in
#   one frame may be visible in the next.
# - **Looked at and needed** is the same question frame by frame. Near 0, the order of the weights says little about which
#   single frame the word would miss; few words miss one at all. A weight is then no measure of need.
# - **Uniform attention** and **frames shuffled** show what the captions lose without the choice of frames or without
#   their order. Where they lose little, the attention does little, whatever the pictures look like.
# - **Seed agreement**: if two seeds attend differently, attention reflects the random start, not the clip. (It needs a
#   second run: `python -m vcutils train CORPUS --seeds 2`.)
# - **Entropy** is the mean spread. Little spread is no merit: a model can stare at the wrong frame.
#
# And none of them can remove two limits. The encoder runs over time and mixes neighbouring frames: a weight on a frame
# is a weight on what the encoder knows there, which comes from other frames too. And the decoder's state and the habits
# of the language take part in every word. Attention is evidence of where information was available, not proof of why a
# word was said.
#
# ## Keep it
#
# - `explorer.html` is the explorer with the model in it, as one file that needs no notebook and no network: frames can be
#   hidden in it, too. It holds the clip above and the first three of the test split.
# - The figures come as PNG for slides, as SVG and PDF for print.

# %%
for i in test:
    write_text(out / f"{i}.json", json.dumps(measures.attention_dict(predictions[i], run.timestamps(i))))
files = figures.save_figure(heatmap, out / video_id)
page = explorer.save(out / "explorer.html", test[:3])
names = ", ".join(path.name for path in (*files, page))
print(f"runs/{out.parent.name}/{out.name}: {len(test)} attention files, {names}")

# %% [markdown]
# ## Recap
#
# - One row of weights per word, computed before the word is said; `<end>` has a row of its own, kept apart.
# - A large weight says where the decoder read. Pointing asks whether that is the right place, need what a single frame is
#   worth to the word, deletion whether the brightest frames mattered.
# - Attention is measured against the truth, against chance, against random frames and against another training.
#
# ## Exercises
#
# 1. Set `video_id = ranked[-1]`, the clip where the attention moves most, and run all cells again. Which pictures look
#    more convincing? Do the numbers for the whole test split change?
# 2. Find a wrong word. Where did the model look when it said it? Hide these frames: does the word go away?
# 3. `checks.deletion(run, predictions, share=0.25)` hides a quarter of the frames. Try an eighth, a half and seven
#    eighths. Where is the mean difference between `attended` and `random` largest? Why can it shrink when almost all
#    frames are hidden?
# 4. Turn the question around: keep only `half(...)` of a clip's frames and hide the others. Are these frames *enough*
#    for the caption? Compare with as many random frames.
# 5. Train without the BiLSTM, as a run of its own: `python -m vcutils train CORPUS --run no-encoder --encoder none` in
#    a terminal, with the corpus' folder for CORPUS (`config.corpus_dir`). Then set `run = open_run(...)` above to
#    `no-encoder` in place of `default`, and run all cells. Is the mean spread smaller? Are the captions better?
