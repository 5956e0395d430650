"""Tables: CSV (.csv, .tsv, also .gz) and Parquet, with pandas.

wide    a row for each time, a column for each feature, and perhaps a column that says which sequence the row is of:
        time, a, b    or    id, time, a, b
long    a row for each number: a column says which feature it is of (channel_column): time, channel, value
        Where an id column stands in its place, every id is a sequence of its own.

Empty cells and NaN are missing in columns of numbers; so are rows that a regular grid asks for. What names something,
an id or a channel, is as it is written (NA may be Namibia). The step of the grid is `step`, else the commonest one, and
every row must lie on it; with `freq` rows are put on that grid, several of one step as their mean. Without a time
column the rows are a step apart.
"""

from __future__ import annotations

import datetime
import decimal
import importlib
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from vssn.data.formats.base import Origin, Source, as_frames, damaged, load_pandas, part_of
from vssn.data.formats.cells import (
    FORM,
    TEXTS,
    Frame,
    as_texts,
    listed,
    numbers_of,
    require_entries,
    require_names,
    row_of,
    separator_of,
)
from vssn.data.formats.columns import find_columns, is_row_number, named_like_times
from vssn.data.formats.grid import check_step, find_step, mean_of_rows, place
from vssn.data.formats.times import times_of
from vssn.errors import DataError, shorten
from vssn.utils.packages import needing

PARQUET = (".parquet", ".pq")
SUFFIXES = (*TEXTS, *PARQUET)

Array = np.ndarray[Any, Any]


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
        time_column, id_column, split_column: None: found by their names and what they hold, where they are there. A
            column of times of day belongs to a time column of dates.
        channel_column: of a long table: says which feature a row is of; None: a wide table.
        channels: entries of channel_column, in the order of the features; None: all there are, in that of the alphabet.
        value_columns: of the features; None: all that are left.
        control_columns: of what is known from outside, the future included; they may not be missing.
        freq: step of a grid that rows are put on, a mean of those of one step: a frequency of pandas' ("h", "15min",
            "MS"), or a number where times are numbers.
        step: likewise, of the grid that rows lie on already, each alone; None: the commonest one.
    """
    frame = load_table(path)
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
    free = [name for name in frame.columns if name not in taken and not is_row_number(frame, name)]
    remarks = [remark] if (remark := require_names(path, frame)) is not None else []
    columns = find_columns(frame, free, time_column, id_column, channel_column, split_column)
    time_column, id_column, split_column, free = columns.time, columns.id, columns.split, columns.free
    if time_column is None and (skipped := named_like_times(frame, free)):
        remarks.append(f"{skipped[0]!r} is taken for a feature: its numbers do not rise as times do")
    values = list(value_columns) if value_columns is not None else free
    controls = list(control_columns or ())
    if not values:
        raise DataError(f"{path}: expected a column of numbers, got {listed(frame)}; name them in value_columns")
    _take_entries(path, frame, id_column, channel_column, split_column)
    numbers = list(values)
    for name in (*values, *controls):
        frame[name] = numbers_of(path, frame, name)
    if time_column is not None:
        frame[time_column], said = times_of(path, frame, time_column, columns.clock)
        remarks += said
    rows = np.arange(len(frame))
    if channel_column is not None:
        keys = [name for name in (split_column, id_column, time_column) if name is not None]
        frame, values, rows = _pivot(path, frame, keys, channel_column, values, controls, time_column)
        if channels is not None:
            if sorted(channels) != sorted(values):
                raise DataError(
                    f"{path}: column {channel_column!r}: expected the channels {shorten(list(channels), 'none')}, got "
                    f"{shorten(values, 'none')}"
                )
            rows = rows[:, [values.index(name) for name in channels]]
            values = list(channels)
    elif channels is not None:
        raise DataError(f"{path}: channels: expected channel_column with it, the column where they stand; name it")
    groups = [(path.stem, frame, rows)] if id_column is None else _groups(frame, id_column, rows)
    if time_column is not None:
        times = [group[time_column].to_numpy() for _, group, _ in groups]
        step = _step(path, times, freq, step)
    elif freq is not None or step is not None:
        option = "freq" if freq is not None else "step"
        raise DataError(f"{path}: {option}: expected a time column with it, got {listed(frame)}; name time_column")
    pieces: list[_Piece] = []
    origins: list[Origin] = []
    for name, group, own in groups:
        where = str(path) if id_column is None else f"{path}: {id_column} {name}"
        of_id = {} if id_column is None else {id_column: name}
        of_file = [time_column, columns.clock, channel_column, None if channel_column is None else numbers[0]]
        for piece in _pieces(
            path, where, name, group, own, [*values, *controls], time_column, split_column, step, freq is not None
        ):
            pieces.append(piece)
            cells = of_id if split_column is None else of_id | {split_column: piece.entry}
            origins.append(Origin(path, piece.file_rows, cells, *of_file))
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
        origins=origins,
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
    """As it stands in the file, its columns under texts. Raises DataError."""
    pandas = load_pandas()
    name = path.name.lower()
    try:
        if name.endswith(PARQUET):
            with needing("files", DataError):
                importlib.import_module("pyarrow")
            frame = pandas.read_parquet(path, engine="pyarrow")
            if frame.index.names != [None] or isinstance(frame.index, pandas.DatetimeIndex):
                frame = frame.reset_index()
            frame = frame.reset_index(drop=True)  # rows are named as they stand in the file
        else:
            frame = _read_text(path)
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
    return _plain(frame)


def _plain(frame: Frame) -> Frame:
    """Columns of numbers, texts and times alone: what else Parquet holds becomes one of these, at the worst a text."""
    pandas = load_pandas()
    columns = []
    for index in range(len(frame.columns)):
        column = frame.iloc[:, index]
        if isinstance(column.dtype, pandas.CategoricalDtype):
            column = column.astype(object).infer_objects()
        if column.dtype == np.float16:  # which pandas neither sorts nor groups by
            column = column.astype("float32")
        if column.dtype.kind == "m":
            column = column.dt.total_seconds()
        if column.dtype == object:
            kinds = set(map(type, column.dropna()))
            if kinds and all(issubclass(kind, int | float | decimal.Decimal) for kind in kinds):
                column = column.astype("float64")
            elif not all(issubclass(kind, str | int | float | np.number | datetime.date) for kind in kinds):
                column = column.map(str, na_action="ignore")
        elif not pandas.api.types.is_string_dtype(column.dtype) and column.dtype.kind not in "biufM":
            column = column.astype(object).map(str, na_action="ignore")
        columns.append(column)
    made = pandas.concat(columns, axis=1)
    made.columns = [str(name) for name in frame.columns]
    return made


def _read_text(path: Path, **more: Any) -> Frame:
    """CSV and TSV, of semicolons too; `more` as pandas takes it."""
    return load_pandas().read_csv(path, sep=separator_of(path), low_memory=False, **FORM, **more)


def entries_of(path: Path, frame: Frame, columns: Sequence[str]) -> Frame:
    """These columns of the file as texts, as they are written: 007, NA; "" where nothing is. Raises DataError.

    Args:
        frame: what `load_table` gave of it.
    """
    if not columns:
        return frame[[]]
    if path.name.lower().endswith(PARQUET):
        return frame[[*columns]].apply(as_texts)
    try:
        texts = _read_text(path, dtype=str, keep_default_na=False, usecols=[*columns])
    except Exception as error:  # whatever the damaged bytes lead the reader to
        raise damaged(path, "a table", error) from None
    return texts[[*columns]]


def _take_entries(path: Path, frame: Frame, id_column: str | None, channel: str | None, split: str | None) -> None:
    """Ids, channels and parts as they are written, in the place of what was read. Raises DataError."""
    columns = [name for name in (id_column, channel, split) if name is not None]
    texts = entries_of(path, frame, columns)
    for name in columns:
        frame[name] = texts[name]
        require_entries(path, frame, name)


def _require_columns(path: Path, frame: Frame, option: str, names: Sequence[str]) -> None:
    for name in names:
        if name not in frame.columns:
            raise DataError(f"{path}: {option}: expected one of the columns {listed(frame)}, got {name!r}")


def _pivot(
    path: Path,
    frame: Frame,
    keys: list[str],
    channel: str,
    values: list[str],
    controls: list[str],
    time: str | None,
) -> tuple[Frame, list[str], Array]:
    """A row for each time, from one for each number; the channels X, and the row of the file of each number [rows, X],
    -1 where there is none."""
    if len(values) != 1 or time is None:
        raise DataError(
            f"{path}: channel_column: expected a time column and one column of values with it, got "
            f"{shorten(values, 'none')} and {'no time' if time is None else time}; name value_columns and time_column"
        )
    twice = np.flatnonzero(frame.duplicated([*keys, channel]).to_numpy())
    if len(twice):
        raise DataError(
            f"{path}: {row_of(path, frame, twice[0])}: expected one value for each time and {channel}, got another one"
        )
    wide = frame.pivot(index=keys, columns=channel, values=values[0])
    names = [str(name) for name in wide.columns]
    places = frame.assign(_row=np.arange(len(frame))).pivot(index=keys, columns=channel, values="_row")
    wide.columns.name = None
    groups = frame.assign(_row=frame.index).groupby(keys)
    if controls:
        wide = wide.join(groups[controls].first())
    made = wide.join(groups["_row"].first()).reset_index().set_index("_row")
    return made, names, places.fillna(-1).to_numpy(dtype=np.int64)


def _groups(frame: Frame, id_column: str, rows: Array) -> list[tuple[str, Frame, Array]]:
    """In the order in which they first stand there, with what `rows` has of each."""
    codes, names = load_pandas().factorize(frame[id_column])
    places = np.split(np.argsort(codes, kind="stable"), np.cumsum(np.bincount(codes))[:-1])
    return [(str(name), frame.iloc[of], rows[of]) for name, of in zip(names, places, strict=True)]


class _Piece(NamedTuple):
    """A sequence on its grid."""

    name: str
    part: str
    entry: str  # of the split column
    times: Any  # [T]
    rows: Any  # [T, X + U] float64
    rows_in: Any  # [T] rows of the file in each step
    file_rows: Array  # [T] or [T, X], as `Origin` has them


def _pieces(
    path: Path,
    where: str,
    name: str,
    group: Frame,
    rows: Array,
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
        times, places = place(where, group[time].to_numpy(), step, binned, lambda index: row_of(path, group, index))
        numbers = mean_of_rows(numbers, places, len(times))
    rows_in = np.bincount(places, minlength=len(times))
    found = _alone(rows, places, len(times))
    if split is None:
        return [_Piece(name, "", "", times, numbers, rows_in, found)]
    entries: list[str] = [""] * len(times)
    parts: list[str | None] = [None] * len(times)
    for index, (at, entry) in enumerate(zip(places.tolist(), group[split], strict=True)):
        entries[at], parts[at] = entry, part_of(entry)
        if parts[at] is None:
            raise DataError(
                f"{where}: column {split!r}, {row_of(path, group, index)}: expected train, valid or test, got "
                f"{entry[:40]!r}"
            )
    for at in range(1, len(parts)):  # a row that the grid asks for goes with the one before
        parts[at] = parts[at] or parts[at - 1]
    starts = [0, *(at for at in range(1, len(parts)) if parts[at] != parts[at - 1]), len(parts)]
    spans = [slice(start, stop) for start, stop in itertools.pairwise(starts)]
    return [
        _Piece(
            name if len(spans) == 1 else f"{name}, {parts[span.start]}",
            parts[span.start] or "",
            entries[span.start],
            times[span],
            numbers[span],
            rows_in[span],
            found[span],
        )
        for span in spans
    ]


def _alone(rows: Array, places: Array, count: int) -> Array:
    """The rows of the file [N] or [N, X] to the steps [count] or [count, X] that they are in; -1 where there is none,
    or where several share a step."""
    flat = rows.reshape(len(rows), -1)
    found = np.full((count, flat.shape[1]), -1, dtype=np.int64)
    for column, own in enumerate(flat.T):
        known = own >= 0
        found[places[known], column] = own[known]
        found[np.bincount(places[known], minlength=count) > 1, column] = -1
    return found.reshape(count, *rows.shape[1:])


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
