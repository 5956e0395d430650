"""A model in evaluation mode for a while."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

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
