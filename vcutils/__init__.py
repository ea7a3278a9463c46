"""Video captioning with attention: the code that the five notebooks share.

The lesson, in reading order: config, corpus, video, features, vocab, dataset, model, decode, train. The folders serve
it: scores (how good are captions), attention (what did the model look at), corpora (the sample, published formats, the
doctor), runtime (what makes it fast and safe).

Shape letters used in every docstring: B clips in a batch · K captions per clip · N = B·K · T frames · L words ·
D feature size · E embedding · H hidden · A attention · C context · V vocabulary.
"""

__version__ = "0.1.0"
