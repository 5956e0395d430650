"""Who there is to measure, by name: this library and its peers."""

from __future__ import annotations

import os
from typing import Any

import torch

import vssn_kernels
from benchmarks import ours, peers_gpu, peers_torch, peers_torchrl, rssm, vrnn
from benchmarks.contestant import Absent, Bound, Contestant, torch_contestant
from benchmarks.problem import Problem

OURS, OURS_COMPILED = "vssn", "vssn+compile"
OURS_FLOAT32 = "vssn in float32"  # of a problem in bfloat16
CELL = "torch.cell"  # nn.GRUCell, of one step
ON_CPU = ("torch", "jax", "torch.compile")
ON_GPU = ("cuda-graph", "flashrnn", "torchrl", "haste")
# What torch.compile does not gain from: it leaves nn.GRU as it is, and unrolls a loop over t (minutes at T = 100).
NOT_COMPILED = ("gru", "gru_sequence", "gru_packed")
UNROLLED = ("posterior_sequence", "interleaved_sequence", "layer", "train_step", "vrnn", "rssm")
MODELS: dict[str, Any] = {"vrnn": vrnn, "rssm": rssm}  # families with a file of their own


def bind(name: str, problem: Problem) -> Bound:
    """A PyTorch implementation of the problem. Raises Absent."""
    if name == OURS:
        return _ours(problem)
    if name in vssn_kernels.backends():
        if (status := vssn_kernels.backends()[name]) != "available":
            raise Absent(status)
        return _ours(problem, name)
    if name == "torch":
        return _torch(problem)
    if name == "torchrl" and problem.family == "rssm":
        return peers_torchrl.bind(problem)
    if name == CELL:
        return peers_torch.bind_cell(problem)
    if name == "torch.compile":
        if problem.family in NOT_COMPILED:
            raise Absent("it leaves torch.nn.GRU as it is")
        return _compiled(_torch(problem))
    if name == OURS_COMPILED:
        return _compiled(_ours(problem))
    return peers_gpu.bind(name, problem)


def _ours(problem: Problem, backend: str | None = None) -> Bound:
    own = MODELS.get(problem.family)
    bound: Bound = ours.bind(problem, backend) if own is None else own.bind_ours(problem, backend)
    return bound


def _torch(problem: Problem) -> Bound:
    own = MODELS.get(problem.family)
    bound: Bound = peers_torch.bind(problem) if own is None else own.bind_torch(problem)
    return bound


def _compiled(bound: Bound) -> Bound:
    return Bound(bound.leaves, torch.compile(bound.call))


def make_contestant(name: str, problem: Problem, run: str) -> Contestant:
    """A peer bound to the problem. Raises Absent."""
    if name == OURS_FLOAT32:
        problem = problem.in_float32()
        return torch_contestant(name, ours.bind(problem), problem, run)
    if name == "cuda-graph":
        return peers_gpu.graph_contestant(problem, run)
    if name == "jax":
        return _jax_contestant(problem, run)
    return torch_contestant(name, bind(name, problem), problem, run)


def _jax_contestant(problem: Problem, run: str) -> Contestant:
    if (cores := len(os.sched_getaffinity(0))) != torch.get_num_threads() and problem.device == "cpu":
        raise Absent(f"JAX takes a thread for each of the {cores} cores, not {torch.get_num_threads()}")
    try:
        from benchmarks import peers_jax
    except ImportError as error:
        raise Absent(f"{error}; install it with: pip install jax") from error
    return peers_jax.contestant(problem, run)
