import pytest
import torch

from nmstep.tasks.order import EpochOrder, generator


@pytest.mark.parametrize(("size", "batch_size"), [(10, 5), (10, 3), (7, 20), (1, 4)])
def test_each_epoch_holds_every_example_once(size, batch_size):
    order = EpochOrder(size)
    epochs = 3
    steps = -(-epochs * size // batch_size)
    stream = torch.cat([order.indices(step, seed=5, batch_size=batch_size) for step in range(steps)])
    for epoch in range(epochs):
        assert sorted(stream[epoch * size : (epoch + 1) * size].tolist()) == list(range(size))


def test_order_is_the_same_forwards_backwards_and_in_a_new_object():
    order = EpochOrder(10)
    forwards = [order.indices(step, seed=1, batch_size=4) for step in range(12)]
    backwards = [order.indices(step, seed=1, batch_size=4) for step in reversed(range(12))][::-1]
    fresh = [EpochOrder(10).indices(step, seed=1, batch_size=4) for step in range(12)]
    for a, b, c in zip(forwards, backwards, fresh, strict=True):
        assert a.tolist() == b.tolist() == c.tolist()


def test_epochs_and_seeds_are_shuffled_differently():
    order = EpochOrder(100)
    first, second = (order.indices(step, seed=0, batch_size=100).tolist() for step in range(2))
    other = order.indices(0, seed=1, batch_size=100).tolist()
    assert first != second
    assert first != other
    assert first != list(range(100))


def test_order_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    EpochOrder(50).indices(3, seed=0, batch_size=8)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_returned_batch_can_be_changed_without_harm():
    order = EpochOrder(4)
    batch = order.indices(0, seed=0, batch_size=4)
    expected = batch.tolist()
    batch.zero_()
    assert order.indices(0, seed=0, batch_size=4).tolist() == expected


def test_purposes_do_not_share_a_stream():
    draws = {
        tuple(torch.randint(1 << 30, (4,), generator=generator(name, 0)).tolist()) for name in ("a", "b")
    }
    assert len(draws) == 2


@pytest.mark.parametrize(("step", "batch_size"), [(-1, 4), (0, 0)])
def test_impossible_batches_are_refused(step, batch_size):
    with pytest.raises(ValueError, match=f"no batch at step={step} with batch_size={batch_size}"):
        EpochOrder(10).indices(step, seed=0, batch_size=batch_size)


def test_an_empty_epoch_is_refused():
    with pytest.raises(ValueError, match="an epoch of 0 examples cannot be shuffled"):
        EpochOrder(0)
