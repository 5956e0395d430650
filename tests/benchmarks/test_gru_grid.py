"""The grid of vssn.GRU against nn.GRU: intervals cover, rows survive, nothing is measured twice, the picture."""

from __future__ import annotations

import dataclasses
import random
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from torch import nn

import vssn
import vssn_kernels
from benchmarks import gru_grid, gru_grid_rows
from benchmarks.agreement import disagreement
from benchmarks.gru_grid_rows import FIELDS, GRID, Cell, Row, append, cells, newest, of_this_library, read, summarise
from benchmarks.limits import thread_count
from benchmarks.problem import BACKWARD, FORWARD
from benchmarks.timing import LEAST_PAIRS, interleave, median_interval, ratio_interval

SMALL = Cell(3, 2, 4, FORWARD, 1)
HERE = Row("2030-01-02", "abc", "Chip", "avx2", 2, 0.1, "2", *SMALL, status="")


def measured(ratio: float, low: float | None = None, high: float | None = None, **more: object) -> Row:
    values: dict = {"status": "ok", "vssn_ms": 1.0, "torch_ms": ratio, "ratio": ratio, "pairs": 11}
    values |= {"low": ratio * 0.99 if low is None else low, "high": ratio * 1.01 if high is None else high}
    return dataclasses.replace(HERE, **(values | more))


# ---- Intervals ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "place"), [(6, 1), (9, 2), (11, 2), (12, 3), (20, 6), (51, 19), (101, 41)])
def test_the_interval_is_that_of_the_sign_test(count: int, place: int) -> None:
    """Places from the tables of the binomial distribution."""
    values = [float(value) for value in range(1, count + 1)]
    random.Random(0).shuffle(values)
    assert median_interval(values) == (place, count + 1 - place)


def test_too_few_values_have_no_interval() -> None:
    for count in range(LEAST_PAIRS):
        with pytest.raises(ValueError, match=f"{count} values are too few for an interval of 95%"):
            median_interval([1.0] * count)
    assert median_interval([1.0, 2.0, 3.0, 4.0], 0.8) == (1.0, 4.0)


def _pairs(noise: Callable[[], float], true: float, count: int) -> tuple[list[float], list[float]]:
    """Times of ours and theirs on a machine that drifts to half its speed: the median of their ratio is `true`."""
    drift = [1 + place / count for place in range(count)]
    return drift, [true * slow * 2 ** noise() for slow in drift]


@pytest.mark.parametrize("spread", [0.02, 0.06])
@pytest.mark.parametrize("kind", ["normal", "skewed", "heavy"])
@pytest.mark.parametrize("stop", [False, True])
def test_the_interval_covers_the_median(kind: str, spread: float, stop: bool) -> None:
    """In 95% of runs of one length; nearly so where a run ends as soon as its interval is narrow."""
    draw = random.Random(1)
    noises = {
        "normal": lambda: draw.gauss(0, spread),
        "skewed": lambda: spread * (draw.expovariate(1) - 0.6931471805599453),
        "heavy": lambda: spread * draw.gauss(0, 1) / max(draw.random(), 1e-3),
    }
    covered, below, runs, true = 0, 0, 1000, 1.0
    for _ in range(runs):
        ours, theirs = _pairs(noises[kind], true, 60)
        count = LEAST_PAIRS if stop else 60
        while stop and count < 60 and not gru_grid.tight((ours[:count], theirs[:count])):
            count += 1
        low, high = ratio_interval(theirs[:count], ours[:count])
        covered += low <= true <= high
        below += high < true
    # five standard errors: 0.95 - 5 * 0.007 for a run of one length, whose true share is 0.95 or more
    assert covered / runs > (0.9 if stop else 0.915)
    assert below / runs < 0.06


def test_a_run_ends_when_the_interval_is_narrow() -> None:
    ones = [1.0] * 30
    assert gru_grid.tight((ones[:6], ones[:6]))
    assert not gru_grid.tight((ones[:7], ones[:7]))  # no look here
    wide = [0.97, 1.03] * 8
    assert not gru_grid.tight((ones[:16], wide))
    # as wide as that, but far from 1, on either side
    for factor in (3.0, 1 / 3):
        assert gru_grid.tight((ones[:16], [factor * value for value in wide]))


def test_contestants_take_turns_until_it_is_enough() -> None:
    seen: list[int] = []

    def enough(samples: list[list[float]]) -> bool:
        seen.append(len(samples[0]))
        assert len(samples[0]) == len(samples[1])
        return len(samples[0]) == 5

    samples = interleave([lambda: None, lambda: None], 60.0, 3, max_rounds=9, enough=enough)
    assert seen == [3, 4, 5]
    assert [len(found) for found in samples] == [5, 5]
    assert [len(found) for found in interleave([lambda: None], 60.0, 3, max_rounds=4)] == [4]


# ---- Cells and rows -------------------------------------------------------------------------------------------------


def test_the_grid() -> None:
    assert len(GRID) == 4 * 4 * 5 * 2 * 2
    assert {Cell(1, 1, 16, FORWARD, 1), Cell(1000, 128, 1024, BACKWARD, 2)} <= GRID
    assert str(Cell(1, 4, 64, FORWARD, 1)) == "T=1 B=4 H=64 forward, 1 thread"
    ordered = cells([(64, 1, 16), (1, 1, 16), (1, 1, 16)])
    assert ordered[0] == Cell(1, 1, 16, FORWARD, 1)  # what is soon done first, each once
    assert len(ordered) == 8
    assert Cell(2, 3, 5, FORWARD, 1).flop() == 2 * (3 * 5 * (5 + 5)) * 2 * 3
    assert Cell(2, 3, 5, BACKWARD, 1).flop() == 3 * Cell(2, 3, 5, FORWARD, 1).flop()


@pytest.mark.parametrize("run", [FORWARD, BACKWARD])
def test_the_estimate_of_memory_holds_what_is_there_at_least(run: str) -> None:
    """x, both outputs; with gradients the cotangent, the saved gates and every weight's gradient."""
    cell = Cell(7, 5, 16, run, 1)
    sequence, weights = 4 * 7 * 5 * 16, 4 * 2 * sum(p.numel() for p in nn.GRU(16, 16).parameters())
    least = 3 * sequence + weights if run == FORWARD else (4 + 4) * sequence + 2 * weights
    assert least < cell.bytes() < 6 * least
    assert Cell(14, 5, 16, run, 1).bytes() - cell.bytes() == cell.bytes() - Cell(0, 5, 16, run, 1).bytes()


def test_the_largest_cells_are_left_out_with_a_reason() -> None:
    chosen = [Cell(1000, 128, 1024, BACKWARD, 2), Cell(1, 1, 16, FORWARD, 2), Cell(1, 1, 16, FORWARD, 1)]
    found = list(gru_grid.to_do(chosen, [], cores=1, memory=24e9))
    assert [reason for _, reason in found] == ["left out: 2 threads on 1 cores"] * 2 + [""]
    needed = chosen[0].bytes()
    assert 8e9 < needed < 13e9
    assert gru_grid.why_left_out(chosen[0], 2, needed) == ""
    assert gru_grid.why_left_out(chosen[0], 2, 1e9) == f"left out: about {needed / 1e9:.1f} GB, of 1.0 that it may take"


def test_rows_survive_the_csv(tmp_path: Path) -> None:
    path = tmp_path / "new" / "grid.csv"
    rows = [measured(1.5, 1.25, 1.75), dataclasses.replace(HERE, processor="a, b", status='failed: "no"')]
    for row in rows:
        append(path, [row])
    assert path.read_text().splitlines()[0] == ",".join(FIELDS)
    assert read(path) == rows
    path.write_text(path.read_text() + "2030-01-02,abc\n")
    with pytest.raises(ValueError, match=f"line 4 has not {len(FIELDS)} columns"):
        read(path)
    path.write_text("date\n1\n")
    with pytest.raises(ValueError, match="other columns than this version writes"):
        append(path, rows)
    with pytest.raises(ValueError, match="other columns than this version reads"):
        read(path)


def test_the_newest_row_of_each_machine_counts() -> None:
    other = measured(3.0, processor="Other")
    failed = dataclasses.replace(HERE, status="left out: memory")
    assert newest([measured(1.0), other, measured(2.0)]) == [measured(2.0), other]
    assert newest([failed, measured(2.0), failed]) == [measured(2.0)]
    assert newest([failed, failed]) == [failed]


# ---- Summary --------------------------------------------------------------------------------------------------------


def test_the_summary_counts_what_is_slower() -> None:
    slow = measured(0.8, 0.7, 0.9, B=1)
    doubtful = measured(0.95, 0.9, 1.02, B=4)
    nearly = measured(0.98, 0.97, 0.99, B=8)
    even, fast = measured(1.0, 0.99, 1.01, B=16), measured(4.0, B=32)
    found = summarise([even, fast, nearly, slow, doubtful])
    assert found == (5, 0.98, slow, [nearly, slow], [slow, doubtful])
    assert summarise([even, fast]).median == 2.5
    assert summarise([measured(0.97, 0.96, 1.0)])[3:] == ([], [])


def test_the_summary_in_print() -> None:
    rows = [
        measured(0.8, 0.7, 0.9, T=1, B=4, H=16),
        measured(1.2, T=1, B=1, H=16),
        measured(3.0, T=8, B=1, H=16, run=BACKWARD),
        measured(9.0, processor="Other"),
        dataclasses.replace(HERE, T=64, status="left out: memory"),
    ]
    text = gru_grid_rows.text(rows)
    assert "Chip, avx2, 2 cores; torch 2, commit abc; 3 of the grid's 320 cells" in text
    assert "| T=1, forward | 2 | 1.00 | 0.80 | 1 | 1 | B=4 H=16, 1 thread |" in text
    assert "| T=8, forward+backward | 1 | 3.00 | 3.00 | 0 | 0 | B=1 H=16, 1 thread |" in text
    assert "median of all 3: 1.20x; least 0.80x" in text
    slower = "slower: T=1 B=4 H=16 forward, 1 thread: 1 ms, nn.GRU 0.8 ms, 0.80x (0.70 to 0.90, 11 pairs)"
    assert text.count("slower: ") == 1
    assert slower in text
    assert "T=64 B=2 H=4 forward, 1 thread: left out: memory" in text
    assert "median of all 1: 9.00x" in text
    assert gru_grid_rows.text([]) == "no rows"


# ---- Measuring ------------------------------------------------------------------------------------------------------


def test_contestants_agree_and_do_the_same_work() -> None:
    for run in (FORWARD, BACKWARD):
        with torch.set_grad_enabled(run != FORWARD):
            ours, theirs = gru_grid.contestants(Cell(5, 3, 7, run, 1))
            expected, actual = ours.results(), theirs.results()
        assert disagreement(actual, expected)[1] == ""
        weights = {f"gradient of {name}" for name, _ in vssn.GRU(7, 7).named_parameters()}
        assert set(expected) == {"output", "h_n"} | (weights if run == BACKWARD else set())
        again = theirs.results()
        assert disagreement(again, actual)[1] == ""  # gradients do not pile up


def test_a_wrong_result_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    class Wrong(vssn.GRU):
        def forward(self, *arguments):  # type: ignore[no-untyped-def]
            output, h_n = super().forward(*arguments)
            return output * 1.001, h_n

    monkeypatch.setattr(gru_grid.vssn, "GRU", Wrong)
    row = gru_grid.measure(SMALL, 0.01, HERE)
    assert row.status == "disagrees in output by 1.0e-03"
    assert row.ratio is None


@pytest.mark.parametrize("name", ["vssn", "torch"])
def test_both_take_the_threads_that_a_cell_names(name: str) -> None:
    """CPU time of other threads than the calling one: none with 1, some with 2, back and forth."""

    def elsewhere(threads: int) -> float:
        with thread_count(threads), torch.no_grad():
            pair = dict(zip(("vssn", "torch"), gru_grid.contestants(Cell(16, 64, 256, FORWARD, threads)), strict=True))
            pair[name].step()
            time.sleep(0.05)  # a pool's threads spin for a while after their work
            process, own = time.process_time(), time.thread_time()
            for _ in range(3):
                pair[name].step()
            own = time.thread_time() - own
            return (time.process_time() - process - own) / own

    shares = [elsewhere(threads) for threads in (2, 1, 2, 1)]
    assert max(shares[1::2]) < 0.05 < 0.2 < min(shares[0::2]), shares


def test_two_cells_are_measured_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, threads = tmp_path / "grid.csv", torch.get_num_threads()
    arguments = ["--cells", "3,2,4", "1,1,5", "--pass", FORWARD, "--threads", "1"]
    arguments += ["--seconds", "0.01", "--csv", str(path)]
    assert gru_grid.main([*arguments, "--minutes", "1e-9"]) == 2  # nothing in no time, so there is no CSV
    assert "2 cells are left for want of time" in capsys.readouterr().out
    assert gru_grid.main([*arguments[:2], *arguments[3:]]) == 0
    assert len(read(path)) == 1
    assert gru_grid.main([*arguments, "--resume", "--plot"]) == 0
    assert "1 cells to do of 2" in capsys.readouterr().out
    rows = read(path)
    assert [row.cell for row in rows] == [SMALL, Cell(1, 1, 5, FORWARD, 1)]
    for row in rows:
        assert row.status == "ok"
        assert row.pairs >= LEAST_PAIRS
        assert row.low <= row.ratio <= row.high
        assert min(row.vssn_ms, row.torch_ms) > 0
    assert gru_grid.main([*arguments, "--resume"]) == 0
    assert "0 cells to do of 2" in capsys.readouterr().out
    assert read(path) == rows
    assert path.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert gru_grid.main(arguments) == 0  # without --resume they are measured anew
    assert len(read(path)) == 4
    assert torch.get_num_threads() == threads


def test_resuming_leaves_out_what_cannot_be_measured_but_not_what_failed() -> None:
    chosen = [SMALL, SMALL._replace(T=4), SMALL._replace(T=5)]
    reason = gru_grid.why_left_out(SMALL, 2, 1.0)
    done = [
        dataclasses.replace(HERE, status=reason),
        dataclasses.replace(HERE, T=4, status="failed: RuntimeError: no"),
        measured(1.0, T=5),
    ]
    assert [cell for cell, _ in gru_grid.to_do(chosen, done, 2, 1.0)] == [SMALL._replace(T=4)]
    # there is more memory now
    assert [cell for cell, _ in gru_grid.to_do(chosen, done, 2, 1e9)] == [SMALL, SMALL._replace(T=4)]


def test_resuming_counts_rows_of_this_machine_and_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gru_grid_rows, "unchanged", lambda commit, other: (commit, other) == ("docs", "abc"))
    same = [measured(1.0), measured(1.0, commit="docs")]
    others = [measured(1.0, **{name: "other"}) for name in ("commit", "processor", "isa", "torch")]
    assert of_this_library([*others, *same], HERE) == same


def test_a_library_is_told_by_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gru_grid_rows, "ROOT", tmp_path)

    def git(*arguments: str) -> str:
        command = ["git", "-c", "user.name=a", "-c", "user.email=a@b", *arguments]
        return subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True).stdout.strip()

    def committed(name: str) -> str:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
        git("add", "-A")
        git("commit", "-qm", name)
        return git("rev-parse", "--short", "HEAD")

    git("init", "-q")
    first, text, kernel = committed("vssn/a.py"), committed("README.md"), committed("csrc/a.cpp")
    assert gru_grid_rows.unchanged(first, text)
    assert not gru_grid_rows.unchanged(text, kernel)
    assert not gru_grid_rows.unchanged(first, f"{text}+")
    assert not gru_grid_rows.unchanged("", text)
    assert not gru_grid_rows.unchanged("fedcba9", text)


def test_a_failure_is_a_row_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = gru_grid.contestants
    monkeypatch.setattr(gru_grid, "contestants", lambda cell: 1 / 0 if cell.T == 1 else real(cell))
    path = tmp_path / "grid.csv"
    options = ["--pass", FORWARD, "--threads", "1", "--seconds", "0.01", "--csv", str(path)]
    assert gru_grid.main(["--T", "1", "2", "--B", "1", "--H", "4", *options]) == 1
    assert [row.status for row in read(path)] == ["failed: ZeroDivisionError: division by zero", "ok"]
    assert "T=1 B=1 H=4 forward, 1 thread: failed: ZeroDivisionError" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--T", "0"], "must be above 0"),
        (["--cells", "1,0,4"], "must be above 0"),
        (["--minutes", "nan"], "must be above 0"),
        (["--memory", "-1"], "must be above 0"),
        (["--show"], "nothing has been measured"),
    ],
)
def test_a_wrong_option_is_one_clear_line(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert gru_grid.main([*arguments, "--csv", str(tmp_path / "no.csv")]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_another_backend_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with vssn_kernels.use_backend("reference"):
        assert gru_grid.main(["--cells", "1,1,4", "--csv", str(tmp_path / "no.csv")]) == 2
    assert (
        "vssn.GRU would run on the backend 'reference', not 'cpu': use_backend or VSSN_BACKEND names it"
        in capsys.readouterr().err
    )


# ---- The picture ----------------------------------------------------------------------------------------------------


def test_the_picture_of_a_csv(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every ratio stands in its square, on both machines; what is slower is bold and framed."""
    written: list[tuple[str, object]] = []
    framed: list[tuple[float, float]] = []
    draw, add = Axes.text, Axes.add_patch

    def noted(axis: Axes, x: float, y: float, label: str, **style: object) -> object:
        written.append((label, style.get("weight")))
        return draw(axis, x, y, label, **style)

    def added(axis: Axes, patch: Rectangle) -> object:
        if not patch.get_fill():
            framed.append(patch.get_center())
        return add(axis, patch)

    monkeypatch.setattr(Axes, "text", noted)
    monkeypatch.setattr(Axes, "add_patch", added)
    path = tmp_path / "grid.csv"
    append(
        path,
        [
            measured(0.8, 0.7, 0.9),
            measured(0.96, 0.95, 1.01, H=64),
            measured(1.234, T=8),
            measured(17.3, run=BACKWARD, threads=2),
            measured(0.5, processor="Other"),
            dataclasses.replace(HERE, T=8, run=BACKWARD, status="left out: memory"),
        ],
    )
    assert gru_grid.main(["--show", "--plot", "--csv", str(path)]) == 0
    picture = path.with_suffix(".png")
    assert capsys.readouterr().out.endswith(f"{picture}\n")
    assert picture.read_bytes().startswith(b"\x89PNG")
    shown = [part for part in written if part[0]]
    assert sorted(shown) == [("0.50", 700), ("0.80", 700), ("0.96", 700), ("1.23", 400), ("17", 400), ("out", 400)]
    assert framed == [pytest.approx((0, 0))] * 2  # 0.80 and, on the other machine, 0.50
