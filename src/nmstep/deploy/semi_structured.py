"""Layers for the sparse matrix units of NVIDIA's GPUs, through torch.sparse: at most two weights of every four."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.sparse import SparseSemiStructuredTensorCUSPARSELT, SparseSemiStructuredTensorCUTLASS

from nmstep.deploy.layer import PackedLayer
from nmstep.deploy.layers import PackedConv, PackedLinear, packed_type
from nmstep.deploy.packing import replaced
from nmstep.layout import reduction_dim
from nmstep.patterns import NMPattern
from nmstep.sparsity_plan import unwrap
from nmstep.tiles import as_rows
from nmstep.verify.groups import count_groups

__all__ = ["Converted", "SemiStructured", "SemiStructuredLinear", "to_semi_structured"]

Backend = Literal["cusparselt", "cutlass"]
#: What outputs and inputs must be multiples of.
_MULTIPLES: dict[Backend, tuple[int, int]] = {"cusparselt": (16, 16), "cutlass": (32, 64)}
_DTYPES = (torch.float16, torch.bfloat16)
_OF_FOUR = NMPattern(2, 4)
_CAPABILITY = (8, 0)  # of the first GPUs with these units


class SemiStructuredLinear(nn.Module):
    """A Linear whose weight torch.sparse holds: ``y = x @ weightᵀ + bias``, without gradients, on a GPU.

    Args:
        weight: of shape (outputs, inputs), a semi-structured tensor of torch.sparse.
        bias: of shape (outputs,), or None.
    """

    def __init__(self, weight: Tensor, bias: nn.Parameter | None) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.register_parameter("bias", bias)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's own name for it
        """Returns the product.

        Args:
            input: shape (…, inputs), of the weight's dtype, on the weight's GPU.

        Raises:
            ValueError: the input does not lie on a GPU, or is of another dtype or another last dimension.
        """
        if not input.is_cuda or input.dtype != self.weight.dtype or input.shape[-1:] != (self.in_features,):
            raise ValueError(
                f"a semi-structured layer of {self.in_features} inputs got {input.dtype} of shape "
                f"{tuple(input.shape)} on {input.device}: expected {self.weight.dtype} with {self.in_features} in "
                f"the last dimension, on a GPU"
            )
        if not input.numel():
            return input.new_empty(*input.shape[:-1], self.out_features)
        bias: Tensor | None = self._parameters["bias"]
        return F.linear(input.contiguous(), self.weight, bias)  # torch.sparse takes no other strides

    def extra_repr(self) -> str:
        """Returns the sizes, and what holds the weight."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}, "
            f"dtype={self.weight.dtype}"
        )


@dataclass(frozen=True)
class Converted:
    """What became of one layer.

    Args:
        name: of the layer.
        shape: of its dense weight.
        why_not: why it stays as it was; empty where it was converted.
    """

    name: str
    shape: tuple[int, ...]
    why_not: str


@dataclass(frozen=True)
class SemiStructured:
    """A model whose layers were converted as far as that goes; printed, it says which were not, and why.

    Args:
        model: shares what was not converted with the model that it was made from.
        layers: each Linear, Conv1D of transformers, convolution and packed layer.
        backend: which of torch's two holds the weights.
    """

    model: nn.Module
    layers: tuple[Converted, ...]
    backend: Backend

    def __str__(self) -> str:
        rows = [(e.name, "x".join(map(str, e.shape)), e.why_not or "converted") for e in self.layers]
        widths = [max(len(row[i]) for row in rows) for i in range(2)]
        lines = [f"{name.ljust(widths[0])}  {shape.ljust(widths[1])}  {text}" for name, shape, text in rows]
        done = sum(not e.why_not for e in self.layers)
        return "\n".join([*lines, f"{done} of {len(rows)} layers converted, by {self.backend}"])


@torch.no_grad()
def to_semi_structured(model: nn.Module, *, backend: Backend | None = None) -> SemiStructured:
    """Returns the model with its layers of at most two weights in every four in torch.sparse's form.

    Packed layers are unpacked for it, one at a time, and dense ones are looked at too. Weights count, not patterns:
    whatever holds at most two of every four will do, as any 1:4 and 1:16 does. torch drops further weights without
    a word, so groups are counted before, and the weight is compared with what torch gives back. The model is
    unchanged; what is not converted is shared. A packed layer that stays packed is warned of.

    Args:
        model: in float16 or bfloat16, on a GPU. It may be packed.
        backend: ``"cusparselt"`` takes multiples of 16 outputs and 16 inputs, ``"cutlass"`` of 32 and 64. The
            first that this torch has by default. Where it is asked for, ``"cutlass"`` converts on the CPU too; it
            runs on a GPU only.

    Raises:
        ValueError: no layer can be converted, or there is no such backend. The message says why.
        TypeError: ``model`` is no module.

    Example:
        >>> import nmstep
        >>> model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 10)).to(torch.bfloat16)
        >>> with torch.no_grad():
        ...     _ = model[0].weight.mul_(nmstep.nm_mask(model[0].weight, "1:8"))
        >>> print(to_semi_structured(nmstep.pack(model), backend="cutlass"))
        0  64x64  converted
        1  10x64  outputs and inputs must be multiples of 32 and 64 for cutlass
        1 of 2 layers converted, by cutlass
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"to_semi_structured takes a module, got a {type(model).__name__}")
    if backend not in (None, *_MULTIPLES):
        raise ValueError(f"backend={backend!r}: expected {' or '.join(map(repr, _MULTIPLES))}, or None")
    model, converter = unwrap(model), _Converter(backend)
    made: dict[str, nn.Module] = {}
    layers = []
    for name, module in model.named_modules():
        if isinstance(module, (nn.Linear, nn.Conv1d, nn.Conv2d, PackedLayer)) or _is_linear(module):
            done = converter(module)
            if isinstance(done, nn.Module):
                made[name] = done
            shape = (
                module.shape
                if isinstance(module, PackedLayer)
                else tuple(module.get_parameter("weight").shape)
            )
            layers.append(Converted(name, shape, "" if isinstance(done, nn.Module) else done))
    if not made:
        reasons = "".join(f"\n  {layer.name or 'the model'}: {layer.why_not}" for layer in layers[:5])
        raise ValueError(
            f"no layer of this {type(model).__name__} can be converted to torch.sparse's semi-structured form"
            f"{reasons or ': it has no Linear layer'}"
        )
    _warn_of([e for e in layers if e.why_not and isinstance(model.get_submodule(e.name), PackedLayer)])
    return SemiStructured(replaced(model, made, lambda name, _: made[name]), tuple(layers), converter.backend)


def _warn_of(left: list[Converted]) -> None:
    if left:
        more = f" and {len(left) - 5} more" if len(left) > 5 else ""
        reasons = "; ".join(f"{e.name!r}: {e.why_not}" for e in left[:5])
        warnings.warn(f"{len(left)} packed layer(s) stay packed: {reasons}{more}", stacklevel=4)


def _is_linear(module: nn.Module) -> bool:
    """Whether a layer is a packed or a plain dense Linear or Conv1D of transformers."""
    return isinstance(module, PackedLinear) or packed_type(module, _OF_FOUR) is PackedLinear


class _Converter:
    """Converts layers one by one; those that share a weight share it afterwards.

    Args:
        backend: as it was asked for.
    """

    def __init__(self, backend: Backend | None) -> None:
        has_cusparselt = torch.backends.cusparselt.is_available() or not torch.cuda.is_available()
        self.backend: Backend = backend or ("cusparselt" if has_cusparselt else "cutlass")
        self.takes_cpu = backend == "cutlass"
        self.weights: dict[int, Tensor] = {}

    def __call__(self, module: nn.Module) -> nn.Module | str:
        """Returns a layer converted, or why it cannot be."""
        if isinstance(module, (nn.Conv1d, nn.Conv2d, PackedConv)):
            return "a convolution: torch.sparse multiplies matrices"
        if not _is_linear(module):
            return f"a {type(module).__name__} of a derived class, or with hooks or parameters of its own"
        key = module.owner if isinstance(module, PackedLayer) else id(module.weight)
        if key not in self.weights:
            dense = module.dense() if isinstance(module, PackedLayer) else module
            weight = dense.get_parameter("weight").detach()
            weight = as_rows(weight, reduction_dim(dense, "weight") or 0).contiguous()
            problem = _why_not(weight, self.backend, takes_cpu=self.takes_cpu)
            if problem:
                return problem
            compressed = _compressed(weight, self.backend)
            if not torch.equal(compressed.to_dense(), weight):
                return f"{self.backend} gave other weights back"
            self.weights[key] = compressed
        bias = module._parameters.get("bias")
        shared = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)
        return SemiStructuredLinear(self.weights[key], shared).train(module.training)


def _why_not(weight: Tensor, backend: Backend, *, takes_cpu: bool) -> str:
    """Returns why a weight, (outputs, inputs), cannot be converted, or nothing."""
    outputs, inputs = _MULTIPLES[backend]
    if weight.dtype not in _DTYPES:
        return f"its weight is {weight.dtype}, not float16 or bfloat16: cast the model before"
    if not weight.is_cuda and not (takes_cpu and weight.device.type == "cpu"):
        return f"its weight lies on {weight.device}: move the model to a GPU before"
    if weight.is_cuda and torch.cuda.get_device_capability(weight.device) < _CAPABILITY:
        return "this GPU has no sparse matrix units: they came with compute capability 8.0"
    if weight.shape[0] % outputs or weight.shape[1] % inputs:
        return f"outputs and inputs must be multiples of {outputs} and {inputs} for {backend}"
    if not bool(weight.isfinite().all()):
        return "its weight holds NaN or infinity"
    first = count_groups(weight, _OF_FOUR, 1).first
    return "" if first is None else f"more than two weights of four: {first}"


def _compressed(weight: Tensor, backend: Backend) -> Tensor:
    """Returns torch's semi-structured tensor of a weight that nothing speaks against."""
    pack: dict[Backend, Callable[[Tensor], Tensor]] = {"cusparselt": _cusparselt, "cutlass": _cutlass}
    with warnings.catch_warnings():
        # The first tensor of the kind warns that torch may change its interface: tests would tell.
        warnings.filterwarnings("ignore", message=".*SparseSemiStructuredTensor")
        return pack[backend](weight)


def _cusparselt(weight: Tensor) -> Tensor:
    compressed: Tensor = SparseSemiStructuredTensorCUSPARSELT.from_dense(weight)
    return compressed


def _cutlass(weight: Tensor) -> Tensor:
    """As the class's own from_dense, which refuses the CPU though nothing in it needs a GPU."""
    from torch.sparse._semi_structured_conversions import sparse_semi_structured_from_dense_cutlass

    packed, meta = sparse_semi_structured_from_dense_cutlass(weight)
    compressed: Tensor = SparseSemiStructuredTensorCUTLASS(
        weight.shape, packed, meta, packed_t=None, meta_t=None, compressed_swizzled_bitmask=None
    )
    return compressed
