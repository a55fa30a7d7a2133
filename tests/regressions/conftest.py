"""A space as both sides of the wire have it."""

from collections.abc import Iterator

import pytest

import engram


@pytest.fixture(params=["embedded", "remote"])
def space(request: pytest.FixtureRequest) -> Iterator[engram.Space]:
    with engram.open() as engine:
        space = engine.space("s", dim=2)
        if request.param == "embedded":
            yield space
            return
        with engram.serve(engine, grpc="127.0.0.1:0") as server, engram.connect(server.url) as remote:
            yield remote.space("s", dim=2)
