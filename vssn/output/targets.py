"""Where the results of a command go: one file, whose suffix says what is wanted, or a folder with all that is usual."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from vssn.data.folder import files_below
from vssn.data.formats import READERS
from vssn.data.formats.films import PICTURES
from vssn.errors import TargetError
from vssn.utils.command import check_folder, check_target, of_user, writing

# What a result can be, and what of it stands in a folder, by the kind of the data.
_TABLES = (".csv", ".parquet", ".npz", ".png")
_FORMS = {
    "table": (_TABLES, (".csv", ".png")),
    "arrays": (_TABLES, (".npz", ".png")),
    "trials": (_TABLES, (".npz", ".png")),
    "midi": ((".mid", ".wav", ".png", ".npz"), (".mid", ".wav", ".png")),
    "audio": ((".wav", ".npz"), (".wav",)),
    "film": ((".gif", ".png", ".npz"), (".gif", ".png")),
}
LATENTS = SCORES = ((".csv", ".parquet", ".npz"), (".csv",))
_OF_EACH = (".png", ".mid", ".wav", ".gif")  # a file for each sequence
MOST_PICTURES = 24  # of a folder: charts, rolls and strips of the first sequences
_Sources = Mapping[tuple[int, int], str]  # files that were read, in words, by device and number on it


class Target(NamedTuple):
    """Where to write, and what."""

    option: str  # that named it
    folder: Path
    file: Path | None  # the one file; None: several in the folder
    suffixes: tuple[str, ...]
    sources: _Sources = MappingProxyType({})  # what was read, which nothing is written over

    def of_all(self, stem: str, suffix: str) -> Path | None:
        """The file for all sequences together; None where that suffix is not wanted. Raises TargetError."""
        if suffix not in self.suffixes:
            return None
        return self._not_read(self.file or self.folder / f"{stem}{suffix}")

    def of_each(self, names: Sequence[str], suffix: str) -> list[Path]:
        """A file for each sequence, none where that suffix is not wanted. Of pictures those of the first sequences.

        Raises:
            TargetError: one file is wanted, of several sequences; or one was read.
        """
        if suffix not in self.suffixes:
            return []
        if self.file is not None:
            if len(names) > 1:
                raise TargetError(
                    f"{self.option}: expected a folder for {len(names)} sequences, got the file {self.file}; name a "
                    "folder, or take one sequence by --first 1"
                )
            return [self._not_read(self.file)]
        stems = _stems(names)
        shown = stems[:MOST_PICTURES] if suffix == ".png" else stems
        return [self._not_read(self.folder / f"{stem}{suffix}") for stem in shown]

    def _not_read(self, path: Path) -> Path:
        """The path. Raises TargetError: it is of a file that was read."""
        with contextlib.suppress(OSError):  # it is not there
            status = path.stat()
            source = self.sources.get((status.st_dev, status.st_ino))
            if source is not None:
                raise _was_read(self.option, path, source)
        return path


def choose(
    option: str,
    path: Path,
    kind: str,
    count: int,
    forms: tuple[tuple[str, ...], tuple[str, ...]] | None = None,
    sources: Mapping[str, str | None] = MappingProxyType({}),
    stems: Sequence[str] = (),
    names: Sequence[str] = (),
) -> Target:
    """What `path` asks for; a folder is made.

    Args:
        kind: of the data, a key of the forms above.
        count: sequences.
        forms: suffixes that a file can have, and those of a folder, in the place of the kind's.
        sources: what was read, by the option that named it: nothing is written over such a file, nor over one of data
            in such a folder.
        stems, names: of a folder, the files of all sequences and those of each that will be written there.

    Raises:
        TargetError: a suffix that the kind does not have, a place that cannot be written, or what was read.
    """
    possible, usual = forms or _FORMS[kind]
    read = _files_of(sources, kind)
    if path.is_dir() or not path.suffix:
        target = Target(option, path, None, usual, read)
        for suffix in usual:
            for stem in _stems(stems):
                target.of_all(stem, suffix)
            if suffix in _OF_EACH:
                target.of_each(names, suffix)
        with writing(option, path):
            check_folder(path)
        return target
    suffix = path.suffix.lower()
    if suffix not in possible:
        raise TargetError(
            f"{option}: expected a folder or a file of {', '.join(possible)} for data of the kind {kind}, got "
            f"{path.name}; choose one of them"
        )
    check_target(option, path)
    target = Target(option, path.parent, path, (suffix,), read)
    target.of_all("", suffix)
    if suffix in _OF_EACH:
        target.of_each([""] * count, suffix)
    return target


def check_file(option: str, path: Path, sources: Mapping[str, str | None]) -> None:
    """Of scores, a JSON file.

    Raises:
        TargetError: it cannot be written, it was read, or it lies in a folder that was read and is no JSON: what of
            such a folder is read only a reader knows.
    """
    check_target(option, path)
    if not path.exists():
        return
    for named, source in sources.items():
        place = None if source is None else of_user(source)
        if place is not None and (place.is_file() or path.suffix.lower() != ".json"):
            files = files_below(place) if place.is_dir() else [place]
            if any(file.exists() and file.samefile(path) for file in files):
                raise _was_read(option, path, f"{path} of {named}")


def _was_read(option: str, path: Path, what: str) -> TargetError:
    return TargetError(f"{option}: expected another file than was read, got {path}, which is {what}; name another one")


def _files_of(sources: Mapping[str, str | None], kind: str) -> _Sources:
    """Of a folder those of that kind: what else lies there was not read."""
    suffixes = (*READERS[kind][0], *(PICTURES if kind == "film" else ()))
    found: dict[tuple[int, int], str] = {}
    for option, source in sources.items():
        if source is None:
            continue
        place = of_user(source)
        files = (
            [file for file in files_below(place) if file.name.lower().endswith(suffixes)] if place.is_dir() else [place]
        )
        for file in files:
            with contextlib.suppress(OSError):  # it is not there
                status = file.stat()
                found.setdefault((status.st_dev, status.st_ino), f"{file} of {option}")
    return found


def _stems(names: Iterable[str]) -> list[str]:
    """Names of files, each once."""
    stems: list[str] = []
    for number, name in enumerate(names):
        stem = re.sub(r"[^\w.=+-]+", "_", name).strip("._")[:80] or f"sequence_{number}"
        stems.append(stem if stem not in stems else f"{stem}-{number}")
    return stems
