"""Calls drawn at random on every backend of this machine: values and gradients against the reference in float64.

`make fuzz` draws many more (tests/fuzz.py).
"""

from __future__ import annotations

import pytest
from drawn_calls import Case, cases
from hypothesis import HealthCheck, given, settings

from vssn_kernels.testing import FULL, HALF, OPS, Target, targets

# Cases that failed once: a relu's jump, which rounding moves, counted as an error of the gradients.
EXAMPLES = (Case("mlp", (1, 42, 4, 31, 48, 16), seed=1, choices=(("activation", "relu"), ("one", False))),)

TARGETS = [*targets(*FULL), *(target for target in targets(*HALF) if target.backend != "reference")]
each_target = pytest.mark.parametrize("target", TARGETS, ids=str)


@pytest.mark.parametrize("op", OPS)
@each_target
def test_drawn_calls(op: str, target: Target) -> None:
    """The same cases at every run."""

    @settings(max_examples=10, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
    @given(cases(op))
    def check(case: Case) -> None:
        assert_within(case, target)

    check()


@pytest.mark.parametrize("case", EXAMPLES, ids=lambda case: f"{case.op}-{case.seed}")
@each_target
def test_what_failed_once(case: Case, target: Target) -> None:
    assert_within(case, target)


def assert_within(case: Case, target: Target) -> None:
    """Raises AssertionError naming what is too far off."""
    wrong = {name: f"{ratio:.3g}" for name, ratio in case.run(target).items() if not ratio <= 1}
    assert not wrong, f"{case} on {target}: times the tolerance: {wrong}"
