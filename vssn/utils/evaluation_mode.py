"""A model in evaluation mode, or time-major, for a while."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from torch import nn


@contextlib.contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Sets the module to evaluation mode, and back to what it was."""
    training = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(training)


@contextlib.contextmanager
def time_major(model: nn.Module) -> Iterator[None]:
    """Makes a model with `batch_first` take and give [T, B, ·], as batches of `vssn.data` are, and back."""
    inner: Any = getattr(model, "_orig_mod", model)  # of a compiled one
    if not inner.batch_first:
        yield
        return
    try:
        inner.set_batch_first(False)
        yield
    finally:
        inner.set_batch_first(True)
