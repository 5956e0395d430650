"""How well a model forecasts and fills in series, beside the naive ways to do so.

forecast     the last `steps` frames of a sequence given those before; of several windows each ends where the next one
             begins. Beside it the seasonal naive.
imputation   a share of the observed entries is hidden, the model fills them in given all the others. Beside it straight
             lines.

What is missing in the data is neither seen nor scored. Point errors are those of the median of the samples; the CRPS of
a point forecast is its absolute error. MASE is in units of the seasonal naive's errors one step ahead on what came
before the window.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from vssn.errors import DataError
from vssn.experiments.baselines import linear_interpolation, seasonal_naive
from vssn.inference.draws import take_quantiles
from vssn.inference.metrics import coverage, crps, mae, mase, quantile_loss, rmse, seasonal_scale
from vssn.nn.interface import SequenceModel
from vssn.utils.evaluation_mode import time_major
from vssn.utils.random import generator, mixed_seed

LEVELS = (0.1, 0.25, 0.5, 0.75, 0.9)
SAMPLES = 100
Scores = dict[str, float]


class SeriesScores(NamedTuple):
    """Scores by the name of the predictor."""

    title: str
    rows: Mapping[str, Scores]
    entries: int  # that were scored

    def table(self) -> str:
        """A few aligned lines to print."""
        names = list(dict.fromkeys(name for row in self.rows.values() for name in row))
        lines = [f"{self.title:<36}" + "".join(f"{name:>14}" for name in names)]
        for label, row in self.rows.items():
            cells = (f"{row[name]:>14.4g}" if name in row else f"{'':>14}" for name in names)
            lines.append(f"{'  ' + label:<36}" + "".join(cells))
        return "\n".join((*(line.rstrip() for line in lines), f"{self.entries} entries"))

    def as_dict(self) -> dict[str, Any]:
        """For a JSON file."""
        return {"title": self.title, "entries": self.entries, **{label: dict(row) for label, row in self.rows.items()}}


class Window(NamedTuple):
    """A forecast to be made."""

    past: Tensor  # [T, X], NaN where missing
    truth: Tensor  # [steps, X]
    u: Tensor | None  # [T + steps, U]


def windows_of(x: Sequence[Tensor], u: Sequence[Tensor] | None, steps: int, count: int = 1) -> list[Window]:
    """The last windows of every sequence, as far as it has them with a frame before. Raises DataError: none has."""
    found = []
    for index, sequence in enumerate(x):
        for number in range(count):
            end = len(sequence) - number * steps
            start = end - steps
            if start >= 1:
                control = None if u is None else u[index][:end]
                found.append(Window(sequence[:start], sequence[start:end], control))
    if not found:
        longest = max(len(sequence) for sequence in x)
        raise DataError(f"--steps: expected fewer than the frames of the longest sequence, {longest}, got {steps}")
    return found


def sample_forecasts(
    model: SequenceModel,
    windows: Sequence[Window],
    *,
    samples: int = SAMPLES,
    seed: int = 0,
    batch_size: int = 32,
    advance: Callable[[int], None] = lambda count: None,
) -> Tensor:
    """[S, steps, N, X] of N windows."""
    steps, like, drawn = len(windows[0].truth), model.a_parameter(), []
    with time_major(model):
        for first in range(0, len(windows), batch_size):
            batch = windows[first : first + batch_size]
            lengths = torch.tensor([len(window.past) for window in batch], device=like.device)
            past = pad_sequence([window.past for window in batch]).to(like)
            known = u_future = None
            controls = [window.u for window in batch if window.u is not None] if model.control_size else []
            if controls:
                known = pad_sequence([u[:-steps] for u in controls]).to(like)
                u_future = torch.stack([u[-steps:] for u in controls], 1).to(like)
            forecast: Any = model.forecast(
                past.nan_to_num(),
                steps,
                samples=samples,
                u=known,
                u_future=u_future,
                lengths=lengths,
                mask=_mask(past),
                seed=mixed_seed(seed, first),
            )
            drawn.append(forecast.samples.cpu())
            advance(len(batch))
    return torch.cat(drawn, 2)


def forecast_scores(samples: Tensor, windows: Sequence[Window], season: int = 1) -> Scores:
    """Of samples [S, steps, N, X]."""
    truth, scale = _truth(windows), _scale(windows, season)
    return _probabilistic(samples, truth) | {"MASE": mase(_median(samples), truth, scale)}


def point_forecast_scores(predicted: Tensor, windows: Sequence[Window], season: int = 1) -> Scores:
    """Of one path [steps, N, X]."""
    truth, scale = _truth(windows), _scale(windows, season)
    return _of_points(predicted, truth) | {"MASE": mase(predicted, truth, scale)}


def naive_forecasts(windows: Sequence[Window], season: int = 1) -> Tensor:
    """[steps, N, X] of the seasonal naive."""
    steps = len(windows[0].truth)
    return torch.cat([seasonal_naive(window.past[:, None], steps, season) for window in windows], 1)


def score_forecasts(
    model: SequenceModel,
    x: Sequence[Tensor],
    u: Sequence[Tensor] | None,
    *,
    steps: int,
    season: int = 1,
    windows: int = 1,
    samples: int = SAMPLES,
    seed: int = 0,
    batch_size: int = 32,
    advance: Callable[[int], None] = lambda count: None,
) -> SeriesScores:
    """The model beside the seasonal naive, on the last windows of sequences [T_i, X]. Raises DataError."""
    chosen = windows_of(x, u, steps, windows)
    drawn = sample_forecasts(model, chosen, samples=samples, seed=seed, batch_size=batch_size, advance=advance)
    naive = "last value" if season == 1 else f"seasonal naive, {season}"
    rows = {
        "model": forecast_scores(drawn, chosen, season),
        naive: point_forecast_scores(naive_forecasts(chosen, season), chosen, season),
    }
    title = f"forecast, {steps} step{'s' if steps > 1 else ''}"
    return SeriesScores(title, rows, int((~_truth(chosen).isnan()).sum()))


class Hidden(NamedTuple):
    """A sequence of which a part is hidden."""

    seen: Tensor  # [T, X], NaN where missing or hidden
    truth: Tensor  # [T, X], NaN where it was not hidden
    u: Tensor | None  # [T, U]


def hide(
    x: Sequence[Tensor], u: Sequence[Tensor] | None, share: float, *, length: int = 1, seed: int = 0
) -> list[Hidden]:
    """Hides that share of the observed entries of every sequence.

    Args:
        length: frames of a gap: 1 hides entries one by one, more hides pieces of a feature.
        seed: of the choice.

    Raises:
        DataError: nothing was hidden.
    """
    found = []
    for index, sequence in enumerate(x):
        starts = torch.rand(sequence.shape, generator=generator(seed, index)) < 1 - (1 - share) ** (1 / length)
        gone = starts.clone()
        for shift in range(1, length):
            gone[shift:] |= starts[:-shift] if shift < len(starts) else False
        gone &= ~sequence.isnan()
        truth = torch.where(gone, sequence, torch.nan)
        found.append(Hidden(torch.where(gone, torch.nan, sequence), truth, None if u is None else u[index]))
    if not any((~hidden.truth.isnan()).any() for hidden in found):
        raise DataError(f"--gaps: expected a share that hides an entry at least, got {share:g}; take a larger one")
    return found


def sample_imputations(
    model: SequenceModel,
    hidden: Sequence[Hidden],
    *,
    samples: int = SAMPLES,
    seed: int = 0,
    batch_size: int = 32,
    advance: Callable[[int], None] = lambda count: None,
) -> Iterator[Tensor]:
    """[S, T_i, X] of every sequence."""
    like = model.a_parameter()
    with time_major(model):
        for first in range(0, len(hidden), batch_size):
            batch = hidden[first : first + batch_size]
            lengths = torch.tensor([len(sequence.seen) for sequence in batch], device=like.device)
            seen = pad_sequence([sequence.seen for sequence in batch]).to(like)
            controls = [sequence.u for sequence in batch if sequence.u is not None] if model.control_size else []
            filled = model.impute(
                seen.nan_to_num(),
                mask=~seen.isnan(),
                samples=samples,
                u=pad_sequence(controls).to(like) if controls else None,
                lengths=lengths,
                seed=mixed_seed(seed, first),
            )
            for b, length in enumerate(lengths.tolist()):
                yield filled.samples[:, :length, b].cpu()
            advance(len(batch))


def imputation_scores(samples: Sequence[Tensor], hidden: Sequence[Hidden]) -> Scores:
    """Of samples [S, T_i, X]."""
    truth = torch.cat([sequence.truth for sequence in hidden])[:, None]
    return _probabilistic(torch.cat(list(samples), 1)[:, :, None], truth)


def point_imputation_scores(filled: Sequence[Tensor], hidden: Sequence[Hidden]) -> Scores:
    """Of one filling [T_i, X]."""
    truth = torch.cat([sequence.truth for sequence in hidden])[:, None]
    return _of_points(torch.cat(list(filled))[:, None], truth)


def interpolated(hidden: Sequence[Hidden]) -> list[Tensor]:
    """[T_i, X] with straight lines across gaps; 0 in a feature without an observed entry."""
    return [linear_interpolation(sequence.seen[:, None])[:, 0].nan_to_num() for sequence in hidden]


def score_imputations(
    model: SequenceModel,
    x: Sequence[Tensor],
    u: Sequence[Tensor] | None,
    *,
    share: float = 0.3,
    length: int = 1,
    samples: int = SAMPLES,
    seed: int = 0,
    batch_size: int = 32,
    advance: Callable[[int], None] = lambda count: None,
) -> SeriesScores:
    """The model beside linear interpolation, on sequences [T_i, X] of which a share is hidden. Raises DataError."""
    hidden = hide(x, u, share, length=length, seed=seed)
    drawn = sample_imputations(model, hidden, samples=samples, seed=seed, batch_size=batch_size, advance=advance)
    rows = {
        "model": imputation_scores(list(drawn), hidden),
        "linear interpolation": point_imputation_scores(interpolated(hidden), hidden),
    }
    entries = sum(int((~sequence.truth.isnan()).sum()) for sequence in hidden)
    return SeriesScores(f"imputation, {share:.0%} hidden", rows, entries)


def _median(samples: Tensor) -> Tensor:
    return _quantiles(samples, (0.5,))[0]


def _quantiles(samples: Tensor, levels: Sequence[float]) -> Tensor:
    found = take_quantiles(samples, levels)
    assert found is not None
    return found


def _probabilistic(samples: Tensor, truth: Tensor) -> Scores:
    quantiles = _quantiles(samples, LEVELS)
    return {
        "CRPS": crps(samples, truth),
        "quantile loss": quantile_loss(quantiles, LEVELS, truth),
        "80% coverage": coverage(quantiles[0], quantiles[-1], truth),
        "50% coverage": coverage(quantiles[1], quantiles[-2], truth),
        "MAE": mae(quantiles[2], truth),
        "RMSE": rmse(samples.mean(0), truth),
    }


def _of_points(predicted: Tensor, truth: Tensor) -> Scores:
    error = mae(predicted, truth)
    quantiles = predicted.expand(len(LEVELS), *predicted.shape)
    return {
        "CRPS": error,
        "quantile loss": quantile_loss(quantiles, LEVELS, truth),
        "MAE": error,
        "RMSE": rmse(predicted, truth),
    }


def _truth(windows: Sequence[Window]) -> Tensor:
    return torch.stack([window.truth for window in windows], 1)


def _scale(windows: Sequence[Window], season: int) -> Tensor:
    return torch.cat([seasonal_scale(window.past[:, None], season) for window in windows])


def _mask(x: Tensor) -> Tensor | None:
    """Where x is observed; None where it is everywhere."""
    observed = ~x.isnan()
    return None if bool(observed.all()) else observed
