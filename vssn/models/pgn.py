"""PGN-like: the predictive generative network of Lotter et al. (2015) as the RNN ablation of VSSN with a convolutional
encoder and decoder round it: nothing is latent, x_t ~ p(x_t | d_t), d_t = GRU(d_{t-1}, e(x_{t-1}))."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import nn

from vssn.models.vssn import VSSN
from vssn.nn.convolutions import FrameDecoder, FrameEncoder
from vssn.utils.checks import require_choice, require_number, require_size
from vssn.utils.numbers import Count, Real
from vssn_kernels.activations import ACTIVATIONS

LIKELIHOODS = ("gaussian", "bernoulli")
LEAST_SIDE = 4  # of a frame, halved twice


class PGN(VSSN):
    """The predictive generative network, PGN (MSE), for films of one channel in [0, 1].

    Other than there: a GRU in the place of an LSTM, strides in the place of pooling, no adversary.

    Args:
        x_size: X, pixels of a frame, its rows one after the other.
        hidden_size: D, units of the GRU.
        height: rows of a frame (None: a square one).
        channels: maps of the encoder's first layer, twice as many of its second; the decoder has them too.
        embed_size: features of an embedded frame.
        likelihood: "gaussian", of the variance exp(logvar_x) for every pixel: its loss is the squared error over twice
            the variance, and a constant; or "bernoulli".
        logvar_x: log-variance of Gaussian pixels.
        activation: "relu", "tanh", "leaky_relu" (slope 1/3) or "silu".
        control, control_size: "previous" (x_{t-1} alone), or "both": an external u_t of that size too.
        initial_state: d_0: "zeros" or "learned".
        batch_first: sequences are [B, T, ·].
        device, dtype: of the parameters.

    Raises:
        ValueError: a size or a choice that is not possible, named with what was expected.
    """

    def __init__(
        self,
        x_size: int,
        hidden_size: int,
        *,
        height: Count | None = None,
        channels: Count = 16,
        embed_size: Count = 256,
        likelihood: Literal["gaussian", "bernoulli"] = "gaussian",
        logvar_x: Real = 0.0,
        activation: str = "relu",
        control: Literal["previous", "both"] = "previous",
        control_size: int = 0,
        initial_state: Literal["zeros", "learned"] = "zeros",
        batch_first: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        for name, size in (("x_size", x_size), ("hidden_size", hidden_size), ("channels", channels)):
            require_size(name, size, 1)
        require_size("embed_size", embed_size, 1)
        require_number("logvar_x", logvar_x)
        for name, choice, choices in (
            ("likelihood", likelihood, LIKELIHOODS),
            ("activation", activation, ACTIVATIONS),
            ("control", control, ("previous", "both")),
            ("initial_state", initial_state, ("zeros", "learned")),
        ):
            require_choice(name, choice, choices)
        rows = _rows(x_size, height)
        self.shape, self.channels = (rows, x_size // rows), channels  # `_make_encoder` and `_make_emission` read them
        self.logvar_x = float(logvar_x) if likelihood == "gaussian" else None
        super().__init__(
            x_size,
            hidden_size,
            0,
            likelihood=likelihood,
            min_logvar_x=logvar_x - FrameDecoder.FLOOR,
            control=control,
            control_size=control_size,
            embed_size=embed_size,
            activation=activation,
            initial_state=initial_state,
            batch_first=batch_first,
            device=device,
            dtype=dtype,
        )

    def _make_encoder(self, encoder: nn.Module | None, embed_size: int | None, activation: str, **factory: Any) -> None:
        assert embed_size is not None
        self.encoder = FrameEncoder(*self.shape, self.channels, embed_size, activation, **factory)
        self.control_encoder = None

    def _make_emission(
        self, decoder: nn.Module | None, sizes: tuple[int, int], mlp_size: int, activation: str, **factory: Any
    ) -> None:
        self.decoder = FrameDecoder(sum(sizes), *self.shape, self.channels, activation, self.logvar_x, **factory)

    def extra_repr(self) -> str:
        height, width = self.shape
        return f"{super().extra_repr()}, {height}x{width}, logvar_x={self.logvar_x}"


def _rows(x_size: int, height: int | None) -> int:
    """Rows of a frame. Raises ValueError where it has none, or sides that are too short."""
    if height is None:
        height = math.isqrt(x_size)
        if height**2 != x_size:
            raise ValueError(f"height must be given where x_size is no square, got x_size={x_size}")
    require_size("height", height, LEAST_SIDE)
    if x_size % height or x_size // height < LEAST_SIDE:
        raise ValueError(f"height must divide x_size={x_size} into rows of at least {LEAST_SIDE} pixels, got {height}")
    return height
