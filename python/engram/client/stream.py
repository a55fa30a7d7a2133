"""Observations as they come, in frames: `ObserveStream`."""

from __future__ import annotations

import asyncio
import logging
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import TracebackType
from typing import TypeAlias

from engram._convert import Arguments, Columns, Metadata, Time, Vectors, one_row
from engram._engine import encode_frame
from engram._exceptions import Closed, EngramError, InvalidArgument, SessionExpired, Timeout, TooLarge
from engram.client.flow import Flow
from engram.client.frames import Given, fits, one_moment, room_of
from engram.client.link import Link
from engram.client.turns import Turns, deadline, seconds_left
from engram.v1 import service_pb2 as pb

FRAME_BYTES = 256 << 10
FRAME_SECONDS = 0.005
_FLUSH_SECONDS = 10.0
_CLOSE_SECONDS = 30.0  # after an error, or Ctrl-C
_ANSWER_SECONDS = 2.0
_AGAIN_SECONDS = 0.1
_FULL = (
    "not taken in time: the buffer is full, or calls before it wait for that; the server takes less than is observed"
)

log = logging.getLogger("engram")

#: Called with the stream after acknowledgements.
OnProgress: TypeAlias = "Callable[[ObserveStream], None]"


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
        limits: Mapping[str, int],
        on_progress: OnProgress | None,
    ) -> None:
        self._link = link
        self._flow = link.call(Flow.start(link, asked, reconnect))
        self._buffer_bytes = buffer_bytes
        self._items_max, self._bytes_max = limits["batch_items_max"], limits["batch_bytes_max"]
        self._message_bytes_max = limits["message_bytes_max"]
        self._frame_bytes = min(FRAME_BYTES, self._message_bytes_max * 3 // 4, self._bytes_max)
        self.turns = Turns(_FULL)  # of calls, also while they wait for room
        self._lock = threading.Lock()  # never held while anything is waited for
        self._closing = asyncio.Lock()  # of the link's loop
        self._failure: EngramError | None = None  # of the end
        weakref.finalize(self, self._flow.abandon).atexit = False  # at exit it is flushed
        self._given = Given(self._flow.committed + 1, [])
        self._timed = False
        self._over = False  # nothing more is taken
        self._gone = False  # closed or detached, as was wanted
        link.streams.add(self)
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
        return self._given.next - 1

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
        until = deadline(timeout)
        alone = self.alone(text, vector, confidence, metadata, observed_at, key)
        sequence = self.take_at_once(alone)
        return self.turns.run(lambda: self._take_in_turn(alone, until), until) if sequence is None else sequence

    def alone(
        self,
        text: str | None,
        vector: Vectors | None,
        confidence: float,
        metadata: Metadata | None,
        observed_at: Time,
        key: str | None,
    ) -> bytes:
        """Return an observation as a frame: from now on its giver may do with it what he likes."""
        if text is None and vector is None:
            raise InvalidArgument("an observation needs a text or a vector", field="text", index=0)
        row = one_row(text, vector, confidence, metadata, observed_at, key)
        self._link.check()
        return self._frame(row)

    def take_at_once(self, alone: bytes) -> int | None:
        """Take an observation, unless somebody is before it or there is no room; its sequence."""
        with self._lock:
            return None if self.turns.taken or not self.has_room else self._add(alone)

    def _take_in_turn(self, alone: bytes, until: float | None) -> int:
        self._wait_room(until)
        return self.take(alone)

    def take(self, alone: bytes) -> int:
        """Take an observation whose turn has come; its sequence."""
        with self._lock:
            return self._add(alone)

    def _add(self, alone: bytes) -> int:
        self._check()
        # Full it may be too: who filled it was interrupted.
        if self._given.size + room_of(alone) > self._frame_bytes or self._given.count >= self._advised:
            self._cut()
        given = self._given
        sequence = given.add(alone)
        if given.size >= self._frame_bytes or given.count >= self._advised:
            self._cut()
        elif not self._timed:
            self._soon(self._start_timer)
            self._timed = True
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
        until = deadline(timeout)
        self._link.check()
        frames = self.frames(Columns.of(texts, vectors, metadata, confidence, observed_at, keys, True))
        return self.turns.run(lambda: self._take_batch_in_turn(frames, until), until)

    def _take_batch_in_turn(self, frames: Iterator[tuple[int, bytes]], until: float | None) -> range:
        taken = None
        for count, frame in frames:
            self._wait_room(until)
            taken = self.take_frame(count, frame, taken)
        assert taken is not None  # no batch is empty
        return taken

    def frames(self, columns: Columns) -> Iterator[tuple[int, bytes]]:
        """Cut a batch into frames, each with its count, made as they are asked for. Raises what is wrong with any."""
        one_moment(columns)
        # A frame of several is cut far below what is refused.
        for row in columns.larger(self._flow.opened.dim, self._frame_bytes):
            self._frame(columns.arguments(row))
        pieces = columns.pieces(self._flow.opened.dim, self._advised, self._frame_bytes)
        return ((len(rows), self._frame(columns.arguments(rows))) for rows in pieces)

    def take_frame(self, count: int, frame: bytes, before: range | None) -> range:
        """Take a frame of a batch whose turn has come; the sequences of the batch up to it."""
        with self._lock:
            self._check()
            self._cut()
            first = self._given.next
            self._given = self._given.and_frame(count, frame)
            self._soon(self._hand_over)
        return range(first if before is None else before.start, first + count)

    @property
    def _advised(self) -> int:
        return min(self._flow.window.advised_batch or 256, self._items_max)

    def _frame(self, rows: Arguments) -> bytes:
        """Observations as they are sent. Raises `InvalidArgument` if they never can be."""
        opened = self._flow.opened
        frame = encode_frame(rows, opened.dim, opened.metric, False)
        fits(frame, self._message_bytes_max)
        if len(frame) > self._bytes_max:
            text = f"a batch of {len(frame)} bytes; the server takes {self._bytes_max}"
            raise TooLarge(text, field="batch", index=None)
        return frame

    def flush(self, timeout: float | None = None) -> None:
        """Wait until everything given is acknowledged. Raises `Timeout`, or why the stream has failed."""
        self._link.call(self.settling(timeout))

    async def settling(self, timeout: float | None) -> None:
        """Flush, on the loop of the link."""
        seconds = seconds_left(deadline(timeout))
        with self._lock:
            self._cut()
        last = self.given
        self._hand_over()
        if self._flow.is_settled(last):
            seconds = None  # there is nothing to wait for
        try:
            async with asyncio.timeout(seconds):
                await self._flow.settled(last)
        except TimeoutError:
            raise Timeout("not everything is acknowledged yet; it goes on") from None

    def close(self, timeout: float | None = None) -> None:
        """Flush, and end the session: its token is worth nothing afterwards. Twice is fine; in a fork, nothing.

        Raises
        ------
        Timeout
            Not everything was acknowledged in time, and the stream is given up: go on by its token.
        EngramError
            The stream has failed, for this reason; what is not acknowledged then, the next `close` tells again.
        """
        deadline(timeout)
        if not self.is_closed:
            self._link.call(self.closing(timeout))

    @property
    def is_closed(self) -> bool:
        """Whether there is nothing to close any more. Raises why closing has failed."""
        if self._link.is_elsewhere:
            return True
        if self._failure is not None:
            raise self._failure
        return self._gone

    async def closing(self, timeout: float | None) -> None:
        """Close, on the loop of the link."""
        until = deadline(timeout)
        try:
            async with asyncio.timeout(timeout):
                await self._closing.acquire()
        except TimeoutError:
            raise Timeout("another call is closing the stream") from None
        try:
            if not self.is_closed:
                await self._close(seconds_left(until))
        finally:
            self._closing.release()

    async def _close(self, seconds: float | None) -> None:
        with self._lock:
            self._cut()
            self._over = True
        try:
            try:
                await self.settling(seconds)
            except Timeout:
                text = (
                    "not everything is acknowledged, and the stream is given up: go on by its token, after `committed`"
                )
                raise Timeout(text) from None
            # Everything is acknowledged: only the answer is on its way.
            await self._end(_CLOSE_SECONDS if seconds is None else max(seconds, _ANSWER_SECONDS))
            self._gone = True
        except EngramError as error:
            self._failure = error
            raise
        except asyncio.CancelledError:  # of who called; others may wait for the end, too
            self._failure = Closed("closing was given up; go on by the stream's token, after `committed`")
            raise
        finally:
            if self.committed == self.given:  # there is nothing to be told again
                self._gone, self._failure = True, None
            # Closed or not, nobody speaks here any more; the token goes on.
            await self._flow.detach()

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
        if self._over or self._link.is_elsewhere:
            return
        if self._link.is_over:
            self._over = self._gone = True
            return
        self._link.call(self.detaching())

    async def detaching(self) -> None:
        """Give it up, on the loop of the link."""
        if not self._over:
            self._over = self._gone = True
            await self._flow.detach()

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
    def has_room(self) -> bool:
        """Whether more can be taken; some may be over the limit then."""
        # In this order: what goes from here to there meanwhile is counted twice, never not at all.
        return self._given.frame_bytes + self._flow.kept_bytes <= self._buffer_bytes

    def _wait_room(self, until: float | None) -> None:
        if not self.has_room:
            self._link.call(self.making_room(until))

    async def making_room(self, until: float | None) -> None:
        """Wait for room, on the loop of the link. Raises `Timeout`."""
        self._hand_over()
        try:
            async with asyncio.timeout(seconds_left(until)):
                await self._flow.room(self._buffer_bytes)
        except TimeoutError:
            raise Timeout(_FULL) from None

    def _start_timer(self) -> None:
        self._link.loop.call_later(FRAME_SECONDS, self._tick)

    def _tick(self) -> None:
        with self._lock:
            self._timed = False
            self._cut()

    def _cut(self) -> None:
        """Make frames of the single observations; the lock is held."""
        if self._given.count:
            self._given = self._given.cut()
            self._soon(self._hand_over)

    def _hand_over(self) -> None:
        """Give the flow its frames; on the loop."""
        with self._lock:
            for sent in self._given.frames:
                self._flow.take(sent)
            self._given.frames, self._given.frame_bytes = [], 0

    def _soon(self, call: Callable[[], None]) -> None:
        try:
            self._link.loop.call_soon_threadsafe(call)
        except RuntimeError:
            raise Closed("the connection is closed") from None

    def __enter__(self) -> ObserveStream:
        """Return the stream."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Flush and close; after an error flush, at most ten seconds, and detach."""
        if not self._link.is_over:
            try:
                self._link.call(self.leaving(error is not None))
            except Closed:  # meanwhile; the error that ends the block is the one to be seen
                if error is None:
                    raise
        elif error is None:
            self.close()

    async def leaving(self, failed: bool) -> None:
        """End a block, on the loop of the link."""
        if not failed:
            if self._failure is None:  # else it was told
                await self.closing(None)
            return
        try:
            if not self._over:
                await self.settling(_FLUSH_SECONDS)
        except EngramError:
            pass  # the error that ends the block is the one to be seen
        finally:
            await self.detaching()

    def __del__(self) -> None:
        """Complain of what is lost: nobody holds the stream any more."""
        given = self.__dict__.get("_given")  # none if it was never opened
        if given is not None and not self._over and not self._link.is_elsewhere:
            lost = given.next - 1 - self._flow.committed
            if lost > 0:
                log.warning("a stream was dropped without `close`: %d observations were not acknowledged", lost)

    def __repr__(self) -> str:
        """Show how far it is."""
        return f"<engram.ObserveStream {self._flow.state} given={self.given} committed={self.committed}>"
