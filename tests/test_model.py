"""VSSN against the same model written step by step, its objectives, masks, ablations, generation and its errors."""

from __future__ import annotations

import copy
import math
import pickle
from typing import Any

import pytest
import torch
from step_by_step import PlainModel
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence

import vssn_kernels
from vssn import VSSN, State, VSSNLayer, VSSNOutput
from vssn_kernels.testing import assert_all_close, assert_close, assert_equal, targets

T, B, X, U, D, Z, W = 5, 4, 4, 2, 5, 3, 2
LENGTHS = torch.tensor([5, 0, 3, 1])
TOLERANCE = 1e-11  # in float64

# Each is (D, Z, W) and the options.
MODELS: dict[str, tuple[tuple[int, int, int], dict[str, Any]]] = {
    "vssn": ((D, Z, W), {}),
    "srnn": ((D, Z, 0), {}),
    "srnn_residual": ((D, Z, 0), {"residual_posterior": True}),
    "srnn_none": ((D, Z, 0), {"control": "none"}),
    "storn": ((D, 0, W), {}),
    "rnn": ((D, 0, 0), {}),
    "dkf": ((0, Z, 0), {"mlp_size": 6, "backward_size": 7}),
    "dkf_external": ((0, Z, 0), {"mlp_size": 6, "backward_size": 7, "control": "external", "control_size": U}),
    "dkf_both_residual": (
        (0, Z, 0),
        {"mlp_size": 6, "backward_size": 7, "control": "both", "control_size": U, "residual_posterior": True},
    ),
    "external": ((D, Z, W), {"control": "external", "control_size": U}),
    "both": ((D, Z, W), {"control": "both", "control_size": U, "activation": "silu"}),
    "none": ((D, Z, W), {"control": "none"}),
    "embedded": ((D, Z, W), {"embed_size": 6}),
    "embedded_both": ((D, Z, W), {"embed_size": 6, "control": "both", "control_size": U}),
    "sizes": ((D, Z, W), {"mlp_size": 8, "backward_size": 7, "residual_posterior": True, "activation": "relu"}),
    "initial_state": ((D, Z, W), {"learn_initial_state": True, "activation": "leaky_relu"}),
    "smoothing": ((D, Z, W), {"noise_smoothing": True, "control": "both", "control_size": U, "backward_size": 7}),
    "gaussian": ((D, Z, W), {"likelihood": "gaussian", "min_logvar_x": -2.0}),
    "mixture": ((D, Z, W), {"likelihood": "mixture", "mixture_size": 3}),
    "nade": ((D, Z, W), {"likelihood": "nade", "nade_size": 6}),
    "masked": ((D, Z, W), {"masked": True}),
    "masked_mixture_embedded": (
        (D, Z, W),
        {"masked": True, "likelihood": "mixture", "mixture_size": 2, "embed_size": 6},
    ),
    "universal": ((D, Z, W), {"universal": "gaussian", "num_sequences": 10}),
    "floor": ((D, Z, W), {"min_logvar": -1.0}),
}


def make(name: str = "vssn", dtype: torch.dtype = torch.float64, **more: Any) -> VSSN:
    """The model with random weights everywhere, biases and initial states included."""
    sizes, options = MODELS[name]
    model = VSSN(X, *sizes, **options | more).to(dtype)
    source = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.35 * torch.randn(parameter.shape, generator=source, dtype=torch.float64))
    return model.eval()


def batch(model: VSSN, steps: int = T, rows: int = B) -> dict[str, Any]:
    """x, u and noise that fit the model, time-major."""
    source = torch.Generator().manual_seed(12)
    dtype = model.layer.d_0.dtype

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=source, dtype=torch.float64).to(dtype)

    x = normal(steps, rows, X)
    x = (x > 0).to(dtype) if type(model.likelihood).__name__ in ("Bernoulli", "NADE") else x
    u = normal(steps, rows, model.control_size) if model.control_size else None
    noise = (normal(steps, rows, model.layer.noise_size), normal(steps, rows, model.layer.latent_size))
    return {"x": x, "u": u, "noise": noise}


def flat(out: VSSNOutput) -> dict[str, Tensor]:
    return {**{name: part for name, part in out._asdict().items() if name != "state"}, **out.state._asdict()}


def parameter_gradients(model: VSSN, loss: Tensor) -> dict[str, Tensor]:
    named = dict(model.named_parameters())
    grads = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    return {n: torch.zeros_like(p) if g is None else g for (n, p), g in zip(named.items(), grads, strict=True)}


def a_mask() -> Tensor:
    return torch.rand(T, B, X, generator=torch.Generator().manual_seed(3)) > 0.3


# ---- Against the model written step by step ------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_equals_the_model_step_by_step(name: str) -> None:
    """Every output, the state and the gradient of every parameter, with lengths (0 among them)."""
    model = make(name)
    given = batch(model)
    mask = a_mask() if "masked" in name else None
    out = model(**given, lengths=LENGTHS, mask=mask)
    want = PlainModel(model).run(given["x"], given["u"], LENGTHS, given["noise"], mask)
    got = flat(out)
    got.pop("loss")
    assert_all_close(got, {part: want[part] for part in got}, TOLERANCE)
    grads = parameter_gradients(model, out.elbo.sum())
    assert_all_close(grads, parameter_gradients(model, want["elbo"].sum()), 1e-10, "grad of")
    assert sum(bool(grad.any()) for grad in grads.values()) >= 0.9 * len(grads), "nearly every parameter matters"


@pytest.mark.parametrize("name", ["vssn", "both", "masked", "dkf_external"])
def test_a_state_carries_on_as_step_by_step(name: str) -> None:
    model = make(name)
    given = batch(model)
    state = State(torch.randn(B, model.layer.hidden_size, dtype=torch.float64), torch.randn(B, Z, dtype=torch.float64),
                  torch.randn(B, model.frame_size, dtype=torch.float64))  # fmt: skip
    got = flat(model(**given, lengths=LENGTHS, state=state))
    want = PlainModel(model).run(given["x"], given["u"], LENGTHS, given["noise"], None, state)
    got.pop("loss")
    assert_all_close(got, {part: want[part] for part in got}, TOLERANCE)
    assert_equal("x_last of a sequence of length 0", got["x_last"][1], state.x_last[1])


@pytest.mark.parametrize("name", MODELS)
def test_a_padded_batch_gives_each_sequence_its_own_numbers(name: str) -> None:
    model = make(name)
    given = batch(model)
    whole = model(**given, lengths=LENGTHS)
    for row, length in enumerate(LENGTHS.tolist()):
        one = slice(row, row + 1)
        eps = tuple(part[:length, one] for part in given["noise"])
        alone = model(given["x"][:length, one], None if given["u"] is None else given["u"][:length, one], noise=eps)
        for part in ("reconstruction", "kl_z", "kl_w"):
            assert_close(f"{part} of sequence {row}", getattr(whole, part)[:length, one], getattr(alone, part), 1e-12)
            assert not getattr(whole, part)[length:, one].any(), f"{part} is not 0 at padding"
        assert_close(f"elbo of sequence {row}", whole.elbo[one], alone.elbo, 1e-12)
        for part in State._fields:
            assert_close(
                f"{part} of sequence {row}", getattr(whole.state, part)[one], getattr(alone.state, part), 1e-12
            )


@pytest.mark.parametrize("name", ["vssn", "both", "masked", "smoothing", "dkf_external", "gaussian", "embedded_both"])
def test_nan_at_padding_changes_nothing(name: str) -> None:
    """In x, u, mask and noise: the same bits of every output, the gradients too."""
    model = make(name)
    given = batch(model)
    clean = model(**given, lengths=LENGTHS)
    padding = (torch.arange(T)[:, None] >= LENGTHS)[..., None]

    def spoil(tensor: Tensor) -> Tensor:
        return tensor.masked_fill(padding, float("nan"))

    spoilt = {"x": spoil(given["x"]), "u": None if given["u"] is None else spoil(given["u"])}
    spoilt["noise"] = tuple(spoil(eps) for eps in given["noise"])
    dirty = model(**spoilt, lengths=LENGTHS)
    for part, want in flat(clean).items():
        assert_equal(part, flat(dirty)[part], want)
    want_grads = parameter_gradients(model, clean.loss)
    for part, grad in parameter_gradients(model, dirty.loss).items():
        assert_equal(f"grad of {part}", grad, want_grads[part])


def test_given_noise_repeats_a_run_exactly() -> None:
    model = make(dtype=torch.float32)
    given = batch(model)
    first, again = model(**given), model(**given)
    for part, want in flat(first).items():
        assert_equal(part, flat(again)[part], want)
    drawn = model(given["x"])
    assert (drawn.elbo - model(given["x"]).elbo).abs().max() > 1e-4, "without noise every run draws its own"
    torch.manual_seed(4)
    seeded = model(given["x"]).elbo
    torch.manual_seed(4)
    assert_equal("elbo under one seed", model(given["x"]).elbo, seeded)


# ---- Objectives ----------------------------------------------------------------------------------


def test_the_loss_is_per_frame() -> None:
    model = make()
    out = model(**batch(model), lengths=LENGTHS)
    assert_close("loss", out.loss, -out.elbo.sum() / LENGTHS.sum(), 1e-12)
    assert out.loss.shape == ()
    out = model(**batch(model))
    assert_close("loss without lengths", out.loss, -out.elbo.sum() / (T * B), 1e-12)


@pytest.mark.parametrize("name", ["vssn", "srnn", "storn", "rnn"])
def test_the_paper_objective_halves_the_divergences(name: str) -> None:
    """L = F + (KL_w + KL_z) / 2, in the loss alone: what is reported stays strict."""
    strict, paper = make(name), make(name, objective="paper")
    given = batch(strict)
    one, other = strict(**given, lengths=LENGTHS), paper(**given, lengths=LENGTHS)
    assert_equal("elbo", other.elbo, one.elbo)
    objective = one.elbo.sum() + (one.kl_w + one.kl_z).sum() / 2
    assert_close("loss", other.loss, -objective / LENGTHS.sum(), 1e-13)


@pytest.mark.parametrize("objective", ["elbo", "paper"])
@pytest.mark.parametrize("weight", [0.0, 0.3, torch.tensor(0.3, dtype=torch.float64), 2])
def test_kl_weight(weight: float | Tensor, objective: str) -> None:
    model = make(objective=objective)
    given = batch(model)
    out = model(**given, lengths=LENGTHS, kl_weight=weight)
    factor = float(weight) * (0.5 if objective == "paper" else 1)
    want = factor * (out.kl_z + out.kl_w).sum() - out.reconstruction.sum()
    assert_close("loss", out.loss, want / LENGTHS.sum(), 1e-12)
    assert_equal("elbo", out.elbo, model(**given, lengths=LENGTHS).elbo)


@pytest.mark.parametrize("objective", ["elbo", "paper"])
@pytest.mark.parametrize("name", ["vssn", "srnn", "storn", "rnn"])
def test_free_bits(name: str, objective: str) -> None:
    """max(KL[t, b], lambda) for z and w apart, at valid steps, for the parts that there are; no gradient below."""
    bits = 0.9
    model = make(name, free_bits=bits, objective=objective)
    out = model(**batch(model), lengths=LENGTHS)
    valid = torch.arange(T)[:, None] < LENGTHS
    kls = [kl for kl, size in ((out.kl_z, model.layer.latent_size), (out.kl_w, model.layer.noise_size)) if size]
    total = sum(torch.where(valid, kl.clamp(min=bits), 0.0).sum() for kl in kls)
    half = 0.5 if objective == "paper" else 1
    assert_close("loss", out.loss, (half * total - out.reconstruction.sum()) / LENGTHS.sum(), 1e-12)
    assert_equal("elbo", out.elbo, make(name)(**batch(model), lengths=LENGTHS).elbo)
    if kls:
        assert any((kl[valid] < bits).any() for kl in kls), "some divergence lies below, or the test shows nothing"


@pytest.mark.parametrize("name", ["vssn", "masked", "universal", "rnn"])
def test_no_frames_give_no_loss(name: str) -> None:
    model = make(name).train()
    given = batch(model)
    out = model(**given, lengths=torch.zeros(B, dtype=torch.int64))
    assert out.loss.item() == 0
    assert not out.elbo.any()
    for part, grad in parameter_gradients(model, out.loss).items():
        assert torch.equal(grad, torch.zeros_like(grad)), part


@pytest.mark.parametrize(("steps", "rows"), [(0, B), (T, 0), (0, 0)])
@pytest.mark.parametrize("name", ["vssn", "both", "dkf", "storn", "masked_mixture_embedded", "smoothing"])
def test_empty_batches(name: str, steps: int, rows: int) -> None:
    model = make(name)
    for lengths in (None, torch.zeros(rows, dtype=torch.int64)):
        out = model(**batch(model, steps, rows), lengths=lengths)
        assert out.loss.item() == 0
        assert out.elbo.shape == (rows,)
        assert out.reconstruction.shape == out.kl_z.shape == out.kl_w.shape == (steps, rows)
        assert out.state.d.shape == (rows, model.layer.hidden_size)
        out.loss.backward()


# ---- A bound -------------------------------------------------------------------------------------


def test_the_elbo_is_below_the_likelihood_and_importance_weights_reach_it() -> None:
    """log p(x) by 40000 draws from the generative model, written step by step; the paper's L is not a bound."""
    model = VSSN(2, 2, 2, 1).to(torch.float64).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.25 * torch.randn(parameter.shape, dtype=torch.float64))
        many, plain = 40000, PlainModel(model)
        x = torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0]], dtype=torch.float64)[:, None].expand(3, many, 2)
        d, z, frame = plain.first_state(many, x)
        log_p = x.new_zeros(many)
        for t in range(3):
            eps_w, eps_z = torch.randn(many, 1, dtype=torch.float64), torch.randn(many, 2, dtype=torch.float64)
            d, z = plain.layer.imagine(plain.controls(frame, None), d, z, eps_w, eps_z)
            frame = x[t]
            log_p = log_p + plain.log_prob(plain.decode(z, d), frame, torch.ones_like(frame, dtype=torch.bool))
        exact = (torch.logsumexp(log_p, 0) - math.log(many)).item()
        out = model(x)
        assert out.elbo.mean() < exact - 0.05
        noise = (torch.randn(3, many, 1, dtype=torch.float64), torch.randn(3, many, 2, dtype=torch.float64))
        steps, reconstruction, _ = plain.sequence(x, None, torch.ones_like(x, dtype=torch.bool), None, *noise)
        weights = sum(reconstruction) + sum(steps.log_weight)
        weighted = (torch.logsumexp(weights, 0) - math.log(many)).item()
        assert weights.mean().item() == pytest.approx(out.elbo.mean().item(), abs=0.1)
        assert weighted == pytest.approx(exact, abs=0.05)


# ---- State and chunks ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["vssn", "storn", "rnn", "both", "masked", "embedded", "universal"])
def test_chunks_with_the_state_equal_the_whole(name: str) -> None:
    """d, kl_w and x_last everywhere; all of it where there is no z, whose a_t sees its own chunk only."""
    model = make(name)
    given = batch(model)
    lengths = torch.tensor([5, 0, 3, 1])
    mask = a_mask() if name == "masked" else None
    whole = model(**given, lengths=lengths, mask=mask)
    state, parts, first = None, [], 2
    for rows in (slice(0, first), slice(first, T)):
        noise = tuple(eps[rows] for eps in given["noise"])
        u = None if given["u"] is None else given["u"][rows]
        steps = (lengths - rows.start).clamp(0, rows.stop - rows.start)
        chunk_mask = None if mask is None else mask[rows]
        parts.append(model(given["x"][rows], u, lengths=steps, state=state, noise=noise, mask=chunk_mask))
        state = parts[-1].state
    exact = ["kl_w"] if model.layer.latent_size else ["kl_w", "kl_z", "reconstruction"]
    for part in exact:
        assert_close(part, torch.cat([getattr(chunk, part) for chunk in parts]), getattr(whole, part), 1e-12)
    assert_close("d", parts[-1].state.d, whole.state.d, 1e-12)
    assert_close("x_last", parts[-1].state.x_last, whole.state.x_last, 0.0)
    if not model.layer.latent_size:
        assert_close("elbo", sum(chunk.elbo for chunk in parts), whole.elbo, 1e-12)


def test_the_backward_state_sees_its_chunk_only() -> None:
    """A later frame changes z of the chunk that it is in, not of the one before."""
    model = make("srnn")
    given = batch(model)
    changed = given["x"].clone()
    changed[4] = 1 - changed[4]
    assert (model(changed, noise=given["noise"]).kl_z[0] - model(**given).kl_z[0]).abs().max() > 1e-8
    chunk = {"noise": tuple(eps[:3] for eps in given["noise"])}
    assert_equal("kl_z", model(changed[:3], **chunk).kl_z, model(given["x"][:3], **chunk).kl_z)


def test_gradients_flow_through_a_state_until_it_is_detached() -> None:
    model = make("rnn", learn_initial_state=True)
    given = batch(model)
    first = model(given["x"][:2])
    for state, reaches in ((first.state, True), (State(*(part.detach() for part in first.state)), False)):
        grads = parameter_gradients(model, model(given["x"][2:], state=state).loss)
        assert bool(grads["layer.d_0"].any()) == reaches


def test_the_control_never_sees_the_present_frame() -> None:
    """With the posterior of w cut off, d_t depends on x_{t-1} and earlier only."""
    model = make("rnn")
    given = batch(model)
    changed = given["x"].clone()
    changed[2] = 1 - changed[2]
    one, other = model(given["x"]), model(changed)
    assert_equal("state before", model(given["x"][:3]).state.d, model(changed[:3]).state.d)
    assert_equal("reconstruction before", other.reconstruction[:2], one.reconstruction[:2])
    assert (model(given["x"][:4]).state.d - model(changed[:4]).state.d).abs().max() > 1e-6


# ---- Masks ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("name", ["vssn", "masked", "masked_mixture_embedded", "gaussian", "mixture", "none"])
def test_missing_entries(name: str, dims: int) -> None:
    """NaN under the mask changes nothing; a frame without entries has no likelihood; gradients stay finite."""
    model = make(name)
    given = batch(model)
    mask = a_mask() if dims == 3 else a_mask()[..., 0]
    mask[1, 0] = False
    wide = mask if dims == 3 else mask[..., None].expand(T, B, X)
    clean = model(**given, lengths=LENGTHS, mask=mask)
    x = given["x"].masked_fill(~wide, float("nan")).requires_grad_()
    out = model(**given | {"x": x}, lengths=LENGTHS, mask=mask)
    for part, want in flat(clean).items():
        assert_equal(part, flat(out)[part], want)
    assert abs(out.reconstruction[1, 0]) < 1e-15
    for part, grad in parameter_gradients(model, out.loss).items():
        assert grad.isfinite().all(), f"grad of {part}"
    (grad,) = torch.autograd.grad(model(**given | {"x": x}, lengths=LENGTHS, mask=mask).loss, x)
    assert torch.equal(grad[~wide], torch.zeros_like(grad[~wide]))


@pytest.mark.parametrize("name", ["vssn", "masked", "mixture"])
def test_a_mask_of_ones_is_no_mask(name: str) -> None:
    model = make(name)
    given = batch(model)
    want = flat(model(**given, lengths=LENGTHS))
    for shape in ((T, B), (T, B, X)):
        got = flat(model(**given, lengths=LENGTHS, mask=torch.ones(shape, dtype=torch.bool)))
        assert_all_close(got, want, 1e-13)


def test_masked_networks_tell_a_missing_zero_from_an_observed_one() -> None:
    for name, differs in (("masked", True), ("vssn", False)):
        model = make(name)
        given = batch(model)
        given["x"] = torch.zeros_like(given["x"])
        mask = torch.ones(T, B, dtype=torch.bool)
        mask[2] = False
        one, other = model(**given), model(**given, mask=mask)
        assert bool((one.kl_w[2] - other.kl_w[2]).abs().max() > 1e-9) == differs
        assert one.state.x_last.shape == (B, 2 * X if differs else X)


# ---- Universal transition parameters -------------------------------------------------------------


def test_universal_gaussian() -> None:
    """The KL of torch.distributions, its share in the loss, the mean at evaluation, one draw per batch in training."""
    model = make("universal", prior_std=0.3)
    given = batch(model)
    layer = model.layer
    weight, deviation = layer.duration.weight_hh, torch.exp(layer.weight_hh_logvar / 2)
    prior = Normal(torch.zeros_like(weight), torch.full_like(weight, 0.3))
    kl = kl_divergence(Normal(weight, deviation), prior).sum()
    assert_close("universal_kl", layer.universal_kl(), kl, 1e-12)
    for train in (False, True):
        for kl_weight in (1.0, 0.25):
            torch.manual_seed(0)
            out = model.train(train)(**given, lengths=LENGTHS, kl_weight=kl_weight)
            weighted = kl_weight * (out.kl_z + out.kl_w).sum() - out.reconstruction.sum()
            want = (weighted + kl_weight * kl * B / 10) / LENGTHS.sum()
            assert_close("loss", out.loss, want, 1e-12)
            strict = (out.reconstruction - out.kl_z - out.kl_w).sum(0)
            assert_close("elbo", out.elbo, strict, 1e-13)
    model.eval()
    point = make("vssn")
    point.load_state_dict(model.state_dict(), strict=False)
    assert_equal("elbo at evaluation", model(**given).elbo, point(**given).elbo)
    model.train()
    assert (model(**given).elbo - model(**given).elbo).abs().max() > 1e-6, "every batch draws its own weights"
    grads = parameter_gradients(model, model(**given).loss)
    assert grads["layer.weight_hh_logvar"].any()
    twice = {"x": given["x"][:, :1].repeat(1, 2, 1), "noise": tuple(e[:, :1].repeat(1, 2, 1) for e in given["noise"])}
    elbo = model(**twice).elbo
    assert_close("one draw for the whole batch", elbo[0], elbo[1], 1e-12)


def test_universal_draws_have_the_posterior_they_are_charged_for() -> None:
    layer = make("universal").layer.train()
    with torch.no_grad():
        draws = torch.stack([layer.duration_weight() for _ in range(4000)])
        deviation = torch.exp(layer.weight_hh_logvar / 2)
        assert ((draws.mean(0) - layer.duration.weight_hh).abs() < 5 * deviation / 4000**0.5).all()
        assert ((draws.std(0) / deviation - 1).abs() < 0.07).all()


def test_a_point_estimate_costs_nothing() -> None:
    model = make("vssn", num_sequences=3)
    assert model.layer.universal_kl().item() == 0
    out = model(**batch(model))
    assert_close("loss", out.loss, -out.elbo.sum() / (T * B), 1e-12)


# ---- Layout --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["vssn", "both", "masked", "storn"])
def test_batch_first_is_the_transposed_model(name: str) -> None:
    model, swapped = make(name), make(name, batch_first=True)
    given = batch(model)
    mask = a_mask() if name == "masked" else None
    out = model(**given, lengths=LENGTHS, mask=mask)
    turned = {
        "x": given["x"].transpose(0, 1),
        "u": None if given["u"] is None else given["u"].transpose(0, 1),
        "noise": tuple(eps.transpose(0, 1) for eps in given["noise"]),
        "mask": None if mask is None else mask.transpose(0, 1),
    }
    other = swapped(**turned, lengths=LENGTHS)
    for part in ("reconstruction", "kl_z", "kl_w"):
        assert getattr(other, part).shape == (B, T)
        assert_equal(part, getattr(other, part).transpose(0, 1), getattr(out, part))
    assert_equal("loss", other.loss, out.loss)
    assert_equal("elbo", other.elbo, out.elbo)
    for part in State._fields:
        assert_equal(part, getattr(other.state, part), getattr(out.state, part))
    u = None if given["u"] is None else given["u"]
    torch.manual_seed(1)
    generated = model.generate(T, B, u=u)
    torch.manual_seed(1)
    assert_equal("x", swapped.generate(T, B, u=turned["u"]).x.transpose(0, 1), generated.x)
    torch.manual_seed(1)
    forecast = model.forecast(given["x"], 3, u=u, u_future=None if u is None else u[:3], lengths=LENGTHS)
    torch.manual_seed(1)
    future = None if u is None else turned["u"][:, :3]
    again = swapped.forecast(turned["x"], 3, u=turned["u"], u_future=future, lengths=LENGTHS)
    # noise drawn inside is time-major in both
    assert_equal("x", again.x.transpose(0, 1), forecast.x)


def test_strided_inputs() -> None:
    model = make("both")
    given = batch(model)
    want = flat(model(**given, lengths=LENGTHS))

    def turned(tensor: Tensor) -> Tensor:
        return tensor.transpose(0, 2).contiguous().transpose(0, 2)

    got = model(turned(given["x"]), turned(given["u"]), noise=tuple(turned(e) for e in given["noise"]), lengths=LENGTHS)
    assert_all_close(flat(got), want, 1e-13)


# ---- Encoders and decoders -----------------------------------------------------------------------


class Decoder(nn.Module):
    """[N, Z + D] to [N, 16], by a transposed convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(
            nn.Linear(Z + D, 8),
            nn.Tanh(),
            nn.Unflatten(1, (2, 2, 2)),
            nn.ConvTranspose2d(2, 1, 2, stride=2),
            nn.Flatten(),
        )

    def forward(self, rows: Tensor) -> Tensor:
        assert rows.dim() == 2
        return self.inner(rows)


def test_convolutional_encoder_and_decoder() -> None:
    encoder = nn.Sequential(nn.Unflatten(1, (1, 4, 4)), nn.Conv2d(1, 3, 2, stride=2), nn.ReLU(), nn.Flatten())
    model = VSSN(16, D, Z, W, encoder=encoder, decoder=Decoder(), embed_size=12)
    x = (torch.rand(T, B, 16) > 0.5).float()
    x[torch.arange(T)[:, None] >= LENGTHS] = float("nan")
    out = model(x, lengths=LENGTHS)
    assert out.loss.isfinite()
    grads = parameter_gradients(model, out.loss)
    assert all(grad.isfinite().all() for grad in grads.values())
    assert grads["encoder.1.weight"].any()
    assert grads["decoder.inner.0.weight"].any()
    assert model.generate(3, 2).x.shape == (3, 2, 16)
    assert model.forecast(x[:2, :1], 3).x.shape == (3, 1, 16)
    assert "emission.out.weight" not in grads


def test_an_encoder_stands_where_the_embedding_does() -> None:
    """Given as a module with the same weights, the same numbers; likewise the decoder, on (z, d)."""
    embedded = make("embedded")
    linear, hidden = nn.Linear(X, 6), nn.Linear(Z + D, D)
    output = nn.Linear(D, X)
    model = VSSN(
        X, D, Z, W, embed_size=6, encoder=nn.Sequential(linear, nn.Tanh()),
        decoder=nn.Sequential(hidden, nn.Tanh(), output),
    ).double()  # fmt: skip
    renamed = {
        name.replace("encoder.linear", "encoder.0")
        .replace("emission.hidden", "decoder.0")
        .replace("emission.out", "decoder.2"): tensor
        for name, tensor in embedded.state_dict().items()
    }
    model.load_state_dict(renamed)
    given = batch(model)
    assert_all_close(flat(model(**given, lengths=LENGTHS)), flat(embedded(**given, lengths=LENGTHS)), 1e-12)


# ---- Generation and forecasts --------------------------------------------------------------------


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
    shapes = ((3, model.layer.hidden_size), (3, model.layer.latent_size), (3, model.frame_size))
    assert tuple(part.shape for part in first.state) == shapes
    assert not first.x.requires_grad
    torch.manual_seed(6)
    assert not torch.equal(model.generate(6, 3, u=u).x, first.x)
    if "masked" in name:
        assert torch.equal(first.state.x_last, torch.cat((first.x[-1], torch.ones(3, X)), -1))
    else:
        assert torch.equal(first.state.x_last, first.x[-1])


@pytest.mark.parametrize("name", ["vssn", "both", "dkf", "masked"])
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


# ---- As a module ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["vssn", "initial_state", "universal", "embedded_both", "smoothing"])
def test_copies_pickles_and_state_dicts(name: str) -> None:
    model = make(name)
    given = batch(model)
    want = model(**given, lengths=LENGTHS).elbo
    sizes, options = MODELS[name]
    fresh = VSSN(X, *sizes, **options).double().eval()
    fresh.load_state_dict(model.state_dict())
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), fresh):
        assert_equal("elbo", other(**given, lengths=LENGTHS).elbo, want)
    assert all(parameter.is_contiguous() for parameter in model.parameters())


def test_dtypes() -> None:
    double = make("vssn")
    single = copy.deepcopy(double).float()
    given = batch(double)
    low = {"x": given["x"].float(), "noise": tuple(eps.float() for eps in given["noise"])}
    out = single(**low, lengths=LENGTHS)
    want = double(**given, lengths=LENGTHS)
    assert out.elbo.dtype == torch.float32
    assert {part.dtype for part in out.state} == {torch.float32}
    assert_close("elbo in float32", out.elbo, want.elbo, 1e-5)
    grads = parameter_gradients(single, out.loss)
    assert_all_close(grads, parameter_gradients(double, want.loss), 1e-4, "grad of")


def test_autocast() -> None:
    model = make("vssn", torch.float32)
    given = batch(model)
    want = model(**given, lengths=LENGTHS)
    with torch.autocast("cpu", torch.bfloat16):
        out = model(**given, lengths=LENGTHS)
    assert_close("elbo", out.elbo.float(), want.elbo, 2e-2)
    grads = parameter_gradients(model, out.loss)
    for name, grad in parameter_gradients(model, want.loss).items():
        assert grads[name].dtype == torch.float32
        assert_close(f"grad of {name}", grads[name], grad, 0.1)


def test_new_models_start_sensibly() -> None:
    """Finite loss near X log 2 for binary frames, orthogonal recurrent weights, no parameter left unused."""
    model = VSSN(88, 64, 16, 8)
    x = (torch.rand(20, 8, 88) > 0.9).float()
    out = model(x)
    assert abs(out.reconstruction.mean() + 88 * math.log(2)) < 8
    assert (out.kl_z.mean() < 5) & (out.kl_w.mean() < 5)
    for gate in model.layer.duration.weight_hh.chunk(3):
        assert_close("gate", gate @ gate.T, torch.eye(64), 1e-5)
    out.loss.backward()
    unused = [
        name for name, parameter in model.named_parameters() if parameter.grad is None or not parameter.grad.any()
    ]
    assert unused == []


@pytest.mark.parametrize("backend", [t.backend for t in targets(torch.float32) if t.device == "cpu"])
def test_training_is_the_same_on_every_backend(backend: str) -> None:
    """Thirty steps of Adam with the same noise: the same losses as with the reference."""
    losses, models = {}, {}
    for name in ("reference", backend):
        model = make("both", torch.float32).train()
        optimizer = torch.optim.Adam(model.parameters(), 1e-2)
        given = batch(model)
        losses[name], models[name] = [], model
        with vssn_kernels.use_backend(name):
            for _ in range(30):
                loss = model(**given, lengths=LENGTHS).loss
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                losses[name].append(loss.detach())
    assert losses[backend][-1] < 0.9 * losses[backend][0], "training does something"
    assert_close("losses", torch.stack(losses[backend]), torch.stack(losses["reference"]), 1e-4)
    assert_all_close(dict(models[backend].named_parameters()), dict(models["reference"].named_parameters()), 5e-3)


@pytest.mark.parametrize("name", ["vssn", "both", "srnn_residual", "storn", "dkf_external", "masked", "universal"])
def test_compiled(name: str) -> None:
    """fullgraph: outputs and gradients, with lengths, noise, mask and a state in and out."""
    model = make(name, torch.float32).train()
    given = batch(model)
    mask = a_mask() if name == "masked" else None
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    state = model(**given, lengths=LENGTHS).state
    state = State(*(part.detach() for part in state))
    torch.manual_seed(3)
    out = compiled(**given, lengths=LENGTHS, mask=mask, state=state)
    torch.manual_seed(3)
    want = model(**given, lengths=LENGTHS, mask=mask, state=state)
    tolerance = 1e-5
    if name == "universal":  # draws its weights inside
        model.eval()
        out, want = (net(**given, lengths=LENGTHS, state=state) for net in (compiled, model))
    assert_all_close(flat(out), flat(want), tolerance)
    assert_all_close(parameter_gradients(model, out.loss), parameter_gradients(model, want.loss), 1e-4)


def test_compiled_with_dynamic_shapes() -> None:
    """Two numbers of steps and of sequences through one compiled model."""
    model = make("srnn", torch.float32)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager", dynamic=True)
    for steps, rows in ((5, 4), (3, 6)):
        given = batch(model, steps, rows)
        lengths = torch.arange(rows).clamp(max=steps)
        out, want = (net(**given, lengths=lengths) for net in (compiled, model))
        assert_all_close(flat(out), flat(want), 1e-5)
        assert_all_close(parameter_gradients(model, out.loss), parameter_gradients(model, want.loss), 1e-4)


@pytest.mark.slow
def test_compiled_with_inductor() -> None:
    model = make("both", torch.float32)
    given = batch(model)
    out = torch.compile(model, fullgraph=True)(**given, lengths=LENGTHS)
    want = model(**given, lengths=LENGTHS)
    assert_all_close(flat(out), flat(want), 1e-5)
    assert_all_close(parameter_gradients(model, out.loss), parameter_gradients(model, want.loss), 1e-4)


# ---- Errors --------------------------------------------------------------------------------------

WRONG_SETTINGS: list[tuple[dict[str, Any], str]] = [
    ({"hidden_size": 0, "latent_size": 0}, "hidden_size and latent_size must not both be 0"),
    ({"hidden_size": 0, "noise_size": 2, "mlp_size": 3, "backward_size": 3}, "noise_size must be 0 with hidden_size=0"),
    ({"hidden_size": 0, "noise_size": 0}, "mlp_size and backward_size must be given with hidden_size=0"),
    ({"hidden_size": 0, "noise_size": 0, "mlp_size": 3}, "mlp_size and backward_size must be given"),
    ({"hidden_size": 0, "noise_size": 0, "backward_size": 3}, "mlp_size and backward_size must be given"),
    (
        {
            "hidden_size": 0,
            "noise_size": 0,
            "mlp_size": 3,
            "backward_size": 3,
            "universal": "gaussian",
            "num_sequences": 2,
        },
        "universal must be 'point' with hidden_size=0",
    ),
    ({"x_size": 0}, "x_size must be an int of at least 1, got 0"),
    ({"x_size": 2.0}, "x_size must be an int of at least 1, got 2.0"),
    ({"hidden_size": -1}, "hidden_size must be an int of at least 0, got -1"),
    ({"latent_size": "3"}, "latent_size must be an int of at least 0, got '3'"),
    ({"noise_size": True}, "noise_size must be an int of at least 0, got True"),
    ({"mlp_size": 0}, "mlp_size must be an int of at least 1, got 0"),
    ({"backward_size": 0}, "backward_size must be an int of at least 1, got 0"),
    ({"embed_size": 0}, "embed_size must be an int of at least 1, got 0"),
    ({"mixture_size": 0, "likelihood": "mixture"}, "mixture_size must be an int of at least 1, got 0"),
    (
        {"likelihood": "poisson"},
        "likelihood must be one of bernoulli, gaussian, mixture, nade, ar_gaussian, got 'poisson'",
    ),
    ({"control": "next"}, "control must be one of previous, external, both, none, got 'next'"),
    ({"control": None}, "control must be one of previous, external, both, none, got None"),
    ({"control": "external"}, "control_size must be an int of at least 1, got 0"),
    ({"control": "both", "embed_size": 3}, "control_size must be an int of at least 1, got 0"),
    ({"control": "both", "control_size": -1, "embed_size": 3}, "control_size must be an int of at least 1, got -1"),
    ({"control": "previous", "control_size": 2}, "control_size must be 0 with control='previous'"),
    (
        {"control": "previous", "control_size": 2, "embed_size": 3},
        "control_size must be 0 with control='previous', got 2",
    ),
    ({"activation": "gelu"}, "activation must be one of tanh, relu, leaky_relu, silu, got 'gelu'"),
    ({"universal": "laplace"}, "universal must be one of point, gaussian, got 'laplace'"),
    ({"universal": "gaussian"}, "num_sequences must be given with universal='gaussian'"),
    ({"universal": "gaussian", "num_sequences": 0}, "num_sequences must be an int of at least 1, got 0"),
    (
        {"universal": "gaussian", "num_sequences": 3, "prior_std": 0.0},
        "prior_std must be a finite number above 0, got 0.0",
    ),
    ({"prior_std": float("nan")}, "prior_std must be a finite number above 0, got nan"),
    ({"objective": "iwae"}, "objective must be one of elbo, paper, got 'iwae'"),
    ({"free_bits": -0.1}, "free_bits must be"),
    ({"free_bits": float("nan")}, "free_bits must be"),
    ({"free_bits": "some"}, "free_bits must be"),
    ({"min_logvar": float("nan")}, "min_logvar must be"),
    ({"min_logvar": "low"}, "min_logvar must be"),
    ({"min_logvar_x": float("inf"), "likelihood": "gaussian"}, "min_logvar_x must be"),
    ({"encoder": nn.Identity()}, "embed_size must be given with encoder"),
]


@pytest.mark.parametrize(("settings", "message"), WRONG_SETTINGS, ids=lambda value: str(value)[:50])
def test_wrong_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, TypeError)) as caught:
        VSSN(**{"x_size": X, "hidden_size": D, "latent_size": Z, "noise_size": W} | settings)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def zeros(*shape: int) -> Tensor:
    return torch.zeros(shape)


WRONG_CALLS: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"x": [1.0]}, TypeError, "x must be a torch.Tensor, got list"),
    ({"x": zeros(T, B)}, ValueError, f"x must have shape [T, B, X] with X = {X}, got [5, 4]"),
    ({"x": zeros(T, B, X + 1)}, ValueError, f"x must have shape [T, B, X] with X = {X}, got [5, 4, 5]"),
    ({"x": zeros(T, B, X).long()}, TypeError, "x must be floating point, got torch.int64"),
    ({"u": None}, ValueError, "u is missing"),
    ({"u": zeros(T, B, U + 1)}, ValueError, "u must have shape [T, B, U] = [5, 4, 2], got [5, 4, 3]"),
    ({"u": zeros(T - 1, B, U)}, ValueError, "u must have shape [T, B, U] = [5, 4, 2], got [4, 4, 2]"),
    ({"u": 3}, TypeError, "u must be a torch.Tensor, got int"),
    ({"lengths": torch.tensor([1, 2])}, ValueError, "lengths must have shape [B] = [4], got [2]"),
    ({"lengths": [1, 2, 3, 4]}, TypeError, "lengths must be a torch.Tensor, got list"),
    ({"lengths": torch.tensor([1, 2, 3, 6])}, ValueError, "lengths must lie in [0, T] = [0, 5], got 6"),
    ({"lengths": torch.tensor([1, 2, 3, -1])}, ValueError, "lengths must lie in [0, T] = [0, 5], got -1"),
    ({"lengths": torch.tensor([1.0, 2, 3, 4])}, TypeError, "lengths must be int64, got torch.float32"),
    ({"lengths": torch.tensor([1, 2, 3, 4]).int()}, TypeError, "lengths must be int64, got torch.int32"),
    ({"state": zeros(B, D)}, TypeError, "state must be a tuple (d, z, x_last) or None, got Tensor"),
    ({"state": (zeros(B, D), zeros(B, Z))}, TypeError, "state must be a tuple (d, z, x_last) or None"),
    ({"state": (zeros(B, D), zeros(B, Z + 1), zeros(B, X))}, ValueError, "state's z must have shape [B, Z] = [4, 3]"),
    ({"state": (zeros(B, D), zeros(B, Z), None)}, TypeError, "state's x_last must be a torch.Tensor, got NoneType"),
    ({"noise": zeros(T, B, W)}, TypeError, "noise must be a tuple (eps_w, eps_z) or None, got Tensor"),
    ({"noise": (zeros(T, B, W),)}, TypeError, "noise must be a tuple (eps_w, eps_z) or None"),
    ({"noise": (zeros(T, B, Z), zeros(T, B, W))}, ValueError, "noise's eps_w must have shape [T, B, W] = [5, 4, 2]"),
    ({"noise": (zeros(T, B, W), None)}, TypeError, "noise's eps_z must be a torch.Tensor, got NoneType"),
    ({"mask": zeros(T, B)}, TypeError, "mask must be a bool torch.Tensor, got torch.float32"),
    ({"mask": [True]}, TypeError, "mask must be a bool torch.Tensor, got list"),
    ({"mask": zeros(T, B, 1).bool()}, ValueError, "mask must have shape [T, B] or [T, B, X] as x has, got [5, 4, 1]"),
    ({"mask": zeros(B, T).bool()}, ValueError, "mask must have shape [T, B] or [T, B, X] as x has, got [4, 5]"),
]


@pytest.mark.parametrize(("arguments", "error", "message"), WRONG_CALLS, ids=lambda value: str(value)[:40])
def test_wrong_calls(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    model = make("both", torch.float32)
    with pytest.raises(error) as caught:
        model(**{"x": zeros(T, B, X), "u": zeros(T, B, U)} | arguments)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["rnn", "storn", "dkf", "srnn"])
@pytest.mark.parametrize("wrong", [-1, T + 1])
def test_lengths_are_checked_in_every_ablation(name: str, wrong: int) -> None:
    model = make(name)
    with pytest.raises(ValueError, match=rf"lengths must lie in \[0, T\] = \[0, {T}\], got {wrong}"):
        model(**batch(model), lengths=torch.tensor([1, wrong, 2, 3]))


def test_a_model_without_external_control_refuses_one() -> None:
    model = make("vssn", torch.float32)
    with pytest.raises(ValueError, match="u must be None: this model has no external control"):
        model(zeros(T, B, X), zeros(T, B, U))


def test_batch_first_errors_speak_of_the_callers_layout() -> None:
    model = make("both", torch.float32, batch_first=True)
    x, u = zeros(B, T, X), zeros(B, T, U)
    with pytest.raises(ValueError, match=r"x must have shape \[B, T, X\]"):
        model(zeros(B, X), u)
    with pytest.raises(ValueError, match=r"u must have shape \[B, T, U\] = \[4, 5, 2\], got \[5, 4, 2\]"):
        model(x, zeros(T, B, U))
    with pytest.raises(ValueError, match=r"mask must have shape \[B, T\] or \[B, T, X\] as x has, got \[5, 4\]"):
        model(x, u, mask=zeros(T, B).bool())
    with pytest.raises(ValueError, match=r"noise's eps_w must have shape \[B, T, W\] = \[4, 5, 2\], got \[5, 4, 2\]"):
        model(x, u, noise=(zeros(T, B, W), zeros(T, B, Z)))


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


def test_modules_of_the_wrong_width_are_named() -> None:
    x = torch.rand(3, 2, 5)
    with pytest.raises(
        ValueError, match=r"what encoder returns must have shape \[N, embed_size\] = \[8, 4\], got \[8, 3\]"
    ):
        VSSN(5, 4, 3, embed_size=4, encoder=torch.nn.Linear(5, 3))(x)
    with pytest.raises(ValueError, match=r"what decoder returns must have shape .* = \[6, 5\], got \[6, 2\]"):
        VSSN(5, 4, 3, decoder=torch.nn.Linear(7, 2))(x)


@pytest.mark.parametrize("make", [lambda: VSSN(5, 4, 3), lambda: VSSNLayer(5, 4, 3)])
def test_x_of_another_dtype_than_the_parameters(make) -> None:
    with pytest.raises(TypeError, match=r"x must be torch.float32 as the parameters are, got torch.float64; convert"):
        make()(torch.rand(3, 2, 5).double())


def test_universal_weights_are_drawn_once_for_a_generated_sequence() -> None:
    model = VSSN(5, 4, 0, universal="gaussian", num_sequences=3, control="none", learn_initial_state=True).train()
    with torch.no_grad():
        model.layer.weight_hh_logvar.fill_(1.0)
        model.layer.d_0.fill_(0.5)
    torch.manual_seed(0)
    draws = []
    own = model.layer.duration_weight
    model.layer.duration_weight = lambda: draws.append(own()) or draws[-1]
    model.generate(7, batch_size=2)
    assert len(draws) == 1
