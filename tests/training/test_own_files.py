"""Training on files of one's own, with gaps and standardised; and of a model that was made in Python."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor, nn

import vssn
from vssn.cli import main
from vssn.data.batching import SequenceDataset, sequence_loader
from vssn.data.files import FileDataset
from vssn.errors import CheckpointError, ConfigError, DataError
from vssn.inference.scoring import evaluate
from vssn.training.checkpoints import load_model, read_checkpoint, read_weights
from vssn.training.config import Config, check_config, load_config
from vssn.training.fit import fit
from vssn.training.own_files import propose_for
from vssn.utils.scaling import Scaling

pd = pytest.importorskip("pandas")
MODEL = {"hidden_size": 4, "latent_size": 2, "likelihood": "gaussian"}


def series(path: Path, offset: float = 0.0) -> Path:
    """Two series of 60 hours, with cells and rows missing, far from 0."""
    generator = np.random.default_rng(0)
    frames = []
    for name in ("north", "south"):
        times = pd.date_range("2024-01-01", periods=60, freq="h")
        values = 1000 + offset + 50 * np.sin(np.arange(60) / 4) + generator.normal(size=60)
        frame = pd.DataFrame({"station": name, "time": times, "load": values, "wind": generator.normal(size=60)})
        frame.loc[generator.choice(60, 8), "load"] = np.nan
        frames.append(frame.drop(index=[11, 12]))
    pd.concat(frames).to_csv(path, index=False)
    return path


def settings_of(path: Path, output: Path, **more: Any) -> dict[str, Any]:
    return {
        "data": {"set": "files", "path": str(path), "standardise": True, "batch_size": 2} | more.pop("data", {}),
        "model": MODEL | {"masked": True} | more.pop("model", {}),
        "training": {"output": str(output), "max_epochs": 2, "accelerator": "cpu"} | more,
    }


def test_from_a_table_to_scores_in_data_units(tmp_path: Path) -> None:
    path = series(tmp_path / "load.csv")
    result = fit(check_config(settings_of(path, tmp_path / "run"), ""))
    model, config = load_model(result.best_path)
    data = config.load_data()
    assert isinstance(data.train, FileDataset)
    assert (data.train.source.channels, data.train.lengths) == (["load", "wind"], [48, 48])
    train = torch.cat(data.train.source.x)
    assert int(train.isnan().sum()) > 10
    assert model.scaling is not None
    torch.testing.assert_close(model.scaling.x_mean, train.nanmean(0))
    assert result.model.scaling is not None
    assert model.forecast(data.test[0][0][:, None], steps=3).mean[..., 0].mean() > 500
    again = evaluate(model, sequence_loader(data.test, 2))
    assert again.micro == result.test.micro
    anew = SequenceDataset(data.test.sequences)  # without the frames before
    assert evaluate(model, sequence_loader(anew, 2)).micro != again.micro
    with open(tmp_path / "run" / "metrics.csv", newline="") as file:
        best = max(float(row["valid/elbo_per_frame"]) for row in csv.DictReader(file))
    assert best == pytest.approx(result.valid.micro, rel=1e-5)
    assert load_config(tmp_path / "run" / "config.yaml") == config
    assert (config.data.step, config.data.id_column, config.data.time_column) == ("h", "station", "time")
    assert config.data.freq is None


def test_a_resumed_run_is_the_unbroken_one(tmp_path: Path) -> None:
    path = series(tmp_path / "load.csv")
    whole = fit(check_config(settings_of(path, tmp_path / "whole", max_epochs=3), ""))
    fit(check_config(settings_of(path, tmp_path / "parts"), ""))
    rest = fit(check_config(settings_of(path, tmp_path / "parts", max_epochs=3), ""), resume=True)
    assert (rest.valid, rest.test) == (whole.valid, whole.test)
    path.write_text(path.read_text().replace("south", "east"))  # moved, and renamed: the same numbers
    path.rename(tmp_path / "moved.csv")
    fit(check_config(settings_of(tmp_path / "moved.csv", tmp_path / "parts", max_epochs=4), ""), resume=True)
    series(path, offset=1.0)
    with pytest.raises(ConfigError, match=r"^data\.fingerprint: .* resume with the same data"):
        fit(check_config(settings_of(path, tmp_path / "parts", max_epochs=5), ""), resume=True)


def test_what_the_model_does_not_take_is_named_by_its_sequence(tmp_path: Path) -> None:
    path = series(tmp_path / "load.csv")
    with pytest.raises(DataError, match=r"^x of north must be finite, got nan; set model\.masked: true \(--set"):
        fit(check_config(settings_of(path, tmp_path / "run", model={"masked": False}), ""))
    unit = settings_of(path, tmp_path / "run", model={"likelihood": "bernoulli"}, data={"standardise": False})
    with pytest.raises(DataError, match=r"^x of north must lie in \[0, 1\] with likelihood='bernoulli'"):
        fit(check_config(unit, ""))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("chunk_length", [None, 3])
def test_gaps_in_data_from_python(chunk_length: int | None, tmp_path: Path) -> None:
    """NaN is missing to a masked model, whatever form the data comes in; to others it is one line."""
    generator = torch.Generator().manual_seed(0)
    parts = [torch.randn(4, 8, 3, generator=generator) for _ in range(3)]
    for part in parts:
        part[torch.rand(part.shape, generator=generator) < 0.2] = torch.nan
    settings = settings_of(tmp_path, tmp_path / "run", chunk_length=chunk_length)
    settings["data"] = {"standardise": True}
    result = fit(settings, parts)
    assert result.model.scaling is not None
    torch.testing.assert_close(result.model.scaling.x_mean, parts[0].flatten(0, 1).nanmean(0))
    items = [list(part) for part in parts]

    class Drawn(torch.utils.data.Dataset[Tensor]):
        def __init__(self, part: list[Tensor]) -> None:
            self.part = part

        def __len__(self) -> int:
            return len(self.part)

        def __getitem__(self, index: int) -> Tensor:
            return self.part[index]

    settings["training"]["output"] = str(tmp_path / "drawn")
    assert fit(settings, [Drawn(part) for part in items]).test == result.test
    settings["model"]["masked"] = False
    settings["training"]["output"] = str(tmp_path / "none")
    for form in (parts, [Drawn(part) for part in items]):
        with pytest.raises(
            DataError, match=r"^splits\.train\[0\] must be finite, got nan; training takes no mask: make"
        ):
            fit(settings, form)


def test_a_packaged_configuration_keeps_standardise(tmp_path: Path) -> None:
    settings = settings_of(series(tmp_path / "load.csv"), tmp_path / "run", max_epochs=1)
    result = fit(settings, [torch.randn(3, 5, 2) + 100 for _ in range(3)])
    assert result.model.scaling is not None
    assert load_model(result.best_path)[1].data.own["standardise"] is True


def test_checkpoints_without_a_scaling_load(tmp_path: Path) -> None:
    """As those of 0.1.0: no key standardise, no buffers."""
    settings = settings_of(tmp_path, tmp_path / "run", max_epochs=1)
    settings["data"] = {}
    result = fit(settings, [torch.randn(3, 5, 2)] * 3)
    content = read_checkpoint(result.best_path)
    assert not [name for name in content["state_dict"] if "mean_" in name or "std_" in name]
    del content["vssn"]["config"]["data"]["standardise"]
    torch.save(content, tmp_path / "old.ckpt")
    assert load_model(tmp_path / "old.ckpt")[0].scaling is None


# The command line


def test_fit_on_a_table_without_a_configuration(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, run = series(tmp_path / "load.csv"), tmp_path / "run"
    tiny = ["--set", "model.hidden_size=4", "--set", "training.accelerator=cpu", "--set", "training.max_epochs=1"]
    assert main(["fit", "--data", str(path), "--output", str(run), *tiny]) == 0
    printed = capsys.readouterr().out
    assert "of the values are missing: the networks see which" in printed
    assert "validation\nELBO" in printed
    config = load_config(run / "config.yaml")
    assert (config.data.set, config.data.path, config.data.standardises) == ("files", str(path), True)
    assert (config.model.likelihood, config.model.masked, config.model.hidden_size) == ("gaussian", True, 4)
    assert config.training.max_epochs == 1
    assert main(["fit", "--output", str(run), "--resume", "--set", "training.max_epochs=2"]) == 0
    capsys.readouterr()
    assert main(["evaluate", str(run / "best.ckpt"), "--data", str(series(tmp_path / "later.csv", 3.0))]) == 0
    assert "files, test" in capsys.readouterr().out


def test_a_run_without_a_test_part_prints_one_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import numpy as np

    draw = np.random.default_rng(0)
    np.savez(tmp_path / "own.npz", x_train=draw.normal(size=(6, 5, 2)), x_valid=draw.normal(size=(3, 5, 2)))
    tiny = ["--set", "model.hidden_size=4", "--set", "training.accelerator=cpu", "--set", "training.max_epochs=1"]
    arguments = ["fit", "--data", str(tmp_path / "own.npz"), "--output", str(tmp_path / "run"), *tiny]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert "\nvalidation\nELBO" in printed
    assert "\ntest\n" not in printed
    assert "6 training, 3 validation sequences" in printed
    result = fit(load_config(tmp_path / "run" / "config.yaml", [f"training.output={tmp_path / 'again'}"]))
    assert result.test is result.valid
    assert main(["evaluate", str(tmp_path / "run" / "best.ckpt"), "--split", "test"]) == 0
    assert f"{result.valid.micro:.4f}" in capsys.readouterr().out


def test_init_prints_a_configuration_that_fit_takes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = series(tmp_path / "load.csv")
    assert main(["init", str(path), "--set", "data.value_columns=[wind]", "--output", str(tmp_path / "run")]) == 0
    text = capsys.readouterr().out
    assert text.startswith("# Proposed by vssn init for ")
    (tmp_path / "config.yaml").write_text(text)
    config = load_config(tmp_path / "config.yaml", ["training.max_epochs=1", "training.accelerator=cpu"])
    assert config.data.value_columns == ["wind"]
    assert fit(config).model.x_size == 1
    assert yaml.safe_load(text)["training"]["output"] == str(tmp_path / "run")
    assert main(["init", str(path), "--set", "model.likelihood=bernoulli"]) == 0
    assert "standardise" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fit"], "--config: expected a configuration, or --data with data of your own"),
        (["fit", "--data", "nowhere.csv"], "nowhere.csv: expected a file or a folder with data, but there is none"),
        (["init", "nowhere.csv"], "nowhere.csv: expected a file or a folder with data, but there is none"),
        (["fit", "--data", "{data}", "--set", "data.set=jsb"], "data.set: expected 'files' without --config"),
        (["init", "{data}", "--set", "model.hiden_size=3"], "model.hiden_size: unknown key; did you mean hidden_size"),
        (["init", "{data}", "--set", "data.time_column=day"], "time_column: expected one of the columns 'station'"),
        (["init", "{data}", "--set", "data.per_beat=4"], "per_beat: expected an option of the form table"),
        (
            ["init", "{one}"],
            "expected sequences of 3 frames at least to learn from, got 1 sequence of 1 frame; a row",
        ),
        (["fit", "--data", "{one}"], "one.csv: expected sequences of 3 frames at least to learn from"),
        (
            ["init", "{alone}"],
            "expected sequences of 2 frames at least to learn from, got 12 sequences of 1",
        ),
        (["fit", "--resume", "--output", "nothing"], "config.yaml: expected a YAML file, but there is no such file"),
    ],
)
def test_mistakes_at_the_command_line(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = {"{data}": str(series(tmp_path / "load.csv"))}
    for name, rows in (("one", ["2024-01-01,a,1"]), ("alone", [f"2024-01-01,{letter},1" for letter in "abcdefghijkl"])):
        (tmp_path / f"{name}.csv").write_text("\n".join(("time,id,x", *rows)) + "\n")
        places[f"{{{name}}}"] = str(tmp_path / f"{name}.csv")
    assert main([places.get(argument, argument) for argument in arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


# A model from Python


PARTS = [torch.randn(4, 6, 3, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]


@pytest.mark.parametrize(
    "given",
    [
        ["model.objective=nasmc", "model.particles=2"],
        ["training.constraint.target=-1"],
        ["training.kl_anneal_updates=0"],
        ["model.name=vrnn"],
        ["model.name=dvbf"],
        ["model.name=rssm"],
    ],
    ids=" ".join,
)
def test_a_proposal_leaves_out_what_is_refused(given: list[str], tmp_path: Path) -> None:
    settings = propose_for(str(series(tmp_path / "own.csv")), given).settings
    assert check_config(settings, "proposed").training.max_epochs == settings["training"]["max_epochs"]
    with pytest.raises(ConfigError, match=r"model: expected|--set model"):
        propose_for(str(tmp_path / "own.csv"), ["model=5"])


def run_of(output: Path, **more: Any) -> dict[str, Any]:
    return {"output": str(output), "max_epochs": 2, "accelerator": "cpu"} | more


def own_model(**more: Any) -> vssn.VSSN:
    torch.manual_seed(7)
    return vssn.VSSN(3, 4, 2, likelihood="gaussian", **more)


@pytest.mark.parametrize("behind", [1, 910])
def test_a_proposal_counts_no_rows_of_the_future(behind: int, tmp_path: Path) -> None:
    """But for the mask, which the rows need where a model is applied to them too, it is that of the observed rows."""
    proposals = []
    for name, rows in (("whole", 90 + behind), ("observed", 90)):
        load = np.sin(np.arange(rows) / 5)
        load[90:] = np.nan
        times = pd.date_range("2024-01-01", periods=rows, freq="h")
        frame = pd.DataFrame({"time": times, "load": load, "promo": np.arange(rows) % 7})
        (tmp_path / name).mkdir()
        frame.to_csv(tmp_path / name / "load.csv", index=False)
        given = ['data.control_columns=["promo"]']
        proposals.append(propose_for(str(tmp_path / name / "load.csv"), given, "runs/load"))
    whole, observed = proposals
    assert whole.settings["model"].pop("masked")
    assert whole.reasons.pop("model.masked").startswith("the rows of the future have no values")
    for proposal in proposals:
        del proposal.settings["data"]["path"]
    assert whole.settings == observed.settings
    assert "masked" not in observed.settings["model"]
    assert whole.reasons == observed.reasons
    assert whole.reasons["model.hidden_size"] == "for 90 numbers"
    assert "1 sequence of 90 frames" in whole.head[0]
    rows = "1 row" if behind == 1 else f"{behind} rows"
    assert whole.head[-1] == f"Note: {rows} behind the last observation, of the future, not counted"


def test_a_model_is_trained_in_place(tmp_path: Path) -> None:
    model = own_model().eval()
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    result = vssn.fit(model, PARTS, training=run_of(tmp_path / "run"), data={"batch_size": 2})
    assert result.model is model
    assert not model.training
    assert any(not weight.equal(before[name]) for name, weight in model.state_dict().items())
    for name, weight in read_weights(result.best_path).items():
        assert model.state_dict()[name].equal(weight), name
    assert evaluate(model, sequence_loader(as_dataset(PARTS[2]), 2)).micro == result.test.micro
    config = load_config(tmp_path / "run" / "config.yaml")
    assert (config.data.set, config.data.batch_size, config.training.max_epochs) == ("given", 2, 2)


def as_dataset(part: Tensor) -> Any:
    from vssn.data.batching import SequenceDataset

    return SequenceDataset(part)


def test_a_model_that_says_its_arguments_is_described(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its checkpoint then makes it again, unless it has other weights than the arguments make."""
    arguments = {"x_size": 3, "hidden_size": 4, "latent_size": 2, "likelihood": "gaussian", "batch_first": False}
    monkeypatch.setattr(vssn.VSSN, "config", arguments, raising=False)
    result = fit(own_model(), PARTS, training=run_of(tmp_path / "run", max_epochs=1))
    model, config = load_model(result.best_path)
    assert (config.model.name, config.model.hidden_size, config.model.likelihood) == ("vssn", 4, "gaussian")
    assert evaluate(model, sequence_loader(as_dataset(PARTS[2]), 16)).micro == result.test.micro
    larger = own_model(embed_size=6, encoder=nn.Linear(3, 6))
    fit(larger, PARTS, training=run_of(tmp_path / "other", max_epochs=1))
    assert load_config(tmp_path / "other" / "config.yaml").model.name == "given"


def test_a_model_with_parts_of_ones_own(tmp_path: Path) -> None:
    """No configuration describes it: a checkpoint holds its weights, and says so."""
    encoder = nn.Sequential(nn.Linear(3, 6), nn.ELU())
    scaling = Scaling.of(list(PARTS[0]))
    model = own_model(encoder=encoder, embed_size=6, batch_first=True, scaling=scaling)
    result = fit(model, PARTS, training=run_of(tmp_path / "run", max_epochs=1))
    config = load_config(tmp_path / "run" / "config.yaml")
    assert (config.model.name, config.data.own["standardise"]) == ("given", True)
    with pytest.raises(CheckpointError, match=r"model: 'given' is a model that came from Python.*read_weights"):
        load_model(result.best_path)
    again = own_model(encoder=nn.Sequential(nn.Linear(3, 6), nn.ELU()), embed_size=6, scaling=scaling)
    again.load_state_dict(read_weights(result.best_path))
    assert evaluate(again, sequence_loader(as_dataset(PARTS[2]), 16)).micro == result.test.micro


def test_what_a_model_cannot_be_trained_with(tmp_path: Path) -> None:
    training = run_of(tmp_path / "run")
    with pytest.raises(ConfigError, match=r"^resume: expected a configuration to continue from, got a model"):
        fit(own_model(), PARTS, resume=True, training=training)
    with pytest.raises(DataError, match=r"^splits: expected x of 3 features as the model's x_size, got 2"):
        fit(own_model(), [part[..., :2] for part in PARTS], training=training)
    controlled = own_model(control="external", control_size=1)
    with pytest.raises(DataError, match=r"^splits: expected u of 1 features as the model's control_size, got 0"):
        fit(controlled, PARTS, training=training)
    with pytest.raises(
        ConfigError, match=r"^model\.control: expected 'external' or 'both' as the splits have controls"
    ):
        fit(own_model(), [(part, part) for part in PARTS], training=training)
    with pytest.raises(ConfigError, match=r"training\.max_epoch: unknown key; did you mean max_epochs"):
        fit(own_model(), PARTS, training={"max_epoch": 3})
    with pytest.raises(ConfigError, match=r"^data\.standardise: expected false with a model that has no scaling"):
        fit(own_model(), PARTS, data={"standardise": True}, training=training)
    with pytest.raises(TypeError, match="training must be left out with a configuration"):
        fit(check_config(settings_of(tmp_path, tmp_path), ""), PARTS, training=training)
    with pytest.raises(TypeError, match="config must be a Config"):
        fit(nn.Linear(2, 2), PARTS)  # type: ignore[arg-type]
    assert not (tmp_path / "run").exists()


def test_a_model_in_the_place_of_a_configuration_is_the_same_run(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"model": MODEL, "training": run_of(tmp_path / "a")}
    wanted = fit(settings, PARTS)
    config: Config = load_config(tmp_path / "a" / "config.yaml")
    torch.manual_seed(config.training.seed)
    model = config.build_model()
    found = fit(model, PARTS, training=run_of(tmp_path / "b"))
    assert (found.valid, found.test) == (wanted.valid, wanted.test)
