"""The plain way of doing each stage, as a person writes it first: what the benchmarks measure against."""

from pathlib import Path
from time import perf_counter

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from vcutils.dataset import CaptionData
from vcutils.model import CaptionModel
from vcutils.runtime.backbones import Backbone
from vcutils.vocab import END, PAD, START, UNK


def extract_clip(backbone: Backbone, path: Path, num_frames: int) -> np.ndarray:
    """Seek to every frame that is wanted and send it through the network alone."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (backbone.mean, backbone.std))
    rows = []
    for frame in frames(path, num_frames):
        pixels = (torch.from_numpy(backbone.resize(frame)).permute(2, 0, 1).float() - mean) / std
        with torch.no_grad():
            rows.append(backbone.model(pixels[None].contiguous()).squeeze(0).numpy())
    return np.stack(rows)


def frames(path: Path, num_frames: int, threads: int = 0) -> list[np.ndarray]:
    """The wanted frames, RGB, each after a seek of its own; `threads` 0 leaves them to the decoder."""
    settings, found = [cv2.CAP_PROP_N_THREADS, threads] if threads else [], []
    capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG, settings)
    total = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
    for i in range(num_frames):
        capture.set(cv2.CAP_PROP_POS_FRAMES, (2 * i + 1) * total // (2 * num_frames))
        ok, frame = capture.read()
        if ok:
            found.append(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB))
    capture.release()
    return found


def training_loss(model: CaptionModel, features: Tensor, captions: Tensor) -> Tensor:
    """One caption per clip, features (B, T, D) and captions (B, L+1): the frames' part of the attention score and the
    logits are computed again at every word, padding included.
    """
    values = model.encoder(features, torch.ones(features.shape[:2], dtype=torch.bool))
    state = first_state(model, values)
    outputs = []
    for t in range(captions.shape[1] - 1):
        logits, state = step(model, values, captions[:, t], state)
        outputs.append(logits)
    logits = torch.stack(outputs, dim=1)
    return nn.functional.cross_entropy(logits.flatten(0, 1), captions[:, 1:].flatten(), ignore_index=PAD)


def train_epoch(model: CaptionModel, optimizer: torch.optim.Optimizer, data: CaptionData, batch_size: int) -> float:
    """Words per second of one pass: every clip once with one of its captions, read and cut into words on the way."""
    model.train()
    generator = np.random.default_rng()
    begun, words, order = perf_counter(), 0, generator.permutation(data.splits["train"])
    for start in range(0, len(order), batch_size):
        ids = order[start : start + batch_size]
        features = [torch.FloatTensor(np.load(data.store.folder / f"{i}.npy")) for i in ids]
        captions = [torch.tensor(data.vocabulary.encode(generator.choice(data.captions[i]))) for i in ids]
        optimizer.zero_grad()
        loss = training_loss(model, *(nn.utils.rnn.pad_sequence(x, batch_first=True) for x in (features, captions)))
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        words += sum(len(caption) - 1 for caption in captions)
    return words / (perf_counter() - begun)


def first_state(model: CaptionModel, values: Tensor) -> tuple[Tensor, Tensor]:
    """The decoder's state before the first word, from the encoded frames (B, T, C)."""
    mean = values.mean(dim=1)
    return torch.tanh(model.decoder.init_h(mean)), torch.tanh(model.decoder.init_c(mean))


def step(
    model: CaptionModel, values: Tensor, words: Tensor, state: tuple[Tensor, Tensor]
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Scores of the next words (B, V) after the words (B,), and the new state."""
    decoder, attention, (hidden, cell) = model.decoder, model.decoder.attention, state
    scores = attention.score(torch.tanh(attention.keys(values) + attention.query(hidden)[:, None]))
    context = (scores.softmax(dim=1) * values).sum(dim=1)
    gates = decoder.word_gates(decoder.dropout(decoder.embed(words)))
    gates = gates + decoder.state_gates(torch.cat([context, hidden], dim=1))
    i, f, g, o = gates.chunk(4, dim=1)
    cell = f.sigmoid() * cell + i.sigmoid() * g.tanh()
    hidden = o.sigmoid() * cell.tanh()
    return decoder.logits(hidden, context), (hidden, cell)


@torch.no_grad()
def beam_search(model: CaptionModel, features: Tensor, beams: int, max_length: int) -> list[int]:
    """The best caption of one clip (T, D), all hypotheses one after the other; one beam is greedy search."""
    values = model.encoder(features[None], torch.ones(1, len(features), dtype=torch.bool))
    # A hypothesis is (sum of log-probabilities, words, state).
    alive, ended = [(0.0, [START], first_state(model, values))], []
    for length in range(1, max_length + 1):
        candidates = []
        for total, words, state in alive:
            logits, state = step(model, values, torch.tensor([words[-1]]), state)
            log_probs = logits[0].log_softmax(dim=0)
            log_probs[[PAD, START, UNK]] = -torch.inf
            if length == 1:
                log_probs[END] = -torch.inf
            best = log_probs.topk(beams + 1)
            for log_prob, word in zip(best.values.tolist(), best.indices.tolist(), strict=True):
                candidates.append((total + log_prob, [*words, word], state))
        candidates.sort(key=lambda c: -c[0])
        ended += [(total / length, words) for total, words, _ in candidates[:beams] if words[-1] == END]
        alive = [c for c in candidates if c[1][-1] != END][:beams]
        ranked = sorted((score for score, _ in ended), reverse=True)
        if len(ranked) >= beams and ranked[beams - 1] >= alive[0][0] / length:
            break
    found = ended or [(total / max_length, words) for total, words, _ in alive]
    return [word for word in max(found, key=lambda c: c[0])[1][1:] if word != END]
