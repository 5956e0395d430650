"""Memory of one forward and backward pass: what autograd saves in between, and the peak of the process."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from benchmarks.contestant import Bound
from benchmarks.peers import make_contestant
from benchmarks.problem import BACKWARD, FORWARD, Problem

Result = TypeVar("Result")
MakeProblem = Callable[[], Problem]


def saved_bytes(bound: Bound) -> int:
    """Bytes of all that one forward pass saves for backward, weights and inputs too, each storage once."""
    storages: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage  # kept: an address that is freed could come again
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        outputs = bound.call()
    found = sum(storage.nbytes() for storage in storages.values())
    del outputs
    return found


def _resident(name: str) -> int:
    """VmRSS (now) or VmHWM (the peak) of this process, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(name))


def peak_bytes(name: str, make: MakeProblem, make_tiny: MakeProblem, threads: int, device: str) -> int:
    """Bytes that a forward and backward pass takes beyond its weights and inputs, at the peak."""
    torch.set_num_threads(threads)
    make_contestant(name, make_tiny().to(device), BACKWARD).step()  # libraries take their buffers at the first call
    contestant = make_contestant(name, make().to(device), BACKWARD)
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        contestant.step()
        return torch.cuda.max_memory_allocated() - before
    before = _resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    contestant.step()
    return max(_resident("VmHWM") - before, 0)


def first_call_seconds(name: str, make: MakeProblem, run: str, threads: int, device: str) -> float:
    """Seconds of the first call, with what a peer builds or compiles for it; what it imports is not counted."""
    torch.set_num_threads(threads)
    problem = make().to(device)
    if name == "jax":
        make_contestant(name, make().to(device), FORWARD)
    begin = time.perf_counter()
    make_contestant(name, problem, run).results()
    return time.perf_counter() - begin


def in_fresh_process(function: Callable[..., Result], *arguments: object) -> Result:
    """The result of the function in a process of its own: nothing cached, nothing allocated before."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()
