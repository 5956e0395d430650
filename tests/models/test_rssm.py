"""RSSM as a model of sequences: the bound step by step, exact likelihoods, and all that is shared with other models."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from rssm_by_steps import E, H, M, StepByStep, T, U, Z, episodes, of_layer
from torch import Tensor

import vssn
from vssn import RSSM, State, sequence_bounds
from vssn.cli import main
from vssn.errors import ConfigError, DataError
from vssn.inference.filtering import latent_states, one_step_predictions, rollouts
from vssn.nn.rssm_states import RSSMState
from vssn.training.checkpoints import load_model
from vssn.training.config import check_config, config_of
from vssn.training.fit import fit
from vssn.utils.scaling import Scaling
from vssn_kernels.testing import assert_all_close

B, X = 4, 6
LENGTHS = torch.tensor([7, 0, 4, 1])
TOLERANCE = 1e-11


def make(dtype: torch.dtype = torch.float64, **options: Any) -> RSSM:
    sizes = {"control_size": U, "mlp_size": M, "joint_size": E}
    model = RSSM(X, H, Z, **{**sizes, **options}).to(dtype)  # type: ignore[arg-type]
    source = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.5 * torch.randn(parameter.shape, generator=source, dtype=torch.float64))
    return model.eval()


def batch(model: RSSM, steps: int = T, rows: int = B) -> dict[str, Any]:
    source = torch.Generator().manual_seed(4)
    like = model.a_parameter().dtype

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=source, dtype=torch.float64).to(like)

    x, u = normal(steps, rows, X), normal(steps, rows, U)
    if model.likelihood.support.low == 0:
        x = (x > 0).to(like)
    noise = (normal(steps, rows, 0), normal(steps, rows, Z))
    return {"x": x, "u": u if model.control_size else None, "noise": noise}


def _scaled_model() -> RSSM:
    parts = (torch.full((size,), value).double() for size in (X, U) for value in (0.5, 2.0))
    return make(likelihood="gaussian", scaling=Scaling(*parts))


def elbo_by_hand(
    model: RSSM, peer: StepByStep, x: Tensor, u: Tensor, eps: Tensor, is_first: Tensor | None
) -> tuple[Tensor, Tensor]:
    """log p(x_t | z_t, h_t) and the KL, each [T, B], by torch.distributions."""
    found = peer.observe(x, u, eps, is_first, None)
    weights = dict(model.emission.named_parameters())
    inputs = torch.cat((found["stoch"], found["deter"]), -1)
    hidden = peer.act(F.linear(inputs, weights["hidden.weight"], weights["hidden.bias"]))
    out = F.linear(hidden, weights["out.weight"], weights["out.bias"])
    normal, log_prob = torch.distributions.Normal, None
    if out.shape[-1] == X:
        log_prob = torch.distributions.Bernoulli(logits=out).log_prob(x)
    else:
        mu, raw = out.chunk(2, -1)
        log_prob = normal(mu, torch.exp((-10 + F.softplus(raw + 10)) / 2)).log_prob(x)
    kl = torch.distributions.kl_divergence(
        normal(found["mean"], found["std"]), normal(found["prior_mean"], found["prior_std"])
    )
    return log_prob.sum(-1), kl.sum(-1)


@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
@pytest.mark.parametrize("resets", [False, True])
@pytest.mark.parametrize("scale", ["softplus", "logvar"])
def test_the_bound_is_that_of_the_model_step_by_step(scale: str, resets: bool, likelihood: str) -> None:
    model = make(scale=scale, likelihood=likelihood)
    given = batch(model)
    peer = StepByStep(model.layer, {"scale": scale})
    is_first = episodes() if resets else None
    out = model(given["x"], given["u"], noise=given["noise"], is_first=is_first)
    reconstruction, kl = elbo_by_hand(model, peer, given["x"], given["u"], given["noise"][1], is_first)
    want = {"reconstruction": reconstruction, "kl_z": kl, "elbo": (reconstruction - kl).sum(0)}
    want["loss"] = -want["elbo"].sum() / (T * B)
    assert_all_close({name: getattr(out, name) for name in want}, want, TOLERANCE)
    assert not out.kl_w.any()

    named = dict(model.named_parameters())
    grads = dict(zip(named, torch.autograd.grad(out.loss, list(named.values())), strict=True))
    emission = {name: part for name, part in named.items() if name.startswith("emission")}
    by_hand = torch.autograd.grad(want["loss"], list(emission.values()), retain_graph=True)
    expected = dict(zip(emission, by_hand, strict=True))
    want["loss"].backward()
    expected |= {f"layer.{name}": grad for name, grad in of_layer(model.layer, peer).items()}
    assert set(grads) == set(expected)
    assert_all_close(grads, expected, 1e-10)


@pytest.mark.parametrize("objective", ["elbo", "paper"])
def test_the_loss_balances_the_kl_and_leaves_free_bits(objective: str) -> None:
    model = make(kl_balance=0.8, free_bits=2.0, objective=objective)
    given = batch(model)
    out = model(given["x"], given["u"], LENGTHS, noise=given["noise"], kl_weight=0.3)
    plain = make(objective=objective)(given["x"], given["u"], LENGTHS, noise=given["noise"])
    assert_all_close({"elbo": out.elbo, "kl": out.kl_z}, {"elbo": plain.elbo, "kl": plain.kl_z}, TOLERANCE)
    h, z, *both = model.layer(given["x"], given["u"], given["noise"][1], lengths=LENGTHS)
    (mu, logvar), (prior_mu, prior_logvar) = both
    normal = torch.distributions.Normal
    q, p = (mu, torch.exp(logvar / 2)), (prior_mu, torch.exp(prior_logvar / 2))

    def kl(q: tuple[Tensor, ...], p: tuple[Tensor, ...]) -> Tensor:
        return torch.distributions.kl_divergence(normal(*q), normal(*p)).sum(-1)

    stopped_q, stopped_p = (tuple(part.detach() for part in parts) for parts in (q, p))
    terms = 0.8 * kl(stopped_q, p).clamp(min=2.0) + 0.2 * kl(q, stopped_p).clamp(min=2.0)
    valid = torch.arange(T)[:, None] < LENGTHS
    weight = 0.3 * (0.5 if objective == "paper" else 1.0)
    reconstruction = model.likelihood.log_prob(model.decode(z, h), given["x"], None)
    want = torch.where(valid, weight * terms - reconstruction, 0.0).sum() / LENGTHS.sum()
    assert_all_close({"loss": out.loss}, {"loss": want}, TOLERANCE)
    named = dict(model.named_parameters())
    got, expected = (torch.autograd.grad(loss, list(named.values())) for loss in (out.loss, want))
    assert_all_close(dict(zip(named, got, strict=True)), dict(zip(named, expected, strict=True)), 1e-10)
    without = make(objective=objective, free_bits=2.0)
    apart = without(given["x"], given["u"], LENGTHS, noise=given["noise"], kl_weight=0.3)
    assert_all_close({"loss": apart.loss}, {"loss": out.loss}, TOLERANCE)  # the value alone is the same


def test_padding_is_not_read_and_resets_there_do_nothing() -> None:
    model = make()
    given = batch(model)
    is_first = episodes()
    want = model(given["x"], given["u"], LENGTHS, noise=given["noise"], is_first=is_first)
    padding = torch.arange(T)[:, None] >= LENGTHS
    x, u = (torch.where(padding[..., None], torch.full_like(given[name], math.nan), given[name]) for name in "xu")
    got = model(x, u, LENGTHS, noise=given["noise"], is_first=is_first | padding)
    for out in (want, got):
        assert not out.kl_z[padding].any()
    assert_all_close(got.state._asdict() | {"elbo": got.elbo}, want.state._asdict() | {"elbo": want.elbo}, 0.0)


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("scaled", [False, True])
def test_the_action_of_a_first_frame_may_be_anything(scaled: bool, batch_first: bool) -> None:
    """It has no part in the frame: neither NaN nor another number is read."""
    of_x, of_u = (torch.zeros(X), torch.ones(X)), (torch.tensor([0.3, -1.0]), torch.tensor([2.0, 0.7]))
    scaling = Scaling(*(part.double() for part in (*of_x, *of_u))) if scaled else None
    model = make(likelihood="gaussian", scaling=scaling)
    given, is_first = batch(model), episodes()
    x, u, eps = given["x"], given["u"], given["noise"][1]
    anything = torch.where(is_first[..., None], torch.full_like(u, math.nan), u)
    noise = (eps[..., :0], eps)

    def elbo(action: Tensor) -> Tensor:
        parts = [x, action, is_first, *noise]
        if batch_first:
            parts = [part.transpose(0, 1) for part in parts]
        return model(parts[0], parts[1], noise=(parts[3], parts[4]), is_first=parts[2]).elbo

    model.set_batch_first(batch_first)
    assert_all_close({"elbo": elbo(anything)}, {"elbo": elbo(u)}, 0.0)
    model.set_batch_first(False)
    with pytest.raises(DataError, match=r"^u must be finite"):
        model(x, anything, noise=noise)


def test_a_batch_with_resets_is_its_pieces_run_apart() -> None:
    model = make(initial_state="learned")
    given = batch(model)
    is_first = torch.zeros(T, B, dtype=torch.bool)
    is_first[3] = True
    whole = model(given["x"], given["u"], noise=given["noise"], is_first=is_first)
    parts = []
    for here in (slice(0, 3), slice(3, T)):
        u = given["u"][here].clone()
        if here.start:
            u[0] = 0
        noise = tuple(part[here] for part in given["noise"])
        parts.append(model(given["x"][here], u, noise=noise))
    for name in ("reconstruction", "kl_z"):
        joined = torch.cat([getattr(part, name) for part in parts])
        assert_all_close({name: joined}, {name: getattr(whole, name)}, TOLERANCE)
    assert_all_close({"elbo": parts[0].elbo + parts[1].elbo}, {"elbo": whole.elbo}, TOLERANCE)


@pytest.mark.parametrize("batch_first", [False, True])
def test_chunks_filters_and_prefixes_are_one_pass(batch_first: bool) -> None:
    model = make(likelihood="gaussian")
    given = batch(model)
    whole = model(given["x"], given["u"], noise=given["noise"])
    model.set_batch_first(batch_first)

    def own(part: Tensor) -> Tensor:
        return part.transpose(0, 1) if batch_first else part

    state, total = None, torch.zeros(B, dtype=torch.float64)
    for here in (slice(0, 2), slice(2, 3), slice(3, T)):
        noise = tuple(own(part[here]) for part in given["noise"])
        out = model(own(given["x"][here]), own(given["u"][here]), state=state, noise=noise)
        state, total = out.state, total + out.elbo
    assert isinstance(state, State)
    assert_all_close(state._asdict() | {"elbo": total}, whole.state._asdict() | {"elbo": whole.elbo}, TOLERANCE)

    x, u = own(given["x"]), own(given["u"])
    smooth = model.latents(x, u)
    assert_all_close(model.latents(x, u, kind="filter")._asdict(), smooth._asdict(), TOLERANCE)
    stream = model.filter(B)
    predicted = one_step_predictions(model, x, u)
    for t in range(T):
        now = stream.step(given["x"][t], given["u"][t])
        assert_all_close({"d": now.d, "z": now.z}, {"d": own(smooth.d)[t], "z": own(smooth.z)[t]}, TOLERANCE)
        if t:
            assert_all_close({"x": now.predicted}, {"x": own(predicted)[t - 1]}, TOLERANCE)


@pytest.mark.parametrize("scaled", [False, True])
def test_rollouts_are_imagined_steps_decoded(scaled: bool) -> None:
    """The interface of models and the calls of a world model tell the same story."""
    scaling = None
    if scaled:
        of_x, of_u = (torch.linspace(-1, 1, X), torch.linspace(0.5, 2, X)), ([0.3, -1.0], [2.0, 0.7])
        scaling = Scaling(*(part.double() for part in (*of_x, *map(torch.tensor, of_u))))
    model = make(likelihood="gaussian", embed_size=5, scaling=scaling, activation="tanh")
    given = batch(model)
    seen, ahead = slice(0, 4), slice(4, T)
    rolled = rollouts(model, given["x"][seen], T - 4, given["u"][seen], given["u"][ahead])
    posterior, _ = model.observe(model.encode(given["x"][seen]), given["u"][seen], noise=torch.zeros(4, B, Z).double())
    nothing = torch.zeros(T - 4, B, Z).double()
    imagined = model.imagine(given["u"][ahead], posterior.at(-1), noise=nothing)
    mean = model.likelihood.mean(model.decode(imagined.stoch, imagined.deter))
    assert_all_close({"x": mean}, {"x": rolled}, TOLERANCE)
    actions = iter(given["u"][ahead])
    by_policy = model.imagine(lambda _: next(actions), posterior.at(-1), steps=T - 4, noise=nothing)
    assert_all_close(by_policy._asdict(), imagined._asdict(), TOLERANCE)
    states = latent_states(model, given["x"][seen], given["u"][seen], inference="filtering")
    assert_all_close({"d": states.d, "z": states.z}, {"d": posterior.deter, "z": posterior.mean}, TOLERANCE)


def test_forecasts_take_the_actions_to_come() -> None:
    model = make()
    given = batch(model)
    u_future = torch.randn(5, B, U, dtype=torch.float64)
    one, other = (
        model.forecast(given["x"], 5, samples=3, quantiles=[0.5], u=given["u"], u_future=ahead, seed=0)
        for ahead in (u_future, torch.cat((u_future[:2], -u_future[2:])))
    )
    assert one.mean.shape == (5, B, X)
    assert one.quantiles.shape == (1, 5, B, X)
    assert one.mean[:2].equal(other.mean[:2])
    assert (one.mean[2:] != other.mean[2:]).any()
    torch.manual_seed(0)
    first = model.generate(3, 2, u=u_future[:3, :2])
    more = model.generate(2, u=u_future[3:, :2], state=first.state)
    assert more.x.shape == (2, 2, X)


def test_imputation_scores_and_masks() -> None:
    model = make(likelihood="gaussian", masked=True)
    given = batch(model)
    mask = torch.rand(T, B, X, generator=torch.Generator().manual_seed(1)) > 0.3
    holes = torch.where(mask, given["x"], torch.full_like(given["x"], math.nan))
    want = model(given["x"], given["u"], mask=mask, noise=given["noise"])
    assert_all_close({"elbo": model(holes, given["u"], noise=given["noise"]).elbo}, {"elbo": want.elbo}, 0.0)
    posterior = model.observe(model.encode(holes), given["u"], noise=given["noise"][1]).posterior
    assert_all_close({"h": posterior.deter[-1]}, {"h": want.state.d}, 0.0)
    filled = model.impute(holes, samples=2, u=given["u"], seed=0)
    assert filled.mean[mask].equal(given["x"][mask])
    assert model.score(given["x"], given["u"], kind="predictive", samples=2, seed=0).isfinite().all()


# The bounds


def matched(model: RSSM) -> RSSM:
    """With a posterior that is the prior: the weights are then log p(x | z, h) alone."""
    layer = model.layer
    with torch.no_grad():
        layer.frame.weight.zero_()  # type: ignore[union-attr]
        layer.chain.weight_h.copy_(layer.prior.hidden.weight)
        layer.frame.bias.copy_(layer.prior.hidden.bias)
        layer.chain.weight_out.copy_(layer.prior.out.weight)
        layer.chain.bias_out.copy_(layer.prior.out.bias)
    return model


@pytest.mark.parametrize("bound", ["elbo", "iwae", "fivo"])
def test_bounds_of_an_emission_that_sees_no_state_are_exact(bound: str) -> None:
    model = matched(make())
    with torch.no_grad():
        model.emission.out.weight.zero_()
    given = batch(model)
    found = sequence_bounds(model, given["x"], given["u"], LENGTHS, bound=bound, particles=3)
    exact = torch.distributions.Bernoulli(logits=model.emission.out.bias).log_prob(given["x"]).sum(-1)
    exact = torch.where(torch.arange(T)[:, None] < LENGTHS, exact, 0.0)
    assert_all_close({"total": found.total, "first": found.first}, {"total": exact.sum(0), "first": exact[0]}, 1e-10)


@pytest.mark.parametrize("bound", ["iwae", "fivo"])
def test_bounds_reach_the_likelihood_by_quadrature(bound: str) -> None:
    """Z = 1, two frames: log p(x_1, x_2) as a double integral, the second latent's state following from the first."""
    torch.manual_seed(5)
    model = RSSM(2, 3, 1, control_size=1, likelihood="gaussian", min_logvar_x=-2.0, dtype=torch.float64).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.5 * torch.randn(parameter.shape, dtype=torch.float64))
    x, u = torch.randn(2, 1, 2, dtype=torch.float64), torch.randn(2, 1, 1, dtype=torch.float64)
    eps = torch.linspace(-7, 7, 401, dtype=torch.float64)
    log_weight = -0.5 * eps.square() - 0.5 * math.log(2 * math.pi) + math.log(float(eps[1] - eps[0]))
    layer = model.layer
    with torch.no_grad():
        h, z = layer.start(1, x)
        h, z, *_ = layer.step_from_prior(h.expand(401, -1), z.expand(401, -1), u[0].expand(401, -1), eps[:, None])
        first = log_weight + model.likelihood.log_prob(model.decode(z[None], h[None]), x[:1].expand(1, 401, 2), None)[0]
        h, z = h.repeat_interleave(401, 0), z.repeat_interleave(401, 0)
        h, z, *_ = layer.step_from_prior(h, z, u[1].expand(len(h), -1), eps.repeat(401)[:, None])
        second = model.likelihood.log_prob(model.decode(z[None], h[None]), x[1:].expand(1, len(h), 2), None)[0]
        total = torch.logsumexp(first.repeat_interleave(401) + second + log_weight.repeat(401), 0)
    found = sequence_bounds(model, x, u, bound=bound, particles=100_000)
    assert abs(float(found.first[0] - torch.logsumexp(first, 0))) < 0.03
    assert abs(float(found.total[0] - total)) < 0.03


def test_a_bound_does_not_depend_on_how_memory_cuts_it() -> None:
    model = make()
    given = batch(model, steps=130)
    whole = sequence_bounds(model, given["x"], given["u"], bound="iwae", particles=20)
    cut = sequence_bounds(model, given["x"], given["u"], bound="iwae", particles=20, memory=800_000)
    assert_all_close(cut._asdict(), whole._asdict(), 1e-9)


def test_particles_start_from_a_state() -> None:
    """In expectation the elbo of one particle is that of a call with the state."""
    model, count = make(), 3000
    given = batch(model, 6, 1)
    first = model(given["x"][:3], given["u"][:3], noise=tuple(part[:3] for part in given["noise"])).state
    x, u = (given[name][3:].expand(-1, count, -1).contiguous() for name in ("x", "u"))
    far = [part.detach() if name == "x_last" else 4 - 3 * part.detach() for name, part in first._asdict().items()]
    states = type(first)(*(part.expand(count, -1).contiguous() for part in far))
    torch.manual_seed(0)
    with torch.no_grad():
        want, anew = (model(x, u, state=state).elbo for state in (states, None))
    got = sequence_bounds(model, x, u, bound="elbo", particles=1, state=states).total
    error = float(((want.var() + got.var()) / count).sqrt())
    assert abs(float(got.mean() - want.mean())) < 4.5 * error
    assert abs(float(anew.mean() - want.mean())) > 6 * error, "a start anew is told apart"


def test_a_particle_filter_of_an_rssm() -> None:
    model = make()
    given = batch(model)
    stream = model.filter(B, particles=5, seed=0)
    for t in range(3):
        now = stream.step(given["x"][t], given["u"][t])
    assert now.d.shape == (B, H)
    stream.reset([1])
    assert stream.predict(given["u"][3]).isfinite().all()


# Files, training, the command line


def test_a_model_comes_back(tmp_path: Path) -> None:
    model = make(torch.float32, kl_balance=0.8, initial_state="learned", activation="relu", batch_first=True)
    model.save_pretrained(tmp_path)
    for load in (RSSM.from_pretrained, vssn.from_pretrained):
        loaded = load(tmp_path)
        assert type(loaded) is RSSM
        assert loaded.config == model.config
        assert all(part.equal(loaded.state_dict()[name]) for name, part in model.state_dict().items())


SETTINGS: dict[str, Any] = {
    "data": {"set": "pendulum", "num_train": 6, "num_valid": 4, "num_test": 4, "batch_size": 3},
    "model": {"name": "rssm", "hidden_size": 6, "latent_size": 2, "activation": "elu", "kl_balance": 0.8},
    "training": {"max_epochs": 2, "accelerator": "cpu", "chunk_length": 6, "kl_start": 0.1, "kl_anneal_updates": 4},
}


def configured(output: Path, **model: object) -> dict[str, Any]:
    return {
        **SETTINGS,
        "model": {**SETTINGS["model"], **model},
        "training": {**SETTINGS["training"], "output": str(output)},
    }


def test_it_is_configured_trained_resumed_and_loaded(tmp_path: Path) -> None:
    straight = fit(configured(tmp_path / "straight"))
    first = configured(tmp_path / "parts")
    first["training"] = {**first["training"], "max_epochs": 1}
    fit(first)
    resumed = fit(configured(tmp_path / "parts"), resume=True)
    assert resumed.test == straight.test
    model, config = load_model(tmp_path / "parts" / "best.ckpt")
    assert isinstance(model, RSSM)
    assert (model.control_size, model.kl_balance, config.model.scale) == (1, 0.8, "softplus")
    described = config_of(model, {"set": "pendulum"}, {}, False)
    assert (described.model.name, described.model.activation) == ("rssm", "elu")


def test_the_command_line_takes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text(json.dumps(configured(tmp_path / "run")))
    assert main(["fit", "--config", "mine.yaml", "--set", "training.max_epochs=1"]) == 0
    assert main(["evaluate", "run/best.ckpt", "--bound", "fivo", "--particles", "3"]) == 0
    assert "FIVO-3" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"activation": "gelu"}, "config: model.activation: expected 'elu', 'relu'"),
        ({"scale": "exp"}, "config: model.scale: expected 'softplus' or 'logvar', got 'exp'"),
        ({"kl_balance": 1.5}, "config: model.kl_balance: expected a number less than or equal to 1, got 1.5"),
        ({"control": "previous"}, "config: model.control: expected 'external' or 'none', got 'previous'"),
        ({"noise_size": 3}, "config: model.noise_size: unknown key"),
    ],
)
def test_its_keys_are_checked(model: dict[str, object], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as raised:
        check_config(configured(tmp_path, **model), "config")
    assert str(raised.value).startswith(message)


def test_own_arrays_with_actions(tmp_path: Path) -> None:
    source = np.random.default_rng(0)
    part = [(source.normal(size=(length, 3)), source.normal(size=(length, 2))) for length in (5, 9)]
    settings = {
        "model": {"name": "rssm", "hidden_size": 4, "latent_size": 2, "likelihood": "gaussian"},
        "training": {"output": str(tmp_path), "max_epochs": 1, "accelerator": "cpu"},
    }
    result = fit(settings, {"train": part, "valid": part, "test": part})
    assert result.test.frames == 14
    assert result.model.control_size == 2


# Mistakes


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m, g: RSSM(X, H, Z), "control_size must be an int of at least 1, got 0"),
        (
            lambda m, g: RSSM(X, H, Z, control="none", control_size=1),
            "control_size must be 0 with control='none', got 1",
        ),
        (lambda m, g: RSSM(X, H, Z, control="previous"), "control must be one of external, none, got 'previous'"),  # type: ignore[arg-type]
        (lambda m, g: RSSM(X, H, 0, control_size=1), "latent_size must be an int of at least 1, got 0"),
        (lambda m, g: RSSM(X, H, Z, control_size=1, kl_balance=2.0), "kl_balance must be at most 1, got 2.0"),
        (lambda m, g: m(g["x"]), "u is missing: this model has an external control of size 2"),
        (
            lambda m, g: m(g["x"], g["u"], is_first=torch.ones(T, B)),
            "is_first must be a bool torch.Tensor, got torch.float32; convert it with .bool()",
        ),
        (
            lambda m, g: m(g["x"], g["u"], is_first=torch.ones(B, T).bool()),
            "is_first must have shape [T, B] = [7, 4], got [4, 7]",
        ),
        (
            lambda m, g: m(g["x"], g["u"], state=m.initial(B)),
            "state must be a tuple (d, z, x_last) or None, got RSSMState",
        ),
        (lambda m, g: m.observe(g["x"], g["u"][1:]), "action must have shape [T, B, U] = [7, 4, 2], got [6, 4, 2]"),
        (lambda m, g: m.encode(g["u"]), "x must have shape [T, B, 6], got [7, 4, 2]"),
        (lambda m, g: m.encode(g["x"].float()), "x must be torch.float64 as the parameters are, got torch.float32"),
        (lambda m, g: m.encode(g["x"] / 0), "x must be finite, got nan; a model made with masked=True takes NaN as"),
        *(
            (lambda m, g, bad=bad: _scaled_model().observe(g["x"], bad(g["u"])), message)
            for bad, message in (
                (lambda u: u.numpy(), "action must be a torch.Tensor, got a NumPy array of float64"),
                (lambda u: u[..., :1], "action must have shape [T, B, U] = [7, 4, 2], got [7, 4, 1]"),
                (lambda u: u.long(), "action must be floating point, got torch.int64"),
            )
        ),
    ],
)
def test_mistakes_are_one_line(call: Any, message: str) -> None:
    model = make()
    with pytest.raises((ValueError, TypeError)) as raised:
        call(model, batch(model))
    assert str(raised.value).startswith(message)


def test_states_of_both_kinds_stand_for_each_other() -> None:
    """What `forward` carries on, `observe` takes, once it is written in its fields."""
    model = make()
    given = batch(model)
    state = model(given["x"][:3], given["u"][:3], noise=tuple(part[:3] for part in given["noise"])).state
    carried = RSSMState(state.z, torch.zeros_like(state.z), state.z, state.d)
    got = model.observe(given["x"][3:], given["u"][3:], state=carried, noise=given["noise"][1][3:]).posterior
    want = model(given["x"], given["u"], noise=given["noise"]).state
    assert_all_close({"h": got.deter[-1], "z": got.stoch[-1]}, {"h": want.d, "z": want.z}, TOLERANCE)
