"""What `make gpu` runs of the CUDA kernels, on their build for the host: every form, and each layout of the GRU."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from types import ModuleType

import pytest
import torch
from torch import Tensor

import vssn_kernels
from benchmarks import gpu_contest, gpu_layouts, gpu_small, gpu_times
from benchmarks.cuda_on_host import AMPERE, HOPPER
from benchmarks.gpu_problems import COMPUTE, gru_tensors, interleaved_tensors, posterior_tensors


def test_the_small_run_holds_every_form(cuda_host: object) -> None:
    """On the host's build: clusters of 2 and 16, the grid and tiles in turns in every compute type, and all
    of it runs."""
    cases = list(gpu_small.cuda_cases("cpu"))
    names = [case.name for case in cases]
    for compute in COMPUTE:
        for form in ("block", "cluster of 2", "cluster of 16", "grid", "grid, 2 tiles at once"):
            assert any(name.startswith(f"cuda gru {compute} {form},") for name in names)
        for variant in ("registers", "shared", "cluster", "scatter", "streamed"):
            assert any(name.startswith(f"cuda posterior {compute} {variant},") for name in names)
        for variant in ("block", "cluster", "streamed"):
            assert any(name.startswith(f"cuda interleaved {compute} {variant},") for name in names)
    assert len(names) == len(set(names))
    chosen = [case for case in cases if "float16" not in case.name or "cluster of 2," in case.name]
    assert gpu_small.run_all(iter(chosen), lambda: None) == []


@pytest.mark.parametrize("op", ["gaussian", "gru", "posterior", "interleaved"])
def test_no_result_passes_the_largest_float16(op: str) -> None:
    """Whatever numbers are drawn, by the reference: outputs and gradients are finite."""
    lengths = gpu_small.lengths_on("cpu", gpu_small.BATCH)
    steps, batch = gpu_small.STEPS, gpu_small.BATCH
    for seed in range(40):
        torch.manual_seed(seed)
        if op == "gaussian":
            call = gpu_small.gaussian("reference", "cpu", torch.float16)
        elif op == "gru":
            tensors = gru_tensors(steps, batch, 33, torch.float16, "cpu")
            call = gpu_small.both_passes(vssn_kernels.gru_sequence, tensors, "reference", lengths=lengths)
        elif op == "posterior":
            tensors = posterior_tensors(steps, batch, 18, 5, torch.float16, "cpu")
            call = gpu_small.both_passes(vssn_kernels.posterior_sequence, tensors, "reference", lengths=lengths)
        else:
            tensors = interleaved_tensors(steps, batch, gpu_small.INTERLEAVED[0], torch.float16, "cpu")
            call = gpu_small.both_passes(vssn_kernels.interleaved_sequence, tensors, "reference", lengths=lengths)
        call()


def test_every_run_has_the_same_numbers(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    drawn: list[Tensor] = []

    def cases(device: str) -> Iterator[gpu_small.Case]:
        drawn.append(torch.rand(3))
        yield gpu_small.Case("one", lambda: None)

    monkeypatch.setitem(gpu_small.CASES, "reference", cases)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    for _ in range(2):
        assert gpu_small.main("reference") == 0
    assert torch.equal(*drawn)
    assert capsys.readouterr().out.count("all ran") == 2


def test_the_recurrence_is_timed_in_each_layout(cuda_host: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """As planned and in clusters, both passes laid out alike; beyond the largest H of a cluster with so many tiles at
    once, and of few rows as planned alone."""
    from vssn_kernels.backend.cuda import gru

    seen: list[tuple[str, object]] = []

    def noting(name: str, kernel: Callable[..., object]) -> Callable[..., object]:
        def noted(**arguments: object) -> object:
            seen.append((name, (arguments["exchange"], arguments["blocks"], arguments["tiles_at_once"])))
            return kernel(**arguments)

        return noted

    for name in ("gru_forward", "gru_backward"):
        kernel: Callable[..., object] = getattr(gru._cuda, name)

        monkeypatch.setattr(gru._cuda, name, noting(name, kernel))
    for name, value in (("ROUNDS", 1), ("MOST_CALLS", 1), ("LONG_S", 1e9)):
        monkeypatch.setattr(gpu_contest, name, value)
    monkeypatch.setattr(gpu_times, "LARGEST_IN_CLUSTER", 70)
    monkeypatch.setattr(gpu_times, "SEVERAL_TILES", 9)

    def contestants(batch: int, hidden: int) -> list[str]:
        small = gpu_times.Setup(
            "cpu", ("cuda",), steps=2, hidden=(hidden,), clusters=(2, 4), at_once=(1, 2), gru_compute=("float32",)
        )
        results = [r for r in gpu_times.gru_cases(small, batch, small.gru_compute) if r.case.startswith("gru_sequence")]
        assert {r.status for r in results} == {"ok"}
        return [r.contestant for r in results]

    def layouts(name: str) -> set[object]:
        return {wish for found, wish in seen if found == name}

    planned = "vssn cuda"
    assert contestants(3, 70) == [planned, f"{planned}, clusters of 2", f"{planned}, clusters of 4"] * 2
    assert layouts("gru_forward") == layouts("gru_backward") == {(0, 0, 0), (2, 2, 0), (2, 4, 0)}
    seen.clear()
    assert contestants(3, 71) == [planned] * 2
    cuda_host.set_device_limits(*AMPERE)  # a grid: no clusters
    try:
        assert contestants(20, 150) == [planned, f"{planned}, 1 tiles at once", f"{planned}, 2 tiles at once"] * 2
    finally:
        cuda_host.set_device_limits(*HOPPER)
    assert layouts("gru_forward") == layouts("gru_backward") == {(0, 0, 0), (0, 0, 1), (0, 0, 2)}
    assert gru.wish == gru.Wish()


def test_every_layout_has_a_row(cuda_host: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of every recurrence and direction, in each layout that the device can hold; a wish that it cannot leaves none."""
    monkeypatch.setattr(gpu_layouts, "STEPS", 2)
    monkeypatch.setattr(gpu_layouts, "HIDDEN", (64,))
    monkeypatch.setattr(gpu_layouts, "LATENT", ((18, 5),))
    monkeypatch.setattr(gpu_layouts, "CHAINS", ((33, 18, 35, 5),))
    monkeypatch.setattr(gpu_layouts, "ROUNDS", (("bfloat16", 3),))

    def timed(launch: Callable[[], object]) -> float:
        launch()
        return 1.0

    monkeypatch.setattr(gpu_layouts, "timed", timed)
    for name in ("gru_tensors", "posterior_tensors", "interleaved_tensors"):
        monkeypatch.setattr(gpu_layouts, name, functools.partial(getattr(gpu_layouts, name), device="cpu"))
    rows = list(gpu_layouts.layouts())
    assert {row.status for row in rows} == {"ok"}
    found = {(row.op, row.direction, row.layout) for row in rows}
    for direction in ("forward", "backward"):
        for layout in ("as planned", "exchange=1 blocks=1 row_tiles=1", "exchange=2 blocks=4 row_tiles=2"):
            assert ("gru", direction, layout) in found
        for variant in ("choice", "registers", "shared", "scatter", "streamed"):
            assert ("posterior", direction, variant) in found
        for variant in ("choice", "block", "streamed"):
            assert ("interleaved", direction, variant) in found
    assert all(row.estimate and row.estimate > 0 for row in rows if row.op == "gru")
