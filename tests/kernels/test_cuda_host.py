"""The host implementation of the GPU primitives: what it computes, and that it reports what it is there to report."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from types import ModuleType

import cuda_host as host
import pytest
import torch
from torch import Tensor

from vssn_kernels.testing import assert_close

each_order = pytest.mark.parametrize("order", host.ORDERS)
PRODUCTS = {"bfloat16": (torch.bfloat16, 16), "float16": (torch.float16, 16), "tf32": (torch.float32, 8)}
PRODUCTS["float"] = (torch.float32, 4)


# ---- What it computes ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["bfloat16", "float16"])
def test_conversions_are_those_of_pytorch(name: str, cuda_host: ModuleType) -> None:
    """Every 16-bit pattern widened; floats of all magnitudes, ties, subnormals, infinities and NaN rounded."""
    dtype = getattr(torch, name)
    patterns = torch.arange(65536, dtype=torch.int32).to(torch.int16).view(dtype)
    wide = torch.empty(65536)
    cuda_host.widen(name, patterns.data_ptr(), wide.data_ptr(), 65536)
    assert torch.equal(wide.nan_to_num(7), patterns.float().nan_to_num(7))
    finite = patterns[patterns.isfinite()].float()
    halfway = (finite[1:] + finite[:-1]) / 2
    special = torch.tensor([math.inf, -math.inf, math.nan, 65519.99, 65520.0, -0.0, 3.4e38])
    floats = torch.cat((torch.arange(0, 2**32, 10007).to(torch.int32).view(torch.float32), finite, halfway, special))
    rounded = torch.empty(len(floats), dtype=dtype)
    cuda_host.round(name, floats.data_ptr(), rounded.data_ptr(), len(floats))
    want = floats.to(dtype)
    same = (rounded.view(torch.int16) == want.view(torch.int16)) | (rounded.isnan() & want.isnan())
    assert same.all(), floats[~same][:5]


def test_tf32_keeps_ten_bits_and_rounds_ties_away(cuda_host: ModuleType) -> None:
    step = 2.0**-10
    values = torch.tensor([1 + step / 2, -1 - step / 2, 1 + step / 2 - 2.0**-23, 1 + step, math.inf, math.nan])
    rounded = torch.empty(6)
    cuda_host.round("tf32", values.data_ptr(), rounded.data_ptr(), 6)
    want = torch.tensor([1 + step, -1 - step, 1.0, 1 + step, math.inf, math.nan])
    assert torch.equal(rounded.nan_to_num(7), want.nan_to_num(7))


@pytest.mark.parametrize("name", ["sigmoid", "tanh", "softplus"])
def test_math_is_accurate(name: str, cuda_host: ModuleType) -> None:
    points = [*torch.linspace(-30, 30, 6001).tolist(), 1e-8, -1e-4, 0.1, 0.0999, 1e4, -1e4]
    exact = getattr(torch if name != "softplus" else torch.nn.functional, name)(torch.tensor(points).double())
    got = torch.tensor([cuda_host.math(name, x) for x in points]).double()
    assert (got - exact).abs().max() / exact.abs().clamp(min=1).max() < 3e-7
    assert math.isnan(cuda_host.math(name, math.nan))


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize(("rows", "depth"), [(16, 99), (13, 3), (0, 5), (99, -2)])
@pytest.mark.parametrize("kind", PRODUCTS)
def test_product(kind: str, rows: int, depth: int, transposed: bool, cuda_host: ModuleType) -> None:
    """C + A B^T through the lanes' registers; rows and depths beyond those given count as 0 and are not read."""
    dtype, k = PRODUCTS[kind]
    a = torch.randn(16, k).to(dtype)
    a[max(rows, 0) :] = math.nan
    a[:, max(depth, 0) :] = math.nan
    a = a.t().contiguous().t() if transposed else a
    b, c = torch.randn(8, k).to(dtype), torch.randn(16, 8)
    want = c.double() + a.nan_to_num(0).double() @ b.double().t()
    assert not cuda_host.product(kind, a.data_ptr(), *a.stride(), rows, depth, b.data_ptr(), c.data_ptr())
    assert_close("C", c, want, 2e-3 if kind == "tf32" else 1e-6)


@each_order
def test_blocks_hand_a_state_round(order: str, cuda_host: ModuleType) -> None:
    """Through a cluster's shared memory and through flags of a cooperative grid: the same bits in every order."""
    cuda_host.set_order(order)
    want = torch.arange(1.0, 129).view(4, 32)
    for _ in range(7):
        want = want + want.roll(1, 0) / 2
    for cluster in (True, False):
        out = torch.full((4, 32), math.nan)
        assert not cuda_host.hand_round(out.data_ptr(), cluster, 7)
        assert torch.equal(out, want)


# ---- What it must report -------------------------------------------------------------------------


def exchange(module: ModuleType, barrier: bool) -> Tensor:
    out = torch.zeros(96)
    assert not module.exchange(out.data_ptr(), 96, barrier)
    return out


@each_order
def test_a_planted_missing_barrier_is_found(order: str, cuda_host: ModuleType) -> None:
    """Shared memory starts as NaN, so a thread that reads before another one has written shows in every order."""
    cuda_host.set_order(order)
    assert torch.equal(exchange(cuda_host, True), torch.arange(96.0, 0, -1))
    assert exchange(cuda_host, False).isnan().any()


def test_orders_differ(cuda_host: ModuleType) -> None:
    """Which threads read too early depends on the order: what one order hides another one shows."""
    early = {}
    for order in host.ORDERS:
        cuda_host.set_order(order)
        early[order] = tuple(exchange(cuda_host, False).isnan().tolist())
    assert len(set(early.values())) == len(host.ORDERS)


def test_an_unknown_order_raises(cuda_host: ModuleType) -> None:
    with pytest.raises(ValueError, match="forward, reverse, shuffle_warps or shuffle_threads, got sideways"):
        cuda_host.set_order("sideways")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("barrier_of_some", ("deadlock", "63 of 64 threads", "sync_block at planted.cu:", "1 have ended")),
        ("barriers_at_two_places", ("came to sync_block at planted.cu:", "another one came to sync_block")),
        ("shuffle_of_some_lanes", ("deadlock", "32 of 64 threads", "shuffle_xor at planted.cu:")),
        ("two_collectives", ("sync_warp at planted.cu:", "shuffle_xor at planted.cu:")),
        ("flag_never_reached", ("deadlock", "1 of 64 threads, thread 0 first, wait in wait_acquire at planted.cu:")),
        ("arrive_without_wait", ("between cluster_arrive and cluster_wait",)),
        ("copy_without_wait", ("ended between copy_l2 and await_copies",)),
        ("misaligned", ("store_l2 at planted.cu:", "not a multiple of 16 bytes")),
    ],
)
@each_order
def test_a_planted_error_is_reported(name: str, words: tuple[str, ...], order: str, cuda_host: ModuleType) -> None:
    cuda_host.set_order(order)
    data = aligned_zeros(64)
    report = cuda_host.plant(name, data.data_ptr(), 64)
    assert all(word in report for word in words), report


def aligned_zeros(count: int) -> Tensor:
    """From a multiple of 16 bytes on, as copies need it."""
    memory = torch.zeros(count + 4)
    return memory[-(memory.data_ptr() // 4) % 4 :][:count]


@each_order
def test_a_copy_is_nan_until_it_is_waited_for(order: str, cuda_host: ModuleType) -> None:
    cuda_host.set_order(order)
    data = aligned_zeros(64)
    data[4] = 7
    assert not cuda_host.plant("copy_read_too_early", data.data_ptr(), 64)
    assert data[0].isnan()
    assert data[1] == 7


def test_what_the_device_would_refuse_is_refused(cuda_host: ModuleType) -> None:
    """A cluster before compute capability 9.0, and more shared memory than a block may have."""
    out = torch.zeros(4, 32)
    try:
        cuda_host.set_device_limits(*host.AMPERE)
        assert "cluster" in cuda_host.hand_round(out.data_ptr(), True, 1)
        cuda_host.set_device_limits(90, 8, 64, 16)
        assert "shared memory" in cuda_host.hand_round(out.data_ptr(), True, 1)
        cuda_host.set_device_limits(90, 1, 227 * 1024, 16)
        assert not cuda_host.hand_round(out.data_ptr(), False, 1)
    finally:
        cuda_host.set_device_limits(*host.HOPPER)


@pytest.mark.skipif(host.flavour() == "sanitized", reason="AddressSanitizer ends the process: see the test below")
def test_writes_out_of_place_show_without_a_sanitizer_too(cuda_host: ModuleType) -> None:
    cuda_host.set_order("forward")
    data = torch.zeros(64)
    assert "behind its shared memory" in cuda_host.plant("write_behind_shared", data.data_ptr(), 64)
    assert "written after that block had ended" in cuda_host.plant("write_to_ended_block", data.data_ptr(), 64)


PLANT = """
import sys, torch
import cuda_host
module = cuda_host.load("sanitized")
data = torch.zeros(64)
print("started", flush=True)
module.plant(sys.argv[1], data.data_ptr(), 64)
print("missed")
"""


@pytest.mark.skipif(host.flavour() != "sanitized", reason="needs the sanitized build: make sanitize runs it")
@pytest.mark.parametrize(
    ("name", "finding"),
    [
        ("read_behind_shared", "heap-buffer-overflow"),
        ("write_behind_shared", "heap-buffer-overflow"),
        ("read_behind_global", "heap-buffer-overflow"),
        ("write_to_ended_block", "use-after-poison"),
    ],
)
def test_a_planted_access_out_of_bounds_is_found(name: str, finding: str) -> None:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join((str(host.ROOT), str(host.ROOT / "tests")))}
    result = subprocess.run(
        [sys.executable, "-c", PLANT, name], env=environment, capture_output=True, text=True, check=False
    )
    assert result.stdout.strip() == "started", result.stdout + result.stderr
    assert finding in result.stderr, result.stderr[-2000:]
    assert name in result.stderr, "the report names the kernel"
