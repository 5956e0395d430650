"""`fit` with data from Python and with callbacks."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
import yaml
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, Subset, TensorDataset

import vssn
from vssn.cli import main
from vssn.data.batching import SequenceDataset, sequence_loader
from vssn.data.given import fingerprint
from vssn.data.splits import Splits, as_splits, widths
from vssn.errors import ConfigError, DataError, TrainingError
from vssn.training.checkpoints import load_model, read_checkpoint
from vssn.training.config import Config, check_config, load_config
from vssn.training.fit import fit

X, U = 3, 2
LENGTHS = ((5, 2, 7, 4, 3), (4, 6), (1, 3))


def frames(width: int = X, seed: int = 0) -> list[list[Tensor]]:
    """The sequences of the three parts."""
    generator = torch.Generator().manual_seed(seed)
    return [[torch.randn(length, width, generator=generator) for length in part] for part in LENGTHS]


def settings_of(output: Path, *, control: str = "previous", **training: Any) -> dict[str, Any]:
    return {
        "data": {"set": "given", "batch_size": 2},
        "model": {"hidden_size": 4, "latent_size": 2, "likelihood": "gaussian", "control": control},
        "training": {"output": str(output), "max_epochs": 2, "accelerator": "cpu"} | training,
    }


def config_of(output: Path, **changed: Any) -> Config:
    return check_config(settings_of(output, **changed), "")


def rows(folder: Path) -> list[dict[str, str]]:
    with open(folder / "metrics.csv", newline="") as file:
        return [{name: value for name, value in row.items() if name != "seconds"} for row in csv.DictReader(file)]


class Drawn(Dataset[Any]):
    """Items that are made when they are asked for; without the IndexError that would end an iteration."""

    def __init__(self, items: list[Any]) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        return self.items[index % len(self.items)]


class Streamed(IterableDataset[Tensor]):
    def __iter__(self) -> Iterator[Tensor]:
        return iter([torch.zeros(2, X)])


# The forms of data


FORMS: dict[str, Callable[[list[Tensor]], Any]] = {
    "tensors": list,
    "arrays": lambda part: [x.numpy() for x in part],
    "float64": lambda part: [x.double() for x in part],
    "sequences": SequenceDataset,
    "drawn": Drawn,
    "ones": lambda part: Drawn([(x,) for x in part]),
    "pairs": lambda part: Drawn([(x, None) for x in part]),
    "subset": lambda part: Subset(SequenceDataset([*part, torch.zeros(9, X)]), range(len(part))),
}


def test_every_form_of_the_same_data_makes_the_same_run(tmp_path: Path) -> None:
    results = {}
    for name, form in FORMS.items():
        result = vssn.fit(config_of(tmp_path / name), tuple(form(part) for part in frames()))
        assert result.best_path.parent == tmp_path / name
        results[name] = (rows(tmp_path / name), result.valid, result.test)
    assert len(results["tensors"][0]) == 2
    for name, found in results.items():
        assert found == results["tensors"], name


CONTROLLED: dict[str, Callable[[list[Tensor], list[Tensor]], Any]] = {
    "two lists": lambda x, u: (x, [part.numpy() for part in u]),
    "a list of pairs": lambda x, u: list(zip(x, u, strict=True)),
    "a dataset": lambda x, u: Drawn(list(zip(x, u, strict=True))),
    "sequences": SequenceDataset,
}


@pytest.mark.parametrize("name", CONTROLLED)
def test_controls_go_with_their_sequences(name: str, tmp_path: Path) -> None:
    form = CONTROLLED[name]
    splits = as_splits([form(x, u) for x, u in zip(frames(), frames(U, 1), strict=True)])
    for part, xs, us in zip(splits, frames(), frames(U, 1), strict=True):
        assert part.lengths == [len(x) for x in xs]
        for (x, u), wanted_x, wanted_u in zip((part[i] for i in range(len(part))), xs, us, strict=True):
            assert u is not None
            assert x.equal(wanted_x)
            assert u.equal(wanted_u)
    assert widths(splits.train) == (X, U)


def test_whole_arrays_in_a_dict(tmp_path: Path) -> None:
    whole, u = np.random.default_rng(0).normal(size=(6, 4, X)), np.zeros((6, 4, 1))
    parts = {"test": (torch.from_numpy(whole[2:4]), u[2:4]), "train": (whole, u), "valid": (whole[:2], u[:2])}
    result = fit(config_of(tmp_path / "run", control="both", max_epochs=1), parts)
    assert (result.valid.sequences, result.test.frames) == (2, 8)
    tensors = TensorDataset(torch.from_numpy(whole), torch.from_numpy(u))
    assert fit(config_of(tmp_path / "tensors", control="both", max_epochs=1), [tensors] * 3).valid.sequences == 6


def test_the_sizes_are_those_of_the_splits(tmp_path: Path) -> None:
    """Of the frames, whatever set the configuration names; the model and the checkpoint have them."""
    parts = [(x, u) for x, u in zip(frames(), frames(U, 1), strict=True)]
    settings = settings_of(tmp_path / "run", control="external")
    settings["data"] |= {"set": "pendulum", "num_train": 4, "seed": 3}
    result = fit(check_config(settings, ""), parts)
    model, config = load_model(result.best_path)
    assert (model.x_size, model.control_size) == (X, U)
    assert (config.data.set, config.data.sizes) == ("given", (X, U))
    assert (config.data.batch_size, config.data.seed) == (2, 3)
    assert config.data.own == {
        **{"standardise": False, "x_size": X, "control_size": U, "num_train": 5, "num_valid": 2, "num_test": 2},
        "num_frames": 21,
        "fingerprint": fingerprint(as_splits(parts)),
    }
    assert load_config(tmp_path / "run" / "config.yaml") == config


@pytest.mark.parametrize("form", ["dict", "path"])
def test_a_configuration_comes_in_any_form(form: str, tmp_path: Path) -> None:
    """Without a section data where the data is given."""
    settings = settings_of(tmp_path / "run")
    del settings["data"]
    path = tmp_path / "own.yaml"
    path.write_text(yaml.safe_dump(settings))
    config: Any = {"dict": settings, "path": path}[form]
    result = fit(config, frames())
    assert result.best_path == tmp_path / "run" / "best.ckpt"
    assert load_model(result.best_path)[1].data.set == "given"
    with pytest.raises(ConfigError, match=r"data: missing; this key must be given"):
        fit(config)


def test_a_packaged_name_is_a_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    made: list[Config] = []

    def seen(trainer: pl.Trainer, module: Any, **_: Any) -> None:
        made.append(module.config)
        raise TrainingError("enough")

    monkeypatch.setattr(pl.Trainer, "fit", seen)
    pairs = [(x, u) for x, u in zip(frames(), frames(U), strict=True)]
    for config, splits in (("speech-rnn", frames()), ("pendulum", pairs)):
        with pytest.raises(TrainingError, match="enough"):
            fit(config, splits)
    speech, pendulum = made
    assert (speech.data.set, speech.data.sizes, speech.data.batch_size) == ("given", (X, 0), 16)
    assert speech.training.output == "runs/speech-rnn-given"  # {set} is that of the data
    assert (pendulum.data.set, pendulum.data.sizes, pendulum.data.batch_size) == ("given", (X, U), 32)


def test_a_subset_keeps_its_augmentation() -> None:
    seen: list[int] = []

    def shifted(x: Tensor, generator: torch.Generator) -> Tensor:
        seen.append(int(torch.randint(1000, (), generator=generator)))
        return x

    part = Subset(SequenceDataset(frames()[0], transform=shifted), [1, 0])
    dataset = as_splits([part, frames()[1], frames()[2]]).train
    drawn = []
    for epoch in (0, 1, 0):
        dataset.set_epoch(epoch)
        seen.clear()
        dataset[0]
        drawn.append(seen[0])
    assert drawn[0] == drawn[2] != drawn[1]


def test_datasets_are_taken_as_they_are() -> None:
    made = [SequenceDataset(part, seed=7) for part in frames()]
    assert all(part is own for part, own in zip(as_splits(Splits(*made)), made, strict=True))


# Resuming and scoring


def test_a_run_on_own_data_resumes_exactly(tmp_path: Path) -> None:
    fit(config_of(tmp_path / "straight", max_epochs=3), frames())
    fit(config_of(tmp_path / "parts", max_epochs=1), frames())
    fit(config_of(tmp_path / "parts", max_epochs=3), frames(), resume=True)
    assert rows(tmp_path / "parts") == rows(tmp_path / "straight")
    first, second = (read_checkpoint(tmp_path / name / "last.ckpt")["state_dict"] for name in ("parts", "straight"))
    for key, weight in first.items():
        assert weight.equal(second[key]), key


def test_a_run_is_not_resumed_with_other_data(tmp_path: Path) -> None:
    fit(config_of(tmp_path, max_epochs=1), frames())
    train, valid, test = frames()
    with pytest.raises(ConfigError, match=r"^data\.num_valid: 1, but the run in .* has 2; resume with the same data"):
        fit(config_of(tmp_path), [train, valid[:1], test], resume=True)
    with pytest.raises(ConfigError, match=r"^data\.num_frames: 22, but the run in .* has 21; resume with the same"):
        fit(config_of(tmp_path), [[*train[:4], torch.ones(4, X)], valid, test], resume=True)
    with pytest.raises(ConfigError, match=r"^data\.x_size: 4, but the run in .* has 3; resume with the same"):
        fit(config_of(tmp_path), frames(4), resume=True)
    with pytest.raises(ConfigError, match=r"^data\.x_size: 3, but the data has 4; leave it out"):
        fit(tmp_path / "config.yaml", frames(4), resume=True)


def test_a_run_is_not_resumed_with_other_numbers_of_the_same_sizes(tmp_path: Path) -> None:
    """Frames of any part, or controls; the same numbers in another form go on."""

    def pairs() -> list[list[tuple[Tensor, Tensor]]]:
        return [list(zip(x, u, strict=True)) for x, u in zip(frames(), frames(U, 1), strict=True)]

    fit(config_of(tmp_path, control="both", max_epochs=1), pairs())
    for part, which in ((0, 0), (1, 1), (2, 0), (2, 1)):
        changed = pairs()
        changed[part][-1][which][-1, -1] += 1
        with pytest.raises(
            ConfigError, match=r"^data\.fingerprint: 'crc32 .*', but the run in .* resume with the same"
        ):
            fit(config_of(tmp_path, control="both"), changed, resume=True)
    same = [SequenceDataset([x.double().numpy() for x, _ in part], [u for _, u in part]) for part in pairs()]
    assert len(fit(config_of(tmp_path, control="both"), same, resume=True).best_path.parts) > 1


def test_the_fingerprint_is_that_of_data_in_memory() -> None:
    def of(*parts: Any) -> str | None:
        return fingerprint(as_splits(parts))

    whole = torch.arange(12.0).reshape(2, 2, 3)
    assert of(whole, whole, whole) == of(whole.numpy(), list(whole), whole.long()) != of(whole, whole, whole.flip(0))
    assert of([LONE, LONE[:1]], [LONE], [LONE]) != of([LONE[:1], LONE], [LONE], [LONE])
    assert of(Drawn([LONE]), [LONE], [LONE]) is None
    assert of([LONE], SequenceDataset(Drawn([LONE]), lengths=[4]), [LONE]) is None  # type: ignore[arg-type]
    made = SequenceDataset([LONE], Drawn([LONE.numpy()]))  # type: ignore[arg-type]
    assert of(made, made, made) is None


def test_what_a_dataset_draws_is_checked_under_its_name(tmp_path: Path) -> None:
    settings = settings_of(tmp_path / "run")
    settings["model"]["likelihood"] = "bernoulli"
    with pytest.raises(DataError, match=r"^splits\.train\[1\] must lie in \[0, 1\] with likelihood='bernoulli', got 2"):
        fit(settings, [Drawn([LONE, LONE + 2]), [LONE], [LONE]])
    assert not (tmp_path / "run").exists()


def test_true_in_second_place_is_resume(tmp_path: Path) -> None:
    """As in `fit(config, resume)`, before there were splits."""
    with pytest.raises(ConfigError, match=r"holds no last\.ckpt to resume"):
        fit(load_config("pendulum", [f"training.output={tmp_path / 'run'}"]), True)
    fit(config_of(tmp_path / "given"), frames())
    for second in (False, True):
        with pytest.raises(DataError, match=r"^data\.set: 'given' is data that came from Python"):
            fit(config_of(tmp_path / "given", max_epochs=3), second)


def test_a_checkpoint_of_own_data_is_scored_from_python(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = fit(config_of(tmp_path / "run"), frames())
    model, config = load_model(result.best_path)
    loader = sequence_loader(SequenceDataset(frames()[2]), config.data.batch_size)
    assert vssn.evaluate(model, loader) == result.test
    for command in (
        ["evaluate", str(result.best_path)],
        ["fit", "--config", str(tmp_path / "run" / "config.yaml"), "--set", "training.max_epochs=3", "--resume"],
    ):
        capsys.readouterr()
        assert main(command) == 2
        said = capsys.readouterr().err
        assert said.startswith("vssn: error: data.set: 'given' is data that came from Python")
        assert "vssn.evaluate(model, loader)" in said
        assert said.count("\n") == 1


# What goes wrong


LONE = torch.zeros(4, X)
RAGGED = np.empty(2, dtype=object)
RAGGED[:] = [np.zeros((2, X)), np.zeros((3, X))]
OBJECTS = np.zeros((1, 4, X), dtype=object)


@pytest.mark.parametrize(
    ("splits", "kind", "expected"),
    [
        (LONE, TypeError, r"^splits must be three parts, \(train, valid, test\) or a dict of them, got Tensor"),
        (frames()[:2], TypeError, r"^splits must be three parts, \(train, valid, test\) or .*, got 2 parts"),
        ({"train": [LONE], "val": [LONE]}, TypeError, r"^splits must have the keys .*, got 'train', 'val'"),
        ([[], [LONE], [LONE]], DataError, r"^splits\.train must hold at least one sequence, got none"),
        ([Drawn([]), [LONE], [LONE]], DataError, r"^splits\.train must hold at least one sequence, got none"),
        ([[LONE], LONE, [LONE]], DataError, r"^splits\.valid must be a list of tensors \[T, X\].* got .* \[4, 3\]"),
        ([[LONE], [LONE], [[1, 2]]], DataError, r"^splits\.test\[0\] must be a tensor or an array \[T, X\], got list"),
        ([[LONE], [LONE], 3], DataError, r"^splits\.test must be a list of tensors \[T, X\], got int"),
        ([[LONE], [LONE], Streamed()], DataError, r"^splits\.test: expected a Dataset with a length .* got Streamed"),
        ([[LONE], [LONE], Drawn([(LONE, LONE, 1)])], DataError, r"^splits\.test\[0\]: expected x or \(x, u\), .* 3"),
        ([[LONE], [LONE], Drawn([LONE, (LONE, 3)])], DataError, r"^u of splits\.test\[1\] must be a tensor .* got int"),
        ([[LONE], [LONE], Drawn([LONE[0]])], DataError, r"^splits\.test\[0\] must have shape \[T, X\], got \[3\]"),
        ([(LONE, LONE, LONE), [LONE], [LONE]], DataError, r"^splits\.train: expected a pair .* put sequences in"),
        ([[LONE], [LONE, LONE[:, :2]], [LONE]], DataError, r"^splits\.valid\[1\]: expected x of 3 features .* got 2"),
        ([Drawn([LONE, LONE[:, :2]]), [LONE], [LONE]], DataError, r"^splits\.train\[1\]: expected x of 3 .* got 2"),
        ([[LONE, LONE[:0]], [LONE], [LONE]], DataError, r"^splits\.train\[1\]: expected a sequence of at least one"),
        ([[LONE], [LONE], [LONE[:, :2]]], DataError, r"^splits\.test: expected x of 3 .* as in splits\.train, got 2"),
        ([([LONE], [LONE]), [LONE], [LONE]], DataError, r"^splits\.valid: expected u of 3 .* splits\.train, got 0"),
        ([([LONE], [LONE[:3]])] * 3, DataError, r"^splits\.train\[0\]: expected u of 4 frames as x has, got 3"),
        ([([LONE], [LONE, LONE])] * 3, DataError, r"^u of splits\.train must be one for each of 1 .* got 2"),
        ([SequenceDataset([LONE], [LONE])] * 3, ConfigError, r"^model\.control: expected 'external' or .*'previous'"),
        ([[LONE], [LONE + torch.nan], [LONE]], DataError, r"^splits\.valid\[0\] must be finite, got nan; .* no mask"),
        ([[LONE], [LONE], [LONE.double() + 1e300]], DataError, r"^splits\.test\[0\] must be finite, .*float32"),
        ([[LONE], [LONE], Drawn([LONE, LONE + torch.inf])], DataError, r"^splits\.test\[1\] must be finite, .* mask"),
        ([Drawn([(LONE, LONE + torch.nan)])] * 3, DataError, r"^u of splits\.train\[0\] must be finite, .* no mask"),
        ([[LONE[:, :0]]] * 3, DataError, r"^splits\.train\[0\]: expected x of at least one feature, .*\[4, 0\]"),
        ([[LONE], np.zeros((2, 4, 0)), [LONE]], DataError, r"^splits\.valid\[0\]: expected x of at least one feature"),
        ([([LONE], [LONE[:, :0]])] * 3, DataError, r"^splits\.train\[0\]: expected u of at least one .* leave u out"),
        ([RAGGED, [LONE], [LONE]], DataError, r"^splits\.train must be a list of arrays, got an ar.* pass a list"),
        ([([LONE], RAGGED)] * 3, DataError, r"^u of splits\.train must be a list of arrays, got an array of objects"),
        ([OBJECTS, [LONE], [LONE]], DataError, r"^splits\.train must hold real .* object; convert it with"),
        ([[OBJECTS[0]], [LONE], [LONE]], DataError, r"^splits\.train\[0\] must hold real .* object; convert it with"),
        ([([LONE], [LONE[:, 0]])] * 3, DataError, r"^u of splits\.train\[0\] must have shape \[T, U\], got \[4\]"),
        ([([LONE], LONE)] * 3, DataError, r"^u of splits\.train must be a list of tensors \[T, U\].* got .* \[4, 3\]"),
        ([([LONE], [[1, 2]])] * 3, DataError, r"^u of splits\.train\[0\] must be a tensor or .* \[T, U\], got list"),
        ([Drawn([(LONE, LONE[0])])] * 3, DataError, r"^u of splits\.train\[0\] must have shape \[T, U\], got \[3\]"),
    ],
)  # fmt: skip
def test_wrong_splits_are_named_and_nothing_is_written(
    splits: Any, kind: type[Exception], expected: str, tmp_path: Path
) -> None:
    with pytest.raises(kind, match=expected) as caught:
        fit(config_of(tmp_path / "run"), splits)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_values_that_the_likelihood_does_not_take_are_named(tmp_path: Path) -> None:
    settings = settings_of(tmp_path / "run", control="both")
    u = torch.zeros(4, 1)
    with pytest.raises(DataError, match=r"^u of splits\.test\[1\] must be finite, got inf"):
        fit(settings, [([LONE], [u]), ([LONE], [u]), ([LONE, LONE], [u, u + torch.inf])])
    settings = settings_of(tmp_path / "run")
    settings["model"]["likelihood"] = "bernoulli"
    with pytest.raises(DataError, match=r"^splits\.valid\[1\] must lie in \[0, 1\] with likelihood='bernoulli', got 2"):
        fit(settings, [[LONE], [LONE, LONE + 2], [LONE]])
    assert not (tmp_path / "run").exists()
    assert fit(settings, [[LONE.bool()], [LONE.byte()], [LONE.long()]]).test.frames == 4


def test_an_infinite_number_is_named_though_it_is_to_be_standardised(tmp_path: Path) -> None:
    """Mean and std of it are nothing that a model could be made with."""
    settings = settings_of(tmp_path / "run")
    settings["data"]["standardise"] = True
    parts = frames()
    parts[0][2][1, 0] = torch.inf
    with pytest.raises(DataError, match=r"^splits\.train\[2\] must be finite, got inf"):
        fit(settings, parts)
    assert not (tmp_path / "run").exists()


def test_what_else_is_wrong_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"^data\.set: 'given' is data that came from Python; give it again"):
        fit(config_of(tmp_path / "run"))
    with pytest.raises(ConfigError, match=r"^model\.control: expected 'previous' or 'none' with the set 'given'"):
        fit(config_of(tmp_path / "run", control="external"), frames())
    with pytest.raises(TypeError, match=r"^config must be a Config, a dict of its sections, a path or .* got int"):
        fit(3)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"^config: model\.hiden_size: unknown key"):
        fit({"model": {"hiden_size": 3, "latent_size": 2}}, frames())
    with pytest.raises(TypeError, match=r"^resume must be True or False, got 'yes'"):
        fit(config_of(tmp_path / "run"), frames(), resume="yes")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"^data\.x_size: not known before the data is there"):
        config_of(tmp_path).build_model()
    assert not (tmp_path / "run").exists()


def test_an_error_of_the_users_dataset_keeps_its_own_face(tmp_path: Path) -> None:
    class Broken(Drawn):
        def __getitem__(self, index: int) -> Tensor:
            raise ValueError("a fault of its own")

    with pytest.raises(ValueError, match=r"^a fault of its own$"):
        fit(config_of(tmp_path / "run"), [Broken([LONE]), [LONE], [LONE]])


# Callbacks


class Counting(pl.Callback):
    def __init__(self, kept: object = None, later: object = None) -> None:
        self.epochs, self.kept, self.later = 0, kept, later

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module.model, vssn.VSSN)
        assert "valid/elbo_per_frame" in trainer.callback_metrics
        self.epochs += 1
        self.kept = self.later

    def state_dict(self) -> dict[str, Any]:
        return {"epochs": self.epochs, "kept": self.kept}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.epochs = state_dict["epochs"]


def test_callbacks_are_called_and_resumed(tmp_path: Path) -> None:
    first, second = Counting(), Counting()
    fit(config_of(tmp_path, max_epochs=2), frames(), callbacks=[first])
    fit(config_of(tmp_path, max_epochs=3), frames(), callbacks=(second,), resume=True)
    assert (first.epochs, second.epochs) == (2, 3)
    assert len(rows(tmp_path)) == 3


def test_lightnings_own_callbacks_serve(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bar = pl.callbacks.TQDMProgressBar()
    kept = pl.callbacks.ModelCheckpoint(tmp_path / "kept", monitor="valid/elbo_per_frame", mode="max")
    stop = pl.callbacks.EarlyStopping("valid/elbo_per_frame", patience=1, mode="max")
    fit(config_of(tmp_path / "run"), frames(), callbacks=[bar, kept, stop])
    assert list((tmp_path / "kept").iterdir())
    assert load_model(tmp_path / "run" / "best.ckpt")


def test_wrong_callbacks_are_named(tmp_path: Path) -> None:
    config = config_of(tmp_path / "run")
    with pytest.raises(TypeError, match=r"^callbacks\[0\] must be a pytorch_lightning\.Callback, got builtins\.int"):
        fit(config, frames(), callbacks=[3])  # type: ignore[list-item]
    with pytest.raises(TypeError, match=r"^callbacks must be a list of pytorch_lightning\.Callback, got Counting"):
        fit(config, frames(), callbacks=Counting())  # type: ignore[arg-type]
    for wrong in (Counting(kept=Counting), Counting(later=Counting)):
        with pytest.raises(
            TrainingError, match=r"^callbacks: expected tensors and plain types from the state_dict of "
        ):
            fit(config, frames(), callbacks=[wrong])
        assert not (tmp_path / "run").exists()


def far_parts() -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """A sine around 1000."""
    sines = [1000 + 100 * torch.sin(torch.arange(20.0)[:, None] / 4 + start) for start in range(6)]
    return sines[:4], sines[4:5], sines[5:]


NUMBERS = r"mean [\d.]+ and standard deviation [\d.]+"
OFF_SCALE = rf"the training data is far from unit scale, x\[0\] has {NUMBERS}: it is learnt slowly, or not at all; "


def test_a_model_without_scaling_is_told_of_data_far_from_unit_scale(tmp_path: Path) -> None:
    training = {"max_epochs": 1, "accelerator": "cpu"}
    parts, options = far_parts(), {"hidden_size": 4, "latent_size": 2, "likelihood": "gaussian"}
    remedy = r"make the model with scaling=vssn\.Scaling\.of\(the training sequences\)$"
    with pytest.warns(UserWarning, match=OFF_SCALE + remedy) as warned:
        vssn.fit(vssn.VSSN(1, **options), parts, training=training | {"output": str(tmp_path / "a")}, verbose=False)
    assert len([one for one in warned if "unit scale" in str(one.message)]) == 1
    assert warned[0].filename == __file__
    config = {"model": options, "training": training | {"output": str(tmp_path / "b")}}
    with pytest.warns(UserWarning, match=OFF_SCALE + r"set data\.standardise: true$"):
        vssn.fit(config, parts, verbose=False)


@pytest.mark.parametrize("case", ["scaling", "standardise", "near", "transform", "bernoulli"])
def test_nothing_is_said_where_the_scale_is_well(case: str, tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    parts: Any = far_parts()
    options = {"hidden_size": 4, "latent_size": 2, "likelihood": "bernoulli" if case == "bernoulli" else "gaussian"}
    training = {"max_epochs": 1, "accelerator": "cpu", "output": str(tmp_path / "run")}
    if case in ("near", "bernoulli"):
        parts = tuple([(x - 900) / 200 for x in part] for part in parts)
    if case == "transform":
        parts = tuple(SequenceDataset(part, transform=lambda x, _: (x - 1000) / 100) for part in parts)
    if case == "scaling":
        own = vssn.VSSN(1, **options, scaling=vssn.Scaling.of(parts[0]))
        vssn.fit(own, parts, training=training, verbose=False)
    else:
        data = {"standardise": case == "standardise"}
        vssn.fit({"data": data, "model": options, "training": training}, parts, verbose=False)
    assert not [one for one in recwarn if "unit scale" in str(one.message)]


def test_standardising_beside_a_model_says_what_to_make_it_with(tmp_path: Path) -> None:
    own = vssn.VSSN(1, 4, 2, likelihood="gaussian")
    with pytest.raises(ConfigError, match=r"make it with scaling=vssn\.Scaling\.of\(the training sequences\)$"):
        vssn.fit(own, far_parts(), data={"standardise": True}, training={"output": str(tmp_path / "run")})
