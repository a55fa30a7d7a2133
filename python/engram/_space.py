"""What a space and a snapshot of it can do: `Space`, `Snapshot`."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from engram._convert import (
    Columns,
    Metadata,
    OnOverload,
    Time,
    Vectors,
    Where,
    condition,
    floats,
    mapping,
    matrix,
    micros,
    whole,
)
from engram._exceptions import InvalidArgument, TooLarge
from engram._types import Ack, BatchAck, Hits, Memory

if TYPE_CHECKING:
    from engram import _core
    from engram._engine import Engine

At = tuple[int, int] | None

_PAGE = 1024
_K_MAX = 2**63 - 1  # the engine knows its limit, and names it


class _Reads:
    """What a space and a snapshot have in common."""

    _core: _core.Space

    def _at(self) -> At:
        return None

    def recall(self, *, vector: Vectors, k: int = 10, where: Where | None = None, exact: bool = False) -> Hits:
        """Find the `k` nearest memories to a cue, under one snapshot.

        Parameters
        ----------
        vector : array_like, shape (dim,)
            Converted to float32.
        k : int
            1 to 16,384.
        where : mapping, optional
            Only memories that match: ``{"source": "letter", "pages": {"$gte": 10}}``. A name is a path into the
            metadata (``"a.b"``) or `memory_id`, `observed_at`, `committed_at`, `confidence`; operators are ``$eq``,
            ``$ne``, ``$gt``, ``$gte``, ``$lt``, ``$lte``, ``$in``, ``$nin``, ``$exists``; ``$and``, ``$or``, ``$not``
            join conditions. See `docs/guide/filters.md`.
        exact : bool
            Score every row. So does the default today: the answers are equal.

        Returns
        -------
        Hits
            Nearest first; ties go to the lower id. Fewer than `k` only if fewer with a vector match.

        Raises
        ------
        InvalidArgument
            A wrong dimension, a component that is not finite, a zero vector under cosine, a bad `k`, a condition that
            cannot be read.
        Corrupted
            Rows that would have to be looked at are damaged.
        SnapshotExpired, NotFound, Closed
        """
        del exact
        cue = matrix("vector", vector, 1)
        generation, hits = self._core.recall(cue, whole("k", k, 1, _K_MAX), self._at(), condition(where))
        return Hits(generation, hits)

    def recall_batch(
        self, vectors: Vectors, k: int = 10, *, where: Where | None = None, exact: bool = False
    ) -> tuple[NDArray[np.uint64], NDArray[np.float32]]:
        """Find the `k` nearest memories to each of many cues, under one snapshot, with the GIL released.

        Parameters
        ----------
        vectors : array_like, shape (m, dim)
            Converted to float32.
        k : int
            1 to 16,384.
        where : mapping, optional
        exact : bool
            As for `recall`.

        Returns
        -------
        ids : ndarray of uint64, shape (m, k)
            Missing: 0.
        scores : ndarray of float32, shape (m, k)
            Missing: -inf.

        Raises
        ------
        InvalidArgument, Corrupted, SnapshotExpired, NotFound, Closed
            As for `recall`; `index` is the cue's row.
        """
        del exact
        cues = matrix("vectors", vectors, 2)
        _, ids, scores = self._core.recall_batch(cues, whole("k", k, 1, _K_MAX), self._at(), condition(where))
        return ids, scores

    def get(self, memory_id: int) -> Memory | None:
        """Return one memory, with its vector, or None if there is none of that id. Raises `Corrupted`."""
        if not 0 <= int(memory_id) < 2**64:
            return None
        found = self._core.get(int(memory_id), self._at())
        return None if found is None else Memory(found)

    def list(self, *, where: Where | None = None, after: int = 0, limit: int | None = None) -> Iterator[Memory]:
        """Iterate over memories by id.

        Parameters
        ----------
        where : mapping, optional
            Only memories that match, as for `recall`.
        after : int
            Only ids greater than this.
        limit : int, optional
            At most so many.

        Raises
        ------
        Corrupted
            When the walk comes to a damaged row; what is before it has been given out.
        """
        left = limit
        checked = condition(where)
        while left is None or left > 0:
            page = self._core.list(after, _PAGE if left is None else min(left, _PAGE), self._at(), checked)
            if not page:
                return
            for memory in page:
                yield Memory(memory)
            after = page[-1].memory_id
            left = None if left is None else left - len(page)

    def __len__(self) -> int:
        """Count the memories."""
        return self._core.count(self._at())

    def __bool__(self) -> bool:
        """Return True, even for an empty space."""
        return True


class Space(_Reads):
    """An isolated set of memories. Use `Engine.space`."""

    def __init__(self, core: _core.Space, engine: Engine) -> None:
        self._core = core
        self._engine = engine

    @property
    def name(self) -> str:
        """The space's name."""
        return self._core.name

    @property
    def dim(self) -> int:
        """Components of each vector."""
        return self._core.dim

    @property
    def metric(self) -> str:
        """How scores are computed."""
        return self._core.metric

    @property
    def durability(self) -> str:
        """What an acknowledgement of this space promises."""
        return self._core.durability

    def observe(
        self,
        text: str | None = None,
        *,
        vector: Vectors | None = None,
        confidence: float = 1.0,
        metadata: Metadata | None = None,
        observed_at: Time = None,
        on_overload: OnOverload = "wait",
        timeout: float | None = None,
    ) -> Ack:
        """Store one observation; returns when it is as durable as the space says, and can be recalled.

        Parameters
        ----------
        text : str, optional
            At most 1 MiB of UTF-8. An observation needs a text, a vector, or both.
        vector : array_like, shape (dim,), optional
            Converted to float32 and kept as given.
        confidence : float
            In [0, 1].
        metadata : mapping, optional
            What JSON can say: at most 64 KiB, depth 16, finite numbers, 64-bit integers.
        observed_at : datetime, int or float, optional
            When it was observed; numbers are seconds since 1970. Naive datetimes are local time.
        on_overload : {"wait", "raise"}
            What to do while there is no room in the queue.
        timeout : float, optional
            Seconds to wait for room (default 30). Once admitted the call ends with its outcome.

        Raises
        ------
        InvalidArgument, TooLarge
            Nothing was consumed.
        Overloaded, DiskFull
            No room in time: nothing was consumed; retry, after `Overloaded.retry_after_ms`.
        Poisoned
            The log failed: whether it was stored is known after the next open.
        Corrupted
            The space lost part of its log and is read-only.
        NotFound, Closed
            The space was dropped; the engine is closed.
        KeyboardInterrupt, Interrupted
            Ctrl-C; after `Interrupted` the outcome is unknown.
        """
        first, _ = self._core.observe(
            None if vector is None else matrix("vector", vector, 1).reshape(1, -1),
            None if text is None else [text],
            None if metadata is None else [mapping(metadata, 0)],
            None if observed_at is None else np.array([micros(observed_at, 0)], dtype=np.int64),
            None if confidence == 1.0 else floats("confidence", [confidence], 0),
            self._timeout_ms(on_overload, timeout),
        )
        return Ack(first, first, self._core.durability)

    def observe_batch(
        self,
        *,
        texts: Iterable[str | None] | None = None,
        vectors: Vectors | None = None,
        metadata: Iterable[Metadata | None] | None = None,
        confidence: float | Iterable[float] | None = None,
        observed_at: Time | Iterable[Time] = None,
        atomic: bool = True,
        on_overload: OnOverload = "wait",
        timeout: float | None = None,
    ) -> BatchAck:
        """Store many observations; visible together, with consecutive ids.

        Parameters
        ----------
        texts : iterable of str or None, length n, optional
        vectors : array_like, shape (n, dim), optional
            float32 in C order is taken as it is, anything else is converted.
        metadata : iterable of mapping or None, length n, optional
        confidence : float or iterable of float, length n, optional
        observed_at : one time or an iterable of times, length n, optional
        atomic : bool
            True: all or nothing, at most 16,384 observations and 8 MiB. False: invalid ones are reported in
            `rejected`, and larger input is cut into atomic pieces.
        on_overload : {"wait", "raise"}
            What to do while there is no room in the queue.
        timeout : float, optional
            Seconds to wait for room, for each piece.

        Returns
        -------
        BatchAck

        Raises
        ------
        InvalidArgument
            With the item's `index`; nothing was consumed.
        TooLarge
            Over a limit of an atomic batch; nothing was consumed.
        Overloaded, DiskFull, Poisoned, Corrupted, NotFound, Closed
            As for `observe`. With ``atomic=False`` earlier pieces may have been stored.
        """
        columns = Columns.of(texts, vectors, metadata, confidence, observed_at, atomic)
        timeout_ms = self._timeout_ms(on_overload, timeout)
        if atomic:
            first, count = self._core.observe(*columns.arguments(), timeout_ms)
            ids = np.arange(first, first + count, dtype=np.uint64)
            return BatchAck(ids, first + count - 1, self._core.durability, [])
        limits = self._engine._core.limits()
        stored: list[NDArray[np.uint64]] = [np.empty(0, dtype=np.uint64)]
        rejected = columns.refused
        pieces = deque(columns.pieces(self.dim, limits["batch_items_max"], limits["batch_bytes_max"]))
        while pieces:
            rows = pieces.popleft()
            try:
                first, count = self._core.observe(*columns.arguments(rows), timeout_ms)
            except InvalidArgument as error:
                if error.index is not None:
                    rejected.append((int(rows[error.index]), str(error)))
                    left = [np.delete(rows, error.index)]
                elif isinstance(error, TooLarge) and len(rows) > 1:
                    left = np.array_split(rows, 2)
                else:
                    raise
                pieces.extendleft(piece for piece in reversed(left) if len(piece))
            else:
                stored.append(np.arange(first, first + count, dtype=np.uint64))
        ids = np.concatenate(stored)
        return BatchAck(ids, int(ids[-1]) if len(ids) else 0, self._core.durability, sorted(rejected))

    def snapshot(self) -> Snapshot:
        """Pin what is visible now: repeatable reads, at most 60 s unused and 10 min in all."""
        return Snapshot(self._core)

    def stats(self) -> dict[str, Any]:
        """Figures of the space: memories, generation, queue, bytes unsealed and sealed, recalls, degraded, pressure.

        `level` is "NORMAL", then "WARNING", "CRITICAL" and "OVERLOADED" from a `pressure` of 0.50, 0.80 and 0.95 (left
        below 0.40, 0.70 and 0.90); `advised_batch` is the number of observations to send at once at that level;
        `drain_rate` is the number committed a second, measured while some waited.
        """
        return self._core.stats()

    def _timeout_ms(self, on_overload: OnOverload, timeout: float | None) -> int:
        if on_overload not in ("wait", "raise"):
            text = f'on_overload is {on_overload!r}; it must be "wait" or "raise"'
            raise InvalidArgument(text, field="on_overload", index=None)
        if on_overload == "raise":
            return 0
        if timeout is None:
            return self._engine._core.limits()["admission_timeout_ms"]
        if not 0 <= timeout <= 86_400:
            raise InvalidArgument(f"timeout is {timeout!r}; seconds from 0 to 86400", field="timeout", index=None)
        return round(timeout * 1000)

    def __repr__(self) -> str:
        """Show name, dim and metric."""
        return f"<engram.Space {self.name!r} dim={self.dim} metric={self.metric!r}>"


class Snapshot(_Reads):
    """A pinned generation of a space, with every read method. A context manager that releases it."""

    def __init__(self, core: _core.Space) -> None:
        self._core = core
        self._pin = core.pin()

    def _at(self) -> At:
        return self._pin

    @property
    def generation(self) -> int:
        """Everything up to this generation is visible, nothing after."""
        return self._pin[1]

    def release(self) -> None:
        """Let it go; later reads raise `SnapshotExpired`."""
        self._core.release(self._pin[0])

    def __enter__(self) -> Snapshot:
        """Return the snapshot."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Release."""
        self.release()
