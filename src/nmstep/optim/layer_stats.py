"""What the trace says of each sparse layer: how its mask moves and where its weight is."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from nmstep.kernels import nm_mask
from nmstep.optim.sparse_step import PRUNED, SparseStep
from nmstep.optim.splitting import PatternOf
from nmstep.ranks import Ranks
from nmstep.shards import copies, local

__all__ = ["latent_masks", "layer_stats"]


def latent_masks(sparse: SparseStep, pattern_of: PatternOf) -> list[Tensor]:
    """Returns the mask of each sparse parameter's latent weight, eight entries a byte, while the step is open."""
    return [_packed(nm_mask(local(w), pattern_of(e), dim=e.dim or 0, pad=e.pad)) for e, w in sparse.latents()]


@torch.no_grad()
def layer_stats(
    sparse: SparseStep, pattern_of: PatternOf, old_masks: list[Tensor] | None, ranks: Ranks
) -> Tensor:
    """Returns flip rate, density, and the norms of the kept and the pruned part of each layer, shape (L, 4).

    The flip rate is the share of mask entries that differ from ``old_masks``; NaN without them. A mask that is
    chosen once never flips, and its pruned part is gone.

    Args:
        sparse: the closed sparse step.
        pattern_of: the patterns that its masks were chosen with.
        old_masks: from :func:`latent_masks` before the step.
        ranks: who holds the layers together.
    """
    rows, sizes = [], []
    for i, (entry, p) in enumerate(sparse):
        held, pruned = local(p), sparse.optimizer.state[p].get(PRUNED)
        flips = cut = torch.zeros((), dtype=torch.float64, device=held.device)
        if pruned is not None:
            pruned = local(pruned)
            cut = _square(pruned)
            flips = torch.full_like(cut, math.nan)
            if old_masks is not None:
                new = nm_mask(held + pruned, pattern_of(entry), dim=entry.dim or 0, pad=entry.pad)
                flips = _flipped(old_masks[i], _packed(new)).double()
        own = torch.stack([flips, torch.count_nonzero(held).double(), _square(held), cut])
        rows.append(own / copies(p, ranks.size))
        sizes.append(max(1, p.numel()))
    if not rows:
        return torch.zeros(0, 4)
    sums = ranks.sum(torch.stack([row.to(rows[0].device) for row in rows]))
    counts = torch.tensor(sizes, dtype=torch.float64).to(sums.device, non_blocking=True)
    return torch.cat([sums[:, :2] / counts[:, None], sums[:, 2:].sqrt()], dim=1)


def _square(tensor: Tensor) -> Tensor:
    """Returns the square of a norm, so exact that its root is the norm again."""
    wide = torch.promote_types(tensor.dtype, torch.float32)
    norm: Tensor = torch.linalg.vector_norm(tensor, dtype=wide)
    return norm.double().square()


def _packed(mask: Tensor) -> Tensor:
    """Returns a mask as the bits of a uint8 tensor, all of a model's masks being held for the length of a step."""
    bits = nn.functional.pad(mask.flatten(), (0, -mask.numel() % 8)).view(torch.uint8)
    eights = bits.view(bits.numel() // 8, 8)
    packed = eights[:, 0].clone()
    for bit in range(1, 8):
        packed |= eights[:, bit] << bit
    return packed


def _flipped(old: Tensor, new: Tensor) -> Tensor:
    """Returns how many bits differ."""
    differing = old ^ new
    return torch.stack([torch.count_nonzero(differing & (1 << bit)) for bit in range(8)]).sum()
