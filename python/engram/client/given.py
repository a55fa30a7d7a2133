"""What was given to a stream and has not gone to its flow yet: frames, and single observations until they make one.

Ctrl-C may come between any two steps of a thread, so each change is one: an observation that is appended, or a `Given`
that is put in the place of another.
"""

from __future__ import annotations

from engram._engine import join_frames
from engram.client.frames import Sent

_ABSENT_BYTES = 24  # that an observation takes in a frame for what others have, and it has not


def room_of(alone: bytes) -> int:
    """Return how much of a frame a single observation may take."""
    return len(alone) + _ABSENT_BYTES


class Given:
    """Observations in order of their sequences: those of the frames, then the single ones, each a frame of one.

    Attributes
    ----------
    frames : list of Sent
    frame_bytes : int
        Of the frames.
    """

    __slots__ = ("_first", "_single", "frame_bytes", "frames")

    def __init__(self, first: int, frames: list[Sent]) -> None:
        self._first = first
        self._single: list[tuple[bytes, int]] = []  # with the room of all up to it
        self.frames = frames
        self.frame_bytes = sum(len(sent.data) for sent in frames)

    @property
    def next(self) -> int:
        """The sequence of whatever comes next."""
        return self._first + len(self._single)

    @property
    def count(self) -> int:
        """Single observations."""
        return len(self._single)

    @property
    def size(self) -> int:
        """Bytes that a frame of them takes at most."""
        return self._single[-1][1] if self._single else 0

    def add(self, alone: bytes) -> int:
        """One more; its sequence."""
        self._single.append((alone, self.size + room_of(alone)))
        return self.next - 1

    def cut(self) -> Given:
        """The same with frames of the single ones."""
        made, first = [], self._first
        for count, frame in join_frames([alone for alone, _ in self._single]):
            made.append(Sent(first, count, frame))
            first += count
        return Given(first, [*self.frames, *made])

    def and_frame(self, count: int, data: bytes) -> Given:
        """The same, without single ones, and one frame more."""
        return Given(self._first + count, [*self.frames, Sent(self._first, count, data)])
