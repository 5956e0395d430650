"""posterior_sequence against its equations written step by step, and its statistics."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from vssn_kernels import PriorMean, posterior_sequence
from vssn_kernels.reference.posterior import posterior_sequence as posterior_reference
from vssn_kernels.testing import FULL, TOLERANCES, Target, assert_all_close, assert_close, find_sample, targets

each_target = pytest.mark.parametrize("target", targets(*FULL), ids=str)
ACTIVATE = {
    "tanh": torch.tanh,
    "relu": lambda x: x.clamp(min=0),
    "leaky_relu": lambda x: torch.maximum(x, x / 3),
    "silu": lambda x: x / (1 + torch.exp(-x)),
}


def step_by_step(t: dict[str, Tensor], activation: str, min_logvar: float) -> dict[str, Tensor]:
    """The equations of the contract, for one unpadded batch."""
    act, z, steps = ACTIVATE[activation], t["z0"], []
    for context, eps, number in zip(t["context"], t["eps"], range(len(t["eps"])), strict=True):
        hidden = act(context + z @ t["weight_z"].T)
        out = hidden @ t["weight_out"].T + t["bias_out"]
        latent = z.shape[1]
        mu, raw = out[:, :latent], out[:, latent:]
        logvar = min_logvar + torch.log1p(torch.exp(raw - min_logvar))
        if "prior.context" in t:
            prior_hidden = act(t["prior.context"][number] + z @ t["prior.weight_z"].T)
            mu = mu + prior_hidden @ t["prior.weight_mu"].T + t["prior.bias_mu"]
        z = mu + torch.exp(logvar / 2) * eps
        steps.append((z, mu, logvar))
    return {
        name: torch.stack(parts) for name, parts in zip(("z", "mu", "logvar"), zip(*steps, strict=True), strict=True)
    }


@pytest.mark.parametrize("min_logvar", [-12.0, -1.0, 2.0])
@pytest.mark.parametrize("activation", sorted(ACTIVATE))
@pytest.mark.parametrize("prior", [False, True])
@each_target
def test_equals_its_equations(prior: bool, activation: str, min_logvar: float, target: Target) -> None:
    name = f"prior_{activation}" if prior else activation
    sample = find_sample("posterior_sequence", name).to(target.device, target.dtype)
    sample = sample.replace(lengths=None, min_logvar=min_logvar)
    want = step_by_step(sample.to("cpu", torch.float64).tensors, activation, min_logvar)
    assert_all_close(sample.run(target.backend), want, TOLERANCES[target.backend, target.dtype][0])


@each_target
def test_the_log_variance_has_its_floor(target: Target) -> None:
    """Raw values far below give the floor and no NaN; far above they pass unchanged; the gradient follows."""
    device, dtype = target.device, target.dtype
    raw = torch.tensor([-1e4, -100.0, -12.0, 0.0, 30.0], device=device, dtype=dtype)
    latent = len(raw)
    zeros = torch.zeros(2, 1, latent, device=device, dtype=dtype)
    bias = torch.cat((torch.zeros_like(raw), raw)).requires_grad_()
    _, _, logvar = posterior_sequence(
        zeros[..., :1], zeros[0], zeros, zeros.new_zeros(1, latent), zeros.new_zeros(2 * latent, 1), bias,
        backend=target.backend,
    )  # fmt: skip
    want = torch.tensor([-12.0, -12.0, -12 + torch.log(torch.tensor(2.0)), 6.144e-6, 30.0], dtype=dtype)
    torch.testing.assert_close(logvar[0, 0].cpu().detach(), want, rtol=1e-6, atol=2e-6)
    logvar.sum().backward()
    slope = 2 * torch.sigmoid(raw.double() + 12).cpu()
    torch.testing.assert_close(bias.grad[latent:].double().cpu(), slope, rtol=1e-5, atol=1e-6)


@each_target
def test_draws_have_the_mean_and_variance_that_are_returned(target: Target) -> None:
    sample = find_sample("posterior_sequence", "tanh").to(target.device, target.dtype)
    one = {name: t[:1, :1] if t.dim() == 3 else t for name, t in sample.tensors.items()}
    many, draws = 20000, torch.Generator().manual_seed(2)
    eps = torch.randn(1, many, 3, generator=draws, dtype=torch.float64).to(target.device, target.dtype)
    one |= {"context": one["context"].expand(1, many, 7), "z0": sample.tensors["z0"][:1].expand(many, 3), "eps": eps}
    out = sample.replace(one).run(target.backend)
    z, mu, logvar = (out[name][0].double() for name in ("z", "mu", "logvar"))
    deviation = torch.exp(logvar[0] / 2)
    assert ((z.mean(0) - mu[0]).abs() < 5 * deviation / many**0.5).all()
    assert ((z.std(0) / deviation - 1).abs() < 0.03).all()


@each_target
def test_without_noise_the_sample_is_the_mean(target: Target) -> None:
    sample = find_sample("posterior_sequence", "prior_silu").to(target.device, target.dtype)
    out = sample.replace({"eps": torch.zeros_like(sample.tensors["eps"])}).run(target.backend)
    assert torch.equal(out["z"], out["mu"])


@each_target
def test_a_prior_with_zero_weights_changes_nothing(target: Target) -> None:
    sample = find_sample("posterior_sequence", "tanh").to(target.device, target.dtype)
    t = sample.tensors
    prior = PriorMean(
        torch.randn_like(t["context"]), torch.randn_like(t["weight_z"]),
        torch.zeros_like(t["weight_z"].T), torch.zeros_like(t["z0"][0]),
    )  # fmt: skip
    with_prior = posterior_sequence(*t.values(), prior=prior, backend=target.backend)
    for name, one, other in zip(("z", "mu", "logvar"), with_prior, sample.run(target.backend).values(), strict=True):
        assert_close(name, one, other, 1e-6)


@each_target
def test_two_chunks_equal_the_whole(target: Target) -> None:
    sample = find_sample("posterior_sequence", "tall_prior").to(target.device, target.dtype).replace(lengths=None)
    whole = sample.run(target.backend)
    z, parts = sample.tensors["z0"], []
    for rows in (slice(0, 4), slice(4, 9)):
        chunk = {name: t[rows] for name, t in sample.tensors.items() if t.dim() == 3}
        parts.append(sample.replace(chunk | {"z0": z}).run(target.backend))
        z = parts[-1]["z"][-1]
    tolerance = TOLERANCES[target.backend, target.dtype][0]
    assert_all_close({name: torch.cat([part[name] for part in parts]) for name in whole}, whole, tolerance)


def test_a_chain_that_would_grow_ends_where_its_row_ends() -> None:
    """In the plain reference: z doubles in every step, and is inf long before the batch has ended."""
    steps, one = 1100, torch.ones(1, 1, dtype=torch.float64)
    leaves = [one.clone().requires_grad_() for _ in range(2)]  # z0, weight_z
    zeros = torch.zeros(steps, 1, 1, dtype=torch.float64)
    weight_out = torch.tensor([[2.0], [0.0]], dtype=torch.float64)
    z, _, logvar = posterior_reference(
        *(zeros, leaves[0], zeros, leaves[1], weight_out, zeros[:2, 0, 0]),
        activation="relu",
        lengths=torch.tensor([3]),
    )
    assert z[:4, 0, 0].tolist() == [2.0, 4.0, 8.0, 0.0]
    grads = torch.autograd.grad(z.sum() + logvar.sum(), leaves)
    assert [grad.item() for grad in grads] == [14.0, 2.0 + 2 * 4.0 + 3 * 8.0]
