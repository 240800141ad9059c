"""The encoder-decoder Transformer of Vaswani et al., whole sentences at once or token by token."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nmstep.tasks.models.transformer_layers import (
    CrossAttention,
    DecoderLayer,
    DecoderState,
    EncoderLayer,
    SelfAttention,
)

PAD, BOS, EOS = 0, 1, 2


class Transformer(nn.Module):
    """An encoder-decoder Transformer with sinusoidal positions and one embedding for all three uses.

    The embedding is shared by source, target and output layer, scaled by sqrt(width) on the way in. Dropout
    acts on the embeddings with their positions and on each part before it is added to the residual stream.
    Linear weights start Xavier-uniform (each of the projections that share a matrix on its own), biases at 0,
    the embedding normal with deviation 1 / sqrt(width).

    Tokens 0, 1 and 2 are padding, beginning and end of a sentence. Padding is at the end of a row, and no
    place that holds a token sees it.

    Source: Vaswani et al., Attention Is All You Need, sections 3 and 5.4.

    Args:
        vocabulary: number of tokens, at least 3.
        layers: encoder layers, and as many decoder layers.
        width: features of the residual stream, an even multiple of `heads`.
        heads: attention heads.
        feed_forward: hidden features of the feed-forward networks.
        dropout: share of features that dropout sets to zero.
        pre_norm: True to normalise what goes into each part, and the output of each stack, rather than the
            sum after it: trains without a warm-up, while the original needs one.
        context: the longest sequence, in tokens, that positions are made for.

    Raises:
        ValueError: if a size is below its least, `width` is odd or no multiple of `heads`, or `dropout` is not
            in [0, 1).
    """

    positions: Tensor

    def __init__(
        self,
        *,
        vocabulary: int,
        layers: int = 6,
        width: int = 512,
        heads: int = 8,
        feed_forward: int = 2048,
        dropout: float = 0.1,
        pre_norm: bool = False,
        context: int = 512,
    ) -> None:
        super().__init__()
        sizes = {"layers": layers, "width": width, "heads": heads, "feed_forward": feed_forward}
        for name, size in sizes.items():
            if size < 1:
                raise ValueError(f"a Transformer cannot have {name}={size}: give at least 1")
        if vocabulary <= EOS:
            raise ValueError(
                f"vocabulary={vocabulary} has no room for padding, beginning and end: give 4 or more"
            )
        if width % heads or width % 2:
            raise ValueError(
                f"width={width} cannot be split over heads={heads}: make it even and a multiple of heads"
            )
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout={dropout!r} is not a share to leave out: give 0.0 or more, below 1.0")
        self.width = width
        self.embedding = nn.Embedding(vocabulary, width)
        self.dropout = nn.Dropout(dropout)
        shape = width, heads, feed_forward, dropout, pre_norm
        self.encoder = nn.ModuleList(EncoderLayer(*shape) for _ in range(layers))
        self.decoder = nn.ModuleList(DecoderLayer(*shape) for _ in range(layers))
        self.encoder_norm = nn.LayerNorm(width) if pre_norm else nn.Identity()
        self.decoder_norm = nn.LayerNorm(width) if pre_norm else nn.Identity()
        self.register_buffer("positions", sinusoids(context, width), persistent=False)
        self.apply(_initialise)

    def forward(self, source: Tensor, decoder_input: Tensor) -> Tensor:
        """Returns logits of the token that follows each target token, (batch, target length, vocabulary).

        Args:
            source: int64 (batch, source length), each row ended and then padded.
            decoder_input: int64 (batch, target length), each row begun with 1.

        Raises:
            ValueError: if a sequence is longer than `context`.
        """
        return self.advance(decoder_input, self.start(source))

    def start(self, source: Tensor) -> DecoderState:
        """Returns the decoder's state before the first target token.

        Args:
            source: int64 (rows, source length), each row ended and then padded.

        Raises:
            ValueError: if the sequence is longer than `context`.
        """
        mask = (source != PAD)[:, None, None, :]
        x = self._embed(source, 0)
        for layer in self.encoder:
            x = layer(x, mask)
        x = self.encoder_norm(x)
        memory = [layer.cross.memory(x) for layer in self.decoder]  # type: ignore[union-attr, operator]
        return DecoderState(mask=mask, memory=memory, past=[])

    def advance(self, tokens: Tensor, state: DecoderState) -> Tensor:
        """Returns logits of the token after each of these, (rows, length, vocabulary); updates `state`.

        Args:
            tokens: int64 (rows, length): any length on a fresh state, 1 after that.
            state: what `start` returned, or a selection of its rows.

        Raises:
            ValueError: if several tokens come after the first call, or the target gets longer than `context`.
        """
        if state.length and tokens.shape[1] != 1:
            raise ValueError(
                f"{tokens.shape[1]} tokens after {state.length}: give a state that has read none, or one token"
            )
        x = self._embed(tokens, state.length)
        for number, layer in enumerate(self.decoder):
            x = layer(x, state, number)
        return F.linear(self.decoder_norm(x), self.embedding.weight)

    def _embed(self, tokens: Tensor, start: int) -> Tensor:
        end = start + tokens.shape[1]
        if end > len(self.positions):
            raise ValueError(
                f"a sequence of {end} tokens is longer than the model's context={len(self.positions)}"
            )
        x = self.embedding(tokens) * math.sqrt(self.width) + self.positions[start:end]
        result: Tensor = self.dropout(x)
        return result


def sinusoids(length: int, width: int) -> Tensor:
    """Returns the position table, float32 (length, width): sines first, then cosines, of falling frequency.

    Deviation: the paper puts sine and cosine of a frequency side by side; the order of features is of no
    account to the layers that follow.

    >>> sinusoids(2, 4)
    tensor([[0.0000, 0.0000, 1.0000, 1.0000],
            [0.8415, 0.0100, 0.5403, 0.9999]])
    """
    frequencies = torch.exp(torch.arange(0, width, 2) * (-math.log(10_000) / width))
    angles = torch.arange(length).unsqueeze(1) * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def _initialise(module: nn.Module) -> None:
    """Draws one module's own weights; a parent is visited after its children and redraws what it must."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Embedding):
        nn.init.normal_(module.weight, std=module.embedding_dim**-0.5)
    elif isinstance(module, SelfAttention):
        _initialise_apart(module.query_key_value.weight, 3)
    elif isinstance(module, CrossAttention):
        _initialise_apart(module.key_value.weight, 2)


def _initialise_apart(weight: Tensor, projections: int) -> None:
    for part in weight.detach().chunk(projections):
        nn.init.xavier_uniform_(part)
