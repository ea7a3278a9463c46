# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 4 · How good are the captions?
#
# **Goal** Caption clips that the model has never seen, score them by the published protocol, and learn what such a
# score does and does not say.
#
# | reads | writes | CPU, sample corpus | GPU, full MSVD |
# |---|---|---|---|
# | `runs/default/best/`, `runs/control/best/` | `predictions_test.json`, `metrics_test.json` | seconds | under a minute (not measured) |
#
# **You will**
# - watch a caption being written, one word at a time;
# - compute BLEU by hand for one caption and check it against the toolkit;
# - read the model's scores between a floor and a human line.

# %%
# %matplotlib inline
import json
import math
from collections import Counter

from IPython.display import Markdown, display

from vcutils.config import Config
from vcutils.corpora import open_run
from vcutils.dataset import pad_frames
from vcutils.decode import generate
from vcutils.scores import coco as metrics
from vcutils.scores.ablations import ablation_table
from vcutils.scores.baselines import PUBLISHED_MSVD
from vcutils.scores.ptb import ptb_words
from vcutils.scores.report import evaluate, plot_examples

config = Config.from_env()
run = open_run(config.artifacts / "runs" / "default")
test = run.data.splits["test"]
print(f"{len(test)} test clips, {len(run.vocabulary)} words, features {run.data.store.folder.name}")

# %% [markdown]
# ## Writing a caption
#
# - In training the model read the true previous word. Now it reads its *own*: one mistake can lead to the next.
# - Greedy search takes the most probable word each time and stops at `<end>`.

# %%
video_id = test[0]
features, frame_mask = pad_frames([run.data.store[video_id]])
device = next(run.model.parameters()).device
hypothesis = generate(run.model, run.vocabulary, features.to(device), frame_mask.to(device), config.decode)[0][0]
for word, log_prob in zip(hypothesis.words, hypothesis.word_log_probs, strict=True):
    print(f"{word:<12} {math.exp(log_prob):6.1%} {'█' * int(30 * math.exp(log_prob))}")
print("attention:", hypothesis.attention.shape, "one row per word over", features.shape[1], "frames; <end> apart")

# %% [markdown]
# ## One score by hand: BLEU
#
# - For n = 1 to 4: which share of the caption's n-grams occurs in *any* of the clip's references?
# - An n-gram counts at most as often as in the reference that has most of it, so that *the the the* wins nothing.
# - BLEU-4 is the geometric mean of the four shares; captions shorter than their references are punished.

# %%
def ngrams(words: list[str], n: int) -> Counter:
    """All n-grams of a caption with their counts."""
    return Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))


words = ptb_words(hypothesis.caption)
references = [ptb_words(caption) for caption in run.data.captions[video_id]]
for n in range(1, 5):
    known = Counter()
    for reference in references:
        known |= ngrams(reference, n)  # the most that any reference has
    found = ngrams(words, n)
    matched = sum((found & known).values())
    print(f"{n}-grams: {matched} of {sum(found.values())} occur in a reference")

# %%
shares = []
for n in range(1, 5):
    pairs = []
    for i, h in run.predict(test, config.decode).items():
        known = Counter()
        for caption in run.data.captions[i]:
            known |= ngrams(ptb_words(caption), n)
        found = ngrams(h.words, n)
        pairs.append((sum((found & known).values()), sum(found.values())))
    shares.append(sum(m for m, _ in pairs) / max(1, sum(t for _, t in pairs)))
print("share of matched n-grams over all test clips:", [f"{share:.2f}" for share in shares])

# %% [markdown]
# BLEU pools the counts over the whole test split before it divides: it is a score of a corpus, not of a caption. One
# caption of three words has no 4-gram at all and would get zero, however right it is.
#
# ## The table
#
# - Everything is scored with the COCO caption protocol: its tokenizer, all references, BLEU, METEOR, ROUGE-L, CIDEr.
# - METEOR needs Java and is left out, with a dash, where there is none.

# %%
result = evaluate(run, "test", config.decode)
control = evaluate(open_run(config.artifacts / "runs" / "control"), "test", config.decode)
by_hand = math.prod(shares) ** 0.25
print(f"BLEU-4 by hand, without length penalty: {100 * by_hand:.1f}; toolkit: {100 * result['scores']['Bleu_4']:.1f}")
if all(shares):
    assert by_hand + 1e-6 >= result["scores"]["Bleu_4"], "the length penalty can only lower it"
else:
    print("A share is zero, and so is the product. The toolkit puts a tiny number in its place, so its score may be above 0.")

# %%
rows = {"**this model**": result["scores"]}
if result["seeds"]:
    rows |= {"mean over the seeds": result["seeds"]["mean"], "± sd": result["seeds"]["sd"]}
rows |= {"trained on other clips' features": control["scores"], **result["baselines"]}
names = list(result["scores"])
table = ["| × 100 | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
for name, scores in rows.items():
    cells = ["–" if scores.get(n) is None else f"{100 * scores[n]:.1f}" for n in names]
    table.append(f"| {name} | " + " | ".join(cells) + " |")
display(Markdown("\n".join(table)))

# %% [markdown]
# How to read it, from the bottom of the scale upwards:
#
# - **constant caption**: one sentence for every clip. High here means that the metric rewards common phrases.
# - **trained on other clips' features**: knows the language and cannot see. What the model has above this line, it has
#   from the frames.
# - **other clips' features**: the trained model shown the wrong clip. It should fall to the floor.
# - **nearest training clip**: no language model at all, just the caption of the most similar clip.
# - **one reference against the others**: what a person gets who describes the same clip in their own words (left out
#   where clips have one reference only). On a corpus with regular language (such as the sample, whose five references are
#   written by rule) a model can score above it, and that does not make it better than a person: it writes like the
#   average of the references.

# %%
for key, value in result["protocol"].items():
    print(f"{key:>20}: {value}")

# %% [markdown]
# A score without these lines cannot be compared with anybody's: another split, fewer references or another tokenizer
# moves it by more than most papers claim as progress.
#
# ## Where one stands
#
# - These are published results on MSVD's official test split: BLEU-4, METEOR, ROUGE-L and CIDEr. They are comparable
#   only with a run on that corpus and split, and even there the features differ from row to row.
# - The human line is the one to remember: a person's caption, scored against the other people's.

# %%
table = ["| MSVD test, × 100 | BLEU-4 | METEOR | ROUGE-L | CIDEr |", "|---|---|---|---|---|"]
table += [f"| {name} | {' | '.join(map(str, scores))} |" for name, scores in PUBLISHED_MSVD.items()]
display(Markdown("\n".join(table)))

# %% [markdown]
# ## What is each part worth?
#
# - Take one part away, train again, score on the *validation* split: the difference is what the part was worth here.
# - That takes a training per row and seed, so it is a command of its own: `python -m vcutils ablate CORPUS --seeds 3`.

# %%
measured = config.artifacts / "ablations.json"
if measured.is_file():
    ablations = json.loads(measured.read_text(encoding="utf-8"))
    print(", ".join(f"{key}: {value}" for key, value in ablations["protocol"].items()))
    display(Markdown(ablation_table(ablations)))
else:
    print("Not measured on this machine yet: python -m vcutils ablate", config.corpus_dir.name)

# %% [markdown]
# Read each row as "without it". A row near zero says that this corpus does not need the part, not that the part is
# useless: a clip of a few seconds with two or three scenes is told by four frames as well as by sixteen.
#
# ## The captions themselves
#
# - Scores hide what kind of mistakes are made. Look at the best and the worst.

# %%
predictions = run.predict(test, config.decode)
captions = {i: h.caption for i, h in predictions.items()}
per_clip = metrics.score_per_clip(captions, {i: run.data.captions[i] for i in test}, ("CIDEr",))
ranked = sorted(test, key=lambda i: per_clip[i]["CIDEr"])
plot_examples(run, predictions, ranked[::-1][:3])

# %%
plot_examples(run, predictions, ranked[:3])

# %% [markdown]
# The first picture shows the three captions with the highest CIDEr, the second the three with the lowest. Ask of each
# mistake: was the thing not seen, seen and not named, or named in words that no reference uses?
#
# ## Recap
#
# - Captions are written from the model's own words; that is what must be measured.
# - A score needs its protocol, a floor, a control that cannot see, and a human line.
# - Nothing of the test split was used to choose anything.
#
# ## Exercises
#
# 1. Score the test clips against one reference each, not all. How many points does BLEU-4 lose?
# 2. Write a caption by hand that gets a high BLEU-4 and is wrong about the clip.
# 3. Evaluate on the train split. What does the difference to the test split tell you?
#
# **Next:** [5 · Attention](05_attention.ipynb)
