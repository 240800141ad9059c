"""When the masks start: AutoSwitch, the two published criteria, and fixed points.

Floats in, decision out: nothing here knows a model or an optimizer, so the same code decides while
training and afterwards on a recorded trace (:func:`replay`).
"""

from nmstep.switching.autoswitch import AutoSwitch
from nmstep.switching.published import NormRatio, RelativeNorm
from nmstep.switching.replay import replay, variance_change_after
from nmstep.switching.switch import Detector, Switch, SwitchAt, VarianceStats

__all__ = [
    "AutoSwitch",
    "Detector",
    "NormRatio",
    "RelativeNorm",
    "Switch",
    "SwitchAt",
    "VarianceStats",
    "replay",
    "variance_change_after",
]
