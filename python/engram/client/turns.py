"""A line of callers: one at a time, first come, first served.

Who stands first has the turn; nothing else says so. To be woken is a hint, and who waits also looks by himself: Ctrl-C
may come between any two steps of who should wake, and an event loop may end while a caller of its stands in the line.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import TypeVar

from engram._convert import duration
from engram._exceptions import Timeout

_T = TypeVar("_T")

_LOOK_SECONDS = 1.0


def deadline(timeout: float | None) -> float | None:
    """Return the monotonic time at which so many seconds from now are over."""
    return None if timeout is None else time.monotonic() + duration("timeout", timeout)


def seconds_left(until: float | None) -> float | None:
    """Return the seconds until a monotonic time."""
    return None if until is None else max(until - time.monotonic(), 0.0)


class _Thread:
    """Waits by a lock of C, that Ctrl-C cannot leave half taken."""

    is_gone = False

    def __init__(self) -> None:
        self._asleep = threading.Lock()
        self._asleep.acquire()

    def wake(self) -> None:
        with suppress(RuntimeError):  # it is awake
            self._asleep.release()

    def wait(self, seconds: float) -> None:
        self._asleep.acquire(timeout=seconds)


class _Coroutine:
    """Waits on its loop."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._woken = asyncio.Event()

    @property
    def is_gone(self) -> bool:
        return self._loop.is_closed()

    def wake(self) -> None:
        with suppress(RuntimeError):  # it is gone
            self._loop.call_soon_threadsafe(self._woken.set)

    async def wait(self, seconds: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._woken.wait()
        self._woken.clear()


class Turns:
    """The line."""

    def __init__(self, late: str) -> None:
        self._late = late  # what is said to who waited too long
        self._line: deque[_Thread | _Coroutine] = deque()  # each change of it is one step

    @property
    def taken(self) -> bool:
        """Whether somebody has the turn, or waits for it."""
        return bool(self._line)

    def run(self, call: Callable[[], _T], until: float | None) -> _T:
        """Call when the turn has come. Raises `Timeout` at `until`, a monotonic time."""
        mine = _Thread()
        try:
            self._line.append(mine)
            while not self._is_first(mine):
                mine.wait(self._patience(until))
            return call()
        finally:
            try:
                self._leave(mine)
            except KeyboardInterrupt:  # it may stand there still
                self._leave(mine)
                raise

    @asynccontextmanager
    async def turn(self, until: float | None) -> AsyncIterator[None]:
        """Stand in line, at once, and wait for the turn; no thread is held. Raises `Timeout` at `until`."""
        mine = _Coroutine()
        self._line.append(mine)
        try:
            while not self._is_first(mine):
                await mine.wait(self._patience(until))
            yield
        finally:
            self._leave(mine)

    def _patience(self, until: float | None) -> float:
        left = seconds_left(until)
        if left == 0.0:
            raise Timeout(self._late)
        return _LOOK_SECONDS if left is None else min(left, _LOOK_SECONDS)

    def _is_first(self, mine: _Thread | _Coroutine) -> bool:
        while (first := self._line[0]) is not mine:
            if not first.is_gone:
                return False
            self._leave(first)
        return True

    def _leave(self, place: _Thread | _Coroutine) -> None:
        """Go; twice is fine."""
        with suppress(ValueError):
            self._line.remove(place)
        with suppress(IndexError):
            self._line[0].wake()
