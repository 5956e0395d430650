"""Rows of results: what stands in one, where it was measured, and the CSV and JSON that keep them."""

from __future__ import annotations

import csv
import dataclasses
import datetime
import importlib.metadata
import json
import os
import platform
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import torch

import vssn_kernels
from benchmarks import ROOT
from vssn.utils.machine import processor_name
from vssn_kernels.version import __version__

RESULTS = ROOT / "benchmarks" / "results"
BUSY = 0.25  # running processes for each core, above which a run says so


@dataclass(frozen=True)
class Row:
    """One contestant in one case. Numbers that were not measured are None."""

    suite: str
    family: str
    case: str
    run: str  # the pass, or what was done
    contestant: str
    threads: int
    status: str  # "ok", or why nothing was measured
    unit: str = "ms"
    median: float | None = None
    q20: float | None = None
    q80: float | None = None
    samples: int | None = None
    steps: int | None = None  # T
    limit: float | None = None  # the least that is possible here, in `unit`
    ratio: float | None = None  # to this library in the same case, median over the rounds
    error: float | None = None  # largest relative difference from this library's results
    flop: int | None = None
    bytes: int | None = None

    @property
    def us_per_step(self) -> float | None:
        return None if self.median is None or not self.steps else 1e3 * self.median / self.steps

    @property
    def times_limit(self) -> float | None:
        return self.median / self.limit if self.median and self.limit else None


@dataclass(frozen=True)
class Environment:
    """Where and when rows were measured; the rates are those of the run's thread count."""

    date: str
    commit: str
    device: str
    processor: str
    cores: int
    load: float  # running processes when the run began; near 0 on a quiet machine
    python: str
    torch: str
    jax: str
    vssn: str
    backend: str
    gemm_gflops: float
    copy_gbs: float


Measured = list[tuple[Environment, Row]]
Key = tuple[str, str, str, str]

TYPES: dict[str, type] = {
    **dict.fromkeys(("threads", "samples", "steps", "flop", "bytes", "cores"), int),
    **dict.fromkeys(("median", "q20", "q80", "limit", "ratio", "error", "gemm_gflops", "copy_gbs", "load"), float),
}
FIELDS = [field.name for part in (Environment, Row) for field in dataclasses.fields(part)]


def version(package: str) -> str:
    """Of what is installed, else ""."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def now() -> str:
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")


def commit() -> str:
    """The short hash of the checkout ("": outside one), with a + where tracked files, results aside, differ from it."""

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True, timeout=30
        ).stdout.strip()

    try:
        changed = git("status", "--porcelain", "-uno", "--", ".", ":!benchmarks/results")
        return git("rev-parse", "--short", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return ""


def default_backend(device: str) -> str:
    """The backend that runs when none is named."""
    names = ("cuda", "triton", "reference") if device == "cuda" else ("cpu", "reference")
    return next(name for name in names if vssn_kernels.backends()[name] == "available")


def load() -> float:
    """Running processes, over the last minute; 0 where the system does not say."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else 0.0


def busy(load: float, cores: int) -> str:
    """A line where other programs run beside this one, else ""."""
    if load <= BUSY * cores:
        return ""
    return f"the machine is busy (load {load}): these times will not hold, nor will the ratios"


def environment(device: str, load: float, gemm_rate: float, bandwidth: float) -> Environment:
    """This machine, now. Rates in FLOP/s and bytes/s."""
    return Environment(
        date=now(),
        commit=commit(),
        device=torch.cuda.get_device_name() if device == "cuda" else "cpu",
        processor=processor_name(),
        cores=len(os.sched_getaffinity(0)),
        load=load,
        python=platform.python_version(),
        torch=torch.__version__,
        jax=version("jax"),
        vssn=__version__,
        backend=default_backend(device),
        gemm_gflops=round(gemm_rate / 1e9, 1),
        copy_gbs=round(bandwidth / 1e9, 2),
    )


def records(where: Environment, rows: Iterable[Row]) -> list[dict[str, object]]:
    """One flat record a row; a float has six significant digits."""
    return [rounded(dataclasses.asdict(where) | dataclasses.asdict(row)) for row in rows]


def rounded(record: dict[str, Any]) -> dict[str, Any]:
    """Floats with six significant digits."""
    return {k: float(f"{v:.6g}") if isinstance(v, float) else v for k, v in record.items()}


def is_new(path: Path, columns: list[str], advice: str) -> bool:
    """Whether the file is without a header still. Raises ValueError where it has other columns."""
    if not path.exists() or path.stat().st_size == 0:
        return True
    with path.open(newline="") as file:
        if next(csv.reader(file)) != columns:
            raise ValueError(f"{path} has other columns than this version writes; {advice}")
    return False


def append_records(path: Path, columns: list[str], records: Iterable[dict[str, Any]]) -> None:
    """Appends a line for each, below a header where the file is new. Raises ValueError where it has other columns."""
    new = is_new(path, columns, "name another file with --csv")
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerows(records)


def read_records(path: Path, columns: list[str]) -> list[dict[str, str]]:
    """What `append_records` wrote. Raises ValueError where the columns are others, or a line has fewer or more."""
    with path.open(newline="") as file:
        reader = csv.DictReader(file)
        if reader.fieldnames != columns:
            raise ValueError(f"{path} has other columns than this version reads: {reader.fieldnames}")
        found = []
        for record in reader:
            if None in record or None in record.values():
                raise ValueError(f"{path}: line {reader.line_num} has not {len(columns)} columns; take it out")
            found.append(record)
    return found


def append_csv(path: Path, where: Environment, rows: Iterable[Row]) -> None:
    """Appends the rows, below a header where the file is new. Raises ValueError where it has other columns."""
    append_records(path, FIELDS, records(where, rows))


def read_csv(path: Path) -> list[tuple[Environment, Row]]:
    """What `append_csv` wrote. Raises ValueError where the columns are others."""
    found = []
    for record in read_records(path, FIELDS):
        values = {name: _parse(name, text) for name, text in record.items()}
        where = Environment(**{field.name: values[field.name] for field in dataclasses.fields(Environment)})
        found.append((where, Row(**{field.name: values[field.name] for field in dataclasses.fields(Row)})))
    return found


def _parse(name: str, text: str) -> Any:
    if name not in TYPES:
        return text
    return TYPES[name](text) if text else None


def write_json(file: TextIO, where: Environment, rows: Iterable[Row]) -> None:
    json.dump(records(where, rows), file, indent=1)
    file.write("\n")


def newest(measured: Measured) -> Measured:
    """Of each case what its last run measured, all contestants in the same run; in the order of the file."""
    last = {key(row): where.date for where, row in measured if row.median is not None}
    return [(where, row) for where, row in measured if row.median is not None and where.date == last[key(row)]]


def by_processor(measured: Measured) -> dict[str, Measured]:
    """The results of each processor and device; the one measured last stands first."""
    found: dict[str, Measured] = {}
    for where, _ in sorted(measured, key=lambda one: one[0].date, reverse=True):
        found.setdefault(machine(where), [])
    for where, row in measured:
        found[machine(where)].append((where, row))
    return found


def machine(where: Environment) -> str:
    """What ran it, in words."""
    return where.processor if where.device == "cpu" else f"{where.processor}, {where.device}"


def key(row: Row) -> Key:
    return row.suite, row.family, row.case, row.run


def with_all_threads(measured: Measured) -> Measured:
    """Those measured with the most threads: fewer have a table of their own, "scaling threads"."""
    most = max((row.threads for _, row in measured), default=0)
    return [(where, row) for where, row in measured if row.threads == most or row.suite == "scaling threads"]
