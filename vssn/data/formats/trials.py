"""HDF5: trials [N, T, channels], as LFADS and its successors have them.

train_data, valid_data, test_data    also train_encod_data and so on (lfads-torch)
train_ext_input, ...                 controls from outside, [N, T, U]
x, u, mask, lengths, x_train, ...    as in `vssn.data.formats.arrays`
any other name                       the only array of numbers with three axes in the file, or the one that `key` names
"""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any

import numpy as np

from vssn.data.formats.arrays import assemble
from vssn.data.formats.base import Source, damaged
from vssn.errors import DataError, shorten
from vssn.utils.packages import needing

SUFFIXES = (".h5", ".hdf5", ".hdf")
_LFADS = re.compile(r"(train|valid|test)_(data|encod_data|ext_input)")
_LARGE = 1 << 28  # bytes of an array
_MOST_PACKED = 5000  # bytes in one: of deflate, the most usual filter, 1032
_OWN = re.compile(r"(x|u|mask|lengths)(_(train|valid|test))?(_\d+)?")


def read_trials(path: Path, *, key: str | None = None) -> Source:
    """Raises DataError.

    Args:
        key: the name of the array in the file, with its groups: "session/spikes".
    """
    with needing("files", DataError):
        h5py: Any = importlib.import_module("h5py")
    arrays: dict[str, np.ndarray[Any, Any]] = {}
    try:
        with h5py.File(path, "r") as file:
            shapes: dict[str, tuple[int, ...]] = {}

            def visit(name: str, entry: Any) -> None:
                if isinstance(entry, h5py.Dataset) and entry.dtype.kind in "biuf":
                    shapes[name] = entry.shape

            file.visititems(visit)
            for name, of in _chosen(path, shapes, key).items():
                _require_stored(path, file[name])
                arrays[of] = file[name][()]
    except DataError:
        raise
    except Exception as error:  # whatever the damaged bytes lead the reader to
        raise damaged(path, "an HDF5 file", error) from None
    return assemble(path, arrays, "trials")


def _require_stored(path: Path, array: Any) -> None:
    """Raises DataError for an array that is not in the file as far as it says: numbers that are not there would be made
    up, and could take all memory."""
    least = array.nbytes / _MOST_PACKED
    if array.nbytes > _LARGE and array.id.get_storage_size() < least:
        raise DataError(
            f"{path}: {array.name}: expected the numbers of {list(array.shape)}, {array.nbytes:,} bytes, got "
            f"{array.id.get_storage_size():,} bytes of them; write it anew"
        )


def _chosen(path: Path, shapes: dict[str, tuple[int, ...]], key: str | None) -> dict[str, str]:
    """What is read: the name in the file, and the name that it goes by. Raises DataError."""
    listed = shorten([f"{name} {list(shape)}" for name, shape in shapes.items()], "no array of numbers")
    if key is not None:
        if key not in shapes:
            raise DataError(f"{path}: key: expected one of {listed}, got {key!r}")
        return {key: "x"}
    found: dict[str, str] = {}
    for name in shapes:
        if match := _LFADS.fullmatch(name):
            of = f"{'u' if match[2] == 'ext_input' else 'x'}_{match[1]}"
            if of in found.values():  # both the data and what the encoder sees of it
                raise DataError(f"{path}: expected {match[1]}_data or {match[1]}_encod_data, got both; name one in key")
            found[name] = of
        elif _OWN.fullmatch(name):
            found[name] = name
    if any(of.startswith("x") for of in found.values()):
        return found
    whole = [name for name, shape in shapes.items() if len(shape) == 3]
    if len(whole) != 1:
        raise DataError(f"{path}: expected train_data and valid_data, or x [N, T, X], got {listed}; name one in key")
    return {whole[0]: "x"}
