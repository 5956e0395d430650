"""The limits of the machine, measured: the best rate of a float32 matrix product, and the bandwidth of a copy."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch

from benchmarks.problem import FLOAT32_BYTES, SIZES

SQUARES = (512, 1024, 1536, 2048, 4096)
COPY_BYTES = 256 << 20
BUDGET_S = 0.4  # for each shape, three calls at least
QUICK_BUDGET_S = 0.03


class Rate(NamedTuple):
    flops: float  # a second
    shape: tuple[int, int, int]  # rows, in, out


@contextmanager
def thread_count(threads: int) -> Iterator[None]:
    """PyTorch computes with so many threads inside the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


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


class Limits:
    """The rates of a device for each thread count, measured when first asked for; a product's can only rise."""

    def __init__(self, device: str, quick: bool = False) -> None:
        self.device, self.quick = device, quick
        self._products: dict[int, Rate] = {}
        self._copies: dict[int, float] = {}

    def gemm(self, threads: int) -> Rate:
        """The fastest float32 product so far among squares and the shapes of the training step."""
        if threads not in self._products:
            squares = [(n, n, n) for n in SQUARES if not (self.quick and n > 1024)]
            rates = [self._measure(shape, threads) for shape in (*squares, *step_shapes())]
            self._products[threads] = max(rates)
        return self._products[threads]

    def refresh(self, threads: int) -> None:
        """Measures the fastest product again: the machine's rate drifts, and the limit is its best."""
        self._products[threads] = max(self.gemm(threads), self._measure(self.gemm(threads).shape, threads))

    def copy(self, threads: int) -> float:
        """Bytes/s, read and written, of copying a tensor larger than the caches."""
        if threads not in self._copies:
            numbers = COPY_BYTES // FLOAT32_BYTES // (8 if self.quick else 1)
            with thread_count(threads):
                source = torch.ones(numbers, device=self.device)
                target = torch.zeros(numbers, device=self.device)
                seconds = _best_seconds(lambda: target.copy_(source), self.device, self._budget)
            self._copies[threads] = 2 * FLOAT32_BYTES * numbers / seconds
        return self._copies[threads]

    @property
    def _budget(self) -> float:
        return QUICK_BUDGET_S if self.quick else BUDGET_S

    def _measure(self, shape: tuple[int, int, int], threads: int) -> Rate:
        rows, inner, columns = shape
        with thread_count(threads):
            a, b = torch.randn(rows, inner, device=self.device), torch.randn(columns, inner, device=self.device)
            out = torch.empty(rows, columns, device=self.device)
            seconds = _best_seconds(lambda: torch.mm(a, b.T, out=out), self.device, self._budget)
        return Rate(2 * rows * inner * columns / seconds, shape)
