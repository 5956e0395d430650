"""Tensors as the addresses and strides that compiled kernels take."""

from __future__ import annotations

from typing import overload

from torch import Tensor


def pointer(tensor: Tensor | None) -> int:
    """The address of the tensor's first element; 0 where there is no tensor."""
    return 0 if tensor is None else tensor.data_ptr()


@overload
def as_rows(tensor: Tensor) -> Tensor: ...
@overload
def as_rows(tensor: None) -> None: ...
@overload
def as_rows(tensor: Tensor | None) -> Tensor | None: ...
def as_rows(tensor: Tensor | None) -> Tensor | None:
    """The tensor as [rows, last dimension], the last one contiguous: a view where strides allow it, else a copy."""
    if tensor is None or (tensor.dim() == 2 and tensor.stride(1) == 1):
        return tensor
    width = tensor.shape[-1]
    rows = tensor.reshape(tensor.numel() // width if width else 0, width)
    return rows if width <= 1 or rows.stride(1) == 1 else rows.contiguous()


def row_arguments(rows: Tensor | None) -> tuple[int, int]:
    """(address, stride of the rows) of what `as_rows` gave."""
    return (0, 0) if rows is None else (rows.data_ptr(), rows.stride(0))


def as_steps(tensor: Tensor | None) -> Tensor | None:
    """[T, B, width] with the last dimension contiguous: the tensor, or a copy."""
    if tensor is None or tensor.stride(-1) == 1 or tensor.shape[-1] <= 1:
        return tensor
    return tensor.contiguous()


def step_arguments(steps: Tensor | None) -> tuple[int, int, int]:
    """(address, stride of T, stride of B) of what `as_steps` gave."""
    return (0, 0, 0) if steps is None else (steps.data_ptr(), steps.stride(0), steps.stride(1))
