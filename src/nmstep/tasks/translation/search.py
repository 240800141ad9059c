"""Translating with a trained Transformer: greedy or beam search, batched, one cached step per token."""

from __future__ import annotations

import torch
from torch import Tensor

from nmstep.tasks.models.transformer import BOS, EOS, PAD, Transformer
from nmstep.tasks.models.transformer_layers import DecoderState

# Output may be this much longer than the source, as Vaswani et al. (section 6.1) allow.
EXTRA_LENGTH = 50


def translate(
    model: Transformer, source: Tensor, *, beam: int = 1, length_penalty: float = 0.6
) -> list[list[int]]:
    """Returns the tokens of each row's translation, without beginning and end.

    A translation ends at the end token, or where it has 50 tokens more than its source. Of the finished
    hypotheses that beam search found (as many as the beam is wide), the one with the highest
    log p / ((5 + length) / 6) ^ length_penalty is chosen; length counts the end token. With `beam` 1 each
    token is the most probable one. Rows do not depend on each other, but for rounding.

    Source: Wu et al., Google's Neural Machine Translation System, equation 14, without the coverage term.

    Args:
        model: in evaluation mode.
        source: int64 (rows, length), ended and then padded, on the model's device.
        beam: hypotheses per row, at least 1.
        length_penalty: 0 compares plain probabilities, more prefers longer translations.
    """
    search = _Search(model.start(source), source, beam, length_penalty)
    while len(search.rows):
        logits = model.advance(search.tokens[:, -1:], search.state)[:, -1]
        search.extend(torch.log_softmax(logits.float(), dim=-1))
    return [max(found, key=lambda hypothesis: hypothesis[0])[1] for found in search.finished]


class _Search:
    """Beams of the rows that are not translated yet.

    Attributes:
        rows: which source row each group of `beam` hypotheses translates, int64 (groups,).
        tokens: the hypotheses, int64 (groups * beam, tokens so far), begun with BOS.
        scores: their log-probabilities, float32 (groups, beam).
        finished: per source row, finished hypotheses as (score, tokens).
    """

    def __init__(self, state: DecoderState, source: Tensor, beam: int, length_penalty: float) -> None:
        self.rows = torch.arange(len(source), device=source.device)
        self.state = state.select(self.rows.repeat_interleave(beam)) if beam > 1 else state
        self.tokens = torch.full((len(source) * beam, 1), BOS, device=source.device)
        self.scores = torch.full((len(source), beam), -torch.inf, device=source.device)
        self.scores[:, 0] = 0.0  # all hypotheses of a beam start alike: one of them is enough
        self.finished: list[list[tuple[float, list[int]]]] = [[] for _ in source]
        self._limits = (source != PAD).sum(dim=1) + EXTRA_LENGTH
        self._beam, self._length_penalty = beam, length_penalty

    def extend(self, log_probs: Tensor) -> None:
        """Reads the next token's log-probabilities, float32 (groups * beam, vocabulary)."""
        beam, vocabulary = self._beam, log_probs.shape[-1]
        totals = (self.scores.unsqueeze(-1) + log_probs.view(-1, beam, vocabulary)).flatten(1)
        # Every hypothesis has one way to end, so twice the beam leaves enough that go on.
        totals, places = totals.topk(2 * beam, dim=1)
        words = places % vocabulary
        parents = places // vocabulary + beam * torch.arange(len(places), device=places.device).unsqueeze(1)
        ends = words == EOS
        for group, rank in ends[:, :beam].nonzero().tolist():
            self._finish(group, totals[group, rank], parents[group, rank])
        onward = ends.int().argsort(dim=1, stable=True)[:, :beam]
        self.scores = totals.gather(1, onward)
        chosen = parents.gather(1, onward).flatten()
        self.tokens = torch.cat([self.tokens[chosen], words.gather(1, onward).view(-1, 1)], dim=1)
        self._drop_done(chosen)

    def _finish(self, group: int, score: Tensor, hypothesis: Tensor) -> None:
        length = self.tokens.shape[1]
        penalty = ((5 + length) / 6) ** self._length_penalty
        tokens = self.tokens[hypothesis, 1:].tolist()
        self.finished[int(self.rows[group])].append((score.item() / penalty, tokens))

    def _drop_done(self, chosen: Tensor) -> None:
        """Keeps the groups that still need tokens; `chosen` are the state's rows that `tokens` grew from."""
        rows, going, beam = self.rows.tolist(), [], self._beam
        spent = (self.tokens.shape[1] - 1 >= self._limits[self.rows]).tolist()
        for group, row in enumerate(rows):
            if spent[group] and not self.finished[row]:
                self._finish(group, self.scores[group, 0], torch.tensor(group * beam))
            if not spent[group] and len(self.finished[row]) < beam:
                going.append(group)
        if len(going) == len(rows) and beam == 1:
            return  # each hypothesis is its only parent's child, so the state's rows are right already
        kept = torch.tensor(going, dtype=torch.int64, device=self.rows.device)
        self.state = self.state.select(chosen.view(-1, beam)[kept].flatten())
        self.tokens = self.tokens.view(len(rows), beam, -1)[kept].flatten(0, 1)
        self.rows, self.scores = self.rows[kept], self.scores[kept]
