"""Spikes of neurons that a Lorenz system drives, simulated: what LFADS is shown on (Sussillo et al. 2016; Pandarinath
et al. 2018).

    y1' = 10 (y2 - y1),  y2' = y1 (28 - y3) - y2,  y3' = y1 y2 - 8/3 y3        rate = exp(C y + b),  x ~ Poisson(rate)

y is centred and scaled to variance 1. A condition is a start on the attractor, and its path; a trial is one draw of the
spikes of all neurons along it. C [X, 3] and b [X] are those of the set: rows of C of length GAIN in random directions,
and mean rates of BASE spikes in a bin, give or take. Training, validation and test have trials of the same conditions,
as a recording that is split by trials does. A step of the path is integrated by SUBSTEPS steps of fourth-order
Runge-Kutta.

A model that is made with `held_out` infers the rates of its last neurons from the spikes of the others.

Scores, on the posterior mean of the rates r (an average over draws of the latents):

    rate R^2           1 - sum (r - true rate)^2 / sum (true rate - its mean)^2 over the bins, mean over the neurons
    bits per spike     (L(r; x) - L(m; x)) / (number of spikes log 2), L the Poisson log-likelihood, m each neuron's
                       mean count in what is scored; of held-out neurons: co-smoothing (Pei et al. 2021, Neural Latents
                       Benchmark '21)
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vssn.data.batching import SequenceDataset, collate_sequences
from vssn.data.registry import register
from vssn.data.splits import Splits
from vssn.errors import DataError
from vssn.utils.checks import require_key, require_numbers, require_shape, require_size
from vssn.utils.evaluation_mode import evaluating, time_major
from vssn.utils.numbers import Count
from vssn.utils.random import seeded
from vssn.utils.values import COUNTS

NEURONS = 40
DT, SUBSTEPS, BURN_IN = 0.03, 3, 800  # time of a bin; steps of the integration in it; bins before a path is taken
GAIN, BASE = 0.8, 0.15
SCORE_SAMPLES, SCORE_BATCH = 8, 50

Array = NDArray[np.float64]


class SpikeDataset(SequenceDataset):
    """Spikes [N, T, X] with the rates [N, T, X] that they were drawn with."""

    def __init__(self, spikes: Tensor, rates: Tensor, seed: int) -> None:
        super().__init__(spikes, seed=seed)
        self.rates = rates


class SpikeScores(NamedTuple):
    """`None` where no neuron is held out."""

    rate_r2: float  # of the neurons that the model sees
    bits_per_spike: float
    rate_r2_held_out: float | None
    co_smoothing: float | None  # bits per spike of those that are held out

    def table(self) -> str:
        """A few aligned lines to print."""
        lines = [f"{'':<24}{'neurons seen':>14}{'held out':>16}"]
        for name, seen, held_out in (
            ("rate R^2", self.rate_r2, self.rate_r2_held_out),
            ("bits per spike", self.bits_per_spike, self.co_smoothing),
        ):
            lines.append(f"{name:<24}{seen:>14.4f}" + ("" if held_out is None else f"{held_out:>16.4f}"))
        return "\n".join(lines)


def simulate_lorenz(start: Array, num_steps: int, *, dt: float = DT, substeps: int = SUBSTEPS) -> Array:
    """Starts [N, 3] to the paths [N, T, 3] behind them."""
    require_size("num_steps", num_steps, 1)
    require_size("substeps", substeps, 1)
    state, h = start.astype(np.float64), dt / substeps
    path = np.empty((len(start), num_steps, 3))

    def slope(y: Array) -> Array:
        y1, y2, y3 = y.T
        return np.stack([10 * (y2 - y1), y1 * (28 - y3) - y2, y1 * y2 - 8 / 3 * y3], -1)

    for t in range(num_steps):
        for _ in range(substeps):
            k1 = slope(state)
            k2 = slope(state + h / 2 * k1)
            k3 = slope(state + h / 2 * k2)
            k4 = slope(state + h * k3)
            state = state + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        path[:, t] = state
    return path


def lorenz_rates(num_conditions: int, num_frames: int, *, seed: int = 0) -> Array:
    """Rates [conditions, T, NEURONS], in spikes per bin."""
    require_size("num_conditions", num_conditions, 1)
    require_size("num_frames", num_frames, 1)
    require_key("seed", seed)
    rng = np.random.default_rng((seed, 0))
    start = rng.normal(size=(num_conditions, 3)) + np.array([0.0, 0.0, 25.0])
    path = simulate_lorenz(start, BURN_IN + num_frames)
    attractor = path[:, BURN_IN // 2 :]
    y = (path[:, BURN_IN:] - attractor.mean((0, 1))) / attractor.std((0, 1))
    directions = rng.normal(size=(NEURONS, 3))
    directions *= GAIN / np.linalg.norm(directions, axis=1, keepdims=True)
    base = math.log(BASE) - GAIN**2 / 2 + 0.3 * rng.normal(size=NEURONS)
    rates: Array = np.exp(y @ directions.T + base)
    return rates


def _scores(dataset: SequenceDataset, model: Any) -> SpikeScores:
    return spike_scores(model, dataset)


@register("lorenz", x_size=NEURONS, values=COUNTS, model_scores=_scores)
def load_splits(
    *,
    seed: int,
    num_conditions: Count = 40,
    num_train: Count = 12,
    num_valid: Count = 3,
    num_test: Count = 5,
    num_frames: Count = 100,
) -> Splits:
    """The set as `fit` takes it.

    Args:
        num_conditions: starts of the system, each with its rates.
        num_train, num_valid, num_test: trials of every condition.
        num_frames: bins of a trial.
    """
    rates = torch.from_numpy(lorenz_rates(num_conditions, num_frames, seed=seed)).float()
    parts = []
    for number, trials in enumerate((num_train, num_valid, num_test)):
        repeated = rates.repeat_interleave(trials, 0)
        rng = np.random.default_rng((seed, 1 + number))
        spikes = torch.from_numpy(rng.poisson(repeated.numpy()).astype(np.float32))
        parts.append(SpikeDataset(spikes, repeated, seed))
    return Splits(*parts)


@torch.no_grad()
def spike_scores(model: Any, dataset: SequenceDataset, *, samples: int = SCORE_SAMPLES, seed: int = 0) -> SpikeScores:
    """Scores of a model's rates on a part of the set.

    Args:
        model: a SequenceModel; set to evaluation mode meanwhile. Its last `held_out` neurons, if it has any, are scored
            apart.
        samples: draws of the latents, whose rates are averaged.
        seed: of the draws.

    Raises:
        DataError: the part has no rates: it is not of this set.
    """
    if not isinstance(dataset, SpikeDataset):
        raise DataError(f"dataset: expected a part of the set 'lorenz' with its rates, got {type(dataset).__name__}")
    like = model.a_parameter()
    rates = []
    with evaluating(model), time_major(model), seeded(seed, like.device):
        for start in range(0, len(dataset), SCORE_BATCH):
            batch = collate_sequences(
                [dataset[index] for index in range(start, min(start + SCORE_BATCH, len(dataset)))]
            )
            given = model.prepare(batch.x.to(like))
            drawn = [_rates(model, given) for _ in range(samples)]
            rates.append(torch.stack(drawn).mean(0).transpose(0, 1).double().cpu())
    estimated, true = torch.cat(rates), dataset.rates.double()
    spikes = torch.stack([x for x, _ in (dataset[index] for index in range(len(dataset)))]).double()
    seen = estimated.shape[-1] - getattr(model, "held_out", 0)
    halves = [slice(0, seen)] + ([slice(seen, None)] if seen < estimated.shape[-1] else [])
    r2 = [rate_r2(estimated[..., half], true[..., half]) for half in halves]
    bits = [bits_per_spike(estimated[..., half], spikes[..., half]) for half in halves]
    return SpikeScores(r2[0], bits[0], *((r2[1], bits[1]) if len(halves) > 1 else (None, None)))


def _rates(model: Any, given: Any) -> Tensor:
    """One draw, [T, B, X]."""
    x = given.x
    shapes = model.noise_shapes(*x.shape[:2])
    d, z, _ = model.infer(given, tuple(torch.randn(shape, dtype=x.dtype, device=x.device) for shape in shapes))
    rates: Tensor = model.likelihood.mean(model.decode(z, d))
    return rates


def _require_alike(name: str, own: Tensor, other_name: str, other: Tensor) -> None:
    for called, tensor in ((name, own), (other_name, other)):
        if require_numbers(called, tensor, own).dim() != 3:
            raise ValueError(f"{called} must have shape [N, T, X], got {list(tensor.shape)}")
        if not tensor.is_floating_point():
            raise TypeError(f"{called} must be floating point, got {tensor.dtype}; convert it with .float()")
    require_shape(other_name, other, f"of {name}", tuple(own.shape))


def rate_r2(estimated: Tensor, true: Tensor) -> float:
    """Rates [N, T, X] twice: R^2 over the bins, mean over the neurons."""
    _require_alike("estimated", estimated, "true", true)
    wrong = (estimated - true).square().sum((0, 1))
    spread = (true - true.mean((0, 1))).square().sum((0, 1))
    return float((1 - wrong / spread).mean())


def bits_per_spike(rates: Tensor, spikes: Tensor) -> float:
    """Rates and counts [N, T, X]: what the rates tell beyond each neuron's mean count, in bits for every spike."""
    _require_alike("rates", rates, "spikes", spikes)
    mean = spikes.mean((0, 1)).clamp(min=1e-9)
    gain = spikes * torch.log(rates / mean) - (rates - mean)
    return float(gain.sum() / (spikes.sum() * math.log(2)))
