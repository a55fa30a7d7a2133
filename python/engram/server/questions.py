"""Recalls over one stream: several under way at once, each answer names its question. Every transport drives it.

A transport gives `receive` what the peer says, sends what it is given, and ends the stream when `ended` is done;
messages are bytes of `RecallsRequest` and `RecallsResponse`. How many are under way is bounded; the next waits, and
what comes behind it is not read. A peer that does not read its answers in time is cut.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import aclosing

from engram._exceptions import EngramError, InvalidArgument, Overloaded, Timeout, Unavailable
from engram.client.frames import varint
from engram.server import streams
from engram.server.connection import Signal
from engram.server.messages import parse
from engram.server.service import Service
from engram.server.status import ENDS, status_of
from engram.v1 import service_pb2 as pb

QUESTIONS_MAX = 64
_SECONDS = 30.0
_SECONDS_MAX = 600.0
_UNREAD_SECONDS = 2.0  # that an answer may take to be sent when time is over
_RETRY_MS = 100
_BATCH_TAG, _STATUS_TAG = b"\x12", b"\x1a"  # fields 2 and 3 of RecallsResponse, length-delimited


class _Question:
    """One recall that is under way."""

    __slots__ = ("is_ending", "is_given_up", "is_heard", "is_late", "number", "task")

    def __init__(self, number: int) -> None:
        self.number = number
        self.task: asyncio.Task[None] | None = None
        self.is_heard = False  # an answer is being sent: that cannot be given up half way
        self.is_ending = False  # only its status is left to be sent
        self.is_given_up = self.is_late = False

    def give_up(self) -> None:
        """Stop the work on it."""
        self.is_given_up = True
        if self.task is not None and not self.is_heard and not self.is_ending:
            self.task.cancel()


class Questions:
    """The recalls of one stream.

    Parameters
    ----------
    send
        Awaited with a message at a time.

    Attributes
    ----------
    ended : Future
        Done when the stream is to end, with the error to tell; what is under way then is to be finished.
    is_cut : bool
        Nothing is to be finished: nobody reads it.
    """

    def __init__(self, service: Service, send: Callable[[bytes], Awaitable[object]]) -> None:
        self._service = service
        self._send = send
        self._loop = asyncio.get_running_loop()
        self.ended: asyncio.Future[EngramError] = self._loop.create_future()
        self.is_cut = False
        self._last_traffic = self._loop.time()
        self._sending = asyncio.Lock()
        self._under_way: set[_Question] = set()
        self._asked: dict[int, _Question] = {}  # those whose end was not sent
        self._fewer = Signal()

    async def receive(self, message: bytes) -> None:
        """Hear a message; a question waits until there is a place for it. Raises `InvalidArgument`: the stream ends."""
        request = parse(pb.RecallsRequest, message, self._service.settings.message_bytes_max)
        self._last_traffic = self._loop.time()
        number, asked = request.question, self._asked.get(request.question)
        if not request.HasField("recall"):
            if asked is not None:
                asked.give_up()
            return
        if asked is not None:
            raise InvalidArgument(f"question {number} is under way", field="question", index=None)
        while len(self._under_way) >= QUESTIONS_MAX:
            await self._fewer.wait()
        asked = self._asked[number] = _Question(number)
        self._under_way.add(asked)
        seconds = min(request.timeout_ms / 1000 or _SECONDS, _SECONDS_MAX)
        asked.task = asyncio.create_task(self._answer(asked, request.recall, seconds))

    async def _answer(self, asked: _Question, recall: pb.RecallRequest, seconds: float) -> None:
        late = self._loop.call_later(seconds, self._be_late, asked)
        try:
            async with aclosing(streams.batches(self._service, recall)) as batches:
                async for batch, last in batches:
                    await self._say(asked, _BATCH_TAG, batch, last)
        except asyncio.CancelledError:
            if not asked.is_late:
                raise
            await self._say_end(asked, Timeout("the recall took longer than it may"))
        except ENDS:
            raise
        except BaseException as error:
            await self._say_end(asked, error)
        finally:
            late.cancel()
            self._forget(asked)
            self._under_way.discard(asked)
            self._last_traffic = self._loop.time()
            self._fewer.set()

    def _forget(self, asked: _Question) -> None:
        """Its number is free."""
        if self._asked.get(asked.number) is asked:
            del self._asked[asked.number]

    async def _say_end(self, asked: _Question, error: BaseException) -> None:
        asked.is_ending = True
        await self._say(asked, _STATUS_TAG, status_of(error), True)

    async def _say(self, asked: _Question, tag: bytes, what: bytes, last: bool) -> None:
        head = pb.RecallsResponse(question=asked.number).SerializeToString()
        async with self._sending:
            asked.is_heard = True
            if last:  # whoever has read it may ask by this number at once
                self._forget(asked)
            try:
                await self._send(b"".join((head, tag, varint(len(what)), what)))
            except Exception as error:
                raise asyncio.CancelledError("the peer is gone") from error
            finally:
                asked.is_heard = False
        if asked.is_given_up and not last:
            raise asyncio.CancelledError

    def _be_late(self, asked: _Question) -> None:
        asked.is_late = True
        asked.give_up()
        self._loop.call_later(_UNREAD_SECONDS, self._cut_if_unread, asked)

    def _cut_if_unread(self, asked: _Question) -> None:
        if asked in self._under_way:
            self.is_cut = True
            self._fewer.set()
            self._end(Overloaded("answers were not read in time", retry_after_ms=_RETRY_MS, level="NORMAL"))

    def end(self, reason: str) -> None:
        """Have the stream end behind what is under way."""
        self._end(Unavailable(reason))

    def _end(self, error: EngramError) -> None:
        if not self.ended.done():
            self.ended.set_result(error)

    def end_if_idle(self, seconds: float) -> None:
        """The same, if nothing was asked or answered for so long."""
        if not self._under_way and self._loop.time() - self._last_traffic > seconds:
            self.end(f"nothing was said for {seconds:g} s")

    async def finish(self) -> None:
        """Wait for what is under way, unless nobody reads it."""
        while self._under_way and not self.is_cut:
            await self._fewer.wait()

    def cancel(self) -> None:
        """Give up what is under way: nobody hears it."""
        for asked in self._under_way:
            if asked.task is not None:
                asked.task.cancel()
