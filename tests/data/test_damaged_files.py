"""What make fuzz-files found, small: each is one line of DataError."""

from __future__ import annotations

import io
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest

from vssn.data.formats import read
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
