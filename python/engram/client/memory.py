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
        return self._optional("text")  # type: ignore[no-any-return]

    @property
    def metadata(self) -> dict[str, Any]:
        """A new dict."""
        return json.loads(self._message.metadata) if self._message.metadata else {}

    @property
    def key(self) -> str | None:
        """Its key."""
        return self._optional("key")  # type: ignore[no-any-return]

    @property
    def ended(self) -> int | None:
        """When it was superseded or forgotten."""
        return self._optional("ended")  # type: ignore[no-any-return]

    @property
    def confidence(self) -> float:
        """In [0, 1]."""
        return self._message.confidence

    @property
    def observed_at(self) -> int | None:
        """Microseconds since 1970."""
        return self._optional("observed_at")  # type: ignore[no-any-return]

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
        return self._optional("score")  # type: ignore[no-any-return]

    @property
    def provisional(self) -> bool:
        """Whether the graph does not answer for it yet."""
        return self._message.provisional
