"""How a command ends: with the exit code of what it ran, or with one line on stderr for a mistake of its user; and how
it writes: a file whole, or not at all."""

from __future__ import annotations

import argparse
import contextlib
import errno
import io
import json
import math
import os
import re
import secrets
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

from vssn.errors import TargetError, UserError
from vssn.utils import starting

# The last three as a shell names the ends by SIGINT, SIGPIPE and SIGTERM.
FAILED, INTERRUPTED, CLOSED, TERMINATED = 2, starting.INTERRUPTED, 141, 143


def to_json(content: object) -> str:
    """The text of a JSON file: null in the place of numbers that are not finite, which JSON does not have."""

    def plain(value: object) -> object:
        if isinstance(value, dict):
            return {name: plain(one) for name, one in value.items()}
        if isinstance(value, list | tuple):
            return [plain(one) for one in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return json.dumps(plain(content), indent=2, allow_nan=False) + "\n"


class Terminated(SystemExit):
    """SIGTERM came, a scheduler's say. Where nobody takes it the program ends, as it would have without it."""

    def __init__(self) -> None:
        super().__init__(TERMINATED)


@contextlib.contextmanager
def raising_terminated() -> Iterator[None]:
    """Inside, SIGTERM raises Terminated, as SIGINT raises KeyboardInterrupt: what is half done is cleared away. What
    fails because helpers have got it too, the workers of a loader say, is no fault of its own."""
    came = False
    before = signal.getsignal(signal.SIGTERM)
    if threading.current_thread() is not threading.main_thread() or before is not signal.SIG_DFL:
        yield
        return

    def terminate(*_: object) -> NoReturn:
        nonlocal came
        came = True
        raise Terminated

    signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    except Exception:
        if came:
            raise Terminated from None
        raise
    finally:
        signal.signal(signal.SIGTERM, before)


def run_command(name: str, function: Callable[[], int]) -> int:
    """Calls the function; the exit code. A fault of the program keeps its traceback."""
    starting.end()
    if isinstance(sys.stdout, io.TextIOWrapper):  # a path need not be text; stderr is like that from the start
        sys.stdout.reconfigure(errors="backslashreplace")

    def fail(message: str) -> int:
        print(f"{name}: error: {message}", file=sys.stderr)
        return FAILED

    try:
        with raising_terminated(), plain_warnings(name):
            code = function()
            sys.stdout.flush()
        return code
    except BrokenPipeError:  # the reader, `head` say, has gone; nor can what is left be written when Python ends
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return CLOSED
    except KeyboardInterrupt:
        print(f"{name}: interrupted", file=sys.stderr)
        return INTERRUPTED
    except Terminated:
        print(f"{name}: terminated", file=sys.stderr)
        return TERMINATED
    except MemoryError:
        return fail("out of memory; choose a smaller data set, model or batch_size")
    except OSError as error:  # a file or a disk that no part of the program looked after
        if error.strerror is None:
            raise
        where = f" {os.fsdecode(error.filename)}" if isinstance(error.filename, (str, bytes)) else ""
        return fail(f"cannot read or write{where} ({error.strerror}); check the path, its permissions and the disk")
    except UserError as error:
        return fail(str(error))


@contextlib.contextmanager
def plain_warnings(name: str) -> Iterator[None]:
    """Warnings are lines of the command, without the place in the program where they came up."""
    before = warnings.formatwarning
    warnings.formatwarning = lambda message, *_, **__: f"{name}: warning: {message}\n"
    try:
        yield
    finally:
        warnings.formatwarning = before


@contextlib.contextmanager
def writing(option: str, what: Path) -> Iterator[None]:
    """What fails to be written inside is a mistake of the option that named the place. Raises TargetError."""
    try:
        yield
    except OSError as error:
        if error.strerror is None:
            raise
        where = os.fsdecode(error.filename) if isinstance(error.filename, (str, bytes)) else what
        raise TargetError(f"{option}: cannot write {where} ({error.strerror}); name another place") from None


def of_user(path: str | Path) -> Path:
    """~ is the home of the user, and what stands for nobody's is left: Path.expanduser raises there."""
    return Path(os.path.expanduser(path))


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path to write to, this writer's alone; it takes the place of `path` when all is written. Of several writers of
    one file the last to end has it, whole. A writer that is killed leaves its part, which `parts_of` finds."""
    part = path.with_name(f"{_stem(path)}.{_unique()}.part")
    try:
        yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def parts_of(path: Path) -> list[Path]:
    """What writers of the file left there that were killed, and what others write now."""
    own = re.compile(re.escape(_stem(path)) + r"\.[0-9a-f]{12}\.part")
    return [entry for entry in path.parent.iterdir() if own.fullmatch(entry.name)]


def _stem(path: Path) -> str:
    """Of the name so much that with what stands behind it the part has one that file systems take, 255 bytes."""
    return path.name[:50]


def _unique() -> str:
    """Drawn by the system: no seed has a part in it, and forked processes differ."""
    return secrets.token_hex(6)


def check_target(option: str, file: Path) -> None:
    """Raises TargetError where the file could not be written, before hours of work for it."""
    folder = file.absolute().parent
    with writing(option, file):
        if not folder.is_dir():
            raise TargetError(f"{option}: there is no folder {folder}; make it first")
        if file.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(file))
        check_folder(folder)


def check_folder(folder: Path) -> None:
    """Makes the folder and, for a moment, a file in it. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    probe = folder / f".vssn-{_unique()}"
    probe.touch()
    probe.unlink()


def positive(text: str) -> int:
    """A whole number of at least 1, for argparse."""
    return _whole(text, 1)


def several(text: str) -> int:
    """A whole number of at least 2, for argparse."""
    return _whole(text, 2)


def seed(text: str) -> int:
    """What generators take, for argparse."""
    return _whole(text, 0, 2**64 - 1)


def threads(text: str) -> int:
    """For argparse: more of them than any machine runs end the process without a word of the reason."""
    return _whole(text, 1, 1024)


def _whole(text: str, least: int, most: int | None = None) -> int:
    try:
        value = int(text)
    except ValueError:
        value = least - 1
    if value < least or (most is not None and value > most):
        span = f"of at least {least}" if most is None else f"from {least} to {most}"
        raise argparse.ArgumentTypeError(f"expected a whole number {span}, got {text[:40]!r}")
    return value
