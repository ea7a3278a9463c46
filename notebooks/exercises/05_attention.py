# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Exercises 5 · What did the model look at?
#
# Four functions for what [notebook 5](../05_attention.ipynb) is about: does a word point at the right frames, does it need them,
# does the caption need them, and where does the model look while it says *a* or *an*?
#
# | exercise | you write | time |
# |---|---|---|
# | 5.1 | `pointing(words, weights, times, events)` | about 25 minutes |
# | 5.2 | `deletion(log_probs, features, row, position, draws)` | about 15 minutes |
# | 5.3 | `hide_strongest(features, attention, share)` and a paragraph | about 25 minutes |
# | 5.4 | `article_correlation(words, weights)` and a paragraph | about 20 minutes |
#
# Replace `raise NotImplementedError` by your lines. Keep the functions' names and arguments, and use what a function is given,
# not other variables of the notebook: they are not there when it is marked. A wrong answer blocks nothing: after each exercise
# the notebook goes on without your function. What is missing in `data/` is built first: features in about a minute, a trained
# model in about another.
#
# Attention is an array (L, T): for each of the L words of a caption one *row* of weights over the clip's T frames, with the sum 1.

# %%
import numpy as np

from vcutils.attention import checks, measures
from vcutils.course.artifacts import course_run
from vcutils.course.exercises import check, is_right
from vcutils.dataset import pad_frames
from vcutils.decode import generate

run = course_run()
test = run.data.splits["test"]
predictions = run.predict(test)
path = run.data.root / "events.json"
events = measures.read_events(path) if path.is_file() and run.manifest else {}
print(f"{len(test)} captions with their attention; times of events are {'known' if events else 'not known on this corpus'}")


# %% [markdown]
# ## Exercise 5.1 · Pointing
#
# `events` is a list of dictionaries such as `{"kind": "thing", "words": ["cat"], "start": 0.0, "end": 1.2}`: the word *cat* is true
# from 0.0 s up to, but not at, 1.2 s. Several of them may know the same word. `times` (T) are the frames' times in seconds.
#
# Write `pointing(words, weights, times, events)` for a caption of L words with weights (L, T). It returns a list with a tuple
# `(word, hit, mass, chance)` for each word of the caption that `events` knows, in the caption's order:
#
# - *hit*: whether the word's strongest frame lies inside a time in which the word is true;
# - *mass*: the share of the word's attention that lies inside;
# - *chance*: the share of the clip's frames that lie inside.
#
# Leave out a word that is true at *all* frames: it cannot miss.
#
# - **Time** about 25 minutes
# - **Hint** Make a boolean array `inside` (T) for each word first. What is the mean of a boolean array?
# - **Expect** On the sample's test clips: things hit 100 % at a chance of 41 %, changes 98 % at 44 %.


# %%
def pointing(words, weights, times, events):
    """(word, hit, mass, chance) of each word whose time is known."""
    ### BEGIN SOLUTION
    times, found = np.asarray(times), []
    for word, row in zip(words, weights):
        true = [event for event in events if word in event["words"]]
        inside = np.zeros(len(times), dtype=bool)
        for event in true:
            inside |= (event["start"] <= times) & (times < event["end"])
        if true and not inside.all():
            found.append((word, bool(inside[row.argmax()]), float(row[inside].sum()), float(inside.mean())))
    return found
    ### END SOLUTION


# %%
check("5.1", pointing)
### BEGIN HIDDEN TESTS
row = np.array([[0.2, 0.5, 0.3]])
cat = [{"kind": "thing", "words": ["cat", "kitten"], "start": 0.0, "end": 1.0}]
(found,) = pointing(["kitten"], row, [0.0, 1.0, 2.0], cat)
assert found[0] == "kitten" and not found[1], "the strongest frame stands at the end of the time, and the end is not inside"
assert abs(found[2] - 0.2) < 1e-9 and abs(found[3] - 1 / 3) < 1e-9, "mass and chance of one frame of three"
assert pointing(["kitten"], row, [0.0, 0.1, 0.2], cat) == [], "a word that is true at all frames is left out"
assert pointing(["a", "dog"], np.repeat(row, 2, axis=0), [0.0, 1.0, 2.0], cat) == [], "words that no event knows"
### END HIDDEN TESTS

# %% [markdown]
# The package's form is `measures.ground`; clips of one scene are left out there.

# %%
times = {i: run.timestamps(i) for i in test}
for line in measures.grounding_table(measures.ground(predictions, times, events)):
    print(f"{line['kind']:>7}: hit {line['pointing']:.0%}, mass {line['mass']:.2f}, chance {line['chance']:.0%} ({line['words']} words)")

# %% [markdown]
# ## Exercise 5.2 · Does the word need its frames?
#
# Pointing says where the model looked. *Deletion* asks what happens when those frames are gone. `log_probs(features)` gives the
# log-probabilities (L) of the caption's words when the model sees the frames `features` (T, D), the words being fed to it (teacher
# forcing). The *cost* of hiding frames, for the word at `position`, is its log-probability with all frames minus that without them.
#
# Write `deletion(log_probs, features, row, position, draws)`. `row` (T) holds the word's weights, and `draws` is a list of arrays of
# n frame numbers each, drawn at random. It returns two numbers:
#
# - *attended*: the cost of hiding the n frames with the largest weights;
# - *random*: the mean cost of hiding the frames of each draw.
#
# - **Time** about 15 minutes
# - **Hint** A hidden frame is taken out before the encoder: `np.delete(features, frames, axis=0)`.
# - **Expect** On the sample's test captions, a quarter of the frames hidden: attended minus random is +0.78 nats per word, with a
#   95 % interval from +0.69 to +0.87.


# %%
def deletion(log_probs, features, row, position, draws):
    """Nats that the word at `position` loses without its strongest frames, and without random ones."""
    ### BEGIN SOLUTION
    full = log_probs(features)[position]
    strongest = np.argsort(-row)[: len(draws[0])]
    costs = [full - log_probs(np.delete(features, frames, axis=0))[position] for frames in (strongest, *draws)]
    return float(costs[0]), float(np.mean(costs[1:]))
    ### END SOLUTION


# %%
check("5.2", deletion)
### BEGIN HIDDEN TESTS
frames = np.arange(8.0).reshape(4, 2)
total = lambda x: np.array([0.0, float(np.asarray(x)[:, 0].sum())])  # noqa: E731
attended, drawn = deletion(total, frames, np.array([0.1, 0.6, 0.3, 0.0]), 1, [np.array([0]), np.array([3])])
assert (attended, drawn) == (2.0, 3.0), "one frame of four hidden: its own number is lost, two draws have a mean"
assert frames.shape == (4, 2), "the function must not change its argument"
### END HIDDEN TESTS

# %% [markdown]
# The package's form is `checks.deletion`, for every word of every caption. The interval draws whole clips again and again, since the
# words of one clip go together.

# %%
drops = checks.deletion(run, predictions)
gaps = [drop.attended - drop.random for drop in drops]
mean, low, high = checks.mean_with_interval(gaps, [drop.video_id for drop in drops])
print(f"attended minus random: {mean:+.2f} nats per word, 95 % interval [{low:+.2f}, {high:+.2f}], {len(gaps)} words")

# %% [markdown]
# ## Exercise 5.3 · Hide the most attended frames
#
# The mean over the rows of a caption says how much of the attention each frame got. Write `hide_strongest(features, attention,
# share)`. It returns the features (T, D) without the *fewest* frames that together carry at least `share` of the mean attention. At
# least one frame must be left.
#
# - **Time** about 25 minutes, with the paragraph
# - **Hint** Sort the frames, the strongest first. `cumsum` tells how much the first n of them carry.
# - **Expect** On the sample, hiding a quarter of the attention takes away 16 % of the frames, and 10 of 40 test captions stay as
#   they were. With half of the attention it is 33 % of the frames, and 1 caption of 40 stays.


# %%
def hide_strongest(features, attention, share):
    """Features without the fewest frames that carry `share` of the mean attention (L, T); one frame is always left."""
    ### BEGIN SOLUTION
    mean = attention.mean(axis=0)
    order = np.argsort(-mean)
    enough = int(np.searchsorted(mean[order].cumsum(), share - 1e-9)) + 1
    return np.delete(features, order[: min(enough, len(order) - 1)], axis=0)
    ### END SOLUTION


# %%
check("5.3", hide_strongest)
### BEGIN HIDDEN TESTS
rows = np.array([[0.1, 0.6, 0.1, 0.2], [0.1, 0.4, 0.3, 0.2]])  # mean 0.1, 0.5, 0.2, 0.2
kept = hide_strongest(np.arange(4)[:, None], rows, 0.45)
assert np.asarray(kept).ravel().tolist() == [0, 2, 3], "one frame carries half: it alone is hidden, and order is kept"
assert len(hide_strongest(np.arange(4)[:, None], rows, 0.6)) == 2, "two frames are needed for 60 %"
assert len(hide_strongest(np.arange(4)[:, None], rows, 1.0)) == 1, "one frame is left"
### END HIDDEN TESTS

# %% [markdown]
# The next cell hides a quarter of the attention of each test clip with your function, once it is right, and captions the rest.

# %%
clips, stays = [i for i in test if len(run.data.store[i]) > 2], {}
for i in clips if is_right("5.3") else ():
    rest = hide_strongest(run.data.store[i], predictions[i].attention, 0.25)
    stays[i] = len(rest) / len(run.data.store[i]), generate(run.model, run.vocabulary, *pad_frames([rest]), run.decode)[0][0]
same = [i for i in stays if stays[i][1].words == predictions[i].words]
if stays:
    hidden = 1 - np.mean([share for share, _ in stays.values()])
    print(f"{hidden:.0%} of the frames carry a quarter of the attention; {len(same)} of {len(stays)} captions stay as they were")
for i in [*same[:2], *[i for i in stays if i not in same][:2]]:
    print(f"{i}\n    all frames:  {predictions[i].caption}\n    without:     {stays[i][1].caption}")

# %% [markdown]
# **Your paragraph** Take one clip whose caption stays. The brightest frames are gone. Why can the caption stay, and what does that
# say about the picture of the attention? And what happened to the captions that did not stay?
#
# <!-- ### BEGIN SOLUTION -->
# Frames resemble their neighbours: what a hidden frame showed can be seen in the next frame of the same scene, so a scene's thing is
# named as long as one of its frames is left. The attention moves to the frames that are left. A bright frame says where the
# information was read, not that it could be read nowhere else. Where a whole short scene was hidden, its thing is gone from the
# caption, or the change is named wrongly, since a change needs several frames.
# <!-- ### END SOLUTION -->

# %% [markdown]
# ## Exercise 5.4 · Does an article look at its noun?
#
# English says *an* before a vowel sound and *a* otherwise: the article depends on a word that has not been said yet. Write
# `article_correlation(words, weights)` for a caption of L words with weights (L, T). It returns a list with one number for each *a*
# or *an* that has a word behind it: the correlation of its row with the row of that next word.
#
# - **Time** about 20 minutes, with the paragraph
# - **Hint** `np.corrcoef` of two rows is a matrix of 2 × 2; which entry is it?
# - **Expect** On the sample's test captions a mean of +0.15. Small, but above that of the word *before* the article (−0.12) and of
#   all other words (−0.26), each with the noun's row.


# %%
def article_correlation(words, weights):
    """Correlation of the row of each a or an with the row of the word behind it."""
    ### BEGIN SOLUTION
    positions = [t for t in range(len(words) - 1) if words[t] in ("a", "an")]
    return [float(np.corrcoef(weights[t], weights[t + 1])[0, 1]) for t in positions]
    ### END SOLUTION


# %%
check("5.4", article_correlation)
### BEGIN HIDDEN TESTS
three = np.array([[0.7, 0.2, 0.1], [0.7, 0.2, 0.1], [0.1, 0.2, 0.7]])
assert np.allclose(article_correlation(["an", "ant", "runs"], three), [1.0]), "equal rows"
assert article_correlation(["we", "a", "cat"], three)[0] < 0, "the row of a against that of cat"
assert len(article_correlation(["a", "a", "a"], three)) == 2, "the last word has no word behind it"
### END HIDDEN TESTS

# %% [markdown]
# The package has no such function; notebook 5 counts more pairs of words. The next cell uses yours, once it is right.

# %%
correlations = []
for hypothesis in predictions.values() if is_right("5.4") else ():
    if hypothesis.attention.shape[1] > 2 and hypothesis.attention.std(axis=1).min() > 1e-6:  # else there is no contrast
        correlations += article_correlation(hypothesis.words, hypothesis.attention)
print(f"{len(correlations)} articles" + (f", mean correlation {np.mean(correlations):+.2f}" if correlations else ": nothing counted"))

# %% [markdown]
# **Your paragraph** What does this say about *when* the model looks? Could an article do without looking?
#
# <!-- ### BEGIN SOLUTION -->
# The article's row is a little like the noun's, and the rows of all other words are not: when it says the article, the model begins
# to turn to the noun's frames, one word early. It has a reason: which article is right depends on the noun, so something of the noun
# has to be known by then. So even a function word, which names nothing that can be seen, can depend on what is seen. But +0.15 is
# little, and nearly all nouns here take *a*: a model that does not look could say *a* each time and would mostly be right.
# <!-- ### END SOLUTION -->
#
# That was the last exercise. Notebook 5 ends with questions that go on from here.
