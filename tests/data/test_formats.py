"""Files of one's own: every form is read into sequences, and what is wrong with a file is one line that names it."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from vssn.data.formats import Source, read, read_like
from vssn.errors import DataError

pd = pytest.importorskip("pandas")
NAN = math.nan


def table(path: Path, **columns: Any) -> Path:
    pd.DataFrame(columns).to_csv(path, index=False)
    return path


def of(source: Source, index: int = 0) -> list[list[float]]:
    """x of a sequence, None for what is missing: NaN is not equal to itself."""
    return [[None if math.isnan(entry) else entry for entry in row] for row in source.x[index].tolist()]  # type: ignore[misc]


# Tables


def test_a_wide_table_of_one_series(tmp_path: Path) -> None:
    times = pd.date_range("2024-01-01", periods=4, freq="h")
    source = read(table(tmp_path / "own.csv", date=times, a=[1.0, NAN, 3.0, 4.0], b=[5, 6, 7, 8]))
    assert of(source) == [[1, 5], [None, 6], [3, 7], [4, 8]]
    assert source.x[0].dtype == torch.float32
    assert (source.kind, source.names, source.channels, source.controls) == ("table", ["own"], ["a", "b"], [])
    assert (source.u, source.step, source.parts) == (None, "h", None)
    assert source.times is not None
    assert list(source.times[0]) == list(times.to_numpy())


FREQUENCIES = ["s", "15min", "h", "D", "7D", "B", "W", "MS", "ME", "QS", "QE", "YS", "YE", "2h"]


@pytest.mark.parametrize("freq", FREQUENCIES)
def test_a_gap_is_a_row_of_missing_values(freq: str, tmp_path: Path) -> None:
    """Found in data without freq, and the same with the step that was found."""
    times = pd.date_range("2024-01-05", periods=30, freq=freq)
    frame = pd.DataFrame({"time": times, "a": np.arange(30.0)}).drop(index=[5, 6, 20])
    frame.sample(frac=1, random_state=0).to_csv(tmp_path / "gaps.csv", index=False)  # in any order
    source = read(tmp_path / "gaps.csv")
    wanted = [[None] if row in (5, 6, 20) else [row] for row in range(30)]
    assert of(source) == wanted
    assert source.times is not None
    assert list(source.times[0]) == list(times.to_numpy())
    again = read(tmp_path / "gaps.csv", **source.options)
    assert of(again) == wanted
    assert again.options == source.options


@pytest.mark.parametrize(("form", "first"), [("%d/%m/%Y", 1), ("%m/%d/%Y", 1), ("%d.%m.%Y %H:%M", 1), ("%d.%m.%Y", 10)])
def test_days_and_months_are_told_apart_by_the_whole_column(form: str, first: int, tmp_path: Path) -> None:
    times = pd.date_range(f"2024-01-{first}", periods=60 if first == 1 else 3, freq="D")
    source = read(table(tmp_path / "own.csv", date=times.strftime(form), a=np.arange(len(times))))
    assert (source.step, source.times is not None and list(source.times[0])) == ("D", list(times.to_numpy()))


@pytest.mark.parametrize("dates", [["01/02/2024", "01/03/2024"], ["31/12/2024", "12/31/2024"]])
def test_days_that_could_be_months_are_not_guessed(dates: list[str], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="which is the day and which the month"):
        read(table(tmp_path / "own.csv", date=dates, a=[1.0, 2.0]))


def test_numbers_as_times(tmp_path: Path) -> None:
    source = read(table(tmp_path / "n.csv", t=[0.3, 0.1, 0.2, 0.5], y=[3, 1, 2, 5]))
    assert of(source) == [[1], [2], [3], [None], [5]]
    assert source.step == pytest.approx(0.1)
    assert source.times is not None
    assert source.times[0].tolist() == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5])


def test_the_commonest_step_is_exact(tmp_path: Path) -> None:
    """One that is nearly right leaves the grid after many rows."""
    assert read(table(tmp_path / "n.csv", t=[0, 1, 3], y=[1, 2, 3])).step == 1.0


def test_rows_are_put_on_the_grid_that_is_asked_for(tmp_path: Path) -> None:
    path = table(
        tmp_path / "i.csv", time=["2024-01-01 00:10", "2024-01-01 00:50", "2024-01-01 03:20"], a=[1.0, 3.0, 7.0]
    )
    source = read(path, freq="h")
    assert of(source) == [[2], [None], [None], [7]]
    assert source.times is not None
    assert str(source.times[0][0]).startswith("2024-01-01T00:00")
    assert of(read(table(tmp_path / "n.csv", t=[0, 1, 1.4, 4], y=[1, 2, 4, 5]), freq=1)) == [
        [1],
        [3],
        [None],
        [None],
        [5],
    ]
    monthly = table(tmp_path / "m.csv", day=["2024-01-03", "2024-01-20", "2024-03-01"], a=[1, 3, 9])
    for freq in ("MS", "ME"):
        assert of(read(monthly, freq=freq)) == [[2], [None], [9]]


def test_an_id_column_makes_sequences(tmp_path: Path) -> None:
    path = table(
        tmp_path / "p.csv",
        patient=["v", "v", "u", "u", "u"],
        time=[0, 1, 0, 1, 2],
        rate=[1.0, 2.0, 3.0, 4.0, 5.0],
        dose=[0, 1, 0, 0, 1],
    )
    source = read(path, control_columns=["dose"])
    assert (source.names, source.channels, source.controls) == (["v", "u"], ["rate"], ["dose"])
    assert (of(source), of(source, 1)) == ([[1], [2]], [[3], [4], [5]])
    assert source.u is not None
    assert source.u[1].tolist() == [[0], [0], [1]]
    assert source.options["id_column"] == "patient"


def test_a_long_table_has_a_column_of_channels(tmp_path: Path) -> None:
    rows = [(name, time, channel, 10 * time + number) for name in "ab" for time in range(3)
            for number, channel in enumerate("qp") if (name, time, channel) != ("b", 1, "q")]  # fmt: skip
    frame = pd.DataFrame(rows, columns=["series", "time", "what", "v"])
    frame.to_parquet(tmp_path / "long.parquet")
    source = read(tmp_path / "long.parquet", channel_column="what")
    assert (source.names, source.channels) == (["a", "b"], ["p", "q"])
    assert of(source, 1) == [[1, 0], [11, None], [21, 20]]
    assert source.options["channels"] == ["p", "q"]
    turned = read(tmp_path / "long.parquet", channel_column="what", channels=["q", "p"])
    assert of(turned, 1) == [[0, 1], [None, 11], [20, 21]]
    frame["split"] = ["train" if time < 2 else "test" for time in frame["time"]]
    frame.to_csv(tmp_path / "parts.csv", index=False)
    source = read(tmp_path / "parts.csv", channel_column="what")
    assert (source.names, source.parts) == (["a, train", "a, test", "b, train", "b, test"], ["train", "test"] * 2)
    assert of(source, 1) == [[21, 20]]


def test_tables_without_times_and_with_what_programs_add(tmp_path: Path) -> None:
    pd.DataFrame({"a": [1.0, 2.0], "b": [True, False]}).to_csv(tmp_path / "index.csv")
    source = read(tmp_path / "index.csv")
    assert (source.channels, source.times, source.step) == (["a", "b"], None, None)
    assert of(source) == [[1, 1], [2, 0]]
    (tmp_path / "semicolons.csv").write_text("a;b\n1;2\n3;\n", encoding="utf-8-sig")
    assert of(read(tmp_path / "semicolons.csv")) == [[1, 2], [3, None]]
    (tmp_path / "tabs.tsv").write_text("a\tb\n1\t2\n")
    assert of(read(tmp_path / "tabs.tsv")) == [[1, 2]]
    zoned = table(tmp_path / "z.csv", time=["2024-03-31T00:30:00+01:00", "2024-03-31T03:30:00+02:00"], a=[1, 2])
    times = read(zoned, freq="h").times
    assert times is not None
    assert str(times[0][0]).startswith("2024-03-30T23")


def test_a_folder_of_tables_and_folders_of_parts(tmp_path: Path) -> None:
    for part, count in (("train", 2), ("validation", 1), ("test", 1)):
        (tmp_path / part).mkdir()
        for number in range(count):
            table(tmp_path / part / f"{number}.csv", t=[0, 1], a=[number, 2])
    source = read(tmp_path)
    assert source.names == ["train/0", "train/1", "valid/0", "test/0"]
    assert source.parts == ["train", "train", "valid", "test"]
    assert read(tmp_path / "train").parts is None


BROKEN: list[tuple[str, str, dict[str, Any], str]] = [
    ("time,a\n0,1\n1,oops\n", "x.csv", {}, r"x\.csv: column 'a', row 3: expected a number or nothing, got 'oops'"),
    ("time,a\n0,1\n1,inf\n", "x.csv", {}, r"x\.csv: column 'a', row 3: expected a finite number, got infinity"),
    ("time,a\n0,1\n,2\n", "x.csv", {}, r"x\.csv: column 'time', row 3: expected a time, got an empty cell"),
    (
        "date,a\n2024-01-01,1\n2024-13-02,2\n2024-01-03,3\n2024-01-04,3\n",
        "x.csv",
        {},
        r"x\.csv: column 'date', row 3: expected a time, got '2024-13-02'",
    ),
    ("t,a\n0,1\n1,2\n2,3\n2.5,4\n", "x.csv", {}, r"x\.csv: row 5: expected times a step of 1 apart, got 2\.5"),
    (
        "t,a\n2024-01-01,1\n2024-01-02,2\n2024-01-03,3\n2024-01-03 07:00,4\n",
        "x.csv",
        {},
        r"x\.csv: row 5: expected times a step of D apart",
    ),
    ("t,a\n0,1\n1,2\n1,3\n", "x.csv", {}, r"x\.csv: row 4: expected a time of its own, got 1\.0 again"),
    ("t,a,c\n0,1,1\n1,2,\n", "x.csv", {"control_columns": ["c"]}, r"column 'c': expected a number at 1\.0, got none"),
    ("t,a\n0,1\n1000000,2\n", "x.csv", {"freq": 0.001}, r"x\.csv: expected at most 20,000,000 steps"),
    ("t,a\n0,1\n", "x.csv", {"time_column": "s"}, r"time_column: expected one of the columns 't', 'a', got 's'"),
    ("t,a\n0,1\n", "x.csv", {"value_columns": ["b"]}, r"x\.csv: value_columns: expected one of the columns .*got 'b'"),
    ("t,a\n0,1\n1,1\n", "x.csv", {"freq": "hourly"}, r"x\.csv: freq: expected a number above 0 .* got 'hourly'"),
    ("date,a\n2024-01-01,1\n", "x.csv", {"freq": "often"}, r"freq: expected a frequency of pandas.* got 'often'"),
    ("a,b\n0,1\n", "x.csv", {"freq": "h"}, r"x\.csv: freq: expected a time column with it"),
    ("t,split,a\n0,train,1\n1,later,1\n", "x.csv", {"split_column": "split"}, r"column 'split', row 3: expected train"),
    ("t,c,v\n0,p,1\n0,p,2\n", "x.csv", {"channel_column": "c"}, r"row 3: expected one value for each time and c"),
    ("t,c,v\n0,p,1\n0,q,2\n", "x.csv", {"channel_column": "c", "channels": ["p", "r"]}, r"the channels p, r, got p, q"),
    ("t,v\n0,1\n", "x.csv", {"channels": ["p"]}, r"x\.csv: channels: expected channel_column with it"),
    ("t,c,v,w\n0,p,1,2\n", "x.csv", {"channel_column": "c"}, r"x\.csv: channel_column: expected a time column and one"),
    ("t\n0\n1\n", "x.csv", {}, r"x\.csv: expected a column of numbers, got 't'"),
    ("a;b\n1;2,5\n3;4,5\n", "x.csv", {}, r"column 'b', row 2: expected a number with a decimal point, got '2,5'; "),
    ("time,v\n1500-01-01,1\n1500-01-02,2\n", "x.csv", {}, r"'time', row 2: .* years 1678 to 2261, got '1500-01-01'"),
    ("", "x.csv", {}, r"x\.csv: expected a table, but it cannot be read"),
    ("a,b\n", "x.csv", {}, r"x\.csv: expected a table with a row of names and rows of numbers, got no row"),
    ("no parquet", "x.parquet", {}, r"x\.parquet: expected a table, but it cannot be read"),
    ("t,a\n0,1\n", "x.csv", {"per_beat": 4}, r"^per_beat: expected an option of the form table, which has time_column"),
    ("t,a\n0,1\n", "x.xlsx", {}, r"x\.xlsx: expected data \(\.csv, .*found x\.xlsx"),
    ("t,a\n0,1e300\n", "x.csv", {}, r"x\.csv: x: expected finite numbers of float32, got 1e\+300"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "name", "options", "message"), BROKEN)
def test_a_broken_table_is_one_line(
    text: str, name: str, options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=message) as caught:
        read(tmp_path / name, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("times", "zoned"),
    [
        (["2024-03-31 00:00+01:00", "2024-03-31 01:00+01:00", "2024-03-31 03:00+02:00"], True),
        (["2024-03-30T23:00Z", "2024-03-31T00:00Z", "2024-03-31T01:00Z"], True),
        (["2024-03-31 01:00:00+02", "2024-03-31 02:00:00+02", "2024-03-31 03:00:00+02"], True),
        (["2024-03-30 23:00", "2024-03-31 00:00", "2024-03-31 01:00"], False),
        (["29-12-2024", "30-12-2024", "31-12-2024"], False),
    ],
)
def test_a_time_zone_is_said(times: list[str], zoned: bool, tmp_path: Path) -> None:
    """What comes out is of UTC, without a mark."""
    source = read(table(tmp_path / "x.csv", time=times, v=[1.0, 2.0, 3.0]))
    assert source.remarks == (("times are of UTC from here on: column 'time' has a time zone",) if zoned else ())
    if zoned:
        assert str(source.times[0][0])[:16] == "2024-03-30T23:00"
    assert len(source.x[0]) == 3


# Arrays and trials


X = np.arange(24.0).reshape(2, 4, 3)


def written(path: Path, arrays: dict[str, Any]) -> Path:
    """As NumPy or as HDF5."""
    if path.suffix == ".npz":
        np.savez(path, **arrays)
        return path
    h5py = pytest.importorskip("h5py")
    with h5py.File(path, "w") as file:
        for name, array in arrays.items():
            file[name] = np.asarray(array)
    return path


@pytest.mark.parametrize("suffix", [".npz", ".h5"])
def test_arrays_with_controls_mask_and_lengths(suffix: str, tmp_path: Path) -> None:
    mask = np.ones((2, 4), dtype=bool)
    mask[1, 0] = False
    path = written(tmp_path / f"a{suffix}", {"x": X, "u": X[..., :1] + 1, "mask": mask, "lengths": np.array([4, 2])})
    source = read(path)
    assert (source.names, source.lengths, source.x_size, source.control_size) == (["x[0]", "x[1]"], [4, 2], 3, 1)
    assert of(source) == X[0].tolist()
    assert of(source, 1) == [[None] * 3, X[1, 1].tolist()]
    assert source.u is not None
    assert source.u[1].tolist() == (X[1, :2, :1] + 1).tolist()
    assert source.kind == ("arrays" if suffix == ".npz" else "trials")


@pytest.mark.parametrize("suffix", [".npz", ".h5"])
def test_ragged_arrays_and_parts(suffix: str, tmp_path: Path) -> None:
    ragged = {f"x_{index}": X[0, : index + 1] for index in range(3)} | {
        f"u_{index}": np.ones(index + 1) for index in range(3)
    }
    source = read(written(tmp_path / f"r{suffix}", ragged))
    assert (source.lengths, source.parts, source.control_size) == ([1, 2, 3], None, 1)
    parts = {"x_train": X, "x_valid": X[:1], "x_test_0": X[0], "x_test_1": X[0, :2]}
    source = read(written(tmp_path / f"p{suffix}", parts))
    assert (source.lengths, source.parts) == ([4, 4, 4, 4, 2], ["train"] * 2 + ["valid"] + ["test"] * 2)


def test_arrays_by_other_names(tmp_path: Path) -> None:
    np.save(tmp_path / "one.npy", X[0, :, 0].astype(np.int16))
    assert of(read(tmp_path / "one.npy")) == [[entry] for entry in X[0, :, 0]]
    assert read(written(tmp_path / "other.npz", {"rates": X})).lengths == [4, 4]
    lfads = {"train_data": X, "valid_data": X[:1], "train_ext_input": X, "valid_ext_input": X[:1], "truth": X}
    source = read(written(tmp_path / "lfads.h5", lfads))
    assert (source.parts, source.control_size) == (["train", "train", "valid"], 3)
    assert read(written(tmp_path / "group.h5", {"session/spikes": X, "session/rate": 1.0})).lengths == [4, 4]
    assert read(written(tmp_path / "two.h5", {"a": X, "b": X}), key="b").lengths == [4, 4]


BROKEN_ARRAYS: list[tuple[str, dict[str, Any], str]] = [
    (".npz", {"a": X, "b": X}, r"broken\.npz: expected an array x \[N, T, X\].*got 'a', 'b'; name the frames x"),
    (".npz", {"x": X, "x_train": X}, r"expected x alone, or x_train, x_valid and x_test, got both"),
    (".npz", {"x": X, "x_0": X[0]}, r"expected x or numbered arrays, got both"),
    (".npz", {"x": X + np.inf}, r"x\[0\]: expected finite numbers of float32, got inf in frame 0, feature 0"),
    (".npz", {"x": X, "u": X[:1]}, r"u: expected one for each of 2 sequences, got 1"),
    (".npz", {"x": X, "u": X[:, :3]}, r"u\[0\]: expected 4 frames as x\[0\] has, got 3"),
    (".npz", {"x": X, "u": X * NAN}, r"u\[0\]: expected finite .* got nan in frame 0, feature 0; fill it in"),
    (".npz", {"x": X, "mask": X}, r"mask\[0\]: expected True and False, or 1 and 0"),
    (".npz", {"x": X, "mask": X[..., :2] > 0}, r"mask\[0\]: expected the shape \[4, 3\] of x"),
    (".npz", {"x": X, "lengths": [4, 5]}, r"lengths: expected at most 4 for x\[1\], got 5"),
    (".npz", {"x": X, "lengths": [4, 0]}, r"lengths: expected 2 whole numbers of at least 1.* 0 among them"),
    (".npz", {"x": X.astype(str)}, r"x\[0\]: expected real numbers, got <U"),
    (".npz", {"x": X[:0]}, r"x: expected one sequence at least, got none"),
    (".npz", {"x_0": X[0], "x_1": X[0, :, :2]}, r"expected x of 3 features as in x_0, got 2 in x_1"),
    (
        ".h5",
        {"a": X, "b": X},
        r"broken\.h5: expected train_data and valid_data, or x \[N, T, X\], got a \[2, 4, 3\], b",
    ),
    (".h5", {"train_data": X, "train_encod_data": X}, r"expected train_data or train_encod_data, got both"),
]


@pytest.mark.parametrize(("suffix", "arrays", "message"), BROKEN_ARRAYS)
def test_broken_arrays_are_one_line(suffix: str, arrays: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = written(tmp_path / f"broken{suffix}", arrays)
    with pytest.raises(DataError, match=message) as caught:
        read(path)
    assert str(path) in str(caught.value)


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> Any:
            return (tmp_path / "ran").touch, ()

    np.save(tmp_path / "objects.npy", np.array([Bomb(), None], dtype=object), allow_pickle=True)
    np.savez(tmp_path / "objects.npz", x=np.array([X, Bomb()], dtype=object))
    (tmp_path / "pickle.npy").write_bytes(__import__("pickle").dumps(Bomb()))
    for name in ("objects.npy", "objects.npz", "pickle.npy"):
        with pytest.raises(
            DataError, match=rf"{name}: expected arrays of numbers, got an array of objects or a pickle"
        ):
            read(tmp_path / name)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["x.npy", "x.npz", "x.h5", "x.mid", "x.wav", "x.gif"])
def test_damaged_files_are_one_line(name: str, tmp_path: Path) -> None:
    for module in ("h5py", "symusic", "soundfile", "PIL"):
        pytest.importorskip(module)
    (tmp_path / name).write_bytes(b"RIFF none of these" * 9)
    with pytest.raises(DataError, match=rf"{name}: expected .*") as caught:
        read(tmp_path / name)
    assert "\n" not in str(caught.value)


# Music, sound and films


def score(path: Path, notes: list[tuple[int, int, int]], drums: bool = False) -> Path:
    """Notes of (tick, ticks, pitch), 480 a quarter."""
    symusic = pytest.importorskip("symusic")
    whole, track = symusic.Score(480), symusic.Track()
    for start, duration, pitch in notes:
        track.notes.append(symusic.Note(start, duration, pitch, 80))
    whole.tracks.append(track)
    if drums:
        beat = symusic.Track(is_drum=True)
        beat.notes.append(symusic.Note(0, 4800, 40, 80))
        whole.tracks.append(beat)
    whole.dump_midi(path)
    return path


def test_midi_is_a_piano_roll(tmp_path: Path) -> None:
    path = score(tmp_path / "one.mid", [(0, 480, 21), (240, 10, 60), (475, 245, 108), (0, 480, 15)], drums=True)
    source = read(path)
    roll = source.x[0]
    assert (roll.shape, source.kind, source.rate, source.step) == ((6, 88), "midi", 4.0, 0.25)
    assert [(t, n) for t, n in roll.nonzero().tolist() if n == 0] == [(0, 0), (1, 0), (2, 0), (3, 0)]
    assert [t for t, n in roll.nonzero().tolist() if n == 39] == [2]  # shorter than a row, one row long
    assert [t for t, n in roll.nonzero().tolist() if n == 87] == [4, 5]  # the nearest row
    assert int(roll.sum()) == 7
    assert source.remarks == ("1 notes beyond the 88 keys are left out in one.mid",)
    assert (source.channels[0], source.channels[39], source.channels[87]) == ("A0", "C4", "C8")
    assert read(path, per_beat=2).lengths == [3]
    score(tmp_path / "two.mid", [(0, 480, 60)])
    assert read(tmp_path).names == ["one", "two"]
    with pytest.raises(DataError, match=r"none\.mid: expected notes of the 88 keys, got 0 others and drums"):
        read(score(tmp_path / "none.mid", [], drums=True))


def test_recordings_are_frames_of_samples(tmp_path: Path) -> None:
    soundfile = pytest.importorskip("soundfile")
    samples = np.sin(np.arange(1005) / 7) * 0.5
    soundfile.write(tmp_path / "a.wav", samples, 8000)
    source = read(tmp_path / "a.wav")
    assert (source.x[0].shape, source.rate, source.kind) == ((5, 200), 8000.0, "audio")
    np.testing.assert_allclose(source.x[0].flatten(), samples[:1000], atol=1e-4)
    assert read(tmp_path / "a.wav", frame_size=100).lengths == [10]
    half = read(tmp_path / "a.wav", sample_rate=4000)
    assert (half.x[0].shape, half.rate) == ((2, 200), 4000.0)
    np.testing.assert_allclose(half.x[0].flatten()[50:350], samples[100:700:2], atol=0.02)
    soundfile.write(tmp_path / "b.wav", samples, 16000)
    with pytest.raises(DataError, match=r"b: expected the rate 8000\.0 as of a, got 16000\.0"):
        read(tmp_path)
    assert read(tmp_path, sample_rate=8000).lengths == [5, 2]
    soundfile.write(tmp_path / "short.flac", samples[:50], 8000)
    with pytest.raises(DataError, match=r"short\.flac: expected at least one frame of 200 samples, got 50"):
        read(tmp_path / "short.flac")


def test_films_of_every_form_are_the_same(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    film = np.random.default_rng(0).integers(0, 256, (11, 4, 6), dtype=np.uint8)
    for number in (1, 2):
        (tmp_path / "pictures" / f"film{number}").mkdir(parents=True)
        for index, frame in enumerate(film):
            image.fromarray(frame).save(tmp_path / "pictures" / f"film{number}" / f"frame{index}.png")
    frames = [image.fromarray(frame) for frame in film]
    frames[0].save(tmp_path / "own.gif", save_all=True, append_images=frames[1:], duration=40)
    np.savez(tmp_path / "own.npz", x=np.stack([film, film]))
    np.save(tmp_path / "real.npy", film[None] / 255)
    wanted = torch.from_numpy(film.reshape(11, 24).astype(np.float32) / 255)
    for name, count in (("pictures", 2), ("pictures/film1", 1), ("own.gif", 1), ("own.npz", 2), ("real.npy", 1)):
        source = read(tmp_path / name)
        assert (source.kind, source.frame_shape, len(source.x)) == ("film", (4, 6), count), name
        torch.testing.assert_close(source.x[-1], wanted, rtol=0, atol=1e-6)
    assert read(tmp_path / "own.gif").rate == 25.0
    small = read(tmp_path / "own.npz", resize=[2, 3])
    assert small.frame_shape == (2, 3)
    torch.testing.assert_close(
        small.x[0], wanted.view(11, 2, 2, 3, 2).mean((2, 4)).reshape(11, 6), rtol=0, atol=1e-5
    )  # fmt: skip
    colours = np.stack([film, film // 2, film // 3], -1)
    np.savez(tmp_path / "colours.npz", x=colours[None])
    assert read(tmp_path / "colours.npz").frame_shape == (4, 6, 3)
    assert read(tmp_path / "colours.npz", grey=True).frame_shape == (4, 6)


def test_broken_films(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    for index, size in enumerate(((4, 6), (4, 5))):
        image.fromarray(np.zeros(size, dtype=np.uint8)).save(tmp_path / f"{index}.png")
    with pytest.raises(DataError, match=r"expected frames of 4 x 6 as the first, got 4 x 5 in frame 1"):
        read(tmp_path)
    np.save(tmp_path / "range.npy", np.full((1, 2, 3, 3), 2.0))
    with pytest.raises(DataError, match=r"range\.npy: x: expected 8 bits, or values in \[0, 1\], got 2 to 2"):
        read(tmp_path / "range.npy")
    np.save(tmp_path / "big.npy", np.zeros((1, 1, 300, 300), dtype=np.uint8))
    with pytest.raises(DataError, match=r"big\.npy: expected frames of at most 65,536 numbers, .* give resize"):
        read(tmp_path / "big.npy")


@pytest.mark.parametrize(
    ("times", "message"),
    [
        (
            [0.0, 1.0, 1.5, 2.5, 4.0],
            r"row 4: expected times a step of 1 apart, got 1\.5, .* \(2 of 5 rows are\); give freq",
        ),
        ([0.0, 1.0, 1.0, 3.0], r"row 4: expected a time of its own, got 1\.0 again; .* give freq to take the mean"),
    ],
)
def test_the_step_that_was_found_is_no_leave_to_average(times: list[float], message: str, tmp_path: Path) -> None:
    """Other data of a run lies on the run's grid, a row a step, or says how many rows do not."""
    options = read(table(tmp_path / "own.csv", t=[0.0, 1.0, 3.0], a=[1, 2, 3])).options
    assert (options["step"], options["freq"]) == (1.0, None)
    other = table(tmp_path / "other.csv", t=times, a=list(range(len(times))))
    with pytest.raises(DataError, match=message):
        read(other, **options)
    asked = read(other, **{**options, "step": None, "freq": 1.0})
    assert (asked.options["freq"], asked.options["step"]) == (1.0, None)
    whole = {5: "rows are put on the grid of 1.0, 2 of 5 rows", 4: "rows are put on the grid of 1.0, 2 of 4 rows"}
    assert asked.remarks == (f"{whole[len(times)]} as the mean of those of their step",)
    assert read(tmp_path / "own.csv", freq=1.0).remarks == ("rows are put on the grid of 1.0",)


def test_a_grid_is_asked_for_in_one_way(tmp_path: Path) -> None:
    path = table(tmp_path / "own.csv", t=[0, 1], a=[1, 2])
    with pytest.raises(DataError, match=r"step: expected none with freq 1, the grid that rows are put on, got 1"):
        read(path, freq=1, step=1)
    with pytest.raises(DataError, match=r"step: expected a number above 0 as the times are numbers, got 'h'"):
        read(path, step="h")
    with pytest.raises(DataError, match=r"step: expected a time column with it"):
        read(table(tmp_path / "plain.csv", a=[1, 2]), step=1)


# Whole folders, and other data of a run


def test_a_folder_of_several_forms_must_be_told(tmp_path: Path) -> None:
    table(tmp_path / "a.csv", t=[0, 1], a=[1, 2])
    np.save(tmp_path / "b.npy", X)
    with pytest.raises(DataError, match=r"expected files of one form, got table and arrays; name it in format"):
        read(tmp_path)
    assert read(tmp_path, format="arrays").lengths == [4, 4]
    for path, message in (
        (tmp_path / "none", "expected a file or a folder with data, but there is none"),
        (tmp_path / "empty", r"expected data \(\.csv, .*found nothing"),
    ):
        (tmp_path / "empty").mkdir(exist_ok=True)
        with pytest.raises(DataError, match=message):
            read(path)
    with pytest.raises(DataError, match="format: expected one of table, arrays"):
        read(tmp_path, format="excel")


def test_other_data_is_read_as_the_run_read_its_own(tmp_path: Path) -> None:
    settings = SimpleNamespace(
        set="files", sizes=(1, 0), value_columns=["b"], time_column="when", freq=1.0, format="table"
    )
    source = read_like(settings, table(tmp_path / "more.csv", when=[0, 1, 3], a=["x", "y", "x"], b=[1, 2, 4]))
    assert of(source) == [[1], [2], [None], [4]]
    np.save(tmp_path / "more.npy", np.ones((3, 1)))
    assert of(read_like(settings, tmp_path / "more.npy")) == [[1]] * 3  # of another form, of the same width
    settings.sizes = (2, 0)
    with pytest.raises(DataError, match=r"more\.csv: expected x of 2 features as the run has, got 1"):
        read_like(settings, tmp_path / "more.csv")
    assert of(
        read_like(SimpleNamespace(set="given", sizes=(None, None)), table(tmp_path / "c.csv", t=[0, 1], a=[1, 2]))
    ) == [
        [1],
        [2],
    ]


CHANGED: list[tuple[str, Callable[[Path], None], str]] = [
    ("channels", lambda path: table(path, t=[0, 1], b=[1, 2]) and None, r"1: expected the features a as of 0, got b"),
    ("step", lambda path: table(path, t=[0, 2], a=[1, 2]) and None, r"1: expected the step 1\.0 as of 0, got 2\.0"),
]


@pytest.mark.parametrize(("what", "write", "message"), CHANGED)
def test_files_read_together_are_of_one_form(
    what: str, write: Callable[[Path], None], message: str, tmp_path: Path
) -> None:
    table(tmp_path / "0.csv", t=[0, 1], a=[1, 2])
    write(tmp_path / "1.csv")
    with pytest.raises(DataError, match=message):
        read(tmp_path)
