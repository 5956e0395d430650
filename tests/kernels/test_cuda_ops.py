"""Every op of the cuda backend on the host, through the public functions: the samples that every backend must pass, on
devices of different limits, in four orders of the threads. Each kernel's own sizes stand in its own test."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType

import cuda_host as host
import pytest
import torch
from cuda_host import check, run
from torch import Tensor

from vssn_kernels.backend.table import implementation
from vssn_kernels.testing import (
    RECURRENT,
    ROWS,
    TOLERANCES,
    Sample,
    all_samples,
    assert_all_close,
    assert_equal,
    cotangents,
    expected,
    find_sample,
    gradients,
    strided,
)

pytestmark = pytest.mark.usefixtures("cuda_host")
HALF = (torch.bfloat16, torch.float16)
LIMITS = {"hopper": host.HOPPER, "ampere": host.AMPERE, "consumer_blackwell": host.CONSUMER_BLACKWELL}
# With all that an op takes: a prior, lengths with a 0.
RICH = [
    find_sample("gru_sequence", "lengths_reverse"),
    find_sample("gru_sequence", "wide"),
    find_sample("posterior_sequence", "prior_silu"),
    find_sample("posterior_sequence", "wide"),
    find_sample("gaussian_rsample_kl", "prior"),
]
each_rich = pytest.mark.parametrize("sample", RICH, ids=str)


@pytest.fixture(autouse=True)
def usual_device(cuda_host: ModuleType) -> Iterator[None]:
    """Order and limits as at the start, whatever a test sets."""
    cuda_host.set_order("forward")
    cuda_host.set_device_limits(*host.HOPPER)
    yield
    cuda_host.set_order("forward")
    cuda_host.set_device_limits(*host.HOPPER)


@pytest.mark.parametrize("limits", LIMITS)
@pytest.mark.parametrize("sample", all_samples(), ids=str)
def test_every_sample(sample: Sample, limits: str, cuda_host: ModuleType) -> None:
    cuda_host.set_device_limits(*LIMITS[limits])
    check(sample, torch.float32)


@each_rich
@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_half_precision(sample: Sample, dtype: torch.dtype) -> None:
    check(sample, dtype)


@each_rich
def test_every_order_gives_the_same_bits(sample: Sample, cuda_host: ModuleType) -> None:
    """A barrier too few shows as other bits, or as NaN, in one order at least."""
    moved = sample.to("cpu", torch.float32, requires_grad=True)
    want = run(moved)
    for order in host.ORDERS[1:]:
        cuda_host.set_order(order)
        for got_part, want_part in zip(run(moved), want, strict=True):
            for name, tensor in got_part.items():
                assert_equal(f"{name}, order {order}", tensor, want_part[name])


@each_rich
@pytest.mark.parametrize("kind", ["transposed", "sliced", "batch_first"])
def test_strides(sample: Sample, kind: str) -> None:
    moved = sample.to("cpu", torch.float32, requires_grad=True)
    want_outputs, want_grads = expected(moved)
    views = {name: strided(tensor.detach(), kind).requires_grad_() for name, tensor in moved.tensors.items()}
    viewed = moved.replace(views)
    outputs = viewed.run("cuda")
    grads = {name: strided(grad, kind) for name, grad in cotangents(outputs).items()}
    for_outputs, for_gradients = TOLERANCES["cuda", torch.float32]
    assert_all_close(outputs, want_outputs, for_outputs, kind)
    assert_all_close(gradients(viewed, outputs, grads), want_grads, for_gradients, kind)


def spoil(tensor: Tensor, padding: Tensor) -> Tensor:
    """NaN at padding, in a tensor that has steps."""
    return tensor.masked_fill(padding[..., None], float("nan")) if tensor.shape[:2] == padding.shape else tensor


def test_what_padding_holds_changes_nothing() -> None:
    """NaN beyond the lengths of a sequence, in inputs and in the gradients of outputs."""
    for op, name in (("gru_sequence", "lengths"), ("posterior_sequence", "prior_tanh")):
        sample = find_sample(op, name).to("cpu", torch.float32, requires_grad=True)
        lengths = sample.options["lengths"]
        outputs = sample.run("cuda")
        steps = next(iter(outputs.values())).shape[0]
        padding = torch.arange(steps)[:, None] >= lengths
        grads = cotangents(outputs)
        want = gradients(sample, outputs, grads)
        spoilt = {part: spoil(tensor.detach(), padding) for part, tensor in sample.tensors.items()}
        dirty = sample.replace({name: tensor.requires_grad_() for name, tensor in spoilt.items()})
        dirty_outputs = dirty.run("cuda")
        dirty_grads = {part: spoil(grad, padding) for part, grad in grads.items()}
        for name, tensor in dirty_outputs.items():
            assert_equal(name, tensor.detach(), outputs[name].detach())
        for name, tensor in gradients(dirty, dirty_outputs, dirty_grads).items():
            assert_equal(name, tensor, want[name])


def test_lengths_out_of_range_are_clamped() -> None:
    """On a device nobody checks them: below 0 is 0, above T is T."""
    sample = find_sample("gru_sequence", "plain").to("cpu", torch.float32)
    forward = implementation("cuda", "gru_forward")
    wild, tame = torch.tensor([-5, 99, 2**40]), torch.tensor([0, 5, 5])
    for reverse in (False, True):
        got = forward(*sample.tensors.values(), wild, reverse, True)
        want = forward(*sample.tensors.values(), tame, reverse, True)
        for name, one, other in zip(("output", "h_n"), got, want, strict=False):
            assert_equal(name, one, other)


@pytest.mark.parametrize(("op", "state"), [(op, state) for op in RECURRENT for state in ROWS[op].states])
@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_float32_state_beside_half_precision(op: str, state: str, dtype: torch.dtype) -> None:
    name = {"gru_sequence": "lengths_reverse", "gru_packed": "reverse", "posterior_sequence": "prior_silu"}[op]
    half = find_sample(op, name).to("cpu", dtype)
    tensors = half.tensors | {state: half.tensors[state].float()}
    sample = half.replace({part: tensor.requires_grad_() for part, tensor in tensors.items()})
    outputs, grads = run(sample)
    want_outputs, want_grads = expected(sample)
    for_outputs, for_gradients = TOLERANCES["cuda", dtype]
    assert_all_close(outputs, want_outputs, for_outputs)
    assert_all_close(grads, want_grads, for_gradients)
    assert grads[f"grad of {state}"].dtype == torch.float32
