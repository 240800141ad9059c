"""Is it N:M? The public function, and which tensors it expects to be."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor, nn

from nmstep.names import as_globs, matches, nearest
from nmstep.patterns import NMPattern
from nmstep.plan import plan as make_plan
from nmstep.sparsity_plan import PlanEntry, SparsityPlan
from nmstep.verify.files import open_path
from nmstep.verify.groups import count_groups, indivisible
from nmstep.verify.report import TensorReport, VerifyReport
from nmstep.verify.stored import PACKED, Stored, StoredTensor, from_mapping, from_module, plain_name

__all__ = ["verify"]

Target = nn.Module | Mapping[str, Tensor] | str | os.PathLike[str]
_EMBEDDING = re.compile(r"embed|^(wte|wpe|emb|shared)$", re.IGNORECASE)
_NORM = re.compile(r"norm|^(ln|bn)(_?[0-9a-z])?$", re.IGNORECASE)


def verify(
    target: Target,
    pattern: str | NMPattern | None = None,
    *,
    plan: SparsityPlan | None = None,
    include: Iterable[str] | None = None,
    exclude: Iterable[str] = (),
) -> VerifyReport:
    """Returns whether ``target`` is N:M, tensor by tensor: every group has at most N non-zeros.

    Which tensors are expected to be is taken from, in this order: ``plan``; for a module, the default
    plan for ``pattern``; the plan stored in the file. Each of their tensors must be there, have its
    shape and comply; ``pattern`` beside a plan is asked of all of the plan's sparse tensors instead of
    their own. With a pattern alone and no module at hand, every floating tensor of two or more
    dimensions whose name ends in ``weight`` must comply, save embeddings and norms (told by name):
    along dimension 1 or, with two dimensions, along dimension 0, since the shape cannot tell a
    transformers Conv1D from a Linear. What is meant to stay dense there must be excluded. An ONNX file with a
    pattern alone needs no guess: what its graph multiplies or convolves with must comply, along the dimension
    that is summed over.

    One tensor is read at a time. Nothing stored is executed: pickles are opened with ``weights_only=True``.

    Args:
        target: a module; a state dict; or a path to a .safetensors file (plan in its metadata under
            ``"nm_sparsity"``), a pickled state dict or checkpoint (.pt, .pth, .bin, .ckpt), an ONNX file
            (plan in its metadata likewise), a shard index, a Hugging Face folder (plan or pattern in its
            config.json under ``"nm_sparsity"``), or a run folder.
        pattern: N kept of M.
        plan: what to expect; for a path, instead of the stored one.
        include: globs of tensors or modules above them; only these are checked.
        exclude: globs of those that may be dense.

    Raises:
        FileNotFoundError: there is no such path, or no weights in the folder.
        ImportError: a safetensors or ONNX file is to be read, and safetensors or onnx is not installed.
        TypeError: ``target`` is of another type.
        ValueError: nothing says which pattern to expect; nothing is there to check; a name matches
            nothing; or a file cannot be read.

    Example:
        >>> import torch
        >>> weight = torch.tensor([[1.0, 0.0, 2.0, 0.0], [0.0, 1.0, 2.0, 3.0]])
        >>> report = verify({"fc.weight": weight}, "2:4")
        >>> report.ok, report.tensors[0].share, str(report.tensors[0].first)
        (False, 0.5, '[1, 0:4] = (0, 1, 2, 3) with 3 non-zeros')
    """
    if isinstance(pattern, SparsityPlan):
        raise TypeError("verify takes a plan by its name: verify(target, plan=plan)")
    stored = _open(target)
    asked = None if pattern is None else NMPattern.parse(pattern)
    selection = _Selection(
        None if include is None else as_globs(include, "include"), as_globs(exclude, "exclude")
    )
    if plan is None and isinstance(target, nn.Module):
        plan, selection = _module_plan(target, asked, selection), _Selection(None, ())
    elif plan is None and isinstance(stored.promise, SparsityPlan):
        plan = stored.promise
    if plan is None and asked is None and isinstance(stored.promise, NMPattern):
        asked = stored.promise
    if plan is None and asked is not None:
        plan = stored.layout
    if plan is not None:
        tensors = _check_plan(stored, plan if asked is None else plan.with_pattern(asked), selection)
    else:
        if asked is None:
            _refuse_packed(stored)
            raise ValueError(
                f"{stored.label} does not say which pattern it has: give one, as in verify(..., '2:4'), or "
                f"the plan it was trained with"
            )
        tensors = _check_candidates(stored, asked, selection)
    report = VerifyReport(target=stored.label, tensors=tuple(tensors))
    if not report.checked:
        raise ValueError(
            f"nothing to verify in {stored.label}: no tensor is expected to be sparse\n{_dense(report)}"
        )
    return report


def _open(target: Target) -> Stored:
    if isinstance(target, nn.Module):
        return from_module(target)
    if isinstance(target, Mapping):
        return from_mapping(target, "the state dict")
    if isinstance(target, (str, os.PathLike)):
        return open_path(Path(target))
    raise TypeError(f"verify takes a module, a state dict or a path, got a {type(target).__name__}")


def _dense(report: VerifyReport) -> str:
    return "\n".join(f"  {t.name} {t.shape}: {t.reason}" for t in report.tensors[:20])


@dataclass(frozen=True)
class _Selection:
    """Which tensors the caller wants checked."""

    include: tuple[str, ...] | None
    exclude: tuple[str, ...]

    def why_not(self, names: Iterable[str]) -> str | None:
        """Returns why a tensor of these names is not to be checked, or None."""
        known = tuple(names)
        for glob in self.exclude:
            if any(matches(glob, name) for name in known):
                return f"excluded by {glob!r}"
        if self.include is not None and not any(
            matches(glob, name) for glob in self.include for name in known
        ):
            return "not in include"
        return None

    def check_matched(self, names: Iterable[str]) -> None:
        """Raises ValueError where a glob matches none of ``names``."""
        known = set(names)
        for argument, globs in (("include", self.include or ()), ("exclude", self.exclude)):
            for glob in globs:
                if not any(matches(glob, name) for name in known):
                    modules = {name.rpartition(".")[0] for name in known}
                    raise ValueError(
                        f"{argument} names {glob!r}, which matches no tensor{nearest(glob, known | modules)}"
                    )


def _refuse_packed(stored: Stored) -> None:
    if PACKED in stored.metadata:
        raise ValueError(
            f"{stored.label} is a packed model, whose layers are N:M by their form: `nmstep verify` unpacks and "
            f"counts them, and nmstep.load_packed checks where each weight stands"
        )


def _module_plan(module: nn.Module, pattern: NMPattern | None, selection: _Selection) -> SparsityPlan:
    if any(getattr(part, "is_packed", False) for part in module.modules()):
        raise ValueError(
            f"this {type(module).__name__} is packed, and its layers N:M by their form: to count them, verify the "
            f"dense model that nmstep.unpack(model) returns"
        )
    if pattern is None:
        raise ValueError(
            f"a module does not say which pattern it has: give one, as in verify(model, '2:4'), or its plan, "
            f"as in verify(model, plan=sparsifier.plan); got a {type(module).__name__} alone"
        )
    with warnings.catch_warnings():
        # That a layer stays dense because M does not divide it is a line of the report here.
        warnings.filterwarnings("ignore", message=".*stay dense")
        return make_plan(module, pattern, include=selection.include, exclude=selection.exclude)


# -- with a plan ----------------------------------------------------------------------------------


def _check_plan(stored: Stored, plan: SparsityPlan, selection: _Selection) -> list[TensorReport]:
    """Returns a report for each entry of the plan, and for each stored matrix that it does not know."""
    selection.check_matched(name for entry in plan.entries for name in (entry.name, *entry.aliases))
    reports, seen = [], set()
    for entry in plan.entries:
        names = (entry.name, *entry.aliases)
        found = stored.find(names)
        seen |= {plain_name(name) for name in names} | {plain_name(found or entry.name)}
        why_not = entry.reason if entry.pattern is None else selection.why_not(names)
        if why_not is not None:
            reports.append(
                TensorReport(name=found or entry.name, shape=entry.shape, status="dense", reason=why_not)
            )
        else:
            reports.append(_check_entry(stored, entry, found))
    for name, tensor in stored.tensors.items():
        if len(tensor.shape) > 1 and tensor.is_floating and plain_name(name) not in seen:
            reports.append(
                TensorReport(name=name, shape=tensor.shape, status="dense", reason="not in the plan")
            )
    return reports


def _check_entry(stored: Stored, entry: PlanEntry, found: str | None) -> TensorReport:
    pattern, dim = entry.pattern, entry.dim
    assert pattern is not None
    planned = TensorReport(
        name=found or entry.name, shape=entry.shape, status="missing", pattern=pattern, dim=dim
    )
    if found is None:
        return replace(planned, reason=f"{stored.label} has no tensor of this name")
    tensor = stored.tensors[found]
    if tensor.shape != entry.shape:
        return replace(
            planned, shape=tensor.shape, status="shape", reason=f"the plan has shape {entry.shape}"
        )
    if not isinstance(dim, int) or not 0 <= dim < len(tensor.shape):
        return replace(planned, status="shape", reason=f"the plan groups along dimension {dim!r}")
    short = indivisible(tensor.shape, dim, pattern)
    if short is not None and not entry.pad:
        return replace(planned, status="violated", reason=short)
    count = count_groups(tensor.read(), pattern, dim)
    return TensorReport.counted(found, tensor.shape, pattern, dim, count, entry.reason)


# -- with a pattern alone -------------------------------------------------------------------------


def _check_candidates(stored: Stored, pattern: NMPattern, selection: _Selection) -> list[TensorReport]:
    """Returns a report for each floating tensor; those that look like a layer's weight must comply."""
    floating = {name: tensor for name, tensor in stored.tensors.items() if tensor.is_floating}
    selection.check_matched(floating)
    embeddings = {t.storage for name, t in floating.items() if _EMBEDDING.search(_owner(name)) and t.storage}
    reports = []
    for name, tensor in floating.items():
        why_not = selection.why_not([name]) or _why_no_candidate(name, tensor, embeddings)
        if why_not is not None:
            reports.append(TensorReport(name=name, shape=tensor.shape, status="dense", reason=why_not))
        else:
            reports.append(_check_candidate(name, tensor, pattern))
    return reports


def _owner(name: str) -> str:
    """The own name of the module that a tensor belongs to."""
    return name.rpartition(".")[0].rpartition(".")[2]


def _why_no_candidate(name: str, tensor: StoredTensor, embeddings: set[object]) -> str | None:
    if len(tensor.shape) < 2:
        return "fewer than two dimensions"
    if not name.endswith("weight"):
        return "not named as a weight"
    if _EMBEDDING.search(_owner(name)):
        return "embedding, by its name"
    if _NORM.search(_owner(name)):
        return "norm, by its name"
    return "tied to an embedding" if tensor.storage in embeddings else None


def _along(dim: int, tensor: StoredTensor) -> str:
    unknown = " (right for a transformers Conv1D only; the layer's kind is not known here)"
    return f"along dimension {dim}{unknown if dim == 0 and len(tensor.shape) == 2 else ''}"


def _check_candidate(name: str, tensor: StoredTensor, pattern: NMPattern) -> TensorReport:
    """Returns the report along the dimension that complies best; the first of equals."""
    dims = (1, 0) if len(tensor.shape) == 2 else (1,)
    way_out = f"if it is meant to be dense, say exclude=[{name!r}]"
    values = tensor.read()
    best: TensorReport | None = None
    for dim in dims:
        if indivisible(tensor.shape, dim, pattern) is not None:
            continue
        count = count_groups(values, pattern, dim)
        report = TensorReport.counted(name, tensor.shape, pattern, dim, count, _along(dim, tensor))
        if not report.failed:
            return report
        if best is None or report.share > best.share:
            best = replace(report, reason=way_out)
    if best is not None:
        return best
    short = indivisible(tensor.shape, 1, pattern)
    return TensorReport(
        name=name, shape=tensor.shape, status="violated", pattern=pattern, dim=1, reason=f"{short}; {way_out}"
    )
