"""What the columns of a table are of, where nobody says it: times, ids, parts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from vssn.data.formats.base import part_of
from vssn.data.formats.cells import Frame, could_be_numbers, is_text
from vssn.data.formats.times import are_clocks, are_dates, are_days

_TIME = ("time", "timestamp", "datetime", "date", "ds", "t", "month", "year", "day", "hour", "step")
_ALWAYS_TIME = _TIME[:5]  # the others could be features
_ID = ("id", "unique_id", "item_id", "series_id", "sequence", "series", "subject", "unit")
_ALWAYS_ID = _ID[:4]
_SPLIT = ("split", "part", "fold")


def is_row_number(frame: Frame, name: str) -> bool:
    """The index that pandas writes, without a name."""
    column = frame[name]
    return name == "Unnamed: 0" and column.dtype.kind == "i" and bool(column.is_monotonic_increasing)


class Columns(NamedTuple):
    """What the columns are of."""

    time: str | None
    clock: str | None  # times of day, beside a time column of dates
    id: str | None
    split: str | None
    free: list[str]  # what is left


def find_columns(
    frame: Frame, free: Sequence[str], time: str | None, id: str | None, channel: str | None, split: str | None
) -> Columns:
    """Those that are not named (None), of those that are free."""
    left = list(free)
    if split is None:
        split = _find_split(frame, left)
        left = [name for name in left if name != split]
    if time is None:
        time = _find_time(frame, left, id, channel)
    clock = _find_clock(frame, left, time)
    left = [name for name in left if name not in (time, clock)]
    if id is None:
        id = _find_id(frame, left, [name for name in (time, clock) if name is not None], channel)
    return Columns(time, clock, id, split, [name for name in left if name != id])


def _find_time(frame: Frame, free: Sequence[str], id_column: str | None, channel_column: str | None) -> str | None:
    """The column of dates, else one of a name for times whose numbers rise; of several one whose times are different
    ones in every sequence."""
    order = {name: place for place, name in enumerate(_TIME)}
    by_name = sorted(free, key=lambda name: order.get(name.lower(), len(_TIME)))
    dates = [name for name in by_name if are_dates(frame[name])]
    clocks = [name for name in by_name if are_clocks(frame[name])]
    numbers = [name for name in named_like_times(frame, by_name) if name not in dates]
    texts = [name for name in free if is_text(frame[name]) and name not in (*dates, *clocks)]
    ids = [None, *_named_ids(frame, free), *texts] if id_column is None else [id_column]
    for test in (_are_different, _rise):
        for name in (*dates, *numbers):
            clock = _find_clock(frame, free, name) if name in dates else None
            for of in ids:
                if of == name:
                    continue
                within = [column for column in (of, channel_column) if column is not None]
                if test(frame, [name, clock] if clock is not None else [name], within):
                    return name
    sure = [name for name in numbers if name.lower() in _ALWAYS_TIME]
    return next(iter((*dates, *clocks, *sure)), None)


def _are_different(frame: Frame, times: list[str], within: list[str]) -> bool:
    return not frame.duplicated([*within, *times]).any()


def _rise(frame: Frame, times: list[str], within: list[str]) -> bool:
    """In the order of the file: one that stands there twice is a mistake in a column of times."""
    if len(times) > 1 or is_text(frame[times[0]]):
        return False
    column = frame[times[0]]
    groups = [column] if not within else [group for _, group in column.groupby([frame[name] for name in within])]
    return all(group.is_monotonic_increasing for group in groups)


def named_like_times(frame: Frame, free: Iterable[str]) -> list[str]:
    """Columns of numbers that bear a name for times."""
    return [name for name in free if name.lower() in _TIME and not is_text(frame[name])]


def _find_clock(frame: Frame, free: Iterable[str], time: str | None) -> str | None:
    """The column of times of day that stands beside a column of dates without them."""
    if time is None or not are_days(frame[time]):
        return None
    clocks = [name for name in free if name != time and are_clocks(frame[name])]
    named = [name for name in clocks if name.lower() in ("time", "hour", "clock", "t")]
    return next(iter((*named, *clocks)), None)


def _find_split(frame: Frame, free: Sequence[str]) -> str | None:
    for name in free:
        entries = frame[name].dropna().unique() if name.lower() in _SPLIT and is_text(frame[name]) else []
        if len(entries) and all(part_of(str(entry)) for entry in entries):
            return name
    return None


def _find_id(frame: Frame, free: Sequence[str], times: Sequence[str], channel_column: str | None) -> str | None:
    """A column of that name, or the only one of text: one that tells apart the rows of one time before others.

    Numbers of such a name are ids where times repeat without them; without times, where each stands in one block.
    """
    keys = [*times, *([] if channel_column is None else [channel_column])]
    repeated = bool(frame.duplicated(keys).any()) if keys else False
    named = _named_ids(frame, free)
    found = [name for name in named if is_text(frame[name])]
    for name in named:
        if not is_text(frame[name]):
            always = name.lower() in _ALWAYS_ID
            if always or repeated or (not keys and _in_blocks(frame, name)):
                found.append(name)
    texts = [name for name in free if is_text(frame[name]) and not could_be_numbers(frame[name])]
    if len(texts) == 1 and texts[0] not in found and frame[texts[0]].duplicated().any() and (repeated or not keys):
        found.append(texts[0])
    if keys and repeated:
        found.sort(key=lambda name: bool(frame.duplicated([*keys, name]).any()))
    return next(iter(found), None)


def _named_ids(frame: Frame, free: Iterable[str]) -> list[str]:
    """Of a name for ids; numbers only where several rows have one."""
    return [
        name
        for name in free
        if name.lower() in _ID
        and frame[name].notna().any()
        and (is_text(frame[name]) or frame[name].dropna().duplicated().any())
    ]


def _in_blocks(frame: Frame, name: str) -> bool:
    """Whole numbers, each of rows that follow each other, two on average at least."""
    column = frame[name]
    if column.isna().any() or column.dtype.kind not in "iuf" or (column != column.round()).any():
        return False
    blocks = int((column != column.shift()).sum())
    return blocks == column.nunique() and len(column) >= 2 * blocks
