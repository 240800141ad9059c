"""Whether the paper's claim about recipes was seen, said by the numbers."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from nmstep.reports.paper.formats import percent, signed
from nmstep.reports.paper.gaps import Gap, Pair
from nmstep.reports.paper.shown import Held, Verdict

__all__ = ["judge_gaps", "judge_optimizers", "judge_pairs", "mean_closed"]


def judge_gaps(gaps: Sequence[Gap], losses: Sequence[Gap], closed: Any = None) -> Verdict:
    """Returns whether STEP is better than SR-STE, in how many columns, and how much of the gap it closes.

    Only columns count in which there is something to tell: SR-STE is behind dense by more than the noise, or
    STEP and SR-STE differ by more than theirs. The claim held if that is so in every column, and STEP's mean
    is the better one in all of them, for at least half beyond the 95 % interval; not, if it is in none; else
    in part: where SR-STE loses nothing, nothing can be won back, and the claim is not seen.

    Args:
        gaps: by the metric.
        losses: by the held-out loss.
        closed: the paper's share of the gap, or one for each task; None where it gives none.
    """
    known = [gap for gap in gaps if gap.gain is not None]
    telling = [gap for gap in known if gap.noisy is False or (gap.gain is not None and gap.gain.significant)]
    diverged = [gap for gap in gaps if gap.diverged]
    sentences = [
        _gain_sentence(known, telling) if known or not diverged else "",
        _diverged_sentence(diverged),
        _loss_sentence(losses),
        _closed_sentence(gaps, closed),
        _order_sentence(gaps),
    ]
    better = sum(bool(gap.better) for gap in telling)
    surely = sum(gap.surely_better for gap in telling)
    return Verdict(
        held=_held(better, surely, len(known)) if telling else "open",
        why=" ".join(sentence for sentence in sentences if sentence),
    )


def _held(better: int, surely: int, count: int) -> Held:
    if better == 0:
        return "not held"
    return "held" if better == count and 2 * surely >= count else "in part"


def _gain_sentence(known: Sequence[Gap], telling: Sequence[Gap]) -> str:
    if not known:
        return "No comparison has its runs yet."
    better, surely = sum(bool(gap.better) for gap in known), sum(gap.surely_better for gap in known)
    worse = sum(gap.surely_worse for gap in known)
    first, second = known[0].rows
    text = (
        f"{first}'s mean is better than {second}'s in {_of(better, known)}, in {surely or 'none'} of them "
        f"beyond the 95 % interval of the paired difference"
    )
    text += f"; in {worse} it is worse beyond it." if worse else "."
    if not telling:
        return f"{text} But nowhere is {second} behind dense by more than is known to be noise."
    if len(telling) < len(known):
        chosen = sum(bool(gap.better) for gap in telling)
        text += (
            f" Of those with a gap or a difference above the noise, it is better in {_of(chosen, telling)}."
        )
    return text


def _of(count: int, items: Sequence[Any]) -> str:
    return f"{count} of {len(items)} comparison{'' if len(items) == 1 else 's'}"


def _diverged_sentence(diverged: Sequence[Gap]) -> str:
    if not diverged:
        return ""
    where = ", ".join(gap.where for gap in diverged)
    return f"A run of {' or '.join(diverged[0].rows)} ended at no finite number on {where}, which is not counted."


def _loss_sentence(losses: Sequence[Gap]) -> str:
    known = [gap for gap in losses if gap.gain is not None]
    if not known:
        return ""
    better, surely = sum(bool(gap.better) for gap in known), sum(gap.surely_better for gap in known)
    return (
        f"By held-out loss it is better in {_of(better, known)}, in {surely or 'none'} beyond the interval."
    )


def mean_closed(gaps: Sequence[Gap]) -> tuple[float, int] | None:
    """Returns the mean share that STEP closes of the gaps that exceed the noise, and how many these are."""
    shares = [gap.closed for gap in gaps if gap.closed is not None and gap.noisy is False]
    return (statistics.fmean(shares), len(shares)) if shares else None


def _closed_sentence(gaps: Sequence[Gap], paper: Any) -> str:
    mean = mean_closed(gaps)
    if mean is None:
        return ""
    share, count = mean
    over = "the one comparison" if count == 1 else f"the {count} comparisons"
    text = f"It closes {percent(share)} of {gaps[0].rows[1]}'s gap to dense on average over {over}"
    return f"{text} with a gap above the noise{_paper_share(gaps, paper)}."


def _paper_share(gaps: Sequence[Gap], paper: Any) -> str:
    if isinstance(paper, Mapping):
        tasks = {gap.task for gap in gaps}
        shares = [f"{percent(float(v))} on {task}" for task, v in paper.items() if task in tasks]
        return f" (the paper: {', '.join(shares)})" if shares else ""
    return "" if paper is None else f" (the paper: {percent(float(paper))})"


def _order_sentence(gaps: Sequence[Gap]) -> str:
    known = [gap for gap in gaps if gap.in_order is not None]
    if not known:
        return ""
    return f"The paper's order of the means holds in {_of(sum(bool(gap.in_order) for gap in known), known)}."


def judge_pairs(pairs: Sequence[Pair], what: str, without: str) -> Verdict:
    """Returns whether the first of each pair is the better one.

    Args:
        pairs: of one kind.
        what: names the first, such as ``"A frozen variance"``.
        without: names the second.
    """
    if not pairs:
        return Verdict(held="open", why="No comparison has its runs yet.")
    better = sum(pair.better for pair in pairs)
    surely = sum(pair.better and pair.difference.significant for pair in pairs)
    worse = sum(not pair.better and pair.difference.significant for pair in pairs)
    text = (
        f"{what} is better than {without} in {_of(better, pairs)}, in {surely or 'none'} of them beyond the "
        f"95 % interval of the paired difference"
    )
    held = _held(better, surely, len(pairs))
    return Verdict(held=held, why=text + (f"; in {worse} worse beyond it." if worse else "."))


def judge_optimizers(gaps: Sequence[Gap]) -> Verdict:
    """Returns whether SR-STE loses less under momentum SGD than under Adam.

    Args:
        gaps: of columns whose names end in the optimizer's.
    """
    known = {gap.where: gap for gap in gaps if gap.gap is not None}
    pairs = []
    for name, gap in known.items():
        workload, _, optimizer = name.rpartition(", ")
        other = known.get(f"{workload}, Adam")
        if optimizer == "momentum SGD" and other is not None:
            pairs.append((workload, gap, other))
    if not pairs:
        return Verdict(held="open", why="No comparison has its runs yet.")
    telling = [(sgd, adam) for _, sgd, adam in pairs if False in (sgd.noisy, adam.noisy)]
    smaller = sum((sgd.gap or 0.0) < (adam.gap or 0.0) for sgd, adam in telling)
    held: Held = "held" if smaller == len(telling) else "in part" if smaller else "not held"
    sentences = [
        f"{workload}: SR-STE is behind dense by {_sized(sgd)} under momentum SGD and by {_sized(adam)} under Adam."
        for workload, sgd, adam in pairs
    ]
    return Verdict(held=held if telling else "open", why=" ".join(sentences))


def _sized(gap: Gap) -> str:
    noise = {True: " (within the noise)", None: " (one seed)"}.get(gap.noisy, "")
    return f"{signed(gap.gap, 2)}{noise}"
