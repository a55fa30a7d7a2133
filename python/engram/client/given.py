"""What was given to a stream and has not gone to its flow yet: frames, and single observations until they make one.

Ctrl-C may come between any two steps of a thread, so each change is one: a row that is appended, or a `Given` that is
put in the place of another.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from engram._convert import Arguments
from engram._engine import encode_frame
from engram.client.frames import Sent

_DEPTH = 20  # of metadata, and more than the engine takes


class Given:
    """Observations in order of their sequences: those of the frames, then the single ones.

    Attributes
    ----------
    frames : list of Sent
    frame_bytes : int
        Of the frames.
    """

    def __init__(self, first: int, frames: list[Sent]) -> None:
        self._first = first
        self._rows: list[tuple[Arguments, int]] = []  # with the bytes of all up to it
        self.frames = frames
        self.frame_bytes = sum(len(sent.data) for sent in frames)

    @property
    def next(self) -> int:
        """The sequence of whatever comes next."""
        return self._first + len(self._rows)

    @property
    def count(self) -> int:
        """Single observations."""
        return len(self._rows)

    @property
    def size(self) -> int:
        """Bytes that they would take as frames of one."""
        return self._rows[-1][1] if self._rows else 0

    def add(self, row: Arguments, size: int) -> int:
        """One more, which takes so many bytes alone; its sequence."""
        self._rows.append((row, self.size + size))
        return self.next - 1

    def cut(self, dim: int, metric: str) -> Given:
        """The same with frames of the single ones: of each run that fills the same columns and has no key twice."""
        made: list[Sent] = []
        run: list[Arguments] = []
        keys: set[str] = set()
        first = self._first
        for row in [*(row for row, _ in self._rows), None]:
            own = set() if row is None else {key for key in row[5] or () if key is not None}
            if run and (row is None or _shape(row) != _shape(run[0]) or own & keys):
                made.append(Sent(first, len(run), encode_frame(_joined(run), dim, metric, False)))
                first += len(run)
                run, keys = [], set()
            if row is not None:
                run.append(row)
                keys |= own
        return Given(first, [*self.frames, *made])

    def and_frame(self, count: int, data: bytes) -> Given:
        """The same, without single ones, and one frame more."""
        return Given(self._first + count, [*self.frames, Sent(self._first, count, data)])


def owned(row: Arguments) -> Arguments:
    """Return the row without anything that its giver might change."""
    vectors, texts, metadata, times, confidence, keys = row
    own: Any = None if metadata is None else [_copy(one, _DEPTH) for one in metadata]
    return None if vectors is None else vectors.copy(), texts, own, times, confidence, keys


def _copy(value: Any, depth: int) -> Any:
    if not depth:
        return value
    if isinstance(value, Mapping):
        return {name: _copy(one, depth - 1) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_copy(one, depth - 1) for one in value]
    return value.copy() if isinstance(value, np.ndarray) else value


def _shape(row: Arguments) -> tuple[bool, ...]:
    return tuple(column is not None for column in row)


def _joined(rows: list[Any]) -> Arguments:
    def arrays(at: int) -> Any:
        return None if rows[0][at] is None else np.concatenate([row[at] for row in rows])

    def lists(at: int) -> Any:
        return None if rows[0][at] is None else [item for row in rows for item in row[at]]

    return arrays(0), lists(1), lists(2), arrays(3), arrays(4), lists(5)
