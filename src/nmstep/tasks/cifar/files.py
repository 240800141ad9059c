"""Finding and reading CIFAR-10 and CIFAR-100: original folders, parquet folders, hub names."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from nmstep.tasks.cifar import parquet
from nmstep.tasks.images import ImageSet
from nmstep.tasks.safe_pickle import ByteArray, read_pickle

_SIDE = 32


@dataclass(frozen=True, kw_only=True)
class CifarSource:
    """Returns how one of the two data sets is laid out.

    Args:
        title: its name in messages.
        classes: number of classes.
        folder: the folder that the official archive unpacks to.
        train_files: its pickles with training images.
        test_files: its pickles with test images.
        label_key: the labels' key in a pickle.
        hub_name: the data set's name on the Hugging Face hub.
        label_columns: names that the labels' parquet column goes by.
    """

    title: str
    classes: int
    folder: str
    train_files: tuple[str, ...]
    test_files: tuple[str, ...]
    label_key: str
    hub_name: str
    label_columns: tuple[str, ...]


CIFAR10 = CifarSource(
    title="CIFAR-10",
    classes=10,
    folder="cifar-10-batches-py",
    train_files=tuple(f"data_batch_{number}" for number in range(1, 6)),
    test_files=("test_batch",),
    label_key="labels",
    hub_name="uoft-cs/cifar10",
    label_columns=("label", "labels"),
)
CIFAR100 = CifarSource(
    title="CIFAR-100",
    classes=100,
    folder="cifar-100-python",
    train_files=("train",),
    test_files=("test",),
    label_key="fine_labels",
    hub_name="uoft-cs/cifar100",
    label_columns=("fine_label", "fine_labels", "label"),
)


def read_cifar(source: CifarSource, data: str | None) -> tuple[ImageSet, ImageSet]:
    """Returns the training and the test set. A local folder is read without any use of the network.

    Args:
        source: which of the two.
        data: a folder that holds the official pickles or their folder, or parquet files named
            train*.parquet and test*.parquet (up to two folders down); or the hub name.

    Raises:
        FileNotFoundError: if `data` is neither the hub name nor an existing path.
        ValueError: if `data` is None, or the folder or a file in it is not as its publisher lays it out.
        ImportError: if parquet files or the hub are asked for and `datasets` is not installed.
        ConnectionError: if the hub cannot be read.
    """
    if data is None:
        raise ValueError(
            f"{source.title} does not come with nmstep: give data=, either a folder that holds "
            f"{source.folder!r} (or its files, or parquet files), or the hub name {source.hub_name!r}"
        )
    path = Path(data).expanduser()
    if path.is_dir():
        return _read_folder(source, path)
    if path.exists():
        raise ValueError(
            f"{str(path)!r} is a file: unpack it and give the folder that holds {source.folder!r}"
        )
    if data == source.hub_name:
        return parquet.read_hub(data, source.label_columns, source.classes)
    raise FileNotFoundError(
        f"no folder {str(path)!r} for {source.title} (given as data={data!r}): give a folder that holds "
        f"{source.folder!r}, or the hub name {source.hub_name!r}"
    )


def _read_folder(source: CifarSource, folder: Path) -> tuple[ImageSet, ImageSet]:
    wanted = source.train_files + source.test_files
    for place in (folder, folder / source.folder):
        missing = [name for name in wanted if not (place / name).is_file()]
        if not missing:
            train = _read_pickles(source, [place / name for name in source.train_files])
            return train, _read_pickles(source, [place / name for name in source.test_files])
        if len(missing) < len(wanted):
            raise ValueError(
                f"the {source.title} folder {str(place)!r} is incomplete: {', '.join(missing)} missing of "
                f"{', '.join(wanted)}; unpack the archive again"
            )
    found = {split: _parquet_files(folder, split) for split in ("train", "test")}
    if all(found.values()):
        return parquet.read_files(found["train"], found["test"], source.label_columns, source.classes)
    raise ValueError(_nothing_usable(source, folder))


def _parquet_files(folder: Path, split: str) -> list[Path]:
    for depth in ("", "*/", "*/*/"):
        if files := sorted(folder.glob(f"{depth}{split}*.parquet")):
            return files
    return []


def _nothing_usable(source: CifarSource, folder: Path) -> str:
    names = sorted(entry.name + "/" * entry.is_dir() for entry in folder.iterdir())
    found = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
    archives = [name for name in names if name.startswith("cifar") and ".tar" in name]
    way_out = (
        f"unpack {archives[0]} there"
        if archives
        else f"give the folder that holds {source.folder!r} as data="
    )
    return (
        f"no {source.title} in {str(folder)!r}: looked for "
        f"{', '.join(source.train_files + source.test_files)}, there and in {source.folder!r}, "
        f"and for train*.parquet with test*.parquet; found {found or 'nothing'}; "
        f"{way_out}, or use the hub name {source.hub_name!r}"
    )


def _read_pickles(source: CifarSource, paths: list[Path]) -> ImageSet:
    parts = [_read_batch(source, path) for path in paths]
    return ImageSet(
        images=torch.cat([part.images for part in parts]), labels=torch.cat([part.labels for part in parts])
    )


def _read_batch(source: CifarSource, path: Path) -> ImageSet:
    """Returns one official file: rows of 3072 bytes, 1024 red, 1024 green, 1024 blue, each row by row."""
    batch = read_pickle(path)
    data, labels = batch.get("data"), batch.get(source.label_key)
    if not isinstance(data, ByteArray) or not isinstance(labels, list):
        raise ValueError(
            f"{str(path)!r} is not a {source.title} file: expected an array 'data' and a list "
            f"{source.label_key!r}, found the keys {sorted(batch)}"
        )
    try:
        pixels = data.tensor()
    except ValueError as error:
        raise ValueError(f"the images in {str(path)!r} cannot be read: {error}") from error
    expected = (len(labels), 3 * _SIDE * _SIDE)
    if tuple(pixels.shape) != expected:
        raise ValueError(
            f"the images in {str(path)!r} have shape {tuple(pixels.shape)}, expected {expected} for its "
            f"{len(labels)} labels"
        )
    if not all(type(label) is int and 0 <= label < source.classes for label in labels):
        raise ValueError(f"a label in {str(path)!r} is not a whole number from 0 to {source.classes - 1}")
    return ImageSet(images=pixels.view(-1, 3, _SIDE, _SIDE), labels=torch.tensor(labels, dtype=torch.int64))
