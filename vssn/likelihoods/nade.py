"""The neural autoregressive distribution estimator as an emission density (Larochelle and Murray 2011; with biases that
follow from a recurrent state: RNN-NADE, Boulanger-Lewandowski et al. 2012).

    p(x | z, d) = prod_i p(x_i | x_1..x_{i-1}, z, d),    x_i in {0, 1}
    hidden_i    = sigmoid(hidden_bias + sum_{j < i} x_j weight_in[j])         [H]
    logit_i     = bias_i + weight_out[i] . hidden_i
    log p(x)    = sum_i x_i logit_i - softplus(logit_i)

bias [X] and hidden_bias [H] come from the decoder, frame by frame; weight_in and weight_out [X, H] are the density's
own.

hidden_i changes only behind an entry that is 1. So a frame with n ones has n + 1 different hidden vectors rather than
X, and all frames together make one matrix of R = sum of (n + 1) rows: with the 4 notes of 88 that music has in a frame,
a few matrix products of a twentieth of the rows, and no [frames, X, H] tensor.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vssn.likelihoods.base import Likelihood
from vssn.likelihoods.registry import register
from vssn.utils.checks import require_size
from vssn.utils.sequences import terms_of_whole_frames
from vssn.utils.values import BINARY, require_whole_frames

MEAN_SAMPLES = 32


@register("nade")
class NADE(Likelihood):
    """Autoregressive Bernoulli entries, in the order of the features.

    Args:
        x_size: X.
        hidden_size: H, units of the estimator's hidden layer.
        device, dtype: of the parameters.
    """

    support = BINARY
    whole_frames = True
    options = (("hidden_size", "nade_size"),)

    def __init__(self, x_size: int, hidden_size: int, **factory: Any) -> None:
        require_size("x_size", x_size, 1)
        require_size("hidden_size", hidden_size, 1)
        super().__init__(x_size, x_size + hidden_size)
        self.hidden_size = hidden_size
        self.weight_in = nn.Parameter(torch.empty(x_size, hidden_size, **factory))
        self.weight_out = nn.Parameter(torch.empty(x_size, hidden_size, **factory))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        bound = 1 / math.sqrt(self.hidden_size)
        nn.init.uniform_(self.weight_in, -bound, bound)
        nn.init.uniform_(self.weight_out, -bound, bound)

    def multiplied(self) -> Tensor:
        return self.weight_in

    def forward(self, parameters: Tensor, x: Tensor | None = None, observed: Tensor | None = None) -> Any:
        """The log-density of x, or without x a sample and its probabilities: `log_prob`, `sample` and `mean` call the
        module, so that its hooks take part.

        Biases [T, B, X + H], x [T, B, X] of 0 and 1, observed [T, B, X] bool or None to nats [T, B].

        Raises:
            ValueError: a frame is observed in part: the density of a part of a frame is a sum over the rest.
        """
        return self._draw(parameters) if x is None else self._log_prob(parameters, x, observed)

    def _log_prob(self, parameters: Tensor, x: Tensor, observed: Tensor | None) -> Tensor:
        rows = x.reshape(-1, self.x_size)
        bias, hidden_bias = parameters.reshape(-1, self.parameter_size).split((self.x_size, self.hidden_size), -1)
        logits = nade_logits(rows, bias, hidden_bias, self.weight_in, self.weight_out)
        terms = (rows * logits - F.softplus(logits)).sum(-1).view(x.shape[:-1])
        return terms_of_whole_frames(terms, observed, self.title)

    def given_observed(self, parameters: Tensor, x: Tensor, observed: Tensor) -> Tensor:
        require_whole_frames(observed, self.title)
        return parameters

    def mean(self, parameters: Tensor) -> Tensor:
        """E[x], which has no closed form, from MEAN_SAMPLES draws: the mean of each entry's probability given the
        entries drawn before it. Unbiased."""
        draws = parameters.unsqueeze(0).expand(MEAN_SAMPLES, *parameters.shape)
        mean: Tensor = self(draws)[1].mean(0)
        return mean

    def sample(self, parameters: Tensor) -> Tensor:
        sample: Tensor = self(parameters)[0]
        return sample

    def floats_per_frame(self, x: Tensor) -> int:
        """Rows of the hidden layer follow from the notes of a frame: here of the sequence that has most."""
        rows = 1 + (float((x > 0).sum(-1).float().mean(0).max()) if x.shape[:2].numel() else 0.0)
        indices = 8 * self.x_size  # int64
        return super().floats_per_frame(x) + math.ceil(rows * (5 * self.x_size + 2 * self.hidden_size)) + indices

    def _draw(self, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """One sample [..., X], and the probability of each entry given those drawn before it."""
        bias, hidden_bias = parameters.split((self.x_size, self.hidden_size), -1)
        inside = hidden_bias.clone()  # of the sigmoid
        weight_in, weight_out = self.weight_in, self.weight_out
        samples, probabilities = [], []
        for i in range(self.x_size):
            probability = torch.sigmoid(bias[..., i] + torch.sigmoid(inside) @ weight_out[i])
            entry = torch.bernoulli(probability)
            inside = inside + entry[..., None] * weight_in[i]
            samples.append(entry)
            probabilities.append(probability)
        return torch.stack(samples, -1), torch.stack(probabilities, -1)


def nade_logits(x: Tensor, bias: Tensor, hidden_bias: Tensor, weight_in: Tensor, weight_out: Tensor) -> Tensor:
    """The logit of every entry given those before it: x, bias [N, X], hidden_bias [N, H], weights [X, H] to [N, X]."""
    ones = x > 0
    after = ones.cumsum(-1)  # ones among the entries up to this one
    before = after - ones.to(after.dtype)  # [N, X] which of the frame's hidden vectors an entry sees
    counts = after[:, -1] + 1
    start = counts.cumsum(0) - counts  # [N] the frame's first row
    frame = torch.repeat_interleave(torch.arange(len(x), device=x.device), counts)  # [R]
    seen = torch.arange(len(frame), device=x.device) - start[frame]  # [R] ones that the row has behind it
    # An entry's place among the frame's ones, beyond every count where it is 0.
    place = torch.where(ones, before, x.shape[-1]).to(torch.int16)
    prefix = (place[frame] < seen[:, None]).to(weight_in.dtype)  # [R, X]
    hidden = torch.sigmoid(hidden_bias.index_select(0, frame) + prefix @ weight_in)
    every = hidden @ weight_out.T  # [R, X], of which an entry uses one
    chosen = (start[:, None] + before) * x.shape[-1] + torch.arange(x.shape[-1], device=x.device)
    return bias + every.view(-1).gather(0, chosen.view(-1)).view_as(x)
