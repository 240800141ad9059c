"""A shuffled order in which a batch's sentences have similar lengths, as a pure function of seed and step."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor

from nmstep.tasks.order import EpochOrder, generator


class LengthOrder:
    """Which examples a step sees: shuffled epochs, cut into batches of similar length.

    Each epoch shuffles all examples, sorts every `bucket` batches by length, and shuffles the batches. What
    an epoch boundary cuts through, one batch an epoch, is not sorted. What is kept between calls never
    changes an answer.

    Args:
        lengths: what to sort by, (examples,).
        bucket: batches that are sorted together: more means less padding and less shuffling.

    Raises:
        ValueError: if there are no examples.
    """

    def __init__(self, lengths: Tensor, *, bucket: int = 50) -> None:
        self._epochs = EpochOrder(len(lengths))
        self._lengths = lengths
        self._bucket = bucket
        self._orders: OrderedDict[tuple[int, int, int], Tensor] = OrderedDict()

    def indices(self, step: int, *, seed: int, batch_size: int) -> Tensor:
        """Returns the examples of one step, int64 (batch_size,): places of the stream of epochs, in order.

        Raises:
            ValueError: if `step` is negative or `batch_size` below 1.

        >>> order = LengthOrder(torch.tensor([1, 9, 1, 9, 1, 9]))
        >>> sorted(order.indices(0, seed=0, batch_size=6).tolist())
        [0, 1, 2, 3, 4, 5]
        """
        size, pieces, missing = self._epochs.size, [], batch_size
        self._epochs.places(step, seed=seed, batch_size=batch_size)  # rejects bad arguments
        place = step * batch_size
        while missing:
            epoch, start = divmod(place, size)
            taken = min(missing, size - start)
            pieces.append(self._order(seed, epoch, batch_size)[start : start + taken])
            place, missing = place + taken, missing - taken
        return torch.cat(pieces)

    def _order(self, seed: int, epoch: int, batch_size: int) -> Tensor:
        key = (seed, epoch, batch_size)
        if key not in self._orders:
            self._orders[key] = self._make_order(seed, epoch, batch_size)
            if len(self._orders) > 2:
                self._orders.popitem(last=False)
        return self._orders[key]

    def _make_order(self, seed: int, epoch: int, batch_size: int) -> Tensor:
        ((_, shuffled),) = self._epochs.places(epoch, seed=seed, batch_size=self._epochs.size)
        # The batch that the epoch before began takes the first few; whole batches follow.
        first = min(-epoch * len(shuffled) % batch_size, len(shuffled))
        last = len(shuffled) - (len(shuffled) - first) % batch_size
        buckets = [
            bucket[self._lengths[bucket].argsort(stable=True)]
            for bucket in shuffled[first:last].split(self._bucket * batch_size)
        ]
        batches = torch.cat(buckets).view(-1, batch_size)
        order = torch.randperm(len(batches), generator=generator("batches", seed, epoch))
        return torch.cat([shuffled[:first], batches[order].flatten(), shuffled[last:]])
