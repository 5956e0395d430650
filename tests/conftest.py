"""Seeds for every test, and which of them make test leaves to others."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from types import ModuleType

import pytest
import torch


@pytest.hookimpl(tryfirst=True)  # before -m chooses
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    _leave_out_lacking(config, items)
    _mark_more(items)


def _mark_more(items: list[pytest.Item]) -> None:
    """What the marker `one_in` asks for."""
    seen: Counter[str] = Counter()
    for item in items:
        if mark := item.get_closest_marker("one_in"):
            test = item.nodeid.partition("[")[0]
            if seen[test] % mark.args[0]:
                item.add_marker("more")
            seen[test] += 1


def _leave_out_lacking(config: pytest.Config, items: list[pytest.Item]) -> None:
    """An op may come with the reference alone: its tests on backends that its row says lack it are left out. That rows
    and backends agree is a test of its own, in kernels/test_backends.py."""
    from vssn_kernels.testing import ROWS

    def lacking(item: pytest.Item) -> bool:
        given = item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}
        row = ROWS.get(str(getattr(given.get("sample"), "op", given.get("op"))))
        backends = {getattr(given.get("target"), "backend", None), *map(given.get, ("backend", "forward", "backward"))}
        if "cuda_host" in getattr(item, "fixturenames", ()):
            backends.add("cuda")
        return row is not None and not backends.isdisjoint(row.lacking)

    left_out = [item for item in items if lacking(item)]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if not lacking(item)]


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    """Every test draws the same numbers alone as in the whole suite, and leaves no compiled code behind."""
    torch.manual_seed(0)
    yield
    if "torch._dynamo" in sys.modules:  # else nothing was compiled, and asking would import it
        torch.compiler.reset()


@pytest.fixture(scope="module")
def cuda_host() -> Iterator[ModuleType]:
    """The CUDA kernels built for the host, in the place of the extension: the backend "cuda" takes CPU tensors."""
    from cuda_host import installed

    with installed() as module:
        yield module
