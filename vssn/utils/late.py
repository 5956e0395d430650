"""Modules of a package that are imported when they are asked for: an import stays quick, and all of it is there."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from types import ModuleType


def modules_of(package: str) -> Callable[[str], ModuleType]:
    """The `__getattr__` of that package."""

    def of(name: str) -> ModuleType:
        whole = f"{package}.{name}"
        if not name.startswith("_"):
            try:
                return import_module(whole)
            except ModuleNotFoundError as error:
                if error.name != whole:
                    raise
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    return of
