"""gru_sequence on the GPU: csrc/cuda/gru_forward.cu and gru_backward.cu, and the weight's gradient as products after
the loop."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from vssn_kernels import _cuda
from vssn_kernels.backend.common import (
    Grads,
    allows_tf32,
    as_rows,
    as_steps,
    pointer,
    row_arguments,
    step_arguments,
    weight_gradients,
)
from vssn_kernels.backend.cuda.launch import STORAGE, launch_on


class Wish(NamedTuple):
    """How a call is to be laid out on the device, instead of as csrc/cuda/gru_plan.cu would do it; 0: as it would."""

    exchange: int = 0  # 1: a block alone, 2: a cluster, 3: a cooperative grid
    blocks: int = 0  # of a cluster, or of a batch tile's part of a grid
    row_tiles: int = 0  # 1 or 2: batch tiles of 8 or, on tensor cores, 16 rows
    tiles_at_once: int = 0  # 1 to 4: batch tiles that take turns in a team of a grid


# For the tests, which set it.
wish = Wish()


def describe_plan(dtype: torch.dtype, batch: int, hidden: int, backward: bool = False, tf32: bool = False) -> str:
    """How such a call would be laid out on the current device: for tables and bug reports."""
    return _cuda.gru_plan(
        storage=STORAGE[dtype],
        tf32=tf32,
        backward=backward,
        B=batch,
        H=hidden,
        exchange=wish.exchange,
        blocks=wish.blocks,
        row_tiles=wish.row_tiles,
        tiles_at_once=wish.tiles_at_once,
    )


def _working_memory(like: Tensor, tf32: bool, backward: bool, batch: int, hidden: int) -> tuple[Tensor | None, ...]:
    """(counters, zeroed, and workspace, its start blank) of a call; None where it takes none."""
    counters, workspace, blank = _cuda.gru_workspace(
        storage=STORAGE[like.dtype],
        tf32=tf32,
        backward=backward,
        B=batch,
        H=hidden,
        exchange=wish.exchange,
        blocks=wish.blocks,
        row_tiles=wish.row_tiles,
        tiles_at_once=wish.tiles_at_once,
    )
    memory = torch.empty(workspace, dtype=torch.uint8, device=like.device) if workspace else None
    if memory is not None and blank:
        memory[:blank].fill_(0xFF)
    return torch.zeros(counters, dtype=torch.uint8, device=like.device) if counters else None, memory


def gru_forward(
    gates_x: Tensor,
    h0: Tensor,
    weight_hh: Tensor,
    bias_hh: Tensor,
    lengths: Tensor | None,
    reverse: bool,
    need_backward: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """(output [T, B, H], h_n [B, H], gates [T, B, 4H]: r, z, n, W_hn h + b_n of each unit; empty where not needed)"""
    steps, batch, _ = gates_x.shape
    hidden = h0.shape[1]
    output = gates_x.new_empty(steps, batch, hidden)
    h_n = torch.empty((batch, hidden), dtype=h0.dtype, device=h0.device)
    gates = gates_x.new_empty((steps, batch, 4 * hidden) if need_backward else 0)
    if batch == 0:
        return output, h_n, gates
    gates_x_, h0_, weight, bias = as_steps(gates_x), as_rows(h0), as_rows(weight_hh), bias_hh.contiguous()
    tf32 = gates_x.dtype is torch.float32 and allows_tf32()
    with launch_on(gates_x) as stream:
        counters, workspace = _working_memory(gates_x, tf32, False, batch, hidden)
        _cuda.gru_forward(
            storage=STORAGE[gates_x.dtype],
            state_storage=STORAGE[h0.dtype],
            tf32=tf32,
            exchange=wish.exchange,
            blocks=wish.blocks,
            row_tiles=wish.row_tiles,
            tiles_at_once=wish.tiles_at_once,
            steps=steps,
            B=batch,
            H=hidden,
            reverse=reverse,
            lengths=pointer(lengths),
            h0=row_arguments(h0_),
            weight=row_arguments(weight),
            counters=pointer(counters),
            workspace=pointer(workspace),
            stream=stream,
            gates_x=step_arguments(gates_x_),
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
    grad_gates_x = output.new_empty(steps, batch, 3 * hidden)
    grad_a = output.new_empty(steps, batch, hidden) if need_weight or need_bias else None
    grad_h0 = torch.empty((batch, hidden), dtype=h0.dtype, device=h0.device) if need_h0 else None
    if batch > 0:
        grad_output_, grad_h_n_, h0_, weight = as_steps(grad_output), as_rows(grad_h_n), as_rows(h0), as_rows(weight_hh)
        tf32 = output.dtype is torch.float32 and allows_tf32()
        with launch_on(output) as stream:
            counters, workspace = _working_memory(output, tf32, True, batch, hidden)
            _cuda.gru_backward(
                storage=STORAGE[output.dtype],
                state_storage=STORAGE[h0.dtype],
                tf32=tf32,
                exchange=wish.exchange,
                blocks=wish.blocks,
                row_tiles=wish.row_tiles,
                tiles_at_once=wish.tiles_at_once,
                steps=steps,
                B=batch,
                H=hidden,
                reverse=reverse,
                lengths=pointer(lengths),
                h0=row_arguments(h0_),
                weight=row_arguments(weight),
                counters=pointer(counters),
                workspace=pointer(workspace),
                stream=stream,
                grad_output=step_arguments(grad_output_),
                grad_h_n=row_arguments(grad_h_n_),
                output=output.data_ptr(),
                gates=gates.data_ptr(),
                grad_gates_x=grad_gates_x.data_ptr(),
                grad_a=pointer(grad_a),
                grad_h0=pointer(grad_h0),
            )
    grad_weight = grad_bias = None
    if need_weight and grad_a is not None:
        grad_weight = torch.empty((3 * hidden, hidden), dtype=weight_hh.dtype, device=weight_hh.device)
        for grad, part in ((grad_gates_x[..., : 2 * hidden], slice(2 * hidden)), (grad_a, slice(2 * hidden, None))):
            weight_gradients(grad, output, h0, lengths, reverse, grad_weight[part])
    if need_bias and grad_a is not None:
        grad_bias = torch.empty(3 * hidden, dtype=output.dtype, device=output.device)
        torch.sum(grad_gates_x[..., : 2 * hidden], (0, 1), out=grad_bias[: 2 * hidden])
        torch.sum(grad_a, (0, 1), out=grad_bias[2 * hidden :])
    return grad_gates_x if need_gates_x else None, grad_h0, grad_weight, grad_bias
