"""A text's tokens as training windows, and the strided score of a language model on them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from nmstep.tasks.order import EpochOrder, generator


class TokenStream:
    """Training windows of a text as a pure function of step and seed.

    An epoch cuts the tokens into windows of `context`, the first of which starts at a place that is drawn
    anew each epoch, 0 to context - 1.

    Args:
        tokens: integers (tokens,).
        context: tokens in a window.

    Raises:
        ValueError: if there are fewer than 2 * context tokens.
    """

    def __init__(self, tokens: Tensor, context: int) -> None:
        if len(tokens) < 2 * context:
            raise ValueError(
                f"the training text has {len(tokens)} tokens, but context={context} needs {2 * context}: "
                "give a longer text or a smaller context"
            )
        self._tokens, self._context = tokens, context
        self._order = EpochOrder((len(tokens) - context) // context)

    def __len__(self) -> int:
        """Windows in an epoch."""
        return self._order.size

    def windows(self, step: int, *, seed: int, batch_size: int, length: int | None = None) -> Tensor:
        """Returns the windows of one step, int64 (batch_size, length).

        Args:
            step: optimizer steps taken before.
            seed: chooses order and starts.
            batch_size: windows.
            length: tokens of each, at most context + 1; by default context + 1, so that the window
                holds what follows its last token.

        Raises:
            ValueError: if `step` is negative or `batch_size` below 1.
        """
        starts = []
        for epoch, indices in self._order.places(step, seed=seed, batch_size=batch_size):
            shift = torch.randint(self._context, (), generator=generator("shift", seed, epoch))
            starts.append(indices * self._context + shift)
        reach = torch.arange(self._context + 1 if length is None else length)
        return self._tokens[torch.cat(starts).unsqueeze(1) + reach].long()


def strided_windows(tokens: int, *, context: int, stride: int) -> Iterator[tuple[int, int, int]]:
    """Yields (start, end, scored) of the windows of a strided evaluation.

    Windows of `context` tokens start at 0, stride, 2 * stride and so on, the last one shorter; in each, only
    the `scored` last tokens count, those that no window before it had.

    Args:
        tokens: length of the text.
        context: tokens of a window.
        stride: tokens from one window's start to the next one's.

    >>> list(strided_windows(11, context=6, stride=3))
    [(0, 6, 5), (3, 9, 3), (6, 11, 2)]
    """
    seen = 0
    for start in range(0, tokens, stride):
        end = min(start + context, tokens)
        # A window's first token has nothing before it to be predicted from.
        yield start, end, min(end - seen, end - start - 1)
        seen = end
        if end == tokens:
            break


def strided_score(
    tokens: Tensor,
    logits: Callable[[Tensor, int], Tensor],
    *,
    context: int,
    stride: int,
    batch_tokens: int = 8192,
) -> tuple[float, int]:
    """Returns the summed negative log-likelihood in nats of the scored tokens, and their number.

    Args:
        tokens: integers (tokens,), at least 2.
        logits: takes int64 inputs (windows, length) and a number k; returns float32 (windows, k, vocabulary)
            predictions of what follows the last k inputs.
        context: tokens of a window.
        stride: tokens from one window's start to the next one's.
        batch_tokens: inputs in one call of `logits`, about.
    """
    rows, total, count = max(1, batch_tokens // context), 0.0, 0
    for spans in _alike(strided_windows(len(tokens), context=context, stride=stride), rows):
        scored = spans[0][2]
        windows = torch.stack([tokens[start:end] for start, end, _ in spans]).long()
        predicted = logits(windows[:, :-1], scored)
        targets = windows[:, -scored:].to(predicted.device)
        total += F.cross_entropy(predicted.flatten(0, 1), targets.flatten(), reduction="sum").item()
        count += targets.numel()
    return total, count


def _alike(spans: Iterator[tuple[int, int, int]], most: int) -> Iterator[list[tuple[int, int, int]]]:
    """Yields neighbouring windows of one length and one number of scored tokens, `most` at once."""
    group: list[tuple[int, int, int]] = []
    for span in spans:
        if span[2] < 1:
            continue
        shape = (span[1] - span[0], span[2])
        if group and (len(group) == most or shape != (group[0][1] - group[0][0], group[0][2])):
            yield group
            group = []
        group.append(span)
    if group:
        yield group


def exp(value: float) -> float:
    """Returns e to the value; infinity where that overflows, as a diverged model's loss does.

    >>> exp(1000.0)
    inf
    """
    try:
        return math.exp(value)
    except OverflowError:
        return math.inf
