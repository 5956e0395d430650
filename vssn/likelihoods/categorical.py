"""Independent classes, x in {0, .., C - 1}: the index of a class as a number, one for every feature.

    p(x_i = c) = softmax(logits_i)_c

The networks see the index as the number that it is; for many classes without an order give VSSN an `encoder` that looks
them up. `mean` is the expected index E[x_i], as of every likelihood: what it says depends on the order of the classes.
The probabilities [..., X, C] and the likeliest class [..., X] are `probabilities` and `mode`.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vssn.likelihoods.base import Likelihood, draw_class, sum_observed
from vssn.likelihoods.registry import register
from vssn.utils.checks import require_size
from vssn.utils.values import Support


@register("categorical")
class Categorical(Likelihood):
    """Independent categorical entries of C classes: the decoder gives C logits for a feature, feature by feature.

    Args:
        x_size: X.
        num_classes: C.
    """

    support = Support("hold class indices 0, 1, 2, ...", 0.0, math.inf, whole=True)
    options = (("num_classes", "num_classes"),)

    def __init__(self, x_size: int, num_classes: int, **factory: Any) -> None:
        require_size("x_size", x_size, 1)
        require_size("num_classes", num_classes, 2)
        super().__init__(x_size, num_classes * x_size)
        self.num_classes = num_classes
        self.support = Support(
            f"hold class indices from 0 to {num_classes - 1}",
            0.0,
            num_classes - 1.0,
            whole=True,
            advice="number the classes from 0 on, and give num_classes as many as there are",
        )

    def _logits(self, parameters: Tensor) -> Tensor:
        """Log-probabilities [..., X, C]."""
        return F.log_softmax(parameters.unflatten(-1, (self.x_size, self.num_classes)), -1)

    def forward(self, parameters: Tensor, x: Tensor, observed: Tensor | None = None) -> Tensor:
        """Logits [T, B, X C], x [T, B, X], observed [T, B, X] bool or None to nats [T, B]."""
        terms = self._logits(parameters).gather(-1, x.long()[..., None]).squeeze(-1)
        return sum_observed(terms, observed)

    def probabilities(self, parameters: Tensor) -> Tensor:
        """Of every class: [..., X C] to [..., X, C]."""
        return self._logits(parameters).exp()

    def mode(self, parameters: Tensor) -> Tensor:
        """The index of the likeliest class: [..., X C] to [..., X]."""
        return self._logits(parameters).argmax(-1).to(parameters.dtype)

    def mean(self, parameters: Tensor) -> Tensor:
        """The expected index: `mode` is the likeliest."""
        p = self.probabilities(parameters)
        return p @ torch.arange(self.num_classes, dtype=p.dtype, device=p.device)

    def sample(self, parameters: Tensor) -> Tensor:
        return draw_class(self._logits(parameters)).to(parameters.dtype)

    def _quantile(self, parameters: Tensor, q: float) -> Tensor:
        """In the order of the indices."""
        below = self.probabilities(parameters).cumsum(-1)[..., :-1] < q
        return below.sum(-1).to(parameters.dtype)
