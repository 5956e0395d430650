"""PGN against its equations frame by frame, pixel by pixel: values and gradients, chunks, generation, prediction,
files."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from pgn_step_by_step import PlainPGN
from small_models import parameter_gradients
from torch import Tensor

import vssn
from vssn import PGN
from vssn.export import FilterStep, GenerationStep
from vssn.inference.filtering import one_step_predictions, rollouts
from vssn.inference.streaming import PathFilter
from vssn_kernels.testing import assert_all_close, assert_close, assert_equal

T, B, D, U = 4, 3, 5, 2
LENGTHS = torch.tensor([4, 0, 2])
# Each is pixels, rows and the options; sides that halve to odd ones among them.
PGNS: dict[str, tuple[int, int, dict[str, Any]]] = {
    "square": (36, 6, {"channels": 3}),
    "odd": (7 * 5, 7, {"height": 7, "activation": "tanh", "logvar_x": -3.0}),
    "wide": (4 * 11, 4, {"height": 4, "activation": "silu", "initial_state": "learned"}),
    "bernoulli": (36, 6, {"likelihood": "bernoulli", "activation": "leaky_relu"}),
    "both": (25, 5, {"control": "both", "control_size": U}),
}
each_model = pytest.mark.parametrize("name", PGNS)


def make(name: str, dtype: torch.dtype = torch.float64) -> tuple[PGN, PlainPGN]:
    """The model with random weights everywhere, and the same by steps."""
    pixels, height, options = PGNS[name]
    model = PGN(pixels, D, **{"channels": 2, "embed_size": 4, **options}).to(dtype)
    source = torch.Generator().manual_seed(41)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.4 * torch.randn(parameter.shape, generator=source, dtype=torch.float64))
    logvar_x = None if options.get("likelihood") == "bernoulli" else options.get("logvar_x", 0.0)
    return model.eval(), PlainPGN(model, height, logvar_x)


def batch(model: PGN, steps: int = T, rows: int = B) -> dict[str, Any]:
    source, dtype = torch.Generator().manual_seed(42), model.a_parameter().dtype
    x = torch.rand(steps, rows, model.x_size, generator=source, dtype=torch.float64).to(dtype)
    u = torch.randn(steps, rows, U, generator=source, dtype=torch.float64).to(dtype) if model.control_size else None
    return {"x": x, "u": u}


def of_row(given: dict[str, Any], row: int, frames: slice = slice(None)) -> tuple[Tensor, Tensor | None]:
    return given["x"][frames, row], None if given["u"] is None else given["u"][frames, row]


@each_model
def test_equals_the_model_frame_by_frame(name: str) -> None:
    """Every output, the state behind and the gradient of every parameter, with lengths (0 among them)."""
    model, plain = make(name)
    given, total = batch(model), torch.zeros(()).double()
    out = model(**given, lengths=LENGTHS)
    for row, length in enumerate(LENGTHS.tolist()):
        assert not out.reconstruction[length:, row].any()
        if not length:
            continue
        want = plain.run(*of_row(given, row, slice(length)))
        assert_close("reconstruction", out.reconstruction[:length, row], want["log_prob"], 1e-11)
        assert_close("d", out.state.d[row], want["d"][-1], 1e-12)
        total = total + want["log_prob"].sum()
    assert_close("loss", out.loss, -total / LENGTHS.sum(), 1e-11)
    assert_close("elbo", out.elbo.sum(), total, 1e-11)
    assert not out.kl_z.any()
    assert not out.kl_w.any()
    grads = parameter_gradients(model, out.loss)
    assert_all_close(grads, parameter_gradients(model, -total / LENGTHS.sum()), 1e-10, "grad of")
    assert all(bool(grad.any()) for grad in grads.values())


def test_the_loss_is_the_squared_error_and_a_constant() -> None:
    for name, logvar in (("square", 0.0), ("odd", -3.0)):
        model, plain = make(name)
        x = batch(model)["x"]
        errors = torch.stack([(plain.run(x[:, row], None)["out"] - x[:, row]).square().sum(-1) for row in range(B)], 1)
        constant = model.x_size * (math.log(2 * math.pi) + logvar) / 2
        assert_close("loss", model(x).loss, errors.mean() / (2 * math.exp(logvar)) + constant, 1e-11)


@each_model
def test_predictions_and_rollouts_are_those_of_the_model_frame_by_frame(name: str) -> None:
    model, plain = make(name)
    given = batch(model)
    x, u = given["x"], given["u"]
    means = one_step_predictions(model, x, u)
    ahead = None if u is None else u[:2]
    rolled = rollouts(model, x, 2, u, ahead)
    stream = model.filter(B)
    assert isinstance(stream, PathFilter)
    steps = [stream.step(x[t], None if u is None else u[t]) for t in range(T)]
    for row in range(B):
        want = plain.run(*of_row(given, row))
        out = want["out"] if plain.logvar_x is not None else torch.sigmoid(want["out"])
        assert_close("prediction", means[:, row], out[1:], 1e-12)
        assert_close("of a stream", torch.stack([step.predicted[row] for step in steps]), out, 1e-12)
        d, frame = want["d"][-1], x[-1, row]
        for t in range(2):
            one = plain.run(x[:1, row], None if u is None else u[t : t + 1, row], d, frame)
            d, frame = one["d"][0], one["out"][0] if plain.logvar_x is not None else torch.sigmoid(one["out"][0])
            assert_close("rollout", rolled[t, row], frame, 1e-12)


@each_model
def test_chunks_are_one_pass(name: str) -> None:
    model, _ = make(name)
    given = batch(model)
    whole = model(**given)
    cut = [
        {part: None if rows is None else rows[frames] for part, rows in given.items()}
        for frames in (slice(2), slice(2, T))
    ]
    first = model(**cut[0])
    second = model(**cut[1], state=first.state)
    assert_close("elbo", first.elbo + second.elbo, whole.elbo, 1e-12)
    assert_close("d", second.state.d, whole.state.d, 1e-12)


@each_model
def test_it_generates_and_is_kept_in_files(name: str, tmp_path: Path) -> None:
    model, plain = make(name)
    given = batch(model)
    out = model.generate(2, 2, u=None if given["u"] is None else given["u"][:2, :2], sample=False)
    first = plain.run(*of_row(given, 0, slice(1)))["out"][0]
    assert_close(
        "the first frame", out.mean[0, 0], first if plain.logvar_x is not None else torch.sigmoid(first), 1e-12
    )
    forecast = model.forecast(**given, steps=2, samples=3, u_future=None if given["u"] is None else given["u"][:2])
    assert forecast.samples.shape == (3, 2, B, model.x_size)
    model.save_pretrained(tmp_path)
    found = vssn.from_pretrained(tmp_path)
    assert isinstance(found, PGN)
    assert found.config == model.config
    assert_equal("elbo", found(**given).elbo, model(**given).elbo)


def test_a_dark_film_is_learnt() -> None:
    """A ball that moves on by a pixel. With a logistic function round the means all of them were black after a few
    updates, and stayed so."""
    torch.manual_seed(0)
    side, frames = 16, 12
    place = torch.randint(side, (8, 2))
    at = (place + torch.arange(frames)[:, None, None]) % side
    axis = torch.arange(side)
    x = ((axis - at[..., :1])[..., :, None].abs() + (axis - at[..., 1:])[..., None, :].abs() <= 1).float().flatten(2)
    model = PGN(side**2, 32, channels=4, embed_size=32, activation="silu")
    optimizer = torch.optim.Adam(model.parameters(), 5e-3)
    for _ in range(250):
        optimizer.zero_grad()
        model(x).loss.backward()
        optimizer.step()
    error = (one_step_predictions(model, x) - x[1:]).square().sum(-1).mean()
    assert error < 0.3 * (x[1:] - x.mean()).square().sum(-1).mean()


def test_bounds_are_the_likelihood_itself() -> None:
    """Nothing is latent."""
    model, _ = make("square")
    x = batch(model)["x"]
    for bound in ("elbo", "iwae", "fivo"):
        assert_close(bound, vssn.sequence_bounds(model, x, bound=bound, particles=3).total, model(x).elbo, 1e-11)


def test_compiled_exported_and_in_half_precision() -> None:
    model, _ = make("square", torch.float32)
    given = batch(model)
    want = model(**given).elbo
    assert_close("elbo", torch.compile(model, fullgraph=True, backend="aot_eager")(**given).elbo, want, 1e-4)
    with torch.autocast("cpu", torch.bfloat16):
        assert_close("elbo", model(**given).elbo.float(), want, 0.05 * float(want.detach().abs().max()))
    for step in (GenerationStep(model), FilterStep(model)):
        example = step.example()
        exported = torch.export.export(step, (), example).module()
        for part, own in zip(exported(**example), step(**example), strict=True):
            assert_close("step", part, own, 1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"x_size": 35}, "height must be given where x_size is no square, got x_size=35"),
        ({"height": 5}, "height must divide x_size=36 into rows of at least 4 pixels, got 5"),
        ({"height": 12}, "height must divide x_size=36 into rows of at least 4 pixels, got 12"),
        ({"height": 3}, "height must be an int of at least 4, got 3"),
        ({"channels": 0}, "channels must be an int of at least 1, got 0"),
        ({"embed_size": 0}, "embed_size must be an int of at least 1, got 0"),
        ({"hidden_size": 0}, "hidden_size must be an int of at least 1, got 0"),
        ({"likelihood": "nade"}, "likelihood must be one of gaussian, bernoulli, got 'nade'"),
        ({"control": "none"}, "control must be one of previous, both, got 'none'"),
        ({"initial_state": "inferred"}, "initial_state must be one of zeros, learned, got 'inferred'"),
        ({"activation": "elu"}, "activation must be one of tanh, relu, leaky_relu, silu, got 'elu'"),
    ],
)
def test_wrong_arguments_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        PGN(**{"x_size": 36, "hidden_size": D, **options})
