"""The same calls on an engine of this process and on a server's: the same results, the same errors."""

import asyncio
import datetime
import functools
import threading
import time
from collections.abc import Callable
from typing import Any

import grpc
import numpy as np
import pytest

import engram
from engram.server import Server
from engram.v1 import service_pb2 as pb

from .support import frame, in_a_fork, method

V = np.random.default_rng(4).normal(size=(60, 2)).astype("f4")
WHEN = datetime.datetime(2020, 5, 17, 3, 4, 5, 123457, tzinfo=datetime.UTC)
LATER = WHEN + datetime.timedelta(microseconds=30)
DEEP: dict[str, Any] = functools.reduce(lambda inner, _: {"a": inner}, range(20), {})


def plain(value: Any) -> Any:
    """What can be compared: not times of commits, nor objects' identities."""
    if isinstance(value, engram.Memory):
        vector = None if isinstance(value, engram.Hit) or value.vector is None else value.vector.tolist()
        fields = [value.memory_id, value.text, value.metadata, value.key, value.ended, value.confidence]
        score = value.score if isinstance(value, engram.Hit) else None
        return [*fields, value.observed_at, vector, score]
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, engram.HitBatch):
        return [plain(value.hits), value.generation, value.index, value.last]
    if isinstance(value, engram.Hits):
        return [value.generation, [plain(hit) for hit in value]]
    if isinstance(value, engram.BatchAck):
        return [value.memory_ids.tolist(), value.generation, value.durability, value.rejected, value.duplicate]
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


def observed(space: engram.Space) -> list[Any]:
    metadata = {"n": 2**53 + 1, "x": 0.1, "deep": {"a": [1, None, True, "é\u2028"]}}
    acks = [
        space.observe("one", vector=V[0], confidence=0.25, metadata=metadata, observed_at=WHEN, key="k"),
        space.observe("two", vector=V[1], key="k"),
        space.observe(None, vector=V[2], observed_at=-1.5),
        space.observe("words only", metadata={}),
    ]
    batch = space.observe_batch(
        vectors=V[4:40],
        texts=[None if i % 5 == 0 else f"text {i}" for i in range(36)],
        metadata=[{"i": i, "odd": i % 2 == 1} for i in range(36)],
        confidence=np.linspace(0, 1, 36),
        observed_at=[WHEN + datetime.timedelta(microseconds=i) for i in range(36)],
        keys=[f"key-{i}" for i in range(36)],
    )
    partly = space.observe_batch(vectors=[[1, 0], [0, 0], [0, 1]], atomic=False)
    return [*acks, batch, partly]


READS: dict[str, Callable[[engram.Space], Any]] = {
    "recall": lambda s: s.recall(vector=V[3], k=7),
    "recall more than one message": lambda s: s.recall(vector=V[3], k=150, exact=True),
    "recall where": lambda s: s.recall(vector=V[3], k=9, where={"$or": [{"odd": True}, {"i": {"$lt": 3}}]}),
    "where times": lambda s: s.recall(
        vector=V[3], k=9, where={"observed_at": {"$gte": WHEN + datetime.timedelta(microseconds=30)}}
    ),
    "where a time": lambda s: s.recall(vector=V[3], k=9, where={"observed_at": {"$in": [WHEN, -1.5]}}),
    "where times are absent": lambda s: s.recall(vector=V[3], k=9, where={"$not": {"observed_at": {"$exists": True}}}),
    "as_of": lambda s: s.recall(vector=V[3], k=3, as_of=1),
    "as_of a time": lambda s: s.recall(vector=V[3], k=3, as_of=datetime.datetime.now(datetime.UTC)),
    "ef": lambda s: s.recall(vector=V[3], k=3, ef=16),
    "target_recall": lambda s: s.recall(vector=V[3], k=3, target_recall=0.99),
    "settled": lambda s: s.recall(vector=V[3], k=3, consistency="settled"),
    "recall_stream": lambda s: list(s.recall_stream(vector=V[3], k=25, batch_size=10)),
    "recall_batch": lambda s: s.recall_batch(V[:5], k=4, threads=2),
    "recall_batch where": lambda s: s.recall_batch(V[:5], 4, where={"odd": True}, exact=True),
    "get": lambda s: [s.get(1), s.get(2), s.get(10), s.get(0), s.get(2**64 - 1)],
    "get a key": lambda s: [s.get(key="k"), s.get(key="none"), s.get(key="k", as_of=1)],
    "history": lambda s: s.history("k"),
    "list": lambda s: list(s.list()),
    "list some": lambda s: list(s.list(where={"odd": False}, after=7, limit=5)),
    "len": len,
    "properties": lambda s: (s.dim, s.metric, s.durability),
}

ERRORS: dict[str, Callable[[engram.Space], Any]] = {
    "a wrong dimension": lambda s: s.observe("x", vector=[1, 2, 3]),
    "a zero vector": lambda s: s.observe_batch(vectors=[[1, 0], [0, 0]]),
    "nothing": lambda s: s.observe(),
    "not finite": lambda s: s.observe(vector=[1, float("nan")]),
    "a text too large": lambda s: s.observe("x" * (1 << 20 | 1)),
    "metadata too deep": lambda s: s.observe(
        "x", metadata=__import__("functools").reduce(lambda d, _: {"a": d}, range(20), {})
    ),
    "confidence": lambda s: s.observe("x", confidence=1.5),
    "a key twice": lambda s: s.observe_batch(texts=["a", "b"], keys=["k", "k"]),
    "k": lambda s: s.recall(vector=V[0], k=0),
    "k too large": lambda s: s.recall(vector=V[0], k=100_000_000),
    "an operator": lambda s: s.recall(vector=V[0], where={"a": {"$like": 1}}),
    "a condition": lambda s: s.recall(vector=V[0], where={"$and": {}}),
    "a moment to come": lambda s: s.recall(vector=V[0], as_of=10**9),
    "an empty where": lambda s: s.forget(where={}),
    "two of one": lambda s: s.forget(1, key="k"),
    "a cue": lambda s: s.recall_batch([[1.0, 2.0, 3.0]]),
    "a token": lambda s: s.session(resume="nonsense"),
    "a priority": lambda s: s.session(priority="urgent"),  # type: ignore[arg-type]
    "no quarantined batch": lambda s: s.read_quarantined(3),
    "a quota": lambda s: s.set_quota(memories=0),
}


@pytest.fixture(scope="module")
def pair(server: Server, remote: engram.Engine) -> tuple[engram.Space, engram.Space]:
    """The same space's content twice: made here, and made over the wire."""
    here = server.engine.space("here", dim=2)
    there = remote.space("there", dim=2)
    assert plain(observed(here)) == plain(observed(there))
    return here, there


@pytest.mark.parametrize("name", READS)
def test_reads_are_the_same(pair: tuple[engram.Space, engram.Space], name: str) -> None:
    here, there = pair
    assert plain(READS[name](here)) == plain(READS[name](there))
    if name not in ("recall_stream", "len", "properties"):
        with here.snapshot() as one, there.snapshot() as other:
            if "as_of" not in name:
                assert plain(READS[name](one)) == plain(READS[name](other))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ERRORS)
def test_errors_are_the_same(pair: tuple[engram.Space, engram.Space], name: str) -> None:
    caught = []
    for space in pair:
        with pytest.raises(engram.EngramError) as error:
            ERRORS[name](space)
        fields = {key: value for key, value in vars(error.value).items() if key != "message"}
        caught.append((type(error.value), str(error.value).replace("there", "here"), fields))
    assert caught[0] == caught[1]


def test_spaces_are_the_same(server: Server, remote: engram.Engine) -> None:
    made = remote.space("made", dim=3, metric="l2", durability="os")
    assert (made.dim, made.metric, made.durability) == (3, "l2", "os")
    assert remote.spaces() == server.engine.spaces()
    for engine in (server.engine, remote):
        with pytest.raises(engram.AlreadyExists):
            engine.space("made", dim=4)
        with pytest.raises(engram.NotFound):
            engine.space("nowhere")
        with pytest.raises(engram.InvalidArgument):
            engine.space("Bad Name", dim=3)
    made.set_quota(memories=1)
    made.observe(vector=[1, 2, 3])
    with pytest.raises(engram.QuotaExceeded) as caught:
        made.observe(vector=[1, 2, 3])
    assert (caught.value.what, caught.value.quota, caught.value.used) == ("memories", 1, 1)
    assert made.wait_absorbed(timeout=5)
    assert made.quarantined() == []
    assert set(made.stats()) == set(server.engine.space("made").stats())
    assert set(remote.stats()) == set(server.engine.stats())
    assert set(remote.report) == set(server.engine.report)
    remote.checkpoint()
    remote.drop_space("made")
    with pytest.raises(engram.NotFound):
        len(made)


def test_forgetting_is_the_same(server: Server, remote: engram.Engine) -> None:
    counts = []
    for space in (server.engine.space("f1", dim=2), remote.space("f2", dim=2)):
        space.observe_batch(vectors=V[:20], keys=[f"k{i}" for i in range(20)], metadata=[{"i": i} for i in range(20)])
        counts.append(
            [
                space.forget(3),
                space.forget([3, 4, 400]),
                space.forget(key="k7"),
                space.forget(key="none"),
                space.forget([]),
                space.forget(where={"i": {"$gte": 15}}),
                space.forget(1, purge=True),
                len(space),
            ]
        )
    assert counts[0] == counts[1] == [1, 1, 1, 0, 0, 5, 1, 11]


def test_a_released_snapshot_is_gone(remote: engram.Engine) -> None:
    space = remote.space("snap", dim=2)
    space.observe(vector=[1, 0])
    with space.snapshot() as snapshot:
        space.observe(vector=[0, 1])
        assert (len(snapshot), len(space), snapshot.generation) == (1, 2, 1)
    with pytest.raises(engram.SnapshotExpired):
        len(snapshot)


def test_sessions_are_the_same(server: Server, remote: engram.Engine) -> None:
    told = []
    for space in (server.engine.space("n1", dim=2), remote.space("n2", dim=2)):
        session = space.session(priority="high")
        said = [
            session.observe("one"),
            session.observe_batch(texts=["two", "three"]),
            session.observe("two", sequence=2),
            session.observe_batch(vectors=[[1, 0], [0, 0]], atomic=False),
            session.observe_frame(frame(6, 2).SerializeToString()),
        ]
        with pytest.raises(engram.SequenceGap) as gap:
            session.observe("far", sequence=50)
        with pytest.raises(engram.SequenceConflict) as conflict:
            session.observe("other", sequence=1)
        with pytest.raises(engram.InvalidArgument) as invalid:
            session.observe(vector=[0, 0])
        session.pause()
        state = session.state
        with pytest.raises(engram.Paused):
            session.observe("paused", on_overload="raise")
        session.resume()
        said.append(session.observe("eight"))
        again = space.session(resume=session.token, acknowledged=8)
        with pytest.raises(engram.Fenced):
            session.observe("late")
        with pytest.raises(engram.DataLoss) as loss:
            space.session(resume=again.token, acknowledged=99)
        third = space.session(resume=again.token, acknowledged=8)
        third.close()
        third.close()
        with pytest.raises(engram.SessionExpired):
            space.session(resume=session.token)
        sequences = [gap.value.expected, conflict.value.sequence, invalid.value.index, loss.value.committed]
        states = [state, again.priority, third.state, again.committed]
        told.append([plain(said), sequences, states, len(space), [memory.text for memory in space.list()]])
    assert told[0] == told[1]


def test_levels_are_told_over_the_wire() -> None:
    limits = {"queue_observations_max": 100, "batch_items_max": 100, "partitions": 1}
    with engram.open(limits=limits) as engine, engram.serve(engine, grpc="127.0.0.1:0") as server:
        engine.space("s", dim=2)
        with engram.connect(server.url) as client:
            session = client.space("s").session()
            levels: list[str] = []
            session.on_pressure(lambda level, batch: levels.append(level))
            engine._core.inject("sync@GroupSync=delay200")
            threads = [
                threading.Thread(target=client.space("s").observe_batch, kwargs={"vectors": V[:30]}) for _ in range(3)
            ]
            for thread in threads:
                thread.start()
            deadline = time.monotonic() + 10
            while not levels and time.monotonic() < deadline:
                time.sleep(0.01)
            engine._core.inject("")
            for thread in threads:
                thread.join()
            assert levels
            assert levels[0] != "NORMAL"
            session.detach()


def test_coroutines_from_more_than_one_loop(server: Server) -> None:
    async def main() -> engram.aio.AsyncEngine:
        engine = await engram.aio.connect(server.url)
        space = await engine.space("loops", dim=2)
        async with await space.stream() as stream:
            for number in range(100):
                assert await stream.observe(f"t{number}", vector=[number + 1, 1]) == number + 1
            await stream.observe_batch(texts=["a", "b"])
            await stream.flush()
            assert stream.committed == stream.given == 102
        hits = await asyncio.gather(*(space.recall(vector=[n, 1], k=1) for n in range(1, 20)))
        assert [hit[0].text for hit in hits] == [f"t{n - 1}" for n in range(1, 20)]
        assert [batch.last async for batch in space.recall_stream(vector=[1, 1], k=20)] == [False, True]
        return engine

    async def more(engine: engram.aio.AsyncEngine) -> int:
        count = await (await engine.space("loops")).count()
        await engine.close()
        return count

    engine = asyncio.run(main())
    assert asyncio.run(more(engine)) == 102


def test_a_forked_child_is_told(remote: engram.Engine) -> None:
    space = remote.space("forked", dim=2)
    said, ended = in_a_fork(lambda: len(space))
    assert said.startswith("Closed")
    assert "not in a fork" in said
    assert ended == 0
    assert len(space) == 0


def test_urls_that_lead_nowhere() -> None:
    for url in ("http://127.0.0.1:1", "127.0.0.1:7637", "grpc://", "grpc://a/b"):
        with pytest.raises(engram.InvalidArgument):
            engram.connect(url)
    with pytest.raises(engram.Unavailable, match="no server answers"):
        engram.connect("grpc://127.0.0.1:9", timeout=0.3)


def test_a_closed_connection_says_so(server: Server) -> None:
    engine = engram.connect(server.url)
    space = engine.space("closed", dim=2)
    engine.close()
    engine.close()
    with pytest.raises(engram.Closed):
        space.observe("x")
    with pytest.raises(engram.InvalidArgument):
        engine.drain_completions()


def test_a_batch_larger_than_a_message(remote: engram.Engine) -> None:
    space = remote.space("large", dim=1024)
    vectors = np.ones((1500, 1024), "f4")
    with pytest.raises(engram.TooLarge):
        space.observe_batch(vectors=vectors)
    assert len(space.observe_batch(vectors=vectors, atomic=False).memory_ids) == 1500
    with space.stream() as stream:
        stream.observe_batch(vectors=vectors)
    texts = ["é" * 400_000 for _ in range(6)]
    space.observe_batch(texts=texts, vectors=vectors[:6] * np.arange(-6, 0)[:, None], atomic=False)
    hits = space.recall(vector=-vectors[0], k=6)
    assert [len(hit.text or "") for hit in hits] == [400_000] * 6
    assert sum(len(m.text or "") > 0 for m in space.list()) == 6


def test_a_recall_that_nobody_waits_for_is_given_up(server: Server, channel: grpc.Channel) -> None:
    space = server.engine.space("slow", dim=64)
    rows = np.random.default_rng(1).normal(size=(16_000, 64)).astype("f4")
    for _ in range(4):
        space.observe_batch(vectors=rows)
    request = pb.RecallBatchRequest(
        view=pb.View(space="slow"), vectors=rows[:4000].tobytes(), count=4000, k=10, how=pb.How(exact=True)
    )
    with pytest.raises(grpc.RpcError) as caught:
        method(channel, "RecallBatch")(request, timeout=0.2)
    assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    # The thread is free again long before so many cues could have been answered.
    begun = time.monotonic()
    pool = server._service._pools["read"]
    done = [pool.submit(time.sleep, 0.01) for _ in range(server.settings.read_threads)]
    for future in done:
        future.result(5)
    assert time.monotonic() - begun < 5
