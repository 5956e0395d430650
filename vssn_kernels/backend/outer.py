"""Gradients of recurrent weights as products over all steps, for backends whose kernels leave them to PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor


def sum_outer(
    grads: Tensor,  # [T, B, ·], zeros at padding
    states: Tensor,  # [T, B, ·], the state after each step
    first: Tensor,  # [B, ·], the state before each row's first step
    lengths: Tensor | None,
    reverse: bool,
    out: Tensor,
) -> Tensor:
    """out = sum over steps of grads^T times the state before the step: GEMMs over views, no synchronisation."""
    steps, batch = grads.shape[:2]
    if steps == 0 or batch == 0:
        return out.zero_()
    if reverse and lengths is not None:
        # What the product below pairs with a row's first step is the zero padding behind it.
        rows = torch.arange(batch, device=grads.device)
        starts = grads[(lengths - 1).clamp(0, steps - 1), rows] * (lengths > 0)[:, None]
    else:
        starts = grads[-1 if reverse else 0]
    torch.mm(starts.t(), first.to(grads.dtype), out=out)
    later, before = (grads[:-1], states[1:]) if reverse else (grads[1:], states[:-1])
    if steps > 1:
        out.addmm_(later.flatten(0, 1).t(), before.flatten(0, 1))
    return out
