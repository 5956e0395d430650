"""Scores against sums written out by hand, and checkpoints that cannot be used."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from torch import Tensor

from vssn.data.batching import SequenceDataset, sequence_loader
from vssn.errors import CheckpointError
from vssn.inference.importance import sequence_bounds
from vssn.inference.scoring import draw_noise, evaluate, evaluate_bound, sequence_sums, summarize
from vssn.models.vssn import VSSN
from vssn.training.checkpoints import FORMAT, load_model, read_checkpoint
from vssn.training.config import Config, check_config

X = 5
LENGTHS = (7, 1, 4, 9, 2)


def sequences() -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randint(0, 2, (length, X), generator=generator).double() for length in LENGTHS]


def make_model(**settings: object) -> VSSN:
    torch.manual_seed(1)
    sizes = {"latent_size": 3, "noise_size": 2} | settings
    return VSSN(X, 6, **sizes).double()  # type: ignore[arg-type]


def test_micro_and_macro_of_a_model_without_latents() -> None:
    model = make_model(latent_size=0, noise_size=0)
    frames = []  # of each sequence, its F_t
    with torch.no_grad():
        for x in sequences():
            frames.append(model(x[:, None]).reconstruction[:, 0])
    rests = [each[1:] for each in frames if len(each) > 1]
    scores = evaluate(model, sequence_loader(SequenceDataset(sequences()), 2))
    assert scores.micro == pytest.approx(float(torch.cat(frames).mean()), rel=1e-12)
    assert scores.macro == pytest.approx(sum(float(each.mean()) for each in frames) / 5, rel=1e-12)
    assert scores.micro_without_first == pytest.approx(float(torch.cat(rests).mean()), rel=1e-12)
    assert scores.macro_without_first == pytest.approx(sum(float(each.mean()) for each in rests) / 4, rel=1e-12)
    assert (scores.kl_z, scores.kl_w, scores.frames, scores.sequences) == (0, 0, sum(LENGTHS), 5)


def test_samples_average_the_elbo() -> None:
    model = make_model()
    loader = sequence_loader(SequenceDataset(sequences()), 3)
    generator = torch.Generator().manual_seed(11)
    elbo = kl_z = kl_w = 0.0
    with torch.no_grad():
        for batch in loader:
            for _ in range(4):
                noise = draw_noise(model, batch.x.double(), generator)
                output = model(batch.x.double(), lengths=batch.lengths, noise=noise)
                elbo += float(output.elbo.sum()) / 4
                kl_z += float(output.kl_z.sum()) / 4
                kl_w += float(output.kl_w.sum()) / 4
    scores = evaluate(model, loader, samples=4, seed=11)
    assert scores.micro == pytest.approx(elbo / sum(LENGTHS), rel=1e-12)
    assert scores.kl_z == pytest.approx(kl_z / sum(LENGTHS), rel=1e-12)
    assert scores.kl_w == pytest.approx(kl_w / sum(LENGTHS), rel=1e-12)
    assert scores.kl_z > 0
    assert scores.kl_w > 0


def test_a_score_can_be_repeated_and_leaves_no_trace() -> None:
    model = make_model().train()
    loader = list(sequence_loader(SequenceDataset(sequences()), 2))
    before = torch.get_rng_state()
    first, second, other = (evaluate(model, loader, seed=seed) for seed in (0, 0, 1))
    assert first == second
    assert first != other
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())
    assert before.equal(torch.get_rng_state())


def test_the_objective_has_no_part_in_a_score() -> None:
    loader = sequence_loader(SequenceDataset(sequences()), 2)
    assert evaluate(make_model(), loader) == evaluate(make_model(objective="paper", free_bits=2.0), loader)


def test_float32_model_is_summed_in_float64() -> None:
    model = make_model().float()
    batch = next(iter(sequence_loader(SequenceDataset(sequences()), 5)))
    sums = sequence_sums(model(batch.x, lengths=batch.lengths), batch.lengths)
    assert sums.dtype == torch.float64
    assert not sums.requires_grad
    assert sums[:, 0].tolist() == sorted(LENGTHS, reverse=True)


def test_sequences_without_frames_are_left_out() -> None:
    scores = summarize(torch.tensor([[2.0, -6, -4, 1, 1], [0, 0, 0, 0, 0], [1, -5, -5, 0, 2]], dtype=torch.float64))
    assert scores.sequences == 2
    assert scores.frames == 3
    assert scores.micro == pytest.approx(-11 / 3)
    assert scores.macro == pytest.approx(-4)
    assert scores.micro_without_first == scores.macro_without_first == pytest.approx(-2)
    assert (scores.kl_z, scores.kl_w) == (pytest.approx(1 / 3), pytest.approx(1))


def test_table_is_aligned() -> None:
    scores = summarize(torch.tensor([[2.0, -6, -4, 1, 1]], dtype=torch.float64))
    lines = scores.table().splitlines()
    assert len({len(line) for line in lines[:5]}) == 1
    assert lines[1].split() == ["micro", "-3.0000", "-2.0000"]
    assert lines[4].split() == ["0.5000", "0.5000"]


def test_samples_must_be_positive() -> None:
    with pytest.raises(ValueError, match="samples must be an int of at least 1, got 0"):
        evaluate(make_model(), [], samples=0)


@pytest.mark.parametrize("bound", ["iwae", "fivo"])
def test_micro_and_macro_of_a_bound(bound: str) -> None:
    model = make_model()
    order = sorted(range(5), key=lambda i: -LENGTHS[i])  # of the loader
    rows = [
        sequence_bounds(model, sequences()[i][:, None], bound=bound, particles=6, seed=9, first_index=place)
        for place, i in enumerate(order)
    ]
    lengths = [LENGTHS[i] for i in order]
    totals, firsts = [float(row.total) for row in rows], [float(row.first) for row in rows]
    rests = [(a - b, n - 1) for a, b, n in zip(totals, firsts, lengths, strict=True) if n > 1]
    for batch_size in (2, 5):
        loader = sequence_loader(SequenceDataset(sequences()), batch_size)
        scores = evaluate_bound(model, loader, bound=bound, particles=6, seed=9)
        assert scores.micro == pytest.approx(sum(totals) / sum(LENGTHS), rel=1e-10)
        assert scores.macro == pytest.approx(sum(a / n for a, n in zip(totals, lengths, strict=True)) / 5, rel=1e-10)
        assert scores.micro_without_first == pytest.approx(sum(a for a, _ in rests) / (sum(LENGTHS) - 5), rel=1e-10)
        assert scores.macro_without_first == pytest.approx(sum(a / n for a, n in rests) / 4, rel=1e-10)
        assert (scores.bound, scores.particles, scores.frames, scores.sequences) == (bound, 6, sum(LENGTHS), 5)
        resamplings = sum(int(row.resamplings) for row in rows)
        expected = sum(LENGTHS) / resamplings if resamplings else None
        assert scores.frames_per_resampling == (None if expected is None else pytest.approx(expected))
    lines = scores.table().splitlines()
    assert lines[0].split() == [f"{bound.upper()}-6,", "nats", "per", "frame", "all", "frames", "without", "first"]
    assert len({len(line) for line in lines[:3]}) == 1


# Checkpoints


def config() -> Config:
    return check_config({"data": {"set": "pendulum"}, "model": {"hidden_size": 4, "latent_size": 2}}, "")


def write(path: Path, **changes: object) -> Path:
    weights = {f"model.{name}": weight for name, weight in config().build_model().state_dict().items()}
    own = {"format": FORMAT, "config": config().model_dump(mode="json"), "num_sequences": None, "epoch": 1}
    torch.save({"state_dict": weights, "vssn": own} | changes, path)
    return path


def message_of(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        load_model(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message


def test_load_model_gives_back_weights_and_configuration(tmp_path: Path) -> None:
    model, loaded = load_model(write(tmp_path / "best.ckpt"))
    assert loaded == config()
    assert not model.training
    stored = read_checkpoint(tmp_path / "best.ckpt")["state_dict"]
    for name, weight in model.state_dict().items():
        assert weight.equal(stored[f"model.{name}"]), name


class Touch:
    """Unpickling this makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.path,)


def test_a_checkpoint_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    path = tmp_path / "best.ckpt"
    assert "there is no such file" in message_of(path)
    assert "it is a folder" in message_of(tmp_path)
    path.write_bytes(b"")
    assert "truncated, damaged or of another kind" in message_of(path)
    whole = write(path).read_bytes()
    for size in (3, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        assert "truncated, damaged or of another kind" in message_of(path)
    torch.save([1, 2], path)
    assert "got another program's" in message_of(path)
    torch.save({"state_dict": {}}, path)
    assert "got another program's" in message_of(path)
    own = torch.load(write(path), weights_only=True)["vssn"]
    assert f"format {FORMAT}, got 99" in message_of(write(path, vssn=own | {"format": 99}))
    assert "model.hidden_size: expected" in message_of(
        write(path, vssn=own | {"config": own["config"] | {"model": {"hidden_size": "x", "latent_size": 2}}})
    )
    assert "its weights do not fit" in message_of(write(path, state_dict={"model.x": torch.zeros(2)}))
    assert "its weights do not fit" in message_of(write(path, state_dict={"model.x": 3}))


@pytest.mark.parametrize("save", ["torch", "pickle"])
def test_code_in_a_checkpoint_is_not_run(tmp_path: Path, save: str) -> None:
    path, mark = tmp_path / "best.ckpt", tmp_path / "mark"
    if save == "torch":
        write(path, extra=Touch(mark))
    else:
        path.write_bytes(pickle.dumps(Touch(mark)))
    assert "truncated, damaged or of another kind" in message_of(path)
    assert not mark.exists()
