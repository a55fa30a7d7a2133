"""Recalls over the wire, and the memories they bring."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import AsyncGenerator, Callable
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import grpc
import numpy as np
from numpy.typing import NDArray

from engram._exceptions import EngramError, Overloaded, Timeout, TooLarge, Unavailable
from engram.client.status import LATE, NAME, error_in, error_of
from engram.v1 import service_pb2 as pb

if TYPE_CHECKING:
    from engram.client.link import Link

_CALLS_MAX = 8
_REFUSED_SECONDS = 10.0  # without asking for another
_SMALL_K = 100  # a batch, if they are not large
_SMALL_BYTES = 32 << 10  # any server takes messages of twice as much


class RemoteMemory:
    """A memory, or a hit, of a message: the inside of `engram.Memory` and `engram.Hit`."""

    __slots__ = ("_message",)

    def __init__(self, message: pb.Memory) -> None:
        self._message = message

    def _optional(self, name: str) -> Any:
        return getattr(self._message, name) if self._message.HasField(name) else None

    @property
    def memory_id(self) -> int:
        """Its name."""
        return self._message.memory_id

    @property
    def text(self) -> str | None:
        """As observed."""
        text: str | None = self._optional("text")
        return text

    @property
    def metadata(self) -> dict[str, Any]:
        """A new dict."""
        return json.loads(self._message.metadata) if self._message.metadata else {}

    @property
    def key(self) -> str | None:
        """Its key."""
        key: str | None = self._optional("key")
        return key

    @property
    def ended(self) -> int | None:
        """When it was superseded or forgotten."""
        ended: int | None = self._optional("ended")
        return ended

    @property
    def confidence(self) -> float:
        """In [0, 1]."""
        return self._message.confidence

    @property
    def observed_at(self) -> int | None:
        """Microseconds since 1970."""
        observed_at: int | None = self._optional("observed_at")
        return observed_at

    @property
    def committed_at(self) -> int:
        """Microseconds since 1970."""
        return self._message.committed_at

    @property
    def vector(self) -> NDArray[np.float32] | None:
        """A copy."""
        data = self._optional("vector")
        return None if data is None else np.frombuffer(data, dtype="<f4").astype(np.float32)

    @property
    def score(self) -> float | None:
        """Greater is closer."""
        score: float | None = self._optional("score")
        return score

    @property
    def provisional(self) -> bool:
        """Whether the graph does not answer for it yet."""
        return self._message.provisional


class RemoteStream:
    """A recall whose batches come over the wire."""

    def __init__(self, link: Link, answers: AsyncGenerator[pb.RecallResponse]) -> None:
        self._link = link
        self._answers = answers
        self._next: pb.RecallResponse | None = self._fetch()
        self.generation = self._next.generation if self._next else 0
        self.absorbed = self._next.absorbed if self._next else 0
        self.lag_micros = self._next.lag_micros if self._next else 0

    def _fetch(self) -> pb.RecallResponse | None:
        async def fetch() -> pb.RecallResponse | None:
            return await anext(self._answers, None)

        return self._link.call(fetch())

    def next(self, most: int) -> tuple[list[RemoteMemory], bool]:
        """The next batch, as the server cut it."""
        answer = self._next or self._fetch()
        self._next = None
        if answer is None:
            return [], True
        return [RemoteMemory(hit) for hit in answer.hits], answer.last

    def close(self) -> None:
        """Give it up; with its connection it is given up already."""
        if not self._link.is_over:
            self._link.call(self._answers.aclose())


class _Call:
    """One call, several recalls under way. What it says goes by one task: to cancel a write of gRPC ends the call."""

    def __init__(self, channel: grpc.aio.Channel, over: Callable[[_Call], None]) -> None:
        self._call: Any = channel.stream_stream(f"/{NAME}/Recalls")()
        self._over = over
        self.is_refused = False  # the server has none such, or enough; or it is too slow for many to share it
        self._numbers = itertools.count(1)
        self._asked: dict[int, tuple[list[pb.RecallResponse], asyncio.Future[None]]] = {}
        self._to_say: asyncio.Queue[pb.RecallsRequest] = asyncio.Queue()
        self._tasks = asyncio.create_task(self._hear()), asyncio.create_task(self._speak())

    @property
    def under_way(self) -> int:
        """How many wait for their answers."""
        return len(self._asked)

    async def ask(self, request: pb.RecallRequest, seconds: float) -> list[pb.RecallResponse]:
        """Return all batches of a recall."""
        number, answered = next(self._numbers), asyncio.get_running_loop().create_future()
        batches, _ = self._asked[number] = [], answered
        self._to_say.put_nowait(pb.RecallsRequest(question=number, recall=request, timeout_ms=round(seconds * 1000)))
        try:
            await answered
        except asyncio.CancelledError:
            self._to_say.put_nowait(pb.RecallsRequest(question=number))
            raise
        finally:
            del self._asked[number]
            if answered.done() and not answered.cancelled():
                answered.exception()  # it may have come when the caller had gone
        return batches

    async def _speak(self) -> None:
        # Why it broke is heard.
        with suppress(asyncio.InvalidStateError, grpc.aio.AioRpcError, grpc.aio.UsageError):
            while True:
                question = await self._to_say.get()
                if question.question in self._asked or not question.HasField("recall"):
                    await self._call.write(question.SerializeToString())

    async def _hear(self) -> None:
        def why() -> EngramError:
            return Unavailable("the connection is lost, and made again: try again")

        try:
            while (data := await self._call.read()) is not grpc.aio.EOF:
                self._heard(pb.RecallsResponse.FromString(data))
        except grpc.aio.AioRpcError as error:
            end = error_of(error)
            self.is_refused = (
                error.code() == grpc.StatusCode.UNIMPLEMENTED
                or isinstance(end, Overloaded)
                or (isinstance(end, TooLarge) and end.field == "streams")
            )
            why = partial(error_of, error)
        except Exception as error:  # nobody may wait for ever
            why = partial(Unavailable, f"a call failed: {error!r}: this is a bug, please report it")
        finally:
            self._over(self)
            for _, answered in self._asked.values():
                if not answered.done():
                    answered.set_exception(why())
            for task in self._tasks[1:]:
                task.cancel()
            self._call.cancel()

    def _heard(self, answer: pb.RecallsResponse) -> None:
        batches, answered = self._asked.get(answer.question, ([], None))
        if answered is None or answered.done():
            return  # it was given up
        if answer.HasField("status"):
            answered.set_exception(error_in(answer.status))
            return
        batches.append(answer.batch)
        if answer.batch.last:
            answered.set_result(None)


class Recalls:
    """The recalls of a connection; everything on the loop of the link.

    They share calls: one of its own for each costs more than the recall, and a busy server takes up one call after the
    other. Of one call it reads a message at a time, so that what comes meanwhile goes over another.
    """

    def __init__(self, link: Link, channel: grpc.aio.Channel) -> None:
        self._link = link
        self._channel = channel
        self._calls: list[_Call] = []
        self._opens_at = 0.0  # a time of the loop: not more of them before it

    @property
    def under_way(self) -> int:
        """How many wait for their answers."""
        return sum(call.under_way for call in self._calls)

    async def ask(self, request: pb.RecallRequest, seconds: float) -> list[pb.RecallResponse]:
        """Return all batches of a recall. `Unavailable` if the connection breaks: ask again."""
        # What is large is not to hold up others.
        call = self._idlest() if request.k <= _SMALL_K and request.ByteSize() <= _SMALL_BYTES else None
        if call is None:
            return await self._alone(request, seconds)
        try:
            async with asyncio.timeout(seconds):
                return await call.ask(request, seconds)
        except TimeoutError:
            raise Timeout(LATE) from None
        except EngramError:
            if not call.is_refused:
                raise
        self._opens_at = self._link.loop.time() + _REFUSED_SECONDS
        return await self._alone(request, seconds)

    def _idlest(self) -> _Call | None:
        """The call with the least under way; None if there may be none."""
        call = min(self._calls, key=lambda call: call.under_way, default=None)
        may_open = len(self._calls) < _CALLS_MAX and self._link.loop.time() >= self._opens_at
        if may_open and (call is None or call.under_way):
            call = _Call(self._channel, self._calls.remove)
            self._calls.append(call)
        return call

    async def _alone(self, request: pb.RecallRequest, seconds: float) -> list[pb.RecallResponse]:
        """A recall by a call of its own."""
        return [answer async for answer in self._link.streamed("Recall", request, pb.RecallResponse, seconds)]
