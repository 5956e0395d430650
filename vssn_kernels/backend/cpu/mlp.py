"""mlp, gaussian_mlp and split_linear on the CPU: csrc/cpu/mlp.cpp."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vssn_kernels import _cpu
from vssn_kernels.backend.common import ACTIVATION_CODES, Grads, as_rows, pointer, row_arguments
from vssn_kernels.backend.cpu.call import allocate, empty_like, is_float64


def _input_arguments(
    inputs: Sequence[Tensor],
    weights: Sequence[Tensor],
    grad_inputs: Sequence[Tensor | None],
    grad_weights: Sequence[Tensor | None],
) -> list[int]:
    """For each input K, x, its columns of the weight, and where the gradients of both go. [rows, ·] tensors."""
    arguments, size, column = [len(inputs)], inputs[0].element_size(), 0
    for number, (x, grad_x) in enumerate(zip(inputs, grad_inputs, strict=True)):
        if len(weights) == len(inputs):
            weight, grad_weight, column = weights[number], grad_weights[number], 0
        else:
            weight, grad_weight = weights[0], grad_weights[0]
        width, offset = x.shape[1], column * size
        arguments += (
            width,
            x.data_ptr(),
            x.stride(0),
            weight.data_ptr() + offset,
            weight.stride(0),
            0 if grad_x is None else grad_x.data_ptr(),
            *((0, 0) if grad_weight is None else (grad_weight.data_ptr() + offset, grad_weight.stride(0))),
        )
        column += width
    return arguments


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
    weights_, nothing = [as_rows(weight) for weight in weights], [None] * len(inputs)
    bias_, weight_out_ = bias.contiguous(), as_rows(weight_out)
    bias_out_ = None if bias_out is None else bias_out.contiguous()
    float64 = is_float64(bias)
    arguments = (
        *_input_arguments(rows, weights_, nothing, nothing),
        torch.get_num_threads(),
        leading.numel(),
        width,
        columns,
        ACTIVATION_CODES[activation],
        min_logvar is not None,
        0.0 if min_logvar is None else min_logvar,
        bias_.data_ptr(),
        *row_arguments(weight_out_),
        pointer(bias_out_),
        out.data_ptr(),
        logvar.data_ptr(),
        hidden.data_ptr() if two and need_backward else 0,
    )
    workspace = allocate(_cpu.mlp_forward_workspace(float64, *arguments, 0))
    _cpu.mlp_forward(float64, *arguments, workspace.data_ptr())
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
    grads = [
        torch.empty(tensor.shape, dtype=tensor.dtype) if need else None
        for tensor, need in zip((*inputs, *weights), needs, strict=False)
    ]
    dtype, (need_bias, need_weight_out, need_bias_out) = weights[0].dtype, needs[len(grads) :]
    grad_bias = torch.empty(width, dtype=dtype) if need_bias else None
    grad_weight_out = grad_bias_out = None
    if weight_out is not None:
        grad_weight_out = empty_like(weight_out, need_weight_out)
        grad_bias_out = torch.empty(weight_out.shape[0], dtype=dtype) if need_bias_out else None
    grad_out_, grad_logvar_ = as_rows(grad_out), as_rows(grad_logvar)
    float64 = dtype is torch.float64
    arguments = (
        *_input_arguments(rows, weights_, grads[: len(inputs)], grads[len(inputs) :]),
        torch.get_num_threads(),
        inputs[0].shape[:-1].numel(),
        width,
        columns,
        ACTIVATION_CODES[activation],
        min_logvar is not None,
        0.0 if min_logvar is None else min_logvar,
        *row_arguments(weight_out_),
        *row_arguments(grad_out_),
        *row_arguments(grad_logvar_),
        logvar.data_ptr(),
        hidden.data_ptr(),
        pointer(grad_bias),
        pointer(grad_weight_out),
        pointer(grad_bias_out),
    )
    workspace = allocate(_cpu.mlp_backward_workspace(float64, *arguments, 0))
    _cpu.mlp_backward(float64, *arguments, workspace.data_ptr())
    return *grads, grad_bias, grad_weight_out, grad_bias_out
