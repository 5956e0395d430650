"""Generation and forecasts: their shapes, distributions, states and errors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from small_models import (
    LENGTHS,
    MODELS,
    B,
    D,
    T,
    U,
    X,
    Z,
    a_mask,
    batch,
    make,
    zeros,
)
from step_by_step import PlainModel
from torch import nn

from vssn import VSSN
from vssn_kernels.testing import assert_all_close, assert_close, assert_equal


@pytest.mark.parametrize("name", MODELS)
def test_generation_has_its_shapes_and_follows_the_seed(name: str) -> None:
    model = make(name)
    u = torch.randn(6, 3, U, dtype=torch.float64) if model.control_size else None
    torch.manual_seed(5)
    first = model.generate(6, 3, u=u)
    torch.manual_seed(5)
    again = model.generate(6, 3, u=u)
    assert_equal("x", again.x, first.x)
    assert first.x.shape == first.mean.shape == (6, 3, X)
    assert first.x.dtype == torch.float64
    assert first.x.isfinite().all()
    sizes = [model.layer.hidden_size, model.layer.latent_size, model.frame_size]
    sizes += [model.layer.backward_size] if model.layer.carries_a else []
    assert [tuple(part.shape) for part in first.state] == [(3, size) for size in sizes]
    assert not first.x.requires_grad
    torch.manual_seed(6)
    assert not torch.equal(model.generate(6, 3, u=u).x, first.x)
    if "masked" in name:
        assert torch.equal(first.state.x_last, torch.cat((first.x[-1], torch.ones(3, X)), -1))
    else:
        assert torch.equal(first.state.x_last, first.x[-1])


@pytest.mark.parametrize("name", ["vssn", "both", "dkf", "masked", "causal_both_residual", "causal_dkf"])
def test_generating_in_two_parts_equals_one(name: str) -> None:
    model = make(name)
    u = torch.randn(7, 3, U, dtype=torch.float64) if model.control_size else None
    torch.manual_seed(5)
    whole = model.generate(7, 3, u=u)
    torch.manual_seed(5)
    first = model.generate(3, 3, u=None if u is None else u[:3])
    second = model.generate(4, u=None if u is None else u[3:], state=first.state)
    assert_close("x", torch.cat((first.x, second.x)), whole.x, 1e-12)
    assert_close("mean", torch.cat((first.mean, second.mean)), whole.mean, 1e-12)
    assert_all_close(second.state._asdict(), whole.state._asdict(), 1e-12)


def test_generation_of_no_steps_keeps_the_state() -> None:
    model = make("vssn")
    state = model(**batch(model)).state
    out = model.generate(0, state=state)
    assert out.x.shape == (0, B, X)
    assert_all_close(out.state._asdict(), state._asdict(), 0.0)


def test_a_deterministic_model_generates_its_own_steps() -> None:
    """Without w and z, and with means fed back, everything is known."""
    model = make("rnn", likelihood="gaussian")
    plain = PlainModel(model)
    out = model.generate(4, 2, sample=False)
    d, z, frame = plain.first_state(2, out.x)
    for t in range(4):
        d, z = plain.layer.imagine(plain.controls(frame, None), d, z, d.new_zeros(2, 0), d.new_zeros(2, 0))
        frame = plain.decode(z, d)[:, :X]
        assert_close(f"mean at {t}", out.mean[t], frame, 1e-12)
    assert_equal("x", out.x, out.mean)


@pytest.mark.parametrize("name", ["vssn", "mixture", "dkf"])
def test_generated_frames_have_the_distribution_of_the_generative_model(name: str) -> None:
    """Mean and variance of the second frame against draws of the model written step by step."""
    model = make(name)
    plain, many = PlainModel(model), 4000
    with torch.no_grad():
        got = model.generate(2, many).x[1]
        d, z, frame = plain.first_state(many, got)
        for _ in range(2):
            eps = [
                torch.randn(many, size, dtype=torch.float64)
                for size in (model.layer.noise_size, model.layer.latent_size)
            ]
            d, z = plain.layer.imagine(plain.controls(frame, None), d, z, *eps)
            frame = model.likelihood.sample(plain.decode(z, d))
    error = (got.var(0) / many + frame.var(0) / many).sqrt()
    assert ((got.mean(0) - frame.mean(0)).abs() < 5 * error).all()
    assert ((got.var(0) / frame.var(0)).log().abs() < 0.3).all()


def test_a_forecast_continues_each_sequence_from_its_own_end() -> None:
    model = make("both")
    given = batch(model)
    future = torch.randn(3, B, U, dtype=torch.float64)
    torch.manual_seed(2)
    out = model.forecast(given["x"], 3, u=given["u"], u_future=future, lengths=LENGTHS)
    assert out.x.shape == (3, B, X)
    torch.manual_seed(2)
    state = model(given["x"], given["u"], lengths=LENGTHS).state
    want = model.generate(3, u=future, state=state)
    assert_equal("x", out.x, want.x)
    assert torch.equal(state.x_last[2], given["x"][2, 2])
    mask = a_mask()
    assert model.forecast(given["x"], 3, u=given["u"], u_future=future, mask=mask, sample=False).x.shape == (3, B, X)


@pytest.mark.parametrize("name", ["vssn", "gaussian", "mixture"])
def test_likelihood_samples_have_the_likelihoods_mean(name: str) -> None:
    model = make(name)
    likelihood = model.likelihood
    parameters = torch.randn(likelihood.parameter_size, dtype=torch.float64).expand(1, 20000, -1)
    draws = likelihood.sample(parameters)
    assert draws.shape == (1, 20000, X)
    mean = likelihood.mean(parameters)[0, 0]
    assert ((draws[0].mean(0) - mean).abs() < 5 * draws[0].std(0) / 20000**0.5).all()


def test_bernoulli_takes_grey_values() -> None:
    model = make("vssn")
    x = torch.rand(T, B, X, dtype=torch.float64)
    logits = torch.randn(T, B, X, dtype=torch.float64)
    want = -nn.functional.binary_cross_entropy_with_logits(logits, x, reduction="none").sum(-1)
    assert_close("log_prob", model.likelihood.log_prob(logits, x, None), want, 1e-12)


@pytest.mark.parametrize("extreme", [1e4, -1e4])
@pytest.mark.parametrize("name", ["vssn", "gaussian", "mixture"])
def test_extreme_decoder_outputs_stay_finite(name: str, extreme: float) -> None:
    model = make(name, torch.float32)
    parameters = torch.zeros(1, 1, model.likelihood.parameter_size)
    parameters[..., -1] = extreme
    parameters[..., 0] = extreme
    parameters.requires_grad_()
    value = model.likelihood.log_prob(parameters, torch.ones(1, 1, X), None)
    assert value.isfinite().all()
    value.sum().backward()
    assert parameters.grad.isfinite().all()


def test_universal_weights_are_drawn_once_for_a_generated_sequence() -> None:
    model = VSSN(5, 4, 0, universal="gaussian", num_sequences=3, control="none", learn_initial_state=True).train()
    with torch.no_grad():
        model.layer.weight_hh_logvar.fill_(1.0)
        model.layer.d_0.fill_(0.5)
    torch.manual_seed(0)
    draws = []
    own = model.layer.weight_noise
    model.layer.weight_noise = lambda: draws.append(own()) or draws[-1]
    model.generate(7, batch_size=2)
    assert len(draws) == 1


# ---- Errors --------------------------------------------------------------------------------------

WRONG_GENERATIONS: list[tuple[dict[str, Any], str]] = [
    ({"steps": -1}, "steps must be an int of at least 0, got -1"),
    ({"steps": 2.0}, "steps must be an int of at least 0, got 2.0"),
    ({"batch_size": -1}, "batch_size must be an int of at least 0, got -1"),
    ({"batch_size": 1.5}, "batch_size must be an int of at least 0, got 1.5"),
    ({"u": None}, "u is missing"),
    ({"u": zeros(3, 3, U)}, "u must have shape [T, B, U] = [3, 2, 2], got [3, 3, 2]"),
    ({"state": "start"}, "state must be a tuple (d, z, x_last) or None, got str"),
    ({"state": (1, 2, 3)}, "state's d must be a torch.Tensor, got int"),
    ({"state": (zeros(2, D + 1), zeros(2, Z), zeros(2, X))}, "state's d must have shape [B, D] = [2, 5], got [2, 6]"),
    ({"state": ()}, "state must be a tuple (d, z, x_last) or None"),
]


@pytest.mark.parametrize(("arguments", "message"), WRONG_GENERATIONS, ids=lambda value: str(value)[:40])
def test_wrong_generations(arguments: dict[str, Any], message: str) -> None:
    model = make("both", torch.float32)
    with pytest.raises((ValueError, TypeError)) as caught:
        model.generate(**{"steps": 3, "batch_size": 2, "u": zeros(3, 2, U)} | arguments)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
