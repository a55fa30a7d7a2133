"""What the engine hands out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from engram import _core

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def to_datetime(micros: int) -> datetime:
    """Turn microseconds since 1970 into an aware datetime (clamped to what datetime can hold)."""
    try:
        return EPOCH + timedelta(microseconds=micros)
    except OverflowError:
        bound = datetime.max if micros > 0 else datetime.min
        return bound.replace(tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Ack:
    """One observation is as durable as `durability` says, and can be recalled.

    Attributes
    ----------
    memory_id : int
        Its name in the space, ≥ 1.
    generation : int
        Its place in the space's history; equal to `memory_id`.
    durability : str
        "sync", "os" or "memory".
    duplicate : bool
        It had been acknowledged before (sessions only).
    """

    memory_id: int
    generation: int
    durability: str
    duplicate: bool = False


@dataclass(frozen=True, slots=True)
class BatchAck:
    """A batch is as durable as `durability` says, and can be recalled.

    Attributes
    ----------
    memory_ids : ndarray of uint64, shape (n,)
        Names in the order given, of the accepted observations.
    generation : int
        The generation of the last; 0 if none was accepted.
    rejected : list of (int, str)
        Index and reason of what was refused; always empty for an atomic batch.
    duplicate : bool
        All of it had been acknowledged before (sessions only).
    """

    memory_ids: NDArray[np.uint64]
    generation: int
    durability: str
    rejected: list[tuple[int, str]]
    duplicate: bool = False


@dataclass(frozen=True, slots=True)
class QuarantinedBatch:
    """A batch that could not be applied: its ids name nothing, and its bytes are kept for people.

    Attributes
    ----------
    memory_ids : range
        The ids it took.
    quarantined_at : datetime
        When the log went round it.
    sequence : int or None
        Its first sequence, if a session said it.
    reason : str
        What the last attempt failed of.
    path : Path or None
        The file that keeps it; None in memory.
    """

    memory_ids: range
    quarantined_at: datetime
    sequence: int | None
    reason: str
    path: Path | None


class Memory:
    """A stored memory. Fields are read when they are asked for.

    Attributes
    ----------
    memory_id, generation : int
    text : str or None
    metadata : dict
    key : str or None
    ended : int or None
        Generation at which it was superseded or forgotten, as far as the read could see. Only `history` shows such.
    confidence : float
        As observed, in [0, 1].
    observed_at : datetime or None
        As given by the client.
    committed_at : datetime
        When its log group was formed.
    vector : ndarray of float32, shape (dim,), or None
        As given, bit for bit. Hits do not carry it; use `Space.get`.
    """

    __slots__ = ("_inner",)

    def __init__(self, inner: _core.Memory) -> None:
        self._inner = inner

    @property
    def memory_id(self) -> int:
        """Its name in the space."""
        return self._inner.memory_id

    @property
    def generation(self) -> int:
        """Its place in the space's history."""
        return self._inner.memory_id

    @property
    def text(self) -> str | None:
        """The text as observed."""
        return self._inner.text

    @property
    def metadata(self) -> dict[str, Any]:
        """A new dict at each call."""
        return self._inner.metadata

    @property
    def key(self) -> str | None:
        """The key it was observed with."""
        return self._inner.key

    @property
    def ended(self) -> int | None:
        """When it was superseded or forgotten; None while it is current."""
        return self._inner.ended

    @property
    def confidence(self) -> float:
        """As observed, in [0, 1]."""
        return self._inner.confidence

    @property
    def observed_at(self) -> datetime | None:
        """The client's time, if it gave one."""
        micros = self._inner.observed_at
        return None if micros is None else to_datetime(micros)

    @property
    def committed_at(self) -> datetime:
        """When its log group was formed."""
        return to_datetime(self._inner.committed_at)

    @property
    def vector(self) -> NDArray[np.float32] | None:
        """A copy, float32 of shape (dim,)."""
        return self._inner.vector

    def __repr__(self) -> str:
        """Show id and the beginning of the text."""
        return f"<{type(self).__name__} {self.memory_id} {(self.text or '')[:60]!r}>"


class Hit(Memory):
    """A memory a cue found.

    Attributes
    ----------
    score : float
        Greater is closer: cosine similarity, inner product, or minus the squared distance.
    provisional : bool
        The index's graph does not answer for it yet; its `confidence` is lowered by up to a tenth for the first 100 ms.
    why : dict
        By which route it came, with that route's score.
    """

    __slots__ = ()

    @property
    def score(self) -> float:
        """Greater is closer."""
        score = self._inner.score
        return float("nan") if score is None else score

    @property
    def provisional(self) -> bool:
        """Whether the index's graph does not answer for it yet."""
        return self._inner.provisional

    @property
    def why(self) -> dict[str, float]:
        """The routes by which it was found."""
        return {"vector": self.score}

    def __repr__(self) -> str:
        """Show id, score and the beginning of the text."""
        return f"<Hit {self.memory_id} {self.score:.4f} {(self.text or '')[:60]!r}>"


class Hits(Sequence[Hit]):
    """The hits of one recall, nearest first, all of one snapshot.

    Attributes
    ----------
    generation : int
        The snapshot: everything up to it was visible, nothing after.
    absorbed : int
        Up to this generation the index answered for all without looking through a tail; hits behind it are provisional.
    lag : float
        Seconds for which the oldest row behind `absorbed` had waited; 0.0 if there was none.
    """

    __slots__ = ("_hits", "absorbed", "generation", "lag")

    def __init__(self, generation: int, absorbed: int, lag_micros: int, hits: list[_core.Memory]) -> None:
        self.generation = generation
        self.absorbed = absorbed
        self.lag = lag_micros / 1e6
        self._hits = hits

    def __len__(self) -> int:
        """Count the hits."""
        return len(self._hits)

    @overload
    def __getitem__(self, index: int) -> Hit: ...
    @overload
    def __getitem__(self, index: slice) -> list[Hit]: ...
    def __getitem__(self, index: int | slice) -> Hit | list[Hit]:
        """Return one hit, or a list of them."""
        if isinstance(index, slice):
            return [Hit(h) for h in self._hits[index]]
        return Hit(self._hits[index])

    def __repr__(self) -> str:
        """Show the hits."""
        return f"Hits(generation={self.generation}, {list(self)!r})"


@dataclass(frozen=True, slots=True)
class HitBatch:
    """Some of the hits of a `recall_stream`.

    Attributes
    ----------
    hits : list of Hit
        Nearest first; those of the next batch are farther.
    generation : int
        The snapshot, the same in every batch.
    index : int
        0, 1, 2, …
    last : bool
        No other follows.
    absorbed : int
    lag : float
        As in `Hits`.
    """

    hits: list[Hit]
    generation: int
    index: int
    last: bool
    absorbed: int = 0
    lag: float = 0.0
