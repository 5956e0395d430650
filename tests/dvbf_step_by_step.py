"""DVBF-LL written a second time from Karl's equations, one frame after the other: the mixture's matrices are made, then
applied. It takes a model's weights by name, torch.nn.GRUCell and torch.distributions."""

from __future__ import annotations

from typing import Any

import torch
from step_by_step import ACTIVATE, diagonal, floored
from torch import Tensor
from torch.distributions import Bernoulli, Independent, Normal, kl_divergence

from vssn import DVBF


class PlainDVBF:
    def __init__(self, model: DVBF) -> None:
        self.model, self.w = model, dict(model.named_parameters())
        self.act = ACTIVATE[model.posterior.activation]

    def linear(self, name: str, *inputs: Tensor) -> Tensor:
        return self.w[f"{name}.weight"] @ torch.cat(inputs) + self.w[f"{name}.bias"]

    def network(self, name: str, *inputs: Tensor) -> Tensor:
        return self.linear(f"{name}.out", self.act(self.linear(f"{name}.hidden", *inputs)))

    def gaussian(self, name: str, *inputs: Tensor) -> Independent:
        mu, raw = self.network(name, *inputs).chunk(2)
        return diagonal(mu, floored(raw, self.model.posterior.min_logvar))

    def embed(self, frame: Tensor) -> Tensor:
        return frame if self.model.encoder is None else self.act(self.linear("encoder.linear", frame))

    def film(self, embedded: list[Tensor], u: list[list[Tensor]]) -> Independent:
        """q(w_1 | x_{1:T}, u_{1:T}): a GRU from the last frame to the first."""
        size = self.model.backward_size
        cell = torch.nn.GRUCell(1, size, dtype=embedded[0].dtype)
        given = {
            "weight_ih": self.w["initial_backward.input.weight"],
            "bias_ih": self.w["initial_backward.input.bias"],
            "weight_hh": self.w["initial_backward.weight_hh"],
            "bias_hh": self.w["initial_backward.bias_hh"],
        }
        cell.input_size = given["weight_ih"].shape[1]
        b = embedded[0].new_zeros(1, size)
        for e, own in zip(reversed(embedded), reversed(u), strict=True):
            b = torch.func.functional_call(cell, given, (torch.cat((e, *own))[None], b))
        return self.gaussian("initial_posterior", b[0])

    def transition(self, z: Tensor, u: list[Tensor], w: Tensor) -> Tensor:
        alpha = torch.exp(self.network("transition.mixture", z, *u))
        alpha = alpha / alpha.sum()
        triples = self.w["transition.weight"]
        mixed = torch.zeros_like(triples[0])
        for share, triple in zip(alpha, triples, strict=True):
            mixed = mixed + share * triple
        sizes = (len(z), self.model.control_size, len(w))
        a, b, c = mixed.split(sizes, 1)
        return a @ z + (b @ u[0] if u else 0) + c @ w

    def log_prob(self, z: Tensor, x: Tensor, observed: Tensor) -> Tensor:
        out, likelihood = self.network("emission", z), self.model.likelihood
        if likelihood.name == "bernoulli":
            terms = Bernoulli(logits=out).log_prob(x)
        else:
            mu, raw = out.chunk(2)
            terms = Normal(mu, torch.exp(floored(raw, likelihood.min_logvar) / 2)).log_prob(x)
        return torch.where(observed, terms, 0.0).sum()

    def run(
        self,
        x: Tensor,
        u: Tensor | None,
        eps: Tensor,
        observed: Tensor | None = None,
        z: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """One sequence: x [T, X], u [T, U], eps [T, W], observed [T, X], and z [Z] of the chunk before: what
        `DVBF.forward` returns, and z and w [T, ·] and log p(x, w) - log q(w) [T]."""
        seen = torch.ones_like(x, dtype=torch.bool) if observed is None else observed
        shown = torch.where(seen, x, 0.0)
        frames = torch.cat((shown, seen.to(x.dtype)), 1) if self.model.masked else shown
        embedded: list[Any] = [self.embed(frame) for frame in frames]
        own = [[] if u is None else [u[t]] for t in range(len(x))]
        prior, terms = diagonal(torch.zeros_like(eps[0]), torch.zeros_like(eps[0])), []
        for t in range(len(x)):
            q = self.film(embedded, own) if z is None else self.gaussian("posterior", z, embedded[t], *own[t])
            w = q.mean + q.stddev * eps[t]
            z = self.network("initial_map", w) if z is None else self.transition(z, own[t], w)
            log_prob = self.log_prob(z, shown[t], seen[t])
            terms.append((log_prob, kl_divergence(q, prior), z, w, log_prob + prior.log_prob(w) - q.log_prob(w)))
        names = ("reconstruction", "kl_z", "z", "w", "log_weight")
        return {name: torch.stack(parts) for name, parts in zip(names, zip(*terms, strict=True), strict=True)}
