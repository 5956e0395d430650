"""What backends share: tensors as addresses and strides, products after a loop, PyTorch's setting for tf32."""

from __future__ import annotations

from functools import cache
from typing import overload

import torch
from torch import Tensor

Grads = tuple[Tensor | None, ...]


# ---- Tensors as the addresses and strides that compiled kernels take ----------------------------------


def pointer(tensor: Tensor | None) -> int:
    """The address of the tensor's first element; 0 where there is no tensor."""
    return 0 if tensor is None else _address(tensor)


def _address(tensor: Tensor) -> int:
    """Raises RuntimeError where the memory is gone: a kernel would read at 0."""
    address = tensor.data_ptr()
    if address == 0 and tensor.numel():
        raise RuntimeError(f"expected tensors with memory, got one of {list(tensor.shape)} whose storage was freed")
    return address


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
    return (0, 0) if rows is None else (_address(rows), rows.stride(0))


def as_steps(tensor: Tensor | None) -> Tensor | None:
    """[T, B, width] with the last dimension contiguous: the tensor, or a copy."""
    if tensor is None or tensor.stride(-1) == 1 or tensor.shape[-1] <= 1:
        return tensor
    return tensor.contiguous()


def step_arguments(steps: Tensor | None) -> tuple[int, int, int]:
    """(address, stride of T, stride of B) of what `as_steps` gave."""
    return (0, 0, 0) if steps is None else (_address(steps), steps.stride(0), steps.stride(1))


# ---- Around the kernels -------------------------------------------------------------------------------


def activated(kept: Tensor, activation: str) -> Tensor:
    """[..., M] after the activation, from what a forward pass kept: for "silu" what is before it."""
    return torch.nn.functional.silu(kept) if activation == "silu" else kept


def weight_gradients(
    grads: Tensor,  # [T, B, ·], zeros at padding
    states: Tensor,  # [T, B, ·], the state after each step
    first: Tensor,  # [B, ·], the state before each row's first step
    lengths: Tensor | None,
    reverse: bool,
    out: Tensor,
) -> Tensor:
    """out = sum over steps of grads^T times the state before the step, the gradient of a recurrent weight: GEMMs over
    views, no synchronisation."""
    steps, batch = grads.shape[:2]
    if steps == 0 or batch == 0:
        return out.zero_()
    if reverse and lengths is not None:
        # What the product below pairs with a row's first step is the zero padding behind it.
        rows = torch.arange(batch, device=grads.device)
        starts = grads[(lengths - 1).clamp(0, steps - 1), rows] * (lengths > 0)[:, None]
    else:
        starts = grads[-1 if reverse else 0]
    if lengths is not None:  # what a row without steps starts from may be anything
        first = first.masked_fill((lengths <= 0)[:, None], 0)
    torch.mm(starts.t(), first.to(grads.dtype), out=out)
    later, before = (grads[:-1], states[1:]) if reverse else (grads[1:], states[:-1])
    if steps > 1:
        out.addmm_(later.flatten(0, 1).t(), before.flatten(0, 1))
    return out


@cache
def _has_fp32_precision() -> bool:
    return hasattr(torch.backends.cuda.matmul, "fp32_precision")


def allows_tf32() -> bool:
    """Whether PyTorch's setting lets float32 products on GPUs run in tf32; the older setting where the newer is absent
    (mixing them raises)."""
    matmul = torch.backends.cuda.matmul
    return matmul.fp32_precision == "tf32" if _has_fp32_precision() else matmul.allow_tf32
