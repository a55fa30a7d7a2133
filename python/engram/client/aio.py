"""A server as an engine for asyncio: `engram.aio.connect`.

Calls run as those of `engram.aio.AsyncEngine` do. Any loop may use it, one after the other or at once: nothing here
belongs to the loop that made it.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Coroutine, Iterable, Iterator
from types import TracebackType
from typing import Any, TypeVar

from engram._aio_session import Calls
from engram._convert import Columns, Durability, Metadata, Metric, Priority, Time, Vectors
from engram._exceptions import Closed
from engram.aio import AsyncEngine, AsyncSpace
from engram.client.engine import RemoteEngine, RemoteSpace, connect
from engram.client.stream import ObserveStream, OnProgress
from engram.client.turns import deadline

_R = TypeVar("_R")

_FRAMES_AHEAD = 16  # made at once: few changes of threads, little memory


class AsyncObserveStream:
    """`ObserveStream` with coroutines for what may wait. An async context manager like it.

    The order of the calls is the order of the sequences, also of calls that are awaited later.
    """

    def __init__(self, stream: ObserveStream) -> None:
        self._stream = stream

    @property
    def token(self) -> str:
        """The right to go on with this stream."""
        return self._stream.token

    @property
    def committed(self) -> int:
        """The last sequence that is acknowledged."""
        return self._stream.committed

    @property
    def given(self) -> int:
        """The last sequence that was given to an observation."""
        return self._stream.given

    @property
    def rejected(self) -> list[tuple[int, str]]:
        """Sequence and reason of observations that hold nothing."""
        return self._stream.rejected

    @property
    def level(self) -> str:
        """How hard the space is pressed."""
        return self._stream.level

    @property
    def credits(self) -> tuple[int, int]:
        """Observations and bytes that may be sent and not acknowledged."""
        return self._stream.credits

    @property
    def reconnects(self) -> int:
        """How often it tried to connect again."""
        return self._stream.reconnects

    @property
    def refusals(self) -> int:
        """How often there was no room for a frame; it was sent again."""
        return self._stream.refusals

    async def observe(
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
        """Give the stream one observation. See `ObserveStream.observe`."""
        until = deadline(timeout)
        alone = self._stream.alone(text, vector, confidence, metadata, observed_at, key)
        sequence = self._stream.take_at_once(alone)
        if sequence is not None:
            return sequence
        async with self._stream.turns.turn(until):
            await self._wait_room(until)
            return self._stream.take(alone)

    async def observe_batch(
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
        """Give the stream many observations. See `ObserveStream.observe_batch`.

        They are read while it is awaited: do not change them before. After it is cancelled
        a part may have been taken, as after `Timeout`.
        """
        until, taken = deadline(timeout), None
        self._stream.link.check()
        async with self._stream.turns.turn(until):
            frames: Iterator[tuple[int, bytes]] | None = None

            def some() -> list[tuple[int, bytes]]:
                nonlocal frames
                if frames is None:
                    columns = Columns.of(texts, vectors, metadata, confidence, observed_at, keys, True)
                    frames = self._stream.frames(columns)
                return [*itertools.islice(frames, _FRAMES_AHEAD)]

            while made := await self._made(some):
                for frame in made:
                    await self._wait_room(until)
                    taken = self._stream.take_frame(*frame, taken)
                if len(made) < _FRAMES_AHEAD:
                    break
        assert taken is not None  # no batch is empty
        return taken

    async def _made(self, some: Callable[[], _R]) -> _R:
        try:
            return await asyncio.wrap_future(self._stream.link.makers.submit(some))
        except RuntimeError:
            self._stream.link.check()
            raise

    async def _wait_room(self, until: float | None) -> None:
        if not self._stream.has_room:
            await self._on_link(self._stream.making_room(until))

    async def _on_link(self, work: Coroutine[Any, Any, None], shielded: bool = False) -> None:
        """Await what runs on the loop of the link, and holds no thread; shielded, it goes on if this is cancelled."""
        task = asyncio.current_task()
        before = 0 if task is None else task.cancelling()
        waiting = asyncio.wrap_future(self._stream.link.begin(work))
        try:
            await (asyncio.shield(waiting) if shielded else waiting)
        except asyncio.CancelledError:
            if self._stream.link.is_over and (task is None or task.cancelling() == before):
                raise Closed("the connection is closed") from None  # its tasks were cancelled, not this one
            raise

    async def flush(self, timeout: float | None = None) -> None:
        """Wait until everything given is acknowledged; no thread is held meanwhile."""
        await self._on_link(self._stream.settling(timeout))

    async def close(self, timeout: float | None = None) -> None:
        """Flush, and end the session. See `ObserveStream.close`."""
        deadline(timeout)
        if not self._stream.is_closed:
            await self._on_link(self._stream.closing(timeout))

    async def detach(self) -> None:
        """Give the stream up without ending the session."""
        if self._stream.link.is_over:
            self._stream.detach()
        else:
            await self._on_link(self._stream.detaching())

    async def __aenter__(self) -> AsyncObserveStream:
        """Return the stream."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Flush and close; after an error flush, at most ten seconds, and detach."""
        if self._stream.link.is_over:
            self._stream.__exit__(kind, error, trace)
        else:
            try:
                await self._on_link(self._stream.leaving(error is not None), shielded=True)
            except Closed:  # meanwhile; the error that ends the block is the one to be seen
                if error is None:
                    raise


class AsyncRemoteSpace(AsyncSpace):
    """A space on a server: what `AsyncSpace` has, and `stream`."""

    def __init__(self, space: RemoteSpace, calls: Calls) -> None:
        super().__init__(space, calls)
        self._remote = space

    async def stream(
        self,
        *,
        priority: Priority = "normal",
        resume: str | None = None,
        acknowledged: int | None = None,
        reconnect: float = 60.0,
        buffer_bytes: int = 16 << 20,
        on_progress: OnProgress | None = None,
    ) -> AsyncObserveStream:
        """Open a stream of observations, or go on with one. See `RemoteSpace.stream`."""
        stream = await self._calls(
            self._remote.stream,
            priority=priority,
            resume=resume,
            acknowledged=acknowledged,
            reconnect=reconnect,
            buffer_bytes=buffer_bytes,
            on_progress=on_progress,
        )
        return AsyncObserveStream(stream)


class AsyncRemoteEngine(AsyncEngine):
    """An engine in another process. Use `engram.aio.connect`; an async context manager that closes the connection."""

    def __init__(self, engine: RemoteEngine, calls: Calls) -> None:
        super().__init__(engine, calls)
        self._remote = engine

    @property
    def url(self) -> str:
        """Where it is."""
        return self._remote.url

    async def space(
        self,
        name: str,
        dim: int | None = None,
        *,
        metric: Metric | None = None,
        durability: Durability | None = None,
    ) -> AsyncRemoteSpace:
        """Open the space `name`; made on first use if `dim` is given. See `Engine.space`."""
        space = await self._calls(self._remote.space, name, dim, metric=metric, durability=durability)
        return AsyncRemoteSpace(space, self._calls)


async def open_remote(url: str, timeout: float, threads: int) -> AsyncRemoteEngine:
    """Connect. See `engram.aio.connect`."""
    calls = Calls(threads)
    try:
        return AsyncRemoteEngine(await calls(connect, url, timeout=timeout), calls)
    except BaseException:
        calls.end()
        raise
