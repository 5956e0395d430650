"""A pytest plugin for `make gpu`: a time limit for each test, and the first failure shown when it happens.

    python -m pytest -p benchmarks.gpu_pytest --each-limit 60

A kernel that hangs blocks its thread inside the driver, where no Python signal handler runs: so past the limit a thread
of the interpreter's own prints the stacks and ends the process. With xdist the test counts as failed and the next ones
run in a new process. Where pytest-timeout is installed its --timeout does so, and --each-limit is left out.
"""

from __future__ import annotations

import faulthandler
import os
from collections.abc import Iterator

import pytest

# Opened before pytest captures the output.
_stderr = os.fdopen(os.dup(2), "w", buffering=1)
_failed: list[str] = []


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--each-limit", type=float, default=0.0, help="seconds for each test; 0: no limit")


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Set-up, test and tear-down of one test."""
    limit = item.config.getoption("--each-limit")
    if limit > 0:
        faulthandler.dump_traceback_later(limit, exit=True, file=_stderr)
    yield
    if limit > 0:
        faulthandler.cancel_dump_traceback_later()


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """With xdist the reports gather in the process that started the others."""
    if report.failed and not _failed and "PYTEST_XDIST_WORKER" not in os.environ:
        _stderr.write(f"\n---- first failure: {report.nodeid}\n{report.longreprtext}\n----\n")
        _failed.append(report.nodeid)
