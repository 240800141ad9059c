"""Translation: the Transformer of Vaswani et al. on WMT17 German to English, or on any parallel text."""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nmstep.packages import require
from nmstep.tasks.models.transformer import BOS, PAD, Transformer
from nmstep.tasks.order import BucketOrder
from nmstep.tasks.task import Batch, Task, TaskDefaults, device_of
from nmstep.tasks.translation.bpe import Sentences, SharedBpe
from nmstep.tasks.translation.files import Corpus, read_parallel
from nmstep.tasks.translation.moses import unescape_corpus, warn_if_escaped
from nmstep.tasks.translation.search import EXTRA_LENGTH, translate

_EVALUATED_AT_ONCE = 100  # sentences


class Wmt17DeEn(Task):
    """Translate with an encoder-decoder Transformer; BLEU on a held-out set.

    The defaults are the base Transformer of Vaswani et al., which the STEP paper trains on WMT17 German to
    English. Both languages share one byte-level BPE, learned from both sides of the training text, and one
    embedding, which is the output layer too and so stays dense.

    A batch is `batch_size` sentence pairs of similar length (see
    `nmstep.tasks.order.BucketOrder`): the paper's 25,000 tokens a side are about 768 pairs of
    WMT17. Training pairs with an empty side, or with more than `max_length` tokens on one, are left out.

    **How translations are scored.** "bleu" is sacrebleu's corpus BLEU of the detokenised translations against
    the references as they stand in the file, with its default tokenizer 13a; the attribute `signature` is
    sacrebleu's own record of that, to be given beside any number. With `tokenized` the text is taken as
    tokenised and escaped by the Moses scripts: "&quot;" and its like become characters again, on both sides,
    and words are compared as they are split (tok:none in the signature), which gives other numbers than
    detokenised BLEU. Held-out pairs are all scored, whatever their length. "loss" is the mean cross-entropy
    per target token, the end token included, in nats, without label smoothing.

    Args:
        data: a local folder or the hub name, as `nmstep.tasks.translation.files.read_parallel` reads it.
        source: the language to translate from, as the files' endings call it.
        target: the language to translate into.
        test: the stem of the held-out set to score on, such as "newstest2014"; none for the default that
            `read_parallel` describes.
        test_subset: score on the first so many pairs; none for all.
        tokenized: True for text that the Moses scripts tokenised and escaped.
        vocabulary: tokens of the shared BPE at most; a small text gives fewer.
        max_length: tokens of the longest training sentence, its end included.
        layers: layers of the encoder, and of the decoder.
        width: features of the residual stream, an even multiple of `heads`.
        heads: attention heads.
        feed_forward: hidden features of the feed-forward networks.
        dropout: share of features that dropout sets to zero.
        pre_norm: True to normalise each part's input rather than the sum after it, which trains more easily.
        label_smoothing: share of the target's probability that is spread over the vocabulary in training.
        beam: hypotheses that the search keeps, with a length penalty of 0.6; 1 for greedy search.

    Attributes:
        test_name: the stem of the held-out set.

    Raises:
        ImportError: if `tokenizers` or `sacrebleu` is not installed, or `datasets` where it is needed.
        FileNotFoundError: if there is nothing at `data`.
        ConnectionError: if the hub cannot be read.
        ValueError: if the data are missing, malformed, empty or not parallel, or an option is out of range.
    """

    name = "wmt17-de-en"
    metric = "bleu"
    defaults = TaskDefaults(
        steps=100_000,
        batch_size=768,
        lr=7e-4,
        weight_decay=0.0,
        schedule="inverse-sqrt",
        warmup=4000,
        include=("encoder.*", "decoder.*"),
    )

    def __init__(
        self,
        data: str | None = None,
        *,
        source: str = "de",
        target: str = "en",
        test: str | None = None,
        test_subset: int | None = None,
        tokenized: bool = False,
        vocabulary: int = 32_000,
        max_length: int = 128,
        layers: int = 6,
        width: int = 512,
        heads: int = 8,
        feed_forward: int = 2048,
        dropout: float = 0.1,
        pre_norm: bool = False,
        label_smoothing: float = 0.1,
        beam: int = 4,
    ) -> None:
        _check("max_length", max_length, 2)
        _check("beam", beam, 1)
        if not 0 <= label_smoothing < 1:
            raise ValueError(
                f"label_smoothing={label_smoothing!r} is out of range: give 0.0 or more, below 1.0"
            )
        self._label_smoothing, self._beam, self._max_length = label_smoothing, beam, max_length
        self._sizes: dict[str, Any] = {
            "layers": layers,
            "width": width,
            "heads": heads,
            "feed_forward": feed_forward,
            "dropout": dropout,
            "pre_norm": pre_norm,
        }
        with torch.device("meta"):
            Transformer(vocabulary=vocabulary, **self._sizes)  # rejects a bad size before the data are read
        self._bleu = _bleu(tokenized)
        corpus = read_parallel(data, source=source, target=target, test=test)
        if tokenized:
            corpus = unescape_corpus(corpus)
        else:
            warn_if_escaped(corpus)
        self._take(corpus, vocabulary, test_subset)

    def _take(self, corpus: Corpus, vocabulary: int, test_subset: int | None) -> None:
        """Learns the BPE, encodes the text and orders the training pairs."""
        train, held_out = corpus.train, corpus.test
        self.test_name = corpus.test_name
        if test_subset is not None and not 1 <= test_subset <= len(held_out):
            raise ValueError(
                f"test_subset={test_subset} is out of range: {held_out.where} has {len(held_out)} pairs"
            )
        self._bpe = SharedBpe(train.source + train.target, vocabulary=vocabulary)
        self._train = self._bpe.encode(train.source), self._bpe.encode(train.target)
        self._references = held_out.target[:test_subset]
        self._test = self._bpe.encode(held_out.source[:test_subset]), self._bpe.encode(self._references)
        lengths = torch.stack([side.lengths for side in self._train])
        # An empty sentence is its end alone.
        self._kept = ((lengths > 1) & (lengths <= self._max_length)).all(dim=0).nonzero().squeeze(1)
        if not len(self._kept):
            raise ValueError(
                f"none of the {len(train)} pairs of {train.where} can be trained on: both sides of each must have "
                f"text, of at most max_length={self._max_length} tokens; raise max_length or give other text"
            )
        # Both sides of a batch are padded to its longest sentence.
        self._order = BucketOrder(lengths.amax(dim=0)[self._kept])
        longest = max(self._max_length, *(int(side.lengths.max()) for side in self._test))
        self._sizes["context"] = longest + EXTRA_LENGTH

    @property
    def signature(self) -> str:
        """Sacrebleu's description of how BLEU is computed, for whoever wants to compare.

        An example: "nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:2.6.0".
        """
        self._bleu.corpus_score([""], [[""]])  # it knows the number of references only after a score
        return str(self._bleu.get_signature())

    def model(self) -> nn.Module:
        """Returns a new `Transformer`, drawn from torch's global random generator."""
        return Transformer(vocabulary=self._bpe.size, **self._sizes)

    def batch(self, step: int, *, seed: int, batch_size: int) -> Batch:
        """Returns the pairs of one step: inputs (batch_size, source length), targets (batch_size, target length).

        Both are int64, ended by token 2 and padded with 0. The extra "decoder_input" is the targets moved
        one to the right, begun by token 1.

        Raises:
            ValueError: if `step` is negative or `batch_size` below 1.
        """
        indices = self._order.indices(step, seed=seed, batch_size=batch_size)
        return _batch(*self._train, self._kept[indices])

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Returns the mean cross-entropy with label smoothing per target token of `batch`, in nats."""
        here = batch.to(device_of(model))
        logits = model(here.inputs, **here.extras).float()
        return F.cross_entropy(
            logits.flatten(0, 1),
            here.targets.flatten(),
            ignore_index=PAD,
            label_smoothing=self._label_smoothing,
        )

    def translations(self, model: nn.Module) -> list[str]:
        """Returns the model's translations of the held-out sentences, in their order.

        Args:
            model: what `model` returned, in evaluation mode.
        """
        sources, _ = self._test
        found = [""] * len(sources)
        for indices in self._by_length():
            rows = sources.select(indices).to(device_of(model))
            tokens_of = translate(cast(Transformer, model), rows, beam=self._beam)
            for index, tokens in zip(indices.tolist(), tokens_of, strict=True):
                found[index] = self._bpe.decode(tokens)
        return found

    def _evaluate(self, model: nn.Module) -> dict[str, float]:
        total, tokens = torch.zeros((), dtype=torch.float64), len(self._test[1].tokens)
        for indices in self._by_length():
            batch = _batch(*self._test, indices).to(device_of(model))
            logits = model(batch.inputs, **batch.extras).float().flatten(0, 1)
            loss = F.cross_entropy(logits, batch.targets.flatten(), ignore_index=PAD, reduction="sum")
            total += loss.double().cpu()
        bleu = self._bleu.corpus_score(self.translations(model), [self._references])
        return {"loss": total.item() / tokens, "bleu": float(bleu.score)}

    def _by_length(self) -> tuple[Tensor, ...]:
        """Returns the held-out pairs in groups of similar source length, so that little is padding."""
        groups: tuple[Tensor, ...] = self._test[0].lengths.argsort(stable=True).split(_EVALUATED_AT_ONCE)
        return groups


def _batch(sources: Sentences, targets: Sentences, indices: Tensor) -> Batch:
    wanted = targets.select(indices)
    begun = torch.cat([torch.full((len(wanted), 1), BOS), wanted[:, :-1]], dim=1)
    return Batch(inputs=sources.select(indices), targets=wanted, extras={"decoder_input": begun})


def _bleu(tokenized: bool) -> Any:
    sacrebleu = require("sacrebleu", "the translation task")
    # sacrebleu warns of tokenised text unless told that it is meant to be.
    return sacrebleu.BLEU(tokenize="none" if tokenized else "13a", force=tokenized)


def _check(name: str, value: int, least: int) -> None:
    if value < least:
        raise ValueError(f"{name}={value} is too small: give at least {least}")
