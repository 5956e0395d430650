"""Training: a run that stops and continues equals one that does not, and leaves whole files only."""

from __future__ import annotations

import csv
import functools
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import scipy.io
import torch
from torch import Tensor

from vssn.cli import main
from vssn.data.batching import SequenceBatch
from vssn.errors import ConfigError, DataError, TrainingError
from vssn.inference.scoring import evaluate
from vssn.models.vssn import VSSN
from vssn.nn.layer import State, VSSNLayer
from vssn.training.checkpoints import load_model, read_checkpoint
from vssn.training.config import Config, TrainingSection, check_config
from vssn.training.fit import fit
from vssn.training.module import SequenceData, TrainingModule, cut, initial_kl_weight, kl_weight, learning_rate

FILES = {"best.ckpt", "config.yaml", "last.ckpt", "metrics.csv", "tensorboard"}


def music_folder(folder: Path) -> Path:
    """JSB_Chorales.mat with a few short made-up sequences of several lengths."""
    rng = np.random.default_rng(5)
    content = {}
    for key, lengths in (("traindata", (9, 4, 12, 1, 7, 6, 3)), ("validdata", (5, 8, 2)), ("testdata", (6, 1))):
        cells = np.empty((1, len(lengths)), dtype=object)
        for index, length in enumerate(lengths):
            cells[0, index] = np.pad(rng.integers(0, 2, (length, 12)), ((0, 0), (40, 36))).astype(float)
        content[key] = cells
    scipy.io.savemat(folder / "JSB_Chorales.mat", content)
    return folder


@pytest.fixture(scope="module")
def music(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return music_folder(tmp_path_factory.mktemp("music"))


def music_config(music: Path, output: Path, *, model: dict[str, Any] | None = None, **training: Any) -> Config:
    settings = {
        "data": {"set": "jsb", "folder": str(music), "batch_size": 2, "transpose": 3},
        "model": {"hidden_size": 5, "latent_size": 3, "noise_size": 2} | (model or {}),
        "training": {"output": str(output), "max_epochs": 2, "accelerator": "cpu"} | training,
    }
    return check_config(settings, "")


def rows(folder: Path) -> list[dict[str, str]]:
    """metrics.csv without the column that differs from run to run."""
    with open(folder / "metrics.csv", newline="") as file:
        return [{name: value for name, value in row.items() if name != "seconds"} for row in csv.DictReader(file)]


def column(folder: Path, name: str) -> list[float]:
    return [float(row[name]) for row in rows(folder)]


def assert_same_run(a: Path, b: Path) -> None:
    assert rows(a) == rows(b)
    for name in ("last.ckpt", "best.ckpt"):
        first, second = read_checkpoint(a / name), read_checkpoint(b / name)
        assert first["state_dict"].keys() == second["state_dict"].keys()
        for key, weight in first["state_dict"].items():
            assert weight.equal(second["state_dict"][key]), (name, key)
        assert first["vssn"]["epoch"] == second["vssn"]["epoch"]
        moments = [checkpoint["optimizer_states"][0]["state"] for checkpoint in (first, second)]
        for index, entry in moments[0].items():
            for moment, value in entry.items():
                assert torch.equal(value, moments[1][index][moment]), (name, index, moment)


# Schedules


def test_kl_weight_linear() -> None:
    config = TrainingSection(kl_start=0.2, kl_anneal_updates=4)
    assert [kl_weight(update, config) for update in (0, 1, 2, 3, 4, 5, 100)] == pytest.approx(
        [0.2, 0.4, 0.6, 0.8, 1, 1, 1]
    )
    assert kl_weight(0, TrainingSection()) == 1


def test_kl_weight_cyclical() -> None:
    config = TrainingSection(kl_start=0.0, kl_anneal_updates=2, kl_cycles=2)
    assert [kl_weight(update, config) for update in range(9)] == [0, 0.5, 1, 1, 0, 0.5, 1, 1, 1]


def test_the_kl_weight_of_an_inferred_start_rises_by_itself() -> None:
    config = TrainingSection(kl_start=0.2, kl_anneal_updates=1, initial_kl_anneal_updates=4)
    assert [initial_kl_weight(update, config) for update in (0, 1, 2, 3, 4, 5, 100)] == pytest.approx(
        [0.2, 0.4, 0.6, 0.8, 1, 1, 1]
    )
    alone = TrainingSection(kl_start=0.2, initial_kl_anneal_updates=4)
    assert [kl_weight(0, alone), initial_kl_weight(0, alone)] == [1, 0.2]
    assert initial_kl_weight(0, TrainingSection(kl_start=0.2, kl_anneal_updates=4)) is None
    later = TrainingSection(kl_start=0.2, initial_kl_anneal_updates=4, initial_kl_anneal_after=2)
    assert [initial_kl_weight(update, later) for update in (0, 2, 3, 6, 7)] == pytest.approx([0.2, 0.2, 0.4, 1, 1])


def test_learning_rate_decays_after_so_many_epochs() -> None:
    config = TrainingSection(learning_rate=1.0, lr_decay=0.5, lr_decay_after=2)
    assert [learning_rate(epoch, config) for epoch in range(5)] == [1, 1, 0.5, 0.25, 0.125]


# Chunks


def test_cut_keeps_every_frame_once() -> None:
    lengths = [3, 8, 1, 5, 8]
    x = torch.zeros(8, 5, 2)
    for b, length in enumerate(lengths):
        x[:length, b] = torch.randn(length, 2)
    u = x[..., :1] * 2
    chunks = cut(SequenceBatch(x, torch.tensor(lengths), u), 3)
    order = [1, 4, 3, 0, 2]  # longest first, equals in their order
    assert [chunk.lengths.tolist() for chunk in chunks] == [[3, 3, 3, 3, 1], [3, 3, 2], [2, 2]]
    for position, b in enumerate(order):
        parts = [chunk for chunk in chunks if position < chunk.x.shape[1]]
        joined = torch.cat([chunk.x[: chunk.lengths[position], position] for chunk in parts])
        assert joined.equal(x[: lengths[b], b])
        assert parts[0].u is not None
        assert parts[0].u[0, position].equal(u[0, b])


def test_cut_leaves_a_short_batch_alone() -> None:
    batch = SequenceBatch(torch.randn(4, 2, 3), torch.tensor([2, 4]))
    assert cut(batch, None) == [batch]
    assert cut(batch, 4) == [batch]


def test_chunks_carry_the_state_on(music: Path, tmp_path: Path) -> None:
    """Without latents and without learning, chunks add up to the whole."""
    for name, chunk_length in (("whole", None), ("chunks", 3)):
        model = {"latent_size": 0, "noise_size": 0}
        fit(
            music_config(
                music, tmp_path / name, model=model, learning_rate=1e-30, chunk_length=chunk_length, max_epochs=1
            )
        )
    for name in ("train/elbo_per_frame", "train/loss", "valid/elbo_per_frame"):
        assert column(tmp_path / "chunks", name) == pytest.approx(column(tmp_path / "whole", name), rel=1e-6), name
    assert column(tmp_path / "whole", "updates") == [4]
    assert column(tmp_path / "chunks", "updates")[0] > 4


def test_chunks_of_a_causal_model_carry_all_of_its_state(music: Path, tmp_path: Path) -> None:
    model = {"inference": "causal", "latent_size": 3, "noise_size": 2}
    fit(music_config(music, tmp_path / "chunks", model=model, chunk_length=3, max_epochs=1))
    assert np.isfinite(column(tmp_path / "chunks", "train/loss")).all()
    assert column(tmp_path / "chunks", "updates")[0] > 4


def test_chunks_are_each_sequence_alone_with_its_state_detached(
    music: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bound and gradient of every update, batched and padded, against one sequence at a time through `VSSN` itself."""
    chunk_length = 3
    forward, updates = VSSN.forward, []

    def noiseless(layer: VSSNLayer, like: Tensor) -> tuple[Tensor, Tensor]:
        sizes = (layer.noise_size, layer.latent_size)
        return like.new_zeros(*like.shape[:2], sizes[0]), like.new_zeros(*like.shape[:2], sizes[1])

    def watched(model: VSSN, x: Tensor, u: Any, lengths: Tensor, *, state: Any = None, **kwargs: Any) -> Any:
        output = forward(model, x, u, lengths, state=state, **kwargs)
        if model.training:
            updates.append((x, lengths, state, output))
        return output

    monkeypatch.setattr(VSSNLayer, "draw_noise", noiseless)
    monkeypatch.setattr(VSSN, "forward", watched)
    config = music_config(music, tmp_path / "run", chunk_length=chunk_length, learning_rate=1e-30, max_epochs=1)
    config = config.model_copy(update={"data": config.data.model_copy(update={"batch_size": 7, "transpose": 0})})
    fit(config)
    model, _ = load_model(tmp_path / "run" / "best.ckpt")
    model.train()

    sequences = sorted((x.float() for x, _ in config.load_data().train), key=len, reverse=True)
    assert [len(x) for x in sequences] == [12, 9, 7, 6, 4, 3, 1]
    states: list[Any] = [None] * len(sequences)
    for number, (_, lengths, given, output) in enumerate(updates):
        alive = [index for index, x in enumerate(sequences) if len(x) > number * chunk_length]
        assert lengths.tolist() == [min(chunk_length, len(sequences[i]) - number * chunk_length) for i in alive]
        assert given is None or not any(part.requires_grad for part in given)
        total = torch.zeros(())
        for column, index in enumerate(alive):
            chunk = sequences[index][number * chunk_length :][:chunk_length, None]
            alone = forward(model, chunk, state=states[index])  # a starts from 0 behind the chunk's last frame
            torch.testing.assert_close(output.elbo[column : column + 1], alone.elbo)
            states[index] = State(*(part.detach() for part in alone.state))
            total = total - alone.elbo.sum() / lengths.sum()
        torch.testing.assert_close(output.loss, total)
    assert len(updates) == 4


def test_a_gradient_ends_where_its_chunk_begins(music: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last chunk's gradient is that of its own frames from a constant state."""
    captured: list[dict[str, Tensor]] = []

    def on_train_batch_end(module: TrainingModule, *_: Any) -> None:
        named = module.model.named_parameters()
        captured.append({name: p.grad.clone() for name, p in named if p.grad is not None})

    monkeypatch.setattr(TrainingModule, "on_train_batch_end", on_train_batch_end)
    model = {"latent_size": 0, "noise_size": 0}
    config = music_config(
        music, tmp_path / "run", model=model, chunk_length=9, learning_rate=1e-30, max_epochs=1, gradient_clip_norm=None
    )
    config = config.model_copy(update={"data": config.data.model_copy(update={"batch_size": 7, "transpose": 0})})
    fit(config)
    trained, _ = load_model(tmp_path / "run" / "best.ckpt")
    trained.train()
    longest = max((x.float() for x, _ in config.load_data().train), key=len)[:, None]
    frames = sum(config.load_data().train.lengths)
    gradients = {}
    for name, truncate in (("truncated", True), ("whole", False)):
        trained.zero_grad()
        state = trained(longest[:9]).state
        output = trained(longest[9:], state=State(*(part.detach() for part in state)) if truncate else state)
        (-output.elbo.sum() * 2 / frames).backward()  # two chunks: each frame weighs 2 / frames
        gradients[name] = {key: p.grad.clone() for key, p in trained.named_parameters() if p.grad is not None}
    for key, gradient in captured[0].items():
        torch.testing.assert_close(gradient, gradients["truncated"][key], msg=lambda text, key=key: f"{key}: {text}")
    weight = "layer.duration.weight_hh"
    assert not torch.allclose(captured[0][weight], gradients["whole"][weight])


# A run


@pytest.mark.parametrize(
    ("model", "training"),
    [
        ({}, {"early_stopping_patience": 3, "max_minutes": 100}),
        ({"universal": "gaussian", "residual_posterior": True}, {"chunk_length": 4}),
        ({}, {"precision": "64-true"}),
    ],
    ids=["plain", "gaussian-chunks", "double"],
)
def test_stopped_and_resumed_equals_straight(
    music: Path, tmp_path: Path, model: dict[str, Any], training: dict[str, Any]
) -> None:
    training = training | {"kl_start": 0.1, "kl_anneal_updates": 12, "lr_decay": 0.8, "lr_decay_after": 1}
    fit(music_config(music, tmp_path / "straight", model=model, max_epochs=4, **training))
    for epochs in (1, 3, 4):
        config = music_config(music, tmp_path / "parts", model=model, max_epochs=epochs, **training)
        result = fit(config, resume=epochs > 1)
    assert_same_run(tmp_path / "straight", tmp_path / "parts")
    assert column(tmp_path / "parts", "epoch") == [1, 2, 3, 4]
    assert column(tmp_path / "parts", "learning_rate") == pytest.approx([1e-3, 8e-4, 6.4e-4, 5.12e-4])
    assert {path.name for path in (tmp_path / "parts").iterdir()} == FILES
    assert result.best_epoch == 1 + int(np.argmax(column(tmp_path / "parts", "valid/elbo_per_frame")))


def test_interrupted_in_an_epoch_resumes_at_its_start(
    music: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit(music_config(music, tmp_path / "straight", max_epochs=3))
    step = TrainingModule.training_step

    def interrupted(module: TrainingModule, batch: SequenceBatch, batch_idx: int) -> None:
        if module.global_step == 6:
            raise KeyboardInterrupt
        step(module, batch, batch_idx)

    config = music_config(music, tmp_path / "parts", max_epochs=3)
    handler = signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patch:
        patch.setattr(TrainingModule, "training_step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            fit(config)
    assert signal.getsignal(signal.SIGINT) is handler
    assert read_checkpoint(tmp_path / "parts" / "last.ckpt")["vssn"]["epoch"] == 1
    fit(config, resume=True)
    assert_same_run(tmp_path / "straight", tmp_path / "parts")


def test_best_is_kept_and_its_score_can_be_repeated(music: Path, tmp_path: Path) -> None:
    config = music_config(music, tmp_path / "run", max_epochs=4, learning_rate=0.3)  # so fast that it gets worse
    result = fit(config)
    scores = column(tmp_path / "run", "valid/elbo_per_frame")
    assert max(scores) != scores[-1]
    assert result.best_epoch == 1 + int(np.argmax(scores))
    assert result.valid.micro == pytest.approx(max(scores), rel=1e-6)
    model, loaded = load_model(result.best_path)
    assert loaded == config
    data = SequenceData(loaded.load_data(), loaded)
    assert evaluate(model, data.valid) == result.valid
    assert evaluate(model, data.test) == result.test
    assert read_checkpoint(tmp_path / "run" / "last.ckpt")["vssn"]["epoch"] == 4


def test_validation_is_strict_whatever_the_objective(music: Path, tmp_path: Path) -> None:
    for name, settings in (("elbo", {}), ("paper", {"objective": "paper", "free_bits": 1.0})):
        fit(music_config(music, tmp_path / name, model=settings, max_epochs=1, learning_rate=1e-30))
    for score in ("train/elbo_per_frame", "valid/elbo_per_frame", "valid/kl_z_per_frame"):
        assert column(tmp_path / "paper", score) == pytest.approx(column(tmp_path / "elbo", score), rel=1e-12), score
    assert column(tmp_path / "paper", "valid/loss") != pytest.approx(column(tmp_path / "elbo", "valid/loss"), rel=1e-3)


def test_updates_are_clipped_annealed_and_decayed(music: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights, norms, rates = [], [], []
    forward = VSSN.forward

    def watched(model: VSSN, *args: Any, kl_weight: float = 1.0, **kwargs: Any) -> Any:
        if model.training:
            weights.append(kl_weight)
        return forward(model, *args, kl_weight=kl_weight, **kwargs)

    def on_train_batch_end(module: TrainingModule, *_: Any) -> None:
        gradients: list[Tensor] = [p.grad for p in module.model.parameters() if p.grad is not None]
        norms.append(float(torch.linalg.vector_norm(torch.stack([g.norm() for g in gradients]))))
        rates.append(module._optimizer().param_groups[0]["lr"])

    monkeypatch.setattr(VSSN, "forward", watched)
    monkeypatch.setattr(TrainingModule, "on_train_batch_end", on_train_batch_end)
    schedule = {"kl_start": 0.5, "kl_anneal_updates": 5, "lr_decay": 0.5, "lr_decay_after": 1}
    fit(music_config(music, tmp_path / "run", gradient_clip_norm=0.01, **schedule))
    assert weights == pytest.approx([0.5, 0.6, 0.7, 0.8, 0.9, 1, 1, 1])
    assert norms == pytest.approx([0.01] * 8, rel=1e-3)
    assert rates == [1e-3] * 4 + [5e-4] * 4


def test_the_start_of_a_run_is_annealed_by_itself(music: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = []
    forward = VSSN.forward

    @functools.wraps(forward)  # the arguments are asked for
    def watched(model: VSSN, *args: Any, **kwargs: Any) -> Any:
        weights.append((kwargs.get("kl_weight", 1.0), kwargs.get("initial_kl_weight"), model.training))
        return forward(model, *args, **kwargs)

    monkeypatch.setattr(VSSN, "forward", watched)
    schedule = {"kl_start": 0.5, "kl_anneal_updates": 2, "initial_kl_anneal_updates": 5}
    config = music_config(music, tmp_path / "run", model={"initial_state": "inferred"}, **schedule)
    fit(config)
    assert [pair[:2] for pair in weights if pair[2]] == [
        (pytest.approx(kl), pytest.approx(start))
        for kl, start in ((0.5, 0.5), (0.75, 0.6), (1, 0.7), (1, 0.8), (1, 0.9), (1, 1), (1, 1), (1, 1))
    ]
    assert {pair[:2] for pair in weights if not pair[2]} == {(1.0, None)}  # scores are never annealed
    assert column(tmp_path / "run", "initial_kl_weight") == pytest.approx([0.9, 1])


def test_early_stopping_counts_epochs_without_gain(music: Path, tmp_path: Path) -> None:
    result = fit(music_config(music, tmp_path / "run", max_epochs=50, learning_rate=1e-30, early_stopping_patience=2))
    assert column(tmp_path / "run", "epoch") == [1, 2, 3]
    assert result.best_epoch == 1


def test_a_run_that_stopped_early_is_resumed_with_more_patience_alone(music: Path, tmp_path: Path) -> None:
    """Each time it went on for one epoch, whatever its patience was by then."""
    settings = {"max_epochs": 50, "learning_rate": 1e-30, "early_stopping_patience": 1}
    fit(music_config(music, tmp_path / "parts", **settings))
    with pytest.raises(
        ConfigError,
        match=r"^training\.early_stopping_patience: the run in .* has stopped after 1 epoch without a better one; ",
    ):
        fit(music_config(music, tmp_path / "parts", **settings), resume=True)
    assert column(tmp_path / "parts", "epoch") == [1, 2]
    fit(music_config(music, tmp_path / "parts", **settings | {"early_stopping_patience": 3}), resume=True)
    fit(music_config(music, tmp_path / "whole", **settings | {"early_stopping_patience": 3}))
    assert column(tmp_path / "whole", "epoch") == [1, 2, 3, 4]
    assert_same_run(tmp_path / "parts", tmp_path / "whole")


def test_time_limit_ends_an_epoch_early(music: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step = TrainingModule.training_step

    def slow(module: TrainingModule, batch: SequenceBatch, batch_idx: int) -> None:
        step(module, batch, batch_idx)
        time.sleep(0.1)  # longer than the limit of 0.06 seconds

    monkeypatch.setattr(TrainingModule, "training_step", slow)
    result = fit(music_config(music, tmp_path / "run", max_minutes=0.001))
    assert column(tmp_path / "run", "updates") == [1]
    assert result.best_path.is_file()
    assert not (tmp_path / "run" / "last.ckpt").exists()  # it holds whole epochs only
    monkeypatch.undo()
    with pytest.raises(ConfigError, match=r"holds a run already; continue it with --resume"):
        fit(music_config(music, tmp_path / "run"))
    with pytest.raises(ConfigError, match=r"model\.latent_size: 4, but the run in .* has 3"):
        fit(music_config(music, tmp_path / "run", model={"latent_size": 4}), resume=True)
    best = read_checkpoint(tmp_path / "run" / "best.ckpt")  # that no epoch of the run to come is as good as
    best["vssn"]["valid_elbo_per_frame"] = 0.0
    torch.save(best, tmp_path / "run" / "best.ckpt")
    fit(music_config(music, tmp_path / "run"), resume=True)
    fit(music_config(music, tmp_path / "straight"))
    assert_same_run(tmp_path / "run", tmp_path / "straight")


def test_precision_64(music: Path, tmp_path: Path) -> None:
    result = fit(music_config(music, tmp_path / "run", precision="64-true", max_epochs=1))
    model, _ = load_model(result.best_path)
    assert next(model.parameters()).dtype == torch.float64


def test_checkpoint_holds_tensors_and_plain_types_only(music: Path, tmp_path: Path) -> None:
    config = music_config(music, tmp_path / "run", max_epochs=1, early_stopping_patience=1, max_minutes=100)
    fit(config)
    for name in ("best.ckpt", "last.ckpt"):
        own = torch.load(tmp_path / "run" / name, weights_only=True)["vssn"]
        assert check_config(own["config"], "") == config
        assert own["valid_elbo_per_frame"] == column(tmp_path / "run", "valid/elbo_per_frame")[0]


def test_terminal_stays_readable(
    music: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder
) -> None:
    fit(music_config(music, tmp_path / "run"))
    captured = capsys.readouterr()
    head, *lines = captured.out.splitlines()
    assert head.startswith("jsb: 7 training, 3 validation, 2 test sequences; ")
    assert [line[:9] for line in lines] == ["epoch   1", "epoch   2"]
    assert captured.err == ""
    assert [str(warning.message) for warning in recwarn] == []


# What goes wrong


@pytest.mark.parametrize("named", ["by the run", "by --data", "by the environment"])
def test_scores_are_not_written_over_a_set_of_music(
    named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = music_folder(tmp_path) / "JSB_Chorales.mat"
    before = file.read_bytes()
    config = music_config(tmp_path, tmp_path / "run", max_epochs=1)
    if named == "by the environment":
        monkeypatch.setenv("VSSN_DATA", str(tmp_path))
        config = config.model_copy(update={"data": config.data.model_copy(update={"folder": None})})
    best = str(fit(config, verbose=False).best_path)
    more = ["--data", str(tmp_path)] if named == "by --data" else []
    assert main(["evaluate", best, *more, "--json", str(file)]) == 2
    assert "--json: expected another file than was read, got " in capsys.readouterr().err
    assert file.read_bytes() == before
    for _ in range(2):  # scores of before, beside the data, are no data
        assert main(["evaluate", best, *more, "--json", str(tmp_path / "scores.json")]) == 0


def test_data_and_model_are_checked_before_anything_is_written(music: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with pytest.raises(DataError, match="no data folder"):
        fit(music_config(tmp_path / "absent", run))
    with pytest.raises(ConfigError, match=r"holds no last\.ckpt to resume"):
        fit(music_config(music, run), resume=True)
    assert not run.exists()
    run.write_text("")
    with pytest.raises(ConfigError, match=r"expected a folder, but .* is a file"):
        fit(music_config(music, run))
    with pytest.raises(ConfigError, match="cannot write"):
        fit(music_config(music, run / "below"))


@pytest.mark.parametrize("existing", [True, False])
def test_a_failure_in_the_first_epoch_leaves_nothing(
    music: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, existing: bool
) -> None:
    run = tmp_path / "runs" / "run"
    if existing:
        run.mkdir(parents=True)
        (run / "notes.txt").write_text("mine")

    def broken(*_: Any) -> None:
        raise RuntimeError("out of order")

    monkeypatch.setattr(TrainingModule, "training_step", broken)
    with pytest.raises(RuntimeError, match="out of order"):
        fit(music_config(music, run))
    assert [path.name for path in run.iterdir()] == ["notes.txt"] if existing else not run.parent.exists()


def test_a_write_that_fails_keeps_the_checkpoint_before(
    music: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    fit(music_config(music, run, max_epochs=1))

    def half(trainer: pl.Trainer, path: Path) -> None:
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(pl.Trainer, "save_checkpoint", half)
    with pytest.raises(ConfigError, match=r"cannot write .*(last|best)\.ckpt\.[0-9a-f]{12}\.part"):
        fit(music_config(music, run), resume=True)
    assert read_checkpoint(run / "last.ckpt")["vssn"]["epoch"] == 1
    assert {path.name for path in run.iterdir()} == FILES


def test_a_run_is_not_overwritten_nor_resumed_as_another(music: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    fit(music_config(music, run))
    before = {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()}
    with pytest.raises(ConfigError, match=r"holds a run already; continue it with --resume"):
        fit(music_config(music, run))
    with pytest.raises(ConfigError, match=r"training\.max_epochs: the run in .* has done 2 epochs of 2"):
        fit(music_config(music, run), resume=True)
    with pytest.raises(ConfigError, match=r"model\.latent_size: 4, but the run in .* has 3"):
        fit(music_config(music, run, model={"latent_size": 4}, max_epochs=3), resume=True)
    assert before == {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()}


def test_divergence_is_said_in_one_line(music: Path, tmp_path: Path) -> None:
    with pytest.raises(
        TrainingError, match=r"^training diverged in epoch 1, update \d: the \w+ (of )?[\w.]+ is not finite"
    ):
        fit(music_config(music, tmp_path / "run", learning_rate=1000))
    assert not (tmp_path / "run").exists()


def test_divergence_in_chunks_is_no_wrong_argument(music: Path, tmp_path: Path) -> None:
    """The state of a chunk is an argument of the next, and it is checked."""
    with pytest.raises(TrainingError, match=r"^training diverged in epoch 1.*: .* not finite.*; lower"):
        fit(music_config(music, tmp_path / "run", learning_rate=1000, chunk_length=2))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("likelihood", ["bernoulli", "nade", "gaussian"])
def test_data_outside_the_support_is_the_datas_fault(
    likelihood: str, music: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """fit and evaluate: one line and exit code 2."""
    config = music_config(music, tmp_path / "run", model={"likelihood": likelihood}, max_epochs=1)
    load = type(config.data).load
    fit(config)
    value = torch.nan if likelihood == "gaussian" else 3.0

    def wrong(data: Any, controls: bool) -> Any:
        splits = load(data, controls)
        for part in splits:
            part.sequences = [torch.full(x.shape, value) for x in part.sequences]
        return splits

    monkeypatch.setattr(type(config.data), "load", wrong)
    with pytest.raises(DataError, match=r"^x must "):
        fit(music_config(music, tmp_path / "other", model={"likelihood": likelihood}))
    assert not (tmp_path / "other").exists()
    for bound in ("elbo", "iwae"):
        capsys.readouterr()
        assert main(["evaluate", str(tmp_path / "run" / "best.ckpt"), "--bound", bound, "--particles", "2"]) == 2
        said = capsys.readouterr().err
        missing = likelihood == "gaussian"  # which the command line tells in its own words
        assert ("numbers of x are missing" in said) if missing else said.startswith("vssn: error: x must ")
        assert said.count("\n") == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a CUDA device")
def test_a_device_that_is_absent(music: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"training\.accelerator: expected 'cpu' or 'auto'"):
        fit(music_config(music, tmp_path / "run", accelerator="cuda"))
