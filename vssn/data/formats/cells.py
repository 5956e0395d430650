"""What the cells of a table's columns hold: numbers, and the entries that name something."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np

from vssn.data.formats.base import load_pandas
from vssn.errors import DataError, shorten

Frame = Any  # a pandas.DataFrame

DECIMAL_COMMA = r"^\s*[-+]?\d+,\d+\s*$"
_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_DATE = r"\d{1,4}[-/.]\d{1,2}[-/.]\d{1,4}(?:[T ].*)?"


def is_text(column: Any) -> bool:
    return not (
        load_pandas().api.types.is_numeric_dtype(column) or load_pandas().api.types.is_datetime64_any_dtype(column)
    )


def could_be_numbers(column: Any) -> bool:
    """Numbers with a mistake among them: the mistake is to be said."""
    return bool(load_pandas().to_numeric(column, errors="coerce").notna().mean() >= 0.5)


def listed(frame: Frame) -> str:
    return shorten([repr(name) for name in frame.columns], "none")


def row_of(frame: Frame, position: int) -> str:
    """As an editor counts the lines of a CSV: the names are line 1."""
    return f"row {int(frame.index[position]) + 2}"


def require_names(path: Path, frame: Frame) -> str | None:
    """Raises DataError where the first row holds data in the place of names; a remark where it could be either."""
    given = [name for name in map(str, frame.columns) if not name.startswith("Unnamed: ")]
    if not given or not all(re.fullmatch(f"(?:{_NUMBER}|{_DATE})", name.strip()) for name in given):
        return None
    if given in ([str(first + at) for at in range(len(given))] for first in (0, 1)):  # columns that are numbered
        return f"the first row is taken for the names of the columns: {shorten(given, 'none')}"
    raise DataError(
        f"{path}: expected the names of the columns in the first row, got {shorten([repr(n) for n in given], 'none')}, "
        "which look like data; add a row of names above"
    )


def require_entries(path: Path, frame: Frame, name: str) -> None:
    """Raises DataError where an entry of a column of texts is empty."""
    empty = np.flatnonzero((frame[name].str.strip() == "").to_numpy())
    if len(empty):
        raise DataError(
            f"{path}: column {name!r}, {row_of(frame, empty[0])}: expected a name, got an empty cell; write it "
            "in every row"
        )


def as_texts(column: Any) -> Any:
    """Entries as they are written; of whole numbers their digits; "" where there is none."""
    if column.dtype.kind == "f":
        known = column.dropna()
        if (known == known.round()).all() and (known.abs() < 2**53).all():
            column = column.astype("Int64")
    return column.astype(object).where(column.notna(), "").map(str)


def numbers_of(path: Path, frame: Frame, name: str) -> Any:
    """float64 with NaN for what is empty. Raises DataError."""
    pandas = load_pandas()
    column = frame[name]
    if pandas.api.types.is_bool_dtype(column):
        return column.astype("float64")
    if pandas.api.types.is_datetime64_any_dtype(column):
        raise DataError(f"{path}: column {name!r}: expected numbers, got times; name the columns of the features")
    numbers = pandas.to_numeric(column, errors="coerce").astype("float64")
    wrong = np.flatnonzero(numbers.isna().to_numpy() & column.notna().to_numpy())
    if len(wrong):
        came = str(column.iloc[wrong[0]])[:40]
        if re.match(DECIMAL_COMMA, came):
            raise DataError(
                f"{path}: column {name!r}, {row_of(frame, wrong[0])}: expected a number with a decimal point, got "
                f"{came!r}; write points for commas"
            )
        raise DataError(
            f"{path}: column {name!r}, {row_of(frame, wrong[0])}: expected a number or nothing, got {came!r}; correct "
            "it, or leave the column out by value_columns, or name it as id_column"
        )
    infinite = np.flatnonzero(np.isinf(numbers.to_numpy()))
    if len(infinite):
        raise DataError(
            f"{path}: column {name!r}, {row_of(frame, infinite[0])}: expected a finite number, got infinity; "
            "leave the cell empty where it is missing"
        )
    return numbers
