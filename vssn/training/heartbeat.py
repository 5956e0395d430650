"""Lines of a long command: none of its silences is longer than EVERY seconds, so that its log shows it alive."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from types import TracebackType

EVERY = 20.0  # seconds


def print_line(line: str) -> None:
    """At once, and in one piece beside what another thread prints."""
    print(f"{line}\n", end="", flush=True)


class Heartbeat:
    """Inside `with`, what the command is at is said whenever nothing was for EVERY seconds.

    Args:
        doing: what is at hand, such as "reading the data", or a function that tells; None: nothing is said.
        say: takes the lines.

    Its lines end with the seconds since `started`, which may be set.
    """

    def __init__(self, doing: str | Callable[[], str | None], say: Callable[[str], None] = print_line) -> None:
        self.doing, self._say = doing, say
        self.started = self.last = time.monotonic()
        self._ended = threading.Event()

    def say(self, line: str) -> None:
        """Says a line of the command itself."""
        self.last = time.monotonic()
        self._say(line)

    def __enter__(self) -> Heartbeat:
        self._thread = threading.Thread(target=self._beat, name="vssn-heartbeat", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()

    def _beat(self) -> None:
        while not self._ended.wait(max(0.01, self.last + EVERY - time.monotonic())):
            if time.monotonic() - self.last < EVERY:
                continue
            self.last = time.monotonic()
            doing = self.doing if isinstance(self.doing, str) else self.doing()
            if doing is not None:
                self._say(f"{doing}  {time.monotonic() - self.started:6.0f} s")
