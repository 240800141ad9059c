"""Tiny data sets in the official CIFAR layouts."""

import pickle
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest


@dataclass
class TinyCifar:
    """A folder with the official layout in it, and what was written there."""

    folder: Path
    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray


def _write(folder: Path, names: tuple[str, ...], key: bytes, count: int, classes: int, seed: int):
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    data = rng.integers(0, 256, (len(names), count, 3072), dtype=np.uint8)
    labels = [index % classes for index in range(count)]
    for name, rows in zip(names, data, strict=True):
        record = {b"data": rows, key: labels, b"filenames": [b"x.png"] * count}
        (folder / name).write_bytes(pickle.dumps(record, protocol=2))
    return data.reshape(-1, 3, 32, 32), np.array(labels * len(names))


@pytest.fixture
def tiny_cifar10(tmp_path):
    """100 training and 20 test images, balanced over 10 classes."""
    folder = tmp_path / "cifar-10-batches-py"
    train = _write(folder, tuple(f"data_batch_{number}" for number in range(1, 6)), b"labels", 20, 10, 0)
    return TinyCifar(tmp_path, *train, *_write(folder, ("test_batch",), b"labels", 20, 10, 1))


@pytest.fixture
def tiny_cifar100(tmp_path):
    """200 training and 100 test images, balanced over 100 classes."""
    folder = tmp_path / "cifar-100-python"
    train = _write(folder, ("train",), b"fine_labels", 200, 100, 0)
    return TinyCifar(tmp_path, *train, *_write(folder, ("test",), b"fine_labels", 100, 100, 1))
