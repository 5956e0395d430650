"""python -m benchmarks.gpu: all that needs a GPU, in under ten minutes, offline, on the Python and PyTorch at hand.

Builds and installs this checkout, runs the tests of the cuda and triton backends on the device, the kernels under
compute-sanitizer (memcheck, racecheck) at small sizes, then times them beside PyTorch's, appends the rows to
benchmarks/results/gpu/times.csv and prints a short table last. Exit status 0 only if every step passed.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import functools
import importlib.metadata
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

import vssn_kernels
from benchmarks.results import ROOT, commit
from benchmarks.timing import interleave, median_ratio, quantile
from vssn_kernels.version import __version__

RESULTS = ROOT / "benchmarks" / "results" / "gpu" / "times.csv"
BUDGET = 570  # seconds, for everything
TESTS = ("test_cuda_device", "test_ops", "test_gru", "test_posterior", "test_gaussian")
LAUNCHES = 10  # of a sample, between two synchronisations
STEPS, BATCH = 64, 32
HIDDEN = (64, 256, 512, 1024)
LATENT = ((64, 16), (256, 64), (512, 100))  # (M, Z)


class Step(NamedTuple):
    """What one step came to."""

    name: str
    status: str  # "passed", "failed", "out of time" or why it was left out
    seconds: float


# ---- Build, tests, sanitizers ------------------------------------------------------------------------------------


def run(name: str, command: list[str], seconds: float, **variables: str) -> Step:
    """One command in its own process; its output goes where ours goes."""
    begin = time.perf_counter()
    print(f"\n== {name}: {' '.join(command)}", flush=True)
    if seconds <= 0:
        return Step(name, "out of time", 0)
    try:
        result = subprocess.run(command, cwd=ROOT, env=os.environ | variables, timeout=seconds, check=False)
    except subprocess.TimeoutExpired:
        return Step(name, "out of time", time.perf_counter() - begin)
    return Step(name, "passed" if result.returncode == 0 else "failed", time.perf_counter() - begin)


def build(seconds: float) -> Step:
    """This checkout, into the Python that runs this."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-build-isolation", "--no-deps", "-e", "."]
    return run("build", command, seconds, VSSN_BUILD_CUDA="1", PIP_BREAK_SYSTEM_PACKAGES="1")


def tests(seconds: float) -> Step:
    """The tests of the two backends, on the device."""
    if importlib.util.find_spec("pytest") is None:
        return Step("tests", "left out: pytest is not installed", 0)
    workers = ["-n", "4"] if importlib.util.find_spec("xdist") else []
    files = [f"tests/{name}.py" for name in TESTS]
    chosen = [
        "-k",
        "test_cuda_device or cuda-cuda or triton-cuda",
        "-m",
        "not slow",
        "-q",
        "-o",
        "addopts=",
        "-p",
        "no:cacheprovider",
    ]
    return run("tests", [sys.executable, "-m", "pytest", *workers, *files, *chosen], seconds)


def sanitizers(until: float) -> Iterator[Step]:
    """Every kernel and variant at small sizes, twice."""
    tool = shutil.which("compute-sanitizer") or shutil.which("compute-sanitizer", path="/usr/local/cuda/bin")
    for check in ("memcheck", "racecheck"):
        if tool is None:
            yield Step(check, "left out: compute-sanitizer is not found", 0)
            continue
        command = [tool, "--tool", check, "--error-exitcode", "9", sys.executable, "-m", "benchmarks.gpu", "--small"]
        # Each tensor in memory of its own, so that a step past its end is seen.
        yield run(check, command, min(120, until - time.monotonic()), PYTORCH_NO_CUDA_MEMORY_CACHING="1")


# ---- Problems ----------------------------------------------------------------------------------------------------


def gru_tensors(steps: int, batch: int, hidden: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """gates_x [T, B, 3H], h0 [B, H], weight_hh [3H, H], bias_hh [3H]"""
    shapes = ((steps, batch, 3 * hidden), (batch, hidden), (3 * hidden, hidden), (3 * hidden,))
    gates_x, h0, weight, bias = (torch.randn(shape, device="cuda", dtype=torch.float32) for shape in shapes)
    return tuple(t.to(dtype).requires_grad_() for t in (gates_x, h0, weight / hidden**0.5, bias))


def posterior_tensors(steps: int, batch: int, width: int, latent: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """context [T, B, M], z0 [B, Z], eps [T, B, Z], weight_z [M, Z], weight_out [2Z, M], bias_out [2Z]"""
    shapes: tuple[tuple[int, ...], ...] = ((steps, batch, width), (batch, latent), (steps, batch, latent))
    shapes += ((width, latent), (2 * latent, width), (2 * latent,))
    tensors = [torch.randn(shape, device="cuda", dtype=torch.float32) for shape in shapes]
    tensors[3] /= 2 * latent**0.5
    tensors[4] /= 2 * width**0.5
    return tuple(t.to(dtype).requires_grad_() for t in tensors)


@contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """PyTorch's setting for float32 products, by whichever of its two names this version has."""
    matmul = torch.backends.cuda.matmul
    newer = hasattr(matmul, "fp32_precision")
    before = matmul.fp32_precision if newer else matmul.allow_tf32
    if newer:
        matmul.fp32_precision = "tf32" if allowed else "ieee"
    else:
        matmul.allow_tf32 = allowed
    try:
        yield
    finally:
        if newer:
            matmul.fp32_precision = before
        else:
            matmul.allow_tf32 = before


COMPUTE = {"float32": torch.float32, "tf32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def small() -> None:
    """Every op, variant and dtype once, forward and backward: what runs under compute-sanitizer."""
    from vssn_kernels.backend.cuda import gru, posterior  # imports the extension

    lengths = torch.tensor([3, 0, 2], device="cuda")

    def both(function: Callable[..., tuple[Tensor, ...]], tensors: tuple[Tensor, ...], **options: object) -> None:
        outputs = function(*tensors, backend="cuda", **options)
        torch.autograd.grad([out.float().square().sum() for out in outputs], tensors)

    clusters = torch.cuda.get_device_capability() >= (9, 0)
    for compute, dtype in COMPUTE.items():
        with tf32(compute == "tf32"):
            for exchange in (0, 1, 2, 3) if clusters else (0, 1, 3):
                gru.wish = gru.Wish(exchange)
                both(
                    vssn_kernels.gru_sequence, gru_tensors(3, 3, 33, dtype), lengths=lengths, reverse=exchange % 2 == 1
                )
            gru.wish = gru.Wish()
            for variant in posterior.VARIANTS:
                posterior.variant = variant
                try:
                    both(vssn_kernels.posterior_sequence, posterior_tensors(3, 3, 18, 5, dtype), lengths=lengths)
                except RuntimeError as error:
                    print(f"posterior {compute} {variant}: {error}")
            posterior.variant = "choice"
            flat = [torch.randn(5, 24, device="cuda", dtype=dtype, requires_grad=True) for _ in range(5)]
            both(vssn_kernels.gaussian_rsample_kl, tuple(flat))
    torch.cuda.synchronize()
    print("done")


# ---- Times -------------------------------------------------------------------------------------------------------


class Result(NamedTuple):
    """One contestant in one case."""

    case: str
    run: str  # forward, or forward and backward
    contestant: str
    status: str
    us: float  # a step of the recurrence; of an elementwise op, the call
    q20: float
    q80: float
    ratio: float  # to the first contestant of the case that ran
    error: float  # relative, from the first contestant's results


def driver() -> str:
    """The version of the driver."""
    try:
        command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[0].strip()
    except (OSError, subprocess.CalledProcessError, IndexError):
        return ""


def triton_version() -> str:
    try:
        return importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        return ""


Call = Callable[[], tuple[Tensor, ...]]


def timed(case: str, what: str, calls: dict[str, Call | str], divide_by: int, seconds: float) -> Iterator[Result]:
    """Contestants in turns; a text in place of a call says why it is not there."""

    def repeated(call: Call) -> Callable[[], None]:
        def several() -> None:
            for _ in range(LAUNCHES):
                call()
            torch.cuda.synchronize()

        return several

    ready: dict[str, tuple[Call, tuple[Tensor, ...]]] = {}
    for name, call in calls.items():
        if isinstance(call, str):
            yield Result(case, what, name, call, 0, 0, 0, 0, 0)
            continue
        try:
            ready[name] = call, tuple(t.detach().double() for t in call())
        except (RuntimeError, ValueError) as error:
            yield Result(case, what, name, f"failed: {error}".partition("\n")[0], 0, 0, 0, 0, 0)
    if not ready:
        return
    samples = interleave([repeated(call) for call, _ in ready.values()], seconds, 5)
    scale = 1e6 / LAUNCHES / divide_by
    first = next(iter(ready.values()))[1]
    for (name, (_, outputs)), found in zip(ready.items(), samples, strict=True):
        difference = max(
            float((one - other).norm() / other.norm().clamp(min=1e-30))
            for one, other in zip(outputs, first, strict=True)
        )
        low, middle, high = (scale * quantile(found, q) for q in (0.2, 0.5, 0.8))
        yield Result(case, what, name, "ok", middle, low, high, median_ratio(found, samples[0]), difference)


class Contestant(NamedTuple):
    """A function of tensors, all of which need gradients."""

    function: Callable[..., tuple[Tensor, ...]]
    tensors: tuple[Tensor, ...]


def passes(contestant: Contestant) -> dict[str, Call]:
    """The function without autograd, and with the gradients of all its tensors."""
    function, tensors = contestant
    with torch.no_grad():
        weights = tuple(torch.ones_like(out) for out in function(*tensors))

    def forward() -> tuple[Tensor, ...]:
        with torch.no_grad():
            return function(*tensors)

    def both() -> tuple[Tensor, ...]:
        return torch.autograd.grad(function(*tensors), tensors, weights)

    return {"forward": forward, "forward and backward": both}


def contest(case: str, contestants: dict[str, Contestant | str], divide_by: int, seconds: float) -> Iterator[Result]:
    """All passes of a case; `seconds` for each."""
    calls: dict[str, dict[str, Call] | str] = {}
    for name, contestant in contestants.items():
        try:
            calls[name] = contestant if isinstance(contestant, str) else passes(contestant)
        except (RuntimeError, ValueError) as error:
            calls[name] = f"failed: {error}".partition("\n")[0]
    for what in ("forward", "forward and backward"):
        of_pass = {name: found if isinstance(found, str) else found[what] for name, found in calls.items()}
        yield from timed(case, what, of_pass, divide_by, seconds)


def with_backends(op: Callable[..., tuple[Tensor, ...]], tensors: tuple[Tensor, ...]) -> dict[str, Contestant | str]:
    """The op on each of our GPU backends, or why not."""
    status = vssn_kernels.backends()
    return {
        f"vssn {name}": Contestant(functools.partial(op, backend=name), tensors)
        if status[name] == "available"
        else status[name]
        for name in ("cuda", "triton")
    }


def layer(x: Tensor, h0: Tensor, *weights: Tensor, backend: str) -> tuple[Tensor, ...]:
    """What torch.nn.GRU does, as it is done with this library. weights: weight_ih, weight_hh, bias_ih, bias_hh"""
    weight_ih, weight_hh, bias_ih, bias_hh = weights
    gates_x = nn.functional.linear(x, weight_ih, bias_ih)
    return vssn_kernels.gru_sequence(gates_x, h0, weight_hh, bias_hh, backend=backend)


def cudnn(hidden: int, dtype: torch.dtype) -> tuple[Contestant, tuple[Tensor, ...]]:
    """torch.nn.GRU of as many inputs as units, and its tensors for `layer`."""
    net = nn.GRU(hidden, hidden).to("cuda", dtype)
    x = torch.randn(STEPS, BATCH, hidden, device="cuda").to(dtype).requires_grad_()
    h0 = torch.randn(BATCH, hidden, device="cuda").to(dtype).requires_grad_()

    def function(x: Tensor, h0: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
        output, h_n = net(x, h0[None])
        return output, h_n[0]

    tensors = (x, h0, *(getattr(net, f"{name}_l0") for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")))
    return Contestant(function, tensors), tensors


def measure(seconds: float) -> Iterator[Result]:
    """The GRU layer beside cuDNN's, the posterior, the elementwise op beside a copy."""
    each = seconds / (2 * 3 * len(HIDDEN) + 2 * 2 * len(LATENT) + 6)
    for hidden in HIDDEN:
        for compute in ("float32", "tf32", "bfloat16"):
            with tf32(compute == "tf32"):
                peer, tensors = cudnn(hidden, COMPUTE[compute])
                contestants = with_backends(layer, tensors) | {"torch.nn.GRU (cuDNN)": peer}
                case = f"gru {compute} T={STEPS} B={BATCH} H={hidden}"
                yield from contest(case, contestants, STEPS, each)
    for width, latent in LATENT:
        for compute in ("float32", "bfloat16"):
            tensors = posterior_tensors(STEPS, BATCH, width, latent, COMPUTE[compute])
            case = f"posterior {compute} T={STEPS} B={BATCH} M={width} Z={latent}"
            yield from contest(case, with_backends(vssn_kernels.posterior_sequence, tensors), STEPS, each)
    for compute in ("float32", "bfloat16"):
        case = f"gaussian {compute} N=2^18 Z=64"
        flat = tuple(torch.randn(1 << 18, 64, device="cuda", dtype=COMPUTE[compute]).requires_grad_() for _ in range(5))
        yield from contest(case, with_backends(vssn_kernels.gaussian_rsample_kl, flat), 1, each)
        # Forward reads five tensors and writes one: this copy moves as many bytes.
        source = torch.randn(3 << 18, 64, device="cuda", dtype=COMPUTE[compute])
        target = torch.empty_like(source)

        def copy(target: Tensor = target, source: Tensor = source) -> tuple[Tensor, ...]:
            return (target.copy_(source),)

        yield from timed(case, "forward", {"copy of as many bytes": copy}, 1, each)


# ---- Report ------------------------------------------------------------------------------------------------------


def append(results: list[Result]) -> None:
    """To RESULTS, each row with what it was measured on."""
    where = {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "commit": commit(),
        "device": torch.cuda.get_device_name(),
        "driver": driver(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": triton_version(),
        "vssn": __version__,
    }
    fields = [*where, *Result._fields]
    new = not RESULTS.exists()
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    with RESULTS.open("a", newline="") as file:
        writer = csv.DictWriter(file, fields, lineterminator="\n")
        if new:
            writer.writeheader()
        for result in results:
            numbers = {k: float(f"{v:.5g}") if isinstance(v, float) else v for k, v in result._asdict().items()}
            writer.writerow(where | numbers)


def table(results: list[Result]) -> str:
    """One line for a case and pass: microseconds of every contestant; of a recurrence, for one step."""
    lines = []
    for case, what in dict.fromkeys((result.case, result.run) for result in results):
        found = [result for result in results if (result.case, result.run) == (case, what)]
        parts = [f"{r.contestant} {r.us:.3g} us" if r.status == "ok" else f"{r.contestant} -" for r in found]
        lines.append(f"{case}, {what}: {', '.join(parts)}")
    return "\n".join(lines)


def times() -> int:
    """Measures, appends and prints. In a process of its own, which imports what was just built."""
    results: list[Result] = []
    for result in measure(float(os.environ.get("VSSN_GPU_SECONDS", "120"))):
        print(result, flush=True)
        results.append(result)
    append(results)
    print(f"\n{table(results)}")
    return 1 if any(result.status.startswith("failed") for result in results) else 0


def main() -> int:
    """All steps, or the one that the command line names."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--small", action="store_true", help="only run every kernel once, for compute-sanitizer")
    parser.add_argument("--times", action="store_true", help="only the times, of what is built")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print(f"benchmarks.gpu: PyTorch {torch.__version__} finds no CUDA device here", file=sys.stderr)
        return 2
    if arguments.small:
        small()
        return 0
    if arguments.times:
        return times()
    until = time.monotonic() + BUDGET
    steps = [build(240)]
    if steps[0].status == "passed":
        steps.append(tests(min(180, until - time.monotonic())))
        steps += sanitizers(until - 120)
        seconds = until - time.monotonic()
        command = [sys.executable, "-m", "benchmarks.gpu", "--times"]
        steps.append(run("times", command, seconds, VSSN_GPU_SECONDS=str(min(120.0, max(10.0, seconds / 2 - 20)))))
    print("\n" + "\n".join(f"{step.name:10} {step.status} ({step.seconds:.0f} s)" for step in steps))
    return 0 if all(step.status == "passed" for step in steps) else 1


if __name__ == "__main__":
    sys.exit(main())
