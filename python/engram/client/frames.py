"""Frames as a client sends them, and observations until they make one."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from engram._convert import Columns
from engram._engine import join_frames
from engram._exceptions import InvalidArgument, TooLarge

_BESIDE = 1_024  # bytes of a message that carries a frame
_ABSENT_BYTES = 24  # that an observation takes in a frame for what others have, and it has not


@dataclass(slots=True, eq=False)
class Sent:
    """A frame, until it is acknowledged.

    Attributes
    ----------
    runs : list of (sequence, count, first generation)
        Acknowledged so far; generation 0: the id is not kept.
    rejected : list of (sequence, reason)
        Items that hold nothing.
    """

    first: int
    count: int
    data: bytes
    gives_up_at: float | None = None  # a time of the loop: a refusal after it is final
    future: asyncio.Future[Sent] | None = None
    runs: list[tuple[int, int, int]] = field(default_factory=list)
    rejected: list[tuple[int, str]] = field(default_factory=list)
    duplicates: int = 0

    @property
    def last(self) -> int:
        """Its last sequence."""
        return self.first + self.count - 1


def frame_message(first: int, frame: bytes) -> bytes:
    """Return an `ObserveRequest` with the frame and its first sequence, which stands in front."""
    head = b"\x08" + varint(first)
    return b"".join((b"\x12", varint(len(head) + len(frame)), head, frame))


def fits(frame: bytes, message_bytes_max: int) -> None:
    """Complain of a frame that no message can carry."""
    if len(frame) + _BESIDE > message_bytes_max:
        text = f"a batch of {len(frame)} bytes; the server takes messages of {message_bytes_max}"
        raise TooLarge(text, field="batch", index=None)


def varint(value: int) -> bytes:
    """Return a number as protobuf writes it."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def one_moment(columns: Columns) -> None:
    """Complain of what no batch may be, into however many frames it is cut (K1)."""
    if not columns.count:
        raise InvalidArgument("an empty batch: there is nothing to observe", field="batch", index=None)
    seen: set[str] = set()
    for i, key in enumerate(columns.keys or ()):
        if key in seen:
            text = f'the key "{key}" comes twice in one batch; a batch is one moment, send the later one after it'
            raise InvalidArgument(text, field="keys", index=i)
        if key is not None:
            seen.add(key)


def room_of(alone: bytes) -> int:
    """Return how much of a frame a single observation may take."""
    return len(alone) + _ABSENT_BYTES


class Given:
    """What was given to a stream and has not gone to its flow yet, in order: frames, then single observations.

    Ctrl-C may come between any two steps of a thread, so each change is one: an observation that is appended, or a
    `Given` that is put in the place of another.

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
