# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 2 · From captions to numbers
#
# **Goal** Decide who is in the training set, which words the model may say, and see the batches that it will read.
#
# | reads | writes | CPU, sample corpus | GPU, full MSVD |
# |---|---|---|---|
# | captions, features of notebook 1 | `splits.json`, `vocab.json` | seconds | seconds |
#
# **You will**
# - split the corpus before looking at a single word, and learn why the order matters;
# - see that a rare word costs either way: keep it and it has too few examples, drop it and the model can never say it;
# - build a padded batch and the masks that keep its padding from being learned.

# %%
# %matplotlib inline
from collections import Counter

import matplotlib.pyplot as plt
import numpy as np
from IPython.display import Markdown, display

from vcutils.config import Config
from vcutils.corpora import load_corpus
from vcutils.corpus import SPLITS, make_splits, save_splits
from vcutils.dataset import CaptionDataset, collate, load_data
from vcutils.vocab import SPECIALS, build_vocabulary, oov_rate, tokenize

config = Config.from_env()
corpus = load_corpus(config)
for video_id in corpus.usable[:2]:
    print(video_id, *corpus.captions[video_id][:5], sep="\n    ")

# %% [markdown]
# Several people describe the same clip in different words, and all of them are right. That is why one clip has many
# captions, and why scoring a caption is not as simple as comparing it with one answer.
#
# ## The split comes first
#
# - *train* is learned from, *val* decides when to stop, *test* is opened once, at the end.
# - Whole clips are split, never captions: two captions of one clip on both sides would be the same question twice.

# %%
splits, origin = make_splits(corpus)
save_splits(splits, config.artifacts / "splits.json")
print("split by", origin)
for name in SPLITS:
    captions = sum(len(corpus.captions[i]) for i in splits[name])
    print(f"{name:>5}: {len(splits[name]):5} clips, {captions:6} captions")
for problem in corpus.problems[:5]:
    print("passed over:", problem)

# %% [markdown]
# ## Tokens
#
# - A caption is cut into words, lower-cased, without punctuation; `don't` becomes `do` and `n't`.

# %%
for caption in (corpus.captions[splits["train"][0]][0], "A man's dog doesn't stop, does it?"):
    print(caption, "->", tokenize(caption))

# %% [markdown]
# ## What a vocabulary costs
#
# - Every word in the vocabulary is a row of weights that must be learned from the captions that use it.
# - Every word left out is a hole: the model reads `<unk>` in its place and can never say it.
# - The counts come from the training clips alone. A word that only test captions use *is* unknown, and a vocabulary
#   built from all captions would hide that.

# %%
counts = Counter(word for i in splits["train"] for caption in corpus.captions[i] for word in tokenize(caption))
ranked = np.array(sorted(counts.values(), reverse=True))
thresholds = [1, 2, 3, 4, 5, 8, 12, 20]
sizes = [int((ranked >= n).sum()) for n in thresholds]
figure, (left, right) = plt.subplots(1, 2, figsize=(11, 3.2), layout="constrained")
left.loglog(np.arange(1, len(ranked) + 1), ranked)
left.set(xlabel="rank of the word", ylabel="occurrences", title="a few words do most of the talking")
right.plot(thresholds, sizes, "o-")
right.set(xlabel="least occurrences to be kept", ylabel="words kept", title="the threshold decides the size")
plt.show()

# %%
vocabulary = build_vocabulary(corpus.captions, splits["train"], config.vocab.min_count)
vocabulary.save(config.artifacts / "vocab.json")
table = ["| split | words the vocabulary does not know |", "|---|---|"]
for name in SPLITS:
    table.append(f"| {name} | {oov_rate(vocabulary, corpus.captions, splits[name]):.2%} |")
print(f"{len(vocabulary)} words, kept from {vocabulary.counts[-1]} occurrences on, the first four special: {SPECIALS}")
display(Markdown("\n".join(table)))

# %% [markdown]
# The test line is the honest price: this share of the reference words can never be said. If it is much higher than the
# train line, the corpus is small for its language, and no model will make up for it.
#
# ## A caption as numbers, and back

# %%
caption = corpus.captions[splits["train"][0]][0]
ids = vocabulary.encode(caption)
print(ids)
print([vocabulary.words[i] for i in ids])
print(vocabulary.decode(ids))
assert vocabulary.decode(ids) == [w if w in vocabulary.index else "<unk>" for w in tokenize(caption)]

# %% [markdown]
# `<start>` gives the decoder something to read before its first word, `<end>` lets it say that it is done. In training
# the model reads `ids[:-1]` and must say `ids[1:]`: the same words, shifted by one. Without the shift it would be asked
# to repeat the word it has just been given, and it would learn to copy.

# %%
for read, say in zip(ids[:-1], ids[1:], strict=True):
    print(f"reads {vocabulary.words[read]:<10} says {vocabulary.words[say]}")

# %% [markdown]
# ## A batch and its masks
#
# - Clips differ in frames and captions in words; tensors are rectangles. The rest is padding.
# - The masks say what is real. Everything downstream obeys them: no attention on padding, no loss on padding.

# %%
data = load_data(corpus, config.artifacts, config.extract)
K = config.train.captions_per_clip
dataset = CaptionDataset(data, "train", captions_per_clip=K, max_length=config.train.max_length)
batch = collate([dataset[i] for i in range(min(4, len(dataset)))])
B, T, D = batch.features.shape
print(f"features {(B, T, D)}, frame_mask {tuple(batch.frame_mask.shape)}, captions {tuple(batch.captions.shape)}")
print("real frames per clip:", batch.frame_mask.sum(dim=1).tolist())

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(11, 2.6), layout="constrained")
left.imshow(batch.frame_mask, aspect="auto", cmap="Greens", vmin=0, vmax=1.4)
left.set(xlabel="frame", ylabel="clip", title="frames that exist", yticks=range(B))
right.imshow(batch.captions.flatten(0, 1) != 0, aspect="auto", cmap="Blues", vmin=0, vmax=1.4)
right.set(xlabel="word", ylabel="caption", title="words that exist")
plt.show()

# %% [markdown]
# Each clip brings K captions, and its frames only once: the expensive part, encoding the clip, is shared by all of
# them. That is one of the reasons why notebook 3 trains in seconds.
#
# ## Recap
#
# - The split is fixed before the words are counted, and the counts see the training clips alone.
# - A vocabulary is a trade between words that can be learned and words that can be said.
# - Targets are the inputs shifted by one; masks mark what is real.
#
# ## Exercises
#
# 1. Build the vocabulary from all captions. By how much does the test line fall, and why would that be cheating?
# 2. Raise `min_count` until the model cannot say one test word in ten. How many words are left?
# 3. Print the ten words with the highest share of occurrences in one split only. Are they things or actions?
#
# **Next:** [3 · Training](03_train.ipynb)
