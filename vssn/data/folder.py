"""The folder that holds a data set: an option of the caller, else what VSSN_DATA names; and what is seen in it.

Left out everywhere: names that begin with a dot, among them the `._NAME` files that macOS puts beside its own, and the
folder `__MACOSX` that its archives hold. They bear a data file's name and hold no data.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from vssn.errors import DataError
from vssn.utils.checks import require_path

FOLDER_VARIABLE = "VSSN_DATA"


def named_folder(folder: str | os.PathLike[str] | None) -> tuple[str, str] | None:
    """The folder of a configuration, else that of the environment, and where its name comes from; None: neither names
    one."""
    if folder is not None and os.fspath(folder):
        return os.fspath(folder), "from --data or data.folder"
    value = os.environ.get(FOLDER_VARIABLE)
    return (value, f"from {FOLDER_VARIABLE}") if value else None


def data_folder(folder: str | os.PathLike[str] | None, holds: str, other: str = "") -> tuple[Path, str]:
    """The folder to look in, and where its name comes from; `holds` says what should be there, for the error, and
    `other` what else may be done."""
    if folder is not None:
        require_path("folder", folder)
    if named := named_folder(folder):
        return Path(os.path.expanduser(named[0])), named[1]
    raise DataError(
        f"no data folder is given and {FOLDER_VARIABLE} is not set: name the folder that holds {holds} "
        f"by --data (data.folder in a configuration) or {FOLDER_VARIABLE}{other}"
    )


def entries(place: Path) -> list[Path]:
    """What is seen in a folder, in the order of the names. Raises DataError where it cannot be listed."""
    try:
        return sorted(entry for entry in place.iterdir() if is_seen(entry.name))
    except OSError as error:
        raise DataError(f"cannot list the data folder {place}: {error.strerror}; check its permissions") from None


def files_below(place: Path) -> Iterator[Path]:
    """Every file that is seen in a folder and in those below it, links to folders followed, each folder once: a link
    that leads back up would not end. Raises DataError where one cannot be listed."""
    done: set[tuple[int, int]] = set()

    def walk(folder: Path) -> Iterator[Path]:
        status = folder.stat()
        if (status.st_dev, status.st_ino) in done:
            return
        done.add((status.st_dev, status.st_ino))
        for entry in entries(folder):
            if entry.is_dir():
                yield from walk(entry)
            elif entry.is_file():
                yield entry

    yield from walk(place)


def is_seen(name: str) -> bool:
    return not name.startswith(".") and name != "__MACOSX"
