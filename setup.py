"""Builds the extension modules; everything else about the package stands in pyproject.toml.

vssn_kernels._cpu: the KERNELS of csrc/cpu compiled once per instruction set (x86-64: avx512, avx2 and generic and, for
bfloat16 where the compiler knows them, amx and avx512_bf16; elsewhere generic), and the files that choose and bind
them, once. Needs g++, ninja and pybind11, no PyTorch.

vssn_kernels._cuda: csrc/cuda/*.cu and *.cpp by nvcc, which leaves the latter to g++, where nvcc is found and something
speaks for a use of it: a CUDA build of PyTorch in this Python or, where there is no PyTorch yet, a GPU. The CUDA
runtime is linked statically, and no PyTorch header is used: one build serves every version of it.
    VSSN_BUILD_CUDA=0|1  never | always (an error where nvcc is absent)
    VSSN_CUDA_ARCHS      always, for these architectures, such as "90a" or "80 90a"; else for those of the GPUs here,
                         else DEFAULT_ARCHS
    VSSN_CUDA_DEBUG=1    a kernel that waits for another block without end stops, and says where: after 2^24 polls
    CUDA_HOME            the toolkit, where nvcc is not on the path

ninja runs the compilers, in parallel; `setup.py build_ext --inplace` compiles again only what a change concerns: of a
file, of a header that it includes, or of its flags. So does `pip install -e`, again and again in one checkout.
"""

from __future__ import annotations

import os
import platform
import re
import shlex
import shutil
import site
import subprocess
import sys
import sysconfig
from pathlib import Path

import pybind11
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

CPU = Path("csrc/cpu")
SHARED = Path("csrc/common")
KERNELS = ("gru", "gru_step", "posterior", "interleaved", "gaussian", "mlp", "bernoulli", "program", "table")
FLAGS = ["-std=c++17", "-O3", "-fopenmp", "-fvisibility=hidden", "-ffp-contract=fast", "-fno-math-errno",
         "-fno-trapping-math", "-Wall", "-Wextra", "-Wno-psabi", "-g0"]  # fmt: skip
AVX512 = ["-mavx512f", "-mavx512dq", "-mavx512bw", "-mavx512vl", "-mavx2", "-mfma", "-mprefer-vector-width=512"]
ISA_FLAGS = {
    "amx": [*AVX512, "-mavx512bf16", "-mamx-tile", "-mamx-bf16", "-DVSSN_BFLOAT16_ALONE"],
    "avx512_bf16": [*AVX512, "-mavx512bf16", "-DVSSN_BFLOAT16_ALONE"],
    "avx512": AVX512,
    "avx2": ["-mavx2", "-mfma"],
    "generic": [],
}
BFLOAT16 = ("amx", "avx512_bf16")  # those that need g++ 11


def instruction_sets(compiler: list[str]) -> list[str]:
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return ["generic"]
    flags = [flag for isa in BFLOAT16 for flag in ISA_FLAGS[isa]]
    asked = subprocess.run([*compiler, *flags, "-fsyntax-only", "-xc++", os.devnull], capture_output=True, check=False)
    if asked.returncode == 0:
        return list(ISA_FLAGS)
    print(f"vssn_kernels._cpu has no kernels for {' and '.join(BFLOAT16)}: {compiler[0]} does not know their options")
    return [isa for isa in ISA_FLAGS if isa not in BFLOAT16]


CUDA = Path("csrc/cuda")
NVCC_FLAGS = ["-std=c++17", "-O3", "--expt-relaxed-constexpr", "-Icsrc", "-Icsrc/cuda", "-Xcompiler", "-fPIC",
              "-Xcompiler", "-fvisibility=hidden"]  # fmt: skip
# Where no GPU says for which it is: H100 and H200. One only, since each costs most of a minute on two cores; for other
# GPUs set VSSN_CUDA_ARCHS, which may be "80 90a 100a 120": CI compiles all four.
DEFAULT_ARCHS = ("90a",)


def find_nvcc() -> str | None:
    """The path of nvcc; None where the CUDA extension is not to be built."""
    asked = os.environ.get("VSSN_BUILD_CUDA", "")
    if asked not in ("", "0", "1"):
        raise SystemExit(f"VSSN_BUILD_CUDA must be 0, 1 or unset, got {asked!r}")
    if asked == "0":
        return None
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    found = shutil.which("nvcc", path=f"{home}/bin" if home else None)
    if found is None and not home:
        found = shutil.which("nvcc", path="/usr/local/cuda/bin")
    if found is None and asked == "1":
        raise SystemExit("VSSN_BUILD_CUDA=1, but nvcc is not found: put it on the path, or set CUDA_HOME")
    if found is None:
        print("vssn_kernels._cuda is not built: nvcc is not found on the path, in CUDA_HOME or in /usr/local/cuda")
    elif asked != "1" and not os.environ.get("VSSN_CUDA_ARCHS") and (reason := why_no_cuda()):
        print(f"vssn_kernels._cuda is not built: {reason}; VSSN_BUILD_CUDA=1 builds it all the same")
        return None
    return found


def why_no_cuda() -> str | None:
    """Why nothing here would use the CUDA extension; None where something would.

    A build runs in an environment of its own, without PyTorch: its files are looked for in the Python that it is for.
    """
    places = [sysconfig.get_paths()["purelib"], *site.getsitepackages()]
    if sys.prefix == sys.base_prefix:  # a virtual environment does not see those of the user
        places.append(site.getusersitepackages())
    for place in dict.fromkeys(places):
        try:
            text = Path(place, "torch/version.py").read_text(encoding="utf-8")
        except OSError:
            continue
        version = re.search(r"^__version__\b.*?['\"](.+?)['\"]", text, re.MULTILINE)
        cuda = re.search(r"^cuda\b.*=\s*['\"]\d", text, re.MULTILINE)
        return None if cuda else f"PyTorch {version[1] if version else ''} in {place} is a build without CUDA"
    return None if has_gpu() else "there is no GPU here, nor a CUDA build of PyTorch"


def has_gpu() -> bool:
    return any(Path("/dev").glob("nvidia[0-9]*")) or bool(output_of("nvidia-smi", "--list-gpus"))


def output_of(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return ""


def cuda_architectures(nvcc: str) -> list[str]:
    """Such as ["80", "90a"]."""
    if named := os.environ.get("VSSN_CUDA_ARCHS", "").replace(",", " ").replace(";", " ").split():
        return [name.removeprefix("sm_") for name in named]
    present = output_of("nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader").replace(".", "").split()
    if here := sorted({number for number in present if number.isdigit()}):
        return ["90a" if number == "90" else "100a" if number == "100" else number for number in here]
    return list(DEFAULT_ARCHS)


Units = dict[str, tuple[Path, list[str]]]  # by the name of the object file: its source, and flags of its own


def cpu_units(compiler: list[str]) -> Units:
    """Each kernel file once per instruction set, the others once."""
    sets = instruction_sets(compiler)
    flags = ["-DVSSN_HAS_BFLOAT16"] if set(BFLOAT16) <= set(sets) else []
    units: Units = {f"{path.stem}.o": (path, flags) for path in sorted(CPU.glob("*.cpp")) if path.stem not in KERNELS}
    for isa in sets:
        flags = [f"-DVSSN_ISA={isa}", *ISA_FLAGS[isa]]
        units |= {f"{isa}/{name}.o": (CPU / f"{name}.cpp", flags) for name in KERNELS}
    return units


def nvcc_command(nvcc: str) -> list[str]:
    """nvcc with the flags of every unit."""
    architectures = cuda_architectures(nvcc)
    print(f"vssn_kernels._cuda: {nvcc} for {', '.join(architectures)}", flush=True)
    command = [nvcc, *NVCC_FLAGS, *(f"-gencode=arch=compute_{name},code=sm_{name}" for name in architectures)]
    command.append('-DVSSN_CUDA_ARCHITECTURES="' + "+".join(f"sm_{name}" for name in architectures) + '"')
    if (debug := os.environ.get("VSSN_CUDA_DEBUG", "0")) not in ("0", "1"):
        raise SystemExit(f"VSSN_CUDA_DEBUG must be 0 or 1, got {debug!r}")
    return [*command, "-DVSSN_DEBUG_POLLS=(1<<24)"] if debug == "1" else command


def find_ninja() -> str:
    """pip puts it beside this Python, which need not be on the path."""
    places = os.pathsep.join((os.environ.get("PATH", os.defpath), sysconfig.get_path("scripts")))
    if (found := shutil.which("ninja", path=places)) is None:
        raise SystemExit("ninja, which runs the compilers, is not found: pip install ninja")
    return found


def require_compiler(compiler: list[str]) -> None:
    if shutil.which(compiler[0]) is None:
        raise SystemExit(
            f"vssn_kernels._cpu is not built: the C++ compiler {compiler[0]} is not found; "
            "install g++ (Debian, Ubuntu: apt install g++), or name another one: CXX=..."
        )


def ninja_file(compiler: list[str], linker: list[str], units: Units, folder: Path, target: str) -> str:
    """How `target` is made, for ninja: the two commands, then every unit."""

    def path(value: str | Path) -> str:
        return re.sub(r"([$ :])", r"$\1", str(value))

    def words(command: list[str]) -> str:
        return shlex.join(command).replace("$", "$$")

    lines = [
        f"builddir = {path(folder)}",
        "rule compile",
        f"  command = {words(compiler)} $flags -MD -MF $out.d -c $in -o $out",
        "  depfile = $out.d",
        "  deps = gcc",
        "rule link",
        f"  command = {words(linker)} $in -o $out",
        f"build {path(target)}: link {' '.join(path(folder / name) for name in units)}",
    ]
    for name, (source, flags) in units.items():
        lines += [f"build {path(folder / name)}: compile {path(source)}", f"  flags = {words(flags)}"]
    return "\n".join((*lines, ""))


class BuildExtensions(build_ext):
    """Has ninja compile each unit with its own flags, where something that it is made of has changed."""

    def build_extension(self, ext: Extension) -> None:
        if ext.name.endswith("_cuda"):
            nvcc = find_nvcc()
            assert nvcc is not None, "else the extension is not in the list below"
            compiler, units = nvcc_command(nvcc), {f"{Path(name).name}.o": (Path(name), []) for name in ext.sources}
            linker = [nvcc, "-shared", "-cudart=static", "-Xlinker=--exclude-libs=ALL"]
            advice = "; VSSN_BUILD_CUDA=0 installs without it"
        else:
            require_compiler(self.compiler.compiler_so_cxx)
            compiler, units = [*self.compiler.compiler_so_cxx, *FLAGS], cpu_units(self.compiler.compiler_so_cxx)
            linker, advice = [*self.compiler.linker_so_cxx, "-fopenmp"], ""
        # Of pybind11, which pip puts into a new folder each time, the rest knows nothing: it is not compiled again.
        include = [f"-I{path}" for path in (*ext.include_dirs, *self.include_dirs)]
        for name, (source, flags) in units.items():
            if source.stem.endswith("bindings"):
                units[name] = source, [*flags, *include]
        # To an editable installation setuptools gives a folder that is gone afterwards: where the others have theirs.
        lasting = Path("build", f"temp.{self.plat_name}-{sys.implementation.cache_tag}")
        folder = (lasting if self.editable_mode else Path(self.build_temp)) / ext.name
        if self.force:
            shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)
        rules = folder / "build.ninja"
        rules.write_text(ninja_file(compiler, linker, units, folder, self.get_ext_fullpath(ext.name)))
        jobs = [f"-j{self.parallel}"] if self.parallel else []
        if subprocess.run([find_ninja(), "-f", str(rules), *jobs], check=False).returncode != 0:
            raise SystemExit(f"{ext.name} is not built, see above{advice}")


def extensions() -> list[Extension]:
    cpu = Extension(
        "vssn_kernels._cpu",
        sources=[str(path) for path in sorted(CPU.glob("*.cpp"))],
        depends=[str(path) for path in sorted([*CPU.glob("*.h"), *SHARED.glob("*.h")])],
        include_dirs=[pybind11.get_include()],
        language="c++",
    )
    if find_nvcc() is None:
        return [cpu]
    cuda = Extension(
        "vssn_kernels._cuda",
        sources=[str(path) for path in sorted([*CUDA.glob("*.cu"), *CUDA.glob("*.cpp")])],
        depends=[str(path) for path in sorted([*CUDA.glob("*.cuh"), *CUDA.glob("*.h"), *SHARED.glob("*.h")])],
        include_dirs=[pybind11.get_include()],
        language="c++",
    )
    return [cpu, cuda]


setup(ext_modules=extensions(), cmdclass={"build_ext": BuildExtensions})
