"""Tensors of the recurrences on a GPU, and PyTorch's settings for float32 products there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

COMPUTE = {"float32": torch.float32, "tf32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# What a kernel answers where a form cannot be on a device: not a failure.
NOT_HERE = ("does not fit this device", "can hold M=", "can hold H=")


def _normal(device: str, *shape: int) -> Tensor:
    return torch.randn(shape, device=device, dtype=torch.float32)


def gru_tensors(steps: int, batch: int, hidden: int, dtype: torch.dtype, device: str = "cuda") -> tuple[Tensor, ...]:
    """gates_x [T, B, 3H], h0 [B, H], weight_hh [3H, H], bias_hh [3H]"""
    shapes = ((steps, batch, 3 * hidden), (batch, hidden), (3 * hidden, hidden), (3 * hidden,))
    gates_x, h0, weight, bias = (_normal(device, *shape) for shape in shapes)
    return tuple(t.to(dtype).requires_grad_() for t in (gates_x, h0, weight / hidden**0.5, bias))


def posterior_tensors(
    steps: int, batch: int, width: int, latent: int, dtype: torch.dtype, device: str = "cuda"
) -> tuple[Tensor, ...]:
    """context [T, B, M], z0 [B, Z], eps [T, B, Z], weight_z [M, Z], weight_out [2Z, M], bias_out [2Z]"""
    shapes: tuple[tuple[int, ...], ...] = ((steps, batch, width), (batch, latent), (steps, batch, latent))
    shapes += ((width, latent), (2 * latent, width), (2 * latent,))
    tensors = [_normal(device, *shape) for shape in shapes]
    tensors[3] /= 2 * latent**0.5
    tensors[4] /= 2 * width**0.5
    tensors[5] /= 2  # half of it are log-variances: no chain grows past what float16 holds
    return tuple(t.to(dtype).requires_grad_() for t in tensors)


def interleaved_tensors(
    steps: int, batch: int, sizes: tuple[int, int, int, int], dtype: torch.dtype, device: str = "cuda"
) -> tuple[Tensor, ...]:
    """Of interleaved_sequence, in its order. sizes: H, E, M, Z"""
    size, embed, width, latent = sizes
    shapes: tuple[tuple[int, ...], ...] = ((steps, batch, 3 * size), (steps, batch, embed), (steps, batch, width))
    shapes += ((batch, size), (batch, latent), (steps, batch, latent))
    weights = ((embed, latent), (3 * size, embed), (3 * size, size), (3 * size,), (width, size), (2 * latent, width))
    tensors = [_normal(device, *shape) for shape in shapes]
    tensors += [_normal(device, *shape) / (2 * shape[-1] ** 0.5) for shape in (*weights, (2 * latent,))]
    return tuple(t.to(dtype).requires_grad_() for t in tensors)


@contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """Inside the block float32 products, cuDNN's recurrences among them, may run in tf32, or may not.

    Of matmul by the function that keeps both names of its setting in step; cuDNN's has a place of its own in newer
    versions, and is one with that of its convolutions in older ones."""
    cudnn: Any = torch.backends.cudnn
    has_own = hasattr(getattr(cudnn, "rnn", None), "fp32_precision")
    place, name, value = (
        (cudnn.rnn, "fp32_precision", "tf32" if allowed else "ieee") if has_own else (cudnn, "allow_tf32", allowed)
    )
    of_matmul, of_cudnn = torch.get_float32_matmul_precision(), getattr(place, name)
    torch.set_float32_matmul_precision("high" if allowed else "highest")
    setattr(place, name, value)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(of_matmul)
        setattr(place, name, of_cudnn)
