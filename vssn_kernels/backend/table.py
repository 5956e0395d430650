"""Which backend runs an op: the table of backends, their availability and the choice between them.

An op says with `declare` which functions it needs. A backend is a package beside this file that has them, for the ops
that it runs; tensors reach them checked. `reference` has those of every op.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import platform
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from types import ModuleType
from typing import NamedTuple

import torch
from torch.compiler import is_compiling

from vssn_kernels.arguments import HALF, shown
from vssn_kernels.version import __version__


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
    "cpu": Backend(("cpu",), (torch.bfloat16, torch.float32, torch.float64), _cpu_status()),
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


def _require_available(name: str, source: str, argument: str = "backend") -> None:
    if not isinstance(name, str) or name not in BACKENDS:
        raise ValueError(f"{source}: {argument} must be one of {', '.join(BACKENDS)}, got {shown(name)}")
    if BACKENDS[name].status != "available":
        raise ValueError(f"{source}: backend {name!r} is not available: {BACKENDS[name].status}")


_ENVIRONMENT = os.environ.get("VSSN_BACKEND") or None
if _ENVIRONMENT is not None:
    _require_available(_ENVIRONMENT, "environment variable VSSN_BACKEND")


# ---- What ops need ------------------------------------------------------------------------------------


class Needs(NamedTuple):
    """What an op needs of a backend."""

    functions: tuple[str, ...]
    reference: ModuleType
    left_to_reference: bool


_needs: dict[str, Needs] = {}  # by the name of a public op
_op_of: dict[str, str] = {}  # by the name of a function: the op, the first of several
_runs: set[tuple[str, str]] = set()  # of backend and op: those that somebody has asked about


def declare(
    *ops: str,
    functions: Sequence[str],
    reference: ModuleType,
    optional: Sequence[str] = (),
    left_to_reference: bool = False,
) -> None:
    """Says what public ops need of a backend. One that lacks a function does not run them: the choice passes it by.

    Args:
        functions: their names. Arguments and results are those of the reference's functions.
        reference: the module that has all of them, in PyTorch.
        optional: further functions, which a backend may lack; `offers` tells.
        left_to_reference: whether a backend without these functions runs the ops by those of the reference. For
            products and pointwise maths without a recurrence: PyTorch's own ops are a fair implementation on every
            device. That is part of what the backend is, not a fallback: it depends on nothing but the backend.
    """
    for op in ops:
        _needs[op] = Needs(tuple(functions), reference, left_to_reference)
    _op_of.update(dict.fromkeys((*functions, *optional), ops[0]))


def ops() -> tuple[str, ...]:
    """The names of all public ops."""
    return tuple(_needs)


def functions() -> tuple[str, ...]:
    """The names of the functions that they need, or may use."""
    return tuple(_op_of)


def _package(backend: str) -> ModuleType:
    """The package of an available backend, imported at the first question about it."""
    # By statements: torch.compile follows them, calls of importlib it does not.
    if backend == "cpu":
        from vssn_kernels.backend import cpu

        return cpu
    if backend == "cuda":
        from vssn_kernels.backend import cuda

        return cuda
    from vssn_kernels.backend import triton

    return triton


def _module(backend: str, op: str) -> ModuleType | None:
    """Where an available backend has its functions for an op; None where it does not run it."""
    needs = _needs[op]
    if backend == "reference":
        return needs.reference
    package = _package(backend)
    for function in needs.functions:
        if not hasattr(package, function):
            return needs.reference if needs.left_to_reference else None
    return package


def _runs_op(backend: str, op: str) -> bool:
    """Whether an available backend runs an op; kept in `_runs`, where the choice looks first.

    What is traced neither reads nor changes `_runs`: the trace would be guarded by what is in it, and compiled again
    after the first call that is not compiled.
    """
    runs = _module(backend, op) is not None
    if runs and not is_compiling():
        _runs.add((backend, op))
    return runs


def _refusal(op: str, backend: str) -> str:
    lacks = ", ".join(name for name in _needs[op].functions if not hasattr(_package(backend), name))
    return f"{op}: backend {backend!r} lacks {lacks}; use backend='reference', or name none"


# ---- The choice ---------------------------------------------------------------------------------------


def choose(
    op: str, backend: str | None, device: torch.device, dtype: torch.dtype, first: str = "the first tensor"
) -> str:
    """The backend that runs `op`: the one named by the caller, `use_backend` or VSSN_BACKEND, else the first
    of ORDER that takes this device and dtype, those of the tensor `first`, and has the op's functions.

    Raises:
        ValueError: the named backend is unknown, not available, takes no such device or dtype, or lacks the op.
    """
    named = backend if backend is not None else (_named.backend or _ENVIRONMENT)
    if named is not None:
        _require_available(named, op)
        entry = BACKENDS[named]
        if entry.devices is not None and device.type not in entry.devices and device.type != "meta":
            raise ValueError(
                f"{op}: backend {named!r} takes tensors on {' or '.join(entry.devices)}, got {first} on {device}; "
                f"move them or name another backend"
            )
        if dtype not in entry.dtypes:
            raise ValueError(
                f"{op}: backend {named!r} takes {', '.join(str(d) for d in entry.dtypes)}, got {first} of {dtype}; "
                f"convert the tensors or name another backend"
            )
        if (is_compiling() or (named, op) not in _runs) and not _runs_op(named, op):
            raise ValueError(_refusal(op, named))
        return named
    for name in ORDER.get(device.type, ("reference",)):
        entry = BACKENDS[name]
        takes = entry.status == "available" and dtype in entry.dtypes
        if takes and ((not is_compiling() and (name, op) in _runs) or _runs_op(name, op)):
            return name
    return "reference"


@cache
def implementation(backend: str, function: str) -> Callable:
    """The callable of (backend, function); an op has declared the function.

    Raises:
        ValueError: the backend is not available, or lacks a function that the op needs.
    """
    op = _op_of[function]
    _require_available(backend, op)
    module = _module(backend, op)
    if module is None:
        raise ValueError(_refusal(op, backend))
    return getattr(module, function)


@cache
def offers(backend: str, function: str) -> bool:
    """Whether the backend has this function, which an op declared as one that may be missing."""
    return hasattr(_module(backend, _op_of[function]), function)


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Names the backend of every op called inside the block, in this thread.

    Raises:
        ValueError: the backend is unknown or not available (the message says why and what to install).
    """
    _require_available(name, "use_backend", "name")
    before = _named.backend
    _named.backend = name
    try:
        yield
    finally:
        _named.backend = before


def backends() -> dict[str, str]:
    """Each backend's name with "available", or why it is not and what to do."""
    return {name: entry.status for name, entry in BACKENDS.items()}


# Further lines of `info`, which others add.
notes: list[str] = []


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
        if status == "available" and name != "reference" and hasattr(module := _package(name), "info"):
            lines.append(f"    {module.info()}")
    return "\n".join((*lines, *notes))
