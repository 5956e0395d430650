"""RSSM with latents of classes: the layer step by step, straight-through gradients, exact likelihoods."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from rssm_by_steps import B, H, M, T, U, X, episodes
from torch import Tensor

import vssn
from vssn import RSSM, RSSMLayer, sequence_bounds
from vssn.nn.rssm_latents import Classes
from vssn.nn.rssm_states import ClassesState, kl_loss
from vssn.training.fit import fit
from vssn_kernels.testing import assert_all_close

GROUPS, CLASSES = 2, 3
Z = GROUPS * CLASSES
UNIMIX = 0.1
TOLERANCE = 1e-12


def filled(module: Any, seed: int = 3) -> Any:
    source = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(0.6 * torch.randn(parameter.shape, generator=source, dtype=torch.float64))
    return module


def made(**more: Any) -> RSSMLayer:
    options = {"latent": "categorical", "classes": CLASSES, "unimix": UNIMIX, "mlp_size": M, **more}
    layer: RSSMLayer = filled(RSSMLayer(X, U, H, Z, dtype=torch.float64, **options))  # type: ignore[arg-type]
    return layer


def given(steps: int = T) -> dict[str, Tensor]:
    source = torch.Generator().manual_seed(4)
    sizes = {"embed": X, "action": U, "noise": Z}
    return {k: torch.randn(steps, B, n, generator=source, dtype=torch.float64) for k, n in sizes.items()}


def mixed(raw: Tensor) -> Tensor:
    """Probabilities [..., groups, classes]."""
    return (1 - UNIMIX) * torch.softmax(raw.unflatten(-1, (GROUPS, CLASSES)), -1) + UNIMIX / CLASSES


def drawn(probs: Tensor, eps: Tensor) -> Tensor:
    """By the Gumbel trick with the uniform numbers Phi(eps); straight through."""
    uniform = torch.distributions.Normal(0.0, 1.0).cdf(eps).unflatten(-1, (GROUPS, CLASSES))
    chosen = (probs.log() - (-uniform.log()).log()).argmax(-1)
    return (F.one_hot(chosen, CLASSES) + probs - probs.detach()).flatten(-2)


def by_hand(
    layer: RSSMLayer, embed: Tensor, action: Tensor, noise: Tensor, is_first: Tensor | None
) -> dict[str, Tensor]:
    p = dict(layer.named_parameters())
    h, z = torch.zeros(B, H).double(), torch.zeros(B, Z).double()
    found: dict[str, list[Tensor]] = {}
    for t in range(len(embed)):
        a = action[t]
        if is_first is not None:
            go_on = 1 - is_first[t, :, None].double()
            h, z, a = h * go_on, z * go_on, a * go_on
        weight = torch.cat((p["chain.weight_embed"], p["action.weight"]), 1)
        e = F.elu(F.linear(torch.cat((z, a), -1), weight, p["action.bias"]))
        cell = (p["chain.weight_zh"], p["chain.weight_hh"], p["gates_bias"], p["chain.bias_hh"])
        h = torch.gru_cell(e, h, *cell)
        hidden = F.elu(F.linear(h, p["prior.hidden.weight"], p["prior.hidden.bias"]))
        prior = F.linear(hidden, p["prior.out.weight"], p["prior.out.bias"])
        weight = torch.cat((p["chain.weight_h"], p["frame.weight"]), 1)
        hidden = F.elu(F.linear(torch.cat((h, embed[t]), -1), weight, p["frame.bias"]))
        probs = mixed(F.linear(hidden, p["chain.weight_out"], p["chain.bias_out"]))
        z = drawn(probs, noise[t])
        parts = {"logits": probs.log().flatten(-2), "stoch": z, "deter": h, "prior": mixed(prior).log().flatten(-2)}
        for name, part in parts.items():
            found.setdefault(name, []).append(part)
    return {name: torch.stack(parts) for name, parts in found.items()}


def weighted(parts: dict[str, Tensor]) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for number, name in enumerate(sorted(parts)):
        source = torch.Generator().manual_seed(number)
        total = total + (parts[name] * torch.randn(parts[name].shape, generator=source, dtype=torch.float64)).sum()
    return total


@pytest.mark.parametrize("resets", [False, True])
def test_observe_is_the_model_step_by_step(resets: bool) -> None:
    layer = made()
    inputs = {name: part.requires_grad_() for name, part in given().items()}
    is_first = episodes() if resets else None
    posterior, prior = layer.observe(inputs["embed"], inputs["action"], is_first, noise=inputs["noise"])
    assert isinstance(posterior, ClassesState)
    got = {**posterior._asdict(), "prior": prior.logits}  # type: ignore[attr-defined]
    want = by_hand(layer, **inputs, is_first=is_first)
    assert_all_close(got, want, TOLERANCE)
    leaves = {**dict(layer.named_parameters()), "embed": inputs["embed"], "action": inputs["action"]}
    grads, expected = (torch.autograd.grad(weighted(parts), list(leaves.values())) for parts in (got, want))
    assert_all_close(dict(zip(leaves, grads, strict=True)), dict(zip(leaves, expected, strict=True)), 1e-10)
    assert all(bool(grad.any()) for grad in grads)


def test_chunks_and_pieces_are_one_pass() -> None:
    layer, parts = made(), given()
    is_first = torch.zeros(T, B, dtype=torch.bool)
    is_first[3] = True
    whole = layer.observe(parts["embed"], parts["action"], is_first, noise=parts["noise"]).posterior
    first = layer.observe(parts["embed"][:2], parts["action"][:2], noise=parts["noise"][:2]).posterior
    here = slice(2, T)
    behind = {name: part[here] for name, part in parts.items()}
    rest = layer.observe(behind["embed"], behind["action"], is_first[here], first.at(-1), noise=behind["noise"])
    assert_all_close({"h": torch.cat((first.deter, rest.posterior.deter))}, {"h": whole.deter}, TOLERANCE)
    action = parts["action"][3:].clone()
    action[0] = 0
    anew = layer.observe(parts["embed"][3:], action, noise=parts["noise"][3:]).posterior
    assert_all_close({"h": anew.deter, "z": anew.stoch}, {"h": whole.deter[3:], "z": whole.stoch[3:]}, TOLERANCE)


def test_imagining_is_a_loop_by_hand_and_differentiable() -> None:
    layer = made()
    action, noise = torch.randn(4, 3, U).double().requires_grad_(), torch.randn(4, 3, Z).double()
    state = layer.initial(3)
    ahead = layer.imagine(action, state, noise=noise)
    h, z = state.deter, state.stoch
    for k in range(4):
        h = layer.chain.step(layer.gates_bias, layer.action(action[k], ()), h, z)
        (log_probs,) = layer.prior(h)
        z = drawn(log_probs.exp().unflatten(-1, (GROUPS, CLASSES)), noise[k])
        assert_all_close({"h": ahead.deter[k], "z": ahead.stoch[k]}, {"h": h, "z": z}, TOLERANCE)
    (grad,) = torch.autograd.grad(ahead.features.sum(), action)
    assert grad.flatten(1).any(1).all()
    assert layer.imagine(action[:0], state).features.shape == (0, 3, Z + H)


def test_draws_have_their_probabilities_and_no_noise_is_the_mode() -> None:
    latent = Classes(CLASSES)
    log_probs = torch.log(torch.tensor([0.7, 0.2, 0.1, 0.05, 0.05, 0.9], dtype=torch.float64))
    rows = (log_probs.expand(200_000, -1),)
    z = latent.draw(rows, torch.randn(200_000, Z, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    assert torch.allclose(z.mean(0), log_probs.exp(), atol=0.005)
    assert latent.draw((log_probs[None],), torch.zeros(1, Z)).tolist() == [[1, 0, 0, 0, 0, 1]]
    far = latent.draw((log_probs.float()[None],), torch.tensor([[9.0, -9.0, 0.0, -40.0, 40.0, 9.0]]))
    assert far.isfinite().all()


def test_no_class_falls_below_its_share_of_the_uniform_distribution() -> None:
    layer, parts = made(), given()
    with torch.no_grad():
        layer.chain.bias_out[0] = 1e4
    logits = layer.observe(parts["embed"], parts["action"]).posterior.logits  # type: ignore[attr-defined]
    probs = logits.exp().unflatten(-1, (GROUPS, CLASSES))
    assert float(probs.min().detach()) >= UNIMIX / CLASSES - 1e-12
    assert torch.allclose(probs.sum(-1), torch.ones(()).double())
    exact = made(unimix=0.0).observe(parts["embed"], parts["action"], noise=parts["noise"]).posterior
    assert torch.allclose(exact.logits.exp().unflatten(-1, (GROUPS, CLASSES)).sum(-1), torch.ones(()).double())  # type: ignore[attr-defined]


@pytest.mark.parametrize("balance", [None, 0.8])
def test_the_kl_loss_is_that_of_torch_distributions(balance: float | None) -> None:
    layer, parts = made(), given()
    posterior, prior = layer.observe(parts["embed"], parts["action"], noise=parts["noise"])

    def kl(q: Tensor, p: Tensor) -> Tensor:
        categorical = torch.distributions.Categorical
        rows = (categorical(logits=part.unflatten(-1, (GROUPS, CLASSES))) for part in (q, p))
        return torch.distributions.kl_divergence(*rows).sum(-1)

    q, p = posterior.logits, prior.logits  # type: ignore[attr-defined]
    values = kl(q, p).detach().flatten().sort().values
    # Between two of them: at a bound itself versions of PyTorch differ in the slope of clamp.
    free = float(values[len(values) // 2 - 1 :][:2].mean())
    loss, plain = kl_loss(posterior, prior, balance=balance, free_bits=free)
    want = kl(q, p).clamp(min=free).mean()
    if balance is not None:
        want = 0.8 * kl(q.detach(), p).clamp(min=free).mean() + 0.2 * kl(q, p.detach()).clamp(min=free).mean()
    assert_all_close({"loss": loss, "kl": plain}, {"loss": want, "kl": kl(q, p)}, TOLERANCE)
    weights = dict(layer.named_parameters())
    got, expected = (
        torch.autograd.grad(one, list(weights.values()), retain_graph=True, allow_unused=True) for one in (loss, want)
    )
    for name, one, other in zip(weights, got, expected, strict=True):
        assert (one is None) == (other is None), name
        if one is not None and other is not None:
            assert_all_close({name: one}, {name: other}, 1e-10)


@pytest.mark.parametrize("bound", ["iwae", "fivo"])
def test_bounds_reach_the_likelihood_by_enumeration(bound: str) -> None:
    """Two frames, one group of three classes: the sum over nine paths."""
    model: RSSM = filled(
        RSSM(2, 3, 3, control_size=1, latent="categorical", classes=3, unimix=0.3, dtype=torch.float64).eval(), 6
    )
    source = torch.Generator().manual_seed(1)
    x = (torch.rand(2, 1, 2, generator=source) > 0.5).double()
    u = torch.randn(2, 1, 1, generator=source, dtype=torch.float64)
    terms, firsts = [], []
    layer = model.layer
    with torch.no_grad():
        for path in itertools.product(range(3), repeat=2):
            h, z = layer.start(1, x)
            total = torch.zeros((), dtype=torch.float64)
            for t, chosen in enumerate(path):
                h = layer.chain.step(layer.gates_bias, layer.action(u[t], ()), h, z)
                (log_probs,) = layer.prior(h)
                z = F.one_hot(torch.tensor([chosen]), 3).double()
                total = total + log_probs[0, chosen]
                total = total + model.likelihood.log_prob(model.decode(z[None], h[None]), x[t : t + 1], None)[0, 0]
                if t == 0 and path[1] == 0:
                    firsts.append(total)
            terms.append(total)
    found = sequence_bounds(model, x, u, bound=bound, particles=20_000)
    assert abs(float(found.total[0]) - float(torch.logsumexp(torch.stack(terms), 0))) < 0.02
    assert abs(float(found.first[0]) - float(torch.logsumexp(torch.stack(firsts), 0))) < 0.02


def test_a_model_of_sequences_with_classes(tmp_path: Path) -> None:
    model: RSSM = filled(
        RSSM(4, 5, Z, control_size=U, latent="categorical", classes=CLASSES, kl_balance=0.8, dtype=torch.float64).eval()
    )
    source = torch.Generator().manual_seed(2)
    x = (torch.rand(6, 3, 4, generator=source) > 0.5).double()
    u = torch.randn(6, 3, U, generator=source, dtype=torch.float64)
    lengths = torch.tensor([6, 0, 4])
    out = model(x, u, lengths)
    out.loss.backward()
    assert all(part.grad is not None and part.grad.isfinite().all() for part in model.parameters())
    assert not out.kl_z[4:, 2].any()
    filter = model.filter(3)
    smooth = model.latents(x, u)
    for t in range(6):
        now = filter.step(x[t], u[t])
        assert_all_close({"d": now.d, "z": now.z}, {"d": smooth.d[t], "z": smooth.z[t]}, TOLERANCE)
    assert model.forecast(x, 3, samples=2, u=u, u_future=u[:3]).mean.shape == (3, 3, 4)
    model.float().save_pretrained(tmp_path)
    loaded = vssn.from_pretrained(tmp_path)
    assert loaded.config == model.config
    assert all(part.equal(loaded.state_dict()[name]) for name, part in model.state_dict().items())


def test_it_is_trained_from_a_configuration(tmp_path: Path) -> None:
    settings = {
        "data": {"set": "pendulum", "num_train": 4, "num_valid": 2, "num_test": 2, "batch_size": 2},
        "model": {"name": "rssm", "hidden_size": 6, "latent_size": 8, "latent": "categorical", "classes": 4},
        "training": {"output": str(tmp_path), "max_epochs": 1, "accelerator": "cpu"},
    }
    assert math.isfinite(fit(settings).test.micro)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"classes": 4}, "latent_size must be a multiple of classes=4, got 6"),
        ({"classes": 1}, "classes must be an int of at least 2, got 1"),
        ({"unimix": 1.0}, "unimix must be below 1, got 1.0"),
        ({"unimix": -0.1}, "unimix must be a finite number of at least 0.0, got -0.1"),
        ({"latent": "binary"}, "latent must be one of gaussian, categorical, got 'binary'"),
    ],
)
def test_mistakes_are_one_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match="^" + message.replace("(", r"\(")):
        made(**options)


def test_states_of_the_other_kind_are_refused() -> None:
    gaussian = RSSMLayer(X, U, H, Z, dtype=torch.float64)
    with pytest.raises(TypeError, match=r"^state must be a tuple \(logits, stoch, deter\), got RSSMState"):
        made().imagine(None, gaussian.initial(2), steps=1)
    with pytest.raises(TypeError, match=r"^prior must be a tuple \(logits, stoch, deter\), got RSSMState"):
        kl_loss(made().initial(2), gaussian.initial(2))
