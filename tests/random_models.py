"""Weights and batches drawn at random for small models whose noise is (eps_w of no width, eps_z)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vssn.models.base import FrameModel


def with_random_weights(model: FrameModel, seed: int) -> None:
    """Everywhere, biases and initial states included."""
    source = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.4 * torch.randn(parameter.shape, generator=source, dtype=torch.float64))


def random_batch(model: FrameModel, seed: int, steps: int, rows: int) -> dict[str, Any]:
    """x, u and noise, time-major."""
    source = torch.Generator().manual_seed(seed)
    dtype = model.a_parameter().dtype

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=source, dtype=torch.float64).to(dtype)

    x = normal(steps, rows, model.x_size)
    if model.likelihood.support.low == 0:
        x = (x > 0).to(dtype)
    u = normal(steps, rows, model.control_size) if model.control_size else None
    return {"x": x, "u": u, "noise": tuple(normal(steps, rows, size) for size in model.noise_sizes)}
