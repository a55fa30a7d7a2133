"""Recalls over the wire, whose batches threads of the engine make: given up, many at once, at the engine's end."""

import collections
import concurrent.futures
import threading
from pathlib import Path

import grpc
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import engram
from engram.server import Server
from engram.testing import strategies
from engram.v1 import service_pb2 as pb

from .asking import until
from .support import method

ROWS = np.random.default_rng(1).normal(size=(16_000, 64)).astype("f4")


def asked(space: str, k: int = 10, **how: bool) -> pb.RecallRequest:
    return pb.RecallRequest(view=pb.View(space=space), vector=ROWS[0].tobytes(), k=k, how=pb.How(**how))


def test_a_recall_that_is_left_half_way_releases_its_snapshot(server: Server, channel: grpc.Channel) -> None:
    space = server.engine.space("left", dim=64)
    space.observe_batch(vectors=ROWS[:2000])
    streams = [method(channel, "Recall")(asked("left", k=1000)) for _ in range(3)]
    assert [len(next(stream).hits) for stream in streams] == [10] * 3
    assert space.stats()["snapshots"] == 3
    for stream in streams:
        stream.cancel()
    until(lambda: space.stats()["snapshots"] == 0)
    assert sum(len(batch.hits) for batch in method(channel, "Recall")(asked("left", k=1000))) == 1000
    assert space.stats()["snapshots"] == 0


def test_recalls_that_nobody_waits_for_are_not_made() -> None:
    with engram.serve(grpc="127.0.0.1:0", read_threads=1) as server:
        space = server.engine.space("slow", dim=64)
        for _ in range(4):
            space.observe_batch(vectors=ROWS)
        with grpc.insecure_channel(server.url.removeprefix("grpc://")) as channel:
            calls = [method(channel, "Recall")(asked("slow", exact=True)) for _ in range(100)]
            waiting = server._service.hub._waiting
            until(lambda: len(waiting) >= 5)
            for call in calls:
                call.cancel()
            until(lambda: not waiting)
            made = space.stats()["recalls"]
            assert next(method(channel, "Recall")(asked("slow"))).hits[0].memory_id == 1
        # The one after them, and one that was being made.
        assert space.stats()["recalls"] <= made + 2
        until(lambda: space.stats()["snapshots"] == 0)


@pytest.mark.parametrize("threads", [1, 3])
def test_recalls_run_on_read_threads(threads: int) -> None:
    before = readers()
    with engram.serve(grpc="127.0.0.1:0", read_threads=threads) as server:
        server.engine.space("many", dim=64).observe_batch(vectors=ROWS)
        with engram.connect(server.url) as remote, concurrent.futures.ThreadPoolExecutor(16) as pool:
            space = remote.space("many")
            found = [*pool.map(lambda row: space.recall(vector=row, k=1, exact=True)[0].memory_id, ROWS[:200])]
        assert found == [*range(1, 201)]
        assert 0 < readers() - before <= threads
    assert readers() == before


def test_whoever_drains_completions_himself_takes_no_recall(server: Server, remote: engram.Engine) -> None:
    server.engine.space("drained", dim=64).observe_batch(vectors=ROWS[:500])
    stop = threading.Event()

    def drain() -> None:
        while not stop.is_set():
            server.engine.drain_completions()

    thread = threading.Thread(target=drain)
    thread.start()
    try:
        space = remote.space("drained")
        assert [space.recall(vector=row, k=1)[0].memory_id for row in ROWS[:200]] == [*range(1, 201)]
    finally:
        stop.set()
        thread.join()


def test_small_messages_carry_few_memories() -> None:
    with engram.serve(grpc="127.0.0.1:0", message_bytes_max=64 << 10) as server:
        server.engine.space("wide", dim=64).observe_batch(vectors=ROWS[:40], texts=["x" * 50_000] * 40)
        with engram.connect(server.url) as remote:
            space = remote.space("wide")
            assert len(space.recall(vector=ROWS[0], k=40)) == 40
            assert len([*space.list()]) == 40


def readers() -> int:
    tasks = Path("/proc/self/task").glob("*/comm")
    return sum(name.read_text(encoding="utf-8").startswith("engram-reader") for name in tasks)


def test_recalls_end_with_their_engine() -> None:
    with engram.open() as engine, engram.serve(engine, grpc="127.0.0.1:0") as server:
        engine.space("gone", dim=64).observe_batch(vectors=ROWS)
        with engram.connect(server.url) as remote:
            space = remote.space("gone")
            batches = space.recall_stream(vector=ROWS[0], k=16_000)
            assert len(next(batches).hits) == 10
            engine.close()
            # Those that are on their way come first.
            with pytest.raises(engram.Closed):
                collections.deque(batches)
            with pytest.raises(engram.Closed):
                space.recall(vector=ROWS[0])


@given(st.lists(strategies.observations(2, vector=True, keys=st.sampled_from(["k", "é"])), min_size=1, max_size=5))
def test_hits_carry_what_was_observed(
    remote: engram.Engine, server: Server, given: list[engram.testing.Observation]
) -> None:
    name = f"carry{len(remote.spaces())}"
    space = remote.space(name, dim=2)
    for one in given:
        given_as = {"metadata": dict(one.metadata), "confidence": one.confidence, "key": one.key}
        space.observe(one.text, vector=one.vector, **given_as)
    hits = {hit.memory_id: hit for hit in space.recall(vector=(1, 0), k=5)}
    for mine in server.engine.space(name).list():
        hit = hits[mine.memory_id]
        assert (hit.text, hit.metadata, hit.observed_at) == (mine.text, mine.metadata, mine.observed_at)
        assert repr(hit.metadata) == repr(mine.metadata), "-0.0, and 1.0 is not 1"
        assert (hit.committed_at, hit.key) == (mine.committed_at, mine.key)
        assert 0.9 * mine.confidence <= hit.confidence <= mine.confidence, "a little less, while it is provisional"
    local = {hit.memory_id: hit.score for hit in server.engine.space(name).recall(vector=(1, 0), k=5)}
    assert {memory_id: hit.score for memory_id, hit in hits.items()} == local
    server.engine.drop_space(name)
