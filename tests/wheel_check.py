"""python tests/wheel_check.py [FOLDER]: source archive, wheel of it, a clean environment with the wheel, tests there.

Nothing is fetched: the wheel is built with the setuptools, pybind11 and ninja of this Python, and the environment takes
PyTorch and the other packages from here, but not vssn: it must be the wheel's, and so must the command.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import venv
import zipfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# A test of each part: ops with gradients, layers, a model, configuration, the files that lie in the package.
TESTS = (
    "tests/kernels/test_gru.py",
    "tests/kernels/test_posterior.py",
    "tests/nn/test_nn_gru.py",
    "tests/models/test_pretrained.py",
    "tests/training/test_config.py",
)
IN_ARCHIVE = (
    "setup.py",
    "constraints.txt",
    *(f"csrc/{name}" for name in ("common/cell.h", "cpu/simd.h", "cpu/gru.cpp", "cuda/gru_forward.cu", "cuda/gru.h")),
    "tests/conftest.py",
    "tests/step_by_step.py",
)
IN_WHEEL = ("vssn/py.typed", "vssn_kernels/py.typed", "vssn_kernels/_cpu.pyi", "vssn/configs/", "vssn_kernels/_cpu.")
SAY = "import vssn, vssn_kernels; from vssn_kernels import _cpu; print(vssn.__file__); print(_cpu.__file__)"


def call(*command: str | Path, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VSSN_BACKEND")}
    return subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env=environment | variables,
        capture_output=True,
        text=True,
        check=False,
    )


def run(*command: str | Path, cwd: Path, **variables: str) -> str:
    """What it says; where it fails, this program ends after its output was shown."""
    done = call(*command, cwd=cwd, **variables)
    if done.returncode != 0:
        print(done.stdout[-6000:], done.stderr[-6000:], file=sys.stderr)
        raise SystemExit(f"wheel_check: {' '.join(map(str, command))} failed with {done.returncode}")
    return done.stdout


def make_archive(folder: Path) -> Path:
    """The source archive, of a build without nvcc: it must hold what a machine with one compiles."""
    code = f"from setuptools import build_meta; build_meta.build_sdist({str(folder)!r})"
    run(sys.executable, "-c", code, cwd=ROOT, VSSN_BUILD_CUDA="0")
    (archive,) = folder.glob("*.tar.gz")
    with tarfile.open(archive) as file:
        names = {name.partition("/")[2] for name in file.getnames()}
    require("the source archive", [name for name in IN_ARCHIVE if name not in names])
    require("the source archive without builds", [name for name in names if name.endswith((".so", ".o", ".pyc"))])
    return archive


def make_wheel(archive: Path, folder: Path) -> Path:
    """A wheel of the archive, unpacked elsewhere: nothing of this folder helps."""
    with tarfile.open(archive) as file:
        file.extractall(folder / "unpacked", filter="data")
    (source,) = (folder / "unpacked").iterdir()
    options = ("--no-build-isolation", "--no-deps", "--no-index", "--wheel-dir", folder)
    command = (sys.executable, "-m", "pip", "wheel", *options, source)
    refused = call(*command, cwd=folder, VSSN_BUILD_CUDA="0", PATH="/nowhere", CXX="g++")
    said = "install g++ (Debian, Ubuntu: apt install g++)" in refused.stdout + refused.stderr
    require("what to install is not said without a compiler", [] if refused.returncode and said else [refused.stdout])
    run(*command, cwd=folder, VSSN_BUILD_CUDA="0")
    (wheel,) = folder.glob("vssn-*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    require("the wheel", [part for part in IN_WHEEL if not any(name.startswith(part) for name in names)])
    tops = ("vssn/", "vssn_kernels/", "vssn-")
    require("the wheel beside its packages", [name for name in names if not name.startswith(tops)])
    return wheel


def require(what: str, wrong: Sequence[str]) -> None:
    if wrong:
        raise SystemExit(f"wheel_check: {what}: {', '.join(sorted(wrong))}")


def make_environment(wheel: Path, folder: Path) -> Path:
    """The Python of a new environment with the wheel and the packages here. A line in a .pth file adds a folder, but
    reads no .pth files in it: an editable vssn stays unseen."""
    venv.create(folder / "venv", with_pip=True)
    python = folder / "venv" / "bin" / "python"
    run(python, "-m", "pip", "install", "--no-deps", "--no-index", wheel, cwd=folder)
    place = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder).strip()
    Path(place, "packages.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python


def check(folder: Path) -> None:
    """All of it, in a folder that is empty."""
    archive = make_archive(folder)
    wheel = make_wheel(archive, folder)
    print(f"{archive.name}: {archive.stat().st_size >> 10} KiB; {wheel.name}: {wheel.stat().st_size >> 10} KiB")
    python = make_environment(wheel, folder)
    away = folder / "away"  # with the tests, without the packages
    for name in ("tests", "benchmarks"):
        shutil.copytree(ROOT / name, away / name, ignore=shutil.ignore_patterns("__pycache__", "results"))
    shutil.copy(ROOT / "pyproject.toml", away)
    for line in run(python, "-c", SAY, cwd=away).splitlines():
        require("not the wheel's", [line] if not line.startswith(str(folder / "venv")) else [])
    print(run(python, "-m", "vssn", "--version", cwd=away).strip())
    run(folder / "venv" / "bin" / "vssn", "--help", cwd=away)
    done = run(python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not slow", *TESTS, cwd=away)
    print(done.splitlines()[-1])


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    if arguments:
        folder = Path(arguments[0]).resolve()
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        check(folder)
    else:
        with tempfile.TemporaryDirectory() as place:
            check(Path(place))
    return 0


if __name__ == "__main__":
    sys.exit(main())
