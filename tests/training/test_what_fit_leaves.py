"""`vssn.fit` leaves the process as it was, and the run in one folder; what it cannot train on is said."""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

import vssn
from vssn.cli import main
from vssn.data.formats import read
from vssn.data.formats.base import as_frames
from vssn.errors import ConfigError, DataError
from vssn.training.config import check_config, load_config
from vssn.training.run_directory import what_is_kept
from vssn.utils.values import warn_of_rounding

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
    for number in range(4):
        own = model()
        weights.append(torch.cat([parameter.detach().flatten().clone() for parameter in own.parameters()]))
        train(own, sequences(), tmp_path / str(number))
    assert not any(one.equal(other) for one, other in itertools.combinations(weights, 2))


def test_what_is_trained_does_not_hang_on_what_was_drawn_before(tmp_path: Path) -> None:
    """Generators start from training.seed, and that of a caller has no part in it."""
    scores = []
    for number in range(2):
        torch.manual_seed(0)
        own = model()
        torch.manual_seed(number)
        scores.append(train(own, sequences(), tmp_path / str(number)).valid)
    assert scores[0] == scores[1]


@pytest.mark.parametrize("name", ["metrics.csv", "config.yaml"])
def test_what_no_run_has_written_is_not_replaced(name: str, tmp_path: Path) -> None:
    """A table of data in that folder was, by the run's metrics; a configuration lost its comments."""
    file = tmp_path / name
    texts = {"metrics.csv": "epoch,a\n1,2\n", "config.yaml": "# mine\ndata:\n  set: jsb\n"}
    file.write_text(texts[name], encoding="utf-8")
    with pytest.raises(ConfigError, match=rf"^training\.output: .* holds a {name} but no checkpoint, .* move that"):
        train(model(), sequences(), tmp_path)
    assert file.read_text(encoding="utf-8") == texts[name]
    assert {path.name for path in tmp_path.iterdir()} == {name}


def test_what_a_killed_run_has_left_is_replaced(tmp_path: Path) -> None:
    """Of any version: it leaves the file that it had locked."""
    for name in ("config.yaml", "metrics.csv", ".training"):
        (tmp_path / name).touch()
    train(model(), sequences(), tmp_path)
    assert (tmp_path / "config.yaml").read_text(encoding="utf-8").startswith("data:")
    assert (tmp_path / "best.ckpt").exists()
    assert not (tmp_path / ".training").exists()


def test_a_resumed_run_leaves_its_configuration_as_it_is(tmp_path: Path) -> None:
    """Comments too, where it says what is trained; else it is written anew."""
    train(model(), sequences(), tmp_path)
    file = tmp_path / "config.yaml"
    file.write_text("# mine\n" + file.read_text(encoding="utf-8").replace("max_epochs: 1", "max_epochs: 2"))
    edited = file.read_bytes()
    parts = ([*sequences()[:4]], [*sequences()[4:5]], [*sequences()[5:]])
    vssn.fit(file, parts, resume=True, verbose=False)
    assert file.read_bytes() == edited
    config = load_config(file, ["training.max_epochs=3"])
    vssn.fit(config, parts, resume=True, verbose=False)
    assert load_config(file) == config


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


def test_a_run_in_a_home_is_resumed_by_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "here").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "here")
    np.savetxt("../own.csv", sequences().flatten(0, 1).numpy(), delimiter=",", header="a,b", comments="", fmt="%.6f")
    small = [part for key in ("hidden_size=4", "latent_size=2", "noise_size=0") for part in ("--set", f"model.{key}")]
    command = ["fit", "--output", "~/run", "--set", "training.accelerator=cpu"]
    assert main([*command, "--data", "../own.csv", *small, "--set", "training.max_epochs=1"]) == 0
    assert main([*command, "--resume", "--set", "training.max_epochs=2"]) == 0
    with open(tmp_path / "home" / "run" / "metrics.csv", encoding="utf-8") as rows:
        assert [line.split(",")[0] for line in rows] == ["epoch", "1", "2"]
    assert main(["fit", "--config", "../home/run/config.yaml", "--resume"]) == 2
    assert f"the run in {tmp_path / 'home' / 'run'} has done 2 epochs of 2" in capsys.readouterr().err
    assert list(Path().iterdir()) == []


def test_a_home_in_the_output_of_a_forecaster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its metrics were looked for in a folder named ~."""
    monkeypatch.setenv("HOME", str(tmp_path))
    small: dict[str, Any] = {"hidden_size": 4, "latent_size": 2, "noise_size": 0, "max_epochs": 1, "random_state": 0}
    found = vssn.Forecaster(output="~/run", **small).fit(sequences().numpy())
    assert (tmp_path / "run" / "best.ckpt").is_file()
    assert len(found.history_["epoch"]) == 1


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
    for parts in (x[:4], ListDataset(x[:4])):
        with pytest.raises(DataError, match=rf"splits.train\[0\] .*{advice}$"):
            vssn.fit(model(masked=True), (parts, x[4:5], x[5:]), training={"output": str(tmp_path / "run")})
    with pytest.raises(DataError, match="make the model with masked=True"):
        train(model(), x, tmp_path / "run")


class ListDataset(Dataset[torch.Tensor]):
    def __init__(self, sequences: torch.Tensor) -> None:
        self.sequences = sequences

    def __len__(self) -> int:
        return len(self.sequences)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.sequences[index]


FAR = 5412345 + 0.2 * np.sin(np.arange(300) / 5)[:, None]  # metres of a northing
NEAR: dict[str, np.ndarray[Any, Any]] = {
    "float32": np.random.default_rng(0).normal(size=(30, 1)).astype(np.float32),
    "numbers in float64": np.random.default_rng(0).normal(size=(30, 1)),
    "a constant": np.full((30, 1), 0.1),
    "rounding of float64": np.where(np.arange(30) % 2, 0.1 + 0.2, 0.3)[:, None],
    "far in float32": FAR.astype(np.float32),
    "far, with changes that show": 5412345 + 100 * np.sin(np.arange(30))[:, None],
    "nothing but gaps": np.full((30, 1), np.nan),
    "a whole constant": np.full((30, 1), 16777217),
    "counts": np.arange(30)[:, None],
    "gaps": np.where(np.arange(30) % 3, np.random.default_rng(0).normal(size=30), np.nan)[:, None],
}


def words_of_rounding(found: pytest.WarningsRecorder) -> list[str]:
    assert all(one.category is UserWarning for one in found)
    return [str(one.message) for one in found if "float32, which it becomes" in str(one.message)]


SAID = r"feature 0: float32, which it becomes, rounds it by up to 0\.2\d*, and its standard deviation is 0\.1"


def test_what_float32_does_not_hold_is_said_once_by_fit(tmp_path: Path) -> None:
    parts = [FAR[start : start + 30].copy() for start in range(0, 300, 30)]
    parts[0][3] = np.nan
    own = vssn.VSSN(1, 4, 2, 1, likelihood="gaussian", masked=True, scaling=vssn.Scaling.identity(1))
    settings = {"output": str(tmp_path / "run"), "max_epochs": 1, "accelerator": "cpu"}
    with pytest.warns(UserWarning, match=SAID) as found:
        vssn.fit(own, (parts[:8], parts[8:9], parts[9:]), training=settings, verbose=False)
    (said,) = words_of_rounding(found)
    assert said.startswith("splits.train[0], feature 0: ")


def test_what_float32_does_not_hold_is_said_once_by_a_forecaster() -> None:
    x = np.concatenate((np.random.default_rng(0).normal(size=(10, 30, 1)), FAR.reshape(10, 30, 1)), 2)
    small: dict[str, Any] = {"hidden_size": 4, "latent_size": 2, "noise_size": 0, "max_epochs": 1, "random_state": 0}
    with pytest.warns(UserWarning, match=SAID.replace("feature 0", "feature 1")) as found:
        vssn.Forecaster(**small).fit(x)
    assert len(words_of_rounding(found)) == 1


def test_what_float32_does_not_hold_is_said_once_of_a_table(tmp_path: Path) -> None:
    rows = "".join(f"{name},{t},{northing:.6f}\n" for name in "abc" for t, northing in enumerate(FAR[:30, 0]))
    (tmp_path / "far.csv").write_text(f"id,t,northing\n{rows}")
    with pytest.warns(UserWarning, match=f"far.csv: a, {SAID}") as found:
        read(tmp_path / "far.csv")
    assert len(words_of_rounding(found)) == 1
    settings = ["training.max_epochs=1", "training.accelerator=cpu", "model.hidden_size=4", "model.latent_size=2"]
    command = ["fit", "--data", str(tmp_path / "far.csv"), "--output", str(tmp_path / "run")]
    with pytest.warns(UserWarning, match=SAID) as found:
        assert main([*command, *(part for key in settings for part in ("--set", key))]) == 0
    assert len(words_of_rounding(found)) == 1


@pytest.mark.parametrize("name", NEAR)
def test_other_numbers_are_not_spoken_of(name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_rounding("x", torch.from_numpy(NEAR[name]))
        as_frames("x", NEAR[name])
