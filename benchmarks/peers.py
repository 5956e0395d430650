"""Who is measured: this library and its peers, each given the same problem, and the check that they agree on it.

A peer that is not installed, or has nothing for a problem, is absent, with a reason.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import vssn_kernels
from benchmarks.cases import ADAM, FORWARD, MIN_LOGVAR, Problem, make_layer, make_model

OURS, OURS_COMPILED = "vssn", "vssn+compile"
ON_CPU = ("torch", "jax", "torch.compile")
ON_GPU = ("cuda-graph", "flashrnn", "torchrl", "haste")
# What torch.compile does not gain from: it leaves nn.GRU as it is, and unrolls a loop over t (minutes at T = 100).
NOT_COMPILED = ("gru", "gru_sequence")
UNROLLED = ("posterior_sequence", "layer", "train_step")
LEARNING_RATE = 1e-3
# norm(a - b) / norm(b) of two float32 results: outputs; gradients, and parameters after an optimiser's step
OUTPUT_TOLERANCE, GRADIENT_TOLERANCE = 2e-5, 2e-4

Tensors = dict[str, Tensor]


class Absent(Exception):
    """Why a peer does not take part. One line."""


@dataclass(frozen=True)
class Contestant:
    """A peer bound to a problem and a pass."""

    name: str
    step: Callable[[], object]  # one call; its result is there when it returns
    results: Callable[[], Tensors]  # of one call, on the CPU: outputs, then the gradients that it makes


class Bound(NamedTuple):
    """A PyTorch implementation bound to a problem's tensors."""

    leaves: Tensors  # the problem's `tensors` by name, as this implementation holds them
    call: Callable[[], Tensors]  # the outputs by name


# ---- This library ---------------------------------------------------------------------------------------------------


def differentiable(problem: Problem) -> Tensors:
    """Copies of the problem's tensors that gradients gather in."""
    return {name: tensor.detach().clone().requires_grad_() for name, tensor in problem.tensors.items()}


def _ours(problem: Problem, backend: str | None) -> Bound:
    family, constants = problem.family, problem.constants
    if family in ("layer", "train_step"):
        return _our_model(problem, backend)
    p = differentiable(problem)

    def gru() -> Tensors:
        gates_x = F.linear(p["x"], p["weight_ih"], p["bias_ih"])
        output, h_n = vssn_kernels.gru_sequence(gates_x, p["h0"], p["weight_hh"], p["bias_hh"], backend=backend)
        return {"output": output, "h_n": h_n}

    def gru_sequence() -> Tensors:
        output, h_n = vssn_kernels.gru_sequence(*p.values(), backend=backend)
        return {"output": output, "h_n": h_n}

    def posterior_sequence() -> Tensors:
        z, mu, logvar = vssn_kernels.posterior_sequence(
            p["context"],
            p["z0"],
            constants["eps"],
            p["weight_z"],
            p["weight_out"],
            p["bias_out"],
            min_logvar=MIN_LOGVAR,
            backend=backend,
        )
        return {"z": z, "mu": mu, "logvar": logvar}

    def gaussian_rsample_kl() -> Tensors:
        z, kl = vssn_kernels.gaussian_rsample_kl(*p.values(), backend=backend)
        return {"z": z, "kl": kl}

    def gaussian_kl() -> Tensors:
        return {"kl": vssn_kernels.gaussian_kl(*p.values(), backend=backend)}

    calls = (gru, gru_sequence, posterior_sequence, gaussian_rsample_kl, gaussian_kl)
    return Bound(p, {call.__name__: call for call in calls}[family])


def _our_model(problem: Problem, backend: str | None) -> Bound:
    size, constants = problem.settings["size"], problem.constants
    module = (make_layer(size) if problem.family == "layer" else make_model(size)).to(constants["x"].device)
    leaves: Tensors = {name.removeprefix("layer."): parameter for name, parameter in module.named_parameters()}
    with torch.no_grad():
        for name, parameter in leaves.items():
            parameter.copy_(problem.tensors[name])
    x, noise = constants["x"], (constants["eps_w"], constants["eps_z"])

    def layer() -> Tensors:
        result = module(x, noise=noise)
        return {"output": result.output, "kl": result.kl}

    def train_step() -> Tensors:
        return {"loss": module(x, noise=noise).loss}

    call = layer if problem.family == "layer" else train_step
    if backend is None:
        return Bound(leaves, call)

    def on_backend() -> Tensors:
        with vssn_kernels.use_backend(backend):
            return call()

    return Bound(leaves, on_backend)


# ---- PyTorch: nn.GRU, a loop over z, the prior of every step after the loop -----------------------------------------


def _nn_gru(leaves: Tensors, names: tuple[str, str, str, str]) -> nn.GRU:
    """An nn.GRU with these weights; its parameters take their places in `leaves`."""
    weight_ih, weight_hh = leaves[names[0]], leaves[names[1]]
    module = nn.GRU(weight_ih.shape[1], weight_hh.shape[1], device=weight_ih.device)
    for name, parameter in zip(names, module.parameters(), strict=True):
        with torch.no_grad():
            parameter.copy_(leaves[name])
        leaves[name] = parameter
    return module


def floor_logvar(raw: Tensor) -> Tensor:
    return MIN_LOGVAR + F.softplus(raw - MIN_LOGVAR)


def torch_kl(mu: Tensor, logvar: Tensor, prior_mu: Tensor | None = None, prior_logvar: Tensor | None = None) -> Tensor:
    if prior_mu is None or prior_logvar is None:
        return 0.5 * (mu * mu + logvar.exp() - logvar - 1).sum(-1)
    scaled = (logvar.exp() + (mu - prior_mu) ** 2) * torch.exp(-prior_logvar)
    return 0.5 * (prior_logvar - logvar + scaled - 1).sum(-1)


def torch_posterior(
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


def torch_bound(problem: Problem) -> Bound:
    """The PyTorch implementation of the problem. Raises Absent."""
    family, constants = problem.family, problem.constants
    if family == "gru_sequence":
        raise Absent("torch.nn.GRU takes x, not its projections: see the family gru")
    if family in ("layer", "train_step"):
        return _torch_model(problem)
    p = differentiable(problem)
    if family == "gru":
        module = _nn_gru(p, ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))

    def gru() -> Tensors:
        output, h_n = module(p["x"], p["h0"][None])
        return {"output": output, "h_n": h_n[0]}

    def posterior_sequence() -> Tensors:
        weights = p["weight_z"], p["weight_out"], p["bias_out"]
        z, mu, logvar = torch_posterior(p["context"], p["z0"], constants["eps"], *weights)
        return {"z": z, "mu": mu, "logvar": logvar}

    def gaussian_rsample_kl() -> Tensors:
        mu, logvar, eps = p.values()
        return {"z": torch.addcmul(mu, torch.exp(0.5 * logvar), eps), "kl": torch_kl(mu, logvar)}

    def gaussian_kl() -> Tensors:
        return {"kl": torch_kl(*p.values())}

    calls = (gru, posterior_sequence, gaussian_rsample_kl, gaussian_kl)
    return Bound(p, {call.__name__: call for call in calls}[family])


def _torch_model(problem: Problem) -> Bound:
    p = differentiable(problem)
    x, eps_w, eps_z = problem.constants["x"], problem.constants["eps_w"], problem.constants["eps_z"]
    parts = ("input.weight", "weight_hh", "input.bias", "bias_hh")
    duration = _nn_gru(p, tuple(f"duration.{part}" for part in parts))  # type: ignore[arg-type]
    backward = _nn_gru(p, tuple(f"backward_recurrence.{part}" for part in parts))  # type: ignore[arg-type]
    z0 = x.new_zeros(x.shape[1], eps_z.shape[-1])

    def linear(name: str, rows: Tensor) -> Tensor:
        return F.linear(rows, p[f"{name}.weight"], p[f"{name}.bias"])

    def mlp(name: str, rows: Tensor) -> Tensor:
        return linear(f"{name}.out", torch.tanh(linear(f"{name}.hidden", rows)))

    def latents() -> tuple[Tensor, Tensor, Tensor]:
        """d [T, B, D], z [T, B, Z], kl [T, B]."""
        previous = torch.cat((torch.zeros_like(x[:1]), x[:-1]))
        mu_w, raw_w = mlp("noise_posterior", torch.cat((x, previous), -1)).chunk(2, -1)
        logvar_w = floor_logvar(raw_w)
        w = torch.addcmul(mu_w, torch.exp(0.5 * logvar_w), eps_w)
        d, _ = duration(torch.cat((previous, w), -1))
        a = backward(torch.cat((d, x), -1).flip(0))[0].flip(0)
        weights = (p[f"posterior.{name}"] for name in ("weight_z", "out.weight", "out.bias"))
        z, mu, logvar = torch_posterior(linear("posterior.context", a), z0, eps_z, *weights)
        before = torch.cat((z0[None], z[:-1]))
        hidden = torch.tanh(linear("prior.context", d) + F.linear(before, p["prior.weight_z"]))
        prior_mu, raw = linear("prior.out", hidden).chunk(2, -1)
        return d, z, torch_kl(mu, logvar, prior_mu, floor_logvar(raw)) + torch_kl(mu_w, logvar_w)

    def layer() -> Tensors:
        d, z, kl = latents()
        return {"output": torch.cat((d, z), -1), "kl": kl}

    def train_step() -> Tensors:
        d, z, kl = latents()
        logits = mlp("emission", torch.cat((z, d), -1))
        cross_entropy = F.binary_cross_entropy_with_logits(logits, x, reduction="sum")
        return {"loss": (cross_entropy + kl.sum()) / kl.numel()}

    return Bound(p, layer if problem.family == "layer" else train_step)


def _compiled(bound: Bound) -> Bound:
    return Bound(bound.leaves, torch.compile(bound.call))


# ---- Contestants ----------------------------------------------------------------------------------------------------


def bind(name: str, problem: Problem) -> Bound:
    """A PyTorch implementation of the problem. Raises Absent."""
    if name == OURS:
        return _ours(problem, None)
    if name in vssn_kernels.backends():
        if (status := vssn_kernels.backends()[name]) != "available":
            raise Absent(status)
        return _ours(problem, name)
    if name == "torch":
        return torch_bound(problem)
    if name == "torch.compile":
        if problem.family in NOT_COMPILED:
            raise Absent("it leaves torch.nn.GRU as it is")
        return _compiled(torch_bound(problem))
    if name == OURS_COMPILED:
        return _compiled(_ours(problem, None))
    return importlib.import_module("benchmarks.peers_gpu").bind(name, problem)


def torch_contestant(name: str, bound: Bound, problem: Problem, run: str) -> Contestant:
    """The pass `run` of a PyTorch implementation."""
    leaves, call = bound
    cotangents = list(problem.cotangents.values())
    cuda = cotangents[0].is_cuda
    optimiser = torch.optim.Adam(leaves.values(), LEARNING_RATE, fused=True) if run == ADAM else None
    if run == FORWARD:
        for leaf in leaves.values():
            leaf.requires_grad_(False)

    def once() -> Tensors:
        for leaf in leaves.values():
            leaf.grad = None
        outputs = call()
        if run != FORWARD:
            torch.autograd.backward([outputs[key] for key in problem.cotangents], cotangents)
        if optimiser is not None:
            optimiser.step()
        return outputs

    def step() -> None:
        once()
        if cuda:
            torch.cuda.synchronize()

    def results() -> Tensors:
        found = once()
        if run == ADAM:
            found = found | {f"{key} after a step": leaf for key, leaf in leaves.items()}
        elif run != FORWARD:
            found = found | {f"gradient of {key}": gradient_of(key, leaf) for key, leaf in leaves.items()}
        return {key: value.detach().cpu().clone() for key, value in found.items()}

    return Contestant(name, step, results)


def gradient_of(name: str, leaf: Tensor) -> Tensor:
    """The gradient that the last backward pass left in `leaf`."""
    if leaf.grad is None:
        raise RuntimeError(f"no gradient reached {name}")
    return leaf.grad


def make_contestant(name: str, problem: Problem, run: str) -> Contestant:
    """A peer bound to the problem. Raises Absent."""
    if name == "cuda-graph":
        return importlib.import_module("benchmarks.peers_gpu").graph_contestant(problem, run)
    if name == "jax":
        return _jax_contestant(problem, run)
    return torch_contestant(name, bind(name, problem), problem, run)


def _jax_contestant(problem: Problem, run: str) -> Contestant:
    if (cores := len(os.sched_getaffinity(0))) != torch.get_num_threads() and problem.device == "cpu":
        raise Absent(f"JAX takes a thread for each of the {cores} cores, not {torch.get_num_threads()}")
    try:
        peer = importlib.import_module("benchmarks.peers_jax")
    except ImportError as error:
        raise Absent(f"{error}; install it with: pip install jax") from error
    return peer.contestant(problem, run)


# ---- Agreement ------------------------------------------------------------------------------------------------------


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """norm(actual - expected) / norm(expected), in float64; infinite where shapes differ or a number is not finite."""
    if actual.shape != expected.shape:
        return float("inf")
    actual, expected = actual.double(), expected.double()
    error = torch.linalg.vector_norm(actual - expected) / torch.linalg.vector_norm(expected).clamp(min=1e-30)
    return error.item() if torch.isfinite(error) else float("inf")


def disagreement(actual: Tensors, expected: Tensors) -> tuple[float, str]:
    """The largest relative error, and a line naming every result beyond its tolerance ("" where all agree)."""
    if set(actual) != set(expected):
        return float("inf"), f"results differ: {', '.join(sorted(set(actual) ^ set(expected)))}"
    errors = {name: relative_error(actual[name], expected[name]) for name in expected}
    beyond = [f"{name} by {error:.1e}" for name, error in errors.items() if not error <= tolerance(name)]
    return max(errors.values()), f"disagrees in {', '.join(beyond)}" if beyond else ""


def tolerance(result: str) -> float:
    return GRADIENT_TOLERANCE if "gradient of" in result or "after a step" in result else OUTPUT_TOLERANCE
