"""`make gpu` rehearsed without a GPU: the order of its steps, their limits, what stands in the table, OUT, the CSV."""

from __future__ import annotations

import csv
import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from benchmarks import gpu, gpu_contest, gpu_rows, gpu_small, gpu_times, gpu_torchrl
from benchmarks.gpu_contest import Contestant, Result
from benchmarks.gpu_problems import tf32
from benchmarks.gpu_rows import FIELDS, Writer
from benchmarks.gpu_run import FAILED, OUT_OF_TIME, PASSED, Step, run, table
from benchmarks.problem import Size

ROOT = Path(__file__).resolve().parents[2]
PYTHON = sys.executable
# Children that outlive a killed parent: one ignores SIGTERM, one leads a session of its own. Each writes its number.
FAMILY = """
import os, pathlib, signal, subprocess, sys, time
folder = pathlib.Path(sys.argv[1])
if len(sys.argv) == 2:
    own = [sys.executable, __file__, str(folder)]
    subprocess.Popen([*own, "stubborn"])
    subprocess.Popen([*own, "apart"], start_new_session=True)
elif sys.argv[2] == "stubborn":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
name = folder / ("-".join(sys.argv[2:]) or "parent")
name.with_suffix(".part").write_text(str(os.getpid()))
name.with_suffix(".part").rename(name.with_suffix(".pid"))
print("running", *sys.argv[2:], flush=True)
while True:
    time.sleep(0.1)
"""


def write(path: Path, code: str) -> str:
    path.write_text(code)
    return str(path)


def gone(pid: int) -> bool:
    """Whether the process has ended, within seconds."""
    for _ in range(50):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return True
        if state == "Z":
            return True
        time.sleep(0.1)
    return False


# ---- One step -------------------------------------------------------------------------------------------------------


def test_a_step_passes_its_output_on_and_keeps_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = tmp_path / "step.log"
    code = "import os, sys; print('out', os.environ['GIVEN']); print('err', file=sys.stderr)"
    step = run("name", [PYTHON, "-c", code], 60, log, GIVEN="this")
    assert step.status == PASSED
    assert step.ended_well
    assert {"out this", "err"} <= set(log.read_text().splitlines())
    assert {"out this", "err"} <= set(capsys.readouterr().out.splitlines())


def test_a_step_that_fails_says_how(tmp_path: Path) -> None:
    step = run("name", [PYTHON, "-c", "raise SystemExit(3)"], 60, tmp_path / "log")
    assert step.status == f"{FAILED}: exit status 3"
    assert not step.ended_well
    absent = run("name", [str(tmp_path / "absent")], 60, tmp_path / "log")
    assert absent.status.startswith(f"{FAILED}: ")
    assert "absent" in absent.status


def test_a_step_without_time_is_not_started(tmp_path: Path) -> None:
    step = run("name", [PYTHON, "-c", "open('started', 'w')"], -1, tmp_path / "log")
    assert step.status == f"{OUT_OF_TIME}: not started"
    assert not list(tmp_path.iterdir())


def test_a_step_out_of_time_is_ended_with_all_its_children(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("benchmarks.gpu_run.GRACE_S", 1.0)
    family = write(tmp_path / "family.py", FAMILY)
    begin = time.monotonic()
    # Long enough for three interpreters to start on a busy machine; all three numbers are asked for below.
    step = run("endless", [PYTHON, family, str(tmp_path)], 6, tmp_path / "log")
    assert step.status == OUT_OF_TIME
    assert 6 <= step.seconds <= time.monotonic() - begin < 30
    assert "running\n" in capsys.readouterr().out
    pids = {path.stem: int(path.read_text()) for path in tmp_path.glob("*.pid")}
    assert set(pids) == {"parent", "stubborn", "apart"}
    for name, pid in pids.items():
        assert gone(pid), name


def test_what_a_step_leaves_running_is_ended_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.gpu_run.GRACE_S", 1.0)
    code = "import subprocess, sys; print(subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']).pid)"
    step = run("name", [PYTHON, "-c", code], 60, tmp_path / "log")
    assert step.status == PASSED
    assert gone(int((tmp_path / "log").read_text()))


def test_the_table_has_a_line_for_each_step() -> None:
    lines = table([Step("a", PASSED, 1.4), Step("longer", "left out: why")]).splitlines()
    assert lines == ["a       passed (1 s)", "longer  left out: why (0 s)"]


# ---- All steps ------------------------------------------------------------------------------------------------------

# Takes the place of Python in every step: notes its arguments, and does what the test planned for such a step.
STAND_IN = """#!{python}
import json, os, sys, time
arguments = sys.argv[1:]
variables = {{k: v for k, v in os.environ.items() if k.startswith(("VSSN_", "OMP_", "PYTORCH_NO"))}}
with open({notes!r}, "a") as file:
    file.write(json.dumps([arguments, variables]) + "\\n")
text = " ".join(arguments)
for part, deed in json.load(open({plan!r})).items():
    if part in text:
        if deed == "hang" and "--tool" not in text:
            while True:
                time.sleep(0.1)
        if deed == "fail":
            sys.exit(1)
        if deed == "write a row":
            sys.path.insert(0, {root!r})
            from benchmarks.gpu_contest import Result
            from benchmarks.gpu_rows import Writer
            row = Result("gru T=1", "forward", "vssn cuda", "ok", "graph", 1.5, 1.0, 2.0, 1.0, 0.0)
            Writer.from_environment("cpu").write(row)
        print(deed)
"""


class Rehearsal:
    """A session whose steps are stand-ins."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.notes, self.plan = folder, folder / "notes", folder / "plan.json"
        self.out = folder / "out"
        self.out.mkdir()

    def run(
        self, plan: dict[str, str] | None = None, budget: float = 300.0, builds: bool = True
    ) -> tuple[int, gpu.Session]:
        self.plan.write_text(json.dumps(plan or {}))
        session = gpu.Session(self.out, self.out, budget, builds)
        return session.all(), session

    def calls(self) -> Iterator[tuple[str, dict[str, str]]]:
        for line in self.notes.read_text().splitlines():
            arguments, variables = json.loads(line)
            yield " ".join(arguments), variables


@pytest.fixture
def rehearsal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Rehearsal:
    found = Rehearsal(tmp_path)
    names = {"python": PYTHON, "notes": str(found.notes), "plan": str(found.plan), "root": str(ROOT)}
    stand_in = tmp_path / "stand_in"
    stand_in.write_text(STAND_IN.format(**names))
    stand_in.chmod(0o755)
    monkeypatch.setattr(gpu, "PYTHON", str(stand_in))
    monkeypatch.setattr(gpu.shutil, "which", lambda *_, **__: str(stand_in))
    monkeypatch.setattr(gpu_rows, "CSV", tmp_path / "results" / "times.csv")
    monkeypatch.delenv("OUT", raising=False)
    return found


STEPS = ["build", "small cuda", "small triton", "tests", "times", "floor", "memcheck", "racecheck"]


def test_the_order(rehearsal: Rehearsal, capsys: pytest.CaptureFixture[str]) -> None:
    status, session = rehearsal.run()
    assert status == 0
    assert [step.name for step in session.steps] == STEPS
    assert all(step.status == PASSED for step in session.steps)
    parts = [
        "pip install",
        "gpu_small cuda",
        "gpu_small triton",
        "pytest",
        "gpu_times",
        "gpu_floor",
        "memcheck",
        "racecheck",
    ]
    calls = list(rehearsal.calls())
    assert len(calls) == len(parts)
    for (text, _), part in zip(calls, parts, strict=True):
        assert part in text
    build, _, _, tests, times, floor, memcheck, racecheck = calls
    assert "--no-build-isolation --no-deps -e ." in build[0]
    assert build[1]["VSSN_BUILD_CUDA"] == "1"
    assert "-p benchmarks.gpu_pytest" in tests[0]
    assert f"--timeout={gpu.EACH_TEST_S}" in tests[0] or f"--each-limit {gpu.EACH_TEST_S}" in tests[0]
    assert "-n 4" in tests[0]
    assert tests[1]["OMP_NUM_THREADS"] == "4"
    assert times[1]["VSSN_GPU_BACKENDS"] == "cuda triton"
    assert Path(floor[1]["VSSN_GPU_CSV"]) == Path(times[1]["VSSN_GPU_CSV"]).with_name("floor.csv")
    assert floor[1]["VSSN_GPU_DATE"] == times[1]["VSSN_GPU_DATE"]
    assert 0 < float(floor[0].split()[-1]) < gpu.FLOOR_S  # it ends by itself before it is ended
    assert "--error-exitcode" in memcheck[0]
    assert "--error-exitcode" not in racecheck[0]
    assert memcheck[1]["PYTORCH_NO_CUDA_MEMORY_CACHING"] == "1"
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in lines[-len(STEPS) :]] == STEPS


def test_results_and_logs_stand_in_the_folder_too(rehearsal: Rehearsal) -> None:
    rehearsal.run({"-m pytest": "said by the tests", "-m benchmarks.gpu_times": "write a row"})
    rows = [list(csv.DictReader(path.open())) for path in (gpu_rows.CSV, rehearsal.out / "times.csv")]
    assert rows[0] == rows[1]
    assert [row["contestant"] for row in rows[0]] == ["vssn cuda"]
    assert "said by the tests" in (rehearsal.out / "tests.log").read_text()
    assert {path.stem for path in rehearsal.out.glob("*.log")} == {name.replace(" ", "_") for name in STEPS}
    summary = (rehearsal.out / "summary.txt").read_text()
    assert "gru T=1, forward: vssn cuda 1.5 us" in summary
    assert "racecheck" in summary


@pytest.mark.parametrize(
    ("hangs", "late", "limit", "budget"),
    [
        ("-m pytest", "tests", "TESTS_S", 300),
        ("-m benchmarks.gpu_times", "times", "TIMES_S", 124),  # else they take what the sanitizers leave
        ("-m benchmarks.gpu_small triton", "small triton", "SMALL_S", 300),
    ],
)
def test_a_step_that_hangs_does_not_stop_the_rest(
    rehearsal: Rehearsal, hangs: str, late: str, limit: str, budget: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, limit, 5.0)
    status, session = rehearsal.run({hangs: "hang"}, budget)
    assert status == 1
    assert [step.name for step in session.steps] == STEPS
    assert [step.name for step in session.steps if step.status == OUT_OF_TIME] == [late]
    assert [step.name for step in session.steps if not step.ended_well] == [late]
    assert f"\n{late:12}  {OUT_OF_TIME} (5 s)\n" in (rehearsal.out / "summary.txt").read_text()


def test_kernels_that_hang_are_run_again_on_a_build_that_says_where(
    rehearsal: Rehearsal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, "SMALL_S", 4.0)
    status, session = rehearsal.run({"gpu_small cuda": "hang"})
    assert status == 1
    names = [*STEPS[:2], "build debug", "small cuda debug", "build again", *STEPS[2:]]
    assert [step.name for step in session.steps] == names
    builds = [variables for text, variables in rehearsal.calls() if "pip install" in text]
    assert [variables.get("VSSN_CUDA_DEBUG") for variables in builds] == [None, "1", None]


def test_what_is_built_already_is_taken_as_it_is(rehearsal: Rehearsal) -> None:
    status, session = rehearsal.run(builds=False)
    assert status == 0
    assert [step.name for step in session.steps] == STEPS
    assert session.steps[0].status == gpu.NOT_BUILT
    assert not any("pip install" in text for text, _ in rehearsal.calls())


def test_without_time_for_two_builds_they_are_left_out(rehearsal: Rehearsal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "SMALL_S", 4.0)
    monkeypatch.setattr(gpu, "TIMES_S", 120.0)
    _, session = rehearsal.run({"gpu_small cuda": "hang"}, budget=124.0)
    found = {step.name: step.status for step in session.steps}
    assert found["small cuda debug"] == "left out: no time for two more builds"
    assert "build debug" not in found
    assert found["times"] == PASSED


def test_where_the_build_fails_triton_alone_is_run(rehearsal: Rehearsal) -> None:
    status, session = rehearsal.run({"pip install": "fail"})
    assert status == 1
    assert [step.name for step in session.steps] == [name for name in STEPS if name != "small cuda"]
    assert session.steps[0].status == f"{FAILED}: exit status 1"
    assert {step.status for step in session.steps[-2:]} == {"left out: the build did not pass"}
    calls = {text.split()[-1]: (text, variables) for text, variables in rehearsal.calls()}
    assert calls["benchmarks.gpu_times"][1]["VSSN_GPU_BACKENDS"] == "triton"
    tests = next(text for text, _ in rehearsal.calls() if "-m pytest" in text)
    assert "cuda-cuda" not in tests
    assert "triton-cuda" in tests


def test_findings_of_racecheck_are_listed_and_do_not_count(
    rehearsal: Rehearsal, capsys: pytest.CaptureFixture[str]
) -> None:
    finding = "========= Error: Potential RAW hazard detected at __shared__ 0x10 in block (0,0,0)"
    status, session = rehearsal.run(
        {"--tool racecheck": f"{finding}\n{finding}\n========= RACECHECK SUMMARY: 2 hazards"}
    )
    assert status == 0
    assert session.steps[-1].status == f"{PASSED}: 1 findings"
    assert f"racecheck:\n{finding}\n" in capsys.readouterr().out


def test_memcheck_counts(rehearsal: Rehearsal) -> None:
    status, session = rehearsal.run({"--tool memcheck": "fail"})
    assert status == 1
    assert session.steps[-2].status.startswith(FAILED)
    assert session.steps[-1].status == PASSED


def test_the_whole_fits_ten_minutes() -> None:
    assert gpu.BUDGET_S < 600
    assert gpu.BUILD_S + 2 * gpu.SMALL_S + gpu.TIMES_S + gpu.FLOOR_S <= gpu.BUDGET_S


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_it_refuses_in_one_line(tmp_path: Path) -> None:
    variables = os.environ | {"OUT": str(tmp_path / "out")}
    result = subprocess.run(
        [PYTHON, "-m", "benchmarks.gpu"], cwd=ROOT, env=variables, capture_output=True, text=True, check=False
    )
    assert result.returncode == 2
    assert result.stderr == f"benchmarks.gpu: PyTorch {torch.__version__} finds no CUDA device here\n"
    assert not result.stdout
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("given", ["argument", "environment"])
def test_make_passes_the_folder_on(given: str) -> None:
    environment = {name: value for name, value in os.environ.items() if name not in ("OUT", "MAKEFLAGS")}
    command = ["make", "-n", "gpu"]
    if given == "argument":
        command.append("OUT=some/folder")
    else:
        environment["OUT"] = "some/folder"
    text = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True).stdout
    assert '-m benchmarks.gpu --out "some/folder"' in text


@pytest.mark.parametrize("name", ["times.csv", "floor.csv"])
def test_a_csv_with_other_columns_is_refused_before_anything_runs(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu_rows, "CSV", tmp_path / "times.csv")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    (tmp_path / name).write_text("other,columns\n")
    assert gpu.main(["--out", str(tmp_path / "out")]) == 2
    line = f"benchmarks.gpu: {tmp_path / name} has other columns than this version writes; move it away\n"
    assert capsys.readouterr().err == line


# ---- The tests' plugin ----------------------------------------------------------------------------------------------

SLOW_TESTS = """
import time, pytest
@pytest.mark.parametrize("number", range(4))
def test_number(number):
    assert number != 1
def test_endless():
    time.sleep(600)
def test_last():
    pass
"""


@pytest.mark.one_in(2)
@pytest.mark.parametrize("workers", [0, 2])
def test_each_test_has_a_limit_and_the_first_failure_is_shown_at_once(tmp_path: Path, workers: int) -> None:
    write(tmp_path / "test_slow.py", SLOW_TESTS)
    options = ["-q", "-o", "addopts=", "-p", "no:cacheprovider", "-p", "benchmarks.gpu_pytest", "--each-limit", "10"]
    options += ["-n", str(workers)] if workers else []
    # Not a worker of the run that this test is in.
    variables = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    result = subprocess.run(
        [PYTHON, "-m", "pytest", *options, "--rootdir", str(tmp_path), str(tmp_path / "test_slow.py")],
        cwd=ROOT, env=variables | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert result.returncode != 0
    shown = result.stderr
    assert shown.count("---- first failure: ") == 1
    assert shown.index("---- first failure: ") < shown.index("in test_endless")
    assert "assert 1 != 1" in shown
    if workers:  # the others run on
        assert "2 failed, 4 passed" in result.stdout
        assert "crashed while running 'test_slow.py::test_endless'" in result.stdout


# ---- The small run --------------------------------------------------------------------------------------------------


def test_every_case_is_named_before_it_runs(capsys: pytest.CaptureFixture[str]) -> None:
    def broken() -> None:
        assert capsys.readouterr().out.endswith("second ... ")
        raise RuntimeError("it broke\nat length")

    def beyond() -> None:
        raise RuntimeError("gru_forward: B = 3, H = 9 does not fit this device (2 multiprocessors)")

    cases = [("first", lambda: None), ("second", broken), ("third", beyond), ("fourth", lambda: None)]
    assert gpu_small.run_all((gpu_small.Case(*case) for case in cases), lambda: None) == ["second"]
    assert capsys.readouterr().out.splitlines() == [
        "FAILED: RuntimeError: it broke",
        "third ... left out: gru_forward: B = 3, H = 9 does not fit this device (2 multiprocessors)",
        "fourth ... ok",
    ]


def test_a_broken_device_ends_the_small_run(capsys: pytest.CaptureFixture[str]) -> None:
    def wait() -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    cases = (gpu_small.Case(name, lambda: None) for name in ("first", "second"))
    assert gpu_small.run_all(cases, wait) == ["first"]
    assert "second" not in capsys.readouterr().out


# ---- The times ------------------------------------------------------------------------------------------------------

TINY = gpu_times.Setup(
    device="cpu",
    backends=("cpu", "reference", "cuda"),
    steps=3,
    loop_steps=2,
    batches=(3, 1),
    hidden=(5, 8),
    clusters=(4,),
    latent=((7, 3),),
    interleaved=((5, 4, 6, 3),),
    gru_compute=("float32", "tf32"),
    compute=("float32",),
    rows=32,
    training=(Size("S", T=3, B=2, X=5, D=4, Z=3, W=2),),
    torchrl=(3, 2, 5),
)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("ROUNDS", 1), ("MOST_CALLS", 1), ("LONG_S", 1e9)):
        monkeypatch.setattr(gpu_contest, name, value)
    # What torch.compile makes of the loop is tested in test_benchmarks.py's way: here only that it takes part.
    monkeypatch.setattr(torch, "compile", lambda function: function)


@pytest.fixture
def torchrl(monkeypatch: pytest.MonkeyPatch) -> None:
    """In torchrl's place, of the same arguments: its GRU by PyTorch, and a block GRU that is one, too."""

    def gru_triton(
        x: torch.Tensor, hidden: torch.Tensor, *weights: torch.Tensor, compute_dtype: torch.dtype, input_precision: str
    ) -> tuple[torch.Tensor, ...]:
        *own, resets = weights
        assert hidden.shape[:2] == x.shape[:2] == resets.shape
        assert resets.dtype is torch.bool
        assert not resets.any()
        assert (compute_dtype, input_precision) in ((torch.float32, "ieee"), (torch.float32, "tf32"))
        net = torch.nn.GRU(x.shape[2], hidden.shape[2], batch_first=True)
        named = dict(zip(dict(net.named_parameters()), own, strict=True))
        output, h_n = torch.func.functional_call(net, named, (x, hidden[:, 0].contiguous()[None]))
        return output, h_n[0]

    class BlockGRU(torch.nn.GRU):
        def __init__(self, inputs: int, hidden: int, recurrent_backend: str, device: str) -> None:
            assert recurrent_backend == "triton"
            super().__init__(inputs, hidden, batch_first=True, device=device)

        def forward(self, x: torch.Tensor, h0: torch.Tensor) -> tuple[torch.Tensor, ...]:  # type: ignore[override]
            output, h_n = super().forward(x, h0[None])
            return output, h_n[0]

    modules = {
        "torchrl.modules.tensordict_module._rnn_triton": SimpleNamespace(gru_triton=gru_triton),
        "torchrl.modules.models.model_based": SimpleNamespace(DreamerV3BlockGRU=BlockGRU),
    }
    monkeypatch.setattr(gpu_torchrl, "imported", modules.__getitem__)


def test_torchrls_recurrences_stand_beside_ours(quick: None, torchrl: None) -> None:
    results = list(gpu_times.torchrl_cases(TINY))
    assert {r.status for r in results if r.contestant != "vssn cuda"} == {"ok"}
    theirs = [r for r in results if r.contestant == "torchrl's Triton GRU"]
    assert [r.case.split()[1] for r in theirs] == ["float32", "float32", "tf32", "tf32"]
    assert all(r.error is not None and r.error < 1e-5 for r in theirs)
    block = [r for r in results if r.contestant == "torchrl's Triton block GRU"]
    assert [r.run for r in block] == ["forward", "forward and backward"]


def test_without_torchrl_the_rows_say_so(quick: None) -> None:
    if importlib.util.find_spec("torchrl"):
        pytest.skip("torchrl is installed")
    theirs = [r for r in gpu_times.torchrl_cases(TINY) if r.contestant.startswith("torchrl")]
    assert len(theirs) == 6
    assert all(r.status.startswith("absent: ") and "pip install torchrl" in r.status for r in theirs)


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The two CSVs that a run of the times writes."""
    monkeypatch.setenv("VSSN_GPU_CSV", str(tmp_path / "results" / "times.csv"))
    monkeypatch.setenv("OUT", str(tmp_path / "out"))
    monkeypatch.setenv("VSSN_GPU_DATE", "2030-01-02T03:04:05+00:00")
    return [tmp_path / "results" / "times.csv", tmp_path / "out" / "times.csv"]


def test_the_times_hold_every_contestant_and_agree(quick: None, torchrl: None, files: list[Path]) -> None:
    assert gpu_times.main(TINY, 600) == 0
    rows = list(csv.DictReader(files[0].open()))
    assert files[0].read_text() == files[1].read_text()
    assert {row["status"] for row in rows if row["contestant"] != "vssn cuda"} == {"ok"}
    seen = {(row["case"].split()[0], row["run"], row["contestant"]) for row in rows}
    for run_of in ("forward", "forward and backward"):
        assert ("gru", run_of, "torch.nn.GRU") in seen
        for name in ("loop over z", "loop over z, in a graph", "loop over z, torch.compile", "vssn cpu", "vssn cuda"):
            assert ("posterior", run_of, name) in seen
        for name in ("loop over the cell", "loop over the cell, in a graph", "vssn cpu", "vssn cuda"):
            assert ("interleaved", run_of, name) in seen
    for name in ("vssn", "vssn, in a graph", "torch", "torch, in a graph"):
        assert ("training", "forward+backward+adam", name) in seen
    assert ("gaussian", "forward", "copy of as many bytes") in seen
    assert {"gru float32 T=3 B=1 H=8", "gru tf32 T=3 B=3 H=5"} <= {row["case"] for row in rows}
    errors = {row["case"]: float(row["error"]) for row in rows if row["error"] and not row["case"].startswith("gauss")}
    assert max(error for case, error in errors.items() if "bfloat16" not in case) < 1e-5
    assert max(error for case, error in errors.items() if "bfloat16" in case) < 1e-2


def test_a_contestant_that_breaks_leaves_the_others(quick: None) -> None:
    def breaks() -> tuple[torch.Tensor, ...]:
        raise TypeError("it broke\nat length")

    def too_large() -> tuple[torch.Tensor, ...]:
        raise RuntimeError("gru_forward: H = 9 does not fit this device")

    def one() -> tuple[torch.Tensor, ...]:
        return (torch.ones(3),)

    calls = {"a": Contestant(breaks), "b": Contestant(one), "c": "absent", "d": Contestant(too_large)}
    found = {r.contestant: r for r in gpu_contest.contest("case", "run", calls, 1, "cpu")}
    assert found["a"].status == "failed: TypeError: it broke"
    assert found["b"].status == "ok"
    assert found["c"].status == "absent"
    assert found["d"].status == "left out: gru_forward: H = 9 does not fit this device"
    assert (found["b"].ratio, found["b"].error, found["b"].timing) == (1.0, 0.0, "launches")


def test_out_of_time_the_rows_so_far_are_kept(quick: None, files: list[Path]) -> None:
    assert gpu_times.main(TINY, 0) == 0
    rows = list(csv.DictReader(files[0].open()))
    assert [row["status"] for row in rows[1:]] == ["left out: no time"]
    assert len(rows) == 2


def test_rows_carry_what_they_were_measured_on(files: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    class Answer:
        stdout = "570.1, 1755, 1980, 2619, 700.00, 41\n"

    monkeypatch.setattr(gpu_rows.subprocess, "run", lambda *_, **__: Answer())
    monkeypatch.setattr(gpu_rows, "commit", lambda: "abc")
    Writer.from_environment("cpu").write(Result("case", "run", "who", "ok", "graph", 1.23456789, 1.0, 2.0, 1.0, 0.0))
    Writer.from_environment("cpu").write(Result("case", "run", "other", "failed: why"))
    assert files[0].read_text().splitlines()[0] == ",".join(FIELDS)
    rows = list(csv.DictReader(files[0].open()))
    wanted = {"driver": "570.1", "sm_mhz": "1755", "sm_max_mhz": "1980", "memory_mhz": "2619", "commit": "abc"}
    wanted |= {"date": "2030-01-02T03:04:05+00:00", "torch": torch.__version__, "us": "1.2346", "timing": "graph"}
    assert wanted.items() <= rows[0].items()
    assert {"device", "python", "cuda", "cudnn", "triton", "vssn", "power_limit_w", "temperature_c"} <= set(FIELDS)
    assert rows[1]["us"] == ""
    shown = gpu_rows.table(gpu_rows.read(files[0], "2030-01-02T03:04:05+00:00"))
    assert shown == "case, run: who 1.23 us; other - (failed: why)"
    assert gpu_rows.read(files[0], "another") == []


def test_without_nvidia_smi_the_clocks_are_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert gpu_rows.smi() == dict.fromkeys(gpu_rows.SMI, "")


def test_tf32_is_set_for_products_and_for_cudnn() -> None:
    cudnn = torch.backends.cudnn

    def settings() -> tuple[str, object]:
        own = getattr(cudnn, "rnn", None)
        of_cudnn = own.fp32_precision if hasattr(own, "fp32_precision") else cudnn.allow_tf32
        return torch.get_float32_matmul_precision(), of_cudnn

    before = settings()
    with tf32(True):
        assert settings() in {("high", "tf32"), ("high", True)}
        with tf32(False):
            assert settings() in {("highest", "ieee"), ("highest", False)}
        assert settings() in {("high", "tf32"), ("high", True)}
    assert settings() == before
