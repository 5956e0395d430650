"""Ctrl-C while a command is being imported."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from vssn.utils import starting
from vssn.utils.command import INTERRUPTED, run_command

ROOT = Path(__file__).resolve().parents[2]
INTERRUPTED_IMPORT = """
import os, signal
try:
    os.kill(os.getpid(), signal.SIGINT)
    for _ in range(1000): pass
except BaseException as error:
    raise ImportError("taken for a fault of its own") from error
os._exit(7)
"""
SCRIPT = "import sys\nfrom vssn.cli import main\nif __name__ == '__main__':\n    sys.exit(main())\n"  # as pip makes it


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """With a torch in whose import Ctrl-C comes, and which takes what that raises for a fault of its own."""
    (tmp_path / "site" / "torch").mkdir(parents=True)
    (tmp_path / "site" / "torch" / "__init__.py").write_text(INTERRUPTED_IMPORT)
    return {**os.environ, "PYTHONPATH": os.pathsep.join((str(tmp_path / "site"), str(ROOT)))}


def run(environment: dict[str, str], *arguments: str, ignored: bool = False) -> tuple[int, str]:
    """Exit code and stderr."""

    def before() -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN if ignored else signal.SIG_DFL)

    done = subprocess.run(
        [sys.executable, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        preexec_fn=before,
    )
    return done.returncode, done.stderr


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (("-m", "vssn", "fit", "--config", "vssn.yaml"), "vssn"),
        (("-X", "utf8", "-mvssn"), "vssn"),
        (("SCRIPT", "info"), "vssn"),
        (("-m", "vssn.demo", "--epochs", "1"), "demo"),
    ],
    ids=" ".join,
)
def test_a_command_ends_with_a_line(
    arguments: tuple[str, ...], name: str, environment: dict[str, str], tmp_path: Path
) -> None:
    script = tmp_path / "vssn"
    script.write_text(SCRIPT)
    own = [str(script) if argument == "SCRIPT" else argument for argument in arguments]
    assert run(environment, *own) == (INTERRUPTED, f"{name}: interrupted\n")


def test_a_command_that_is_not_to_notice_goes_on(environment: dict[str, str]) -> None:
    assert run(environment, "-m", "vssn", "info", ignored=True) == (7, "")


@pytest.mark.parametrize("name", ["mine.py", "-c"])
def test_other_programs_have_their_exception(name: str, environment: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("import vssn\n")
    arguments = ("-c", "import vssn", "vssn") if name == "-c" else (str(tmp_path / name), "vssn")
    code, errors = run(environment, *arguments)
    assert code == 1
    assert "KeyboardInterrupt" in errors
    assert errors.endswith("ImportError: taken for a fault of its own\n")


def test_what_is_a_command() -> None:
    command_of = starting.command_of
    for arguments, original in (
        (["-m", "fit"], ["python", "-m", "vssn", "fit"]),
        (["-m"], ["python", "-W", "error", "-mvssn"]),
        (["bin/vssn", "fit", "-m"], ["python", "bin/vssn", "fit", "-m"]),
    ):
        assert command_of(arguments, original) == "vssn"
    assert command_of(["-m"], ["python", "-m", "vssn.demo"]) == "demo"
    for arguments, original in (
        (["-m", "vssn"], ["python", "-m", "pytest", "vssn"]),
        (["vssn.py"], ["python", "vssn.py"]),
        ([""], ["python"]),
        ([], []),
        (["-c", "vssn"], ["python", "-c", "vssn", "vssn"]),
    ):
        assert command_of(arguments, original) is None, original


def test_a_process_of_multiprocessing_is_no_command() -> None:
    """Its arguments are those of its parent."""
    spawned = ["python", "-c", "from multiprocessing.spawn import spawn_main; spawn_main(pipe_handle=7)"]
    for arguments in (["/bin/vssn", "fit"], ["/bin/vssn"], ["/bin/vssn", "fit", "--config", "jsb"]):
        assert starting.command_of(arguments, ["python", *arguments]) == "vssn"
        assert starting.command_of(arguments, spawned) is None


def test_it_ends_where_the_command_runs(capsys: pytest.CaptureFixture[str]) -> None:
    before = signal.signal(signal.SIGINT, starting.stop)

    def command() -> int:
        os.kill(os.getpid(), signal.SIGINT)
        raise AssertionError("it goes on")

    try:
        assert run_command("vssn", command) == INTERRUPTED
        assert capsys.readouterr().err == "vssn: interrupted\n"
    finally:
        signal.signal(signal.SIGINT, before)
