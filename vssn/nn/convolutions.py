"""Small convolutional networks round a frame [N, height width]: two layers of stride 2 and a linear one each."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from vssn.nn.blocks import reset_children
from vssn_kernels.activations import activate

KERNEL, STRIDE, PADDING = 4, 2, 1  # a side of n to one of n // 2


class FrameEncoder(nn.Module):
    """Frames to features: C maps of half the sides, 2 C of a quarter, then `embed_size` features, act behind each."""

    def __init__(
        self, height: int, width: int, channels: int, embed_size: int, activation: str, **factory: Any
    ) -> None:
        super().__init__()
        self.height, self.width, self.activation = height, width, activation
        self.first = nn.Conv2d(1, channels, KERNEL, STRIDE, PADDING, **factory)
        self.second = nn.Conv2d(channels, 2 * channels, KERNEL, STRIDE, PADDING, **factory)
        self.out = nn.Linear(2 * channels * (height // 4) * (width // 4), embed_size, **factory)

    def reset_parameters(self) -> None:
        reset_children(self)

    def forward(self, frames: Tensor) -> Tensor:
        """[N, height width], rows of pixels one after the other, to [N, embed_size]."""
        maps = frames.view(len(frames), 1, self.height, self.width)
        for layer in (self.first, self.second):
            maps = activate(layer(maps), self.activation)
        return activate(self.out(maps.flatten(1)), self.activation)


class FrameDecoder(nn.Module):
    """States to what a likelihood takes of every pixel: the encoder's layers the other way.

    Args:
        logvar_x: None: logits of Bernoulli pixels. A number: means of Gaussian pixels, and behind them what a floor
            `logvar_x` - FLOOR turns into that log-variance for every pixel. The means are the last map as it is: a
            logistic function of it, under a squared error, is soon black everywhere and has no gradient there.
    """

    FLOOR = 10.0

    def __init__(
        self,
        state_size: int,
        height: int,
        width: int,
        channels: int,
        activation: str,
        logvar_x: float | None,
        **factory: Any,
    ) -> None:
        super().__init__()
        self.height, self.width, self.activation, self.logvar_x = height, width, activation, logvar_x
        half = (height // 2, width // 2)
        self.quarter = (2 * channels, half[0] // 2, half[1] // 2)
        odd_half, odd = (half[0] % 2, half[1] % 2), (height % 2, width % 2)  # a side that was halved had one row more
        self.linear = nn.Linear(state_size, self.quarter[0] * self.quarter[1] * self.quarter[2], **factory)
        self.first = nn.ConvTranspose2d(2 * channels, channels, KERNEL, STRIDE, PADDING, odd_half, **factory)
        self.second = nn.ConvTranspose2d(channels, 1, KERNEL, STRIDE, PADDING, odd, **factory)

    def reset_parameters(self) -> None:
        reset_children(self)

    def forward(self, states: Tensor) -> Tensor:
        """[N, state_size] to [N, height width] logits, or to [N, 2 height width]."""
        maps = activate(self.linear(states), self.activation).view(len(states), *self.quarter)
        maps = activate(self.first(maps), self.activation)
        pixels = self.second(maps).flatten(1)
        if self.logvar_x is None:
            return pixels
        floor = self.logvar_x - self.FLOOR
        raw = floor + torch.expm1(pixels.new_tensor(self.logvar_x - floor)).log()
        return torch.cat((pixels, raw.expand_as(pixels)), 1)
