"""inference="causal": no frame to come has a part in anything, and the state that carries on has all that came."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from linear_gaussian import LinearModel
from small_models import LENGTHS, MODELS, B, T, U, X, Z, batch, flat, make, parameter_gradients
from step_by_step import PlainModel
from torch import Tensor

from vssn import VSSN, VSSNLayer
from vssn.inference.importance import BOUNDS, sequence_bounds
from vssn_kernels.testing import assert_all_close, assert_close, assert_equal

CAUSAL = [name for name in MODELS if "causal" in name]
CARRYING = [name for name in CAUSAL if name != "causal_storn"]


def part_of(given: dict[str, Any], frames: slice) -> dict[str, Any]:
    return {
        name: tuple(one[frames] for one in part) if name == "noise" else None if part is None else part[frames]
        for name, part in given.items()
    }


@pytest.mark.parametrize("name", CAUSAL)
def test_nothing_sees_a_frame_to_come(name: str) -> None:
    model = make(name)
    given = batch(model)
    other = given["x"].clone()
    other[3:] = 1 - other[3:]
    first, second = model(**given), model(**given | {"x": other})
    for field in ("reconstruction", "kl_z", "kl_w"):
        assert_equal(field, getattr(first, field)[:3], getattr(second, field)[:3])
    smooth, filtered = (
        model.latents(given["x"], given["u"], kind=kind, noise=given["noise"]) for kind in ("smooth", "filter")
    )
    assert_all_close(smooth._asdict(), filtered._asdict(), 1e-12)
    assert model.causal
    assert not make("vssn").causal
    assert not make("smoothing").causal
    assert make("rnn").causal


@pytest.mark.parametrize("name", CAUSAL)
def test_chunks_with_the_state_between_them_are_the_whole_sequence(name: str) -> None:
    """Values and every gradient, through the state too; of a model that looks ahead they are not."""
    model = make(name)
    given = batch(model)
    whole = model(**given)
    first = model(**part_of(given, slice(0, 2)))
    second = model(**part_of(given, slice(2, None)), state=first.state)
    assert_close("elbo", first.elbo + second.elbo, whole.elbo, 1e-11)
    assert_all_close(second.state._asdict(), whole.state._asdict(), 1e-11)
    got, want = (parameter_gradients(model, loss) for loss in ((first.elbo + second.elbo).sum(), whole.elbo.sum()))
    assert_all_close(got, want, 1e-10)
    assert list(whole.state._asdict()) == ["d", "z", "x_last", "a"][: 3 if name == "causal_storn" else 4]


@pytest.mark.parametrize("name", CARRYING)
def test_a_given_state_has_its_part_in_values_and_gradients(name: str) -> None:
    """Against the model step by step, with lengths: the state of a sequence without frames is the one given."""
    model = make(name)
    given = batch(model)
    state = tuple(torch.randn_like(part).requires_grad_() for part in model(**given).state)
    got = model(**given, lengths=LENGTHS, state=state)
    want = PlainModel(model).run(given["x"], given["u"], LENGTHS, given["noise"], state=state)
    assert_all_close({k: v for k, v in flat(got).items() if k in want}, want, 1e-11)
    weights = torch.linspace(0.5, 1.5, B, dtype=torch.float64)
    of_got, of_want = (
        torch.autograd.grad((elbo * weights).sum() + a.square().sum(), state, materialize_grads=True)
        for elbo, a in ((got.elbo, got.state.a), (want["elbo"], want["a"]))
    )
    for letter, one, other in zip(("d", "z", "x_last", "a"), of_got, of_want, strict=True):
        assert_close(letter, one, other, 1e-10)
    assert of_got[3].abs().max() > 1e-6


@pytest.mark.parametrize("name", CARRYING)
def test_inference_goes_on_behind_what_is_generated(name: str) -> None:
    model = make(name)
    u = torch.randn(6, 3, U, dtype=torch.float64) if model.control_size else None
    plain = PlainModel(model)
    a = model.layer.carried_a(model.generate(0, 3, u=None if u is None else u[:0]).state)
    assert a.abs().sum() == 0
    ds: list[Tensor] = []
    prior = model.prior_steps()
    recorded = prior._replace(step=lambda *given: ds.append(prior.step(*given)[0]) or (ds[-1], given[2]))
    model.prior_steps = lambda: recorded
    out = model.generate(6, 3, u=u)
    frames = torch.cat((out.x, torch.ones_like(out.x)), -1) if model.masked else out.x
    for t in range(6):
        embedded = plain.embed(frames[t])
        before = plain.embed(torch.zeros_like(frames[0]) if t == 0 else frames[t - 1])
        parents = plain.layer.parents(ds[t], plain.controls(before, None if u is None else u[t]))
        a = plain.layer.gru_step("backward_recurrence", [*parents, embedded], a)
    assert_close("a", out.state.a, a, 1e-11)


def test_the_layer_alone_carries_its_state() -> None:
    torch.manual_seed(0)
    layer = VSSNLayer(X, 5, Z, 2, inference="causal").double()
    x, noise = torch.randn(T, B, X).double(), tuple(torch.randn(T, B, size).double() for size in (2, Z))
    whole = layer(x, noise=noise)
    first = layer(x[:2], noise=tuple(part[:2] for part in noise))
    second = layer(x[2:], first.state, noise=tuple(part[2:] for part in noise))
    assert_close("output", torch.cat((first.output, second.output)), whole.output, 1e-12)
    assert_close("kl", torch.cat((first.kl, second.kl)), whole.kl, 1e-12)
    assert "inference='causal'" in repr(layer)


@pytest.mark.parametrize("name", CAUSAL)
@pytest.mark.parametrize("bound", BOUNDS)
def test_bounds_in_parts_are_those_in_one(name: str, bound: str) -> None:
    model = make(name)
    x = batch(model, 130)["x"][:, :1]
    u = torch.randn(130, 1, U, dtype=torch.float64) if model.control_size else None
    options: dict[str, Any] = {"bound": bound, "particles": 2}
    want = sequence_bounds(model, x, u, **options)
    for kib in (4, 8, 16, 32, 64, 128, 256):  # the least that does
        try:
            got = sequence_bounds(model, x, u, memory=kib * 1024, **options)
        except ValueError:
            continue
        assert_close("total", got.total, want.total, 1e-10)
        return
    raise AssertionError("no memory suffices")


def test_bounds_are_below_the_exact_likelihood_and_converge_to_it() -> None:
    exact, count = LinearModel(inference="causal"), 400
    x = exact.sample(5)
    log_p = float(exact.log_p(x[:, 0]))
    copies = x.expand(-1, count, -1).contiguous()
    gaps = {}
    for bound, particles in (("elbo", 1), ("iwae", 8), ("iwae", 64), ("fivo", 8), ("fivo", 64)):
        values = sequence_bounds(exact.model, copies, bound=bound, particles=particles).total
        gaps[bound, particles] = float(log_p - values.mean()), float(values.std() / count**0.5)
    for gap, error in gaps.values():
        assert gap > -3 * error, gaps
    assert gaps["elbo", 1][0] > 3 * gaps["elbo", 1][1]
    for bound in ("iwae", "fivo"):
        assert gaps[bound, 8][0] < 0.7 * gaps["elbo", 1][0]
        assert gaps[bound, 64][0] < 0.7 * gaps[bound, 8][0]


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"inference": "filtering"}, "inference must be one of smoothing, causal, got 'filtering'"),
    (
        {"inference": "causal", "noise_smoothing": True},
        "inference must be 'smoothing' with noise_smoothing=True, which looks ahead, got 'causal'",
    ),
    (
        {"inference": "causal", "initial_state": "inferred"},
        "inference must be 'smoothing' with initial_state='inferred', which looks ahead, got 'causal'",
    ),
]


@pytest.mark.parametrize(("options", "message"), WRONG)
@pytest.mark.parametrize("cls", [VSSN, VSSNLayer])
def test_what_looks_ahead_is_an_error(cls: type, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        cls(X, 5, Z, 2, **options)


def test_a_state_without_a_is_an_error() -> None:
    model = make("causal")
    given = batch(model)
    with pytest.raises(TypeError, match=r"^state must be a tuple \(d, z, x_last, a\) or None, got tuple of 3"):
        model(**given, state=tuple(model(**given).state)[:3])
    with pytest.raises(ValueError, match=r"^state's a must have shape \[B, A\] = \[4, 7\], got \[4, 5\]"):
        model(**given, state=model(**given).state._replace(a=torch.zeros(B, 5).double()))
