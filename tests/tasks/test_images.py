import numpy as np
import pytest
import torch

from nmstep.tasks.images import balanced_subset, crop_and_flip, normalise


def every_crop(image):
    """Returns all 162 results that shifting by up to 4 and mirroring allow, in plain numpy."""
    padded = np.zeros((3, 40, 40), dtype=np.uint8)
    padded[:, 4:36, 4:36] = image
    crops = [padded[:, y : y + 32, x : x + 32] for y in range(9) for x in range(9)]
    return {crop.tobytes() for crop in crops} | {crop[:, :, ::-1].tobytes() for crop in crops}


def test_each_image_becomes_one_of_its_own_crops():
    images = torch.randint(0, 256, (40, 3, 32, 32), dtype=torch.uint8)
    result = crop_and_flip(images, seed=0, step=0)
    assert result.dtype == torch.uint8
    for before, after in zip(images.numpy(), result.numpy(), strict=True):
        assert after.tobytes() in every_crop(before)


def test_all_shifts_and_both_sides_come_up():
    place = torch.arange(32 * 32).reshape(32, 32) % 251 + 1  # no two neighbours alike, never 0
    image = place.to(torch.uint8).expand(1, 3, 32, 32)
    crops = every_crop(image[0].numpy())
    seen = {row.numpy().tobytes() for row in crop_and_flip(image.repeat(2000, 1, 1, 1), seed=0, step=0)}
    assert len(crops) == 162
    assert seen == crops


def test_augmentation_depends_on_seed_and_step_only():
    images = torch.randint(0, 256, (8, 3, 32, 32), dtype=torch.uint8)
    before = torch.get_rng_state()
    first = crop_and_flip(images, seed=1, step=2)
    assert torch.equal(first, crop_and_flip(images, seed=1, step=2))
    assert not torch.equal(first, crop_and_flip(images, seed=1, step=3))
    assert not torch.equal(first, crop_and_flip(images, seed=2, step=2))
    assert torch.equal(torch.get_rng_state(), before)


def test_normalise_literal():
    images = torch.tensor([0, 51, 255], dtype=torch.uint8).view(1, 3, 1, 1)
    result = normalise(images, (0.5, 0.1, 0.0), (0.25, 0.1, 2.0))
    torch.testing.assert_close(result.flatten(), torch.tensor([-2.0, 1.0, 0.5]))


def test_subsets_are_balanced_nested_and_the_same_each_time():
    labels = torch.arange(10).repeat_interleave(7)
    large, small = balanced_subset(labels, 50), balanced_subset(labels, 23)
    assert labels[large].bincount().tolist() == [5] * 10
    assert sorted(labels[small].bincount().tolist()) == [2] * 7 + [3] * 3
    assert torch.equal(large[:23], small)
    assert len(set(large.tolist())) == 50
    assert not torch.equal(balanced_subset(labels, 50, seed=1), large)


def test_subset_of_unbalanced_classes_takes_all_of_the_rare_one():
    labels = torch.tensor([0] * 20 + [1] * 2)
    assert labels[balanced_subset(labels, 10)].bincount().tolist() == [8, 2]
    assert sorted(balanced_subset(labels, 22).tolist()) == list(range(22))


@pytest.mark.parametrize("count", [0, 5])
def test_impossible_subsets_are_refused(count):
    with pytest.raises(ValueError, match=f"a subset of {count} cannot be taken of 4 examples: give 1 to 4"):
        balanced_subset(torch.tensor([0, 1, 0, 1]), count)
