"""The triton backend's kernels compile ahead of time as the launchers call them, without spills, onto matrix cores; and
how the launchers cut the work, which the interpreter does not see."""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="needs Triton, which is for Linux")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("compiles nothing in a process that interprets", allow_module_level=True)

import triton

from benchmarks import gpu_small
from benchmarks.triton_resources import (
    BEGIN,
    CASES,
    CHIPS,
    END,
    Case,
    Chip,
    Launch,
    compile_for,
    form,
    gru_launches,
    heading,
    interleaved_launches,
    posterior_launches,
    recorded,
    resources,
    table,
)
from vssn_kernels.backend import triton as backend
from vssn_kernels.backend.triton import launch as launching
from vssn_kernels.backend.triton.kernels import gaussian, gru, interleaved, posterior
from vssn_kernels.backend.triton.kernels.compilation import Kernel

SUMMED = ("UNITS", "EMBED", "HIDDEN", "LATENT")  # tiles that a resident kernel's products sum over
README = Path(__file__).resolve().parents[2] / "vssn_kernels" / "README.md"
# At each chip one of each kernel, and what the default settings of PyTorch run.
FAST = {
    ("sm_80", Case("gru", (64,), "float32")),
    ("sm_80", Case("posterior", (64, 16, 0), "tf32")),
    ("sm_90", Case("gru", (128,), "bfloat16")),
    ("sm_90", Case("gru", (512,), "bfloat16")),
    ("sm_90", Case("posterior", (64, 16, 0), "float32")),
    ("sm_90", Case("posterior", (512, 100, 1), "bfloat16")),
    ("sm_90", Case("interleaved", (64, 64, 64, 16), "bfloat16")),
    ("sm_90", Case("interleaved", (256, 256, 256, 64), "bfloat16")),
    ("sm_90", Case("interleaved", (512, 512, 512, 100), "float32")),
    ("sm_90", Case("gaussian", (64,), "float32")),
    ("gfx942", Case("gru", (64,), "bfloat16")),
    ("gfx942", Case("gru", (512,), "tf32")),
}
# The kernels that put a few registers into memory; the README says so.
STATED = {
    ("sm_90", Case("interleaved", (128, 64, 64, 32), "bfloat16")): 40,
    ("gfx942", Case("posterior", (512, 100, 1), "bfloat16")): 12,
    ("sm_120", Case("interleaved", (256, 256, 256, 64), "float32")): 8,
    ("sm_120", Case("gru", (128,), "float32")): 8,
    ("sm_120", Case("gru", (512,), "float32")): 8,
    ("sm_120", Case("posterior", (256, 64, 1), "float32")): 8,
    ("sm_120", Case("posterior", (512, 100, 1), "tf32")): 8,
}
if triton.__version__.startswith("3.8."):  # another version than that of the README
    STATED |= {
        ("sm_90", Case("gru", (128,), "bfloat16")): 8,
        ("sm_90", Case("posterior", (64, 16, 0), "float32")): 8,
    }
if triton.__version__.startswith("3.6."):
    STATED |= {
        ("sm_90", Case("gru", (512,), "tf32")): 8,
        ("sm_90", Case("interleaved", (64, 64, 64, 16), "float32")): 8,
        ("sm_90", Case("interleaved", (512, 512, 512, 100), "float32")): 8,
    }
ALL = [
    pytest.param(chip, case, id=f"{chip}-{case}", marks=() if (chip, case) in FAST else pytest.mark.slow)
    for case in CASES
    for chip in CHIPS
]


# What compiles ahead of time as a launch would, and what counts the compilations, are private names of Triton.
compiles_ahead = pytest.mark.skipif(
    not hasattr(triton.runtime.jit.JITFunction, "_do_compile"), reason="this Triton compiles a launch in another way"
)


@compiles_ahead
@pytest.mark.parametrize(("name", "case"), ALL)
def test_compiles_without_spills(name: str, case: Case) -> None:
    chip = CHIPS[name]
    launches = case.launches(chip)
    assert len(launches) == 2
    for launch in launches:
        compiled = compile_for(chip, launch)
        found = resources(chip, compiled)
        kernel = launch.kernel.function.__name__
        depths = [int(deep) for deep in re.findall(r"= tt\.dot .*?: tensor<\d+x(\d+)x", compiled.asm["ttir"])]
        assert bool(depths) == (case.op != "gaussian"), kernel
        assert min(depths, default=16) >= 16, f"{kernel}: a product {min(depths)} deep"
        assert found.spilled <= STATED.get((name, case), 0), f"{kernel} spills {found.spilled} bytes"
        assert found.shared <= chip.device.shared_memory, f"{kernel} asks for {found.shared} bytes of shared memory"
        on_matrix_cores = case.op != "gaussian" and (case.precision != "float32" or chip.device.float32)
        assert (found.matrix_instructions > 0) == on_matrix_cores, kernel


def test_every_fast_case_is_one_of_the_cases() -> None:
    assert {case for _, case in FAST} <= set(CASES)


@pytest.mark.slow
def test_the_table_in_the_readme_is_up_to_date() -> None:
    written = README.read_text().split(BEGIN)[1].split(END)[0].strip()
    if written.splitlines()[0] != heading():
        pytest.skip("another version of Triton made the table")
    assert written == table()


# ---- How the work is cut ---------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["float32", "tf32", "bfloat16"])
@pytest.mark.parametrize("name", CHIPS)
def test_tiles_hold_the_sizes(name: str, precision: str) -> None:
    """A resident kernel's tile holds all units; every tile is a power of 2 that a product takes."""
    for hidden in (1, 16, 17, 64, 65, 128, 129, 1000):
        for launch in gru_launches(CHIPS[name], precision, hidden):
            units = launch.keywords["UNITS"]
            assert units >= 16
            assert units & (units - 1) == 0
            assert form(launch) != "resident" or units >= hidden
    for sizes in ((1, 1, 1, 1), (64, 17, 128, 33), (17, 128, 3, 64), (65, 5, 4, 9), (3, 257, 4, 100)):
        for launch in interleaved_launches(CHIPS[name], precision, *sizes):
            names = ("UNITS", "EMBED", "HIDDEN", "LATENT")
            tiles = [launch.keywords[tile] for tile in names if tile in launch.keywords]
            assert all(tile >= 16 and tile & (tile - 1) == 0 for tile in tiles)
            if form(launch) == "resident":
                assert all(tile >= size for tile, size in zip(tiles, sizes, strict=True))
    for width, latent in ((1, 1), (64, 17), (257, 64), (100, 65)):
        for launch in posterior_launches(CHIPS[name], precision, width, latent, True):
            if form(launch) == "resident":
                assert launch.keywords["HIDDEN"] >= width
                assert launch.keywords["LATENT"] >= latent


@pytest.mark.parametrize("precision", ["float32", "tf32", "bfloat16", "float16"])
@pytest.mark.parametrize("name", CHIPS)
def test_no_product_is_less_than_16_deep(name: str, precision: str) -> None:
    """Triton 3.6 takes no less on NVIDIA's GPUs, whatever the dtype; 3.9 takes 8 of float32.

    A resident kernel sums over its tiles, a tiled one over parts of DEPTH."""
    chip, found = CHIPS[name], set()
    launches: list[Launch] = []
    for size in (1, 9, 17, 33, 80, 129, 512):
        launches += gru_launches(chip, precision, size)
        for latent in (1, 17, 65):
            for prior in (False, True):
                launches += posterior_launches(chip, precision, size, latent, prior)
            for sizes in ((size, size, size), (size, 17, 5), (5, size, 40), (33, 3, size)):
                launches += interleaved_launches(chip, precision, *sizes, latent)
    for launch in launches:
        deep = ["DEPTH"] if "DEPTH" in launch.keywords else [n for n in SUMMED if n in launch.keywords]
        assert deep, launch.kernel.function.__name__
        for tile in deep:
            assert launch.keywords[tile] >= 16, f"{launch.kernel.function.__name__}: {tile} {launch.keywords[tile]}"
        found.add((launch.kernel.function.__name__, form(launch)))
    kernels = {f"{op}_{way}" for op in ("gru", "posterior", "interleaved") for way in ("forward", "backward")}
    assert {name.removesuffix("_tiled") for name, _ in found} >= kernels
    assert {where for _, where in found} == {"resident", "alone", "shared"}


def test_small_sizes_are_resident_and_large_ones_shared() -> None:
    for precision in ("float32", "tf32", "bfloat16"):
        forms = [form(gru_launches(CHIPS["sm_90"], precision, hidden)[0]) for hidden in (64, 1024)]
        assert forms == ["resident", "shared"], precision
        small = (32, 32, 32, 16) if precision == "float32" else (64, 64, 64, 16)
        for sizes, expected in ((small, "resident"), ((128, 128, 128, 100), "alone"), ((256, 256, 256, 64), "shared")):
            launches = interleaved_launches(CHIPS["sm_90"], precision, *sizes)
            assert [form(launch) for launch in launches] == [expected] * 2, precision


def test_the_small_run_on_a_gpu_takes_each_form() -> None:
    """What gpu_small.py says of its sizes holds."""
    for expected, compute, hidden in gpu_small.TRITON_GRU:
        assert {form(launch) for launch in gru_launches(CHIPS["sm_90"], compute, hidden)} == {expected}
    for expected, compute, (width, latent) in gpu_small.TRITON_POSTERIOR:
        launches = posterior_launches(CHIPS["sm_90"], compute, width, latent, False)
        assert {form(launch) for launch in launches} == {expected}
    for expected, compute, sizes in gpu_small.TRITON_INTERLEAVED:
        assert {form(launch) for launch in interleaved_launches(CHIPS["sm_90"], compute, *sizes)} == {expected}


@pytest.mark.parametrize("sizes", [(64, 64, 64, 16), (200, 200, 200, 30), (512, 512, 512, 100)], ids=str)
@pytest.mark.parametrize("precision", ["float32", "tf32", "bfloat16", "float16"])
def test_the_interleaved_chain_is_one_launch_a_pass(precision: str, sizes: tuple[int, ...]) -> None:
    launches = interleaved_launches(CHIPS["sm_90"], precision, *sizes)
    assert len(launches) == 2
    for launch, phases in zip(launches, (4 * 2, 4 * 2 + 1), strict=True):
        if form(launch) == "shared":
            assert launch.arguments[-2:] == (0, phases)
            assert launch.keywords["launch_cooperative_grid"]


def shared_launches(chip: Chip, batch: int, hidden: int) -> list[tuple[int, int, int]]:
    """(first batch tile, programs, slices) of each launch of a long sequence's forward pass."""
    with recorded(chip, "bfloat16") as launches:
        zeros = {"dtype": torch.bfloat16}
        x, h0 = torch.zeros(2, batch, 3 * hidden, **zeros), torch.zeros(batch, hidden, **zeros)
        weight, bias = torch.zeros(3 * hidden, hidden, **zeros), torch.zeros(3 * hidden, **zeros)
        backend.gru_forward(x, h0, weight, bias, None, False, False)
    cut = []
    for launch in launches:
        # behind the arguments come counters, steps, batch, first_tile, slices, begin, end
        steps, given, first, slices, begin, end = launch.arguments[-6:]
        assert (steps, given) == (2, batch)
        grid = launch.grid[0]
        cut.append((first, grid, slices))
        if launch.keywords["SYNC"] == "launch":
            assert end == begin + 1
            assert "launch_cooperative_grid" not in launch.keywords
        else:
            assert (begin, end) == (0, 2)
            assert launch.keywords["launch_cooperative_grid"]
    return cut


def test_programs_that_wait_for_each_other_all_fit_the_device() -> None:
    """20 batch tiles of 16 slices on 132 processors: 8 tiles a launch."""
    assert shared_launches(CHIPS["sm_90"], 20 * 16 - 3, 512) == [(0, 128, 16), (8, 128, 16), (16, 64, 16)]
    small = CHIPS["sm_90"]._replace(device=CHIPS["sm_90"].device._replace(processors=5))
    assert shared_launches(small, 17, 512) == [(0, 5, 5), (1, 5, 5)]


def test_without_cooperative_launches_every_step_is_a_launch() -> None:
    chip = CHIPS["sm_90"]._replace(device=CHIPS["sm_90"].device._replace(cooperative=False))
    assert shared_launches(chip, 17, 512) == [(0, 32, 16), (0, 32, 16)]


@pytest.mark.parametrize(("setting", "precision"), [("float32", "ieee"), ("tf32", "tf32"), ("bfloat16", "ieee")])
def test_products_follow_the_setting_for_tf32(setting: str, precision: str) -> None:
    for launch in gru_launches(CHIPS["sm_90"], setting, 64):
        assert launch.keywords["PRECISION"] == precision
    without = CHIPS["sm_90"]._replace(device=CHIPS["sm_90"].device._replace(tf32=False))
    assert gru_launches(without, setting, 64)[0].keywords["PRECISION"] == "ieee"


# ---- What is compiled anew -------------------------------------------------------------------------------


KERNELS = [
    value
    for module in (gru, posterior, interleaved, gaussian)
    for value in vars(module).values()
    if isinstance(value, Kernel)
]


@contextmanager
def counted(chip: Chip) -> Iterator[set[tuple[str, str]]]:
    """Inside the block Triton's own launcher runs on CPU tensors as if for `chip`, up to where it would compile; the
    set holds the function and the key of each compilation that it asked for."""
    asked: set[tuple[str, str]] = set()

    class Driver:
        get_current_device = staticmethod(lambda: 0)
        get_current_stream = staticmethod(lambda device: 0)
        get_current_target = staticmethod(lambda: chip.target)

    def compile_(function: Any, key: str, *_: Any) -> None:
        # A function for other unaligned tensors is another one, to be compiled of its own.
        asked.add((f"{function.fn.__name__} {id(function)}", key))

    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(launching, "device_of", return_value=chip.device))
        stack.enter_context(mock.patch.object(triton.runtime.jit, "driver", SimpleNamespace(active=Driver())))
        stack.enter_context(mock.patch.object(triton.runtime.jit.JITFunction, "_do_compile", compile_))
        for kernel in KERNELS:  # what is bound to this device is not to stay
            stack.enter_context(mock.patch.dict(kernel._compiled_for, clear=True))
        yield asked


def laid_out(layout: str, steps: int, batch: int, width: int) -> Tensor:
    """[T, B, width]: contiguous, batch first in memory, a part of wider rows, or a later part of a long sequence."""
    if layout == "batch first":
        return torch.zeros(batch, steps, width).transpose(0, 1)
    if layout == "wider rows":
        return torch.zeros(steps, batch, 2 * width + 1)[..., 1 : width + 1]
    if layout == "chunk":
        return torch.zeros(steps + 3, batch, width)[3:]
    return torch.zeros(steps, batch, width)


def run_gru(layout: str, steps: int, batch: int, hidden: int) -> None:
    """Forward and backward."""
    x, h0 = laid_out(layout, steps, batch, 3 * hidden), laid_out(layout, 1, batch, hidden)[0]
    weight, bias, lengths = torch.zeros(3 * hidden, hidden), torch.zeros(3 * hidden), torch.zeros(2 * batch).long()
    output, h_n, gates = backend.gru_forward(x, h0, weight, bias, lengths[batch:], False, True)
    grad = laid_out(layout, steps, batch, hidden)
    backend.gru_backward(grad, h_n, output, gates, h0, weight, lengths[batch:], False, (True, True, False, False))


def run_posterior(layout: str, steps: int, batch: int, width: int, latent: int) -> None:
    """Forward and backward, with a prior's mean."""
    context, eps = laid_out(layout, steps, batch, width), laid_out(layout, steps, batch, latent)
    z0, lengths = laid_out(layout, 1, batch, latent)[0], torch.zeros(2 * batch).long()[batch:]
    weights = torch.zeros(width, latent), torch.zeros(2 * latent, width)
    prior = torch.zeros(width, latent), torch.zeros(latent, width)
    z, _, logvar, hidden, prior_hidden = backend.posterior_forward(
        context, z0, eps, *weights, torch.zeros(2 * latent), context, *prior, torch.zeros(latent), lengths, "silu",
        -12.0, True,
    )  # fmt: skip
    needs = (True, True, True, False, False, False, True, False, False, False)
    backend.posterior_backward(
        eps, z, eps, z, logvar, hidden, prior_hidden, z0, eps, *weights, *prior, lengths, "silu", -12.0, needs
    )


def run_interleaved(layout: str, steps: int, batch: int, size: int, embed: int, width: int, latent: int) -> None:
    """Forward and backward, with resets and a state for them."""
    sequences = [laid_out(layout, steps, batch, units) for units in (3 * size, embed, width)]
    eps, grad_h = laid_out(layout, steps, batch, latent), laid_out(layout, steps, batch, size)
    states = laid_out(layout, 1, batch, size)[0], laid_out(layout, 1, batch, latent)[0]
    weights = torch.zeros(embed, latent), torch.zeros(3 * size, embed), torch.zeros(3 * size, size)
    heads = torch.zeros(width, size), torch.zeros(2 * latent, width)
    lengths, resets = torch.zeros(2 * batch).long()[batch:], torch.zeros(steps + 1, batch, dtype=torch.bool)[1:]
    options = ("relu", "tanh", "logvar", -12.0, 0.1)
    h, z, _, logvar, gates, kept, hidden = backend.interleaved_forward(
        *sequences, *states, eps, *weights, torch.zeros(3 * size), *heads, torch.zeros(2 * latent), *states, resets,
        lengths, *options, True,
    )  # fmt: skip
    needs = [True] * 6 + [False] * 7 + [True] * 2
    backend.interleaved_backward(
        grad_h, eps, z, eps, h, z, logvar, gates, kept, hidden, *states, eps, *weights, *heads, *states, resets,
        lengths, *options, needs,
    )  # fmt: skip


def run_gaussian(layout: str, steps: int, batch: int, latent: int) -> None:
    """Forward and backward, with a prior."""
    full = laid_out(layout, steps, batch, latent)
    z, kl = backend.gaussian_forward(full, full, full, full, full)
    backend.gaussian_backward(z, kl, full, full, full, full, full, [True] * 5)


LAYOUTS = ("contiguous", "batch first", "wider rows", "chunk")
RUNS = [
    *((run_gru, (hidden,), 2) for hidden in (1, 16, 33, 40, 64, 200, 256)),
    *((run_posterior, sizes, 2) for sizes in ((64, 16), (33, 7), (64, 9), (50, 16), (512, 100), (300, 64))),
    *(
        (run_interleaved, sizes, 2)
        for sizes in ((64, 64, 64, 16), (5, 33, 16, 7), (40, 64, 50, 9), (512, 33, 512, 100))
    ),
    *((run_gaussian, (latent,), 2) for latent in (5, 64, 100)),
]


@compiles_ahead
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("run", "sizes", "kernels"), RUNS, ids=lambda v: getattr(v, "__name__", str(v)))
def test_nothing_is_compiled_anew_for_another_batch_or_length(
    run: Callable[..., None], sizes: tuple[int, ...], kernels: int, layout: str
) -> None:
    with counted(CHIPS["sm_90"]) as asked:
        for steps, batch in ((4, 16), (4, 1), (4, 2), (5, 3), (16, 8), (7, 17), (1, 4), (2, 33)):
            run(layout, steps, batch, *sizes)
            assert len(asked) == kernels, f"T = {steps}, B = {batch}: {sorted(name for name, _ in asked)}"


@compiles_ahead
def test_the_count_sees_a_new_size() -> None:
    with counted(CHIPS["sm_90"]) as asked:
        for count, hidden in enumerate((33, 34, 64), 1):
            run_gru("contiguous", 3, 2, hidden)
            assert len(asked) == 2 * count


def test_every_tensor_with_strides_is_known_to_its_kernel() -> None:
    """The strides stand right behind the tensor, and none is left over."""
    assert len(KERNELS) == 14
    for kernel in KERNELS:
        names = list(inspect.signature(kernel.function).parameters)
        found: list[str] = []
        for view in kernel.views:
            assert tuple(names[view.at + 1 : view.at + 1 + len(view.strides)]) == view.strides
            found += view.strides
        assert found == [name for name in names if re.search("_[tburc]$", name)]


@compiles_ahead
@pytest.mark.parametrize("hidden", [64, 33])
def test_aligned_rows_are_loaded_whole(hidden: int) -> None:
    """Where 16 divides H, a thread loads and stores 16 bytes at a time."""
    for launch in gru_launches(CHIPS["sm_90"], "bfloat16", hidden):
        unaligned = {view.name for view in launch.kernel.unaligned(launch.arguments)}
        assert unaligned.isdisjoint({"gates_x", "grad_output", "h0", "weight"}) == (hidden == 64)
        text = compile_for(CHIPS["sm_90"], launch).asm["ptx"]
        assert bool(re.search(r"ld\.global\S*\.v4", text)) == (hidden == 64)
