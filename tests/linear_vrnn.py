"""VRNNs that are linear-Gaussian models, and their exact log p(x_{1:T}).

The GRU's update gate is shut and its reset gate open, so that h_t = tanh of a linear map of (x_t, z_t, h_{t-1}), of
inputs scaled by SMALL: what reads h scales it back, and the error is about SMALL^2. phi_x and phi_z are relu(v) and
relu(-v).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from linear_gaussian import SMALL, both_signs, raw_logvar, set_mlp, set_out
from torch import Tensor
from torch.distributions import MultivariateNormal

from vssn import VRNN
from vssn.nn.blocks import MLP, Embedding, GaussianMLP


class LinearVRNN:
    """h_t = A h_{t-1} + B x_t + C z_t, z_t = F h_{t-1} + c + noise, x_t = P z_t + R h_{t-1} + r + noise.

    exact: q(z_t | x_t, h_{t-1}) is p(z_t | x_t, h_{t-1}), and R is such that x_t does not depend on what h took of z:
        every weight of a particle then is the exact p(x_t | x_{<t}). Else q is near it.
    """

    def __init__(self, exact: bool, seed: int = 0, **options: Any) -> None:
        source = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=source, dtype=torch.float64)

        x_size, z_size, h_size = 3, 2, 4
        self.logvar_z, self.logvar_x = -0.5, 0.8
        self.A, self.B, self.C = (
            0.3 * normal(h_size, h_size),
            0.6 * normal(h_size, x_size),
            0.6 * normal(h_size, z_size),
        )
        self.F, self.c, self.r = 0.6 * normal(z_size, h_size), 0.3 * normal(z_size), 0.2 * normal(x_size)
        self.P, self.R = torch.linalg.qr(normal(x_size, z_size))[0], 0.6 * normal(x_size, h_size)
        if exact:  # h in two halves: of x and of z, which x_t does not read
            half = h_size // 2
            self.A[:half, half:] = self.A[half:, :half] = 0
            self.B[half:] = self.C[:half] = 0
            self.R[:, half:] = -(self.P @ self.F)[:, half:]
        self.h_0 = 0.5 * normal(h_size)
        model = VRNN(
            x_size,
            h_size,
            z_size,
            likelihood="gaussian",
            embed_size=2 * max(x_size, z_size),
            mlp_size=8,
            initial_state="learned",
            **options,
        ).double()
        chain = model.chain
        assert isinstance(model.encoder, Embedding)
        assert isinstance(model.prior, GaussianMLP)
        assert isinstance(model.emission, MLP)
        precision = math.exp(-self.logvar_z) + math.exp(-self.logvar_x)  # P^T P = I
        gain = math.exp(-self.logvar_x) / precision * self.P.T
        of_x, of_h, logvar_q = gain, self.F - gain @ (self.P @ self.F + self.R), -math.log(precision)
        offset = self.c - gain @ (self.P @ self.c + self.r)
        if not exact:
            of_x, of_h, offset, logvar_q = 0.8 * of_x, 0.9 * of_h, offset + 0.1, logvar_q + 0.2
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.zero_()
            model.encoder.linear.weight.copy_(both_signs(torch.eye(x_size).double(), model.embedded_size))
            chain.weight_embed.copy_(both_signs(torch.eye(z_size).double(), model.embedded_size))
            gate, state = slice(2 * h_size, None), slice(h_size, 2 * h_size)
            model.input.bias[:h_size], model.input.bias[state] = 50, -50
            model.input.weight[gate, : 2 * x_size] = SMALL * torch.cat((self.B, -self.B), 1)
            chain.weight_zh[gate, : 2 * z_size] = SMALL * torch.cat((self.C, -self.C), 1)
            chain.weight_hh[gate] = self.A
            assert model.h_0 is not None
            model.h_0.copy_(SMALL * self.h_0)
            set_mlp(model.prior, self.F / SMALL, self.c, raw_logvar(self.logvar_z, chain.min_logvar))
            of_phi = torch.cat((self.P, -self.P, self.P.new_zeros(x_size, model.embedded_size - 2 * z_size)), 1)
            set_mlp(model.emission, torch.cat((of_phi, self.R / SMALL), 1), self.r, raw_logvar(self.logvar_x, -10.0))
            model.context.weight.copy_(
                both_signs(torch.cat((of_x, -of_x), 1), model.mlp_size),
            )
            chain.weight_h.copy_(both_signs(of_h / SMALL, model.mlp_size))
            out = torch.nn.Linear(model.mlp_size, 2 * z_size).double()
            set_out(out, offset, raw_logvar(logvar_q, chain.min_logvar))
            chain.weight_out.copy_(out.weight)
            chain.bias_out.copy_(out.bias)
        self.model = model.eval()

    def sample(self, steps: int, rows: int = 1, seed: int = 0) -> Tensor:
        """[T, B, X]"""
        torch.manual_seed(seed)
        return self.model.generate(steps, rows).x

    def log_p(self, x: Tensor) -> Tensor:
        """Of every frame of x [T, X] given those before it, exactly: [T]."""
        eye = torch.eye
        mean, covariance, terms = self.h_0, torch.zeros_like(self.A), []
        noise = math.exp(self.logvar_z) * eye(len(self.F)).double()
        for frame in x:
            both = torch.cat((eye(len(self.A)).double(), self.F))  # h, then z
            mean, covariance = both @ mean, both @ covariance @ both.T
            mean = mean + torch.cat((torch.zeros(len(self.A)), self.c))
            covariance[len(self.A) :, len(self.A) :] += noise
            read = torch.cat((self.R, self.P), 1)
            spread = read @ covariance @ read.T + math.exp(self.logvar_x) * eye(len(frame)).double()
            terms.append(MultivariateNormal(read @ mean + self.r, spread).log_prob(frame))
            gain = covariance @ read.T @ torch.linalg.inv(spread)
            mean = mean + gain @ (frame - read @ mean - self.r)
            covariance = covariance - gain @ read @ covariance
            step = torch.cat((self.A, self.C), 1)
            mean, covariance = step @ mean + self.B @ frame, step @ covariance @ step.T
        return torch.stack(terms)
