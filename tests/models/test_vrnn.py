"""VRNN against Chung's equations written frame by frame: values and gradients, lengths, chunks, resets, generation and
filtering, files."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from small_models import parameter_gradients
from small_vrnns import LENGTHS, VRNNS, B, H, T, X, Z, batch, make
from torch import Tensor
from vrnn_step_by_step import PlainVRNN

import vssn
from vssn import VRNN, State
from vssn.export import FilterStep, GenerationStep
from vssn.inference.filtering import one_step_predictions
from vssn.inference.streaming import ParticleFilter, PathFilter
from vssn_kernels.testing import assert_all_close, assert_close, assert_equal

PARTS = ("reconstruction", "kl_z")


def a_mask() -> Tensor:
    return torch.rand(T, B, X, generator=torch.Generator().manual_seed(3)) > 0.3


def a_state(model: VRNN) -> State:
    """Behind a frame."""
    source = torch.Generator().manual_seed(5)
    d, z, x = (torch.randn(B, size, generator=source, dtype=torch.float64) for size in (H, Z, model.seen_size))
    return State(d, z, torch.cat((x, torch.ones(B, 1).double()), 1))


def part_of(given: dict[str, Any], frames: slice, columns: slice = slice(None)) -> dict[str, Any]:
    cut = {name: None if part is None else part[frames, columns] for name, part in given.items() if name != "noise"}
    return {**cut, "noise": tuple(part[frames, columns] for part in given["noise"])}


# ---- Against the model written frame by frame ----------------------------------------------------------


@pytest.mark.parametrize("carried", [False, True])
@pytest.mark.parametrize("name", VRNNS)
def test_equals_the_model_frame_by_frame(name: str, carried: bool) -> None:
    """Every output, the state behind and the gradient of every parameter, with lengths (0 among them)."""
    model, state = make(name), None
    given = batch(model)
    mask = a_mask() if name == "masked" else None
    if carried:
        state = a_state(model)
    out = model(**given, lengths=LENGTHS, mask=mask, state=state)
    plain, total = PlainVRNN(model), torch.zeros(()).double()
    for row, length in enumerate(LENGTHS.tolist()):
        for part in PARTS:
            assert not getattr(out, part)[length:, row].any()
        if not length:
            assert out.elbo[row] == 0
            want_d = a_state(model).d[row] if carried else (torch.zeros(H) if model.h_0 is None else model.h_0)
            assert_equal("d of a sequence without a frame", out.state.d[row].float(), want_d.float())
            continue
        own = (
            given["x"][:length, row],
            None if given["u"] is None else given["u"][:length, row],
            given["noise"][1][:length, row],
            None if mask is None else mask[:length, row],
            None if state is None else (state.d[row], state.z[row], state.x_last[row, :-1]),
        )
        want = plain.run(*own)
        for part in PARTS:
            assert_close(f"{part} of sequence {row}", getattr(out, part)[:length, row], want[part], 1e-12)
        assert_close("elbo", out.elbo[row], (want["reconstruction"] - want["kl_z"]).sum(), 1e-12)
        assert_close("d", out.state.d[row], want["d"][-1], 1e-12)
        assert_close("z", out.state.z[row], want["z"][-1], 1e-12)
        total = total + (want["reconstruction"] - want["kl_z"]).sum()
    assert_close("loss", out.loss, -total / LENGTHS.sum(), 1e-12)
    assert not out.kl_w.any()
    grads = parameter_gradients(model, out.loss)
    assert_all_close(grads, parameter_gradients(model, -total / LENGTHS.sum()), 1e-11, "grad of")
    assert all(bool(grad.any()) for part, grad in grads.items() if not (carried and part == "h_0"))


@pytest.mark.parametrize("name", VRNNS)
def test_latents_and_decoding_are_those_of_the_model_frame_by_frame(name: str) -> None:
    model = make(name)
    given = batch(model)
    found = model.latents(given["x"], given["u"], noise=given["noise"])
    filtered = model.latents(given["x"], given["u"], noise=given["noise"], kind="filter")
    for row in range(B):
        want = PlainVRNN(model).run(
            given["x"][:, row], None if given["u"] is None else given["u"][:, row], given["noise"][1][:, row]
        )
        for part in ("d", "z"):
            assert_close(part, getattr(found, part)[:, row], want[part], 1e-12)
            assert_close(f"{part}, filtered", getattr(filtered, part)[:, row], want[part], 1e-12)
    assert found.w.shape == (T, B, 0)


# ---- Chunks and resets ---------------------------------------------------------------------------------


@pytest.mark.parametrize("cut", [1, 2, 4])
@pytest.mark.parametrize("name", VRNNS)
def test_chunks_are_one_pass(name: str, cut: int) -> None:
    """With the state carried: values and gradients; a sequence that ends in the first chunk keeps its state."""
    model = make(name)
    given = batch(model)
    whole = model(**given, lengths=LENGTHS)
    first = model(**part_of(given, slice(cut)), lengths=LENGTHS.clamp(max=cut))
    second = model(**part_of(given, slice(cut, T)), lengths=(LENGTHS - cut).clamp(min=0), state=first.state)
    for part in PARTS:
        assert_close(part, torch.cat((getattr(first, part), getattr(second, part))), getattr(whole, part), 1e-13)
    assert_all_close(second.state._asdict(), whole.state._asdict(), 1e-13)
    loss = (first.elbo + second.elbo).sum()
    assert_all_close(parameter_gradients(model, loss), parameter_gradients(model, whole.elbo.sum()), 1e-12, "grad of")


def test_an_empty_chunk_leaves_a_sequence_at_its_start() -> None:
    model = make("both")
    given = batch(model)
    nothing = model(**part_of(given, slice(0)))
    assert_all_close(
        model(**given, state=nothing.state)._asdict() | {"state": torch.zeros(())},
        model(**given)._asdict() | {"state": torch.zeros(())},
        0.0,
    )


def test_a_state_without_the_mark_is_behind_a_frame() -> None:
    model = make()
    given, state = batch(model), a_state(model)
    assert_equal(
        "elbo", model(**given, state=(*state[:2], state.x_last[:, :-1])).elbo, model(**given, state=state).elbo
    )


@pytest.mark.parametrize("carried", [False, True])
@pytest.mark.parametrize("name", VRNNS)
def test_resets_are_pieces_run_apart(name: str, carried: bool) -> None:
    """Values and gradients: what stands before a reset is not read, a frame of 1e30 neither."""
    model = make(name)
    given = batch(model, 7, 2)
    resets = torch.zeros(7, 2, dtype=torch.bool)
    resets[3, 0] = resets[4, 0] = resets[2, 1] = resets[0, 1] = True
    state = State(*(part[:2] for part in a_state(model))) if carried else None
    whole = model(**given, resets=resets, state=state)
    pieces = {0: ((0, 3), (3, 4), (4, 7)), 1: ((0, 2), (2, 7))}
    total: Any = 0.0
    for row, bounds in pieces.items():
        column = slice(row, row + 1)
        for start, stop in bounds:
            own = None
            if state is not None and start == 0 and row == 0:  # row 1 is reset in its first frame
                own = State(*(part[column] for part in state))
            alone = model(**part_of(given, slice(start, stop), column), state=own)
            for part in PARTS:
                assert_close(part, getattr(whole, part)[start:stop, column], getattr(alone, part), 1e-13)
            total = total + alone.elbo.sum()
        assert_all_close(
            {name: part[column] for name, part in whole.state._asdict().items()}, alone.state._asdict(), 1e-13
        )
    grads = parameter_gradients(model, whole.elbo.sum())
    assert_all_close(grads, parameter_gradients(model, total), 1e-12, "grad of")


def test_resets_with_batch_first_and_lengths() -> None:
    model = make()
    given = batch(model)
    resets = torch.rand(T, B, generator=torch.Generator().manual_seed(1)) > 0.6
    want = model(**given, resets=resets, lengths=LENGTHS)
    model.set_batch_first(True)
    turned = {"x": given["x"].transpose(0, 1), "noise": tuple(part.transpose(0, 1) for part in given["noise"])}
    got = model(**turned, resets=resets.T, lengths=LENGTHS)
    assert_close("elbo", got.elbo, want.elbo, 1e-13)
    with pytest.raises(ValueError, match=re.escape("resets must have shape [B, T] = [4, 5], got [5, 4]")):
        model(**turned, resets=resets)


# ---- What other models do too --------------------------------------------------------------------------


@pytest.mark.parametrize("name", VRNNS)
def test_a_filter_is_the_pass_over_the_whole_sequence(name: str) -> None:
    """Step by step, with a stream that starts anew."""
    model = make(name)
    given = batch(model)
    stream = model.filter(B)
    assert isinstance(stream, PathFilter)
    steps = [stream.step(given["x"][t], None if given["u"] is None else given["u"][t]) for t in range(T)]
    want = model.latents(given["x"], given["u"], kind="filter")
    assert_close("d", torch.stack([step.d for step in steps]), want.d, 1e-12)
    assert_close("z", torch.stack([step.z for step in steps]), want.z, 1e-12)
    predicted = torch.stack([step.predicted for step in steps[1:]])
    assert_close("predicted", predicted, one_step_predictions(model, given["x"], given["u"]), 1e-12)
    stream.reset([1])
    again = stream.step(given["x"][0], None if given["u"] is None else given["u"][0])
    assert_close("after a reset", again.d[1], steps[0].d[1], 1e-12)
    assert (again.d[0] - steps[0].d[0]).abs().max() > 1e-3


def test_a_particle_filter_proposes_from_the_posterior() -> None:
    """Its weights are those of the model frame by frame: with one particle and z from q, the mean is the path."""
    model = make("gaussian")
    given = batch(model, 4, 2)
    stream = model.filter(2, particles=3, seed=0)
    assert isinstance(stream, ParticleFilter)
    rows = {**part_of(given, slice(1)), "noise": (torch.zeros(1, 2, 0).double(), given["noise"][1][:1])}
    prepared = model.prepare(rows["x"])
    state = model.start_state(None, 2, rows["x"])
    d, z, ratio = model.propose(prepared, state, rows["noise"])
    for row in range(2):
        want = PlainVRNN(model).run(rows["x"][:, row], None, rows["noise"][1][:, row])
        assert_close("d", d[row], want["d"][0], 1e-12)
        assert_close("z", z[row], want["z"][0], 1e-12)
        assert_close("weight", ratio[row], (want["log_weight"] - want["reconstruction"])[0], 1e-12)
    for t in range(4):
        step = stream.step(given["x"][t])
        assert step.predicted.isfinite().all()


@pytest.mark.parametrize("name", VRNNS)
def test_generation_draws_chungs_model(name: str) -> None:
    """From the prior, frame by frame, and on from a state."""
    model = make(name)
    plain, u = PlainVRNN(model), batch(model, 3, 2)["u"]
    torch.manual_seed(0)
    out = model.generate(3, 2, u=u, sample=False)
    torch.manual_seed(0)
    noise = [torch.empty(1, 2, Z, dtype=torch.float64).normal_()[0] for _ in range(3)]
    h = torch.zeros(2, H).double() if model.h_0 is None else model.h_0.expand(2, -1)
    frame = z = None
    for t in range(3):
        own = [] if u is None else [u[t]]
        if frame is not None and z is not None:
            h = plain.cell(plain.phi_x(frame), plain.phi_z(z), h, own)
        p = plain.prior(h, own)
        z = p.mean + p.stddev * noise[t]
        mean = model.likelihood.mean(plain.emission(plain.phi_z(z), h))
        assert_close(f"frame {t}", out.mean[t], mean, 1e-12)
        frame = torch.cat((mean, torch.ones_like(mean)), -1) if model.masked else mean
    assert z is not None
    assert_close("state", out.state.z, z, 1e-12)
    with torch.enable_grad():  # by the plain steps
        prior = model.prior_steps()
        h, drawn = prior.step(model.control(out.state.x_last, None if u is None else u[:1]), h, z, (z[None], z[None]))
        by_hand = model.step_from_prior(
            model.control(out.state.x_last, None if u is None else u[:1]), *out.state[:2], (z[None], z[None])
        )
    assert_close("h", h, by_hand[0], 1e-12)
    assert_close("z", drawn, by_hand[1], 1e-12)
    longer = model.generate(2, u=None if u is None else u[:2], state=out.state)
    assert longer.x.shape == (2, 2, X)


@pytest.mark.parametrize("name", VRNNS)
def test_forecasts_imputations_and_scores(name: str) -> None:
    model = make(name)
    given = batch(model)
    x, u = given["x"], given["u"]
    ahead = None if u is None else u[:3]
    forecast = model.forecast(x, 3, samples=4, quantiles=[0.5], u=u, u_future=ahead, seed=0)
    assert forecast.samples.shape == (4, 3, B, X)
    again = model.forecast(x, 3, samples=4, u=u, u_future=ahead, seed=0, memory=1)
    assert again.mean.isfinite().all()
    mask = a_mask()
    filled = model.impute(x, mask, samples=3, u=u, seed=0)
    assert_equal("what is observed", filled.mean[mask], x[mask])
    elbo = model.score(x, u, LENGTHS, seed=0)
    torch.manual_seed(0)
    assert elbo.shape == (T, B)
    predictive = model.score(x, u, LENGTHS, kind="predictive", samples=5, seed=0)
    assert predictive.isfinite().all()
    assert not predictive[3:, 2].any()


def test_the_first_predictive_score_is_that_of_the_prior() -> None:
    """log of the mean over the prior's z of p(x_1 | z, h_0): no cell runs before the first frame."""
    model = make("gaussian", initial_state="learned")
    x = batch(model)["x"][:1, :1]
    got = model.score(x, kind="predictive", samples=20000, seed=0)[0, 0]
    plain = PlainVRNN(model)
    assert model.h_0 is not None
    h = model.h_0.expand(20000, -1)
    p = plain.prior(h, [])
    z = p.mean + p.stddev * torch.randn(20000, Z, generator=torch.Generator().manual_seed(1)).double()
    densities = plain.log_prob(plain.emission(plain.phi_z(z), h), x[0].expand(20000, -1), torch.ones(1, X).bool())
    want = torch.logsumexp(densities, 0) - torch.log(torch.tensor(20000.0))
    assert_close("score", got, want, 0.02)


@pytest.mark.parametrize("name", VRNNS)
def test_files_keep_a_model(name: str, tmp_path: Path) -> None:
    model = make(name)
    model.save_pretrained(tmp_path)
    for found in (vssn.from_pretrained(tmp_path), VRNN.from_pretrained(tmp_path)):
        assert isinstance(found, VRNN)
        assert found.config == model.config
        given = batch(model)
        assert_equal("elbo", found(**given).elbo, model(**given).elbo)


@pytest.mark.parametrize("name", ["plain", "both"])
def test_single_steps_are_exported(name: str) -> None:
    model = make(name, torch.float32)
    for step in (GenerationStep(model), FilterStep(model)):
        given = step.example()
        exported = torch.export.export(step, (), given).module()
        for part, want in zip(exported(**given), step(**given), strict=True):
            assert_close("step", part, want, 1e-6)


@pytest.mark.parametrize("seed", [0, 1])
def test_reset_parameters_draws_what_the_constructor_does(seed: int) -> None:
    torch.manual_seed(seed)
    model = VRNN(X, H, Z, initial_state="learned")
    want = {name: part.clone() for name, part in model.state_dict().items()}
    torch.manual_seed(seed)
    model.reset_parameters()
    for name, part in model.state_dict().items():
        assert_equal(name, part, want[name])
    assert "hold" not in want


def test_hooks_of_the_input_take_part() -> None:
    """The same numbers by the slower way; the update gate stays shut at the start."""
    model = make("both")
    given = batch(model)
    want = model(**given).elbo
    calls = []
    model.input.register_forward_hook(lambda module, inputs, output: calls.append(output.shape))
    assert_close("elbo", model(**given).elbo, want, 1e-12)
    assert calls == [(T, B, 3 * H)]


def test_coordinated_dropout_and_free_bits_change_the_loss_alone() -> None:
    model = make("masked", free_bits=10.0)
    given = batch(model)
    out = model(**given, coordinated_dropout=0.3)
    assert out.loss.isfinite()
    free = model(**given)
    frames = T * B
    assert_close("loss", free.loss, (10.0 * frames - free.reconstruction.sum()) / frames, 1e-12)


def test_compiles_in_one_graph() -> None:
    model = make("both", torch.float32)
    given = batch(model)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert_close("elbo", compiled(**given, lengths=LENGTHS).elbo, model(**given, lengths=LENGTHS).elbo, 1e-5)


def test_half_precision_is_near() -> None:
    model = make("gaussian", torch.float32)
    given = batch(model)
    want = model(**given).elbo
    with torch.autocast("cpu", torch.bfloat16):
        got = model(**given).elbo
    assert_close("elbo", got.float(), want, 0.05 * float(want.detach().abs().max()))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prior": "normal"}, "prior must be one of learned, standard, got 'normal'"),
        ({"control": "external"}, "control must be one of previous, both, got 'external'"),
        ({"control": "both"}, "control_size must be an int of at least 1, got 0"),
        ({"control_size": 2}, "control_size must be 0 with control='previous', got 2"),
        ({"hidden_size": 0}, "hidden_size must be an int of at least 1, got 0"),
        ({"latent_size": 0}, "latent_size must be an int of at least 1, got 0"),
        ({"initial_state": "inferred"}, "initial_state must be one of zeros, learned, got 'inferred'"),
        ({"activation": "elu"}, "activation must be one of tanh, relu, leaky_relu, silu, got 'elu'"),
        ({"embed_size": 0}, "embed_size must be an int of at least 1, got 0"),
        ({"mixture_size": 0}, "mixture_size must be an int of at least 1, got 0"),
    ],
)
def test_wrong_arguments_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        VRNN(**{"x_size": X, "hidden_size": H, "latent_size": Z, **options})


def test_wrong_states_noise_and_resets_are_named() -> None:
    model = make()
    given = batch(model)
    x, state = given["x"], a_state(model)
    cases: list[tuple[dict[str, Any], str]] = [
        ({"state": (state.d, state.z)}, "state must be a tuple (d, z, x_last) or None, got tuple of 2"),
        ({"state": (state.d[:, 1:], *state[1:])}, "state's d must have shape [B, H] = [4, 5], got [4, 4]"),
        ({"state": (*state[:2], state.x_last[:, 2:])}, "state's x_last must have shape [B, F] = [4, 5], got [4, 3]"),
        ({"noise": given["noise"][:1]}, "noise must be a tuple (eps_w, eps_z) or None, got tuple of 1"),
        ({"resets": torch.zeros(T, 3).bool()}, "resets must have shape [T, B] = [5, 4], got [5, 3]"),
    ]
    for options, message in cases:
        with pytest.raises((ValueError, TypeError), match=re.escape(message)):
            model(x, **options)
    with pytest.raises(TypeError, match=r"resets must be a bool torch\.Tensor, got torch\.int64"):
        model(x, resets=torch.zeros(T, B, dtype=torch.int64))


@pytest.mark.parametrize(("steps", "rows"), [(0, B), (T, 0), (0, 0)])
def test_empty_batches(steps: int, rows: int) -> None:
    model = make("both")
    out = model(**batch(model, steps, rows))
    assert out.loss.item() == 0
    assert out.state.d.shape == (rows, H)
    out.loss.backward()
