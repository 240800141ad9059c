"""Plots of runs: each function returns a matplotlib figure, or None where the runs hold nothing to draw."""

from nmstep.reports.plots.final import plot_final_metric
from nmstep.reports.plots.flips import plot_flip_rate
from nmstep.reports.plots.metric import plot_metric
from nmstep.reports.plots.switching import plot_switch
from nmstep.reports.plots.variance import plot_variance_norm

__all__ = ["plot_final_metric", "plot_flip_rate", "plot_metric", "plot_switch", "plot_variance_norm"]
