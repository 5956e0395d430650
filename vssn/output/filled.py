"""The tables that came in, with what was missing filled: what is observed stays as it stands in its file."""

from __future__ import annotations

import datetime
import io
import os
import re
import warnings
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

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


def filled_tables(source: Source, frames: Frames, typed: bool = False) -> dict[Path, Frame]:
    """By the file that it came in: each table on its regular grid, with the means where something was missing.

    A row of the file keeps all its cells, a new one has id, part and times. Where rows were put on a grid (freq), a row
    is a step of it: what several rows became one of is their mean, and only the columns of ids, parts, times, features
    and controls are left.

    Args:
        source: tables, as they were read, with NaN.
        frames: all frames of every sequence; samples where x is observed are x.
        typed: numbers and times, for a file that has types; else texts, as they are written in the file that was read.
    """
    with needing("files"):
        import pandas

    assert source.origins is not None
    tables = {}
    for file in dict.fromkeys(origin.file for origin in source.origins):
        before, written = _as_it_stands(
            file, {*source.controls, *source.channels, *(of.value for of in source.origins)}
        )
        own = [index for index, origin in enumerate(source.origins) if origin.file == file]
        parts = [_filled(source, frames, index, before, None if typed else written) for index in own]
        tables[file] = pandas.concat(parts, ignore_index=True)
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


def _as_it_stands(file: Path, numbers: Collection[str | None]) -> tuple[Frame, Frame]:
    """The table of a file, with numbers in these columns; and all its cells as texts: of a CSV to the letter, of
    Parquet as its values are written in a CSV."""
    with needing("files"):
        import pandas

    before = load_table(file)
    before = before[[name for name in before.columns if not is_row_number(before, name)]].copy()
    if _has_types(file):
        text = io.StringIO(before.to_csv(index=False))
        written = pandas.read_csv(text, dtype=str, keep_default_na=False, low_memory=False)
        written.columns = before.columns
    else:
        written = entries_of(file, before, list(before.columns))
    for name in before.columns:
        if is_text(before[name]) and name in numbers:
            before[name] = numbers_of(file, before, name)
        elif is_text(before[name]) and not _has_types(file):
            before[name] = written[name].where(written[name] != "", None)
    return before, written


def _has_types(file: Path) -> bool:
    return file.name.lower().endswith(PARQUET)


class _Sequence(NamedTuple):
    """A sequence as rows: where they stand in the file; by the name of a column, what goes where the file has none."""

    rows: Array  # of the file; -1: a new one
    binned: bool  # a row is a step of the grid, and the file's rows are mixed in it
    numbers: dict[str, Array]
    times: dict[str, Any]
    names: dict[str, Any]  # of ids, parts and channels


def _filled(source: Source, frames: Frames, index: int, before: Frame, written: Frame | None) -> Frame:
    """A sequence; of texts where they are given."""
    assert source.origins is not None
    origin, mean, times = source.origins[index], frames.mean[index], frames.times[index]
    rows, binned = origin.rows, source.options["freq"] is not None
    numbers = {name: mean[:, c] for c, name in enumerate(source.channels)}
    if source.u is not None:
        numbers |= {name: source.u[index][:, c].numpy() for c, name in enumerate(source.controls)}
    if origin.value is not None:  # a long table: a row for each number
        rows, times = rows.reshape(-1), times.repeat(source.x_size)
        numbers = {name: numbers[name].repeat(source.x_size) for name in source.controls}
        numbers[origin.value] = mean.reshape(-1)
    names: dict[str, Any] = {name: [entry] * len(rows) for name, entry in origin.cells.items()}
    if origin.channel is not None:
        names[origin.channel] = source.channels * len(mean)
    of_times = {} if origin.time is None else _times(times, before[origin.time], origin)
    columns = [name for name in before.columns if name in {*names, *of_times, *numbers} or not binned]
    sequence = _Sequence(rows, binned, numbers, of_times, names)
    if written is not None:
        return _filled_texts(sequence, before[columns], written[columns])
    return _filled_types(sequence, before[columns], _has_types(origin.file))


def _of_rows(table: Frame, rows: Array) -> Frame:
    """Those of the file; nothing stands in a new one."""
    return table.reindex(rows).set_axis(range(len(rows)))


def _filled_texts(sequence: _Sequence, before: Frame, written: Frame) -> Frame:
    """Cells as they are written, new ones as a CSV has them."""
    known, table = _of_rows(before, sequence.rows).notna(), _of_rows(written, sequence.rows)
    stands = sequence.rows >= 0
    for name in table.columns:
        own = table[name]
        if name in sequence.numbers:
            table[name] = own.where(known[name], _as_texts(_short(sequence.numbers[name])))
        elif name not in sequence.times:
            table[name] = own.where(stands, sequence.names.get(name, ""))
        elif sequence.binned:
            table[name] = _as_texts(sequence.times[name])
        else:
            table[name] = _with_new(own, sequence.times[name], stands)
    return table


def _filled_types(sequence: _Sequence, before: Frame, has_types: bool) -> Frame:
    """Numbers and times; names as the file has them, in a CSV as texts. Other columns of whole numbers become nullable
    ones, as they are empty in new rows."""
    table = _of_rows(before, sequence.rows)
    stands = sequence.rows >= 0
    for name in table.columns:
        if name in sequence.numbers:
            table[name] = _completed(table[name], sequence.numbers[name])
        elif name in sequence.times and sequence.binned:
            table[name] = sequence.times[name]
        elif name in sequence.times:
            new = sequence.times[name]
            table[name] = _typed_times(before[name], table[name], sequence.rows, new, has_types)
        elif name in sequence.names and is_text(before[name]):
            table[name] = table[name].where(stands, sequence.names[name])
        elif name in sequence.names:
            kind = before[name].to_numpy().dtype if has_types else None
            table[name] = sequence.names[name] if kind is None else np.array(sequence.names[name], kind)
        elif before[name].dtype.kind in "iu":
            nullable = "Int64" if before[name].dtype.kind == "i" else "UInt64"
            table[name] = _of_rows(before[[name]].astype(nullable), sequence.rows)[name]
    return table


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


def _typed_times(before: Any, own: Any, rows: Array, times: Any, has_types: bool) -> Any:
    """The column of these times, or texts of times of day: of rows that stand in the file `own`, with its type, unless
    that is text for want of types."""
    with needing("files"):
        import pandas

    stands = rows >= 0
    if before.dtype.kind in "iuf" and np.asarray(times).dtype.kind in "iuf":
        made = np.array(times)
        made[stands] = before.to_numpy()[rows[stands]]
        return made
    new = pandas.Series(times)
    if new.dtype.kind != "M":
        return own.where(stands, new) if is_text(before) else new
    if not is_text(before) and getattr(before.dt, "tz", None) is not None:
        zone = before.dt.tz
        if (own.dt.tz_localize(None)[stands] == new[stands]).all():  # the days of the clock in that zone
            new = new.dt.tz_localize(zone, ambiguous=np.ones(len(new), bool), nonexistent="shift_forward")
        else:
            new = new.dt.tz_localize("UTC").dt.tz_convert(zone)
        return own.where(stands, new.astype(before.dtype))
    if not has_types or not is_text(before):
        return new
    if all(isinstance(entry, datetime.date) for entry in own[stands]):
        return own.where(stands, new.dt.date)
    return _with_new(own, times, stands)


def _with_new(texts: Any, times: Any, stands: Array) -> Any:
    """The column of texts with these times in the rows that do not stand in the file: in the form of the others where
    that is found."""
    with needing("files"):
        import pandas

    if stands.all():
        return texts
    new = pandas.Series(times)
    if new.dtype.kind != "M" or not stands.any():
        return texts.where(stands, _as_texts(times))
    for day_first in (False, True):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            form = pandas.tseries.api.guess_datetime_format(texts[stands].iloc[0].strip(), dayfirst=day_first)
        if form is None:
            continue
        zoned = "%z" in form
        read = pandas.to_datetime(texts[stands].str.strip(), format=form, errors="coerce", utc=zoned)
        if ((read.dt.tz_localize(None) if zoned else read) == new[stands]).all():
            return texts.where(stands, (new.dt.tz_localize("UTC") if zoned else new).dt.strftime(form))
    return texts.where(stands, _as_texts(times))


def _as_texts(values: Any) -> Any:
    """As they are written in a CSV."""
    with needing("files"):
        import pandas

    return pandas.Series(values).astype(str)


def _completed(own: Any, numbers: Array) -> Any:
    """The column with these numbers where it has none."""
    if not own.isna().any():
        return own
    if own.dtype == np.float32:
        return own.where(own.notna(), np.asarray(numbers, np.float32))
    known = own.astype("float64")
    return known.where(known.notna(), _short(numbers))


def _short(values: Array) -> Array:
    """float32 in as many digits as it has, as float64: 0.1 for what would be 0.10000000149."""
    return np.array([float(str(value)) for value in np.asarray(values, np.float32)], np.float64)
