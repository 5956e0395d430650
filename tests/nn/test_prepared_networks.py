"""Networks prepared for loops of single steps give what they give, plain or not, differentiated or not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from small_models import MODELS, B, U, make
from torch import Tensor, nn

from vssn import DVBF, RSSM, VRNN, VSSN, RSSMLayer
from vssn.nn.blocks import MLP, GaussianMLP, LatentNetwork, Recurrence, SplitLinear
from vssn.nn.prepared import prepare, prepare_step
from vssn_kernels import use_backend
from vssn_kernels.testing import assert_close, assert_equal

SIZES = (4, 3)
RSSMS: dict[str, dict[str, Any]] = {
    "dreamer": {"control_size": U},
    "none": {"control": "none", "activation": "relu", "scale": "logvar"},
    "classes": {"control_size": U, "latent": "categorical", "classes": 3, "activation": "silu"},
    "learned": {"control_size": U, "initial_state": "learned", "likelihood": "gaussian"},
}


def draw(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


def networks() -> dict[str, tuple[nn.Module, tuple[Any, ...]]]:
    inputs = tuple(draw(1, 5, size) for size in SIZES)
    f = {"dtype": torch.float64}
    return {
        "SplitLinear": (SplitLinear(SIZES, 6, **f), inputs),
        "MLP": (MLP(SIZES, 7, 5, "silu", **f), inputs),
        "MLP of another activation": (MLP(SIZES, 7, 5, "elu", **f), inputs),
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


SUBCLASSED: dict[str, tuple[type[Any], dict[str, Any]]] = {
    "vssn": (VSSN, {"hidden_size": 5, "latent_size": 3, "noise_size": 2}),
    "vrnn": (VRNN, {"hidden_size": 5, "latent_size": 3}),
    "rssm": (RSSM, {"hidden_size": 5, "latent_size": 3, "control": "none"}),
    "dvbf": (DVBF, {"latent_size": 3, "noise_size": 2, "control": "none", "likelihood": "bernoulli"}),
}


@pytest.mark.parametrize("method", ["step_from_prior", "decode"])
@pytest.mark.parametrize("name", SUBCLASSED)
def test_what_a_subclass_writes_anew_is_what_generates(name: str, method: str) -> None:
    cls, sizes = SUBCLASSED[name]

    def own(self: Any, *args: Any) -> Any:
        found = getattr(cls, method)(self, *args)
        return 0 * found if isinstance(found, Tensor) else tuple(0 * part for part in found)

    model = type("Own", (cls,), {method: own})(4, **sizes, dtype=torch.float64).eval()
    found = model.generate(3, 2, sample=False)
    if method == "decode":
        assert_equal("mean", found.mean, torch.full_like(found.mean, 0.5))
    else:
        assert_equal("z", found.state.z, torch.zeros_like(found.state.z))


@pytest.mark.parametrize("name", RSSMS)
@torch.no_grad()
def test_the_steps_of_an_rssm_are_its_own(name: str) -> None:
    model = RSSM(4, 5, 6, **RSSMS[name], dtype=torch.float64)
    for parameter in model.parameters():
        parameter.normal_(std=0.5)
    d, z, frame = draw(B, 5), draw(B, 6), draw(B, model.frame_size)
    u = draw(1, B, U) if model.control_size else None
    controls, noise = model.control(frame, u), (draw(1, B, 0), draw(1, B, 6))
    steps = model.prior_steps()
    for part, one, other in zip(
        ("d", "z"), steps.step(controls, d, z, noise), model.step_from_prior(controls, d, z, noise), strict=True
    ):
        assert_close(part, one, other, 1e-12)
    assert_close("parameters", steps.decode(z[None], d[None]), model.decode(z[None], d[None]), 1e-12)
    state, eps = model.initial(B), draw(3, B, 6)
    action = draw(3, B, U) if u is not None else None
    found = model.imagine(action, state, steps=3, noise=eps)
    with torch.enable_grad():
        want = model.imagine(action, state, steps=3, noise=eps)
    for part in found._fields:
        assert_close(part, getattr(found, part), getattr(want, part).detach(), 1e-12)


def test_hooks_of_an_rssm_are_called_at_every_imagined_step() -> None:
    for part in ("action", "prior", "prior.hidden", "prior.out"):
        layer, calls = RSSMLayer(4, U, 5, 3, dtype=torch.float64), []
        layer.get_submodule(part).register_forward_hook(lambda *_, calls=calls: calls.append(1))
        with torch.no_grad():
            layer.imagine(draw(4, B, U), layer.initial(B))
        assert len(calls) == 4, part


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
