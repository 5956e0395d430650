"""Networks prepared for loops of single steps give what they give, plain or not, differentiated or not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from small_models import MODELS, B, U, make
from torch import Tensor, nn

from vssn.nn.blocks import MLP, GaussianMLP, LatentNetwork, Recurrence, SplitLinear
from vssn.nn.prepared import prepare, prepare_step
from vssn_kernels import use_backend
from vssn_kernels.testing import assert_close, assert_equal

SIZES = (4, 3)


def draw(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


def networks() -> dict[str, tuple[nn.Module, tuple[Any, ...]]]:
    inputs = tuple(draw(1, 5, size) for size in SIZES)
    f = {"dtype": torch.float64}
    return {
        "SplitLinear": (SplitLinear(SIZES, 6, **f), inputs),
        "MLP": (MLP(SIZES, 7, 5, "silu", **f), inputs),
        "GaussianMLP": (GaussianMLP(SIZES, 7, 2, "relu", -3.0, **f), inputs),
        "LatentNetwork": (LatentNetwork(2, SIZES, 7, "tanh", -3.0, **f), (draw(1, 5, 2), inputs)),
        "LatentNetwork alone": (LatentNetwork(2, (), 7, "tanh", -3.0, **f), (draw(1, 5, 2), ())),
        "Linear": (nn.Linear(4, 2, **f), inputs[:1]),
    }


def tensors(found: Any) -> tuple[Tensor, ...]:
    return found if isinstance(found, tuple) else (found,)


def same(network: Callable[..., Any], prepared: Callable[..., Any], given: tuple[Any, ...]) -> None:
    for number, (found, want) in enumerate(zip(tensors(prepared(*given)), tensors(network(*given)), strict=True)):
        assert_close(f"result {number}", found, want, 1e-12)


@pytest.mark.parametrize("name", networks())
@torch.no_grad()
def test_a_network_prepared_is_the_network(name: str) -> None:
    network, given = networks()[name]
    same(network, prepare(network), given)
    assert (prepare(network) is network) == (name == "Linear")


@pytest.mark.parametrize("name", networks())
def test_gradients_run_through_the_network_itself(name: str) -> None:
    network, given = networks()[name]
    with torch.no_grad():
        prepared = prepare(network)
    found, want = (
        torch.autograd.grad(sum(part.square().sum() for part in tensors(run(*given))), list(network.parameters()))
        for run in (prepared, network)
    )
    for (of, _), one, other in zip(network.named_parameters(), found, want, strict=True):
        assert_close(of, one, other, 1e-12)


@pytest.mark.parametrize("name", networks())
@torch.no_grad()
def test_hooks_are_called(name: str) -> None:
    network, given = networks()[name]
    calls: list[int] = []
    places = [place for place in network.modules() if isinstance(place, nn.Linear | SplitLinear)]
    for place in places:
        handle = place.register_forward_hook(lambda *_: calls.append(1))
        prepare(network)(*given)
        assert calls.pop() == 1
        handle.remove()
    network.register_forward_hook(lambda *_: calls.append(2))
    prepare(network)(*given)
    assert calls == [2]


@pytest.mark.parametrize("noise", [False, True])
@pytest.mark.parametrize("hooked", [False, True])
@pytest.mark.parametrize("grad", [False, True])
def test_a_step_is_that_of_the_recurrence(noise: bool, hooked: bool, grad: bool) -> None:
    recurrence, inputs, h = Recurrence(SIZES, 5, dtype=torch.float64), tuple(draw(1, 3, s) for s in SIZES), draw(3, 5)
    nn.init.normal_(recurrence.bias_hh)
    weight_noise = draw(15, 5) if noise else None
    calls: list[int] = []
    if hooked:
        recurrence.input.register_forward_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        step = prepare_step(recurrence, weight_noise)
    with torch.set_grad_enabled(grad):
        found = step(inputs, h)
        assert len(calls) == hooked
        want = recurrence(inputs, h, weight_noise=weight_noise)[1]
    assert_close("h", found, want, 1e-12)
    if grad:
        of = [recurrence.weight_hh, recurrence.bias_hh, recurrence.input.weight]
        for one, other in zip(torch.autograd.grad(found.sum(), of), torch.autograd.grad(want.sum(), of), strict=True):
            assert_close("gradient", one, other, 1e-12)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_the_steps_of_a_model_are_its_own(name: str, training: bool) -> None:
    model = make(name).train(training)
    layer = model.layer
    d, z = draw(B, layer.hidden_size), draw(B, layer.latent_size)
    u = draw(1, B, U) if model.control_size else None
    controls, noise = model.control(draw(B, model.frame_size), u), layer.draw_noise(d[None])
    torch.manual_seed(3)
    steps = model.prior_steps()
    found = steps.step(controls, d, z, noise)
    torch.manual_seed(3)
    want = model.step_from_prior(controls, d, z, noise)
    for part, one, other in zip(("d", "z"), found, want, strict=True):
        assert_close(part, one, other, 1e-12)
    assert_close("parameters", steps.decode(z[None], d[None]), model.decode(z[None], d[None]), 1e-12)


@pytest.mark.parametrize("name", ["vssn", "both", "rnn", "dkf", "masked", "embedded_both", "universal"])
def test_generation_is_that_of_the_reference(name: str) -> None:
    model = make(name)
    u = draw(6, 3, U) if model.control_size else None
    torch.manual_seed(5)
    found = model.generate(6, 3, u=u, sample=False)
    torch.manual_seed(5)
    with use_backend("reference"):
        want = model.generate(6, 3, u=u, sample=False)
    assert_close("mean", found.mean, want.mean, 1e-11)
    assert_equal("x", found.x, found.mean)
