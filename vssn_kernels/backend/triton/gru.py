"""gru_sequence in Triton, and the weight's gradient as products after the loop."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
import triton
from torch import Tensor

from vssn_kernels.backend.common import Grads, weight_gradients
from vssn_kernels.backend.triton.configurations import Tiles, gru_tiles
from vssn_kernels.backend.triton.kernels import gru as kernels
from vssn_kernels.backend.triton.launch import (
    launch_tiled,
    new_like,
    on,
    on_matrix_cores,
    options,
    products,
    shared_memory,
    strided,
)


def _tiles(weight_hh: Tensor) -> Tiles:
    hidden, size = weight_hh.shape[1], weight_hh.element_size()
    return gru_tiles(hidden, size, on_matrix_cores(weight_hh), shared_memory(weight_hh))


def gru_forward(
    gates_x: Tensor,
    h0: Tensor,
    weight_hh: Tensor,
    bias_hh: Tensor,
    lengths: Tensor | None,
    reverse: bool,
    need_backward: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """(output [T, B, H], h_n [B, H], gates [T, B, 4H]: r, z, n and W_hn h + b_n; empty where not needed)"""
    steps, batch, _ = gates_x.shape
    hidden = h0.shape[1]
    new = partial(new_like, gates_x)
    output = new(steps, batch, hidden)
    h_n = new_like(h0, batch, hidden)
    gates = new(steps, batch, 4 * hidden) if need_backward else new(0)
    if batch == 0:
        return output, h_n, gates
    kept = gates if need_backward else None
    with on(gates_x):
        tiles = _tiles(weight_hh)
        constants = {"H": hidden, "REVERSE": reverse, "ROWS": tiles.rows, "UNITS": tiles.units, **products(gates_x)}
        weight = (*strided(weight_hh, 2), *strided(bias_hh, 1))
        if tiles.form == "resident":
            kernels.gru_forward_resident[(triton.cdiv(batch, tiles.rows),)](
                *strided(gates_x, 3), *strided(h0, 2), *weight, lengths, output, h_n, kept, steps, batch,
                **constants, **options(tiles),
            )  # fmt: skip
            return output, h_n, gates
        states = torch.empty((2, batch, hidden), dtype=torch.float32, device=h0.device)
        states[0].copy_(h0)
        arguments = (*strided(gates_x, 3), *weight, lengths, output, kept, states)
        constants["DEPTH"] = tiles.depth
        launch_tiled(kernels.gru_forward_tiled, arguments, constants, tiles, steps, h0, hidden, steps)
        h_n.copy_(states[steps % 2])
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
    new = partial(new_like, output)
    grad_gates_x = new(steps, batch, 3 * hidden)
    grad_a = new(steps, batch, hidden)
    grad_h0 = new_like(h0, *h0.shape) if need_h0 else None
    if batch > 0:
        with on(output):
            _gru_backward(
                grad_output, grad_h_n, output, gates, h0, weight_hh, lengths, reverse, grad_gates_x, grad_a, grad_h0
            )
    grad_weight = grad_bias = None
    if need_weight:
        grad_weight = new(3 * hidden, hidden)
        for grad, rows in ((grad_gates_x[..., : 2 * hidden], slice(2 * hidden)), (grad_a, slice(2 * hidden, None))):
            weight_gradients(grad, output, h0, lengths, reverse, grad_weight[rows])
    if need_bias:
        grad_bias = torch.cat((grad_gates_x[..., : 2 * hidden].sum((0, 1)), grad_a.sum((0, 1))))
    return grad_gates_x if need_gates_x else None, grad_h0, grad_weight, grad_bias


def _gru_backward(
    grad_output: Tensor | None,
    grad_h_n: Tensor | None,
    output: Tensor,
    gates: Tensor,
    h0: Tensor,
    weight_hh: Tensor,
    lengths: Tensor | None,
    reverse: bool,
    grad_gates_x: Tensor,
    grad_a: Tensor,
    grad_h0: Tensor | None,
) -> None:
    """Writes grad_gates_x, grad_a and grad_h0 (None: not wanted)."""
    steps, batch, hidden = output.shape
    tiles = _tiles(weight_hh)
    constants = {"H": hidden, "REVERSE": reverse, "ROWS": tiles.rows, "UNITS": tiles.units, **products(output)}
    inputs = (output, gates, *strided(h0, 2), *strided(weight_hh, 2), lengths, grad_gates_x, grad_a)
    if tiles.form == "resident":
        kernels.gru_backward_resident[(triton.cdiv(batch, tiles.rows),)](
            *strided(grad_output, 3), *strided(grad_h_n, 2), *inputs, grad_h0, steps, batch,
            **constants, **options(tiles),
        )  # fmt: skip
        return
    carry = torch.empty((2, batch, hidden), dtype=torch.float32, device=h0.device)
    if grad_h_n is None:
        carry[0].zero_()
    else:
        carry[0].copy_(grad_h_n)
    arguments = (*strided(grad_output, 3), *inputs, carry)
    constants["DEPTH"] = tiles.depth
    launch_tiled(kernels.gru_backward_tiled, arguments, constants, tiles, steps, h0, hidden, steps + 1)
    if grad_h0 is not None:
        grad_h0.copy_(carry[(steps + 1) % 2])
