"""Tables of examples: parquet and arrow files, and data sets on the Hugging Face hub."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from nmstep.packages import require
from nmstep.tasks.quiet import quiet_datasets


def load_hub(name: str, *config: str) -> Any:
    """Returns the splits of a data set on the hub, from `datasets`' own cache once fetched.

    Args:
        name: the data set's name there.
        *config: its configuration, where it has several.

    Raises:
        ImportError: if `datasets` is not installed.
        ConnectionError: if the hub cannot be read.
    """
    datasets = require("datasets", f"the hub name {name!r}")
    try:
        with quiet_datasets(datasets):
            return datasets.load_dataset(name, *config)
    except OSError as error:
        of_config = f" ({', '.join(config)})" if config else ""
        raise ConnectionError(
            f"cannot fetch {name!r}{of_config} from the Hugging Face hub: {error}; "
            "to work offline, give a local folder as data"
        ) from error


@contextlib.contextmanager
def open_parquet(files: Sequence[Path]) -> Iterator[Any]:
    """Gives parquet files as one `datasets.Dataset` for a `with` block; no network, no cache left behind.

    Args:
        files: of one split, in order.

    Raises:
        ImportError: if `datasets` is not installed.
        ValueError: if a file is damaged.
    """
    datasets = require("datasets", "a folder of parquet files")
    paths = [str(file) for file in files]
    with quiet_datasets(datasets), tempfile.TemporaryDirectory() as cache:
        try:
            table = datasets.Dataset.from_parquet(paths, cache_dir=cache)
        except (datasets.exceptions.DatasetGenerationError, ValueError) as error:
            raise ValueError(
                f"cannot read {', '.join(paths)} as parquet: {error.__cause__ or error}; download it again"
            ) from error
        yield table


def read_table(file: Path) -> Any:
    """Returns one parquet file, or one arrow file as `datasets` writes it, as a `pyarrow.Table`.

    Args:
        file: ends in .parquet or .arrow.

    Raises:
        ImportError: if `pyarrow`, which comes with `datasets`, is not installed.
        ValueError: if the file is damaged.
    """
    arrow = require("pyarrow", "parquet and arrow files")
    try:
        if file.suffix == ".parquet":
            # ParquetFile, unlike read_table, takes no column from the names of the folders above.
            return require("pyarrow.parquet", "parquet files").ParquetFile(file).read()
        return require("pyarrow.ipc", "arrow files").open_stream(file.read_bytes()).read_all()
    except arrow.ArrowException as error:
        raise ValueError(
            f"cannot read {str(file)!r} as {file.suffix[1:]}: {error}; download it again"
        ) from error
