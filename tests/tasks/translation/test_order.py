import pytest
import torch

from nmstep.tasks.translation.order import LengthOrder

LENGTHS = torch.randint(1, 60, (103,), generator=torch.Generator().manual_seed(0))


def stream(order, steps, batch_size, seed=0):
    return torch.cat(
        [order.indices(step, seed=seed, batch_size=batch_size) for step in range(steps)]
    ).tolist()


@pytest.mark.parametrize("batch_size", [1, 7, 10, 103, 150, 400])
def test_each_epoch_holds_every_example_once(batch_size):
    got = stream(LengthOrder(LENGTHS, bucket=3), 4 * 103 // batch_size + 1, batch_size)
    for epoch in range(len(got) // 103):
        assert sorted(got[103 * epoch : 103 * (epoch + 1)]) == list(range(103))


def test_batches_hold_similar_lengths_in_later_epochs_too():
    order = LengthOrder(LENGTHS, bucket=50)
    for first in (0, 11, 52):  # epochs 0, 1 and 5; the batches that an epoch boundary cuts are left out
        spreads = []
        for step in range(first, first + 9):
            if step * 10 // 103 == (step * 10 + 9) // 103:
                lengths = LENGTHS[order.indices(step, seed=0, batch_size=10)]
                spreads.append(int(lengths.max() - lengths.min()))
        # Sorted, ten of 103 examples span about a tenth of the range; at random, about nine tenths.
        assert sum(spreads) / len(spreads) < 12


def test_order_depends_on_seed_and_epoch_and_nothing_else():
    order = LengthOrder(LENGTHS)
    late = order.indices(57, seed=1, batch_size=10)
    order.indices(0, seed=1, batch_size=10)
    order.indices(5, seed=2, batch_size=7)
    order.indices(12, seed=1, batch_size=45)  # the same epoch, cut otherwise
    assert torch.equal(order.indices(57, seed=1, batch_size=10), late)
    assert torch.equal(LengthOrder(LENGTHS).indices(57, seed=1, batch_size=10), late)
    assert not torch.equal(order.indices(57, seed=2, batch_size=10), late)
    assert stream(order, 10, 10)[:100] != stream(order, 21, 10)[110:]


def test_batches_do_not_come_in_order_of_length():
    order = LengthOrder(LENGTHS)
    means = [LENGTHS[order.indices(step, seed=0, batch_size=10)].float().mean().item() for step in range(10)]
    assert means != sorted(means)


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="no batch at step=-1"):
        LengthOrder(LENGTHS).indices(-1, seed=0, batch_size=4)
    with pytest.raises(ValueError, match="no batch at step=0 with batch_size=0"):
        LengthOrder(LENGTHS).indices(0, seed=0, batch_size=0)
    with pytest.raises(ValueError, match="an epoch of 0 examples"):
        LengthOrder(LENGTHS[:0])
