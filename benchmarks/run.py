"""python -m benchmarks.run: measures this library beside its peers and the machine's limits, and prints the rows."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import vssn_kernels
from benchmarks.measure import Options, line
from benchmarks.peers import ON_CPU, ON_GPU, OURS
from benchmarks.problem import SIZES
from benchmarks.results import RESULTS, Row, append_csv, busy, environment, load, write_json
from benchmarks.suites import SUITES
from vssn_kernels import keep_memory

QUICK = {
    "sizes": ("S",),
    "hidden": (64, 256),
    "batches": (32,),
    "long": (500, 1000),
    "seconds": 0.15,
    "min_rounds": 3,
    "quick": True,
}


def parser() -> argparse.ArgumentParser:
    """The command line."""
    make = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__)
    add = make.add_argument
    add("--suite", nargs="+", choices=list(SUITES), default=list(SUITES), help="what to measure (all)")
    add("--quick", action="store_true", help="small sizes and few repetitions: under a minute on two cores")
    add("--sizes", nargs="+", choices=list(SIZES), help="sizes of the model (S M L)")
    add("--peers", nargs="*", metavar="NAME", help=f"who else: {', '.join((*ON_CPU, *ON_GPU))}, or a backend's name")
    add("--only", default="", metavar="TEXT", help="cases whose line holds this text")
    add("--seconds", type=float, help="of timing for a case of an op (3)")
    add("--min-rounds", type=int, help="rounds at least, however long (5)")
    add("--threads", type=int, help="of PyTorch (as many as it takes by itself)")
    add("--device", choices=("cpu", "cuda"), default="cpu")
    add("--compile-unrolled", action="store_true", help="torch.compile of loops over t too: minutes for each")
    add("--csv", nargs="?", const="", metavar="FILE", help="append to a file (benchmarks/results/DEVICE.csv)")
    add("--json", nargs="?", const="-", metavar="FILE", help="write JSON to a file (to standard output, tables aside)")
    return make


def options(arguments: argparse.Namespace) -> Options:
    """The options of a run. Raises ValueError."""
    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: this PyTorch sees no CUDA device")
    known = (*ON_CPU, *ON_GPU, *vssn_kernels.backends())
    default = ("torch", "jax") if arguments.quick else (*ON_CPU, *(ON_GPU if arguments.device == "cuda" else ()))
    peers = tuple(default if arguments.peers is None else arguments.peers)
    if unknown := [name for name in peers if name not in known]:
        raise ValueError(f"--peers: expected some of {', '.join(known)}, got {unknown[0]!r}")
    given: dict[str, Any] = {name: getattr(arguments, name) for name in ("seconds", "min_rounds", "threads")}
    given["sizes"] = tuple(arguments.sizes) if arguments.sizes else None
    given = {name: value for name, value in given.items() if value is not None}
    given.setdefault("threads", torch.get_num_threads())
    if min(given["threads"], given.get("seconds", 1), given.get("min_rounds", 1)) <= 0:
        raise ValueError("--threads, --seconds and --min-rounds must be above 0")
    common = {
        "device": arguments.device,
        "peers": peers,
        "only": arguments.only,
        "compile_unrolled": arguments.compile_unrolled,
    }
    return Options(**{**(QUICK if arguments.quick else {}), **common, **given})


def table(rows: Sequence[Row], told: set[tuple[str, str]]) -> str:
    """One case: this library first, each contestant with its quantiles, its ratio and how near the limit it is.

    Why a contestant did not take part is told once for each reason: `told` remembers.
    """
    first = rows[0]
    head = line(first.suite, first.family, first.case, first.run)
    if first.limit is not None:
        head += f" | limit {first.limit:.4g} {first.unit}"
    lines = [head]
    for row in rows:
        if row.median is not None:
            lines.append(f"  {_measured(row, first)}")
        elif (row.contestant, row.status) not in told:
            told.add((row.contestant, row.status))
            lines.append(f"  {row.contestant:<18} {row.status}")
    return "\n".join(lines)


def _measured(row: Row, first: Row) -> str:
    assert row.median is not None
    name = row.contestant if row.threads == first.threads else f"{row.contestant}, threads={row.threads}"
    text = f"{name:<18} {row.median:>10.4g} {row.unit}"
    if row.q20 is not None and row.q80 is not None:
        text += f"  [{row.q20:.4g}, {row.q80:.4g}]"
    if row.steps and row.unit == "ms":
        text += f"  {1e3 * row.median / row.steps:.4g} us/step"
    if row.times_limit is not None:
        text += f"  {row.times_limit:.2f} x limit"
    if row.ratio is not None and row is not first:
        text += f"  {row.ratio:.2f} x {OURS}"
    return text


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the suites that the command line names."""
    arguments = parser().parse_args(argv)
    try:
        chosen = options(arguments)
    except ValueError as error:
        print(f"benchmarks.run: {error}", file=sys.stderr)
        return 2
    out = sys.stderr if arguments.json == "-" else sys.stdout
    torch.set_num_threads(chosen.threads)
    keep_memory()
    running = load()
    rate, bandwidth = chosen.limits.gemm(chosen.threads).flops, chosen.limits.copy(chosen.threads)
    where = environment(chosen.device, running, rate, bandwidth)
    print(
        f"{where.processor}, {chosen.threads} threads on {where.cores} cores, torch {where.torch}, "
        f"jax {where.jax or 'absent'}, {OURS} {where.vssn} with backend {where.backend}, "
        f"commit {where.commit or 'unknown'}\n{_limits(chosen)}",
        file=out,
    )
    if warning := busy(where.load, where.cores):
        print(warning, file=sys.stderr)
    rows: list[Row] = []
    told: set[tuple[str, str]] = set()
    for name in arguments.suite:
        for case in SUITES[name](chosen):
            print(table(case, told), file=out, flush=True)
            rows += case
    print(_limits(chosen), file=out)
    rows = [with_final_limit(row, chosen) for row in rows]
    where = dataclasses.replace(where, gemm_gflops=round(chosen.limits.gemm(chosen.threads).flops / 1e9, 1))
    if arguments.csv is not None:
        append_csv(Path(arguments.csv) if arguments.csv else RESULTS / f"{chosen.device}.csv", where, rows)
    if arguments.json == "-":
        write_json(sys.stdout, where, rows)
    elif arguments.json is not None:
        with open(arguments.json, "w") as file:
            write_json(file, where, rows)
    wrong = [row for row in rows if row.status.startswith(("disagrees", "results differ", "failed"))]
    for row in wrong:
        print(f"{line(row.suite, row.family, row.case, row.run)}: {row.contestant} {row.status}", file=sys.stderr)
    return 1 if wrong else 0


def _limits(chosen: Options) -> str:
    rate, shape = chosen.limits.gemm(chosen.threads)
    size = " x ".join(str(part) for part in shape)
    return f"best so far: {rate / 1e9:.1f} GFLOP/s ({size}), {chosen.limits.copy(chosen.threads) / 1e9:.1f} GB/s copied"


def with_final_limit(row: Row, chosen: Options) -> Row:
    """The row with the limit at the best rate of the whole run: the file is to have one rate."""
    if row.limit is None or row.flop is None:
        return row
    return dataclasses.replace(row, limit=1e3 * row.flop / chosen.limits.gemm(row.threads).flops)


if __name__ == "__main__":
    sys.exit(main())
