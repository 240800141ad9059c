"""Making a plan: which parameters become N:M, along which dimension, and why the others stay dense."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from torch import nn

from nmstep.layout import reduction_dim
from nmstep.names import as_globs, matches, nearest
from nmstep.patterns import NMPattern
from nmstep.sparsity_plan import PlanEntry, Rule, SparsityPlan, unwrap

__all__ = ["OnIndivisible", "PlanEntry", "Rule", "SparsityPlan", "plan"]

OnIndivisible = Literal["dense", "error", "pad"]
# Reasons that a warning is about.
_INDIVISIBLE = "not a multiple of"
_UNKNOWN = "no reduction dimension known"
_NORMS = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.modules.batchnorm._NormBase)
_EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)


def plan(
    model: nn.Module,
    pattern: str | NMPattern,
    *,
    include: Iterable[str] | None = None,
    exclude: Iterable[str] = (),
    rules: Mapping[str, str | NMPattern | Rule | None] | None = None,
    on_indivisible: OnIndivisible = "dense",
) -> SparsityPlan:
    """Returns the plan for ``model``: every parameter, its pattern, or the reason why it stays dense.

    By default every Linear, attention projection, Conv1d/2d/3d, ConvTranspose and transformers
    Conv1D weight becomes sparse along its reduction dimension where M divides it; embeddings, norms,
    biases and whatever is tied to an embedding stay dense.

    Names are shell globs on a parameter (``"fc1.weight"``) or on a module above it (``"fc1"``,
    ``"layers.*.mlp"``). The order of precedence is ``rules`` (the last that matches), ``exclude``,
    ``include``, the default.

    Args:
        model: any module, compiled or not.
        pattern: N kept of M, for every layer that no rule says otherwise of.
        include: only these become sparse.
        exclude: these stay dense.
        rules: a pattern for each glob; None for dense; a :class:`Rule` with ``dim`` for a parameter
            of no known layer kind, such as the experts of a mixture, or an embedding.
        on_indivisible: what to do where M does not divide the dimension: ``"dense"`` leaves the layer
            dense with a warning, ``"error"`` raises, ``"pad"`` lets its last group be short.

    Raises:
        TypeError: a pattern is none.
        ValueError: a pattern cannot be read; a name matches nothing; a rule needs a ``dim``; M does not
            divide (with ``"error"``); or nothing becomes sparse.

    Example:
        >>> model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
        >>> print(plan(model, "2:4", exclude=["2"]))
        parameter  shape  layer   pattern  dim  why
        0.weight   16x8   Linear  2:4      1    default
        0.bias     16     Linear  dense         bias
        2.weight   4x16   Linear  dense         excluded by '2'
        2.bias     4      Linear  dense         bias
        1 of 4 ...
    """
    if on_indivisible not in ("dense", "error", "pad"):
        raise ValueError(f"on_indivisible={on_indivisible!r}: expected 'dense', 'error' or 'pad'")
    chooser = _Chooser(
        NMPattern.parse(pattern),
        None if include is None else as_globs(include, "include"),
        as_globs(exclude, "exclude"),
        {glob: rule if isinstance(rule, Rule) else Rule(rule) for glob, rule in (rules or {}).items()},
        on_indivisible,
    )
    entries = tuple(chooser.entry(names, owners) for names, owners in _parameters(unwrap(model)))
    chooser.check_rules_matched(entries)
    result = SparsityPlan(entries)
    if not result.sparse:
        if any(getattr(module, "is_packed", False) for module in model.modules()):
            raise ValueError(
                f"this {type(model).__name__} is packed: its N:M weights are no parameters; take the dense model "
                f"that nmstep.unpack(model) returns"
            )
        raise ValueError(f"no parameter of this {type(model).__name__} can become sparse:\n{result}")
    _warn_left_dense(entries)
    return result


def _parameters(model: nn.Module) -> Iterable[tuple[list[str], list[tuple[nn.Module, str]]]]:
    """Yields the names of each parameter, the first the model's own, and who owns it under each."""
    found: dict[int, tuple[list[str], list[tuple[nn.Module, str]]]] = {}
    for prefix, module in model.named_modules(remove_duplicate=False):
        for local, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            if isinstance(parameter, nn.UninitializedParameter):
                raise ValueError(
                    f"{prefix}.{local} has no shape yet (a lazy module): run one forward pass before making a plan"
                )
            names, owners = found.setdefault(id(parameter), ([], []))
            names.append(f"{prefix}.{local}" if prefix else local)
            owners.append((module, local))
    return found.values()


def _warn_left_dense(entries: tuple[PlanEntry, ...]) -> None:
    left = [e for e in entries if e.pattern is None and (_INDIVISIBLE in e.reason or _UNKNOWN in e.reason)]
    if left:
        listed = "; ".join(f"{entry.name!r}: {entry.reason}" for entry in left)
        warnings.warn(
            f"{len(left)} layer(s) stay dense: {listed}. Exclude them to silence this, or pass "
            f"on_indivisible='pad' (or 'error') where M does not divide",
            stacklevel=_level_of_the_user(),
        )


def _level_of_the_user() -> int:
    """Returns the ``stacklevel`` of who called into nmstep, by :func:`plan` or by way of ``sparsify``."""
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None and frame.f_globals.get("__name__", "").split(".")[0] == "nmstep":
        frame, level = frame.f_back, level + 1
    return level


@dataclass
class _Chooser:
    """The decision for one parameter, from the arguments of :func:`plan`."""

    pattern: NMPattern
    include: tuple[str, ...] | None
    exclude: tuple[str, ...]
    rules: dict[str, Rule]
    on_indivisible: OnIndivisible

    def entry(self, names: list[str], owners: list[tuple[nn.Module, str]]) -> PlanEntry:
        module, local = owners[0]
        parameter = getattr(module, local)
        dense = PlanEntry(
            name=names[0], shape=tuple(parameter.shape), kind=type(module).__name__, aliases=tuple(names[1:])
        )
        ruled = [(glob, rule) for glob, rule in self.rules.items() if any(matches(glob, n) for n in names)]
        why_not, dim = _default_layout(owners, parameter.dim())
        for glob, rule in reversed(ruled):
            if rule.pattern is None:
                return replace(dense, reason=f"dense by rule {glob!r}")
            group_dim = dim if rule.dim is None else rule.dim
            if group_dim is not None and (why_not is None or rule.dim is not None):
                return self._sparse(dense, rule.pattern, group_dim, f"rule {glob!r}")
        for glob in self.exclude:
            if any(matches(glob, name) for name in names):
                chosen = why_not is None or _UNKNOWN in why_not
                return replace(dense, reason=f"excluded by {glob!r}" if chosen else why_not or "")
        if why_not is not None or dim is None:
            return replace(dense, reason=why_not or "")
        if self.include is not None and not any(matches(g, n) for g in self.include for n in names):
            return replace(dense, reason="not in include")
        return self._sparse(dense, self.pattern, dim, "default")

    def _sparse(self, dense: PlanEntry, pattern: str | NMPattern, dim: int, reason: str) -> PlanEntry:
        pattern = NMPattern.parse(pattern)
        if not -len(dense.shape) <= dim < len(dense.shape):
            raise ValueError(
                f"{reason} groups {dense.name!r} along dimension {dim}, but its shape is {dense.shape}"
            )
        dim %= len(dense.shape)
        size = dense.shape[dim]
        if size % pattern.m == 0:
            return replace(dense, pattern=pattern, dim=dim, reason=reason)
        short = f"dimension {dim} has {size} elements, {_INDIVISIBLE} {pattern.m}"
        if self.on_indivisible == "pad":
            return replace(dense, pattern=pattern, dim=dim, pad=True, reason=f"{reason}; {short}: padded")
        if self.on_indivisible == "error":
            raise ValueError(
                f"cannot apply {pattern} to {dense.name!r} with shape {dense.shape}: {short}; leave it dense "
                f"with exclude=[{dense.name.rpartition('.')[0] or dense.name!r}] or use on_indivisible='pad'"
            )
        return replace(dense, reason=short)

    def check_rules_matched(self, entries: tuple[PlanEntry, ...]) -> None:
        names = [name for entry in entries for name in (entry.name, *entry.aliases)]
        modules = {name.rpartition(".")[0] for name in names}
        for argument, globs in (
            ("include", self.include or ()),
            ("exclude", self.exclude),
            ("rules", self.rules),
        ):
            for glob in globs:
                if not any(matches(glob, name) for name in names):
                    raise ValueError(
                        f"{argument} names {glob!r}, which matches no parameter or module of the model"
                        f"{nearest(glob, [*names, *modules])}"
                    )
        for glob, rule in self.rules.items():
            touched = [
                entry for entry in entries if any(matches(glob, n) for n in (entry.name, *entry.aliases))
            ]
            if rule.pattern is not None and all(e.pattern is None and not _indivisible(e) for e in touched):
                raise ValueError(
                    f"rule {glob!r} asks for {rule.pattern}, but no parameter it matches has a known reduction "
                    f"dimension ({', '.join(f'{e.name}: {e.reason}' for e in touched)}); say which one groups run "
                    f"along, as in rules={{{glob!r}: Rule('{rule.pattern}', dim=1)}}"
                )


def _indivisible(entry: PlanEntry) -> bool:
    return _INDIVISIBLE in entry.reason or "dense by rule" in entry.reason


def _default_layout(owners: list[tuple[nn.Module, str]], ndim: int) -> tuple[str | None, int | None]:
    """Returns why a parameter stays dense by default (or None), and its reduction dimension (or None)."""
    module, local = owners[0]
    if any(isinstance(owner, _EMBEDDINGS) for owner, _ in owners):
        return ("embedding" if len(owners) == 1 else "tied to an embedding"), None
    dims = {reduction_dim(owner, name) for owner, name in owners}
    if len(dims) > 1:
        return "tied under layers that group along different dimensions", None
    (dim,) = dims
    if dim is not None:
        return None, dim
    if local.endswith("bias") or "bias" in local:
        return "bias", None
    if isinstance(module, _NORMS) or "norm" in type(module).__name__.lower():
        return "norm", None
    if ndim < 2:
        return "fewer than two dimensions", None
    return f"{_UNKNOWN} for {type(module).__name__}.{local}; a rule can name it", None
