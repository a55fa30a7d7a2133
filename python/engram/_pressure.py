"""Who is called when a level changes: one thread an engine, started by the first that wants to know."""

from __future__ import annotations

import logging
import threading
import weakref
from collections.abc import Callable

from engram import _core
from engram._exceptions import Closed

#: Called with the level's name and the number of observations to send at once.
OnPressure = Callable[[str, int], None]

_WAIT_MS = 500  # between two looks whether the engine is still wanted

log = logging.getLogger("engram")


class Watch:
    """The callbacks of an engine's sessions, by session id."""

    def __init__(self, core: _core.Engine) -> None:
        self._core = core
        self._callbacks: dict[int, OnPressure] = {}
        self._lock = threading.Lock()
        self._running = False

    def set(self, session: int, callback: OnPressure | None) -> None:
        """Call `callback` from now on, or nobody."""
        with self._lock:
            if callback is None:
                self._callbacks.pop(session, None)
                return
            self._callbacks[session] = callback
            if not self._running:
                self._running = True
                threading.Thread(target=_run, args=(weakref.ref(self),), name="engram-pressure", daemon=True).start()

    def _tell(self) -> bool:
        try:
            told = self._core.next_levels(_WAIT_MS)
        except Closed:
            return False
        for session, level, advised_batch in told:
            callback = self._callbacks.get(session)
            if callback is not None:
                try:
                    callback(level, advised_batch)
                except Exception:
                    log.exception("a callback for the level of a space raised")
        return True


def _run(watch: weakref.ref[Watch]) -> None:
    # An engine that nobody holds any more ends its thread.
    while (one := watch()) is not None and one._tell():
        del one
