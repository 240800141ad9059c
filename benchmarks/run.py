"""All benchmarks of training; nothing else should be running.

    python benchmarks/run.py [--rounds 15] [--threads 2] [--device cuda] [--parts sizes mask]
    python benchmarks/run.py --quick        # tiny sizes, to see that everything works: writes nothing

Prints a table for each part, with the bars beside it and whether each is reached, and writes the figures to
docs/results/training_step.json and a plot beside it, unless told where else. The figures are saved after each part.
"""

from __future__ import annotations

from pathlib import Path

import iterations
import mask_alone
import memory
import plot
import record
import sizes
import thread_pools
import trace_overhead
import training_step
from settings import parser, settings_of

from nmstep.files import write_json

MODULES = (training_step, sizes, mask_alone, iterations, memory, thread_pools, trace_overhead)
PARTS = {module.PART.name: module.PART for module in MODULES}
RESULT = Path(__file__).resolve().parents[1] / "docs" / "results" / "training_step.json"


def main() -> None:
    """Runs the parts that were asked for, or all."""
    flags = parser(__doc__)
    flags.add_argument("--plot", type=Path, metavar="FILE", help="draw the figures there")
    flags.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="all by default")
    arguments = flags.parse_args()
    settings = settings_of(arguments)
    whole = not arguments.quick and set(arguments.parts) == set(PARTS)
    figures = arguments.json or (RESULT if whole else None)
    picture = arguments.plot or (RESULT.with_suffix(".png") if whole and not arguments.json else None)
    parts = [PARTS[name] for name in arguments.parts]
    facts = record.head(settings)
    for part in parts:
        record.take(part, settings)
        record.show(part)
        if figures:
            write_json(figures, record.record(parts, facts))
    record.missed(parts)
    if picture:
        plot.draw(record.record(parts, facts), picture)


if __name__ == "__main__":
    main()
