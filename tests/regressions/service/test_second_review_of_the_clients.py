"""What a second hostile reading of the clients found: how they end, and what differs from an engine here."""

import asyncio
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

import engram
import engram.aio
from engram.server import Server

# ---- what ends -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["stream", "session"])
def test_the_error_of_a_block_is_the_one_that_is_seen(server: Server, kind: str) -> None:
    remote = engram.connect(server.url)

    def block() -> None:
        with getattr(remote.space("s", dim=2), kind)():
            remote.close()
            raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        block()


def test_who_closes_a_stream_second_waits_too(there: Any) -> None:
    stream = there.stream()
    stream.observe_batch(texts=["x" * 1_000] * 5_000)
    stored: list[int] = []

    def close() -> None:
        stream.close()
        stored.append(len(there))

    threads = [threading.Thread(target=close) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert stored == [5_000, 5_000]


def test_a_drained_session_ends_as_one_here(space: engram.Space) -> None:
    session = space.session()
    session.observe("a")
    session.drain()
    with pytest.raises(engram.Closed, match="the session is closed"):
        session.observe("late")
    assert (session.state, session.admitted, session.committed) == ("DRAINING", 1, 1)
    session.close()
    assert session.state == "CLOSED"
    for call in (session.drain, session.pause):
        with pytest.raises(engram.SessionExpired):
            call()
    given_up = space.session()
    given_up.detach()
    for call in (given_up.drain, given_up.pause, given_up.close):
        with pytest.raises(engram.Fenced):
            call()


def test_a_refusal_has_the_fields_of_its_kind(space: engram.Space) -> None:
    session = space.session()
    session.observe("a")
    with pytest.raises(engram.SequenceConflict) as caught:
        session.observe("b", sequence=1)
    assert engram._exceptions.fields_of(caught.value) == {"sequence": 1}
    with pytest.raises(engram.SequenceGap) as gap:
        session.observe("b", sequence=9)
    assert engram._exceptions.fields_of(gap.value) == {"expected": 2}
    session.close()


# ---- answers ---------------------------------------------------------------------------------------------------------

WRONG: dict[str, Callable[[engram.Space], object]] = {
    "a where of many digits": lambda s: list(s.list(where={"a": 10**5_000})),
    "a where of 65 bits": lambda s: list(s.list(where={"a": 2**64})),
    "k of 41 bits": lambda s: s.recall(vector=[1, 0], k=2**40),
    "a batch's k of 41 bits": lambda s: s.recall_batch([[1, 0]], k=2**40),
    "a batch's k of 30 bits": lambda s: s.recall_batch([[1, 0]], k=10**9),
    "a text for a recall": lambda s: s.recall(vector=[1, 0], target_recall="x"),  # type: ignore[arg-type]
    "no metric": lambda s: s._engine.space("typo", 2, metric=""),  # type: ignore[arg-type]
    "a number for a metric": lambda s: s._engine.space("typo", 2, metric=5),  # type: ignore[arg-type]
    "no durability": lambda s: s._engine.space("typo", 2, durability=""),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_arguments_are_told_in_the_same_words(server: Server, there: Any, name: str) -> None:
    said = []
    for space in (server.engine.space("s"), there):
        with pytest.raises(engram.InvalidArgument) as caught:
            WRONG[name](space)
        said.append((type(caught.value), caught.value.message, caught.value.field, caught.value.index))
    assert said[0] == said[1]
    assert server.engine.spaces() == ["s"]


def test_limits_are_those_of_the_engine(server: Server) -> None:
    with engram.connect(server.url) as remote:
        assert remote.limits == server.engine.limits
        remote.space("s", dim=2)
        assert remote.limits == server.engine.limits


def test_a_million_ids_are_forgotten_as_here(there: Any) -> None:
    there.observe("a")
    assert there.forget(range(2**40, 2**40 + 1_000_000)) == 0
    assert there.forget([1]) == 1


def test_a_space_of_another_directory_is_another(server: Server) -> None:
    port = server.url.rpartition(":")[2]
    remote = engram.connect(server.url)
    space = remote.space("n", dim=2)
    assert space.observe("one").memory_id == 1
    server.stop()
    with engram.serve(grpc=f"127.0.0.1:{port}") as other:
        other.engine.space("n", dim=2)
        with pytest.raises(engram.NotFound):
            space.observe("two")
        assert len(other.engine.space("n")) == 0
    remote.close()


def test_the_proxy_of_the_environment_is_not_asked(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "grpc_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    with engram.connect(server.url, timeout=5) as remote:
        assert remote.spaces() == []


@pytest.mark.parametrize("address", ["127.0.0.1", "127.0.0.1:99999", "127.0.0.1:x", "unix:foo", ":1", "h:0"])
def test_what_is_no_address_is_not_waited_for(address: str) -> None:
    begun = time.monotonic()
    with pytest.raises(engram.InvalidArgument, match="is not a url"):
        engram.connect(f"grpc://{address}")
    assert time.monotonic() - begun < 5


@pytest.mark.parametrize("threads", [0, "x", 10**9])
def test_threads_of_coroutines_are_a_number(threads: Any) -> None:
    with pytest.raises(engram.InvalidArgument, match="threads"):
        asyncio.run(engram.aio.open(threads=threads))  # type: ignore[arg-type]


def test_a_callback_can_be_called(there: Any) -> None:
    with pytest.raises(engram.InvalidArgument, match="on_progress"):
        there.stream(on_progress=5)
