"""python tests/counted_run.py TOPIC NAME [pytest's arguments]: runs pytest, and where all went well records how many
tests passed (results/reliability/TOPIC.json), with what the tests themselves counted in FIGURES."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import pytest
from reliability_records import record

# What the tests of this process add: numbers by name, of which the record holds the largest, beside their count.
FIGURES: dict[str, float] = {}


def largest(name: str, value: float) -> None:
    """Keeps the largest value of a figure."""
    FIGURES[name] = max(value, FIGURES.get(name, 0.0))


class Counter:
    """A plugin: of the tests' calls, how many passed and how many did not."""

    def __init__(self) -> None:
        self.passed = self.failed = 0

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.passed += report.when == "call" and report.passed
        self.failed += report.failed


def main(argv: Sequence[str] | None = None) -> int:
    """The command line. The variable MADE_BY says how the run is named in the record."""
    topic, name, *options = sys.argv[1:] if argv is None else argv
    sys.modules["counted_run"] = sys.modules[__name__]  # the tests import it by its name
    counter = Counter()
    status = pytest.main(["-q", *options], plugins=[counter])
    if status == 0:
        file = record(
            name,
            topic=topic,
            command=os.environ.get("MADE_BY"),
            tests=counter.passed,
            mismatches=counter.failed,
            **FIGURES,
        )
        print(f"recorded in {file}")
    return int(status)


if __name__ == "__main__":
    sys.exit(main())
