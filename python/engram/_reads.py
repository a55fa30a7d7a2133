"""What a space and a snapshot of it have in common: reading."""

from __future__ import annotations

import builtins
import itertools
from collections.abc import Generator, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from engram._convert import AsOf, Vectors, Where, condition, flag, key_text, matrix, millis, moment, one_of, whole
from engram._exceptions import InvalidArgument
from engram._types import Hit, HitBatch, Hits, Memory

if TYPE_CHECKING:
    from engram import _core


class AskedRecall(Protocol):
    """A recall whose batches other threads make, one at a time."""

    @property
    def id(self) -> int:
        """By which completions tell that the batch is made."""
        ...

    def ask(self, threads: int) -> None:
        """Have the next batch made, by one of so many threads."""
        ...

    def take(self) -> tuple[bytes, bool]:
        """Return it, a serialized `RecallResponse`, and whether it is the last; raise what went wrong."""
        ...

    def cancel(self) -> None:
        """Give it up: what it pins is released."""
        ...


# A pinned snapshot; a moment; a condition.
At = tuple[tuple[int, int] | None, tuple[str, int] | None, dict[str, Any] | None]

_PAGE = 1024
_EF_MAX = 16_384
_THREADS_MAX = 256
_BATCH_MAX = 100
_K_MAX = 2**63 - 1  # the engine knows its limit, and names it


Consistency = Literal["latest", "settled"]

How = tuple[bool, int | None, float | None, int | None, int]


def _how(
    exact: bool, ef: int | None, target_recall: float | None, consistency: str, max_lag: float, threads: int = 1
) -> How:
    if ef is not None and target_recall is not None:
        text = "ef and target_recall both say how wide to walk: give one"
        raise InvalidArgument(text, field="target_recall", index=None)
    is_number = isinstance(target_recall, int | float | np.number) and not isinstance(target_recall, bool)
    if target_recall is not None and not (is_number and 0.0 < target_recall <= 1.0):
        text = f"target_recall is {target_recall!r}; it must lie in (0, 1]"
        raise InvalidArgument(text, field="target_recall", index=None)
    if consistency not in ("latest", "settled"):
        text = f'consistency is {consistency!r}; use "latest" or "settled"'
        raise InvalidArgument(text, field="consistency", index=None)
    lag_ms = millis("max_lag", max_lag) if consistency == "settled" else None
    width = None if ef is None else whole("ef", ef, 1, _EF_MAX)
    return flag("exact", exact), width, target_recall, lag_ms, whole("threads", threads, 1, _THREADS_MAX)


def _batches(stream: _core.RecallStream, size: int) -> Generator[HitBatch, None, None]:
    try:
        for index in itertools.count():
            hits, last = stream.next(size)
            each = [Hit(hit) for hit in hits]
            yield HitBatch(each, stream.generation, index, last, stream.absorbed, stream.lag_micros / 1e6)
            if last:
                return
    finally:
        stream.close()


class Reads:
    """The read methods."""

    _core: _core.Space

    def _pin(self) -> tuple[int, int] | None:
        return None

    def _at(self, where: Where | None = None, as_of: AsOf = None) -> At:
        return self._pin(), moment(as_of), condition(where)

    def recall(
        self,
        *,
        vector: Vectors,
        k: int = 10,
        where: Where | None = None,
        as_of: AsOf = None,
        exact: bool = False,
        ef: int | None = None,
        target_recall: float | None = None,
        consistency: Consistency = "latest",
        max_lag: float = 1.0,
    ) -> Hits:
        """Find the `k` nearest memories to a cue, under one snapshot.

        Parameters
        ----------
        vector : array_like, shape (dim,)
            Converted to float32.
        k : int
            1 to 16,384.
        where : mapping, optional
            Only memories that match: ``{"source": "letter", "pages": {"$gte": 10}}``. A name is a path into the
            metadata (``"a.b"``) or `memory_id`, `key`, `observed_at`, `committed_at`, `confidence`; operators are
            ``$eq``, ``$ne``, ``$gt``, ``$gte``, ``$lt``, ``$lte``, ``$in``, ``$nin``, ``$exists``; ``$and``, ``$or``,
            ``$not`` join conditions. See `docs/guide/filters.md`.
        as_of : int or datetime, optional
            The space as it was: at a generation (one inside a batch: before the batch), or at the last change committed
            at or before a time. Of what was superseded or forgotten since, nothing is missing.
        exact : bool
            Score every row. The default asks the index, which may miss one in some dozens; the scores of what it finds
            are exact. With `as_of` every row is scored, too.
        ef : int, optional
            How many rows a walk through the graph keeps in sight, 1 to 16,384: more find more, and take longer. Not
            needed: the default is measured on the space's own rows, and a walk is widened until `k` memories that match
            are found.
        target_recall : float, optional
            The share of the nearest to find, in (0, 1], as far as the space's own rows tell; the default is 0.95.
            Not together with `ef`.
        consistency : {"latest", "settled"}
            "latest": everything acknowledged. "settled": only what is absorbed, so that no hit is provisional.
        max_lag : float
            Seconds; how far "settled" may be behind.

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
        Timeout
            "settled", and the index is behind for more than `max_lag`.
        SnapshotExpired, NotFound, Closed
        """
        cue, how = matrix("vector", vector, 1), _how(exact, ef, target_recall, consistency, max_lag)
        return Hits(*self._core.recall(cue, whole("k", k, 1, _K_MAX), self._at(where, as_of), how))

    def recall_stream(
        self,
        *,
        vector: Vectors,
        k: int = 10,
        batch_size: int = 10,
        where: Where | None = None,
        as_of: AsOf = None,
        exact: bool = False,
        ef: int | None = None,
        target_recall: float | None = None,
        consistency: Consistency = "latest",
        max_lag: float = 1.0,
    ) -> Generator[HitBatch, None, None]:
        """Find the `k` nearest memories to a cue, and fetch them a batch at a time, all of one snapshot.

        The search is done at once, before this returns; a batch's memories are read when it is asked for.

        Parameters
        ----------
        vector, k, where, as_of, exact, ef, target_recall, consistency, max_lag
            As for `recall`.
        batch_size : int
            Hits in a batch, 1 to 100.

        Returns
        -------
        generator of HitBatch
            At least one, the last marked. Given up early, it releases its snapshot when it is closed or collected.

        Raises
        ------
        SnapshotExpired
            It was left alone for longer than a snapshot may be.
        InvalidArgument, Corrupted, Timeout, NotFound, Closed
            As for `recall`.
        """
        cue, how = matrix("vector", vector, 1), _how(exact, ef, target_recall, consistency, max_lag)
        size = whole("batch_size", batch_size, 1, _BATCH_MAX)
        return _batches(self._stream(cue, whole("k", k, 1, _K_MAX), self._at(where, as_of), how, size), size)

    def _ask_recall(
        self,
        *,
        vector: Vectors,
        k: int,
        batch_size: int,
        batch_bytes: int,
        where: Where | None,
        as_of: AsOf,
        **how: Any,
    ) -> AskedRecall:
        """Return a recall whose batches come as messages, one by one, for who does not wait."""
        cue, size = matrix("vector", vector, 1), whole("batch_size", batch_size, 1, _BATCH_MAX)
        k, at = whole("k", k, 1, _K_MAX), self._at(where, as_of)
        return self._core.ask_recall(cue, k, at, _how(**how), (size, batch_bytes))

    def _stream(self, cue: NDArray[np.float32], k: int, at: At, how: How, size: int) -> Any:
        return self._core.recall_stream(cue, k, at, how)

    def recall_batch(
        self,
        vectors: Vectors,
        k: int = 10,
        *,
        where: Where | None = None,
        as_of: AsOf = None,
        exact: bool = False,
        ef: int | None = None,
        target_recall: float | None = None,
        consistency: Consistency = "latest",
        max_lag: float = 1.0,
        threads: int = 1,
    ) -> tuple[NDArray[np.uint64], NDArray[np.float32]]:
        """Find the `k` nearest memories to each of many cues, under one snapshot, with the GIL released.

        Parameters
        ----------
        vectors : array_like, shape (m, dim)
            Converted to float32.
        k : int
            1 to 16,384.
        where, as_of, exact, ef, target_recall, consistency, max_lag
            As for `recall`.
        threads : int
            How many may work on it; each takes as many cues as the others.

        Returns
        -------
        ids : ndarray of uint64, shape (m, k)
            Missing: 0.
        scores : ndarray of float32, shape (m, k)
            Missing: -inf.

        Raises
        ------
        InvalidArgument, Corrupted, Timeout, SnapshotExpired, NotFound, Closed
            As for `recall`; `index` is the cue's row.
        """
        cues = matrix("vectors", vectors, 2)
        k = whole("k", k, 1, _K_MAX)
        how = _how(exact, ef, target_recall, consistency, max_lag, threads)
        _, ids, scores = self._core.recall_batch(cues, k, self._at(where, as_of), how)
        return ids, scores

    def get(self, memory_id: int | None = None, *, key: str | None = None, as_of: AsOf = None) -> Memory | None:
        """Return one memory, with its vector, by its id or by the key it has; None if there is none.

        Raises
        ------
        InvalidArgument
            Neither or both were given.
        Corrupted
        """
        one_of(memory_id=memory_id, key=key)
        at = self._at(None, as_of)
        if key is not None:
            found = self._core.get_key(key_text(key), at)
        else:
            # Whatever number it is: there may be no such memory.
            number = whole("memory_id", memory_id, -(2**64), 2**64)
            found = self._core.get(number, at) if 0 <= number < 2**64 else None
        return None if found is None else Memory(found)

    def history(self, key: str) -> builtins.list[Memory]:
        """Return the versions of a key, oldest first; `Memory.ended` says when one was superseded or forgotten.

        Raises `Corrupted`.
        """
        return [Memory(version) for version in self._core.history(key_text(key), self._at())]

    def list(
        self, *, where: Where | None = None, after: int = 0, limit: int | None = None, as_of: AsOf = None
    ) -> Iterator[Memory]:
        """Iterate over memories by id.

        Parameters
        ----------
        where : mapping, optional
            Only memories that match, as for `recall`.
        after : int
            Only ids greater than this.
        limit : int, optional
            At most so many.
        as_of : int or datetime, optional
            As for `recall`.

        Raises
        ------
        InvalidArgument
        Corrupted
            When the walk comes to a damaged row; what is before it has been given out.
        """
        after = whole("after", after, 0, 2**64 - 1)
        left = None if limit is None else whole("limit", limit, 0, _K_MAX)
        at = self._at(where, as_of)
        while left is None or left > 0:
            page = self._core.list(after, _PAGE if left is None else min(left, _PAGE), at)
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


class Snapshot(Reads):
    """A pinned generation of a space, with every read method. A context manager that releases it."""

    def __init__(self, core: _core.Space) -> None:
        self._core = core
        self._pinned = core.pin()

    def _pin(self) -> tuple[int, int]:
        return self._pinned

    @property
    def generation(self) -> int:
        """Everything up to this generation is visible, nothing after."""
        return self._pinned[1]

    def _lives(self) -> bool:
        """Whether it may be looked at still; asking is no use of it."""
        return self._core.pinned(self._pinned[0])

    def release(self) -> None:
        """Let it go; later reads raise `SnapshotExpired`."""
        self._core.release(self._pinned[0])

    def __enter__(self) -> Snapshot:
        """Return the snapshot."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Release."""
        self.release()
