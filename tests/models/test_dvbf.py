"""DVBF-LL against Karl's equations written frame by frame: values and gradients, lengths, chunks, generation and
filtering, files."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from dvbf_step_by_step import PlainDVBF
from small_dvbfs import DVBFS, LENGTHS, B, T, U, W, X, Z, batch, make
from small_models import parameter_gradients
from torch import Tensor

import vssn
from vssn import DVBF, State
from vssn.export import FilterStep, GenerationStep
from vssn.inference.filtering import latent_states, one_step_predictions, rollouts
from vssn.inference.streaming import ParticleFilter
from vssn_kernels.testing import assert_all_close, assert_close, assert_equal

PARTS = ("reconstruction", "kl_z")
each_model = pytest.mark.parametrize("name", DVBFS)


def a_mask() -> Tensor:
    return torch.rand(T, B, X, generator=torch.Generator().manual_seed(3)) > 0.3


def a_state(model: DVBF) -> State:
    """Behind a frame."""
    source = torch.Generator().manual_seed(5)
    z, x = (torch.randn(B, size, generator=source, dtype=torch.float64) for size in (Z, model.seen_size))
    return State(z[:, :0], z, torch.cat((x, torch.ones(B, 1).double()), 1))


def part_of(given: dict[str, Any], frames: slice, columns: slice = slice(None)) -> dict[str, Any]:
    cut = {name: None if part is None else part[frames, columns] for name, part in given.items() if name != "noise"}
    return {**cut, "noise": tuple(part[frames, columns] for part in given["noise"])}


def of_row(given: dict[str, Any], row: int, length: int = T) -> tuple[Tensor, Tensor | None, Tensor]:
    """x, u and eps of one sequence."""
    u = None if given["u"] is None else given["u"][:length, row]
    return given["x"][:length, row], u, given["noise"][1][:length, row]


# ---- Against the model written frame by frame ----------------------------------------------------------


@pytest.mark.parametrize("carried", [False, True])
@each_model
def test_equals_the_model_frame_by_frame(name: str, carried: bool) -> None:
    """Every output, the state behind and the gradient of every parameter, with lengths (0 among them)."""
    model = make(name)
    given, mask = batch(model), a_mask() if name == "masked" else None
    state = a_state(model) if carried else None
    out = model(**given, lengths=LENGTHS, mask=mask, state=state)
    plain, total = PlainDVBF(model), torch.zeros(()).double()
    for row, length in enumerate(LENGTHS.tolist()):
        for part in PARTS:
            assert not getattr(out, part)[length:, row].any()
        if not length:
            assert out.elbo[row] == 0
            assert_equal("z of a sequence without a frame", out.state.z[row], a_state(model).z[row] * carried)
            continue
        want = plain.run(
            *of_row(given, row, length),
            None if mask is None else mask[:length, row],
            None if state is None else state.z[row],
        )
        for part in PARTS:
            assert_close(f"{part} of sequence {row}", getattr(out, part)[:length, row], want[part], 1e-12)
        assert_close("z", out.state.z[row], want["z"][-1], 1e-12)
        total = total + (want["reconstruction"] - want["kl_z"]).sum()
    assert_close("loss", out.loss, -total / LENGTHS.sum(), 1e-12)
    assert_close("elbo", out.elbo.sum(), total, 1e-12)
    assert not out.kl_w.any()
    assert out.state.d.shape == (B, 0)
    grads = parameter_gradients(model, out.loss)
    assert_all_close(grads, parameter_gradients(model, -total / LENGTHS.sum()), 1e-11, "grad of")
    of_start = [part for part in grads if part.startswith("initial_")]
    assert of_start
    for part, grad in grads.items():
        assert bool(grad.any()) != (carried and part in of_start), part


@each_model
def test_the_start_may_weigh_apart(name: str) -> None:
    """The KL of w_1 where a sequence starts, in the loss alone; nothing else of a chunk that goes on."""
    model, mask = make(name), a_mask() if name == "masked" else None
    given = {**batch(model), "lengths": LENGTHS, "mask": mask}
    for state in (None, a_state(model)):
        out = model(**given, state=state)
        first = out.kl_z[0].sum() if state is None else 0.0
        for factor in (0.0, 0.25, torch.tensor(0.25)):
            apart = model(**given, state=state, kl_weight=0.5, initial_kl_weight=factor)
            want = (0.5 * out.kl_z - out.reconstruction).sum() + (float(factor) - 0.5) * first
            assert_close("loss", apart.loss, want / LENGTHS.sum(), 1e-12)
            assert_equal("elbo", apart.elbo, out.elbo)
            assert_equal("kl_z", apart.kl_z, out.kl_z)
    paper = make(name, objective="paper")(**given, kl_weight=0.5, initial_kl_weight=0.0)
    out = model(**given)
    want = (0.25 * out.kl_z[1:].sum() - out.reconstruction.sum()) / LENGTHS.sum()
    assert_close("the paper's loss", paper.loss, want, 1e-12)


def test_a_weight_of_the_start_that_cannot_be_is_named() -> None:
    given = batch(make())
    with pytest.raises(ValueError, match="initial_kl_weight must be finite, got nan"):
        make()(**given, initial_kl_weight=float("nan"))
    with pytest.raises(ValueError, match="initial_kl_weight must be left out with objective='fivo'"):
        make(objective="fivo", particles=2)(given["x"], given["u"], initial_kl_weight=1.0)


@each_model
def test_latents_are_those_of_the_model_frame_by_frame(name: str) -> None:
    """Smoothed, and filtered: w_1 inferred anew from every prefix."""
    model = make(name)
    given, plain = batch(model), PlainDVBF(model)
    found = model.latents(given["x"], given["u"], noise=given["noise"])
    filtered = model.latents(given["x"], given["u"], noise=given["noise"], kind="filter")
    for row in range(B):
        want = plain.run(*of_row(given, row))
        for part in ("z", "w"):
            assert_close(part, getattr(found, part)[:, row], want[part], 1e-12)
            for stop in range(1, T + 1):
                last = plain.run(*of_row(given, row, stop))[part][-1]
                assert_close(f"{part}, filtered", getattr(filtered, part)[stop - 1, row], last, 1e-12)
    assert found.d.shape == (T, B, 0)
    for inference, kind in (("smoothing", "smooth"), ("filtering", "filter")):
        means = latent_states(model, given["x"], given["u"], inference=inference)
        assert_close(inference, means.z, model.latents(given["x"], given["u"], kind=kind).z, 1e-12)


# ---- Chunks, padding, generation -----------------------------------------------------------------------


@pytest.mark.parametrize("cut", [1, 3])
@each_model
def test_a_chunk_goes_on_from_the_state(name: str, cut: int) -> None:
    """Values of a pass that infers w_1 from the first chunk alone; a sequence without a frame yet starts later."""
    model = make(name)
    given, plain = batch(model), PlainDVBF(model)
    lengths = torch.tensor([cut, 0, cut, cut])
    first = model(**part_of(given, slice(cut)), lengths=lengths)
    second = model(**part_of(given, slice(cut, T)), state=first.state)
    rest = T - cut
    for row, length in enumerate(lengths.tolist()):
        before = plain.run(*of_row(given, row, cut))["z"][-1] if length else None
        x, u, eps = of_row(given, row)
        want = plain.run(x[cut:], None if u is None else u[cut:], eps[cut:], None, before)
        for part in PARTS:
            assert_close(part, getattr(second, part)[:rest, row], want[part], 1e-12)


def test_padding_and_what_stands_in_it_change_nothing() -> None:
    model = make()
    given = batch(model)
    padding = (torch.arange(T)[:, None] >= LENGTHS)[..., None]
    spoilt = {part: given[part].masked_fill(padding, torch.nan) for part in "xu"}
    noise = tuple(part.masked_fill(padding, torch.nan) for part in given["noise"])
    clean, dirty = model(**given, lengths=LENGTHS), model(**spoilt, noise=noise, lengths=LENGTHS)
    for part in PARTS:
        assert_equal(part, getattr(dirty, part), getattr(clean, part))
    grads = parameter_gradients(model, dirty.loss)
    assert_all_close(grads, parameter_gradients(model, clean.loss), 0.0, "grad of")


def test_a_transition_that_grows_reaches_no_gradient_from_padding() -> None:
    model = make()
    with torch.no_grad():
        model.transition.weight.mul_(1e40)
    given = batch(model, 12)
    loss = model(**given, lengths=torch.ones(B, dtype=torch.int64)).loss
    for part, grad in parameter_gradients(model, loss).items():
        assert grad.isfinite().all(), part


@each_model
def test_generation_draws_karls_model(name: str) -> None:
    """From N(0, I), frame by frame, and on from a state."""
    model = make(name)
    plain, u = PlainDVBF(model), batch(model, 3, 2)["u"]
    torch.manual_seed(0)
    out = model.generate(3, 2, u=u, sample=False)
    torch.manual_seed(0)
    noise = [torch.empty(1, 2, model.noise_size, dtype=torch.float64).normal_()[0] for _ in range(3)]
    for row in range(2):
        z = None
        for t in range(3):
            w, own = noise[t][row], [] if u is None else [u[t, row]]
            z = plain.network("initial_map", w) if z is None else plain.transition(z, own, w)
            mean = model.likelihood.mean(plain.network("emission", z))
            assert_close(f"frame {t}", out.mean[t, row], mean, 1e-12)
        assert_close("state", out.state.z[row], z, 1e-12)
    longer = model.generate(2, u=None if u is None else u[:2], state=out.state)
    assert longer.x.shape == (2, 2, X)


def test_a_rollout_goes_on_by_the_transition_alone() -> None:
    model = make()
    given, plain = batch(model), PlainDVBF(model)
    rolled = rollouts(model, given["x"], 2, given["u"], given["u"][:2])
    predicted = one_step_predictions(model, given["x"], given["u"])
    quiet = torch.zeros(T, W).double()
    for row in range(B):
        x, u, _ = of_row(given, row)
        z = plain.run(x, u, quiet)["z"][-1]
        for t in range(2):
            z = plain.transition(z, [given["u"][t, row]], quiet[0])
            assert_close("rollout", rolled[t, row], plain.network("emission", z)[:X], 1e-12)
        for t in range(1, T):
            z = plain.run(x[:t], u[:t], quiet)["z"][-1]
            z = plain.transition(z, [u[t]], quiet[0])
            assert_close("prediction", predicted[t - 1, row], plain.network("emission", z)[:X], 1e-12)


# ---- What other models do too --------------------------------------------------------------------------


def test_a_particle_filter_proposes_from_the_posterior() -> None:
    model = make()
    given, plain = batch(model, 3, 2), PlainDVBF(model)
    stream = model.filter(2, particles=3, seed=0)
    assert isinstance(stream, ParticleFilter)
    rows = part_of(given, slice(1))
    state = model.start_state(None, 2, given["x"])
    prepared = model.prepare(rows["x"], rows["u"], state=state)
    _, z, ratio = model.propose(prepared, state, rows["noise"])
    for row in range(2):
        want = plain.run(*of_row(given, row, 1))
        assert_close("z", z[row], want["z"][0], 1e-12)
        assert_close("weight", ratio[row], (want["log_weight"] - want["reconstruction"])[0], 1e-12)
    for t in range(3):
        step = stream.step(given["x"][t], given["u"][t])
        assert step.predicted.isfinite().all()
        assert step.z.shape == (2, Z)
    before = stream.state.z.clone()
    stream.reset([1])
    assert not stream.state.z.view(3, 2, Z)[:, 1].any()
    assert_equal("the other stream", stream.state.z.view(3, 2, Z)[:, 0], before.view(3, 2, Z)[:, 0])


@each_model
def test_forecasts_imputations_and_scores(name: str) -> None:
    model = make(name)
    given = batch(model)
    x, u = given["x"], given["u"]
    ahead = None if u is None else u[:3]
    forecast = model.forecast(x, 3, samples=4, quantiles=[0.5], u=u, u_future=ahead, seed=0)
    assert forecast.samples.shape == (4, 3, B, X)
    mask = a_mask()
    filled = model.impute(x, mask, samples=3, u=u, seed=0)
    assert_equal("what is observed", filled.mean[mask], x[mask])
    predictive = model.score(x, u, LENGTHS, kind="predictive", samples=5, seed=0)
    assert predictive.isfinite().all()
    assert not predictive[3:, 2].any()
    model.set_batch_first(True)
    turned = {"x": x.transpose(0, 1), "u": None if u is None else u.transpose(0, 1)}
    noise = tuple(part.transpose(0, 1) for part in given["noise"])
    elbo = model(**turned, noise=noise, lengths=LENGTHS).elbo
    model.set_batch_first(False)
    assert_close("elbo, batch first", elbo, model(**given, lengths=LENGTHS).elbo, 1e-12)


@each_model
def test_files_keep_a_model(name: str, tmp_path: Path) -> None:
    model = make(name)
    model.save_pretrained(tmp_path)
    found = vssn.from_pretrained(tmp_path)
    assert isinstance(found, DVBF)
    assert found.config == model.config
    given = batch(model)
    assert_equal("elbo", found(**given).elbo, model(**given).elbo)


@pytest.mark.parametrize("name", ["plain", "driven"])
def test_single_steps_are_exported(name: str) -> None:
    model = make(name, torch.float32)
    for step in (GenerationStep(model), FilterStep(model)):
        given = step.example()
        exported = torch.export.export(step, (), given).module()
        for part, want in zip(exported(**given), step(**given), strict=True):
            assert_close("step", part, want, 1e-6)


def test_compiled_in_half_precision_and_with_free_bits() -> None:
    model = make("driven", torch.float32)
    given = batch(model)
    want = model(**given, lengths=LENGTHS)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert_close("elbo", compiled(**given, lengths=LENGTHS).elbo, want.elbo, 1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        low = model(**given, lengths=LENGTHS).elbo
    assert_close("elbo", low.float(), want.elbo, 0.05 * float(want.elbo.detach().abs().max()))
    free = make("driven", free_bits=10.0)(**batch(make("driven")))
    assert_close("loss", free.loss, 10.0 - free.reconstruction.mean(), 1e-12)


def test_hooks_of_the_networks_take_part() -> None:
    model = make()
    given = batch(model)
    want, calls = model(**given).elbo, []
    for part in (model.posterior.hidden, model.transition.mixture.out, model.initial_map.out):
        part.register_forward_hook(lambda module, *_: calls.append(module))
    assert_close("elbo", model(**given).elbo, want, 1e-12)
    assert [calls.count(part) for part in (model.posterior.hidden, model.transition.mixture.out)] == [T, T]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"control_size": 0, "control": "external"}, "control_size must be an int of at least 1, got 0"),
        ({"control": "none", "control_size": 2}, "control_size must be 0 with control='none', got 2"),
        ({"control": "previous"}, "control must be one of external, none, got 'previous'"),
        ({"latent_size": 0}, "latent_size must be an int of at least 1, got 0"),
        ({"noise_size": 0}, "noise_size must be an int of at least 1, got 0"),
        ({"matrices": 0}, "matrices must be an int of at least 1, got 0"),
        ({"backward_size": 0}, "backward_size must be an int of at least 1, got 0"),
        ({"activation": "elu"}, "activation must be one of tanh, relu, leaky_relu, silu, got 'elu'"),
    ],
)
def test_wrong_arguments_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        DVBF(**{"x_size": X, "latent_size": Z, "noise_size": W, "control_size": U, **options})


def test_wrong_states_and_noise_are_named() -> None:
    model = make()
    given = batch(model)
    x, u, state = given["x"], given["u"], a_state(model)
    cases: list[tuple[dict[str, Any], str]] = [
        ({"state": (state.d, state.z)}, "state must be a tuple (d, z, x_last) or None, got tuple of 2"),
        ({"state": (state.d, state.z[:, 1:], state.x_last)}, "state's z must have shape [B, Z] = [4, 3], got [4, 2]"),
        ({"noise": given["noise"][:1]}, "noise must be a tuple (eps_w, eps_z) or None, got tuple of 1"),
    ]
    for options, message in cases:
        with pytest.raises((ValueError, TypeError), match=re.escape(message)):
            model(x, u, **options)


@pytest.mark.parametrize(("steps", "rows"), [(0, B), (T, 0), (0, 0)])
def test_empty_batches(steps: int, rows: int) -> None:
    model = make()
    out = model(**batch(model, steps, rows))
    assert out.loss.item() == 0
    assert out.state.z.shape == (rows, Z)
    out.loss.backward()
