"""Why masks started, in words."""

from __future__ import annotations

__all__ = ["reason_text"]

_REASONS = {
    "threshold": "mean below threshold",
    "t_max": "latest step allowed",
    "scheduled": "scheduled",
    "relative_norm": "norm change below bound",
    "norm_ratio": "norm ratio above bound",
}


def reason_text(reason: str) -> str:
    """Returns the switch's reason in words.

    Example:
        >>> reason_text("t_max")
        'latest step allowed'
    """
    return _REASONS.get(reason, reason)
