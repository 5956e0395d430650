"""gru_sequence of the cuda backend on the host: every exchange between blocks, dtype, size and order of the fibers."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType
from typing import Any

import cuda_host as host
import pytest
import torch

from vssn_kernels.testing import Sample, assert_equal, gru_samples, strided

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
BLOCK, CLUSTER, GRID = 1, 2, 3
TF32_TOLERANCES = (2e-3, 6e-3)
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
each_direction = pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])


@pytest.fixture(autouse=True)
def kernels(cuda_host: ModuleType) -> Iterator[Any]:
    """The backend's module, with nothing wished for; device and order as they were after each test."""
    from vssn_kernels.backend.cuda import gru

    yield gru
    gru.wish = gru.Wish()
    cuda_host.set_order("forward")
    cuda_host.set_device_limits(*host.HOPPER)


def draw(steps: int, batch: int, hidden: int, reverse: bool = False, lengths: bool = True) -> Sample:
    shapes = {
        "gates_x": (steps, batch, 3 * hidden),
        "h0": (batch, hidden),
        "weight_hh": (3 * hidden, hidden),
        "bias_hh": (3 * hidden,),
    }
    tensors = {name: torch.randn(shape, dtype=torch.float64) for name, shape in shapes.items()}
    tensors["weight_hh"] *= hidden**-0.5
    options: dict[str, Any] = {"reverse": reverse}
    if lengths:
        options["lengths"] = torch.randint(0, steps + 1, (batch,))
    return Sample("gru_sequence", f"{steps}x{batch}x{hidden}", tensors, options)


@pytest.mark.parametrize("sample", gru_samples(), ids=str)
@each_dtype
def test_every_sample(sample: Sample, dtype: torch.dtype) -> None:
    host.check(sample, dtype)


# Units in full tiles and not; batch tiles of 8 and of 16 rows, full and not; clusters and grids whose last block has
# less to do than the others.
@pytest.mark.parametrize(
    ("exchange", "blocks", "row_tiles"),
    [(BLOCK, 0, 1), (BLOCK, 0, 2), (CLUSTER, 2, 1), (CLUSTER, 4, 2), (GRID, 2, 1), (GRID, 3, 2)],
    ids=["block", "block_16_rows", "cluster_2", "cluster_4", "grid_2", "grid_3"],
)
@pytest.mark.parametrize("sizes", [(3, 9, 50), (2, 3, 40), (2, 17, 65)], ids=str)
@each_dtype
def test_every_exchange_in_every_order(
    cuda_host: ModuleType,
    kernels: Any,
    dtype: torch.dtype,
    sizes: tuple[int, int, int],
    exchange: int,
    blocks: int,
    row_tiles: int,
) -> None:
    kernels.wish = kernels.Wish(exchange, blocks, row_tiles)
    sample = draw(*sizes, reverse=sizes[0] == 2)
    first = None
    for order in host.ORDERS:
        cuda_host.set_order(order)
        results = host.without_products(host.check(sample, dtype))
        first = first or results
        for name, tensor in results.items():
            assert_equal(f"{name} ({order})", tensor, first[name])


@each_direction
def test_a_state_that_one_block_sends_while_its_neighbour_still_reads_the_last(
    cuda_host: ModuleType, kernels: Any, reverse: bool
) -> None:
    """Few steps and many units: a block that is ahead must not overwrite what another has yet to read."""
    kernels.wish = kernels.Wish(CLUSTER, 2, 1)
    for hidden in (96, 128):
        for order in host.ORDERS:
            cuda_host.set_order(order)
            host.check(draw(2, 5, hidden, reverse, lengths=False), torch.bfloat16)


@pytest.mark.parametrize("exchange", [BLOCK, CLUSTER, GRID], ids=["block", "cluster", "grid"])
@each_direction
def test_tf32(monkeypatch: pytest.MonkeyPatch, kernels: Any, exchange: int, reverse: bool) -> None:
    monkeypatch.setattr(kernels, "allows_tf32", lambda: True)
    kernels.wish = kernels.Wish(exchange, 2 if exchange != BLOCK else 0, 1)
    host.check(draw(4, 9, 50, reverse), torch.float32, TF32_TOLERANCES)


# Shared memory that does not hold the weights: part of them come from global memory in every step.
@pytest.mark.parametrize(
    ("dtype", "exchange", "hidden"),
    [
        (torch.float32, CLUSTER, 130),
        (torch.float32, GRID, 130),
        (torch.bfloat16, GRID, 200),
        (torch.float16, GRID, 200),
    ],
    ids=str,
)
def test_streamed_weights(cuda_host: ModuleType, kernels: Any, dtype: torch.dtype, exchange: int, hidden: int) -> None:
    cuda_host.set_device_limits(90, 8, 44 * 1024, 16)
    kernels.wish = kernels.Wish(exchange, 2, 1)
    for backward in (False, True):
        assert ", 0 streamed" not in kernels.describe_plan(dtype, 3, hidden, backward)
    host.check(draw(2, 3, hidden), dtype)


def test_a_size_that_no_plan_holds_is_one_clear_error(cuda_host: ModuleType, kernels: Any) -> None:
    cuda_host.set_device_limits(90, 8, 40 * 1024, 16)
    kernels.wish = kernels.Wish(BLOCK)
    with pytest.raises(RuntimeError, match=r"H = 260 does not fit .*use backend='reference'"):
        host.run(draw(2, 3, 260).to("cpu", torch.float32))


@pytest.mark.parametrize("limits", [host.HOPPER, host.AMPERE, host.CONSUMER_BLACKWELL], ids=["90", "80", "120"])
@pytest.mark.parametrize("hidden", [64, 160])
def test_the_plans_own_choice(cuda_host: ModuleType, limits: tuple[int, int, int, int], hidden: int) -> None:
    cuda_host.set_device_limits(*limits)
    host.check(draw(2, 5, hidden), torch.bfloat16)


@pytest.mark.parametrize("exchange", [BLOCK, CLUSTER, GRID], ids=["block", "cluster", "grid"])
def test_float32_states_beside_half_precision(kernels: Any, exchange: int) -> None:
    kernels.wish = kernels.Wish(exchange, 2 if exchange != BLOCK else 0, 1)
    sample = draw(3, 9, 40).to("cpu", torch.bfloat16)
    halves = sample.run("cuda")
    sample.tensors["h0"] = sample.tensors["h0"].float()
    outputs = sample.run("cuda")
    assert outputs["output"].dtype == torch.bfloat16
    assert outputs["h_n"].dtype == torch.float32
    assert_equal("output", outputs["output"], halves["output"])
    assert_equal("h_n", outputs["h_n"].bfloat16(), halves["h_n"])


def test_inputs_of_any_strides(kernels: Any) -> None:
    kernels.wish = kernels.Wish(CLUSTER, 2, 1)
    sample = draw(3, 5, 33)
    plain = host.run(sample.to("cpu", torch.float32, requires_grad=True))
    moved = sample.to("cpu", torch.float32)
    tensors = {name: strided(tensor, "sliced").requires_grad_() for name, tensor in moved.tensors.items()}
    again = host.run(Sample(sample.op, sample.name, tensors, sample.options))
    for name, tensor in host.without_products(again).items():
        assert_equal(name, tensor, host.without_products(plain)[name])


H100 = (90, 132, 227 * 1024, 16)


def test_the_plan_counts_the_clusters_that_fit(cuda_host: ModuleType, kernels: Any) -> None:
    """132 multiprocessors are 8 clusters of 16 on paper; where a device holds 7, eight tiles take two waves."""

    def plan(batch: int) -> str:
        return str(kernels.describe_plan(torch.bfloat16, batch, 512))

    cuda_host.set_device_limits(*H100)
    assert "8 at once" in plan(64)
    assert "teams of 16 blocks" in plan(64)
    cuda_host.set_clusters_at_once(16, 7)
    assert "7 at once" in plan(56)
    assert "7 at once" not in plan(64) or "16 rows" in plan(64), "two waves of 8 rows cost more than one of 16"
    cuda_host.set_clusters_at_once(16, 0)
    assert "teams of 16 blocks" not in plan(8), "a MIG slice that holds none"
    for size in (2, 4, 8):
        cuda_host.set_clusters_at_once(size, 0)
    assert plan(8).startswith("grid")


def test_a_device_that_holds_no_cluster_computes_all_the_same(cuda_host: ModuleType) -> None:
    for size in (2, 4, 8, 16):
        cuda_host.set_clusters_at_once(size, 0)
    host.check(draw(2, 5, 160), torch.bfloat16)
