"""A reconstruction that is held at a target by a Lagrange multiplier (GECO: Rezende and Viola 2018).

    minimise KL where C <= 0    C = target - R, R the mean of log p(x_t | z_t, d_t) over the frames of an update

    loss        -lambda log p(x | z, d) + KL: lambda times the ELBO's loss with the KL weighed by 1 / lambda
    afterwards  M = C at the first update, else average M + (1 - average) C;  lambda = lambda exp(rate M)

So lambda rises while the target is missed, and falls once it is reached: the KL then has all that is to spare.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from vssn.training.processes import World, sum_of_all
from vssn.training.sections import ConstraintSection

LEAST, MOST = 1e-6, 1e6  # of the multiplier


class Multiplier(nn.Module):
    """Its state moves with the training module and is no part of the weights: `state` and `load` keep it."""

    value: Tensor  # scalar float64
    mean: Tensor  # M; NaN before the first update

    def __init__(self, section: ConstraintSection) -> None:
        super().__init__()
        self.section = section
        self.register_buffer("value", torch.tensor(section.start, dtype=torch.float64), persistent=False)
        self.register_buffer("mean", torch.tensor(torch.nan, dtype=torch.float64), persistent=False)

    def measure(self, reconstruction: Tensor, x: Tensor, lengths: Tensor, masked: bool) -> Tensor:
        """[2] float64: the sum of log p(x_t | z_t, d_t) [T, B], and over how many frames or entries.

        Args:
            x: [T, B, X].
            lengths: [B].
            masked: NaN in x is not observed.
        """
        count = lengths.sum()
        if self.section.per == "entry":
            valid = torch.arange(len(x), device=x.device)[:, None] < lengths
            count = (valid[..., None] & ~x.isnan()).sum() if masked else count * x.shape[-1]
        return torch.stack((reconstruction.detach().sum(dtype=torch.float64), count.double()))

    def update(self, measured: Tensor, world: World) -> None:
        """After an update. Args: measured: of this process."""
        total, count = sum_of_all(measured, world)
        section = self.section
        missing = section.target - total / count
        after = torch.where(self.mean.isnan(), missing, section.average * self.mean + (1 - section.average) * missing)
        value = (self.value * torch.exp(section.rate * after)).clamp(LEAST, MOST)
        some = count > 0  # of an update nothing may be observed
        self.mean, self.value = torch.where(some, after, self.mean), torch.where(some, value, self.value)

    def state(self) -> dict[str, float]:
        """Exactly, in plain types."""
        return {"multiplier": float(self.value), "constraint": float(self.mean)}

    def load(self, state: dict[str, Any]) -> None:
        self.value.fill_(state["multiplier"])
        self.mean.fill_(state["constraint"])
