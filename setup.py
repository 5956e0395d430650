"""Builds the extension modules; everything else about the package stands in pyproject.toml.

vssn_kernels._cpu: csrc/cpu/{gru,posterior,gaussian,table}.cpp compiled once per instruction set (x86-64: avx512, avx2
and generic; elsewhere generic), and the files that choose and bind them, once. Needs g++ and pybind11, no PyTorch.
"""

from __future__ import annotations

import os
import platform
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pybind11
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

CPU = Path("csrc/cpu")
KERNELS = ("gru", "posterior", "gaussian", "table")
COMMON = ("bindings", "dispatch", "rows", "threads")
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


class BuildExtensions(build_ext):
    """Compiles the translation units in parallel, each with the flags of its instruction set."""

    def build_extension(self, ext: Extension) -> None:
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


setup(
    ext_modules=[
        Extension(
            "vssn_kernels._cpu",
            sources=[str(path) for path in sorted(CPU.glob("*.cpp"))],
            depends=[str(path) for path in sorted(CPU.glob("*.h"))] + ["csrc/common/cell.h"],
            include_dirs=[pybind11.get_include()],
            language="c++",
        )
    ],
    cmdclass={"build_ext": BuildExtensions},
)
