"""Builds the extension modules; everything else about the package stands in pyproject.toml.

vssn_kernels._cpu: csrc/cpu/{gru,posterior,gaussian,mlp,bernoulli,table}.cpp compiled once per instruction set (x86-64:
avx512, avx2 and generic; elsewhere generic), and the files that choose and bind them, once. Needs g++ and pybind11, no
PyTorch.

vssn_kernels._cuda: csrc/cuda/*.cu and *.cpp by nvcc, which leaves the latter to g++, where nvcc is found and something
speaks for a use of it: a CUDA build of PyTorch in this Python or, where there is no PyTorch yet, a GPU. The CUDA
runtime is linked statically, and no PyTorch header is used: one build serves every version of it.
    VSSN_BUILD_CUDA=0|1  never | always (an error where nvcc is absent)
    VSSN_CUDA_ARCHS      always, for these architectures, such as "90a" or "80 90a"; else for those of the GPUs here,
                         else DEFAULT_ARCHS
    VSSN_CUDA_DEBUG=1    a kernel that waits for another block without end stops, and says where: after 2^24 polls
    CUDA_HOME            the toolkit, where nvcc is not on the path
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import site
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pybind11
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

CPU = Path("csrc/cpu")
SHARED = Path("csrc/common")
KERNELS = ("gru", "posterior", "gaussian", "mlp", "bernoulli", "table")
COMMON = ("bindings", "crowd", "dispatch", "rows", "threads")
FLAGS = ["-std=c++17", "-O3", "-fopenmp", "-fvisibility=hidden", "-ffp-contract=fast", "-fno-math-errno",
         "-fno-trapping-math", "-Wall", "-Wextra", "-Wno-psabi", "-g0"]  # fmt: skip
ISA_FLAGS = {
    "avx512": ["-mavx512f", "-mavx512dq", "-mavx512bw", "-mavx512vl", "-mavx2", "-mfma", "-mprefer-vector-width=512"],
    "avx2": ["-mavx2", "-mfma"],
    "generic": [],
}


def instruction_sets() -> list[str]:
    x86 = platform.machine().lower() in ("x86_64", "amd64")
    return list(ISA_FLAGS) if x86 else ["generic"]


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


class BuildExtensions(build_ext):
    """Compiles the translation units in parallel, each with its own flags."""

    def build_extension(self, ext: Extension) -> None:
        if ext.name.endswith("_cuda"):
            self.build_cuda(ext)
        else:
            self.build_cpu(ext)

    def build_cuda(self, ext: Extension) -> None:
        nvcc = find_nvcc()
        assert nvcc is not None, "else the extension is not in the list below"
        architectures = cuda_architectures(nvcc)
        print(f"vssn_kernels._cuda: {nvcc} for {', '.join(architectures)}")
        flags = [*NVCC_FLAGS, *(f"-gencode=arch=compute_{name},code=sm_{name}" for name in architectures)]
        flags += [f"-I{path}" for path in ext.include_dirs]
        flags.append('-DVSSN_CUDA_ARCHITECTURES=\\"' + "+".join(f"sm_{name}" for name in architectures) + '\\"')
        if (debug := os.environ.get("VSSN_CUDA_DEBUG", "0")) not in ("0", "1"):
            raise SystemExit(f"VSSN_CUDA_DEBUG must be 0 or 1, got {debug!r}")
        if debug == "1":
            flags.append("-DVSSN_DEBUG_POLLS=(1<<24)")
        folder = Path(self.build_temp, "cuda")
        folder.mkdir(parents=True, exist_ok=True)

        def run(*command: str) -> None:
            result = subprocess.run(command, check=False)
            if result.returncode != 0:
                raise SystemExit(f"nvcc failed, see above; VSSN_BUILD_CUDA=0 installs without it: {' '.join(command)}")

        def compile_unit(source: str) -> str:
            target = str(folder / f"{Path(source).name}.o")
            run(nvcc, *flags, "-c", source, "-o", target)
            return target

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            objects = list(pool.map(compile_unit, ext.sources))
        target = self.get_ext_fullpath(ext.name)
        os.makedirs(os.path.dirname(target), exist_ok=True)
        run(nvcc, "-shared", "-cudart=static", "-Xlinker=--exclude-libs=ALL", *objects, "-o", target)

    def build_cpu(self, ext: Extension) -> None:
        # (source, folder of the object file, macros, flags)
        units = [(CPU / f"{name}.cpp", "common", [], []) for name in COMMON]
        for isa in instruction_sets():
            units += [(CPU / f"{name}.cpp", isa, [("VSSN_ISA", isa)], ISA_FLAGS[isa]) for name in KERNELS]

        def compile_unit(unit: tuple[Path, str, list[tuple[str, str]], list[str]]) -> list[str]:
            source, folder, macros, flags = unit
            return self.compiler.compile(
                [str(source)],
                output_dir=os.path.join(self.build_temp, folder),
                macros=macros,
                include_dirs=ext.include_dirs,
                extra_postargs=FLAGS + flags,
            )

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            objects = [path for paths in pool.map(compile_unit, units) for path in paths]
        target = self.get_ext_fullpath(ext.name)
        os.makedirs(os.path.dirname(target), exist_ok=True)
        self.compiler.link_shared_object(objects, target, extra_postargs=["-fopenmp"], target_lang="c++")


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
        include_dirs=[pybind11.get_include(), sysconfig.get_paths()["include"]],
        language="c++",
    )
    return [cpu, cuda]


setup(ext_modules=extensions(), cmdclass={"build_ext": BuildExtensions})
