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


class time_major:
    """Makes a model with `batch_first` take and give [T, B, ·], as batches of `vssn.data` are, and back.

    A class, since Dynamo of PyTorch 2.6 follows no context manager that is a generator.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model: Any = getattr(model, "_orig_mod", model)  # of a compiled one
        self.batch_first = self.model.batch_first

    def __enter__(self) -> None:
        if self.batch_first:
            self.model.set_batch_first(False)

    def __exit__(self, *_: object) -> None:
        if self.batch_first:
            self.model.set_batch_first(True)
