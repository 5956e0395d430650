"""RSSMLayer against a recurrent state-space model written step by step with torch.nn, and what its calls promise."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from rssm_by_steps import B, E, H, M, StepByStep, T, U, X, Z, episodes, of_layer
from torch import Tensor, nn

from vssn.nn.rssm_layer import RSSMLayer
from vssn.nn.rssm_states import RSSMState, kl_loss
from vssn_kernels.testing import assert_all_close

TOLERANCE = 1e-12  # float64
OPTIONS: dict[str, dict[str, Any]] = {
    "dreamer": {},
    "planet": {"activation": "relu", "mlp_size": None, "joint_size": None},
    "logvar": {"scale": "logvar", "min_logvar": -3.0, "activation": "tanh"},
    "learned": {"initial_state": "learned", "min_std": 0.0, "activation": "silu"},
}


def made(name: str = "dreamer", action_size: int = U, **more: Any) -> RSSMLayer:
    options = {"mlp_size": M, "joint_size": E, **OPTIONS[name], **more}
    layer = RSSMLayer(X, action_size, H, Z, dtype=torch.float64, **options)
    source = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(0.6 * torch.randn(parameter.shape, generator=source, dtype=torch.float64))
    return layer


def given(steps: int = T, batch: int = B, seed: int = 4) -> dict[str, Tensor]:
    source = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=source, dtype=torch.float64)

    return {"embed": normal(steps, batch, X), "action": normal(steps, batch, U), "noise": normal(steps, batch, Z)}


def gradients(layer: RSSMLayer, loss: Tensor, **inputs: Tensor) -> dict[str, Tensor]:
    named = {**dict(layer.named_parameters()), **inputs}
    grads = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    return {
        name: torch.zeros_like(one) if g is None else g for (name, one), g in zip(named.items(), grads, strict=True)
    }


def flat(observed: Any) -> dict[str, Tensor]:
    """All but the prior's draws."""
    posterior, prior = observed
    return {**posterior._asdict(), "prior_mean": prior.mean, "prior_std": prior.std}


def weighted(parts: dict[str, Tensor]) -> Tensor:
    """A scalar that every entry of every part has a weight of its own in."""
    total = torch.zeros((), dtype=torch.float64)
    for number, name in enumerate(sorted(parts)):
        source = torch.Generator().manual_seed(number)
        total = total + (parts[name] * torch.randn(parts[name].shape, generator=source, dtype=torch.float64)).sum()
    return total


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("resets", [False, True])
@pytest.mark.parametrize("carried", [False, True])
@pytest.mark.parametrize("name", OPTIONS)
def test_observe_is_the_model_step_by_step(
    name: str, carried: bool, resets: bool, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VSSN_BACKEND", backend)
    layer = made(name)
    peer = StepByStep(layer, OPTIONS[name])
    inputs = {key: part.requires_grad_() for key, part in given().items()}
    is_first = episodes() if resets else None
    state, start = None, None
    if carried:
        source = torch.Generator().manual_seed(9)
        h, z = (torch.randn(B, size, generator=source, dtype=torch.float64).requires_grad_() for size in (H, Z))
        inputs |= {"h": h, "z": z}
        state, start = RSSMState(z, torch.zeros_like(z), z, h), (h, z)
    got = flat(layer.observe(inputs["embed"], inputs["action"], is_first, state, noise=inputs["noise"]))
    want = peer.observe(inputs["embed"], inputs["action"], inputs["noise"], is_first, start)
    assert_all_close(got, want, TOLERANCE)
    grads = gradients(layer, weighted(got), **inputs)
    weighted(want).backward()
    expected = of_layer(layer, peer) | {key: part.grad for key, part in inputs.items()}  # type: ignore[dict-item]
    assert set(grads) == set(expected)
    assert_all_close(grads, expected, 1e-10)
    unused = {"h_0", "z_0"} if carried and not resets else set()
    assert {key for key in expected if not grads[key].any()} <= unused


def test_the_prior_draws_its_own_latent() -> None:
    layer = made()
    parts = given()
    torch.manual_seed(5)
    _, prior = layer.observe(parts["embed"], parts["action"], noise=parts["noise"])
    noise = ((prior.stoch - prior.mean) / prior.std).detach()
    assert 0.7 < float(noise.std()) < 1.3
    assert not torch.allclose(noise, parts["noise"])


@pytest.mark.parametrize("name", OPTIONS)
def test_chunks_are_one_pass(name: str) -> None:
    layer, parts, is_first = made(name), given(), episodes()
    whole = flat(layer.observe(parts["embed"], parts["action"], is_first, noise=parts["noise"]))
    state, pieces = None, []
    for here in (slice(0, 2), slice(2, 3), slice(3, 7)):
        observed = layer.observe(
            parts["embed"][here], parts["action"][here], is_first[here], state, noise=parts["noise"][here]
        )
        state = observed.posterior.at(-1)
        pieces.append(flat(observed))
    got = {key: torch.cat([piece[key] for piece in pieces]) for key in whole}
    assert_all_close(got, whole, TOLERANCE)


@pytest.mark.parametrize("name", OPTIONS)
def test_a_batch_with_resets_is_its_pieces_run_apart(name: str) -> None:
    """Values, and the gradients of every weight as the sum over the pieces; action[t] of a first frame has no part."""
    layer, parts, is_first = made(name), given(), episodes()
    whole = flat(layer.observe(parts["embed"], parts["action"], is_first, noise=parts["noise"]))
    weight = {key: torch.randn(part.shape, dtype=torch.float64) for key, part in whole.items()}
    pieces: dict[str, list[list[Tensor]]] = {key: [[] for _ in range(B)] for key in whole}
    loss = torch.zeros((), dtype=torch.float64)
    for b in range(B):
        edges = sorted({0, T, *is_first[:, b].nonzero().flatten().tolist()})
        for begin, end in itertools.pairwise(edges):
            here = (slice(begin, end), slice(b, b + 1))
            action = parts["action"][here].clone()
            if is_first[begin, b]:
                action[0] = 0
            own = flat(layer.observe(parts["embed"][here], action, noise=parts["noise"][here]))
            for key, part in own.items():
                pieces[key][b].append(part)
                loss = loss + (part * weight[key][here]).sum()
    got = {key: torch.cat([torch.cat(rows) for rows in columns], 1) for key, columns in pieces.items()}
    assert_all_close(got, whole, TOLERANCE)
    total = sum((whole[key] * weight[key]).sum() for key in whole)
    assert_all_close(gradients(layer, loss), gradients(layer, total), 1e-10)  # type: ignore[arg-type]


def test_what_is_masked_at_a_first_frame_may_be_anything() -> None:
    layer, parts, is_first = made(), given(), episodes()
    want = flat(layer.observe(parts["embed"], parts["action"], is_first, noise=parts["noise"]))
    action = torch.where(is_first[..., None], torch.full_like(parts["action"], torch.nan), parts["action"])
    assert_all_close(flat(layer.observe(parts["embed"], action, is_first, noise=parts["noise"])), want, 0.0)


def test_the_action_of_a_frame_is_the_one_that_led_to_it() -> None:
    """action[t] changes the states from t on, and none before it; without is_first action[0] counts."""
    layer, parts = made(), given()
    before = layer.observe(parts["embed"], parts["action"], noise=parts["noise"]).posterior.deter
    for t in (0, 3):
        action = parts["action"].clone()
        action[t] += 1
        after = layer.observe(parts["embed"], action, noise=parts["noise"]).posterior.deter
        changed = (before != after).flatten(1).all(1)
        assert changed.tolist() == [step >= t for step in range(T)]


def test_without_actions() -> None:
    layer, parts = made(action_size=0), given()
    peer = StepByStep(layer, {})
    got = flat(layer.observe(parts["embed"], is_first=episodes(), noise=parts["noise"]))
    nothing = torch.empty(T, B, 0, dtype=torch.float64)
    assert_all_close(got, peer.observe(parts["embed"], nothing, parts["noise"], episodes(), None), TOLERANCE)
    ahead = layer.imagine(None, layer.initial(2), steps=3)
    assert ahead.stoch.shape == (3, 2, Z)


@pytest.mark.parametrize("name", OPTIONS)
def test_imagining_from_a_posterior_state_is_a_loop_by_hand(name: str) -> None:
    """Values, and gradients to the actions, the weights and through the state to the frames."""
    layer, parts = made(name), given()
    peer = StepByStep(layer, OPTIONS[name])
    source = torch.Generator().manual_seed(8)
    action, noise = (torch.randn(5, B, size, generator=source, dtype=torch.float64) for size in (U, Z))
    action.requires_grad_()
    embed = parts["embed"].requires_grad_()
    posterior = layer.observe(embed, parts["action"], noise=parts["noise"]).posterior
    got = layer.imagine(action, posterior.at(-1), noise=noise)._asdict()
    seen = peer.observe(embed, parts["action"], parts["noise"], None, None)
    h, z, found = seen["deter"][-1], seen["stoch"][-1], []
    for k in range(5):
        h, mean, std = peer.imagine_step(h, z, action[k])
        z = mean + std * noise[k]
        found.append((mean, std, z, h))
    want = dict(zip(RSSMState._fields, (torch.stack(part) for part in zip(*found, strict=True)), strict=True))
    assert_all_close(got, want, TOLERANCE)
    grads = gradients(layer, weighted(got), action=action, embed=embed)
    weighted(want).backward()
    expected = of_layer(layer, peer) | {"action": action.grad, "embed": embed.grad}
    assert_all_close(grads, expected, 1e-10)  # type: ignore[arg-type]
    assert grads["action"].any()
    assert grads["embed"].any()


def test_a_policy_acts_on_the_state_before_each_step() -> None:
    """Its actions given as a tensor lead to the same states, and the gradient reaches its weights, from all steps."""
    layer = made()
    state = layer.initial(3)
    policy = nn.Linear(Z + H, U).double()
    noise = torch.randn(4, 3, Z, dtype=torch.float64)
    taken: list[Tensor] = []

    def act(now: RSSMState) -> Tensor:
        taken.append(torch.tanh(policy(now.features)))
        return taken[-1]

    ahead = layer.imagine(act, state, steps=4, noise=noise)
    assert len(taken) == 4
    assert_all_close(layer.imagine(torch.stack(taken), state, noise=noise)._asdict(), ahead._asdict(), TOLERANCE)
    for k in range(4):
        (grad,) = torch.autograd.grad(ahead.features[k].sum(), policy.bias, retain_graph=True)
        assert grad.any()


def test_imagining_from_every_state_of_a_batch() -> None:
    layer, parts = made(), given()
    posterior = layer.observe(parts["embed"], parts["action"], noise=parts["noise"]).posterior
    action, noise = (torch.randn(2, T * B, size, dtype=torch.float64) for size in (U, Z))
    ahead = layer.imagine(action, posterior.flat(), noise=noise)
    own = layer.imagine(action.unflatten(1, (T, B))[:, 3], posterior.at(3), noise=noise.unflatten(1, (T, B))[:, 3])
    assert_all_close({"deter": ahead.deter.unflatten(1, (T, B))[:, 3]}, {"deter": own.deter}, TOLERANCE)
    assert layer.imagine(action[:0], posterior.flat()).features.shape == (0, T * B, Z + H)


def gaussian_kl_by_hand(q: RSSMState, p: RSSMState) -> Tensor:
    normal = torch.distributions.Normal
    return torch.distributions.kl_divergence(normal(q.mean, q.std), normal(p.mean, p.std)).sum(-1)


@pytest.mark.parametrize("average", [False, True])
@pytest.mark.parametrize("free_bits", [0.0, 4.0])
@pytest.mark.parametrize("balance", [None, 0.0, 0.8, 1.0])
def test_the_kl_loss_is_that_written_by_hand(balance: float | None, free_bits: float, average: bool) -> None:
    source = torch.Generator().manual_seed(2)

    def state() -> RSSMState:
        mean, raw = (torch.randn(T, B, Z, generator=source, dtype=torch.float64) for _ in range(2))
        return RSSMState(mean.requires_grad_(), (F.softplus(raw) + 0.1).requires_grad_(), mean, mean)

    q, p = state(), state()
    leaves = {"q mean": q.mean, "q std": q.std, "p mean": p.mean, "p std": p.std}
    loss, kl = kl_loss(q, p, balance=balance, free_bits=free_bits, average=average)
    grads = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
    if balance is None:
        terms = [(1.0, gaussian_kl_by_hand(q, p))]
    else:
        terms = [(balance, gaussian_kl_by_hand(q.detach(), p)), (1 - balance, gaussian_kl_by_hand(q, p.detach()))]
    by_hand = torch.zeros((), dtype=torch.float64)
    for weight, term in terms:
        if average:
            by_hand = by_hand + weight * torch.maximum(term.mean(), term.new_tensor(free_bits))
        else:
            by_hand = by_hand + weight * torch.maximum(term, term.new_tensor(free_bits)).mean()
    want = torch.autograd.grad(by_hand, list(leaves.values()), allow_unused=True)
    assert_all_close({"loss": loss, "kl": kl}, {"loss": by_hand, "kl": gaussian_kl_by_hand(q, p)}, TOLERANCE)
    for name, got, expected in zip(leaves, grads, want, strict=True):
        zero = torch.zeros_like(leaves[name])
        assert_all_close({name: zero if got is None else got}, {name: zero if expected is None else expected}, 1e-10)
    if not average and free_bits:
        assert 0 < int((kl < free_bits).sum()) < kl.numel()  # some of both, or nothing is tested


def test_states_are_picked_flattened_and_detached() -> None:
    layer, parts = made(), given()
    posterior = layer.observe(parts["embed"], parts["action"]).posterior
    assert posterior.features.equal(torch.cat((posterior.stoch, posterior.deter), -1))
    assert posterior.at(2).deter.equal(posterior.deter[2])
    assert posterior.flat().stoch.equal(posterior.stoch.reshape(T * B, Z))
    assert posterior.deter.requires_grad
    assert not posterior.detach().deter.requires_grad


@pytest.mark.parametrize(("steps", "batch"), [(0, 3), (2, 0), (1, 1)])
def test_extremes_of_shape(steps: int, batch: int) -> None:
    layer, parts = made(), given(steps, batch)
    is_first = torch.ones(steps, batch, dtype=torch.bool)
    posterior, prior = layer.observe(parts["embed"], parts["action"], is_first)
    assert posterior.features.shape == prior.features.shape == (steps, batch, Z + H)
    losses = [layer.kl_loss(posterior, prior, free_bits=bits, average=bits > 0).loss for bits in (0.0, 3.0)]
    if not steps * batch:
        assert losses == [0, 0]  # as every loss here where there is no frame
    (posterior.features.sum() + prior.mean.sum() + sum(losses)).backward()
    assert layer.chain.weight_hh.grad is not None
    assert layer.chain.weight_hh.grad.isfinite().all()


def test_a_latent_of_one() -> None:
    layer = RSSMLayer(X, U, H, 1, dtype=torch.float64)
    assert layer.observe(given()["embed"], given()["action"]).posterior.std.shape == (T, B, 1)


def test_float32_and_autocast() -> None:
    layer = RSSMLayer(X, U, H, Z)
    parts = {key: part.float() for key, part in given().items()}
    want = flat(layer.observe(parts["embed"], parts["action"], episodes(), noise=parts["noise"]))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = flat(layer.observe(parts["embed"], parts["action"], episodes(), noise=parts["noise"]))
    assert_all_close({key: part.float() for key, part in got.items()}, want, 0.1)


def test_compiled_code_without_a_break() -> None:
    layer, parts = made(), given()

    def loss(embed: Tensor, action: Tensor, is_first: Tensor, noise: Tensor) -> Tensor:
        return layer.kl_loss(*layer.observe(embed, action, is_first, noise=noise), balance=0.8, free_bits=0.5).loss

    arguments = (parts["embed"], parts["action"], episodes(), parts["noise"])
    want, got = loss(*arguments), torch.compile(loss, fullgraph=True)(*arguments)
    assert_all_close({"loss": got}, {"loss": want}, 1e-10)
    assert_all_close(gradients(layer, got), gradients(layer, want), 1e-9)


_FRAMES = torch.zeros(T, B, X, dtype=torch.float64)
_ACTIONS = torch.zeros(T, B, U, dtype=torch.float64)


def _not_finite(layer: RSSMLayer) -> Any:
    state = layer.initial(B)
    return state._replace(stoch=state.stoch / 0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m.observe(_FRAMES), "action is missing: this model has actions of size 2"),
        (lambda m: m.observe(_FRAMES[0], _ACTIONS), "embed must have shape [T, B, 6], got [4, 6]"),
        (lambda m: m.observe(_FRAMES.float(), _ACTIONS), "embed must be torch.float64 as the parameters are, got"),
        (lambda m: m.observe(_FRAMES / 0, _ACTIONS), "embed must be finite"),
        (lambda m: m.observe(_FRAMES, _ACTIONS / 0), "action must be finite"),
        (lambda m: m.observe(_FRAMES, _ACTIONS, noise=_FRAMES[..., :3] / 0), "noise must be finite"),
        (lambda m: m.observe(_FRAMES, _ACTIONS, None, _not_finite(m)), "state's stoch must be finite"),
        (lambda m: m.imagine(_ACTIONS / 0, m.initial(4)), "action must be finite"),
        (lambda m: m.imagine(_ACTIONS, _not_finite(m)), "state's stoch must be finite"),
        (
            lambda m: m.imagine(lambda s: s.stoch[:, :2] / 0, m.initial(4), steps=2),
            "what action returns must be finite",
        ),
        (
            lambda m: m.imagine(_ACTIONS, m.observe(_FRAMES, _ACTIONS).posterior),
            "state's stoch must have shape [B, 3], got [7, 4, 3]; of the states of several steps take .at(-1)",
        ),
        (lambda m: m.observe(_FRAMES, _ACTIONS[1:]), "action must have shape [T, B, U] = [7, 4, 2], got [6, 4, 2]"),
        (
            lambda m: m.observe(_FRAMES, _ACTIONS, torch.zeros(T, B)),
            "is_first must be a bool torch.Tensor, got torch.float32; convert it with .bool()",
        ),
        (
            lambda m: m.observe(_FRAMES, _ACTIONS, torch.zeros(B, T, dtype=torch.bool)),
            "is_first must have shape [T, B] = [7, 4], got [4, 7]",
        ),
        (
            lambda m: m.observe(_FRAMES, _ACTIONS, None, m.initial(3)),
            "state's stoch must have shape [B, Z] = [4, 3], got [3, 3]",
        ),
        (
            lambda m: m.observe(_FRAMES, _ACTIONS, None, (_FRAMES, _ACTIONS)),
            "state must be a tuple (mean, std, stoch, deter), got tuple of 2",
        ),
        (lambda m: m.observe(_FRAMES, _ACTIONS, noise=_FRAMES), "noise must have shape [T, B, Z] = [7, 4, 3], got"),
        (lambda m: m.imagine(_ACTIONS, m.initial(5)), "action must have shape [K, B, U] = [7, 5, 2], got [7, 4, 2]"),
        (lambda m: m.imagine(_ACTIONS, m.initial(4), steps=3), "steps must be 7 as action has, or None, got 3"),
        (lambda m: m.imagine(lambda s: s.stoch, m.initial(4)), "steps must be given with a policy"),
        (
            lambda m: m.imagine(lambda s: s.stoch, m.initial(4), steps=2),
            "what action returns must have shape [B, U] = [4, 2], got [4, 3]",
        ),
        (lambda m: m.imagine("left", m.initial(4)), "action must be a torch.Tensor or a policy to call, got str"),
        (lambda m: m.imagine(_ACTIONS, None), "state must be a tuple (mean, std, stoch, deter), got NoneType"),
        (lambda m: m.kl_loss(m.initial(4), m.initial(4), balance=1.5), "balance must be at most 1, got 1.5"),
        (lambda m: m.kl_loss(m.initial(4), m.initial(4), free_bits=-1), "free_bits must be a finite number of at"),
        (lambda m: m.kl_loss(_FRAMES, m.initial(4)), "posterior must be a tuple (mean, std, stoch, deter), got Tensor"),
        (lambda m: RSSMLayer(0, 2, 3, 4), "embed_size must be an int of at least 1, got 0"),
        (lambda m: RSSMLayer(1, -1, 3, 4), "action_size must be an int of at least 0, got -1"),
        (lambda m: RSSMLayer(1, 2, 3, 4, activation="gelu"), "activation must be one of tanh, relu"),
        (lambda m: RSSMLayer(1, 2, 3, 4, scale="exp"), "scale must be one of logvar, softplus, got 'exp'"),
        (lambda m: RSSMLayer(1, 2, 3, 4, min_std=-0.1), "min_std must be a finite number of at least 0.0, got -0.1"),
        (lambda m: RSSMLayer(1, 2, 3, 4, initial_state="inferred"), "initial_state must be one of zeros, learned"),
    ],
)
def test_mistakes_are_one_line(call: Any, message: str) -> None:
    with pytest.raises((ValueError, TypeError)) as raised:
        call(made())
    assert str(raised.value).startswith(message)
    assert "\n" not in str(raised.value)


def test_actions_of_a_model_without() -> None:
    with pytest.raises(ValueError, match=r"^action must be None: this model has no actions \(action_size=0\)"):
        made(action_size=0).observe(_FRAMES, _ACTIONS)


def test_weights_are_drawn_anew_and_read_back() -> None:
    layer = made("learned")
    layer.reset_parameters()
    assert not layer.h_0.any()
    assert not layer.z_0.any()
    twin = made("learned")
    twin.load_state_dict(layer.state_dict())
    parts = given()
    want, got = (flat(one.observe(parts["embed"], parts["action"], noise=parts["noise"])) for one in (layer, twin))
    assert_all_close(got, want, 0.0)
    joint = layer.action.weight
    assert joint is not None
    assert float(joint.detach().abs().max()) <= (Z + U) ** -0.5
