"""InterleavedChain: the recurrence of VRNN and RSSM, whose deterministic state takes the sample of the step before.

e_t      = act_e(embed_context_t + W_e z_{t-1})
h_t      = GRU(gates_x_t + W_zh e_t, h_{t-1})
z_t      ~ q = N(mu, exp logvar),  (mu, raw) = W_out act(context_t + W_h h_t) + b_out,  logvar by `scale`

What does not depend on z_{t-1} or h_{t-1} (gates_x, embed_context, context) is the caller's, for all t at once; so are
the prior and the emission, from h and z. `step` and `posterior` are the halves of one step, for what goes frame by
frame.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from vssn.utils.checks import require_choice, require_number, require_place, require_size
from vssn_kernels import gru_sequence, interleaved_sequence
from vssn_kernels.activations import MORE_ACTIVATIONS, activate
from vssn_kernels.reference.interleaved import log_variance

SCALES = ("logvar", "softplus")


class InterleavedChain(nn.Module):
    """The weights of `vssn_kernels.interleaved_sequence`, and calls of it.

    Args:
        hidden_size: H.
        latent_size: Z.
        embed_size: E, units of the embedding of z_{t-1}.
        mlp_size: M, units of the posterior's hidden layer.
        embed_inputs, context_inputs: features that stand beside z_{t-1} in the embedding and beside h_t in the hidden
            layer: the weights here start as those of one nn.Linear over both.
        embed_activation, activation: of the embedding and of the hidden layer.
        scale, min_logvar, min_std: as in `interleaved_sequence`.
        device, dtype: of the parameters.

    Raises:
        ValueError, TypeError: a size or a choice that is not possible, named with what was expected.
    """

    outputs = 2  # numbers of the distribution of a unit of z

    def __init__(
        self,
        hidden_size: int,
        latent_size: int,
        embed_size: int,
        mlp_size: int,
        *,
        embed_inputs: int = 0,
        context_inputs: int = 0,
        embed_activation: str = "relu",
        activation: str = "tanh",
        scale: str = "logvar",
        min_logvar: float = -12.0,
        min_std: float = 0.1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        for name, size in (("hidden_size", hidden_size), ("latent_size", latent_size)):
            require_size(name, size, 1)
        for name, size in (("embed_size", embed_size), ("mlp_size", mlp_size)):
            require_size(name, size, 1)
        for name, size in (("embed_inputs", embed_inputs), ("context_inputs", context_inputs)):
            require_size(name, size, 0)
        for name, choice in (("embed_activation", embed_activation), ("activation", activation)):
            require_choice(name, choice, MORE_ACTIVATIONS)
        require_choice("scale", scale, SCALES)
        require_number("min_logvar", min_logvar)
        require_number("min_std", min_std, 0.0)
        require_place(device, dtype)
        self.hidden_size, self.latent_size = hidden_size, latent_size
        self.embed_size, self.mlp_size = embed_size, mlp_size
        self.embed_inputs, self.context_inputs = embed_inputs, context_inputs
        self.embed_activation, self.activation = embed_activation, activation
        self.scale, self.min_logvar, self.min_std = scale, float(min_logvar), float(min_std)
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.weight_embed = nn.Parameter(torch.empty(embed_size, latent_size, **factory))
        self.weight_zh = nn.Parameter(torch.empty(3 * hidden_size, embed_size, **factory))
        self.weight_hh = nn.Parameter(torch.empty(3 * hidden_size, hidden_size, **factory))
        self.bias_hh = nn.Parameter(torch.empty(3 * hidden_size, **factory))
        self.weight_h = nn.Parameter(torch.empty(mlp_size, hidden_size, **factory))
        self.weight_out = nn.Parameter(torch.empty(self.outputs * latent_size, mlp_size, **factory))
        self.bias_out = nn.Parameter(torch.empty(self.outputs * latent_size, **factory))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The GRU's weights as nn.GRU's start, uniform within 1 / sqrt(H), the others as nn.Linear's."""
        fans = {
            self.weight_embed: self.latent_size + self.embed_inputs,
            self.weight_zh: self.hidden_size,
            self.weight_hh: self.hidden_size,
            self.bias_hh: self.hidden_size,
            self.weight_h: self.hidden_size + self.context_inputs,
            self.weight_out: self.mlp_size,
            self.bias_out: self.mlp_size,
        }
        for parameter, fan in fans.items():
            nn.init.uniform_(parameter, -1 / math.sqrt(fan), 1 / math.sqrt(fan))

    def forward(
        self,
        gates_x: Tensor,
        embed_context: Tensor,
        context: Tensor,
        h0: Tensor,
        z0: Tensor,
        eps: Tensor,
        *,
        lengths: Tensor | None = None,
        resets: Tensor | None = None,
        reset_h: Tensor | None = None,
        reset_z: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """h [T, B, H], z, mu, logvar [T, B, Z], zeros at padding. Arguments and errors as in `interleaved_sequence`:
        gates_x [T, B, 3H], embed_context [T, B, E], context [T, B, M], h0 [B, H], z0 [B, Z], eps [T, B, Z]."""
        return interleaved_sequence(
            gates_x,
            embed_context,
            context,
            h0,
            z0,
            eps,
            self.weight_embed,
            self.weight_zh,
            self.weight_hh,
            self.bias_hh,
            self.weight_h,
            self.weight_out,
            self.bias_out,
            embed_activation=self.embed_activation,
            activation=self.activation,
            scale=self.scale,
            min_logvar=self.min_logvar,
            min_std=self.min_std,
            lengths=lengths,
            resets=resets,
            reset_h=reset_h,
            reset_z=reset_z,
        )

    def embed(self, embed_context: Tensor, z: Tensor) -> Tensor:
        """act_e(embed_context + z W_e^T) [..., E] of z [..., Z]; embed_context [..., E], or [E] alone."""
        return activate(z @ self.weight_embed.T + embed_context, self.embed_activation)

    def step(self, gates_x: Tensor, embed_context: Tensor, h: Tensor, z: Tensor) -> Tensor:
        """h_t [B, H] from h_{t-1} [B, H] and z_{t-1} [B, Z]; gates_x [B, 3H], embed_context [B, E] or [E]."""
        gates = gates_x + self.embed(embed_context, z) @ self.weight_zh.T
        return gru_sequence(gates[None], h, self.weight_hh, self.bias_hh)[1]

    def posterior(self, context: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        """mu, logvar [..., Z] of q(z_t | context_t, h_t), from context [..., M] and h [..., H]."""
        hidden = activate(context + h @ self.weight_h.T, self.activation)
        mu, raw = nn.functional.linear(hidden, self.weight_out, self.bias_out).chunk(2, -1)
        return mu, log_variance(raw, self.scale, self.min_logvar, self.min_std)

    def extra_repr(self) -> str:
        floor = f"min_std={self.min_std}" if self.scale == "softplus" else f"min_logvar={self.min_logvar}"
        return (
            f"H={self.hidden_size}, Z={self.latent_size}, E={self.embed_size}, M={self.mlp_size}, "
            f"embed_activation={self.embed_activation!r}, activation={self.activation!r}, scale={self.scale!r}, {floor}"
        )
