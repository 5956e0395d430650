"""Where the results of a command go: one file, whose suffix says what is wanted, or a folder with all that is usual."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from vssn.errors import TargetError
from vssn.utils.command import check_folder, check_target, writing

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


class Target(NamedTuple):
    """Where to write, and what."""

    option: str  # that named it
    folder: Path
    file: Path | None  # the one file; None: several in the folder
    suffixes: tuple[str, ...]
    sources: tuple[Path, ...] = ()  # what was read, which nothing is written over

    def of_all(self, stem: str, suffix: str) -> Path | None:
        """The file for all sequences together; None where that suffix is not wanted. Raises TargetError, as `of_each`."""
        if suffix not in self.suffixes:
            return None
        return self._no_source(self.file or self.folder / f"{stem}{suffix}")

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
            return [self._no_source(self.file)]
        stems = _stems(names)
        shown = stems[:MOST_PICTURES] if suffix == ".png" else stems
        return [self._no_source(self.folder / f"{stem}{suffix}") for stem in shown]

    def _no_source(self, path: Path) -> Path:
        for source in self.sources:
            with contextlib.suppress(OSError):  # one of them is not there
                if path.samefile(source):
                    raise TargetError(
                        f"{self.option}: expected another file than was read, got {path}, which is {source}; name "
                        "another one"
                    )
        return path


def choose(
    option: str,
    path: Path,
    kind: str,
    count: int,
    forms: tuple[tuple[str, ...], tuple[str, ...]] | None = None,
    sources: Iterable[str | Path | None] = (),
) -> Target:
    """What `path` asks for; a folder is made.

    Args:
        kind: of the data, a key of the forms above.
        count: sequences.
        forms: suffixes that a file can have, and those of a folder, in the place of the kind's.
        sources: what was read: nothing is written over a file among them.

    Raises:
        TargetError: a suffix that the kind does not have, or a place that cannot be written.
    """
    possible, usual = forms or _FORMS[kind]
    read = tuple(Path(source) for source in sources if source is not None)
    if path.is_dir() or not path.suffix:
        with writing(option, path):
            check_folder(path)
        return Target(option, path, None, usual, read)
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


def _stems(names: Iterable[str]) -> list[str]:
    """Names of files, each once."""
    stems: list[str] = []
    for number, name in enumerate(names):
        stem = re.sub(r"[^\w.=+-]+", "_", name).strip("._")[:80] or f"sequence_{number}"
        stems.append(stem if stem not in stems else f"{stem}-{number}")
    return stems
