"""The ops on the CUDA kernels that are built for the host, against the reference."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks import ROOT
from benchmarks.cuda_on_host import AMPERE, CONSUMER_BLACKWELL, HOPPER, ORDERS, flavour, installed, load
from vssn_kernels.testing import (
    TOLERANCES,
    Sample,
    assert_all_close,
    cotangents,
    expected,
    gradients,
    poisoned_empty,
)

__all__ = ["AMPERE", "CONSUMER_BLACKWELL", "HOPPER", "ORDERS", "ROOT", "check", "flavour", "installed", "load", "run"]

Results = tuple[dict[str, Tensor], dict[str, Tensor]]


def run(sample: Sample) -> Results:
    """Outputs and gradients of the cuda backend, on memory that starts as NaN."""
    with poisoned_empty():
        outputs = sample.run("cuda")
        return outputs, gradients(sample, outputs, cotangents(outputs))


def check(sample: Sample, dtype: torch.dtype, tolerances: tuple[float, float] | None = None) -> Results:
    """Outputs and gradients against the plain reference in float64."""
    moved = sample.to("cpu", dtype, requires_grad=True)
    outputs, grads = run(moved)
    want_outputs, want_grads = expected(moved)
    for_outputs, for_gradients = tolerances or TOLERANCES["cuda", dtype]
    assert_all_close(outputs, want_outputs, for_outputs, str(sample))
    assert_all_close(grads, want_grads, for_gradients, str(sample))
    return outputs, grads


def without_products(results: Results) -> dict[str, Tensor]:
    """Less the gradients of weights and biases, whose bits a library decides."""
    return {
        name: tensor for part in results for name, tensor in part.items() if "weight" not in name and "bias" not in name
    }
