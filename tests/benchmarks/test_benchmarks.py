"""The benchmarks: peers agree with this library, formulas count what they say, results survive the CSV."""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import json
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks import cases, counts, measure, peers_torchrl, regression, report, rssm, run, suites, vrnn
from benchmarks.agreement import disagreement
from benchmarks.contestant import Absent, Contestant, Tensors
from benchmarks.limits import Limits, Rate
from benchmarks.memory import saved_bytes
from benchmarks.peers import CELL, OURS, OURS_FLOAT32, bind, make_contestant
from benchmarks.problem import ADAM, BACKWARD, FORWARD, SIZES, Problem, Size
from benchmarks.results import FIELDS, Environment, Row, append_csv, read_csv
from benchmarks.timing import SAMPLE_S, interleave, median_ratio, quantile
from vssn_kernels.testing import RecordCalls, ops_of

ODD = Size("", T=5, B=3, X=7, D=6, Z=5, W=2)
ODD_VRNN = vrnn.VRNNSize("", T=5, B=3, X=7, H=6, E=4, M=8, Z=2)
ODD_RSSM = rssm.RSSMSize("", T=5, B=3, X=7, H=6, E=4, M=8, Z=2, U=3)
TINY = {
    make.__name__: functools.partial(make, *sizes)
    for make, *sizes in (
        (cases.gru, 5, 3, 7, 4),
        (cases.gru_sequence, 5, 3, 7),
        (cases.gru_packed, 5, 3, 7),
        (cases.posterior_sequence, 5, 3, 7, 2),
        (cases.interleaved_sequence, 5, 3, 7, 4, 6, 2),
        (cases.gaussian_rsample_kl, 5, 3, 7),
        (cases.gaussian_kl, 5, 3, 7),
        (cases.mlp, 5, 3, 2, 6, 7),
        (cases.gaussian_mlp, 5, 3, 7, 6, 2),
        (cases.split_linear, 5, 3, 6, 7),
        (cases.bernoulli_log_prob, 5, 3, 7),
        (cases.layer, ODD),
        (cases.train_step, ODD),
        (vrnn.vrnn, ODD_VRNN),
        (rssm.rssm, ODD_RSSM),
    )
}
NAMES = ("torch", "jax", "reference")
ELEMENTWISE = ("gaussian_rsample_kl", "gaussian_kl", "bernoulli_log_prob")


def contestant_or_skip(name: str, problem: Problem, run_of: str, monkeypatch: pytest.MonkeyPatch) -> Contestant:
    if name == "jax":
        if importlib.util.find_spec("jax") is None:
            pytest.skip("jax is not installed")
        monkeypatch.setattr("os.sched_getaffinity", lambda _: range(torch.get_num_threads()))
    try:
        return make_contestant(name, problem, run_of)
    except Absent as reason:
        assert (name, problem.family) in {("torch", "gru_sequence"), ("torch", "gru_packed"), ("jax", "gru_packed")}
        pytest.skip(str(reason))


# ---- Agreement ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("run_of", [FORWARD, BACKWARD])
@pytest.mark.parametrize("family", TINY)
@pytest.mark.parametrize("name", NAMES)
def test_peers_agree(name: str, family: str, run_of: str, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = TINY[family]()
    actual = contestant_or_skip(name, problem, run_of, monkeypatch).results()
    expected = make_contestant(OURS, problem, run_of).results()
    assert disagreement(actual, expected)[1] == ""
    gradients = [key for key in expected if key.startswith("gradient of ")]
    assert len(gradients) == (len(problem.tensors) if run_of == BACKWARD else 0)
    assert set(problem.cotangents) <= set(expected)


@pytest.mark.parametrize("run_of", [FORWARD, BACKWARD])
@pytest.mark.parametrize("name", ["torch", CELL])
def test_peers_agree_on_one_step(name: str, run_of: str) -> None:
    problem = cases.gru_step(7)
    expected = make_contestant(OURS, problem, run_of).results()
    assert disagreement(make_contestant(name, problem, run_of).results(), expected)[1] == ""
    weights = {f"gradient of {key}" for key in problem.tensors}
    assert set(expected) == {"output"} | (weights if run_of == BACKWARD else set())
    assert problem.case == measure.lazy(cases.gru_step, 7)[2] == "H=7 X=7"


@pytest.mark.parametrize("name", ["torch", OURS_FLOAT32])
@pytest.mark.parametrize("family", ["gru", "train_step"])
def test_peers_agree_in_bfloat16(name: str, family: str) -> None:
    """The GRU's tensors are bfloat16; the model's stay float32, under autocast, with products in bfloat16."""
    problem = TINY[family]().in_bfloat16()
    bound = bind(OURS, problem)
    with torch.no_grad(), RecordCalls() as record:
        outputs = bound.call()
    products = {call[0]: call[1] for call in record.calls if call[0] == "gru_sequence"}
    assert next(tensor for tensor in products["gru_sequence"] if isinstance(tensor, Tensor)).dtype == torch.bfloat16
    assert outputs[next(iter(outputs))].dtype == (torch.bfloat16 if family == "gru" else torch.float32)
    assert problem.in_float32().case == problem.case
    expected = make_contestant(OURS, problem, BACKWARD).results()
    actual = make_contestant(name, problem, BACKWARD).results()
    error, wrong = disagreement(actual, expected, problem.bfloat16)
    assert wrong == ""
    assert error > 1e-4  # what float32 rounds is another matter
    assert disagreement(actual, expected)[1] != ""


def test_bfloat16_stands_beside_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.limits.SQUARES", (16,))
    options = measure.Options(peers=("torch", "jax"), hidden=(4,), sizes=(), seconds=1e-3, min_rounds=1, quick=True)
    ((ours, float32, torch_),) = suites.bfloat16(options)
    assert [row.contestant for row in (ours, float32, torch_)] == [OURS, OURS_FLOAT32, "torch"]
    assert {row.status for row in (ours, float32, torch_)} == {"ok"}
    assert ours.case == "T=64 B=32 H=4 X=4 in bfloat16"
    assert ours.limit is None


def test_a_cell_takes_one_step_alone() -> None:
    with pytest.raises(Absent, match="takes one step: see the family gru_step"):
        make_contestant(CELL, TINY["gru"](), FORWARD)


def test_one_step_stands_beside_the_module_and_the_cell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.limits.SQUARES", (16,))
    options = measure.Options(peers=("torch", "jax"), hidden=(4, 6), seconds=1e-3, min_rounds=1, only="gru_step")
    found = list(suites.dispatch(options))
    assert [[(row.case, row.run, row.contestant, row.status, row.limit) for row in rows] for rows in found] == [
        [(f"H={hidden} X={hidden}", FORWARD, name, "ok", None) for name in (OURS, "torch", CELL)] for hidden in (4, 6)
    ]


@pytest.mark.parametrize("name", NAMES)
def test_peers_agree_after_a_step_of_adam(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = TINY["train_step"]()
    actual = contestant_or_skip(name, problem, ADAM, monkeypatch).results()
    expected = make_contestant(OURS, problem, ADAM).results()
    assert disagreement(actual, expected)[1] == ""
    moved = [key for key in problem.tensors if not torch.equal(expected[f"{key} after a step"], problem.tensors[key])]
    assert moved == list(problem.tensors)


def test_compiled_peer_agrees() -> None:
    problem = TINY["gaussian_kl"]()
    actual = make_contestant("torch.compile", problem, BACKWARD).results()
    assert disagreement(actual, make_contestant(OURS, problem, BACKWARD).results())[1] == ""


def test_our_gradients_are_those_of_the_stated_outputs() -> None:
    """The pull-back of the cotangents, by finite differences along one direction."""
    problem = cases.gru_sequence(4, 2, 3)
    gradient = make_contestant(OURS, problem, BACKWARD).results()["gradient of weight_hh"]
    direction = torch.randn(gradient.shape)

    def value(step: float) -> float:
        moved = problem.tensors | {"weight_hh": problem.tensors["weight_hh"] + step * direction}
        outputs = make_contestant("reference", dataclasses.replace(problem, tensors=moved), FORWARD).results()
        return sum((outputs[key].double() * problem.cotangents[key]).sum().item() for key in problem.cotangents)

    difference = (value(1e-2) - value(-1e-2)) / 2e-2
    assert difference == pytest.approx((gradient * direction).sum().item(), rel=1e-2, abs=1e-2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r | {"z": r["z"] * (1 + 1e-3)}, "disagrees in z by 1.0e-03"),
        (lambda r: r | {"gradient of mu": -r["gradient of mu"]}, "disagrees in gradient of mu by 2.0e+00"),
        (lambda r: r | {"z": r["z"] * math.nan}, "disagrees in z by inf"),
        (lambda r: r | {"z": r["z"][0]}, "disagrees in z by inf"),
        (lambda r: {k: v for k, v in r.items() if k != "gradient of mu"}, "results differ: gradient of mu"),
    ],
)
def test_disagreement_is_found(change: Callable[[Tensors], Tensors], message: str) -> None:
    expected = {"z": torch.ones(2, 3), "gradient of mu": torch.ones(4)}
    assert disagreement(change(dict(expected)), expected)[1] == message
    assert disagreement(dict(expected), expected) == (0.0, "")


def test_a_peer_that_disagrees_is_reported_and_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    def make(name: str, problem: Problem, run_of: str) -> Contestant:
        right = make_contestant(OURS, problem, run_of)
        if name == OURS:
            return right
        if name == "absent":
            raise Absent("not installed")
        if name == "broken":
            raise RuntimeError("first line\nsecond line")

        def step() -> None:
            raise AssertionError("timed")

        return Contestant(name, step, lambda: {key: value + 1 for key, value in right.results().items()})

    monkeypatch.setattr(measure, "make_contestant", make)
    chosen = measure.Options(peers=("wrong", "absent", "broken"), seconds=0.001, min_rounds=1)
    chosen.limits._products[1] = Rate(1e9, (1, 1, 1))
    monkeypatch.setattr(chosen.limits, "refresh", lambda threads: None)
    rows = measure.measure("ops", TINY["gru_sequence"](), FORWARD, chosen)
    assert [row.contestant for row in rows] == [OURS, "wrong", "absent", "broken"]
    assert rows[0].status == "ok"
    assert rows[1].status.startswith("disagrees in output by")
    assert [row.status for row in rows[2:]] == ["absent: not installed", "failed: RuntimeError: first line"]
    assert [row.median is None for row in rows] == [False, True, True, True]


@pytest.mark.parametrize("run_of", [FORWARD, BACKWARD, ADAM])
def test_torchrl_agrees_on_an_rssm(run_of: str) -> None:
    """Its biased softplus is met by a shift of the raw bias."""
    pytest.importorskip("torchrl")
    problem = rssm.rssm(ODD_RSSM._replace(E=6, M=6))
    actual = make_contestant("torchrl", problem, run_of).results()
    assert disagreement(actual, make_contestant(OURS, problem, run_of).results())[1] == ""


def test_torchrl_is_absent_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchrl", None)
    monkeypatch.setitem(sys.modules, "tensordict", None)
    with pytest.raises(Absent, match="pip install torchrl"):
        make_contestant("torchrl", rssm.rssm(ODD_RSSM), FORWARD)
    assert math.isclose(math.log1p(math.exp(peers_torchrl.SHIFT)) + rssm.MIN_STD, 1)


@pytest.mark.parametrize("name", ["cuda-graph", "flashrnn", "torchrl", "haste"])
def test_gpu_peers_are_absent_on_the_cpu(name: str) -> None:
    with pytest.raises(Absent, match="CUDA device"):
        make_contestant(name, TINY["gru"](), FORWARD)


# ---- Formulas -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [ODD, SIZES["S"], SIZES["M"]], ids=str)
def test_the_formula_counts_every_weight_matrix(size: Size) -> None:
    for module, entries in (
        (cases.make_model(size), counts.train_step_entries(size)),
        (cases.make_layer(size), counts.layer_entries(size)),
    ):
        assert entries == sum(parameter.numel() for parameter in module.parameters() if parameter.dim() == 2)


@pytest.mark.parametrize("family", [vrnn, rssm])
@pytest.mark.parametrize("name", ["", "S", "M", "L"])
def test_the_formula_counts_every_weight_matrix_of_a_chain(family: Any, name: str) -> None:
    sizes = {vrnn: {"": ODD_VRNN, **vrnn.VRNN_SIZES}, rssm: {"": ODD_RSSM, **rssm.RSSM_SIZES}}
    size = sizes[family][name]
    with torch.device("meta"):
        module = family.make_model(size)
    assert family.entries(size) == sum(part.numel() for part in module.parameters() if part.dim() == 2)


@pytest.mark.parametrize("family", [name for name in TINY if name not in ELEMENTWISE])
def test_flop_are_two_or_six_for_each_weight_row_and_step(family: str) -> None:
    problem = TINY[family]()
    entries = sum(t.numel() for name, t in problem.tensors.items() if "weight" in name and t.dim() == 2)
    rows = 5 + 4 + 2 if family == "gru_packed" else 15
    assert problem.rows == rows
    assert problem.flop(FORWARD) == 2 * entries * rows
    assert problem.flop(BACKWARD) == problem.flop(ADAM) == 6 * entries * rows


def test_flop_of_a_training_step_of_size_s() -> None:
    assert cases.train_step(SIZES["S"]).flop(BACKWARD) == 1_051_852_800


def test_bytes_are_those_of_the_tensors() -> None:
    for family in ELEMENTWISE:
        problem = TINY[family]()
        gradients = sum(tensor.nbytes for tensor in problem.tensors.values())
        read = gradients + sum(tensor.nbytes for tensor in problem.constants.values())
        outputs = sum(tensor.nbytes for tensor in problem.cotangents.values())
        assert problem.bytes_moved[FORWARD] == read + outputs
        # backward reads the inputs and the outputs' gradients and writes the inputs'
        assert problem.bytes_moved[BACKWARD] == problem.bytes_moved[FORWARD] + read + gradients + outputs


def test_saved_bytes_count_each_storage_once() -> None:
    weight = torch.ones(10, requires_grad=True)

    def call() -> Tensors:
        return {"y": weight * weight.view(2, 5).view(10) * weight}

    # weight (40 bytes) and the first product (40 bytes)
    assert saved_bytes(type(bind("torch", TINY["gru"]()))({}, call)) == 80


def test_limits_keep_the_best_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.limits.SQUARES", (512, 1024, 2048))
    limits = Limits("cpu", quick=True)
    rates = iter([3.0, 9.0, 5.0, 2.0, 1.0, 7.0, 11.0])
    monkeypatch.setattr(limits, "_measure", lambda shape, threads: Rate(next(rates), shape))
    best = limits.gemm(1)
    assert (best.flops, best.shape) == (9.0, (1024, 1024, 1024))
    limits.refresh(1)
    assert limits.gemm(1) == best
    limits.refresh(1)
    assert limits.gemm(1) == Rate(11.0, best.shape)


# ---- Timing ---------------------------------------------------------------------------------------------------------


def test_contestants_take_turns() -> None:
    turns: list[str] = []
    order: list[int] = []
    calls = [lambda: turns.append("a"), lambda: turns.append("b")]
    samples = interleave(calls, 0.0, 3, order.append)
    assert [len(found) for found in samples] == [3, 3]
    assert order == [0, 1] + [0, 1] * 3
    assert all(value > 0 for found in samples for value in found)


def test_a_sample_is_long_even_where_the_first_calls_were_slow() -> None:
    calls = 0

    def call() -> None:
        nonlocal calls
        calls += 1
        time.sleep(0.02 if calls <= 3 else 1e-4)

    (samples,) = interleave([call], 0.0, 3)
    assert max(samples) < 5e-3
    assert calls > 3 + 3 * SAMPLE_S / 2 / max(samples)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1234.5, "1234"),
        (99.96, "100.0"),
        (12.34, "12.3"),
        (2.0, "2.00"),
        (0.01234, "0.0123"),
        (0.0, "0.00"),
        (None, ""),
    ],
)
def test_numbers_have_three_digits(value: float | None, text: str) -> None:
    assert report.number(value) == text


def test_statistics() -> None:
    assert quantile([3.0, 1.0, 2.0], 0.5) == 2.0
    assert quantile([0.0, 10.0], 0.2) == 2.0
    assert quantile([4.0], 0.8) == 4.0
    # the machine slowed down for the second round: the ratio does not see it
    assert median_ratio([2.0, 20.0, 2.0], [1.0, 10.0, 1.0]) == 2.0


# ---- Results and reports --------------------------------------------------------------------------------------------

WHERE = Environment(
    "2030-01-02T03:04:05+00:00", "abc", "cpu", "Chip, 2 cores", 2, 0.1, "3.11", "2", "", "0", "cpu", 250.0, 9.5
)


def row(contestant: str, median: float | None, **more: object) -> Row:
    values: dict = {"q20": median, "q80": median, "samples": 3, "steps": 10, "limit": 1.0, "ratio": 1.0, "flop": 10}
    values |= {"suite": "ops", "family": "gru", "case": "T=10 B=2 H=4 X=4", "run": BACKWARD, "status": "ok"} | more
    return Row(contestant=contestant, threads=2, median=median, **values)


def test_csv_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "new" / "cpu.csv"
    rows = [row(OURS, 1.25, error=1.5e-7), row("jax", None, status='absent: no "jax", sorry', steps=None)]
    append_csv(path, WHERE, rows[:1])
    append_csv(path, WHERE, rows[1:])
    assert path.read_text().splitlines()[0] == ",".join(FIELDS)
    assert len(path.read_text().splitlines()) == 3
    assert read_csv(path) == [(WHERE, rows[0]), (WHERE, rows[1])]


def test_csv_with_other_columns_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "cpu.csv"
    path.write_text("date,time\n1,2\n")
    with pytest.raises(ValueError, match="other columns than this version writes"):
        append_csv(path, WHERE, [row(OURS, 1.0)])
    with pytest.raises(ValueError, match="other columns than this version reads"):
        read_csv(path)
    assert path.read_text() == "date,time\n1,2\n"


def test_report_shows_the_newest_numbers(tmp_path: Path) -> None:
    path, readme = tmp_path / "cpu.csv", tmp_path / "README.md"
    append_csv(path, WHERE, [row(OURS, 99.0), row("torch", 88.0, ratio=0.9), row("haste", 77.0)])
    wide = [row(name, value, case="T=10 B=2 H=8 X=8") for name, value in ((OURS, 3.0), ("torch", 6.0))]
    steps = [row(OURS, 5.0, suite="scaling T", case=f"T={t} B=2 H=4 X=4", steps=t) for t in (10, 20)]
    memory = [row(OURS, 2.0, suite="memory", family="train_step", case="S: T=1", run="peak", unit="MB", limit=None)]
    later = dataclasses.replace(WHERE, date="2030-01-03T03:04:05+00:00", commit="later")
    append_csv(path, later, [row(OURS, 2.0), row("torch", 5.0, ratio=2.5), *wide, *steps, *memory])
    readme.write_text("above\n<!-- benchmarks: cpu -->\nold\n<!-- end of benchmarks -->\nbelow\n")
    assert report.main([str(path), "--readme", str(readme), "--plots", str(tmp_path)]) == 0
    text = readme.read_text()
    assert text.startswith("above\n<!-- benchmarks: cpu -->\n### On Chip, 2 cores\n\nChip, 2 cores, 2 cores")
    assert text.endswith("<!-- end of benchmarks -->\nbelow\n")
    assert "| T=10 B=2 H=4 X=4, forward+backward | 2.00 | 2.00 to 2.00 | 1.00 | 2.00 | 5.00 (2.50x) |" in text
    assert "| T=20 B=2 H=4 X=4, forward+backward | 250 |" in text
    assert "old" not in text
    assert "99" not in text
    assert "haste" not in text  # the older run's peer does not stand beside the newer run
    assert text.count("commit ") == 1
    for name in ("over_h", "over_t", "memory"):
        assert (tmp_path / f"cpu_{name}.png").read_bytes().startswith(b"\x89PNG")


def test_each_processor_has_tables_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one measured last first; the grid's CSV, which has other columns, is none of the results."""
    step = {"suite": "train_step", "family": "train_step", "case": "S: T=1"}
    for date, chip, median in (("2030-01-02", "Old", 9.0), ("2030-01-04", "New", 2.0), ("2030-01-03", "Old", 3.0)):
        append_csv(
            tmp_path / "cpu.csv", dataclasses.replace(WHERE, date=date, processor=chip), [row(OURS, median, **step)]
        )
    (tmp_path / "gru_grid.csv").write_text("others\n")
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    monkeypatch.setattr(report.gru_grid_rows, "CSV", tmp_path / "gru_grid.csv")
    readme = tmp_path / "README.md"
    readme.write_text("<!-- benchmarks: cpu -->\n<!-- end of benchmarks -->\n")
    assert report.main(["--readme", str(readme)]) == 0
    text = readme.read_text()
    assert [line for line in text.splitlines() if line.startswith("### ")] == ["### On New", "### On Old"]
    new, old = text.split("### On Old")
    assert "| 2.00 |" in new
    assert "| 3.00 |" in old
    assert "9.00" not in text
    headline = report.headline(read_csv(tmp_path / "cpu.csv"))
    assert headline.index("| 2.00 |") < headline.index("New, 2 cores") < headline.index("| 3.00 |")


def test_report_needs_markers_and_results(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, readme = tmp_path / "cpu.csv", tmp_path / "README.md"
    append_csv(path, WHERE, [row(OURS, 1.0)])
    readme.write_text("nothing\n")
    assert report.main([str(path), "--readme", str(readme)]) == 2
    assert "has no lines '<!-- benchmarks: cpu -->'" in capsys.readouterr().err
    assert readme.read_text() == "nothing\n"
    readme.write_text("<!-- benchmarks: cpu -->\n<!-- end of benchmarks -->\n")
    assert report.main([str(path), "--readme", str(readme), "--headline", str(readme)]) == 2
    assert "the results hold no training step" in capsys.readouterr().err


# ---- The command ----------------------------------------------------------------------------------------------------


@pytest.mark.more
def test_the_command_measures_every_suite(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(SIZES, "S", ODD._replace(name="S"))
    monkeypatch.setattr(run, "QUICK", run.QUICK | {"hidden": (4, 6), "long": (5, 9), "seconds": 1e-4, "min_rounds": 1})
    monkeypatch.setattr("benchmarks.limits.SQUARES", (16,))
    monkeypatch.setattr(suites, "in_fresh_process", lambda function, *arguments: function(*arguments))
    threads = torch.get_num_threads()
    path = tmp_path / "cpu.csv"
    arguments = ["--quick", "--peers", "torch", "--threads", "1", "--csv", str(path), "--json"]
    try:
        assert run.main(arguments) == 0
    finally:
        torch.set_num_threads(threads)
    printed = capsys.readouterr()
    records = json.loads(printed.out)
    assert [list(record) for record in records] == [FIELDS] * len(records)
    assert {record["suite"].split()[0] for record in records} == set(suites.SUITES)
    assert {record["status"] for record in records if record["contestant"] == OURS} == {"ok"}
    assert all(record["median"] > 0 for record in records if record["status"] == "ok")
    assert len(read_csv(path)) == len(records)
    assert printed.err.count("train_step | train_step | S: T=5 B=3 X=7 D=6 Z=5 W=2 | forward+backward") == 1
    assert printed.err.count("GFLOP/s") == 2


def test_only_takes_the_cases_that_hold_the_text(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[tuple[str, str, str]] = []

    def noted(suite: str, problem: Problem, run_of: str, *_: object) -> list[Row]:
        taken.append((problem.family, problem.case, run_of))
        return []

    chosen = measure.Options(only="H=8 | forward+", hidden=(4, 8), batches=(3,))
    problems = [measure.lazy(cases.gru_sequence, 5, batch, hidden) for batch in (3, 2) for hidden in (4, 8)]
    assert list(measure.measure_all("ops", problems, (FORWARD, BACKWARD), chosen, 1.0, noted)) == [[], []]
    assert taken == [("gru_sequence", f"T=5 B={batch} H=8", BACKWARD) for batch in (3, 2)]


def test_every_op_is_measured_and_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the suite `ops` in both passes, and from one commit to the next; an op of the reference alone need not be."""
    wanted = ops_of("cpu")
    taken: set[tuple[str, str]] = set()

    def noted(suite: str, family: str, case: str, run_of: str) -> bool:
        taken.add((family, run_of))
        return False

    monkeypatch.setattr(measure.Options, "takes", lambda _, text: noted(*text.split(" | ")))
    assert list(suites.ops(measure.Options(sizes=("S",), hidden=(4,), batches=(1,)))) == []
    assert {(op, run_of) for op in wanted for run_of in (FORWARD, BACKWARD)} <= taken
    assert set(wanted) <= {name.partition("-")[0] for name in regression.PROBLEMS}
    assert set(wanted) <= set(TINY)


def test_regression_cases_are_named_by_their_problems() -> None:
    for name, make in regression.PROBLEMS.items():
        assert name.partition("-")[0] == make.func.__name__


@pytest.mark.parametrize("family", TINY)
def test_a_case_is_named_without_making_it(family: str) -> None:
    make, name, case = measure.lazy(TINY[family].func, *TINY[family].args)
    problem = make()
    assert (name, case) == (problem.family, problem.case)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--peers", "numpy"], "--peers: expected some of torch, jax"),
        (["--threads", "0"], "must be above 0"),
        (["--seconds", "-1"], "must be above 0"),
    ],
)
def test_a_wrong_option_is_one_clear_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run.main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
