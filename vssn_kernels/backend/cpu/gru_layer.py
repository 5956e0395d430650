"""A whole layer of torch.nn.GRU on the CPU, the input's product included: a sequence, or a single step."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vssn_kernels import _cpu
from vssn_kernels.backend.common import Grads, as_rows, as_steps, pointer, row_arguments, step_arguments
from vssn_kernels.backend.cpu.call import storage
from vssn_kernels.backend.cpu.gru import backward, cell, cell_backward, forward, packed_arguments, product


def gru_layer_forward(
    x: Tensor,
    h0: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor | None,
    bias_hh: Tensor,
    lengths: Tensor | None,
    batch_sizes: Tensor | None,
    reverse: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """x [T, B, X], packed [N, X], to (output [.., H], h_n [B, H], gates [.., 4H]). The product is computed where the
    gates are to be, which are written over it."""
    leading, hidden = x.shape[:-1], h0.shape[1]
    gates = h0.new_empty(*leading, 4 * hidden)
    gates_x, rows = gates.view(-1, 4 * hidden)[:, : 3 * hidden], x.reshape(-1, x.shape[-1])
    if bias_ih is None:
        torch.mm(rows, weight_ih.t(), out=gates_x)
    else:
        torch.addmm(bias_ih, rows, weight_ih.t(), out=gates_x)
    row, steps = 4 * hidden, leading[0] if batch_sizes is None else len(batch_sizes)
    sequence = (gates.data_ptr(), leading[1] * row if batch_sizes is None else 0, row)
    return forward(leading, sequence, steps, lengths, batch_sizes, h0, weight_hh, bias_hh, reverse, True, gates)


def gru_layer_backward(
    grad_output: Tensor | None,
    grad_h_n: Tensor | None,
    output: Tensor,
    gates: Tensor,
    x: Tensor,
    h0: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    lengths: Tensor | None,
    batch_sizes: Tensor | None,
    reverse: bool,
    needs: Sequence[bool],
    over_gates: bool,
) -> Grads:
    """Gradients of (x, h0, weight_ih, weight_hh, bias_ih, bias_hh). over_gates: gates are not needed any more."""
    need_x, need_h0, need_weight_ih, need_weight_hh, need_bias_ih, need_bias_hh = needs
    hidden, asked = h0.shape[1], (True, need_h0, need_weight_hh, need_bias_ih or need_bias_hh)
    if batch_sizes is None:
        grad_output_ = as_steps(grad_output)
        sequence, steps = step_arguments(grad_output_), x.shape[0]
    else:
        grad_output_ = as_rows(grad_output)
        sequence, steps = packed_arguments(grad_output_), len(batch_sizes)
    grad_gates, grad_h0, grad_weight_hh, grad_bias_hh = backward(
        sequence,
        grad_h_n,
        output,
        gates,
        h0,
        weight_hh,
        steps,
        lengths,
        batch_sizes,
        reverse,
        asked,
        over_gates,
    )
    assert grad_gates is not None
    rows, grad_bias_ih = grad_gates.flatten(0, -2), None
    if need_bias_ih:  # of r and z it is that of bias_hh
        assert grad_bias_hh is not None
        grad_bias_ih = torch.cat((grad_bias_hh[: 2 * hidden], rows[:, 2 * hidden :].sum(0)))
    return (
        torch.mm(rows, weight_ih).view(x.shape) if need_x else None,
        grad_h0,
        torch.mm(rows.t(), x.reshape(-1, x.shape[-1])) if need_weight_ih else None,
        grad_weight_hh,
        grad_bias_ih,
        grad_bias_hh if need_bias_hh else None,
    )


def layer_by_library(rows: int, hidden: int) -> bool:
    """Whether both products of a layer's single step are PyTorch's: for more rows than these it is faster than weights
    that are met as they are."""
    return rows > (32 if hidden < 80 else 16)


def gru_layer_step(
    x: Tensor,
    h: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor | None,
    bias_hh: Tensor | None,
    need_backward: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """x [1, B, X], h [B, H] to (output [1, B, H], h_n [B, H], gates as gru_forward's) of a layer."""
    batch, hidden = h.shape
    output, h_n = torch.empty((1, batch, hidden), dtype=h.dtype), torch.empty((batch, hidden), dtype=h.dtype)
    gates = torch.empty((1, batch, 4 * hidden) if need_backward else 0, dtype=h.dtype)
    if layer_by_library(batch, hidden):
        bias_hh = weight_hh.new_zeros(3 * hidden) if bias_hh is None else bias_hh
        gates_x = product(x[0], weight_ih, bias_ih)
        sequence = (gates_x.data_ptr(), 0, 3 * hidden)
        cell(sequence, h, weight_hh, bias_hh, output, h_n, gates.data_ptr() if need_backward else 0)
        return output, h_n, gates
    rows, h_ = as_rows(x), as_rows(h)
    weight_ih_, weight_hh_ = as_rows(weight_ih), as_rows(weight_hh)
    bias_ih_, bias_hh_ = (None if bias is None else bias.contiguous() for bias in (bias_ih, bias_hh))
    _cpu.gru_layer_step(
        storage=storage(h),
        threads=torch.get_num_threads(),
        B=batch,
        X=rows.shape[1],
        H=hidden,
        x=row_arguments(rows),
        h=row_arguments(h_),
        weight_ih=row_arguments(weight_ih_),
        weight_hh=row_arguments(weight_hh_),
        bias_ih=pointer(bias_ih_),
        bias_hh=pointer(bias_hh_),
        output=output.data_ptr(),
        h_n=h_n.data_ptr(),
        gates=gates.data_ptr() if need_backward else 0,
    )
    return output, h_n, gates


def gru_layer_step_backward(
    grad_output: Tensor | None,
    grad_h_n: Tensor | None,
    gates: Tensor,
    x: Tensor,
    h: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    needs: Sequence[bool],
) -> Grads:
    """Gradients of (x, h, weight_ih, weight_hh, bias_ih, bias_hh)."""
    need_x, need_h, need_weight_ih, need_weight_hh, need_bias_ih, need_bias_hh = needs
    grad_output_ = as_steps(grad_output)
    sequence, batch, of_cell = step_arguments(grad_output_), h.shape[:1], (True, need_h, need_weight_hh, need_bias_hh)
    grad_gates, grad_h, *grads_hh = cell_backward(sequence, grad_h_n, gates, h, weight_hh, batch, of_cell)
    assert grad_gates is not None
    return (
        torch.mm(grad_gates, weight_ih)[None] if need_x else None,
        grad_h,
        torch.mm(grad_gates.t(), x[0]) if need_weight_ih else None,
        grads_hh[0],
        grad_gates.sum(0) if need_bias_ih else None,
        grads_hh[1],
    )
