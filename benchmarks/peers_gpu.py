"""Peers that need a GPU: a CUDA graph of the PyTorch loop, FlashRNN, TorchRL's Triton GRU and haste.

On a GPU the peer `torch` is cuDNN's GRU. Each package is imported when it is asked for, so that none has to be there.
"""

from __future__ import annotations

import importlib
from typing import Any

import torch
import torch.nn.functional as F

from benchmarks import peers_torch
from benchmarks.contestant import Absent, Bound, Contestant, Tensors, differentiable, gradient_of
from benchmarks.problem import ADAM, FORWARD, Problem

RECURRENCES = ("gru", "gru_sequence")


def _import(module: str, package: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise Absent(f"{error}; install it with: pip install {package}") from error


def _require_gpu(problem: Problem) -> None:
    if problem.device != "cuda":
        raise Absent("it needs a CUDA device: --device cuda")


def bind(name: str, problem: Problem) -> Bound:
    """A peer's GRU. Raises Absent."""
    _require_gpu(problem)
    if problem.family not in RECURRENCES:
        raise Absent("it has a GRU, nothing like this")
    return {"flashrnn": _flashrnn, "torchrl": _torchrl, "haste": _haste}[name](problem)


def _flashrnn(problem: Problem) -> Bound:
    """Gates of the recurrent weight: n, r, z; of the input: r, z, n; a fourth bias is that of the input's n."""
    flashrnn = _import("flashrnn", "flashrnn").flashrnn
    p = differentiable(problem)
    steps, batch = problem.steps, problem.rows // problem.steps

    def call() -> Tensors:
        gates_x = p["gates_x"] if "gates_x" in p else F.linear(p["x"], p["weight_ih"], p["bias_ih"])
        hidden = p["h0"].shape[1]
        r, z, n = p["weight_hh"].view(3, 1, hidden, hidden).unbind()
        bias_r, bias_z, bias_n = p["bias_hh"].view(3, 1, hidden).unbind()
        bias = torch.stack((bias_n, bias_r, bias_z, torch.zeros_like(bias_n)))
        states, last = flashrnn(
            gates_x.view(steps, batch, 3, 1, hidden).transpose(0, 1),
            torch.stack((n, r, z)),
            bias,
            states=p["h0"].view(1, batch, 1, 1, hidden),
            function="gru",
            backend="cuda",
            dtype="float32",
        )
        return {"output": states[0, :, :, 0].transpose(0, 1), "h_n": last[0, :, 0, 0]}

    return Bound(p, call)


def _torchrl(problem: Problem) -> Bound:
    """Batch first; a state for each step, of which the first counts where nothing is reset."""
    if problem.family != "gru":
        raise Absent("it takes x, not its projections: see the family gru")
    gru_triton = _import("torchrl.modules.tensordict_module._rnn_triton", "torchrl").gru_triton
    p = differentiable(problem)
    steps, batch = problem.steps, problem.rows // problem.steps
    resets = torch.zeros(batch, steps, dtype=torch.bool, device=p["x"].device)

    def call() -> Tensors:
        hidden = p["h0"][:, None].expand(-1, steps, -1)
        weights = (p[name] for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))
        output, h_n = gru_triton(p["x"].transpose(0, 1), hidden, *weights, resets)
        return {"output": output.transpose(0, 1), "h_n": h_n}

    return Bound(p, call)


def _haste(problem: Problem) -> Bound:
    """Weights transposed, gates z, r, n."""
    if problem.family != "gru":
        raise Absent("it takes x, not its projections: see the family gru")
    haste = _import("haste_pytorch", "haste_pytorch")
    p = differentiable(problem)
    module = haste.GRU(p["x"].shape[-1], p["h0"].shape[-1]).to(p["x"].device)

    def reorder(tensor: torch.Tensor) -> torch.Tensor:
        r, z, n = tensor.chunk(3, -1)
        return torch.cat((z, r, n), -1)

    def call() -> Tensors:
        weights = {
            "kernel": reorder(p["weight_ih"].T),
            "recurrent_kernel": reorder(p["weight_hh"].T),
            "bias": reorder(p["bias_ih"]),
            "recurrent_bias": reorder(p["bias_hh"]),
        }
        output, h_n = torch.func.functional_call(module, weights, (p["x"], p["h0"][None]))
        return {"output": output, "h_n": h_n[0]}

    return Bound(p, call)


def graph_contestant(problem: Problem, run: str) -> Contestant:
    """The PyTorch implementation captured once as a CUDA graph: nothing of Python is left at a call. Raises Absent."""
    _require_gpu(problem)
    if run == ADAM:
        raise Absent("the optimiser is left out of the graph")
    leaves, call = peers_torch.bind(problem)
    cotangents = list(problem.cotangents.values())

    def once() -> Tensors:
        if run == FORWARD:
            with torch.no_grad():
                return call()
        outputs = call()
        torch.autograd.backward([outputs[key] for key in problem.cotangents], cotangents)
        return outputs

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):  # libraries choose and allocate before the capture
            once()
    torch.cuda.current_stream().wait_stream(side)
    for leaf in leaves.values():
        leaf.grad = None
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = once()

    def step() -> None:
        graph.replay()
        torch.cuda.synchronize()

    def results() -> Tensors:
        step()
        found = dict(outputs)
        if run != FORWARD:
            found |= {f"gradient of {key}": gradient_of(key, leaf) for key, leaf in leaves.items()}
        return {key: value.detach().cpu().clone() for key, value in found.items()}

    return Contestant("cuda-graph", step, results)
