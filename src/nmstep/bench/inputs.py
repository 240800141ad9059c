"""Inputs made up for a transformers model from its configuration."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from nmstep.bench.subject import Use

__all__ = ["Given", "given_to"]

_READ, _PROMPT, _DECODED = 128, 8, 32

#: How a model is used with so many examples, what an example is, and how many tokens it makes of each.
Given = tuple[Callable[[int], Use], str, int | None]


def given_to(model: nn.Module, tokens: int | None = None) -> Given:
    """Returns how to use a transformers model: random tokens or images of the size that its configuration names.

    A model that generates decodes greedily with its cache, after a prompt of 8 tokens.

    Args:
        model: of transformers.
        tokens: that an encoder reads, 128 by default, or that a decoder makes, 32 by default; fewer where the
            model has fewer places.

    Raises:
        ValueError: the model takes something else than tokens or images.
    """
    config: Any = model.config
    name = getattr(model, "main_input_name", "input_ids")
    if name == "pixel_values":
        return _images(config)
    if name != "input_ids":
        raise ValueError(
            f"a {type(model).__name__} takes {name}: only input_ids and pixel_values can be made up"
        )
    most = getattr(config, "max_position_embeddings", None) or 1 << 20
    if model.can_generate():  # type: ignore[operator]
        return _decoding(config, tokens or _DECODED, most)
    return _reading(config, min(tokens or _READ, most))


def _images(config: Any) -> Given:
    size = getattr(config, "image_size", None) or 224
    height, width = (size, size) if isinstance(size, int) else size
    shape = (getattr(config, "num_channels", 3), height, width)
    return (
        lambda count: Use(named={"pixel_values": torch.randn(count, *shape)}),
        f"an image of {height} x {width}",
        None,
    )


def _reading(config: Any, length: int) -> Given:
    def use(count: int) -> Use:
        ids = _ids(config, count, length)
        more = {"decoder_input_ids": ids} if getattr(config, "is_encoder_decoder", False) else {}
        return Use(named={"input_ids": ids, **more})

    return use, f"{length} tokens", None


def _decoding(config: Any, tokens: int, most: int) -> Given:
    prompt = min(_PROMPT, most // 2)
    made = min(tokens, most - prompt)
    options: dict[str, Any] = {"max_new_tokens": made, "min_new_tokens": made, "do_sample": False}
    options |= {"num_beams": 1, "use_cache": True, "pad_token_id": 0}
    if getattr(config, "is_encoder_decoder", False):
        options["decoder_start_token_id"] = 0

    def use(count: int) -> Use:
        ids = _ids(config, count, prompt)
        return Use(
            positional=(ids,), named={"attention_mask": torch.ones_like(ids), **options}, method="generate"
        )

    return use, f"{made} tokens decoded one by one after {prompt}", made


def _ids(config: Any, count: int, length: int) -> torch.Tensor:
    return torch.randint(config.get_text_config().vocab_size, (count, length))
