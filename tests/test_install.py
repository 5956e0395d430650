"""Installation: when setup.py builds the CUDA extension, what it says where it does not, and what make shows of it."""

from __future__ import annotations

import os
import runpy
import shutil
import site
import subprocess
import sysconfig
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import setuptools

ROOT = Path(__file__).resolve().parent.parent
WITHOUT, WITH = "cuda: Optional[str] = None", "cuda: Optional[str] = '12.8'"


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`machine.extensions(torch, gpu)` runs setup.py beside an nvcc: the names of what it would build."""
    tools, packages = tmp_path / "bin", tmp_path / "site-packages"
    for folder in (tools, packages):
        folder.mkdir()
    (tools / "nvcc").write_text("#!/bin/sh\nexit 1\n")
    (tools / "nvcc").chmod(0o755)
    for name in ("VSSN_BUILD_CUDA", "VSSN_CUDA_ARCHS", "CUDA_HOME", "CUDA_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    monkeypatch.chdir(ROOT)
    paths = sysconfig.get_paths() | {"purelib": str(packages)}
    monkeypatch.setattr(sysconfig, "get_paths", lambda: paths)
    monkeypatch.setattr(site, "getsitepackages", lambda: [str(packages)])
    monkeypatch.setattr(site, "getusersitepackages", lambda: str(packages))

    def extensions(torch: str | None, gpu: bool) -> list[str]:
        shutil.rmtree(packages / "torch", ignore_errors=True)
        if torch is not None:
            (packages / "torch").mkdir()
            (packages / "torch" / "version.py").write_text(f"__version__ = '2.13.0'\ndebug = False\n{torch}\n")
        listed = "echo GPU 0" if gpu else "exit 9"
        (tools / "nvidia-smi").write_text(f"#!/bin/sh\n{listed}\n")
        (tools / "nvidia-smi").chmod(0o755)
        glob = Path.glob  # a GPU of the machine that runs this has no say
        monkeypatch.setattr(Path, "glob", lambda path, *rest: [] if path == Path("/dev") else glob(path, *rest))
        asked = []
        monkeypatch.setattr(setuptools, "setup", lambda **settings: asked.extend(settings["ext_modules"]))
        runpy.run_path(str(ROOT / "setup.py"))
        return [extension.name for extension in asked]

    return SimpleNamespace(extensions=extensions, tools=tools)


CPU, BOTH = ["vssn_kernels._cpu"], ["vssn_kernels._cpu", "vssn_kernels._cuda"]


@pytest.mark.parametrize(
    ("torch", "gpu", "wanted", "reason"),
    [
        (WITHOUT, False, CPU, "PyTorch 2.13.0 in "),
        (WITHOUT, True, CPU, "PyTorch 2.13.0 in "),
        (WITH, False, BOTH, ""),
        (None, False, CPU, "there is no GPU here"),
        (None, True, BOTH, ""),
    ],
)
def test_cuda_is_built_where_something_can_use_it(
    torch: str | None, gpu: bool, wanted: list[str], reason: str, machine: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert machine.extensions(torch, gpu) == wanted
    said = capsys.readouterr().out
    assert said.count("\n") == (1 if reason else 0)
    if reason:
        assert said.startswith(f"vssn_kernels._cuda is not built: {reason}")
        assert said.endswith("; VSSN_BUILD_CUDA=1 builds it all the same\n")


@pytest.mark.parametrize(
    ("name", "value", "wanted"),
    [("VSSN_BUILD_CUDA", "1", BOTH), ("VSSN_CUDA_ARCHS", "90a", BOTH), ("VSSN_BUILD_CUDA", "0", CPU)],
)
def test_cuda_as_asked_for(
    name: str, value: str, wanted: list[str], machine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    assert machine.extensions(WITHOUT, False) == wanted
    assert machine.extensions(WITH if value == "0" else None, False) == wanted


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_make_tells_what_it_installs(tmp_path: Path) -> None:
    """pip is not silenced; where only sources changed, only vssn itself is installed again."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt", "setup.py"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "csrc").mkdir()

    def plan() -> list[str]:
        done = subprocess.run(["make", "-n", "demo"], cwd=tmp_path, capture_output=True, text=True, check=True)
        return done.stdout.splitlines()

    def install(lines: list[str]) -> str:
        return next(line for line in lines if " install " in line)

    first = plan()
    assert [line for line in first if line.startswith("echo")] == [
        'echo "== a virtual environment in .venv"',
        'echo "== vssn[train] into .venv: fetches PyTorch and other packages, then compiles the C++ kernels: a few '
        'minutes the first time"',
        'echo "== vssn[train] is installed"',
    ]
    assert "--quiet" not in install(first)
    assert "--no-deps" not in install(first)
    for number, path in enumerate((".venv/bin/python", "pyproject.toml", "constraints.txt", "setup.py")):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).touch()
        os.utime(tmp_path / path, (1e9 + number, 1e9 + number))
    (tmp_path / ".venv" / "demo-installed").touch()
    assert not [line for line in plan() if " install " in line]
    (tmp_path / "setup.py").touch()
    os.utime(tmp_path / ".venv" / "demo-installed", (1.1e9, 1.1e9))
    again = plan()
    assert "--no-deps" in install(again)
    assert "into .venv: compiles the C++ kernels" in "\n".join(again)
    (tmp_path / "constraints.txt").touch()
    assert "--no-deps" not in install(plan())
