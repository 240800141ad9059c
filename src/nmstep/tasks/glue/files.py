"""Finding and reading GLUE: the official tsv folders; parquet folders and the hub through `parquet`."""

from __future__ import annotations

import warnings
from pathlib import Path

from nmstep.tasks.glue import parquet
from nmstep.tasks.glue.sources import GlueExamples, GlueSource

HUB_NAME = "nyu-mll/glue"
_MSR_TRAIN, _MSR_TEST = "msr_paraphrase_train.txt", "msr_paraphrase_test.txt"


def read_glue(source: GlueSource, data: str | None) -> tuple[GlueExamples, GlueExamples]:
    """Returns the training and the held-out examples. A local folder is read without any use of the network.

    A folder is looked through in this order: the official tsv files; for MRPC, the two files of the
    Microsoft corpus, whose own test set is then held out (a warning says so); parquet or arrow files whose
    name, or whose folder's name, starts with the split as the hub calls it ("train", "validation", ...).

    Args:
        source: which task.
        data: a folder that holds the tasks' folders, or the task's own folder, or the hub name.

    Raises:
        FileNotFoundError: if `data` is neither the hub name nor an existing path, or a file is missing.
        ValueError: if `data` is None, or a file is not as its publisher lays it out.
        ImportError: if parquet files or the hub are asked for and `datasets` is not installed.
        ConnectionError: if the hub cannot be read.
    """
    if data is None:
        raise ValueError(f"GLUE does not come with nmstep: give data=, {_ways_out(source)}")
    path = Path(data).expanduser()
    if path.is_dir():
        return _read_folder(source, path)
    if path.exists():
        raise ValueError(f"{str(path)!r} is a file: give as data= {_ways_out(source)}")
    if data == HUB_NAME:
        return parquet.read_hub(source, data)
    raise FileNotFoundError(
        f"no folder {str(path)!r} for {source.title} (given as data={data!r}): give {_ways_out(source)}"
    )


def _ways_out(source: GlueSource) -> str:
    return (
        f"either a folder that holds {source.title}/train.tsv and {source.title}/{source.dev} (or that task's "
        f"own folder, or its parquet files), as the archives at https://gluebenchmark.com/tasks unpack to, "
        f"or the hub name {HUB_NAME!r}"
    )


def _read_folder(source: GlueSource, folder: Path) -> tuple[GlueExamples, GlueExamples]:
    places = [folder / source.title, folder / source.config, folder]
    for place in places:
        train, dev = place / "train.tsv", place / source.dev
        if train.is_file() and dev.is_file():
            return read_tsv(source, train), read_tsv(source, dev)
        if source.title == "MRPC" and (place / _MSR_TRAIN).is_file() and (place / _MSR_TEST).is_file():
            warnings.warn(
                f"{str(place)!r} has no train.tsv with dev.tsv, GLUE's division of MRPC: training on "
                f"{_MSR_TRAIN} and scoring on {_MSR_TEST}, the corpus's own test set",
                stacklevel=2,
            )
            return read_tsv(source, place / _MSR_TRAIN), read_tsv(source, place / _MSR_TEST)
        tables = [parquet.split_files(place, split) for split in ("train", source.hub_dev)]
        if all(tables):
            return parquet.read_files(source, *tables)
        if train.is_file() or dev.is_file():
            missing = dev if train.is_file() else train
            raise FileNotFoundError(f"{str(missing)!r} is missing: give {_ways_out(source)}")
    raise FileNotFoundError(_nothing_usable(source, folder))


def _nothing_usable(source: GlueSource, folder: Path) -> str:
    names = sorted(entry.name + "/" * entry.is_dir() for entry in folder.iterdir())
    found = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
    return (
        f"no {source.title} in {str(folder)!r}: looked for train.tsv with {source.dev}, and for train and "
        f"{source.hub_dev} as parquet or arrow, there and in {source.title!r} and {source.config!r}; found "
        f"{found or 'nothing'}; give {_ways_out(source)}"
    )


def read_tsv(source: GlueSource, path: Path) -> GlueExamples:
    """Returns one official tsv file: a line is an example, a tab ends a column, quotes mean nothing.

    Args:
        source: which task the file belongs to.
        path: the file.

    Raises:
        ValueError: if the file is not UTF-8, a column is missing, a row is short, a label is unknown, or
            there is no example.
    """
    rows = _rows(path)
    header = list(source.header) if source.header else rows.pop(0)[1] if rows else []
    places = [_place(header, column, source, path) for column in (*source.columns, source.label_column)]
    usable = [(line, row) for line, row in rows if len(row) > max(places)]
    if len(usable) < len(rows):
        _check_short_rows(source, path, rows, usable, header)
    if not usable:
        raise ValueError(f"{str(path)!r} holds no examples: expected one a line, {', '.join(header)}")
    texts = [[row[place] for _, row in usable] for place in places[:-1]]
    labels = [_label(source, row[places[-1]], path, line) for line, row in usable]
    return source.examples(texts, labels)


def _rows(path: Path) -> list[tuple[int, list[str]]]:
    """Returns (line number, columns); the csv module would split at bare carriage returns in a sentence."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{str(path)!r} is not UTF-8 text: {error}; download it again") from error
    lines = enumerate(text.split("\n"), start=1)
    return [(number, line.rstrip("\r").split("\t")) for number, line in lines if line.strip()]


def _place(header: list[str], column: str, source: GlueSource, path: Path) -> int:
    if column not in header:
        raise ValueError(
            f"{str(path)!r}, line 1, has the columns {', '.join(header) or '(none)'}: a {source.title} file "
            f"has {', '.join((*source.columns, source.label_column))} among them, separated by tabs"
        )
    return header.index(column)


def _check_short_rows(
    source: GlueSource,
    path: Path,
    rows: list[tuple[int, list[str]]],
    usable: list[tuple[int, list[str]]],
    header: list[str],
) -> None:
    """Raises unless the task's official files are known for a few such rows and these are few."""
    if source.skips_short_rows and len(rows) - len(usable) <= len(rows) // 100:
        return
    kept = {line for line, _ in usable}
    line, row = next((line, row) for line, row in rows if line not in kept)
    raise ValueError(
        f"{str(path)!r}, line {line}, has {len(row)} columns, expected {len(header)} separated by tabs: "
        f"{', '.join(header)}"
    )


def _label(source: GlueSource, text: str, path: Path, line: int) -> float:
    if not source.is_regression:
        if text in source.labels:
            return source.labels.index(text)
        raise ValueError(
            f"{str(path)!r}, line {line}, has the label {text!r}, expected {' or '.join(source.labels)}"
        )
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 5:
        raise ValueError(f"{str(path)!r}, line {line}, has the score {text!r}, expected a number from 0 to 5")
    return value
