"""Small models of every kind, with inputs that fit them: what the tests of the model share."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vssn import VSSN, VSSNOutput

T, B, X, U, D, Z, W = 5, 4, 4, 2, 5, 3, 2
LENGTHS = torch.tensor([5, 0, 3, 1])
TOLERANCE = 1e-11  # in float64

# Each is (D, Z, W) and the options.
MODELS: dict[str, tuple[tuple[int, int, int], dict[str, Any]]] = {
    "vssn": ((D, Z, W), {}),
    "srnn": ((D, Z, 0), {}),
    "srnn_residual": ((D, Z, 0), {"residual_posterior": True}),
    "srnn_none": ((D, Z, 0), {"control": "none"}),
    "storn": ((D, 0, W), {}),
    "rnn": ((D, 0, 0), {}),
    "dkf": ((0, Z, 0), {"mlp_size": 6, "backward_size": 7}),
    "dkf_external": ((0, Z, 0), {"mlp_size": 6, "backward_size": 7, "control": "external", "control_size": U}),
    "dkf_both_residual": (
        (0, Z, 0),
        {"mlp_size": 6, "backward_size": 7, "control": "both", "control_size": U, "residual_posterior": True},
    ),
    "external": ((D, Z, W), {"control": "external", "control_size": U}),
    "both": ((D, Z, W), {"control": "both", "control_size": U, "activation": "silu"}),
    "none": ((D, Z, W), {"control": "none"}),
    "embedded": ((D, Z, W), {"embed_size": 6}),
    "embedded_both": ((D, Z, W), {"embed_size": 6, "control": "both", "control_size": U}),
    "sizes": ((D, Z, W), {"mlp_size": 8, "backward_size": 7, "residual_posterior": True, "activation": "relu"}),
    "initial_state": ((D, Z, W), {"learn_initial_state": True, "activation": "leaky_relu"}),
    "smoothing": ((D, Z, W), {"noise_smoothing": True, "control": "both", "control_size": U, "backward_size": 7}),
    "causal": ((D, Z, W), {"inference": "causal", "backward_size": 7}),
    "causal_both_residual": (
        (D, Z, W),
        {"inference": "causal", "control": "both", "control_size": U, "embed_size": 6, "residual_posterior": True},
    ),
    "causal_dkf": (
        (0, Z, 0),
        {"inference": "causal", "mlp_size": 6, "backward_size": 7, "control": "external", "control_size": U},
    ),
    "causal_masked": ((D, Z, W), {"inference": "causal", "masked": True, "likelihood": "gaussian"}),
    "causal_storn": ((D, 0, W), {"inference": "causal"}),
    "gaussian": ((D, Z, W), {"likelihood": "gaussian", "min_logvar_x": -2.0}),
    "mixture": ((D, Z, W), {"likelihood": "mixture", "mixture_size": 3}),
    "nade": ((D, Z, W), {"likelihood": "nade", "nade_size": 6}),
    "poisson": ((D, Z, W), {"likelihood": "poisson"}),
    "negative_binomial": ((D, Z, W), {"likelihood": "negative_binomial"}),
    "categorical": ((D, Z, W), {"likelihood": "categorical", "num_classes": 3}),
    "student_t": ((D, Z, W), {"likelihood": "student_t", "min_logvar_x": -2.0}),
    "masked": ((D, Z, W), {"masked": True}),
    "masked_mixture_embedded": (
        (D, Z, W),
        {"masked": True, "likelihood": "mixture", "mixture_size": 2, "embed_size": 6},
    ),
    "universal": ((D, Z, W), {"universal": "gaussian", "num_sequences": 10}),
    "floor": ((D, Z, W), {"min_logvar": -1.0}),
}

# Whose d_0 is inferred: their noise has a third part, [B, S].
INFERRED: dict[str, tuple[tuple[int, int, int], dict[str, Any]]] = {
    "inferred": ((D, Z, W), {}),
    "inferred_smoothing": ((D, Z, W), {"noise_smoothing": True, "initial_size": 2, "backward_size": 7}),
    "inferred_storn": ((D, 0, W), {"control": "both", "control_size": U, "initial_size": 6}),
    "inferred_rnn": ((D, 0, 0), {"noise_smoothing": True, "control": "none"}),
    "inferred_srnn": ((D, Z, 0), {"residual_posterior": True, "likelihood": "gaussian", "embed_size": 6}),
    "inferred_masked": ((D, Z, W), {"masked": True, "control": "external", "control_size": U}),
    "inferred_universal": ((D, Z, W), {"universal": "gaussian", "num_sequences": 10}),
}
INFERRED = {name: (sizes, {**options, "initial_state": "inferred"}) for name, (sizes, options) in INFERRED.items()}


def make(name: str = "vssn", dtype: torch.dtype = torch.float64, **more: Any) -> VSSN:
    """The model with random weights everywhere, biases and initial states included."""
    sizes, options = (MODELS | INFERRED)[name]
    model = VSSN(X, *sizes, **options | more).to(dtype)
    source = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.35 * torch.randn(parameter.shape, generator=source, dtype=torch.float64))
    return model.eval()


def batch(model: VSSN, steps: int = T, rows: int = B) -> dict[str, Any]:
    """x, u and noise that fit the model, time-major."""
    source = torch.Generator().manual_seed(12)
    dtype = model.layer.dtype

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=source, dtype=torch.float64).to(dtype)

    x = normal(steps, rows, X)
    high = model.likelihood.support.high
    if model.likelihood.support.low == 0:
        x = (x > 0).to(dtype) if high == 1 else (2 * x).abs().round().clamp(max=high)
    u = normal(steps, rows, model.control_size) if model.control_size else None
    noise = (normal(steps, rows, model.layer.noise_size), normal(steps, rows, model.layer.latent_size))
    if model.initial_size:
        noise = (*noise, normal(rows, model.initial_size))
    return {"x": x, "u": u, "noise": noise}


def flat(out: VSSNOutput) -> dict[str, Tensor]:
    return {**{name: part for name, part in out._asdict().items() if name != "state"}, **out.state._asdict()}


def parameter_gradients(model: VSSN, loss: Tensor) -> dict[str, Tensor]:
    named = dict(model.named_parameters())
    grads = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    return {n: torch.zeros_like(p) if g is None else g for (n, p), g in zip(named.items(), grads, strict=True)}


def a_mask() -> Tensor:
    return torch.rand(T, B, X, generator=torch.Generator().manual_seed(3)) > 0.3


def zeros(*shape: int) -> Tensor:
    return torch.zeros(shape)
