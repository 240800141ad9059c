"""Parameters of which each rank holds a part: DTensors, as FSDP2 and tensor parallelism make them.

Whatever is done for each weight, or for each group of M, is done on the part that a rank holds, without a word to
the others. That needs every group to lie whole on one rank, which :func:`check_shards` sees to.
"""

from __future__ import annotations

import sys
from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, nn

__all__ = [
    "aligned",
    "check_members",
    "check_shards",
    "copies",
    "is_sharded",
    "local",
    "placed_like",
    "reshard",
    "touch",
]

_ORDINARY = (Tensor, nn.Parameter)


def is_sharded(tensor: Tensor) -> bool:
    """Whether a tensor is torch's DTensor, of which a rank holds a part (or a copy)."""
    if type(tensor) in _ORDINARY:
        return False
    # Whoever has a DTensor has imported its module; for everybody else it would be a second of start-up.
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def local(tensor: Tensor) -> Tensor:
    """Returns what this rank holds of a tensor: the same memory; the tensor itself where it is not a DTensor."""
    if type(tensor) in _ORDINARY:  # at once: every step asks this of every tensor
        return tensor
    # Not to_local(), which makes another view of a parameter at each call: the kernels know tensors again.
    return tensor._local_tensor if is_sharded(tensor) else tensor  # type: ignore[attr-defined]


def touch(*tensors: Tensor | None) -> None:
    """Counts a write in DTensors whose local parts were written to, as torch does where it writes itself."""
    written = [tensor for tensor in tensors if tensor is not None and is_sharded(tensor)]
    if written:
        torch.autograd.graph.increment_version(written)


def reshard(model: nn.Module) -> None:
    """Makes FSDP2 gather its parameters anew before the next forward pass, for whoever has written to the shards.

    It leaves the root's gathered after a forward pass that no backward pass follows; such copies see no write.
    """
    module = sys.modules.get("torch.distributed.fsdp")
    if module is None:
        return
    for layer in model.modules():
        if isinstance(layer, module.FSDPModule):
            layer.reshard()


def aligned(tensor: Tensor, p: Tensor) -> Tensor:
    """Returns a gradient or state of ``p`` with its parts where those of ``p`` are; itself where they are."""
    if not (is_sharded(p) and is_sharded(tensor)):
        return tensor
    target, given = _spec(p), _spec(tensor)
    if given.placements == target.placements:
        return tensor
    return tensor.redistribute(target.device_mesh, target.placements)  # type: ignore[attr-defined, no-any-return]


def placed_like(tensor: Tensor, p: Tensor) -> Tensor:
    """Returns a whole tensor cut as ``p`` is, or put together where ``p`` is whole. All ranks must call it."""
    if is_sharded(p) and not is_sharded(tensor):
        from torch.distributed.tensor import distribute_tensor

        spec = _spec(p)
        return distribute_tensor(tensor.to(p.device), spec.device_mesh, spec.placements)
    if is_sharded(tensor) and not is_sharded(p):
        return tensor.full_tensor()  # type: ignore[attr-defined, no-any-return]
    return aligned(tensor, p)


def copies(tensor: Tensor, ranks: int) -> float:
    """Returns on how many of ``ranks`` processes each element of a parameter lies.

    Args:
        tensor: a parameter. One that is no DTensor lies on all of them.
        ranks: the processes that train the model together.
    """
    if not is_sharded(tensor):
        return float(ranks)
    spec = _spec(tensor)
    found: float = ranks / spec.device_mesh.size()
    for size, placement in zip(spec.device_mesh.shape, spec.placements, strict=True):
        found *= size if placement.is_replicate() else 1
    return found


def check_members(tensor: Tensor, members: Collection[int]) -> None:
    """Raises ValueError where parts of a parameter lie on ranks that are not said to train it.

    Args:
        tensor: the parameter.
        members: the ranks that train the model together, as torch.distributed counts all of them.

    Raises:
        ValueError: its mesh holds another rank.
    """
    if not is_sharded(tensor):
        return
    mesh = [int(rank) for rank in _spec(tensor).device_mesh.mesh.flatten()]
    if set(mesh) - set(members):
        raise ValueError(
            f"a parameter of shape {tuple(tensor.shape)} is cut over the ranks {mesh}, but process_group is of the "
            f"ranks {sorted(members)} alone: sums over the model would lack the others' parts. Give "
            f"nmstep.sparsify a process group of all ranks that hold the model, or leave it at 'world'"
        )


def check_shards(name: str, tensor: Tensor, *, dim: int, m: int) -> None:
    """Raises ValueError where a group of a parameter would lie on several ranks.

    Args:
        name: the parameter's, for the message.
        tensor: the parameter.
        dim: the dimension that groups run along.
        m: weights in a group.

    Raises:
        ValueError: shards along ``dim`` do not end where groups do, or the parameter is a sum still to be formed.
    """
    if not is_sharded(tensor):
        return
    spec, shape = _spec(tensor), tuple(tensor.shape)
    if any(placement.is_partial() for placement in spec.placements):
        raise ValueError(
            f"{name!r} is a Partial DTensor, a sum that no rank holds yet, so no mask can be chosen: "
            f"redistribute it"
        )
    # FSDP over tensor parallelism cuts a dimension twice; is_shard() does not know such a cut as one.
    cuts = [
        size
        for size, placement in zip(spec.device_mesh.shape, spec.placements, strict=True)
        if not placement.is_replicate() and placement.dim == dim % len(shape)
    ]
    pieces, size = 1, shape[dim]
    for cut in cuts:
        pieces *= cut
    largest = -(-size // pieces)
    if pieces == 1 or size % (pieces * m) == 0 or (len(cuts) == 1 and largest % m == 0):
        return
    owner = name.rpartition(".")[0] or name
    raise ValueError(
        f"cannot keep groups of {m} of {name!r} with shape {shape} whole: its dimension {dim % len(shape)}, which "
        f"they run along, is cut into {pieces} shards of {largest} elements, and {largest} is no multiple of {m}. "
        f"Make the dimension a multiple of {pieces * m} ({pieces} shards x {m}), shard along another dimension or "
        f"over fewer ranks, or leave it dense with exclude=[{owner!r}]"
    )


def _spec(tensor: Any) -> Any:
    return tensor._spec
