"""Scores of forecasts and imputations in the units of the data; entries whose truth is NaN have no part in them.

    CRPS            int (F(y) - 1{y >= x})^2 dy, of a predictive distribution F        (Gneiting and Raftery 2007)
                    from samples: mean_i |x_i - x| - sum_{i<j} |x_i - x_j| / (S (S - 1)), unbiased for the CRPS of what
                    they were drawn from ("fair": Ferro 2014; Zamo and Naveau 2018)
    quantile loss   max(tau (x - q), (tau - 1) (x - q)); the CRPS is twice its integral over tau in (0, 1)
                                                                                       (Koenker and Bassett 1978)
    coverage        share of the truth in [lower, upper]
    MASE            |error| / mean |x_t - x_{t-m}| over the training part, m the season; 1: as wrong as the seasonal
                    naive one step ahead there                                          (Hyndman and Koehler 2006)

Everything is [T, B, X] ([B, T, X] with batch_first), samples [S, ...] and quantiles [Q, ...] of that. A score is the
mean over the observed entries of all sequences, computed in float64; NaN where none is observed, and where NaN was
predicted for one.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from vssn.utils.checks import require_flag, require_levels, require_numbers, require_shape, require_size
from vssn.utils.sequences import check_lengths, swap, valid_steps

_FORM, _FORM_BATCH_FIRST = "[T, B, X]", "[B, T, X]"


def crps(
    samples: Tensor,
    truth: Tensor,
    *,
    lengths: Tensor | None = None,
    batch_first: bool = False,
) -> float:
    """The continuous ranked probability score from samples, by the fair estimator: less is better.

    Args:
        samples: [S, T, B, X], S of at least 2.
        truth: [T, B, X], NaN where it is not known.
        lengths: [B] int64; None: all T steps.
        batch_first: [S, B, T, X] and [B, T, X] rather.

    Raises:
        ValueError, TypeError: naming the argument, what was expected and what came.
    """
    truth = _checked(truth, lengths, batch_first)
    samples = _beside("samples", samples, "S", truth, batch_first)
    count = len(samples)
    if count < 2:
        raise ValueError(f"samples must hold 2 samples at least for the fair CRPS, got {count}; take mae for one path")
    # sum_{i<j} |x_i - x_j| from the sorted samples: the k-th, from 0, is added k times and taken off S - 1 - k times.
    ranks = torch.arange(count, dtype=torch.float64, device=truth.device) * 2 - (count - 1)
    spread = (samples.sort(0).values * ranks.view(-1, 1, 1, 1)).sum(0) / (count * (count - 1))
    return _mean((samples - truth).abs().mean(0) - spread, truth)


def crps_of_quantiles(
    quantiles: Tensor,
    levels: Sequence[float],
    truth: Tensor,
    *,
    lengths: Tensor | None = None,
    batch_first: bool = False,
) -> float:
    """The CRPS, exact, of the distribution that runs straight from quantile to quantile, with what lies beyond the
    first and the last one at these.

    Args:
        quantiles: [Q, T, B, X], rising along Q.
        levels: Q rising numbers in (0, 1).
        truth, lengths, batch_first: as in `crps`.

    Raises:
        ValueError, TypeError: naming the argument, what was expected and what came.
    """
    truth = _checked(truth, lengths, batch_first)
    quantiles = _beside("quantiles", quantiles, "Q", truth, batch_first)
    taus = _levels(levels, quantiles)
    total = (quantiles[0] - truth).clamp(min=0) + (truth - quantiles[-1]).clamp(min=0)
    for (low, high), (a, b) in zip(itertools.pairwise(quantiles), itertools.pairwise(taus), strict=True):
        # F runs from a to b; F^2 is integrated up to the truth, (1 - F)^2 from there on.
        width = high - low
        share = ((truth - low) / width).clamp(0, 1)
        share = torch.where(width > 0, share, 0.0)
        at = a + (b - a) * share
        total = total + width * (share * _mean_square(a, at) + (1 - share) * _mean_square(1 - at, 1 - b))
    return _mean(total, truth)


def quantile_loss(
    quantiles: Tensor,
    levels: Sequence[float],
    truth: Tensor,
    *,
    lengths: Tensor | None = None,
    batch_first: bool = False,
) -> float:
    """The pinball loss (without the factor 2 of some libraries), the mean over the levels too.

    Args:
        quantiles: [Q, T, B, X].
        levels: Q rising numbers in (0, 1).
        truth, lengths, batch_first: as in `crps`.

    Raises:
        ValueError, TypeError: naming the argument, what was expected and what came.
    """
    truth = _checked(truth, lengths, batch_first)
    quantiles = _beside("quantiles", quantiles, "Q", truth, batch_first)
    taus = torch.tensor(_levels(levels, quantiles), dtype=torch.float64, device=truth.device).view(-1, 1, 1, 1)
    gap = truth - quantiles
    return _mean(torch.maximum(taus * gap, (taus - 1) * gap), truth)


def coverage(
    lower: Tensor,
    upper: Tensor,
    truth: Tensor,
    *,
    lengths: Tensor | None = None,
    batch_first: bool = False,
) -> float:
    """The share of the truth within [lower, upper], ends included: an 80% interval's should be 0.8.

    Args:
        lower, upper: [T, B, X] quantiles.
        truth, lengths, batch_first: as in `crps`.

    Raises:
        ValueError, TypeError: naming the argument, what was expected and what came.
    """
    truth = _checked(truth, lengths, batch_first)
    lower, upper = _alike("lower", lower, truth, batch_first), _alike("upper", upper, truth, batch_first)
    inside = ((lower <= truth) & (truth <= upper)).double()
    return _mean(torch.where(lower.isnan() | upper.isnan(), torch.nan, inside), truth)


def mae(
    predicted: Tensor,
    truth: Tensor,
    *,
    lengths: Tensor | None = None,
    batch_first: bool = False,
) -> float:
    """The absolute error; the median minimises it.

    Args:
        predicted: [T, B, X].
        truth, lengths, batch_first: as in `crps`.

    Raises:
        ValueError, TypeError: naming the argument, what was expected and what came.
    """
    truth = _checked(truth, lengths, batch_first)
    predicted = _alike("predicted", predicted, truth, batch_first)
    return _mean((predicted - truth).abs(), truth)


def rmse(predicted: Tensor, truth: Tensor, *, lengths: Tensor | None = None, batch_first: bool = False) -> float:
    """The root of the mean squared error; the mean minimises it.

    Args:
        predicted: [T, B, X].
        truth, lengths, batch_first: as in `crps`.

    Raises:
        ValueError, TypeError: naming the argument, what was expected and what came.
    """
    truth = _checked(truth, lengths, batch_first)
    predicted = _alike("predicted", predicted, truth, batch_first)
    return _mean((predicted - truth).square(), truth) ** 0.5


def mase(
    predicted: Tensor,
    truth: Tensor,
    scale: Tensor,
    *,
    lengths: Tensor | None = None,
    batch_first: bool = False,
) -> float:
    """The absolute error in units of the seasonal naive's on the training part.

    Args:
        predicted: [T, B, X].
        scale: [B, X] or [X], of `seasonal_scale`; a series without a scale (0 or NaN there) does not count.
        truth, lengths, batch_first: as in `crps`.

    Raises:
        ValueError, TypeError: naming the argument, what was expected and what came.
    """
    truth = _checked(truth, lengths, batch_first)
    predicted = _alike("predicted", predicted, truth, batch_first)
    scale = require_numbers("scale", scale).to(truth)
    if tuple(scale.shape) not in (tuple(truth.shape[1:]), tuple(truth.shape[2:])):
        raise ValueError(f"scale must have shape [B, X] = {list(truth.shape[1:])} or [X], got {list(scale.shape)}")
    truth = torch.where(scale > 0, truth, torch.nan)
    return _mean((predicted - truth).abs() / scale, truth)


def seasonal_scale(
    history: Tensor, season: int = 1, *, lengths: Tensor | None = None, batch_first: bool = False
) -> Tensor:
    """What `mase` divides by: the mean of |x_t - x_{t-season}| over the history where both are observed, [B, X]
    float64; NaN where no such pair is.

    Args:
        history: [T, B, X], the training part, NaN where it is not known.
        season: m, steps; 1: the last value.
        lengths, batch_first: as in `crps`.

    Raises:
        ValueError, TypeError: naming the argument, what was expected and what came.
    """
    require_size("season", season, 1)
    history = _checked(history, lengths, batch_first, "history")
    changes = (history[season:] - history[:-season]).abs()
    return changes.nanmean(0)


def _checked(truth: Tensor, lengths: Tensor | None, batch_first: bool, name: str = "truth") -> Tensor:
    """The truth time-major, in float64, NaN at padding too."""
    require_flag("batch_first", batch_first)
    if require_numbers(name, truth).dim() != 3:
        form = _FORM_BATCH_FIRST if batch_first else _FORM
        raise ValueError(f"{name} must have shape {form}, got {list(truth.shape)}")
    truth = swap(truth, batch_first).double()
    check_lengths(lengths, truth)
    valid = valid_steps(lengths, truth)
    return truth if valid is None else torch.where(valid[..., None], truth, torch.nan)


def _alike(name: str, tensor: Tensor, truth: Tensor, batch_first: bool) -> Tensor:
    """Time-major, in float64."""
    require_numbers(name, tensor)
    expected = tuple(swap(truth, batch_first).shape)
    require_shape(name, tensor, _FORM_BATCH_FIRST if batch_first else _FORM, expected)
    return swap(tensor, batch_first).to(truth)


def _beside(name: str, tensor: Tensor, letter: str, truth: Tensor, batch_first: bool) -> Tensor:
    """As `_alike`, of [S, T, B, X] or [Q, T, B, X]."""
    expected = tuple(swap(truth, batch_first).shape)
    form = f"[{letter}, {(_FORM_BATCH_FIRST if batch_first else _FORM)[1:]}"
    count = len(tensor) if require_numbers(name, tensor).dim() else 0
    require_shape(name, tensor, form, (count, *expected))
    return (tensor.transpose(1, 2) if batch_first else tensor).to(truth)


def _levels(levels: Sequence[float], quantiles: Tensor) -> list[float]:
    taus = require_levels("levels", levels)
    rising = all(low < high for low, high in itertools.pairwise(taus))
    if not taus or not rising or not 0 < taus[0] <= taus[-1] < 1:
        raise ValueError(f"levels must be rising numbers in (0, 1), got {taus}")
    if len(taus) != len(quantiles):
        raise ValueError(f"levels must be as many as the quantiles, {len(quantiles)}, got {len(taus)}")
    return taus


def _mean_square(first: Tensor | float, last: Tensor | float) -> Tensor | float:
    """Of what runs straight from the first to the last."""
    return (first * first + first * last + last * last) / 3


def _mean(values: Tensor, truth: Tensor) -> float:
    """Over the entries [..., T, B, X] whose truth is known."""
    known = (~truth.isnan()).expand_as(values)
    return float(values[known].mean())
