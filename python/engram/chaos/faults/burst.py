"""Bytes come all at once, after silence."""

from __future__ import annotations

import random
import time


class Burst:
    """Hold everything, let it go, hold it again.

    Parameters
    ----------
    seconds : float
        Of silence, and of the time in which bytes pass.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._begun = time.monotonic()

    def pause(self, draw: random.Random, size: int) -> float:
        """Seconds to hold a piece."""
        silent, left = divmod(time.monotonic() - self._begun, self._seconds)
        return self._seconds - left if silent % 2 else 0.0
