"""Pages of the paper's tables and figures, built only from a study's folder and its runs."""

from nmstep.reports.paper.page import study_rows, write_study

__all__ = ["study_rows", "write_study"]
