"""The log-density of independent Bernoulli entries with logits, with its gradient.

log_prob = sum_X (x l - softplus(l))        the cross-entropy where x lies between 0 and 1
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vssn_kernels.reference.sequence import compute_dtype, softplus


def bernoulli_log_prob(logits: Tensor, x: Tensor) -> Tensor:
    """The plain function, differentiable any number of times: logits, x [..., X] to [...]."""
    dtype = compute_dtype(logits.dtype)
    wide = logits.to(dtype)
    return (x.to(dtype) * wide - softplus(wide)).sum(-1).to(logits.dtype)


bernoulli_log_prob_forward = bernoulli_log_prob


def bernoulli_log_prob_backward(
    grad: Tensor,  # [...]
    logits: Tensor,  # [..., X]
    x: Tensor,  # [..., X]
    needs: Sequence[bool],
) -> tuple[Tensor | None, ...]:
    """Gradients of (logits, x), None where not needed: grad (x - sigmoid(l)), grad l."""
    dtype = compute_dtype(logits.dtype)
    weight, wide = grad.to(dtype)[..., None], logits.to(dtype)
    grad_logits = (weight * (x.to(dtype) - torch.sigmoid(wide))).to(logits.dtype) if needs[0] else None
    return grad_logits, (weight * wide).to(x.dtype) if needs[1] else None
