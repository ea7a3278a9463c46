"""The captioner as data for captioner.js, which runs it inside a page.

All numbers are float16: a page must stay small. What such a page shows is what the model says once its weights and the
clips' features are rounded so; `rounded` makes that model, so that Python's captions and the page's are the same.
"""

import base64
import copy
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from vcutils.config import DecodeConfig, UserError
from vcutils.model import CaptionModel
from vcutils.runtime.frames import LONGEST, reading_order
from vcutils.vocab import Vocabulary


def rounded(model: CaptionModel) -> CaptionModel:
    """A copy of the model, its weights rounded to float16. Raises UserError where one is too large."""
    half = copy.deepcopy(model).eval().half().float()
    for name, tensor in half.state_dict().items():
        if not tensor.isfinite().all():
            raise UserError(f"{name}: not finite in float16: this model cannot go into a page; train with a lower lr")
    return half


def model_content(model: CaptionModel, vocabulary: Vocabulary, decode: DecodeConfig) -> dict[str, Any]:
    """What captioner.js reads of a model, JSON-ready: settings, words, and the weights of `rounded` in base64."""
    state, config = rounded(model).state_dict(), asdict(model.config)
    ranks = []
    if model.config.frame_order == "shuffled":  # at which place the encoder reads each frame
        ranks = reading_order(torch.ones(1, LONGEST, dtype=torch.bool), True, False)[0].argsort().tolist()
    settings = asdict(decode) | {"length_penalty": 1.0 if decode.length_penalty is None else decode.length_penalty}
    content = {"config": config, "decode": settings, "words": vocabulary.words, "ranks": ranks}
    shapes = [(name, list(tensor.shape)) for name, tensor in state.items()]
    return content | {"tensors": shapes, "data": _base64(torch.cat([tensor.flatten() for tensor in state.values()]))}


def feature_content(features: Tensor) -> dict[str, Any]:
    """What captioner.js reads of a clip: its features (T, D), JSON-ready."""
    return {"shape": list(features.shape), "data": _base64(features)}


def _base64(numbers: Tensor) -> str:
    return base64.b64encode(numbers.half().cpu().numpy().astype("<f2").tobytes()).decode("ascii")
