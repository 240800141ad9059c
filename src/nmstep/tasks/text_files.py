"""Finding and reading the text of a language model: the shipped one, a file, or a folder."""

from __future__ import annotations

import lzma
from importlib import resources
from pathlib import Path

_KINDS = ("wiki.*.tokens", "wiki.*.raw", "*.txt")


def read_text(data: str | None) -> tuple[bytes, bytes]:
    """Returns the training and validation bytes of a text; no byte is changed.

    - None: the Tiny Shakespeare of the package, split 90 to 10.
    - a file: its first 90 % train, the rest validates.
    - a folder with `wiki.train.tokens` and `wiki.valid.tokens` (or `.raw`): the publisher's split; the test
      file is not read.
    - a folder of `.txt` files: all of them in order of name, each split 90 to 10, so that validation holds
      some of every file.

    Args:
        data: a path, or None.

    Raises:
        FileNotFoundError: if there is nothing at `data`.
        ValueError: if a folder holds no such files, or WikiText files without both splits.
    """
    if data is None:
        packed = resources.files("nmstep.tasks").joinpath("data", "tinyshakespeare.txt.xz").read_bytes()
        return _split(lzma.decompress(packed))
    path = Path(data).expanduser()
    if path.is_file():
        return _split(path.read_bytes())
    if path.is_dir():
        return _read_folder(path)
    raise FileNotFoundError(
        f"no text at {str(path)!r} (given as data={data!r}): give a text file or a folder with "
        f"{', '.join(_KINDS)}, or leave data out for the Tiny Shakespeare of the package"
    )


def _read_folder(folder: Path) -> tuple[bytes, bytes]:
    for ending in ("tokens", "raw"):
        found = sorted(file.name for file in folder.glob(f"wiki.*.{ending}") if file.is_file())
        if not found:
            continue
        train, validation = folder / f"wiki.train.{ending}", folder / f"wiki.valid.{ending}"
        missing = [file.name for file in (train, validation) if not file.is_file()]
        if missing:
            raise ValueError(
                f"the WikiText folder {str(folder)!r} has {', '.join(found)} but no "
                f"{' and no '.join(missing)}: add what is missing, or give one of its files as data "
                "to have it split 90 to 10"
            )
        return train.read_bytes(), validation.read_bytes()
    texts = [file for file in sorted(folder.glob("*.txt")) if file.is_file()]
    if not texts:
        names = sorted(file.name for file in folder.iterdir())
        listing = (", ".join(names[:8]) or "nothing") + (", ..." if len(names) > 8 else "")
        raise ValueError(
            f"no text in the folder {str(folder)!r}: looked for {', '.join(_KINDS)}, "
            f"found {listing}; give the file itself as data"
        )
    parts = [_split(file.read_bytes()) for file in texts]
    return b"".join(train for train, _ in parts), b"".join(validation for _, validation in parts)


def _split(text: bytes) -> tuple[bytes, bytes]:
    """Returns the first 90 % of the bytes and the rest.

    >>> _split(b"0123456789abc")
    (b'0123456789a', b'bc')
    """
    cut = len(text) * 9 // 10
    return text[:cut], text[cut:]
