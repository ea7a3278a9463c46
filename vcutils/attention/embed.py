"""Clips, captions and captioners as data, JSON-ready: what view.js draws from, and captioner.js runs inside a page.

A captioner's numbers are float16: a page must stay small. What such a page shows is what the model says once its
weights and the clips' features are rounded so; `rounded` makes that model, so that Python's captions and the page's are
the same.
"""

import base64
import copy
import io
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vcutils.attention.measures import check_alignment
from vcutils.attention.views import View
from vcutils.config import DecodeConfig, UserError
from vcutils.decode import Hypothesis
from vcutils.model import CaptionModel
from vcutils.runtime.frames import LONGEST, reading_order
from vcutils.vocab import Vocabulary

PICTURE_CHARACTERS = 1_000_000  # base64 of a page's pictures, shared among its clips …
CLIP_CHARACTERS = 40_000  # … who get no less than this each
SIZES = ((480, 82), (400, 78), (320, 74), (240, 66), (160, 50), (96, 40))  # (longer side in pixels, JPEG quality)


def clip_content(view: View, clips: int = 1) -> dict[str, Any]:
    """What view.js reads of a clip, its pictures as large as its share of a page of so many clips allows.

    Raises ValueError when pictures and times do not fit together.
    """
    if not view.timestamps or (view.images and len(view.images) != len(view.timestamps)):
        raise ValueError(f"{view.title}: {len(view.images)} pictures do not fit {len(view.timestamps)} frames")
    for size in SIZES:
        images = [jpeg_uri(picture, *size) for picture in view.images]
        if sum(map(len, images)) <= max(CLIP_CHARACTERS, PICTURE_CHARACTERS // clips):
            break
    height, width = view.images[0].shape[:2] if view.images else (3, 4)
    return {
        "title": view.title,
        "note": view.note,
        "times": list(view.timestamps),
        "timed": view.timed,
        "images": images,
        "aspect": min(4.0, max(0.25, width / height)),
        "references": list(view.references)[:10],
        "events": [{name: event[name] for name in ("kind", "words", "start", "end")} for event in view.events],
    }


def jpeg_uri(image: np.ndarray, side: int, quality: int) -> str:
    """An RGB picture as the data: address of a JPEG, shrunk until neither side is longer than `side` pixels."""
    picture, data = Image.fromarray(image), io.BytesIO()
    picture.thumbnail((side, side))
    picture.save(data, "JPEG", quality=quality, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(data.getvalue()).decode("ascii")


def caption_content(view: View) -> dict[str, Any]:
    """What view.js reads of a clip's captions. Raises ValueError when words, weights and frames do not fit together."""
    if not view.beams:
        raise ValueError(f"{view.title}: nothing to show without a caption")
    before = view.before and {"words": view.before.words, "score": float(view.before.score)}
    beams = [_beam(beam, view.timestamps) for beam in view.beams]
    return {"hidden": sorted(view.hidden), "start": list(view.start), "before": before, "beams": beams}


def _beam(beam: Hypothesis, timestamps: Sequence[float]) -> dict[str, Any]:
    """A caption as view.js reads it: a row for every word, and one more for <end> where it was reached."""
    check_alignment(beam.words, beam.attention, timestamps)
    weights, log_probs = beam.attention, np.asarray(beam.word_log_probs, float)
    if beam.end_attention is not None:
        weights = np.vstack([weights, beam.end_attention])
        log_probs = np.append(log_probs, min(0.0, beam.log_prob - log_probs.sum()))
    numbers = {"probabilities": np.exp(log_probs).round(4).tolist(), "weights": weights.astype(float).round(4).tolist()}
    return {"words": beam.words, "score": float(beam.score), **numbers}


def rounded(model: CaptionModel) -> CaptionModel:
    """A copy of the model, its weights rounded to float16. Raises UserError where one is too large."""
    half = copy.deepcopy(model).eval().half().float()
    for name, tensor in half.state_dict().items():
        if not tensor.isfinite().all():
            raise UserError(f"{name}: not finite in float16: this model cannot go into a page; train with a lower lr")
    return half


def model_content(model: CaptionModel, vocabulary: Vocabulary, decode: DecodeConfig) -> dict[str, Any]:
    """What captioner.js reads of a model: settings, words, and the weights in base64, float16 (see `rounded`)."""
    state, ranks = model.state_dict(), []
    if model.config.frame_order == "shuffled":  # at which place the encoder reads each frame
        ranks = reading_order(torch.ones(1, LONGEST, dtype=torch.bool), True, False)[0].argsort().tolist()
    settings = {"config": asdict(model.config), "decode": asdict(decode), "words": vocabulary.words, "ranks": ranks}
    shapes = [(name, list(tensor.shape)) for name, tensor in state.items()]
    return settings | {"tensors": shapes, "data": _base64(torch.cat([tensor.flatten() for tensor in state.values()]))}


def feature_content(features: Tensor) -> dict[str, Any]:
    """What captioner.js reads of a clip: its features (T, D)."""
    return {"shape": list(features.shape), "data": _base64(features)}


def _base64(numbers: Tensor) -> str:
    return base64.b64encode(numbers.half().cpu().numpy().astype("<f2").tobytes()).decode("ascii")
