"""VSSNs that are linear-Gaussian models, and the exact log p(x_{1:T}) of those by a Kalman filter.

An MLP is linear where its hidden units are relu(v) and relu(-v) and its output takes their difference. A GRU is linear
where its gates see nothing and tanh sees almost nothing: inputs scaled by SMALL, what reads the state scaled back.
The error of that is about SMALL^2.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import MultivariateNormal

from vssn import VSSN
from vssn.nn.blocks import MLP, LatentNetwork, Recurrence, SplitLinear

SMALL = 1e-4


def raw_logvar(logvar: float, minimum: float) -> float:
    """What the floor turns into logvar."""
    return minimum + math.log(math.expm1(logvar - minimum))


def set_out(out: nn.Linear, offset: Tensor, raw: float) -> None:
    """Differences of the hidden units, then a constant."""
    size = len(offset)
    out.weight.zero_()
    for i in range(size):
        out.weight[i, i], out.weight[i, size + i] = 1, -1
    out.bias[:size], out.bias[size:] = offset, raw


def both_signs(rows: Tensor, hidden_size: int) -> Tensor:
    """[rows; -rows; 0]"""
    return torch.cat((rows, -rows, rows.new_zeros(hidden_size - 2 * len(rows), rows.shape[1])))


def set_mlp(mlp: MLP, matrix: Tensor, offset: Tensor, raw: float) -> None:
    mlp.hidden.weight.copy_(both_signs(matrix, len(mlp.hidden.weight)))
    mlp.hidden.bias.zero_()
    set_out(mlp.out, offset, raw)


def set_latent(network: LatentNetwork, of_z: Tensor, of_inputs: Tensor, offset: Tensor, raw: float) -> None:
    assert isinstance(network.context, SplitLinear)
    network.weight_z.copy_(both_signs(of_z, len(network.weight_z)))
    network.context.weight.copy_(both_signs(of_inputs, len(network.weight_z)))
    network.context.bias.zero_()
    set_out(network.out, offset, raw)


def set_recurrence(gru: Recurrence, of_input: Tensor, of_state: Tensor | None) -> None:
    """state_t = SMALL of_input [inputs] + of_state state_{t-1}; of_state None: no memory."""
    size = gru.weight_hh.shape[1]
    for parameter in gru.parameters():
        parameter.zero_()
    keep = 0.5 if of_state is not None else 0.0  # the update gate
    if of_state is None:
        gru.input.bias[size : 2 * size] = -50
    else:
        gru.weight_hh[2 * size :] = (of_state - keep * torch.eye(size)) / (1 - keep) / 0.5  # the reset gate is 1/2
    gru.input.weight[2 * size :] = SMALL * of_input / (1 - keep)


class LinearModel:
    """d = F d + G [x_{t-1}, w], z = A z + C d + c + noise, x = P z + R d + r + noise, with any inference network.


    inferred: d_0 = S s + e with s ~ N(m, diag exp v), else 0.
    """

    def __init__(self, seed: int = 0, inferred: bool = False, **options: Any) -> None:
        source = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=source, dtype=torch.float64)

        d = z = w = 2
        x = 3
        self.F, self.G = 0.3 * normal(d, d), 0.6 * normal(d, x + w)
        self.A, self.C, self.c = 0.4 * normal(z, z), 0.5 * normal(z, d), 0.3 * normal(z)
        self.P, self.R, self.r = 0.6 * normal(x, z), 0.6 * normal(x, d), 0.2 * normal(x)
        self.logvar_z, self.logvar_x = -0.5, 0.8
        sizes: dict[str, Any] = {"mlp_size": 7, "backward_size": 3, "activation": "relu", "residual_posterior": True}
        if inferred:
            sizes |= {"initial_state": "inferred", "initial_size": 3}
        model = VSSN(x, d, z, w, likelihood="gaussian", **sizes | options).double()
        floor_z, floor_x = model.layer.min_logvar, -10.0
        with torch.no_grad():
            layer = model.layer
            set_recurrence(layer.duration, self.G, self.F)
            set_latent(layer.prior, self.A, self.C / SMALL, self.c, raw_logvar(self.logvar_z, floor_z))
            emission = torch.cat((self.P, self.R / SMALL), 1)
            set_mlp(model.emission, emission, self.r, raw_logvar(self.logvar_x, floor_x))
            # Inference: anything will do. The backward state sees d, so that a proposal knows the w to come.
            if not layer.noise_smoothing:
                set_mlp(layer.noise_posterior, 0.15 * normal(w, x + x), 0.1 * normal(w), raw_logvar(-0.2, floor_z))
            for parameter in layer.backward_recurrence.parameters():
                parameter.copy_(0.4 * normal(*parameter.shape))
            layer.backward_recurrence.input.weight[:, :d] /= 2 * SMALL
            set_latent(
                layer.posterior, 0.1 * normal(z, z), 0.3 * normal(z, 3), 0.1 * normal(z), raw_logvar(-0.6, floor_z)
            )
            self.mean_0, self.covariance_0 = torch.zeros(d).double(), torch.zeros(d, d).double()
            if inferred:
                own, m, v, e = 0.5 * normal(d, 3), 0.5 * normal(3), -0.4 - 0.3 * normal(3).abs(), 0.5 * normal(d)
                layer.initial_mu.copy_(m)
                layer.initial_logvar.copy_(v)
                layer.initial_map.weight.copy_(SMALL * own)
                layer.initial_map.bias.copy_(SMALL * e)
                for parameter in layer.initial_backward.parameters():
                    parameter.copy_(0.4 * normal(*parameter.shape))
                wider = raw_logvar(0.0, floor_z)  # than p, so that no weight is without a bound
                set_mlp(layer.initial_posterior, 0.3 * normal(3, 3), m + 0.1 * normal(3), wider)
                self.mean_0, self.covariance_0 = own @ m + e, own @ torch.diag(v.exp()) @ own.T
        self.model = model.eval()

    def sample(self, steps: int, seed: int = 0) -> Tensor:
        """[T, 1, X]"""
        torch.manual_seed(seed)
        return self.model.generate(steps).x

    def log_p(self, x: Tensor) -> Tensor:
        """Of x [T, X], exactly: scalar."""
        return self.filter(x)[0]

    def filter(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Of x [T, X]: log p(x), and means [T, ·] of d_t / SMALL and z_t given x_{1:t} and of x_t given x_{<t}."""
        d, z = len(self.F), len(self.A)
        zero = torch.zeros
        of_x, of_w = self.G.split((x.shape[1], self.G.shape[1] - x.shape[1]), 1)
        step = torch.cat((torch.cat((self.F, zero(d, z).double()), 1), torch.cat((self.C @ self.F, self.A), 1)))
        drive = torch.cat((of_w, self.C @ of_w))
        noise = drive @ drive.T
        noise[d:, d:] += math.exp(self.logvar_z) * torch.eye(z)
        read = torch.cat((self.R, self.P), 1)
        mean, covariance = zero(d + z).double(), zero(d + z, d + z).double()
        mean[:d], covariance[:d, :d] = self.mean_0, self.covariance_0
        before, total, means, predicted = torch.zeros_like(x[0]), zero(()).double(), [], []
        for frame in x:
            push = of_x @ before
            mean = step @ mean + torch.cat((push, self.C @ push + self.c))
            covariance = step @ covariance @ step.T + noise
            predicted.append(read @ mean + self.r)
            spread = read @ covariance @ read.T + math.exp(self.logvar_x) * torch.eye(len(frame))
            total = total + MultivariateNormal(read @ mean + self.r, spread).log_prob(frame)
            gain = covariance @ read.T @ torch.linalg.inv(spread)
            mean = mean + gain @ (frame - read @ mean - self.r)
            covariance = covariance - gain @ read @ covariance
            means.append(mean)
            before = frame
        return total, *torch.stack(means).split((d, z), 1), torch.stack(predicted)
