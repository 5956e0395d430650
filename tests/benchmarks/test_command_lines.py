"""Every benchmark's command line says what it takes; the filter's step is measured."""

from __future__ import annotations

from types import ModuleType

import pytest

from benchmarks import filter_step, gpu, gru_grid, report, run


@pytest.mark.parametrize("module", [filter_step, gpu, gru_grid, report, run], ids=lambda module: module.__name__)
def test_help(module: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match=r"^0$"):
        module.main(["--help"])
    assert capsys.readouterr().out.startswith("usage: ")


def test_a_filters_step_is_timed_beside_a_cell(capsys: pytest.CaptureFixture[str]) -> None:
    sizes = ["--X", "2", "3", "--D", "4", "--threads", "1", "--seconds", "0.01"]
    assert filter_step.main(sizes) == 0
    lines = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert [line[:3] for line in lines[2:]] == [["4", "2", "1"], ["4", "3", "1"]]
    for _, _, _, ours, theirs, ratio in lines[2:]:
        assert float(ratio.split()[0]) == pytest.approx(float(ours) / float(theirs), rel=0.5)


def test_sizes_must_be_above_0(capsys: pytest.CaptureFixture[str]) -> None:
    assert filter_step.main(["--X", "0"]) == 2
    assert capsys.readouterr().err == "benchmarks.filter_step: --X, --D, --threads and --seconds must be above 0\n"
