"""Seeds for every test."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    """Every test draws the same numbers alone as in the whole suite, and leaves no compiled code behind."""
    torch.manual_seed(0)
    yield
    if "torch._dynamo" in sys.modules:  # else nothing was compiled, and asking would import it
        torch.compiler.reset()
