"""`vssn.fit` leaves the process as it was, and the run in one folder; what it cannot train on is said."""

from __future__ import annotations

import contextlib
import os
import random
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import vssn
from vssn.errors import ConfigError, DataError
from vssn.training.config import check_config
from vssn.training.run_directory import what_is_kept

VARIABLES = ("PL_GLOBAL_SEED", "PL_SEED_WORKERS")


def model(**more: Any) -> vssn.VSSN:
    return vssn.VSSN(2, 4, 2, 1, likelihood="gaussian", **more)


def sequences(dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(6, 5, 2, generator=torch.Generator().manual_seed(0)).to(dtype)


def train(own: vssn.VSSN, x: Any, output: object, **training: Any) -> vssn.FitResult:
    parts = (x[:4], x[4:5], x[5:])
    settings = {"output": str(output), "max_epochs": 1, "accelerator": "cpu", **training}
    return vssn.fit(own, parts, training=settings, verbose=False)


@pytest.mark.parametrize("fails", [False, True])
def test_generators_and_environment_are_as_before(fails: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLES[0], "7")
    monkeypatch.delenv(VARIABLES[1], raising=False)
    own, x = model(), sequences()
    x[0, 0, 0] = torch.inf if fails else 0
    own_state, of_numpy, of_torch = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    with pytest.raises(DataError) if fails else contextlib.nullcontext():
        train(own, x, tmp_path / "run")
    assert random.getstate() == own_state
    assert np.random.get_state()[1].tolist() == of_numpy[1].tolist()  # noqa: NPY002
    assert torch.get_rng_state().equal(of_torch)
    assert [os.environ.get(name) for name in VARIABLES] == ["7", None]


def test_models_made_between_two_fits_differ(tmp_path: Path) -> None:
    """Of an ensemble all members but the first were one."""
    weights = []
    for number in range(3):
        own = model()
        weights.append(torch.cat([parameter.detach().flatten().clone() for parameter in own.parameters()]))
        train(own, sequences(), tmp_path / str(number))
    assert not weights[1].equal(weights[2])
    assert not weights[0].equal(weights[1])


def test_a_home_in_the_name_of_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "here").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "here")
    train(model(), sequences(), "~/runs/mine")
    assert list((tmp_path / "here").iterdir()) == []
    names = {path.name for path in (tmp_path / "home" / "runs" / "mine").iterdir()}
    assert names >= {"best.ckpt", "last.ckpt", "config.yaml", "metrics.csv", "tensorboard"}
    settings = {"data": {"set": "jsb"}, "model": {"hidden_size": 4, "latent_size": 2}}
    config = check_config({**settings, "training": {"output": "~/runs/mine", "max_epochs": 1}}, "")
    assert str(tmp_path / "home" / "runs" / "mine") in what_is_kept(config)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_model_of_another_dtype_names_the_precision(dtype: torch.dtype, tmp_path: Path) -> None:
    wanted = "expected '64-true' with a model in torch.float64" if dtype is torch.float64 else "got torch.bfloat16"
    with pytest.raises(ConfigError, match=rf"^training.precision: .*{wanted}"):
        train(model().to(dtype), sequences(torch.float64), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_model_in_double_precision_trains(tmp_path: Path) -> None:
    own = model().double()
    train(own, sequences(torch.float64), tmp_path / "run", precision="64-true")
    assert next(own.parameters()).dtype is torch.float64


def test_infinity_is_not_what_a_mask_is_for(tmp_path: Path) -> None:
    x = sequences()
    x[0, 0, 0], x[1, 0, 0] = torch.inf, torch.nan
    advice = "NaN stands for what is missing; leave out what is infinite or too large for float32"
    with pytest.raises(DataError, match=advice):
        train(model(masked=True), x, tmp_path / "run")


FAR = 5412345 + 0.2 * np.sin(np.arange(300) / 5)[:, None]  # metres of a northing
NEAR = {
    "float32": np.random.default_rng(0).normal(size=(30, 1)).astype(np.float32),
    "numbers in float64": np.random.default_rng(0).normal(size=(30, 1)),
    "a constant": np.full((30, 1), 0.1),
    "rounding of float64": np.full((30, 1), 0.1) + np.where(np.arange(30) % 2, 1, -1)[:, None] * 1e-17,
    "a whole constant": np.full((30, 1), 16777217),
    "counts": np.arange(30)[:, None],
    "gaps": np.where(np.arange(30) % 3, np.random.default_rng(0).normal(size=30), np.nan)[:, None],
}


def test_what_float32_does_not_hold_is_said(tmp_path: Path) -> None:
    from vssn.data.formats import read

    said = r"feature 0: float32, which it becomes, rounds it by up to 0\.2\d*, and its standard deviation is 0\.14"
    parts = [FAR[:200], FAR[200:250], FAR[250:]]
    own = vssn.VSSN(1, 4, 2, 1, likelihood="gaussian", scaling=vssn.Scaling.identity(1))
    settings = {"output": str(tmp_path / "run"), "max_epochs": 1, "accelerator": "cpu"}
    with pytest.warns(UserWarning, match=said):
        vssn.fit(own, tuple([part] for part in parts), training=settings, verbose=False)
    with pytest.warns(UserWarning, match=said):
        vssn.Forecaster(max_epochs=1, random_state=0).fit(FAR)
    np.savetxt(tmp_path / "far.csv", FAR, header="northing", comments="", fmt="%.6f")
    with pytest.warns(UserWarning, match=said):
        read(str(tmp_path / "far.csv"))


@pytest.mark.parametrize("name", NEAR)
def test_other_numbers_are_not_spoken_of(name: str) -> None:
    from vssn.utils.values import warn_of_rounding

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_rounding("x", torch.from_numpy(NEAR[name]))
