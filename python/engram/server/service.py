"""One call, one answer: what every transport offers, by the names of `proto/engram/v1/service.proto`.

Each method takes a request message and returns an answer, on a thread: it uses the engine as any user does. `unary`
says on which pool. Recalls and statistics that stream are in `streams`, observing streams in `connection`.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

import numpy as np
from google.protobuf.message import Message

from engram._convert import SECONDS_MAX, OnOverload
from engram._engine import Cancel, Engine
from engram._exceptions import InvalidArgument, NotFound, SnapshotExpired, Timeout, TooLarge, Unavailable
from engram._reads import Reads, Snapshot
from engram._space import Space
from engram.server.hub import Hub
from engram.server.messages import as_of_in, how_in, memory_out, page_bytes, pages, vectors_in, where_in
from engram.server.settings import Settings
from engram.v1 import frame_pb2
from engram.v1 import service_pb2 as pb

_T = TypeVar("_T")

_LOOKED_AT_MIN = 64  # snapshots
_LIST_MAX = 256
_ABSORB_SLICE = 0.2
_NAME_BYTES = 66  # of a space, in a message
_DURABILITY = {
    "sync": frame_pb2.DURABILITY_SYNC,
    "os": frame_pb2.DURABILITY_OS,
    "memory": frame_pb2.DURABILITY_MEMORY,
}


class Service:
    """An engine's calls, from `begin` to `end`."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._served: tuple[Engine, Hub] | None = None
        self._pools = {
            "read": ThreadPoolExecutor(settings.read_threads, "engram-read"),
            "write": ThreadPoolExecutor(settings.write_threads, "engram-write"),
            "slow": ThreadPoolExecutor(settings.slow_threads, "engram-slow"),
            # Apart: a purge waits for snapshots.
            "purge": ThreadPoolExecutor(settings.slow_threads, "engram-purge"),
            # Apart: each may look at every row.
            "scan": ThreadPoolExecutor(settings.slow_threads, "engram-scan"),
        }
        self._snapshots: dict[str, tuple[Snapshot, Space]] = {}
        self._looked_at = _LOOKED_AT_MIN
        self._leaving = asyncio.Event()

    @property
    def engine(self) -> Engine:
        """The engine; `Unavailable` while it starts or ends."""
        return self._running()[0]

    @property
    def hub(self) -> Hub:
        """Who hears of completions; `Unavailable` likewise."""
        return self._running()[1]

    def _running(self) -> tuple[Engine, Hub]:
        if self._served is None:
            raise Unavailable("the server is starting or ending: try again")
        return self._served

    def begin(self, engine: Engine) -> None:
        """Serve this engine from now on; on the loop. Raises `InvalidArgument` if another server does."""
        self._served = engine, Hub(engine, asyncio.get_running_loop(), self.settings.read_threads)

    def end(self) -> None:
        """Serve it no more; on the loop."""
        if self._served is not None:
            (_, hub), self._served = self._served, None
            hub.close()

    async def on_pool(self, pool: str, call: Callable[[], _T]) -> _T:
        """Call on a thread; if who waits is cancelled, the call is given up."""
        cancel = Cancel()
        try:
            return await asyncio.get_running_loop().run_in_executor(self._pools[pool], cancel.run, call)
        except asyncio.CancelledError:
            cancel.set()
            raise

    async def answer(self, method: str, request: Any) -> Message:
        """Answer a call that has one answer."""
        if method == "WaitAbsorbed":
            return await self._wait_absorbed(request)
        pool, call = UNARY[method]
        if getattr(request, "purge", False):
            pool = "purge"
        elif method in _MAY_SCAN and request.view.where:
            pool = "scan"
        return await self.on_pool(pool, partial(call, self, request))

    @property
    def is_leaving(self) -> bool:
        """Whether the server is ending."""
        return self._leaving.is_set()

    def leave(self) -> None:
        """Whoever only listens is to go; on the loop."""
        self._leaving.set()

    async def left(self) -> None:
        """Wait until the server ends."""
        await self._leaving.wait()

    async def pause(self, seconds: float) -> None:
        """Wait; `Unavailable` as soon as the server ends."""
        try:
            await asyncio.wait_for(self._leaving.wait(), seconds)
        except TimeoutError:
            return
        raise Unavailable("the server is stopping")

    def close(self) -> None:
        """Take no more calls."""
        for pool in self._pools.values():
            pool.shutdown(wait=False, cancel_futures=True)

    def space(self, request: Any) -> Space:
        """Return the space that is meant: by its name, and by its id if the peer knows that."""
        space = self.engine.space(request.space)
        if request.space_id not in (0, space._core.tag):
            raise NotFound(f'space "{request.space}" (dropped) not found')
        return space

    # ---- reading -----------------------------------------------------------------------------------------------------

    def reads(self, view: pb.View) -> tuple[Reads, dict[str, Any]]:
        """Return what a read looks at, and which of it."""
        return self._reads(view), {"where": where_in(view.where), "as_of": as_of_in(view)}

    def _reads(self, view: pb.View) -> Reads:
        if not view.snapshot:
            return self.space(view)
        snapshot, space = self._snapshots.get(view.snapshot, (None, None))
        if snapshot is None or space is None:
            raise SnapshotExpired("the snapshot was released, or has expired; open a new one")
        if view.space != space.name or view.space_id not in (0, space._core.tag):
            raise InvalidArgument("the snapshot is of another space", field="snapshot", index=None)
        return snapshot

    def recall_batch(self, request: pb.RecallBatchRequest) -> pb.RecallBatchResponse:
        """Ids and scores of the nearest to each of many cues."""
        reads, which = self.reads(request.view)
        flat = vectors_in("vectors", request.vectors)
        if len(flat) % request.count if request.count else len(flat):
            text = f"{len(flat)} components are not {request.count} vectors"
            raise InvalidArgument(text, field="vectors", index=None)
        size = request.count * request.k * 12
        if request.k <= self.engine.limits["recall_k_max"] and size > self.settings.message_bytes_max:
            raise TooLarge(f"the answer would take {size} bytes; ask for fewer at once", field="k", index=None)
        cues = flat.reshape(request.count, -1) if request.count else flat.reshape(0, self.space(request.view).dim)
        how = how_in(request.how)
        ids, scores = reads.recall_batch(cues, request.k, threads=request.how.threads or 1, **which, **how)
        return pb.RecallBatchResponse(
            ids=ids.astype("<u8", copy=False).tobytes(), scores=scores.astype("<f4", copy=False).tobytes()
        )

    def get(self, request: pb.GetRequest) -> pb.GetResponse:
        """One memory, or none."""
        _only_space(request.view, "where")
        reads, as_of = self._reads(request.view), as_of_in(request.view)
        which = request.WhichOneof("which")
        if which == "key":
            found = reads.get(key=request.key, as_of=as_of)
        else:
            found = reads.get(request.memory_id if which else None, as_of=as_of)
        return pb.GetResponse(memory=None if found is None else memory_out(found))

    def list(self, request: pb.ListRequest) -> pb.ListResponse:
        """Some memories, by id."""
        reads, which = self.reads(request.view)
        limit = min(request.limit or _LIST_MAX, _LIST_MAX)
        found = reads.list(after=request.after, limit=limit, **which)
        page = next(pages(found, page_bytes(self.settings.message_bytes_max)), [])
        return pb.ListResponse(memories=page)

    def count(self, request: pb.CountRequest) -> pb.CountResponse:
        """How many memories there are."""
        reads, which = self.reads(request.view)
        if any(value is not None for value in which.values()):
            return pb.CountResponse(count=sum(1 for _ in reads.list(**which)))
        return pb.CountResponse(count=len(reads))

    def history(self, request: pb.HistoryRequest) -> pb.ListResponse:
        """All versions of a key."""
        _only_space(request.view, "where", "generation", "time")
        versions = [memory_out(memory) for memory in self._reads(request.view).history(request.key)]
        answer = pb.ListResponse(memories=versions)
        if answer.ByteSize() > self.settings.message_bytes_max:
            text = f"the versions of {request.key!r} do not fit into one message"
            raise TooLarge(text, field="key", index=None)
        return answer

    def open_snapshot(self, request: pb.OpenSnapshotRequest) -> pb.OpenSnapshotResponse:
        """Pin what is visible now."""
        if len(self._snapshots) >= min(self._looked_at * 2, self.settings.snapshots_max):
            self._forget_expired()
        if len(self._snapshots) >= self.settings.snapshots_max:
            text = f"{len(self._snapshots)} snapshots are open; release some"
            raise TooLarge(text, field="snapshot", index=None)
        space = self.space(request)
        snapshot = space.snapshot()
        name = secrets.token_urlsafe(16)
        self._snapshots[name] = (snapshot, space)
        return pb.OpenSnapshotResponse(snapshot=name, generation=snapshot.generation)

    def _forget_expired(self) -> None:
        for name, (snapshot, _) in [*self._snapshots.items()]:
            if not snapshot._lives():
                self._snapshots.pop(name, None)
        # Again when there are twice as many: looking costs a constant a snapshot.
        self._looked_at = max(_LOOKED_AT_MIN, len(self._snapshots))

    def release_snapshot(self, request: pb.ReleaseSnapshotRequest) -> pb.ReleaseSnapshotResponse:
        """Let it go; twice is fine."""
        held = self._snapshots.pop(request.snapshot, None)
        if held is not None:
            held[0].release()
        return pb.ReleaseSnapshotResponse()

    # ---- writing -----------------------------------------------------------------------------------------------------

    def put_observations(self, request: pb.PutObservationsRequest) -> pb.PutObservationsResponse:
        """Store observations, all or nothing."""
        space = self.space(request)
        seconds = min(request.timeout_ms / 1000, SECONDS_MAX)
        wait: OnOverload = "wait" if request.timeout_ms else "raise"
        ack = space.observe_frame(request.frame.SerializeToString(), on_overload=wait, timeout=seconds)
        first = ack.generation + 1 - len(ack.memory_ids)
        durability = _DURABILITY[ack.durability]
        return pb.PutObservationsResponse(first_memory_id=first, count=len(ack.memory_ids), durability=durability)

    def forget(self, request: pb.ForgetRequest) -> pb.ForgetResponse:
        """Forget by ids, key or condition."""
        space = self.space(request)
        wait: OnOverload = "wait" if request.timeout_ms else "raise"
        count = space.forget(
            np.array(request.memory_ids, dtype=np.uint64) if request.memory_ids else None,
            key=request.key or None,
            where=where_in(request.where),
            purge=request.purge,
            on_overload=wait,
            timeout=min(request.timeout_ms / 1000, SECONDS_MAX),
        )
        return pb.ForgetResponse(count=count)

    # ---- spaces ------------------------------------------------------------------------------------------------------

    def create_space(self, request: pb.CreateSpaceRequest) -> pb.SpaceResponse:
        """Open a space, or make it."""
        given: dict[str, Any] = {"metric": request.metric or None, "durability": request.durability or None}
        space = self.engine.space(request.space, request.dim or None, **given)
        return pb.SpaceResponse(
            space=space.name,
            dim=space.dim,
            metric=space.metric,
            durability=space.durability,
            id=space._core.tag,
            limits={**self.engine.limits, "message_bytes_max": self.settings.message_bytes_max},
        )

    def list_spaces(self, request: pb.ListSpacesRequest) -> pb.ListSpacesResponse:
        """Names."""
        names = [name for name in self.engine.spaces() if name > request.after]
        most = max(1, self.settings.message_bytes_max // 2 // _NAME_BYTES)
        return pb.ListSpacesResponse(spaces=names[:most], more=len(names) > most)

    def drop_space(self, request: pb.DropSpaceRequest) -> pb.DropSpaceResponse:
        """Remove a space."""
        self.engine.drop_space(request.space)
        return pb.DropSpaceResponse()

    def set_quota(self, request: pb.SetQuotaRequest) -> pb.SetQuotaResponse:
        """Limit a space."""
        space = self.space(request)
        space.set_quota(memories=request.memories or None, bytes=request.bytes or None)
        return pb.SetQuotaResponse()

    async def _wait_absorbed(self, request: Any) -> pb.WaitAbsorbedResponse:
        """Wait in slices: nobody holds a thread for long."""
        until = time.monotonic() + request.timeout_ms / 1000
        while True:
            left = until - time.monotonic()
            space = self.space(request)
            wait = partial(space.wait_absorbed, timeout=max(0.0, min(left, _ABSORB_SLICE)))
            try:
                # There may be no thread for it in time.
                await asyncio.wait_for(self.on_pool("slow", wait), max(left, 0.0) + _ABSORB_SLICE)
                break
            except TimeoutError as error:
                if left <= 0 or not isinstance(error, Timeout):
                    text = "the graph does not answer for everything yet"
                    raise error if isinstance(error, Timeout) else Timeout(text) from None
        return pb.WaitAbsorbedResponse(generation=space.stats()["absorbed_generation"])

    def quarantined(self, request: pb.QuarantinedRequest) -> pb.QuarantinedResponse:
        """What could not be applied."""
        space = self.space(request)
        kept = space.read_quarantined(request.memory_id) if request.memory_id else []
        batches = [
            pb.QuarantinedResponse.Batch(
                first_memory_id=batch.memory_ids.start,
                count=len(batch.memory_ids),
                quarantined_at=round(batch.quarantined_at.timestamp() * 1e6),
                first_sequence=batch.sequence or 0,
                reason=batch.reason,
                path="" if batch.path is None else str(batch.path),
            )
            for batch in space.quarantined()
        ]
        return pb.QuarantinedResponse(batches=batches, memories=map(memory_out, kept))

    # ---- the engine --------------------------------------------------------------------------------------------------

    def checkpoint(self, _: pb.CheckpointRequest) -> pb.CheckpointResponse:
        """Seal everything."""
        self.engine.checkpoint()
        return pb.CheckpointResponse()

    def stats(self, request: pb.StatsRequest) -> pb.StatsResponse:
        """Figures of a space, or the engine."""
        if request.space:
            figures = self.space(request).stats()
        else:
            figures = {**self.engine.stats(), "report": self.engine.report, "limits": self.engine.limits}
        return pb.StatsResponse(stats=json.dumps(figures, default=str))


def _only_space(view: pb.View, *names: str) -> None:
    for name in names:
        if view.where if name == "where" else view.HasField(name):
            raise InvalidArgument(f"view.{name} has no meaning here", field=name, index=None)


_MAY_SCAN = ("List", "Count")
#: Method → pool and function.
UNARY: dict[str, tuple[str, Callable[[Service, Any], Message]]] = {
    "PutObservations": ("write", Service.put_observations),
    "RecallBatch": ("scan", Service.recall_batch),
    "Get": ("read", Service.get),
    "List": ("read", Service.list),
    "Count": ("read", Service.count),
    "History": ("read", Service.history),
    "Forget": ("write", Service.forget),
    "OpenSnapshot": ("read", Service.open_snapshot),
    "ReleaseSnapshot": ("read", Service.release_snapshot),
    "CreateSpace": ("write", Service.create_space),
    "ListSpaces": ("read", Service.list_spaces),
    "DropSpace": ("write", Service.drop_space),
    "SetQuota": ("write", Service.set_quota),
    "Quarantined": ("read", Service.quarantined),
    "Checkpoint": ("slow", Service.checkpoint),
    "Stats": ("read", Service.stats),
}
