"""DVBF-LL and PGN through configurations, training and the command line, in chunks and resumed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

import vssn
from vssn.cli import main
from vssn.errors import ConfigError
from vssn.training.checkpoints import load_model
from vssn.training.config import check_config, load_config
from vssn.training.fit import fit
from vssn_kernels.testing import assert_equal

QUICK = {"num_train": 6, "num_valid": 2, "num_test": 2, "num_frames": 6, "batch_size": 3}
PEERS: dict[str, dict[str, Any]] = {
    "dvbf": {
        "data": {"set": "pendulum", **QUICK},
        "model": {"name": "dvbf", "latent_size": 3, "noise_size": 2, "matrices": 4, "mlp_size": 8, "embed_size": 5},
    },
    "pgn": {
        "data": {"set": "balls", **QUICK},
        "model": {"name": "pgn", "hidden_size": 6, "channels": 2, "embed_size": 5},
    },
}
CLASSES = {"dvbf": vssn.DVBF, "pgn": vssn.PGN}
each_peer = pytest.mark.parametrize("name", PEERS)


def config(name: str, folder: Path, epochs: int, **more: Any) -> dict[str, Any]:
    training = {"max_epochs": epochs, "accelerator": "cpu", "output": str(folder), **more}
    return {**PEERS[name], "training": training}


@each_peer
def test_a_run_is_scored_and_its_checkpoint_is_the_model(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(config(name, tmp_path / "run", 2, chunk_length=4)))
    assert main(["fit", "--config", str(file)]) == 0
    best = tmp_path / "run" / "best.ckpt"
    model, written = load_model(best)
    assert isinstance(model, CLASSES[name])
    assert isinstance(vssn.from_pretrained(best), CLASSES[name])
    assert written.model.name == name
    capsys.readouterr()
    for bound in ("elbo", "iwae", "fivo"):
        assert main(["evaluate", str(best), "--bound", bound, "--particles", "3"]) == 0
        assert bound.upper() in capsys.readouterr().out
    assert main(["info", str(best)]) == 0
    assert f"model  {CLASSES[name].__name__}" in capsys.readouterr().out
    assert main(["generate", str(best), "--steps", "3", "--output", str(tmp_path / "drawn.npz")]) == 0


@each_peer
def test_a_run_is_resumed_as_if_it_had_never_stopped(name: str, tmp_path: Path) -> None:
    whole = fit(config(name, tmp_path / "whole", 3))
    fit(config(name, tmp_path / "parts", 1))
    parts = fit(config(name, tmp_path / "parts", 3), resume=True)
    assert np.isfinite(parts.test.micro)
    for part, weight in whole.model.state_dict().items():
        assert_equal(part, parts.model.state_dict()[part], weight)


def test_their_keys_are_typed() -> None:
    for name, key, value in (("dvbf", "matrices", 0), ("dvbf", "hidden_size", 3), ("pgn", "channels", 0)):
        settings = PEERS[name]
        with pytest.raises(ConfigError, match=rf"model\.{key}"):
            check_config({**settings, "model": {**settings["model"], key: value}}, "here")
    with pytest.raises(ConfigError, match=r"model\.likelihood: .*'gaussian' or 'bernoulli'"):
        check_config({**PEERS["pgn"], "model": {**PEERS["pgn"]["model"], "likelihood": "nade"}}, "here")
    assert check_config(PEERS["dvbf"], "here").model.control == "external"


@pytest.mark.parametrize("name", ["pendulum-dvbf", "balls-pgn"])
def test_their_configurations_build(name: str) -> None:
    settings = load_config(name)
    model = settings.build_model()
    assert type(model).__name__.lower() == settings.model.name
    x = torch.rand(2, 1, model.x_size)
    u = torch.rand(2, 1, 1) if model.control_size else None
    assert model(x, u).loss.isfinite()
