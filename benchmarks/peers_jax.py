"""JAX as a peer: each problem written with jit and lax.scan, weights and inputs on the device.

Weights keep PyTorch's layout; sequences are [T, B, ·]. What does not depend on the step before is outside the scans.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from benchmarks.cases import MIN_LOGVAR
from benchmarks.contestant import LEARNING_RATE, Absent, Contestant, Tensors, layers
from benchmarks.problem import ADAM, FORWARD, Problem

jax: Any = importlib.import_module("jax")
jnp: Any = importlib.import_module("jax.numpy")

Arrays = dict[str, Any]
Function = Callable[[Arrays, Arrays], Arrays]


def gru_scan(gates_x: Any, h0: Any, weight_hh: Any, bias_hh: Any, reverse: bool = False) -> tuple[Any, Any]:
    """gates_x [T, B, 3H], h0 [B, H] to output [T, B, H], h_n [B, H]."""

    def step(h: Any, gates: Any) -> tuple[Any, Any]:
        r_x, z_x, n_x = jnp.split(gates, 3, -1)
        r_h, z_h, n_h = jnp.split(h @ weight_hh.T + bias_hh, 3, -1)
        r, z = jax.nn.sigmoid(r_x + r_h), jax.nn.sigmoid(z_x + z_h)
        h = (1 - z) * jnp.tanh(n_x + r * n_h) + z * h
        return h, h

    h_n, output = jax.lax.scan(step, h0, gates_x, reverse=reverse)
    return output, h_n


def floor_logvar(raw: Any) -> Any:
    return MIN_LOGVAR + jax.nn.softplus(raw - MIN_LOGVAR)


def posterior_scan(
    context: Any, z0: Any, eps: Any, weight_z: Any, weight_out: Any, bias_out: Any
) -> tuple[Any, Any, Any]:
    """context [T, B, M], z0 [B, Z], eps [T, B, Z] to z, mu, logvar [T, B, Z]."""

    def step(z: Any, inputs: tuple[Any, Any]) -> tuple[Any, tuple[Any, Any, Any]]:
        context_t, eps_t = inputs
        mu, raw = jnp.split(jnp.tanh(context_t + z @ weight_z.T) @ weight_out.T + bias_out, 2, -1)
        logvar = floor_logvar(raw)
        z = mu + jnp.exp(0.5 * logvar) * eps_t
        return z, (z, mu, logvar)

    return jax.lax.scan(step, z0, (context, eps))[1]


def kl_divergence(mu: Any, logvar: Any, prior_mu: Any = 0.0, prior_logvar: Any = 0.0) -> Any:
    scaled = (jnp.exp(logvar) + (mu - prior_mu) ** 2) * jnp.exp(-prior_logvar)
    return 0.5 * (prior_logvar - logvar + scaled - 1).sum(-1)


def gru(p: Arrays, _: Arrays) -> Arrays:
    output, h_n = gru_scan(p["x"] @ p["weight_ih"].T + p["bias_ih"], p["h0"], p["weight_hh"], p["bias_hh"])
    return {"output": output, "h_n": h_n}


def gru_sequence(p: Arrays, _: Arrays) -> Arrays:
    output, h_n = gru_scan(p["gates_x"], p["h0"], p["weight_hh"], p["bias_hh"])
    return {"output": output, "h_n": h_n}


def posterior_sequence(p: Arrays, constants: Arrays) -> Arrays:
    weights = p["weight_z"], p["weight_out"], p["bias_out"]
    z, mu, logvar = posterior_scan(p["context"], p["z0"], constants["eps"], *weights)
    return {"z": z, "mu": mu, "logvar": logvar}


def interleaved_sequence(p: Arrays, constants: Arrays) -> Arrays:
    def step(state: tuple[Any, Any], inputs: tuple[Any, ...]) -> tuple[tuple[Any, Any], tuple[Any, ...]]:
        (h, z), (gates_x, embed_context, context, eps) = state, inputs
        e = jax.nn.relu(embed_context + z @ p["weight_embed"].T)
        x_r, x_u, x_n = jnp.split(gates_x + e @ p["weight_zh"].T, 3, -1)
        h_r, h_u, h_n = jnp.split(h @ p["weight_hh"].T + p["bias_hh"], 3, -1)
        u = jax.nn.sigmoid(x_u + h_u)
        h = (1 - u) * jnp.tanh(x_n + jax.nn.sigmoid(x_r + h_r) * h_n) + u * h
        hidden = jnp.tanh(context + h @ p["weight_h"].T)
        mu, raw = jnp.split(hidden @ p["weight_out"].T + p["bias_out"], 2, -1)
        logvar = floor_logvar(raw)
        z = mu + jnp.exp(0.5 * logvar) * eps
        return (h, z), (h, z, mu, logvar)

    inputs = (p["gates_x"], p["embed_context"], p["context"], constants["eps"])
    outputs = jax.lax.scan(step, (p["h0"], p["z0"]), inputs)[1]
    return dict(zip(("h", "z", "mu", "logvar"), outputs, strict=True))


def gaussian_rsample_kl(p: Arrays, _: Arrays) -> Arrays:
    z = p["mu"] + jnp.exp(0.5 * p["logvar"]) * p["eps"]
    return {"z": z, "kl": kl_divergence(p["mu"], p["logvar"])}


def gaussian_kl(p: Arrays, _: Arrays) -> Arrays:
    return {"kl": kl_divergence(p["mu"], p["logvar"], p["prior_mu"], p["prior_logvar"])}


def perceptron(inputs: list[Any], weight: Any, bias: Any, weight_out: Any, bias_out: Any) -> Any:
    return jnp.tanh(jnp.concatenate(inputs, -1) @ weight.T + bias) @ weight_out.T + bias_out


def mlp(p: Arrays, _: Arrays) -> Arrays:
    return {"out": perceptron(*layers(p))}


def gaussian_mlp(p: Arrays, _: Arrays) -> Arrays:
    mu, raw = jnp.split(perceptron(*layers(p)), 2, -1)
    return {"mu": mu, "logvar": floor_logvar(raw)}


def split_linear(p: Arrays, _: Arrays) -> Arrays:
    inputs, weight, bias = layers(p)
    return {"out": jnp.concatenate(inputs, -1) @ weight.T + bias}


def bernoulli_log_prob(p: Arrays, constants: Arrays) -> Arrays:
    return {"log_prob": (constants["x"] * p["logits"] - jax.nn.softplus(p["logits"])).sum(-1)}


def _linear(p: Arrays, name: str, rows: Any) -> Any:
    return rows @ p[f"{name}.weight"].T + p[f"{name}.bias"]


def _mlp(p: Arrays, name: str, *inputs: Any) -> Any:
    parts = ("hidden.weight", "hidden.bias", "out.weight", "out.bias")
    return perceptron(list(inputs), *(p[f"{name}.{part}"] for part in parts))


def _recurrence(p: Arrays, name: str, inputs: Any, reverse: bool) -> Any:
    weight_hh = p[f"{name}.weight_hh"]
    h0 = jnp.zeros((inputs.shape[1], weight_hh.shape[1]), inputs.dtype)
    return gru_scan(_linear(p, f"{name}.input", inputs), h0, weight_hh, p[f"{name}.bias_hh"], reverse)[0]


def _latents(p: Arrays, constants: Arrays) -> tuple[Any, Any, Any]:
    """d [T, B, D], z [T, B, Z], kl [T, B]."""
    x, eps_w, eps_z = constants["x"], constants["eps_w"], constants["eps_z"]
    previous = jnp.concatenate((jnp.zeros_like(x[:1]), x[:-1]))
    mu_w, raw_w = jnp.split(_mlp(p, "noise_posterior", x, previous), 2, -1)
    logvar_w = floor_logvar(raw_w)
    w = mu_w + jnp.exp(0.5 * logvar_w) * eps_w
    d = _recurrence(p, "duration", jnp.concatenate((previous, w), -1), reverse=False)
    a = _recurrence(p, "backward_recurrence", jnp.concatenate((d, x), -1), reverse=True)
    z0 = jnp.zeros_like(eps_z[0])
    weights = (p[f"posterior.{name}"] for name in ("weight_z", "out.weight", "out.bias"))
    z, mu, logvar = posterior_scan(_linear(p, "posterior.context", a), z0, eps_z, *weights)
    before = jnp.concatenate((z0[None], z[:-1]))
    hidden = jnp.tanh(_linear(p, "prior.context", d) + before @ p["prior.weight_z"].T)
    prior_mu, raw = jnp.split(_linear(p, "prior.out", hidden), 2, -1)
    return d, z, kl_divergence(mu, logvar, prior_mu, floor_logvar(raw)) + kl_divergence(mu_w, logvar_w)


def layer(p: Arrays, constants: Arrays) -> Arrays:
    d, z, kl = _latents(p, constants)
    return {"output": jnp.concatenate((d, z), -1), "kl": kl}


def train_step(p: Arrays, constants: Arrays) -> Arrays:
    d, z, kl = _latents(p, constants)
    logits, x = _mlp(p, "emission", z, d), constants["x"]
    return {"loss": ((jax.nn.softplus(logits) - x * logits).sum() + kl.sum()) / kl.size}


FUNCTIONS: dict[str, Function] = {
    function.__name__: function
    for function in (
        *(gru, gru_sequence, posterior_sequence, gaussian_rsample_kl, gaussian_kl),
        *(mlp, gaussian_mlp, split_linear, bernoulli_log_prob, layer, train_step),
    )
}


def _adam(p: Arrays, gradients: Arrays, moments: Arrays, squares: Arrays, count: Any) -> tuple[Arrays, Arrays, Arrays]:
    """One step of Adam with PyTorch's defaults."""
    moments = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, moments, gradients)
    squares = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g * g, squares, gradients)
    first, second = 1 - 0.9**count, 1 - 0.999**count

    def move(value: Any, m: Any, v: Any) -> Any:
        return value - LEARNING_RATE * (m / first) / (jnp.sqrt(v / second) + 1e-8)

    return jax.tree.map(move, p, moments, squares), moments, squares


def contestant(problem: Problem, run: str) -> Contestant:
    """The problem's pass `run` as one jitted function."""
    if problem.family not in FUNCTIONS:
        raise Absent(f"{problem.family} has no counterpart written in JAX")
    function = FUNCTIONS[problem.family]
    weights, constants, cotangents = (
        {name: jnp.array(value.cpu().numpy()) for name, value in part.items()}
        for part in (problem.tensors, problem.constants, problem.cotangents)
    )

    # The data are arguments: XLA would work out a constant's share while it compiles.
    def differentiate(p: Arrays, constants: Arrays, cotangents: Arrays) -> tuple[Arrays, Arrays]:
        outputs, pull_back = jax.vjp(lambda p: function(p, constants), p)
        return outputs, pull_back(cotangents)[0]

    if run == ADAM:
        return _training(weights, constants, cotangents, differentiate)
    data = (weights, constants) if run == FORWARD else (weights, constants, cotangents)
    jitted = jax.jit(function if run == FORWARD else differentiate)

    def step() -> Any:
        return jax.block_until_ready(jitted(*data))

    def results() -> Tensors:
        if run == FORWARD:
            return _to_torch(step())
        outputs, gradients = step()
        return _to_torch(outputs) | _to_torch({f"gradient of {name}": value for name, value in gradients.items()})

    return Contestant("jax", step, results)


def _training(weights: Arrays, constants: Arrays, cotangents: Arrays, differentiate: Callable[..., Any]) -> Contestant:
    """Adam from call to call; what a step replaces is donated to it."""

    def update(p: Arrays, moments: Arrays, squares: Arrays, count: Any, *data: Arrays) -> tuple[Any, ...]:
        outputs, gradients = differentiate(p, *data)
        return outputs, *_adam(p, gradients, moments, squares, count), count + 1

    jitted = jax.jit(update, donate_argnums=(0, 1, 2, 3))
    zeros = jax.tree.map(jnp.zeros_like, weights)
    state = [(weights, zeros, jax.tree.map(jnp.zeros_like, weights), jnp.ones(()))]

    def step() -> Arrays:
        outputs, *new = jax.block_until_ready(jitted(*state.pop(), constants, cotangents))
        state.append(tuple(new))
        return outputs

    def results() -> Tensors:
        outputs = _to_torch(step())
        return outputs | _to_torch({f"{name} after a step": value for name, value in state[0][0].items()})

    return Contestant("jax", step, results)


def _to_torch(arrays: Arrays) -> Tensors:
    return {name: torch.from_numpy(np.array(value)) for name, value in arrays.items()}
