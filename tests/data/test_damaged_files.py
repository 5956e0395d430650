"""What make fuzz-files found, small: each is one line of DataError."""

from __future__ import annotations

import decimal
import io
import struct
import subprocess
import sys
import warnings
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest

from vssn.data.audio import inspect
from vssn.data.formats import read
from vssn.data.speech import load_speech
from vssn.errors import DataError

pytest.importorskip("pandas")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("time,a\n2024-01-01,1,b\n2024-01-02,2,3\n", "expected a name for every column in the first row, got 1 names"),
        ("a,b\nx,y,1,z\nx,y,2,w\n", "expected a name for every column in the first row, got 2 names fewer than cells"),
        (
            "time,a\n2024-01-4-01-01 00:00:00,0\n2024-01-01 01:00:00,1\n2024-01-01 02:00:00,2\n2024-01-01 03:00:00,3\n",
            "column 'time': expected times of one form, got '2024-01-4-01-01 00:00:00' and others",
        ),
    ],
)
def test_tables(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(DataError) as caught:
        read(tmp_path / "a.csv")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_archive_with_something_else_in_it(tmp_path: Path) -> None:
    array = io.BytesIO()
    np.save(array, np.zeros((4, 2)))
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as file:
        file.writestr("x.npy", array.getvalue())
        file.writestr("notes.txt", b"mine")
    with pytest.raises(DataError, match=r"a\.npz: expected arrays alone, got the file 'notes\.txt' beside them"):
        read(tmp_path / "a.npz")


def test_half_precision_in_parquet(tmp_path: Path) -> None:
    """Which pandas takes for no index: of times, and of what rows go by."""
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    columns = {"time": [0, 1, 0, 1], "id": [1, 1, 2, 2], "value": [0.5, 1.5, 2.5, np.nan]}
    frame = pandas.DataFrame({name: np.array(values, np.float16) for name, values in columns.items()})
    frame.to_parquet(tmp_path / "a.parquet")
    found = read(tmp_path / "a.parquet")
    assert found.x[0].flatten().tolist() == [0.5, 1.5]
    np.testing.assert_array_equal(found.x[1].flatten().numpy(), [2.5, np.nan])


def test_a_recording_that_promises_more_than_there_is(tmp_path: Path) -> None:
    """Its header asks for 8 GiB, and is not taken at its word."""
    soundfile = pytest.importorskip("soundfile")
    soundfile.write(tmp_path / "a.flac", np.zeros(600, np.float32), 16000, subtype="PCM_16")
    data = bytearray((tmp_path / "a.flac").read_bytes())
    (low,) = struct.unpack(">I", data[22:26])
    assert low == 600  # of the 36 bits of the number of samples
    data[22:26] = struct.pack(">I", 2**31 - 1)
    (tmp_path / "a.flac").write_bytes(data)
    with pytest.raises(DataError, match=r"a\.flac: expected "):
        read(tmp_path / "a.flac")


@pytest.mark.parametrize(
    ("side", "message"),
    [
        (10_000, "expected frames of at most 65,536 numbers, got 100,000,000"),
        (60_000, "expected a picture or a film"),
    ],
)
def test_a_picture_that_promises_more_than_there_is(side: int, message: str, tmp_path: Path) -> None:
    """Nothing of it is decoded, and Pillow does not warn."""
    image = pytest.importorskip("PIL.Image")
    for place in (tmp_path / "film", tmp_path / "film" / "a.png", tmp_path / "a.gif"):
        if place.suffix:
            image.new("L", (1, 1)).save(place)
        else:
            place.mkdir()
    data = bytearray((tmp_path / "film" / "a.png").read_bytes())
    at = data.index(b"IHDR")
    data[at + 4 : at + 12] = struct.pack(">II", side, side)
    data[at + 17 : at + 21] = struct.pack(">I", zlib.crc32(data[at : at + 17]))
    (tmp_path / "film" / "a.png").write_bytes(data)
    data = bytearray((tmp_path / "a.gif").read_bytes())
    data[6:10] = struct.pack("<HH", side, side)
    (tmp_path / "a.gif").write_bytes(data)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for place in (tmp_path / "film", tmp_path / "a.gif"):
            with pytest.raises(DataError) as caught:
                read(place)
            assert message in str(caught.value)


@pytest.mark.parametrize("bits", [0x79C097CE, 0x7F800001])
def test_a_recording_of_numbers_beyond_all_sound(bits: int, tmp_path: Path) -> None:
    """1e35, which in steps of 16 bits would be infinite; a NaN that signals, of which NumPy would warn."""
    soundfile = pytest.importorskip("soundfile")
    samples = np.zeros(600, np.float32)
    samples.view(np.uint32)[7] = bits
    soundfile.write(tmp_path / "a.wav", samples, 16000, subtype="FLOAT")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(DataError, match=r"expected 600 finite samples from 0 on, got 599"):
            read(tmp_path / "a.wav")


def test_a_single_number_where_a_sequence_should_be(tmp_path: Path) -> None:
    for name in ("x_0", "u_0", "mask_0"):
        np.savez(tmp_path / "a.npz", **{"x_0": np.ones((4, 2)), name: np.ones(())})
        with pytest.raises(
            DataError, match=rf"a\.npz: {name}: expected \[N, T, features\] or \[T, features\], got \[\]"
        ):
            read(tmp_path / "a.npz")


def test_lengths_in_words(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.ones((2, 3, 1)), lengths=np.array(["3", "2"]))
    with pytest.raises(DataError, match=r"lengths: expected 2 whole numbers of at least 1, .*, got 2 of <U1$"):
        read(tmp_path / "a.npz")


@pytest.mark.parametrize("entries", [",", "a,"])
@pytest.mark.parametrize("column", ["id_column", "channel_column", "split_column"])
def test_rows_that_are_of_nothing(column: str, entries: str, tmp_path: Path) -> None:
    names = entries.split(",")
    rows = "".join(f"{name},{index},1\n" for index, name in enumerate(names))
    (tmp_path / "a.csv").write_text(f"name,time,y\n{rows}")
    with pytest.raises(
        DataError, match=rf"column 'name', row {2 + names.index('')}: expected a name, got an empty cell"
    ):
        read(tmp_path / "a.csv", **{column: "name"})


def test_an_array_that_is_not_in_its_file(tmp_path: Path) -> None:
    """HDF5 would make 2 GiB of zeros up."""
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("x", (1, 2**20, 2**9), "f4", chunks=(1, 2**10, 2**9))
    with pytest.raises(DataError, match=r"a\.h5: /x: expected the numbers of \[1, 1048576, 512\], .* got 0 bytes"):
        read(tmp_path / "a.h5")


def test_what_else_parquet_holds(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    columns = {
        "decimal": [decimal.Decimal("1.5"), None, decimal.Decimal("3")],
        "span": np.array([1, 2, 3], "m8[s]"),
        "category": pandas.Categorical([4, None, 5]),
        "whole": pandas.array([1, None, 3], "Int64"),
        "yes": pandas.array([True, None, False], "boolean"),
    }
    others = {"list": [[1, 2], [3], None], "struct": [{"a": 1}, {"a": 2}, None], "binary": [b"x", b"y", None]}
    pandas.DataFrame({"t": [0, 1, 2], **columns, **others}).to_parquet(tmp_path / "a.parquet")
    x = read(tmp_path / "a.parquet", value_columns=list(columns)).x[0]
    expected = [[1.5, 1, 4, 1, 1], [np.nan, 2, np.nan, np.nan, np.nan], [3, 3, 5, 3, 0]]
    np.testing.assert_array_equal(x.numpy(), np.array(expected, np.float32))
    for name in others:
        with pytest.raises(DataError, match=f"column '{name}', data row 1: expected a number or nothing, got "):
            read(tmp_path / "a.parquet", value_columns=[name])


def test_a_recording_that_promises_more_than_a_file_can_hold(tmp_path: Path) -> None:
    soundfile = pytest.importorskip("soundfile")
    for name in "abc":
        soundfile.write(tmp_path / f"{name}.flac", np.zeros(8000, np.float32), 16000, subtype="PCM_16")
    assert inspect(tmp_path / "a.flac", 0) == (8000, 16000)  # silence, packed as well as can be
    data = bytearray((tmp_path / "a.flac").read_bytes())
    data[21:26] = bytes((data[21] | 0x0F, 255, 255, 255, 255))  # of 36 bits: the number of samples
    (tmp_path / "a.flac").write_bytes(data)
    with pytest.raises(DataError, match=r"a\.flac: expected 10000 samples a byte at most, got a header that promises"):
        load_speech("blizzard", tmp_path)


def test_a_nan_that_signals_is_missing_like_others(tmp_path: Path) -> None:
    x = np.ones((4, 2))
    x.view(np.uint64)[1, 1] = 0x7FF0000000000001
    np.save(tmp_path / "a.npy", x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read(tmp_path / "a.npy").x[0].isnan().sum() == 1


def test_what_pillow_logs_is_no_second_line(tmp_path: Path) -> None:
    """A TIFF of 65,283 samples a pixel; in a process of its own, since pytest takes what is logged."""
    image = pytest.importorskip("PIL.Image")
    (tmp_path / "film").mkdir()
    image.new("RGB", (2, 2)).save(tmp_path / "film" / "a.tiff")
    data = bytearray((tmp_path / "film" / "a.tiff").read_bytes())
    at = data.index(struct.pack("<HHI", 277, 3, 1))
    data[at + 8 : at + 10] = struct.pack("<H", 65283)
    (tmp_path / "film" / "a.tiff").write_bytes(data)
    run = subprocess.run(
        [sys.executable, "-m", "vssn", "init", str(tmp_path / "film")], capture_output=True, text=True, check=False
    )
    assert run.returncode == 2
    assert run.stderr.startswith("vssn: error: ")
    assert run.stderr.count("\n") == 1
