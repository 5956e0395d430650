"""PGN written a second time, frame by frame: its convolutions pixel by pixel, torch.nn.GRUCell and
torch.distributions. It takes a model's weights by name."""

from __future__ import annotations

import math

import torch
from step_by_step import ACTIVATE
from torch import Tensor
from torch.distributions import Bernoulli, Normal

from vssn import PGN

KERNEL, STRIDE, PADDING = 4, 2, 1


def convolve(maps: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """[C, H, W], weight [O, C, 4, 4] to [O, H // 2, W // 2]: every output is a product with a window."""
    channels, height, width = maps.shape
    wide = maps.new_zeros(channels, height + 2 * PADDING, width + 2 * PADDING)
    wide[:, PADDING : PADDING + height, PADDING : PADDING + width] = maps
    rows = []
    for i in range(0, height + 2 * PADDING - KERNEL + 1, STRIDE):
        windows = [wide[:, i : i + KERNEL, j : j + KERNEL] for j in range(0, width + 2 * PADDING - KERNEL + 1, STRIDE)]
        rows.append(torch.stack([(weight * window).sum((1, 2, 3)) + bias for window in windows], -1))
    return torch.stack(rows, 1)


def spread(maps: Tensor, weight: Tensor, bias: Tensor, height: int, width: int) -> Tensor:
    """[C, h, w], weight [C, O, 4, 4] to [O, height, width]: every input adds a window to the output."""
    out = maps.new_zeros(weight.shape[1], height + 2 * PADDING + STRIDE, width + 2 * PADDING + STRIDE)
    for i in range(maps.shape[1]):
        for j in range(maps.shape[2]):
            window = (maps[:, i, j, None, None, None] * weight).sum(0)
            place = torch.zeros_like(out)
            place[:, STRIDE * i : STRIDE * i + KERNEL, STRIDE * j : STRIDE * j + KERNEL] = 1
            out = out.masked_scatter(place.bool(), out[place.bool()] + window.flatten())
    return out[:, PADDING : PADDING + height, PADDING : PADDING + width] + bias[:, None, None]


class PlainPGN:
    def __init__(self, model: PGN, height: int, logvar_x: float | None) -> None:
        self.model, self.height, self.width = model, height, model.x_size // height
        self.w, self.logvar_x = dict(model.named_parameters()), logvar_x
        self.act = ACTIVATE[model.layer.activation]

    def pair(self, name: str) -> tuple[Tensor, Tensor]:
        return self.w[f"{name}.weight"], self.w[f"{name}.bias"]

    def encode(self, frame: Tensor) -> Tensor:
        maps = frame.view(1, self.height, self.width)
        for name in ("first", "second"):
            maps = self.act(convolve(maps, *self.pair(f"encoder.{name}")))
        weight, bias = self.pair("encoder.out")
        return self.act(weight @ maps.flatten() + bias)

    def decode(self, d: Tensor) -> Tensor:
        """Of the pixels: their means, or logits."""
        weight, bias = self.pair("decoder.linear")
        half = (self.height // 2, self.width // 2)
        maps = self.act(weight @ d + bias).view(-1, half[0] // 2, half[1] // 2)
        maps = self.act(spread(maps, *self.pair("decoder.first"), *half))
        return spread(maps, *self.pair("decoder.second"), self.height, self.width).flatten()

    def run(
        self, x: Tensor, u: Tensor | None, d: Tensor | None = None, last: Tensor | None = None
    ) -> dict[str, Tensor]:
        """One film: x [T, X], u [T, U], and d [D] and the last frame of the chunk before: log p(x_t | x_{<t}) [T], d
        [T, D] and the means or logits [T, X]."""
        size = self.model.layer.hidden_size
        cell = torch.nn.GRUCell(1, size, dtype=x.dtype)
        weights = {
            "weight_ih": self.w["layer.duration.input.weight"],
            "bias_ih": self.w["layer.duration.input.bias"],
            "weight_hh": self.w["layer.duration.weight_hh"],
            "bias_hh": self.w["layer.duration.bias_hh"],
        }
        cell.input_size = weights["weight_ih"].shape[1]
        if d is None:
            d = self.w.get("layer.d_0", x.new_zeros(size))
        before, terms = x.new_zeros(x.shape[1]) if last is None else last, []
        for t in range(len(x)):
            inputs = [self.encode(before)]
            if u is not None:
                weight, bias = self.pair("control_encoder.linear")
                inputs.append(self.act(weight @ u[t] + bias))
            d = torch.func.functional_call(cell, weights, (torch.cat(inputs)[None], d[None]))[0]
            out, before = self.decode(d), x[t]
            if self.logvar_x is None:
                density = Bernoulli(logits=out, validate_args=False).log_prob(x[t])
            else:
                density = Normal(out, math.exp(self.logvar_x / 2)).log_prob(x[t])
            terms.append((density.sum(), d, out))
        names = ("log_prob", "d", "out")
        return {name: torch.stack(parts) for name, parts in zip(names, zip(*terms, strict=True), strict=True)}
