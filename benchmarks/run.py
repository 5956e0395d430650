"""python -m benchmarks.run: measures this library beside its peers and the machine's limits, and prints the rows."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

import vssn_kernels
from benchmarks import limits
from benchmarks.cases import SIZES
from benchmarks.peers import OURS
from benchmarks.peers import ON_CPU, ON_GPU
from benchmarks.results import RESULTS, Row, append_csv, environment, write_json
from benchmarks.suites import SUITES, Options, line

QUICK = {
    "sizes": ("S",),
    "hidden": (64, 256),
    "batches": (32,),
    "long": (1000, 2000),
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
    add("--min-rounds", type=int, help="rounds at least, however long (7)")
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
    default = ("torch", "jax", "torch.compile", *(ON_GPU if arguments.device == "cuda" else ()))
    peers = tuple(default if arguments.peers is None else arguments.peers)
    if unknown := [name for name in peers if name not in known]:
        raise ValueError(f"--peers: expected some of {', '.join(known)}, got {unknown[0]!r}")
    given: dict = {name: getattr(arguments, name) for name in ("seconds", "min_rounds", "threads")}
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


def table(rows: Sequence[Row]) -> str:
    """One case: this library first, each contestant with its quantiles, its ratio and how near the limit it is."""
    first = rows[0]
    head = line(first.suite, first.family, first.case, first.run)
    if first.limit is not None:
        head += f" | limit {first.limit:.4g} {first.unit}"
    return "\n".join([head, *(f"  {_contestant(row, first)}" for row in rows)])


def _contestant(row: Row, first: Row) -> str:
    name = row.contestant if row.threads == first.threads else f"{row.contestant}, {row.threads} threads"
    if row.median is None:
        return f"{name:<18} {row.status}"
    text = f"{name:<18} {row.median:>10.4g} {row.unit}"
    if row.q20 is not None and row.q80 is not None:
        text += f"  [{row.q20:.4g}, {row.q80:.4g}]"
    if row.ratio is not None and row is not first:
        text += f"  {row.ratio:.2f} x {OURS}"
    if row.times_limit is not None:
        text += f"  {row.times_limit:.2f} x limit"
    if row.steps:
        text += f"  {1e3 * row.median / row.steps:.4g} us/step" if row.unit == "ms" else ""
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
    rate, shape = limits.gemm_rate(chosen.device, chosen.threads, chosen.quick)
    bandwidth = limits.copy_bandwidth(chosen.device, chosen.threads, chosen.quick)
    where = environment(chosen.device, rate, bandwidth)
    print(
        f"{where.processor}, {chosen.threads} of {where.cores} threads, torch {where.torch}, jax {where.jax or 'absent'}, "
        f"{OURS} {where.vssn} on backend {where.backend}, commit {where.commit or 'unknown'}\n"
        f"limits measured: {where.gemm_gflops} GFLOP/s ({shape}), {where.copy_gbs} GB/s copied",
        file=out,
    )
    rows: list[Row] = []
    for name in arguments.suite:
        for case in SUITES[name](chosen):
            print(table(case), file=out, flush=True)
            rows += case
    if arguments.csv is not None:
        device = Path(arguments.csv) if arguments.csv else RESULTS / f"{chosen.device}.csv"
        append_csv(device, where, rows)
    if arguments.json == "-":
        write_json(sys.stdout, where, rows)
    elif arguments.json is not None:
        with open(arguments.json, "w") as file:
            write_json(file, where, rows)
    disagreeing = [row for row in rows if row.status.startswith("disagrees")]
    for row in disagreeing:
        print(f"{row.contestant} {row.status}: {line(row.suite, row.family, row.case, row.run)}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
