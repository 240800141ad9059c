"""Masked-language-model pretraining of a BERT."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from nmstep.packages import require
from nmstep.tasks.language.gpt2 import check_sizes
from nmstep.tasks.language.masking import NOT_MASKED, SPECIAL, Masking
from nmstep.tasks.language.plain_text import as_lines, decode_part
from nmstep.tasks.language.stream import TokenStream, exp
from nmstep.tasks.language.subwords import Subwords
from nmstep.tasks.language.wikitext_files import HUB_NAME, WIKITEXT103, read_wikitext
from nmstep.tasks.order import generator
from nmstep.tasks.task import Batch, Task, TaskDefaults, device_of
from nmstep.tasks.text_files import read_text

ModelName = Literal["small", "bert-base", "bert-large"]
_Sizes = dict[str, int]
_SIZES: dict[str, _Sizes] = {
    "small": {"layers": 4, "width": 256, "heads": 4, "context": 128, "vocabulary": 4096},
    "bert-base": {"layers": 12, "width": 768, "heads": 12, "context": 512, "vocabulary": 30522},
    "bert-large": {"layers": 24, "width": 1024, "heads": 16, "context": 512, "vocabulary": 30522},
}
_SPARSE = (
    "*.attention.self.*.weight",
    "*.attention.output.dense.weight",
    "*.intermediate.dense.weight",
    "*.layer.*.output.dense.weight",
)
_SMALL = TaskDefaults(
    steps=4000, batch_size=16, lr=1e-3, weight_decay=0.01, schedule="linear", warmup=200, include=_SPARSE
)
# As BERT was pretrained.
_BERT = replace(_SMALL, steps=1_000_000, batch_size=256, lr=1e-4, warmup=10_000)


class Mlm(Task):
    """Guess the masked tokens of a text with a BERT; perplexity is per masked token.

    A sequence is [CLS], `context` - 2 tokens that follow each other in the text, and [SEP]. 15 % of its
    tokens are to be guessed: 8 of 10 of them are shown as [MASK], 1 as a random token, 1 as it is. Which
    ones is drawn anew at every step; a training epoch cuts the text from a place drawn anew each epoch.

    **How it is scored.** The validation text is cut into sequences from its start, what is left over at its
    end is not used, and the masks are the same in every evaluation. "loss" is the mean cross-entropy of the
    masked tokens in nats, "perplexity" is exp(loss), "accuracy" the percentage guessed right.

    Args:
        data: None for the Tiny Shakespeare that comes with the package, or a file or folder of text
            as `nmstep.tasks.text_files.read_text` reads it, in UTF-8; or the hub name
            "Salesforce/wikitext" for WikiText-103.
        model: sizes of a new model: "small", "bert-base" or "bert-large"; each can be changed below.
        layers: transformer blocks; none for the model's.
        width: features, a multiple of `heads`; none for the model's.
        heads: attention heads; none for the model's.
        context: tokens of a sequence; none for the model's.
        vocabulary: tokens that the byte-level BPE learns from the training text; none for the model's.
        dropout: share of features dropped in training; none for 0 in the small model, 0.1 in the others.
        mask: share of the tokens to guess.
        tokenizer: a tokenizer.json, or a folder with one, in place of a learned one.
        test_tokens: score only the first sequences, with this many tokens at most; none for all.

    Raises:
        FileNotFoundError: if there is nothing at a path.
        ValueError: if `data` holds no usable text, less than two sequences of it, or an option is out of range.
        ImportError: if `tokenizers`, or `datasets` for the hub, is not installed.
        ConnectionError: if the hub cannot be read.
    """

    metric = "perplexity"
    higher_is_better = False

    def __init__(
        self,
        data: str | None = None,
        *,
        model: ModelName = "small",
        layers: int | None = None,
        width: int | None = None,
        heads: int | None = None,
        context: int | None = None,
        vocabulary: int | None = None,
        dropout: float | None = None,
        mask: float = 0.15,
        tokenizer: str | None = None,
        test_tokens: int | None = None,
    ) -> None:
        self.name = "mlm"
        if model not in _SIZES:
            raise ValueError(f"unknown model {model!r}: choose {', '.join(map(repr, _SIZES))}")
        given = {"layers": layers, "width": width, "heads": heads, "context": context}
        self._sizes = _SIZES[model] | {name: size for name, size in given.items() if size is not None}
        default_vocabulary = self._sizes.pop("vocabulary")
        self._dropout = dropout if dropout is not None else (0.0 if model == "small" else 0.1)
        check_sizes(**self._sizes, dropout=self._dropout, least_context=3)
        self.defaults = _SMALL if model == "small" else _BERT
        train, validation = _read(data)
        self.tokenizer = _tokenizer(tokenizer, train, vocabulary, default_vocabulary)
        self._masking = Masking.of(self.tokenizer, mask)
        length = self._sizes["context"] - 2
        self._stream = TokenStream(self.tokenizer.encode(train)[0], length)
        self._validation = self._masked(self.tokenizer.encode(validation)[0], length, test_tokens)

    def _masked(self, tokens: Tensor, length: int, limit: int | None) -> Batch:
        """Returns all sequences to score, the same in every run with this tokenizer."""
        rows = min(len(tokens), len(tokens) if limit is None else limit) // length
        if not rows:
            raise ValueError(
                f"the validation text has {len(tokens)} tokens, of which test_tokens={limit} leaves less than "
                f"the {length} of one sequence: give a longer text, more test_tokens or a smaller context"
            )
        windows = tokens[: rows * length].view(rows, length).long()
        inputs, targets = self._masking.apply(windows, generator("validation masks"))
        return Batch(inputs=inputs, targets=targets)

    def model(self) -> nn.Module:
        """Returns a new `BertForMaskedLM` of transformers, drawn from torch's global random generator.

        Raises:
            ImportError: if `transformers` is not installed.
        """
        transformers = require("transformers", "a BERT")
        config = transformers.BertConfig(
            vocab_size=self.tokenizer.size,
            hidden_size=self._sizes["width"],
            num_hidden_layers=self._sizes["layers"],
            num_attention_heads=self._sizes["heads"],
            intermediate_size=4 * self._sizes["width"],
            max_position_embeddings=self._sizes["context"],
            hidden_dropout_prob=self._dropout,
            attention_probs_dropout_prob=self._dropout,
            pad_token_id=self.tokenizer.id("[PAD]"),
            attn_implementation="sdpa",
        )
        model: nn.Module = transformers.BertForMaskedLM(config)
        return model

    def batch(self, step: int, *, seed: int, batch_size: int) -> Batch:
        """Returns the sequences of one step: int64 inputs and targets, both (batch_size, context).

        Targets are -100 where nothing is to guess.

        Raises:
            ValueError: if `step` is negative or `batch_size` below 1.
        """
        tokens = self._stream.windows(
            step, seed=seed, batch_size=batch_size, length=self._sizes["context"] - 2
        )
        inputs, targets = self._masking.apply(tokens, generator("mask", seed, step))
        return Batch(inputs=inputs, targets=targets)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Returns the mean cross-entropy of the masked tokens of `batch` in nats."""
        return F.cross_entropy(*_guesses(model, batch.to(device_of(model))))

    def _evaluate(self, model: nn.Module) -> dict[str, float]:
        device, total, right, count = device_of(model), 0.0, 0, 0
        rows = max(1, 8192 // self._sizes["context"])
        pieces = zip(self._validation.inputs.split(rows), self._validation.targets.split(rows), strict=True)
        for inputs, targets in pieces:
            logits, expected = _guesses(model, Batch(inputs=inputs, targets=targets).to(device))
            total += F.cross_entropy(logits, expected, reduction="sum").item()
            right += int((logits.argmax(1) == expected).sum())
            count += len(expected)
        return {"loss": total / count, "perplexity": exp(total / count), "accuracy": 100 * right / count}


def _guesses(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """Returns float32 logits (masked, vocabulary) and what is right, int64 (masked,).

    The output layer sees the masked tokens alone: it is the widest one, and most tokens are not masked.
    """
    masked = batch.targets != NOT_MASKED
    encoder: nn.Module = model.bert  # type: ignore[assignment]
    head: nn.Module = model.cls  # type: ignore[assignment]
    hidden = encoder(input_ids=batch.inputs).last_hidden_state
    return head(hidden[masked]).float(), batch.targets[masked]


def _read(data: str | None) -> tuple[list[str], list[str]]:
    """Returns the lines to train on and those to score."""
    if data == HUB_NAME and not Path(data).exists():
        return read_wikitext(WIKITEXT103, data, split="valid", needs_train=True)
    train, validation = (as_lines(decode_part(part, data)) for part in read_text(data))
    return train, validation


def _tokenizer(path: str | None, lines: list[str], vocabulary: int | None, default: int) -> Subwords:
    if path is None:
        return Subwords.learn(lines, vocabulary=vocabulary or default, special=SPECIAL)
    if vocabulary is not None:
        raise ValueError(f"tokenizer={path!r} is already learned: leave out vocabulary={vocabulary}")
    return Subwords.load(path)
