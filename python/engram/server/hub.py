"""Who is told what submitted frames came to, and recalls: one drain a wake, whatever the number of streams."""

from __future__ import annotations

import asyncio
import weakref
from typing import Protocol

from engram._engine import Engine
from engram._exceptions import InvalidArgument
from engram._reads import AskedRecall
from engram.server.log import log

_DRAINED = 256  # completions a wake: the loop is not held for long

#: Completions are told once: two servers would take each other's.
_served: weakref.WeakSet[Engine] = weakref.WeakSet()


class Listener(Protocol):
    """Who speaks for a session, on the loop."""

    def told(self, told: bytes) -> None:
        """Hear the bytes of a `Told`."""
        ...

    def fence(self) -> None:
        """Somebody else speaks now."""
        ...


class Hub:
    """The listeners of an engine's sessions, by the session's id; and who waits for recalls, by theirs."""

    def __init__(self, engine: Engine, loop: asyncio.AbstractEventLoop, read_threads: int) -> None:
        self._engine = engine
        self._loop = loop
        self._read_threads = read_threads
        self._waiting: dict[int, asyncio.Future[None]] = {}
        self._fds = engine.completions_fd, engine._answered_fd
        self._listeners: dict[int, Listener] = {}
        if engine in _served:
            raise InvalidArgument("another server has this engine", field="engine", index=None)
        _served.add(engine)
        for fd, wake in zip(self._fds, (self._tell, self._answer), strict=True):
            loop.add_reader(fd, wake)

    def listen(self, session: int, listener: Listener) -> None:
        """Tell this one from now on; whoever was told before is fenced."""
        before = self._listeners.get(session)
        self._listeners[session] = listener
        if before is not None:
            before.fence()

    def forget(self, session: int, listener: Listener) -> None:
        """Tell it no more, if it is still the one that is told."""
        if self._listeners.get(session) is listener:
            del self._listeners[session]

    async def batch(self, recall: AskedRecall) -> tuple[bytes, bool]:
        """Wait for the next batch, a serialized `RecallResponse`, and whether it is the last; raise what went wrong."""
        future = self._waiting[recall.id] = self._loop.create_future()
        try:
            recall.ask(self._read_threads)
            await future
        finally:
            del self._waiting[recall.id]
        return recall.take()

    def _tell(self) -> None:
        for session, told in self._engine.drain_completions(_DRAINED):
            listener = self._listeners.get(session)
            if listener is not None:
                try:
                    listener.told(told)
                except Exception as error:  # the others are still to be told
                    log.error("a stream could not be told", exc_info=error)

    def _answer(self) -> None:
        for recall in self._engine._drain_answered(_DRAINED):
            future = self._waiting.get(recall)
            if future is not None and not future.done():
                future.set_result(None)

    def close(self) -> None:
        """Watch the descriptors no more."""
        _served.discard(self._engine)
        for fd in self._fds:
            self._loop.remove_reader(fd)
