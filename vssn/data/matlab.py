"""MATLAB 5 files (`.mat`), as far as the music sets go: cell arrays of real matrices, plain or compressed.

The form is The MathWorks' "MAT-File Format", level 5: a header of 128 bytes, then data elements, one after another. An
element is a tag (what it holds, how many bytes) and its data, filled up to a multiple of 8 bytes. An array is an
element of elements: flags, sizes and name, then its numbers column by column, or an array for each cell.

No number of a file is trusted. SciPy's reader does: it looks an unknown type up beside its table, and the process ends.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Collection, Iterator
from typing import Any, NamedTuple

import numpy as np

from vssn.errors import DataError

Matrix = np.ndarray[Any, Any]
Elements = Iterator[tuple[int, memoryview]]

MOST_INFLATED = 1 << 28  # bytes in all; the largest of the music sets has 35 million
_MOST_CELLS = 100_000  # of a variable; the largest of the music sets has 694
_MOST_SIZES = 32  # of an array
_HEADER = 128
_NOTHING = (0, memoryview(b""))

# What an element holds.
_NUMBERS = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
_INT8, _INT32, _UINT32, _MATRIX, _COMPRESSED = 1, 5, 6, 14, 15

# What an array is.
_CELLS, _NUMERIC = 1, range(6, 16)
_OTHERS = {2: "a struct", 3: "an object", 4: "text", 5: "a sparse matrix"}
_COMPLEX = 0x800


class _DamagedError(Exception):
    """What does not fit, in words."""


class _Head(NamedTuple):
    kind: int
    is_complex: bool
    sizes: tuple[int, ...]
    name: str

    def __str__(self) -> str:
        sizes = " x ".join(map(str, self.sizes[:8]))
        if self.kind == _CELLS:
            return f"{sizes} cells"
        if self.kind in _NUMERIC:
            return f"{sizes} {'complex' if self.is_complex else 'real'} numbers"
        return _OTHERS.get(self.kind, f"an array of class {self.kind}")


def read_cell_arrays(content: bytes, names: Collection[str], where: str) -> dict[str, list[Matrix]]:
    """The variables of these names that a file has: of each, the matrices in its cells, column by column. A matrix has
    the dtype in which it is stored.

    Args:
        where: the file's name, for errors.

    Raises:
        DataError: the file is of another form, or damaged; one of these variables holds anything else.
    """
    try:
        return _File(content, where).variables(names)
    except (_DamagedError, zlib.error) as error:
        raise DataError(
            f"{where}: expected a MATLAB 5 file, but it is truncated or corrupt ({error}); replace it by an intact "
            "copy of the published file"
        ) from None


class _File:
    def __init__(self, content: bytes, where: str) -> None:
        form = content[_HEADER - 4 : _HEADER]  # the version, and by its order that of all bytes
        if form in (b"\x00\x02IM", b"\x02\x00MI"):
            raise DataError(
                f"{where}: expected a MATLAB 5 file, got a newer form; save it with MATLAB's option -v6 or -v7"
            )
        if form not in (b"\x00\x01IM", b"\x01\x00MI"):
            raise _DamagedError("its header is another")
        self.order, self.where = "<" if form.endswith(b"IM") else ">", where
        self.content = memoryview(content)[_HEADER:]
        self.left = MOST_INFLATED

    def variables(self, names: Collection[str]) -> dict[str, list[Matrix]]:
        found: dict[str, list[Matrix]] = {}
        for kind, data in self.elements(self.content):
            if kind not in (_MATRIX, _COMPRESSED):
                raise _DamagedError(f"an element of type {kind} where a variable should be")
            parts = self.elements(data if kind == _MATRIX else self.inflated(data))
            head = self.head(parts)
            if head.name in found:
                raise _DamagedError(f"two variables {head.name}")
            if head.name in names:
                found[head.name] = self.cells(parts, head)
        return found

    def cells(self, parts: Elements, head: _Head) -> list[Matrix]:
        if head.kind != _CELLS:
            raise DataError(f"{self.where}: {head.name} must be a cell array of matrices, got {head}; convert it")
        if math.prod(head.sizes) > _MOST_CELLS:
            raise DataError(f"{self.where}: {head.name}: expected at most {_MOST_CELLS:,} cells, got {head}")
        found: list[Matrix] = []
        for kind, data in parts:
            if len(found) == math.prod(head.sizes):
                raise _DamagedError(f"{head.name} has {head}, but more are there")
            if kind != _MATRIX:
                raise _DamagedError(f"an element of type {kind} where a cell should be")
            found.append(self.matrix(data, f"{head.name}[{len(found)}]"))
        if len(found) != math.prod(head.sizes):
            raise _DamagedError(f"{head.name} has {head}, but {len(found)} are there")
        return found

    def matrix(self, data: memoryview, name: str) -> Matrix:
        parts = self.elements(data)
        head = self.head(parts) if data else None  # a cell that was never filled
        if head is None or head.kind not in _NUMERIC or head.is_complex or len(head.sizes) != 2:
            got = head or "nothing"
            raise DataError(f"{self.where}: {name} must be a matrix of real numbers, got {got}; convert it")
        kind, numbers = next(parts, _NOTHING)
        if kind not in _NUMBERS:
            raise _DamagedError(f"an element of type {kind} where the numbers of {name} should be")
        dtype = np.dtype(self.order + _NUMBERS[kind])
        if len(numbers) != math.prod(head.sizes) * dtype.itemsize or next(parts, None):
            raise _DamagedError(f"{name} has {head}, but not the bytes of so many {dtype.name}")
        return np.ndarray(head.sizes, dtype, numbers, order="F").astype(dtype.newbyteorder("="))

    def head(self, parts: Elements) -> _Head:
        flags, sizes, name = (self.take(parts, kind) for kind in (_UINT32, _INT32, _INT8))
        if len(flags) != 8 or len(sizes) not in range(8, 4 * _MOST_SIZES + 1, 4):
            raise _DamagedError(f"{len(flags)} bytes of flags and {len(sizes)} of sizes")
        word, _ = struct.unpack(f"{self.order}II", flags)
        head = _Head(
            kind=word & 0xFF,
            is_complex=bool(word & _COMPLEX),
            sizes=struct.unpack(f"{self.order}{len(sizes) // 4}i", sizes),
            name=bytes(name).decode("latin-1"),
        )
        if min(head.sizes) < 0:
            raise _DamagedError(f"an array of {head}")
        return head

    def take(self, parts: Elements, wanted: int) -> memoryview:
        kind, data = next(parts, _NOTHING)
        if kind != wanted:
            raise _DamagedError(f"an element of type {kind} where one of type {wanted} should be")
        return data

    def inflated(self, data: memoryview) -> memoryview:
        """The array in a compressed element."""
        inflater = zlib.decompressobj()
        whole = inflater.decompress(data, self.left + 1)
        self.left -= len(whole)
        if self.left < 0:
            raise _DamagedError(f"more than {MOST_INFLATED:,} bytes when inflated")
        if not inflater.eof or inflater.unused_data:
            raise _DamagedError("a compressed element does not end where it should")
        parts = self.elements(memoryview(whole))
        array = self.take(parts, _MATRIX)
        if next(parts, None):
            raise _DamagedError("a compressed element holds more than one array")
        return array

    def elements(self, data: memoryview) -> Elements:
        """What each holds and its data. A small one has both in 8 bytes: 2 of the type, 2 of the size, 4 of data."""
        at = 0
        while at < len(data):
            if len(data) - at < 8:
                raise _DamagedError(f"{len(data) - at} bytes where a tag has 8")
            kind, size = struct.unpack_from(f"{self.order}II", data, at)
            if small := kind >> 16:
                kind, size = kind & 0xFFFF, small
            start = at + 4 if small else at + 8
            if size > (4 if small else len(data) - start):
                raise _DamagedError(f"an element of {size} bytes, more than there are")
            end = start + size
            yield kind, data[start:end]
            at = end if kind in (_MATRIX, _COMPRESSED) else end + (at - end) % 8
