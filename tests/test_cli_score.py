"""`vssn score`: a score a frame, a threshold from usual ones, and a flag where something is out of place."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas
import pytest
import torch
from test_cli import error_of

from vssn.cli import main, make_parser
from vssn.training.checkpoints import load_model
from vssn.training.config import load_config
from vssn.training.fit import fit

MONTHS = pandas.date_range("1990-01-01", periods=300, freq="MS")
BROKEN, LOST = 150, 200  # rows of the table: a sensor that jumps, and a month that is not there
SETTINGS = (
    *("training.max_epochs=30", "training.learning_rate=0.01", "training.accelerator=cpu"),
    *("model.hidden_size=8", "model.latent_size=2", "model.noise_size=0", "model.masked=true"),
)


def a_table() -> pandas.DataFrame:
    noise = np.random.default_rng(0).normal(size=(300, 2))
    angle = np.arange(300)[:, None] / 12 * 2 * np.pi + np.array([0, 1])
    level, wind = (np.array([20, 5]) + np.sin(angle) + 0.1 * noise).T
    return pandas.DataFrame({"month": MONTHS.strftime("%Y-%m-%d"), "level": level, "wind": wind})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """usual.csv, the run of a small model of it, and odd.csv, where something is out of place."""
    place = tmp_path_factory.mktemp("score")
    table = a_table()
    table.to_csv(place / "usual.csv", index=False)
    command = ["fit", "--data", str(place / "usual.csv"), "--output", str(place / "run")]
    assert main([*command, *(part for key in SETTINGS for part in ("--set", key))]) == 0
    table.loc[BROKEN, "level"] += 5
    table.loc[BROKEN + 9, "wind"] = np.nan
    table.drop(index=LOST).to_csv(place / "odd.csv", index=False)
    return place


def score(folder: Path, output: str, *more: str) -> Path:
    path = folder / output
    command = ["score", str(folder / "run" / "best.ckpt"), "--data", str(folder / "odd.csv"), "--output", str(path)]
    assert main([*command, *more]) == 0
    return path


@pytest.mark.parametrize("kind", ["elbo", "predictive"])
def test_what_is_out_of_place_is_flagged_with_its_time(
    kind: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = score(folder, f"{kind}.csv", "--kind", kind, "--samples", "20")
    table = pandas.read_csv(path, parse_dates=["time"])
    assert list(table.columns) == ["series", "time", "score", "flagged"]
    assert table.time.tolist() == MONTHS.tolist()
    assert set(table.series) == {"odd"}
    assert table.score.isna().to_numpy().nonzero()[0].tolist() == [LOST]
    assert table.score.idxmin() == BROKEN
    assert table.flagged[BROKEN]
    assert not table.flagged[LOST]
    assert 1 <= table.flagged.sum() <= 20
    said = capsys.readouterr().out.splitlines()
    threshold = float(said[0].removeprefix("threshold ").split(" nats")[0])
    assert said[0].endswith("nats: 0.01 of 30 validation frames lie below it")
    assert (table.score < threshold).tolist() == table.flagged.tolist()
    assert said[1:] == [f"{table.flagged.sum()} of 299 frames are flagged", str(path)]


def test_the_scores_are_those_of_the_model(folder: Path) -> None:
    """In any order of batches: of one sequence the draws of the command's seed."""
    table = pandas.read_csv(score(folder, "again.csv", "--samples", "3", "--seed", "5", "--threshold", "0"))
    model, _ = load_model(folder / "run" / "best.ckpt")
    x = torch.full((300, 1, 2), torch.nan)
    rows = [row for row in range(300) if row != LOST]
    x[rows, 0] = torch.tensor(pandas.read_csv(folder / "odd.csv")[["level", "wind"]].to_numpy(), dtype=torch.float32)
    means = torch.stack([model.score(x, samples=3, seed=seed)[rows, 0] for seed in range(20)])
    spread = means.std(0) + 0.01
    assert ((torch.tensor(table.score.to_numpy()[rows]) - means.mean(0)).abs() < 6 * spread).all()
    assert table.flagged.tolist() == (table.score < 0).tolist()


def test_the_threshold_is_the_quantile_of_the_validation_frames(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the frames before them in sight, as the run has validated: of the whole table, rows 240 to 269."""
    ours = ["--quantile", "0.5", "--samples", "200"]
    score(folder, "half.csv", *ours)
    threshold = float(capsys.readouterr().out.split()[1])
    model, _ = load_model(folder / "run" / "best.ckpt")
    config = load_config(folder / "run" / "config.yaml")
    valid = config.load_data().valid
    assert valid.before is not None
    seen = torch.cat((valid.before[0][0], valid[0][0]))
    assert len(valid[0][0]) == 30
    expected = model.score(seen[:, None], samples=200, seed=1)[-30:, 0].quantile(0.5)
    assert threshold == pytest.approx(float(expected), abs=0.1)


def test_usual_frames_may_come_from_a_file(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    score(folder, "file.csv", "--normal", str(folder / "usual.csv"), "--quantile", "0.1")
    said = capsys.readouterr().out
    assert f"0.1 of 300 frames of {folder / 'usual.csv'} lie below it" in said


def test_a_folder_and_arrays(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = score(folder, "scores", "--threshold", "-2.5")
    assert [path.name for path in place.iterdir()] == ["scores.csv"]
    assert capsys.readouterr().out.startswith("threshold -2.5 nats: as given\n")
    table = pandas.read_csv(place / "scores.csv")
    with np.load(score(folder, "scores.npz", "--threshold", "-2.5")) as arrays:
        np.testing.assert_allclose(arrays["score"][0], table.score.to_numpy(), rtol=1e-5, equal_nan=True)
        assert arrays["threshold"] == -2.5
        assert arrays["lengths"].tolist() == [300]


def test_without_data_the_runs_own_is_scored(folder: Path) -> None:
    path = folder / "own.parquet"
    assert main(["score", str(folder / "run" / "best.ckpt"), "--output", str(path)]) == 0
    assert len(pandas.read_parquet(path)) == 300


def test_sequences_of_a_simulated_set_with_controls(tmp_path: Path) -> None:
    config = {
        "data": {"set": "pendulum", "num_train": 4, "num_valid": 2, "num_test": 3, "num_frames": 6, "batch_size": 2},
        "model": {"hidden_size": 4, "latent_size": 2, "noise_size": 1, "control": "external"},
        "training": {"max_epochs": 1, "accelerator": "cpu", "output": str(tmp_path / "run")},
    }
    checkpoint = str(fit(config, verbose=False).best_path)
    out = tmp_path / "out.csv"
    assert main(["score", checkpoint, "--output", str(out), "--quantile", "0.25"]) == 0
    table = pandas.read_csv(out)
    assert table.series.drop_duplicates().tolist() == ["test-000", "test-001", "test-002"]
    assert len(table) == 3 * 6


def test_a_run_on_data_from_python_has_no_validation_part(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    x = torch.tensor(a_table()[["level", "wind"]].to_numpy(), dtype=torch.float32)
    config = {
        "data": {"standardise": True},
        "model": {"hidden_size": 4, "latent_size": 2, "likelihood": "gaussian"},
        "training": {"max_epochs": 1, "accelerator": "cpu", "output": str(tmp_path / "run")},
    }
    checkpoint = str(fit(config, ([x], [x], [x]), verbose=False).best_path)
    a_table().to_csv(tmp_path / "usual.csv", index=False)
    command = ["score", checkpoint, "--data", str(tmp_path / "usual.csv"), "--output", str(tmp_path / "out.csv")]
    message = error_of(capsys, *command)
    assert message.startswith("vssn: error: --normal: the run was trained on data from Python")
    assert not (tmp_path / "out.csv").exists()
    assert main([*command, "--normal", str(tmp_path / "usual.csv")]) == 0


@pytest.mark.parametrize("value", ["-5", "-5e0", "-.5E+1", "-5.", "-5e-300", "-1_0.5"])
def test_a_threshold_may_be_any_number_below_0(value: str) -> None:
    """Of those with an exponent argparse said that it expected one argument."""
    for given in (("--threshold", value), (f"--threshold={value}",)):
        options = make_parser().parse_args(["score", "best.ckpt", "--output", "out.csv", *given])
        assert options.threshold == float(value)


@pytest.mark.parametrize(
    ("command", "option"), [("evaluate", "gaps"), ("forecast", "quantiles"), ("impute", "quantiles")]
)
def test_other_numbers_below_0_are_read_too(command: str, option: str, capsys: pytest.CaptureFixture[str]) -> None:
    output = [] if command == "evaluate" else ["--output", "out.csv"]
    with pytest.raises(SystemExit):
        main([command, "best.ckpt", *output, f"--{option}", "-5e-1"])
    assert "got '-5e-1'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--quantile", "1"), "argument --quantile: expected a number between 0 and 1, got '1'"),
        (("--quantile", "-1e-3"), "argument --quantile: expected a number between 0 and 1, got '-1e-3'"),
        (("--threshold", "nan"), "argument --threshold: expected a finite number, got 'nan'"),
        (("--threshold", "-inf"), "argument --threshold: expected a finite number, got '-inf'"),
        (("--threshold", "-5e0x"), "argument --threshold: expected a finite number, got '-5e0x'"),
        (("--threshold", "-x"), "argument --threshold: expected one argument"),
        (("--threshold", "1", "--normal", "x"), "argument --normal: not allowed with argument --threshold"),
        (("--kind", "bound"), "argument --kind: invalid choice: 'bound'"),
    ],
)
def test_wrong_options_are_named(
    more: tuple[str, ...], message: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["score", str(folder / "run" / "best.ckpt"), "--output", str(folder / "no.csv"), *more])
    assert message in capsys.readouterr().err


def test_what_else_is_wrong_is_one_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["score", str(folder / "run" / "best.ckpt"), "--data", str(folder / "odd.csv")]
    pandas.DataFrame({"month": MONTHS[:5], "level": np.nan, "wind": np.nan}).to_csv(folder / "empty.csv", index=False)
    empty = error_of(capsys, *command, "--output", str(folder / "a.csv"), "--normal", str(folder / "empty.csv"))
    assert empty == "vssn: error: --normal: expected a frame with an observed entry, got none; name other data\n"
    picture = error_of(capsys, *command, "--output", str(folder / "a.png"))
    assert picture.startswith("vssn: error: --output: expected a folder or a file of .csv, .parquet, .npz")


CHANGED = {
    "shorter": (150, 0.0, "data.num_train: 3, but the data has 2"),
    "longer by a frame": (301, 0.0, "data.num_frames: 240, but the data has 241"),
    "other numbers": (300, 1.0, "data.fingerprint: 'crc32 "),
}


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """own.csv and the run of a model of it that was hardly trained."""
    place = tmp_path_factory.mktemp("own")
    a_table().to_csv(place / "own.csv", index=False)
    settings = [part for key in ("training.max_epochs=1", *SETTINGS[1:]) for part in ("--set", key)]
    assert main(["fit", "--data", str(place / "own.csv"), "--output", str(place / "run"), *settings]) == 0
    return place


def change(own: Path, rows: int, more: float) -> None:
    table = a_table()
    while len(table) < rows:
        month = pandas.Timestamp(table.month.iloc[-1]) + pandas.DateOffset(months=1)
        table.loc[len(table)] = [month.strftime("%Y-%m-%d"), 20, 5]
    table.loc[7, "level"] += more
    table.head(rows).to_csv(own, index=False)


def to_run(verb: str, short: Path) -> list[str]:
    output = ["--output", str(short / "scores.csv")] if verb == "score" else []
    return [verb, str(short / "run" / "best.ckpt"), *output]


@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize("verb", ["evaluate", "score"])
@pytest.mark.parametrize("how", CHANGED)
def test_a_file_that_has_changed_since_is_not_split_anew(
    how: str, verb: str, named: bool, short: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its last parts would be others: what was trained on would be the test, or usual."""
    rows, more, said = CHANGED[how]
    command = to_run(verb, short)
    monkeypatch.chdir(short)
    change(short / "own.csv", rows, more)
    try:
        error = error_of(capsys, *command, *(("--data", "../" + short.name + "/own.csv") if named else ()))
    finally:
        a_table().to_csv(short / "own.csv", index=False)
    assert f"the run's own data has changed since it was trained ({said}" in error
    assert error.endswith("bring back what it was, or name data that the run has not seen by --data\n")
    assert main(command) == 0


@pytest.mark.parametrize("verb", ["evaluate", "score"])
def test_other_data_than_the_run_s_own_may_have_any_length(
    verb: str, short: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change(short / "other.csv", 150, 1.0)
    assert main([*to_run(verb, short), "--data", str(short / "other.csv")]) == 0
    if verb == "evaluate":
        return
    change(short / "own.csv", 150, 1.0)  # of which nothing is needed then
    try:
        assert main([*to_run(verb, short), "--threshold", "-5"]) == 0
        assert main([*to_run(verb, short), "--normal", str(short / "other.csv")]) == 0
        error_of(capsys, *to_run(verb, short), "--data", str(short / "other.csv"))  # the threshold is of the run's own
    finally:
        a_table().to_csv(short / "own.csv", index=False)


def test_a_file_that_was_moved_is_scored_as_it_was(short: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(to_run("evaluate", short)) == 0
    before = capsys.readouterr().out
    moved = (short / "own.csv").rename(short / "moved.csv")
    try:
        assert main([*to_run("evaluate", short), "--data", str(moved)]) == 0
        assert capsys.readouterr().out == before
    finally:
        moved.rename(short / "own.csv")


def test_a_file_in_a_home_is_the_run_s_own(
    short: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The shell has put the home into --data, a configuration keeps ~."""
    monkeypatch.setenv("HOME", str(short))
    a_table().to_csv(short / "home.csv", index=False)
    settings = [part for key in ("training.max_epochs=1", *SETTINGS[1:]) for part in ("--set", key)]
    assert main(["fit", "--data", "~/home.csv", "--output", str(short / "of_home"), *settings]) == 0
    change(short / "home.csv", 150, 0.0)
    error = error_of(capsys, "evaluate", str(short / "of_home" / "best.ckpt"), "--data", str(short / "home.csv"))
    assert "the run's own data has changed since it was trained" in error
