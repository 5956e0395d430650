"""gaussian_rsample_kl and gaussian_kl of the cuda backend on the host: every width of access, dtype and order."""

from __future__ import annotations

from types import ModuleType

import cuda_host as host
import pytest
import torch
from torch import Tensor

from vssn_kernels.testing import (
    ROWS,
    TOLERANCES,
    Sample,
    assert_all_close,
    assert_equal,
    cotangents,
    expected,
    gradients,
    poisoned_empty,
    strided,
)

pytestmark = pytest.mark.usefixtures("cuda_host")
OPS = ("gaussian_rsample_kl", "gaussian_kl")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
each_op = pytest.mark.parametrize("op", OPS)
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def draw(op: str, *shape: int, prior: bool = True) -> Sample:
    names = ["mu", "logvar", "eps"][: 3 if op == OPS[0] else 2] + ["prior_mu", "prior_logvar"] * prior
    return Sample(op, "x".join(map(str, shape)), {name: torch.randn(shape, dtype=torch.float64) for name in names})


def run(sample: Sample) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    with poisoned_empty():
        outputs = sample.run("cuda")
        return outputs, gradients(sample, outputs, cotangents(outputs))


def check(sample: Sample, dtype: torch.dtype) -> None:
    """Outputs and gradients against the plain reference in float64."""
    moved = sample.to("cpu", dtype, requires_grad=True)
    outputs, grads = run(moved)
    want_outputs, want_grads = expected(moved)
    for_outputs, for_gradients = TOLERANCES["cuda", dtype]
    assert_all_close(outputs, want_outputs, for_outputs, str(sample))
    assert_all_close(grads, want_grads, for_gradients, str(sample))


@pytest.mark.parametrize("sample", [sample for op in OPS for sample in ROWS[op].samples()], ids=str)
@each_dtype
def test_every_sample(sample: Sample, dtype: torch.dtype) -> None:
    check(sample, dtype)


# Z around the lanes' accesses: one, 2, 4 and 8 elements; rows that fill no warp, one, and more than a block
@pytest.mark.parametrize("shape", [(3, 1), (5, 2), (7, 6), (300, 4), (33, 8), (9, 40), (2, 100), (3, 131), (2, 260)])
@pytest.mark.parametrize("prior", [False, True], ids=["standard", "prior"])
@each_op
@each_dtype
def test_sizes(op: str, prior: bool, shape: tuple[int, int], dtype: torch.dtype) -> None:
    check(draw(op, *shape, prior=prior), dtype)


@pytest.mark.parametrize("order", host.ORDERS)
@each_op
def test_every_order_gives_the_same_bits(op: str, order: str, cuda_host: ModuleType) -> None:
    sample = draw(op, 70, 24).to("cpu", torch.float32, requires_grad=True)
    cuda_host.set_order("forward")
    want = run(sample)
    cuda_host.set_order(order)
    for got_part, want_part in zip(run(sample), want, strict=True):
        for name, tensor in got_part.items():
            assert_equal(name, tensor, want_part[name])


@pytest.mark.parametrize("kind", ["transposed", "sliced", "batch_first"])
@each_op
@each_dtype
def test_strides(op: str, kind: str, dtype: torch.dtype) -> None:
    """Of inputs and of incoming gradients; "sliced" ones are not aligned either."""
    sample = draw(op, 3, 4, 16).to("cpu", dtype, requires_grad=True)
    want_outputs, want_grads = expected(sample)
    views = {name: strided(tensor.detach(), kind).requires_grad_() for name, tensor in sample.tensors.items()}
    outputs = sample.replace(views).run("cuda")
    grads = {name: strided(grad, kind) for name, grad in cotangents(outputs).items()}
    for_outputs, for_gradients = TOLERANCES["cuda", dtype]
    assert_all_close(outputs, want_outputs, for_outputs, kind)
    assert_all_close(gradients(sample.replace(views), outputs, grads), want_grads, for_gradients, kind)


@each_op
@each_dtype
def test_rows_apart_and_off_by_one_element(op: str, dtype: torch.dtype) -> None:
    """Contiguous rows with room between them, whose first address is a multiple of nothing but one element."""
    sample = draw(op, 5, 16).to("cpu", dtype)

    def off(tensor: Tensor) -> Tensor:
        room = torch.full((5 * 24 + 1,), float("nan"), dtype=dtype)
        view = room[1:].view(5, 24)[:, :16]
        return view.copy_(tensor)

    views = {name: off(tensor).requires_grad_() for name, tensor in sample.tensors.items()}
    check_views = sample.replace(views)
    want_outputs, want_grads = expected(check_views)
    outputs, grads = run(check_views)
    for_outputs, for_gradients = TOLERANCES["cuda", dtype]
    assert_all_close(outputs, want_outputs, for_outputs)
    assert_all_close(grads, want_grads, for_gradients)


@each_op
def test_each_output_and_each_input_alone(op: str) -> None:
    """A loss on one output, a gradient for one input: the absent tensors are neither read nor written."""
    full = draw(op, 6, 12).to("cpu", torch.float32, requires_grad=True)
    want_outputs, _ = expected(full)
    for name in full.tensors:
        frozen = {other: tensor.detach() for other, tensor in full.tensors.items() if other != name}
        sample = full.replace(frozen)
        for output in want_outputs:
            outputs = sample.run("cuda")
            if not outputs[output].requires_grad:
                continue
            got = gradients(sample, outputs, {output: cotangents(outputs)[output]})
            exact = full.to("cpu", torch.float64, requires_grad=True)
            plain = exact.run_plain()
            want = gradients(exact, plain, {output: cotangents(plain)[output]})[f"grad of {name}"]
            assert_all_close(got, {f"grad of {name}": want}, TOLERANCES["cuda", torch.float32][1], output)


def test_extreme_log_variances() -> None:
    """From -60 to 60: the device's fast exp loses bits there, within the tolerance."""
    logvar = torch.linspace(-60, 60, 25, dtype=torch.float64)[:, None]
    zeros = torch.zeros_like(logvar)
    sample = Sample("gaussian_rsample_kl", "extreme", {"mu": zeros, "logvar": logvar, "eps": zeros + 1})
    for row in range(25):
        one = {name: tensor[row : row + 1] for name, tensor in sample.tensors.items()}
        check(sample.replace(one), torch.float32)
