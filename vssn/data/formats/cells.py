"""What the cells of a table's columns hold: numbers, and the entries that name something."""

from __future__ import annotations

import csv
import gzip
import itertools
import re
from pathlib import Path
from typing import Any

import numpy as np

from vssn.data.formats.base import load_pandas
from vssn.errors import DataError, shorten

Frame = Any  # a pandas.DataFrame

TEXTS = (".csv", ".tsv", ".csv.gz", ".tsv.gz")  # what is read line by line
FORM: dict[str, Any] = {"encoding": "utf-8-sig", "skipinitialspace": True}  # of these, for pandas
_DECIMAL_COMMA = r"^\s*[-+]?\d+,\d+\s*$"
_THOUSANDS = r"^\s*[-+]?[1-9]\d{0,2}(?:,\d{3})+(?:\.\d+)?\s*$"  # 1,234,567.8
WITH_COMMAS = f"{_DECIMAL_COMMA}|{_THOUSANDS}"  # a number that is not read as one
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


def row_of(path: Path, frame: Frame, position: int) -> str:
    """As an editor counts the lines of a CSV; else, where they cannot be told either, as the rows of data count."""
    row = int(frame.index[position])
    line = _line_of(path, row) if path.name.lower().endswith(TEXTS) else None
    return f"data row {row + 1}" if line is None else f"row {line}"


def separator_of(path: Path) -> str:
    """What stands between the cells of a CSV or TSV."""
    if ".tsv" in path.name.lower():
        return "\t"
    names = load_pandas().read_csv(path, sep=",", nrows=0, **FORM).columns
    return ";" if len(names) == 1 and ";" in str(names[0]) else ","


def _line_of(path: Path, row: int) -> int | None:
    """Where that row of data begins, counted as pandas does: a line of blanks alone is no row, and a row goes on over
    the breaks inside of quotes."""
    line, record = 1, -1  # the names
    opened = gzip.open if path.name.lower().endswith(".gz") else open
    try:
        separator = separator_of(path)
        blanks = " \t\r\n".replace(separator, "")
        with opened(path, "rt", encoding=FORM["encoding"], newline="") as file:
            for text in file:
                if not text.strip(blanks):
                    line += 1
                    continue
                if record == row:
                    return line
                reader = csv.reader(itertools.chain([text], file), delimiter=separator, skipinitialspace=True)
                next(reader)
                line, record = line + reader.line_num, record + 1
    except (OSError, ValueError, csv.Error):
        pass
    return None


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
            f"{path}: column {name!r}, {row_of(path, frame, empty[0])}: expected a name, got an empty cell; write it "
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
        expected = _instead_of(str(column.iloc[wrong[0]])[:40])
        raise DataError(f"{path}: column {name!r}, {row_of(path, frame, wrong[0])}: {expected}")
    infinite = np.flatnonzero(np.isinf(numbers.to_numpy()))
    if len(infinite):
        raise DataError(
            f"{path}: column {name!r}, {row_of(path, frame, infinite[0])}: expected a finite number, got infinity; "
            "leave the cell empty where it is missing"
        )
    return numbers


def _instead_of(came: str) -> str:
    """What is said of a cell that is no number."""
    if re.match(_THOUSANDS, came):
        then = "leave the commas out"
        if re.match(_DECIMAL_COMMA, came):  # a comma, and three digits
            plain, point = (came.strip().replace(",", mark) for mark in ("", "."))
            then = f"write {plain} where the comma stands between thousands, {point} where it is the decimal point"
        return f"expected a number without commas, got {came!r}; {then}"
    if re.match(_DECIMAL_COMMA, came):
        return f"expected a number with a decimal point, got {came!r}; write points for commas"
    return (
        f"expected a number or nothing, got {came!r}; correct it, or leave the column out by value_columns, or name it "
        "as id_column"
    )
