"""The tables that came in, with what was missing filled: what is observed stays as it stands in its file."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vssn.data.formats.cells import Frame, is_text, numbers_of
from vssn.data.formats.columns import is_row_number
from vssn.data.formats.tables import PARQUET, SUFFIXES, entries_of, load_table
from vssn.data.formats.times import as_digits, digits_of_dates
from vssn.output.tables import Frames
from vssn.utils.packages import needing

if TYPE_CHECKING:
    from vssn.data.formats.base import Origin, Source

Array = np.ndarray[Any, Any]


def filled_tables(source: Source, frames: Frames) -> dict[Path, Frame]:
    """By the file that it came in: each table on its regular grid, with the means where something was missing.

    A row of the file keeps all its cells, a new one has id, part and times. Where rows were put on a grid (freq), a row
    is a step of it: what several rows became one of is their mean, and only the columns of ids, parts, times, features
    and controls are left.

    Args:
        source: tables, as they were read, with NaN.
        frames: all frames of every sequence; samples where x is observed are x.
    """
    with needing("files"):
        import pandas

    assert source.origins is not None
    tables = {}
    for file in dict.fromkeys(origin.file for origin in source.origins):
        before = _as_it_stands(file, {*source.controls, *source.channels, *(of.value for of in source.origins)})
        own = [index for index, origin in enumerate(source.origins) if origin.file == file]
        tables[file] = pandas.concat([_filled(source, frames, index, before) for index in own], ignore_index=True)
    return tables


def together(tables: Mapping[Path, Frame]) -> Frame:
    """One of several tables, with a column that says of which file a row is."""
    with needing("files"):
        import pandas

    labels = labels_of(list(tables))
    taken = {name for table in tables.values() for name in table.columns}
    column = next(name for name in ("file", "file name", "name of the file") if name not in taken)
    named = [
        pandas.DataFrame({column: label}, table.index) for label, table in zip(labels, tables.values(), strict=True)
    ]
    parts = [pandas.concat(pair, axis=1) for pair in zip(named, tables.values(), strict=True)]
    return pandas.concat(parts, ignore_index=True)


def labels_of(files: Sequence[Path]) -> list[str]:
    """A name for each file: its path from the folder that holds all, without its ending where that is enough."""
    folder = os.path.commonpath([file.parent for file in files])
    names = [Path(os.path.relpath(file, folder)).as_posix() for file in files]
    endings = "|".join(map(re.escape, SUFFIXES))
    labels = [re.sub(rf"(?:{endings})$", "", name, flags=re.IGNORECASE) for name in names]
    return labels if len({*labels}) == len(labels) else names


def _as_it_stands(file: Path, numbers: Collection[str | None]) -> Frame:
    """The table of a file: numbers in these columns, and texts as they are written."""
    before = load_table(file)
    before = before[[name for name in before.columns if not is_row_number(before, name)]].copy()
    texts = [name for name in before.columns if is_text(before[name])]
    written = entries_of(file, before, [name for name in texts if name not in numbers])
    for name in texts:
        before[name] = (
            numbers_of(file, before, name) if name in numbers else written[name].where(written[name] != "", None)
        )
    return before


def _filled(source: Source, frames: Frames, index: int, before: Frame) -> Frame:
    """A sequence."""
    assert source.origins is not None
    origin, mean, times = source.origins[index], frames.mean[index], frames.times[index]
    rows = origin.rows
    numbers = {name: mean[:, c] for c, name in enumerate(source.channels)}
    if source.u is not None:
        numbers |= {name: source.u[index][:, c].numpy() for c, name in enumerate(source.controls)}
    if origin.value is not None:  # a long table: a row for each number
        rows, times = rows.reshape(-1), times.repeat(source.x_size)
        numbers = {name: numbers[name].repeat(source.x_size) for name in source.controls}
        numbers[origin.value] = mean.reshape(-1)
    table = before.reindex(rows)  # -1 is no row: nothing stands there
    table.index = range(len(table))
    made: dict[str, Any] = {name: [entry] * len(table) for name, entry in origin.cells.items()}
    if origin.channel is not None:
        made[origin.channel] = source.channels * len(mean)
    if origin.file.name.lower().endswith(PARQUET):  # there ids may be numbers; in a CSV they are what is written
        numeric = [name for name in made if before[name].dtype.kind in "iuf"]
        made |= {name: np.array(made[name], dtype=before[name].to_numpy().dtype) for name in numeric}
    if origin.time is not None:
        made |= _times(times, before[origin.time], origin)
    made |= {name: _completed(table[name], own) for name, own in numbers.items()}
    columns = [name for name in before.columns if name in made or source.options["freq"] is None]
    for name in columns:
        if name in made:
            table[name] = made[name]
        elif before[name].dtype.kind in "iu":
            table[name] = table[name].astype("Int64")  # whole numbers stay some beside a cell that is empty
    return table[columns]


def _times(times: Array, before: Any, origin: Origin) -> dict[str, Any]:
    """The columns of the times, in the form that they came in where that is one of numbers."""
    assert origin.time is not None
    if times.dtype.kind != "M":
        whole = before.dtype.kind in "iu" and bool((times == np.round(times)).all())
        return {origin.time: times.astype(np.int64) if whole else times}
    digits = digits_of_dates(before)
    days = times.astype("datetime64[D]").astype(times.dtype)
    columns: dict[str, Any] = {origin.time: as_digits(times, digits) if digits else times}
    if origin.clock is not None:
        columns[origin.time] = as_digits(days, digits) if digits else days
        clocks = np.datetime_as_string(times, "s")
        whole_minutes = all(clock.endswith(":00") for clock in clocks.tolist())
        columns[origin.clock] = [clock[11:16] if whole_minutes else clock[11:] for clock in clocks.tolist()]
    return columns


def _completed(own: Any, numbers: Array) -> Any:
    """The column with these numbers where it has none."""
    if not own.isna().any():
        return own
    known = own.astype("float64")
    return known.where(known.notna(), _short(numbers))


def _short(values: Array) -> Array:
    """float32 in as many digits as it has, as float64: 0.1 for what would be 0.10000000149."""
    return np.array([float(str(value)) for value in np.asarray(values, np.float32)], np.float64)
