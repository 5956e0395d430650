"""The parts of a step on a GPU: what is read of the program's output, the rows, failures; and the program's code."""

from __future__ import annotations

import csv
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from machine_code import Code

from benchmarks import ROOT, cuda_resources, gpu_floor, gpu_rows
from benchmarks.gpu_floor import Floor, architecture, by_program, parse, table

OUTPUT = """# sm_clock_first
#   7 runs: 1754.2 to 1755.1
sm_clock_first,MHz,1755
# cluster_barrier_16x256
# cluster_barrier_16x256 failed: cudaDeviceSynchronize(): out of range, no more
# l2_rate_256
l2_rate_256,bytes/cycle/SM,nan
shared_latency,cycles,2.9e+01
gpu_floor: some error, of the driver
"""
FOUND = [
    Floor("sm_clock_first", "MHz", 1755.0),
    Floor("cluster_barrier_16x256", "", None, "failed: cudaDeviceSynchronize(): out of range, no more"),
    Floor("l2_rate_256", "bytes/cycle/SM", None, "failed: gave nan"),
    Floor("shared_latency", "cycles", 29.0),
]


def program(folder: Path, code: str) -> Path:
    """Takes the place of what nvcc makes."""
    path = folder / "program"
    path.write_text(f"#!{sys.executable}\nimport sys, time\nsys.stdout.write({OUTPUT!r})\nsys.stdout.flush()\n{code}\n")
    path.chmod(0o755)
    return path


def soon() -> float:
    return time.monotonic() + 60


def test_the_program_s_lines_are_read() -> None:
    assert parse(OUTPUT) == FOUND
    assert parse("") == []
    assert [one.status for one in parse("a,us,-1\nb,us,inf\nc,us,x")] == [
        "failed: gave -1",
        "failed: gave inf",
        "failed: gave x",
    ]


def test_the_table_is_markdown() -> None:
    lines = table(FOUND[:2]).splitlines()
    assert lines[0] == "| measurement | unit | value |"
    assert lines[2:] == [
        "| sm_clock_first | MHz | 1755 |",
        "| cluster_barrier_16x256 |  | failed: cudaDeviceSynchronize(): out of range, no more |",
    ]


def test_what_a_program_that_fails_has_measured_is_kept(tmp_path: Path) -> None:
    assert list(by_program(program(tmp_path, ""), tmp_path, soon())) == FOUND
    failed = Floor("gpu_floor.cu", "", None, "failed: failed: exit status 3")
    assert list(by_program(program(tmp_path, "sys.exit(3)"), tmp_path, soon())) == [*FOUND, failed]
    late = Floor("gpu_floor.cu", "", None, "failed: out of time")
    hangs = program(tmp_path, "time.sleep(600)")
    assert list(by_program(hangs, tmp_path, time.monotonic() + 4)) == [*FOUND, late]


def test_without_nvcc_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_floor, "nvcc", lambda: None)
    assert list(by_program(None, tmp_path, soon())) == [Floor("gpu_floor.cu", "", None, "failed: nvcc is not found")]


def test_what_does_not_compile_is_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = program(tmp_path, "print('ARGUMENTS', *sys.argv[1:]); sys.exit(1)")
    monkeypatch.setattr(gpu_floor, "nvcc", lambda: str(compiler))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    failed = Floor("gpu_floor.cu", "", None, "failed: build failed: exit status 1")
    assert list(by_program(None, tmp_path, soon())) == [failed]
    assert "-gencode=arch=compute_90a,code=sm_90a" in (tmp_path / "gpu_floor.log").read_text()


def test_architectures() -> None:
    assert [architecture(*one) for one in ((8, 0), (8, 9), (9, 0), (10, 0), (12, 0))] == [
        "80",
        "89",
        "90a",
        "100a",
        "120a",
    ]


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """As far as the rows see one."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "some GPU")
    monkeypatch.delenv("OUT", raising=False)
    monkeypatch.setenv("VSSN_GPU_DATE", "2030-01-02T03:04:05+00:00")


def test_rows_stand_in_both_files(
    gpu: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def through_pytorch() -> Iterator[Floor]:
        yield Floor("copy_64MB", "GB/s", 2345.678912)

    monkeypatch.setattr(gpu_floor, "through_pytorch", through_pytorch)
    monkeypatch.setattr(gpu_floor, "CSV", tmp_path / "results" / "floor.csv")
    monkeypatch.delenv("VSSN_GPU_CSV", raising=False)
    arguments = ["--out", str(tmp_path / "out"), "--binary", str(program(tmp_path, ""))]
    assert gpu_floor.main(arguments) == 1  # two of its measurements failed
    files = [tmp_path / "results" / "floor.csv", tmp_path / "out" / "floor.csv"]
    assert files[0].read_text() == files[1].read_text()
    rows = list(csv.DictReader(files[0].open()))
    assert list(rows[0]) == [*gpu_rows.WHERE, "measurement", "unit", "value", "status"]
    assert [row["measurement"] for row in rows] == ["copy_64MB", *(one.measurement for one in FOUND)]
    assert [row["value"] for row in rows] == ["2345.7", "1755.0", "", "", "29.0"]
    assert {(row["device"], row["date"]) for row in rows} == {("some GPU", "2030-01-02T03:04:05+00:00")}
    text = capsys.readouterr().out
    assert "| copy_64MB | GB/s | 2346 |" in text
    assert "| shared_latency | cycles | 29 |" in text
    assert "shared_latency,cycles" in (tmp_path / "out" / "floor_program.log").read_text()


def test_a_csv_with_other_columns_is_refused(
    gpu: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "floor.csv"
    path.write_text("other,columns\n")
    monkeypatch.setenv("VSSN_GPU_CSV", str(path))
    assert gpu_floor.main([]) == 2
    line = f"benchmarks.gpu_floor: {path} has other columns than this version writes; move it away\n"
    assert capsys.readouterr().err == line


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_it_refuses_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu_floor.main([]) == 2
    assert capsys.readouterr().err == f"benchmarks.gpu_floor: PyTorch {torch.__version__} finds no CUDA device here\n"


# ---- The program ----------------------------------------------------------------------------------------------------

needs_nvcc = pytest.mark.skipif(cuda_resources.nvcc() is None, reason="nvcc is not found: install the CUDA toolkit")
# What one pass of a kernel's loop must hold, by a part of its mangled name: nothing is left out or done before it.
IN_LOOP = {
    "block_barrier_kernel": {"BAR": 8},
    "cluster_barrier_kernelILb0": {"UCGABAR_WAIT": 1},
    "cluster_barrier_kernelILb1": {"UCGABAR_WAIT": 1, "MEMBAR": 1},
    "grid_barrier_kernelILb0": {"MEMBAR": 2, "REDG": 1, "BAR": 2},
    "grid_barrier_kernelILb1": {"MEMBAR": 2, "REDG": 1, "BAR": 2, "LDG": 5, "STG": 1},
    "grid_ping_kernel": {"REDG": 2},
    "release_kernel": {"STG": 1, "MEMBAR": 1, "REDG": 1, "CS2R": 2},
    "cluster_exchange_kernelILb0": {"STAS": 1, "SYNCS": 3},
    "cluster_exchange_kernelILb1": {"STAS": 1, "SYNCS": 3},
    "cluster_ping_kernel": {"STAS": 2, "SYNCS": 3},
    "shared_chain_kernelILb0": {"LDS": 16},
    "shared_chain_kernelILb1": {"LD": 16},
    "shared_rate_kernelILb0": {"LDS": 8},
    "shared_rate_kernelILb1": {"LD": 8},
    "ldmatrix_kernel": {"LDSM": 8},
    "l2_chain_kernel": {"LDG": 8},
    "l2_rate_kernelILi8": {"LDG": 8},
    "l2_rate_kernelILi4": {"LDG": 4},
    "product_kernelINS0_4tf32ELi1": {"HMMA": 16},
    "product_kernelINS0_4tf32ELi4": {"HMMA": 64},
    "product_kernelINS0_4tf32ELi8": {"HMMA": 128},
    "product_kernelI13__nv_bfloat16Li1": {"HMMA": 16},
    "product_kernelI13__nv_bfloat16Li4": {"HMMA": 64},
    "product_kernelI13__nv_bfloat16Li8": {"HMMA": 128},
    **{f"{name}ELi1": {"MUFU": 16} for name in ("3Ex2", "10TanhApprox", "3Exp")},
    **{f"{name}ELi4": {"MUFU": 64} for name in ("3Ex2", "10TanhApprox", "3Exp")},
    **{f"{name}ELi1": {"MUFU": 32} for name in ("7Sigmoid", "4Tanh")},
    **{f"{name}ELi4": {"MUFU": 128} for name in ("7Sigmoid", "4Tanh")},
    "11MultiplyAddELi1": {"FFMA": 16},
    "11MultiplyAddELi4": {"FFMA": 64},
    "7ShuffleELi1": {"SHFL": 16},
    "7ShuffleELi4": {"SHFL": 64},
    "clock_kernel": {"FFMA": 256},
}


@pytest.mark.slow
@needs_nvcc
def test_the_loops_hold_what_is_measured(tmp_path: Path) -> None:
    command = [
        cuda_resources.nvcc() or "nvcc",
        "-std=c++17",
        "-O3",
        "-Werror",
        "all-warnings",
        "-arch=sm_90a",
        "-cubin",
    ]
    subprocess.run([*command, "-o", str(tmp_path / "cubin"), str(gpu_floor.SOURCE)], cwd=ROOT, check=True)
    text = cuda_resources._run(cuda_resources._tool("cuobjdump"), "-sass", str(tmp_path / "cubin"))
    seen = set()
    for part in text.split("Function : ")[1:]:
        name = part.partition("\n")[0]
        code = Code(part)
        loops = [Counter(code.all[i].name.partition(".")[0] for i in loop) for loop in code.loops]
        for wanted, counts in IN_LOOP.items():
            if wanted not in name:
                continue
            seen.add(wanted)
            assert any(all(loop[op] >= n for op, n in counts.items()) for loop in loops), (name, counts, loops)
    assert seen == set(IN_LOOP)


@pytest.mark.slow
@needs_nvcc
@pytest.mark.parametrize("arch", ["sm_80", "sm_100a", "sm_120"])
def test_it_compiles_for_others(arch: str, tmp_path: Path) -> None:
    command = [cuda_resources.nvcc() or "nvcc", "-std=c++17", "-Werror", "all-warnings", f"-arch={arch}", "-cubin"]
    command += ["-Xcicc", "-O0", "-Xptxas", "-O0", "-o", str(tmp_path / "cubin"), str(gpu_floor.SOURCE)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-2000:]


def test_no_two_measurements_of_the_program_have_one_name() -> None:
    """Of those that it names by a text alone."""
    names = re.findall(r'add\("(\w+)", "', gpu_floor.SOURCE.read_text())
    assert len(names) > 10
    assert len(names) == len(set(names))
