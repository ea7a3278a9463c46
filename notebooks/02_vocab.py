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
# - build a padded batch by hand, with the masks that keep its padding from being learned;
# - find out how far one sentence gets that is said about every clip.

# %%
# %matplotlib inline
import json
from collections import Counter

import matplotlib.pyplot as plt
import numpy as np
import torch
from IPython.display import display

from vcutils.config import Config
from vcutils.corpora import load_corpus
from vcutils.corpus import SPLITS, make_splits, save_splits
from vcutils.course.pictures import split_picture
from vcutils.dataset import CaptionDataset, collate, load_data, pad_frames
from vcutils.scores.baselines import constant_caption, training_captions
from vcutils.scores.coco import References
from vcutils.vocab import END, PAD, SPECIALS, START, UNK, build_vocabulary, oov_rate, tokenize

config = Config.from_env()
corpus = load_corpus(config)
print(f"{len(corpus.usable)} clips with captions, {sum(len(corpus.captions[i]) for i in corpus.usable):,} captions")
for problem in corpus.problems[:5]:
    print("passed over:", problem)

# %% [markdown]
# ## The split comes first
#
# - *train* is learned from, *val* (validation) decides when to stop, *test* is opened once, at the end.
# - Whoever has read the test captions chooses words, settings and models with them in mind. So the split comes before
#   the first word.
# - Whole clips are split, never captions: two captions of one clip on both sides would be the same question twice.
#
# **Predict** Suppose single captions were split at random instead, `70` % to train, `15` % to val, `15` % to test. Of the
# clips with a test caption, how many would have a training caption, too?

# %%
splits, origin = make_splits(corpus)
save_splits(splits, config.artifacts / "splits.json")
print("split by", origin)
for name in SPLITS:
    captions = sum(len(corpus.captions[i]) for i in splits[name])
    print(f"{name:>5}: {len(splits[name]):5} clips, {captions:6} captions")
rng = np.random.default_rng(0)
drawn = [set(rng.choice(SPLITS, size=len(corpus.captions[i]), p=[0.7, 0.15, 0.15]).tolist()) for i in corpus.usable]
tested = [names for names in drawn if "test" in names]
leaked = sum("train" in names for names in tested)
print(f"captions split at random: {leaked} of {len(tested)} clips with a test caption have a training caption, too")
assert not set(splits["train"]) & set(splits["test"]) and not set(splits["train"]) & set(splits["val"])

# %% [markdown]
# A model that learns such a clip by heart would look good on the test split, and nobody could tell.
#
# ## What the test split asks for
#
# - A clip that is new need not show anything new. A test asks for more when it shows known things in *new company*: a
#   compositional split.
# - The sample corpus is split so: its `events.json` says what each clip shows, and pairs that the test clips show are kept
#   out of the training clips. A model that memorises clips fails there.
# - In the pictures each square is a pair, in the colour of the split that shows it. Red is a pair that several splits show.
#   A pair of things has no order, so only the upper half of the second picture is used.

# %%
path = corpus.root / "events.json"
events = json.loads(path.read_text("utf-8")) if path.is_file() else {}
if not events:
    print("No events.json: nobody wrote down what is seen in which clip, so this cannot be checked.")


def shown(video_id, kind):
    """What a clip shows of one kind: {start in seconds: name}; the name is the first of the words for it."""
    return {event["start"]: event["words"][0] for event in events[video_id]["events"] if event["kind"] == kind}


words = {event["words"][0]: event for clip in events.values() for event in clip["events"] if event["kind"] == "change"}
for name, event in sorted(words.items()):
    print(f"a change, here called {name!r}; the captions' words for it: {', '.join(event['words'])}")

# %%
pairs = {name: {"things with changes": set(), "pairs of things": set()} for name in SPLITS}
for name in SPLITS:
    for i in (i for i in splits[name] if i in events):
        things, changes = shown(i, "thing"), shown(i, "change")
        pairs[name]["things with changes"] |= {(thing, changes[start]) for start, thing in things.items() if start in changes}
        pairs[name]["pairs of things"] |= {(a, b) for a in things.values() for b in things.values() if a < b}
for kind in ("things with changes", "pairs of things"):
    by_split = {name: pairs[name][kind] for name in SPLITS}
    if not any(by_split.values()):
        continue
    rows, columns = (sorted({pair[side] for group in by_split.values() for pair in group}) for side in (0, 1))
    common = by_split["train"] & by_split["test"]
    print(f"{kind}: {len(by_split['test'])} in the test clips, {len(common)} of them in the training clips, too")
    assert config.corpus is not None or not common  # the embedded corpus keeps its promise
    display(split_picture(by_split, rows, columns))

# %% [markdown]
# Count the red squares. None between train and test means: each thing and each change of a test clip is known from
# training, but never in this company.
#
# ## Many captions for one clip
#
# - Now we may read, and we read training captions.
# - People describe the same clip in different words, and all of them are right. (The sample's sentences are drawn by a
#   program that has several forms for them.)
# - The captions of a clip are also called its *references*: what a generated caption is compared with.

# %%
train = splits["train"]
for video_id in train[:2]:
    print(f"{video_id}, {len(corpus.captions[video_id])} captions", *corpus.captions[video_id], sep="\n    ")

# %% [markdown]
# They agree on some words and differ in others. That is why scoring a caption is not as simple as comparing it with one
# answer.
#
# ## Tokens
#
# - A caption is cut into words, lower-cased, without punctuation. The pieces are called *tokens*.
# - The rules are those of the Penn Treebank, a corpus of English whose words were parted by hand.

# %%
for caption in (corpus.captions[train[0]][0], "A man's dog doesn't stop, does it?"):
    print(caption, "->", tokenize(caption))

# %% [markdown]
# The contraction becomes two tokens, so that *not* is one known word however it is attached. The comma is gone.
#
# ## What a vocabulary costs
#
# - The *vocabulary* is the list of the V words that the model can read and say. Every word in it is a row of weights that
#   must be learned from the captions that use it.
# - Every word left out is a hole: the model reads `<unk>` in its place and can never say it. The share of such words among
#   all words of some captions is their *out-of-vocabulary* rate.
# - A threshold decides: words with at least `min_count` occurrences are kept.
# - The counts come from the training clips alone. A word that only test captions use *is* unknown, and a vocabulary
#   built from all captions would hide that.

# %%
counts = Counter(word for i in train for caption in corpus.captions[i] for word in tokenize(caption))
ranked = np.array(sorted(counts.values(), reverse=True))
print(f"{ranked.sum():,} words in the training captions, {len(ranked)} different ones")
print("most frequent:", ", ".join(f"{word} {count}" for word, count in counts.most_common(8)))
print("rarest:", ", ".join(f"{word} {count}" for word, count in counts.most_common()[-8:]))
above = ranked[ranked > ranked.mean()]
print(f"{len(above)} words are more frequent than the mean; they make up {above.sum() / ranked.sum():.0%} of the text")
figure, axes = plt.subplots(figsize=(6, 2.8), layout="constrained")
axes.loglog(np.arange(1, len(ranked) + 1), ranked, ".-")
axes.set(xlabel="rank of the word", ylabel="occurrences")
axes.axhline(ranked.mean(), color="grey", linewidth=0.8)
axes.text(1, 1.1 * ranked.mean(), "mean")
plt.show()

# %% [markdown]
# Both axes are logarithmic. The words above the grey line, the mean, do most of the talking; captions by people also have a
# long tail of words that occur once.
#
# **Predict** What would a threshold of `50` cost here: how many words would be left, and what share of the words of the
# validation captions would become `<unk>`?

# %%
captions = sum(len(corpus.captions[i]) for i in train)
min_count = config.vocab.min_count or max(1, len(str(captions)) - 1)  # once per power of ten of captions
by_size = f"chosen by size: {captions:,} training captions have {len(str(captions))} digits, and it is one less"
print(f"min_count = {min_count},", "set by the profile" if config.vocab.min_count else by_size)
val_words = [word for i in splits["val"] for caption in corpus.captions[i] for word in tokenize(caption)]
print("min_count  words kept  validation words unknown")
for threshold in sorted({1, 2, 5, 10, 20, 50, 100, 200, min_count}):
    kept = {word for word, count in counts.items() if count >= threshold}
    unknown = sum(word not in kept for word in val_words) / max(1, len(val_words))
    print(f"{threshold:>9}  {len(kept):>10}  {unknown:>24.2%}{'  <- in use' if threshold == min_count else ''}")

# %% [markdown]
# Down the table the vocabulary shrinks and the holes grow: that is the trade. The table looks at validation captions, so that
# a threshold may be chosen by it; one that was chosen by the test captions would have seen the answers.
#
# The vocabulary by hand, and the package's form:

# %%
by_hand = sorted((word for word, count in counts.items() if count >= min_count), key=lambda word: (-counts[word], word))
vocabulary = build_vocabulary(corpus.captions, train, config.vocab.min_count)
assert vocabulary.words == (*SPECIALS, *by_hand)
vocabulary.save(config.artifacts / "vocab.json")
print(f"V = {len(vocabulary)}: {len(SPECIALS)} special words {' '.join(SPECIALS)}, and {len(by_hand)} of {len(counts)} training words")
print(f"the rarest word kept, {vocabulary.words[-1]!r}, occurs {vocabulary.counts[-1]} times; from {min_count} on it may stay")

# %%
unknown = {name: oov_rate(vocabulary, corpus.captions, splits[name]) for name in SPLITS}
print("out of vocabulary:", ", ".join(f"{name} {rate:.2%}" for name, rate in unknown.items()))
if any(unknown.values()):
    print(f"Of the words of the test captions, {unknown['test']:.2%} can never be said.")
else:
    print("No word is unknown in any split: this corpus has few words. Captions by people are not like that.")

# %% [markdown]
# The test rate is the price of the vocabulary, and it is measured, never tuned. If it is much higher than the train rate,
# the corpus is small for its language, and no model will make up for it.
#
# ## A caption as numbers, and back
#
# - Each word becomes its index in the vocabulary. `<start>` gives the decoder, the part of the model that writes the
#   caption, something to read before its first word; `<end>` lets it say that it is done.

# %%
caption = corpus.captions[train[0]][0]
ids = [START, *(vocabulary.index.get(word, UNK) for word in tokenize(caption)), END]
assert ids == vocabulary.encode(caption)
assert vocabulary.decode(ids) == [w if w in vocabulary.index else "<unk>" for w in tokenize(caption)]
print(ids)
print([vocabulary.words[i] for i in ids])
print(vocabulary.decode(ids))

# %% [markdown]
# Index 0 is missing in the list: it is `<pad>`, and stands for no word at all. What it is for comes next.
#
# ## A batch and its masks
#
# - A batch holds B clips with K captions each. Clips differ in frames and captions in words, but a tensor is a rectangle. What
#   a shorter clip or caption lacks is *padding*.
# - T is the largest number of frames in the batch, D the number of features per frame. L + 1 is the largest number of words,
#   with `<start>` and `<end>`; L of them are read, and L are said.
# - A *mask* is True where something is real. The model of notebook 3 looks at real frames only and learns from real words only.
#
# We take three training clips and make a batch by hand. If the corpus has no clips of just these lengths, longer ones are
# cut.
#
# **Predict** Three clips of 16, 12 and 7 frames: what is the shape of the features, (B, T, D)? How many of its B · T rows are
# padding?

# %%
data = load_data(corpus, config.artifacts, config.extract)
K = config.train.captions_per_clip
dataset = CaptionDataset(data, "train", captions_per_clip=K, max_length=config.train.max_length)
lengths = [len(data.store[i]) for i in dataset.ids[:500]]
longest = min(16, max(lengths))
items = []
for wanted in (longest, max(1, longest * 3 // 4), max(1, longest * 7 // 16)):  # 16, 12 and 7, if clips are that long
    fit = [p for p, n in enumerate(lengths) if n >= wanted and dataset.ids[p] not in [item[0] for item in items]]
    position = min(fit or [int(np.argmax(lengths))], key=lambda p: lengths[p])  # the shortest that is long enough
    video_id, features, captions = dataset[position]
    items.append((video_id, features[:wanted], captions))
    words = [len(ids) - 2 for ids in captions]  # without <start> and <end>
    print(f"{video_id}: {lengths[position]} frames, {len(features[:wanted])} in use; words of its {K} captions: {words}")

# %%
B, T, D = len(items), max(len(features) for _, features, _ in items), data.store.dim
L = max(len(ids) for _, _, captions in items for ids in captions) - 1
features = torch.zeros(B, T, D)
frame_mask = torch.zeros(B, T, dtype=torch.bool)
captions = torch.full((B, K, L + 1), PAD)
for b, (_, rows, encoded) in enumerate(items):
    features[b, : len(rows)] = torch.from_numpy(rows)
    frame_mask[b, : len(rows)] = True
    for k, ids in enumerate(encoded):
        captions[b, k, : len(ids)] = torch.tensor(ids)
batch = collate(items)
assert torch.equal(features, batch.features) and torch.equal(frame_mask, batch.frame_mask)
assert torch.equal(captions, batch.captions)
assert all(map(torch.equal, (features, frame_mask), pad_frames([rows for _, rows, _ in items])))
print(f"features {(B, T, D)} (B, T, D), frame_mask {(B, T)} (B, T), captions {(B, K, L + 1)} (B, K, L + 1)")
real = frame_mask.sum(dim=1).tolist()
print(f"real frames {real}: {sum(real)} of {B * T} rows, so {B * T - sum(real)} are padding")

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(11, 2.8), layout="constrained")
left.pcolormesh(np.arange(T + 1) + 0.5, np.arange(B + 1) + 0.5, frame_mask, cmap="Greens", vmax=1.4, edgecolors="white")
left.set(xlabel="frame, 1 to T", title="frames that exist")
left.set_yticks(range(1, B + 1), batch.ids)
words = captions.flatten(0, 1) != PAD  # (B·K, L + 1)
right.pcolormesh(np.arange(L + 2) + 0.5, np.arange(B * K + 1) + 0.5, words, cmap="Blues", vmax=1.4, edgecolors="white")
right.set(xlabel="word, from <start> to <end>", ylabel="caption, 1 to B·K", title="words that exist", yticks=range(1, B * K + 1, K))
for axes in (left, right):
    axes.invert_yaxis()
plt.show()

# %% [markdown]
# Coloured cells are real, white ones are padding. Each clip brings K captions, and its frames only once: the expensive part,
# encoding the clip, is shared by all of them.
#
# A batch as training sees it, without any cut:

# %%
batch = collate([dataset[position] for position in range(min(4, len(dataset)))])
print("real frames per clip:", batch.frame_mask.sum(dim=1).tolist(), "of T =", batch.frame_mask.shape[1])
print(f"padding: {1 - batch.frame_mask.float().mean():.0%} of the frames, {(batch.captions == PAD).float().mean():.0%} of the words")

# %% [markdown]
# ## Inputs and targets: shifted by one
#
# - At each step the decoder reads one word, its *input*, and must say the next one, its *target*.
# - Without the shift it would be asked to repeat the word it has just been given, and it would learn to copy.
#
# **Predict** A caption is shorter than the longest one of its batch. What is the target of its `<end>`?

# %%
B, K, L = batch.targets.shape
inputs, targets = torch.empty(B, K, L, dtype=torch.int64), torch.empty(B, K, L, dtype=torch.int64)
for t in range(L):
    inputs[:, :, t] = batch.captions[:, :, t]  # reads word t …
    targets[:, :, t] = batch.captions[:, :, t + 1]  # … and must say word t + 1
assert torch.equal(inputs, batch.inputs) and torch.equal(targets, batch.targets)
print(f"inputs {tuple(inputs.shape)}, targets {tuple(targets.shape)} (B, K, L)")
b, k = divmod(int((batch.captions != PAD).sum(dim=2).argmin()), K)  # the batch's shortest caption
for read, say in zip(inputs[b, k].tolist(), targets[b, k].tolist(), strict=True):
    print(f"reads {vocabulary.words[read]:<12} must say {vocabulary.words[say]}")

# %% [markdown]
# Behind `<end>` there is only padding, if anything. Where the target is `<pad>` nothing is learned; notebook 3 shows how.
#
# ## Can a sentence win without looking?
#
# Before any model is trained, its scores need a floor: the one training caption that scores best when *every* clip gets it.
# And a line by which to judge what is good: one reference of each clip, scored against its other references.
# An *n-gram* is n words in a row. The three scores in one line each; notebook 4 computes BLEU by hand and explains CIDEr:
#
# - BLEU-4: which share of the caption's 1- to 4-grams occurs in some reference; captions that are too short lose.
# - ROUGE-L: the longest sequence of words that caption and reference share in the same order, as a share of their words.
# - CIDEr: n-grams in common, each weighted by how *rare* it is among the clips; it may exceed 1.
#
# The references are those of the validation clips, each clip without the one that was drawn; the test captions stay closed.
#
# **Predict** In which of the three scores does the sentence come closest to a reference, and in which is it furthest behind?

# %%
references = {i: list(data.captions[i]) for i in data.splits["val"] if len(data.captions[i]) > 1}
rng = np.random.default_rng(0)
one = {i: rows.pop(int(rng.integers(len(rows)))) for i, rows in references.items()}  # drawn, and taken out
sentence = constant_caption(training_captions(data))
print("the sentence:", sentence)
if references:
    scorer = References(references)
    floor, line = (scorer.score(c, ("Bleu", "ROUGE_L", "CIDEr")) for c in (dict.fromkeys(one, sentence), one))
    print(f"{len(references)} validation clips, scores × 100       BLEU-4  ROUGE-L  CIDEr")
    for name, scores in (("the sentence, for every clip", floor), ("one reference against others", line)):
        print(f"{name:<41}{100 * scores['Bleu_4']:>7.1f}{100 * scores['ROUGE_L']:>9.1f}{100 * scores['CIDEr']:>7.1f}")
    keys = {"BLEU-4": "Bleu_4", "ROUGE-L": "ROUGE_L", "CIDEr": "CIDEr"}
    shares = {name: floor[key] / line[key] for name, key in keys.items() if line[key] > 0.001}  # of 0 there is no share
    print("the sentence reaches", ", ".join(f"{share:.0%} of the line in {name}" for name, share in shares.items()))
    wins = [name for name, key in keys.items() if floor[key] > max(line[key], 0.001)]
    print("it wins in", ", ".join(wins) or "no score", "without looking at any clip")
    if len(references) == 1:
        print("CIDEr of a single clip is 0 by definition: no n-gram is rarer than another.")
else:
    print("The validation clips have one caption each: there is no reference to spare, and no line to judge by.")

# %% [markdown]
# BLEU-4 and ROUGE-L also pay for words that fit any clip; CIDEr gives little for what is said about every clip. A model is
# worth something by what it gets *above* the sentence, so notebook 4 prints such a floor and such a line again, for
# the test clips. And notebook 3 trains a control: a model that cannot see.
#
# ## Recap
#
# - The split is fixed before the words are read, and the counts see the training clips alone.
# - A vocabulary is a trade between words that can be learned and words that can be said.
# - Batches are padded to rectangles; masks mark what is real.
# - Targets are the inputs shifted by one.
# - A score means something only between a floor and a line by references.
#
# ## Exercises
#
# Each works in a new cell below this one; none changes a file.
#
# 1. Find the smallest `threshold` at which more than one validation word in ten is unknown. How many words are left, and
#    which are the most frequent ones among those that were lost?
# 2. Build a vocabulary from all captions, `build_vocabulary(corpus.captions, corpus.usable, min_count)`, and compute its
#    `oov_rate` on the test split. Did it fall? Why would it be cheating even if it did not?
# 3. Make a batch of `dataset[0]` and `dataset[1]` with `collate`, after cutting the first one's features to one frame. What
#    does `frame_mask` look like?
# 4. Score another sentence: `scorer.score(dict.fromkeys(one, "a"), ("Bleu", "ROUGE_L", "CIDEr"))`, then one of your own. Can
#    you beat the one that `constant_caption` found, in CIDEr?
#
# **Next:** [3 · Training](03_train.ipynb)
