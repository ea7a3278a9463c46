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
# **Goal** Build attention by hand, put it into a captioning model, and train the model twice: once as it should be, and
# once with the clips' features exchanged, to prove that it looks.
#
# | reads | writes | CPU, sample corpus | GPU, full MSVD |
# |---|---|---|---|
# | features, `splits.json`, `vocab.json` | `runs/default/`, `runs/control/`, `runs/original/` | about 1 minute | under an hour (not measured) |
#
# **You will**
# - compute attention weights in five lines and check the package's form against them;
# - know what the loss should be before training, and see that it is;
# - read the loss curve together with the captions' own score, and learn why the two disagree.

# %%
# %matplotlib inline
import dataclasses
import math

import matplotlib.pyplot as plt
import torch

from vcutils.config import ORIGINAL_TRAINING, Config
from vcutils.corpora import load_corpus
from vcutils.dataset import CaptionDataset, collate, load_data
from vcutils.model import AdditiveAttention, CaptionModel, Memory, caption_loss
from vcutils.scores.coco import References
from vcutils.train import Trainer

config = Config.from_env()
data = load_data(load_corpus(config), config.artifacts, config.extract)
config = data.suited(config)  # learning rate, dropout, batch size and epochs by the corpus' size
torch.manual_seed(config.train.seed)
print({name: len(ids) for name, ids in data.splits.items()}, "clips,", len(data.vocabulary), "words, D =", data.store.dim)
for settings in (config.model, config.train):
    print(settings)

# %% [markdown]
# ## What attention computes
#
# - The decoder is about to say a word. Its state is the *query*: what do I need to know now?
# - Every frame has a *key*: what do I show? A score says how well key and query fit.
# - Softmax turns scores into weights that sum to 1, and the weighted sum of the frames is what the decoder gets.
#
# Three frames and one query, with numbers small enough to follow:

# %%
frames = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.9, 0.1]])  # a cat, a rocket, the cat again
query = torch.tensor([2.0, 0.0])  # "I am about to say what animal it was"
scores = frames @ query
weights = scores.softmax(dim=0)
context = weights @ frames
for name, score, weight in zip(("cat", "rocket", "cat again"), scores, weights, strict=True):
    print(f"{name:>10}: score {score:4.1f}  weight {weight:.2f}  {'█' * int(30 * weight)}")
print("context:", [round(x, 2) for x in context.tolist()])

# %% [markdown]
# The rocket gets a small weight and the context is mostly cat. Our model uses the *additive* score of Bahdanau et al.
# (2015), which can compare a query and a key of different sizes through a small hidden layer:
#
# $$\text{score}(h, m_t) = v^\top \tanh(W_h\, h + W_m\, m_t)$$
#
# By hand, for one clip whose last frame is padding:

# %%
attention = AdditiveAttention(dataclasses.replace(config.model, decoder_dim=6, attention_dim=5), memory_dim=4)
m, h = torch.randn(3, 4), torch.randn(6)  # three encoded frames, one decoder state
with torch.no_grad():
    hidden = torch.tanh(m @ attention.keys.weight.T + attention.keys.bias + attention.query.weight @ h)  # (T, A)
    score = hidden @ attention.score.weight[0]  # (T,)
    score[2] = -math.inf  # padding can never win
    by_hand = score.exp() / score.exp().sum()
print("weights by hand:", by_hand.numpy().round(4))

# %%
mask = torch.tensor([[True, True, False]])
with torch.no_grad():
    memory = Memory(values=m[None], keys=attention.keys(m[None]), mask=mask)
    context, weights = attention(h[None, None], memory)  # (B, K, C), (B, K, T)
print("weights by vcutils:", weights[0, 0].numpy().round(4))
assert torch.allclose(weights[0, 0], by_hand, atol=1e-6)
assert weights[0, 0, 2] == 0

# %% [markdown]
# The same numbers, and an exact zero on padding. The package's form does it for B clips and K captions at once, and
# computes the frames' half of the score, `keys`, once per clip and not once per word.
#
# ## The model
#
# | part | in → out | why |
# |---|---|---|
# | projection | (B, T, D) → (B, T, C) | from what the image network knows to what captions need |
# | BiLSTM | (B, T, C) → (B, T, C) | a frame's meaning depends on what comes before and after: a zoom is not one picture |
# | attention | state, (B, T, C) → (B, C) | which frames matter for the next word |
# | LSTM cell | word, context → state | what has been said so far |
# | word logits | state, context → V | which word comes next |

# %%
model = CaptionModel(config.model, len(data.vocabulary), data.store.dim)
dataset = CaptionDataset(data, "train", captions_per_clip=2, max_length=config.train.max_length)
batch = collate([dataset[i] for i in range(3)])
real = batch.targets != 0
logits, weights = model(batch.features, batch.frame_mask, batch.inputs)
print(f"{sum(p.numel() for p in model.parameters()):,} parameters")
print("logits", tuple(logits.shape), f"(B, K, L, V), of which {int(real.sum())} of {real.numel()} words are real")
print("weights", tuple(weights.shape), "(B, K, L, T), rows of real words sum to", round(weights.sum(-1)[real].mean().item(), 4))

# %% [markdown]
# ## The loss before training
#
# - An untrained model should find every word equally likely: a loss of ln V, one that we can check.
# - Padding takes no part: filling it with rubbish must not change the loss.

# %%
model.eval()
frame_mask = batch.frame_mask.clone()
frame_mask[0, frame_mask.shape[1] // 2 + 1 :] = False  # the first clip now ends early: the rest is padding
losses = []
for rubbish in (0.0, 99.0):
    features = batch.features.masked_fill(~frame_mask[..., None], rubbish)
    losses.append(caption_loss(model(features, frame_mask, batch.inputs)[0], batch.targets).item())
print(f"loss {losses[0]:.2f}, expected ln {len(data.vocabulary)} = {math.log(len(data.vocabulary)):.2f}")
print("the same with rubbish in the padding:", math.isclose(*losses, rel_tol=1e-5))
assert math.isclose(*losses, rel_tol=1e-5)

# %% [markdown]
# ## Training
#
# - Each epoch shows every clip once with K of its captions; the learning rate warms up, then falls along a cosine.
# - After each epoch the model captions the validation clips *on its own*. The CIDEr of those captions picks the best
#   checkpoint; the loss never does.
# - A run that was stopped goes on from its last checkpoint when you run the cell again; one that is done is kept.

# %%
run = config.artifacts / "runs" / "default"
trainer = Trainer(run, config, data, References, resume="auto")
history = trainer.fit()
if not history:
    print(f"{config.train.max_minutes:g} minutes ended within the first epoch; run the cell again to go on")
for row in history[-1:]:
    seconds = sum(row["seconds"] for row in history)
    print(f"{len(history)} epochs in {seconds:.0f} s of training, {row['words_per_second']:,} words/s at the end")
if best := trainer.record.best_row:
    print(f"train loss {row['train_loss']:.2f}; best epoch {best['epoch']}: validation CIDEr {100 * best['val_CIDEr']:.1f}")

# %% [markdown]
# Now the control: the very same model, recipe and captions, but each clip is given another clip's features. It can
# learn which captions are common, and nothing about what is to be seen.

# %%
blind = dataclasses.replace(config, train=dataclasses.replace(config.train, shuffle_features=True))
control = Trainer(run.with_name("control"), blind, data, References, resume="auto")
control_history = control.fit()
if best_control := control.record.best_row:
    print(f"control: train loss {control_history[-1]['train_loss']:.2f}, best CIDEr {100 * best_control['val_CIDEr']:.1f}")

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(11, 3.4), layout="constrained")
for name, rows, colour in (("own features", history, "tab:blue"), ("another clip's", control_history, "tab:grey")):
    epochs = [row["epoch"] for row in rows]
    left.plot(epochs, [row["train_loss"] for row in rows], color=colour, label=f"{name}, train")
    left.plot(epochs, [row["val_loss"] for row in rows], "--", color=colour, label=f"{name}, val")
    right.plot(epochs, [100 * row["val_CIDEr"] for row in rows], color=colour, label=name)
left.set(xlabel="epoch", ylabel="loss (nats per word)", title="teacher-forced loss", xticks=epochs[1::2])
right.set(xlabel="epoch", ylabel="CIDEr × 100", title="captions written alone, validation", xticks=epochs[1::2])
left.legend()
right.legend()
plt.show()

# %% [markdown]
# ## What a recipe is worth
#
# - The same model once more, trained as the notebook that this course grew out of did it (preset `train=original`): learning
#   rate `1e-4`, one caption per clip and step, a step every four batches, 20 epochs.
# - It was made for the full MSVD corpus; here it serves to show that a recipe has to fit its corpus.

# %%
limits = {"epochs": min(20, config.train.epochs), "max_minutes": config.train.max_minutes, "find_batch_size": False}
recipe = dataclasses.replace(config, train=dataclasses.replace(ORIGINAL_TRAINING, **limits))
original = Trainer(run.with_name("original"), recipe, data, References, resume="auto")
original.fit()
for name, trained in (("this recipe", trainer), ("the original's", original)):
    row, steps = trained.record.best_row, trained.progress.step
    scores = f"loss {row['val_loss']:.2f}, validation CIDEr {100 * row['val_CIDEr']:5.1f}" if row else "no epoch is done"
    print(f"{name:>15}: {steps:>4} steps, {scores}")

# %% [markdown]
# The original takes a handful of steps, each on few captions and with a small learning rate, and has hardly begun to
# learn when it ends. More captions per encoded clip, more steps and a larger rate cost little time and make the model.
#
# ## What the curves say
#
# - The training loss falls in both runs: with enough epochs a model learns captions by heart, whatever it sees. It is
#   measured with dropout, left-out frames and smoothed targets, so it may lie above the validation loss.
# - Loss and score need not agree: the loss asks how sure the model is of each reference word, the score only whether the
#   words it picks are good. One can go on falling while the other stands still or drops.
# - The gap between the two lines on the right is what *looking* is worth. No gap would mean that the frames are ignored.
#
# `log.csv` holds these numbers, `best/` the checkpoint that the next notebooks use, `last/` what a cut run resumes from.

# %%
for path in sorted(run.rglob("*")):
    if path.is_file():
        print(f"{path.relative_to(run).as_posix():<28}{path.stat().st_size / 1e6:8.2f} MB")

# %% [markdown]
# ## Recap
#
# - Attention is a weighted mean; the weights come from comparing the decoder's state with every frame.
# - Check the loss before training: it must start at ln V.
# - Pick the checkpoint by captions that the model writes alone, and always train a control that cannot see.
#
# ## Exercises
#
# 1. Set `attention="uniform"` in `config.model`. How much CIDEr is soft attention worth here?
# 2. Set `encoder="none"`. Which words suffer, nouns or motions? Say why before you look.
# 3. Set `frame_order="shuffled"`. Expect the motion words to fall and the nouns to stay.
# 4. Train with `captions_per_clip=1`. Is an epoch faster? Is reaching the same score?
#
# **Next:** [4 · Evaluation](04_evaluate.ipynb)
