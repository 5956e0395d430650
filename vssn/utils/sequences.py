"""Padding and layout of batches of sequences: [T, B, ·] inside, lengths [B]."""

from __future__ import annotations

from typing import overload

import torch
from torch import Tensor

from vssn.utils.checks import require_device, require_like, require_shape, require_tensor
from vssn.utils.values import require_lengths_in_range, require_whole_frames


def valid_steps(lengths: Tensor | None, like: Tensor) -> Tensor | None:
    """[T, B] bool, True where t < lengths[b], for `like` [T, B, ·]; None without lengths. Checks their form, [B]."""
    if lengths is None:
        return None
    require_shape("lengths", lengths, "[B]", (like.shape[1],))
    return torch.arange(like.shape[0], device=like.device)[:, None] < lengths


def check_sequences(
    x: object, u: object, x_size: int, control_size: int, batch_first: bool, like: Tensor
) -> tuple[Tensor, Tensor | None]:
    """x and u time-major. Raises TypeError or ValueError where they do not fit, or not the parameter `like`."""
    x = require_tensor("x", x)
    letters = "[B, T, X]" if batch_first else "[T, B, X]"
    if x.dim() != 3 or x.shape[-1] != x_size:
        raise ValueError(f"x must have shape {letters} with X = {x_size}, got {list(x.shape)}")
    require_like("x", x, like)
    x = swap(x, batch_first)
    return x, check_control("u", u, x, control_size, batch_first)


def check_control(
    name: str, u: object, like: Tensor, control_size: int, batch_first: bool, time: str = "T"
) -> Tensor | None:
    """The external control of `like` [T, B, ·], time-major. Raises TypeError or ValueError where it does not fit.

    Args:
        time: what the caller calls the number of steps.
    """
    if control_size == 0:
        if u is not None:
            raise ValueError(f"{name} must be None: this model has no external control (control_size=0)")
        return None
    if u is None:
        raise ValueError(f"{name} is missing: this model has an external control of size {control_size}")
    letters = f"[B, {time}, U]" if batch_first else f"[{time}, B, U]"
    steps, batch = like.shape[:2]
    u = require_tensor(name, u)
    require_shape(name, u, letters, (batch, steps, control_size) if batch_first else (steps, batch, control_size))
    require_like(name, u, like)
    return swap(u, batch_first)


def check_lengths(lengths: Tensor | None, like: Tensor) -> None:
    """Raises TypeError or ValueError where `lengths` do not fit `like` [T, B, ·]."""
    if lengths is None:
        return
    require_shape("lengths", lengths, "[B]", (like.shape[1],))
    if lengths.dtype != torch.int64:
        raise TypeError(f"lengths must be int64, got {lengths.dtype}; convert it with .long()")
    require_device("lengths", lengths, like.device, "x is")
    require_lengths_in_range(lengths, like.shape[0])


def check_mask(mask: Tensor | None, x: Tensor, batch_first: bool) -> Tensor | None:
    """The mask [T, B] or [T, B, X] as [T, B, X] for x [T, B, X]; None stays None. Raises TypeError or ValueError."""
    if mask is None:
        return None
    mask = require_tensor("mask", mask, "bool torch.Tensor")
    if mask.dtype != torch.bool:
        raise TypeError(f"mask must be a bool torch.Tensor, got {mask.dtype}; convert it with .bool()")
    came, mask = list(mask.shape), swap(mask, batch_first) if mask.dim() > 1 else mask
    if tuple(mask.shape) not in (tuple(x.shape[:2]), tuple(x.shape)):
        letters = "[B, T] or [B, T, X]" if batch_first else "[T, B] or [T, B, X]"
        raise ValueError(f"mask must have shape {letters} as x has, got {came}")
    require_device("mask", mask, x.device, "x is")
    return (mask if mask.dim() == 3 else mask[..., None]).expand_as(x)


@overload
def zero_padding(sequence: Tensor, valid: Tensor | None) -> Tensor: ...
@overload
def zero_padding(sequence: None, valid: Tensor | None) -> None: ...
def zero_padding(sequence: Tensor | None, valid: Tensor | None) -> Tensor | None:
    """The sequence [T, B] or [T, B, ·] with 0 where it is not valid; None stays None."""
    if valid is None or sequence is None:
        return sequence
    mask = valid if sequence.dim() == 2 else valid[..., None]
    return torch.where(mask, sequence, sequence.new_zeros(()))


def zero_idle(first: Tensor, lengths: Tensor | None) -> Tensor:
    """What stands before a sequence, [B, ·], with 0 in rows without a step: whatever is there, NaN say, reaches no
    gradient."""
    if lengths is None:
        return first
    return torch.where((lengths > 0)[:, None], first, first.new_zeros(()))


def last_valid(sequence: Tensor, first: Tensor, lengths: Tensor | None) -> Tensor:
    """sequence[lengths[b] - 1, b], or first[b] where the length is 0: [T, B, ·], [B, ·] -> [B, ·], a copy."""
    if sequence.shape[0] == 0:
        return first.clone()
    if lengths is None:
        return sequence[-1].clone()
    rows = torch.arange(sequence.shape[1], device=sequence.device)
    chosen = sequence[(lengths - 1).clamp(min=0), rows]
    return torch.where((lengths > 0)[:, None], chosen, first)


@overload
def swap(tensor: Tensor, batch_first: bool) -> Tensor: ...
@overload
def swap(tensor: None, batch_first: bool) -> None: ...
def swap(tensor: Tensor | None, batch_first: bool) -> Tensor | None:
    """[B, T, ...] to [T, B, ...] and back where batch_first."""
    return tensor.transpose(0, 1) if batch_first and tensor is not None else tensor


def with_first(first: Tensor, sequence: Tensor) -> Tensor:
    """[1 + T, B, ·]: what stands before the sequence, then the sequence."""
    return torch.cat((first[None], sequence))


def terms_of_whole_frames(terms: Tensor, observed: Tensor | None, likelihood: str) -> Tensor:
    """The log-densities [T, B] of frames, 0 for those that are not observed, under a mask [T, B, X] or None.

    Raises:
        ValueError: a frame is observed in part, with an autoregressive likelihood: it would be a sum over the rest.
    """
    if observed is None:
        return terms
    require_whole_frames(observed, likelihood)
    return torch.where(observed.all(-1), terms, terms.new_zeros(()))
