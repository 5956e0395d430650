"""The model written a second time, one step after the other, from its equations: what the tests of the layer and the
model compare with. It takes a model's weights by name, and torch.distributions for every density.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributions import (
    Bernoulli,
    Categorical,
    Independent,
    MixtureSameFamily,
    NegativeBinomial,
    Normal,
    Poisson,
    StudentT,
    kl_divergence,
)

from vssn import VSSN, VSSNLayer

ACTIVATE = {
    "tanh": torch.tanh,
    "relu": lambda x: x.clamp(min=0),
    "leaky_relu": lambda x: torch.maximum(x, x / 3),
    "silu": lambda x: x * torch.sigmoid(x),
}


class Steps(NamedTuple):
    """Lists over t of tensors [N, ·] (of [N] for the divergences)."""

    d: list[Tensor]
    z: list[Tensor]
    kl_z: list[Tensor]
    kl_w: list[Tensor]
    a: list[Tensor]  # empty without a latent
    log_weight: list[Tensor]  # log p(w) p(z | .) - log q(w | .) q(z | .) at the sample; with d_0's at the first step


def diagonal(mu: Tensor, logvar: Tensor) -> Independent:
    return Independent(Normal(mu, torch.exp(logvar / 2)), 1)


def floored(raw: Tensor, minimum: float) -> Tensor:
    return minimum + torch.log1p(torch.exp(raw - minimum))


def between(raw: Tensor, most: float) -> Tensor:
    """Bent to stay within -most and most: beyond most - 1 a hyperbola, which meets it there in value and slope."""
    far = raw.abs()
    return torch.where(far <= most - 1, raw, raw.sign() * (most - 1 / (far - most + 2)))


class PlainLayer:
    """VSSNLayer for a batch of equally long sequences."""

    def __init__(self, layer: VSSNLayer) -> None:
        self.layer = layer
        zeros = {"d_0": torch.zeros(layer.hidden_size), "z_0": torch.zeros(layer.latent_size)}
        self.weights = {n: zero.to(layer.dtype) for n, zero in zeros.items()} | dict(layer.named_parameters())

    def gru_step(self, name: str, inputs: list[Tensor], h: Tensor) -> Tensor:
        w = self.weights
        gates_x = torch.cat(inputs, -1) @ w[f"{name}.input.weight"].T + w[f"{name}.input.bias"]
        gates_h = h @ w[f"{name}.weight_hh"].T + w[f"{name}.bias_hh"]
        x_r, x_z, x_n = gates_x.chunk(3, -1)
        h_r, h_z, h_n = gates_h.chunk(3, -1)
        r, z = torch.sigmoid(x_r + h_r), torch.sigmoid(x_z + h_z)
        n = torch.tanh(x_n + r * h_n)
        return (1 - z) * n + z * h

    def act(self, x: Tensor) -> Tensor:
        return ACTIVATE[self.layer.activation](x)

    def gaussian(self, out: Tensor) -> tuple[Tensor, Tensor]:
        size = out.shape[-1] // 2
        return out[..., :size], floored(out[..., size:], self.layer.min_logvar)

    def latent(self, name: str, z_previous: Tensor, parents: list[Tensor]) -> tuple[Tensor, Tensor]:
        """(mu, logvar) of f or of q(z): one hidden layer over [z_{t-1}, parents]."""
        w = self.weights
        hidden = z_previous @ w[f"{name}.weight_z"].T
        if parents:
            hidden = hidden + torch.cat(parents, -1) @ w[f"{name}.context.weight"].T + w[f"{name}.context.bias"]
        else:
            hidden = hidden + w[f"{name}.bias"]
        return self.gaussian(self.act(hidden) @ w[f"{name}.out.weight"].T + w[f"{name}.out.bias"])

    def noise(self, inputs: list[Tensor]) -> tuple[Tensor, Tensor]:
        w = self.weights
        hidden = torch.cat(inputs, -1) @ w["noise_posterior.hidden.weight"].T + w["noise_posterior.hidden.bias"]
        return self.gaussian(self.act(hidden) @ w["noise_posterior.out.weight"].T + w["noise_posterior.out.bias"])

    def parents(self, d: Tensor, controls: list[Tensor]) -> list[Tensor]:
        if self.layer.hidden_size:
            return [d]
        return controls if self.layer.control in ("external", "both") else []

    def initial_prior(self, rows: int) -> Independent:
        w = self.weights
        return diagonal(w["initial_mu"].expand(rows, -1), w["initial_logvar"].expand(rows, -1))

    def initial_map(self, s: Tensor) -> Tensor:
        w = self.weights
        return s @ w["initial_map.weight"].T + w["initial_map.bias"] if "initial_map.weight" in w else s

    def infer_initial(self, x: Tensor, controls: list[list[Tensor]], eps_0: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """d_0 [N, D], the KL [N] of what it is made of, and log p - log q [N] at the sample."""
        prior, w = self.initial_prior(x.shape[1]), self.weights
        if not len(x):
            return self.initial_map(prior.mean + prior.stddev * eps_0), x.new_zeros(len(eps_0)), x.new_zeros(len(eps_0))
        shared = self.layer.noise_smoothing and self.layer.noise_size
        b = x.new_zeros(x.shape[1], self.layer.backward_size)
        for t in reversed(range(len(x))):
            b = self.gru_step("noise_backward" if shared else "initial_backward", [x[t], *controls[t]], b)
        hidden = self.act(b @ w["initial_posterior.hidden.weight"].T + w["initial_posterior.hidden.bias"])
        mu, logvar = self.gaussian(hidden @ w["initial_posterior.out.weight"].T + w["initial_posterior.out.bias"])
        q = diagonal(mu, logvar)
        s = mu + torch.exp(logvar / 2) * eps_0
        return self.initial_map(s), kl_divergence(q, prior), prior.log_prob(s) - q.log_prob(s)

    def infer(
        self,
        x: Tensor,
        controls: list[list[Tensor]],
        d: Tensor | None,
        z: Tensor,
        eps_w: Tensor,
        eps_z: Tensor,
        a: Tensor | None = None,
        eps_0: Tensor | None = None,
    ) -> Steps:
        """x [T, N, X], for every t the tensors of u_t, first states [N, ·], noise [T, N, ·] and [N, S]; a of a causal
        layer. d None: it is inferred, with its KL in the first kl_w."""
        layer, steps, rows = self.layer, len(x), x.shape[1]
        ds, zs, states = [], [], {}
        kl_z, kl_w, log_weight = ([x.new_zeros(rows) for _ in range(steps)] for _ in range(3))
        kl_0 = None
        if d is None:
            assert eps_0 is not None
            d, kl_0, log_weight_0 = self.infer_initial(x, controls, eps_0)
        noise_inputs = [[x[t], *controls[t]] for t in range(steps)]
        if layer.noise_size and layer.noise_smoothing:
            b = x.new_zeros(rows, layer.backward_size)
            for t in reversed(range(steps)):
                b = self.gru_step("noise_backward", noise_inputs[t], b)
                noise_inputs[t] = [b]
        for t in range(steps):
            if layer.hidden_size:
                w = eps_w[t]
                if layer.noise_size:
                    mu, logvar = self.noise(noise_inputs[t])
                    w = mu + torch.exp(logvar / 2) * eps_w[t]
                    q, p = diagonal(mu, logvar), diagonal(torch.zeros_like(mu), torch.zeros_like(mu))
                    kl_w[t] = kl_divergence(q, p)
                    log_weight[t] = log_weight[t] + p.log_prob(w) - q.log_prob(w)
                d = self.gru_step("duration", [*controls[t], w], d)
            ds.append(d)
        if layer.latent_size:
            a = x.new_zeros(rows, layer.backward_size) if a is None else a
            causal = layer.inference == "causal"
            for t in range(steps) if causal else reversed(range(steps)):
                a = self.gru_step("backward_recurrence", [*self.parents(ds[t], controls[t]), x[t]], a)
                states[t] = a
            for t in range(steps):
                mu_p, logvar_p = self.latent("prior", z, self.parents(ds[t], controls[t]))
                mu, logvar = self.latent("posterior", z, [states[t]])
                if layer.residual_posterior:
                    mu = mu + mu_p
                q, p = diagonal(mu, logvar), diagonal(mu_p, logvar_p)
                z = mu + torch.exp(logvar / 2) * eps_z[t]
                zs.append(z)
                kl_z[t] = kl_divergence(q, p)
                log_weight[t] = log_weight[t] + p.log_prob(z) - q.log_prob(z)
        else:
            zs = [z] * steps
        if kl_0 is not None and steps:
            kl_w[0], log_weight[0] = kl_w[0] + kl_0, log_weight[0] + log_weight_0
        return Steps(ds, zs, kl_z, kl_w, [states[t] for t in sorted(states)], log_weight)

    def imagine(
        self, controls: list[Tensor], d: Tensor, z: Tensor, eps_w: Tensor, eps_z: Tensor
    ) -> tuple[Tensor, Tensor]:
        """One step of the generative model: (d_t, z_t), with w_t = eps_w and z_t from the prior."""
        if self.layer.hidden_size:
            d = self.gru_step("duration", [*controls, eps_w], d)
        if self.layer.latent_size:
            mu, logvar = self.latent("prior", z, self.parents(d, controls))
            z = mu + torch.exp(logvar / 2) * eps_z
        return d, z


class PlainModel:
    """VSSN, one sequence after the other."""

    def __init__(self, model: VSSN) -> None:
        self.model = model
        self.weights = dict(model.named_parameters())
        self.layer = PlainLayer(model.layer)

    def embed(self, frames: Tensor, name: str = "encoder") -> Tensor:
        if f"{name}.linear.weight" not in self.weights:
            return frames
        out = frames @ self.weights[f"{name}.linear.weight"].T + self.weights[f"{name}.linear.bias"]
        return self.layer.act(out)

    def decode(self, z: Tensor, d: Tensor) -> Tensor:
        w = self.weights
        hidden = self.layer.act(torch.cat((z, d), -1) @ w["emission.hidden.weight"].T + w["emission.hidden.bias"])
        return hidden @ w["emission.out.weight"].T + w["emission.out.bias"]

    def log_prob(self, parameters: Tensor, x: Tensor, observed: Tensor) -> Tensor:
        """log p(x_t | .) of one frame [N, X], of its observed entries."""
        likelihood, size = self.model.likelihood, x.shape[-1]
        kind = type(likelihood).__name__
        if kind == "Bernoulli":
            return (Bernoulli(logits=parameters).log_prob(x) * observed).sum(-1)
        if kind == "Gaussian":
            logvar = floored(parameters[..., size:], likelihood.min_logvar)
            return (Normal(parameters[..., :size], torch.exp(logvar / 2)).log_prob(x) * observed).sum(-1)
        if kind == "NADE":
            return self.nade_log_prob(parameters, x) * observed.all(-1)
        if kind == "Poisson":
            return (Poisson(torch.exp(between(parameters, 15.0))).log_prob(x) * observed).sum(-1)
        if kind == "NegativeBinomial":
            log_mean, log_shape = between(parameters[..., :size], 15.0), between(parameters[..., size:], 7.0)
            density = NegativeBinomial(torch.exp(log_shape), logits=log_mean - log_shape)
            return (density.log_prob(x) * observed).sum(-1)
        if kind == "Categorical":
            logits = parameters.view(*x.shape, likelihood.num_classes)
            return (Categorical(logits=logits).log_prob(x) * observed).sum(-1)
        if kind == "StudentT":
            scale = torch.exp(floored(parameters[..., size:], likelihood.min_logvar) / 2)
            df = 2.1 + torch.log1p(torch.exp(self.weights["likelihood.raw_df"]))
            return (StudentT(df, parameters[..., :size], scale).log_prob(x) * observed).sum(-1)
        count = likelihood.mixture_size
        logits, rest = parameters[..., :count], parameters[..., count:]
        mu = rest[..., : count * size].unflatten(-1, (count, size))
        logvar = floored(rest[..., count * size :].unflatten(-1, (count, size)), likelihood.min_logvar)
        if bool(observed.all()):
            parts = Independent(Normal(mu, torch.exp(logvar / 2)), 1)
            return MixtureSameFamily(Categorical(logits=logits), parts).log_prob(x)
        inside = (Normal(mu, torch.exp(logvar / 2)).log_prob(x[..., None, :]) * observed[..., None, :]).sum(-1)
        return torch.logsumexp(torch.log_softmax(logits, -1) + inside, -1)

    def nade_log_prob(self, parameters: Tensor, x: Tensor) -> Tensor:
        """Entry by entry, of frames [N, X]."""
        weight_in, weight_out = self.weights["likelihood.weight_in"], self.weights["likelihood.weight_out"]
        bias, inside = parameters[..., : x.shape[-1]], parameters[..., x.shape[-1] :]
        total = x.new_zeros(len(x))
        for i in range(x.shape[-1]):
            logit = bias[:, i] + torch.sigmoid(inside) @ weight_out[i]
            total = total + Bernoulli(logits=logit).log_prob(x[:, i])
            inside = inside + x[:, i : i + 1] * weight_in[i]
        return total

    def controls(self, frame: Tensor, u: Tensor | None) -> list[Tensor]:
        """The tensors of u_t, from the frame before (embedded) and the external control."""
        external = [] if u is None else [self.embed(u, "control_encoder")]
        return {"previous": [frame], "external": external, "both": [frame, *external], "none": []}[
            self.model.layer.control
        ]

    def first_state(self, rows: int, like: Tensor) -> tuple[Tensor | None, ...]:
        """d None: it is to be inferred."""
        w = self.layer.weights
        d = None if "initial_mu" in w else w["d_0"].expand(rows, -1)
        start = d, w["z_0"].expand(rows, -1), like.new_zeros(rows, self.model.frame_size)
        layer = self.model.layer
        if layer.inference == "causal" and layer.latent_size:
            return *start, like.new_zeros(rows, layer.backward_size)
        return start

    def sequence(
        self,
        x: Tensor,  # [T, N, X]
        u: Tensor | None,
        observed: Tensor,  # [T, N, X] bool
        state: tuple[Tensor, ...] | None,
        eps_w: Tensor,
        eps_z: Tensor,
        eps_0: Tensor | None = None,
    ) -> tuple[Steps, list[Tensor], tuple[Tensor | None, ...]]:
        """Steps, log p(x_t | z_t, d_t) for every t, and the state after the last step."""
        d, z, x_last, *a = self.first_state(x.shape[1], x) if state is None else state
        x = torch.where(observed, x, torch.zeros_like(x))
        frames = torch.cat((x, observed.to(x.dtype)), -1) if self.model.masked else x
        before = torch.cat((x_last[None], frames))[: len(x)]
        controls = [self.controls(self.embed(before[t]), None if u is None else u[t]) for t in range(len(x))]
        steps = self.layer.infer(self.embed(frames), controls, d, z, eps_w, eps_z, *a, eps_0=eps_0)
        reconstruction = [self.log_prob(self.decode(steps.z[t], steps.d[t]), x[t], observed[t]) for t in range(len(x))]
        if len(x):
            d, z, x_last, a = steps.d[-1], steps.z[-1], frames[-1], steps.a[-1:] if a else []
        elif d is None:
            d = self.layer.infer_initial(x, [], eps_0)[0]
        return steps, reconstruction, (d, z, x_last, *a)

    def run(
        self,
        x: Tensor,
        u: Tensor | None,
        lengths: Tensor,
        noise: tuple[Tensor, ...],
        mask: Tensor | None = None,
        state: tuple[Tensor, ...] | None = None,
    ) -> dict[str, Tensor]:
        """Everything of VSSNOutput but the loss, time-major, sequence by sequence."""
        names = ["d", "z", "x_last", "a"][: len(self.first_state(0, x))]
        parts: dict[str, list[Tensor]] = {n: [] for n in ("reconstruction", "kl_z", "kl_w", *names)}
        observed = torch.ones_like(x, dtype=torch.bool) if mask is None else mask.reshape(*x.shape[:2], -1).expand_as(x)
        for row, length in enumerate(lengths.tolist()):
            here, one = slice(0, length), slice(row, row + 1)
            steps, reconstruction, after = self.sequence(
                x[here, one],
                None if u is None else u[here, one],
                observed[here, one],
                None if state is None else tuple(part[one] for part in state),
                noise[0][here, one],
                noise[1][here, one],
                *(eps_0[one] for eps_0 in noise[2:]),
            )
            for name, values in (("reconstruction", reconstruction), ("kl_z", steps.kl_z), ("kl_w", steps.kl_w)):
                padded = [*values, *[x.new_zeros(1)] * (len(x) - length)]
                parts[name].append(torch.stack(padded))
            for name, value in zip(names, after, strict=True):
                parts[name].append(value)
        out = {
            name: torch.cat(values, 1 if name in ("reconstruction", "kl_z", "kl_w") else 0)
            for name, values in parts.items()
        }
        out["elbo"] = (out["reconstruction"] - out["kl_z"] - out["kl_w"]).sum(0)
        return out
