"""Small DVBFs of every kind, with inputs that fit them."""

from __future__ import annotations

from typing import Any

import torch
from random_models import random_batch, with_random_weights

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
    with_random_weights(model, 31)
    return model.eval()


def batch(model: DVBF, steps: int = T, rows: int = B) -> dict[str, Any]:
    """x, u and noise, time-major."""
    return random_batch(model, 32, steps, rows)
