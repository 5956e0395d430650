"""Tables in Markdown, and where they stand in a file."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path


def table(header: Sequence[object], lines: Iterable[Sequence[object]], numbers: bool = True) -> str:
    """The first column is of text, the others of numbers unless they are said to be of text too."""
    rule = ["---"] + ["---:" if numbers else "---"] * (len(header) - 1)
    return "\n".join("| " + " | ".join(str(cell) for cell in cells) + " |" for cells in (header, rule, *lines))


def insert(path: Path, begin: str, end: str, text: str) -> None:
    """Replaces what stands between two marks. Raises ValueError where the file has not got them."""
    before, found, rest = path.read_text().partition(begin)
    _, ended, after = rest.partition(end)
    if not found or not ended:
        raise ValueError(f"{path} has no lines {begin!r} and {end!r} for the tables to stand between")
    path.write_text(f"{before}{begin}\n{text.strip()}\n{end}{after}")
