"""MATLAB 5 files: what SciPy writes comes back as SciPy reads it, and no damage is more than one line."""

from __future__ import annotations

import io
import os
import struct
import subprocess
import sys
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io

from vssn.data import matlab
from vssn.data.matlab import Matrix, read_cell_arrays
from vssn.data.music import MUSIC_SETS, SPLITS, find_music_file
from vssn.errors import DataError

NUMBERS = ("int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "float32", "float64")
ROOT = Path(__file__).resolve().parents[2]


def cells_of(matrices: Sequence[Any], shape: tuple[int, ...] | None = None) -> np.ndarray:
    cells = np.empty(len(matrices), dtype=object)
    cells[:] = matrices
    return cells.reshape(shape or (1, -1))


def saved(compress: bool = False, **content: Any) -> bytes:
    file = io.BytesIO()
    scipy.io.savemat(file, content, do_compression=compress)
    return file.getvalue()


def assert_as_scipys(content: bytes, names: Sequence[str]) -> dict[str, list[Matrix]]:
    found = read_cell_arrays(content, names, "a.mat")
    expected = scipy.io.loadmat(io.BytesIO(content), variable_names=list(names))
    assert list(found) == [name for name in expected if not name.startswith("__")]
    for name, matrices in found.items():
        cells = expected[name].ravel(order="F")
        assert len(matrices) == len(cells)
        for matrix, cell in zip(matrices, cells, strict=True):
            assert matrix.dtype == cell.dtype.newbyteorder("=")
            assert matrix.dtype.isnative
            assert matrix.flags.writeable
            assert matrix.shape == cell.shape
            np.testing.assert_array_equal(matrix, cell)
    return found


# Files made by hand, byte by byte


def element(order: str, kind: int, data: bytes) -> bytes:
    return struct.pack(f"{order}II", kind, len(data)) + data + bytes(-len(data) % 8)


def array(
    order: str,
    kind: int,
    sizes: Sequence[int],
    *parts: bytes,
    name: bytes = b"",
    flags: int = 0,
) -> bytes:
    head = element(order, 6, struct.pack(f"{order}II", kind | flags, 0))
    head += element(order, 5, struct.pack(f"{order}{len(sizes)}i", *sizes)) + element(order, 1, name)
    return element(order, 14, head + b"".join(parts))


def file_of(*elements: bytes, order: str = "<") -> bytes:
    return b"MATLAB 5.0 MAT-file".ljust(124) + {"<": b"\x00\x01IM", ">": b"\x01\x00MI"}[order] + b"".join(elements)


def matrix_of(order: str = "<", stored: int = 2, data: bytes = b"\x00\x01\x02\x03\x04\x05", **more: Any) -> bytes:
    return array(order, 6, (2, 3), element(order, stored, data), **more)


def deflated(order: str, data: bytes) -> bytes:
    packed = zlib.compress(data)
    return struct.pack(f"{order}II", 15, len(packed)) + packed


def failure(content: bytes, names: Sequence[str] = ("x",)) -> str:
    with pytest.raises(DataError, match=r"^a\.mat: ") as caught:
        read_cell_arrays(content, names, "a.mat")
    message = str(caught.value)
    assert "\n" not in message
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
    return message


# What is right


@pytest.mark.parametrize("compress", [False, True])
def test_every_kind_of_number_is_as_scipys(compress: bool) -> None:
    matrices = []
    for name in NUMBERS:
        dtype = np.dtype(name)
        ends = np.finfo(dtype) if dtype.kind == "f" else np.iinfo(dtype)
        matrices.append(np.array([[ends.min, 0, 1], [ends.max, 2, 3]], dtype=dtype))
    matrices += [np.array([[np.nan, np.inf, -0.0]]), np.array([[True, False, True]])]
    found = assert_as_scipys(saved(compress, x=cells_of(matrices)), ["x"])
    assert [matrix.dtype.name for matrix in found["x"]] == [*NUMBERS, "float64", "uint8"]


@pytest.mark.parametrize("compress", [False, True])
def test_cells_of_any_shape_and_empty_ones(compress: bool) -> None:
    matrices = [np.arange(2 * n).reshape(n, 2) for n in range(6)]
    matrices[1] = np.zeros((0, 0))
    found = assert_as_scipys(
        saved(compress, long=cells_of(matrices, (6, 1)), x=cells_of(matrices, (2, 3)), none=cells_of([])),
        ["none", "x", "long"],
    )
    assert [matrix.shape for matrix in found["x"]] == [(0, 2), (3, 2), (0, 0), (4, 2), (2, 2), (5, 2)]
    assert found["none"] == []


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("compress", [False, True])
def test_both_orders_of_bytes(order: str, compress: bool) -> None:
    """With numbers in every type, and as MATLAB saves a short name: in the element's tag."""
    codes = {1: "b", 2: "B", 3: "h", 4: "H", 5: "i", 6: "I", 7: "f", 9: "d", 12: "q", 13: "Q"}
    cells = [matrix_of(order, stored, struct.pack(f"{order}6{code}", *range(6))) for stored, code in codes.items()]
    variable = array(order, 1, (1, len(cells)), *cells, name=b"x" * 5)
    short = variable.replace(element(order, 1, b"x" * 5), struct.pack(f"{order}I", 1 << 16 | 1) + b"x\x00\x00\x00")
    short = struct.pack(f"{order}II", 14, len(short) - 8) + short[8:]
    other = array(order, 4, (1, 2), element(order, 4, struct.pack(f"{order}2H", 104, 105)), name=b"a note")
    elements = [other, variable, short]
    content = file_of(*(deflated(order, part) if compress else part for part in elements), order=order)
    found = assert_as_scipys(content, ["x", "xxxxx"])
    assert [len(found[name]) for name in ("xxxxx", "x")] == [10, 10]
    assert [matrix.tolist() for matrix in found["x"]] == [[[0, 2, 4], [1, 3, 5]]] * 10


def test_a_variable_of_another_name_may_hold_anything() -> None:
    content = saved(s={"a": 1}, z=np.eye(2) * 1j, n=np.zeros((2, 3, 4)), x=cells_of([np.eye(2)]), text="text")
    assert list(assert_as_scipys(content, ["x"])) == ["x"]


@pytest.mark.parametrize("name", MUSIC_SETS)
def test_the_music_sets_are_as_scipys(name: str) -> None:
    folder = os.environ.get("VSSN_DATA", "")
    try:
        path = find_music_file(name, folder)
    except DataError as error:
        pytest.skip(str(error))
    if path.suffix != ".mat":
        pytest.skip(f"{path} is not the .mat copy")
    assert_as_scipys(path.read_bytes(), [f"{split}data" for split in SPLITS])


def test_scipy_is_not_needed(tmp_path: Path) -> None:
    roll = np.eye(3, 88)
    content = saved(**{f"{split}data": cells_of([roll, roll]) for split in SPLITS})
    (tmp_path / "JSB_Chorales.mat").write_bytes(content)
    code = "import sys; sys.modules['scipy'] = None; from vssn.data.music import load_music; "
    code += f"print(load_music('jsb', {str(tmp_path)!r}).test[1].sum())"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout == "tensor(3)\n", done.stderr


# What is wrong


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("stored", [0, 8, 10, 14, 15, 19, 20, 116, 0xFFFF])
def test_an_unknown_type_of_numbers_is_one_line(stored: int, compress: bool) -> None:
    """SciPy 1.17 looks it up beside its table of types: with most of these the process ends."""
    variable = array("<", 1, (1, 1), matrix_of(stored=stored), name=b"x")
    message = failure(file_of(deflated("<", variable) if compress else variable))
    assert f"truncated or corrupt (an element of type {stored} where the numbers of x[0] should be)" in message
    assert message.endswith("; replace it by an intact copy of the published file")


def test_what_an_array_may_not_be() -> None:
    def cell(inner: bytes) -> str:
        return failure(file_of(array("<", 1, (1, 1), inner, name=b"x")))

    def text(name: bytes = b"") -> bytes:
        return array("<", 4, (1, 2), element("<", 4, b"h\x00i\x00"), name=name)

    numbers = element("<", 2, bytes(6))
    assert "x[0] must be a matrix of real numbers, got text; convert it" in cell(text())
    assert "got 2 x 3 complex numbers" in cell(array("<", 6, (2, 3), numbers, numbers, flags=0x800))
    assert "got 1 x 2 x 3 real numbers" in cell(array("<", 6, (1, 2, 3), numbers))
    assert "got 1 x 1 cells" in cell(array("<", 1, (1, 1), matrix_of()))
    assert "got nothing; convert it" in cell(element("<", 14, b""))  # a cell that was never filled
    assert "got a struct" in cell(array("<", 2, (1, 1)))
    assert "got an array of class 17" in cell(array("<", 17, (1, 1)))
    many = failure(file_of(array("<", 1, (2**31 - 1,) * 32, name=b"x")))
    assert "x: expected at most 100,000 cells, got 2147483647 x 2147483647 x" in many
    assert "x must be a cell array of matrices, got text" in failure(file_of(text(b"x")))
    assert "x must be a cell array of matrices, got 2 x 3 real numbers" in failure(file_of(matrix_of(name=b"x")))


NUMBERS_OF_SIX = element("<", 2, bytes(6))


@pytest.mark.parametrize(
    ("variable", "said"),
    [
        (array("<", 1, (1, 2), matrix_of(), name=b"x"), "x has 1 x 2 cells, but 1 are there"),
        (array("<", 1, (1, 1), matrix_of(), matrix_of(), name=b"x"), "x has 1 x 1 cells, but more are there"),
        (array("<", 1, (2**31 - 1,) * 33, name=b"x"), "8 bytes of flags and 132 of sizes"),
        (array("<", 1, (1, -1), matrix_of(), name=b"x"), "an array of 1 x -1 cells"),
        (array("<", 1, (1,), matrix_of(), name=b"x"), "8 bytes of flags and 4 of sizes"),
        (array("<", 1, (1, 1), NUMBERS_OF_SIX, name=b"x"), "an element of type 2 where a cell should be"),
        (array("<", 1, (1, 1), array("<", 6, (2, 4), NUMBERS_OF_SIX), name=b"x"), "x[0] has 2 x 4 real numbers, but"),
        (array("<", 1, (1, 1), array("<", 6, (2**31 - 1,) * 2, NUMBERS_OF_SIX), name=b"x"), "but not the bytes"),
        (array("<", 1, (1, 1), array("<", 6, (2, 3), NUMBERS_OF_SIX * 2), name=b"x"), "but not the bytes"),
        (array("<", 1, (1, 1), array("<", 6, (2, 3)), name=b"x"), "type 0 where the numbers of x[0] should be"),
        (array("<", 1, (1, 1), matrix_of(), name=b"x") * 2, "two variables x"),
        (NUMBERS_OF_SIX, "type 2 where a variable should be"),
        (bytes(64), "type 0 where a variable should be"),
        (deflated("<", array("<", 1, (1, 1), matrix_of(), name=b"x"))[:-3], "more than there are"),
        (deflated("<", matrix_of() * 2), "a compressed element holds more than one array"),
        (deflated("<", NUMBERS_OF_SIX), "type 2 where one of type 14 should be"),
        (element("<", 15, zlib.compress(matrix_of()) + bytes(8)), "does not end where it should"),
        (element("<", 15, zlib.compress(matrix_of())[:-8]), "does not end where it should"),
        (element("<", 15, b"not deflated"), "Error -3"),
        (struct.pack("<II", 14, 2**32 - 1), "an element of 4294967295 bytes, more than there are"),
        (struct.pack("<II", 5 << 16 | 2, 0), "an element of 5 bytes, more than there are"),
        (b"\x0e\x00\x00", "3 bytes where a tag has 8"),
    ],
)
def test_a_number_that_does_not_fit_the_bytes(variable: bytes, said: str) -> None:
    message = failure(file_of(variable))
    assert "expected a MATLAB 5 file, but it is truncated or corrupt" in message
    assert said in message


def test_another_version() -> None:
    content = file_of(matrix_of(name=b"x"))
    assert "save it with MATLAB's option -v6 or -v7" in failure(content[:124] + b"\x00\x02IM" + content[128:])
    assert "its header is another" in failure(content[:124] + b"\x00\x03IM" + content[128:])


def test_what_a_file_inflates_to_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Over all its variables; and no more is inflated than that."""
    numbers = element("<", 2, bytes(40_000))
    cell = array("<", 6, (200, 200), numbers)
    variables = [deflated("<", array("<", 1, (1, 1), cell, name=name)) for name in (b"x", b"y")]
    assert sum(map(len, variables)) < 1000
    monkeypatch.setattr(matlab, "MOST_INFLATED", 81_000)
    assert list(read_cell_arrays(file_of(*variables), "xy", "a.mat")) == ["x", "y"]
    monkeypatch.setattr(matlab, "MOST_INFLATED", 79_000)
    assert "more than 79,000 bytes when inflated" in failure(file_of(*variables), "xy")


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("order", ["<", ">"])
def test_no_damage_is_more_than_one_line(compress: bool, order: str) -> None:
    """A file cut off at every byte; every byte with any one bit, or all, turned."""
    cells = array(order, 1, (1, 2), matrix_of(order), matrix_of(order, 9, bytes(48)), name=b"x")
    whole = file_of(deflated(order, cells) if compress else cells, order=order)
    assert len(read_cell_arrays(whole, "x", "a.mat")["x"]) == 2
    messages = []
    for at in range(len(whole)):
        damaged = [whole[:at]]
        for bits in (1, 2, 4, 8, 16, 32, 64, 128, 255):
            damaged.append(whole[:at] + bytes([whole[at] ^ bits]) + whole[at + 1 :])
        for content in damaged:
            try:
                found = read_cell_arrays(content, "x", "a.mat")
            except DataError as error:
                messages.append(str(error))
            else:
                assert all(matrix.ndim == 2 for matrices in found.values() for matrix in matrices)
    assert len(messages) > len(whole)
    assert not [message for message in messages if "\n" in message or not message.startswith("a.mat: ")]
