"""Ordinary least squares from latent states to the true states of a simulated system: does the model know them?

targets = [states, 1] coefficients + noise,    fitted on one set, scored on another

R^2             1 - residual sum of squares / sum of squares around the scored set's own mean
log-likelihood  of the scored targets under normal noise with the variance of the fitted residuals (their sum of
                squares / n, no correction of degrees of freedom); it grows with n and depends on the targets' scale
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from vssn.data.pendulum import PendulumSet
from vssn.inference.filtering import latent_states
from vssn.nn.interface import SequenceModel
from vssn.utils.evaluation_mode import time_major

PENDULUM_TARGETS = ("sin phi", "cos phi", "phi'")


class LinearProbe(NamedTuple):
    """Of every target; float64."""

    r2: Tensor  # [targets]
    log_likelihood: Tensor  # [targets] nats, summed over the scored rows


def linear_probe(fit_states: Tensor, fit_targets: Tensor, states: Tensor, targets: Tensor) -> LinearProbe:
    """Fits on (fit_states [N, F], fit_targets [N, Y]), scores on (states [n, F], targets [n, Y]).

    Raises:
        ValueError: shapes that do not go together, or fewer rows to fit than states.
    """
    if fit_states.shape[1] != states.shape[1] or fit_targets.shape[1] != targets.shape[1]:
        raise ValueError(
            f"states and targets must have the widths fitted, {fit_states.shape[1]} and {fit_targets.shape[1]}, "
            f"got {states.shape[1]} and {targets.shape[1]}"
        )
    if len(fit_states) <= fit_states.shape[1]:
        raise ValueError(f"fit_states must have more rows than its {fit_states.shape[1]} states, got {len(fit_states)}")
    fit_inputs, inputs = _with_one(fit_states), _with_one(states)
    fit_targets, targets = fit_targets.double(), targets.double()
    # By singular values: units that never move make the states' columns dependent.
    coefficients = torch.linalg.lstsq(fit_inputs, fit_targets, driver="gelsd").solution
    variance = (fit_targets - fit_inputs @ coefficients).square().mean(0)
    residual = (targets - inputs @ coefficients).square().sum(0)
    total = (targets - targets.mean(0)).square().sum(0)
    log_likelihood = -0.5 * (len(targets) * torch.log(2 * math.pi * variance) + residual / variance)
    return LinearProbe(1 - residual / total, log_likelihood)


def probe_pendulum(
    model: SequenceModel,
    train: PendulumSet,
    test: PendulumSet,
    *,
    inference: str = "smoothing",
    samples: int | None = None,
    seed: int = 0,
) -> LinearProbe:
    """From all latent states (d_t, z_t) of every frame to `PENDULUM_TARGETS`.

    Args:
        model: trained on the pendulum, with or without its torque as control.
        train, test: to fit on, and to score.
        inference, samples, seed: as in `vssn.inference.filtering.latent_states`.
    """
    rows = []
    for part in (train, test):
        x, u = part.images.transpose(0, 1), part.controls.transpose(0, 1) if model.control_size else None
        with time_major(model):
            states = latent_states(model, x, u, inference=inference, samples=samples, seed=seed)
        rows += [torch.cat(states, -1).flatten(0, 1), part.states.transpose(0, 1).flatten(0, 1)]
    return linear_probe(*rows)


def filtering_limit(train: PendulumSet, test: PendulumSet) -> float:
    """R^2 of phi' that no filter exceeds: every velocity known, but the first frame's, which no frame before it shows.
    That one is predicted by a linear regression on what a filter does see: sin phi, cos phi and the torque.
    """
    (fit_seen, fit_first), (seen, first) = (
        (torch.cat((part.states[:, 0, :2], part.controls[:, 0]), -1), part.states[:, 0, 2:]) for part in (train, test)
    )
    velocity = test.states[..., 2].double()
    unknown = (1 - linear_probe(fit_seen, fit_first, seen, first).r2) * (first - first.mean()).double().square().sum()
    return float(1 - unknown / (velocity - velocity.mean()).square().sum())


def _with_one(states: Tensor) -> Tensor:
    return torch.cat((states.double(), torch.ones_like(states[:, :1], dtype=torch.float64)), 1)
