"""Video captioning with attention: the code that the five notebooks share.

Data flows one way, and each module imports only from those left of it:

    config → sample → corpus → video → extract → store → vocab → dataset → model → decode → ptb → metrics → train
           → evaluate → attention → trust → page → explorer → cli

Shape letters used in every docstring: B clips in a batch · K captions per clip · N = B·K · T frames · L words ·
D feature size · E embedding · H hidden · A attention · V vocabulary.
"""

__version__ = "0.1.0"
