"""The GRU recurrence on a packed batch, as torch's PackedSequence has it: of step t the first batch_sizes[t] rows, step
after step, the batch in order of falling length; padded for gru_sequence and packed again."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from vssn_kernels.reference import gru
from vssn_kernels.reference.sequence import compute_dtype


def places(batch_sizes: Tensor, rows: int, batch: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """(lengths [B], place [N] of each row among the T B of the padded batch), on the device. Shapes do not depend on
    values, and memory is that of the results."""
    ends = batch_sizes.cumsum(0)
    number = torch.arange(rows, device=batch_sizes.device)
    step = torch.searchsorted(ends, number, right=True)
    place = step * batch + number - (ends - batch_sizes)[step]
    index = torch.arange(batch, device=batch_sizes.device)
    lengths = len(batch_sizes) - torch.searchsorted(batch_sizes.flip(0), index, right=True)
    return lengths.to(device), place.to(device)


def pad(packed: Tensor, place: Tensor, steps: int, batch: int) -> Tensor:
    """[N, ·] -> [T, B, ·], zeros at padding."""
    width = packed.shape[1]
    return packed.new_zeros(steps * batch, width).index_copy(0, place, packed).view(steps, batch, width)


def pack(padded: Tensor, place: Tensor) -> Tensor:
    """[T, B, ·] -> [N, ·]."""
    return padded.flatten(0, 1).index_select(0, place)


def gru_packed(
    gates_x: Tensor,  # [N, 3H]
    h0: Tensor,  # [B, H]
    weight_hh: Tensor,  # [3H, H]
    bias_hh: Tensor,  # [3H]
    *,
    batch_sizes: Tensor,  # [T]
    reverse: bool = False,
) -> tuple[Tensor, Tensor]:
    """The plain function, differentiable any number of times: (output [N, H], h_n [B, H])."""
    steps, batch = len(batch_sizes), h0.shape[0]
    lengths, place = places(batch_sizes, gates_x.shape[0], batch, gates_x.device)
    x = pad(gates_x, place, steps, batch)
    output, h_n = gru.gru_sequence(x, h0, weight_hh, bias_hh, lengths=lengths, reverse=reverse)
    return pack(output, place), h_n


def by_padding(gru_forward: Callable, gru_backward: Callable) -> tuple[Callable, Callable]:
    """(gru_packed_forward, gru_packed_backward) of a backend that has gru_sequence's functions alone. The padded batch
    lives inside the calls; between them the packed rows do."""

    def gru_packed_forward(
        gates_x: Tensor,
        h0: Tensor,
        weight_hh: Tensor,
        bias_hh: Tensor,
        batch_sizes: Tensor,
        reverse: bool,
        need_backward: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(output [N, H], h_n [B, H], gates [N, 4H] as gru_forward keeps them; empty where not needed)"""
        steps, batch = len(batch_sizes), h0.shape[0]
        lengths, place = places(batch_sizes, gates_x.shape[0], batch, gates_x.device)
        x = pad(gates_x, place, steps, batch)
        output, h_n, gates = gru_forward(x, h0, weight_hh, bias_hh, lengths, reverse, need_backward)
        return pack(output, place), h_n, pack(gates, place) if need_backward else gates

    def gru_packed_backward(
        grad_output: Tensor | None,
        grad_h_n: Tensor | None,
        output: Tensor,
        gates: Tensor,
        h0: Tensor,
        weight_hh: Tensor,
        batch_sizes: Tensor,
        reverse: bool,
        needs: list[bool],
    ) -> tuple[Tensor | None, ...]:
        """Gradients of (gates_x, h0, weight_hh, bias_hh), None where not needed."""
        steps, batch = len(batch_sizes), h0.shape[0]
        lengths, place = places(batch_sizes, output.shape[0], batch, output.device)
        padded = [None if rows is None else pad(rows, place, steps, batch) for rows in (grad_output, output, gates)]
        grad_x, *grads = gru_backward(padded[0], grad_h_n, *padded[1:], h0, weight_hh, lengths, reverse, needs)
        return None if grad_x is None else pack(grad_x, place), *grads

    return gru_packed_forward, gru_packed_backward


gru_packed_forward, gru_packed_backward = by_padding(gru.gru_forward, gru.gru_backward)


def gru_packed_output(gates: Tensor, h0: Tensor, batch_sizes: Tensor, reverse: bool) -> Tensor:
    """Forward's output [N, H] once more, from the gates [N, 4H] that it kept."""
    _, z, n, _ = gates.to(compute_dtype(gates.dtype)).chunk(4, -1)
    return states(z, n, h0, batch_sizes, reverse).to(gates.dtype)


def states(z: Tensor, n: Tensor, h0: Tensor, batch_sizes: Tensor, reverse: bool) -> Tensor:
    """h' = (1 - z) n + z h from h0 on, for z and n [N, H]."""
    output, h = torch.empty_like(z), h0.to(z.dtype, copy=True)
    begin = 0 if not reverse else z.shape[0]
    sizes = batch_sizes.tolist()
    for size in reversed(sizes) if reverse else sizes:
        begin -= size if reverse else 0
        rows = slice(begin, begin + size)
        h[:size] = output[rows] = (1 - z[rows]) * n[rows] + z[rows] * h[:size]
        begin += 0 if reverse else size
    return output
