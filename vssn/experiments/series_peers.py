"""What series models stand beside in the table `series`: a PyTorch GRU of equal size, and state-space models.

GRU      reads (x_{t-1}, whether it is observed, u_t), zeros where it is not, and gives a Gaussian of x_t; forecasts
         feed their samples back. Entries are filled in by another one, bidirectional, which reads (x_t, whether, u_t)
         of the whole window and is trained on entries that are hidden from it. Both have as many weights as the model.
space    of every feature for itself, fitted by maximum likelihood on all that comes before the test part: level or
         trend, season and an autoregression (statsmodels' UnobservedComponents); of sunspots an AR(9) (SARIMAX).
         The Kalman filter forecasts, the smoother fills in.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from vssn.data.batching import SequenceDataset
from vssn.errors import DataError
from vssn.utils.packages import needing
from vssn.utils.random import generator, mixed_seed, seeded

MIN_LOGVAR = -8.0
PATIENCE = 30
_HIDDEN = 0.3


class Peer(nn.Module):
    """A GRU with a Gaussian output; [T, B, ·] throughout."""

    def __init__(self, x_size: int, control_size: int, hidden_size: int, fills: bool) -> None:
        super().__init__()
        self.fills = fills
        self.gru = nn.GRU(2 * x_size + control_size, hidden_size, bidirectional=fills)
        self.head = nn.Linear(hidden_size * (2 if fills else 1), 2 * x_size)

    def forward(self, x: Tensor, u: Tensor | None) -> tuple[Tensor, Tensor]:
        """Mean and log-variance [T, B, X] of x [T, B, X] with NaN, given the past, or all that is observed."""
        frames = torch.cat((x.nan_to_num(), (~x.isnan()).to(x.dtype)), -1)
        if not self.fills:
            frames = torch.cat((torch.zeros_like(frames[:1]), frames[:-1]))
        hidden, _ = self.gru(frames if u is None else torch.cat((frames, u), -1))
        return _moments(self.head(hidden))

    def forecast(self, past: Tensor, u: Tensor | None, steps: int) -> Tensor:
        """A path [steps, B, X] behind past [T, B, X]; u [T + steps, B, U]."""
        frames = torch.cat((past.nan_to_num(), (~past.isnan()).to(past.dtype)), -1)
        inputs = torch.cat((torch.zeros_like(frames[:1]), frames[:-1]))
        if u is not None:
            inputs = torch.cat((inputs, u[: len(past)]), -1)
        state, last, path = self.gru(inputs)[1], frames[-1:], []
        for step in range(steps):
            here = last if u is None else torch.cat((last, u[len(past) + step][None]), -1)
            hidden, state = self.gru(here, state)
            mean, logvar = _moments(self.head(hidden))
            x = mean + (logvar / 2).exp() * torch.randn_like(mean)
            path.append(x)
            last = torch.cat((x, torch.ones_like(x)), -1)
        return torch.cat(path)


def _moments(output: Tensor) -> tuple[Tensor, Tensor]:
    mean, logvar = output.chunk(2, -1)
    return mean, MIN_LOGVAR + nn.functional.softplus(logvar - MIN_LOGVAR)


def peer_of_size(parameters: int, x_size: int, control_size: int, fills: bool) -> Peer:
    """The largest one that has no more weights than that."""
    hidden_size = 1
    while _weights(x_size, control_size, hidden_size + 1, fills) <= parameters:
        hidden_size += 1
    return Peer(x_size, control_size, hidden_size, fills)


def _weights(x_size: int, control_size: int, hidden_size: int, fills: bool) -> int:
    with torch.device("meta"):
        return sum(weight.numel() for weight in Peer(x_size, control_size, hidden_size, fills).parameters())


def train_peer(
    train: SequenceDataset,
    valid: SequenceDataset,
    parameters: int,
    fills: bool,
    *,
    epochs: int,
    seed: int,
    batch_size: int = 16,
    learning_rate: float = 2e-3,
) -> Peer:
    """Trains on the windows of `load_splits`, as the model is; the weights of the best validation epoch."""
    x, u = train[0]
    with seeded(mixed_seed(seed, int(fills)), torch.device("cpu")):
        peer = peer_of_size(parameters, x.shape[1], 0 if u is None else u.shape[1], fills)
        optimizer = torch.optim.Adam(peer.parameters(), learning_rate)
        best, weights, since = float("inf"), copy.deepcopy(peer.state_dict()), 0
        for epoch in range(epochs):
            train.set_epoch(epoch)
            order = torch.randperm(len(train)).tolist()
            for first in range(0, len(order), batch_size):
                loss = _loss(peer, [train[index] for index in order[first : first + batch_size]], None)
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(peer.parameters(), 1.0)
                optimizer.step()
            with torch.no_grad():
                score = float(_loss(peer, [valid[index] for index in range(len(valid))], 0))
            since += 1
            if score < best:
                best, weights, since = score, copy.deepcopy(peer.state_dict()), 0
            if since > PATIENCE:
                break
    peer.load_state_dict(weights)
    return peer.eval()


def _loss(peer: Peer, items: Sequence[Any], seed: int | None) -> Tensor:
    """Nats an entry: of what is observed, or of what is hidden from one that fills in."""
    x = pad_sequence([frames for frames, _ in items])
    u = None if items[0][1] is None else pad_sequence([control for _, control in items])
    scored, seen = ~x.isnan(), x
    if peer.fills:
        draw = torch.rand(x.shape, generator=None if seed is None else generator(seed))
        scored = scored & (draw < _HIDDEN)
        seen = torch.where(scored, torch.nan, x)
    mean, logvar = peer(seen, u)
    terms = (logvar + (x.nan_to_num() - mean).square() * (-logvar).exp()) / 2
    return terms[scored].mean()


@torch.no_grad()
def peer_forecasts(
    peer: Peer, past: Sequence[Tensor], u: Sequence[Tensor] | None, steps: int, samples: int, seed: int
) -> Tensor:
    """[S, steps, N, X] behind windows [T, X] of one length; u [T + steps, U] each."""
    x = torch.stack(list(past), 1).repeat(1, samples, 1)
    controls = None if u is None else torch.stack(list(u), 1).repeat(1, samples, 1)
    with seeded(seed, torch.device("cpu")):
        path = peer.forecast(x, controls, steps)
    return path.unflatten(1, (samples, len(past))).movedim(1, 0)


@torch.no_grad()
def peer_fillings(
    peer: Peer, seen: Sequence[Tensor], u: Sequence[Tensor] | None, samples: int, seed: int
) -> list[Tensor]:
    """[S, T, X] of windows [T, X] of one length, with NaN."""
    x = torch.stack(list(seen), 1)
    mean, logvar = peer(x, None if u is None else torch.stack(list(u), 1))
    with seeded(seed, torch.device("cpu")):
        drawn = mean + (logvar / 2).exp() * torch.randn(samples, *mean.shape)
    return list(torch.where(x.isnan(), drawn, x).unbind(2))


class StateSpace:
    """A fitted model of one feature.

    Args:
        y: [T] that it is fitted on, NaN where missing.
        season: frames; 0: an AR(9).
        trend: the level has a slope.
        iterations: of the fit, at most.
    """

    def __init__(self, y: np.ndarray[Any, Any], season: int, trend: bool, iterations: int = 200) -> None:
        with needing("series", DataError):
            from statsmodels.tsa.statespace.sarimax import SARIMAX
            from statsmodels.tsa.statespace.structural import UnobservedComponents

        self.mean, self.std = float(np.nanmean(y)), float(np.nanstd(y)) or 1.0
        y = (y - self.mean) / self.std
        if season == 0:
            model = SARIMAX(y, order=(9, 0, 0), trend="c")
        else:
            harmonics = {"period": 365.25 if season == 365 else season, "harmonics": min(4, season // 2)}
            level = "local linear trend" if trend else "local level"
            seasonal = [harmonics] if season > 1 else None
            model = UnobservedComponents(y, level, freq_seasonal=seasonal, autoregressive=1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that a start is not stationary, or that the iterations did not suffice
            self.results = model.fit(disp=False, maxiter=iterations)

    def forecast(self, past: np.ndarray[Any, Any], steps: int) -> tuple[Any, Any]:
        """Mean and std [steps] behind past [T]."""
        ahead = self._apply(past).get_forecast(steps)
        return self._back(ahead.predicted_mean, ahead.var_pred_mean)

    def smooth(self, seen: np.ndarray[Any, Any]) -> tuple[Any, Any]:
        """Mean and std [T] of every entry given all that is observed."""
        found = self._apply(seen).smoother_results
        design = found.design[0]  # [states, 1] or [states, T]
        mean = (design * found.smoothed_state).sum(0) + found.obs_intercept[0]
        spread = np.einsum(
            "it,ijt,jt->t",
            *(
                np.broadcast_to(design, found.smoothed_state.shape),
                found.smoothed_state_cov,
                np.broadcast_to(design, found.smoothed_state.shape),
            ),
        )
        return self._back(mean, spread + found.obs_cov[0, 0])

    def _apply(self, y: np.ndarray[Any, Any]) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return self.results.apply((y - self.mean) / self.std)

    def _back(self, mean: Any, variance: Any) -> tuple[Any, Any]:
        return np.asarray(mean) * self.std + self.mean, np.sqrt(np.maximum(np.asarray(variance), 0)) * self.std


def normal_samples(mean: Tensor, std: Tensor, samples: int, seed: int) -> Tensor:
    """[S, ...] of a normal distribution an entry."""
    return mean + std * torch.randn(samples, *mean.shape, generator=generator(seed), dtype=mean.dtype)
