"""Installation: when setup.py builds the CUDA extension, what it says where it does not, what it compiles again after
a change, what make shows of it, and the versions that are named."""

from __future__ import annotations

import os
import platform
import re
import runpy
import shutil
import site
import subprocess
import sys
import sysconfig
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import setuptools
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from vssn_kernels import _cpu

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


# ---- What is compiled, and when again --------------------------------------------------------------------------------

KERNELS = ("bernoulli", "gaussian", "gru", "gru_step", "interleaved", "mlp", "posterior", "program", "table")
COMMON = ("bindings", "rows")
X86 = platform.machine() in ("x86_64", "amd64")
BFLOAT16 = ("amx", "avx512_bf16") if _cpu.bfloat16_products else ()  # as the compiler knows them
SETS = (*BFLOAT16, "avx2", "avx512", "generic") if X86 else ("generic",)
# g++ in its place: its own options left out, .cu taken for C++.
NVCC = """#!/bin/sh
echo "$@" >> nvcc.log
for word; do
    shift
    case "$word" in
    -gencode*|--expt*|-Xcompiler|-fPIC|-cudart*|-Xlinker*) ;;
    -c) set -- "$@" -fPIC -x c++ -c ;;
    *) set -- "$@" "$word" ;;
    esac
done
exec g++ "$@"
"""


class Project:
    """setup.py over small sources of the right names, with an nvcc of the test."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        shutil.copy(ROOT / "setup.py", folder)
        for name in ("csrc/cpu", "csrc/cuda", "csrc/common", "vssn_kernels", "bin"):
            (folder / name).mkdir(parents=True)
        (folder / "bin" / "nvcc").write_text(NVCC)
        (folder / "bin" / "nvcc").chmod(0o755)
        for name in (*KERNELS, *COMMON):
            text = "namespace VSSN_ISA { int %s() { return 0; } }\n" if name in KERNELS else "int %s() { return 0; }\n"
            self.write(f"csrc/cpu/{name}.cpp", text % name)
        self.write("csrc/cpu/panels.h", "#pragma once\n")
        self.write("csrc/cpu/simd.h", '#include "panels.h"\n')
        for name in ("gru", "rows"):  # one kernel file, one that is compiled once
            self.write(f"csrc/cpu/{name}.cpp", '#include "simd.h"\n' + (folder / f"csrc/cpu/{name}.cpp").read_text())
        self.write("csrc/cuda/gru.cuh", "#pragma once\n")
        self.write("csrc/cuda/gru.cu", '#include "gru.cuh"\nint polls() { return 0; }\n')
        self.write("csrc/cuda/bindings.cpp", "int unused;\n")

    def write(self, name: str, text: str) -> None:
        (self.folder / name).write_text(text)

    def build(
        self, *options: str, run: str = "build_ext --inplace", **variables: str
    ) -> subprocess.CompletedProcess[str]:
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("VSSN_", "CUDA_"))}
        environment |= {"PATH": f"{self.folder / 'bin'}:{environment['PATH']}", "VSSN_BUILD_CUDA": "0"} | variables
        command = [sys.executable, "setup.py", *run.split(), *options]
        return subprocess.run(
            command, cwd=self.folder, env=environment, capture_output=True, text=True, check=False, timeout=120
        )

    def compiled(self, *options: str, run: str = "build_ext --inplace", **variables: str) -> list[str]:
        """Builds; the objects that were made, and "link" for each extension."""
        done = self.build(*options, run=run, **variables)
        assert done.returncode == 0, done.stdout + done.stderr
        made = re.findall(r"^\[\d+/\d+\] .* -o (\S+)$", done.stdout, re.MULTILINE)
        return sorted("link" if path.endswith(".so") else path.partition("vssn_kernels.")[2] for path in made)


@pytest.fixture
def project(tmp_path: Path) -> Project:
    folder = tmp_path / "a path"
    folder.mkdir()
    return Project(folder)


def kernel(name: str) -> list[str]:
    return [f"_cpu/{isa}/{name}.o" for isa in SETS]


def everything() -> list[str]:
    return sorted([path for name in KERNELS for path in kernel(name)] + [f"_cpu/{name}.o" for name in COMMON])


def test_each_kernel_file_is_compiled_once_for_each_instruction_set(project: Project) -> None:
    done = project.build()
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [line for line in done.stdout.splitlines() if line.endswith("/gru.o")]
    assert len(lines) == len(SETS)
    for isa in SETS:
        (line,) = (line for line in lines if line.endswith(f"{isa}/gru.o"))
        assert f"-DVSSN_ISA={isa} " in line
        assert ("-mavx512f" in line) == (isa in ("avx512", *BFLOAT16))
        assert ("-mavx512bf16" in line) == (isa in BFLOAT16)
        assert ("-mamx-bf16" in line) == (isa == "amx")
        assert ("-mfma" in line) == (isa != "generic")
        assert "-O3" in line
    assert list((project.folder / "vssn_kernels").glob("_cpu.*.so"))
    # signs that ninja or the shell would take for their own
    assert project.build("--build-temp", "a $temp: 'x'").returncode == 0
    assert (project.folder / "a $temp: 'x'" / "vssn_kernels._cpu" / "rows.o").exists()


@pytest.mark.skipif(not X86, reason="of processors that are not here")
def test_a_compiler_that_does_not_know_an_instruction_set_leaves_it_out(project: Project, tmp_path: Path) -> None:
    old = tmp_path / "old-g++"
    old.write_text('#!/bin/sh\ncase "$*" in *-mamx*|*-mavx512bf16*) exit 1 ;; esac\nexec g++ "$@"\n')
    old.chmod(0o755)
    done = project.build(CXX=str(old))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "vssn_kernels._cpu has no kernels for amx and avx512_bf16: " in done.stdout
    assert "-DVSSN_ISA=avx512 " in done.stdout
    assert "BFLOAT16" not in done.stdout
    assert project.build().stdout.count("-DVSSN_BFLOAT16_ALONE ") == (2 * len(KERNELS) if BFLOAT16 else 0)


def test_only_what_changed_is_compiled_again(project: Project) -> None:
    assert project.compiled() == [*everything(), "link"]
    assert project.compiled() == []
    (module,) = (project.folder / "vssn_kernels").glob("_cpu.*.so")
    module.unlink()
    assert project.compiled() == []
    assert module.exists()
    project.write("csrc/cpu/mlp.cpp", "// changed\n")
    assert project.compiled() == sorted([*kernel("mlp"), "link"])
    # a header that another includes: its users alone
    project.write("csrc/cpu/panels.h", "#pragma once\nint more();\n")
    assert project.compiled() == sorted([*kernel("gru"), "_cpu/rows.o", "link"])
    assert project.compiled("--force") == [*everything(), "link"]


def test_a_second_editable_installation_compiles_little_again(project: Project, tmp_path: Path) -> None:
    """pip gives each build a new folder with pybind11 in it, and setuptools one for what it compiles."""
    project.write("csrc/cpu/bindings.cpp", '#include "pybind11.h"\nint bindings() { return 0; }\n')

    def compiled(folder: Path) -> list[str]:
        (folder / "pybind11").mkdir(parents=True)
        (folder / "pybind11" / "__init__.py").write_text(f"def get_include():\n    return {str(folder)!r}\n")
        (folder / "pybind11.h").write_text("#pragma once\n")
        return project.compiled(run="editable_wheel", PYTHONPATH=str(folder))

    assert compiled(tmp_path / "one") == [*everything(), "link"]
    assert compiled(tmp_path / "two") == ["_cpu/bindings.o", "link"]
    assert list((project.folder / "vssn_kernels").glob("_cpu.*.so"))


def test_flags_of_cuda_are_part_of_what_changed(project: Project) -> None:
    asked = {"VSSN_BUILD_CUDA": "1", "VSSN_CUDA_ARCHS": "80 90a"}
    cuda = ["_cuda/bindings.cpp.o", "_cuda/gru.cu.o", "link"]
    assert project.compiled() == [*everything(), "link"]
    assert project.compiled(**asked) == cuda
    log = (project.folder / "nvcc.log").read_text()
    assert log.count("-gencode=arch=compute_80,code=sm_80 -gencode=arch=compute_90a,code=sm_90a") == 2
    assert '-DVSSN_CUDA_ARCHITECTURES="sm_80+sm_90a"' in log
    assert "VSSN_DEBUG_POLLS" not in log
    assert project.compiled(**asked) == []
    assert project.compiled(**asked | {"VSSN_CUDA_DEBUG": "1"}) == cuda
    assert (project.folder / "nvcc.log").read_text().count("-DVSSN_DEBUG_POLLS=(1<<24)") == 2
    assert project.compiled(**asked) == cuda
    project.write("csrc/cuda/gru.cuh", "#pragma once\nint more();\n")
    assert project.compiled(**asked) == ["_cuda/gru.cu.o", "link"]
    assert project.compiled(**asked | {"VSSN_CUDA_ARCHS": "90a"}) == cuda


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("csrc/cpu/gru.cpp", "vssn_kernels._cpu is not built, see above"),
        ("csrc/cuda/gru.cu", "vssn_kernels._cuda is not built, see above; VSSN_BUILD_CUDA=0 installs without it"),
    ],
)
def test_a_compiler_that_fails_is_heard(source: str, message: str, project: Project) -> None:
    project.write(source, "broken\n")
    done = project.build(VSSN_BUILD_CUDA="1", VSSN_CUDA_ARCHS="90a")
    assert done.returncode == 1
    assert "error:" in done.stdout
    assert done.stderr.splitlines()[-1] == message


def test_without_a_compiler_the_build_says_what_to_install(project: Project) -> None:
    """One line, and no traceback; so does a compiler that is named and is not there."""
    done = project.build(PATH=str(project.folder / "nothing"))
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    said = done.stderr.splitlines()[-1]
    assert said.startswith("vssn_kernels._cpu is not built: the C++ compiler ")
    assert " is not found; install g++ (Debian, Ubuntu: apt install g++), or name another one: CXX=..." in said
    assert "the C++ compiler my-g++ is not found" in project.build(CXX="my-g++").stderr


def test_without_ninja_the_build_says_what_to_install(project: Project) -> None:
    for name in ("sh", "g++"):
        (project.folder / "bin" / name).symlink_to(shutil.which(name) or name)
    code = (
        "import runpy, sys, sysconfig; sysconfig.get_path = lambda name: '/nowhere'; sys.argv[0] = 'setup.py'; "
        "runpy.run_path('setup.py', run_name='__main__')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "build_ext", "--inplace"], cwd=project.folder, capture_output=True, text=True,
        env={"PATH": str(project.folder / "bin"), "VSSN_BUILD_CUDA": "0"}, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "ninja, which runs the compilers, is not found: pip install ninja"


# ---- make and versions -----------------------------------------------------------------------------------------------


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


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_another_python_has_an_environment_and_a_pytorch_of_its_own(tmp_path: Path) -> None:
    for name in ("Makefile", "pyproject.toml", "constraints.txt", "setup.py"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "csrc").mkdir()
    folder = f"build/python-{platform.python_version()}-torch-2.6.0"
    environment = {"PATH": os.environ["PATH"]}  # a make around this one hands its variables on
    for record, runs in (("", "-m pytest"), ("RECORD=1", "tests/counted_run.py versions")):
        command = ["make", "-n", "test-python", f"PYTHON={sys.executable}", "TORCH=2.6.0", record]
        done = subprocess.run(
            filter(None, command), cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
        )
        plan = re.sub(r"(\s*\\\n\s*|  +)", " ", done.stdout)
        assert f"s/^torch==.*/torch==2.6.0/' constraints.txt > {folder}/constraints.txt" in plan
        assert f"{sys.executable} -m venv {folder}\n" in plan
        assert f"{folder}/bin/pip install --constraint {folder}/constraints.txt -e '.[test]'" in plan
        assert f"{folder}/bin/python {runs} " in plan


# Pinned without a place in pyproject.toml: an optional peer of the benchmarks, and what three requirements ask for.
NOT_NAMED = {"jax", "torchmetrics", "cffi", "sortedcontainers"}
NOT_PINNED = {"triton"}  # a CUDA build of PyTorch asks for its own


@pytest.mark.parametrize("python", ["3.10", "3.11", "3.13"])
def test_every_requirement_is_pinned_once_and_every_pin_is_asked_for(python: str) -> None:
    tomllib = pytest.importorskip("tomllib")
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    project = settings["project"]
    named = [*settings["build-system"]["requires"], *project["dependencies"]]
    named += [line for lines in project["optional-dependencies"].values() for line in lines]
    here = {"python_version": python, "sys_platform": "linux"}

    def requirements(lines: list[str]) -> list[Requirement]:
        found = [Requirement(line) for line in lines]
        return [r for r in found if r.marker is None or r.marker.evaluate(here)]

    text = (ROOT / "constraints.txt").read_text()
    pins = requirements([line for line in text.splitlines() if line and not line.startswith("#")])
    versions = {canonicalize_name(pin.name): str(pin.specifier).removeprefix("==") for pin in pins}
    assert len(versions) == len(pins)
    asked = [r for r in requirements(named) if r.name != project["name"]]
    names = {canonicalize_name(r.name) for r in asked}
    assert names - set(versions) == NOT_PINNED
    assert set(versions) - names == NOT_NAMED
    for requirement in asked:
        if (name := canonicalize_name(requirement.name)) not in NOT_PINNED:
            assert requirement.specifier.contains(versions[name]), f"{requirement} is pinned to {versions[name]}"
    floors = {}
    for requirement in asked:
        floors.setdefault(canonicalize_name(requirement.name), set()).add(str(requirement.specifier))
    assert {name: found for name, found in floors.items() if len(found) > 1} == {}
