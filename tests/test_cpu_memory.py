"""The cpu backend lets malloc keep what the process frees, so that a training loop does not touch fresh memory in every
step: blocks of every size come from the heap, unless malloc's own settings say otherwise."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

LARGE_BLOCK = """
import torch, vssn_kernels
from vssn_kernels.backend import cpu
address = torch.empty(64 << 20, dtype=torch.uint8).data_ptr()
heap = next(line for line in open("/proc/self/maps") if "[heap]" in line).split()[0]
first, last = (int(end, 16) for end in heap.split("-"))
print(first <= address < last)
"""

pytestmark = pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc" or not os.path.exists("/proc/self/maps"), reason="glibc's malloc on Linux"
)


def large_blocks_come_from_the_heap(**variables: str) -> bool:
    settings = ("MALLOC_", "GLIBC_TUNABLES", "VSSN_")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(settings)} | variables
    result = subprocess.run(
        [sys.executable, "-c", LARGE_BLOCK], env=environment, capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.strip() == "True"


def test_memory_is_kept() -> None:
    assert large_blocks_come_from_the_heap()


@pytest.mark.parametrize("variable", [{"VSSN_KEEP_MEMORY": "0"}, {"MALLOC_TRIM_THRESHOLD_": "131072"}], ids=str)
def test_malloc_is_left_alone_where_asked(variable: dict[str, str]) -> None:
    assert not large_blocks_come_from_the_heap(**variable)
