"""The autoregressive density of binary frames: normalised, with the gradients of its definition, and sampled from."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from vssn.likelihoods.nade import MEAN_SAMPLES, NADE, nade_logits
from vssn.utils.values import MARK_MISSING, require_values
from vssn_kernels.testing import assert_all_close, assert_close


def make(x_size: int, hidden_size: int) -> NADE:
    return NADE(x_size, hidden_size).double()


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


def binary(*shape: int, share: float = 0.4) -> Tensor:
    return (torch.rand(shape) < share).double()


def entry_by_entry(nade: NADE, parameters: Tensor, x: Tensor) -> Tensor:
    """log p(x) from the definition."""
    inside = parameters[..., nade.x_size :]
    total = torch.zeros(x.shape[:-1], dtype=x.dtype)
    for i in range(nade.x_size):
        p = torch.sigmoid(parameters[..., i] + torch.sigmoid(inside) @ nade.weight_out[i])
        total = total + torch.where(x[..., i] == 1, p, 1 - p).log()
        inside = inside + x[..., i, None] * nade.weight_in[i]
    return total


@pytest.mark.parametrize(("x_size", "hidden_size"), [(1, 1), (2, 3), (7, 5)])
def test_sums_to_one_over_all_frames(x_size: int, hidden_size: int) -> None:
    nade = make(x_size, hidden_size)
    frames = torch.tensor(list(itertools.product((0.0, 1.0), repeat=x_size)), dtype=torch.float64)
    parameters = 2 * normal(1, 1, nade.parameter_size).expand(1, len(frames), -1)
    log_p = nade.log_prob(parameters, frames[None], None)
    assert_close("sum", log_p.exp().sum(), torch.ones((), dtype=torch.float64), 1e-12)
    assert log_p.exp().max() < 1


@pytest.mark.parametrize("share", [0.0, 0.05, 0.5, 1.0])
def test_equals_the_definition_with_its_gradients(share: float) -> None:
    nade = make(11, 6)
    parameters, x = normal(5, 3, 17).requires_grad_(), binary(5, 3, 11, share=share)
    cotangent = normal(5, 3)
    results = {}
    for name, log_p in (("got", nade.log_prob(parameters, x, None)), ("want", entry_by_entry(nade, parameters, x))):
        inputs = {"parameters": parameters, **dict(nade.named_parameters())}
        grads = torch.autograd.grad((log_p * cotangent).sum(), list(inputs.values()))
        results[name] = {"log_p": log_p, **{f"grad of {key}": g for key, g in zip(inputs, grads, strict=True)}}
    assert_all_close(results["got"], results["want"], 1e-12)
    assert share == 0 or results["got"]["grad of weight_in"].abs().sum() > 0


def test_gradcheck_of_first_and_second_order() -> None:
    x = binary(4, 5)
    inputs = tuple(normal(*shape).requires_grad_() for shape in ((4, 5), (4, 3), (5, 3), (5, 3)))
    torch.autograd.gradcheck(lambda *given: nade_logits(x, *given), inputs)
    torch.autograd.gradgradcheck(lambda *given: nade_logits(x, *given), inputs)


def test_an_entry_depends_on_those_before_it_alone() -> None:
    nade = make(6, 4)
    bias, hidden_bias = normal(1, 6), normal(1, 4)
    x = binary(1, 6)
    logits = nade_logits(x, bias, hidden_bias, nade.weight_in, nade.weight_out)
    for i in range(6):
        other = x.clone()
        other[0, i] = 1 - other[0, i]
        moved = (nade_logits(other, bias, hidden_bias, nade.weight_in, nade.weight_out) - logits)[0].abs()
        # Another frame has other numbers of rows, and a library may sum them in another order: no bits are compared.
        assert_close("those up to it", moved[: i + 1], torch.zeros(i + 1, dtype=torch.float64), 1e-14)
        assert (moved[i + 1 :] > 1e-6).all()


def test_no_frames() -> None:
    assert make(4, 3).log_prob(normal(0, 2, 7), normal(0, 2, 4), None).shape == (0, 2)


def test_frequencies_and_mean_of_samples() -> None:
    nade = make(3, 4)
    with torch.no_grad():
        for weight in nade.parameters():
            weight.mul_(4)
        parameters = normal(1, 1, 7)
        count = 20000
        draws = nade.sample(parameters.expand(1, count, -1))[0]
        frames = torch.tensor(list(itertools.product((0.0, 1.0), repeat=3)), dtype=torch.float64)
        p = nade.log_prob(parameters.expand(1, 8, -1), frames[None], None).exp()[0]
        frequency = (draws[:, None] == frames).all(-1).double().mean(0)
        assert ((frequency - p).abs() < 5 * (p * (1 - p) / count).sqrt()).all()
        mean = nade.mean(parameters.expand(1, 2000, -1))[0]
        error = mean.std(0) / 2000**0.5 + 1e-12
    assert ((mean.mean(0) - p @ frames).abs() < 5 * error).all()
    assert mean.std(0).max() < 0.6 / MEAN_SAMPLES**0.5


def test_missing_frames_carry_no_likelihood_and_missing_entries_are_refused() -> None:
    nade = make(4, 3)
    parameters, x = normal(2, 2, 7), binary(2, 2, 4)
    observed = torch.tensor([[True, False], [True, True]])[..., None].expand(2, 2, 4)
    want = nade.log_prob(parameters, x, None)
    want[0, 1] = 0
    assert_close("log_prob", nade.log_prob(parameters, x, observed), want, 0.0)
    part = observed.clone()
    part[0, 0, 2] = False
    with pytest.raises(ValueError, match="mask must leave out whole frames with likelihood='nade'"):
        nade.log_prob(parameters, x, part)


def test_values_between_0_and_1_are_refused() -> None:
    half, nade = torch.full((1, 1, 4), 0.5, dtype=torch.float64), make(4, 3)
    with pytest.raises(
        ValueError, match=r"x must hold 0 and 1 alone with likelihood='nade', got 0.5; take .*bernoulli"
    ):
        require_values("x", half, nade.support, MARK_MISSING, nade.title)
