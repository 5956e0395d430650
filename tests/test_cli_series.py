"""The commands that apply a model to data: forecast, impute, generate, latents, the scores of series, and info of a
checkpoint."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
import torch
import yaml
from test_cli import error_of

from vssn.cli import main
from vssn.cli.common import Progress
from vssn.data.formats import read
from vssn.errors import TargetError
from vssn.nn.interface import SequenceModel
from vssn.output.filled import filled_tables
from vssn.output.music import write_midi
from vssn.output.results import Look, write_forecast
from vssn.output.tables import Frames
from vssn.output.targets import choose
from vssn.training import heartbeat
from vssn.training.checkpoints import load_model
from vssn.training.fit import fit

DAYS = pandas.date_range("2024-01-01", periods=40, freq="D")


def a_table() -> pandas.DataFrame:
    angle = np.arange(40) / 7 * 2 * np.pi
    values = {"temp": 20 + np.sin(angle), "wind": np.cos(angle)}
    return pandas.DataFrame({"date": DAYS.strftime("%Y-%m-%d"), **values})


@pytest.fixture(scope="module")
def series(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint of a small model of two features that knows gaps."""
    folder = tmp_path_factory.mktemp("series") / "run"
    x = torch.tensor(a_table()[["temp", "wind"]].to_numpy(), dtype=torch.float32)
    config = {
        "data": {"batch_size": 4},
        "model": {"hidden_size": 4, "latent_size": 2, "noise_size": 1, "likelihood": "gaussian", "masked": True},
        "training": {"max_epochs": 1, "accelerator": "cpu", "output": str(folder)},
    }
    fit(config, ([x, x], [x], [x]))
    return folder / "best.ckpt"


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint of a small model of films with controls."""
    folder = tmp_path_factory.mktemp("films")
    config = {
        "data": {"set": "pendulum", "num_train": 4, "num_valid": 2, "num_test": 3, "num_frames": 6, "batch_size": 2},
        "model": {"hidden_size": 4, "latent_size": 2, "noise_size": 1, "control": "external"},
        "training": {"max_epochs": 1, "accelerator": "cpu"},
    }
    (folder / "tiny.yaml").write_text(yaml.safe_dump(config))
    assert main(["fit", "--config", str(folder / "tiny.yaml"), "--output", str(folder / "run")]) == 0
    return folder / "run" / "best.ckpt"


@pytest.fixture
def gaps(tmp_path: Path) -> Path:
    """A table with empty cells and a row that is not there."""
    table = a_table()
    table.loc[[3, 4, 20], "temp"] = np.nan
    table.loc[[10], "wind"] = np.nan
    table["temp"] += 1 / 3  # more digits than float32 has
    path = tmp_path / "gaps.csv"
    table.drop(index=30).to_csv(path, index=False)
    return path


def fitted_without_gaps(folder: Path) -> Path:
    """The checkpoint of a model of two features that takes no gaps."""
    x = torch.tensor(a_table()[["temp", "wind"]].to_numpy(), dtype=torch.float32)
    model = {"hidden_size": 4, "latent_size": 2, "likelihood": "gaussian"}
    training = {"max_epochs": 1, "accelerator": "cpu", "output": str(folder / "plain")}
    fit({"model": model, "training": training}, ([x], [x], [x]))
    return folder / "plain" / "best.ckpt"


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_forecast_of_a_table(series: Path, gaps: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    command = ["forecast", str(series), "--data", str(gaps), "--steps", "5", "--samples", "20"]
    assert main([*command, "--output", str(out), "--quantiles", "0.2", "0.8"]) == 0
    assert capsys.readouterr().out.split() == [str(out / "forecast.csv"), str(out / "gaps.png")]
    assert names(out) == ["forecast.csv", "gaps.png"]
    table = pandas.read_csv(out / "forecast.csv", parse_dates=["time"])
    assert list(table.columns) == ["series", "time", "channel", "mean", "q20", "q80"]
    assert table.time.drop_duplicates().tolist() == pandas.date_range("2024-02-10", periods=5).tolist()
    assert set(table.channel) == {"temp", "wind"}
    assert bool((table.q20 <= table.q80).all())
    again = tmp_path / "again.npz"
    assert main([*command, "--output", str(again)]) == 0
    with np.load(again) as arrays:
        assert arrays["samples"].shape == (20, 1, 5, 2)
        np.testing.assert_allclose(arrays["mean"][0].reshape(-1), table["mean"], rtol=1e-5)  # the same seed
    assert main([*command, "--output", str(again), "--seed", "1"]) == 0
    with np.load(again) as arrays:
        assert not np.allclose(arrays["mean"][0].reshape(-1), table["mean"])


def test_a_held_out_end_is_forecast_at_its_own_times(series: Path, gaps: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.csv"
    command = ["forecast", str(series), "--data", str(gaps), "--steps", "5", "--samples", "2", "--holdout"]
    assert main([*command, "--output", str(out)]) == 0
    table = pandas.read_csv(out, parse_dates=["time"])
    assert table.time.drop_duplicates().tolist() == DAYS[-5:].tolist()


def test_rows_for_the_future_are_neither_held_out_nor_scored(series: Path, tmp_path: Path) -> None:
    """Their missing values were the truth of a forecast."""
    path, out, whole = tmp_path / "future.csv", tmp_path / "out.csv", []
    for rows in (0, 12):
        days = pandas.DataFrame({"date": pandas.date_range("2024-02-10", periods=rows).strftime("%Y-%m-%d")})
        pandas.concat([a_table(), days]).to_csv(path, index=False)
        command = [str(series), "--data", str(path), "--samples", "3"]
        assert main(["forecast", *command, "--steps", "5", "--holdout", "--output", str(out)]) == 0
        assert main(["evaluate", *command, "--json", str(tmp_path / "scores.json")]) == 0
        whole.append((out.read_text(), json.loads((tmp_path / "scores.json").read_text())["forecast"]["model"]))
    assert DAYS[-5].strftime("%Y-%m-%d") in whole[0][0]
    assert whole[0] == whole[1]


def test_imputation_keeps_what_is_there_to_the_last_digit(
    series: Path, gaps: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(["impute", str(series), "--data", str(gaps), "--output", str(out), "--samples", "5"]) == 0
    assert capsys.readouterr().out.startswith("6 of 80 entries were missing (7.5%)\n")
    assert names(out) == ["filled.csv", "gaps.png", "imputed.csv"]
    before, after = pandas.read_csv(gaps), pandas.read_csv(out / "filled.csv")
    assert list(after.columns) == list(before.columns) == ["date", "temp", "wind"]
    assert after.date.tolist() == DAYS.strftime("%Y-%m-%d").tolist()  # with the row that was not there
    assert not after.isna().any(axis=None)
    same = after.set_index("date").loc[before.date]
    for column in ("temp", "wind"):
        known = before[column].notna().to_numpy()
        assert same[column].to_numpy()[known].tolist() == before[column].to_numpy()[known].tolist()
    missing = pandas.read_csv(out / "imputed.csv")
    assert len(missing) == 6
    assert list(missing.columns) == ["series", "time", "channel", "mean", "q10", "q50", "q90"]
    row = missing[(missing.time == "2024-01-31") & (missing.channel == "wind")].iloc[0]
    assert after[after.date == "2024-01-31"].wind.iloc[0] == pytest.approx(row["mean"], rel=1e-6)


@pytest.mark.parametrize("verb", ["impute", "forecast", "latents", "score", "generate"])
def test_what_is_read_is_not_written_over(
    verb: str,
    series: Path,
    gaps: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nor is anything drawn first."""
    work = {"latents": "latents", "score": "score", "generate": "generate"}
    monkeypatch.setattr(SequenceModel, work.get(verb, verb), lambda *_, **__: pytest.fail("drawn"))
    more = ["--threshold", "1"] if verb == "score" else []
    stem = {"impute": "filled", "score": "scores", "generate": "generated"}.get(verb, verb)
    folder, beside = tmp_path / "data", tmp_path / "beside"
    folder.mkdir()
    beside.mkdir()
    own, link = folder / f"{stem}.csv", tmp_path / "link.csv"
    own.write_bytes(gaps.read_bytes())
    link.symlink_to(own)
    monkeypatch.chdir(tmp_path)
    for data, output in (
        (own, own),
        (Path("data") / own.name, own),
        (own, link),
        (link, own),
        (own, folder),  # in which it goes by that name
        (folder, own),
        (folder, folder),
    ):
        said = error_of(capsys, verb, str(series), "--data", str(data), "--output", str(output), *more)
        assert said.startswith("vssn: error: --output: expected another file than was read, got ")
        assert said.endswith(" of --data; name another one\n")
        assert own.read_bytes() == gaps.read_bytes()
    assert names(folder) == [own.name]


def test_scores_are_not_written_over_what_was_read(
    series: Path, gaps: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "data").mkdir()
    best, data = tmp_path / "best.ckpt", tmp_path / "data" / "gaps.csv"
    best.write_bytes(series.read_bytes())
    data.write_bytes(gaps.read_bytes())
    for source, target, words in (
        (data, data, f"{data} of --data"),
        (data.parent, data, f"{data} of --data"),
        (data, best, f"{best} of CHECKPOINT"),
    ):
        said = error_of(capsys, "evaluate", str(best), "--data", str(source), "--json", str(target))
        assert said == (
            f"vssn: error: --json: expected another file than was read, got {target}, which is {words}; name another "
            "one\n"
        )
    assert (best.read_bytes(), data.read_bytes()) == (series.read_bytes(), gaps.read_bytes())


def test_what_lies_beside_the_data_is_written_over(tmp_path: Path) -> None:
    for name in ("a.csv", "a.png"):
        (tmp_path / name).touch()
    sources = {"--data": str(tmp_path), "--normal": None, "CHECKPOINT": str(tmp_path / "no.ckpt")}
    assert choose("--output", tmp_path / "a.png", "table", 1, sources=sources).suffixes == (".png",)
    assert choose("--output", tmp_path, "table", 1, sources=sources, stems=["b"], names=["a"]).file is None
    with pytest.raises(TargetError, match=r"a\.csv of --data"):
        choose("--output", tmp_path, "table", 1, sources=sources, stems=["a"])


def test_the_tables_of_a_folder_are_not_written_over(
    series: Path, gaps: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SequenceModel, "impute", lambda *_, **__: pytest.fail("drawn"))
    for name in ("a.csv", "filled-a.csv"):
        (tmp_path / name).write_bytes(gaps.read_bytes())
    said = error_of(capsys, "impute", str(series), "--data", str(tmp_path), "--output", str(tmp_path))
    assert f"got {tmp_path / 'filled-a.csv'}, which is {tmp_path / 'filled-a.csv'} of --data" in said


def test_imputation_keeps_digits_beside_dates_whose_day_is_first(series: Path, gaps: Path, tmp_path: Path) -> None:
    before = pandas.read_csv(gaps)
    days = pandas.to_datetime(before.date)
    path, out = tmp_path / "days.csv", tmp_path / "filled.csv"
    before.assign(date=days.dt.strftime("%d/%m/%Y")).to_csv(path, index=False)
    assert main(["impute", str(series), "--data", str(path), "--output", str(out), "--samples", "2"]) == 0
    table = pandas.read_csv(out)
    assert table.date.tolist() == DAYS.strftime("%d/%m/%Y").tolist()  # in that form what is added, too
    after = table.set_index("date").loc[days.dt.strftime("%d/%m/%Y")]
    known = before.temp.notna().to_numpy()
    assert after.temp.to_numpy()[known].tolist() == before.temp.to_numpy()[known].tolist()


def test_cells_that_are_there_stand_as_they_are_written(series: Path, tmp_path: Path) -> None:
    path, out = tmp_path / "zip.csv", tmp_path / "filled.csv"
    path.write_text(
        "date,zip,temp,wind\n01/30/2024,01123,1.50,1012345\n01/31/2024,00501,,7\n02/02/2024,02123,+2.0,\n"
        "02/03/2024,NA,1e0,08\n"
    )
    source = read(path, value_columns=["temp", "wind"])
    means = [np.nan_to_num(x.numpy(), nan=9.5) for x in source.x]
    frames = Frames(source.names, source.channels, source.times or [], means, [mean[None] for mean in means], ())
    filled_tables(source, frames)[path].to_csv(out, index=False)
    assert out.read_text() == (
        "date,zip,temp,wind\n01/30/2024,01123,1.50,1012345\n01/31/2024,00501,9.5,7\n02/01/2024,,9.5,9.5\n"
        "02/02/2024,02123,+2.0,9.5\n02/03/2024,NA,1e0,08\n"
    )
    typed = tmp_path / "own.csv"
    path.rename(typed)
    typed.write_text("date,temp,wind\n01/30/2024,1.50,01\n01/31/2024,,7\n")
    command = ["impute", str(series), "--data", str(typed), "--samples", "2", "--output"]
    assert main([*command, str(out)]) == 0
    assert out.read_text().startswith("date,temp,wind\n01/30/2024,1.50,01\n01/31/2024,")
    assert main([*command, str(tmp_path / "filled.parquet")]) == 0  # which has types
    table = pandas.read_parquet(tmp_path / "filled.parquet")
    assert [table[name].dtype.kind for name in table] == ["M", "f", "i"]
    assert (table.temp[0], table.wind.tolist()) == (1.5, [1, 7])


def test_imputation_of_a_long_table(series: Path, tmp_path: Path) -> None:
    """Ids, a column that says which feature it is, and a column of its own place."""
    path = tmp_path / "long.csv"
    path.write_text("value,kind,day,who\n1,a,0,p\n2,b,0,p\n,a,1,p\n4,b,1,p\n5,a,0,q\n6,b,0,q\n7,a,1,q\n0.1,b,1,q\n")
    source = read(path, channel_column="kind", id_column="who", time_column="day", value_columns=["value"])
    means = [np.nan_to_num(x.numpy(), nan=9.5) for x in source.x]
    assert source.times is not None
    frames = Frames(source.names, source.channels, source.times, means, [mean[None] for mean in means], ())
    for typed, kind in ((False, str), (True, float)):
        table = filled_tables(source, frames, typed)[path]
        assert list(table.columns) == ["value", "kind", "day", "who"]
        content = {(row.who, int(row.day), row.kind): row.value for row in table.itertuples()}
        assert {key: float(value) for key, value in content.items()} == {
            **{("p", 0, "a"): 1, ("p", 0, "b"): 2, ("p", 1, "a"): 9.5, ("p", 1, "b"): 4},
            **{("q", 0, "a"): 5, ("q", 0, "b"): 6, ("q", 1, "a"): 7, ("q", 1, "b"): 0.1},
        }
        assert {type(value) for value in content.values()} == {kind}


def filled(path: Path, **options: Any) -> pandas.DataFrame:
    """A table as it is read again, with 9.5 for all that was missing."""
    source = read(path, **options)
    means = [np.nan_to_num(x.numpy(), nan=9.5) for x in source.x]
    times = source.times or [np.arange(length) for length in source.lengths]
    frames = Frames(source.names, source.channels, times, means, [mean[None] for mean in means], ())
    (table,) = filled_tables(source, frames).values()
    target = path.with_name("filled.csv")
    table.to_csv(target, index=False)
    return pandas.read_csv(target, dtype=str, keep_default_na=False)


@pytest.mark.parametrize(
    ("before", "after", "options"),
    [
        (  # parts, ids of digits and ids that mean missing elsewhere, a column that is of nothing
            "id,t,split,note,v\n007,0,training,,0.123456789123\n007,2,training,a b,\n007,3,test,NA,1\nNA,0,test,,3\n",
            "id,t,split,note,v\n007,0,training,,0.123456789123\n007,1,training,,9.5\n007,2,training,a b,9.5\n"
            "007,3,test,NA,1\nNA,0,test,,3\n",
            {"value_columns": ["v"], "id_column": "id", "split_column": "split"},
        ),
        ("year,v\n1990,1.5\n1991,\n1993,3\n", "year,v\n1990,1.5\n1991,9.5\n1992,9.5\n1993,3\n", {}),
        (
            "t,v\n0.1,123456.789\n0.2,\n0.3,123458.789\n0.4,1\n",
            "t,v\n0.1,123456.789\n0.2,9.5\n0.3,123458.789\n0.4,1\n",
            {},
        ),
        (
            "date,a,b\n20240130,7,True\n20240131,,\n20240202,123456789,False\n",
            "date,a,b\n20240130,7,True\n20240131,9.5,9.5\n20240201,9.5,9.5\n20240202,123456789,False\n",
            {},
        ),
        (
            "date,time,v\n2024-01-31,23:00,0.123456789\n2024-01-31,23:30,\n2024-02-01,00:30,2\n2024-02-01,01:00,2\n",
            "date,time,v\n2024-01-31,23:00,0.123456789\n2024-01-31,23:30,9.5\n2024-02-01,00:00,9.5\n"
            "2024-02-01,00:30,2\n2024-02-01,01:00,2\n",
            {},
        ),
        (  # the mean of a step, not the row that lies at its beginning
            "t,v,note\n0,1,a\n0.5,3,b\n1.2,0.123456789123,c\n3,7,d\n3.1,,e\n",
            "t,v\n0.0,2.0\n1.0,0.123456789123\n2.0,9.5\n3.0,7.0\n",
            {"freq": 1, "value_columns": ["v"]},
        ),
        (
            "t,kind,v\n0,NA,1\n0,b,2\n1,NA,0.123456789123\n3,b,4\n",
            "t,kind,v\n0,NA,1\n0,b,2\n1,NA,0.123456789123\n1,b,9.5\n2,NA,9.5\n2,b,9.5\n3,NA,9.5\n3,b,4\n",
            {"channel_column": "kind"},
        ),
        ("a,b\n1,\n,0.123456789123\n", "a,b\n1,9.5\n9.5,0.123456789123\n", {}),
    ],
)
def test_what_is_filled_stands_among_what_was_there(
    before: str, after: str, options: dict[str, Any], tmp_path: Path
) -> None:
    path = tmp_path / "own.csv"
    path.write_text(before)
    table = filled(path, **options)
    assert table.to_csv(index=False) == after


def test_what_is_filled_in_parquet_has_the_types_that_came_in(tmp_path: Path) -> None:
    times = pandas.date_range("2024-01-01", periods=2)
    values = {"v": [1.5, np.nan, 3, 1 / 3], "note": list("abcd")}
    before = pandas.DataFrame({"id": [7, 7, 8, 8], "day": [*times, *times], **values})
    before.to_parquet(tmp_path / "own.parquet")
    source = read(tmp_path / "own.parquet", value_columns=["v"])
    means = [np.nan_to_num(x.numpy(), nan=9.5) for x in source.x]
    frames = Frames(source.names, source.channels, source.times or [], means, [mean[None] for mean in means], ())
    (table,) = filled_tables(source, frames, typed=True).values()
    pandas.testing.assert_frame_equal(table, before.fillna({"v": 9.5}), check_dtype=False)
    assert [table[name].dtype.kind for name in ("id", "day", "v")] == ["i", "M", "f"]


def test_what_is_in_parquet_keeps_its_values(tmp_path: Path) -> None:
    """Times of a zone, texts of times, float32, and whole numbers that float64 does not hold, beside a new row."""
    hours = pandas.date_range("2024-01-30 12:30", periods=3, freq="h", tz="Europe/Berlin")
    whole = [2**60 + 1, 5, 3]
    for times in (hours, hours.strftime("%m/%d/%Y %H:%M")):
        before = pandas.DataFrame({"time": times, "v": np.array([0.1, 2, 3], "float32"), "n": whole, "note": whole})
        before = before.drop(index=1)
        before.to_parquet(tmp_path / "own.parquet")
        source = read(tmp_path / "own.parquet", value_columns=["v", "n"], step="h")
        means = [np.nan_to_num(x.numpy(), nan=9.5) for x in source.x]
        frames = Frames(source.names, source.channels, source.times or [], means, [mean[None] for mean in means], ())
        (table,) = filled_tables(source, frames, typed=True).values()
        assert table.time.tolist() == times.tolist()
        assert table.time.dtype.kind == before.time.dtype.kind
        assert table.v.dtype == np.float32
        assert table.v.tolist() == [np.float32(0.1), 9.5, 3]
        assert table.note[0] == 2**60 + 1
        (texts,) = filled_tables(source, frames).values()
        assert texts.v.tolist() == ["0.1", "9.5", "3.0"]
        assert texts.n.tolist() == [str(2**60 + 1), "9.5", "3"]


def test_imputation_of_a_folder_tells_the_files_apart(series: Path, tmp_path: Path) -> None:
    """All had the same dates in one table, and the digits of float32."""
    folder = tmp_path / "tables"
    tables = {}
    for number, place in enumerate(("x.csv", "x.1.csv", "deep/x.csv")):
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        tables[place] = a_table().assign(temp=lambda table, by=number: table.temp + by + 1 / 3)
        tables[place].loc[[3, 4], "temp"] = np.nan
        tables[place].to_csv(folder / place, index=False)
    command = ["impute", str(series), "--data", str(folder), "--samples", "2", "--output"]
    assert main([*command, str(tmp_path / "out")]) == 0
    stems = {"x.csv": "filled-x.csv", "x.1.csv": "filled-x.1.csv", "deep/x.csv": "filled-deep_x.csv"}
    assert {name for name in names(tmp_path / "out") if name.startswith("filled")} == set(stems.values())
    for place, stem in stems.items():
        after, before = pandas.read_csv(tmp_path / "out" / stem), pandas.read_csv(folder / place)
        assert list(after.columns) == ["date", "temp", "wind"]
        known = before.temp.notna()
        assert after[known].equals(before[known])
        assert not after.isna().any(axis=None)
    assert main([*command, str(tmp_path / "one.csv")]) == 0
    whole = pandas.read_csv(tmp_path / "one.csv")
    assert list(whole.columns) == ["file", "date", "temp", "wind"]
    assert whole.groupby("file").size().to_dict() == {"deep/x": 40, "x": 40, "x.1": 40}


def test_a_home_is_a_home(series: Path, gaps: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    command = ["impute", str(series), "--data", "~/gaps.csv", "--samples", "2", "--output", str(tmp_path / "f.csv")]
    assert main(command) == 0
    before, after = pandas.read_csv(gaps), pandas.read_csv(tmp_path / "f.csv").set_index("date")
    known = before.temp.notna()
    assert after.loc[before.date[known]].temp.tolist() == before.temp[known].tolist()


def test_latents_are_those_of_the_model(series: Path, gaps: Path, tmp_path: Path) -> None:
    model, _ = load_model(series)
    for kind in ("smooth", "filter"):
        out = tmp_path / f"{kind}.csv"
        assert main(["latents", str(series), "--data", str(gaps), "--output", str(out), "--kind", kind]) == 0
        table = pandas.read_csv(out)
        assert list(table.columns) == ["series", "time", "d1", "d2", "d3", "d4", "z1", "z2", "w1"]
        want = model.latents(read(gaps).x[0][:, None], kind=kind)
        np.testing.assert_allclose(table[["z1", "z2"]], want.z[:, 0].numpy(), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(table[["w1"]], want.w[:, 0].numpy(), rtol=1e-5, atol=1e-6)


def test_generate_draws_anew(series: Path, gaps: Path, tmp_path: Path) -> None:
    command = ["generate", str(series), "--data", str(gaps), "--steps", "7", "--samples", "3"]
    for seed in ("0", "0", "1"):
        assert main([*command, "--output", str(tmp_path / f"{seed}.npz"), "--seed", seed]) == 0
    one, other = (dict(np.load(tmp_path / f"{seed}.npz")) for seed in "01")
    assert one["samples"].shape == (1, 3, 7, 2)
    assert not np.allclose(one["samples"], other["samples"])
    assert not np.allclose(one["samples"][0, 0], one["samples"][0, 1])


def test_films_become_gifs(films: Path, tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    out = tmp_path / "out"
    command = ["forecast", str(films), "--steps", "2", "--samples", "2", "--holdout", "--first", "2"]
    assert main([*command, "--output", str(out)]) == 0
    assert names(out) == ["test-000.gif", "test-000.png", "test-001.gif", "test-001.png"]
    assert image.open(out / "test-000.gif").n_frames == 6
    assert main(["generate", str(films), "--samples", "2", "--output", str(out / "made"), "--steps", "3"]) == 0
    assert names(out / "made") == ["generated-001.gif", "generated-001.png", "generated-002.gif", "generated-002.png"]


def test_music_becomes_midi_and_sound(tmp_path: Path) -> None:
    symusic, soundfile = pytest.importorskip("symusic"), pytest.importorskip("soundfile")
    roll = np.zeros((4, 88), np.float32)
    roll[:, 39] = 1
    target = choose("--output", tmp_path / "out", "midi", 1)
    frames = Frames(["a/b"], [str(key) for key in range(88)], [np.arange(4)], [roll], [roll[None]], ())
    look = Look("midi", "set", None, 2.0, tempo=100.0)
    write_forecast(target, look, frames, [roll], None, [np.arange(4)])
    assert names(tmp_path / "out") == ["a_b.mid", "a_b.png", "a_b.wav"]
    (note,) = symusic.Score(tmp_path / "out" / "a_b.mid").tracks[0].notes
    assert (note.pitch, note.duration) == (60, 4 * 480)  # what was given, and goes on
    wave, rate = soundfile.read(tmp_path / "out" / "a_b.wav")
    assert len(wave) / rate == pytest.approx(8 * 0.3, abs=0.1)


def test_scores_of_series(series: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a_table().to_csv(tmp_path / "a.csv", index=False)
    target = tmp_path / "scores.json"
    command = ["evaluate", str(series), "--data", str(tmp_path / "a.csv"), "--samples", "20", "--json", str(target)]
    assert main([*command, "--steps", "3", "--season", "7", "--windows", "2", "--gaps", "0.3"]) == 0
    out = capsys.readouterr().out
    assert "\nforecast, 3 steps " in out
    assert "\nimputation, 30% hidden " in out
    scores = json.loads(target.read_text())
    naive = scores["forecast"]["seasonal naive, 7"]
    assert naive["MAE"] < 1e-5  # the table repeats every 7 days
    assert set(scores["forecast"]["model"]) > {"CRPS", "quantile loss", "80% coverage", "MAE", "MASE"}
    assert scores["forecast"]["entries"] == 2 * 3 * 2
    assert scores["imputation"]["linear interpolation"]["MAE"] < scores["imputation"]["model"]["MAE"]


def test_info_of_a_checkpoint(films: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", str(films)]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    for row in (
        ["model", "VSSN"],
        ["data", "pendulum"],
        ["X", "256"],
        ["U", "1"],
        ["hidden_size", "4"],
        ["epoch", "1"],
    ):
        assert row in lines
    assert main(["info"]) == 0
    assert "torch" in capsys.readouterr().out


def test_mistakes_are_one_line(
    series: Path, films: Path, gaps: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def error(*arguments: Any) -> str:
        return error_of(capsys, *(str(argument) for argument in arguments))

    out = tmp_path / "out"
    of_table = ("--data", gaps, "--output")
    assert "there is no such file" in error("forecast", tmp_path / "no.ckpt", *of_table, out)
    assert "expected a folder or a file of .csv, .parquet, .npz, .png" in error(
        "impute", series, *of_table, out / "a.mid"
    )
    assert "there is no folder" in error("forecast", series, *of_table, out / "a.csv")
    assert "--steps: expected fewer than the frames" in error(
        "forecast", series, *of_table, out, "--holdout", "--steps", 40
    )
    assert "the model has controls, u: expected" in error("forecast", films, "--output", out)
    assert "--data: the run was trained on data from Python" in error("impute", series, "--output", out)
    assert "there is none; check the path" in error("latents", series, "--data", tmp_path / "no.csv", "--output", out)
    plain = fitted_without_gaps(tmp_path)
    for command in (["forecast"], ["impute"], ["latents"], ["evaluate"]):
        more = ("--output", out) if command != ["evaluate"] else ()
        text = error(*command, plain, "--data", gaps, *more)
        assert "numbers of x are missing, and the model takes none" in text
        assert "(vssn fit --set model.masked=true)" in text
        assert "masked=True" not in text
    gaps.write_text("date,temp\n2024-01-01,1\n2024-01-02,2\n")
    assert "expected x of 2 features as the run has, got 1" in error("impute", series, *of_table, out)
    assert not out.exists()
    assert "name a folder, or take one sequence" in error(
        "forecast", films, "--holdout", "--output", tmp_path / "a.gif"
    )


@pytest.mark.parametrize("value", ["0", "1", "x"])
def test_levels_lie_between_0_and_1(value: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["forecast", "best.ckpt", "--output", "out", "--quantiles", value])
    assert caught.value.code == 2
    assert f"expected a number between 0 and 1, got '{value}'" in capsys.readouterr().err


def test_a_log_says_how_far_it_is(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(heartbeat, "EVERY", 0.05)
    with Progress("filling gaps", 3) as progress:
        progress.advance(2)
        time.sleep(0.3)
    assert "filling gaps: 2 of 3 sequences " in capsys.readouterr().err


def test_a_run_on_files_continues_them(gaps: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without --data the run's own file: the forecast stands behind its end; scores beside the naive ones come too."""
    config = {
        "data": {"set": "files", "path": str(gaps), "standardise": True, "window": 20, "batch_size": 4},
        "model": {"hidden_size": 4, "latent_size": 2, "likelihood": "gaussian", "masked": True},
        "training": {"max_epochs": 1, "accelerator": "cpu"},
    }
    (tmp_path / "a.yaml").write_text(yaml.safe_dump(config))
    assert main(["fit", "--config", str(tmp_path / "a.yaml"), "--output", str(tmp_path / "run")]) == 0
    best = str(tmp_path / "run" / "best.ckpt")
    assert main(["forecast", best, "--output", str(tmp_path / "out.csv"), "--steps", "3", "--samples", "4"]) == 0
    table = pandas.read_csv(tmp_path / "out.csv", parse_dates=["time"])
    assert table.time.min() == pandas.Timestamp("2024-02-10")
    assert 10 < table[table.channel == "temp"]["mean"].mean() < 30  # in the units of the file
    assert main(["impute", best, "--output", str(tmp_path / "filled.csv"), "--samples", "2"]) == 0
    assert len(pandas.read_csv(tmp_path / "filled.csv")) == 40
    capsys.readouterr()
    assert main(["evaluate", best, "--samples", "4", "--gaps", "0.5"]) == 0
    out = capsys.readouterr().out
    assert "\nforecast, 1 step " in out
    assert "\nimputation, 50% hidden " in out


def test_scores_that_cannot_be_made_are_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of small data: evaluate failed for --gaps, which nobody gave, and wrote NaN, which is no JSON."""
    (tmp_path / "three.csv").write_text("v\n1\n2.5\n0\n")
    draw = np.random.default_rng(0).normal(size=(4, 8, 1))
    np.savez(tmp_path / "missing.npz", x_train=draw, x_valid=draw[:2], x_test=np.full((2, 8, 1), np.nan))
    target = tmp_path / "scores.json"
    for name in ("three.csv", "missing.npz"):
        config = {
            "data": {"set": "files", "path": str(tmp_path / name)},
            "model": {"hidden_size": 4, "latent_size": 2, "likelihood": "gaussian", "masked": True},
            "training": {"max_epochs": 1, "accelerator": "cpu", "output": str(tmp_path / f"run-{name}")},
        }
        (tmp_path / "a.yaml").write_text(yaml.safe_dump(config))
        assert main(["fit", "--config", str(tmp_path / "a.yaml")]) == 0
        best = str(tmp_path / f"run-{name}" / "best.ckpt")
        assert main(["evaluate", best, "--samples", "4", "--json", str(target)]) == 0
        scores = json.loads(target.read_text(), parse_constant=lambda text: pytest.fail(f"{text} is no JSON"))
        assert scores.keys().isdisjoint(("imputation", "forecast"))
        assert (scores["micro_without_first"] is None) == (name == "three.csv")
        capsys.readouterr()
        assert main(["evaluate", best, "--samples", "4", "--gaps", "0.01"]) == 2  # asked for
        assert "--gaps: expected a share that hides an entry" in capsys.readouterr().err


def test_a_split_that_files_do_not_have_is_refused(
    series: Path, gaps: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It was passed over."""
    of_table = ("--data", str(gaps), "--split", "train")
    for command in ("forecast", "impute", "latents", "generate"):
        text = error_of(capsys, command, str(series), *of_table, "--output", str(tmp_path / "out"))
        assert "--split: expected none with files, whose sequences are all taken, got 'train'; leave it out" in text
    assert "expected parts for --split train, got sequences of no part" in error_of(
        capsys, "evaluate", str(series), *of_table
    )


def test_a_run_on_midi_gives_midi(tmp_path: Path) -> None:
    symusic = pytest.importorskip("symusic")
    roll = np.zeros((16, 88))
    roll[::2, 39] = roll[1::2, 43] = 1
    (tmp_path / "songs").mkdir()
    for number in range(3):
        write_midi(tmp_path / "songs" / f"{number}.mid", roll, frames_per_beat=4)
    config = {
        "data": {"set": "files", "path": str(tmp_path / "songs"), "batch_size": 2},
        "model": {"hidden_size": 4, "latent_size": 2},
        "training": {"max_epochs": 1, "accelerator": "cpu"},
    }
    (tmp_path / "a.yaml").write_text(yaml.safe_dump(config))
    assert main(["fit", "--config", str(tmp_path / "a.yaml"), "--output", str(tmp_path / "run")]) == 0
    command = ["forecast", str(tmp_path / "run" / "best.ckpt"), "--first", "1", "--steps", "4", "--samples", "1"]
    assert main([*command, "--output", str(tmp_path / "out")]) == 0
    assert names(tmp_path / "out") == ["0.mid", "0.png", "0.wav"]
    heard = symusic.Score(tmp_path / "out" / "0.mid")
    given = [note for note in heard.tracks[0].notes if note.time < 16 * 120]
    assert {(note.time // 120, note.pitch) for note in given} >= {(0, 60), (1, 64), (2, 60)}


def test_speech_becomes_sound_in_its_own_scale(tmp_path: Path) -> None:
    """What was given comes back as it was recorded, before what the model says."""
    soundfile = pytest.importorskip("soundfile")
    (tmp_path / "speech").mkdir()
    for number in range(10):
        noise = np.random.default_rng(number).normal(500, 900, 8000).astype(np.int16)
        soundfile.write(tmp_path / "speech" / f"{number}.wav", noise, 16000)
    config = {
        "data": {"set": "blizzard", "folder": str(tmp_path / "speech"), "batch_size": 4},
        "model": {"hidden_size": 4, "latent_size": 2, "likelihood": "gaussian"},
        "training": {"max_epochs": 1, "accelerator": "cpu"},
    }
    (tmp_path / "a.yaml").write_text(yaml.safe_dump(config))
    assert main(["fit", "--config", str(tmp_path / "a.yaml"), "--output", str(tmp_path / "run")]) == 0
    command = ["forecast", str(tmp_path / "run" / "best.ckpt"), "--first", "1", "--steps", "2", "--samples", "1"]
    assert main([*command, "--output", str(tmp_path / "a.wav")]) == 0
    heard, rate = soundfile.read(tmp_path / "a.wav", dtype="int16")
    spoken, _ = soundfile.read(tmp_path / "speech" / "9.wav", dtype="int16")
    assert (rate, len(heard)) == (16000, 8000 + 2 * 200)
    np.testing.assert_allclose(heard[:8000].astype(int), spoken.astype(int), atol=1)
