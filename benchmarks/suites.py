"""The suites: which problems each one measures."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence

from benchmarks import cases, rssm, vrnn
from benchmarks.measure import MS, Options, lazy, line, measure_all, measure_threads, why_not
from benchmarks.memory import MakeProblem, first_call_seconds, in_fresh_process, peak_bytes, saved_bytes
from benchmarks.peers import CELL, OURS, OURS_COMPILED, OURS_FLOAT32, bind
from benchmarks.problem import ADAM, BACKWARD, FORWARD, SIZES, Problem, Size
from benchmarks.results import Row

MB = 1e-6
TINY = Size("", T=3, B=2, X=3, D=4, Z=3, W=2)


def ops(options: Options) -> Iterator[list[Row]]:
    """Each op; gru is the recurrence with its input projection (X = H), what torch.nn.GRU does."""
    recurrences = [
        lazy(make, 64, batch, hidden)
        for make in (cases.gru_sequence, cases.gru_packed, cases.gru)
        for batch in options.batches
        for hidden in options.hidden
    ]
    yield from measure_all("ops", recurrences, options.passes, options)
    sizes = [SIZES[name] for name in options.sizes]
    chains = [lazy(cases.posterior_sequence, size.T, size.B, size.D, size.Z) for size in sizes]
    yield from measure_all("ops", chains, options.passes, options)
    interleaved = [lazy(cases.interleaved_sequence, s.T, s.B, s.D, s.D, s.D, s.Z) for s in sizes]
    yield from measure_all("ops", interleaved, options.passes, options)
    gaussians = [
        lazy(make, size.T, size.B, size.Z) for make in (cases.gaussian_rsample_kl, cases.gaussian_kl) for size in sizes
    ]
    yield from measure_all("ops", gaussians, options.passes, options, 0.3)
    yield from measure_all("ops", linear_layers(sizes), options.passes, options, 0.3)
    likelihoods = [lazy(cases.bernoulli_log_prob, size.T, size.B, size.X) for size in sizes]
    yield from measure_all("ops", likelihoods, options.passes, options, 0.3)


def linear_layers(sizes: Sequence[Size]) -> list[tuple[MakeProblem, str, str]]:
    """Those of the model: what emits a frame, the posterior of the noise, the gates of the backward recurrence."""
    return [
        *(lazy(cases.mlp, size.T, size.B, size.Z, size.D, size.X) for size in sizes),
        *(lazy(cases.gaussian_mlp, size.T, size.B, size.X, size.D, size.W) for size in sizes),
        *(lazy(cases.split_linear, size.T, size.B, size.D, size.X) for size in sizes),
    ]


def layer(options: Options) -> Iterator[list[Row]]:
    """VSSNLayer."""
    problems = [lazy(cases.layer, SIZES[name]) for name in options.sizes]
    yield from measure_all("layer", problems, options.passes, options, 2)


def train_step(options: Options) -> Iterator[list[Row]]:
    """The whole model: loss and gradients, then with Adam. With the RSSM's, TorchRL's rollout."""
    problems = [lazy(cases.train_step, SIZES[name]) for name in options.sizes]
    runs = (BACKWARD,) if options.quick else (BACKWARD, ADAM)
    yield from measure_all("train_step", problems, runs, options, 4)
    variational = [lazy(vrnn.vrnn, vrnn.VRNN_SIZES[name]) for name in options.sizes if name in vrnn.VRNN_SIZES]
    yield from measure_all("train_step", variational, runs, options, 4)
    world_models = [lazy(rssm.rssm, rssm.RSSM_SIZES[name]) for name in options.sizes if name in rssm.RSSM_SIZES]
    peers = (*options.peers, *(() if "torchrl" in options.peers or not options.peers else ("torchrl",)))
    yield from measure_all("train_step", world_models, runs, dataclasses.replace(options, peers=peers), 4)


def bfloat16(options: Options) -> Iterator[list[Row]]:
    """The GRU on tensors of bfloat16, and the whole model under autocast, beside this library in float32."""
    peers = tuple(name for name in options.peers if name == "torch")
    own = dataclasses.replace(options, peers=(OURS_FLOAT32, *peers))
    grus = [_halved(cases.gru, 64, 32, hidden) for hidden in options.hidden]
    models = [_halved(cases.train_step, SIZES[name]) for name in options.sizes]
    found = (
        measure_all("bfloat16", grus, options.passes, own),
        measure_all("bfloat16", models, (BACKWARD,), own, 4),
    )
    for rows in itertools.chain(*found):
        yield [dataclasses.replace(row, limit=None) for row in rows]  # which is one of products of float32


def _halved(make: Callable[..., Problem], *sizes: object) -> tuple[MakeProblem, str, str]:
    """`lazy`, in bfloat16."""
    whole, family, case = lazy(make, *sizes)
    return lambda: whole().in_bfloat16(), family, f"{case} in bfloat16"


def scaling(options: Options) -> Iterator[list[Row]]:
    """Over T at a small H, over B, and over threads."""
    over_t = [lazy(cases.gru, steps, 16, 64) for steps in options.long]
    yield from measure_all("scaling T", over_t, options.passes, options)
    small = SIZES["S"]
    own = dataclasses.replace(options, peers=())
    models = [lazy(cases.train_step, small._replace(name="", T=steps)) for steps in options.long]
    yield from measure_all("scaling T", models, (BACKWARD,), own)
    over_b = [lazy(cases.gru, 64, batch, options.hidden[-1] // 2) for batch in (1, 4, 16, 64, 256)]
    yield from measure_all("scaling B", over_b[: 2 if options.quick else None], (BACKWARD,), options)
    if options.device == "cpu" and options.threads > 1:
        threaded = [lazy(cases.gru_sequence, 64, 32, hidden) for hidden in options.hidden]
        yield from measure_all("scaling threads", threaded, (BACKWARD,), options, how=measure_threads)
        models = [lazy(cases.train_step, SIZES[name]) for name in options.sizes]
        yield from measure_all("scaling threads", models, (BACKWARD,), options, 3, how=measure_threads)


def memory(options: Options) -> Iterator[list[Row]]:
    """Bytes that autograd saves between forward and backward, and the peak of both passes."""
    problems = [lazy(cases.train_step, SIZES[name]) for name in options.sizes]
    problems += [lazy(cases.gru, 64, 32, hidden) for hidden in options.hidden]
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
    """Calls with next to no work in them, where the cost of a call is left; and one step of a stream."""
    problems = [
        lazy(cases.gru, 1, 1, 4),
        lazy(cases.gru_sequence, 1, 1, 4),
        lazy(cases.posterior_sequence, 1, 1, 4, 3),
        lazy(cases.gaussian_rsample_kl, 1, 1, 4),
        lazy(cases.gaussian_kl, 1, 1, 4),
        *linear_layers([TINY._replace(T=1, B=1)]),
        lazy(cases.bernoulli_log_prob, 1, 1, 4),
        lazy(cases.layer, TINY),
        lazy(cases.train_step, TINY),
    ]
    for rows in measure_all("dispatch", problems, options.passes, options, 0.2):
        yield [dataclasses.replace(row, limit=None, steps=None, flop=None, bytes=None) for row in rows]
    # One step at widths of use: beside the call it costs the reading of the weights, so the limit is not the call's.
    peers = ("torch", CELL) if "torch" in options.peers else ()
    steps = [lazy(cases.gru_step, hidden) for hidden in options.hidden]
    streaming = dataclasses.replace(options, peers=peers)
    for rows in measure_all("dispatch", steps, (FORWARD,), streaming, 0.2):
        yield [dataclasses.replace(row, limit=None) for row in rows]


def compile_time(options: Options) -> Iterator[list[Row]]:
    """The first call in a fresh process: what is built or compiled for it. torch.compile unrolls the loop over t."""
    small = SIZES["S"]
    steps = [small.T] if options.quick else [5, 10, 20, small.T]
    for count in steps:
        make, family, case = lazy(cases.train_step, small._replace(name="", T=count))
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
    suite.__name__: suite for suite in (ops, layer, train_step, bfloat16, scaling, memory, dispatch, compile_time)
}
