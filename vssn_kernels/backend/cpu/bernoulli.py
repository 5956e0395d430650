"""bernoulli_log_prob on the CPU: csrc/cpu/bernoulli.cpp."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vssn_kernels import _cpu
from vssn_kernels.backend.common import Grads, as_rows, pointer, row_arguments
from vssn_kernels.backend.cpu.call import empty_like, storage


def bernoulli_log_prob_forward(logits: Tensor, x: Tensor) -> Tensor:
    """[...]"""
    result = torch.empty(logits.shape[:-1], dtype=logits.dtype)
    logits_, x_ = as_rows(logits), as_rows(x)
    _cpu.bernoulli_forward(
        storage=storage(logits),
        threads=torch.get_num_threads(),
        N=result.numel(),
        X=logits.shape[-1],
        logits=row_arguments(logits_),
        x=row_arguments(x_),
        log_prob=result.data_ptr(),
    )
    return result


def bernoulli_log_prob_backward(grad: Tensor, logits: Tensor, x: Tensor, needs: Sequence[bool]) -> Grads:
    """Gradients of (logits, x)."""
    logits_, x_, grad_ = as_rows(logits), as_rows(x), grad.reshape(-1, 1)
    grad_logits, grad_x = (empty_like(logits, need) for need in needs)
    _cpu.bernoulli_backward(
        storage=storage(logits),
        threads=torch.get_num_threads(),
        N=grad.numel(),
        X=logits.shape[-1],
        logits=row_arguments(logits_),
        x=row_arguments(x_),
        grad=row_arguments(grad_),
        grad_logits=pointer(grad_logits),
        grad_x=pointer(grad_x),
    )
    return grad_logits, grad_x
