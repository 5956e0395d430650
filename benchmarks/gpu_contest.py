"""Contestants of `make gpu` in turns: calls captured as CUDA graphs and timed by events, so that the host's work at a
launch bounds none of them; those that are to be timed as they are launched say so."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.agreement import relative_error
from benchmarks.gpu_problems import NOT_HERE
from benchmarks.timing import median_ratio, quantile

Outputs = tuple[Tensor, ...]
Call = Callable[[], Outputs]

WARM = 2  # calls before the one whose results are compared: with an optimiser each call has others
ROUNDS = 7
SAMPLE_S = 0.005  # a sample is as many calls as take this long
MOST_CALLS = 50
LONG_S = 0.1  # a call that takes longer is sampled fewer times


class Contestant(NamedTuple):
    """What is timed."""

    call: Call
    captured: bool = True  # as a CUDA graph; else as Python launches it


class Result(NamedTuple):
    """One contestant in one case."""

    case: str
    run: str  # forward, or forward and backward, or the whole step of training
    contestant: str
    status: str  # "ok", "failed: why" or why it is not there
    timing: str = ""  # "graph": replays; "launches": calls from Python
    us: float | None = None  # a step of the recurrence; of other ops, the call
    q20: float | None = None
    q80: float | None = None
    ratio: float | None = None  # to the first contestant of the case that ran
    error: float | None = None  # relative, from the first contestant's results

    def line(self) -> str:
        """For a reader who watches."""
        found = self.status if self.us is None else f"{self.us:.4g} us ({self.timing}), error {self.error or 0:.1e}"
        return f"{self.case}, {self.run}, {self.contestant}: {found}"


class _Ready(NamedTuple):
    name: str
    timing: str
    call: Callable[[], object]
    error: float


def contest(
    case: str, run: str, contestants: dict[str, Contestant | str], divide_by: int, device: str = "cuda"
) -> Iterator[Result]:
    """All contestants of a case and pass, in turns; a text in place of one says why it is not there."""
    ready: list[_Ready] = []
    first: Outputs | None = None
    for name, contestant in contestants.items():
        if isinstance(contestant, str):
            yield Result(case, run, name, contestant)
            continue
        try:
            call, outputs, timing = prepared(contestant, device)
            first = outputs if first is None else first
            ready.append(_Ready(name, timing, call, largest_error(outputs, first)))
        except Exception as error:  # a peer's compiler may raise anything; the others are to be timed
            why = str(error).partition("\n")[0]
            here = not any(text in why for text in NOT_HERE)
            yield Result(case, run, name, f"failed: {type(error).__name__}: {why}" if here else f"left out: {why}")
    samples = in_turns([one.call for one in ready], device)
    scale = 1e6 / divide_by
    for one, found in zip(ready, samples, strict=True):
        low, middle, high = (scale * quantile(found, q) for q in (0.2, 0.5, 0.8))
        ratio = median_ratio(found, samples[0])
        yield Result(case, run, one.name, "ok", one.timing, middle, low, high, ratio, one.error)


def prepared(contestant: Contestant, device: str) -> tuple[Callable[[], object], Outputs, str]:
    """What to call in a sample, the results of one call, and how it is timed."""
    call = contestant.call
    if not contestant.captured or device == "cpu":
        for _ in range(WARM):
            call()
        return call, tuple(out.detach().clone() for out in call()), "launches"
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(WARM):  # libraries choose, compile and allocate before the capture
            call()
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = call()
    graph.replay()
    torch.cuda.synchronize()
    return graph.replay, tuple(out.detach().clone() for out in outputs), "graph"


def in_turns(calls: Sequence[Callable[[], object]], device: str) -> list[list[float]]:
    """Seconds a call, one number for each round, for each of `calls`."""
    measure = seconds_on_gpu if device == "cuda" else _on_cpu
    alone = [measure(call, 1) for call in calls]
    counts = [min(MOST_CALLS, max(1, round(SAMPLE_S / seconds))) for seconds in alone]
    rounds = 3 if sum(alone) > LONG_S else ROUNDS
    return [
        list(found)
        for found in zip(
            *([measure(call, count) for call, count in zip(calls, counts, strict=True)] for _ in range(rounds)),
            strict=True,
        )
    ]


def seconds_on_gpu(call: Callable[[], object], count: int) -> float:
    """Seconds a call by events around `count` of them."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(count):
        call()
    end.record()
    end.synchronize()
    return max(begin.elapsed_time(end) / 1e3 / count, 1e-9)


def _on_cpu(call: Callable[[], object], count: int) -> float:
    begin = time.perf_counter()
    for _ in range(count):
        call()
    return max((time.perf_counter() - begin) / count, 1e-9)


def largest_error(outputs: Outputs, expected: Outputs) -> float:
    """The largest norm(a - b) / norm(b)."""
    return max(relative_error(one, other) for one, other in zip(outputs, expected, strict=True))
