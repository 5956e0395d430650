"""The training step of an RSSM: the problem, this library's side of it, and PyTorch's.

Frames enter the posterior without an embedding; a Bernoulli decoder of one hidden layer of M units; ELU and Dreamer's
softplus scale throughout. FLOP are counted as for the other models.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

import vssn
import vssn_kernels
from benchmarks.contestant import Bound, Tensors, differentiable
from benchmarks.counts import interleaved_entries
from benchmarks.problem import Problem

MIN_STD = 0.1


class RSSMSize(NamedTuple):
    """H, E and M are one size in each of RSSM_SIZES, as TorchRL's networks want it; U: of an action."""

    name: str
    T: int
    B: int
    X: int
    H: int
    E: int
    M: int
    Z: int
    U: int

    def __str__(self) -> str:
        letters = " ".join(f"{letter}={value}" for letter, value in zip("TBXHEMZU", self[1:], strict=True))
        return f"{self.name}: {letters}" if self.name else letters


RSSM_SIZES = {
    size.name: size
    for size in (
        RSSMSize("S", T=100, B=16, X=88, H=64, E=64, M=64, Z=16, U=2),
        RSSMSize("M", T=100, B=16, X=88, H=256, E=256, M=256, Z=64, U=6),
        RSSMSize("L", T=100, B=32, X=200, H=512, E=512, M=512, Z=100, U=6),
    )
}


def entries(size: RSSMSize) -> int:
    """Of every weight matrix: the chain's, the action's, the frame's, the prior's and the decoder's."""
    _, _, _, x, h, e, m, z, u = size
    return interleaved_entries(h, e, m, z) + e * u + m * x + (m * h + 2 * z * m) + (m * (z + h) + x * m)


def make_model(size: RSSMSize) -> vssn.RSSM:
    return vssn.RSSM(size.X, size.H, size.Z, control_size=size.U, mlp_size=size.M, joint_size=size.E, min_std=MIN_STD)


def rssm(size: RSSMSize) -> Problem:
    """RSSM with a Bernoulli decoder, under actions: its loss."""
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        module = make_model(size)
    sequence = (size.T, size.B)
    return Problem(
        "rssm",
        str(size),
        size.T,
        size.T * size.B,
        {name: value.detach().clone() for name, value in module.named_parameters()},
        {
            "x": (torch.rand(*sequence, size.X, generator=generator) < 0.1).float(),
            "u": torch.randn(*sequence, size.U, generator=generator),
            "eps": torch.randn(*sequence, size.Z, generator=generator),
        },
        {"loss": torch.ones(())},
        entries(size),
        settings={"size": size},
    )


def bind_ours(problem: Problem, backend: str | None = None) -> Bound:
    """None: the backend that runs when none is named."""
    x, u, eps = (problem.constants[name] for name in ("x", "u", "eps"))
    module = make_model(problem.settings["size"]).to(x.device)
    leaves: Tensors = dict(module.named_parameters())
    with torch.no_grad():
        for name, parameter in leaves.items():
            parameter.copy_(problem.tensors[name])
    noise = (eps.new_empty(*eps.shape[:2], 0), eps)

    def call() -> Tensors:
        if backend is None:
            return {"loss": module(x, u, noise=noise).loss}
        with vssn_kernels.use_backend(backend):
            return {"loss": module(x, u, noise=noise).loss}

    return Bound(leaves, call)


def bind_torch(problem: Problem) -> Bound:
    """The loop over t with all that depends on no state before it, and the prior and the decoder behind it."""
    p, (x, u, eps) = differentiable(problem), (problem.constants[name] for name in ("x", "u", "eps"))

    def call() -> Tensors:
        h, z, mean, std = loop(p, x, u, eps)
        prior_mean, prior_std = gaussian(perceptron(p, "layer.prior", h))
        return {"loss": loss(p, x, h, z, (mean, std), (prior_mean, prior_std))}

    return Bound(p, call)


def loop(p: Tensors, x: Tensor, u: Tensor, eps: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """h [T, B, H], z, and the mean and the standard deviation of q, [T, B, Z]."""
    weights = {name.removeprefix("layer.chain."): value for name, value in p.items()}
    embed_context = F.linear(u, p["layer.action.weight"], p["layer.action.bias"])
    context = F.linear(x, p["layer.frame.weight"], p["layer.frame.bias"])
    h, z = x.new_zeros(x.shape[1], weights["weight_hh"].shape[1]), torch.zeros_like(eps[0])
    results: tuple[list[Tensor], ...] = ([], [], [], [])
    for embed_context_t, context_t, eps_t in zip(embed_context.unbind(), context.unbind(), eps.unbind(), strict=True):
        e = F.elu(torch.addmm(embed_context_t, z, weights["weight_embed"].T))
        x_r, x_u, x_n = torch.addmm(p["layer.gates_bias"], e, weights["weight_zh"].T).chunk(3, -1)
        h_r, h_u, h_n = torch.addmm(weights["bias_hh"], h, weights["weight_hh"].T).chunk(3, -1)
        n = torch.tanh(x_n + torch.sigmoid(x_r + h_r) * h_n)
        h = torch.lerp(n, h, torch.sigmoid(x_u + h_u))
        hidden = F.elu(torch.addmm(context_t, h, weights["weight_h"].T))
        mean, std = gaussian(torch.addmm(weights["bias_out"], hidden, weights["weight_out"].T))
        z = torch.addcmul(mean, std, eps_t)
        for steps, step in zip(results, (h, z, mean, std), strict=True):
            steps.append(step)
    h, z, mean, std = (torch.stack(steps) for steps in results)
    return h, z, mean, std


def gaussian(out: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of a network's output [..., 2Z]."""
    mean, raw = out.chunk(2, -1)
    return mean, F.softplus(raw) + MIN_STD


def perceptron(p: Tensors, name: str, *inputs: Tensor) -> Tensor:
    hidden = F.elu(F.linear(torch.cat(inputs, -1), p[f"{name}.hidden.weight"], p[f"{name}.hidden.bias"]))
    return F.linear(hidden, p[f"{name}.out.weight"], p[f"{name}.out.bias"])


def loss(
    p: Tensors, x: Tensor, h: Tensor, z: Tensor, posterior: tuple[Tensor, Tensor], prior: tuple[Tensor, Tensor]
) -> Tensor:
    """-(log p(x | z, h) - KL) a frame; each Gaussian as its mean and standard deviation."""
    (mean, std), (prior_mean, prior_std) = posterior, prior
    ratio = (std / prior_std).square()
    kl = 0.5 * (ratio + ((mean - prior_mean) / prior_std).square() - 1 - ratio.log()).sum()
    logits = perceptron(p, "emission", z, h)
    cross_entropy = F.binary_cross_entropy_with_logits(logits, x, reduction="sum")
    return (cross_entropy + kl) / (x.shape[0] * x.shape[1])
