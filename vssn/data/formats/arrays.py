"""Arrays of NumPy: `.npz` and `.npy`. Nothing is unpickled.

    x [N, T, X]         N sequences of T frames; [T, X] is one sequence, [T] one of a single feature
    u [N, T, U]         controls from outside, where there are any
    mask                of x's shape, or without its last axis: True, or 1, where x is observed
    lengths [N]         frames of each sequence; what stands behind is padding
    x_0, x_1, ...       sequences [T_i, X] of different lengths, with u_0, mask_0 and so on
    x_train, x_valid, x_test, u_train, x_train_0, ...    the same for the parts of a set that is split already

A `.npy` file holds x; an `.npz` file of a single array holds x whatever its name is.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vssn.data.formats.base import PARTS, Source, as_frames, damaged, joined, numbered
from vssn.errors import DataError, shorten

SUFFIXES = (".npz", ".npy")
_KEY = re.compile(r"(x|u|mask|lengths)(?:_(train|valid|test))?(?:_(\d+))?")
_RAGGED = "save sequences of different lengths as x_0, x_1, ... with np.savez, or pad them and add lengths"

Array = np.ndarray[Any, Any]


def read_arrays(path: Path) -> Source:
    """Raises DataError."""
    return assemble(path, load(path), "arrays")


def load(path: Path) -> dict[str, Array]:
    """The arrays of a file by their names; that of a `.npy` file is x. Raises DataError."""
    try:
        content = np.load(path, allow_pickle=False)
        if isinstance(content, np.ndarray):
            return {"x": content}
        with content:
            arrays = {name: content[name] for name in content.files}
        for name, array in arrays.items():
            if not isinstance(array, np.ndarray):
                raise DataError(f"{path}: expected arrays alone, got the file {name!a} beside them; leave it out")
        return arrays
    except DataError:
        raise
    except ValueError as error:
        if "allow_pickle" in str(error) or "pickle" in str(error).lower():
            raise DataError(
                f"{path}: expected arrays of numbers, got an array of objects or a pickle, which is not read as it "
                f"could run code; {_RAGGED}"
            ) from None
        raise damaged(path, "a NumPy file", error) from None
    except Exception as error:  # whatever the damaged bytes lead the reader to
        raise damaged(path, "a NumPy file", error) from None


def assemble(path: Path, arrays: Mapping[str, Array], kind: str) -> Source:
    """The sequences that arrays by the names above make. Raises DataError."""
    if len(arrays) == 1 and not any(_KEY.fullmatch(name) for name in arrays):
        arrays = {"x": next(iter(arrays.values()))}
    groups: dict[tuple[str, str], dict[int | None, str]] = {}  # (part or "", letter) -> number -> name
    for name in arrays:
        if found := _KEY.fullmatch(name):
            number = None if found[3] is None else int(found[3])
            groups.setdefault((found[2] or "", found[1]), {})[number] = name
    parts = [part for part in ("", *PARTS) if (part, "x") in groups]
    if not parts:
        raise DataError(
            f"{path}: expected an array x [N, T, X], or x_0, x_1, ..., or x_train and so on, got "
            f"{shorten([repr(name) for name in arrays], 'no array')}; name the frames x"
        )
    if "" in parts and len(parts) > 1:
        raise DataError(f"{path}: expected x alone, or x_train, x_valid and x_test, got both; leave one out")
    sources = [_part(path, arrays, groups, part, kind) for part in parts]
    return joined(sources)


def _part(
    path: Path,
    arrays: Mapping[str, Array],
    groups: Mapping[tuple[str, str], Mapping[int | None, str]],
    part: str,
    kind: str,
) -> Source:
    def listed(letter: str) -> list[tuple[str, Array]] | None:
        """(name, array) of every sequence."""
        names = groups.get((part, letter))
        if names is None:
            return None
        if None in names and len(names) > 1:
            raise DataError(f"{path}: expected {names[None]} or numbered arrays, got both; leave one out")
        for name in names.values():
            if arrays[name].ndim not in (1, 2, 3):
                shape = list(arrays[name].shape)
                raise DataError(f"{path}: {name}: expected [N, T, features] or [T, features], got {shape}")
        if None not in names:
            return [(names[number], arrays[names[number]]) for number in sorted(names, key=lambda key: key or 0)]
        name = names[None]
        return [(f"{name}{f'[{index}]' if many else ''}", row) for index, row in enumerate(rows_of(name, letter))]

    x_names = groups[part, "x"]
    many = None in x_names and arrays[x_names[None]].ndim >= 3

    def rows_of(name: str, letter: str) -> list[Array]:
        array = arrays[name]
        if not many:
            return [array]
        if letter != "lengths" and array.ndim < (2 if letter == "mask" else 3):
            raise DataError(f"{path}: {name}: expected a first axis [N] as x has, got {list(array.shape)}")
        return list(array)

    frames = listed("x") or []
    if not frames:
        raise DataError(f"{path}: {x_names[None]}: expected one sequence at least, got none")
    counted = {letter: found for letter in ("u", "mask") if (found := listed(letter)) is not None}
    lengths = _lengths(path, arrays, groups.get((part, "lengths")), len(frames))
    for letter, found in counted.items():
        if len(found) != len(frames):
            raise DataError(f"{path}: {letter}: expected one for each of {len(frames)} sequences, got {len(found)}")
    xs, us, names = [], [], []
    for index, (name, array) in enumerate(frames):
        where = f"{path}: {name}"
        length = len(array) if lengths is None else lengths[index]
        if length > len(array):
            raise DataError(f"{path}: lengths: expected at most {len(array)} for {name}, got {length}")
        x = as_frames(where, _columns(array)[:length])
        if "mask" in counted:
            x[~_mask(f"{path}: {counted['mask'][index][0]}", counted["mask"][index][1], array)[:length]] = torch.nan
        xs.append(x)
        if "u" in counted:
            u_name, u = counted["u"][index]
            if len(u) != len(array):
                raise DataError(f"{path}: {u_name}: expected {len(array)} frames as {name} has, got {len(u)}")
            us.append(as_frames(f"{path}: {u_name}", _columns(u)[:length], missing=False))
        names.append(path.stem if len(frames) == 1 and not part else name)
    for letter, part_frames in (("x", xs), ("u", us)):
        widths = [frames.shape[1] for frames in part_frames]
        if len(set(widths)) > 1:
            other = next(index for index, width in enumerate(widths) if width != widths[0])
            raise DataError(
                f"{path}: expected {letter} of {widths[0]} features as in {names[0]}, got {widths[other]} in "
                f"{names[other]}"
            )
    return Source(
        x=xs,
        u=us or None,
        names=names,
        channels=numbered("x", xs[0].shape[1]),
        controls=numbered("u", us[0].shape[1]) if us else [],
        times=None,
        step=None,
        kind=kind,
        parts=[part] * len(xs) if part else None,
    )


def _columns(array: Array) -> Array:
    """[T] as [T, 1]."""
    return array[:, None] if array.ndim == 1 else array


def _mask(where: str, mask: Array, x: Array) -> Tensor:
    """[T, X] bool."""
    if mask.dtype.kind not in "biuf" or not np.isin(mask, (0, 1)).all():
        raise DataError(f"{where}: expected True and False, or 1 and 0, where x is observed, got other values")
    if mask.shape not in (x.shape, x.shape[:1]):
        raise DataError(f"{where}: expected the shape {list(x.shape)} of x, or {list(x.shape[:1])}, got {mask.shape}")
    full = np.broadcast_to(_columns(mask).astype(bool), _columns(x).shape)
    return torch.from_numpy(full.copy())


def _lengths(
    path: Path, arrays: Mapping[str, Array], names: Mapping[int | None, str] | None, count: int
) -> list[int] | None:
    if names is None:
        return None
    array = arrays[next(iter(names.values()))].reshape(-1)
    whole = array.dtype.kind in "iu"
    if not whole or len(array) != count or (array < 1).any():
        raise DataError(
            f"{path}: lengths: expected {count} whole numbers of at least 1, one for each sequence, got "
            f"{len(array)} of {array.dtype}{f', {array.min()} among them' if whole and len(array) else ''}"
        )
    return [int(length) for length in array]
