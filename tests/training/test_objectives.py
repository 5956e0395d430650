"""Training on bounds of weighted particles, and with a reconstruction that a multiplier holds at a target."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from foreign_model import Foreign
from torch import Tensor

import vssn
from vssn.errors import ConfigError
from vssn.models.vssn import VSSN
from vssn.training.checkpoints import load_model, read_checkpoint
from vssn.training.constraint import LEAST, MOST, Multiplier
from vssn.training.processes import World
from vssn.training.sections import ConstraintSection

X = 6


def frames(seed: int = 0, count: int = 12, steps: int = 8) -> np.ndarray:
    """Coins: log p of a frame is -4.16 without a latent, and 0 with enough of it."""
    return np.random.default_rng(seed).integers(0, 2, (count, steps, X)).astype(np.float32)


PARTS = (frames(0), frames(1, 4), frames(2, 3))


def settings(output: Path, *, model: dict[str, Any] | None = None, **training: Any) -> dict[str, Any]:
    return {
        "data": {"batch_size": 5},
        "model": {"hidden_size": 5, "latent_size": 3, "noise_size": 2} | (model or {}),
        "training": {"output": str(output), "max_epochs": 2, "accelerator": "cpu", "precision": "64-true"} | training,
    }


def fit(config: dict[str, Any], **more: Any) -> vssn.training.fit.FitResult:
    return vssn.fit(config, PARTS, verbose=False, **more)


def rows(folder: Path) -> list[dict[str, str]]:
    lines = [line.split(",") for line in (folder / "metrics.csv").read_text().splitlines()]
    return [dict(zip(lines[0], line, strict=True)) for line in lines[1:]]


def column(folder: Path, name: str) -> list[float]:
    return [float(row[name]) for row in rows(folder)]


def assert_same_run(one: Path, other: Path) -> None:
    for own, its in zip(rows(one), rows(other), strict=True):
        assert {k: v for k, v in own.items() if k != "seconds"} == {k: v for k, v in its.items() if k != "seconds"}
    first, second = read_checkpoint(one / "last.ckpt"), read_checkpoint(other / "last.ckpt")
    for name, weight in first["state_dict"].items():
        assert torch.equal(weight, second["state_dict"][name]), name
    assert first["vssn"].get("constraint") == second["vssn"].get("constraint")


# Particles


@pytest.mark.parametrize("objective", ["iwae", "fivo", "nasmc"])
@pytest.mark.parametrize("universal", ["point", "gaussian"])
def test_validation_has_the_strict_bound_and_the_objectives_own_by_name(
    objective: str, universal: str, tmp_path: Path
) -> None:
    still = {"learning_rate": 1e-30, "max_epochs": 1}
    fit(settings(tmp_path / "elbo", model={"universal": universal}, **still))
    own = {"objective": objective, "particles": 6, "universal": universal}
    fit(settings(tmp_path / "own", model=own, **still))
    for name in ("valid/elbo_per_frame", "valid/kl_z_per_frame", "valid/kl_w_per_frame"):
        assert column(tmp_path / "own", name) == pytest.approx(column(tmp_path / "elbo", name), rel=1e-12), name
    bound = "valid/iwae_per_frame" if objective == "iwae" else "valid/fivo_per_frame"
    assert set(rows(tmp_path / "own")[0]) - set(rows(tmp_path / "elbo")[0]) == {bound}
    (value,), (loss,) = column(tmp_path / "own", bound), column(tmp_path / "own", "valid/loss")
    if universal == "point":
        assert value == pytest.approx(-loss, rel=1e-12)
    else:
        assert value > -loss + 0.1
    assert column(tmp_path / "own", "valid/elbo_per_frame")[0] < value < 0


@pytest.mark.parametrize("objective", ["iwae", "fivo", "nasmc"])
@pytest.mark.parametrize("chunk_length", [None, 3])
def test_a_run_on_particles_goes_on_as_if_it_had_not_stopped(
    objective: str, chunk_length: int | None, tmp_path: Path
) -> None:
    own: dict[str, Any] = {"model": {"objective": objective, "particles": 3}, "chunk_length": chunk_length}
    own["learning_rate"] = 0.03
    fit(settings(tmp_path / "straight", max_epochs=3, **own))
    fit(settings(tmp_path / "parts", max_epochs=1, **own))
    fit(settings(tmp_path / "parts", max_epochs=3, **own), resume=True)
    assert_same_run(tmp_path / "straight", tmp_path / "parts")
    assert len(set(column(tmp_path / "straight", "train/loss"))) == 3
    again, config = load_model(tmp_path / "parts" / "best.ckpt")
    assert (again.objective, again.particle_count) == (objective, 3)
    assert (config.model.objective, config.model.particles) == (objective, 3)


def test_half_precision_and_models_that_filter(tmp_path: Path) -> None:
    for name, model in (("vssn", {}), ("vrnn", {"name": "vrnn", "hidden_size": 5, "latent_size": 3})):
        own = model | {"objective": "fivo", "particles": 3}
        config = settings(tmp_path / name, precision="bf16-mixed", max_epochs=1)
        config["model"] = own if model else config["model"] | own
        fit(config)
        assert all(math.isfinite(float(value)) for value in rows(tmp_path / name)[0].values())


# What does not go together


@pytest.mark.parametrize(
    ("model", "training", "message"),
    [
        ({"objective": "iwae"}, {}, "model: particles must be given with objective='iwae'"),
        ({"particles": 2}, {}, "model: particles must be None with objective='elbo'"),
        ({"objective": "fivo", "particles": 2, "free_bits": 1.0}, {}, "model: free_bits must be 0 with objective="),
        (
            {"objective": "iwae", "particles": 2},
            {"coordinated_dropout": 0.1},
            "training.coordinated_dropout: expected 0 with model.objective 'iwae'",
        ),
        (
            {"objective": "nasmc", "particles": 2},
            {"kl_start": 0.5, "kl_anneal_updates": 5},
            "training.kl_anneal_updates: expected 0 with model.objective 'nasmc'",
        ),
        (
            {"objective": "fivo", "particles": 2},
            {"constraint": {"target": -1}},
            "training.constraint: expected none with model.objective 'fivo'",
        ),
        (
            {"objective": "paper"},
            {"constraint": {"target": -1}},
            "training.constraint: expected none with model.objective 'paper'",
        ),
        (
            {},
            {"constraint": {"target": -1}, "kl_start": 0.5, "kl_anneal_updates": 5},
            "training.kl_anneal_updates: expected 0 with training.constraint",
        ),
        (
            {},
            {"constraint": {"target": -1}, "coordinated_dropout": 0.1},
            "training.coordinated_dropout: expected 0 with training.constraint",
        ),
        ({}, {"constraint": {}}, "training.constraint.target: missing; this key must be given"),
        (
            {},
            {"constraint": {"target": -1, "rates": 1}},
            "training.constraint.rates: unknown key; did you mean rate? Known here: target, per, rate, average, start",
        ),
        ({}, {"constraint": {"target": -1, "start": 0}}, "training.constraint.start: expected a number greater than 0"),
        ({}, {"constraint": -1}, "training.constraint: expected a section with keys of its own, got -1"),
    ],
)
def test_what_does_not_go_together_is_one_line(
    model: dict[str, Any], training: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError) as error:
        fit(settings(tmp_path / "run", model=model, **training))
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


def test_a_model_from_python_is_checked_too(tmp_path: Path) -> None:
    model = VSSN(X, 5, 3, objective="nasmc", particles=2)
    training = {"output": str(tmp_path), "kl_start": 0.5, "kl_anneal_updates": 3}
    with pytest.raises(ConfigError, match=r"training\.kl_anneal_updates: expected 0 with model\.objective 'nasmc'"):
        vssn.fit(model, PARTS, training=training, verbose=False)
    encoder = torch.nn.Sequential(torch.nn.Linear(X, 4))
    own = VSSN(X, 5, 3, embed_size=4, encoder=encoder, objective="iwae", particles=2)
    with pytest.raises(ConfigError, match=r"training\.constraint: expected none with model\.objective 'iwae'"):
        vssn.fit(own, PARTS, training={"output": str(tmp_path), "constraint": {"target": -1}}, verbose=False)


# The multiplier


def test_the_multiplier_step_by_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the reconstruction of every update alone, in plain numbers; the gradients are the Lagrangian's."""
    calls: list[tuple[float, float]] = []
    gradients: list[tuple[float, float]] = []
    forward = VSSN.forward

    def watched(model: VSSN, x: Tensor, *args: Any, kl_weight: Any = 1.0, **kwargs: Any) -> Any:
        out = forward(model, x, *args, kl_weight=kl_weight, **kwargs)
        if model.training:
            calls.append((float(kl_weight), float(out.reconstruction.detach().sum()) / x[..., 0].numel()))
            bias = model.emission.out.bias
            lagrangian = (out.kl_z + out.kl_w).mean() - out.reconstruction.mean() / kl_weight
            (want,) = torch.autograd.grad(lagrangian, bias, retain_graph=True)
            gradients.append((float(want.norm()), 0.0))
            bias.register_hook(lambda got: gradients.append((0.0, float(got.norm()))) or got)
        return out

    monkeypatch.setattr(VSSN, "forward", watched)
    constraint = {"target": -2.5, "rate": 0.3, "average": 0.7, "start": 2.0}
    fit(settings(tmp_path / "run", constraint=constraint, gradient_clip_norm=None))
    value, mean = 2.0, None
    for weight, reconstruction in calls:
        assert weight == pytest.approx(1 / value, rel=1e-12)
        missing = -2.5 - reconstruction
        mean = missing if mean is None else 0.7 * mean + 0.3 * missing
        value = value * math.exp(0.3 * mean)
    assert len(calls) == 6
    assert column(tmp_path / "run", "multiplier")[-1] == pytest.approx(value, rel=1e-12)
    assert column(tmp_path / "run", "constraint")[-1] == pytest.approx(mean, rel=1e-12)
    assert column(tmp_path / "run", "kl_weight")[-1] == pytest.approx(1 / value, rel=1e-12)
    wanted = [want for want, got in gradients if got == 0.0]
    first = next(got for want, got in gradients if want == 0.0)
    assert first == pytest.approx(wanted[0], rel=1e-9)


@pytest.mark.one_in(2)
@pytest.mark.parametrize(("before", "per"), [(-1.0, "entry"), (-3.2, "frame")])
def test_the_target_is_reached_from_both_sides(before: float, per: str) -> None:
    """Held above, or below, and then at -2 nats a frame; the run of a trainer is the test before this one."""
    x, lengths = torch.from_numpy(frames(0, 40, 6)).transpose(0, 1).contiguous(), torch.full((40,), 6)
    torch.manual_seed(0)
    model, unit = VSSN(X, 8, 8, control="none"), X if per == "entry" else 1
    optimizer, state, ends = torch.optim.Adam(model.parameters(), 0.01), None, []
    for target in (before, -2.0):
        section = ConstraintSection(target=target / unit, per=per, rate=0.01 * unit, average=0.9, start=3.0)
        multiplier, values = Multiplier(section), []
        if state is not None:
            multiplier.load(state)
        for _ in range(700):
            out = model(x, kl_weight=1 / multiplier.value)
            optimizer.zero_grad()
            (out.loss * multiplier.value.float()).backward()
            optimizer.step()
            multiplier.update(multiplier.measure(out.reconstruction, x, lengths, False), World())
            values.append(float(out.reconstruction.detach().mean()))
        state = multiplier.state()
        ends.append((np.mean(values[-50:]), state["multiplier"]))
    (first, high), (last, low) = ends
    assert first > -1.2 if before > -2 else first < -2.8, ends
    assert abs(last + 2.0) < 0.15, ends
    assert (low < high) == (before > -2.0), ends


@pytest.mark.parametrize("chunk_length", [None, 3])
def test_a_constrained_run_goes_on_as_if_it_had_not_stopped(chunk_length: int | None, tmp_path: Path) -> None:
    more = {"constraint": {"target": -3.0, "rate": 0.1}, "chunk_length": chunk_length}
    fit(settings(tmp_path / "straight", max_epochs=4, **more))
    fit(settings(tmp_path / "parts", max_epochs=2, **more))
    kept = read_checkpoint(tmp_path / "parts" / "last.ckpt")["vssn"]["constraint"]
    assert kept["multiplier"] != 1.0
    fit(settings(tmp_path / "parts", max_epochs=4, **more), resume=True)
    assert_same_run(tmp_path / "straight", tmp_path / "parts")
    load_model(tmp_path / "parts" / "best.ckpt")


def test_a_run_may_take_a_constraint_later(tmp_path: Path) -> None:
    fit(settings(tmp_path / "run", max_epochs=1))
    fit(settings(tmp_path / "run", max_epochs=2, constraint={"target": -3.0}), resume=True)
    fit(settings(tmp_path / "run", max_epochs=3), resume=True)
    assert [bool(row["multiplier"]) for row in rows(tmp_path / "run")] == [False, True, False]


def test_a_multiplier_counts_what_is_observed_and_stays_in_bounds() -> None:
    x, lengths = torch.zeros(3, 2, 4), torch.tensor([3, 1])
    x[0, 0, 0] = torch.nan
    reconstruction = torch.full((3, 2), -1.0)
    for per, masked, want in (("frame", True, 4), ("entry", False, 16), ("entry", True, 15)):
        multiplier = Multiplier(ConstraintSection(target=0.0, per=per))
        assert multiplier.measure(reconstruction, x, lengths, masked).tolist() == [-6.0, want]
    for target, end in ((1e9, MOST), (-1e9, LEAST)):
        multiplier = Multiplier(ConstraintSection(target=target))
        multiplier.update(torch.tensor([0.0, 1.0]).double(), World())
        assert float(multiplier.value) == end
        multiplier.update(torch.zeros(2).double(), World())  # nothing was observed
        assert multiplier.state() == {"multiplier": end, "constraint": target}


def test_a_foreign_model_takes_a_constraint(tmp_path: Path) -> None:
    """Whatever model takes a kl_weight."""
    training = {"output": str(tmp_path), "max_epochs": 1, "constraint": {"target": -3.0}}
    vssn.fit(Foreign(VSSN(X, 5, 3)), PARTS, training=training, verbose=False)
    assert column(tmp_path, "multiplier")[0] != 1.0
