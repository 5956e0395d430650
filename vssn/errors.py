"""What a user can mend: one class, with a kind for each place where it arises.

The message is one line: what was expected, what came, and what to do about it. The command line ends with that line and
exit code 2; any other error is a fault of the program and keeps its traceback.
"""

from __future__ import annotations

from collections.abc import Sequence


class UserError(ValueError):
    """A mistake that the user can mend. The message is one line."""

    def __init__(self, message: str) -> None:
        # Parts of a message may quote a file; a line break in there must not break the line.
        super().__init__(" ".join(line.strip() for line in message.splitlines()))


class ConfigError(UserError):
    """A configuration that cannot be used."""


class DataError(UserError):
    """Data is missing, damaged or of the wrong form."""


class CheckpointError(UserError):
    """A checkpoint file that cannot be used."""


class TrainingError(UserError):
    """A run that cannot go on."""


class MemoryLimitError(UserError):
    """The memory limit does not suffice for one sequence."""


class TargetError(UserError):
    """A place that cannot be written."""


class PackageError(UserError, ImportError):
    """A package is not installed that a part of vssn needs."""


class NotFittedError(UserError, AttributeError):
    """An estimator was asked before it was fitted; of the kinds that scikit-learn's own has."""


class RunningError(UserError):
    """Another process makes the run."""


def shorten(names: Sequence[str], none: str, limit: int = 8) -> str:
    """The first names in a line, for a message; `none` where there is none."""
    rest = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + rest if names else none
