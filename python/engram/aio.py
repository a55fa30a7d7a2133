"""The embedded engine for asyncio: the same methods as coroutines.

Calls run on one small pool of threads owned by the engine; the native engine releases the GIL inside, so the loop stays
free. Cancelling a task that waits for a call does not undo the call: an observation may still be stored. Observe again
only what may be there twice, or look first.

>>> import asyncio, engram.aio
>>> async def main() -> str | None:
...     async with await engram.aio.open() as engine:
...         notes = await engine.space("notes", dim=3)
...         await notes.observe("Ada met Grace", vector=[1, 0, 0])
...         return (await notes.recall(vector=[1, 0, 0], k=1))[0].text
>>> asyncio.run(main())
'Ada met Grace'
"""

from __future__ import annotations

import asyncio
import builtins
import itertools
import os
from collections.abc import AsyncIterator, Iterable, Mapping
from concurrent.futures import Future
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from engram import _engine
from engram._aio_session import AsyncSession, Calls
from engram._convert import AsOf, Durability, Metadata, Metric, OnOverload, Priority, Time, Vectors, Where
from engram._engine import Engine
from engram._exceptions import Closed
from engram._reads import Consistency, Snapshot
from engram._space import Space
from engram._types import Ack, BatchAck, HitBatch, Hits, Memory, QuarantinedBatch

if TYPE_CHECKING:
    from engram.client.aio import AsyncRemoteEngine

__all__ = ["AsyncEngine", "AsyncSession", "AsyncSnapshot", "AsyncSpace", "connect", "open"]

_THREADS = 16
_PAGE = 256


async def open(
    path: str | os.PathLike[str] | None = None,
    *,
    durability: Durability = "sync",
    limits: Mapping[str, int] | None = None,
    threads: int = _THREADS,
) -> AsyncEngine:
    """Open or make a data directory, or an engine in memory, as `engram.open` does.

    Parameters
    ----------
    path, durability, limits
        As for `engram.open`.
    threads : int
        Calls that may be under way at once; further ones wait.
    """
    calls = Calls(threads)
    try:
        return AsyncEngine(await calls(_engine.open, path, durability=durability, limits=limits), calls)
    except BaseException:
        calls.end()
        raise


async def connect(url: str, *, timeout: float = 10.0, threads: int = _THREADS) -> AsyncRemoteEngine:
    """Connect to a server, as `engram.connect` does.

    Parameters
    ----------
    url : str
        ``"grpc://HOST:PORT"``.
    timeout : float
        Seconds to try for.
    threads : int
        Calls that may be under way at once; further ones wait. Streams that flush, or wait for room,
        need none.
    """
    from engram.client.aio import open_remote  # brings gRPC

    return await open_remote(url, timeout, threads)


class AsyncEngine:
    """A running engine. Use `engram.aio.open`; an async context manager that closes."""

    def __init__(self, engine: Engine, calls: Calls) -> None:
        self._engine = engine
        self._calls = calls

    async def space(
        self,
        name: str,
        dim: int | None = None,
        *,
        metric: Metric | None = None,
        durability: Durability | None = None,
    ) -> AsyncSpace:
        """Open the space `name`; made on first use if `dim` is given. See `Engine.space`."""
        space = await self._calls(self._engine.space, name, dim, metric=metric, durability=durability)
        return AsyncSpace(space, self._calls)

    async def spaces(self) -> list[str]:
        """Names of all spaces, sorted."""
        return await self._calls(self._engine.spaces)

    async def drop_space(self, name: str) -> None:
        """Remove a space and everything in it, and nothing else. Raises `NotFound`."""
        await self._calls(self._engine.drop_space, name)

    @property
    def completions_fd(self) -> int:
        """A file descriptor for the loop's `add_reader`. See `Engine.completions_fd`."""
        return self._engine.completions_fd

    def drain_completions(self, most: int = 1024) -> list[tuple[int, bytes]]:
        """Return what submitted frames came to. See `Engine.drain_completions`."""
        return self._engine.drain_completions(most)

    async def checkpoint(self) -> None:
        """Seal everything into files. See `Engine.checkpoint`."""
        await self._calls(self._engine.checkpoint)

    async def stats(self) -> dict[str, Any]:
        """Figures of the engine."""
        return await self._calls(self._engine.stats)

    @property
    def report(self) -> dict[str, Any]:
        """What the start found."""
        return self._engine.report

    @property
    def limits(self) -> dict[str, int]:
        """The limits that callers meet, by name."""
        return self._engine.limits

    @property
    def path(self) -> os.PathLike[str] | None:
        """The directory, or None in memory."""
        return self._engine.path

    async def close(self) -> None:
        """Finish what was admitted, close the logs, give the directory back. Raises what went wrong; once."""
        try:
            closing = self._calls(self._engine.close)
        except Closed:
            return
        try:
            await asyncio.shield(closing)
        finally:
            self._calls.end()

    async def __aenter__(self) -> AsyncEngine:
        """Return the engine."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""
        await self.close()

    def __repr__(self) -> str:
        """Show the directory."""
        return f"<engram.aio.AsyncEngine {self.path or 'in memory'}>"


class _AsyncReads:
    """What a space and a snapshot have in common."""

    _reads: Space | Snapshot
    _calls: Calls

    async def recall(
        self,
        *,
        vector: Vectors,
        k: int = 10,
        where: Where | None = None,
        as_of: AsOf = None,
        exact: bool = False,
        ef: int | None = None,
        target_recall: float | None = None,
        consistency: Consistency = "latest",
        max_lag: float = 1.0,
    ) -> Hits:
        """Find the `k` nearest memories to a cue, under one snapshot. See `Space.recall`."""
        return await self._calls(
            self._reads.recall,
            vector=vector,
            k=k,
            where=where,
            as_of=as_of,
            exact=exact,
            ef=ef,
            target_recall=target_recall,
            consistency=consistency,
            max_lag=max_lag,
        )

    async def recall_stream(
        self,
        *,
        vector: Vectors,
        k: int = 10,
        batch_size: int = 10,
        where: Where | None = None,
        as_of: AsOf = None,
        exact: bool = False,
        ef: int | None = None,
        target_recall: float | None = None,
        consistency: Consistency = "latest",
        max_lag: float = 1.0,
    ) -> AsyncIterator[HitBatch]:
        """Find the `k` nearest memories to a cue, and fetch them a batch at a time. See `Space.recall_stream`."""
        batches = await self._calls(
            self._reads.recall_stream,
            vector=vector,
            k=k,
            batch_size=batch_size,
            where=where,
            as_of=as_of,
            exact=exact,
            ef=ef,
            target_recall=target_recall,
            consistency=consistency,
            max_lag=max_lag,
        )
        fetched: Future[HitBatch | None] | None = None
        try:
            while True:
                fetched = self._calls.submit(next, batches, None)
                batch = await asyncio.wrap_future(fetched)
                if batch is None:
                    return
                yield batch
        finally:
            if fetched is None:
                batches.close()
            else:  # who is cancelled leaves a thread behind that may still fetch
                fetched.add_done_callback(lambda _: batches.close())

    async def recall_batch(
        self,
        vectors: Vectors,
        k: int = 10,
        *,
        where: Where | None = None,
        as_of: AsOf = None,
        exact: bool = False,
        ef: int | None = None,
        target_recall: float | None = None,
        consistency: Consistency = "latest",
        max_lag: float = 1.0,
        threads: int = 1,
    ) -> tuple[NDArray[np.uint64], NDArray[np.float32]]:
        """Find the `k` nearest memories to each of many cues, under one snapshot. See `Space.recall_batch`."""
        return await self._calls(
            self._reads.recall_batch,
            vectors,
            k,
            where=where,
            as_of=as_of,
            exact=exact,
            ef=ef,
            target_recall=target_recall,
            consistency=consistency,
            max_lag=max_lag,
            threads=threads,
        )

    async def get(self, memory_id: int | None = None, *, key: str | None = None, as_of: AsOf = None) -> Memory | None:
        """Return one memory, with its vector, by its id or its key; None if there is none. See `Space.get`."""
        return await self._calls(self._reads.get, memory_id, key=key, as_of=as_of)

    async def history(self, key: str) -> builtins.list[Memory]:
        """Return the versions of a key, oldest first. See `Space.history`."""
        return await self._calls(self._reads.history, key)

    async def list(
        self, *, where: Where | None = None, after: int = 0, limit: int | None = None, as_of: AsOf = None
    ) -> AsyncIterator[Memory]:
        """Iterate over memories by id. See `Space.list`."""
        memories = self._reads.list(where=where, after=after, limit=limit, as_of=as_of)
        while page := await self._calls(lambda: [*itertools.islice(memories, _PAGE)]):
            for memory in page:
                yield memory

    async def count(self) -> int:
        """Count the memories."""
        return await self._calls(self._reads.__len__)


class AsyncSpace(_AsyncReads):
    """An isolated set of memories. Use `AsyncEngine.space`."""

    def __init__(self, space: Space, calls: Calls) -> None:
        self._reads = self._space = space
        self._calls = calls

    @property
    def name(self) -> str:
        """The space's name."""
        return self._space.name

    @property
    def dim(self) -> int:
        """Components of each vector."""
        return self._space.dim

    @property
    def metric(self) -> str:
        """How scores are computed."""
        return self._space.metric

    @property
    def durability(self) -> str:
        """What an acknowledgement of this space promises."""
        return self._space.durability

    async def observe(
        self,
        text: str | None = None,
        *,
        vector: Vectors | None = None,
        confidence: float = 1.0,
        metadata: Metadata | None = None,
        observed_at: Time = None,
        key: str | None = None,
        on_overload: OnOverload = "wait",
        timeout: float | None = None,
    ) -> Ack:
        """Store one observation. See `Space.observe`.

        If the waiting task is cancelled the observation may still be stored.
        """
        return await self._calls(
            self._space.observe,
            text,
            vector=vector,
            confidence=confidence,
            metadata=metadata,
            observed_at=observed_at,
            key=key,
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
        atomic: bool = True,
        on_overload: OnOverload = "wait",
        timeout: float | None = None,
    ) -> BatchAck:
        """Store many observations. See `Space.observe_batch`.

        If the waiting task is cancelled the batch may still be stored: whole if atomic, else piece by piece.
        """
        return await self._calls(
            self._space.observe_batch,
            texts=texts,
            vectors=vectors,
            metadata=metadata,
            confidence=confidence,
            observed_at=observed_at,
            keys=keys,
            atomic=atomic,
            on_overload=on_overload,
            timeout=timeout,
        )

    async def observe_frame(
        self, frame: bytes, *, on_overload: OnOverload = "wait", timeout: float | None = None
    ) -> BatchAck:
        """Store a frame of the wire, all or nothing. See `Space.observe_frame`."""
        return await self._calls(self._space.observe_frame, frame, on_overload=on_overload, timeout=timeout)

    async def forget(
        self,
        memory_id: int | Iterable[int] | None = None,
        *,
        key: str | None = None,
        where: Where | None = None,
        purge: bool = False,
        on_overload: OnOverload = "wait",
        timeout: float | None = None,
    ) -> int:
        """Forget memories: by id, by key, or all that match. See `Space.forget`.

        If the waiting task is cancelled they may still be forgotten.
        """
        return await self._calls(
            self._space.forget,
            memory_id,
            key=key,
            where=where,
            purge=purge,
            on_overload=on_overload,
            timeout=timeout,
        )

    async def session(
        self,
        *,
        priority: Priority = "normal",
        resume: str | None = None,
        acknowledged: int | None = None,
        timeout: float | None = None,
    ) -> AsyncSession:
        """Open a session, or attach to one. See `Space.session`."""
        session = await self._calls(
            self._space.session, priority=priority, resume=resume, acknowledged=acknowledged, timeout=timeout
        )
        return AsyncSession(session, self._calls)

    async def set_quota(self, *, memories: int | None = None, bytes: int | None = None) -> None:
        """Limit what the space may hold. See `Space.set_quota`."""
        await self._calls(self._space.set_quota, memories=memories, bytes=bytes)

    async def wait_absorbed(self, *, timeout: float | None = None) -> bool:
        """Wait until the index answers for everything without a tail. See `Space.wait_absorbed`."""
        return await self._calls(self._space.wait_absorbed, timeout=timeout)

    async def quarantined(self) -> builtins.list[QuarantinedBatch]:
        """List the batches that could not be applied, oldest first. See `Space.quarantined`."""
        return await self._calls(self._space.quarantined)

    async def read_quarantined(self, memory_id: int) -> builtins.list[Memory]:
        """Return what the quarantined batch with this id holds. See `Space.read_quarantined`."""
        return await self._calls(self._space.read_quarantined, memory_id)

    async def snapshot(self) -> AsyncSnapshot:
        """Pin what is visible now: repeatable reads, at most 60 s unused and 10 min in all."""
        return AsyncSnapshot(await self._calls(self._space.snapshot), self._calls)

    async def stats(self) -> dict[str, Any]:
        """Figures of the space."""
        return await self._calls(self._space.stats)

    def __repr__(self) -> str:
        """Show name, dim and metric."""
        return f"<engram.aio.AsyncSpace {self.name!r} dim={self.dim} metric={self.metric!r}>"


class AsyncSnapshot(_AsyncReads):
    """A pinned generation of a space, with every read method. An async context manager that releases it."""

    def __init__(self, snapshot: Snapshot, calls: Calls) -> None:
        self._reads = self._snapshot = snapshot
        self._calls = calls

    @property
    def generation(self) -> int:
        """Everything up to this generation is visible, nothing after."""
        return self._snapshot.generation

    async def release(self) -> None:
        """Let it go; later reads raise `SnapshotExpired`."""
        await self._calls(self._snapshot.release)

    async def __aenter__(self) -> AsyncSnapshot:
        """Return the snapshot."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Release."""
        await self.release()
