"""Language workloads: GLUE, WikiText and masked-language-model pretraining."""

from __future__ import annotations

from nmstep.experiments.config import RunConfig
from nmstep.experiments.paper.workloads import Scope, Workload

__all__ = ["glue", "masked_language_model", "wikitext"]


def glue(scope: Scope) -> tuple[Workload, ...]:
    """Returns the tasks of GLUE."""
    return ()


def wikitext(scope: Scope) -> tuple[tuple[Workload, RunConfig | None], ...]:
    """Returns each WikiText with the dense run whose weights it starts from."""
    return ()


def masked_language_model(scope: Scope) -> tuple[Workload, ...]:
    """Returns the pretraining of a BERT."""
    return ()
