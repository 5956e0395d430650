"""What the machine is called, for records of runs."""

from __future__ import annotations

import platform
from pathlib import Path


def processor_name() -> str:
    """As Linux tells it; elsewhere, and where it does not, as Python does."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())
