"""Tables: CSV (.csv, .tsv, also .gz) and Parquet, with pandas.

wide    a row for each time, a column for each feature, and perhaps a column that says which sequence the row is of:
        time, a, b    or    id, time, a, b
long    a row for each number: a column says which feature it is of (channel_column): time, channel, value
        Where an id column stands in its place, every id is a sequence of its own.

Empty cells and NaN are missing; so are rows that a regular grid asks for. The step of the grid is `step`, else the
commonest one, and every row must lie on it; with `freq` rows are put on that grid, several of one step as their mean.
Without a time column the rows are a step apart.
"""

from __future__ import annotations

import importlib
import itertools
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from vssn.data.formats.base import Source, as_frames, damaged, part_of
from vssn.data.formats.grid import check_step, find_step, mean_of_rows, place
from vssn.errors import DataError, shorten
from vssn.utils.packages import needing

SUFFIXES = (".csv", ".tsv", ".csv.gz", ".tsv.gz", ".parquet", ".pq")
_TIME = ("time", "timestamp", "datetime", "date", "ds", "t", "month", "year", "day", "hour", "step")
_ID = ("id", "unique_id", "item_id", "series_id", "sequence", "series", "subject", "unit")
_SPLIT = ("split", "part", "fold")

Frame = Any  # a pandas.DataFrame


def _pandas() -> Any:
    with needing("files", DataError):
        return importlib.import_module("pandas")


def read_table(
    path: Path,
    *,
    time_column: str | None = None,
    id_column: str | None = None,
    channel_column: str | None = None,
    channels: Sequence[str] | None = None,
    value_columns: Sequence[str] | None = None,
    control_columns: Sequence[str] | None = None,
    split_column: str | None = None,
    freq: str | float | None = None,
    step: str | float | None = None,
) -> Source:
    """Raises DataError.

    Args:
        time_column, id_column, split_column: None: found by their names and what they hold, where they are there.
        channel_column: of a long table: says which feature a row is of; None: a wide table.
        channels: entries of channel_column, in the order of the features; None: all there are, in that of the alphabet.
        value_columns: of the features; None: all that are left.
        control_columns: of what is known from outside, the future included; they may not be missing.
        freq: step of a grid that rows are put on, a mean of those of one step: a frequency of pandas' ("h", "15min",
            "MS"), or a number where times are numbers.
        step: likewise, of the grid that rows lie on already, each alone; None: the commonest one.
    """
    frame = load_table(path)
    frame.columns = [str(name) for name in frame.columns]
    named = {
        "time_column": time_column,
        "id_column": id_column,
        "channel_column": channel_column,
        "split_column": split_column,
    }
    for option, column in named.items():
        _require_columns(path, frame, option, [column] if column is not None else [])
    _require_columns(path, frame, "value_columns", value_columns or [])
    _require_columns(path, frame, "control_columns", control_columns or [])
    taken = {column for column in (*named.values(), *(value_columns or ()), *(control_columns or ())) if column}
    free = [name for name in frame.columns if name not in taken and not _is_row_number(frame, name)]
    if time_column is None:
        time_column = _find_time(frame, free)
        free = [name for name in free if name != time_column]
    if split_column is None:
        split_column = _find_split(frame, free)
        free = [name for name in free if name != split_column]
    if id_column is None:
        id_column = _find_id(frame, free, time_column, channel_column)
        free = [name for name in free if name != id_column]
    values = list(value_columns) if value_columns is not None else free
    controls = list(control_columns or ())
    if not values:
        raise DataError(f"{path}: expected a column of numbers, got {_listed(frame)}; name them in value_columns")
    for name in (*values, *controls):
        frame[name] = _numbers(path, frame, name)
    remarks = []
    if time_column is not None:
        if _has_zone(frame[time_column]):
            remarks.append(f"times are of UTC from here on: column {time_column!r} has a time zone")
        frame[time_column] = times_of_column(path, frame, time_column)
    if channel_column is not None:
        keys = [name for name in (split_column, id_column, time_column) if name is not None]
        frame, values = _pivot(path, frame, keys, channel_column, values, controls, time_column)
        if channels is not None:
            if sorted(channels) != sorted(values):
                raise DataError(
                    f"{path}: column {channel_column!r}: expected the channels {shorten(list(channels), 'none')}, got "
                    f"{shorten(values, 'none')}"
                )
            values = list(channels)
    elif channels is not None:
        raise DataError(f"{path}: channels: expected channel_column with it, the column where they stand; name it")
    groups = [(path.stem, frame)] if id_column is None else _groups(frame, id_column)
    if time_column is not None:
        times = [group[time_column].to_numpy() for _, group in groups]
        step = _step(path, times, freq, step)
    elif freq is not None or step is not None:
        option = "freq" if freq is not None else "step"
        raise DataError(f"{path}: {option}: expected a time column with it, got {_listed(frame)}; name time_column")
    pieces: list[_Piece] = []
    for name, group in groups:
        where = str(path) if id_column is None else f"{path}: {id_column} {name}"
        pieces += _pieces(where, name, group, [*values, *controls], time_column, split_column, step, freq is not None)
    xs = [as_frames(f"{path}: {piece.name}", piece.rows[:, : len(values)]) for piece in pieces]
    us = [_controls(piece, len(values), controls, f"{path}: {piece.name}") for piece in pieces] if controls else None
    return Source(
        x=xs,
        u=us,
        names=[piece.name for piece in pieces],
        channels=values,
        controls=controls,
        times=None if time_column is None else [piece.times for piece in pieces],
        step=step,
        kind="table",
        parts=None if split_column is None else [piece.part for piece in pieces],
        options={
            "time_column": time_column,
            "id_column": id_column,
            "channel_column": channel_column,
            "channels": None if channel_column is None else values,
            "value_columns": values if channel_column is None else list(value_columns or free),
            "control_columns": controls or None,
            "freq": freq,
            "step": step if freq is None else None,
        },
        remarks=(*remarks, *([] if freq is None else [_binned(freq, [piece.rows_in for piece in pieces])])),
    )


def _step(path: Path, times: Sequence[Any], freq: str | float | None, step: str | float | None) -> str | float | None:
    """Of the grid. Raises DataError."""
    if freq is not None and step is not None:
        raise DataError(f"{path}: step: expected none with freq {freq!r}, the grid that rows are put on, got {step!r}")
    for name, given in (("freq", freq), ("step", step)):
        if given is not None:
            return check_step(str(path), times[0].dtype.kind == "M", given, name)
    return find_step(times)


def _binned(freq: str | float, rows_in: Sequence[Any]) -> str:
    """How many rows a mean took: for the user to know."""
    counts = np.concatenate(list(rows_in))
    together = int(counts[counts > 1].sum())
    then = f", {together} of {int(counts.sum())} rows as the mean of those of their step" if together else ""
    return f"rows are put on the grid of {freq}{then}"


def load_table(path: Path) -> Frame:
    """As it stands in the file. Raises DataError."""
    pandas = _pandas()
    name = path.name.lower()
    try:
        if name.endswith((".parquet", ".pq")):
            with needing("files", DataError):
                importlib.import_module("pyarrow")
            frame = pandas.read_parquet(path, engine="pyarrow")
            if frame.index.names != [None] or isinstance(frame.index, pandas.DatetimeIndex):
                frame = frame.reset_index()
            frame = frame.reset_index(drop=True)  # rows are named as they stand in the file
        else:
            separator = "\t" if ".tsv" in name else None if name.endswith(".txt") else ","
            engine = {"engine": "python"} if separator is None else {"low_memory": False}
            frame = pandas.read_csv(path, sep=separator, encoding="utf-8-sig", skipinitialspace=True, **engine)
            if separator == "," and len(frame.columns) == 1 and ";" in str(frame.columns[0]):
                frame = pandas.read_csv(path, sep=";", encoding="utf-8-sig", skipinitialspace=True)
    except DataError:
        raise
    except Exception as error:  # whatever the damaged bytes lead the reader to
        raise damaged(path, "a table", error) from None
    if not len(frame) or not len(frame.columns):
        raise DataError(f"{path}: expected a table with a row of names and rows of numbers, got no row")
    if not isinstance(frame.index, pandas.RangeIndex):  # pandas takes what has no name for names of the rows
        raise DataError(
            f"{path}: expected a name for every column in the first row, got {frame.index.nlevels} names fewer than "
            "cells; add them"
        )
    if repeated := sorted({str(name) for name in frame.columns[frame.columns.duplicated()]}):
        raise DataError(f"{path}: expected a name of its own for every column, got {repeated[0]!r} twice")
    return frame


def _require_columns(path: Path, frame: Frame, option: str, names: Sequence[str]) -> None:
    for name in names:
        if name not in frame.columns:
            raise DataError(f"{path}: {option}: expected one of the columns {_listed(frame)}, got {name!r}")


def _listed(frame: Frame) -> str:
    return shorten([repr(name) for name in frame.columns], "none")


def _row(frame: Frame, position: int) -> str:
    """As an editor counts the lines of a CSV: the names are line 1."""
    return f"row {int(frame.index[position]) + 2}"


def _is_row_number(frame: Frame, name: str) -> bool:
    """The index that pandas writes, without a name."""
    column = frame[name]
    return name == "Unnamed: 0" and column.dtype.kind == "i" and bool(column.is_monotonic_increasing)


def _is_text(column: Any) -> bool:
    return not (_pandas().api.types.is_numeric_dtype(column) or _pandas().api.types.is_datetime64_any_dtype(column))


def _find_time(frame: Frame, free: Sequence[str]) -> str | None:
    """The column of dates, else one of a name for times whose numbers rise."""
    pandas = _pandas()
    dates = [name for name in free if pandas.api.types.is_datetime64_any_dtype(frame[name])]
    dates += [name for name in free if _is_text(frame[name]) and _are_dates(frame[name])]
    by_name = sorted((name for name in free if name.lower() in _TIME), key=lambda name: _TIME.index(name.lower()))
    for name in by_name:
        if name in dates or not _is_text(frame[name]):
            return name
    return dates[0] if dates else None


_DECIMAL_COMMA = r"^\s*[-+]?\d+,\d+\s*$"


def _are_dates(column: Any) -> bool:
    """Most of them: one that is wrong is to be said, not to be taken for text."""
    some = column.dropna().astype(str).head(50)
    some = some[some.str.contains(r"\d") & ~some.str.contains(_DECIMAL_COMMA)]
    if not len(some):
        return False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return bool(_pandas().to_datetime(some, errors="coerce", format="mixed", utc=True).notna().mean() >= 0.7)


def _find_split(frame: Frame, free: Sequence[str]) -> str | None:
    for name in free:
        entries = frame[name].dropna().unique() if name.lower() in _SPLIT and _is_text(frame[name]) else []
        if len(entries) and all(part_of(str(entry)) for entry in entries):
            return name
    return None


def _find_id(frame: Frame, free: Sequence[str], time: str | None, channel: str | None) -> str | None:
    """A column of that name, or the only one of text."""
    for name in free:
        if name.lower() in _ID and (_is_text(frame[name]) or frame[name].duplicated().any()):
            return name
    texts = [name for name in free if _is_text(frame[name]) and not _could_be_numbers(frame[name])]
    if len(texts) == 1 and frame[texts[0]].duplicated().any():
        keys = [time] if time is not None else []
        keys += [channel] if channel is not None else []
        if not keys or frame.duplicated(keys).any():
            return texts[0]
    return None


def _could_be_numbers(column: Any) -> bool:
    """Numbers with a mistake among them: the mistake is to be said."""
    return bool(_pandas().to_numeric(column, errors="coerce").notna().mean() >= 0.5)


def _numbers(path: Path, frame: Frame, name: str) -> Any:
    pandas = _pandas()
    column = frame[name]
    if pandas.api.types.is_bool_dtype(column):
        return column.astype("float64")
    if pandas.api.types.is_datetime64_any_dtype(column):
        raise DataError(f"{path}: column {name!r}: expected numbers, got times; name the columns of the features")
    numbers = pandas.to_numeric(column, errors="coerce").astype("float64")
    wrong = np.flatnonzero(numbers.isna().to_numpy() & column.notna().to_numpy())
    if len(wrong):
        came = str(column.iloc[wrong[0]])[:40]
        if re.match(_DECIMAL_COMMA, came):
            raise DataError(
                f"{path}: column {name!r}, {_row(frame, wrong[0])}: expected a number with a decimal point, got "
                f"{came!r}; write points for commas"
            )
        raise DataError(
            f"{path}: column {name!r}, {_row(frame, wrong[0])}: expected a number or nothing, got {came!r}; correct "
            "it, or leave the column out by value_columns, or name it as id_column"
        )
    infinite = np.flatnonzero(np.isinf(numbers.to_numpy()))
    if len(infinite):
        raise DataError(
            f"{path}: column {name!r}, {_row(frame, infinite[0])}: expected a finite number, got infinity; "
            "leave the cell empty where it is missing"
        )
    return numbers


def times_of_column(path: Path, frame: Frame, name: str) -> Any:
    """datetime64 (of UTC where a zone is given), or numbers. Raises DataError."""
    pandas = _pandas()
    column = frame[name]
    missing = np.flatnonzero(column.isna().to_numpy())
    if len(missing):
        raise DataError(f"{path}: column {name!r}, {_row(frame, missing[0])}: expected a time, got an empty cell")
    if pandas.api.types.is_numeric_dtype(column):
        return column.astype("float64")
    if not pandas.api.types.is_datetime64_any_dtype(column):
        day_first = _day_first(path, frame, name)
        zone = _has_zone(column)
        try:
            parsed = pandas.to_datetime(column, errors="coerce", format="mixed", utc=zone, dayfirst=day_first)
        except (ValueError, OverflowError) as error:  # zones in words, in some rows
            raise DataError(
                f"{path}: column {name!r}: expected times of one form, got {str(column.iloc[0])[:40]!r} and others "
                f"({' '.join(str(error).split())[:80]}); write them as 2024-01-31 12:00"
            ) from None
        wrong = np.flatnonzero(parsed.isna().to_numpy())
        if len(wrong):
            raise DataError(
                f"{path}: column {name!r}, {_row(frame, wrong[0])}: expected a time, got "
                f"{str(column.iloc[wrong[0]])[:40]!r}; write it as 2024-01-31 or 2024-01-31 12:00"
            )
        column = parsed
    if column.dt.tz is not None:
        column = column.dt.tz_convert("UTC").dt.tz_localize(None)
    beyond = np.flatnonzero(~column.dt.year.between(1678, 2261).to_numpy())
    if len(beyond):
        raise DataError(
            f"{path}: column {name!r}, {_row(frame, beyond[0])}: expected a time of the years 1678 to 2261, got "
            f"{str(frame[name].iloc[beyond[0]])[:40]!r}; count other times in numbers"
        )
    return column.astype("datetime64[ns]")


_ZONE = r"(?:\dZ|[:T].*[+-]\d\d(?::?\d\d)?)$"


def _has_zone(column: Any) -> bool:
    if _pandas().api.types.is_datetime64_any_dtype(column):
        return column.dt.tz is not None
    return _is_text(column) and bool(column.astype(str).str.contains(_ZONE, regex=True).any())


def _day_first(path: Path, frame: Frame, name: str) -> bool:
    """Whether 31/12/2024 or 12/31/2024 is meant, the same for the whole column; with points the day stands first."""
    parts = frame[name].astype(str).str.extract(r"^\s*(\d{1,2})([/.-])(\d{1,2})\2\d{2,4}\b").dropna()
    if not len(parts):
        return False
    first, second = (parts[column].astype(int).to_numpy() > 12 for column in (0, 2))
    points = bool((parts[1] == ".").all())
    if first.any() == second.any() and not (points and not first.any()) and (parts[0] != parts[2]).any():
        raise DataError(
            f"{path}: column {name!r}: expected times that say which is the day and which the month, got "
            f"{str(frame[name].loc[parts.index[0]])[:40]!r} and others like it; write them as 2024-01-31"
        )
    return bool(first.any() or (points and not second.any()))


def _pivot(
    path: Path,
    frame: Frame,
    keys: list[str],
    channel: str,
    values: list[str],
    controls: list[str],
    time: str | None,
) -> tuple[Frame, list[str]]:
    """A row for each time, from one for each number."""
    if len(values) != 1 or time is None:
        raise DataError(
            f"{path}: channel_column: expected a time column and one column of values with it, got "
            f"{shorten(values, 'none')} and {'no time' if time is None else time}; name value_columns and time_column"
        )
    twice = np.flatnonzero(frame.duplicated([*keys, channel]).to_numpy())
    if len(twice):
        raise DataError(
            f"{path}: {_row(frame, twice[0])}: expected one value for each time and {channel}, got another one"
        )
    frame[channel] = frame[channel].astype(str)
    wide = frame.pivot(index=keys, columns=channel, values=values[0])
    names = [str(name) for name in wide.columns]
    wide.columns.name = None
    groups = frame.assign(_row=frame.index).groupby(keys)
    if controls:
        wide = wide.join(groups[controls].first())
    return wide.join(groups["_row"].first()).reset_index().set_index("_row"), names


def _groups(frame: Frame, id_column: str) -> list[tuple[str, Frame]]:
    """In the order in which they first stand there."""
    return [(str(name), group) for name, group in frame.groupby(id_column, sort=False)]


class _Piece(NamedTuple):
    """A sequence on its grid."""

    name: str
    part: str
    times: Any  # [T]
    rows: Any  # [T, X + U] float64
    rows_in: Any  # [T] rows of the file in each step


def _pieces(
    where: str,
    name: str,
    group: Frame,
    columns: list[str],
    time: str | None,
    split: str | None,
    step: str | float | None,
    binned: bool,
) -> list[_Piece]:
    """A sequence in whole, or cut where the entry of the split column changes. Raises DataError."""
    numbers = group[columns].to_numpy(dtype=np.float64)
    if time is None:
        times = places = np.arange(len(group))
    else:
        times, places = place(where, group[time].to_numpy(), step, binned, lambda index: _row(group, index))
        numbers = mean_of_rows(numbers, places, len(times))
    rows_in = np.bincount(places, minlength=len(times))
    if split is None:
        return [_Piece(name, "", times, numbers, rows_in)]
    parts: list[str | None] = [None] * len(times)
    for index, (at, entry) in enumerate(zip(places.tolist(), group[split], strict=True)):
        parts[at] = part_of(str(entry))
        if parts[at] is None:
            raise DataError(
                f"{where}: column {split!r}, {_row(group, index)}: expected train, valid or test, got "
                f"{str(entry)[:40]!r}"
            )
    for at in range(1, len(parts)):  # a row that the grid asks for goes with the one before
        parts[at] = parts[at] or parts[at - 1]
    starts = [0, *(at for at in range(1, len(parts)) if parts[at] != parts[at - 1]), len(parts)]
    spans = [slice(start, stop) for start, stop in itertools.pairwise(starts)]
    return [
        _Piece(
            name if len(spans) == 1 else f"{name}, {parts[span.start]}",
            parts[span.start] or "",
            times[span],
            numbers[span],
            rows_in[span],
        )
        for span in spans
    ]


def _controls(piece: _Piece, first: int, names: Sequence[str], where: str) -> Tensor:
    """[T, U]. Raises DataError: controls have no gaps."""
    rows = piece.rows[:, first:]
    missing = np.argwhere(np.isnan(rows))
    if len(missing):
        at, column = missing[0]
        raise DataError(
            f"{where}: column {names[column]!r}: expected a number at {piece.times[at]}, got none; fill controls in, "
            "they cannot be missing"
        )
    return as_frames(where, rows, missing=False)
