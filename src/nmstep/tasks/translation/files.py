"""Finding and reading parallel text: line-by-line files, parquet folders, hub names."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from nmstep.tasks.translation import parquet

HUB_NAME = "wmt/wmt17"
_HELD_OUT = ("test", "newstest", "valid", "val", "dev")


@dataclass(frozen=True, kw_only=True)
class ParallelText:
    """Returns sentences and their translations, pair by pair.

    Args:
        source: sentences to translate.
        target: their translations, as many.
        where: what they were read from, for messages.

    Raises:
        ValueError: if there are none, or not as many of each.
    """

    source: list[str]
    target: list[str]
    where: str

    def __post_init__(self) -> None:
        if len(self.source) != len(self.target):
            raise ValueError(
                f"{self.where} is not parallel: {len(self.source)} lines and {len(self.target)} lines, expected "
                "line k of one to be the translation of line k of the other; take both from the same release"
            )
        if not self.source:
            raise ValueError(f"{self.where} is empty: expected one sentence a line; unpack or fetch it again")

    def __len__(self) -> int:
        return len(self.source)


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """Returns the text to learn from and the text to be scored on.

    Args:
        train: training pairs.
        test: held-out pairs.
        test_name: which of the held-out sets it is.
    """

    train: ParallelText
    test: ParallelText
    test_name: str


def read_parallel(data: str | None, *, source: str, target: str, test: str | None = None) -> Corpus:
    """Returns training and held-out pairs. A local folder is read without any use of the network.

    A folder holds either files of one sentence a line, UTF-8, named ``STEM.LANGUAGE`` such as ``train.de``
    and ``train.en``, or parquet files named ``STEM*.parquet``, there or up to two folders down, with the
    columns of the hub's translation sets (``translation``) or one column a language. All stems that begin
    with ``train`` are training text, in order of name.

    Args:
        data: the folder, or the hub name "wmt/wmt17".
        source: the language to translate from, as files and columns call it.
        target: the language to translate into.
        test: the stem to be scored on; by default ``test``, else the first that begins with ``test``, else
            the last ``newstest*``, else the first ``valid*``, ``val*`` or ``dev*``.

    Raises:
        FileNotFoundError: if `data` is neither the hub name nor an existing path.
        ValueError: if `data` is None or a file, or files are missing, empty, of unequal length or no UTF-8.
        ImportError: if parquet files or the hub are asked for and `datasets` is not installed.
        ConnectionError: if the hub cannot be read.
    """
    if source == target:
        raise ValueError(f"source and target are both {source!r}: give two languages")
    if data is None:
        raise ValueError(
            f"parallel text does not come with nmstep: give data=, either a folder with train.{source} and "
            f"train.{target} (one sentence a line) and a test set named likewise, or the hub name {HUB_NAME!r}"
        )
    path = Path(data).expanduser()
    if path.is_dir():
        return _read_folder(path, source, target, test)
    if path.exists():
        raise ValueError(f"{str(path)!r} is a file: unpack it if it is an archive, and give the folder")
    if data == HUB_NAME:
        pairs = parquet.read_hub(data, source, target)
        texts = {stem: _pairs(*both, f"{data} ({stem})") for stem, both in pairs.items()}
        chosen = _choose(test, [stem for stem in texts if stem != "train"], data)
        return Corpus(train=texts["train"], test=texts[chosen], test_name=chosen)
    raise FileNotFoundError(
        f"no folder {str(path)!r} (given as data={data!r}): give a folder with train.{source} and "
        f"train.{target}, or the hub name {HUB_NAME!r}"
    )


def _pairs(source: list[str], target: list[str], where: str) -> ParallelText:
    return ParallelText(source=source, target=target, where=where)


def _read_folder(folder: Path, source: str, target: str, test: str | None) -> Corpus:
    stems = _stems(folder, source) | _stems(folder, target)
    if stems:
        training = _training(sorted(stems), folder, f".{source}")
        chosen = _choose(test, sorted(stems - set(training)), str(folder))
        parts = [_read_files(folder, stem, source, target) for stem in training]
        return Corpus(
            train=_joined(parts), test=_read_files(folder, chosen, source, target), test_name=chosen
        )
    tables = parquet.find(folder)
    if not tables:
        raise ValueError(_nothing_usable(folder, source, target))
    training = _training(sorted(tables), folder, "*.parquet")
    chosen = _choose(test, sorted(set(tables) - set(training)), str(folder))

    def read(stem: str) -> ParallelText:
        where = f"{str(folder)!r} ({stem})"
        return _pairs(*parquet.read_files(tables[stem], source, target), where)

    return Corpus(train=_joined([read(stem) for stem in training]), test=read(chosen), test_name=chosen)


def _stems(folder: Path, language: str) -> set[str]:
    ending = f".{language}"
    return {file.name.removesuffix(ending) for file in folder.iterdir() if file.name.endswith(ending)}


def _training(stems: list[str], folder: Path, ending: str) -> list[str]:
    training = [stem for stem in stems if stem.startswith("train")]
    if not training:
        raise ValueError(
            f"no training text in {str(folder)!r}: expected train{ending}, found {', '.join(stems)}; "
            "name the training files train or train-something"
        )
    return training


def _choose(test: str | None, stems: list[str], where: str) -> str:
    """Returns the held-out stem: the one asked for, or the default that `read_parallel` describes."""
    listed = ", ".join(stems) or "none"
    if test is not None:
        if test not in stems:
            raise ValueError(f"no held-out set {test!r} in {where!r}: give one that is there: {listed}")
        return test
    for kind in _HELD_OUT:
        found = [stem for stem in stems if stem.startswith(kind)]
        if found:
            return found[-1] if kind == "newstest" else found[0]
    raise ValueError(
        f"no held-out set in {where!r}: expected a name that begins with {', '.join(_HELD_OUT)}, found {listed}; "
        "name one with test="
    )


def _read_files(folder: Path, stem: str, source: str, target: str) -> ParallelText:
    paths = [folder / f"{stem}.{language}" for language in (source, target)]
    for path, other in (paths, paths[::-1]):
        if not path.is_file():
            raise ValueError(
                f"{str(path)!r} is missing, while {other.name} is there: expected one file a language; add it, or "
                "choose other languages with source= and target="
            )
    return _pairs(_read_lines(paths[0]), _read_lines(paths[1]), f"{str(paths[0])!r} with {paths[1].name}")


def _read_lines(path: Path) -> list[str]:
    """Returns the lines; only line feeds end one, since text may hold other separators within a sentence."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise ValueError(f"line {line} of {str(path)!r} is not UTF-8: convert the file to UTF-8") from error
    lines = text.replace("\r\n", "\n").split("\n")
    return lines if lines[-1] else lines[:-1]


def _joined(parts: list[ParallelText]) -> ParallelText:
    return ParallelText(
        source=[line for part in parts for line in part.source],
        target=[line for part in parts for line in part.target],
        where=", ".join(part.where for part in parts),
    )


def _nothing_usable(folder: Path, source: str, target: str) -> str:
    names = sorted(entry.name + "/" * entry.is_dir() for entry in folder.iterdir())
    found = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
    return (
        f"no parallel text in {str(folder)!r}: looked for train.{source} with train.{target}, and for "
        f"train*.parquet; found {found or 'nothing'}; unpack archives, give the folder that holds the files, "
        f"choose the languages with source= and target=, or use the hub name {HUB_NAME!r}"
    )
