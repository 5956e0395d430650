"""What every reader of files returns: sequences as they stand in the data, with what is known of them.

A missing entry is NaN. A mistake in a file is a `DataError` of one line that names the file, and the row or the column.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vssn.data.folder import entries
from vssn.errors import DataError, shorten
from vssn.utils.packages import needing
from vssn.utils.values import warn_of_rounding

_LISTS = ("x", "u", "names", "times", "parts", "origins")  # of a source, with an entry for each sequence
KINDS = ("table", "arrays", "trials", "midi", "audio", "film")
PARTS = ("train", "valid", "test")
_PARTS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("valid", "validation", "val", "dev"), "valid"),
    **dict.fromkeys(("test", "testing"), "test"),
}


def load_pandas() -> Any:
    """The package, imported where a table is read. Raises DataError."""
    with needing("files", DataError):
        return importlib.import_module("pandas")


@dataclass(frozen=True)
class Origin:
    """Where a sequence of a table stands in its file."""

    file: Path
    rows: np.ndarray[Any, Any]  # [T] of the file; of a long table [T, X]; -1: in none, or several are one frame
    cells: Mapping[str, str]  # entries of its id and split columns
    time: str | None = None  # the columns of times, of times of day beside dates, of channels and their values
    clock: str | None = None
    channel: str | None = None
    value: str | None = None


@dataclass(frozen=True)
class Source:
    """N sequences of one width, read from files."""

    x: list[Tensor]  # each [T_i, X] float32, NaN where missing
    u: list[Tensor] | None  # each [T_i, U] float32, controls from outside; None: there are none
    names: list[str]  # of the sequences
    channels: list[str]  # of the X features
    controls: list[str]  # of the U controls
    times: list[np.ndarray[Any, Any]] | None  # of the frames of each: datetime64, or numbers; None: not known
    step: str | float | None  # from frame to frame: a frequency of pandas', or a number in the unit of the times
    kind: str  # one of KINDS
    frame_shape: tuple[int, ...] | None = None  # films: (height, width) or (height, width, 3)
    rate: float | None = None  # audio: samples a second; films: frames a second; midi: frames a beat
    parts: list[str] | None = None  # train, valid or test of each sequence, where the files say so
    options: Mapping[str, Any] = field(default_factory=dict)  # by which other files are read as these were
    before: Source | None = None  # for every sequence the frames before it, which a model may see
    remarks: tuple[str, ...] = ()  # what a user should know of how it was read
    origins: list[Origin] | None = None  # of the sequences of tables in whole

    @property
    def x_size(self) -> int:
        return len(self.channels)

    @property
    def control_size(self) -> int:
        return len(self.controls)

    @property
    def lengths(self) -> list[int]:
        return [len(x) for x in self.x]

    def select(self, indices: Iterable[int]) -> Source:
        """These of its sequences, in that order."""
        chosen = list(indices)

        def of(values: list[Any] | None) -> Any:
            return None if values is None else [values[index] for index in chosen]

        lists = {name: of(getattr(self, name)) for name in _LISTS}
        return replace(self, **lists, before=None if self.before is None else self.before.select(chosen))


def joined(sources: Sequence[Source]) -> Source:
    """The sequences of all, which have the features of the first. Raises DataError."""
    first = next((source for source in sources if source.step is not None), sources[0])  # one frame has no step
    for other in sources:
        for what in ("channels", "controls", "frame_shape", "rate", "step"):
            want, came = getattr(first, what), getattr(other, what)
            if want != came and not (what == "step" and came is None and max(other.lengths) == 1):
                raise DataError(
                    f"{other.names[0]}: expected {_words(what)} {_quoted(want)} as of {first.names[0]}, got "
                    f"{_quoted(came)}; read files of one form together"
                )

    def all_of(what: str) -> Any:
        lists = [getattr(source, what) for source in sources]
        return None if None in lists else [value for values in lists for value in values]

    joint = {what: all_of(what) for what in _LISTS}
    remarks = dict.fromkeys(remark for source in sources for remark in source.remarks)
    return replace(first, **joint, remarks=tuple(remarks))


def _words(what: str) -> str:
    return {"channels": "the features", "frame_shape": "frames of shape"}.get(what, f"the {what}")


def _quoted(value: object) -> str:
    return shorten([str(name) for name in value], "none") if isinstance(value, list) else str(value)


def part_of(name: str) -> str | None:
    """train, valid or test where the name of a folder or an entry of a column means one of them."""
    return _PARTS.get(name.strip().lower())


def part_folders(place: Path) -> dict[str, Path]:
    """The folders train, valid and test in a folder, where it has any of them. Raises DataError."""
    found: dict[str, Path] = {}
    for entry in entries(place):
        part = part_of(entry.name) if entry.is_dir() else None
        if part is not None and part in found:
            raise DataError(f"{place}: expected one folder of {part}, got {found[part].name} and {entry.name}")
        if part is not None:
            found[part] = entry
    return {part: found[part] for part in PARTS if part in found}


def as_frames(where: str, array: np.ndarray[Any, Any], missing: bool = True) -> Tensor:
    """Real numbers [T, ·] as float32.

    Args:
        missing: NaN may stand in it.

    Raises:
        DataError: it holds no numbers, none at all, infinity, what float32 cannot hold, or NaN.
    """
    if array.dtype.kind not in "biuf":
        raise DataError(f"{where}: expected real numbers, got {array.dtype}; convert them")
    if array.ndim != 2 or 0 in array.shape:
        raise DataError(f"{where}: expected frames [T, features] with at least one of each, got {list(array.shape)}")
    with np.errstate(over="ignore", invalid="ignore"):  # a NaN that signals is one like others
        frames = np.array(array, dtype=np.float32, order="C")  # a copy: tensors are written to
    wrong = ~np.isfinite(frames) if not missing else np.isinf(frames)
    if wrong.any():
        row, column = np.argwhere(wrong)[0]
        then = "fill it in: controls cannot be missing" if np.isnan(frames[row, column]) else "correct it"
        raise DataError(
            f"{where}: expected finite numbers of float32, got {array[row, column]} in frame {row}, feature {column}; "
            f"{then}"
        )
    if array.dtype.kind in "iu" or array.dtype.itemsize > 4:
        warn_of_rounding(where, torch.from_numpy(np.array(array, dtype=np.float64)))
    return torch.from_numpy(frames)


def numbered(prefix: str, count: int) -> list[str]:
    """x_1, x_2, ...; the prefix alone for one."""
    return [prefix] if count == 1 else [f"{prefix}_{index + 1}" for index in range(count)]


def reason(error: BaseException) -> str:
    """Of a library's error, in one short line."""
    text = " ".join(str(getattr(error, "strerror", None) or error).split())
    return f"{type(error).__name__}: {text}"[:160]


def damaged(path: str | os.PathLike[str], expected: str, error: BaseException) -> DataError:
    return DataError(f"{path}: expected {expected}, but it cannot be read ({reason(error)}); replace it")
