"""Streams: step by step the numbers of one pass, or those of an exact filter; resets, several streams, errors."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
import torch
from foreign_model import Foreign
from linear_gaussian import SMALL, LinearModel
from small_models import MODELS, B, T, U, X, a_mask, batch, make
from torch import Tensor

from vssn import VSSN
from vssn.inference.filtering import one_step_predictions
from vssn.inference.streaming import Filter, FilterStep, ParticleFilter, PathFilter
from vssn_kernels.testing import assert_all_close, assert_close, assert_equal

CAUSAL = [name for name in MODELS if make(name).causal]


def run(
    stream: Filter, x: Tensor, u: Tensor | None = None, mask: Tensor | None = None, ahead: bool = False
) -> FilterStep:
    """Every field behind a dimension of time; with ahead each frame is predicted before it comes."""
    steps = []
    for t in range(len(x)):
        here = None if u is None else u[t]
        before = stream.predict(here) if ahead else None
        steps.append(stream.step(x[t], here, None if mask is None else mask[t]))
        if before is not None:
            # A prepared prediction may stand before a step that is not.
            assert_close("predict", before, steps[-1].predicted, 1e-13 if x.dtype == torch.float64 else 1e-5)
    return FilterStep(*(torch.stack(part) for part in zip(*steps, strict=True)))


def test_models_of_every_kind_are_here() -> None:
    assert {"rnn", "storn", "causal", "causal_both_residual", "causal_dkf", "causal_masked"} <= set(CAUSAL)
    assert {"vssn", "smoothing", "dkf"}.isdisjoint(CAUSAL)


@pytest.mark.parametrize("foreign", [False, True])
@pytest.mark.parametrize("name", CAUSAL)
def test_steps_are_the_pass_over_the_whole_sequence(name: str, foreign: bool) -> None:
    model = make(name)
    given = batch(model, 7)
    x, u = given["x"], given["u"]
    mask = torch.rand(7, B, X) > 0.3 if "masked" in name else None
    other = Foreign(model) if foreign else model
    stream = other.filter(B)
    assert isinstance(stream, PathFilter)
    got = run(stream, x, u, mask, ahead=True)
    want = model.latents(x, u, mask=mask, kind="filter")
    assert_close("d", got.d, want.d, 1e-11)
    assert_close("z", got.z, want.z, 1e-11)
    if mask is None:
        assert_close("predicted", got.predicted[1:], one_step_predictions(model, x, u), 1e-11)
    else:
        gaps = run(other.filter(B), x.masked_fill(~mask, math.nan), u)
        assert_all_close(gaps._asdict(), got._asdict(), 1e-11)
    model.set_batch_first(True)
    assert_all_close(
        run(Foreign(model).filter(B) if foreign else model.filter(B), x, u, mask)._asdict(), got._asdict(), 1e-11
    )


@pytest.mark.parametrize("name", CAUSAL)
def test_steps_in_single_precision_are_the_pass(name: str) -> None:
    model = make(name, torch.float32)
    given = batch(model, 40)
    got = run(model.filter(B), given["x"], given["u"])
    want = model.latents(given["x"], given["u"], kind="filter")
    assert_close("d", got.d, want.d, 1e-5)
    assert_close("z", got.z, want.z, 1e-5)


@pytest.mark.parametrize("name", ["causal", "causal_both_residual", "storn"])
def test_paths_take_their_noise_step_by_step(name: str) -> None:
    model, samples = make(name), 3
    given = batch(model)
    x, u = given["x"], given["u"]
    noise = tuple(torch.randn(samples, T, B, size, dtype=torch.float64) for size in model.noise_sizes)
    got = run(model.filter(B, samples=samples, noise=noise), x, u, ahead=True)
    want = model.latents(x, u, kind="filter", samples=samples, noise=noise)
    assert_close("d", got.d.movedim(0, 1), want.d, 1e-11)
    assert_close("z", got.z.movedim(0, 1), want.z, 1e-11)
    assert got.predicted.shape == (T, B, X)
    single = run(model.filter(B, noise=given["noise"]), x, u)
    assert_close("z", single.z, model.latents(x, u, kind="filter", noise=given["noise"]).z, 1e-11)
    first, again, other = (run(model.filter(B, samples=2, seed=seed), x, u) for seed in (1, 1, 2))
    assert_all_close(first._asdict(), again._asdict(), 0.0)
    assert not torch.equal(first.d, other.d)
    stream = model.filter(B, noise=given["noise"])
    run(stream, x, u)
    with pytest.raises(ValueError, match=r"^noise must go on as long as the frames do, got 5 steps of it"):
        stream.step(x[0], None if u is None else u[0])


@pytest.mark.parametrize(
    "which",
    [1, [1], torch.tensor([1]), torch.tensor([False, True, False, False])],
    ids=["int", "list", "tensor", "bool"],
)
def test_a_stream_starts_anew_and_the_others_go_on(which: Any) -> None:
    model = make("causal_both_residual", learn_initial_state=True)
    given = batch(model, 6)
    x, u = given["x"], given["u"]
    whole = run(model.filter(B), x, u)
    stream = model.filter(B)
    run(stream, x[:3], u[:3])
    stream.reset(which)
    rest, fresh = run(stream, x[3:], u[3:]), run(model.filter(B), x[3:], u[3:])
    for name, part in rest._asdict().items():
        want = getattr(whole, name)[3:].clone()
        want[:, 1] = getattr(fresh, name)[:, 1]
        assert_close(name, part, want, 1e-12)
    stream.reset()
    assert_all_close(run(stream, x[3:], u[3:])._asdict(), fresh._asdict(), 0.0)


def test_particles_of_a_stream_start_anew() -> None:
    model = make("vssn")
    x = batch(model)["x"]
    stream = model.filter(B, particles=50, seed=1)
    assert isinstance(stream, ParticleFilter)
    run(stream, x)
    before, weights = stream.state, stream.log_weights.clone()
    stream.reset(2)
    assert torch.equal(stream.log_weights[:, [0, 1, 3]], weights[:, [0, 1, 3]])
    assert (stream.log_weights[:, 2] == -math.log(50)).all()
    for part, old in zip(stream.state, before, strict=True):
        rows, olds = part.view(50, B, -1), old.view(50, B, -1)
        assert rows[:, 2].abs().sum() == 0
        assert torch.equal(rows[:, [0, 1, 3]], olds[:, [0, 1, 3]])


@pytest.mark.parametrize("options", [{}, {"noise_smoothing": True}, {"inference": "causal"}], ids=str)
def test_particles_are_an_exact_filter_in_the_limit(options: dict[str, Any]) -> None:
    """Means of d, z and of the frame to come against a Kalman filter, over independent streams of one sequence."""
    exact = LinearModel(**options)
    if options.get("noise_smoothing"):  # its q(w) has no part: anything would do
        torch.nn.init.zeros_(exact.model.layer.noise_posterior.out.weight)
    x, copies = exact.sample(8, seed=3), 60
    _, d, z, predicted = exact.filter(x[:, 0])
    stream = exact.model.filter(copies, particles=2000, seed=0)
    assert isinstance(stream, ParticleFilter)
    got = run(stream, x.expand(-1, copies, -1), ahead=True)
    for name, mine, want in (("d", got.d / SMALL, d), ("z", got.z, z), ("predicted", got.predicted, predicted)):
        error = mine.std(1) / copies**0.5
        assert ((mine.mean(1) - want).abs() < 5 * error + 2e-3).all(), name
        assert (error < 0.02).all(), name
    # Without its frames the filter would be far from that.
    assert (z - z.mean(0)).abs().max() > 0.2


@pytest.mark.parametrize("name", ["vssn", "both", "smoothing", "masked", "dkf_external", "nade", "mixture", "srnn"])
def test_a_filter_of_particles_takes_every_model(name: str) -> None:
    model = make(name)
    given = batch(model)
    x, u = given["x"], given["u"]
    mask = a_mask() if name == "masked" else None
    first = run(model.filter(B, seed=3), x, u, mask, ahead=name != "nade")
    assert first.d.shape == (T, B, model.layer.hidden_size)
    assert first.z.shape == (T, B, model.layer.latent_size)
    assert first.predicted.shape == (T, B, X)
    assert all(part.isfinite().all() for part in first)
    if name == "nade":  # its mean is an estimate from draws of its own
        return
    assert_all_close(run(model.filter(B, seed=3), x, u, mask)._asdict(), first._asdict(), 1e-12)
    bootstrap = run(Foreign(model).filter(B, particles=20000, seed=1), x, u, mask)
    guided = run(model.filter(B, particles=20000, seed=2), x, u, mask)
    for name, part, other in zip(FilterStep._fields, bootstrap, guided, strict=True):
        assert part.numel() == 0 or (part - other).square().mean().sqrt() < 0.06, name


def test_an_inferred_start_is_drawn_from_its_prior() -> None:
    model = make("vssn", initial_state="inferred")
    x = batch(model)["x"]
    stream = model.filter(B, particles=7, seed=0)
    assert (stream.state.d.view(7, B, -1).std(0) > 0).all()
    before = torch.random.get_rng_state()
    assert torch.equal(stream.state.d, model.filter(B, particles=7, seed=0).state.d)
    assert torch.equal(before, torch.random.get_rng_state())
    assert run(stream, x).d.isfinite().all()


# Prepared steps: the same numbers in one call


@pytest.mark.parametrize("name", [*CAUSAL, "causal_masked"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_plain_networks_on_the_cpu_are_prepared(name: str, dtype: torch.dtype) -> None:
    """With sizes that are no multiple of a vector, and more than one panel of columns."""
    sizes, options = MODELS[name]
    wide = tuple(size and 37 + 13 * place for place, size in enumerate(sizes))
    torch.manual_seed(0)
    model = VSSN(X, *wide, **options | {"mlp_size": 70, "backward_size": 45}).to(dtype).eval()
    given = batch(model, 9)
    stream, plain = model.filter(B), Foreign(model).filter(B)
    assert isinstance(stream, PathFilter)
    assert stream._prepared is not None
    assert plain._prepared is None
    got, want = (run(one, given["x"], given["u"], ahead=True) for one in (stream, plain))
    assert_all_close(got._asdict(), want._asdict(), 1e-11 if dtype == torch.float64 else 2e-5)
    assert_all_close(stream.state._asdict(), plain.state._asdict(), 1e-11 if dtype == torch.float64 else 2e-5)


def hooked(model: VSSN) -> VSSN:
    model.layer.posterior.register_forward_hook(lambda module, given, out: out)
    return model


@pytest.mark.parametrize(
    ("model", "streams"),
    [
        (make("causal"), 17),
        (hooked(make("causal")), B),
        (make("causal", decoder=torch.nn.Linear(8, X)), B),
        (make("causal", encoder=torch.nn.Linear(X, 3), embed_size=3), B),
        (make("causal", held_out=1), B),
        (make("causal_masked", held_out=2), B),
    ],
    ids=["many", "hook", "decoder", "encoder", "held_out", "held_out_masked"],
)
def test_other_networks_and_many_streams_run_as_they_are(model: VSSN, streams: int) -> None:
    x = batch(model, T, streams)["x"]
    stream = model.filter(streams)
    assert stream._prepared is None
    assert_close("z", run(stream, x).z, model.latents(x, kind="filter").z, 1e-11)


def test_a_frame_with_gaps_goes_between_prepared_steps() -> None:
    model = make("causal_masked")
    given, mask = batch(model, 8), torch.ones(8, B, X, dtype=torch.bool)
    mask[2, 1], mask[5, :, 0] = False, False
    gaps = given["x"].masked_fill(~mask, math.nan)
    want = model.latents(given["x"], mask=mask, kind="filter")
    got = run(model.filter(B), gaps, ahead=True)
    assert_close("d", got.d, want.d, 1e-11)
    assert_close("z", got.z, want.z, 1e-11)


@pytest.mark.parametrize("likelihood", ["bernoulli", "nade", "gaussian"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 2.0, 0.5])
def test_what_the_likelihood_does_not_take_is_refused_and_changes_nothing(likelihood: str, value: float) -> None:
    model = make("causal", likelihood=likelihood)
    x = batch(model)["x"].clone()
    stream, other = model.filter(B), model.filter(B)
    assert stream._prepared is not None
    for one in (stream, other):
        one.step(x[0])
    wrong = x[1].clone()
    wrong[2, 1] = value
    if math.isfinite(value) and (likelihood == "gaussian" or (likelihood == "bernoulli" and value < 1)):
        assert torch.isfinite(stream.step(wrong).z).all()
        return
    with pytest.raises(ValueError, match=r"^x must "):
        stream.step(wrong)
    assert_equal("z", stream.step(x[1]).z, other.step(x[1]).z)


def test_prepared_steps_take_frames_of_any_layout_and_keep_what_they_gave() -> None:
    model = make("causal")
    x = batch(model)["x"]
    want = run(model.filter(B), x)
    stream, steps = model.filter(B), []
    for t in range(T):
        turned = x[t].T.contiguous().T if t % 2 else x.transpose(1, 2).contiguous().transpose(1, 2)[t]
        frame = turned.clone().requires_grad_() if t == 3 else turned
        steps.append(stream.step(frame))
        if t % 2:
            x[t] = x[t].clone()
    for t, step in enumerate(steps):
        for name, part in step._asdict().items():
            assert_close(name, part, getattr(want, name)[t], 1e-12)
            assert not part.requires_grad


def test_weights_are_those_of_the_time_when_a_filter_was_made() -> None:
    model = make("causal")
    x = batch(model)["x"]
    want = run(model.filter(B), x)
    stream = model.filter(B)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    assert_close("z", run(stream, x).z, want.z, 1e-12)


def test_nothing_grows_and_nothing_is_left_in_another_mode() -> None:
    model = make("causal").train()
    x = batch(model)["x"]
    stream = model.filter(B)
    sizes = {name: tuple(part.shape) for name, part in stream.state._asdict().items()}
    for _ in range(3):
        step = stream.step(x[0])
    assert {name: tuple(part.shape) for name, part in stream.state._asdict().items()} == sizes
    assert model.training
    assert not step.d.requires_grad
    assert stream.predict().shape == (B, X)


def test_streams_of_no_batch() -> None:
    for name in ("causal", "vssn"):
        step = make(name).filter(0).step(torch.zeros(0, X).double())
        assert step.predicted.shape == (0, X)


# Errors

WRONG: list[tuple[dict[str, Any], str]] = [
    ({"x": torch.zeros(B, X + 1).double()}, "x must have shape [B, X] = [4, 4], got [4, 5]"),
    ({"x": torch.zeros(1, B, X).double()}, "x must have shape [B, X] = [4, 4], got [1, 4, 4]"),
    ({"x": torch.zeros(B, X)}, "x must be torch.float64 as the parameters are"),
    ({"x": torch.full((B, X), math.nan).double()}, "x must be finite, got nan"),
    ({"u": None}, "u is missing: this model has an external control of size 2"),
    ({"u": torch.zeros(B, U + 1).double()}, "u must have shape [B, U] = [4, 2], got [4, 3]"),
    ({"mask": torch.ones(B + 1, dtype=torch.bool)}, "mask must have shape"),
    ({"mask": torch.ones(B)}, "mask must be a bool torch.Tensor"),
]


@pytest.mark.parametrize("name", ["causal_both_residual", "both"])
@pytest.mark.parametrize(("arguments", "message"), WRONG, ids=lambda value: str(value)[:40])
def test_wrong_frames(name: str, arguments: dict[str, Any], message: str) -> None:
    model = make(name, likelihood="gaussian")
    right: dict[str, Any] = {"x": torch.zeros(B, X).double(), "u": torch.zeros(B, U).double()}
    stream = model.filter(B)
    with pytest.raises((ValueError, TypeError)) as caught:
        stream.step(**right | arguments)
    assert str(caught.value).startswith(message)
    if "u" in arguments:
        with pytest.raises(ValueError, match="^" + re.escape(message)):
            stream.predict(arguments["u"])
    stream.step(**right)


WRONG_FILTERS: list[tuple[str, dict[str, Any], str]] = [
    ("vssn", {"batch_size": -1}, "batch_size must be an int of at least 0, got -1"),
    ("vssn", {"particles": 0}, "particles must be an int of at least 1, got 0"),
    ("vssn", {"samples": 3}, "samples must be None with a filter of particles"),
    ("causal", {"particles": 3, "samples": 3}, "samples must be None with a filter of particles"),
    ("vssn", {"seed": 1.5}, "seed must be an int"),
    ("causal", {"noise": 3}, "noise must be a tuple (eps_w, eps_z) or None, got int"),
    (
        "causal",
        {"noise": (torch.zeros(5, 2, 2).double(), torch.zeros(5, 2, 3).double())},
        "noise's eps_w must have shape [T, B, W] = [5, 1, 2], got [5, 2, 2]",
    ),
]


@pytest.mark.parametrize(("name", "arguments", "message"), WRONG_FILTERS, ids=lambda value: str(value)[:40])
def test_wrong_filters(name: str, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, TypeError)) as caught:
        make(name).filter(**arguments)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize("which", ["all", [4], [-1], 1.5, [True], torch.ones(3, dtype=torch.bool)], ids=str)
def test_wrong_resets(which: Any) -> None:
    stream = make("causal").filter(B)
    with pytest.raises((ValueError, TypeError), match=r"^which must"):
        stream.reset(which)


def test_controls_that_a_model_does_not_have() -> None:
    model: VSSN = make("causal")
    for call in (model.filter(B).predict, lambda u: model.filter(B).step(torch.zeros(B, X).double(), u)):
        with pytest.raises(ValueError, match=r"^u must be None: this model has no external control"):
            call(torch.zeros(B, U).double())
