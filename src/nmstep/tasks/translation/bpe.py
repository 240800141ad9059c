"""Sentences of both languages in one vocabulary of subwords, kept in flat memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nmstep.tasks.language.subwords import Subwords
from nmstep.tasks.models.transformer import BOS, EOS, PAD

_SPECIAL = {PAD: "<pad>", BOS: "<s>", EOS: "</s>"}


@dataclass(frozen=True)
class Sentences:
    """Encoded sentences, each ended by EOS.

    Args:
        tokens: all sentences one after the other, int32.
        ends: where each ends in `tokens`, int64 (sentences,).
    """

    tokens: Tensor
    ends: Tensor

    def __len__(self) -> int:
        return len(self.ends)

    @property
    def lengths(self) -> Tensor:
        """Tokens of each sentence, EOS included, int64 (sentences,)."""
        return self.ends.diff(prepend=torch.zeros(1, dtype=torch.int64))

    def select(self, indices: Tensor) -> Tensor:
        """Returns these sentences, int64 (indices, longest of them), padded at the end.

        >>> sentences = Sentences(torch.tensor([5, 6, 2, 7, 2], dtype=torch.int32), torch.tensor([3, 5]))
        >>> sentences.select(torch.tensor([1, 0]))
        tensor([[7, 2, 0],
                [5, 6, 2]])
        """
        ends = self.ends[indices].unsqueeze(1)
        starts = self.ends[indices - 1].where(indices > 0, 0).unsqueeze(1)
        places = starts + torch.arange(int((ends - starts).max()))
        tokens = self.tokens[places.clamp(max=len(self.tokens) - 1)].long()
        return tokens.where(places < ends, PAD)


class SharedBpe:
    """A byte-level BPE for both languages.

    Every byte has a token, so any text is encoded and decoded without loss, but for spaces at its ends.
    Merges are learned from the given text alone and do not cross spaces. A word that begins a sentence is
    encoded as it is elsewhere.

    Args:
        texts: lines to learn from; their order is of no account.
        vocabulary: tokens at most, three special ones and 256 bytes included; a small text gives fewer.

    Raises:
        ImportError: if `tokenizers` is not installed.
        ValueError: if `vocabulary` is below 259.
    """

    def __init__(self, texts: Sequence[str], *, vocabulary: int) -> None:
        special = [_SPECIAL[token] for token in sorted(_SPECIAL)]
        self._subwords = Subwords.learn(_spaced(texts), vocabulary=vocabulary, special=special)

    @property
    def size(self) -> int:
        """Number of tokens."""
        return self._subwords.size

    def encode(self, texts: Sequence[str]) -> Sentences:
        """Returns the sentences, each ended by EOS; an empty text is EOS alone."""
        tokens, counts = self._subwords.encode(_spaced(texts))
        ends = (counts + 1).cumsum(0)
        ended = torch.full((int(ends[-1]),), EOS, dtype=torch.int32)
        inside = torch.ones_like(ended, dtype=torch.bool)
        inside[ends - 1] = False
        ended[inside] = tokens
        return Sentences(ended, ends)

    def decode(self, tokens: Sequence[int]) -> str:
        """Returns a text; bytes that are no UTF-8 become replacement characters."""
        words = [token for token in tokens if token not in _SPECIAL]
        return self._subwords.decode(words).strip()


def _spaced(texts: Sequence[str]) -> list[str]:
    return [f" {text}" if text.strip() else "" for text in map(str.strip, texts)]
