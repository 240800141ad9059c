import math

import pytest
import torch
from torch import nn

from nmstep.tasks.language.stream import TokenStream, strided_score, strided_windows


class Bigram(nn.Module):
    """Predicts from the last two tokens, so that a window's start matters."""

    def __init__(self):
        super().__init__()
        draw = torch.Generator().manual_seed(3)
        self.one = torch.randn(11, 11, generator=draw)
        self.two = torch.randn(11, 11, generator=draw)

    def forward(self, tokens):
        before = torch.cat([torch.zeros_like(tokens[:, :1]), tokens[:, :-1]], dim=1)
        return self.one[tokens] + self.two[before]


@pytest.fixture
def tokens():
    return torch.randint(11, (83,), generator=torch.Generator().manual_seed(1)).int()


def by_hand(model, tokens, context, stride):
    """The strided evaluation written as the transformers documentation does: one window, labels of -100."""
    total, count, previous_end = 0.0, 0, 0
    for begin in range(0, len(tokens), stride):
        end = min(begin + context, len(tokens))
        fresh = end - previous_end
        window = tokens[begin:end].long()
        labels = window.clone()
        labels[:-fresh] = -100
        for place in range(1, len(window)):
            if labels[place] != -100:
                odds = model(window[:place].unsqueeze(0))[0, -1].double().softmax(0)
                total -= math.log(odds[labels[place]])
                count += 1
        previous_end = end
        if end == len(tokens):
            break
    return total, count


@pytest.mark.parametrize(
    ("context", "stride"), [(8, 4), (8, 3), (8, 1), (8, 8), (83, 40), (200, 100), (16, 5), (82, 82)]
)
@pytest.mark.parametrize("batch_tokens", [1, 64, 8192])
def test_strided_score_equals_a_loop_over_single_predictions(tokens, context, stride, batch_tokens):
    model = Bigram()
    total, count = strided_score(
        tokens,
        lambda inputs, keep: model(inputs)[:, -keep:],
        context=context,
        stride=stride,
        batch_tokens=batch_tokens,
    )
    expected, scored = by_hand(model, tokens, context, stride)
    assert count == scored
    assert total == pytest.approx(expected, rel=1e-5)


def test_every_token_but_the_first_is_scored_once_with_overlap():
    for length in range(2, 40):
        for stride in range(1, 8):
            places = [
                place
                for _, end, scored in strided_windows(length, context=8, stride=stride)
                for place in range(end - scored, end)
            ]
            assert places == list(range(1, length))


def test_windows_are_batched(tokens):
    shapes = []

    def logits(inputs, keep):
        shapes.append((*inputs.shape, keep))
        return torch.zeros(len(inputs), keep, 11)

    strided_score(tokens, logits, context=8, stride=4, batch_tokens=48)
    # 83 tokens: the first window, 18 like it in sixes, and 7 tokens at the end of which 3 are new.
    assert shapes == [(1, 7, 7), (6, 7, 4), (6, 7, 4), (6, 7, 4), (1, 6, 3)]


def test_training_windows_cover_an_epoch_once():
    stream = TokenStream(torch.arange(100), 8)
    assert len(stream) == 11
    windows = stream.windows(0, seed=0, batch_size=11)
    assert windows.shape == (11, 9)
    assert torch.equal(windows, windows[:, :1] + torch.arange(9))
    seen = sorted(windows[:, :-1].flatten().tolist())
    assert seen == list(range(seen[0], seen[0] + 88))
    assert {stream.windows(epoch, seed=0, batch_size=11)[0, 0].item() % 8 for epoch in range(9)} != {seen[0]}


def test_training_windows_are_pure():
    stream = TokenStream(torch.arange(100), 8)
    later = stream.windows(30, seed=2, batch_size=5)
    stream.windows(0, seed=2, batch_size=5)
    assert torch.equal(stream.windows(30, seed=2, batch_size=5), later)
    assert torch.equal(TokenStream(torch.arange(100), 8).windows(30, seed=2, batch_size=5), later)
    assert not torch.equal(stream.windows(30, seed=3, batch_size=5), later)
    assert torch.equal(stream.windows(30, seed=2, batch_size=5, length=4), later[:, :4])


def test_a_text_shorter_than_two_windows_is_refused():
    with pytest.raises(ValueError, match="has 15 tokens, but context=8 needs 16: give a longer text"):
        TokenStream(torch.arange(15), 8)
