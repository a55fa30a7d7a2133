"""The connection breaks, with what was on its way."""

from __future__ import annotations

import random


class Lost(Exception):
    """The connection is to be reset."""


class Reset:
    """Break a connection after so many bytes.

    Parameters
    ----------
    bytes_mean : int
        About how many; the chance is the same for each.
    """

    def __init__(self, bytes_mean: int) -> None:
        self._bytes_mean = bytes_mean

    def pause(self, draw: random.Random, size: int) -> float:
        """Seconds to hold a piece; raises `Lost`."""
        if draw.random() < size / self._bytes_mean:
            raise Lost
        return 0.0
