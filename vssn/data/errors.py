"""The one error that a user sees when data cannot be used."""

from __future__ import annotations

from collections.abc import Sequence


class DataError(ValueError):
    """Data is missing, damaged or of the wrong form.

    The message is one line: what was expected, what came, and what to do about it.
    """

    def __init__(self, message: str) -> None:
        # Parts of a message may quote a file; a line break in there must not break the line.
        super().__init__(" ".join(message.splitlines()))


def shorten(names: Sequence[str], none: str, limit: int = 8) -> str:
    """The first names in a line, for a message; `none` where there is none."""
    rest = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + rest if names else none
