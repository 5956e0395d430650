"""Times in the columns of a table: dates in words, numbers such as 20240131, dates beside times of day, and numbers."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vssn.data.formats.base import load_pandas
from vssn.data.formats.cells import WITH_COMMAS, Frame, is_text, row_of
from vssn.errors import DataError

_ZONE = r"(?:\dZ|[:T].*[+-]\d\d(?::?\d\d)?)$"
_OFFSET = r"\s*(?:Z|[+-]\d\d(?::?\d\d)?)$"  # what of such a time is the zone
_ZONE_IN_WORDS = r"(:\d\d(?:\.\d+)?)\s*(?:[A-Z]{2,5}|[A-Z]\w+(?:/\w+)+)\s*$"  # behind a time of day: EST
_CLOCK = r"\s*\d{1,2}:\d\d(?::\d\d(?:\.\d+)?)?\s*(?:[AaPp]\.?[Mm]\.?)?\s*"
_DATED = {"date", "dates", "day", "ds", "month", "period", "time", "timestamp", "datetime", "yyyymm", "yyyymmdd"}
_FORMS = {8: "%Y%m%d", 6: "%Y%m"}  # by the digits
_FIRST_YEAR, _LAST_YEAR = 1678, 2261  # of datetime64[ns]


class Times(NamedTuple):
    """Of the rows of a table."""

    values: Any  # datetime64[ns], of UTC where a zone is given and no more is said; or float64
    remarks: list[str]


def are_dates(column: Any) -> bool:
    """Whether dates stand in it, with or without times of day. Of text it is enough that most do: one that is wrong is
    to be said, not to be taken for text."""
    if load_pandas().api.types.is_datetime64_any_dtype(column) or digits_of_dates(column):
        return True
    if not is_text(column) or are_clocks(column):
        return False
    some = column.dropna().astype(str).head(50)
    some = some[some.str.contains(r"\d") & ~some.str.contains(WITH_COMMAS)]
    if not len(some):
        return False
    some = some.str.replace(_ZONE_IN_WORDS, r"\1", regex=True)  # which `times_of` refuses
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return bool(load_pandas().to_datetime(some, errors="coerce", format="mixed", utc=True).notna().mean() >= 0.7)


def are_clocks(column: Any) -> bool:
    """Whether all of its entries are times of day alone: 23:00."""
    known = column.dropna()
    if not is_text(column) or not len(known):
        return False
    return all(bool(some.astype(str).str.fullmatch(_CLOCK).all()) for some in (known.head(50), known))


def are_days(column: Any) -> bool:
    """Whether its entries are dates without times of day."""
    pandas = load_pandas()
    if pandas.api.types.is_datetime64_any_dtype(column):
        known = column.dropna()
        return bool((known == known.dt.normalize()).all())
    return are_dates(column) and not bool(column.dropna().astype(str).str.contains(r"\d:\d\d").any())


def digits_of_dates(column: Any) -> int:
    """8 of 20240131, 6 of 202401, where all entries of a column that is named like dates are such numbers; else 0."""
    if not _DATED & set(re.split(r"[^a-z]+", str(column.name).lower())) and not str(column.name).lower().endswith(
        "date"
    ):
        return 0
    if column.dtype.kind not in "iuf" and not is_text(column):
        return 0
    known = column.dropna()
    if not len(known):
        return 0
    if is_text(column):
        texts = known.astype(str).str.strip()
        if not texts.str.fullmatch(r"\d{6}|\d{8}").all():
            return 0
        known = texts.astype("int64")
    numbers = known.to_numpy(dtype=np.float64)
    for digits, form in _FORMS.items():
        first, last = _FIRST_YEAR * 10 ** (digits - 4), (_LAST_YEAR + 1) * 10 ** (digits - 4)
        if ((numbers >= first) & (numbers < last) & (numbers == np.floor(numbers))).all():
            dates = load_pandas().to_datetime(known.astype("int64").astype(str), format=form, errors="coerce")
            return digits if bool(dates.notna().all()) else 0
    return 0


def as_digits(times: Any, digits: int) -> Any:
    """The numbers that mean these dates: 20240131."""
    return load_pandas().Series(times).dt.strftime(_FORMS[digits]).astype("int64").to_numpy()


def times_of(path: Path, frame: Frame, name: str, clock: str | None = None) -> Times:
    """What the column says.

    Args:
        clock: a column of times of day, for a column of dates.

    Raises:
        DataError: a time is missing, or cannot be read.
    """
    pandas = load_pandas()
    column = frame[name]
    _require_all(path, frame, name, "a time")
    if digits := digits_of_dates(column):
        numbers = column.astype("int64").astype(str)
        dates = pandas.to_datetime(numbers, format=_FORMS[digits]).astype("datetime64[ns]")
        return Times(_with_clock(path, frame, dates, clock), [])
    if pandas.api.types.is_numeric_dtype(column):
        return Times(column.astype("float64"), [])
    if are_clocks(column):
        raise DataError(
            f"{path}: column {name!r}: expected dates, got times of day alone as {str(column.iloc[0])[:40]!r}; write "
            "them as 2024-01-31 12:00, or add a column of dates"
        )
    zoned = _has_zone(column)
    remarks = []
    if zoned:
        local = _without_zone(path, frame, name)
        if (local.dt.normalize() + (local.iloc[0] - local.iloc[0].normalize()) == local).all():
            # Days, or what is longer: 23 or 25 hours apart in UTC where the clocks change
            remarks.append(f"times are those of the clock in their time zone: column {name!r} has one, and is of days")
            return Times(_checked(path, frame, name, local), remarks)
        remarks.append(f"times are of UTC from here on: column {name!r} has a time zone")
    if not pandas.api.types.is_datetime64_any_dtype(column):
        column = _parsed(path, frame, name, column, zoned)
    if column.dt.tz is not None:
        column = column.dt.tz_convert("UTC").dt.tz_localize(None)
    return Times(_with_clock(path, frame, _checked(path, frame, name, column), clock), remarks)


def _require_all(path: Path, frame: Frame, name: str, what: str) -> None:
    missing = np.flatnonzero(frame[name].isna().to_numpy())
    if len(missing):
        raise DataError(
            f"{path}: column {name!r}, {row_of(path, frame, missing[0])}: expected {what}, got an empty cell"
        )


def _with_clock(path: Path, frame: Frame, dates: Any, clock: str | None) -> Any:
    """The dates [rows] at the times of day of that column. Raises DataError."""
    if clock is None:
        return dates
    _require_all(path, frame, clock, "a time of day")
    pandas = load_pandas()
    midnight = pandas.Timestamp("2000-01-01")
    texts = "2000-01-01 " + frame[clock].astype(str).str.strip()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        parsed = pandas.to_datetime(texts, errors="coerce", format="mixed")
    wrong = np.flatnonzero(parsed.isna().to_numpy())
    if len(wrong):
        raise DataError(
            f"{path}: column {clock!r}, {row_of(path, frame, wrong[0])}: expected a time of day, got "
            f"{str(frame[clock].iloc[wrong[0]])[:40]!r}; write it as 23:59"
        )
    return (dates + (parsed - midnight)).astype("datetime64[ns]")


def _parsed(path: Path, frame: Frame, name: str, texts: Any, zoned: bool) -> Any:
    """Texts as times, of UTC where zones are given. Raises DataError."""
    day_first = _day_first(path, frame, name)
    try:
        parsed = load_pandas().to_datetime(texts, errors="coerce", format="mixed", utc=zoned, dayfirst=day_first)
    except (ValueError, OverflowError) as error:  # zones in words, in some rows
        raise DataError(
            f"{path}: column {name!r}: expected times of one form, got {str(texts.iloc[0])[:40]!r} and others "
            f"({' '.join(str(error).split())[:80]}); write them as 2024-01-31 12:00"
        ) from None
    wrong = np.flatnonzero(parsed.isna().to_numpy())
    if len(wrong):
        raise DataError(
            f"{path}: column {name!r}, {row_of(path, frame, wrong[0])}: expected a time, got "
            f"{str(frame[name].iloc[wrong[0]])[:40]!r}; write it as 2024-01-31 or 2024-01-31 12:00"
        )
    return parsed


def _checked(path: Path, frame: Frame, name: str, times: Any) -> Any:
    """As datetime64[ns], which has not every year. Raises DataError."""
    beyond = np.flatnonzero(~times.dt.year.between(_FIRST_YEAR, _LAST_YEAR).to_numpy())
    if len(beyond):
        raise DataError(
            f"{path}: column {name!r}, {row_of(path, frame, beyond[0])}: expected a time of the years {_FIRST_YEAR} to "
            f"{_LAST_YEAR}, got {str(frame[name].iloc[beyond[0]])[:40]!r}; count other times in numbers"
        )
    return times.astype("datetime64[ns]")


def _has_zone(column: Any) -> bool:
    if load_pandas().api.types.is_datetime64_any_dtype(column):
        return column.dt.tz is not None
    return bool(column.astype(str).str.contains(_ZONE, regex=True).any())


def _without_zone(path: Path, frame: Frame, name: str) -> Any:
    """What the clock says in the zone. Raises DataError."""
    column = frame[name]
    if load_pandas().api.types.is_datetime64_any_dtype(column):
        return column.dt.tz_localize(None)
    return _parsed(path, frame, name, column.astype(str).str.replace(_OFFSET, "", regex=True), False)


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
