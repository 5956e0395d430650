"""The public series: facts of the data, and what is made of them."""

from __future__ import annotations

import pytest
import torch

from vssn.data.series import SERIES, Hide, load_series, load_splits, scale_of_series, shift_of

pytest.importorskip("statsmodels")
pytest.importorskip("vega_datasets")


@pytest.mark.parametrize(
    ("name", "frames", "missing"),
    [("co2", 2284, 59), ("sunspots", 309, 0), ("elnino", 732, 0), ("macro", 203, 0), ("weather", 1461, 0)],
)
def test_the_sets_are_those_that_are_published(name: str, frames: int, missing: int) -> None:
    x, u, valid, test = load_series(name)
    assert (len(x), int(x.isnan().sum())) == (frames, missing)
    assert x.shape[1] == SERIES[name].x_size
    assert (u is not None) == SERIES[name].calendar
    assert (valid, test) == (round(0.7 * frames), round(0.8 * frames))


@pytest.mark.parametrize("name", ["co2", "macro"])
def test_no_part_sees_another_one_s_targets(name: str) -> None:
    """Windows end in their part; what validates and tests begins behind the parts before."""
    x, _, valid, test = load_series(name)
    series, splits = SERIES[name], load_splits(set=name, seed=0, hidden=0.0)
    scale = scale_of_series(name)
    places = {}
    frames = x.unfold(0, series.window, 1).transpose(1, 2)
    windows = torch.stack([window - shift_of(window, series.context) for window in frames])
    for part in splits._fields:
        dataset = getattr(splits, part)
        assert {len(dataset[index][0]) for index in range(len(dataset))} == {series.window}
        ends = []
        for index in range(len(dataset)):
            alike = torch.isclose(dataset[index][0] * scale, windows, atol=1e-3, equal_nan=True).all(2).all(1)
            ends += [series.window + int(first) for first in alike.nonzero()[:1]]
        assert len(ends) == len(dataset)
        places[part] = (min(ends), max(ends))
    assert places["train"][1] <= valid
    assert valid + series.steps <= places["valid"][0]
    assert places["valid"][1] <= test
    assert test + series.steps <= places["test"][0]


def test_training_windows_are_shifted_and_scaled_and_have_gaps() -> None:
    whole, hidden = load_splits(set="elnino", seed=0, hidden=0.0).train, load_splits(set="elnino", seed=0).train
    x = torch.stack([whole[index][0] for index in range(len(whole))])
    torch.testing.assert_close(x[:, : SERIES["elnino"].context].mean(1), torch.zeros(len(x), 1), atol=1e-4, rtol=0)
    assert float(x.std()) == pytest.approx(1, abs=0.02)
    gone = torch.stack([hidden[index][0] for index in range(len(hidden))]).isnan()
    assert float(gone.double().mean()) == pytest.approx(0.15, abs=0.04)  # 30% of every second window
    hidden.set_epoch(1)
    assert not torch.equal(gone[0], hidden[0][0].isnan()) or not torch.equal(gone[1], hidden[1][0].isnan())


def test_hiding_follows_from_the_generator() -> None:
    x = torch.arange(40.0).view(20, 2)
    one, other = (Hide(0.5)(x, torch.Generator().manual_seed(1)) for _ in range(2))
    torch.testing.assert_close(one, other, equal_nan=True)
    assert torch.equal(one[~one.isnan()], x[~one.isnan()])
