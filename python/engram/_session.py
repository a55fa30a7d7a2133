"""A numbered stream into a space: `Session`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from engram._convert import Columns, Metadata, OnOverload, Time, Vectors, flag, octets, one_row, whole
from engram._core import encode_frame
from engram._exceptions import EngramError, InvalidArgument, SessionExpired
from engram._pressure import OnPressure
from engram._types import Ack, BatchAck

if TYPE_CHECKING:
    from engram import _core
    from engram._space import Space

_Said = tuple[int, list[tuple[int, int, int]], int, list[tuple[int, str]]]


class Session:
    """A numbered stream into a space. Use `Space.session`; a context manager that closes, or detaches after an error.

    Each observation has a sequence: 1, 2, 3 … What was committed once is never stored again, whatever is sent again
    after a lost acknowledgement, a crash, or by another process that attached with the `token`. The order of the
    sequences is the order in the space. Any thread may use it; threads that do not give sequences take turns.
    """

    def __init__(self, core: _core.Session, space: Space) -> None:
        self._core = core
        self._space = space
        self._on_pressure: OnPressure | None = None

    @property
    def token(self) -> str:
        """The right to attach to this session, from any process; keep it where the source's position is kept."""
        return self._core.token

    @property
    def priority(self) -> str:
        """Which lane its observations take."""
        return self._core.priority

    @property
    def state(self) -> str:
        """ACTIVE, PAUSED, DRAINING, DETACHED, CLOSED, or FENCED: somebody else has attached."""
        return self._core.state

    @property
    def admitted(self) -> int:
        """The last sequence that was taken, if it is not committed yet."""
        return self._core.sequences()[0]

    @property
    def committed(self) -> int:
        """The last sequence that is committed; a source goes on behind it."""
        return self._core.sequences()[1]

    @property
    def absorbed(self) -> int:
        """The last sequence that recall answers for without looking through rows the graph does not hold yet.

        Where a space is small enough to have no graph: the last committed.
        """
        return self._core.sequences()[2]

    @property
    def credits(self) -> tuple[int, int]:
        """Observations and bytes that may be sent now without being refused, most likely: a window, not a promise."""
        return self._core.credits()

    @property
    def level(self) -> str:
        """How hard the space is pressed: NORMAL, WARNING, CRITICAL or OVERLOADED."""
        return self._core.pressure()[0]

    @property
    def advised_batch(self) -> int:
        """How many observations to send at once at that level."""
        return self._core.pressure()[1]

    def observe(
        self,
        text: str | None = None,
        *,
        vector: Vectors | None = None,
        confidence: float = 1.0,
        metadata: Metadata | None = None,
        observed_at: Time = None,
        key: str | None = None,
        sequence: int | None = None,
        on_overload: OnOverload = "wait",
        timeout: float | None = None,
    ) -> Ack:
        """Store the next observation, or the one with a given sequence if it is not stored yet.

        Parameters
        ----------
        text, vector, confidence, metadata, observed_at, key, on_overload, timeout
            As for `Space.observe`.
        sequence : int, optional
            Its place in the stream, ≥ 1; by default the next.

        Returns
        -------
        Ack
            `duplicate` if it had been committed or was under way; `memory_id` is 0 if its id is not kept any more.

        Raises
        ------
        SequenceGap
            Earlier ones are missing: go on from `expected`.
        SequenceConflict
            Another observation has this sequence.
        Fenced, SessionExpired, Paused
            The session takes nothing from this speaker now.
        InvalidArgument, TooLarge, Overloaded, DiskFull, Poisoned, Corrupted, NotFound, Closed, Interrupted
            As for `Space.observe`; except after `Poisoned` and `Interrupted` nothing was consumed.
        """
        columns = one_row(text, vector, confidence, metadata, observed_at, key)
        timeout_ms = self._space._timeout_ms(on_overload, timeout)
        _, runs, duplicates, _ = self._core.say(columns, _sequence(sequence), True, timeout_ms)
        memory_id = runs[0][2]
        return Ack(memory_id, memory_id, self._space.durability, duplicates > 0)

    def observe_batch(
        self,
        *,
        texts: Iterable[str | None] | None = None,
        vectors: Vectors | None = None,
        metadata: Iterable[Metadata | None] | None = None,
        confidence: float | Iterable[float] | None = None,
        observed_at: Time | Iterable[Time] = None,
        keys: Iterable[str | None] | None = None,
        sequence: int | None = None,
        atomic: bool = True,
        on_overload: OnOverload = "wait",
        timeout: float | None = None,
    ) -> BatchAck:
        """Store the next observations, or those from a given sequence on that are not stored yet; visible together.

        Parameters
        ----------
        texts, vectors, metadata, confidence, observed_at, keys, on_overload, timeout
            As for `Space.observe_batch`.
        sequence : int, optional
            Of the first, ≥ 1; by default the next.
        atomic : bool
            True: an invalid item refuses the batch, and nothing is consumed. False: it takes its sequence, holds
            nothing, and is reported in `rejected`. Both are one batch, within the limits of an atomic one.

        Returns
        -------
        BatchAck
            `memory_ids` of the accepted ones; 0 where an id is not kept any more.

        Raises
        ------
        SequenceGap, SequenceConflict, Fenced, SessionExpired, Paused
            As for `observe`.
        InvalidArgument, TooLarge, Overloaded, DiskFull, Poisoned, Corrupted, NotFound, Closed, Interrupted
            As for `Space.observe_batch`.
        """
        atomic = flag("atomic", atomic)
        columns = Columns.of(texts, vectors, metadata, confidence, observed_at, keys, atomic)
        first, timeout_ms = _sequence(sequence), self._space._timeout_ms(on_overload, timeout)
        columns.empty_refused()
        try:
            said = self._core.say(columns.arguments(), first, atomic, timeout_ms)
        except InvalidArgument as error:
            if atomic or error.index is None:
                raise
            columns.refuse_alone(lambda row: encode_frame(row, self._space.dim, self._space.metric, False))
            columns.empty_refused()
            said = self._core.say(columns.arguments(), first, atomic, timeout_ms)
        return self._batch(said, dict(columns.refused))

    def observe_frame(
        self, frame: bytes, *, on_overload: OnOverload = "wait", timeout: float | None = None
    ) -> BatchAck:
        """Store a frame of the wire (`proto/engram/v1/frame.proto`), which has its own first sequence.

        Raises what `observe_batch` with ``atomic=False`` does.
        """
        return self._batch(self._core.say_frame(octets("frame", frame), self._space._timeout_ms(on_overload, timeout)))

    def submit_frame(self, frame: bytes | bytearray | memoryview) -> bytes | None:
        """Take a frame of the wire or refuse it, at once: for servers, which do not wait for a disk.

        What it comes to is told by `Engine.drain_completions`. A refusal is returned, as the bytes of a `Told` with a
        fault (`proto/engram/v1/frame.proto`) that says where to go on; frames that follow a refused one are passed over
        in silence until the one that is expected comes.

        Raises
        ------
        Fenced, SessionExpired, NotFound, Closed
            The session takes no more frames from this speaker.
        """
        try:
            return self._core.submit_frame(frame)
        except TypeError as error:
            raise InvalidArgument(f"frame: {error}", field="frame", index=None) from None

    def tell_absorbed(self) -> None:
        """From now on `Engine.drain_completions` tells of what is absorbed, too: a `Told` with `absorbed`, cumulative.

        Raises
        ------
        Fenced, SessionExpired
        """
        self._core.tell_absorbed()

    def tell_levels(self) -> None:
        """From now on, not only from the first frame, `Engine.drain_completions` tells of the space's level.

        Raises
        ------
        Fenced, SessionExpired
        """
        self._core.tell_levels()

    @property
    def id(self) -> int:
        """Tells its completions from those of others."""
        return self._core.id

    def _batch(self, said: _Said, reasons: Mapping[int, str] | None = None) -> BatchAck:
        _, runs, duplicates, rejected = said
        rejected = [(index, (reasons or {}).get(index, reason)) for index, reason in rejected]
        empty = np.empty(0, dtype=np.uint64)
        each = [
            np.arange(first, first + count, dtype=np.uint64) if first else np.zeros(count, dtype=np.uint64)
            for _, count, first in runs
        ]
        ids = np.concatenate([empty, *each])
        generation = int(ids[-1]) if len(ids) else 0
        duplicate = len(ids) > 0 and duplicates == len(ids)
        accepted = np.delete(ids, [index for index, _ in rejected])
        return BatchAck(accepted, generation, self._space.durability, rejected, duplicate)

    def on_pressure(self, callback: OnPressure | None) -> None:
        """Be told how hard the space is pressed: of each change of its level, within a tenth of a second.

        Parameters
        ----------
        callback : callable (level: str, advised_batch: int), or None
            Called on a thread of the engine, one call at a time, also at once if the level is not NORMAL. It must not
            wait. What it raises is logged. None: nobody is called any more.

        Raises
        ------
        InvalidArgument
            It cannot be called.
        Fenced, SessionExpired
            This speaker has no say in the session any more.
        """
        if not (callback is None or callable(callback)):
            raise InvalidArgument(f"callback is {callback!r}; it must be callable", field="callback", index=None)
        watch = self._space._engine._watch
        if callback is None:
            self._on_pressure = None
            watch.remove(self)
            return
        before, self._on_pressure = self._on_pressure, callback
        watch.add(self)
        try:
            self._core.listen()
        except EngramError:
            self._on_pressure = before
            raise

    def pause(self) -> None:
        """Refuse what is sent until `resume`; what was taken goes on."""
        self._core.pause(True)

    def resume(self) -> None:
        """Take observations again."""
        self._core.pause(False)

    def drain(self, timeout: float | None = None) -> None:
        """Take no more, and wait until everything taken is committed. Raises `Timeout`."""
        self._core.drain(self._space._timeout_ms("wait", timeout))

    def close(self, timeout: float | None = None) -> None:
        """Drain, and end the session: its token is worth nothing afterwards. Closing twice is fine."""
        if self._core.state == "CLOSED":
            return
        self.on_pressure(None)
        timeout_ms = self._space._timeout_ms("wait", timeout)
        try:
            self._core.drain(timeout_ms)
            self._core.end(timeout_ms)
        except SessionExpired:
            if self._core.state != "CLOSED":  # by another thread
                raise

    def detach(self) -> None:
        """Give the session up without ending it: whoever has the token goes on with it, within a week."""
        self.on_pressure(None)
        self._core.detach()

    def __enter__(self) -> Session:
        """Return the session."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close; after an error detach."""
        if error is None and self.state not in ("DETACHED", "FENCED"):
            self.close()
        else:
            self.detach()

    def __repr__(self) -> str:
        """Show space, state and how far it is committed."""
        return f"<engram.Session of {self._space.name!r} {self.state} committed={self.committed}>"


def _sequence(sequence: Any) -> int | None:
    return None if sequence is None else whole("sequence", sequence, 1, 2**63 - 1)
