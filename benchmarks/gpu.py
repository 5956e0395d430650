"""python -m benchmarks.gpu: all that needs a GPU, in under ten minutes, offline, on the Python and PyTorch at hand.

In this order, each step in a process of its own with a limit of time: builds and installs this checkout; runs every
kernel and form once at a small size, naming it before (gpu_small.py); the tests of the cuda and triton backends, each
with a limit (gpu_pytest.py); the times beside PyTorch's (gpu_times.py), appended to benchmarks/results/gpu/times.csv;
what a step is made of (gpu_floor.py), appended to floor.csv beside it; the small run under compute-sanitizer (memcheck,
racecheck). A step that runs out of time is ended with all its children
and the next one begins. A small run that hangs is done again with VSSN_CUDA_DEBUG=1 in the build, where a wait that
lasts says which one it is. The times and a table of all steps come last. Exit status 0 only if every step passed; what
racecheck finds is listed, and does not count.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import shutil
import sys
import tempfile
import time
from pathlib import Path

import torch

from benchmarks import gpu_floor, gpu_rows
from benchmarks.gpu_contest import Result
from benchmarks.gpu_run import OUT_OF_TIME, Step, run, table
from benchmarks.results import is_new, now

BUDGET_S = 570.0  # for everything
# Of each step, at most; what is left of the budget bounds it too, and TIMES_S of it are kept from the steps before. The
# times may take longer where FLOOR_S, and a minute for each sanitizer, are left.
BUILD_S, SMALL_S, TESTS_S, TIMES_S, FLOOR_S, SANITIZER_S = 240.0, 60.0, 150.0, 170.0, 30.0, 120.0
EACH_TEST_S = 60
TESTS = ("test_cuda_device", "test_ops", "test_gru", "test_posterior", "test_interleaved", "test_gaussian")
PYTHON = sys.executable
NOT_BUILT = "left out: --no-build"


class Session:
    """The steps of one call, their results and what they share."""

    def __init__(self, logs: Path, out: Path | None, budget: float = BUDGET_S, builds: bool = True) -> None:
        self.logs, self.out, self.builds = logs, out, builds
        self.until = time.monotonic() + budget
        self.date = now()
        self.backends: tuple[str, ...] = ("cuda", "triton")
        self.steps: list[Step] = []

    def left(self, kept: float = 0.0) -> float:
        """Seconds of the budget, without those kept for later."""
        return self.until - time.monotonic() - kept

    def run(self, name: str, command: list[str], seconds: float, **variables: str) -> Step:
        """A step, whose result takes its place in the table."""
        step = run(name, command, seconds, self.log(name), **variables)
        self.steps.append(step)
        return step

    def log(self, name: str) -> Path:
        return self.logs / f"{name.replace(' ', '_')}.log"

    # ---- Steps ------------------------------------------------------------------------------------------------------

    def build(self, name: str = "build", **variables: str) -> Step:
        """This checkout, into the Python that runs this."""
        command = [PYTHON, "-m", "pip", "install", "--quiet", "--no-build-isolation", "--no-deps", "-e", "."]
        variables = {"VSSN_BUILD_CUDA": "1", "PIP_BREAK_SYSTEM_PACKAGES": "1"} | variables
        return self.run(name, command, min(BUILD_S, self.left(TIMES_S)), **variables)

    def small(self) -> None:
        """Every kernel and form; those of a backend that hangs once more with waits that speak."""
        for backend in self.backends:
            command = [PYTHON, "-m", "benchmarks.gpu_small", backend]
            step = self.run(f"small {backend}", command, min(SMALL_S, self.left(TIMES_S)))
            if backend == "cuda" and step.status.startswith(OUT_OF_TIME):
                self.debug(command)

    def debug(self, command: list[str]) -> None:
        """The small run on a build in which a wait that lasts ends the kernel; then the build as it was."""
        if not self.builds or 2 * self.steps[0].seconds + SMALL_S > self.left(TIMES_S):
            why = "no time for two more builds" if self.builds else "it needs a build"
            self.steps.append(Step("small cuda debug", f"left out: {why}"))
            return
        if self.build("build debug", VSSN_CUDA_DEBUG="1").ended_well:
            self.run("small cuda debug", command, min(SMALL_S, self.left(TIMES_S)))
        if not self.build("build again").ended_well:
            self.leave_out_cuda()

    def leave_out_cuda(self) -> None:
        """Nothing is measured on a build that is not this checkout's."""
        self.backends = tuple(name for name in self.backends if name != "cuda")

    def tests(self) -> None:
        """The tests of the backends, on the device."""
        if importlib.util.find_spec("pytest") is None:
            self.steps.append(Step("tests", "left out: pytest is not installed"))
            return
        chosen = {"cuda": "test_cuda_device or cuda-cuda", "triton": "triton-cuda"}
        command = [PYTHON, "-m", "pytest", *(f"tests/kernels/{name}.py" for name in TESTS), "-m", "not slow"]
        command += ["-k", " or ".join(chosen[name] for name in self.backends), "-o", "addopts="]
        command += ["-p", "no:cacheprovider", "-p", "benchmarks.gpu_pytest"]
        command += ["-q", "-n", "4"] if importlib.util.find_spec("xdist") else ["-v"]
        if importlib.util.find_spec("pytest_timeout"):
            command += [f"--timeout={EACH_TEST_S}", "--timeout-method=thread"]
        else:
            command += ["--each-limit", str(EACH_TEST_S)]
        self.run("tests", command, min(TESTS_S, self.left(TIMES_S)), OMP_NUM_THREADS="4")

    def times(self) -> None:
        """Ours and PyTorch's, in a process which imports what was just built."""
        seconds = min(self.left(), max(TIMES_S, self.left(FLOOR_S + 120)))
        # It stops by itself between two contestants; the rest is for the one that is running then.
        variables = {"VSSN_GPU_SECONDS": f"{0.85 * seconds:.0f}", "VSSN_GPU_BACKENDS": " ".join(self.backends)}
        variables |= self.rows_to(gpu_rows.CSV)
        self.run("times", [PYTHON, "-m", "benchmarks.gpu_times"], seconds, **variables)

    def floor(self) -> None:
        """The parts of a step."""
        seconds = min(FLOOR_S, self.left())
        # Of these it writes what was measured until then.
        command = [PYTHON, "-m", "benchmarks.gpu_floor", "--seconds", f"{0.85 * seconds:.0f}"]
        self.run("floor", command, seconds, **self.rows_to(floor_csv()))

    def rows_to(self, csv: Path) -> dict[str, str]:
        """What tells a step where, and under which date, its rows go."""
        return {"VSSN_GPU_DATE": self.date, "VSSN_GPU_CSV": str(csv), "OUT": str(self.out or "")}

    def sanitizers(self) -> None:
        """The small run of the CUDA kernels, twice; each tensor has memory of its own, so that a step past it shows."""
        tool = shutil.which("compute-sanitizer") or shutil.which("compute-sanitizer", path="/usr/local/cuda/bin")
        for check in ("memcheck", "racecheck"):
            if tool is None or "cuda" not in self.backends:
                why = "compute-sanitizer is not found" if tool is None else "the build did not pass"
                self.steps.append(Step(check, f"left out: {why}"))
                continue
            fails = ["--error-exitcode", "9"] if check == "memcheck" else []
            command = [tool, "--tool", check, *fails, PYTHON, "-m", "benchmarks.gpu_small", "cuda"]
            step = self.run(check, command, min(SANITIZER_S, self.left()), PYTORCH_NO_CUDA_MEMORY_CACHING="1")
            if check == "racecheck" and (found := hazards(self.log(check))):
                self.steps[-1] = step._replace(status=f"{step.status}: {len(found)} findings")
                print("\n".join(("racecheck:", *found)), flush=True)

    def all(self) -> int:
        """Every step in order, then the tables; the exit status."""
        try:
            if not self.builds:
                self.steps.append(Step("build", NOT_BUILT))
            elif not self.build().ended_well:
                self.leave_out_cuda()
            for step in (self.small, self.tests, self.times, self.floor, self.sanitizers):
                step()
        finally:
            text = f"{gpu_rows.table(gpu_rows.read(gpu_rows.CSV, self.date))}\n\n{table(self.steps)}"
            print(f"\n{text}", flush=True)
            if self.out:
                (self.out / "summary.txt").write_text(text + "\n")
        return 0 if all(step.ended_well for step in self.steps if step.status != NOT_BUILT) else 1


def floor_csv() -> Path:
    """Beside that of the times."""
    return gpu_rows.CSV.with_name(gpu_floor.CSV.name)


def hazards(log: Path) -> list[str]:
    """The different findings of racecheck in its output."""
    lines = log.read_text(errors="replace").splitlines() if log.exists() else []
    return list(
        dict.fromkeys(line for line in lines if re.search(r"=== (Error|Warning|WARN|ERROR):.*hazard", line, re.I))
    )


def main(arguments: list[str] | None = None) -> int:
    """All steps."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--out", default=os.environ.get("OUT"), help="a folder for results and logs, too (or: OUT)")
    parser.add_argument("--no-build", action="store_true", help="this checkout is built and importable already")
    given = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print(f"benchmarks.gpu: PyTorch {torch.__version__} finds no CUDA device here", file=sys.stderr)
        return 2
    out = Path(given.out).resolve() if given.out else None
    try:
        if out:
            out.mkdir(parents=True, exist_ok=True)
        for csv, fields in ((gpu_rows.CSV, Result._fields), (floor_csv(), gpu_floor.Floor._fields)):
            for path in gpu_rows.paths(given.out, csv):
                is_new(path, gpu_rows.columns(fields), gpu_rows.ADVICE)
    except (OSError, ValueError) as error:
        print(f"benchmarks.gpu: {error}", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as folder:
        return Session(out or Path(folder), out, builds=not given.no_build).all()


if __name__ == "__main__":
    sys.exit(main())
