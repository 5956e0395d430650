"""Training knows SequenceModel and the registry of models alone: a model of another class trains, resumes and loads."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import pytest
import torch
from foreign_model import Foreign, Twin
from small_models import LENGTHS, MODELS, batch, make
from test_training import assert_same_run, music_config, music_folder

from vssn import VSSN
from vssn.data.batching import SequenceBatch
from vssn.errors import CheckpointError, ConfigError
from vssn.models import registry
from vssn.nn.interface import SequenceModel
from vssn.training.checkpoints import load_model, read_checkpoint
from vssn.training.config import Config, check_config
from vssn.training.fit import fit
from vssn.training.module import TrainingModule


@pytest.fixture
def twin(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in set(registry.MODELS) - {"vssn"}:  # messages list all names
        monkeypatch.delitem(registry.MODELS, name)
    monkeypatch.setitem(registry.MODELS, "twin", Twin)


def twin_config(folder: Path, output: Path, epochs: int = 2, **model: object) -> Config:
    settings = {
        "data": {"set": "jsb", "folder": str(folder), "batch_size": 2},
        "model": {"name": "twin", "latent_size": 3, **model},
        "training": {"output": str(output), "max_epochs": epochs, "chunk_length": 5, "accelerator": "cpu"},
    }
    return check_config(settings, "mine.yaml")


@pytest.mark.parametrize("name", MODELS)
def test_an_update_is_that_of_the_model_inside(name: str, tmp_path: Path) -> None:
    model = make(name).train()
    given = batch(model)
    settings = {"hidden_size": 1, "latent_size": 1}
    config = check_config({"data": {"set": "jsb"}, "model": settings, "training": {"learning_rate": 0.1}}, "")
    weights = []
    for one in (copy.deepcopy(model), Foreign(copy.deepcopy(model))):
        module = TrainingModule(one, config)
        optimizer = module.configure_optimizers()
        module._optimizer = lambda optimizer=optimizer: optimizer  # type: ignore[method-assign]
        module.manual_backward = lambda loss: loss.backward()  # type: ignore[method-assign]
        module.log = lambda *_, **__: None  # type: ignore[method-assign]
        module._fabric = None
        module.training_step(SequenceBatch(given["x"], LENGTHS, given["u"]), 0)
        weights.append(list(one.parameters()))
    assert any(not before.equal(after) for before, after in zip(model.parameters(), weights[1], strict=True))
    for want, got in zip(*weights, strict=True):
        assert got.equal(want)


def test_another_model_is_configured_trained_resumed_and_loaded(twin: None, tmp_path: Path) -> None:
    music = music_folder(tmp_path)
    fit(twin_config(music, tmp_path / "straight", 2))
    fit(twin_config(music, tmp_path / "parts", 1))
    fit(twin_config(music, tmp_path / "parts", 2), resume=True)
    assert_same_run(tmp_path / "straight", tmp_path / "parts")
    assert read_checkpoint(tmp_path / "parts" / "best.ckpt")["vssn"]["config"]["model"]["name"] == "twin"
    model, config = load_model(tmp_path / "parts" / "best.ckpt")
    assert isinstance(model, Twin)
    assert (config.model.width, config.model.latent_size, config.model.likelihood) == (5, 3, "bernoulli")
    assert pickle.loads(pickle.dumps(config)) == config
    with pytest.raises(ConfigError, match="model"):
        fit(music_config(music, tmp_path / "parts", max_epochs=3), resume=True)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"width": 0}, "mine.yaml: model.width: expected a number greater than or equal to 1, got 0; correct it"),
        ({"likelihood": "normal"}, "mine.yaml: model.likelihood: expected 'bernoulli'"),
        ({"hidden_size": 4}, "mine.yaml: model.hidden_size: unknown key; .* latent_size, width, likelihood, name$"),
        ({"name": "twins"}, "mine.yaml: model.name: expected 'vssn' or 'twin', got 'twins'; correct it"),
        ({"name": ["twin"], "width": 3}, "mine.yaml: model.width: unknown key; "),
    ],
)
def test_its_arguments_are_the_keys(twin: None, model: dict[str, object], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"^{message}"):
        twin_config(tmp_path, tmp_path, **model)


def test_a_model_without_the_keys_of_a_vssn_takes_own_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a control nor a likelihood to choose."""

    class Fixed(Twin):
        def __init__(self, x_size: int, latent_size: int) -> None:
            super().__init__(x_size, latent_size, likelihood="bernoulli")

    monkeypatch.setitem(registry.MODELS, "fixed", Fixed)
    settings = {
        "model": {"name": "fixed", "latent_size": 2},
        "training": {"output": str(tmp_path / "run"), "max_epochs": 1, "accelerator": "cpu"},
    }
    x, u = torch.rand(2, 4, 3), torch.rand(2, 4, 1)
    with pytest.raises(ConfigError, match=r"^model\.name: 'fixed' takes no controls u; leave them out of the splits"):
        fit(settings, [(x, u)] * 3)
    assert fit(settings, [x] * 3).test.frames == 8
    assert check_config(settings | {"data": {"set": "balls"}}, "").model.name == "fixed"


def test_an_argument_without_a_type_is_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    class Untyped(Twin):
        def __init__(self, x_size, latent_size: int, depth=3) -> None:  # type: ignore[no-untyped-def]
            super().__init__(x_size, latent_size)

    monkeypatch.setitem(registry.MODELS, "untyped", Untyped)
    with pytest.raises(TypeError, match=r"^Untyped: depth must have a type, as it is a key of a configuration"):
        check_config({"data": {"set": "jsb"}, "model": {"name": "untyped", "latent_size": 2}}, "")


def test_a_checkpoint_without_a_name_is_a_vssn(tmp_path: Path) -> None:
    """As vssn 0.1.0 wrote it; one whose model is not known here is refused in one line."""
    music = music_folder(tmp_path)
    path = fit(music_config(music, tmp_path / "run", max_epochs=1)).best_path
    content = read_checkpoint(path)
    before, _ = load_model(path)
    for name in (None, "another"):
        content["vssn"]["config"]["model"] |= {"name": name}
        if name is None:
            del content["vssn"]["config"]["model"]["name"]
        torch.save(content, tmp_path / f"{name}.ckpt")
    model, config = load_model(tmp_path / "None.ckpt")
    assert isinstance(model, VSSN)
    assert config.model.name == "vssn"
    assert all(new.equal(old) for new, old in zip(model.parameters(), before.parameters(), strict=True))
    with pytest.raises(CheckpointError, match=r"another\.ckpt: model\.name: expected .*'vssn'.*, got 'another'"):
        load_model(tmp_path / "another.ckpt")


def test_every_row_is_a_model() -> None:
    assert all(issubclass(model, SequenceModel) for model in registry.MODELS.values())
