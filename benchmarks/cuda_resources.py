"""The CUDA kernels through nvcc: registers of every kernel, and what its machine code holds."""

from __future__ import annotations

import functools
import importlib.util
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

from benchmarks import ROOT

SOURCES = tuple(sorted(path.name for path in (ROOT / "csrc/cuda").glob("*.cu")))
ARCHITECTURES = ("sm_80", "sm_90a", "sm_100a", "sm_120")
COMMAND = ("nvcc", "-std=c++17", "--expt-relaxed-constexpr", "-Icsrc", "-Icsrc/cuda")  # no macros


class Kernel(NamedTuple):
    """One instantiation, for one architecture."""

    name: str  # with its template's arguments, demangled
    registers: int
    stack: int  # bytes
    spilled: int  # bytes stored and loaded
    tensor_core: int  # instructions
    wide: int  # global accesses of 16 bytes
    code: str = ""  # as cuobjdump prints it, for machine_code.py; sm_90a alone


def nvcc() -> str | None:
    return shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")


def _tool(name: str) -> str:
    """A tool of the toolkit, else the one that the triton wheel carries."""
    found = shutil.which(name) or shutil.which(name, path=str(Path(nvcc() or "").resolve().parent))
    triton = importlib.util.find_spec("triton")
    if found is None and triton is not None and triton.submodule_search_locations:
        found = shutil.which(name, path=str(Path(triton.submodule_search_locations[0], "backends/nvidia/bin")))
    if found is None:
        raise FileNotFoundError(f"{name} is in neither the CUDA toolkit nor a triton wheel")
    return found


def _run(*command: str, given: str | None = None) -> str:
    result = subprocess.run(command, cwd=ROOT, input=given, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}\n{result.stdout[-2000:]}{result.stderr[-4000:]}")
    return result.stdout + result.stderr


def _compile(source: str, architecture: str, cubin: Path, *options: str) -> str:
    """What nvcc says. Raises RuntimeError, for a warning too."""
    target = (f"-arch={architecture}", *options, "-cubin", "-o", str(cubin))
    report = _run(nvcc() or "nvcc", *COMMAND[1:], *target, f"csrc/cuda/{source}")
    if "warning" in report:
        raise RuntimeError(report)
    return report


def compile_unoptimised(source: str, architecture: str) -> None:
    """Tells of errors and warnings in two fifths of the time that `kernels` takes. Raises RuntimeError."""
    with tempfile.TemporaryDirectory() as folder:
        _compile(source, architecture, Path(folder, "kernels.cubin"), "-Xcicc", "-O0", "-Xptxas", "-O0")


@functools.cache
def kernels(source: str, architecture: str) -> tuple[Kernel, ...]:
    """Every kernel of csrc/cuda/<source>; () for a file of host code alone."""
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder, "kernels.cubin")
        report = _compile(source, architecture, cubin, "-Xptxas", "-v")
        code = _run(_tool("cuobjdump"), "-sass", str(cubin))
    pattern = (
        r"Compiling entry function '(\w+)'.*?(\d+) bytes stack frame, (\d+) bytes spill stores, "
        r"(\d+) bytes spill loads.*?Used (\d+) registers"
    )
    found = re.findall(pattern, report, re.DOTALL)
    names = _run("c++filt", given="\n".join(entry[0] for entry in found)).splitlines()
    functions = dict(re.findall(r"Function : (\w+)\n(.*?)(?=Function : |\Z)", code, re.DOTALL))
    result = []
    for (mangled, stack, stores, loads, registers), name in zip(found, names, strict=True):
        body = functions[mangled]
        tensor_core, wide = len(re.findall(r"\b[HQ]MMA\.", body)), len(re.findall(r"\b(?:LDG|STG)\.E\.128", body))
        short = re.sub(r"\(anonymous namespace\)::|vssn::|gpu::|^void ", "", name)
        short = re.sub(r"\([^()]*\)$", "", short)  # a template's argument may have parentheses too
        kept = body if architecture == "sm_90a" else ""
        result.append(Kernel(short, int(registers), int(stack), int(stores) + int(loads), tensor_core, wide, kept))
    return tuple(result)
