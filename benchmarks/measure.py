"""How one case becomes rows: peers that agree with this library are timed in turns with it."""

from __future__ import annotations

import functools
import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch

from benchmarks.agreement import disagreement
from benchmarks.cases import case_name
from benchmarks.contestant import Absent, Contestant
from benchmarks.limits import Limits
from benchmarks.memory import MakeProblem
from benchmarks.peers import OURS, UNROLLED, make_contestant
from benchmarks.problem import BACKWARD, FORWARD, Problem
from benchmarks.results import Row
from benchmarks.timing import interleave, median_ratio, quantile

MS = 1e3


@dataclass(frozen=True)
class Options:
    """What the command line chose."""

    device: str = "cpu"
    threads: int = 1
    peers: tuple[str, ...] = ("torch", "jax")
    sizes: tuple[str, ...] = ("S", "M", "L")
    hidden: tuple[int, ...] = (64, 256, 512, 1024)
    batches: tuple[int, ...] = (32, 1)
    long: tuple[int, ...] = (1000, 2000, 5000, 10000)
    seconds: float = 3.0  # of timing for a case of an op; a training step takes four times as much
    min_rounds: int = 5
    only: str = ""  # cases whose line holds this text
    compile_unrolled: bool = False  # torch.compile of loops over t too
    quick: bool = False

    @functools.cached_property
    def limits(self) -> Limits:
        """One measurement of the machine for the whole run."""
        return Limits(self.device, self.quick)

    @property
    def passes(self) -> tuple[str, ...]:
        """The passes of an op."""
        return (BACKWARD,) if self.quick else (FORWARD, BACKWARD)

    def takes(self, problem_line: str) -> bool:
        return self.only in problem_line


def line(suite: str, family: str, case: str, run: str) -> str:
    """How a case is called in print, and what --only looks in."""
    return f"{suite} | {family} | {case} | {run}"


def limit_seconds(problem: Problem, run: str, options: Options, threads: int) -> float | None:
    """The least time that the machine allows: matrix products at its best rate, or traffic at a copy's bandwidth."""
    if problem.matrix_entries:
        return problem.flop(run) / options.limits.gemm(threads).flops
    if problem.bytes_moved:
        return problem.bytes_moved[run] / options.limits.copy(threads)
    return None


def why_not(failure: Exception) -> str:
    """One line for a peer that is absent or has failed."""
    if isinstance(failure, Absent):
        return f"absent: {failure}"
    return f"failed: {type(failure).__name__}: {failure}".partition("\n")[0]


def admit(
    problem: Problem, run: str, peers: Sequence[str], options: Options
) -> tuple[list[tuple[Contestant, float]], dict[str, str]]:
    """Contestants that agree with this library (the first), each with its largest error; and why others are not in."""
    ours = make_contestant(OURS, problem, run)
    expected = ours.results()
    admitted, refused = [(ours, 0.0)], {}
    for name in peers:
        if name == "torch.compile" and problem.family in UNROLLED and not options.compile_unrolled:
            refused[name] = "absent: it unrolls the loop over t, minutes to compile; ask with --compile-unrolled"
            continue
        try:
            contestant = make_contestant(name, problem, run)
            error, wrong = disagreement(contestant.results(), expected, problem.bfloat16)
        except Exception as failure:  # a peer's failure is a result; the others go on
            refused[name] = why_not(failure)
        else:
            if wrong:
                refused[name] = wrong
            else:
                admitted.append((contestant, error))
    return admitted, refused


def measure(suite: str, problem: Problem, run: str, options: Options, weight: float = 1.0) -> list[Row]:
    """A row for this library and one for each peer; those that agree with it are timed in turns."""
    problem = problem.to(options.device)
    admitted, refused = admit(problem, run, options.peers, options)
    samples = interleave([c.step for c, _ in admitted], weight * options.seconds, options.min_rounds)
    if problem.matrix_entries:
        options.limits.refresh(options.threads)
    limit = limit_seconds(problem, run, options, options.threads)
    rows = [
        timed_row(suite, problem, run, contestant.name, options.threads, found, samples[0], limit, error)
        for (contestant, error), found in zip(admitted, samples, strict=True)
    ]
    for name, reason in refused.items():
        rows.append(Row(suite, problem.family, problem.case, run, name, options.threads, reason, steps=problem.steps))
    return rows


def timed_row(
    suite: str,
    problem: Problem,
    run: str,
    contestant: str,
    threads: int,
    samples: Sequence[float],
    ours: Sequence[float],
    limit: float | None,
    error: float | None,
) -> Row:
    return Row(
        suite,
        problem.family,
        problem.case,
        run,
        contestant,
        threads,
        "ok",
        median=MS * statistics.median(samples),
        q20=MS * quantile(samples, 0.2),
        q80=MS * quantile(samples, 0.8),
        samples=len(samples),
        steps=problem.steps,
        limit=None if limit is None else MS * limit,
        ratio=median_ratio(samples, ours),
        error=error,
        flop=problem.flop(run) or None,
        bytes=problem.bytes_moved.get(run),
    )


def measure_threads(suite: str, problem: Problem, run: str, options: Options, weight: float = 1.0) -> list[Row]:
    """This library and torch with one thread and with all, in turns; the ratio is to this library with all."""
    counts = sorted({1, options.threads}, reverse=True)
    entrants = [(name, count) for name in (OURS, *(n for n in options.peers if n == "torch")) for count in counts]
    admitted, refused = admit(problem, run, [name for name, _ in entrants if name != OURS][:1], options)
    contestants = {contestant.name: contestant for contestant, _ in admitted}
    entrants = [(name, count) for name, count in entrants if name in contestants]

    try:
        samples = interleave(
            [contestants[name].step for name, _ in entrants],
            weight * options.seconds,
            options.min_rounds,
            lambda turn: torch.set_num_threads(entrants[turn][1]),
        )
    finally:
        torch.set_num_threads(options.threads)
    rows = []
    for (name, count), found in zip(entrants, samples, strict=True):
        limit = limit_seconds(problem, run, options, count)
        rows.append(timed_row(suite, problem, run, name, count, found, samples[0], limit, None))
    for name, reason in refused.items():
        rows.append(Row(suite, problem.family, problem.case, run, name, options.threads, reason))
    return rows


def measure_all(
    suite: str,
    problems: Iterable[tuple[MakeProblem, str, str]],
    runs: Sequence[str],
    options: Options,
    weight: float = 1.0,
    how: Callable[..., list[Row]] = measure,
) -> Iterator[list[Row]]:
    """Every (make, family, case) in every pass, those that --only leaves."""
    for make, family, case in problems:
        for run in runs:
            if options.takes(line(suite, family, case, run)):
                yield how(suite, make(), run, options, weight)


def lazy(make: Callable[..., Problem], *sizes: object) -> tuple[MakeProblem, str, str]:
    """The problem to be, with its family and its case by name: inputs of a case left out are never drawn."""
    return functools.partial(make, *sizes), make.__name__, case_name(make.__name__, *sizes)
