"""A place that one process has at a time."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path

from vssn.errors import RunningError
from vssn.utils.packages import needing

with needing("train"):
    import filelock

# What file systems say that know no locks, some network ones: there two processes are not kept apart.
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


@contextlib.contextmanager
def alone(file: Path, message: str) -> Iterator[None]:
    """Locks the file, which is there meanwhile; a process that is killed leaves it, and no lock.

    Raises:
        RunningError: another process has it; with the message.
        OSError: the file cannot be made.
    """
    lock = filelock.FileLock(file)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        raise RunningError(message) from None
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # first, while no other can have locked it
            file.unlink()
        lock.release()
