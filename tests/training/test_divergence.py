"""An update that is not finite: the run stops and says at which update and in which tensor, or leaves it out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from test_training import assert_same_run, music_config, music_folder, rows
from torch import nn

from vssn.data.batching import SequenceBatch
from vssn.errors import TrainingError
from vssn.inference.scoring import evaluate, evaluate_bound
from vssn.models.vssn import VSSN
from vssn.training.checkpoints import read_checkpoint
from vssn.training.divergence import gradient_norm, what_is_not_finite
from vssn.training.fit import fit
from vssn.training.module import TrainingModule


@pytest.fixture(scope="module")
def music(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return music_folder(tmp_path_factory.mktemp("music"))


def spoil(monkeypatch: pytest.MonkeyPatch, tried: tuple[int, ...], value: float = torch.nan) -> None:
    """Those of the updates that are tried, counted in each epoch from 1, have one such entry in a gradient."""
    backward = TrainingModule.manual_backward

    def spoiled(module: TrainingModule, loss: Any, *more: Any) -> None:
        backward(module, loss, *more)
        if module.updates in tried:
            gradient = module.model.get_parameter("layer.duration.weight_hh").grad
            assert gradient is not None
            gradient[0, 0] = value

    monkeypatch.setattr(TrainingModule, "manual_backward", spoiled)


@pytest.mark.parametrize("clip", [1.0, None])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_stop_names_update_and_tensor(
    clip: float | None, value: float, music: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(monkeypatch, (3,), value)
    message = r"^training diverged in epoch 1, update 3: the gradient of layer\.duration\.weight_hh is not finite, with"
    with pytest.raises(TrainingError, match=message) as caught:
        fit(music_config(music, tmp_path / "run", gradient_clip_norm=clip))
    assert str(caught.value).endswith("or set training.on_nan to skip")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("more", [{}, {"chunk_length": 4}], ids=["whole", "chunks"])
def test_skip_leaves_the_update_out_and_resumes_bitwise(
    more: dict[str, Any],
    music: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    spoil(monkeypatch, (1, 3))
    fit(music_config(music, tmp_path / "whole", on_nan="skip", max_epochs=3, **more))
    assert "2 updates skipped" in capsys.readouterr().out
    fit(music_config(music, tmp_path / "parts", on_nan="skip", max_epochs=1, **more))
    fit(music_config(music, tmp_path / "parts", on_nan="skip", max_epochs=3, **more), resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")
    found = read_checkpoint(tmp_path / "parts" / "last.ckpt")
    assert found["vssn"]["skipped_updates"] == 6
    assert all(weight.isfinite().all() for weight in found["state_dict"].values())
    assert "nan" not in str(rows(tmp_path / "parts"))


def test_skip_changes_nothing_where_all_is_finite(music: Path, tmp_path: Path) -> None:
    fit(music_config(music, tmp_path / "stop"))
    fit(music_config(music, tmp_path / "skip", on_nan="skip"))
    assert_same_run(tmp_path / "stop", tmp_path / "skip")


def test_an_epoch_of_which_nothing_is_left_ends_the_run(
    music: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(monkeypatch, tuple(range(1, 100)))
    with pytest.raises(
        TrainingError, match=r"^training diverged in epoch 3: none of the last 12 updates is finite; lower"
    ):
        fit(music_config(music, tmp_path / "whole", on_nan="skip", max_epochs=5))
    fit(music_config(music, tmp_path / "parts", on_nan="skip", max_epochs=2))
    with pytest.raises(
        TrainingError, match=r"^training diverged in epoch 3: none of the last 12 updates is finite; lower"
    ):
        fit(music_config(music, tmp_path / "parts", on_nan="skip", max_epochs=5), resume=True)


def test_an_epoch_of_one_update_may_be_left_out(
    music: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It ended the run, which `skip` is to go on with."""
    backward = TrainingModule.manual_backward

    def spoiled(module: TrainingModule, loss: Any, *more: Any) -> None:
        backward(module, loss, *more)
        if module.current_epoch == 1:
            module.model.get_parameter("layer.duration.weight_hh").grad.fill_(torch.inf)

    monkeypatch.setattr(TrainingModule, "manual_backward", spoiled)
    config = music_config(music, tmp_path / "run", on_nan="skip", max_epochs=3)
    fit(config.model_copy(update={"data": config.data.model_copy(update={"batch_size": 100})}))
    assert "1 updates skipped" in capsys.readouterr().out
    assert [row["train/loss"] == "nan" for row in rows(tmp_path / "run")] == [False, True, False]


def test_what_is_named_first() -> None:
    model = nn.Linear(2, 1)
    model(torch.ones(1, 2)).sum().backward()
    loss = torch.tensor(1.0)
    assert what_is_not_finite(model, loss, gradient_norm(model)) is None
    assert what_is_not_finite(model, loss * torch.inf, gradient_norm(model)) == "the loss is inf"
    assert model.weight.grad is not None
    model.weight.grad[0, 0] = torch.inf
    said = what_is_not_finite(model, loss, gradient_norm(model))
    assert said == "the gradient of weight is not finite, with a loss of 1"
    with torch.no_grad():
        model.bias[0] = torch.nan
    said = what_is_not_finite(model, None, gradient_norm(model))
    assert said == "the parameter bias is not finite"
    model.bias.data.zero_()
    model.weight.grad.fill_(1e30)  # clipped, they would be zero, and nothing would be said
    said = what_is_not_finite(model, loss, gradient_norm(model))
    assert said == "the norm of the gradients is not finite, with a loss of 1"


def diverged() -> VSSN:
    """The state behind any frame is not finite."""
    model = VSSN(1, 4, 2, 2, likelihood="gaussian", inference="causal")
    model.get_parameter("layer.duration.weight_hh").data.fill_(torch.nan)
    return model


@pytest.mark.parametrize("on_nan", ["stop", "skip"])
def test_a_validation_that_goes_on_from_frames_before_says_so_too(
    on_nan: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was called a wrong argument, with the settings that are proposed."""
    (tmp_path / "own.csv").write_text("v\n" + "\n".join(str(index % 7) for index in range(40)))
    settings = {
        "data": {"set": "files", "path": str(tmp_path / "own.csv"), "split": "time"},
        "model": {"hidden_size": 4, "latent_size": 2, "likelihood": "gaussian"},
        "training": {"output": str(tmp_path / "run"), "max_epochs": 1, "accelerator": "cpu", "on_nan": on_nan},
    }
    step = TrainingModule.training_step

    def spoilt(module: TrainingModule, *batch: Any) -> None:
        step(module, *batch)
        module.model.get_parameter("layer.duration.weight_hh").data.fill_(torch.nan)

    monkeypatch.setattr(TrainingModule, "training_step", spoilt)
    with pytest.raises(TrainingError, match=r"^training diverged in epoch 1: a state is not finite; lower training\."):
        fit(settings)
    assert not (tmp_path / "run").exists()


def test_a_model_that_has_diverged_is_no_wrong_argument() -> None:
    x = torch.randn(5, 2, 1)
    lengths = torch.tensor([5, 5])
    batch = SequenceBatch(x, lengths, None, SequenceBatch(x, lengths))
    filtering = diverged().filter(2)
    filtering.step(x[0])
    for call in (
        lambda: evaluate(diverged(), [batch]),
        lambda: evaluate_bound(diverged(), [batch], particles=2),
        lambda: diverged().forecast(x, 2),
        lambda: diverged().forecast(x, 2, samples=3),
        lambda: filtering.step(x[1], mask=torch.ones(2, dtype=torch.bool)),
    ):
        with pytest.raises(TrainingError, match=r"^the model has diverged: a state is not finite; lower training\."):
            call()
