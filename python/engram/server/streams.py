"""Answers that come in pieces: recalls, and statistics that are watched."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Generator
from functools import partial

from engram._exceptions import InvalidArgument
from engram.server.messages import how_in, pages, vectors_in
from engram.server.service import Service
from engram.v1 import service_pb2 as pb

_BATCH = 10
_INTERVAL_MS = 1_000
_INTERVAL_MS_MIN = 100


def _recall(service: Service, request: pb.RecallRequest) -> Generator[tuple[bytes, bool], None, None]:
    """Search when the first message is asked for; fetch and format each when it is, and say which is the last."""
    reads, which = service.reads(request.view)
    batches = reads.recall_stream(
        vector=vectors_in("vector", request.vector),
        k=request.k,
        batch_size=request.batch_size or _BATCH,
        **which,
        **how_in(request.how),
    )
    index = 0
    for batch in batches:
        cut = list(pages(batch.hits)) or [[]]
        for number, hits in enumerate(cut, 1):
            answer = pb.RecallResponse(
                hits=hits,
                generation=batch.generation,
                index=index,
                last=batch.last and number == len(cut),
                absorbed=batch.absorbed,
                lag_micros=round(batch.lag * 1e6),
            )
            index += 1
            yield answer.SerializeToString(), answer.last


async def recall(service: Service, request: pb.RecallRequest) -> AsyncIterator[bytes]:
    """Serialized `RecallResponse`s; each is made after the one before was taken."""
    messages, last = _recall(service, request), False
    try:
        while not last:
            message, last = await service.on_pool("read", partial(next, messages))
            yield message
    finally:
        # If a thread is still in it, it was told to give up, and closes it then.
        with contextlib.suppress(ValueError):
            messages.close()


async def watch(service: Service, request: pb.WatchStatsRequest) -> AsyncIterator[bytes]:
    """Serialized `StatsResponse`s, until nobody listens."""
    interval = request.interval_ms or _INTERVAL_MS
    if interval < _INTERVAL_MS_MIN:
        text = f"interval_ms is {interval}; at least {_INTERVAL_MS_MIN}"
        raise InvalidArgument(text, field="interval_ms", index=None)
    while True:
        answer = await service.on_pool("read", partial(service.stats, request))
        yield answer.SerializeToString()
        await asyncio.sleep(interval / 1000)
