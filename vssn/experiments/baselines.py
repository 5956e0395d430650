"""Naive predictors that a model has to beat, with the metrics of the reported numbers.

Music: every note is its own two-state Markov chain. With c_k(a, b) the number of times that note k went from
a to b in the training sequences, the step before the first one counted as silence, and s the smoothing,

    p(x_t[k] = 1 | x_{t-1}[k] = a) = (c_k(a, 1) + s) / (c_k(a, 0) + c_k(a, 1) + 2 s).

Video: the next frame is the last one, or the mean frame of the training set; the error is the squared error
summed over the pixels, averaged over t = 2..T and over the sequences.

Series: the last season again (seasonal naive), and straight lines across gaps. NaN is what is missing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from vssn.utils.checks import require_size, require_tensor


class FrameScores(NamedTuple):
    """Log-likelihood in nats per time step.

    micro: over all frames of all sequences; macro: the mean over sequences of each one's own mean. Both also
    with the first frame of every sequence left out; a sequence of one frame has no part in those.
    """

    micro: float
    macro: float
    micro_without_first: float
    macro_without_first: float


def markov_baseline(train: Sequence[Tensor], test: Sequence[Tensor], smoothing: float = 0.5) -> FrameScores:
    """Fit one Markov chain per note on `train` and score `test`; sequences are [T, X] of 0 and 1."""
    if smoothing <= 0:
        raise ValueError(f"smoothing must be positive, got {smoothing}")
    log_p = _fit_markov(train, smoothing)  # [2, 2, X]: from, to
    frames = [_score_markov(log_p, sequence) for sequence in test]  # each [T]
    rests = [frame[1:] for frame in frames if len(frame) > 1]
    return FrameScores(_micro(frames), _macro(frames), _micro(rests), _macro(rests))


def _fit_markov(train: Sequence[Tensor], smoothing: float) -> Tensor:
    counts = torch.zeros(2, 2, train[0].shape[1], dtype=torch.float64)
    for sequence in train:
        now = sequence.to(torch.float64)  # [T, X]
        before = _shifted(now)
        counts[1, 1] += (before * now).sum(0)
        counts[1, 0] += (before * (1 - now)).sum(0)
        counts[0, 1] += ((1 - before) * now).sum(0)
        counts[0, 0] += ((1 - before) * (1 - now)).sum(0)
    counts += smoothing
    return counts.log() - counts.sum(dim=1, keepdim=True).log()


def _score_markov(log_p: Tensor, sequence: Tensor) -> Tensor:
    now = sequence.to(torch.float64)
    before = _shifted(now)
    after_silence = torch.where(now > 0, log_p[0, 1], log_p[0, 0])
    after_sound = torch.where(now > 0, log_p[1, 1], log_p[1, 0])
    return torch.where(before > 0, after_sound, after_silence).sum(dim=1)


def _shifted(sequence: Tensor) -> Tensor:
    """x_{t-1} in the place of x_t, silence before the first step."""
    return torch.cat([torch.zeros_like(sequence[:1]), sequence[:-1]])


def _micro(frames: list[Tensor]) -> float:
    return float(torch.cat(frames).mean()) if frames else float("nan")


def _macro(frames: list[Tensor]) -> float:
    return float(torch.stack([frame.mean() for frame in frames]).mean()) if frames else float("nan")


def copy_last_frame_error(videos: Sequence[Tensor]) -> float:
    """Squared error of x_{t-1} as the prediction of x_t; videos are [T, X] each."""
    errors = [(video[1:] - video[:-1]).square().sum(dim=1).mean() for video in videos]
    return float(torch.stack(errors).mean())


def mean_frame_error(train: Sequence[Tensor], test: Sequence[Tensor]) -> float:
    """Squared error of the mean training frame as the prediction of every x_t; videos are [T, X] each."""
    means = [video.to(torch.float64).mean(dim=0) for video in train]
    mean = torch.stack(means).mean(dim=0).to(torch.float32)  # [X]
    errors = [(video[1:] - mean).square().sum(dim=1).mean() for video in test]
    return float(torch.stack(errors).mean())


def seasonal_naive(history: Tensor, steps: int, season: int = 1) -> Tensor:
    """The forecast that repeats the last season: [T, B, X], NaN where missing, to [steps, B, X].

    A missing value is replaced by the one a season before it, and so on; where a phase was never observed stands the
    last value that was, NaN in a series without any.

    Raises:
        ValueError, TypeError: naming the argument, what was expected and what came.
    """
    require_size("steps", steps, 1)
    require_size("season", season, 1)
    _series("history", history)
    last = _carried(history)[-1]
    pad = history.new_full((-len(history) % season, *history.shape[1:]), torch.nan)
    rounds = torch.cat((pad, history)).unflatten(0, (-1, season))  # [rounds, season, B, X]
    phases = _carried(rounds)[-1]
    phases = torch.where(phases.isnan(), last, phases)
    return phases[torch.arange(steps, device=history.device) % season]


def linear_interpolation(x: Tensor) -> Tensor:
    """x [T, B, X] with straight lines across its gaps (NaN), level before the first and behind the last observed value;
    a series without any stays NaN.

    Raises:
        ValueError, TypeError: naming the argument, what was expected and what came.
    """
    _series("x", x)
    place = torch.arange(len(x), dtype=torch.float64, device=x.device).view(-1, 1, 1).expand(x.shape)
    known = torch.where(x.isnan(), torch.nan, place)
    before, after = _carried(known), _carried(known.flip(0)).flip(0)
    value_before, value_after = _carried(x).double(), _carried(x.flip(0)).flip(0).double()
    share = torch.where(after > before, (place - before) / (after - before), 0.0)
    line = value_before + share * (value_after - value_before)
    line = torch.where(value_before.isnan(), value_after, torch.where(value_after.isnan(), value_before, line))
    return torch.where(x.isnan(), line.to(x.dtype), x)


def _carried(x: Tensor) -> Tensor:
    """x [T, ...] with every NaN replaced by the last number before it; those before the first stay."""
    row = torch.arange(len(x), device=x.device).view(-1, *(1 for _ in x.shape[1:])).expand(x.shape)
    last = torch.where(x.isnan(), 0, row).cummax(0).values  # the first row where none was
    return x.gather(0, last)


def _series(name: str, x: Tensor) -> None:
    if require_tensor(name, x).dim() != 3 or len(x) == 0:
        raise ValueError(f"{name} must have shape [T, B, X] with a step at least, got {list(x.shape)}")
    if not x.is_floating_point():
        raise TypeError(f"{name} must be floating point, got {x.dtype}; convert it with .float()")
