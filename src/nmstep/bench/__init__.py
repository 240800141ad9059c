"""Measuring packed models against dense ones: which models, how fast they are, and how much they take."""

from nmstep.bench.footprint import Footprint, footprints
from nmstep.bench.loading import load_subject
from nmstep.bench.measuring import Measured, MeasuredLayer, measure
from nmstep.bench.subject import Subject, Use

__all__ = [
    "Footprint",
    "Measured",
    "MeasuredLayer",
    "Subject",
    "Use",
    "footprints",
    "load_subject",
    "measure",
]
