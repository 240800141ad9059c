"""The views "scores" and "curves": recipes compared by their final scores, and over steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from nmstep.reports.paper.curves import draw_curves, draw_distances
from nmstep.reports.paper.folder import StudyRuns
from nmstep.reports.paper.gaps import Gap, Pair, find_gaps, find_pairs, gap_table, pair_table
from nmstep.reports.paper.scores import Score, paper_table, run_table, score_tables, scores_of
from nmstep.reports.paper.shown import Picture, Shown, Table, Verdict
from nmstep.reports.paper.verdicts import judge_gaps, judge_optimizers, judge_pairs, mean_closed

__all__ = ["show_recipes"]

_NO_NUMBERS = "The paper's own numbers are not at hand, so none stand beside these."


def show_recipes(study: StudyRuns) -> Shown:
    """Returns tables of final scores, of gaps and of what runs took, and the figures.

    Args:
        study: of view "scores" or "curves".
    """
    columns = scores_of(study)
    gaps, losses = find_gaps(columns), find_gaps(columns, loss=True)
    pairs = find_pairs(columns)
    beside = paper_table(columns)
    pictures = [_distances(columns)]
    if study.view == "curves":
        pictures.insert(0, _curves(study))
    mean = mean_closed(gaps)
    return Shown(
        tables=_tables(columns, gaps, losses, pairs, beside),
        verdict=_verdict(study, gaps, losses, pairs),
        pictures=pictures,
        numbers={
            "scores": [s.to_dict() for scores in columns.values() for s in scores],
            "gaps": [gap.to_dict() for gap in (*gaps, *losses)],
            "pairs": [pair.to_dict() for pair in pairs],
            "mean_closed": None if mean is None else {"share": mean[0], "comparisons": mean[1]},
        },
        remarks=[] if beside is not None else [_NO_NUMBERS],
    )


def _tables(
    columns: Mapping[str, Sequence[Score]],
    gaps: Sequence[Gap],
    losses: Sequence[Gap],
    pairs: Sequence[Pair],
    beside: Table | None,
) -> list[Table]:
    tables = score_tables(columns)
    if beside is not None:
        tables.insert(1, beside)
    if any(gap.gain is not None for gap in gaps):
        tables.append(gap_table(gaps))
        if any(gap.measure != "loss" for gap in gaps):
            tables.append(gap_table(losses))
    return [*tables, *([pair_table(pairs)] if pairs else []), run_table(columns)]


def _verdict(study: StudyRuns, gaps: Sequence[Gap], losses: Sequence[Gap], pairs: Sequence[Pair]) -> Verdict:
    match study.name:
        case "fig1":
            return judge_optimizers(gaps)
        case "fig6":
            chosen = [pair for pair in pairs if pair.first.startswith("Decaying Mask")]
            return judge_pairs(chosen, "Decaying Mask after a dense phase", "without one")
        case "fig8":
            chosen = [pair for pair in pairs if pair.first == "STEP"]
            return judge_pairs(chosen, "STEP with a frozen variance", "with an updated one")
    return judge_gaps(gaps, losses, study.facts.get("closed"))


def _curves(study: StudyRuns) -> Picture:
    caption = (
        "Means over seeds with a band of ± one standard deviation; dotted while training is still dense but "
        "evaluated under the mask. Upright lines: the masks start."
    )
    return Picture(file="curves.png", caption=caption, draw=lambda: draw_curves(study))


def _distances(columns: Mapping[str, Sequence[Score]]) -> Picture:
    caption = (
        "The final metric as its distance to dense: mean ± one standard deviation; the grey band is dense's."
    )
    return Picture(file="distances.png", caption=caption, draw=lambda: draw_distances(columns))
