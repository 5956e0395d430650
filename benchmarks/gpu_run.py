"""Runs the steps of `make gpu`: each a process with a log and a time limit, ended with all its children."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from benchmarks.results import ROOT

PASSED, FAILED, OUT_OF_TIME = "passed", "failed", "out of time"
POLL_S = 0.1
GRACE_S = 3.0  # between SIGTERM and SIGKILL


class Step(NamedTuple):
    """What one step came to."""

    name: str
    status: str  # PASSED, FAILED or OUT_OF_TIME, perhaps with a reason behind it, or "left out: why"
    seconds: float = 0.0

    @property
    def ended_well(self) -> bool:
        return self.status.partition(":")[0] == PASSED


def table(steps: list[Step]) -> str:
    """One line a step."""
    width = max((len(step.name) for step in steps), default=0)
    return "\n".join(f"{step.name:{width}}  {step.status} ({step.seconds:.0f} s)" for step in steps)


def run(name: str, command: list[str], seconds: float, log: Path, **variables: str) -> Step:
    """One command in a session of its own, for at most `seconds`. Its output goes to `log` and is passed on to ours."""
    print(f"\n== {name} (at most {max(seconds, 0):.0f} s): {' '.join(command)}", flush=True)
    if seconds <= 0:
        return Step(name, f"{OUT_OF_TIME}: not started")
    begin = time.monotonic()
    with log.open("wb") as sink, log.open("rb") as source:
        try:
            process = subprocess.Popen(
                command, cwd=ROOT, env=os.environ | variables, stdin=subprocess.DEVNULL, stdout=sink,
                stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
        except OSError as error:
            return Step(name, f"{FAILED}: {error}")
        in_time = False
        try:
            while (code := process.poll()) is None and time.monotonic() - begin < seconds:
                time.sleep(POLL_S)
                _pass_on(source.read())
            in_time = code is not None
        finally:
            # Also where it ended by itself, and where we are interrupted: nothing is to run beside the next step.
            end_session(process)
            _pass_on(source.read())
    taken = time.monotonic() - begin
    if not in_time:
        return Step(name, OUT_OF_TIME, taken)
    return Step(name, PASSED if code == 0 else f"{FAILED}: exit status {code}", taken)


def end_session(process: subprocess.Popen[bytes]) -> None:
    """Ends a process that leads its session, and whatever it has started, in whichever session that is now."""
    found: set[int] = set()
    for which in (signal.SIGTERM, signal.SIGKILL):
        # Looked for anew: who is being ended may still start others.
        found |= descendants(process)
        for pid in found:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, which)
        until = time.monotonic() + GRACE_S
        while (process.poll() is None or found & alive()) and time.monotonic() < until:
            time.sleep(POLL_S / 2)
        found &= alive()
    if found:  # a driver's call that cannot be interrupted
        print(f"still there, though killed: {', '.join(str(pid) for pid in sorted(found))}", flush=True)


def descendants(process: subprocess.Popen[bytes]) -> set[int]:
    """The processes of its session and, while it runs, its children, theirs, and so on, whatever their session."""
    rows = [row for row in _processes() if row[1] != "Z"]
    found = {pid for pid, _, _, session in rows if session == process.pid}
    if process.poll() is None:
        found.add(process.pid)
    while more := {pid for pid, _, parent, _ in rows if parent in found} - found:
        found |= more
    return found


def alive() -> set[int]:
    """Every process that has not ended."""
    return {pid for pid, state, _, _ in _processes() if state != "Z"}


def _processes() -> Iterator[tuple[int, str, int, int]]:
    """(process, state, parent, session) of all, from /proc."""
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal():
            continue
        try:
            # Behind the name, which may hold spaces and brackets: state, parent, group, session.
            state, parent, _, of = (entry / "stat").read_text().rpartition(")")[2].split()[:4]
        except (OSError, ValueError):
            continue
        yield int(entry.name), state, int(parent), int(of)


def _pass_on(text: bytes) -> None:
    if text:
        sys.stdout.write(text.decode(errors="replace"))
        sys.stdout.flush()
