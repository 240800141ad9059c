"""Opening checkpoint files and folders without running what is in them."""

from __future__ import annotations

import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nmstep.files import read_json, sha256_of
from nmstep.packages import require
from nmstep.verify.onnx_files import open_onnx
from nmstep.verify.stored import NM_SPARSITY, PACKED, Stored, StoredTensor, from_mapping, parse_promise

__all__ = ["check_recorded", "open_path"]

_PICKLES = (".pt", ".pth", ".bin", ".ckpt")
_WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "model.onnx",
)


def open_path(path: Path) -> Stored:
    """Returns the tensors of a checkpoint file, or of a Hugging Face or run folder.

    Raises:
        FileNotFoundError: there is no such path, the folder has no weights, or a shard is missing.
        ValueError: the file is empty, truncated, corrupted, of no known kind, or needs code to be read; or the
            weights of a run folder are not those that the run wrote.
        ImportError: it is a safetensors or ONNX file, and safetensors or onnx is not installed.
    """
    if path.is_dir():
        return _open_folder(path)
    if not path.exists():
        raise FileNotFoundError(f"nothing to read at {str(path)!r}: no such file or folder")
    return _open_file(path)


def _open_file(path: Path) -> Stored:
    if not path.is_file():
        raise ValueError(f"cannot read {str(path)!r}: it is neither a file nor a folder")
    if path.name.endswith(".index.json"):
        return _open_shards(path)
    if path.suffix not in (".safetensors", ".onnx", *_PICKLES):
        known = ", ".join((".safetensors", *_PICKLES, ".onnx", ".index.json"))
        raise ValueError(f"cannot read {str(path)!r}: expected one of {known}, or a folder with one of them")
    if path.stat().st_size == 0:
        raise ValueError(f"cannot read {str(path)!r}: the file is empty (0 bytes)")
    return {".safetensors": _open_safetensors, ".onnx": open_onnx}.get(path.suffix, _open_pickle)(path)


def _open_folder(folder: Path) -> Stored:
    config = folder / "config.json"
    values = read_json(config) if config.is_file() else {}
    for name in _WEIGHTS:
        if (folder / name).is_file():
            check_recorded(folder / name)
            stored = _open_file(folder / name)
            if stored.promise is None and NM_SPARSITY in values:
                stored = replace(stored, promise=parse_promise(values[NM_SPARSITY], str(config)))
            return replace(stored, label=str(folder))
    found = sorted(child.name for child in folder.iterdir())
    if "metrics.jsonl" in found and "result.json" not in found:
        raise FileNotFoundError(
            f"{str(folder)!r} is a run that is not finished and has no model yet: go on with it (nmstep train "
            "--resume), or name one of its checkpoint-*.pt"
        )
    listed = ", ".join(map(repr, found[:8])) + (f" and {len(found) - 8} more" if len(found) > 8 else "")
    raise FileNotFoundError(
        f"no weights in folder {str(folder)!r}: expected one of {', '.join(_WEIGHTS)}, "
        f"found {listed or 'nothing'}"
    )


def check_recorded(path: Path) -> None:
    """Raises ValueError if a run's ``result.json`` records another hash of its weights than they have."""
    result = path.parent / "result.json"
    recorded = read_json(result).get("sha256") if result.is_file() else None
    if recorded is not None and path.name == "model.safetensors" and sha256_of(path).hexdigest() != recorded:
        raise ValueError(
            f"{str(path)!r} is damaged, or was changed: it does not have the hash that {result.name} beside it "
            f"records; restore it, or delete {result.name} and resume the run, which writes it again"
        )


def _open_shards(index: Path) -> Stored:
    """Returns the tensors of a sharded checkpoint; each shard is opened once."""
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not places or not all(isinstance(v, str) for v in places.values()):
        raise ValueError(f"{str(index)!r} has no 'weight_map' of tensor names to file names")
    shards: dict[str, Stored] = {}
    for shard in dict.fromkeys(places.values()):
        if Path(shard).name != shard or shard.endswith(".index.json"):
            raise ValueError(f"{str(index)!r} points outside of its folder: {shard!r}")
        if not (index.parent / shard).is_file():
            raise FileNotFoundError(f"{str(index)!r} names shard {shard!r}, which is not beside it")
        shards[shard] = _open_file(index.parent / shard)
    lacking = [name for name, shard in places.items() if name not in shards[shard].tensors]
    if lacking:
        raise ValueError(
            f"{str(index)!r} places {lacking[0]!r} in {places[lacking[0]]!r}, which does not hold it"
        )
    if len({stored.metadata.get(PACKED) for stored in shards.values()}) > 1:
        raise ValueError(f"the shards that {str(index)!r} names are of different packed models")
    promise = next((stored.promise for stored in shards.values() if stored.promise is not None), None)
    metadata = {key: text for stored in shards.values() for key, text in stored.metadata.items()}
    tensors = {name: shards[shard].tensors[name] for name, shard in places.items()}
    return Stored(str(index), tensors, promise, metadata)


def _open_safetensors(path: Path) -> Stored:
    safetensors = require("safetensors", f"reading {str(path)!r}")
    try:
        file = safetensors.safe_open(path, framework="pt", device="cpu")
        metadata = file.metadata() or {}
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        tensors = {
            name: StoredTensor(
                tuple(part.get_shape()),
                part.get_dtype().startswith(("F", "BF")),
                partial(_read_safetensor, path, file, name),
            )
            for name, part in slices.items()
        }
    except (safetensors.SafetensorError, OSError) as error:
        raise _unreadable(path, error) from error
    if not tensors:
        raise ValueError(f"{str(path)!r} holds no tensors")
    promise = parse_promise(metadata[NM_SPARSITY], str(path)) if NM_SPARSITY in metadata else None
    return Stored(str(path), tensors, promise, metadata)


def _read_safetensor(path: Path, file: Any, name: str) -> Tensor:
    try:
        tensor: Tensor = file.get_tensor(name)
    except Exception as error:
        raise ValueError(f"cannot read {name!r} from {str(path)!r}: {error}") from error
    return tensor


def _open_pickle(path: Path) -> Stored:
    return from_mapping(load_pickle(path), str(path))


def load_pickle(path: Path) -> Mapping[Any, Any]:
    """Returns the state dict in a file that torch.save wrote, on the CPU; nothing in it is run.

    Raises:
        ValueError: the file is damaged, needs code, or holds something else.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an old pickle protocol is no news to who verifies
            # Files of torch's format before 1.6 are no zip archives and cannot be mapped.
            values = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        code = re.search(r"(?:GLOBAL|[Uu]nsupported (?:global|class))\W+(?:GLOBAL\W+)?([\w.]+)", str(error))
        if code is None:
            raise _unreadable(path, error) from error
        raise ValueError(
            f"refused to open {str(path)!r}: it is a pickle that needs the code of {code[1]!r}, which could "
            f"do anything; nmstep opens pickles with weights_only=True only. Save the state_dict() instead, "
            f"best as safetensors"
        ) from error
    except Exception as error:  # a damaged pickle raises anything: KeyError, EOFError, struct.error, …
        raise _unreadable(path, error) from error
    if not isinstance(values, Mapping):
        raise ValueError(f"{str(path)!r} holds a {type(values).__name__}: expected a state dict")
    return values


def _unreadable(path: Path, error: Exception) -> ValueError:
    """Returns the error for a damaged file, with the part of torch's message that says something."""
    text = str(error).rpartition("WeightsUnpickler error: ")[2].strip().partition("\n")[0]
    size = path.stat().st_size
    return ValueError(
        f"cannot read {str(path)!r} ({size:,} bytes): it is truncated, corrupted or no checkpoint "
        f"({type(error).__name__}: {text[:200]})"
    )
