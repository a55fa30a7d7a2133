"""One server for a module's tests; each test has a space of its own."""

import itertools
from collections.abc import Iterator

import grpc
import pytest

import engram
from engram._reads import AskedRecall
from engram.server import Server
from engram.server.hub import Hub

from .asking import DIM, ROWS, Asking, Gate, until
from .support import raw

_numbers = itertools.count(1)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with engram.open() as engine, engram.serve(engine, grpc="127.0.0.1:0", reflection=True) as server:
        yield server


@pytest.fixture(scope="module")
def channel(server: Server) -> Iterator[grpc.Channel]:
    with raw(server.url) as channel:
        yield channel


@pytest.fixture(scope="module")
def remote(server: Server) -> Iterator[engram.Engine]:
    with engram.connect(server.url) as engine:
        yield engine


@pytest.fixture
def space(server: Server) -> engram.Space:
    """A new space of two dimensions, of the engine that is served."""
    return server.engine.space(f"s{next(_numbers)}", dim=2)


@pytest.fixture(scope="module")
def rows(server: Server) -> engram.Space:
    space = server.engine.space("rows", dim=DIM)
    space.observe_batch(vectors=ROWS, metadata=[{"a": 1}] * len(ROWS))
    space.wait_absorbed()
    return space


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    gate, batch = Gate(), Hub.batch

    async def gated(self: Hub, recall: AskedRecall) -> tuple[bytes, bool]:
        await gate.hold()
        return await batch(self, recall)

    monkeypatch.setattr(Hub, "batch", gated)
    yield gate
    gate.set()


@pytest.fixture
def asking(channel: grpc.Channel, rows: engram.Space) -> Iterator[Asking]:
    asking = Asking(channel)
    yield asking
    asking.cancel()
    until(lambda: rows.stats()["snapshots"] == 0)
