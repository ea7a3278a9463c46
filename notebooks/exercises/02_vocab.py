# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Exercises 2 · From captions to numbers
#
# Three functions for what [notebook 2](../02_vocab.ipynb) is about: which words the model may say, how clips of different lengths
# become one batch, and what the model must say at each step.
#
# | exercise | you write | time |
# |---|---|---|
# | 2.1 | `build_vocabulary(captions, min_count)` | about 15 minutes |
# | 2.2 | `collate(clips)` | about 25 minutes |
# | 2.3 | `inputs_targets(ids)` | about 5 minutes |
#
# Replace `raise NotImplementedError` by your lines. Keep the functions' names and arguments, and use what a function is given,
# not other variables of the notebook: they are not there when it is marked. A wrong answer blocks nothing: after each exercise
# the notebook goes on with the package's own form. What is missing in `data/` is built first: features in about a minute.

# %%
from collections import Counter

import numpy as np
import torch

from vcutils import dataset, vocab
from vcutils.course.artifacts import course_data
from vcutils.course.exercises import check
from vcutils.vocab import END, PAD, SPECIALS, START, tokenize

config, corpus, data = course_data()
train, val = data.splits["train"], data.splits["val"]
print(f"{len(train)} training clips with {sum(len(data.captions[i]) for i in train)} captions; special words {' '.join(SPECIALS)}")

# %% [markdown]
# ## Exercise 2.1 · A vocabulary
#
# Write `build_vocabulary(captions, min_count)` for a list of captions. It returns a list of words:
#
# - first the four special words, `SPECIALS`, in their order;
# - then all words that occur at least `min_count` times, the most frequent first, and equally frequent ones by the alphabet.
#
# `tokenize(caption)` cuts a caption into words.
#
# - **Time** about 15 minutes
# - **Hint** `Counter` counts. `sorted` takes a `key`, and a key may be a tuple.
# - **Expect** On the sample's training captions: 83 words for `min_count=2`, 70 for 50, 54 for 100. The share of words of the
#   validation captions that is unknown: 0 %, 3.08 %, 11.77 %.


# %%
def build_vocabulary(captions, min_count):
    """The special words and the words that occur at least min_count times in the captions, most frequent first."""
    ### BEGIN SOLUTION
    counts = Counter(word for caption in captions for word in tokenize(caption))
    frequent = [word for word, count in counts.items() if count >= min_count]
    return [*SPECIALS, *sorted(frequent, key=lambda word: (-counts[word], word))]
    ### END SOLUTION


# %%
check("2.1", build_vocabulary)
### BEGIN HIDDEN TESTS
assert list(build_vocabulary([], 1)) == list(SPECIALS), "no caption at all"
words = list(build_vocabulary(["b a c", "c a.", "C d"], 1))
assert words == [*SPECIALS, "c", "a", "b", "d"], "equally frequent words stand in the order of the alphabet"
assert list(build_vocabulary(["a b b", "b"], 3)) == [*SPECIALS, "b"], "a word that occurs min_count times is kept"
### END HIDDEN TESTS

# %% [markdown]
# The package's form counts the captions of the training clips, and only those. The table is for the three thresholds above.

# %%
for min_count in (2, 50, 100):
    try:
        vocabulary = vocab.build_vocabulary(data.captions, train, min_count)
        unknown = vocab.oov_rate(vocabulary, data.captions, val)
        print(f"min_count {min_count:>3}: {len(vocabulary):>3} words, {unknown:.2%} of the words of the validation captions unknown")
    except ValueError as error:  # a corpus with few captions
        print(f"min_count {min_count:>3}: {error}")

# %% [markdown]
# ## Exercise 2.2 · A batch
#
# `clips` is a list of B tuples `(id, features, captions)`: an array (T, D) of 16-bit numbers with a T of its own, and K captions,
# each a list of word ids. Write `collate(clips)`. It returns three tensors:
#
# - `features` (B, T, D), float32, where T is the largest number of frames, with zeros as padding;
# - `frame_mask` (B, T), bool, True on frames that exist;
# - `captions` (B, K, L + 1), int64, where K and L + 1 are the largest numbers in the batch, with `PAD` as padding. A
#   clip with fewer than K captions gets whole rows of `PAD`.
#
# - **Time** about 25 minutes
# - **Hint** Make the three tensors full of padding first, then write the real part of each row.
# - **Expect** For clips of 16, 12 and 7 frames the mask has the shape (3, 16), and the sums of its rows are 16, 12 and 7. So 13
#   of 48 rows are padding.


# %%
def collate(clips):
    """Features (B, T, D), frame_mask (B, T) and captions (B, K, L + 1) of B clips (id, features, captions)."""
    ### BEGIN SOLUTION
    B, T, D = len(clips), max(len(rows) for _, rows, _ in clips), clips[0][1].shape[1]
    K = max(len(lines) for _, _, lines in clips)
    longest = max(len(line) for _, _, lines in clips for line in lines)
    features, frame_mask = torch.zeros(B, T, D), torch.zeros(B, T, dtype=torch.bool)
    captions = torch.full((B, K, longest), PAD)
    for b, (_, rows, lines) in enumerate(clips):
        features[b, : len(rows)] = torch.from_numpy(rows).float()
        frame_mask[b, : len(rows)] = True
        for k, line in enumerate(lines):
            captions[b, k, : len(line)] = torch.tensor(line)
    return features, frame_mask, captions
    ### END SOLUTION


# %%
check("2.2", collate)
### BEGIN HIDDEN TESTS
rng = np.random.default_rng(1)
made = [("x", rng.random((2, 3)).astype(np.float16), [[START, 5, END]]), ("y", np.zeros((4, 3), np.float16), [[START, END]] * 2)]
features, frame_mask, captions = collate(made)
assert tuple(features.shape) == (2, 4, 3) and features.dtype == torch.float32, "features (2, 4, 3), float32"
assert frame_mask.tolist() == [[True, True, False, False], [True] * 4], "a frame of zeros exists, padding does not"
assert captions.tolist() == [[[START, 5, END], [PAD] * 3], [[START, END, PAD]] * 2], "a clip with fewer captions"
### END HIDDEN TESTS

# %% [markdown]
# The package's form, on three clips of the corpus that are cut to 16, 12 and 7 frames where they are long enough:

# %%
clips = dataset.CaptionDataset(data, "train", captions_per_clip=2, max_length=config.train.max_length)
longest = sorted(range(min(100, len(clips))), key=lambda position: -len(clips[position][1]))[:3]
items = [(i, rows[:frames], lines) for (i, rows, lines), frames in zip(map(clips.__getitem__, longest), (16, 12, 7), strict=True)]
batch = dataset.collate(items)
print("features", tuple(batch.features.shape), "mask", tuple(batch.frame_mask.shape), "captions", tuple(batch.captions.shape))
print("sums of the mask's rows:", batch.frame_mask.sum(dim=1).tolist())

# %% [markdown]
# ## Exercise 2.3 · Shifted by one
#
# `ids` (B, K, L + 1) are captions from `<start>` to `<end>`, with padding behind. At each step the decoder reads a word and must
# say the next one. Write `inputs_targets(ids)`. It returns what is read and what must be said, both (B, K, L).
#
# - **Time** about 5 minutes
# - **Hint** Each is one slice of `ids`.
# - **Expect** The caption `<start> a cat <end>` is read as `<start> a cat`, and must be said as `a cat <end>`.


# %%
def inputs_targets(ids):
    """Inputs and targets (B, K, L) of captions (B, K, L + 1)."""
    ### BEGIN SOLUTION
    return ids[:, :, :-1], ids[:, :, 1:]
    ### END SOLUTION


# %%
check("2.3", inputs_targets)
### BEGIN HIDDEN TESTS
inputs, targets = inputs_targets(torch.arange(24).reshape(2, 3, 4))
assert inputs.shape == targets.shape == (2, 3, 3), "both are one word shorter than ids"
assert torch.equal(torch.as_tensor(inputs[..., 1:]), torch.as_tensor(targets[..., :-1])), "shifted by one, not by two"
### END HIDDEN TESTS

# %% [markdown]
# The package's batches have both as properties:

# %%
for read, say in zip(batch.inputs[0, 0].tolist(), batch.targets[0, 0].tolist(), strict=True):
    print(f"reads {data.vocabulary.words[read]:<12} must say {data.vocabulary.words[say]}")

# %% [markdown]
# Where the target is `<pad>`, the loss must not count: exercise 3.3.
#
# **Next** [Exercises 3](03_train.ipynb)
