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
# | the corpus' clips | `features/<backbone>/<id>.npy`, `manifest.jsonl` | about 1.5 minutes | about 10 minutes (not measured) |
#
# **You will**
# - see why a clip is *sampled* and not read whole, and how sampling goes wrong;
# - see what a pretrained network makes of one frame;
# - extract the features of the whole corpus, once and for all.
#
# The sample corpus is rendered on the spot from public-domain photographs: short clips of one to three scenes with
# camera motion. Set `VCUTILS_CORPUS` to a folder with your own clips and captions and run the same cells.

# %%
# %matplotlib inline
import matplotlib.pyplot as plt
import numpy as np
import torch

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
folder = feature_folder(corpus, config.artifacts, config.extract)
ready = folder in corpus.features.values()
if ready:
    print(f"It brings features ({folder.name}), and those are used: there is nothing to extract.")

# %% [markdown]
# ## A clip is too much
#
# - Twenty-five pictures a second, most of them nearly the same: five seconds hold more numbers than a short novel.
# - A caption needs to know *what* is there and *what changes*, and a handful of frames shows both.
#
# Let us open one clip and take a few frames, evenly spread over its length.

# %%
frames = None
for video_id in corpus.usable[1:] + corpus.usable[:1]:
    try:
        frames = sample_frames(corpus.clips[video_id], num_frames=8)
        break
    except KeyError:
        print("The corpus brings no clips, so there are no frames to show; its features are shown below.")
        break
    except VideoError as error:
        print("passed over:", error)
if frames:
    numbers = frames.decoded * frames.images[0].size
    print(f"{video_id}: {frames.duration:.1f} s, {frames.decoded} frames at {frames.fps:.0f} a second = {numbers:,} numbers")
    print("one frame:", frames.images[0].shape, frames.images[0].dtype)

# %%
if frames:
    figure, row = plt.subplots(1, len(frames.images), figsize=(15, 2.1), layout="constrained", squeeze=False)
    for axes, image, seconds in zip(row[0], frames.images, frames.timestamps, strict=True):
        axes.imshow(image)
        axes.set_title(f"{seconds:.2f} s", fontsize=9)
        axes.set_axis_off()
    figure.suptitle(f"{video_id}: {corpus.captions[video_id][0]}", parse_math=False)
    plt.show()

# %% [markdown]
# Eight frames tell the story. Note the *times* above the pictures: they are kept, because in the last notebook we
# want to say at which second the model looked.
#
# ## How to sample, and how not to
#
# - The obvious way is "every `n // k`-th frame until there are `k`". With 79 frames and k = 40 that is every frame,
#   and the second half of the clip is never seen.
# - Ours cuts the clip into `k` equal parts and takes the middle of each.

# %%
total, k = 79, 40
obvious = list(range(0, total, total // k))[:k]
ours = frame_indices(total, k)
figure, axes = plt.subplots(figsize=(11, 1.4), layout="constrained")
axes.eventplot([ours, obvious], lineoffsets=[0, 1], linelengths=0.8, colors=["tab:green", "tab:red"])
axes.set_yticks([0, 1], ["middle of 40 parts", "every n // k-th"])
axes.set(xlim=(-1, total), xlabel=f"frame of a clip with {total} frames")
plt.show()
print("last frame seen:", obvious[-1], "against", ours[-1], "of", total - 1)

# %% [markdown]
# Two more traps that `vcutils.video` steps around: the frame count in a file's header is only a claim (a cut download
# still claims its full length), and jumping to a frame is not exact in most files. So clips are decoded from their
# start, and what really decodes is what gets sampled. A short clip gives fewer frames; nothing is ever padded with
# black pictures.
#
# ## From a frame to features
#
# - A network trained to name a thousand things in photographs has learned what matters in pictures.
# - We take off its last layer, the one that names, and keep what is just below: D numbers per frame.
# - The weights stay frozen. Learning to see takes millions of pictures; we only have captions.

# %%
if ready:
    features = torch.from_numpy(FeatureStore(folder)[video_id]).float()
    times = range(len(features))
    print(f"{video_id}, features {folder.name} that the corpus brings:", tuple(features.shape), "(T, D)")
else:
    backbone = load_backbone(config.extract.backbone)
    features, network_frames = clip_features(backbone, corpus.clips[video_id], config.extract)
    times = network_frames.timestamps
    print(f"{backbone.name}, weights {backbone.weights}, on {backbone.device}")
    print("features:", tuple(features.shape), f"(T, D), {numbers // features.numel():,} x fewer numbers than pixels")

# %% [markdown]
# Do these numbers mean anything? Two frames that show the same thing should have similar features (cosine near 1), two
# frames of different scenes should not.

# %%
directions = torch.nn.functional.normalize(features, dim=1)
similarity = directions @ directions.T  # (T, T)
figure, axes = plt.subplots(figsize=(4.6, 3.8), layout="constrained")
image = axes.imshow(similarity, cmap="magma", vmax=1)
ticks = range(0, len(times), max(1, len(times) // 5))
axes.set_xticks(ticks, [f"{times[t]:.1f}" for t in ticks])
axes.set_yticks(ticks, [f"{times[t]:.1f}" for t in ticks])
unit = "frame" if ready else "time (s)"
axes.set(xlabel=unit, ylabel=unit, title="similarity of frames")
figure.colorbar(image, ax=axes)
plt.show()

# %% [markdown]
# Bright blocks are stretches of time that look alike, dark borders between them are cuts: the network was never told
# about scenes, and yet they are all there. This is why frames become features.
#
# ## The whole corpus
#
# - Frames of several clips share a batch, decoding runs ahead of the network, finished clips are skipped.
# - A clip that cannot be decoded becomes a row with its reason, and the rest goes on.

# %%
if not ready:
    report = extract_corpus(corpus, config.artifacts, config.extract)
    print(f"{len(report.written)} clips written, {len(report.skipped)} were done before, {len(report.failed)} failed")
    if report.frames:
        print(f"{report.frames} frames in {report.seconds:.0f} s: {report.frames / report.seconds:.0f} frames/s")
    for failed, reason in report.failed.items():
        print("failed:", failed, reason)

# %% [markdown]
# Run the cell again: nothing is left to do. Each clip that was extracted has a row in the manifest, so that months later
# one can still tell what the numbers are and which second each row of them shows.

# %%
store = FeatureStore(folder)
row = store.manifest.get(video_id) or dict(zip("TD", store[video_id].shape, strict=True))
for key in ("source", "backbone", "weights", "T", "D", "fps", "duration"):
    print(f"{key:>9}: {row.get(key, 'not known: the corpus brought its features')}")
print(f"    times: {row.get('timestamps', [])[:4]} …")

# %%
lengths = np.array([len(store[i]) for i in sorted(store.ids)])
stored = sum(path.stat().st_size for path in folder.glob("*.npy"))
print(f"{len(lengths)} clips, {lengths.min()} to {lengths.max()} frames each, {stored / 1e6:.1f} MB as {store[video_id].dtype}")
assert ready or lengths.max() <= config.extract.num_frames

# %% [markdown]
# ## Recap
#
# - A clip is sampled evenly over what really decodes; the times of the frames are kept.
# - A frozen image network turns each frame into D numbers in which similar pictures lie close together.
# - Features are computed once and stored; every later notebook starts from them.
#
# ## Exercises
#
# 1. Sample the first clip with `num_frames=3`, then with `num_frames=30`. When do you stop seeing anything new?
# 2. Plot the similarity matrix of a clip with one scene only. What do the camera's motions look like in it?
# 3. With a network connection, try `load_backbone("resnet50")`. Is the block structure sharper or weaker?
# 4. Average the features of each clip over time and find the two most similar clips. Do their captions agree?
#
# **Next:** [2 · Words](02_vocab.ipynb)
