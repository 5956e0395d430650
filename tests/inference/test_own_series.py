"""Forecasts, imputations, latents and scores of frames: what users call on their own series."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from foreign_model import Foreign
from small_models import LENGTHS, MODELS, B, T, X, Z, a_mask, batch, make
from step_by_step import PlainModel
from torch import Tensor

from vssn import VSSN, Forecast, Imputation, Latents
from vssn.inference.draws import take_quantiles
from vssn.inference.filtering import latent_states
from vssn_kernels.testing import assert_all_close, assert_close, assert_equal

NAN = math.nan


def swapped(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.transpose(0, 1)


def future(model: VSSN, steps: int) -> Tensor | None:
    return torch.randn(steps, B, model.control_size, dtype=torch.float64) if model.control_size else None


# Forecasts


@pytest.mark.parametrize("name", ["gaussian", "both", "masked", "dkf_external", "smoothing", "nade"])
def test_samples_of_a_forecast_have_the_distribution_of_the_model_step_by_step(name: str) -> None:
    """Mean and variance over many samples, of every frame and every sequence behind its own end."""
    model, steps, many = make(name), 2, 3000
    given = batch(model)
    u, ahead = given["u"], future(model, steps)
    got = model.forecast(given["x"], steps, samples=many, u=u, u_future=ahead, lengths=LENGTHS, seed=1)
    assert got.samples.shape == (many, steps, B, X)
    assert got.mean.shape == (steps, B, X)
    assert got.quantiles is None
    plain = PlainModel(model)
    torch.manual_seed(2)
    for row, length in enumerate(LENGTHS.tolist()):
        x = given["x"][:length, row : row + 1].expand(-1, many, -1)
        control = None if u is None else u[:length, row : row + 1].expand(-1, many, -1)
        noise = [torch.randn(length, many, size, dtype=torch.float64) for size in model.noise_sizes]
        with torch.no_grad():
            d, z, frame = plain.sequence(x, control, torch.ones_like(x, dtype=torch.bool), None, *noise)[2]
            for t in range(steps):
                eps = [torch.randn(many, size, dtype=torch.float64) for size in model.noise_sizes]
                here = None if ahead is None else ahead[t, row : row + 1].expand(many, -1)
                d, z = plain.layer.imagine(plain.controls(plain.embed(frame), here), d, z, *eps)
                x_t = model.likelihood.sample(plain.decode(z, d)[None])[0]
                frame = torch.cat((x_t, torch.ones_like(x_t)), -1) if model.masked else x_t
                mine = got.samples[:, t, row]
                error = (mine.var(0) / many + x_t.var(0) / many).sqrt() + 1e-9
                assert ((mine.mean(0) - x_t.mean(0)).abs() < 5 * error).all(), (row, t)
                assert ((got.mean[t, row] - x_t.mean(0)).abs() < 5 * error).all(), (row, t)
                assert ((mine.std(0) - x_t.std(0)).abs() < 0.1 * x_t.std(0) + 0.02).all(), (row, t)


def test_each_sample_of_a_forecast_starts_from_a_state_of_its_own() -> None:
    """Of a model whose frames are its states: no noise is added behind them."""
    model = make("gaussian")
    states = []
    generate = model.generate
    model.generate = lambda *given, **more: states.append(more["state"]) or generate(*given, **more)
    model.forecast(batch(model)["x"], 1, samples=6)
    d, z = (part.view(6, B, -1) for part in states[0][:2])
    assert (d.std(0) > 1e-3).all()
    assert (z.std(0) > 1e-3).all()


@pytest.mark.parametrize("name", MODELS)
def test_forecasts_come_back_in_the_layout_and_follow_the_seed(name: str) -> None:
    model = make(name)
    given = batch(model)
    u, ahead, mask = given["u"], future(model, 3), a_mask() if "masked" in name else None
    options: dict[str, Any] = {"samples": 7, "quantiles": (0.1, 0.5, 1), "lengths": LENGTHS, "seed": 3}
    before = torch.random.get_rng_state()
    got = model.forecast(given["x"], 3, u=u, u_future=ahead, mask=mask, **options)
    assert torch.equal(before, torch.random.get_rng_state())
    assert isinstance(got, Forecast)
    foreign = Foreign(model).forecast(given["x"], 3, u=u, u_future=ahead, mask=mask, **options)
    assert_all_close(foreign._asdict(), got._asdict(), 0.0)
    levels = torch.tensor([0.1, 0.5, 1.0], dtype=torch.float64)
    assert_close("quantiles", got.quantiles, got.samples.quantile(levels, 0), 1e-12)
    model.set_batch_first(True)
    again = model.forecast(swapped(given["x"]), 3, u=swapped(u), u_future=swapped(ahead), mask=swapped(mask), **options)
    assert model.batch_first
    assert again.samples.shape == (7, B, 3, X)
    for part, other in zip(got, again, strict=True):
        assert_equal(name, part, other.transpose(-3, -2))


def test_without_memory_samples_run_one_by_one() -> None:
    model = make("gaussian")
    runs = []
    generate = model.generate
    model.generate = lambda *given, **more: runs.append(len(more["state"].d)) or generate(*given, **more)
    x = batch(model)["x"]
    assert model.forecast(x, 3, samples=5, memory=1).samples.shape == (5, 3, B, X)
    assert runs == [B] * 5
    model.forecast(x, 3, samples=5)
    assert runs[5:] == [5 * B]
    assert model.impute(x, samples=5, memory=1).samples.shape == (5, T, B, X)


def test_a_forecast_of_means_has_no_noise_of_the_emission() -> None:
    model = make("rnn", likelihood="gaussian")
    x = batch(model)["x"]
    got = model.forecast(x, 3, samples=4, sample=False)
    for sample in got.samples:
        assert_close("sample", sample, got.mean, 1e-12)
    assert_close("mean", got.mean, model.forecast(x, 3, sample=False).mean, 1e-12)


def test_quantiles_are_linear_between_samples() -> None:
    samples, levels = torch.randn(11, 3, 2, dtype=torch.float64), [0, 0.03, 0.5, 0.77, 1]
    want = samples.quantile(torch.tensor(levels, dtype=torch.float64), 0)
    assert_close("quantiles", take_quantiles(samples, levels), want, 1e-12)
    assert take_quantiles(samples, ()).shape == (0, 3, 2)
    assert take_quantiles(samples[:1].bfloat16(), (0.5,)).shape == (1, 3, 2)


# Missing values


@pytest.mark.parametrize("name", ["masked", "masked_mixture_embedded"])
def test_nan_is_missing_to_a_masked_model(name: str) -> None:
    model, mask = make(name), a_mask()
    given = batch(model)
    gaps = given["x"].masked_fill(~mask, NAN)
    for lengths in (None, LENGTHS):
        want = model(**given, mask=mask, lengths=lengths)
        got = model(**given | {"x": gaps}, lengths=lengths)
        for field in ("elbo", "loss", "reconstruction", "kl_z", "kl_w"):
            assert_equal(field, getattr(got, field), getattr(want, field))
    padded = given["x"].clone()
    padded[3:, 2] = NAN  # in the padding NaN is no missing value
    assert model.prepare(padded, None, LENGTHS).observed is None
    with pytest.raises(ValueError, match=r"^x must be finite, got inf; leave missing values out"):
        model(gaps.masked_fill(~mask, math.inf))
    with pytest.raises(ValueError, match=r"^x must be finite, got nan"):
        model(gaps, mask=torch.ones_like(mask))


def test_nan_is_an_error_to_another() -> None:
    model = make("gaussian")
    with pytest.raises(ValueError, match=r"masked=True takes NaN as missing$"):
        model(batch(model)["x"].masked_fill(~a_mask(), NAN))


@pytest.mark.parametrize("name", ["masked", "masked_mixture_embedded"])
def test_nan_is_missing_where_a_call_is_compiled_too(name: str) -> None:
    model, mask = make(name), a_mask()
    given = batch(model)
    gaps = given["x"].masked_fill(~mask, NAN)
    compiled = torch.compile(model, backend="eager")
    assert_close("elbo", compiled(gaps, noise=given["noise"]).elbo, model(**given, mask=mask).elbo, 1e-12)


# Imputation


@pytest.mark.parametrize("name", ["masked", "gaussian", "mixture", "masked_mixture_embedded", "both", "smoothing"])
def test_what_is_observed_comes_back_as_it_went_in(name: str) -> None:
    model, mask = make(name), a_mask()
    given = batch(model)
    x, u = given["x"], given["u"]
    got = model.impute(x.masked_fill(~mask, NAN), mask, 5, (0.25, 0.75), u=u, lengths=LENGTHS, seed=2)
    assert isinstance(got, Imputation)
    valid = (torch.arange(T)[:, None] < LENGTHS)[..., None]
    want = x.masked_fill(~valid, 0.0)
    for part in (got.mean[None], got.samples, got.quantiles):
        assert torch.equal(torch.where(mask | ~valid, part, want), want.expand_as(part))
    missing = ~mask & valid
    assert (got.samples.std(0)[missing] > 0).any()
    assert (got.mean[missing] != 0).all()
    foreign = Foreign(model).impute(x, mask, 5, (0.25, 0.75), u=u, lengths=LENGTHS, seed=2)
    assert_all_close(foreign._asdict(), got._asdict(), 0.0)
    model.set_batch_first(True)
    again = model.impute(swapped(x), swapped(mask), 5, (0.25, 0.75), u=swapped(u), lengths=LENGTHS, seed=2)
    for part, other in zip(got, again, strict=True):
        assert_equal(name, part, other.transpose(-3, -2))
    if model.masked:
        model.set_batch_first(False)
        assert_equal("NaN", model.impute(x.masked_fill(~mask, NAN), samples=5, lengths=LENGTHS, seed=2).mean, got.mean)


def test_where_nothing_is_missing_nothing_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = VSSN(3, 4, 2, 1, likelihood="gaussian", masked=True), torch.randn(5, 2, 3)
    x[3, 1] = torch.nan  # padding
    monkeypatch.setattr(model, "infer", lambda *_: pytest.fail("drawn"))
    found = model.impute(x, samples=4, quantiles=[0.5], lengths=torch.tensor([5, 3]))
    wanted = x.clone()
    wanted[3:, 1] = 0
    assert found.mean.equal(wanted)
    assert found.samples.equal(wanted.expand(4, 5, 2, 3))
    assert found.quantiles is not None
    assert found.quantiles[0].equal(wanted)


@pytest.mark.parametrize("name", ["masked", "both", "smoothing", "gaussian"])
@pytest.mark.parametrize("memory", [1, 2**30])
def test_nothing_is_drawn_for_what_is_whole(name: str, memory: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither sequences nor frames of others; the means of what is missing are those beside any other sequence."""
    model, samples = make(name), 6
    given = batch(model)
    mask = torch.ones(T, B, X, dtype=torch.bool)
    mask[1, 0] = mask[2, 3] = False
    beside = mask.clone()
    beside[:, 1] = beside[0, 2] = False
    options: dict[str, Any] = {"samples": samples, "u": given["u"], "seed": 4, "memory": memory}
    want = model.impute(given["x"], beside, **options)
    rows, frames = [], []
    infer, sample = model.infer, model.likelihood.sample
    monkeypatch.setattr(model, "infer", lambda *of: rows.append(of[0].x.shape[1]) or infer(*of))
    monkeypatch.setattr(
        model.likelihood, "sample", lambda given: frames.append(math.prod(given.shape[:-1])) or sample(given)
    )
    got = model.impute(given["x"], mask, **options)
    assert sum(rows) == sum(frames) == 2 * samples
    for part, of in ((got.mean[None], given["x"]), (got.samples, given["x"])):
        assert torch.equal(torch.where(mask, part, 0.0), torch.where(mask, of, 0.0).expand_as(part))
    for at in ((1, 0), (2, 3)):
        assert (got.samples.std(0)[at] > 0).any()
        if memory > 1:  # else what is drawn of the emission stands between the paths
            assert_close("mean", got.mean[at], want.mean[at], 1e-9)
    again = model.impute(given["x"], mask, **options)
    assert_equal("samples", again.samples, got.samples)


def test_imputed_entries_have_the_distribution_of_the_posterior_step_by_step() -> None:
    model, mask, many = make("masked_mixture_embedded"), a_mask(), 4000
    given = batch(model)
    got = model.impute(given["x"], mask, many, seed=1)
    plain = PlainModel(model)
    row = 2
    x, observed = (part[:, row : row + 1].expand(-1, many, -1) for part in (given["x"], mask))
    noise = [torch.randn(T, many, size, dtype=torch.float64) for size in model.noise_sizes]
    with torch.no_grad():
        steps = plain.sequence(x, None, observed, None, *noise)[0]
        for t in range(T):
            parameters = plain.decode(steps.z[t], steps.d[t])
            # A mixture of two: the component's weight follows from what is observed of the frame.
            weights, mu, logvar = model.likelihood._split(parameters)
            density = -0.5 * (math.log(2 * math.pi) + logvar + (x[t][:, None] - mu) ** 2 / logvar.exp())
            weights = torch.softmax(weights + (density * observed[t][:, None]).sum(-1), -1)
            mean = (weights[..., None] * mu).sum(1)
            square = (weights[..., None] * (mu**2 + logvar.exp())).sum(1).mean(0)
            missing = ~mask[t, row]
            spread = (square - mean.mean(0) ** 2).sqrt()[missing]
            mine = got.samples[:, t, row][:, missing]
            limit = 6 * spread / many**0.5
            assert ((mine.mean(0) - mean.mean(0)[missing]).abs() < limit).all()
            assert ((got.mean[t, row] - mean.mean(0))[missing].abs() < limit).all()
            assert missing.sum() == 0 or ((mine.std(0) - spread).abs() < 0.1 * spread).all()


@pytest.mark.parametrize("name", ["nade", "ar_gaussian"])
def test_a_frame_that_is_missing_in_part_is_an_error_where_no_density_is_known(name: str) -> None:
    model = make("nade") if name == "nade" else make("gaussian", likelihood=name)
    x = batch(model)["x"]
    with pytest.raises(ValueError, match=f"^mask must leave out whole frames with likelihood='{name}'"):
        model.impute(x, a_mask())
    whole = torch.rand(T, B) > 0.4
    assert torch.equal(model.impute(x, whole, 3).samples[:, whole], x[whole].expand(3, -1, -1))


# Latents


@pytest.mark.parametrize("kind", ["smooth", "filter"])
@pytest.mark.parametrize("name", MODELS)
def test_latents_are_those_of_the_model_step_by_step(name: str, kind: str) -> None:
    model, samples = make(name), 2
    given = batch(model, rows=2 * B)
    x, u = given["x"][:, :B], None if given["u"] is None else given["u"][:, :B]
    lengths = torch.tensor([5, 0, 3, 1])
    noise = tuple(part.view(T, samples, B, part.shape[-1]).movedim(1, 0) for part in given["noise"])
    got = model.latents(x, u, lengths, kind=kind, samples=samples, noise=noise)
    assert isinstance(got, Latents)
    assert got.w.shape == (samples, T, B, model.noise_sizes[0])
    plain = PlainModel(model)
    for sample in range(samples):
        for row, length in enumerate(lengths.tolist()):
            one = slice(row, row + 1)
            for part in got:
                assert part[sample, length:, row].abs().sum() == 0
            for stop in range(1, length + 1) if kind == "filter" else [length]:
                here = x[:stop, one]
                control = None if u is None else u[:stop, one]
                eps = [part[sample, :stop, one] for part in noise]
                steps, _, _ = plain.sequence(here, control, torch.ones_like(here, dtype=torch.bool), None, *eps)
                for t in range(stop) if kind == "smooth" else [stop - 1]:
                    assert_close("d", got.d[sample, t, one], steps.d[t], 1e-11)
                    assert_close("z", got.z[sample, t, one], steps.z[t], 1e-11)
    no_noise = model.latents(x, u, lengths, kind=kind)
    inference = {"smooth": "smoothing", "filter": "filtering"}[kind]
    assert_all_close(
        latent_states(model, x, u, lengths, inference=inference)._asdict(),
        {"d": no_noise.d, "z": no_noise.z},
        1e-12,
    )


@pytest.mark.parametrize("kind", ["smooth", "filter"])
@pytest.mark.parametrize("name", ["vssn", "smoothing", "both"])
def test_w_is_what_d_was_made_of(name: str, kind: str) -> None:
    model = make(name)
    given = batch(model)
    got = model.latents(given["x"], given["u"], kind=kind, noise=given["noise"])
    prepared, plain = model.prepare(given["x"], given["u"]), PlainModel(model)
    if kind == "filter" and name == "smoothing":  # each w stands on a d of its own prefix
        last = model.latents(given["x"][:3], given["u"][:3], noise=tuple(part[:3] for part in given["noise"]))
        assert_close("w", got.w[2], last.w[2], 1e-12)
        return
    d = plain.first_state(B, got.d)[0]
    for t in range(T):
        d = plain.layer.gru_step("duration", [*(part[t] for part in prepared.controls), got.w[t]], d)
        assert_close(f"d {t}", got.d[t], d, 1e-11)


@pytest.mark.parametrize("name", ["vssn", "smoothing", "causal", "inferred", "storn"])
@pytest.mark.parametrize(("steps", "rows"), [(0, B), (T, 0)])
def test_latents_and_scores_of_nothing(name: str, steps: int, rows: int) -> None:
    model = make(name)
    x, u = (batch(model, steps, rows)[key] for key in ("x", "u"))
    for kind in ("smooth", "filter"):
        assert model.latents(x, u, kind=kind, samples=2).d.shape[:3] == (2, steps, rows)
    for kind in ("elbo", "predictive"):
        assert model.score(x, u, kind=kind).shape == (steps, rows)


def test_samples_of_latents_differ_and_come_back_in_the_layout() -> None:
    model = make("masked")
    x, mask = batch(model)["x"], a_mask()
    got = model.latents(x, mask=mask, samples=3, seed=4)
    assert not torch.equal(got.z[0], got.z[1])
    noise = tuple(torch.randn(3, T, B, size, dtype=torch.float64) for size in model.noise_sizes)
    want = model.latents(x, mask=mask, samples=3, noise=noise)
    model.set_batch_first(True)
    again = model.latents(swapped(x), mask=swapped(mask), samples=3, seed=4)
    assert again.z.shape == (3, B, T, Z)
    assert_all_close({name: part.transpose(1, 2) for name, part in again._asdict().items()}, got._asdict(), 0.0)
    turned = tuple(part.transpose(1, 2) for part in noise)
    other = model.latents(swapped(x), mask=swapped(mask), samples=3, noise=turned)
    assert_all_close({name: part.transpose(1, 2) for name, part in other._asdict().items()}, want._asdict(), 1e-12)


# Scores of frames


@pytest.mark.parametrize("name", ["vssn", "both", "masked", "rnn", "nade"])
def test_scores_add_up_to_the_bound(name: str) -> None:
    model, samples = make(name), 3
    given = batch(model)
    mask = a_mask() if "masked" in name else None
    got = model.score(given["x"], given["u"], LENGTHS, mask, samples=samples, seed=5)
    torch.manual_seed(5)
    bounds = [model(given["x"], given["u"], LENGTHS, mask=mask).elbo for _ in range(samples)]
    assert_close("sum", got.sum(0), torch.stack(bounds).mean(0), 1e-12)
    model.set_batch_first(True)
    other = model.score(swapped(given["x"]), swapped(given["u"]), LENGTHS, swapped(mask), samples=samples, seed=5)
    assert_equal("batch first", swapped(other), got)


def test_predictive_scores_are_exact_where_nothing_is_drawn_and_see_no_frame_to_come() -> None:
    model = make("rnn", likelihood="gaussian")
    x = batch(model)["x"]
    want = model(x).reconstruction  # without latents the density of x_t given the frames before it
    assert_close("score", model.score(x, kind="predictive", samples=2), want, 1e-12)
    model = make("smoothing")
    given = batch(model)
    other = given["x"].clone()
    other[3:] = 1 - other[3:]
    first, second = (
        model.score(x, given["u"], LENGTHS, kind="predictive", samples=4, seed=1) for x in (given["x"], other)
    )
    assert_equal("before", first[:3], second[:3])
    assert not torch.equal(first[3:], second[3:])
    assert first[3:, 2].abs().sum() == 0


def test_predictive_scores_of_many_samples_are_the_models_density() -> None:
    """x_1 under the priors, by plain draws."""
    model, many = make("gaussian"), 20000
    x = batch(model)["x"][:1]
    got = model.score(x, kind="predictive", samples=many, seed=0)[0]
    plain = PlainModel(model)
    d, z, frame = plain.first_state(many, x)
    eps = [torch.randn(many, size, dtype=torch.float64) for size in model.noise_sizes]
    with torch.no_grad():
        d, z = plain.layer.imagine(plain.controls(frame, None), d, z, *eps)
        for row in range(B):
            terms = plain.log_prob(plain.decode(z, d), x[0, row].expand(many, -1), torch.ones(many, X))
            density = terms.exp()
            error = 6 * float(density.std() / density.mean()) * (2 / many) ** 0.5
            assert abs(float(got[row] - density.mean().log())) < error


# Quality: a model of a simulated series


PERIOD = 6.0


def oscillations(count: int, steps: int, seed: int) -> Tensor:
    """[T, N, 3] of a noisy oscillator: its phase, speed and amplitude wander, two readings and their lagged sum."""
    source = torch.Generator().manual_seed(seed)
    state = torch.randn(count, 2, generator=source)
    angle = torch.tensor(2 * math.pi / PERIOD)
    turn = 0.99 * torch.stack((torch.stack((angle.cos(), -angle.sin())), torch.stack((angle.sin(), angle.cos()))))
    frames = []
    for _ in range(steps):
        state = state @ turn.T + 0.1 * torch.randn(count, 2, generator=source)
        read = torch.cat((state, state.sum(-1, keepdim=True)), -1)
        frames.append(read + 0.1 * torch.randn(count, 3, generator=source))
    return torch.stack(frames)


def with_gaps(x: Tensor, seed: int) -> Tensor:
    """30% of the frames, and then no reading of it, are missing."""
    gone = torch.rand(x.shape[:2], generator=torch.Generator().manual_seed(seed)) < 0.3
    return x.masked_fill(gone[..., None], NAN)


@pytest.fixture(scope="module")
def oscillator() -> VSSN:
    torch.manual_seed(0)
    model = VSSN(3, 24, 4, 2, likelihood="gaussian", masked=True, control="previous", mlp_size=32)
    optimiser = torch.optim.Adam(model.parameters(), 8e-3)
    steps = 600
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 8e-3, steps)
    data = oscillations(1024, 40, 1)
    for step in range(steps):
        x = with_gaps(data[:, torch.randint(1024, (32,))], step)
        loss = model(x, kl_weight=min(1.0, 0.2 + step / 200)).loss
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimiser.step()
        schedule.step()
    return model.eval()


def test_intervals_of_forecasts_cover_what_they_say(oscillator: VSSN) -> None:
    x = oscillations(200, 46, 2)
    got = oscillator.forecast(x[:40], 6, samples=200, quantiles=(0.1, 0.9), seed=0)
    low, high = got.quantiles
    inside = (low <= x[40:]) & (x[40:] <= high)
    assert 0.75 <= float(inside.float().mean()) <= 0.85, float(inside.float().mean())
    error = (got.mean - x[40:]).square().mean()
    assert error < 0.5 * (x[39] - x[40:]).square().mean()


def test_imputation_is_better_than_a_line_between_neighbours(oscillator: VSSN) -> None:
    x = oscillations(200, 40, 3)
    gaps = with_gaps(x, 7)
    got = oscillator.impute(gaps, samples=100, quantiles=(0.1, 0.9), seed=0)
    missing = gaps.isnan()
    missing[0] = missing[-1] = False  # a line needs two ends
    line = interpolated(gaps)
    mine, theirs = (float((part - x)[missing].abs().mean()) for part in (got.mean, line))
    assert mine * 2.5 < theirs, (mine, theirs)
    inside = ((got.quantiles[0] <= x) & (x <= got.quantiles[1]))[missing].float().mean()
    assert 0.7 <= float(inside) <= 0.9, float(inside)


def interpolated(gaps: Tensor) -> Tensor:
    """Linear in time, [T, B, X]; the nearest value at the ends."""
    import numpy as np

    times, out = np.arange(len(gaps)), gaps.clone()
    for row in range(gaps.shape[1]):
        for entry in range(gaps.shape[2]):
            series = gaps[:, row, entry].numpy()
            known = ~np.isnan(series)
            out[:, row, entry] = torch.from_numpy(np.interp(times, times[known], series[known]))
    return out


# Errors

WRONG: list[tuple[str, dict[str, Any], str]] = [
    ("forecast", {"samples": 0}, "samples must be an int of at least 1, got 0"),
    ("forecast", {"quantiles": (0.5,)}, "samples must be given with quantiles"),
    ("forecast", {"samples": 2, "quantiles": (0.5, 1.5)}, "quantiles must lie in [0, 1], got (0.5, 1.5)"),
    (
        "forecast",
        {"samples": 2, "quantiles": 0.5},
        "quantiles must be a sequence of numbers in [0, 1] or None, got 0.5",
    ),
    ("forecast", {"samples": 2, "quantiles": "12"}, "quantiles must be a sequence of numbers"),
    ("forecast", {"samples": 2, "seed": -1}, "seed must be an int"),
    ("forecast", {"seed": 1}, "samples must be given with seed"),
    ("forecast", {"samples": 2, "memory": 0}, "memory must be an int of at least 1, got 0"),
    ("impute", {"samples": None}, "samples must be an int of at least 1, got None"),
    ("impute", {"quantiles": (True,)}, "quantiles must be a sequence of numbers"),
    ("impute", {"mask": torch.ones(T, B, X + 1, dtype=torch.bool)}, "mask must have shape [T, B] or [T, B, X]"),
    ("latents", {"kind": "smoothing"}, "kind must be one of smooth, filter, got 'smoothing'"),
    ("latents", {"noise": 3}, "noise must be a tuple (eps_w, eps_z) or None, got int"),
    (
        "latents",
        {"samples": 2, "noise": (torch.zeros(T, B, 2).double(), torch.zeros(T, B, 3).double())},
        "noise's eps_w must have shape [samples, T, B, W] = [2, 5, 4, 2], got [5, 4, 2]",
    ),
    ("latents", {"noise": (torch.zeros(T, B, 2).double(), torch.full((T, B, 3), NAN).double())}, "noise's eps_z must"),
    ("score", {"kind": "iwae"}, "kind must be one of elbo, predictive, got 'iwae'"),
    ("score", {"samples": 0}, "samples must be an int of at least 1, got 0"),
]


@pytest.mark.parametrize(("method", "arguments", "message"), WRONG, ids=lambda value: str(value)[:40])
def test_wrong_calls(method: str, arguments: dict[str, Any], message: str) -> None:
    model = make("gaussian")
    given: dict[str, Any] = {"x": batch(model)["x"]} | ({"steps": 2} if method == "forecast" else {})
    with pytest.raises((ValueError, TypeError)) as caught:
        getattr(model, method)(**given | arguments)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)
