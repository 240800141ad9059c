import math
from dataclasses import dataclass

import pytest
import torch

from nmstep.tasks.models.transformer import BOS, EOS, Transformer
from nmstep.tasks.translation.search import translate


@pytest.fixture(scope="module", params=[(2, 1.2), (7, 3.0)], ids=["some never end", "beams end"])
def model(request):
    seed, scale = request.param  # such that greedy search or beam search meets its end now and then
    torch.manual_seed(seed)
    made = Transformer(vocabulary=12, layers=2, width=16, heads=2, feed_forward=32, context=80).eval()
    with torch.no_grad():
        made.embedding.weight.mul_(2)
        made.embedding.weight[EOS].mul_(scale)
    return made.requires_grad_(False)


def sources():
    drawn = torch.randint(3, 12, (6, 7), generator=torch.Generator().manual_seed(1))
    for row, length in enumerate((6, 4, 6, 2, 1, 5)):
        drawn[row, length] = EOS
        drawn[row, length + 1 :] = 0
    return drawn


def log_probs(model, source, target):
    """The next token's, by a full forward pass over one unpadded sentence."""
    source = source[source != 0].unsqueeze(0)
    return model(source, torch.tensor([[BOS, *target]]))[0, -1].log_softmax(-1).tolist()


def reference_beam(model, source, beam, length_penalty):
    """The search as one would write it down: one sentence, no cache, no tensors."""
    limit = int((source != 0).sum()) + 50
    going, finished = [(0.0, [])], []
    while len(finished) < beam:
        grown = []
        for score, target in going:
            following = log_probs(model, source, target)
            grown += [(score + more, [*target, token]) for token, more in enumerate(following)]
        grown.sort(key=lambda hypothesis: -hypothesis[0])
        for score, target in grown[:beam]:
            if target[-1] == EOS:
                finished.append((score / ((5 + len(target)) / 6) ** length_penalty, target[:-1]))
        going = [hypothesis for hypothesis in grown if hypothesis[1][-1] != EOS][:beam]
        if len(going[0][1]) >= limit:
            break
    return max(finished)[1] if finished else going[0][1]


def test_greedy_search_takes_the_most_probable_token_each_time(model):
    for source, got in zip(sources(), translate(model, sources(), beam=1), strict=True):
        expected = []
        while len(expected) < int((source != 0).sum()) + 50:
            following = log_probs(model, source, expected)
            token = following.index(max(following))
            if token == EOS:
                break
            expected.append(token)
        assert got == expected


@pytest.mark.parametrize("length_penalty", [0.0, 0.6, 2.0])
def test_beam_search_equals_a_plain_one(model, length_penalty):
    some = sources()[2:5]  # of different lengths
    got = translate(model, some, beam=3, length_penalty=length_penalty)
    expected = [reference_beam(model, source, 3, length_penalty) for source in some]
    assert got == expected


def test_some_translations_end_by_themselves_and_some_at_the_limit(model):
    found = [len(tokens) for beam in (1, 3) for tokens in translate(model, sources(), beam=beam)]
    limits = ((sources() != 0).sum(dim=1) + 50).tolist() * 2
    reached = [length == limit for length, limit in zip(found, limits, strict=True)]
    assert any(reached)
    assert not all(reached)


@dataclass
class LastToken:
    """The state of a model that looks at the last token only."""

    def select(self, _):
        return self


# What comes after each token, with which probability.
FOLLOWING = {
    BOS: {3: 0.6, 4: 0.4},
    3: {5: 0.5, 6: 0.5},
    4: {7: 1.0},
    5: {EOS: 1.0},
    6: {EOS: 1.0},
    7: {EOS: 1.0},
}


class Markov:
    """Draws each token from the one before it alone."""

    def __init__(self, table=FOLLOWING):
        self.table = table

    def start(self, _):
        return LastToken()

    def advance(self, tokens, _):
        probabilities = torch.zeros(len(tokens), 1, 8)
        for row, (token,) in enumerate(tokens.tolist()):
            for following, probability in self.table.get(token, {}).items():
                probabilities[row, 0, following] = probability
        return probabilities.clamp(min=1e-9).log()


def test_a_beam_finds_what_greedy_search_misses():
    source = torch.tensor([[5, EOS]])
    (greedy,) = translate(Markov(), source, beam=1)
    assert greedy[0] == 3  # 0.6 at first, but then 0.5: 0.3 in all
    assert translate(Markov(), source, beam=2) == [[4, 7]]  # 0.4 in all


@pytest.mark.parametrize(("share", "best"), [(0.522, [4, 7]), (0.525, [3])])
def test_the_length_penalty_weighs_as_published(share, best):
    # 3 and 4 7, of lengths 2 and 3 with their ends, are even where log p of 4 is 8 / 7 of that of 3.
    table = {BOS: {3: share, 4: 1 - share}, 3: {EOS: 1.0}, 4: {7: 1.0}, 7: {EOS: 1.0}}
    assert translate(Markov(table), torch.tensor([[5, EOS]]), beam=2, length_penalty=1.0) == [best]


def test_a_diverged_model_still_comes_to_an_end():
    class Diverged(Markov):
        def advance(self, tokens, _):
            return torch.full((len(tokens), 1, 8), math.nan)

    for beam in (1, 3):
        found = translate(Diverged(), torch.tensor([[5, EOS], [EOS, 0]]), beam=beam)
        assert [len(tokens) <= 52 for tokens in found] == [True, True]


def test_no_sentence_gives_no_translation(model):
    assert translate(model, torch.empty(0, 3, dtype=torch.int64)) == []
