# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 1 · From clips to features
#
# **Goal** Turn every video clip into a short table of numbers that a captioning model can read.
#
# | reads | writes | CPU, sample corpus | GPU, full MSVD |
# |---|---|---|---|
# | the corpus' clips | `features/<backbone>/<id>.npy`, `manifest.jsonl` | about a minute | about 10 minutes (not measured) |
#
# **You will**
# - see why a clip is *sampled* and not read whole, and how sampling goes wrong;
# - make the features of one frame by hand, then those of the whole corpus, once and for all;
# - measure what features know that pixels do not, and where pixels do as well.
#
# A line that starts with **Predict** asks you for a guess. Write it down before you run the cell below it; the output
# and the line after it give the answer. A wrong guess teaches more than a right one.
#
# The sample corpus is rendered on the spot from public-domain photographs: short clips of one to three scenes.
# Set `VCUTILS_CORPUS` to a folder with your own clips and captions and run the same cells.

# %%
# %matplotlib inline
import json

import matplotlib.pyplot as plt
import numpy as np
import torch
from PIL import Image

from vcutils.config import Config
from vcutils.corpora import load_corpus
from vcutils.features import clip_features, extract_corpus, feature_folder
from vcutils.runtime.backbones import load_backbone
from vcutils.runtime.capture import VideoError
from vcutils.runtime.store import FeatureStore
from vcutils.video import frame_indices, sample_frames

config = Config.from_env()
corpus = load_corpus(config)
print(f"profile {config.profile!r}, corpus {corpus.name!r}: {len(corpus.clips)} clips, {len(corpus.captions)} with captions")
held_out = (corpus.own_splits or {}).get("test", [])  # the test clips stay closed until notebook 4
open_ids = [i for i in corpus.usable if i not in set(held_out)] or corpus.usable
folder = feature_folder(corpus, config.artifacts, config.extract)
ready = folder in corpus.features.values()
if ready:
    print(f"It brings features ({folder.name}), and those are used: there is nothing to extract.")

# %% [markdown]
# ## A clip is too much
#
# - A video usually holds two dozen pictures a second, most of them nearly the same.
# - A caption needs to know *what* is there and *what changes*, and a handful of frames shows both.
#
# Let us open one clip and take a few frames, evenly spread over its length.
#
# **Predict** Each pixel is three numbers: red, green, blue. How many numbers is a clip of a few seconds: thousands,
# millions, or billions?

# %%
frames = None
for video_id in open_ids:
    if video_id not in corpus.clips:
        print("The corpus brings no clip of", video_id, "so there are no frames to show; its features are shown below.")
        break
    try:
        frames = sample_frames(corpus.clips[video_id], num_frames=8)
        break
    except VideoError as error:
        print("passed over:", error)
if frames:
    height, width, colours = frames.images[0].shape
    numbers = frames.decoded * height * width * colours
    print(f"{video_id}: {frames.duration:.1f} s, {frames.decoded} frames at {frames.fps:.0f} a second")
    print(f"{frames.decoded} frames × {height} × {width} pixels × {colours} colours = {numbers:,} numbers")


# %%
def show(frames, columns=8):
    """The frames of a clip in rows, each with its time above it."""
    rows = -(-len(frames.images) // columns)
    _, grid = plt.subplots(rows, columns, figsize=(15, 1.8 * rows), layout="constrained", squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for axes, image, seconds in zip(grid.flat, frames.images, frames.timestamps, strict=False):
        axes.imshow(image)
        axes.set_title(f"{seconds:.2f} s", fontsize=9)
    plt.show()


if frames:
    show(frames)
print(f"{video_id}, all its captions:", *corpus.captions[video_id], sep="\n    ")

# %% [markdown]
# Each caption is about the whole clip; go through its words and look for the frames that show each of them. The
# *times* above the pictures are kept, because in the last notebook we want to say at which second the model looked.
#
# ## How to sample, and how not to
#
# - The obvious way is "every `n // k`-th frame until there are `k`", for a clip of `n` frames.
# - Ours cuts the clip into `k` equal parts and takes the middle of each: part `i` reaches from `i · n / k` to
#   `(i + 1) · n / k`, so its middle is `(i + 0.5) · n / k`, rounded down.
#
# **Predict** A clip has `79` frames, and `40` are wanted. Which is the last frame that the obvious way sees? Compute
# `n // k` first.


# %%
def middle_frames(n, k):
    """The middle frame of each of k equal parts of a clip with n frames; all frames where there are fewer than k."""
    k = min(n, k)
    return [int((i + 0.5) * n / k) for i in range(k)]


n, k = 79, 40
obvious, ours = list(range(0, n, n // k))[:k], middle_frames(n, k)
assert all(middle_frames(n, k) == frame_indices(n, k) for n in range(1, 200) for k in range(1, 50))  # the package's form
figure, axes = plt.subplots(figsize=(11, 1.4), layout="constrained")
axes.eventplot([ours, obvious], lineoffsets=[0, 1], linelengths=0.8, colors=["tab:green", "tab:red"])
axes.set_yticks([0, 1], [f"middle of {k} parts", "every n // k-th"])
axes.set(xlim=(-1, n), xlabel=f"frame index in a clip of {n} frames")
plt.show()
print(f"of frames 0 to {n - 1}, the last one seen: {obvious[-1]} by every n // k-th, {ours[-1]} by the middles")

# %% [markdown]
# `n // k` rounds down to 1, so the obvious way takes the clip's first `k` frames and never sees its second half. The
# middles reach the end.
#
# Two more traps that `vcutils.video` steps around: the frame count in a file's header is only a claim (a cut download
# still claims its full length), and jumping to a frame is not exact in most files. So clips are decoded from their
# start, and what really decodes is what gets sampled. A short clip gives fewer frames; nothing is ever padded with
# black pictures.
#
# ## From a frame to features
#
# - A network trained to name a thousand kinds of things in photographs (ImageNet) has learned what matters in pictures.
# - We take off its last layer, the one that names. What the layer below puts out are the *features*: D numbers per
#   frame. A clip with T sampled frames becomes a table (T, D). This network is called the *backbone*.
# - Its weights stay frozen: they are not trained further. Learning to see takes millions of pictures; we only have captions.
#
# First by hand, one frame: resize, subtract the mean and divide by the standard deviation that the backbone was trained
# with, put the colours first, run the network. Then the package's form, which takes all frames of the clip at once.

# %%
if ready:
    features = torch.from_numpy(FeatureStore(folder)[video_id]).float()
    print(f"{video_id}, features {folder.name} that the corpus brings:", tuple(features.shape), "(T, D)")
else:
    backbone = load_backbone(config.extract.backbone)
    print(f"{backbone.name}, weights {backbone.weights}, on {backbone.device}")
    features, network_frames = clip_features(backbone, corpus.clips[video_id], config.extract)  # (T, D)
    pixels = torch.from_numpy(network_frames.images[0]).float()  # (height, width, 3), resized, 0 to 255
    normal = (pixels - torch.tensor(backbone.mean)) / torch.tensor(backbone.std)
    image = normal.permute(2, 0, 1)[None].to(backbone.device)  # (1, 3, height, width)
    with torch.inference_mode():
        by_hand = backbone.model(image)[0].cpu()  # (D,)
    exact = backbone.device.type != "cuda"  # on CUDA the package's form computes in half precision
    assert torch.allclose(by_hand, features[0], atol=(1e-4 if exact else 0.02) * features.abs().max().item())
    print("pixels", tuple(pixels.shape), "→ features of one frame", tuple(by_hand.shape))
    print("clip:", tuple(features.shape), f"(T, D), {numbers // features.numel():,} x fewer numbers than pixels")

# %% [markdown]
# ## The whole corpus
#
# - Frames go through the network in *batches*, many at once, also frames of several clips. Finished clips are skipped.
# - A clip that cannot be decoded becomes a row with its reason, and the rest goes on.
# - The cell calls `extract_corpus` twice, to see what the second call still writes.

# %%
if not ready:
    report = extract_corpus(corpus, config.artifacts, config.extract)
    print(f"{len(report.written)} clips written, {len(report.skipped)} were done before, {len(report.failed)} failed")
    if report.frames:
        print(f"{report.frames} frames in {report.seconds:.0f} s: {report.frames / report.seconds:.0f} frames/s")
    for failed, reason in report.failed.items():
        print("failed:", failed, reason)
    again = extract_corpus(corpus, config.artifacts, config.extract, progress=False)
    print(f"once more: {len(again.written)} clips written, {len(again.skipped)} were done before")
    assert not again.written

# %% [markdown]
# Nothing is left to do the second time: a run that was stopped goes on where it stopped. Each clip that was extracted
# has a row in the *manifest*, so that months later one can still tell what the numbers are and which second each of the
# T rows shows.

# %%
store = FeatureStore(folder)
row = store.manifest.get(video_id) or dict(zip("TD", store[video_id].shape, strict=True))
for key in ("source", "backbone", "weights", "T", "D", "fps", "duration"):
    print(f"{key:>9}: {row.get(key, 'not known: the corpus brought its features')}")
print(f"    times: {row.get('timestamps', [])[:4]} …")

# %%
lengths = np.array([len(store[i]) for i in sorted(store.ids)])
stored = sum(path.stat().st_size for path in folder.glob("*.npy"))
print(f"{len(lengths)} clips of T = {lengths.min()} to {lengths.max()} frames, {stored / 1e6:.1f} MB as {store[video_id].dtype}")
figure, axes = plt.subplots(figsize=(6, 1.8), layout="constrained")
axes.hist(lengths, bins=np.arange(lengths.min(), lengths.max() + 2) - 0.5, rwidth=0.8)
axes.set(xlabel="T, sampled frames of a clip", ylabel="clips")
plt.show()
assert ready or lengths.max() <= config.extract.num_frames

# %% [markdown]
# More than one bar means that clips differ in T. A batch of such clips is *ragged*, and notebook 2 shows how it becomes a
# rectangle.
#
# ## What do features know that pixels do not?
#
# Two questions, both asked of the features and of a rival that needs no network: *thumbnails*, each frame shrunk to 32 × 24
# pixels, and those pixels taken as its numbers.
#
# - Within one clip: a *scene* is the time between two cuts. Are frames of one scene more similar than frames of different scenes?
# - Between clips: is the most similar frame of *another* clip one that shows the same?
#
# *Similar* is measured by the cosine of the angle between two rows of numbers: 1 where they point the same way, 0 where they
# have nothing in common.


# %%
def similarity(rows):
    """Cosine of every pair of rows: (T, D) → (T, T)."""
    rows = torch.as_tensor(np.asarray(rows, dtype=np.float32))
    directions = rows / rows.norm(dim=1, keepdim=True).clamp(min=1e-6)  # a black picture has no direction
    return directions @ directions.T


def thumbnail(image):
    """A frame as 32 × 24 pixels in one row of numbers."""
    return np.asarray(Image.fromarray(image).resize((32, 24)), dtype=np.float32).ravel()


ours, torchs = similarity(features), torch.nn.functional.cosine_similarity(features[:, None], features[None], dim=-1)
assert torch.allclose(ours, torchs, atol=1e-3)
print("features", tuple(features.shape), "→ similarity", tuple(ours.shape), f"between {ours.min():.2f} and {ours.max():.2f}")
if frames:
    print("thumbnail of one frame:", thumbnail(frames.images[0]).shape)

# %% [markdown]
# To count anything we need to know what each frame shows. Some corpora bring `events.json`, which says what is true in
# which seconds. From it comes a number for each clip: the probability that two frames of one scene are more similar than
# two frames of different scenes. It is called *AUC*; 1 means always, 0.5 is what tossing a coin gives.


# %%
def auc(similarities, scenes):
    """How often a pair of frames of one scene is more similar than a pair of different scenes; ties count half."""
    first, second = np.triu_indices(len(scenes), 1)  # every pair of frames once
    values, same = similarities.numpy()[first, second], scenes[first] == scenes[second]
    within, between = values[same][:, None], values[~same]
    return float((within > between).mean() + 0.5 * (within == between).mean())


path = corpus.root / "events.json"
events = json.loads(path.read_text("utf-8")) if path.is_file() and not ready else {}
scenes, shows, thumbnails = {}, {}, {}  # id → per frame: its scene 0, 1, …; (thing, change); its thumbnail
for i in [i for i in open_ids if i in events and i in store.ids][:150]:  # so many will do
    now = events[i]["events"]
    thing, change = ({e["start"]: e["words"][0] for e in now if e["kind"] == kind} for kind in ("thing", "change"))
    if thing and thing.keys() == change.keys():
        starts, times = sorted(thing), np.array(store.manifest[i]["timestamps"])
        scenes[i] = np.searchsorted(starts, times + 0.001, side="right") - 1  # + 0.001 s, since the times are rounded
        shows[i] = [(thing[starts[scene]], change[starts[scene]]) for scene in scenes[i]]
        thumbnails[i] = sample_frames(corpus.clips[i], config.extract.num_frames, each=thumbnail).images
several = [i for i in scenes if 1 < len(set(scenes[i])) < len(scenes[i])]
print(f"{len(scenes)} clips outside the test split whose scenes are known; {len(several)} have more than one")

# %% [markdown]
# **Predict** In how many of these clips do the features separate the scenes better than thumbnails do: in all, in most, in
# half, in few?

# %%
by_pixels = {i: similarity(thumbnails[i]) for i in several}
by_features = {i: similarity(store[i]) for i in several}
scores = {i: (auc(by_pixels[i], scenes[i]), auc(by_features[i], scenes[i])) for i in several}
if several:
    pixels, nets = np.array(list(scores.values())).T
    print(f"mean AUC of {len(several)} clips: thumbnails {pixels.mean():.2f}, features {nets.mean():.2f}")
    better, worse = (nets > pixels).sum(), (nets < pixels).sum()
    print(f"better with features: {better} clips, with thumbnails: {worse}, equal: {len(several) - better - worse}")
else:
    print("This corpus does not say when its scenes begin, so nothing can be counted; look at the matrices below.")

# %% [markdown]
# Both do it far better than a coin, and the line of counts is the honest one: to tell the scenes of *one* clip apart, colours
# are often enough, and thumbnails need no network.
#
# Pictures of both cases, chosen by a rule: the clip where the AUC of the features lies furthest above that of the
# thumbnails, and the clip where it lies furthest below. The first is the *most flattering* clip for the features.
# In such a matrix both axes are time, so a scene should be a bright block on the diagonal, and a cut the dark border between two
# blocks. The cyan lines are the true cuts.

# %%
unit = "time (s)" if store.manifest else "frame"


def matrix(axes, similarities, times, title, cuts=()):
    """One similarity matrix (T, T), with lines where a new scene begins."""
    picture = axes.imshow(similarities, cmap="magma", vmax=1)
    for cut in cuts:
        axes.axhline(cut - 0.5, color="cyan", linewidth=0.8)
        axes.axvline(cut - 0.5, color="cyan", linewidth=0.8)
    ticks = range(0, len(times), max(1, len(times) // 4))
    axes.set_xticks(ticks, [f"{times[t]:.1f}" for t in ticks])
    axes.set_yticks(ticks, [f"{times[t]:.1f}" for t in ticks])
    axes.set_title(title, fontsize=10)
    axes.set_xlabel(unit)
    plt.colorbar(picture, ax=axes, shrink=0.8)


# %%
panels = []
gain = {i: scores[i][1] - scores[i][0] for i in several}  # AUC of features - AUC of thumbnails
for i in (max(several, key=gain.get), min(several, key=gain.get)) if several else ():
    times, cuts = store.manifest[i]["timestamps"], np.flatnonzero(np.diff(scenes[i])) + 1
    panels.append((by_pixels[i], times, f"{i}: thumbnails, AUC {scores[i][0]:.2f}", cuts))
    panels.append((by_features[i], times, f"{i}: features, AUC {scores[i][1]:.2f}", cuts))
    print(panels[-2][2], panels[-1][2], sep="\n")
if not several:
    times = store.manifest.get(video_id, {}).get("timestamps", range(len(store[video_id])))
    if frames and not ready:
        small = sample_frames(corpus.clips[video_id], config.extract.num_frames, each=thumbnail)
        panels.append((similarity(small.images), times, f"{video_id}: thumbnails"))
    panels.append((similarity(store[video_id]), times, f"{video_id}: features"))
figure, axes = plt.subplots(1, len(panels), figsize=(3.8 * len(panels), 3.5), layout="constrained", squeeze=False)
for place, panel in zip(axes[0], panels, strict=True):
    matrix(place, *panel)
plt.show()

# %% [markdown]
# Each matrix has its own colour scale, since only the order of its values counts. Look also for dark borders *inside* a scene:
# the thing stays and only its look changes.
#
# **Predict** Take the two neighbouring frames of a clip that are least similar. In how many clips is there a cut between
# them?


# %%
def cause(i, t):
    """What lies between frames t and t + 1: a cut, or a change within a scene, with the words for what is seen there."""
    now = store.manifest[i]["timestamps"][t] + 0.001
    seen = [e for e in events[i]["events"] if e["kind"] != "order" and e["start"] <= now < e["end"]]
    words = ", ".join(word for event in seen for word in event["words"])
    return "a cut" if scenes[i][t] != scenes[i][t + 1] else f"a change within the scene of: {words}"


steps = {i: by_features[i].diagonal(offset=1) for i in several}  # similarity of each frame to the next
within = [i for i in several if cause(i, int(steps[i].argmin())) != "a cut"]
if several:
    print(f"between the least similar neighbours of {len(several)} clips:", end=" ")
    print(f"a cut in {len(several) - len(within)}, a change within a scene in {len(within)}")
else:
    print("Without events.json nobody can say which dark border is a cut: watch the clip at that time.")
for i in [max(several, key=gain.get), *within[:1]] if several else ():
    print(f"{i}, its three least similar steps:")
    for t in steps[i].argsort()[:3].tolist():
        seconds = store.manifest[i]["timestamps"][t : t + 2]
        print(f"    {seconds[0]:.2f} s → {seconds[1]:.2f} s: similarity {steps[i][t]:.2f}, {cause(i, t)}")

# %% [markdown]
# So a dark border says that something *changed*, and the list says what: a cut, or the course of a change within one
# scene. The network was told about neither.
#
# Now the question that matters for captions. A caption model meets a new clip and must say what it knows from *other* clips.
# So we look for the most similar frame among other clips, twice:
#
# - among frames that show another thing: does it show the same change?
# - among frames under another change: does it show the same thing?
#
# **Predict** In which of the two do features beat thumbnails: in the first, in the second, in both?

# %%
things, changes = np.array([pair for i in scenes for pair in shows[i]]).reshape(-1, 2).T
labels = {"thing": things, "change": changes}  # of all frames of these clips
clip = np.repeat(np.arange(len(scenes)), [len(scenes[i]) for i in scenes])
every = {"thumbnails": thumbnails.values(), "features": [store[i] for i in scenes]}
every = {name: similarity(np.concatenate(list(tables))).numpy() for name, tables in every.items() if scenes}
for other, same in (("thing", "change"), ("change", "thing")) if scenes else ():
    allowed = (clip[:, None] != clip) & (labels[other][:, None] != labels[other])  # (frames, frames)
    equal = labels[same][:, None] == labels[same]
    print(f"the most similar frame with another {other} shows the same {same}:", end=" ")
    for name, table in every.items():
        nearest = np.where(allowed, table, -2).argmax(axis=1)  # of each frame; no cosine is as low as -2
        print(f"{name} {equal[np.arange(len(clip)), nearest].mean():.0%}", end=", ")
    print(f"any frame {(allowed & equal).sum() / allowed.sum():.0%}")
if not scenes:
    print("This corpus does not say what its frames show, so this cannot be counted.")

# %% [markdown]
# This is one reason why frames become features. A change looks different on each thing: the pixels differ, and the features agree more
# often. With things, thumbnails come close to the features here or beat them, and the reason is the sample corpus: each
# of its things is one photograph, a little cropped and tinted. In real videos no cat is the same picture twice.
#
# ## Recap
#
# - A clip is sampled evenly over what really decodes; the times of the frames are kept.
# - A frozen image network turns each frame into D numbers; clips differ in T.
# - Pixels are often enough to tell the scenes of one clip apart. Features recognise what clips have in common.
# - A dark border in a similarity matrix is something that changed, not always a cut.
# - Features are computed once and stored; every later notebook starts from them.
#
# ## Exercises
#
# Each works in a new cell below this one. 1 to 3 need clips.
#
# 1. `show(sample_frames(corpus.clips[video_id], num_frames=3))`, then with `num_frames=30`. From which number on do you
#    see nothing new? If the second call shows fewer than it was asked for: why?
# 2. Change `thumbnail` to `(4, 3)` pixels, then to `(128, 96)`, and run the cells from there on. Does the AUC of thumbnails rise
#    with their size? Explain what you find.
# 3. Plot the similarity matrix of a clip with one scene only. What does its change look like?
# 4. Average the features of each clip over time, `store[i].astype("float32").mean(axis=0)`, and find the two most
#    similar clips in `open_ids`. Do their captions agree?
# 5. With a network connection, load another backbone, `load_backbone("resnet50")`, and pass it to `clip_features` for the
#    clip `video_id`. Is the block structure of `similarity(features)` sharper or weaker?
#
# **Next:** [2 · Words](02_vocab.ipynb)
