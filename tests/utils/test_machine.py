"""The processor's name in records of runs and results of benchmarks."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

import pytest

from benchmarks import results
from vssn.experiments.runner import describe_machine
from vssn.utils.machine import processor_name


@pytest.mark.parametrize(
    ("told", "name"),
    [
        ("processor\t: 0\nmodel name\t: Chip: 3 GHz\nprocessor\t: 1\nmodel name\t: Other\n", "Chip: 3 GHz"),
        ("processor\t: 0\nFeatures\t: fp\n", "as Python says"),
        (None, "as Python says"),
    ],
)
def test_the_processor_is_named_alike_everywhere(told: str | None, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    read_text = Path.read_text

    def read(path: Path, **options: Any) -> str:
        if path != Path("/proc/cpuinfo"):  # a package's version, where a peer is installed
            return read_text(path, **options)
        if told is None:
            raise FileNotFoundError(path)
        return told

    monkeypatch.setattr(results, "commit", lambda: "")
    monkeypatch.setattr(platform, "processor", lambda: "")
    monkeypatch.setattr(platform, "machine", lambda: "as Python says")
    monkeypatch.setattr(Path, "read_text", read)
    assert processor_name() == name
    assert describe_machine().startswith(f"{name}, {os.cpu_count()} cores")
    assert results.environment("cpu", 0.0, 1.0, 1.0).processor == name
