"""The order in which training examples are seen, as a pure function of seed and step."""

from __future__ import annotations

import hashlib
from collections import OrderedDict

import torch
from torch import Tensor


def generator(purpose: str, *numbers: int) -> torch.Generator:
    """Returns a CPU generator seeded by a hash of its arguments.

    Neighbouring seeds and steps give unrelated streams, and two purposes never share one.

    >>> a, b = generator("order", 0, 7), generator("order", 0, 7)
    >>> torch.equal(torch.randperm(5, generator=a), torch.randperm(5, generator=b))
    True
    """
    text = ":".join([purpose, *map(str, numbers)])
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)


_STRETCH = 50  # batches; fewer pad more, more shuffle less


class EpochOrder:
    """Which examples a step sees: an endless stream of shuffled epochs.

    The permutations of the last two epochs asked for are kept, so that walking through the steps costs one
    shuffle an epoch; what is kept never changes an answer.

    Args:
        size: examples in an epoch.

    Raises:
        ValueError: if `size` is below 1.
    """

    def __init__(self, size: int) -> None:
        if size < 1:
            raise ValueError(f"an epoch of {size} examples cannot be shuffled: give at least 1")
        self.size = size
        self._permutations: OrderedDict[tuple[int, int], Tensor] = OrderedDict()

    def places(self, step: int, *, seed: int, batch_size: int) -> list[tuple[int, Tensor]]:
        """Returns the examples of one step as (epoch, indices) pieces, in stream order.

        Indices are int64 in [0, size); the pieces' lengths add up to `batch_size`.

        Raises:
            ValueError: if `step` is negative or `batch_size` below 1.

        >>> [(epoch, len(indices)) for epoch, indices in EpochOrder(10).places(2, seed=0, batch_size=4)]
        [(0, 2), (1, 2)]
        """
        if step < 0 or batch_size < 1:
            raise ValueError(
                f"no batch at step={step} with batch_size={batch_size}: "
                "steps count from 0 and a batch has at least 1 example"
            )
        place, pieces, missing = step * batch_size, [], batch_size
        while missing:
            epoch, start = divmod(place, self.size)
            taken = min(missing, self.size - start)
            pieces.append((epoch, self._permutation(seed, epoch)[start : start + taken]))
            place, missing = place + taken, missing - taken
        return pieces

    def indices(self, step: int, *, seed: int, batch_size: int) -> Tensor:
        """Returns the examples of one step, int64 (batch_size,), whatever epoch each belongs to.

        Raises:
            ValueError: as `places`.
        """
        return torch.cat([piece for _, piece in self.places(step, seed=seed, batch_size=batch_size)])

    def _permutation(self, seed: int, epoch: int) -> Tensor:
        key = (seed, epoch)
        if key not in self._permutations:
            self._permutations[key] = torch.randperm(self.size, generator=generator("order", seed, epoch))
            if len(self._permutations) > 2:
                self._permutations.popitem(last=False)
        return self._permutations[key]


class BucketOrder:
    """Which examples a step sees when those of like length go together: still a pure function.

    The stream of shuffled epochs is cut into stretches of 50 batches (of fewer where an epoch is shorter). Each
    stretch is sorted by length, cut into batches, and the batches are shuffled. Every example of the stream is
    seen once, at most 49 steps earlier or later than without bucketing.

    Args:
        lengths: int64 (examples,) tokens of each example.
    """

    def __init__(self, lengths: Tensor) -> None:
        self._lengths = lengths
        self._order = EpochOrder(len(lengths))

    def indices(self, step: int, *, seed: int, batch_size: int) -> Tensor:
        """Returns the examples of one step, int64 (batch_size,).

        Raises:
            ValueError: if `step` is negative or `batch_size` below 1.
        """
        if step < 0 or batch_size < 1:
            return self._order.indices(step, seed=seed, batch_size=batch_size)  # which rejects them
        batches = max(1, min(_STRETCH, len(self._lengths) // batch_size))
        stretch, place = divmod(step, batches)
        stream = self._order.indices(stretch, seed=seed, batch_size=batches * batch_size)
        by_length = stream[self._lengths[stream].sort(stable=True).indices].view(batches, batch_size)
        shuffled = torch.randperm(batches, generator=generator("buckets", seed, stretch))
        return by_length[shuffled[place]]
