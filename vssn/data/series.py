"""Public series that stand inside packages: nothing is downloaded. The extra `series` installs them.

    co2        weekly, Mauna Loa, 1958 to 2001, 59 of 2284 weeks missing (statsmodels)
    sunspots   yearly, 1700 to 2008 (statsmodels)
    elnino     monthly sea surface temperature, 1950 to 2010 (statsmodels)
    macro      quarterly unemployment, inflation and rate of treasury bills of the US, 1959 to 2009 (statsmodels)
    weather    daily, Seattle, 2012 to 2015: highest and lowest temperature, wind (vega_datasets)

The first 70% of the time train, the next 10% validate, the last 20% test. A sequence is a window of `context` + `steps`
frames that ends within its part, shifted and scaled so that what is learnt does not hang on the level:

    x' = (x - mean of the observed entries of the window's first `context` frames) / std,

std that of the shifted training windows. Controls, where the season is the calendar's: sine and cosine of its phase.
In training a share `hidden` of the entries of every second window is left out, drawn anew each time: the model is to
know gaps.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from vssn.data.batching import SequenceDataset
from vssn.data.registry import register
from vssn.data.splits import Splits
from vssn.errors import DataError
from vssn.utils.numbers import Share
from vssn.utils.packages import needing
from vssn.utils.values import REAL

TRAIN, VALID = 0.7, 0.1  # of the time


@dataclass(frozen=True)
class Series:
    """How a set is read, and what is asked of it."""

    read: Callable[[], Any]  # [T, X] with NaN
    x_size: int
    context: int  # frames that a forecast sees
    steps: int  # that it is of
    season: int  # frames, of the seasonal naive
    stride: int = 1  # of training windows
    calendar: bool = True  # the phase of the season is known ahead

    @property
    def window(self) -> int:
        return self.context + self.steps


class Parts(NamedTuple):
    """A set in whole, and where its parts end."""

    x: Tensor  # [T, X] as it came
    u: Tensor | None  # [T, 2]
    valid: int  # first frame that validates
    test: int  # first frame that tests


def _statsmodels() -> Any:
    with needing("series", DataError):
        from statsmodels import datasets
    return datasets


def _weather() -> Any:
    with needing("series", DataError):
        from vega_datasets import local_data
    return local_data.seattle_weather()[["temp_max", "temp_min", "wind"]].to_numpy()


SERIES = {
    "co2": Series(lambda: _statsmodels().co2.load_pandas().data[["co2"]].to_numpy(), 1, 104, 26, 52, stride=4),
    "sunspots": Series(
        lambda: _statsmodels().sunspots.load_pandas().data[["SUNACTIVITY"]].to_numpy(), 1, 44, 11, 11, calendar=False
    ),
    "elnino": Series(
        lambda: _statsmodels().elnino.load_pandas().data.iloc[:, 1:].to_numpy().reshape(-1, 1), 1, 60, 12, 12, stride=2
    ),
    "macro": Series(
        lambda: _statsmodels().macrodata.load_pandas().data[["unemp", "infl", "tbilrate"]].to_numpy(),
        *(3, 32, 8, 4),
        calendar=False,
    ),
    "weather": Series(_weather, 3, 60, 14, 365, stride=3),
}


@cache
def load_series(name: str) -> Parts:
    """A set in whole. Raises DataError: a package is missing."""
    series = SERIES[name]
    x = torch.from_numpy(np.array(series.read(), np.float32))
    u = None
    if series.calendar:
        phase = 2 * math.pi * torch.arange(len(x)) / (365.25 if series.season == 365 else series.season)
        u = torch.stack((phase.sin(), phase.cos()), -1)
    return Parts(x, u, round(TRAIN * len(x)), round((TRAIN + VALID) * len(x)))


def shift_of(x: Tensor, context: int) -> Tensor:
    """[X] of a window [T, X]: the mean of what is observed of its first frames, 0 where nothing is."""
    return x[:context].nanmean(0).nan_to_num()


@cache
def scale_of_series(name: str) -> Tensor:
    """[X]: the std of the shifted training windows."""
    windows = torch.cat([x - shift_of(x, SERIES[name].context) for x, _ in _windows(name, "train")])
    deviation = (windows - windows.nanmean(0)).square().nanmean(0).sqrt()
    return deviation.clamp(min=1e-6)


def _windows(name: str, part: str) -> list[tuple[Tensor, Tensor | None]]:
    """(x, u) of every window of a part, as x came."""
    series, (x, u, valid, test) = SERIES[name], load_series(name)
    length = series.window
    first, last, stride = {
        "train": (length, valid, series.stride),
        "valid": (valid + series.steps, test, max(series.steps // 2, 1)),
        "test": (test + series.steps, len(x), series.steps),
    }[part]
    ends = range(first, last + 1, stride)
    return [(x[end - length : end], None if u is None else u[end - length : end]) for end in ends]


class Hide:
    """Leaves a share of the entries out; `generator` alone decides which."""

    def __init__(self, share: float) -> None:
        self.share = share

    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """x [T, X], NaN where it is left out; of every second window nothing is."""
        draw = torch.rand(1 + x.numel(), generator=generator)
        gone = (draw[1:] < self.share).view_as(x) & (draw[0] < 0.5)
        return torch.where(gone, torch.nan, x)


def load_splits(*, set: str, seed: int, hidden: Share = 0.3) -> Splits:
    """The windows of a set, as `fit` takes them. Raises DataError.

    Args:
        hidden: share of the entries of a training window that is left out.
    """
    context, scale = SERIES[set].context, scale_of_series(set)
    parts = []
    for part in Splits._fields:
        windows = _windows(set, part)
        x = [(frames - shift_of(frames, context)) / scale for frames, _ in windows]
        u = [control for _, control in windows if control is not None]
        transform = Hide(hidden) if part == "train" and hidden else None
        parts.append(SequenceDataset(x, u or None, transform=transform, seed=seed))
    return Splits(*parts)


for _name, _series in SERIES.items():
    register(_name, values=REAL, x_size=_series.x_size, control_size=2 if _series.calendar else 0)(load_splits)
