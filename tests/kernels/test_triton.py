"""The triton backend without a GPU: what it says of itself, and its kernels in Triton's interpreter.

Triton decides at import whether it interprets, so the tests of the kernels run in processes of their own: the tests of
the ops and of the model's recurrences that the `triton` target takes part in, and those of `triton_interpreted.py`.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HERE = os.environ | {"OMP_NUM_THREADS": "1"}
needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="the package triton is not installed (it is for Linux)"
)
VALUES = "values or half or state or alone"
MEMORY = "memory or inputs or strides or expanded or needed or kept or padd"
# test_ops.py in three parts, for several processes. Left out is what takes long in the interpreter and shows nothing
# new there: many draws for a statistic, the larger samples where their values do not matter.
SELECTIONS = {
    "values": ("tests/kernels/test_ops.py", f"triton and ({VALUES})"),
    "memory": ("tests/kernels/test_ops.py", f"triton and ({MEMORY}) and not ({VALUES} or wide or tall)"),
    "registration": ("tests/kernels/test_ops.py", f"triton and not ({VALUES} or {MEMORY} or bare)"),
    "gru": ("tests/kernels/test_gru.py", "triton"),
    "posterior": ("tests/kernels/test_posterior.py", "triton and not draws"),
    "interleaved": ("tests/kernels/test_interleaved.py", "triton"),
    "gaussian": ("tests/kernels/test_gaussian.py", "triton"),
    "ends": ("tests/kernels/test_stress.py", "triton"),
    "not finite": ("tests/kernels/test_not_finite.py", "triton"),
    "recurrences": ("tests/kernels/triton_interpreted.py", "agree or strides"),
    "barriers and functions": ("tests/kernels/triton_interpreted.py", "not agree and not strides"),
}
LONG = (
    "memory",
    "registration",
    "not finite",
    "recurrences",
    "barriers and functions",
    "interleaved",
    "values",
)  # a minute each: make test-interpreter


def run(*command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in HERE.items() if name not in ("VSSN_BACKEND", "TRITON_INTERPRET")}
    arguments = [sys.executable, *command]
    return subprocess.run(
        arguments, env=clean | environment, cwd=ROOT, capture_output=True, text=True, check=False, timeout=1200
    )


@needs_triton
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name in LONG else ()) for name in SELECTIONS]
)
def test_in_the_interpreter(name: str) -> None:
    path, selection = SELECTIONS[name]
    options = ("-q", "-x", "-p", "no:cacheprovider", "-p", "no:xdist", "-m", "not slow")
    result = run("-m", "pytest", *options, path, "-k", selection, TRITON_INTERPRET="1")
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-1000:]
    assert "skipped" not in result.stdout.splitlines()[-1], result.stdout[-2000:]


# ---- Availability ----------------------------------------------------------------------------------------

SAY = """
import sys
before = set(sys.modules)
import torch
by_torch = set(sys.modules)
{prepare}
import vssn_kernels
print("triton" in set(sys.modules) - by_torch)
print(vssn_kernels.backends()["triton"])
"""


def test_importing_does_not_import_triton() -> None:
    for value in ("0", "1"):
        result = run("-c", SAY.format(prepare=""), TRITON_INTERPRET=value)
        assert result.stdout.splitlines()[0] == "False", result.stderr


def test_without_the_package_it_says_what_to_install() -> None:
    result = run("-c", SAY.format(prepare="sys.modules['triton'] = None"), TRITON_INTERPRET="1")
    assert result.stdout.splitlines()[1] == "the package triton is not installed; install it with: pip install triton"


@needs_triton
def test_without_a_gpu_it_says_so() -> None:
    result = run("-c", SAY.format(prepare=""), CUDA_VISIBLE_DEVICES="")
    assert "PyTorch sees no GPU here" in result.stdout.splitlines()[1]


@needs_triton
def test_interpreted_it_is_available_and_takes_cpu_tensors_when_named() -> None:
    code = """
import torch, vssn_kernels
from vssn_kernels.testing import RecordCalls
mu = torch.zeros(2, 3)
def used(**named):
    with RecordCalls() as record:
        vssn_kernels.gaussian_kl(mu, mu, **named)
    return record.calls[0][1][-1]
print(vssn_kernels.backends()["triton"])
print(used(), used(backend="triton"))
with vssn_kernels.use_backend("triton"):
    print(used())
print("interpreter" in vssn_kernels.info())
try:
    vssn_kernels.gaussian_kl(mu.double(), mu.double(), backend="triton")
except ValueError as error:
    print(error)
"""
    result = run("-c", code, TRITON_INTERPRET="1")
    lines = result.stdout.splitlines()
    assert lines[:4] == ["available", "cpu triton", "triton", "True"], result.stderr
    assert "backend 'triton' takes torch.float16, torch.bfloat16, torch.float32, got mu of torch.float64" in lines[4]
