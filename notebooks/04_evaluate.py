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
# **Goal** Let the model caption clips that it has never seen, score the captions by the published protocol, and learn
# what such a score does and does not say.
#
# | reads | writes | CPU, sample corpus | GPU, full MSVD |
# |---|---|---|---|
# | `runs/default/best/`, `runs/control/best/` | `predictions_test.json`, `metrics_test.json` | under a minute | a few minutes (not measured) |
#
# **You will**
# - write greedy search and beam search yourself, and check that they find the package's captions;
# - see what beam search does to the style of captions;
# - compute BLEU and CIDEr by hand, equal to the COCO toolkit's numbers;
# - read the model's scores between a floor, a control that cannot see and a human line;
# - see how far such scores agree with people.

# %%
# %matplotlib inline
import dataclasses
import json
import math
import os
from collections import Counter

import torch
from IPython.display import Markdown, display

from vcutils.attention.measures import read_events
from vcutils.config import PROJECT_ROOT, Config
from vcutils.corpora import open_run
from vcutils.corpora.sample import form_of
from vcutils.course.pictures import beam_tree
from vcutils.dataset import pad_frames
from vcutils.decode import NEVER, captions_of, generate
from vcutils.scores import coco
from vcutils.scores.ablations import ablation_table
from vcutils.scores.baselines import PUBLISHED_MSVD, constant_caption, training_captions
from vcutils.scores.diagnostics import MEASURES
from vcutils.scores.naming import naming
from vcutils.scores.ptb import ptb_words_of_all
from vcutils.scores.report import evaluate, plot_examples
from vcutils.scores.runs import sister_runs
from vcutils.vocab import END, START

config = Config.from_env()
coco.start_meteor()  # a Java program that one of the scores needs; it takes ten seconds to start
run = open_run(config.artifacts / "runs" / "default")
blind = open_run(config.artifacts / "runs" / "control")  # trained on other clips' features: it cannot see
model, vocabulary, store, test = run.model.eval(), run.vocabulary, run.data.store, run.data.splits["test"]
device = next(model.parameters()).device
print(f"{len(test)} test clips, {len(vocabulary)} words, features {store.folder.name}")
print(run.decode)


def show_table(columns: list[str], rows: dict[str, list[str]]) -> None:
    """Display rows of cells under their columns; the first column holds the rows' names."""
    lines = [columns, ["---"] * len(columns), *([name, *cells] for name, cells in rows.items())]
    display(Markdown("\n".join(f"| {' | '.join(line)} |" for line in lines)))


# %% [markdown]
# ## Writing a caption: greedy search
#
# - In training the model read the *true* previous word, whatever it would have said: **teacher forcing**. Now there is
#   no true word. It reads its *own* previous word: **free running**. One wrong word can lead to the next.
# - At every step the model gives each word of the vocabulary a logit, and softmax makes them probabilities. We keep their
#   natural logarithms, the **log-probabilities**, in nats: 0 is certain, $\ln \frac{1}{2} \approx -0.69$ is one in two.
# - The log-probability of a caption is the sum over its words, `<end>` included. A sum is safer than a product of many
#   small numbers.
# - **Greedy search** takes the most probable word each time and stops at `<end>`.
#
# Two helpers do what both searches of this notebook need. `encode` is called once per clip, `next_word` once per word.
# Shapes: T frames of a clip, D numbers per frame, V words in the vocabulary. Some words may not be said: `<pad>`,
# `<start>`, `<unk>`, and `<end>` as the first word.


# %%
@torch.no_grad()
def encode(video_id: str):
    """The memory of one clip: its encoded frames."""
    features, frame_mask = pad_frames([store[video_id]])  # (1, T, D), (1, T)
    return model.encode(features.to(device), frame_mask.to(device))


@torch.no_grad()
def next_word(memory, state, word: int):
    """Log-probabilities (V,) of the word after `word`, and the decoder's new state."""
    state, logits, _ = model.decoder.step(torch.tensor([[word]], device=device), state, memory)
    log_probs = logits[0, 0].log_softmax(dim=-1)
    log_probs[[*NEVER, END] if word == START else NEVER] = -math.inf
    return log_probs, state


# %% [markdown]
# **Predict** before you run the next cell: at which word will the model be least sure, and why there?

# %%
memory = encode(test[0])
state, word, chosen = model.decoder.start(memory, 1), START, []
while word != END and len(chosen) < run.decode.max_length:
    log_probs, state = next_word(memory, state, word)
    best = log_probs.topk(3)
    word = int(best.indices[0])  # greedy: the most probable word
    probs, names = best.values.exp().tolist(), [vocabulary.words[i] for i in best.indices.tolist()]
    chosen.append((probs[0], names[0]))
    others = f"then {names[1]} {probs[1]:.1%}, {names[2]} {probs[2]:.1%}"
    print(f"{names[0]:<12} {probs[0]:6.1%} {'█' * int(20 * probs[0]):<20}  {others}")
print("least sure at “{1}”: {0:.1%}".format(*min(chosen)))

# %% [markdown]
# A low bar has one of two causes. Either several wordings are right, as at the beginning of a sentence, and no frame can
# tell which one the references took. Or the model is not sure what the frames show. The second and third words tell
# which of the two it is (between *a* and *an*, it is the thing behind them that the model is not sure of).
#
# The same loop as a function, and the package's form beside it: `generate` with a beam of `1` is greedy search.


# %%
def greedy_search(video_id: str) -> list[str]:
    """The caption of a clip: the most probable word each time, until <end>."""
    memory = encode(video_id)
    state, word, words = model.decoder.start(memory, 1), START, []
    while len(words) < run.decode.max_length:
        log_probs, state = next_word(memory, state, word)
        word = int(log_probs.argmax())
        if word == END:
            break
        words.append(vocabulary.words[word])
    return words


def package_search(video_id: str, beam_size: int):
    """The best hypothesis of the package for one clip."""
    settings = dataclasses.replace(run.decode, beam_size=beam_size, no_repeat_ngram=None)
    return generate(model, vocabulary, *pad_frames([store[video_id]]), settings)[0][0]


for video_id in test[:5]:
    assert greedy_search(video_id) == package_search(video_id, beam_size=1).words
    print(f"{video_id}, equal to the package's: {' '.join(greedy_search(video_id))}")

# %% [markdown]
# ## Beam search
#
# - Greedy search never takes a word back. A slightly less probable word now can lead to a much more probable caption.
# - A **hypothesis** is the beginning of a caption with its log-probability. **Beam search** keeps the k most probable
#   hypotheses, the **beam**, and lets each of them go on. k = 1 is greedy search.
# - Every further word makes a caption less probable, so a plain comparison would favour short captions. Ended captions
#   are ranked by log-probability / length ** penalty, the **ranking score**; `<end>` counts as a word. A length penalty
#   of `1` gives the mean log-probability per word.


# %%
def beam_search(video_id: str, k: int, penalty: float, max_length: int):
    """The best caption of a clip, its ranking score, and the candidates of every step (for a picture)."""
    memory = encode(video_id)
    alive = [(0.0, [START], model.decoder.start(memory, 1))]  # log-probability, words, decoder state
    ended, steps = [], []
    for length in range(1, max_length + 1):
        candidates = []
        for beam, (total, words, state) in enumerate(alive):
            log_probs, new_state = next_word(memory, state, words[-1])
            best = log_probs.topk(k + 1)  # one of them may be <end>
            for log_prob, word in zip(best.values.tolist(), best.indices.tolist(), strict=True):
                candidates.append((total + log_prob, [*words, word], new_state, beam))
        candidates.sort(key=lambda candidate: -candidate[0])
        is_end = [words[-1] == END for _, words, *_ in candidates]
        going_on = [n for n, end in enumerate(is_end) if not end][:k]
        for total, words, *_ in [c for c, end in zip(candidates[:k], is_end, strict=False) if end]:
            ended.append((total / length**penalty, words))  # an <end> counts only among the k best
        ended.sort(key=lambda hypothesis: -hypothesis[0])
        steps.append([])
        for n, (total, words, _, beam) in enumerate(candidates[: 2 * k]):
            kept = n in going_on or (is_end[n] and n < k)
            steps[-1].append((beam, vocabulary.words[words[-1]], total, kept, is_end[n]))
        alive = [candidates[n][:3] for n in going_on]
        if len(ended) >= k and ended[k - 1][0] >= alive[0][0] / length**penalty:
            break  # what is still being written is likely no better than what has ended
    score, words = ended[0] if ended else (alive[0][0] / length**penalty, alive[0][1])
    return [vocabulary.words[i] for i in words if i not in (START, END)], score, steps


k, penalty, max_length = run.decode.beam_size, run.decode.length_penalty, run.decode.max_length
for video_id in test[:8]:
    for beam_size in (1, 2, 3, k):
        words, score, _ = beam_search(video_id, beam_size, penalty, max_length)
        package = package_search(video_id, beam_size)
        assert words == package.words and math.isclose(score, package.score, rel_tol=1e-4)
    print(f"{video_id}, beam {k}, equal to the package's: {score:.2f} {' '.join(words)}")

# %% [markdown]
# The number before each caption is its ranking score. Now the search itself, as a tree, with k = 3 and the first words of
# one caption. Blue hypotheses were kept, white ones were dropped (pruned).

# %%
shortest = min(test, key=lambda i: len(greedy_search(i)))
words, score, steps = beam_search(shortest, 3, penalty, max_length)
print(f"{shortest}: {' '.join(words)} ({score:.2f})")
beam_tree(steps[:7], penalty)

# %% [markdown]
# Follow the thick path, the best one as far as the tree goes. Then look at a branch that ends in white boxes: its
# probability is divided among several next words, and none of them stays among the k best. So a beginning dies where
# the next word is hard to know, and a beginning that goes on with easy words lives. Where the tree has two green ends,
# divide each log-probability by its number of words: the longer caption can win with the lower log-probability.
#
# ### What the beam does to the style of captions
#
# - A **sentence form** is a sentence with gaps for what is seen, such as *we see … and then …*. A form that many captions
#   share gathers probability; many wordings of one thing divide it among them.
# - We look at the validation split. The test split must not choose a setting.
#
# **Predict** With a wider beam, will captions become more different from each other, or more alike?

# %%
val = run.data.splits["val"]
val_references = [caption for i in val for caption in run.data.captions[i]]
knows_forms = None not in map(form_of, val_references)  # the sample's sentences are written in known forms


def top_form(captions: list[str]) -> float | None:
    """The share of the most frequent sentence form; None where the corpus has no known forms."""
    forms = Counter(form for form in map(form_of, captions) if form is not None)
    return max(forms.values(), default=0) / len(captions) if knows_forms else None


def style(captions: list[str]) -> list[str]:
    """Words per caption, different captions, different beginnings, share of the most frequent form."""
    words, top = sum(len(caption.split()) for caption in captions) / len(captions), top_form(captions)
    beginnings = {tuple(caption.split()[:3]) for caption in captions}
    different = f"{len(set(captions))} of {len(captions)}"
    return [f"{words:.1f}", different, str(len(beginnings)), "–" if top is None else f"{top:.0%}"]


# %%
found, rows = {}, {}
for beam in sorted({1, 2, 5, k}):
    hypotheses = run.predict(val, dataclasses.replace(run.decode, beam_size=beam)).values()
    found[beam] = [h.caption for h in hypotheses]
    means = (sum(h.log_prob for h in hypotheses) / len(val), sum(h.score for h in hypotheses) / len(val))
    rows[f"beam {beam}"] = [*(f"{mean:.2f}" for mean in means), *style(found[beam])]
rows["the references"] = ["–", "–", *style(val_references)]
columns = ["mean log-probability", "mean ranking score", "mean words", "different captions"]
show_table(["search", *columns, "different first three words", "most frequent sentence form"], rows)

# %%
greedy, wide, written = (sum(map(len, map(str.split, c))) / len(c) for c in (found[1], found[5], val_references))
print(f"words per caption: greedy search {greedy:.1f}, beam 5 {wide:.1f}, references {written:.1f}")
greedy, wide = (len({tuple(caption.split()[:3]) for caption in found[beam]}) for beam in (1, 5))
print(f"different first three words: {greedy} with greedy search, {wide} with beam 5")
if knows_forms:
    greedy, wide, written = map(top_form, (found[1], found[5], val_references))
    print(f"most frequent form: greedy search {greedy:.0%}, beam 5 {wide:.0%}, references {written:.0%}")
    print("beam search prefers a form" if wide > greedy + 0.05 else "no more preference for a form than greedy search")

# %% [markdown]
# Read the table from the left. A longer caption has a lower log-probability, so compare the ranking score: it is what the
# search improves on. It looks at nothing else. If the lengths of beam `5` come nearer to the references', the length penalty
# did it. If the captions become more alike, that is a price that the search does not see. There are several references
# per clip, so their counts of different captions and beginnings are higher anyway; lengths and forms can be compared.
#
# ## One score by hand: BLEU
#
# - A **reference** is a caption that the corpus has for the clip. Most clips have several, and all of them are right.
# - An **n-gram** is n words in a row. BLEU asks, for n = 1 to 4: which share of the caption's n-grams occurs in a
#   reference of the clip?
# - An n-gram counts at most as often as in the reference that has most of it, so that *the the the* wins nothing.
#
# Papers report the numbers of one program, the COCO toolkit, so ours must be equal to them. First one caption. Both sides
# are cut into words by the toolkit's own tokenizer (Penn Treebank, no punctuation).


# %%
def coco_words(captions: list[str]) -> list[list[str]]:
    """Captions as the COCO toolkit cuts them: it reads them as one text, and cuts at every blank."""
    return [" ".join(words).split() for words in ptb_words_of_all(captions)]


def ngrams(words: list[str], n: int) -> Counter:
    """All n-grams of a caption with their counts."""
    return Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))


def matches(words: list[str], references: list[list[str]], n: int) -> tuple[int, int]:
    """How many of a caption's n-grams some reference has, and how many it has in all."""
    known = Counter()
    for reference in references:
        known |= ngrams(reference, n)  # the most that any reference has
    return sum((ngrams(words, n) & known).values()), sum(ngrams(words, n).values())


predictions = run.predict(test, run.decode)
captions = dict(zip(test, coco_words([predictions[i].caption for i in test]), strict=True))
flat = iter(coco_words([caption for i in test for caption in run.data.captions[i]]))
references = {i: [next(flat) for _ in run.data.captions[i]] for i in test}
print("caption   ", " ".join(captions[test[0]]))
print(*["reference  " + " ".join(reference) for reference in references[test[0]]], sep="\n")
for n in range(1, 5):
    matched, total = matches(captions[test[0]], references[test[0]], n)
    print(f"{n}-grams: {matched} of {total} occur in a reference")

# %% [markdown]
# Now the whole test split. BLEU adds up the counts of all clips before it divides: it is a score of a corpus, not of a
# caption. BLEU-4 is the geometric mean of the four shares $p_1, \ldots, p_4$, times the **brevity penalty** BP:
#
# $$\text{BLEU-4} = \text{BP} \cdot (p_1\, p_2\, p_3\, p_4)^{1/4} \qquad \text{BP} = \min(1,\; e^{1 - r/c})$$
#
# Here c is the number of words in all captions, and r the number of words in the references that are closest in length,
# one for each caption (of two equally close ones the shorter).


# %%
def bleu(captions: dict, references: dict) -> tuple[list[float], list[float], float]:
    """BLEU-1 … BLEU-4 of a corpus, the four shares, and the brevity penalty."""
    c = sum(map(len, captions.values()))
    r = 0
    for i, words in captions.items():
        r += min((abs(len(reference) - len(words)), len(reference)) for reference in references[i])[1]
    brevity = min(1.0, math.exp(1 - r / c))
    scores, shares, product = [], [], 1.0
    for n in range(1, 5):
        counts = [matches(captions[i], references[i], n) for i in captions]
        matched, total = (sum(column) for column in zip(*counts, strict=True))
        shares.append((matched + 1e-15) / (total + 1e-9))  # as the toolkit: never 0, never 0 / 0
        product *= shares[-1]
        scores.append(brevity * product ** (1 / n))
    print(f"{c} words against {r} in the closest references")
    return scores, shares, brevity


toolkit = coco.References({i: run.data.captions[i] for i in test}).score(captions_of(predictions), ("Bleu", "CIDEr"))
scores, shares, brevity = bleu(captions, references)
print("shares:", [f"{share:.4f}" for share in shares], f"brevity penalty {brevity:.4f}")
for n, by_hand in enumerate(scores, start=1):
    print(f"BLEU-{n} by hand {by_hand:.4f}, toolkit {toolkit[f'Bleu_{n}']:.4f}")
    assert abs(by_hand - toolkit[f"Bleu_{n}"]) < 5e-5

# %% [markdown]
# Equal to four decimals.
#
# **Predict** Cut every caption after its first five words. Will the shares rise or fall? And BLEU-4?

# %%
cut = {i: words[:5] for i, words in captions.items()}
for name, bleus, parts, factor in (("whole", scores, shares, brevity), ("cut", *bleu(cut, references))):
    print(f"{name:>5}: shares {[f'{p:.2f}' for p in parts]}, brevity penalty {factor:.2f}, BLEU-4 {bleus[3]:.3f}")

# %% [markdown]
# The shares ask only whether what is said is right, never whether all is said: a caption that stops early can keep high
# shares. The brevity penalty is the only thing in BLEU that a short caption has to fear.
#
# A caption of three words has no 4-gram. Alone it would get a BLEU-4 of zero, however right it is: one more reason to add
# up the counts of all clips first.
#
# ## Another score by hand: CIDEr
#
# - For BLEU, *a* is worth as much as *rocket*. CIDEr weighs every n-gram by how rare it is among the clips: its inverse
#   document frequency, **idf** = ln(number of clips / clips whose references have the n-gram).
# - A caption becomes a vector with an entry per n-gram: its count times its idf. Two captions are compared by the
#   **cosine** of their vectors: 1 for the same direction, 0 for nothing in common.
# - The mean over n = 1 to 4 and over the references, times 10, is the clip's CIDEr. The corpus' CIDEr is the mean over
#   the clips.
#
# **Predict** In the model's caption of the first test clip, which word will weigh most, and which nothing?

# %%
clips_with = Counter()  # of each n-gram: how many clips have it in their references
for i in test:
    clips_with.update({gram for reference in references[i] for n in range(1, 5) for gram in ngrams(reference, n)})


def tfidf(words: list[str], n: int) -> dict[tuple, float]:
    """Weight of each n-gram of a caption: its count times its idf."""
    return {gram: m * math.log(len(test) / max(1, clips_with[gram])) for gram, m in ngrams(words, n).items()}


def cosine(caption: list[str], reference: list[str], n: int) -> float:
    """Cosine of two captions' n-gram vectors; a weight counts at most as much as the reference's."""
    a, b = tfidf(caption, n), tfidf(reference, n)
    norms = math.sqrt(sum(w * w for w in a.values()) * sum(w * w for w in b.values()))
    return sum(min(a[g], b[g]) * b[g] for g in a.keys() & b.keys()) / norms if norms else 0.0


caption, reference = captions[test[0]], references[test[0]][0]
print("caption  ", " ".join(caption), "\nreference", " ".join(reference), "\n")
for n in (1, 2):
    a, b = tfidf(caption, n), tfidf(reference, n)
    for gram in sorted(a, key=lambda gram: -a[gram]):
        count, where = ngrams(caption, n)[gram], "in both" if gram in b else ""
        print(f"{' '.join(gram):<24} {count} × idf {a[gram] / count:.2f} = {a[gram]:.2f}  {where}")
    print(f"cosine of the {n}-gram vectors: {cosine(caption, reference, n):.3f}\n")

# %% [markdown]
# A word that the references of every clip have weighs nothing. The words that tell this clip from the others decide.
#
# Everybody reports a variant, CIDEr-D. It has two additions, so that nobody wins by repeating words: the `min` in
# `cosine`, and a factor $e^{-d^2/72}$ where caption and reference differ by d words in length. That is all of it:


# %%
def cider_d(caption: list[str], references: list[list[str]]) -> float:
    """CIDEr-D of one caption: 10 times the mean over its references and over n = 1 to 4."""
    total = 0.0
    for reference in references:
        length = math.exp(-((len(caption) - len(reference)) ** 2) / (2 * 6**2))
        total += length * sum(cosine(caption, reference, n) for n in range(1, 5)) / 4
    return 10 * total / len(references)


by_hand = {i: cider_d(captions[i], references[i]) for i in test}
of_test = {i: run.data.captions[i] for i in test}
per_clip = {i: row["CIDEr"] for i, row in coco.score_per_clip(captions_of(predictions), of_test, ("CIDEr",)).items()}
assert all(abs(by_hand[i] - per_clip[i]) < 1e-4 for i in test)
mean = sum(by_hand.values()) / len(test)
assert abs(mean - toolkit["CIDEr"]) < 1e-4
print(f"CIDEr of {test[0]} by hand {by_hand[test[0]]:.4f}, toolkit {per_clip[test[0]]:.4f}")
print(f"CIDEr of all clips by hand {mean:.4f}, toolkit {toolkit['CIDEr']:.4f}")
itself = cider_d(reference, [reference])
print(f"a caption against itself: {itself:.2f}, × 100 = {100 * itself:.0f}")

# %% [markdown]
# CIDEr's scale ends at 10, since the cosine is multiplied by 10. Tables show all scores × 100, so a CIDEr above 100 is
# nothing unusual, and it is not a percentage.
#
# ## The table
#
# - Everything is scored with the COCO caption protocol: its tokenizer, all references, and four scores.
# - Two of them are new. **METEOR** aligns caption and reference word by word, also by stem, synonym and paraphrase. It
#   needs Java and is left out, with a dash, where there is none. **ROUGE-L** measures the longest sequence of words that
#   both have in the same order, with gaps.

# %%
result = evaluate(run, "test", run.decode)
blind_captions = captions_of(blind.predict(test, run.decode))
control = coco.References(of_test).score(blind_captions)
lines = {"**this model**": result["scores"]}
if result["seeds"]:
    lines[f"mean over {len(result['protocol']['seeds'])} seeds"] = result["seeds"]["mean"]
    lines["± sd over the seeds"] = result["seeds"]["sd"]
lines |= {"control, trained on other clips' features": control, **result["baselines"]}
names = list(result["scores"])
rows = {}
for name, values in lines.items():
    rows[name] = ["–" if values.get(n) is None else f"{100 * values[n]:.1f}" for n in names]
show_table(["× 100", *names], rows)

# %% [markdown]
# What each line is:
#
# - **constant caption**, the floor: one sentence for every clip, the best that can be found in the training captions.
#   Whatever a score gives to it, it gives for common phrases.
# - **control, trained on other clips' features**: it has learned the language and cannot see. What the model has above
#   this line, it has from the frames.
# - **other clips' features**: the trained model shown the wrong clip. It describes that other clip in good sentences, so
#   what is left is what wording alone earns.
# - **nearest training clip**: no language model at all, just a caption of the training clip with the most similar
#   features.
# - **one reference against the others**, the human line: what a person gets who describes the same clip in their own
#   words. It is left out where clips have one reference only. It has one reference less to match than the model has.

# %%
human = result["baselines"].get("one reference against the others")
for name, line in {"control": control, **result["baselines"]}.items():
    differences = [f"{n} {100 * (result['scores'][n] - line[n]):+.1f}" for n in ("Bleu_4", "CIDEr")]
    print(f"this model against {name}: {', '.join(differences)}")
if human and result["scores"]["CIDEr"] > human["CIDEr"]:
    text = """The model is above the human line in CIDEr. That does not make it better than a person. The human
line scores one reference per clip, drawn by chance, and a right caption in an unusual wording shares few n-grams
with the others. The model always takes the wording that it finds most probable, and common wordings share n-grams
with many references. Whether a caption is *right* is another question: see "Are the right things named?" below."""
elif human:
    text = """The model is below the human line in CIDEr: a reference has more in common with the other references
than the model's caption has."""
else:
    text = "There is no human line: clips have one reference only."
display(Markdown(text))

# %% [markdown]
# How much of this is chance? A run with another seed starts from other random numbers and sees the clips in another order.

# %%
folder = os.path.relpath(config.corpus_dir, PROJECT_ROOT)
folder = str(config.corpus_dir) if folder.startswith("..") else folder
if result["seeds"]:
    others = [sister.predict(test, run.decode) for sister in sister_runs(run)]
    alike = sum(all(other[i].words == predictions[i].words for other in others) for i in test)
    print(f"{len(others) + 1} seeds; {alike} of {len(test)} captions are the same in all of them")
    text = """`± sd` is the standard deviation over the seeds: how far the score moves when only the random start
changes. A value of 0.0 does not mean that the score is exact: these runs write captions of equal worth, and the count
above says how many are the same word for word. All seeds are scored on the same clips, so what other clips would
change is not in it."""
else:
    print(f"one seed. For more: python -m vcutils train {folder} --seeds 3 --resume")
    text = """With one seed, a difference of a few points may be chance. After that command, the table above shows
the mean and the standard deviation over the seeds as well."""
display(Markdown(text))

# %%
for key, value in result["protocol"].items():
    print(f"{key:>20}: {value}")

# %% [markdown]
# A score without these lines cannot be compared with anybody's: another split, fewer references or another tokenizer
# can move it by more than most papers claim as progress.
#
# ## Where one stands
#
# - These are published results on MSVD's official test split: BLEU-4, METEOR, ROUGE-L and CIDEr. They are comparable
#   only with a run on that corpus and split, and even there the features differ from row to row.
# - The last row is the human line: a person's caption, scored against the other people's.

# %%
published = {name: [str(score) for score in scores] for name, scores in PUBLISHED_MSVD.items()}
show_table(["MSVD test, × 100", "BLEU-4", "METEOR", "ROUGE-L", "CIDEr"], published)

# %% [markdown]
# GIT-L stands above that line in all four scores. That alone does not show that it describes clips better than a person
# does: the scores compare wordings.
#
# ## What is each part worth?
#
# - Take one part away, train again, score on the *validation* split: the difference is what the part was worth here.
# - That takes a training per row and seed, so it is a command of its own.

# %%
measured = config.artifacts / "ablations.json"
if measured.is_file():
    ablations = json.loads(measured.read_text(encoding="utf-8"))
    print(", ".join(f"{key}: {value}" for key, value in ablations["protocol"].items()))
    text = """Read each row as "without it". A row near zero in the last column says that this corpus does not need
the part, not that the part is useless. A difference smaller than the ± beside it proves nothing."""
    display(Markdown(ablation_table(ablations)), Markdown(text))
else:
    print(f"not measured on this machine. To measure it: python -m vcutils ablate {folder} --seeds 2")

# %% [markdown]
# ## Are the right things named?
#
# - No score above asks whether a caption is *right*. A corpus that knows its events can answer that: the sample was
#   rendered from a plan, and `events.json` says what each clip shows.
# - The same numbers for the control and for the constant caption show what can be had without looking.

# %%
ground_truth = run.data.root / "events.json"
if ground_truth.is_file():
    events = read_events(ground_truth)
    systems = {"this model": captions_of(predictions), "control that cannot see": blind_captions}
    systems["constant caption"] = dict.fromkeys(test, constant_caption(training_captions(run.data)))
    systems["the first reference of each clip"] = {i: run.data.captions[i][0] for i in test}
    rows = {}
    for name, said in systems.items():
        right, top = naming(said, events), top_form(list(said.values()))
        shares = [right["things"], right["changes"], right["complete"], top]
        words = sum(len(caption.split()) for caption in said.values()) / len(said)
        rows[name] = [*("–" if share is None else f"{share:.0%}" for share in shares), f"{words:.1f}"]
    columns = ["things right", "changes right", "three-scene clips complete", "most frequent form", "words per caption"]
    show_table(["test split", *columns], rows)
else:
    print("not available: this corpus has no events.json")

# %% [markdown]
# *Right* means: of all things (or changes) that the clips show, this share is named. *Complete* means that a clip of three
# scenes has all its things named. None of these shares minds a caption that also tells what the clip does not show. Compare
# the words per caption with the references', and look for such captions among those with the lowest CIDEr below.

# %% [markdown]
# ## What scores do not say
#
# - Are the captions varied? Copied from training? About *this* clip? The measures below ask that.
# - A *content word* is one that few training clips have in their captions (idf above `2`). TF-IDF weighs words as CIDEr does.
# - Each number stands beside that of the floor and of the human line, with a dash where it means nothing.

# %%
diagnosed, rows = result["diagnostics"], {}
for name, (factor, decimals, meaning) in MEASURES.items():
    values = [line[name] for line in diagnosed.values()]
    rows[name] = [*("–" if value is None else f"{factor * value:.{decimals}f}" for value in values), meaning.replace("|", "\\|")]
show_table(["measure", *diagnosed, "what it is"], rows)

# %% [markdown]
# - `clip_nats` and `retrieved` ask whether a caption is about its own clip: 0 nats would mean that it fits another one as
#   well. A corpus with clips that look alike makes both harder, also for people.
# - `best_of_beam` is what could be won if the references chose among the beams: the search has found better captions than
#   the one that it ranks first.
# - Few different words and a high `self_bleu` mean captions that are alike, whatever their scores.

# %% [markdown]
# ## The captions themselves
#
# - Scores hide what kind of mistakes are made. Look at the best and the worst, by CIDEr, with all their references.

# %%
ranked = sorted(test, key=lambda i: -per_clip[i])
print("highest CIDEr × 100:", [round(100 * per_clip[i]) for i in ranked[:3]])
plot_examples(run, predictions, ranked[:3])

# %%
print("lowest CIDEr × 100:", [round(100 * per_clip[i]) for i in ranked[::-1][:3]])
plot_examples(run, predictions, ranked[::-1][:3])

# %% [markdown]
# For each caption look for the reference whose wording it shares. Then ask of each mistake: was the thing not seen, seen
# and not named, or named in words that no reference uses? A caption of the third kind is right and scores low.
#
# ## How far do the scores agree with people?
#
# - People can be asked to mark captions. A good score puts captions into the same order as they do.
# - **Kendall's tau-b** takes every pair of captions and asks whether the score and the people put the same one first:
#   × 100, it is 100 when they always do, 0 when they agree no more often than by chance, and it makes allowance for ties.
#
# **Predict** Which of the scores in this notebook agrees best with people? Does any agree with a person as well as a second
# person does?

# %%
CLIPS, CAPTION_WORDS, REFERENCE_WORDS = 197, 35, 7  # MSVD test clips, marked by two raters
AGREEMENT = {  # Kendall's tau-b × 100 with the overall mark, and its interval where it was measured
    "METEOR": (46.6, (38.7, 53.7)),
    "BLEU-2": (44.4, None),
    "BLEU-1": (41.6, None),
    "ROUGE-L": (40.5, None),
    "CIDEr": (38.0, (30.5, 44.5)),
    "BLEU-4": (34.7, (25.7, 42.5)),
    "one rater with the other": (74.5, None),
}
print(f"{CLIPS} clips; the marked captions have {CAPTION_WORDS} words, the references {REFERENCE_WORDS}")
rows = {n: [str(tau), "–" if not span else f"{span[0]} to {span[1]}"] for n, (tau, span) in AGREEMENT.items()}
show_table(["agreement with the overall mark", "tau-b × 100", "interval"], rows)

# %% [markdown]
# Measured with this package on 197 MSVD test clips with human marks (two raters; the MSVD-Eval marks published with
# G-VEval).
#
# - METEOR agrees best of these. Its interval overlaps with those of CIDEr and BLEU-4, so the order is not certain.
# - No score comes near the agreement of the two raters, 74.5. The best has 46.6.
# - The marked captions are much longer than the references: 35 words against 7. For captions of the references' length
#   the numbers may differ.
#
# So a score is one witness among several. Look at the captions, too.
#
# ## Recap
#
# - Captions are written from the model's own words (free running); that is what must be measured.
# - Beam search looks for more probable captions than greedy search finds; look at what it does to their style.
# - BLEU is shares of n-grams with a brevity penalty, CIDEr the cosine of vectors that weigh rare n-grams more.
# - A score needs its protocol, a floor, a control that cannot see, and a human line.
# - Nothing of the test split was used to choose anything.
#
# ## Exercises
#
# 1. Score the test clips against one reference each, not all: `bleu(captions, {i: references[i][:1] for i in test})`. How
#    many points does BLEU-4 lose, and which of its factors changes most?
# 2. Take a reference of `test[0]` and make it wrong: put another thing in the place of the one that it names. Score both
#    with `bleu({test[0]: words}, {test[0]: references[test[0]]})` and `cider_d(words, references[test[0]])`. Which of the
#    two scores minds the wrong word more, and why?
# 3. `evaluate(run, "train", run.decode)` scores clips that the model was trained on. What does the difference to the
#    test split tell you?
# 4. Compute the mean length of `beam_search(i, k, penalty, 24)[0]` over the validation clips for a `penalty` of `0`, `1`
#    and `2`. In which direction does the length move, and why?
#
# **Next:** [5 · Attention](05_attention.ipynb)
