"""Many at once: streams of hits beside writers, sessions that come back together, and clients that do not behave."""

import asyncio
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

import engram
from engram._sample import load_sample
from engram.v1 import service_pb2 as pb

from .support import ServerProcess, Stream, frame, raw, reason

_WHOLE = "ENGRAM_CAMPAIGN" in os.environ
STREAMS = 100 if _WHOLE else 12
SESSIONS = 2_000 if _WHOLE else 300
STORMS = 500 if _WHOLE else 6
HITS = 1_000


@contextmanager
def threads(failures: list[BaseException], *jobs: Callable[[], None]) -> Iterator[None]:
    """Run beside the block; all have ended after it."""

    def guarded(job: Callable[[], None]) -> None:
        try:
            job()
        except BaseException as error:
            failures.append(error)

    running = [threading.Thread(target=guarded, args=(job,)) for job in jobs]
    for thread in running:
        thread.start()
    try:
        yield
    finally:
        for thread in running:
            thread.join()


@contextmanager
def stopping(stop: threading.Event) -> Iterator[None]:
    """Tell those who run until they are told, whatever happens."""
    try:
        yield
    finally:
        stop.set()


@pytest.mark.parametrize("graph_rows_min", [0, 4_096], ids=["graph from the first row", "default"])
def test_streams_of_hits_beside_writers(tmp_path: Path, graph_rows_min: int) -> None:
    """Each stream is of one generation, from its first hit to its last, and equals what numpy finds in it (G3, G6)."""
    rows = load_sample().vectors
    limits = {"index_graph_rows_min": graph_rows_min}
    failures: list[BaseException] = []
    stop, shares = threading.Event(), list[float]()
    with engram.open(tmp_path / "data", limits=limits) as engine, engram.serve(engine, grpc="127.0.0.1:0") as server:
        space = engine.space("s", dim=384)
        space.observe_batch(vectors=rows[:3_000], keys=[f"k{i}" for i in range(3_000)])

        def write(number: int) -> None:
            draw = np.random.default_rng(number)
            while not stop.is_set():
                noisy = rows[draw.integers(0, len(rows), 20)] + draw.normal(scale=0.02, size=(20, 384))
                space.observe_batch(vectors=noisy, keys=[f"k{i}" for i in draw.choice(4_000, 20, replace=False)])
                space.forget(draw.integers(1, space.stats()["generation"], 3).tolist())
                time.sleep(0.005)

        def read(number: int, client: engram.Engine) -> None:
            exact = number % 2 == 0
            cue = rows[number * 7 % len(rows)]
            batches = client.space("s").recall_stream(vector=cue, k=HITS, batch_size=10, exact=exact)
            hits, generations = [], set()
            for batch in batches:
                assert len(batch.hits) == 10
                hits += [(hit.memory_id, hit.score) for hit in batch.hits]
                generations.add(batch.generation)
                time.sleep(0.001)
            assert (len(hits), len(generations)) == (HITS, 1)
            living = [(memory.memory_id, memory.vector) for memory in space.list(as_of=generations.pop())]
            ids, matrix = np.array([one for one, _ in living]), np.array([vector for _, vector in living])
            scores = matrix @ cue / np.linalg.norm(matrix, axis=1) / np.linalg.norm(cue)
            last = np.sort(scores)[-HITS]
            by_id = dict(zip(ids.tolist(), scores.tolist(), strict=True))
            assert all(abs(by_id[one] - score) < 1e-5 for one, score in hits), "of that generation, with its true score"
            found = float(np.mean([score >= last - 1e-5 for _, score in hits]))
            assert found == 1.0 or not exact
            if not exact:
                shares.append(found)

        readers = [lambda number=n: read(number, client) for n in range(STREAMS)]
        with (
            engram.connect(server.url) as client,
            threads(failures, lambda: write(1), lambda: write(2)),
            stopping(stop),
            threads(failures, *readers),
        ):
            pass
    assert failures == []
    assert np.mean(shares) >= 0.95
    print(f"{STREAMS} streams of {HITS} hits: {np.mean(shares):.4f} of the nearest")


def test_sessions_come_back_together(tmp_path: Path) -> None:
    """Every one of many sessions goes on where it was after each loss of all connections (S4, S5)."""

    async def speak(channel: grpc.aio.Channel, number: int, token: str, first: int) -> tuple[Any, str]:
        call = channel.stream_stream("/engram.v1.Engram/Observe")()
        await call.write(pb.ObserveRequest(open=pb.Open(space=f"s{number % 7}", token=token)).SerializeToString())
        opened = pb.ObserveResponse.FromString(await call.read()).opened
        assert opened.committed == first - 1
        say = frame(first, [f"{number}-{first}", f"{number}-{first + 1}"])
        await call.write(pb.ObserveRequest(frame=say).SerializeToString())
        while True:
            heard = pb.ObserveResponse.FromString(await call.read())
            if heard.WhichOneof("what") == "ack":
                assert (heard.ack.first_sequence, heard.ack.count) == (first, 2)
                return call, opened.token
            assert heard.WhichOneof("what") in ("window", "pressure"), heard

    async def rounds(address: str) -> None:
        tokens = [""] * SESSIONS
        channel = grpc.aio.insecure_channel(address)
        spoken = await asyncio.gather(*(speak(channel, n, "", 1) for n in range(SESSIONS)))
        tokens = [token for _, token in spoken]
        storming = SESSIONS if not _WHOLE else 100
        for storm in range(1, STORMS + 1):
            await channel.close()
            channel = grpc.aio.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)])
            await asyncio.gather(*(speak(channel, n, tokens[n], 2 * storm + 1) for n in range(storming)))
        await channel.close()

    with ServerProcess(tmp_path / "data") as server, engram.connect(server.url) as engine:
        for n in range(7):
            engine.space(f"s{n}", dim=2)
        asyncio.run(rounds(server.url.removeprefix("grpc://")))
        texts = [memory.text or "" for n in range(7) for memory in engine.space(f"s{n}").list()]
    said: dict[int, list[int]] = {}
    for number, sequence in (text.split("-") for text in texts):
        said.setdefault(int(number), []).append(int(sequence))
    assert len(said) == SESSIONS
    assert all(sorted(all_) == all_ == [*range(1, len(all_) + 1)] for all_ in said.values())
    assert len(said[0]) == 2 * (STORMS + 1)
    print(f"{SESSIONS} sessions, {STORMS} storms, {len(texts)} observations")


def test_those_who_do_not_behave_hurt_nobody_else(tmp_path: Path) -> None:
    """One does not read, one ignores its window, one lies about sequences, one sends garbage (P6)."""
    failures: list[BaseException] = []
    stop = threading.Event()
    rows = 20_000 if _WHOLE else 2_000
    # An age of a second is no overload here: two cores are shared by all of them.
    limits = {"queue_observations_max": 2_000, "queue_age_ms_max": 60_000}
    data = tmp_path / "data"
    heard: dict[str, set[str]] = {"deaf": set(), "greedy": set(), "liar": set(), "garbage": set()}

    def misbehave(kind: str) -> None:
        with raw(server.url) as channel:
            while not stop.is_set():
                stream = Stream(channel, space="bad")
                if kind == "deaf":
                    stream.reading.clear()
                for turn in range(100):
                    if kind == "garbage":
                        stream.say(bytes(np.random.default_rng(turn).integers(0, 256, 300, dtype=np.uint8)))
                    elif kind == "liar":
                        stream.frame((1, 7, 1 << 60, 3)[turn % 4], 5)
                    else:
                        stream.frame(turn * 500 + 1, 500)
                    time.sleep(0.0005)
                stream.reading.set()
                stream.half_close()
                while (word := stream.next()) is not None:
                    if isinstance(word, grpc.RpcError):
                        heard[kind].add(reason(word))
                    elif word.WhichOneof("what") == "fault":
                        heard[kind].add(word.fault.code)
                    elif word.WhichOneof("what") == "ack":
                        heard[kind].add("ack")
                stream.cancel()

    with engram.open(data, limits=limits) as engine, engram.serve(engine, grpc="127.0.0.1:0") as server:
        for name in ("good", "bad"):
            engine.space(name, dim=2)
        jobs = [lambda kind=kind: misbehave(kind) for kind in heard]
        with threads(failures, *jobs), stopping(stop), engram.connect(server.url) as client:
            space = client.space("good")
            with space.stream() as stream:
                for first in range(0, rows, 50):
                    vectors = np.column_stack((np.arange(first, first + 50) + 1.0, np.ones(50)))
                    stream.observe_batch(vectors=vectors, texts=[f"{first + i}" for i in range(50)])
                    committed = stream.committed
                    assert len(space.recall(vector=[1.0, 1.0], k=3)) == 3 or committed < 3
                stream.flush(60)
                assert stream.refusals == 0
        assert failures == []
        assert heard["garbage"] == {"INVALID_ARGUMENT"}
        assert heard["liar"] - {"OVERLOADED", "SEQUENCE_CONFLICT"} == {"SEQUENCE_GAP", "ack"}
        assert "ack" in heard["deaf"] & heard["greedy"]
        assert [memory.text for memory in engine.space("good").list()] == [f"{i}" for i in range(rows)]
        bad = [memory.text or "" for memory in engine.space("bad").list()]
        assert len(bad) >= 5
        assert all(text.startswith("t") for text in bad)
        assert engine.stats()["worker_restarts"] == 0
    assert engram.verify(data)["damage"] == []
    print(heard)
