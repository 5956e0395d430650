"""python -m benchmarks.gru_grid: vssn.GRU against torch.nn.GRU over a grid of T, B, H, passes and threads.

Both run in turn in one process, with the same weights; a row of the CSV is written as soon as its cell is measured.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import math
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

import vssn
import vssn_kernels
from benchmarks.agreement import disagreement
from benchmarks.contestant import Contestant, Tensors, gradient_of
from benchmarks.gru_grid_plot import plot
from benchmarks.gru_grid_rows import (
    BATCHES,
    CSV,
    HIDDEN,
    PASSES,
    STEPS,
    THREADS,
    Cell,
    Row,
    append,
    cells,
    of_this_library,
    read,
    text,
    told,
)
from benchmarks.limits import thread_count
from benchmarks.measure import MS, why_not
from benchmarks.peers import OURS
from benchmarks.problem import FORWARD
from benchmarks.results import busy, commit, load, now
from benchmarks.timing import LEAST_PAIRS, interleave, median_ratio, ratio_interval
from vssn.utils.machine import processor_name
from vssn_kernels.backend.table import choose

MOST_PAIRS = 101
LOOK_EVERY = 10  # pairs: a look after each would stop at an interval that is short by chance
TIGHT, TIGHT_SHARE = 0.03, 0.1  # of an interval, in logarithms: its width, or its width over the distance from 1
MEMORY_SHARE = 0.75  # of the machine's


# ---- One cell -------------------------------------------------------------------------------------------------------


def contestants(cell: Cell) -> tuple[Contestant, Contestant]:
    """vssn.GRU and nn.GRU with the same weights and x, which asks for no gradient: a first layer."""
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        theirs = nn.GRU(cell.H, cell.H)
        x = torch.randn(cell.T, cell.B, cell.H)
        cotangent = None if cell.run == FORWARD else torch.randn(cell.T, cell.B, cell.H)
    ours = vssn.GRU(cell.H, cell.H)
    ours.load_state_dict(theirs.state_dict())
    return contestant(OURS, ours, x, cotangent), contestant("torch", theirs, x, cotangent)


def contestant(name: str, module: nn.Module, x: Tensor, cotangent: Tensor | None) -> Contestant:
    """One pass of a module from the zero state; without a cotangent, of the output alone, forward only."""
    parameters = dict(module.named_parameters())

    def once() -> tuple[Tensor, Tensor]:
        if cotangent is None:
            return module(x)
        for parameter in parameters.values():
            parameter.grad = None
        output, h_n = module(x)
        output.backward(cotangent)
        return output, h_n

    def results() -> Tensors:
        output, h_n = once()
        found = {"output": output, "h_n": h_n}
        if cotangent is not None:
            found |= {f"gradient of {key}": gradient_of(key, parameter) for key, parameter in parameters.items()}
        return {key: value.detach().clone() for key, value in found.items()}

    return Contestant(name, once, results)


def tight(samples: Sequence[Sequence[float]]) -> bool:
    """Whether more pairs would tell little more. Looks at few numbers of pairs only, whichever side of 1 they lie."""
    ours, theirs = samples
    if (len(ours) - LEAST_PAIRS) % LOOK_EVERY:
        return False
    low, high = (math.log(end) for end in ratio_interval(theirs, ours))
    return high - low <= max(TIGHT, TIGHT_SHARE * abs(math.log(median_ratio(theirs, ours))))


def measure(cell: Cell, seconds: float, where: Row) -> Row:
    """A cell's row; a pair is a sample of each, one after the other."""
    row = dataclasses.replace(where, date=now(), **cell._asdict())
    with thread_count(cell.threads), torch.set_grad_enabled(cell.run != FORWARD):
        ours, theirs = contestants(cell)
        _, wrong = disagreement(theirs.results(), ours.results())
        if wrong:
            return dataclasses.replace(row, status=wrong)
        until = time.monotonic() + seconds
        samples = interleave(
            (ours.step, theirs.step),
            seconds,
            LEAST_PAIRS,
            max_rounds=MOST_PAIRS,
            enough=lambda found: time.monotonic() > until or tight(found),
        )
    low, high = ratio_interval(samples[1], samples[0])
    return dataclasses.replace(
        row,
        status="ok",
        vssn_ms=MS * statistics.median(samples[0]),
        torch_ms=MS * statistics.median(samples[1]),
        ratio=median_ratio(samples[1], samples[0]),
        low=low,
        high=high,
        pairs=len(samples[0]),
    )


# ---- Many -----------------------------------------------------------------------------------------------------------


def why_left_out(cell: Cell, cores: int, memory: float) -> str:
    """A line where the machine cannot take the cell, else ""."""
    if cell.threads > cores:
        return f"left out: {cell.threads} threads on {cores} cores"
    if cell.bytes() > memory:
        return f"left out: about {cell.bytes() / 1e9:.1f} GB, of {memory / 1e9:.1f} that it may take"
    return ""


def to_do(chosen: Iterable[Cell], done: Iterable[Row], cores: int, memory: float) -> Iterator[tuple[Cell, str]]:
    """The cells still without a row that says "ok", or the reason why it does not; each with that reason."""
    states = {(row.cell, row.status) for row in done}
    for cell in chosen:
        reason = why_left_out(cell, cores, memory)
        if (cell, "ok") not in states and (cell, reason) not in states:
            yield cell, reason


def measure_all(
    work: Iterable[tuple[Cell, str]], seconds: float, where: Row, until: float, write: Callable[[Row], None]
) -> int:
    """Writes row by row; no cell is begun after `until`. Returns how many cells are left."""
    left = 0
    for cell, reason in work:
        if time.monotonic() >= until:
            left += 1
            continue
        if reason:
            row = dataclasses.replace(where, date=now(), status=reason, **cell._asdict())
        else:
            try:
                row = measure(cell, seconds, where)
            except Exception as failure:  # one cell's failure is a result; the others go on
                row = dataclasses.replace(where, date=now(), status=why_not(failure), **cell._asdict())
        write(row)
    return left


def here() -> Row:
    """A row without a cell: this machine, now. Raises ValueError where the kernels of the CPU would not run."""
    if (backend := choose("gru_sequence", None, torch.device("cpu"), torch.float32)) != "cpu":
        status = vssn_kernels.backends()["cpu"]
        why = "use_backend or VSSN_BACKEND names it" if status == "available" else status
        raise ValueError(f"vssn.GRU would run on the backend {backend!r}, not 'cpu': {why}")
    from vssn_kernels import _cpu

    return Row(
        date=now(),
        commit=commit(),
        processor=processor_name(),
        isa=_cpu.isa(),
        cores=len(os.sched_getaffinity(0)),
        load=load(),
        torch=torch.__version__,
        T=0,
        B=0,
        H=0,
        run="",
        threads=0,
        status="",
    )


def parser() -> argparse.ArgumentParser:
    """The command line."""
    make = argparse.ArgumentParser(prog="python -m benchmarks.gru_grid", description=__doc__)
    add = make.add_argument
    add("--T", nargs="+", type=int, default=STEPS, metavar="T", help="steps (%(default)s)")
    add("--B", nargs="+", type=int, default=BATCHES, metavar="B", help="batch (%(default)s)")
    add("--H", nargs="+", type=int, default=HIDDEN, metavar="H", help="width of state and input (%(default)s)")
    add("--cells", nargs="+", type=sizes, metavar="T,B,H", help="these alone, whatever --T, --B and --H say")
    add("--pass", nargs="+", choices=PASSES, default=PASSES, dest="runs", help="(both)")
    add("--threads", nargs="+", type=int, default=THREADS, metavar="N", help="of PyTorch (%(default)s)")
    add("--seconds", type=float, default=5.0, help=f"of timing for a cell; {LEAST_PAIRS} pairs at least (%(default)s)")
    add("--minutes", type=float, default=math.inf, help="for everything: no cell is begun after that")
    add("--memory", type=float, metavar="GB", help=f"a cell may take ({100 * MEMORY_SHARE:.0f}%% of the machine's)")
    add("--resume", action="store_true", help="leave out what the CSV has of this machine, PyTorch and library")
    add("--csv", type=Path, default=CSV, metavar="FILE", help="append to it (benchmarks/results/gru_grid.csv)")
    add("--plot", action="store_true", help="draw the CSV as a PNG beside it")
    add("--show", action="store_true", help="measure nothing: the summary of the CSV, and with --plot the picture")
    return make


def sizes(text: str) -> tuple[int, int, int]:
    """ "64,32,256" """
    steps, batch, hidden = (int(part) for part in text.split(","))
    return steps, batch, hidden


def run(arguments: argparse.Namespace) -> list[Row]:
    """Measures what the command line names. Returns the rows. Raises ValueError."""
    chosen_sizes = arguments.cells or list(itertools.product(arguments.T, arguments.B, arguments.H))
    memory = math.inf if arguments.memory is None else 1e9 * arguments.memory
    numbers = (*itertools.chain(*chosen_sizes), *arguments.threads, arguments.seconds, arguments.minutes, memory)
    if not all(number > 0 for number in numbers):  # nor NaN
        raise ValueError("sizes, --threads, --seconds, --minutes and --memory must be above 0")
    until = time.monotonic() + 60 * arguments.minutes
    if arguments.memory is None:
        memory = MEMORY_SHARE * os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    where = here()
    before = read(arguments.csv) if arguments.csv.exists() and arguments.csv.stat().st_size else []
    done = of_this_library(before, where) if arguments.resume else []
    chosen = cells(chosen_sizes, arguments.runs, arguments.threads)
    work = list(to_do(chosen, done, where.cores, memory))
    print(
        f"{where.processor}, {where.isa}, {where.cores} cores, torch {where.torch}, "
        f"commit {where.commit or 'unknown'}: {len(work)} cells to do of {len(chosen)}"
    )
    if warning := busy(where.load, where.cores):
        print(warning, file=sys.stderr)
    rows: list[Row] = []

    def write(row: Row) -> None:
        append(arguments.csv, [row])
        rows.append(row)
        print(told(row), flush=True)

    if left := measure_all(work, arguments.seconds, where, until, write):
        print(f"{left} cells are left for want of time: go on with --resume")
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    """Measures, prints the summary of the whole CSV, draws it."""
    arguments = parser().parse_args(argv)
    try:
        rows = [] if arguments.show else run(arguments)
        if not arguments.csv.exists():
            raise ValueError(f"there is no {arguments.csv}: nothing has been measured")
        print(f"\n{text(read(arguments.csv))}")
        if arguments.plot:
            print(plot(read(arguments.csv), arguments.csv.with_suffix(".png")))
    except ValueError as error:
        print(f"benchmarks.gru_grid: {error}", file=sys.stderr)
        return 2
    wrong = [row for row in rows if row.status != "ok" and not row.status.startswith("left out")]
    for row in wrong:
        print(told(row), file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
