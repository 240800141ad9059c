"""Text that the Moses scripts tokenised: told by its escapes, and unescaped."""

from __future__ import annotations

import warnings
from dataclasses import replace

from nmstep.tasks.translation.files import Corpus, ParallelText

# In the order in which they can be undone: an escaped ampersand may stand before another's name.
_ESCAPES = {
    "&#124;": "|",
    "&lt;": "<",
    "&gt;": ">",
    "&apos;": "'",
    "&quot;": '"',
    "&#91;": "[",
    "&#93;": "]",
    "&amp;": "&",
}


def unescape(line: str) -> str:
    """Returns a line with the characters that the Moses tokenizer escapes; words stay split.

    >>> unescape("I don &apos;t , R &amp; D &amp;lt;")
    "I don 't , R & D &lt;"
    """
    if "&" in line:
        for escaped, character in _ESCAPES.items():
            line = line.replace(escaped, character)
    return line


def unescape_corpus(corpus: Corpus) -> Corpus:
    """Returns both sides of all text unescaped."""
    return replace(corpus, train=_unescape_text(corpus.train), test=_unescape_text(corpus.test))


def warn_if_escaped(corpus: Corpus) -> None:
    """Warns if the references hold escapes that only tokenised text has."""
    count = sum("&apos;" in line or "&quot;" in line for line in corpus.test.target)
    if count:
        warnings.warn(
            f"{count} of the {len(corpus.test)} references of {corpus.test.where} hold &apos; or &quot;, so they "
            "seem to be tokenised by the Moses scripts, and BLEU of such text is not that of plain text: give "
            "tokenized=true",
            stacklevel=4,
        )


def _unescape_text(text: ParallelText) -> ParallelText:
    return replace(
        text, source=[unescape(line) for line in text.source], target=[unescape(line) for line in text.target]
    )
