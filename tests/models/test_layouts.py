"""A model that is batch_first has the scores, states and training of the time-major one with the same weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from small_models import U, X, batch, make
from torch import Tensor

from vssn import VSSN
from vssn.data.batching import SequenceBatch
from vssn.data.pendulum import pendulum_splits
from vssn.demo import forecast_films
from vssn.experiments.linear_probe import probe_pendulum
from vssn.experiments.tasks.base import Effort
from vssn.experiments.tasks.registry import TASKS
from vssn.inference.filtering import latent_states, one_step_predictions, prediction_error, rollouts, squared_errors
from vssn.inference.importance import sequence_bounds
from vssn.inference.scoring import evaluate, evaluate_bound
from vssn.training.config import check_config
from vssn.training.module import TrainingModule
from vssn.utils.evaluation_mode import time_major
from vssn_kernels.testing import assert_close

SIZES = [(4, 4), (6, 3)]  # T, B: equal, so that nothing but the numbers tells the layouts apart, and not
LENGTHS = {4: torch.tensor([4, 0, 3, 1]), 3: torch.tensor([6, 2, 5])}


def both(name: str = "both", **more: Any) -> tuple[VSSN, VSSN]:
    """The same weights, time-major and batch-major."""
    return make(name, **more), make(name, batch_first=True, **more)


def layouts(steps: int, rows: int) -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor]:
    given = batch(make("both"), steps, rows)
    x, u = given["x"], given["u"]
    return {"x": x, "u": u}, {"x": x.transpose(0, 1), "u": u.transpose(0, 1)}, LENGTHS[rows]


@pytest.mark.parametrize(("steps", "rows"), SIZES)
@pytest.mark.parametrize("name", ["both", "smoothing", "external"])
def test_scores(name: str, steps: int, rows: int) -> None:
    given, _, lengths = layouts(steps, rows)
    loader = [SequenceBatch(given["x"], lengths, given["u"])]
    plain, other = both(name)
    for score in (
        lambda model: evaluate(model, loader, samples=2),
        lambda model: evaluate_bound(model, loader, particles=3),
    ):
        want, got = score(plain)._asdict(), score(other)._asdict()
        for key, value in want.items():
            assert got[key] == (pytest.approx(value, rel=1e-12) if isinstance(value, float) else value), key
    assert other.batch_first
    assert other.layer.batch_first


@pytest.mark.parametrize(("steps", "rows"), SIZES)
def test_bounds_states_predictions_and_rollouts(steps: int, rows: int) -> None:
    given, swapped, lengths = layouts(steps, rows)
    plain, other = both()
    mask = torch.rand(steps, rows, X) > 0.3
    want = sequence_bounds(plain, **given, lengths=lengths, particles=3, mask=mask)
    got = sequence_bounds(other, **swapped, lengths=lengths, particles=3, mask=mask.transpose(0, 1))
    for name, a, b in zip(want._fields, got, want, strict=True):
        assert_close(name, a, b, 1e-12)
    for options in ({"inference": "smoothing"}, {"inference": "filtering"}, {"inference": "filtering", "samples": 2}):
        want = latent_states(plain, **given, lengths=lengths, **options)
        got = latent_states(other, **swapped, lengths=lengths, **options)
        for name, a, b in zip(want._fields, got, want, strict=True):
            assert_close(name, a.transpose(0, 1), b, 1e-12)
    want = one_step_predictions(plain, **given, lengths=lengths)
    got = one_step_predictions(other, **swapped, lengths=lengths)
    assert_close("predictions", got.transpose(0, 1), want, 1e-12)
    error = prediction_error(got, swapped["x"], lengths, batch_first=True)
    assert error == pytest.approx(prediction_error(want, given["x"], lengths), rel=1e-12)
    future = torch.randn(5, rows, U, dtype=torch.float64)
    want = rollouts(plain, given["x"], 5, given["u"], future)
    got = rollouts(other, swapped["x"], 5, swapped["u"], future.transpose(0, 1))
    assert_close("rollout", got.transpose(0, 1), want, 1e-12)
    errors = squared_errors(got, torch.zeros_like(got), batch_first=True)
    assert_close("errors", errors, squared_errors(want, torch.zeros_like(want)), 1e-12)


@pytest.mark.parametrize(("steps", "rows"), SIZES)
def test_a_training_step(steps: int, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    given, _, lengths = layouts(steps, rows)
    data = SequenceBatch(given["x"], lengths, given["u"])
    settings = {
        "data": {"set": "pendulum"},
        "model": {"hidden_size": 4, "latent_size": 2},
        "training": {"chunk_length": 3, "output": ""},
    }
    config = check_config(settings, "")
    trained = []
    for model in both():
        module = TrainingModule(model.train(), config)
        optimizer = module.configure_optimizers()
        monkeypatch.setattr(module, "optimizers", lambda optimizer=optimizer: optimizer)
        monkeypatch.setattr(module, "manual_backward", lambda loss: loss.backward())
        monkeypatch.setattr(module, "log", lambda *args, **more: None)
        module.on_validation_epoch_start()
        for _ in range(2):
            module.training_step(data, 0)
        module.validation_step(data, 0)
        trained.append((dict(model.named_parameters()), *module.train_sums, *module.valid_sums, *module.valid_losses))
    for name, weight in trained[0][0].items():
        assert_close(name, trained[1][0][name], weight, 1e-12)
    for a, b in zip(trained[1][1:], trained[0][1:], strict=True):
        assert_close("scores", a, b, 1e-12)


def test_what_the_tables_measure() -> None:
    settings = {
        "data": {"set": "pendulum", "num_train": 6, "num_valid": 2, "num_test": 15, "num_frames": 15, "batch_size": 4},
        "model": {"hidden_size": 4, "latent_size": 2, "control": "external"},
    }
    config = check_config(settings, "")
    torch.manual_seed(0)
    plain = config.build_model()
    other = VSSN(256, 4, 2, control="external", control_size=1, batch_first=True)
    other.load_state_dict(plain.state_dict())
    films = pendulum_splits(num_train=6, num_valid=2, num_test=15, num_steps=15)
    for name, a, b in zip(
        ("truth", "forecast"), forecast_films(other, films.test), forecast_films(plain, films.test), strict=True
    ):
        assert_close(name, a, b, 1e-6)
    for a, b in zip(probe_pendulum(other, *films[::2]), probe_pendulum(plain, *films[::2]), strict=True):
        assert_close("regression", a, b, 1e-3)
    assert TASKS["demo"].score(other, config, Effort()) == pytest.approx(
        TASKS["demo"].score(plain, config, Effort()), rel=1e-5
    )
    balls = check_config(
        {
            "data": {"set": "balls", "num_train": 1, "num_valid": 1, "num_test": 3, "num_frames": 40},
            "model": {"hidden_size": 4, "latent_size": 2},
        },
        "",
    )
    plain = balls.build_model()
    other = VSSN(900, 4, 2, batch_first=True)
    other.load_state_dict(plain.state_dict())
    want, got = (TASKS["balls"].score(model, balls, Effort()) for model in (plain, other))
    for name, value in want.items():
        assert got[name] == pytest.approx(value, rel=1e-5), name


def test_the_layout_comes_back_after_an_error_and_a_compiled_model_has_it_too() -> None:
    given, _, lengths = layouts(6, 3)
    plain, other = both()
    with time_major(other):
        assert (other.batch_first, other.layer.batch_first) == (False, False)
    with pytest.raises(ValueError, match="x must have shape"), time_major(other):
        other(torch.zeros(3))
    assert (other.batch_first, other.layer.batch_first, plain.batch_first) == (True, True, False)
    loader = [SequenceBatch(given["x"], lengths, given["u"])]
    compiled = torch.compile(other, backend="eager")
    assert evaluate(compiled, loader).micro == pytest.approx(evaluate(plain, loader).micro, rel=1e-12)
    assert other.batch_first
