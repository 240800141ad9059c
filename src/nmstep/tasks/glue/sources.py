"""How each GLUE task is laid out: folders, columns, labels."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class GlueExamples:
    """Returns the sentences and labels of one split.

    Args:
        first: the first sentence of each example.
        second: the second sentence of each, or None for a task with single sentences.
        labels: int64 (examples,) classes from 0, or float32 (examples,) values for a regression.
    """

    first: list[str]
    second: list[str] | None
    labels: Tensor


@dataclass(frozen=True, kw_only=True)
class GlueSource:
    """Returns how a task's files look.

    Args:
        title: its name in messages, and the folder that the official archive unpacks to.
        config: its configuration on the hub.
        columns: the columns of the sentences, one or two, in the tsv files.
        hub_columns: the same in parquet and arrow files.
        label_column: the column of the label in the tsv files; parquet files call it "label".
        labels: how the tsv files write the classes, in the order of the hub's numbers; empty for a
            regression on values from 0 to 5.
        header: the columns of tsv files that start without a header line; None for files that have one.
        dev: the tsv file of the held-out data.
        hub_dev: the split of the held-out data on the hub.
        skips_short_rows: whether rows with too few columns, of which the official files have a few, are
            left out as everybody does; elsewhere they are an error.
    """

    title: str
    config: str
    columns: tuple[str, ...]
    hub_columns: tuple[str, ...]
    label_column: str = "label"
    labels: tuple[str, ...] = ("0", "1")
    header: tuple[str, ...] | None = None
    dev: str = "dev.tsv"
    hub_dev: str = "validation"
    skips_short_rows: bool = False

    @property
    def is_regression(self) -> bool:
        """Whether labels are values, not classes."""
        return not self.labels

    def examples(self, texts: list[list[str]], labels: list[float]) -> GlueExamples:
        """Returns a split from its sentences, one or two lists of equal length, and its labels."""
        dtype = torch.float32 if self.is_regression else torch.int64
        return GlueExamples(
            first=texts[0],
            second=texts[1] if len(texts) == 2 else None,
            labels=torch.tensor(labels, dtype=dtype),
        )


_PAIR = ("sentence1", "sentence2")
_ENTAILMENT = ("entailment", "not_entailment")
_MNLI_LABELS = ("entailment", "neutral", "contradiction")

COLA = GlueSource(
    title="CoLA",
    config="cola",
    columns=("sentence",),
    hub_columns=("sentence",),
    header=("source", "label", "star", "sentence"),
)
SST2 = GlueSource(title="SST-2", config="sst2", columns=("sentence",), hub_columns=("sentence",))
MRPC = GlueSource(
    title="MRPC",
    config="mrpc",
    columns=("#1 String", "#2 String"),
    hub_columns=_PAIR,
    label_column="Quality",
)
QQP = GlueSource(
    title="QQP",
    config="qqp",
    columns=("question1", "question2"),
    hub_columns=("question1", "question2"),
    label_column="is_duplicate",
    skips_short_rows=True,
)
STSB = GlueSource(
    title="STS-B", config="stsb", columns=_PAIR, hub_columns=_PAIR, label_column="score", labels=()
)
RTE = GlueSource(title="RTE", config="rte", columns=_PAIR, hub_columns=_PAIR, labels=_ENTAILMENT)
QNLI = GlueSource(
    title="QNLI",
    config="qnli",
    columns=("question", "sentence"),
    hub_columns=("question", "sentence"),
    labels=_ENTAILMENT,
)
MNLI_MATCHED = GlueSource(
    title="MNLI",
    config="mnli",
    columns=_PAIR,
    hub_columns=("premise", "hypothesis"),
    label_column="gold_label",
    labels=_MNLI_LABELS,
    dev="dev_matched.tsv",
    hub_dev="validation_matched",
)
MNLI_MISMATCHED = GlueSource(
    title="MNLI",
    config="mnli",
    columns=_PAIR,
    hub_columns=("premise", "hypothesis"),
    label_column="gold_label",
    labels=_MNLI_LABELS,
    dev="dev_mismatched.tsv",
    hub_dev="validation_mismatched",
)
