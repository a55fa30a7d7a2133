"""A line of callers: one at a time, first come, first served."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from typing import TypeVar

from engram._exceptions import Timeout

_T = TypeVar("_T")


class Ticket(Future[None]):
    """A place in the line; done when its turn has come. Cancelled, it does not wait for that any more."""


class Turns:
    """The line. A ticket leaves it at any time, whatever has become of it: who is interrupted is in nobody's way."""

    def __init__(self, late: str) -> None:
        self._late = late  # what is said to who waited too long
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
            self._call()

    def leave(self, ticket: Ticket) -> None:
        """Go; twice is fine."""
        with self._lock:
            if ticket in self._line:
                self._line.remove(ticket)
            self._call()

    def _call(self) -> None:
        if self._line and not self._line[0].done():
            with suppress(InvalidStateError):  # cancelled meanwhile: it will leave
                self._line[0].set_result(None)

    def run(self, call: Callable[[], _T], ticket: Ticket | None, until: float | None) -> _T:
        """Call when the turn of a ticket, or a new one, has come. Raises `Timeout` at `until`, a monotonic time."""
        mine = Ticket() if ticket is None else ticket
        try:
            if ticket is None:
                self.enter(mine)
            try:
                mine.result(None if until is None else max(until - time.monotonic(), 0.0))
            except TimeoutError:
                raise Timeout(self._late) from None
            return call()
        finally:
            try:
                self.leave(mine)
            except KeyboardInterrupt:  # whoever waits behind does not know of it
                self.leave(mine)
                raise
