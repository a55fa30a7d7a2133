"""Recalls by hand over a call that they share, and ways to hold the server up."""

import asyncio
import queue
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import numpy as np
import pytest

from engram.server.questions import Questions
from engram.v1 import service_pb2 as pb

from .support import SECONDS, method

DIM = 64
ROWS = np.random.default_rng(1).normal(size=(2_000, DIM)).astype("f4")
_END = object()


def until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + SECONDS
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.01)


def asked(space: str, row: int = 0, k: int = 10, where: str = "", **how: bool) -> pb.RecallRequest:
    view = pb.View(space=space, where=where)
    return pb.RecallRequest(view=view, vector=ROWS[row].tobytes(), k=k, how=pb.How(**how))


class Asking:
    """A call that recalls share, by hand."""

    def __init__(self, channel: grpc.Channel) -> None:
        self._said: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.call = method(channel, "Recalls")(iter(self._said.get, _END))

    def say(self, question: int, recall: pb.RecallRequest | None = None, timeout_ms: int = 0) -> None:
        self._said.put(pb.RecallsRequest(question=question, recall=recall, timeout_ms=timeout_ms))

    def answers(self, count: int) -> Iterator[pb.RecallsResponse]:
        for _ in range(count):
            yield next(self.call)

    def half_close(self) -> None:
        self._said.put(_END)

    def cancel(self) -> None:
        self.call.cancel()
        self.half_close()


class Gate(threading.Event):
    """Batches wait here to be made, until it is set."""

    held = 0

    async def hold(self) -> None:
        self.held += 1
        try:
            while not self.is_set():
                await asyncio.sleep(0.001)
        finally:
            self.held -= 1


def slowly(monkeypatch: pytest.MonkeyPatch, before: float, after: float) -> None:
    """Answers take so many seconds to be sent, before the peer has them and after."""
    begin = Questions.__init__

    def slow(self: Questions, service: Any, send: Any) -> None:
        async def late(message: bytes) -> None:
            await asyncio.sleep(before)
            await send(message)
            await asyncio.sleep(after)

        begin(self, service, late)

    monkeypatch.setattr(Questions, "__init__", slow)


def unavailable(asking: Asking) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        next(asking.call)
    assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
    asking.half_close()
