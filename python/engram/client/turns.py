"""A line of callers: one at a time, first come, first served."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager

from engram._exceptions import Timeout

FULL = "the buffer stays full: the server takes less than is observed"


class Ticket(Future[None]):
    """A place in the line; done when its turn has come."""


class Turns:
    """The line. A ticket leaves it at any time, whatever has become of it: who is interrupted is in nobody's way."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._line: deque[Ticket] = deque()

    @property
    def taken(self) -> bool:
        """Whether somebody has the turn, or waits for it."""
        return bool(self._line)

    def enter(self, ticket: Ticket) -> None:
        """Stand at the end of the line."""
        with self._lock:
            self._line.append(ticket)
            if self._line[0] is ticket:
                ticket.set_result(None)

    def leave(self, ticket: Ticket) -> None:
        """Go; twice is fine."""
        with self._lock:
            if ticket in self._line:
                self._line.remove(ticket)
            if self._line and not self._line[0].done():
                self._line[0].set_result(None)

    @contextmanager
    def turn(self, ticket: Ticket | None, until: float | None) -> Iterator[None]:
        """Wait for the turn of a ticket, or a new one, and have it. Raises `Timeout` at `until`, a monotonic time."""
        mine = Ticket() if ticket is None else ticket
        try:
            if ticket is None:
                self.enter(mine)
            try:
                mine.result(None if until is None else max(until - time.monotonic(), 0.0))
            except TimeoutError:
                raise Timeout(FULL) from None
            yield
        finally:
            self.leave(mine)
