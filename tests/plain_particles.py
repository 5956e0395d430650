"""Objectives of weighted particles a second time, one sequence and one particle after the other: a particle is its
noise, a copy of it is run anew, and automatic differentiation gives the gradients."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from step_by_step import PlainModel, diagonal
from torch import Tensor
from vrnn_step_by_step import PlainVRNN

from vssn import VRNN
from vssn.models.base import FrameModel
from vssn.models.objectives import ESS_THRESHOLD
from vssn.nn.particles import ParticleNoise


class Path(NamedTuple):
    alpha: Tensor  # [T] with gradients along the samples
    d: Tensor  # [T, D]
    z: Tensor  # [T, Z]


class Sequence(NamedTuple):
    """One of a batch, up to its end."""

    x: Tensor  # [T, 1, X]
    u: Tensor | None
    observed: Tensor  # [T, 1, X]


def sequence(x: Tensor, u: Tensor | None, mask: Tensor | None, row: int, length: int) -> Sequence:
    here, one = slice(0, length), slice(row, row + 1)
    observed = torch.ones_like(x, dtype=torch.bool) if mask is None else mask
    return Sequence(x[here, one], None if u is None else u[here, one], observed[here, one])


def run(model: FrameModel, one: Sequence, eps: tuple[Tensor, ...]) -> Path:
    """eps_w [T, W], eps_z [T, Z], eps_0 [S] of the particle."""
    if isinstance(model, VRNN):
        u = None if one.u is None else one.u[:, 0]
        found = PlainVRNN(model).run(one.x[:, 0], u, eps[1], one.observed[:, 0])
        return Path(found["log_weight"], found["d"], found["z"])
    eps_w, eps_z, *eps_0 = (part.unsqueeze(-2) for part in eps)
    steps, reconstruction, _ = PlainModel(model).sequence(one.x, one.u, one.observed, None, eps_w, eps_z, *eps_0)
    alpha = [r + w for r, w in zip(reconstruction, steps.log_weight, strict=True)]
    return Path(torch.cat(alpha), torch.cat(steps.d), torch.cat(steps.z))


def of_row(noise: ParticleNoise, row: int, length: int) -> list[tuple[Tensor, ...]]:
    """For every particle its noise in one sequence."""
    eps_w, eps_z, *eps_0 = noise.latents
    return [
        (eps_w[k, :length, row], eps_z[k, :length, row], *(part[k, row] for part in eps_0)) for k in range(len(eps_w))
    ]


def hit(weights: Tensor, point: float) -> int:
    total = 0.0
    for number, weight in enumerate(weights.tolist()):
        total += weight
        if point < total:
            return number
    return len(weights) - 1


class Filter(NamedTuple):
    total: Tensor
    weights: list[Tensor]  # [K] of every frame
    particles: list[list[tuple[Tensor, ...]]]  # of every frame, the noise of each


def fivo(model: FrameModel, one: Sequence, particles: list[tuple[Tensor, ...]], uniform: Tensor) -> Filter:
    count, steps = len(particles), len(one.x)
    log_weights = torch.full((count,), -math.log(count), dtype=torch.float64)
    total = torch.zeros(()).double()
    found = Filter(total, [], [])
    for t in range(steps):
        log_weights = log_weights + torch.stack([run(model, one, eps).alpha[t] for eps in particles])
        total = total + torch.logsumexp(log_weights, 0)
        log_weights = log_weights - torch.logsumexp(log_weights, 0)
        weights = log_weights.detach().exp()
        found.weights.append(weights)
        found.particles.append(particles)
        if 1 / weights.square().sum() < ESS_THRESHOLD * count and t + 1 < steps:
            ancestors = [hit(weights, (k + float(uniform[t])) / count) for k in range(count)]
            copies = []
            for own, ancestor in zip(particles, ancestors, strict=True):
                eps_w, eps_z, *eps_0 = particles[ancestor]
                copies.append((eps_w, torch.cat((eps_z[: t + 1], own[1][t + 1 :])), *eps_0))
            particles, log_weights = copies, torch.full_like(log_weights, -math.log(count))
    return found._replace(total=total)


def iwae(model: FrameModel, one: Sequence, particles: list[tuple[Tensor, ...]], uniform: Tensor) -> Filter:
    totals = torch.stack([run(model, one, eps).alpha.sum() for eps in particles])
    weights = torch.softmax(totals.detach(), 0)
    return Filter(torch.logsumexp(totals, 0) - math.log(len(totals)), [weights] * len(one.x), [particles] * len(one.x))


def nasmc(model: FrameModel, one: Sequence, particles: list[tuple[Tensor, ...]], uniform: Tensor) -> Filter:
    """The value of fivo, with the gradients of the two weighted sums."""
    with torch.no_grad():
        found = fivo(model, one, particles, uniform)
    terms = found.total.new_zeros(())
    for t, (weights, those) in enumerate(zip(found.weights, found.particles, strict=True)):
        for weight, eps in zip(weights, those, strict=True):
            terms = terms + weight * standing(model, one, eps)[t]
    return found._replace(total=found.total + terms - terms.detach())


def standing(model: FrameModel, one: Sequence, eps: tuple[Tensor, ...]) -> list[Tensor]:
    """Of every frame log p(x, w, z) + log q(w, z), the samples constants, and to q the deterministic states too."""
    with torch.no_grad():
        z = run(model, one, eps).z
    return _standing_vrnn(model, one, z) if isinstance(model, VRNN) else _standing_vssn(model, one, eps, z)


def _standing_vrnn(model: VRNN, one: Sequence, z: Tensor) -> list[Tensor]:
    plain, terms = PlainVRNN(model), []
    h = torch.zeros(1, model.hidden_size).double() if model.h_0 is None else model.h_0[None]
    frames = torch.where(one.observed, one.x, 0.0)
    seen = torch.cat((frames, one.observed.double()), -1) if model.masked else frames
    for t in range(len(z)):
        own = [] if one.u is None else [one.u[t]]
        if t:
            h = plain.cell(plain.phi_x(seen[t - 1]), plain.phi_z(z[t - 1 : t]), h, own)
        here = z[t : t + 1]
        q = plain.posterior(plain.phi_x(seen[t]), h.detach(), own).log_prob(here)
        p = plain.prior(h, own).log_prob(here)
        emitted = plain.log_prob(plain.emission(plain.phi_z(here), h), frames[t], one.observed[t])
        terms.append((q + p + emitted)[0])
    return terms


def _standing_vssn(model: FrameModel, one: Sequence, eps: tuple[Tensor, ...], zs: Tensor) -> list[Tensor]:
    plain = PlainModel(model)  # type: ignore[arg-type]
    layer, own, steps = plain.layer, plain.layer.layer, len(one.x)
    shown = torch.where(one.observed, one.x, 0.0)
    frames = torch.cat((shown, one.observed.double()), -1) if model.masked else shown
    before = torch.cat((torch.zeros_like(frames[:1]), frames[:-1]))
    x = plain.embed(frames)
    controls = [plain.controls(plain.embed(before[t]), None if one.u is None else one.u[t]) for t in range(steps)]
    d, z, *_ = plain.first_state(1, one.x)
    terms = [torch.zeros(1).double() for _ in range(steps)]
    if d is None:
        name = "noise_backward" if own.noise_smoothing and own.noise_size else "initial_backward"
        b = torch.zeros(1, own.backward_size).double()
        for t in reversed(range(steps)):
            b = layer.gru_step(name, [x[t], *controls[t]], b)
        w = layer.weights
        hidden = layer.act(b @ w["initial_posterior.hidden.weight"].T + w["initial_posterior.hidden.bias"])
        q = diagonal(*layer.gaussian(hidden @ w["initial_posterior.out.weight"].T + w["initial_posterior.out.bias"]))
        s = (q.mean + q.stddev * eps[2]).detach()
        terms[0] = terms[0] + q.log_prob(s) + layer.initial_prior(1).log_prob(s)
        d = layer.initial_map(s)
    noise_inputs = [[x[t], *controls[t]] for t in range(steps)]
    if own.noise_size and own.noise_smoothing:
        b = torch.zeros(1, own.backward_size).double()
        for t in reversed(range(steps)):
            b = layer.gru_step("noise_backward", noise_inputs[t], b)
            noise_inputs[t] = [b]
    ds = []
    for t in range(steps):
        if own.hidden_size:
            drawn = eps[0][t : t + 1]
            if own.noise_size:
                q = diagonal(*layer.noise(noise_inputs[t]))
                drawn = (q.mean + q.stddev * eps[0][t]).detach()
                terms[t] = terms[t] + q.log_prob(drawn)
            d = layer.gru_step("duration", [*controls[t], drawn], d)
        ds.append(d)
    if own.latent_size:
        a, states = torch.zeros(1, own.backward_size).double(), {}
        for t in range(steps) if own.inference == "causal" else reversed(range(steps)):
            a = layer.gru_step("backward_recurrence", [*layer.parents(ds[t].detach(), controls[t]), x[t]], a)
            states[t] = a
        for t in range(steps):
            mu_p, logvar_p = layer.latent("prior", z, layer.parents(ds[t], controls[t]))
            mu, logvar = layer.latent("posterior", z.detach(), [states[t]])
            mu = mu + mu_p.detach() if own.residual_posterior else mu
            z = zs[t : t + 1]
            terms[t] = terms[t] + diagonal(mu, logvar).log_prob(z) + diagonal(mu_p, logvar_p).log_prob(z)
    return [
        (terms[t] + plain.log_prob(plain.decode(zs[t : t + 1], ds[t]), shown[t], one.observed[t]))[0]
        for t in range(steps)
    ]


BY_NAME = {"iwae": iwae, "fivo": fivo, "nasmc": nasmc}
