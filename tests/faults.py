"""python tests/faults.py: a training that is killed at random moments, a hundred times in all, in its writes above all.

After every kill the checkpoints are read and compared with those of a run that nobody disturbed, bit for bit, then the
run goes on; at its end all that it wrote is compared. Then the other faults, each of which is to be one line: a full
disk, a folder that becomes read-only or is removed, a second process, SIGTERM, SIGINT.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.utils.tensorboard  # here: a process that becomes nobody may not read it
import yaml
from reliability_records import record

from vssn.cli import main as vssn
from vssn.training import fit as _  # noqa: F401  # imported once, not by every process that is forked
from vssn.training.checkpoints import load_model, read_checkpoint
from vssn.training.run_directory import RunDirectory

EPOCHS = 6
SETTINGS: dict[str, Any] = {
    "data": {"set": "pendulum", "num_train": 12, "num_valid": 4, "num_test": 4, "num_frames": 6, "batch_size": 4},
    "model": {"hidden_size": 96, "latent_size": 4, "noise_size": 2, "control": "external"},
    "training": {
        **{"accelerator": "cpu", "max_epochs": EPOCHS, "chunk_length": 4, "learning_rate": 0.003, "lr_decay": 0.8},
        **{"kl_start": 0.1, "kl_anneal_updates": 20},
    },
}
FILES = {"best.ckpt", "config.yaml", "last.ckpt", "metrics.csv", "tensorboard"}


# ---- A process that is forked: no import costs it time -------------------------------------------------


@dataclass
class Child:
    pid: int
    folder: Path
    code: int | None = None  # where it has ended

    def wait(self, seconds: float = 600.0) -> int:
        """The exit code, as a shell gives it. Raises AssertionError: it hangs."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            if self.has_ended():
                assert self.code is not None
                return self.code
            time.sleep(0.002)
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        raise AssertionError(f"it goes on after {seconds} s")

    def has_ended(self) -> bool:
        if self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                code = os.waitstatus_to_exitcode(status)
                self.code = code if code >= 0 else 128 - code
        return self.code is not None

    def wait_for(self, name: str, seconds: float = 300.0) -> None:
        """Until it has written that file of the run. Raises AssertionError."""
        until = time.monotonic() + seconds
        while not (self.folder / "run" / name).exists():
            assert not self.has_ended(), (self.code, self.errors)
            assert time.monotonic() < until, f"{name} does not come"
            time.sleep(0.005)

    def kill(self, number: int = signal.SIGKILL) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)

    @property
    def errors(self) -> list[str]:
        """Its lines on stderr."""
        return (self.folder / "stderr").read_text(errors="replace").splitlines()


def start(folder: Path, *more: str, before: Callable[[], None] = lambda: None) -> Child:
    """`vssn fit` into folder/run: a new run, or on from its last.ckpt where there is one.

    Args:
        before: what the process does first.
    """
    folder.mkdir(exist_ok=True)
    config = folder / "config.yaml"
    config.write_text(yaml.safe_dump(SETTINGS))
    arguments = ["fit", "--config", str(config), "--output", str(folder / "run"), *more]
    if (folder / "run" / "last.ckpt").exists():
        arguments.append("--resume")
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        return Child(pid, folder)
    code = 70
    try:
        os.setpgid(0, 0)
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
        for number, name in ((1, "stdout"), (2, "stderr")):
            os.dup2(os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
        before()
        code = vssn(arguments)
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        with contextlib.suppress(BaseException):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


# ---- What a kill may strike ----------------------------------------------------------------------------


def kill_at_event(folder: Path, number: int) -> Callable[[], None]:
    """The process kills itself before it opens, renames or removes a file of the run for so-manyth time."""
    seen = 0

    def look(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal seen
        if event not in ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir"):
            return
        if isinstance(arguments[0], str | os.PathLike) and os.fspath(arguments[0]).startswith(str(folder / "run")):
            seen += 1
            if seen == number:
                os.kill(os.getpid(), signal.SIGKILL)

    return lambda: sys.addaudithook(look)


def kill_in_write(number: int, share: float) -> Callable[[], None]:
    """The process kills itself in the so-manyth checkpoint, when that share of the bytes is written."""

    def prepare() -> None:
        written = 0

        def write(path: Path, content: Any) -> None:
            nonlocal written
            written += 1
            if written == number:
                content = content[: int(share * len(content))]
            with open(path, "wb") as file:
                file.write(content)
            if written == number:
                os.kill(os.getpid(), signal.SIGKILL)

        Path.write_bytes = write  # type: ignore[assignment,method-assign]

    return prepare


# ---- The undisturbed run, and comparisons with it ------------------------------------------------------


def undisturbed(folder: Path) -> Path:
    """A whole run in folder/run; folder/1.ckpt and so on are its checkpoints after each epoch."""

    def keep_all() -> None:
        save = RunDirectory._save

        def saving(own: RunDirectory, trainer: Any, name: str) -> None:
            save(own, trainer, name)
            if name == "last.ckpt":
                (folder / f"{trainer.current_epoch + 1}.ckpt").write_bytes((own.folder / name).read_bytes())

        RunDirectory._save = saving  # type: ignore[method-assign]

    child = start(folder, before=keep_all)
    code = child.wait()
    assert code == 0, child.errors
    return folder


def same(a: Any, b: Any) -> bool:
    """Bit for bit."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and a.equal(b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(value, b[key]) for key, value in a.items())
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


def differences_of(one: Path, two: Path) -> list[str]:
    """What of two checkpoints is not the same: weights, optimizer, epoch, score."""
    a, b = read_checkpoint(one), read_checkpoint(two)
    keys = ("state_dict", "optimizer_states", "global_step")
    wrong = [key for key in keys if not same(a[key], b[key])]
    return wrong + [key for key in ("epoch", "valid_elbo_per_frame") if a["vssn"][key] != b["vssn"][key]]


def rows_of(run: Path) -> list[dict[str, str]]:
    with open(run / "metrics.csv", newline="") as file:
        return [{key: value for key, value in row.items() if key != "seconds"} for row in csv.DictReader(file)]


def check_kept(run: Path, truth: Path) -> int:
    """Whatever checkpoint is there loads, and is that of the undisturbed run after as many epochs; the epochs of
    last.ckpt, 0 where there is none. Raises AssertionError."""
    epochs = 0
    for name in ("last.ckpt", "best.ckpt"):
        if (run / name).exists():
            load_model(run / name)
            epoch = read_checkpoint(run / name)["vssn"]["epoch"]
            wrong = differences_of(run / name, truth / f"{epoch}.ckpt")
            assert not wrong, f"{name} of epoch {epoch}: {wrong}"
            epochs = max(epochs, epoch) if name == "last.ckpt" else epochs
    if epochs:
        found, wanted = rows_of(run)[:epochs], rows_of(truth / "run")[:epochs]
        assert found == wanted, f"metrics.csv: {found} in the place of {wanted}"
    return epochs


def check_whole(run: Path, truth: Path) -> None:
    """All that the run wrote is what the undisturbed one wrote. Raises AssertionError."""
    assert check_kept(run, truth) == EPOCHS
    assert not differences_of(run / "best.ckpt", truth / "run" / "best.ckpt"), "best.ckpt is another epoch's"
    assert rows_of(run) == rows_of(truth / "run")
    assert {path.name for path in run.iterdir()} == FILES, sorted(path.name for path in run.iterdir())


# ---- Kills ---------------------------------------------------------------------------------------------


@dataclass
class Count:
    kills: int = 0
    in_writes: int = 0
    resumes: int = 0
    runs: int = 0
    mismatches: int = 0
    said: list[str] = field(default_factory=list)


def kill_until_done(folder: Path, truth: Path, draw: random.Random, seconds: float, kills: int, count: Count) -> None:
    """One run, killed again and again, up to so many times in all; then to its end."""
    run = folder / "run"
    while True:
        kind = draw.choice(("moment", "event", "write")) if count.kills < kills else "none"
        before = {
            "event": lambda: kill_at_event(folder, draw.randint(1, 40)),
            "write": lambda: kill_in_write(draw.randint(1, 4), draw.random()),
        }.get(kind, lambda: lambda: None)()
        count.resumes += (run / "last.ckpt").exists()
        child = start(folder, before=before)
        if kind == "moment":
            time.sleep(draw.uniform(0, seconds))
            child.kill()
        code = child.wait()
        done = code == 2 and f"has done {EPOCHS} epochs of {EPOCHS}" in child.errors[0]  # killed behind its last epoch
        assert code in (0, 137) or done, (code, child.errors)
        if code != 137:
            break
        count.kills += 1
        count.in_writes += kind != "moment" or any(run.glob("*.part"))
        check_kept(run, truth)
    check_whole(run, truth)


def kill_many(folder: Path, kills: int, minutes: float, seed: int) -> Count:
    """Runs, each killed several times, until there were so many kills or the time is over."""
    until = time.monotonic() + 60 * minutes
    draw, count = random.Random(seed), Count()
    started = time.monotonic()
    truth = undisturbed(folder / "truth")
    seconds = time.monotonic() - started
    while count.kills < kills and time.monotonic() < until:
        count.runs += 1
        try:
            kill_until_done(folder / str(count.runs), truth, draw, seconds, kills, count)
        except AssertionError as failure:
            count.mismatches += 1
            count.said.append(f"run {count.runs}: {failure}")
    return count


# ---- Other faults: each is one line, and what was saved is there ---------------------------------------


def slowly() -> None:
    """Updates take a while: there is time to do something to the run."""
    from vssn.training.module import TrainingModule

    step = TrainingModule.training_step

    def slow(*arguments: Any) -> None:
        time.sleep(0.05)
        step(*arguments)

    TrainingModule.training_step = slow  # type: ignore[method-assign]


def signalled(folder: Path, number: int, *more: str, group: bool = False, first: str = "last.ckpt") -> Child:
    child = start(folder, *more, before=slowly)
    child.wait_for(first)
    os.killpg(child.pid, number) if group else child.kill(number)
    return child


def gone(folder: Path, where: Path | None, first: str) -> Child:
    """The run's folder is removed, or moved, behind that file."""
    child = start(folder, before=slowly)
    child.wait_for(first)
    aside = where or folder / "aside"
    (folder / "run").rename(aside)
    return child


def twice(folder: Path) -> Child:
    first = start(folder, before=slowly)
    first.wait_for("last.ckpt")
    second = start(folder)
    second.wait()
    assert first.wait() == 0
    return second


def limited(folder: Path) -> Child:
    """No file may be larger than half a checkpoint, from the second run on."""
    import resource

    assert start(folder, "--set", "training.max_epochs=2").wait() == 0
    half = (folder / "run" / "last.ckpt").stat().st_size // 2
    return start(folder, before=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (half, half)))


@contextlib.contextmanager
def small_disk(place: Path, size: int) -> Iterator[None]:
    """A disk of so many bytes there. Raises PermissionError where this process may not mount one."""
    place.mkdir(parents=True)
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)], capture_output=True, check=False
    )
    if done.returncode:
        raise PermissionError(done.stderr.decode(errors="replace"))
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def write_protected(folder: Path) -> Child:
    """As for someone who is not root: the folder refuses from the second epoch on."""
    folder.mkdir()
    (folder / "run").mkdir()
    for path in (folder, folder / "run"):
        os.chown(path, 65534, 65534)

    def as_nobody() -> None:
        os.setuid(65534)
        slowly()

    child = start(folder, before=as_nobody)
    child.wait_for("last.ckpt")
    (folder / "run").chmod(0o555)
    return child


FAULTS: dict[str, tuple[Callable[[Path], Child], int, str]] = {
    "SIGTERM": (lambda folder: signalled(folder, signal.SIGTERM), 143, "vssn: terminated; "),
    "SIGTERM early": (
        lambda folder: signalled(folder, signal.SIGTERM, first="config.yaml"),
        143,
        "vssn: terminated; nothing is kept",
    ),
    "SIGTERM to all": (
        lambda folder: signalled(folder, signal.SIGTERM, "--set", "data.workers=2", group=True),
        143,
        "vssn: terminated; ",
    ),
    "SIGINT": (lambda folder: signalled(folder, signal.SIGINT), 130, "vssn: interrupted; "),
    "SIGINT to all": (
        lambda folder: signalled(folder, signal.SIGINT, "--set", "data.workers=2", group=True),
        130,
        "vssn: interrupted; ",
    ),
    "removed": (lambda folder: gone(folder, None, "last.ckpt"), 2, "vssn: error: training.output: "),
    "removed early": (lambda folder: gone(folder, None, "config.yaml"), 2, "vssn: error: training.output: "),
    "two processes": (twice, 2, "vssn: error: training.output: another process trains in "),
    "file size": (limited, 2, "vssn: error: training.output: cannot write "),
}


def check_fault(folder: Path, name: str, truth: Path) -> None:
    """The fault is one line and an exit code; the run then goes on as if nothing had been. Raises AssertionError."""
    do, wanted, beginning = FAULTS[name]
    child = do(folder)
    code = child.wait()
    assert code == wanted, (name, code, child.errors)
    assert len(child.errors) == 1, (name, child.errors)
    assert child.errors[0].startswith(beginning), (name, child.errors)
    go_on(folder, truth)


def go_on(folder: Path, truth: Path) -> None:
    """What was saved is there, and the run goes on to its end. Raises AssertionError."""
    if (folder / "aside").exists():
        (folder / "aside").rename(folder / "run")
    check_kept(folder / "run", truth)
    if (
        not (folder / "run" / "last.ckpt").exists()
        or read_checkpoint(folder / "run" / "last.ckpt")["vssn"]["epoch"] < EPOCHS
    ):
        child = start(folder)
        code = child.wait()
        assert code == 0, child.errors
    check_whole(folder / "run", truth)


def check_full_disk(folder: Path, size: int, truth: Path) -> int:
    """A disk that holds so many bytes: one line, and what was saved can be read; its epochs. Raises AssertionError, and
    PermissionError where this process may not mount one."""
    with small_disk(folder / "run", size):
        child = start(folder)
        code = child.wait()
        assert code == 2, (code, child.errors)
        assert len(child.errors) == 1, child.errors
        assert "cannot write" in child.errors[0], child.errors
        assert "No space left on device" in child.errors[0], child.errors
        assert not list((folder / "run").glob("*.part"))
        return check_kept(folder / "run", truth)


def check_write_protected(folder: Path, truth: Path) -> None:
    """Raises AssertionError, and PermissionError where this process may not become nobody."""
    if os.getuid() != 0:
        raise PermissionError("not root")
    child = write_protected(folder)
    assert child.wait() == 2, child.errors
    assert len(child.errors) == 1, child.errors
    assert "cannot write" in child.errors[0], child.errors
    (folder / "run").chmod(0o755)
    go_on(folder, truth)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python tests/faults.py", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=100, metavar="N", help="in all (%(default)s)")
    parser.add_argument("--minutes", type=float, default=60.0, help="no run is begun after that (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="other seeds kill at other moments (%(default)s)")
    parser.add_argument("--record", action="store_true", help="add what was counted to results/reliability")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    faults, failed = 0, []
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        folder.chmod(0o755)
        count = kill_many(folder, options.kills, options.minutes, options.seed)
        truth, size = folder / "truth", (folder / "truth" / "1.ckpt").stat().st_size
        checks: list[tuple[str, Callable[[Path], Any]]] = [
            (name, lambda at, name=name: check_fault(at, name, truth))
            for name in FAULTS  # type: ignore[misc]
        ]
        checks += [
            (f"full disk, {share} checkpoints", lambda at, share=share: check_full_disk(at, int(share * size), truth))  # type: ignore[misc]
            for share in (0.1, 0.5, 1.5, 2.5)
        ]
        checks.append(("read-only", lambda at: check_write_protected(at, truth)))
        for name, check in checks:
            try:
                check(folder / name.replace(" ", "-"))
                faults += 1
            except PermissionError:
                print(f"{name}: left out, it needs root")
            except AssertionError as failure:
                failed.append(f"{name}: {failure}")
    print(
        f"{count.kills} kills in {count.runs} runs, {count.in_writes} of them in a write; {count.resumes} resumed; "
        f"{count.mismatches} mismatches"
    )
    print(f"{faults} of {faults + len(failed)} other faults were one line each, with nothing lost")
    for line in (*count.said, *failed):
        print(line, file=sys.stderr)
    if options.record:
        figures = {"kills": count.kills, "kills in a write": count.in_writes, "runs": count.runs}
        figures |= {"resumes": count.resumes, "mismatches": count.mismatches}
        figures |= {"other faults": faults + len(failed), "of them not as said": len(failed)}
        record("faults", packages=("pytorch-lightning",), **figures)
    return 1 if count.said or failed else 0


if __name__ == "__main__":
    sys.exit(main())
