"""The suites: which problems each one measures, and how one case becomes rows."""

from __future__ import annotations

import dataclasses
import functools
import os
import statistics
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch

from benchmarks import cases
from benchmarks.cases import ADAM, BACKWARD, FORWARD, SIZES, Problem, Size
from benchmarks.limits import Limits
from benchmarks.memory import MakeProblem, first_call_seconds, in_fresh_process, peak_bytes, saved_bytes
from benchmarks.peers import OURS, OURS_COMPILED, UNROLLED, Absent, Contestant, bind, disagreement, make_contestant
from benchmarks.results import Row
from benchmarks.timing import interleave, median_ratio, quantile

MS = 1e3
MB = 1e-6
TINY = Size("", T=3, B=2, X=3, D=4, Z=3, W=2)


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


# ---- From a case to rows --------------------------------------------------------------------------------------------


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
            error, wrong = disagreement(contestant.results(), expected)
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


def _lazy(make: Callable[..., Problem], *arguments: object) -> tuple[MakeProblem, str, str]:
    """The problem to be, with its family and its case by name: inputs of a case left out are never drawn."""
    partial = functools.partial(make, *arguments)
    letters = {
        "gru": "T B H X",
        "gru_sequence": "T B H",
        "posterior_sequence": "T B M Z",
        "gaussian_rsample_kl": "T B Z",
        "gaussian_kl": "T B Z",
    }.get(make.__name__)
    if letters is None:
        return partial, make.__name__, str(arguments[0])
    values = (*arguments, arguments[-1])  # a GRU's X is its H unless it is given
    return partial, make.__name__, " ".join(f"{k}={v}" for k, v in zip(letters.split(), values, strict=False))


# ---- The suites -----------------------------------------------------------------------------------------------------


def ops(options: Options) -> Iterator[list[Row]]:
    """Each op; gru is the recurrence with its input projection (X = H), what torch.nn.GRU does."""
    recurrences = [
        _lazy(make, 64, batch, hidden)
        for make in (cases.gru_sequence, cases.gru)
        for batch in options.batches
        for hidden in options.hidden
    ]
    yield from measure_all("ops", recurrences, options.passes, options)
    sizes = [SIZES[name] for name in options.sizes]
    chains = [_lazy(cases.posterior_sequence, size.T, size.B, size.D, size.Z) for size in sizes]
    yield from measure_all("ops", chains, options.passes, options)
    gaussians = [
        _lazy(make, size.T, size.B, size.Z) for make in (cases.gaussian_rsample_kl, cases.gaussian_kl) for size in sizes
    ]
    yield from measure_all("ops", gaussians, options.passes, options, 0.3)


def layer(options: Options) -> Iterator[list[Row]]:
    """VSSNLayer."""
    problems = [_lazy(cases.layer, SIZES[name]) for name in options.sizes]
    yield from measure_all("layer", problems, options.passes, options, 2)


def train_step(options: Options) -> Iterator[list[Row]]:
    """The whole model: loss and gradients, then with Adam."""
    problems = [_lazy(cases.train_step, SIZES[name]) for name in options.sizes]
    yield from measure_all("train_step", problems, (BACKWARD,) if options.quick else (BACKWARD, ADAM), options, 4)


def scaling(options: Options) -> Iterator[list[Row]]:
    """Over T at a small H, over B, and over threads."""
    over_t = [_lazy(cases.gru, steps, 16, 64) for steps in options.long]
    yield from measure_all("scaling T", over_t, options.passes, options)
    small = SIZES["S"]
    own = dataclasses.replace(options, peers=())
    models = [_lazy(cases.train_step, small._replace(name="", T=steps)) for steps in options.long]
    yield from measure_all("scaling T", models, (BACKWARD,), own)
    over_b = [_lazy(cases.gru, 64, batch, options.hidden[-1] // 2) for batch in (1, 4, 16, 64, 256)]
    yield from measure_all("scaling B", over_b[: 2 if options.quick else None], (BACKWARD,), options)
    if options.device == "cpu" and options.threads > 1:
        threaded = [_lazy(cases.gru_sequence, 64, 32, hidden) for hidden in options.hidden]
        yield from measure_all("scaling threads", threaded, (BACKWARD,), options, how=measure_threads)
        models = [_lazy(cases.train_step, SIZES[name]) for name in options.sizes]
        yield from measure_all("scaling threads", models, (BACKWARD,), options, 3, how=measure_threads)


def memory(options: Options) -> Iterator[list[Row]]:
    """Bytes that autograd saves between forward and backward, and the peak of both passes."""
    problems = [_lazy(cases.train_step, SIZES[name]) for name in options.sizes]
    problems += [_lazy(cases.gru, 64, 32, hidden) for hidden in options.hidden]
    names = (OURS, *(name for name in options.peers if name == "torch"))
    for make, family, case in problems:
        if options.takes(line("memory", family, case, "saved for backward")):
            problem = make().to(options.device)
            found = {name: saved_bytes(bind(name, problem)) for name in names}
            yield memory_rows(problem, "saved for backward", found, options)
        if not options.quick and options.takes(line("memory", family, case, "peak")):
            tiny = functools.partial(cases.train_step, TINY)
            found = {
                name: in_fresh_process(peak_bytes, name, make, tiny, options.threads, options.device) for name in names
            }
            yield memory_rows(make(), "peak", found, options)


def memory_rows(problem: Problem, what: str, found: dict[str, int], options: Options) -> list[Row]:
    return [
        Row(
            "memory",
            problem.family,
            problem.case,
            what,
            name,
            options.threads,
            "ok",
            "MB",
            median=MB * count,
            steps=problem.steps,
            ratio=count / found[OURS] if found[OURS] else None,
        )
        for name, count in found.items()
    ]


def dispatch(options: Options) -> Iterator[list[Row]]:
    """Calls with next to no work in them: what is left is the cost of a call."""
    problems = [
        _lazy(cases.gru, 1, 1, 4),
        _lazy(cases.gru_sequence, 1, 1, 4),
        _lazy(cases.posterior_sequence, 1, 1, 4, 3),
        _lazy(cases.gaussian_rsample_kl, 1, 1, 4),
        _lazy(cases.gaussian_kl, 1, 1, 4),
        _lazy(cases.layer, TINY),
        _lazy(cases.train_step, TINY),
    ]
    for rows in measure_all("dispatch", problems, options.passes, options, 0.2):
        yield [dataclasses.replace(row, limit=None, steps=None, flop=None, bytes=None) for row in rows]


def compile_time(options: Options) -> Iterator[list[Row]]:
    """The first call in a fresh process: what is built or compiled for it. torch.compile unrolls the loop over t."""
    small = SIZES["S"]
    steps = [small.T] if options.quick else [5, 10, 20, small.T]
    for count in steps:
        make, family, case = _lazy(cases.train_step, small._replace(name="", T=count))
        if not options.takes(line("compile_time", family, case, "first call")):
            continue
        names = [OURS, *(name for name in options.peers if name in ("torch", "jax"))]
        if "torch.compile" in options.peers and count == small.T:
            names.append(OURS_COMPILED)
        if "torch.compile" in options.peers and (count < small.T or options.compile_unrolled):
            names.append("torch.compile")
        rows: list[Row] = []
        for name in names:
            arguments = (name, make, BACKWARD, options.threads, options.device)
            with tempfile.TemporaryDirectory() as cache:
                os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache
                try:
                    seconds = in_fresh_process(first_call_seconds, *arguments)
                except Exception as failure:  # a peer's failure is a result; the others go on
                    if name == OURS:
                        raise
                    rows.append(_first_call_row(family, case, name, options, why_not(failure)))
                    continue
                finally:
                    del os.environ["TORCHINDUCTOR_CACHE_DIR"]
            ours = rows[0].median if rows else MS * seconds
            rows.append(_first_call_row(family, case, name, options, "ok", MS * seconds, ours))
        yield rows


def _first_call_row(
    family: str,
    case: str,
    name: str,
    options: Options,
    status: str,
    median: float | None = None,
    ours: float | None = None,
) -> Row:
    ratio = median / ours if median and ours else None
    return Row(
        "compile_time", family, case, "first call", name, options.threads, status, median=median, samples=1, ratio=ratio
    )


SUITES: dict[str, Callable[[Options], Iterator[list[Row]]]] = {
    suite.__name__: suite for suite in (ops, layer, train_step, scaling, memory, dispatch, compile_time)
}
