"""The activations that the ops and the networks know, and their slopes as functions of the pre-activation."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

ACTIVATIONS = ("tanh", "relu", "leaky_relu", "silu")
MORE_ACTIVATIONS = (*ACTIVATIONS, "elu", "identity")  # of interleaved_sequence
LEAKY_SLOPE = 1 / 3


def activate(x: Tensor, activation: str, *, overwrite: bool = False) -> Tensor:
    """act(x); with `overwrite` in the memory of x, for those whose gradient follows from the result alone."""
    if activation == "tanh":
        return torch.tanh_(x) if overwrite else torch.tanh(x)
    if activation == "relu":
        return F.relu(x, inplace=overwrite)
    if activation == "leaky_relu":
        return F.leaky_relu(x, LEAKY_SLOPE, inplace=overwrite)
    if activation == "elu":
        return F.elu(x, inplace=overwrite)
    if activation == "identity":
        return x
    return F.silu(x)


def activation_slope(x: Tensor, activation: str) -> Tensor:
    """d activate(x) / dx; at 0 the slope of the left side, as PyTorch takes it."""
    if activation == "tanh":
        return 1 - torch.tanh(x) ** 2
    if activation == "relu":
        return (x > 0).to(x.dtype)
    if activation == "leaky_relu":
        return torch.where(x > 0, torch.ones_like(x), torch.full_like(x, LEAKY_SLOPE))
    if activation == "elu":
        return torch.exp(x.clamp(max=0))
    if activation == "identity":
        return torch.ones_like(x)
    sigmoid = torch.sigmoid(x)
    return sigmoid * (1 + x * (1 - sigmoid))
