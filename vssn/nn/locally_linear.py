"""A transition that is linear given where it starts from: one of several matrices, or rather a mixture of them."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from vssn.nn.blocks import MLP, reset_children

START = 0.1  # how far A_i are from the identity at first, of what B_i and C_i are from 0


class LocallyLinear(nn.Module):
    """z' = A z + B u + C w, (A, B, C) = sum_i alpha_i (A, B, C)_i, alpha = softmax(MLP(z, u)).

    The products with all of the matrices are one, [N, Z+U+W] by [K Z, Z+U+W].
    """

    def __init__(
        self,
        latent_size: int,
        control_size: int,
        noise_size: int,
        matrices: int,
        mlp_size: int,
        activation: str,
        **factory: Any,
    ) -> None:
        super().__init__()
        self.latent_size, self.matrices = latent_size, matrices
        sizes = (latent_size, control_size) if control_size else (latent_size,)
        self.mixture = MLP(sizes, mlp_size, matrices, activation, **factory)
        inputs = latent_size + control_size + noise_size
        self.weight = nn.Parameter(torch.empty(matrices, latent_size, inputs, **factory))  # A_i, B_i and C_i abreast
        self._reset_own()

    def _reset_own(self) -> None:
        bound = 1 / math.sqrt(self.weight.shape[-1])
        nn.init.uniform_(self.weight, -bound, bound)
        with torch.no_grad():
            a = self.weight[..., : self.latent_size]
            a.mul_(START).add_(torch.eye(self.latent_size, dtype=a.dtype, device=a.device))

    def reset_parameters(self) -> None:
        reset_children(self)
        self._reset_own()

    def forward(self, z: Tensor, u: tuple[Tensor, ...], w: Tensor) -> Tensor:
        """z [..., Z], u [..., U] if there is one, w [..., W] to the next z [..., Z]."""
        alpha = torch.softmax(self.mixture(z, *u), -1)
        moved = torch.cat((z, *u, w), -1) @ self.weight.flatten(0, 1).T
        return (alpha[..., None] * moved.unflatten(-1, (self.matrices, self.latent_size))).sum(-2)

    def extra_repr(self) -> str:
        return f"Z={self.latent_size}, matrices={self.matrices}"
