"""Reading parallel text through the `datasets` library: parquet files and the Hugging Face hub."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from nmstep.tasks.tables import load_hub, open_parquet

Pairs = tuple[list[str], list[str]]


def find(folder: Path) -> dict[str, list[Path]]:
    """Returns the parquet files of each split, by its stem: "train" for train-00000-of-00030.parquet.

    Looks in `folder`, else in its folders, else in theirs.
    """
    for depth in ("", "*/", "*/*/"):
        found: dict[str, list[Path]] = {}
        for file in sorted(folder.glob(f"{depth}*.parquet")):
            found.setdefault(re.sub(r"-\d+-of-\d+$", "", file.stem), []).append(file)
        if found:
            return found
    return {}


def read_files(files: list[Path], source: str, target: str) -> Pairs:
    """Returns the sentences of local parquet files; uses no network and leaves no cache behind.

    Args:
        files: the files of one split, in order.
        source: the language to translate from.
        target: the language to translate into.

    Raises:
        ImportError: if `datasets` is not installed.
        ValueError: if a file is damaged or a language is not in it.
    """
    with open_parquet(files) as table:
        return _sentences(table, source, target, ", ".join(map(str, files)))


def read_hub(name: str, source: str, target: str) -> dict[str, Pairs]:
    """Returns the sentences of each split on the hub, from `datasets`' own cache once fetched.

    Args:
        name: the data set's name there.
        source: the language to translate from; with `target` it names the configuration, as in "de-en".
        target: the language to translate into.

    Raises:
        ImportError: if `datasets` is not installed.
        ConnectionError: if the hub cannot be read.
        ValueError: if the data set has no such pair of languages.
    """
    # Configurations are named with English last, whichever way one translates.
    config = f"{target}-{source}" if source == "en" else f"{source}-{target}"
    splits = load_hub(name, config)
    return {split: _sentences(table, source, target, f"{name} ({split})") for split, table in splits.items()}


def _sentences(table: Any, source: str, target: str, where: str) -> Pairs:
    columns = table.column_names
    if {source, target} <= set(columns):
        return [line or "" for line in table[source]], [line or "" for line in table[target]]
    languages = list(table.features["translation"]) if "translation" in columns else []
    if not {source, target} <= set(languages):
        raise ValueError(
            f"{where} has the columns {', '.join(columns)}"
            + (f" with the languages {', '.join(languages)}" if languages else "")
            + f": expected columns {source} and {target}, or a column translation that holds both; "
            "choose the languages with source= and target="
        )
    pairs: Pairs = [], []
    for rows in table.select_columns(["translation"]).iter(batch_size=10_000):
        pairs[0].extend(row[source] or "" for row in rows["translation"])
        pairs[1].extend(row[target] or "" for row in rows["translation"])
    return pairs
