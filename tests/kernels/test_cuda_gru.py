"""gru_sequence of the cuda backend on the host: every exchange between blocks, dtype, size and order of the fibers."""

from __future__ import annotations

import collections
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


# ---- Batch tiles that take turns ------------------------------------------------------------------


def turns(kernels: Any, sample: Sample, dtype: torch.dtype, at_once: int, row_tiles: int = 1) -> None:
    """Wishes for so many tiles at once, and sees that forward's plan, or with one tile backward's too, has them."""
    kernels.wish = kernels.Wish(GRID, 4, row_tiles, at_once)
    _, batch, width = sample.tensors["gates_x"].shape
    for backward in (False, True):
        assert f", {at_once} tiles at once" in kernels.describe_plan(dtype, batch, width // 3, backward)


# An even number of tiles, an odd one, a last one that is not full; one round of turns, and several of which the last is
# not full; pairs, and single elements, which take no turns but have the same plan.
@pytest.mark.parametrize(("at_once", "row_tiles"), [(2, 1), (3, 1), (4, 2)], ids=str)
@pytest.mark.parametrize("sizes", [(3, 16, 136), (2, 67, 136), (3, 27, 131)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_tiles_that_take_turns_in_every_order(
    cuda_host: ModuleType, kernels: Any, dtype: torch.dtype, sizes: tuple[int, int, int], at_once: int, row_tiles: int
) -> None:
    """As the reference, and with the bits that the same tiles have one behind the other."""
    sample = draw(*sizes, reverse=sizes[0] == 2)
    kernels.wish = kernels.Wish(GRID, 4, row_tiles, 1)
    alone = host.without_products(host.run(sample.to("cpu", dtype, requires_grad=True)))
    turns(kernels, sample, dtype, at_once, row_tiles)
    for order in host.ORDERS:
        cuda_host.set_order(order)
        results = host.without_products(host.check(sample, dtype))
        # Backward, tiles of 16 rows take no turns: there the sums have another order.
        names = results if row_tiles == 1 else ("output", "h_n")
        for name in names:
            assert_equal(f"{name} ({order})", results[name], alone[name])


@each_direction
def test_turns_of_full_sequences_and_of_none(kernels: Any, reverse: bool) -> None:
    for dtype in DTYPES:
        sample = draw(3, 20, 136, reverse, lengths=False)
        turns(kernels, sample, dtype, 3)
        host.check(sample, dtype)
        # A first round whose rows have no steps, behind it one whose last rows have.
        sample = draw(3, 70, 136, reverse)
        sample.options["lengths"][:48] = 0
        sample.options["lengths"][66:] = torch.tensor([3, 0, 1, 2])
        host.check(sample, dtype)


@each_direction
def test_tf32_in_turns(monkeypatch: pytest.MonkeyPatch, kernels: Any, reverse: bool) -> None:
    monkeypatch.setattr(kernels, "allows_tf32", lambda: True)
    for row_tiles in (1, 2):
        kernels.wish = kernels.Wish(GRID, 2, row_tiles, 3)
        host.check(draw(4, 27, 72, reverse), torch.float32, TF32_TOLERANCES)


def test_turns_without_a_gradient_of_the_first_state(cuda_host: ModuleType, kernels: Any) -> None:
    """Which nothing is made of; all the same each block waits for what was sent: its next tiles' sums come to where it
    reads those of these."""
    cuda_host.set_device_limits(90, 4, 227 * 1024, 16)  # one team, so several rounds of tiles
    sample = draw(3, 40, 136)
    turns(kernels, sample, torch.bfloat16, 2)
    moved = sample.to("cpu", torch.bfloat16, requires_grad=True)
    (output,) = (moved.run("cuda")["output"],)
    gates_x, h0 = moved.tensors["gates_x"], moved.tensors["h0"]
    with_h0 = torch.autograd.grad(output.float().sum(), (gates_x, h0))[0]
    moved.tensors["h0"] = h0.detach()
    (output,) = (moved.run("cuda")["output"],)
    cuda_host.start_trace()
    (alone,) = torch.autograd.grad(output.float().sum(), (gates_x,))
    events = collections.Counter(cuda_host.end_trace())
    assert_equal("gates_x", alone, with_h0)
    counters = {counter for what, counter in events if what == "release"}
    assert len(counters) == 2
    for counter in counters:
        assert events["wait", counter] == events["release", counter]


@pytest.mark.parametrize("hidden", [33, 47, 63, 64])
def test_single_elements_of_few_unit_tiles_in_one_block(cuda_host: ModuleType, kernels: Any, hidden: int) -> None:
    """Of pairs two warps share a unit tile; single elements, of odd sizes or of rows that start anywhere, have no such
    warps."""
    sample = draw(4, 21, hidden)
    if hidden == 64:
        wide = torch.randn(4, 21, 3 * 64 + 1, dtype=torch.float64)
        sample.tensors["gates_x"] = wide[..., :-1]
    for dtype in (torch.bfloat16, torch.float16):
        assert "block" in kernels.describe_plan(dtype, 21, hidden, False)
        for order in host.ORDERS:
            cuda_host.set_order(order)
            host.check(sample, dtype)


@pytest.mark.parametrize("at_once", [1, 2, 3, 4])
@each_dtype
def test_products_of_other_tiles_stand_between_a_release_and_its_wait(
    cuda_host: ModuleType, kernels: Any, dtype: torch.dtype, at_once: int
) -> None:
    """Of each counter in each step: a block releases, multiplies for the others, waits. One tile alone has nothing to
    do in between; forward it takes no counter."""
    sample = draw(5, 8 * at_once, 136, lengths=False).to("cpu", dtype, requires_grad=True)
    turns(kernels, sample, dtype, at_once)
    cuda_host.start_trace()
    outputs = sample.run("cuda")
    passes = [cuda_host.end_trace()]
    cuda_host.start_trace()
    torch.autograd.grad(outputs["output"].float().sum(), (sample.tensors["gates_x"], sample.tensors["h0"]))
    passes.append(cuda_host.end_trace())
    for backward, events in enumerate(passes):
        products: dict[int, int] = {}  # since each counter's release
        between: dict[int, list[int]] = {}
        for what, counter in events:
            if what == "release":
                products[counter] = 0
            elif what == "wait":
                between.setdefault(counter, []).append(products[counter])
            else:
                products = {other: count + 1 for other, count in products.items()}
        assert sorted(between) == ([] if at_once == 1 and not backward else list(range(at_once)))
        for counter, counts in between.items():
            assert len(counts) == 5, "as many exchanges as steps"
            # In turns forward begins with an exchange of the first states, and backward ends with one of what they get.
            of_steps = counts if at_once == 1 else counts[:-1] if backward else counts[1:]
            assert all((count > 0) == (at_once > 1) for count in of_steps), (counter, counts)


@pytest.mark.parametrize("row_tiles", [1, 2])
@pytest.mark.parametrize("hidden", [72, 75], ids=["pairs", "single_elements"])
@each_dtype
def test_a_grid_s_buffers_come_round(
    cuda_host: ModuleType, kernels: Any, dtype: torch.dtype, hidden: int, row_tiles: int
) -> None:
    """A state of a grid is its own flag: over more steps than it has buffers, tile after tile, in every order."""
    cuda_host.set_device_limits(90, 6, 227 * 1024, 16)  # two teams of three blocks
    kernels.wish = kernels.Wish(GRID, 3, row_tiles, 1)
    sample = draw(19, 43, hidden)
    for order in host.ORDERS:
        cuda_host.set_order(order)
        host.check(sample, dtype)


@each_dtype
def test_a_grid_hands_on_every_nan(kernels: Any, dtype: torch.dtype) -> None:
    """Also the one of all ones, which is what a buffer is blank with."""
    kernels.wish = kernels.Wish(GRID, 3, 1, 1)
    sample = draw(11, 9, 40, lengths=False).to("cpu", dtype)
    bits = torch.int32 if dtype == torch.float32 else torch.int16
    sample.tensors["h0"][4] = torch.full((40,), -1, dtype=bits).view(dtype)
    output = sample.run("cuda")["output"]
    assert output[:, 4].isnan().all()
    assert output[:, [0, 1, 2, 3, 5, 6, 7, 8]].isfinite().all()


def test_the_plan_lets_tiles_take_turns_where_teams_have_several(cuda_host: ModuleType, kernels: Any) -> None:
    """In full float32, B = 32, H = 1024 on an H100: two teams of 64 blocks, two tiles of 8 rows each."""

    def plan(batch: int, at_once: int = 0, backward: bool = True) -> tuple[str, int]:
        kernels.wish = kernels.Wish(tiles_at_once=at_once)
        text = str(kernels.describe_plan(torch.float32, batch, 1024, backward))
        return text, int(text.rpartition("estimated ")[2].split()[0])

    cuda_host.set_device_limits(*H100)
    text, cycles = plan(32)
    assert "2 teams of 64 blocks" in text
    assert "8 rows, 2 tiles at once" in text
    one_by_one, cycles_of_one = plan(32, 1)
    assert "8 rows, 1 tiles at once" in one_by_one
    assert cycles < 2 * cycles_of_one, "two waves before, now one"
    assert "1 tiles at once" in plan(16)[0], "a tile for each team: nothing to hide behind"
    assert "1 tiles at once" in plan(32, backward=False)[0], "a state that is its own flag is not worth hiding"


def test_the_plan_takes_what_a_gpu_was_faster_with(cuda_host: ModuleType, kernels: Any) -> None:
    """As an H200 took them (benchmarks/results/gpu/layouts.csv): a block, a cluster or a grid."""
    cuda_host.set_device_limits(*H100)

    def plan(dtype: torch.dtype, hidden: int, backward: bool, batch: int = 32) -> str:
        return str(kernels.describe_plan(dtype, batch, hidden, backward)).partition(" threads")[0]

    half, full = torch.bfloat16, torch.float32
    assert plan(half, 64, False) == "block: 4 teams of 1 blocks of 256"
    assert plan(half, 64, True).startswith("cluster: 4 teams of 8 blocks")
    assert plan(half, 128, False).startswith("cluster: ")
    assert plan(half, 256, False).startswith("cluster: ")
    assert plan(half, 512, False).startswith("cluster: 4 teams of 16 blocks")
    assert plan(half, 1024, False).startswith("grid: 4 teams of 32 blocks")
    assert plan(full, 512, False).startswith("grid: 4 teams of 32 blocks")
    assert plan(full, 512, True).startswith("cluster: 4 teams of 16 blocks")
    assert plan(half, 1024, False, 8).startswith("grid: 1 teams of 64 blocks")
