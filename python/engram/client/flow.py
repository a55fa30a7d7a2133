"""A session over a stream of frames, from the client's end; it lives on the loop of a `Link`.

    connecting ── Opened ──→ open ── the stream breaks ──→ connecting (with the token) …   until closed, or failed

Frames go out in order, as far as the window lets them, and are kept until they are acknowledged. After a refusal it
goes back to what is expected; after a lost connection it attaches by the token and sends again what is not committed.
So each frame has its effect once, whatever breaks (S2 to S4).
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import random
import secrets
from collections import deque
from collections.abc import Callable
from typing import Any

import grpc

from engram._exceptions import (
    DiskFull,
    EngramError,
    Fenced,
    Overloaded,
    Paused,
    SessionExpired,
    Timeout,
    Unavailable,
    from_core,
)
from engram.client.frames import Sent, frame_message
from engram.client.link import Link, again
from engram.client.status import NAME, error_of
from engram.v1 import frame_pb2
from engram.v1 import service_pb2 as pb

FRAMES_MAX = 256  # in flight: what the server keeps ids of
_BACKOFF_SECONDS = (0.05, 2.0)
_PROBE_SECONDS = 0.25  # with a closed window and nothing in flight one frame asks anew
_OPEN_SECONDS = 30.0

_TRANSIENT = (Unavailable, Timeout, Overloaded, DiskFull)
_OF_AN_ITEM = ("INVALID_ARGUMENT", "TOO_LARGE")
_ids = itertools.count(1)

log = logging.getLogger("engram")


class Flow:
    """One session. Everything but `start` is called on the loop."""

    def __init__(self, link: Link, asked: pb.Open, reconnect_seconds: float) -> None:
        self.link = link
        self.id = next(_ids)
        self._asked = asked
        self._asked.speaker = secrets.randbits(64) | 1
        self._reconnect_seconds = reconnect_seconds
        self.token = asked.token
        self._returns = False  # not for the first time
        self.state = "ACTIVE"
        self.error: EngramError | None = None
        self.opened = pb.Opened()
        self.window = pb.Window()
        self.committed = self.absorbed = 0
        self.reconnects = 0
        self.refusals = 0
        self._waiting: deque[Sent] = deque()  # to be sent, in order
        self._in_flight: deque[Sent] = deque()
        self._items = self._bytes = 0  # in flight
        self._waiting_bytes = 0
        self.rejected: list[tuple[int, str]] = []
        self._wake = asyncio.Event()
        self._changed = asyncio.Event()
        self._hold_until = 0.0
        self._wants_room = False  # that is what it is held for
        self.expected = 0  # after a refusal the server passes over what begins behind it
        self._answer: asyncio.Future[int] | None = None  # to drain or close
        self._answers = "drained"  # what answers it
        self._asking = asyncio.Lock()
        self._call: Any = None
        self._task: asyncio.Task[None] | None = None
        #: Called on the loop.
        self.on_pressure: Callable[[str, int], None] | None = None
        self.on_progress: Callable[[], None] | None = None

    @classmethod
    async def start(cls, link: Link, asked: pb.Open, reconnect_seconds: float) -> Flow:
        """Open the session; raises what the server says."""
        self = cls(link, asked, reconnect_seconds)
        await again(self._connect)  # a session that nobody hears of is never spoken in
        self._task = asyncio.create_task(self._run())
        return self

    # ---- the connection ----------------------------------------------------------------------------------------------

    async def _connect(self) -> None:
        try:
            await self._open()
        except Fenced:  # by an attempt of our own that the server met late? It knows who spoke last
            self._returns = True
            await self._open()

    async def _open(self) -> None:
        call: Any = self.link.channel.stream_stream(f"/{NAME}/Observe")()
        asked = pb.Open()
        asked.CopyFrom(self._asked)
        if self.token:
            asked.token = self.token
            asked.again = self._returns  # else it was asked for, and takes the session from whoever has it
            if self.reconnects or self.committed:
                asked.acknowledged = self.committed
        try:
            await call.write(pb.ObserveRequest(open=asked).SerializeToString())
            message = await asyncio.wait_for(call.read(), _OPEN_SECONDS)
            if message is grpc.aio.EOF:
                await self._raise_status(call)
        except TimeoutError:
            call.cancel()
            raise Unavailable("the server did not open the session in time") from None
        except grpc.aio.AioRpcError as error:
            raise error_of(error) from None
        except asyncio.InvalidStateError:
            await self._raise_status(call)
        except asyncio.CancelledError:
            call.cancel()
            raise
        self._call, self._returns = call, True
        self.opened = pb.ObserveResponse.FromString(message).opened
        self.token, self.window = self.opened.token, self.opened.window
        self.absorbed = max(self.absorbed, self.opened.absorbed)
        self._rewind(0)
        self.expected = 0
        # What is committed already is sent again too: the answer says which items hold nothing, and the ids.
        self.committed = max(self.committed, self.opened.committed)
        self._report()

    async def _raise_status(self, call: Any) -> None:
        code, details = await call.code(), await call.details()
        trailing = await call.trailing_metadata()
        error = grpc.aio.AioRpcError(code, grpc.aio.Metadata(), trailing, details)
        raise error_of(error) if code != grpc.StatusCode.OK else Unavailable("the server ended the stream")

    async def _run(self) -> None:
        """Send and hear, and connect again when the stream breaks."""
        try:
            while True:
                error = await self._stream()
                if error is None or not isinstance(error, Unavailable | Overloaded | Fenced):
                    self._fail(error)
                    return
                await self._reconnect(error)
        except asyncio.CancelledError:
            self._fail(self._ended())
            raise
        except EngramError as error:
            self._fail(error)
        except Exception as error:  # nobody may wait for ever
            self._fail(Unavailable(f"the stream failed: {error!r}: this is a bug, please report it"))

    async def _stream(self) -> EngramError | None:
        """Use one stream until it ends; why it did, None: as it was asked to."""
        hearing = asyncio.create_task(self._hear())
        sending = asyncio.create_task(self._send())
        try:
            await asyncio.wait((hearing, sending), return_when=asyncio.FIRST_COMPLETED)
            if not hearing.done():  # sending broke: hearing says why
                await asyncio.wait((hearing,), timeout=1.0)
            return hearing.result() if hearing.done() else Unavailable("the stream broke")
        finally:
            for task in (hearing, sending):
                task.cancel()
            await asyncio.gather(hearing, sending, return_exceptions=True)
            self._call.cancel()

    async def _reconnect(self, error: EngramError) -> None:
        loop = asyncio.get_running_loop()
        until = loop.time() + self._reconnect_seconds
        pause, longest = _BACKOFF_SECONDS
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(error)
        while True:
            if loop.time() >= until:
                raise error
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))
            pause = min(2 * pause, longest)
            self.reconnects += 1
            try:
                await self._connect()
                return
            except _TRANSIENT as again:
                error = again

    # ---- sending -----------------------------------------------------------------------------------------------------

    def take(self, sent: Sent) -> None:
        """Take a frame; after the stream has failed it goes nowhere."""
        if self.error is None:
            self.submit(sent)

    def submit(self, sent: Sent) -> None:
        """Take a frame; its sequences follow those before."""
        if self.error is not None:
            raise self.error
        self._waiting.append(sent)
        self._waiting_bytes += len(sent.data)
        self._wake.set()

    @property
    def last(self) -> int:
        """The last sequence that was taken, or is committed."""
        for frames in (self._waiting, self._in_flight):
            if frames:
                return max(self.committed, frames[-1].last)
        return self.committed

    def _may_send(self, sent: Sent) -> bool:
        if not self._in_flight:
            return True
        within = self._items + sent.count <= self.window.observations
        return within and self._bytes + len(sent.data) <= self.window.bytes and len(self._in_flight) < FRAMES_MAX

    async def _send(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            pause = self._hold_until - loop.time()
            closed = not self._in_flight and (self.window.observations == 0 or self.state == "PAUSED")
            if self._waiting and pause <= 0 and not closed and self._may_send(self._waiting[0]):
                sent = self._next()
                self._in_flight.append(sent)
                self._items += sent.count
                self._bytes += len(sent.data)
                await self._call.write(frame_message(sent.first, sent.data))
                continue
            self._wake.clear()
            if self._waiting and closed and self.state != "PAUSED":
                pause = _PROBE_SECONDS
            try:
                await asyncio.wait_for(self._wake.wait(), pause if self._waiting and pause > 0 else None)
            except TimeoutError:
                if closed:
                    self.window.observations = max(self.window.observations, self._waiting[0].count)

    def _next(self) -> Sent:
        sent = self._waiting.popleft()
        self._waiting_bytes -= len(sent.data)
        return sent

    def _rewind(self, expected: int) -> None:
        """Everything from `expected` on will be sent again."""
        while self._in_flight and self._in_flight[-1].last >= expected:
            sent = self._in_flight.pop()
            self._items -= sent.count
            self._bytes -= len(sent.data)
            sent.runs, sent.rejected, sent.duplicates = [], [], 0
            self._waiting.appendleft(sent)
            self._waiting_bytes += len(sent.data)
        self._wake.set()

    # ---- hearing -----------------------------------------------------------------------------------------------------

    async def _hear(self) -> EngramError | None:
        try:
            while (data := await self._call.read()) is not grpc.aio.EOF:
                self._heard(pb.ObserveResponse.FromString(data))
            await self._raise_status(self._call)
        except grpc.aio.AioRpcError as error:
            return error_of(error)
        except EngramError as error:
            return None if self.state == "CLOSED" else error
        return None

    def _heard(self, message: pb.ObserveResponse) -> None:
        which = message.WhichOneof("what")
        if which == "ack":
            self._acknowledged(message.ack)
        elif which == "fault":
            self._refused(message.fault)
        elif which == "window":
            self.window = message.window
        elif which == "pressure":
            self.window.level, self.window.advised_batch = message.pressure.level, message.pressure.advised_batch
            if self._wants_room and message.pressure.level != "OVERLOADED":
                self._hold_until = 0.0  # the room that was to be waited for may be there
            if self.on_pressure is not None:
                self.on_pressure(message.pressure.level, message.pressure.advised_batch)
        elif which == "absorbed":
            self.absorbed = max(self.absorbed, message.absorbed.through_sequence)
        elif which in ("drained", "closed"):
            self.state = "DRAINING" if which == "drained" else "CLOSED"
            # What an earlier question was answered late is not for this one.
            if which == self._answers and self._answer is not None and not self._answer.done():
                self._answer.set_result(getattr(message, which).committed)
        self._wake.set()

    def _acknowledged(self, ack: frame_pb2.Ack) -> None:
        end = ack.first_sequence + ack.count
        for sent in self._in_flight:
            first, last = max(sent.first, ack.first_sequence), min(sent.last + 1, end)
            if first >= last:
                continue
            generation = ack.first_generation and ack.first_generation + first - ack.first_sequence
            sent.runs.append((first, last - first, generation))
            sent.duplicates += last - first if ack.duplicate else 0
        if end > self.expected:
            self.expected = 0
        self._settle(end - 1)

    def _settle(self, through: int) -> None:
        """Everything up to `through` is committed."""
        while self._in_flight and self._in_flight[0].last <= through:
            sent = self._in_flight.popleft()
            self._items -= sent.count
            self._bytes -= len(sent.data)
            self._finish(sent, None)
        self.committed = max(self.committed, through)
        self._report()

    def _finish(self, sent: Sent, error: EngramError | None) -> None:
        self.rejected += sent.rejected
        if sent.future is not None and not sent.future.done():
            sent.future.set_result(sent) if error is None else sent.future.set_exception(error)

    def _refused(self, fault: frame_pb2.Fault) -> None:
        at, error = fault.first_sequence, self._error(fault)
        if isinstance(error, Fenced):
            raise error  # this stream is over; whether the session is, the next says
        refused = next((sent for sent in self._in_flight if sent.first <= at <= sent.last), None)
        if not fault.expected and fault.code in _OF_AN_ITEM:
            if refused is not None:
                refused.rejected.append((at, fault.message))
            return
        if fault.code == "QUARANTINED":
            self._drop(at, error)
            return
        # Refused at once; or, without `expected`, when it had been taken: then all from it on is to be sent again.
        again = min([first for first in (fault.expected, refused and refused.first) if first], default=0)
        self._rewind(again)
        self.expected = fault.expected
        head = self._waiting[0] if self._waiting else None
        loop = asyncio.get_running_loop()
        if isinstance(error, Overloaded | DiskFull | Paused):
            self.refusals += 1
            gives_up_at = None if head is None else head.gives_up_at
            if gives_up_at is not None and loop.time() >= gives_up_at:
                self._finish(self._next(), error)
                return
            again_at = loop.time() + (fault.retry_after_ms / 1000 or _PROBE_SECONDS)
            self._hold_until = again_at if gives_up_at is None else min(again_at, gives_up_at)
            self._wants_room = isinstance(error, Overloaded)
            loop.call_at(self._hold_until, self._wake.set)
        elif head is not None and head.future is not None:
            self._finish(self._next(), error)
        elif not (fault.code == "SEQUENCE_GAP" and head is not None and head.first <= fault.expected):
            self._fail(error)

    def _drop(self, sequence: int, error: EngramError) -> None:
        """What is kept aside has its sequences, and is done with."""
        for sent in [*self._in_flight]:
            if sent.first <= sequence <= sent.last:
                self._in_flight.remove(sent)
                self._items -= sent.count
                self._bytes -= len(sent.data)
                sent.rejected.append((sequence, error.message))
                self._finish(sent, error)
        self._report()

    def _error(self, fault: frame_pb2.Fault) -> EngramError:
        known: dict[str, Any] = {
            "INVALID_ARGUMENT": {"field": "frame", "index": None},
            "TOO_LARGE": {"field": "batch", "index": None},
            "OVERLOADED": {"retry_after_ms": fault.retry_after_ms, "level": self.window.level},
            "SEQUENCE_GAP": {"expected": fault.expected},
            "SEQUENCE_CONFLICT": {"sequence": fault.first_sequence},
            "POISONED": {"cause": fault.message},
            "QUARANTINED": {"reason": fault.message},
            "PERMISSION_DENIED": {"path": ""},
            "STORAGE": {"path": "", "errno": 0},
        }
        fields = known.get(fault.code, {})
        return from_core(fault.code, fault.message, fields)

    # ---- waiting, and the end ----------------------------------------------------------------------------------------

    def _report(self) -> None:
        self._changed.set()
        if self.on_progress is not None:
            try:
                self.on_progress()
            except BaseException:  # it is the caller's, whatever it is; the stream goes on
                log.exception("a callback for the progress of a stream raised")

    async def settled(self, upto: int) -> None:
        """Wait until everything up to a sequence is acknowledged; raises what stood in the way for good."""
        while not self.is_settled(upto):
            if self.error is not None:
                raise self.error
            self._changed.clear()
            await self._changed.wait()
        if self.error is not None and self.state != "CLOSED":
            raise self.error

    async def room(self, bytes_max: int) -> None:
        """Wait until what is kept takes less than so many bytes."""
        while self.kept_bytes > bytes_max and self.error is None:
            self._changed.clear()
            await self._changed.wait()
        if self.error is not None:
            raise self.error

    @property
    def kept_bytes(self) -> int:
        """Of frames that are not acknowledged; any thread may look."""
        return self._waiting_bytes + self._bytes

    async def ask(self, request: pb.ObserveRequest) -> int:
        """Ask to drain or close, and wait for the answer: what is committed."""
        async with self._asking:  # answers do not say which question they are for
            if self.state == "CLOSED":
                if not request.HasField("close"):
                    raise self._ended()
                return self.committed
            self._answers = "closed" if request.HasField("close") else "drained"
            self._answer = asyncio.get_running_loop().create_future()
            try:
                await self._write(request)
                return await self._answer
            finally:
                self._answer = None

    async def _write(self, request: pb.ObserveRequest) -> None:
        if self.error is not None:
            raise self.error
        try:
            await self._call.write(request.SerializeToString())
        except (asyncio.InvalidStateError, grpc.aio.AioRpcError, grpc.aio.UsageError):
            raise Unavailable("the connection is lost, and made again: try again") from None

    async def tell(self, request: pb.ObserveRequest, state: str) -> None:
        """Pause or resume."""
        await self._write(request)
        self.state = state
        self._wake.set()

    def _fail(self, error: EngramError | None) -> None:
        self.error = error or self._ended()
        if self.state not in ("CLOSED", "DETACHED"):
            self.state = "FENCED" if self.error.code == "FENCED" else "DETACHED"
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(self.error)
        for frames in (self._in_flight, self._waiting):
            for sent in frames:
                self._finish(sent, self.error)
        self._report()

    def _ended(self) -> EngramError:
        """Why nothing is said here any more, when it was ended from here."""
        if self.state == "CLOSED":
            return SessionExpired("the session is gone: it was closed, or has expired; open a new one")
        if self.state == "DETACHED":
            return Fenced("the session was given up here; attach by its token")
        return Unavailable("the connection is closed")

    def abandon(self) -> None:
        """Give it up, from any thread, without waiting: nobody holds it any more."""
        task = self._task
        if task is not None and not self.link.loop.is_closed():
            self.link.loop.call_soon_threadsafe(task.cancel)

    def is_settled(self, upto: int) -> bool:
        """Whether everything taken up to a sequence is acknowledged."""
        return all(frames[0].first > upto for frames in (self._in_flight, self._waiting) if frames)

    async def detach(self) -> None:
        """Give it up; what is not acknowledged may be committed or not."""
        if self.state not in ("CLOSED", "FENCED"):
            self.state = "DETACHED"
        if self._task is not None and not self._task.done():
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
