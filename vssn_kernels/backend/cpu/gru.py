"""gru_sequence on the CPU: csrc/cpu/gru.cpp."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vssn_kernels import _cpu
from vssn_kernels.backend.common import Grads, as_rows, as_steps, pointer, row_arguments, step_arguments
from vssn_kernels.backend.cpu.call import empty_like, is_float64
from vssn_kernels.reference.gru import states


def gru_forward(
    gates_x: Tensor,
    h0: Tensor,
    weight_hh: Tensor,
    bias_hh: Tensor,
    lengths: Tensor | None,
    reverse: bool,
    need_backward: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """(output [T, B, H], h_n [B, H], gates [T, B, 4H], its order the kernels' own; empty where not needed)"""
    steps, batch, _ = gates_x.shape
    hidden = h0.shape[1]
    output, h_n = h0.new_empty(steps, batch, hidden), h0.new_empty(batch, hidden)
    gates = h0.new_empty(steps, batch, 4 * hidden) if need_backward else h0.new_empty(0)
    gates_x_, h0_, weight, bias = as_steps(gates_x), as_rows(h0), as_rows(weight_hh), bias_hh.contiguous()
    _cpu.gru_forward(
        float64=is_float64(h0),
        threads=torch.get_num_threads(),
        steps=steps,
        B=batch,
        H=hidden,
        reverse=reverse,
        lengths=pointer(lengths),
        gates_x=step_arguments(gates_x_),
        h0=row_arguments(h0_),
        weight=row_arguments(weight),
        bias=bias.data_ptr(),
        output=output.data_ptr(),
        h_n=h_n.data_ptr(),
        gates=gates.data_ptr() if need_backward else 0,
    )
    return output, h_n, gates


def gru_backward(
    grad_output: Tensor | None,
    grad_h_n: Tensor | None,
    output: Tensor,
    gates: Tensor,
    h0: Tensor,
    weight_hh: Tensor,
    lengths: Tensor | None,
    reverse: bool,
    needs: Sequence[bool],
) -> Grads:
    """Gradients of (gates_x, h0, weight_hh, bias_hh)."""
    steps, batch, hidden = output.shape
    need_gates_x, need_h0, need_weight, need_bias = needs
    grad_gates_x, grad_a = output.new_empty(steps, batch, 3 * hidden), output.new_empty(steps, batch, hidden)
    grad_h0, grad_weight = empty_like(h0, need_h0), empty_like(weight_hh, need_weight)
    grad_bias = output.new_empty(3 * hidden) if need_bias else None
    grad_output_, grad_h_n_, h0_, weight = as_steps(grad_output), as_rows(grad_h_n), as_rows(h0), as_rows(weight_hh)
    _cpu.gru_backward(
        float64=is_float64(output),
        threads=torch.get_num_threads(),
        steps=steps,
        B=batch,
        H=hidden,
        reverse=reverse,
        lengths=pointer(lengths),
        grad_output=step_arguments(grad_output_),
        grad_h_n=row_arguments(grad_h_n_),
        output=output.data_ptr(),
        gates=gates.data_ptr(),
        h0=row_arguments(h0_),
        weight=row_arguments(weight),
        grad_gates_x=grad_gates_x.data_ptr(),
        grad_a=grad_a.data_ptr(),
        grad_h0=pointer(grad_h0),
        grad_weight=pointer(grad_weight),
        grad_bias=pointer(grad_bias),
    )
    return grad_gates_x if need_gates_x else None, grad_h0, grad_weight, grad_bias


_VECTOR_BYTES = {"avx512": 64, "avx2": 32, "generic": 16}  # csrc/cpu/simd.h


def gru_output(gates: Tensor, h0: Tensor, lengths: Tensor | None, reverse: bool) -> Tensor:
    """Forward's output [T, B, H] once more, from the gates that it kept."""
    steps, batch, hidden = *gates.shape[:2], h0.shape[1]
    lanes = _VECTOR_BYTES[_cpu.isa()] // gates.element_size()
    whole = hidden // lanes * lanes  # the units of whole vectors: for each vector r, z, n, a; then the rest alike
    vectors = gates[..., : 4 * whole].view(steps, batch, whole // lanes, 4, lanes)
    rest = gates[..., 4 * whole :].view(steps, batch, 4, hidden - whole)
    z, n = (torch.cat((vectors[..., gate, :].reshape(steps, batch, whole), rest[..., gate, :]), -1) for gate in (1, 2))
    return states(z, n, h0, lengths, reverse)
