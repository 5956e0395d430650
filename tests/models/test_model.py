"""VSSN against the same model written step by step: values, gradients, objectives, state, masks, ablations."""

from __future__ import annotations

import math

import pytest
import torch
from small_models import (
    LENGTHS,
    MODELS,
    TOLERANCE,
    B,
    D,
    T,
    W,
    X,
    Z,
    a_mask,
    batch,
    flat,
    make,
    parameter_gradients,
)
from step_by_step import PlainModel
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence

from vssn import VSSN, State
from vssn_kernels.testing import assert_all_close, assert_close, assert_equal

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
        draws = torch.stack([layer.duration.weight_hh + layer.weight_noise() for _ in range(4000)])
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
