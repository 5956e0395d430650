"""One or two linear layers over several inputs, with their gradient.

sum = bias + sum_i x_i W_i^T;   one layer: out = sum;   two: hidden = act(sum), out = hidden W_out^T + b_out
with min_logvar: (mu, raw) = out, logvar = min_logvar + softplus(raw - min_logvar)

The products are the library's, in the dtype of the inputs: a backend without kernels of its own for this op takes
`mlp_forward` and `mlp_backward` from here (backend/table.py).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from vssn_kernels.activations import activate, activation_slope
from vssn_kernels.reference.sequence import compute_dtype, softplus


def weights_by_input(weights: Sequence[Tensor], inputs: Sequence[Tensor]) -> Sequence[Tensor]:
    """W_i [M, K_i] for each input: those given, or the columns of the one matrix given."""
    return weights if len(weights) == len(inputs) else weights[0].split([x.shape[-1] for x in inputs], 1)


def mlp(
    inputs: Sequence[Tensor],  # [..., K_i]
    weights: Sequence[Tensor],  # [M, K_i], or one [M, sum of K_i]
    bias: Tensor,  # [M]
    weight_out: Tensor | None = None,  # [O, M]
    bias_out: Tensor | None = None,  # [O]
    *,
    activation: str = "tanh",
    min_logvar: float | None = None,
) -> tuple[Tensor, Tensor | None]:
    """The plain function, differentiable any number of times: (out, None), or with min_logvar (mu, logvar)."""
    total = _sum(inputs, weights, bias)
    if weight_out is None:
        return total, None
    return _output(activate(total, activation), weight_out, bias_out, min_logvar)


def _sum(inputs: Sequence[Tensor], weights: Sequence[Tensor], bias: Tensor) -> Tensor:
    own = weights_by_input(weights, inputs)
    total = F.linear(inputs[0], own[0], bias)
    for x, weight in zip(inputs[1:], own[1:], strict=True):
        total = total + F.linear(x, weight)
    return total


def _output(
    hidden: Tensor, weight_out: Tensor, bias_out: Tensor | None, min_logvar: float | None
) -> tuple[Tensor, Tensor | None]:
    out = F.linear(hidden, weight_out, bias_out)
    if min_logvar is None:
        return out, None
    mu, raw = out.chunk(2, -1)
    logvar = min_logvar + softplus(raw.to(compute_dtype(raw.dtype)) - min_logvar)
    return mu, logvar.to(raw.dtype)


def mlp_forward(
    inputs: Sequence[Tensor],
    weights: Sequence[Tensor],
    bias: Tensor,
    weight_out: Tensor | None,
    bias_out: Tensor | None,
    activation: str,
    min_logvar: float | None,
    need_backward: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """(out or mu, logvar, the hidden layer before its activation [..., M]); empty where there is none or no need."""
    total = _sum(inputs, weights, bias)
    if weight_out is None:
        return total, bias.new_empty(0), bias.new_empty(0)
    out, logvar = _output(activate(total, activation), weight_out, bias_out, min_logvar)
    return out, bias.new_empty(0) if logvar is None else logvar, total if need_backward else bias.new_empty(0)


def mlp_backward(
    grad_out: Tensor | None,  # [..., O]
    grad_logvar: Tensor | None,  # [..., O]
    inputs: Sequence[Tensor],
    weights: Sequence[Tensor],
    weight_out: Tensor | None,
    logvar: Tensor,
    hidden: Tensor,
    activation: str,
    min_logvar: float | None,
    needs: Sequence[bool],
) -> list[Tensor | None]:
    """Gradients of (*inputs, *weights, bias, weight_out, bias_out), None where not needed."""
    need_inputs, need_weights = needs[: len(inputs)], needs[len(inputs) : len(inputs) + len(weights)]
    need_bias, need_weight_out, need_bias_out = needs[len(inputs) + len(weights) :]
    grad_weight_out = grad_bias_out = None
    if weight_out is None:
        assert grad_out is not None
        grad_sum = _rows(grad_out)
    else:
        grad = _rows(_output_grad(grad_out, grad_logvar, logvar, min_logvar))
        before = _rows(hidden)
        if need_weight_out:
            grad_weight_out = grad.T @ activate(before, activation)
        if need_bias_out:
            grad_bias_out = grad.sum(0)
        grad_sum = (grad @ weight_out) * activation_slope(before, activation)
    own = weights_by_input(weights, inputs)
    grad_inputs = [
        (grad_sum @ weight).view(x.shape) if need else None
        for x, weight, need in zip(inputs, own, need_inputs, strict=True)
    ]
    grad_weights: list[Tensor | None]
    if len(weights) == len(inputs):
        grad_weights = [grad_sum.T @ _rows(x) if need else None for x, need in zip(inputs, need_weights, strict=True)]
    else:
        grad_weights = [torch.cat([grad_sum.T @ _rows(x) for x in inputs], 1) if need_weights[0] else None]
    return [*grad_inputs, *grad_weights, grad_sum.sum(0) if need_bias else None, grad_weight_out, grad_bias_out]


def _output_grad(
    grad_out: Tensor | None, grad_logvar: Tensor | None, logvar: Tensor, min_logvar: float | None
) -> Tensor:
    """The gradient of the second layer's output: of mu, and of raw through d logvar / d raw = 1 - exp(min - logvar)."""
    if min_logvar is None:
        assert grad_out is not None
        return grad_out
    wide = logvar.to(compute_dtype(logvar.dtype))
    mu = torch.zeros_like(logvar) if grad_out is None else grad_out
    raw = torch.zeros_like(wide) if grad_logvar is None else grad_logvar * -torch.expm1(min_logvar - wide)
    return torch.cat((mu, raw.to(mu.dtype)), -1)


def _rows(tensor: Tensor) -> Tensor:
    return tensor.reshape(tensor.shape[:-1].numel(), tensor.shape[-1])
