"""Text: a byte-level language model on Tiny Shakespeare or any text of the user's own."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nmstep.tasks.language.stream import TokenStream, exp
from nmstep.tasks.models.gpt import GPT, Projection
from nmstep.tasks.task import Batch, Task, TaskDefaults, device_of
from nmstep.tasks.text_files import read_text


class Text(Task):
    """Predict the next byte of a text with a small GPT; perplexity is per byte.

    An epoch cuts the training bytes into non-overlapping windows of `context` bytes, the first of which
    starts at a place that is drawn anew each epoch, 0 to context - 1. Each window's targets are its
    bytes moved one to the right.

    **How validation is scored.** The validation bytes b[0], b[1], ... are cut into windows of `context` bytes
    from the first on, the last one shorter. In each window the model predicts every following byte from the
    bytes of that window alone, so every byte but b[0] is predicted exactly once, with 1 to `context` bytes
    of context. "loss" is the mean cross-entropy over those bytes, in nats; "perplexity" is exp(loss); loss
    divided by ln 2 is bits per byte.

    Args:
        data: None for the Tiny Shakespeare that comes with the package, or a file or folder of text
            as `nmstep.tasks.text_files.read_text` reads it.
        layers: transformer blocks.
        width: features of the residual stream, a multiple of `heads`.
        heads: attention heads.
        context: bytes that the model sees.
        projection: "linear" for weights (out, in), "conv1d" for GPT-2's (in, out).
        tied: True to share the token embedding with the output layer.

    Raises:
        FileNotFoundError: if there is nothing at `data`.
        ValueError: if `data` holds no usable text, less than a window of it, or an option is out of range.
    """

    metric = "perplexity"
    higher_is_better = False

    def __init__(
        self,
        data: str | None = None,
        *,
        layers: int = 2,
        width: int = 128,
        heads: int = 4,
        context: int = 64,
        projection: Projection = "linear",
        tied: bool = False,
    ) -> None:
        self.name = "text"
        self.defaults = TaskDefaults(steps=2000, batch_size=16, lr=1e-3, weight_decay=0.01)
        self._sizes = {"layers": layers, "width": width, "heads": heads, "context": context}
        self._projection: Projection = projection
        self._tied = tied
        with torch.device("meta"):
            self.model()  # rejects a bad option before the first step
        self._context = context
        train, validation = read_text(data)
        if len(train) < 2 * context or len(validation) < 2:
            raise ValueError(
                f"the text at {data!r} is too short: {len(train)} bytes to train on and "
                f"{len(validation)} to validate, but context={context} "
                f"needs {2 * context} and 2; give a longer text or a smaller context"
            )
        self._stream, self._validation = TokenStream(_as_tensor(train), context), _as_tensor(validation)

    def model(self) -> nn.Module:
        """Returns a new `GPT` over 256 byte values, drawn from torch's global random generator."""
        return GPT(vocabulary=256, projection=self._projection, tied=self._tied, **self._sizes)

    def batch(self, step: int, *, seed: int, batch_size: int) -> Batch:
        """Returns windows of one step: int64 inputs and targets, both (batch_size, context).

        Raises:
            ValueError: if `step` is negative or `batch_size` below 1.
        """
        windows = self._stream.windows(step, seed=seed, batch_size=batch_size)
        return Batch(inputs=windows[:, :-1], targets=windows[:, 1:])

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Returns the mean cross-entropy of `batch` in nats per byte."""
        here = batch.to(device_of(model))
        return F.cross_entropy(model(here.inputs).float().flatten(0, 1), here.targets.flatten())

    def _evaluate(self, model: nn.Module) -> dict[str, float]:
        device, total = device_of(model), 0.0
        for window, following in self._validation_windows():
            logits = model(window.to(device)).float().flatten(0, 1)
            total += F.cross_entropy(logits, following.to(device).flatten(), reduction="sum").item()
        mean = total / (len(self._validation) - 1)
        return {"loss": mean, "perplexity": exp(mean)}

    def _validation_windows(self, *, chunk: int = 64) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields int64 inputs and targets (windows, context), `chunk` windows at once, the short one last."""
        inputs, targets, context = self._validation[:-1].long(), self._validation[1:].long(), self._context
        whole = len(inputs) // context * context
        for start in range(0, whole, chunk * context):
            piece = slice(start, min(start + chunk * context, whole))
            yield inputs[piece].view(-1, context), targets[piece].view(-1, context)
        if whole < len(inputs):
            yield inputs[whole:].unsqueeze(0), targets[whole:].unsqueeze(0)


def _as_tensor(text: bytes) -> Tensor:
    return torch.frombuffer(bytearray(text), dtype=torch.uint8)
