"""Small DVBFs of every kind, with inputs that fit them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vssn import DVBF

T, B, X, U, Z, W, K = 5, 4, 4, 2, 3, 2, 3
LENGTHS = torch.tensor([5, 0, 3, 1])
DVBFS: dict[str, dict[str, Any]] = {
    "plain": {"control": "none"},
    "driven": {"control_size": U, "embed_size": 6, "min_logvar_x": -2.0},
    "bernoulli": {"control_size": U, "likelihood": "bernoulli", "activation": "leaky_relu", "min_logvar": -1.0},
    "masked": {"control": "none", "masked": True, "embed_size": 6, "activation": "silu"},
    "sizes": {"control_size": U, "noise_size": 4, "backward_size": None, "matrices": 2, "activation": "relu"},
}


def make(name: str = "driven", dtype: torch.dtype = torch.float64, **more: Any) -> DVBF:
    """The model with random weights everywhere, biases included."""
    sizes = {"noise_size": W, "matrices": K, "mlp_size": 7, "backward_size": 5}
    model = DVBF(X, Z, **{**sizes, **DVBFS[name], **more}).to(dtype)
    source = torch.Generator().manual_seed(31)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.4 * torch.randn(parameter.shape, generator=source, dtype=torch.float64))
    return model.eval()


def batch(model: DVBF, steps: int = T, rows: int = B) -> dict[str, Any]:
    """x, u and noise, time-major."""
    source = torch.Generator().manual_seed(32)
    dtype = model.a_parameter().dtype

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=source, dtype=torch.float64).to(dtype)

    x = normal(steps, rows, X)
    if model.likelihood.support.low == 0:
        x = (x > 0).to(dtype)
    u = normal(steps, rows, U) if model.control_size else None
    return {"x": x, "u": u, "noise": (normal(steps, rows, 0), normal(steps, rows, model.noise_size))}
