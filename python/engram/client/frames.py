"""Frames as a client sends them."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from engram._convert import Columns
from engram._exceptions import InvalidArgument, TooLarge

_BESIDE = 1_024  # bytes of a message that carries a frame


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
