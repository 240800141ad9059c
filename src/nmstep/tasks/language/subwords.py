"""Subword vocabularies: a byte-level BPE learned from a text, or a tokenizer from a file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nmstep.packages import require

_CHUNK = 10_000


class Subwords:
    """A text's tokens and back, for language models.

    Args:
        tokenizer: a `tokenizers.Tokenizer`.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        # A text may hold "[MASK]" itself; there it is ordinary letters.
        self._tokenizer.encode_special_tokens = True

    @classmethod
    def learn(cls, lines: Sequence[str], *, vocabulary: int, special: Sequence[str] = ()) -> Subwords:
        """Returns a byte-level BPE, as GPT-2 has, learned from a text.

        The same text, in whatever order of lines, gives the same tokens with the same numbers on any
        machine: the special ones first, then the 256 bytes, then merges by falling count, ties by number.
        A text too small for `vocabulary` tokens gets fewer. No text is unknown to it.

        Args:
            lines: the text.
            vocabulary: tokens at most, the special ones and 256 bytes included.
            special: tokens that no text is split into.

        Raises:
            ImportError: if `tokenizers` is not installed.
            ValueError: if `vocabulary` is below 256 and the special ones.
        """
        least = 256 + len(special)
        if vocabulary < least:
            raise ValueError(
                f"vocabulary={vocabulary} is too small: 256 bytes and {len(special)} special tokens "
                f"need {least}"
            )
        tokenizers = require("tokenizers", "a language-model task")
        byte_level = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
        tokenizer.pre_tokenizer = byte_level
        tokenizer.decoder = tokenizers.decoders.ByteLevel()
        trainer = tokenizers.trainers.BpeTrainer(
            vocab_size=vocabulary,
            min_frequency=2,
            show_progress=False,
            initial_alphabet=sorted(byte_level.alphabet()),
            special_tokens=list(special),
        )
        tokenizer.train_from_iterator(lines, trainer)
        return cls(tokenizer)

    @classmethod
    def load(cls, path: str) -> Subwords:
        """Returns the tokenizer of a `tokenizer.json`, or of a folder with one in it.

        Raises:
            FileNotFoundError: if there is none at `path`.
            ImportError: if `tokenizers` is not installed.
            ValueError: if the file is no tokenizer.
        """
        file = Path(path).expanduser()
        file = file / "tokenizer.json" if file.is_dir() else file
        if not file.is_file():
            raise FileNotFoundError(
                f"no tokenizer at {str(file)!r} (given as tokenizer={path!r}): give a tokenizer.json or a "
                "folder with one, or leave tokenizer out to learn one from the text"
            )
        tokenizers = require("tokenizers", "a language-model task")
        try:
            return cls(tokenizers.Tokenizer.from_file(str(file)))
        except Exception as error:  # the package raises a bare Exception
            raise ValueError(f"{str(file)!r} is no tokenizer of the tokenizers package: {error}") from error

    def save(self, path: str) -> None:
        """Writes a `tokenizer.json` that `load` and transformers read."""
        self._tokenizer.save(path)

    @property
    def size(self) -> int:
        """Number of tokens; they are numbered from 0."""
        return int(self._tokenizer.get_vocab_size())

    def id(self, token: str) -> int | None:
        """Returns the number of a token by its name, or None where there is no such token."""
        number = self._tokenizer.token_to_id(token)
        return None if number is None else int(number)

    def encode(self, lines: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Returns the tokens of all lines, int32, and how many each line has, int64 (lines,).

        No token stands between lines: their line ends are in the text. Each is encoded by itself.
        """
        pieces, counts = [torch.empty(0, dtype=torch.int32)], []
        for start in range(0, len(lines), _CHUNK):
            chunk = list(lines[start : start + _CHUNK])
            encoded = self._tokenizer.encode_batch_fast(chunk, add_special_tokens=False)
            rows = [line.ids for line in encoded]
            counts += [len(row) for row in rows]
            pieces.append(torch.tensor([token for row in rows for token in row], dtype=torch.int32))
        return torch.cat(pieces), torch.tensor(counts, dtype=torch.int64)

    def decode(self, tokens: Sequence[int]) -> str:
        """Returns the text of tokens."""
        return str(self._tokenizer.decode(list(tokens), skip_special_tokens=False))
