"""Which backend runs an op: the table of backends, their availability and the choice between them.

A backend is a module of this package with one function for each entry of `FUNCTIONS` (those of LEFT_TO_PYTORCH it may
lack); tensors reach it checked.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import platform
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import NamedTuple

import torch

from vssn_kernels.arguments import HALF
from vssn_kernels.version import __version__

FUNCTIONS = (
    "gru_forward",
    "gru_backward",
    "posterior_forward",
    "posterior_backward",
    "gaussian_forward",
    "gaussian_backward",
    "mlp_forward",
    "mlp_backward",
    "bernoulli_log_prob_forward",
    "bernoulli_log_prob_backward",
)
# Products and pointwise maths without a recurrence: PyTorch's own ops are a fair implementation on every device, so a
# backend may leave these to the reference's hand-written rung. That is part of what the backend is, not a fallback: it
# depends on nothing but the backend.
LEFT_TO_PYTORCH = FUNCTIONS[-4:]


class Backend(NamedTuple):
    """What a backend takes, and whether this installation has it."""

    devices: tuple[str, ...] | None  # None: any
    dtypes: tuple[torch.dtype, ...]
    status: str  # "available" or why not, and what to do


def _cpu_status() -> str:
    try:
        importlib.import_module("vssn_kernels._cpu")
    except ImportError as error:
        return f"vssn_kernels._cpu could not be imported ({error}); build it with: pip install -e ."
    return "available"


def _cuda_status() -> str:
    if not torch.cuda.is_available():
        return "PyTorch finds no CUDA device here; use backend='cpu' or 'reference'"
    try:
        module = importlib.import_module("vssn_kernels._cuda")
    except ImportError as error:
        return (
            f"vssn_kernels._cuda could not be imported ({error}); build it with: pip install -e . (it needs nvcc, the "
            "compiler of the CUDA toolkit), or use backend='triton' or 'reference'"
        )
    try:
        found = module.capabilities()
    except RuntimeError as error:
        return f"no CUDA device could be used ({error}): the driver may be older than the toolkit that built _cuda"
    built_for = module.architectures.split("+")
    if not any(_runs_on(architecture, device) for architecture in built_for for device in found):
        names = ", ".join(f"{device // 10}.{device % 10}" for device in found)
        return (
            f"vssn_kernels._cuda was built for {', '.join(built_for)}, the devices have compute capability {names}; "
            "build it here with: pip install -e . (VSSN_CUDA_ARCHS names architectures)"
        )
    return "available"


def _runs_on(architecture: str, capability: int) -> bool:
    """Whether code for sm_80, sm_90a, ... runs on a device: one of its major number; with an "a", of its number."""
    number = architecture.removeprefix("sm_")
    if number.endswith("a"):
        return int(number[:-1]) == capability
    return int(number) // 10 == capability // 10 and int(number) <= capability


def _triton_status() -> str:
    if importlib.util.find_spec("triton") is None:
        return "the package triton is not installed; install it with: pip install triton"
    if not (_INTERPRETED or torch.cuda.is_available() or torch.xpu.is_available()):
        return (
            "PyTorch sees no GPU here; use backend='cpu' or 'reference' (for tests, TRITON_INTERPRET=1 set before "
            "import runs the kernels on CPU tensors, slowly)"
        )
    return "available"


# Triton reads it when a kernel is defined, and then runs all kernels in its interpreter.
_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
BACKENDS: dict[str, Backend] = {
    "reference": Backend(None, (*HALF, torch.float32, torch.float64), "available"),
    "cpu": Backend(("cpu",), (torch.float32, torch.float64), _cpu_status()),
    "cuda": Backend(("cuda",), (*HALF, torch.float32), _cuda_status()),
    "triton": Backend(("cuda", "xpu", *(("cpu",) if _INTERPRETED else ())), (*HALF, torch.float32), _triton_status()),
}
ORDER = {
    "cuda": ("cuda", "triton", "reference"),
    "xpu": ("triton", "reference"),
    "cpu": ("cpu", "reference"),
}


class _Named(threading.local):
    """The backend that `use_backend` names in this thread."""

    # Set on the instance, not the class: torch.compile guards instance attributes only.
    def __init__(self) -> None:
        self.backend: str | None = None


_named = _Named()


def _require_available(name: str, source: str) -> None:
    if name not in BACKENDS:
        raise ValueError(f"{source}: backend must be one of {', '.join(BACKENDS)}, got {name!r}")
    if BACKENDS[name].status != "available":
        raise ValueError(f"{source}: backend {name!r} is not available: {BACKENDS[name].status}")


_ENVIRONMENT = os.environ.get("VSSN_BACKEND") or None
if _ENVIRONMENT is not None:
    _require_available(_ENVIRONMENT, "environment variable VSSN_BACKEND")


def choose(op: str, backend: str | None, device: torch.device, dtype: torch.dtype) -> str:
    """The backend that runs `op`: the one named by the caller, `use_backend` or VSSN_BACKEND, else the first
    of ORDER that takes this device and dtype.

    Raises:
        ValueError: the named backend is unknown, not available, or takes no such device or dtype.
    """
    named = backend if backend is not None else (_named.backend or _ENVIRONMENT)
    if named is not None:
        _require_available(named, op)
        entry = BACKENDS[named]
        if entry.devices is not None and device.type not in entry.devices and device.type != "meta":
            raise ValueError(
                f"{op}: backend {named!r} takes tensors on {' or '.join(entry.devices)}, got {device}; "
                f"move them or name another backend"
            )
        if dtype not in entry.dtypes:
            raise ValueError(
                f"{op}: backend {named!r} takes {', '.join(str(d) for d in entry.dtypes)}, got {dtype}; "
                f"convert the tensors or name another backend"
            )
        return named
    for name in ORDER.get(device.type, ("reference",)):
        if BACKENDS[name].status == "available" and dtype in BACKENDS[name].dtypes:
            return name
    return "reference"


@cache
def implementation(backend: str, function: str) -> Callable:
    """The callable of (backend, function); `function` is one of FUNCTIONS."""
    _require_available(backend, function)
    module = importlib.import_module(f"vssn_kernels.backend.{backend}")
    if function in LEFT_TO_PYTORCH and not hasattr(module, function):
        module = importlib.import_module("vssn_kernels.backend.reference")
    return getattr(module, function)


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Names the backend of every op called inside the block, in this thread.

    Raises:
        ValueError: the backend is unknown or not available (the message says why and what to install).
    """
    _require_available(name, "use_backend")
    before = _named.backend
    _named.backend = name
    try:
        yield
    finally:
        _named.backend = before


def backends() -> dict[str, str]:
    """Each backend's name with "available", or why it is not and what to do."""
    return {name: entry.status for name, entry in BACKENDS.items()}


def info() -> str:
    """Versions, devices and backends as a text, for bug reports."""
    lines = [
        f"vssn {__version__}, Python {sys.version.split()[0]}, torch {torch.__version__}",
        f"{platform.platform()}, {torch.get_num_threads()} threads",
    ]
    if torch.cuda.is_available():
        lines.append(f"CUDA {torch.version.cuda}, {torch.cuda.get_device_name()}")
    for name, status in backends().items():
        lines.append(f"backend {name}: {status}")
        if status == "available" and hasattr(module := importlib.import_module(f"vssn_kernels.backend.{name}"), "info"):
            lines.append(f"    {module.info()}")
    return "\n".join(lines)
