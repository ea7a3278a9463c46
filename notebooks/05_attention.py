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
# **Goal** See, word by word, which frames the model read from, and measure how far that picture can be trusted.
#
# | reads | writes | CPU, sample corpus | GPU, full MSVD |
# |---|---|---|---|
# | `runs/default/best/`, the clips | `runs/default/attention/` | seconds | seconds |
#
# **You will**
# - step through a caption while the frames light up, and hide frames to see what the model says without them;
# - compute one row of attention by hand from the trained weights and find it in the model's output;
# - put the attention to tests that it could fail.

# %%
# %matplotlib inline
import json

import numpy as np
import torch
from IPython.display import Markdown, display

from vcutils.attention import checks, figures, measures
from vcutils.attention.explorer import explore
from vcutils.config import Config
from vcutils.corpora import open_run
from vcutils.dataset import pad_frames
from vcutils.runtime.files import write_text

config = Config.from_env()
run = open_run(config.artifacts / "runs" / "default", device=torch.device("cpu"))
test = run.data.splits["test"]
out = run.folder / "attention"

# %% [markdown]
# ## Which frames made it say that?
#
# We take the test clip in which the attention wanders furthest from word to word, and let the model describe it; set
# `video_id` to any other. Each word comes with its own row of weights over the frames.

# %%
predictions = run.predict(test, config.decode)
video_id = max(test, key=lambda i: float(np.abs(np.diff(predictions[i].attention, axis=0)).sum()))
hypothesis, times = predictions[video_id], run.timestamps(video_id)
timed = "timestamps" in run.manifest.get(video_id, {})
pictures = run.thumbnails(video_id) or [figures.number_tile(i + 1) for i in range(len(times))]
print(video_id, "model:", hypothesis.caption)
print(" " * len(video_id), "human:", run.data.captions[video_id][0])
print("weights:", hypothesis.attention.shape, "(words, frames), each row sums to", hypothesis.attention.sum(axis=1).round(3)[0])

# %% [markdown]
# - **Look**: click a word, press play or drag the slider. The brighter a frame, the larger its
#   attention weight for this word. Click its picture to enlarge it.
# - **Test**: hide frames by the button on each, or hide a span of them. The model describes the clip again without
#   them. What it can no longer say, it had from there.
# - **Choose**: another clip, a clip of your own, or one of the other captions that the beam search weighed.

# %%
explorer = explore(run, video_id)
explorer

# %% [markdown]
# The explorer needs a running notebook. Where scripts do not run, here is the same caption on paper, for its two rarest
# words: in a caption, the rare words carry the content.

# %%
count = dict(zip(run.vocabulary.words, run.vocabulary.counts, strict=True))
rarest = sorted(sorted(range(len(hypothesis.words)), key=lambda i: count[hypothesis.words[i]])[:2])
for place in rarest:
    display(figures.plot_filmstrip(hypothesis.words[place], hypothesis.attention[place], times, pictures, timed=timed))

# %% [markdown]
# And what hiding does: how many of its frames, strongest first, must go before the last of these words goes?

# %%
word, row, hidden = hypothesis.words[rarest[-1]], hypothesis.attention[rarest[-1]], 0
for hidden in range(1, len(row)):
    explorer.hide_frames(np.argsort(-row)[:hidden])
    if word not in explorer.shown.beams[0].words:
        break
print(f"all {len(row)} frames:   ", hypothesis.caption)
print(f"{hidden} of them hidden:", explorer.shown.beams[0].caption)
explorer.hide_frames(())

# %% [markdown]
# ## A row of weights by hand
#
# Before the first word the decoder's state is made from the mean of the encoded frames. From there it is the formula of
# notebook 3, with the trained weights:

# %%
features, frame_mask = pad_frames([run.data.store[video_id]])
decoder, scorer = run.model.decoder, run.model.decoder.attention
with torch.no_grad():
    m = run.model.encoder(features, frame_mask)[0]  # (T, C) encoded frames
    h = torch.tanh(decoder.init_h(m.mean(dim=0)))  # (H,) state before the first word
    hidden = torch.tanh(m @ scorer.keys.weight.T + scorer.keys.bias + scorer.query.weight @ h)  # (T, A)
    by_hand = (hidden @ scorer.score.weight[0]).softmax(dim=0).numpy()
print(f"first word {hypothesis.words[0]!r}, strongest frame {by_hand.argmax()} with {by_hand.max():.1%}")
assert np.allclose(by_hand, hypothesis.attention[0], atol=1e-5)

# %% [markdown]
# The same row, to five decimals: what we look at is what the model really used, not a reconstruction.
#
# ## All words at once
#
# - Each line is a word, each column a frame; bright means that the word leans on that frame.
# - Follow the circles from top to bottom: they mark the strongest frame of each word.

# %%
figures.plot_heatmap(hypothesis.words, hypothesis.attention, times, pictures, title=hypothesis.caption, timed=timed)

# %%
table = ["| word | strongest frame | at | weight | spread |", "|---|---|---|---|---|"]
for view in measures.word_views(hypothesis, times):
    at = f"{view.seconds:.2f} s" if timed else "–"
    table.append(f"| {view.word} | {view.frame} | {at} | {view.weight:.0%} | {view.entropy:.2f} |")
display(Markdown("\n".join(table)))

# %% [markdown]
# *Spread* is the entropy of the row as a share of its maximum: 0 means that all weight lies on one frame, 1 that all
# frames weigh the same. Function words such as *a* or *and* can be said without looking; content words cannot.

# %%
figures.plot_entropy(hypothesis.words, hypothesis.attention)

# %% [markdown]
# Averaged over all words: which frames did the caption rest on?

# %%
figures.plot_importance(hypothesis.attention, times, pictures, timed=timed)

# %% [markdown]
# ## Can it be believed?
#
# A bright picture proves little: Jain & Wallace (2019) built models whose attention could be changed without changing
# what they said. Wiegreffe & Pinter (2019) answered that this makes attention something to be tested, not something to be
# thrown away. So we test ours on the whole test split, with checks that it could fail.

# %%
table = ["| check | result | chance or reference | how to read it |", "|---|---|---|---|"]
for row in checks.check(run, "test", config.decode):
    table.append(f"| {row['check']} | {row['result']} | {row['chance'] or '–'} | {row['reads']} |")
display(Markdown("\n".join(table)))

# %% [markdown]
# What each of them can show, and what it cannot:
#
# - **Sums**: the weights are shares of real frames. A matter of bookkeeping; without it nothing else counts.
# - **Pointing** (Zhang et al. 2018, here in time): where a corpus knows when each thing is to be seen, does the strongest
#   frame lie inside? *Chance* is what blind attention would hit. Only clips with several scenes count, and only words that
#   are true of the clip; which words are true is what notebook 4 measures. Pointing shows that the attention is where a
#   person would look. It does not show that the model needed it.
# - **Deletion**: hide a word's strongest quarter of the frames, and see how much less likely the word becomes than when as
#   many others are hidden (positive = the strongest matter more; brackets: 95 % interval, whole clips resampled). This
#   is the check of *cause*. Its limit: frames resemble their neighbours, so what one loses the next may still tell.
# - **Uniform** and **shuffled**: what the captions lose when this model may not choose its frames, or gets them in
#   another order. Where they lose little, the attention does little, however nice the pictures.
# - **Seed agreement**: the correlation of two trainings' attention for the same words. Attention that changes with
#   the seed tells about the seed. (It needs a second run: `python -m vcutils train … --seeds 2`.)
# - **Entropy**: focus alone is no merit; a model can stare at the wrong frame.
#
# And what none of them can undo: an encoder that runs over time mixes neighbouring frames, so a weight on frame 7 is a
# weight on what the encoder knows at frame 7. The decoder's memory and the habits of the language take part in every
# word. Attention is evidence of where information was read, not proof of why a word was said.
#
# ## Keep it
#
# - `explorer.html` is the explorer without its hiding, as one file that needs no notebook and no network: open it, or send
#   it to someone.
# - The figures come as PNG for slides, as SVG and PDF for print.

# %%
for i in test:
    write_text(out / f"{i}.json", json.dumps(measures.attention_dict(predictions[i], run.timestamps(i))))
figure = figures.plot_heatmap(hypothesis.words, hypothesis.attention, times, pictures, title=hypothesis.caption, timed=timed)
files = figures.save_figure(figure, out / video_id)
page = explorer.save(out / "explorer.html", test[:3])
print(f"runs/{out.parent.name}/{out.name}: {len(test)} attention files, {', '.join(p.name for p in (*files, page))}")

# %% [markdown]
# ## Recap
#
# - One row of weights per word, computed before the word is said; `<end>` has a row of its own, kept apart.
# - The strongest frame has a time, so a person can open the clip there and look; hiding it asks whether it mattered.
# - Attention is measured against the truth, against chance, against deletion and against another training.
#
# ## Exercises
#
# 1. Find a wrong word. Where did the model look when it said it? Hide that frame: does the word go away?
# 2. Train with `encoder="none"`. Does the attention get sharper? Does the caption get better?
# 3. `checks.deletion` hides a quarter of the frames. Try an eighth and a half (`share`): when does the difference to random
#    frames grow, when does it vanish, and why must it vanish in the end?
