"""Tensors as the addresses, strides and streams that the CUDA kernels take."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch
from torch import Tensor

from vssn_kernels import _cuda

STORAGE = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}  # csrc/cuda/arguments.h


@contextmanager
def launch_on(tensor: Tensor) -> Iterator[int]:
    """Makes the tensor's device the current one, of PyTorch and of the extension (which has a CUDA runtime of its own),
    and gives the address of the caller's current stream there."""
    if not tensor.is_cuda:  # the tests run the kernels on the host
        yield 0
        return
    with torch.cuda.device(tensor.device):
        _cuda.set_device(tensor.device.index)
        yield stream(tensor)


def stream(tensor: Tensor) -> int:
    """The address of the caller's current stream on the tensor's device."""
    return torch.cuda.current_stream(tensor.device).cuda_stream if tensor.is_cuda else 0


def pointer(tensor: Tensor | None) -> int:
    """The address of the tensor's first element; 0 where there is no tensor."""
    return 0 if tensor is None else tensor.data_ptr()


def rows(tensor: Tensor | None) -> Tensor | None:
    """The tensor as [rows, last dimension], the last one contiguous: a view where strides allow it, else a copy."""
    if tensor is None:
        return None
    width = tensor.shape[-1]
    flat = tensor.reshape(tensor.numel() // width if width else 0, width)
    return flat if width <= 1 or flat.stride(1) == 1 else flat.contiguous()


def row_arguments(flat: Tensor | None) -> tuple[int, int]:
    """(address, stride of the rows) of what `rows` gave."""
    return (0, 0) if flat is None else (flat.data_ptr(), flat.stride(0))


def steps(tensor: Tensor | None) -> Tensor | None:
    """[T, B, width] with the last dimension contiguous: the tensor, or a copy."""
    if tensor is None or tensor.stride(-1) == 1 or tensor.shape[-1] <= 1:
        return tensor
    return tensor.contiguous()


def step_arguments(sequence: Tensor | None) -> tuple[int, int, int]:
    """(address, stride of T, stride of B) of what `steps` gave."""
    return (0, 0, 0) if sequence is None else (sequence.data_ptr(), sequence.stride(0), sequence.stride(1))


@cache
def _has_fp32_precision() -> bool:
    return hasattr(torch.backends.cuda.matmul, "fp32_precision")


def allows_tf32() -> bool:
    """PyTorch's own setting for float32 products; the older one where the newer is absent (mixing them raises)."""
    matmul = torch.backends.cuda.matmul
    return matmul.fp32_precision == "tf32" if _has_fp32_precision() else matmul.allow_tf32
