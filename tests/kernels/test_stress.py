"""The ends of what numbers can be (tests/stress.py): values and gradients are finite and near those of float64, on
every backend; sequences of 100,000 steps; an infinite state is the same kind of answer everywhere."""

from __future__ import annotations

from types import ModuleType

import pytest
import stress
import torch
from counted_run import largest
from torch import Tensor

from vssn_kernels.testing import (
    FULL,
    TOLERANCES,
    Sample,
    Target,
    assert_all_close,
    cotangents,
    expected,
    gradients,
    targets,
)

each_call = pytest.mark.parametrize("name", stress.CALLS)
each_target = pytest.mark.parametrize("target", targets(*FULL), ids=str)
ON_HOST = Target("cuda", "cpu", torch.float32)


def require(name: str, target: Target) -> None:
    ratios = stress.check(name, target)
    largest("worst / tolerance", max(ratios.values()))
    wrong = {part: f"{ratio:.3g}" for part, ratio in ratios.items() if not ratio <= 1}
    assert not wrong, f"{name} on {target}: times the tolerance: {wrong}"


@each_call
@each_target
@pytest.mark.filterwarnings("ignore:(overflow|invalid value|divide by zero) encountered:RuntimeWarning")
def test_a_call_agrees_with_float64(name: str, target: Target) -> None:
    require(name, target)


@each_call
def test_the_kernels_for_cuda(name: str, cuda_host: ModuleType) -> None:
    require(name, ON_HOST)


# ---- Long sequences --------------------------------------------------------------------------------------------------

STEPS = 100_000


def long_sample(op: str) -> Sample:
    source = torch.Generator().manual_seed(5)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=source, dtype=torch.float64)

    return stress.LONG[op](normal, STEPS)


@pytest.mark.slow
@pytest.mark.parametrize("op", stress.LONG)
@pytest.mark.parametrize("dtype", FULL, ids=str)
def test_a_long_sequence(op: str, dtype: torch.dtype) -> None:
    """Errors do not grow with the length; weights' gradients, sums over it, are PyTorch's products."""
    sample = long_sample(op).to("cpu", dtype, requires_grad=True)
    want_outputs, want_grads = expected(sample)
    outputs = sample.run("cpu")
    grads = gradients(sample, outputs, cotangents(outputs))
    for_outputs, for_gradients = TOLERANCES["cpu", dtype]
    assert all(tensor.isfinite().all() for tensor in (*outputs.values(), *grads.values()))
    assert_all_close(outputs, want_outputs, for_outputs)
    assert_all_close(grads, want_grads, for_gradients)
