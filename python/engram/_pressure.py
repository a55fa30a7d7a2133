"""Who is called when a level changes: one thread an engine, started by the first that wants to know.

The thread keeps neither the engine nor a session: a session that nobody holds any more takes its callback with it.
"""

from __future__ import annotations

import logging
import threading
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

from engram import _core

if TYPE_CHECKING:
    from engram._session import Session

#: Called with the level's name and the number of observations to send at once.
OnPressure = Callable[[str, int], None]

_Listening: TypeAlias = "weakref.WeakValueDictionary[tuple[int, int], Session]"

_WAIT_MS = 60_000  # the engine's end wakes the thread

log = logging.getLogger("engram")


class Watch:
    """The sessions of an engine that have a callback, by id and epoch."""

    def __init__(self, core: _core.Engine) -> None:
        self._core = core
        self._listening: _Listening = weakref.WeakValueDictionary()
        self._lock = threading.Lock()
        self._running = False

    def add(self, session: Session) -> None:
        """Call the session's callback from now on."""
        with self._lock:
            self._listening[session._core.id, session._core.epoch] = session
            if not self._running:
                self._running = True
                arguments = (self._core.heard(), self._listening)
                threading.Thread(target=_run, args=arguments, name="engram-pressure", daemon=True).start()

    def remove(self, session: Session) -> None:
        """Call it no more."""
        with self._lock:
            self._listening.pop((session._core.id, session._core.epoch), None)


def _run(heard: _core.Heard, listening: _Listening) -> None:
    while (told := heard.next(_WAIT_MS)) is not None:
        for session, epoch, level, advised_batch in told:
            _call(listening.get((session, epoch)), level, advised_batch)


def _call(session: Session | None, level: str, advised_batch: int) -> None:
    callback = None if session is None else session._on_pressure
    if callback is not None:
        try:
            callback(level, advised_batch)
        except BaseException:  # whatever it is, others are still to be called
            log.exception("a callback for the level of a space raised")
