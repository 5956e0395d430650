"""What malloc does with freed memory: the caller's choice."""

from __future__ import annotations

import ctypes
import os
import platform

from vssn_kernels.arguments import require_flag

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # parameters of mallopt, and glibc's defaults for them
_DEFAULTS = {_TRIM_THRESHOLD: 128 << 10, _MMAP_MAX: 1 << 16}
_SETTINGS = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_MMAP_MAX_", "GLIBC_TUNABLES")


def keep_memory(keep: bool = True) -> bool:
    """Lets the process keep the CPU memory that it frees, for its next tensors.

    glibc gives large freed blocks back to the system, and fresh memory costs a page fault for every 4 KB at its first
    touch: in a training loop of short or narrow sequences more than the arithmetic. After this call blocks of every
    size come from malloc's heap, and up to 2 GB that are free at its end stay with the process, whoever allocated
    them. It serves loops that allocate the same sizes again; a program that must be small between its bursts does
    without. `vssn fit`, `vssn reproduce`, `make demo` and the benchmarks make this choice.

    Args:
        keep: False goes back to glibc's defaults, and gives back now what is free. (glibc then no longer adapts its
            thresholds by itself, as it does in a process that has never called this.)

    Returns:
        Whether freed memory is kept from now on. With keep=True this is False, and nothing is changed, where the C
        library is not glibc, where VSSN_KEEP_MEMORY=0 is set, or a setting of malloc's own (MALLOC_TRIM_THRESHOLD_,
        MALLOC_MMAP_THRESHOLD_, MALLOC_MMAP_MAX_, GLIBC_TUNABLES). VSSN_KEEP_MEMORY=1 makes the choice at import.
    """
    require_flag("keep_memory", "keep", keep)
    if platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    if not keep:
        for parameter, value in _DEFAULTS.items():
            libc.mallopt(parameter, value)
        libc.malloc_trim(ctypes.c_size_t(0))
        return False
    if os.environ.get("VSSN_KEEP_MEMORY") == "0" or any(name in os.environ for name in _SETTINGS):
        return False
    return bool(libc.mallopt(_MMAP_MAX, 0) and libc.mallopt(_TRIM_THRESHOLD, 2**31 - 1))


if (_wanted := os.environ.get("VSSN_KEEP_MEMORY", "")) not in ("", "0", "1"):
    raise ValueError(f"environment variable VSSN_KEEP_MEMORY must be 0, 1 or unset, got {_wanted!r}")
if _wanted == "1":
    keep_memory()
