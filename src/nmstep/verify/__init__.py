"""Is this module, state dict, file or folder N:M? Told per tensor, with the first group that is not."""

from nmstep.verify.report import NotSparseError, TensorReport, VerifyReport
from nmstep.verify.verifier import verify

__all__ = ["NotSparseError", "TensorReport", "VerifyReport", "verify"]
