"""What is measured: an implementation bound to a problem, and one pass of it as a contestant.

A peer that is not installed, or has nothing for a problem, is absent, with a reason.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.problem import ADAM, FORWARD, Problem

LEARNING_RATE = 1e-3

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


def differentiable(problem: Problem) -> Tensors:
    """Copies of the problem's tensors that gradients gather in."""
    return {name: tensor.detach().clone().requires_grad_() for name, tensor in problem.tensors.items()}


def layers(values: dict[str, Any]) -> tuple[Any, ...]:
    """Of a problem of linear layers: its inputs in one list, then weight and bias of each layer."""
    inputs = [values[name] for name in sorted(values) if name.startswith("input ")]
    return inputs, *(values[name] for name in ("weight", "bias", "weight_out", "bias_out") if name in values)


GRU_WEIGHTS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


def gru_module(
    kind: Callable[..., nn.Module], leaves: Tensors, names: tuple[str, str, str, str] = GRU_WEIGHTS
) -> nn.Module:
    """A GRU of one layer with these weights; its parameters take their places in `leaves`."""
    weight_ih, weight_hh = leaves[names[0]], leaves[names[1]]
    module = kind(weight_ih.shape[1], weight_hh.shape[1], device=weight_ih.device, dtype=weight_ih.dtype)
    for name, parameter in zip(names, module.parameters(), strict=True):
        with torch.no_grad():
            parameter.copy_(leaves[name])
        leaves[name] = parameter
    return module


def under_autocast(call: Callable[[], Tensors], problem: Problem) -> Callable[[], Tensors]:
    """The call of a whole model, under autocast where the problem is in bfloat16."""
    if not problem.bfloat16:
        return call

    def casting() -> Tensors:
        with torch.autocast(problem.device, torch.bfloat16):
            return call()

    return casting


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
