"""GPT-2 models: new ones of a given size, and checkpoints from a folder or the hub."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from nmstep.packages import require
from nmstep.tasks.language.subwords import Subwords
from nmstep.tasks.quiet import quiet_transformers

# Every Conv1D of a GPT-2.
CONV1D = ("*.attn.c_attn.weight", "*.attn.c_proj.weight", "*.mlp.c_fc.weight", "*.mlp.c_proj.weight")
_USE = "a GPT-2"


@dataclass(frozen=True, kw_only=True)
class NewGpt2:
    """Returns a kind of GPT-2 that starts from random weights.

    Args:
        layers: transformer blocks.
        width: features of the residual stream, a multiple of `heads`.
        heads: attention heads.
        context: tokens that it sees.
        vocabulary: tokens that it knows.
        dropout: share of features dropped in training, from 0 up to 1.

    Raises:
        ValueError: if a value is out of range.
    """

    layers: int
    width: int
    heads: int
    context: int
    vocabulary: int
    dropout: float = 0.0

    def __post_init__(self) -> None:
        check_sizes(
            layers=self.layers,
            width=self.width,
            heads=self.heads,
            context=self.context,
            dropout=self.dropout,
        )

    def model(self) -> nn.Module:
        """Returns a new model in float32, drawn from torch's global random generator.

        Raises:
            ImportError: if `transformers` is not installed.
        """
        transformers = require("transformers", _USE)
        config = transformers.GPT2Config(
            vocab_size=self.vocabulary,
            n_positions=self.context,
            n_embd=self.width,
            n_layer=self.layers,
            n_head=self.heads,
            activation_function="gelu_pytorch_tanh",  # gelu_new's formula in one operation
            use_cache=False,
            attn_implementation="sdpa",
            bos_token_id=None,
            eos_token_id=None,
            **_dropout(self.dropout),
        )
        model: nn.Module = transformers.GPT2LMHeadModel(config)
        return model


@dataclass(frozen=True, kw_only=True)
class Gpt2Checkpoint:
    """Returns a GPT-2 whose weights are in a folder or on the hub.

    Args:
        name: folder, or name on the hub.
        dropout: share of features dropped in training; None for the checkpoint's own.
    """

    name: str
    dropout: float | None = None

    @property
    def _place(self) -> str:
        path = Path(self.name).expanduser()
        return str(path) if path.is_dir() else self.name

    def config(self) -> Any:
        """Returns the checkpoint's configuration.

        Raises:
            FileNotFoundError: if there is no such checkpoint here, and the hub gives none.
            ImportError: if `transformers` is not installed.
            ValueError: if it is of another kind of model.
        """
        transformers = require("transformers", _USE)
        place = Path(self.name).expanduser()
        try:
            # What can only be a path is not looked up on the hub.
            if not place.is_dir() and (
                place.is_absolute() or self.name.startswith((".", "~")) or place.is_file()
            ):
                raise OSError("there is no such folder")
            config = transformers.AutoConfig.from_pretrained(self._place, trust_remote_code=False)
        except (OSError, ValueError) as error:
            raise FileNotFoundError(
                f"no GPT-2 checkpoint at model={self.name!r}: {_first_line(error)}; give a folder with "
                "config.json and model.safetensors, a name on the Hugging Face hub, or model='config' for a "
                "new model"
            ) from error
        if config.model_type != "gpt2":
            raise ValueError(
                f"model={self.name!r} is a {config.model_type!r} checkpoint, but this task takes a GPT-2"
            )
        return config

    def tokenizer(self) -> Subwords:
        """Returns the tokenizer beside the weights.

        Raises:
            FileNotFoundError: if there is none.
        """
        if (Path(self.name).expanduser() / "tokenizer.json").is_file():
            return Subwords.load(self.name)
        transformers = require("transformers", _USE)
        try:
            found = transformers.AutoTokenizer.from_pretrained(self._place, trust_remote_code=False)
            tokenizer = Subwords(found.backend_tokenizer)
            # Without files transformers returns a tokenizer without tokens.
            if tokenizer.size < 256:
                raise OSError("no tokenizer.json, and no vocab.json with merges.txt")
            return tokenizer
        except (OSError, ValueError, TypeError) as error:
            raise FileNotFoundError(
                f"the checkpoint model={self.name!r} has no tokenizer: {_first_line(error)}; put its "
                "tokenizer.json there or give it as tokenizer"
            ) from error

    def model(self) -> nn.Module:
        """Returns the model in float32 with its weights.

        Raises:
            FileNotFoundError: if there are no weights.
            ValueError: if weights of a GPT-2 with a language-model head are missing in them.
        """
        transformers = require("transformers", _USE)
        with quiet_transformers(transformers):
            try:
                model, report = transformers.GPT2LMHeadModel.from_pretrained(
                    self._place,
                    dtype="float32",
                    use_cache=False,
                    attn_implementation="sdpa",
                    output_loading_info=True,
                    **({} if self.dropout is None else _dropout(self.dropout)),
                )
            except OSError as error:
                raise FileNotFoundError(
                    f"no weights in the checkpoint model={self.name!r}: {_first_line(error)}"
                ) from error
        missing = sorted(report["missing_keys"])
        if missing:
            raise ValueError(
                f"the checkpoint model={self.name!r} is of another model: {', '.join(missing[:3])} "
                f"{'and more ' if len(missing) > 3 else ''}missing in it"
            )
        loaded: nn.Module = model.train()  # transformers loads it for evaluation: without dropout
        return loaded


def check_sizes(
    *, layers: int, width: int, heads: int, context: int, dropout: float, least_context: int = 2
) -> None:
    """Raises ValueError if a transformer cannot have these sizes."""
    least = {
        "layers": (layers, 1),
        "width": (width, 1),
        "heads": (heads, 1),
        "context": (context, least_context),
    }
    for name, (value, lowest) in least.items():
        if value < lowest:
            raise ValueError(f"{name}={value} is too small: it must be at least {lowest}")
    if width % heads:
        raise ValueError(f"width={width} cannot be split over heads={heads}: it must be a multiple of them")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout={dropout}: expected a share from 0 up to, but not including, 1")


def _dropout(share: float) -> dict[str, float]:
    return {"resid_pdrop": share, "embd_pdrop": share, "attn_pdrop": share}


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0].rstrip(".")
