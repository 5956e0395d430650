"""Floating-point operations of the products inside each op, for torch.utils.flop_counter.FlopCounterMode.

As PyTorch counts its own ops: 2 for a multiplication with an addition, and nothing for what is pointwise.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from math import prod
from types import ModuleType

import torch

_COUNTER = "torch.utils.flop_counter"
_formulas: dict[str, Callable[..., int]] = {}


def formula(name: str) -> Callable[[Callable[..., int]], Callable[..., int]]:
    """Keeps the flops of `vssn::<name>`, a function of the op's arguments with a shape in place of each tensor."""

    def keep(count: Callable[..., int]) -> Callable[..., int]:
        _formulas[name] = count
        return count

    return keep


def no_products(name: str) -> None:
    """Says that `vssn::<name>` has none."""
    _formulas[name] = lambda *_, **__: 0


def register() -> None:
    """Tells the counter of all ops, when somebody imports it."""
    if _COUNTER in sys.modules:
        _register()
    else:
        sys.meta_path.insert(0, _AtImport())


def _register() -> None:
    for name, count in _formulas.items():
        sys.modules[_COUNTER].register_flop_formula(getattr(torch.ops.vssn, name))(count)


class _AtImport(MetaPathFinder, Loader):
    """Waits for the counter's import: importing it here would import Triton, a third of a second that few need."""

    def find_spec(self, name: str, path: object, target: object = None) -> ModuleSpec | None:
        if name != _COUNTER:
            return None
        sys.meta_path.remove(self)
        spec = find_spec(name)
        if spec is not None and spec.loader is not None:
            self._loader, spec.loader = spec.loader, self
        return spec

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        assert module.__spec__ is not None
        module.__spec__.loader = module.__loader__ = self._loader
        self._loader.exec_module(module)
        _register()


def product(*sizes: int) -> int:
    """Of matrices of sizes [a, b] and [b, c]: 2 a b c."""
    return 2 * prod(sizes)


Shape = Sequence[int]
