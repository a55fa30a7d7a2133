"""Answers that come in pieces: recalls, and statistics that are watched."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from functools import partial

from engram._exceptions import InvalidArgument
from engram._reads import AskedRecall
from engram.server.messages import how_in, page_bytes, vectors_in
from engram.server.service import Service
from engram.v1 import service_pb2 as pb

_BATCH = 10
_WHERE_SHORT = 200  # characters
_VECTOR_SHORT = 64 << 10  # bytes
_INTERVAL_MS = 1_000
_INTERVAL_MS_MIN = 100


def _ask(service: Service, request: pb.RecallRequest) -> AskedRecall:
    reads, which = service.reads(request.view)
    return reads._ask_recall(
        vector=vectors_in("vector", request.vector),
        k=request.k,
        batch_size=request.batch_size or _BATCH,
        batch_bytes=page_bytes(service.settings.message_bytes_max),
        **which,
        **how_in(request.how),
    )


async def batches(service: Service, request: pb.RecallRequest) -> AsyncGenerator[tuple[bytes, bool]]:
    """Serialized `RecallResponse`s, and whether each is the last; it is made after the one before was taken."""
    hub, ask = service.hub, partial(_ask, service, request)
    # What is long takes long to read.
    short = len(request.view.where) < _WHERE_SHORT and len(request.vector) < _VECTOR_SHORT
    asked = ask() if short else await service.on_pool("read", ask)
    try:
        last = False
        while not last:
            message, last = await hub.batch(asked)
            yield message, last
    finally:
        asked.cancel()


async def recall(service: Service, request: pb.RecallRequest) -> AsyncIterator[bytes]:
    """The serialized `RecallResponse`s."""
    async with aclosing(batches(service, request)) as made:
        async for message, _ in made:
            yield message


async def watch(service: Service, request: pb.WatchStatsRequest) -> AsyncIterator[bytes]:
    """Serialized `StatsResponse`s, until nobody listens."""
    interval = request.interval_ms or _INTERVAL_MS
    if interval < _INTERVAL_MS_MIN:
        text = f"interval_ms is {interval}; at least {_INTERVAL_MS_MIN}"
        raise InvalidArgument(text, field="interval_ms", index=None)
    asked = pb.StatsRequest(space=request.space, space_id=request.space_id)
    if request.space:  # it stays this one, whoever gets the name
        asked.space_id = (await service.on_pool("read", partial(service.space, asked)))._core.tag
    while True:
        answer = await service.on_pool("read", partial(service.stats, asked))
        yield answer.SerializeToString()
        await service.pause(interval / 1000)
