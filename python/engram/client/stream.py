"""Observations as they come, in frames: `ObserveStream`."""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any, TypeAlias

import numpy as np

from engram._convert import Arguments, Columns, Metadata, Time, Vectors, duration, one_row
from engram._engine import encode_frame
from engram._exceptions import Closed, EngramError, SessionExpired, Timeout
from engram.client.flow import Flow
from engram.client.frames import Sent, fits
from engram.client.link import Link
from engram.v1 import service_pb2 as pb

FRAME_BYTES = 256 << 10
FRAME_SECONDS = 0.005
_FLUSH_SECONDS = 10.0
_CLOSE_SECONDS = 30.0  # after an error, or Ctrl-C
_ANSWER_SECONDS = 2.0
_AGAIN_SECONDS = 0.1

#: Called with the stream after acknowledgements.
OnProgress: TypeAlias = "Callable[[ObserveStream], None]"


class _Rows:
    """Single observations, until they make a frame."""

    def __init__(self) -> None:
        self.rows: list[Arguments] = []
        self.bytes = 0

    def add(self, row: Arguments, size: int) -> None:
        """One more, a frame of so many bytes if it were alone."""
        self.rows.append(row)
        self.bytes += size

    def frames(self, dim: int, metric: str) -> list[tuple[int, bytes]]:
        """Count and frame of each run of rows that fill the same columns and have no key twice: a frame may not."""
        made: list[tuple[int, bytes]] = []
        run: list[Arguments] = []
        keys: set[str] = set()
        for row in [*self.rows, None]:
            own = set() if row is None else {key for key in row[5] or () if key is not None}
            if run and (row is None or _shape(row) != _shape(run[0]) or own & keys):
                made.append((len(run), encode_frame(_joined(run), dim, metric, False)))
                run, keys = [], set()
            if row is not None:
                run.append(row)
                keys |= own
        self.rows, self.bytes = [], 0
        return made


def _shape(row: Arguments) -> tuple[bool, ...]:
    return tuple(column is not None for column in row)


def _joined(rows: list[Any]) -> Arguments:
    def arrays(at: int) -> Any:
        return None if rows[0][at] is None else np.concatenate([row[at] for row in rows])

    def lists(at: int) -> Any:
        return None if rows[0][at] is None else [item for row in rows for item in row[at]]

    return arrays(0), lists(1), lists(2), arrays(3), arrays(4), lists(5)


def _seconds(timeout: float | None) -> float | None:
    return None if timeout is None else duration("timeout", timeout)


class ObserveStream:
    """A stream of observations to a server. Use `Space.stream`; a context manager that flushes and ends the session.

    `observe` and `observe_batch` return at once with the sequences the observations will have; frames leave when they
    hold what the server advises, 256 KiB, or what came in 5 ms. What was sent is kept until it is acknowledged, and
    sent again after a lost connection or a killed server: each observation is stored once, in order. An error ends a
    ``with`` block by flushing what was given, for at most ten seconds, and detaching: go on by the `token`.

    Any thread may use it; the order of the calls is the order of the sequences.
    """

    def __init__(
        self,
        link: Link,
        asked: pb.Open,
        reconnect: float,
        buffer_bytes: int,
        message_bytes_max: int,
        on_progress: OnProgress | None,
    ) -> None:
        self._link = link
        self._flow = link.call(Flow.start(link, asked, reconnect))
        self._buffer_bytes = buffer_bytes
        self._message_bytes_max = message_bytes_max
        self._frame_bytes = min(FRAME_BYTES, message_bytes_max * 3 // 4)
        self._order = threading.Lock()  # held by a call, also while it waits for room
        self._lock = threading.Lock()  # never held while anything is waited for
        weakref.finalize(self, self._flow.abandon)
        self._rows = _Rows()
        self._timed = False
        self._next = self._flow.committed + 1
        self._over = False
        if on_progress is not None:
            here = weakref.ref(self)

            def told() -> None:
                stream = here()
                if stream is not None:
                    on_progress(stream)

            self._flow.on_progress = told

    @property
    def token(self) -> str:
        """The right to go on with this stream, from any process; keep it where the source's position is kept."""
        return self._flow.token

    @property
    def committed(self) -> int:
        """The last sequence that is acknowledged; a source goes on behind it."""
        return self._flow.committed

    @property
    def given(self) -> int:
        """The last sequence that was given to an observation."""
        return self._next - 1

    @property
    def rejected(self) -> list[tuple[int, str]]:
        """Sequence and reason of observations that hold nothing, so far."""
        return [*self._flow.rejected]

    @property
    def level(self) -> str:
        """How hard the space is pressed: NORMAL, WARNING, CRITICAL or OVERLOADED."""
        return self._flow.window.level

    @property
    def credits(self) -> tuple[int, int]:
        """Observations and bytes that may be sent and not acknowledged."""
        return self._flow.window.observations, self._flow.window.bytes

    @property
    def reconnects(self) -> int:
        """How often it tried to connect again."""
        return self._flow.reconnects

    @property
    def refusals(self) -> int:
        """How often there was no room for a frame; it was sent again."""
        return self._flow.refusals

    def observe(
        self,
        text: str | None = None,
        *,
        vector: Vectors | None = None,
        confidence: float = 1.0,
        metadata: Metadata | None = None,
        observed_at: Time = None,
        key: str | None = None,
        timeout: float | None = None,
    ) -> int:
        """Give the stream one observation, as for `Space.observe`. Waits while the buffer is full, at most `timeout` s.

        Returns
        -------
        int
            Its sequence.

        Raises
        ------
        InvalidArgument
            It cannot be sent. What only the server can refuse is in `rejected`.
        Timeout
            The buffer stayed full; nothing was taken.
        EngramError
            The stream has failed, for this reason.
        """
        row = one_row(text, vector, confidence, metadata, observed_at, key)
        self._link.check()
        opened = self._flow.opened
        alone = encode_frame(row, opened.dim, opened.metric, False)
        fits(alone, self._message_bytes_max)
        with self._order:
            return self._observe(row, len(alone), timeout)

    def _observe(self, row: Arguments, size: int, timeout: float | None) -> int:
        self.wait_room(timeout)
        with self._lock:
            self._check()
            if self._rows.rows and self._rows.bytes + size > self._frame_bytes:
                self._cut()
            sequence, self._next = self._next, self._next + 1
            self._rows.add(row, size)
            full = self._rows.bytes >= self._frame_bytes or len(self._rows.rows) >= (
                self._flow.window.advised_batch or 1
            )
            if full:
                self._cut()
            elif not self._timed:
                self._timed = True
                self._link.loop.call_soon_threadsafe(self._start_timer)
        return sequence

    def observe_batch(
        self,
        *,
        texts: Iterable[str | None] | None = None,
        vectors: Vectors | None = None,
        metadata: Iterable[Metadata | None] | None = None,
        confidence: float | Iterable[float] | None = None,
        observed_at: Time | Iterable[Time] = None,
        keys: Iterable[str | None] | None = None,
        timeout: float | None = None,
    ) -> range:
        """Give the stream many observations, as for `Space.observe_batch`; each frame of them is visible at once.

        Returns
        -------
        range
            Their sequences.

        Raises
        ------
        InvalidArgument, Timeout, EngramError
            As for `observe`; after `Timeout` a part of the batch may have been taken: see `given`.
        """
        self._link.check()
        columns = Columns.of(texts, vectors, metadata, confidence, observed_at, keys, True)
        opened = self._flow.opened
        # Before any is taken. A frame of several is cut far below it.
        for row in columns.larger(opened.dim, self._frame_bytes):
            fits(encode_frame(columns.arguments(row), opened.dim, opened.metric, False), self._message_bytes_max)
        with self._order:
            return self._observe_batch(columns, timeout)

    def _observe_batch(self, columns: Columns, timeout: float | None) -> range:
        opened = self._flow.opened
        first = None
        for rows in columns.pieces(opened.dim, self._flow.window.advised_batch or 256, self._frame_bytes):
            if not len(rows):
                continue
            frame = encode_frame(columns.arguments(rows), opened.dim, opened.metric, False)
            fits(frame, self._message_bytes_max)
            self.wait_room(timeout)
            with self._lock:
                self._check()
                self._cut()
                first = self._next if first is None else first
                self._submit(len(rows), frame)
        begin = self._next if first is None else first
        return range(begin, begin + columns.count)

    def flush(self, timeout: float | None = None) -> None:
        """Wait until everything given is acknowledged. Raises `Timeout`, or why the stream has failed."""
        self._link.check()
        self._link.call(self.settling(timeout))

    async def settling(self, timeout: float | None) -> None:
        """Flush, on the loop of the link."""
        seconds = _seconds(timeout)
        with self._lock:
            self._cut()
        # What was cut just now is submitted first: callbacks of the loop run in order.
        await asyncio.sleep(0)
        if self._flow.is_settled:
            seconds = None  # there is nothing to wait for
        try:
            async with asyncio.timeout(seconds):
                await self._flow.settled()
        except TimeoutError:
            raise Timeout("not everything is acknowledged yet; it goes on") from None

    def close(self, timeout: float | None = None) -> None:
        """Flush, and end the session: its token is worth nothing afterwards. Twice is fine; in a fork, nothing."""
        if self._link.is_elsewhere:
            return
        _seconds(timeout)
        with self._lock:
            if self._over:
                return
            self._cut()
            self._over = True
        try:
            self._link.call(self.settling(timeout))
            # Everything is acknowledged: only the answer is on its way.
            self._link.call(self._end(_CLOSE_SECONDS if timeout is None else max(timeout, _ANSWER_SECONDS)))
        except BaseException:
            # Closed or not, nobody speaks here any more; the token goes on.
            self._link.call(self._flow.detach())
            raise
        self._link.call(self._flow.detach())

    async def _end(self, timeout: float) -> None:
        try:
            async with asyncio.timeout(timeout):
                while not await self._is_ended():
                    await asyncio.sleep(_AGAIN_SECONDS)
        except TimeoutError:
            raise Timeout("the session is not ended yet; everything is acknowledged") from None
        except SessionExpired:
            pass  # it was ended, and the answer lost

    async def _is_ended(self) -> bool:
        try:
            await self._flow.ask(pb.ObserveRequest(close=pb.Close()))
        except EngramError:
            if self._flow.error is not None:
                raise
            return False  # the connection is lost, and made again
        return True

    def detach(self) -> None:
        """Give the stream up without ending the session: whoever has the token goes on with it, within a week."""
        if not self._over and not self._link.is_elsewhere:
            self._over = True
            self._link.call(self._flow.detach())

    # ---- frames ------------------------------------------------------------------------------------------------------

    def _check(self) -> None:
        if self._over:
            raise Closed("the stream is closed")
        if self._flow.error is not None:
            raise self._flow.error

    @property
    def link(self) -> Link:
        """The connection."""
        return self._link

    @property
    def is_free(self) -> bool:
        """Whether an observation would find room, and no other call before it."""
        return self.has_room and not self._order.locked()

    @property
    def has_room(self) -> bool:
        """Whether an observation would not have to wait."""
        return self._flow.kept_bytes <= self._buffer_bytes

    def wait_room(self, timeout: float | None = None) -> None:
        """Wait until the buffer has room. Raises `Timeout`, or why the stream has failed."""
        if not self.has_room:
            self._link.call(self.making_room(timeout))

    async def making_room(self, timeout: float | None) -> None:
        """Wait for room, on the loop of the link."""
        try:
            async with asyncio.timeout(_seconds(timeout)):
                await self._flow.room(self._buffer_bytes)
        except TimeoutError:
            raise Timeout("the buffer stays full: the server takes less than is observed") from None

    def _start_timer(self) -> None:
        self._link.loop.call_later(FRAME_SECONDS, self._tick)

    def _tick(self) -> None:
        with self._lock:
            self._timed = False
            self._cut()

    def _cut(self) -> None:
        """Make frames of the single observations; the lock is held."""
        opened = self._flow.opened
        at = self._next - len(self._rows.rows)
        for count, frame in self._rows.frames(opened.dim, opened.metric):
            self._hand_over(Sent(at, count, frame))
            at += count

    def _submit(self, count: int, frame: bytes) -> None:
        first, self._next = self._next, self._next + count
        self._hand_over(Sent(first, count, frame))

    def _hand_over(self, sent: Sent) -> None:
        self._flow.coming_bytes += len(sent.data)
        self._link.loop.call_soon_threadsafe(self._flow.take, sent)

    def __enter__(self) -> ObserveStream:
        """Return the stream."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Flush and close; after an error flush, at most ten seconds, and detach."""
        if error is None:
            self.close()
            return
        try:
            if not self._over:
                self.flush(_FLUSH_SECONDS)
        except EngramError:
            pass  # the error that ends the block is the one to be seen
        finally:
            self.detach()

    def __repr__(self) -> str:
        """Show how far it is."""
        return f"<engram.ObserveStream {self._flow.state} given={self.given} committed={self.committed}>"
