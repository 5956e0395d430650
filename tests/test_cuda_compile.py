"""Every .cu compiles alone for every architecture, spills nothing, and multiplies on tensor cores where it should."""

from __future__ import annotations

import re

import cuda_compile
import pytest
from cuda_compile import ARCHITECTURES, SOURCES, Kernel, kernels

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(cuda_compile.nvcc() is None, reason="nvcc is not found: install the CUDA toolkit"),
]
# The compute types of Product<> that tensor cores multiply, as they stand among a kernel's template arguments.
TENSOR_CORE_TYPES = r"[<, ](?:__nv_bfloat16|__half|tf32)[,>]"


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_compiles_without_spills(source: str, architecture: str) -> None:
    for kernel in kernels(source, architecture):
        assert kernel.spilled == 0, f"{kernel.name} for {architecture} spills {kernel.spilled} bytes"
        assert kernel.stack == 0, f"{kernel.name} for {architecture} keeps {kernel.stack} bytes in local memory"
        multiplies = not source.startswith("gaussian") and "_pack<" not in kernel.name
        if multiplies and re.search(TENSOR_CORE_TYPES, kernel.name):
            assert kernel.tensor_core > 0, f"{kernel.name} for {architecture} has no tensor-core instruction"
        if source.startswith("gaussian") and takes_16_bytes(kernel):
            assert kernel.wide > 0, f"{kernel.name} for {architecture} has no access of 16 bytes"


def takes_16_bytes(kernel: Kernel) -> bool:
    """forward_kernel<float, 4>: elements of 4 bytes, 4 at a time."""
    match = re.search(r"<(\w+), (\d+)>", kernel.name)
    assert match, kernel.name
    return int(match[2]) * (4 if match[1] == "float" else 2) == 16


@pytest.mark.parametrize("op", ["gru", "posterior"])
def test_every_compute_type_has_its_kernels(op: str) -> None:
    """So that the test above cannot pass for want of kernels."""
    names = [k.name for source in SOURCES if source.startswith(op) for k in kernels(source, "sm_90a")]
    for direction in ("forward", "backward"):
        for compute in ("__nv_bfloat16", "__half", "tf32", "float"):
            assert any(direction in name and re.search(rf"[<, ]{compute}[,>]", name) for name in names), names
