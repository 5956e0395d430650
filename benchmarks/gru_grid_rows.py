"""The grid of vssn.GRU against torch.nn.GRU: its cells, what one row of its CSV holds, and the summary of many."""

from __future__ import annotations

import dataclasses
import itertools
import statistics
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import ROOT, markdown
from benchmarks.problem import BACKWARD, FLOAT32_BYTES, FLOP_PER_ENTRY, FORWARD
from benchmarks.results import RESULTS, append_records, read_records, rounded

CSV = RESULTS / "gru_grid.csv"
STEPS, BATCHES, HIDDEN = (1, 8, 64, 1000), (1, 4, 32, 128), (16, 64, 256, 512, 1024)
PASSES, THREADS = (FORWARD, BACKWARD), (1, 2)
LEAST_MEDIAN = 0.97  # a cell whose median lies below it is slower, whatever its interval
# Tensors of x's size, [T, B, H], that are there at the peak, measured: x, the outputs compared, and the pass of nn.GRU,
# which takes more than this library's.
TENSORS = {FORWARD: 11, BACKWARD: 19}
LIBRARY = ("vssn", "vssn_kernels", "csrc", "setup.py")  # what a row is a measurement of


class Cell(NamedTuple):
    """A problem, its pass and the threads that run it; the input is as wide as the state."""

    T: int
    B: int
    H: int
    run: str
    threads: int

    def __str__(self) -> str:
        threads = "1 thread" if self.threads == 1 else f"{self.threads} threads"
        return f"T={self.T} B={self.B} H={self.H} {self.run}, {threads}"

    def flop(self) -> int:
        return FLOP_PER_ENTRY[self.run] * 6 * self.H**2 * self.T * self.B

    def bytes(self) -> int:
        """Memory at the peak, about: the sequences, and both modules' weights with the gradients."""
        weights = 6 * self.H * (self.H + 1) * 2 * (1 if self.run == FORWARD else 3)
        return FLOAT32_BYTES * (TENSORS[self.run] * self.T * self.B * self.H + weights)


def cells(
    sizes: Iterable[tuple[int, int, int]], runs: Sequence[str] = PASSES, threads: Sequence[int] = THREADS
) -> list[Cell]:
    """Of those (T, B, H), in every pass and on so many threads: what is soon done first."""
    found = [Cell(*size, run, count) for size, run, count in itertools.product(sizes, runs, threads)]
    return sorted(dict.fromkeys(found), key=Cell.flop)


GRID = frozenset(cells(itertools.product(STEPS, BATCHES, HIDDEN)))


@dataclass(frozen=True)
class Row:
    """One cell on one machine. The ratio is nn.GRU's time over this library's: above 1 this library is faster."""

    date: str
    commit: str
    processor: str
    isa: str  # of this library's kernels
    cores: int
    load: float  # running processes when the run began
    torch: str
    T: int
    B: int
    H: int
    run: str  # the pass
    threads: int
    status: str  # "ok", or why nothing was measured
    vssn_ms: float | None = None  # medians
    torch_ms: float | None = None
    ratio: float | None = None  # median over the pairs, with its interval of 95%
    low: float | None = None
    high: float | None = None
    pairs: int | None = None

    @property
    def cell(self) -> Cell:
        return Cell(self.T, self.B, self.H, self.run, self.threads)

    @property
    def machine(self) -> tuple[str, str]:
        return self.processor, self.isa


FIELDS = [field.name for field in dataclasses.fields(Row)]
INTEGERS = ("cores", "T", "B", "H", "threads", "pairs")
FLOATS = ("load", "vssn_ms", "torch_ms", "ratio", "low", "high")


def append(path: Path, rows: Iterable[Row]) -> None:
    """Raises ValueError where the file has other columns."""
    append_records(path, FIELDS, [rounded(dataclasses.asdict(row)) for row in rows])


def read(path: Path) -> list[Row]:
    """What `append` wrote. Raises ValueError where it is something else."""

    def parsed(name: str, text: str) -> Any:
        if name in INTEGERS:
            return int(text) if text else None
        if name in FLOATS:
            return float(text) if text else None
        return text

    return [Row(**{name: parsed(name, text) for name, text in record.items()}) for record in read_records(path, FIELDS)]


def newest(rows: Iterable[Row]) -> list[Row]:
    """The last row of each cell on each machine; one that measured nothing does not take the place of one that did."""
    last: dict[tuple[tuple[str, str], Cell], Row] = {}
    for row in rows:
        place = (row.machine, row.cell)
        if row.ratio is not None or place not in last or last[place].ratio is None:
            last[place] = row
    return list(last.values())


def by_machine(rows: Iterable[Row]) -> dict[tuple[str, str], list[Row]]:
    """The newest rows of each processor and instruction set."""
    found: dict[tuple[str, str], list[Row]] = {}
    for row in newest(rows):
        found.setdefault(row.machine, []).append(row)
    return found


def of_this_library(rows: Iterable[Row], now: Row) -> list[Row]:
    """Rows measured on the machine of `now`, with its PyTorch, of a library that its commit has not changed."""
    same: dict[str, bool] = {}

    def library_of(commit: str) -> bool:
        if commit not in same:
            same[commit] = commit == now.commit or unchanged(commit, now.commit)
        return same[commit]

    return [row for row in rows if (row.machine, row.torch) == (now.machine, now.torch) and library_of(row.commit)]


def unchanged(commit: str, other: str) -> bool:
    """Whether two commits hold the same library. What was changed and not committed is not known: False."""
    if not commit or not other or "+" in commit + other:
        return False
    command = ["git", "diff", "--quiet", commit, other, "--", *LIBRARY]
    try:
        return subprocess.run(command, cwd=ROOT, capture_output=True, timeout=30).returncode == 0
    except (OSError, subprocess.SubprocessError):
        return False


# ---- Summary --------------------------------------------------------------------------------------------------------


class Summary(NamedTuple):
    """Of some measured rows."""

    cells: int
    median: float
    least: Row
    below: list[Row]  # the whole interval lies below 1
    under: list[Row]  # the median lies below LEAST_MEDIAN


def summarise(rows: Sequence[Row]) -> Summary:
    """Of rows that all have a ratio, one at least."""
    return Summary(
        len(rows),
        statistics.median(ratio(row) for row in rows),
        min(rows, key=ratio),
        [row for row in rows if row.high is not None and row.high < 1],
        [row for row in rows if ratio(row) < LEAST_MEDIAN],
    )


def ratio(row: Row) -> float:
    assert row.ratio is not None
    return row.ratio


def told(row: Row) -> str:
    """A cell in one line."""
    if row.ratio is None:
        return f"{row.cell}: {row.status}"
    return (
        f"{row.cell}: {row.vssn_ms:.3g} ms, nn.GRU {row.torch_ms:.3g} ms, "
        f"{row.ratio:.2f}x ({row.low:.2f} to {row.high:.2f}, {row.pairs} pairs)"
    )


def text(rows: Iterable[Row]) -> str:
    """The whole summary: of each machine a table by T and pass, the grid's median, and the cells that are slower."""
    return "\n\n".join(_of_machine(own) for own in by_machine(rows).values()) or "no rows"


def _of_machine(rows: list[Row]) -> str:
    measured = [row for row in rows if row.ratio is not None]
    commits, versions = (", ".join(sorted({getattr(r, name) for r in measured})) for name in ("commit", "torch"))
    first = rows[0]
    lines = [
        f"{first.processor}, {first.isa}, {first.cores} cores; torch {versions}, commit {commits}; "
        f"{len(GRID.intersection(row.cell for row in measured))} of the grid's {len(GRID)} cells"
    ]
    if measured:
        header = ("T, pass", "cells", "median", "least", "interval below 1", f"median under {LEAST_MEDIAN}", "least at")
        lines += ["", markdown.table(header, _table(measured)), ""]
        whole = summarise(measured)
        lines.append(f"median of all {whole.cells}: {whole.median:.2f}x; least {ratio(whole.least):.2f}x")
        slower = dict.fromkeys(sorted((*whole.below, *whole.under), key=ratio))
        lines += [f"  slower: {told(row)}" for row in slower]
    lines += [f"  {told(row)}" for row in rows if row.ratio is None]
    return "\n".join(lines)


def _table(measured: list[Row]) -> list[tuple[object, ...]]:
    lines: list[tuple[object, ...]] = []
    for steps, run in sorted({(row.T, row.run) for row in measured}):
        found = summarise([row for row in measured if (row.T, row.run) == (steps, run)])
        least = found.least.cell
        where = f"B={least.B} H={least.H}, {least.threads} thread{'s' * (least.threads > 1)}"
        numbers = (f"{found.median:.2f}", f"{ratio(found.least):.2f}", len(found.below), len(found.under))
        lines.append((f"T={steps}, {run}", found.cells, *numbers, where))
    return lines
