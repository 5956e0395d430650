"""Packages that only a part of vssn needs: where one is missing, one line says which, for what, and how to get it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from vssn.errors import PackageError, UserError

_NEEDED_BY = {  # extras of pyproject.toml
    "train": "training",
    "speech": "reading speech",
    "download": "a download",
    "files": "reading data files",
    "hub": "a model on the Hub",
    "onnx": "an export to ONNX",
    "series": "reading the public series",
    "chorales": "reading the chorales",
}


@contextlib.contextmanager
def needing(extra: str, kind: type[UserError] = PackageError) -> Iterator[None]:
    """Around the imports of what an extra installs: a package that is not there, or that does not work (a library that
    it loads is missing, say), is an error of that kind."""
    try:
        yield
    except (ImportError, OSError) as error:
        missing = isinstance(error, ModuleNotFoundError) and error.name
        found = (
            f"{missing.partition('.')[0]} is not installed" if missing else f"a package cannot be imported ({error})"
        )
        raise kind(f"{found}; install what {_NEEDED_BY[extra]} needs: pip install 'vssn[{extra}]'") from None
