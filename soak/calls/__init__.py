"""Generated calls of the public API: each gives what an oracle confirms, or raises what its docstring names."""

from soak.calls.targets import TARGETS, fuzz

__all__ = ["TARGETS", "fuzz"]
