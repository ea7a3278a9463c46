"""The model: padding takes no part, attention is a distribution over real frames, the loss looks ahead."""

import pytest
import torch
from torch.nn import functional

from vcutils.config import DecodeConfig, ModelConfig
from vcutils.dataset import Batch
from vcutils.decode import generate
from vcutils.model import CaptionModel, caption_loss
from vcutils.runtime.fast import TrainingModel, fast_loss
from vcutils.runtime.frames import middle_frames
from vcutils.video import frame_indices
from vcutils.vocab import END, PAD, SPECIALS, START, Vocabulary

SWITCHES = [{}, {"attention": "uniform"}, {"attention": "matched"}, {"encoder": "none"}, {"frame_order": "shuffled"}]


@pytest.fixture
def batch(random_clips):
    """Three clips of 6, 2 and 4 frames with two captions each, the last row of padding alone."""
    features, mask = random_clips([6, 2, 4])
    rows = [[4, 5, 8], [6, 8, 10, 6], [7], [4, 7, 9, 11], [5, 5], []]
    captions = torch.full((3, 2, 6), PAD)
    for n, words in enumerate(rows):
        if words:
            captions[n // 2, n % 2, : len(words) + 2] = torch.tensor([START, *words, END])
    return Batch(["a", "b", "c"], features, mask, captions)


def plain_loss(model, batch, label_smoothing=0.0):
    logits, _ = model(batch.features, batch.frame_mask, batch.inputs)
    return caption_loss(logits, batch.targets, label_smoothing)


def trained_loss(model, batch, label_smoothing=0.0):
    return fast_loss(TrainingModel(model), batch, PAD, label_smoothing)


@pytest.fixture(params=[plain_loss, trained_loss], ids=["plain", "fast"])
def loss_of(request):
    """Function: the loss of a model on a batch, by the lesson's form and by the one that training uses."""
    return request.param


@pytest.mark.parametrize("switches", SWITCHES, ids=str)
def test_shapes(small_model, batch, switches):
    model = small_model(**switches)
    logits, weights = model(batch.features, batch.frame_mask, batch.inputs)
    assert logits.shape == (3, 2, 5, 12)
    assert weights.shape == (3, 2, 5, 6)
    memory = model.encode(batch.features, batch.frame_mask)
    assert memory.values.shape == (3, 6, 12) and memory.keys.shape == (3, 6, 7)


@pytest.mark.parametrize("switches", SWITCHES, ids=str)
def test_attention_sums_to_one_over_real_frames_and_is_zero_on_padding(small_model, batch, switches):
    _, weights = small_model(sharpness=3, **switches)(batch.features, batch.frame_mask, batch.inputs)
    assert torch.allclose(weights.sum(-1), torch.ones(3, 2, 5), atol=1e-6)
    real_frames = batch.frame_mask[:, None, None].expand_as(weights)
    assert not real_frames.all() and (weights[~real_frames] == 0).all()
    assert (weights[real_frames] > 0).all()


def test_attention_depends_on_the_frames_and_on_the_word(small_model, batch):
    _, weights = small_model(sharpness=3)(batch.features, batch.frame_mask, batch.inputs)
    assert weights[0, 0, 0].std() > 1e-3, "all frames alike"
    assert not torch.allclose(weights[0, 0, 0], weights[0, 0, 2], atol=1e-4), "the same frames for every word"


def test_matched_attention_finds_the_frame_that_goes_with_the_words_said(small_model, random_clips):
    features, mask = random_clips([5])
    model = small_model(attention="matched", sharpness=2)
    memory = model.encode(features, mask)
    changed = features.clone()
    changed[0, 2] += 1
    moved = (model.encode(changed, mask).keys - memory.keys).abs().sum(-1)[0] > 1e-6
    assert moved.tolist() == [False, False, True, False, False], "a BiLSTM must not mix the keys"
    keys = torch.eye(5, memory.keys.shape[2])[None]
    for frame in range(5):
        _, weights = model.decoder.attention(30 * keys[:, frame, None], memory._replace(keys=keys))
        assert weights.argmax() == frame and weights.max() > 0.99


def test_matched_attention_reads_all_the_words_said_so_far_and_their_order_plays_no_part(small_model, random_clips):
    features, mask = random_clips([5])
    model = small_model(attention="matched")
    with torch.no_grad():
        model.decoder.attention.said.weight.normal_()
    _, weights = model(features, mask, torch.tensor([[[4, 5, 6], [5, 4, 6], [4, 4, 6]]]))
    assert torch.allclose(weights[0, 0, 2], weights[0, 1, 2], atol=1e-6)
    assert not torch.allclose(weights[0, 0, 1], weights[0, 2, 1], atol=1e-3)


def test_uniform_attention_gives_every_frame_the_same(small_model, batch):
    _, weights = small_model(attention="uniform")(batch.features, batch.frame_mask, batch.inputs)
    for b, count in enumerate((6, 2, 4)):
        assert torch.allclose(weights[b, :, :, :count], torch.tensor(1 / count))


@pytest.mark.parametrize("switches", SWITCHES[:4], ids=str)
def test_a_clip_is_told_alone_as_among_others(small_model, batch, switches):
    """Neither the padding nor the other clips of a batch change a clip's result."""
    model = small_model(sharpness=2, **switches)
    logits, weights = model(batch.features, batch.frame_mask, batch.inputs)
    for b, count in enumerate((6, 2, 4)):
        alone, alone_weights = model(
            batch.features[b : b + 1, :count], batch.frame_mask[b : b + 1, :count], batch.inputs[b : b + 1]
        )
        assert torch.allclose(logits[b : b + 1], alone, atol=1e-5)
        assert torch.allclose(weights[b : b + 1, :, :, :count], alone_weights, atol=1e-6)


@pytest.mark.parametrize("switches", SWITCHES[:4], ids=str)
def test_what_stands_in_the_padding_does_not_matter(small_model, batch, switches, loss_of):
    model = small_model(sharpness=2, **switches)
    before = loss_of(model, batch)
    filled = batch.features.masked_fill(~batch.frame_mask[:, :, None], 1e4)
    wider = functional.pad(filled, (0, 0, 0, 3), value=-7.0)
    mask = functional.pad(batch.frame_mask, (0, 3), value=False)
    captions = functional.pad(batch.captions, (0, 4), value=PAD)
    assert torch.allclose(loss_of(model, Batch(batch.ids, wider, mask, captions)), before, atol=1e-6)


@pytest.mark.parametrize("switches", SWITCHES, ids=str)
def test_no_gradient_reaches_padding(small_model, batch, switches, loss_of):
    model = small_model(**switches)
    batch.features.requires_grad_()
    model.zero_grad()
    loss_of(model, batch).backward()
    reached = batch.features.grad.abs().sum(-1) > 0
    assert torch.equal(reached, batch.frame_mask), "every real frame is learned from, no padded one"
    assert (model.decoder.embed.weight.grad[PAD] == 0).all()
    assert (model.decoder.embed.weight.grad[START] != 0).any()


def test_loss_is_the_mean_over_real_words_by_hand(small_model, batch, loss_of):
    model = small_model(sharpness=2)
    losses = []
    for b in range(3):
        for k in range(2):
            row = [w for w in batch.captions[b, k].tolist() if w != PAD]
            if not row:
                continue
            one = torch.tensor(row[:-1])[None, None]
            logits, _ = model(batch.features[b : b + 1], batch.frame_mask[b : b + 1], one)
            losses += [-logits[0, 0, t].log_softmax(-1)[row[t + 1]] for t in range(len(row) - 1)]
    assert torch.allclose(loss_of(model, batch), torch.stack(losses).mean(), atol=1e-5)


def said(batch, shift):
    """Logits of a model that says, with certainty, the word at `shift` from the one that it reads."""
    return 30.0 * functional.one_hot(batch.captions[:, :, shift : shift + batch.inputs.shape[2]], 12).float()


def test_copying_the_input_is_no_solution(batch):
    """The original notebook compared the output at t with the input at t: a model that copied had no loss."""
    batch.captions[2, 0, 2] = 6  # no word twice in a row, else copying is right once
    assert caption_loss(said(batch, 0), batch.targets) > 29
    assert caption_loss(said(batch, 1), batch.targets) < 1e-6


def test_label_smoothing_punishes_certainty(batch):
    assert caption_loss(said(batch, 1), batch.targets, label_smoothing=0.1) > 1


def test_captions_of_a_clip_at_once_equal_one_by_one(small_model, batch):
    model = small_model(sharpness=2)
    together, weights = model(batch.features, batch.frame_mask, batch.inputs)
    for k in range(2):
        single, single_weights = model(batch.features, batch.frame_mask, batch.inputs[:, k : k + 1])
        assert torch.allclose(together[:, k : k + 1], single, atol=1e-5)
        assert torch.allclose(weights[:, k : k + 1], single_weights, atol=1e-6)


def test_future_words_are_not_seen(small_model, random_clips):
    model = small_model(sharpness=3)
    features, mask = random_clips([4])
    one, _ = model(features, mask, torch.tensor([[[START, 4, 5, 6]]]))
    other, _ = model(features, mask, torch.tensor([[[START, 4, 9, 10]]]))
    assert torch.equal(one[0, 0, :2], other[0, 0, :2]) and not torch.allclose(one[0, 0, 2:], other[0, 0, 2:])


def test_bilstm_sees_the_order_and_both_directions(small_model, random_clips):
    features, mask = random_clips([5])
    changed = features.clone()
    changed[0, 2] += 1
    bilstm, none = small_model(), small_model(encoder="none")
    moved = (bilstm.encode(changed, mask).values - bilstm.encode(features, mask).values).abs().sum(-1)[0] > 1e-6
    assert moved.all(), "a frame must be felt before and after it"
    moved = (none.encode(changed, mask).values - none.encode(features, mask).values).abs().sum(-1)[0] > 1e-6
    assert moved.tolist() == [False, False, True, False, False]


def test_shuffled_order_shows_weights_at_the_frames_true_places(small_model, random_clips):
    """Without a BiLSTM the order cannot matter: shuffled and put back, everything must be as it was."""
    features, mask = random_clips([7, 3, 5])
    inputs = torch.tensor([[[START, 4, 5]]] * 3)
    kept = small_model(encoder="none", sharpness=3)(features, mask, inputs)
    for seed in range(5):
        model = small_model(encoder="none", frame_order="shuffled", sharpness=3)
        torch.manual_seed(seed)
        shuffled = model(features, mask, inputs)
        assert torch.allclose(kept[1], shuffled[1], atol=1e-6) and torch.allclose(kept[0], shuffled[0], atol=1e-5)


def test_shuffled_order_really_shuffles_real_frames(small_model, random_clips):
    features, mask = random_clips([7, 3])
    model = small_model(frame_order="shuffled")  # without dropout: what varies is the order
    measured = [model.encode(features, mask).values for _ in range(2)]
    assert torch.equal(*measured), "one order for measuring: two evaluations must agree"
    assert not torch.allclose(measured[0], small_model().encode(features, mask).values, atol=1e-5)
    model.train()
    runs = [model.encode(features, mask).values for _ in range(4)]
    assert any(not torch.allclose(runs[0], other, atol=1e-5) for other in runs[1:])
    assert all((values[~mask] == 0).all() for values in runs)


def test_dropout_works_in_training_only(random_clips):
    torch.manual_seed(0)
    model = CaptionModel(ModelConfig(8, 6, 10, 7, dropout=0.5), 12, 5)
    features, mask = random_clips([4])
    inputs = torch.tensor([[[START, 4]]])
    assert not torch.equal(model(features, mask, inputs)[0], model(features, mask, inputs)[0])
    model.eval()
    assert torch.equal(model(features, mask, inputs)[0], model(features, mask, inputs)[0])


def test_wrong_shapes_are_refused(small_model, random_clips):
    model = small_model()
    features, mask = random_clips([4, 2])
    with pytest.raises(ValueError, match=r"features must be \(B, T, 5\), are \(2, 4, 6\)"):
        model.encode(torch.zeros(2, 4, 6), mask)
    with pytest.raises(ValueError, match=r"features must be"):
        model.encode(features[0], mask[0])
    with pytest.raises(ValueError, match=r"frame_mask must be \(2, 4\), is \(2, 3\)"):
        model.encode(features, mask[:, :3])


def test_clip_without_frames_is_refused(small_model, random_clips):
    features, mask = random_clips([4, 2])
    mask[1] = False
    with pytest.raises(ValueError, match="at least one"):
        small_model().encode(features, mask)


@pytest.mark.parametrize("attention", ["additive", "matched", "uniform"])
def test_one_batch_is_learned_by_heart_and_said_again(small_model, random_clips, vocabulary, attention, loss_of):
    features, mask = random_clips([6, 2, 4, 5])
    captions = torch.full((4, 1, 7), PAD)
    for b, text in enumerate(("a cat sits", "a dog runs and sits", "man", "a man and a dog")):
        ids = vocabulary.encode(text)
        captions[b, 0, : len(ids)] = torch.tensor(ids)
    batch = Batch(["a", "b", "c", "d"], features, mask, captions)
    model = small_model(attention=attention).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-2)
    for _ in range(150):
        optimizer.zero_grad()
        loss = loss_of(model, batch)
        loss.backward()
        optimizer.step()
    assert loss < 0.02
    hypotheses = generate(model, vocabulary, features, mask, DecodeConfig())
    assert [h[0].caption for h in hypotheses] == ["a cat sits", "a dog runs and sits", "man", "a man and a dog"]
    assert model.training, "generating must give the model back as it was"


@pytest.mark.parametrize("encoder", ["bilstm", "none"])
def test_few_frames_are_the_middles_of_equal_parts_and_the_others_weigh_nothing(small_model, batch, encoder):
    model = small_model(sharpness=3, encoder=encoder, max_frames=2)
    logits, weights = model(batch.features, batch.frame_mask, batch.inputs)
    kept = [frame_indices(count, 2) for count in (6, 2, 4)]
    assert kept == [[1, 4], [0, 1], [1, 3]]
    assert [weights[b, 0, 0].nonzero().flatten().tolist() for b in range(3)] == kept
    few = torch.stack([batch.features[b, kept[b]] for b in range(3)])
    plain = small_model(sharpness=3, encoder=encoder)
    expected, _ = plain(few, torch.ones(3, 2, dtype=torch.bool), batch.inputs)
    assert torch.allclose(logits, expected, atol=1e-6)
    words = Vocabulary((*SPECIALS, *"abcdefgh"), (0,) * 12)
    hypotheses = generate(model, words, batch.features, batch.frame_mask, DecodeConfig())
    assert [h[0].attention.shape[1] for h in hypotheses] == [6, 2, 4]


@pytest.mark.parametrize("length", [1, 2, 5, 16, 17, 38])
@pytest.mark.parametrize("count", [1, 2, 4, 16, 40])
def test_fewer_frames_are_those_that_sampling_fewer_would_have_picked(length, count):
    mask = torch.arange(40)[None] < torch.tensor([[length]])
    assert middle_frames(mask, count)[0].nonzero().flatten().tolist() == frame_indices(length, count)


def test_more_frames_than_there_are_keep_every_frame():
    mask = torch.tensor([[True, True, False], [True, True, True]])
    assert torch.equal(middle_frames(mask, 10**12), mask)


def test_the_middle_of_sixteen_frames_in_four_parts_is_kept():
    """The first frame of each part (0, 4, 8, 12) would be another sample than the extraction's."""
    assert middle_frames(torch.ones(1, 16, dtype=torch.bool), 4)[0].nonzero().flatten().tolist() == [2, 6, 10, 14]


def test_shuffled_order_depends_on_the_clip_alone_when_measuring(small_model, random_clips):
    """Whatever row a clip has in a batch, and whatever clips stand beside it."""
    model = small_model(frame_order="shuffled", sharpness=2)
    features, mask = random_clips([5, 7, 5, 3])
    together = model.encode(features, mask).values
    for order in ([3, 2, 1, 0], [2, 0, 3, 1]):
        moved = model.encode(features[order], mask[order]).values
        assert torch.allclose(moved, together[order], atol=1e-6)
    for b, count in enumerate((5, 7, 5, 3)):
        alone = model.encode(features[b : b + 1, :count], mask[b : b + 1, :count]).values
        assert torch.allclose(alone[0], together[b, :count], atol=1e-6)
