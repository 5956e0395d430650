"""PyTorch's side: nn.GRU, a loop over z, the prior of every step after the loop."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.cases import MIN_LOGVAR
from benchmarks.contestant import Absent, Bound, Tensors, differentiable, gru_module, layers, under_autocast
from benchmarks.problem import Problem


def floor_logvar(raw: Tensor) -> Tensor:
    return MIN_LOGVAR + F.softplus(raw - MIN_LOGVAR)


def kl_divergence(
    mu: Tensor, logvar: Tensor, prior_mu: Tensor | None = None, prior_logvar: Tensor | None = None
) -> Tensor:
    if prior_mu is None or prior_logvar is None:
        return 0.5 * (mu * mu + logvar.exp() - logvar - 1).sum(-1)
    scaled = (logvar.exp() + (mu - prior_mu) ** 2) * torch.exp(-prior_logvar)
    return 0.5 * (prior_logvar - logvar + scaled - 1).sum(-1)


def perceptron(inputs: list[Tensor], weight: Tensor, bias: Tensor, weight_out: Tensor, bias_out: Tensor) -> Tensor:
    return F.linear(torch.tanh(F.linear(torch.cat(inputs, -1), weight, bias)), weight_out, bias_out)


def posterior_loop(
    context: Tensor, z0: Tensor, eps: Tensor, weight_z: Tensor, weight_out: Tensor, bias_out: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """context [T, B, M], z0 [B, Z], eps [T, B, Z] to z, mu, logvar [T, B, Z]."""
    z, zs, mus, logvars = z0, [], [], []
    for context_t, eps_t in zip(context.unbind(), eps.unbind(), strict=True):
        hidden = torch.tanh(torch.addmm(context_t, z, weight_z.T))
        mu, raw = torch.addmm(bias_out, hidden, weight_out.T).chunk(2, -1)
        logvar = floor_logvar(raw)
        z = torch.addcmul(mu, torch.exp(0.5 * logvar), eps_t)
        zs.append(z)
        mus.append(mu)
        logvars.append(logvar)
    return torch.stack(zs), torch.stack(mus), torch.stack(logvars)


def interleaved_loop(p: Tensors, eps: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The cell of a VRNN step by step: h [T, B, H], z, mu, logvar [T, B, Z]."""
    h, z = p["h0"], p["z0"]
    results: tuple[list[Tensor], ...] = ([], [], [], [])
    sequences = (p["gates_x"], p["embed_context"], p["context"], eps)
    for gates_x, embed_context, context, eps_t in zip(*(sequence.unbind() for sequence in sequences), strict=True):
        e = torch.relu(torch.addmm(embed_context, z, p["weight_embed"].T))
        x_r, x_u, x_n = torch.addmm(gates_x, e, p["weight_zh"].T).chunk(3, -1)
        h_r, h_u, h_n = torch.addmm(p["bias_hh"], h, p["weight_hh"].T).chunk(3, -1)
        n = torch.tanh(x_n + torch.sigmoid(x_r + h_r) * h_n)
        h = torch.lerp(n, h, torch.sigmoid(x_u + h_u))
        hidden = torch.tanh(torch.addmm(context, h, p["weight_h"].T))
        mu, raw = torch.addmm(p["bias_out"], hidden, p["weight_out"].T).chunk(2, -1)
        logvar = floor_logvar(raw)
        z = torch.addcmul(mu, torch.exp(0.5 * logvar), eps_t)
        for steps, step in zip(results, (h, z, mu, logvar), strict=True):
            steps.append(step)
    h, z, mu, logvar = (torch.stack(steps) for steps in results)
    return h, z, mu, logvar


def bind(problem: Problem) -> Bound:
    """The PyTorch implementation of the problem. Raises Absent."""
    family, constants = problem.family, problem.constants
    if family in ("gru_sequence", "gru_packed"):
        raise Absent("torch.nn.GRU takes x, not its projections: see the family gru")
    if family in ("layer", "train_step"):
        return _model(problem)
    p = differentiable(problem)
    if family in ("gru", "gru_step"):
        module = gru_module(nn.GRU, p)
    if family == "gru_step":
        x, h0 = constants["x"], constants["h0"][None]

    def gru() -> Tensors:
        output, h_n = module(p["x"], p["h0"][None])
        return {"output": output, "h_n": h_n[0]}

    def gru_step() -> Tensors:
        return {"output": module(x, h0)[0]}

    def posterior_sequence() -> Tensors:
        weights = p["weight_z"], p["weight_out"], p["bias_out"]
        z, mu, logvar = posterior_loop(p["context"], p["z0"], constants["eps"], *weights)
        return {"z": z, "mu": mu, "logvar": logvar}

    def interleaved_sequence() -> Tensors:
        return dict(zip(("h", "z", "mu", "logvar"), interleaved_loop(p, constants["eps"]), strict=True))

    def gaussian_rsample_kl() -> Tensors:
        mu, logvar, eps = p.values()
        return {"z": torch.addcmul(mu, torch.exp(0.5 * logvar), eps), "kl": kl_divergence(mu, logvar)}

    def gaussian_kl() -> Tensors:
        return {"kl": kl_divergence(*p.values())}

    def mlp() -> Tensors:
        return {"out": perceptron(*layers(p))}

    def gaussian_mlp() -> Tensors:
        mu, raw = perceptron(*layers(p)).chunk(2, -1)
        return {"mu": mu, "logvar": floor_logvar(raw)}

    def split_linear() -> Tensors:
        inputs, weight, bias = layers(p)
        return {"out": F.linear(torch.cat(inputs, -1), weight, bias)}

    def bernoulli_log_prob() -> Tensors:
        entries = F.binary_cross_entropy_with_logits(p["logits"], constants["x"], reduction="none")
        return {"log_prob": -entries.sum(-1)}

    linear = (mlp, gaussian_mlp, split_linear)
    chains = (posterior_sequence, interleaved_sequence)
    calls = (gru, gru_step, *chains, gaussian_rsample_kl, gaussian_kl, *linear, bernoulli_log_prob)
    return Bound(p, {call.__name__: call for call in calls}[family])


def bind_cell(problem: Problem) -> Bound:
    """One step by nn.GRUCell. Raises Absent."""
    if problem.family != "gru_step":
        raise Absent("torch.nn.GRUCell takes one step: see the family gru_step")
    p = differentiable(problem)
    cell, x, h0 = gru_module(nn.GRUCell, p), problem.constants["x"][0], problem.constants["h0"]
    return Bound(p, lambda: {"output": cell(x, h0)[None]})


def _model(problem: Problem) -> Bound:
    p = differentiable(problem)
    x, eps_w, eps_z = problem.constants["x"], problem.constants["eps_w"], problem.constants["eps_z"]
    parts = ("input.weight", "weight_hh", "input.bias", "bias_hh")
    duration = gru_module(nn.GRU, p, tuple(f"duration.{part}" for part in parts))  # type: ignore[arg-type]
    backward = gru_module(nn.GRU, p, tuple(f"backward_recurrence.{part}" for part in parts))  # type: ignore[arg-type]
    z0 = x.new_zeros(x.shape[1], eps_z.shape[-1])

    def linear(name: str, rows: Tensor) -> Tensor:
        return F.linear(rows, p[f"{name}.weight"], p[f"{name}.bias"])

    def mlp(name: str, *inputs: Tensor) -> Tensor:
        parts = ("hidden.weight", "hidden.bias", "out.weight", "out.bias")
        return perceptron(list(inputs), *(p[f"{name}.{part}"] for part in parts))

    def latents() -> tuple[Tensor, Tensor, Tensor]:
        """d [T, B, D], z [T, B, Z], kl [T, B]."""
        previous = torch.cat((torch.zeros_like(x[:1]), x[:-1]))
        mu_w, raw_w = mlp("noise_posterior", x, previous).chunk(2, -1)
        logvar_w = floor_logvar(raw_w)
        w = torch.addcmul(mu_w, torch.exp(0.5 * logvar_w), eps_w)
        d, _ = duration(torch.cat((previous, w), -1))
        a = backward(torch.cat((d, x), -1).flip(0))[0].flip(0)
        weights = (p[f"posterior.{name}"] for name in ("weight_z", "out.weight", "out.bias"))
        z, mu, logvar = posterior_loop(linear("posterior.context", a), z0, eps_z, *weights)
        before = torch.cat((z0[None], z[:-1]))
        hidden = torch.tanh(linear("prior.context", d) + F.linear(before, p["prior.weight_z"]))
        prior_mu, raw = linear("prior.out", hidden).chunk(2, -1)
        return d, z, kl_divergence(mu, logvar, prior_mu, floor_logvar(raw)) + kl_divergence(mu_w, logvar_w)

    def layer() -> Tensors:
        d, z, kl = latents()
        return {"output": torch.cat((d, z), -1), "kl": kl}

    def train_step() -> Tensors:
        d, z, kl = latents()
        logits = mlp("emission", z, d)
        cross_entropy = F.binary_cross_entropy_with_logits(logits, x, reduction="sum")
        return {"loss": (cross_entropy + kl.sum()) / kl.numel()}

    return Bound(p, under_autocast(layer if problem.family == "layer" else train_step, problem))
