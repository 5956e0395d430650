"""mlp, gaussian_mlp, split_linear and bernoulli_log_prob against PyTorch's own layers and distributions."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Bernoulli

from vssn_kernels import bernoulli_log_prob, gaussian_mlp, mlp, split_linear
from vssn_kernels.testing import FULL, TOLERANCES, Target, assert_all_close, assert_close, assert_equal, targets

each_target = pytest.mark.parametrize("target", targets(*FULL), ids=str)
ACTIVATE = {"tanh": nn.Tanh(), "relu": nn.ReLU(), "leaky_relu": nn.LeakyReLU(1 / 3), "silu": nn.SiLU()}
WIDTHS = (6, 11, 1)


def layers(target: Target, out: int, hidden: int = 13) -> tuple[list[Tensor], nn.Linear, nn.Linear]:
    """Three inputs [4, 5, ·], a first layer over all of them, and a second one."""
    inputs = [torch.randn(4, 5, width).to(target.device, target.dtype).requires_grad_() for width in WIDTHS]
    first, second = nn.Linear(sum(WIDTHS), hidden), nn.Linear(hidden, out)
    return inputs, first.to(target.device, target.dtype), second.to(target.device, target.dtype)


def grads_of(loss: Tensor, inputs: list[Tensor], *modules: nn.Module) -> dict[str, Tensor]:
    leaves = [*inputs, *(parameter for module in modules for parameter in module.parameters())]
    found = torch.autograd.grad(loss, leaves)
    return {f"gradient {number}": grad for number, grad in enumerate(found)}


@pytest.mark.parametrize("several", [False, True], ids=["one_weight", "a_weight_each"])
@pytest.mark.parametrize("activation", sorted(ACTIVATE))
@each_target
def test_mlp_is_two_linear_layers(activation: str, several: bool, target: Target) -> None:
    """Over the inputs side by side: values and every gradient, in float64 and compared in the target's dtype."""
    inputs, first, second = layers(target, 7)
    weights = list(first.weight.split(WIDTHS, 1)) if several else first.weight
    out = mlp(inputs, weights, first.bias, second.weight, second.bias, activation=activation, backend=target.backend)
    want = second(ACTIVATE[activation](first(torch.cat(inputs, -1))))
    way = torch.randn_like(out)
    for_outputs, for_gradients = TOLERANCES[target.backend, target.dtype]
    assert_close("out", out, want, for_outputs)
    modules = (first, second)
    grads, want_grads = (grads_of((o * way).sum(), inputs, *modules) for o in (out, want))
    assert_all_close(grads, want_grads, for_gradients)


@each_target
def test_gaussian_mlp_splits_and_floors(target: Target) -> None:
    inputs, first, second = layers(target, 8)
    arguments = (inputs, first.weight, first.bias, second.weight, second.bias)
    mu, logvar = gaussian_mlp(*arguments, min_logvar=-0.5, backend=target.backend)
    out = mlp(*arguments, backend=target.backend)
    for_outputs, for_gradients = TOLERANCES[target.backend, target.dtype]
    want_mu, raw = out.chunk(2, -1)
    want_logvar = -0.5 + F.softplus(raw + 0.5)
    assert_equal("mu", mu.detach(), want_mu.detach())
    assert_close("logvar", logvar, want_logvar, for_outputs)
    assert (logvar > -0.5).all()
    losses = ((m.sin() + 2 * v.cos()).sum() for m, v in ((mu, logvar), (want_mu, want_logvar)))
    grads, want_grads = (grads_of(loss, inputs, first, second) for loss in losses)
    assert_all_close(grads, want_grads, for_gradients)


@each_target
def test_split_linear_is_a_linear_layer(target: Target) -> None:
    inputs, first, _ = layers(target, 1)
    out = split_linear(inputs, first.weight, first.bias, backend=target.backend)
    want = first(torch.cat(inputs, -1))
    for_outputs, for_gradients = TOLERANCES[target.backend, target.dtype]
    assert_close("out", out, want, for_outputs)
    grads, want_grads = (grads_of(o.sin().sum(), inputs, first) for o in (out, want))
    assert_all_close(grads, want_grads, for_gradients)


@each_target
def test_an_input_of_width_0_adds_nothing(target: Target) -> None:
    inputs, first, _ = layers(target, 1)
    empty = inputs[0].detach()[..., :0]
    want = split_linear(inputs, first.weight, first.bias, backend=target.backend)
    got = split_linear([inputs[0], empty, *inputs[1:]], first.weight, first.bias, backend=target.backend)
    assert_equal("out", got.detach(), want.detach())
    only = split_linear([empty], first.weight[:, :0], first.bias, backend=target.backend)
    assert_equal("the bias", only.detach(), first.bias.detach().expand_as(only))


@each_target
def test_a_row_does_not_depend_on_the_others(target: Target) -> None:
    """NaN in one row stays there."""
    inputs, first, second = layers(target, 3)
    spoilt = [x.detach().clone() for x in inputs]
    spoilt[1][2, 3] = float("nan")
    out = mlp(spoilt, first.weight, first.bias, second.weight, second.bias, backend=target.backend)
    wrong = out.isnan().any(-1)
    assert wrong[2, 3]
    assert wrong.sum() == 1


@each_target
def test_bernoulli_log_prob_is_that_of_the_distribution(target: Target) -> None:
    logits = (5 * torch.randn(6, 3, 19)).to(target.device, target.dtype).requires_grad_()
    x = (torch.rand(6, 3, 19) < 0.3).to(target.device, target.dtype)
    got = bernoulli_log_prob(logits, x, backend=target.backend)
    want = Bernoulli(logits=logits).log_prob(x).sum(-1)
    for_outputs, for_gradients = TOLERANCES[target.backend, target.dtype]
    assert_close("log_prob", got, want, for_outputs)
    grads = [torch.autograd.grad((value**2).sum(), logits)[0] for value in (got, want)]
    assert_close("gradient", grads[0], grads[1], for_gradients)


@each_target
def test_bernoulli_log_prob_of_extreme_logits(target: Target) -> None:
    """Certain and right: 0. Certain and wrong: the logit. Nothing overflows."""
    logits = torch.tensor([[-1e4], [1e4], [-1e4], [1e4]], device=target.device, dtype=target.dtype).requires_grad_()
    x = torch.tensor([[0.0], [1.0], [1.0], [0.0]], device=target.device, dtype=target.dtype)
    got = bernoulli_log_prob(logits, x, backend=target.backend)
    torch.testing.assert_close(got.detach().cpu().double(), torch.tensor([0.0, 0.0, -1e4, -1e4]).double())
    (grad,) = torch.autograd.grad(got.sum(), logits)
    torch.testing.assert_close(grad.cpu().double(), torch.tensor([[0.0], [0.0], [1.0], [-1.0]]).double())
