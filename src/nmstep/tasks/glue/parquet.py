"""Reading GLUE from parquet and arrow files and from the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nmstep.packages import require
from nmstep.tasks.glue.sources import GlueExamples, GlueSource
from nmstep.tasks.tables import load_hub, read_table


def split_files(folder: Path, split: str) -> list[Path]:
    """Returns a split's parquet files, or else its arrow files; an empty list if it has none.

    Found are `train-00000-of-00001.parquet` and the like, a folder `train` of them, as
    `Dataset.save_to_disk` writes it, and `glue-train.arrow`, as `datasets` caches it.
    """
    for kind in ("parquet", "arrow"):
        for stem in (split, f"{split}-*", f"{split}/*", f"glue-{split}", f"glue-{split}-*"):
            if files := sorted(folder.glob(f"{stem}.{kind}")):
                return files
    return []


def read_files(source: GlueSource, train: list[Path], dev: list[Path]) -> tuple[GlueExamples, GlueExamples]:
    """Returns training and held-out examples of local files; uses no network and leaves no cache behind.

    Args:
        source: which task.
        train: files with the training examples, all parquet or all arrow.
        dev: files with the held-out examples, likewise.

    Raises:
        ImportError: if `pyarrow`, which comes with `datasets`, is not installed.
        ValueError: if a file is damaged or empty, a column is missing, or a label is out of range.
    """
    return _read_split(source, train), _read_split(source, dev)


def read_hub(source: GlueSource, name: str) -> tuple[GlueExamples, GlueExamples]:
    """Returns training and held-out examples from the hub, from `datasets`' own cache once fetched.

    Args:
        source: which task.
        name: the data set's name on the hub.

    Raises:
        ImportError: if `datasets` is not installed.
        ConnectionError: if the hub cannot be read.
        ValueError: as `read_files`.
    """
    splits = load_hub(name, source.config)
    train, dev = (
        _examples(source, splits[split].data.table, f"{name} ({source.config}, {split})")
        for split in ("train", source.hub_dev)
    )
    return train, dev


def _read_split(source: GlueSource, files: list[Path]) -> GlueExamples:
    arrow = require("pyarrow", "parquet and arrow files")
    return _examples(
        source, arrow.concat_tables([read_table(file) for file in files]), ", ".join(map(str, files))
    )


def _examples(source: GlueSource, table: Any, where: str) -> GlueExamples:
    wanted = (*source.hub_columns, "label")
    if missing := [name for name in wanted if name not in table.column_names]:
        raise ValueError(
            f"{where} has the columns {', '.join(table.column_names)}: {', '.join(missing)} missing of the "
            f"{', '.join(wanted)} that {source.title} has"
        )
    if not table.num_rows:
        raise ValueError(f"{where} holds no examples")
    texts = [[text or "" for text in table[name].to_pylist()] for name in source.hub_columns]
    labels = table["label"].to_pylist()
    highest = 5 if source.is_regression else len(source.labels) - 1
    for row, label in enumerate(labels):
        whole = source.is_regression or isinstance(label, int)
        if not (isinstance(label, (int, float)) and whole and 0 <= label <= highest):
            raise ValueError(
                f"{where}, row {row}, has the label {label!r}, expected "
                f"{'a number' if source.is_regression else 'a whole number'} from 0 to {highest}"
            )
    return source.examples(texts, labels)
