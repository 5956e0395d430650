"""Whether the backend "cuda" is available, and what it says where it is not."""

from __future__ import annotations

import importlib
import sys
from types import SimpleNamespace

import pytest
import torch

from vssn_kernels.backend import table


@pytest.fixture
def extension(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A stand-in for vssn_kernels._cuda on a machine with an H100."""
    module = SimpleNamespace(capabilities=lambda: [90], architectures="sm_80+sm_90a")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(table.importlib, "import_module", lambda name: module)
    return module


def test_available(extension: SimpleNamespace) -> None:
    assert table._cuda_status() == "available"


def test_no_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "finds no CUDA device" in table._cuda_status()


def test_not_built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setitem(sys.modules, "vssn_kernels._cuda", None)
    importlib.invalidate_caches()
    status = table._cuda_status()
    assert "could not be imported" in status
    assert "pip install -e . (it needs nvcc" in status


def test_built_for_other_devices(extension: SimpleNamespace) -> None:
    extension.capabilities = lambda: [100]
    assert "was built for sm_80, sm_90a, the devices have compute capability 10.0" in table._cuda_status()


def test_an_old_driver(extension: SimpleNamespace) -> None:
    def refuse() -> list[int]:
        raise RuntimeError("cudaGetDeviceCount: CUDA driver version is insufficient for CUDA runtime version")

    extension.capabilities = refuse
    assert "driver version is insufficient" in table._cuda_status()


@pytest.mark.parametrize(
    ("architecture", "capability", "runs"),
    [
        ("sm_80", 80, True),
        ("sm_80", 89, True),
        ("sm_89", 80, False),
        ("sm_80", 90, False),
        ("sm_90a", 90, True),
        ("sm_100a", 103, False),
        ("sm_100a", 100, True),
        ("sm_120", 121, True),
    ],
)
def test_which_code_runs_where(architecture: str, capability: int, runs: bool) -> None:
    assert table._runs_on(architecture, capability) is runs
