"""A model as a folder: what is saved in one process is the same model in another, whatever is installed there."""

from __future__ import annotations

import inspect
import json
import os
import pickle
import subprocess
import sys
from copy import deepcopy
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from foreign_model import Foreign, Twin
from small_models import MODELS, batch, flat, make
from torch import Tensor, nn

import vssn
from vssn import VSSN
from vssn.data.batching import SequenceDataset
from vssn.errors import CheckpointError, PackageError, TargetError
from vssn.likelihoods import Gaussian
from vssn.models import registry
from vssn.training.checkpoints import load_model, read_checkpoint
from vssn.training.fit import fit

ROOT = Path(__file__).resolve().parent.parent.parent
TRAINING = ("pytorch_lightning", "pydantic", "pydantic_core", "yaml", "tensorboard", "scipy", "matplotlib", "filelock")


def assert_same(one: nn.Module, other: nn.Module) -> None:
    first, second = one.state_dict(), other.state_dict()
    assert list(first) == list(second)
    for name, tensor in first.items():
        assert tensor.dtype == second[name].dtype, name
        assert tensor.equal(second[name]), name


def saved(folder: Path, **changes: object) -> Path:
    """A small model's folder, with these entries of config.json changed."""
    make("gaussian", torch.float32).save_pretrained(folder)
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return folder


# What goes in comes out


@pytest.mark.parametrize("name", MODELS)
def test_a_model_comes_back(name: str, tmp_path: Path) -> None:
    model = make(name, batch_first=True)
    model.save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"model.safetensors", "config.json", "README.md"}
    for load in (VSSN.from_pretrained, vssn.from_pretrained):
        loaded = load(tmp_path)
        assert type(loaded) is VSSN
        assert not loaded.training
        assert loaded.config == model.config
        assert repr(loaded) == repr(model)
        assert_same(loaded, model)


def test_config_makes_such_a_model() -> None:
    """It has every argument with its default, the layout as it is now, and neither place nor dtype."""
    model = VSSN(4, 5, 3, likelihood="gaussian", device="cpu", dtype=torch.float64)
    model.set_batch_first(True)
    assert model.config == {
        name: parameter.default
        for name, parameter in inspect.signature(VSSN).parameters.items()
        if name not in ("device", "dtype", "x_size", "hidden_size", "latent_size")
    } | {"x_size": 4, "hidden_size": 5, "latent_size": 3, "likelihood": "gaussian", "batch_first": True}
    assert repr(VSSN(**model.config).double()) == repr(model)
    assert deepcopy(model).config == pickle.loads(pickle.dumps(model)).config == model.config


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_dtype_is_that_of_the_model(dtype: torch.dtype, tmp_path: Path) -> None:
    model = make("embedded", dtype)
    model.save_pretrained(tmp_path)
    loaded = VSSN.from_pretrained(tmp_path)
    assert {parameter.dtype for parameter in loaded.parameters()} == {dtype}
    assert loaded.layer.dtype == dtype
    assert all(parameter.requires_grad for parameter in loaded.parameters())
    assert_same(loaded, model)


def test_loading_draws_no_random_numbers(tmp_path: Path) -> None:
    make().save_pretrained(tmp_path)
    before = torch.get_rng_state()
    VSSN.from_pretrained(tmp_path)
    assert torch.get_rng_state().equal(before)


class Mine(VSSN):
    """A subclass has its own arguments, positional ones too."""

    def __init__(self, width: int, *, depth: int = 1, **more: Any) -> None:
        super().__init__(3, width * depth, 2, **more)


class Table(NamedTuple):
    mean: Tensor
    std: Tensor | None = None


class Scaled(Foreign):
    """With named tensors among its arguments, kept as a buffer."""

    def __init__(self, x_size: int, table: Table | None = None) -> None:
        super().__init__(VSSN(x_size, 3, 2))
        self.register_buffer("mean", None if table is None else table.mean.clone())


def test_subclasses_and_other_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = Mine(2, depth=2, objective="paper", dtype=torch.float64)
    assert mine.config == {"width": 2, "depth": 2, "objective": "paper"}
    mine.save_pretrained(tmp_path / "mine")
    assert_same(Mine.from_pretrained(tmp_path / "mine"), mine)
    with pytest.raises(CheckpointError, match=r"mine: expected a VSSN, got a Mine; load it with vssn\.from_pretrained"):
        VSSN.from_pretrained(tmp_path / "mine")
    with pytest.raises(CheckpointError, match=r"mine: expected a model of class VSSN, .*, got 'Mine'; load it"):
        vssn.from_pretrained(tmp_path / "mine")
    monkeypatch.setitem(registry.MODELS, "twin", Twin)
    twin = Twin(4, 2, likelihood="gaussian")
    twin.save_pretrained(tmp_path / "twin")
    loaded = vssn.from_pretrained(tmp_path / "twin")
    assert type(loaded) is Twin
    assert_same(loaded, twin)


def test_named_tensors_stand_in_the_json(tmp_path: Path) -> None:
    table = Table(torch.tensor([0.1, 1 / 3, -2e-30]))
    model = Scaled(3, table)
    assert model.config == {"x_size": 3}
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["table"] == {"mean": table.mean.tolist(), "std": None}
    assert_same(Scaled.from_pretrained(tmp_path), model)
    Scaled(3).save_pretrained(tmp_path)
    assert Scaled.from_pretrained(tmp_path).mean is None


def test_parts_of_one_s_own_are_given_again(tmp_path: Path) -> None:
    def parts() -> dict[str, nn.Module]:
        return {"encoder": nn.Linear(4, 6), "likelihood": Gaussian(4, -3.0)}

    model = VSSN(4, 5, 3, embed_size=6, **parts())
    assert not {"encoder", "likelihood"} & model.config.keys()
    model.save_pretrained(tmp_path)
    assert_same(VSSN.from_pretrained(tmp_path, **parts()), model)
    assert 'from_pretrained("THIS FOLDER", likelihood=..., encoder=...)' in (tmp_path / "README.md").read_text()
    with pytest.raises(
        TypeError, match=r"^likelihood must be given: .* call from_pretrained\(\.\.\., likelihood=\.\.\.\)$"
    ):
        VSSN.from_pretrained(tmp_path)
    with pytest.raises(TypeError, match=r"^decoder must be left out: .* asks for likelihood, encoder alone$"):
        VSSN.from_pretrained(tmp_path, **parts(), decoder=nn.Linear(1, 1))


def test_a_card_says_what_is_known_and_is_never_replaced(tmp_path: Path) -> None:
    model = make("gaussian")
    model.save_pretrained(tmp_path)
    text = (tmp_path / "README.md").read_text()
    for part in ("# VSSN", "X = 4", "likelihood='gaussian'", "| `hidden_size` | `5` |", "[T, B, X]"):
        assert part in text
    (tmp_path / "README.md").write_text("mine")
    model.save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_text() == "mine"


# Checkpoints, and another process


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of `vssn.fit` on data of one's own, with controls, in float64."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    settings = {
        "model": {"hidden_size": 4, "latent_size": 2, "likelihood": "gaussian", "control": "both"},
        "training": {"output": str(folder), "max_epochs": 1, "precision": "64-true", "accelerator": "cpu"},
    }
    part = SequenceDataset(torch.randn(3, 5, 2), torch.randn(3, 5, 1))
    fit(settings, [part, part, part])
    return folder


def test_a_checkpoint_loads_by_the_same_call(run: Path, tmp_path: Path) -> None:
    want, _ = load_model(run / "best.ckpt")
    for load in (VSSN.from_pretrained, vssn.from_pretrained):
        model = load(run / "best.ckpt")
        assert model.config == want.config
        assert_same(model, want)
    model.save_pretrained(tmp_path)
    assert_same(VSSN.from_pretrained(tmp_path), want)


def test_a_checkpoint_of_0_1_0_has_no_description(run: Path, tmp_path: Path) -> None:
    content = read_checkpoint(run / "best.ckpt")
    want = VSSN.from_pretrained(run / "best.ckpt")
    del content["vssn"]["model"]
    torch.save(content, tmp_path / "old.ckpt")
    for load in (VSSN.from_pretrained, vssn.from_pretrained, lambda path: load_model(path)[0]):
        model = load(tmp_path / "old.ckpt")
        assert model.config == want.config
        assert_same(model, want)
    content["vssn"]["config"]["data"] = {"set": "gone"}
    torch.save(content, tmp_path / "old.ckpt")
    with pytest.raises(CheckpointError, match=r"old\.ckpt: its configuration does not say the sizes of its data"):
        vssn.from_pretrained(tmp_path / "old.ckpt")


@pytest.mark.parametrize("kind", ["folder", "checkpoint"])
def test_a_fresh_process_without_the_training_extra_gets_the_same_digits(kind: str, run: Path, tmp_path: Path) -> None:
    model = VSSN.from_pretrained(run / "best.ckpt")
    source = run / "best.ckpt"
    if kind == "folder":
        source = tmp_path / "saved"
        model.save_pretrained(source)
    given = batch(model)
    given["x"], given["u"] = given["x"][..., :2], given["u"][..., :1]
    with torch.no_grad():
        output = flat(model(**given))
    torch.save({"given": given, "output": output, "state": dict(model.state_dict())}, tmp_path / "want.pt")
    code = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
for name in {TRAINING!r}:
    sys.modules[name] = None
import torch, vssn
want = torch.load({str(tmp_path / "want.pt")!r})
model = vssn.VSSN.from_pretrained({str(source)!r})
state = model.state_dict()
assert list(state) == list(want["state"])
assert all(state[name].equal(tensor) for name, tensor in want["state"].items())
with torch.no_grad():
    out = model(**want["given"])
out = {{**{{n: p for n, p in out._asdict().items() if n != "state"}}, **out.state._asdict()}}
for name, tensor in want["output"].items():
    torch.testing.assert_close(out[name], tensor, rtol=0, atol=1e-12, msg=name)
print("same")
"""
    environment = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.stdout == "same\n", done.stderr


# What cannot be loaded, and what cannot be saved


class Touch:
    """Unpickling this makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.path,)


def message_of(source: Path, load: Any = vssn.from_pretrained) -> str:
    with pytest.raises(CheckpointError) as caught:
        load(source)
    message = str(caught.value)
    assert message.startswith(f"{source}: ")
    assert "\n" not in message
    return message


def test_a_folder_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    assert "expected a folder of save_pretrained or a checkpoint" in message_of(tmp_path / "absent")
    assert "config.json is missing" in message_of(tmp_path)
    for name in ("model.safetensors", "config.json"):
        folder = saved(tmp_path / f"no-{name}")
        (folder / name).unlink()
        assert f"{name} is missing; save it again" in message_of(folder)
        folder = saved(tmp_path / f"half-{name}")
        whole = (folder / name).read_bytes()
        for size in (0, 5, len(whole) // 2, len(whole) - 2):
            (folder / name).write_bytes(whole[:size])
            assert f"{name} is truncated" in message_of(folder)
    (folder / "config.json").write_text("[1]")
    assert "of another program" in message_of(folder)
    assert "format 1, got 2; use the vssn that wrote it" in message_of(saved(tmp_path / "a", format=2))
    assert "got 'Other'" in message_of(saved(tmp_path / "b", **{"class": "Other"}))
    assert "expected a VSSN, got a Other" in message_of(tmp_path / "b", VSSN.from_pretrained)
    message = message_of(saved(tmp_path / "c", arguments={"x_size": 3, "colour": 1}, version="9.1"))
    assert "its arguments do not make a VSSN" in message
    assert "colour" in message
    assert message.endswith("use the vssn that wrote it, 9.1")
    assert "its arguments do not make a VSSN" in message_of(saved(tmp_path / "d", arguments={"x_size": "three"}))
    huge = {"x_size": 4, "hidden_size": 10**9, "latent_size": 3}
    assert "more memory than there is" in message_of(saved(tmp_path / "e", arguments=huge))


def test_weights_that_do_not_fit_are_named(tmp_path: Path) -> None:
    arguments = make("gaussian").config
    message = message_of(saved(tmp_path / "b", arguments=arguments | {"hidden_size": 6}))
    assert "its weights do not fit its own configuration: layer.duration.weight_hh has shape [15, 5]" in message
    assert "expected [18, 6]" in message
    message = message_of(saved(tmp_path / "c", arguments=arguments | {"embed_size": 4}))
    assert "encoder.linear.weight is missing" in message
    message = message_of(saved(tmp_path / "d", arguments=arguments | {"noise_size": 0, "hidden_size": 5}))
    assert "do not fit" in message


def test_code_in_a_file_is_not_run(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    folder = saved(tmp_path / "folder")
    (folder / "model.safetensors").write_bytes(pickle.dumps(Touch(mark)))
    assert "truncated or damaged" in message_of(folder)
    (tmp_path / "best.ckpt").write_bytes(pickle.dumps(Touch(mark)))
    assert "truncated, damaged or of another kind" in message_of(tmp_path / "best.ckpt")
    assert not mark.exists()


def test_what_cannot_be_saved_is_one_line(tmp_path: Path) -> None:
    model = make()
    nn.utils.parametrizations.weight_norm(model.emission.out)
    with pytest.raises(
        ValueError, match="model must have the parameters that its constructor makes, got a change at em"
    ):
        model.save_pretrained(tmp_path / "a")
    assert not (tmp_path / "a").exists()
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(TargetError, match=r"^folder: cannot write "):
            make().save_pretrained(place)
    for call in (make().save_pretrained, VSSN.from_pretrained, vssn.from_pretrained):
        with pytest.raises(TypeError, match=r"^(folder|source) must be a str or a Path, got int$"):
            call(3)  # type: ignore[operator]


# The Hub, without a network


def test_a_name_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = pytest.importorskip("huggingface_hub")
    asked = []

    def snapshot_download(repository: str, **options: Any) -> str:
        asked.append((repository, options))
        if repository != "someone/balls":
            raise OSError("404 Client Error.\nRepository not found")
        return str(saved(tmp_path / "cache"))

    monkeypatch.setattr(hub, "snapshot_download", snapshot_download)
    model = VSSN.from_pretrained("someone/balls", revision="v1")
    assert_same(model, make("gaussian", torch.float32))
    assert asked == [
        ("someone/balls", {"revision": "v1", "allow_patterns": ["model.safetensors", "config.json"]}),
    ]
    with pytest.raises(CheckpointError, match=r"^a/b: no such folder .* the Hub gives none \(404 Client Error\)"):
        VSSN.from_pretrained("a/b")
    for path in ("a/b/c", "./a/b", "balls"):  # are no names of repositories
        with pytest.raises(CheckpointError, match="expected a folder"):
            VSSN.from_pretrained(path)
    assert len(asked) == 2


def test_a_model_goes_to_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    hub = pytest.importorskip("huggingface_hub")
    calls: list[tuple[str, Any]] = []

    class Api:
        def __init__(self, token: str | None) -> None:
            self.token = token

        def create_repo(self, name: str, *, private: bool | None, exist_ok: bool) -> Any:
            if name == "not mine/x":
                raise OSError("403 Forbidden")
            calls.append((name, private))
            return type("Address", (), {"repo_id": name})

        def file_exists(self, name: str, file: str) -> bool:
            return file == "README.md"

        def upload_folder(self, *, repo_id: str, folder_path: Path, commit_message: str, ignore_patterns: Any) -> Any:
            assert_same(VSSN.from_pretrained(folder_path), make())
            calls.append((repo_id, ignore_patterns))
            return type("Commit", (), {"commit_url": "https://hub/commit"})

    monkeypatch.setattr(hub, "HfApi", Api)
    assert make().push_to_hub("me/balls", private=True) == "https://hub/commit"
    assert calls == [("me/balls", True), ("me/balls", ["README.md"])]
    with pytest.raises(TargetError, match=r"^repository: the Hub does not take not mine/x \(403 Forbidden\)"):
        make().push_to_hub("not mine/x")


def test_without_huggingface_hub_one_line_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    for call in (VSSN.from_pretrained, make().push_to_hub):
        with pytest.raises(PackageError, match=r"huggingface_hub is not installed; .* pip install 'vssn\[hub\]'$"):
            call("someone/balls")
