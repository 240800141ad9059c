"""Tables, plots and the HTML page, built only from what runs wrote.

Plots need matplotlib and the page jinja2 too; both are imported when first used.
"""

from nmstep.reports.page import write_report
from nmstep.reports.paper import study_rows, write_study
from nmstep.reports.plots import (
    plot_final_metric,
    plot_flip_rate,
    plot_metric,
    plot_switch,
    plot_variance_norm,
)
from nmstep.reports.runs import Run, load_runs
from nmstep.reports.summary import gap_table, summary_table

__all__ = [
    "Run",
    "gap_table",
    "load_runs",
    "plot_final_metric",
    "plot_flip_rate",
    "plot_metric",
    "plot_switch",
    "plot_variance_norm",
    "study_rows",
    "summary_table",
    "write_report",
    "write_study",
]
