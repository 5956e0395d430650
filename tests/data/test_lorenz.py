"""Spikes of a Lorenz system: the simulation, the set, its scores, and a model as LFADS is that learns from them."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

from vssn import VSSN
from vssn.cli import main
from vssn.data.batching import SequenceDataset
from vssn.data.lorenz import (
    NEURONS,
    bits_per_spike,
    load_splits,
    lorenz_rates,
    rate_r2,
    simulate_lorenz,
    spike_scores,
)
from vssn.errors import DataError
from vssn.training.config import load_config

SMALL = {"num_conditions": 3, "num_train": 4, "num_valid": 2, "num_test": 3, "num_frames": 20}


def test_the_path_is_that_of_the_equations() -> None:
    start = np.array([[1.0, 2.0, 20.0], [-3.0, -4.0, 25.0]])
    got = simulate_lorenz(start, 12)
    for row in range(2):
        want = solve_ivp(
            lambda _, y: [10 * (y[1] - y[0]), y[0] * (28 - y[2]) - y[1], y[0] * y[1] - 8 / 3 * y[2]],
            (0, 0.36), start[row], t_eval=0.03 * np.arange(1, 13), rtol=1e-10, atol=1e-10,
        )  # fmt: skip
        np.testing.assert_allclose(got[row], want.y.T, rtol=2e-3, atol=2e-2)
    finer = simulate_lorenz(start, 12, substeps=30)
    assert np.abs(finer - simulate_lorenz(start, 12, substeps=60)).max() < 1e-5


def test_spikes_are_poisson_with_the_rates_that_come_along() -> None:
    splits = load_splits(seed=1, **SMALL | {"num_train": 400})
    part = splits.train
    assert part.rates.shape == (1200, 20, NEURONS)
    spikes = torch.stack([x for x, _ in (part[index] for index in range(len(part)))])
    assert torch.equal(spikes, spikes.round())
    rates = lorenz_rates(3, 20, seed=1)
    for condition in range(3):
        rows = slice(400 * condition, 400 * condition + 400)
        rate = torch.from_numpy(rates[condition]).float()
        torch.testing.assert_close(part.rates[rows][0], rate)
        error = (rate / 400).sqrt()
        assert ((spikes[rows].mean(0) - rate).abs() < 5 * error + 0.02).all()
        assert float(spikes[rows].var(0).sum() / rate.sum()) == pytest.approx(1, abs=0.05)
    assert rates.std(1).min() > 1e-3


def test_splits_differ_in_their_trials_and_follow_the_seed() -> None:
    first, again, other = (load_splits(seed=seed, **SMALL) for seed in (0, 0, 1))
    assert [len(part) for part in first] == [12, 6, 9]
    assert torch.equal(first.test.sequences, again.test.sequences)
    assert not torch.equal(first.train.rates[:6:2], other.train.rates[:6:2])
    assert torch.equal(first.train.rates[0], first.valid.rates[0])
    assert not torch.equal(first.train[0][0], first.valid[0][0])


def test_the_scores_are_those_of_their_formulas() -> None:
    torch.manual_seed(0)
    rates = torch.rand(4, 5, 3).double() + 0.1
    spikes = torch.poisson(3 * rates)
    mean = spikes.mean((0, 1)).expand_as(spikes)
    gain = torch.distributions.Poisson(rates).log_prob(spikes) - torch.distributions.Poisson(mean).log_prob(spikes)
    assert bits_per_spike(rates, spikes) == pytest.approx(float(gain.sum() / spikes.sum() / math.log(2)), rel=1e-9)
    assert bits_per_spike(mean, spikes) == pytest.approx(0, abs=1e-12)
    assert rate_r2(rates, rates) == 1
    assert rate_r2(rates.mean((0, 1)).expand_as(rates), rates) == pytest.approx(0, abs=1e-12)
    assert rate_r2(rates[..., :1], 2 * rates[..., :1]) < 0


def test_scores_of_a_model_and_what_it_holds_out() -> None:
    part = load_splits(seed=0, **SMALL).test
    model = VSSN(NEURONS, 8, 0, 2, likelihood="poisson", control="none", initial_state="inferred", held_out=10).train()
    before = torch.get_rng_state()
    scores = spike_scores(model, part)
    assert scores == spike_scores(model, part)
    assert before.equal(torch.get_rng_state())
    assert model.training
    assert scores.co_smoothing < 0, "untrained, worse than the mean counts"
    assert "held out" in scores.table()
    whole = spike_scores(VSSN(NEURONS, 8, 2, likelihood="poisson", batch_first=True), part)
    assert whole.co_smoothing is None
    assert whole.rate_r2_held_out is None
    with pytest.raises(
        DataError, match=r"^dataset: expected a part of the set 'lorenz' with its rates, got SequenceDat"
    ):
        spike_scores(model, SequenceDataset(torch.zeros(2, 3, NEURONS)))


def test_the_packaged_configuration_is_lfads() -> None:
    model = load_config("lorenz").build_model()
    layer = model.layer
    assert (layer.latent_size, layer.initial_size, model.held_out) == (0, 16, 10)
    assert layer.noise_smoothing
    assert layer.control == "none"
    assert model.likelihood.name == "poisson"


@pytest.mark.slow
def test_it_learns_the_rates(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = {"data.num_conditions": 6, "data.num_frames": 30, "training.max_epochs": 100, "training.report_every": 50}
    options |= {"training.kl_anneal_updates": 100, "data.num_train": 40}
    settings = [text for key, value in options.items() for text in ("--set", f"{key}={value}")]
    assert main(["fit", "--config", "lorenz", "--output", str(tmp_path / "run"), *settings]) == 0
    told = tmp_path / "scores.json"
    assert main(["evaluate", str(tmp_path / "run" / "best.ckpt"), "--json", str(told)]) == 0
    assert "held out" in capsys.readouterr().out
    scores = json.loads(told.read_text())
    assert scores["rate_r2"] > 0.4
    assert scores["rate_r2_held_out"] > 0.4
    assert scores["co_smoothing"] > 0.1
