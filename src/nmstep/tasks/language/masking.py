"""BERT's masking: which tokens are to be guessed, and what stands in their place."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nmstep.tasks.language.subwords import Subwords

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
NOT_MASKED = -100


@dataclass(frozen=True, eq=False, kw_only=True)
class Masking:
    """Returns how sequences are made from tokens: [CLS], the tokens with some masked, [SEP].

    Of every sequence's tokens a share is chosen, rounded, at least one. A chosen token becomes [MASK] in 8
    of 10 cases, a random ordinary token in 1, and stays what it is in 1.

    Args:
        share: of the tokens to choose, above 0 and below 1.
        cls: number of [CLS].
        sep: number of [SEP].
        mask: number of [MASK].
        ordinary: numbers of the tokens that are not special, int64.

    Raises:
        ValueError: if `share` is out of range.
    """

    share: float
    cls: int
    sep: int
    mask: int
    ordinary: Tensor

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise ValueError(f"mask={self.share}: expected a share above 0 and below 1, as in mask=0.15")

    @classmethod
    def of(cls, tokenizer: Subwords, share: float) -> Masking:
        """Returns the masking with a tokenizer's special tokens.

        Raises:
            ValueError: if it lacks one that is needed, or `share` is out of range.
        """
        numbers = {token: tokenizer.id(token) for token in SPECIAL}
        missing = [token for token in ("[CLS]", "[SEP]", "[MASK]") if numbers[token] is None]
        if missing:
            raise ValueError(
                f"the tokenizer has no {' and no '.join(missing)}: give one of a BERT, or leave tokenizer out "
                "to learn one from the text"
            )
        special = {number for number in numbers.values() if number is not None}
        ordinary = [number for number in range(tokenizer.size) if number not in special]
        return cls(
            share=share,
            cls=numbers["[CLS]"] or 0,
            sep=numbers["[SEP]"] or 0,
            mask=numbers["[MASK]"] or 0,
            ordinary=torch.tensor(ordinary),
        )

    def apply(self, tokens: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Returns inputs and targets, int64 (rows, length + 2); targets are -100 where nothing is to guess.

        Args:
            tokens: int64 (rows, length).
            generator: draws the places and what stands there.
        """
        rows, length = tokens.shape
        chosen = max(1, round(self.share * length))
        places = torch.rand(rows, length, generator=generator).topk(chosen).indices
        originals = tokens.gather(1, places)
        fate = torch.rand(rows, chosen, generator=generator)
        others = self.ordinary[torch.randint(len(self.ordinary), (rows, chosen), generator=generator)]
        shown = torch.where(fate < 0.8, self.mask, torch.where(fate < 0.9, others, originals))
        inputs = self._framed(tokens.scatter(1, places, shown), self.cls, self.sep)
        nothing = torch.full_like(tokens, NOT_MASKED)
        return inputs, self._framed(nothing.scatter(1, places, originals), NOT_MASKED, NOT_MASKED)

    @staticmethod
    def _framed(tokens: Tensor, first: int, last: int) -> Tensor:
        column = tokens.new_ones(len(tokens), 1)
        return torch.cat([first * column, tokens, last * column], dim=1)
