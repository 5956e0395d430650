"""Data of one's own from files: `read(path)` finds the form and returns a `Source`."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from vssn.data.folder import entries
from vssn.data.formats import arrays, tables
from vssn.data.formats.base import KINDS, Source, joined, part_folders
from vssn.errors import DataError, shorten

__all__ = ["KINDS", "Source", "read", "read_like"]

Reader = Callable[..., Source]

# One file a form: the kind, the endings of its files and the reader of one.
_FILES: tuple[tuple[str, tuple[str, ...], Reader], ...] = (
    ("table", tables.SUFFIXES, tables.read_table),
    ("arrays", arrays.SUFFIXES, arrays.read_arrays),
)


def read(path: str | os.PathLike[str], *, format: str | None = None, **options: Any) -> Source:
    """The sequences of a file or a folder.

    A folder with the folders train, valid and test is split already. A folder of tables or arrays holds a sequence, or
    several, a file.

    Args:
        path: of the file or folder.
        format: one of KINDS; None: by what is there.
        options: of the form; None: as if left out. Those of tables are in `vssn.data.formats.tables.read_table`.

    Raises:
        DataError: one line that names the file, and the row or the column; an option that the form does not have.
    """
    place = Path(os.path.expanduser(path))
    if format is not None and format not in KINDS:
        raise DataError(f"format: expected one of {', '.join(KINDS)}, got {format!r}")
    if not place.exists():
        raise DataError(f"{path}: expected a file or a folder with data, but there is none; check the path")
    given = {name: value for name, value in options.items() if value is not None}
    if place.is_dir() and (folders := part_folders(place)):
        sources = []
        for part, folder in folders.items():
            source = _read(folder, format, given)
            names = [f"{part}/{name}" for name in source.names]
            sources.append(replace(source, names=names, parts=[part] * len(source.x)))
        return joined(sources)
    return _read(place, format, given)


def read_like(data: Any, path: str | os.PathLike[str]) -> Source:
    """Other data, as a run read its own.

    Args:
        data: the section `data` of the run's configuration, of the set `files`; of another set the path is read by what
            is there.
        path: of the file or folder.

    Raises:
        DataError: as `read`; its features or controls are not as many as the run's.
    """
    options = dict(data.reading()) if hasattr(data, "reading") else {}
    source = read(path, **options)
    for name, letter, came in (("x_size", "x", source.x_size), ("control_size", "u", source.control_size)):
        wanted = dict(zip(("x_size", "control_size"), data.sizes, strict=True))[name]
        if wanted is not None and wanted != came:
            raise DataError(f"{path}: expected {letter} of {wanted} features as the run has, got {came}")
    return source


def _read(place: Path, format: str | None, options: Mapping[str, Any]) -> Source:
    files = entries(place) if place.is_dir() else [place]
    kind = format or _kind_of(place, files)
    for name, suffixes, reader in _FILES:
        if name == kind:
            chosen = [file for file in files if file.name.lower().endswith(suffixes)] if place.is_dir() else files
            _require_some(place, chosen, kind, suffixes)
            return joined([_call(reader, kind, file, options) for file in chosen])
    raise AssertionError(kind)


def _require_some(place: Path, files: list[Path], kind: str, suffixes: tuple[str, ...]) -> None:
    if not files:
        raise DataError(f"{place}: expected files of the form {kind} ({', '.join(suffixes)}), found none")


def _call(reader: Reader, kind: str, path: Path, options: Mapping[str, Any]) -> Source:
    known = [name for name, of in inspect.signature(reader).parameters.items() if of.kind is of.KEYWORD_ONLY]
    for name in options:
        if name not in known:
            has = f"has {', '.join(known)}" if known else "has no options"
            raise DataError(f"{name}: expected an option of the form {kind}, which {has}; leave it out")
    return reader(path, **options)


def _kind_of(place: Path, files: list[Path]) -> str:
    """By the endings of the files. Raises DataError."""
    kinds = {
        kind: file
        for file in files
        for kind, suffixes, _ in _FILES
        if file.is_file() and file.name.lower().endswith(suffixes)
    }
    if len(kinds) > 1:
        raise DataError(
            f"{place}: expected files of one form, got {' and '.join(kind for kind in kinds)}; name it in format"
        )
    if not kinds:
        endings = ", ".join(suffix for _, suffixes, _ in _FILES for suffix in suffixes)
        found = shorten([file.name for file in files], "nothing")
        raise DataError(f"{place}: expected data ({endings}), found {found}; name the file, or a folder of such files")
    return next(iter(kinds))
