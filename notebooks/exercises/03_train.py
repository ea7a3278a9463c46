# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Exercises 3 · Attention, and a model that uses it
#
# Five functions for what [notebook 3](../03_train.ipynb) is about. That notebook computes attention and a decoder step for one
# caption of one clip; here you write them for a whole batch, and then the training loop around them.
#
# | exercise | you write | time |
# |---|---|---|
# | 3.1 | `additive_attention(h, m, mask, W_h, W_m, b, v)` | about 25 minutes |
# | 3.2 | `decoder_step(decoder, words, h, c, memory)` | about 15 minutes |
# | 3.3 | `teacher_forced(model, batch)` | about 25 minutes |
# | 3.4 | `train(model, loader, optimizer, epochs, clip_norm)` | about 25 minutes |
# | 3.5 | `ablation(config)` and a paragraph | about 20 minutes |
#
# Letters: B clips, K captions of each, T frames, L words, C numbers per encoded frame, H of the decoder's state, A of attention, V
# words in the vocabulary.
#
# Replace `raise NotImplementedError` by your lines. Keep the functions' names and arguments, and use what a function is given,
# not other variables of the notebook: they are not there when it is marked. A wrong answer blocks nothing: after each exercise
# the notebook goes on with the package's own form. What is missing in `data/` is built first: features in about a minute, a
# trained model in about another.

# %%
import dataclasses

import torch
from torch.utils.data import DataLoader

from vcutils.course.artifacts import course_data, course_run
from vcutils.course.exercises import check, is_right
from vcutils.dataset import CaptionDataset, collate
from vcutils.model import AdditiveAttention, CaptionModel, caption_loss
from vcutils.scores.ablations import VARIANTS
from vcutils.scores.coco import References
from vcutils.train import Trainer
from vcutils.vocab import PAD

config, corpus, data = course_data()
run = course_run()
model, decoder = run.model.eval(), run.model.decoder
clips = CaptionDataset(data, "train", captions_per_clip=2, max_length=config.train.max_length)
batch = collate([clips[position] for position in range(3)])
with torch.no_grad():
    memory = run.model.encode(batch.features, batch.frame_mask)  # .values (B, T, C), .keys (B, T, A), .mask (B, T)
    h, c = decoder.start(memory, count=2)  # (B, K, H) each
print("frames", tuple(batch.features.shape), "memory", tuple(memory.values.shape), "states", tuple(h.shape))

# %% [markdown]
# ## Exercise 3.1 · Additive attention, for a whole batch
#
# Every state $h$ gives a score to every frame $m_j$ of its clip; softmax over the frames that exist makes weights $\alpha_j$; the
# context $z$ is the weighted sum:
#
# $$s_j = v^\top \tanh(W_h\, h + W_m\, m_j + b) \qquad \alpha = \text{softmax}(s) \qquad z = \sum_j \alpha_j\, m_j$$
#
# Write `additive_attention` for states `h` (B, K, H), frames `m` (B, T, C), `mask` (B, T), `W_h` (A, H), `W_m` (A, C), `b` (A),
# `v` (A). It returns the context (B, K, C) and the weights (B, K, T), without a Python loop. Weights on padding are exactly 0.
#
# - **Time** about 25 minutes
# - **Hint** `h @ W_h.T` is (B, K, A), `m @ W_m.T` is (B, T, A), and their sum for all pairs must be (B, K, T, A): put an axis of
#   size 1 into each. Which score becomes a weight of exactly 0?
# - **Expect** The weights of each caption sum to 1. Your result equals the package's to 1e-6.


# %%
def additive_attention(h, m, mask, W_h, W_m, b, v):
    """Context (B, K, C) and weights (B, K, T) of states h (B, K, H) over frames m (B, T, C) with mask (B, T)."""
    ### BEGIN SOLUTION
    queries = (h @ W_h.T)[:, :, None]  # (B, K, 1, A)
    keys = (m @ W_m.T + b)[:, None]  # (B, 1, T, A)
    scores = torch.tanh(queries + keys) @ v  # (B, K, T)
    alpha = scores.masked_fill(~mask[:, None], float("-inf")).softmax(dim=-1)
    return alpha @ m, alpha
    ### END SOLUTION


# %%
check("3.1", additive_attention)
### BEGIN HIDDEN TESTS
frames = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [9.0, 9.0]]])
one = torch.ones(1, 1)
context, weights = additive_attention(
    torch.zeros(1, 2, 1), frames, torch.tensor([[True, True, False]]), one, torch.zeros(1, 2), torch.zeros(1), torch.ones(1)
)
assert torch.allclose(torch.as_tensor(weights), torch.tensor([[[0.5, 0.5, 0.0]] * 2]), atol=1e-6), "equal scores, equal weights"
assert torch.allclose(torch.as_tensor(context), torch.full((1, 2, 2), 0.5), atol=1e-6), "the mean of two frames; padding is not in it"
huge = additive_attention(torch.zeros(1, 1, 1), frames, torch.ones(1, 3, dtype=torch.bool), one, torch.ones(1, 2), torch.zeros(1), 1e4 * torch.ones(1))
assert torch.isfinite(torch.as_tensor(huge[1])).all(), "large scores must not overflow"
### END HIDDEN TESTS

# %% [markdown]
# The package's form is `AdditiveAttention`, with the keys $W_m m_j + b$ computed once per clip. On three clips of the corpus:

# %%
attention: AdditiveAttention = decoder.attention
with torch.no_grad():
    context, weights = attention(h, memory)
print("context", tuple(context.shape), "weights", tuple(weights.shape))
print("first caption's weights:", *(f"{weight:.2f}" for weight in weights[0, 0]), "sum", round(weights[0, 0].sum().item(), 4))

# %% [markdown]
# ## Exercise 3.2 · One decoder step
#
# With the word's embedding $e$, the state $h, c$ and the context $z$, which attention finds with the state *before* the word:
#
# $$[i;\, f;\, g;\, o] = W_e\, e + W_s\, [z;\, h] + b \qquad c' = \sigma(f) \odot c + \sigma(i) \odot \tanh(g) \qquad h' = \sigma(o) \odot \tanh(c')$$
#
# Write `decoder_step` for words (B, K), states `h`, `c` (B, K, H) and the clips' `memory`. It returns the new h, the new c, the
# logits (B, K, V) and the attention weights (B, K, T). Use these parts of `decoder`:
#
# | part | what it does |
# |---|---|
# | `decoder.attention(h, memory)` | context (B, K, C) and weights (B, K, T) |
# | `decoder.embed(words)` | e, (B, K, E) |
# | `decoder.word_gates(e)` | $W_e\, e + b$, (B, K, 4H), in the order i, f, g, o |
# | `decoder.state_gates(zh)` | $W_s\, [z;\, h]$, (B, K, 4H); `zh` is the context and the state side by side |
# | `decoder.logits(h, z)` | logits (B, K, V) of the *new* state and the context |
#
# - **Time** about 15 minutes
# - **Hint** `chunk(4, dim=-1)` cuts the gates apart. Only the candidate g goes through tanh.
# - **Expect** Shapes (B, K, H), (B, K, H), (B, K, V), (B, K, T); values equal to the package's.


# %%
def decoder_step(decoder, words, h, c, memory):
    """New h and c (B, K, H), logits (B, K, V) and attention weights (B, K, T) after reading words (B, K)."""
    ### BEGIN SOLUTION
    z, alpha = decoder.attention(h, memory)
    gates = decoder.word_gates(decoder.embed(words)) + decoder.state_gates(torch.cat([z, h], dim=-1))
    i, f, g, o = gates.chunk(4, dim=-1)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    h = torch.sigmoid(o) * torch.tanh(c)
    return h, c, decoder.logits(h, z), alpha
    ### END SOLUTION


# %%
check("3.2", decoder_step)
### BEGIN HIDDEN TESTS
from vcutils.course.expect_model import DIM, WORDS, small_model

other = small_model(5).eval()
with torch.no_grad():
    mem = other.encode(torch.randn(2, 4, DIM), torch.tensor([[True] * 4, [True, False, False, False]]))
    state = other.decoder.start(mem, 3)
    for t in range(3):
        words = torch.randint(0, WORDS, (2, 3))
        *mine, logits, weights = decoder_step(other.decoder, words, *state, mem)
        state, right, _ = other.decoder.step(words, state, mem)
        assert torch.allclose(logits, right, atol=1e-4), f"logits of step {t + 1} of three in a row"
        assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(mine, state)), f"h and c of step {t + 1}"
        assert float(weights[1, 0, 1:].abs().sum()) == 0, "a clip of one frame: all attention lies on it"
### END HIDDEN TESTS

# %% [markdown]
# The package's form is `decoder.step`, and it returns `(h, c), logits, weights`. After one word of the trained model:

# %%
with torch.no_grad():
    (new_h, new_c), logits, weights = decoder.step(batch.inputs[:, :, 0], (h, c), memory)
likeliest = logits[0, 0].softmax(dim=-1).topk(3)
print("logits", tuple(logits.shape), "likeliest first words:", end=" ")
print(*(f"{data.vocabulary.words[i]} {p:.0%}" for p, i in zip(likeliest.values, likeliest.indices.tolist(), strict=True)), sep=", ")

# %% [markdown]
# ## Exercise 3.3 · Teacher forcing, and a loss that leaves padding out
#
# The decoder reads the true words of each caption one by one, and at each step says how probable each next word is. Write
# `teacher_forced(model, batch)`. It returns one number as a tensor with its gradient: the mean of $-\ln p$ of the true next word, over all *real* words
# of the batch.
#
# - `model.encode(batch.features, batch.frame_mask)` gives the memory, `model.decoder.start(memory, count=K)` the state `(h, c)`,
#   `model.decoder.step(words, state, memory)` the new state, the logits (B, K, V) and the weights.
# - `batch.captions` (B, K, L + 1) go from `<start>` to `<end>`, with `PAD` behind. `batch.inputs` and `batch.targets` are (B, K, L).
#
# - **Time** about 25 minutes
# - **Hint** Add up the nats and the number of real words, step by step, and divide once, at the end.
# - **Expect** The loss of the trained model on the three clips is 0.39; with padding counted it would be 0.79.


# %%
def teacher_forced(model, batch):
    """Mean of -ln p over the real words of a batch, in nats: a tensor of one number."""
    ### BEGIN SOLUTION
    memory = model.encode(batch.features, batch.frame_mask)
    state = model.decoder.start(memory, count=batch.inputs.shape[1])
    nats, real_words = 0.0, 0
    for t in range(batch.inputs.shape[2]):
        state, logits, _ = model.decoder.step(batch.inputs[:, :, t], state, memory)
        target = batch.targets[:, :, t]
        log_p = logits.log_softmax(dim=-1).gather(-1, target[:, :, None]).squeeze(-1)
        nats = nats - log_p[target != PAD].sum()
        real_words = real_words + (target != PAD).sum()
    return nats / real_words
    ### END SOLUTION


# %%
check("3.3", teacher_forced)
### BEGIN HIDDEN TESTS
from vcutils.course.expect_model import made_batch, small_model

for lengths, captions in (((4,), (1,)), ((2, 6), (1, 3))):
    other, made = small_model(3), made_batch(lengths, captions)
    right = caption_loss(other(made.features, made.frame_mask, made.inputs)[0], made.targets)
    loss = teacher_forced(other, made)
    assert torch.isclose(torch.as_tensor(loss), right, rtol=1e-4), f"a batch of {len(lengths)} clips"
assert loss.requires_grad, "training needs the loss' gradient"
### END HIDDEN TESTS

# %% [markdown]
# The package's form is `model(features, mask, inputs)` and `caption_loss(logits, targets)`:

# %%
with torch.no_grad():
    logits = model(batch.features, batch.frame_mask, batch.inputs)[0]
    nats = -logits.log_softmax(dim=-1).gather(-1, batch.targets[..., None])
print(f"loss {caption_loss(logits, batch.targets):.2f}; with padding counted it would be {nats.mean():.2f}")

# %% [markdown]
# ## Exercise 3.4 · A training loop
#
# Write `train(model, loader, optimizer, epochs, clip_norm)`. It passes `epochs` times over the batches of `loader`. For each batch
# it computes the loss of teacher forcing and its gradient, clips the gradient's norm to `clip_norm`, and takes one step. It returns
# a list with a number per epoch: the mean loss of its batches.
#
# The package's loss of exercise 3.3 is at hand: `caption_loss(model(batch.features, batch.frame_mask, batch.inputs)[0], batch.targets)`.
#
# - **Time** about 25 minutes
# - **Hint** The order in a step: gradient to zero, loss, backward, clip, step. And the model must know that it is training.
# - **Expect** On the sample, a validation loss between 0.63, where the package's training ends after 18 epochs, and 1.16, where the
#   *blind* control of notebook 3 ends (it sees other clips' features). The package was at 0.96 after 8 epochs.


# %%
def train(model, loader, optimizer, epochs, clip_norm):
    """Train a model for some passes over a loader's batches; the mean loss of each pass."""
    ### BEGIN SOLUTION
    model.train()
    history = []
    for _ in range(epochs):
        losses = []
        for batch in loader:
            optimizer.zero_grad()
            logits, _ = model(batch.features, batch.frame_mask, batch.inputs)
            loss = caption_loss(logits, batch.targets)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), clip_norm)
            optimizer.step()
            losses.append(loss.item())
        history.append(sum(losses) / len(losses))
    return history
    ### END SOLUTION


# %%
check("3.4", train)
### BEGIN HIDDEN TESTS
from vcutils.course.expect_model import made_batch, small_model

other, made = small_model(2, 1.0), [made_batch()]
losses = train(other, made, torch.optim.Adam(other.parameters(), lr=0.02), 30, 1.0)
assert len(losses) == 30 and losses[-1] < 0.5 * losses[0], "thirty epochs on one batch must at least halve its loss"
### END HIDDEN TESTS

# %% [markdown]
# Once your loop is right, the next cells train a fresh model with it, for 8 epochs: under a minute on the sample. The package's
# form is `Trainer`; the run that you have opened was trained with it.


# %%
class Loader:
    """Batches of the training clips; each pass draws other captions of each clip."""

    def __init__(self):
        self.clips = CaptionDataset(data, "train", config.train.captions_per_clip, config.train.max_length)
        self.batches = DataLoader(self.clips, config.train.batch_size, shuffle=True, collate_fn=collate)

    def __iter__(self):
        self.clips.epoch += 1
        return iter(self.batches)


@torch.no_grad()
def validation_loss(model):
    """Loss per real word on the validation clips, all captions of each."""
    total, words = 0.0, 0
    for batch in DataLoader(CaptionDataset(data, "val", None, config.train.max_length), 8, collate_fn=collate):
        count = int((batch.targets != PAD).sum())
        total += count * float(caption_loss(model.eval()(*batch[1:3], batch.inputs)[0], batch.targets))
        words += count
    return total / words


# %%
if is_right("3.4"):
    torch.manual_seed(0)
    fresh = CaptionModel(config.model, len(data.vocabulary), data.store.dim)
    losses = train(fresh, Loader(), torch.optim.Adam(fresh.parameters(), lr=config.train.lr), 8, config.train.clip_norm)
    print(f"your loop: loss {losses[0]:.2f} → {losses[-1]:.2f}, validation loss {validation_loss(fresh):.2f} after 8 epochs")
print(f"the package's run: validation loss {validation_loss(model):.2f} after {config.train.epochs} epochs, the best of them kept")

# %% [markdown]
# ## Exercise 3.5 · What is a part worth?
#
# An *ablation* takes one part of the model away and trains again. Write `ablation(config)`. It returns the same settings with one
# part taken away; all else stays, so that the difference in the score can only come from this part. Choose one:
#
# | setting in `config.model` | without it |
# |---|---|
# | `attention` | `"uniform"`: all frames weigh the same |
# | `encoder` | `"none"`: no BiLSTM, frames are encoded one by one |
# | `frame_order` | `"shuffled"`: the order of the frames is lost |
# | `max_frames` | a number, such as 4: fewer frames |
#
# *Before* you train: write down in the paragraph below which row of the table of results you expect, and why.
#
# - **Time** about 20 minutes, with a training of a minute in it
# - **Hint** Settings are frozen: `dataclasses.replace` makes a changed copy, first of `config.model`, then of `config`.
# - **Expect** Validation CIDEr × 100 on the sample, two seeds: full model 286, uniform attention 48, no BiLSTM 81, frames shuffled
#   77, 4 frames 125. Yours is one seed: it may be twenty points off.


# %%
def ablation(config):
    """The settings with one part of the model taken away."""
    ### BEGIN SOLUTION
    return dataclasses.replace(config, model=dataclasses.replace(config.model, encoder="none"))
    ### END SOLUTION


# %%
check("3.5", ablation)
### BEGIN HIDDEN TESTS
from vcutils.config import Config, TrainConfig

tried = ablation(Config(train=TrainConfig(seed=7), clips=8))
assert (tried.train.seed, tried.clips) == (7, 8), "the settings that are given must be kept"
### END HIDDEN TESTS

# %% [markdown]
# The package's ablations are the rows of `VARIANTS`. Your run gets a folder of its own, so that nothing else is changed; where 3.5 is
# not right yet, the package's first variant is trained in its place.

# %%
changed = ablation(config) if is_right("3.5") else dataclasses.replace(config, model=dataclasses.replace(config.model, **list(VARIANTS.values())[1]))
folder = config.artifacts / "runs" / "exercise-3.5"
experiment = Trainer(folder, changed, data, References, resume="auto")
history = experiment.fit()
differing = {k: v for k, v in vars(changed.model).items() if v != vars(config.model)[k]}
log = (run.folder / "log.csv").read_text("utf-8").splitlines()
package = max(float(dict(zip(log[0].split(","), line.split(","), strict=True))["val_CIDEr"]) for line in log[1:])
print(f"{differing}: best validation CIDEr {100 * experiment.record.best_row['val_CIDEr']:.1f}, the full model {100 * package:.1f}")

# %% [markdown]
# **Your paragraph** Which row did you expect, which one came out, and what does the part that is missing do for which words?
#
# <!-- ### BEGIN SOLUTION -->
# Without the BiLSTM each frame is encoded alone. A thing can be seen in one frame, so things are still named. A change such as
# *grows* or *fades* lies between frames, and nobody compares them any more: the words for changes suffer, and CIDEr falls by more
# than half. (With uniform attention the decoder gets the mean of all frames for each word: it knows what occurs in the clip, not
# in which order, so even more is lost. One seed may be off by twenty points, but not by two hundred.)
# <!-- ### END SOLUTION -->
#
# **Next** [Exercises 4](04_evaluate.ipynb)
