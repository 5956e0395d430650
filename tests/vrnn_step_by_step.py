"""VRNN written a second time from Chung's equations, one frame after the other, its GRU behind the latent. It takes a
model's weights by name, torch.nn.GRUCell and torch.distributions."""

from __future__ import annotations

from typing import Any

import torch
from step_by_step import ACTIVATE, diagonal, floored
from torch import Tensor
from torch.distributions import Bernoulli, Categorical, Independent, MixtureSameFamily, Normal, kl_divergence

from vssn import VRNN


class PlainVRNN:
    def __init__(self, model: VRNN) -> None:
        self.model, self.w = model, dict(model.named_parameters())
        self.act = ACTIVATE[model.chain.activation]

    def linear(self, name: str, *inputs: Tensor) -> Tensor:
        return torch.cat(inputs, -1) @ self.w[f"{name}.weight"].T + self.w[f"{name}.bias"]

    def gaussian(self, out: Tensor) -> Independent:
        mu, raw = out.chunk(2, -1)
        return diagonal(mu, floored(raw, self.model.chain.min_logvar))

    def phi_x(self, frame: Tensor) -> Tensor:
        return self.act(self.linear("encoder.linear", frame))

    def phi_z(self, z: Tensor) -> Tensor:
        return self.act(z @ self.w["chain.weight_embed"].T + self.w["bias_embed"])

    def prior(self, h: Tensor, u: list[Tensor]) -> Independent:
        if self.model.prior is None:
            zero = h.new_zeros(len(h), self.model.latent_size)
            return diagonal(zero, zero)
        return self.gaussian(self.linear("prior.out", self.act(self.linear("prior.hidden", h, *u))))

    def posterior(self, phi_x: Tensor, h: Tensor, u: list[Tensor]) -> Independent:
        hidden = self.act(self.linear("context", phi_x, *u) + h @ self.w["chain.weight_h"].T)
        return self.gaussian(hidden @ self.w["chain.weight_out"].T + self.w["chain.bias_out"])

    def cell(self, phi_x: Tensor, phi_z: Tensor, h: Tensor, u: list[Tensor]) -> Tensor:
        """nn.GRUCell of [phi_x, u, phi_z]."""
        w, size = self.w, self.model.hidden_size
        cell = torch.nn.GRUCell(1, size, dtype=h.dtype)
        given = {
            "weight_ih": torch.cat((w["input.weight"], w["chain.weight_zh"]), 1),
            "weight_hh": w["chain.weight_hh"],
            "bias_ih": w["input.bias"],
            "bias_hh": w["chain.bias_hh"],
        }
        cell.input_size = given["weight_ih"].shape[1]
        return torch.func.functional_call(cell, given, (torch.cat((phi_x, *u, phi_z), -1), h))

    def emission(self, phi_z: Tensor, h: Tensor) -> Tensor:
        return self.linear("emission.out", self.act(self.linear("emission.hidden", phi_z, h)))

    def log_prob(self, out: Tensor, x: Tensor, observed: Tensor) -> Tensor:
        """[N], of what is observed."""
        likelihood: Any = self.model.likelihood
        if likelihood.name == "bernoulli":
            terms = Bernoulli(logits=out).log_prob(x)
        elif likelihood.name == "gaussian":
            mu, raw = out.chunk(2, -1)
            terms = Normal(mu, torch.exp(floored(raw, likelihood.min_logvar) / 2)).log_prob(x)
        else:
            size = likelihood.mixture_size
            weights, mu, raw = out.split((size, size * x.shape[-1], size * x.shape[-1]), -1)
            logvar = floored(raw, likelihood.min_logvar).unflatten(-1, (size, -1))
            assert bool(observed.all())
            mixture = MixtureSameFamily(Categorical(logits=weights), diagonal(mu.unflatten(-1, (size, -1)), logvar))
            return mixture.log_prob(x)
        return torch.where(observed, terms, 0.0).sum(-1)

    def run(
        self,
        x: Tensor,
        u: Tensor | None,
        eps: Tensor,
        observed: Tensor | None = None,
        state: tuple[Tensor, Tensor, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """One sequence: x [T, X], u [T, U], eps [T, Z], observed [T, X], and (h, z, x) [·] of the chunk before: what
        `VRNN.forward` returns, and d and z [T, ·] and log p(x, z) - log q(z) [T]."""
        model, terms = self.model, []
        start = x.new_zeros(model.hidden_size) if model.h_0 is None else model.h_0
        h, z, frame = (start, None, None) if state is None else state
        for t in range(len(x)):
            own = [] if u is None else [u[t : t + 1]]
            if frame is not None:  # the cell is one step late: it takes the frame and the latent before
                assert z is not None
                h = self.cell(self.phi_x(frame[None]), self.phi_z(z[None]), h[None], own)[0]
            seen = torch.ones_like(x[t], dtype=torch.bool) if observed is None else observed[t]
            shown = torch.where(seen, x[t], 0.0)
            frame = torch.cat((shown, seen.to(x.dtype))) if model.masked else shown
            q = self.posterior(self.phi_x(frame[None]), h[None], own)
            p = self.prior(h[None], own)
            z = (q.mean + q.stddev * eps[t])[0]
            log_prob = self.log_prob(self.emission(self.phi_z(z[None]), h[None]), shown[None], seen[None])[0]
            weight = log_prob + (p.log_prob(z[None]) - q.log_prob(z[None]))[0]
            terms.append((log_prob, kl_divergence(q, p)[0], h, z, weight))
        names = ("reconstruction", "kl_z", "d", "z", "log_weight")
        return {name: torch.stack(parts) for name, parts in zip(names, zip(*terms, strict=True), strict=True)}
