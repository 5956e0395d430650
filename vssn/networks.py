"""The small networks that the layer and the model are made of. Weights over several inputs are one matrix,
applied input by input: nothing is concatenated.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vssn_kernels import gaussian_mlp, gru_sequence, mlp, split_linear
from vssn_kernels.activations import activate

_LOG_2PI = math.log(2 * math.pi)


def floor_logvar(raw: Tensor, min_logvar: float) -> Tensor:
    """min_logvar + softplus(raw - min_logvar): a smooth floor, so that no variance reaches 0."""
    return min_logvar + F.softplus(raw - min_logvar)


def gaussian_log_density(x: Tensor, mu: Tensor, logvar: Tensor) -> Tensor:
    """log N(x; mu, exp logvar) of every entry, in nats."""
    return -0.5 * (_LOG_2PI + logvar + (x - mu) ** 2 * torch.exp(-logvar))


class SplitLinear(nn.Module):
    """A linear map of several inputs: bias + sum_i x_i W_i^T, with weight [out, sum of in_sizes]."""

    def __init__(self, in_sizes: tuple[int, ...], out_size: int) -> None:
        super().__init__()
        self.in_sizes = tuple(in_sizes)
        self.weight = nn.Parameter(torch.empty(out_size, sum(in_sizes)))
        self.bias = nn.Parameter(torch.empty(out_size))
        bound = 1 / math.sqrt(max(sum(in_sizes), 1))
        nn.init.uniform_(self.weight, -bound, bound)
        nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, *inputs: Tensor) -> Tensor:
        """Inputs [..., in_sizes[i]] to [..., out]; an input of size 0 adds nothing."""
        return split_linear(inputs, self.weight, self.bias)


class MLP(nn.Module):
    """One hidden layer over several inputs: act(SplitLinear) and a linear output."""

    def __init__(self, in_sizes: tuple[int, ...], hidden_size: int, out_size: int, activation: str) -> None:
        super().__init__()
        self.activation = activation
        self.hidden = SplitLinear(in_sizes, hidden_size)
        self.out = nn.Linear(hidden_size, out_size)

    def forward(self, *inputs: Tensor) -> Tensor:
        """Inputs [..., in_sizes[i]] to [..., out]."""
        return mlp(inputs, *self._parameters_in_order(), activation=self.activation)

    def gaussian(self, inputs: tuple[Tensor, ...], min_logvar: float) -> tuple[Tensor, Tensor]:
        """The mean and the floored log-variance that the output's halves give, each [..., out / 2]."""
        return gaussian_mlp(inputs, *self._parameters_in_order(), activation=self.activation, min_logvar=min_logvar)

    def _parameters_in_order(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.hidden.weight, self.hidden.bias, self.out.weight, self.out.bias


class Embedding(nn.Module):
    """act(x W^T + b): the embedding e_x or e_u of a frame."""

    def __init__(self, in_size: int, out_size: int, activation: str) -> None:
        super().__init__()
        self.activation = activation
        self.linear = nn.Linear(in_size, out_size)

    def forward(self, x: Tensor) -> Tensor:
        return activate(self.linear(x), self.activation, overwrite=True)


class Recurrence(nn.Module):
    """A GRU over several inputs; recurrent weights start orthogonal, gate by gate."""

    def __init__(self, in_sizes: tuple[int, ...], hidden_size: int) -> None:
        super().__init__()
        self.input = SplitLinear(in_sizes, 3 * hidden_size)
        self.weight_hh = nn.Parameter(torch.empty(3, hidden_size, hidden_size))
        self.bias_hh = nn.Parameter(torch.zeros(3 * hidden_size))
        for gate in self.weight_hh.data:
            nn.init.orthogonal_(gate)
        self.weight_hh.data = self.weight_hh.data.view(3 * hidden_size, hidden_size)

    def forward(
        self,
        inputs: tuple[Tensor, ...],
        h0: Tensor,
        *,
        lengths: Tensor | None = None,
        reverse: bool = False,
        weight_hh: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Inputs [T, B, in_sizes[i]], h0 [B, H] to (output [T, B, H], h_n [B, H])."""
        return self.run(self.input(*inputs), h0, lengths=lengths, reverse=reverse, weight_hh=weight_hh)

    def run(
        self,
        gates_x: Tensor,
        h0: Tensor,
        *,
        lengths: Tensor | None = None,
        reverse: bool = False,
        weight_hh: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """`forward` behind its input's part: gates_x [T, B, 3H] is `input(*inputs)`."""
        weight = self.weight_hh if weight_hh is None else weight_hh
        return gru_sequence(gates_x, h0, weight, self.bias_hh, lengths=lengths, reverse=reverse)


class LatentNetwork(nn.Module):
    """(mu, logvar) of z_t given z_{t-1} and some inputs: f of the paper's Eq. 2, and q of its Eq. 4 alike.

    hidden = act(W_z z_{t-1} + W inputs + b), one linear output of 2Z: mean, then raw log-variance.
    """

    def __init__(
        self, latent_size: int, in_sizes: tuple[int, ...], hidden_size: int, activation: str, min_logvar: float
    ) -> None:
        super().__init__()
        self.activation, self.min_logvar = activation, min_logvar
        # One draw of the same range for W_z and W: together they are one matrix over [z, inputs].
        self.context = SplitLinear(in_sizes, hidden_size) if in_sizes else None
        bound = 1 / math.sqrt(latent_size + sum(in_sizes))
        self.weight_z = nn.Parameter(torch.empty(hidden_size, latent_size).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.zeros(hidden_size)) if self.context is None else None
        self.out = nn.Linear(hidden_size, 2 * latent_size)

    def contexts(self, inputs: tuple[Tensor, ...], like: Tensor) -> Tensor:
        """The part that does not depend on z_{t-1}, for every t: [T, B, M]; `like` [T, B, ·] where no input is."""
        if self.context is not None:
            return self.context(*inputs)
        assert self.bias is not None
        return self.bias.expand(*like.shape[:2], -1)

    def at_once(self, z_previous: Tensor, inputs: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        """mu, logvar [T, B, Z] for every t from z_{t-1} [T, B, Z] and the inputs: forward(., contexts(.)) as one op."""
        weights, bias = [self.weight_z], self.bias
        if self.context is not None:
            own, bias = self.context.weight, self.context.bias
            weights += [own] if len(inputs) == 1 else own.split(self.context.in_sizes, 1)
        assert bias is not None
        return gaussian_mlp(
            (z_previous, *inputs),
            weights,
            bias,
            self.out.weight,
            self.out.bias,
            activation=self.activation,
            min_logvar=self.min_logvar,
        )

    def forward(self, z_previous: Tensor, contexts: Tensor) -> tuple[Tensor, Tensor]:
        """z_{t-1} [T, B, Z] for every t at once, contexts [T, B, M] to mu, logvar [T, B, Z]."""
        rows = torch.addmm(
            contexts.reshape(-1, contexts.shape[-1]), z_previous.reshape(-1, z_previous.shape[-1]), self.weight_z.T
        )
        mu, raw = (
            self.out(activate(rows, self.activation, overwrite=True))
            .view(*z_previous.shape[:-1], self.out.out_features)
            .chunk(2, -1)
        )
        return mu, floor_logvar(raw, self.min_logvar)
