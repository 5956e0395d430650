"""The demo: one short run from the data to the figure and the line of numbers."""

from __future__ import annotations

import re
from pathlib import Path

import matplotlib.image
import pytest

from vssn.demo import main


def test_the_demo_ends_with_a_figure_and_a_line_of_numbers(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["--output", str(tmp_path), "--epochs", "2"]) == 0
    picture = matplotlib.image.imread(tmp_path / "pendulum.png")
    assert picture.shape[0] > 500
    assert picture[..., :3].std() > 0.1  # something is drawn
    last = capsys.readouterr().out.strip().splitlines()[-1]
    found = re.search(r"VSSN ([\d.]+), copy of the last frame ([\d.]+)", last)
    assert found, last
    model, copy = map(float, found.groups())
    # The copy's error is a fact of the simulated films; two epochs are enough to leave noise behind.
    assert 7.5 < copy < 8.5
    assert 0 < model < 20


def test_a_wrong_option_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["--output", str(tmp_path), "--epochs", "0"]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())
