"""VRNN through configurations, training and the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
import torch
import yaml

import vssn
from vssn.cli import main
from vssn.errors import ConfigError
from vssn.training.checkpoints import load_model
from vssn.training.config import check_config
from vssn.training.fit import fit
from vssn_kernels.testing import assert_equal

DAYS = pandas.date_range("2024-01-01", periods=40, freq="D")
MODEL: dict[str, Any] = {
    "name": "vrnn",
    "hidden_size": 6,
    "latent_size": 2,
    "embed_size": 5,
    "likelihood": "mixture",
    "mixture_size": 3,
    "masked": True,
}


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two features, with gaps."""
    angle = np.arange(40) / 7 * 2 * np.pi
    values = pandas.DataFrame({"date": DAYS.strftime("%Y-%m-%d"), "temp": 20 + np.sin(angle), "wind": np.cos(angle)})
    values.loc[[3, 4, 20], "temp"] = np.nan
    path = tmp_path_factory.mktemp("table") / "gaps.csv"
    values.to_csv(path, index=False)
    return path


@pytest.fixture(scope="module")
def run(table: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of `vssn fit` with a YAML file, in chunks."""
    folder = tmp_path_factory.mktemp("run")
    config = {
        "data": {"set": "files", "path": str(table), "window": 12, "batch_size": 4, "standardise": True},
        "model": MODEL,
        "training": {"max_epochs": 2, "accelerator": "cpu", "chunk_length": 5, "kl_start": 0.1, "kl_anneal_updates": 3},
    }
    (folder / "vrnn.yaml").write_text(yaml.safe_dump(config))
    assert main(["fit", "--config", str(folder / "vrnn.yaml"), "--output", str(folder / "run")]) == 0
    return folder / "run"


def test_a_checkpoint_is_the_model(run: Path) -> None:
    model, config = load_model(run / "best.ckpt")
    assert isinstance(model, vssn.VRNN)
    assert isinstance(vssn.from_pretrained(run / "best.ckpt"), vssn.VRNN)
    assert config.model.name == "vrnn"
    assert (model.hidden_size, model.latent_size, model.embedded_size) == (6, 2, 5)
    assert model.config["prior"] == "learned"
    assert model.scaling is not None


@pytest.mark.parametrize(
    ("command", "files"),
    [
        (["forecast", "--steps", "4", "--samples", "5"], {"forecast.csv"}),
        (["impute", "--samples", "4"], {"imputed.csv", "filled.csv"}),
        (["latents"], {"latents.csv"}),
    ],
)
def test_the_commands_take_it(run: Path, table: Path, tmp_path: Path, command: list[str], files: set[str]) -> None:
    name, *options = command
    out = tmp_path / "out"
    assert main([name, str(run / "best.ckpt"), "--data", str(table), *options, "--output", str(out)]) == 0
    assert files <= {path.name for path in out.iterdir()}


def test_it_generates_and_is_described(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "drawn.npz"
    assert main(["generate", str(run / "best.ckpt"), "--steps", "6", "--output", str(out)]) == 0
    capsys.readouterr()
    assert main(["info", str(run / "best.ckpt")]) == 0
    text = capsys.readouterr().out
    assert "model  VRNN" in text
    assert "likelihood              mixture" in text


def test_scores_and_bounds_of_the_command_line(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for bound in ("elbo", "iwae", "fivo"):
        assert main(["evaluate", str(run / "best.ckpt"), "--bound", bound, "--particles", "4"]) == 0
        assert bound.upper() in capsys.readouterr().out


def test_a_run_is_resumed_as_if_it_had_never_stopped(tmp_path: Path) -> None:
    x = torch.randn(4, 9, 3, generator=torch.Generator().manual_seed(0))

    def config(name: str, epochs: int) -> dict[str, Any]:
        return {
            "data": {"batch_size": 2},
            "model": {**MODEL, "masked": False, "prior": "standard"},
            "training": {"max_epochs": epochs, "accelerator": "cpu", "output": str(tmp_path / name)},
        }

    splits = (list(x), list(x[:2]), list(x[:2]))
    whole = fit(config("whole", 3), splits)
    fit(config("parts", 1), splits)
    parts = fit(config("parts", 3), splits, resume=True)
    for name, weight in whole.model.state_dict().items():
        assert_equal(name, parts.model.state_dict()[name], weight)


def test_a_model_from_python_is_trained_with_external_controls(tmp_path: Path) -> None:
    x, u = torch.rand(4, 6, 3).round(), torch.randn(4, 6, 2)
    pairs = list(zip(x, u, strict=True))
    model = vssn.VRNN(3, 4, 2, control="both", control_size=2)
    training = {"max_epochs": 1, "accelerator": "cpu", "output": str(tmp_path / "run"), "coordinated_dropout": 0.2}
    result = fit(model, (pairs, pairs[:2], pairs[:2]), training=training)
    assert np.isfinite(result.test.micro)
    assert load_model(tmp_path / "run" / "best.ckpt")[1].model.control == "both"
    written = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert written["model"]["name"] == "vrnn"
    assert json.dumps(written["model"])


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"prior": "normal"}, "model.prior: expected 'learned' or 'standard', got 'normal'"),
        ({"noise_size": 3}, "model.noise_size: "),
        ({"control": "both"}, "model.control: expected 'previous' with the set 'jsb', which has no external control"),
        ({"control": "external"}, "model.control: expected 'previous' or 'both', got 'external'"),
        ({"initial_state": "inferred"}, "model.initial_state: expected 'zeros' or 'learned', got 'inferred'"),
        ({"likelihood": "uniform"}, "model.likelihood: expected "),
    ],
)
def test_wrong_keys_are_one_line(model: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        check_config(
            {"data": {"set": "jsb", "folder": "x"}, "model": {**MODEL, "likelihood": "bernoulli", **model}}, "c"
        )
    assert "\n" not in str(caught.value)
