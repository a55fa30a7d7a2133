"""Who is told what submitted frames came to: one drain a wake, whatever the number of streams."""

from __future__ import annotations

import asyncio
import weakref
from typing import Protocol

from engram._engine import Engine
from engram._exceptions import InvalidArgument
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
    """The listeners of an engine's sessions, by the session's id."""

    def __init__(self, engine: Engine, loop: asyncio.AbstractEventLoop) -> None:
        self._engine = engine
        self._loop = loop
        self._fd = engine.completions_fd
        self._listeners: dict[int, Listener] = {}
        if engine in _served:
            raise InvalidArgument("another server has this engine", field="engine", index=None)
        _served.add(engine)
        loop.add_reader(self._fd, self._wake)

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

    def _wake(self) -> None:
        for session, told in self._engine.drain_completions(_DRAINED):
            listener = self._listeners.get(session)
            if listener is not None:
                try:
                    listener.told(told)
                except Exception as error:  # the others are still to be told
                    log.error("a stream could not be told", exc_info=error)

    def close(self) -> None:
        """Watch the descriptor no more."""
        _served.discard(self._engine)
        self._loop.remove_reader(self._fd)
