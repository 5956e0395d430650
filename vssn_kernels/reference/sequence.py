"""What the reference recurrences share: padding masks, the storage and compute dtypes, sums over steps."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vssn_kernels.arguments import HALF


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """Half precision is storage only: states and sums are float32."""
    return torch.float32 if dtype in HALF else dtype


def softplus(x: Tensor) -> Tensor:
    """log(1 + exp(x)) to the last bit of float64: PyTorch's own is x from 20 on, 2e-9 less."""
    return F.softplus(x, threshold=40.0)


def valid_steps(lengths: Tensor | None, steps: int) -> Tensor | None:
    """[T, B, 1] bool, True where t < lengths[b]; None without lengths."""
    if lengths is None:
        return None
    return (torch.arange(steps, device=lengths.device)[:, None] < lengths)[..., None]


def zero_padding(sequence: Tensor, valid: Tensor | None) -> Tensor:
    """A copy-free pass without lengths; else padding replaced by 0, so that a NaN there reaches nothing."""
    return sequence if valid is None else torch.where(valid, sequence, sequence.new_zeros(()))


def each_step(sequence: Tensor) -> tuple[Tensor, ...]:
    """The T parts [B, ·] of a sequence: one node of autograd, whose backward is linear in T. (That of sequence[t] for
    every t fills T sequences.)"""
    return sequence.unbind()


def stack_steps(steps: list[Tensor], like: Tensor, width: int) -> Tensor:
    """[T, B, width] of the T results [B, width]; `like` [T, B, ·] gives the sizes where T = 0."""
    return torch.stack(steps) if steps else like.new_zeros(*like.shape[:2], width)


def outer_sum(left: Tensor, right: Tensor) -> Tensor:
    """Sum over t and b of left[t, b] right[t, b]^T, as one GEMM: [T, B, M], [T, B, N] -> [M, N]."""
    return left.reshape(-1, left.shape[-1]).T @ right.reshape(-1, right.shape[-1])
