"""Padding and layout of batches of sequences: [T, B, ·] inside, lengths [B]."""

from __future__ import annotations

from typing import overload

import torch
from torch import Tensor

from vssn.checks import require_shape


def valid_steps(lengths: Tensor | None, like: Tensor) -> Tensor | None:
    """[T, B] bool, True where t < lengths[b], for `like` [T, B, ·]; None without lengths. Checks their form, [B]."""
    if lengths is None:
        return None
    require_shape("lengths", lengths, "[B]", (like.shape[1],))
    return torch.arange(like.shape[0], device=like.device)[:, None] < lengths


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
    whole = observed.all(-1)
    if bool((whole != observed.any(-1)).any()):
        raise ValueError(
            f"mask must leave out whole frames with likelihood={likelihood!r}, got a frame observed in part"
        )
    return torch.where(whole, terms, terms.new_zeros(()))
