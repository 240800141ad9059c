"""Files that were cut short or have one wrong byte: found, or without effect, but never a wrong answer."""

from __future__ import annotations

import json
import random
import shutil
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from nmstep.deploy import pack_file
from nmstep.experiments import RunConfig, checkpoint
from nmstep.experiments.folder import check_folder
from nmstep.files import write_json
from nmstep.verify import verify
from nmstep.verify.files import open_path
from soak.children import train
from soak.rows import Row, attempt, timed
from soak.runs import Whole, differences

__all__ = ["cut_checkpoints", "cut_weights", "flipped_bytes", "flipped_text", "resumed_after_damage"]


@contextmanager
def _damaged(path: Path, data: bytes) -> Iterator[None]:
    """Gives a file other contents for a while, and then its own again."""
    whole = path.read_bytes()
    path.write_bytes(data)
    try:
        yield
    finally:
        path.write_bytes(whole)


def _flipped(data: bytes, place: int, bit: int) -> bytes:
    damaged = bytearray(data)
    damaged[place] ^= 1 << bit
    return bytes(damaged)


def _copy(whole: Whole, folder: Path, name: str) -> Path:
    place = folder / name
    shutil.copytree(whole.folder, place)
    return place


def _newest(place: Path) -> tuple[Path, Path]:
    """Returns the last checkpoint and the one before it."""
    paths = sorted(place.glob("checkpoint-*.pt"), key=lambda path: int(path.stem.partition("-")[2]))
    return paths[-1], paths[-2]


def _falls_back(place: Path, step: int) -> list[str]:
    """Returns what is wrong with how a damaged checkpoint is passed over for the one of ``step``."""
    latest = place / "latest.json"
    with _damaged(latest, latest.read_bytes()), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        state = checkpoint.load_latest(place)
    said = [str(warning.message) for warning in caught]
    if state is None or state["training"]["step"] != step:
        return ["the damaged checkpoint was taken"]
    return [] if any("going on from" in text for text in said) else ["nothing was said of the damage"]


def _is_refused(do: Callable[[], object], *words: str) -> list[str]:
    """Returns what is wrong unless a call raises a ValueError that has one of these words in it."""
    try:
        do()
    except ValueError as error:
        return [] if any(word in str(error) for word in words) else [f"told badly: {error}"]
    return ["nothing was said"]


def cut_checkpoints(wholes: list[Whole], folder: Path, *, every: int) -> Row:
    """Cuts the newest checkpoint short: the run goes on from the one before, and ``verify`` refuses it."""
    row = Row(f"checkpoint cut at every {every:,}th byte")
    place = _copy(wholes[0], folder, "cut")
    newest, before = _newest(place)
    data, step = newest.read_bytes(), int(before.stem.partition("-")[2])
    with timed(row):
        for size in range(0, len(data), every):
            with _damaged(newest, data[:size]):
                attempt(row, f"{size} bytes, resumed", lambda: _falls_back(place, step))
                attempt(
                    row, f"{size} bytes, verified", lambda: _is_refused(lambda: verify(newest), newest.name)
                )
    shutil.rmtree(place)
    return row


def cut_weights(wholes: list[Whole], folder: Path, *, every: int) -> Row:
    """Cuts the final weights, dense and packed, short: all that reads them refuses them."""
    row = Row(f"final and packed weights cut at every {every:,}th byte")
    place = _copy(wholes[0], folder, "cut-weights")
    pack_file(place, place / "packed.safetensors")
    (place / "result.json").unlink()  # its hash would find the damage before anything is read
    with timed(row):
        for path in (place / "model.safetensors", place / "packed.safetensors"):
            data = path.read_bytes()
            for size in range(0, len(data), every):
                with _damaged(path, data[:size]):
                    attempt(
                        row,
                        f"{path.name}, {size} bytes",
                        lambda path=path: _is_refused(lambda: open_path(path), path.name),  # type: ignore[misc]
                    )
    shutil.rmtree(place)
    return row


def flipped_bytes(wholes: list[Whole], folder: Path, *, count: int, chance: random.Random) -> Row:
    """Flips one bit of the newest checkpoint, or of the final weights: each is found by its hash."""
    row = Row("one flipped bit in a checkpoint, or in the final weights")
    place = _copy(wholes[0], folder, "flipped")
    newest, before = _newest(place)
    step = int(before.stem.partition("-")[2])
    weights = place / "model.safetensors"
    with timed(row):
        for _ in range(count):
            for path in (newest, weights):
                data = path.read_bytes()
                where = chance.randrange(len(data))
                with _damaged(path, _flipped(data, where, chance.randrange(8))):
                    check = (
                        (lambda: _falls_back(place, step))
                        if path is newest
                        else (lambda: _is_refused(lambda: verify(place), "damaged"))
                    )
                    attempt(row, f"{path.name}, byte {where}", check)
    shutil.rmtree(place)
    return row


def flipped_text(wholes: list[Whole], folder: Path, *, every: int, chance: random.Random) -> Row:
    """Flips one bit of each byte of what says which run it is, and which checkpoint is the last."""
    row = Row("one flipped bit in config.json and latest.json")
    whole = wholes[0]
    place = _copy(whole, folder, "flipped-text")
    config = RunConfig.load(place / "config.json")
    steps = {path: int(path.stem.partition("-")[2]) for path in _newest(place)}
    with timed(row):
        for name in ("config.json", "latest.json"):
            data = (place / name).read_bytes()
            for where in range(0, len(data), every):
                check = (
                    (lambda: _same_config(config, place))
                    if name == "config.json"
                    else (lambda: _same_state(place, steps.values()))
                )
                with _damaged(place / name, _flipped(data, where, chance.randrange(8))):
                    attempt(row, f"{name}, byte {where}", check)
    shutil.rmtree(place)
    return row


def _same_config(config: RunConfig, place: Path) -> list[str]:
    """Returns nothing where the damage is refused, or changes only what may differ (which is checked elsewhere)."""
    try:
        check_folder(config, place)
    except ValueError as error:
        return [] if str(error) else ["refused without a word"]
    read = RunConfig.load(place / "config.json")
    same = [
        getattr(read, name) == getattr(config, name) for name in ("seed", "lr", "steps", "options", "task")
    ]
    return [] if all(same) else ["another configuration was taken for this one"]


def _same_state(place: Path, steps: Iterable[int]) -> list[str]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            state = checkpoint.load_latest(place)
    except ValueError as error:
        return [] if "latest.json" in str(error) else [f"told badly: {error}"]
    if state is None or state["training"]["step"] not in steps:
        return ["another checkpoint was taken"]
    return []


def _go_back(place: Path) -> None:
    """Leaves a run's folder as it was when the last checkpoint but one had been written, with nothing before it."""
    newest, before = _newest(place)
    record = json.loads((place / "latest.json").read_text(encoding="utf-8"))
    newest.unlink()
    write_json(place / "latest.json", {**record["previous"], "previous": None})
    assert record["previous"]["file"] == before.name


def resumed_after_damage(wholes: list[Whole], folder: Path, *, count: int, chance: random.Random) -> Row:
    """Damages a file of a run that is not finished, resumes it, and compares: equal to the bit, or refused."""
    row = Row("one file of an unfinished run damaged, resumed")
    with timed(row):
        for i in range(count):
            whole = wholes[i % len(wholes)]
            place = _copy(whole, folder, f"damaged-{i}")
            (place / "result.json").unlink()
            if i % 2:  # as a run is that was killed between its last two checkpoints
                _go_back(place)
            last = place / json.loads((place / "latest.json").read_text(encoding="utf-8"))["file"]
            path = chance.choice([last, last, place / "metrics.jsonl", place / "model.safetensors"])
            data = path.read_bytes()
            where = chance.randrange(len(data))
            cut = chance.random() < 0.3
            path.write_bytes(data[:where] if cut else _flipped(data, where, chance.randrange(8)))

            def check(whole: Whole = whole, place: Path = place, name: str = path.name) -> list[str]:
                outcome = train(whole.config, place).outcome()
                if outcome.error is not None:
                    expected = outcome.error[0] == "ValueError" and name in outcome.error[1]
                    return [] if expected else [f"told badly: {outcome.error}"]
                return differences(place, whole.folder)

            attempt(row, f"{path.name}, {'cut at' if cut else 'bit of'} byte {where}", check)
            shutil.rmtree(place)
    return row
