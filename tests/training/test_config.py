"""The configuration: packaged files, overrides, and one line for every mistake."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io
import yaml

from vssn.errors import ConfigError
from vssn.models.vssn import VSSN
from vssn.training.config import Config, check_config, load_config, packaged_configs
from vssn.training.sections import VSSNSection

TINY = {"data": {"set": "pendulum"}, "model": {"hidden_size": 5, "latent_size": 3}}


def write(folder: Path, text: str | dict[str, Any]) -> Path:
    path = folder / "run.yaml"
    path.write_text(text if isinstance(text, str) else yaml.safe_dump(text))
    return path


def message_of(path: str | Path, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("name", packaged_configs())
def test_packaged_configuration_builds_its_model(name: str) -> None:
    config = load_config(name)
    model = config.build_model(num_sequences=7)
    assert model.x_size == config.data.sizes[0]
    assert model.noise_sizes[1] == getattr(config.model, "latent_size", 0)
    assert config.training.output == f"runs/{name}" + (
        f"-{config.data.set}" if name.startswith(("music-", "speech-", "series")) else ""
    )


def test_the_sets_of_the_design_are_packaged() -> None:
    assert {"jsb", "nottingham", "musedata", "piano_midi", "pendulum", "balls"} <= set(packaged_configs())


@pytest.mark.parametrize(
    ("name", "sizes"),  # what is left of D, Z, W
    [
        *(("vssn", "DZW"), ("vssn-nade", "DZW"), ("srnn", "DZ"), ("dkf", "Z")),
        *(("storn", "DW"), ("rnn", "D"), ("rnn-nade", "D")),
    ],
)
def test_one_configuration_for_each_peer_serves_all_four_sets(name: str, sizes: str) -> None:
    for data in ("jsb", "nottingham", "musedata", "piano_midi"):
        config = load_config(f"music-{name}", [f"data.set={data}"])
        assert config.data.set == data
        assert config.training.output == f"runs/music-{name}-{data}"
        model = config.model
        parts = {"D": model.hidden_size, "Z": model.latent_size, "W": model.noise_size}
        assert "".join(letter for letter, size in parts.items() if size) == sizes
        assert (model.likelihood == "nade") == name.endswith("nade")


def test_nade_needs_a_set_of_0_and_1() -> None:
    message = message_of("balls", "model.likelihood=nade")
    assert message.startswith(
        "balls: model.likelihood: expected one for values in [0, 1] with the set 'balls', got 'nade'"
    )


@pytest.mark.parametrize("likelihood", ["bernoulli", "nade"])
def test_speech_needs_a_likelihood_of_real_values(likelihood: str) -> None:
    message = message_of("speech-vssn", f"model.likelihood={likelihood}")
    assert "model.likelihood: expected one for real values with the set" in message
    assert f"got {likelihood!r}, which takes" in message


def test_model_section_has_the_arguments_and_defaults_of_the_model() -> None:
    parameters = dict(list(inspect.signature(VSSN.__init__).parameters.items())[1:])
    for decided_elsewhere in (
        *("x_size", "control_size", "num_sequences", "encoder", "decoder", "scaling", "batch_first"),
        *("device", "dtype"),
    ):
        del parameters[decided_elsewhere]
    fields = VSSNSection.model_fields
    assert set(fields) == {"name", *parameters}
    for name, parameter in parameters.items():
        if parameter.default is inspect.Parameter.empty:
            assert fields[name].is_required(), name
        else:
            assert fields[name].default == parameter.default, name


def test_yaml_round_trip(tmp_path: Path) -> None:
    config = load_config("pendulum", ["data.num_train=3", "training.max_minutes=1.5"])
    assert load_config(write(tmp_path, config.to_yaml())) == config


def test_overrides_win_and_are_typed(tmp_path: Path) -> None:
    path = write(tmp_path, TINY)
    overrides = ["training.max_epochs=3", "training.learning_rate=1e-4", "model.residual_posterior=true"]
    config = load_config(path, [*overrides, "training.chunk_length=", 'training.output="a: b"'])
    assert config.training.max_epochs == 3
    assert config.training.learning_rate == 1e-4  # YAML 1.1 reads 1e-4 as a text
    assert config.model.residual_posterior is True
    assert config.training.chunk_length is None
    assert config.training.output == "a: b"


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("training.max_epoch=3", "training.max_epoch: unknown key; did you mean max_epochs?"),
        ("trainig.max_epochs=3", "trainig: unknown key; did you mean training?"),
        ("model.bidirectional=1", "model.bidirectional: unknown key; remove it. Known here: hidden_size"),
        ("data.transpose=3", "data.transpose: unknown key"),
        ("training.max_epochs=ten", "training.max_epochs: expected a valid integer, got 'ten'"),
        ("training.max_epochs=2.5", "training.max_epochs: expected a valid integer, got 2.5"),
        ("training.max_epochs=yes", "training.max_epochs: expected a number, got True"),
        ("training.max_epochs=0", "training.max_epochs: expected a number greater than or equal to 1, got 0"),
        ("training.learning_rate=.nan", "training.learning_rate: expected a finite number, got nan"),
        ("training.learning_rate=[1]", "training.learning_rate: expected a valid number, got [1]"),
        ("training.seed=5000000000", "training.seed: expected a number less than 4294967296"),
        ("training.output=5", "training.output: expected a valid string, got 5"),
        ("model.masked=3", "model.masked: expected a valid boolean"),
        ("model.activation=gelu", "model.activation: expected 'tanh', 'relu', 'leaky_relu' or 'silu', got 'gelu'"),
        ("model.hidden_size=-1", "model.hidden_size: expected a number greater than or equal to 0, got -1"),
        (
            "data.set=jbs",
            "data.set: expected one of jsb, nottingham, musedata, piano_midi, pendulum, balls, timit, blizzard, ",
        ),
        ("data=5", "data: expected a section with keys of its own, got 5"),
        ("model=", "model: expected a section with keys of its own, got None"),
        ("training.output=[a", "line 1: invalid YAML: expected ',' or ']'"),
        ("training.max_epochs", "expected section.key=value"),
        ("training..x=1", "expected section.key=value"),
        ("data.set.name=1", "set is a value, not a section"),
    ],
)
def test_a_wrong_override_is_named(tmp_path: Path, override: str, expected: str) -> None:
    message = message_of(write(tmp_path, TINY), "training.lr_decay=0.5", override)
    assert message.startswith(f"--set {override}: ")
    assert expected in message


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("model.hidden_size=0", "model: mlp_size and backward_size must be given with hidden_size=0"),
        ("model.hidden_size=2000000000", "model: its sizes need more memory than there is"),
        ("training.kl_start=0.5", "training: kl_start 0.5 has no effect without a rise"),
        (
            "training.kl_anneal_updates=500",
            "training: kl_anneal_updates 500 has no effect without a start below 1: set kl_start to 0",
        ),
        (
            "training.kl_cycles=3",
            "training: kl_cycles 3 has no effect without a rise: set kl_anneal_updates and kl_start",
        ),
        ("training.lr_decay_after=9", "training: lr_decay_after 9 has no effect without a decay: set lr_decay below 1"),
    ],
)
def test_settings_that_do_not_go_together(tmp_path: Path, override: str, expected: str) -> None:
    path = write(tmp_path, TINY)
    assert message_of(path, override).startswith(f"{path}: {expected}")


@pytest.mark.parametrize("number", [3_000_000_000, 10**30])
@pytest.mark.parametrize(
    "key", ["data.batch_size", "data.workers", "model.hidden_size", "model.num_classes", "training.devices"]
)
def test_a_size_has_an_end(tmp_path: Path, key: str, number: int) -> None:
    expected = f"{key}: expected a number less than or equal to 2147483647, got {number}"
    assert expected in message_of(write(tmp_path, TINY), f"{key}={number}")


def test_annealing_is_turned_off_by_its_start(tmp_path: Path) -> None:
    """Over a configuration that anneals; and the config.yaml of such a run, which has both keys, loads again."""
    config = load_config("jsb", ["training.kl_start=1"])
    assert (config.training.kl_start, config.training.kl_anneal_updates) == (1, 2000)
    assert load_config(write(tmp_path, config.model_dump(mode="json"))) == config


def test_a_control_needs_a_set_that_has_one() -> None:
    message = message_of("jsb", "model.control=external")
    assert message.startswith("jsb: model.control: expected 'previous' or 'none' with the set 'jsb'")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "expected a mapping with the sections data, model, training, got None"),
        ("[1, 2]", "expected a mapping with the sections data, model, training, got [1, 2]"),
        ("data: {", "line 1: invalid YAML: expected the node content"),
        ("data:\n\t- x", "line 2: invalid YAML: found character '\\t'"),
        ("\x00", "invalid YAML: unacceptable character"),
        ("a: 2024-13-45", "invalid YAML: month must be in 1..12"),
        ("a: !!bool maybe", "invalid YAML: "),
        ("a: !!timestamp a", "invalid YAML: "),
        ("[" * 5000, "invalid YAML"),
        ("data: !!python/object/apply:os.getcwd []", "line 1: invalid YAML: could not determine a constructor"),
        ("1: 2", "data: missing; this key must be given, add it (and 2 more)"),
        ("data: {set: balls}", "model: missing"),
        ("data: {set: balls}\nmodel: {hidden_size: 3}", "model.latent_size: missing"),
        ("data: {}\nmodel: {hidden_size: 3, latent_size: 1}", "data.set: expected one of jsb, "),
        (
            "data: {set: jsb, foldr: x}\nmodel: {hidden_size: 3, latent_size: 1}",
            "data.foldr: unknown key; did you mean folder?",
        ),
    ],
)
def test_a_wrong_file_is_named(tmp_path: Path, text: str, expected: str) -> None:
    path = write(tmp_path, text)
    assert message_of(path).startswith(f"{path}: {expected}")


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    assert "there is no such file; give its path or one of the names balls" in message_of(tmp_path / "nothing.yaml")
    assert "it is a folder" in message_of(tmp_path)
    other = tmp_path / "other.yaml"
    other.write_bytes(b"\xff\xfe\x00data")
    assert message_of(other).startswith(f"{other}: expected a YAML text in UTF-8")


def test_check_config_takes_plain_types() -> None:
    assert check_config(TINY, "somewhere") == Config.model_validate(TINY)
    with pytest.raises(ConfigError, match=r"^somewhere: expected a section with keys of its own, got 3"):
        check_config(3, "somewhere")


# Data


def test_pendulum_comes_with_its_torque_where_the_model_takes_it() -> None:
    sizes = {"num_train": 4, "num_valid": 3, "num_test": 2, "num_frames": 6}
    for control, has_controls in (("external", True), ("both", True), ("previous", False), ("none", False)):
        settings = {"data": {"set": "pendulum", **sizes}, "model": {**TINY["model"], "control": control}}
        config = check_config(settings, "")
        splits = config.load_data()
        assert [len(part) for part in splits] == [4, 3, 2]
        assert splits.train.lengths == [6] * 4
        assert (splits.train.controls is not None) == has_controls
        assert config.build_model().control_size == int(has_controls)


def test_balls_follow_their_sizes_and_seed() -> None:
    sizes = {"num_train": 2, "num_valid": 1, "num_test": 1, "num_frames": 3}
    videos = [
        check_config({"data": {"set": "balls", "seed": seed, **sizes}, "model": TINY["model"]}, "")
        .load_data()
        .train[0][0]
        for seed in (1, 1, 2)
    ]
    assert videos[0].shape == (3, 900)
    assert videos[0].equal(videos[1])
    assert not videos[0].equal(videos[2])


def test_music_is_read_from_the_folder_and_only_its_training_part_transposed(tmp_path: Path) -> None:
    cells = {}
    for key in ("traindata", "validdata", "testdata"):
        cells[key] = np.empty((1, 1), dtype=object)
        cells[key][0, 0] = np.eye(4, 88, 40)
    scipy.io.savemat(tmp_path / "JSB_Chorales.mat", cells)
    settings = {"data": {"set": "jsb", "folder": str(tmp_path), "transpose": 5}, "model": TINY["model"]}
    splits = check_config(settings, "").load_data()
    moved = set()
    for epoch in range(8):
        for part in splits:
            part.set_epoch(epoch)
        moved.add(int(splits.train[0][0][0].nonzero()))
        assert splits.valid[0][0].nonzero().tolist() == splits.test[0][0].nonzero().tolist()
        assert int(splits.test[0][0][0].nonzero()) == 40
    assert len(moved) > 1


def test_a_misspelt_key_is_named_before_the_key_that_it_leaves_out(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("data:\n  set: jsb\nmodel:\n  hiden_size: 3\n  latent_size: 2\n")
    with pytest.raises(ConfigError, match=r"model\.hiden_size: unknown key; did you mean hidden_size\?"):
        load_config(path)


def test_aliases_that_stand_for_more_than_there_is_memory(tmp_path: Path) -> None:
    """Two to the power of 60 entries in sixty short lines."""
    lines = ["a0: &a0 [x, x]", *(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]" for i in range(1, 60))]
    text = "\n".join(lines)
    path = write(tmp_path, f"{text}\ndata: {{set: jsb}}\nmodel: {{hidden_size: *a59, latent_size: 2}}\n")
    message = message_of(path)
    assert "unknown key" in message
    path = write(
        tmp_path, f"data: {{set: jsb}}\nmodel:\n  hidden_size:\n    {text.replace(chr(10), chr(10) + '    ')}\n"
    )
    assert "model.hidden_size: expected a valid integer, got a dict of many entries" in message_of(path)
    path = write(tmp_path, f"[{', '.join(line.partition(': ')[2] for line in lines)}]\n")
    assert "expected a mapping with the sections data, model, training, got a list of many entries" in message_of(path)
