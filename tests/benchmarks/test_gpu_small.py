"""What `make gpu` runs of the CUDA kernels, on their build for the host: every form, and each size of cluster."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from benchmarks import gpu_contest, gpu_small, gpu_times
from benchmarks.gpu_problems import COMPUTE


def test_the_small_run_holds_every_form(cuda_host: object) -> None:
    """On the host's build: clusters of 2 and 16 and the grid in every compute type, and all of it runs."""
    cases = list(gpu_small.cuda_cases("cpu"))
    names = [case.name for case in cases]
    for compute in COMPUTE:
        for form in ("block", "cluster of 2", "cluster of 16", "grid"):
            assert any(name.startswith(f"cuda gru {compute} {form},") for name in names)
        for variant in ("registers", "shared", "cluster", "scatter", "streamed"):
            assert any(name.startswith(f"cuda posterior {compute} {variant},") for name in names)
    assert len(names) == len(set(names))
    chosen = [case for case in cases if "float16" not in case.name or "cluster of 2," in case.name]
    assert gpu_small.run_all(iter(chosen), lambda: None) == []


def test_the_recurrence_is_timed_in_each_size_of_cluster(cuda_host: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """As planned and in clusters, both passes laid out alike; beyond the largest H of a cluster as planned alone."""
    from vssn_kernels.backend.cuda import gru

    seen: list[tuple[str, object]] = []

    def noting(name: str, kernel: Callable[..., object]) -> Callable[..., object]:
        def noted(**arguments: object) -> object:
            seen.append((name, (arguments["exchange"], arguments["blocks"])))
            return kernel(**arguments)

        return noted

    for name in ("gru_forward", "gru_backward"):
        kernel: Callable[..., object] = getattr(gru._cuda, name)

        monkeypatch.setattr(gru._cuda, name, noting(name, kernel))
    for name, value in (("ROUNDS", 1), ("MOST_CALLS", 1), ("LONG_S", 1e9)):
        monkeypatch.setattr(gpu_contest, name, value)
    monkeypatch.setattr(gpu_times, "LARGEST_IN_CLUSTER", 70)
    small = gpu_times.Setup(
        "cpu", ("cuda",), steps=2, batches=(3,), hidden=(70, 71), clusters=(2, 4), gru_compute=("float32",)
    )
    results = [r for r in gpu_times.gru_cases(small, 3) if r.case.startswith("gru_sequence")]
    every = ["vssn cuda", "vssn cuda, clusters of 2", "vssn cuda, clusters of 4"]
    assert [r.contestant for r in results] == [*every, *every, "vssn cuda", "vssn cuda"]
    assert {r.status for r in results} == {"ok"}
    for name in ("gru_forward", "gru_backward"):
        assert {wish for found, wish in seen if found == name} == {(0, 0), (2, 2), (2, 4)}
    assert gru.wish == gru.Wish()
