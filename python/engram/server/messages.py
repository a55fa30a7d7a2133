"""Between what the engine hands out and the messages of the wire."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engram._exceptions import InvalidArgument, TooLarge
from engram._types import Memory, to_datetime
from engram.v1 import service_pb2 as pb

_PAGE_BYTES = 2 << 20


def page_bytes(message_bytes_max: int) -> int:
    """Return how many bytes of memories to put into one message, unless one is larger."""
    return min(_PAGE_BYTES, message_bytes_max)


def check_size(message: bytes, bytes_max: int) -> None:
    """Complain of a message that is too large."""
    if len(message) > bytes_max:
        text = f"a message of {len(message)} bytes; at most {bytes_max} (message_bytes_max)"
        raise TooLarge(text, field="message", index=None)


def parse(kind: Any, message: bytes, bytes_max: int) -> Any:
    """Return a message of a kind."""
    check_size(message, bytes_max)
    try:
        return kind.FromString(message)
    except Exception:
        raise InvalidArgument(f"not a {kind.DESCRIPTOR.name}", field="message", index=None) from None


def vectors_in(name: str, data: bytes) -> NDArray[np.float32]:
    """Return little-endian float32 as an array."""
    if len(data) % 4:
        raise InvalidArgument(f"{name} has {len(data)} bytes; float32 takes four each", field=name, index=None)
    return np.frombuffer(data, dtype="<f4")


def where_in(text: str) -> dict[str, Any] | None:
    """Return a condition."""
    if not text:
        return None
    try:
        where = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidArgument(f"where is not JSON: {error}", field="where", index=None) from None
    if not isinstance(where, dict):
        raise InvalidArgument("where must be a JSON object", field="where", index=None)
    return where


def as_of_in(view: pb.View) -> int | datetime | None:
    """Return the moment that a read looks at."""
    which = view.WhichOneof("as_of")
    if which is None:
        return None
    return view.generation if which == "generation" else to_datetime(view.time)


def how_in(how: pb.How) -> dict[str, Any]:
    """Return keyword arguments of a recall."""
    return {
        "exact": how.exact,
        "ef": how.ef or None,
        "target_recall": how.target_recall or None,
        "consistency": "settled" if how.settled_within_ms else "latest",
        "max_lag": how.settled_within_ms / 1000,
    }


def memory_out(memory: Memory) -> pb.Memory:
    """Return a memory as a message; hits are made by the engine."""
    # Any 64-bit number may be a time on the wire; a datetime has bounds.
    metadata, inner = memory.metadata, memory._inner
    out = pb.Memory(
        memory_id=memory.memory_id,
        text=memory.text,
        metadata=json.dumps(metadata, ensure_ascii=False, separators=(",", ":")) if metadata else "",
        key=memory.key,
        confidence=memory.confidence,
        observed_at=inner.observed_at,
        committed_at=inner.committed_at,
        ended=memory.ended,
    )
    vector = memory.vector
    if vector is not None:
        out.vector = vector.astype("<f4", copy=False).tobytes()
    return out


def pages(memories: Iterable[Memory], bytes_max: int) -> Iterator[list[pb.Memory]]:
    """Cut memories into messages that are not too large; one that is larger comes alone."""
    page: list[pb.Memory] = []
    size = 0
    for memory in memories:
        message = memory_out(memory)
        bytes_of = message.ByteSize()
        if page and size + bytes_of > bytes_max:
            yield page
            page, size = [], 0
        page.append(message)
        size += bytes_of
    if page:
        yield page
