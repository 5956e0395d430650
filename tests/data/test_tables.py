"""Tables: which column is of what, ids and times as people write them."""

from __future__ import annotations

import gzip
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vssn.data.formats import Source, read
from vssn.data.formats.times import are_dates
from vssn.errors import DataError

pd = pytest.importorskip("pandas")

DAYS = pd.date_range("2023-01-01", periods=60, freq="D")


def of_text(folder: Path, text: str, name: str = "own.csv", **options: Any) -> Source:
    (folder / name).write_text(text)
    return read(folder / name, **options)


def of_columns(folder: Path, **columns: Any) -> Source:
    pd.DataFrame(columns).to_csv(folder / "own.csv", index=False)
    return read(folder / "own.csv")


def numbers(source: Source) -> list[list[float | None]]:
    """Of sequences with one feature."""
    return [[None if value != value else value for value in x[:, 0].tolist()] for x in source.x]


# Ids, channels


@pytest.mark.parametrize("word", ["NA", "None", "null", "nan", "N/A"])
@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_an_id_may_be_a_word_that_means_missing_elsewhere(word: str, suffix: str, tmp_path: Path) -> None:
    frame = pd.DataFrame({"country": ["DE", word, "US"] * 2, "year": [1990] * 3 + [1991] * 3, "gdp": np.arange(6.0)})
    path = tmp_path / f"own{suffix}"
    frame.to_csv(path, index=False) if suffix == ".csv" else frame.to_parquet(path)
    source = read(path)
    assert source.names == ["DE", word, "US"]
    assert numbers(source) == [[0, 3], [1, 4], [2, 5]]


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        (
            "id,time,v\nA,0,1\n,1,2\nB,0,3\n,1,4\n",
            {},
            "column 'id', row 3: expected a name, got an empty cell",
        ),
        (
            "shop,t,v\nA,0,1\nA,1,2\n ,0,3\n",
            {"id_column": "shop"},
            "column 'shop', row 4: expected a name, got an empty cell",
        ),
        (
            "t,c,v\n0,p,1\n0,,2\n",
            {"channel_column": "c"},
            "column 'c', row 3: expected a name, got an empty cell",
        ),
        ("t,split,v\n0,train,1\n1,,2\n", {}, "column 'split', row 3: expected a name, got an empty cell"),
    ],
)
def test_an_empty_name_is_said(text: str, options: dict[str, Any], message: str, tmp_path: Path) -> None:
    """Its rows were left out without a word."""
    with pytest.raises(DataError, match=message):
        of_text(tmp_path, text, **options)


def test_ids_and_channels_are_as_they_are_written(tmp_path: Path) -> None:
    assert of_text(tmp_path, "id,t,v\n007,0,1\n007,1,2\n7,0,3\n7,1,4\n").names == ["007", "7"]
    text = "t,what,v\n0,NA,1\n0,07,2\n1,NA,3\n1,07,4\n"
    assert of_text(tmp_path, text, channel_column="what").channels == ["07", "NA"]
    pd.DataFrame({"id": [1.0, 1.0, 2.0], "t": [0, 1, 0], "v": [1, 2, 3]}).to_parquet(tmp_path / "own.parquet")
    assert read(tmp_path / "own.parquet").names == ["1", "2"]
    assert numbers(of_text(tmp_path, "t,v\n0,1\n1,NA\n2,null\n3,4\n")) == [[1, None, None, 4]]  # a column of numbers


# Which column is of what


@pytest.mark.parametrize(
    ("columns", "time"),
    [
        ({"when": DAYS, "hour": [0, 12] * 30}, "when"),
        ({"week_start": DAYS, "month": DAYS.month}, "week_start"),
        ({"Period": DAYS, "step": np.arange(60) * 2}, "Period"),
        ({"updated": ["2024-01-01"] * 60, "time": np.arange(60)}, "time"),
        ({"hour": [3, 1, 3, 2] * 15, "year": np.arange(1900, 1960)}, "year"),
        ({"t": [20.5, 21.0, 20.5] * 20}, None),
    ],
)
def test_times_are_dates_or_numbers_that_rise(columns: dict[str, Any], time: str | None, tmp_path: Path) -> None:
    if "updated" in columns:
        pd.DataFrame(columns | {"v": np.arange(60.0)}).to_csv(tmp_path / "own.csv", index=False)
        source = read(tmp_path / "own.csv", value_columns=["v"])
    else:
        source = of_columns(tmp_path, **columns, v=np.arange(60.0))
    assert source.options["time_column"] == time
    assert source.lengths == [60]
    assert source.remarks == (() if time else ("'t' is taken for a feature: its numbers do not rise as times do",))


def test_numbers_are_an_id_where_times_repeat_without_them(tmp_path: Path) -> None:
    numbers_of = {"unit": [1, 2, 3] * 20, "price": np.arange(60.0)}
    source = of_columns(tmp_path, date=DAYS, **numbers_of)
    assert (source.options["id_column"], source.channels, source.lengths) == (None, ["unit", "price"], [60])
    source = of_columns(tmp_path, date=DAYS.repeat(3)[:60], **numbers_of)
    assert (source.options["id_column"], source.names, source.lengths) == ("unit", ["1", "2", "3"], [20, 20, 20])
    source = of_columns(tmp_path, date=DAYS.repeat(2)[:60], city=["a", "b"] * 30, unit=[1, 1, 5] * 20, price=range(60))
    assert (source.options["id_column"], source.channels) == ("city", ["unit", "price"])
    assert of_columns(tmp_path, series=[4] * 30 + [2] * 30, v=np.arange(60.0)).names == ["4", "2"]
    assert of_columns(tmp_path, series=[4, 2] * 30, v=np.arange(60.0)).channels == ["series", "v"]


# Times


@pytest.mark.parametrize("swapped", [False, True])
def test_a_date_and_a_time_of_day_are_one_time(swapped: bool, tmp_path: Path) -> None:
    times = pd.date_range("2024-01-31 22:00", periods=8, freq="30min")
    columns = {"date": times.strftime("%Y-%m-%d"), "time": times.strftime("%H:%M")}
    source = of_columns(tmp_path, **dict(reversed(columns.items()) if swapped else columns.items()), value=range(8))
    assert (source.lengths, source.channels, source.step) == ([8], ["value"], "30min")
    assert source.times is not None
    assert list(source.times[0]) == list(times.to_numpy())
    again = read(tmp_path / "own.csv", **source.options)
    assert (again.options, list(again.times[0])) == (source.options, list(times.to_numpy()))
    days, clocks = times.strftime("%Y%m%d").astype(int), times.strftime("%I:%M %p")
    twelve = of_columns(tmp_path, id=["a"] * 8, day=days, clock=clocks, v=range(8))
    assert (twelve.names, list(twelve.times[0])) == (["a"], list(times.to_numpy()))


@pytest.mark.parametrize("name", ["time", "at"])
def test_times_of_day_alone_are_refused(name: str, tmp_path: Path) -> None:
    """They were of the day of the run: midnight came first."""
    with pytest.raises(DataError, match=f"column '{name}': expected dates, got times of day alone as '23:00'; write"):
        of_text(tmp_path, f"{name},v\n23:00,1\n23:30,2\n00:00,3\n")


@pytest.mark.parametrize(
    ("name", "form", "freq"),
    [("date", "%Y%m%d", "D"), ("trade_date", "%Y%m%d", "D"), ("TradeDate", "%Y%m%d", "D"), ("month", "%Y%m", "MS")],
)
def test_whole_numbers_may_be_dates(name: str, form: str, freq: str, tmp_path: Path) -> None:
    times = pd.date_range("2023-01-01", periods=60, freq=freq)
    source = of_columns(tmp_path, **{name: times.strftime(form).astype(int)}, v=np.arange(60.0))
    assert (source.lengths, source.step) == ([60], freq)
    assert list(source.times[0]) == list(times.to_numpy())


@pytest.mark.parametrize("values", [[20230131, 20230132, 20230133], [202311, 202312, 202313], [1, 2, 3]])
def test_numbers_that_are_no_dates_stay_numbers(values: list[int], tmp_path: Path) -> None:
    assert of_columns(tmp_path, day=values, v=[1.0, 2.0, 3.0]).times[0].tolist() == values


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
@pytest.mark.parametrize("freq", ["D", "MS"])
def test_days_with_a_zone_go_through_a_change_of_the_clocks(freq: str, suffix: str, tmp_path: Path) -> None:
    times = pd.date_range("2024-03-01", periods=40, freq=freq, tz="Europe/Berlin")
    frame, path = pd.DataFrame({"time": times, "v": np.arange(40.0)}), tmp_path / f"own{suffix}"
    frame.to_csv(path, index=False) if suffix == ".csv" else frame.to_parquet(path)
    source = read(path)
    assert (source.lengths, source.step) == ([40], freq)
    assert list(source.times[0]) == list(times.tz_localize(None).to_numpy())
    remark = "times are those of the clock in their time zone: column 'time' has one, and is of days"
    assert source.remarks == (remark,)


def test_numbers_of_times_are_those_that_were_written(tmp_path: Path) -> None:
    source = of_columns(tmp_path, t=[round(0.1 * at, 1) for at in range(8)], v=range(8))
    assert source.times[0].tolist() == [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7]


@pytest.mark.parametrize("options", [{}, {"time_column": "date"}])
@pytest.mark.parametrize("zone", [" EST", " CET", "CEST", " Europe/Berlin", ":30.5 PST"])
def test_a_zone_in_words_is_said(zone: str, options: dict[str, Any], tmp_path: Path) -> None:
    """Without time_column they were taken for a feature that is no number."""
    rows = "".join(f"2024-01-0{day} 00:00{zone},{day}\n" for day in range(1, 7))
    message = rf"column 'date', row 2: expected a time, got '2024-01-01 00:00{zone}'; write it as 2024-01-31"
    with pytest.raises(DataError, match=message):
        of_text(tmp_path, f"date,v\n{rows}", **options)


@pytest.mark.parametrize(
    "texts", [["a 1", "b 2", "a 3"], ["10 EST", "12 EST", "12 MW"], ["2,024 KM", "2,025 KM", "2,026 KM"]]
)
def test_texts_with_capitals_are_no_times(texts: list[str]) -> None:
    assert not are_dates(pd.Series(texts))


# Files as a whole


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "date,a\n2024-01-01,1\n\n\n2024-01-02,oops\n2024-01-03,3\n2024-01-04,3\n", "'a', row 5: .*'oops'"),
        ("a.csv", "\n \nt,a\n\n0,1\n  \n1,oops\n\n", "'a', row 7: .*'oops'"),
        ("a.csv", "t,a\r\n\r\n0,1\r\n1,oops\r\n", "'a', row 4: .*'oops'"),
        ("a.csv", "t,a\n,\n\n1,oops\n", "'a', row 4: .*'oops'"),
        ("a.csv", 't,a,"in\nlines"\n0,1,2\n\n1,oops,2\n', "'a', row 5: .*'oops'"),
        ("a.csv", 't,s,a\n0,"x\n\ny",1\n1,"x\n\ny",oops\n', "'a', row 5: .*'oops'"),
        ("a.csv", "t;a\n\n0;1\n1;oops\n", "'a', row 4: .*'oops'"),
        ("a.tsv", "t\ta\n\n0\t1\n1\toops\n", "'a', row 4: .*'oops'"),
        ("a.csv.gz", "\ufefft,a\n\n0,1\n1,oops\n", "'a', row 4: .*'oops'"),
        ("a.csv", f"t,s,a\n0,{'x' * 200_000},1\n\n1,y,oops\n", "'a', data row 2: .*'oops'"),  # more than csv reads
        ("a.csv", "\nt,a\n0,1\n\n1,2\n2,3\n2.5,4\n", "row 7: expected times a step of 1 apart"),
        ("a.csv", "id,t,a\n\nx,0,1\ny,0,1\n\nx,1,1\ny,1,1\ny,1,1\n", "row 8: expected a time of its own"),
        ("a.csv", "id,t,a\n\nx,0,1\n\n ,1,1\nx,2,1\n", "'id', row 5: expected a name, got an empty cell"),
        ("a.csv", "t,split,a\n\n0,train,1\n\n1,later,1\n", "'split', row 5: expected train"),
        ("a.csv", "date,a\n\n2024-01-01,1\n\n2024-13-01,2\n2024-01-02,2\n2024-01-03,2\n", "'date', row 5: expected a"),
    ],
)  # fmt: skip
def test_rows_are_named_by_their_line(name: str, text: str, message: str, tmp_path: Path) -> None:
    """Blank lines were not counted, nor those inside of quotes."""
    options: dict[str, Any] = {"split_column": "split"} if "split" in text else {}
    if "s,a" in text:
        options = {"value_columns": ["a"]}
    data = text.encode()
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    with pytest.raises(DataError, match=message):
        read(tmp_path / name, **options)


def test_the_rows_of_a_long_table_are_named_by_their_line(tmp_path: Path) -> None:
    text = "t,c,v\n\n0,p,1\n0,q,1\n\n1,p,2\n1,q,2\n2,p,2\n2,q,2\n"
    with pytest.raises(DataError, match="row 11: expected times a step of 1 apart"):
        of_text(tmp_path, f"{text}\n2.5,p,3\n", channel_column="c")
    with pytest.raises(DataError, match="row 11: expected one value for each time and c"):
        of_text(tmp_path, f"{text}\n0,p,3\n", channel_column="c", time_column="t")


def test_blank_lines_are_no_rows(tmp_path: Path) -> None:
    source = of_text(tmp_path, "\ndate,v\n2024-01-01,1\n\n \n2024-01-02,2\n2024-01-03,\n\n2024-01-04,4\n\n")
    assert numbers(source) == [[1, 2, None, 4]]
    assert numbers(of_text(tmp_path, "v\n1\n\n2\n\n\n3\n")) == [[1, 2, 3]]


def test_ids_beside_semicolons(tmp_path: Path) -> None:
    """Their column was looked for between commas, and the file said to be damaged."""
    source = of_text(tmp_path, "id;t;v\nA;0;1\nA;1;2\nB;0;3\nB;1;4\n")
    assert (source.names, numbers(source)) == (["A", "B"], [[1, 2], [3, 4]])


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        (
            "1,234",
            "a number without commas, got '1,234'; write 1234 where the comma stands between thousands, 1.234 where it "
            "is the decimal point",
        ),
        (
            " -12,500",
            "a number without commas, got ' -12,500'; write -12500 where the comma stands between thousands, -12.500 "
            "where it is the decimal point",
        ),
        ("1,234,567", "a number without commas, got '1,234,567'; leave the commas out"),
        ("1,234.5", "a number without commas, got '1,234.5'; leave the commas out"),
        ("12,345,678.25", "a number without commas, got '12,345,678.25'; leave the commas out"),
        ("0,234", "a number with a decimal point, got '0,234'; write points for commas"),
        ("2,5", "a number with a decimal point, got '2,5'; write points for commas"),
        ("1234,567", "a number with a decimal point, got '1234,567'; write points for commas"),
        ("12,34,567", "a number or nothing, got '12,34,567'; correct it"),
    ],
)
@pytest.mark.parametrize("before", ["1", None])
def test_commas_in_numbers(cell: str, message: str, before: str | None, tmp_path: Path) -> None:
    """Where they stand between thousands a point is not what to write; nor are they dates, which pandas would have."""
    cells = [before or cell, cell, cell]
    with pytest.raises(DataError, match=f"column 'sales', row {3 if before else 2}: expected {re.escape(message)}"):
        of_columns(tmp_path, t=[0, 1, 2], sales=cells)


@pytest.mark.parametrize(
    "text",
    ["1.5,2.5\n3,4\n", "5\n6\n7\n", "2024-01-01,1.5\n2024-01-02,2\n", "2024-01-01 10:00,,3\n2024-01-01 11:00,1,2\n"],
)
def test_a_table_without_names_is_said(text: str, tmp_path: Path) -> None:
    """Its first row was lost."""
    with pytest.raises(DataError, match=r"own\.csv: expected the names of the columns in the first row, got '.*add a"):
        of_text(tmp_path, text)


def test_columns_may_have_numbers(tmp_path: Path) -> None:
    source = of_text(tmp_path, ",0,1\n0,1.5,2.5\n1,3,4\n")
    assert (source.channels, source.lengths) == (["0", "1"], [2])
    assert source.remarks == ("the first row is taken for the names of the columns: 0, 1",)


@pytest.mark.parametrize("single", ["a", "b", "c"])
def test_a_table_of_one_row_goes_with_others(single: str, tmp_path: Path) -> None:
    for name in "abc":
        count = 1 if name == single else 4
        frame = pd.DataFrame({"date": DAYS[:count], "v": np.arange(float(count))})
        frame.to_csv(tmp_path / f"{name}.csv", index=False)
    source = read(tmp_path)
    assert (source.step, source.options["step"]) == ("D", "D")
    assert sorted(source.lengths) == [1, 4, 4]
    assert read(tmp_path, **source.options).lengths == source.lengths
