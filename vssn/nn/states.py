"""What a layer takes and returns: states between chunks, embedded frames, a sample of the latents."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class State(NamedTuple):
    """What carries on from one chunk of a sequence to the next, each at the last valid step."""

    d: Tensor  # [B, D]
    z: Tensor  # [B, Z]
    x_last: Tensor  # [B, F]  the last input frame


class CausalState(NamedTuple):
    """State of a model with inference="causal" and a latent: what its a has seen carries on too."""

    d: Tensor  # [B, D]
    z: Tensor  # [B, Z]
    x_last: Tensor  # [B, F]
    a: Tensor  # [B, A]


AnyState = State | CausalState


class LayerOutput(NamedTuple):
    output: Tensor  # [T, B, D+Z]
    state: AnyState
    kl: Tensor  # [T, B]


class Embedded(NamedTuple):
    """Frames that VSSN has checked and embedded, time-major and finite at padding, with what belongs to them."""

    x: Tensor  # [T, B, X]
    controls: tuple[Tensor, ...]  # those that make u_t, each [T, B, ·]
    noise: tuple[Tensor, ...]  # eps_w [T, B, W], eps_z [T, B, Z], and eps_0 [B, S] where d_0 is inferred


class Seen(NamedTuple):
    """What q(w_t | .) of a DVBF takes of the frames, beside z_{t-1}."""

    embedded: Tensor  # [T, B, E] of x_t
    first: Tensor  # [T, B, 1]: 1 where a sequence starts
    u: tuple[Tensor, ...]  # u_t [T, B, U], where there is one
    initial: tuple[Tensor, Tensor]  # mean and log-variance of w_1, of all frames, each [B, W]


class Inference(NamedTuple):
    """One sample of the latents given a sequence, and what it costs."""

    d: Tensor  # [T, B, D]
    z: Tensor  # [T, B, Z]
    kl_z: Tensor  # [T, B]
    kl_w: Tensor  # [T, B]
    d_last: Tensor  # [B, D]
    z_last: Tensor  # [B, Z]
    universal_kl: Tensor | None = None  # scalar, of universal="gaussian"
    kl_0: Tensor | None = None  # [B], of an inferred d_0
    a_last: Tensor | None = None  # [B, A]
    kl_z_trained: Tensor | None = None  # [T, B] in the loss, in the place of kl_z: the same with other gradients


def charged(result: Inference) -> Tensor:
    """kl_w [T, B] with the KL of an inferred d_0 at the first frame."""
    if result.kl_0 is None or not result.kl_w.shape[0]:
        return result.kl_w
    return torch.cat((result.kl_w[:1] + result.kl_0, result.kl_w[1:]))
