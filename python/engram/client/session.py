"""A session of a space on a server: the inside of `engram.Session`."""

from __future__ import annotations

import asyncio
import queue
import weakref
from typing import Any

from engram._convert import Arguments
from engram._engine import encode_frame
from engram._exceptions import Closed, InvalidArgument, Paused, SequenceGap, Timeout
from engram.client.flow import Flow
from engram.client.frames import Sent, fits
from engram.client.link import Link
from engram.v1 import frame_pb2
from engram.v1 import service_pb2 as pb

_Acknowledged = tuple[int, list[tuple[int, int, int]], int, list[tuple[int, str]]]
_RECONNECT_SECONDS = 10.0
_ANSWER_SECONDS = 2.0


class Levels:
    """Levels for callbacks, as `Watch` takes them: session, epoch, level, advised batch."""

    def __init__(self) -> None:
        self._queue: queue.Queue[tuple[int, int, str, int] | None] = queue.Queue()

    def put(self, session: int, level: str, advised_batch: int) -> None:
        """Tell of one."""
        self._queue.put((session, 0, level, advised_batch))

    def end(self) -> None:
        """No more come."""
        self._queue.put(None)

    def next(self, ms: int) -> list[tuple[int, int, str, int]] | None:
        """Wait at most so long; None: the end."""
        try:
            told = self._queue.get(timeout=ms / 1000)
        except queue.Empty:
            return []
        return None if told is None else [told]


class RemoteSession:
    """Calls of one session; each waits for the flow on the link's loop. One frame at a time is under way."""

    epoch = 0

    def __init__(self, link: Link, flow: Flow, levels: Levels, message_bytes_max: int) -> None:
        weakref.finalize(self, flow.abandon)
        self._message_bytes_max = message_bytes_max
        self._link = link
        self._flow = flow
        self._levels = levels
        self._turn = asyncio.Lock()
        self.priority = flow.opened.priority

    @classmethod
    def open(cls, link: Link, levels: Levels, asked: pb.Open, message_bytes_max: int) -> RemoteSession:
        """Open, or attach."""
        flow = link.call(Flow.start(link, asked, _RECONNECT_SECONDS))
        return cls(link, flow, levels, message_bytes_max)

    @property
    def token(self) -> str:
        """The right to attach."""
        return self._flow.token

    @property
    def id(self) -> int:
        """Its number in this process."""
        return self._flow.id

    @property
    def state(self) -> str:
        """As far as this end knows."""
        return self._flow.state

    def sequences(self) -> tuple[int, int, int]:
        """Admitted, committed, absorbed."""
        return self._flow.last, self._flow.committed, self._flow.absorbed

    def credits(self) -> tuple[int, int]:
        """What may be unacknowledged."""
        window = self._flow.window
        return (0, 0) if self.state == "PAUSED" else (window.observations, window.bytes)

    def pressure(self) -> tuple[str, int]:
        """As the server said last."""
        return self._flow.window.level, self._flow.window.advised_batch

    def tell_absorbed(self) -> None:
        """Remote sessions are always told."""

    def tell_levels(self) -> None:
        """Remote sessions are always told."""

    def say(self, columns: Arguments, first: int | None, whole: bool, timeout_ms: int) -> _Acknowledged:
        """Send what was observed, and wait for its acknowledgement."""
        opened = self._flow.opened
        frame = encode_frame(columns, opened.dim, opened.metric, whole)
        count = next(len(column) for column in columns if column is not None)
        return self._link.call(self._say(frame, count, first, timeout_ms))

    def say_frame(self, frame: bytes, timeout_ms: int) -> _Acknowledged:
        """The same of a frame with its own sequence."""
        try:
            parsed = frame_pb2.Frame.FromString(frame)
        except Exception:
            raise InvalidArgument("malformed frame: not protobuf", field="frame", index=None) from None
        if not parsed.count or not parsed.first_sequence:
            lacks = "it holds no observation" if not parsed.count else "sequences begin at 1"
            raise InvalidArgument(f"malformed frame: {lacks}", field="frame", index=None)
        return self._link.call(self._say(frame, parsed.count, parsed.first_sequence, timeout_ms))

    async def _say(self, frame: bytes, count: int, first: int | None, timeout_ms: int) -> _Acknowledged:
        fits(frame, self._message_bytes_max)
        loop = asyncio.get_running_loop()
        async with self._turn:
            if self._flow.error is not None:
                raise self._flow.error
            if self._flow.state == "PAUSED":
                raise Paused("the session is paused; resume it")
            if self._flow.state == "DRAINING":
                raise Closed("the session is closed")
            first = self._flow.last + 1 if first is None else first
            expected = self._flow.expected
            if 0 < expected < first:
                text = f"a gap in the session: the next sequence is {expected}; go on from there"
                raise SequenceGap(text, expected=expected)
            until = loop.time() + timeout_ms / 1000
            sent = Sent(first, count, frame, gives_up_at=until, future=loop.create_future())
            self._flow.submit(sent)
            assert sent.future is not None
            await sent.future
        rejected = sorted({sequence - first: reason for sequence, reason in sent.rejected}.items())
        return first, sorted(sent.runs), sent.duplicates, rejected

    def submit_frame(self, frame: Any) -> bytes | None:
        """Not from here: completions are told to the process that has the engine."""
        raise InvalidArgument("a server's client streams by Space.stream", field="frame", index=None)

    def listen(self) -> None:
        """Tell callbacks of levels."""
        levels, flow = self._levels, self._flow
        flow.on_pressure = lambda level, advised: levels.put(flow.id, level, advised)
        if flow.window.level not in ("", "NORMAL"):
            levels.put(flow.id, flow.window.level, flow.window.advised_batch)

    def pause(self, paused: bool) -> None:
        """Pause, or resume."""
        request = pb.ObserveRequest(pause=pb.Pause()) if paused else pb.ObserveRequest(resume=pb.Resume())
        self._link.call(self._flow.tell(request, "PAUSED" if paused else "ACTIVE"))

    def drain(self, timeout_ms: int) -> None:
        """Wait until everything taken is committed; nothing more is taken."""
        self._ask(pb.ObserveRequest(drain=pb.Drain()), timeout_ms)

    def end(self, timeout_ms: int) -> None:
        """Drain, and end it."""
        self._ask(pb.ObserveRequest(close=pb.Close()), timeout_ms)
        self.detach()

    def _ask(self, request: pb.ObserveRequest, timeout_ms: int) -> None:
        async def asked() -> int:
            # With nothing to wait for the answer may still take its way.
            seconds = max(timeout_ms / 1000, _ANSWER_SECONDS if self._flow.is_settled(self._flow.last) else 0)
            try:
                return await asyncio.wait_for(self._flow.ask(request), seconds)
            except TimeoutError:
                raise Timeout("the session is not drained yet, and goes on") from None

        self._link.call(asked())

    def detach(self) -> None:
        """Give it up without ending it."""
        if not self._link.is_over:
            self._link.call(self._flow.detach())
