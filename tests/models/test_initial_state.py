"""initial_state="inferred": d_0 as a latent of the sequence, against the model written step by step; its KL, once a
sequence, in all that is reported; and the other two kinds by both of their names.

The bounds: inference/test_importance; filtering and prediction: inference/test_prediction.
"""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from small_models import (
    INFERRED,
    LENGTHS,
    TOLERANCE,
    B,
    D,
    T,
    U,
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

from vssn import VSSN, State, VSSNLayer, evaluate, fit
from vssn.data.batching import SequenceBatch
from vssn.errors import ConfigError, DataError
from vssn.inference.scoring import draw_noise, evaluate_bound
from vssn.training.checkpoints import load_model
from vssn.training.config import check_config
from vssn_kernels.testing import assert_all_close, assert_close, assert_equal

each_model = pytest.mark.parametrize("name", INFERRED)


def kl_0(model: VSSN, given: dict[str, Any], lengths: torch.Tensor | None = None) -> torch.Tensor:
    """What kl_w of the first frame holds beyond a run whose d_0 was given: [B]."""
    shared = dict(given, lengths=lengths)
    encoded = model.prepare(given["x"], given["u"], lengths)
    mu, logvar = model.layer.infer_initial(encoded.embedded, encoded.controls, lengths, None)
    d = model.layer.map_initial(mu + torch.exp(logvar / 2) * given["noise"][2])
    state = State(d, d.new_zeros(len(d), model.layer.latent_size), d.new_zeros(len(d), model.frame_size))
    return (model(**shared).kl_w - model(**shared, state=state).kl_w).sum(0)


@each_model
def test_equals_the_model_step_by_step(name: str) -> None:
    """Every output, the state and the gradient of every parameter, with lengths (0 among them)."""
    model = make(name)
    given, mask = batch(model), a_mask() if "masked" in name else None
    out = model(**given, lengths=LENGTHS, mask=mask)
    want = PlainModel(model).run(given["x"], given["u"], LENGTHS, given["noise"], mask)
    got = flat(out)
    got.pop("loss")
    assert_all_close(got, {part: want[part] for part in got}, TOLERANCE)
    weights = torch.linspace(0.5, 1.5, B * D, dtype=torch.float64).view(B, D)  # the state of length 0 has one too
    losses = [part["elbo"].sum() + (weights * part["d"]).sum() for part in (flat(out), want)]
    grads = parameter_gradients(model, losses[0])
    assert_all_close(grads, parameter_gradients(model, losses[1]), 1e-10, "grad of")
    assert all(bool(grad.any()) for part, grad in grads.items() if "initial" in part)


@each_model
def test_its_divergence_is_charged_once_a_sequence(name: str) -> None:
    model = make(name)
    given = batch(model)
    own = kl_0(model, given, LENGTHS)
    assert (own[LENGTHS > 0] > 1e-3).all()
    assert own[1] == 0
    out = model(**given, lengths=LENGTHS)
    assert_close("elbo", out.elbo, (out.reconstruction - out.kl_z - out.kl_w).sum(0), 1e-12)
    if name == "inferred_universal":
        return
    for kl_weight in (0.0, 0.3, 1.0):
        weighted = (kl_weight * (out.kl_z + out.kl_w) - out.reconstruction).sum() / LENGTHS.sum()
        assert_close("loss", model(**given, lengths=LENGTHS, kl_weight=kl_weight).loss, weighted, 1e-12)
    for factor in (0.0, 0.25, torch.tensor(0.25)):
        apart = model(**given, lengths=LENGTHS, kl_weight=0.5, initial_kl_weight=factor)
        less = (0.5 * (out.kl_z + out.kl_w) - out.reconstruction).sum() + (float(factor) - 0.5) * own.sum()
        assert_close("loss", apart.loss, less / LENGTHS.sum(), 1e-12)
        assert_equal("elbo", apart.elbo, out.elbo)
    paper = make(name, objective="paper")(**given, lengths=LENGTHS)
    halved = ((out.kl_z + out.kl_w) / 2 - out.reconstruction).sum() / LENGTHS.sum()
    assert_close("the paper's loss", paper.loss, halved, 1e-12)
    assert_equal("elbo", paper.elbo, out.elbo)


def test_a_factor_of_its_divergence_that_cannot_be_is_named() -> None:
    given = batch(make("inferred"))
    with pytest.raises(ValueError, match="initial_kl_weight must be finite, got nan"):
        make("inferred")(**given, initial_kl_weight=math.nan)
    own = make("both")
    with pytest.raises(ValueError, match="initial_kl_weight must be left out without initial_state='inferred'"):
        own(**batch(own), initial_kl_weight=1.0)
    on_particles = make("inferred", objective="iwae", particles=2)
    with pytest.raises(ValueError, match="initial_kl_weight must be left out with objective='iwae'"):
        on_particles(given["x"], given.get("u"), initial_kl_weight=1.0)


def test_a_rise_of_its_own_goes_with_an_inferred_start_alone() -> None:
    rise = {"kl_start": 0.1, "initial_kl_anneal_updates": 10}
    base: dict[str, Any] = {"hidden_size": 4, "latent_size": 2}
    inferred = base | {"initial_state": "inferred"}
    on_particles = inferred | {"objective": "iwae", "particles": 2}
    for model, training, message in (
        (base, rise, "expected none with a model that infers no start, got 10; leave it out, or take model"),
        (on_particles, rise, "expected none with model.objective 'iwae', whose weights know no KL of a start, got 10"),
        (inferred, rise | {"constraint": {"target": -1.0}}, "expected none with training.constraint"),
        (inferred, {"initial_kl_anneal_updates": 10}, "initial_kl_anneal_updates 10 has no effect without a start"),
        (inferred, {"initial_kl_anneal_after": 10}, "initial_kl_anneal_after 10 has no effect without a rise"),
    ):
        with pytest.raises(ConfigError, match=message):
            check_config({"data": {"set": "pendulum"}, "model": model, "training": training}, "here").build_model(4)
    dvbf = {"name": "dvbf", "latent_size": 2, "noise_size": 2, "control": "none"}
    for model in (inferred, dvbf):
        check_config({"data": {"set": "pendulum"}, "model": model, "training": rise}, "here").build_model(4)


def test_free_bits_are_those_of_w_and_z_alone() -> None:
    model, free = make("inferred"), make("inferred", free_bits=50.0)
    given = batch(model)
    own, out = kl_0(model, given), model(**given)
    want = (2 * 50.0 * T * B + own.sum() - out.reconstruction.sum()) / (T * B)
    assert_close("loss", free(**given).loss, want, 1e-12)


@each_model
def test_a_state_that_is_given_is_not_inferred(name: str) -> None:
    model = make(name)
    given = batch(model)
    state = State(*(torch.randn(B, size).double() for size in (D, model.layer.latent_size, model.frame_size)))
    got = flat(model(**given, lengths=LENGTHS, state=state))
    want = PlainModel(model).run(given["x"], given["u"], LENGTHS, given["noise"], None, state)
    got.pop("loss")
    assert_all_close(got, {part: want[part] for part in got}, TOLERANCE)
    other = dict(given, noise=(*given["noise"][:2], 1 + given["noise"][2]))
    assert_equal("eps_0 has no part in it", model(**other, lengths=LENGTHS, state=state).elbo, got["elbo"])
    grads = parameter_gradients(model, model(**given, state=state).loss)
    own = [part for part in grads if "initial_" in part]
    assert own
    assert not any(grads[part].any() for part in own)


@each_model
def test_padding_and_what_stands_in_it_change_nothing(name: str) -> None:
    model = make(name)
    given = batch(model)
    padding = (torch.arange(T)[:, None] >= LENGTHS)[..., None]
    spoilt = {part: None if given[part] is None else given[part].masked_fill(padding, torch.nan) for part in "xu"}
    noise = (*(part.masked_fill(padding, torch.nan) for part in given["noise"][:2]), given["noise"][2])
    whole, dirty = model(**given, lengths=LENGTHS), model(**spoilt, noise=noise, lengths=LENGTHS)
    assert_all_close(flat(dirty), flat(whole), 0.0)
    for row, length in enumerate(LENGTHS.tolist()):
        one = slice(row, row + 1)
        u = None if given["u"] is None else given["u"][:length, one]
        noise = (*(part[:length, one] for part in given["noise"][:2]), given["noise"][2][one])
        alone = model(given["x"][:length, one], u, noise=noise)
        assert_close(f"elbo of {row}", whole.elbo[one], alone.elbo, 1e-12)
        for part in State._fields:
            assert_close(f"{part} of {row}", getattr(whole.state, part)[one], getattr(alone.state, part), 1e-12)


@pytest.mark.parametrize(("steps", "rows"), [(0, B), (T, 0), (0, 0)])
@each_model
def test_empty_batches(name: str, steps: int, rows: int) -> None:
    model = make(name)
    for lengths in (None, torch.zeros(rows, dtype=torch.int64)):
        out = model(**batch(model, steps, rows), lengths=lengths)
        assert out.loss.item() == 0
        assert out.kl_w.shape == (steps, rows)
        assert out.state.d.shape == (rows, D)
        out.loss.backward()


def test_the_layer_charges_it_too() -> None:
    layer = VSSNLayer(X, D, Z, W, initial_state="inferred", batch_first=True).double()
    x, noise = torch.randn(B, T, X).double(), [torch.randn(B, T, size).double() for size in (W, Z)]
    noise.append(torch.randn(B, D).double())
    out = layer(x, noise=noise)
    given = layer(x, (*layer(x[:, :0], noise=[*(part[:, :0] for part in noise[:2]), noise[2]]).state,), noise=noise)
    assert out.kl.shape == (B, T)
    assert_close("only of the first frame", out.kl[:, 1:].sum(), out.kl.sum() - out.kl[:, 0].sum(), 1e-12)
    assert (out.kl[:, 0] - given.kl[:, 0]).abs().min() > 1e-4
    assert "initial_state='inferred', S=5" in repr(layer)


def test_generation_starts_from_the_prior() -> None:
    model, count = make("inferred_smoothing"), 20000
    torch.manual_seed(0)
    start = model.generate(0, count).state
    plain = PlainModel(model).layer
    prior, weight = plain.initial_prior(1), plain.weights["initial_map.weight"]
    mean = plain.initial_map(prior.mean)[0]
    covariance = weight @ torch.diag(prior.variance[0]) @ weight.T
    error = (start.d.var(0) / count).sqrt()
    assert ((start.d.mean(0) - mean).abs() < 5 * error).all()
    assert_close("covariance", torch.cov(start.d.T), covariance.detach(), 0.05)
    assert not start.z.any()
    assert model.generate(3, 2).x.shape == (3, 2, X)
    assert model.forecast(batch(model)["x"], 3).x.shape == (3, B, X)
    assert model.forecast(batch(model)["x"], 3, samples=2).samples.isfinite().all()


def test_batch_first_is_the_transposed_model() -> None:
    model, swapped = make("inferred_masked"), make("inferred_masked", batch_first=True)
    given, mask = batch(model), a_mask()
    out = model(**given, lengths=LENGTHS, mask=mask)
    noise = (*(part.transpose(0, 1) for part in given["noise"][:2]), given["noise"][2])
    other = swapped(
        given["x"].transpose(0, 1), given["u"].transpose(0, 1), LENGTHS, noise=noise, mask=mask.transpose(0, 1)
    )
    assert_equal("elbo", other.elbo, out.elbo)
    assert_equal("kl_w", other.kl_w.transpose(0, 1), out.kl_w)


@pytest.mark.parametrize("name", ["inferred", "inferred_smoothing"])
def test_compiled_with_hooks_in_half_precision_and_copied(name: str) -> None:
    model = make(name, torch.float32)
    given = batch(model)
    want = model(**given, lengths=LENGTHS)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert_all_close(flat(compiled(**given, lengths=LENGTHS)), flat(want), 1e-5)
    calls: list[str] = []
    model.layer.initial_posterior.out.register_forward_hook(lambda *_: calls.append("out"))
    assert_close("elbo", model(**given, lengths=LENGTHS).elbo, want.elbo, 1e-5)
    assert calls == ["out"]
    with torch.autocast("cpu", torch.bfloat16):
        assert_close("elbo", model(**given, lengths=LENGTHS).elbo, want.elbo, 0.1)
    model.bfloat16()
    low = {part: given[part] if given[part] is None else given[part].bfloat16() for part in ("x", "u")}
    half = model(**low, noise=tuple(eps.bfloat16() for eps in given["noise"]), lengths=LENGTHS)
    assert_close("elbo", half.elbo.float(), want.elbo, 0.2)
    other = copy.deepcopy(model)
    other.reset_parameters()
    assert not other.layer.initial_mu.any()
    assert not other.layer.initial_logvar.any()
    other.load_state_dict(model.state_dict())


def test_scores_take_its_noise() -> None:
    model = make("inferred", torch.float32)
    x = batch(model)["x"]
    noise = draw_noise(model, x, torch.Generator().manual_seed(0))
    assert [list(part.shape) for part in noise] == [[T, B, W], [T, B, Z], [B, D]]
    scores = evaluate(model, [SequenceBatch(x, LENGTHS)])
    with torch.no_grad():
        out = model(x, lengths=LENGTHS, noise=noise)
    assert scores.micro == pytest.approx(float(out.elbo.sum() / LENGTHS.sum()), rel=1e-6)
    assert scores.kl_w == pytest.approx(float(out.kl_w.sum() / LENGTHS.sum()), rel=1e-6)
    assert evaluate_bound(model, [SequenceBatch(x, LENGTHS)], particles=4).frames == 9


def test_learned_by_both_of_its_names() -> None:
    old, new = make("vssn", learn_initial_state=True), make("vssn", initial_state="learned")
    both = make("vssn", initial_state="learned", learn_initial_state=True)
    given = batch(old)
    assert {*old.state_dict()} == {*new.state_dict()} == {*both.state_dict()}
    assert "layer.d_0" in old.state_dict()
    assert_equal("elbo", new(**given).elbo, old(**given).elbo)
    assert_equal("elbo", make("vssn", initial_state="zeros")(**given).elbo, make("vssn")(**given).elbo)


@pytest.mark.parametrize("make_one", [VSSN, VSSNLayer])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"initial_state": "random"}, r"^initial_state must be one of zeros, learned, inferred, got 'random'$"),
        ({"initial_state": "inferred", "learn_initial_state": True}, r"^initial_state must be 'learned' with learn_in"),
        ({"initial_state": "zeros", "learn_initial_state": True}, r"with learn_initial_state=True, .* got 'zeros'; le"),
        ({"initial_size": 3}, r"^initial_size must be None unless initial_state='inferred', got 3$"),
        ({"initial_state": "inferred", "initial_size": 0}, r"^initial_size must be an int of at least 1, got 0$"),
        (
            {"initial_state": "inferred", "hidden_size": 0, "noise_size": 0, "mlp_size": 3, "backward_size": 3},
            r"^initial_state must be 'zeros' or 'learned' with hidden_size=0: there is no d_0 to infer$",
        ),
    ],
)
def test_what_is_not_possible_is_named(make_one: type, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_one(X, **{"hidden_size": D, "latent_size": Z, "noise_size": W} | options)


def test_noise_that_does_not_fit_is_named() -> None:
    model = make("inferred", torch.float32)
    given = batch(model)
    x, (eps_w, eps_z, eps_0) = given["x"], given["noise"]
    with pytest.raises(TypeError, match=r"^noise must be a tuple \(eps_w, eps_z, eps_0\) or None, got tuple of 2"):
        model(x, noise=(eps_w, eps_z))
    with pytest.raises(ValueError, match=r"^noise's eps_0 must have shape \[B, S\] = \[4, 5\], got \[4, 4\]"):
        model(x, noise=(eps_w, eps_z, eps_0[:, :4]))
    with pytest.raises(DataError, match=r"^noise's eps_0 must be finite, got nan"):
        model(x, noise=(eps_w, eps_z, torch.full_like(eps_0, torch.nan)))
    with pytest.raises(TypeError, match=r"^noise must be a tuple \(eps_w, eps_z\) or None, got tuple of 3"):
        make("vssn", torch.float32)(x, noise=(eps_w, eps_z, eps_0))


def test_controls_reach_it() -> None:
    """q(d_0 | x, u) sees the external control of the whole sequence."""
    model = make("inferred_storn")
    given = batch(model)
    changed = given["u"].clone()
    changed[-1] += torch.ones(B, U).double()
    own = dict(given, u=changed)
    assert (model(**own).kl_w[0] - model(**given).kl_w[0]).abs().min() > 1e-8


def test_a_configuration_has_it_and_chunks_carry_it_on(tmp_path: Path) -> None:
    """Of a sequence in chunks only the first infers d_0."""
    model = {"hidden_size": 6, "latent_size": 2, "noise_size": 2, "initial_state": "inferred", "initial_size": 3}
    training = {"max_epochs": 1, "chunk_length": 4, "output": str(tmp_path / "run")}
    x = (torch.rand(6, 10, 3) > 0.5).float()
    result = fit({"model": model, "training": training}, (x, x, x))
    best, config = load_model(result.best_path)
    assert (config.model.initial_state, best.layer.initial_size) == ("inferred", 3)
    assert "initial_state: inferred" in (tmp_path / "run" / "config.yaml").read_text()
    assert result.valid.kl_w > 0
    with pytest.raises(ConfigError, match="model: initial_state must be 'learned' with learn_initial_state=True"):
        check_config({"data": {"set": "given"}, "model": model | {"learn_initial_state": True}}, "here")
    with pytest.raises(ConfigError, match=r"model.initial_state: .*'zeros', 'learned' or 'inferred'"):
        check_config({"data": {"set": "given"}, "model": model | {"initial_state": "random"}}, "here")
