"""Reading CIFAR through the `datasets` library: parquet files and the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nmstep.packages import require
from nmstep.tasks.images import ImageSet
from nmstep.tasks.tables import load_hub, open_parquet

_IMAGE_COLUMNS = ("img", "image")


def read_files(
    train: list[Path], test: list[Path], label_columns: tuple[str, ...], classes: int
) -> tuple[ImageSet, ImageSet]:
    """Returns training and test set of local parquet files; uses no network and leaves no cache behind.

    Args:
        train: files with the training images.
        test: files with the test images.
        label_columns: names that the label column may have, the preferred one first.
        classes: labels must be below this.

    Raises:
        ImportError: if `datasets`, `numpy` or `pillow` is not installed.
        ValueError: if a file is damaged, a column is missing, an image is not 32 × 32 or a label is
            out of range.
    """
    sets = []
    for files in (train, test):
        with open_parquet(files) as table:
            sets.append(_image_set(table, label_columns, classes, ", ".join(map(str, files))))
    return sets[0], sets[1]


def read_hub(name: str, label_columns: tuple[str, ...], classes: int) -> tuple[ImageSet, ImageSet]:
    """Returns training and test set of a data set on the hub, from `datasets`' own cache once fetched.

    Args:
        name: the data set's name there.
        label_columns: as in `read_files`.
        classes: as in `read_files`.

    Raises:
        ImportError: if `datasets`, `numpy` or `pillow` is not installed.
        ConnectionError: if the hub cannot be read.
        ValueError: as `read_files`.
    """
    splits = load_hub(name)
    train, test = (
        _image_set(splits[split], label_columns, classes, f"{name} ({split})") for split in ("train", "test")
    )
    return train, test


def _image_set(table: Any, label_columns: tuple[str, ...], classes: int, where: str) -> ImageSet:
    for package in ("numpy", "PIL"):
        require(package, "images")
    datasets = require("datasets", "images in tables")
    image = next((name for name in _IMAGE_COLUMNS if name in table.column_names), None)
    label = next((name for name in label_columns if name in table.column_names), None)
    if image is None or label is None:
        raise ValueError(
            f"{where} has the columns {', '.join(table.column_names)}: expected images in "
            f"{' or '.join(_IMAGE_COLUMNS)} and labels in {' or '.join(label_columns)}"
        )
    decoded = table.cast_column(image, datasets.Image(mode="RGB"))
    labels = torch.tensor(list(table[label]), dtype=torch.int64)
    if not len(labels) or labels.min() < 0 or labels.max() >= classes:
        raise ValueError(f"{where} has no labels, or one outside 0 to {classes - 1}")
    return ImageSet(images=torch.stack([_pixels(row[image], where) for row in decoded]), labels=labels)


def _pixels(image: Any, where: str) -> Tensor:
    numpy = require("numpy", "images")
    if image.size != (32, 32):
        raise ValueError(
            f"{where} has an image of {image.size[0]} × {image.size[1]} pixels, expected 32 × 32"
        )
    return torch.from_numpy(numpy.array(image)).permute(2, 0, 1)
