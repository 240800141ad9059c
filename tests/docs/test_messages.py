"""What troubleshooting quotes is still said by the source, and every message of the library is quoted there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

pytest.importorskip("sphinx")
from messages import messages

DOCS = Path(__file__).parents[2] / "docs"
# Rooms whose messages are explained by hand; those of the others are listed as they are.
LISTED = {"tasks", "experiments", "bench", "reports", "cli"}


def quotes() -> list[str]:
    rows = [
        line
        for page in sorted((DOCS / "troubleshooting").glob("*.md"))
        if page.stem not in ("index", "rest")
        for line in page.read_text(encoding="utf-8").splitlines()
    ]
    return [found[1] for row in rows if (found := re.match(r"\| `([^`]+)` \|", row))]


def pattern(quote: str) -> re.Pattern[str]:
    """Returns what finds a quote: … is for what depends on the call, and at both ends for a whole message."""
    if quote.startswith("…") and quote.endswith("…"):
        return re.compile(f"^{re.escape(quote)}$")
    return re.compile(".*".join(re.escape(piece) for piece in quote.split("…")))


@pytest.fixture(scope="module")
def said() -> list[tuple[str, str]]:
    return [(f"{m.place}: {m.text}", m.text) for m in messages() if m.room not in LISTED | {"__init__"}]


def test_the_scanner_reads_what_is_said() -> None:
    texts = {m.text for m in messages()}
    assert "plan version … is not known, expected 1" in texts
    assert any(t.startswith("cannot save: …; what was saved before") for t in texts)
    assert len(texts) > 350


def test_every_quote_is_in_the_source(said: list[tuple[str, str]]) -> None:
    gone = [quote for quote in quotes() if not any(pattern(quote).search(text) for _, text in said)]
    assert not gone, "docs/troubleshooting quotes what nothing says any more; change or remove the rows"


def test_every_message_is_quoted(said: list[tuple[str, str]]) -> None:
    patterns = [pattern(quote) for quote in quotes()]
    missing = [place for place, text in said if not any(p.search(text) for p in patterns)]
    assert not missing, "say in docs/troubleshooting why these are raised, and the way out"


def test_no_quote_fits_everything(said: list[tuple[str, str]]) -> None:
    for quote in quotes():
        fitting = sum(bool(pattern(quote).search(text)) for _, text in said)
        assert fitting <= 4, f"{quote!r} fits {fitting} messages; quote more of it"
