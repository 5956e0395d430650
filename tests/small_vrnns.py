"""Small VRNNs of every kind, with inputs that fit them."""

from __future__ import annotations

from typing import Any

import torch
from random_models import random_batch, with_random_weights

from vssn import VRNN

T, B, X, U, H, Z, E, M = 5, 4, 4, 2, 5, 3, 6, 7
LENGTHS = torch.tensor([5, 0, 3, 1])
VRNNS: dict[str, dict[str, Any]] = {
    "plain": {},
    "standard": {"prior": "standard", "activation": "tanh"},
    "gaussian": {"likelihood": "gaussian", "min_logvar_x": -2.0, "activation": "leaky_relu"},
    "mixture": {"likelihood": "mixture", "mixture_size": 3, "activation": "silu"},
    "both": {"control": "both", "control_size": U, "initial_state": "learned", "activation": "tanh"},
    "masked": {"masked": True, "likelihood": "gaussian"},
    "floor": {"min_logvar": -1.0, "embed_size": None, "mlp_size": None},
}


def make(name: str = "plain", dtype: torch.dtype = torch.float64, **more: Any) -> VRNN:
    """The model with random weights everywhere, biases and initial states included."""
    model = VRNN(X, H, Z, **{"embed_size": E, "mlp_size": M, **VRNNS[name], **more}).to(dtype)
    with_random_weights(model, 21)
    return model.eval()


def batch(model: VRNN, steps: int = T, rows: int = B) -> dict[str, Any]:
    """x, u and noise, time-major."""
    return random_batch(model, 22, steps, rows)
