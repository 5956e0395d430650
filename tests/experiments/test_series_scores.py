"""Scores of series models, and the peers of the table `series`."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vssn.data.batching import SequenceDataset
from vssn.errors import DataError
from vssn.experiments.series_peers import (
    Peer,
    StateSpace,
    normal_samples,
    peer_fillings,
    peer_forecasts,
    peer_of_size,
    train_peer,
)
from vssn.experiments.series_scores import (
    forecast_scores,
    hide,
    imputation_scores,
    interpolated,
    naive_forecasts,
    point_forecast_scores,
    point_imputation_scores,
    score_forecasts,
    score_imputations,
    windows_of,
)
from vssn.models.vssn import VSSN


def a_model(**options: object) -> VSSN:
    torch.manual_seed(0)
    return VSSN(2, 4, 2, 1, likelihood="gaussian", **options)  # type: ignore[arg-type]


def test_windows_stand_end_to_end_behind_what_they_may_see() -> None:
    x = [torch.arange(10.0)[:, None], torch.arange(5.0)[:, None]]
    u = [torch.arange(10.0)[:, None] * 2, torch.arange(5.0)[:, None] * 2]
    found = windows_of(x, u, 3, 3)
    assert [window.truth[:, 0].tolist() for window in found] == [[7, 8, 9], [4, 5, 6], [1, 2, 3], [2, 3, 4]]
    assert [len(window.past) for window in found] == [7, 4, 1, 2]
    assert [window.u[-1].item() for window in found if window.u is not None] == [18, 12, 6, 8]
    with pytest.raises(DataError, match="expected fewer than the frames of the longest sequence, 10, got 10"):
        windows_of(x, u, 10)


@pytest.mark.parametrize("length", [1, 4])
def test_that_share_is_hidden_in_gaps_of_that_length(length: int) -> None:
    x = torch.randn(4000, 2, generator=torch.Generator().manual_seed(0))
    x[:100, 0] = torch.nan
    (hidden,) = hide([x], None, 0.3, length=length)
    gone = ~hidden.truth.isnan()
    assert float(gone[100:].double().mean()) == pytest.approx(0.3, abs=0.03)
    assert not gone[:100, 0].any()  # what is missing is not hidden
    assert torch.equal(hidden.truth[gone], x[gone])
    assert bool(hidden.seen[gone].isnan().all())
    assert torch.equal(hidden.seen[~gone & ~x.isnan()], x[~gone & ~x.isnan()])
    starts = gone[101:, 1] & ~gone[100:-1, 1]
    runs = float(gone[101:, 1].sum() / starts.sum())
    assert runs >= length  # gaps may meet
    with pytest.raises(DataError, match="expected a share that hides an entry at least"):
        hide([x[:1] * torch.nan], None, 0.3)


def test_a_perfect_forecast_and_a_naive_one() -> None:
    x = [torch.arange(30.0)[:, None].repeat(1, 2)]
    x[0][-1, 1] = torch.nan
    windows = windows_of(x, None, 4)
    truth = torch.stack([window.truth for window in windows], 1)
    exact = forecast_scores(truth.nan_to_num().expand(5, *truth.shape).contiguous(), windows, 7)
    assert (exact["CRPS"], exact["MAE"], exact["MASE"], exact["80% coverage"]) == (0, 0, 0, 1)
    naive = point_forecast_scores(naive_forecasts(windows, 7), windows, 7)
    assert naive["MAE"] == naive["CRPS"] == 2 * naive["quantile loss"] == 7  # a straight line, a season behind
    assert naive["MASE"] == 1


@pytest.mark.parametrize("masked", [False, True])
def test_a_model_is_scored_beside_the_naive(masked: bool) -> None:
    x = [torch.randn(steps, 2, generator=torch.Generator().manual_seed(steps)) for steps in (12, 9)]
    if masked:
        x[0][3] = x[1][-1, 0] = torch.nan
    model = a_model(masked=masked)
    for seed in (0, 0):
        forecast = score_forecasts(model, x, None, steps=3, windows=2, samples=6, seed=seed, batch_size=3)
        imputation = score_imputations(model, x, None, share=0.4, samples=6, seed=seed)
    assert forecast.entries == 2 * 2 * 3 * 2 - masked
    for scores in (forecast, imputation):
        assert all(np.isfinite(value) for row in scores.rows.values() for value in row.values())
        assert set(scores.as_dict()) == {"title", "entries", *scores.rows}
    again = score_forecasts(model, x, None, steps=3, windows=2, samples=6, batch_size=3)
    assert again.rows == forecast.rows
    assert model.score(x[0].nan_to_num()[:, None]).shape == (12, 1)  # as it was before


def test_linear_interpolation_is_exact_on_a_line() -> None:
    hidden = hide([torch.arange(50.0)[:, None]], None, 0.3, seed=1)
    inner = hidden[0]._replace(truth=hidden[0].truth.index_fill(0, torch.tensor([0, 49]), torch.nan))
    assert point_imputation_scores(interpolated([inner]), [inner])["MAE"] < 1e-5
    filled = [torch.where(one.truth.isnan(), one.seen, one.truth).expand(3, 50, 1).contiguous() for one in hidden]
    assert imputation_scores(filled, hidden)["CRPS"] == 0


def waves(count: int, steps: int = 24) -> SequenceDataset:
    phase = torch.linspace(0, 6, count)[:, None]
    return SequenceDataset(((torch.arange(steps) * 2 * torch.pi / 8 + phase).sin())[..., None])


def test_a_peer_has_no_more_weights_than_it_may() -> None:
    for fills in (False, True):
        peer = peer_of_size(5000, 3, 2, fills)
        count = sum(weight.numel() for weight in peer.parameters())
        larger = sum(weight.numel() for weight in Peer(3, 2, peer.gru.hidden_size + 1, fills).parameters())
        assert count <= 5000 < larger


def test_peers_see_what_they_may() -> None:
    """A forecaster's mean of x_t hangs on x_{<t} alone; one that fills in hangs on what is observed on both sides."""
    torch.manual_seed(0)
    x = torch.randn(6, 1, 2)
    other = x.clone()
    other[4:] += 1
    forecaster, filler = Peer(2, 0, 4, False), Peer(2, 0, 4, True)
    means = [forecaster(frames, None)[0] for frames in (x, other)]
    torch.testing.assert_close(means[0][:5], means[1][:5])
    assert not torch.allclose(means[0][5], means[1][5])
    assert not torch.allclose(filler(x, None)[0][0], filler(other, None)[0][0])


def test_peers_learn_a_wave() -> None:
    train, valid = waves(24), waves(5)
    forecaster = train_peer(train, valid, 1500, False, epochs=25, seed=0, learning_rate=1e-2)
    x = valid[3][0]
    drawn = peer_forecasts(forecaster, [x[:16]], None, 4, 40, 0)
    assert drawn.shape == (40, 4, 1, 1)
    assert float((drawn.mean(0)[:, 0] - x[16:20]).abs().mean()) < 0.3
    filler = train_peer(train, valid, 1500, True, epochs=25, seed=0, learning_rate=1e-2)
    (hidden,) = hide([x], None, 0.3, seed=2)
    (filled,) = peer_fillings(filler, [hidden.seen], None, 40, 0)
    known = ~hidden.seen.isnan()
    assert torch.equal(filled[:, known[:, 0]], x[known[:, 0]].expand(40, -1, 1))
    assert imputation_scores([filled], [hidden])["MAE"] < 0.3


def test_state_space_forecasts_and_smooths_a_season() -> None:
    pytest.importorskip("statsmodels")
    time = np.arange(120)
    y = 5 + np.sin(time * 2 * np.pi / 12) + np.random.default_rng(0).normal(0, 0.05, 120)
    gaps = y.copy()
    gaps[40:44] = np.nan
    space = StateSpace(gaps[:100], 12, False, 100)
    mean, std = space.forecast(gaps[:100], 12)
    assert np.abs(mean - y[100:112]).mean() < 0.3
    assert (std > 0).all()
    mean, std = space.smooth(gaps)
    assert np.abs(mean - y)[40:44].max() < 0.4
    assert np.abs(mean - y).mean() < 0.15
    samples = normal_samples(torch.from_numpy(mean), torch.from_numpy(std), 4000, 0)
    np.testing.assert_allclose(samples.std(0), std, rtol=0.1)
