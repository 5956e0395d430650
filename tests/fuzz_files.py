"""python tests/fuzz_files.py: damaged files of every form (tests/file_forms.py) for all that reads them.

A reader may take a file, or refuse it by an error of vssn.errors in one line; a command may end with 0 and nothing on
stderr, or with 2 and one line there. A crash, any other exception, more than SECONDS of processor time or MEMORY of
memory are faults; of each kind the first file is kept in --keep.

A file that is refused at a new place joins those from which the next ones are made. All is imported once; processes are
forked from there, each for BATCH inputs of a form.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import io
import json
import mmap
import os
import random
import re
import resource
import select
import signal
import struct
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from file_forms import Form, forms_in
from reliability_records import record

from vssn.cli import main as command
from vssn.errors import UserError
from vssn.training import heartbeat

SECONDS = 20  # of the processor, for one input
MEMORY = 3 << 30  # bytes beyond what the process has at its start
BATCH = 500  # inputs of a process
SHOWN = 50  # one of so many goes through the command line
POOL = 1000  # files that the next ones are made of, beside the whole ones
PATIENCE = 60  # times 10 seconds in which a process may stand still


@dataclass(eq=False)
class Tally:
    """What ran of a form, and what was found out."""

    form: Form
    wanted: int
    path: Path  # of the file
    begun: int = 0
    commands: int = 0
    seconds: float = 0.0  # of the processor
    pool: list[bytes] = field(default_factory=list)
    places: set[int] = field(default_factory=set)  # where files were refused
    faults: dict[str, str] = field(default_factory=dict)  # the first of each kind


# ---- One input ---------------------------------------------------------------------------------------


def look(tally: Tally, content: bytes, number: int) -> tuple[str | None, int]:
    """What is wrong with how the content is read, None: it is taken, or refused in one line; and the place where."""
    form, path = tally.form, tally.path
    for name, whole in form.beside.items():
        (path.parent / name).write_bytes(whole)
    path.write_bytes(content)
    try:
        if _is_command(form, number):
            return _fault_of_command(form.commands[number // SHOWN % len(form.commands)], path, form), 0
        form.readers[number % len(form.readers)](path)
    except UserError as error:
        return f"more than one line: {error}" if "\n" in str(error) else None, _place(error)
    except BaseException as error:
        own = [frame for frame in traceback.extract_tb(error.__traceback__) if "/vssn/" in frame.filename]
        at = f"{Path(own[-1].filename).name}:{own[-1].name}" if own else "?"
        return f"{type(error).__name__} in {at}: {' '.join(str(error).split())[:160]}", _place(error)
    return None, 0


def _is_command(form: Form, number: int) -> bool:
    return number % SHOWN == SHOWN - 1 and bool(form.commands)


def _fault_of_command(words: str, path: Path, form: Form) -> str | None:
    out, err = io.StringIO(), io.StringIO()
    root = path.parents[len(Path(form.name).parts)]
    filled = words.format(file=path, folder=path.parent, root=root).split()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), warnings.catch_warnings():
        warnings.resetwarnings()
        for kind in (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning):
            warnings.simplefilter("ignore", kind)  # as Python itself
        code = command(filled)
    lines = err.getvalue().splitlines()
    if (code == 0 and not lines) or (code == 2 and len(lines) == 1 and lines[0].startswith("vssn: error: ")):
        return None
    return f"{filled[0]} ends with {code} and says {lines[:3]}"


def _place(error: BaseException) -> int:
    """Every line that the error and those before it came through, and what the first one says."""
    lines: list[object] = []
    root = error
    while error is not None:
        lines += [
            type(error),
            *((frame.f_code.co_filename, line) for frame, line in traceback.walk_tb(error.__traceback__)),
        ]
        root, error = error, error.__cause__ or error.__context__
    said = re.sub(r"'[^']*'|\"[^\"]*\"|/\S*|[^a-z]+", " ", str(root).lower())
    return hash((*lines, " ".join(said.split())[:40]))


# ---- Many, in processes that may die -----------------------------------------------------------------


class Batch:
    """A process at work on some inputs of a form. It writes a line for a fault, or a new place; where it dies, `at`
    holds the number of the input."""

    def __init__(self, tally: Tally, todo: Sequence[int], seed: int) -> None:
        self.tally, self.todo, self.seed = tally, todo, seed
        self.at, self.text, self.still, self.before = mmap.mmap(-1, 8), b"", 0, b""
        self.at[:8] = struct.pack("<q", todo[0])
        self.reading, writing = os.pipe()
        self.pid = os.fork()
        if not self.pid:
            self._work(writing)
        os.close(writing)

    def _work(self, writing: int) -> None:
        code = 1
        try:
            for number in (signal.SIGPROF, signal.SIGTERM):
                signal.signal(number, signal.SIG_DFL)
            used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # what libtiff has to say
            warnings.simplefilter("ignore")
            for number in self.todo:
                self.at[:8] = struct.pack("<q", number)
                signal.setitimer(signal.ITIMER_PROF, SECONDS)
                content = self._content(number)
                said, place = look(self.tally, content, number)
                if said is not None or (place and place not in self.tally.places):
                    self.tally.places.add(place)
                    line = json.dumps([number, said, place, content.hex()]).encode() + b"\n"
                    while line:
                        line = line[os.write(writing, line) :]
            code = 0
        finally:
            os._exit(code)

    def _content(self, number: int) -> bytes:
        tally, draw = self.tally, random.Random(f"{self.seed}-{self.tally.path.name}-{number}")
        return tally.form.draw(draw, tally.pool if tally.pool and draw.random() < 0.5 else tally.form.seeds)

    def take(self) -> bool:
        """Reads what was written; whether the process has ended."""
        text = os.read(self.reading, 1 << 20)
        self.text += text
        return not text

    def watch(self) -> None:
        """Called every ten seconds of silence; ends a process that stands still."""
        self.still = self.still + 1 if self.at[:8] == self.before else 0
        self.before = self.at[:8]
        if self.still > PATIENCE:
            os.kill(self.pid, signal.SIGALRM)

    def end(self) -> tuple[list[tuple[int, str, bytes]], list[int]]:
        """Faults, with numbers and files, and the inputs that are left since the process died; the pool grows."""
        os.close(self.reading)
        _, status, usage = os.wait4(self.pid, 0)
        self.tally.seconds += usage.ru_utime + usage.ru_stime
        faults = []
        for line in self.text.split(b"\n")[:-1]:  # behind the last end a process that died was writing
            number, said, place, content = json.loads(line)
            if said is not None:
                faults.append((number, said, bytes.fromhex(content)))
            elif place not in self.tally.places and len(self.tally.pool) < POOL:
                self.tally.pool.append(bytes.fromhex(content))
            self.tally.places.add(place)
        if os.WIFEXITED(status) and os.WEXITSTATUS(status) == 0:
            return faults, []
        (last,) = struct.unpack("<q", self.at[:8])
        ended = signal.Signals(os.WTERMSIG(status)).name if os.WIFSIGNALED(status) else f"exit {os.WEXITSTATUS(status)}"
        said = {"SIGPROF": f"{SECONDS} s of the processor", "SIGALRM": "stands still"}.get(ended, f"dies of {ended}")
        faults.append((last, said, self.tally.path.read_bytes()))
        return faults, [number for number in self.todo if number > last]


def run(tallies: dict[str, Tally], minutes: float, seed: int, jobs: int, keep: Path) -> None:
    """Until all forms have their inputs, or time is over, or SIGTERM comes."""
    until = time.monotonic() + 60 * minutes
    ended: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: ended.append(number))
    running: dict[int, Batch] = {}
    for tally in tallies.values():
        for number, content in enumerate(tally.form.seeds):
            for command_too in (0, SHOWN * (number + 1) - 1) if number < 5 else (0,):
                _note(tallies, tally, command_too, look(tally, content, command_too or number)[0], content, keep)
    gc.collect()
    gc.freeze()  # else the children copy what the collector touches
    while True:
        for batch in _next(tallies, running, jobs if time.monotonic() < until and not ended else 0, seed):
            running[batch.reading] = batch
        if not running:
            gc.unfreeze()
            signal.signal(signal.SIGTERM, before)
            return
        ready, _, _ = select.select(list(running), [], [], 10)
        for batch in running.values() if not ready else ():
            batch.watch()
        for place in ready:
            if running[place].take():
                batch = running.pop(place)
                faults, rest = batch.end()
                for number, said, content in faults:
                    _note(tallies, batch.tally, number, said, content, keep)
                if rest:
                    again = Batch(batch.tally, rest, seed)
                    running[again.reading] = again


def _next(tallies: dict[str, Tally], running: dict[int, Batch], jobs: int, seed: int) -> Iterator[Batch]:
    """Of the forms that are furthest behind, each in one process at a time: its pool grows from batch to batch."""
    busy = [batch.tally for batch in running.values()]
    idle = [tally for tally in tallies.values() if tally.begun < tally.wanted and tally not in busy]
    for tally in sorted(idle, key=lambda tally: tally.begun / tally.wanted)[: max(0, jobs - len(running))]:
        todo = range(tally.begun, min(tally.begun + BATCH, tally.wanted))
        tally.begun += len(todo)
        tally.commands += sum(_is_command(tally.form, number) for number in todo)
        yield Batch(tally, todo, seed)


def _note(tallies: dict[str, Tally], tally: Tally, number: int, said: str | None, content: bytes, keep: Path) -> None:
    name = next(name for name, one in tallies.items() if one is tally)
    kind = "" if said is None else said.partition(": ")[0] if said[0].isupper() else re.sub(r"/\S+|\d+", "", said)
    if said is None or kind in tally.faults:
        return
    tally.faults[kind] = said
    keep.mkdir(parents=True, exist_ok=True)
    file = keep / f"{name}-{len(tally.faults)}-{tally.path.name}"
    file.write_bytes(content)
    print(f"{name}, input {number}: {said}\n    {file}", flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python tests/fuzz_files.py", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--inputs", type=int, default=100_000, metavar="N", help="in all (%(default)s)")
    parser.add_argument("--minutes", type=float, default=60.0, help="no batch is begun after that (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="other seeds draw other inputs (%(default)s)")
    parser.add_argument("--jobs", type=int, default=2, metavar="N", help="processes at once (%(default)s)")
    parser.add_argument("--only", nargs="+", default=(), metavar="FORM", help="these alone")
    parser.add_argument("--keep", type=Path, default=Path("build/fuzz-files"), help="folder of inputs at fault")
    parser.add_argument("--record", action="store_true", help="add what was counted to results/reliability")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    heartbeat.EVERY = 1e6  # a machine that stands still for a while is no second line
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as place:
        forms = forms_in(Path(place))
        forms = {name: form for name, form in forms.items() if not options.only or name in options.only}
        tallies = {}
        for name, form in forms.items():
            path = Path(place, name.strip("-"), form.name)
            path.parent.mkdir(parents=True)
            tallies[name] = Tally(form, options.inputs // len(forms), path)
        run(tallies, options.minutes, options.seed, options.jobs, options.keep)
    print(f"{'form':<20}{'inputs':>9}{'commands':>9}{'a second':>9}{'places':>9}{'faults':>9}")
    for name, tally in tallies.items():
        speed = tally.begun / max(tally.seconds, 1e-9)
        counts = (tally.begun, tally.commands, f"{speed:.0f}", len(tally.places), len(tally.faults))
        print(f"{name:<20}{''.join(f'{count:>9}' for count in counts)}")
        if options.record and tally.begun:
            figures = {"inputs": tally.begun, "through the command line": tally.commands}
            packages = ("pandas", "h5py", "pyarrow", "pillow", "symusic", "soundfile", "safetensors", "pydantic")
            record(name, topic="files", packages=packages, **figures, **{"kinds of fault": len(tally.faults)})
    faults = sum(len(tally.faults) for tally in tallies.values())
    print(f"{sum(tally.begun for tally in tallies.values())} inputs of {len(tallies)} forms, {faults} kinds of fault")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
