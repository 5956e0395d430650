"""The command: what it prints, what it writes, and one line with exit code 2 for every mistake."""

from __future__ import annotations

import csv
import errno
import fcntl
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import time
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from vssn.cli import main
from vssn.inference import scoring as evaluation
from vssn.training import fit as training
from vssn.training import heartbeat
from vssn.training.config import check_config
from vssn.training.module import TrainingModule
from vssn_kernels.version import __version__

ROOT = Path(__file__).resolve().parent.parent
TINY = {
    "data": {"set": "pendulum", "num_train": 6, "num_valid": 3, "num_test": 3, "num_frames": 4, "batch_size": 3},
    "model": {"hidden_size": 4, "latent_size": 2, "noise_size": 1, "control": "external"},
    "training": {"max_epochs": 2, "accelerator": "cpu"},
}


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("config") / "tiny.yaml"
    path.write_text(yaml.safe_dump(TINY))
    return str(path)


@pytest.fixture(scope="module")
def run(config: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    assert main(["fit", "--config", config, "--output", str(folder)]) == 0
    return folder


def error_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    capsys.readouterr()
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("vssn: error: ")
    assert captured.err.count("\n") == 1
    return captured.err


def test_fit_reports_the_best_epoch_and_both_scores(
    config: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    assert main(["fit", "--config", config, "--output", str(folder), "--set", "training.max_epochs=1"]) == 0
    first = capsys.readouterr().out
    assert f"best epoch 1: {folder / 'best.ckpt'}" in first
    assert first.index("\nvalidation\n") < first.index("\ntest\n")
    assert first.count("micro") == first.count("macro") == 2
    assert main(["fit", "--config", config, "--output", str(folder), "--resume"]) == 0
    second = capsys.readouterr().out
    assert "epoch   2" in second
    assert "epoch   1" not in second


def test_evaluate_prints_the_scores_of_fit(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "scores.json"
    assert main(["evaluate", str(run / "best.ckpt"), "--json", str(target)]) == 0
    out = capsys.readouterr().out
    scores = json.loads(target.read_text())
    assert scores["split"] == "test"
    assert (scores["bound"], scores["particles"], scores["seed"]) == ("elbo", 1, 0)
    assert (scores["sequences"], scores["frames"]) == (3, 12)
    assert out.splitlines()[2].split() == ["micro", f"{scores['micro']:.4f}", f"{scores['micro_without_first']:.4f}"]
    assert out.splitlines()[3].split() == ["macro", f"{scores['macro']:.4f}", f"{scores['macro_without_first']:.4f}"]
    assert out.splitlines()[5].split() == [f"{scores['kl_z']:.4f}", f"{scores['kl_w']:.4f}"]


@pytest.mark.parametrize("bound", ["iwae", "fivo"])
def test_evaluate_an_importance_weighted_bound(
    bound: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "scores.json"
    evaluate = ["evaluate", str(run / "best.ckpt"), "--bound", bound, "--particles", "7", "--json", str(target)]
    tables = []
    for more in (["--memory", "64"], ["--memory", "2", "--batch-size", "1"], ["--seed", "3"]):
        assert main([*evaluate, *more]) == 0
        tables.append(capsys.readouterr().out.splitlines())
        scores = json.loads(target.read_text())
        assert (scores["bound"], scores["particles"], scores["frames"], scores["sequences"]) == (bound, 7, 12, 3)
        row = ["micro", f"{scores['micro']:.4f}", f"{scores['micro_without_first']:.4f}"]
        assert tables[-1][1].startswith(f"{bound.upper()}-7, nats per frame")
        assert tables[-1][2].split() == row
        assert tables[-1][-1] == "3 sequences, 12 frames"
    assert tables[0] == tables[1]
    assert tables[0] != tables[2]


def test_a_memory_limit_that_does_not_suffice_is_one_line(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evaluate = ("evaluate", str(run / "best.ckpt"), "--bound", "fivo", "--particles", "100000", "--memory", "1")
    assert "memory must be at least" in error_of(capsys, *evaluate)


def test_evaluate_another_split_with_samples(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(run / "last.ckpt"), "--split", "train", "--particles", "2"]) == 0
    assert "pendulum, train\n" in (out := capsys.readouterr().out)
    assert "6 sequences, 24 frames" in out


def test_mistakes_are_one_line(config: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit = ("fit", "--output", str(tmp_path / "new"), "--config")
    assert "there is no such file" in error_of(capsys, *fit, str(tmp_path / "no.yaml"))
    assert "did you mean max_epochs?" in error_of(capsys, *fit, config, "--set", "training.max_epoch=1")
    assert "no data folder for JSB_Chorales" in error_of(capsys, *fit, "jsb", "--data", str(tmp_path / "absent"))
    assert "--data: the set 'pendulum' is simulated" in error_of(capsys, *fit, config, "--data", str(tmp_path))
    assert "holds no last.ckpt" in error_of(capsys, *fit, config, "--resume")
    assert not (tmp_path / "new").exists()
    assert "holds a run already" in error_of(capsys, "fit", "--config", config, "--output", str(run))

    assert "there is no such file" in error_of(capsys, "evaluate", str(tmp_path / "no.ckpt"))
    cut_short = tmp_path / "short.ckpt"
    cut_short.write_bytes((run / "best.ckpt").read_bytes()[:2000])
    assert "truncated" in error_of(capsys, "evaluate", str(cut_short))
    best = str(run / "best.ckpt")
    for command in (("evaluate", best), ("fit", "--config", "demo")):
        message = error_of(capsys, *command, "--data", str(tmp_path))
        assert message.startswith("vssn: error: --data: the set 'pendulum' is simulated and has no folder")
    assert "there is no folder" in error_of(capsys, "evaluate", best, "--json", str(tmp_path / "a" / "b.json"))


def test_truncated_music_is_one_line_and_leaves_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "JSB_Chorales.mat").write_bytes(b"MATLAB 5.0 MAT-file" + bytes(200))
    output = tmp_path / "run"
    message = error_of(capsys, "fit", "--config", "jsb", "--data", str(tmp_path), "--output", str(output))
    assert "truncated or corrupt" in message
    assert not output.exists()


@pytest.mark.parametrize("value", ["0", "-1", "many"])
@pytest.mark.parametrize("option", ["particles", "memory", "batch-size"])
def test_counts_must_be_whole_numbers(option: str, value: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["evaluate", "best.ckpt", f"--{option}={value}"])
    assert caught.value.code == 2
    assert f"expected a whole number of at least 1, got '{value}'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "option", "value", "least", "most"),
    [
        ("evaluate best.ckpt", "seed", str(2**64), 0, 2**64 - 1),
        ("evaluate best.ckpt", "seed", "-1", 0, 2**64 - 1),
        ("fit --config demo", "threads", str(10**30), 1, 1024),
        ("reproduce demo", "threads", "1025", 1, 1024),
    ],
)
def test_seeds_and_threads_have_an_upper_end(
    command: str, option: str, value: str, least: int, most: int, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main([*command.split(), f"--{option}={value}"])
    assert caught.value.code == 2
    assert f"expected a whole number from {least} to {most}, got '{value}'" in capsys.readouterr().err


def test_the_lines_of_a_resumed_run_have_one_clock(
    config: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What says that a run is alive counts the seconds of the epochs before, as the lines of the epochs do."""
    output = str(tmp_path / "run")
    fit = ["fit", "--config", config, "--output", output, "--set", "training.report_every=1"]
    assert main([*fit, "--set", "training.max_epochs=1"]) == 0
    metrics = tmp_path / "run" / "metrics.csv"
    with open(metrics, newline="") as file:
        rows = list(csv.DictReader(file))
    with open(metrics, "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerow(rows[0] | {"seconds": "500.0"})
    monkeypatch.setattr(heartbeat, "EVERY", 0.15)
    step = TrainingModule.training_step

    def slowly(module: TrainingModule, *arguments: Any) -> Any:
        time.sleep(0.4)
        return step(module, *arguments)

    monkeypatch.setattr(TrainingModule, "training_step", slowly)
    capsys.readouterr()
    assert main([*fit, "--resume"]) == 0
    out = capsys.readouterr().out
    alive = [int(seconds) for seconds in re.findall(r"^epoch +\d+  update \d+ +(\d+) s$", out, re.MULTILINE)]
    epochs = [int(seconds) for seconds in re.findall(r"^epoch +\d+  train .*? (\d+) s", out, re.MULTILINE)]
    assert alive
    assert epochs
    assert min(alive) >= 500
    assert max(alive) <= epochs[-1]


def test_interrupt_says_what_is_kept(
    config: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    step = TrainingModule.training_step
    stop_at = 0

    def interrupted(module: TrainingModule, *arguments: object) -> None:
        if module.global_step == stop_at:
            raise KeyboardInterrupt
        step(module, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(TrainingModule, "training_step", interrupted)
    arguments = ["fit", "--config", config, "--output", str(tmp_path / "run")]
    assert main(arguments) == 130
    assert capsys.readouterr().err == "vssn: interrupted; nothing is kept\n"
    assert not (tmp_path / "run").exists()
    stop_at = 3
    assert main(arguments) == 130
    last = tmp_path / "run" / "last.ckpt"
    assert capsys.readouterr().err == f"vssn: interrupted; {last} is kept, continue with --resume\n"
    assert last.is_file()


def test_interrupt_of_the_scores_says_that_training_is_done(
    config: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """All epochs are done, and what is left can be had without the training."""

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(training, "evaluate", interrupted)
        assert main(["fit", "--config", config, "--output", str(run)]) == 130
    best = run / "best.ckpt"
    said = f"vssn: interrupted; training is done, {best} is kept: vssn evaluate scores it\n"
    assert capsys.readouterr().err == said
    assert main(["evaluate", str(best)]) == 0


def test_interrupt_tells_of_a_first_epoch_that_was_cut_short(
    config: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its best.ckpt alone is there: while it is scored, and while --resume begins it anew; a full disk names it too."""
    step, run = TrainingModule.training_step, tmp_path / "run"

    def slow(module: TrainingModule, *arguments: object) -> None:
        step(module, *arguments)  # type: ignore[arg-type]
        time.sleep(0.1)  # longer than the limit of 0.06 seconds

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(TrainingModule, "training_step", slow)
    monkeypatch.setattr(training, "evaluate", interrupted)
    arguments = ["fit", "--config", config, "--output", str(run), "--set", "training.max_minutes=0.001"]
    kept = f"{run / 'best.ckpt'} is kept"
    said = f"vssn: interrupted; {kept}, of a first epoch that was cut short; --resume begins that anew\n"
    assert main(arguments) == 130
    assert capsys.readouterr().err == said
    assert not (run / "last.ckpt").exists()
    monkeypatch.setattr(TrainingModule, "training_step", interrupted)
    assert main([*arguments, "--resume"]) == 130
    assert capsys.readouterr().err == said

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(run / "metrics.csv"))

    monkeypatch.setattr(TrainingModule, "training_step", full)
    assert main([*arguments, "--resume"]) == 2
    assert f"mend that, {kept}; continue with --resume" in capsys.readouterr().err


# A cluster's variables, a log, a terminal


@pytest.mark.one_in(3)
@pytest.mark.parametrize(
    "variables",
    [
        {
            "SLURM_JOB_ID": "1",
            "SLURM_JOB_NAME": "train",
            "SLURM_NTASKS": "4",
            "SLURM_PROCID": "2",
            "SLURM_LOCALID": "1",
        },
        {"RANK": "1", "LOCAL_RANK": "3", "WORLD_SIZE": "4", "GROUP_RANK": "1", "TORCHELASTIC_RUN_ID": "x"},
        {"LSB_JOBID": "1", "LSB_DJOB_RANKFILE": "no", "JSM_NAMESPACE_RANK": "1", "JSM_NAMESPACE_LOCAL_RANK": "1"},
    ],
    ids=["slurm", "torchrun", "lsf"],
)
def test_a_cluster_s_variables_are_those_of_others(
    variables: dict[str, str], config: str, run: Path, tmp_path: Path
) -> None:
    """One process on one device: the same run, with all its logs, and the environment as it was."""
    code = (
        "import os, sys; before = dict(os.environ); from vssn.cli import main; code = main(sys.argv[1:])\n"
        f"assert all(os.environ[name] == before[name] for name in {list(variables)}); sys.exit(code)"
    )
    command = [sys.executable, "-c", code, "fit", "--config", config, "--output", str(tmp_path / "run")]
    command += ["--set", "data.workers=1"]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | variables, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert list((tmp_path / "run" / "tensorboard").glob("events.out.tfevents.*"))
    rows = []
    for folder in (run, tmp_path / "run"):
        with open(folder / "metrics.csv", newline="") as file:
            rows.append(
                [{name: value for name, value in row.items() if name != "seconds"} for row in csv.DictReader(file)]
            )
    assert rows[0] == rows[1]
    assert len(rows[0]) == 2


def test_a_log_is_not_silent(
    config: str, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Reading, training, validating and scoring each say that they go on."""
    monkeypatch.setattr(heartbeat, "EVERY", 0.15)

    def slow(owner: Any, name: str) -> None:
        function = getattr(owner, name)

        def slowly(*arguments: Any, **named: Any) -> Any:
            time.sleep(0.4)
            return function(*arguments, **named)

        monkeypatch.setattr(owner, name, slowly)

    slow(TrainingModule, "training_step")
    slow(TrainingModule, "validation_step")
    slow(type(check_config(TINY, "").data), "load")
    slow(training, "evaluate")
    capsys.readouterr()
    output = str(tmp_path / "run")
    assert main(["fit", "--config", config, "--output", output, "--set", "training.report_every=100"]) == 0
    lines = capsys.readouterr().out.splitlines()
    patterns = (
        r"reading the data +\d s",
        r"pendulum: 6 training, .*",
        r"epoch   1  update 0 +\d s",
        r"epoch   1  validation +\d s",
        r"epoch   2  update \d +\d s",
        r"scoring the validation and the test set +\d s",
    )
    found = [[number for number, line in enumerate(lines) if re.fullmatch(pattern, line)] for pattern in patterns]
    assert all(found), lines
    assert [numbers[0] for numbers in found] == sorted(numbers[0] for numbers in found)

    slow(evaluation, "evaluate")
    assert main(["evaluate", str(run / "best.ckpt")]) == 0
    captured = capsys.readouterr()
    assert re.search(r"^scoring 3 sequences +\d s$", captured.err, re.MULTILINE)
    assert " s\n" not in captured.out


def test_tensorboard_counts_epochs_from_1(run: Path) -> None:
    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    assert {event.step: event.value for event in events.Scalars("epoch")} == {1: 1, 3: 2}  # by updates


def on_a_terminal(command: list[str]) -> tuple[int, str]:
    """Exit code and all that is written, in its order."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))  # rows, columns
    with subprocess.Popen(command, cwd=ROOT, stdin=theirs, stdout=theirs, stderr=theirs, close_fds=True) as process:
        os.close(theirs)
        written = b""
        while True:
            try:
                part = os.read(ours, 4096)
            except OSError:  # the other end is closed
                break
            if not part:
                break
            written += part
    os.close(ours)
    return process.returncode, written.decode()


@pytest.mark.parametrize("stop", ["training_step", "validation_step"])
def test_the_bar_counts_from_1_and_is_gone_when_interrupted(stop: str, config: str, tmp_path: Path) -> None:
    code = f"""
import sys
from vssn.cli import main
from vssn.training.module import TrainingModule
step = TrainingModule.{stop}
def interrupted(module, *arguments):
    if module.current_epoch == 1:
        raise KeyboardInterrupt
    step(module, *arguments)
TrainingModule.{stop} = interrupted
sys.exit(main(sys.argv[1:]))
"""
    command = [sys.executable, "-c", code, "fit", "--config", config, "--output", str(tmp_path / "run")]
    status, written = on_a_terminal(command)
    assert status == 130, written
    assert "Epoch 1:" in written
    assert "Epoch 0" not in written
    assert "Epoch 3" not in written
    assert re.search(r"epoch   1 +train", written)
    last = tmp_path / "run" / "last.ckpt"
    assert written.rstrip("\r\n").endswith(f"vssn: interrupted; {last} is kept, continue with --resume"), written[-600:]


@pytest.mark.parametrize("command", ["fit", "evaluate"])
def test_threads(command: str, config: str, run: Path, tmp_path: Path) -> None:
    before = torch.get_num_threads()
    arguments = {
        "fit": ["fit", "--config", config, "--output", str(tmp_path / "run")],
        "evaluate": ["evaluate", str(run / "best.ckpt")],
    }
    try:
        assert main([*arguments[command], "--threads", "3"]) == 0
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
    with pytest.raises(SystemExit):
        main([*arguments[command], "--threads", "0"])


# Places that cannot be written


@pytest.mark.parametrize("place", ["file", "file/below", "x" * 300, "/proc/none"])
def test_what_cannot_be_written_is_one_line(
    place: str, config: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    target = str(tmp_path / place)
    assert "training.output: " in error_of(capsys, "fit", "--config", config, "--output", target)
    assert "--json: " in error_of(capsys, "evaluate", str(run / "best.ckpt"), "--json", f"{target}/scores.json")
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.EPERM, errno.EIO])
def test_a_folder_that_cannot_be_made(
    number: int,
    config: str,
    run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """As for someone who is not root: the folder above refuses."""

    def refused(path: Path, *_: Any, **__: Any) -> None:
        raise OSError(number, os.strerror(number), str(path.parent))

    output = tmp_path / "above" / "run"
    for name in ("mkdir", "touch"):
        monkeypatch.setattr(Path, name, refused)
    reason = os.strerror(number)
    message = error_of(capsys, "fit", "--config", config, "--output", str(output))
    assert message == f"vssn: error: training.output: cannot write {output.parent} ({reason}); name another folder\n"
    for arguments, option in (
        (("reproduce", "pendulum", "--budget", "quick", "--output", str(output)), "--output"),
        (("reproduce", "--report", str(tmp_path / "R.md")), "--report"),
        (("evaluate", str(run / "best.ckpt"), "--json", str(tmp_path / "s.json")), "--json"),
    ):
        message = error_of(capsys, *arguments)
        assert f"{option}: cannot write " in message
        assert f"({reason}); name another place" in message


def test_a_file_that_a_library_cannot_open_is_one_line(
    monkeypatch: pytest.MonkeyPatch, config: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        raise OSError(errno.EIO, "Input/output error", "/somewhere/else")

    monkeypatch.setattr(evaluation, "evaluate", broken)
    assert "cannot read or write /somewhere/else (Input/output error)" in error_of(
        capsys, "evaluate", str(run / "best.ckpt")
    )


def test_folders_that_are_not_utf_8(config: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    folder.mkdir()
    tiny = folder / "tiny.yaml"
    tiny.write_bytes(Path(config).read_bytes())
    message = error_of(capsys, "fit", "--config", str(tiny), "--output", str(folder / "run"))
    assert "training.output: expected a name in UTF-8, got " in message
    assert main(["fit", "--config", str(tiny), "--output", str(tmp_path / "run")]) == 0
    (folder / "run").mkdir()
    moved = folder / "run" / "best.ckpt"
    os.replace(tmp_path / "run" / "best.ckpt", moved)
    assert main(["evaluate", str(moved), "--json", str(folder / "scores.json")]) == 0
    assert "caf\\udce9" in capsys.readouterr().out
    assert json.loads((folder / "scores.json").read_text())["checkpoint"] == str(moved)


def test_missing_music_leads_to_the_option_and_the_download(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("VSSN_DATA", raising=False)
    for name in "abcdefgh":
        (tmp_path / name).touch()
    fit = ("fit", "--config", "jsb", "--output", str(tmp_path / "run"))
    for more in ((), ("--data", str(tmp_path / "absent")), ("--data", str(tmp_path))):
        message = error_of(capsys, *fit, *more)
        assert "--data" in message
        assert "`vssn download FOLDER`" in message
        assert " a, b, c" not in message


def test_version_and_info(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"vssn {__version__}\n"
    assert main(["info"]) == 0
    assert "backend reference: available" in capsys.readouterr().out


def test_without_the_training_extra_the_error_says_what_to_install() -> None:
    code = (
        "import sys; sys.modules['pydantic'] = None; from vssn.cli import main; "
        "sys.exit(main(['fit', '--config', 'jsb']))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == (
        "vssn: error: pydantic is not installed; install what training needs: pip install 'vssn[train]'\n"
    )


def test_a_reader_that_goes_is_no_error() -> None:
    command = [sys.executable, "-c", "import sys; from vssn.cli import main; input(); sys.exit(main(['info']))"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT
    ) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.close()
        assert process.stderr is not None
        assert process.stderr.read() == ""
    assert process.returncode == 141


def test_a_warning_is_one_line_of_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of a table around 1000 whose configuration does not standardise it."""
    numbers = "".join(f"{1000 + 100 * (row % 7)}\n" for row in range(30))
    (tmp_path / "far.csv").write_text(f"x\n{numbers}")
    settings = ["data.standardise=false", "training.max_epochs=1", "model.hidden_size=4", "training.accelerator=cpu"]
    command = ["fit", "--data", str(tmp_path / "far.csv"), "--output", str(tmp_path / "run")]
    before = warnings.formatwarning
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = _shown
        assert main([*command, *(part for key in settings for part in ("--set", key))]) == 0
    said = [line for line in capsys.readouterr().err.splitlines() if "unit scale" in line]
    assert len(said) == 1
    assert said[0].startswith("vssn: warning: the training data is far from unit scale, x[0] has mean 1")
    assert warnings.formatwarning is before


def _shown(message: Any, category: Any, filename: str, line: int, file: Any = None, text: Any = None) -> None:
    """As Python's own does: pytest puts another in its place."""
    print(warnings.formatwarning(message, category, filename, line, text), end="", file=sys.stderr)
