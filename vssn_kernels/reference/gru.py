"""GRU recurrence over given input gates, in plain PyTorch and with the backward written by hand.

r, z = sigmoid(gates_x[r, z] + W_h[r, z] h + b[r, z])
n    = tanh(gates_x[n] + r * (W_hn h + b_n))
h'   = (1 - z) n + z h                                    (the equations of torch.nn.GRU)
"""

from __future__ import annotations

import torch
from torch import Tensor

from vssn_kernels.reference.sequence import compute_dtype, each_step, outer_sum, stack_steps, valid_steps, zero_padding


def gru_sequence(
    gates_x: Tensor,  # [T, B, 3H]
    h0: Tensor,  # [B, H]
    weight_hh: Tensor,  # [3H, H]
    bias_hh: Tensor,  # [3H]
    *,
    lengths: Tensor | None = None,  # [B]
    reverse: bool = False,
) -> tuple[Tensor, Tensor]:
    """The plain function, differentiable any number of times: (output [T, B, H], h_n [B, H])."""
    output, h, _ = _unroll(gates_x, h0, weight_hh, bias_hh, lengths, reverse)
    return output.to(gates_x.dtype), h.to(h0.dtype)


def gru_forward(
    gates_x: Tensor,
    h0: Tensor,
    weight_hh: Tensor,
    bias_hh: Tensor,
    lengths: Tensor | None,
    reverse: bool,
    need_backward: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """(output [T, B, H], h_n [B, H], gates [T, B, 4H]: r, z, n and W_hn h + b_n; empty if not needed)."""
    output, h, gates = _unroll(gates_x, h0, weight_hh, bias_hh, lengths, reverse)
    saved = gates.to(gates_x.dtype) if need_backward else gates_x.new_empty(0)
    # h may be h0 itself (T = 0), and what an op returns shares memory with no input
    return output.to(gates_x.dtype), h.to(h0.dtype, copy=True), saved


def _unroll(
    gates_x: Tensor, h0: Tensor, weight_hh: Tensor, bias_hh: Tensor, lengths: Tensor | None, reverse: bool
) -> tuple[Tensor, Tensor, Tensor]:
    dtype = compute_dtype(gates_x.dtype)
    steps, width = gates_x.shape[0], gates_x.shape[2]
    valid = valid_steps(lengths, steps)
    x = each_step(zero_padding(gates_x.to(dtype), valid))
    weight_t, bias, h = weight_hh.to(dtype).T, bias_hh.to(dtype), h0.to(dtype)
    outputs: list[Tensor] = [h] * steps
    gates: list[Tensor] = [h] * steps
    for t in reversed(range(steps)) if reverse else range(steps):
        x_r, x_z, x_n = x[t].chunk(3, -1)
        start = zero_padding(h, None if valid is None else valid[t])  # a NaN that is carried over padding: no gradient
        h_r, h_z, h_n = torch.addmm(bias, start, weight_t).chunk(3, -1)
        r = torch.sigmoid(x_r + h_r)
        z = torch.sigmoid(x_z + h_z)
        n = torch.tanh(x_n + r * h_n)
        h_next = (1 - z) * n + z * start
        outputs[t] = h_next
        h = h_next if valid is None else torch.where(valid[t], h_next, h)
        gates[t] = torch.cat((r, z, n, h_n), -1)
    hidden = width // 3
    return zero_padding(stack_steps(outputs, gates_x, hidden), valid), h, stack_steps(gates, gates_x, 4 * hidden)


def gru_output(gates: Tensor, h0: Tensor, lengths: Tensor | None, reverse: bool) -> Tensor:
    """Forward's output [T, B, H] once more, from the gates [T, B, 4H] that it kept."""
    _, z, n, _ = gates.to(compute_dtype(gates.dtype)).chunk(4, -1)
    return states(z, n, h0, lengths, reverse).to(gates.dtype)


def states(z: Tensor, n: Tensor, h0: Tensor, lengths: Tensor | None, reverse: bool) -> Tensor:
    """h' = (1 - z) n + z h from h0 on, for z and n [T, B, H]; zeros at padding."""
    steps = z.shape[0]
    valid = valid_steps(lengths, steps)
    h = h0.to(z.dtype)
    outputs: list[Tensor] = [h] * steps
    for t in reversed(range(steps)) if reverse else range(steps):
        h_next = (1 - z[t]) * n[t] + z[t] * h
        h = h_next if valid is None else torch.where(valid[t], h_next, h)
        outputs[t] = h
    return zero_padding(stack_steps(outputs, z, z.shape[2]), valid)


def gru_backward(
    grad_output: Tensor | None,  # [T, B, H]
    grad_h_n: Tensor | None,  # [B, H]
    output: Tensor,  # [T, B, H]
    gates: Tensor,  # [T, B, 4H]
    h0: Tensor,
    weight_hh: Tensor,
    lengths: Tensor | None,
    reverse: bool,
    needs: list[bool],
) -> tuple[Tensor | None, ...]:
    """Gradients of (gates_x, h0, weight_hh, bias_hh), None where not needed.

    With dh the gradient that reaches h':
        grad_z = dh (h - n) z (1 - z)        grad_n = dh (1 - z) (1 - n^2)
        grad_r = grad_n (W_hn h + b_n) r (1 - r)
        dh    <- dh z + [grad_r, grad_z, r grad_n] W_hh
    """
    dtype = compute_dtype(output.dtype)
    steps, _, hidden = output.shape
    valid = valid_steps(lengths, steps)
    gates = zero_padding(gates.to(dtype), valid)
    previous = zero_padding(_previous_states(output, h0, lengths, reverse), valid)  # [T, B, H]
    weight = weight_hh.to(dtype)
    dh = torch.zeros_like(h0, dtype=dtype) if grad_h_n is None else grad_h_n.to(dtype)
    if grad_output is not None:
        grad_output = zero_padding(grad_output.to(dtype), valid)
    grad_gates: list[Tensor] = [dh] * steps
    grad_hidden_gates: list[Tensor] = [dh] * steps
    for t in range(steps) if reverse else reversed(range(steps)):
        r, z, n, h_n = gates[t].chunk(4, -1)
        total = dh if grad_output is None else dh + grad_output[t]
        here = total if valid is None else zero_padding(total, valid[t])
        grad_z = here * (previous[t] - n) * z * (1 - z)
        grad_n = here * (1 - z) * (1 - n * n)
        grad_r = grad_n * h_n * r * (1 - r)
        grad_gates[t] = torch.cat((grad_r, grad_z, grad_n), -1)
        grad_hidden_gates[t] = torch.cat((grad_r, grad_z, grad_n * r), -1)
        carried = torch.addmm(here * z, grad_hidden_gates[t], weight)
        dh = carried if valid is None else torch.where(valid[t], carried, dh)
    grad_gates_x = stack_steps(grad_gates, previous, 3 * hidden)
    grad_hidden = stack_steps(grad_hidden_gates, previous, 3 * hidden)
    return (
        grad_gates_x.to(output.dtype) if needs[0] else None,
        dh.to(h0.dtype, copy=True) if needs[1] else None,
        outer_sum(grad_hidden, previous).to(weight_hh.dtype) if needs[2] else None,
        grad_hidden.sum((0, 1)).to(weight_hh.dtype) if needs[3] else None,
    )


def _previous_states(output: Tensor, h0: Tensor, lengths: Tensor | None, reverse: bool) -> Tensor:
    """[T, B, H]: the state that each step started from."""
    steps = output.shape[0]
    dtype = compute_dtype(output.dtype)
    first = h0.to(dtype)[None]
    if steps == 0:
        return output.to(dtype)
    if not reverse:
        return torch.cat((first, output[:-1].to(dtype)))
    shifted = torch.cat((output[1:].to(dtype), first))
    if lengths is None:
        return shifted
    starts = torch.arange(steps, device=lengths.device)[:, None] == lengths - 1  # [T, B]
    return torch.where(starts[..., None], first, shifted)
