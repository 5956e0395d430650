"""PyTorch's ModuleInfo of nn.GRU on vssn's classes, in a process of its own: see module_info.py."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.more
def test_what_pytorch_asks_of_its_own_gru() -> None:
    pytest.importorskip("expecttest", reason="torch.testing._internal needs it: pip install expecttest")
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        Path(__file__).with_name("module_info.py"),
    ]
    result = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    assert result.returncode == 0, result.stdout[-6000:] + result.stderr[-2000:]
    assert " passed" in result.stdout
    assert "skipped" not in result.stdout
