"""Figures: each is written, shows what it was given, and takes the odd sizes."""

from __future__ import annotations

import csv
import math
import subprocess
import sys
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
import torch

from vssn.experiments.figures import (
    draw_error_ahead,
    draw_film,
    draw_latents,
    draw_rolls,
    draw_training,
    keep_curves,
    read_metrics,
)

ROOT = Path(__file__).resolve().parents[2]
COLUMNS = [
    "epoch",
    *(
        f"{split}/{name}"
        for split in ("train", "valid")
        for name in ("elbo_per_frame", "kl_z_per_frame", "kl_w_per_frame")
    ),
]


def pixels(path: Path) -> np.ndarray:
    picture = matplotlib.image.imread(path)[..., :3]
    assert min(picture.shape[:2]) > 100
    return picture


def write_log(folder: Path, epochs: int, kl: float) -> Path:
    folder.mkdir()
    with open(folder / "metrics.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for epoch in range(1, epochs + 1):
            writer.writerow([epoch, -9 / epoch, kl, 0, -10 / epoch, kl, kl / 2])
    return folder


def test_a_film_shows_every_frame(tmp_path: Path) -> None:
    truth, predicted = torch.zeros(7, 16), torch.zeros(7, 16)
    draw_film(truth, predicted, tmp_path / "dark.png", seen=4, size=4, title="film")
    draw_film(truth, torch.ones(7, 16), tmp_path / "light.png", seen=4, size=4, title="film")
    predicted[0] = torch.nan
    draw_film(truth, predicted, tmp_path / "first.png", seen=4, size=4, title="film")
    dark, light, first = (pixels(tmp_path / f"{name}.png") for name in ("dark", "light", "first"))
    changed = (dark != light).any(-1).mean()
    left_out = (dark != first).any(-1).mean()
    assert changed > 0.1
    assert left_out == pytest.approx(changed / 7, rel=0.4)  # one frame of seven is empty


def test_rolls_of_notes_and_of_probabilities(tmp_path: Path) -> None:
    notes = torch.zeros(9, 88)
    notes[2:5, 40] = 1
    draw_rolls({"data": notes, "model": 0.3 * torch.rand(12, 88)}, tmp_path / "rolls.png", title="piece")
    assert pixels(tmp_path / "rolls.png").std() > 0.1
    draw_rolls({"silence": torch.zeros(3, 88)}, tmp_path / "silence.png", title="piece")
    pixels(tmp_path / "silence.png")


@pytest.mark.parametrize("size", [1, 2, 5])
def test_latents_of_any_size(tmp_path: Path, size: int) -> None:
    angle = torch.linspace(-10, 10, 50)
    latents = torch.stack([torch.cos(angle), torch.sin(angle), *(angle * 0,) * 3], 1)[:, :size]
    draw_latents(latents, angle, angle.cos() * 4, tmp_path / "latents.png", title="latents")
    assert pixels(tmp_path / "latents.png").std() > 0.05


def test_training_curves(tmp_path: Path) -> None:
    with_kl, without = write_log(tmp_path / "a", 6, 0.5), write_log(tmp_path / "b", 1, 0.0)
    assert read_metrics(with_kl)["valid/elbo_per_frame"][-1] == pytest.approx(-10 / 6)
    draw_training({"VSSN": with_kl, "RNN": without}, tmp_path / "both.png", title="curves")
    draw_training({"RNN": without}, tmp_path / "one.png", title="curves")
    assert pixels(tmp_path / "both.png").shape[1] > pixels(tmp_path / "one.png").shape[1]  # no panel of KLs without any
    draw_training({str(n): with_kl for n in range(6)}, tmp_path / "many.png", title="curves")
    assert pixels(tmp_path / "many.png").shape[1] > pixels(tmp_path / "both.png").shape[1]  # their names stand beside
    keep_curves(with_kl, tmp_path / "kept.csv")
    kept = read_metrics(tmp_path / "kept.csv")
    for name, values in kept.items():
        assert values == pytest.approx(read_metrics(with_kl)[name], abs=5e-5), name
    draw_training({"VSSN": tmp_path / "kept.csv", "RNN": without}, tmp_path / "again.png", title="curves")
    assert pixels(tmp_path / "again.png").shape == pixels(tmp_path / "both.png").shape
    with pytest.raises(FileNotFoundError):
        draw_training({"none": tmp_path / "none"}, tmp_path / "none.png", title="curves")


def test_error_ahead(tmp_path: Path) -> None:
    draw_error_ahead({"a": [1.0, 2.0], "b": [3.0, math.pi]}, tmp_path / "ahead.png", title="errors", unit="error")
    assert pixels(tmp_path / "ahead.png").std() > 0.05


def test_drawing_leaves_the_programs_backend_alone(tmp_path: Path) -> None:
    code = f"""
import matplotlib
matplotlib.use("svg")
from vssn.experiments.figures import draw_error_ahead
from vssn.experiments.tasks.registry import TASKS
draw_error_ahead({{"model": [1.0, 2.0]}}, {str(tmp_path / "error.png")!r}, title="error", unit="nats")
print(matplotlib.get_backend().lower())
"""
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.stdout.strip() == "svg", result.stdout + result.stderr
    assert pixels(tmp_path / "error.png").shape[2] == 3
