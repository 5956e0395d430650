"""What every call of the CPU kernels takes: the name of the dtype, and memory for results."""

from __future__ import annotations

from typing import overload

import torch
from torch import Tensor

_STORAGES = {torch.float32: "float32", torch.float64: "float64", torch.bfloat16: "bfloat16"}


def storage(tensor: Tensor) -> str:
    """What the tensors of a call are stored in, as the kernels name it."""
    return _STORAGES[tensor.dtype]


@overload
def widened(state: Tensor) -> Tensor: ...
@overload
def widened(state: None) -> None: ...
@overload
def widened(state: Tensor | None) -> Tensor | None: ...
def widened(state: Tensor | None) -> Tensor | None:
    """A state, or the gradient of one, as the kernels take it: float32 where it is bfloat16."""
    return state.float() if state is not None and state.dtype is torch.bfloat16 else state


def empty_like(tensor: Tensor, need: bool = True) -> Tensor | None:
    """A contiguous tensor of this shape and dtype, to be written in full."""
    return tensor.new_empty(tensor.shape) if need else None


def empty_sums(shape: torch.Size | tuple[int, ...], dtype: torch.dtype, need: bool = True) -> Tensor | None:
    """Memory for sums over steps or rows, gradients of weights and states: float32 for bfloat16."""
    return torch.empty(shape, dtype=torch.float32 if dtype is torch.bfloat16 else dtype) if need else None


@overload
def stored(sums: Tensor, dtype: torch.dtype) -> Tensor: ...
@overload
def stored(sums: None, dtype: torch.dtype) -> None: ...
@overload
def stored(sums: Tensor | None, dtype: torch.dtype) -> Tensor | None: ...
def stored(sums: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """What `empty_sums` gave, in the dtype of a result."""
    return sums if sums is None or sums.dtype is dtype else sums.to(dtype)
