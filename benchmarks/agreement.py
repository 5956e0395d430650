"""The check that contestants agree, before anything is timed."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.contestant import Tensors

# norm(a - b) / norm(b) of two float32 results: outputs; gradients, and parameters after an optimiser's step
OUTPUT_TOLERANCE, GRADIENT_TOLERANCE = 2e-5, 2e-4
BFLOAT16_TIMES = 1000  # as much in bfloat16, where a peer may round the state at every step


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """norm(actual - expected) / norm(expected), in float64; infinite where shapes differ or a number is not finite."""
    if actual.shape != expected.shape:
        return float("inf")
    actual, expected = actual.double(), expected.double()
    error = torch.linalg.vector_norm(actual - expected) / torch.linalg.vector_norm(expected).clamp(min=1e-30)
    return error.item() if torch.isfinite(error) else float("inf")


def disagreement(actual: Tensors, expected: Tensors, bfloat16: bool = False) -> tuple[float, str]:
    """The largest relative error, and a line naming every result beyond its tolerance ("" where all agree)."""
    if set(actual) != set(expected):
        return float("inf"), f"results differ: {', '.join(sorted(set(actual) ^ set(expected)))}"
    errors = {name: relative_error(actual[name], expected[name]) for name in expected}
    factor = BFLOAT16_TIMES if bfloat16 else 1
    beyond = [f"{name} by {error:.1e}" for name, error in errors.items() if not error <= factor * tolerance(name)]
    return max(errors.values()), f"disagrees in {', '.join(beyond)}" if beyond else ""


def tolerance(result: str) -> float:
    return GRADIENT_TOLERANCE if "gradient of" in result or "after a step" in result else OUTPUT_TOLERANCE
