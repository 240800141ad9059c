"""Plain text for language models, as lines: read from files and folders, cleaned in one way, counted."""

from __future__ import annotations

import codecs
from collections.abc import Iterable
from pathlib import Path

_ENDINGS = (".txt", ".raw", ".tokens")


def as_lines(text: str) -> list[str]:
    r"""Returns the lines of a text that are not blank, each with its line end.

    WikiText's own blank lines go too: its hub version holds them as empty rows, which no training script
    keeps, so file and hub give the same tokens.

    >>> as_lines(" = Title = \n \n Words .")
    [' = Title = \n', ' Words .\n']
    """
    return [line + "\n" for line in text.split("\n") if line.strip()]


def count_words(lines: Iterable[str]) -> int:
    r"""Returns the number of words between spaces, with one more for each line end.

    >>> count_words([" A line . \n", "Another\n"])
    6
    """
    return sum(len(line.split()) + 1 for line in lines)


def read_file(file: Path) -> list[str]:
    """Returns the lines of a UTF-8 file, whatever its line ends.

    Raises:
        ValueError: if it is not UTF-8.
    """
    try:
        return as_lines(file.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{str(file)!r} is not UTF-8 text: byte {error.start} cannot be read; convert it, for example "
            f"with iconv -t UTF-8"
        ) from None


def decode_part(part: bytes, data: str | None) -> str:
    r"""Returns the text of a part of a UTF-8 file; a character that is cut at either end is left out.

    Args:
        part: bytes of the file.
        data: where they come from, for messages.

    Raises:
        ValueError: if they are not UTF-8.

    >>> decode_part("né né".encode()[2:6], None)
    ' n'
    """
    start = next((i for i, byte in enumerate(part[:3]) if byte & 0xC0 != 0x80), min(3, len(part)))
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        text = decoder.decode(part[start:])
    except UnicodeDecodeError as error:
        raise ValueError(
            f"the text at data={data!r} is not UTF-8: {error.reason} after {error.start} bytes; convert it, "
            "for example with iconv -t UTF-8"
        ) from None
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_plain(path: str, option: str) -> list[str]:
    """Returns the lines of a text file, or of all text files of a folder in order of name.

    Of WikiText files in a folder only the training ones are read, so that no text to be scored slips into
    what a model or a tokenizer learns from.

    Args:
        path: a file of any name, or a folder of .txt, .raw and .tokens files.
        option: the option that gave the path, for messages.

    Raises:
        FileNotFoundError: if there is nothing at `path`.
        ValueError: if there is no text in it, or a file is not UTF-8.
    """
    place = Path(path).expanduser()
    if not place.exists():
        raise FileNotFoundError(
            f"no text at {str(place)!r} (given as {option}={path!r}): give a text file or a folder with "
            f"{', '.join('*' + ending for ending in _ENDINGS)}"
        )
    files = _text_files(place) if place.is_dir() else [place]
    lines = [line for file in files for line in read_file(file)]
    if not lines:
        raise ValueError(
            f"{option}={path!r} holds no text: looked for {', '.join('*' + ending for ending in _ENDINGS)} "
            "with words in them (of wiki.* files only wiki.train.*)"
        )
    return lines


def _text_files(folder: Path) -> list[Path]:
    return [
        file
        for file in sorted(folder.iterdir())
        if file.suffix in _ENDINGS
        and file.is_file()
        and (not file.name.startswith("wiki.") or file.name.startswith("wiki.train."))
    ]
