"""Calls drawn at random on every backend of this machine: values and gradients against the reference in float64.

`make fuzz` draws many more (tests/fuzz.py).
"""

from __future__ import annotations

import pytest
import torch
from drawn_calls import Case, cases, require_within
from hypothesis import HealthCheck, given, settings

from vssn_kernels.testing import FULL, HALF, OPS, Sample, Target, targets

# Cases that failed once.
EXAMPLES: tuple[Case, ...] = (
    # In bfloat16 a sum of few numbers that cancel; states that a weight of 3 drives apart; one number of a steep KL.
    Case("gru_sequence", (3, 12, 1), seed=0, ragged="full", choices=(("reverse", False),)),
    Case("gru_sequence", (40, 9, 1), seed=64, ragged="full", choices=(("reverse", True),)),
    Case(
        "posterior_sequence",
        (20, 3, 1, 1),
        seed=29,
        ragged="full",
        choices=(("activation", "tanh"), ("min_logvar", -12.0), ("prior", True)),
    ),
    # A relu's jump, which rounding moves, counted as an error of the gradients.
    Case("mlp", (1, 42, 4, 31, 48, 16), seed=1, choices=(("activation", "relu"), ("one", False))),
    Case("mlp", (1, 3, 0, 49, 158, 3), seed=0, choices=(("activation", "leaky_relu"), ("one", False))),
)

TARGETS = [*targets(*FULL), *(target for target in targets(*HALF) if target.backend != "reference")]
each_target = pytest.mark.parametrize("target", TARGETS, ids=str)


@pytest.mark.parametrize("op", OPS)
@each_target
def test_drawn_calls(op: str, target: Target) -> None:
    """The same cases at every run."""

    @settings(max_examples=10, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
    @given(cases(op))
    def check(case: Case) -> None:
        require_within(case, case.run(target), f" on {target}")

    check()


@pytest.mark.parametrize("case", EXAMPLES, ids=lambda case: f"{case.op}-{case.seed}")
@pytest.mark.parametrize("target", targets(), ids=str)
def test_what_failed_once(case: Case, target: Target) -> None:
    require_within(case, case.run(target), f" on {target}")


def test_a_wrong_kernel_is_seen_beside_other_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is judged over many draws, beside the plain reference, is still an error of 3%."""
    real = Sample.run

    def run(sample: Sample, backend: str | None = None) -> dict[str, torch.Tensor]:
        found = real(sample, backend)
        return found if backend == "reference" else {name: 1.03 * out for name, out in found.items()}

    monkeypatch.setattr(Sample, "run", run)
    for dtype, least in ((torch.bfloat16, 2.0), (torch.float32, 100.0)):
        ratios = EXAMPLES[0].run(Target("cpu", "cpu", dtype))
        assert ratios["output"] > least, ratios
