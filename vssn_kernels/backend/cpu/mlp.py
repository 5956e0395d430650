"""mlp, gaussian_mlp and split_linear on the CPU: csrc/cpu/mlp.cpp."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vssn_kernels import _cpu
from vssn_kernels.backend.common import Grads, as_rows, pointer, row_arguments
from vssn_kernels.backend.cpu.call import empty_sums, storage, stored


def columns_of(tensors: Sequence[Tensor | None], widths: Sequence[int]) -> list[tuple[int, int]]:
    """(address, stride) of what meets each input: a weight of its own, or its columns of the one for all."""
    if len(tensors) == len(widths):
        return [row_arguments(tensor) for tensor in tensors]
    if (tensor := tensors[0]) is None:
        return [(0, 0)] * len(widths)
    address, stride, size, found = pointer(tensor), tensor.stride(0), tensor.element_size(), []
    for width in widths:
        found.append((address, stride))
        address += width * size
    return found


def mlp_forward(
    inputs: Sequence[Tensor],
    weights: Sequence[Tensor],
    bias: Tensor,
    weight_out: Tensor | None,
    bias_out: Tensor | None,
    activation: str,
    min_logvar: float | None,
    need_backward: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """(out or mu [..., O], logvar [..., O], hidden [..., M]: after the activation, for "silu" before it; empty where
    there is none, or not needed)"""
    dtype, leading, width = bias.dtype, inputs[0].shape[:-1], bias.shape[0]
    two, floored = weight_out is not None, min_logvar is not None
    columns = (weight_out.shape[0] // (2 if floored else 1)) if weight_out is not None else width
    out = torch.empty((*leading, columns), dtype=dtype)
    logvar = torch.empty((*leading, columns) if floored else 0, dtype=dtype)
    hidden = torch.empty((*leading, width) if two and need_backward else 0, dtype=dtype)
    rows = [as_rows(x) for x in inputs]
    weights_, widths = [as_rows(weight) for weight in weights], [x.shape[1] for x in rows]
    bias_, weight_out_ = bias.contiguous(), as_rows(weight_out)
    bias_out_ = None if bias_out is None else bias_out.contiguous()
    _cpu.mlp_forward(
        storage=storage(bias),
        threads=torch.get_num_threads(),
        N=leading.numel(),
        M=width,
        O=columns,
        activation=activation,
        floored=floored,
        min_logvar=0.0 if min_logvar is None else min_logvar,
        K=widths,
        x=[row_arguments(x) for x in rows],
        weight=columns_of(weights_, widths),
        bias=pointer(bias_),
        weight_out=row_arguments(weight_out_),
        bias_out=pointer(bias_out_),
        panels=0,
        out=out.data_ptr(),
        logvar=logvar.data_ptr(),
        hidden=hidden.data_ptr() if two and need_backward else 0,
    )
    return out, logvar, hidden


def mlp_backward(
    grad_out: Tensor | None,
    grad_logvar: Tensor | None,
    inputs: Sequence[Tensor],
    weights: Sequence[Tensor],
    weight_out: Tensor | None,
    logvar: Tensor,
    hidden: Tensor,
    activation: str,
    min_logvar: float | None,
    needs: Sequence[bool],
) -> Grads:
    """Gradients of (*inputs, *weights, bias, weight_out, bias_out)."""
    width = weights[0].shape[0]
    columns = (weight_out.shape[0] // (1 if min_logvar is None else 2)) if weight_out is not None else width
    rows, weights_, weight_out_ = [as_rows(x) for x in inputs], [as_rows(w) for w in weights], as_rows(weight_out)
    widths = [x.shape[1] for x in rows]
    dtype, first_bias = weights[0].dtype, len(inputs) + len(weights)
    need_bias, need_weight_out, need_bias_out = needs[first_bias:]
    grad_x = [torch.empty(x.shape, dtype=dtype) if need else None for x, need in zip(inputs, needs, strict=False)]
    grad_weights = [
        empty_sums(weight.shape, dtype, need)
        for weight, need in zip(weights, needs[len(inputs) : first_bias], strict=True)
    ]
    grad_bias = empty_sums((width,), dtype, need_bias)
    grad_weight_out = grad_bias_out = None
    if weight_out is not None:
        grad_weight_out = empty_sums(weight_out.shape, dtype, need_weight_out)
        grad_bias_out = empty_sums(weight_out.shape[:1], dtype, need_bias_out)
    grad_out_, grad_logvar_ = as_rows(grad_out), as_rows(grad_logvar)
    _cpu.mlp_backward(
        storage=storage(weights[0]),
        threads=torch.get_num_threads(),
        N=inputs[0].shape[:-1].numel(),
        M=width,
        O=columns,
        activation=activation,
        floored=min_logvar is not None,
        min_logvar=0.0 if min_logvar is None else min_logvar,
        K=widths,
        x=[row_arguments(x) for x in rows],
        weight=columns_of(weights_, widths),
        weight_out=row_arguments(weight_out_),
        grad_out=row_arguments(grad_out_),
        grad_logvar=row_arguments(grad_logvar_),
        logvar=pointer(logvar),
        hidden=pointer(hidden),
        grad_x=[pointer(grad) for grad in grad_x],
        grad_weight=columns_of(grad_weights, widths),
        grad_bias=pointer(grad_bias),
        grad_weight_out=pointer(grad_weight_out),
        grad_bias_out=pointer(grad_bias_out),
    )
    sums = (*grad_weights, grad_bias, grad_weight_out, grad_bias_out)
    return *grad_x, *(stored(grad, dtype) for grad in sums)
