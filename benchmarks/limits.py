"""The limits of the machine, measured: the best rate of a float32 matrix product, and the bandwidth of a copy."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable

import torch

from benchmarks.cases import FLOAT32_BYTES, SIZES

SQUARES = (512, 1024, 1536, 2048, 4096)
COPY_BYTES = 256 << 20
BUDGET_S = 0.4  # for each shape, three calls at least
QUICK_BUDGET_S = 0.03


def _best_seconds(call: Callable[[], object], device: str, budget: float) -> float:
    call()
    best, spent, calls = float("inf"), 0.0, 0
    while spent < budget or calls < 3:
        if device == "cuda":
            torch.cuda.synchronize()
        begin = time.perf_counter()
        call()
        if device == "cuda":
            torch.cuda.synchronize()
        duration = time.perf_counter() - begin
        best, spent, calls = min(best, duration), spent + duration, calls + 1
    return best


def step_shapes() -> list[tuple[int, int, int]]:
    """(rows, in, out) of the largest products of a training step: the input projections of each size."""
    return [(size.T * size.B, size.D + size.X, 3 * size.D) for size in SIZES.values() if size.name != "XL"]


@functools.cache
def gemm_rate(device: str, threads: int, quick: bool = False) -> tuple[float, str]:
    """(FLOP/s, shape) of the fastest float32 product among squares and the shapes of the training step."""
    squares = [(n, n, n) for n in SQUARES if not (quick and n > 1024)]
    best = (0.0, "")
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for rows, inner, columns in [*squares, *step_shapes()]:
            a, b = torch.randn(rows, inner, device=device), torch.randn(columns, inner, device=device)
            out = torch.empty(rows, columns, device=device)

            def product(a: torch.Tensor = a, b: torch.Tensor = b, out: torch.Tensor = out) -> None:
                torch.mm(a, b.T, out=out)

            seconds = _best_seconds(product, device, QUICK_BUDGET_S if quick else BUDGET_S)
            best = max(best, (2 * rows * inner * columns / seconds, f"{rows} x {inner} x {columns}"))
    finally:
        torch.set_num_threads(before)
    return best


@functools.cache
def copy_bandwidth(device: str, threads: int, quick: bool = False) -> float:
    """Bytes/s, read and written, of copying a tensor larger than the caches."""
    numbers = COPY_BYTES // FLOAT32_BYTES // (8 if quick else 1)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        source, target = torch.ones(numbers, device=device), torch.zeros(numbers, device=device)
        seconds = _best_seconds(lambda: target.copy_(source), device, QUICK_BUDGET_S if quick else BUDGET_S)
    finally:
        torch.set_num_threads(before)
    return 2 * FLOAT32_BYTES * numbers / seconds
