"""bernoulli_log_prob on the CPU: csrc/cpu/bernoulli.cpp."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vssn_kernels import _cpu
from vssn_kernels.backend.common import Grads, as_rows, pointer, row_arguments
from vssn_kernels.backend.cpu.call import empty_like, is_float64


def bernoulli_log_prob_forward(logits: Tensor, x: Tensor) -> Tensor:
    """[...]"""
    result = torch.empty(logits.shape[:-1], dtype=logits.dtype)
    logits_, x_ = as_rows(logits), as_rows(x)
    sizes = (result.numel(), logits.shape[-1])
    _cpu.bernoulli(
        is_float64(logits),
        False,
        torch.get_num_threads(),
        *sizes,
        *row_arguments(logits_),
        *row_arguments(x_),
        result.data_ptr(),
    )
    return result


def bernoulli_log_prob_backward(grad: Tensor, logits: Tensor, x: Tensor, needs: Sequence[bool]) -> Grads:
    """Gradients of (logits, x)."""
    logits_, x_, grad_ = as_rows(logits), as_rows(x), grad.reshape(-1, 1)
    grads = tuple(empty_like(logits, need) for need in needs)
    _cpu.bernoulli(
        is_float64(logits),
        True,
        torch.get_num_threads(),
        grad.numel(),
        logits.shape[-1],
        *row_arguments(logits_),
        *row_arguments(x_),
        *row_arguments(grad_),
        *(pointer(part) for part in grads),
    )
    return grads
