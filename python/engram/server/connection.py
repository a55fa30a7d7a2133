"""A stream that observes: a state machine that every transport drives.

    opening ── open ──→ open ⇄ paused ── drain ──→ draining ── close ──→ closed
                          └────────── the peer is gone ──────────→ detached

A transport gives `receive` what the peer says, when `ready` lets it, and sends what `outbound` yields; both are bytes
of `ObserveRequest` and `ObserveResponse`. Nothing here waits for a disk: frames are submitted, and what they came to is
told by the hub (S2, S3). What the peer may have unacknowledged is bounded by its window, what it has not read by
`outbound_bytes_max`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial

from engram._exceptions import EngramError, Fenced, InvalidArgument, Overloaded, Unavailable
from engram._session import Session
from engram.server.hub import Hub
from engram.server.messages import check_size
from engram.server.service import Service
from engram.v1 import frame_pb2
from engram.v1 import service_pb2 as pb

_FRAME_TAG = b"\x12"  # field 2 of ObserveRequest, length-delimited
_FRAMES_MAX = 256  # in flight: what the engine keeps ids of
_IDLE_BYTES = 64 << 10
_IDLE_BYTES_A_SECOND = 20e6
_IDLE_FRAME_BYTES = 2 << 10  # a small frame takes the loop's time too
_ACK_WAIT = 2.0  # for acknowledgements of what is committed
_RETRY_MS = 100
_UNREAD_SECONDS = 2.0  # without taking anything, a peer with too much unread is cut
_BURST = 16  # times what may be unread: the faults of one frame, item by item


def frame_in(message: bytes) -> memoryview | None:
    """Return the frame, if the message is nothing else: it goes to the engine as it came."""
    if message[:1] != _FRAME_TAG:
        return None
    size, at = 0, 1
    for shift in range(0, 35, 7):
        if at >= len(message):
            return None
        byte = message[at]
        size |= (byte & 0x7F) << shift
        at += 1
        if byte < 0x80:
            return memoryview(message)[at:] if at + size == len(message) else None
    return None


class Signal:
    """Wakes who waits now. There are thousands, few of them waited for: an event each would be too much."""

    __slots__ = ("_event",)

    def __init__(self) -> None:
        self._event: asyncio.Event | None = None

    def set(self) -> None:
        """Wake those who wait now."""
        event, self._event = self._event, None
        if event is not None:
            event.set()

    async def wait(self) -> None:
        """Wait until it is set from now on."""
        event = self._event = self._event or asyncio.Event()
        await event.wait()


class Outbound:
    """What the peer is owed, in order; whoever does not read is cut when it is too much. One task takes it."""

    __slots__ = (
        "_bytes",
        "_bytes_max",
        "_loop",
        "_more",
        "_next",
        "_taken_at",
        "_waiting",
        "error",
        "is_cut",
        "is_ended",
        "on_cut",
    )

    def __init__(self, bytes_max: int) -> None:
        self._waiting: list[bytes] = []
        self._next: list[bytes] = []  # before those, the last first
        self._bytes = 0
        self._bytes_max = bytes_max
        self._more: asyncio.Future[None] | None = None
        self._loop = asyncio.get_running_loop()
        self._taken_at = self._loop.time()  # when the last was handed to the transport
        self.is_ended = self.is_cut = False
        self.on_cut: Callable[[], object] | None = None
        self.error: EngramError | None = None

    def put(self, message: bytes) -> None:
        """Owe one more message."""
        if self.is_ended:
            return
        if not self._bytes:
            self._taken_at = self._loop.time()
        self._waiting.append(message)
        self._bytes += len(message)
        self._wake()
        unread = self._bytes > self._bytes_max and self._loop.time() - self._taken_at > _UNREAD_SECONDS
        if unread or self._bytes > _BURST * self._bytes_max:
            self.give_up()

    def _wake(self) -> None:
        if self._more is not None and not self._more.done():
            self._more.set_result(None)

    def give_up(self) -> None:
        """The peer does not read: it is owed nothing more."""
        text = f"{self._bytes} bytes of acknowledgements were not read; read them, and resume by the token"
        self.end(Overloaded(text, retry_after_ms=_RETRY_MS, level="NORMAL"))
        self._waiting, self._next = [], []
        self.is_cut = True
        if self.on_cut is not None:
            self.on_cut()

    def cut_if_stuck(self) -> None:
        """After the end nothing is put that could find out that nobody reads."""
        if self.is_ended and self.on_cut is not None and self._loop.time() - self._taken_at > _UNREAD_SECONDS:
            self.is_cut = True
            self.on_cut()

    def end(self, error: EngramError | None = None) -> None:
        """Nothing more comes."""
        if not self.is_ended:
            self.error = error
            self.is_ended = True
            self._wake()

    async def next(self) -> bytes | None:
        """Return the next message; None at the end."""
        while not self._next:
            self._next, self._waiting = self._waiting[::-1], []
            if self._next:
                break
            if self.is_ended:
                return None
            self._more = self._loop.create_future()
            await self._more
        message = self._next.pop()
        self._bytes -= len(message)
        self._taken_at = self._loop.time()
        return message


class Connection:
    """One stream's session."""

    def __init__(self, service: Service, hub: Hub, session: Session) -> None:
        self._service = service
        self._hub = hub
        self._session = session
        self._loop = asyncio.get_running_loop()
        self.outbound = Outbound(service.settings.outbound_bytes_max)
        self._in_flight: list[tuple[int, int]] = []  # last sequence and bytes of each frame; few
        self._in_flight_bytes = 0
        self._idle_bytes = 0  # of frames that brought nothing new
        self._acknowledged = session.committed
        self._lost = 0  # up to which nothing is acknowledged any more
        self._acknowledgement = Signal()
        self._window = pb.Window()
        self.last_traffic = self._loop.time()

    @classmethod
    async def open(cls, service: Service, asked: pb.Open) -> Connection:
        """Begin with what the peer asked for. Raises what `Space.session` does."""
        space, hub = service.space(asked), service.hub
        if asked.again and not (asked.speaker and asked.token):
            text = "`again` goes with the token, and the `speaker` that spoke before"
            raise InvalidArgument(text, field="again", index=None)
        acknowledged = asked.acknowledged if asked.HasField("acknowledged") else None
        claim, priority, token = (asked.speaker, asked.again), asked.priority or "normal", asked.token or None
        attach = partial(space._claimed, claim, priority, token, acknowledged)
        session = await service.on_pool("write", attach)
        if session.state == "FENCED":
            raise Fenced("another speaker has attached meanwhile")
        self = cls(service, hub, session)
        hub.listen(session.id, self)
        session.tell_levels()
        if asked.absorbed:
            session.tell_absorbed()
        opened = pb.Opened(
            token=session.token,
            committed=session.committed,
            absorbed=session.absorbed,
            window=self._window_now(),
            dim=space.dim,
            metric=space.metric,
            durability=space.durability,
            priority=session.priority,
        )
        self._send(pb.ObserveResponse(opened=opened))
        return self

    # ---- what the peer says ------------------------------------------------------------------------------------------

    async def ready(self) -> None:
        """Wait until the peer may be listened to: what it has unacknowledged is within its window."""
        while self._in_flight and (
            len(self._in_flight) > _FRAMES_MAX or self._in_flight_bytes > max(self._window.bytes, self._in_flight[0][1])
        ):
            await self._acknowledgement.wait()

    async def receive(self, message: bytes) -> bool:
        """Take a message; whether more may follow. What is raised ends the stream (S6)."""
        self.last_traffic = self._loop.time()
        check_size(message, self._service.settings.message_bytes_max)
        frame = frame_in(message)
        if frame is not None:
            await self._take(frame)
            return True
        try:
            request = pb.ObserveRequest.FromString(message)
        except Exception:
            raise InvalidArgument("not an ObserveRequest", field="message", index=None) from None
        which = request.WhichOneof("what")
        if which == "frame":
            await self._take(memoryview(request.frame.SerializeToString()))
        elif which in ("pause", "resume"):
            if self._session.state != "DRAINING":  # nothing more is taken anyway
                self._session.pause() if which == "pause" else self._session.resume()
            self._send_window()
        elif which == "drain":
            await self._drain()
            self._send(pb.ObserveResponse(drained=pb.Drained(committed=self._session.committed)))
        elif which == "close":
            await self._drain()
            await self._service.on_pool("write", self._session.close)
            self._send(pb.ObserveResponse(closed=pb.Closed(committed=self._acknowledged)))
            self.outbound.end()
            return False
        else:
            text = "the stream is open already" if which == "open" else "an empty message"
            raise InvalidArgument(text, field="message", index=None)
        return True

    async def _take(self, frame: memoryview) -> None:
        """Submit it. What brings nothing new is read slowly: whoever does not heed a refusal holds up himself."""
        refused = self._session.submit_frame(frame)
        if refused is not None:
            self.outbound.put(refused)
            self._send_window()
        else:
            admitted = self._session.admitted
            if admitted > (self._in_flight[-1][0] if self._in_flight else max(self._acknowledged, self._lost)):
                self._in_flight.append((admitted, len(frame)))
                self._in_flight_bytes += len(frame)
                return
        self._idle_bytes += max(len(frame), _IDLE_FRAME_BYTES)
        if self._idle_bytes >= _IDLE_BYTES:
            await asyncio.sleep(self._idle_bytes / _IDLE_BYTES_A_SECOND)
            self._idle_bytes = 0

    async def finish(self) -> None:
        """Wait for the acknowledgements of all that was taken; the peer says nothing more."""
        await self.settle(self._loop.time() + self._service.settings.drain_seconds)
        if self._in_flight:
            self.end("not everything is acknowledged yet")
        self.outbound.end()

    async def settle(self, until: float) -> None:
        """Wait until all that was taken is acknowledged, at most until a time of the loop."""
        try:
            async with asyncio.timeout_at(until):
                while self._in_flight:
                    await self._acknowledgement.wait()
        except TimeoutError:
            pass

    async def _drain(self) -> None:
        await self._service.on_pool("write", self._session.drain)
        # Committed; acknowledgements come by the descriptor. Of a quarantined batch none does.
        try:
            async with asyncio.timeout(_ACK_WAIT):
                while self._acknowledged < self._session.committed:
                    await self._acknowledgement.wait()
        except TimeoutError:
            pass

    # ---- what the engine tells ---------------------------------------------------------------------------------------

    def told(self, told: bytes) -> None:
        """What a frame came to, or another word of the engine."""
        self.last_traffic = self._loop.time()
        self.outbound.put(told)
        message = frame_pb2.Told.FromString(told)
        which = message.WhichOneof("what")
        if which == "ack":
            self._acknowledged = max(self._acknowledged, message.ack.first_sequence + message.ack.count - 1)
            self._settle(self._acknowledged)
        elif which == "fault":
            self._settle(self._session.committed)
            if message.fault.code == "POISONED":  # what the failed log had numbered stays admitted
                self._lost = self._session.admitted
            if self._session.admitted in (self._session.committed, self._lost):
                self._settle(1 << 63)
        elif which == "pressure":
            self._send_window()

    def _settle(self, through: int) -> None:
        while self._in_flight and self._in_flight[0][0] <= through:
            self._in_flight_bytes -= self._in_flight.pop(0)[1]
        # What was refused out of a lane is admitted no more.
        while self._in_flight and self._in_flight[-1][0] > self._session.admitted:
            self._in_flight_bytes -= self._in_flight.pop()[1]
        self._acknowledgement.set()
        if self._window_is_stale():
            self._send_window()

    # ---- the window --------------------------------------------------------------------------------------------------

    def _window_now(self) -> pb.Window:
        observations, size = self._session.credits
        self._window = pb.Window(
            observations=observations,
            bytes=size,
            advised_batch=self._session.advised_batch,
            level=self._session.level,
        )
        return self._window

    def _window_is_stale(self) -> bool:
        now, told = self._session.credits, (self._window.observations, self._window.bytes)
        return any(not 0.75 * old <= new <= 1.25 * old for new, old in zip(now, told, strict=True))

    def _send_window(self) -> None:
        self._send(pb.ObserveResponse(window=self._window_now()))
        self._acknowledgement.set()

    def _send(self, message: pb.ObserveResponse) -> None:
        self.outbound.put(message.SerializeToString())

    # ---- the end -----------------------------------------------------------------------------------------------------

    def fence(self) -> None:
        """Somebody else has attached."""
        text = f"another speaker has attached; committed up to {self._session.committed}"
        self.outbound.end(Fenced(text))

    def leave(self, reason: str) -> None:
        """Tell the peer that the stream will end."""
        self._send(pb.ObserveResponse(leaving=pb.Leaving(reason=reason)))

    def end(self, reason: str) -> None:
        """End the stream; the session can be resumed."""
        self.outbound.end(Unavailable(f"{reason}; committed up to {self._session.committed}, resume by the token"))

    def detach(self) -> None:
        """Give the session up, unless it was closed or taken over."""
        self.outbound.end()
        self._hub.forget(self._session.id, self)
        if self._session.state not in ("CLOSED", "FENCED"):
            self._session.detach()
