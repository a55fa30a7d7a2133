"""The main jobs from end to end, in real processes; the last three also through a proxy that delays and breaks."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

import engram
from engram.chaos.faults import Burst, Delay, Fault, Proxy, Reset

from .support import ServerProcess

DIM = 8
WAYS: dict[str, list[Fault]] = {
    "straight": [],
    "delayed and broken": [Delay(0.004), Reset(400_000)],
    "in bursts": [Burst(0.05)],
}


def vectors(first: int, count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, first]).normal(size=(count, DIM)).astype("f4")


@contextmanager
def between(url: str, way: str) -> Iterator[str]:
    """The url to use, through a proxy with the faults."""
    if not WAYS[way]:
        yield url
        return
    with Proxy(url, WAYS[way], seed=3) as proxy:
        yield proxy.url


def test_ingest_to_recall(tmp_path: Path) -> None:
    """Scenario 1: each id is found right after its acknowledgement (O6); the count is exact, again after reopening."""
    rows = 10_000
    with ServerProcess(tmp_path / "data") as server, engram.connect(server.url) as engine:
        space = engine.space("s", dim=DIM)
        for first in range(0, rows, 100):
            batch = vectors(first, 100)
            ack = space.observe_batch(vectors=batch, texts=[f"row {first + i}" for i in range(100)])
            for i in (0, 37, 99):
                hit = space.recall(vector=batch[i], k=1)[0]
                assert (hit.memory_id, hit.text) == (ack.memory_ids[i], f"row {first + i}")
        ids, _ = space.recall_batch(np.concatenate([vectors(f, 100) for f in range(0, rows, 100)]), k=1, exact=True)
        assert ids[:, 0].tolist() == [*range(1, rows + 1)]
        assert len(space) == rows
    with engram.open(tmp_path / "data") as engine:
        assert len(engine.space("s")) == rows
        assert [memory.text for memory in engine.space("s").list()] == [f"row {i}" for i in range(rows)]


def test_many_clients_and_spaces(tmp_path: Path) -> None:
    """Scenario 2: 8 clients, 4 spaces, 5,000 rows each: exact counts, and nothing of another space anywhere."""
    clients, spaces, rows = 8, 4, 5_000
    failures: list[BaseException] = []

    def run(url: str, number: int) -> None:
        try:
            name = f"space-{number % spaces}"
            with engram.connect(url) as engine:
                space = engine.space(name, dim=DIM)
                with space.stream() as stream:
                    for first in range(0, rows, 250):
                        texts = [f"{name} of {number} row {first + i}" for i in range(250)]
                        stream.observe_batch(texts=texts, vectors=vectors(first, 250, number))
                        if first % 1000 == 0:
                            hits = space.recall(vector=vectors(first, 1, number)[0], k=10)
                            assert all((hit.text or "").startswith(name) for hit in hits)
        except BaseException as error:
            failures.append(error)

    with ServerProcess(tmp_path / "data") as server:
        threads = [threading.Thread(target=run, args=(server.url, number)) for number in range(clients)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failures == []
        with engram.connect(server.url) as engine:
            for number in range(spaces):
                space = engine.space(f"space-{number}")
                assert len(space) == space.stats()["memories"] == rows * clients // spaces
                others = [m.text for m in space.list() if not (m.text or "").startswith(space.name)]
                assert others == []
                with pytest.raises(engram.InvalidArgument) as caught:
                    space.observe("x", vector=[1.0])
                assert not any(f"space-{n}" in str(caught.value) for n in range(spaces) if n != number)


@pytest.mark.parametrize("way", WAYS)
def test_backpressure_and_recovery(tmp_path: Path, way: str) -> None:
    """Scenario 3: on a slow disk the depth stays below the limit, refused is said, accepted is there (P1, P3, P4)."""
    limit = 1_000
    with (
        engram.open(tmp_path / "data", limits={"queue_observations_max": limit, "partitions": 1}) as engine,
        engram.serve(engine, grpc="127.0.0.1:0") as server,
        between(server.url, way) as url,
    ):
        space = engine.space("s", dim=DIM)
        engine._core.inject("sync@GroupSync=delay100")
        depths: list[int] = []
        told: list[int] = []
        counted = {"sent": 0, "accepted": 0, "refused": 0, "unknown": 0}
        lock, stop = threading.Lock(), threading.Event()

        def watch() -> None:
            while not stop.is_set():
                depths.append(space.stats()["queue_observations"])
                time.sleep(0.001)

        def produce(number: int) -> None:
            with engram.connect(url) as client:
                there = client.space("s")
                while not stop.is_set():
                    outcome = "accepted"
                    try:
                        there.observe_batch(vectors=vectors(number, 100), on_overload="raise")
                    except engram.Overloaded as error:
                        told.append(error.retry_after_ms)
                        outcome = "refused"
                        time.sleep(0.005)
                    except engram.Unavailable:
                        outcome = "unknown"
                    with lock:
                        counted["sent"] += 100
                        counted[outcome] += 100

        threads = [threading.Thread(target=watch)]
        threads += [threading.Thread(target=produce, args=(number,)) for number in range(16)]
        for thread in threads:
            thread.start()
        time.sleep(2.0)
        stop.set()
        for thread in threads:
            thread.join()
        engine._core.inject("")
        begun = time.monotonic()
        while space.stats()["level"] != "NORMAL":
            assert time.monotonic() - begun < 10
            time.sleep(0.01)
        assert counted["refused"] > 0
        assert min(told) >= 10
        assert counted["accepted"] + counted["refused"] + counted["unknown"] == counted["sent"]
        assert max(depths) <= limit
        assert counted["accepted"] <= len(space) <= counted["accepted"] + counted["unknown"]
        assert counted["unknown"] == 0 or way != "straight"
        print(f"{way}: {counted}, depth at most {max(depths)} of {limit}")


@pytest.mark.parametrize("way", WAYS)
def test_worker_failure(tmp_path: Path, way: str) -> None:
    """Scenario 4: a writer thread that dies in mid-batch is replaced; nothing is lost or doubled (T3)."""
    with (
        engram.open(tmp_path / "data") as engine,
        engram.serve(engine, grpc="127.0.0.1:0") as server,
        between(server.url, way) as url,
    ):
        engine.space("s", dim=DIM)
        with engram.connect(url) as client:
            space = client.space("s")
            with space.stream() as stream:
                for first in range(0, 5_000, 50):
                    if first in (1_000, 3_000):
                        engine._core.inject("work:writer*3=panic")
                    stream.observe_batch(vectors=vectors(first, 50), texts=[f"{first + i}" for i in range(50)])
                    time.sleep(0.002)
                stream.flush(30)
            assert [memory.text for memory in engine.space("s").list()] == [f"{i}" for i in range(5_000)]
        assert engine.stats()["worker_restarts"] > 0


@pytest.mark.parametrize("way", WAYS)
def test_recall_while_streaming(tmp_path: Path, way: str) -> None:
    """Scenario 5: streams of hits, each of one snapshot, equal the scan of its generation meanwhile (G3, G6)."""
    with (
        engram.open(tmp_path / "data") as engine,
        engram.serve(engine, grpc="127.0.0.1:0") as server,
        between(server.url, way) as url,
    ):
        space = engine.space("s", dim=DIM)
        space.observe_batch(vectors=vectors(0, 2_000), keys=[f"k{i}" for i in range(2_000)])
        stop = threading.Event()
        failures: list[BaseException] = []

        def write(number: int) -> None:
            try:
                draw = np.random.default_rng(number)
                while not stop.is_set():
                    keys = [f"k{i}" for i in draw.choice(3_000, 20, replace=False)]
                    space.observe_batch(vectors=draw.normal(size=(20, DIM)), keys=keys)
                    space.forget(draw.integers(1, space.stats()["generation"], 5).tolist())
                    time.sleep(0.002)
            except BaseException as error:
                failures.append(error)

        def read(number: int) -> None:
            try:
                with engram.connect(url) as client:
                    there = client.space("s")
                    for round_ in range(6):
                        cue = vectors(number, 1, round_)[0]
                        try:
                            check(there, space, cue)
                        except engram.Unavailable:
                            assert way != "straight"
            except BaseException as error:
                failures.append(error)

        writers = [threading.Thread(target=write, args=(number,)) for number in range(2)]
        readers = [threading.Thread(target=read, args=(number,)) for number in range(4)]
        for thread in writers + readers:
            thread.start()
        for thread in readers:
            thread.join()
        stop.set()
        for thread in writers:
            thread.join()
        assert failures == []


def check(there: engram.Space, space: engram.Space, cue: np.ndarray) -> None:
    """One stream of each kind against the scan of its generation."""
    exact: list[int] = []
    for batch in there.recall_stream(vector=cue, k=300, batch_size=10, exact=True):
        exact += [hit.memory_id for hit in batch.hits]
        generation = batch.generation
    scan = space.recall(vector=cue, k=300, as_of=generation, exact=True)
    ties = {hit.score for hit in scan}
    assert len(ties) < 300 or exact == [hit.memory_id for hit in scan]
    generations = set()
    found: list[int] = []
    for batch in there.recall_stream(vector=cue, k=300, batch_size=10):
        generations.add(batch.generation)
        found += [hit.memory_id for hit in batch.hits]
    assert len(generations) == 1
    truth = {hit.memory_id for hit in space.recall(vector=cue, k=300, as_of=generations.pop(), exact=True)}
    assert len(truth & set(found)) >= 0.95 * len(truth)
