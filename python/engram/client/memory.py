"""What a server sends, as the engine would hand it out."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engram.v1 import service_pb2 as pb


class RemoteMemory:
    """A memory, or a hit, of a message: the inside of `engram.Memory` and `engram.Hit`."""

    __slots__ = ("_message",)

    def __init__(self, message: pb.Memory) -> None:
        self._message = message

    def _optional(self, name: str) -> Any:
        return getattr(self._message, name) if self._message.HasField(name) else None

    @property
    def memory_id(self) -> int:
        """Its name."""
        return self._message.memory_id

    @property
    def text(self) -> str | None:
        """As observed."""
        text: str | None = self._optional("text")
        return text

    @property
    def metadata(self) -> dict[str, Any]:
        """A new dict."""
        return json.loads(self._message.metadata) if self._message.metadata else {}

    @property
    def key(self) -> str | None:
        """Its key."""
        key: str | None = self._optional("key")
        return key

    @property
    def ended(self) -> int | None:
        """When it was superseded or forgotten."""
        ended: int | None = self._optional("ended")
        return ended

    @property
    def confidence(self) -> float:
        """In [0, 1]."""
        return self._message.confidence

    @property
    def observed_at(self) -> int | None:
        """Microseconds since 1970."""
        observed_at: int | None = self._optional("observed_at")
        return observed_at

    @property
    def committed_at(self) -> int:
        """Microseconds since 1970."""
        return self._message.committed_at

    @property
    def vector(self) -> NDArray[np.float32] | None:
        """A copy."""
        data = self._optional("vector")
        return None if data is None else np.frombuffer(data, dtype="<f4").astype(np.float32)

    @property
    def score(self) -> float | None:
        """Greater is closer."""
        score: float | None = self._optional("score")
        return score

    @property
    def provisional(self) -> bool:
        """Whether the graph does not answer for it yet."""
        return self._message.provisional
