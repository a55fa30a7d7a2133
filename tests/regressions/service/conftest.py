"""A server, and a space as its client has it; each test has its own."""

from collections.abc import Iterator
from typing import Any

import pytest

import engram
from engram.server import Server


@pytest.fixture
def server() -> Iterator[Server]:
    with engram.open() as engine, engram.serve(engine, grpc="127.0.0.1:0") as server:
        yield server


@pytest.fixture
def there(server: Server) -> Iterator[Any]:
    with engram.connect(server.url) as remote:
        yield remote.space("s", dim=2)
