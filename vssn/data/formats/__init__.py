"""Data of one's own from files: `read(path)` finds the form and returns a `Source`."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from vssn.data.folder import entries, files_below
from vssn.data.formats import arrays, films, midi, recordings, tables, trials
from vssn.data.formats.base import KINDS, Source, joined, part_folders
from vssn.errors import DataError, shorten
from vssn.utils.checks import require_path
from vssn.utils.values import one_word_of_rounding
from vssn_kernels.arguments import shown

__all__ = ["KINDS", "Source", "options_of", "read", "read_like"]

Reader = Callable[..., Source]

# One file a form: the endings of its files and the reader of one. NumPy's hold films where they have more axes.
READERS: dict[str, tuple[tuple[str, ...], Reader]] = {
    "table": (tables.SUFFIXES, tables.read_table),
    "arrays": (arrays.SUFFIXES, arrays.read_arrays),
    "trials": (trials.SUFFIXES, trials.read_trials),
    "midi": (midi.SUFFIXES, midi.read_midi),
    "audio": (recordings.SUFFIXES, recordings.read_recording),
    "film": (films.SUFFIXES, films.read_film),
}


@one_word_of_rounding()
def read(path: str | os.PathLike[str], *, format: str | None = None, **options: Any) -> Source:
    """The sequences of a file or a folder.

    A folder with the folders train, valid and test is split already. A folder of tables or arrays holds a sequence, or
    several, a file.

    Args:
        path: of the file or folder.
        format: one of KINDS; None: by what is there.
        options: of the form, the keyword arguments of its reader (`vssn.data.formats.tables.read_table`, say); None: as
            if left out.

    Raises:
        DataError: one line that names the file, and the row or the column; an option that the form does not have.
    """
    require_path("path", path)
    place = Path(os.path.expanduser(path))
    if format is not None and (not isinstance(format, str) or format not in KINDS):
        raise DataError(f"format: expected one of {', '.join(KINDS)}, got {shown(format)}")
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
        data: the section `data` of the run's configuration. Of another set than `files`, and where the path is a file
            of another form, it is read by what is there.
        path: of the file or folder.

    Raises:
        DataError: as `read`; its features or controls are not as many as the run's.
    """
    names = ["format", *(name for kind in KINDS for name in options_of(kind))]
    settings = {name: getattr(data, name, None) for name in names} if getattr(data, "set", "") == "files" else {}
    place, kind = Path(os.path.expanduser(path)), settings.get("format")
    if kind is not None and place.is_file() and not place.name.lower().endswith(READERS[kind][0]):
        settings = {}
    source = read(path, **settings)
    for name, letter, came in (("x_size", "x", source.x_size), ("control_size", "u", source.control_size)):
        wanted = dict(zip(("x_size", "control_size"), data.sizes, strict=True))[name]
        if wanted is not None and wanted != came:
            raise DataError(f"{path}: expected {letter} of {wanted} features as the run has, got {came}")
    return source


def options_of(kind: str) -> list[str]:
    """The options of a form."""
    parameters = inspect.signature(READERS[kind][1]).parameters
    return [name for name, of in parameters.items() if of.kind is of.KEYWORD_ONLY]


def _read(place: Path, format: str | None, options: Mapping[str, Any]) -> Source:
    kind, files = _files(place, format)
    suffixes, reader = READERS[kind]
    known = options_of(kind)
    for name in options:
        if name not in known:
            has = f"has {', '.join(known)}" if known else "has no options"
            raise DataError(f"{name}: expected an option of the form {kind}, which {has}; leave it out")
    if not files:
        raise DataError(f"{place}: expected files of the form {kind} ({', '.join(suffixes)}), found none")
    return joined([reader(file, **options) for file in files])


def _files(place: Path, format: str | None) -> tuple[str, list[Path]]:
    """The form, and what is read: each file of a folder and of those below it, each folder of pictures. Raises
    DataError."""
    if not place.is_dir():
        return format or _kind_of(place, [place]), [place]
    if format in (None, "film") and films.is_film_folder(place):
        return "film", [place]
    if format in (None, "film"):
        pictures = [entry for entry in entries(place) if entry.is_dir() and films.is_film_folder(entry)]
        if pictures:
            return "film", pictures
    files = sorted(files_below(place))
    kind = format or _kind_of(place, files)
    return kind, [file for file in files if file.name.lower().endswith(READERS[kind][0])]


def _kind_of(place: Path, files: list[Path]) -> str:
    """By the endings of the files. Raises DataError."""
    found: dict[str, Path] = {}
    for file in files:
        kinds = [kind for kind, (suffixes, _) in READERS.items() if file.name.lower().endswith(suffixes)]
        if kinds and kinds[0] not in found:
            found[kinds[0]] = file
    if len(found) > 1:
        raise DataError(f"{place}: expected files of one form, got {' and '.join(found)}; name it in format")
    if not found:
        endings = ", ".join(suffix for suffixes, _ in READERS.values() for suffix in suffixes)
        names = shorten([file.name for file in files], "nothing")
        raise DataError(f"{place}: expected data ({endings}), found {names}; name the file, or a folder of such files")
    kind, first = next(iter(found.items()))
    return "film" if kind == "arrays" and films.holds_films(first) else kind
