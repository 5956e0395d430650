"""The CUDA kernels built for the host (csrc/cuda/host), in the place of vssn_kernels._cuda: for tests and for tables.

Inside `installed()` the backend "cuda" is available and takes CPU tensors; its launches run on fibers. Outside, all is
as this machine has it. VSSN_CUDA_HOST=sanitized chooses the build under AddressSanitizer and
UndefinedBehaviorSanitizer, in a process with libasan and libstdc++ preloaded (make sanitize). OPS=gru (posterior,
interleaved, gaussian) builds that op alone while it is written.
"""

from __future__ import annotations

import fcntl
import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import torch

from benchmarks import ROOT
from vssn_kernels.backend import table

# A module is for one Python.
BUILD = ROOT / "build" / "cuda_host" / str(sys.implementation.cache_tag) / os.environ.get("OPS", "")
ORDERS = ("forward", "reverse", "shuffle_warps", "shuffle_threads")
# (compute capability, multiprocessors, shared memory of a block, largest cluster); few multiprocessors, since all the
# blocks of a cooperative launch run at once
HOPPER = (90, 8, 227 * 1024, 16)
AMPERE = (80, 8, 163 * 1024, 1)
CONSUMER_BLACKWELL = (120, 8, 99 * 1024, 8)


def flavour() -> str:
    return os.environ.get("VSSN_CUDA_HOST", "plain")


def build(which: str) -> Path:
    """The module's path, up to date; one process builds at a time."""
    BUILD.mkdir(parents=True, exist_ok=True)
    with open(BUILD / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        command = ["make", "-s", "-j2", "-C", str(ROOT / "csrc/cuda/host"), which]
        command += [f"PYTHON={sys.executable}", f"BUILD={BUILD}"]
        # What is preloaded for the module under test is not meant for the compiler.
        environment = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
        result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if result.returncode != 0:
            raise RuntimeError(result.stdout[-2000:] + result.stderr[-4000:])
    return BUILD / which / "_cuda.so"


def load(which: str) -> ModuleType:
    """The module itself, without installing it."""
    spec = importlib.util.spec_from_file_location("vssn_kernels._cuda", build(which))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@contextmanager
def installed() -> Iterator[ModuleType]:
    """The host module as vssn_kernels._cuda; on entry in the order "forward" and with Hopper's limits."""
    import vssn_kernels
    from vssn_kernels import backend

    package = "vssn_kernels.backend.cuda"
    ours = [name for name in sys.modules if name == "vssn_kernels._cuda" or name.startswith(package)]
    before = {name: sys.modules.pop(name) for name in ours}
    attribute = vars(vssn_kernels).pop("_cuda", None)
    vars(backend).pop("cuda", None)
    entry = table.BACKENDS["cuda"]
    module = load(flavour())
    sys.modules["vssn_kernels._cuda"] = module
    vars(vssn_kernels)["_cuda"] = module
    table.BACKENDS["cuda"] = table.Backend(("cpu",), (torch.float16, torch.bfloat16, torch.float32), "available")
    table.implementation.cache_clear()
    module.set_order("forward")
    module.set_device_limits(*HOPPER)
    try:
        yield module
    finally:
        table.BACKENDS["cuda"] = entry
        table.implementation.cache_clear()
        for name in [name for name in sys.modules if name.startswith(package)]:
            del sys.modules[name]
        del sys.modules["vssn_kernels._cuda"], vars(vssn_kernels)["_cuda"]
        vars(backend).pop("cuda", None)
        sys.modules.update(before)
        if attribute is not None:
            vars(vssn_kernels)["_cuda"] = attribute
