"""A padded batch of sequences as its valid steps alone, in the order of a PackedSequence; CPU tensors."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Packing(NamedTuple):
    """Where the valid steps of a batch stand: row i of the packed batch is step[i] of sequence[i]."""

    batch_sizes: Tensor  # [steps] how many sequences have it
    order: Tensor  # [B] the sequences by falling length
    place: Tensor  # [B] of each sequence in that order
    step: Tensor  # [N]
    sequence: Tensor  # [N]


def packing(lengths: Tensor) -> Packing:
    """For lengths [B], 0 allowed, on the CPU."""
    falling, order = lengths.sort(descending=True, stable=True)
    device = lengths.device  # not a default one of the caller's
    steps = torch.arange(int(falling[0]) if len(falling) else 0, device=device)
    batch_sizes = len(lengths) - torch.searchsorted(falling.flip(0), steps, right=True)
    ends = batch_sizes.cumsum(0)
    number = torch.arange(int(falling.sum()), device=device)
    step = torch.searchsorted(ends, number, right=True)
    return Packing(batch_sizes, order, order.argsort(), step, order[number - (ends - batch_sizes)[step]])


def pack(x: Tensor, of: Packing) -> Tensor:
    """[T, B, ·] -> [N, ·], without another copy where one of T and B is behind the other in memory."""
    steps, batch, width = x.shape
    if x.stride(0) < x.stride(1):
        return x.transpose(0, 1).reshape(batch * steps, width).index_select(0, of.sequence * steps + of.step)
    return x.reshape(steps * batch, width).index_select(0, of.step * batch + of.sequence)


def unpack(packed: Tensor, of: Packing, steps: int) -> Tensor:
    """[N, ·] -> [T, B, ·], zeros at padding."""
    batch, width = len(of.order), packed.shape[1]
    zeros = packed.new_zeros(steps * batch, width)
    return zeros.index_copy_(0, of.step * batch + of.sequence, packed).view(steps, batch, width)
