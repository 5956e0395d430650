"""Freed memory goes back to the system, as glibc has it, unless the caller chooses to keep it, so that a training loop
does not touch fresh memory in every step."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

glibc_only = pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc" or not os.path.exists("/proc/self/statm"), reason="glibc's malloc on Linux"
)
MEGABYTES = 400  # allocated and freed, as 40 tensors
# Prints how many megabytes are still there once freed.
PROGRAM = """
import os, torch, vssn_kernels
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6
vssn_kernels.gaussian_kl(*torch.randn(4, 50, 30, 9))  # an op of the backend has run
{first}
before = resident()
tensors = [torch.ones(10 << 20, dtype=torch.uint8) for _ in range(40)]
del tensors
{last}
print(resident() - before)
"""


def python(code: str, **variables: str) -> subprocess.CompletedProcess[str]:
    settings = ("MALLOC_", "GLIBC_TUNABLES", "VSSN_")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(settings)} | variables
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)


def kept(first: str = "", last: str = "", **variables: str) -> bool:
    result = python(PROGRAM.format(first=first, last=last), **variables)
    assert result.returncode == 0, result.stderr
    left = float(result.stdout)
    assert left < 0.2 * MEGABYTES or left > 0.8 * MEGABYTES, f"{left:.0f} MB of {MEGABYTES} are left"
    return left > 0.8 * MEGABYTES


@glibc_only
def test_importing_and_an_op_leave_malloc_as_it_is() -> None:
    assert not kept()


@glibc_only
def test_memory_is_kept_by_choice() -> None:
    assert kept("assert vssn_kernels.keep_memory()")
    assert kept(VSSN_KEEP_MEMORY="1")


@glibc_only
def test_the_choice_can_be_undone() -> None:
    assert not kept("vssn_kernels.keep_memory()", "assert not vssn_kernels.keep_memory(False)")


@glibc_only
@pytest.mark.parametrize("variable", [{"VSSN_KEEP_MEMORY": "0"}, {"MALLOC_TRIM_THRESHOLD_": "131072"}], ids=str)
def test_the_environment_overrules_a_program_that_would_keep(variable: dict[str, str]) -> None:
    assert not kept("assert not vssn_kernels.keep_memory()", **variable)


def test_a_wrong_value_is_named() -> None:
    result = python("import vssn_kernels", VSSN_KEEP_MEMORY="yes")
    assert "environment variable VSSN_KEEP_MEMORY must be 0, 1 or unset, got 'yes'" in result.stderr


def test_without_glibc_nothing_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    import vssn_kernels

    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    assert vssn_kernels.keep_memory() is False


class Chosen(Exception):
    """The program called keep_memory."""


def choose() -> bool:
    raise Chosen


def test_the_trainer_chooses_to_keep(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import vssn.training.fit
    from vssn.training.config import load_config

    monkeypatch.setattr(vssn.training.fit, "keep_memory", choose)
    with pytest.raises(Chosen):
        vssn.training.fit.fit(load_config("pendulum", [f"training.output={tmp_path / 'run'}"]))


def test_the_benchmarks_choose_to_keep(monkeypatch: pytest.MonkeyPatch) -> None:
    import benchmarks.run

    monkeypatch.setattr(benchmarks.run, "keep_memory", choose)
    with pytest.raises(Chosen):
        benchmarks.run.main(["--quick"])
