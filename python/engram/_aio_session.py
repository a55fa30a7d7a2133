"""The pool that coroutines call the engine on, and sessions on it. Use `engram.aio`."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import ParamSpec, TypeVar

from engram._convert import Metadata, OnOverload, Time, Vectors, whole
from engram._exceptions import Closed
from engram._pressure import OnPressure
from engram._session import Session
from engram._types import Ack, BatchAck

_P = ParamSpec("_P")
_R = TypeVar("_R")

_THREADS_MAX = 4_096


class Calls:
    """The pool. Waiting observations hold a thread each, so that many form one log group."""

    def __init__(self, threads: int) -> None:
        self._pool = ThreadPoolExecutor(whole("threads", threads, 1, _THREADS_MAX), thread_name_prefix="engram-aio")

    def __call__(self, call: Callable[_P, _R], *args: _P.args, **kwargs: _P.kwargs) -> Awaitable[_R]:
        return asyncio.wrap_future(self.submit(call, *args, **kwargs))

    def submit(self, call: Callable[_P, _R], *args: _P.args, **kwargs: _P.kwargs) -> Future[_R]:
        try:
            return self._pool.submit(call, *args, **kwargs)
        except RuntimeError:
            raise Closed("the engine is closed") from None

    def end(self) -> None:
        self._pool.shutdown(wait=False)


class AsyncSession:
    """A numbered stream into a space. Use `AsyncSpace.session`; an async context manager like `Session`."""

    def __init__(self, session: Session, calls: Calls) -> None:
        self._session = session
        self._calls = calls

    @property
    def token(self) -> str:
        """The right to attach to this session."""
        return self._session.token

    @property
    def priority(self) -> str:
        """Which lane its observations take."""
        return self._session.priority

    @property
    def state(self) -> str:
        """ACTIVE, PAUSED, DRAINING, DETACHED, CLOSED, or FENCED."""
        return self._session.state

    @property
    def admitted(self) -> int:
        """The last sequence that was taken."""
        return self._session.admitted

    @property
    def committed(self) -> int:
        """The last sequence that is committed."""
        return self._session.committed

    @property
    def absorbed(self) -> int:
        """The last sequence that recall answers from its index."""
        return self._session.absorbed

    @property
    def credits(self) -> tuple[int, int]:
        """Observations and bytes that may be sent now without being refused, most likely."""
        return self._session.credits

    @property
    def level(self) -> str:
        """How hard the space is pressed."""
        return self._session.level

    @property
    def advised_batch(self) -> int:
        """How many observations to send at once at that level."""
        return self._session.advised_batch

    async def on_pressure(self, callback: OnPressure | None) -> None:
        """Be told how hard the space is pressed, on the event loop. See `Session.on_pressure`."""
        loop = asyncio.get_running_loop()

        def called(level: str, advised_batch: int) -> None:
            if callback is not None:
                loop.call_soon_threadsafe(callback, level, advised_batch)

        await self._calls(self._session.on_pressure, called if callable(callback) else callback)

    async def observe(
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
        """Store the next observation, or the one with a given sequence. See `Session.observe`.

        Coroutines that run at once take the next sequences in any order; give the sequence where it matters.
        """
        return await self._calls(
            self._session.observe,
            text,
            vector=vector,
            confidence=confidence,
            metadata=metadata,
            observed_at=observed_at,
            key=key,
            sequence=sequence,
            on_overload=on_overload,
            timeout=timeout,
        )

    async def observe_batch(
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
        """Store the next observations, or those from a given sequence on. See `Session.observe_batch`."""
        return await self._calls(
            self._session.observe_batch,
            texts=texts,
            vectors=vectors,
            metadata=metadata,
            confidence=confidence,
            observed_at=observed_at,
            keys=keys,
            sequence=sequence,
            atomic=atomic,
            on_overload=on_overload,
            timeout=timeout,
        )

    async def observe_frame(
        self, frame: bytes, *, on_overload: OnOverload = "wait", timeout: float | None = None
    ) -> BatchAck:
        """Store a frame of the wire. See `Session.observe_frame`."""
        return await self._calls(self._session.observe_frame, frame, on_overload=on_overload, timeout=timeout)

    def submit_frame(self, frame: bytes | bytearray | memoryview) -> bytes | None:
        """Take a frame of the wire or refuse it, at once. See `Session.submit_frame`."""
        return self._session.submit_frame(frame)

    def tell_absorbed(self) -> None:
        """Completions tell of what is absorbed, too, from now on. See `Session.tell_absorbed`."""
        self._session.tell_absorbed()

    def tell_levels(self) -> None:
        """Completions tell of the space's level from now on. See `Session.tell_levels`."""
        self._session.tell_levels()

    @property
    def id(self) -> int:
        """Tells its completions from those of others."""
        return self._session.id

    async def pause(self) -> None:
        """Refuse what is sent until `resume`."""
        await self._calls(self._session.pause)

    async def resume(self) -> None:
        """Take observations again."""
        await self._calls(self._session.resume)

    async def drain(self, timeout: float | None = None) -> None:
        """Take no more, and wait until everything taken is committed."""
        await self._calls(self._session.drain, timeout)

    async def close(self, timeout: float | None = None) -> None:
        """Drain, and end the session."""
        await self._calls(self._session.close, timeout)

    async def detach(self) -> None:
        """Give the session up without ending it."""
        await self._calls(self._session.detach)

    async def __aenter__(self) -> AsyncSession:
        """Return the session."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close; after an error detach."""
        await self._calls(self._session.__exit__, kind, error, trace)

    def __repr__(self) -> str:
        """Show space, state and how far it is committed."""
        return f"<engram.aio.Async{repr(self._session)[8:]}"
