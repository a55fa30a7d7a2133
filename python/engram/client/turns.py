"""A line of callers: one at a time, first come, first served."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future, InvalidStateError
from contextlib import asynccontextmanager, suppress
from typing import TypeVar

from engram._exceptions import Timeout

_T = TypeVar("_T")


#: A place in the line; done when its turn has come, or who has it does not wait any more.
_Ticket = Future[None]


def seconds_left(until: float | None) -> float | None:
    """Return the seconds until a monotonic time."""
    return None if until is None else max(until - time.monotonic(), 0.0)


class Turns:
    """The line. A ticket leaves it at any time, whatever has become of it: who is interrupted is in nobody's way."""

    def __init__(self, late: str) -> None:
        self._late = late  # what is said to who waited too long
        self._lock = threading.Lock()
        self._line: deque[_Ticket] = deque()

    @property
    def taken(self) -> bool:
        """Whether somebody has the turn, or waits for it."""
        return bool(self._line)

    def run(self, call: Callable[[], _T], until: float | None) -> _T:
        """Call when the turn has come. Raises `Timeout` at `until`, a monotonic time."""
        mine = _Ticket()
        try:
            self._enter(mine)
            try:
                mine.result(seconds_left(until))
            except TimeoutError:
                raise Timeout(self._late) from None
            return call()
        finally:
            try:
                self._leave(mine)
            except KeyboardInterrupt:  # whoever waits behind does not know of it
                self._leave(mine)
                raise

    @asynccontextmanager
    async def turn(self, until: float | None) -> AsyncIterator[None]:
        """Stand in line, at once, and wait for the turn; no thread is held. Raises `Timeout` at `until`."""
        mine = _Ticket()
        self._enter(mine)
        try:
            if not mine.done():  # else there is no time that could be over
                await self._wait(mine, until)
            yield
        finally:
            self._leave(mine)

    async def _wait(self, ticket: _Ticket, until: float | None) -> None:
        try:
            async with asyncio.timeout(seconds_left(until)):
                await asyncio.wrap_future(ticket)
        except TimeoutError:
            raise Timeout(self._late) from None

    def _enter(self, ticket: _Ticket) -> None:
        with self._lock:
            self._line.append(ticket)
            self._call()

    def _leave(self, ticket: _Ticket) -> None:
        """Go; twice is fine."""
        with self._lock:
            if ticket in self._line:
                self._line.remove(ticket)
            self._call()

    def _call(self) -> None:
        if self._line and not self._line[0].done():
            with suppress(InvalidStateError):  # cancelled meanwhile: it will leave
                self._line[0].set_result(None)
