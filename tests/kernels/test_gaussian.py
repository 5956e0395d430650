"""gaussian_rsample_kl and gaussian_kl against torch.distributions."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Independent, Normal, kl_divergence

from vssn_kernels import gaussian_kl, gaussian_rsample_kl
from vssn_kernels.testing import FULL, TOLERANCES, Target, assert_all_close, assert_close, assert_equal, targets

each_target = pytest.mark.parametrize("target", targets(*FULL), ids=str)
NAMES = ("mu", "logvar", "eps", "prior_mu", "prior_logvar")


def diagonal(mu: Tensor, logvar: Tensor) -> Independent:
    return Independent(Normal(mu, torch.exp(logvar / 2)), 1)


def inputs(target: Target, *shape: int) -> dict[str, Tensor]:
    return {name: torch.randn(shape, device=target.device, dtype=target.dtype) for name in NAMES}


@pytest.mark.parametrize("prior", [False, True])
@each_target
def test_equals_torch_distributions(prior: bool, target: Target) -> None:
    """Sample, divergence and every gradient, from both functions."""
    given = inputs(target, 4, 3, 5)
    used = NAMES if prior else NAMES[:3]
    results = []
    for exact in (False, True):
        device, dtype = ("cpu", torch.float64) if exact else (target.device, target.dtype)
        leaves = {name: given[name].to(device, dtype, copy=True).requires_grad_() for name in used}
        mu, logvar, eps = (leaves[name] for name in NAMES[:3])
        reference = [leaves[name] for name in NAMES[3:] if prior]
        if exact:
            p = diagonal(*reference) if prior else diagonal(torch.zeros_like(mu), torch.zeros_like(mu))
            z, kl = mu + torch.exp(logvar / 2) * eps, kl_divergence(diagonal(mu, logvar), p)
            only_kl = kl
        else:
            z, kl = gaussian_rsample_kl(mu, logvar, eps, *reference, backend=target.backend)
            only_kl = gaussian_kl(mu, logvar, *reference, backend=target.backend)
        grads = torch.autograd.grad((z**3).sum() + (kl**2).sum() + only_kl.sum(), list(leaves.values()))
        results.append(({"z": z, "kl": kl, "only_kl": only_kl}, dict(zip(used, grads, strict=True))))
    for_outputs, for_gradients = TOLERANCES[target.backend, target.dtype]
    assert_all_close(results[0][0], results[1][0], for_outputs)
    assert_all_close(results[0][1], results[1][1], for_gradients, "grad of")


@each_target
def test_no_prior_is_the_standard_normal(target: Target) -> None:
    t = inputs(target, 7, 5)
    zeros = torch.zeros_like(t["mu"])
    without = gaussian_kl(t["mu"], t["logvar"], backend=target.backend)
    with_standard = gaussian_kl(t["mu"], t["logvar"], zeros, zeros, backend=target.backend)
    assert_close("kl", without, with_standard, 1e-6)


@each_target
def test_the_divergence_of_equal_gaussians_is_zero(target: Target) -> None:
    t = inputs(target, 6, 9)
    kl = gaussian_kl(t["mu"], t["logvar"], t["mu"].clone(), t["logvar"].clone(), backend=target.backend)
    assert torch.equal(kl, torch.zeros_like(kl))


@each_target
def test_close_gaussians_have_no_negative_divergence(target: Target) -> None:
    """exp(d) - d - 1 for small d is where rounding could make it negative by more than the last bits of 1."""
    t = inputs(target, 50, 3)
    near = {name: t[name] + 1e-4 * torch.randn_like(t[name]) for name in ("mu", "logvar")}
    kl = gaussian_kl(t["mu"], t["logvar"], near["mu"], near["logvar"], backend=target.backend)
    assert kl.min() > -1e-6


@each_target
def test_both_functions_give_the_same_divergence(target: Target) -> None:
    t = inputs(target, 3, 4, 11)
    _, kl = gaussian_rsample_kl(*t.values(), backend=target.backend)
    only = gaussian_kl(t["mu"], t["logvar"], t["prior_mu"], t["prior_logvar"], backend=target.backend)
    assert_equal("kl", only, kl)


@each_target
def test_extreme_log_variances(target: Target) -> None:
    """From -60 to 60 against N(0, I): finite, and right to the tolerance of the dtype."""
    logvar = torch.linspace(-60, 60, 25, device=target.device, dtype=target.dtype)[:, None].requires_grad_()
    mu = torch.zeros_like(logvar)
    z, kl = gaussian_rsample_kl(mu, logvar, torch.ones_like(mu), backend=target.backend)
    exact = logvar.detach().double()
    for_outputs, for_gradients = TOLERANCES[target.backend, target.dtype]
    for row in range(25):  # row by row: the largest would hide the others
        assert_close("z", z[row], torch.exp(exact / 2)[row], for_outputs)
        assert_close("kl", kl[row], ((torch.exp(exact) - exact - 1) / 2).sum(-1)[row], for_outputs)
    (grad,) = torch.autograd.grad(kl.sum(), logvar)
    assert_close("grad of logvar", grad, (torch.exp(exact) - 1) / 2, for_gradients)


def test_a_vmap_of_nothing_is_one_line() -> None:
    with pytest.raises(
        RuntimeError, match=r"^gaussian_kl: torch.func.vmap of a batch of 0 has no result; leave it out"
    ):
        torch.func.vmap(gaussian_kl)(torch.zeros(0, 2, 3), torch.zeros(0, 2, 3))


@each_target
def test_a_prior_of_hardly_any_variance(target: Target) -> None:
    """exp(-prior_logvar) leaves the range of float32 where the divergence does not."""
    prior_logvar = torch.full((3, 1), -90.0, device=target.device, dtype=target.dtype).requires_grad_()
    shift = torch.tensor([[0.0], [2.0**-65], [-(2.0**-64)]], device=target.device, dtype=target.dtype)
    mu, prior_mu = shift.requires_grad_(), torch.zeros_like(shift).requires_grad_()
    kl = gaussian_kl(mu, torch.full_like(shift, -90.0), prior_mu, prior_logvar, backend=target.backend)
    squares = shift.detach().double() ** 2 * math.exp(90)
    for_outputs, for_gradients = TOLERANCES[target.backend, target.dtype]
    assert_close("kl", kl, (squares / 2).sum(-1), for_outputs)
    grads = torch.autograd.grad(kl.sum(), (mu, prior_mu, prior_logvar))
    assert grads[0][0] == grads[1][0] == grads[2][0] == 0
    assert_close("grad of prior_logvar", grads[2], -squares / 2, for_gradients)


@each_target
def test_samples_have_the_mean_and_variance_asked_for(target: Target) -> None:
    many = 20000
    mu = torch.tensor([0.5, -2.0, 3.0], device=target.device, dtype=target.dtype).expand(many, 3)
    logvar = torch.tensor([0.0, -3.0, 1.0], device=target.device, dtype=target.dtype).expand(many, 3)
    eps = torch.randn(many, 3, generator=torch.Generator().manual_seed(0)).to(target.device, target.dtype)
    z, _ = gaussian_rsample_kl(mu, logvar, eps, backend=target.backend)
    deviation = torch.exp(logvar[0] / 2)
    assert ((z.mean(0) - mu[0]).abs() < 5 * deviation / many**0.5).all()
    assert ((z.std(0) / deviation - 1).abs() < 0.03).all()
