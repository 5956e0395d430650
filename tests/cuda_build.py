"""python tests/cuda_build.py FOLDER: builds vssn_kernels._cuda as setup.py does, but quickly, into FOLDER.

Device code becomes PTX for sm_90a, not optimised, and host code is not optimised either; units, commands and the link
are setup.py's own. The CPU kernels are left out.
"""

from __future__ import annotations

import runpy
import sys
from pathlib import Path
from typing import Any

import setuptools

ROOT = Path(__file__).resolve().parent.parent
QUICK = ("-Xcicc", "-O0", "-Xcompiler", "-O0")


def main(folder: str) -> None:
    """Exits with a message where it does not compile."""
    setup = setuptools.setup

    def quick(**arguments: Any) -> None:
        names = arguments["cmdclass"]["build_ext"].build_extension.__globals__  # those of setup.py
        command = names["nvcc_command"]

        def nvcc_command(nvcc: str) -> list[str]:
            return [word.replace("code=sm_", "code=compute_") for word in command(nvcc)] + list(QUICK)

        names["nvcc_command"] = nvcc_command
        cuda = [extension for extension in arguments["ext_modules"] if extension.name.endswith("_cuda")]
        setup(**arguments | {"ext_modules": cuda})

    setuptools.setup = quick
    sys.argv = ["setup.py", "build_ext", "--build-lib", folder, "--build-temp", f"{folder}/objects", "--parallel", "2"]
    runpy.run_path(str(ROOT / "setup.py"), run_name="__main__")


if __name__ == "__main__":
    main(sys.argv[1])
