"""Plots of runs and of packed models: each function returns a matplotlib figure, or None where there is nothing."""

from nmstep.reports.plots.final import plot_final_metric
from nmstep.reports.plots.flips import plot_flip_rate
from nmstep.reports.plots.metric import plot_metric
from nmstep.reports.plots.speed import plot_speed
from nmstep.reports.plots.switching import plot_switch
from nmstep.reports.plots.variance import plot_variance_norm

__all__ = ["plot_final_metric", "plot_flip_rate", "plot_metric", "plot_speed", "plot_switch"]
__all__ += ["plot_variance_norm"]
