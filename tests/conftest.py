"""Seeds for every test."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import ModuleType

import pytest
import torch


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    """Every test draws the same numbers alone as in the whole suite, and leaves no compiled code behind."""
    torch.manual_seed(0)
    yield
    if "torch._dynamo" in sys.modules:  # else nothing was compiled, and asking would import it
        torch.compiler.reset()


@pytest.fixture(scope="module")
def cuda_host() -> Iterator[ModuleType]:
    """The CUDA kernels built for the host, in the place of the extension: the backend "cuda" takes CPU tensors."""
    from cuda_host import installed

    with installed() as module:
        yield module
