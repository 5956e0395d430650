"""The training step of a VRNN: the problem, this library's side of it, and PyTorch's.

A Bernoulli decoder, relu throughout, phi_x and phi_z of E units, one hidden layer of M units in every network. FLOP are
counted as for the other models, phi_z once: what the GRU takes of a latent is what the decoder takes of it.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

import vssn
import vssn_kernels
from benchmarks.cases import MIN_LOGVAR
from benchmarks.contestant import Bound, Tensors, differentiable
from benchmarks.counts import interleaved_entries
from benchmarks.problem import Problem


class VRNNSize(NamedTuple):
    name: str
    T: int
    B: int
    X: int
    H: int
    E: int
    M: int
    Z: int

    def __str__(self) -> str:
        letters = " ".join(f"{letter}={value}" for letter, value in zip("TBXHEMZ", self[1:], strict=True))
        return f"{self.name}: {letters}" if self.name else letters


VRNN_SIZES = {
    size.name: size
    for size in (
        VRNNSize("S", T=100, B=16, X=88, H=64, E=64, M=64, Z=16),
        VRNNSize("M", T=100, B=16, X=88, H=256, E=256, M=256, Z=64),
        VRNNSize("L", T=100, B=32, X=200, H=512, E=512, M=512, Z=100),
    )
}


def entries(size: VRNNSize) -> int:
    """Of every weight matrix: the chain's, phi_x, what the GRU and the posterior take of it, the prior, the decoder."""
    _, _, _, x, h, e, m, z = size
    return interleaved_entries(h, e, m, z) + e * x + (3 * h + m) * e + (m * h + 2 * z * m) + (m * (e + h) + x * m)


def make_model(size: VRNNSize) -> vssn.VRNN:
    return vssn.VRNN(size.X, size.H, size.Z, embed_size=size.E, mlp_size=size.M, min_logvar=MIN_LOGVAR)


def vrnn(size: VRNNSize) -> Problem:
    """VRNN with a Bernoulli decoder and a learned prior: its loss."""
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        module = make_model(size)
    sequence = (size.T, size.B)
    return Problem(
        "vrnn",
        str(size),
        size.T,
        size.T * size.B,
        {name: value.detach().clone() for name, value in module.named_parameters()},
        {
            "x": (torch.rand(*sequence, size.X, generator=generator) < 0.1).float(),
            "eps": torch.randn(*sequence, size.Z, generator=generator),
        },
        {"loss": torch.ones(())},
        entries(size),
        settings={"size": size},
    )


def bind_ours(problem: Problem, backend: str | None = None) -> Bound:
    """None: the backend that runs when none is named."""
    x, eps = problem.constants["x"], problem.constants["eps"]
    module = make_model(problem.settings["size"]).to(x.device)
    leaves: Tensors = dict(module.named_parameters())
    with torch.no_grad():
        for name, parameter in leaves.items():
            parameter.copy_(problem.tensors[name])
    noise = (eps.new_empty(*eps.shape[:2], 0), eps)

    def call() -> Tensors:
        if backend is None:
            return {"loss": module(x, noise=noise).loss}
        with vssn_kernels.use_backend(backend):
            return {"loss": module(x, noise=noise).loss}

    return Bound(leaves, call)


def bind_torch(problem: Problem) -> Bound:
    """A loop over t with all that depends on no state before it, the prior and the decoder behind it."""
    p, x, eps = differentiable(problem), problem.constants["x"], problem.constants["eps"]

    def call() -> Tensors:
        h, e, mu, logvar = loop(p, x, eps)
        prior_mu, prior_logvar = gaussian(perceptron(p, "prior", h))
        scaled = (logvar.exp() + (mu - prior_mu) ** 2) * torch.exp(-prior_logvar)
        kl = 0.5 * (prior_logvar - logvar + scaled - 1).sum()
        logits = perceptron(p, "emission", e, h)
        cross_entropy = F.binary_cross_entropy_with_logits(logits, x, reduction="sum")
        return {"loss": (cross_entropy + kl) / (x.shape[0] * x.shape[1])}

    return Bound(p, call)


def loop(p: Tensors, x: Tensor, eps: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """h_{t-1} [T, B, H], phi_z(z_t) [T, B, E], and the mean and log-variance of q, [T, B, Z]."""
    weights = {name.removeprefix("chain."): value for name, value in p.items()}
    phi_x = torch.relu(F.linear(x, p["encoder.linear.weight"], p["encoder.linear.bias"]))
    gates = F.linear(phi_x[:-1], p["input.weight"], p["input.bias"])
    context = F.linear(phi_x, p["context.weight"], p["context.bias"])
    h = x.new_zeros(x.shape[1], weights["weight_hh"].shape[1])
    results: tuple[list[Tensor], ...] = ([], [], [], [])
    e = h
    for t, (context_t, eps_t) in enumerate(zip(context.unbind(), eps.unbind(), strict=True)):
        if t:  # the first state is that of the start
            x_r, x_u, x_n = torch.addmm(gates[t - 1], e, weights["weight_zh"].T).chunk(3, -1)
            h_r, h_u, h_n = torch.addmm(weights["bias_hh"], h, weights["weight_hh"].T).chunk(3, -1)
            n = torch.tanh(x_n + torch.sigmoid(x_r + h_r) * h_n)
            h = torch.lerp(n, h, torch.sigmoid(x_u + h_u))
        hidden = torch.relu(torch.addmm(context_t, h, weights["weight_h"].T))
        mu, logvar = gaussian(torch.addmm(weights["bias_out"], hidden, weights["weight_out"].T))
        z = torch.addcmul(mu, torch.exp(0.5 * logvar), eps_t)
        e = torch.relu(torch.addmm(p["bias_embed"], z, weights["weight_embed"].T))
        for steps, step in zip(results, (h, e, mu, logvar), strict=True):
            steps.append(step)
    h, e, mu, logvar = (torch.stack(steps) for steps in results)
    return h, e, mu, logvar


def gaussian(out: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and floored log-variance of a network's output [..., 2Z]."""
    mu, raw = out.chunk(2, -1)
    return mu, MIN_LOGVAR + F.softplus(raw - MIN_LOGVAR)


def perceptron(p: Tensors, name: str, *inputs: Tensor) -> Tensor:
    hidden = torch.relu(F.linear(torch.cat(inputs, -1), p[f"{name}.hidden.weight"], p[f"{name}.hidden.bias"]))
    return F.linear(hidden, p[f"{name}.out.weight"], p[f"{name}.out.bias"])
