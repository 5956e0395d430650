"""What every call of the CPU kernels takes: the dtype's flag, and memory for results."""

from __future__ import annotations

import torch
from torch import Tensor


def is_float64(tensor: Tensor) -> bool:
    return tensor.dtype is torch.float64


def empty_like(tensor: Tensor, need: bool = True) -> Tensor | None:
    """A contiguous tensor of this shape and dtype, to be written in full."""
    return tensor.new_empty(tensor.shape) if need else None
