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
# - compute one row of attention by hand from the trained weights and find it in the model's output;
# - step through a caption with a slider while the frames light up;
# - test the attention against the truth, where the corpus knows it.

# %%
# %matplotlib inline
import json

import matplotlib.pyplot as plt
import numpy as np
import torch
from IPython.display import Markdown, display

from vcutils import attention
from vcutils.config import Config, write_text
from vcutils.dataset import pad_frames
from vcutils.evaluate import load_run, predict, thumbnails, timestamps
from vcutils.explorer import explore_words
from vcutils.page import page_for

config = Config.from_env()
run = load_run(config.artifacts / "runs" / "default", device=torch.device("cpu"))
test = run.data.splits["test"]
out = run.folder / "attention"

# %% [markdown]
# ## One caption
#
# We take the test clip in which the attention wanders furthest from word to word, and let the model describe it; set
# `video_id` to any other. Each word comes with its own row of weights over the frames.

# %%
predictions = predict(run.model, run.vocabulary, run.data.store, test, config.decode)
video_id = max(test, key=lambda i: float(np.abs(np.diff(predictions[i].attention, axis=0)).sum()))
hypothesis, times = predictions[video_id], timestamps(run, video_id)
pictures = thumbnails(run, video_id)
print(video_id, "model:", hypothesis.caption)
print(" " * len(video_id), "human:", run.data.captions[video_id][0])
print("weights:", hypothesis.attention.shape, "(words, frames), each row sums to", hypothesis.attention.sum(axis=1).round(3)[0])

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
    h = torch.tanh(decoder.init_hidden(m.mean(dim=0)))  # (H,) state before the first word
    hidden = torch.tanh(m @ scorer.keys.weight.T + scorer.keys.bias + scorer.query.weight @ h)  # (T, A)
    by_hand = (hidden @ scorer.score.weight[0]).softmax(dim=0).numpy()
print(f"first word {hypothesis.words[0]!r}, strongest frame {by_hand.argmax()} with {by_hand.max():.1%}")
assert np.allclose(by_hand, hypothesis.attention[0], atol=1e-5)

# %% [markdown]
# The same row, to five decimals: what we look at below is what the model really used, not a reconstruction.
#
# ## All words at once
#
# - Each line is a word, each column a frame; bright means that the word leans on that frame.
# - Follow the circles from top to bottom: they mark the strongest frame of each word.

# %%
attention.plot_heatmap(hypothesis.words, hypothesis.attention, times, pictures, title=hypothesis.caption)

# %%
table = ["| word | strongest frame | at | weight | spread |", "|---|---|---|---|---|"]
for view in attention.word_views(hypothesis, times):
    table.append(f"| {view.word} | {view.frame} | {view.seconds:.2f} s | {view.weight:.0%} | {view.entropy:.2f} |")
display(Markdown("\n".join(table)))

# %% [markdown]
# *Spread* is the entropy of the row as a share of its maximum: 0 means that all weight lies on one frame, 1 that all
# frames weigh the same. Function words such as *a* or *and* can be said without looking; content words cannot.
#
# ## Step through the words
#
# Press play or drag the slider. The frames light up as much as the word leans on them.

# %%
explore_words(hypothesis, times, pictures, title=video_id)

# %% [markdown]
# The slider needs a running notebook. Where scripts do not run, these are the film strips of the word that looks earliest
# and of the one that looks latest:

# %%
looks_at = hypothesis.attention @ times  # mean time of each word's attention, in seconds
for place in (looks_at.argmin(), looks_at.argmax()):
    display(attention.plot_filmstrip(hypothesis.words[place], hypothesis.attention[place], times, pictures))

# %% [markdown]
# ## The frames that matter most
#
# Averaged over all words: which five frames did the caption rest on?

# %%
importance = attention.frame_importance(hypothesis.attention)
best = attention.top_frames(hypothesis.attention, count=5)
figure, axes = plt.subplots(figsize=(9, 2.2), layout="constrained")
axes.bar(times, importance, width=0.7 * (times[1] - times[0]) if len(times) > 1 else 0.2, color="lightgrey")
axes.bar([times[i] for i in best], importance[best], width=0.7 * (times[1] - times[0]) if len(times) > 1 else 0.2)
axes.set(xlabel="time (s)", ylabel="mean attention", title="what the whole caption rests on")
plt.show()
print("strongest first:", ", ".join(f"{times[i]:.2f} s" for i in best))

# %% [markdown]
# ## Is it true?
#
# - A bright picture proves little. Where a corpus knows *when* each thing is to be seen (`events.json`), we can check:
#   does the strongest frame of a word lie inside the true interval? That is the pointing game (Zhang et al. 2018).
# - *Chance* is what attention would hit that knows nothing: the share of the clip in which the thing is to be seen.

# %%
events_file = run.data.root / "events.json"
if events_file.is_file():
    all_times = {i: timestamps(run, i) for i in test}
    found = attention.ground(predictions, all_times, attention.read_events(events_file))
    table = ["| words | how many | strongest frame inside | attention inside | chance |", "|---|---|---|---|---|"]
    for row in attention.grounding_table(found):
        table.append(f"| {row['kind']} | {row['words']} | {row['pointing']:.1%} | {row['mass']:.2f} | {row['chance']:.2f} |")
    display(Markdown("\n".join(table)))
else:
    print("This corpus has no events.json: nobody wrote down when each thing is to be seen.")

# %% [markdown]
# Only clips with two or more scenes count, since with one scene every frame is right. Words that the model got wrong,
# because the thing is never shown, are not in the table: notebook 4 measures those.
#
# ## What attention can and cannot show
#
# - The weights say where information was *read from*. They do not say why the word was chosen: the decoder's memory
#   and the habits of the language take part in every word.
# - An encoder that runs over time mixes neighbouring frames: a weight on frame 7 is a weight on what the encoder
#   knows at frame 7, and that includes its neighbours.
# - Different weights can lead to the same words (Jain & Wallace 2019), and yet weights can be informative
#   (Wiegreffe & Pinter 2019). So: evidence, to be tested, not proof.
#
# ## Keep it
#
# - `explorer.html` is the same view as one file that needs no notebook: open it, or send it to someone.

# %%
for i in test:
    write_text(out / f"{i}.json", json.dumps(attention.attention_dict(predictions[i], timestamps(run, i))))
figure = attention.plot_heatmap(hypothesis.words, hypothesis.attention, times, pictures, title=hypothesis.caption)
figure.savefig(out / f"{video_id}.png", dpi=150)
problems = page_for(run, [video_id, *[i for i in test if i != video_id][:2]], out / "explorer.html", config.decode)
print(f"{len(test)} attention files, a figure and explorer.html in runs/{out.parent.name}/{out.name}", *problems)

# %% [markdown]
# ## Recap
#
# - One row of weights per word, computed before the word is said; `<end>` has a row of its own, kept apart.
# - The strongest frame has a time, so a person can open the clip there and look.
# - Where the truth is known, attention is measured against it and against chance.
#
# ## Exercises
#
# 1. Find a wrong word. Where did the model look when it said it?
# 2. Train with `encoder="none"`. Does the attention get sharper? Does the caption get better?
# 3. Take one frame's features out (`run.data.store[video_id]` without the strongest row) and generate again. Did the
#    word change? That is a test of cause, which attention alone is not.
