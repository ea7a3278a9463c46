"""The plain way of doing each stage, as a person writes it first: what the benchmarks measure against."""

from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from vcutils.dataset import Batch
from vcutils.extract import Backbone
from vcutils.model import CaptionModel
from vcutils.vocab import END, START


def extract_clip(backbone: Backbone, path: Path, num_frames: int) -> np.ndarray:
    """Seek to every frame that is wanted and send it through the network alone."""
    capture = cv2.VideoCapture(str(path))
    total = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
    rows = []
    for i in range(num_frames):
        capture.set(cv2.CAP_PROP_POS_FRAMES, (2 * i + 1) * total // (2 * num_frames))
        ok, frame = capture.read()
        if ok:
            pixels = backbone.transform(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB))
            with torch.no_grad():
                rows.append(backbone.model(pixels[None].contiguous()).squeeze(0).numpy())
    capture.release()
    return np.stack(rows)


def training_loss(model: CaptionModel, batch: Batch) -> Tensor:
    """One caption per clip; the frames' part of the score and the logits are computed again at every word."""
    decoder, attention = model.decoder, model.decoder.attention
    values = model.encoder(batch.features, batch.frame_mask)
    mean = values.mean(dim=1)
    hidden, cell = torch.tanh(decoder.init_hidden(mean)), torch.tanh(decoder.init_cell(mean))
    captions = batch.captions[:, 0]
    outputs = []
    for t in range(captions.shape[1] - 1):
        scores = attention.score(torch.tanh(attention.keys(values) + attention.query(hidden)[:, None])).squeeze(2)
        context = (scores.softmax(dim=1)[:, :, None] * values).sum(dim=1)
        gates = decoder.word_gates(decoder.embed(captions[:, t])) + decoder.gates(torch.cat([context, hidden], dim=1))
        take, keep, new, show = gates.chunk(4, dim=1)
        cell = keep.sigmoid() * cell + take.sigmoid() * new.tanh()
        hidden = show.sigmoid() * cell.tanh()
        outputs.append(decoder.logits(hidden, context))
    logits = torch.stack(outputs, dim=1)
    return nn.functional.cross_entropy(logits.flatten(0, 1), captions[:, 1:].flatten(), ignore_index=0)


@torch.no_grad()
def greedy(model: CaptionModel, features: Tensor, max_length: int) -> list[int]:
    """One clip at a time, one word at a time."""
    decoder = model.decoder
    memory = model.encode(features[None], torch.ones(1, len(features), dtype=torch.bool))
    state, word, words = decoder.start(memory, 1), START, []
    for step in range(max_length):
        state, context, _ = decoder.step(decoder.read(torch.tensor([[word]])), state, memory)
        logits = decoder.logits(state[0], context)[0, 0]
        logits[[0, START, 3]] = -np.inf
        if step == 0:
            logits[END] = -np.inf
        word = int(logits.argmax())
        if word == END:
            break
        words.append(word)
    return words
