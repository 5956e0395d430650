"""Filtering and smoothing states, predictions that see the past alone, rollouts, and regression on the states."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from linear_gaussian import LinearModel
from small_models import INFERRED, MODELS, B, T, X, batch, make
from step_by_step import PlainModel
from torch import Tensor

from vssn.data.pendulum import pendulum_splits
from vssn.experiments.baselines import copy_last_frame_error
from vssn.experiments.linear_probe import PENDULUM_TARGETS, filtering_limit, linear_probe, probe_pendulum
from vssn.inference.filtering import latent_states, one_step_predictions, prediction_error, rollouts, squared_errors
from vssn.models.vssn import VSSN
from vssn_kernels.testing import assert_all_close, assert_close, assert_equal

PLAIN = [name for name in (*MODELS, *INFERRED) if "masked" not in name]
NOT_SAMPLED = [name for name in PLAIN if name != "nade"]  # its mean is an estimate


def one_by_one(model: VSSN, given: dict[str, Any], stop: int, row: int) -> tuple[Tensor, Tensor]:
    """The last states (d, z) of the first `stop` frames of a sequence, at the mean of every latent, step by step."""
    here, one = slice(0, stop), slice(row, row + 1)
    x, u = given["x"][here, one], None if given["u"] is None else given["u"][here, one]
    zeros = [torch.zeros_like(part[here, one]) for part in given["noise"][:2]]
    zeros += [torch.zeros_like(eps_0[one]) for eps_0 in given["noise"][2:]]
    steps, _, _ = PlainModel(model).sequence(x, u, torch.ones_like(x, dtype=torch.bool), None, *zeros)
    d, z = steps.d[-1], steps.z[-1]
    return d, z


@pytest.mark.parametrize("name", PLAIN)
def test_filtering_is_inference_on_every_prefix(name: str) -> None:
    model = make(name)
    given = batch(model)
    got = latent_states(model, given["x"], given["u"], inference="filtering")
    for t in range(T):
        for row in range(B):
            d, z = one_by_one(model, given, t + 1, row)
            assert_close(f"d {t}", got.d[t, row : row + 1], d, 1e-11)
            assert_close(f"z {t}", got.z[t, row : row + 1], z, 1e-11)


@pytest.mark.parametrize("name", ["vssn", "both", "dkf", "smoothing", "nade", "inferred", "inferred_storn"])
def test_filtered_states_and_predictions_do_not_see_what_follows(name: str) -> None:
    model = make(name)
    given = batch(model, 7)
    x, cut = given["x"], 4
    other = x.clone()
    other[cut:] = 1 - other[cut:]
    options: dict[str, Any] = {"samples": 2, "seed": 3}
    for inference, same in (("filtering", True), ("smoothing", False)):
        first, second = (latent_states(model, y, given["u"], inference=inference, **options) for y in (x, other))
        part = "z" if model.layer.latent_size else "d"
        assert torch.equal(getattr(first, part)[:cut], getattr(second, part)[:cut]) == same
    if name == "nade":
        return
    first, second = (one_step_predictions(model, y, given["u"], **options) for y in (x, other))  # of x_2..x_T
    assert_equal("of what comes first", first[:cut], second[:cut])  # x_{cut+1} is predicted from equal frames
    assert not torch.equal(first[cut:], second[cut:])


@pytest.mark.parametrize("name", NOT_SAMPLED)
def test_a_prediction_is_a_step_of_the_prior_from_the_filtered_state(name: str) -> None:
    model = make(name)
    given = batch(model)
    got = one_step_predictions(model, given["x"], given["u"])
    assert got.shape == (T - 1, B, X)
    plain = PlainModel(model)
    nothing = torch.zeros(1, model.layer.noise_size).double(), torch.zeros(1, model.layer.latent_size).double()
    for t in range(1, T):
        for row in range(B):
            one = slice(row, row + 1)
            u = None if given["u"] is None else given["u"][t, one]
            controls = plain.controls(plain.embed(given["x"][t - 1, one]), u)
            d, z = plain.layer.imagine(controls, *one_by_one(model, given, t, row), *nothing)
            want = model.likelihood.mean(plain.decode(z, d))
            assert_close(f"{t}, {row}", got[t - 1, one], want, 1e-11)


def test_predictions_of_a_linear_model_average_to_those_at_the_mean() -> None:
    exact = LinearModel()
    x = exact.sample(6)
    mean = one_step_predictions(exact.model, x)
    sampled = one_step_predictions(exact.model, x.repeat(1, 400, 1), samples=8).mean(1, keepdim=True)
    assert (mean - sampled).abs().max() < 0.1
    assert (mean - x[1:]).abs().max() > 0.3


def test_padding_counts_for_nothing() -> None:
    model = make("vssn")
    given, lengths = batch(model), torch.tensor([5, 2, 1, 0])
    x = given["x"].clone()
    for row, length in enumerate(lengths.tolist()):
        x[length:, row] = torch.nan
    together = one_step_predictions(model, x, None, lengths)
    filled = torch.where(x.isnan(), 0.0, x)
    errors = []
    for row, length in enumerate(lengths.tolist()):
        assert together[max(length - 1, 0) :, row].abs().sum() == 0
        if length > 1:
            alone = one_step_predictions(model, x[:length, row : row + 1])
            assert_close("prediction", together[: length - 1, row : row + 1], alone, 1e-12)
            errors.append(prediction_error(alone, x[:length, row : row + 1]))
        for inference in ("filtering", "smoothing"):
            states = latent_states(model, x, None, lengths, inference=inference)
            assert states.d[length:, row].abs().sum() == states.z[length:, row].abs().sum() == 0
    assert prediction_error(together, filled, lengths) == pytest.approx(sum(errors) / 2)


def test_the_error_is_that_of_the_baselines() -> None:
    x = torch.rand(6, 3, 9)
    assert prediction_error(x[:-1], x) == pytest.approx(copy_last_frame_error(list(x.transpose(0, 1))), rel=1e-5)
    assert_close("squared_errors", squared_errors(x[:2], x[2:4]), (x[:2] - x[2:4]).pow(2).sum(2).mean(1), 1e-6)


@pytest.mark.parametrize("name", ["vssn", "both", "dkf_external", "masked", "embedded", "inferred_smoothing"])
def test_a_rollout_feeds_its_mean_back(name: str) -> None:
    model = make(name)
    given = batch(model, T + 3)
    x, u = given["x"], given["u"]
    seen, u_seen, u_future = x[:T], None if u is None else u[:T], None if u is None else u[T:]
    got = rollouts(model, seen, 3, u_seen, u_future)
    longer = torch.cat((seen, got[:1]))
    want = one_step_predictions(model, longer, None if u is None else u[: T + 1])[-1:]
    assert_close("first frame", got[:1], want, 1e-11)
    assert got.shape == (3, B, X)
    with torch.no_grad():
        state = model(seen, u_seen, noise=zero_noise(model, T)).state
    silent = pytest.MonkeyPatch()
    silent.setattr(model.layer, "draw_noise", lambda like: zero_noise(model, len(like)))
    want = model.generate(3, u=u_future, state=state, sample=False).mean
    silent.undo()
    assert_close("frames", got, want, 1e-11)


def zero_noise(model: VSSN, steps: int) -> tuple[Tensor, ...]:
    sizes = model.layer.noise_size, model.layer.latent_size
    pair = tuple(torch.zeros(steps, B, size).double() for size in sizes)
    return (*pair, torch.zeros(B, model.initial_size).double()) if model.initial_size else pair


def test_samples_are_seeded_and_leave_no_trace() -> None:
    model = make("vssn").train()
    x, before = batch(model)["x"], torch.get_rng_state()
    first, second, other = (rollouts(model, x, 2, samples=3, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    assert before.equal(torch.get_rng_state())
    assert model.training


def test_wrong_arguments_are_named() -> None:
    model = make("both")
    given = batch(model)
    x, u = given["x"], given["u"]
    with pytest.raises(ValueError, match="inference must be one of filtering, smoothing, got 'both'"):
        latent_states(model, x, u, inference="both")
    with pytest.raises(ValueError, match="samples must be an int of at least 1, got 0"):
        one_step_predictions(model, x, u, samples=0)
    with pytest.raises(ValueError, match="u_future is missing: this model has an external control of size 2"):
        rollouts(model, x, 3, u)
    with pytest.raises(ValueError, match="u_future must be None: this model has no external control"):
        rollouts(make("vssn"), x, 2, None, torch.zeros(2, 4, 1))


# Regression


def test_regression_equals_numpys_with_an_intercept() -> None:
    states, others = torch.randn(40, 3).double(), torch.randn(25, 3).double()
    mixing = torch.randn(3, 2).double()
    targets, truth = (s @ mixing + 2 + 0.3 * torch.randn(len(s), 2).double() for s in (states, others))
    got = linear_probe(states, targets, others, truth)
    with_one = [np.column_stack([s.numpy(), np.ones(len(s))]) for s in (states, others)]
    solution = np.linalg.lstsq(with_one[0], targets.numpy(), rcond=None)[0]
    residual = truth.numpy() - with_one[1] @ solution
    r2 = 1 - (residual**2).sum(0) / ((truth - truth.mean(0)) ** 2).sum(0).numpy()
    spread = ((targets.numpy() - with_one[0] @ solution) ** 2).mean(0) ** 0.5
    normal = torch.distributions.Normal(torch.zeros(2).double(), torch.from_numpy(spread))
    want = {"r2": torch.from_numpy(r2), "log_likelihood": normal.log_prob(torch.from_numpy(residual)).sum(0)}
    assert_all_close(got._asdict(), want, 1e-10)


def test_regression_bears_units_that_never_move() -> None:
    states = torch.randn(50, 2).double()
    padded = torch.cat((states, torch.zeros(50, 1), states[:, :1]), 1)
    targets = states @ torch.randn(2, 1).double()
    assert_close("r2", linear_probe(padded, targets, padded, targets).r2, torch.ones(1).double(), 1e-10)


def test_regression_refuses_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match="states and targets must have the widths fitted, 3 and 2, got 4 and 2"):
        linear_probe(torch.zeros(9, 3), torch.zeros(9, 2), torch.zeros(9, 4), torch.zeros(9, 2))
    with pytest.raises(ValueError, match="fit_states must have more rows than its 3 states, got 3"):
        linear_probe(torch.zeros(3, 3), torch.zeros(3, 2), torch.zeros(9, 3), torch.zeros(9, 2))


def test_the_limit_of_a_filter_is_what_the_first_velocity_leaves() -> None:
    """Reached by states that hold every velocity but the first, and by no more than what is seen of that."""
    train, _, test = pendulum_splits(400, 2, 400)
    limit = filtering_limit(train, test)
    rows = []
    for part in (train, test):
        states = part.states.clone()
        known = torch.cat((states[..., 2:], torch.zeros_like(states)), -1)
        known[:, 0, 0] = 0.0
        known[:, 0, 1:] = torch.cat((states[:, 0, :2], part.controls[:, 0]), -1)
        rows += [torch.cat((known, torch.ones_like(known[..., :1]) * (torch.arange(15) == 0)[:, None]), -1), states]
    fit, fit_states, scored, states = (part.flatten(0, 1) for part in rows)
    assert limit == pytest.approx(float(linear_probe(fit, fit_states[:, 2:], scored, states[:, 2:]).r2), abs=2e-3)
    assert 0.85 < limit < 0.95


@pytest.mark.parametrize("inference", ["filtering", "smoothing"])
def test_pendulum_states_are_scored(inference: str) -> None:
    """An untrained model's 60 random units already see the angle in the images; nothing is worse than the mean."""
    splits = pendulum_splits(60, 1, 40, num_steps=5)
    model = VSSN(256, 60, 4, 2, likelihood="gaussian", control="external", control_size=1)
    result = probe_pendulum(model, splits.train, splits.test, inference=inference)
    assert result.r2.shape == result.log_likelihood.shape == (len(PENDULUM_TARGETS),)
    assert (result.r2 <= 1).all()
    x, u = splits.test.images.transpose(0, 1), splits.test.controls.transpose(0, 1)
    states = latent_states(model, x, u, inference=inference)
    assert states.d.shape == (5, 40, 60)
    # Features that hold the answer are scored 1.
    truth = splits.train.states.flatten(0, 1), splits.test.states.flatten(0, 1)
    assert linear_probe(truth[0], truth[0], truth[1], truth[1]).r2.min() > 1 - 1e-9
