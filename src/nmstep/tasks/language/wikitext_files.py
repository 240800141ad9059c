"""Finding and reading WikiText: the publisher's files, parquet and arrow folders, the hub."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from nmstep.tasks.language.plain_text import as_lines, read_file
from nmstep.tasks.tables import load_hub, read_table

Split = Literal["valid", "test"]
HUB_NAME = "Salesforce/wikitext"
_WHERE = f"the hub name {HUB_NAME!r} (its parquet files are at https://huggingface.co/datasets/{HUB_NAME})"
_FILES = "wiki.train.raw, wiki.valid.raw and wiki.test.raw (or .tokens, or parquet files)"
# "valid" finds both valid and validation.
_LAYOUTS = (
    "wiki.{split}.raw",
    "wiki.{split}.tokens",
    "{split}*.parquet",
    "{split}*/*.arrow",
    "*-{split}*.arrow",
)


@dataclass(frozen=True, kw_only=True)
class WikiTextSource:
    """Returns how one of the two data sets is called.

    Args:
        title: its name in messages.
        config: its configuration on the hub.
        folders: folders that its publishers' archives unpack to.
    """

    title: str
    config: str
    folders: tuple[str, ...]


WIKITEXT2 = WikiTextSource(
    title="WikiText-2", config="wikitext-2-raw-v1", folders=("wikitext-2-raw", "wikitext-2")
)
WIKITEXT103 = WikiTextSource(
    title="WikiText-103", config="wikitext-103-raw-v1", folders=("wikitext-103-raw", "wikitext-103")
)


def read_wikitext(
    source: WikiTextSource, data: str | None, *, split: Split, needs_train: bool
) -> tuple[list[str], list[str]]:
    """Returns the lines to train on and those to score, without blank ones.

    A folder is searched, then its sub-folders named as the data set is, for one of these layouts: wiki.*.raw,
    wiki.*.tokens, train*.parquet (valid*, test*) and arrow files as `datasets` writes them. The network is
    not used for a folder.

    Args:
        source: which of the two.
        data: a folder, or the hub name.
        split: which to score.
        needs_train: False to return no training lines where the folder has none.

    Raises:
        FileNotFoundError: if `data` is neither the hub name nor an existing path, or a split is missing.
        ValueError: if `data` is None, or a file is damaged or empty.
        ImportError: if a package is needed that is not installed.
        ConnectionError: if the hub cannot be read.
    """
    if data is None:
        raise ValueError(
            f"{source.title} does not come with nmstep: give data=, either a folder with {_FILES}, or {_WHERE}"
        )
    path = Path(data).expanduser()
    if path.is_dir():
        return _read_folder(source, path, split=split, needs_train=needs_train)
    if path.exists():
        raise ValueError(
            f"{str(path)!r} is a file: {source.title} is a folder with wiki.*.raw or the like in it; "
            "give further text to train on as train_text"
        )
    if data == HUB_NAME:
        return _read_hub(source, split)
    raise FileNotFoundError(
        f"no folder {str(path)!r} for {source.title} (given as data={data!r}): give a folder that holds "
        f"wiki.*.raw, wiki.*.tokens or parquet files, or {_WHERE}"
    )


def _read_folder(
    source: WikiTextSource, folder: Path, *, split: Split, needs_train: bool
) -> tuple[list[str], list[str]]:
    for place in (folder, *(folder / name for name in (source.config, *source.folders, "data"))):
        for layout in _LAYOUTS:
            found = {s: sorted(place.glob(layout.format(split=s))) for s in ("train", "valid", "test")}
            if any(found.values()):
                _check_complete(source, place, layout, found, ("train", split) if needs_train else (split,))
                train, scored = (_read_files(found[s]) for s in ("train", split))
                if not scored:
                    raise ValueError(f"{str(found[split][0])!r} holds no words: there is nothing to score")
                return train, scored
    names = sorted(entry.name + "/" * entry.is_dir() for entry in folder.iterdir())
    listing = (", ".join(names[:8]) or "nothing") + (", ..." if len(names) > 8 else "")
    raise FileNotFoundError(
        f"no {source.title} in {str(folder)!r}: looked for wiki.*.raw, wiki.*.tokens, train*.parquet and "
        f"arrow files, there and in {source.config!r} and {source.folders[0]!r}; found {listing}; "
        f"give the folder that holds them, or {_WHERE}"
    )


def _check_complete(
    source: WikiTextSource, place: Path, layout: str, found: dict[str, list[Path]], needed: tuple[str, ...]
) -> None:
    missing = [layout.format(split=split) for split in needed if not found[split]]
    if not missing:
        return
    present = ", ".join(file.name for files in found.values() for file in files)
    expected = ", ".join(layout.format(split=split) for split in ("train", "valid", "test"))
    other_text = (
        "; or give other text to train on as train_text" if "train" in needed and not found["train"] else ""
    )
    raise FileNotFoundError(
        f"the {source.title} folder {str(place)!r} has {present} but no {' and no '.join(missing)}: "
        f"expected {expected} side by side; add what is missing, or give {_WHERE} as data{other_text}"
    )


def _read_files(files: list[Path]) -> list[str]:
    return [line for file in files for line in _READERS[file.suffix](file)]


def _read_rows(file: Path) -> list[str]:
    table = read_table(file)
    names = table.column_names
    if "text" not in names:
        raise ValueError(
            f"{str(file)!r} has the columns {', '.join(names)}: expected the lines in a column 'text'"
        )
    return as_lines("".join(_line(row) for row in table["text"].to_pylist()))


def _line(row: str | None) -> str:
    """Returns a row as a line of the file that it was made from: with one line end."""
    text = row or ""
    return text if text.endswith("\n") else text + "\n"


_READERS = {".raw": read_file, ".tokens": read_file, ".parquet": _read_rows, ".arrow": _read_rows}


def _read_hub(source: WikiTextSource, split: Split) -> tuple[list[str], list[str]]:
    parts = load_hub(HUB_NAME, source.config)
    names = ("train", "validation" if split == "valid" else split)
    train, scored = (as_lines("".join(_line(row) for row in parts[name]["text"])) for name in names)
    return train, scored
