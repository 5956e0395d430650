"""The `reference` backend: pure PyTorch on any device, with the hand-written backward: the modules of
vssn_kernels/reference that the ops have declared."""

from collections.abc import Callable

from vssn_kernels.backend import table


def __getattr__(name: str) -> Callable:
    if name not in table.functions():
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return table.implementation("reference", name)
