"""Ctrl-C while a command of this package is still being imported, PyTorch for seconds: one line and the exit code of an
interrupt, as behind that. `vssn` imports this module ahead of PyTorch, `vssn.utils.command.run_command` ends it. In any
other program that imports vssn, and where SIGINT is not to be noticed, nothing is changed.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading

_COMMANDS = {"vssn": "vssn", "vssn.exe": "vssn", "vssn.__main__": "vssn", "vssn.demo": "demo"}
INTERRUPTED = 130  # as a shell names the end by SIGINT


def command_of(arguments: list[str], original: list[str]) -> str | None:
    """The command that a process is, by `sys.argv` and `sys.orig_argv` as they are while it starts; None: none of ours.
    A process that multiprocessing has started has the arguments of its parent, not its original ones."""
    if not 0 < len(arguments) <= len(original):
        return None
    program = original[-len(arguments)]
    if arguments[0] == "-m":
        return _COMMANDS.get(program.removeprefix("-m"))
    return _COMMANDS.get(os.path.basename(program)) if program == arguments[0] else None


def stop(*_: object) -> None:
    """At once: an exception could be taken for one of what is being imported."""
    with contextlib.suppress(OSError):
        os.write(2, f"{_name}: interrupted\n".encode())
    os._exit(INTERRUPTED)


def end() -> None:
    """From now on SIGINT raises KeyboardInterrupt."""
    if signal.getsignal(signal.SIGINT) is stop:
        signal.signal(signal.SIGINT, signal.default_int_handler)


_name = command_of(sys.argv, sys.orig_argv)
if (
    _name is not None
    and threading.current_thread() is threading.main_thread()
    and signal.getsignal(signal.SIGINT) is signal.default_int_handler
):
    signal.signal(signal.SIGINT, stop)
