"""Rows of what `make gpu` measures: written one by one, each with device, driver, clocks and versions; those of the
times also read again and shown."""

from __future__ import annotations

import csv
import os
import platform
import subprocess
import time
from pathlib import Path
from typing import Any, Protocol

import torch

from benchmarks.gpu_contest import Result
from benchmarks.results import RESULTS, commit, is_new, now, version
from vssn_kernels.version import __version__

CSV = RESULTS / "gpu" / "times.csv"
# What nvidia-smi is asked for, and the columns that this fills.
SMI = {
    "driver": "driver_version",
    "sm_mhz": "clocks.sm",  # when the row was written: the device has just worked
    "sm_max_mhz": "clocks.max.sm",
    "memory_mhz": "clocks.mem",
    "power_limit_w": "power.limit",
    "temperature_c": "temperature.gpu",
}
SMI_EVERY_S = 3.0  # asking takes a tenth of a second
WHERE = ("date", "commit", "device", *SMI, "python", "torch", "cuda", "cudnn", "triton", "vssn")
ADVICE = "move it away"  # where a file has other columns


class Row(Protocol):
    """A NamedTuple."""

    def _asdict(self) -> dict[str, Any]: ...


def columns(fields: tuple[str, ...]) -> list[str]:
    """Of a file of rows with these fields."""
    return [*WHERE, *fields]


FIELDS = columns(Result._fields)


def smi() -> dict[str, str]:
    """The driver's version and the clocks of now; empty texts without nvidia-smi."""
    command = ["nvidia-smi", f"--query-gpu={','.join(SMI.values())}", "--format=csv,noheader,nounits", "--id=0"]
    try:
        line = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.splitlines()[0]
        return dict(zip(SMI, (part.strip() for part in line.split(",")), strict=True))
    except (OSError, subprocess.SubprocessError, IndexError, ValueError):
        return dict.fromkeys(SMI, "")


def paths(out: str | os.PathLike[str] | None, main: Path | None = None) -> list[Path]:
    """The CSVs that rows go to: that of the checkout and, with a folder, its own."""
    main = main or CSV
    return [main, *([Path(out) / main.name] if out else [])]


class Writer:
    """Appends rows of one kind to CSVs."""

    def __init__(self, files: list[Path], date: str, device: str, fields: tuple[str, ...] = Result._fields) -> None:
        self.files, self.columns = files, columns(fields)
        on_gpu = device == "cuda"
        self.where = {
            "date": date,
            "commit": commit(),
            "device": torch.cuda.get_device_name() if on_gpu else device,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "cuda": torch.version.cuda or "",
            "cudnn": str(torch.backends.cudnn.version() or "") if on_gpu else "",
            "triton": version("triton"),
            "vssn": __version__,
        }
        self._asked = float("-inf")
        self._clocks: dict[str, str] = {}
        for path in files:
            new = is_new(path, self.columns, ADVICE)
            path.parent.mkdir(parents=True, exist_ok=True)
            if new:
                with path.open("w", newline="") as file:
                    csv.DictWriter(file, self.columns, lineterminator="\n").writeheader()

    @classmethod
    def from_environment(
        cls, device: str, fields: tuple[str, ...] = Result._fields, main: Path = CSV, out: str | None = None
    ) -> Writer:
        """To the files, and under the date, that `benchmarks.gpu` names; without it to these."""
        files = paths(out or os.environ.get("OUT"), Path(os.environ.get("VSSN_GPU_CSV", main)))
        return cls(files, os.environ.get("VSSN_GPU_DATE", now()), device, fields)

    def write(self, result: Row) -> None:
        """One row, on disk when this returns."""
        if time.monotonic() - self._asked > SMI_EVERY_S:
            self._asked, self._clocks = time.monotonic(), smi()
        numbers = {k: float(f"{v:.5g}") if isinstance(v, float) else v for k, v in result._asdict().items()}
        for path in self.files:
            with path.open("a", newline="") as file:
                writer = csv.DictWriter(file, self.columns, lineterminator="\n")
                writer.writerow(self.where | self._clocks | numbers)


def read(path: Path, date: str) -> list[Result]:
    """The rows of a run; of their numbers the time alone."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["date"] == date]
    return [
        Result(row["case"], row["run"], row["contestant"], row["status"], us=float(row["us"]) if row["us"] else None)
        for row in rows
    ]


def table(results: list[Result]) -> str:
    """One line for a case and pass: microseconds of every contestant; of a recurrence, for one step."""
    lines = []
    for case, run in dict.fromkeys((result.case, result.run) for result in results):
        found = [result for result in results if (result.case, result.run) == (case, run)]
        parts = [
            f"{r.contestant} {r.us:.3g} us" if r.us is not None else f"{r.contestant} - ({r.status[:60]})"
            for r in found
        ]
        lines.append(f"{case}, {run}: {'; '.join(parts)}")
    return "\n".join(lines)
