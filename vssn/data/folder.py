"""The folder that holds a data set: an option of the caller, else what VSSN_DATA names."""

from __future__ import annotations

import os
from pathlib import Path

from vssn.data.errors import DataError

FOLDER_VARIABLE = "VSSN_DATA"


def data_folder(folder: str | os.PathLike[str] | None, holds: str) -> tuple[Path, str]:
    """The folder to look in, and where its name comes from; `holds` says what should be there, for the error."""
    if folder is not None and os.fspath(folder):
        return Path(os.path.expanduser(folder)), "from the data folder option"
    if value := os.environ.get(FOLDER_VARIABLE):
        return Path(os.path.expanduser(value)), f"from {FOLDER_VARIABLE}"
    raise DataError(
        f"no data folder is given and {FOLDER_VARIABLE} is not set: "
        f"set the data folder option or {FOLDER_VARIABLE} to the folder that holds {holds}"
    )
