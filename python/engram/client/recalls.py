"""Recalls over the wire, and the memories they bring."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import AsyncGenerator
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import grpc
import numpy as np
from numpy.typing import NDArray

from engram._exceptions import EngramError, Timeout, Unavailable
from engram.client.status import LATE, NAME, error_in, error_of
from engram.v1 import service_pb2 as pb

if TYPE_CHECKING:
    from engram.client.link import Link

_CALLS_MAX = 8
_UNDER_WAY_MAX = 64  # as the server has it; more would wait there


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


class _Asked:
    """A question, until it is answered."""

    __slots__ = ("answered", "batches", "call")

    def __init__(self, call: Any) -> None:
        self.call = call
        self.batches: list[pb.RecallResponse] = []
        self.answered: asyncio.Future[list[pb.RecallResponse]] = asyncio.get_running_loop().create_future()


class Recalls:
    """The recalls of a connection; everything on the loop of the link.

    They share calls: one of its own for each costs more than the recall, and a busy server takes up one call after the
    other. Of one call it reads a message at a time, so that what comes meanwhile goes over another.
    """

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._calls = [_SharedCall(channel) for _ in range(_CALLS_MAX)]

    @property
    def under_way(self) -> int:
        """How many wait for their answers."""
        return sum(call.under_way for call in self._calls)

    async def ask(self, request: pb.RecallRequest, seconds: float) -> list[pb.RecallResponse]:
        """Return all batches of a recall. `Unavailable` if the connection breaks: ask again."""
        return await min(self._calls, key=lambda call: call.under_way).ask(request, seconds)


class _SharedCall:
    """One call, several recalls under way."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._channel = channel
        self._call: Any = None  # none yet, or it broke
        self._hearing: asyncio.Task[None] | None = None
        self._numbers = itertools.count(1)
        self.under_way = 0
        self._asked: dict[int, _Asked] = {}
        self._places = asyncio.Semaphore(_UNDER_WAY_MAX)
        self._writing = asyncio.Lock()
        self._saying: set[asyncio.Task[None]] = set()

    async def ask(self, request: pb.RecallRequest, seconds: float) -> list[pb.RecallResponse]:
        self.under_way += 1
        try:
            async with asyncio.timeout(seconds), self._places:
                return await self._ask(request, seconds)
        except TimeoutError:
            raise Timeout(LATE) from None
        finally:
            self.under_way -= 1

    async def _ask(self, request: pb.RecallRequest, seconds: float) -> list[pb.RecallResponse]:
        number = next(self._numbers)
        asked = self._asked[number] = _Asked(self._call or self._begin())
        question = pb.RecallsRequest(question=number, recall=request, timeout_ms=round(seconds * 1000))
        try:
            await self._say(asked.call, question)
            return await asked.answered
        except asyncio.CancelledError:
            # What is given up is heard before what is asked next.
            saying = asyncio.create_task(self._say(asked.call, pb.RecallsRequest(question=number)))
            self._saying.add(saying)
            saying.add_done_callback(self._saying.discard)
            raise
        finally:
            del self._asked[number]

    def _begin(self) -> Any:
        self._call = self._channel.stream_stream(f"/{NAME}/Recalls")()
        self._hearing = asyncio.create_task(self._hear(self._call))
        return self._call

    async def _say(self, call: Any, question: pb.RecallsRequest) -> None:
        # Why it broke is heard.
        with suppress(asyncio.InvalidStateError, grpc.aio.AioRpcError, grpc.aio.UsageError):
            async with self._writing:
                await call.write(question.SerializeToString())

    async def _hear(self, call: Any) -> None:
        error: EngramError = Unavailable("the connection is lost, and made again: try again")
        try:
            while (data := await call.read()) is not grpc.aio.EOF:
                self._heard(pb.RecallsResponse.FromString(data))
        except grpc.aio.AioRpcError as broken:
            error = error_of(broken)
        finally:
            if self._call is call:
                self._call = None
            for asked in self._asked.values():
                if asked.call is call and not asked.answered.done():
                    asked.answered.set_exception(error)
            call.cancel()

    def _heard(self, answer: pb.RecallsResponse) -> None:
        asked = self._asked.get(answer.question)
        if asked is None or asked.answered.done():
            return  # it was given up
        if answer.HasField("status"):
            asked.answered.set_exception(error_in(answer.status))
            return
        asked.batches.append(answer.batch)
        if answer.batch.last:
            asked.answered.set_result(asked.batches)
