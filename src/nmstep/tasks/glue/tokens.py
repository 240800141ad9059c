"""Tokenised sentences, kept flat, and the batches made of them."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from nmstep.tasks.glue.sources import GlueExamples
from nmstep.tasks.task import Batch

_TEXTS_AT_ONCE = 10_000
_MULTIPLE = 8


@dataclass(frozen=True, kw_only=True)
class TokenSet:
    """Returns tokenised examples, one after the other without padding.

    Args:
        ids: int32 (tokens,) of all examples.
        types: uint8 (tokens,) which sentence each token is of, or None where the model does not ask.
        starts: int64 (examples,) place of each example's first token.
        lengths: int64 (examples,) tokens of each example.
        labels: (examples,) int64 or float32.
        padding: the token that fills a batch up.
        most: tokens that no batch is padded beyond.
    """

    ids: Tensor
    types: Tensor | None
    starts: Tensor
    lengths: Tensor
    labels: Tensor
    padding: int
    most: int

    def __len__(self) -> int:
        return len(self.lengths)

    def batch(self, indices: Tensor) -> Batch:
        """Returns the examples `indices` as a batch: int64 inputs and extras, all (len(indices), tokens).

        Padded on the right to the longest of them, rounded up to a multiple of 8 but not beyond `most`.
        """
        lengths = self.lengths[indices].unsqueeze(1)
        longest = int(lengths.max())
        columns = torch.arange(min(-(-longest // _MULTIPLE) * _MULTIPLE, max(self.most, longest)))
        real = columns < lengths
        places = torch.where(real, self.starts[indices].unsqueeze(1) + columns, 0)
        extras = {"attention_mask": real.long()}
        if self.types is not None:
            extras["token_type_ids"] = torch.where(real, self.types[places].long(), 0)
        ids = torch.where(real, self.ids[places].long(), self.padding)
        return Batch(inputs=ids, targets=self.labels[indices], extras=extras)


def tokenise(examples: GlueExamples, tokenizer: Any, *, max_length: int) -> TokenSet:
    """Returns examples as tokens; the longer sentence of a pair is cut first where both do not fit.

    Args:
        examples: sentences and labels.
        tokenizer: of transformers.
        max_length: tokens of an example at most, special ones included.
    """
    typed = "token_type_ids" in tokenizer.model_input_names
    ids, types, lengths = [], [], []
    for start in range(0, len(examples.first), _TEXTS_AT_ONCE):
        piece = slice(start, start + _TEXTS_AT_ONCE)
        encoded = tokenizer(
            examples.first[piece],
            None if examples.second is None else examples.second[piece],
            truncation=True,
            padding=False,
            max_length=max_length,
            return_attention_mask=False,
        )
        ids.append(torch.tensor(list(chain.from_iterable(encoded["input_ids"])), dtype=torch.int32))
        if typed:
            types.append(
                torch.tensor(list(chain.from_iterable(encoded["token_type_ids"])), dtype=torch.uint8)
            )
        lengths += [len(row) for row in encoded["input_ids"]]
    counts = torch.tensor(lengths)
    return TokenSet(
        ids=torch.cat(ids),
        types=torch.cat(types) if typed else None,
        starts=counts.cumsum(0) - counts,
        lengths=counts,
        labels=examples.labels,
        padding=int(tokenizer.pad_token_id),
        most=max_length,
    )
