"""The regular grid that the rows of a table lie on: its step, and the place of every row.

Times are datetime64[ns] or float64. A step is a number in the unit of the times; for dates a frequency of pandas',
fixed ("15min", "D") or of the calendar ("MS": months, which differ in length).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from vssn.data.formats.base import load_pandas
from vssn.errors import DataError

_CALENDAR = ("MS", "ME", "QS", "QE", "YS", "YE", "B")
_RIGHT_CLOSED = ("ME", "QE", "YE", "BME", "BQE", "BYE", "W")  # a bin bears the name of its last day
_MOST_FRAMES = 20_000_000  # of a grid: a step of a nanosecond over years is a mistake
_SLACK = 1e-3  # of a step, by which a number may miss the grid: times are rounded
_DAY = 86_400_000_000_000  # nanoseconds

Array = np.ndarray[Any, Any]
Step = str | float


def rounded(times: Array) -> Array:
    """Numbers that are to lie on a grid, without what float64 adds to them: 0.3 for 0.30000000000000004."""
    largest = float(np.abs(times).max(initial=0.0))
    return np.round(times, max(14 - math.ceil(math.log10(largest)), 0)) if 0 < largest < 1e15 else times


def find_step(times: Sequence[Array]) -> Step | None:
    """The commonest difference of neighbours, or the frequency of the calendar that all times have; None of sequences
    without a second frame."""
    gaps = np.concatenate([np.diff(np.unique(one)) for one in times])
    if not len(gaps):
        return None
    if times[0].dtype.kind != "M":
        middle = np.median(gaps)
        rounded = np.round(gaps / middle, 6)
        found, counts = np.unique(rounded, return_counts=True)
        return float(f"{np.median(gaps[rounded == found[counts.argmax()]]):.9g}")
    pandas = load_pandas()
    found, counts = np.unique(gaps.astype("int64"), return_counts=True)
    nanoseconds = int(found[counts.argmax()])
    if nanoseconds >= _DAY:
        longest, every = max(times, key=len), np.unique(np.concatenate(times))
        for name in _CALENDAR:
            if _has_frequency(longest, every, name):
                return name
    whole_days, rest = divmod(nanoseconds, _DAY)
    if not rest:
        return "D" if whole_days == 1 else f"{whole_days}D"
    return str(pandas.tseries.frequencies.to_offset(pandas.Timedelta(nanoseconds, "ns")).freqstr)


def _has_frequency(times: Array, every: Array, name: str) -> bool:
    """Whether most of the calendar's steps are among the times of a sequence, and those of all are its alone."""
    pandas = load_pandas()
    offset = pandas.tseries.frequencies.to_offset(name)
    index = pandas.DatetimeIndex(np.unique(times))
    whole = pandas.date_range(index[0], index[-1], freq=offset)
    if len(index) < 0.6 * len(whole) or not index.isin(whole).all():
        return False
    if name == "B" and len(whole) == (index[-1] - index[0]).days + 1:
        return False  # no weekend is left out
    return bool(pandas.DatetimeIndex(every).isin(pandas.date_range(every[0], every[-1], freq=offset)).all())


def check_step(where: str, dates: bool, freq: Step, name: str = "freq") -> Step:
    """The step that a user asks for by the option of that name. Raises DataError."""
    if not dates:
        try:
            step = float(freq)
        except ValueError:
            step = 0.0
        if not (np.isfinite(step) and step > 0):
            raise DataError(f"{where}: {name}: expected a number above 0 as the times are numbers, got {freq!r}")
        return step
    try:
        if not isinstance(freq, str):
            raise ValueError
        load_pandas().tseries.frequencies.to_offset(freq)
    except (ValueError, TypeError):
        raise DataError(
            f"{where}: {name}: expected a frequency of pandas' such as '15min', 'h', 'D' or 'MS', got {freq!r}"
        ) from None
    return freq


def place(where: str, times: Array, step: Step | None, binned: bool, row: Callable[[int], str]) -> tuple[Array, Array]:
    """The times of the grid [T], from the first to the last, and the place of every row on it.

    Args:
        binned: rows go into the step that they are in; else each must be at the beginning of one, alone.
        row: names a row of the file.

    Raises:
        DataError: a row is off the grid, or has the time of another; there are too many steps.
    """
    if step is None:  # one frame, or several of one time
        grid, places = np.unique(times), np.zeros(len(times), dtype=np.int64)
    elif times.dtype.kind != "M":
        grid, places = _place_numbers(where, times, float(step), binned, row)
    else:
        grid, places = _place_dates(where, times, str(step), binned, row)
    if not binned:
        order = np.argsort(places, kind="stable")
        twice = np.flatnonzero(np.diff(places[order]) == 0)
        if len(twice):
            index = int(order[twice[0] + 1])
            raise DataError(
                f"{where}: {row(index)}: expected a time of its own, got {times[index]} again; name the id_column that "
                "tells the sequences apart, or give freq to take the mean of the rows of a step"
            )
    return grid, places


def _place_numbers(
    where: str, times: Array, step: float, binned: bool, row: Callable[[int], str]
) -> tuple[Array, Array]:
    first = times.min()
    exact = (times - first) / step
    _require_few(where, exact.max(), step)
    nearest = np.round(exact)
    off = np.abs(exact - nearest)
    places = np.where(off < _SLACK, nearest, np.floor(exact)).astype(np.int64) if binned else nearest.astype(np.int64)
    if not binned:
        _require_on_grid(where, times, off > _SLACK * np.maximum(1.0, exact * 1e-3), f"{step:g}", row)
    return rounded(first + step * np.arange(places.max() + 1)), places


def _place_dates(where: str, times: Array, step: str, binned: bool, row: Callable[[int], str]) -> tuple[Array, Array]:
    pandas = load_pandas()
    offset = pandas.tseries.frequencies.to_offset(step)
    stamps = times.astype("datetime64[ns]").astype("int64")
    fixed = _nanoseconds(offset)
    if fixed is not None:
        first = stamps.min()
        if binned:
            first -= (first % _DAY) % fixed  # a step begins at midnight where the day holds whole ones
        places, rest = np.divmod(stamps - first, fixed)
        _require_few(where, places.max(), step)
        if not binned:
            _require_on_grid(where, times, rest != 0, step, row)
        return (first + fixed * np.arange(places.max() + 1)).astype("datetime64[ns]"), places
    index = pandas.DatetimeIndex(times)
    if binned:
        whole = pandas.Series(0, index=index).resample(step).size().index
        right = step.split("-")[0].lstrip("0123456789") in _RIGHT_CLOSED
        places = whole.searchsorted(index.normalize(), "left") if right else whole.searchsorted(index, "right") - 1
    else:
        whole = pandas.date_range(index.min(), index.max(), freq=offset)
        places = whole.get_indexer(index)
        _require_on_grid(where, times, places < 0, step, row)
    return whole.to_numpy().astype("datetime64[ns]"), np.asarray(places, dtype=np.int64)


def _nanoseconds(offset: Any) -> int | None:
    """Of a step that has one length."""
    offsets = load_pandas().tseries.offsets
    if isinstance(offset, offsets.Day):
        return int(offset.n) * _DAY
    return int(offset.nanos) if isinstance(offset, offsets.Tick) else None


def _require_few(where: str, last: float, step: Step) -> None:
    if last >= _MOST_FRAMES:
        raise DataError(
            f"{where}: expected at most {_MOST_FRAMES:,} steps from the first row to the last, got {last:,.0f} of "
            f"{step}; give a coarser freq"
        )


def _require_on_grid(where: str, times: Array, off: Array, step: str, row: Callable[[int], str]) -> None:
    wrong = np.flatnonzero(off)
    if len(wrong):
        raise DataError(
            f"{where}: {row(int(wrong[0]))}: expected times a step of {step} apart, got {times[wrong[0]]}, which is "
            f"between two steps ({len(wrong)} of {len(times)} rows are); give freq, and rows are put on its grid"
        )


def mean_of_rows(numbers: Array, places: Array, count: int) -> Array:
    """Rows [N, C] to the steps [T, C] that they are in: their mean without NaN, NaN where there is none."""
    known = ~np.isnan(numbers)
    sums, counts = np.zeros((count, numbers.shape[1])), np.zeros((count, numbers.shape[1]))
    np.add.at(sums, places, np.where(known, numbers, 0.0))
    np.add.at(counts, places, known)
    with np.errstate(invalid="ignore"):
        mean: Array = sums / counts
    return mean
