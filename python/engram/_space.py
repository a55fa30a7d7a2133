"""What a space can do: `Space`."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from engram._convert import (
    SECONDS_MAX,
    Columns,
    Metadata,
    OnOverload,
    Priority,
    Time,
    Vectors,
    Where,
    condition,
    flag,
    key_text,
    millis,
    octets,
    one_of,
    one_row,
    plain,
    says_nothing,
    whole,
)
from engram._exceptions import DataLoss, InvalidArgument, TooLarge
from engram._reads import Reads, Snapshot
from engram._session import Session
from engram._types import Ack, BatchAck, Memory, QuarantinedBatch, to_datetime

if TYPE_CHECKING:
    from engram import _core
    from engram._engine import Engine

_FORGET_IDS = 1_000_000  # that one call may name


def _nothing_is_lost(resume: str | None, acknowledged: int | None) -> None:
    """D11: a session without a token is new; who was told of something by another one has lost that."""
    if not resume and acknowledged:
        text = f"{acknowledged} observations were acknowledged, by a session whose token is not given: this one is new"
        raise DataLoss(text, committed=0)


class Space(Reads):
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
        key: str | None = None,
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
        key : str, optional
            At most 256 bytes. The memory that has this key now is superseded: it is seen by `history`, by snapshots and
            with `as_of`, and by no other read.
        on_overload : {"wait", "raise"}
            What to do while there is no room in the queue.
        timeout : float, optional
            Seconds to wait for room (default 30). Once admitted the call ends with its outcome.

        Raises
        ------
        InvalidArgument, TooLarge
            Nothing was consumed.
        QuotaExceeded
            The space holds as much as it may (`set_quota`); nothing was consumed.
        Overloaded, DiskFull
            No room in time: nothing was consumed; retry, after `Overloaded.retry_after_ms`.
        Poisoned
            The log failed: whether it was stored is known after the next open.
        Quarantined
            It could not be applied and is kept aside (`quarantined`); it is stored only if it is observed again.
        Corrupted
            The space lost part of its log and is read-only.
        NotFound, Closed
            The space was dropped; the engine is closed.
        KeyboardInterrupt, Interrupted
            Ctrl-C; after `Interrupted` the outcome is unknown.
        """
        columns = one_row(text, vector, confidence, metadata, observed_at, key)
        first, _ = self._core.observe(columns, self._timeout_ms(on_overload, timeout))
        return Ack(first, first, self._core.durability)

    def observe_batch(
        self,
        *,
        texts: Iterable[str | None] | None = None,
        vectors: Vectors | None = None,
        metadata: Iterable[Metadata | None] | None = None,
        confidence: float | Iterable[float] | None = None,
        observed_at: Time | Iterable[Time] = None,
        keys: Iterable[str | None] | None = None,
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
        keys : iterable of str or None, length n, optional
            None: no key. The same key twice in one batch is an error.
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
        Overloaded, DiskFull, Poisoned, Quarantined, Corrupted, NotFound, Closed
            As for `observe`. With ``atomic=False`` earlier pieces may have been stored.
        """
        atomic = flag("atomic", atomic)
        columns = Columns.of(texts, vectors, metadata, confidence, observed_at, keys, atomic)
        timeout_ms = self._timeout_ms(on_overload, timeout)
        if atomic:
            first, count = self._core.observe(columns.arguments(), timeout_ms)
            ids = np.arange(first, first + count, dtype=np.uint64)
            return BatchAck(ids, first + count - 1, self._core.durability, [])
        limits = self._limits()
        stored: list[NDArray[np.uint64]] = [np.empty(0, dtype=np.uint64)]
        rejected = columns.refused
        pieces = deque(columns.pieces(self.dim, limits["batch_items_max"], limits["batch_bytes_max"]))
        while pieces:
            rows = pieces.popleft()
            try:
                first, count = self._core.observe(columns.arguments(rows), timeout_ms)
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

    def observe_frame(
        self, frame: bytes, *, on_overload: OnOverload = "wait", timeout: float | None = None
    ) -> BatchAck:
        """Store a frame of the wire (`proto/engram/v1/frame.proto`), all or nothing; raises as `observe_batch`."""
        first, count = self._core.observe_frame(octets("frame", frame), self._timeout_ms(on_overload, timeout))
        ids = np.arange(first, first + count, dtype=np.uint64)
        return BatchAck(ids, first + count - 1, self._core.durability, [])

    def forget(
        self,
        memory_id: int | Iterable[int] | None = None,
        *,
        key: str | None = None,
        where: Where | None = None,
        purge: bool = False,
        on_overload: OnOverload = "wait",
        timeout: float | None = None,
    ) -> int:
        """Forget memories: by id, by key, or all that match; returns when the forgetting is durable and visible.

        It takes effect at its place in the space's history: everything committed before it is covered, nothing that
        still waits. Snapshots taken before it, and `as_of`, still see what was forgotten.

        Parameters
        ----------
        memory_id : int or iterable of int, optional
            Names that are no memory, or none any more, are passed over.
        key : str, optional
            The memory that has the key now.
        where : mapping, optional
            As for `recall`; not empty. More than a million matches are forgotten in several steps.
        purge : bool
            Remove the bytes too, from files, log and spares, and return when they are gone; also those of what had
            died before: all versions of the key, ids forgotten already, all that ever matched; and what an earlier
            purge left that a crash cut short. Snapshots that see them are waited for, at most their 10 minutes; `as_of`
            finds them no more. Backups and what lies in `quarantine/` are not reached.
        on_overload : {"wait", "raise"}
            What to do while too many forgets of the space are on their way.
        timeout : float, optional
            Seconds to wait for a place (default 30).

        Returns
        -------
        int
            How many memories were forgotten; not counted is what a purge erases that had died before.

        Raises
        ------
        InvalidArgument
            None, or more than one, of the three was given; an empty or unreadable condition.
        Overloaded, DiskFull, Poisoned, Corrupted, NotFound, Closed
            As for `observe`.
        """
        one_of(memory_id=memory_id, key=key, where=where)
        purge, timeout_ms = flag("purge", purge), self._timeout_ms(on_overload, timeout)
        forgotten = self._forget(memory_id, key, where, purge, timeout_ms)
        if purge:
            self._core.finish_purge(timeout_ms)
        return forgotten

    def _forget(
        self,
        memory_id: int | Iterable[int] | None,
        key: str | None,
        where: Where | None,
        purge: bool,
        timeout_ms: int,
    ) -> int:
        if key is not None:
            return self._core.forget_key(key_text(key), purge, timeout_ms)
        if where is not None:
            checked = condition(where)
            if checked is None or says_nothing(checked):
                text = "an empty condition would forget everything; to empty a space drop it and make it again"
                raise InvalidArgument(text, field="where", index=None)
            forgotten, done = 0, False
            while not done:
                count, done = self._core.forget_where(checked, purge, timeout_ms)
                forgotten += count
            return forgotten
        given = memory_id if isinstance(memory_id, Iterable) and not isinstance(memory_id, bytes) else [memory_id]
        ids = sorted({whole("memory_id", one, 0, 2**64 - 1) for one in given})
        return sum(
            self._core.forget_ids(ids[first : first + _FORGET_IDS], purge, timeout_ms)
            for first in range(0, len(ids), _FORGET_IDS)
        )

    def session(
        self,
        *,
        priority: Priority = "normal",
        resume: str | None = None,
        acknowledged: int | None = None,
        timeout: float | None = None,
    ) -> Session:
        """Open a session, or attach to one: a numbered stream whose effect is exactly once, over every crash.

        Parameters
        ----------
        priority : {"high", "normal", "low"}
            Of a new session.
        resume : str, optional
            The token of a session (`Session.token`): whoever spoke for it before is fenced.
        acknowledged : int, optional
            The last sequence that the caller knows to be acknowledged.
        timeout : float, optional
            Seconds to wait for a place (default 30).

        Raises
        ------
        InvalidArgument
            Not a token of a session of this space.
        SessionExpired
            It was closed, or not used for a week.
        DataLoss
            What was acknowledged in a weaker mode is lost, or the token: again with ``acknowledged=error.committed``.
        TooLarge
            Too many sessions.
        Overloaded, DiskFull, Poisoned, Corrupted, NotFound, Closed
            As for `observe`.
        """
        known = None if acknowledged is None else whole("acknowledged", acknowledged, 0, 2**63 - 1)
        token = None if resume is None else plain("resume", resume)
        timeout_ms = self._timeout_ms("wait", timeout)
        _nothing_is_lost(token, known)
        return Session(self._core.session(plain("priority", priority), token, known, timeout_ms), self)

    def _claimed(self, claim: tuple[int, bool], priority: str, resume: str | None, acknowledged: int | None) -> Session:
        """`session`, for a peer: `claim` is a number that it drew for itself, and whether it comes back by itself."""
        timeout_ms = self._timeout_ms("wait", None)
        _nothing_is_lost(resume, acknowledged)
        return Session(self._core.session(priority, resume, acknowledged, timeout_ms, claim), self)

    def set_quota(self, *, memories: int | None = None, bytes: int | None = None) -> None:
        """Limit what the space may hold; durable when it returns. What it holds already stays.

        Parameters
        ----------
        memories : int, optional
            Current memories, ≥ 1; an observation that supersedes another by its key needs no room. None: no limit.
        bytes : int, optional
            Of rows in files and buffers, ≥ 1, and of what waits; the past counts too, until it expires or is purged.

        Raises
        ------
        InvalidArgument, DiskFull, Poisoned, NotFound, Closed
            Nothing was changed; after `Poisoned` the next open decides.
        """
        most = 2**63 - 1
        self._core.set_quota(
            0 if memories is None else whole("memories", memories, 1, most),
            0 if bytes is None else whole("bytes", bytes, 1, most),
        )

    def wait_absorbed(self, *, timeout: float | None = None) -> bool:
        """Wait until the graph answers for everything that is there now; recalls find it long before, if less quickly.

        Parameters
        ----------
        timeout : float, optional
            Seconds, ≥ 0. None: as long as it takes.

        Returns
        -------
        bool
            True.

        Raises
        ------
        Timeout
            It is not done yet, and goes on.
        Corrupted
            Rows are damaged: there will be no index.
        InvalidArgument, Interrupted, NotFound, Closed
        """
        self._core.wait_absorbed(millis("timeout", SECONDS_MAX if timeout is None else timeout))
        return True

    def quarantined(self) -> list[QuarantinedBatch]:
        """List the batches that could not be applied, oldest first.

        Each was tried three times; then the log went round it, and whoever observed it got `Quarantined`.
        """
        root = self._engine.path
        return [
            QuarantinedBatch(
                range(first, first + count),
                to_datetime(at),
                sequence or None,
                reason,
                None if root is None else Path(root) / path,
            )
            for first, count, at, sequence, reason, path in self._core.quarantined()
        ]

    def read_quarantined(self, memory_id: int) -> list[Memory]:
        """Return what the quarantined batch with this id holds. Observe it again, or part of it, to try once more.

        Raises
        ------
        NotFound
            No quarantined batch has this id, or its file was removed.
        Corrupted
            Its file is damaged.
        """
        return [Memory(item) for item in self._core.read_quarantined(whole("memory_id", memory_id, 0, 2**64 - 1))]

    def snapshot(self) -> Snapshot:
        """Pin what is visible now: repeatable reads, at most 60 s unused and 10 min in all."""
        return Snapshot(self._core)

    def stats(self) -> dict[str, Any]:
        """Figures of the space: memories, generation, queue, bytes unsealed and sealed, recalls, degraded, pressure.

        `level` is "NORMAL", then "WARNING", "CRITICAL" and "OVERLOADED" from a `pressure` of 0.50, 0.80 and 0.95 (left
        below 0.40, 0.70 and 0.90); `advised_batch` is the number of observations to send at once at that level;
        `drain_rate` is the number committed a second, measured while some waited; `quota_memories` and `quota_bytes`
        are 0 where there is no quota.
        """
        return self._core.stats()

    def _timeout_ms(self, on_overload: OnOverload, timeout: float | None) -> int:
        if on_overload not in ("wait", "raise"):
            text = f'on_overload is {on_overload!r}; it must be "wait" or "raise"'
            raise InvalidArgument(text, field="on_overload", index=None)
        if on_overload == "raise":
            return 0
        if timeout is None:
            return self._limits()["admission_timeout_ms"]
        return millis("timeout", timeout)

    def _limits(self) -> Mapping[str, int]:
        return self._engine._core.limits()

    def __repr__(self) -> str:
        """Show name, dim and metric."""
        return f"<engram.Space {self.name!r} dim={self.dim} metric={self.metric!r}>"
