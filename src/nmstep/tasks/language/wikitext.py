"""WikiText-2 and WikiText-103: language modelling with GPT-2."""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nmstep.tasks.language.gpt2 import CONV1D, Gpt2Checkpoint, NewGpt2
from nmstep.tasks.language.plain_text import count_words, read_plain
from nmstep.tasks.language.stream import TokenStream, exp, strided_score
from nmstep.tasks.language.subwords import Subwords
from nmstep.tasks.language.wikitext_files import WIKITEXT2, WIKITEXT103, Split, WikiTextSource, read_wikitext
from nmstep.tasks.task import Batch, Task, TaskDefaults, device_of

_SIZES = {"layers": 4, "width": 256, "heads": 4, "context": 128, "vocabulary": 4096}


class _WikiText(Task):
    metric = "perplexity"
    higher_is_better = False
    source: ClassVar[WikiTextSource]

    def __init__(
        self,
        data: str | None = None,
        *,
        model: str = "openai-community/gpt2",
        layers: int | None = None,
        width: int | None = None,
        heads: int | None = None,
        context: int | None = None,
        vocabulary: int | None = None,
        dropout: float | None = None,
        tokenizer: str | None = None,
        tokenizer_text: str | None = None,
        train_text: str | None = None,
        split: Split = "test",
        stride: int | None = None,
        test_tokens: int | None = None,
    ) -> None:
        self.name = self.source.title.lower()
        if split not in ("valid", "test"):
            raise ValueError(f"unknown split {split!r}: choose 'valid' or 'test'")
        sizes = {"layers": layers, "width": width, "heads": heads, "vocabulary": vocabulary}
        _check_options(model, sizes, tokenizer, tokenizer_text)
        lines, scored = read_wikitext(self.source, data, split=split, needs_train=train_text is None)
        more = [] if train_text is None else read_plain(train_text, "train_text")
        if model == "config":
            known = more if tokenizer_text is None else read_plain(tokenizer_text, "tokenizer_text")
            self._new(sizes | {"context": context}, dropout, tokenizer, lines + known)
        else:
            self._from_checkpoint(Gpt2Checkpoint(name=model, dropout=dropout), context, tokenizer)
        self._stride = _checked_stride(stride, self._context)
        self._stream = TokenStream(self.tokenizer.encode(lines + more)[0], self._context)
        self._scored, self._words = _to_score(self.tokenizer, scored, test_tokens)
        self.defaults = self._defaults(new=model == "config")

    def _new(
        self, sizes: dict[str, int | None], dropout: float | None, tokenizer: str | None, known: list[str]
    ) -> None:
        chosen = _SIZES | {name: size for name, size in sizes.items() if size is not None}
        vocabulary = chosen.pop("vocabulary")
        self.tokenizer = (
            Subwords.learn(known, vocabulary=vocabulary) if tokenizer is None else Subwords.load(tokenizer)
        )
        self._gpt2: NewGpt2 | Gpt2Checkpoint = NewGpt2(
            **chosen, vocabulary=self.tokenizer.size, dropout=dropout or 0.0
        )
        self._context = chosen["context"]

    def _from_checkpoint(
        self, checkpoint: Gpt2Checkpoint, context: int | None, tokenizer: str | None
    ) -> None:
        config = checkpoint.config()
        self._gpt2 = checkpoint
        self.tokenizer = checkpoint.tokenizer() if tokenizer is None else Subwords.load(tokenizer)
        rows, size = config.vocab_size, self.tokenizer.size
        # Some checkpoints pad the vocabulary to a round number; none by this much.
        if not size <= rows < size + 1024:
            raise ValueError(
                f"the tokenizer has {size} tokens, but the checkpoint model={checkpoint.name!r} knows {rows}: "
                "give the tokenizer that the checkpoint was trained with"
            )
        if context is not None and not 2 <= context <= config.n_positions:
            raise ValueError(
                f"context={context}: the checkpoint model={checkpoint.name!r} takes 2 to {config.n_positions}"
            )
        self._context = context or config.n_positions

    def _defaults(self, *, new: bool) -> TaskDefaults:
        if new:
            return TaskDefaults(
                steps=4000,
                batch_size=8,
                lr=2e-3,
                weight_decay=0.01,
                schedule="cosine",
                warmup=200,
                include=CONV1D,
            )
        return TaskDefaults(
            steps=-(-3 * len(self._stream) // 8),
            batch_size=8,
            lr=5e-5,
            weight_decay=0.0,
            schedule="linear",
            include=CONV1D,
        )

    def model(self) -> nn.Module:
        """Returns the checkpoint's model, or a new one drawn from torch's global random generator.

        Raises:
            FileNotFoundError: if the checkpoint has no weights.
            ImportError: if `transformers` is not installed.
            ValueError: if the checkpoint's weights are of another model.
        """
        return self._gpt2.model()

    def batch(self, step: int, *, seed: int, batch_size: int) -> Batch:
        """Returns windows of one step: int64 inputs and targets, both (batch_size, context).

        Raises:
            ValueError: if `step` is negative or `batch_size` below 1.
        """
        windows = self._stream.windows(step, seed=seed, batch_size=batch_size)
        return Batch(inputs=windows[:, :-1], targets=windows[:, 1:])

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Returns the mean cross-entropy of `batch` in nats per token."""
        here = batch.to(device_of(model))
        logits = model(input_ids=here.inputs).logits
        return F.cross_entropy(logits.float().flatten(0, 1), here.targets.flatten())

    def _evaluate(self, model: nn.Module) -> dict[str, float]:
        device = device_of(model)

        def logits(inputs: Tensor, keep: int) -> Tensor:
            predicted: Tensor = model(input_ids=inputs.to(device), logits_to_keep=keep).logits
            return predicted.float()

        total, count = strided_score(self._scored, logits, context=self._context, stride=self._stride)
        loss = total / count
        return {
            "loss": loss,
            "perplexity": exp(loss),
            "word_perplexity": exp(loss * len(self._scored) / self._words),
        }


class WikiText2(_WikiText):
    """Predict the next token of WikiText-2 with a GPT-2; perplexity is per token.

    **Text.** Blank lines are left out and the others follow each other with their line ends, as in
    transformers' example scripts. A training epoch cuts the tokens into windows of `context`, from a place
    drawn anew each epoch.

    **How it is scored.** Windows of `context` tokens start every `stride` tokens; in the first all tokens but
    the very first are scored, in each other one only those that no window before it had. "loss" is their
    mean negative log-likelihood in nats; "perplexity" is exp(loss), of this tokenizer's tokens;
    "word_perplexity" is exp(loss × tokens / words), where words are those between spaces and one for each
    line end, so that it compares across tokenizers.

    Args:
        data: a local folder or the hub name, as `nmstep.tasks.language.wikitext_files.read_wikitext` reads it.
        model: folder or hub name of a GPT-2 checkpoint; or "config" for a new model of the sizes below, with
            a byte-level BPE learned from the training text.
        layers: transformer blocks of a new model; none for 4.
        width: its features, a multiple of `heads`; none for 256.
        heads: its attention heads; none for 4.
        context: tokens that the model sees; none for 128, or all that a checkpoint takes.
        vocabulary: tokens that a new model's tokenizer learns; none for 4096.
        dropout: share of features dropped in training; none for 0, or a checkpoint's own.
        tokenizer: a tokenizer.json, or a folder with one; none for the checkpoint's own or a learned one.
        tokenizer_text: text that a new model's tokenizer learns from beside the training split; none for
            train_text. A run that starts from another run's weights must name the same here.
        train_text: a file or folder of further text to train on, added to the training split; needed
            where the folder has none.
        split: what is scored: "test", as in the paper, or "valid".
        stride: tokens from one scored window to the next; none for half of `context`.
        test_tokens: score only the first lines, with this many tokens at most; none for all.

    Raises:
        FileNotFoundError: if there is nothing at a path, or a split is missing.
        ValueError: if `data` is None or malformed, an option is out of range or does not go with `model`, or
            tokenizer and checkpoint do not fit.
        ImportError: if a package is needed that is not installed.
        ConnectionError: if the hub cannot be read.
    """

    source = WIKITEXT2


class WikiText103(_WikiText):
    """Predict the next token of WikiText-103; everything else is as in `WikiText2`."""

    source = WIKITEXT103


def _check_options(
    model: str, sizes: dict[str, int | None], tokenizer: str | None, tokenizer_text: str | None
) -> None:
    given = [name for name, size in sizes.items() if size is not None]
    if model != "config":
        given += ["tokenizer_text"] * (tokenizer_text is not None)
        if given:
            raise ValueError(
                f"{' and '.join(given)} shape a new model, but model={model!r} is a checkpoint: "
                "leave out, or give model='config'"
            )
    elif tokenizer is not None:
        learned = [name for name in ("vocabulary",) if name in given]
        learned += ["tokenizer_text"] * (tokenizer_text is not None)
        if learned:
            raise ValueError(f"tokenizer={tokenizer!r} is already learned: leave out {' and '.join(learned)}")


def _checked_stride(stride: int | None, context: int) -> int:
    if stride is None:
        return max(1, context // 2)
    if not 1 <= stride <= context:
        raise ValueError(f"stride={stride}: expected 1 to context={context}")
    return stride


def _to_score(tokenizer: Subwords, lines: list[str], limit: int | None) -> tuple[Tensor, int]:
    """Returns the tokens to score, int32, and how many words they make."""
    tokens, counts = tokenizer.encode(lines)
    kept = len(lines)
    if limit is not None:
        kept = int(torch.searchsorted(counts.cumsum(0), limit, right=True))
        tokens = tokens[: int(counts[:kept].sum())]
    if len(tokens) < 2:
        raise ValueError(
            f"test_tokens={limit} leaves {len(tokens)} tokens to score: the first line has {int(counts[0])}"
        )
    return tokens, count_words(lines[:kept])
