# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 3 · Attention, and a model that uses it
#
# **Goal** Build the captioning model in plain code, train it, and test whether it looks at the clip.
#
# | reads | writes | CPU, sample corpus | GPU, full MSVD |
# |---|---|---|---|
# | features, `splits.json`, `vocab.json` | `runs/default/`, `runs/control/`, `runs/original/` | about 2 minutes | under an hour (not measured) |
#
# **You will**
# - compute attention, one decoder step and the loss in plain code, and check that the package computes the same;
# - know what the loss must be before training, then make it fall with a training loop of your own;
# - compare three runs: the package's recipe, a control that cannot see, and the recipe of an older notebook.

# %%
# %matplotlib inline
import dataclasses
import math
from itertools import islice

import matplotlib.pyplot as plt
import torch
from IPython.display import Markdown, display
from matplotlib.ticker import MaxNLocator
from torch.utils.data import DataLoader

from vcutils.config import ORIGINAL_TRAINING, Config
from vcutils.corpora import load_corpus
from vcutils.course.pictures import attention_picture, model_picture
from vcutils.dataset import CaptionDataset, collate, load_data
from vcutils.model import CaptionModel, caption_loss
from vcutils.scores.coco import References
from vcutils.train import Trainer
from vcutils.vocab import PAD

config = Config.from_env()
data = load_data(load_corpus(config), config.artifacts, config.extract)
config = data.suited(config)  # learning rate, dropout, batch size and epochs by the corpus' size
words, D, V = data.vocabulary.words, data.store.dim, len(data.vocabulary)
for name, ids in data.splits.items():
    print(f"{name:>5}: {len(ids)} clips, {sum(len(data.captions[i]) for i in ids)} captions")
print(f"D = {D} numbers per frame, V = {V} words")

# %% [markdown]
# ## What attention computes
#
# - A clip has many frames, and the next word is about some of them. *Attention* gives each frame a *weight*.
# - The *decoder* is the part of the model that writes. Its *state* is a vector that sums up what it has written.
#   Attention uses it as the *query*: which frames do I need now?
# - Each frame has a *key*: what does it show? A *score* says how well key and query fit. Here it is their dot
#   product.
#
# *Softmax* makes the scores $s_1, \dots, s_T$ of T frames into weights $\alpha_j$ that are positive and sum to 1. The
# *context* $z$ is the weighted sum of the frames $m_j$, and the decoder gets it in place of the whole clip:
#
# $$\alpha_j = \frac{\exp(s_j)}{\sum_{k=1}^{T} \exp(s_k)} \qquad z = \sum_{j=1}^{T} \alpha_j\, m_j$$
#
# Here are three frames of two numbers each (how much cat, how much rocket), and one query.
#
# **Predict** The rocket does not fit the query at all: its score is 0. Will its weight be 0 too?

# %%
frames = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.9, 0.1]])  # a cat, a rocket, the cat again
query = torch.tensor([2.0, 0.0])  # "I am about to say which animal it was"
scores = frames @ query  # (T,)
weights = scores.exp() / scores.exp().sum()  # softmax
context = weights @ frames
print("scores ", [round(x, 2) for x in scores.tolist()])
print("weights", [round(x, 2) for x in weights.tolist()])
print("context", [round(x, 2) for x in context.tolist()])
assert torch.allclose(weights, scores.softmax(dim=0))

# %%
attention_picture(["cat", "rocket", "cat again"], scores, weights, query="which animal was it?")

# %% [markdown]
# No, it is 0.07: since $\exp(0) = 1$, every frame gets a share. Only a score of $-\infty$ gives a weight of exactly
# 0. This is how padding is kept out below. The context is mostly cat.
#
# ## The model in one picture
#
# - The *encoder* reads a clip once and keeps its encoded frames, the *memory*. The decoder then writes one word after
#   the other, and each time it attends to the memory.
# - Ten letters name the sizes, here and in all of the package. The picture's last lines say what each letter means;
#   its parts are explained one by one below it.
#
# To follow every number, we take three clips with two captions each: a short clip, a middle one and a long one. The
# model is in `eval` mode, without *dropout*: that sets random numbers inside the model to 0 while it trains, so that
# it cannot rely on any single one.

# %%
dataset = CaptionDataset(data, "train", captions_per_clip=2, max_length=config.train.max_length)
items = sorted((dataset[i] for i in range(min(100, len(dataset)))), key=lambda item: len(item[1]))
short, middle, long = items[0], items[len(items) // 2], items[-1]
if 1 < len(long[1]) == len(short[1]):
    print("These clips have equally many frames: the first is cut to half, so that there is padding.")
    short = (short[0], short[1][: (len(short[1]) + 1) // 2], short[2])
example = collate([short, middle, long])
(B, K, L), T = example.inputs.shape, example.features.shape[1]
print("frames per clip:", example.frame_mask.sum(dim=1).tolist(), "padded to T =", T)
print("words to say per caption, with <end>:", (example.targets != PAD).sum(dim=2).tolist(), "padded to L =", L)

# %%
settings = dataclasses.replace(config.model, attention="additive")  # what we rebuild by hand, whatever is configured
torch.manual_seed(config.train.seed)
model = CaptionModel(settings, V, D).eval()  # eval: without dropout, so that numbers can be compared
E, H, A, C = settings.embed_dim, settings.decoder_dim, settings.attention_dim, 2 * settings.encoder_dim
print(f"{sum(p.numel() for p in model.parameters()):,} parameters, all random: nothing is trained yet")
model_picture(B=B, K=K, T=T, L=L, D=D, E=E, H=H, A=A, C=C, V=V)

# %% [markdown]
# | part | in → out | why |
# |---|---|---|
# | projection | (B, T, D) → (B, T, C) | Maps the D image features of a frame to the C numbers that the decoder uses |
# | BiLSTM | (B, T, C) → (B, T, C) | An LSTM (equations below) reads the frames forwards, another backwards: a change is visible only between frames |
# | attention | h, (B, T, C) → (B, K, C) | Which frames matter for the next word |
# | LSTM cell | word, context → h, c | What has been written so far |
# | logits | h, context → (B, K, V) | A score for each word of the vocabulary: which one comes next? |
#
# ## Attention with learned weights
#
# - The dot product needs a query and a key of the same size. Our state $h$ has H numbers, an encoded frame $m_j$ has
#   C.
# - *Additive* attention (Bahdanau et al. 2015) maps both to A numbers, adds them, and makes one score of the sum.
#   $W_h$, $W_m$, $b$ and $v$ are learned:
#
# $$s_j = v^\top \tanh(W_h\, h + W_m\, m_j + b)$$
#
# For one caption of one clip, in plain code:

# %%
def attend(h, m, real):
    """Context (C,) and weights (T,) of a state h (H,) over the frames m (T, C), of which `real` (T,) exist."""
    layers = model.decoder.attention
    hidden = torch.tanh(layers.query.weight @ h + m @ layers.keys.weight.T + layers.keys.bias)  # (T, A)
    scores = hidden @ layers.score.weight[0]  # (T,)
    scores = scores.masked_fill(~real, -math.inf)  # padding
    weights = scores.exp() / scores.exp().sum()  # softmax
    return weights @ m, weights


# %%
with torch.no_grad():
    memory = model.encode(example.features, example.frame_mask)  # .values (B, T, C), .keys (B, T, A), .mask (B, T)
    h, c = model.decoder.start(memory, count=K)  # the states before the first word, (B, K, H) each
    context, weights = attend(h[0, 0], memory.values[0], memory.mask[0])
    all_contexts, all_weights = model.decoder.attention(h, memory)  # (B, K, C), (B, K, T)
print("by hand   ", *(f"{weight:.3f}" for weight in weights))
print("by vcutils", *(f"{weight:.3f}" for weight in all_weights[0, 0]))
assert torch.allclose(weights, all_weights[0, 0], atol=1e-5) and torch.allclose(context, all_contexts[0, 0], atol=1e-4)
assert (all_weights.transpose(1, 2)[~memory.mask] == 0).all(), "padding gets exactly 0"

# %% [markdown]
# The same numbers, and exactly 0 on padding. The package's form does this for B clips and K captions at once. It
# computes the keys $W_m\, m_j + b$ once per clip, and not again for each word.
#
# ## One decoder step
#
# - The decoder is an LSTM cell, by Hochreiter & Schmidhuber (1997) with the forget gate of Gers et al. (2000). At
#   word $t$ it has two vectors: the *cell state* $c_t$ is its memory, the *hidden state* $h_t$ is what attention and
#   output see of it.
# - Four vectors steer it: the *input gate* $i$ (how much to write), the *forget gate* $f$ (how much to keep), the
#   *candidate* $g$ (what to write) and the *output gate* $o$ (how much to show).
# - It reads the *embedding* $e_t$ of word $t$, a learned vector for each word, and the context $z_t$. It gives the
#   *logits*: a score for each word of the vocabulary to be the next one. Softmax makes them probabilities.
#
# The query is the previous state, $h_{t-1}$. $W$ and $b$ are learned:
#
# $$[i;\, f;\, g;\, o] = W_e\, e_t + W_s\, [z_t;\, h_{t-1}] + b$$
#
# $$c_t = \sigma(f) \odot c_{t-1} + \sigma(i) \odot \tanh(g)$$
#
# $$h_t = \sigma(o) \odot \tanh(c_t)$$
#
# $$\text{logits}_t = W_o \tanh(W_r\, [h_t;\, z_t] + b_r) + b_o$$
#
# $[z;\, h]$ joins two vectors, $\sigma(x) = 1 / (1 + e^{-x})$ is the sigmoid, and $\odot$ multiplies number by
# number.

# %%
def step(word, h, c, m, real):
    """One word of one caption: reads a word's number and the state h, c (H,). New h, c; logits (V,); weights (T,)."""
    decoder = model.decoder
    z, weights = attend(h, m, real)  # the query is the state before this word
    e = decoder.embed.weight[word]  # (E,)
    gates = decoder.word_gates(e) + decoder.state_gates(torch.cat([z, h]))  # (4H,)
    i, f, g, o = gates.chunk(4)  # (H,) each
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    h = o.sigmoid() * c.tanh()
    hidden = torch.tanh(decoder.readout(torch.cat([h, z])))  # (E,)
    return h, c, decoder.output(hidden), weights


# %%
with torch.no_grad():
    by_hand = step(int(example.inputs[0, 0, 0]), h[0, 0], c[0, 0], memory.values[0], memory.mask[0])  # reads <start>
    (new_h, new_c), logits, weights = model.decoder.step(example.inputs[:, :, 0], (h, c), memory)
names, by_vcutils = ("h", "c", "logits", "weights"), (new_h, new_c, logits, weights)
for name, vector, tensor in zip(names, by_hand, by_vcutils, strict=True):
    assert torch.allclose(vector, tensor[0, 0], atol=1e-4), name
    print(f"{name:>7} {tuple(vector.shape)!s:>7} by hand = [0, 0] of {tuple(tensor.shape)} by vcutils")

# %% [markdown]
# `Decoder.step` is this function for all B · K captions at once. Nothing else happens inside the model when it writes
# a word.
#
# ## Teacher forcing, and the loss before training
#
# - *Teacher forcing*: in training the decoder reads the *true* previous word, whatever it would have written itself.
#   So each word of a training caption is one question: given the clip and all words before it, which word comes next?
# - The *cross-entropy* of a word is $-\ln p$, where $p$ is the probability that the model gives to the true next
#   word. It is 0 for $p = 1$. Its unit is the *nat*, as the logarithm is the natural one.
# - The *loss* is the mean over all real words of a batch.
#
# **Predict** The model is not trained. What probability will it give to the true next word, and what will the loss
# be? You need only V, the number of words that was printed above.

# %%
with torch.no_grad():
    logits, weights = model(example.features, example.frame_mask, example.inputs)  # (B, K, L, V), (B, K, L, T)
print(f"1 / V = {1 / V:.4f}")
probabilities = logits[0, 0].softmax(dim=-1)  # (L, V) for the first caption of the first clip
for read, target, p in zip(example.inputs[0, 0], example.targets[0, 0], probabilities, strict=True):
    if target != PAD:
        print(f"reads {words[read]:<12} must say {words[target]:<12} p = {p[target]:.4f}, -ln p = {-p[target].log():.2f} nats")

# %% [markdown]
# Here is the loop over the words by hand. It returns the sum of the cross-entropies and the number of words, so that
# several batches can be added up:

# %%
def teacher_forced(model, batch, count_padding=False):
    """The cross-entropies of a batch's words, summed up (nats), and the number of these words."""
    device = next(model.parameters()).device
    features, frame_mask, captions = (tensor.to(device) for tensor in batch[1:4])  # captions (B, K, L+1)
    memory = model.encode(features, frame_mask)
    state = model.decoder.start(memory, count=captions.shape[1])  # h and c, (B, K, H) each
    nats, count = 0.0, 0
    for t in range(captions.shape[2] - 1):
        state, logits, _ = model.decoder.step(captions[:, :, t], state, memory)  # reads the true word t
        target = captions[:, :, t + 1]  # (B, K): must say the word t + 1
        log_p = logits.log_softmax(dim=-1)  # (B, K, V)
        word_nats = -log_p.gather(-1, target[:, :, None]).squeeze(-1)  # (B, K)
        real = (target != PAD) | count_padding  # count_padding is a mistake: we will look at what it does
        nats = nats + (word_nats * real).sum()
        count = count + real.sum()
    return nats, count


# %%
with torch.no_grad():
    nats, count = teacher_forced(model, example)
loss = caption_loss(logits, example.targets)  # of the package's `model(...)` above
print(f"{nats:.2f} nats / {count} words = {nats / count:.3f} by hand, {loss:.3f} by vcutils; ln V = {math.log(V):.3f}")
assert torch.isclose(nats / count, loss, rtol=1e-4)
assert abs(loss - math.log(V)) < 1, "an untrained model finds all words about equally likely"

# %% [markdown]
# With V equally likely words $p$ is about 1 / V, so the loss is about $-\ln(1/V) = \ln V$. Check this number before
# each training: a loss that starts elsewhere points to a mistake.
#
# ## A training loop
#
# - A *step*: compute the loss of a batch and its *gradient*, then let Adam move all weights a little against it.
# - An *epoch* shows every training clip once, with `captions_per_clip` of its captions (K), drawn anew each time.
# - The gradient of an LSTM can become huge. If its norm is above `clip_norm`, it is scaled down to it.
#
# The *validation loss* is the same loss, on clips that the model does not learn from. We train for two epochs of at
# most `40` steps: a few seconds on the sample, enough to see the loss fall.

# %%
def mean_loss(model, loader, most=None):
    """Teacher-forced loss in nats per word, over all batches or the first `most`."""
    model.eval()
    with torch.no_grad():
        sums = [teacher_forced(model, batch) for batch in islice(loader, most)]
    return float(sum(nats for nats, _ in sums) / sum(count for _, count in sums))


# %%
recipe = config.train
train_clips = CaptionDataset(data, "train", recipe.captions_per_clip, recipe.max_length)
val_clips = CaptionDataset(data, "val", None, recipe.max_length)  # None: all captions of each clip
train_loader = DataLoader(train_clips, recipe.batch_size, shuffle=True, collate_fn=collate)
val_loader = DataLoader(val_clips, recipe.batch_size, collate_fn=collate)

torch.manual_seed(recipe.seed)
student = CaptionModel(settings, V, D).to("cuda" if torch.cuda.is_available() else "cpu")
optimizer = torch.optim.Adam(student.parameters(), lr=recipe.lr)
print(f"before training: validation loss {mean_loss(student, val_loader, most=40):.3f}")
for epoch in range(1, 3):
    train_clips.epoch = epoch  # other captions of each clip
    student.train()  # dropout on
    all_nats, all_words = 0.0, 0
    for batch in islice(train_loader, 40):
        nats, count = teacher_forced(student, batch)
        optimizer.zero_grad()
        (nats / count).backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), recipe.clip_norm)
        optimizer.step()
        all_nats, all_words = all_nats + nats.item(), all_words + count.item()
    val_loss = mean_loss(student, val_loader, most=40)
    print(f"epoch {epoch}: {all_words:,} words, loss in training {all_nats / all_words:.3f}, validation {val_loss:.3f}")
assert mean_loss(student, [example]) < mean_loss(model, [example]), "the loop must have learned something"

# %% [markdown]
# The loss falls from about ln V. This is all that training is: the package's trainer below does the same, with more
# care.
#
# ## Padding must not count
#
# - A batch is a rectangle, its captions are not. The loop above leaves out each target that is padding:
#   `target != PAD`.
# - Forgetting this is a common mistake, and nothing crashes. So we make it on purpose: `count_padding=True`.
#
# **Predict** Padding counts now. Does the loss of the untrained model change much? And the loss of the model that we
# have just trained, which was never asked to say `<pad>`?

# %%
padding = example.targets == PAD  # (B, K, L)
print(f"{int(padding.sum())} of the example's {padding.numel()} targets are padding")
student = student.cpu().eval()
with torch.no_grad():
    for name, network in (("untrained", model), ("trained", student)):
        nats, count = teacher_forced(network, example)
        wrong_nats, wrong_count = teacher_forced(network, example, count_padding=True)
        package = caption_loss(network(example.features, example.frame_mask, example.inputs)[0], example.targets)
        assert torch.isclose(nats / count, package, rtol=1e-4)
        print(f"{name:>9}: loss {nats / count:.3f}; wrong, with padding counted: {wrong_nats / wrong_count:.3f}")

# %% [markdown]
# - Untrained, both numbers are close to ln V: the check before training cannot find this mistake.
# - Trained, they are two different numbers as soon as there is padding. This model was never asked for `<pad>` and
#   finds it unlikely, so the wrong loss is too high. A model that is *trained* with the mistake learns to say `<pad>`
#   after `<end>`, which is easy, and then the wrong loss is too low.
#
# What stands in the padding must not matter either. We fill it with rubbish, in frames and in words, and the loss
# must not move. The last line shows that this check can fail: there the frames' mask is left out.

# %%
noisy_features = example.features.masked_fill(~example.frame_mask[:, :, None], 99.0)
noisy_inputs = torch.where(padding, torch.randint(4, V, example.inputs.shape), example.inputs)  # random words from 4 on
no_mask = torch.ones_like(example.frame_mask)
print(f"filled: {int((~example.frame_mask).sum())} frames and {int(padding.sum())} words")
losses = {}
for name, features, frame_mask, inputs in (
    ("padding as it was", example.features, example.frame_mask, example.inputs),
    ("99 in the frames' padding", noisy_features, example.frame_mask, example.inputs),
    ("random words in the captions' padding", example.features, example.frame_mask, noisy_inputs),
    ("99 in the frames' padding, no mask", noisy_features, no_mask, example.inputs),
):
    with torch.no_grad():
        losses[name] = caption_loss(student(features, frame_mask, inputs)[0], example.targets).item()
    print(f"{name:<38} loss {losses[name]:.4f}")
right, noisy_frames, noisy_words, unmasked = losses.values()
assert math.isclose(right, noisy_frames, rel_tol=1e-5) and math.isclose(right, noisy_words, rel_tol=1e-5)
assert example.frame_mask.all() or right != unmasked, "without a mask, rubbish must change the loss"

# %% [markdown]
# ## The package's trainer
#
# It runs the loop above, and adds what the settings ask for:
#
# | what | why |
# |---|---|
# | a schedule | The learning rate rises for `warmup_epochs`, then falls to 0 along a cosine: large steps first, small ones at the end |
# | label smoothing | A small part of the target's probability is spread over all words, so that the model does not become too sure of one |
# | frame dropout | A share of each clip's frames is left out at random, anew each epoch |
# | the best checkpoint | After each epoch the model captions the validation clips *without* teacher forcing; the CIDEr of these captions decides |
# | resuming | A run that was stopped goes on from `last/` when you run the cell again; one that is done is kept |
# | speed | The same loss and gradients in a faster form, on one or many CPUs and GPUs; tests hold both forms equal |
#
# *CIDEr* scores a caption by the words and phrases of up to four words that it shares with the clip's own captions,
# its *references*. Phrases that are rare among the clips count more. 0 means nothing in common; we show it × 100, and
# it can exceed 100. Notebook 4 explains it.

# %%
run = config.artifacts / "runs" / "default"
trainer = Trainer(run, config, data, References, resume="auto")
history = trainer.fit()  # a row per epoch
if not history:
    print("`max_minutes` ended within the first epoch: run the cell again to go on")
for row in history[-1:]:
    seconds = sum(row["seconds"] for row in history)
    print(f"{len(history)} epochs in {seconds:.0f} s of training, {row['words_per_second']:,} words per second")
    print(f"training loss {history[0]['train_loss']:.2f} in the first epoch, {row['train_loss']:.2f} in the last")
if best := trainer.record.best_row:
    print(f"best epoch: {best['epoch']}, with a validation CIDEr of {100 * best['val_CIDEr']:.1f}")

# %% [markdown]
# The log's validation loss is the loss of our own loop. We compute it again for the model of the last epoch:

# %%
if history and trainer.record.finished:
    by_hand = mean_loss(trainer.model, val_loader)
    logged = history[-1]["val_loss"]
    print(f"validation loss after epoch {history[-1]['epoch']}: {logged:.3f} in log.csv, {by_hand:.3f} by hand")
    assert math.isclose(by_hand, logged, rel_tol=1e-3)
else:
    print("The run is not finished, so its model is between two epochs: nothing to compare.")

# %% [markdown]
# ## A control that cannot see
#
# - A model can write fluent sentences without looking, and some of them fit many clips. What is looking worth?
# - The *control* is the same model with the same recipe and the same captions. But each clip has the features of
#   *another* clip of its split, always the same one.
#
# **Predict** What the control sees says nothing about its captions. Will its training loss fall? Will its validation
# CIDEr be 0?

# %%
blind = dataclasses.replace(config, train=dataclasses.replace(recipe, shuffle_features=True))
control = Trainer(run.with_name("control"), blind, data, References, resume="auto")
control_history = control.fit()
for name, rows in (("own features", history), ("control", control_history)):
    for row in (rows[0], rows[-1]) if rows else ():
        losses = f"training loss {row['train_loss']:.2f}, validation loss {row['val_loss']:.2f}"
        print(f"{name:>12}, epoch {row['epoch']:>2}: {losses}, validation CIDEr {100 * row['val_CIDEr']:5.1f}")
if history and control_history:
    scores = [100 * max(row["val_CIDEr"] for row in rows) for rows in (history, control_history)]
    print(f"gap between the best epochs: {scores[0]:.1f} - {scores[1]:.1f} = {scores[0] - scores[1]:.1f} CIDEr")

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(11, 3.4), layout="constrained")
for name, rows, colour in (("own features", history, "tab:blue"), ("control", control_history, "tab:grey")):
    epochs = [row["epoch"] for row in rows]
    left.plot(epochs, [row["train_loss"] for row in rows], color=colour, label=f"{name}, training")
    left.plot(epochs, [row["val_loss"] for row in rows], "--", color=colour, label=f"{name}, validation")
    right.plot(epochs, [100 * row["val_CIDEr"] for row in rows], color=colour, label=name)
left.set(xlabel="epoch", ylabel="loss (nats per word)", title="teacher-forced loss")
right.set(xlabel="epoch", ylabel="CIDEr × 100", title="CIDEr of generated captions (validation)")
for axes in (left, right):
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend()
plt.show()

# %% [markdown]
# - The control's training loss falls, too. It learns which words follow each other and which sentences are common. In
#   time it can also learn by heart which features come with which captions, and that is of no use for new clips.
# - Its CIDEr need not be 0: a common sentence fits some clips by luck. This is the score of good guessing.
# - The gap between the two lines of the right plot is what seeing the correct clip is worth here. No gap would mean
#   that the model does not use its features.
# - What the gap is *not*: it is not the worth of attention, since a model that weighs all frames equally also sees
#   the clip (exercise 1). It does not say how good the captions are. It comes from one run of each kind: another seed
#   (another random start) gives another gap. Where the validation split has few clips, luck can be larger than the
#   gap, or even make it negative.
#
# The training loss can lie above the validation loss: it is measured with dropout, and with left-out frames and
# smoothed labels where the recipe has them.
#
# ## What a recipe is worth
#
# - A *recipe* is all the settings of training. Here is the same model once more, with the recipe of the notebook that
#   this course grew out of (preset `train=original`). It was made for the full MSVD corpus.
# - To be fair, it has no more epochs than ours, the same seed, and its validation captions are found in the same way.
#
# These settings differ:

# %%
# The same for both: random start, search for the validation captions (notebook 4), limits of this machine.
same = {name: vars(recipe)[name] for name in ("seed", "val_beam_size", "max_minutes", "find_batch_size")}
older = dataclasses.replace(ORIGINAL_TRAINING, epochs=min(ORIGINAL_TRAINING.epochs, recipe.epochs), **same)
differing = [name for name, value in vars(recipe).items() if value != vars(older)[name]]
table = ["| setting | our recipe | the original's |", "|---|---|---|"]
table += [f"| `{name}` | {vars(recipe)[name]} | {vars(older)[name]} |" for name in differing]
display(Markdown("\n".join(table)))
print(f"{len(differing)} settings differ")

# %% [markdown]
# **Predict** Each step of the optimizer sees `batch_size` · `accumulation` clips with `captions_per_clip` captions
# each, and an epoch shows each clip once. Which recipe takes more steps, and from how many captions does it learn in
# all?

# %%
original = Trainer(run.with_name("original"), dataclasses.replace(config, train=older), data, References, resume="auto")
original.fit()
runs = {"our recipe": trainer, "the original's": original, "control (our recipe)": control}
columns = ("run", "steps", "captions seen", "best epoch", "its val. loss", "its CIDEr", "last epoch", "its val. loss", "its CIDEr")
table = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
for name, trained in runs.items():
    rows = [trained.record.best_row, trained.history[-1]] if trained.history else []
    captions = len(trained.history) * len(train_clips) * trained.settings.captions_per_clip
    cells = [name, f"{trained.progress.step:,}", f"{captions:,}"]
    for row in rows:
        cells += [f"{row['epoch']}", f"{row['val_loss']:.2f}", f"{100 * row['val_CIDEr']:.1f}"]
    table.append("| " + " | ".join([*cells, *["–"] * (len(columns) - len(cells))]) + " |")  # –: no epoch is done
display(Markdown("\n".join(table)))

# %% [markdown]
# Steps and captions answer the question. A recipe that takes few steps on few captions has hardly begun to learn when
# it ends. All the settings listed above change at once, so the table tells nothing about any single one of them. To
# learn what one setting is worth, change it alone (exercise 4).
#
# ## Loss and CIDEr answer two questions
#
# - The validation loss asks: how probable is each word of a *reference*, when the true words before it are given?
# - CIDEr asks: how good are the captions that the model writes on its own?
# - So the epoch with the lowest loss need not be the one with the best CIDEr. Are they the same here?

# %%
for name, trained in runs.items():
    if trained.history:
        print(f"{name}, {len(trained.history)} epochs")
        lowest = min(trained.history, key=lambda row: row["val_loss"])
        for title, row in (("lowest validation loss", lowest), ("best CIDEr", trained.record.best_row)):
            scores = f"validation loss {row['val_loss']:.3f}, CIDEr {100 * row['val_CIDEr']:5.1f}"
            print(f"{title:>25}: epoch {row['epoch']:>2}, {scores}")

# %% [markdown]
# Where a run's two lines name the same epoch, both criteria pick the same model. Where they do not, the loss would
# have picked a model that writes worse captions on the validation clips, or as good ones. What we want are good
# captions, so CIDEr picks `best/`. Where the best epoch is not the last, the epochs after it did not help on the
# validation clips: that is why the best checkpoint is kept, and not the last.
#
# `best/` holds that checkpoint: the next notebooks use it. `log.csv` holds the numbers of each epoch, `last/` what a
# stopped run resumes from.

# %%
for path in sorted(run.rglob("*")):
    if path.is_file():
        print(f"{path.relative_to(run).as_posix():<28}{path.stat().st_size / 1e6:8.2f} MB")

# %% [markdown]
# ## Recap
#
# - Attention is a weighted mean of the frames. The weights come from comparing the decoder's state with each frame.
# - A decoder step: attend, update $c$ and $h$ through the gates, score the next word. Teacher forcing gives it the
#   true previous word.
# - The loss is the mean of $-\ln p$ over real words. It starts at ln V, and padding takes no part.
# - Pick the checkpoint by captions that the model writes alone, and always train a control that cannot see.
#
# ## Exercises
#
# Leave `runs/default` as it is: notebooks 4 and 5 read it. Give each experiment settings and a run of its own:
#
# ```python
# from vcutils.corpora import open_run
#
# changed = dataclasses.replace(config, model=dataclasses.replace(config.model, attention="uniform"))
# experiment = Trainer(run.with_name("uniform"), changed, data, References, resume="auto")
# experiment.fit()
# print(experiment.record.best_row)
# for i, hypothesis in open_run(run.with_name("uniform")).predict(data.splits["val"][:5], config.decode).items():
#     print(i, hypothesis.caption, "| reference:", data.captions[i][0])
# ```
#
# 1. `attention="uniform"` gives all frames the same weight. How much CIDEr is choosing frames worth here?
# 2. `encoder="none"` takes the BiLSTM away (run `no_encoder`). Which words should suffer: those for things, or those
#    for what happens to them? Say why before you look.
# 3. `frame_order="shuffled"` shuffles the frames (run `shuffled`). Which words need their order?
# 4. Change one setting of training: `train=dataclasses.replace(config.train, captions_per_clip=1)` in place of
#    `model=…` (run `one_caption`). Is an epoch faster? Is the same CIDEr reached?
# 5. Forget the shift: copy `teacher_forced` as `copying`, with `captions[:, :, t]` as the target, and train a new
#    model with it by the loop above. How far does the loss fall, and what has the model learned?
#
# **Next:** [4 · Evaluation](04_evaluate.ipynb)
