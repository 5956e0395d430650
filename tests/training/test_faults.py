"""A run that is killed, or whose disk, folder or scheduler fails it: one line, nothing saved is lost, and it goes on
bit for bit. Long and at random: make faults."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import faults
import forks
import pytest
import torch
from faults import EPOCHS, FAULTS, Count, check_fault, check_full_disk, check_whole, check_write_protected

from vssn.training.checkpoints import read_checkpoint
from vssn.training.run_directory import best_so_far, make_good
from vssn.utils.command import TERMINATED, run_command

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")


def open_to_all(folder: Path) -> None:
    for path in (folder, *folder.parents):
        if path.stat().st_uid != os.getuid() or path == Path(tempfile.gettempdir()):
            return
        path.chmod(path.stat().st_mode | 0o055)


@pytest.fixture(scope="module")
def truth(tmp_path_factory: pytest.TempPathFactory) -> Path:
    forks.require_autograd()
    folder = tmp_path_factory.mktemp("truth")
    open_to_all(folder)  # nobody looks into it
    torch.set_num_threads(1)
    return faults.undisturbed(folder)


@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_killed_in_the_middle_of_a_checkpoint(number: int, truth: Path, tmp_path: Path) -> None:
    child = faults.start(tmp_path, before=faults.kill_in_write(number, 0.5))
    assert child.wait() == 128 + signal.SIGKILL
    assert list((tmp_path / "run").glob("*.part"))
    assert faults.check_kept(tmp_path / "run", truth) == number // 2  # last.ckpt, best.ckpt, last.ckpt, ...
    child = faults.start(tmp_path)
    assert child.wait() == 0, child.errors
    check_whole(tmp_path / "run", truth)


@pytest.mark.slow
def test_killed_before_any_access_to_a_file(truth: Path, tmp_path: Path) -> None:
    """One after the other, as long as there are some; every run then goes on."""
    for number in range(1, 200):
        folder = tmp_path / str(number)
        child = faults.start(folder, before=faults.kill_at_event(folder, number))
        code = child.wait()
        if code == 0:
            break
        assert code == 128 + signal.SIGKILL, child.errors
        faults.check_kept(folder / "run", truth)
        faults.kill_until_done(folder, truth, random.Random(number), 1.0, 0, Count())
    assert number > 40


@pytest.mark.slow
def test_killed_at_random(truth: Path, tmp_path: Path) -> None:
    count = Count()
    while count.kills < 15:
        count.runs += 1
        faults.kill_until_done(tmp_path / str(count.runs), truth, random.Random(count.runs), 3.0, 15, count)
    assert count.resumes > 3


@pytest.mark.parametrize("name", FAULTS)
def test_other_faults_are_one_line(name: str, truth: Path, tmp_path: Path) -> None:
    check_fault(tmp_path / "fault", name, truth)


@pytest.mark.parametrize(("share", "epochs"), [(0.1, 0), (0.5, 0), (1.5, 1), (2.5, 1)])
def test_a_full_disk_is_one_line(share: float, epochs: int, truth: Path, tmp_path: Path) -> None:
    size = (truth / "1.ckpt").stat().st_size
    try:
        assert check_full_disk(tmp_path, int(share * size), truth) == epochs
    except PermissionError as error:
        pytest.skip(f"no disk can be mounted: {error}")


def test_a_folder_that_becomes_read_only_is_one_line(truth: Path, tmp_path: Path) -> None:
    open_to_all(tmp_path)
    try:
        check_write_protected(tmp_path / "fault", truth)
    except PermissionError as error:
        pytest.skip(f"needs root to become someone else: {error}")


def test_a_best_that_is_behind_is_made_good(truth: Path, tmp_path: Path) -> None:
    """As a kill between last.ckpt and best.ckpt leaves them, in the first epoch and in a later one."""
    lines = (truth / "run" / "metrics.csv").read_text().splitlines(keepends=True)
    for epochs, best in ((1, None), (3, 2)):
        folder = tmp_path / str(epochs)
        folder.mkdir()
        (folder / "last.ckpt").write_bytes((truth / f"{epochs}.ckpt").read_bytes())
        (folder / "metrics.csv").write_text("".join(lines[: epochs + 1]))
        if best is not None:
            (folder / "best.ckpt").write_bytes((truth / f"{best}.ckpt").read_bytes())
        make_good(folder)
        assert read_checkpoint(folder / "best.ckpt")["vssn"]["epoch"] == epochs
        rows = [{"valid/elbo_per_frame": "0"}] * epochs  # better than the last: its own is not that of best.ckpt
        (folder / "best.ckpt").unlink()
        if epochs > 1:
            with pytest.raises(ValueError, match=r"best\.ckpt: expected a checkpoint file, but there is no such file"):
                best_so_far(folder, rows)


def test_a_finished_run_is_said_to_be_one(truth: Path, tmp_path: Path) -> None:
    assert read_checkpoint(truth / "run" / "last.ckpt")["vssn"]["epoch"] == EPOCHS
    again = tmp_path / "again"
    again.mkdir()
    os.symlink(truth / "run", again / "run")
    child = faults.start(again)
    assert child.wait() == 2
    assert f"has done {EPOCHS} epochs of {EPOCHS}; raise it to continue" in child.errors[0]


def test_any_command_ends_with_a_line_on_sigterm(capsys: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(signal.SIGTERM)

    def command() -> int:
        os.kill(os.getpid(), signal.SIGTERM)
        raise AssertionError("it goes on")

    assert run_command("vssn", command) == TERMINATED
    assert capsys.readouterr().err == "vssn: terminated\n"
    assert signal.getsignal(signal.SIGTERM) is before


def test_sigterm_in_a_program_of_one_s_own(tmp_path: Path) -> None:
    """Without the command line: fit clears up, and the program ends as one that is terminated."""
    code = (
        "import os, signal, sys, torch, vssn\n"
        "from vssn.training.module import TrainingModule\n"
        "step = TrainingModule.training_step\n"
        "def ended(module, *arguments):\n"
        "    if module.global_step == 3: os.kill(os.getpid(), signal.SIGTERM)\n"
        "    step(module, *arguments)\n"
        "TrainingModule.training_step = ended\n"
        "model = {'hidden_size': 4, 'latent_size': 2, 'likelihood': 'gaussian'}\n"
        "training = {'output': sys.argv[1], 'max_epochs': 3, 'accelerator': 'cpu'}\n"
        "vssn.fit({'data': {'batch_size': 2}, 'model': model, 'training': training}, [torch.randn(4, 5, 2)] * 3)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "run")], capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == TERMINATED, done.stderr
    assert "Traceback" not in done.stderr
    assert read_checkpoint(tmp_path / "run" / "last.ckpt")["vssn"]["epoch"] == 1
