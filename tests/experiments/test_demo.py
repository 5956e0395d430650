"""The demo: one short run from the data to the figure and the line of numbers."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import matplotlib.image
import pytest
import torch

from vssn.demo import main
from vssn.training import fit as training


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


def test_a_wrong_option_is_named(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--output", str(tmp_path), "--epochs", "0"])
    assert caught.value.code == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.endswith("argument --epochs: expected a whole number of at least 1, got '0'")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("place", ["file", "file/below"])
def test_an_output_that_cannot_be_written_is_one_line(
    place: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    assert main(["--output", str(tmp_path / place)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert re.fullmatch(r"demo: error: --output: cannot write .*; name another place\n", captured.err)


def test_names_with_signs_of_yaml_and_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(training, "fit", lambda config: seen.append((config, torch.get_num_threads())) or sys.exit(0))
    before = torch.get_num_threads()
    try:
        with pytest.raises(SystemExit):
            main(["--output", str(tmp_path / "a: b #c"), "--threads", "3"])
    finally:
        torch.set_num_threads(before)
    config, threads = seen[0]
    assert Path(config.training.output).parent == tmp_path / "a: b #c"
    assert threads == 3
