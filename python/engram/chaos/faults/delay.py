"""Bytes come later."""

from __future__ import annotations

import random


class Delay:
    """Hold each piece for a while.

    Parameters
    ----------
    seconds : float
        The longest; each is drawn evenly below it.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def pause(self, draw: random.Random, size: int) -> float:
        """Seconds to hold a piece."""
        return draw.uniform(0.0, self._seconds)
