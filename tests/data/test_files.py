"""The set `files`: how one's own data is split, cut and described by a configuration."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from vssn.data.files import FileDataset, hold_out, split_source, windows
from vssn.data.formats import Source, read
from vssn.data.proposals import Values, propose
from vssn.data.splits import Splits
from vssn.errors import ConfigError, DataError
from vssn.likelihoods import LIKELIHOODS
from vssn.training.config import Config, check_config

RATIOS = [0.8, 0.1, 0.1]


def source(lengths: list[int], parts: list[str] | None = None, controls: bool = False, **more: Any) -> Source:
    """Sequences whose entries number the frames of all."""
    numbers = torch.arange(float(sum(lengths)))[:, None].split(lengths)
    return Source(
        x=list(numbers),
        u=[-part for part in numbers] if controls else None,
        names=[f"s{index}" for index in range(len(lengths))],
        channels=["a"],
        controls=["c"] if controls else [],
        times=[part[:, 0].numpy() for part in numbers],
        **{"step": 1.0, "kind": "table", "parts": parts} | more,
    )


def values(part: Source) -> list[float]:
    return torch.cat(part.x)[:, 0].tolist()


def test_the_last_parts_of_each_series_validate_and_test() -> None:
    train, valid, test = split_source(source([20, 10], controls=True), "time", RATIOS, 0)
    assert values(train) == [*range(16), *range(20, 28)]
    assert values(valid) == [16, 17, 28]
    assert values(test) == [18, 19, 29]
    assert train.before is None
    assert values(valid.before) == [*range(16), *range(20, 28)]
    assert values(test.before) == [*range(18), *range(20, 29)]
    assert values(test.select([1]).before) == list(range(20, 29))
    dataset = FileDataset(test)
    assert [x[:, 0].tolist() for x, _ in dataset.before] == [list(range(18)), list(range(20, 29))]
    for part in (train, valid, test):
        assert part.u is not None
        assert part.times is not None
        for x, u, times in zip(part.x, part.u, part.times, strict=True):
            assert x.equal(-u)
            assert times.tolist() == x[:, 0].tolist()
    assert [len(part.x) for part in split_source(source([3]), "time", [0.98, 0.01, 0.01], 0)] == [1, 1, 1]


def test_what_comes_long_before_is_not_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vssn.data.files.BEFORE", 4)
    assert values(split_source(source([20]), "time", RATIOS, 0)[2].before) == [14, 15, 16, 17]


def test_whole_sequences_are_drawn_by_the_seed() -> None:
    parts = split_source(source([2] * 20), "ratio", RATIOS, 0)
    assert [len(part.x) for part in parts] == [16, 2, 2]
    assert sorted(name for part in parts for name in part.names) == sorted(f"s{index}" for index in range(20))
    assert [part.names for part in parts] == [part.names for part in split_source(source([2] * 20), "ratio", RATIOS, 0)]
    assert parts[2].names != split_source(source([2] * 20), "ratio", RATIOS, 1)[2].names
    assert [len(part.x) for part in split_source(source([2] * 3), "ratio", RATIOS, 0)] == [1, 1, 1]


def test_a_given_split_and_what_it_lacks() -> None:
    whole = source([2] * 5, ["train", "valid", "train", "test", "valid"])
    assert [part.names for part in split_source(whole, "auto", RATIOS, 0)] == [["s0", "s2"], ["s1", "s4"], ["s3"]]
    without_test = source([2] * 3, ["train", "valid", "train"])
    assert [part.names for part in split_source(without_test, "given", RATIOS, 0)] == [["s0", "s2"], ["s1"], ["s1"]]
    train, valid, test = split_source(source([2] * 4, ["train"] * 3 + ["test"]), "given", RATIOS, 0)
    assert (len(train.x), len(valid.x), test.names) == (2, 1, ["s3"])


def test_auto_tells_many_sequences_from_few() -> None:
    assert len(split_source(source([9] * 9), "auto", RATIOS, 0)[2].x) == 9
    assert len(split_source(source([9] * 10), "auto", RATIOS, 0)[2].x) == 1


@pytest.mark.parametrize(
    ("whole", "how", "message"),
    [
        (source([5, 2]), "time", "expected three frames at least in each sequence for 'time', got 2 in s1"),
        (source([5, 2]), "ratio", "expected three sequences at least for 'ratio', got 2; choose 'time'"),
        (source([5, 2]), "given", "'given', but s0 is of no part: expected folders train, valid and test"),
        (source([5, 2], ["valid", "test"]), "given", "expected parts train and valid .* got no train"),
        (source([5, 2], ["train", "train"]), "given", "expected parts train and valid .* got no valid"),
        (source([5, 2], ["train", "test"]), "given", "expected two training sequences at least, got 1"),
    ],
)
def test_what_cannot_be_split(whole: Source, how: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        split_source(whole, how, RATIOS, 0)


def test_windows_hold_every_frame_once() -> None:
    cut = windows(source([5, 2], controls=True), 2)
    assert cut.lengths == [2, 2, 1, 2]
    assert values(cut) == list(range(7))
    assert cut.u is not None
    assert cut.u[1].tolist() == [[-2], [-3]]


@pytest.mark.parametrize("controls", [False, True])
def test_rows_for_the_future_belong_to_no_part(controls: bool, tmp_path: Path) -> None:
    pd = pytest.importorskip("pandas")
    v, promo = np.arange(60.0), np.arange(60.0)
    v[40:] = np.nan
    pd.DataFrame({"date": pd.date_range("2023-01-01", periods=60), "v": v, "promo": promo}).to_csv(
        tmp_path / "own.csv", index=False
    )
    options = {"control_columns": ["promo"]} if controls else {"value_columns": ["v"]}
    source = read(tmp_path / "own.csv", **options)
    parts = split_source(source, "time", [0.8, 0.1, 0.1], 0)
    assert [part.lengths for part in parts] == [[32], [4], [4]]
    assert [part.x[0][:, 0].tolist() for part in parts] == [list(range(32)), list(range(32, 36)), list(range(36, 40))]
    held = hold_out(source, 0.1, 0)
    assert [part.lengths for part in held] == [[36], [4]]
    if controls:
        assert [part.u[0][-1].item() for part in (*parts, *held)] == [31, 35, 39, 35, 39]


def test_a_validation_part_has_a_value() -> None:
    whole = source([4, 4, 4], ["train", "valid", "test"])
    whole.x[1].fill_(math.nan)
    with pytest.raises(DataError, match="expected a value at least in the part that validates, got none in s1; choose"):
        split_source(whole, "given", RATIOS, 0)
    many = replace(whole.select([1] * 12), parts=None)
    with pytest.raises(DataError, match="expected a value at least in the part that validates"):
        hold_out(many, 0.2, 0)


# In a configuration


def config_of(path: Path, model: dict[str, Any] | None = None, **data: Any) -> Config:
    model = {"hidden_size": 4, "latent_size": 2, "likelihood": "gaussian"} | (model or {})
    return check_config({"data": {"set": "files", "path": str(path), **data}, "model": model}, "own.yaml")


@pytest.fixture
def arrays(tmp_path: Path) -> Path:
    generator = np.random.default_rng(0)
    np.savez(tmp_path / "a.npz", x=generator.normal(size=(12, 6, 2)), u=generator.normal(size=(12, 6, 1)))
    return tmp_path / "a.npz"


def test_a_configuration_loads_and_measures(arrays: Path) -> None:
    config = config_of(arrays, {"control": "external"})
    assert config.data.sizes == (None, None)
    splits = config.load_data()
    assert isinstance(splits, Splits)
    assert [len(part) for part in splits] == [10, 1, 1]
    measured = config.with_measured(splits)
    assert measured.data.sizes == (2, 1)
    assert (measured.data.num_train, measured.data.num_frames, measured.data.format) == (10, 60, "arrays")
    assert measured.data.fingerprint.startswith("crc32 ")
    assert measured.with_measured(measured.load_data()) == measured
    assert measured.build_model().control_size == 1
    assert isinstance(splits.train, FileDataset)
    assert splits.train.source.names == [f"x[{index}]" for index in sorted(set(range(12)) - {
        int(part.source.names[0][2:-1]) for part in splits[1:] if isinstance(part, FileDataset)})]  # fmt: skip


def test_what_the_run_has_and_the_data_has_not(arrays: Path, tmp_path: Path) -> None:
    config = config_of(arrays, {"control": "external"})
    config = config.with_measured(config.load_data())
    np.savez(tmp_path / "b.npz", x=np.zeros((12, 6, 3)))
    with pytest.raises(DataError, match=r"b\.npz: expected x of 2 features as the run has, got 3"):
        config.with_folder(str(tmp_path / "b.npz")).load_data()
    with pytest.raises(
        ConfigError, match=r"^model\.control: expected 'external' or 'both' as the splits have controls"
    ):
        config_of(arrays).with_measured(config_of(arrays).load_data())


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"ratios": [0.5, 0.5]}, r"data: ratios must be three numbers above 0"),
        ({"ratios": [1.0, 0.0, 0.1]}, r"data: ratios must be three numbers above 0"),
        ({"split": "random"}, r"data\.split: expected 'auto', 'ratio', 'time' or 'given', got 'random'"),
        ({"format": "excel"}, r"data\.format: expected 'table', .*got 'excel'"),
        ({"format": "midi", "freq": "h"}, r"data: freq has no meaning for the format 'midi', which has per_beat"),
        ({"window": 0}, r"data\.window: expected a number greater"),
        ({"paht": "x"}, r"data\.paht: unknown key; did you mean path"),
    ],
)
def test_mistakes_in_the_section(data: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config_of(Path("x.csv"), **data)


def test_the_path_must_be_given() -> None:
    with pytest.raises(ConfigError, match=r"data\.path: missing"):
        check_config({"data": {"set": "files"}, "model": {"hidden_size": 4, "latent_size": 2}}, "own.yaml")


@pytest.mark.parametrize("likelihood", ["bernoulli", "nade"])
def test_only_real_numbers_are_standardised(likelihood: str) -> None:
    with pytest.raises(ConfigError, match=rf"data\.standardise: expected false with model\.likelihood '{likelihood}'"):
        config_of(Path("x.csv"), {"likelihood": likelihood}, standardise=True)


def test_music_alone_is_transposed(arrays: Path, tmp_path: Path) -> None:
    symusic = pytest.importorskip("symusic")
    with pytest.raises(DataError, match=r"data\.transpose: expected 0 as .*a\.npz is no MIDI, got 3"):
        config_of(arrays, {"control": "external"}, transpose=3).load_data()
    score = symusic.Score(480)
    score.tracks.append(symusic.Track())
    score.tracks[0].notes.append(symusic.Note(0, 4800, 60, 80))
    (tmp_path / "midi").mkdir()
    score.dump_midi(tmp_path / "midi" / "a.mid")
    splits = config_of(tmp_path / "midi", {"likelihood": "bernoulli"}, transpose=3).load_data()
    heard = set()
    for epoch in range(20):
        splits.train.set_epoch(epoch)
        heard.add(int(splits.train[0][0][0].argmax()))
    assert heard <= set(range(36, 43))
    assert len(heard) > 3
    assert int(splits.valid[0][0][0].argmax()) == 39


# Proposals


def proposed(x: torch.Tensor, likelihoods: Any = tuple(LIKELIHOODS), **more: Any) -> dict[str, Any]:
    """The settings for sequences x [N, T, X], which make a configuration."""
    names = {
        "names": [f"s{index}" for index in range(len(x))],
        "channels": [f"c{index}" for index in range(x.shape[2])],
    }
    given = Source(
        **{"x": list(x), "u": None, "controls": [], "times": None, "step": None, "kind": "arrays", **names} | more
    )
    proposal = propose(given, "own.npz", "runs/own", likelihoods)
    if proposal.settings["model"]["likelihood"] in LIKELIHOODS:
        import yaml

        assert yaml.safe_load(proposal.to_yaml()) == proposal.settings
        check_config(proposal.settings, "proposed")
    return proposal.settings


def test_the_likelihood_follows_from_the_values() -> None:
    torch.manual_seed(0)
    binary, real, unit = (torch.rand(20, 30, 5) < 0.2).float(), torch.randn(20, 30, 5), torch.rand(20, 30, 5)
    counts = torch.poisson(torch.full((20, 30, 5), 2.0))
    assert proposed(binary)["model"]["likelihood"] == "nade"
    assert proposed(binary[..., :1])["model"]["likelihood"] == "bernoulli"
    assert proposed(unit)["model"]["likelihood"] == "gaussian"  # of bernoulli all quantiles would be 0 or 1
    assert proposed(unit, kind="film")["model"]["likelihood"] == "bernoulli"
    assert proposed(real)["model"]["likelihood"] == "gaussian"
    assert proposed(real)["data"]["standardise"] is True
    assert "standardise" not in proposed(unit, kind="film")["data"]
    assert proposed(counts, ("gaussian",))["model"]["likelihood"] == "gaussian"
    more = ("gaussian", "poisson", "negative_binomial")
    assert proposed(counts, more)["model"]["likelihood"] == "poisson"
    assert proposed(counts**2, more)["model"]["likelihood"] == "negative_binomial"
    for large in (5_000_000 + counts, (1e8 + real.double()).float(), 20_000 + counts):  # spread as a Poisson's, or less
        settings = proposed(large, more)
        assert settings["model"]["likelihood"] == "gaussian"
        assert settings["data"]["standardise"] is True


def test_gaps_controls_and_lengths_are_seen() -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 1000, 2)
    assert "masked" not in proposed(x)["model"]
    x[0, 3, 0] = torch.nan
    settings = proposed(x)
    assert settings["model"]["masked"] is True
    assert (settings["data"]["split"], settings["data"]["window"]) == ("time", 100)
    partly = (torch.rand(20, 5, 3) < 0.5).float()
    partly[0, 0, 0] = torch.nan
    assert proposed(partly)["model"]["likelihood"] == "bernoulli"  # nade takes whole frames alone
    settings = proposed(torch.randn(40, 1000, 2), u=[torch.zeros(1000, 1)] * 40, controls=["c"])
    assert settings["model"]["control"] == "both"
    assert settings["training"]["chunk_length"] == 100
    assert (settings["data"]["split"], settings["data"]["batch_size"]) == ("ratio", 8)
    assert proposed(torch.rand(20, 5, 900))["model"]["embed_size"] > 0
    given = proposed(torch.randn(3, 50, 2), parts=["train", "valid", "test"])
    assert given["data"]["split"] == "given"


def test_the_values_of_sequences() -> None:
    found = Values.of([torch.tensor([[1.0, torch.nan], [3.0, 2.0]]), torch.full((1, 2), torch.nan)])
    assert (found.low, found.high, found.whole, found.mean) == (1, 3, True, 2)
    assert (found.missing, found.partly) == (0.5, True)
    assert Values.of([torch.full((1, 2), torch.nan)]).missing == 1


def test_a_proposal_says_how_the_data_was_read(tmp_path: Path) -> None:
    pytest.importorskip("pandas")
    (tmp_path / "own.csv").write_text("when,a\n2024-01-01,1.5\n2024-01-02,\n2024-01-04,3\n")
    proposal = propose(read(tmp_path / "own.csv", time_column="when"), str(tmp_path / "own.csv"), "run", ("gaussian",))
    data = proposal.settings["data"]
    assert (data["time_column"], data["value_columns"], data["step"]) == ("when", ["a"], "D")
    assert "freq" not in data
    assert "1 sequence of 4 frames, 1 feature (table, a step of D)" in proposal.head[0]
    text = proposal.to_yaml()
    assert "  # 50.0% of the values are missing: the networks see which\n  masked: true\n" in text


def test_features_without_a_value_are_said() -> None:
    """They were proposed for training without a word."""
    x = torch.randn(1, 40, 3)
    x[..., 1] = math.nan
    given = Source(list(x), None, ["own"], ["a", "b", "c"], [], None, None, "arrays")
    head = propose(given, "own.npz", "runs/own", tuple(LIKELIHOODS)).head
    assert head[-1] == "Note: no value at all in b; leave out what is never observed"
    with pytest.raises(DataError, match=r"^own\.npz: expected values to learn from, got none: all are missing$"):
        propose(replace(given, x=[torch.full_like(x[0], math.nan)]), "own.npz", "runs/own", tuple(LIKELIHOODS))
