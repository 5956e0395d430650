"""The registry: a data set is one file, found by its place or entered by its import, and what it cannot be is named."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from vssn.data import registry
from vssn.data.registry import data_sets, names_to_list, register
from vssn.data.splits import Splits
from vssn.training.config import check_config, load_config
from vssn.training.sections import DataSection, data_section
from vssn.utils.numbers import Count
from vssn.utils.values import REAL

# All that a new set takes: this file.
MINE = '''
"""Constant frames, for tests."""

import torch

from vssn.data.batching import SequenceDataset
from vssn.data.registry import register
from vssn.data.splits import Splits
from vssn.utils.numbers import Count, Positive
from vssn.utils.values import REAL


def even(settings):
    if settings["num_frames"] % 2:
        raise ValueError("num_frames must be even")


@register("mine", x_size=5, values=REAL, free=("level",), check=even)
def load(*, seed: int, num_frames: Count = 6, level: Positive = 1.0) -> Splits:
    frames = torch.full((3, num_frames, 5), level + seed)
    return Splits(*(SequenceDataset(frames) for _ in range(3)))
'''
USE = """
from pathlib import Path
from vssn import fit
from vssn.cli import main
from vssn.training.config import load_config

Path("run.yaml").write_text(
    "data: {set: mine, num_frames: 4}\\n"
    "model: {hidden_size: 3, latent_size: 2, likelihood: gaussian}\\n"
    "training: {output: run, max_epochs: 1, accelerator: cpu}\\n"
)
config = load_config("run.yaml", ["data.seed=7"])
print(config.load_data().test[1][0].shape, config.build_model().x_size, config.data.num_frames)
for wrong in ("data.num_frames=0", "data.num_frame=2", "data.num_frames=3", "model.likelihood=bernoulli",
              "data.set=mined", "model.control=external"):
    try:
        load_config("run.yaml", [wrong])
    except ValueError as error:
        print(error)
assert main(["fit", "--config", "run.yaml"]) == 0
assert main(["evaluate", "run/best.ckpt", "--split", "valid"]) == 0
assert fit(load_config("run.yaml", ["training.max_epochs=2", "data.level=2"]), resume=True).test.sequences == 3
"""
NAMES = ["jsb", "nottingham", "musedata", "piano_midi", "pendulum", "balls", "timit", "blizzard"]
WAYS = {
    "a file of the folder": "import vssn.data; vssn.data.__path__.append({folder!r})",
    "an import": "import sys; sys.path.append({folder!r}); import mine",
    "an import behind the configuration's": "import sys; from vssn.training.config import load_config; "
    "load_config('balls'); sys.path.append({folder!r}); import mine",
}


@pytest.mark.one_in(3)
@pytest.mark.parametrize("way", WAYS)
def test_a_new_set_is_one_file(way: str, tmp_path: Path) -> None:
    """In a process of its own: what the registry holds, it holds until the end."""
    (tmp_path / "sets").mkdir()
    (tmp_path / "sets" / "mine.py").write_text(MINE)
    code = WAYS[way].format(folder=str(tmp_path / "sets")) + USE
    environment = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(Path(__file__).parents[2])!r})\n{code}"]
    done = subprocess.run(environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    made, *wrong = done.stdout.splitlines()
    assert made == "torch.Size([4, 5]) 5 4"
    for line, expected in zip(
        wrong,
        (
            "--set data.num_frames=0: data.num_frames: expected a number greater than or equal to 1, got 0; correct it",
            "--set data.num_frame=2: data.num_frame: unknown key; did you mean num_frames? Known here: set, "
            "batch_size, workers, seed, num_frames, level",
            "run.yaml: data: num_frames must be even",
            "run.yaml: model.likelihood: expected one for real values with the set 'mine', got 'bernoulli', which "
            "takes values in [0, 1] alone; choose another",
            "--set data.set=mined: data.set: expected one of jsb, nottingham, musedata, piano_midi, pendulum, balls, "
            "timit, blizzard, mine, got 'mined'; correct it",
            "run.yaml: model.control: expected 'previous' or 'none' with the set 'mine', which has no external "
            "control, got 'external'; change it",
        ),
        strict=False,
    ):
        for other in set(names_to_list()) - {*NAMES}:  # a set that came later
            line = line.replace(f"{other}, ", "")
        assert line == expected


def test_every_set_is_there_and_given_is_not_listed() -> None:
    assert names_to_list()[: len(NAMES)] == NAMES  # those of other files follow
    assert set(data_sets()) == {*names_to_list(), "given"}


@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("jsb", "batch_size workers seed set folder transpose"),
        ("jsb_eighths", "batch_size workers seed set folder transpose"),
        ("pendulum", "batch_size workers seed set num_train num_valid num_test num_frames"),
        ("balls", "batch_size workers seed set num_train num_valid num_test num_frames"),
        ("timit", "batch_size workers seed set folder mean std"),
    ],
)
def test_the_keys_of_a_section_are_those_of_the_loader_in_the_order_of_files(name: str, keys: str) -> None:
    assert " ".join(data_section(name).model_fields) == keys
    assert data_section(name) is data_section(name)


@pytest.mark.parametrize(
    ("name", "free"), [("jsb", {"folder"}), ("balls", set()), ("timit", {"folder", "mean", "std"})]
)
def test_a_row_says_what_may_differ(name: str, free: set[str]) -> None:
    model = {"hidden_size": 3, "latent_size": 2, "likelihood": "gaussian"}
    assert check_config({"data": {"set": name}, "model": model}, "").data.free == free | {"workers"}


def test_mean_and_std_go_together() -> None:
    with pytest.raises(ValueError, match=r"^speech-rnn: data: mean and std go together: give both, or neither"):
        load_config("speech-rnn", ["data.mean=1.0"])


def test_a_configuration_is_copied_and_pickled() -> None:
    config = load_config("jsb")
    for other in (copy.deepcopy(config), pickle.loads(pickle.dumps(config)), type(config)(**config.model_dump())):
        assert other == config
        assert type(other.data) is type(config.data)
        assert isinstance(other.data, DataSection)


def test_what_cannot_be_a_set_is_named() -> None:
    before = dict(data_sets())

    def plain(*, size: Count = 3) -> Splits:
        raise AssertionError

    def positional(size: Count) -> Splits:
        raise AssertionError

    def untyped(*, size=3) -> Splits:  # type: ignore[no-untyped-def]
        raise AssertionError

    def shared(*, workers: int) -> Splits:
        raise AssertionError

    for loader, options, kind, message in (
        (plain, {}, ValueError, "must have the argument x_size, which its set names"),
        (plain, {"x_size": 3, "free": ("sice",)}, ValueError, "must have the argument sice, which its set names"),
        (positional, {"x_size": 3}, TypeError, r"size must be a keyword argument \(behind \*\) with a type"),
        (untyped, {"x_size": 3}, TypeError, r"size must be a keyword argument \(behind \*\) with a type"),
        (shared, {"x_size": 3}, ValueError, "workers must have another name, all sets have that key"),
    ):
        with pytest.raises(kind, match=message):
            register("another", values=REAL, **options)(loader)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^name must be a new one, got 'jsb', which is vssn\.data\.music's"):
        register("another", "jsb", values=REAL, x_size=3)(plain)
    assert dict(data_sets()) == before


def test_a_loader_returns_splits(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(*, seed: int) -> Splits:
        return [1, 2, 3]  # type: ignore[return-value]

    monkeypatch.setattr(registry, "_sets", dict(data_sets()))
    register("wrong", values=REAL, x_size=3)(wrong)
    model = {"hidden_size": 3, "latent_size": 2, "likelihood": "gaussian"}
    with pytest.raises(TypeError, match=r"wrong must return Splits, got list"):
        check_config({"data": {"set": "wrong"}, "model": model}, "").load_data()


def test_a_key_that_hides_a_part_of_the_section_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def hiding(*, sizes: int = 3) -> Splits:
        raise AssertionError

    monkeypatch.setattr(registry, "_sets", dict(data_sets()))
    register("hiding", values=REAL, x_size=3)(hiding)
    with pytest.raises(TypeError, match=r"hiding: sizes must have another name, sections have that attribute"):
        data_section("hiding")


def test_the_sets_need_torch_and_numpy_alone() -> None:
    code = """
import sys
for name in ("pydantic", "pydantic_core", "yaml", "scipy", "pytorch_lightning", "soundfile", "pooch"):
    sys.modules[name] = None
from vssn.data.registry import data_sets
sets = data_sets()
splits = sets["pendulum"].load_splits({"seed": 0, "num_train": 2, "num_valid": 1, "num_test": 1, "num_frames": 3}, True)
print(len(sets), splits.train.lengths, splits.train[0][1].shape)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert done.stdout.strip() == f"{len(data_sets())} [3, 3] torch.Size([3, 1])", done.stdout + done.stderr
