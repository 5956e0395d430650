"""python -m benchmarks.gpu_floor: what a step on the GPU is made of, measured part by part.

Barriers, exchanges, memories, products and functions by gpu_floor.cu, which nvcc compiles for the GPU that is here; the
launch gap, the copy bandwidth and a large product through PyTorch. Rows are appended to
benchmarks/results/gpu/floor.csv, and a table in Markdown is printed. Exit status 0 only if all was measured.
"""

from __future__ import annotations

import argparse
import math
import os
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch

from benchmarks import ROOT, gpu_rows, markdown
from benchmarks.cuda_resources import nvcc
from benchmarks.gpu_contest import seconds_on_gpu
from benchmarks.gpu_rows import Writer
from benchmarks.gpu_run import Step, run

CSV = gpu_rows.CSV.with_name("floor.csv")
SOURCE = ROOT / "benchmarks" / "gpu_floor.cu"
COMPILE_S, RUN_S = 120.0, 20.0  # at most
RUNS = 7  # as the program has it
LAUNCHES = 500
COPIES = {"64MB": 1 << 26, "256MB": 1 << 28, "1GB": 1 << 30}  # bytes that are read, and written
SIDE = 8192  # of the matrices
MEASURED = re.compile(r"([a-zA-Z]\w*),([^,\s]+),(\S+)")
FAILED = re.compile(r"# (\w+) failed: (.+)")


class Floor(NamedTuple):
    """One part."""

    measurement: str
    unit: str
    value: float | None
    status: str = "ok"  # or "failed: why"


# ---- By the program -------------------------------------------------------------------------------------------------


def parse(text: str) -> list[Floor]:
    """The measurements in what the program wrote, in its order; other lines are passed over."""
    found = []
    for line in text.splitlines():
        if match := MEASURED.fullmatch(line):
            found.append(checked(match[1], match[2], match[3]))
        elif match := FAILED.fullmatch(line):
            found.append(Floor(match[1], "", None, f"failed: {match[2]}"))
    return found


def checked(measurement: str, unit: str, text: str) -> Floor:
    """A number that no measurement can give is a failure."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or value < 0:
        return Floor(measurement, unit, None, f"failed: gave {text}")
    return Floor(measurement, unit, value)


def architecture(major: int, minor: int) -> str:
    """As nvcc names it; with what the architecture alone has."""
    return f"{major}{minor}{'a' if major >= 9 else ''}"


def build(compiler: str, binary: Path, arch: str, seconds: float) -> Step:
    """The program, for that architecture."""
    code = f"-gencode=arch=compute_{arch},code=sm_{arch}"
    command = [compiler, "-std=c++17", "-O3", code, "-o", str(binary), str(SOURCE)]
    return run("floor build", command, seconds, binary.with_suffix(".log"))


def by_program(binary: Path | None, folder: Path, until: float) -> Iterator[Floor]:
    """What the program measures, and a failure where it does not come to its end. until: on the monotonic clock."""
    if binary is None:
        compiler, binary = nvcc(), folder / "gpu_floor"
        if compiler is None:
            yield Floor("gpu_floor.cu", "", None, "failed: nvcc is not found")
            return
        seconds = min(COMPILE_S, until - time.monotonic())
        step = build(compiler, binary, architecture(*torch.cuda.get_device_capability()), seconds)
        if not step.ended_well:
            yield Floor("gpu_floor.cu", "", None, f"failed: build {step.status}")
            return
    log = folder / "floor_program.log"
    step = run("floor program", [str(binary)], min(RUN_S, until - time.monotonic()), log)
    yield from parse(log.read_text(errors="replace") if log.exists() else "")
    if not step.ended_well:
        yield Floor("gpu_floor.cu", "", None, f"failed: {step.status}")


# ---- Through PyTorch ------------------------------------------------------------------------------------------------


def seconds_of(call: Callable[[], object], calls: int) -> float:
    """Of one call: the median of RUNS, each of so many calls between two events."""
    seconds_on_gpu(call, calls)
    return statistics.median(seconds_on_gpu(call, calls) for _ in range(RUNS))


def launch_gap(in_graph: bool) -> float:
    """Microseconds from one kernel that does nothing to the next."""

    def launch() -> None:
        torch.cuda._sleep(0)

    if not in_graph:
        return 1e6 * seconds_of(launch, LAUNCHES)
    launch()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(LAUNCHES):
            launch()
    return 1e6 * seconds_of(graph.replay, 1) / LAUNCHES


def copy_bandwidth(size: int) -> float:
    """GB/s, read and written bytes together, of a copy of `size` bytes on the device."""
    source, target = (torch.ones(size, dtype=torch.uint8, device="cuda") for _ in range(2))
    return 1e-9 * 2 * size / seconds_of(lambda: target.copy_(source), 10)


def product_rate(dtype: torch.dtype) -> float:
    """TFLOP/s of a large matrix product."""
    a, b = (torch.randn(SIDE, SIDE, dtype=dtype, device="cuda") for _ in range(2))
    out = torch.empty_like(a)
    return 1e-12 * 2 * SIDE**3 / seconds_of(lambda: torch.mm(a, b, out=out), 5)


def through_pytorch() -> Iterator[Floor]:
    """What is measured through PyTorch."""
    parts: list[tuple[str, str, Callable[[], float]]] = [
        ("torch_launch_gap_stream", "us", lambda: launch_gap(in_graph=False)),
        ("torch_launch_gap_graph", "us", lambda: launch_gap(in_graph=True)),
        *((f"copy_{name}", "GB/s", lambda size=size: copy_bandwidth(size)) for name, size in COPIES.items()),
        (f"torch_mm_bf16_{SIDE}", "TFLOP/s", lambda: product_rate(torch.bfloat16)),
    ]
    for name, unit, measure in parts:
        print(f"# {name}", flush=True)
        try:
            yield Floor(name, unit, measure())
        except Exception as error:  # the others are to be measured
            why = str(error).partition("\n")[0]
            yield Floor(name, unit, None, f"failed: {type(error).__name__}: {why}")
        torch.cuda.empty_cache()


# ---- All ------------------------------------------------------------------------------------------------------------


def table(found: list[Floor]) -> str:
    """In Markdown; a failure stands where the value would."""
    lines = [
        [one.measurement, one.unit, one.status if one.value is None else f"{one.value:.4g}"] for one in found
    ]  # fmt: skip
    return markdown.table(["measurement", "unit", "value"], lines)


def record(found: Iterator[Floor], writer: Writer) -> list[Floor]:
    """Writes each as it comes."""
    kept = []
    for one in found:
        writer.write(one)
        kept.append(one)
    return kept


def main(arguments: list[str] | None = None) -> int:
    """All of it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_floor", description=__doc__)
    parser.add_argument("--out", default=os.environ.get("OUT"), help="a folder for the rows and logs, too (or: OUT)")
    parser.add_argument("--binary", type=Path, help="gpu_floor.cu compiled already; else nvcc does it")
    parser.add_argument("--seconds", type=float, default=COMPILE_S + RUN_S, help="for everything, about (140)")
    given = parser.parse_args(arguments)
    until = time.monotonic() + given.seconds
    if not torch.cuda.is_available():
        print(f"benchmarks.gpu_floor: PyTorch {torch.__version__} finds no CUDA device here", file=sys.stderr)
        return 2
    try:
        writer = Writer.from_environment("cuda", Floor._fields, CSV, given.out)
    except (OSError, ValueError) as error:
        print(f"benchmarks.gpu_floor: {error}", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(given.out or scratch).resolve()
        binary = given.binary.resolve() if given.binary else None
        found = record(through_pytorch(), writer) + record(by_program(binary, folder, until), writer)
    print(f"\n{table(found)}", flush=True)
    return 0 if all(one.value is not None for one in found) else 1


if __name__ == "__main__":
    sys.exit(main())
