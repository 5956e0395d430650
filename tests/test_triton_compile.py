"""The triton backend's kernels compile ahead of time as the launchers call them, without spills, onto matrix cores; and
how the launchers cut the work, which the interpreter does not see."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton", reason="needs Triton, which is for Linux")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("compiles nothing in a process that interprets", allow_module_level=True)

from triton_resources import (
    BEGIN,
    CASES,
    CHIPS,
    END,
    Case,
    Chip,
    compile_for,
    form,
    gru_launches,
    heading,
    posterior_launches,
    recorded,
    resources,
    table,
)

from vssn_kernels.backend import triton as backend

README = Path(__file__).resolve().parent.parent / "vssn_kernels" / "README.md"
# At each chip one of each kernel, and what the default settings of PyTorch run.
FAST = {
    ("sm_80", Case("gru", (64,), "float32")),
    ("sm_80", Case("posterior", (64, 16, 0), "tf32")),
    ("sm_90", Case("gru", (128,), "bfloat16")),
    ("sm_90", Case("gru", (512,), "bfloat16")),
    ("sm_90", Case("posterior", (64, 16, 0), "float32")),
    ("sm_90", Case("posterior", (512, 100, 1), "bfloat16")),
    ("sm_90", Case("gaussian", (64,), "float32")),
    ("gfx942", Case("gru", (64,), "bfloat16")),
    ("gfx942", Case("gru", (512,), "tf32")),
}
# The tiled forward kernels that put two registers into memory; the README says so.
STATED = {
    ("sm_120", Case("gru", (128,), "float32")): 8,
    ("sm_120", Case("gru", (512,), "float32")): 8,
    ("sm_120", Case("posterior", (256, 64, 1), "float32")): 8,
    ("sm_120", Case("posterior", (512, 100, 1), "tf32")): 8,
}
ALL = [
    pytest.param(chip, case, id=f"{chip}-{case}", marks=() if (chip, case) in FAST else pytest.mark.slow)
    for case in CASES
    for chip in CHIPS
]


@pytest.mark.parametrize(("name", "case"), ALL)
def test_compiles_without_spills(name: str, case: Case) -> None:
    chip = CHIPS[name]
    launches = case.launches(chip)
    assert len(launches) == 2
    for launch in launches:
        found = resources(chip, compile_for(chip, launch))
        kernel = launch.kernel.fn.__name__
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
    for width, latent in ((1, 1), (64, 17), (257, 64), (100, 65)):
        for launch in posterior_launches(CHIPS[name], precision, width, latent, True):
            if form(launch) == "resident":
                assert launch.keywords["HIDDEN"] >= width
                assert launch.keywords["LATENT"] >= latent


def test_small_sizes_are_resident_and_large_ones_shared() -> None:
    for precision in ("float32", "tf32", "bfloat16"):
        forms = [form(gru_launches(CHIPS["sm_90"], precision, hidden)[0]) for hidden in (64, 1024)]
        assert forms == ["resident", "shared"], precision


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
